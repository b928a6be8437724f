"""The kernels that a model trains with as files: source, PTX, cubin, and how to launch each.

    DIR/manifest.json            everything below, and every launch with its grid and arguments
    DIR/source/pool2d.cu         complete: NVRTC needs no other file
    DIR/sm_80/pool2d.ptx         made from it, for one architecture
    DIR/sm_80/pool2d.cubin       for cuModuleLoad

An entry of the manifest is one kernel; each of its `launches` has a `number`, which counts the
launches of the batch and the training step in their order, a `grid`, and the `arguments` in the
order of the kernel's parameters:

    {"name": "n", "kind": "number", "dtype": "int32", "value": 3}
    {"name": "window", "kind": "struct", "fields": {"n": 8, ...}}     int32 each, in this order
    {"name": "bias", "kind": "null"}                                  a null pointer
    {"name": "x", "kind": "array", "dtype": "float32", "shape": [8, 32, 32, 3],
     "const": true, "alignment": 256}

An array is contiguous, in C order, at an address that `alignment` divides.  It holds what launch
`from` wrote, if it has that key; one of integers that count or index something has `values`
otherwise; any other may hold any numbers.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, launches, nvrtc
from gpucnn.cuda import Launch
from gpucnn.errors import ArgumentError, DeviceError
from gpucnn.kernel_source import Kernel, Parameter, assemble
from gpucnn.launches import Specialisation

FORMAT = 1
PHASES = ("batch", "training")
_PARTIAL = ".partial"
_MOST_ALIGNMENT = 256  # what CUDA's own allocations are aligned to
_REGISTERS = 65536  # of a multiprocessor, on every architecture since sm_50
_OF_A_THREAD = 255  # at most


def export_kernels(
    model: str,
    architectures: list[int],
    target: str | Path,
    batch: int = 128,
    progress: Callable[[list[Any]], Any] = iter,
) -> dict[str, Any]:
    """Write the kernels that `model` trains with on `batch` images to folder `target`.

    architectures are compute capabilities times ten: 80 for sm_80.  progress wraps what is gone
    through, as tqdm does.  Returns the manifest, which is written last: a folder with a manifest
    is complete.

    Raises ArgumentError for an unknown model, a target that is not empty or cannot be written;
    DeviceError without NVRTC, or for an architecture that it does not know.
    """
    known = nvrtc.architectures()
    for architecture in architectures:
        if architecture not in known:
            raise DeviceError(
                f"NVRTC {nvrtc.version()} does not compile for sm_{architecture}\n"
                f"  it knows {', '.join(f'sm_{number}' for number in known)}"
            )
    with _complete_or_nothing(Path(target)) as folder:
        recorded = launches.of_model(model, batch, PHASES)
        work = [(s, a) for s in launches.specialisations(recorded) for a in architectures]
        binaries = {(s, a): _compile(s, a, folder) for s, a in progress(work)}
        manifest = {
            "format": FORMAT,
            "gpucnn": gpucnn.__version__,
            "model": model,
            "batch": batch,
            "nvrtc": nvrtc.version(),
            "architectures": architectures,
            "launches": {phase: len(recorded[phase]) for phase in PHASES},
            "entries": _entries(recorded, binaries, architectures),
        }
        text = json.dumps(manifest, indent=1)
        (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return manifest


@contextmanager
def _complete_or_nothing(target: Path) -> Iterator[Path]:
    """A folder inside target whose contents become target's; an error leaves target as it was."""
    made = not target.exists()
    names: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        folder = target / _PARTIAL
        if folder.exists():
            raise ArgumentError(
                f"{target} holds an export that was stopped, or is still at work\n"
                f"  remove {folder} if it was stopped"
            )
        if any(target.iterdir()):
            raise ArgumentError(
                f"{target} is not empty\n  name a folder that does not exist yet, or an empty one"
            )
        folder.mkdir()
    except OSError as error:
        raise ArgumentError(f"{target} cannot be written ({error.strerror})") from error
    try:
        yield folder
        names = sorted(path.name for path in folder.iterdir())
        for name in sorted(names, key="manifest.json".__eq__):  # the manifest last
            os.replace(folder / name, target / name)
        folder.rmdir()
    except BaseException as error:
        for name in [_PARTIAL, *names]:
            path = target / name
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        if made:
            target.rmdir()
        if isinstance(error, OSError):
            raise ArgumentError(f"{target} cannot be written ({error.strerror})") from error
        raise


# --- files ---


def _stem(specialisation: Specialisation) -> str:
    """What its files are called: pool2d, or pool2d-NAME=VALUE with a define."""
    file, defines = specialisation
    words = [file.removesuffix(".cu"), *(f"{name}={value}" for name, value in defines)]
    return "-".join(words).replace("/", "_")


def _options(specialisation: Specialisation) -> list[str]:
    """What CuPy compiles a launch's kernel with: its own -ftz=true is the last."""
    return [*cuda.options(specialisation[1]), "-ftz=true"]


def _compile(specialisation: Specialisation, architecture: int, folder: Path) -> nvrtc.Binary:
    """Writes source, PTX and cubin."""
    stem, source = _stem(specialisation), assemble(specialisation[0])
    binary = nvrtc.compile_source(source, specialisation[0], architecture, _options(specialisation))
    (folder / "source").mkdir(exist_ok=True)
    (folder / "source" / f"{stem}.cu").write_text(source, encoding="utf-8")
    made = folder / f"sm_{architecture}"
    made.mkdir(exist_ok=True)
    (made / f"{stem}.ptx").write_text(binary.ptx, encoding="utf-8")
    (made / f"{stem}.cubin").write_bytes(binary.cubin)
    return binary


# --- the manifest ---


def _entries(
    recorded: dict[str, list[Launch]],
    binaries: dict[tuple[Specialisation, int], nvrtc.Binary],
    architectures: list[int],
) -> list[dict[str, Any]]:
    """One for each kernel, specialisation, block and amount of dynamic shared memory."""
    entries: dict[Any, dict[str, Any]] = {}
    written = _Written()
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
                "register_budget": _register_budget(launch.kernel),
                "registers": {f"sm_{a}": usage[a].registers for a in architectures},
                "static_shared_bytes": {f"sm_{a}": usage[a].shared for a in architectures},
                "launches": [],
            }
        arguments = [
            _argument(parameter, value, written)
            for parameter, value in zip(launch.kernel.parameters, launch.values, strict=True)
        ]
        entries[key]["launches"].append(
            {"number": number, "phase": phase, "grid": list(launch.grid), "arguments": arguments}
        )
        written.add(number, launch)
    return list(entries.values())


def _register_budget(kernel: Kernel) -> int | None:
    """What __launch_bounds__ leaves a thread, handed out 8 by 8; None if it says no numbers."""
    threads, blocks = str(kernel.bound), str(kernel.blocks)
    if not (threads.isdecimal() and blocks.isdecimal()):
        return None
    return min(_REGISTERS // (int(threads) * int(blocks)) // 8 * 8, _OF_A_THREAD)


class _Written:
    """Which launch wrote the memory of an array last.  No memory is reused: launches keep it."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int, int]] = []  # first byte, the one after, launch

    def add(self, number: int, launch: Launch) -> None:
        for parameter, value in zip(launch.kernel.parameters, launch.values, strict=True):
            if parameter.pointer and not parameter.const and not isinstance(value, np.generic):
                begin = value.data.ptr
                self._spans.append((begin, begin + value.nbytes, number))

    def by(self, array: Any) -> int | None:
        begin, end = array.data.ptr, array.data.ptr + array.nbytes
        found = [number for first, after, number in self._spans if first < end and begin < after]
        return found[-1] if found else None


def _argument(parameter: Parameter, value: Any, written: _Written) -> dict[str, Any]:
    name = parameter.name
    if isinstance(value, np.ndarray):  # a record: what a struct by value is
        fields = {field: int(value[field]) for field in value.dtype.names or ()}
        return {"name": name, "kind": "struct", "fields": fields}
    if isinstance(value, np.generic):
        if parameter.pointer:
            return {"name": name, "kind": "null"}
        return {"name": name, "kind": "number", "dtype": str(value.dtype), "value": value.item()}
    address = value.data.ptr
    result = {
        "name": name,
        "kind": "array",
        "dtype": str(value.dtype),
        "shape": list(value.shape),
        "const": parameter.const,
        "alignment": min(address & -address, _MOST_ALIGNMENT),
    }
    source = written.by(value)
    if source is not None:
        result["from"] = source
    elif parameter.const and value.dtype in (np.int32, np.int64):
        result["values"] = value.tolist()
    return result
