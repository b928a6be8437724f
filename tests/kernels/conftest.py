"""Fixtures of the kernels' tests on the simulated device, and the table of seeded faults."""

import pytest
from seeded_faults import TABLE

from gpucnn.ops.conv2d import cuda as conv2d_cuda


@pytest.fixture
def large_tiles(tiles_for_all: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the 128 x 128 tiles, which are otherwise chosen only for many blocks."""
    monkeypatch.setattr(conv2d_cuda, "_tile", lambda rows, columns, products: (128, 128))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE.rows:
        terminalreporter.section("seeded faults")
        terminalreporter.write_line(TABLE.text())
