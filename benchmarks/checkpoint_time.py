"""Time and memory of saving and loading a checkpoint, with and without checksums.

    python benchmarks/checkpoint_time.py [--folder DIR] [--rounds N]

Two checkpoints: alexnet_cifar10 with the state of SGD, and 1 GiB of random numbers.  Each round
saves and loads with gpucnn, with gpucnn without checksums, and with the library safetensors (of
the extra `test`; it does not wait for the disk).  A figure is the median over the rounds; GB/s are
of elapsed time, CPU is the time that this process computed.  Memory is the peak of resident memory
above that before the call; a loaded checkpoint itself is a part of it.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import load_file, save_file

from gpucnn import models, optim, tensor_file
from gpucnn.checkpoint import read_checkpoint, write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where to write (default: the folder for temporary files)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    options = parser.parse_args()

    numbers = np.random.default_rng(0).standard_normal(1 << 24, dtype=np.float32)
    _, computing, _ = timed(lambda: zlib.crc32(numbers))
    print(f"CRC-32: {numbers.nbytes / computing / 1e9:.2f} GB/s of CPU time\n")

    model = models.alexnet_cifar10()
    state = optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict()
    run = {f"model.{name}": array for name, array in model.state_dict().items()}
    run["optimizer.velocity"] = state["velocity"]
    large = {f"model.{i}": np.roll(numbers, i) for i in range(16)}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure("alexnet_cifar10 and SGD", run, Path(folder) / "file", options.rounds)
        measure("16 arrays of 64 MiB", large, Path(folder) / "file", options.rounds)


def measure(title: str, tensors: dict[str, Any], path: Path, rounds: int) -> None:
    size = sum(x.nbytes for x in tensors.values())
    print(f"{title}: {size / 1e6:.0f} MB")
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "gpucnn": (lambda: write_checkpoint(path, tensors, {}), lambda: read_checkpoint(path)),
        "without checksums": (
            without_checksums(lambda: write_checkpoint(path, tensors, {})),
            without_checksums(lambda: read_checkpoint(path)),
        ),
        "safetensors": (lambda: save_file(tensors, path), lambda: load_file(path)),
    }
    figures: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for name, actions in ways.items():
            for what, action in zip(("save", "load"), actions, strict=True):
                figures.setdefault((name, what), []).append(timed(action))
    for (name, what), rows in figures.items():
        seconds, computing, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"  {what} {name:<18} {seconds * 1e3:8.1f} ms  {size / seconds / 1e9:5.2f} GB/s"
            f"  CPU {computing * 1e3:7.1f} ms  memory {peak / 1e6:5.0f} MB"
        )


def timed(action: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds elapsed and of CPU time, and bytes of peak memory."""
    with peak_memory() as peak:
        started, computing = time.perf_counter(), time.process_time()
        result = action()
        computing, seconds = time.process_time() - computing, time.perf_counter() - started
    del result
    return seconds, computing, peak[0]


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """The growth of resident memory in the block, on Linux; 0 elsewhere."""
    peak = [0.0]
    status = Path("/proc/self/status")
    if not status.exists():
        yield peak
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _field(status, "VmRSS")
    yield peak
    peak[0] = _field(status, "VmHWM") - before


def _field(status: Path, name: str) -> float:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def without_checksums(action: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with mock.patch.object(tensor_file.zlib, "crc32", return_value=0):
            return action()

    return run


if __name__ == "__main__":
    main()
