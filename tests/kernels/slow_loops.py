"""The kernels' judge: the definitions as loops, in float64, over channels and batch at once."""

import numpy as np

from gpucnn.ops.geometry import Geometry

Floats = np.ndarray


def conv2d(x: Floats, w: Floats, b: Floats, dy: Floats, v: Geometry) -> tuple[Floats, ...]:
    """y, dx, dw and db for the gradient dy."""
    x, w, b, dy = (a.astype(np.float64) for a in (x, w, b, dy))
    y = np.zeros(dy.shape) + b
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    channels, filters = v.c // v.groups, w.shape[0] // v.groups
    for i, j, row, column, r, s in taps(v):
        for group in range(v.groups):
            c = slice(group * channels, (group + 1) * channels)
            o = slice(group * filters, (group + 1) * filters)
            y[:, i, j, o] += x[:, row, column, c] @ w[o, r, s].T
            dx[:, row, column, c] += dy[:, i, j, o] @ w[o, r, s]
            dw[o, r, s] += dy[:, i, j, o].T @ x[:, row, column, c]
    return y, dx, dw, dy.sum(axis=(0, 1, 2))


def max_pool2d(x: Floats, dy: Floats, v: Geometry) -> tuple[Floats, Floats]:
    """y and dx: the first of equals in row order takes the gradient."""
    y = np.full(dy.shape, -np.inf)
    winner = np.full((*dy.shape, 2), -1)
    for i, j, row, column, _, _ in taps(v):
        larger = (x[:, row, column] > y[:, i, j]) | (winner[:, i, j, :, 0] < 0)
        y[:, i, j][larger] = x[:, row, column][larger]
        winner[:, i, j][larger] = row, column
    dx = np.zeros(x.shape)
    for n, i, j, c in np.ndindex(dy.shape):
        row, column = winner[n, i, j, c]
        dx[n, row, column, c] += dy[n, i, j, c]
    return y, dx


def avg_pool2d(x: Floats, dy: Floats, v: Geometry, padding_counts: bool) -> tuple[Floats, Floats]:
    """y and dx, for a window that does not hang over the padding."""
    counts = np.zeros((v.oh, v.ow))
    for i, j, *_ in taps(v):
        counts[i, j] += 1
    if padding_counts:
        counts[:] = v.kh * v.kw
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for i, j, row, column, _, _ in taps(v):
        y[:, i, j] += x[:, row, column] / counts[i, j]
        dx[:, row, column] += dy[:, i, j] / counts[i, j]
    return y, dx


def taps(v: Geometry) -> list[tuple[int, ...]]:
    """Every (i, j, row, column, r, s): output (i, j) sees (row, column) through tap (r, s)."""
    return [
        (i, j, row, column, r, s)
        for i in range(v.oh)
        for r in range(v.kh)
        if 0 <= (row := i * v.stride_h - v.top + r * v.dilation_h) < v.h
        for j in range(v.ow)
        for s in range(v.kw)
        if 0 <= (column := j * v.stride_w - v.left + s * v.dilation_w) < v.w
    ]
