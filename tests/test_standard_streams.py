"""Standard output and error that are closed, full or read by nobody."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_script import my_script, same_bits

from gpucnn.arguments import exit_status
from gpucnn.commands import main as gpucnn_command

needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.fixture(autouse=True)
def _here(small_runs):
    """In a folder of its own."""


def closed_pipe():
    """A stream whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_disk():
    return open("/dev/full", "w")


BROKEN = [
    pytest.param(closed_pipe, id="no reader"),
    pytest.param(full_disk, id="full", marks=needs_dev_full),
]


@pytest.fixture
def whole_run():
    assert my_script()[0]("--out", "whole", "--quiet") == 0


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_training_goes_on_without_a_standard_stream(name, broken, monkeypatch, capsys, whole_run):
    main, _ = my_script()
    with broken() as stream:
        monkeypatch.setattr(sys, name, stream)
        assert main("--out", "run") == 0
    warning = "warning: standard output cannot be written (No space left on device)"
    warned = name == "stdout" and broken is full_disk
    assert capsys.readouterr().err.count(warning) == warned
    assert same_bits("run", "whole")
    assert len(Path("run/metrics.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_training_goes_on_with_a_closed_standard_stream(name, monkeypatch, whole_run):
    monkeypatch.setattr(sys, name, None)  # as Python sets it after >&-
    assert my_script()[0]("--out", "run") == 0
    assert same_bits("run", "whole")


def test_an_error_is_still_status_2_if_it_cannot_be_printed(monkeypatch):
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert my_script()[0]("--data", "mispelt") == 2


@pytest.mark.parametrize("broken", BROKEN)
def test_a_script_may_print_to_a_broken_standard_error(broken, monkeypatch):
    with broken() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert exit_status(lambda: print("a warning", file=sys.stderr, flush=True)) == 0


def test_a_name_that_the_terminal_cannot_show_is_printed_as_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert exit_status(lambda: print("猫 cat")) == 0
    assert stream.buffer.getvalue() == b"\\u732b cat\n"


@needs_dev_full
def test_a_command_whose_output_is_lost_fails(monkeypatch, capsys):
    with full_disk() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert gpucnn_command(["kernels"]) == 2
    assert capsys.readouterr().err == (
        "error: standard output cannot be written (No space left on device)\n"
        "  free some space there, or redirect it elsewhere\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("redirections", "status", "lines"),
    [
        ("<&- >&- 2>&-", 0, 0),
        pytest.param("> /dev/full", 2, 2, marks=needs_dev_full),
    ],
)
def test_a_process_with_broken_streams_has_the_right_status(redirections, status, lines):
    line = f'PYTHONUNBUFFERED= "{sys.executable}" -m gpucnn --help {redirections}'
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=600)
    assert result.returncode == status
    assert len(result.stderr.splitlines()) == lines
    assert result.stderr.startswith("error: standard output" if lines else "")
