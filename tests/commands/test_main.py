"""The command line: `gpucnn predict`, mistakes, interruption, a closed pipe."""

import subprocess
import sys

import numpy as np
import pytest
from scripts import assert_refused

import gpucnn
from gpucnn import data, models
from gpucnn.commands import main


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.safetensors"
    classes = [f"digit {i}" for i in range(10)]
    model = models.lenet5(generator=np.random.default_rng(4))
    gpucnn.save(path, model, "lenet5", None, classes, data.Normalize((0.1,), (0.3,)))
    return path


@pytest.fixture
def image(tmp_path):
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    pixels = np.random.default_rng(3).integers(256, size=(28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_predict_prints_five_bars_for_each_image(checkpoint, image, capsys):
    assert main(["predict", str(checkpoint), str(image), str(image)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == lines[6] == str(image)
    assert all(line.startswith("  digit ") and "%" in line for line in lines[1:6])
    assert lines[1:6] == lines[7:]
    assert err == ""


def test_predict_takes_the_number_of_classes_and_their_names(checkpoint, image, tmp_path, capsys):
    (tmp_path / "names").write_text("".join(f"ziffer-{i}\n" for i in range(10)))
    flags = ["--top", "3", "--classes", str(tmp_path / "names")]
    assert main(["predict", *flags, str(checkpoint), str(image)]) == 0
    assert capsys.readouterr().out.count("  ziffer-") == 3


def test_predict_continues_after_a_bad_image_and_exits_with_status_2(checkpoint, image, capsys):
    assert main(["predict", str(checkpoint), "none.png", str(image)]) == 2
    out, err = capsys.readouterr()
    assert "error: none.png: there is no such file" in err
    assert out.startswith(str(image))


def test_predict_says_when_the_normalisation_is_missing(image, tmp_path, capsys):
    path = tmp_path / "plain.safetensors"
    gpucnn.save(path, models.lenet5(), "lenet5")
    assert main(["predict", str(path), str(image)]) == 0
    assert r"pixels are scaled to [0, 1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict none.safetensors a.png", "there is no such file"),
        ("predict CHECKPOINT a.png --top 0", "expected at least 1, got 0"),
        ("predict CHECKPOINT a.png --classes none.txt", "--classes: none.txt cannot be read"),
        ("predict CHECKPOINT a.png --device tpu", "device 'tpu' is unknown"),
        ("predict CHECKPOINT", "expected image files after the checkpoint"),
        ("convert none.pth out.safetensors", "there is no such file"),
        ("convert CHECKPOINT out.pth", "holds lenet5"),
        ("frobnicate", "invalid choice"),
        ("", "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(arguments, message, checkpoint, capsys):
    words = [str(checkpoint) if word == "CHECKPOINT" else word for word in arguments.split()]
    assert_refused(main, words, message, capsys)


def test_ctrl_c_exits_with_status_130(checkpoint, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpucnn.commands.predict.Classifier", interrupted)
    assert main(["predict", str(checkpoint), "a.png"]) == 130


def test_the_package_runs_as_a_command(tmp_path):
    command = [sys.executable, "-m", "gpucnn", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert result.stdout.strip() == f"gpucnn {gpucnn.__version__}"


def test_a_closed_output_pipe_is_not_an_error():
    command = [sys.executable, "-m", "gpucnn", "kernels"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # before the first line: every write fails
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=600) == 0
