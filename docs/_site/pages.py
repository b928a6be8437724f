"""A Sphinx extension: Markdown pages that are read on GitHub, too.

- A page in INCLUDED shows the text of a file outside docs/.
- Links to files outside docs/ lead to such a page, else to `source_url`, else to the file.
- A block ```{api} MODULE lists public names, which autodoc then documents.
"""

import inspect
import os.path
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import numpy as np
from docstrings import restructured

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
INCLUDED = {  # page: file
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "changelog": "CHANGELOG.md",
    "cudasim": "gpucnn/cudasim/README.md",
}
API = re.compile(r"^```\{api\} ([\w.]+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
# [training.md](training.md#precision): the site shows the title instead of the file's name.
_NAMED_AFTER_FILE = re.compile(r"\[(?:docs/)?[\w/]+\.md\]\(([\w./]+\.md(?:#[\w-]+)?)\)")


def _read(app: "Sphinx", page: str, source: list[str]) -> None:
    folder = DOCS / Path(page).parent
    file = ROOT / INCLUDED[page] if page in INCLUDED else None
    if file is not None and file.exists():
        source[0], folder = file.read_text(encoding="utf-8"), file.parent
    here = (DOCS / page).parent
    source[0] = _NAMED_AFTER_FILE.sub(r"[](\1)", source[0])
    if page.startswith("notebooks/") and app.config.nb_execution_mode != "off":
        title, rest = re.split(r"(?<=\n)\n(?=[A-Z])", source[0], maxsplit=1)
        download = f"{{nb-download}}`{Path(page).name}.ipynb`"
        source[0] = f"{title}\nThis page as a notebook: {download}\n\n{rest}"
    text = _outside_code(source[0], lambda part: _linked(part, folder, here, app.config.source_url))
    source[0] = API.sub(lambda block: _documented(block[1], block[2].split()), text)


def _outside_code(text: str, change: Any) -> str:
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _linked(text: str, folder: Path, here: Path, source_url: str) -> str:
    """`text`, whose links start at `folder`, for a page in the folder `here`."""

    def target(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return link[1]
        file = (folder / path).resolve()
        if not file.exists():
            return link[1]  # Sphinx will warn
        anchor = f"#{anchor}" if anchor else ""
        inside = file.relative_to(ROOT).as_posix()
        for page, included in INCLUDED.items():
            if inside == included:
                file = DOCS / f"{page}.md"
        if inside == "README.md":
            file = DOCS / "index.md"
        if DOCS not in file.parents and source_url:
            return f"{source_url}/{inside}{anchor}"
        return os.path.relpath(file, here) + anchor

    return _LINK.sub(target, text)


def _documented(module: str, names: list[str]) -> str:
    lines = ["```{eval-rst}", f".. py:currentmodule:: {module}", ""]
    plain = []
    for name in names:
        value = getattr(resolve_name(module), name)
        options = ":no-value:"
        if inspect.ismodule(value):
            page = value.__name__.split(".")[1]
            summary = restructured((value.__doc__ or "").split("\n\n")[0])
            lines += [f"- :doc:`{module}.{name} <{page}>`: {summary}", ""]
            continue
        if module == "gpucnn.cudasim" and hasattr(np, name):  # documented by NumPy and CuPy
            plain.append(name)
            continue
        if inspect.isclass(value):
            kind = "exception" if issubclass(value, BaseException) else "class"
            options = ":members:"
        elif callable(value) and hasattr(value, "__name__") and not _is_type(value):
            kind, options = "function", ""
        else:
            kind = "data"
        lines += [f".. auto{kind}:: {module}.{name}", f"   {options}".rstrip(), ""]
    for name in plain:
        lines += [f".. py:data:: {name}", ""]
    return "\n".join([*lines, "```"])


def _is_type(value: object) -> bool:
    return hasattr(value, "__origin__") or hasattr(value, "__args__")


def setup(app: "Sphinx") -> dict[str, bool]:
    app.add_config_value("source_url", "", "env", str)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
