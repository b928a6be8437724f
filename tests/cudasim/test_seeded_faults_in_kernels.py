"""Defects planted in gpucnn's own kernels: each is caught, by a wrong result or by a check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import cuda, kernel_source, ops
from gpucnn.errors import KernelError
from gpucnn.ops import _conv2d_cuda

MODES = {"fast": "fast", "highest": "fast,schedule=highest", "address": "address", "race": "race"}
BOUND = 2e-5  # relative, beside the CPU: twice what a correct kernel is allowed


def beside_cpu(f: Callable[..., gpucnn.Tensor], *arrays: np.ndarray) -> float:
    """The largest relative difference in y and the gradients; NaN if there is one."""
    results: dict[str, list[Any]] = {}
    for device in ("cudasim", "cpu"):
        leaves = [gpucnn.tensor(a, device, requires_grad=True, dtype=np.float32) for a in arrays]
        y = f(*leaves)
        y.sum().backward() if y.ndim == 0 else y.backward(gpucnn.tensor(weigh(y), device))
        results[device] = [y.numpy(), *(gpucnn.tensor(leaf.grad).numpy() for leaf in leaves)]
    pairs = zip(results["cudasim"], results["cpu"], strict=True)
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))


def weigh(y: gpucnn.Tensor) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(y.shape, np.float32)


def convolution(rng: np.random.Generator) -> float:
    x, w = rng.standard_normal((2, 9, 8, 16)), rng.standard_normal((72, 3, 3, 16))
    return beside_cpu(lambda *a: ops.conv2d(*a, padding=1), x, w, rng.standard_normal(72))


def pooling(rng: np.random.Generator) -> float:
    return beside_cpu(lambda x: ops.max_pool2d(x, 3, 2, 1), rng.standard_normal((2, 9, 9, 5)))


def normalisation(rng: np.random.Generator) -> float:
    def f(x: gpucnn.Tensor, gamma: gpucnn.Tensor, beta: gpucnn.Tensor) -> gpucnn.Tensor:
        mean, var = (gpucnn.tensor(np.zeros(40, np.float32), x.device).data for _ in range(2))
        return ops.batch_norm(x, gamma, beta, mean, var, training=True)

    return beside_cpu(f, rng.standard_normal((4, 5, 5, 40)), *rng.standard_normal((2, 40)))


def loss(rng: np.random.Generator) -> float:
    labels = rng.integers(0, 40, 70)
    return beside_cpu(
        lambda x: ops.softmax_cross_entropy(x, gpucnn.tensor(labels, x.device)),
        rng.standard_normal((70, 40)),
    )


@dataclass(frozen=True)
class Fault:
    what: str
    file: str
    old: str
    new: str
    case: Callable[[np.random.Generator], float]


FAULTS = [
    Fault(
        "barrier after a step dropped",
        "gemm_tile.cuh",
        "store_next(tiles[buffer]);\n        __syncthreads();",
        "store_next(tiles[buffer]);",
        convolution,
    ),
    Fault("buffers not alternated", "gemm_tile.cuh", "buffer ^= 1;", "", convolution),
    Fault(
        "row in the last quad is off by one",
        "gemm_tile.cuh",
        "tile[k + 3][row] = v.w",
        "tile[k + 4][row] = v.w",
        convolution,
    ),
    Fault(
        "row stride without its padding",
        "gemm_tile.cuh",
        "b + k * (TN + PAD) + 32",
        "b + k * TN + 32",
        convolution,
    ),
    Fault(
        "sums not cleared",
        "conv2d_forward.cu",
        "float sum[8][8] = {};\n    __syncthreads();  // the table is filled\n"
        "    multiply_steps<TM, TN>(count *",
        "float sum[8][8];\n    __syncthreads();\n    multiply_steps<TM, TN>(count *",
        convolution,
    ),
    Fault(
        "guard of a pixel dropped", "conv2d_forward.cu", "if (m >= pixels) break;", "", convolution
    ),
    Fault(
        "guard of a filter's bias dropped",
        "conv2d_forward.cu",
        "bias && filter < filters ?",
        "bias ?",
        convolution,
    ),
    Fault(
        "one window too few",
        "pool2d.cu",
        "if (argmax[output] == r * g.kw + s)",
        "if (i < rows.last && argmax[output] == r * g.kw + s)",
        pooling,
    ),
    Fault(
        "window not clipped at the top",
        "pool2d.cu",
        "int r = max(0, -row0);",
        "int r = 0;",
        pooling,
    ),
    Fault(
        "window not clipped at the right",
        "pool2d.cu",
        "s < min(g.kw, g.w - column0)",
        "s < g.kw",
        pooling,
    ),
    Fault("barrier dropped", "reduce.cu", "__syncthreads();", "", convolution),
    Fault("a row too many", "reduce.cu", "row < end;", "row <= end;", convolution),
    Fault("guard of a column dropped", "reduce.cu", "if (column < columns)\n", "", convolution),
    Fault(
        "barrier before reuse dropped",
        "batch_norm.cu",
        "__syncthreads();  // the sums may still be read from the last call",
        "",
        normalisation,
    ),
    Fault(
        "barrier after the sums dropped",
        "batch_norm.cu",
        "= value;\n    __syncthreads();",
        "= value;",
        normalisation,
    ),
    Fault(
        "shuffle's mask leaves out half a warp",
        "common.cuh",
        "value += __shfl_xor_sync(ALL_LANES,",
        "value += __shfl_xor_sync(0xffffu,",
        loss,
    ),
    Fault(
        "shuffle starts at a quarter of a warp",
        "common.cuh",
        "distance = WARP / 2; distance > 0; distance /= 2)\n        value +=",
        "distance = WARP / 4; distance > 0; distance /= 2)\n        value +=",
        loss,
    ),
    Fault(
        "lanes past the classes leave early",
        "softmax_cross_entropy.cu",
        "if (row >= rows) return;",
        "if (row >= rows || threadIdx.x % WARP >= classes - 20) return;",
        loss,
    ),
]
CACHES = (cuda.kernels, cuda._prepare, cuda._module, cuda._check_struct)


@pytest.fixture
def plant(monkeypatch):
    """plant(fault) changes what is read from kernels/; plant(None) undoes it."""
    read = kernel_source._read

    def patched(fault: Fault | None) -> None:
        def read_faulty(file: str) -> str:
            if fault is None or file != fault.file:
                return read(file)
            assert read(file).count(fault.old) == 1, f"{fault.what}: not once in {fault.file}"
            return read(file).replace(fault.old, fault.new)

        monkeypatch.setattr(kernel_source, "_read", read_faulty)
        for cache in CACHES:
            cache.cache_clear()

    yield patched
    for cache in CACHES:
        cache.cache_clear()


def notice(case: Callable[[np.random.Generator], float]) -> str:
    """ "" if all is well, else what was noticed."""
    try:
        with np.errstate(all="ignore"):
            error = case(np.random.default_rng(0))
    except KernelError as found:
        return str(found).split("thread (", 1)[-1].split(") ", 1)[-1]
    return "" if error < BOUND else "wrong result"


@pytest.mark.slow
def test_every_fault_in_a_kernel_of_gpucnn_is_caught(plant, monkeypatch, capsys):
    monkeypatch.setattr(_conv2d_cuda, "_tile", lambda *_: (128, 64))
    gpucnn.set_conv_algorithm("exact")
    lines, missed = [], []
    try:
        for fault in FAULTS:
            seen = {}
            for mode, setting in MODES.items():
                monkeypatch.setenv("GPUCNN_CUDASIM", setting)
                plant(None)
                assert notice(fault.case) == "", f"{fault.case.__name__} is wrong without a fault"
                plant(fault)
                seen[mode] = notice(fault.case)
            marks = "".join(f"{'x' if note else '.':^9}" for note in seen.values())
            said = max(seen.values(), key=lambda note: (note != "wrong result", bool(note)))
            lines.append(f"{fault.file + ': ' + fault.what:<64}{marks} {said:.90}")
            if not any(seen.values()):
                missed.append(fault)
    finally:
        gpucnn.set_conv_algorithm("auto")
    with capsys.disabled():
        print(f"\n\nfaults in gpucnn's kernels: {len(FAULTS)}, caught: {len(FAULTS) - len(missed)}")
        print(f"{'':64}{''.join(f'{mode:^9}' for mode in MODES)} what the simulator says")
        print("\n".join(lines))
    assert not missed
