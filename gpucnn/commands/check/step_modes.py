"""Training steps in each precision, and replayed as a CUDA graph: for parts 2 and 9."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, data, nn, ops, optim, train
from gpucnn.commands.check.beside_cpu import host, relative
from gpucnn.commands.check.part import Reporter
from gpucnn.errors import DtypeError
from gpucnn.precision import float32_precision

_STEPS = 6  # two eager ones, then replays
_BATCH = 4


@dataclass(frozen=True)
class _Mode:
    """A precision of a step."""

    name: str
    least_sm: int  # compute capability times ten
    autocast: str = ""
    # Of loss and gradients, relative to the largest value.  Half-precision results are rounded at
    # the same places on both devices; where sums in another order round to the other neighbour,
    # the layers after it see that difference.
    bound: float = 0.0


_MODES = (
    _Mode("tf32", 80, bound=2**-8),  # the CPU's is float32; operands lose 13 bits
    _Mode("bf16", 80, "bfloat16", bound=2**-5),
    _Mode("fp16", 75, "float16", bound=2**-8),
)


def precisions(reporter: Reporter) -> None:
    """Compare loss and gradients of a small step in each precision with the CPU's."""
    card = cuda.card_of(reporter.device)
    for mode in _MODES:
        if card.sm < mode.least_sm:
            reporter.skip(mode.name, f"{card} has no tensor cores for it")
            continue
        try:
            gpucnn.autocast(mode.autocast or "float16")
        except DtypeError as error:  # bfloat16 needs a package
            reporter.skip(mode.name, *str(error).split(": ", 1))
            continue
        reporter.run(f"step in {mode.name}", _compare, reporter, mode)


def _compare(reporter: Reporter, mode: _Mode) -> None:
    with float32_precision("high"), cuda.count_launches() as launches:
        ours = _gradients(str(reporter.task.device), mode.autocast)
    theirs = _gradients("cpu", mode.autocast)
    tensor = sum(count for name, count in launches.items() if name.endswith("_tensor"))
    errors = {name: relative(ours[name], expected) for name, expected in theirs.items()}
    worst = max(errors, key=lambda name: errors[name])
    reporter.row(
        "A step in each precision against the CPU: the largest error of loss and gradients",
        {"precision": mode.name, "error": errors[worst], "bound": mode.bound, "of": worst,
         "launches on tensor cores": tensor},
    )  # fmt: skip
    what = f"step in {mode.name}"
    if not errors[worst] <= mode.bound:
        reporter.fail(what, f"{worst} is off by {errors[worst]:.1e}, allowed {mode.bound:.1e}")
    elif not tensor:
        reporter.fail(what, "no launch used tensor cores")
    else:
        reporter.ok(what, f"largest error {errors[worst]:.1e}, {tensor} launches on tensor cores")


def _gradients(device: str, autocast: str) -> dict[str, np.ndarray[Any, Any]]:
    """The loss and the gradients of a step on 8 images; layers have widths for tensor cores.

    The network is smooth: a ReLU or a maximum would turn a rounding error into another path of the
    gradient.
    """
    rng = np.random.default_rng(12)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, generator=rng), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(16, 64, 3, padding=1, generator=rng), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(64, 32, 3, padding=1, generator=rng), nn.Tanh(), nn.Flatten(),
        nn.Linear(512, 64, generator=rng), nn.Tanh(), nn.Linear(64, 16, generator=rng),
    ).to(device)  # fmt: skip
    images = gpucnn.tensor(rng.standard_normal((8, 16, 16, 3), np.float32), device)
    labels = gpucnn.tensor(np.arange(8), device)
    with gpucnn.autocast(autocast) if autocast else nullcontext():
        loss = ops.cross_entropy(model(images), labels)
    loss.backward()
    return {"loss": host(loss)} | {name: host(p.grad) for name, p in model.named_parameters()}


# --- graph ---


def graph(reporter: Reporter) -> None:
    """Steps replayed as a CUDA graph leave the same bits as eager ones."""
    eager, _, _ = _trained(reporter, graph=False)
    replayed, replays, seconds = _trained(reporter, graph=True)
    differ = [name for name, array in eager.items() if array.tobytes() != replayed[name].tobytes()]
    if not replays:
        reporter.fail("graph", f"none of {_STEPS} steps was replayed; standard error says why")
    elif differ:
        reporter.fail("graph", f"replayed steps give other bits in {', '.join(differ[:5])}")
    else:
        reporter.ok(
            "graph",
            f"{replays} replayed steps have the bits of eager ones; "
            f"the host needs {seconds * 1e6:.0f} us a step",
        )


def _trained(reporter: Reporter, graph: bool) -> tuple[dict[str, Any], int, float]:
    """Parameters and buffers after _STEPS steps, replayed steps, and the host's shortest time."""
    gpucnn.manual_seed(4)
    device = reporter.device
    generator = np.random.Generator(np.random.Philox(5))
    rng = np.random.default_rng(6)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, generator=rng), nn.BatchNorm2d(16), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1, generator=rng), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5, generator), nn.Linear(128, 10, generator=rng),
    ).to(device)  # fmt: skip
    images = rng.integers(0, 256, (_STEPS * _BATCH, 8, 8, 3), np.uint8)
    labels = rng.integers(0, 10, len(images))
    dataset = data.Dataset(images, labels, tuple("0123456789"))
    normalize = data.Normalize((0.5,) * 3, (0.25,) * 3)
    loader = data.DataLoader(dataset, _BATCH, transform=normalize, device=device)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = train.Trainer(model.train(), optimizer, loader, graph=graph)
    times = []
    with cuda.count_launches() as launches:
        for batch in loader:
            start = time.perf_counter()
            trainer.train_step(*batch)
            times.append(time.perf_counter() - start)
    state = {name: host(array) for name, array in model.state_dict().items()}
    return state, launches["graph"], min(times)
