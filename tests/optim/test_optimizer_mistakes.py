"""Common mistakes with optimizers, and steps on a device that is not the current one."""

import numpy as np
import pytest
from devices import assert_close, host, leaf, place, tensor

import gpucnn
from gpucnn import nn, ops, optim
from gpucnn.device import Device, device_of
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, GraphError, ShapeError
from gpucnn.optim.lr_scheduler import StepLR

KINDS = pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])


# --- a model moved after its optimizer was built ---


def usable(*names):
    """The names as one parameter, with the marks of each."""
    marks = [mark for name in names for mark in place(name).marks]
    marks += [pytest.mark.gpu] if any(name.startswith("cuda:") for name in names) else []
    return pytest.param(*names, marks=marks)


PAIRS = [
    usable("cpu", "cudasim"),
    usable("cudasim", "cpu"),
    usable("cpu", "cuda"),
    usable("cuda", "cpu"),
    usable("cuda", "cudasim"),
    usable("cudasim", "cuda"),
    usable("cuda:0", "cuda:1"),
    usable("cuda:1", "cuda:0"),
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
@KINDS
def test_a_model_moved_after_its_optimizer_was_built_is_an_error_and_rebuilding_works(
    kind, before, after
):
    model = nn.Linear(3, 2).to(before)
    optimizer = kind(model.parameters(), lr=0.1)
    model.to(after)

    def step():
        optimizer.zero_grad()
        (model(tensor(np.ones((4, 3)), after, np.float32)) ** 2).sum().backward()
        optimizer.step()

    start = host(model.weight).copy()
    then, now = map(str, map(Device.parse, (before, after)))
    with pytest.raises(
        GraphError, match=rf"on {then} then, float32 on {now} now\n.*before building"
    ):
        step()
    assert optimizer.steps == 0
    assert np.array_equal(host(model.weight), start)
    optimizer = kind(model.parameters(), lr=0.1)
    step()
    assert not np.array_equal(host(model.weight), start)


def test_a_dtype_changed_after_the_optimizer_was_built_is_an_error(device):
    layer = nn.Linear(2, 2).to(device)
    optimizer = optim.SGD(layer.parameters(), 0.1)
    layer.astype(np.float64)
    layer.weight.grad = tensor(np.zeros((2, 2)), device).data
    with pytest.raises(
        GraphError, match=r"float32 on .* then, float64 on .*\n.*before building it"
    ):
        optimizer.step()


@KINDS
@pytest.mark.usefixtures("current")
def test_each_of_many_parameters_is_updated_and_checked(kind, device, rng):
    start = [rng.standard_normal(n).astype(np.float32) for n in range(1, 21)]  # a launch takes 16
    ours, theirs = [leaf(x, device) for x in start], [leaf(x, "cpu") for x in start]
    for parameters in (ours, theirs):
        optimizer = kind(parameters, lr=0.1)
        for p in parameters:
            p.grad = p.data * 1
        optimizer.step()
    for p, q, x in zip(ours, theirs, start, strict=True):
        assert_close(p, q)
        assert not np.array_equal(host(p), x)
    optimizer = kind(ours, lr=0.1)
    ours[18].data = ours[18].data * 1
    ours[18].grad = ours[18].data * 1
    with pytest.raises(GraphError, match="parameter 18 was replaced"):
        optimizer.step()


@KINDS
def test_a_step_between_forward_and_backward_is_an_error(kind, device):
    x = leaf([1.0, 2.0], device, np.float32)
    optimizer = kind([x], lr=0.1)
    y = (x * x).sum()
    x.grad = tensor([1.0, 1.0], device, np.float32).data
    optimizer.step()
    with pytest.raises(GraphError, match="changed in place"):
        y.backward()


@pytest.mark.parametrize(
    ("gradient", "error", "match"),
    [
        (np.ones((1, 2), np.float32), ShapeError, r"shape \(2,\), got \(1, 2\)"),
        (np.ones(2), DtypeError, "float32, got float64"),
        ([1.0, 2.0], GraphError, "array, got list"),
    ],
)
def test_a_gradient_that_does_not_match_its_parameter_is_refused(gradient, error, match):
    x = leaf([1.0, 2.0], "cpu", np.float32)
    optimizer = optim.SGD([x], lr=0.1)
    x.grad = gradient
    with pytest.raises(error, match=f"SGD: parameter 0: .*{match}"):
        optimizer.step()
    assert x.data.tolist() == [1, 2]


def test_a_gradient_on_another_device_is_refused(gpu):
    x = leaf([1.0, 2.0], gpu, np.float32)
    optimizer = optim.SGD([x], lr=0.1)
    x.grad = np.ones(2, np.float32)
    with pytest.raises(DeviceMismatch, match=r"SGD: parameter 0: .* got one on cpu"):
        optimizer.step()


# --- not a list of parameters ---


def frozen():
    model = nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.parameters()


def used_up():
    parameters = iter(nn.Linear(2, 2).parameters())
    list(parameters)
    return parameters


LAYER = nn.Linear(2, 2)
NOT_PARAMETERS = {
    "frozen": (frozen, "every parameter has requires_grad=False; set it on those to train"),
    "an iterator that is used up": (
        used_up,
        "no parameters to train; an iterator can be used only",
    ),
    "a module": (lambda: LAYER, "expected parameters, got a Linear; pass model.parameters"),
    "a sequential": (lambda: nn.Sequential(LAYER), "got a Sequential; pass model.parameters"),
    "the method": (lambda: LAYER.parameters, "expected a list of parameters, got a method"),
    "one tensor": (lambda: LAYER.weight, r"got one tensor; pass \[tensor\]"),
    "names too": (LAYER.named_parameters, "expected tensors, parameter 0 is a tuple; pass"),
    "a state": (LAYER.state_dict, "expected tensors, parameter 0 is a str; pass"),
    "arrays": (lambda: [np.ones(3)], "expected tensors, parameter 0 is a ndarray; pass"),
    "nothing": (lambda: None, "expected a list of parameters, got a NoneType"),
    "a number": (lambda: 0.1, "expected a list of parameters, got a float"),
    "a result": (
        lambda: [LAYER.weight * 1],
        "expected leaf tensors, parameter 0 is an op's result",
    ),
}


@pytest.mark.parametrize(("make", "match"), NOT_PARAMETERS.values(), ids=NOT_PARAMETERS.keys())
@KINDS
def test_anything_but_a_list_of_parameters_is_a_one_line_error(kind, make, match):
    with pytest.raises(ArgumentError, match=f"^{kind.__name__}: .*{match}") as caught:
        kind(make(), lr=0.1)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 200


def test_clipping_a_module_or_a_tensor_is_refused():
    for wrong in (LAYER, LAYER.weight):
        with pytest.raises(ArgumentError, match=r"clip_grad_norm_: expected .*; pass"):
            optim.clip_grad_norm_(wrong, 1.0)


def test_a_scheduler_in_place_of_the_rate_is_refused():
    scheduler = StepLR(optim.SGD(nn.Linear(2, 2).parameters()), 10)
    with pytest.raises(ArgumentError, match="SGD: lr must be a number, got a StepLR"):
        optim.SGD(LAYER.parameters(), scheduler)


# --- cuda:1 while cuda:0 is the current device ---


@pytest.mark.parametrize("target", [usable("cuda:1")])
@KINDS
def test_everything_works_on_a_device_that_is_not_the_current_one(kind, target, rng):
    images = rng.standard_normal((4, 6, 6, 3)).astype(np.float32)

    def run(name):
        gpucnn.manual_seed(3)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 5),
        ).to(name)
        model.load_state_dict({k: host(v) * 1.5 for k, v in model.state_dict().items()})
        model.astype(np.float64).astype(np.float32)
        optimizer = kind(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss = ops.cross_entropy(model(tensor(images, name)), [0, 1, 2, 3])
            (loss + loss * loss).backward()
            norm = optim.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        for p in model.parameters():
            assert device_of(p.data) == device_of(p.grad) == Device.parse(name)
        return norm, [host(v).copy() for v in model.state_dict().values()]

    assert Device.parse(target).xp.cuda.runtime.getDevice() == 0
    (norm, ours), (expected, theirs) = run(target), run("cpu")
    assert norm == pytest.approx(expected, rel=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, 1e-4)
