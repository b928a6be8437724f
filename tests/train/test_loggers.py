"""JSONLines and Logger: what they write, over stops, kills and failures."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from run_lines import TIMES, StopAt, lines
from trainers import STEPS, at, build

from gpucnn import train
from gpucnn.device import Device
from gpucnn.errors import ArgumentError


class Losses(train.Callback):
    """The loss of each step, for comparison; reading it waits for a GPU."""

    def __init__(self):
        self.found = []

    def on_batch_end(self, trainer):
        self.found.append(float(trainer.metrics.last_loss.reshape(()).item()))


# --- JSON lines ---


def test_a_line_for_each_epoch_has_the_row_of_the_history(tmp_path):
    path = tmp_path / "run.jsonl"
    trainer = build(callbacks=[train.JSONLines(path)])
    trainer.fit(2)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records == trainer.history


@pytest.mark.parametrize("graph", [False, True])
def test_a_line_for_a_step_has_its_loss_also_in_a_graph(device, graph, tmp_path):
    if device == "cpu" and graph:
        pytest.skip("a graph needs a GPU")
    path = tmp_path / "run.jsonl"
    losses = Losses()
    trainer = build(
        device=device, graph=graph or None, callbacks=[train.JSONLines(path, 3), losses]
    )
    trainer.fit(3)
    steps = [record for record in lines(path) if "step" in record]
    assert [record["step"] for record in steps] == [3, 6, 9, 12]
    assert [record["epoch"] for record in steps] == [1, 2, 3, 3]
    assert [record["loss"] for record in steps] == losses.found[2::3]
    assert len(set(losses.found)) == 3 * STEPS
    assert not graph or trainer._guard.graph._captured.replays == 3 * STEPS - 2


def test_a_logger_does_not_wait_for_a_gpu_and_leaves_the_steps_in_a_graph(compiler, tmp_path):
    counters = Device.parse("cudasim").xp.cuda.counters
    waits = []

    class Count(train.Callback):
        def on_batch_end(self, trainer):
            waits.append(counters.host_syncs)

    counts = []
    for logs in ((), (train.JSONLines(tmp_path / "x", 1), train.GradientNorm(by_layer=True))):
        waits.clear()
        trainer = build(device="cudasim", graph=True, callbacks=[*logs, Count()], test=False)
        trainer.fit(3)
        counts.append([now - waits[0] for now in waits])
        assert trainer._guard.graph._captured.replays == 3 * STEPS - 2
    assert counts[0] == counts[1]


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_run_continues_the_lines_as_if_it_had_never_stopped(stop, tmp_path):
    def fit(name, *callbacks, resume=False, epochs=3):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        logs = train.GradientNorm(), train.JSONLines(folder / "run.jsonl", every=1)
        trainer = build(callbacks=[train.Checkpoints(folder), *logs, *callbacks])
        if resume:
            trainer.resume(folder / "last.safetensors")
        trainer.fit(epochs - trainer.epoch)

    fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", StopAt(stop))
    fit("stopped", resume=True)
    assert lines(tmp_path / "stopped/run.jsonl") == lines(tmp_path / "whole/run.jsonl")
    assert len(lines(tmp_path / "whole/run.jsonl")) == 3 * STEPS + 3


def test_lines_after_the_checkpoint_half_lines_and_doubles_are_removed_on_resume(tmp_path):
    path = tmp_path / "run.jsonl"
    build(callbacks=[train.Checkpoints(tmp_path), train.JSONLines(path, 2)]).fit(2)
    whole = path.read_text()
    steps, first, *_ = whole.splitlines()[0], whole.splitlines()[2]
    later = '{"step": 9, "epoch": 3, "loss": 1.0}\n{"epoch": 3, "train_loss": 1.0}\n'
    path.write_text(whole + later + f"{first}\nno JSON\n[1]\n" + steps[: len(steps) // 2])
    trainer = build(callbacks=[train.JSONLines(path, 2)])
    trainer.resume(tmp_path / "last.safetensors")
    trainer.fit(0)
    assert path.read_text() == whole


def test_an_epoch_whose_line_is_missing_gets_it_on_resume_and_a_new_run_replaces_the_file(tmp_path):
    path = tmp_path / "run.jsonl"
    build(callbacks=[train.Checkpoints(tmp_path), train.JSONLines(path)]).fit(2)
    whole = lines(path)
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    trainer = build(callbacks=[train.JSONLines(path)])
    trainer.resume(tmp_path / "last.safetensors")
    trainer.fit(0)
    assert lines(path) == whole
    build(callbacks=[train.JSONLines(path)]).fit(1)
    assert lines(path) == whole[:1]


def test_a_killed_run_leaves_whole_lines_and_resumes_to_those_of_a_run_never_killed(tmp_path):
    program = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        from trainers import build
        from gpucnn import train

        class Kill(train.Callback):
            def on_batch_end(self, trainer):
                if trainer.step == int(sys.argv[3]):
                    os.kill(os.getpid(), signal.SIGKILL)

        out = Path(sys.argv[2])
        logs = train.Checkpoints(out, every=2), train.JSONLines(out / "run.jsonl", every=1)
        trainer = build(callbacks=[*logs, Kill()])
        if (out / "last.safetensors").exists():
            trainer.resume(out / "last.safetensors")
        trainer.fit(2 - trainer.epoch)
    """
    here = os.path.dirname(os.path.dirname(__file__))

    def fit(name, kill):
        (tmp_path / name).mkdir(exist_ok=True)
        arguments = [here, str(tmp_path / name), str(kill)]
        command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
        return subprocess.run(command, timeout=600).returncode

    assert fit("killed", 3) == -signal.SIGKILL
    assert [record["step"] for record in lines(tmp_path / "killed/run.jsonl")] == [1, 2, 3]
    assert fit("killed", 7) == -signal.SIGKILL  # from step 2, and over the end of the epoch
    assert fit("killed", 0) == fit("whole", 0) == 0
    assert lines(tmp_path / "killed/run.jsonl") == lines(tmp_path / "whole/run.jsonl")


def test_a_number_that_is_not_finite_is_null(tmp_path):
    class Odd(train.Callback):
        def values(self, trainer):
            return {"odd": float("nan"), "even": np.float32(2)}

    path = tmp_path / "run.jsonl"
    build(callbacks=[Odd(), train.JSONLines(path, 1)]).fit(1)
    steps = lines(path)[:STEPS]
    assert [(record["odd"], record["even"]) for record in steps] == [(None, 2)] * STEPS


def test_a_full_disk_is_one_warning_and_epochs_are_written_once_there_is_room(
    tmp_path, monkeypatch, capsys
):
    path = tmp_path / "run.jsonl"
    write, room = os.write, [False]

    def limited(number, text):
        if room[0]:
            return write(number, text)
        write(number, text[:5])
        raise OSError(28, os.strerror(28))

    class Room(train.Callback):
        def on_epoch_start(self, trainer):
            room[0] = trainer.epoch == 2
            if trainer.epoch:
                assert path.read_bytes() == b""

    trainer = build(callbacks=[train.JSONLines(path), Room()])
    with monkeypatch.context() as patch:
        patch.setattr("gpucnn.train.loggers.os.write", limited)
        trainer.fit(3)
    assert lines(path) == [
        {k: v for k, v in row.items() if k not in TIMES} for row in trainer.history
    ]
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {path} cannot be written (No space left on device): free some")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("every", [-1, 1.5, True])
def test_every_is_a_number_of_steps(every):
    with pytest.raises(ArgumentError, match="JSONLines: every must be a number of steps"):
        train.JSONLines("x", every)


def test_a_logger_of_ones_own_gets_steps_and_epochs_and_is_closed_after_an_error(tmp_path):
    seen = []

    class Mine(train.Logger):
        def write(self, step, epoch, values):
            seen.append((step, epoch, "loss" in values, "train_loss" in values))

        def close(self):
            seen.append("closed")

    with pytest.raises(ArithmeticError):
        build(lr=at(5, 1e20), callbacks=[Mine(every=2)]).fit(2)
    assert seen == [
        (2, 1, True, False), (4, 1, True, False), (4, 1, False, True),
        (6, 2, True, False), "closed",
    ]  # fmt: skip
