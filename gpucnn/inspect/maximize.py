"""Images made to excite: a layer's channel from noise, or whatever a picture already excites."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpucnn.device import Array, array_module, to_host
from gpucnn.errors import ArgumentError, GraphError, ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.features import Values, check_channels
from gpucnn.inspect.forward import Layer, as_input, at_rest, find_layer, result_of, run
from gpucnn.nn import Module
from gpucnn.tensor import Tensor

# dy of the layer's output, from that output: the direction in which the image is to move it
_Wish = Callable[[Array], Array]


def maximize_activation(
    model: Module,
    layer: Layer,
    channels: Sequence[int],
    input_shape: tuple[int, ...],
    steps: int = 100,
    lr: float = 0.1,
    decay: float = 0.02,
    jitter: int = 2,
    seed: int = 0,
    path: draw.File | None = None,
) -> Values:
    """An image for each of `channels` that makes its mean in the output of `layer` large.

    Gradient ascent from faint noise: each step moves an image by lr times its gradient over the
    gradient's root mean square, then shrinks it by 1 - decay, which bounds it in place of Erhan's
    fixed norm.  Where there is no gradient, as behind a ReLU that is off everywhere, the step is
    along noise, until the channel wakes.  A step sees the image rolled by up to `jitter` pixels
    each way, so that no pixel is learned by its place.  input_shape is (H, W, C); the result
    (channels, H, W, C) is in the model's normalised units.  With `path`, a PNG of them.

    Source: Erhan et al. 2009, section 3; Mordvintsev et al. 2015 (jitter, normalised gradient).
    """
    generator = np.random.default_rng(seed)
    start = 0.1 * generator.standard_normal((len(channels), *input_shape))

    def wish(y: Array) -> Array:
        check_channels("maximize_activation", channels, y.shape[-1])
        xp = array_module(y)
        dy = xp.zeros_like(y)
        share = 1 / max(y[0, ..., 0].size, 1)
        for row, channel in enumerate(channels):
            dy[row, ..., channel] = share
        return dy

    if len(channels) == 0:
        raise ArgumentError("maximize_activation: no channels were named")
    found = _ascend(
        "maximize_activation", model, start, layer, wish, steps, lr, decay, jitter, generator
    )
    if path is not None:
        draw.write_tiles(path, draw.pictures(found))
    return found


def deep_dream(
    model: Module,
    images: Any,
    layer: Layer,
    steps: int = 20,
    lr: float = 0.05,
    jitter: int = 2,
    seed: int = 0,
    path: draw.File | None = None,
) -> Values:
    """Images (N, H, W, C) changed so that `layer` sees more of what it sees in them already.

    Gradient ascent on half the sum of squares of the layer's output, steps as for
    maximize_activation, without decay.  With `path`, a PNG: images above, dreams below.

    Source: Mordvintsev et al. 2015, "Inceptionism".
    """
    start = to_host(as_input("deep_dream", model, images))
    generator = np.random.default_rng(seed)
    found = _ascend(
        "deep_dream", model, start, layer, lambda y: y, steps, lr, 0.0, jitter, generator
    )
    if path is not None:
        both = np.concatenate([draw.pictures(start), draw.pictures(found)])
        draw.write_tiles(path, both, columns=len(start))
    return found


def _ascend(
    op: str,
    model: Module,
    start: Any,
    layer: Layer,
    wish: _Wish,
    steps: int,
    lr: float,
    decay: float,
    jitter: int,
    generator: np.random.Generator,
) -> Values:
    x = as_input(op, model, np.asarray(start))
    if x.ndim != 4:
        raise ShapeError(f"{op}: expected images (N, H, W, C), got shape {x.shape}")
    if steps < 1 or jitter < 0 or not lr > 0 or not 0 <= decay < 1:
        raise ArgumentError(
            f"{op}: expected steps >= 1, jitter >= 0, lr > 0 and 0 <= decay < 1, "
            f"got {steps}, {jitter}, {lr}, {decay}"
        )
    xp, module = array_module(x), find_layer(model, layer)
    tiny = float(np.finfo(x.dtype).tiny)
    with at_rest(model):
        for _ in range(steps):
            down, across = (int(v) for v in generator.integers(-jitter, jitter + 1, size=2))
            seen = Tensor(xp.roll(x, (down, across), axis=(1, 2)), requires_grad=True)
            y = result_of(op, run(model, seen, [module])[1], module, layer)
            if not y.requires_grad:
                raise GraphError(f"{op}: layer {layer!r} does not depend on the images")
            y.backward(wish(y.data))
            gradient = xp.roll(seen.grad, (-down, -across), axis=(1, 2))
            gradient = gradient / xp.maximum(  # first, lest a large one overflow when squared
                xp.abs(gradient).max(axis=(1, 2, 3), keepdims=True), tiny
            )
            size = xp.sqrt((gradient**2).mean(axis=(1, 2, 3), keepdims=True))
            noise = xp.asarray(generator.standard_normal(x.shape))
            x = (1 - decay) * (
                x + lr * xp.where(size > 0, gradient / xp.maximum(size, tiny), noise)
            )
            x = x.astype(seen.dtype, copy=False)
    return to_host(x)
