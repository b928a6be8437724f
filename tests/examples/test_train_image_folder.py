import importlib.util
from pathlib import Path

import numpy as np
import pytest

from gpucnn import models, nn, train
from gpucnn.cli import main as gpucnn_command

SCRIPT = Path(__file__).parents[2] / "examples" / "train_image_folder.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("PIL", reason="reads JPEG files")
    spec = importlib.util.spec_from_file_location("train_image_folder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Reddish and bluish JPEGs of several sizes, in train/ and test/."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(8)
    for split, n in (("train", 6), ("test", 3)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 90, (40 + 9 * i, 70 - 5 * i, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture
def small(monkeypatch):
    """A few filters under the name of alexnet: what is tested is the script around it."""

    def alexnet(classes=1000, channels=3, generator=None):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 11, stride=8, generator=generator),
            nn.ReLU(),
            nn.GlobalAvgPool2d(),
            nn.Linear(4, classes, generator=generator),
        )

    monkeypatch.setitem(models.BY_NAME, "alexnet", alexnet)
    monkeypatch.setitem(models._SIDES, alexnet, 227)


FLAGS = "--batch-size 4 --device cpu --lr 0.05".split()


def test_a_folder_of_jpegs_trains_tests_with_ten_views_and_predicts(
    script, photos, small, tmp_path, capsys
):
    arguments = [str(photos / "train"), "--test", str(photos / "test"), "--out", str(tmp_path)]
    assert script.main([*arguments, *FLAGS, "--epochs", "4"]) == 0
    out = capsys.readouterr().out
    assert "12 images as 256x256x3, 2 classes" in out
    assert "test accuracy with ten views 100.00%" in out
    info = train.read_checkpoint(tmp_path / "best.safetensors").info
    assert info["model"] == {"name": "alexnet", "config": {"classes": 2, "channels": 3}}
    image = str(photos / "test" / "red" / "0.jpg")
    assert gpucnn_command(["predict", str(tmp_path / "best.safetensors"), image]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  red ")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "alexnet_torchvision", "alexnet_keras"])
def test_every_alexnet_of_full_size_takes_a_step(model, script, photos, tmp_path, capsys):
    arguments = [str(photos / "train"), "--model", model, "--out", str(tmp_path), "--epochs", "1"]
    assert script.main([*arguments, "--batch-size", "12", "--device", "cpu"]) == 0
    assert (tmp_path / "last.safetensors").stat().st_size > 4 * 58_000_000


def test_a_damaged_file_fails_or_is_skipped_as_asked(
    script, photos, small, tmp_path, capsys, monkeypatch
):
    import shutil

    shutil.copytree(photos / "train", tmp_path / "train")
    (tmp_path / "train" / "red" / "bad.jpg").write_bytes(b"no image")
    arguments = [str(tmp_path / "train"), *FLAGS, "--epochs", "1", "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 2
    assert "bad.jpg: not a readable image" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"bad\.jpg: not a readable image .* 1 so far"):
        assert script.main([*arguments, "--on-error", "skip"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("none", "TRAIN: none does not exist"),
        ("", "TRAIN: name the folder"),
        ("TRAIN --test none", "--test: none does not exist"),
        ("TRAIN --test OTHER", "expected those of"),
        ("TRAIN --model lenet", "invalid choice"),
        ("TRAIN --epochs 0", "expected at least 1"),
        ("TRAIN --out a_file/x", "cannot be made"),
    ],
)
def test_a_mistake_is_one_clear_text_and_exit_status_2(
    flags, message, script, photos, small, tmp_path, monkeypatch, capsys
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("")
    Path("other/cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save("other/cat/a.png")
    words = flags.replace("TRAIN", str(photos / "train")).replace("OTHER", "other").split()
    try:
        status = script.main([*words, "--device", "cpu"])
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
