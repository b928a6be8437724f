"""Gradient clipping."""

import math
from collections.abc import Iterable

from gpucnn.device import Array, Device, device_of, to_host, working_on
from gpucnn.errors import ArgumentError
from gpucnn.ops._exact import widened
from gpucnn.optim.param_groups import list_parameters
from gpucnn.tensor import Tensor


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale all gradients in place so that their joint Euclidean norm is at most `max_norm`.

    Returns the norm before clipping.  Parameters without a gradient do not count.  Gradients are
    left as they are if the norm is NaN.  On a GPU the host synchronizes once, for the norm.

    Raises ArgumentError unless max_norm is positive.
    Source: Pascanu et al. 2013, algorithm 1.
    """
    listed = list_parameters("clip_grad_norm_", parameters)
    if not max_norm > 0:
        raise ArgumentError(f"clip_grad_norm_: max_norm must be positive, got {max_norm}")
    gradients: list[Array] = [p.grad for p in listed if p.grad is not None]
    squares: dict[Device, list[Array]] = {}  # () each
    for g in gradients:
        device = device_of(g)
        with working_on(device):
            wide_g = widened(g)
            squares.setdefault(device, []).append((wide_g * wide_g).sum())
    total = 0.0
    for device, sums in squares.items():
        with working_on(device):
            for square in to_host(device.xp.stack(sums)).tolist():
                total += square
    norm = math.sqrt(total)
    if norm > max_norm:
        for g in gradients:
            with working_on(device_of(g)):
                g *= max_norm / norm
    return norm
