"""Write the kernels that a model trains with as files, for `gpucnn kernels --export`.

    DIR/manifest.json            lists the other files, and every launch with grid and arguments
    DIR/source/pool2d.cu         with its headers inlined: NVRTC needs no other file
    DIR/sm_80/pool2d.ptx         the same, compiled for one architecture
    DIR/sm_80/pool2d.cubin       for cuModuleLoad

A file that is compiled with defines has them in its names: gemm-ELEMENT=float-....cu.

Each entry of the manifest is one kernel.  Each of its `launches` has a `number`, which counts the
launches of the batch and the training step in order, a `grid`, and `arguments` in the order of the
kernel's parameters:

    {"name": "n", "kind": "number", "dtype": "int32", "value": 3}
    {"name": "g", "kind": "struct", "fields": {"n": 8, ...}}          int32 each, in this order
    {"name": "bias", "kind": "null"}                                  a null pointer
    {"name": "x", "kind": "array", "dtype": "float32", "shape": [8, 32, 32, 3],
     "const": true, "buffer": 2, "offset": 0}

An array is C-contiguous and starts `offset` bytes into a buffer.  `buffers` lists the size of each
buffer in bytes; each is aligned to 256 bytes.  An array contains what earlier launches wrote to its
buffer.  If none did, an int32 or int64 array has its `values`.  Arrays of uint32 and uint64 are
counters and start as zeros.  Others (parameters, images) may contain any numbers.
"""

import bisect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda
from gpucnn.commands import launches
from gpucnn.commands.launches import Specialisation
from gpucnn.cuda import Launch, nvrtc
from gpucnn.cuda.declarations import Kernel, Parameter, assemble
from gpucnn.errors import ArgumentError, DeviceError

FORMAT = 1
PHASES = ("batch", "training")
_PARTIAL = ".partial"
_ALIGNMENT = 256  # bytes, as cudaMalloc aligns
_REGISTERS = 65536  # per multiprocessor, on every architecture since sm_50
_REGISTERS_PER_THREAD = 255  # the architectural limit


def export_kernels(
    model: str,
    architectures: list[int],
    target: str | Path,
    batch: int = 128,
    progress: Callable[[list[Any]], Any] = iter,
) -> dict[str, Any]:
    """Write the kernels that `model` trains with on `batch` images to folder `target`.

    architectures are compute capabilities times ten: 80 for sm_80.  progress wraps the list of
    compilations, as tqdm does.  Returns the manifest.  The manifest is written last: a folder that
    has one is complete.

    Raises ArgumentError for an unknown model, or a target that is not empty or cannot be written;
    DeviceError without NVRTC, or for an architecture that NVRTC does not support.
    """
    known = nvrtc.architectures()
    for architecture in architectures:
        if architecture not in known:
            raise DeviceError(
                f"NVRTC {nvrtc.version()} does not compile for sm_{architecture}\n"
                f"  it supports {', '.join(f'sm_{number}' for number in known)}"
            )
    with _complete_or_nothing(Path(target)) as folder:
        recorded = launches.of_model(model, batch, PHASES)
        pairs = [(s, a) for s in launches.specialisations(recorded) for a in architectures]
        binaries = {(s, a): _compile(s, a, folder) for s, a in progress(pairs)}
        buffers = _Buffers(recorded)
        manifest = {
            "format": FORMAT,
            "gpucnn": gpucnn.__version__,
            "model": model,
            "batch": batch,
            "nvrtc": nvrtc.version(),
            "architectures": architectures,
            "launches": {phase: len(recorded[phase]) for phase in PHASES},
            "buffers": [end - begin for begin, end in buffers.spans],
            "entries": _entries(recorded, binaries, architectures, buffers),
        }
        text = json.dumps(manifest, indent=1)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return manifest


@contextmanager
def _complete_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a folder whose contents move to target on success; an error restores target."""
    created = not target.exists()
    names: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        folder = target / _PARTIAL
        if folder.exists():
            raise ArgumentError(
                f"{target} contains an export that was stopped or is still running\n"
                f"  remove {folder} if it was stopped"
            )
        if any(target.iterdir()):
            raise ArgumentError(f"{target} is not empty\n  name a new or an empty folder")
        folder.mkdir()
    except OSError as error:
        raise ArgumentError(f"{target} cannot be written ({error.strerror})") from error
    try:
        yield folder
        names = sorted(path.name for path in folder.iterdir())
        for name in sorted(names, key="manifest.json".__eq__):  # the manifest comes last
            os.replace(folder / name, target / name)
        folder.rmdir()
    except BaseException as error:
        for name in [_PARTIAL, *names]:
            path = target / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        if created:
            target.rmdir()
        if isinstance(error, OSError):
            raise ArgumentError(f"{target} cannot be written ({error.strerror})") from error
        raise


# --- files ---


def _stem(specialisation: Specialisation) -> str:
    """The file name without extension: pool2d, or pool2d-NAME=VALUE with a define."""
    file, defines = specialisation
    name = launches.specialisation_name((file.removesuffix(".cu"), defines), "-")
    return name.replace("/", "_")


def _options(specialisation: Specialisation) -> list[str]:
    return [*cuda.options(specialisation[1]), *nvrtc.CUPY_OPTIONS]


def _compile(specialisation: Specialisation, architecture: int, folder: Path) -> nvrtc.Binary:
    """Write source, PTX and cubin."""
    stem, source = _stem(specialisation), assemble(specialisation[0])
    binary = nvrtc.compile_source(source, specialisation[0], architecture, _options(specialisation))
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / f"{stem}.cu").write_text(source, encoding="utf-8")
    binaries = folder / f"sm_{architecture}"
    binaries.mkdir(exist_ok=True)
    (binaries / f"{stem}.ptx").write_text(binary.ptx, encoding="utf-8")
    (binaries / f"{stem}.cubin").write_bytes(binary.cubin)
    return binary


# --- the manifest ---


def _entries(
    recorded: dict[str, list[Launch]],
    binaries: dict[tuple[Specialisation, int], nvrtc.Binary],
    architectures: list[int],
    buffers: "_Buffers",
) -> list[dict[str, Any]]:
    """One entry per kernel, specialisation, block and size of dynamic shared memory."""
    entries: dict[Any, dict[str, Any]] = {}
    numbered = enumerate((phase, launch) for phase in PHASES for launch in recorded[phase])
    for number, (phase, launch) in numbered:
        specialisation = launch.kernel.file, launch.defines
        key = launch.kernel.name, specialisation, launch.block, launch.shared
        if key not in entries:
            usage = {
                a: binaries[specialisation, a].usage[launch.kernel.name] for a in architectures
            }
            stem = _stem(specialisation)
            entries[key] = {
                "name": launch.kernel.name,
                "source": f"source/{stem}.cu",
                "options": _options(specialisation),
                "ptx": {f"sm_{a}": f"sm_{a}/{stem}.ptx" for a in architectures},
                "cubin": {f"sm_{a}": f"sm_{a}/{stem}.cubin" for a in architectures},
                "block": list(launch.block),
                "dynamic_shared_bytes": launch.shared,
                "register_budget": register_budget(launch.kernel),
                "registers": {f"sm_{a}": usage[a].registers for a in architectures},
                "static_shared_bytes": {f"sm_{a}": usage[a].shared for a in architectures},
                "launches": [],
            }
        arguments = [
            _argument(parameter, value, buffers)
            for parameter, value in zip(launch.kernel.parameters, launch.values, strict=True)
        ]
        entries[key]["launches"].append(
            {"number": number, "phase": phase, "grid": list(launch.grid), "arguments": arguments}
        )
        buffers.mark_written(launch)
    return list(entries.values())


def register_budget(kernel: Kernel) -> int | None:
    """Registers per thread that __launch_bounds__ leaves; None unless both bounds are numbers.

    The hardware allocates registers in steps of 8.
    """
    threads, blocks = str(kernel.bound), str(kernel.blocks)
    if not (threads.isdecimal() and blocks.isdecimal()):
        return None
    return min(_REGISTERS // (int(threads) * int(blocks)) // 8 * 8, _REGISTERS_PER_THREAD)


class _Buffers:
    """The memory behind the arrays of recorded launches: overlapping arrays share a buffer.

    Addresses are unambiguous: a recorded launch keeps its arrays alive, so none is reused.
    """

    def __init__(self, recorded: dict[str, list[Launch]]) -> None:
        arrays = [a for phase in PHASES for launch in recorded[phase] for _, a in _arrays(launch)]
        self.spans: list[tuple[int, int]] = []  # [begin, end) addresses, sorted
        for begin, end in sorted((a.data.ptr, a.data.ptr + a.nbytes) for a in arrays):
            if self.spans and begin < self.spans[-1][1]:
                first, last = self.spans.pop()
                self.spans.append((first, max(last, end)))
            else:
                self.spans.append((begin - begin % _ALIGNMENT, end))
        self._written: set[int] = set()

    def locate(self, array: Any) -> tuple[int, int]:
        """The index of the array's buffer, and its offset there in bytes."""
        index = bisect.bisect_right([begin for begin, _ in self.spans], array.data.ptr) - 1
        return index, array.data.ptr - self.spans[index][0]

    def mark_written(self, launch: Launch) -> None:
        """Record that `launch` writes to the buffers of its non-const arrays."""
        self._written |= {self.locate(a)[0] for p, a in _arrays(launch) if not p.const}

    def is_written(self, array: Any) -> bool:
        """Whether a launch passed to `mark_written` writes to the array's buffer."""
        return self.locate(array)[0] in self._written


def _arrays(launch: Launch) -> list[tuple[Parameter, Any]]:
    """The arrays among a launch's arguments, with their parameters; no null pointers."""
    pairs = zip(launch.kernel.parameters, launch.values, strict=True)
    return [(p, value) for p, value in pairs if p.pointer and not isinstance(value, np.generic)]


def _argument(parameter: Parameter, value: Any, buffers: _Buffers) -> dict[str, Any]:
    name = parameter.name
    if isinstance(value, np.ndarray):  # a struct, passed by value
        return {"name": name, "kind": "struct", "fields": cuda.struct_values(value)}
    if isinstance(value, np.generic):
        if parameter.pointer:
            return {"name": name, "kind": "null"}
        return {"name": name, "kind": "number", "dtype": str(value.dtype), "value": value.item()}
    buffer, offset = buffers.locate(value)
    result = {
        "name": name,
        "kind": "array",
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "const": parameter.const,
        "buffer": buffer,
        "offset": offset,
    }
    if parameter.const and value.dtype in (np.int32, np.int64) and not buffers.is_written(value):
        result["values"] = value.tolist()
    return result
