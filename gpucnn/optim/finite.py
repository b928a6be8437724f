"""A step that leaves out an update that is not finite."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from gpucnn.cpu import flat, parallel, spans
from gpucnn.device import Array, array_module, device_of, working_on
from gpucnn.optim.optimizer import Optimizer
from gpucnn.precision import is_floating, is_half
from gpucnn.tensor import Tensor

_BLOCK = 128 * 1024  # elements per task of a CPU worker


class Overflow(NamedTuple):
    """A finite update that would make a parameter or its state infinite."""

    parameter: Tensor
    what: str  # "value", or the name of the state


def step_if_finite(optimizer: Optimizer) -> Tensor | Overflow | None:
    """optimizer.step(), unless a gradient or a result of the step is not finite.

    Returns None after a step; else the first parameter whose gradient is not finite, or the first
    Overflow.  Parameters, states and step counts are then as before.  On a GPU the host waits.

    The cost is a sum of squares of the gradients.  It bounds the results: see
    Optimizer.bounds_after.  Where the bounds exclude no overflow, the step is made on trial, and
    copies replace results that are not finite.
    """
    parts = optimizer.parts
    with working_on(device_of(parts[0]._flat)):
        gradients = [(p, p.grad) for p in optimizer.parameters if p.grad is not None]
        squares = _sum_of_squares(gradient for _, gradient in gradients)
        if not squares < math.inf:
            for parameter, gradient in gradients:
                if not is_finite(gradient):
                    return parameter
        bounds = [_next_bounds(part, math.sqrt(squares)) for part in parts]
        if None not in bounds:
            optimizer.step()
            for part, known in zip(parts, bounds, strict=True):
                part._bounds = known
            return None
        before = _Copy(optimizer)
        optimizer.step()
        overflow = next(filter(None, map(_overflow, parts)), None)
        if overflow is not None:
            before.restore()
    return overflow


def forget_bounds(optimizer: Optimizer) -> None:
    """Let step_if_finite measure again: a parameter or state may have been changed elsewhere."""
    for part in optimizer.parts:
        part._bounds = None


def is_finite(x: Array) -> bool:
    """Whether x, of any dtype, has no NaN and no infinity.  The host waits for a GPU."""
    if not is_floating(x.dtype):
        return True
    with working_on(device_of(x)):
        return bool(array_module(x).isfinite(x).all())


def _next_bounds(optimizer: Optimizer, gradient: float) -> dict[str, float] | None:
    """The bounds after a step with gradients of at most this norm; None if one may overflow."""
    bounds = optimizer._bounds and _after(optimizer, gradient, optimizer._bounds)
    return _after(optimizer, gradient, _measured(optimizer)) if bounds is None else bounds


def _after(
    optimizer: Optimizer, gradient: float, bounds: dict[str, float]
) -> dict[str, float] | None:
    """The bounds after a step of all groups; None if they exclude no overflow."""
    groups = [optimizer.bounds_after(group, gradient, bounds) for group in optimizer.param_groups]
    largest = {what: max(group[what] for group in groups) for what in bounds}
    # Far below the largest number: the bounds ignore rounding.
    dtype = optimizer._flat.dtype
    limit = float(np.finfo(np.float32 if dtype.kind == "V" else dtype).max) ** 0.75  # bfloat16
    return largest if all(value < limit for value in largest.values()) else None


def _measured(optimizer: Optimizer) -> dict[str, float]:
    """The largest magnitude of a parameter and of each state; NaN if one is NaN."""
    return {
        what: max(abs(float(buffer.max())), abs(float(buffer.min())))
        for what, buffer in _buffers(optimizer).items()
        if buffer.size
    }


def _buffers(optimizer: Optimizer) -> dict[str, Array]:
    return {"value": optimizer._flat, **optimizer._state}


def _overflow(optimizer: Optimizer) -> Overflow | None:
    for what, buffer in _buffers(optimizer).items():
        if is_finite(buffer):
            continue
        for parameter, view in zip(optimizer.parameters, optimizer._views(buffer), strict=True):
            if not is_finite(view):
                return Overflow(parameter, what)
    return None


def _sum_of_squares(arrays: Iterable[Array]) -> float:
    """The sum of the squares of all arrays, on one device; NaN or infinite if a value is.

    It may overflow where all values are finite, and is infinite for half precision.
    """
    found: list[Any] = []
    pieces: list[Array] = []
    for x in arrays:
        if is_half(x.dtype):  # dot is slow, and overflows
            return math.inf
        if isinstance(x, np.ndarray):
            line = flat(x)
            pieces += [line[block] for block in spans(line.size, _BLOCK)]
        else:
            found.append((x * x).sum())
    if found:  # on a GPU: one wait for all
        return float(array_module(found[0]).stack(found).sum())
    with np.errstate(over="ignore", invalid="ignore"):
        parallel(lambda piece: found.append(float(np.dot(piece, piece))), pieces)
    return float(sum(found))


class _Copy:
    """Parameters and state of an optimizer at one moment."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = [p.data.copy() for p in optimizer.parameters]
        state = optimizer.state_dict()
        self._state = {k: v.copy() if hasattr(v, "dtype") else v for k, v in state.items()}

    def restore(self) -> None:
        self._optimizer.load_state_dict(self._state)
        for parameter, before in zip(self._optimizer.parameters, self._parameters, strict=True):
            parameter.data[...] = before
            parameter._changed()
