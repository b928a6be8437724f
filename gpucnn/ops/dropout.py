"""Dropout: during training, zero a random part of the activations."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function, may_be_masked
from gpucnn.cpu import blocks, empty, flat, parallel
from gpucnn.device import Array, array_module, by_device
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import ceil_div
from gpucnn.ops._exact import narrowed, select, widened
from gpucnn.ops._kernels import defines, takes
from gpucnn.ops.elementwise import float_tensor
from gpucnn.ops.relu import masked
from gpucnn.random import current_part, default_generator
from gpucnn.tensor import Tensor


def dropout(
    x: Any, p: float, training: bool = True, generator: np.random.Generator | None = None
) -> Tensor:
    """Zero each element of x with probability p, and divide the others by 1 - p.

    y has x's shape and dtype, and x's mean in expectation, so evaluation needs no correction: for
    training=False or p = 0 the result is x itself.  A dropped element is 0 even if it was infinite
    or NaN, and so is its gradient (PyTorch multiplies by 0 and gets NaN).  Random numbers come
    from generator, by default the one that `gpucnn.manual_seed` seeds.  They have 16 bits, so p is
    rounded to a multiple of 1 / 65536.  A seed gives the same mask on every device.  Inside
    `gpucnn.random.batch_part` the masks of all parts are, put together, that of the whole batch.

    Raises ArgumentError unless 0 <= p < 1, DtypeError unless x is floating-point, ShapeError if
    x's first axis is not a multiple of the images of a batch_part.
    Source: Srivastava et al. 2014 ("inverted" form).
    """
    if not 0 <= p < 1:
        raise ArgumentError(f"dropout: p must be in [0, 1), got {p!r}")
    t = float_tensor("dropout", x)
    if not training or p == 0:
        return t
    drawn_from = default_generator() if generator is None else generator
    return _Dropout(p, drawn_from, may_be_masked(t))(t)


class _Dropout(Function):
    name = "dropout"

    def __init__(self, p: float, generator: np.random.Generator, after_relu: bool) -> None:
        self.threshold = round(p * 65536)  # drop an element whose 16 random bits are below
        self.generator = generator
        self.keeps_zeros = after_relu
        self.mask_scale = _scale(self.threshold)

    def forward(self, x: Array) -> Array:
        y, mask = _forward(x, self.threshold, self.generator)
        self.saved = (mask, y if self.keeps_zeros else None)
        return y

    def backward(self, dy: Array) -> Array:
        mask, y = self.saved
        factor = self.mask(0) if self.keeps_zeros else None
        if self.masked:  # by 0 where y is 0, and by both factors
            return dy
        if factor is None:
            return mask.backward(dy)
        return masked(dy, y, factor * self.mask_scale)  # y has the zeros of the ReLU too


def _position(x: Array) -> tuple[int, int]:
    """(first, total): x is elements first .. first + x.size - 1 of `total` in the whole batch."""
    part = current_part()
    if part is None:
        return 0, x.size
    images = part.count or 1  # a filler is one image
    if x.ndim == 0 or len(x) % images:
        raise ShapeError(
            f"dropout: expected the {images} images of batch_part on the first axis, or several "
            f"rows of each, got shape {x.shape}\n  draw other masks outside of batch_part"
        )
    each = x.size // images
    return (part.start * each if part.count else 0), part.total * each


# --- any array module: the mask is drawn on the CPU ---


@dataclass(eq=False)
class _Mask:
    """A mask in memory."""

    keep: Array  # bool, in x's shape
    scale: float

    def apply(self, x: Array) -> Array:
        dtype, x = x.dtype, widened(x)
        zero, scale = x.dtype.type(0), x.dtype.type(self.scale)
        return narrowed(array_module(x).where(self.keep, x * scale, zero), dtype)

    def backward(self, dy: Array) -> Array:
        return self.apply(dy)


def _forward_array(x: Array, threshold: int, generator: np.random.Generator) -> tuple[Array, _Mask]:
    mask = _Mask(array_module(x).asarray(_draw(x, threshold, generator)), _scale(threshold))
    return mask.apply(x), mask


def _draw(x: Array, threshold: int, generator: np.random.Generator) -> Array:
    """True for each element of x to keep, on the CPU.

    A 64-bit number gives four draws of 16 bits.  NumPy never keeps half of a 64-bit number for the
    next call, so a GPU's thread or a part of a batch can start at any draw.
    """
    first, total = _position(x)
    begin, used = divmod(first, 4)
    draws = _numbers(generator, begin, ceil_div(first + x.size, 4), ceil_div(total, 4))
    keep = draws.astype("<u8", copy=False).view("<u2")[used : used + x.size] >= threshold
    return keep.reshape(x.shape)


def _numbers(generator: np.random.Generator, begin: int, end: int, total: int) -> Array:
    """Numbers begin .. end - 1 of the next `total` 64-bit numbers; all count as drawn."""

    def draw(count: int) -> Array:
        return generator.integers(2**64 - 1, size=count, dtype=np.uint64, endpoint=True)

    philox = generator.bit_generator
    if end - begin == total or not isinstance(philox, np.random.Philox):
        return draw(total)[begin:end]
    _skip(philox, begin)
    numbers = draw(end - begin)
    _skip(philox, total - end)
    return numbers


def _scale(threshold: int) -> float:
    return 65536 / (65536 - threshold)


# --- NumPy, in blocks that stay in the cache ---


class _BlockedMask(_Mask):
    def apply(self, x: Array) -> Array:
        dtype, x = x.dtype, widened(x)
        y = empty(x.shape, x.dtype)
        source, keep, out = flat(x), flat(self.keep), y.reshape(-1)

        def apply(block: slice) -> None:
            np.multiply(source[block], self.scale, out=out[block])
            select(out[block], keep[block], out[block])

        parallel(apply, blocks(x.size))
        return narrowed(y, dtype)


def _forward_numpy(x: Array, threshold: int, generator: np.random.Generator) -> tuple[Array, _Mask]:
    mask = _BlockedMask(_draw(x, threshold, generator), _scale(threshold))
    return mask.apply(x), mask


# --- CUDA: each thread draws its elements' numbers, and draws them again in backward ---


@dataclass(eq=False)
class _PhiloxMask:
    """A mask that the kernel draws again from the generator's state, so it takes no memory."""

    state: tuple[int, ...]  # as `_skip` returns it
    threshold: int
    at: Array | None = None  # (7,) uint64: the state in each step, if the step is captured

    def apply(self, x: Array) -> Array:
        xp = array_module(x)
        x, y = xp.ascontiguousarray(x), xp.empty(x.shape, x.dtype)
        cuda.launch_elementwise(
            "dropout",
            ceil_div(x.size + 15, 16),  # 16 elements a thread, the first perhaps fewer
            x,
            y,
            self.at,
            *self.state,
            self.threshold,
            _scale(self.threshold),
            x.size,
            defines=defines(x.dtype),
        )
        return y

    def backward(self, dy: Array) -> Array:
        return self.apply(dy)


def _forward_cuda(
    x: Array, threshold: int, generator: np.random.Generator
) -> tuple[Array, _Mask | _PhiloxMask]:
    """Only Philox can compute its numbers in any order; other generators draw on the CPU."""
    philox = generator.bit_generator
    if not takes(x) or not isinstance(philox, np.random.Philox):
        cuda.refuse_capture(
            "dropout draws on the host: its generator is not Philox, or its dtype is float64"
        )
        return _forward_array(x, threshold, generator)
    first, total = _position(x)

    def draw() -> tuple[int, ...]:
        return _skip(philox, ceil_div(total, 4), first)

    at = cuda.step_value(draw, np.uint64, (7,))
    state = draw() if at is None else (0,) * 7  # a replay draws, not the capture
    mask = _PhiloxMask(state, threshold, at)
    return mask.apply(x), mask


def _skip(philox: np.random.Philox, count: int, first: int = 0) -> tuple[int, ...]:
    """Advance philox by `count` 64-bit numbers without drawing them.

    Returns where 16-bit number `first` of them begins, as kernels/dropout.cu takes it: counter (4),
    key (2), and how many of the counter's sixteen 16-bit numbers come before.
    """
    state: Any = philox.state
    words = state["state"]["counter"]
    a, b, c, d = words.tolist()  # in every step of a training: this is the fastest way
    counter = a | b << 64 | c << 128 | d << 192
    used = state["buffer_pos"]
    step, before = divmod(4 * used + first, 16)
    start = (*_words(counter + step), *state["state"]["key"].tolist(), before)
    if count:
        last = used + count - 1  # the last number drawn, relative to this counter's first
        words[:] = _words(counter + last // 4 - 1)
        state["buffer_pos"] = 4
        philox.state = state
        philox.random_raw(last % 4 + 1)  # refills the buffer of four
    return start


def _words(counter: int) -> tuple[int, int, int, int]:
    """A 256-bit number as four 64-bit words, lowest first."""
    low = (1 << 64) - 1
    return counter & low, counter >> 64 & low, counter >> 128 & low, counter >> 192 & low


_forward: Any = by_device(cpu=_forward_numpy, cuda=_forward_cuda)
