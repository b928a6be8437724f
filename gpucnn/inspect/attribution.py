"""Which pixels made the model say what it said: gradients, Grad-CAM, occlusion.

All three explain a score: the model's output for a class, usually its logit.  Results are NumPy
arrays; `draw.overlay` lays them over the images.
"""

from typing import Any

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import Array, array_module, to_host
from gpucnn.errors import ArgumentError, GraphError, ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.forward import (
    Classes,
    Layer,
    as_input,
    at_rest,
    batches,
    chosen_classes,
    find_layer,
    one_hot,
    result_of,
    run,
)
from gpucnn.nn import Conv2d, Module
from gpucnn.tensor import Tensor

Maps = np.ndarray[Any, Any]


def input_gradient(model: Module, images: Any, classes: Classes = None) -> Maps:
    """d score / d image: how each value of each image moves the score of its class, (N, H, W, C).

    classes is a class for all images or one for each; None is what the model says itself.
    """
    x = Tensor(as_input("input_gradient", model, images), requires_grad=True)
    with at_rest(model):
        logits = model(x)
        chosen = chosen_classes("input_gradient", logits, classes)
        _backward("input_gradient", logits, one_hot(chosen, logits))
    return to_host(x.grad)


def saliency(
    model: Module, images: Any, classes: Classes = None, path: draw.File | None = None
) -> Maps:
    """The largest |d score / d image| over the channels of each pixel: (N, H, W).

    classes as for input_gradient.  With `path`, a PNG: each image with its map below it.
    Source: Simonyan et al. 2014, section 3.1.
    """
    maps: Maps = np.abs(input_gradient(model, images, classes)).max(axis=-1)
    if path is not None:
        draw.write_maps(path, to_host(as_input("saliency", model, images)), maps)
    return maps


def grad_cam(
    model: Module,
    images: Any,
    layer: Layer | None = None,
    classes: Classes = None,
    path: draw.File | None = None,
) -> Maps:
    """Where the features of `layer` speak for the class: (N, h, w), h x w the layer's pixels.

        map = relu(sum over k of a[k] A[..., k]),  a[k] = mean over pixels of d score / d A[..., k]

    A (N, h, w, K) is the layer's output; layer None is the last Conv2d that ran.  classes as for
    input_gradient.  With `path`, a PNG: each image with its map, stretched to its size, below it.

    Raises ShapeError if the layer's output is not (N, h, w, K), ArgumentError if there is none.
    Source: Selvaraju et al. 2017, equations 1 and 2.
    """
    array = as_input("grad_cam", model, images)
    x = Tensor(array, requires_grad=True)
    wanted: list[Module]
    if layer is None:
        wanted = [m for _, m in model.named_modules() if isinstance(m, Conv2d)]
    else:
        wanted = [find_layer(model, layer)]
    with at_rest(model):
        logits, outputs = _run_retaining(model, x, wanted)
        if layer is None:
            if not outputs:
                raise ArgumentError("grad_cam: this model has no Conv2d; name a layer")
            features = outputs[-1][1]
        else:
            features = result_of("grad_cam", outputs, wanted[0], layer)
        if features.ndim != 4:
            raise ShapeError(f"grad_cam: layer {layer!r} gives {features.shape}, not (N, h, w, K)")
        chosen = chosen_classes("grad_cam", logits, classes)
        _backward("grad_cam", logits, one_hot(chosen, logits))
        if features.grad is None:
            raise GraphError(f"grad_cam: the score does not depend on layer {layer!r}")
        weights = features.grad.mean(axis=(1, 2), keepdims=True)
        maps = to_host((weights * features.data).sum(axis=3).clip(0, None))
    if path is not None:
        draw.write_maps(path, to_host(array), maps)
    return maps


def _run_retaining(
    model: Module, x: Tensor, layers: list[Module]
) -> tuple[Tensor, list[tuple[Module, Tensor]]]:
    logits, outputs = run(model, x, layers)
    for _, output in outputs:
        if output.requires_grad:
            output.retain_grad()
    return logits, outputs


def _backward(op: str, score: Tensor, gradient: Array) -> None:
    if not score.requires_grad:
        raise GraphError(f"{op}: the model's output does not depend on the images")
    score.backward(gradient)


def occlusion(
    model: Module,
    images: Any,
    window: int = 8,
    stride: int = 2,
    fill: float = 0.0,
    classes: Classes = None,
    batch_size: int = 256,
    path: draw.File | None = None,
) -> Maps:
    """How far the score falls when a pixel is covered: (N, H, W).

    A square of window x window pixels, set to `fill` (0 is the mean colour of normalised images),
    moves over each image in steps of `stride`, the last step to the edge.  A pixel's value is the
    mean fall of the score over the squares that cover it; negative where covering helps.  classes
    as for input_gradient.  With `path`, a PNG: each image with its map below it.

    Raises ArgumentError unless 1 <= stride <= window <= image.
    Source: Zeiler and Fergus 2014, section 4.2.
    """
    x = as_input("occlusion", model, images)
    if x.ndim != 4:
        raise ShapeError(f"occlusion: expected images (N, H, W, C), got shape {x.shape}")
    n, h, w, _ = x.shape
    if not 1 <= stride <= window <= min(h, w):
        raise ArgumentError(
            f"occlusion: expected 1 <= stride <= window <= {min(h, w)}, the image's shorter side, "
            f"got stride {stride}, window {window}"
        )
    xp = array_module(x)
    corners = [(i, j) for i in _starts(h, window, stride) for j in _starts(w, window, stride)]
    falls, cover = np.zeros((n, h, w), x.dtype), np.zeros((h, w), x.dtype)
    with at_rest(model), no_grad():
        logits = model(Tensor(x))
        chosen = chosen_classes("occlusion", logits, classes)
        whole = (logits.data * one_hot(chosen, logits)).sum(axis=1)
        for image in range(n):
            scores = []
            for some in batches(np.arange(len(corners)), batch_size):
                covered = xp.repeat(x[image : image + 1], len(some), axis=0)
                for row, corner in enumerate(some):
                    i, j = corners[corner]
                    covered[row, i : i + window, j : j + window] = fill
                scores.append(model(Tensor(covered)).data[:, int(chosen[image])])
            fallen = to_host(whole[image] - xp.concatenate(scores))
            for (i, j), fall in zip(corners, fallen, strict=True):
                falls[image, i : i + window, j : j + window] += fall
    for i, j in corners:
        cover[i : i + window, j : j + window] += 1
    maps: Maps = falls / cover
    if path is not None:
        draw.write_maps(path, to_host(x), maps)
    return maps


def _starts(size: int, window: int, stride: int) -> list[int]:
    """Where squares begin along one axis: every `stride` pixels, and one that ends at the edge."""
    starts = list(range(0, size - window + 1, stride))
    return starts if starts[-1] == size - window else [*starts, size - window]
