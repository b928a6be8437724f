"""What follows a convolution while its result is in the cache, on NumPy: ReLU and max pooling.

A convolution's engine makes its result for some images at a time.  It puts each part where `room`
says, hands it to `finish`, and in the backward pass takes the gradient of the same part from
`gradient`: the result that is pooled is never in memory as a whole.

Where the windows of the pooling lie side by side, an engine can do it itself before it lays the
result out as images: it sorts the values by their place in their window, and compares whole
places, which are long runs in memory, where images have runs of OC numbers.  It asks for that
with `take_pool` first; `room`, `finish` and `gradient` then mean the pooled result.  An engine that
lays its result out anyhow clips it on the way, and says so with `take_relu` first.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gpucnn.cpu import empty, scratch
from gpucnn.device import Array
from gpucnn.ops._exact import select
from gpucnn.ops.geometry import Geometry
from gpucnn.ops.pool2d.cpu import Places
from gpucnn.ops.pool2d.op import _max_backward, _max_forward


class Epilogue:
    """`y` is the result (N, OH, OW, OC) of the last stage; every method may run in any thread."""

    def __init__(self, v: Geometry, oc: int, dtype: Any, relu: bool, pool: Geometry | None) -> None:
        """For the convolution v to OC channels; `pool` is the geometry of the pooling, if any."""
        self.shape = v.oh, v.ow, oc
        self.relu, self.pool = relu, pool
        self.clips = relu  # until an engine has taken that
        self.places: Places | None = None  # the pooling once an engine has taken it
        self.window = 1, 1  # of that pooling
        height, width = (v.oh, v.ow) if pool is None else (pool.oh, pool.ow)
        self.y = empty((v.n, height, width, oc), dtype)
        self.kept: dict[int, Any] = {}  # by the first image of a part: what its pooling keeps

    def take_pool(self, tile: tuple[int, int]) -> None:
        """From here on the engine pools by `places`, in windows of `window` pixels.

        Nothing is taken, and they stay None and (1, 1), unless the windows lie side by side and
        tiles of `tile` pixels of the convolution's result hold whole ones.
        """
        p = self.pool
        if p is None or p.padded or (p.kh, p.kw) != (p.stride_h, p.stride_w):
            return
        if max(p.kh, p.kw) > 255:  # winners are kept in bytes
            return
        if tile[0] % p.kh == tile[1] % p.kw == 0:
            self.pool, self.places, self.window = None, Places(), (p.kh, p.kw)

    def take_relu(self) -> bool:
        """Whether the engine is to clip what it puts into `room`: before a pooling here, which
        comes to the same."""
        self.clips = False
        return self.relu

    def room(self, images: slice) -> Array:
        """Memory for the convolution of these images: (images, OH, OW, OC)."""
        if self.pool is None:
            return self.y[images]
        shape = (images.stop - images.start, *self.shape)
        return scratch("epilogue room", shape, self.y.dtype)

    def finish(self, part: Array, images: slice, keep: bool) -> None:
        """The rest of the way to y[images]; keep: a backward pass will follow."""
        y = self.y[images]
        if self.pool is not None:
            pool = replace(self.pool, n=len(part))
            y[...], self.kept[images.start] = _max_forward(part, pool, keep)
        if self.clips:  # after the pooling, which it would not change, there is less to clip
            np.clip(y, 0, np.inf, out=y)

    def gradient(self, dy: Array, images: slice) -> Array:
        """The gradient of what `room` held: of the parts that `finish` had, and no others."""
        d = dy[images]
        if self.relu:
            alive = np.not_equal(self.y[images], 0, out=scratch("epilogue alive", d.shape, bool))
            given, d = d, scratch("epilogue gradient", d.shape, d.dtype)
            select(given, alive, d)
        if self.pool is not None:
            d = _max_backward(d, self.kept[images.start], replace(self.pool, n=len(d)))
        return d
