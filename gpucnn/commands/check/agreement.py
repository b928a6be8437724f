"""Part 2: every kernel, every layer of the models and a whole step beside the CPU's."""

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import gpucnn
from gpucnn import cuda, models, nn, ops
from gpucnn.commands import launches
from gpucnn.commands.check.beside_cpu import host, largest, relative, results
from gpucnn.commands.check.kernels import bound, cases
from gpucnn.commands.check.measure import training_operations
from gpucnn.commands.check.part import Out
from gpucnn.cpu import usable_cores
from gpucnn.errors import KernelError

# A layer, the shape of its input and its multiply-adds, for one image
Layer = tuple[nn.Module, tuple[int, ...], int]

_LAYER_BOUND = 1e-5  # of the largest value: the order of a float32 sum
_STEP_BOUND = 3e-5  # sums of at most 3456 terms, about sqrt(3456) * 2**-24, through 8 layers


def examine(out: Out) -> None:
    # Winograd, on the CPU, has a rounding of its own, which would hide the kernels'.
    gpucnn.set_conv_algorithm("exact")
    out.run("compiling", _compile, out)
    _every_kernel(out)
    out.run("whole step", _whole_step, out)
    names = [out.task.model]
    if not out.task.quick:
        others = [name for name in models.BY_NAME if name not in (out.task.model, "mlp")]
        names += sorted(others, key=models.input_shape)  # small images first
    seen: set[str] = set()
    pace = _Pace(out)
    slowest = 2.0  # seconds to find out what a model launches
    for number, name in enumerate(names):
        if out.left() < 3 * slowest:
            out.note("layers", f"no time for those of {', '.join(names[number:])}")
            break
        start = time.perf_counter()
        layers = _layers(name)
        # The kernels that training really takes: those of a large batch
        recorded = launches.of_model(name, 128, ("training",))["training"]
        wanted = {launch.kernel.name for launch in recorded}
        del recorded  # it keeps the arrays of a whole step
        slowest = max(slowest, time.perf_counter() - start)
        _every_layer(out, name, layers, wanted, seen, pace)
    out.ok("layers", f"{pace.layers} of the models ran, forward and backward")


def _compile(out: Out) -> None:
    """Every file, so that no case waits for the compiler; the simulator's on all cores."""
    files = sorted({kernel.file for kernel in cuda.kernels().values()})
    device, start = out.device, time.perf_counter()

    def compile_one(file: str) -> str:
        try:
            cuda.compile_file(device, file)
        except KernelError as error:
            return str(error)
        return ""

    if out.simulated:
        with ThreadPoolExecutor(usable_cores()) as pool:
            errors = list(pool.map(compile_one, files))
    else:
        errors = [compile_one(file) for file in files]
    for file, error in zip(files, errors, strict=True):
        if error:
            first, _, rest = error.partition("\n")
            out.fail(f"compiling {file}", first, rest)
    seconds = time.perf_counter() - start
    out.note("compiling", f"{seconds:.1f} s for {len(files)} files, or for those not in the cache")


def _every_kernel(out: Out) -> None:
    errors: dict[str, float] = {}
    ran: set[str] = set()

    def look(name: str, case: Callable[[], float]) -> None:
        with cuda.count_launches() as counted:
            error = case()
        ran.update(counted)
        errors[name] = error
        allowed = bound(name)
        kernels = ", ".join(sorted(counted))
        out.row(
            "Every kernel beside NumPy: largest difference over the largest value",
            {"case": name, "error": error, "bound": allowed, "kernels": kernels},
        )
        if not error <= allowed:
            out.fail(
                name, f"off by {error:.2e} of the largest value, allowed {allowed:.0e}", kernels
            )

    for name, case in cases(np.random.default_rng(20), out.task.device):
        out.run(name, look, name, case)
    missing = sorted(set(cuda.kernels()) - ran)
    if missing and not out.task.skip:
        out.note(f"{len(missing)} kernels did not run", ", ".join(missing))
    worst = max(errors, key=lambda name: errors[name] / bound(name), default="")
    if worst and not errors[worst] > bound(worst):
        share = errors[worst] / bound(worst)
        out.ok(
            f"{len(ran)} kernels in {len(errors)} cases",
            f"closest to its bound: {worst}, {errors[worst]:.1e} of {bound(worst):.0e}",
        )
        out.headline(f"{len(ran)} kernels, worst {share:.0%} of its bound")


def _whole_step(out: Out) -> None:
    """Loss and gradients of one step of the model, on the device and on the CPU."""
    name, batch = out.task.model, 2 if out.task.quick or out.simulated else 8
    model = models.build(name, generator=np.random.default_rng(1))
    operations = training_operations(model, name)
    while batch > 1 and out.seconds(operations * batch) > out.left() / 8:
        batch //= 2
    if (seconds := out.seconds(operations * batch)) > out.left() / 4:
        out.skip("whole step", f"a step on one image would take {seconds:.0f} s here")
        return
    ours, theirs = (_gradients(name, batch, device) for device in (out.task.device, "cpu"))
    worst = 0.0
    for (what, mine), expected in zip(ours.items(), theirs.values(), strict=True):
        error = relative(mine, expected)
        worst = max(worst, error)
        out.row(
            f"A whole step of {name}, {batch} images: loss and gradients",
            {"of": what, "error": error, "bound": _STEP_BOUND},
        )
        if not error <= _STEP_BOUND:
            out.fail(f"step of {name}: {what}", f"off by {error:.2e}, allowed {_STEP_BOUND:.0e}")
    if worst <= _STEP_BOUND:
        out.ok(f"step of {name}", f"largest error of loss and gradients {worst:.1e}")
        out.headline(f"gradients of a step within {worst:.0e}")


def _gradients(name: str, batch: int, device: str) -> dict[str, np.ndarray[Any, Any]]:
    gpucnn.manual_seed(1)  # of dropout
    model = models.build(name, generator=np.random.default_rng(1)).to(device)
    rng = np.random.default_rng(5)
    images = rng.standard_normal((batch, *models.input_shape(name)), np.float32)
    loss = ops.cross_entropy(
        model(gpucnn.tensor(images, device)), gpucnn.tensor(np.arange(batch), device)
    )
    loss.backward()
    found = {"loss": host(loss)}
    return found | {name: host(p.grad) for name, p in model.named_parameters()}


# --- layer by layer ---


class _Pace:
    """Chooses batches by how long the layers so far took, and keeps what ran."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self._most = (0.3 if out.simulated else 1.0) if out.task.quick else 3.0  # seconds a layer
        self.layers = 0
        self.ran: set[str] = set()  # kernels
        # Seconds of a multiply-add, forward and back, on the device and on the CPU
        self._rate = max(1e-8 if out.simulated else 2e-10, 3 * out.seconds(6))

    def batch(self, work: int) -> int:
        """Images for a layer of `work` multiply-adds an image: at most 128, 0 without time."""
        seconds = min(self._most, self._out.left() / 4 - 2)
        rate = self._rate * work if work else 1 / 16
        return max(min(int(seconds / rate), 128), 0)

    def took(self, work: int, seconds: float) -> None:
        self.layers += 1
        if work > 3e7:  # less is mostly what a launch takes
            self._rate = seconds / work


def _every_layer(
    out: Out, name: str, layers: list[Layer], wanted: set[str], seen: set[str], pace: _Pace
) -> None:
    """Each layer of model `name` on random numbers, unless `seen` has one like it.

    wanted: the kernels that training the model launches.
    """
    left_out = 0
    for module, shape, work in layers:
        case = f"{type(module).__name__} {module.extra_repr()} on {shape}"
        if case in seen:
            continue
        seen.add(case)
        batch = pace.batch(work)
        if batch < 1:
            left_out += 1
            continue
        with cuda.count_launches() as counted:
            start = time.perf_counter()
            out.run(case, _layer, out, name, case, module, (batch, *shape))
            pace.took(work * batch, time.perf_counter() - start)
        pace.ran |= set(counted)
    if left_out:
        out.note(f"layers of {name}", f"{left_out} left out: they would take too long here")
    out.row(
        "Kernels of a training step with 128 images",
        {
            "model": name,
            "kernels": len(wanted),
            "run by the layers above": len(wanted & pace.ran),
            "others": ", ".join(sorted(wanted - pace.ran)),
        },
    )


def _layers(name: str) -> list[Layer]:
    """Each layer without children."""
    found: list[Layer] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not any(True for _ in module.named_children()):
            found.append((module, inputs[0].shape[1:], module.multiply_adds(inputs, output)))

    model = models.build(name, generator=np.random.default_rng(1)).eval()
    with gpucnn.no_grad(), nn.observe(keep):
        model(gpucnn.tensor(np.zeros((1, *models.input_shape(name)), np.float32)))
    return found


def _layer(out: Out, name: str, case: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(2).standard_normal(shape, np.float32)
    both = []
    for device in (out.task.device, "cpu"):
        gpucnn.manual_seed(1)  # of dropout
        layer = copy.deepcopy(module).train().to(device)
        given = gpucnn.tensor(x, device, requires_grad=True)
        both.append(results(layer(given), [given, *layer.parameters()]))
    error = largest(*both)
    out.row(
        "Layers of the models, forward and backward",
        {"model": name, "layer": case, "batch": shape[0], "error": error, "bound": _LAYER_BOUND},
    )
    if not error <= _LAYER_BOUND:
        out.fail(
            f"{name}: {case}, batch {shape[0]}",
            f"off by {error:.2e} of the largest value, allowed {_LAYER_BOUND:.0e}",
        )
