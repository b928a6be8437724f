"""`gpucnn warmup`: compile the kernels of a model before its first step needs them.

CuPy and the simulator cache compiled kernels in a folder.  A specialisation (a file and its
defines) counts as compiled if it adds a file to that folder, else as cached.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gpucnn import cuda
from gpucnn.commands import launches
from gpucnn.commands.arguments import Commands, add_model, model_and_batch, progress_bar
from gpucnn.device import Device
from gpucnn.errors import ArgumentError

Timed = list[tuple[str, float]]  # names and seconds

_T = TypeVar("_T")

_IN_MEMORY = "CUPY_CACHE_IN_MEMORY"
_CUPY_KERNELS = "CuPy's own kernels"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "warmup",
        help="compile a model's kernels ahead of time",
        description="Compile the kernels that training and inference of a model launch, and cache "
        "them on disk, so that the first step does not wait for the compiler.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    model, batch = model_and_batch(arguments)
    compiled, cached = warm_up(model, arguments.device, batch, progress_bar)
    for word, entries in (("compiled", compiled), ("cached", cached)):
        for name, seconds in entries:
            print(f"{word:<8}  {name:<28}  {seconds:6.2f} s")
    print(f"{model} on {arguments.device}: {len(compiled)} compiled, {len(cached)} cached")
    return 0


def warm_up(
    model: str, device: str, batch: int = 128, progress: Callable[[list[Any]], Any] = iter
) -> tuple[Timed, Timed]:
    """Compile what training and inference of `model` launch on `device` with `batch` images.

    Returns two lists of (name, seconds): what was compiled, and what was already cached.  progress
    wraps the list of files to compile, as tqdm does.  On cuda, recording the launches also makes
    CuPy compile its own kernels, for sums and the like; they are the first entry.

    Raises DeviceError for a device that cannot be used; ArgumentError for the CPU, for an unknown
    model, or if CuPy caches in memory only.
    """
    target = Device.parse(device)
    if target.kind == "cpu":
        raise ArgumentError(f"warmup: device {device} runs no kernels; expected cuda or cudasim")
    folder = _cache_folder(target)
    compiled: Timed = []
    cached: Timed = []

    def timed(name: str, job: Callable[[], _T]) -> _T:
        before, start = _files(folder), time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        (compiled if _files(folder) - before else cached).append((name, seconds))
        return result

    record = partial(launches.of_model, model, batch, device=target)
    if target.kind == "cuda":
        with cuda.compiling(target, _CUPY_KERNELS):
            recorded = timed(_CUPY_KERNELS, record)
    else:
        recorded = record()
    for specialisation in progress(launches.specialisations(recorded)):
        name = launches.specialisation_name(specialisation)
        timed(name, partial(cuda.compile_file, target, *specialisation))
    return compiled, cached


def _cache_folder(device: Device) -> Path:
    """The folder that caches the kernels compiled for `device`."""
    if device.kind == "cudasim":
        from gpucnn.cudasim import cache  # Windows has CUDA but no simulator

        return cache.cache_folder()
    if os.environ.get(_IN_MEMORY, "0") not in ("", "0"):
        raise ArgumentError(
            f"warmup: {_IN_MEMORY} is set, so CuPy does not keep compiled kernels\n  unset it"
        )
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def _files(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
