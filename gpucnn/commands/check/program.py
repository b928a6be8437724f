"""Small programs that another process runs: under a tool of NVIDIA's, or with a cache of its own.

After `python -m gpucnn.commands.check.`:

program kernels DEVICE              every kernel once, CuPy's pool off
program step DEVICE MODEL BATCH     a warmed step, between profiler marks
program compile DEVICE FILE ...     {"file": ..., "seconds": ...} a line
"""

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

import gpucnn
from gpucnn import cuda, models, ops, optim
from gpucnn.commands.check.kernels import bound, cases
from gpucnn.commands.check.part import end_with_the_parent
from gpucnn.device import Device


def kernels(device: str) -> int:
    """Exit status 1 if one is beyond its bound; a tool that slows them down changes no number."""
    place = Device.parse(device)
    if place.kind == "cuda":
        place.xp.cuda.set_allocator(None)  # an array an allocation: an overrun leaves it
    wrong = 0
    for name, case in cases(np.random.default_rng(20), device):
        error = case()
        if not error <= bound(name):
            print(f"WRONG: {name} is off by {error:.2e}, allowed {bound(name):.0e}", flush=True)
            wrong = 1
        print(f"ran {name}", flush=True)
    return wrong


def step(device: str, model: str, batch: str) -> int:
    place = Device.parse(device)
    run = training_step(place, model, int(batch))
    for _ in range(3):
        run()
    xp = place.xp
    xp.cuda.Device(place.index).synchronize()
    if place.kind == "cuda":
        xp.cuda.profiler.start()
    run()
    xp.cuda.Device(place.index).synchronize()
    if place.kind == "cuda":
        xp.cuda.profiler.stop()
    return 0


def compile_files(device: str, *files: str) -> int:
    place = Device.parse(device)
    place.xp.cuda.Device(place.index).synchronize()  # the context is not the compiler's time
    for file in files:
        start = time.perf_counter()
        cuda.compile_file(place, file)
        seconds = time.perf_counter() - start
        print(json.dumps({"file": file, "seconds": seconds}), flush=True)
    return 0


def training_step(device: Device, name: str, batch: int) -> Callable[[], gpucnn.Tensor]:
    """A step of SGD on one batch of random images; it gives the loss.

    Call it inside `with device.xp.cuda.Device(device.index)` or on device 0.
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
        end_with_the_parent()
    programs: dict[str, Callable[..., int]] = {
        "kernels": kernels,
        "step": step,
        "compile": compile_files,
    }
    sys.exit(programs[sys.argv[1]](*sys.argv[2:]))
