"""Random graphs of gpucnn's ops beside the same graphs of PyTorch's, for test_random_graphs.py.

A graph grows op by op (random_ops.py).  Operands are picked among the leaves and results so far.
gpucnn computes in `dtype`, PyTorch in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gpucnn

try:
    import torch
except ImportError:  # the tests skip
    torch = None

LARGEST = 200  # elements of a result that other ops may use
LEAVES = ((), (4,), (1, 4), (3, 4), (2, 1, 4), (2, 5, 4, 4))


class Pair(NamedTuple):
    """One value in both libraries."""

    ours: gpucnn.Tensor
    theirs: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ours.shape

    @property
    def ndim(self) -> int:
        return self.ours.ndim

    @property
    def value(self) -> np.ndarray:
        return self.theirs.detach().numpy()


class Graph:
    """Leaves, and the results computed from them."""

    def __init__(self, dtype: Any, seed: int) -> None:
        self.dtype = np.dtype(dtype)
        self.rng = np.random.default_rng(seed)
        self.leaves: list[Pair] = []
        self.results: list[Pair] = []
        for shape in LEAVES:
            self.leaf(shape)

    def leaf(self, shape: tuple[int, ...], dtype: Any = None) -> Pair:
        """A new leaf with the same values in every dtype."""
        numbers = self.rng.uniform(-2, 2, shape).astype(np.float32)
        pair = Pair(
            gpucnn.tensor(numbers, requires_grad=True, dtype=dtype or self.dtype),
            torch.tensor(numbers.astype(np.float64), requires_grad=True),
        )
        self.leaves.append(pair)
        return pair

    def finite(self, shape: tuple[int, ...]) -> Pair:
        """A leaf of finite numbers, where others may have infinities."""
        return self.leaf(shape)

    def constant(self, numbers: Any) -> Pair:
        numbers = np.asarray(numbers, np.float32)
        return Pair(
            gpucnn.tensor(numbers, dtype=self.dtype), torch.tensor(numbers.astype(np.float64))
        )

    def grow(self, name: str, op: "Callable[[Graph], Pair]", choices: int) -> None:
        """Add the result of `op`, called `name`; `choices` seeds its operands and settings."""
        self.rng = np.random.default_rng(choices)
        y = op(self)
        assert y.shape == tuple(y.theirs.shape), name
        if y.ours.size > LARGEST:
            y = Pair(y.ours.mean(0), y.theirs.mean(0))
        largest = float(np.abs(y.value).max(initial=0))
        assert np.isfinite(largest), name
        if largest > 8:
            y = Pair(y.ours * (4 / largest), y.theirs * (4 / largest))
        same = [p for p in [*self.leaves, *self.results] if p.ours is y.ours]
        self.results.append(same[0] if same else y)  # some ops may return their operand itself

    # --- operands ---

    def pick(self, fits: Callable[[Pair], bool] = lambda p: True) -> Pair:
        """A random result or leaf that fits; results are likelier."""
        among = [p for p in [*self.leaves, *self.results * 3] if p.ours.dtype == self.dtype]
        among = [p for p in among if fits(p)]
        return among[self.rng.integers(len(among))]

    def image(self) -> Pair:
        return self.pick(lambda p: p.ndim == 4)

    def rows(self) -> Pair:
        return self.pick(lambda p: p.ndim >= 1)

    def two(self) -> tuple[Any, Any]:
        """Two operands that broadcast, sometimes the same one or a number."""
        a = self.pick()
        b: Any = self.pick(lambda p: broadcasts(a.shape, p.shape))
        if self.rng.random() < 0.2:
            number = float(self.rng.choice([-1.5, 0.5, 2.0]))
            b = Pair(number, number)  # type: ignore[arg-type]
        return (a, b) if self.rng.random() < 0.5 else (b, a)

    def axis(self, x: Pair) -> int:
        return int(self.rng.integers(-x.ndim, x.ndim))

    def axes(self, x: Pair) -> Any:
        """An axis argument of reductions: None, an axis or several."""
        if x.ndim == 0 or self.rng.random() < 0.3:
            return None
        count = int(self.rng.integers(1, x.ndim + 1))
        several = tuple(int(i) for i in self.rng.permutation(x.ndim)[:count])
        return several if count > 1 else several[0]

    def settings(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    # --- away from kinks and poles ---

    def positive(self, x: Pair) -> Pair:
        return Pair(x.ours * x.ours + 0.5, x.theirs * x.theirs + 0.5)

    def away_from_zero(self, x: Pair) -> Pair:
        return self.plus(x, np.where(x.value < 0, -0.5, 0.5))

    def apart(self, x: Pair) -> Pair:
        """x with its values 0.1 apart, in the same order."""
        order = np.argsort(np.argsort(x.value, axis=None)).reshape(x.shape)
        return self.plus(x, 0.1 * (order - x.ours.size / 2) - x.value)

    def plus(self, x: Pair, numbers: Any) -> Pair:
        c = self.constant(numbers)
        return Pair(x.ours + c.ours, x.theirs + c.theirs)


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether arrays of the two shapes can be added."""
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return True
