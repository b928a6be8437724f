"""The epilogue of a convolution on NumPy: ReLU and max pooling while its result is in cache.

An engine computes the convolution part by part (a few images).  It writes each part to
`output_buffer` and passes it to `finish`; in the backward pass `gradient` returns the gradient of
the same part.  A result that is pooled is never stored in memory as a whole.

Where pooling windows lie side by side, an engine can pool before it arranges its result as images.
It sorts the values by their offset inside the window, and compares all values at one offset with
those at another.  These are long runs in memory, while images have runs of only OC numbers.  Such
an engine calls `fuse_pool` first; `output_buffer`, `finish` and `gradient` then refer to the pooled
result.  An engine that copies its result into the images can apply the ReLU during that copy; it
calls `fuse_relu` first.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gpucnn.cpu import empty, scratch
from gpucnn.device import Array
from gpucnn.ops._exact import select
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.cpu import MaxPoolByOffset, max_forward
from gpucnn.ops.pool2d.portable import SavedMax


class Epilogue:
    """The epilogue of one convolution.  Its methods may be called from any thread."""

    def __init__(self, g: Geometry, oc: int, dtype: Any, relu: bool, pool: Geometry | None) -> None:
        """For the convolution g to OC channels; `pool` is the geometry of the pooling, if any."""
        self.shape = g.oh, g.ow, oc
        self.relu, self.pool = relu, pool
        self.clips = relu  # until an engine claims the ReLU
        self.pool_by_offset: MaxPoolByOffset | None = None  # the pooling once an engine claims it
        self.pool_window = 1, 1  # the window of that pooling
        height, width = (g.oh, g.ow) if pool is None else (pool.oh, pool.ow)
        self.y: Array = empty((g.n, height, width, oc), dtype)
        self.pooled: dict[int, SavedMax | None] = {}  # by the first image of a part

    def fuse_pool(self, tile: tuple[int, int]) -> None:
        """Claim the pooling: set `pool_by_offset` and `pool_window` if the engine must pool.

        They stay None and (1, 1) unless windows lie side by side and tiles of `tile` pixels of the
        convolution hold whole windows.
        """
        p = self.pool
        if p is None or p.padded or (p.kh, p.kw) != (p.stride_h, p.stride_w):
            return
        if max(p.kh, p.kw) > 255:  # winners are saved as bytes
            return
        if tile[0] % p.kh == tile[1] % p.kw == 0:
            self.pool, self.pool_by_offset, self.pool_window = None, MaxPoolByOffset(), (p.kh, p.kw)

    def fuse_relu(self) -> bool:
        """Claim the ReLU; True if the engine must apply it.  ReLU and max pooling commute."""
        self.clips = False
        return self.relu

    def output_buffer(self, images: slice) -> Array:
        """Memory for the convolution of these images: (images, OH, OW, OC)."""
        if self.pool is None:
            return self.y[images]
        shape = (images.stop - images.start, *self.shape)
        return scratch("epilogue output", shape, self.y.dtype)

    def finish(self, part: Array, images: slice, keep: bool) -> None:
        """Set the result of these images from their output buffer; keep: save for `gradient`."""
        y = self.y[images]
        if self.pool is not None:
            pool = replace(self.pool, n=len(part))
            y[...], self.pooled[images.start] = max_forward(part, pool, keep)
        if self.clips:  # after pooling, which it commutes with: fewer elements are left
            np.clip(y, 0, np.inf, out=y)

    def result(self) -> Array:
        """The finished result; the epilogue keeps it only if the ReLU's gradient needs it."""
        y = self.y
        if not self.relu:
            self.y = None
        return y

    def gradient(self, dy: Array, images: slice) -> Array:
        """The gradient of the output buffer of these images, the same slices as in `finish`."""
        d = dy[images]
        if self.relu:
            alive = np.not_equal(self.y[images], 0, out=scratch("epilogue alive", d.shape, bool))
            given, d = d, scratch("epilogue gradient", d.shape, d.dtype)
            select(given, alive, d)
        if self.pool is not None:
            pooled = self.pooled[images.start]
            assert pooled is not None
            d = pooled.backward(d)
        return d
