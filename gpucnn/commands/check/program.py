"""Programs that a part of a check runs in another process: under a tool, or with an empty cache.

After `python -m gpucnn.commands.check.`:

    program kernels DEVICE              run every kernel once, without CuPy's memory pool
    program step DEVICE MODEL BATCH     run a warmed-up step between profiler marks
    program compile DEVICE FILE ...     print {"file": ..., "seconds": ...} for each file
"""

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

import gpucnn
from gpucnn import cuda, models, ops, optim
from gpucnn.commands.check.child import end_with_parent
from gpucnn.commands.check.kernels import bound, cases
from gpucnn.device import Device


def kernels(device: str) -> int:
    """Exit status 1 if the error of a case exceeds its bound."""
    target = Device.parse(device)
    if target.kind == "cuda":
        # One allocation per array: an overrun then leaves the allocation, and the tool sees it.
        target.xp.cuda.set_allocator(None)
    wrong = 0
    for name, case in cases(np.random.default_rng(20), device):
        error = case()
        if not error <= bound(name):
            print(f"WRONG: {name} is off by {error:.2e}, allowed {bound(name):.0e}", flush=True)
            wrong = 1
        print(f"ran {name}", flush=True)
    return wrong


def step(device: str, model: str, batch: str) -> int:
    """Run three steps to warm up, then one between profiler marks."""
    target = Device.parse(device)
    run = training_step(target, model, int(batch))
    for _ in range(3):
        run()
    xp = target.xp
    xp.cuda.Device(target.index).synchronize()
    if target.kind == "cuda":
        xp.cuda.profiler.start()
    run()
    xp.cuda.Device(target.index).synchronize()
    if target.kind == "cuda":
        xp.cuda.profiler.stop()
    return 0


def compile_files(device: str, *files: str) -> int:
    """Compile each file and print its name and seconds as a JSON line."""
    target = Device.parse(device)
    # Create the CUDA context now: its time is not the compiler's.
    target.xp.cuda.Device(target.index).synchronize()
    for file in files:
        start = time.perf_counter()
        cuda.compile_file(target, file)
        seconds = time.perf_counter() - start
        print(json.dumps({"file": file, "seconds": seconds}), flush=True)
    return 0


def training_step(device: Device, name: str, batch: int) -> Callable[[], gpucnn.Tensor]:
    """An SGD step on one batch of random images, which returns the loss.

    Call it inside `with device.xp.cuda.Device(device.index)`, or with device 0.
    """
    gpucnn.manual_seed(0)
    model = models.build(name, generator=np.random.default_rng(0)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(1)
    shape = (batch, *models.input_shape(name))
    images = gpucnn.tensor(rng.standard_normal(shape, np.float32), device)
    labels = gpucnn.tensor(rng.integers(0, model.parameters()[-1].size, batch), device)

    def run() -> gpucnn.Tensor:
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return run


if __name__ == "__main__":
    if "GPUCNN_CHECK_PARENT" in os.environ:
        end_with_parent()
    programs: dict[str, Callable[..., int]] = {
        "kernels": kernels,
        "step": step,
        "compile": compile_files,
    }
    sys.exit(programs[sys.argv[1]](*sys.argv[2:]))
