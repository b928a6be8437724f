"""Components of a self-contained HTML page with embedded pictures, for any width and both themes.

Each function returns a string of HTML.  Titles and captions are HTML; alt texts are plain text.
"""

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpucnn.inspect import draw
from gpucnn.inspect.analysis import Analysis

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
.row { display: grid; gap: .4rem; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); }
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


def data_uri(write: Callable[[Any], Any]) -> str:
    """The PNG that `write` writes to a file, as a data URI."""
    file = io.BytesIO()
    write(file)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels(picture: draw.Image, alt: str, kind: str = "px") -> str:
    """An img element of a picture (H, W, 3 or 4), uint8."""
    source = data_uri(lambda file: draw.write_png(file, picture))
    return f'<img class="{kind}" src="{source}" alt="{html.escape(alt)}">'


def chart(write: Callable[[Any, draw.Theme], Any], alt: str) -> str:
    """A chart in both themes; the browser chooses the one of the system."""
    light = data_uri(lambda file: write(file, "light"))
    dark = data_uri(lambda file: write(file, "dark"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img class="chart" src="{light}" alt="{html.escape(alt)}"></picture>'
    )


def figure(inner: str, caption: str) -> str:
    """A picture above its caption."""
    return f"<figure>{inner}<figcaption>{caption}</figcaption></figure>"


def card(title: str, inner: str) -> str:
    """A framed part of a section; an empty title is omitted."""
    heading = f"<h3>{title}</h3>" if title else ""
    return f'<div class="card">{heading}{inner}</div>'


def section(title: str, text: str, cards: Iterable[str]) -> str:
    """A heading, a paragraph, and cards in as many columns as fit."""
    inner = f'<h2>{title}</h2><p>{text}</p><div class="cards">{"".join(cards)}</div>'
    return f"<section>{inner}</section>"


def row(images: Iterable[str], n: int) -> str:
    """Images in rows of n, scaled to the width of their container."""
    return f'<div class="row" style="--n:{n}">{"".join(images)}</div>'


def gallery(figures: Iterable[str]) -> str:
    """Small figures in rows, as many per row as fit."""
    return f'<div class="gallery">{"".join(figures)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with column names; on a narrow page each cell shows its column's name instead."""
    titles = [f"<th>{columns[0]}</th>", *(f'<th class="n">{name}</th>' for name in columns[1:])]
    body = []
    for first, *others in rows:
        cells = (
            f'<td class="n" data-name="{name}">{cell}</td>'
            for name, cell in zip(columns[1:], others, strict=True)
        )
        body.append(f"<tr><td>{first}</td>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{''.join(titles)}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def layers(analysis: Analysis) -> str:
    """The warnings of `analyze` above its table of layers."""
    warnings = "".join(
        f'<p class="warn">{html.escape(str(advice))}</p>' for advice in analysis.warnings
    )
    rows = [
        (
            f"{layer.name} {html.escape(layer.layer)}",
            " × ".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}",
            f"{layer.multiply_adds:,}",
            f"{layer.activation_bytes / 1024:,.1f}",
        )
        for layer in analysis.summary.layers
    ]
    columns = ("layer", "output", "parameters", "multiply-adds", "KiB")
    return (warnings or "<p>No warnings.</p>") + table(columns, rows)


def document(title: str, body: str) -> str:
    """A complete HTML document."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
