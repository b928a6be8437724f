"""Check that a tag may be released: python .ci/release.py v0.1.0

The tag must be the version of gpucnn, CITATION.cff must name it, and CHANGELOG.md must have a
section for it with a date.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """What is wrong with releasing `tag`; an empty list if nothing is."""
    texts = {
        name: (root / name).read_text(encoding="utf-8")
        for name in ("gpucnn/_version.py", "CITATION.cff", "CHANGELOG.md")
    }
    version = re.escape(tag.removeprefix("v"))
    found = []
    if not re.search(rf'^__version__ = "{version}"$', texts["gpucnn/_version.py"], re.MULTILINE):
        found.append(f"gpucnn/_version.py: expected the version of the tag {tag}")
    if not re.search(rf"^version: {version}$", texts["CITATION.cff"], re.MULTILINE):
        found.append(f"CITATION.cff: expected the version of the tag {tag}")
    if not re.search(
        rf"^## \[?{version}\]? - \d{{4}}-\d\d-\d\d$", texts["CHANGELOG.md"], re.MULTILINE
    ):
        found.append(f"CHANGELOG.md: expected a section for {tag}, with its date")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit("\n".join(faults(sys.argv[1])) or 0)
