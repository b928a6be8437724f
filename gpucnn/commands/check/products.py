"""Cases of kernels.py for matrix products: dense layers in each dtype, aligned and not, split."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np

import gpucnn
from gpucnn import ops
from gpucnn.commands.check.beside_cpu import error_beside_cpu, host, relative
from gpucnn.device import Device
from gpucnn.errors import DtypeError
from gpucnn.ops.gemm import multiply
from gpucnn.precision import bfloat16, float32_precision

# Rows, features and outputs: whole chunks of 16 bytes, in splits of K; and neither.
_SIZES = (72, 640, 136), (37, 53, 11)


def cases(rng: np.random.Generator, gpu: str) -> Iterator[tuple[str, Callable[[], float]]]:
    halves = ["float16"]
    with suppress(DtypeError):  # ml_dtypes is not installed
        halves.append(bfloat16().name)
    for rows, features, outputs in _SIZES:
        shapes = (rows, features), (outputs, features), (outputs,)
        arrays = [rng.standard_normal(shape) for shape in shapes]
        for name in ("", *halves):
            yield f"linear {rows} {name}".strip(), partial(_linear, gpu, name, arrays)
    yield "linear tf32", partial(_tf32, gpu, rng.standard_normal((2, 72, 136), np.float32))


def _linear(gpu: str, name: str, arrays: list[Any]) -> float:
    def linear(_: str, *leaves: gpucnn.Tensor) -> gpucnn.Tensor:
        with gpucnn.autocast(name) if name else nullcontext():
            x, weight, bias = leaves
            return ops.linear(x, weight, bias, relu=True)

    with float32_precision("highest"):
        return error_beside_cpu(linear, *arrays, device=gpu)


def _tf32(gpu: str, operands: np.ndarray[Any, Any]) -> float:
    """The error of a product of numbers that TF32 represents."""
    whole = (operands.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
    device = Device.parse(gpu)
    with device.xp.cuda.Device(device.index):
        a, b = (device.xp.asarray(matrix) for matrix in whole)
        y, _ = multiply("NT", a, b, np.float32, tf32=True)
    return relative(host(y), whole[0].astype(np.float64) @ whole[1].T)
