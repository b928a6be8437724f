"""Running a model in order to look at it: in evaluation mode, with its parameters left alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from gpucnn.autograd import enable_grad, no_grad
from gpucnn.device import Array, array_module, to_device, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.nn import Module, observe
from gpucnn.nn.summary import _place
from gpucnn.tensor import Tensor

Layer: TypeAlias = str | Module
Classes: TypeAlias = int | Sequence[int] | np.ndarray[Any, Any] | None


def activations(
    model: Module, images: Any, layers: Sequence[Layer] | None = None, batch_size: int = 256
) -> dict[str, Array]:
    """What each of `layers` gives for `images`: {layer's name: array (N, ...)}, on the device.

    images (N, H, W, C) are as the model takes them, normalised; layers are dotted names or
    modules, None means every layer without children.  A layer that runs several times in one
    pass is shown as it ran last.  Nothing is recorded, and the model is left as it was.

    Raises ArgumentError for a layer that the model does not have or does not run.
    """
    names = {id(module): name for name, module in model.named_modules()}
    if layers is None:
        chosen = [m for _, m in model.named_modules() if not any(True for _ in m.named_children())]
    else:
        chosen = [find_layer(model, layer) for layer in layers]
    parts: dict[str, list[Array]] = {}
    with at_rest(model), no_grad():
        for x in batches(as_input("activations", model, images), batch_size):
            outputs = run(model, Tensor(x), chosen)[1]
            if layers is not None:
                for module in chosen:
                    result_of("activations", outputs, module, names[id(module)])
            for module, output in outputs:
                if isinstance(output, Tensor):
                    parts.setdefault(names[id(module)], []).append(output.data)
        return {name: array_module(some[0]).concatenate(some) for name, some in parts.items()}


def find_layer(model: Module, layer: Layer) -> Module:
    """The part of `model` that `layer` names, or `layer` itself if it is one."""
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, Module):
        if any(module is layer for module in modules.values()):
            return layer
        raise ArgumentError(f"layer {type(layer).__name__} is not a part of this model")
    if layer not in modules:
        names = ", ".join(name for name in modules if name)
        raise ArgumentError(f"layer {layer!r} is unknown; this model has {names or 'none'}")
    return modules[layer]


@contextmanager
def at_rest(model: Module) -> Iterator[None]:
    """Evaluation mode and no gradients of parameters inside the block; all put back after it.

    The block works on the model's device.
    Without them a backward pass reaches the image and nothing else: no `.grad` of the model is
    touched, and no time goes into dw.
    """
    recorded = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in recorded:
            parameter.requires_grad = False
        with model.evaluating(), working_on(_place(model)[0]), enable_grad():
            yield
    finally:
        for parameter, wanted in recorded:
            parameter.requires_grad = wanted


def as_input(op: str, model: Module, images: Any) -> Array:
    """`images` as an array on the model's device, of the model's dtype; errors speak for `op`."""
    data = images.data if isinstance(images, Tensor) else images
    data = data if hasattr(data, "dtype") else np.asarray(data, np.float32)
    if data.ndim < 2 or len(data) == 0:
        raise ShapeError(f"{op}: expected images (N, H, W, C), N > 0, got shape {data.shape}")
    if data.dtype.kind != "f":
        raise DtypeError(
            f"{op}: expected floating-point images, normalised as in training, got {data.dtype}\n"
            "  call the training's data.Normalize on them first"
        )
    device, dtype = _place(model)
    with working_on(device):
        return to_device(data, device).astype(dtype, copy=False)


def batches(x: Array, size: int) -> Iterator[Array]:
    """x in pieces of at most `size`."""
    if size < 1:
        raise ArgumentError(f"batch_size must be at least 1, got {size}")
    for start in range(0, len(x), size):
        yield x[start : start + size]


def run(
    model: Module, x: Tensor, layers: Sequence[Module]
) -> tuple[Any, list[tuple[Module, Tensor]]]:
    """The model's output for x, and (layer, output) of those of `layers` that ran, in order."""
    wanted = {id(layer) for layer in layers}
    seen: dict[int, tuple[Module, Tensor]] = {}

    def note(module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if id(module) in wanted:
            seen[id(module)] = (module, output)

    with observe(note):
        output = model(x)
    return output, list(seen.values())


def result_of(op: str, outputs: list[tuple[Module, Tensor]], layer: Module, name: Layer) -> Tensor:
    """What `layer` gave, out of what `run` returned."""
    for module, output in outputs:
        if module is layer:
            return output
    raise ArgumentError(f"{op}: layer {name!r} did not run for these images")


def chosen_classes(op: str, logits: Tensor, classes: Classes) -> Array:
    """A class for each row of logits (N, K): given, or the one with the largest logit."""
    if logits.ndim != 2:
        raise ShapeError(f"{op}: expected a model that gives logits (N, K), got {logits.shape}")
    xp, (n, k) = array_module(logits.data), logits.shape
    if classes is None:
        return logits.data.argmax(axis=1)
    picked = np.broadcast_to(np.asarray(classes), (n,)) if np.ndim(classes) == 0 else classes
    picked = np.asarray(picked)
    if picked.shape != (n,) or picked.dtype.kind not in "iu":
        raise ShapeError(
            f"{op}: expected one class, or one for each of {n} images, got {picked.dtype} "
            f"of shape {picked.shape}"
        )
    if picked.min() < 0 or picked.max() >= k:
        raise ArgumentError(f"{op}: classes are 0 to {k - 1}, got {picked.min()}..{picked.max()}")
    return xp.asarray(picked)


def one_hot(classes: Array, logits: Tensor) -> Array:
    """(N, K): 1 at each row's class, of the logits' dtype and device."""
    xp = array_module(logits.data)
    picked = xp.zeros_like(logits.data)
    picked[xp.arange(len(logits)), classes] = 1
    return picked
