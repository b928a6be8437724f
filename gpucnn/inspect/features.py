"""What layers have learned to see: filters, feature maps, and the images that excite a channel."""

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
    at_rest,
    batches,
    find_layer,
    result_of,
    run,
)
from gpucnn.nn import Conv2d, Module, ReLU
from gpucnn.tensor import Tensor

Values: TypeAlias = Any  # numpy.ndarray


def first_layer_filters(model: Module, path: draw.File | None = None) -> Values:
    """The filters of the first Conv2d, (OC, KH, KW, C / groups), as NumPy.

    With `path`, a PNG of one tile a filter, each stretched from its least weight to its most:
    colours if the filters see 3 channels, else grey tiles, a row of C tiles a filter.

    Raises ArgumentError if the model has no Conv2d.
    """
    for _, module in model.named_modules():
        if isinstance(module, Conv2d):
            filters = to_host(module.weight.data)
            if path is not None:
                draw.write_tiles(path, filter_pictures(filters), _filters_in_a_row(filters))
            return filters
    raise ArgumentError("first_layer_filters: this model has no Conv2d")


def filter_pictures(filters: Values) -> Values:
    """Filters (OC, KH, KW, C) as pictures: OC coloured ones if C is 3, else OC * C grey ones."""
    oc, kh, kw, c = filters.shape
    if c == 3:
        return draw.pictures(filters)
    return draw.pictures(filters.transpose(0, 3, 1, 2).reshape(oc * c, kh, kw, 1))


def _filters_in_a_row(filters: Values) -> int | None:
    return filters.shape[3] if filters.shape[3] not in (1, 3) else None


def pixel_layers(model: Module, images: Any) -> list[str]:
    """Names of the layers worth a look: ReLUs that give maps of pixels, else all that do."""
    seen = activations(model, images)
    modules = dict(model.named_modules())
    maps = [name for name, y in seen.items() if y.ndim == 4 and min(y.shape[1:3]) > 1]
    return [name for name in maps if isinstance(modules[name], ReLU)] or maps


def before_relu(model: Module, images: Any, layer: str) -> str:
    """The layer that ran before `layer` and gives the same shape, or `layer` itself.

    A channel that a ReLU has switched off has no gradient to follow; what it switches has.
    """
    seen = activations(model, images)
    names = list(seen)
    before = names[max(names.index(layer) - 1, 0)]
    return before if seen[before].shape == seen[layer].shape else layer


def feature_maps(
    model: Module, images: Any, layer: Layer, path: draw.File | None = None, most: int = 64
) -> Values:
    """What `layer` makes of images: (N, h, w, K) as NumPy.

    With `path`, a PNG of the first image's first `most` channels, a tile each, dark where the
    channel is at its least and bright at its most.

    Raises ShapeError if the layer's output has no pixels.
    """
    name = {id(m): n for n, m in model.named_modules()}[id(find_layer(model, layer))]
    maps = to_host(activations(model, images, [layer])[name])
    if maps.ndim != 4:
        raise ShapeError(f"feature_maps: layer {layer!r} gives {maps.shape}, not (N, h, w, K)")
    if path is not None:
        draw.write_tiles(path, draw.heat(maps[0].transpose(2, 0, 1)[:most]))
    return maps


@dataclass(frozen=True)
class Strongest:
    """For each of some channels, the images that excite it most, strongest first.

    Every array is (number of channels, k): the images' positions, how strongly they excite, and
    the row and column of the layer's output where they do (0 for a layer without pixels).
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
    """The k images whose largest value in a channel of `layer` is largest, for each channel.

    images (N, H, W, C) are as the model takes them.  Of equal ones the earlier is stronger.  With
    `path`, a PNG: a row a channel.

    Raises ArgumentError for a channel that the layer does not have, or k < 1.
    Source: Zeiler and Fergus 2014, section 4 (figure 2), without their deconvolution.
    """
    op = "strongest_images"
    if k < 1:
        raise ArgumentError(f"{op}: k must be at least 1, got {k}")
    x = as_input(op, model, images)
    module, channels = find_layer(model, layer), list(channels)
    peaks, places = [], []
    with at_rest(model), no_grad():
        for some in batches(x, batch_size):
            y = result_of(op, run(model, Tensor(some), [module])[1], module, layer).data
            check_channels(op, channels, y.shape[-1])
            flat = y.reshape(len(y), -1, y.shape[-1])[:, :, array_module(y).asarray(channels)]
            peaks.append(to_host(flat.max(axis=1)))
            places.append(to_host(flat.argmax(axis=1)))
    values, where = np.concatenate(peaks).T, np.concatenate(places).T
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    width = y.shape[2] if y.ndim == 4 else 1
    where = np.take_along_axis(where, order, axis=1)
    found = Strongest(
        tuple(channels),
        order,
        np.take_along_axis(values, order, axis=1),
        where // width,
        where % width,
    )
    if path is not None:
        with working_on(device_of(x)):
            seen = draw.pictures(to_host(x[array_module(x).asarray(order.reshape(-1))]))
        draw.write_tiles(path, seen, columns=order.shape[1])
    return found


def check_channels(op: str, channels: Sequence[int], count: int) -> None:
    """ArgumentError unless every one of `channels`, and at least one, is in 0 .. count - 1."""
    if len(channels) == 0 or min(channels) < 0 or max(channels) >= count:
        raise ArgumentError(f"{op}: the layer has channels 0 to {count - 1}, got {list(channels)}")
