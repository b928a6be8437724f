"""ReLU and max pooling fused into conv2d, against separate ops."""

import numpy as np
import pytest
from conv_cases import every_engine, rng, use
from devices import host, in_both_dtypes, leaf, relative, results

import gpucnn
from gpucnn import ops
from gpucnn.ops import MaxPool, conv2d

POOLS = [
    None,
    MaxPool(2),
    MaxPool((1, 3)),
    MaxPool(3, 2, 1),
    MaxPool((2, 3), (2, 1), "same", ceil_mode=True),
]


def max_pool2d(y, pool):
    """ops.max_pool2d with the arguments in `pool`."""
    return ops.max_pool2d(y, pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("relu", [False, True])
@in_both_dtypes
@every_engine
def test_fused_relu_and_pooling_equal_separate_ops(relu, pool, engine, dtype, device, request):
    use(engine, request)
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((2, 7, 6, 5), (4, 3, 3, 5), (4,))]
    runs = []
    for fused in (True, False):
        leaves = [leaf(a, device) for a in arrays]
        if fused:
            y = conv2d(*leaves, padding=1, relu=relu, pool=pool)
        else:
            y = conv2d(*leaves, padding=1)
            y = ops.relu(y) if relu else y
            y = y if pool is None else max_pool2d(y, pool)
        runs.append(results(y, host(y), *leaves))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for fused, separate in zip(*runs, strict=True):  # gradients are summed in another order
        assert relative(fused, separate) < (1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("size", [8, 10, 16])  # 10: the last tiles extend past the edge
def test_fused_pooling_of_a_wide_convolution_equals_a_separate_op(size):
    gpucnn.set_conv_algorithm("winograd")
    arrays = [rng.standard_normal(s) for s in ((3, size, size, 96), (96, 3, 3, 96))]
    runs = []
    for pool in (MaxPool(2), None):
        leaves = [leaf(a, "cpu") for a in arrays]
        y = conv2d(*leaves, padding=1, relu=True, pool=pool)
        y = y if pool else ops.max_pool2d(y, 2)
        runs.append(results(y, host(y), *leaves))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for fused, separate in zip(*runs, strict=True):
        assert relative(fused, separate) < 1e-13


@pytest.mark.parametrize("algorithm", ["winograd", "exact"])
def test_fused_pooling_of_many_more_filters_than_pixels_equals_a_separate_op(algorithm):
    gpucnn.set_conv_algorithm(algorithm)
    arrays = [rng.standard_normal(s) for s in ((3, 16, 16, 1), (512, 3, 3, 1), (512,))]
    runs = []
    for pool in (MaxPool(2), None):
        leaves = [leaf(a, "cpu") for a in arrays]
        y = conv2d(*leaves, padding=1, pool=pool)
        y = y if pool else ops.max_pool2d(y, 2)
        runs.append(results(y, host(y), *leaves))
    for fused, separate in zip(*runs, strict=True):
        assert relative(fused, separate) < 1e-13


@pytest.mark.parametrize("pool", [MaxPool((1, 300)), MaxPool((255, 1))])
def test_fused_pooling_finds_the_winner_of_long_windows(pool):
    gpucnn.set_conv_algorithm("exact")
    shape = (1, 1, 600, 1) if pool.kernel_size[1] > 1 else (1, 510, 1, 1)
    x, weight = rng.standard_normal(shape), np.ones((1, 1, 1, 1))
    gradients = []
    for fused in (True, False):
        leaves = [leaf(a, "cpu") for a in (x, weight)]
        y = conv2d(*leaves, pool=pool if fused else None)
        y = y if fused else max_pool2d(y, pool)
        gradients.append(results(y, host(y), *leaves)[1])
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(("dilation", "groups"), [(2, 1), (1, 2), ((3, 2), 2)])
def test_fused_relu_and_pooling_after_space_to_batch_equal_separate_ops(dilation, groups):
    gpucnn.set_conv_algorithm("winograd")
    arrays = [rng.standard_normal(s) for s in ((9, 9, 8, 4), (6, 3, 3, 4 // groups), (6,))]
    runs = []
    for fused in (True, False):
        leaves = [gpucnn.tensor(a, requires_grad=True) for a in arrays]
        pool = MaxPool(2) if fused else None
        y = conv2d(*leaves, 1, 2, dilation, groups, relu=fused, pool=pool)
        y = y if fused else ops.max_pool2d(ops.relu(y), 2)
        (y * y).sum().backward()
        runs.append([y.data, *(leaf.grad for leaf in leaves)])
    for fused, separate in zip(*runs, strict=True):
        np.testing.assert_array_equal(fused, separate)
