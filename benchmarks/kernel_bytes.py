"""Print the bytes that each launch of a training step moves, beside the least possible.

    python benchmarks/kernel_bytes.py                                alexnet_cifar10, batch 128
    python benchmarks/kernel_bytes.py --precision fp16 --card sm75-40 --l2 4    a T4

No GPU is needed: the launches are recorded, not run (_recorded_step.py), and their bytes follow
from their arguments (_launch_work.py describes the model).  Tiles and splits are those of --card,
an H100 by default.  Names in parentheses are CuPy's own operations.  The columns, in megabytes:

    least    every array argument read or written once
    extra    workspaces of split sums
    memory   what the launch asks of device memory, behind an L2 cache of --l2 MiB
    ratio    memory / least
    L2       what its blocks ask of the L2 cache

The last lines compare the step with the least that its layers need, with any kernels: one pass a
layer, tensors in the precision of the step, and everything else fused into it.

    convolution, dense   forward: x and weight read, y written.  Backward: dy and weight read, dx
                         written, and dy and x read, the gradient written in float32.  The images
                         need no dx
    pooling              forward: x read, y written, and for a maximum one byte a window.  Backward:
                         dy and the bytes read, dx written
    normalisation        forward: x read twice (first for the statistics; local response: once), y
                         written.  Backward: dy and x read twice (once), dx written
    loss                 logits read, their gradient written
    add                  one operand read; the other is still in registers
    SGD with momentum    parameter and velocity read and written, gradient read; under autocast the
                         half-precision copy written
    images               bytes read, numbers written
    ReLU, tanh, dropout, bias, reshape     nothing
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from _launch_work import Work, work_of
from _recorded_step import HALF, PRECISIONS, record

import gpucnn
from gpucnn import models, nn, ops
from gpucnn.autograd import Function
from gpucnn.cuda.card import Card
from gpucnn.cuda.roofline import Chip, chip_of
from gpucnn.errors import ArgumentError, GpucnnError

MEGA = 1e6
MOMENTUM_BYTES = 5 * 4  # SGD with momentum, a parameter


def least_of_step(name: str, batch: int, precision: str) -> int:
    """The bytes that a step must move at least: see the top of this file."""
    size = 2 if precision in HALF else 4
    model = models.build(name)
    total = 0
    with _calls() as calls:
        images = gpucnn.tensor(np.zeros((1, *models.input_shape(name)), np.float32))
        ops.cross_entropy(model.eval()(images), np.zeros(1, np.int64))
    for op, sizes, result, first in calls:
        total += _least_of_op(op, [batch * sizes[0], *sizes[1:]], batch * result, size, first)
    parameters = sum(parameter.size for parameter in model.parameters())
    half_copy = size if precision in HALF else 0
    return total + parameters * (MOMENTUM_BYTES + half_copy) + images.size * batch * (1 + size)


def _least_of_op(op: str, sizes: list[int], result: int, size: int, first: bool) -> int:
    """Bytes of one op, forward and backward; sizes counts the elements of its inputs."""
    x, *parameters = sizes
    if op in ("relu", "tanh", "dropout", "reshape"):
        return 0
    if op in ("conv2d", "linear"):
        weight = parameters[0]
        forward = (x + weight + result) * size
        to_input = 0 if first else (result + weight + x) * size
        return forward + to_input + (result + x) * size + 4 * sum(parameters)
    if op in ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "global_avg_pool2d"):
        winners = 2 * result if op == "max_pool2d" else 0
        return 2 * (x + result) * size + winners
    if op == "batch_norm":
        return ((2 * x + result) + (2 * (result + x) + x)) * size
    if op == "local_response_norm":
        return ((x + result) + (result + 2 * x)) * size
    if op == "cross_entropy":
        return 2 * x * 4
    if op == "add":
        return result * size
    raise ArgumentError(
        f"the least bytes of op {op} are not known\n  add it to {__file__}, _least_of_op"
    )


@contextmanager
def _calls() -> Iterator[list[tuple[str, list[int], int, bool]]]:
    """Collect the ops of the block: name, sizes of the inputs, of the result, whether it is the
    first.  Modules are observed, so that Sequential fuses none of them."""
    calls: list[tuple[str, list[int], int, bool]] = []
    call = Function.__call__

    def noted(self: Any, *operands: Any) -> Any:
        result = call(self, *operands)
        sizes = [each.size for each in operands if isinstance(each, gpucnn.Tensor)]
        calls.append((self.name, sizes, result.size, not calls))
        return result

    with mock.patch.object(Function, "__call__", noted), nn.observe(lambda *_: None):
        yield calls


def table(works: list[Work], chip: Chip) -> list[str]:
    """One line a launch."""
    lines = [
        f"{'launch':32} {'grid':>16} {'least':>8} {'extra':>8} {'memory':>8} {'ratio':>6} {'L2':>8}"
    ]
    for work in works:
        grid = "x".join(map(str, work.launch.grid)) if work.launch else ""
        memory = work.memory(chip)
        ratio = f"{memory / work.least:.2f}" if work.least else ""
        lines.append(
            f"{work.name:32} {grid:>16} {work.least / MEGA:8.2f} {work.extra / MEGA:8.2f} "
            f"{memory / MEGA:8.2f} {ratio:>6} {work.l2 / MEGA:8.1f}"
        )
    return lines


def recorded(model: str, batch: int, precision: str, card: str) -> list[Work]:
    """The Work of each launch of a step; ArgumentError if none computes in `precision`."""
    works = [work_of(event) for event in record(model, batch, precision, card)]
    paths = {work.path for work in works if work.path}
    if precision not in paths:
        raise ArgumentError(
            f"no launch of this step computes in {precision} on {card}: its products take "
            f"{', '.join(sorted(paths))}"
        )
    return works


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    images = [name for name in models.BY_NAME if name != "mlp"]
    parser.add_argument("--model", choices=images, default="alexnet_cifar10")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--card", default="sm90-132", help="default: sm90-132, an H100")
    parser.add_argument("--l2", type=int, default=50, help="MiB of L2 cache (default: 50)")
    given = parser.parse_args(arguments)
    works = recorded(given.model, given.batch, given.precision, given.card)
    chip = replace(chip_of(Card.parse(given.card)), l2_size=given.l2 << 20)
    what = f"{given.model}, batch {given.batch}, {given.precision}, {given.card}"
    print(f"{what}; MB, by a model, not measured")
    print("\n".join(table(works, chip)))
    memory = sum(work.memory(chip) for work in works)
    arguments_once = sum(work.least for work in works)
    least = least_of_step(given.model, given.batch, given.precision)
    print(f"\n{len(works)} launches ask device memory for {memory / MEGA:.0f} MB")
    for what, size in (
        ("every argument once", arguments_once),
        ("the least for the layers", least),
    ):
        print(f"  {what:25} {size / MEGA:6.0f} MB   {memory / size:.2f} x")


if __name__ == "__main__":
    try:
        main()
    except GpucnnError as error:
        sys.exit(str(error))
