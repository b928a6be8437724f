"""The geometry of a sliding window."""

import numpy as np
import pytest

import gpucnn
from gpucnn import ops
from gpucnn.errors import ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops.geometry import Geometry


def rows(size, k, stride, padding, dilation=1, ceil_mode=False):
    """OH, and the padding above and below."""
    g = Geometry.of(
        "test", (1, size, 30, 1), (k, 1), (stride, 1), padding, (dilation, 1), ceil_mode=ceil_mode
    )
    return g.oh, g.top, g.bottom


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_same_gives_one_output_per_stride_and_puts_the_odd_zero_last(size, k, stride, dilation):
    oh, top, bottom = rows(size, k, stride, "same", dilation)
    needed = max((oh - 1) * stride + (k - 1) * dilation + 1 - size, 0)
    assert oh == ceil_div(size, stride)
    assert (top, bottom) == (needed // 2, needed - needed // 2)


def test_same_padding_of_an_even_filter_is_on_the_right_and_below():
    x, weight = np.arange(1.0, 5).reshape(1, 2, 2, 1), np.ones((1, 2, 2, 1))
    y = ops.conv2d(gpucnn.tensor(x), gpucnn.tensor(weight), padding="same")
    assert y.numpy().reshape(2, 2).tolist() == [[10, 6], [7, 4]]


@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_with_ceil_every_window_starts_on_the_image_or_the_padding_before_it(
    size, k, stride, before
):
    if before >= k or size + 2 * before < k:
        return
    oh, top, bottom = rows(size, k, stride, ((before, before), (0, 0)), ceil_mode=True)
    starts = [i for i in range(0, size + 2 * before, stride) if i < size + before]
    reach = size + 2 * before  # windows extend past it by less than a stride
    assert oh == len([i for i in starts if i + k < reach + stride])
    assert top == before
    assert bottom == max(before, (oh - 1) * stride + k - size - before)


def test_a_window_that_does_not_fit_is_an_error_with_the_size_of_the_padded_image():
    with pytest.raises(ShapeError, match=r"of 3 x 9 pixels .* of 7 x 8 \(padding included\)"):
        Geometry.of("test", (1, 4, 4, 1), (3, 9), padding=((1, 2), (3, 1)))
