"""Filled tensors: zeros, ones, full, empty, arange, randn and rand."""

import numpy as np
import pytest
from devices import host

import gpucnn
from gpucnn.errors import ArgumentError, DeviceError, DtypeError, OutOfMemory


@pytest.mark.parametrize("dtype", [None, "float16", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(2, 3), ((2, 3),), ([2, 3],), (4,), ((),), (0, 2)], ids=str)
@pytest.mark.parametrize("name", ["zeros", "ones", "empty"])
def test_filled_tensors_have_pytorchs_shape_values_and_dtype(name, shape, dtype, device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    options = {} if dtype is None else {"dtype": dtype}
    ours = getattr(gpucnn, name)(*shape, device=device, **options)
    theirs = getattr(torch, name)(*shape, dtype=getattr(torch, dtype or "float32"))
    assert ours.shape == tuple(theirs.shape)
    assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
    assert ours.device == gpucnn.Device.parse(device)
    if name != "empty":
        np.testing.assert_array_equal(host(ours), theirs.numpy())


def test_full_and_arange_choose_pytorchs_dtype(device):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    for arguments in (((2, 2), 7), ((3,), 0.5), ((), True), (4, -1)):
        ours = gpucnn.full(*arguments, device=device)
        theirs = torch.full(arguments[0] if arguments[0] != 4 else (4,), arguments[1])
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(host(ours), theirs.numpy())
    for arguments in ((5,), (2, 9, 3), (0, 1, 0.25), (3, 0, -1), (1.5,), (0,)):
        ours, theirs = gpucnn.arange(*arguments, device=device), torch.arange(*arguments)
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(host(ours), theirs.numpy())


def test_a_tensor_like_another_has_its_shape_dtype_and_device_and_no_graph(device):
    x = gpucnn.full((2, 3), 0.5, device, "float16", requires_grad=True)
    for like, value in ((gpucnn.zeros_like, 0), (gpucnn.ones_like, 1)):
        y = like(x)
        assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)
        assert not y.requires_grad
        assert (host(y) == value).all()


@pytest.mark.parametrize("name", ["randn", "rand"])
def test_random_tensors_repeat_with_the_seed_and_are_the_same_on_every_device(name, device):
    draw = getattr(gpucnn, name)
    gpucnn.manual_seed(3)
    here = draw(4, 5, device=device)
    gpucnn.manual_seed(3)
    np.testing.assert_array_equal(host(here), draw((4, 5)).numpy())
    assert not np.array_equal(host(here), draw(4, 5).numpy())
    own = [draw(3, generator=np.random.default_rng(1)).tolist() for _ in range(2)]
    assert own[0] == own[1]
    for dtype in ("float16", "float32", "float64"):
        assert draw(2, device=device, dtype=dtype).dtype == dtype


def test_random_tensors_have_their_distributions():
    normal, uniform = gpucnn.randn(20000).numpy(), gpucnn.rand(20000).numpy()
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01


def test_the_default_device_and_gradients_are_those_of_tensor(gpu):
    with gpucnn.device(gpu):
        made = [gpucnn.zeros(2), gpucnn.full(2, 1.0), gpucnn.arange(2), gpucnn.randn(2)]
    assert {str(x.device).partition(":")[0] for x in made} == {gpu.partition(":")[0]}
    x = gpucnn.ones(2, device=gpu, requires_grad=True)
    (x * 3.0).sum().backward()
    assert host(x.grad).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gpucnn.zeros(-1), ArgumentError, "zeros: expected a shape of ints from 0"),
        (lambda: gpucnn.ones(2, 2.5), ArgumentError, r"ones: .* got \(2, 2.5\)"),
        (lambda: gpucnn.randn("a"), ArgumentError, "randn: .* got 'a'"),
        (lambda: gpucnn.full(2, "x"), ArgumentError, "full: expected a number .* got str"),
        (lambda: gpucnn.full(2, 300, dtype="uint8"), DtypeError, "300 is out of range for uint8"),
        (lambda: gpucnn.full(2, np.nan, dtype="int64"), DtypeError, "nan is out of range"),
        (lambda: gpucnn.zeros(2, dtype="words"), DtypeError, "zeros: expected a dtype"),
        (lambda: gpucnn.rand(2, dtype="int64"), DtypeError, "rand: expected a floating-point"),
        (lambda: gpucnn.arange(3, requires_grad=True), DtypeError, "arange: only floating-point"),
        (lambda: gpucnn.arange(3, 1, 0), ArgumentError, "arange: .* a step other than 0"),
        (lambda: gpucnn.arange(np.inf), ArgumentError, "arange: expected finite numbers"),
        (lambda: gpucnn.arange(10**30), ArgumentError, "arange: "),
        (lambda: gpucnn.zeros(2, device="gpu"), DeviceError, "expected auto, cpu"),
        (lambda: gpucnn.zeros(10**9, 10**6), OutOfMemory, "zeros: cannot allocate"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_function(make, error, message):
    with pytest.raises(error, match=message):
        make()
