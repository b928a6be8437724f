"""Compiling ahead: what a model will launch, made before its first step asks for it.

CuPy and the simulator keep what they compiled in a folder of the user's; a specialisation that
puts no new file there was in it already.
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

Timed = list[tuple[str, float]]  # what was made, in how many seconds

_T = TypeVar("_T")

_IN_MEMORY = "CUPY_CACHE_IN_MEMORY"
_REST = "CuPy's own kernels"


def warm_up(
    model: str, device: str, batch: int = 128, progress: Callable[[list[Any]], Any] = iter
) -> tuple[Timed, Timed]:
    """Compile what training and inference of `model` launch on `device` with `batch` images.

    Returns what was compiled, and what was found compiled.  progress wraps what is gone through, as
    tqdm does.  On cuda one batch, step and inference come first, without our kernels: that finds
    out what to compile, and makes CuPy compile kernels of its own for sums and the like.

    Raises DeviceError for a device that cannot be used, ArgumentError for the CPU, for an unknown
    model, or if CuPy is told to keep nothing.
    """
    place = Device.parse(device)
    if place.kind == "cpu":
        raise ArgumentError(f"warmup: device {device} compiles nothing; expected cuda or cudasim")
    folder = _folder(place)
    compiled: Timed = []
    cached: Timed = []

    def timed(name: str, job: Callable[[], _T]) -> _T:
        before, start = _files(folder), time.perf_counter()
        result = job()
        seconds = time.perf_counter() - start
        (compiled if _files(folder) - before else cached).append((name, seconds))
        return result

    record = partial(launches.of_model, model, batch, device=place)
    if place.kind == "cuda":
        with cuda.compiling(place, _REST):
            found = timed(_REST, record)
    else:
        found = record()
    for specialisation in progress(launches.specialisations(found)):
        timed(_name(*specialisation), partial(cuda.compile_file, place, *specialisation))
    return compiled, cached


def _name(file: str, defines: tuple[tuple[str, Any], ...]) -> str:
    return " ".join([file, *(f"{name}={value}" for name, value in defines)])


def _folder(device: Device) -> Path:
    """Where what is compiled for `device` is kept."""
    if device.kind == "cudasim":
        from gpucnn.cudasim import compiler  # not for cuda: on Windows there is no simulator

        return compiler.cache_folder()
    if os.environ.get(_IN_MEMORY, "0") not in ("", "0"):
        raise ArgumentError(
            f"warmup: {_IN_MEMORY} is set, so CuPy would forget what is compiled here\n  unset it"
        )
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def _files(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser(
        "warmup",
        help="compile a model's kernels ahead",
        description="Compile what training and inference of a model launch, and keep it on disk, "
        "so that the first step need not wait.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cudasim (default: cuda)")
    add_model(parser)


def run(arguments: argparse.Namespace) -> int:
    model, batch = model_and_batch(arguments)
    compiled, cached = warm_up(model, arguments.device, batch, progress_bar)
    for word, found in (("compiled", compiled), ("cached", cached)):
        for file, seconds in found:
            print(f"{word:<8}  {file:<28}  {seconds:6.2f} s")
    print(f"{model} on {arguments.device}: {len(compiled)} compiled, {len(cached)} were cached")
    return 0
