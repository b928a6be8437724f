"""The kernels of victims.cu with inputs and NumPy's results, and faults to seed into them.

A fault replaces a piece of a kernel's source by another.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HEADER, *PIECES = re.split(
    r'(?=^extern "C")', Path(__file__).with_suffix(".cu").read_text(), flags=re.MULTILINE
)
CODE = {re.search(r"void (\w+)\(", piece)[1]: piece for piece in PIECES}

rng = np.random.default_rng(0)


def whole(*shape: int) -> np.ndarray:
    """Small integers, so that float32 sums are exact in any order."""
    return rng.integers(-8, 9, shape).astype(np.float32)


@dataclass(frozen=True)
class Victim:
    name: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: Callable[[], list]
    result: int  # index of the result among the arguments
    expected: np.ndarray
    shared: int = 0


X, A, B = whole(500), whole(40, 37), whole(37, 23)
P = whole(6 * 128)
HA, HB = whole(16, 32).astype(np.float16), whole(32, 8).astype(np.float16)
BYTES = rng.integers(0, 256, 300).astype(np.uint8)
V, ORDER = whole(256), rng.permutation(64).astype(np.int32)
PARTS = np.array(
    [sum(X[i : i + 128].sum() for i in range(start, 500, 384)) for start in (0, 128, 256)]
)


def fresh(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


VICTIMS = [
    Victim("reduce", (3,), (128,), lambda: [X, fresh(3), np.int32(500)], 1, PARTS),
    Victim(
        "transpose", (2, 2), (32, 8), lambda: [A, fresh(37, 40), np.int32(40), np.int32(37)], 1, A.T
    ),
    Victim(
        "gemm",
        (2, 3),
        (16, 16),
        lambda: [A, B, fresh(40, 23), np.int32(40), np.int32(23), np.int32(37)],
        2,
        A @ B,
    ),
    Victim(
        "pipeline",
        (1,),
        (32,),
        lambda: [P, fresh(32), np.int32(6)],
        1,
        P.reshape(-1, 4, 32).sum((0, 1))[(np.arange(32) + 17) % 32],
        3 * 128 * 4,
    ),
    Victim("tensor", (1,), (32,), lambda: [HA, HB, fresh(16, 8)], 2, HA.astype(np.float32) @ HB),
    Victim(
        "histogram",
        (5,),
        (64,),
        lambda: [BYTES, np.zeros(16, np.int32), np.int32(300)],
        1,
        np.bincount(BYTES % 16, minlength=16),
    ),
    Victim(
        "last_block",
        (6,),
        (64,),
        lambda: [X, fresh(6 * 64), np.zeros(1, np.uint32), fresh(64)],
        3,
        X[: 6 * 64].reshape(6, 64).sum(0),
    ),
    Victim(
        "vector",
        (2,),
        (32,),
        lambda: [V, ORDER, fresh(256), np.int32(256)],
        2,
        V.reshape(64, 4)[ORDER, ::-1].ravel() / np.float32(64),
    ),
]


@dataclass(frozen=True)
class Fault:
    what: str
    victim: str
    old: str
    new: str


FAULTS = [
    Fault("barrier dropped", "reduce", "__syncthreads();", ""),
    Fault("barrier of the warp only", "reduce", "__syncthreads();", "__syncwarp();"),
    Fault(
        "barrier in a branch",
        "reduce",
        "__syncthreads();",
        "if (threadIdx.x < 64) __syncthreads();",
    ),
    Fault(
        "mask leaves out half",
        "reduce",
        "sum += __shfl_xor_sync(0xffffffffu",
        "sum += __shfl_xor_sync(0x0000ffffu",
    ),
    Fault(
        "shuffle by half a warp",
        "reduce",
        "(int d = 16; d > 0; d /= 2) sum",
        "(int d = 16; d > 0 && threadIdx.x % 32 < 16; d /= 2) sum",
    ),
    Fault("lanes have returned", "reduce", "if (threadIdx.x < 32) {", "if (threadIdx.x < 4) {"),
    Fault("first distance halved", "reduce", "int d = 16", "int d = 8"),
    Fault("bound off by one", "reduce", "i < n;", "i <= n;"),
    Fault("accumulator not cleared", "reduce", "float sum = 0.0f;", "float sum;"),
    Fault(
        "index of a shared array off by one",
        "reduce",
        "partial[threadIdx.x / 32] =",
        "partial[threadIdx.x / 32 + 1] =",
    ),
    Fault("every lane writes the result", "reduce", "if (threadIdx.x == 0) y", "y"),
    Fault("block strides overlap", "reduce", "blockIdx.x * 128 + t", "blockIdx.x * 127 + t"),
    Fault("no fence before the count", "last_block", "__threadfence();  // before the block", "//"),
    Fault("no fence after the count", "last_block", "__threadfence();  // before it", "//"),
    Fault("no barrier before the count", "last_block", "__syncthreads();  // all", "// all"),
    Fault("last but one", "last_block", "== gridDim.x - 1;", "== gridDim.x - 2;"),
    Fault("barrier dropped", "transpose", "__syncthreads();", ""),
    Fault("tile read untransposed", "transpose", "tile[threadIdx.x][r]", "tile[r][threadIdx.x]"),
    Fault("guard of a column dropped", "transpose", "&& column + threadIdx.x < columns", ""),
    Fault(
        "guards of rows and columns swapped",
        "transpose",
        "column + r < columns && row + threadIdx.x < rows",
        "column + r < rows && row + threadIdx.x < columns",
    ),
    Fault("tile a row short", "transpose", "tile[32][33]", "tile[31][33]"),
    Fault("barrier dropped", "gemm", "__syncthreads();", ""),
    Fault("buffers not alternated", "gemm", "buffer = step % 2", "buffer = 0"),
    Fault("accumulator not cleared", "gemm", "float sum = 0.0f;", "float sum;"),
    Fault("guard of a row dropped", "gemm", "row < m && at", "at"),
    Fault("tail guard off by one", "gemm", "at + threadIdx.y < k", "at + threadIdx.y <= k"),
    Fault("last step left out", "gemm", "(k + 15) / 16", "k / 16"),
    Fault("result guard dropped", "gemm", "if (row < m && column < n)", "if (row < m)"),
    Fault("wait missing", "pipeline", "copy_async_wait<1>();", ""),
    Fault("wait for one group too few", "pipeline", "copy_async_wait<1>", "copy_async_wait<2>"),
    Fault("commit missing", "pipeline", "        copy_async_commit();\n        for", "        for"),
    Fault("barrier after the wait dropped", "pipeline", "__syncthreads();", ""),
    Fault(
        "two stages where three are needed", "pipeline", "stages + next % 3", "stages + next % 2"
    ),
    Fault(
        "copy from a misaligned address",
        "pipeline",
        "x + next * 128 + 4 * t",
        "x + next * 128 + 4 * t + 1",
    ),
    Fault("copies past the end", "pipeline", "if (next < steps)", "if (next < steps + 1)"),
    Fault("swizzle wrong where it is stored", "tensor", "i % 4 ^ i / 8 % 4", "i % 4 ^ i / 4 % 4"),
    Fault("swizzle left out where it is read", "tensor", "(chunk ^ row / 2 % 4)", "chunk"),
    Fault("fragment not transposed", "tensor", "load_matrices_transposed", "load_matrices"),
    Fault(
        "fragment registers swapped",
        "tensor",
        "multiply_half(d, fa, fb);",
        "unsigned t = fa[1]; fa[1] = fa[2]; fa[2] = t; multiply_half(d, fa, fb);",
    ),
    Fault("accumulator not cleared", "tensor", "float d[4] = {};", "float d[4];"),
    Fault("barrier of the warp dropped", "tensor", "__syncwarp();", ""),
    Fault(
        "atomic made plain", "histogram", "atomicAdd(&bins[x[i] % 16], 1);", "bins[x[i] % 16] += 1;"
    ),
    Fault(
        "atomic between blocks made plain",
        "histogram",
        "atomicAdd(&counts[threadIdx.x], bins[threadIdx.x]);",
        "counts[threadIdx.x] += bins[threadIdx.x];",
    ),
    Fault(
        "shared memory not cleared", "histogram", "if (threadIdx.x < 16) bins[threadIdx.x] = 0;", ""
    ),
    Fault("barrier after clearing dropped", "histogram", "= 0;\n    __syncthreads();", "= 0;"),
    Fault("bins not wrapped", "histogram", "x[i] % 16]", "x[i]]"),
    Fault("vector load misaligned", "vector", "x + order[i / 4] * 4)", "x + order[i / 4] * 4 - 1)"),
    Fault("index not scaled", "vector", "order[i / 4]", "order[i]"),
    Fault("guard dropped", "vector", "if (i >= n) return;", "i += n > 0 ? 4 : 0;"),
    Fault("division by zero", "vector", "float(n / 4)", "float(n / (n / 512))"),
]
