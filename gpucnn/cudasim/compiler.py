"""Compiles kernels, and the runtime that runs them, with the machine's C++ compiler.

Libraries are cached (cache.py), by a hash of source, flags, compiler and CPU.  They are moved there
atomically, so that two processes may compile the same one.
"""

import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from gpucnn.cudasim.cache import add, cache_folder, find
from gpucnn.cudasim.settings import Settings
from gpucnn.errors import DeviceError, KernelError
from gpucnn.files import writing
from gpucnn.temporary import temporary_folder

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
)
_FOLDERS = re.compile(r'(?m)^(#line \d+ ").*/')
_loading = threading.Lock()
_SIGNALS = {errno.EFBIG: "File size limit exceeded"}  # how g++ reports SIGXFSZ
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
    # The same content in another folder is the same library, but a debugger opens the files.
    content = code if settings.debug else _FOLDERS.sub(r"\1", code)
    return _load(_library("kernels", code, (*_COMMON, *flags, *options), before, content))


def runtime() -> ctypes.CDLL:
    """The library that runs compiled kernels.

    One in each process, also where threads ask for it at once: a kernel that is linked with one
    runtime cannot run on the workers of another.
    """
    with _loading:
        return _runtime()


@functools.cache
def _runtime() -> ctypes.CDLL:
    code = "".join(f'#include "{name}"\n' for name in _RUNTIME_SOURCES)  # in NATIVE
    text = "".join((NATIVE / name).read_text(encoding="utf-8") for name in _RUNTIME_SOURCES)
    # Kernels use its thread-local variables as static ones, which they must be from the start
    arguments = (*_COMMON, "-O2", "-pthread", "-ftls-model=initial-exec")
    path = _library("runtime", code, arguments, (), text)
    library = _load(path, ctypes.RTLD_GLOBAL)
    library.cudasim_launch.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.cudasim_launch.restype = ctypes.c_int
    return library


def _library(
    stem: str, code: str, arguments: tuple[str, ...], before: tuple[str, ...], content: str
) -> Path:
    """The library of `code`, from the cache if `content` and the rest were compiled before."""
    path, version = compiler()
    digest = hashlib.sha256(_headers_digest())
    for part in (content, version, _cpu(), *arguments):
        digest.update(_encoded(part) + b"\0")
    key = f"{stem}-{digest.hexdigest()[:32]}"
    cache = cache_folder()
    found = find(cache, key)
    if found is not None:
        return found
    with writing(cache), temporary_folder("gpucnn-", cache) as folder:
        source, made = folder / f"{stem}.cpp", folder / f"{stem}.so"
        object_file = folder / f"{stem}.o"
        source.write_bytes(_encoded(code))
        # Two steps: linking with -fsanitize would add the compiler's own runtime.
        link = [path, "-shared", "-pthread", str(object_file), "-o", str(made)]
        if sys.platform == "darwin":  # the runtime's functions are resolved at load time
            link += ["-undefined", "dynamic_lookup"]
        files = (str(source), "-o", str(object_file))
        _compile([path, "-c", f"-I{NATIVE}", *before, *arguments, *files], folder)
        _compile(link, folder)
        return add(cache, key, made)


def _compile(command: list[str], folder: Path) -> None:
    """Run the compiler, with its temporary files in `folder`.

    Raises KernelError with the compiler's messages, or OSError if the disk is full.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environment
        )
    except OSError as error:
        raise DeviceError(f"device cudasim cannot start {command[0]} ({error.strerror})") from error
    if answer.returncode == 0:
        return
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if os.strerror(number) in answer.stderr or _SIGNALS.get(number, "\0") in answer.stderr:
            raise OSError(number, os.strerror(number))
    raise KernelError(
        f"cudasim: {Path(command[0]).name} cannot compile a kernel\n{answer.stderr.strip()}"
    )


def _encoded(text: str) -> bytes:
    """As UTF-8; a path in it may have other bytes."""
    return text.encode("utf-8", "surrogateescape")


def _load(path: Path, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode)
    except OSError as error:
        raise DeviceError(
            f"device cudasim cannot load a compiled kernel ({error})\n"
            "  set XDG_CACHE_HOME to a folder on a disk that allows programs (no noexec)"
        ) from error


def explain(library: ctypes.CDLL, text: str) -> str:
    """Replace each <code 0x...> in `text`, an offset into `library`, by "at file:line" if known."""
    tool = shutil.which("addr2line")

    def line(match: re.Match[str]) -> str:
        # One byte back: the offset is the return address of the check.
        command = [str(tool), "-e", library._name, hex(int(match[1], 16) - 1)]
        answer = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        ).stdout.strip()
        place = re.sub(r" \(discriminator \d+\)", "", answer)
        return "" if place.startswith("?") else f" at {place.rpartition('/')[2]}"

    text = re.sub(r" <code (0x[0-9a-f]+)>", line if tool else "", text)
    return re.sub(r"(?s)\bat /.*?/([^/ ]+:\d+)", r"at \1", text)  # drop the folders
