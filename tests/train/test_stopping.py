"""Runs that a signal or a time limit stops, and saves by the clock."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_script import my_script, same_bits, stop_at

from gpucnn import train
from gpucnn.arguments import Stopped
from gpucnn.train.signals import stop_signals

LAST = Path("run/last.safetensors")
SIGNALS = [
    (getattr(signal, name), status)
    for name, status in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129))
    if hasattr(signal, name)
]


@pytest.fixture(autouse=True)
def _here(small_runs):
    """In a folder of its own."""


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def sending_in_save(monkeypatch, number, at=1):
    """Send `number` in the `at`-th save of each run from now on."""
    save = train.Trainer.save
    saves = []

    def interrupted(self, path):
        saves.append(path)
        if len(saves) == at:
            send(number)
        save(self, path)

    monkeypatch.setattr(train.Trainer, "save", interrupted)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_saves_and_ends_with_its_own_status(number, status, capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--quiet") == 0
    with stop_at(4, number):
        assert main("--out", "run", "--quiet") == status
    message = f"stopped in epoch 2, after step 4; resume with --resume {LAST}\n"
    assert capsys.readouterr().err == "\n" + message
    assert main("--resume", LAST, "--quiet") == 0
    assert same_bits("whole", "run")


@pytest.mark.parametrize(("number", "status"), SIGNALS[1:])
def test_more_signals_of_a_shutdown_do_not_break_the_save(number, status, monkeypatch):
    main, _ = my_script()
    sending_in_save(monkeypatch, signal.SIGTERM, at=2)  # that of epoch 1, then this one
    with stop_at(4, number):
        assert main("--out", "run", "--quiet") == status
    assert train.read_checkpoint(LAST).info["step"] == 4


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as request:
            send(signal.SIGHUP)
        assert request.status is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_during_the_save_of_ctrl_c_says_that_nothing_was_saved(monkeypatch, capsys):
    main, _ = my_script()
    sending_in_save(monkeypatch, signal.SIGINT)
    with stop_at(2):
        assert main("--out", "run", "--quiet") == 130
    message = "\nstopped in epoch 1, after step 2; nothing was saved\n"
    assert capsys.readouterr().err == message
    assert [path.name for path in Path("run").glob("*.safetensors")] == []


def test_ctrl_c_during_a_save_says_from_where_the_run_continues(monkeypatch, capsys):
    main, _ = my_script()
    with monkeypatch.context() as patch:
        sending_in_save(patch, signal.SIGINT, at=2)
        with stop_at(5):
            assert main("--out", "run", "--quiet") == 130
    assert capsys.readouterr().err == (
        f"\nstopped in epoch 2, after step 5; resume with --resume {LAST}, which continues after "
        "epoch 1, step 3\n"
    )
    assert main("--resume", LAST, "--quiet") == 0
    assert main("--out", "whole", "--quiet") == 0
    assert same_bits("whole", "run")


def test_ctrl_c_while_the_loader_ends_its_threads_is_not_lost(monkeypatch, capsys):
    shutdown = ThreadPoolExecutor.shutdown

    def interrupted(self, *args, **kwargs):
        shutdown(self, *args, **kwargs)
        if LAST.exists():  # the first signal has been handled
            send(signal.SIGINT)

    main, _ = my_script()
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", interrupted)
    with stop_at(2, signal.SIGTERM):
        assert main("--out", "run", "--quiet") == 130
    message = f"\nstopped in epoch 1, after step 2; resume with --resume {LAST}\n"
    assert capsys.readouterr().err == message


def test_only_ctrl_c_after_a_signal_stops_at_once():
    with stop_signals() as request:
        send(signal.SIGTERM, signal.SIGTERM)
        assert request.status == 143
        with pytest.raises(Stopped) as stop:
            send(signal.SIGINT)
    assert stop.value.status == 130


def test_training_in_another_thread_leaves_the_handlers_alone():
    before = [signal.getsignal(number) for number, _ in SIGNALS]
    during = []

    def run():
        with stop_signals() as request:
            during.append([signal.getsignal(number) for number, _ in SIGNALS])
            assert request.status is None

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == [before]
    assert [signal.getsignal(number) for number, _ in SIGNALS] == before


def test_a_signal_during_the_evaluation_saves_the_epoch_once(monkeypatch):
    evaluate = train.evaluate

    def interrupted(*arguments):
        send(signal.SIGINT)
        return evaluate(*arguments)

    monkeypatch.setattr("gpucnn.train.ranks.evaluate", interrupted)
    assert my_script()[0]("--out", "run", "--quiet") == 130
    info = train.read_checkpoint(LAST).info
    assert (info["epoch"], info["step"]) == (1, 3)
    assert not LAST.with_name("last-1.safetensors").exists()  # it would be the same again


# --- the clock ---


def test_a_run_stopped_by_its_time_limit_ends_with_status_0_and_resumes_to_the_same_bits(capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--quiet") == 0
    assert main("--out", "run", "--quiet", "--max-time", "0.001s") == 0
    assert capsys.readouterr().err == (
        f"\nstopped in epoch 1, after step 1; resume with --resume {LAST}\n"
    )
    assert main("--resume", "--out", "run", "--quiet") == 0  # with the same limit: one more step
    assert train.read_checkpoint(LAST).info["step"] == 2
    assert main("--resume", "--out", "run", "--quiet", "--max-time", "0") == 0
    assert same_bits("whole", "run")


def test_a_generous_time_limit_stops_nothing(capsys):
    main, _ = my_script()
    assert main("--out", "run", "--quiet", "--max-time", "2h") == 0
    assert capsys.readouterr().err == ""
    assert train.read_checkpoint(LAST).info["epoch"] == 2


class Clock:
    """A clock of steps of 10 seconds, in place of a module's `time`."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("gpucnn.train.checkpoints.time", self)
        train_step = train.Trainer.train_step

        def ten_seconds(trainer, images, labels):
            train_step(trainer, images, labels)
            self.now += 10

        monkeypatch.setattr(train.Trainer, "train_step", ten_seconds)

    def monotonic(self):
        return self.now


@pytest.mark.parametrize(
    ("flags", "saved"),
    [
        ("--checkpoint-every 10s", [1, 2, 3, 3, 4, 5, 6, 6]),
        ("--checkpoint-every 0.5", [3, 3, 6, 6]),  # minutes
        ("--checkpoint-every 40s", [3, 6]),  # an epoch's save restarts the clock
        ("--checkpoint-every 20s --save-every 2", [2, 3, 4, 6, 6]),
    ],
)
def test_checkpoints_are_saved_some_time_after_the_last_save(flags, saved, monkeypatch):
    Clock(monkeypatch)
    steps = []
    save = train.Checkpoints._save

    def counted(self, trainer, best=False):
        save(self, trainer, best)
        steps.append(trainer.step)

    monkeypatch.setattr(train.Checkpoints, "_save", counted)
    main, _ = my_script()
    assert main("--out", "run", "--quiet", *flags.split()) == 0
    assert steps == saved


@pytest.mark.parametrize("flag", ["--max-time", "--checkpoint-every"])
@pytest.mark.parametrize("text", ["-1", "soon", "1h30", "nan", ""])
def test_a_time_that_is_none_is_refused(flag, text, capsys):
    main, _ = my_script()
    with pytest.raises(SystemExit):
        main(f"{flag}={text}")
    assert f"argument {flag}: expected minutes, or a time such as 90s" in capsys.readouterr().err
