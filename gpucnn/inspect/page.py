"""Components of a self-contained HTML page with embedded pictures, for any width and both themes.

Only `element` writes markup, and it escapes every str: names from files stay text.  The page's
Content-Security-Policy allows embedded pictures and this module's style sheet, and nothing else.
"""

import base64
import hashlib
import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.errors import ArgumentError
from gpucnn.inspect import draw
from gpucnn.inspect.analysis import Analysis

_MAX_ROW = 12  # images in a row
STYLE = """
:root { color-scheme: light dark; --paper: #f3f4f6; --card: #ffffff; --ink: #1b1d22;
  --soft: #5b6270; --line: #d5d8de; --warn: #9a4300; }
@media (prefers-color-scheme: dark) { :root { --paper: #121419; --card: #1c1f26; --ink: #e7e9ee;
  --soft: #a3abba; --line: #3f4552; --warn: #ffac66; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .25rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
.warn { color: var(--warn); }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem; min-width: 0; }
.chart { display: block; width: 100%; max-width: 34rem; height: auto; margin: 0 auto; }
.row { display: grid; gap: .4rem; }
.gallery { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .8rem; line-height: 1.3; }
.px { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.first { outline: 2px solid var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1rem 0; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; }
@media (max-width: 48rem) {
  thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  tr { display: flex; flex-wrap: wrap; column-gap: .75rem; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  td, td.n { border: 0; padding: .05rem .25rem; text-align: left; }
  td:first-child { flex-basis: 100%; }
  td[data-name]::before { content: attr(data-name) " "; color: var(--soft); }
}
"""


STYLE += "".join(
    f".row-{n} {{ grid-template-columns: repeat({n}, minmax(0, 1fr)); }}\n"
    for n in range(1, _MAX_ROW + 1)
)
_VOID = {"img", "meta", "source"}  # elements without content and end tag


@dataclass(frozen=True)
class Html:
    """Markup, made by `element`; `str` gives it as text."""

    markup: str

    def __str__(self) -> str:
        return self.markup


Content = Html | str  # a str is text


def element(tag: str, *content: Content, **attributes: str) -> Html:
    """An element; text and values of attributes are escaped.

    A trailing underscore of an attribute's name is dropped, others become hyphens.
    """
    values = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for name, value in attributes.items()
    )
    start = f"<{tag}{values}>"
    return Html(start if tag in _VOID else f"{start}{join(content)}</{tag}>")


def join(parts: Iterable[Content]) -> Html:
    """Parts one after the other; text is escaped."""
    return Html("".join(p.markup if isinstance(p, Html) else html.escape(p) for p in parts))


def data_uri(write: Callable[[Any], Any]) -> str:
    """The PNG that `write` writes to a file, as a data URI."""
    file = io.BytesIO()
    write(file)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels(picture: draw.Image, alt: str, kind: str = "px") -> Html:
    """An img element of a picture (H, W, 3 or 4), uint8."""
    source = data_uri(lambda file: draw.write_png(file, picture))
    return element("img", class_=kind, src=source, alt=alt)


def chart(write: Callable[[Any, draw.Theme], Any], alt: str) -> Html:
    """A chart in both themes; the browser chooses the one of the system."""
    light = data_uri(lambda file: write(file, "light"))
    dark = data_uri(lambda file: write(file, "dark"))
    return element(
        "picture",
        element("source", media="(prefers-color-scheme: dark)", srcset=dark),
        element("img", class_="chart", src=light, alt=alt),
    )


def figure(inner: Html, caption: Content) -> Html:
    """A picture above its caption."""
    return element("figure", inner, element("figcaption", caption))


def card(title: Content, inner: Html) -> Html:
    """A framed part of a section; an empty title is omitted."""
    heading = element("h3", title) if title else ""
    return element("div", heading, inner, class_="card")


def section(title: Content, text: Content, cards: Iterable[Html]) -> Html:
    """A heading, a paragraph, and cards in as many columns as fit."""
    grid = element("div", *cards, class_="cards")
    return element("section", element("h2", title), element("p", text), grid)


def row(images: Iterable[Html], n: int) -> Html:
    """Images in rows of n (1 to 12), scaled to the width of their container."""
    if not 1 <= n <= _MAX_ROW:
        raise ArgumentError(f"row: expected 1 to {_MAX_ROW} images in a row, got {n}")
    return element("div", *images, class_=f"row row-{n}")


def gallery(figures: Iterable[Html]) -> Html:
    """Small figures in rows, as many per row as fit."""
    return element("div", *figures, class_="gallery")


def table(columns: Sequence[str], rows: Iterable[Sequence[Content]]) -> Html:
    """A table with column names; on a narrow page each cell shows its column's name instead."""
    titles = [element("th", columns[0]), *(element("th", name, class_="n") for name in columns[1:])]
    body = []
    for first, *others in rows:
        cells = (
            element("td", cell, class_="n", data_name=name)
            for name, cell in zip(columns[1:], others, strict=True)
        )
        body.append(element("tr", element("td", first), *cells))
    head = element("thead", element("tr", *titles))
    return element("table", head, element("tbody", *body))


def layers(analysis: Analysis) -> Html:
    """The warnings of `analyze` above its table of layers."""
    warnings = [element("p", str(advice), class_="warn") for advice in analysis.warnings]
    rows = [
        (
            f"{layer.name} {layer.layer}",
            " × ".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}",
            f"{layer.activation_bytes / 1024:,.1f}",
        )
        for layer in analysis.summary.layers
    ]
    columns = ("layer", "output", "parameters", "multiply-adds", "KiB")
    return join([*(warnings or [element("p", "No warnings.")]), table(columns, rows)])


def document(title: str, body: Content) -> str:
    """A complete HTML document."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),  # not escaped, as HTML requires of a style sheet
    )
    return f"<!DOCTYPE html>{element('html', head, element('body', body), lang='en')}\n"
