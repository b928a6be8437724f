"""Convolution, pooling, resizing as steps of a random graph, with every form of their arguments."""

import math
from typing import Any

import numpy as np
from random_graphs import Graph, Pair

from gpucnn import ops

try:
    import torch
    import torch.nn.functional as F
except ImportError:  # the tests skip
    torch = F = None


def nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def conv2d(graph: Graph) -> Pair:
    x = graph.image()
    _, h, width, c = x.shape
    groups = graph.settings(1, 1, 2 if c % 2 == 0 else 1)
    kh, kw = graph.settings(1, 2, 3, 5), graph.settings(1, 3, 5)
    w = graph.leaf((2 * groups, kh, kw, c // groups))
    b = graph.leaf(w.shape[:1]) if graph.rng.random() < 0.7 else None
    stride, dilation = graph.settings(1, 1, 2, (2, 1)), graph.settings(1, 2)
    padding = graph.settings(1, 2, "same", (1, 2), ((0, 2), (2, 1)))
    if min(h - dilation * (kh - 1), width - dilation * (kw - 1)) < 1:
        dilation, padding = 1, 2
    sides = _sides((h, width), (kh, kw), _two(stride), padding, dilation)
    theirs = F.conv2d(
        _padded(x.theirs, sides), nchw(w.theirs).contiguous(), None if b is None else b.theirs,
        stride, 0, dilation, groups,
    )  # fmt: skip
    values = np.sort(theirs.detach().numpy(), axis=None)
    relu = bool(graph.rng.random() < 0.5 and np.abs(values).min(initial=1) > 1e-3)
    apart = np.diff(values).min(initial=1) > 1e-3  # or a pool's choice may be rounding's
    pool = ops.MaxPool(2, 1, 1) if apart and graph.rng.random() < 0.5 else None
    theirs = F.relu(theirs) if relu else theirs
    theirs = theirs if pool is None else F.max_pool2d(theirs, 2, 1, 1)
    bias = None if b is None else b.ours
    ours = ops.conv2d(x.ours, w.ours, bias, stride, padding, dilation, groups, relu, pool)
    return Pair(ours, nhwc(theirs))


def _two(size: Any) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _sides(
    image: Any, window: Any, stride: Any, padding: Any, dilation: int = 1
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a padding argument."""
    if padding == "same":
        missing = [
            max((math.ceil(n / s) - 1) * s + (k - 1) * dilation + 1 - n, 0)
            for n, k, s in zip(image, window, stride, strict=True)
        ]
        return tuple((n // 2, n - n // 2) for n in missing)  # type: ignore[return-value]
    vertical, horizontal = _two(padding)
    return _two(vertical), _two(horizontal)


def _padded(x: Any, sides: Any, value: float = 0.0) -> Any:
    """PyTorch's images (N, C, H, W), padded, from x (N, H, W, C)."""
    (top, bottom), (left, right) = sides
    return F.pad(nchw(x), (left, right, top, bottom), value=value)


def _window(graph: Graph, x: Pair) -> tuple[Any, Any, Any, bool]:
    """kernel_size, stride, padding and ceil_mode of a pool."""
    kh, kw = (min(graph.settings(1, 2, 3), n) for n in x.shape[1:3])
    sides = (kh // 2, 0), (kw // 2, kw - 1)
    padding = graph.settings(0, "valid", min(kh, kw) // 2, (kh // 2, kw // 2), sides)
    one_sided = isinstance(padding, tuple) and isinstance(padding[0], tuple)
    # PyTorch's ceil_mode has no one-sided padding.
    ceil = bool(graph.settings(False, True)) and not one_sided
    return (kh, kw), graph.settings(1, 2, (2, 3), None), padding, ceil


def _pool_arguments(x: Any, window: Any, stride: Any, padding: Any, value: float) -> Any:
    """PyTorch's images, stride and padding: one-sided padding is part of the images."""
    stride = window if stride is None else stride
    (top, bottom), (left, right) = _sides((), (), (), 0 if padding == "valid" else padding)
    if (top, left) == (bottom, right):
        return nchw(x), stride, (top, left)
    return _padded(x, ((top, bottom), (left, right)), value), stride, 0


def max_pool2d(graph: Graph) -> Pair:
    x = graph.apart(graph.image())
    window, stride, padding, ceil = _window(graph, x)
    images, step, zeros = _pool_arguments(x.theirs, window, stride, padding, -np.inf)
    # Winners are found where -infinity is finite, so that padding does not tie with it.
    finite = torch.where(x.theirs == -np.inf, -1e300, x.theirs)
    found = _pool_arguments(finite, window, stride, padding, -np.inf)[0]
    winners = F.max_pool2d(found, window, step, zeros, ceil_mode=ceil, return_indices=True)[1]
    theirs = images.flatten(2).gather(2, winners.flatten(2)).reshape(winners.shape)
    return Pair(ops.max_pool2d(x.ours, window, stride, padding, ceil), nhwc(theirs))


def avg_pool2d(graph: Graph) -> Pair:
    x, count = graph.image(), bool(graph.settings(False, True))
    window, stride, padding, ceil = _window(graph, x)
    images, step, zeros = _pool_arguments(x.theirs, window, stride, padding, 0)
    theirs = F.avg_pool2d(images, window, step, zeros, ceil, count)
    if zeros == 0 and not count:  # divide by the share of each window that is on the image
        ones = _pool_arguments(torch.ones_like(x.theirs), window, stride, padding, 0)[0]
        theirs = theirs / F.avg_pool2d(ones, window, step)
    return Pair(ops.avg_pool2d(x.ours, window, stride, padding, ceil, count), nhwc(theirs))


def adaptive_avg_pool2d(graph: Graph) -> Pair:
    x, size = graph.image(), (graph.settings(1, 2, 3), graph.settings(1, 2, 4))
    theirs = F.adaptive_avg_pool2d(nchw(x.theirs), size)
    return Pair(ops.adaptive_avg_pool2d(x.ours, size), nhwc(theirs))


def global_avg_pool2d(graph: Graph) -> Pair:
    x = graph.image()
    return Pair(ops.global_avg_pool2d(x.ours), x.theirs.mean((1, 2)))


def conv_transpose2d(graph: Graph) -> Pair:
    x = graph.image()
    c = x.shape[3]
    groups = graph.settings(1, 1, 2 if c % 2 == 0 else 1)
    kh, kw = graph.settings(1, 2, 3, 5), graph.settings(1, 3)
    w = graph.leaf((c, kh, kw, 2))
    b = graph.leaf((2 * groups,)) if graph.rng.random() < 0.7 else None
    stride, dilation = graph.settings(1, 2, (2, 3)), graph.settings(1, 2)
    extra = graph.settings(0, 1) if dilation == 2 or stride != 1 else 0
    padding = graph.settings(0, ((kh - 1) // 2, (kw - 1) // 2))
    rest = padding, extra, groups, dilation
    bias = (None, None) if b is None else (b.ours, b.theirs)
    theirs = F.conv_transpose2d(nchw(x.theirs), nchw(w.theirs), bias[1], stride, *rest)
    return Pair(ops.conv_transpose2d(x.ours, w.ours, bias[0], stride, *rest), nhwc(theirs))


def interpolate(graph: Graph) -> Pair:
    x = graph.image()
    mode = graph.settings({"mode": "nearest"}, {"mode": "bilinear", "align_corners": False},
                          {"mode": "bilinear", "align_corners": True})  # fmt: skip
    size = graph.settings({"size": (3, 7)}, {"size": 1}, {"scale_factor": 2},
                          {"scale_factor": (1.7, 1.0)})  # fmt: skip
    if mode["mode"] == "bilinear":  # 0 * infinity depends on which neighbours have a weight of 0
        x = graph.finite(x.shape)
    theirs = F.interpolate(nchw(x.theirs), **size, **mode)
    return Pair(ops.interpolate(x.ours, **size, **mode), nhwc(theirs))
