"""The table of docs/reliability.md has the faults that the reliability tests provoke."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
SOURCES = [*(TESTS / "reliability").glob("*.py"), TESTS / "fuzzing" / "targets.py"]
TREES = [
    ast.parse(path.read_text(encoding="utf-8"))
    for path in SOURCES
    if path.name != "test_the_tally.py"
]


def rows():
    """The names in the first column of the table of faults."""
    table = PAGE.read_text(encoding="utf-8").partition("| fault | times provoked | lost |")[2]
    return re.findall(r"^\| (.+?) \| [\d,]+ \| \d+ \|$", table, re.MULTILINE)


def pattern(node):
    """What a text or an f-string of the source may read, as a regular expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(pattern(part) or ".+" for part in node.values)
    return None


def test_every_row_of_the_page_is_a_fault_of_the_reliability_tests():
    texts = {pattern(node) for tree in TREES for node in ast.walk(tree)} - {None, ".+"}
    assert rows()
    for row in rows():
        assert any(re.fullmatch(text, row) for text in texts), row


def test_every_fault_of_the_reliability_tests_is_a_row_of_the_page():
    found = rows()
    for tree in TREES:
        named = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "tally" and call.args:
                fault = call.args[0]
                text = pattern(named.get(getattr(fault, "id", ""), fault))
                assert text is None or any(re.fullmatch(text, row) for row in found), text
