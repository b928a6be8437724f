"""The reference of the kernels' tests: the definitions as loops over pixels, in float64."""

import numpy as np

from gpucnn.ops.geometry import Geometry

Floats = np.ndarray


def conv2d(x: Floats, weight: Floats, bias: Floats, dy: Floats, g: Geometry) -> tuple[Floats, ...]:
    """y, dx, dweight and dbias for the gradient dy."""
    x, weight, bias, dy = (a.astype(np.float64) for a in (x, weight, bias, dy))
    y = np.zeros(dy.shape) + bias
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    channels, filters = g.c // g.groups, weight.shape[0] // g.groups
    for i, j, row, column, r, s in taps(g):
        for group in range(g.groups):
            c = slice(group * channels, (group + 1) * channels)
            o = slice(group * filters, (group + 1) * filters)
            y[:, i, j, o] += x[:, row, column, c] @ weight[o, r, s].T
            dx[:, row, column, c] += dy[:, i, j, o] @ weight[o, r, s]
            dweight[o, r, s] += dy[:, i, j, o].T @ x[:, row, column, c]
    return y, dx, dweight, dy.sum(axis=(0, 1, 2))


def max_pool2d(x: Floats, dy: Floats, g: Geometry) -> tuple[Floats, Floats]:
    """y and dx; on a tie the first in row order takes the gradient."""
    y = np.full(dy.shape, -np.inf)
    winner = np.full((*dy.shape, 2), -1)
    for i, j, row, column, _, _ in taps(g):
        larger = (x[:, row, column] > y[:, i, j]) | (winner[:, i, j, :, 0] < 0)
        y[:, i, j][larger] = x[:, row, column][larger]
        winner[:, i, j][larger] = row, column
    dx = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(dy.shape):
        row, column = winner[n, i, j, c]
        dx[n, row, column, c] += dy[n, i, j, c]
    return y, dx


def avg_pool2d(x: Floats, dy: Floats, g: Geometry, padding_counts: bool) -> tuple[Floats, Floats]:
    """y and dx, where no window extends past the padding."""
    counts = np.zeros((g.oh, g.ow))
    for i, j, *_ in taps(g):
        counts[i, j] += 1
    if padding_counts:
        counts[:] = g.kh * g.kw
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for i, j, row, column, _, _ in taps(g):
        y[:, i, j] += x[:, row, column] / counts[i, j]
        dx[:, row, column] += dy[:, i, j] / counts[i, j]
    return y, dx


def taps(g: Geometry) -> list[tuple[int, ...]]:
    """Every (i, j, row, column, r, s): output (i, j) sees (row, column) through tap (r, s)."""
    return [
        (i, j, row, column, r, s)
        for i in range(g.oh)
        for r in range(g.kh)
        if 0 <= (row := i * g.stride_h - g.top + r * g.dilation_h) < g.h
        for j in range(g.ow)
        for s in range(g.kw)
        if 0 <= (column := j * g.stride_w - g.left + s * g.dilation_w) < g.w
    ]
