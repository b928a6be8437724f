"""Steps replayed as a CUDA graph have the bits of eager steps.

The tests run on the simulator and, where there is one, on a GPU.
"""

import numpy as np
import pytest
from devices import host
from replays import (
    BATCH,
    BATCHES,
    ON_DEVICE,
    batches,
    build,
    dataset,
    differences,
    network,
    on_the_host,
    replayed,
    run_steps,
    state,
)  # fmt: skip

import gpucnn
from gpucnn import cuda, data, nn, optim
from gpucnn.cuda.step_values import StepValues
from gpucnn.device import to_host, working_on
from gpucnn.errors import DivergenceError
from gpucnn.optim.half_copies import HalfCopy
from gpucnn.optim.lr_scheduler import LambdaLR


def two_groups(model):
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": weights}, {"params": others, "lr": 0.02, "weight_decay": 0.0}]


@pytest.mark.parametrize("transform", [ON_DEVICE, on_the_host], ids=["on device", "on host"])
@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW])
def test_replayed_steps_have_the_bits_of_eager_steps(gpu, make, transform):
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph, make=make, transform=transform, params=two_groups)
        with cuda.count_launches() as launches:
            trainer.fit(2)
        assert launches["graph"] == (2 * (BATCHES - 1) - 2 if graph else 0)
        assert trainer._guard.graph.reason == ("" if graph else "graph=False")
        states.append(state(trainer))
    assert differences(*states) == []


def decoder():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.ConvTranspose2d(8, 6, 3, stride=2),
        nn.LayerNorm(6),
        nn.Softplus(),
        nn.Upsample(size=4),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AvgPool2d(8),
        nn.Identity(),
        nn.Flatten(),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_of_a_decoder_have_the_bits_of_eager_steps(gpu, precision):
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph, model=decoder, precision=precision)
        counts = run_steps(trainer, 5)
        assert replayed(counts) == ([0, 0, 1, 1, 1] if graph else [0] * 5)
        states.append(state(trainer))
    assert differences(*states) == []
    gradients = [host(p.grad) for p in trainer.model.parameters()]
    assert all(np.isfinite(g).all() and g.any() for g in gradients)


def probabilities():
    return nn.Sequential(network(), nn.LogSoftmax())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_replayed_steps_with_a_likelihood_have_the_bits_of_eager_steps(gpu, reduction):
    states = []
    for graph in (False, True):
        loss = nn.NLLLoss(gpucnn.arange(1.0, 7.0, device=gpu), reduction)
        trainer = build(gpu, graph, model=probabilities, loss=loss)
        counts = run_steps(trainer, 5)
        assert replayed(counts) == ([0, 0, 1, 1, 1] if graph else [0] * 5)
        states.append(state(trainer))
    assert differences(*states) == []


def test_the_third_step_and_those_after_it_are_one_launch(gpu):
    trainer = build(gpu)
    counts = run_steps(trainer, 5)
    assert replayed(counts) == [0, 0, 1, 1, 1]
    assert all(sum(launches.values()) == 1 for launches in counts[2:])
    assert sum(counts[1].values()) > 10


def test_a_smaller_batch_runs_eagerly_and_does_not_end_the_graph(gpu):
    trainer = build(gpu)
    run_steps(trainer, 3)
    small = next(b for b in batches(trainer, BATCHES) if len(b[1]) == 2)
    with cuda.count_launches() as launches:
        trainer.train_step(*small)
    assert launches["graph"] == 0
    assert sum(launches.values()) > 10
    assert replayed(run_steps(trainer, 2)) == [1, 1]


def test_evaluation_between_steps_changes_nothing(gpu):
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph)
        trainer.test_loader = data.DataLoader(
            dataset(), 8, transform=data.Normalize((0.5,) * 3, (0.3,) * 3), device=gpu
        )
        trainer.fit(2)
        states.append(state(trainer))
    assert differences(*states) == []


@pytest.mark.parametrize("first", [False, True])
def test_a_run_resumes_from_eager_steps_into_replayed_ones_and_back(gpu, tmp_path, first):
    whole = build(gpu, False, make=optim.Adam)
    whole.fit(3)
    start = build(gpu, first, make=optim.Adam)
    start.fit(2)
    start.save(tmp_path / "run.safetensors")
    rest = build(gpu, not first, make=optim.Adam)
    rest.resume(tmp_path / "run.safetensors")
    rest.fit(1)
    assert differences(state(whole), state(rest)) == []


def test_a_checkpoint_in_the_middle_of_an_epoch_holds_the_metrics_of_the_graph(gpu, tmp_path):
    trainer = build(gpu)
    run_steps(trainer, 4)
    trainer.save(tmp_path / "run.safetensors")
    other = build(gpu, False)
    run_steps(other, 4)
    assert trainer.metrics.state_dict() == other.metrics.state_dict()
    resumed = build(gpu)
    resumed.resume(tmp_path / "run.safetensors")
    assert resumed.metrics.state_dict() == other.metrics.state_dict()


def test_two_trainers_take_turns(gpu):
    pair = []
    for lr in (0.1, 0.01):
        states = []
        for graph in (False, True):
            trainer = build(gpu, graph, settings={"lr": lr})
            run_steps(trainer, 5)
            states.append(state(trainer))
        assert differences(*states) == []
        pair.append(trainer)
    steps = [batches(trainer, 2) for trainer in pair]
    for i in range(2):
        for trainer, mine in zip(pair, steps, strict=True):
            with cuda.count_launches() as launches:
                trainer.train_step(*mine[i])
            assert launches == {"graph": 1}


def test_metrics_of_an_earlier_epoch_keep_their_values(gpu):
    trainer = build(gpu)
    run_steps(trainer, 4)
    earlier, values = trainer.metrics, trainer.metrics.state_dict()
    trainer.metrics = type(earlier)()
    run_steps(trainer, 2)
    assert earlier.state_dict() == values
    assert trainer.metrics.count == 2 * BATCH


def test_gradients_are_those_of_the_latest_step(gpu):
    found = []
    for graph in (False, True):
        trainer = build(gpu, graph)
        run_steps(trainer, 5)
        found.append([to_host(p.grad).copy() for p in trainer.model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def read_parameters(trainer):
    """Drop the copies in half precision, as a checkpoint or a callback does."""
    if trainer.step % 2:
        assert all(np.isfinite(to_host(p.data)).all() for p in trainer.model.parameters())


def halve_a_filter(trainer):
    if trainer.step in (4, 6):
        with working_on(trainer.model.parameters()[0].device):
            trainer.model.layers[3].weight.data[...] *= 0.5


def wide_network():
    """Convolutions on tensor cores, which read copies of their filters in half precision."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(16, 6, 3),
        nn.AvgPool2d(6),
        nn.Flatten(),
    )


@pytest.mark.parametrize(
    ("dtype", "after"),
    [("float16", read_parameters), ("float16", halve_a_filter), ("bfloat16", lambda trainer: None)],
)
def test_replayed_steps_under_autocast_have_the_bits_of_eager_steps(gpu, dtype, after):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph, model=wide_network)
        with gpucnn.autocast(dtype):
            counts = run_steps(trainer, 7, after)
        assert replayed(counts) == ([0, 0] + [1] * 5 if graph else [0] * 7)
        states.append(state(trainer))
        with cuda.count_launches() as launches:  # float32 again: another precision
            trainer.train_step(*batches(trainer, 1)[0])
        assert launches["graph"] == 0
    assert differences(*states) == []


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_precision_has_the_bits_of_eager_steps_and_resumes_into_them(gpu, precision, tmp_path):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    start = {"scale": 2.0**22, "good_steps": 0, "skipped": 0}  # overflows in a few steps
    eager, trainer = (
        build(gpu, graph, model=wide_network, precision=precision) for graph in (False, True)
    )
    for each, epochs in ((eager, 2), (trainer, 1)):
        gpucnn.manual_seed(0)
        if precision == "fp16":
            each.scaler.load_state_dict(start)
        each.fit(epochs)
    assert trainer._guard.graph._captured.replays == BATCHES - 3
    trainer.save(tmp_path / "run.safetensors")
    numbers = gpucnn.random.get_state()
    for graph in (True, False):
        resumed = build(gpu, graph, model=wide_network, precision=precision)
        resumed.resume(tmp_path / "run.safetensors")
        resumed.fit(1)
        assert differences(state(eager), state(resumed)) == []
    gpucnn.random.set_state(numbers)
    trainer.fit(1)
    assert differences(state(eager), state(trainer)) == []
    if precision == "fp16":
        scales = [t.scaler.state_dict() for t in (eager, trainer)]
        assert scales[0] == scales[1]
        assert scales[0]["skipped"] > 3


def test_copies_in_half_precision_that_are_outdated_are_seen(gpu, monkeypatch):
    monkeypatch.setattr(HalfCopy, "refresh", HalfCopy.offer)
    states = []
    for graph in (False, True):
        trainer = build(gpu, graph, model=wide_network)
        with gpucnn.autocast("float16"):
            run_steps(trainer, 8, halve_a_filter)
        states.append(state(trainer))
    assert "3.weight" in differences(*states)


# --- seeded faults ---


@pytest.mark.parametrize(
    ("dtype", "damaged"),
    [(np.float32, "velocity"), (np.uint64, "velocity"), (np.int64, "losses")],
    ids=["learning rate", "dropout", "draws and labels"],
)
def test_a_value_that_is_frozen_at_capture_is_seen(gpu, monkeypatch, dtype, damaged):
    eager = build(gpu, False)
    eager.fit(2)
    add = StepValues.add

    def frozen(values, produce, kind, shape=()):
        if kind != dtype:
            return add(values, produce, kind, shape)
        first = []

        def once():
            value = np.copy(produce())
            first.append(value)
            return first[0]

        return add(values, once, kind, shape)

    monkeypatch.setattr(StepValues, "add", frozen)
    trainer = build(gpu)
    trainer.fit(2)
    assert trainer._guard.graph.reason == ""
    assert damaged in differences(state(eager), state(trainer))


# --- divergence ---


@pytest.mark.parametrize("bad", [3, 5])
def test_a_step_that_is_not_finite_stops_a_replayed_run(gpu, bad):
    texts = []
    for graph in (False, True):
        trainer = build(gpu, graph)
        trainer.scheduler = LambdaLR(trainer.optimizer, lambda step: 1e30 if step == bad else 1.0)
        with pytest.raises(DivergenceError) as error:
            trainer.fit(3)
        texts.append(str(error.value).splitlines()[0])
        arrays = state(trainer)
        assert np.isfinite(arrays["0.weight"]).all()
    assert texts[0] == texts[1]
