"""Learning rate schedulers compared with PyTorch's, and invalid arguments."""

import json
import math

import pytest

import gpucnn
from gpucnn import optim
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.optim import lr_scheduler

RATES = (0.1, 0.4)  # of two groups


def optimizer(*rates):
    tensors = [gpucnn.tensor([1.0], requires_grad=True) for _ in rates]
    return optim.SGD([{"params": [t], "lr": lr} for t, lr in zip(tensors, rates, strict=True)])


def rates(scheduler, steps):
    """The rates of each group at `steps` steps, [[group 0, group 1], ...]."""
    found = []
    for _ in range(steps):
        groups = scheduler.optimizer.param_groups
        found.append([group["lr"] for group in groups])
        assert scheduler.get_last_lr() == found[-1]
        scheduler.step()
    return found


def warm_up(module, optimizer):
    return module.SequentialLR(
        optimizer,
        [
            module.LinearLR(optimizer, start_factor=0.1, total_iters=4),
            module.CosineAnnealingLR(optimizer, T_max=9),
            module.StepLR(optimizer, 2),
        ],
        milestones=[4, 12],
    )


SAME_AS_PYTORCH = {
    "StepLR": lambda module, o: module.StepLR(o, 3),
    "StepLR gamma": lambda module, o: module.StepLR(o, step_size=2, gamma=0.5),
    "CosineAnnealingLR": lambda module, o: module.CosineAnnealingLR(o, 20),
    "CosineAnnealingLR eta_min": lambda module, o: module.CosineAnnealingLR(o, 7, eta_min=0.02),
    "LinearLR": lambda module, o: module.LinearLR(o),
    "LinearLR down": lambda module, o: module.LinearLR(o, 1.0, 0.0, total_iters=11),
    "LambdaLR": lambda module, o: module.LambdaLR(o, lambda step: 0.9**step),
    "LambdaLR list": lambda module, o: module.LambdaLR(o, [lambda step: 1 / (step + 1), math.exp]),
    "SequentialLR": warm_up,
}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SAME_AS_PYTORCH)
def test_every_groups_rate_equals_pytorchs_at_every_step(name):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    build = SAME_AS_PYTORCH[name]
    groups = [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in RATES]
    theirs = build(torch.optim.lr_scheduler, torch.optim.SGD(groups))
    ours = build(lr_scheduler, optimizer(*RATES))
    assert ours.last_epoch == theirs.last_epoch == 0
    expected = rates(theirs, 25)
    for found, their in zip(rates(ours, 25), expected, strict=True):
        assert found == pytest.approx(their, rel=1e-9, abs=1e-15)
    assert ours.last_epoch == theirs.last_epoch == 25


def test_rates_accumulate_no_rounding_error():
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer(0.1), 1000)
    found = rates(scheduler, 1001)
    assert found[500] == [pytest.approx(0.05, rel=1e-15)]
    assert found[1000] == [0]


def triangular(lr, total_steps, steps, **settings):
    scheduler = lr_scheduler.TriangularLR(optimizer(lr), total_steps, **settings)
    return [lr for (lr,) in rates(scheduler, steps)]


def test_triangular_rises_linearly_over_a_quarter_and_falls_linearly_to_zero():
    found = triangular(0.8, 16, 30)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:17] == pytest.approx([0.8 * (16 - step) / 12 for step in range(4, 17)])
    assert found[16:] == [0] * 14
    assert max(triangular(0.8, 3128, 3128)) == pytest.approx(0.8)


def test_triangular_of_one_step_and_without_a_rise():
    assert triangular(0.5, 1, 2) == [0.5, 0]
    assert triangular(1.0, 4, 4, pct_start=0) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_triangular_rises_like_pytorchs_linear_one_cycle():
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=9.0),
        max_lr=0.8, total_steps=40, pct_start=0.25, anneal_strategy="linear",
        div_factor=10, cycle_momentum=False,
    )  # fmt: skip
    found = triangular(0.8, 40, 10)
    for lr in found:
        assert lr == pytest.approx(theirs.get_last_lr()[0])
        theirs.optimizer.step()
        theirs.step()


def test_a_second_scheduler_starts_from_the_initial_rates():
    own = optimizer(*RATES)
    rates(lr_scheduler.StepLR(own, 1), 3)
    assert lr_scheduler.StepLR(own, 1).get_last_lr() == list(RATES)
    assert [group["initial_lr"] for group in own.param_groups] == list(RATES)


@pytest.mark.parametrize("name", SAME_AS_PYTORCH)
def test_a_loaded_state_continues_with_the_same_rates(name):
    build = SAME_AS_PYTORCH[name]
    whole = build(lr_scheduler, optimizer(*RATES))
    rates(whole, 6)
    state = json.loads(json.dumps(whole.state_dict()))
    again = build(lr_scheduler, optimizer(9.0, 8.0))
    again.load_state_dict(state)
    assert again.get_last_lr() == whole.get_last_lr()
    again.step()
    whole.step()
    assert rates(again, 10) == rates(whole, 10)


def test_loading_a_state_restores_its_settings():
    first = lr_scheduler.StepLR(optimizer(1.0), 2, gamma=0.5)
    other = lr_scheduler.StepLR(optimizer(1.0), 7)
    other.load_state_dict(first.state_dict())
    assert rates(other, 4) == rates(first, 4)


@pytest.mark.parametrize("name", ["StepLR", "LambdaLR", "SequentialLR"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(name):
    scheduler = SAME_AS_PYTORCH[name](lr_scheduler, optimizer(*RATES))
    before = scheduler.state_dict()
    cosine = lr_scheduler.CosineAnnealingLR(optimizer(*RATES), 5)
    cosine.step()
    with pytest.raises(CheckpointError, match=f"{name}: the state does not fit: expected .*, got"):
        scheduler.load_state_dict(cosine.state_dict())
    three = lr_scheduler.StepLR(optimizer(1, 2, 3), 3).base_lrs
    with pytest.raises(CheckpointError, match=f"{name}: .* expected 2 parameter groups, got 3"):
        scheduler.load_state_dict({**before, "last_epoch": 9, "base_lrs": three})
    if name == "SequentialLR":
        with pytest.raises(CheckpointError, match="expected 3 schedulers, got 1"):
            scheduler.load_state_dict({**before, "schedulers": before["schedulers"][:1]})
        with pytest.raises(CheckpointError, match="LinearLR: the state does not fit"):
            scheduler.load_state_dict({**before, "schedulers": before["schedulers"][::-1]})
    assert scheduler.state_dict() == before


@pytest.mark.parametrize(
    ("state", "found"), [({"gamma": 0.5, "x": 1}, "gamma, x"), (None, "None"), ([1], "a list of 1")]
)
def test_a_state_of_another_kind_is_named(state, found):
    scheduler = lr_scheduler.StepLR(optimizer(0.1), 3)
    with pytest.raises(
        CheckpointError, match="the state does not fit: expected step_size, gamma, "
    ):
        scheduler.load_state_dict(state)
    with pytest.raises(CheckpointError, match=f", got {found}$"):
        scheduler.load_state_dict(state)


@pytest.mark.parametrize(
    ("build", "setting"),
    [
        (lambda o: lr_scheduler.StepLR(o, 3), {"step_size": 0}),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 3), {"T_max": 0}),
        (lambda o: lr_scheduler.TriangularLR(o, 3), {"pct_start": 1.0}),
        (lambda o: lr_scheduler.LinearLR(o), {"start_factor": 0.0}),
    ],
)
def test_a_saved_setting_out_of_range_is_refused(build, setting):
    scheduler = build(optimizer(0.1))
    before = scheduler.state_dict()
    with pytest.raises(CheckpointError, match=f"the state does not fit: .*{next(iter(setting))}"):
        scheduler.load_state_dict(before | setting)
    assert scheduler.state_dict() == before


OWN, OTHER = optimizer(0.1), optimizer(0.1)
STEP, THEIRS = lr_scheduler.StepLR(OWN, 1), lr_scheduler.StepLR(OTHER, 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lr_scheduler.StepLR(OWN, 0), "StepLR: step_size must be an int of at least 1"),
        (lambda: lr_scheduler.StepLR(OWN, 0.5), "must be an int of at least 1, got 0.5"),
        (lambda: lr_scheduler.CosineAnnealingLR(OWN, 0), "T_max must be"),
        (lambda: lr_scheduler.TriangularLR(OWN, 0), "total_steps must be"),
        (lambda: lr_scheduler.TriangularLR(OWN, 5, pct_start=1.0), r"must be in \[0, 1\), got 1.0"),
        (lambda: lr_scheduler.LinearLR(OWN, total_iters=0), "total_iters must be"),
        (lambda: lr_scheduler.LinearLR(OWN, 0.0), r"start_factor must be in \(0, 1\], got 0.0"),
        (lambda: lr_scheduler.LinearLR(OWN, 0.5, 2.0), r"end_factor must be in \[0, 1\], got 2.0"),
        (lambda: lr_scheduler.StepLR(0.1, 3), "StepLR: expected an Optimizer, got a float"),
        (lambda: lr_scheduler.LambdaLR(0.1, abs), "LambdaLR: expected an Optimizer, got a float"),
        (lambda: lr_scheduler.LambdaLR(OWN, [abs, abs]), "a function or 1 of them, .* got 2"),
        (lambda: lr_scheduler.SequentialLR(OWN, [STEP], [3]), "1 schedulers need 0 milestones"),
        (lambda: lr_scheduler.SequentialLR(OWN, [], []), "0 schedulers need"),
        (lambda: lr_scheduler.SequentialLR(OWN, [STEP, THEIRS], [3]), "scheduler 1 must be a sch"),
        (lambda: lr_scheduler.SequentialLR(OWN, [STEP] * 3, [3, 3]), "must be positive and ascend"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ArgumentError, match=message):
        build()


# --- freezing ---


def frozen(scheduler):
    groups = scheduler.optimizer.param_groups
    return [not p.requires_grad for group in groups for p in group["params"]]


def test_a_group_is_frozen_while_its_rate_alone_is_0():
    warm_up_then_end = [lambda step: min(step, 1), lambda step: max(3 - step, 0)]
    scheduler = lr_scheduler.LambdaLR(optimizer(*RATES), warm_up_then_end, freeze_at_zero=True)
    found = []
    for _ in range(5):
        found.append(frozen(scheduler))
        scheduler.step()
    assert found == [[True, False], *[[False, False]] * 2, *[[False, True]] * 2]
    without = lr_scheduler.LambdaLR(optimizer(*RATES), warm_up_then_end)
    assert frozen(without) == [False, False]


def test_all_groups_are_free_again_when_all_rates_are_0():
    ends = [lambda step: step < 1, lambda step: step < 2]
    scheduler = lr_scheduler.LambdaLR(optimizer(*RATES), ends, freeze_at_zero=True)
    scheduler.step()
    assert frozen(scheduler) == [True, False]
    scheduler.step()
    assert scheduler.get_last_lr() == [0, 0]
    assert frozen(scheduler) == [False, False]


def test_a_frozen_parameter_loses_its_gradient_and_one_that_the_user_froze_stays_frozen():
    own = optimizer(*RATES, 0.1)
    first, second, third = (group["params"][0] for group in own.param_groups)
    third.requires_grad = False
    (first * second).sum().backward()
    steps = [lambda step: step != 1, lambda step: 1, lambda step: step != 1]
    scheduler = lr_scheduler.LambdaLR(own, steps, freeze_at_zero=True)
    assert first.grad is not None
    scheduler.step()
    assert (first.grad, second.grad is None) == (None, False)
    assert frozen(scheduler) == [True, False, True]
    scheduler.step()
    assert frozen(scheduler) == [False, False, True]


def test_a_loaded_state_freezes_and_frees():
    ends = [lambda step: step < 1, lambda step: 1]
    saved, other = (
        lr_scheduler.LambdaLR(optimizer(*RATES), ends, freeze_at_zero=True) for _ in range(2)
    )
    start = other.state_dict()
    saved.step()
    other.load_state_dict(saved.state_dict())
    assert frozen(other) == [True, False]
    other.load_state_dict(start)
    assert frozen(other) == [False, False]


def test_a_scheduler_that_freezes_cannot_be_one_of_several():
    own = optimizer(0.1)
    freezing = lr_scheduler.LambdaLR(own, lambda step: 1, freeze_at_zero=True)
    with pytest.raises(ArgumentError, match=r"SequentialLR: .* freeze_at_zero must be alone"):
        lr_scheduler.SequentialLR(own, [freezing, lr_scheduler.LinearLR(own)], [3])
