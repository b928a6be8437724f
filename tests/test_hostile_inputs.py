# ruff: noqa: E501 -- a table reads best with a row a line
"""Mistakes and malice, each ending in one clear error: its class, and words that help.

The command line's mistakes are in examples/test_train_alexnet_cifar10.py, which shares the claim.
"""

import os
import pickle
import warnings

import numpy as np
import pytest

import gpucnn
from gpucnn import data, models, nn, ops, optim, train
from gpucnn.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DeviceError,
    DtypeError,
    GpucnnError,
    GraphError,
    ShapeError,
)


def zeros(*shape, dtype=np.float32):
    return gpucnn.tensor(np.zeros(shape, dtype))


IMAGES = zeros(2, 8, 8, 3)
FILTERS = zeros(4, 3, 3, 3)
LEAF = gpucnn.tensor([1.0], requires_grad=True)

MISTAKES = {
    # shapes
    "an image without its batch axis": (lambda: ops.conv2d(zeros(8, 8, 3), FILTERS), ShapeError, "N, H, W, C"),
    "channels first": (lambda: ops.conv2d(zeros(2, 3, 8, 8), FILTERS), ShapeError, "8 channels"),
    "filters of three axes": (lambda: ops.conv2d(IMAGES, zeros(4, 3, 3)), ShapeError, "OC, KH, KW, C"),
    "a bias of another length": (lambda: ops.conv2d(IMAGES, FILTERS, zeros(5)), ShapeError, "(4,)"),
    "a window larger than the image": (lambda: ops.conv2d(IMAGES, zeros(4, 9, 9, 3)), ShapeError, "does not fit"),
    "a dilated window larger than the image": (
        lambda: ops.conv2d(IMAGES, FILTERS, dilation=4), ShapeError, "9 x 9 pixels does not fit"),
    "a pool larger than the image": (lambda: ops.max_pool2d(IMAGES, 9), ShapeError, "does not fit"),
    "a pool of a matrix": (lambda: ops.avg_pool2d(zeros(2, 3), 2), ShapeError, "N, H, W, C"),
    "a dense layer for other features": (lambda: nn.Linear(5, 2)(zeros(1, 4)), ShapeError, "in_features=4"),
    "labels of another length": (
        lambda: ops.cross_entropy(zeros(2, 3), [0]), ShapeError, "need labels of shape (2,)"),
    "shapes that do not broadcast": (lambda: zeros(2) + zeros(3), ShapeError, "do not broadcast"),
    "rows of different lengths": (lambda: gpucnn.tensor([[1.0], [1.0, 2.0]]), ShapeError, "different lengths"),
    "batch statistics of nothing": (lambda: nn.BatchNorm2d(3)(zeros(0, 8, 8, 3)), ShapeError, "batch"),
    "an image of the wrong size for the model": (
        lambda: models.alexnet_cifar10()(zeros(1, 40, 40, 3)), ShapeError, "in_features=6400"),
    # dtypes
    "integer images": (lambda: ops.conv2d(zeros(1, 8, 8, 3, dtype=np.uint8), FILTERS), DtypeError, "uint8"),
    "float64 images into float32 filters": (
        lambda: ops.conv2d(zeros(1, 8, 8, 3, dtype=np.float64), FILTERS), DtypeError, "float64"),
    "two dtypes in a sum": (lambda: zeros(2) + zeros(2, dtype=np.float64), DtypeError, "float64"),
    "float labels": (lambda: ops.cross_entropy(zeros(1, 3), [0.0]), DtypeError, "integer labels"),
    "text as data": (lambda: gpucnn.tensor(["cat"]), DtypeError, "expected numbers"),
    "objects as data": (lambda: gpucnn.tensor([object()]), DtypeError, "expected numbers"),
    "complex numbers": (lambda: gpucnn.tensor([1j]), DtypeError, "complex"),
    "a gradient of integers": (lambda: gpucnn.tensor([1], requires_grad=True), DtypeError, "numpy.float32"),
    # values
    "a label out of range": (
        lambda: ops.cross_entropy(zeros(1, 3), [3]), ArgumentError, "must be in 0..2"),
    "a stride of zero": (lambda: ops.conv2d(IMAGES, FILTERS, stride=0), ArgumentError, "at least 1"),
    "negative padding": (lambda: ops.conv2d(IMAGES, FILTERS, padding=-1), ArgumentError, "at least 0"),
    "padding by a name that is not one": (
        lambda: ops.conv2d(IMAGES, FILTERS, padding="full"), ArgumentError, "'full' is unknown"),
    "padding of three numbers": (
        lambda: ops.conv2d(IMAGES, FILTERS, padding=(1, 1, 1)), ArgumentError, "a pair of ints"),
    "half a pixel": (lambda: ops.max_pool2d(IMAGES, 2.5), ArgumentError, "a pair of ints"),
    "groups that do not divide the channels": (
        lambda: nn.Conv2d(3, 4, 3, groups=2), ArgumentError, "must divide"),
    "dropout of everything": (lambda: ops.dropout(IMAGES, 1.0), ArgumentError, "[0, 1)"),
    "an axis out of range": (lambda: IMAGES.sum(4), ArgumentError, "out of range"),
    "an unknown convolution algorithm": (
        lambda: gpucnn.set_conv_algorithm("fft"), ArgumentError, "'fft' is unknown"),
    "no threads": (lambda: gpucnn.set_num_threads(0), ArgumentError, "positive int"),
    "a negative learning rate": (lambda: optim.SGD([LEAF], -1), ArgumentError, "must not be negative"),
    "a generator of no parameters": (lambda: optim.Adam(iter(())), ArgumentError, "no parameters"),
    "a model by an unknown name": (lambda: models.build("alexnet_cifar11"), ArgumentError, "expected one of"),
    "batches of no images": (
        lambda: data.DataLoader(data.Synthetic(n=4), 0), ArgumentError, "at least 1"),
    "half an image in a batch": (
        lambda: data.DataLoader(data.Synthetic(n=4), 0.5), ArgumentError, "an int of at least 1, got 0.5"),
    "arrays instead of a data set": (
        lambda: list(data.DataLoader(np.zeros((4, 8, 8, 3), np.uint8), 2)), DataError, "expected (image, label)"),
    "lists as a data set": (
        lambda: data.Dataset([[0]], [0], ("a",)), ShapeError, "expected images (N, H, W, C)"),
    "a label without a class": (
        lambda: data.Dataset(np.zeros((1, 8, 8, 3), np.uint8), np.array([1]), ("a",)), DataError, "not in 0 to 0"),
    "a model saved under another one's name": (
        lambda: gpucnn.save("none", models.lenet5(), "lenet"), ArgumentError, "is not the model to be saved"),
    # devices and graphs
    "a device that does not exist": (lambda: gpucnn.tensor([1.0], device="cuda:99"), DeviceError, "cuda"),
    "a device by a wrong name": (lambda: nn.ReLU().to("gpu"), DeviceError, "expected auto, cpu"),
    "backward twice": (lambda: [y.backward() for y in [LEAF * LEAF] * 2], GraphError, "retain_graph"),
    "backward of a vector": (lambda: (LEAF * zeros(3)).backward(), GraphError, "expected a scalar"),
    "backward without a graph": (lambda: zeros(1).backward(), GraphError, "requires_grad"),
    "assignment to an element": (lambda: IMAGES.__setitem__(0, 1.0), GraphError, "in place"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_in_a_clear_error(mistake):
    call, kind, words = MISTAKES[mistake]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(GpucnnError) as caught:
            call()
    assert isinstance(caught.value, kind), repr(caught.value)
    assert words in str(caught.value)


def test_at_least_forty_mistakes_are_covered():
    assert len(MISTAKES) >= 40


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    train.write_checkpoint(path, tensors, {"epoch": 1})
    return path.read_bytes()


@pytest.mark.parametrize("seed", range(12))
def test_a_checkpoint_with_random_bytes_changed_or_cut_never_crashes(seed, checkpoint, tmp_path):
    rng = np.random.default_rng(seed)
    content = bytearray(checkpoint)
    for position in rng.integers(0, len(content), 20):
        content[position] = rng.integers(256)
    content = content[: rng.integers(1, len(content))]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        train.read_checkpoint(path)


def test_a_state_of_another_model_is_named_tensor_by_tensor():
    with pytest.raises(CheckpointError, match=r"missing: 0\.bias"):
        nn.Sequential(nn.Linear(3, 4)).load_state_dict({"0.weight": np.zeros((4, 3))})


class Malice:
    """Unpickling this runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_calls_os_system_runs_nothing_and_is_named(tmp_path):
    proof = tmp_path / "proof"
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps({b"data": Malice(f"touch {proof}")}, protocol=2))
    with pytest.raises(DataError, match="test_batch"):
        data.CIFAR10(tmp_path, train=False)
    assert not proof.exists()
