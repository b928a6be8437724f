"""Attribution: which pixels determine the model's output.  Gradients, Grad-CAM and occlusion.

Each explains a score: the model's output for one class, usually a logit.  Results are NumPy arrays;
`draw.overlay` combines them with the images.
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
    batches,
    find_layer,
    frozen,
    one_hot,
    output_of,
    run,
    target_classes,
)
from gpucnn.nn import Conv2d, Module
from gpucnn.ops._exact import widened
from gpucnn.tensor import Tensor

Maps = np.ndarray[Any, Any]


def input_gradient(model: Module, images: Any, classes: Classes = None) -> Maps:
    """Gradient of each image's score with respect to the image: (N, H, W, C).

    images is (N, H, W, C), normalised as in training.  classes is one class for all images, or one
    per image; None means the predicted class.

    Raises ShapeError or DtypeError for images or classes of the wrong form, ArgumentError for a
    class outside the model's, GraphError if the output does not depend on the images.
    """
    x = Tensor(as_input("input_gradient", model, images), requires_grad=True)
    with frozen(model):
        logits = model(x)
        chosen = target_classes("input_gradient", logits, classes)
        _backward("input_gradient", logits, one_hot(chosen, logits))
    return to_host(x.grad)


def saliency(
    model: Module, images: Any, classes: Classes = None, path: draw.File | None = None
) -> Maps:
    """For each pixel, the largest |d score / d image| over its channels: (N, H, W).

    Arguments and errors are those of input_gradient.  With `path`, write a PNG of each image above
    its map.
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
    """Where the features of `layer` support the class: (N, h, w), the layer's resolution.

        map = relu(sum over k of a[k] A[..., k]),  a[k] = mean over pixels of d score / d A[..., k]

    A (N, h, w, K) is the layer's output; layer None means the last Conv2d that ran.  images and
    classes are as in input_gradient.  With `path`, write a PNG of each image above its map, which
    is resized to the image.

    Raises ShapeError if the layer's output is not (N, h, w, K), ArgumentError if the layer does
    not exist or did not run, GraphError if the score does not depend on it.
    Source: Selvaraju et al. 2017, equations 1 and 2.
    """
    array = as_input("grad_cam", model, images)
    x = Tensor(array, requires_grad=True)
    candidates: list[Module]
    if layer is None:
        candidates = [m for _, m in model.named_modules() if isinstance(m, Conv2d)]
    else:
        candidates = [find_layer(model, layer)]
    with frozen(model):
        logits, outputs = _run_retaining(model, x, candidates)
        if layer is None:
            if not outputs:
                raise ArgumentError("grad_cam: this model has no Conv2d; pass layer=")
            features = outputs[-1][1]
        else:
            features = output_of("grad_cam", outputs, candidates[0], layer)
        if features.ndim != 4:
            raise ShapeError(
                f"grad_cam: expected a layer with output (N, h, w, K), layer {layer!r} returns "
                f"{features.shape}"
            )
        chosen = target_classes("grad_cam", logits, classes)
        _backward("grad_cam", logits, one_hot(chosen, logits))
        if features.grad is None:
            raise GraphError(f"grad_cam: the score does not depend on layer {layer!r}")
        gradient, outputs_of_layer = widened(features.grad), widened(features.data)
        weights = gradient.mean(axis=(1, 2), keepdims=True)
        maps = to_host((weights * outputs_of_layer).sum(axis=3).clip(0, None))
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
    """How much the score drops when a pixel is occluded: (N, H, W).

    A square of window x window pixels is set to `fill` (0 is the mean colour of normalised images)
    and moves over each image in steps of `stride`; the last position is at the edge.  A pixel's
    value is the mean drop of the score over the squares that cover it, negative where the score
    rises.  images and classes are as in input_gradient; batch_size bounds the memory.  With `path`,
    write a PNG of each image above its map.

    Raises ArgumentError unless 1 <= stride <= window <= min(H, W); otherwise as input_gradient.
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
    corners = [(i, j) for i in _offsets(h, window, stride) for j in _offsets(w, window, stride)]
    drops, count = np.zeros((n, h, w), x.dtype), np.zeros((h, w), x.dtype)
    with frozen(model), no_grad():
        logits = model(Tensor(x))
        chosen = target_classes("occlusion", logits, classes)
        score = (logits.data * one_hot(chosen, logits)).sum(axis=1)
        for image in range(n):
            scores = []
            for part in batches(np.arange(len(corners)), batch_size):
                covered = xp.repeat(x[image : image + 1], len(part), axis=0)
                for row, corner in enumerate(part):
                    i, j = corners[corner]
                    covered[row, i : i + window, j : j + window] = fill
                scores.append(model(Tensor(covered)).data[:, int(chosen[image])])
            dropped = to_host(score[image] - xp.concatenate(scores))
            for (i, j), drop in zip(corners, dropped, strict=True):
                drops[image, i : i + window, j : j + window] += drop
    for i, j in corners:
        count[i : i + window, j : j + window] += 1
    maps: Maps = drops / count
    if path is not None:
        draw.write_maps(path, to_host(x), maps)
    return maps


def _offsets(size: int, window: int, stride: int) -> list[int]:
    """Offsets of the squares along an axis: every `stride` pixels, and the last at the edge."""
    offsets = list(range(0, size - window + 1, stride))
    return offsets if offsets[-1] == size - window else [*offsets, size - window]
