"""RawModule and its functions, as CuPy's: CUDA source in, launches out."""

import ctypes
import functools
from typing import Any

import numpy as np

from gpucnn.cudasim import compiler, driver, settings, source
from gpucnn.cudasim.array import ndarray
from gpucnn.errors import KernelError

_SCHEDULES = {"lowest": 0, "highest": 1, "random": 2}
_CHECKS = {"fast": 0, "address": 1, "race": 2}


class _Range(ctypes.Structure):  # Range in native/worker.h
    _fields_ = [
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("item", ctypes.c_int),
        ("writable", ctypes.c_int),
        ("name", ctypes.c_char_p),
    ]


class _Request(ctypes.Structure):  # Request in native/worker.h
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_size_t),
        ("static_shared", ctypes.c_void_p),
        ("schedule", ctypes.c_int),
        ("checks", ctypes.c_int),
        ("workers", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("ranges", ctypes.c_void_p),
        ("range_count", ctypes.c_int),
    ]


class RawModule:
    """Compiled CUDA source.  Compiled at the first launch, and again if the settings want it."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), **unused: Any) -> None:
        self._options = tuple(option for option in options if option.startswith("-D"))
        names = source.kernel_names(code)
        stubs = "".join(
            f"CUDASIM_EXPORT void cudasim_run_{name}(void** arguments) {{ cudasim::call({name}, arguments); }}\n"
            for name in names
        )
        self._code = (
            f'{source.rewrite(code)}\n#line 1 "cudasim"\n{stubs}'
            "CUDASIM_EXPORT const size_t* cudasim_shared_used() { return &cudasim::shared_used; }\n"
        )
        self._names = frozenset(names)
        self._libraries: dict[tuple[bool, bool], ctypes.CDLL] = {}

    def get_function(self, name: str) -> "Function":
        if name not in self._names:
            raise KernelError(f"cudasim: the module has no kernel {name}; it has {sorted(self._names)}")
        return Function(self, name)

    def library(self, how: settings.Settings) -> ctypes.CDLL:
        """The compiled code, of the build that `how` needs."""
        key = how.checked, how.debug
        library = self._libraries.get(key)
        if library is None:
            library = self._libraries[key] = compiler.compile_kernels(self._code, self._options, how)
            library.cudasim_shared_used.restype = ctypes.c_void_p
        return library

    @functools.cache  # noqa: B019  modules live as long as the process
    def entry(self, name: str, how: settings.Settings) -> tuple[int, int]:
        """Addresses: the function that runs one thread, and the module's count of shared bytes."""
        library = self.library(how)
        run = ctypes.cast(getattr(library, f"cudasim_run_{name}"), ctypes.c_void_p).value
        assert run is not None  # getattr would have failed
        return run, library.cudasim_shared_used()


class Function:
    """One kernel: `function(grid, block, arguments, shared_mem=bytes)` runs it to its end."""

    def __init__(self, module: RawModule, name: str) -> None:
        self._module = module
        self._name = name
        self.max_dynamic_shared_size_bytes = 48 * 1024

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        how = settings.current()
        grid, block = _triple("grid", grid), _triple("block", block)
        self._check_limits(grid, block, shared_mem)
        values = [_value(self._name, arg) for arg in args]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        run, shared_used = self._module.entry(self._name, how)
        request = _Request(
            entry=run,
            arguments=ctypes.addressof(pointers),
            kernel=self._name.encode(),
            grid=grid,
            block=block,
            dynamic_shared=shared_mem,
            static_shared=shared_used,
            schedule=_SCHEDULES[how.schedule],
            checks=_CHECKS[how.mode],
            workers=how.workers,
            seed=how.seed,
        )
        message = ctypes.create_string_buffer(1024)
        if compiler.runtime().cudasim_launch(ctypes.byref(request), message, len(message)):
            raise KernelError(message.value.decode(errors="replace"))

    def _check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        limits = driver.Device.attributes
        for what, sizes in (("Grid", grid), ("Block", block)):
            for axis, size in zip("XYZ", sizes, strict=True):
                if not 1 <= size <= limits[f"Max{what}Dim{axis}"]:
                    raise KernelError(
                        f"{self._name}: {what.lower()} {sizes} is past the device's limits: "
                        f"{axis.lower()} must be 1 to {limits[f'Max{what}Dim{axis}']}"
                    )
        if block[0] * block[1] * block[2] > limits["MaxThreadsPerBlock"]:
            raise KernelError(f"{self._name}: block {block} has more than 1024 threads")
        if shared > self.max_dynamic_shared_size_bytes:
            raise KernelError(
                f"{self._name}: {shared} bytes of dynamic shared memory, and the function allows "
                f"{self.max_dynamic_shared_size_bytes} (max_dynamic_shared_size_bytes)"
            )


def _triple(what: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise TypeError(f"{what}: expected a tuple of one to three ints, got {sizes!r}")
    return (*(int(size) for size in sizes), 1, 1)[:3]


def _value(kernel: str, arg: Any) -> np.ndarray[Any, Any]:
    """The bytes that the kernel gets for `arg`.  CuPy takes more, and often the wrong one."""
    if isinstance(arg, ndarray):
        if not arg.flags.c_contiguous:
            raise TypeError(
                f"{kernel}: an array {arg.shape} with strides {arg.strides} is not contiguous; the "
                "kernel would read its neighbours' memory"
            )
        return np.array(arg.data.ptr, np.uint64)
    if isinstance(arg, np.generic):
        return np.array(arg)
    if isinstance(arg, np.ndarray) and arg.dtype.names is not None and arg.ndim == 0:
        return arg  # a struct by value
    if isinstance(arg, np.ndarray):
        raise TypeError(
            f"{kernel}: an array of the host where the kernel expects device memory; CuPy would pass "
            "its bytes by value"
        )
    raise TypeError(
        f"{kernel}: {arg!r} is a Python {type(arg).__name__}; CuPy would pass 64 bits whatever the kernel "
        "takes: give it a NumPy type (numpy.float32, numpy.int32)"
    )
