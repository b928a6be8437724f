"""The flags that training scripts share."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpucnn.arguments import (
    duration,
    non_negative_float,
    non_negative_int,
    positive_int,
    seed,
    size,
)
from gpucnn.distributed.wire import WIRE_DTYPES
from gpucnn.precision import PRECISIONS
from gpucnn.train.job import OPTIMIZERS, SCHEDULES
from gpucnn.train.on_nan import MODES
from gpucnn.train.run_folder import LAST

# The headings of --help.  EXECUTION: device, threads and files, which a resumed run may change.
RUN, RECIPE, EXECUTION = "run", "recipe", "execution"


_NUMBER: dict[str, Any] = {"type": positive_int, "metavar": "N"}


def add_recipe(
    add_flag: Callable[..., None],
    epochs: int | None,
    batch_size: int,
    schedule: str,
    augment: str,
    limit: str,
    shown: Mapping[str, str],
    without: Sequence[str],
) -> None:
    """Add the flags of RECIPE by calls of Script.add, except those of `without`.

    shown is {setting: the default's description}; the others are as for Script.
    """

    def add(flag: str, text: str, default: Any, shown: str | None = None, **how: Any) -> None:
        if flag not in without:
            add_flag(flag, text, default, shown=shown, group=RECIPE, **how)

    add("--epochs", "passes over the training set", epochs, shown.get("epochs"), **_NUMBER)
    add("--batch-size", "images per step", batch_size, **_NUMBER)
    rate: dict[str, Any] = {"type": non_negative_float, "metavar": "X"}
    add("--lr", "peak learning rate", None, shown.get("lr"), **rate)
    add("--weight-decay", "weight decay, also of biases", 5e-4, **rate)
    add("--optimizer", "update rule; sgd has momentum 0.9", "sgd", choices=tuple(OPTIMIZERS))
    text = (
        "learning rate over the steps.  one-cycle: linear up over the first quarter, linear "
        "down to 0; step: divided by 10 after each third"
    )
    add("--schedule", text, schedule, choices=tuple(SCHEDULES))
    on_or_off = argparse.BooleanOptionalAction
    add("--augment", augment, True, shown.get("augment"), action=on_or_off)
    add("--limit", limit, None, shown.get("limit"), **_NUMBER)
    text = "random seed for weights, order, augmentation and dropout"
    add("--seed", text, 0, type=seed, metavar="N")
    text = (
        "compute convolutions on the CPU as plain sums instead of with Winograd's algorithm: "
        "slower, with a third to an eighth of the rounding error"
    )
    add("--exact", text, False, action="store_true")
    text = (
        "of products: fp32; tf32, bf16 or fp16 on tensor cores; auto: bf16 or fp16 on a GPU "
        "that has it, else fp32"
    )
    own = "tf32 on a GPU that has it, else fp32"
    add("--precision", text, None, own, choices=PRECISIONS)
    text = "end when the test loss (else the training loss) has not improved for N epochs"
    add("--patience", text, None, "train for all epochs", **_NUMBER)
    text = (
        "compute each step in N parts of its batch, in the memory of one; batch normalisation "
        "uses the statistics of a part"
    )
    add("--micro-batches", text, 1, **_NUMBER)
    text = "batch normalisation by the statistics of all processes, not of each one's images"
    add("--sync-bn", text, False, action="store_true")


def add_execution(add_flag: Callable[..., None], keep: int) -> None:
    """Add the flags of EXECUTION by calls of Script.add; keep is the default of --keep."""

    def add(flag: str, text: str, default: Any, shown: str | None = None, **how: Any) -> None:
        add_flag(flag, text, default, shown=shown, group=EXECUTION, **how)

    text = (
        "auto, cpu, cuda, cuda:N, or cudasim (the CUDA kernels on a CPU); auto means "
        "$GPUCNN_DEVICE, else a usable GPU, else the CPU"
    )
    add("--device", text, "auto")
    text = "CPU threads; the result does not depend on them"
    add("--threads", text, None, "all cores", **_NUMBER)
    text = "train on all processes that mpiexec has started, each with a part of every batch"
    add("--distributed", text, False, action="store_true")
    text = "the format in which processes send gradients to each other"
    own, formats = "the parameters' own", tuple(WIRE_DTYPES)
    add("--grad-dtype", text, None, shown=own, choices=formats)
    text = "replay training steps as a CUDA graph, one launch each; the result is the same"
    how: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    add("--graph", text, None, shown="on a CUDA device, if possible", **how)
    text = "a step with NaN or infinity: stop, skip it, or skip it and halve the learning rate"
    add("--on-nan", text, "stop", choices=MODES)
    text = "refuse to start if training would need more memory, such as 800M or 2G"
    limit: dict[str, Any] = {"type": size, "metavar": "SIZE"}
    add("--memory-limit", text, None, shown="no limit", **limit)
    text = f"output folder: config.json, metrics.csv, {LAST}, best.safetensors, curves.png"
    add("--out", text, None, shown="a new folder in runs/", metavar="DIR")
    text = f"also write {LAST} every N steps; 0: only after each epoch and on Ctrl-C"
    add("--save-every", text, 0, type=non_negative_int, metavar="N")
    how = {"type": duration, "metavar": "TIME"}
    text = f"also write {LAST} this long after the last save: minutes, or 90s, 10m, 2h"
    add("--checkpoint-every", f"{text}; 0: not", 0, **how)
    text = f"keep {LAST} and N - 1 older ones: last-1.safetensors, last-2.safetensors, ..."
    add("--keep", text, keep, **_NUMBER)
    text = "stop and save, as on Ctrl-C but with exit status 0, after this time; 0: no limit"
    add("--max-time", text, 0, **how)
    text = "write an event file for TensorBoard, to the folder tensorboard in --out"
    add("--tensorboard", text, False, action="store_true")
    text = "print only the result and warnings"
    add("--quiet", text, False, action="store_true")
