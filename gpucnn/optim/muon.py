"""Muon: momentum whose update is made orthogonal, for filters and matrices."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.cpu import parallel
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.integers import is_int
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.matmul import product
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.param_groups import check_number
from gpucnn.tensor import Tensor

# s -> a s + b s**3 + c s**5 moves every singular value in (0, 1] towards 1: five steps take those
# above 0.01 to between 0.65 and 1.21.  The steep start matters more than the exact end.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_MOST = 2.0  # more than any element of an update: its singular values stay below 1.21, but rounded


class Muon(Optimizer):
    """Momentum whose update is an orthogonal matrix: v = momentum v + g, p -= lr orthogonal(d).

    d is g + momentum v with nesterov, else v.  A parameter of shape (OC, ...), such as filters
    (OC, KH, KW, C), is the matrix of OC rows; `ns_steps` Newton-Schulz steps move the singular
    values of d / |d| towards 1.  A matrix d with a norm below eps is divided by eps instead.

    rescale        first scale each parameter to the norm sqrt(OC): only its direction is learned.
                   For filters followed by batch normalisation, which makes their length irrelevant
    weight_decay   decoupled, as AdamW's: p is multiplied by 1 - lr * weight_decay

    Defaults are those of the CIFAR-10 recipe in arXiv 2404.00498 with Muon.  PyTorch's, without
    rescale, are torch.optim.Muon's for matrices that are not taller than wide.  Give biases and the
    last layer to another optimizer:

        filters = [p for p in model.parameters() if p.ndim == 4]
        others = [p for p in model.parameters() if p.ndim != 4]
        optimizer = optim.MultiOptimizer(optim.Muon(filters), optim.SGD(others, lr=0.05))

    On a GPU the products are those of ops.matmul, in the precision of set_float32_precision.

    Raises ArgumentError for a parameter of fewer than two axes, or a hyperparameter out of range.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    states = ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.24,
        momentum: float = 0.6,
        nesterov: bool = True,
        ns_steps: int = 3,
        *,
        weight_decay: float = 0.0,
        rescale: bool = True,
        eps: float = 1e-7,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "weight_decay": weight_decay,
            "rescale": rescale,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def check(self, who: str, group: Mapping[str, Any]) -> None:
        super().check(who, group)
        check_number(who, "momentum", group["momentum"], below=1)
        check_number(who, "weight_decay", group["weight_decay"])
        check_number(who, "eps", group["eps"])
        if group["eps"] == 0:
            raise ArgumentError(f"{who}: eps must be positive, got 0")
        if group["nesterov"] and group["momentum"] == 0:
            raise ArgumentError(f"{who}: nesterov needs a momentum above 0")
        if not is_int(group["ns_steps"]) or group["ns_steps"] < 1:
            raise ArgumentError(f"{who}: ns_steps must be a positive int, got {group['ns_steps']}")
        for p in group.get("params", ()):  # not in a state's group
            if p.ndim < 2:
                raise ArgumentError(
                    f"{who}: expected filters or matrices, got a parameter of shape {p.shape}\n"
                    "  give biases to another optimizer: "
                    "optim.MultiOptimizer(optim.Muon(filters), optim.SGD(biases, ...))"
                )

    def _step_on_arrays(self, moved: list[int]) -> None:
        """Update whole parameters; on the CPU, distribute them over the workers."""
        group_of = [group for group in self.param_groups for _ in group["params"]]
        rates = {id(group): _rates(group) for group in self.param_groups}

        def move(i: int) -> None:
            self._move(i, group_of[i], *rates[id(group_of[i])])

        if isinstance(self._flat, np.ndarray):
            parallel(move, sorted(moved, key=lambda i: -self.parameters[i].size))
        else:
            for i in moved:
                move(i)

    def _step_by_kernel(self) -> None:
        moved = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        with np.errstate(invalid="ignore", over="ignore"):  # as a kernel: _write looks
            self._step_on_arrays(moved)

    def _move(self, i: int, group: Mapping[str, Any], lr: Any, shrink: Any) -> None:
        """Update parameter i.  On a GPU the host does not wait; see self.unscale and self.guard."""
        parameter, momentum = self.parameters[i], group["momentum"]
        if not parameter.size:
            return
        start, rows = self._starts[i], parameter.shape[0]
        here = slice(start, start + parameter.size)
        p, velocity = (x[here].reshape(rows, -1) for x in (self._flat, self._state["velocity"]))
        assert parameter.grad is not None
        g = widened(parameter.grad.reshape(rows, -1))
        if self.unscale is not None:
            g = g * narrowed(array_module(g).asarray(self.unscale), g.dtype)
        v = widened(velocity) * momentum + g
        d = g + v * momentum if group["nesterov"] else v
        update = orthogonalized(d, group["ns_steps"], group["eps"])
        new = widened(p)
        if group["rescale"]:
            new = new * _over_norm(new, math.sqrt(rows), group["eps"])
        if group["weight_decay"]:
            new = new * shrink
        new = new - update * lr
        self._write(here, p, velocity, narrowed(new, p.dtype), narrowed(v, p.dtype))

    def _write(self, here: slice, p: Array, velocity: Array, new: Array, v: Array) -> None:
        """Replace p and velocity, unless self.guard or self.unscale says no."""
        if self._by_kernel and (self.guard is not None or self.unscale is not None):
            xp = array_module(p)
            stays = xp.asarray(False)
            if self.unscale is not None:
                stays = self.unscale == 0
            if self.guard is not None:
                finite = xp.minimum(xp.isfinite(new).all(), xp.isfinite(v).all())
                bad = xp.logical_not(xp.logical_or(finite, stays))
                xp.maximum(self.guard, bad, out=self.guard)
                stays = xp.logical_or(stays, bad)
            new, v = xp.where(stays, p, new), xp.where(stays, velocity, v)
        p[...] = new
        velocity[...] = v
        if self.copies.target is not None:
            self.copies.target[here] = self._flat[here]

    def bounds_after(
        self, group: Mapping[str, Any], gradient: float, bounds: Mapping[str, float]
    ) -> dict[str, float]:
        velocity = group["momentum"] * bounds["velocity"] + gradient
        value = bounds["value"]
        if group["rescale"]:  # no element exceeds the norm
            value = max([math.sqrt(len(p)) for p in group["params"]], default=0.0)
        shrink = max(abs(1 - group["lr"] * group["weight_decay"]), 1.0)
        value = max(value * shrink + group["lr"] * _MOST, bounds["value"])
        return {"value": value, "velocity": velocity + gradient}


def _rates(group: Mapping[str, Any]) -> tuple[Any, Any]:
    """The group's lr and 1 - lr * weight_decay; in a captured step, in device memory."""
    lr, decay = group["lr"], group["weight_decay"]

    def now() -> tuple[float, float]:
        return group["lr"], 1 - group["lr"] * decay

    values = cuda.step_value(now, np.float32, (2,))
    return (lr, 1 - lr * decay) if values is None else (values[0:1], values[1:2])


def orthogonalized(d: Array, steps: int, eps: float = 1e-7) -> Array:
    """The matrix d (rows, columns) with singular values moved towards 1, by Newton-Schulz steps.

    With five steps they are between 0.65 and 1.21 for all those of d / |d| above 0.01.
    """
    x = d * _over_norm(d, 1.0, eps)
    tall = x.shape[0] > x.shape[1]  # the products with itself are then of the shorter side
    if tall:
        x = array_module(x).ascontiguousarray(x.T)
    for _ in range(steps):
        square = product(x, x.T)
        polynomial = square * _B + product(square, square) * _C
        x = x * _A + product(polynomial, x)
    return x.T if tall else x


def _over_norm(x: Array, length: float, eps: float) -> Array:
    """() : length / max(|x|, eps), from squares in float64, which do not overflow."""
    xp = array_module(x)
    squares = x.astype(np.float64)
    squares *= squares
    norm = xp.maximum(xp.sqrt(squares.sum()), eps)
    return xp.asarray(length / norm).astype(wide(x.dtype))
