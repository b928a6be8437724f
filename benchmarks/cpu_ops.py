"""Time single ops on the CPU, forward and backward, and compare them with PyTorch.

    python benchmarks/cpu_ops.py                     every case, one thread
    python benchmarks/cpu_ops.py --case max_pool2d   the cases whose names start with max_pool2d

Inputs are float32, in batches of 128 unless the name ends in another batch size.  The ratio is
gpucnn's time over that of PyTorch's faster layout, the median over rounds.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from _peer import (
    OWN,
    PEERS,
    add_arguments,
    forward_and_both,
    interleave,
    machine,
    median_of,
    ratio,
    seconds,
    sides,
)

# name: op, shape of x, other sizes, whether dx is needed
CASES: dict[str, tuple[str, tuple[int, ...], tuple[Any, ...], bool]] = {
    # out_channels, kernel_size, stride, padding, dilation, groups
    "conv2d 3x3 3-64 at 32": ("conv2d", (128, 32, 32, 3), (64, 3, 1, 1, 1, 1), False),
    "conv2d 3x3 64-192 at 16": ("conv2d", (128, 16, 16, 64), (192, 3, 1, 1, 1, 1), True),
    "conv2d 3x3 192-384 at 8": ("conv2d", (128, 8, 8, 192), (384, 3, 1, 1, 1, 1), True),
    "conv2d 3x3 384-256 at 8": ("conv2d", (128, 8, 8, 384), (256, 3, 1, 1, 1, 1), True),
    "conv2d 3x3 256-256 at 8": ("conv2d", (128, 8, 8, 256), (256, 3, 1, 1, 1, 1), True),
    "conv2d 11x11/4 3-96 at 227, batch 8": (
        "conv2d",
        (8, 227, 227, 3),
        (96, 11, 4, 0, 1, 1),
        False,
    ),
    "conv2d 5x5 96-256 at 27, 8": ("conv2d", (8, 27, 27, 96), (256, 5, 1, 2, 1, 1), True),
    "conv2d 1x1 384-256 at 13": ("conv2d", (128, 13, 13, 384), (256, 1, 1, 0, 1, 1), True),
    "conv2d 3x3/2 64-128 at 32": ("conv2d", (128, 32, 32, 64), (128, 3, 2, 1, 1, 1), True),
    "conv2d 3x3 dilation 2 64-64 at 16": ("conv2d", (128, 16, 16, 64), (64, 3, 1, 2, 2, 1), True),
    "conv2d 3x3 groups 2 96-128 at 16": ("conv2d", (128, 16, 16, 96), (128, 3, 1, 1, 1, 2), True),
    "max_pool2d 2x2/2 64 at 32": ("max_pool2d", (128, 32, 32, 64), (2, 2), True),
    "max_pool2d 3x3/2 96 at 55, 32": ("max_pool2d", (32, 55, 55, 96), (3, 2), True),
    "avg_pool2d 2x2/2 64 at 32": ("avg_pool2d", (128, 32, 32, 64), (2, 2), True),
    "batch_norm 64 at 32": ("batch_norm", (128, 32, 32, 64), (), True),
    "local_response_norm 64 at 32": ("local_response_norm", (128, 32, 32, 64), (), True),
    "relu 64 at 32": ("relu", (128, 32, 32, 64), (), True),
    "leaky_relu 64 at 32": ("leaky_relu", (128, 32, 32, 64), (), True),
    "dropout 4096": ("dropout", (128, 4096), (), True),
    "linear 4096-1024": ("linear", (128, 4096), (1024,), True),
}


def gpucnn_steps(task: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], object]]:
    import gpucnn
    from gpucnn import ops

    gpucnn.set_num_threads(task["threads"])
    op, shape, rest, needs_dx = CASES[task["case"]]
    rng = np.random.default_rng(0)

    def leaf(*size: int) -> gpucnn.Tensor:
        return gpucnn.tensor(rng.standard_normal(size, dtype=np.float32), requires_grad=True)

    x, channels = leaf(*shape), shape[-1]
    x.requires_grad = needs_dx
    leaves = [x]
    if op == "conv2d":
        oc, k, *geometry, groups = rest
        leaves += [leaf(oc, k, k, channels // groups), leaf(oc)]

        def forward() -> gpucnn.Tensor:
            return ops.conv2d(*leaves, *geometry, groups)

    elif op == "linear":
        leaves += [leaf(rest[0], channels), leaf(rest[0])]

        def forward() -> gpucnn.Tensor:
            return ops.linear(*leaves)

    elif op == "batch_norm":
        leaves += [leaf(channels), leaf(channels)]
        running = np.zeros(channels, np.float32), np.ones(channels, np.float32)

        def forward() -> gpucnn.Tensor:
            return ops.batch_norm(*leaves, *running, True)

    else:
        arguments = (0.5,) if op == "dropout" else rest

        def forward() -> gpucnn.Tensor:
            return getattr(ops, op)(x, *arguments)

    dy = rng.standard_normal(forward().shape, dtype=np.float32)

    return forward_and_both(forward, leaves, dy, gpucnn.no_grad)


def torch_steps(
    task: dict[str, Any], channels_last: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch
    from torch.nn import functional

    torch.set_num_threads(task["threads"])
    op, shape, rest, needs_dx = CASES[task["case"]]
    images = len(shape) == 4
    layout = torch.channels_last if channels_last and images else torch.contiguous_format

    def leaf(*size: int) -> Any:
        order = layout if len(size) == 4 else torch.contiguous_format
        return torch.randn(*size).contiguous(memory_format=order).requires_grad_()

    channels = shape[-1]
    x = leaf(shape[0], channels, *shape[1:3]) if images else leaf(*shape)
    x.requires_grad_(needs_dx)
    leaves = [x]
    if op == "conv2d":
        oc, k, *geometry, groups = rest
        leaves += [leaf(oc, channels // groups, k, k), leaf(oc)]

        def forward() -> Any:
            return functional.conv2d(*leaves, *geometry, groups)

    elif op == "linear":
        leaves += [leaf(rest[0], channels), leaf(rest[0])]

        def forward() -> Any:
            return functional.linear(*leaves)

    elif op == "batch_norm":
        leaves += [leaf(channels), leaf(channels)]
        running = torch.zeros(channels), torch.ones(channels)

        def forward() -> Any:
            return functional.batch_norm(x, *running, *leaves[1:], True)

    else:
        arguments = {"dropout": (0.5,), "local_response_norm": (5, 5e-4, 0.75, 2.0)}.get(op, rest)

        def forward() -> Any:
            return getattr(functional, op)(x, *arguments)

    dy = torch.randn_like(forward())

    return forward_and_both(forward, leaves, dy, torch.no_grad)


def child(side: str, task: dict[str, Any]) -> dict[str, float]:
    forward_only, both = gpucnn_steps(task) if side == OWN else torch_steps(task, side == PEERS[0])
    return {
        "forward": seconds(forward_only, task["repeats"], task["clock"]),
        "both": seconds(both, task["repeats"], task["clock"]),
    }


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default="", help="only the cases whose names start with this")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    add_arguments(parser, rounds=3)
    parser.add_argument("--blas", default="unset", help='"unset", "as set" or a core type')
    arguments = parser.parse_args()
    names = sides()
    print(f"{machine()}; {arguments.clock} time\n")
    print("| operation | threads | figure, ms | " + " | ".join(names) + " | ratio |")
    print("|---" * (4 + len(names)) + "|")
    for threads in arguments.threads:
        for case in (name for name in CASES if name.startswith(arguments.case)):
            task = {
                "case": case,
                "threads": threads,
                "repeats": arguments.repeats,
                "clock": arguments.clock,
            }
            reports = interleave(__file__, names, task, arguments.rounds, arguments.blas)
            for figure, name in (("forward", "forward"), ("both", "forward + backward")):
                cells = [f"{median_of(reports[side], figure) * 1e3:.2f}" for side in names]
                peers = names[1:]
                cells.append(
                    f"**{ratio(reports, OWN, peers, figure):.2f}**" if peers else "no peer"
                )
                print(f"| {case} | {threads} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
