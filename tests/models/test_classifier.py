import numpy as np
import pytest
from forged import forge

import gpucnn
from gpucnn import data, models, nn, ops
from gpucnn.commands import main
from gpucnn.commands.predict import bars
from gpucnn.errors import ArgumentError, CheckpointError, DataError
from gpucnn.models.classifier import Classifier, Guess

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

CLASSES = ("cat", "dog", "lorry")


@pytest.fixture
def checkpoint(tmp_path):
    """A colour LeNet of three classes, with everything saved that prediction uses."""
    config = {"classes": 3, "channels": 3}
    model = models.lenet5(**config, generator=np.random.default_rng(4))
    normalize = data.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
    path = tmp_path / "best.safetensors"
    gpucnn.save(path, model, "lenet5", config, CLASSES, normalize)
    return path


def picture(path, pixels):
    Image.fromarray(pixels).save(path)
    return path


def test_probabilities_are_softmax_of_the_model_on_normalised_pixels(checkpoint, tmp_path, rng):
    pixels = rng.integers(256, size=(28, 28, 3), dtype=np.uint8)
    classifier = Classifier(checkpoint)
    assert np.array_equal(classifier.read(picture(tmp_path / "a.png", pixels)), pixels)
    x = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.1]
    logits = gpucnn.load(checkpoint)(gpucnn.tensor(x[None].astype(np.float32)))
    expected = ops.softmax(logits).numpy()[0]
    guesses = classifier.guesses(tmp_path / "a.png")
    assert [guess.name for guess in guesses] == [CLASSES[i] for i in np.argsort(-expected)]
    assert np.allclose([g.probability for g in guesses], np.sort(expected)[::-1], atol=1e-6)
    assert classifier.guesses(tmp_path / "a.png", top=1) == guesses[:1]


def test_pictures_are_scaled_by_their_shorter_side_and_cropped_at_the_centre(checkpoint, tmp_path):
    pixels = np.zeros((56, 112, 3), np.uint8)
    pixels[:, 28:84] = 255  # the middle square
    image = Classifier(checkpoint).read(picture(tmp_path / "wide.png", pixels))
    assert image.shape == (28, 28, 3)
    assert (image[:, 2:-2] == 255).all()


def test_a_picture_with_an_exif_rotation_is_turned_upright(checkpoint, tmp_path):
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels[:14] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = Classifier(checkpoint).read(tmp_path / "a.jpg")
    assert image[:12].max() < 40
    assert image[16:].min() > 215


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_pictures_of_every_mode_are_read(mode, checkpoint, tmp_path):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (40, 30), 1).save(path)
    assert Classifier(checkpoint).read(path).shape == (28, 28, 3)


def test_a_model_of_grey_images_gets_grey_ones(tmp_path, rng):
    path = tmp_path / "grey.safetensors"
    gpucnn.save(path, models.lenet5(), "lenet5")
    classifier = Classifier(path)
    colour = picture(tmp_path / "a.png", rng.integers(256, size=(28, 28, 3), dtype=np.uint8))
    assert classifier.read(colour).shape == (28, 28, 1)
    assert not classifier.normalized
    assert [g.name for g in classifier.guesses(colour, 20)] != []
    assert set(classifier.classes) == {f"class {i}" for i in range(10)}


def test_given_class_names_replace_those_in_the_file_and_must_match_in_number(checkpoint):
    assert Classifier(checkpoint, classes=list("xyz")).classes == ("x", "y", "z")
    with pytest.raises(ArgumentError, match="0 class names for a model with 3 outputs"):
        Classifier(checkpoint, classes=[])
    with pytest.raises(ArgumentError, match="2 class names for a model with 3 outputs"):
        Classifier(checkpoint, classes=["x", "y"])


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_not_an_image_is_a_data_error_that_names_it(content, checkpoint, tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png: not a readable image"):
        Classifier(checkpoint).guesses(path)


def test_a_missing_image_is_reported_as_missing(checkpoint, tmp_path):
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        Classifier(checkpoint).guesses(tmp_path / "none.png")


@pytest.mark.parametrize("normalize", [{}, {"mean": 3}, [1], {"mean": [0.5] * 3, "std": [0] * 3}])
def test_a_damaged_normalisation_is_a_checkpoint_error(normalize, tmp_path):
    state = models.lenet5(channels=3).state_dict()
    info = {"model": {"name": "lenet5", "config": {"channels": 3}}, "normalize": normalize}
    path = tmp_path / "x.safetensors"
    forge(path, {f"model.{k}": v for k, v in state.items()}, info)
    with pytest.raises(CheckpointError, match=r"normalize(\.std\[0\]|\.mean)?: (expected|missing)"):
        Classifier(path)


def test_a_model_of_vectors_or_of_two_channels_cannot_classify_files(tmp_path):
    path = tmp_path / "x.safetensors"
    gpucnn.save(path, models.mlp([4, 6, 1]), "mlp", {"sizes": [4, 6, 1]})
    with pytest.raises(CheckpointError, match=r"mlp takes examples of shape \(4,\)"):
        Classifier(path)
    gpucnn.save(path, models.lenet5(channels=2), "lenet5", {"channels": 2})
    with pytest.raises(CheckpointError, match=r"takes examples of shape \(28, 28, 2\)"):
        Classifier(path)


def test_a_custom_model_cannot_be_rebuilt_to_classify_files(tmp_path, capsys):
    path = tmp_path / "own.safetensors"
    gpucnn.save(path, nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(CheckpointError, match="a model of your own, Sequential"):
        Classifier(path)
    assert main(["predict", str(path), "a.png"]) == 2
    assert capsys.readouterr().err.startswith(f"error: checkpoint {path}: holds the weights of a")


def test_bars_grow_with_the_probability_in_eighths_of_a_character():
    guesses = [Guess("cat", 0.75), Guess("lorry", 0.2), Guess("dog", 0.05)]
    assert bars(guesses, width=10, encoding="utf-8").splitlines() == [
        "  cat     75.00%  ███████▌",
        "  lorry   20.00%  ██",
        "  dog      5.00%  ▌",
    ]
    assert bars(guesses, width=10, encoding="ascii").splitlines()[0] == "  cat     75.00%  ########"


def test_statistics_or_names_of_another_model_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    gpucnn.save(path, models.lenet5(), "lenet5", normalize=data.Normalize((0.5,) * 3, (0.2,) * 3))
    with pytest.raises(CheckpointError, match="is for 3 channels; its model lenet5 expects 1"):
        Classifier(path)
    gpucnn.save(path, models.lenet5(), "lenet5", classes=["a", "b"])
    with pytest.raises(CheckpointError, match="2 class names for a model with 10 outputs"):
        Classifier(path)


def test_a_class_name_cannot_control_the_terminal():
    assert "\x1b" not in bars([Guess("\x1b[2Jcat", 1.0)], encoding="utf-8")
    assert r"\x1b[2Jcat" in bars([Guess("\x1b[2Jcat", 1.0)], encoding="utf-8")
