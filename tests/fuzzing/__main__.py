"""python -m fuzzing: see the package."""

import argparse
import secrets
import sys

from fuzzing.run import again, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description="Fuzz gpucnn's readers.")
    parser.add_argument("--seed", type=int, help="(default: a random one, which is printed)")
    parser.add_argument("--seconds", type=float, help="how long (default: 60)")
    parser.add_argument("--cases", type=int, help="how many files, instead of how long")
    parser.add_argument("--case", type=int, help="repeat one case of --seed")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    if arguments.case is not None:
        what = again(seed, arguments.case)
        print(what or "nothing is wrong")
        return 1 if what else 0
    seconds = arguments.seconds or (60 if arguments.cases is None else None)
    print(f"seed {seed}", flush=True)
    report = fuzz(seed, arguments.cases, seconds, arguments.workers)
    print(report.text())
    return 1 if report.findings else 0


sys.exit(main())
