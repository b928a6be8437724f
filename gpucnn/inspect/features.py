"""What layers have learned: filters, feature maps, and the images that activate a channel most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import array_module, device_of, to_host, working_on
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.inspect import draw
from gpucnn.inspect.forward import (
    Layer,
    activations,
    as_input,
    batches,
    find_layer,
    frozen,
    output_of,
    run,
)
from gpucnn.nn import Conv2d, Module, ReLU
from gpucnn.tensor import Tensor

Values: TypeAlias = Any  # numpy.ndarray


def first_layer_filters(model: Module, path: draw.File | None = None) -> Values:
    """The filters of the first Conv2d, as a NumPy array (OC, KH, KW, C / groups).

    With `path`, write a PNG of the filters, each rescaled from its minimum and maximum: a colour
    tile per filter if the filters have 3 channels, otherwise a row of grey tiles, one per channel.

    Raises ArgumentError if the model has no Conv2d.
    """
    for _, module in model.named_modules():
        if isinstance(module, Conv2d):
            filters = to_host(module.weight.data)
            if path is not None:
                draw.write_tiles(path, filter_pictures(filters), _tiles_per_row(filters))
            return filters
    raise ArgumentError("first_layer_filters: this model has no Conv2d")


def filter_pictures(filters: Values) -> Values:
    """Filters (OC, KH, KW, C) as pictures: OC in colour if C is 3, else OC * C in grey."""
    oc, kh, kw, c = filters.shape
    if c == 3:
        return draw.pictures(filters)
    return draw.pictures(filters.transpose(0, 3, 1, 2).reshape(oc * c, kh, kw, 1))


def _tiles_per_row(filters: Values) -> int | None:
    return filters.shape[3] if filters.shape[3] not in (1, 3) else None


def pixel_layers(model: Module, images: Any) -> list[str]:
    """Names of the layers whose feature maps to show: ReLUs with output (N, h, w, K), h and w > 1.

    Without such ReLUs, all layers with such an output.
    """
    outputs = activations(model, images)
    modules = dict(model.named_modules())
    maps = [name for name, y in outputs.items() if y.ndim == 4 and min(y.shape[1:3]) > 1]
    return [name for name in maps if isinstance(modules[name], ReLU)] or maps


def before_relu(model: Module, images: Any, layer: str) -> str:
    """The layer that ran just before `layer`, if its output has the same shape, else `layer`.

    Gradient ascent on a ReLU's input works where the ReLU outputs zero and has no gradient.  Raises
    ArgumentError for a layer that is not part of the model or did not run.
    """
    outputs = activations(model, images)
    names = list(outputs)
    if layer not in outputs:
        raise ArgumentError(
            f"before_relu: layer {layer!r} did not run\n  expected one of {', '.join(names)}"
        )
    before = names[max(names.index(layer) - 1, 0)]
    return before if outputs[before].shape == outputs[layer].shape else layer


def feature_maps(
    model: Module, images: Any, layer: Layer, path: draw.File | None = None, max_channels: int = 64
) -> Values:
    """The output of `layer` for images, as a NumPy array (N, h, w, K).

    With `path`, write a PNG of the first image's first `max_channels` channels, one tile each, from
    dark at the minimum to bright at the maximum.

    Raises ShapeError if the layer's output is not (N, h, w, K), ArgumentError if the model does
    not have the layer or does not run it.
    """
    name = {id(m): n for n, m in model.named_modules()}[id(find_layer(model, layer))]
    maps = to_host(activations(model, images, [layer])[name])
    if maps.ndim != 4:
        raise ShapeError(
            f"feature_maps: expected a layer with output (N, h, w, K), layer {layer!r} returns "
            f"{maps.shape}"
        )
    if path is not None:
        draw.write_tiles(path, draw.heatmap(maps[0].transpose(2, 0, 1)[:max_channels]))
    return maps


@dataclass(frozen=True)
class Strongest:
    """For each channel, the images that activate it most, in descending order.

    Every array is (channels, k): the images' indices, their largest activations, and the rows and
    columns of the layer's output where these occur (0 for a layer whose output has no pixels).
    """

    channels: tuple[int, ...]
    images: Values
    values: Values
    rows: Values
    columns: Values


def strongest_images(
    model: Module,
    images: Any,
    layer: Layer,
    channels: Sequence[int],
    k: int = 9,
    batch_size: int = 256,
    path: draw.File | None = None,
) -> Strongest:
    """For each of `channels`, the k images with the largest activations in the output of `layer`.

    images is (N, H, W, C), normalised as in training.  On a tie the earlier image comes first.
    With `path`, write a PNG with one row per channel.

    Raises ArgumentError for a channel that the layer does not have, for no channels, or for k < 1.
    Source: Zeiler and Fergus 2014, section 4 (figure 2), without their deconvolution.
    """
    op = "strongest_images"
    if k < 1:
        raise ArgumentError(f"{op}: k must be at least 1, got {k}")
    x = as_input(op, model, images)
    module, channels = find_layer(model, layer), list(channels)
    peaks, positions = [], []
    with frozen(model), no_grad():
        for part in batches(x, batch_size):
            y = output_of(op, run(model, Tensor(part), [module])[1], module, layer).data
            check_channels(op, channels, y.shape[-1])
            flat = y.reshape(len(y), -1, y.shape[-1])[:, :, array_module(y).asarray(channels)]
            peaks.append(to_host(flat.max(axis=1)))
            positions.append(to_host(flat.argmax(axis=1)))
    values, position = np.concatenate(peaks).T, np.concatenate(positions).T
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    width = y.shape[2] if y.ndim == 4 else 1
    position = np.take_along_axis(position, order, axis=1)
    found = Strongest(
        tuple(channels),
        order,
        np.take_along_axis(values, order, axis=1),
        position // width,
        position % width,
    )
    if path is not None:
        with working_on(device_of(x)):
            shown = draw.pictures(to_host(x[array_module(x).asarray(order.reshape(-1))]))
        draw.write_tiles(path, shown, columns=order.shape[1])
    return found


def check_channels(op: str, channels: Sequence[int], count: int) -> None:
    """Raise ArgumentError unless `channels` is not empty and all are in 0 .. count - 1."""
    if len(channels) == 0 or min(channels) < 0 or max(channels) >= count:
        raise ArgumentError(f"{op}: the layer has channels 0 to {count - 1}, got {list(channels)}")
