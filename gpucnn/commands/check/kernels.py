"""Cases that together run every kernel, and compare each with its NumPy half.

`gpucnn check` runs them on its device; the tests run them on the simulator in every mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn import ops, optim
from gpucnn.commands.check.beside_cpu import error_beside_cpu, relative
from gpucnn.data import DataLoader, Dataset
from gpucnn.data.augment import Compose, Normalize, RandomCrop, RandomHorizontalFlip
from gpucnn.ops.conv2d import cuda as conv2d_cuda

# A name, and a function that returns the error relative to the largest value
Case = tuple[str, Callable[[], float]]

_MODES: tuple[Literal["constant", "edge", "reflect"], ...] = ("constant", "edge", "reflect")
# Ops with long sums, or quotients of differences, have a larger bound.
_LOOSER = {"batch_norm": 1e-5, "conv2d": 1e-5, "Adam": 1e-5, "SGD": 1e-5}


def bound(name: str) -> float:
    """The largest error allowed in case `name`."""
    return _LOOSER.get(name.split()[0], 2e-6)


def cases(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    """Yield every case for device `gpu`.  Call each before taking the next."""
    yield from _convolutions(rng, gpu)
    yield from _pools(rng, gpu)
    yield from _elementwise(rng, gpu)
    yield from _normalisations(rng, gpu)
    yield from _losses(rng, gpu)
    yield from _optimizers(rng, gpu)
    yield from _augmentation(rng, gpu)


@contextmanager
def every_way(algorithm: str, tile: tuple[int, int] | None = None) -> Iterator[None]:
    """Force the algorithm, and use tiled kernels and split sums even for small shapes."""
    before = gpucnn.get_conv_algorithm()
    module: Any = conv2d_cuda
    kept = module._MIN_CHANNELS, module._MIN_SPLIT, module._tile
    gpucnn.set_conv_algorithm(algorithm)
    module._MIN_CHANNELS, module._MIN_SPLIT = 1, 8
    if tile is not None:
        module._tile = lambda rows, columns, products: tile
    try:
        yield
    finally:
        module._MIN_CHANNELS, module._MIN_SPLIT, module._tile = kept
        gpucnn.set_conv_algorithm(before)


def _convolutions(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    kinds: list[tuple[str, int, int, tuple[int, int], dict[str, Any]]] = [
        ("vector", 8, 72, (3, 3), {"padding": 1, "relu": True}),
        ("scalar", 60, 10, (3, 3), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
        ("odd", 67, 9, (3, 3), {"dilation": (1, 2)}),
        ("few", 3, 10, (5, 4), {"stride": 3}),
        ("groups", 12, 24, (2, 3), {"groups": 3, "stride": (1, 2)}),
    ]
    for name, c, oc, kernel, options in kinds:
        groups = options.get("groups", 1)
        x, b = rng.standard_normal((2, 9, 8, c)), rng.standard_normal(oc)
        w = rng.standard_normal((oc, *kernel, c // groups))
        arrays = (x, w, b)
        for tile in ((128, 64), (128, 128)):  # 128x128 is meant for large grids
            yield (
                f"conv2d {name} {tile[0]}x{tile[1]}",
                partial(_convolution, gpu, "exact", tile, options, arrays),
            )
        yield f"conv2d plain {name}", partial(_convolution, gpu, "plain", None, options, arrays)


def _convolution(
    gpu: str,
    algorithm: str,
    tile: tuple[int, int] | None,
    options: dict[str, Any],
    arrays: tuple[Any, ...],
) -> float:
    def convolution(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
        x, w, b = leaves
        return ops.conv2d(x, w, b, **options)

    with every_way(algorithm, tile):
        return error_beside_cpu(convolution, *arrays, device=gpu)


def _pools(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    beside = partial(error_beside_cpu, device=gpu)
    x = rng.integers(-3, 4, (2, 9, 8, 5)).astype(float)  # with ties
    yield "max_pool2d", lambda: beside(lambda _, t: ops.max_pool2d(t, 3, 2, 1, ceil_mode=True), x)
    yield "avg_pool2d", lambda: beside(lambda _, t: ops.avg_pool2d(t, 3, 2, 1, ceil_mode=True), x)
    yield "global_avg_pool2d", lambda: beside(lambda _, t: ops.global_avg_pool2d(t), x)


def _elementwise(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    beside = partial(error_beside_cpu, device=gpu)
    x = rng.standard_normal((3, 5, 7))
    yield "relu", lambda: beside(lambda _, t: ops.relu(t), x)
    yield "leaky_relu", lambda: beside(lambda _, t: ops.leaky_relu(t, 0.2), x)
    drawn = [rng.standard_normal(size) for size in (1, 15, 16, 17, 64, 5, 1000, 4097, 2)]

    def dropout() -> float:
        generators = {name: np.random.Generator(np.random.Philox(7)) for name in ("cpu", gpu)}
        return max(
            beside(lambda device, t: ops.dropout(t, 0.3, True, generators[device]), a)
            for a in drawn
        )

    yield "dropout", dropout


def _normalisations(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    beside = partial(error_beside_cpu, device=gpu)
    for shape in ((3, 5, 4, 7), (2500, 40)):
        x = rng.standard_normal(shape) * 2 + 7
        gamma, beta, mean = (rng.standard_normal(shape[-1:]) for _ in range(3))
        var = rng.random(shape[-1:]) + 0.5
        for training in (True, False):

            def batch_norm(device: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
                mean_, var_ = (
                    gpucnn.tensor(a.astype(np.float32), device=device).data
                    for a in (mean, var)  # noqa: B023  called before the next iteration
                )
                t, scale, shift = leaves
                return ops.batch_norm(t, scale, shift, mean_, var_, training=training)  # noqa: B023

            yield f"batch_norm {shape} {training}", partial(beside, batch_norm, x, gamma, beta)
    for size in (1, 4, 5, 9):

        def response_norm(_: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
            return ops.local_response_norm(t, size, 0.3, 0.75, 1.5)  # noqa: B023

        x = rng.standard_normal((2, 3, 4, 6))
        yield f"local_response_norm {size}", partial(beside, response_norm, x)


def _losses(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    beside = partial(error_beside_cpu, device=gpu)
    labels, weights = rng.integers(0, 70, 33), rng.random(70).astype(np.float32)
    for smoothing in (0.0, 0.1):
        for weighted in (False, True):

            def loss(device: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
                given = gpucnn.tensor(weights, device=device) if weighted else None  # noqa: B023
                return ops.cross_entropy(t, labels, given, smoothing)  # noqa: B023

            x = rng.standard_normal((33, 70)) * 20
            yield f"cross_entropy {smoothing} {weighted}", partial(beside, loss, x)


def _optimizers(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    shapes = [(3, 4), (17,), (300, 5), *[(2,)] * 15]  # 18: more than one launch updates
    # Parameters stay away from 0, where rounding errors would be large relative to the result.
    start = [1 + np.abs(rng.standard_normal(shape, np.float32)) for shape in shapes]
    steps = [[rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(4)]
    makers: dict[str, Callable[[list[gpucnn.Tensor]], optim.Optimizer]] = {
        "SGD": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
        "SGD nesterov": lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
        "Adam": lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
        "AdamW": lambda p: optim.AdamW(p, 0.1),
    }

    def optimizer_error(make: Callable[[list[gpucnn.Tensor]], optim.Optimizer]) -> float:
        results = []
        for device in (gpu, "cpu"):
            parameters = [gpucnn.tensor(a.copy(), device=device, requires_grad=True) for a in start]
            optimizer = make(parameters)
            for step, gradients in enumerate(steps):
                for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                    p.grad = None if i == step else gpucnn.tensor(g, device=device).data
                optimizer.step()
            results.append([p.numpy() for p in parameters])
        return max(relative(a, b) for a, b in zip(*results, strict=True))

    for name, make in makers.items():
        yield name, partial(optimizer_error, make)


def _augmentation(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    images = rng.integers(0, 256, (21, 9, 9, 3), np.uint8)
    dataset = Dataset(images, np.arange(21) % 5, tuple("abcde"))
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    transforms: dict[str, Any] = {
        **{
            mode: Compose([RandomCrop(7, 2, mode), RandomHorizontalFlip(), normalize])
            for mode in _MODES
        },
        "flip": Compose([RandomHorizontalFlip(), normalize]),
        "normalize": normalize,
    }

    def augmentation(transform: Any) -> float:
        loaders = [
            DataLoader(dataset, 8, shuffle=True, transform=transform, device=device)
            for device in (gpu, "cpu")
        ]
        return max(
            relative(mine, theirs)
            for batches in zip(*loaders, strict=True)
            for mine, theirs in zip(*batches, strict=True)
        )

    for name, transform in transforms.items():
        yield f"augmentation {name}", partial(augmentation, transform)
