"""examples/README.md lists every example, with a command that starts it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (EXAMPLES / "README.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| `")
]
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def test_every_example_has_a_row_and_every_row_an_example():
    assert sorted(row[0].strip("`") for row in ROWS) == SCRIPTS
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_command_starts_the_file_of_its_row(row):
    name, command = row[0].strip("`"), row[2].strip("`").split()
    assert command[:2] == ["python", f"examples/{name}"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_flags_of_the_row_are_the_scripts(row):
    name, flags = row[0].strip("`"), re.findall(r"--[a-z][a-z0-9-]*", " ".join(row))
    if "argparse" in (EXAMPLES / name).read_text() or "Script(" in (EXAMPLES / name).read_text():
        shown = subprocess.run(
            [sys.executable, EXAMPLES / name, "--help"], capture_output=True, text=True, timeout=600
        )
        assert shown.returncode == 0, shown.stderr
        assert all(flag in shown.stdout for flag in flags)
        assert not re.search(
            r"\b(on_error|follow_links|on_nan|num_workers|batch_size)\b", shown.stdout
        )
    else:
        assert flags == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_says_what_it_is(name):
    assert ast.get_docstring(ast.parse((EXAMPLES / name).read_text(encoding="utf-8")))
