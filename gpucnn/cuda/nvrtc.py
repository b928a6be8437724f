"""NVIDIA's runtime compiler without a GPU, for inspecting kernels.

CuPy compiles kernels when they are launched.  This module compiles them for any architecture, to
inspect their machine code, registers and spills.  It needs libnvrtc (CUDA 12 or 13), from the wheel
nvidia-cuda-nvrtc or an installed toolkit, but no driver.
"""

import ctypes
import functools
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpucnn.errors import DeviceError, KernelError

INSTALL = 'pip install "gpucnn[nvrtc]"'
CUPY_OPTIONS = ("-ftz=true",)  # CuPy adds others, but only this one changes the code


@dataclass(frozen=True)
class Usage:
    """Resources of one kernel, as the assembler reports them."""

    registers: int  # per thread
    shared: int  # static shared memory per block, in bytes
    spilled: int  # bytes of register spills, stored and loaded
    stack: int  # local memory per thread, in bytes


@dataclass(frozen=True)
class Binary:
    """A source compiled for one architecture."""

    cubin: bytes
    ptx: str
    usage: dict[str, Usage]  # by kernel name
    architecture: int = 0  # that of compile_source


def compile_source(
    source: str,
    name: str,
    architecture: int,
    options: Iterable[str] = ("-std=c++17", *CUPY_OPTIONS),
) -> Binary:
    """Compile `source`, complete CUDA C++ text.

    name is the file name in error messages.  architecture is the compute capability times ten: 80
    for sm_80.  options defaults to those of a launch through CuPy; registers and spills depend on
    them.  Raises DeviceError without libnvrtc or for an unsupported architecture, KernelError if
    the source does not compile.
    """
    library = _library()
    if architecture not in architectures():
        raise DeviceError(f"NVRTC {version()} does not compile for sm_{architecture}")
    program = ctypes.c_void_p()
    code = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 0, None, None
    )
    _check(library, code)
    try:
        flags = [f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", *options]
        given = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        code = library.nvrtcCompileProgram(program, len(flags), given)
        log = _text(library, program, "ProgramLog").decode(errors="replace").rstrip("\0\n")
        if code:
            raise KernelError(f"{name} does not compile for sm_{architecture}:\n{log}")
        return Binary(
            _text(library, program, "CUBIN"),
            _text(library, program, "PTX").decode().rstrip("\0"),
            _usage(log),
            architecture,
        )
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> str:
    """NVRTC's version, such as "13.0"; DeviceError without libnvrtc."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    library = _library()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


@functools.cache
def architectures() -> tuple[int, ...]:
    """The architectures that NVRTC supports: 75, 80, ...; DeviceError without libnvrtc."""
    library, count = _library(), ctypes.c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(found))
    return tuple(found)


def pathfinder(wanted: str) -> Any:
    """The module cuda.pathfinder, which locates `wanted`; DeviceError if it is not installed."""
    try:
        return importlib.import_module("cuda.pathfinder")
    except ImportError as error:
        raise DeviceError(f"{wanted} cannot be found without cuda-pathfinder; {INSTALL}") from error


@functools.cache
def _library() -> ctypes.CDLL:
    find = pathfinder("NVRTC").load_nvidia_dynamic_lib
    try:
        library = ctypes.CDLL(find("nvrtc").abs_path)
    except RuntimeError as error:  # the base class of cuda.pathfinder's errors
        raise DeviceError(f"NVRTC was not found; {INSTALL}") from error
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """The program's log, PTX or cubin; `what` is the suffix of NVRTC's getter, such as CUBIN."""
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise DeviceError(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}")


def _usage(log: str) -> dict[str, Usage]:
    """Parse the assembler's report on each kernel (ptxas -v)."""
    usage = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.partition("'")[0]

        def figure(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        usage[name] = Usage(
            registers=figure(r"Used (\d+) registers"),
            shared=figure(r"(\d+) bytes smem"),
            spilled=figure(r"(\d+) bytes spill stores") + figure(r"(\d+) bytes spill loads"),
            stack=figure(r"(\d+) bytes stack frame"),
        )
    return usage
