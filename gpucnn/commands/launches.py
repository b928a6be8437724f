"""What a model launches on a GPU: one batch, one training step and one inference of it.

Shapes alone decide it, so no kernel has to run to find out.  On the simulated device it takes
neither a GPU nor a compiler; with a GPU it takes nothing of the simulator.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from gpucnn import cuda, models, nn, ops, optim
from gpucnn.autograd import no_grad
from gpucnn.cuda import Launch
from gpucnn.cuda.declarations import Define
from gpucnn.data import Compose, DataLoader, Dataset, Normalize, RandomCrop, RandomHorizontalFlip
from gpucnn.device import Device
from gpucnn.errors import ArgumentError
from gpucnn.tensor import Tensor

PHASES = ("batch", "training", "inference")

Specialisation = tuple[str, tuple[tuple[str, Define], ...]]  # a .cu file and its defines

_SIMULATED = Device("cudasim")  # by its name it would ask for a compiler, which nobody needs here


def of_model(
    name: str,
    batch: int,
    phases: tuple[str, ...] = PHASES,
    device: Device = _SIMULATED,
    run: bool = False,
) -> dict[str, list[Launch]]:
    """The launches of each phase, in their order, for model `name` with `batch` images.

    "batch" is crop, flip and normalise of a batch; "training" is forward, softmax cross entropy,
    backward and SGD with momentum and weight decay; "inference" is forward in evaluation mode.
    Labels count 0, 1, 2, ... through the classes.  Dropout starts from the same numbers each time,
    and the default generator stays where it was.  With run, they run on `device`.

    Raises ArgumentError for an unknown model, one that is not for images, or a batch below 1.
    """
    if batch < 1:
        raise ArgumentError(f"a batch has at least 1 image, got {batch}")
    with device.xp.cuda.Device(device.index), nullcontext() if run else _cheap_memory(device):
        return _phases(name, batch, phases, device, run)


def _cheap_memory(device: Device) -> AbstractContextManager[None]:
    """The simulator fills fresh memory with NaN, which takes longer than all of a recording."""
    if device.kind == "cuda":
        return nullcontext()
    from gpucnn.cudasim.memory import unpoisoned

    return unpoisoned()


def _phases(
    name: str, batch: int, phases: tuple[str, ...], device: Device, run: bool
) -> dict[str, list[Launch]]:
    shape = models.input_shape(name)
    model = models.build(name, generator=np.random.default_rng(0)).to(device)
    generator = np.random.Generator(np.random.Philox(0))
    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.generator = generator
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    classes = model.parameters()[-1].size
    images = Tensor(device.xp.zeros((batch, *shape), np.float32))
    labels = Tensor(device.xp.asarray(np.arange(batch, dtype=np.int64) % classes))
    steps = {
        "batch": lambda: _load(batch, shape, device),
        "training": lambda: _train(model, optimizer, images, labels),
        "inference": lambda: _infer(model, images),
    }
    return {phase: _recorded(steps[phase], run) for phase in phases}


def specialisations(launches: dict[str, list[Launch]]) -> list[Specialisation]:
    """What has to be compiled for them: each .cu file with its defines once, sorted."""
    found = {
        (launch.kernel.file, launch.defines) for phase in launches.values() for launch in phase
    }
    return sorted(found, key=str)


def _recorded(step: Callable[[], object], run: bool) -> list[Launch]:
    # What was never computed holds anything: NumPy need not warn of it.
    with cuda.record_launches(run) as launches, np.errstate(all="ignore"):
        step()
    return launches


def _load(batch: int, shape: tuple[int, ...], device: Device) -> None:
    h, w, c = shape
    images = np.zeros((batch, h, w, c), np.uint8)
    dataset = Dataset(images, np.zeros(batch, np.int64), ("one",))
    normalize = Normalize((0.5,) * c, (0.25,) * c)
    transform = Compose([RandomCrop(h, 4), RandomHorizontalFlip(), normalize])
    next(iter(DataLoader(dataset, batch, transform=transform, prefetch=0, device=device)))


def _train(model: nn.Module, optimizer: optim.SGD, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    ops.cross_entropy(model.train()(images), labels).backward()
    optimizer.step()


def _infer(model: nn.Module, images: Tensor) -> None:
    with no_grad():
        model.eval()(images)
