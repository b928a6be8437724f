"""Compiling kernels: a .cu file becomes a module of a device, once for each set of `defines`.

Source is C++17: divisions and square roots are exact, multiply-adds are contracted (NVRTC's
default).  CuPy adds -ftz=true to that: on a GPU a denormal float32, below 1.2e-38, counts as 0;
cudasim does not imitate that and computes with it.  A kernel that wants the fast, less exact
functions calls them by name (__expf, __fdividef).
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn.cuda.declarations import KERNELS, Define, assemble
from gpucnn.device import CUPY_INSTALL, Device
from gpucnn.errors import DeviceError, GpucnnError, KernelError

OPTIONS = ("-std=c++17",)


@functools.cache
def load_module(
    device: Device, file: str, defines: tuple[tuple[str, Define], ...]
) -> tuple[str, Any]:
    """The assembled source of `file` and the module of it on `device`."""
    xp = device.xp
    if device.kind == "cudasim":
        source = assemble(file, xp.kernel_headers(), f"{KERNELS}/")
    else:
        source = assemble(file)
    with xp.cuda.Device(device.index):
        return source, xp.RawModule(code=source, options=options(defines))


def compile_file(device: Device, file: str, defines: tuple[tuple[str, Define], ...] = ()) -> None:
    """Compile kernels/`file` for `device` now, rather than when the first of its kernels runs."""
    with compiling(device, f"kernels/{file}"):
        load_module(device, file, defines)[1].compile()


@contextmanager
def compiling(device: Device, what: str) -> Iterator[None]:
    """`device` is the current one inside; what CuPy raises becomes an error with a way out.

    what names the source for KernelError, such as kernels/pool2d.cu; DeviceError says which part of
    CUDA CuPy could not load.
    """
    try:
        with device.xp.cuda.Device(device.index):
            yield
    except GpucnnError:
        raise
    except Exception as error:  # CuPy's classes cannot be named without CuPy
        reason = " ".join(str(error).split())
        known = reason.lower()
        if any(word in known for word in _OTHER_ARCHITECTURE):
            raise DeviceError(
                f"device {device} needs a CuPy whose NVRTC compiles for this GPU ({reason})\n"
                "  `gpucnn doctor` says which one does"
            ) from error
        if type(error).__name__ == "CompileException":
            raise KernelError(f"{what} does not compile for {device}:\n{error}") from error
        for word, missing in _PARTS_OF_CUDA.items():
            if word in known:
                raise DeviceError(
                    f"device {device} needs {missing} ({reason})\n"
                    f"  install CuPy with both: {CUPY_INSTALL}"
                ) from error
        raise


# NVRTC's word for a GPU that it no longer knows, the driver's for one that it does not know yet.
_OTHER_ARCHITECTURE = ("gpu-architecture", "no_binary_for_gpu")

# What CuPy 14 needs to compile with, by a word of the error that says it is missing.  It wants the
# headers for sources that include none, too.
_PARTS_OF_CUDA = {
    "cuda headers": "CUDA's headers, and CuPy found none",
    "nvrtc": "NVRTC, and CuPy could not load it",
}


def options(defines: tuple[tuple[str, Define], ...]) -> tuple[str, ...]:
    """What the compiler is told for the specialisation of these preprocessor words."""
    return (*OPTIONS, *(f"-D{name}={value}" for name, value in defines))
