# ruff: noqa: E501 -- one table row per line
"""Parameter groups: their hyperparameters, bit-identical updates, and their states."""

import json

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import cuda, nn, optim
from gpucnn.device import working_on
from gpucnn.errors import ArgumentError, CheckpointError

SHAPES = [(3, 4), (5,), (300, 7), *[(2,)] * 18]  # 21: a launch takes 16
FIRST = [2, 0, 5, *range(9, 21)]  # indices of the first group
SECOND = [i for i in range(21) if i not in FIRST]
CASES = [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}, {"lr": 0.02, "weight_decay": 0.0}),
    (optim.SGD, {"lr": 0.1}, {"momentum": 0.8, "nesterov": True}),
    (optim.Adam, {"lr": 0.01}, {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.03, "weight_decay": 0.0}),
]  # fmt: skip
KINDS = pytest.mark.parametrize(("kind", "defaults", "own"), CASES, ids=lambda v: str(v)[-40:])


def groups_of(parameters, own):
    return [
        {"params": [parameters[i] for i in FIRST]},
        {"params": (parameters[i] for i in SECOND), **own},
    ]


def set_gradients(parameters, step):
    rng = np.random.default_rng(step)
    for p in parameters:
        gradient = rng.standard_normal(p.shape)
        p.grad = tensor(gradient, str(p.device), p.dtype).data if rng.random() < 0.7 else None


@KINDS
@in_both_dtypes
def test_each_group_takes_its_own_hyperparameters_as_in_pytorch(kind, defaults, own, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    start = [np.linspace(-1, 1, np.prod(s)).reshape(s).astype(dtype) for s in SHAPES]
    ours = [leaf(x.copy(), device) for x in start]
    theirs = [torch.tensor(x.astype(np.float64), requires_grad=True) for x in start]
    optimizer = kind(groups_of(ours, own), **defaults)
    oracle = getattr(torch.optim, kind.__name__)(groups_of(theirs, own), **defaults)
    for step in range(6):
        set_gradients(ours, step)
        for p, q in zip(ours, theirs, strict=True):
            q.grad = None if p.grad is None else torch.tensor(host(p.grad).astype(np.float64))
        if step == 3:  # as a scheduler does
            for each in (optimizer, oracle):
                each.param_groups[1]["lr"] *= 0.5
        optimizer.step()
        oracle.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q.detach().numpy())


@KINDS
def test_two_groups_give_the_bits_of_two_optimizers(kind, defaults, own, device):
    start = [np.linspace(-1, 1, np.prod(s)).reshape(s).astype(np.float32) for s in SHAPES]
    ours, theirs = ([leaf(x.copy(), device) for x in start] for _ in range(2))
    optimizer = kind(groups_of(ours, own), **defaults)
    pair = [
        kind([theirs[i] for i in FIRST], **defaults),
        kind([theirs[i] for i in SECOND], **{**defaults, **own}),
    ]
    for step in range(4):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        optimizer.step()
        for each in pair:
            each.step()
    for p, q in zip(ours, theirs, strict=True):
        assert host(p).tobytes() == host(q).tobytes()
    base = optimizer._flat
    assert all(p.data.base is base for p in ours) or device != "cpu"


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_step_on_a_gpu_launches_a_kernel_for_every_16_parameters_of_a_group(
    kind, gpu, monkeypatch
):
    parameters = [leaf(np.ones(2, np.float32), gpu) for _ in range(21)]
    with working_on(parameters[0].device):
        for p in parameters:
            p.grad = p.data * 1
    launch, names = cuda.launch, []

    def counted(name, *arguments, **options):
        names.append(name)
        launch(name, *arguments, **options)

    monkeypatch.setattr(cuda, "launch", counted)
    kind([{"params": parameters[:17]}, {"params": parameters[17:]}]).step()
    assert len(names) == 3
    kind(parameters).step()
    assert len(names) == 3 + 2


def test_param_groups_list_parameters_and_every_hyperparameter():
    a, b, c = (leaf([float(i)], "cpu") for i in range(3))
    optimizer = optim.SGD([{"params": [a, b], "lr": 0.5}, {"params": c}], lr=0.1, momentum=0.9)
    settings = {"momentum": 0.9, "weight_decay": 0.0, "nesterov": False}
    assert optimizer.param_groups == [
        {"params": (a, b), "lr": 0.5, **settings},
        {"params": (c,), "lr": 0.1, **settings},
    ]
    assert optimizer.defaults == {"lr": 0.1, **settings}
    assert repr(optimizer).startswith("SGD(2 parameters, lr=0.5, momentum=0.9")


def test_lr_is_the_first_groups_and_setting_it_sets_all():
    a, b = leaf([1.0], "cpu"), leaf([1.0], "cpu")
    optimizer = optim.SGD([{"params": [a], "lr": 0.5}, {"params": [b]}], lr=0.1)
    assert optimizer.lr == 0.5
    optimizer.lr = 0.2
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2]


def test_an_empty_group_among_others_is_allowed():
    a = leaf([1.0], "cpu", np.float32)
    optimizer = optim.SGD([{"params": []}, {"params": [a]}], lr=0.5)
    a.grad = np.ones(1, np.float32)
    optimizer.step()
    assert a.data.tolist() == [0.5]


# --- mistakes ---

P, Q = leaf([1.0], "cpu"), leaf([2.0], "cpu")
MISTAKES = {
    "an unknown key": ([{"params": [P], "learning_rate": 0.1}], "group 0: unknown hyperparameter learning_rate; expected lr, momentum, weight_decay, nesterov"),
    "no params": ([{"params": [P]}, {"lr": 0.1}], 'group 1: "params" is missing; the group has lr'),
    "a parameter in two groups": ([{"params": [P]}, {"params": [Q, P]}], "a parameter is listed twice"),
    "a rate out of range": ([{"params": [P]}, {"params": [Q], "lr": -1}], "group 1: lr must not be negative, got -1"),
    "nesterov without momentum": ([{"params": [P]}, {"params": [Q], "nesterov": True}], "group 1: nesterov needs a momentum"),
    "a tensor among groups": ([{"params": [P]}, Q], 'group 1: expected a dict with "params", like group 0, got a Tensor'),
    "a group among tensors": ([P, {"params": [Q]}], "expected tensors, parameter 1 is a dict"),
    "a model in a group": ([{"params": nn.ReLU()}], "group 0: expected parameters, got a ReLU; pass"),
    "only empty groups": ([{"params": []}], "there are no parameters to train"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_error_names_the_wrong_group(mistake):
    groups, message = MISTAKES[mistake]
    with pytest.raises(ArgumentError) as caught:
        optim.SGD(groups, lr=0.1)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", "fast", "SGD: lr must be a number, got a str"),
        ("lr", float("nan"), "SGD: lr must not be negative, got nan"),
        ("momentum", 1.5, r"SGD: momentum must be in \[0, 1\), got 1.5"),
    ],
)
def test_the_next_step_refuses_a_hyperparameter_out_of_range(key, value, message):
    p = leaf([1.0], "cpu")
    optimizer = optim.SGD([p], lr=0.1)
    p.grad = np.ones(1)
    optimizer.param_groups[0][key] = value
    with pytest.raises(ArgumentError, match=message):
        optimizer.step()
    assert p.data.tolist() == [1]


# --- states ---


@KINDS
def test_a_state_restores_every_groups_hyperparameters_and_continues_to_the_same_bits(
    kind, defaults, own, device
):
    def build(like=None):
        start = [np.ones(s) for s in SHAPES] if like is None else [host(p) for p in like]
        return [leaf(x, device, np.float32) for x in start]

    def train(parameters, optimizer, steps):
        for step in steps:
            set_gradients(parameters, step)
            optimizer.step()
            optimizer.param_groups[1]["lr"] *= 0.9

    ours = build()
    optimizer = kind(groups_of(ours, own), **defaults)
    train(ours, optimizer, range(3))
    state = {
        k: host(v).copy() if hasattr(v, "ndim") else v for k, v in optimizer.state_dict().items()
    }
    state["param_groups"] = json.loads(json.dumps(state["param_groups"]))
    theirs = build(ours)
    other = kind(groups_of(theirs, {}))  # hyperparameters come from the state
    other.load_state_dict(state)
    for group, saved in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k not in ("params", "betas")} == {
            k: v for k, v in saved.items() if k not in ("params", "betas")
        }
    train(ours, optimizer, range(3, 6))
    train(theirs, other, range(3, 6))
    for p, q in zip(ours, theirs, strict=True):
        assert host(p).tobytes() == host(q).tobytes()


def pair(*sizes, **settings):
    made = iter([gpucnn.tensor([1.0], requires_grad=True) for _ in range(sum(sizes))])
    return optim.SGD([{"params": [next(made) for _ in range(n)]} for n in sizes], **settings)


@pytest.mark.parametrize("sizes", [(3,), (1, 2), (2, 1, 0)])
def test_a_state_of_other_groups_is_refused_and_changes_nothing(sizes):
    optimizer = pair(2, 1)
    with pytest.raises(
        CheckpointError, match=r"expected 2 groups of 2, 1 parameters, got \d group"
    ):
        optimizer.load_state_dict(pair(*sizes, lr=0.5).state_dict())
    assert optimizer.lr == 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group.pop("momentum"), r"group 0: expected lr, .*; momentum is missing"),
        (lambda group: group.update(lr="x"), "group 0.lr: expected a finite number, got 'x'"),
    ],
)
def test_a_state_with_a_damaged_group_is_refused(change, message):
    optimizer, state = pair(2, 1), pair(2, 1, lr=0.5).state_dict()
    change(state["param_groups"][0])
    with pytest.raises(CheckpointError, match=f"SGD: the state does not fit: {message}"):
        optimizer.load_state_dict(state)
    assert optimizer.lr == 1e-3
