"""A user's training script built on train.script; tests/examples tests the examples."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_script import my_script, same_bits, stop_at

import gpucnn
from gpucnn import nn, optim, train
from gpucnn.errors import ArgumentError
from gpucnn.train.job import Job
from gpucnn.train.script import Script


@pytest.fixture(autouse=True)
def _here(small_runs):
    """In a folder of its own, without curves."""


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_users_script_resumes_to_the_bits_of_a_run_never_stopped(step, monkeypatch, capsys):
    main, _ = my_script()
    assert main("--out", "whole", "--seed", 4, "--quiet") == 0
    with stop_at(step):
        assert main("--out", "stopped", "--seed", 4, "--quiet") == 130
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


def test_the_result_names_the_best_checkpoint_if_the_folder_has_one(capsys):
    main, _ = my_script()
    assert main("--out", "run") == 0
    line = "classify your own images: gpucnn predict {}/best.safetensors IMAGE...\n"
    assert line.format("run") in capsys.readouterr().out
    assert main("--resume", "run/last.safetensors", "--out", "other") == 0
    assert "classify your own images" not in capsys.readouterr().out


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


@pytest.mark.parametrize("augment", ["--augment", "--no-augment"])
def test_the_memory_limit_is_checked_with_the_shape_of_a_batch_before_anything_is_written(
    augment, monkeypatch, capsys
):
    seen = []

    def refuse(model, optimizer, *sizes):
        seen.append((type(model), type(optimizer), *sizes))
        raise ArgumentError("--memory-limit: a batch of 4 would fit")

    monkeypatch.setattr("gpucnn.train.job.check_memory_limit", refuse)
    main, _ = my_script()
    flags = ["--memory-limit", "1.5K", "--optimizer", "adam", "--precision", "fp16", augment]
    flags += ["--micro-batches", "4"]
    assert main("--out", "run", *flags) == 2
    assert "error: --memory-limit: a batch of 4 would fit\n" in capsys.readouterr().err
    assert seen == [(nn.Sequential, optim.Adam, (12, 12, 3), 8, 1536, 2, "fp16", 4)]
    assert list(Path().iterdir()) == []


def test_a_run_within_the_memory_limit_has_the_bits_of_one_without():
    main, _ = my_script()
    assert main("--out", "whole", "--quiet") == 0
    assert main("--out", "run", "--quiet", "--memory-limit", "2G") == 0
    assert same_bits("run", "whole")


@pytest.mark.parametrize("choice", ["stop", "skip", "halve-lr"])
def test_on_nan_reaches_the_trainer_and_a_resumed_run_may_change_it(choice, monkeypatch):
    given = []
    init = train.Trainer.__init__

    def watched(self, *args, **options):
        given.append(options["on_nan"])
        init(self, *args, **options)

    monkeypatch.setattr(train.Trainer, "__init__", watched)
    main, _ = my_script()
    assert main("--out", "run", "--quiet") == 0
    assert main("--resume", "--out", "run", "--quiet", "--on-nan", choice) == 0
    assert given == ["stop", choice]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("settings", "epochs", "many"),
        ("settings", "epochs", 0),
        ("settings", "epochs", True),
        ("settings", "batch_size", 1.5),
        ("settings", "lr", "high"),
        ("settings", "lr", -1),
        ("settings", "schedule", "linear"),
        ("settings", "augment", "no"),
        ("settings", "exact", 1),
        ("settings", "optimizer", "rmsprop"),
        ("execution", "threads", "x"),
        ("execution", "data", 5),
        ("execution", "max_time", -3),
        ("execution", "on_nan", "x\x1b[2J"),
    ],
)
def test_a_setting_of_a_checkpoint_that_its_flag_cannot_have_is_refused(part, key, value, capsys):
    main, seen = my_script()
    assert main("--out", "run", "--quiet", "--epochs", "1") == 0
    path = Path("run/last.safetensors")
    checkpoint = train.read_checkpoint(path)
    checkpoint.info[part][key] = value
    train.write_checkpoint(path, checkpoint.tensors, checkpoint.info)
    assert main("--resume", "--out", "run") == 2
    flag = "--" + key.replace("_", "-")
    error = capsys.readouterr().err
    assert f"error: checkpoint {path}: the run has {flag} " in error
    assert "\x1b" not in error
    assert len(seen) == 1


def test_settings_that_no_flag_has_are_ignored():
    main, seen = my_script()
    assert main("--out", "run", "--quiet", "--epochs", "1") == 0
    path = Path("run/last.safetensors")
    checkpoint = train.read_checkpoint(path)
    checkpoint.info["execution"] |= {"out": "elsewhere", "from_a_later_version": 1}
    train.write_checkpoint(path, checkpoint.tensors, checkpoint.info)
    assert main("--resume", path, "--quiet") == 0
    assert "from_a_later_version" not in seen[1][0]
    assert not Path("elsewhere").exists()


def test_every_flag_has_its_documented_default():
    script = Script("my_script", "Train what I want.", epochs=2, batch_size=8, lr=0.02)
    assert script.defaults == {
        "epochs": 2,
        "batch_size": 8,
        "lr": None,  # 0.02 for SGD
        "weight_decay": 5e-4,
        "optimizer": "sgd",
        "schedule": "one-cycle",
        "augment": True,
        "limit": None,
        "seed": 0,
        "exact": False,
        "patience": None,
        "micro_batches": 1,
        "sync_bn": False,
        "device": "auto",
        "threads": None,
        "distributed": False,
        "grad_dtype": None,
        "precision": None,
        "graph": None,
        "on_nan": "stop",
        "memory_limit": None,
        "out": None,
        "save_every": 0,
        "checkpoint_every": 0,
        "keep": 2,
        "max_time": 0,
        "tensorboard": False,
        "quiet": False,
    }


def test_half_precision_on_the_cpu_is_said_to_be_slow(capsys):
    main, _ = my_script()
    for precision, said in (("fp16", True), ("tf32", False)):
        flags = ("--device", "cpu", "--precision", precision, "--epochs", "1", "--out", precision)
        assert main(*flags) == 0
        assert ("rounds to fp16 but computes in fp32" in capsys.readouterr().out) == said


def test_a_seed_that_a_resumed_run_could_not_have_is_refused_at_once(capsys):
    main, _ = my_script()
    with pytest.raises(SystemExit) as ended:
        main("--seed", 2**128)
    assert ended.value.code == 2
    assert f"--seed: expected at most {2**128 - 1}, got {2**128}" in capsys.readouterr().err


def test_a_run_with_the_largest_seed_resumes():
    main, _ = my_script()
    with stop_at(2):
        assert main("--out", "run", "--seed", 2**128 - 1, "--quiet") == 130
    assert main("--out", "run", "--resume", "--quiet") == 0


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("one-cycle", [1, 4 / 6.75, 1 / 6.75]),  # up to step 2.25 of 9, then down
        ("cosine", [0.5 + 0.5 * np.cos(np.pi * step / 9) for step in (2, 5, 8)]),
        ("step", [1, 0.1, 0.01]),
        ("constant", [1, 1, 1]),
    ],
)
def test_a_schedule_extends_over_all_steps_of_the_run(schedule, rates):
    main, _ = my_script()
    flags = ("--epochs", 3, "--lr", 0.02, "--schedule", schedule, "--quiet")
    assert main("--out", "run", *flags) == 0
    rows = csv.DictReader(Path("run/metrics.csv").read_text().splitlines())
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02 * rate for rate in rates])


def test_a_run_without_matplotlib_says_what_it_does_not_draw_unless_quiet(capsys):
    main, _ = my_script()
    assert main("--out", "told") == 0
    assert capsys.readouterr().out.count("no curves.png: ") == 1
    assert main("--out", "quiet", "--quiet") == 0
    assert "curves" not in capsys.readouterr().out


def test_a_run_without_class_names_prints_its_result(monkeypatch, capsys):
    job_train = Job.train

    def without_names(self, *args, classes, **options):
        return job_train(self, *args, **options)

    monkeypatch.setattr(Job, "train", without_names)
    assert my_script()[0]("--out", "run") == 0
    assert "\ntest accuracy " in capsys.readouterr().out


def test_only_the_flags_of_optimizer_and_schedule_can_be_left_out():
    with pytest.raises(ArgumentError, match="without may list --optimizer, --lr, "):
        Script("x", "X.", epochs=1, batch_size=1, lr=None, without=("--seed",))
