"""Batch normalisation with any array module: it serves float64 on a GPU."""

from gpucnn.device import Array, array_module
from gpucnn.ops.relu import _relu


def statistics(x: Array, eps: float) -> tuple[Array, Array, Array]:
    """The mean, the variance and 1 / sqrt(var + eps) of each channel: (C,)."""
    xp, axes = array_module(x), tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=x.dtype)
    centred = x - mean
    centred *= centred
    var = centred.mean(axis=axes, dtype=x.dtype)
    return mean, var, 1 / xp.sqrt(var + x.dtype.type(eps))


def moving_statistics(
    x: Array, eps: float, running: tuple[Array, Array], momentum: float
) -> tuple[Array, Array]:
    """Mean and 1 / sqrt(var + eps) of each channel; the running mean and variance follow them."""
    mean, var, scale = statistics(x, eps)
    move(running, (mean, unbiased(var, x)), momentum)
    return mean, scale


def unbiased(var: Array, x: Array) -> Array:
    """The variance of x's channels that divides by M - 1 instead of M."""
    count = x.size // x.shape[-1]
    return var * (count / (count - 1))


def move(running: tuple[Array, Array], batch: tuple[Array, Array], momentum: float) -> None:
    """Move the running mean and variance towards the batch's, in place."""
    for average, value in zip(running, batch, strict=True):
        average *= 1 - momentum
        average += momentum * value


def inferred(
    x: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    var: Array,
    eps: float,
    relu: bool = False,
) -> Array:
    """(x - mean) / sqrt(var + eps) * weight + bias: (..., C), clipped at 0 with `relu`."""
    xp = array_module(x)
    scale = (1 / xp.sqrt(var + eps)).astype(x.dtype)
    y = scale_shift(x, scale * weight, bias - mean.astype(x.dtype) * scale * weight)
    return _relu(y) if relu else y


def normalized(
    x: Array, weight: Array, bias: Array, mean: Array, scale: Array, relu: bool = False
) -> Array:
    """(x - mean) * scale * weight + bias: (..., C), clipped at 0 with `relu`."""
    y = x - mean
    y *= scale * weight
    y += bias
    return _relu(y) if relu else y


def gradient_sums(dy: Array, x: Array, mean: Array, scale: Array) -> Array:
    """dbias and dweight, (2, C): the sums over x of dy and of dy * (x - mean) * scale."""
    axes = tuple(range(x.ndim - 1))
    products = x - mean
    products *= scale
    products *= dy
    return array_module(x).stack((dy.sum(axis=axes), products.sum(axis=axes)))


def input_gradient(
    dy: Array, x: Array, weight: Array, mean: Array, scale: Array, sums: Array, count: int
) -> Array:
    """dx (..., C); sums as gradient_sums returned them, over the `count` values of a channel."""
    dbias, dweight = sums / x.dtype.type(count)
    normal = x - mean
    normal *= scale
    normal *= dweight
    dx = dy - dbias
    dx -= normal
    dx *= weight * scale
    return dx


def scale_shift(x: Array, scale: Array, shift: Array) -> Array:
    """x (..., C) * scale (C,) + shift (C,)."""
    y = x * scale
    y += shift
    return y
