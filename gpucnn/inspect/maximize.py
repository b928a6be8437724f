"""Activation maximization and deep dream: gradient ascent on the pixels of images."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpucnn.device import Array, array_module, to_host
from gpucnn.errors import ArgumentError, GraphError, ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.features import Values, check_channels
from gpucnn.inspect.forward import Layer, as_input, find_layer, frozen, output_of, run
from gpucnn.nn import Module
from gpucnn.tensor import Tensor

# The gradient of the objective with respect to the layer's output, computed from that output
_ObjectiveGradient = Callable[[Array], Array]


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
    """For each of `channels`, an image that maximizes the channel's mean in the output of `layer`.

    Gradient ascent from weak noise: each step adds lr times the gradient divided by its root mean
    square, then multiplies the image by 1 - decay, which bounds it in place of Erhan's fixed norm.
    Where the gradient is zero, as for a ReLU that outputs zero everywhere, the step follows random
    noise instead, until the channel becomes active.  In each step the model sees the image rolled
    by up to `jitter` pixels in each direction, which suppresses patterns tied to a position.
    input_shape is (H, W, C); the result is (channels, H, W, C), normalised as in training.  With
    `path`, write a PNG of the images.

    Raises ArgumentError for no channels, channels that the layer does not have, or steps, lr, decay
    or jitter out of range; GraphError if the layer does not depend on the images.
    Source: Erhan et al. 2009, section 3; Mordvintsev et al. 2015 (jitter, normalised gradient).
    """
    generator = np.random.default_rng(seed)
    start = 0.1 * generator.standard_normal((len(channels), *input_shape))

    def objective_gradient(y: Array) -> Array:
        check_channels("maximize_activation", channels, y.shape[-1])
        xp = array_module(y)
        dy = xp.zeros_like(y)
        weight = 1 / max(y[0, ..., 0].size, 1)
        for row, channel in enumerate(channels):
            dy[row, ..., channel] = weight
        return dy

    if len(channels) == 0:
        raise ArgumentError("maximize_activation: expected at least one channel, got none")
    images = _ascend(
        "maximize_activation",
        model,
        start,
        layer,
        objective_gradient,
        steps,
        lr,
        decay,
        jitter,
        generator,
    )
    if path is not None:
        draw.write_tiles(path, draw.pictures(images))
    return images


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
    """Amplify what `layer` detects in images (N, H, W, C); returns the changed images.

    Gradient ascent on half the sum of squares of the layer's output, with the steps of
    maximize_activation and no decay.  images and the result are normalised as in training.  With
    `path`, write a PNG of each image above its result.

    Raises ShapeError unless images is (N, H, W, C); otherwise as maximize_activation.
    Source: Mordvintsev et al. 2015, "Inceptionism".
    """
    start = to_host(as_input("deep_dream", model, images))
    generator = np.random.default_rng(seed)
    dreams = _ascend(
        "deep_dream", model, start, layer, lambda y: y, steps, lr, 0.0, jitter, generator
    )
    if path is not None:
        both = np.concatenate([draw.pictures(start), draw.pictures(dreams)])
        draw.write_tiles(path, both, columns=len(start))
    return dreams


def _ascend(
    op: str,
    model: Module,
    start: Any,
    layer: Layer,
    objective_gradient: _ObjectiveGradient,
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
    # of float32 for bfloat16, which has its exponents
    tiny = float(np.finfo(np.float32 if x.dtype.kind == "V" else x.dtype).tiny)
    with frozen(model):
        for _ in range(steps):
            shift = tuple(int(v) for v in generator.integers(-jitter, jitter + 1, size=2))
            rolled = Tensor(xp.roll(x, shift, axis=(1, 2)), requires_grad=True)
            y = output_of(op, run(model, rolled, [module])[1], module, layer)
            if not y.requires_grad:
                raise GraphError(f"{op}: layer {layer!r} does not depend on the images")
            y.backward(objective_gradient(y.data))
            gradient = xp.roll(rolled.grad, (-shift[0], -shift[1]), axis=(1, 2))
            # Divide by the largest value first: the square of a large gradient would overflow.
            gradient = gradient / xp.maximum(
                xp.abs(gradient).max(axis=(1, 2, 3), keepdims=True), tiny
            )
            rms = xp.sqrt((gradient**2).mean(axis=(1, 2, 3), keepdims=True))
            noise = xp.asarray(generator.standard_normal(x.shape))
            x = (1 - decay) * (x + lr * xp.where(rms > 0, gradient / xp.maximum(rms, tiny), noise))
            x = x.astype(rolled.dtype, copy=False)
    return to_host(x)
