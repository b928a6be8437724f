"""RawModule and its functions, like CuPy's: compile CUDA source and launch its kernels."""

import ctypes
import functools
import signal
from typing import Any

import numpy as np

from gpucnn.cudasim import compiler, driver, settings, source
from gpucnn.cudasim.arguments import Arguments
from gpucnn.cudasim.arrays import ndarray
from gpucnn.cudasim.capture import Capture
from gpucnn.cudasim.streams import current_capture
from gpucnn.errors import KernelError

_SCHEDULES = {"lowest": 0, "highest": 1, "random": 2}
_CHECKS = {"fast": 0, "address": 1, "race": 2, "banks": 4}
_INTERRUPTED = 2  # returned by cudasim_launch after Ctrl-C


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
        ("interrupts", ctypes.c_int),
        ("ways", ctypes.c_int),
    ]


class RawModule:
    """CUDA source, compiled at its first launch; checked modes and debug have their own builds."""

    def __init__(self, *, code: str, options: tuple[str, ...] = ()) -> None:
        self._options = tuple(option for option in options if option.startswith("-D"))
        names = source.kernels(code)
        stubs = "".join(f"CUDASIM_ENTRY({name})\n" for name in names)
        self._code = (
            f'{source.rewrite(code)}\n#line 1 "cudasim"\n{stubs}'
            "CUDASIM_EXPORT const size_t* cudasim_shared_used() { return &cudasim::shared_used; }\n"
        )
        self._parameters = names
        self._libraries: dict[tuple[bool, bool], ctypes.CDLL] = {}

    def get_function(self, name: str) -> "Function":
        if name not in self._parameters:
            raise KernelError(
                f"cudasim: the module has no kernel {name}; it has {sorted(self._parameters)}"
            )
        return Function(self, name)

    def compile(self) -> None:
        """Compile now instead of at the first launch."""
        self._library(settings.current())

    def _library(self, how: settings.Settings) -> ctypes.CDLL:
        """The compiled library, in the build that the settings `how` need."""
        key = how.checked, how.debug
        library = self._libraries.get(key)
        if library is None:
            library = self._libraries[key] = compiler.compile_kernels(
                self._code, self._options, how
            )
            library.cudasim_shared_used.restype = ctypes.c_void_p
        return library

    @functools.cache  # noqa: B019  modules live as long as the process
    def _entry(self, name: str, how: settings.Settings) -> tuple[int, int]:
        """Addresses of the function that runs a thread and of the count of shared memory bytes."""
        library = self._library(how)
        run = ctypes.cast(getattr(library, f"cudasim_run_{name}"), ctypes.c_void_p).value
        assert run is not None  # getattr would have failed
        return run, library.cudasim_shared_used()


class Function:
    """A kernel: `function(grid, block, arguments, shared_mem=bytes)` launches it and waits."""

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
    ) -> None:
        grid, block = _triple("grid", grid), _triple("block", block)
        self._check_limits(grid, block, shared_mem)
        capture = current_capture()
        if capture is None:
            self._run(grid, block, args, shared_mem)
            return
        Arguments(self._name, self._module._parameters[self._name], args)  # refuses wrong ones
        kept = tuple(_at_its_address(capture, arg) for arg in args)
        capture.work.append(lambda: self._run(grid, block, kept, shared_mem))

    def _run(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int,
    ) -> None:
        how = settings.current()
        run, shared_used = self._module._entry(self._name, how)
        arguments = Arguments(self._name, self._module._parameters[self._name], args)
        if how.checked:
            arguments.fence()
        request = _Request(
            entry=run,
            arguments=arguments.address,
            kernel=self._name.encode(),
            grid=grid,
            block=block,
            dynamic_shared=shared_mem,
            static_shared=shared_used,
            schedule=_SCHEDULES[how.schedule],
            checks=_CHECKS[how.mode],
            workers=how.workers,
            seed=how.seed,
            ranges=ctypes.addressof(arguments.ranges),
            range_count=len(arguments.ranges),
            interrupts=_interrupts(),
            ways=how.ways,
        )
        message = ctypes.create_string_buffer(2048)
        result = compiler.runtime().cudasim_launch(ctypes.byref(request), message, len(message))
        if result == _INTERRUPTED:
            raise KeyboardInterrupt
        if result:
            text = message.value.decode(errors="replace")
            raise KernelError(compiler.explain(self._module._library(how), text))
        arguments.copy_back()

    def _check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        limits = driver.Device.attributes
        for what, sizes in (("Grid", grid), ("Block", block)):
            for axis, size in zip("XYZ", sizes, strict=True):
                if not 1 <= size <= limits[f"Max{what}Dim{axis}"]:
                    raise KernelError(
                        f"{self._name}: {what.lower()} {sizes} exceeds the device's limits: "
                        f"{axis.lower()} must be 1 to {limits[f'Max{what}Dim{axis}']}"
                    )
        if block[0] * block[1] * block[2] > limits["MaxThreadsPerBlock"]:
            raise KernelError(f"{self._name}: block {block} has more than 1024 threads")
        if shared > self.max_dynamic_shared_size_bytes:
            raise KernelError(
                f"{self._name}: {shared} bytes of dynamic shared memory; the function's limit is "
                f"{self.max_dynamic_shared_size_bytes} (max_dynamic_shared_size_bytes)"
            )


def _interrupts() -> int:
    """Ctrl-C presses that end a kernel: 2 if a handler of the program's own gets the first."""
    return 1 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 2


def _at_its_address(capture: Capture, arg: Any) -> Any:
    """An argument of a launch that is recorded: an array that keeps no memory alive."""
    if isinstance(arg, ndarray):
        array = ndarray.__new__(ndarray)
        array._host, array.base = capture.bare(arg._host), None
        return array
    return np.array(arg) if isinstance(arg, np.ndarray) else arg


def _triple(what: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not 1 <= len(sizes) <= 3:
        raise TypeError(f"{what}: expected a tuple of one to three ints, got {sizes!r}")
    return (*(int(size) for size in sizes), 1, 1)[:3]
