"""ProgressBar: one bar in a terminal and in a notebook, lines in a pipe."""

import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
from trainers import STEPS, build

from gpucnn import train
from gpucnn.device import Device
from gpucnn.errors import ArgumentError

HERE = os.path.dirname(os.path.dirname(__file__))


class Slow(train.Callback):
    def on_batch_end(self, trainer):
        time.sleep(0.11)  # a bar redraws ten times a second at most


def in_terminal(monkeypatch):
    """From now on, standard error is a terminal."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def images(text):
    """Where the bar was, each time that it was drawn."""
    return [int(n) for n in re.findall(r"(\d+)/96 ", text)]


def test_a_terminal_has_one_bar_from_the_first_image_to_the_last(monkeypatch, capsys):
    in_terminal(monkeypatch)
    trainer = build(callbacks=[Slow(), train.ProgressBar(), train.EpochLine()])
    trainer.fit(3)
    out, err = capsys.readouterr()
    assert [line[:9] for line in out.splitlines()] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert images(err) == sorted(images(err))
    assert {8, 88} <= set(images(err))
    for epoch in (1, 2, 3):
        assert f"epoch {epoch}/3" in err
    assert re.search(r"<00:0\d, .*img/s, loss \d\.\d{3}, accuracy \d+\.\d%", err)
    assert "\n" not in err
    assert err.endswith("\r")  # erased


def test_a_resumed_run_shows_where_it_is(monkeypatch, capsys, tmp_path):
    in_terminal(monkeypatch)
    build(callbacks=[train.Checkpoints(tmp_path)]).fit(2)
    trainer = build(callbacks=[Slow(), train.ProgressBar()])
    trainer.resume(tmp_path / "last.safetensors")
    trainer.fit(1)
    err = capsys.readouterr().err
    assert images(err)[0] == 64
    assert "epoch 3/3" in err
    assert "epoch 1/3" not in err


def test_a_pipe_has_a_line_at_every_tenth_of_the_run(capsys):
    build(callbacks=[train.ProgressBar()]).fit(10)
    err = capsys.readouterr().err
    assert "\r" not in err
    lines = err.splitlines()
    assert [int(line.partition("%")[0]) for line in lines] == list(range(10, 101, 10))
    pattern = r" *\d+ %  epoch \d+/10  loss \d\.\d{3}, accuracy \d+\.\d%  \d+:\d\d left"
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert "epoch 1/10 " in lines[0]
    assert "epoch 10/10 " in lines[-1]


def test_a_resumed_run_in_a_pipe_has_the_lines_of_the_rest(capsys, tmp_path):
    build(callbacks=[train.Checkpoints(tmp_path)]).fit(5)
    trainer = build(callbacks=[train.ProgressBar()])
    trainer.resume(tmp_path / "last.safetensors")
    trainer.fit(5)
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.partition("%")[0]) for line in lines] == [60, 70, 80, 90, 100]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_host_does_not_wait_for_the_numbers_shown(terminal, compiler, monkeypatch):
    if terminal:
        in_terminal(monkeypatch)
    counters = Device.parse("cudasim").xp.cuda.counters
    waits, shown = [], []
    monkeypatch.setattr(train.ProgressBar, "_show", lambda bar, *what: shown.append(what))

    class Count(train.Callback):
        def on_batch_end(self, trainer):
            waits.append(counters.host_syncs)

    found = []
    for callbacks in ([], [train.ProgressBar()]):
        waits.clear()
        build(device="cudasim", graph=True, callbacks=[*callbacks, Count()], test=False).fit(3)
        found.append([now - waits[0] for now in waits])
    assert found[0] == found[1]
    assert "loss" in shown[-1][2]


def test_the_last_line_has_the_loss_of_the_epoch(device, capsys):
    trainer = build(device=device, callbacks=[train.ProgressBar()], test=False)
    row = trainer.fit(2)[-1]
    text = f"loss {row['train_loss']:.3f}, accuracy {row['train_accuracy']:.1%}"
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"100 %  epoch 2/2  {text}")
    assert trainer.step == 2 * STEPS


def test_a_closed_standard_error_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert len(build(callbacks=[train.ProgressBar()]).fit(1)) == 1


def test_refresh_is_at_least_one_step():
    with pytest.raises(ArgumentError, match="refresh must be at least 1, got 0"):
        train.ProgressBar(refresh=0)


def test_a_notebook_without_ipywidgets_has_a_bar_of_text_and_no_warning():
    program = """
        import sys, types
        sys.path.insert(0, sys.argv[1])
        kernel = types.SimpleNamespace(config={"IPKernelApp": {}})
        sys.modules["IPython"] = types.ModuleType("IPython")
        sys.modules["IPython"].get_ipython = lambda: kernel
        sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
        sys.modules["ipywidgets"] = None
        from trainers import build
        from gpucnn import train
        build(callbacks=[train.ProgressBar()]).fit(2)
    """
    command = [sys.executable, "-W", "default", "-c", textwrap.dedent(program), HERE]
    done = subprocess.run(command, capture_output=True, timeout=600)
    err = done.stderr.decode()
    assert done.returncode == 0, err
    assert "epoch 1/2:" in err
    assert "arning" not in err
    assert "\n" not in err
