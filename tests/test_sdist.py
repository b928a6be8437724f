"""The sdist holds every file that git tracks, so that its tests run; .ci/run builds it."""

import fnmatch
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def covered(path, manifest):
    """Whether the lines of MANIFEST.in put `path` into the sdist."""
    found = False
    for command, *patterns in (line.split() for line in manifest if not line.startswith("#")):
        if command == "graft":
            found |= path.split("/")[0] in patterns
        elif command == "include":
            found |= "/" not in path and any(fnmatch.fnmatch(path, p) for p in patterns)
        elif command == "prune":
            found &= not any(path.startswith(f"{p}/") for p in patterns)
        else:
            assert command == "global-exclude", command
            found &= not any(fnmatch.fnmatch(Path(path).name, p) for p in patterns)
    return found


def test_the_sdist_holds_every_tracked_file():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    manifest = (ROOT / "MANIFEST.in").read_text().splitlines()
    tracked = done.stdout.splitlines()
    assert len(tracked) > 300
    assert [path for path in tracked if not covered(path, manifest)] == []


def test_a_file_outside_the_manifest_is_seen():
    manifest = ["# a comment", "graft tests", "graft docs", "include *.md", "prune docs/_build"]
    manifest.append("global-exclude *.py[cod]")
    assert covered("tests/gpu/calls.py", manifest)
    assert covered("README.md", manifest)
    assert not covered("tests/gpu/calls.pyc", manifest)
    assert covered("docs/README.md", manifest)
    assert not covered("docs/_build/html/index.html", manifest)
    assert not covered("examples/README.md", manifest)
