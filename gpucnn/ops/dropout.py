"""Dropout: during training, zero a random part of the activations."""

from dataclasses import dataclass
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
    """Zero each element of x with probability p, and divide the others by 1 - p.

    y has x's shape and dtype, and x's mean in expectation, so evaluation needs no correction: for
    training=False or p = 0 the result is x itself.  A dropped element is 0 even if it was infinite
    or NaN, and so is its gradient (PyTorch multiplies by 0 and gets NaN).  Random numbers come
    from generator, by default the one that `gpucnn.manual_seed` seeds.  They have 16 bits, so p is
    rounded to a multiple of 1 / 65536.  A seed gives the same mask on every device.

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
        self.threshold = round(p * 65536)  # drop an element whose 16 random bits are below
        self.generator = generator

    def forward(self, x: Array) -> Array:
        y, self.saved = _forward(x, self.threshold, self.generator)
        return y

    def backward(self, dy: Array) -> Array:
        return self.saved.backward(dy)


# --- any array module: the mask is drawn on the CPU ---


@dataclass(eq=False)
class _Mask:
    """A mask in memory."""

    keep: Array  # bool, in x's shape
    scale: float

    def apply(self, x: Array) -> Array:
        zero, scale = x.dtype.type(0), x.dtype.type(self.scale)
        return array_module(x).where(self.keep, x * scale, zero)

    def backward(self, dy: Array) -> Array:
        return self.apply(dy)


def _forward_array(x: Array, threshold: int, generator: np.random.Generator) -> tuple[Array, _Mask]:
    mask = _Mask(array_module(x).asarray(_draw(x, threshold, generator)), _scale(threshold))
    return mask.apply(x), mask


def _draw(x: Array, threshold: int, generator: np.random.Generator) -> Array:
    """True for each element of x to keep, on the CPU.

    A 64-bit number gives four draws of 16 bits.  NumPy never keeps half of a 64-bit number for the
    next call, so the GPU's kernel can start at any of these numbers.
    """
    draws = generator.integers(2**64 - 1, size=ceil_div(x.size, 4), dtype=np.uint64, endpoint=True)
    keep = draws.astype("<u8", copy=False).view("<u2")[: x.size] >= threshold
    return keep.reshape(x.shape)


def _scale(threshold: int) -> float:
    return 65536 / (65536 - threshold)


# --- NumPy, in blocks that stay in the cache ---


class _BlockedMask(_Mask):
    def apply(self, x: Array) -> Array:
        y = empty(x.shape, x.dtype)
        source, keep, out = flat(x), flat(self.keep), y.reshape(-1)

        def apply(block: slice) -> None:
            np.multiply(source[block], self.scale, out=out[block])
            select(out[block], keep[block], out[block])

        parallel(apply, blocks(x.size))
        return y


def _forward_numpy(x: Array, threshold: int, generator: np.random.Generator) -> tuple[Array, _Mask]:
    mask = _BlockedMask(_draw(x, threshold, generator), _scale(threshold))
    return mask.apply(x), mask


# --- CUDA: each thread draws its elements' numbers, and draws them again in backward ---


@dataclass(eq=False)
class _PhiloxMask:
    """A mask that the kernel draws again from the generator's state, so it takes no memory."""

    state: tuple[int, ...]  # as `_skip` returns it
    threshold: int

    def apply(self, x: Array) -> Array:
        xp = array_module(x)
        x, y = xp.ascontiguousarray(x), xp.empty(x.shape, np.float32)
        cuda.launch_elementwise(
            "dropout",
            ceil_div(x.size + 15, 16),  # 16 elements a thread, the first perhaps fewer
            x,
            y,
            *self.state,
            self.threshold,
            _scale(self.threshold),
            x.size,
        )
        return y

    def backward(self, dy: Array) -> Array:
        return self.apply(dy)


def _forward_cuda(
    x: Array, threshold: int, generator: np.random.Generator
) -> tuple[Array, _Mask | _PhiloxMask]:
    """Only Philox can compute its numbers in any order; other generators draw on the CPU."""
    if not takes("dropout", x) or not isinstance(generator.bit_generator, np.random.Philox):
        return _forward_array(x, threshold, generator)
    mask = _PhiloxMask(_skip(generator.bit_generator, ceil_div(x.size, 4)), threshold)
    return mask.apply(x), mask


def _skip(philox: np.random.Philox, count: int) -> tuple[int, ...]:
    """Advance philox by `count` 64-bit numbers without drawing them.

    Returns the state before, as kernels/dropout.cu takes it: counter (4), key (2), and how many of
    the counter's four numbers were used.
    """
    state: Any = philox.state
    counter = sum(int(word) << 64 * i for i, word in enumerate(state["state"]["counter"]))
    used = state["buffer_pos"]
    start = (*_words(counter + used // 4), *map(int, state["state"]["key"]), used % 4)
    if count:
        last = used + count - 1  # the last number drawn, relative to this counter's first
        state["state"]["counter"][:] = _words(counter + last // 4 - 1)
        state["buffer_pos"] = 4
        philox.state = state
        philox.random_raw(last % 4 + 1)  # refills the buffer of four
    return start


def _words(counter: int) -> list[int]:
    """A 256-bit number as four 64-bit words, lowest first."""
    return [counter >> 64 * i & (1 << 64) - 1 for i in range(4)]


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
