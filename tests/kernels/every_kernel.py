"""Runs every kernel there is at least once, beside the CPU: what the checking modes watch."""

from collections import Counter
from functools import partial
from unittest import mock

import numpy as np
from devices import error_beside_cpu, relative

import gpucnn
from gpucnn import cuda, ops, optim
from gpucnn.data import DataLoader, Dataset
from gpucnn.data.augment import Compose, Normalize, RandomCrop, RandomFlip
from gpucnn.ops import _conv2d_cuda

Errors = dict[str, float]
MODES = ("constant", "edge", "reflect")


def run_all(rng: np.random.Generator, gpu: str) -> tuple[Errors, Counter[str]]:
    """The error of each op, the largest over its cases, and how often each kernel ran."""
    with cuda.count_launches() as launches:
        errors = {
            **_convolutions(rng, gpu),
            **_pools(rng, gpu),
            **_elementwise(rng, gpu),
            **_normalisations(rng, gpu),
            **_losses(rng, gpu),
            **_optimizers(rng, gpu),
            **_augmentation(rng, gpu),
        }
    return errors, launches


def _convolutions(rng: np.random.Generator, gpu: str) -> Errors:
    beside = partial(error_beside_cpu, device=gpu)
    errors, before = {}, gpucnn.get_conv_algorithm()
    for name, c, oc, kernel, options in [
        ("vector", 8, 72, (3, 3), {"padding": 1, "relu": True}),
        ("scalar", 60, 10, (3, 3), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
        ("odd", 67, 9, (3, 3), {"dilation": (1, 2)}),
        ("few", 3, 10, (5, 4), {"stride": 3}),
        ("groups", 12, 24, (2, 3), {"groups": 3, "stride": (1, 2)}),
    ]:
        x, b = rng.standard_normal((2, 9, 8, c)), rng.standard_normal(oc)
        w = rng.standard_normal((oc, *kernel, c // options.get("groups", 1)))

        def convolution(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
            return ops.conv2d(*leaves, **options)  # noqa: B023  called at once

        gpucnn.set_conv_algorithm("exact")
        for tile in ((128, 64), (128, 128)):  # the larger one is meant for many blocks
            with mock.patch.object(_conv2d_cuda, "_tile", return_value=tile):
                errors[f"conv2d {name} {tile}"] = beside(convolution, x, w, b)
        gpucnn.set_conv_algorithm("plain")
        errors[f"conv2d plain {name}"] = beside(convolution, x, w, b)
    gpucnn.set_conv_algorithm(before)
    return errors


def _pools(rng: np.random.Generator, gpu: str) -> Errors:
    beside = partial(error_beside_cpu, device=gpu)
    x = rng.integers(-3, 4, (2, 9, 8, 5)).astype(float)  # with ties
    return {
        "max_pool2d": beside(lambda _, t: ops.max_pool2d(t, 3, 2, 1, ceil=True), x),
        "avg_pool2d": beside(lambda _, t: ops.avg_pool2d(t, 3, 2, 1, ceil=True), x),
        "global_avg_pool2d": beside(lambda _, t: ops.global_avg_pool2d(t), x),
    }


def _elementwise(rng: np.random.Generator, gpu: str) -> Errors:
    beside = partial(error_beside_cpu, device=gpu)
    errors = {}
    x = rng.standard_normal((3, 5, 7))
    errors["relu"] = beside(lambda _, t: ops.relu(t), x)
    errors["leaky_relu"] = beside(lambda _, t: ops.leaky_relu(t, 0.2), x)
    generators = {name: np.random.Generator(np.random.Philox(7)) for name in ("cpu", gpu)}
    errors["dropout"] = max(
        beside(
            lambda device, t: ops.dropout(t, 0.3, True, generators[device]),
            rng.standard_normal(size),
        )
        for size in (1, 15, 16, 17, 64, 5, 1000, 4097, 2)
    )
    return errors


def _normalisations(rng: np.random.Generator, gpu: str) -> Errors:
    beside = partial(error_beside_cpu, device=gpu)
    errors = {}
    for shape in ((3, 5, 4, 7), (2500, 40)):
        x = rng.standard_normal(shape) * 2 + 7
        gamma, beta, mean = (rng.standard_normal(shape[-1:]) for _ in range(3))
        var = rng.random(shape[-1:]) + 0.5
        for training in (True, False):

            def batch_norm(device: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
                running = [
                    gpucnn.tensor(a.astype(np.float32), device=device).data
                    for a in (mean, var)  # noqa: B023  called at once
                ]
                return ops.batch_norm(*leaves, *running, training=training)  # noqa: B023

            errors[f"batch_norm {shape} {training}"] = beside(batch_norm, x, gamma, beta)
    for size in (1, 4, 5, 9):
        errors[f"local_response_norm {size}"] = beside(
            lambda _, t, size=size: ops.local_response_norm(t, size, 0.3, 0.75, 1.5),
            rng.standard_normal((2, 3, 4, 6)),
        )
    return errors


def _losses(rng: np.random.Generator, gpu: str) -> Errors:
    beside = partial(error_beside_cpu, device=gpu)
    errors = {}
    labels, weights = rng.integers(0, 70, 33), rng.random(70).astype(np.float32)
    for smoothing in (0.0, 0.1):
        for weighted in (False, True):

            def loss(device: str, t: gpucnn.Tensor) -> gpucnn.Tensor:
                given = gpucnn.tensor(weights, device=device) if weighted else None  # noqa: B023
                return ops.softmax_cross_entropy(t, labels, smoothing, given)  # noqa: B023

            errors[f"softmax_cross_entropy {smoothing} {weighted}"] = beside(
                loss, rng.standard_normal((33, 70)) * 20
            )
    return errors


def _optimizers(rng: np.random.Generator, gpu: str) -> Errors:
    shapes = [(3, 4), (17,), (300, 5), *[(2,)] * 15]  # more than one launch has room for
    # Away from 0: one that ends near it would have its earlier roundings weighed against that.
    start = [1 + np.abs(rng.standard_normal(shape, np.float32)) for shape in shapes]
    steps = [[rng.standard_normal(shape, np.float32) for shape in shapes] for _ in range(4)]
    makers = {
        "SGD": lambda p: optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
        "SGD nesterov": lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
        "Adam": lambda p: optim.Adam(p, 0.1, weight_decay=0.1),
        "AdamW": lambda p: optim.AdamW(p, 0.1),
    }
    errors = {}
    for name, make in makers.items():
        results = []
        for device in (gpu, "cpu"):
            parameters = [gpucnn.tensor(a.copy(), device=device, requires_grad=True) for a in start]
            optimizer = make(parameters)
            for step, gradients in enumerate(steps):
                for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                    p.grad = None if i == step else gpucnn.tensor(g, device=device).data
                optimizer.step()
            results.append([p.numpy() for p in parameters])
        errors[name] = max(relative(a, b) for a, b in zip(*results, strict=True))
    return errors


def _augmentation(rng: np.random.Generator, gpu: str) -> Errors:
    dataset = Dataset(rng.integers(0, 256, (21, 9, 9, 3), np.uint8), np.arange(21) % 5, "abcde")
    normalize = Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    transforms = {
        **{mode: Compose(RandomCrop(7, 2, mode), RandomFlip(), normalize) for mode in MODES},
        "flip": Compose(RandomFlip(), normalize),
        "normalize": normalize,
    }
    errors = {}
    for name, transform in transforms.items():
        loaders = [
            DataLoader(dataset, 8, shuffle=True, transform=transform, device=device)
            for device in (gpu, "cpu")
        ]
        errors[f"augmentation {name}"] = max(
            relative(mine.numpy(), theirs.numpy())
            for batches in zip(*loaders, strict=True)
            for mine, theirs in zip(*batches, strict=True)
        )
    return errors
