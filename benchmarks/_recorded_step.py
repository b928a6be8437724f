"""Record a training step without a GPU: its launches, and CuPy's own operations on arrays.

The step runs on the simulated device.  Kernels are checked and not run, so this takes seconds and
needs no compiler; shapes alone determine the launches.  A step is what a Trainer runs for a batch:
crop, flip and normalise the images, forward, cross-entropy, backward, SGD with momentum.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

import gpucnn
from gpucnn import cuda, cudasim, data, models, ops, optim
from gpucnn.cuda import Launch
from gpucnn.cudasim import arrays, creation, memory
from gpucnn.device import Device
from gpucnn.precision import float32_precision

DEVICE = Device("cudasim")  # Device.parse("cudasim") would require a compiler
HALF = {"bf16": "bfloat16", "fp16": "float16"}
PRECISIONS = ("fp32", "tf32", *HALF)

_OPERATORS = "add sub mul truediv floordiv mod pow matmul neg pos abs lt le gt ge eq ne".split()


@dataclass(frozen=True, eq=False)
class ArrayOperation:
    """An operation on arrays that CuPy computes with a kernel, or a library, of its own."""

    name: str  # NumPy's: "matmul", "add", "sum"
    inputs: tuple[Any, ...]  # arrays
    result: Any  # array


Event = Launch | ArrayOperation


def record(model: str, batch: int, precision: str, card: str) -> list[Event]:
    """What a training step of `model` runs on a GPU, in order.

    precision: "fp32" (FFMA), "tf32", or autocast to "bf16" or "fp16".  card: whose plans, such as
    "sm90-132".  The first step is not recorded: it prepares what later steps reuse.
    """
    shape = models.input_shape(model)
    with (
        memory.unpoisoned(),
        float32_products(precision),
        planned_for(card),
        np.errstate(all="ignore"),
    ):
        network = models.build(model, generator=np.random.default_rng(0)).to(DEVICE).train()
        parameters = network.parameters()
        optimizer = optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=True)
        batches = _batches(shape, batch, classes=parameters[-1].size)

        def step() -> None:
            images, labels = next(batches)
            optimizer.zero_grad()
            with gpucnn.autocast(HALF[precision]) if precision in HALF else nullcontext():
                loss = ops.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()

        events: list[Event] = []
        with cuda.record_launches(run=False) as launches:
            step()
            launches.clear()
            with _array_operations(launches, events):
                step()
            events += launches
        return events


def _batches(shape: tuple[int, ...], batch: int, classes: int) -> Iterator[Any]:
    """Two batches from a loader that keeps the data set on the device."""
    height, _, channels = shape
    dataset = data.Dataset(
        np.zeros((2 * batch, *shape), np.uint8),
        np.arange(2 * batch, dtype=np.int64) % classes,
        tuple(map(str, range(classes))),
    )
    normalize = data.Normalize((0.5,) * channels, (0.25,) * channels)
    transform = data.Compose([data.RandomCrop(height, 4), data.RandomHorizontalFlip(), normalize])
    return iter(data.DataLoader(dataset, batch, transform=transform, prefetch=0, device=DEVICE))


def float32_products(precision: str) -> AbstractContextManager[None]:
    """Float32 products in float32 for "fp32", else in TF32, inside the block."""
    return float32_precision("highest" if precision == "fp32" else "high")


@contextmanager
def planned_for(card: str) -> Iterator[None]:
    """Tiles and splits of `card` inside the block."""
    cuda.set_reference_card(card)
    try:
        yield
    finally:
        cuda.set_reference_card(None)


@contextmanager
def _array_operations(launches: list[Launch], events: list[Event]) -> Iterator[None]:
    """Add operations on arrays to `events`, each after the launches that came before it.

    Copies from and to the host are left out, and so is a method that returns a view: it runs
    nothing on the device.
    """

    running = False  # an operation may call others

    def noted(
        name: str, function: Callable[[], Any], values: tuple[Any, ...], in_place: bool
    ) -> Any:
        nonlocal running
        if running:
            return function()
        running = True
        try:
            result = function()
        finally:
            running = False
        events.extend(launches)
        launches.clear()
        inputs = tuple(each for each in values if isinstance(each, arrays.ndarray))
        if not isinstance(result, arrays.ndarray):
            return result
        if in_place or not any(arrays.may_share_memory(result, each) for each in inputs):
            events.append(ArrayOperation(name, inputs, result))
        return result

    def wrapped(name: str, function: Callable[..., Any], in_place: bool = False) -> Any:
        def operation(*args: Any, **options: Any) -> Any:
            return noted(name, lambda: function(*args, **options), args, in_place)

        return operation

    run = arrays.run

    def lifted(function: Any, args: Any, options: dict[str, Any]) -> Any:
        owner = arrays.wrap(getattr(function, "__self__", None))  # of a method
        name = function.__name__.strip("_")
        return noted(name, lambda: run(function, args, options), (owner, *args), "out" in options)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(arrays, "run", lifted))
        for module in (cudasim, creation):  # zeros and ones call creation's
            full = wrapped("fill", module.full)
            patches.enter_context(mock.patch.object(module, "full", full))
        for name in (*_OPERATORS, "astype", "copy"):
            for method in (name, f"__{name}__", f"__r{name}__", f"__i{name}__"):
                if method in vars(arrays.ndarray):
                    operation = wrapped(
                        name, getattr(arrays.ndarray, method), method.startswith("__i")
                    )
                    patches.enter_context(mock.patch.object(arrays.ndarray, method, operation))
        yield
