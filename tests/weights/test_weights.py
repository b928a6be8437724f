"""The trained networks that come with gpucnn: files, cards, what they see in photographs."""

from pathlib import Path

import numpy as np
import pytest
from scripts import assert_refused

import gpucnn
from gpucnn import data, models, train, weights
from gpucnn.checkpoint import read_checkpoint
from gpucnn.commands import main
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.models.classifier import Classifier

HERE = Path(__file__).parent
NAMES = ["lenet5", "speedrun_cifar10"]
# The first test images of CIFAR-10 and MNIST that differ in class, side by side, and their classes
STRIPS = {
    "speedrun_cifar10": ("cifar10_test_images.png", ["deer", "ship", "dog"]),
    "lenet5": ("mnist_test_images.png", ["7", "2", "1"]),
}


def photographs(name, folder):
    """The strip's images as JPEG files of 960 x 640 pixels, as a camera would write them."""
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    strip = Image.open(HERE / STRIPS[name][0])
    side, paths = strip.height, []
    for i in range(strip.width // side):
        image = strip.crop((i * side, 0, (i + 1) * side, side)).resize((640, 640), Image.BICUBIC)
        wide = np.pad(np.asarray(image), ((0, 0), (160, 160), (0, 0))[: 2 + (image.mode == "RGB")])
        paths.append(str(folder / f"photo{i}.jpg"))
        Image.fromarray(wide).save(paths[-1], quality=90)
    return paths


def test_the_names_are_those_of_models_with_a_parameter_for_weights():
    assert weights.names() == NAMES
    for name, build in models.BY_NAME.items():
        assert ("weights" in build.__annotations__) == (name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_photographs_made_from_test_images_are_classified_right(name, tmp_path, capsys):
    paths = photographs(name, tmp_path)
    chosen = [] if name == "speedrun_cifar10" else ["--weights", name]
    assert main(["predict", *chosen, "--top", "1", *paths]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[::2] == paths
    assert [line.split()[0] for line in lines[1::2]] == STRIPS[name][1]
    accuracy = weights.info(name)["card"]["accuracy"]
    assert f"{name}, which comes with gpucnn: {accuracy:.1%} of the test images right" in err
    assert f"it knows only {', '.join(weights.info(name)['classes'])}" in err


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_that_of_the_file_in_evaluation_mode(name, rng):
    built, loaded = models.build(name, weights="default"), gpucnn.load(weights.path(name))
    assert not built.training
    assert built[0].weight.dtype == np.float32
    x = gpucnn.tensor(rng.standard_normal((2, *models.input_shape(name))).astype(np.float32))
    with gpucnn.no_grad():
        assert np.array_equal(built(x).numpy(), loaded(x).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_the_card_tells_how_it_was_trained(name):
    saved = read_checkpoint(weights.path(name))
    info, card = weights.info(name), weights.info(name)["card"]
    assert info == saved.info
    assert info["model"]["name"] == name
    assert card["command"].startswith(f"python examples/{info['script']}.py")
    assert card["seed"] == info["settings"]["seed"]
    assert card["sha256"] == weights.fingerprint(saved.part("model"))
    last = info["history"][-1]
    assert last["epoch"] == info["settings"]["epochs"]
    # of the test set, with weights rounded to float16
    assert card["accuracy"] == pytest.approx(last["test_accuracy"], abs=0.002)
    assert {"data", "recipe"} <= card.keys()
    for array in saved.part("model").values():
        assert array.dtype == (np.float16 if array.ndim >= 2 else np.float32)


@pytest.mark.parametrize("damage", ["a bit", "its end", "its card"])
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_with_a_way_out(name, damage, tmp_path, monkeypatch):
    content = bytearray(weights.path(name).read_bytes())
    if damage == "a bit":
        content[-7] ^= 1
    elif damage == "its end":
        del content[-7:]
    else:
        content[8 + content.index(b"sha256") :] = content[8 + content.index(b"sha256") - 1 :]
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    monkeypatch.setattr(weights, "_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=rf"{name}.safetensors: .*\n  install gpucnn again"):
        models.build(name, weights="default")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.lenet5(weights="best"), "weights must be \"default\" or None, got 'best'"),
        (
            lambda: models.lenet5(classes=3, weights="default"),
            "its trained weights are for classes=10, channels=1, got classes=3, channels=1",
        ),
        (
            lambda: models.speedrun_cifar10(channels=1, weights="default"),
            "are for classes=10, channels=3, got classes=10, channels=1",
        ),
        (lambda: weights.path("alexnet"), "does not come trained; expected lenet5 or speedrun"),
        (lambda: weights.info("../lenet5"), "does not come trained"),
    ],
)
def test_mistakes_are_told(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


def test_a_saved_model_is_rebuilt_from_its_own_file(tmp_path):
    model = models.lenet5(weights="default")
    with pytest.raises(ArgumentError, match="config must not name weights"):
        gpucnn.save(tmp_path / "a.safetensors", model, "lenet5", {"weights": "default"})
    gpucnn.save(tmp_path / "a.safetensors", model, "lenet5")
    loaded = gpucnn.load(tmp_path / "a.safetensors")
    assert weights.fingerprint(loaded.state_dict()) == weights.fingerprint(model.state_dict())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("predict --weights alexnet a.png", "invalid choice"),
        ("predict --weights lenet5 best.safetensors a.png", "either best.safetensors or --weights"),
        ("predict none.jpg", "none.jpg: there is no such file"),
    ],
)
def test_mistakes_on_the_command_line_end_with_status_2(line, message, capsys):
    assert_refused(main, line.split(), message, capsys)


def test_a_classifier_without_a_checkpoint_is_the_network_for_cifar10():
    classifier = Classifier()
    assert classifier.classes == tuple(weights.info("speedrun_cifar10")["classes"])
    assert classifier.normalized


# The card of speedrun_cifar10 is for images decoded from JPEG; the official ones differ a little.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "tolerance"), [("lenet5", 2e-4), ("speedrun_cifar10", 0.02)])
def test_the_accuracy_is_that_on_the_card(name, tolerance):
    """Where the data is on the disk: see the environment variable GPUCNN_DATA."""
    info = weights.info(name)
    try:
        test = {"lenet5": data.MNIST, "speedrun_cifar10": data.CIFAR10}[name](train=False)
    except data.DataNotFound as error:
        pytest.skip(str(error).splitlines()[0])
    loader = data.DataLoader(test, 500, transform=data.Normalize(**info["normalize"]), device="cpu")
    result = train.evaluate(models.build(name, weights="default"), loader)
    assert result.accuracy == pytest.approx(info["card"]["accuracy"], abs=tolerance)
