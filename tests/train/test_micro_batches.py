"""Micro-batches: the update of the whole batch from parts of it, in the memory of a part."""

import numpy as np
import pytest
import replays
import trainers
from devices import host

import gpucnn
from gpucnn import cuda, data, nn, optim, train
from gpucnn.cpu.limits import resident_bytes
from gpucnn.errors import ArgumentError, DivergenceError, TrainingWarning
from gpucnn.random import manual_seed
from gpucnn.train.memory_limit import check_memory_limit
from gpucnn.train.micro_batches import MicroBatches

N = 20


def network(norm=False, dtype=np.float64):
    manual_seed(1)
    layers = [nn.Conv2d(3, 4, 3, stride=2), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(36, 5)).astype(dtype)


def images_and_labels(n=N):
    rng = np.random.default_rng(2)
    return rng.standard_normal((n, 8, 8, 3)), rng.integers(0, 5, n)


def trained(count, norm=False, device="cpu", steps=3, n=N, **options):
    """A Trainer after steps with micro_batches=count, in float64."""
    x, y = images_and_labels(n)
    model = network(norm).to(device)
    loader = data.DataLoader(data.TensorDataset(x, y), n, device=device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    trainer = train.Trainer(
        model, optimizer, loader, micro_batches=count, verbose=False, graph=False, **options
    )
    trainer.fit(steps)
    return trainer


@pytest.mark.parametrize("count", [2, 3, 20, 50])
def test_the_update_and_the_metrics_are_those_of_the_whole_batch(count, device):
    whole, parts = trained(1, device=device), trained(count, device=device)
    for name, value in whole.model.state_dict().items():
        found = host(parts.model.state_dict()[name])
        np.testing.assert_allclose(found, host(value), rtol=1e-9, atol=1e-12)
    for a, b in zip(whole.history, parts.history, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-9)
        assert b["train_accuracy"] == a["train_accuracy"]


def test_running_statistics_move_once_a_step_to_the_mean_over_the_parts():
    x, _ = images_and_labels()
    trainer = trained(3, norm=True, steps=1)
    start = network(norm=True)
    mean, var = np.zeros(4), np.zeros(4)
    for rows in (slice(0, 6), slice(6, 13), slice(13, 20)):
        y = start[0](gpucnn.tensor(x[rows])).numpy().reshape(-1, 4)
        mean += 0.1 * y.mean(0) * (rows.stop - rows.start) / N
        var += (0.9 + 0.1 * y.var(0, ddof=1)) * (rows.stop - rows.start) / N
    norm = trainer.model[1]
    np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-9)
    whole = trained(1, norm=True, steps=1).model[1]
    np.testing.assert_allclose(whole.running_mean.numpy(), mean, rtol=1e-9, atol=1e-12)


def test_a_run_with_micro_batches_resumes_to_the_same_bits(tmp_path):
    whole = trainers.build(micro_batches=3, verbose=False)
    whole.fit(2)
    first = trainers.build(micro_batches=3, verbose=False)
    first.fit(1)
    first.save(tmp_path / "run.safetensors")
    second = trainers.build(micro_batches=3, verbose=False)
    second.resume(tmp_path / "run.safetensors")
    second.fit(1)
    assert replays.differences(replays.state(whole), replays.state(second)) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_replayed_steps_have_the_bits_of_eager_steps(gpu, precision):
    states = []
    for graph in (False, True):
        trainer = replays.build(gpu, graph, micro_batches=2, precision=precision)
        with cuda.count_launches() as launches:
            trainer.fit(2)
        assert trainer._guard.graph.reason == ("" if graph else "graph=False")
        assert launches["graph"] == (2 * (replays.BATCHES - 1) - 2 if graph else 0)
        states.append(replays.state(trainer))
    assert replays.differences(*states) == []


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_part_that_is_not_finite_stops_the_step_and_is_named(on_nan):
    trainer = trainers.trainer_with(2, "forward", micro_batches=2, on_nan=on_nan, verbose=False)
    if on_nan == "stop":
        with pytest.raises(DivergenceError, match=r"step 3: the loss is nan.*\n  layer 3 \(In\)"):
            trainer.fit(1)
        assert trainer.step == 2
    else:
        with pytest.warns(TrainingWarning):
            trainer.fit(1)
        assert trainer.skipped == 1


def test_find_lr_works_in_parts_and_leaves_the_trainer_as_it_was():
    trainer = trainers.build(micro_batches=2, verbose=False)
    before = replays.state(trainer)
    found = train.find_lr(trainer, steps=12)
    assert len(found.lrs) > 1
    assert replays.differences(before, replays.state(trainer)) == []


def test_the_memory_limit_counts_the_activations_of_a_part():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(123008, 5))
    optimizer = optim.SGD(model.parameters(), 0.1)
    shape, batch = (64, 64, 3), 2048
    limit = resident_bytes() + (600 << 20)  # the activations of a whole batch take 2 GB
    with pytest.raises(ArgumentError, match="a step on 2048 images would need about"):
        check_memory_limit(model, optimizer, shape, batch, limit, 0)
    check_memory_limit(model, optimizer, shape, batch, limit, 0, None, 64)
    with pytest.raises(ArgumentError, match="micro_batches >= 1"):
        check_memory_limit(model, optimizer, shape, batch, limit, micro_batches=0)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "2"])
def test_what_is_no_count_is_refused(count):
    with pytest.raises(ArgumentError, match="Trainer: micro_batches must be a positive int, got"):
        trainers.build(micro_batches=count)


def test_one_of_several_processes_refuses_micro_batches():
    with pytest.raises(ArgumentError, match="micro_batches=2 with comm: a process has a part"):
        MicroBatches(2, alone=False)
