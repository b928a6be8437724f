"""A user's training script built on train.script; tests/examples tests the examples."""

import csv
import errno
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import data, nn, train
from gpucnn.train.script import EXECUTION, Script

NAMES = tuple("0123456789")


def my_script(name="my_script", classes=NAMES):
    """(main, [what each run saw]) of a script that trains a small network on noise."""
    seen = []

    def command_line():
        script = Script(name, "Train what I want.", epochs=2, batch_size=8, lr=0.02)
        script.add("--width", "filters", 16, type=int)
        script.add_data()
        script.add("--colour", "of nothing", "red", group=EXECUTION)
        return script

    def run(job):
        seen.append((vars(job.settings), gpucnn.get_conv_algorithm(), job.device))
        s = job.settings
        rng = np.random.default_rng(0)
        pixels = rng.integers(256, size=(24, 12, 12, 3)).astype(np.uint8)
        noise = data.Dataset(pixels, np.arange(24) % 10, classes, "noise")
        s.model = "mine"
        model = nn.Sequential(
            nn.Conv2d(3, s.width, 3), nn.ReLU(), nn.Conv2d(s.width, s.width, 3, padding="same"),
            nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(25 * s.width, 10),
        ).to(job.device)  # fmt: skip
        normalize = data.Normalize(*data.channel_statistics(noise.images))
        change = data.Compose([data.RandomHorizontalFlip(), normalize])
        loader = data.DataLoader(
            noise, s.batch_size, shuffle=True, transform=change, seed=s.seed, device=job.device
        )
        test_loader = data.DataLoader(noise, 24, transform=normalize, device=job.device)
        job.train(model, loader, test_loader, classes=classes, normalize=normalize)

    def main(*argv):
        return command_line().main(run, ["--device", "cpu", *map(str, argv)])

    return main, seen


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _without_curves(monkeypatch, request):
    """Drawing would take most of the time."""
    if "curves" not in request.node.name:
        monkeypatch.setitem(sys.modules, "matplotlib", None)


def tensors(folder):
    return train.read_checkpoint(Path(folder) / "last.safetensors").tensors


def same_bits(one, other):
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)


def stop_at(step, monkeypatch):
    """A context in which SIGINT arrives after `step` steps."""
    train_step = train.Trainer.train_step

    def interrupted(self, images, labels):
        train_step(self, images, labels)
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    patch = monkeypatch.context()
    patch.__enter__().setattr(train.Trainer, "train_step", interrupted)
    return patch


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_users_script_resumes_to_the_bits_of_a_run_never_stopped(step, monkeypatch, capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--seed", 4, "--quiet") == 0
    patch = stop_at(step, monkeypatch)
    assert main("--out", "stopped", "--seed", 4, "--quiet") == 130
    patch.__exit__(None, None, None)
    stopped = Path("stopped/last.safetensors")
    err = capsys.readouterr().err
    assert f"after step {step}; resume with --resume {stopped}" in err

    steps = []
    train_step = train.Trainer.train_step

    def counted(self, images, labels):
        steps.append(self.step)
        train_step(self, images, labels)

    monkeypatch.setattr(train.Trainer, "train_step", counted)
    assert main("--resume", stopped, "--quiet") == 0
    assert steps == list(range(step, 6))
    assert same_bits("whole", "stopped")
    rows = [
        [row[:6] for row in csv.reader(Path(run, "metrics.csv").read_text().splitlines())]
        for run in ("whole", "stopped")
    ]
    assert rows[0] == rows[1]


def test_a_run_stopped_before_the_first_save_names_no_file(monkeypatch, capsys):
    main, _ = my_script()

    def stopped_twice(self, images, labels):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "train_step", stopped_twice)
    assert main("--out", "out") == 130
    assert "stopped in epoch 1, after step 0; nothing was saved" in capsys.readouterr().err


def test_exact_is_restored_by_resume_and_reset_after_the_run(capsys):
    main, seen = my_script()
    assert main("--out", "exact", "--exact") == 0
    assert gpucnn.get_conv_algorithm() == "auto"
    assert main("--out", "fast") == 0
    assert main("--resume", "--out", "exact") == 0
    assert [algorithm for _, algorithm, _ in seen] == ["exact", "auto", "exact"]
    assert not same_bits("exact", "fast")
    assert json.loads(Path("exact/config.json").read_text())["exact"] is True
    assert main("--resume", "--out", "fast", "--exact") == 2
    assert "the run has --exact False, the command line True" in capsys.readouterr().err


def test_resume_keeps_every_flag_and_lets_only_those_of_execution_change(capsys):
    main, seen = my_script()
    Path("here").mkdir()
    Path("there").mkdir()
    flags = "--data here --colour blue --width 8 --lr 0.5 --optimizer adam --no-augment --seed 2"
    assert main(*flags.split(), "--out", "run", "--save-every", 2, "--threads", 1) == 0
    assert main("--resume", "--out", "run", "--colour", "green", "--data", "there") == 0
    first, second = (settings for settings, _, _ in seen)
    assert second["data"] == "there"
    assert second["colour"] == "green"
    for key in ("width", "lr", "optimizer", "augment", "seed", "save_every", "threads"):
        assert second[key] == first[key], key
    for flag, value in (("--width", 16), ("--lr", 0.25), ("--optimizer", "sgd"), ("--seed", 3)):
        assert main("--resume", "--out", "run", flag, value) == 2
        assert f"the run has {flag} {first[flag[2:]]}, the command line {value}" in (
            capsys.readouterr().err
        )


def test_a_resumed_run_finds_its_data_from_another_folder(monkeypatch, tmp_path):
    main, seen = my_script()
    Path("here").mkdir()
    assert main("--data", "here", "--out", "run") == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main("--resume", "../run/last.safetensors") == 0
    assert seen[1][0]["data"] == str(tmp_path / "here")


def test_a_second_run_into_a_folder_is_refused_before_it_does_anything(capsys):
    main, seen = my_script()
    assert main("--out", "run") == 0
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    assert main("--out", "run") == 2
    assert "run already holds a run" in capsys.readouterr().err
    assert main("--out", "other") == 0
    assert main("--resume", "other/last.safetensors", "--out", "run") == 2
    assert "run already holds a run" in capsys.readouterr().err
    assert len(seen) == 2
    assert {path: path.read_bytes() for path in Path("run").iterdir()} == before


def test_runs_without_out_are_kept_apart_and_resume_finds_the_newest_of_its_script(capsys):
    main, _ = my_script()
    theirs, _ = my_script("their_script")
    assert main("--resume") == 2
    assert "runs/ has no run of my_script.py" in capsys.readouterr().err
    assert [main(), main(), main(), theirs()] == [0] * 4
    files = sorted(Path("runs").glob("*/last.safetensors"))
    assert len(files) == 4
    writers = {path: train.read_checkpoint(path).info["script"] for path in files}
    mine = [path for path in files if writers[path] == "my_script"]
    (their,) = set(files) - set(mine)
    for age, path in enumerate((their, mine[1], mine[0], mine[2])):  # the newest first
        os.utime(path, (2e9 - age, 2e9 - age))
    capsys.readouterr()
    assert main("--resume") == 0
    assert f"out: {mine[1].parent}\n" in capsys.readouterr().out
    assert main("--resume", their) == 2
    message = capsys.readouterr().err
    assert f"{their} was not written by my_script.py" in message
    assert "it is a run of their_script.py" in message


def test_a_run_is_not_resumed_with_data_of_other_classes(capsys):
    assert my_script()[0]("--out", "run") == 0
    main, _ = my_script(classes=tuple("abcdefghij"))
    assert main("--resume", "--out", "run") == 2
    assert "the run has the classes 0, 1, 2" in capsys.readouterr().err


def test_a_missing_data_folder_is_named_and_not_created(capsys):
    main, seen = my_script()
    assert main("--data", "mispelt") == 2
    assert "--data: mispelt does not exist\n  correct the name" in capsys.readouterr().err
    assert seen == []
    assert list(Path().iterdir()) == []


def test_a_diverging_run_prints_only_its_message(capfd):
    main, _ = my_script()
    assert main("--out", "run", "--lr", "1e30", "--schedule", "constant", "--quiet") == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert "learning rate" in err
    assert len(err.splitlines()) <= 3  # without NumPy's overflow warnings


# --- files that cannot be written ---


def full_disk(name, out):
    """Make writes of the file `name` fail as on a full disk, by a link to /dev/full."""
    Path(out).mkdir()
    Path(out, f".{name}.part").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "curves.png"])
def test_a_full_disk_is_a_one_line_error_with_the_file_and_the_remedy(name, capsys):
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="draws")
    main, _ = my_script()
    full_disk(name, "run")
    assert main("--out", "run", "--quiet") == 2
    err = capsys.readouterr().err
    file = Path("run", name)
    way_out = "free some space there"
    if name != "config.json":  # the epoch is saved before anything else is written
        way_out += f", then resume with --resume {Path('run/last.safetensors')}"
        assert train.read_checkpoint("run/last.safetensors").info["epoch"] == 1
    assert err == f"error: {file} cannot be written (No space left on device): {way_out}\n"
    assert main("--resume", "--out", "run", "--quiet") == (2 if name == "config.json" else 0)
    assert name == "config.json" or file.exists()


@pytest.mark.parametrize("name", ["metrics.csv", "curves.png"])
def test_a_resume_writes_what_the_last_epoch_could_not(name):
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="draws")
    main, _ = my_script()
    assert main("--out", "run", "--epochs", "1", "--quiet") == 0
    Path("run", name).unlink()
    assert main("--resume", "--out", "run", "--quiet") == 0
    assert Path("run", name).stat().st_size > 0


@pytest.mark.parametrize("name", ["config.json", "metrics.csv", "best.safetensors", "curves.png"])
def test_a_folder_in_place_of_a_file_is_named(name, capsys):
    if name == "curves.png":
        pytest.importorskip("matplotlib", reason="draws")
    main, _ = my_script()
    Path("run", name).mkdir(parents=True)
    assert main("--out", "run", "--quiet") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {Path('run', name)} cannot be written (Is a directory): ")
    assert "move the folder of that name away" in err
    assert len(err.splitlines()) == 1
    assert not [path for path in Path("run").iterdir() if path.name.startswith(".")]


def test_a_read_only_folder_is_named(capsys, monkeypatch):
    main, _ = my_script()
    assert main("--out", "run", "--quiet", "--epochs", "2") == 0

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root ignores file modes
    assert main("--resume", "--out", "run", "--quiet") == 2
    err = capsys.readouterr().err
    assert f"{Path('run/config.json')} cannot be written (Permission denied)" in err
    assert "make that folder writable, or choose another" in err


def test_a_checkpoint_that_does_not_fit_on_the_disk_keeps_the_previous_one(monkeypatch, capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--quiet") == 0
    fsync = os.fsync

    def full(handle):
        if Path("full/last.safetensors").exists() and Path("full/.last.safetensors.part").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main("--out", "full", "--quiet") == 2
    path = Path("full/last.safetensors")
    err = capsys.readouterr().err
    assert "safetensors cannot be written (No space left on device): free some space" in err
    assert f"resume with --resume {path}" in err
    assert len(err.splitlines()) == 1
    assert train.read_checkpoint(path).info["epoch"] == 1
    assert main("--resume", path, "--quiet") == 0
    assert same_bits("whole", "full")
