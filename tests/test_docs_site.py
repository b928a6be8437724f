"""What docs/check.py and docs/_site/ do, without Sphinx; .ci/run builds the site itself."""

import re
import sys

import pytest
from scripts import load_script
from test_docs import DOCS


@pytest.fixture
def site(monkeypatch):
    """Load a module of the site by its path in docs/."""
    monkeypatch.setattr(sys, "path", [str(DOCS / "_site"), *sys.path])
    yield lambda path: load_script(DOCS / path)
    sys.modules.pop("docstrings", None)


def test_a_link_to_a_missing_file_or_anchor_is_found(site, tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="there">B</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there">1</a> <a href="#top">2</a> <a href="c.html">3</a> <i id="top">'
        '<a href="b.html#gone">4</a> <img src="no.png"> <a href="https://">5</a>'
        '<a href="https://example.org/x">6</a>'
    )
    assert site("check.py").broken_links(tmp_path) == [
        "a.html: c.html", "a.html: b.html#gone", "a.html: no.png", "a.html: https://"
    ]  # fmt: skip


def test_a_docstring_is_not_taken_for_markup(site):
    restructured = site("_site/docstrings.py").restructured
    assert restructured("x * y and `Tensor`s of name_.") == (r"x \* y and ``Tensor``\ s of name\_.")
    assert restructured("Use it:\n\n    a = 1\n\n    b = 2\n\nThen.") == (
        "Use it:\n\n.. code-block:: none\n\n   a = 1\n\n   b = 2\n\nThen."
    )
    assert restructured("One\nline.\nRaises ShapeError.") == "One line.\n\nRaises ShapeError."
    assert restructured("a  one\nbc  two") == ".. code-block:: none\n\n   a  one\n   bc  two"


def test_links_out_of_docs_lead_to_the_sources(site):
    pages = site("_site/pages.py")
    text = "[a](../gpucnn/device.py) [b](../CONTRIBUTING.md#conventions) [c](check.md) `[d](x.md)`"
    assert pages._linked(text, DOCS, DOCS, "https://example.org/tree") == (
        "[a](https://example.org/tree/gpucnn/device.py) [b](contributing.md#conventions) "
        "[c](check.md) `[d](x.md)`"
    )
    assert "[a](../gpucnn/device.py)" in pages._linked(text, DOCS, DOCS, "")
    assert re.search(
        r"\[\]\(check\.md\)", pages._NAMED_AFTER_FILE.sub(r"[](\1)", "[check.md](check.md)")
    )


def test_every_included_page_names_its_file(site):
    for page, file in site("_site/pages.py").INCLUDED.items():
        assert file in (DOCS / f"{page}.md").read_text(encoding="utf-8")
