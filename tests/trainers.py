"""Trainers on synthetic images, whose values can be made to be not finite."""

import numpy as np

import gpucnn
from gpucnn import data, nn, optim, train
from gpucnn.autograd import Function
from gpucnn.device import to_host
from gpucnn.optim.lr_scheduler import LambdaLR

STEPS = 4  # in an epoch


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(900, 20),
        nn.ReLU(),
        nn.Linear(20, 10),
    )


def build(lr=0.01, callbacks=(), model=None, device="cpu", test=True, **options):
    """A Trainer on synthetic images whose learning rate is lr, or lr(step)."""
    gpucnn.manual_seed(0)
    model = (model or network()).to(device)
    images = data.Synthetic(n=8 * STEPS)
    normalize = data.Normalize(*data.channel_statistics(images.images))
    loader = data.DataLoader(images, 8, shuffle=True, transform=normalize, device=device)
    test_loader = data.DataLoader(images, 16, transform=normalize, device=device) if test else None
    optimizer = optim.SGD(model.parameters(), 1.0)  # times lr
    scheduler = LambdaLR(optimizer, lr if callable(lr) else lambda step: lr)
    return train.Trainer(
        model, optimizer, loader, test_loader, scheduler, callbacks=callbacks, **options
    )


def at(step, lr):
    """0.01, but `lr` in one step."""
    return lambda now: lr if now == step else 0.01


class _Gradient(Function):
    """The identity, whose gradient is multiplied."""

    name = "bad_gradient"

    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return x.copy()

    def backward(self, dy):
        return (dy * np.float32(self.factor)).astype(dy.dtype)


class In(nn.Module):
    """The identity; in one step its output or its gradient is multiplied by `value`."""

    trainer = None

    def __init__(self, step, what, value):
        self.step, self.what, self.value = step, what, value

    def forward(self, x):
        bad = self.value if self.trainer.step == self.step else 1.0
        return x * bad if self.what == "forward" else _Gradient(bad)(x)


def trainer_with(step, what="forward", value=np.nan, **options):
    """A Trainer with momentum whose layer 3 misbehaves in `step`, counted from 0."""
    layer = In(step, what, value)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(3072, 10),
        nn.BatchNorm1d(10),
        layer,
        nn.Dropout(0.2),
        nn.Linear(10, 10),
    )
    layer.trainer = trainer = build(model=model, **options)
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.01, momentum=0.9)
    trainer.scheduler = None
    return trainer


def whole_state(trainer):
    """Copies of the model's and the optimizer's arrays, and the number of updates."""
    optimizer = trainer.optimizer.state_dict()
    arrays = {**trainer.model.state_dict(), "velocity": optimizer["velocity"]}
    return {name: to_host(x).copy() for name, x in arrays.items()}, optimizer["steps"]


def assert_equal_states(a, b):
    assert a[1] == b[1]
    assert all(np.array_equal(array, b[0][name]) for name, array in a[0].items())
