# ruff: noqa: E501 -- one table row per line
"""Invalid batches, labels, models and losses: Trainer and evaluate raise one clear error."""

import numpy as np
import pytest

import gpucnn
from gpucnn import data, nn, ops, optim, train
from gpucnn.errors import (
    ArgumentError,
    CheckpointError,
    DeviceMismatch,
    DtypeError,
    GpucnnError,
    ShapeError,
)

IMAGES = gpucnn.tensor(np.zeros((4, 8, 8, 3), np.float32))
LABELS = gpucnn.tensor(np.array([0, 1, 2, 0]))


def network(outputs=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, outputs))


def labels(*values, dtype=np.int64):
    return gpucnn.tensor(np.array(values, dtype), dtype=dtype)


BATCHES = {
    "one array": (IMAGES, ArgumentError, "yielded a float32 Tensor (4, 8, 8, 3) as a batch; expected (images, labels)"),
    "None": (None, ArgumentError, "yielded None as a batch"),
    "a number": (3, ArgumentError, "yielded an int as a batch"),
    "a tuple of one": ((IMAGES,), ArgumentError, "yielded a tuple of 1 as a batch"),
    "a tuple of three": ((IMAGES, LABELS, LABELS), ArgumentError, "yielded a tuple of 3 as a batch"),
    "NumPy images": ((IMAGES.numpy(), LABELS), ArgumentError, "yielded a float32 ndarray (4, 8, 8, 3) as images; expected a Tensor"),
    "NumPy labels": ((IMAGES, LABELS.numpy()), ArgumentError, "DataLoader(..., device=...)"),
    "no labels": ((IMAGES, None), ArgumentError, "yielded None as labels"),
    "a list of labels": ((IMAGES, [0, 1, 2, 0]), ArgumentError, "yielded a list of 4 as labels"),
    "labels of another length": ((IMAGES, labels(0, 1, 2)), ShapeError, "images (4, 8, 8, 3) need labels (4,), got (3,)"),
    "labels of two axes": ((IMAGES, labels([0], [1], [2], [0])), ShapeError, "need labels (4,), got (4, 1)"),
    "a single label": ((IMAGES, gpucnn.tensor(np.int64(1))), ShapeError, "need labels (4,), got ()"),
    "float labels": ((IMAGES, labels(0, 1, 2, 0, dtype=np.float32)), DtypeError, "expected integer labels, got float32"),
    "bool labels": ((IMAGES, labels(0, 1, 1, 0, dtype=np.bool_)), DtypeError, "expected integer labels, got bool"),
    "a negative label": ((IMAGES, labels(0, -1, 2, 0)), ArgumentError, "labels must be in 0..2, got -1..2"),
    "a label past the outputs": ((IMAGES, labels(0, 3, 2, 0)), ArgumentError, "labels must be in 0..2, got 0..3"),
    "uint8 images": ((gpucnn.tensor(np.zeros((4, 8, 8, 3), np.uint8)), LABELS), DtypeError, "uint8"),
    "no image": ((gpucnn.tensor(np.zeros((0, 8, 8, 3), np.float32)), labels()), ShapeError, "no examples"),
}  # fmt: skip


def refuses(call, kind, words):
    with pytest.raises(GpucnnError) as caught:
        call()
    assert isinstance(caught.value, kind), repr(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("who", ["Trainer", "evaluate"])
def test_an_invalid_batch_is_a_clear_error_and_changes_nothing(who, batch):
    given, kind, words = BATCHES[batch]
    model = network()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    if who == "Trainer":
        trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.1), [given])
        refuses(lambda: trainer.fit(1), kind, words)
        assert trainer.step == 0
    else:
        refuses(lambda: train.evaluate(model, [given]), kind, words)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def one_step(model, loss=ops.cross_entropy):
    return train.Trainer(model, optim.SGD(LEAVES, 0.1), [(IMAGES, LABELS)], loss=loss).fit(1)


LEAVES = network().parameters()


class Giving(nn.Module):
    """A model that returns `value`."""

    def __init__(self, value):
        self.give = lambda: value  # not the value itself, which would be a buffer

    def forward(self, x):
        return self.give()


OTHERS = {
    "a model that returns nothing": (lambda: one_step(Giving(None)), ArgumentError, "the model returned None; expected logits (N, K)"),
    "a model that returns two things": (lambda: one_step(Giving((IMAGES, IMAGES))), ArgumentError, "returned a tuple of 2"),
    "a model that returns images": (lambda: one_step(nn.ReLU()), ShapeError, "returned (4, 8, 8, 3) for images (4, 8, 8, 3); expected logits (4, K)"),
    "a model that loses examples": (lambda: one_step(Giving(gpucnn.tensor(np.zeros((3, 3), np.float32)))), ShapeError, "expected logits (4, K)"),
    "a loss that is a number": (lambda: one_step(network(), lambda logits, labels: 0.5), ArgumentError, "the loss is a float; expected a scalar Tensor"),
    "a loss for each example": (lambda: one_step(network(), lambda logits, labels: logits.sum(axis=1)), ShapeError, "the loss has shape (4,); expected a scalar"),
    "no model": (lambda: train.Trainer(None, optim.SGD(LEAVES, 0.1), []), ArgumentError, "expected a Module to train, got None"),
    "parameters instead of an optimizer": (lambda: train.Trainer(network(), LEAVES, []), ArgumentError, "expected an Optimizer, got a list of 2"),
    "a schedule that is a function": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), [], scheduler=lambda step: 0.1), ArgumentError, "expected a scheduler of optim.lr_scheduler, got a function"),
    "no loader": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), None), ArgumentError, "expected a loader of batches, got None"),
    "a data set's length as the test loader": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), [], 3), ArgumentError, "got an int"),
    "a loader without batches": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), []).fit(1), ArgumentError, "the loader yielded no batch"),
    "half an epoch": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), []).fit(0.5), ArgumentError, "epochs must be an int of at least 0, got 0.5"),
    "fewer than no epochs": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), []).fit(-1), ArgumentError, "got -1"),
    "saving with a loader that cannot resume": (lambda: train.Trainer(network(), optim.SGD(LEAVES, 0.1), []).save("x"), CheckpointError, "train with a data.DataLoader"),
    "no loader to evaluate on": (lambda: train.evaluate(network(), None), ArgumentError, "evaluate: expected a loader"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", OTHERS)
def test_a_mistake_is_a_clear_error(mistake):
    refuses(*OTHERS[mistake])


@pytest.mark.parametrize("outputs", [2, 5])
def test_a_model_with_another_number_of_classes_is_refused_before_the_first_step(outputs):
    images = data.Dataset(np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1]), tuple("abc"))
    normalize = data.Normalize((0.5,) * 3, (0.2,) * 3)
    loader = data.DataLoader(images, 2, transform=normalize, device="cpu")
    model = network(outputs)
    trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.1), loader)
    words = f"the model has {outputs} outputs, the data set 3 classes"
    refuses(lambda: trainer.fit(1), ShapeError, words)
    refuses(lambda: train.evaluate(model, loader), ShapeError, words)
    assert trainer.step == 0


def test_batches_on_a_different_device_from_the_model_are_refused(gpu):
    model = network()
    there = IMAGES.to(gpu)
    for batch, what in (((there, LABELS.to(gpu)), "images"), ((IMAGES, LABELS.to(gpu)), "labels")):
        trainer = train.Trainer(model, optim.SGD(model.parameters(), 0.1), [batch])
        words = f"the {what} are on {there.device}, the model on cpu"
        refuses(lambda trainer=trainer: trainer.fit(1), DeviceMismatch, words)
        refuses(lambda batch=batch: train.evaluate(model, [batch]), DeviceMismatch, words)


def test_evaluate_refuses_labels_past_the_outputs_on_a_gpu_too(gpu):
    model = network().to(gpu)
    batch = IMAGES.to(gpu), labels(0, 3, 2, 0).to(gpu)
    refuses(lambda: train.evaluate(model, [batch]), ArgumentError, "labels must be in 0..2")
