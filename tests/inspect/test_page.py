"""The HTML of pages: text is escaped, and the policy allows pictures and the style sheet only."""

import ast
import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gpucnn import inspect
from gpucnn.errors import ArgumentError
from gpucnn.inspect import page

EVIL = "\"><script>alert('x')</script>&amp;"
PICTURE = np.zeros((2, 2, 3), np.uint8)


class Found(HTMLParser):
    """The elements, in order, with their attributes, and the text of a fragment."""

    def __init__(self, fragment):
        super().__init__()
        self.elements, self.text, self.style = [], [], ""
        self.feed(str(fragment))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.elements and self.elements[-1][0] == "style" and not self.style:
            self.style = text
        else:
            self.text.append(text)


@pytest.mark.parametrize(
    ("fragment", "tags"),
    [
        (page.figure(page.pixels(PICTURE, EVIL), EVIL), "figure img figcaption"),
        (page.card(EVIL, page.gallery([])), "div h3 div"),
        (page.section(EVIL, EVIL, []), "section h2 p div"),
        (
            page.table([EVIL, EVIL], [(EVIL, EVIL)]),
            "table thead tr th th tbody tr td td",
        ),
        (page.join([EVIL, EVIL]), ""),
        (page.element("p", EVIL, class_=EVIL, data_name=EVIL), "p"),
    ],
    ids=["figure", "card", "section", "table", "join", "element"],
)
def test_text_and_attributes_are_escaped(fragment, tags):
    found = Found(fragment)
    assert " ".join(tag for tag, _ in found.elements) == tags
    assert set("".join(found.text).split(EVIL)) == {""}
    assert not {"onerror", "style"} & {name for _, names in found.elements for name in names}


def test_the_policy_allows_embedded_pictures_and_the_style_sheet_only():
    found = Found(page.document(EVIL, EVIL))
    assert [tag for tag, _ in found.elements] == "html head meta meta meta title style body".split()
    policy = found.elements[3][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert policy["content"].split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_no_other_module_writes_markup_and_no_element_has_a_style_of_its_own():
    root = Path(__file__).parents[2]
    sources = [*(root / "gpucnn" / "inspect").glob("*.py"), root / "examples" / "look_inside.py"]
    for source in sources:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        markup = {t for t in texts if isinstance(t, str) and re.search(r"</?[a-z]|style=", t)}
        assert markup <= ({"</", "<!DOCTYPE html>"} if source.name == "page.py" else set()), source
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        made = [n for n in calls if getattr(n.func, "id", getattr(n.func, "attr", "")) == "Html"]
        assert len(made) == (3 if source.name == "page.py" else 0), source


def test_a_row_has_a_rule_in_the_style_sheet():
    for n in (1, 12):
        classes = Found(page.row([], n)).elements[0][1]["class"].split()
        assert f".{classes[1]} {{ grid-template-columns: repeat({n}, " in page.STYLE
    for n in (0, 13):
        with pytest.raises(ArgumentError, match=f"expected 1 to 12 images in a row, got {n}"):
            page.row([], n)


@pytest.mark.parametrize("name", ["$\\frac$", "a $ b $", "W" * 5000, "\x1b[2J\n\0", ""])
def test_any_class_name_is_drawn(tmp_path, name):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    inspect.confusion_chart(tmp_path / "c.png", np.eye(2, dtype=int), [name, "cat"])
    assert (tmp_path / "c.png").stat().st_size > 0
