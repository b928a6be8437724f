"""Part 2: compare every kernel, every layer of the models and a whole step with the CPU."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, models, nn, ops
from gpucnn.commands import launches
from gpucnn.commands.check import step_modes
from gpucnn.commands.check.beside_cpu import host, largest, relative, results
from gpucnn.commands.check.kernels import bound, cases
from gpucnn.commands.check.measure import training_operations
from gpucnn.commands.check.part import Reporter
from gpucnn.cpu import usable_cores
from gpucnn.errors import KernelError
from gpucnn.precision import float32_precision

# A layer, the shape of its input and its multiply-adds, per image
Layer = tuple[nn.Module, tuple[int, ...], int]

# Relative to the largest value, of float32 products: step_modes.py examines TF32.
_LAYER_BOUND = 1e-5  # float32 sums in another order
_STEP_BOUND = 3e-5  # sums of up to 3456 terms, about sqrt(3456) * 2**-24, through 8 layers


def examine(reporter: Reporter) -> None:
    # On the CPU, Winograd's rounding errors would mask those of the kernels.
    gpucnn.set_conv_algorithm("exact")
    reporter.run("compiling", _compile, reporter)
    _every_kernel(reporter)
    reporter.run("whole step", _whole_step, reporter)
    reporter.run("precisions", step_modes.precisions, reporter)
    names = [reporter.task.model]
    if not reporter.task.quick:
        others = [name for name in models.BY_NAME if name not in (reporter.task.model, "mlp")]
        names += sorted(others, key=models.input_shape)  # small images first
    seen: set[str] = set()
    pace = _Pace(reporter)
    slowest = 2.0  # seconds to record the launches of a model
    for number, name in enumerate(names):
        if reporter.seconds_left() < 3 * slowest:
            reporter.note("layers", f"no time left for {', '.join(names[number:])}")
            break
        start = time.perf_counter()
        layers = _layers(name)
        # A large batch launches the kernels that training uses.
        with float32_precision("highest"):  # as the layers run
            recorded = launches.of_model(name, 128, ("training",))["training"]
        training_kernels = {launch.kernel.name for launch in recorded}
        del recorded  # it keeps the arrays of a whole step alive
        slowest = max(slowest, time.perf_counter() - start)
        _every_layer(reporter, name, layers, training_kernels, seen, pace)
    reporter.ok("layers", f"{pace.layers} ran, forward and backward")


def _compile(reporter: Reporter) -> None:
    """Compile every file, so that no case waits for the compiler; cudasim uses all cores."""
    files = sorted({kernel.file for kernel in cuda.kernels().values()})
    device, start = reporter.device, time.perf_counter()

    def compile_one(file: str) -> str:
        try:
            cuda.compile_file(device, file)
        except KernelError as error:
            return str(error)
        return ""

    if reporter.simulated:
        with ThreadPoolExecutor(usable_cores()) as pool:
            errors = list(pool.map(compile_one, files))
    else:
        errors = [compile_one(file) for file in files]
    for file, error in zip(files, errors, strict=True):
        if error:
            first, _, rest = error.partition("\n")
            reporter.fail(f"compiling {file}", first, rest)
    seconds = time.perf_counter() - start
    reporter.note("compiling", f"{seconds:.1f} s for {len(files)} files, cached ones included")


def _every_kernel(reporter: Reporter) -> None:
    errors: dict[str, float] = {}
    ran: set[str] = set()

    def examine_case(name: str, case: Callable[[], float]) -> None:
        with cuda.count_launches() as counted:
            error = case()
        ran.update(counted)
        errors[name] = error
        allowed = bound(name)
        kernels = ", ".join(sorted(counted))
        reporter.row(
            "Every kernel against NumPy: largest difference over the largest value",
            {"case": name, "error": error, "bound": allowed, "kernels": kernels},
        )
        if not error <= allowed:
            reporter.fail(
                name, f"off by {error:.2e} of the largest value, allowed {allowed:.0e}", kernels
            )

    for name, case in cases(np.random.default_rng(20), reporter.task.device):
        reporter.run(name, examine_case, name, case)
    missing = sorted(set(cuda.kernels()) - ran)
    if missing and not reporter.task.skip:
        reporter.note(f"{len(missing)} kernels did not run", ", ".join(missing))
    worst = max(errors, key=lambda name: errors[name] / bound(name), default="")
    if worst and not errors[worst] > bound(worst):
        share = errors[worst] / bound(worst)
        reporter.ok(
            f"{len(ran)} kernels in {len(errors)} cases",
            f"closest to its bound: {worst}, {errors[worst]:.1e} of {bound(worst):.0e} allowed",
        )
        reporter.headline(f"{len(ran)} kernels, worst {share:.0%} of its bound")


def _whole_step(reporter: Reporter) -> None:
    """Compare loss and gradients of one training step on the device and on the CPU."""
    name, batch = reporter.task.model, 2 if reporter.task.quick or reporter.simulated else 8
    model = models.build(name, generator=np.random.default_rng(1))
    operations = training_operations(model, name)
    image_seconds = reporter.estimated_seconds(operations)
    while batch > 1 and image_seconds * batch > reporter.seconds_left() / 8:
        batch //= 2
    if image_seconds * batch > reporter.seconds_left() / 4:
        reporter.skip("whole step", f"a step on one image would take {image_seconds:.0f} s here")
        return
    ours, theirs = (_gradients(name, batch, device) for device in (reporter.task.device, "cpu"))
    worst = 0.0
    for (what, mine), expected in zip(ours.items(), theirs.values(), strict=True):
        error = relative(mine, expected)
        worst = max(worst, error)
        reporter.row(
            f"A whole step of {name}, {batch} images: loss and gradients",
            {"of": what, "error": error, "bound": _STEP_BOUND},
        )
        if not error <= _STEP_BOUND:
            reporter.fail(
                f"step of {name}: {what}", f"off by {error:.2e}, allowed {_STEP_BOUND:.0e}"
            )
    if worst <= _STEP_BOUND:
        reporter.ok(f"step of {name}", f"largest error of loss and gradients {worst:.1e}")
        reporter.headline(f"gradients of a step within {worst:.0e}")


@float32_precision("highest")
def _gradients(name: str, batch: int, device: str) -> dict[str, np.ndarray[Any, Any]]:
    gpucnn.manual_seed(1)  # for dropout
    model = models.build(name, generator=np.random.default_rng(1)).to(device)
    rng = np.random.default_rng(5)
    images = rng.standard_normal((batch, *models.input_shape(name)), np.float32)
    loss = ops.cross_entropy(
        model(gpucnn.tensor(images, device)), gpucnn.tensor(np.arange(batch), device)
    )
    loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {"loss": host(loss)} | {name: host(p.grad) for name, p in trained.items()}


# --- layer by layer ---


class _Pace:
    """Chooses batch sizes by the time that earlier layers took, and records what ran."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        quick_seconds = 0.3 if reporter.simulated else 1.0
        self._seconds_per_layer = quick_seconds if reporter.task.quick else 3.0
        self.layers = 0
        self.kernels: set[str] = set()
        # Seconds per multiply-add, forward and backward, on the device and on the CPU
        self._rate = max(1e-8 if reporter.simulated else 2e-10, 3 * reporter.estimated_seconds(6))

    def batch(self, work: int) -> int:
        """Images for a layer of `work` multiply-adds per image: 0 (no time left) to 128."""
        seconds = min(self._seconds_per_layer, self._reporter.seconds_left() / 4 - 2)
        rate = self._rate * work if work else 1 / 16
        return max(min(int(seconds / rate), 128), 0)

    def record(self, work: int, seconds: float) -> None:
        """Record that a layer of `work` multiply-adds took `seconds`."""
        self.layers += 1
        if work > 3e7:  # below this, launch overhead dominates
            self._rate = seconds / work


def _every_layer(
    reporter: Reporter,
    name: str,
    layers: list[Layer],
    training_kernels: set[str],
    seen: set[str],
    pace: _Pace,
) -> None:
    """Run each layer of model `name` on random numbers, unless `seen` has the same layer and shape.

    training_kernels: the kernels that training the model launches.
    """
    skipped = 0
    for module, shape, work in layers:
        name_and_settings = f"{type(module).__name__} {module.extra_repr()}".rstrip()
        case = f"{name_and_settings} on {shape}"
        if case in seen:
            continue
        seen.add(case)
        batch = pace.batch(work)
        if batch < 1:
            skipped += 1
            continue
        with cuda.count_launches() as counted:
            start = time.perf_counter()
            reporter.run(case, _layer, reporter, name, case, module, (batch, *shape))
            pace.record(work * batch, time.perf_counter() - start)
        pace.kernels |= set(counted)
    if skipped:
        reporter.note(f"layers of {name}", f"{skipped} skipped: they would take too long here")
    reporter.row(
        "Kernels of a float32 training step with 128 images",
        {
            "model": name,
            "kernels": len(training_kernels),
            "run by the layers above": len(training_kernels & pace.kernels),
            "not run": ", ".join(sorted(training_kernels - pace.kernels)),
        },
    )


def _layers(name: str) -> list[Layer]:
    """The layers of model `name` that have no children."""
    layers: list[Layer] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not any(True for _ in module.named_children()):
            layers.append((module, inputs[0].shape[1:], module.multiply_adds(inputs, output)))

    model = models.build(name, generator=np.random.default_rng(1)).eval()
    with gpucnn.no_grad(), nn.observe(keep):
        model(gpucnn.tensor(np.zeros((1, *models.input_shape(name)), np.float32)))
    return layers


@float32_precision("highest")
def _layer(
    reporter: Reporter, name: str, case: str, module: nn.Module, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(2).standard_normal(shape, np.float32)
    both = []
    for device in (reporter.task.device, "cpu"):
        gpucnn.manual_seed(1)  # for dropout
        layer = copy.deepcopy(module).train().to(device)
        given = gpucnn.tensor(x, device, requires_grad=True)
        trained = [p for p in layer.parameters() if p.requires_grad]
        both.append(results(layer(given), [given, *trained]))
    error = largest(*both)
    reporter.row(
        "Layers of the models, forward and backward",
        {"model": name, "layer": case, "batch": shape[0], "error": error, "bound": _LAYER_BOUND},
    )
    if not error <= _LAYER_BOUND:
        reporter.fail(
            f"{name}: {case}, batch {shape[0]}",
            f"off by {error:.2e} of the largest value, allowed {_LAYER_BOUND:.0e}",
        )
