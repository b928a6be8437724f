"""Dropout: in training, forget a random part of the activations."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.cpu import blocks, empty, flat, parallel
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import select
from gpucnn.ops._kernels import takes
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor


def dropout(
    x: Tensor, p: float, training: bool = True, generator: np.random.Generator | None = None
) -> Tensor:
    """Set each element to 0 with probability p, and divide the others by 1 - p.

    A dropped element is 0 even if it was infinite or NaN, and so is its gradient (PyTorch
    multiplies by 0, and has NaN there).  The mean stays what it was, so that nothing is left to do
    when training is False: x itself comes back.  Random numbers come from generator, or from the
    one that `gpucnn.manual_seed` seeds; they have 16 bits, so that p counts in steps of 1 / 65536.

    Raises ArgumentError unless 0 <= p < 1.
    Source: Srivastava et al. 2014 ("inverted" form).
    """
    if not 0 <= p < 1:
        raise ArgumentError(f"dropout: p must be in [0, 1), got {p!r}")
    if not training or p == 0:
        return x
    return _Dropout(p, default_generator() if generator is None else generator)(x)


class _Dropout(Function):
    name = "dropout"

    def __init__(self, p: float, generator: np.random.Generator) -> None:
        self.threshold = round(p * 65536)
        self.generator = generator

    def forward(self, x: Array) -> Array:
        mask = _draw(x, self.threshold, self.generator)
        self.saved = (mask,)
        return _masked(x, mask, self.threshold)

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        return _masked(dy, *self.saved, self.threshold)


# --- any array module: the numbers are drawn on the CPU ---


def _draw_array(x: Array, threshold: int, generator: np.random.Generator) -> Array:
    """Which elements stay.  Four draws of 16 bits each come out of one of 64, which NumPy draws
    without keeping half of one for later: a GPU can then start at any of them."""
    draws = generator.integers(2**64 - 1, size=ceil_div(x.size, 4), dtype=np.uint64, endpoint=True)
    keep = draws.astype("<u8", copy=False).view("<u2")[: x.size] >= threshold
    return array_module(x).asarray(keep.reshape(x.shape))


def _masked_array(x: Array, mask: Array, threshold: int) -> Array:
    zero, scale = x.dtype.type(0), x.dtype.type(_scale(threshold))
    return array_module(x).where(mask, x * scale, zero)


def _scale(threshold: int) -> float:
    return 65536 / (65536 - threshold)


# --- NumPy ---


def _masked_numpy(x: Array, mask: Array, threshold: int) -> Array:
    y, scale = empty(x.shape, x.dtype), _scale(threshold)
    source, kept, into = flat(x), flat(mask), y.reshape(-1)

    def apply(block: slice) -> None:
        np.multiply(source[block], scale, out=into[block])
        select(into[block], kept[block], into[block])

    parallel(apply, blocks(x.size))
    return y


# --- CUDA: each thread draws the numbers of its elements, the same ones ---

_THREADS = 256


def _draw_cuda(x: Array, threshold: int, generator: np.random.Generator) -> Array:
    """Where the generator stood, as kernels/dropout.cu takes it; or the mask itself, if the
    generator is not Philox, whose numbers alone can be computed in any order."""
    if not takes("dropout", x) or not isinstance(generator.bit_generator, np.random.Philox):
        return _draw_array(x, threshold, generator)
    return _take(generator.bit_generator, ceil_div(x.size, 4))


def _take(philox: np.random.Philox, count: int) -> tuple[int, ...]:
    """Move philox on as if `count` 64-bit numbers had been drawn, without drawing them.

    Returns where it stood: counter (4), key (2), and how many of the four numbers of that counter
    were used up.
    """
    state: Any = philox.state
    counter = sum(int(word) << 64 * i for i, word in enumerate(state["state"]["counter"]))
    used = state["buffer_pos"]
    start = (*_words(counter + used // 4), *map(int, state["state"]["key"]), used % 4)
    if count:
        last = used + count - 1  # the last number taken, counted from this counter's first
        state["state"]["counter"][:] = _words(counter + last // 4 - 1)
        state["buffer_pos"] = 4
        philox.state = state
        philox.random_raw(last % 4 + 1)  # fills the buffer of four
    return start


def _words(counter: int) -> list[int]:
    """A 256-bit number as four of 64, the lowest first."""
    return [counter >> 64 * i & (1 << 64) - 1 for i in range(4)]


def _masked_cuda(x: Array, mask: Array, threshold: int) -> Array:
    if not isinstance(mask, tuple):
        return _masked_array(x, mask, threshold)
    xp = array_module(x)
    x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
    cuda.launch(
        "dropout",
        ceil_div(x.size + 15, 16 * _THREADS),  # 16 elements a thread, the first perhaps fewer
        _THREADS,
        x,
        y,
        *mask,  # counter (4), key (2), how many of its numbers are used up
        threshold,
        _scale(threshold),
        x.size,
    )
    return y


_draw: Any = by_device(cpu=_draw_array, cuda=_draw_cuda)
_masked: Any = by_device(cpu=_masked_numpy, cuda=_masked_cuda)
