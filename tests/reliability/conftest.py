"""Every test in this folder is marked `reliability`; the run ends with a table of the faults."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_runs import NEW, Runs
from reliability.tally import Tally

_tally = Tally()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.reliability)
            if sys.platform != "linux":
                item.add_marker(pytest.mark.skip("the faults are provoked as Linux provides them"))


@pytest.fixture(scope="session")
def tally() -> Tally:
    """Counts the faults: `with tally("a full disk"): ...`."""
    return _tally


@pytest.fixture(scope="session")
def runs() -> Iterator[Runs]:
    server = Runs()
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run that saved after every step."""
    folder = tmp_path_factory.mktemp("whole")
    assert runs.run(folder, *NEW, "--save-every", 1) == 0
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _tally.rows:
        terminalreporter.section("faults provoked")
        terminalreporter.write_line(_tally.table())
