"""Adam, and its form with decoupled weight decay."""

from collections.abc import Callable, Iterable
from typing import Any

from gpucnn import cuda
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError
from gpucnn.optim.optimizer import Optimizer
from gpucnn.tensor import Tensor


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient, both corrected for their start at zero.

    weight_decay adds weight_decay * p to the gradient; AdamW shrinks p itself instead.
    Source: Kingma and Ba 2015, algorithm 1.
    """

    states = ("mean", "square")
    decoupled = False

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        name = type(self).__name__
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError(f"{name}: betas must be two numbers in [0, 1), got {betas}")
        if not eps > 0:
            raise ArgumentError(f"{name}: eps must be positive, got {eps}")
        if not weight_decay >= 0:
            raise ArgumentError(f"{name}: weight_decay must not be negative, got {weight_decay}")
        self.betas, self.eps, self.weight_decay = tuple(betas), eps, weight_decay
        super().__init__(parameters, lr)

    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def _corrections(self) -> tuple[float, float]:
        """What scales this step, and the root of the square: both moments began at zero."""
        beta1, beta2 = self.betas
        return self.lr / (1 - beta1**self.steps), (1 - beta2**self.steps) ** -0.5

    def launch(self, grid: tuple[int, int], block: int, *table: Array | int | None) -> None:
        cuda.launch(
            "adam_step",
            grid,
            block,
            self._flat,
            self._state["mean"],
            self._state["square"],
            *table,  # starts, sizes, first, and the sixteen gradients
            *self._corrections(),
            *self.betas,
            *(1 - beta for beta in self.betas),
            self.eps,
            0.0 if self.decoupled else self.weight_decay,
            1 - self.lr * self.weight_decay if self.decoupled else 1.0,
        )

    def update(self) -> Callable[..., None]:
        (beta1, beta2), eps, decay = self.betas, self.eps, self.weight_decay
        rate, root = self._corrections()
        shrink = 1 - self.lr * decay

        def rule(p: Array, g: Array, mean: Array, square: Array, scratch: Array) -> None:
            xp = array_module(p)
            if self.decoupled:
                p *= shrink
            elif decay:
                g = g + decay * p
            mean *= beta1
            xp.multiply(g, 1 - beta1, out=scratch)
            mean += scratch
            square *= beta2
            xp.multiply(g, g, out=scratch)
            scratch *= 1 - beta2
            square += scratch
            xp.sqrt(square, out=scratch)
            scratch *= root
            scratch += eps
            xp.divide(mean, scratch, out=scratch)
            scratch *= rate
            p -= scratch

        return rule


class AdamW(Adam):
    """Adam that multiplies p by 1 - lr * weight_decay instead of adding to the gradient.

    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay)
