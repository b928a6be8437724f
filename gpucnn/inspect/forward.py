"""Forward passes for inspection: in evaluation mode, with frozen parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from gpucnn.autograd import enable_grad, no_grad
from gpucnn.device import Array, array_module, to_device, to_host, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.nn import Module, observe
from gpucnn.nn.summary import device_and_dtype
from gpucnn.precision import is_floating
from gpucnn.tensor import Tensor

Layer: TypeAlias = str | Module
Classes: TypeAlias = int | Sequence[int] | Array | Tensor | None


def activations(
    model: Module, images: Any, layers: Sequence[Layer] | None = None, batch_size: int = 256
) -> dict[str, Array]:
    """The outputs of `layers` for `images`: {layer's name: array (N, ...)}, on the model's device.

    images is (N, H, W, C), normalised as in training.  layers are dotted names or modules; None
    means every layer without children.  For a layer that runs several times in a forward pass, the
    last output counts.  Records no graph and leaves the model unchanged.

    Raises ArgumentError for a layer that is not part of the model or did not run.
    """
    names = {id(module): name for name, module in model.named_modules()}
    if layers is None:
        chosen = [m for _, m in model.named_modules() if not any(True for _ in m.named_children())]
    else:
        chosen = [find_layer(model, layer) for layer in layers]
    parts: dict[str, list[Array]] = {}
    with frozen(model), no_grad():
        for x in batches(as_input("activations", model, images), batch_size):
            outputs = run(model, Tensor(x), chosen)[1]
            if layers is not None:
                for module in chosen:
                    output_of("activations", outputs, module, names[id(module)])
            for module, output in outputs:
                if isinstance(output, Tensor):
                    parts.setdefault(names[id(module)], []).append(output.data)
        return {name: array_module(ys[0]).concatenate(ys) for name, ys in parts.items()}


def find_layer(model: Module, layer: Layer) -> Module:
    """The part of `model` that `layer` names, or `layer` itself if it is one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, Module):
        if any(module is layer for module in modules.values()):
            return layer
        raise ArgumentError(f"layer {type(layer).__name__} is not part of this model")
    if layer not in modules:
        names = ", ".join(name for name in modules if name)
        raise ArgumentError(f"layer {layer!r} is unknown; this model has {names or 'none'}")
    return modules[layer]


@contextmanager
def frozen(model: Module) -> Iterator[None]:
    """Evaluation mode and frozen parameters inside the block, on the model's device.

    A backward pass then computes the gradient of the images only: it skips dw and leaves the
    `.grad` of parameters alone.  Modes and requires_grad are restored afterwards.
    """
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in required:
            parameter.requires_grad = False
        with model.evaluating(), working_on(device_and_dtype(model)[0]), enable_grad():
            yield
    finally:
        for parameter, requires_grad in required:
            parameter.requires_grad = requires_grad


def as_input(op: str, model: Module, images: Any) -> Array:
    """`images` as an array with the model's device and dtype.

    Raises ShapeError or DtypeError, under the name `op`, unless they are floating-point (N, ...).
    """
    data = images.data if isinstance(images, Tensor) else images
    data = data if hasattr(data, "dtype") else np.asarray(data, np.float32)
    if data.ndim < 2 or len(data) == 0:
        raise ShapeError(f"{op}: expected images (N, H, W, C), N > 0, got shape {data.shape}")
    if not is_floating(data.dtype):
        raise DtypeError(
            f"{op}: expected floating-point images, normalised as in training, got {data.dtype}\n"
            "  apply the data.Normalize of the training first"
        )
    device, dtype = device_and_dtype(model)
    with working_on(device):
        return to_device(data, device).astype(dtype, copy=False)


def batches(x: Array, size: int) -> Iterator[Array]:
    """Views of at most `size` images of x; ArgumentError if size < 1."""
    if size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(x), size):
        yield x[start : start + size]


def run(
    model: Module, x: Tensor, layers: Sequence[Module]
) -> tuple[Any, list[tuple[Module, Tensor]]]:
    """The model's output for x, and (layer, output) for each of `layers` that ran, in order."""
    observed = {id(layer) for layer in layers}
    outputs: dict[int, tuple[Module, Tensor]] = {}

    def record(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if id(module) in observed:
            outputs[id(module)] = (module, output)

    with observe(record):
        output = model(x)
    return output, list(outputs.values())


def output_of(op: str, outputs: list[tuple[Module, Tensor]], layer: Module, name: Layer) -> Tensor:
    """The output of `layer` in the list that `run` returned; ArgumentError if it did not run."""
    for module, output in outputs:
        if module is layer:
            return output
    raise ArgumentError(f"{op}: layer {name!r} did not run for these images")


def target_classes(op: str, logits: Tensor, classes: Classes) -> Array:
    """A class for each row of logits (N, K): the given one, or the one with the largest logit.

    Raises ShapeError unless there is one class, or one per row; ArgumentError for a class outside
    0 to K - 1.
    """
    if logits.ndim != 2:
        raise ShapeError(f"{op}: expected a model that returns logits (N, K), got {logits.shape}")
    xp, (n, k) = array_module(logits.data), logits.shape
    if classes is None:
        return logits.data.argmax(axis=1)
    targets = on_host(classes)
    if targets.ndim == 0:
        targets = np.broadcast_to(targets, (n,))
    if targets.shape != (n,) or targets.dtype.kind not in "iu":
        raise ShapeError(
            f"{op}: expected one class, or one for each of {n} images, got {targets.dtype} "
            f"of shape {targets.shape}"
        )
    if targets.min() < 0 or targets.max() >= k:
        raise ArgumentError(f"{op}: classes are 0 to {k - 1}, got {targets.min()}..{targets.max()}")
    return xp.asarray(targets)


def on_host(values: Any) -> np.ndarray[Any, Any]:
    """A Tensor, an array of either library or a sequence of numbers as a NumPy array."""
    values = values.data if isinstance(values, Tensor) else values
    try:
        array_module(values)
    except TypeError:
        return np.asarray(values)
    return to_host(values)


def one_hot(classes: Array, logits: Tensor) -> Array:
    """Indicators (N, K) of each row's class, in the logits' dtype and on their device."""
    xp = array_module(logits.data)
    indicators = xp.zeros_like(logits.data)
    indicators[xp.arange(len(logits)), classes] = 1
    return indicators
