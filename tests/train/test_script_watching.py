"""The flags of a script that watch a run: --patience, --tensorboard, --quiet."""

import sys
from pathlib import Path

import pytest
from small_script import my_script, same_bits, stop_at

from gpucnn import train


@pytest.fixture(autouse=True)
def _here(small_runs):
    """In a folder of its own, without curves."""


def test_patience_ends_a_run_early_and_a_resumed_run_at_the_same_epoch(capsys):
    main, _ = my_script()
    # With this rate the loss stays what it was.
    flags = ("--epochs", 9, "--lr", 0, "--schedule", "constant", "--patience", 2)
    assert main("--out", "whole", *flags) == 0
    out = capsys.readouterr().out
    assert "stopped after epoch 3: no improvement for 2 epochs\ntest accuracy " in out
    assert train.read_checkpoint("whole/last.safetensors").info["epoch"] == 3
    with stop_at(5):
        assert main("--out", "stopped", *flags) == 130
    assert main("--out", "stopped", "--resume") == 0
    assert same_bits("whole", "stopped")
    assert main("--out", "whole", "--resume", "--patience", 3) == 2
    assert "the run has --patience 2, the command line 3" in capsys.readouterr().err


def test_a_run_that_patience_has_ended_resumes_to_its_result(capsys):
    main, _ = my_script()
    flags = ("--epochs", 9, "--lr", 0, "--schedule", "constant", "--patience", 1)
    assert main("--out", "run", *flags) == 0
    first = capsys.readouterr().out
    assert main("--out", "run", "--resume") == 0
    again = capsys.readouterr().out
    assert "stopped after epoch 2" in again
    (one,), (other,) = (
        [line for line in text.splitlines() if line.startswith("test acc")]
        for text in (first, again)
    )
    assert one == other


def test_tensorboard_writes_event_files_of_the_run_and_of_its_resume():
    pytest.importorskip("tensorboardX", reason='pip install "gpucnn[tensorboard]"')
    main, _ = my_script()
    with stop_at(4):
        assert main("--out", "run", "--tensorboard", "--quiet") == 130
    assert main("--out", "run", "--resume", "--quiet") == 0  # which restores the flag
    files = sorted(Path("run/tensorboard").iterdir(), key=lambda path: path.name)
    assert len(files) == 2
    assert all(b"train_loss" in path.read_bytes() for path in files)


def test_tensorboard_without_its_package_is_one_line_before_training(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    main, _ = my_script()
    assert main("--out", "run", "--tensorboard") == 2
    err = capsys.readouterr().err
    assert err == ('error: TensorBoard needs tensorboardX: pip install "gpucnn[tensorboard]"\n')
    assert not Path("run/metrics.csv").exists()


def test_a_pipe_has_lines_of_progress_unless_quiet(capsys):
    main, _ = my_script()
    assert main("--out", "told") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("100 %  epoch 2/2  loss ")
    assert len(lines) == 6  # a line a step: there are fewer than ten
    assert main("--out", "quiet", "--quiet") == 0
    assert capsys.readouterr().err == ""
