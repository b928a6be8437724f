"""Muon: orthogonal updates, against a short NumPy loop and torch.optim.Muon."""

import numpy as np
import pytest
from devices import assert_close, host, in_both_dtypes, leaf, tensor

import gpucnn
from gpucnn import cuda, optim
from gpucnn.device import Device, array_module, working_on
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.optim.finite import step_if_finite
from gpucnn.optim.muon import orthogonalized

SHAPES = [(8, 3, 3, 4), (24, 2, 2, 1), (5, 7), (1, 3), (6, 1), (4, 4), (40, 3, 3, 2)]


def reference(p, gradients, lr=0.24, momentum=0.6, nesterov=True, steps=3, decay=0.0, rescale=True):
    """The recipe in the fewest lines: always the product with the rows, no flat buffers."""
    velocity = np.zeros_like(p)
    for g in gradients:
        velocity = momentum * velocity + g
        x = (g + momentum * velocity if nesterov else velocity).reshape(len(p), -1)
        x = x / np.linalg.norm(x)
        for _ in range(steps):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        if rescale:
            p = p * np.sqrt(len(p)) / np.linalg.norm(p)
        p = p * (1 - lr * decay) - lr * x.reshape(p.shape)
    return p


def train(device, dtype, rng, steps=4, **settings):
    """The parameters after the steps, and what the reference makes of them."""
    starts = [rng.standard_normal(s).astype(dtype) for s in SHAPES]
    gradients = [[rng.standard_normal(s).astype(dtype) for s in SHAPES] for _ in range(steps)]
    parameters = [leaf(x, device) for x in starts]
    optimizer = optim.Muon(parameters, **settings)
    for given in gradients:
        for p, g in zip(parameters, given, strict=True):
            p.grad = tensor(g, device).data
        optimizer.step()
    settings = {
        {"ns_steps": "steps", "weight_decay": "decay"}.get(k, k): v for k, v in settings.items()
    }
    expected = [
        reference(x.astype(np.float64), [g[i].astype(np.float64) for g in gradients], **settings)
        for i, x in enumerate(starts)
    ]
    return parameters, expected


@in_both_dtypes
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nesterov": False, "momentum": 0.0},
        {"nesterov": False, "ns_steps": 5, "lr": 0.02},
        {"rescale": False, "weight_decay": 0.1, "momentum": 0.95},
        {"weight_decay": 0.5, "ns_steps": 1},
    ],
    ids=str,
)
def test_steps_are_those_of_a_short_loop(settings, dtype, device, rng):
    for p, expected in zip(*train(device, dtype, rng, **settings), strict=True):
        assert_close(p, expected, 1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16), (64, 216), (1, 9), (9, 1)])
@pytest.mark.parametrize("size", [1e-5, 1.0, 1e25])
def test_five_steps_move_every_singular_value_near_one(shape, size, device, rng):
    d = (rng.standard_normal(shape) * size).astype(np.float32)
    with working_on(Device.parse(device)):
        update = host(orthogonalized(tensor(d, device).data, 5))
    singular = np.linalg.svd(update, compute_uv=False)
    before = np.linalg.svd(d.astype(np.float64) / np.linalg.norm(d.astype(np.float64)))[1]
    assert singular.max() < 1.22
    assert singular[before > 0.01].min() > 0.65
    u, _, vt = np.linalg.svd(d.astype(np.float64), full_matrices=False)
    assert np.sum(update * (u @ vt)) > 0.65 * min(shape)  # it points where U V^T does


def test_the_updates_singular_values_do_not_depend_on_the_gradients(device, rng):
    p = leaf(np.zeros((16, 3, 3, 8), np.float32), device)
    optimizer = optim.Muon([p], lr=1.0, ns_steps=5, rescale=False)
    p.grad = tensor((rng.standard_normal(p.shape) * 1e-3).astype(np.float32), device).data
    optimizer.step()
    singular = np.linalg.svd(-host(p).reshape(16, -1), compute_uv=False)
    assert 0.65 < singular.min() < singular.max() < 1.22


def test_wide_matrices_without_rescaling_are_pytorchs(rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this PyTorch has no Muon")
    shapes = [(3, 7), (12, 40), (8, 8)]
    settings = {"lr": 0.1, "momentum": 0.9, "ns_steps": 5, "weight_decay": 0.3}
    ours = [leaf(rng.standard_normal(s).astype(np.float32), "cpu") for s in shapes]
    theirs = [torch.tensor(p.data.copy(), requires_grad=True) for p in ours]
    optimizer = optim.Muon(ours, rescale=False, **settings)
    oracle = torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = rng.standard_normal(p.shape).astype(np.float32)
            q.grad = torch.tensor(p.grad)
        optimizer.step()
        oracle.step()
    for p, q in zip(ours, theirs, strict=True):
        assert_close(p, q.detach().numpy(), 0.02)  # PyTorch iterates in bfloat16


@pytest.mark.usefixtures("current")
def test_rescaling_gives_each_parameter_the_norm_of_the_root_of_its_rows(device, rng):
    parameters = [leaf(rng.standard_normal(s).astype(np.float32) * 3, device) for s in SHAPES]
    optimizer = optim.Muon(parameters, lr=0.0)
    for p in parameters:
        p.grad = p.data * 1
    optimizer.step()
    for p in parameters:
        assert np.linalg.norm(host(p)) == pytest.approx(np.sqrt(len(p)), rel=1e-6)


@pytest.mark.usefixtures("current")
def test_a_parameter_or_gradient_of_zeros_gives_numbers(device):
    p = leaf(np.zeros((3, 4), np.float32), device)
    optimizer = optim.Muon([p])
    p.grad = p.data * 0
    optimizer.step()
    assert host(p).tolist() == np.zeros((3, 4)).tolist()


@pytest.mark.usefixtures("current")
def test_a_parameter_without_a_gradient_or_elements_stays(device, rng):
    a, b = (leaf(rng.standard_normal((3, 4)).astype(np.float32), device) for _ in range(2))
    c = leaf(np.zeros((2, 0), np.float32), device)
    before = host(a).copy()
    optimizer = optim.Muon([a, b, c])
    b.grad, c.grad = b.data * 1, c.data * 1
    optimizer.step()
    assert host(a).tobytes() == before.tobytes()


def test_any_number_of_threads_gives_the_same_bits(threads):
    bits = []
    for n in (1, 3):
        threads(n)
        parameters, _ = train("cpu", np.float32, np.random.default_rng(3))
        bits.append([host(p).tobytes() for p in parameters])
    assert bits[0] == bits[1]


def test_a_loaded_state_continues_to_the_same_bits(device, rng):
    starts = [rng.standard_normal(s).astype(np.float32) for s in SHAPES]
    gradients = [[rng.standard_normal(s).astype(np.float32) for s in SHAPES] for _ in range(6)]

    def steps(parameters, optimizer, numbers):
        for i in numbers:
            for p, g in zip(parameters, gradients[i], strict=True):
                p.grad = tensor(g, device).data
            optimizer.step()

    whole = [leaf(x.copy(), device) for x in starts]
    optimizer = optim.Muon(whole)
    steps(whole, optimizer, range(3))
    state = {
        k: host(v).copy() if hasattr(v, "ndim") else v for k, v in optimizer.state_dict().items()
    }
    rest = [leaf(host(p), device) for p in whole]
    other = optim.Muon(rest, lr=0.5, momentum=0.1)
    other.load_state_dict(state)
    steps(whole, optimizer, range(3, 6))
    steps(rest, other, range(3, 6))
    for p, q in zip(whole, rest, strict=True):
        assert host(p).tobytes() == host(q).tobytes()
    with pytest.raises(CheckpointError, match="Muon: the state does not fit: group 0: expected lr"):
        optimizer.load_state_dict(optim.SGD(rest, 0.1).state_dict())


@pytest.mark.usefixtures("current")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_guard_keeps_what_an_update_would_spoil_and_only_that(bad, gpu, rng):
    parameters = [leaf(rng.standard_normal(s).astype(np.float32), gpu) for s in SHAPES[:3]]
    optimizer = optim.Muon(parameters)
    before = [host(p).copy() for p in parameters]
    for p in parameters:
        p.grad = p.data * 1
    parameters[1].grad[0] = bad
    with working_on(parameters[0].device):
        optimizer.guard = array_module(optimizer._flat).zeros(1, np.int32)
        optimizer.step()
    assert host(optimizer.guard).tolist() == [1]
    changed = [host(p).tobytes() != x.tobytes() for p, x in zip(parameters, before, strict=True)]
    assert changed == [True, False, True]
    assert np.isfinite(host(optimizer._state["velocity"])).all()


@pytest.mark.usefixtures("current")
def test_a_step_launches_own_kernels_for_its_products(gpu, monkeypatch, rng):
    p = leaf(rng.standard_normal((8, 3, 3, 4)).astype(np.float32), gpu)
    optimizer = optim.Muon([p], ns_steps=3)
    p.grad = p.data * 1
    launch, names = cuda.launch, []

    def counted(name, *arguments, **options):
        names.append(name)
        launch(name, *arguments, **options)

    monkeypatch.setattr("gpucnn.cuda.launch", counted)
    optimizer.step()
    assert len([name for name in names if "gemm" in name]) == 9


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1}, "Muon: lr must not be negative, got -1"),
        ({"momentum": 1.0}, r"Muon: momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": 0.0}, "Muon: nesterov needs a momentum above 0"),
        ({"ns_steps": 0}, "Muon: ns_steps must be a positive int, got 0"),
        ({"ns_steps": 2.5}, "Muon: ns_steps must be a positive int, got 2.5"),
        ({"eps": 0.0}, "Muon: eps must be positive"),
        ({"weight_decay": -1}, "Muon: weight_decay must not be negative"),
    ],
    ids=str,
)
def test_a_hyperparameter_out_of_range_is_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        optim.Muon([leaf(np.ones((2, 2)), "cpu")], **settings)


def test_a_vector_is_refused_with_a_way_out():
    model = gpucnn.nn.Linear(3, 4)
    with pytest.raises(ArgumentError) as caught:
        optim.Muon(model.parameters())
    assert "Muon: expected filters or matrices, got a parameter of shape (4,)" in str(caught.value)
    assert "optim.MultiOptimizer(optim.Muon(filters), optim.SGD(biases, ...))" in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"rescale": False, "weight_decay": 3.0, "lr": 1.0}])
def test_a_finite_step_has_the_bits_of_step_and_stays_within_the_bounds(settings):
    ours, theirs = (
        optim.Muon([leaf(np.ones(s, np.float32), "cpu") for s in SHAPES], **settings)
        for _ in range(2)
    )
    rng = np.random.default_rng(1)
    for i in range(20):
        for p, q in zip(ours.parameters, theirs.parameters, strict=True):
            p.grad = (rng.standard_normal(p.shape) * 10.0 ** (i % 7 - 3)).astype(np.float32)
            q.grad = p.grad.copy()
        assert step_if_finite(ours) is None
        theirs.step()
        assert ours._flat.tobytes() == theirs._flat.tobytes()
        assert ours._bounds is not None  # not on trial
        assert np.abs(ours._flat).max() <= ours._bounds["value"]
        assert np.abs(ours._state["velocity"]).max() <= ours._bounds["velocity"]


def test_gradients_near_the_largest_number_give_a_finite_step(rng):
    p = leaf(rng.standard_normal((4, 9)).astype(np.float32), "cpu")
    optimizer = optim.Muon([p], lr=1.0, ns_steps=5, rescale=False)
    before = p.data.copy()
    p.grad = (rng.uniform(-1, 1, (4, 9)) * 1e38).astype(np.float32)
    assert step_if_finite(optimizer) is None
    singular = np.linalg.svd(before - p.data, compute_uv=False)
    assert 0.65 < singular.min() < singular.max() < 1.22
