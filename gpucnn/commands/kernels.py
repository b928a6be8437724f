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
     "const": true, "buffer": 2, "offset": 0}

An array is contiguous, in C order, and starts `offset` bytes after the beginning of a buffer;
`buffers` has the size of each in bytes, and each begins at a multiple of 256.  An array holds what
the launches before it left in its buffer.  Where they wrote nothing, one of int32 or int64 has
`values`; any other may hold any numbers: parameters, images, results of matrix products.
"""

import argparse
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
from gpucnn.commands.arguments import Commands, add_model, model_and_batch, progress_bar
from gpucnn.commands.launches import Specialisation
from gpucnn.cuda import Launch, nvrtc
from gpucnn.cuda.declarations import Kernel, Parameter, assemble, callers
from gpucnn.errors import ArgumentError, DeviceError

FORMAT = 1
PHASES = ("batch", "training")
_PARTIAL = ".partial"
_ALIGNMENT = 256  # of a buffer: what CUDA's own allocations are aligned to
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
    return [*cuda.options(specialisation[1]), *nvrtc.CUPY_OPTIONS]


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
    buffers: "_Buffers",
) -> list[dict[str, Any]]:
    """One for each kernel, specialisation, block and amount of dynamic shared memory."""
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
                "register_budget": _register_budget(launch.kernel),
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
        buffers.written_by(launch)
    return list(entries.values())


def _register_budget(kernel: Kernel) -> int | None:
    """What __launch_bounds__ leaves a thread, handed out 8 by 8; None if it says no numbers."""
    threads, blocks = str(kernel.bound), str(kernel.blocks)
    if not (threads.isdecimal() and blocks.isdecimal()):
        return None
    return min(_REGISTERS // (int(threads) * int(blocks)) // 8 * 8, _OF_A_THREAD)


class _Buffers:
    """The memory behind the arrays of launches: arrays that overlap lie in one buffer.

    No memory is used twice: a recorded launch keeps its arrays.
    """

    def __init__(self, recorded: dict[str, list[Launch]]) -> None:
        arrays = [a for phase in PHASES for launch in recorded[phase] for _, a in _arrays(launch)]
        self.spans: list[tuple[int, int]] = []  # addresses: the first, and the one after the last
        for begin, end in sorted((a.data.ptr, a.data.ptr + a.nbytes) for a in arrays):
            if self.spans and begin < self.spans[-1][1]:
                first, last = self.spans.pop()
                self.spans.append((first, max(last, end)))
            else:
                self.spans.append((begin - begin % _ALIGNMENT, end))
        self._written: set[int] = set()

    def place(self, array: Any) -> tuple[int, int]:
        """Which buffer it lies in, and how many bytes after its beginning."""
        number = bisect.bisect_right([begin for begin, _ in self.spans], array.data.ptr) - 1
        return number, array.data.ptr - self.spans[number][0]

    def written_by(self, launch: Launch) -> None:
        self._written |= {self.place(a)[0] for p, a in _arrays(launch) if not p.const}

    def is_written(self, array: Any) -> bool:
        """Whether a launch that was given to `written_by` wrote to its buffer."""
        return self.place(array)[0] in self._written


def _arrays(launch: Launch) -> list[tuple[Parameter, Any]]:
    """The arrays among a launch's arguments, with their parameters; null pointers are none."""
    pairs = zip(launch.kernel.parameters, launch.values, strict=True)
    return [(p, value) for p, value in pairs if p.pointer and not isinstance(value, np.generic)]


def _argument(parameter: Parameter, value: Any, buffers: _Buffers) -> dict[str, Any]:
    name = parameter.name
    if isinstance(value, np.ndarray):  # a struct by value
        return {"name": name, "kind": "struct", "fields": cuda.struct_values(value)}
    if isinstance(value, np.generic):
        if parameter.pointer:
            return {"name": name, "kind": "null"}
        return {"name": name, "kind": "number", "dtype": str(value.dtype), "value": value.item()}
    buffer, offset = buffers.place(value)
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


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "kernels",
        help="every CUDA kernel, where it is and who calls it",
        description="A table of the CUDA kernels: name, file and line, and who launches it.  With "
        "--export, those that a model trains with as files: source, PTX, cubin, and a manifest "
        "with every launch.  It needs NVRTC and no GPU.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--export", metavar="DIR", help="write them to DIR, new or empty")
    parser.add_argument(
        "--arch",
        type=_architecture,
        nargs="+",
        metavar="N",
        help="for --export: compute capabilities times ten, such as 80 90 (default: 80)",
    )
    add_model(parser, "for --export: ")


def _architecture(text: str) -> int:
    return int(text.removeprefix("sm_"))


def run(arguments: argparse.Namespace) -> int:
    if arguments.export is not None:
        return _export_kernels(arguments)
    if (arguments.arch, arguments.model, arguments.batch) != (None, None, None):
        raise ArgumentError("kernels: --arch, --model and --batch go with --export DIR")
    rows = [
        (name, f"kernels/{kernel.file}:{kernel.line}", ", ".join(callers(name)))
        for name, kernel in cuda.kernels().items()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, place, who in rows:
        print(f"{name:<{widths[0]}}  {place:<{widths[1]}}  {who}")
    return 0


def _export_kernels(arguments: argparse.Namespace) -> int:
    model, batch = model_and_batch(arguments)
    architectures = list(dict.fromkeys(arguments.arch or [80]))
    manifest = export_kernels(model, architectures, arguments.export, batch, progress_bar)
    names = ", ".join(f"sm_{number}" for number in architectures)
    counts = ", ".join(f"{phase}: {count}" for phase, count in manifest["launches"].items())
    print(
        f"{arguments.export}: {len(manifest['entries'])} kernels of {model} for {names}, "
        f"batch {batch} (launches: {counts})"
    )
    return 0
