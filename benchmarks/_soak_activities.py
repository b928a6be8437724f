"""What soak.py does in turn; each activity raises an error if something was lost.

An activity is called with a random generator and returns how often it did what its name says.
"""

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
from forked_runs import NEW, Runs, next_flags
from fuzzing.guided import guided, missing_atheris
from fuzzing.run import fuzz

import gpucnn
from gpucnn import cudasim, data, nn, ops, optim, train
from gpucnn.device import to_host
from gpucnn.errors import DeviceError

Activity = Callable[[Random], int]
SECONDS = 30  # of one turn at fuzzing
KILLS = 4  # signals to one run, at most
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Lost(Exception):
    """Something that must hold did not."""


@dataclass(frozen=True)
class Process:
    """What this process holds."""

    memory: int  # bytes, resident
    files: int
    threads: int
    shared: int  # folders of this process in /dev/shm

    @classmethod
    def now(cls) -> "Process":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")),
            threading.active_count(), len(list(Path("/dev/shm").glob(f"gpucnn-{os.getpid()}-*"))),
        )  # fmt: skip

    def leaks(self, before: "Process", growth: float) -> bool:
        return (
            self.memory > before.memory * (1 + growth)
            or self.files > before.files
            or self.threads > before.threads
            or self.shared > before.shared
        )

    def compared_with(self, now: "Process") -> str:
        return (
            f"memory {self.memory / 2**20:.0f} -> {now.memory / 2**20:.0f} MiB "
            f"({now.memory / self.memory - 1:+.1%}), open files {self.files} -> {now.files}, "
            f"threads {self.threads} -> {now.threads}, /dev/shm {self.shared} -> {now.shared}"
        )


# --- mutated files ---


def mutated_files(rng: Random) -> int:
    report = fuzz(rng.randrange(1 << 31), seconds=SECONDS)
    if report.findings:
        raise Lost("\n".join(report.found()))
    return report.total


def guided_files(rng: Random) -> int:
    return guided(rng, SECONDS)


# --- killed runs ---


class KilledRuns:
    """Small training runs, in processes forked by a server."""

    FLAGS = (*NEW, "--save-every", 1)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = Runs()
        (folder / "whole").mkdir()
        self.runs.run(folder / "whole", *self.FLAGS, "--out", "warm")
        started = time.monotonic()
        self.runs.run(folder / "whole", *self.FLAGS)
        self.seconds = time.monotonic() - started  # of an undisturbed run

    def __call__(self, rng: Random) -> int:
        """Ten runs: signal each at random moments, resume it to its end, compare the bits."""
        signals = 0
        for _ in range(10):
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                for _ in range(rng.randrange(1, KILLS + 1)):
                    pid = self.runs.start(Path(name), *next_flags(Path(name), self.FLAGS))
                    time.sleep(rng.uniform(0, self.seconds))
                    with suppress(ProcessLookupError):
                        os.kill(pid, rng.choice(SIGNALS))
                        signals += 1
                    self.runs.wait(pid)
                self._finish(Path(name))
        return signals

    def _finish(self, folder: Path) -> None:
        self.runs.finish(folder, self.folder / "whole", self.FLAGS)
        litter = [path.name for path in (folder / "run").iterdir() if path.suffix == ".part"]
        if litter:
            raise Lost(f"temporary files are left: {litter}")


# --- one long run ---


class LongRun:
    """A training run in this process that goes on for as long as the soak."""

    def __init__(self) -> None:
        training = data.Synthetic(n=256)
        change = data.Normalize(*data.channel_statistics(training.images))
        self.model = _network(Random(0))
        loader = data.DataLoader(training, 32, shuffle=True, transform=change, device="cpu")
        optimizer = optim.AdamW(self.model.parameters(), 1e-3)
        self.trainer = train.Trainer(self.model, optimizer, loader, loader, verbose=False)

    def __call__(self, rng: Random) -> int:
        gpucnn.set_num_threads(os.cpu_count() or 1)
        self.trainer.fit(10)
        self.trainer.history.clear()  # a row an epoch is growth by design
        return 10


# --- random networks ---


def _network(rng: Random) -> nn.Sequential:
    """A random network for 32 x 32 colour images and ten classes."""
    layers: list[nn.Module] = []
    channels, side = 3, 32
    generator = np.random.default_rng(rng.randrange(1 << 31))
    for _ in range(rng.choice((1, 2, 3))):
        out = rng.choice((4, 7, 16))
        kernel, stride = rng.choice((1, 3, 5)), rng.choice((1, 1, 2))
        layers.append(
            nn.Conv2d(channels, out, kernel, stride=stride, padding="same", generator=generator)
        )
        side, channels = -(-side // stride), out
        layers += rng.choice(([], [nn.BatchNorm2d(out)], [nn.LocalResponseNorm(3)]))
        layers += rng.choice(([], [nn.ReLU()], [nn.Tanh()]))
        if rng.randrange(2) and side > 4:
            layers.append(rng.choice((nn.MaxPool2d, nn.AvgPool2d))(2))
            side //= 2
        layers += rng.choice(([], [nn.Dropout(0.3, generator=generator)]))
    features = side * side * channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10, generator=generator))


def _step(seed: int, threads: int, device: str = "cpu", n: int = 37) -> list[np.ndarray]:
    """The loss, the gradients and the buffers after one step of a random network."""
    gpucnn.set_num_threads(threads)
    model = _network(Random(seed)).to(device)
    rng = np.random.default_rng(seed)
    images = gpucnn.tensor(rng.standard_normal((n, 32, 32, 3), dtype=np.float32), device=device)
    labels = gpucnn.tensor(rng.integers(0, 10, n), device=device)
    loss = ops.cross_entropy(model(images), labels)
    loss.backward()
    arrays = [loss.data, *(p.grad for p in model.parameters()), *model.state_dict().values()]
    return [to_host(array) for array in arrays]


def _same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def random_networks(rng: Random) -> int:
    """The same bits with any number of threads."""
    seeds = [rng.randrange(1 << 31) for _ in range(10)]
    for seed in seeds:
        expected = _step(seed, 1)
        for threads in rng.sample((2, 3, 5, 8), 2):
            if not _same(expected, _step(seed, threads)):
                raise Lost(f"network {seed} differs on {threads} threads")
    return len(seeds)


def simulated_kernels(rng: Random) -> int:
    """The same bits twice on the simulated GPU, and about those of the CPU."""
    seed = rng.randrange(1 << 31)
    one, other = (_step(seed, 2, "cudasim", 3) for _ in range(2))
    if not _same(one, other):
        raise Lost(f"network {seed} differs when it runs again on cudasim")
    if abs(float(one[0]) - float(_step(seed, 2, n=3)[0])) > 1e-3:
        raise Lost(f"network {seed} has another loss on cudasim")
    return 2


# --- loaders ---


class _Fails(Exception):
    """The error of a data set."""


class _Items:
    """Images of which some cannot be read."""

    classes = ("a", "b")

    def __init__(self, bad: set[int]) -> None:
        self.bad = bad

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if index in self.bad:
            raise _Fails(index)
        return np.full((8, 8, 3), index, np.uint8), index % 2


def failing_loaders(rng: Random) -> int:
    """Errors arrive where they belong; leaving early leaves no thread; epochs keep their order."""
    loops = 0
    before = threading.active_count()
    for _ in range(40):
        bad = {rng.randrange(64)} if rng.randrange(2) else set()
        seed, prefetch = rng.randrange(1 << 31), rng.choice((0, 1, 4))
        make = partial(data.DataLoader, batch_size=rng.choice((1, 5, 16)), shuffle=True, seed=seed)
        loader = make(_Items(bad), prefetch=prefetch, num_workers=rng.choice((1, 3)))
        plain = make(_Items(set()), prefetch=0)
        for _ in range(3):
            stop = rng.randrange(1, len(plain) + 1)
            expected = [images[:, 0, 0, 0] for images, _ in plain]
            seen, failed = 0, False
            try:
                for (images, _), right in zip(loader, expected, strict=False):
                    if not np.array_equal(images[:, 0, 0, 0], right):
                        raise Lost(f"loader {seed} yields another batch {seen}")
                    seen += 1
                    if seen == stop:
                        break
            except _Fails:
                failed = True
            first_bad = next((i for i, b in enumerate(expected) if bad & set(b.tolist())), stop)
            if failed != (first_bad < stop) or seen != min(first_bad, stop):
                raise Lost(f"loader {seed} saw {seen} batches; {first_bad=}, {stop=}")
            loops += 1
            if failed:
                break  # its epoch did not end
    end = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    if threading.active_count() > before:
        raise Lost(f"{threading.active_count() - before} threads of loaders are left")
    return loops


def _apart(act: Activity, rng: Random) -> int:
    """Let an activity act in a process of its own.

    Networks of random shapes leave free memory and scratch buffers of the largest one behind, which
    would hide the growth of this process.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(act, rng).result()


@contextmanager
def activities() -> Iterator[dict[str, Activity]]:
    """All of them, by name."""
    with tempfile.TemporaryDirectory(prefix="gpucnn-soak-") as folder:
        killed = KilledRuns(Path(folder))
        found: dict[str, Activity] = {
            "epochs of one long run": LongRun(),
            "mutated files": mutated_files,
            "signals to training runs": killed,
            "random networks on three numbers of threads": partial(_apart, random_networks),
            "loops over loaders that fail or are left early": failing_loaders,
        }
        if (reason := missing_atheris()) is None:
            found["mutated files, guided by Atheris"] = guided_files
        else:
            print(f"without Atheris: {reason}")
        try:
            cudasim.require_compiler()
            found["training steps on cudasim"] = partial(_apart, simulated_kernels)
        except DeviceError as error:
            print(f"without cudasim: {error}")
        try:
            yield found
        finally:
            killed.runs.close()
