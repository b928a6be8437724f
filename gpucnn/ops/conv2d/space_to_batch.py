"""Winograd for dilated or grouped filters, on NumPy: space to batch, then a dense convolution.

With dilation d, the pixels of one window have the same row and the same column modulo d.  Such
pixels form a phase, and the results computed from them form one too.  So each image is split into
its d * d phases, and a dense convolution treats them as images (d = 2, one row of x):

    a b c d e f g h      ->      a c e g      and      b d f h

Groups are separate convolutions as well: their channels are copied out, and each has its own
filters.  Both copy x, y and their gradients once; im2col copies each pixel once for every pixel of
the filter, 9 times and more.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.cpu import empty, parallel, spans
from gpucnn.device import Array
from gpucnn.integers import ceil_div
from gpucnn.ops.conv2d.engine import Cache, Gradients, Saved
from gpucnn.ops.conv2d.fusion import Epilogue
from gpucnn.ops.conv2d.winograd import SavedWinograd, Winograd
from gpucnn.ops.geometry import Geometry

# Images split or merged by one task.
_IMAGES = 4


@dataclass(frozen=True)
class SpaceToBatch:
    """The engine: see engine.Engine.  `dense` computes each group's dense convolution."""

    dense: Winograd

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        g: Geometry,
        epilogue: Epilogue,
        keep: bool,
        cache: Cache | None,
    ) -> Saved | None:
        phases = _Phases(g, len(weight))
        saved, results = [], []
        for channels, filters in zip(phases.channels, phases.filters, strict=True):
            group_bias = None if bias is None else bias[filters]
            plain = Epilogue(phases.dense, filters.stop - filters.start, x.dtype, False, None)
            split = phases.split(x[..., channels])
            saved.append(
                self.dense.forward(
                    split, weight[filters], group_bias, phases.dense, plain, keep, None
                )
            )
            results.append(phases.by_image(plain.result()))

        def finish(images: slice) -> None:
            part = epilogue.output_buffer(images)
            for filters, result in zip(phases.filters, results, strict=True):
                for of_phase, of_image in _overlaps(result[images], part, (0, 0)):
                    part[of_image][..., filters] = result[images][of_phase]
            epilogue.finish(part, images, keep)

        parallel(finish, spans(g.n, _IMAGES))
        return _Saved(saved, weight.shape, g, epilogue) if keep else None


@dataclass
class _Saved:
    groups: list[SavedWinograd | None]
    weight_shape: tuple[int, ...]
    g: Geometry
    epilogue: Epilogue

    def backward(self, dy: Array, needs: tuple[bool, ...], last_use: bool) -> Gradients:
        g, oc = self.g, self.weight_shape[0]
        dy = np.ascontiguousarray(dy)
        phases = _Phases(g, oc)
        d = phases.dense
        gradients = [
            empty((d.n, d.oh, d.ow, filters.stop - filters.start), dy.dtype)
            for filters in phases.filters
        ]

        def split(images: slice) -> None:
            part = self.epilogue.gradient(dy, images)
            for filters, gradient in zip(phases.filters, gradients, strict=True):
                _split(part[..., filters], phases.by_image(gradient)[images], (0, 0))

        parallel(split, spans(g.n, _IMAGES))
        dx = empty((g.n, g.h, g.w, g.c), dy.dtype) if needs[0] else None
        dweight = empty(self.weight_shape, dy.dtype) if needs[1] else None
        dbias = empty((oc,), dy.dtype) if needs[2] else None
        for group, filters in enumerate(phases.filters):
            saved = self.groups[group]
            assert saved is not None
            of_group = saved.backward(gradients[group], needs, last_use)
            if dx is not None:
                phases.merge(of_group[0], dx[..., phases.channels[group]])
            if dweight is not None:
                dweight[filters] = of_group[1]
            if dbias is not None:
                dbias[filters] = of_group[2]
        return dx, dweight, dbias


class _Phases:
    """How images are split: phase (i, j) of image n becomes image (n * DH + i) * DW + j.

    All phases have the size of the largest, the others with zeros at the end.  Padding that DH or
    DW does not divide gives some of them one more zero at the start.  `dense` is the geometry of
    the dense convolution of one group; `channels` and `filters` are those of each group.
    """

    def __init__(self, g: Geometry, filters: int) -> None:
        self.g = g
        (top, above), (left, beside) = divmod(g.top, g.dilation_h), divmod(g.left, g.dilation_w)
        self.before = (above, beside)  # zeros in front of the image before it is split
        h, w = ceil_div(g.h + above, g.dilation_h), ceil_div(g.w + beside, g.dilation_w)
        oh, ow = ceil_div(g.oh, g.dilation_h), ceil_div(g.ow, g.dilation_w)
        depth = g.c // g.groups
        self.dense = Geometry(
            n=g.n * g.dilation_h * g.dilation_w,
            h=h,
            w=w,
            c=depth,
            kh=g.kh,
            kw=g.kw,
            oh=oh,
            ow=ow,
            stride_h=1,
            stride_w=1,
            top=top,
            bottom=oh + g.kh - 1 - h - top,
            left=left,
            right=ow + g.kw - 1 - w - left,
        )
        self.channels = list(spans(g.c, depth))
        self.filters = list(spans(filters, filters // g.groups))

    def by_image(self, phases: Array) -> Array:
        """A view of phases (N * DH * DW, H, W, C) as (N, DH, DW, H, W, C)."""
        g = self.g
        return phases.reshape(g.n, g.dilation_h, g.dilation_w, *phases.shape[1:])

    def split(self, x: Array) -> Array:
        """The phases of x (N, H, W, C of a group)."""
        d = self.dense
        phases = empty((d.n, d.h, d.w, d.c), x.dtype)
        by_image = self.by_image(phases)
        parallel(
            lambda images: _split(x[images], by_image[images], self.before),
            spans(len(x), _IMAGES),
        )
        return phases

    def merge(self, phases: Array, dx: Array) -> None:
        """The adjoint of split: set dx.  Every pixel belongs to exactly one phase."""
        by_image = self.by_image(phases)

        def merge(images: slice) -> None:
            for of_phase, of_image in _overlaps(by_image[images], dx[images], self.before):
                dx[images][of_image] = by_image[images][of_phase]

        parallel(merge, spans(len(dx), _IMAGES))


def _split(image: Array, phases: Array, before: tuple[int, int]) -> None:
    """Set phases (N, DH, DW, h, w, C) from image (N, H, W, C)."""
    for of_phase, of_image in _overlaps(phases, image, before):
        every, i, j, rows, columns = of_phase
        phase = phases[every, i, j]
        phase[:, : rows.start] = 0
        phase[:, rows.stop :] = 0
        phase[:, rows, : columns.start] = 0
        phase[:, rows, columns.stop :] = 0
        phase[:, rows, columns] = image[of_image]


def _overlaps(
    phases: Array, image: Array, before: tuple[int, int]
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """For each phase, the indices of its pixels that are on the image, in phases and in image."""
    _, down, across, high, wide, _ = phases.shape
    overlaps, every = [], slice(None)
    for i in range(down):
        rows = _overlap(i - before[0], down, high, image.shape[1])
        for j in range(across):
            columns = _overlap(j - before[1], across, wide, image.shape[2])
            overlaps.append(((every, i, j, rows[0], columns[0]), (every, rows[1], columns[1])))
    return overlaps


def _overlap(first: int, step: int, count: int, size: int) -> tuple[slice, slice]:
    """Which of `count` pixels first, first + step, ... are in 0 .. size - 1, and those pixels."""
    low = min(max(0, -(first // step)), count)
    high = max(low, min(count, -((first - size) // step)))
    start = max(first + low * step, 0)
    return slice(low, high), slice(start, start + (high - low) * step, step)
