"""MultiOptimizer: the bits of its optimizers one after another, in one state, in a Trainer."""

import json

import numpy as np
import pytest
import replays
import trainers
from devices import host, leaf, tensor

import gpucnn
from gpucnn import cuda, optim
from gpucnn.errors import ArgumentError, CheckpointError, DtypeError, GraphError
from gpucnn.optim.finite import Overflow, step_if_finite
from gpucnn.optim.lr_scheduler import LambdaLR

SHAPES = [(4, 3, 3, 2), (5,), (6, 4), (7,), *[(2,)] * 17]
FILTERS = [0, 2]
OTHERS = [i for i in range(len(SHAPES)) if i not in FILTERS]


def leaves(device, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [leaf(rng.standard_normal(s).astype(dtype), device) for s in SHAPES]


def several(parameters):
    """SGD for a bias, Adam for the other vectors, and Muon."""
    sgd = optim.SGD([parameters[1]], 0.1, momentum=0.85, nesterov=True, weight_decay=0.01)
    adam = optim.Adam(
        [{"params": [parameters[3]], "lr": 0.02}, {"params": [parameters[i] for i in OTHERS[2:]]}]
    )
    return sgd, adam, optim.Muon([parameters[i] for i in FILTERS])


def set_gradients(parameters, step, some=0.7):
    rng = np.random.default_rng(step)
    for p in parameters:
        gradient = rng.standard_normal(p.shape)
        p.grad = tensor(gradient, str(p.device), p.dtype).data if rng.random() < some else None


def bits(parameters):
    return [host(p).tobytes() for p in parameters]


def test_steps_have_the_bits_of_the_optimizers_one_after_another(device):
    ours, theirs = leaves(device), leaves(device)
    optimizer, apart = optim.MultiOptimizer(*several(ours)), several(theirs)
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        for each in apart:
            each.step()
    assert bits(ours) == bits(theirs)
    assert optimizer.steps == 4
    optimizer.zero_grad()
    assert all(p.grad is None for p in ours)


def test_a_state_continues_to_the_same_bits(device):
    whole = leaves(device)
    optimizer = optim.MultiOptimizer(*several(whole))
    for step in range(3):
        set_gradients(whole, step)
        optimizer.step()
    optimizer.param_groups[2]["lr"] = 0.005
    state = {
        k: host(v).copy() if hasattr(v, "dtype") else json.loads(json.dumps(v))
        for k, v in optimizer.state_dict().items()
    }
    rest = [leaf(host(p), device) for p in whole]
    other = optim.MultiOptimizer(*several(rest))
    other.load_state_dict(state)
    for step in range(3, 6):
        for parameters, each in ((whole, optimizer), (rest, other)):
            set_gradients(parameters, step)
            each.step()
    assert bits(whole) == bits(rest)
    assert other.steps == 6


def test_groups_and_rates_are_those_of_the_optimizers_in_their_order():
    parameters = leaves("cpu")
    sgd, adam, muon = several(parameters)
    inner = optim.MultiOptimizer(sgd, adam)
    optimizer = optim.MultiOptimizer(inner, muon)
    assert optimizer.parts == (sgd, adam, muon)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02, 1e-3, 0.24]
    assert optimizer.param_groups[3] is muon.param_groups[0]
    schedule = LambdaLR(optimizer, [lambda step: max(1 - step / 2, 0.0), *[lambda step: 1.0] * 3])
    schedule.step()
    assert sgd.lr == pytest.approx(0.05)
    schedule.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.02, 1e-3, 0.24]
    optimizer.lr = 0.5
    assert (sgd.lr, muon.lr) == (0.5, 0.5)
    assert repr(optimizer).startswith("MultiOptimizer(SGD(1 parameters, lr=0.5")


def test_an_error_of_one_optimizer_changes_no_parameter():
    parameters = leaves("cpu")
    optimizer = optim.MultiOptimizer(*several(parameters))
    set_gradients(parameters, 0, some=1)
    before = bits(parameters)
    optimizer.param_groups[-1]["momentum"] = 2.0
    with pytest.raises(ArgumentError, match="Muon: momentum must be in"):
        optimizer.step()
    optimizer.param_groups[-1]["momentum"] = 0.6
    parameters[2].data = parameters[2].data.copy()
    with pytest.raises(GraphError, match="Muon: the array of parameter 1 was replaced"):
        optimizer.step()
    assert bits(parameters) == before
    assert [part.steps for part in optimizer.parts] == [0, 0, 0]


def test_a_step_that_is_not_finite_changes_nothing_in_any_optimizer():
    parameters = leaves("cpu")
    optimizer = optim.MultiOptimizer(*several(parameters))
    set_gradients(parameters, 0, some=1)
    assert step_if_finite(optimizer) is None
    assert all(part._bounds is not None for part in optimizer.parts)
    before = (
        bits(parameters),
        bits(x for x in optimizer.state_dict().values() if hasattr(x, "dtype")),
    )
    set_gradients(parameters, 1, some=1)
    parameters[2].grad[0] = np.nan
    assert step_if_finite(optimizer) is parameters[2]
    set_gradients(parameters, 1, some=1)
    parameters[1].grad[0] = np.finfo(np.float32).max
    optimizer.param_groups[0]["lr"] = 10.0
    with np.errstate(over="ignore", invalid="ignore"):
        refused = step_if_finite(optimizer)
    assert isinstance(refused, Overflow)
    assert refused.parameter is parameters[1]
    after = (
        bits(parameters),
        bits(x for x in optimizer.state_dict().values() if hasattr(x, "dtype")),
    )
    assert after == before
    assert optimizer.steps == 1


@pytest.mark.usefixtures("current")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_scale_skips_the_step_of_all_optimizers(device, bad):
    parameters = leaves(device)
    optimizer = optim.MultiOptimizer(*several(parameters))
    scaler = optim.GradScaler(device, init_scale=8.0, growth_interval=2)
    twins = leaves(device)
    plain = optim.MultiOptimizer(*several(twins))
    for step in range(2):
        set_gradients(parameters, step, some=1)
        set_gradients(twins, step, some=1)
        for p in parameters:
            p.grad = p.grad * np.float32(scaler.get_scale())
        scaler.step(optimizer)
        plain.step()
    assert bits(parameters) == bits(twins)
    assert scaler.get_scale() == 16
    set_gradients(parameters, 2, some=1)
    gradient = host(parameters[2].grad).copy()
    gradient[-1, -1] = bad
    parameters[2].grad = tensor(gradient, device).data
    scaler.step(optimizer)
    assert bits(parameters) == bits(twins)
    assert (scaler.get_scale(), scaler.skipped) == (8, 1)


# --- in a Trainer ---


def filters_and_others(parameters, lr=0.01):
    parameters = list(parameters)
    vectors = [p for p in parameters if p.ndim == 1]
    return optim.MultiOptimizer(
        optim.SGD([{"params": vectors[:1]}, {"params": vectors[1:]}], lr, 0.85, nesterov=True),
        optim.Muon([p for p in parameters if p.ndim > 1], 0.02),
    )


def rates(optimizer, end, freeze=False):
    """The first group ends early, as the recipe's whitening bias does."""
    return LambdaLR(
        optimizer,
        [lambda step: max(1 - step / 3, 0.0), *[lambda step: max(1 - step / end, 0.0)] * 2],
        freeze_at_zero=freeze,
    )


def trainer_on(device, freeze=False, **options):
    gpucnn.manual_seed(0)
    model = trainers.network().to(device)
    trainer = trainers.build(model=model, device=device, test=False, verbose=False, **options)
    optimizer = filters_and_others(model.parameters())
    return gpucnn.train.Trainer(
        model, optimizer, trainer.loader, None, rates(optimizer, 3 * trainers.STEPS, freeze),
        verbose=False, **options,
    )  # fmt: skip


class OnBatchEnd(gpucnn.train.Callback):
    def __init__(self, call):
        self.call = call

    def on_batch_end(self, trainer):
        self.call()


def stop_at(step):
    class Stop(gpucnn.train.Callback):
        def on_batch_end(self, trainer):
            if trainer.step == step:
                trainer.stop()

    return Stop()


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("step", [2, 6])
def test_a_run_resumes_to_the_same_bits_also_after_one_schedule_has_ended(step, freeze, tmp_path):
    whole = trainer_on("cpu", freeze)
    whole.fit(3)
    first = trainer_on("cpu", freeze)
    first.callbacks = [stop_at(step)]
    with pytest.raises(KeyboardInterrupt):
        first.fit(3)
    first.save(tmp_path / "run.safetensors")
    second = trainer_on("cpu", freeze)
    second.resume(tmp_path / "run.safetensors")
    second.fit(3 - second.epoch)
    assert replays.differences(replays.state(whole), replays.state(second)) == []
    assert whole.optimizer.param_groups[0]["lr"] == 0.0
    plain = trainers.build(verbose=False, test=False)
    with pytest.raises(CheckpointError, match="trained with MultiOptimizer, the trainer has SGD"):
        plain.resume(tmp_path / "run.safetensors")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_replayed_steps_have_the_bits_of_eager_steps(gpu, precision):
    if precision == "bf16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    states = []
    for graph in (False, True):
        trainer = replays.build(gpu, graph, make=filters_and_others, precision=precision)
        with cuda.count_launches() as launches:
            trainer.fit(2)
        assert trainer._guard.graph.reason == ("" if graph else "graph=False")
        assert launches["graph"] == (2 * (replays.BATCHES - 1) - 2 if graph else 0)
        states.append(replays.state(trainer))
    assert replays.differences(*states) == []


def test_a_group_that_is_frozen_ends_with_the_same_parameters_in_fewer_gradients(gpu):
    states, gradients = [], []
    for freeze, graph in ((False, False), (True, False), (True, None)):
        trainer = trainer_on(gpu, freeze, graph=graph)
        bias = trainer.optimizer.param_groups[0]["params"][0]
        found = []
        trainer.callbacks = [OnBatchEnd(lambda bias=bias, to=found: to.append(bias.grad is None))]
        trainer.fit(2)
        states.append(replays.state(trainer))
        gradients.append(found)
    assert gradients == [[False] * 8, [*[False] * 2, *[True] * 6], [*[False] * 2, *[True] * 6]]
    assert replays.differences(*states[1:]) == []
    assert replays.differences(*states[:2]) == ["0.velocity"]  # of the frozen bias


# --- mistakes ---


def test_what_cannot_be_combined_is_refused():
    parameters = leaves("cpu")
    sgd, adam, muon = several(parameters)
    with pytest.raises(ArgumentError, match="expected Optimizers, got none"):
        optim.MultiOptimizer()
    with pytest.raises(ArgumentError, match="argument 0 is a list"):
        optim.MultiOptimizer([sgd, adam])
    with pytest.raises(ArgumentError, match="MultiOptimizer: a parameter is listed twice"):
        optim.MultiOptimizer(sgd, sgd)
    with pytest.raises(DtypeError, match="MultiOptimizer: parameters of both float32 and float64"):
        optim.MultiOptimizer(sgd, optim.SGD([leaf([1.0], "cpu", np.float64)]))
    sgd.step()
    with pytest.raises(ArgumentError, match="different numbers of steps: 1, 0"):
        optim.MultiOptimizer(sgd, muon)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(optimizers=["SGD", "Adam"]), "expected that of SGD, Adam, Muon, got"),
        (lambda s: s.pop("optimizers"), "got that of one optimizer"),
        (lambda s: s.pop("2.velocity"), "Muon: the state does not fit: expected velocity"),
        (lambda s: s.pop("1.counts"), "Adam: the state does not fit: expected counts"),
        (lambda s: s["param_groups"].pop(), "expected 4 groups of 1, 1, 17, 2 parameters"),
        (lambda s: s["param_groups"][3].pop("rescale"), "rescale is missing"),
        (lambda s: s.update(steps="x"), "MultiOptimizer: the state does not fit: "),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    parameters = leaves("cpu")
    optimizer = optim.MultiOptimizer(*several(parameters))
    state = optim.MultiOptimizer(*several(leaves("cpu"))).state_dict()
    state["0.velocity"] = state["0.velocity"] + 1
    change(state)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(state)
    assert not optimizer.parts[0]._state["velocity"].any()
