"""Build the documentation site into docs/_build/html, and check it.

    pip install -e ".[docs]"
    python docs/check.py                 # run the notebooks, too: minutes
    python docs/check.py --no-notebooks  # only their text

Warnings of Sphinx are errors: links to pages, headings or files that do not exist, docstrings that
cannot be parsed, a cell that fails.  Then the HTML is checked: every anchor that a link names
exists, every public name has one entry, the search index knows it.  No step uses the network.
"""

import argparse
import os
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).resolve().parent
HTML = DOCS / "_build" / "html"
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_site")]


def build(notebooks: bool) -> int:
    """The exit status of Sphinx."""
    environment = {
        **os.environ,
        "GPUCNN_DEVICE": os.environ.get("GPUCNN_DEVICE", "cpu"),
        "GPUCNN_DOCS_NOTEBOOKS": "" if notebooks else "off",
        "PYTHONPATH": os.pathsep.join(
            filter(None, (str(DOCS.parent), os.environ.get("PYTHONPATH")))
        ),
    }
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "-E"]
    folders = ["-d", str(HTML.with_name("doctrees")), str(DOCS), str(HTML)]
    return subprocess.run([*command, *folders], env=environment, check=False).returncode


class _Page(HTMLParser):
    """The anchors of a page, and the links and images in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in {("a", "href"), ("img", "src")} and value:
                self.targets.append(value)


def broken_links(folder: Path) -> list[str]:
    """Links and images of the pages in `folder` that lead nowhere.

    Other sites are not visited: their addresses must be well-formed.
    """
    pages = {path: _Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme in ("http", "https"):
                good = "." in url.netloc and " " not in target
            elif url.scheme in ("data", "mailto"):
                good = True
            else:
                file = (path.parent / unquote(url.path)).resolve() if url.path else path
                anchors = pages[file].anchors if file in pages else set()
                good = file.exists() and (
                    not url.fragment or file not in pages or unquote(url.fragment) in anchors
                )
            if not good:
                broken.append(f"{path.relative_to(folder)}: {target}")
    return broken


def names_without_one_entry(folder: Path) -> list[str]:
    """Public names that the reference lists, but that its pages do not define exactly once."""
    from pages import API

    wrong = []
    for source in sorted((DOCS / "api").glob("*.md")):
        text = (folder / "api" / source.with_suffix(".html").name).read_text(encoding="utf-8")
        for module, names in API.findall(source.read_text(encoding="utf-8")):
            for name in names.split():
                modules = f">{module}.{name}<"  # a package has a page of its own
                count = text.count(f' id="{module}.{name}"') or int(modules in text)
                if count != 1:
                    wrong.append(f"{module}.{name}: {count} entries in api/{source.name}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--no-notebooks", action="store_true", help="do not run the notebooks")
    start = time.monotonic()
    status = build(not parser.parse_args().no_notebooks)
    if status:
        return status
    problems = broken_links(HTML) + names_without_one_entry(HTML)
    index = (HTML / "searchindex.js").read_text(encoding="utf-8")
    problems += [
        f"the search index lacks {word}" for word in ("max_pool2d", "cudasim") if word not in index
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{HTML}/index.html, in {time.monotonic() - start:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
