"""Predict the time of a training step on a GPU, launch by launch.  A model, not a measurement.

    python benchmarks/predict_step.py                            T4, A100 and H100, float32
    python benchmarks/predict_step.py --card H100 --precision bf16 --graph

No GPU is needed: the launches of a step are recorded with the card's tiles and splits
(_recorded_step.py), and what each one does follows from its arguments (_launch_work.py).  The time
of a launch is that of gpucnn/cuda/roofline.py, by which gpucnn also chooses tiles and splits; its
docstring has the model and the constants.

A step is the sum of its launches with a GAP after each.  Eager, it lasts at least as long as the
host needs to issue its launches: --host microseconds each.  A graph is one launch.

Constants besides those of roofline.py, and where they come from:

    REACH         fp32: the share of FFMA in the kernel's main loop, as kernel_mix.py prints it;
                  84 % for cuBLAS
    GAP           1 us (assumed): from the end of a graph's node to the start of the next
    --host        30 us a launch (assumed): host_overhead.py prints it for a machine

The products of cuBLAS, whose grids are not known, count as full waves.  What is left out, and makes
a step slower: lower clocks under load, latency that few blocks do not hide in kernels without
products, epilogues.  Faster: tensors that are still in L2 from the launch before.
"""

import argparse
import sys
from dataclasses import replace

from _launch_work import Work
from _recorded_step import PRECISIONS
from kernel_bytes import recorded

from gpucnn import models
from gpucnn.cuda import roofline
from gpucnn.cuda.roofline import Chip, Time
from gpucnn.errors import GpucnnError

GAP, HOST = 1e-6, 30e-6  # seconds
CARDS = {chip.name: chip for chip in roofline.CHIPS}
# Of the fp32 peak, by a part of the kernel's name; the first match counts
REACH = {"plain": 0.28, "few": 0.75, "weight_32x64": 0.70, "scalar": 0.80, "": 0.84}


def launch_time(work: Work, chip: Chip) -> Time:
    """The predicted Time of one launch; ArgumentError if the chip has no such path."""
    load = work.load(chip)
    if work.path == "fp32":
        reach = next(share for part, share in REACH.items() if part in work.name)
        load = replace(load, reach=reach)
    return roofline.time_of(load, chip)


def step_seconds(times: list[Time], host: float) -> float:
    """Seconds of a step; host: seconds that the host needs to issue a launch, 0 for a graph."""
    return max(sum(time.seconds + GAP for time in times), len(times) * host)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    images = [name for name in models.BY_NAME if name != "mlp"]
    parser.add_argument("--card", choices=CARDS, action="append", help="default: all of them")
    parser.add_argument("--model", choices=images, default="alexnet_cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--graph", action="store_true", help="the step is one launch of a graph")
    parser.add_argument(
        "--host", type=float, default=HOST * 1e6, help="microseconds a launch (default: 30)"
    )
    given = parser.parse_args(arguments)
    what = f"{given.model}, batch {given.batch}, {given.precision}"
    print(f"predicted, not measured: {what}; microseconds, and what bounds a launch")
    host = 0.0 if given.graph else given.host * 1e-6
    how = "one graph" if given.graph else f"eager, {given.host:.0f} us a launch"
    summary = []
    for card in (CARDS[name] for name in given.card or CARDS):
        if given.precision not in card.peaks:
            print(f"predicted: {card.name} has no {given.precision}")
            continue
        works = recorded(given.model, given.batch, given.precision, str(card.card))
        times = [launch_time(work, card) for work in works]
        for work, time in zip(works, times, strict=True):
            grid = "x".join(map(str, work.launch.grid)) if work.launch else ""
            print(
                f"predicted {card.name:5} {work.name:34} {grid:>14} {work.path:4} "
                f"{time.seconds * 1e6:8.1f} {time.bound}"
            )
        flops = sum(work.flops for work in works)
        peak = flops / card.peaks[given.precision]
        summary.append(
            f"predicted step on {card.name}: {step_seconds(times, host) * 1e3:.2f} ms, "
            f"{len(works)} kernels ({how}); "
            f"{flops / 1e9:.1f} GFLOP at the peak of {given.precision}: {peak * 1e3:.2f} ms"
        )
    print("\n".join(summary))


if __name__ == "__main__":
    try:
        main()
    except GpucnnError as error:
        sys.exit(str(error))
