"""Numbers that go bad: NaN and infinity in thirty places, trainers side by side, memory."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from reliability.tally import bounded
from trainers import assert_equal_states, build, trainer_with, whole_state

import gpucnn
from gpucnn import nn, ops, optim, train
from gpucnn.autograd import Function
from gpucnn.errors import DivergenceError, TrainingWarning

FAULT = "NaN or infinity in a loss, gradient, parameter or state"

LAYERS = {
    "Conv2d": lambda: nn.Conv2d(3, 3, 3, padding=1),
    "BatchNorm2d": lambda: nn.BatchNorm2d(3),
    "ReLU": nn.ReLU,
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(4),
    "LocalResponseNorm": nn.LocalResponseNorm,
    "Dropout": lambda: nn.Dropout(0.5),
    "ZeroPad2d": lambda: nn.ZeroPad2d(1),
    "Tanh": nn.Tanh,
    "Sigmoid": nn.Sigmoid,
}


class Broken(Function):
    """Passes one value that is not finite forward, or only such values backward.

    A ReLU would stop a single one.
    """

    name = "broken"

    def __init__(self, direction, value):
        self.direction, self.value = direction, value

    def forward(self, x):
        y = x.copy()
        if self.direction == "forward":
            y.reshape(-1)[x.size // 2] = self.value
        return y

    def backward(self, dy):
        return np.full_like(dy, self.value) if self.direction == "backward" else dy.copy()


class After(nn.Module):
    """A layer whose result, or whose result's gradient, is spoilt in the step with this number."""

    def __init__(self, layer, direction, value, step):
        self.layer, self.direction, self.value, self.step = layer, direction, value, step

    def forward(self, x):
        y = self.layer(x)
        here = self.trainer.step == self.step
        return Broken(self.direction if here else None, self.value)(y)


def broken_run(layer, direction, value, step, **options):
    body = After(layer, direction, value, step)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), body, nn.AdaptiveAvgPool2d(4), nn.Flatten())
    model.append(nn.Linear(48, 10))
    vars(body)["trainer"] = trainer = build(model=model, **options)
    trainer.optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    trainer.scheduler = None
    return trainer


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_named_and_the_finite_checkpoint_survives(
    layer, direction, value, tmp_path, tally
):
    with tally(FAULT), bounded():
        options = {"callbacks": [train.Checkpoints(tmp_path, every=1)], "test": False}
        trainer = broken_run(LAYERS[layer](), direction, value, 2, **options)
        message = rf"^epoch 1, step 3: .*\n  layer 1 \(After\), {direction}: .* broken is the first"
        with pytest.raises(DivergenceError, match=message):
            trainer.fit(1)
        saved = train.read_checkpoint(tmp_path / "last.safetensors")
        assert saved.info["step"] == 2
        assert all(np.isfinite(array).all() for array in saved.tensors.values())
        own = trainer.model.state_dict()
        assert all(np.array_equal(x, own[name]) for name, x in saved.part("model").items())


def _images(trainer):
    transform = trainer.loader.transform
    trainer.loader.transform = lambda images, generator: transform(images, generator) * np.nan


def _loss(trainer):
    trainer.loss = lambda logits, labels: ops.cross_entropy(logits, labels) / 0.0


def _loss_gradient(trainer):
    trainer.loss = lambda logits, labels: ops.sum(ops.sqrt(logits * 0.0))


def _parameter(trainer):
    trainer.model[3].weight.data[0, 0] = np.inf


def _update(trainer):
    trainer.optimizer.lr = 1e39


def _velocity(trainer):
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.01, momentum=0.9)
    trainer.optimizer.state_dict()["velocity"][...] = 3e38
    trainer.optimizer.state_dict()["velocity"][:16] = np.inf


def _adam(trainer):
    trainer.optimizer = optim.Adam(trainer.model.parameters(), 1e-3)
    trainer.loss = lambda logits, labels: ops.cross_entropy(logits, labels) * 1e25


def _weight_decay(trainer):
    trainer.optimizer = optim.SGD(trainer.model.parameters(), 0.01, weight_decay=1e39)


@pytest.mark.parametrize(
    "spoil",
    [_images, _loss, _loss_gradient, _parameter, _update, _velocity, _adam, _weight_decay],
    ids=lambda spoil: spoil.__name__.strip("_"),
)
def test_no_value_that_is_not_finite_reaches_a_checkpoint(spoil, tmp_path, tally):
    with tally(FAULT), bounded():
        trainer = build(callbacks=[train.Checkpoints(tmp_path, every=1)])
        trainer.save(tmp_path / "last.safetensors")
        trainer.scheduler = None
        spoil(trainer)
        with pytest.raises(DivergenceError):
            trainer.fit(1)
        saved = train.read_checkpoint(tmp_path / "last.safetensors")
        assert saved.info["step"] == 0
        assert all(np.isfinite(array).all() for array in saved.tensors.values())


@pytest.mark.parametrize("what", ["weight", "bias", "running_mean", "running_var"])
def test_saving_a_model_that_is_not_finite_keeps_the_file(what, tmp_path, tally):
    with tally(FAULT), bounded():
        model, path = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), tmp_path / "m"
        gpucnn.save(path, model)
        before = path.read_bytes()
        model[1].state_dict()[what][2] = np.nan
        with pytest.raises(DivergenceError, match=rf"layer 1 \(BatchNorm2d\): its .*{what} is not"):
            gpucnn.save(path, model)
        assert path.read_bytes() == before


@pytest.mark.parametrize("policy", ["skip", "halve-lr"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_skipped_step_leaves_no_trace(direction, policy, tally):
    states = []

    class Keep(train.Callback):
        def on_batch_end(self, trainer):
            states.append(whole_state(trainer))

    with tally(FAULT), bounded():
        trainer = trainer_with(1, direction, np.inf, on_nan=policy, callbacks=[Keep()])
        with pytest.warns(TrainingWarning, match=direction):
            trainer.fit(1)
        assert_equal_states(states[0], states[1])
        assert all(np.isfinite(x).all() for state, _ in states for x in state.values())


# --- side by side ---


def test_trainers_in_two_threads_end_with_the_bits_of_two_processes(tally):
    program = """
        import sys, threading
        import numpy as np
        from gpucnn import data, nn, optim, train
        from gpucnn.random import spawned

        def make(seed):
            g = np.random.default_rng(seed)
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, generator=g), nn.BatchNorm2d(8), nn.ReLU(),
                nn.MaxPool2d(3), nn.Flatten(), nn.Dropout(0.5, spawned(g)),
                nn.Linear(200, 10, generator=g),
            )
            images = data.Synthetic(n=64, seed=seed)
            crop = data.Compose([data.RandomCrop(32, 2), data.Normalize([0.5] * 3, [0.2] * 3)])
            loader = data.DataLoader(
                images, 8, shuffle=True, transform=crop, seed=seed, device="cpu"
            )
            adam = optim.Adam(model.parameters(), 1e-3)
            return train.Trainer(model, adam, loader, loader, verbose=False)

        trainers = [make(int(seed)) for seed in sys.argv[1:]]
        threads = [threading.Thread(target=t.fit, args=(3,)) for t in trainers]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        for t in trainers:
            print(b"".join(x.tobytes() for x in t.model.state_dict().values()).hex())
    """

    def run(*seeds):
        command = [sys.executable, "-c", textwrap.dedent(program), *map(str, seeds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()

    with tally("two trainers in two threads", times=2):
        first, second = run(1), run(2)
        assert len(first) == 1
        assert run(1, 2) == first + second


# --- memory ---


def test_two_hundred_epochs_do_not_grow_the_process(tmp_path, tally):
    program = """
        import gc
        import sys
        from pathlib import Path
        from gpucnn import data, nn, optim, train

        def memory():
            lines = open("/proc/self/status").read().splitlines()
            return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

        class Watch(train.Callback):
            def on_epoch_end(self, trainer):
                if trainer.epoch in (20, 220):
                    gc.collect()
                    print(memory())

        images, out = data.Synthetic(n=16), Path(sys.argv[1])
        normalize = data.Normalize(*data.channel_statistics(images.images))
        model = nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Linear(196, 10),
        )
        loaders = [data.DataLoader(images, 8, transform=normalize, device="cpu") for _ in range(2)]
        callbacks = [train.MetricsFile(out / "m.csv"), train.ProgressBar(), Watch()]
        sgd = optim.SGD(model.parameters(), 0.01, 0.9)
        train.Trainer(model, sgd, *loaders, callbacks=callbacks, verbose=False).fit(220)
    """
    with tally("200 more epochs in one process"):
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
        # One arena: a loader's new thread may otherwise start another, of 0.4 MB, at any time.
        env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        before, after = map(int, done.stdout.split())
        assert after < 1.01 * before
