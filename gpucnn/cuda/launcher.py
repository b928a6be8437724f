"""Launching a CUDA kernel from Python, with every argument checked.

    cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)

A kernel is declared once, in its .cu file, and `launch` reads that declaration
(gpucnn/cuda/declarations.py), so that names and types cannot drift apart: arrays are checked for
dtype, contiguity and device, Python numbers are cast to the C type (CuPy would pass a float as a
double), a frozen dataclass of ints goes by value as the struct of its name.

A file is compiled when its first kernel runs (gpucnn/cuda/compiler.py).
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn.cuda.compiler import compiling, load_module
from gpucnn.cuda.declarations import Define, Kernel, Parameter, kernel, struct_fields
from gpucnn.device import Device, device_of
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError
from gpucnn.integers import ceil_div

ELEMENTWISE_THREADS = 256  # in a block
_LARGEST = 2**31 - 1
_NUMBER = (int, float, np.number, np.bool_)


def launch(
    name: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: Any,
    shared: int = 0,
    defines: Mapping[str, Define] | None = None,
) -> None:
    """Run kernel `name` on `grid` blocks of `block` threads, on the current stream.

    args follow the kernel's parameters: arrays of one device (None is a null pointer), numbers,
    frozen dataclasses of ints for structs.  shared is the dynamic shared memory in bytes.
    defines are the preprocessor's: a file is compiled once for each set of them.  A grid with a
    dimension of 0 runs nothing, which is what an empty batch asks for.

    Raises ArgumentError for an unknown kernel, a wrong number of arguments, a launch beyond the
    device's limits; DtypeError, ShapeError (not contiguous, or past 2^31 elements in a kernel
    that does not say `wide_offsets`), DeviceMismatch.
    """
    first = next((arg for arg in args if _is_array(arg)), None)
    if first is None:
        raise ArgumentError(f"{name}: a launch needs at least one array")
    device = device_of(first)
    if device.kind == "cpu":
        raise DeviceMismatch(f"{name}: kernels run on cuda or cudasim, and an argument is on cpu")
    ready = checked_kernel(name, device, tuple(defines.items()) if defines else ())
    size = _three(grid), _three(block), shared
    if size not in ready.sizes:
        ready.check_size(*size)
        ready.sizes.add(size)
    values = ready.arguments(args)
    run = 0 not in size[0]
    for watch in _watchers:
        run &= watch(Launch(ready.declared, ready.defines, *size, values))
    if run:
        ready.run(*size, values)


def launch_elementwise(name: str, size: int, *args: Any) -> None:
    """Launch kernel `name` with one thread for each of `size` elements; args as for `launch`."""
    launch(name, ceil_div(size, ELEMENTWISE_THREADS), ELEMENTWISE_THREADS, *args)


@dataclasses.dataclass(frozen=True, eq=False)
class Launch:
    """One call of `launch`, its arguments checked and cast."""

    kernel: Kernel
    defines: tuple[tuple[str, Define], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic shared memory of a block, in bytes
    # As the kernel's parameters: arrays of the device (numpy.uint64(0) for a null pointer), NumPy
    # scalars, structs as raw bytes (`struct_values` names their fields).
    values: tuple[Any, ...]


# Each sees every launch, and says whether it may run.
_watchers: list[Callable[[Launch], bool]] = []


@contextmanager
def _watched(watch: Callable[[Launch], bool]) -> Iterator[None]:
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers[:] = [other for other in _watchers if other is not watch]


@contextmanager
def count_launches() -> Iterator[Counter[str]]:
    """Counts launches by kernel name: `with cuda.count_launches() as launches: ...`."""
    counter: Counter[str] = Counter()

    def count(launch: Launch) -> bool:
        counter[launch.kernel.name] += 1
        return True

    with _watched(count):
        yield counter


@contextmanager
def record_launches(run: bool = True) -> Iterator[list[Launch]]:
    """A list that every launch inside the block is added to; it keeps their arrays alive.

    With run=False they are checked as ever, but neither compiled nor run: their results are what
    was in memory.  Shapes and launches are right nevertheless, as they depend on no number.
    """
    launches: list[Launch] = []

    def record(launch: Launch) -> bool:
        launches.append(launch)
        return run

    with _watched(record):
        yield launches


def _three(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
    if not isinstance(sizes, tuple):
        return int(sizes), 1, 1
    x, y, z = (*map(int, sizes), 1, 1)[:3]
    return x, y, z


def _is_array(value: Any) -> bool:
    return hasattr(value, "dtype") and not isinstance(value, np.generic)


class CheckedKernel:
    """A compiled kernel that checks and casts the arguments of a launch."""

    def __init__(self, declared: Kernel, device: Device, defines: Mapping[str, Define]) -> None:
        self.declared = declared
        self.defines = tuple(defines.items())
        self.device = device
        self.xp = device.xp
        self.source, self.module = load_module(device, declared.file, self.defines)
        self.shared = 48 * 1024  # CUDA's default limit; more needs an opt-in
        self.structs: dict[Any, Any] = {}  # geometry by value: a program has few
        self.sizes: set[tuple[Any, ...]] = set()  # grid, block, shared: found to be allowed
        self.parameters = [
            (parameter, parameter.dtype(defines)) for parameter in declared.parameters
        ]
        limits = self.xp.cuda.Device(device.index).attributes
        self.block_limits = tuple(limits[f"MaxBlockDim{axis}"] for axis in "XYZ")
        self.grid_limits = tuple(limits[f"MaxGridDim{axis}"] for axis in "XYZ")
        self.most_shared = limits["MaxSharedMemoryPerBlockOptin"]
        bound = str(defines.get(declared.bound or "", declared.bound))
        self.most_threads = int(bound) if bound.isdecimal() else limits["MaxThreadsPerBlock"]

    @functools.cached_property
    def function(self) -> Any:
        with compiling(self.device, f"kernels/{self.declared.file}"):
            return self.module.get_function(self.declared.name)

    def run(
        self, grid: tuple[int, ...], block: tuple[int, ...], shared: int, values: tuple[Any, ...]
    ) -> None:
        cuda = self.xp.cuda
        if cuda.runtime.getDevice() != self.device.index:
            with cuda.Device(self.device.index):
                self.run(grid, block, shared, values)
            return
        if shared > self.shared:  # CuPy sets it for the current device's function
            self.function.max_dynamic_shared_size_bytes = self.shared = shared
        self.function(grid, block, values, shared_mem=shared)

    def check_size(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        name = self.declared.name
        threads = block[0] * block[1] * block[2]
        if any(not 0 <= size <= most for size, most in zip(grid, self.grid_limits, strict=True)):
            raise ArgumentError(f"{name}: grid {grid} is beyond the device's {self.grid_limits}")
        if any(not 1 <= size <= most for size, most in zip(block, self.block_limits, strict=True)):
            raise ArgumentError(f"{name}: block {block} is beyond the device's {self.block_limits}")
        if threads > self.most_threads:
            raise ArgumentError(
                f"{name}: block {block} has {threads} threads; it takes {self.most_threads}"
            )
        if not 0 <= shared <= self.most_shared:
            raise ArgumentError(
                f"{name}: {shared} bytes of dynamic shared memory; "
                f"a block may have {self.most_shared}"
            )

    def arguments(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(args) != len(self.parameters):
            names = ", ".join(parameter.name for parameter, _ in self.parameters)
            raise ArgumentError(
                f"{self.declared.name}: expected {len(self.parameters)} arguments ({names}), "
                f"got {len(args)}"
            )
        return tuple(
            self.pointer(parameter, dtype, value)
            if parameter.pointer
            else self.struct(parameter, value)
            if dtype is None
            else self.number(parameter, dtype, value)
            for (parameter, dtype), value in zip(self.parameters, args, strict=True)
        )

    def number(self, parameter: Parameter, dtype: np.dtype[Any], value: Any) -> Any:
        if not isinstance(value, _NUMBER):
            raise DtypeError(f"{self.where(parameter)} is a {dtype}, got {_short(value)}")
        if dtype.kind in "iu":
            if int(value) != value:
                raise DtypeError(f"{self.where(parameter)} is a {dtype}, got {value!r}")
            info = _range(dtype)
            if not info.min <= value <= info.max:
                raise ArgumentError(
                    f"{self.where(parameter)} is a {dtype}, and {value} does not fit into it"
                )
        return dtype.type(value)

    def pointer(self, parameter: Parameter, dtype: np.dtype[Any] | None, value: Any) -> Any:
        if value is None:
            return np.uint64(0)
        if not isinstance(value, self.xp.ndarray):
            if isinstance(value, np.ndarray):
                raise DeviceMismatch(
                    f"{self.where(parameter)} is on cpu, other arguments on {self.device}\n"
                    "  copy it first: gpucnn.tensor(array, device=...)"
                )
            raise DtypeError(f"{self.where(parameter)} is an array of {dtype}, got {_short(value)}")
        if value.dtype != dtype:
            raise DtypeError(
                f"{self.where(parameter)} is an array of {dtype}, got {value.dtype} {value.shape}"
            )
        if not value.flags.c_contiguous:
            raise ShapeError(
                f"{self.where(parameter)} {value.shape} is not contiguous: its strides are "
                f"{value.strides} bytes\n  copy it first: xp.ascontiguousarray(array)"
            )
        if value.size > _LARGEST and not self.declared.wide:
            raise ShapeError(
                f"{self.where(parameter)} {value.shape} has {value.size} elements, and the "
                "kernel's offsets have 31 bits\n  use a smaller batch"
            )
        if self.device.kind == "cuda" and value.device.id != self.device.index:
            raise DeviceMismatch(
                f"{self.where(parameter)} is on cuda:{value.device.id}, other arguments "
                f"on {self.device}"
            )
        return value

    def struct(self, parameter: Parameter, value: Any) -> Any:
        known = self.structs.get(value) if value.__hash__ else None
        if known is not None:
            return known
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            raise DtypeError(
                f"{self.where(parameter)} is a struct {parameter.kind}, got {_short(value)}"
            )
        _check_struct(self.source, parameter, type(value), self.where(parameter))
        try:
            return self.structs.setdefault(value, _struct(value))
        except OverflowError as error:
            raise ArgumentError(
                f"{self.where(parameter)}: a field of {value} does not fit into 32 bits"
            ) from error

    def where(self, parameter: Parameter) -> str:
        return f"{self.declared.name}: {parameter.name}"


_range = functools.cache(np.iinfo)


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"


@functools.cache
def checked_kernel(
    name: str, device: Device, defines: tuple[tuple[str, Define], ...]
) -> CheckedKernel:
    return CheckedKernel(kernel(name), device, dict(defines))


def _struct(value: Any) -> np.ndarray[Any, Any]:
    """The int32 fields of a frozen dataclass in their order, as raw bytes.

    CuPy passes both a record and its bytes by value, but asks for the array interface at each
    launch, and NumPy describes every field of a record in it: 10 us for 17 fields, 1 us for bytes.
    """
    names = [field.name for field in dataclasses.fields(value)]
    numbers = tuple(int(getattr(value, name)) for name in names)
    record = np.array(numbers, dtype=[(name, np.int32) for name in names])
    return record.view(f"V{record.nbytes}")


def struct_values(raw: np.ndarray[Any, Any]) -> dict[str, int]:
    """The fields of a struct among a launch's values, by name."""
    record = raw.base  # the bytes are a view of it
    assert record is not None
    return {name: int(record[name]) for name in record.dtype.names or ()}


@functools.cache
def _check_struct(source: str, parameter: Parameter, dataclass: type, where: str) -> None:
    """ArgumentError unless `dataclass` has the name and fields of the source's struct."""
    declared = struct_fields(source, parameter.kind)
    fields = [field.name for field in dataclasses.fields(dataclass)]
    if dataclass.__name__.lstrip("_") != parameter.kind or declared != fields:
        raise ArgumentError(
            f"{where} is a struct {parameter.kind} ({', '.join(declared)}), "
            f"got a {dataclass.__name__} ({', '.join(fields)})"
        )
