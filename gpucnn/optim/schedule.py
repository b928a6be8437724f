"""Learning rates over time: each schedule is a function of the step, counted from 0."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from gpucnn.errors import ArgumentError

Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    lr: float

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Step:
    """lr, times `factor` after every `every` steps."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _at_least_one("Step", every=self.every)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class Cosine:
    """From lr down to `final` over `total` steps along half a cosine.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    lr: float
    total: int
    final: float = 0.0

    def __post_init__(self) -> None:
        _at_least_one("Cosine", total=self.total)

    def __call__(self, step: int) -> float:
        done = min(step / self.total, 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class OneCycle:
    """Linear up to lr over the first `rise` of `total` steps, then linear down to nothing.

    Source: Smith and Topin 2018, with straight lines.
    """

    lr: float
    total: int
    rise: float = 0.25

    def __post_init__(self) -> None:
        _at_least_one("OneCycle", total=self.total)
        if not 0 <= self.rise < 1:
            raise ArgumentError(f"OneCycle: rise must be in [0, 1), got {self.rise}")

    def __call__(self, step: int) -> float:
        peak = self.rise * self.total
        up = (step + 1) / peak if peak else 1.0
        down = (self.total - step) / (self.total - peak)
        return self.lr * max(min(up, down, 1.0), 0.0)


@dataclass(frozen=True)
class Warmup:
    """Another schedule, its first `steps` rates scaled linearly up from 1 / steps."""

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        _at_least_one("Warmup", steps=self.steps)

    def __call__(self, step: int) -> float:
        return self.schedule(step) * min((step + 1) / self.steps, 1.0)


def _at_least_one(schedule: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ArgumentError(f"{schedule}: {name} must be at least 1, got {value}")
