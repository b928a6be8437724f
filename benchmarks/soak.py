"""Everything that goes wrong, again and again, until the time is up.

    python benchmarks/soak.py --hours 1

The activities take turns: mutated files, killed training runs, one long training run, random
networks on changing numbers of threads, loaders that fail, kernels on the simulated GPU.  Each
checks what must hold: no exception but gpucnn's own, the same bits, no growth.  Prints a line a
minute and a table at the end, or at Ctrl-C.  The exit status is 1 if anything was lost.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = map(str, (Path(__file__).resolve().parent, TESTS, TESTS / "reliability"))

from _soak_activities import Process, activities  # noqa: E402  needs the path above

GROWTH = 0.10  # of the memory of this process over the soak: more is a loss


@dataclass
class Row:
    """What one activity did."""

    times: int = 0
    losses: list[str] = field(default_factory=list)
    longest: float = 0.0  # seconds of one turn


class Soak:
    """The rows, and the process before and after."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, Row] = {}
        self.first: Process | None = None  # after every activity has had two turns

    def turn(self, name: str, act: Callable[[Random], int], number: int) -> None:
        """Let an activity act once; what it raises is a loss."""
        row = self.rows.setdefault(name, Row())
        started = time.monotonic()
        try:
            row.times += act(Random(f"{self.seed}/{name}/{number}"))
        except Exception as error:
            row.times += 1
            row.losses.append(f"turn {number}: {type(error).__name__}: {error}")
            print(f"LOST {name}, {row.losses[-1]}", flush=True)
        row.longest = max(row.longest, time.monotonic() - started)

    def grown(self) -> str:
        """How this process changed since the first measurement."""
        if self.first is None:
            return "too short for a measurement of growth"
        return self.first.compared_with(Process.now())

    def check_growth(self) -> None:
        """Count growth as a loss."""
        if self.first is None:
            return
        row, now = self.rows.setdefault("measurements of this process", Row()), Process.now()
        row.times += 1
        if now.leaks(self.first, GROWTH):
            row.losses.append(self.first.compared_with(now))
            print(f"LOST {row.losses[-1]}", flush=True)

    @property
    def lost(self) -> int:
        return sum(len(row.losses) for row in self.rows.values())

    def line(self, minutes: float) -> str:
        done = ", ".join(f"{row.times:,} {name}" for name, row in self.rows.items())
        return f"{minutes:5.1f} min  {self.lost} lost; {done}; {self.grown()}"

    def table(self) -> str:
        lines = ["| what | times | lost | longest turn |", "|---|---|---|---|"]
        for name, row in self.rows.items():
            lines.append(f"| {name} | {row.times:,} | {len(row.losses)} | {row.longest:.1f} s |")
        lines += ["", self.grown()]
        lines += [f"LOST {name}, {loss}" for name, row in self.rows.items() for loss in row.losses]
        return "\n".join(lines)


def soak(hours: float, seed: int) -> Soak:
    """Let the activities take turns for so long."""
    state = Soak(seed)
    started = said = time.monotonic()
    number = 0
    try:
        with activities() as all_of_them:
            while time.monotonic() - started < hours * 3600:
                for name, act in all_of_them.items():
                    state.turn(name, act, number)
                    if time.monotonic() - said > 60:
                        said = time.monotonic()
                        print(state.line((said - started) / 60), flush=True)
                    if time.monotonic() - started > hours * 3600:
                        break
                number += 1
                if number == 2:
                    state.first = Process.now()
                elif number > 2:
                    state.check_growth()
    except KeyboardInterrupt:
        print("stopped by Ctrl-C")
    return state


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Provoke faults until the time is up.")
    parser.add_argument("--hours", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--seed", type=int, help="(default: a random one, which is printed)")
    arguments = parser.parse_args(argv)
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, process {os.getpid()}", flush=True)
    state = soak(arguments.hours, seed)
    print(state.table())
    return 1 if state.lost else 0


if __name__ == "__main__":
    sys.exit(main())
