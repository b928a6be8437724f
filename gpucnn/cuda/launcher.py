"""Launch kernels from Python, with every argument checked.

    cuda.launch("max_pool2d_forward", grid, block, x, y, argmax, geometry)

Read declarations.py and compiler.py first.  `launch` checks its arguments against the kernel's
declaration in the .cu file: arrays for dtype, contiguity and device.  It casts Python numbers to
the C type (CuPy would pass a float as a double) and passes a frozen dataclass of ints by value, as
the struct of the same name.  A file is compiled when the first of its kernels runs.
"""

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn.cuda.compiler import compiling, load_module
from gpucnn.cuda.counters import forget_counters
from gpucnn.cuda.declarations import Define, Kernel, Parameter, kernel, struct_fields
from gpucnn.device import Device, device_of
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError
from gpucnn.integers import ceil_div

ELEMENTWISE_THREADS = 256  # per block
_MOST_ELEMENTS = 2**31 - 1  # of an array whose offsets are ints
_NUMBERS = (int, float, np.number, np.bool_)


def launch(
    name: str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    *args: Any,
    shared: int = 0,
    defines: Mapping[str, Define] | None = None,
) -> None:
    """Run kernel `name` on `grid` blocks of `block` threads, on the current stream.

    args follow the kernel's parameters: arrays on one device (None is a null pointer), numbers, and
    frozen dataclasses of ints for structs.  shared is the dynamic shared memory per block, in
    bytes.  defines are preprocessor macros; each set of them is compiled separately.  A grid with
    a dimension of 0, as for an empty batch, runs nothing.

    Raises ArgumentError for an unknown kernel, a wrong number of arguments, a number out of range
    or a launch beyond the device's limits; DtypeError for an argument of the wrong type; ShapeError
    for an array that is not contiguous, or has 2^31 elements or more in a kernel without
    `wide_offsets`; DeviceMismatch for an array on another device.
    """
    array = next((arg for arg in args if _is_array(arg)), None)
    if array is None:
        raise ArgumentError(f"{name}: a launch needs at least one array")
    device = device_of(array)
    if device.kind == "cpu":
        raise DeviceMismatch(f"{name}: kernels run on cuda or cudasim, but an argument is on cpu")
    checked = checked_kernel(name, device, tuple(defines.items()) if defines else ())
    configuration = _dim3(grid), _dim3(block), shared
    if configuration not in checked.allowed:
        checked.check_limits(*configuration)
        checked.allowed.add(configuration)
    values = checked.cast(args)
    run = 0 not in configuration[0]
    for watch in getattr(_state, "watchers", _watchers):
        run &= watch(Launch(checked.declared, checked.defines, *configuration, values))
    if run:
        checked.run(*configuration, values)


def launch_elementwise(
    name: str, size: int, *args: Any, defines: Mapping[str, Define] | None = None
) -> None:
    """Run kernel `name` with at least `size` threads, one per element; the rest as in `launch`.

    Blocks have ELEMENTWISE_THREADS threads: the kernel must ignore those past the last element.
    """
    blocks = ceil_div(size, ELEMENTWISE_THREADS)
    launch(name, blocks, ELEMENTWISE_THREADS, *args, defines=defines)


@dataclasses.dataclass(frozen=True, eq=False)
class Launch:
    """One call of `launch`, its arguments checked and cast."""

    kernel: Kernel
    defines: tuple[tuple[str, Define], ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared: int  # dynamic shared memory per block, in bytes
    # One per parameter: an array on the device (numpy.uint64(0) for a null pointer), a NumPy
    # scalar, or a struct as raw bytes (`struct_values` names its fields).
    values: tuple[Any, ...]


# Each is called with every launch and returns whether it may run.
_watchers: list[Callable[[Launch], bool]] = []
_state = threading.local()  # watchers: instead of these, in a thread that captures


@contextmanager
def _watched(watch: Callable[[Launch], bool]) -> Iterator[None]:
    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers[:] = [other for other in _watchers if other is not watch]


@contextmanager
def only_watched(watch: Callable[[Launch], bool]) -> Iterator[None]:
    """Tell `watch` alone of this thread's launches in the block, which a graph repeats later."""
    _state.watchers = [watch]
    try:
        yield
    finally:
        del _state.watchers


def may_launch_graph() -> bool:
    """Report the launch of a graph to all watchers; whether it may run."""
    run = True
    for watch in _watchers:
        run &= watch(_GRAPH)
    return run


_GRAPH = Launch(Kernel("graph", "", 0, (), None, None, True), (), (1, 1, 1), (1, 1, 1), 0, ())


@contextmanager
def count_launches() -> Iterator[Counter[str]]:
    """Count launches by kernel name: `with cuda.count_launches() as launches: ...`.

    The launch of a graph counts as one, named "graph", whatever it contains.
    """
    counter: Counter[str] = Counter()

    def count(launch: Launch) -> bool:
        counter[launch.kernel.name] += 1
        return True

    with _watched(count):
        yield counter


@contextmanager
def record_launches(run: bool = True) -> Iterator[list[Launch]]:
    """Collect every launch inside the block in a list, which keeps their arrays alive.

    With run=False launches are checked but neither compiled nor run, and their results hold
    whatever was in memory.  Shapes and launches are still right, because they do not depend on
    the contents of arrays.  The launch of a graph is one, of a kernel "graph" without arguments.
    """
    launches: list[Launch] = []

    def record(launch: Launch) -> bool:
        launches.append(launch)
        return run

    with _watched(record):
        yield launches


def _dim3(sizes: int | tuple[int, ...]) -> tuple[int, int, int]:
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
        self.shared_limit = 0  # dynamic shared memory that the kernel has opted in to, in bytes
        self.structs: dict[Any, Any] = {}  # raw bytes by dataclass: a program has few geometries
        self.allowed: set[tuple[Any, ...]] = set()  # (grid, block, shared) already checked
        self.parameters = [
            (parameter, parameter.dtype(defines)) for parameter in declared.parameters
        ]
        limits = self.xp.cuda.Device(device.index).attributes
        self.block_limits = tuple(limits[f"MaxBlockDim{axis}"] for axis in "XYZ")
        self.grid_limits = tuple(limits[f"MaxGridDim{axis}"] for axis in "XYZ")
        self.max_shared = limits["MaxSharedMemoryPerBlockOptin"]
        bound = str(defines.get(declared.bound or "", declared.bound))
        self.max_threads = int(bound) if bound.isdecimal() else limits["MaxThreadsPerBlock"]

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
        # CUDA needs an opt-in from 48 KiB on, which static shared memory counts towards.  CuPy sets
        # the attribute on the current device.
        if shared > self.shared_limit:
            self.function.max_dynamic_shared_size_bytes = self.shared_limit = shared
        try:
            self.function(grid, block, values, shared_mem=shared)
        except BaseException:  # Ctrl-C too: blocks that have run may have counted
            forget_counters()
            raise

    def check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        """ArgumentError if a launch would exceed the limits of the device or the kernel."""
        name = self.declared.name
        threads = block[0] * block[1] * block[2]
        if any(not 0 <= size <= most for size, most in zip(grid, self.grid_limits, strict=True)):
            raise ArgumentError(
                f"{name}: grid {grid} exceeds the device's limits {self.grid_limits}"
            )
        if any(not 1 <= size <= most for size, most in zip(block, self.block_limits, strict=True)):
            raise ArgumentError(
                f"{name}: block {block} exceeds the device's limits {self.block_limits}"
            )
        if threads > self.max_threads:
            raise ArgumentError(
                f"{name}: block {block} has {threads} threads, "
                f"the kernel's limit is {self.max_threads}"
            )
        if not 0 <= shared <= self.max_shared:
            raise ArgumentError(
                f"{name}: {shared} bytes of dynamic shared memory, "
                f"the device's limit is {self.max_shared}"
            )

    def cast(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Check `args` against the declaration and cast them to its types."""
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
        if not isinstance(value, _NUMBERS):
            raise DtypeError(f"{self.name_of(parameter)}: expected {dtype}, got {_short(value)}")
        if dtype.kind in "iu":
            if int(value) != value:
                raise DtypeError(f"{self.name_of(parameter)}: expected {dtype}, got {value!r}")
            info = _integer_range(dtype)
            if not info.min <= value <= info.max:
                raise ArgumentError(
                    f"{self.name_of(parameter)}: expected {dtype}, "
                    f"got {value}, which is out of range"
                )
        return dtype.type(value)

    def pointer(self, parameter: Parameter, dtype: np.dtype[Any] | None, value: Any) -> Any:
        if value is None:
            return np.uint64(0)
        if not isinstance(value, self.xp.ndarray):
            if isinstance(value, np.ndarray):
                raise DeviceMismatch(
                    f"{self.name_of(parameter)} is on cpu, other arguments on {self.device}\n"
                    "  copy it first: gpucnn.tensor(array, device=...)"
                )
            raise DtypeError(
                f"{self.name_of(parameter)}: expected an array of {dtype}, got {_short(value)}"
            )
        if value.dtype != dtype:
            raise DtypeError(
                f"{self.name_of(parameter)}: expected an array of {dtype}, "
                f"got {value.dtype} {value.shape}"
            )
        if not value.flags.c_contiguous:
            raise ShapeError(
                f"{self.name_of(parameter)} {value.shape} is not contiguous: its strides are "
                f"{value.strides} bytes\n  copy it first: xp.ascontiguousarray(array)"
            )
        if value.size > _MOST_ELEMENTS and not self.declared.wide:
            raise ShapeError(
                f"{self.name_of(parameter)} {value.shape} has {value.size} elements; the "
                f"kernel's 32-bit offsets reach {_MOST_ELEMENTS}\n  use a smaller batch"
            )
        if self.device.kind == "cuda" and value.device.id != self.device.index:
            raise DeviceMismatch(
                f"{self.name_of(parameter)} is on cuda:{value.device.id}, other arguments "
                f"on {self.device}"
            )
        return value

    def struct(self, parameter: Parameter, value: Any) -> Any:
        cached = self.structs.get(value) if value.__hash__ else None
        if cached is not None:
            return cached
        if not dataclasses.is_dataclass(value) or isinstance(value, type):
            raise DtypeError(
                f"{self.name_of(parameter)}: expected a struct {parameter.kind}, "
                f"got {_short(value)}"
            )
        _check_struct(self.source, parameter, type(value), self.name_of(parameter))
        try:
            return self.structs.setdefault(value, _struct(value))
        except OverflowError as error:
            raise ArgumentError(
                f"{self.name_of(parameter)}: a field of {value} exceeds 32 bits"
            ) from error

    def name_of(self, parameter: Parameter) -> str:
        return f"{self.declared.name}: {parameter.name}"


_integer_range = functools.cache(np.iinfo)


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"


@functools.cache
def checked_kernel(
    name: str, device: Device, defines: tuple[tuple[str, Define], ...]
) -> CheckedKernel:
    return CheckedKernel(kernel(name), device, dict(defines))


def _struct(value: Any) -> np.ndarray[Any, Any]:
    """The fields of a frozen dataclass as int32, in order, as raw bytes.

    CuPy also passes a record by value, but reads its array interface at each launch.  NumPy lists
    every field in that interface: 10 us for a record of 17 fields, 1 us for raw bytes.
    """
    names = [field.name for field in dataclasses.fields(value)]
    numbers = tuple(int(getattr(value, name)) for name in names)
    record = np.array(numbers, dtype=[(name, np.int32) for name in names])
    return record.view(f"V{record.nbytes}")


def struct_values(raw: np.ndarray[Any, Any]) -> dict[str, int]:
    """The fields of a struct in Launch.values, by name."""
    record = raw.base  # raw is a view of the record
    assert record is not None
    return {name: int(record[name]) for name in record.dtype.names or ()}


@functools.cache
def _check_struct(source: str, parameter: Parameter, dataclass: type, where: str) -> None:
    """ArgumentError unless `dataclass` has the name and fields of the parameter's struct."""
    declared = struct_fields(source, parameter.kind)
    fields = [field.name for field in dataclasses.fields(dataclass)]
    if dataclass.__name__.lstrip("_") != parameter.kind or declared != fields:
        raise ArgumentError(
            f"{where}: expected a struct {parameter.kind} ({', '.join(declared)}), "
            f"got a {dataclass.__name__} ({', '.join(fields)})"
        )
