"""Every op as a step of a random graph: OPS has an entry for each.

It picks operands and settings, and applies gpucnn's op and PyTorch's.  Where an op has a kink or a
tie, constants first move its operand away from there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from random_graphs import Graph, Pair, broadcasts

import gpucnn
from gpucnn import ops
from gpucnn.device import Device

try:
    import torch
    import torch.nn.functional as F
except ImportError:  # the tests skip
    torch = F = None


def _like(f: Callable[..., Any], g: Callable[..., Any], prepare: str = "") -> Callable[..., Pair]:
    """An op with one operand and no settings."""

    def apply(graph: Graph) -> Pair:
        x = graph.pick()
        x = getattr(graph, prepare)(x) if prepare else x
        return Pair(f(x.ours), g(x.theirs))

    return apply


def _binary(f: Callable[..., Any], g: Callable[..., Any]) -> Callable[..., Pair]:
    def apply(graph: Graph) -> Pair:
        a, b = graph.two()
        return Pair(f(a.ours, b.ours), g(a.theirs, b.theirs))

    return apply


def _reduce(f: Any, g: Any, prepare: str = "") -> Callable[..., Pair]:
    def apply(graph: Graph) -> Pair:
        x = graph.pick()
        x = getattr(graph, prepare)(x) if prepare else x
        axes, keep = graph.axes(x), bool(graph.settings(False, True))
        theirs = tuple(range(x.ndim)) if axes is None else axes
        return Pair(f(x.ours, axes, keep), g(x.theirs, dim=theirs, keepdim=keep))

    return apply


def _along(f: Any, g: Any) -> Callable[..., Pair]:
    def apply(graph: Graph) -> Pair:
        x = graph.rows()
        axis = graph.axis(x)
        return Pair(f(x.ours, axis), g(x.theirs, dim=axis))

    return apply


def _nchw(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)


def _nhwc(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def _divide(graph: Graph) -> Pair:
    a, b = graph.two()
    if isinstance(b.ours, gpucnn.Tensor):
        b = graph.positive(b)
    return Pair(ops.divide(a.ours, b.ours), a.theirs / b.theirs)


def _power(graph: Graph) -> Pair:
    x, exponent = graph.pick(), graph.settings(1, 2, 3, 0.5, -0.5, -1, 1.5)
    x = x if exponent in (1, 2, 3) else graph.positive(x)
    return Pair(ops.power(x.ours, exponent), x.theirs**exponent)


def _where(graph: Graph) -> Pair:
    a, b = graph.two()
    shape = np.broadcast_shapes(*(getattr(p.ours, "shape", ()) for p in (a, b)))
    condition = graph.rng.random(shape) < 0.5
    theirs = torch.where(torch.tensor(condition), a.theirs, b.theirs)
    return Pair(ops.where(condition, a.ours, b.ours), theirs)


def _matmul(graph: Graph) -> Pair:
    a = graph.rows()
    depth = a.shape[-1]
    b = graph.leaf(graph.settings((depth,), (depth, 2), (depth, 3)))
    if graph.rng.random() < 0.5:  # an existing tensor, if one fits
        fits = [p for p in graph.results if p.ndim in (1, 2) and p.shape[0] == depth]
        b = fits[-1] if fits else b
    return Pair(ops.matmul(a.ours, b.ours), a.theirs @ b.theirs)


def _linear(graph: Graph) -> Pair:
    x = graph.rows()
    w = graph.leaf((graph.settings(1, 3), x.shape[-1]))
    b = graph.leaf(w.shape[:1]) if graph.rng.random() < 0.7 else None
    ours = ops.linear(x.ours, w.ours, None if b is None else b.ours)
    return Pair(ours, F.linear(x.theirs, w.theirs, None if b is None else b.theirs))


def _conv2d(graph: Graph) -> Pair:
    x = graph.image()
    _, h, width, c = x.shape
    groups = graph.settings(1, 1, 2 if c % 2 == 0 else 1)
    kh, kw = graph.settings(1, 2, 3), graph.settings(1, 3)
    w = graph.leaf((2 * groups, kh, kw, c // groups))
    b = graph.leaf(w.shape[:1]) if graph.rng.random() < 0.7 else None
    stride, padding, dilation = graph.settings(1, 1, 2), graph.settings(1, 2), graph.settings(1, 2)
    if min(h + 2 * padding - dilation * (kh - 1), width + 2 * padding - dilation * (kw - 1)) < 1:
        dilation, padding = 1, 2
    theirs = F.conv2d(
        _nchw(x.theirs), _nchw(w.theirs), None if b is None else b.theirs, stride, padding,
        dilation, groups,
    )  # fmt: skip
    values = np.sort(theirs.detach().numpy(), axis=None)
    relu = bool(graph.rng.random() < 0.5 and np.abs(values).min() > 1e-3)
    apart = np.diff(values).min(initial=1) > 1e-3  # or a pool's choice may be rounding's
    pool = ops.MaxPool(2, 1, 1) if apart and graph.rng.random() < 0.5 else None
    theirs = F.relu(theirs) if relu else theirs
    theirs = theirs if pool is None else F.max_pool2d(theirs, 2, 1, 1)
    bias = None if b is None else b.ours
    ours = ops.conv2d(x.ours, w.ours, bias, stride, padding, dilation, groups, relu, pool)
    return Pair(ours, _nhwc(theirs))


def _window(graph: Graph, x: Pair) -> tuple[int, int, int, bool]:
    """kernel_size, stride, padding and ceil_mode of a pool."""
    window = min(graph.settings(1, 2, 3), *x.shape[1:3])
    return window, graph.settings(1, 2), graph.settings(0, window // 2), graph.settings(False, True)


def _max_pool2d(graph: Graph) -> Pair:
    x = graph.apart(graph.image())
    window, stride, padding, ceil = _window(graph, x)
    theirs = F.max_pool2d(_nchw(x.theirs), window, stride, padding, ceil_mode=ceil)
    return Pair(ops.max_pool2d(x.ours, window, stride, padding, ceil), _nhwc(theirs))


def _avg_pool2d(graph: Graph) -> Pair:
    x, count = graph.image(), bool(graph.settings(False, True))
    window, stride, padding, ceil = _window(graph, x)
    theirs = F.avg_pool2d(_nchw(x.theirs), window, stride, padding, ceil, count)
    return Pair(ops.avg_pool2d(x.ours, window, stride, padding, ceil, count), _nhwc(theirs))


def _adaptive_avg_pool2d(graph: Graph) -> Pair:
    x, size = graph.image(), (graph.settings(1, 2, 3), graph.settings(1, 2, 4))
    theirs = F.adaptive_avg_pool2d(_nchw(x.theirs), size)
    return Pair(ops.adaptive_avg_pool2d(x.ours, size), _nhwc(theirs))


def _global_avg_pool2d(graph: Graph) -> Pair:
    x = graph.image()
    return Pair(ops.global_avg_pool2d(x.ours), x.theirs.mean((1, 2)))


def _batch_norm(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2)
    channels = x.shape[-1:]
    weight, bias = graph.leaf(channels), graph.leaf(channels)
    mean = graph.rng.standard_normal(channels)
    var = graph.rng.uniform(0.5, 2, channels)
    training = x.ours.size >= 2 * channels[0] and bool(graph.settings(False, True))
    ours = ops.batch_norm(
        x.ours, weight.ours, bias.ours, mean.astype(graph.dtype), var.astype(graph.dtype), training,
        eps=0.1,
    )  # fmt: skip
    rows = x.theirs.reshape(-1, *channels)
    statistics = [torch.tensor(v.astype(graph.dtype).astype(np.float64)) for v in (mean, var)]
    theirs = F.batch_norm(rows, *statistics, weight.theirs, bias.theirs, training, eps=0.1)
    return Pair(ours, theirs.reshape(x.shape))


def _local_response_norm(graph: Graph) -> Pair:
    x, size = graph.rows(), graph.settings(1, 2, 3, 5)
    channels = x.theirs.reshape(-1, x.shape[-1], 1)
    theirs = F.local_response_norm(channels, size, 0.1 * size, 0.75, 1.0).reshape(x.shape)
    return Pair(ops.local_response_norm(x.ours, size, 0.1, 0.75, 1.0), theirs)


def _dropout(graph: Graph) -> Pair:
    x, seed = graph.pick(), int(graph.rng.integers(1000))
    mask, ours = (
        ops.dropout(t, 0.3, True, np.random.default_rng(seed))
        for t in (graph.constant(np.ones(x.shape)).ours, x.ours)
    )
    return Pair(ours, x.theirs * torch.tensor(mask.numpy().astype(np.float64)))


def _leaky_relu(graph: Graph) -> Pair:
    x, slope = graph.away_from_zero(graph.pick()), graph.settings(0.01, 0.3)
    return Pair(ops.leaky_relu(x.ours, slope), F.leaky_relu(x.theirs, slope))


def _softmax_cross_entropy(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2)
    classes = x.shape[-1]
    labels = graph.rng.integers(0, classes, x.shape[:-1])
    smoothing, weights = graph.settings(0.0, 0.2), None
    if graph.rng.random() < 0.5:
        weights = graph.rng.uniform(0.5, 2, classes).astype(np.float32)
    theirs = F.cross_entropy(
        x.theirs.reshape(-1, classes),
        torch.tensor(labels.reshape(-1)),
        None if weights is None else torch.tensor(weights.astype(np.float64)),
        label_smoothing=smoothing,
    )
    return Pair(ops.cross_entropy(x.ours, labels, weights, smoothing), theirs)


def _mean_squared_error(graph: Graph) -> Pair:
    a = graph.pick()
    b = graph.pick(lambda p: p.shape == a.shape)
    return Pair(ops.mse_loss(a.ours, b.ours), F.mse_loss(a.theirs, b.theirs))


def _var(x: Any, dim: Any, keepdim: bool) -> Any:
    return torch.var(x, dim, unbiased=False, keepdim=keepdim)


def _reshape(graph: Graph) -> Pair:
    x = graph.pick()
    shapes = [(-1,), (1, -1), (x.ours.size, 1)] + [(2, -1)] * (x.ours.size % 2 == 0)
    shape = graph.settings(*shapes)
    return Pair(ops.reshape(x.ours, shape), x.theirs.reshape(shape))


def _flatten(graph: Graph) -> Pair:
    x = graph.rows()
    return Pair(ops.flatten(x.ours), x.theirs.reshape(x.shape[0], -1))


def _transpose(graph: Graph) -> Pair:
    x = graph.pick()
    axes = tuple(int(i) for i in graph.rng.permutation(x.ndim))
    if graph.rng.random() < 0.3:
        return Pair(ops.transpose(x.ours), torch.permute(x.theirs, tuple(range(x.ndim)[::-1])))
    return Pair(ops.transpose(x.ours, axes), torch.permute(x.theirs, axes))


def _concatenate(graph: Graph) -> Pair:
    a = graph.rows()
    axis = graph.axis(a)
    rest = [n for i, n in enumerate(a.shape) if i != axis % a.ndim]
    b = graph.pick(
        lambda p: (
            p.ndim == a.ndim and [n for i, n in enumerate(p.shape) if i != axis % a.ndim] == rest
        )
    )
    parts = [a, b, a][: graph.settings(1, 2, 3)]
    ours = ops.concatenate([p.ours for p in parts], axis)
    return Pair(ours, torch.cat([p.theirs for p in parts], axis))


def _pad(graph: Graph) -> Pair:
    x, value = graph.pick(), graph.settings(0.0, 1.5)
    widths = [tuple(int(n) for n in graph.rng.integers(0, 2, 2)) for _ in range(x.ndim)]
    flat = [n for pair in widths[::-1] for n in pair]
    theirs = F.pad(x.theirs, flat, value=value) if flat else x.theirs * 1
    return Pair(ops.pad(x.ours, widths, value), theirs)


def _getitem(graph: Graph) -> Pair:
    x = graph.pick()
    index: list[Any] = [...]
    if x.ndim:
        n = x.shape[0]
        index = [
            graph.settings(
                0, -1, slice(0, None, 2), slice(n - 1, None), None, np.array([0, n - 1, 0]),
                np.arange(n) % 2 == 0,
            ),
            ...,
        ]  # fmt: skip
    if x.ndim > 1:
        index += [graph.settings(0, slice(0, 1), slice(None))]
    theirs = tuple(torch.tensor(i) if isinstance(i, np.ndarray) else i for i in index)
    return Pair(ops.getitem(x.ours, tuple(index)), x.theirs[theirs])


def _astype(graph: Graph) -> Pair:
    """A leaf of the other dtype, in which its gradient must come back."""
    other = np.float64 if graph.dtype == np.float32 else np.float32
    x, y = graph.leaf(graph.settings((), (4,), (3, 4)), other), graph.pick()
    cast = Pair(ops.astype(x.ours, graph.dtype), x.theirs * 1)
    if not broadcasts(x.shape, y.shape):
        return cast
    return Pair(cast.ours * y.ours, cast.theirs * y.theirs)


def _to_device(graph: Graph) -> Pair:
    """To the simulated device and back; copies need no compiler."""
    x = graph.pick()
    there = ops.to_device(x.ours, Device("cudasim"))
    assert there.device == Device("cudasim")
    return Pair(ops.to_device(there, Device("cpu")), x.theirs * 1)


def _images(f: Callable[..., Any], g: Callable[..., Any]) -> Callable[..., Pair]:
    def apply(graph: Graph) -> Pair:
        x = graph.image()
        return Pair(f(x.ours), g(x.theirs))

    return apply


OPS: dict[str, Callable[[Graph], Pair]] = {
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "add": _binary(ops.add, lambda a, b: a + b),
    "astype": _astype,
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "concatenate": _concatenate,
    "conv2d": _conv2d,
    "divide": _divide,
    "dropout": _dropout,
    "exp": _like(ops.exp, lambda x: x.exp()),
    "flatten": _flatten,
    "from_nchw": _images(ops.from_nchw, _nhwc),
    "gelu": _like(ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "getitem": _getitem,
    "global_avg_pool2d": _global_avg_pool2d,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "log": _like(ops.log, lambda x: x.log(), "positive"),
    "log_softmax": _along(ops.log_softmax, lambda x, dim: F.log_softmax(x, dim)),
    "matmul": _matmul,
    "max": _reduce(ops.max, lambda x, **k: x.amax(**k), "apart"),
    "max_pool2d": _max_pool2d,
    "mean": _reduce(ops.mean, lambda x, **k: x.mean(**k)),
    "mse_loss": _mean_squared_error,
    "min": _reduce(ops.min, lambda x, **k: x.amin(**k), "apart"),
    "multiply": _binary(ops.multiply, lambda a, b: a * b),
    "negative": _like(ops.negative, lambda x: -x),
    "pad": _pad,
    "power": _power,
    "relu": _like(ops.relu, lambda x: F.relu(x), "away_from_zero"),
    "reshape": _reshape,
    "sigmoid": _like(ops.sigmoid, lambda x: x.sigmoid()),
    "softmax": _along(ops.softmax, lambda x, dim: F.softmax(x, dim)),
    "cross_entropy": _softmax_cross_entropy,
    "sqrt": _like(ops.sqrt, lambda x: x.sqrt(), "positive"),
    "subtract": _binary(ops.subtract, lambda a, b: a - b),
    "sum": _reduce(ops.sum, lambda x, **k: x.sum(**k)),
    "tanh": _like(ops.tanh, lambda x: x.tanh()),
    "to_device": _to_device,
    "to_nchw": _images(ops.to_nchw, _nchw),
    "transpose": _transpose,
    "var": _reduce(ops.var, _var),
    "where": _where,
}
