"""Compiles kernels, and the runtime that runs them, with the machine's C++ compiler.

Libraries are cached in the user's cache folder, named by a hash of source, flags, compiler and CPU.
They are moved there atomically, so that two processes may compile the same one.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gpucnn.cudasim.settings import Settings
from gpucnn.errors import DeviceError, KernelError

NATIVE = Path(__file__).parent / "native"
_RUNTIME_SOURCES = (
    "scheduler.cpp",
    "barriers.cpp",
    "copies.cpp",
    "pool.cpp",
    "checks.cpp",
    "races.cpp",
    "banks.cpp",
    "signals.cpp",
    "interrupts.cpp",
)
_COMMON = (
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-gdwarf-4",  # addr2line 2.40 confuses the files of DWARF 5 tables
    "-fno-strict-aliasing",
    "-Wno-unknown-pragmas",
    f"-I{NATIVE}",
)
_NATIVE = ("-march=native", "-mcpu=native")  # the first that the compiler supports
# Like NVRTC: contract multiply-adds; otherwise strict floats, except that errno and traps are not
# observed.
_FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
_UNSET = "-ftrivial-auto-var-init=pattern"  # uninitialised variables are not zero
# The sanitizers' instrumentation only: native/checks.cpp implements the functions it calls.
_CHECKED = (
    "-O1",
    "-DCUDASIM_CHECKED",
    "-fno-tree-sra",  # a float4 is one access, as on a GPU, not four
    "-fno-delete-null-pointer-checks",  # checks.cpp detects null
    "-fno-threadsafe-statics",  # one core runs all blocks
    "-fsanitize=thread",
    "-fsanitize=bounds,alignment,integer-divide-by-zero,shift,signed-integer-overflow",
)


def cache_folder() -> Path:
    """The folder of compiled kernels, created if missing; a temporary one if it is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "gpucnn" / "cudasim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass  # a read-only home: every process compiles again
    return _process_folder()


@functools.cache
def _process_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="gpucnn-cudasim-"))


@functools.cache
def compiler() -> tuple[str, str]:
    """The path of the C++ compiler, and its version; DeviceError if there is none."""
    if sys.platform == "win32":
        raise DeviceError(
            "device cudasim needs Linux or macOS: Windows has no mmap\n"
            "  use it in WSL, or use device cpu"
        )
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        path = shutil.which(name)
        if path is not None:
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False
            )
            if answer.returncode == 0:
                return path, answer.stdout.splitlines()[0]
    raise DeviceError(
        "device cudasim needs a C++17 compiler, and this machine has no g++, clang++ or $CXX\n"
        "  install one (apt install g++, dnf install gcc-c++, xcode-select --install), "
        "or use device cpu"
    )


@functools.cache
def _supports(flag: str) -> bool:
    """Whether the compiler supports `flag`."""
    command = [compiler()[0], flag, "-E", "-x", "c++", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def _cpu() -> str:
    """The CPU's model and features, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(
        sorted({line for line in lines if re.match(r"(flags|model name|Features)\b", line)})
    )


@functools.cache
def _headers_digest() -> bytes:
    """A digest of all headers that kernels include."""
    digest = hashlib.sha256()
    for header in sorted(NATIVE.glob("*.h")):
        digest.update(header.read_bytes())
    return digest.digest()


def compile_kernels(code: str, options: tuple[str, ...], settings: Settings) -> ctypes.CDLL:
    """Compile `code` into a library; KernelError with the compiler's messages if that fails."""
    runtime()  # loaded first: the library needs its symbols
    flags = list(_CHECKED if settings.checked else _FAST)
    flags += [*filter(_supports, _NATIVE)][:1]
    if settings.debug:
        flags += ["-O0"]  # overrides the -O before
    if _supports(_UNSET):
        flags += [_UNSET]
    before = ("-include", str(NATIVE / "cuda.h"))
    return ctypes.CDLL(str(_library("kernels", code, (*_COMMON, *flags, *options), before)))


@functools.cache
def runtime() -> ctypes.CDLL:
    """The library that runs compiled kernels."""
    code = "".join(f'#include "{NATIVE / name}"\n' for name in _RUNTIME_SOURCES)
    text = "".join((NATIVE / name).read_text(encoding="utf-8") for name in _RUNTIME_SOURCES)
    arguments = (*_COMMON, "-O2", "-pthread")
    path = _library("runtime", code, arguments, (), salt=text)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.cudasim_launch.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.cudasim_launch.restype = ctypes.c_int
    return library


def _library(
    stem: str, code: str, arguments: tuple[str, ...], before: tuple[str, ...], salt: str = ""
) -> Path:
    path, version = compiler()
    key = hashlib.sha256(_headers_digest())
    for part in (code, salt, version, _cpu(), *arguments):
        key.update(part.encode() + b"\0")
    target = cache_folder() / f"{stem}-{key.hexdigest()[:32]}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix="gpucnn-", dir=target.parent) as folder:
        source, made = Path(folder, f"{stem}.cpp"), Path(folder, target.name)
        object_file = Path(folder, f"{stem}.o")
        source.write_text(code, encoding="utf-8")
        # Two steps: linking with -fsanitize would add the compiler's own runtime.
        link = [path, "-shared", "-pthread", str(object_file), "-o", str(made)]
        if sys.platform == "darwin":  # the runtime's functions are resolved at load time
            link += ["-undefined", "dynamic_lookup"]
        for command in (
            [path, "-c", *before, *arguments, str(source), "-o", str(object_file)],
            link,
        ):
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode != 0:
                raise KernelError(
                    f"cudasim: {Path(path).name} cannot compile a kernel\n{answer.stderr.strip()}"
                )
        os.replace(made, target)
    return target


def explain(library: ctypes.CDLL, text: str) -> str:
    """Replace each <code 0x...> in `text`, an offset into `library`, by "at file:line" if known."""
    tool = shutil.which("addr2line")

    def line(match: re.Match[str]) -> str:
        # One byte back: the offset is the return address of the check.
        command = [str(tool), "-e", library._name, hex(int(match[1], 16) - 1)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        place = re.sub(r" \(discriminator \d+\)", "", answer)
        return "" if place.startswith("?") else f" at {place}"

    text = re.sub(r" <code (0x[0-9a-f]+)>", line if tool else "", text)
    return re.sub(r"[^ ]*/([^/ ]+:\d+)", r"\1", text)  # drop the folders
