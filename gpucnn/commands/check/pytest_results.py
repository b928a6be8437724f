"""A pytest plugin that writes the result of each test to a file at once, as a JSON line.

    GPUCNN_CHECK_RESULTS=FILE pytest -p gpucnn.commands.check.pytest_results

pytest itself explains failures only after all tests have run; the part may be killed before that.
"""

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """Called after set-up, call and tear-down; with pytest-xdist, also in the controller."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    failed = report.outcome == "failed"
    if report.when == "call" or failed or (report.when == "setup" and report.outcome == "skipped"):
        result = {
            "test": report.nodeid,
            "outcome": "error" if failed and report.when != "call" else report.outcome,
            "text": report.longreprtext if failed else "",
        }
        with open(os.environ["GPUCNN_CHECK_RESULTS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
