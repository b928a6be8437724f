"""The part of each batch that one of several processes loads when they train together."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from gpucnn.data.augment import Compose, PerImageTransform, Transform, apply
from gpucnn.data.dataset import Dataset
from gpucnn.data.items import NUMERIC, ItemDataset, collect, first_image
from gpucnn.data.tensors import TensorDataset
from gpucnn.device import Array
from gpucnn.errors import ArgumentError, ShapeError, kind


class Part(NamedTuple):
    """Part `rank` of `ranks` of each batch; (0, 1) is the whole batch."""

    rank: int = 0
    ranks: int = 1

    def rows(self, n: int) -> slice:
        """Its rows of a batch of n images; some ranks have none if n < ranks."""
        return slice(n * self.rank // self.ranks, n * (self.rank + 1) // self.ranks)


def load(
    dataset: Dataset | TensorDataset | ItemDataset,
    chosen: Array,
    transform: Transform | None,
    make_generator: Callable[[], np.random.Generator],
    part: Part,
    placed: Callable[[Transform, Array], Transform] = lambda transform, chosen: transform,
) -> tuple[Array, Array, bool]:
    """The part of the batch of the `chosen` images: images, labels, and whether it is a filler.

    placed(transform, chosen) is the transform for these images, as of augment.placed.

    A whole batch is never a filler: it has no images if the data set leaves out all of them.
    """
    if part.ranks == 1:
        images, labels, positions = collect(dataset, chosen)
        if transform is not None and len(labels):
            transform = placed(transform, chosen[positions])
            images = _checked(transform, images, apply(transform, images, make_generator()))
        return images, labels, False

    together, by_image = _split(transform)
    mine, generator = part.rows(len(chosen)), make_generator()
    images, labels, positions = collect(dataset, chosen if together else chosen[mine])
    filled = not len(labels)
    if filled:
        images, labels, positions = first_image(dataset)
    if together:
        after: Any = images
        chosen = chosen[positions]
        for step in together:
            after = apply(placed(step, chosen), after, generator)
        images, total = _checked(transform, images, after), len(labels)
        rows = np.flatnonzero((mine.start <= positions) & (positions < mine.stop))
        filled = filled or not len(rows)
        rows = np.zeros(1, np.int64) if filled else rows
        images, labels = images[rows], labels[rows]
    else:
        rows, total = mine.start + positions, len(chosen)
    after = images
    for each in by_image:
        step = placed(each, chosen)
        assert isinstance(step, PerImageTransform)
        after = step.transform_part(after, generator, rows, total)
    return _checked(transform, images, after), labels, filled


def _split(transform: Transform | None) -> tuple[list[Transform], list[PerImageTransform]]:
    """The steps up to the last that needs the whole batch, and the steps after it."""
    together: list[Transform] = []
    by_image: list[PerImageTransform] = []
    for step in _steps(transform):
        if _is_by_image(step):
            by_image.append(step)
        else:
            together, by_image = [*together, *by_image, step], []
    return together, by_image


def _steps(transform: Transform | None) -> list[Transform]:
    if type(transform) is Compose:
        return [step for inner in transform.transforms for step in _steps(inner)]
    return [] if transform is None else [transform]


def _is_by_image(step: Transform) -> TypeGuard[PerImageTransform]:
    """Whether transform_part does what a call does: no subclass overrides only the call."""
    if not isinstance(step, PerImageTransform):
        return False
    definitions = (vars(cls) for cls in type(step).__mro__)
    first = next(names for names in definitions if {"__call__", "transform_part"} & names.keys())
    return "transform_part" in first


def _checked(transform: Transform | None, before: Array, after: Any) -> Array:
    """`after`, the transform's result; raises an error unless it has as many images as `before`."""
    if not isinstance(after, np.ndarray) or after.dtype.kind not in NUMERIC:
        raise ArgumentError(
            f"DataLoader: the transform {transform!r} returned {kind(after)} for images "
            f"{before.shape}\n  it must return the transformed images, a numeric NumPy array"
        )
    if after.shape[:1] != before.shape[:1]:
        raise ShapeError(
            f"DataLoader: the transform {transform!r} returned shape {after.shape} for images "
            f"{before.shape}\n  it must return as many images as it was given"
        )
    return after
