"""Every op as a step of a random graph: OPS has an entry for each.

It picks operands and settings, and applies gpucnn's op and PyTorch's.  Where an op has a kink or a
tie, constants first move its operand away from there.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from random_graphs import Graph, Pair, broadcasts
from random_image_ops import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    conv_transpose2d,
    global_avg_pool2d,
    interpolate,
    max_pool2d,
    nchw,
    nhwc,
)
from random_layer_ops import (
    binary_cross_entropy_with_logits,
    group_norm,
    l1_loss,
    layer_norm,
    nll_loss,
    silu,
    smooth_l1_loss,
    softplus,
)

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


def _batch_norm(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2 and p.shape[-1] > 0)
    channels = x.shape[-1:]
    # With an infinite weight the order of the products decides what is NaN.
    weight, bias = graph.finite(channels), graph.leaf(channels)
    mean = graph.rng.standard_normal(channels)
    var = graph.rng.uniform(0.5, 2, channels)
    training = x.ours.size >= 2 * channels[0] and bool(graph.settings(False, True))
    running = [graph.constant(v) for v in (mean, var)]
    ours = ops.batch_norm(
        x.ours, weight.ours, bias.ours, *(v.ours.data for v in running), training, eps=0.1
    )
    rows = x.theirs.reshape(math.prod(x.shape[:-1]), *channels)
    statistics = [v.theirs.clone() for v in running]
    theirs = F.batch_norm(rows, *statistics, weight.theirs, bias.theirs, training, eps=0.1)
    return Pair(ours, theirs.reshape(x.shape))


def _local_response_norm(graph: Graph) -> Pair:
    x, size = graph.rows(), graph.settings(1, 2, 3, 5)
    channels = x.theirs.reshape(math.prod(x.shape[:-1]), x.shape[-1], 1)
    theirs = F.local_response_norm(channels, size, 0.1 * size, 0.75, 1.0).reshape(x.shape)
    return Pair(ops.local_response_norm(x.ours, size, 0.1, 0.75, 1.0), theirs)


def _dropout(graph: Graph) -> Pair:
    x, seed = graph.pick(), int(graph.rng.integers(1000))
    mask, ours = (
        ops.dropout(t, 0.3, True, np.random.default_rng(seed))
        for t in (graph.constant(np.ones(x.shape)).ours, x.ours)
    )
    scale = torch.tensor(mask.numpy().astype(np.float64))
    return Pair(ours, torch.where(scale > 0, x.theirs * scale, 0))


def _leaky_relu(graph: Graph) -> Pair:
    x, slope = graph.away_from_zero(graph.pick()), graph.settings(0.01, 0.3)
    return Pair(ops.leaky_relu(x.ours, slope), F.leaky_relu(x.theirs, slope))


def _softmax_cross_entropy(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2 and p.shape[-1] > 0)
    classes = x.shape[-1]
    labels = graph.rng.integers(0, classes, x.shape[:-1])
    smoothing, weights = graph.settings(0.0, 0.2), None
    reduction = graph.settings("mean", "sum")
    if graph.rng.random() < 0.5:
        weights = graph.rng.uniform(0.5, 2, classes).astype(np.float32)
    theirs = F.cross_entropy(
        x.theirs.reshape(-1, classes),
        torch.tensor(labels.reshape(-1)),
        None if weights is None else torch.tensor(weights.astype(np.float64)),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    return Pair(ops.cross_entropy(x.ours, labels, weights, smoothing, reduction), theirs)


def _mean_squared_error(graph: Graph) -> Pair:
    a = graph.pick()
    b = graph.pick(lambda p: p.shape == a.shape)
    return Pair(ops.mse_loss(a.ours, b.ours), F.mse_loss(a.theirs, b.theirs))


def _var(x: Any, dim: Any, keepdim: bool) -> Any:
    return torch.var(x, dim, unbiased=False, keepdim=keepdim)


def _extreme(find: str) -> Callable[..., Any]:
    """torch.amax or amin, where NaNs share the gradient as in torch.max(x): amax's is NaN."""

    def theirs(x: Any, dim: Any, keepdim: bool) -> Any:
        y = getattr(x, find)(dim=dim, keepdim=True)
        winners = (x == y) | x.isnan()
        scale = torch.where((y > 1e300) | (y < -1e300), 2.0**-20, 1.0)  # a tie must not overflow
        mean = torch.where(winners, x * scale, 0).sum(dim, True) / winners.sum(dim, True) / scale
        return mean if keepdim else mean.sum(dim)

    return theirs


def _gelu(x: Any) -> Any:
    """PyTorch's, except for its NaN at the infinities."""
    far = x.abs() > 100
    near = F.gelu(torch.where(far, 0, x))
    return torch.where(far, F.relu(x), near)


def _reshape(graph: Graph) -> Pair:
    x = graph.pick()
    shapes = [(-1,), (1, -1), (x.ours.size, 1)] + [(2, -1)] * (x.ours.size % 2 == 0)
    shape = graph.settings(*shapes)
    return Pair(ops.reshape(x.ours, shape), x.theirs.reshape(shape))


def _flatten(graph: Graph) -> Pair:
    x = graph.rows()
    theirs = x.theirs.reshape(x.shape[0], math.prod(x.shape[1:]))
    return Pair(ops.flatten(x.ours), theirs)


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
    """Any index of NumPy's: PyTorch picks the same positions of the flattened tensor."""
    x = graph.pick()
    index: list[Any] = [...]
    if x.ndim:
        n = x.shape[0]
        choices: list[Any] = [
            slice(0, None, 2), slice(n - 1, None), slice(None, None, -1), None,
            np.arange(n) % 2 == 0,
        ]  # fmt: skip
        if n:
            choices += [0, -1, np.array([0, n - 1, 0]), np.array([[0, -1], [-1, 0]])]
        index = [graph.settings(*choices), ...]
    if x.ndim > 1:
        last = x.shape[-1]
        index += [graph.settings(slice(0, 1), slice(None), *[0, np.array([last - 1])] * (last > 0))]
    positions = np.arange(x.ours.size).reshape(x.shape)[tuple(index)]
    theirs = x.theirs.reshape(-1)[torch.tensor(np.ascontiguousarray(positions).reshape(-1))]
    return Pair(ops.getitem(x.ours, tuple(index)), theirs.reshape(positions.shape))


def _clamp(graph: Graph) -> Pair:
    x = graph.pick()
    low, high = graph.settings((-0.5, 0.5), (None, 0.25), (-0.25, None), (0.5, -0.5))
    return Pair(ops.clamp(x.ours, low, high), torch.clamp(x.theirs, low, high))


def _squeeze(graph: Graph) -> Pair:
    x = graph.pick()
    y = Pair(x.ours.reshape(1, *x.shape, 1), x.theirs.reshape(1, *x.shape, 1))
    axis = graph.settings(None, 0, -1, (0, -1), *range(y.ndim))
    theirs = y.theirs.squeeze() if axis is None else y.theirs.squeeze(axis)
    return Pair(ops.squeeze(y.ours, axis), theirs)


def _unsqueeze(graph: Graph) -> Pair:
    x = graph.pick()
    axis = graph.settings(*range(-x.ndim - 1, x.ndim + 1))
    return Pair(ops.unsqueeze(x.ours, axis), x.theirs.unsqueeze(axis))


def _swapaxes(graph: Graph) -> Pair:
    x = graph.rows()
    i, j = graph.axis(x), graph.axis(x)
    return Pair(ops.swapaxes(x.ours, i, j), x.theirs.swapaxes(i, j))


def _stack(graph: Graph) -> Pair:
    a = graph.pick()
    b = graph.pick(lambda p: p.shape == a.shape)
    axis = graph.settings(*range(-a.ndim - 1, a.ndim + 1))
    parts = [a, b, a][: graph.settings(1, 2, 3)]
    ours = ops.stack([p.ours for p in parts], axis)
    return Pair(ours, torch.stack([p.theirs for p in parts], axis))


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
    "abs": _like(ops.abs, lambda x: x.abs()),
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "add": _binary(ops.add, lambda a, b: a + b),
    "astype": _astype,
    "avg_pool2d": avg_pool2d,
    "batch_norm": _batch_norm,
    "clamp": _clamp,
    "clone": _like(ops.clone, lambda x: x.clone()),
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "concatenate": _concatenate,
    "conv2d": conv2d,
    "conv_transpose2d": conv_transpose2d,
    "divide": _divide,
    "dropout": _dropout,
    "exp": _like(ops.exp, lambda x: x.exp()),
    "flatten": _flatten,
    "from_nchw": _images(ops.from_nchw, nhwc),
    "gelu": _like(ops.gelu, _gelu),
    "getitem": _getitem,
    "global_avg_pool2d": global_avg_pool2d,
    "group_norm": group_norm,
    "interpolate": interpolate,
    "l1_loss": l1_loss,
    "layer_norm": layer_norm,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "log": _like(ops.log, lambda x: x.log(), "positive"),
    "log_softmax": _along(ops.log_softmax, lambda x, dim: F.log_softmax(x, dim)),
    "matmul": _matmul,
    "max": _reduce(ops.max, _extreme("amax"), "apart"),
    "max_pool2d": max_pool2d,
    "mean": _reduce(ops.mean, lambda x, **k: x.mean(**k)),
    "mse_loss": _mean_squared_error,
    "min": _reduce(ops.min, _extreme("amin"), "apart"),
    "multiply": _binary(ops.multiply, lambda a, b: a * b),
    "negative": _like(ops.negative, lambda x: -x),
    "nll_loss": nll_loss,
    "pad": _pad,
    "power": _power,
    "relu": _like(ops.relu, lambda x: F.relu(x), "away_from_zero"),
    "reshape": _reshape,
    "sigmoid": _like(ops.sigmoid, lambda x: x.sigmoid()),
    "silu": silu,
    "smooth_l1_loss": smooth_l1_loss,
    "softmax": _along(ops.softmax, lambda x, dim: F.softmax(x, dim)),
    "cross_entropy": _softmax_cross_entropy,
    "softplus": softplus,
    "sqrt": _like(ops.sqrt, lambda x: x.sqrt(), "positive"),
    "squeeze": _squeeze,
    "stack": _stack,
    "subtract": _binary(ops.subtract, lambda a, b: a - b),
    "sum": _reduce(ops.sum, lambda x, **k: x.sum(**k)),
    "swapaxes": _swapaxes,
    "tanh": _like(ops.tanh, lambda x: x.tanh()),
    "to_device": _to_device,
    "to_nchw": _images(ops.to_nchw, nchw),
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "var": _reduce(ops.var, _var),
    "where": _where,
}
