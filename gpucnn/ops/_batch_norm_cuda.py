"""Batch normalisation on a GPU: the launches of kernels/batch_norm.cu."""

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.integers import ceil_div

_THREADS = 256
_SPLIT = 512  # rows that a split of a sum has at least


def _splits(rows: int) -> int:
    """Into how many parts the sums down the columns are split: from the shape alone."""
    return max(1, min(rows // _SPLIT, 128))


def forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array, Array]:
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    splits = _splits(rows)
    x = xp.ascontiguousarray(x)
    part = xp.empty((splits, 2, channels), np.float32)
    mean, var, scale = (xp.empty(channels, np.float32) for _ in range(3))
    y = xp.empty(x.shape, np.float32)
    cuda.launch(
        "batch_norm_moments",
        (ceil_div(channels, 32), splits),
        _THREADS,
        x,  # (rows, C)
        part,  # (splits, 2, C)
        rows,
        channels,
    )
    cuda.launch_elementwise(
        "batch_norm_combine",
        channels,
        part,  # (splits, 2, C)
        mean,  # (C,)
        var,  # (C,)
        scale,  # (C,)
        rows,
        channels,
        splits,
        eps,
    )
    cuda.launch_elementwise(
        "batch_norm_apply",
        x.size,
        x,  # (rows, C)
        mean,
        scale,
        gamma,  # (C,)
        beta,  # (C,)
        y,  # (rows, C)
        x.size,
        channels,
    )
    return y, mean, var, scale


def backward(
    dy: Array, x: Array, gamma: Array, mean: Array, scale: Array
) -> tuple[Array, Array, Array]:
    xp, channels = array_module(x), x.shape[-1]
    rows = x.size // channels
    splits = _splits(rows)
    dy, x = xp.ascontiguousarray(dy), xp.ascontiguousarray(x)
    part = xp.empty((splits, 2, channels), np.float32)
    sums = xp.empty((2, channels), np.float32)
    dx = xp.empty(x.shape, np.float32)
    cuda.launch(
        "batch_norm_products",
        (ceil_div(channels, 32), splits),
        _THREADS,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        part,  # (splits, 2, C)
        rows,
        channels,
    )
    cuda.launch_elementwise(
        "sum_splits",
        sums.size,
        part,  # (splits, 2 C)
        sums,  # (2 C)
        sums.size,
        splits,
    )
    cuda.launch_elementwise(
        "batch_norm_backward",
        x.size,
        dy,  # (rows, C)
        x,  # (rows, C)
        mean,  # (C,)
        scale,  # (C,)
        gamma,  # (C,)
        sums,  # (2, C)
        dx,  # (rows, C)
        x.size,
        channels,
        rows,
    )
    return dx, sums[1], sums[0]


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
    cuda.launch_elementwise(
        "scale_shift",
        x.size,
        x,  # (rows, C)
        scale,  # (C,)
        shift,  # (C,)
        y,  # (rows, C)
        x.size,
        x.shape[-1],
    )
    return y
