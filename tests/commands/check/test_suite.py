"""The GPU tests as a part of a check: each failure is reported at once."""

import io
import json
import subprocess
import sys

import pytest
from recorded import Recorded

from gpucnn.commands.check import runner, suite

RESULTS = [
    {"test": "tests/a.py::test_a[cuda]", "outcome": "passed", "text": ""},
    {"test": "tests/a.py::test_b[cuda]", "outcome": "failed", "text": "    assert x\nE   no x\n"},
]


def test_a_failing_test_is_reported_at_once_with_its_reason():
    recorded = Recorded()
    results = suite.Results(recorded.reporter)
    text = "".join(json.dumps(result) + "\n" for result in RESULTS)
    results.read(io.StringIO(text[:100]))
    assert recorded.all("finding") == []
    results.read(io.StringIO(text[100:]))  # the rest of the incomplete line
    (finding,) = recorded.all("finding")
    assert (finding["what"], finding["found"]) == ("tests/a.py::test_b[cuda]", "no x")
    assert "assert x" in finding["remedy"]
    results.close(1, "")
    assert recorded.states() == {"tests/a.py::test_b[cuda]": "fail"}
    assert recorded.all("headline") == ["1 failed, 1 passed"]


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (0, "ok", "1 passed"),
        (None, "note", "1 passed; reached the time limit after tests/a.py::test_a"),
        (4, "fail", "pytest ended with status 4"),
    ],
)
def test_the_outcome_of_the_tests_is_reported(status, state, words):
    recorded = Recorded()
    results = suite.Results(recorded.reporter)
    results.read(io.StringIO(json.dumps(RESULTS[0]) + "\n"))
    results.close(status, "usage: pytest")
    assert recorded.states() == {"tests": state}
    assert words in recorded.text()


def test_the_plugin_writes_each_result_once(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('why')\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no device')\n"
        "def test_error(broken): pass\n"
    )
    path = tmp_path / "results"
    env = runner.environment(GPUCNN_CHECK_RESULTS=str(path), PYTEST_ADDOPTS="")
    env.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpucnn.commands.check.pytest_results"]
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=600)
    results = [json.loads(line) for line in path.read_text().splitlines()]
    assert {result["test"].partition("::")[2]: result["outcome"] for result in results} == {
        "test_good": "passed", "test_bad": "failed", "test_skipped": "skipped",
        "test_error": "error",
    }  # fmt: skip
    assert len(results) == 4
    assert "assert 1 == 2" in results[1]["text"]
    assert "no device" in results[3]["text"]
