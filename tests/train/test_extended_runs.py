"""Runs that go on past their end: fit again, and --resume --epochs.  What they keep on the disk."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from run_lines import StopAt
from scripts import assert_refused
from small_script import my_script, same_bits, stop_at
from trainers import STEPS, build

from gpucnn import optim, train
from gpucnn.optim import lr_scheduler
from gpucnn.train.script import Script


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def rates(folder):
    rows = csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines())
    return [float(row["lr"]) for row in rows]


# --- fit ---


def trained(trainer):
    """What `trainer` ends with: its state and its history without the times."""
    rows = [
        {k: v for k, v in row.items() if "second" not in k and k != "step_ms"}
        for row in trainer.history
    ]
    arrays = trainer.model.state_dict() | trainer.optimizer.state_dict()
    return rows, {name: np.array(x) for name, x in arrays.items() if name != "param_groups"}


def assert_same(one, other):
    (rows, arrays), (other_rows, others) = trained(one), trained(other)
    assert rows == other_rows
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(array, others[name]) for name, array in arrays.items())


def six_epochs(scheduled, *callbacks):
    trainer = build(callbacks=callbacks)
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.02, momentum=0.9)
    trainer.scheduler = None
    if scheduled:
        trainer.scheduler = lr_scheduler.TriangularLR(trainer.optimizer, 6 * STEPS)
    return trainer


@pytest.mark.parametrize("scheduled", [False, True])
def test_fit_trains_so_many_more_epochs_also_over_a_resume(scheduled, tmp_path):
    whole, twice = six_epochs(scheduled), six_epochs(scheduled)
    assert len(whole.fit(6)) == 6
    assert len(twice.fit(3)) == 3
    twice.save(tmp_path / "three.safetensors")
    assert twice.fit(0) is twice.history
    assert len(twice.fit(3)) == 6
    assert_same(twice, whole)
    resumed = six_epochs(scheduled)
    resumed.resume(tmp_path / "three.safetensors")
    assert len(resumed.fit(3)) == 6
    assert_same(resumed, whole)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("stop", [STEPS + 1, 2 * STEPS - 1, 2 * STEPS])
def test_the_epoch_under_way_counts_as_the_first(scheduled, stop, tmp_path):
    whole = six_epochs(scheduled)
    whole.fit(4)
    stopped = six_epochs(scheduled, StopAt(stop), train.Checkpoints(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(3)
    assert (stopped.epoch, stopped.step) == (1, stop)
    resumed = six_epochs(scheduled)
    resumed.resume(tmp_path / "last.safetensors")
    for trainer in (stopped, resumed):
        assert len(trainer.fit(0)) == 1  # not even the rest of the epoch
        assert trainer.step == stop
        assert len(trainer.fit(1)) == 2
        assert len(trainer.fit(2)) == 4
        assert_same(trainer, whole)


def test_callbacks_get_the_number_of_the_last_epoch(capsys):
    last = []

    class Look(train.Callback):
        def on_start(self, trainer, epochs):
            last.append(epochs)

    trainer = build(callbacks=[Look(), train.ProgressBar(), train.EpochLine()])
    for epochs in (3, 0, 3):
        trainer.fit(epochs)
    assert last == [3, 3, 6]
    out, err = capsys.readouterr()
    starts = [line.partition("  ")[0] for line in out.splitlines()]
    assert starts == [f"epoch {i}/{3 if i < 4 else 6}" for i in range(1, 7)]
    shown = dict.fromkeys(line.split("  ")[1] for line in err.splitlines())  # of the progress
    assert list(shown) == starts


# --- --resume --epochs ---


@pytest.mark.parametrize(
    ("schedule", "second"),
    [
        ("one-cycle", 1 / 4.5),  # the last of 6 steps: (6 - 5) / (6 - 1.5)
        ("cosine", 0.5 + 0.5 * np.cos(np.pi * 5 / 6)),
        ("step", 0.01),  # divided by 10 after 2 and 4 of 6 steps; at first after 1 and 2 of 3
        ("constant", 1.0),
    ],
)
def test_a_finished_run_trains_on_with_the_schedule_of_all_its_epochs(schedule, second, capsys):
    main, seen = my_script()
    flags = ("--schedule", schedule, "--lr", 0.02, "--out", "run")
    assert main(*flags, "--epochs", 1) == 0
    first = rates("run")
    capsys.readouterr()
    assert main("--resume", "--out", "run", "--epochs", 2) == 0
    out = capsys.readouterr().out
    assert "resumed after epoch 1, step 3; 2 epochs in all instead of 1" in out
    assert (f"the {schedule} schedule of 2 epochs" in out) == (schedule != "constant")
    assert rates("run") == [*first, pytest.approx(0.02 * second)]
    assert seen[1][0]["epochs"] == 2
    assert train.read_checkpoint("run/last.safetensors").info["settings"]["epochs"] == 2


def test_a_run_extended_before_its_first_epoch_ends_has_the_bits_of_the_longer_run():
    main, _ = my_script()
    with stop_at(1):  # before the schedules of 2 and of 3 epochs part: both start at 0
        assert main("--out", "run", "--schedule", "constant", "--quiet") == 130
    assert main("--resume", "--out", "run", "--epochs", 3, "--quiet") == 0
    assert main("--out", "whole", "--schedule", "constant", "--epochs", 3, "--quiet") == 0
    assert same_bits("run", "whole")


def test_an_extended_run_that_is_stopped_resumes_to_the_same_bits():
    main, _ = my_script()
    for out in ("whole", "stopped"):
        assert main("--out", out, "--epochs", 1, "--quiet") == 0
    assert main("--resume", "--out", "whole", "--epochs", 3, "--quiet") == 0
    with stop_at(5):
        assert main("--resume", "--out", "stopped", "--epochs", 3, "--quiet") == 130
    assert main("--resume", "--out", "stopped", "--quiet") == 0
    assert same_bits("whole", "stopped")
    assert rates("whole") == rates("stopped")


def test_a_run_may_also_be_shortened_to_an_epoch_that_is_not_over():
    main, _ = my_script()
    with stop_at(1):
        assert main("--out", "run", "--epochs", 5, "--quiet") == 130
    assert main("--resume", "--out", "run", "--epochs", 1, "--quiet") == 0
    assert len(rates("run")) == 1


def test_epochs_that_are_over_already_are_refused(capsys):
    main, seen = my_script()
    assert main("--out", "run", "--quiet") == 0
    assert_refused(
        lambda flags: main(*flags),
        ["--resume", "--out", "run", "--epochs", "1"],
        "the run has completed 2 epochs, the command line has --epochs 1\n"
        "  --epochs counts those before too: choose 3 or more",
        capsys,
    )
    assert len(seen) == 1


def test_a_finished_run_says_how_to_train_on(capsys):
    main, _ = my_script()
    assert main("--out", "run", "--quiet") == 0
    before = Path("run/last.safetensors").read_bytes()
    assert main("--resume", "--out", "run", "--epochs", 2) == 0
    out, err = capsys.readouterr()
    assert ": all 2 epochs are completed; --epochs with a larger number trains on" in out
    assert "nothing to do" not in err
    assert Path("run/last.safetensors").read_bytes() == before


def test_halved_rates_stay_halved_under_the_new_schedule(tmp_path):
    main, _ = my_script()
    flags = ("--schedule", "cosine", "--lr", 0.02, "--out", "run", "--on-nan", "halve-lr")
    assert main(*flags, "--epochs", 1, "--quiet") == 0
    path = Path("run/last.safetensors")
    checkpoint = train.read_checkpoint(path)
    checkpoint.info["on_nan"]["halvings"] = 1
    train.write_checkpoint(path, checkpoint.tensors, checkpoint.info)
    assert main("--resume", "--out", "run", "--epochs", 2, "--quiet") == 0
    assert rates("run")[1] == pytest.approx(0.01 * (0.5 + 0.5 * np.cos(np.pi * 5 / 6)))


# --- files ---


def score(monkeypatch, *values):
    """Let epoch i have the score values[i - 1]."""
    monkeypatch.setattr("gpucnn.train.checkpoints._score", lambda row: values[row["epoch"] - 1])


def epoch_of(name):
    return train.read_checkpoint(name).info["epoch"]


@pytest.mark.parametrize("keep", [1, 2])
def test_an_epoch_writes_one_file_and_the_best_one_is_kept(monkeypatch, keep):
    main, _ = my_script()
    written, save = [], train.Trainer.save
    monkeypatch.setattr(
        train.Trainer,
        "save",
        lambda self, path: (written.append(Path(path).name), save(self, path)),
    )
    score(monkeypatch, 1, 3, 2, 2)
    assert main("--out", "run", "--epochs", 2, "--keep", keep, "--quiet") == 0
    assert written == ["best.safetensors"] * 2
    assert os.path.samefile("run/best.safetensors", "run/last.safetensors")
    assert main("--resume", "--out", "run", "--epochs", 4, "--quiet") == 0
    assert written[2:] == ["last.safetensors"] * 2
    assert (epoch_of("run/best.safetensors"), epoch_of("run/last.safetensors")) == (2, 4)
    files = {path.stat().st_ino for path in Path("run").glob("*.safetensors")}
    assert len(files) == keep + 1
    assert not list(Path("run").glob(".*"))


def test_where_links_are_impossible_both_files_are_written(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    main, _ = my_script()
    score(monkeypatch, 1, 2)
    assert main("--out", "run", "--quiet") == 0
    assert not os.path.samefile("run/best.safetensors", "run/last.safetensors")
    assert (epoch_of("run/best.safetensors"), epoch_of("run/last.safetensors")) == (2, 2)
    assert epoch_of("run/last-1.safetensors") == 1


def test_a_link_to_another_disk_stays_a_link(monkeypatch):
    main, _ = my_script()
    score(monkeypatch, 1, 2, 3)
    assert main("--out", "run", "--epochs", 1, "--keep", 1, "--quiet") == 0
    Path("disk").mkdir()
    Path("run/last.safetensors").rename("disk/moved.safetensors")
    Path("run/last.safetensors").symlink_to("../disk/moved.safetensors")
    assert main("--resume", "--out", "run", "--epochs", 3, "--quiet") == 0
    assert Path("run/last.safetensors").is_symlink()
    assert epoch_of("disk/moved.safetensors") == 3


# --- the language of the command line ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('remove it, or pass on_error="skip"', "remove it, or pass --on-error skip"),
        ("left out (on_nan='halve-lr')", "left out (--on-nan halve-lr)"),
        ("graph=True captures it", "--graph captures it"),
        ("because of graph=False", "because of --no-graph"),
        ("classes=True is no flag", "classes=True is no flag"),
        ("--resume graph=True/last.safetensors", "--resume graph=True/last.safetensors"),
        ("--resume runs/graph=True", "--resume runs/graph=True"),
        ("--resume lr=0.1", "--resume lr=0.1"),
    ],
)
def test_an_error_names_the_flag_instead_of_the_python_argument(text, shown, capsys):
    script = Script("mine", "Fail.", epochs=1, batch_size=1, lr=0.1)
    script.add("--on-error", "what to do", "raise", choices=("raise", "skip"))

    def run(job):
        raise train.trainer.ArgumentError(text)

    assert script.main(run, ["--device", "cpu", "--quiet"]) == 2
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_grad_dtype_without_distributed_is_refused_but_not_in_a_resumed_run(capsys):
    main, seen = my_script()
    assert_refused(
        lambda flags: main(*flags),
        ["--grad-dtype", "bf16", "--out", "run"],
        "--grad-dtype needs --distributed: one process sends no gradients",
        capsys,
    )
    assert not seen
    assert not Path("run").exists()
    assert main("--out", "run", "--epochs", 1, "--quiet") == 0
    path = Path("run/last.safetensors")  # as of a run on several processes
    checkpoint = train.read_checkpoint(path)
    checkpoint.info["execution"]["grad_dtype"] = "bf16"
    train.write_checkpoint(path, checkpoint.tensors, checkpoint.info)
    assert main("--resume", "--out", "run", "--epochs", 2, "--quiet") == 0


def test_a_graph_on_the_cpu_is_refused_with_the_flags(capsys):
    main, _ = my_script()
    assert main("--graph", "--out", "run") == 2
    err = capsys.readouterr().err
    assert "--graph: steps are replayed on a GPU only" in err
    assert "use --no-graph, or choose --device cuda" in err
