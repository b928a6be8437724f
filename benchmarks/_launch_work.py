"""What a launch does: multiply-adds, and the bytes that it moves, by a model of its access pattern.

Everything is derived from the kernel's declaration, the launch's arguments and one table, KERNELS,
which has a line for each kernel.  A kernel that is not in the table is an error.

    least      every array argument once: read if it is const, else written.  In-place arguments of
               the optimizer count twice.  Of an array that a launch uses in part, that part counts
    extra      the workspace of a split sum, written and read: a product in one piece needs none
    memory     what the launch asks of device memory: least + extra, and if the factors of a product
               do not fit in L2 together, one of them again (memory_of in gpucnn/cuda/roofline.py)
    l2         what the blocks ask of the L2 cache.  A block of a product reads TILE_M rows of A and
               TILE_N columns of B over all of K; padding counts as read.  A kernel of one thread
               per element reads what its threads read, once a warp

So blocks that share a tile, and the taps of a convolution, hit L2 or L1: device memory sees each
byte once.  Not counted: what a launch finds in L2 because the one before it has just written it
(the true traffic is lower where tensors are smaller than L2), sectors used in part (the kernels
read and write whole ones), instructions and constants.

Multiply-adds: `flops` counts two for each of the plain definition, padding included; `issued` adds
those of ragged tiles, which the multiprocessors compute too.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from _recorded_step import ArrayOperation, Event

from gpucnn import cuda
from gpucnn.cuda import Launch
from gpucnn.cuda.roofline import Chip, Load, Tiling, memory_of, resident
from gpucnn.cuda.tensor_plan import LINE, PATHS, Tile
from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div

_WORKSPACE = {"part", "workspace"}  # parameters of split sums
_COUNTERS = {"counter", "counters", "arrived"}  # of sums that end in the same launch
_TILES = {  # of kernels whose name does not say filters or rows x columns
    "gemm": (128, 64),
    "conv2d_grad_weight_32x64_vector": (64, 32),
    "conv2d_grad_weight_32x64_scalar": (64, 32),
}


@dataclass(frozen=True)
class Work:
    """What one launch, or one operation of CuPy's, does.  Sizes are in bytes."""

    name: str
    launch: Launch | None  # None: CuPy's, whose grid is not known
    least: int
    extra: int = 0
    l2: int = 0
    flops: int = 0
    issued: int = 0
    blocks: int = 0  # that multiply; 0: not known, or other work
    shared: int = 0  # bytes that a product on tensor cores moves through shared memory
    meets: bool = False  # whether the blocks add splits of a sum
    path: str = ""  # of products: "fp32" (FFMA), "tf32", "bf16", "fp16"; else ""
    again: int = 0  # bytes of the factor that a further row of the grid reads again
    factors: int = 0

    def load(self, chip: Chip) -> Load:
        """What the launch asks of `chip`, in the terms of gpucnn/cuda/roofline.py."""
        launch, load = self.launch, Load(self.least + self.extra, self.l2, meets=self.meets)
        if self.path:
            load = replace(load, path=self.path, issued=self.issued)
        if not self.path or launch is None:
            return load
        threads = math.prod(launch.block)
        promised = str(dict(launch.defines).get(launch.kernel.blocks or "", launch.kernel.blocks))
        bound = int(promised) if promised.isdecimal() else None
        return replace(
            load,
            blocks=self.blocks,
            threads=threads,
            resident=resident(chip.card, threads, launch.shared, bound),
            shared=self.shared,
            factors=self.factors,
            again=self.again,
            rows=launch.grid[1],
            in_rows=launch.grid[0] * launch.grid[1],
        )

    def memory(self, chip: Chip) -> int:
        """Bytes asked of device memory, behind the chip's L2 cache."""
        return round(memory_of(self.load(chip), chip))


class _Arguments:
    """The arguments of a launch by name."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.arrays: dict[str, Any] = {}
        self.numbers: dict[str, Any] = {}
        self.written: set[str] = set()
        self.g: dict[str, int] = {}
        self.counts = False  # whether blocks count themselves, so that the last one adds
        for parameter, value in zip(launch.kernel.parameters, launch.values, strict=True):
            if isinstance(value, np.ndarray):  # a struct
                if parameter.name == "g":
                    self.g = cuda.struct_values(value)
            elif parameter.name in _COUNTERS:
                self.counts = True
            elif not isinstance(value, np.generic):
                self.arrays[parameter.name] = value
                if not parameter.const:
                    self.written.add(parameter.name)
            elif not parameter.pointer:
                self.numbers[parameter.name] = value.item()
        self.defines = dict(launch.defines)

    def tile(self) -> tuple[int, int]:
        """Rows and columns of a block's tile: from the kernel's name, or its defines."""
        name = self.launch.kernel.name
        if name in _TILES:
            return _TILES[name]
        named = re.search(r"_(\d+)x(\d+)", name)
        if named:
            return int(named[1]), int(named[2])
        return int(self.defines["TILE_M"]), int(self.defines["TILE_N"])

    def tensor(self) -> str:
        """The type of a tensor-core kernel; "" for CUDA cores."""
        if "_tensor" not in self.launch.kernel.name:
            return ""
        return PATHS[str(self.defines["ELEMENT"])]

    def k_tile(self) -> int:
        """Elements of K in one step of a tile."""
        return {"": 8, "tf32": LINE // 4}.get(self.tensor(), LINE // 2)

    def passed(self) -> int:
        """Bytes that a block on tensor cores moves through shared memory for a k-tile."""
        if not self.tensor():
            return 0
        names = "TILE_M", "TILE_N", "WARP_M", "WARP_N", "BLOCKS"
        return Tile(*(int(self.defines[name]) for name in names)).passed


def _padded(size: int, unit: int) -> int:
    return ceil_div(size, unit) * unit


# --- products ---


@dataclass(frozen=True)
class _Operands:
    """The parameters with the factors, and the one that each further row of the grid rereads."""

    a: str
    b: str
    again: str


def _product_work(
    arguments: _Arguments,
    operands: _Operands,
    m: int,
    n: int,
    k: int,
    count: int,
    k_padded: int,
    splits: int = 1,
    flops: int | None = None,
) -> Work:
    """Work of `count` products; flops: of all, if padding of m or k is not to be counted."""
    launch, arrays = arguments.launch, arguments.arrays
    p = Tiling(m, n, k, count, *arguments.tile(), splits, k_padded)
    a, b = arrays[operands.a], arrays[operands.b]
    least, extra = _once(arguments, splits)
    return Work(
        launch.kernel.name,
        launch,
        least,
        extra,
        l2=p.read(a.dtype.itemsize, b.dtype.itemsize) + least - a.nbytes - b.nbytes + extra,
        flops=2 * count * m * n * k if flops is None else flops,
        issued=p.issued,
        blocks=p.blocks,
        shared=p.blocks * k_padded // arguments.k_tile() * arguments.passed(),
        meets=arguments.counts and splits > 1,
        path=arguments.tensor() or "fp32",
        again=arrays[operands.again].nbytes,
        factors=a.nbytes + b.nbytes,
    )


def _once(arguments: _Arguments, splits: int) -> tuple[int, int]:
    """least and extra.  With counters the last block reads what the others wrote: twice extra."""
    arrays = arguments.arrays
    workspace = [a.nbytes for name, a in arrays.items() if name in _WORKSPACE and splits > 1]
    least = sum(array.nbytes for array in arrays.values()) - sum(workspace)
    return least, sum(workspace) * (2 if arguments.counts else 1)


def _convolution(arguments: _Arguments) -> tuple[dict[str, int], int, int, int]:
    """g, taps, and channels and filters of a group."""
    g, numbers = arguments.g, arguments.numbers
    return g, g["kh"] * g["kw"], numbers["channels"], numbers["filters"]


def _forward(arguments: _Arguments) -> Work:
    g, taps, channels, filters = _convolution(arguments)
    unit = arguments.k_tile()
    few = arguments.launch.kernel.name.endswith("_few")  # pads K, not each tap
    return _product_work(
        arguments,
        _Operands("x", "weight", again="x"),
        m=g["n"] * g["oh"] * g["ow"],
        n=filters,
        k=taps * channels,
        count=g["groups"],
        k_padded=_padded(taps * channels, unit) if few else taps * _padded(channels, unit),
    )


def _grad_input(arguments: _Arguments) -> Work:
    g, taps, channels, filters = _convolution(arguments)
    phases = g["stride_h"] * g["stride_w"]  # a phase has its own pixels and taps
    rows, columns = ceil_div(g["h"], g["stride_h"]), ceil_div(g["w"], g["stride_w"])
    k = ceil_div(taps * filters, phases)
    return _product_work(
        arguments,
        _Operands("dy", "weight", again="dy"),
        m=g["n"] * rows * columns,
        n=channels,
        k=k,
        count=g["groups"] * phases,
        k_padded=ceil_div(taps * _padded(filters, arguments.k_tile()), phases),
        flops=2 * g["n"] * g["h"] * g["w"] * g["groups"] * channels * k,
    )


def _grad_weight(arguments: _Arguments) -> Work:
    g, taps, channels, filters = _convolution(arguments)
    splits, pixels = arguments.numbers["splits"], g["n"] * g["oh"] * g["ow"]
    return _product_work(
        arguments,
        _Operands("dy", "x", again="x"),
        m=filters,
        n=taps * channels,
        k=pixels,
        count=g["groups"],
        k_padded=_padded(ceil_div(pixels, splits), arguments.k_tile()),
        splits=splits,
    )


def _gemm(arguments: _Arguments) -> Work:
    m, n, k = (arguments.numbers[name] for name in "mnk")
    splits = arguments.numbers["splits"]
    return _product_work(
        arguments,
        _Operands("a", "b", again="a"),
        m=m,
        n=n,
        k=k,
        count=1,
        k_padded=_padded(ceil_div(k, splits), arguments.k_tile()),
        splits=splits,
    )


def _plain(arguments: _Arguments) -> Work:
    """A thread per result.  A warp reads one operand once and the other for each of its lanes."""
    launch, g, arrays = arguments.launch, arguments.g, arguments.arrays
    result = next(name for name in arrays if name in arguments.written)
    channels, filters = g["c"] // g["groups"], arguments.numbers["oc_count"] // g["groups"]
    taps, pixels = g["kh"] * g["kw"], g["n"] * g["oh"] * g["ow"]
    multiplied = pixels * filters * g["groups"] * taps * channels
    first, second = (a.dtype.itemsize for name, a in arrays.items() if name not in (result, "bias"))
    least = sum(array.nbytes for array in arrays.values())
    return Work(
        launch.kernel.name,
        launch,
        least,
        l2=multiplied * first // 32 + multiplied * second,
        flops=2 * multiplied,
        issued=2 * multiplied,
        blocks=math.prod(launch.grid),
        path="fp32",
    )


# --- everything else ---


@dataclass(frozen=True)
class _Stream:
    """A kernel that reads and writes its arrays as they lie."""

    updates: tuple[str, ...] = ()  # arrays that are read and written
    parts: dict[str, Callable[[_Arguments], int]] = field(default_factory=dict)  # bytes used
    # How often a thread block's reads of an array reach L2
    reads: Callable[[_Arguments], float] = lambda arguments: 1.0

    def __call__(self, arguments: _Arguments) -> Work:
        least = extra = read = 0
        for name, array in arguments.arrays.items():
            used = self.parts[name](arguments) if name in self.parts else array.nbytes
            if name in _WORKSPACE:
                extra += used * (2 if arguments.counts else 1)
            else:
                least += used * (2 if name in self.updates else 1)
            if name not in arguments.written:
                read += used
        l2 = least + extra + round(read * (self.reads(arguments) - 1))
        return Work(arguments.launch.kernel.name, arguments.launch, least, extra, l2)


def _overlap(arguments: _Arguments) -> float:
    """Windows over a pixel."""
    g = arguments.g
    return max(1.0, g["kh"] * g["kw"] / (g["stride_h"] * g["stride_w"]))


def _batch(arguments: _Arguments) -> int:
    images = arguments.arrays["images"]
    return int(arguments.numbers["count"] * images.nbytes // len(images))


def _parameters(arguments: _Arguments) -> int:
    """Bytes of the parameters that have a gradient; flat buffers hold others too."""
    return sum(a.nbytes for name, a in arguments.arrays.items() if re.fullmatch(r"g\d+", name))


def _copied(arguments: _Arguments) -> int:
    """Bytes of their half-precision copy."""
    return _parameters(arguments) // 4 * int(arguments.arrays["copy"].dtype.itemsize)


_OPTIMIZER = {
    **dict.fromkeys(("p", "velocity", "mean", "square"), _parameters),
    "copy": _copied,
}

# By the beginning of a kernel's name; the first match counts.
KERNELS: dict[str, Callable[[_Arguments], Work]] = {
    "conv2d_forward_plain": _plain,
    "conv2d_grad_input_plain": _plain,
    "conv2d_grad_weight_plain": _plain,
    "conv2d_forward_": _forward,
    "conv2d_grad_input_": _grad_input,
    "conv2d_grad_weight_": _grad_weight,
    "gemm": _gemm,
    "max_pool2d_backward_cells": _Stream(),
    "max_pool2d_": _Stream(reads=_overlap),
    "avg_pool2d_": _Stream(reads=_overlap),
    "relu_": _Stream(),
    "leaky_relu": _Stream(),
    "gelu_": _Stream(),
    "silu_": _Stream(),
    "softplus_": _Stream(),
    "dropout": _Stream(),
    "lrn_": _Stream(),  # neighbours along the channels come from L1
    "batch_norm_moments": _Stream(updates=("running_mean", "running_var")),
    "batch_norm_": _Stream(),
    "scale_shift": _Stream(),
    "group_norm_forward": _Stream(reads=lambda _: 3.0),  # at most: from L2 if L1 lost them
    "group_norm_backward": _Stream(reads=lambda _: 2.0),
    "group_norm_": _Stream(),
    "interpolate_": _Stream(),  # neighbours share pixels in L1
    "cross_entropy": _Stream(),
    "scale_gradient": _Stream(),
    "crop_flip_normalize": _Stream(parts={"images": _batch}),
    "check_gradients": _Stream(updates=("scale", "state")),
    "sgd_step": _Stream(updates=("p", "velocity"), parts=_OPTIMIZER),
    "adam_step": _Stream(updates=("p", "mean", "square", "done"), parts=_OPTIMIZER),
}


def work_of(event: Event) -> Work:
    """The Work of a launch or of an operation of CuPy's; ArgumentError for an unknown kernel."""
    if isinstance(event, ArrayOperation):
        return _array_work(event)
    name = event.kernel.name
    for beginning, rule in KERNELS.items():
        if name.startswith(beginning):
            return rule(_Arguments(event))
    raise ArgumentError(
        f"no access pattern is known for kernel {name}\n"
        "  add a line for it to KERNELS in benchmarks/_launch_work.py"
    )


def _array_work(operation: ArrayOperation) -> Work:
    moved = sum(array.nbytes for array in (*operation.inputs, operation.result))
    name = f"({operation.name})"
    if operation.name != "matmul":
        return Work(name, None, moved, l2=moved)
    m, k = operation.inputs[0].shape
    flops = 2 * m * k * operation.result.shape[1]
    return Work(name, None, moved, l2=moved, flops=flops, issued=flops, path="fp32")
