"""Stochastic gradient descent with momentum."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.param_groups import check_number
from gpucnn.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent: d = g + weight_decay p, v = momentum v + d, p -= lr v.

    With nesterov, p -= lr (d + momentum v).  Weight decay applies to every parameter of its group,
    biases included.

        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = optim.SGD(
            [{"params": weights}, {"params": biases, "weight_decay": 0.0}],
            lr=0.1, momentum=0.9, weight_decay=5e-4,
        )

    Raises ArgumentError for a hyperparameter out of range, or nesterov without momentum.
    Source: Sutskever et al. 2013, section 2, with the learning rate outside the velocity.
    """

    states = ("velocity",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def check(self, who: str, group: Mapping[str, Any]) -> None:
        super().check(who, group)
        check_number(who, "momentum", group["momentum"], below=1)
        check_number(who, "weight_decay", group["weight_decay"])
        if group["nesterov"] and group["momentum"] == 0:
            raise ArgumentError(f"{who}: nesterov needs a momentum above 0")

    def launch(
        self, group: Mapping[str, Any], grid: tuple[int, int], block: int, *table: Any
    ) -> None:
        cuda.launch(
            "sgd_step",
            grid,
            block,
            self._flat,
            self._state["velocity"],
            self.copies.target,
            *table,  # starts, sizes, first, and the sixteen gradients
            cuda.step_value(lambda: group["lr"], np.float32, (1,)),
            group["lr"],
            group["momentum"],
            group["weight_decay"],
            group["nesterov"],
            self.unscale,
            self.guard,
            defines=self.copies.defines(),
        )

    def bounds_after(
        self, group: Mapping[str, Any], gradient: float, bounds: Mapping[str, float]
    ) -> dict[str, float]:
        d = gradient + group["weight_decay"] * bounds["value"]
        velocity = group["momentum"] * bounds["velocity"] + d
        moved = group["lr"] * (d + velocity)  # with or without nesterov
        return {"value": bounds["value"] + moved, "velocity": velocity}

    def update(self, i: int, group: Mapping[str, Any]) -> Callable[..., None]:
        lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        nesterov = group["nesterov"]

        def rule(p: Array, g: Array, velocity: Array, scratch: Array) -> None:
            xp = array_module(p)
            if weight_decay:
                xp.multiply(p, weight_decay, out=scratch)
                scratch += g
                g = scratch
            velocity *= momentum
            velocity += g
            if nesterov:  # lr g, then lr momentum v; g may be in scratch already
                xp.multiply(g, lr, out=scratch)
                p -= scratch
                xp.multiply(velocity, lr * momentum, out=scratch)
            else:
                xp.multiply(velocity, lr, out=scratch)
            p -= scratch

        return rule
