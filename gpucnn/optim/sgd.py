"""Stochastic gradient descent with momentum."""

from collections.abc import Callable, Iterable
from typing import Any

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.optim.optimizer import Optimizer
from gpucnn.tensor import Tensor


class SGD(Optimizer):
    """v = momentum v + (g + weight_decay p);  p -= lr v, or lr (g + weight_decay p + momentum v).

    The second form is Nesterov's.  Weight decay acts on every parameter, biases included.
    Source: Sutskever et al. 2013, section 2, with the learning rate outside the velocity.
    """

    states = ("velocity",)

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ArgumentError(f"SGD: momentum must be in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise ArgumentError(f"SGD: weight_decay must not be negative, got {weight_decay}")
        if nesterov and momentum == 0:
            raise ArgumentError("SGD: nesterov needs a momentum above 0")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        super().__init__(parameters, lr)

    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
        }

    def launch(self, grid: tuple[int, int], block: int, *table: Array | int | None) -> None:
        cuda.launch(
            "sgd_step",
            grid,
            block,
            self._flat,
            self._state["velocity"],
            *table,  # starts, sizes, first, and the sixteen gradients
            self.lr,
            self.momentum,
            self.weight_decay,
            self.nesterov,
        )

    def update(self, i: int) -> Callable[..., None]:
        lr, momentum, decay = self.lr, self.momentum, self.weight_decay

        def rule(p: Array, g: Array, velocity: Array, scratch: Array) -> None:
            xp = array_module(p)
            if decay:
                xp.multiply(p, decay, out=scratch)
                scratch += g
                g = scratch
            velocity *= momentum
            velocity += g
            if self.nesterov:  # lr g + lr momentum v, in the scratch that may hold g
                xp.multiply(g, lr, out=scratch)
                p -= scratch
                xp.multiply(velocity, lr * momentum, out=scratch)
            else:
                xp.multiply(velocity, lr, out=scratch)
            p -= scratch

        return rule
