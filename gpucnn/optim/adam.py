"""Adam, and its form with decoupled weight decay."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import CPU, Array, array_module, device_of, to_device
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.optim.optimizer import Optimizer
from gpucnn.tensor import Tensor


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient, both corrected for their start at zero.

    The correction counts a parameter's own steps, those in which it had a gradient.
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
        # How many steps each parameter has made.  On a GPU the kernel counts its blocks, and
        # `_blocks` of them are a step: nothing has to be sent there from step to step.
        self._blocks = np.ones(len(self.parameters), np.uint64)
        if self._by_kernel:
            for first, (blocks, rows) in self._grids():
                self._blocks[first : first + rows] = max(blocks, 1)
        with self._working("the state"):
            place = device_of(self._flat) if self._by_kernel else CPU
            self._done = to_device(np.zeros_like(self._blocks), place)

    def hyperparameters(self) -> dict[str, Any]:
        return {
            "lr": self.lr,
            "betas": list(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def state_dict(self) -> dict[str, Any]:
        """As Optimizer's, and "counts": how many steps each parameter has made, on the CPU."""
        with self._working("the state"):
            counts = to_device(self._done, CPU) // self._blocks
        return {**super().state_dict(), "counts": counts.astype(np.int64)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As Optimizer's.  Without counts (an older state) each parameter made every step."""
        n = len(self.parameters)
        counts = state["counts"] if "counts" in state else np.full(n, state.get("steps", 0))
        if tuple(counts.shape) != (n,):
            raise CheckpointError(
                f"{type(self).__name__}: the state does not fit: expected counts of shape ({n},), "
                f"got {tuple(counts.shape)}"
            )
        super().load_state_dict(state)
        with self._working("the state"):
            done = to_device(counts, CPU).astype(np.uint64) * self._blocks
            self._done[...] = to_device(done, device_of(self._done))

    def launch(self, grid: tuple[int, int], block: int, *table: Array | int | None) -> None:
        cuda.launch(
            "adam_step",
            grid,
            block,
            self._flat,
            self._state["mean"],
            self._state["square"],
            self._done,  # (parameters,) uint64
            *table,  # starts, sizes, first, and the sixteen gradients
            self.lr,
            *(math.log(beta) if beta else -math.inf for beta in self.betas),
            *self.betas,
            *(1 - beta for beta in self.betas),
            self.eps,
            0.0 if self.decoupled else self.weight_decay,
            1 - self.lr * self.weight_decay if self.decoupled else 1.0,
        )

    def update(self, i: int) -> Callable[..., None]:
        (beta1, beta2), eps, decay = self.betas, self.eps, self.weight_decay
        self._done[i] += 1
        step = int(self._done[i])
        rate, root = self.lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
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
