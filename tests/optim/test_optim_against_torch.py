"""Optimizers and schedulers against PyTorch's, with settings that hypothesis draws."""

import math

import numpy as np
import pytest
from devices import host
from hypothesis import strategies as st
from op_strategies import LAYOUTS, draws, few_or_many, laid_out
from random_graphs import torch

import gpucnn
from gpucnn import optim
from gpucnn.optim import lr_scheduler
from gpucnn.optim import optimizer as base

pytestmark = [
    pytest.mark.skipif(torch is None, reason="the oracle is PyTorch"),
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

SHAPES = st.sampled_from([(), (1,), (5,), (16,), (17,), (0,), (3, 4), (2, 3, 3, 5), (70,)])
RATES = st.sampled_from([0.0, 1e-3, 0.1, 1.0])
DECAYS = st.sampled_from([0.0, 0.01, 0.5])


def hyperparameters(name):
    """Each hyperparameter of an optimizer may be left out."""
    if name == "SGD":
        with_momentum = st.fixed_dictionaries(
            {"momentum": st.sampled_from([0.5, 0.9])},
            optional={"lr": RATES, "weight_decay": DECAYS, "nesterov": st.booleans()},
        )
        return with_momentum | st.fixed_dictionaries(
            {}, optional={"lr": RATES, "weight_decay": DECAYS}
        )
    # Not (0.9, 0.0): a step of m / |g| amplifies the rounding of a small gradient.
    betas = st.tuples(st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.9, 0.999]))
    betas |= st.just((0.0, 0.0))
    optional = {"lr": RATES, "betas": betas, "eps": st.sampled_from([1e-8, 1e-3])}
    return st.fixed_dictionaries({}, optional={**optional, "weight_decay": DECAYS})


@st.composite
def runs(draw, name):
    """(the constructor's settings, groups of shapes with settings, steps, dtype, seed)."""
    defaults = draw(hyperparameters(name))
    overrides = st.fixed_dictionaries({}, optional={"lr": RATES, "weight_decay": DECAYS})
    group = st.tuples(st.lists(SHAPES, min_size=1, max_size=20), overrides)
    return (
        defaults,
        draw(st.lists(group, min_size=1, max_size=3)),
        draw(st.integers(1, 6)),
        draw(st.sampled_from([np.float32, np.float64])),
        draw(st.integers(0, 2**32 - 1)),
    )


def train(name, run, device="cpu"):
    """Both libraries' parameters after the steps: [(gpucnn's, PyTorch's), ...]."""
    defaults, groups, steps, dtype, seed = run
    rng = np.random.default_rng(seed)
    ours, theirs, pairs = [], [], []
    for shapes, overrides in groups:
        start = [
            laid_out(rng.standard_normal(s).astype(dtype), str(rng.choice(LAYOUTS)), rng)
            for s in shapes
        ]
        mine = [gpucnn.tensor(x, device, requires_grad=True) for x in start]
        other = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in start]
        ours.append({"params": mine, **overrides})
        theirs.append({"params": other, **overrides})
        pairs += zip(mine, other, strict=True)
    optimizer = getattr(optim, name)(ours, **defaults)
    oracle = getattr(torch.optim, name)(theirs, **defaults)
    for _ in range(steps):
        for p, q in pairs:
            gradient = rng.standard_normal(p.shape).astype(dtype)
            gradient = laid_out(gradient, str(rng.choice(LAYOUTS)), rng)
            moves = rng.random() < 0.7
            p.grad = gpucnn.tensor(gradient, device).data if moves else None
            q.grad = torch.tensor(gradient.astype(np.float64)) if moves else None
        optimizer.step()
        oracle.step()
    return [(host(p), q.detach().numpy()) for p, q in pairs]


def check_optimizer(name, run, threads):
    bits = []
    for n in (1, 1, 3):
        threads(n)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(base, "_BLOCK", 24)  # several ragged blocks for each parameter
            pairs = train(name, run)
        bits.append([p.tobytes() for p, _ in pairs])
    assert bits[1] == bits[0], "a second run differs"
    assert bits[2] == bits[0], "a run with three threads differs"
    _, _, steps, dtype, _ = run
    for p, q in pairs:
        # A step rounds about ten times, each time eps / 2 of the parameter, of the rate or of 1.
        bound = 10 * steps * np.finfo(dtype).eps * max(1, np.abs(q).max(initial=0))
        assert p.dtype == dtype
        assert p.shape == q.shape
        assert np.abs(p - q).max(initial=0) <= bound


@few_or_many(12, 100)
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_steps_with_any_settings_groups_and_layouts_are_pytorchs(name, examples, threads):
    draws(examples, lambda draw: check_optimizer(name, draw(runs(name)), threads))


# --- schedulers ---

FACTORS = st.sampled_from([1e-3, 1 / 3, 0.5, 1.0])
STEPS = st.integers(1, 9)
ONE = st.one_of(
    st.tuples(st.just("StepLR"), st.tuples(STEPS), st.just({})),
    st.tuples(st.just("StepLR"), st.tuples(STEPS), st.fixed_dictionaries({"gamma": FACTORS})),
    st.tuples(st.just("CosineAnnealingLR"), st.tuples(STEPS), st.just({})),
    st.tuples(
        st.just("CosineAnnealingLR"),
        st.tuples(STEPS),
        st.fixed_dictionaries({"eta_min": st.sampled_from([0.0, 0.02, 0.5])}),
    ),
    st.tuples(st.just("LinearLR"), st.just(()), st.just({})),
    st.tuples(
        st.just("LinearLR"),
        st.tuples(FACTORS, st.sampled_from([0.0, 0.25, 1.0]), STEPS),
        st.just({}),
    ),
    st.tuples(st.just("LambdaLR"), st.just((lambda step: 1 / (1 + step),)), st.just({})),
    st.tuples(st.just("LambdaLR"), st.just(([lambda step: 0.9**step, math.cos],)), st.just({})),
)


@st.composite
def sequences(draw):
    """(schedulers, milestones)."""
    schedulers = draw(st.lists(ONE, min_size=1, max_size=3))
    gaps = [draw(STEPS) for _ in schedulers[1:]]
    return schedulers, np.cumsum(gaps, dtype=int).tolist()


def build(module, optimizer, sequence):
    schedulers, milestones = sequence
    built = [getattr(module, name)(optimizer, *args, **kw) for name, args, kw in schedulers]
    return module.SequentialLR(optimizer, built, milestones) if milestones else built[0]


@few_or_many(60, 1000)
def test_rates_of_any_scheduler_or_sequence_are_pytorchs(examples):
    def run(draw):
        sequence, rates = draw(sequences()), draw(st.sampled_from([(0.1, 0.4), (1.0, 0.02)]))
        leaves = [gpucnn.tensor([1.0], requires_grad=True) for _ in rates]
        others = [torch.ones(1, requires_grad=True) for _ in rates]
        ours, theirs = (
            kind([{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)])
            for kind, params in ((optim.SGD, leaves), (torch.optim.SGD, others))
        )
        mine = build(lr_scheduler, ours, sequence)
        other = build(torch.optim.lr_scheduler, theirs, sequence)
        for step in range(25):
            found, expected = mine.get_last_lr(), [group["lr"] for group in theirs.param_groups]
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), step
            assert [group["lr"] for group in ours.param_groups] == found
            mine.step()
            other.step()

    draws(examples, run)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clipping_scales_by_the_joint_norm_whatever_the_layout_and_dtype(dtype, rng):
    largest = 300 if dtype == np.float16 else 1e3  # its square overflows in float16
    parameters = []
    for shape in ((3, 4), (), (17,), (0,), (2, 3, 4)):
        p = gpucnn.tensor(np.zeros(shape, dtype), requires_grad=True)
        numbers = (rng.uniform(-1, 1, shape) * largest).astype(dtype)
        p.grad = laid_out(numbers, "stepped", rng)
        parameters.append(p)
    before = [p.grad.astype(np.float64) for p in parameters]
    norm = math.sqrt(sum((g * g).sum() for g in before))
    assert optim.clip_grad_norm_(parameters, norm * 2) == pytest.approx(norm, rel=1e-3)
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_array_equal(p.grad, g)
    optim.clip_grad_norm_(parameters, 2.0)
    for p, g in zip(parameters, before, strict=True):
        assert p.grad.dtype == dtype
        np.testing.assert_allclose(p.grad, g * (2 / norm), rtol=4 * np.finfo(dtype).eps, atol=1e-6)
