"""Cases of kernels.py for group and layer normalisation, and for layers that enlarge images."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import gpucnn
from gpucnn import ops
from gpucnn.commands.check.beside_cpu import dtypes, error_beside_cpu

_RESIZED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nearest", {"scale_factor": (2, 1.6)}),
    ("nearest smaller", {"size": (3, 9)}),
    ("bilinear", {"scale_factor": 2, "mode": "bilinear"}),
    ("bilinear smaller", {"size": (2, 20), "mode": "bilinear"}),
    ("bilinear aligned", {"size": (9, 1), "mode": "bilinear", "align_corners": True}),
)


def cases(rng: np.random.Generator, gpu: str) -> Iterator[tuple[str, Callable[[], float]]]:
    for suffix, dtype in dtypes():
        beside = partial(error_beside_cpu, device=gpu, dtype=dtype)
        # Runs of 16 bytes and of other sizes; groups smaller and larger than a block; splits
        for shape, groups in (((3, 5, 4, 6), 2), ((2, 24, 23, 64), 4), ((300, 5, 1, 8), 1)):

            def group_norm(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
                x, weight, bias = leaves
                return ops.group_norm(x, groups, weight, bias)  # noqa: B023  called before the next

            x = rng.standard_normal(shape) * 2 + 7
            parameters = [rng.standard_normal(shape[-1:]) for _ in range(2)]
            yield f"group_norm {shape}{suffix}", partial(beside, group_norm, x, *parameters)
        x = rng.standard_normal((2500, 40)) * 2 + 7
        given = x, *(rng.standard_normal(40) for _ in range(2))
        yield f"layer_norm{suffix}", partial(beside, _layer_norm, *given)
        plain: Any = lambda _, t: ops.layer_norm(t, 7)  # noqa: E731
        yield f"layer_norm plain{suffix}", partial(beside, plain, x[:50, :7])
        for channels in (5, 8):
            images = rng.standard_normal((2, 5, 7, channels))
            for name, settings in _RESIZED:
                yield (
                    f"interpolate {name} {channels}{suffix}",
                    partial(beside, partial(_interpolate, settings), images),
                )
    x, weight, bias = (rng.standard_normal(s) for s in ((2, 5, 4, 16), (16, 3, 2, 12), 24))
    yield (
        "conv_transpose2d",
        partial(error_beside_cpu, _conv_transpose2d, x, weight, bias, device=gpu),
    )


def _layer_norm(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
    x, weight, bias = leaves
    return ops.layer_norm(x, 40, weight, bias)


def _interpolate(settings: dict[str, Any], _: str, x: gpucnn.Tensor) -> gpucnn.Tensor:
    return ops.interpolate(x, **settings)


def _conv_transpose2d(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
    x, weight, bias = leaves
    return ops.conv_transpose2d(x, weight, bias, (2, 3), 1, (1, 2), groups=2)
