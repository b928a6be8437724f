"""Arguments that an op refuses: the class of the error and the values in its message."""

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import ops, optim
from gpucnn.errors import ArgumentError, DtypeError, ShapeError


def zeros(*shape, dtype=np.float32):
    return gpucnn.tensor(np.zeros(shape, dtype))


def batch_norm(x):
    ones = np.ones(x.shape[-1:], np.float32)
    return ops.batch_norm(x, gpucnn.tensor(ones), gpucnn.tensor(ones), ones, ones, training=True)


IMAGE = zeros(1, 4, 4, 2)
MISTAKES = {
    "softmax along half an axis": (
        lambda: ops.softmax(zeros(2, 3), 1.0),
        ArgumentError,
        "softmax: axis must be an int, got 1.0",
    ),
    "log_softmax along two axes": (
        lambda: ops.log_softmax(zeros(2, 3), (0, 1)),
        ArgumentError,
        "log_softmax: axis must be an int, got (0, 1)",
    ),
    "softmax along an axis too many": (
        lambda: ops.softmax(zeros(2, 3), 2),
        ShapeError,
        "softmax: axis 2 is out of range for shape (2, 3)",
    ),
    "a sum along half an axis": (
        lambda: zeros(2, 3).sum(0.5),
        ArgumentError,
        "sum: axis must be an int, a tuple of ints or None, got 0.5",
    ),
    "a mean along True": (lambda: zeros(2, 3).mean(True), ArgumentError, "got True"),
    "a sum along an axis below the first": (
        lambda: zeros(2, 3).sum(-3),
        ArgumentError,
        "sum: axis -3 is out of range for shape (2, 3)",
    ),
    "argmax along an axis too many": (
        lambda: zeros(2, 3).argmax(2),
        ArgumentError,
        "argmax: axis 2 is not one of shape (2, 3)",
    ),
    "argmax along an axis below the first": (
        lambda: zeros(2, 3).argmax(-3),
        ArgumentError,
        "argmax: axis -3 is not one of",
    ),
    "argmax of nothing": (
        lambda: zeros(2, 0).argmax(1),
        ShapeError,
        "argmax: nothing to compare in shape (2, 0)",
    ),
    "a concatenation along half an axis": (
        lambda: ops.concatenate([zeros(2)], 0.0),
        ArgumentError,
        "concatenate: axis must be an int, got 0.0",
    ),
    "a concatenation along an axis too many": (
        lambda: ops.concatenate([zeros(2)], 1),
        ArgumentError,
        "concatenate: axis 1 is out of range for shape (2,)",
    ),
    "a shape of fractions": (
        lambda: ops.reshape(zeros(4), (2.0, 2)),
        ArgumentError,
        "reshape: shape must be a tuple of ints, got (2.0, 2)",
    ),
    "a shape that is a number": (lambda: ops.reshape(zeros(4), 4), ArgumentError, "got 4"),
    "axes that are fractions": (
        lambda: ops.transpose(zeros(2, 3), (1.0, 0.0)),
        ArgumentError,
        "transpose: axes must be a tuple of ints, got (1.0, 0.0)",
    ),
    "axes one too large": (
        lambda: ops.transpose(zeros(2, 3), (1, 2)),
        ArgumentError,
        "transpose: axes (1, 2) do not order the 2 axes of (2, 3)",
    ),
    "axes one too small": (
        lambda: ops.transpose(zeros(2, 3), (1, -3)),
        ArgumentError,
        "transpose: axes (1, -3) do not order",
    ),
    "widths without pairs": (
        lambda: ops.pad(zeros(2), [1, 2]),
        ArgumentError,
        "pad: expected 1 pairs of non-negative widths for shape (2,), got [1, 2]",
    ),
    "a width of half an element": (
        lambda: ops.pad(zeros(2), [(0.5, 1)]),
        ArgumentError,
        "got [(0.5, 1)]",
    ),
    "a negative width": (lambda: ops.pad(zeros(2), [(0, -1)]), ArgumentError, "got [(0, -1)]"),
    "a fraction around integers": (
        lambda: ops.pad(zeros(2, dtype=int), [(1, 1)], 0.5),
        DtypeError,
        "pad: value 0.5 in a tensor of int64",
    ),
    "a condition that does not broadcast": (
        lambda: ops.where([True] * 4, zeros(3), zeros(3)),
        ShapeError,
        "where: shapes (4,) and (3,) and (3,) do not broadcast",
    ),
    "a dtype by a wrong name": (
        lambda: zeros(2).astype("float33"),
        DtypeError,
        "astype: expected a dtype such as 'float32', got 'float33'",
    ),
    "a dtype of text": (
        lambda: zeros(2).astype(str),
        DtypeError,
        "astype: expected a dtype of numbers, got <U0",
    ),
    "a tensor of a wrong dtype": (
        lambda: gpucnn.tensor([1.0], dtype="float33"),
        DtypeError,
        "tensor: expected a dtype such as 'float32', got 'float33'",
    ),
    "text that is no number": (
        lambda: gpucnn.tensor(np.array(["a"]), dtype="float32"),
        DtypeError,
        "tensor: <U1 does not convert to float32",
    ),
    "long double": (
        lambda: gpucnn.tensor(np.zeros(2, np.longdouble)),
        DtypeError,
        f"expected numbers, got dtype {np.dtype(np.longdouble)}",
    ),
    "the negative of bools": (lambda: -zeros(2, dtype=bool), DtypeError, "negative: expected num"),
    "a sum of bools": (lambda: zeros(2, dtype=bool).sum(), DtypeError, "sum: expected numbers"),
    "a difference of bools": (
        lambda: zeros(2, dtype=bool) - zeros(2, dtype=bool),
        DtypeError,
        "subtract: expected numbers, got bool\n  convert: x.astype('int64') or 'float32'",
    ),
    "a number that int8 cannot hold": (
        lambda: zeros(2, dtype=np.int8) + 128,
        DtypeError,
        "add: 128 is out of range for a tensor of int8",
    ),
    "a negative number with uint8": (
        lambda: zeros(2, dtype=np.uint8) * -1,
        DtypeError,
        "multiply: -1 is out of range for a tensor of uint8",
    ),
    "batch norm of a number": (
        lambda: batch_norm(zeros()),
        ShapeError,
        "batch_norm: expected channels (..., C), got a scalar",
    ),
    "batch norm of one value for each channel": (
        lambda: batch_norm(zeros(1, 3)),
        ShapeError,
        "needs at least two values, x (1, 3) has 1",
    ),
    "neighbours of a number": (
        lambda: ops.local_response_norm(zeros()),
        ShapeError,
        "local_response_norm: expected channels (..., C), got a scalar",
    ),
    "half a neighbour": (
        lambda: ops.local_response_norm(zeros(3), 2.5),
        ArgumentError,
        "expected an int size >= 1 and k > 0, got 2.5, 2.0",
    ),
    "no neighbours": (lambda: ops.local_response_norm(zeros(3), 0), ArgumentError, "got 0, 2.0"),
    "a denominator of zero": (
        lambda: ops.local_response_norm(zeros(3), k=0.0),
        ArgumentError,
        "got 5, 0.0",
    ),
    "half a window": (
        lambda: ops.adaptive_avg_pool2d(IMAGE, (1.5, 2)),
        ArgumentError,
        "adaptive_avg_pool2d: size must be an int or a pair of ints, got (1.5, 2)",
    ),
    "no windows": (
        lambda: ops.adaptive_avg_pool2d(IMAGE, (0, 2)),
        ArgumentError,
        "adaptive_avg_pool2d: size must be at least 1, got (0, 2)",
    ),
    "groups that are not an int": (
        lambda: ops.conv2d(IMAGE, zeros(2, 3, 3, 1), groups=2.0),
        ShapeError,
        "conv2d: 2.0 groups do not divide 2 channels and 2 filters",
    ),
    "True as the number of groups": (
        lambda: ops.conv2d(IMAGE, zeros(2, 3, 3, 2), groups=True),
        ShapeError,
        "conv2d: True groups",
    ),
    "a vector that does not fit a matrix": (
        lambda: ops.matmul(zeros(2, 3), zeros(4)),
        ShapeError,
        "matmul: a has 3 columns, b has 4 rows\n  a (2, 3), b (4,)",
    ),
    "a product with a number": (
        lambda: ops.matmul(zeros(2, 3), zeros()),
        ShapeError,
        "matmul: expected matrices, got shapes (2, 3) and ()",
    ),
    "a linear layer for other features": (
        lambda: ops.linear(zeros(2, 3), zeros(5, 4)),
        ShapeError,
        "linear: x has 3 features, weight expects 4\n  x (2, 3), weight (5, 4)",
    ),
    "a bias for other outputs": (
        lambda: ops.linear(zeros(2, 3), zeros(5, 3), zeros(4)),
        ShapeError,
        "linear: expected bias of shape (5,), got (4,)",
    ),
    "a dtype of the bias alone": (
        lambda: ops.linear(zeros(2, 3), zeros(5, 3), zeros(5, dtype=np.float64)),
        DtypeError,
        "linear: x is float32, weight is float32, bias is float64",
    ),
    "a running mean of other channels": (
        lambda: ops.batch_norm(zeros(4, 3), zeros(3), zeros(3), np.ones(2), np.ones(3), True),
        ShapeError,
        "batch_norm: x (4, 3) has (3,) channels, running_mean has shape (2,)",
    ),
    "a window that begins below the image": (
        lambda: ops.max_pool2d(IMAGE, 2, padding=((0, 2), (0, 0))),
        ShapeError,
        "max_pool2d: a window of 2 x 2 pixels sees only padding\n"
        "  x (1, 4, 4, 2), padding ((0, 2), (0, 0))",
    ),
    "a window that begins beside the image": (
        lambda: ops.avg_pool2d(IMAGE, 2, padding=((0, 0), (0, 2))),
        ShapeError,
        "avg_pool2d: a window of 2 x 2 pixels sees only padding",
    ),
    "padding above as high as the window": (
        lambda: ops.max_pool2d(IMAGE, 2, padding=((2, 0), (0, 0))),
        ShapeError,
        "sees only padding",
    ),
    "padding to the left as wide as the window": (
        lambda: ops.max_pool2d(IMAGE, 2, padding=((0, 0), (2, 0))),
        ShapeError,
        "sees only padding",
    ),
    "a negative label": (
        lambda: ops.cross_entropy(zeros(2, 3), [-1, 1]),
        ArgumentError,
        "cross_entropy: labels must be in 0..2, got -1..1",
    ),
    "a label that is the number of classes": (
        lambda: ops.cross_entropy(zeros(2, 3), [0, 3]),
        ArgumentError,
        "cross_entropy: labels must be in 0..2, got 0..3",
    ),
    "labels for logits of one axis": (
        lambda: ops.cross_entropy(zeros(3), 0),
        ShapeError,
        "logits (3,) need labels of shape (), got ()",
    ),
    "no examples": (
        lambda: ops.cross_entropy(zeros(0, 3), np.zeros(0, int)),
        ShapeError,
        "no examples to average over in logits (0, 3)",
    ),
    "weights for other classes": (
        lambda: ops.cross_entropy(zeros(2, 3), [0, 1], np.ones(2)),
        ShapeError,
        "expected 3 class weights, got shape (2,)",
    ),
    "smoothing below zero": (
        lambda: ops.cross_entropy(zeros(2, 3), [0, 1], label_smoothing=-0.1),
        ArgumentError,
        "label_smoothing must be in [0, 1), got -0.1",
    ),
    "dropout below zero": (
        lambda: ops.dropout(zeros(2), -0.1),
        ArgumentError,
        "dropout: p must be in [0, 1), got -0.1",
    ),
    "a target without elements": (
        lambda: ops.mse_loss(zeros(0, 3), zeros(0, 3)),
        ShapeError,
        "mse_loss: nothing to average in shape (0, 3)",
    ),
    "a target of another shape": (
        lambda: ops.mse_loss(zeros(2, 3), zeros(3)),
        ShapeError,
        "mse_loss: x (2, 3) and target (3,) differ",
    ),
    "all of the label smoothed away": (
        lambda: ops.cross_entropy(zeros(2, 3), [0, 1], label_smoothing=1.0),
        ArgumentError,
        "label_smoothing must be in [0, 1), got 1.0",
    ),
    "a norm of zero": (
        lambda: optim.clip_grad_norm_([zeros(2)], 0.0),
        ArgumentError,
        "clip_grad_norm_: max_norm must be positive, got 0.0",
    ),
}


def test_padding_one_smaller_than_the_window_is_accepted():
    for padding in (((1, 0), (0, 0)), ((0, 1), (0, 0)), ((0, 0), (1, 0)), ((0, 0), (0, 1))):
        shape = ops.max_pool2d(IMAGE, 2, 1, padding).shape
        assert shape == ops.avg_pool2d(IMAGE, 2, 1, padding).shape
        assert sorted(shape[1:3]) == [3, 4]


def test_the_first_and_the_last_label_are_accepted():
    assert ops.cross_entropy(zeros(2, 3), [0, 2]).item() == pytest.approx(np.log(3))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_op_refuses_and_says_what_it_was_given(mistake):
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        call()
    assert message in str(caught.value)


FLOATS_ONLY = {
    "adaptive_avg_pool2d": lambda x: ops.adaptive_avg_pool2d(x, 2),
    "avg_pool2d": lambda x: ops.avg_pool2d(x, 2),
    "batch_norm": batch_norm,
    "dropout": lambda x: ops.dropout(x, 0.0),
    "exp": ops.exp,
    "gelu": ops.gelu,
    "global_avg_pool2d": ops.global_avg_pool2d,
    "leaky_relu": ops.leaky_relu,
    "local_response_norm": ops.local_response_norm,
    "log": ops.log,
    "log_softmax": ops.log_softmax,
    "max_pool2d": lambda x: ops.max_pool2d(x, 2),
    "mean": ops.mean,
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "softmax": ops.softmax,
    "sqrt": ops.sqrt,
    "tanh": ops.tanh,
    "var": ops.var,
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
@pytest.mark.parametrize("name", FLOATS_ONLY)
def test_an_op_for_floats_refuses_integers_by_its_own_name(name, dtype):
    words = f"^{name}: (expected floating-point values, got|x is) {np.dtype(dtype)}"
    with pytest.raises(DtypeError, match=words):
        FLOATS_ONLY[name](zeros(1, 4, 4, 2, dtype=dtype))


@pytest.mark.parametrize("name", sorted(FLOATS_ONLY.keys() - {"batch_norm"}))
def test_an_op_takes_an_array_in_place_of_a_tensor(name, rng):
    x = rng.uniform(0.5, 1, (1, 4, 4, 2)).astype(np.float32)
    y = FLOATS_ONLY[name](x)
    assert isinstance(y, gpucnn.Tensor)
    np.testing.assert_array_equal(y.data, FLOATS_ONLY[name](gpucnn.tensor(x)).data)


def test_convolution_takes_arrays_and_numpys_integers(rng):
    x, w = (rng.standard_normal(s).astype(np.float32) for s in ((1, 5, 5, 2), (4, 3, 3, 1)))
    y = ops.conv2d(x, w, groups=np.int64(2))
    expected = ops.conv2d(gpucnn.tensor(x), gpucnn.tensor(w), groups=2)
    np.testing.assert_array_equal(y.data, expected.data)


def test_a_conversion_to_integers_has_no_gradient_and_one_to_floats_has(device):
    x = leaf([1.5, -2.5], device)
    for dtype in ("int64", np.uint8, bool):
        y = x.astype(dtype)
        assert y.dtype == dtype
        assert not y.requires_grad
    assert x.astype(np.float64).requires_grad
    assert x.astype(x.dtype) is x


def test_a_whole_number_surrounds_integers(device):
    x = tensor(np.array([7, 8]), device)
    assert host(ops.pad(x, [(1, 2)])).tolist() == [0, 7, 8, 0, 0]
    assert host(ops.pad(x, [(1, 0)], 3.0)).tolist() == [3, 7, 8]


def test_the_ends_of_a_dtypes_range_are_accepted_as_numbers():
    x = zeros(1, dtype=np.int8)
    assert (x + 127).data.tolist() == [127]
    assert (x + -128).data.tolist() == [-128]
