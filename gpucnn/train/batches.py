"""Checks of a loader's batches and a model's outputs, for training and evaluation.

They read only shapes, dtypes and devices, so they never wait for a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError, ShapeError, kind
from gpucnn.nn import Module
from gpucnn.tensor import Tensor


def check_loader(who: str, loader: Any) -> None:
    """Raise ArgumentError unless `loader` is iterable."""
    if not hasattr(loader, "__iter__"):
        raise ArgumentError(
            f"{who}: expected a loader of batches, got {kind(loader)}\n"
            "  build one: data.DataLoader(dataset, batch_size, device=...)"
        )


@contextmanager
def closing_batches(loader: Any) -> Iterator[Iterator[Any]]:
    """Yield iter(loader), and close it at the end if it is a generator.

    Python ignores an exception, such as that of Ctrl-C, in a generator that it closes itself.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()


def device_of_model(model: Module) -> Device | None:
    """The device of the model's parameters; None if it has none."""
    first = next(model.named_parameters(), None)
    return None if first is None else first[1].device


def checked_batch(who: str, batch: Any, device: Device | None) -> tuple[Tensor, Tensor]:
    """Check that the batch is (images, labels), with integer labels (N,), and return both.

    device is the model's; both must be on it.  None means the device of the images.  Raises
    ArgumentError, ShapeError, DtypeError or DeviceMismatch for any other batch.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ArgumentError(
            f"{who}: the loader yielded {kind(batch)} as a batch; expected (images, labels)"
        )
    images, labels = batch
    for what, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ArgumentError(
                f"{who}: the loader yielded {kind(value)} as {what}; expected a Tensor\n"
                "  a DataLoader yields Tensors if it has a device: DataLoader(..., device=...)"
            )
    if labels.ndim != 1 or labels.shape != images.shape[:1]:
        raise ShapeError(
            f"{who}: images {images.shape} need labels ({', '.join(map(str, images.shape[:1]))},), "
            f"got {labels.shape}"
        )
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{who}: expected integer labels, got {labels.dtype}")
    device = images.device if device is None else device
    for what, value in (("images", images), ("labels", labels)):
        if value.device != device:
            raise DeviceMismatch(
                f"{who}: the {what} are on {value.device}, the model on {device}\n"
                f'  build the loader with device="{device}", or move the model before its '
                "optimizer is built"
            )
    return images, labels


def check_logits(who: str, logits: Any, images: Tensor, loader: Any) -> None:
    """Raise ArgumentError or ShapeError unless the model returned logits (N, K).

    K must be the length of loader.dataset.classes, if the loader has that.
    """
    if not isinstance(logits, Tensor):
        raise ArgumentError(f"{who}: the model returned {kind(logits)}; expected logits (N, K)")
    if logits.ndim != 2 or len(logits) != len(images):
        raise ShapeError(
            f"{who}: the model returned {logits.shape} for images {images.shape}; "
            f"expected logits ({len(images)}, K)"
        )
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    if isinstance(classes, tuple | list) and len(classes) != logits.shape[1]:
        raise ShapeError(
            f"{who}: the model has {logits.shape[1]} outputs, the data set "
            f"{len(classes)} classes\n  build the model with classes={len(classes)}"
        )


def check_loss(who: str, loss: Any) -> None:
    """Raise ArgumentError or ShapeError unless the loss is a scalar Tensor."""
    if not isinstance(loss, Tensor):
        raise ArgumentError(f"{who}: the loss is {kind(loss)}; expected a scalar Tensor")
    if loss.size != 1:
        raise ShapeError(
            f"{who}: the loss has shape {loss.shape}; expected a scalar, such as its mean"
        )
