"""Many cases, in worker processes: a crash ends a worker, not the run."""

import base64
import importlib
import json
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fuzzing.cases import Finding, Watch, mutated, verdict

TESTS = Path(__file__).parents[1]
STUCK = 40.0  # seconds without progress: a loop that no signal interrupts
START = 300.0  # seconds until the first case, on a busy machine
_DONE = np.dtype([("case", "<i8"), ("target", "<i4"), ("seconds", "<f4")])  # a case that was read


@dataclass
class Report:
    """What a run of the fuzzer did."""

    seed: int
    counts: dict[str, int] = field(default_factory=dict)  # files read, by target
    findings: list[tuple[int, Finding]] = field(default_factory=list)  # case and finding
    slowest: tuple[float, int] = (0.0, -1)  # seconds of one case, and which
    memory: int = 0  # bytes by which a worker grew at its peak

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def text(self) -> str:
        """For a terminal: the counts, and the findings with the commands that repeat them."""
        lines = [f"{count:8,}  {name}" for name, count in sorted(self.counts.items())]
        lines.append(
            f"{self.total:8,}  files in all, {len(self.findings)} findings; the slowest (case "
            f"{self.slowest[1]}) took {self.slowest[0]:.2f} s; memory grew by at most "
            f"{self.memory / 2**20:.0f} MiB"
        )
        return "\n".join([*lines, *self.found()])

    def found(self) -> list[str]:
        """The findings, with the commands that repeat them; alike ones once."""
        lines = []
        alike: dict[tuple[str, str], list[tuple[int, Finding]]] = {}
        for case, finding in self.findings:
            alike.setdefault((finding.target, finding.what[:40]), []).append((case, finding))
        for found in alike.values():
            case, finding = found[0]
            lines.append(f"\n{finding.target}: {finding.what}")
            if len(found) > 1:
                lines.append(f"  and {len(found) - 1} like it")
            lines.append(f"  again: python -m fuzzing --seed {self.seed} --case {case}")
            if len(finding.content) <= 3000:
                lines.append(f"  base64: {base64.b64encode(finding.content).decode()}")
        return lines


def fuzz(
    seed: int,
    cases: int | None = None,
    seconds: float | None = None,
    workers: int = 2,
    targets: str = "fuzzing.targets",
    limit: float = 10,
) -> Report:
    """Read `cases` mutated files, or as many as fit into `seconds`.

    targets is the module with the list TARGETS; limit the seconds that a reader may take.
    """
    report = Report(seed)
    deadline = None if seconds is None else time.monotonic() + seconds
    with memory_folder() as folder:
        running = [
            _Worker(Path(folder), seed, i, workers, cases, deadline, targets, limit)
            for i in range(workers)
        ]
        try:
            while any(worker.process is not None for worker in running):
                time.sleep(0.02)
                for worker in running:
                    worker.watch(report)
        finally:
            for worker in running:
                worker.stop()
                worker.collect(report)
    report.findings.sort(key=lambda found: found[0])
    return report


def memory_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, in memory where there is such a disk; its name holds the process id."""
    disk = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.TemporaryDirectory(prefix=f"gpucnn-{os.getpid()}-", dir=disk)


class _Worker:
    """A process that reads the cases first, first + step, ..., and the files it writes."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        first: int,
        step: int,
        end: int | None,
        deadline: float | None,
        targets: str,
        limit: float,
    ) -> None:
        self.folder = folder / str(first)
        self.folder.mkdir()
        self.seed, self.step, self.end, self.deadline = seed, step, end, deadline
        self.targets, self.limit = targets, limit
        self.at = -1  # the case in hand
        self.since = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.start(first)

    def start(self, first: int) -> None:
        left = None if self.deadline is None else self.deadline - time.monotonic()
        if left is not None and left <= 0:
            self.process = None
            return
        arguments = [self.seed, first, self.step, self.end, left, self.targets, self.limit]
        self.at, self.since = -1, time.monotonic()
        (self.folder / "case").unlink(missing_ok=True)  # of a process that crashed
        with (self.folder / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", "from fuzzing.run import work; work()",
                 str(self.folder), json.dumps(arguments)],
                env={**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
                stderr=errors,
            )  # fmt: skip

    def watch(self, report: Report) -> None:
        """Notice a case in hand for too long, and the worker's end."""
        if self.process is None:
            return
        at = _position(self.folder)
        if at != self.at:
            self.at, self.since = at, time.monotonic()
        status = self.process.poll()
        patience = START if at < 0 else STUCK + self.limit
        if status is None and time.monotonic() - self.since > patience:
            self.process.kill()
            self.process.wait()
            self._lost(report, f"no answer for {patience:.0f} s")
        elif status == 0:
            self.process = None
        elif status is not None:
            self._lost(report, f"ended the process with status {status}: {self._errors()}")

    def _errors(self) -> str:
        return (self.folder / "errors").read_text(errors="replace").strip()[-500:]

    def _lost(self, report: Report, what: str) -> None:
        if self.at < 0:
            raise RuntimeError(f"a fuzzing worker did not start: {what}")
        target, content = mutated(targets_of(self.targets), self.seed, self.at)
        report.findings.append((self.at, Finding(target.name, what, content)))
        report.counts[target.name] = report.counts.get(target.name, 0) + 1
        self.start(self.at + self.step)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def collect(self, report: Report) -> None:
        """Add what this worker's processes wrote down."""
        names = [target.name for target in targets_of(self.targets)]
        for path in self.folder.glob("done-*"):
            done = np.fromfile(path, _DONE)
            for index, count in zip(*np.unique(done["target"], return_counts=True), strict=True):
                name = names[index]
                report.counts[name] = report.counts.get(name, 0) + int(count)
            if len(done):
                worst = done[done["seconds"].argmax()]
                report.slowest = max(report.slowest, (float(worst["seconds"]), int(worst["case"])))
        for path in self.folder.glob("findings-*"):
            for line in path.read_text().splitlines():
                case, name, what, content = json.loads(line)
                report.findings.append((case, Finding(name, what, base64.b64decode(content))))
        for path in self.folder.glob("memory-*"):
            report.memory = max(report.memory, int(path.read_text() or 0))


def search_path() -> str:
    """PYTHONPATH of a process that imports this package."""
    return os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def targets_of(module: str) -> list:
    return importlib.import_module(module).TARGETS


def _position(folder: Path) -> int:
    try:
        return struct.unpack("<q", (folder / "case").read_bytes())[0]
    except (OSError, struct.error):
        return -1


def work() -> None:
    """A worker's life: read cases, note the one in hand, and write down what happened."""
    folder = Path(sys.argv[1])
    seed, case, step, end, seconds, module, limit = json.loads(sys.argv[2])
    deadline = None if seconds is None else time.monotonic() + seconds
    warnings.simplefilter("ignore")
    targets = targets_of(module)
    places = [folder / f"target-{i}-{os.getpid()}" for i in range(len(targets))]
    for target, place in zip(targets, places, strict=True):
        target.prepare(place)
        len(target.corpus)  # build it now
    watch = Watch()
    index = {target.name: i for i, target in enumerate(targets)}
    before = _peak()
    in_hand = os.open(folder / "case", os.O_WRONLY | os.O_CREAT)
    with (
        (folder / f"done-{os.getpid()}").open("wb", buffering=0) as done,
        (folder / f"findings-{os.getpid()}").open("w", buffering=1) as findings,
    ):
        while (end is None or case < end) and (deadline is None or time.monotonic() < deadline):
            os.pwrite(in_hand, struct.pack("<q", case), 0)
            target, content = mutated(targets, seed, case)
            i, started = index[target.name], time.monotonic()
            what = verdict(target, places[i], content, watch, limit)
            done.write(struct.pack("<qif", case, i, time.monotonic() - started))
            if what:
                entry = [case, target.name, what, base64.b64encode(content).decode()]
                findings.write(json.dumps(entry) + "\n")
            case += step
    (folder / f"memory-{os.getpid()}").write_text(str(_peak() - before))


def _peak() -> int:
    """The most memory that this process has used, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def again(seed: int, case: int, targets: str = "fuzzing.targets") -> str:
    """Read one case in this process; returns what is wrong with it, "" for nothing."""
    warnings.simplefilter("ignore")
    target, content = mutated(targets_of(targets), seed, case)
    print(f"{target.name}: {len(content)} bytes\n{base64.b64encode(content).decode()}")
    with tempfile.TemporaryDirectory() as folder:
        target.prepare(Path(folder))
        return verdict(target, Path(folder), content, Watch())
