"""Cases that together run every kernel, and compare each with its NumPy half.

`gpucnn check` runs them on its device; the tests run them on the simulator in every mode.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np

import gpucnn
from gpucnn import ops, optim
from gpucnn.commands.check import layers, products
from gpucnn.commands.check.beside_cpu import dtypes, error_beside_cpu, host, relative
from gpucnn.cuda.tensor_plan import TILES, Tile
from gpucnn.data import DataLoader, Dataset
from gpucnn.data.augment import (
    AlternatingFlip,
    Compose,
    Normalize,
    Place,
    RandomCrop,
    RandomHorizontalFlip,
)
from gpucnn.data.on_device import OnDevice
from gpucnn.device import Device, to_host, working_on
from gpucnn.ops._half import half_copy
from gpucnn.ops.conv2d import cuda as conv2d_cuda
from gpucnn.ops.conv2d import tensor as conv2d_tensor
from gpucnn.precision import bfloat16, float32_precision, is_half
from gpucnn.random import batch_part

# A name, and a function that returns the error relative to the largest value
Case = tuple[str, Callable[[], float]]

_MODES: tuple[Literal["constant", "edge", "reflect"], ...] = ("constant", "edge", "reflect")
# Ops with long sums, or quotients of differences, have a larger bound.
_SUMS = ("batch_norm", "conv2d", "conv_transpose2d", "group_norm", "layer_norm", "linear")
_LOOSER = dict.fromkeys((*_SUMS, "Adam", "Muon", "SGD"), 1e-5)
# Both sides round once, perhaps to neighbouring numbers; TF32 truncates each factor.
_HALF = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "TF32": 2.0**-8}


def bound(name: str) -> float:
    """The largest error allowed in case `name`."""
    words = name.split()
    return _HALF.get(words[-1], _LOOSER.get(words[0], 2e-6))


def cases(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    """Yield every case for device `gpu`.  Call each before taking the next."""
    yield from _convolutions(rng, gpu)
    yield from _tensor_convolutions(rng, gpu)
    yield from products.cases(rng, gpu)
    yield from _pools(rng, gpu)
    yield from _elementwise(rng, gpu)
    yield from _normalisations(rng, gpu)
    yield from layers.cases(rng, gpu)
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

    with every_way(algorithm, tile), float32_precision("highest"):
        return error_beside_cpu(convolution, *arrays, device=gpu)


@contextmanager
def _one_tile(tile: Tile) -> Iterator[None]:
    """Plan convolutions on tensor cores with this tile, whatever the layer, if the card has it."""
    module: Any = conv2d_tensor
    before, cached = module._tiles, (module.forward_plan, module.grad_input_plan)
    module._tiles = lambda card: tuple(t for t in before(card) if t == tile) or before(card)
    for function in cached:
        function.cache_clear()
    try:
        yield
    finally:
        module._tiles = before
        for function in cached:
            function.cache_clear()


def _all_tiles(gpu: str) -> bool:
    """Whether every type runs with every tile: the simulator takes seconds to compile each."""
    return Device.parse(gpu).kind != "cudasim"


def _tensor_convolutions(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    """With taps of one and a half k-tiles, ragged tiles and phases of different sizes."""
    options = {"stride": (2, 1), "padding": ((1, 0), (2, 1)), "groups": 2}
    x, b = rng.standard_normal((2, 9, 8, 2 * 48)), rng.standard_normal(2 * 72)
    w = rng.standard_normal((2 * 72, 3, 3, 48))
    all_tiles = _all_tiles(gpu)
    types = [pair for pair in dtypes() if pair[0]]
    for i, (suffix, dtype) in enumerate([*types, (" TF32", np.dtype(np.float32))]):
        for tile in TILES if all_tiles else [TILES[3 - i]]:
            given = options | {"relu": is_half(dtype)}  # in TF32 the sign may differ
            run = partial(_tensor_convolution, gpu, tile, dtype, given, x, w, b)
            yield f"conv2d tensor {tile}{suffix}", run
    small = x[..., :3], w[:16, ..., :3], b[:16]  # float32 images, in half precision on CUDA cores
    for suffix, dtype in types if all_tiles else types[:1]:
        given = {"padding": 1, "stride": 2}
        run = partial(_tensor_convolution, gpu, TILES[0], dtype, given, *small)
        yield f"conv2d first{suffix}", run


def _tensor_convolution(
    gpu: str,
    tile: Tile,
    dtype: np.dtype[Any],
    options: dict[str, Any],
    *arrays: Any,
) -> float:
    def convolution(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
        x, w, b = leaves
        with gpucnn.autocast(dtype) if is_half(dtype) else nullcontext():
            return ops.conv2d(x, w, b, **options)

    with _one_tile(tile), float32_precision("high"):
        return error_beside_cpu(convolution, *arrays, device=gpu)


def _pools(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    ways: dict[str, Callable[[str, gpucnn.Tensor], gpucnn.Tensor]] = {
        "max_pool2d": lambda _, t: ops.max_pool2d(t, 3, 2, 1, ceil_mode=True),
        "max_pool2d beside": lambda _, t: ops.max_pool2d(t, 2, (2, 3), 1),
        "max_pool2d disjoint": lambda _, t: ops.max_pool2d(t, 2),
        "max_pool2d after relu": lambda _, t: ops.max_pool2d(ops.relu(t), 3, 2),
        "max_pool2d large": lambda _, t: ops.max_pool2d(t, 16, 2),
        "avg_pool2d": lambda _, t: ops.avg_pool2d(t, 3, 2, 1, ceil_mode=True),
        "global_avg_pool2d": lambda _, t: ops.global_avg_pool2d(t),
    }
    for suffix, dtype in dtypes():
        beside = partial(error_beside_cpu, device=gpu, dtype=dtype)
        for channels in (5, 8):
            small = rng.integers(-3, 4, (2, 9, 8, channels)).astype(float)  # with ties
            large = rng.standard_normal((1, 17, 18, channels))
            for name, way in ways.items():
                x = large if name.endswith("large") else small
                yield f"{name} {channels}{suffix}", partial(beside, way, x)


def _elementwise(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    drawn = [rng.standard_normal(size) for size in (1, 15, 16, 17, 64, 5, 1000, 4097, 2)]
    for suffix, dtype in dtypes():
        beside = partial(error_beside_cpu, device=gpu, dtype=dtype)
        x = rng.standard_normal((3, 5, 7))
        yield f"relu{suffix}", partial(beside, lambda _, t: ops.relu(t), x)
        yield f"leaky_relu{suffix}", partial(beside, lambda _, t: ops.leaky_relu(t, 0.2), x)
        yield f"gelu{suffix}", partial(beside, lambda _, t: ops.gelu(t), 3 * x)
        yield f"silu{suffix}", partial(beside, lambda _, t: ops.silu(t), 3 * x)
        yield f"softplus{suffix}", partial(beside, lambda _, t: ops.softplus(t, 2.0), 3 * x)
        yield f"dropout{suffix}", partial(_dropout, gpu, beside, drawn)


def _dropout(gpu: str, beside: Callable[..., float], drawn: list[Any]) -> float:
    generators = {name: np.random.Generator(np.random.Philox(7)) for name in ("cpu", gpu)}

    def error(a: Any) -> float:
        return beside(lambda device, t: ops.dropout(t, 0.3, True, generators[device]), a)

    whole = max(map(error, drawn))
    with batch_part(1, 1, 2):  # its elements begin anywhere between Philox's numbers
        return max(whole, *map(error, drawn))


def _normalisations(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    for suffix, dtype in dtypes():
        beside = partial(error_beside_cpu, device=gpu, dtype=dtype)
        for shape in ((3, 5, 4, 7), (2500, 40), (1100, 160)):
            x = rng.standard_normal(shape) * 2 + 7
            gamma, beta, mean = (rng.standard_normal(shape[-1:]) for _ in range(3))
            var = rng.random(shape[-1:]) + 0.5
            for training in (True, False):
                relu = shape == (2500, 40)

                def batch_norm(device: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
                    mean_, var_ = (
                        gpucnn.tensor(a.astype(np.float32), device=device).data
                        for a in (mean, var)  # noqa: B023  called before the next iteration
                    )
                    t, scale, shift = leaves
                    return ops.batch_norm(t, scale, shift, mean_, var_, training, relu=relu)  # noqa: B023

                name = f"batch_norm {shape} {training}{suffix}"
                yield name, partial(beside, batch_norm, x, gamma, beta)
        for size in (1, 4, 5, 9):

            def response_norm(_: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
                return ops.local_response_norm(t, size, 0.3, 0.75, 1.5)  # noqa: B023

            x = rng.standard_normal((10, 3, 6, 7))
            yield f"local_response_norm {size}{suffix}", partial(beside, response_norm, x)


def _losses(rng: np.random.Generator, gpu: str) -> Iterator[Case]:
    labels, weights = rng.integers(0, 70, 33), rng.random(70).astype(np.float32)
    for suffix, dtype in dtypes():
        beside = partial(error_beside_cpu, device=gpu, dtype=dtype)
        for smoothing in (0.0, 0.1):
            for weighted in (False, True):

                def loss(device: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
                    given = gpucnn.tensor(weights, device=device) if weighted else None  # noqa: B023
                    return ops.cross_entropy(t, labels, given, smoothing)  # noqa: B023

                x = rng.standard_normal((33, 70)) * 20
                yield f"cross_entropy {smoothing} {weighted}{suffix}", partial(beside, loss, x)

        def summed(device: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
            return ops.cross_entropy(t, labels, label_smoothing=0.2, reduction="sum")

        x = rng.standard_normal((33, 70)) * 20
        yield f"cross_entropy sum{suffix}", partial(beside, summed, x)


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
        "Muon and SGD": lambda p: optim.MultiOptimizer(
            optim.Muon([x for x in p if x.ndim > 1]), optim.SGD([x for x in p if x.ndim == 1], 0.1)
        ),
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

    def copies_error(make: Callable[[list[gpucnn.Tensor]], optim.Optimizer], half: Any) -> float:
        """The copies that a step writes, beside the new parameters rounded."""
        parameters = [gpucnn.tensor(a.copy(), device=gpu, requires_grad=True) for a in start]
        optimizer, error = make(parameters), 0.0
        for gradients in steps:
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = gpucnn.tensor(g, device=gpu).data
                with working_on(p.device):
                    half_copy(p._data, half, p.cache())  # as forward does
            optimizer.step()
            for p in parameters:
                written = to_host(p.cache()["half", half]).astype(np.float32)
                rounded = p.numpy().astype(half).astype(np.float32)  # drops the cache
                error = max(error, relative(written, rounded))
        return error

    def scaler_error(make: Callable[[list[gpucnn.Tensor]], optim.Optimizer]) -> float:
        results = []
        for device in (gpu, "cpu"):
            parameters = [gpucnn.tensor(a.copy(), device=device, requires_grad=True) for a in start]
            optimizer = make(parameters)
            scaler = optim.GradScaler(device, init_scale=8, growth_interval=2)
            for step, gradients in enumerate(steps):
                scaled = [g * np.float32(scaler.get_scale()) for g in gradients]
                if step == 2:
                    scaled[-1][1] = np.inf
                for p, g in zip(parameters, scaled, strict=True):
                    p.grad = gpucnn.tensor(g, device=device).data
                scaler.step(optimizer)
            state = scaler.state_dict()
            results.append(
                [*(p.numpy() for p in parameters), np.array([*state.values()], np.float32)]
            )
        return max(relative(a, b) for a, b in zip(*results, strict=True))

    for name, make in makers.items():
        yield name, partial(optimizer_error, make)
    for half in (np.dtype(np.float16), bfloat16()):
        yield f"SGD copies {half}", partial(copies_error, makers["SGD"], half)
        yield f"AdamW copies {half}", partial(copies_error, makers["AdamW"], half)
        yield f"Muon and SGD copies {half}", partial(copies_error, makers["Muon and SGD"], half)
    for name in ("SGD", "Adam", "Muon and SGD"):
        yield f"{name} with a GradScaler", partial(scaler_error, makers[name])


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
        "alternating flip": Compose([RandomCrop(9, 2), AlternatingFlip(), normalize]),
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

    def half(dtype: np.dtype[Any]) -> float:
        images_on = OnDevice.try_create(dataset, transforms["reflect"], Device.parse(gpu))
        assert images_on is not None
        draws = images_on.draw(Place(0, 0, np.arange(21), 21), np.random.default_rng(3))
        on_gpu = gpucnn.tensor(draws, device=gpu).data
        exact = images_on.batch(on_gpu)
        return relative(images_on.batch(on_gpu, dtype), host(exact).astype(dtype))

    for suffix, dtype in dtypes():
        if suffix:
            yield f"augmentation{suffix}", partial(half, dtype)
