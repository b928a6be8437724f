import numpy as np
import pytest
from devices import assert_close, backward, host, in_both_dtypes, leaf, results, tensor

from gpucnn import ops
from gpucnn.device import array_module
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.testing import gradcheck


@in_both_dtypes
def test_reshape_and_flatten_keep_row_order(dtype, device, rng):
    x = rng.random((2, 3, 4)).astype(dtype)
    t = tensor(x, device)
    assert np.array_equal(host(ops.reshape(t, (4, -1))), x.reshape(4, 6))
    assert ops.flatten(t).shape == (2, 12)
    assert t.reshape(6, 4).shape == t.reshape((6, 4)).shape == (6, 4)
    assert ops.flatten(tensor(np.zeros((0, 2, 2, 3)), device)).shape == (0, 12)
    gradcheck(lambda t: ops.reshape(t, (4, 6)) * 2.0, x, device=device)


@pytest.mark.parametrize("shape", [(5, 5), (-1, -1), (-2, 12), (7, -1)], ids=str)
def test_a_reshape_that_does_not_fit_is_refused(shape, device):
    with pytest.raises(ShapeError, match=r"has 24 elements and cannot become"):
        ops.reshape(tensor(np.zeros((2, 3, 4)), device), shape)


def test_transpose_orders_axes_and_is_contiguous(device, rng):
    x = rng.random((2, 3, 4))
    t = tensor(x, device)
    y = ops.transpose(t, (2, 0, -2))
    assert np.array_equal(host(y), x.transpose(2, 0, 1))
    assert y.data.flags.c_contiguous
    assert t.T.shape == (4, 3, 2)
    gradcheck(lambda t: ops.transpose(t, (1, 2, 0)), x, device=device)
    with pytest.raises(ArgumentError, match="do not order the 3 axes"):
        ops.transpose(t, (0, 0, 1))


def test_layout_converters_are_each_others_inverse(device, rng):
    x = tensor(rng.random((2, 3, 4, 5)), device)
    assert ops.from_nchw(x).shape == (2, 4, 5, 3)
    assert np.array_equal(host(ops.to_nchw(ops.from_nchw(x))), host(x))
    with pytest.raises(ShapeError, match=r"expected images \(N, C, H, W\)"):
        ops.from_nchw(x[0])


def test_concatenate_joins_and_splits_the_gradient(device, rng):
    arrays = rng.random((2, 3)), rng.random((2, 1))
    a, b = (tensor(array, device) for array in arrays)
    assert np.array_equal(host(ops.concatenate([a, b], 1)), np.concatenate(arrays, 1))
    gradcheck(lambda a, b: ops.concatenate([a, b], -1), *arrays, device=device)
    with pytest.raises(ShapeError, match=r"\(2, 1\) does not fit \(2, 3\) along axis 0"):
        ops.concatenate([a, b], 0)
    with pytest.raises(DtypeError, match="dtypes float64 and float32 differ"):
        ops.concatenate([a, b.astype(np.float32)], 1)
    with pytest.raises(ArgumentError, match="at least one tensor"):
        ops.concatenate([])


def test_pad_surrounds_x_and_its_gradient_is_the_inner_part_of_dy(device, rng):
    x = rng.random((2, 3))
    assert np.array_equal(
        host(ops.pad(tensor(x, device), ((0, 1), (2, 0)), -1.0)),
        np.pad(x, ((0, 1), (2, 0)), constant_values=-1),
    )
    gradcheck(lambda t: ops.pad(t, ((0, 1), (2, 0))), x, device=device)
    with pytest.raises(ArgumentError, match="expected 2 pairs of non-negative widths"):
        ops.pad(tensor(x, device), ((0, 1),))


@pytest.mark.parametrize(
    ("dtype", "value", "kind", "message"),
    [
        (np.int64, np.float32(0.5), DtypeError, "value 0.5 in a tensor of int64"),
        (np.uint8, -1, DtypeError, "-1 is out of range for a tensor of uint8"),
        (np.int8, 128.0, DtypeError, "128 is out of range for a tensor of int8"),
        (np.float32, "a", ArgumentError, "expected a number as value, got str"),
    ],
)
def test_pad_refuses_a_value_that_the_tensor_cannot_hold(dtype, value, kind, message, device):
    x = tensor(np.zeros(2, dtype), device, dtype)
    with pytest.raises(kind, match=f"^pad: {message}"):
        ops.pad(x, [(1, 1)], value)


INDICES = [
    0,
    -1,
    np.int64(-2),
    slice(1, None),
    (slice(None), 1),
    (None, 0, ...),
    (..., slice(None, None, -2)),
    [0, 2, 2],
    np.array([0, 2, 2]),
    np.array([2, -1, -3, 0, 2, -1, 2]),
    np.array([1], np.uint8),
    np.array([], np.int64),
    np.array([[0, -1], [2, 2]]),
    (np.array([0, 0, 1]), np.array([1, 1, 3])),
    (np.array([[0], [2]]), np.array([1, 1, -1])),
    (slice(None), np.array([3, 3, 0])),
    (slice(None, None, 2), np.array([[1, 1]])),
    (np.array([1, 1]), slice(None, None, -2)),
    (np.array([1, 1]), None, 2),
    (..., np.array([0, -4, 1])),
    (np.array([0, 0]), ...),
    (1, np.array([0, 0, 3])),
    np.arange(12).reshape(3, 4) % 5 == 0,
    np.array([True, False, True]),
    np.array([False] * 3),
    (slice(None), np.array([True, False, True, True])),
    (np.array([True, True, False]), np.array([0, 0])),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_an_index_equals_numpys_and_gradients_of_repeated_elements_are_summed(index, device, rng):
    x = rng.random((3, 4))

    def here(part):
        return tensor(part, device) if isinstance(part, np.ndarray) else part

    on_device = tuple(map(here, index)) if isinstance(index, tuple) else here(index)
    y = tensor(x, device)[on_device]
    assert np.array_equal(host(y), x[index])
    assert y.shape == x[index].shape
    gradcheck(lambda t: t[on_device], x, device=device)


@pytest.mark.parametrize(
    "index", [(..., 1), (..., [1, 0, 1]), (slice(None), 0, [4, 4]), ([0, 0], slice(None), 1)]
)
def test_an_index_of_some_axes_leaves_the_others_whole(index, device, rng):
    x = rng.random((2, 3, 5, 2))

    def pick(t):
        parts = (tensor(np.array(i), device) if isinstance(i, list) else i for i in index)
        return t[tuple(parts)]

    assert np.array_equal(host(pick(tensor(x, device))), x[index])
    gradcheck(pick, x, device=device)


@in_both_dtypes
def test_the_sum_of_many_gradients_of_one_element_has_the_same_bits_every_time(dtype, device, rng):
    index = rng.integers(0, 7, 10_001)
    index[:5000] = 3
    dy = rng.standard_normal((10_001, 3)).astype(dtype)
    expected, found = np.zeros((9, 3)), []
    np.add.at(expected, index, dy.astype(np.float64))
    for _ in range(3):
        x = leaf(np.zeros((9, 3), dtype), device)
        backward(x[tensor(index, device)], dy)
        found.append(host(x.grad))
    assert_close(found[0], expected)
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


def test_an_index_into_an_axis_of_size_zero_has_a_gradient_of_that_shape(device):
    x = leaf(np.zeros((3, 0)), device)
    index = tensor([0, 0], device)
    assert results(x[index], np.zeros((2, 0)), x)[1].shape == (3, 0)


def test_no_gradient_is_added_by_atomics_on_a_gpu(gpu, monkeypatch):
    x = leaf(np.zeros(4), gpu)
    y = x[tensor([1, 1, 2], gpu)]
    monkeypatch.delattr(array_module(x.data), "add")
    backward(y, [1.0, 2.0, 4.0])
    assert host(x.grad).tolist() == [0, 3, 4, 0]


def test_an_index_out_of_range_is_refused(device):
    with pytest.raises(ShapeError, match=r"out of bounds.*x has shape \(3,\)"):
        tensor([1.0, 2.0, 3.0], device)[3]


def test_an_index_array_out_of_range_is_refused_by_the_backward_pass_at_the_latest(device):
    x = leaf(np.zeros(3), device)
    with pytest.raises(ShapeError, match=r"out of bounds.*x has shape \(3,\)"):
        backward(x[tensor([0, 3], device)], [1.0, 1.0])


def test_astype_converts_x_and_converts_the_gradient_back(device):
    x = leaf(np.array([1.0, 2.0], np.float32), device)
    assert x.astype("float32") is x
    y = x.astype(np.float64)
    (y * 3.0).sum().backward()
    assert y.dtype == np.float64
    assert x.grad.dtype == np.float32
