"""Adam, and AdamW with decoupled weight decay."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.device import CPU, Array, array_module, device_of, to_device
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.param_groups import check_number, is_number
from gpucnn.tensor import Tensor


class Adam(Optimizer):
    """Steps scaled by running moments of the gradient, with bias correction.

    The bias correction counts, for each parameter, only the steps in which it had a gradient.
    weight_decay adds weight_decay * p to the gradient; AdamW shrinks p itself instead.

    Raises ArgumentError for a hyperparameter out of range.
    Source: Kingma and Ba 2015, algorithm 1.
    """

    states = ("mean", "square")
    decoupled = False

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        # Steps of each parameter.  On a GPU every block of the kernel adds one, so that a step adds
        # `_blocks` and the host need not pass a step number.
        self._blocks = np.ones(len(self.parameters), np.uint64)
        if self._by_kernel:
            for _, first, (blocks, rows) in self._launches:
                self._blocks[first : first + rows] = max(blocks, 1)
        with self._working("the state"):
            device = device_of(self._flat) if self._by_kernel else CPU
            self._done = to_device(np.zeros_like(self._blocks), device)

    def check(self, who: str, group: Mapping[str, Any]) -> None:
        super().check(who, group)
        betas, eps = group["betas"], group["eps"]
        two = isinstance(betas, tuple | list) and len(betas) == 2
        if not two or not is_number(betas[0], below=1) or not is_number(betas[1], below=1):
            raise ArgumentError(f"{who}: betas must be two numbers in [0, 1), got {betas}")
        check_number(who, "eps", eps)
        if eps == 0:
            raise ArgumentError(f"{who}: eps must be positive, got {eps}")
        check_number(who, "weight_decay", group["weight_decay"])

    def state_dict(self) -> dict[str, Any]:
        """Optimizer's state and "counts": the steps of each parameter, int64 on the CPU."""
        with self._working("the state"):
            counts = to_device(self._done, CPU) // self._blocks
        return {**super().state_dict(), "counts": counts.astype(np.int64)}

    def _checked_state(self, state: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        self.check_array("counts", state.get("counts"), (len(self.parameters),), np.int64)
        counts = to_device(state["counts"], CPU)
        if counts.min() < 0:
            raise CheckpointError(
                f"{type(self).__name__}: the state does not fit: expected counts of steps, "
                f"got {counts.min()}"
            )
        return super()._checked_state(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        counts = to_device(state["counts"], CPU)
        with self._working("the state"):
            done = counts.astype(np.uint64) * self._blocks
            self._done[...] = to_device(done, device_of(self._done))

    def launch(
        self, group: Mapping[str, Any], grid: tuple[int, int], block: int, *table: Any
    ) -> None:
        lr, betas, decay = group["lr"], group["betas"], group["weight_decay"]

        def shrink() -> float:
            return 1 - group["lr"] * decay if self.decoupled else 1.0

        cuda.launch(
            "adam_step",
            grid,
            block,
            self._flat,
            self._state["mean"],
            self._state["square"],
            self.copies.target,
            self._done,  # (parameters,) uint64
            *table,  # starts, sizes, first, and the sixteen gradients
            cuda.step_value(lambda: (group["lr"], shrink()), np.float32, (2,)),
            lr,
            *(math.log(beta) if beta else -math.inf for beta in betas),
            *betas,
            *(1 - beta for beta in betas),
            group["eps"],
            0.0 if self.decoupled else decay,
            shrink(),
            self.unscale,
            self.guard,
            defines=self.copies.defines(),
        )

    def bounds_after(
        self, group: Mapping[str, Any], gradient: float, bounds: Mapping[str, float]
    ) -> dict[str, float]:
        lr, betas, decay = group["lr"], group["betas"], group["weight_decay"]
        shrink = max(abs(1 - lr * decay), 1.0) if self.decoupled else 1.0
        g = gradient if self.decoupled else gradient + decay * bounds["value"]
        mean, square = max(bounds["mean"], g), max(bounds["square"], g * g)
        moved = lr / (1 - betas[0]) * mean / group["eps"]
        return {"value": bounds["value"] * shrink + moved, "mean": mean, "square": square}

    def update(self, i: int, group: Mapping[str, Any]) -> Callable[..., None]:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        eps, decay = group["eps"], group["weight_decay"]
        self._done[i] += 1
        step = int(self._done[i])
        rate, root = lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
        shrink = 1 - lr * decay

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
    """Adam with decoupled weight decay: p is multiplied by 1 - lr * weight_decay.

    Raises ArgumentError for a hyperparameter out of range.
    Source: Loshchilov and Hutter 2019, algorithm 2.
    """

    decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
