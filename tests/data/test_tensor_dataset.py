"""TensorDataset and lists of pairs, in a DataLoader and a Trainer."""

import numpy as np
import pytest

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DataError, DtypeError, ShapeError

X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10) % 3


def batches(dataset, **options):
    return [tuple(map(np.asarray, pair)) for pair in data.DataLoader(dataset, 4, **options)]


def test_its_length_items_and_slices_are_those_of_its_tensors():
    dataset = data.TensorDataset(X, Y)
    assert len(dataset) == 10
    x, y = dataset[3]
    assert (x.tolist(), y) == (X[3].tolist(), 0)
    x, y = dataset[2:5]
    assert (x.shape, y.tolist()) == ((3, 4), [2, 0, 1])
    assert dataset.tensors[0] is X
    assert repr(dataset) == "TensorDataset(float32 (10, 4), int64 (10,))"


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, Y),
        (X, X[:, :1]),  # a regression
        (X.reshape(10, 2, 1, 2), Y.astype(np.uint8)),
        (X[:, 0].astype(np.float64), X.astype(np.float16).reshape(10, 2, 2)),
    ],
)
def test_a_loader_keeps_shapes_and_dtypes(x, y):
    found = batches(data.TensorDataset(x, y))
    assert [len(a) for a, _ in found] == [4, 4, 2]
    for i, whole in enumerate((x, y)):
        assert {pair[i].dtype for pair in found} == {whole.dtype}
        np.testing.assert_array_equal(np.concatenate([pair[i] for pair in found]), whole)


def test_tensors_lists_and_arrays_give_the_same_batches(device):
    there = gpucnn.tensor(X, device=device), gpucnn.tensor(Y, device=device)
    expected = batches(data.TensorDataset(X, Y), shuffle=True, seed=3)
    pairs = list(zip(X, Y, strict=True))
    for dataset in (
        data.TensorDataset(*there),
        data.TensorDataset(X.tolist(), Y.tolist()),
        pairs,
        [(gpucnn.tensor(x, device=device), gpucnn.tensor(y, device=device)) for x, y in pairs],
        [(x.tolist(), int(y)) for x, y in pairs],
        tuple(pairs),
    ):
        for (x, y), (x0, y0) in zip(batches(dataset, shuffle=True, seed=3), expected, strict=True):
            assert (x.dtype, y.dtype) == (np.float32, np.int64)
            np.testing.assert_array_equal(x, x0)
            np.testing.assert_array_equal(y, y0)


def test_pairs_may_hold_targets_of_any_shape():
    [(x, y)] = batches([(2.0, [1.0, 2.0]), (3.0, [3.0, 4.0])])
    assert (x.dtype, y.dtype) == (np.float32, np.float32)
    assert (x.tolist(), y.tolist()) == ([2.0, 3.0], [[1.0, 2.0], [3.0, 4.0]])


@pytest.mark.parametrize("pairs", [False, True])
def test_a_trainer_learns_from_it(device, pairs):
    dataset = data.TensorDataset(X, (X[:, 0] > 18).astype(np.int32))
    if pairs:
        dataset = [dataset[i] for i in range(len(dataset))]
    loader = data.DataLoader(
        dataset, 5, shuffle=True, device=device, transform=lambda x: (x - 20) / 10
    )
    gpucnn.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
    trainer = train.Trainer(model, optim.Adam(model.parameters(), 0.05), loader, loader)
    trainer.fit(15)
    assert trainer.evaluation.accuracy == 1
    assert trainer.history[-1]["train_loss"] < trainer.history[0]["train_loss"]


def test_a_loop_trains_a_regression_on_a_device(device):
    dataset = data.TensorDataset(X / 40, X[:, :1] / 20)
    loader = data.DataLoader(dataset, 5, device=device)
    gpucnn.manual_seed(0)
    model = nn.Linear(4, 1).to(device)
    optimizer, loss_of, losses = optim.Adam(model.parameters(), 0.1), nn.MSELoss(), []
    for _ in range(60):
        for x, y in loader:
            loss = loss_of(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_float_images_train_like_their_bytes(device):
    images = data.Synthetic(n=64)
    rows = []
    for pixels in (images.images, images.images / 255):
        same = data.Dataset(pixels, images.labels.astype(np.uint8), images.classes)
        change = data.Compose(
            [
                data.RandomCrop(32, 4),
                data.RandomHorizontalFlip(),
                data.Normalize(*data.channel_statistics(same.images)),
            ]
        )
        loader = data.DataLoader(same, 32, shuffle=True, transform=change, device=device)
        gpucnn.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(196, 10)
        )
        model.to(device)
        optimizer = optim.SGD(model.parameters(), 0.01)
        rows.append(train.Trainer(model, optimizer, loader, precision="fp32").fit(2))
    for one, other in zip(*rows, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ((X,), ArgumentError, "expected two tensors, x and y, got 1"),
        ((X, Y, Y), ArgumentError, "got 3"),
        ((X, Y[:9]), ShapeError, "got x (10, 4) and y (9,)"),
        ((X, 3), ShapeError, "got x (10, 4) and y ()"),
        ((X, ["a"] * 10), DtypeError, "TensorDataset: y: expected numbers, got a list of 10"),
        ((None, Y), DtypeError, "TensorDataset: x: expected numbers, got None"),
    ],
)
def test_mistakes_are_named(tensors, error, words):
    with pytest.raises(error) as caught:
        data.TensorDataset(*tensors)
    assert words in str(caught.value)


def test_a_part_of_the_loader_has_its_rows():
    loader = data.DataLoader(data.TensorDataset(X, Y), 4)
    parts = [list(loader.part(rank, 2)) for rank in range(2)]
    for number, (x, y) in enumerate(loader):
        np.testing.assert_array_equal(np.concatenate([part[number][0] for part in parts]), x)
        np.testing.assert_array_equal(np.concatenate([part[number][1] for part in parts]), y)


def test_a_label_past_the_classes_is_still_named():
    with pytest.raises(DataError, match="label 5 of image 1 is not in 0 to 2"):
        data.Dataset(np.zeros((2, 4, 4, 1)), [0, 5], ("a", "b", "c"))


def test_float_images_on_a_gpu_are_not_read_as_bytes(gpu):
    pixels = np.random.default_rng(0).random((6, 8, 8, 3))
    normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
    assert Device.parse(gpu).kind != "cpu"
    loader = data.DataLoader(data.Dataset(pixels, [0] * 6), 6, transform=normalize, device=gpu)
    [(images, _)] = loader
    np.testing.assert_allclose(images.numpy(), (pixels - 0.5) / 0.25, atol=1e-5)
