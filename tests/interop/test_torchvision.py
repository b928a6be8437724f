"""torchvision's AlexNet, built by hand in PyTorch and converted in both directions."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import models
from gpucnn.checkpoint import read_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError, MissingExtra, OutputError
from gpucnn.interop import torchvision as convert
from gpucnn.interop.pth import read_state

CLASSES = 7


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the oracle is PyTorch")


@pytest.fixture(scope="module")
def other(torch):
    """The architecture of torchvision.models.alexnet with random weights."""
    t = torch.nn
    torch.manual_seed(1)

    class AlexNet(t.Module):
        def __init__(self):
            super().__init__()
            self.features = t.Sequential(
                t.Conv2d(3, 64, 11, 4, 2), t.ReLU(), t.MaxPool2d(3, 2),
                t.Conv2d(64, 192, 5, padding=2), t.ReLU(), t.MaxPool2d(3, 2),
                t.Conv2d(192, 384, 3, padding=1), t.ReLU(),
                t.Conv2d(384, 256, 3, padding=1), t.ReLU(),
                t.Conv2d(256, 256, 3, padding=1), t.ReLU(), t.MaxPool2d(3, 2),
            )  # fmt: skip
            self.avgpool = t.AdaptiveAvgPool2d(6)
            self.classifier = t.Sequential(
                t.Dropout(), t.Linear(9216, 4096), t.ReLU(),
                t.Dropout(), t.Linear(4096, 4096), t.ReLU(), t.Linear(4096, CLASSES),
            )  # fmt: skip

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    return AlexNet().eval()


@pytest.fixture(scope="module")
def arrays(other):
    return {name: value.detach().numpy() for name, value in other.state_dict().items()}


@pytest.fixture(scope="module")
def ours(arrays, tmp_path_factory):
    """The checkpoint that convert writes for the state dict."""
    folder = tmp_path_factory.mktemp("convert")
    save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "in.safetensors")
    convert.convert_file(folder / "in.safetensors", folder / "ours.safetensors")
    return folder / "ours.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 127])
def test_logits_equal_pytorchs_on_random_weights(side, torch, other, ours, rng):
    x = rng.standard_normal((2, side, side, 3), dtype=np.float32)
    model = gpucnn.load(ours)
    with torch.no_grad():
        expected = other(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    with gpucnn.no_grad():
        actual = model(gpucnn.tensor(x)).numpy()
    assert actual.shape == (2, CLASSES)
    assert np.abs(actual - expected).max() < 1e-5
    assert np.abs(expected).max() > 1e-2  # else the comparison would prove nothing


def test_the_checkpoint_contains_what_prediction_needs(ours):
    info = read_checkpoint(ours).info
    assert info["model"] == {
        "name": "alexnet_torchvision", "config": {"classes": CLASSES, "channels": 3}
    }  # fmt: skip
    assert info["normalize"]["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_there_and_back_gives_the_same_bits(suffix, torch, ours, arrays, tmp_path):
    back = tmp_path / f"back{suffix}"
    assert "torchvision" in convert.convert_file(ours, back)
    state = load_file(back) if suffix == ".safetensors" else torch.load(back)
    assert state.keys() == arrays.keys()
    assert all(np.array_equal(np.asarray(state[name]), arrays[name]) for name in arrays)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_file_gives_the_same_checkpoint_as_safetensors(
    is_zip, torch, other, ours, tmp_path, monkeypatch
):
    torch.save(other.state_dict(), tmp_path / "alexnet.pth", _use_new_zipfile_serialization=is_zip)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # reading does not need it
    convert.convert_file(tmp_path / "alexnet.pth", tmp_path / "again.safetensors")
    one, two = (read_checkpoint(p) for p in (ours, tmp_path / "again.safetensors"))
    assert one.info == two.info
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


class Boom:
    def __reduce__(self):
        return (open, ("hacked", "w"))


def test_a_hostile_pickle_is_refused_and_not_run(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Boom()}, tmp_path / "bad.pth")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps(Boom()))
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("bad.pth", "worse.pth", "empty.pt", "list.pth"):
        with pytest.raises(CheckpointError, match="not a state dict that can be read safely"):
            convert.convert_file(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "hacked").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_without_pytorch_a_pth_file_is_not_written(ours, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"\.pth files need PyTorch: pip install torch"):
        convert.convert_file(ours, tmp_path / "out.pth")


def small_state():
    """The names and shapes of torchvision's AlexNet without its 200 MB."""
    state = {}
    for name, (_, shape) in convert._LAYERS.items():
        sizes = [CLASSES if n is None else n for n in shape]
        state[f"{name}.weight"] = np.broadcast_to(np.float32(0), sizes)
        state[f"{name}.bias"] = np.zeros(sizes[0], np.float32)
    return state


def test_a_state_dict_of_another_model_is_refused_with_a_list_of_differences(tmp_path):
    state = small_state()
    state["classifier.9.weight"] = np.zeros(1, np.float32)
    state["features.3.weight"] = np.zeros((192, 64, 3, 3), np.float32)
    state["features.6.bias"] = np.zeros((384, 1), np.float32)
    del state["classifier.4.bias"]
    with pytest.raises(CheckpointError) as caught:
        convert.from_torchvision(state)
    text = str(caught.value)
    assert "unexpected: classifier.9.weight" in text
    assert "missing: classifier.4.bias" in text
    assert "features.3.weight: expected 192 x 64 x 5 x 5, got 192 x 64 x 3 x 3" in text
    assert "features.6.bias: expected 384, got 384 x 1" in text


def test_half_precision_and_single_channel_weights_are_converted():
    state = small_state()
    state["features.0.weight"] = np.ones((64, 1, 11, 11), np.float16)
    converted = convert.from_torchvision(state)
    assert converted["0.weight"].shape == (64, 11, 11, 1)
    assert converted["0.weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("source", "target", "error", "message"),
    [
        ("a.bin", "b.pth", ArgumentError, r"a\.bin: expected a \.safetensors"),
        ("none.pth", "b.txt", ArgumentError, r"b\.txt: expected a \.safetensors"),
        ("none.pth", "b.safetensors", CheckpointError, "no such file"),
        ("damaged.safetensors", "b.safetensors", CheckpointError, "header: not plain JSON"),
        (".", "b.safetensors", ArgumentError, "expected a .safetensors"),
        ("foreign.safetensors", "b.pth", ArgumentError, r"checkpoint ends in \.safetensors"),
        ("foreign.safetensors", "b.safetensors", CheckpointError, "unexpected: x"),
        (
            "lenet.safetensors",
            "b.safetensors",
            CheckpointError,
            "holds lenet5; expected alexnet",
        ),
    ],
)
def test_mistakes_are_named(source, target, error, message, tmp_path):
    (tmp_path / "damaged.safetensors").write_bytes(b"\x00" * 50)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    gpucnn.save(tmp_path / "lenet.safetensors", models.lenet5(), "lenet5")
    with pytest.raises(error, match=message):
        convert.convert_file(tmp_path / source, tmp_path / target)
    assert not (tmp_path / target).exists()


def test_a_target_that_cannot_be_written_is_named(ours, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        convert.convert_file(ours, tmp_path / "none" / "out.safetensors")


def test_a_file_is_not_converted_onto_itself(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.safetensors").symlink_to(ours)
    size = ours.stat().st_size
    for target in (ours, "link.safetensors"):
        with pytest.raises(ArgumentError, match="is the file to read"):
            convert.convert_file(ours, target)
    assert ours.stat().st_size == size


def test_a_pth_file_with_a_flipped_bit_is_refused(torch, other, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(other.state_dict(), path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CheckpointError, match=r"a\.pth: not a state dict .*CRC-32"):
        convert.convert_file(path, tmp_path / "out.safetensors")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_of_a_pth_file_are_read_with_their_strides(dtype, is_zip, torch, tmp_path):
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).to(getattr(torch, dtype))
    state = {"whole": values, "part": values[1, :, ::2].T, "empty": values[:0]}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
    found = read_state(tmp_path / "a.pth")
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(np.asarray(found[name], np.float32), tensor.float().numpy())


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pth_file_that_shrinks_before_its_tensors_are_read_is_refused(is_zip, torch, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"x": torch.ones(100_000)}, path, _use_new_zipfile_serialization=is_zip)
    state = read_state(path)
    torch.save({"x": torch.ones(10)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="buffer is smaller than requested size"):
        np.asarray(state["x"])
