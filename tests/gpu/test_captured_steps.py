"""Captured steps of alexnet_cifar10 on a GPU: the bits of eager steps, without waiting."""

import numpy as np
import pytest
from waiting import host_never_waits

import gpucnn
from gpucnn import cuda, data, models, optim, train
from gpucnn.cuda import step_values
from gpucnn.device import Device, to_host
from gpucnn.train.divergence import StepWatch

BATCH = 2


def build(device, graph, precision=None):
    gpucnn.manual_seed(0)
    model = models.build("alexnet_cifar10").to(device)
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (5 * BATCH, 32, 32, 3), dtype=np.uint8)
    dataset = data.Dataset(images, rng.integers(0, 10, len(images)), tuple("abcdefghij"))
    normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
    transform = data.Compose([data.RandomCrop(32, 4), data.RandomHorizontalFlip(), normalize])
    loader = data.DataLoader(dataset, BATCH, shuffle=True, transform=transform, device=device)
    optimizer = optim.SGD(model.parameters(), 1e-4, momentum=0.9, nesterov=True)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return train.Trainer(
        model, optimizer, loader, scheduler=scheduler, graph=graph, precision=precision
    )


def weights(trainer):
    return {name: to_host(x).copy() for name, x in trainer.model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_alexnet_trains_and_resumes_with_the_bits_of_eager_steps(gpu, precision, tmp_path):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    eager = build(gpu, False, precision)
    eager.fit(2)
    first = build(gpu, True if gpu == "cudasim" else None, precision)
    with cuda.count_launches() as launches:
        first.fit(1)
    assert launches["graph"] == 3
    assert first._guard.graph.reason == ""
    first.save(tmp_path / "run.safetensors")
    second = build(gpu, True, precision)
    second.resume(tmp_path / "run.safetensors")
    second.fit(1)
    found = weights(second)
    assert all(np.array_equal(array, found[name]) for name, array in weights(eager).items())
    assert second.history[1]["train_loss"] == eager.history[1]["train_loss"]


def small(device, graph=True):
    gpucnn.manual_seed(0)
    model = gpucnn.nn.Sequential(
        gpucnn.nn.Conv2d(3, 4, 3), gpucnn.nn.ReLU(), gpucnn.nn.Dropout(0.4), gpucnn.nn.Flatten(),
        gpucnn.nn.Linear(4 * 6 * 6, 10),
    ).to(device)  # fmt: skip
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    dataset = data.Dataset(images, rng.integers(0, 10, len(images)), tuple("abcdefghij"))
    transform = data.Normalize((0.5,) * 3, (0.25,) * 3)
    loader = data.DataLoader(dataset, 2, shuffle=True, transform=transform, device=device)
    optimizer = optim.Adam(model.parameters(), 0.01)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    return train.Trainer(model, optimizer, loader, scheduler=scheduler, graph=graph)


@pytest.fixture
def _unwatched(monkeypatch):
    """Ask for no event: a device that is asked may do the work before it at once."""
    monkeypatch.setattr(StepWatch, "first", lambda watch, wait=False: None)


def replayed(trainer, device, first, last):
    """Replay batches first .. last - 1 after the capture; none of them waits for the device."""
    trainer.model.train()
    steps = list(trainer.loader)
    for batch in steps[:first]:
        trainer.train_step(*batch)
    with host_never_waits(device):
        for batch in steps[first:last]:
            trainer.train_step(*batch)
    assert trainer._guard.graph._captured.replays == last - 2


@pytest.mark.usefixtures("_unwatched")
def test_the_host_does_not_wait_for_replayed_steps(gpu):
    eager = small(gpu, False)
    eager.model.train()
    for batch in list(eager.loader)[:8]:
        eager.train_step(*batch)
    trainer = small(gpu)
    replayed(trainer, Device.parse(gpu), 3, 8)
    found = weights(trainer)
    assert all(np.array_equal(array, found[name]) for name, array in weights(eager).items())


def test_many_replays_reuse_the_slots_of_their_values(gpu):
    states = []
    for graph in (False, True):
        trainer = small(gpu, graph)
        trainer.fit(2)
        states.append(weights(trainer))
    assert all(np.array_equal(array, states[0][name]) for name, array in states[1].items())


class Done:
    """An event that is never waited for."""

    done = True

    def record(self, stream):
        pass


@pytest.mark.usefixtures("_unwatched")
def test_a_slot_that_is_overwritten_too_early_is_seen(gpu, monkeypatch):
    if gpu == "cudasim":
        pytest.skip("its copies on the current stream are complete at once")
    monkeypatch.setattr(step_values, "_SLOTS", 1)
    make = step_values.StepValues._new_slot
    hasty = lambda values: make(values)._replace(copied=Done())  # noqa: E731
    monkeypatch.setattr(step_values.StepValues, "_new_slot", hasty)
    trainer, eager = small(gpu), small(gpu, False)
    eager.model.train()
    gpucnn.manual_seed(0)
    for batch in list(eager.loader)[:8]:
        eager.train_step(*batch)
    gpucnn.manual_seed(0)
    replayed(trainer, Device.parse(gpu), 3, 8)
    found = weights(trainer)
    assert not all(np.array_equal(array, found[name]) for name, array in weights(eager).items())
