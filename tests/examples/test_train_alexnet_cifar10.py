import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scripts import assert_refused, load_script

import gpucnn
from gpucnn import data, train
from gpucnn.device import choose_device

SCRIPT = Path(__file__).parents[2] / "examples" / "train_alexnet_cifar10.py"
AUTO = os.environ.get("GPUCNN_DEVICE")  # the value outside these tests
SMALL = "--dataset synthetic --limit 48 --batch-size 16 --epochs 2 --lr 0.002 --seed 3".split()


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture(autouse=True, scope="module")
def _auto_is_the_cpu():
    """Even on a machine with a GPU: the tests compare bits, and different numbers of threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUCNN_DEVICE", "cpu")
        yield


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "no data"))


@pytest.fixture(scope="module")
def whole_run(script, tmp_path_factory):
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("whole")
    assert script.main([*SMALL, "--out", str(out), "--quiet"]) == 0
    return out


def tensors(folder):
    return train.read_checkpoint(folder / "last.safetensors").tensors


def assert_same_bits(one, other):
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name
    rows = [
        list(csv.reader((folder / "metrics.csv").read_text().splitlines()))
        for folder in (one, other)
    ]
    assert [row[:6] for row in rows[0]] == [row[:6] for row in rows[1]]


def test_a_run_leaves_everything_in_its_folder(script, whole_run):
    names = {path.name for path in whole_run.iterdir()}
    assert {"config.json", "metrics.csv", "last.safetensors", "best.safetensors"} <= names
    config = json.loads((whole_run / "config.json").read_text())
    assert config["dataset"] == "synthetic"
    assert (config["batch_size"], config["epochs"], config["lr"]) == (16, 2, 0.002)
    assert config["device"] == "cpu"
    rows = list(csv.DictReader((whole_run / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    info = train.read_checkpoint(whole_run / "best.safetensors").info
    assert info["model"] == {"name": "alexnet_cifar10", "config": {}}
    assert len(info["classes"]) == 10


@pytest.mark.slow
def test_the_same_command_gives_the_same_bits_on_any_number_of_threads(script, whole_run, tmp_path):
    out = tmp_path / "again"
    assert script.main([*SMALL, "--out", str(out), "--quiet", "--threads", "1"]) == 0
    assert_same_bits(whole_run, out)


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    from gpucnn import get_num_threads, set_num_threads

    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4])
def test_ctrl_c_then_resume_ends_with_the_bits_of_a_run_never_stopped(
    step, script, whole_run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "stopped"
    train_step = train.Trainer.train_step

    def interrupted(self, images, labels):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        train_step(self, images, labels)

    with monkeypatch.context() as patch:
        patch.setattr(train.Trainer, "train_step", interrupted)
        assert script.main([*SMALL, "--out", str(out), "--quiet"]) == 130
    assert f"after step {step + 1}; resume with --resume" in capsys.readouterr().err
    assert script.main(["--resume", "--out", str(out), "--quiet"]) == 0
    assert_same_bits(whole_run, out)


@pytest.mark.slow
def test_kill_9_then_resume_ends_with_the_bits_of_a_run_never_stopped(script, whole_run, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), *SMALL, "--out", str(out), "--save-every", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (out / "last.safetensors").exists():
        assert process.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert train.read_checkpoint(out / "last.safetensors").info["step"] < 6
    assert script.main(["--resume", str(out / "last.safetensors"), "--quiet"]) == 0
    assert_same_bits(whole_run, out)


def test_resuming_a_finished_run_prints_its_result_again(script, whole_run, capsys):
    assert script.main(["--resume", "--out", str(whole_run), "--quiet"]) == 0
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_without_out_runs_are_kept_apart_and_resume_finds_the_newest(script, capsys):
    flags = (
        "--dataset synthetic --limit 16 --batch-size 16 --epochs 1 --lr 0.001 --device cpu".split()
    )
    assert script.main(flags) == 0
    assert script.main(flags) == 0
    runs = sorted(Path("runs").iterdir())
    assert len(runs) == 2
    os.utime(runs[0] / "last.safetensors", (2e9, 2e9))
    capsys.readouterr()
    assert script.main(["--resume"]) == 0
    out = capsys.readouterr().out
    assert f"out: {runs[0]}" in out
    for line in (
        "device: cpu",
        "data: Dataset(synthetic train",
        "test accuracy",
        "  disc ",
        "wall time",
    ):
        assert line in out, line


def test_without_network_and_data_it_warns_that_it_trains_on_synthetic_images(
    script, monkeypatch, capsys, tmp_path
):
    reason = "CIFAR-10 could not be downloaded"
    monkeypatch.setattr(data, "find_cifar10", lambda root, quiet: (None, reason))
    flags = "--limit 16 --batch-size 16 --epochs 1 --lr 0.001 --device cpu --quiet --out".split()
    assert script.main([*flags, str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert reason in err
    assert "SYNTHETIC" in err
    assert "cifar-10-python.tar.gz" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("adam", "cosine"), ("adamw", "step"), ("adam", "constant")]
)
def test_every_optimizer_and_schedule_trains(optimizer, schedule, script, tmp_path):
    flags = "--dataset synthetic --limit 16 --batch-size 8 --epochs 1 --quiet --no-augment".split()
    chosen = ["--optimizer", optimizer, "--schedule", schedule, "--model", "alexnet_cifar10_bn"]
    assert script.main([*flags, *chosen, "--out", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["optimizer"], config["schedule"], config["lr"]) == (optimizer, schedule, 0.001)
    assert config["augment"] is False


def test_help_explains_every_flag_with_its_default(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    defaults = script.command_line().defaults
    for key in defaults:
        assert f"--{key.replace('_', '-')}" in text
    assert text.count("default") >= len(defaults)
    assert "None" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 0", "expected at least 1, got 0"),
        ("--epochs many", "invalid positive_int value"),
        ("--batch-size -3", "expected at least 1, got -3"),
        ("--lr nan", "expected 0 or more, got nan"),
        ("--lr -0.1", "expected 0 or more"),
        ("--weight-decay inf", "expected 0 or more"),
        ("--optimizer rmsprop", "invalid choice"),
        ("--dataset imagenet", "invalid choice"),
        ("--schedule linear", "invalid choice"),
        ("--seed -1", "expected 0 or more"),
        ("--limit 0", "expected at least 1"),
        ("--no-such-flag", "unrecognized arguments"),
        ("--device tpu", "device 'tpu' is unknown"),
        ("--device cuda", "pip install"),
        ("--device cuda:x", "expected auto, cpu"),
        ("--resume none.safetensors", "no such file"),
        ("--resume", "runs/ has no run"),
        ("--out a_file", "cannot be created"),
        ("--data mispelt", "--data: mispelt does not exist"),
        ("--limit 32 --batch-size 16 --lr 1e9 --device cpu --out run", "learning rate"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_text_and_exit_status_2(
    flags, message, script, capsys, tmp_path
):
    if flags == "--device cuda":
        _skip_where_cuda_works()
    (tmp_path / "a_file").write_text("")
    flags = flags.split() if "dataset" in flags else [*flags.split(), "--dataset", "synthetic"]
    err = assert_refused(script.main, flags, message, capsys)
    assert "Warning" not in err
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mispelt").exists()


def _skip_where_cuda_works():
    from gpucnn.device import Device
    from gpucnn.errors import DeviceError

    try:
        Device.parse("cuda")
    except DeviceError:
        return
    pytest.skip("a CUDA device works here")


def test_a_missing_folder_in_the_environment_is_named_and_not_created(script, capsys, tmp_path):
    flags = "--limit 16 --batch-size 16 --epochs 1 --lr 0.001 --device cpu --quiet --out".split()
    assert script.main([*flags, str(tmp_path / "out")]) == 0
    err = capsys.readouterr().err
    assert f"GPUCNN_DATA: {tmp_path / 'no data'} does not exist" in err
    assert "SYNTHETIC" in err
    assert all(line.startswith("***") for line in err.splitlines())
    assert not (tmp_path / "no data").exists()
    assert script.main(["--dataset", "cifar10"]) == 2
    assert f"GPUCNN_DATA: {tmp_path / 'no data'} does not exist" in capsys.readouterr().err


# Runs the script and limits file sizes to 100 kB once an epoch has been saved
CHILD = """
import resource, runpy, sys
from pathlib import Path
from gpucnn import train
sys.argv = sys.argv[1:]
epoch_ends = train.EpochLine.on_epoch_end

def limit(self, trainer):
    epoch_ends(self, trainer)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

train.EpochLine.on_epoch_end = limit
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_a_one_line_error_and_keeps_the_previous_one(
    script, tmp_path
):
    pytest.importorskip("resource", reason="sets a limit on file sizes")
    out = tmp_path / "out"
    flags = [*SMALL, "--device", "cpu", "--model", "cuda_convnet_18pct"]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(SCRIPT), *flags, "--out", str(out)],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    line = line[line.index("error: ") :]
    assert line.startswith(f"error: {out}/")
    assert "safetensors cannot be written (File too large): raise the limit" in line
    assert f"then resume with --resume {out / 'last.safetensors'}, which continues after" in line
    assert "Traceback" not in done.stderr
    assert not list(out.glob(".*"))
    whole = tmp_path / "whole"
    assert script.main([*flags, "--quiet", "--out", str(whole)]) == 0
    assert script.main(["--resume", "--quiet", "--out", str(out)]) == 0
    assert_same_bits(whole, out)


def test_a_folder_with_a_run_is_not_overwritten(script, whole_run, capsys):
    before = (whole_run / "last.safetensors").read_bytes()
    assert script.main([*SMALL, "--out", str(whole_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (whole_run / "last.safetensors").read_bytes() == before


def test_resuming_with_other_settings_is_refused(script, whole_run, capsys):
    assert script.main(["--resume", "--out", str(whole_run), "--batch-size", "32"]) == 2
    assert "the run has --batch-size 16, the command line 32" in capsys.readouterr().err


def test_an_empty_data_folder_with_dataset_cifar10_is_an_error(script, capsys, monkeypatch):
    monkeypatch.setattr(data, "find_cifar10", lambda root, quiet: (None, "not to be had"))
    assert script.main(["--dataset", "cifar10"]) == 2
    assert "--dataset cifar10: not to be had" in capsys.readouterr().err


def test_without_device_it_trains_on_the_auto_device_and_prints_it(
    script, monkeypatch, capsys, tmp_path
):
    monkeypatch.delenv("GPUCNN_DEVICE")
    if AUTO is not None:
        monkeypatch.setenv("GPUCNN_DEVICE", AUTO)
    device, reason = choose_device()
    out = tmp_path / "run"
    flags = "--dataset synthetic --model cuda_convnet_18pct --limit 8 --batch-size 8 --epochs 1"
    assert script.main([*flags.split(), "--out", str(out)]) == 0
    assert f"device: {device} ({reason})" in capsys.readouterr().out
    assert json.loads((out / "config.json").read_text())["device"] == str(device)


@pytest.mark.slow  # a minute of simulated kernels
def test_a_gpu_has_the_cpus_loss_to_1e_3_at_every_step(gpu, script, tmp_path, monkeypatch):
    """The first step shows that weights, order, augmentation and dropout have the same bits.

    Later losses differ only by rounding errors, which grow with every step.  "exact" rounds as the
    kernels do; Winograd's algorithm, which "auto" chooses, has about ten times the error.
    """
    losses = {
        (device, algorithm): losses_of(script, monkeypatch, tmp_path, device, algorithm)
        for device, algorithm in ((gpu, "auto"), ("cpu", "exact"), ("cpu", "auto"))
    }
    on_gpu = losses.pop((gpu, "auto"))
    assert len(on_gpu) == 4
    for on_cpu in losses.values():
        assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-6)
        assert on_gpu == pytest.approx(on_cpu, rel=1e-3)


def losses_of(script, monkeypatch, folder, device, algorithm):
    """The loss of each step."""
    totals = [0.0]

    class Watch(train.Callback):
        def on_batch_end(self, trainer):
            totals.append(trainer.metrics.loss * trainer.metrics.count)

    flags = f"--device {device} --limit 512 --epochs 1 --seed 1 --dataset synthetic --quiet --out"
    monkeypatch.setattr("gpucnn.train.job.make_callbacks", lambda *_: [Watch()])
    before = gpucnn.get_conv_algorithm()
    gpucnn.set_conv_algorithm(algorithm)
    try:
        assert script.main([*flags.split(), str(folder / f"{device} {algorithm}")]) == 0
    finally:
        gpucnn.set_conv_algorithm(before)
    return (np.diff(totals) / 128).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ("--limit 64 --batch-size 16 --epochs 1", 0.01 * 4 / 250),
        ("--limit 64 --batch-size 16 --epochs 1 --optimizer adam", 0.001),
        ("--limit 64 --batch-size 16 --epochs 1 --lr 0.3", 0.3),
    ],
)
def test_a_short_run_of_sgd_has_a_smaller_rate_unless_one_is_given(script, tmp_path, flags, rate):
    flags = f"{flags} --dataset synthetic --model cuda_convnet_18pct --device cpu --quiet --out"
    assert script.main([*flags.split(), str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["lr"] == pytest.approx(rate)
