"""look_inside takes checkpoints of every script and network, and says what it cannot show."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

import gpucnn
from gpucnn import data, models, nn, train
from gpucnn.inspect import analyze
from gpucnn.models import registry
from gpucnn.train.run_data import load_data, spread

EXAMPLES = Path(__file__).parents[2] / "examples"
FEW = ["--limit", "8", "--steps", "1"]
pytest.importorskip("matplotlib", reason="draws the page")


@pytest.fixture(scope="module")
def script():
    return load_script(EXAMPLES / "look_inside.py")


def small(classes=10, channels=3, generator=None):
    """A network for images of 16 x 16 pixels."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, stride=2, generator=generator),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(196, classes, generator=generator),
    )


@pytest.fixture
def _registered(monkeypatch):
    monkeypatch.setitem(models.BY_NAME, "small", small)
    monkeypatch.setitem(registry._SIDES, small, 16)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    image = pytest.importorskip("PIL.Image", reason="writes the images")
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(8)
    for name in ("blue", "red"):
        (root / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 90, (20, 24, 3), dtype=np.uint8)
            pixels[..., 2 if name == "blue" else 0] += 150
            image.fromarray(pixels).save(root / name / f"{i}.png")
    (root / "red" / "damaged.png").write_bytes(b"no image")
    return root


NORMALIZE = data.Normalize((0.4, 0.3, 0.4), (0.3, 0.2, 0.3))


def saved(path, **config):
    names = ("blue", "red")
    model = small(classes=2, **config)
    gpucnn.save(path, model, "small", {"classes": 2, **config}, names, NORMALIZE)
    return path


@pytest.mark.filterwarnings("ignore:.*damaged.png")
@pytest.mark.usefixtures("_registered")
def test_a_saved_model_is_shown_on_a_folder_of_images(script, photos, tmp_path, capsys):
    path = saved(tmp_path / "model.safetensors")
    assert script.main([str(path), "--data", str(photos), *FEW]) == 0
    page = (tmp_path / "look_inside.html").read_text(encoding="utf-8")
    assert "<h1>Inside small</h1>" in page
    assert "<dd>8</dd>" in page
    assert "Relative size of the updates" not in page  # there was no run to go on with
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.usefixtures("_registered")
def test_without_data_it_asks_for_a_folder(script, tmp_path, capsys):
    path = saved(tmp_path / "model.safetensors")
    assert script.main([str(path), *FEW]) == 2
    err = capsys.readouterr().err
    assert "does not say what it was trained on" in err
    assert "--data DIR" in err


def test_a_network_without_convolutions_is_refused(script, tmp_path, capsys):
    path = tmp_path / "mlp.safetensors"
    gpucnn.save(path, models.mlp([4, 6, 3]), "mlp", {"sizes": [4, 6, 3]}, ("a", "b", "c"))
    assert script.main([str(path), *FEW]) == 2
    err = capsys.readouterr().err
    assert f"{path}: mlp has no convolution, so there are no feature maps" in err
    assert "Traceback" not in err


@pytest.mark.filterwarnings("ignore:.*damaged.png")
@pytest.mark.usefixtures("_registered")
def test_a_folders_images_are_scaled_spread_over_the_classes_and_damaged_ones_left_out(photos):
    info = {
        "model": {"name": "small", "config": {"classes": 2}},
        "settings": {},
        "execution": {"train": str(photos), "test": str(photos)},
    }
    training, test = load_data(info, None)
    assert test.images.shape == training.images.shape == (12, 16, 16, 3)
    assert test.classes == ("blue", "red")
    assert spread(test, 4).labels.tolist() == [0, 0, 1, 1]
    assert spread(test, 99).labels.tolist() == [0] * 6 + [1] * 6
    mixed = test[np.array([0, 6, 1, 7])]
    assert spread(mixed, 2).labels.tolist() == [0, 1]
    greys = {**info, "model": {"name": "small", "config": {"classes": 2, "channels": 1}}}
    with pytest.raises(gpucnn.errors.ArgumentError, match="3 channels, the model expects 1"):
        load_data(greys, None)


def test_a_forged_checkpoint_names_no_data():
    info = {"settings": {"dataset": ["mnist"]}, "execution": {"test": 3, "train": ["x"]}}
    with pytest.raises(gpucnn.errors.ArgumentError, match="does not say what it was trained on"):
        load_data(info, None)


def idx_files(folder):
    folder.mkdir()
    rng = np.random.default_rng(6)
    for split, n in (("train", 40), ("t10k", 20)):
        labels, images = rng.integers(10, size=n), rng.integers(256, size=(n, 28, 28))
        for kind, header, values in (
            ("images-idx3", struct.pack(">4I", 0x803, n, 28, 28), images),
            ("labels-idx1", struct.pack(">2I", 0x801, n), labels),
        ):
            content = header + values.astype(np.uint8).tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(content)
    return folder


@pytest.mark.slow
def test_a_lenet_trained_on_mnist_is_shown_with_its_precision(
    script, tmp_path, monkeypatch, capsys
):
    files, run = idx_files(tmp_path / "mnist"), tmp_path / "run"
    flags = f"--dataset mnist --epochs 1 --device cpu --precision fp32 --quiet --out {run}"
    lenet = load_script(EXAMPLES / "train_lenet.py")
    assert lenet.main([*flags.split(), "--data", str(files), "--batch-size", "16"]) == 0
    given = []

    def watched(*arguments):
        given.append(arguments[1:])
        return analyze(*arguments)

    monkeypatch.setattr(script.inspect, "analyze", watched)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert script.main([str(run / "best.safetensors"), "--data", str(files), *FEW]) == 0
    assert given == [((28, 28, 1), 16, 1, "fp32")]
    assert "Inside lenet, trained on mnist" in (run / "look_inside.html").read_text()
    err = capsys.readouterr().err  # the progress line
    assert "predictions" in err
    assert "saliency" in err
    history = train.read_checkpoint(run / "best.safetensors").info["history"]
    assert len(history) == 1
