"""A Sphinx extension: docstrings, which are plain text, become reStructuredText.

Backticks mark code; an indented block is code; "Raises" and "Source:" open a paragraph; lines of a
name, two spaces or more and a description are a table, shown as it stands.  Nothing else is markup,
so `x * y`, `name_` and `**kwargs` mean what they say.
"""

import inspect
import re
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_SPECIAL = re.compile(r"([*_|\\])")
_TABLE_ROW = re.compile(r"[\w.*()]+(, [\w.*]+)*  +\S")
_OPENING = re.compile(r"(Raises|Source|Sources): |(Raises|Raise) [A-Z]")


def restructured(text: str) -> str:
    """The reStructuredText of a docstring without indentation."""
    return "\n\n".join(filter(None, map(_paragraph, _paragraphs(text))))


def _paragraphs(text: str) -> list[list[str]]:
    """Runs of lines that belong together: separated by blank lines, except within indented code."""
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        last = paragraphs[-1]
        indented, after_code = line.startswith("  "), bool(last) and last[0].startswith("  ")
        in_item = bool(last) and last[0].startswith("- ")
        if not line.strip():
            if after_code:
                last.append("")
            else:
                paragraphs.append([])
        elif (
            (bool(last) and indented != after_code and not (in_item and indented))
            or _OPENING.match(line)
            or line.startswith("- ")
        ):
            paragraphs.append([line])
        else:
            last.append(line)
    return paragraphs


def _paragraph(lines: list[str]) -> str:
    if not any(line.strip() for line in lines):
        return ""
    if lines[0].startswith("  "):
        return _code(textwrap.dedent("\n".join(lines)).strip("\n"))
    if len(lines) > 1 and sum(bool(_TABLE_ROW.match(line)) for line in lines) * 2 > len(lines):
        return _code("\n".join(lines))
    if lines[0].startswith("- "):
        return "- " + _escaped(" ".join(line.strip() for line in lines)[2:])
    return _escaped(" ".join(line.strip() for line in lines))


def _code(text: str) -> str:
    return ".. code-block:: none\n\n" + textwrap.indent(text, "   ")


def _escaped(text: str) -> str:
    """`code` becomes ``code``; outside of it, nothing is markup."""
    parts = re.split(r"(`+[^`]+`+)", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"``{part.strip('`').strip()}``"
        else:
            joined = "\\ " if i and part[:1].isalnum() else ""  # `Tensor`s
            parts[i] = joined + _SPECIAL.sub(r"\\\1", part).replace("`", r"\`")
    return "".join(parts)


def _process(
    app: "Sphinx", what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    if what in ("class", "exception") and lines and lines[0].startswith(f"{name.split('.')[-1]}("):
        lines[:] = []  # the signature that @dataclass writes where there is no docstring
    if what == "data" and "\n".join(lines).strip() == inspect.getdoc(type(obj)):
        value = f"`{obj!r}`"  # in place of what Python says about dicts or unions
        lines[:] = [value] if len(value) < 100 and "`" not in value[1:-1] else []
    lines[:] = restructured("\n".join(lines)).splitlines()


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
