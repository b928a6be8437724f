"""Two Trainers in two threads end like each by itself."""

import itertools
import threading
import warnings

import numpy as np
import pytest
from trainers import assert_equal_states, whole_state

import gpucnn
from gpucnn import data, models, nn, optim, train
from gpucnn.random import default_generator, spawned


def make(seed, device="cpu", convolutions=False, **options):
    """A small network with everything that draws or keeps statistics, and its own generators."""
    g = np.random.default_rng(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, generator=g),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(3),
        *([] if convolutions else [nn.Flatten()]),
        nn.Dropout(0.5, spawned(g)),
        *(
            [nn.Conv2d(8, 10, 5, generator=g), nn.Flatten()]
            if convolutions
            else [nn.Linear(200, 10, generator=g)]
        ),
    )
    images = data.Synthetic(n=32, seed=seed)
    transform = data.Compose(
        [data.RandomCrop(32, 2), data.Normalize(*data.channel_statistics(images.images))]
    )
    loader = data.DataLoader(images, 4, shuffle=True, transform=transform, seed=seed, device=device)
    model = model.to(device)
    optimizer = optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return train.Trainer(model, optimizer, loader, loader, **options)


def fit_in_threads(trainers, epochs):
    errors = []

    def fit(trainer):
        try:
            trainer.fit(epochs)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fit, args=(trainer,)) for trainer in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_two_trainers_in_two_threads_end_with_the_bits_of_each_alone():
    alone = []
    for seed in (1, 2):
        trainer = make(seed)
        trainer.fit(2)
        alone.append(whole_state(trainer))
    before = gpucnn.random.get_state()
    together = [make(1), make(2)]
    fit_in_threads(together, 2)
    assert repr(gpucnn.random.get_state()) == repr(before)  # nothing drew from it
    for trainer, expected in zip(together, alone, strict=True):
        state = whole_state(trainer)[0]
        assert all(np.array_equal(array, state[name]) for name, array in expected[0].items())


@pytest.mark.parametrize("name", ["alexnet_cifar10", "vgg16_cifar"])
def test_a_model_with_a_generator_draws_dropout_from_generators_of_its_own(name):
    model = models.build(name, generator=np.random.default_rng(3))
    own = [m.generator for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len({id(g) for g in own}) == len(own) == 2
    assert default_generator() not in own
    assert own[0].integers(2**63) != own[1].integers(2**63)
    again = models.build(name, generator=np.random.default_rng(3))
    first = next(m.generator for m in again.modules() if isinstance(m, nn.Dropout))
    own = [m.generator for m in models.build(name).modules() if isinstance(m, nn.Dropout)]
    assert first is not None
    assert own == [None, None]


@pytest.mark.parametrize(
    "bits", [np.random.PCG64(5), np.random.Philox(5), np.random.Philox(key=5), np.random.SFC64(5)]
)
def test_spawning_does_not_change_what_a_generator_draws(bits):
    generator = np.random.Generator(bits)
    before = repr(bits.state)
    first, second = spawned(generator), spawned(generator)
    assert repr(bits.state) == before
    assert isinstance(first.bit_generator, np.random.Philox)
    assert first is not second
    assert spawned(None) is None


def test_the_weights_of_a_model_do_not_depend_on_its_dropout():
    g = np.random.default_rng(7)
    model = models.build("alexnet_cifar10", generator=g)
    again = np.random.default_rng(7)
    expected = [nn.init.kaiming_normal(p.shape, again) for p in model.parameters() if p.ndim > 1]
    weights = [p.data for p in model.parameters() if p.ndim > 1]
    assert all(map(np.array_equal, weights, expected))


def test_a_decorated_function_keeps_the_mode_of_each_thread():
    entered, leave = threading.Event(), threading.Event()

    @gpucnn.no_grad()
    def run(inside):
        inside()

    modes = []

    def other():
        with gpucnn.no_grad():
            run(lambda: (entered.set(), leave.wait(10)))
            modes.append(gpucnn.autograd.grad_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    run(lambda: (leave.set(), thread.join()))  # the other thread leaves first
    assert modes == [False]
    assert gpucnn.autograd.grad_enabled()


def test_a_replay_in_one_thread_does_not_watch_the_other():
    expected = make(1)
    expected.fit(2)
    calm, broken = make(1), make(2, on_nan="skip")
    loss, factors = broken.loss, itertools.cycle([float("nan"), 1.0, 1.0])
    broken.loss = lambda logits, labels: loss(logits, labels) * next(factors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit_in_threads([calm, broken], 2)
    assert broken.skipped
    state = whole_state(calm)[0]
    assert all(np.array_equal(x, state[name]) for name, x in whole_state(expected)[0].items())


def test_trainers_that_replay_graphs_in_two_threads_end_with_the_bits_of_each_alone():
    alone = []
    for seed in (1, 2):
        trainer = make(seed, "cudasim", convolutions=True, graph=False)
        trainer.fit(2)
        alone.append(whole_state(trainer))
    together = [make(seed, "cudasim", convolutions=True, graph=True) for seed in (1, 2)]
    fit_in_threads(together, 2)
    for trainer, expected in zip(together, alone, strict=True):
        assert trainer._guard.graph._captured.replays == 2 * 8 - 2
        assert_equal_states(whole_state(trainer), expected)
