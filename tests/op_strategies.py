"""Operands and settings of one op, drawn by hypothesis, for the tests against PyTorch.

An entry of random_ops.OPS picks its operands from a graph.  `Drawn` is a graph without a past: it
draws each operand's shape, memory layout and values.  It records what it drew, so that the same
case can run again.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_graphs import Graph, Pair, torch

import gpucnn
from gpucnn.cpu import spans

Draw = Callable[[st.SearchStrategy[Any]], Any]


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """Run the test with `few` examples, and under `-m slow` with `many`."""
    marked = pytest.param(many, marks=pytest.mark.slow)
    return pytest.mark.parametrize("examples", [few, marked])


def draws(examples: int, test: Callable[[Draw], None]) -> None:
    """Call test(draw) for `examples` cases, the same ones every time."""

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],  # shrinking takes minutes
    )  # fmt: skip
    @given(st.data())
    def run(data: Any) -> None:
        with np.errstate(all="ignore"):
            test(data.draw)

    run()


# --- operands ---

SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 0)
LARGEST = 2500  # elements of an operand
SHAPES = st.lists(st.sampled_from(SIZES), max_size=4).map(tuple)
IMAGES = st.tuples(
    st.sampled_from((1, 2, 3, 5, 0)),
    st.integers(1, 11),
    st.integers(1, 11),
    st.sampled_from((1, 2, 3, 4, 5, 16, 17)),
)
LAYOUTS = (
    "C",
    "F",
    "permuted",
    "stepped",
    "reversed",
    "offset",
    "unaligned",
    "stride 0",
    "read-only",
)

SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0)


def extreme(dtype: Any) -> tuple[float, ...]:
    """Zero, the largest, the smallest normal and the smallest number, and the one next to 1."""
    info = np.finfo(dtype)
    numbers = 0.0, info.max, info.smallest_normal, info.smallest_subnormal, 1 + info.eps
    return tuple(float(sign * x) for x in numbers for sign in (1, -1))


class _Shape(NamedTuple):
    """Stands for a Pair where only its shape matters."""

    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)


class Choices:
    """What a test case drew, in order."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._drawn: list[Any] = []
        self._next: int | None = None  # the position in a repetition

    def __call__(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.remember(lambda: self._draw(strategy))

    def remember(self, make: Callable[[], Any]) -> Any:
        """make(), or in a repetition what it returned the first time."""
        if self._next is None:
            self._drawn.append(make())
            return self._drawn[-1]
        self._next += 1
        return self._drawn[self._next - 1]

    def repeat(self) -> None:
        """Return the recorded choices again, from the first one."""
        self._next = 0


class Drawn(Graph):
    """The operands of one op: leaves, some of them used twice, some without a gradient.

    `values` are numbers to mix into the operands.  Without them all operands are ordinary numbers.
    With several `dtypes` the leaves take turns.  With `reuse` a leaf may be several operands.
    """

    def __init__(
        self,
        choose: Choices,
        dtypes: tuple[Any, ...],
        values: tuple[float, ...] = (),
        device: str = "cpu",
        reuse: bool = True,
    ) -> None:
        self.choose, self.dtypes, self.values = choose, dtypes, values
        self.device, self.reuse = device, reuse
        self.dtype = np.dtype(dtypes[0])
        seed = choose(st.integers(0, 2**32 - 1))
        self.rng = np.random.default_rng(seed)  # for the op's settings, drawn in every run
        self.numbers = np.random.default_rng([seed])  # for arrays, drawn once
        self.leaves: list[Pair] = []
        self.memory: list[tuple[np.ndarray, bytes]] = []  # of the leaves, and what it held
        self.results: list[Pair] = []

    def leaf(self, shape: tuple[int, ...], dtype: Any = None, low: float = -2.0) -> Pair:
        dtype = np.dtype(dtype or self.dtypes[len(self.leaves) % len(self.dtypes)])
        array = self.array(shape, dtype, self.values, low)
        self.memory.append((array, array.tobytes()))
        grad = dtype.kind == "f" and self.settings(True, True, True, False)
        ours = gpucnn.tensor(array, self.device, requires_grad=grad)
        theirs = torch.tensor(array.astype(np.float64), requires_grad=grad)
        self.leaves.append(Pair(ours, theirs))
        return self.leaves[-1]

    def finite(self, shape: tuple[int, ...]) -> Pair:
        values, self.values = self.values, ()
        pair = self.leaf(shape)
        self.values = values
        return pair

    def array(
        self, shape: tuple[int, ...], dtype: Any, values: tuple[float, ...] = (), low: float = -2.0
    ) -> np.ndarray:
        """Numbers from [low, 2), some of them replaced by `values`, in a layout that is drawn."""
        layout = self.choose(st.sampled_from(LAYOUTS))

        def make() -> np.ndarray:
            numbers = self.numbers.uniform(0.5 if values else low, 2, shape)
            if values:
                mixed = self.numbers.choice(values, shape)
                numbers = np.where(self.numbers.random(shape) < 0.4, mixed, numbers)
            return laid_out(numbers.astype(dtype), layout, self.numbers)

        return self.choose.remember(make)

    def constant(self, numbers: Any) -> Pair:
        array = np.asarray(numbers, self.dtype)
        return Pair(gpucnn.tensor(array, self.device), torch.tensor(array.astype(np.float64)))

    def settings(self, *choices: Any) -> Any:
        return choices[self.choose(st.integers(0, len(choices) - 1))]

    def pick(self, fits: Callable[[Any], bool] = lambda p: True) -> Pair:
        """A leaf that fits: one drawn before, one of a related shape, or one of any shape."""
        old = [p for p in self.leaves if self.reuse and p.ours.dtype in self.dtypes and fits(p)]
        if old and self.choose(st.booleans()):
            return old[self.choose(st.integers(0, len(old) - 1))]
        related = [s for p in self.leaves for s in _related(p.shape) if fits(_Shape(s))]
        if self.leaves:
            assume(related)
            return self.leaf(self.choose(st.sampled_from(related)))
        shapes = SHAPES.filter(lambda s: math.prod(s) <= LARGEST and fits(_Shape(s)))
        return self.leaf(self.choose(shapes))

    def image(self) -> Pair:
        return self.leaf(self.choose(IMAGES))

    def positive(self, x: Pair) -> Pair:
        return x if self.values else self.leaf(x.shape, low=0.5)

    # A leaf has the same values in both libraries: it may be at a kink, and its values may tie.

    def away_from_zero(self, x: Pair) -> Pair:
        return x

    def apart(self, x: Pair) -> Pair:
        return x


def _related(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes of second operands: the same, broadcast ones, and those of other parts of a whole."""
    yield shape
    for i, n in enumerate(shape):
        yield shape[i + 1 :]
        for other in (1, 0, 3, n + 1):
            yield (*shape[:i], other, *shape[i + 1 :])
    yield (1, *shape)
    yield (2, *shape)


def laid_out(numbers: np.ndarray, layout: str, rng: np.random.Generator) -> np.ndarray:
    """The numbers in memory of that layout; "stride 0" repeats the first of an axis instead."""
    shape, dtype = numbers.shape, numbers.dtype
    if layout == "F":
        return np.array(numbers, order="F")
    if layout == "permuted":
        order = rng.permutation(len(shape))
        return np.array(numbers.transpose(order), order="C").transpose(np.argsort(order))
    if layout == "stride 0" and numbers.size:
        axis = int(rng.integers(len(shape))) if shape else 0
        before = (slice(None),) * axis
        first = numbers[(*before, slice(1))] if shape else numbers
        return np.broadcast_to(first, shape)
    if layout == "stepped":
        every_other = (slice(1, None, 2),) * len(shape)
        view = np.zeros([2 * n + 1 for n in shape], dtype)[(*every_other, ...)]
    elif layout == "reversed":
        backwards = (slice(None, None, -1),) * len(shape)
        view = np.zeros(shape, dtype)[(*backwards, ...)]
    elif layout in ("offset", "unaligned"):
        start = dtype.itemsize if layout == "offset" else 1
        memory = np.zeros(numbers.nbytes + start, np.uint8)[start:]
        view = memory.view(dtype).reshape(shape)
    else:
        view = np.zeros(shape, dtype)
    view[...] = numbers
    view.flags.writeable = layout != "read-only"
    return view


SMALL = (
    ("gpucnn.ops.batch_norm.cpu", "_BLOCK", 60),
    ("gpucnn.ops.linear", "_PIECE", (4, 4)),
    ("gpucnn.ops.linear", "_GRADIENT_PIECE", (3, 8)),
    ("gpucnn.ops.matmul", "_PIECE", (4, 4)),
    ("gpucnn.ops.matmul", "_WORK", 16),
    ("gpucnn.ops.conv2d.im2col", "_BAND_BYTES", 2048),
    ("gpucnn.ops.pool2d.cpu", "_CHUNK_BYTES", 512),
    ("gpucnn.ops.conv2d.winograd_tiles", "_SPAN_TILES", 3),
    ("gpucnn.ops.local_response_norm", "_row_spans", lambda rows: list(spans(len(rows), 3))),
    ("gpucnn.ops.relu", "blocks", lambda size: list(spans(size, 48))),
    ("gpucnn.ops.dropout", "blocks", lambda size: list(spans(size, 48))),
)


@contextmanager
def small_blocks() -> Iterator[None]:
    """Split even small arrays into several blocks, with a ragged last one."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in SMALL:
            patch.setattr(sys.modules[module], name, value)
        yield
