"""Record the kernel launches of a model, for `gpucnn warmup`, `kernels --export` and `check`.

One batch, one training step and one inference are recorded, not run: shapes alone determine the
launches.  On the simulated device this needs neither a GPU nor a compiler; on a GPU it does not
import the simulator.
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

_SIMULATED = Device("cudasim")  # Device.parse("cudasim") would require a compiler


def of_model(
    name: str,
    batch: int,
    phases: tuple[str, ...] = PHASES,
    device: Device = _SIMULATED,
    run: bool = False,
) -> dict[str, list[Launch]]:
    """Return the launches of each phase, in order, for model `name` with `batch` images.

    "batch" crops, flips and normalises a batch; "training" is forward, softmax cross-entropy,
    backward and SGD with momentum and weight decay; "inference" is a forward pass in evaluation
    mode.  Labels cycle through the classes: 0, 1, 2, ...  Dropout has its own generator with a
    fixed seed, so the default generator does not advance.  run=True also runs the launches on
    `device`.

    Raises ArgumentError for an unknown model, a model that does not take images, or a batch
    below 1.
    """
    if batch < 1:
        raise ArgumentError(f"launches: expected a batch of at least 1 image, got {batch}")
    with device.xp.cuda.Device(device.index), nullcontext() if run else _uninitialised(device):
        return _phases(name, batch, phases, device, run)


def specialisations(launches: dict[str, list[Launch]]) -> list[Specialisation]:
    """The distinct (file, defines) pairs to compile for these launches, sorted."""
    distinct = {
        (launch.kernel.file, launch.defines) for phase in launches.values() for launch in phase
    }
    return sorted(distinct, key=str)


def specialisation_name(specialisation: Specialisation, separator: str = " ") -> str:
    """A name such as "pool2d.cu", or "pool2d.cu NAME=VALUE" with defines."""
    file, defines = specialisation
    return separator.join([file, *(f"{name}={value}" for name, value in defines)])


def _uninitialised(device: Device) -> AbstractContextManager[None]:
    """Keep the simulator from filling new memory with NaN, which takes longer than recording."""
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


def _recorded(step: Callable[[], object], run: bool) -> list[Launch]:
    # Results that no kernel wrote are uninitialised: NumPy must not warn about them.
    with cuda.record_launches(run) as launches, np.errstate(all="ignore"):
        step()
    return launches


def _load(batch: int, shape: tuple[int, ...], device: Device) -> None:
    h, w, c = shape
    images = np.zeros((batch, h, w, c), np.uint8)
    dataset = Dataset(images, np.zeros(batch, np.int64), ("one",))
    normalize = Normalize((0.5,) * c, (0.25,) * c)
    transform = Compose([RandomCrop(h, 4), RandomHorizontalFlip(), normalize])
    loader = DataLoader(dataset, batch, transform=transform, prefetch=0, device=device)
    images, _ = next(iter(loader))
    images.data  # noqa: B018  a batch is computed when it is read


def _train(model: nn.Module, optimizer: optim.SGD, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    ops.cross_entropy(model.train()(images), labels).backward()
    optimizer.step()


def _infer(model: nn.Module, images: Tensor) -> None:
    with no_grad():
        model.eval()(images)
