"""Part 7: compare with PyTorch: losses from the same weights, and interleaved step times.

Each precision is compared with the same one: float32 with float32, TF32 with TF32, and autocast to
bfloat16 with autocast to bfloat16; eager steps with eager ones, and CUDA graphs with CUDA graphs.
"""

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, models, nn, ops, optim
from gpucnn.commands.check.measure import between_events, training_operations
from gpucnn.commands.check.part import Reporter
from gpucnn.commands.check.program import replayed_step, training_step
from gpucnn.errors import ArgumentError, GpucnnError
from gpucnn.precision import bfloat16, float32_precision

_INSTALL = "pip install torch"
_LOSS_BOUND = 1e-3  # relative, after a few float32 steps with different summation orders
_COMPILED = "compiled, reduce-overhead"
_BATCH = 128


@dataclass(frozen=True)
class Mode:
    """One way to train with PyTorch."""

    name: str
    precision: str = "fp32"  # "tf32", or "bf16": autocast
    compiled: bool = False
    graph: bool = False  # the whole step as a torch.cuda.CUDAGraph


PRECISIONS = ("fp32", "tf32", "bf16")
MODES = tuple(
    mode
    for precision in PRECISIONS
    for mode in (
        Mode(f"channels_last, {precision}", precision),
        Mode(f"channels_last, {precision}, CUDAGraph", precision, graph=True),
    )
)
COMPILED = (
    Mode(f"{_COMPILED}, fp32", compiled=True),
    Mode(f"{_COMPILED}, bf16", "bf16", compiled=True),
)


def examine(reporter: Reporter) -> None:
    if importlib.util.find_spec("torch") is None:
        reporter.skip("PyTorch", "not installed", _INSTALL)
        return
    import torch

    usable = torch.cuda.is_available() and not reporter.simulated
    torch_device = f"cuda:{reporter.device.index}" if usable else "cpu"
    reporter.run("losses", _losses, reporter, torch_device)
    if not usable:
        reason = f"torch {torch.__version__} sees no CUDA device"
        reporter.skip(
            "times",
            "times of the simulator say nothing about a GPU" if reporter.simulated else reason,
        )
        return
    for precision in PRECISIONS:
        modes = [mode for mode in MODES if mode.precision == precision]
        reporter.run(f"times in {precision}", _times, reporter, torch_device, precision, modes)
    for mode in COMPILED:
        if reporter.seconds_left() > 15:
            reporter.run(mode.name, _compiled, reporter, torch_device, mode)
        else:
            reporter.skip(
                mode.name, f"{reporter.seconds_left():.0f} s left, and compiling takes longer"
            )


# --- the same network ---


def twin(model: nn.Module, torch_device: str, dropout: bool = True) -> Any:
    """The PyTorch twin of a Sequential: same weights, channels last.

    Raises ArgumentError for a model or layer that has no twin here.
    """
    import torch

    if not isinstance(model, nn.Sequential):
        raise ArgumentError(f"PyTorch's twin of a {type(model).__name__} is not implemented")
    layers = [_twin(layer, torch, dropout) for _, layer in model.named_children()]
    return torch.nn.Sequential(*layers).to(torch_device).to(memory_format=torch.channels_last)


def _twin(layer: nn.Module, torch: Any, dropout: bool) -> Any:
    t = torch.nn
    other: Any = None
    if isinstance(layer, nn.Conv2d):
        oc, kh, kw, c = layer.weight.shape
        settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
        other = t.Conv2d(c * layer.groups, oc, (kh, kw), *settings, layer.bias is not None)
        _fill(torch, other.weight, layer.weight.numpy().transpose(0, 3, 1, 2))
    elif isinstance(layer, nn.Linear):
        other = t.Linear(layer.weight.shape[1], layer.weight.shape[0], layer.bias is not None)
        _fill(torch, other.weight, layer.weight.numpy())
    elif isinstance(layer, nn.BatchNorm2d):
        other = t.BatchNorm2d(layer.weight.size, layer.eps, layer.momentum)
        _fill(torch, other.weight, layer.weight.numpy())
        _fill(torch, other.bias, layer.bias.numpy())
        return other
    elif isinstance(layer, nn.AvgPool2d):
        pool = (
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.ceil_mode,
            layer.count_include_pad,
        )
        return t.AvgPool2d(*pool)
    elif isinstance(layer, nn.MaxPool2d):
        return t.MaxPool2d(
            layer.kernel_size, layer.stride, layer.padding, ceil_mode=layer.ceil_mode
        )
    elif isinstance(layer, nn.Flatten):

        class Flatten(t.Module):  # type: ignore
            """Flattens in gpucnn's order: row, column, channel."""

            def forward(self, x: Any) -> Any:
                return x.permute(0, 2, 3, 1).flatten(1)

        return Flatten()
    elif isinstance(layer, nn.Dropout):
        return t.Dropout(layer.p) if dropout else t.Identity()
    elif isinstance(layer, nn.LocalResponseNorm):  # PyTorch divides alpha by size
        return t.LocalResponseNorm(layer.size, layer.alpha * layer.size, layer.beta, layer.k)
    elif isinstance(layer, nn.ReLU | nn.Tanh):
        return getattr(t, type(layer).__name__)()
    else:
        raise ArgumentError(f"PyTorch's twin of a {type(layer).__name__} is not implemented")
    if layer.bias is not None:
        _fill(torch, other.bias, layer.bias.numpy())
    return other


def _fill(torch: Any, parameter: Any, values: np.ndarray[Any, Any]) -> None:
    parameter.data = torch.tensor(np.ascontiguousarray(values))


# --- losses ---


@float32_precision("highest")
def _losses(reporter: Reporter, torch_device: str) -> None:
    """Compare the losses of a few SGD steps on one batch, without dropout, whose masks differ."""
    import torch

    name, steps = reporter.task.model, 3 if reporter.task.quick else 6
    batch = 2 if torch_device == "cpu" else 32
    model = models.build(name, generator=np.random.default_rng(3))
    seconds = reporter.estimated_seconds(training_operations(model, name) * batch)
    if seconds > reporter.seconds_left() / 8:
        reporter.skip("losses", f"a step on {batch} images would take {seconds:.0f} s here")
        return
    other = twin(model, torch_device, dropout=False)
    set_torch_precision("fp32")
    rng = np.random.default_rng(4)
    x = rng.standard_normal((batch, *models.input_shape(name)), np.float32)
    labels = rng.integers(0, model.parameters()[-1].size, batch)
    model.to(reporter.device)
    for _, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.training = False
    ours = optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    theirs = torch.optim.SGD(other.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    images, targets = gpucnn.tensor(x, reporter.device), gpucnn.tensor(labels, reporter.device)
    torch_x = torch.tensor(x).permute(0, 3, 1, 2).to(torch_device)
    torch_y = torch.tensor(labels).to(torch_device)
    worst, done = 0.0, 0
    for step in range(steps):
        start = time.perf_counter()
        ours.zero_grad()
        loss = ops.cross_entropy(model(images), targets)
        loss.backward()
        ours.step()
        theirs.zero_grad()
        expected = torch.nn.functional.cross_entropy(other(torch_x), torch_y)
        expected.backward()
        theirs.step()
        difference = abs(loss.item() - expected.item()) / max(abs(expected.item()), 1e-6)
        worst = max(worst, difference)
        reporter.row(
            f"Losses of {name} from the same weights, PyTorch on {torch_device}",
            {"step": step + 1, "gpucnn": loss.item(), "PyTorch": expected.item(),
             "difference": difference},
        )  # fmt: skip
        done = step + 1
        if 2 * (time.perf_counter() - start) > reporter.seconds_left():
            break
    if not worst <= _LOSS_BOUND:
        reporter.fail("losses", f"they differ by {worst:.1e}, allowed {_LOSS_BOUND:.0e}")
        return
    reporter.ok("losses", f"{done} steps, largest relative difference {worst:.1e}")
    reporter.headline(f"PyTorch's losses within {worst:.0e}")


# --- times ---


def _times(reporter: Reporter, torch_device: str, precision: str, modes: Sequence[Mode]) -> None:
    """Time gpucnn in `precision` and each mode in turn; report medians over the rounds."""
    import torch

    torch.backends.cudnn.benchmark = True
    name, device = reporter.task.model, reporter.device
    reason = _obstacle(reporter, precision)
    if reason:
        reporter.skip(f"times in {precision}", reason)
        return
    rounds, steps = (3, 10) if reporter.task.quick else (7, 20)
    eager, replayed = f"gpucnn, {precision}", f"gpucnn, {precision}, graph"
    with device.xp.cuda.Device(device.index), torch.cuda.device(device.index):
        runs: dict[str, Callable[[], float]] = {}
        for key, make in ((eager, training_step), (replayed, replayed_step)):
            try:
                run = make(device, name, _BATCH, precision)
                for _ in range(3):
                    run()
            except GpucnnError as error:
                reporter.fail(key, str(error))
                continue
            runs[key] = lambda run=run: between_events(run, steps, device)  # type: ignore[misc]
        for mode in modes:
            try:
                step = torch_step(name, torch_device, mode, _BATCH)
                for _ in range(4):  # cuDNN tries algorithms; torch.compile compiles and captures
                    step()
                torch.cuda.synchronize()
            except Exception as error:
                reporter.note(mode.name, f"does not run: {str(error).strip().splitlines()[0]:.200}")
                continue
            runs[mode.name] = lambda step=step: _torch_ms(step, steps, torch)  # type: ignore[misc]
        times: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(rounds):
            if reporter.seconds_left() < 2:
                break
            for key, measure in runs.items():
                times[key].append(measure())
    for key in runs:
        if not times[key]:
            continue
        ratios = {own: _ratio(times.get(own), times[key]) for own in (eager, replayed)}
        reporter.row(
            f"A step of {name}, {_BATCH} images, in {precision}: "
            f"{len(times[key])} interleaved rounds of {steps}",
            {"side": key, "ms": statistics.median(times[key]),
             "eager gpucnn's time / its time": ratios[eager],
             "replayed gpucnn's time / its time": ratios[replayed]},
        )  # fmt: skip
    for mode in modes:
        own = replayed if mode.graph else eager
        if times.get(mode.name) and times.get(own):
            ratio = _ratio(times[own], times[mode.name])
            way = "replayed, " if mode.graph else ""
            reporter.headline(f"{way}{ratio:.2f} of PyTorch's time ({mode.name})")


def _obstacle(reporter: Reporter, precision: str) -> str:
    """Why gpucnn cannot compute in `precision` on tensor cores here, or ""."""
    card = cuda.card_of(reporter.device)
    if precision != "fp32" and card.sm < 80:
        return f"{card} has no tensor cores for it"
    if precision == "bf16":
        try:
            bfloat16()
        except GpucnnError as error:  # it needs a package
            return str(error)
    return ""


def _ratio(own: list[float] | None, other: list[float]) -> float | str:
    """The median over rounds of own / other; "" without times of its own."""
    return statistics.median(a / b for a, b in zip(own, other, strict=True)) if own else ""


def _compiled(reporter: Reporter, torch_device: str, mode: Mode) -> None:
    reporter.excuse("torch.compile took too long")
    _times(reporter, torch_device, mode.precision, (mode,))


def _torch_ms(step: Callable[[], object], steps: int, torch: Any) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(steps):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / steps


def set_torch_precision(precision: str) -> None:
    """Multiply float32 tensors in TF32 for "tf32", else in float32."""
    import torch

    tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def torch_step(name: str, torch_device: str, mode: Mode, batch: int) -> Callable[[], object]:
    """A training step of the PyTorch twin of model `name`."""
    import torch

    model = twin(models.build(name, generator=np.random.default_rng(0)), torch_device)
    shape = (batch, *models.input_shape(name))
    x = torch.randn(shape, device=torch_device).permute(0, 3, 1, 2)  # channels last
    y = torch.randint(0, 10, (batch,), device=torch_device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)

    def loss_of(images: Any, labels: Any) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=mode.precision == "bf16"):
            return torch.nn.functional.cross_entropy(model(images), labels)

    forward = torch.compile(loss_of, mode="reduce-overhead") if mode.compiled else loss_of

    def step() -> None:
        set_torch_precision(mode.precision)
        if mode.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        forward(x, y).backward()
        optimizer.step()

    return _captured(step, torch) if mode.graph else step


def _captured(step: Callable[[], object], torch: Any) -> Callable[[], object]:
    """`step` as a CUDA graph.  The first steps run on a stream of their own, as PyTorch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):  # cuDNN tries algorithms
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], object] = graph.replay
    return replay
