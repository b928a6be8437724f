"""Compile kernels: a .cu file becomes one module per device and set of `defines`.

Read declarations.py first and launcher.py next.

Sources are C++17.  Divisions and square roots are correctly rounded, multiply-adds are contracted
(NVRTC's default).  CuPy adds -ftz=true: on a GPU denormal float32 numbers (below 1.2e-38) are
flushed to 0, on cudasim they are not.  Kernels that want the fast, less accurate functions call
them by name (__expf, __fdividef).
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
    """The assembled source of `file`, and its module on `device`, which compiles at first use."""
    xp = device.xp
    if device.kind == "cudasim":
        source = assemble(file, xp.kernel_headers(), f"{KERNELS}/")
    else:
        source = assemble(file)
    with xp.cuda.Device(device.index):
        return source, xp.RawModule(code=source, options=options(defines))


def compile_file(device: Device, file: str, defines: tuple[tuple[str, Define], ...] = ()) -> None:
    """Compile kernels/`file` for `device` now instead of at its first launch."""
    with compiling(device, f"kernels/{file}"):
        load_module(device, file, defines)[1].compile()


@contextmanager
def compiling(device: Device, what: str) -> Iterator[None]:
    """Make `device` current, and turn CuPy's errors into gpucnn's, with a way out.

    `what` names the source in messages: kernels/pool2d.cu.  Raises KernelError if it does not
    compile; DeviceError if CuPy lacks a part of CUDA, or its NVRTC does not know the GPU.
    """
    try:
        with device.xp.cuda.Device(device.index):
            yield
    except GpucnnError:
        raise
    except Exception as error:  # CuPy's exception classes cannot be named without importing CuPy
        reason = " ".join(str(error).split())
        lowered = reason.lower()
        if any(word in lowered for word in _UNKNOWN_GPU):
            raise DeviceError(
                f"device {device} needs a CuPy whose NVRTC compiles for this GPU ({reason})\n"
                "  `gpucnn doctor` says which one does"
            ) from error
        if type(error).__name__ == "CompileException":
            raise KernelError(f"{what} does not compile for {device}:\n{error}") from error
        for word, missing in _PARTS_OF_CUDA.items():
            if word in lowered:
                raise DeviceError(
                    f"device {device} needs {missing} ({reason})\n"
                    f"  install CuPy with both: {CUPY_INSTALL}"
                ) from error
        raise


# Parts of error messages: NVRTC's for a GPU that it no longer supports, and the driver's for a
# binary without code for this GPU.
_UNKNOWN_GPU = ("gpu-architecture", "no_binary_for_gpu")

# What CuPy 14 needs to compile, by a part of its error message.  It requires CUDA's headers even
# for sources that include none.
_PARTS_OF_CUDA = {
    "cuda headers": "CUDA's headers, and CuPy found none",
    "nvrtc": "NVRTC, and CuPy could not load it",
}


def options(defines: tuple[tuple[str, Define], ...]) -> tuple[str, ...]:
    """The compiler options for a file with these preprocessor `defines`."""
    return (*OPTIONS, *(f"-D{name}={value}" for name, value in defines))
