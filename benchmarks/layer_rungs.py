"""Print the figures of docs/tensor_cores.md: one convolution by each kernel that can compute it.

    pip install "gpucnn[nvrtc]"              no GPU is needed
    python benchmarks/layer_rungs.py         the third convolution of alexnet_cifar10, batch 128

For the forward pass by each kernel, with the tiles of an H100: instructions of the inner loop for
each multiply-add of a thread, and the share of them that multiply (compiled for sm_80); bytes that
blocks ask of the L2 cache (_launch_work.py) for each multiply-add; and the time that
predict_step.py predicts.
"""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from _launch_work import work_of
from _recorded_step import DEVICE, HALF, float32_products, planned_for
from predict_step import CARDS, launch_time

import gpucnn
from gpucnn import Tensor, cuda, ops
from gpucnn.cuda import Launch, nvrtc, sass
from gpucnn.cuda.roofline import Chip
from gpucnn.cudasim import memory
from gpucnn.errors import GpucnnError
from gpucnn.integers import ceil_div

ARCHITECTURE = 80
SHOWN = CARDS["A100"], CARDS["H100"]
N, SIDE, C, OC = 128, 8, 192, 384  # 3 x 3, padding 1


def forward(precision: str, algorithm: str = "auto") -> Launch:
    """The launch that computes the layer, recorded and not run."""
    before = gpucnn.get_conv_algorithm()
    gpucnn.set_conv_algorithm(algorithm)
    with (
        memory.unpoisoned(),
        float32_products(precision),
        gpucnn.autocast(HALF[precision]) if precision in HALF else nullcontext(),
        cuda.record_launches(run=False) as launches,
    ):
        shapes = (N, SIDE, SIDE, C), (OC, 3, 3, C), (OC,)
        ops.conv2d(*(Tensor(DEVICE.xp.zeros(shape, np.float32)) for shape in shapes), padding=1)
    gpucnn.set_conv_algorithm(before)
    return launches[-1]


def rungs(card: Chip) -> Iterator[tuple[str, Launch]]:
    """Each rung's name and launch, from slow to fast, with the card's tiles."""
    with planned_for(str(card.card)):
        yield "plain loop", forward("fp32", "plain")
        fast = forward("fp32")
        yield (
            "tile",
            replace(
                fast,
                kernel=cuda.kernel("conv2d_forward_128x64_scalar"),
                grid=(ceil_div(N * SIDE * SIDE, 128), ceil_div(OC, 64), 1),
                block=(128, 1, 1),
            ),
        )
        yield "16-byte loads", fast
        for precision in ("tf32", "bf16"):
            launch = forward(precision)
            if work_of(launch).path == precision:
                yield f"tensor cores, {precision}", launch


def inner_loop(launch: Launch) -> tuple[float, float]:
    """Instructions for each multiply-add of a thread, and the share that multiplies.

    A tensor-core instruction counts as the multiply-adds that its warp does, a 32nd for each
    thread.
    """
    file, name = launch.kernel.file, launch.kernel.name
    options = [*cuda.options(launch.defines), *nvrtc.CUPY_OPTIONS]
    binary = nvrtc.compile_source(cuda.assemble(file), file, ARCHITECTURE, options)
    parts: list[list[str]] = [[]]
    for instruction in sass.main_loops(binary.cubin)[name].instructions:
        parts[-1].append(instruction)
        if instruction.startswith("BRA"):
            parts.append([])
    inner = max((sass.Loop(tuple(part)) for part in parts), key=lambda loop: loop.multiply_adds)
    done = sum(_multiply_adds(instruction) for instruction in inner.instructions)
    return len(inner.instructions) / done, inner.share


def _multiply_adds(instruction: str) -> int:
    """Of a thread: HMMA.16816 multiplies 16 x 16 by 16 x 8 numbers in a warp of 32 threads."""
    if instruction.startswith("FFMA"):
        return 1
    if instruction.startswith("HMMA"):
        return 16 * 8 * {"16816": 16, "1688": 8, "1684": 4}[instruction.split(".")[1]] // 32
    return 0


def line(name: str, launches: list[Launch]) -> str:
    """The row of one rung: `launches` are that of each card."""
    work = work_of(launches[-1])
    instructions, share = inner_loop(launches[-1])
    times = [
        launch_time(work_of(launch), card) for launch, card in zip(launches, SHOWN, strict=True)
    ]
    predicted = " | ".join(f"{time.seconds * 1e6:.0f} us, {time.bound}" for time in times)
    bytes_each = work.l2 / (work.flops / 2)
    return f"| {name} | {instructions:.2f} | {share:.0%} | {bytes_each:.3f} | {predicted} |"


def main() -> None:
    print(
        f"forward pass of ({N}, {SIDE}, {SIDE}, {C}) to {OC} channels, 3 x 3; times are predicted"
    )
    names = " | ".join(card.name for card in SHOWN)
    print(f"| rung | instructions | math | L2 bytes | {names} |")
    print("|---" * (4 + len(SHOWN)) + "|")
    for found in zip(*(rungs(card) for card in SHOWN), strict=True):
        print(line(found[0][0], [launch for _, launch in found]))


if __name__ == "__main__":
    try:
        main()
    except GpucnnError as error:
        sys.exit(str(error))
