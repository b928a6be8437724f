"""conv2d against slow loops, finite differences and PyTorch, with every engine."""

import inspect

import numpy as np
import pytest
from conv_cases import (
    CONVOLUTIONS,
    ENGINES,
    Convolution,
    every_convolution,
    every_engine,
    rng,
    use,
)
from devices import assert_close, host, in_both_dtypes, leaf, results, tensor

import gpucnn
from gpucnn.device import device_of, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops import MaxPool, conv2d
from gpucnn.ops.conv2d.op import _forward
from gpucnn.testing import conv2d_loops, gradcheck


@in_both_dtypes
@every_convolution
@every_engine
def test_forward_matches_the_loops(case, engine, dtype, device, request):
    use(engine, request)
    arrays = case.draw(dtype)
    y = conv2d(*(tensor(a, device) for a in arrays), **case.options)
    assert y.dtype == dtype
    assert_close(y, conv2d_loops(*arrays, *case.pairs))


@pytest.mark.parametrize(
    ("device", "engine"), [e for e in ENGINES if e.values[1] in ("auto", "winograd", "exact")]
)
@pytest.mark.parametrize(
    "case",
    [
        Convolution(n=2, h=5, w=6, c=2, oc=3),
        Convolution(
            n=1, h=5, w=5, c=4, oc=2, kernel_size=(3, 2), stride=(2, 1),
            padding=((1, 0), (0, 2)), dilation=(1, 2), groups=2,
        ),
        Convolution(n=1, h=6, w=5, c=1, oc=2, kernel_size=5, padding=2),
        Convolution(n=1, h=3, w=17, c=2, oc=2, kernel_size=2, padding=0),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_match_finite_differences(case, engine, device):
    gpucnn.set_conv_algorithm(engine)
    gradcheck(lambda *t: conv2d(*t, **case.options), *case.draw(), device=device)


def test_dweight_matches_finite_differences_when_the_stride_skips_the_last_row(device):
    case = Convolution(n=1, h=6, w=6, c=2, oc=2, stride=2, padding=0)
    gradcheck(lambda *t: conv2d(*t, **case.options), *case.draw(), device=device)


@in_both_dtypes
@every_convolution
@every_engine
def test_equals_pytorch(case, engine, dtype, device, request):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    use(engine, request)
    arrays = [a.astype(np.float64) for a in case.draw(dtype)]
    stride, ((top, bottom), (left, right)), dilation, groups = case.pairs
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    padded = torch.nn.functional.pad(theirs[0].permute(0, 3, 1, 2), (left, right, top, bottom))
    result = torch.nn.functional.conv2d(
        padded, theirs[1].permute(0, 3, 1, 2), theirs[2], stride, 0, dilation, groups
    ).permute(0, 2, 3, 1)
    ours = [leaf(a, device, dtype) for a in arrays]
    y = conv2d(*ours, **case.options)
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual = results(y, dy, *ours)
    result.backward(torch.tensor(dy.astype(np.float64)))
    assert {a.dtype for a in actual} == {np.dtype(dtype)}
    for a, e in zip(actual, [result.detach(), *(t.grad for t in theirs)], strict=True):
        assert_close(a, e.numpy())


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 1), (2, 0)), ((0, 1), (2, 0))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (0, 1))),  # a 3 x 2 window: the odd column goes last
    ],
)
@in_both_dtypes
def test_every_form_of_padding_means_its_pairs(padding, pairs, dtype, device):
    x, weight = (rng.standard_normal(s).astype(dtype) for s in ((2, 6, 7, 2), (3, 3, 2, 2)))
    y = conv2d(tensor(x, device), tensor(weight, device), padding=padding)
    assert_close(y, conv2d_loops(x, weight, padding=pairs))


def test_same_padding_follows_ceil_of_size_over_stride(device):
    x, weight = (tensor(np.ones(s, np.float32), device) for s in ((1, 7, 8, 1), (1, 3, 3, 1)))
    assert conv2d(x, weight, stride=2, padding="same").shape == (1, 4, 4, 1)


@in_both_dtypes
@every_engine
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(engine, dtype, device, request):
    use(engine, request)
    x = leaf(np.zeros((0, 8, 8, 3)), device, dtype)
    weight = leaf(np.ones((4, 3, 3, 3)), device, dtype)
    y, dx, dweight = results(conv2d(x, weight, padding=1), np.zeros((0, 8, 8, 4)), x, weight)
    assert y.shape == (0, 8, 8, 4)
    assert dx.shape == x.shape
    np.testing.assert_array_equal(dweight, np.zeros(weight.shape))


@in_both_dtypes
@every_engine
def test_non_contiguous_inputs_give_the_same_bits(engine, dtype, device, request):
    use(engine, request)
    arrays = CONVOLUTIONS[0].draw(dtype)
    dy = rng.standard_normal((3, 8, 8, 7)).astype(dtype)

    def gaps(array):  # every other element of a longer array
        long = tensor(np.repeat(array, 2, -1), device).data
        return gpucnn.tensor(long[..., ::2], requires_grad=True)

    runs = []
    for inputs in ([leaf(a, device) for a in arrays], [gaps(a) for a in arrays]):
        y = conv2d(*inputs, padding=1)
        runs.append(results(y, dy, *inputs))
    for a, e in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("pool", [None, MaxPool(2)])
@every_engine
def test_a_retained_graph_gives_the_same_gradients_twice(pool, engine, device, request):
    use(engine, request)
    shapes = ((1100, 4, 4, 5), (4, 3, 3, 5), (4,))
    leaves = [leaf(rng.standard_normal(s, dtype=np.float32), device) for s in shapes]
    loss = conv2d(*leaves, padding=1, relu=True, pool=pool).sum()
    runs = []
    for retain_graph in (True, True, False):
        loss.backward(retain_graph=retain_graph)
        runs.append([host(t.grad) for t in leaves])
        for t in leaves:
            t.grad = None
    for again in runs[1:]:
        for a, e in zip(again, runs[0], strict=True):
            np.testing.assert_array_equal(a, e)


def test_both_halves_have_the_same_signature():
    assert inspect.signature(_forward.cpu) == inspect.signature(_forward.cuda)


@every_engine
def test_nothing_is_saved_where_no_gradient_is_needed(engine, device, request):
    use(engine, request)
    case = CONVOLUTIONS[0]
    x, weight, bias = (tensor(a.astype(np.float32), device).data for a in case.draw())
    pool = MaxPool(2).geometry((3, 8, 8, 7))
    for needs in ((False, False, False), (True, True, True)):
        with working_on(device_of(x)):
            saved = _forward(x, weight, bias, case.geometry, needs, True, pool, None)[1]
        assert (saved is not None) == any(needs)


def test_mistakes_are_named(device):
    def ones(*shape):
        return tensor(np.ones(shape, np.float32), device)

    x, weight = ones(2, 8, 8, 3), ones(4, 3, 3, 5)
    with pytest.raises(ShapeError, match="x has 3 channels, weight expects 5"):
        conv2d(x, weight)
    with pytest.raises(ShapeError, match="expected weight"):
        conv2d(x, ones(3, 3))
    weight = ones(4, 3, 3, 3)
    with pytest.raises(ShapeError, match="groups"):
        conv2d(x, weight, groups=2)
    with pytest.raises(ShapeError, match="expected bias"):
        conv2d(x, weight, ones(3))
    with pytest.raises(DtypeError, match="weight is float64"):
        conv2d(x, weight.astype(np.float64))
    with pytest.raises(ArgumentError, match="expected auto, winograd, exact, plain"):
        gpucnn.set_conv_algorithm("im2col")
