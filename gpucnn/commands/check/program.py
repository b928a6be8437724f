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
from gpucnn import cuda, data, models, nn, ops, optim, train
from gpucnn.commands.check.child import end_with_parent
from gpucnn.commands.check.kernels import bound, cases
from gpucnn.device import Device
from gpucnn.errors import DeviceError
from gpucnn.train.step_precision import StepPrecision


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


def training_step(
    device: Device, name: str, batch: int, precision: str | None = None
) -> Callable[[], gpucnn.Tensor]:
    """An SGD step on one batch of random images, which returns the loss.

    precision is a Trainer's: "fp32", "tf32", "bf16", "fp16", or None for the device's.  Call the
    step inside `with device.xp.cuda.Device(device.index)`, or with device 0.
    """
    model, optimizer, images, labels = _prepared(device, name, batch)
    given = StepPrecision(precision, device)

    def run() -> gpucnn.Tensor:
        with given.products():
            optimizer.zero_grad()
            with given.forward():
                loss = ops.cross_entropy(model(images), labels)
            loss.backward(given.start(loss))
            given.step(optimizer)
        return loss

    return run


def replayed_step(
    device: Device, name: str, batch: int, precision: str | None = None
) -> Callable[[], None]:
    """The same step of a Trainer that has captured it as a CUDA graph.

    Raises DeviceError if it cannot be captured.
    """
    model, optimizer, images, labels = _prepared(device, name, batch)
    shape, classes = models.input_shape(name), model.parameters()[-1].size
    dataset = data.Dataset(  # a Trainer needs a loader, from which this step takes nothing
        np.zeros((batch, *shape), np.uint8),
        np.zeros(batch, np.int64),
        tuple(map(str, range(classes))),
    )
    normalize = data.Normalize((0.5,) * shape[2], (0.25,) * shape[2])
    loader = data.DataLoader(dataset, batch, transform=normalize, device=device)
    trainer = train.Trainer(model.train(), optimizer, loader, graph=True, precision=precision)

    def run() -> None:
        trainer.train_step(images, labels)

    for _ in range(3):  # two eager ones, then the capture
        run()
    with cuda.count_launches() as launches:
        run()
    if launches["graph"] != 1:
        raise DeviceError(f"the step is not replayed: {trainer._guard.graph.reason}")
    return run


def _prepared(
    device: Device, name: str, batch: int
) -> tuple[nn.Module, optim.SGD, gpucnn.Tensor, gpucnn.Tensor]:
    """Model, optimizer, images and labels on the device."""
    gpucnn.manual_seed(0)
    model = models.build(name, generator=np.random.default_rng(0)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    rng = np.random.default_rng(1)
    shape = (batch, *models.input_shape(name))
    images = gpucnn.tensor(rng.standard_normal(shape, np.float32), device)
    labels = gpucnn.tensor(rng.integers(0, model.parameters()[-1].size, batch), device)
    return model, optimizer, images, labels


if __name__ == "__main__":
    if "GPUCNN_CHECK_PARENT" in os.environ:
        end_with_parent()
    programs: dict[str, Callable[..., int]] = {
        "kernels": kernels,
        "step": step,
        "compile": compile_files,
    }
    sys.exit(programs[sys.argv[1]](*sys.argv[2:]))
