"""Learning rate schedulers, under PyTorch's names where the rates are PyTorch's.

A scheduler sets the rate of every parameter group when it is built and at each `step()`:

    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
    for images, labels in loader:
        ...
        optimizer.step()
        scheduler.step()

Each rate is computed in closed form from the number of steps, so rounding errors do not accumulate.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpucnn import schema
from gpucnn.errors import ArgumentError, CheckpointError, kind
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.param_groups import plain
from gpucnn.tensor import Tensor


class LRScheduler:
    """Base of the schedulers: a subclass defines `get_lr`.

    optimizer    the optimizer whose param_groups it sets
    base_lrs     the initial rate of each group.  The first scheduler of an optimizer stores it in
                 the group as "initial_lr", and later schedulers start from there.
    last_epoch   the number of steps taken; 0 after construction.  The name is PyTorch's.

    Raises ArgumentError unless optimizer is an Optimizer, or for a setting out of range.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(
                f"{type(self).__name__}: expected an Optimizer, got {kind(optimizer)}"
            )
        self.optimizer = optimizer
        groups = optimizer.param_groups
        self.base_lrs: list[float] = [g.setdefault("initial_lr", g["lr"]) for g in groups]
        self.last_epoch = 0
        self._set_lr()

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ArgumentError for a setting out of range; subclasses check their own."""

    def get_lr(self) -> list[float]:
        """The rate of each group after `last_epoch` steps."""
        raise NotImplementedError

    def get_last_lr(self) -> list[float]:
        """The rate of each group as the scheduler last set it."""
        return list(self._last_lr)

    def step(self) -> None:
        """Count a step and set the next rates: call it after optimizer.step()."""
        self.last_epoch += 1
        self._set_lr()

    def _set_lr(self) -> None:
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The settings and the number of steps taken, as plain JSON data."""
        return {key: plain(value) for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, settings included; the rates are part of the optimizer's state.

        Raises CheckpointError, and changes nothing, if the state belongs to another scheduler, has
        another number of parameter groups, or a setting out of range.
        """
        self._check_state(state)
        vars(self).update(state)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        own, wrong = self.state_dict(), f"{type(self).__name__}: the state does not fit"
        if not isinstance(state, Mapping) or state.keys() != own.keys():
            found = ", ".join(map(str, state))[:500] if isinstance(state, Mapping) else kind(state)
            raise CheckpointError(f"{wrong}: expected {', '.join(own)}, got {found}")
        try:
            schema.record({key: schema.like(value) for key, value in own.items()})(state, "")
            schema.integer()(state["last_epoch"], "last_epoch")
            self.check(state)
        except (ArgumentError, CheckpointError) as error:
            raise CheckpointError(f"{wrong}: {error}") from error
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise CheckpointError(
                f"{wrong}: expected {len(self.base_lrs)} parameter groups, "
                f"got {len(state['base_lrs'])}"
            )


class LambdaLR(LRScheduler):
    """The initial rate times lr_lambda(steps taken).

    lr_lambda        a function, or a list of one per parameter group.  It is not part of the state.
    freeze_at_zero   freeze the parameters of a group while its rate is 0 and another group's is
                     not: requires_grad is False and grad is None, so backward skips what only
                     they need.  Not inside a SequentialLR
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        freeze_at_zero: bool = False,
    ) -> None:
        groups = len(optimizer.param_groups) if isinstance(optimizer, Optimizer) else 0
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups and groups:
            raise ArgumentError(
                f"LambdaLR: expected a function or {groups} of them, one per parameter group, "
                f"got {len(self.lr_lambdas)}"
            )
        self._freezes = freeze_at_zero
        self._frozen: list[Tensor] = []  # by this scheduler
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        rates = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [lr * factor(self.last_epoch) for lr, factor in rates]

    def _set_lr(self) -> None:
        super()._set_lr()
        self._freeze()

    def _freeze(self) -> None:
        """Freeze the groups whose last rate is 0, if another's is not, and nothing else."""
        if not self._freezes:
            return
        for parameter in self._frozen:
            parameter.requires_grad = True
        self._frozen = []
        if any(self._last_lr):
            groups = zip(self.optimizer.param_groups, self._last_lr, strict=True)
            listed = [p for group, lr in groups if lr == 0 for p in group["params"]]
            self._frozen = [p for p in listed if p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad, parameter.grad = False, None

    def state_dict(self) -> dict[str, Any]:
        own = ("lr_lambdas", "_freezes", "_frozen")
        return {key: v for key, v in super().state_dict().items() if key not in own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._freeze()


class StepLR(LRScheduler):
    """The initial rate, multiplied by `gamma` after every `step_size` steps."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = step_size, gamma
        self.check(vars(self))
        super().__init__(optimizer)

    def check(self, settings: Mapping[str, Any]) -> None:
        _at_least_one("StepLR", step_size=settings["step_size"])

    def get_lr(self) -> list[float]:
        factor = self.gamma ** (self.last_epoch // self.step_size)
        return [lr * factor for lr in self.base_lrs]


class LinearLR(LRScheduler):
    """The initial rate times a factor that moves from start_factor to end_factor.

    It reaches end_factor after `total_iters` steps and stays there.  The defaults give a warm-up.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        self.check(vars(self))
        super().__init__(optimizer)

    def check(self, settings: Mapping[str, Any]) -> None:
        start_factor, end_factor = settings["start_factor"], settings["end_factor"]
        _at_least_one("LinearLR", total_iters=settings["total_iters"])
        if not 0 < start_factor <= 1:
            raise ArgumentError(f"LinearLR: start_factor must be in (0, 1], got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ArgumentError(f"LinearLR: end_factor must be in [0, 1], got {end_factor}")

    def get_lr(self) -> list[float]:
        done = min(self.last_epoch, self.total_iters) / self.total_iters
        factor = self.start_factor + (self.end_factor - self.start_factor) * done
        return [lr * factor for lr in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """From the initial rate down to eta_min over T_max steps, along half a cosine.

    After T_max steps the rate rises again, as PyTorch's does: the cosine continues.
    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = T_max, eta_min
        self.check(vars(self))
        super().__init__(optimizer)

    def check(self, settings: Mapping[str, Any]) -> None:
        _at_least_one("CosineAnnealingLR", T_max=settings["T_max"])

    def get_lr(self) -> list[float]:
        cosine = math.cos(math.pi * (self.last_epoch / self.T_max))
        return [self.eta_min + (lr - self.eta_min) * 0.5 * (1 + cosine) for lr in self.base_lrs]


class TriangularLR(LRScheduler):
    """Linear up to the initial rate over a fraction of the steps, then linear down to 0.

    total_steps   the steps of the training; the rate stays 0 after them
    pct_start     the fraction of the steps in which the rate rises, in [0, 1)

    This differs from PyTorch's OneCycleLR with anneal_strategy="linear".  The rise is the same if
    div_factor = pct_start * total_steps, but the fall starts one step later and reaches 0 after the
    last step.  The momentum does not change.
    Source: Smith and Topin 2018, with straight lines.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, pct_start: float = 0.25) -> None:
        self.total_steps, self.pct_start = total_steps, pct_start
        self.check(vars(self))
        super().__init__(optimizer)

    def check(self, settings: Mapping[str, Any]) -> None:
        pct_start = settings["pct_start"]
        _at_least_one("TriangularLR", total_steps=settings["total_steps"])
        if not 0 <= pct_start < 1:
            raise ArgumentError(f"TriangularLR: pct_start must be in [0, 1), got {pct_start}")

    def get_lr(self) -> list[float]:
        step, peak = self.last_epoch, self.pct_start * self.total_steps
        up = (step + 1) / peak if peak else 1.0
        down = (self.total_steps - step) / (self.total_steps - peak)
        factor = max(min(up, down, 1.0), 0.0)
        return [lr * factor for lr in self.base_lrs]


class SequentialLR(LRScheduler):
    """Run schedulers one after another: each milestone starts the next one at its step 0.

    schedulers   schedulers of `optimizer`
    milestones   the step counts at which the second and later ones take over, ascending

    A warm-up of 500 steps:

        warm_up = LinearLR(optimizer, start_factor=0.01, total_iters=500)
        cosine = CosineAnnealingLR(optimizer, T_max=steps - 500)
        scheduler = SequentialLR(optimizer, [warm_up, cosine], milestones=[500])
    """

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]
    ) -> None:
        self.schedulers, self.milestones = list(schedulers), list(milestones)
        for i, scheduler in enumerate(self.schedulers):
            if not isinstance(scheduler, LRScheduler) or scheduler.optimizer is not optimizer:
                raise ArgumentError(
                    f"SequentialLR: scheduler {i} must be a scheduler of the same optimizer, "
                    f"got {kind(scheduler)}"
                )
            if isinstance(scheduler, LambdaLR) and scheduler._freezes:
                raise ArgumentError("SequentialLR: a scheduler with freeze_at_zero must be alone")
        self.check(vars(self))
        super().__init__(optimizer)

    def check(self, settings: Mapping[str, Any]) -> None:
        milestones, schedulers = settings["milestones"], len(self.schedulers)
        if not schedulers or len(milestones) != schedulers - 1:
            raise ArgumentError(
                f"SequentialLR: {schedulers} schedulers need {max(schedulers - 1, 0)} milestones, "
                f"got {len(milestones)}"
            )
        if any(b <= a for a, b in zip([0, *milestones], milestones, strict=False)):
            raise ArgumentError(
                f"SequentialLR: milestones must be positive and ascending, got {milestones}"
            )

    def get_lr(self) -> list[float]:
        i = bisect_right(self.milestones, self.last_epoch)
        current = self.schedulers[i]
        current.last_epoch = self.last_epoch - (self.milestones[i - 1] if i else 0)
        return current.get_lr()

    def state_dict(self) -> dict[str, Any]:
        nested = [scheduler.state_dict() for scheduler in self.schedulers]
        return {**super().state_dict(), "schedulers": nested}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._check_state(state)
        nested = state["schedulers"]
        if len(nested) != len(self.schedulers):
            raise CheckpointError(
                f"SequentialLR: the state does not fit: expected {len(self.schedulers)} "
                f"schedulers, got {len(nested)}"
            )
        for scheduler, saved in zip(self.schedulers, nested, strict=True):
            scheduler._check_state(saved)
        for scheduler, saved in zip(self.schedulers, nested, strict=True):
            scheduler.load_state_dict(saved)
        vars(self).update({key: v for key, v in state.items() if key != "schedulers"})


def _at_least_one(scheduler: str, **values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ArgumentError(f"{scheduler}: {name} must be an int of at least 1, got {value}")
