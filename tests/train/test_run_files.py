"""The files of a run: logs that fail, checkpoints that are kept, damaged or in use."""

import csv
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from small_script import NAMES, my_script, same_bits, stop_at

from gpucnn import train
from gpucnn.errors import ArgumentError, OutputError
from gpucnn.train.lock import FolderLock

LAST = Path("run/last.safetensors")
BEFORE = Path("run/last-1.safetensors")
LOGS = ("config.json", "metrics.csv", "curves.png")


@pytest.fixture(autouse=True)
def _here(small_runs):
    """In a folder of its own."""


def step_of(path):
    return train.read_checkpoint(path).info["step"]


def during_step(number, monkeypatch, action):
    """Call `action` in that step, counted from 1."""
    train_step = train.Trainer.train_step

    def with_action(self, images, labels):
        if self.step == number - 1:
            action()
        train_step(self, images, labels)

    monkeypatch.setattr(train.Trainer, "train_step", with_action)


# --- logs ---


@pytest.mark.parametrize("name", LOGS)
def test_a_log_that_cannot_be_written_is_one_warning_and_the_run_ends_with_its_result(name, capsys):
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="needs matplotlib")
    main, _ = my_script()
    Path("run", name).mkdir(parents=True)
    assert main("--out", "run", "--quiet") == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out
    file = Path("run", name)
    way_out = "move the folder of that name away; training continues"
    assert err.startswith(f"warning: {file} cannot be written (Is a directory): {way_out}")
    assert len(err.splitlines()) == 1
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]
    assert main("--out", "whole", "--quiet") == 0
    assert same_bits("run", "whole")


@pytest.mark.parametrize("name", ["config.json", "metrics.csv"])
def test_a_log_is_complete_again_once_it_can_be_written(name, monkeypatch):
    main, _ = my_script()
    Path("run", name).mkdir(parents=True)
    during_step(4, monkeypatch, Path("run", name).rmdir)  # the first of the second epoch
    assert main("--out", "run", "--quiet") == 0
    text = Path("run", name).read_text()
    assert name == "config.json" or [line[:2] for line in text.splitlines()] == ["ep", "1,", "2,"]


@pytest.mark.parametrize("name", LOGS)
def test_a_resume_writes_the_logs_that_are_missing_curves_too(name):
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="needs matplotlib")
    main, _ = my_script()
    assert main("--out", "run", "--epochs", "1", "--quiet") == 0
    Path("run", name).unlink()
    assert main("--resume", "--out", "run", "--quiet") == 0
    assert Path("run", name).stat().st_size > 0


class Fails(train.Callback):
    def on_epoch_end(self, trainer):
        raise RuntimeError("a mistake of the user")


class FailsAsALog(Fails):
    required = False


def trainer_with(*callbacks, monkeypatch):
    """The Trainer of a run of `my_script` that has these callbacks only."""
    made = []
    init = train.Trainer.__init__

    def with_callbacks(self, *args, **options):
        init(self, *args, **{**options, "callbacks": callbacks})
        made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "__init__", with_callbacks)
        patch.setattr(train.Trainer, "fit", lambda *_: [])
        assert my_script()[0]("--out", "other") == 0
    return made[0]


def test_checkpoints_are_saved_before_any_other_callback_runs(monkeypatch):
    Path("run").mkdir()
    trainer = trainer_with(Fails(), train.Checkpoints("run"), monkeypatch=monkeypatch)
    with pytest.raises(RuntimeError, match="a mistake of the user"):
        trainer.fit(1)
    assert train.read_checkpoint(LAST).info["epoch"] == 1


def test_a_failed_log_is_reported_once_in_each_fit(monkeypatch, capsys):
    trainer = trainer_with(FailsAsALog(), monkeypatch=monkeypatch)
    capsys.readouterr()
    assert len(trainer.fit(2)) == 2
    err = capsys.readouterr().err
    assert err.startswith("warning: FailsAsALog failed (RuntimeError('a mistake of the user'));")
    assert len(err.splitlines()) == 1
    trainer.fit(1)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_text_in_metrics_never_becomes_a_formula_of_a_spreadsheet(monkeypatch):
    trainer = trainer_with(train.MetricsFile("metrics.csv"), monkeypatch=monkeypatch)
    texts = ['=HYPERLINK("x")', "+1", "-1", "@x", "\t=1", "\r=1"]
    trainer.history = [
        dict.fromkeys(("epoch", "train_loss", "train_accuracy", "lr"), text) for text in texts
    ]
    trainer.history.append({"epoch": 2, "train_loss": -0.5})
    for callback in trainer.callbacks:
        callback.on_start(trainer, 2)
    with open("metrics.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[0] for row in rows] == [*map(repr, texts), "2"]
    assert rows[-1][1] == "-0.5"


def test_class_names_cannot_send_commands_to_the_terminal(capsys):
    main, _ = my_script(classes=("\x1b[2J", *NAMES[1:]))
    assert main("--out", "run") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "  \\x1b[2J " in out


# --- checkpoints ---


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_names_the_one_before(
    monkeypatch, capsys
):
    main, _ = my_script()

    def take_the_name():
        Path("run/best.safetensors").unlink()
        Path("run/best.safetensors").mkdir()

    with monkeypatch.context() as patch:
        during_step(5, patch, take_the_name)
        patch.setattr("gpucnn.train.checkpoints._score", lambda row: row["epoch"])
        assert main("--out", "run", "--quiet", "--save-every", "1") == 2
    assert capsys.readouterr().err == (
        "error: run/best.safetensors cannot be written (Is a directory): move the folder of that "
        f"name away, then resume with --resume {LAST}\n"
    )
    assert step_of(LAST) == 6
    Path("run/best.safetensors").rmdir()
    assert main("--resume", "--out", "run", "--quiet") == 0
    assert main("--out", "whole", "--quiet") == 0
    assert same_bits("run", "whole")


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_checkpoints_are_kept(keep):
    main, _ = my_script()
    assert main("--out", "run", "--quiet", "--save-every", "1", "--keep", keep) == 0
    infos = [
        train.read_checkpoint(path).info
        for path in (LAST, BEFORE, Path("run/last-2.safetensors"), Path("run/last-3.safetensors"))
        if path.exists()
    ]
    saved = [(2, 6), (1, 6), (1, 5), (1, 4)]  # an epoch's last step is saved before its end too
    assert [(info["epoch"], info["step"]) for info in infos] == saved[:keep]
    names = {"best.safetensors", "metrics.csv", "config.json", "run.lock"}
    assert len({path.name for path in Path("run").iterdir()} - names) == keep


def test_fewer_are_kept_if_a_resumed_run_says_so():
    main, _ = my_script()
    with stop_at(5):
        assert main("--out", "run", "--quiet", "--save-every", "1", "--keep", "4") == 130
    assert len(list(Path("run").glob("last*"))) == 4
    assert main("--resume", "--out", "run", "--quiet", "--keep", "2") == 0
    assert sorted(path.name for path in Path("run").glob("last*")) == [BEFORE.name, LAST.name]


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("form", ["--resume --out run", f"--resume {LAST}", "--resume"])
@pytest.mark.parametrize("how", [damage, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(form, how, capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--quiet") == 0
    out = Path("run") if form != "--resume" else Path("runs/1")
    assert main("--out", out, "--quiet", "--save-every", "4") == 0
    last, before = out / LAST.name, out / BEFORE.name
    assert step_of(before) == 4
    how(last)
    capsys.readouterr()
    assert main(*form.split(), "--quiet") == 0
    err = capsys.readouterr().err
    assert f"warning: checkpoint {last}: " in err
    assert f"warning: using {before} instead, which continues after epoch 1, step 4" in err
    assert same_bits("whole", out)
    assert step_of(before) == 4  # the damaged one was not kept in its place


def test_if_all_checkpoints_are_damaged_the_error_names_them(capsys):
    main, _ = my_script()
    assert main("--out", "run", "--quiet") == 0
    damage(LAST)
    damage(BEFORE)
    assert main("--resume", "--out", "run") == 2
    err = capsys.readouterr().err
    assert f"error: checkpoint {LAST}: " in err
    assert f"checkpoint {BEFORE}: " in err


def test_a_run_that_diverges_rotates_no_good_checkpoint_away():
    main, _ = my_script()
    assert main("--out", "run", "--quiet", "--save-every", "1", "--epochs", "3") == 0
    flags = ("--lr", "1e30", "--schedule", "constant", "--quiet", "--save-every", "1")
    assert main("--out", "huge", *flags) == 2
    for path in (*Path("run").glob("*.safetensors"), *Path("huge").glob("*.safetensors")):
        for name, value in train.read_checkpoint(path).tensors.items():
            assert np.isfinite(value).all(), (path, name)


def test_a_diverging_step_keeps_both_checkpoints_as_they_were(monkeypatch):
    Path("run").mkdir()
    checkpoints = train.Checkpoints("run", every=1)
    trainer = trainer_with(checkpoints, monkeypatch=monkeypatch)
    trainer.fit(1)
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    trainer.model[0].weight.data[...] = np.nan
    for _ in range(3):
        with pytest.raises(ArithmeticError, match="not written"):
            checkpoints._save(trainer)
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_resume_skips_runs_that_cannot_be_read_and_says_so(capsys):
    main, _ = my_script()
    assert main("--out", "runs/mine", "--quiet") == 0
    for name in ("damaged", "dangling"):
        Path("runs", name).mkdir()
    Path("runs/damaged/last.safetensors").write_bytes(b"no checkpoint")
    Path("runs/dangling/last.safetensors").symlink_to("nothing")
    for age, name in enumerate(("damaged", "mine")):
        os.utime(f"runs/{name}/last.safetensors", (2e9 - age, 2e9 - age))
    assert main("--resume") == 0
    out, err = capsys.readouterr()
    assert f"out: {Path('runs/mine')}\n" in out
    assert "warning: runs/damaged is skipped: checkpoint runs/damaged/last.safetensors" in err


@pytest.mark.parametrize("name", ["best", "last-1", "last-7"])
def test_a_folder_with_any_checkpoint_is_not_overwritten(name, capsys):
    main, seen = my_script()
    Path("run").mkdir()
    Path("run", f"{name}.safetensors").write_bytes(b"of another run")
    assert main("--out", "run") == 2
    assert "run already holds a run" in capsys.readouterr().err
    assert seen == []


def test_a_link_to_a_checkpoint_that_is_away_is_not_overwritten(capsys):
    Path("run").mkdir()
    LAST.symlink_to("/unmounted/last.safetensors")
    assert my_script()[0]("--out", "run") == 2
    assert "run already holds a run" in capsys.readouterr().err


# --- two runs ---


def test_a_second_process_in_a_folder_is_refused_with_the_number_of_the_first(capsys):
    main, _ = my_script()
    with stop_at(2):
        assert main("--out", "run", "--quiet") == 130
    before = LAST.read_bytes()
    lock = FolderLock(Path("run"))
    for flags in (("--resume", "--out", "run"), ("--resume", LAST)):
        assert main(*flags) == 2
        assert f"--out: run is in use by process {os.getpid()}\n" in capsys.readouterr().err
    assert LAST.read_bytes() == before
    lock.release()
    assert main("--resume", "--out", "run", "--quiet") == 0


def test_two_new_runs_never_share_a_folder(capsys):
    Path("run").mkdir()
    lock = FolderLock(Path("run"))
    assert my_script()[0]("--out", "run") == 2
    assert "run is in use by process" in capsys.readouterr().err
    assert [path.name for path in Path("run").iterdir()] == ["run.lock"]
    lock.release()


def test_the_lock_is_released_by_a_run_that_fails(capsys):
    main, _ = my_script()
    assert main("--out", "run", "--quiet") == 0
    other, _ = my_script(classes=tuple("abcdefghij"))
    assert other("--resume", "--out", "run", "--quiet") == 2
    assert main("--resume", "--out", "run", "--quiet") == 0


def test_a_lock_that_cannot_be_written_is_named(capsys):
    Path("run/run.lock").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"run\.lock cannot be written \(Is a directory\)"):
        FolderLock(Path("run"))
    assert my_script()[0]("--out", "run") == 2
    assert "move the folder of that name away" in capsys.readouterr().err


def test_a_lock_never_writes_through_a_link():
    Path("precious").write_text("precious")
    Path("run").mkdir()
    Path("run/run.lock").symlink_to(Path("precious").absolute())
    with pytest.raises(OutputError, match="cannot be written"):
        FolderLock(Path("run"))
    assert Path("precious").read_text() == "precious"


def test_a_file_system_without_locks_does_not_keep_a_run_from_training(monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="Windows locks nothing")

    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert my_script()[0]("--out", "run", "--quiet") == 0
    assert step_of(LAST) == 6


@pytest.mark.parametrize("argument", [{"every": -1}, {"keep": 0}, {"seconds": -1.0}])
def test_checkpoints_that_make_no_sense_are_refused(argument):
    with pytest.raises(ArgumentError, match=next(iter(argument))):
        train.Checkpoints("run", **argument)
