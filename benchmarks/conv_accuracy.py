"""Train alexnet_cifar10 with both CPU algorithms of conv2d, and compare the final accuracies.

    python benchmarks/conv_accuracy.py --data DIR       Winograd and the plain sum, three seeds each

DIR contains CIFAR-10.  Every run is examples/train_alexnet_cifar10.py with its defaults, in its own
process, on the first 10,000 images of each split; runs differ only in the seed and in
set_conv_algorithm.  The table lists the test accuracy after the last epoch.  The algorithms are
equally good if their means differ by less than the seeds do.
"""

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "train_alexnet_cifar10.py"

# The program of a child process: choose the algorithm, then run the example.
CHILD = """
import runpy, sys, gpucnn
gpucnn.set_conv_algorithm(sys.argv[1])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train(algorithm: str, seed: int, arguments: argparse.Namespace) -> float:
    """The test accuracy after the last epoch of one run."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "--data": arguments.data,
            "--limit": arguments.limit,
            "--epochs": arguments.epochs,
            "--threads": arguments.threads,
            "--seed": seed,
            "--device": "cpu",
            "--dataset": "cifar10",
            "--out": folder,
        }
        words = [str(word) for option in options.items() for word in option]
        command = [sys.executable, "-c", CHILD, algorithm, str(EXAMPLE), "--quiet", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with open(Path(folder) / "metrics.csv", newline="") as file:
            return float(list(csv.DictReader(file))[-1]["test_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with CIFAR-10")
    parser.add_argument("--algorithms", nargs="+", default=["winograd", "exact"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument("--limit", type=int, default=10_000, metavar="N", help="images per split")
    parser.add_argument("--epochs", type=int, default=8, metavar="N")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    arguments = parser.parse_args()

    print(f"| algorithm | {' | '.join(f'seed {seed}' for seed in arguments.seeds)} | mean |")
    print("|---" * (len(arguments.seeds) + 2) + "|")
    for algorithm in arguments.algorithms:
        print(f"| {algorithm}", end="", flush=True)
        accuracies = []
        for seed in arguments.seeds:
            accuracies.append(train(algorithm, seed, arguments))
            print(f" | {accuracies[-1]:.4f}", end="", flush=True)
        print(f" | {statistics.mean(accuracies):.4f} |", flush=True)


if __name__ == "__main__":
    main()
