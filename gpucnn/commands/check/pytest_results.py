"""A plugin of pytest's that writes each test's result to a file at once, as a JSON line.

    GPUCNN_CHECK_RESULTS=FILE pytest -p gpucnn.commands.check.pytest_results

pytest itself shows why a test failed when all have run, and a part of a check may end before.
"""

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """Called for a test's set-up, call and tear-down; with pytest-xdist, in the controller too."""
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
