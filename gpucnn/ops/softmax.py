"""Softmax, its logarithm, and the classification loss."""

from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device, device_of, to_device, working_on
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops.elementwise import float_tensor
from gpucnn.tensor import Tensor


def softmax(x: Any, axis: int = -1) -> Tensor:
    """e**x over its sum along `axis`: 0 to 1, and 1 in all.

    -infinity, a masked class, has 0.  Where all are masked, or one is +infinity, all are NaN.
    """
    x = _checked("softmax", x, axis)
    return _Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """The logarithm of softmax, computed without rounding small probabilities to zero.

    That of a masked class, -infinity, is -infinity.
    """
    x = _checked("log_softmax", x, axis)
    return _LogSoftmax(axis)(x)


def cross_entropy(
    logits: Any, target: Any, weight: Any = None, label_smoothing: float = 0.0
) -> Tensor:
    """The mean of -log softmax(logits)[target]: a scalar, in nats.

    logits is (..., K), target (...) integers in 0..K-1: a tensor, array or list.  With
    label_smoothing s in [0, 1) the target is 1 - s for the label plus s / K for every class.
    weight (K,) weighs each example by its label, and the mean is then the weighted one;
    the smoothed part is weighted class by class.

    A class whose logit is -infinity is masked: it has no probability and no gradient.  The loss is
    infinite where it is the label, or where smoothing gives it a share of the target (its gradient
    is that share then), and NaN where 0 weighs it or all weights: as in PyTorch.

    Raises ShapeError, DtypeError or ArgumentError for what does not fit.  Labels out of range are
    found on the CPU; on a GPU, where the check would make every step wait, the loss is NaN.
    Source: Szegedy et al. 2016, section 7 (label smoothing).
    """
    logits = _checked("cross_entropy", logits, -1)
    labels = _labels(logits, target)
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(
            f"cross_entropy: label_smoothing must be in [0, 1), got {label_smoothing}"
        )
    if weight is not None:
        weight = weight.data if isinstance(weight, Tensor) else weight
        with working_on(logits.device):
            xp = array_module(logits.data)
            weight = xp.asarray(weight, dtype=wide(logits.dtype))
        if weight.shape != logits.shape[-1:]:
            raise ShapeError(
                f"cross_entropy: expected {logits.shape[-1]} class weights, "
                f"got shape {weight.shape}"
            )
    return _CrossEntropy(labels, label_smoothing, weight)(logits)


softmax_cross_entropy = cross_entropy  # its long name


def _checked(op: str, x: Any, axis: int) -> Tensor:
    t = float_tensor(op, x)
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(f"{op}: axis {axis} is out of range for shape {t.shape}")
    return t


def _labels(logits: Tensor, labels: Any) -> Array:
    op = "cross_entropy"
    labels = labels.data if isinstance(labels, Tensor) else labels
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{op}: expected integer labels, got {labels.dtype}")
    if labels.shape != logits.shape[:-1] or logits.ndim < 2:
        raise ShapeError(
            f"{op}: logits {logits.shape} want labels of shape {logits.shape[:-1]}, "
            f"got {tuple(labels.shape)}"
        )
    if logits.size == 0:
        raise ShapeError(f"{op}: no examples to average over in logits {logits.shape}")
    classes = logits.shape[-1]
    if isinstance(labels, np.ndarray) and not (labels.min() >= 0 and labels.max() < classes):
        raise ArgumentError(
            f"{op}: labels must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    if isinstance(labels, np.ndarray):
        labels = to_device(labels, device_of(logits.data))
    return labels


# Infinities and NaN are results here, and no reason to warn: GPUs do not.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@_quiet
def _log_softmax(x: Array, axis: int) -> Array:
    xp = array_module(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


class _Softmax(Function):
    name = "softmax"

    def __init__(self, axis: int) -> None:
        self.axis = axis

    @_quiet
    def forward(self, x: Array) -> Array:
        given, x = x.dtype, widened(x)
        y = array_module(x).exp(x - x.max(axis=self.axis, keepdims=True))
        y /= y.sum(axis=self.axis, keepdims=True)
        y = narrowed(y, given)
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved or ()
        given, dy, y = dy.dtype, widened(dy), widened(y)
        return narrowed(y * (dy - (dy * y).sum(axis=self.axis, keepdims=True)), given)


class _LogSoftmax(Function):
    name = "log_softmax"

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        y = narrowed(_log_softmax(widened(x), self.axis), x.dtype)
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved or ()
        given, dy, y = dy.dtype, widened(dy), widened(y)
        dx = dy - array_module(dy).exp(y) * dy.sum(axis=self.axis, keepdims=True)
        return narrowed(dx, given)


class _CrossEntropy(Function):
    name = "cross_entropy"

    def __init__(self, labels: Array, smoothing: float, class_weights: Array | None) -> None:
        self.labels = labels
        self.settings = (smoothing, class_weights)

    def forward(self, logits: Array) -> Array:
        self.shape = logits.shape
        rows = widened(logits.reshape(-1, logits.shape[-1]))
        loss, self.saved = _loss(rows, self.labels.reshape(-1), *self.settings, self.needs[0])
        return narrowed(loss, logits.dtype)

    def backward(self, dy: Array) -> Array:
        assert self.saved is not None
        dx = _loss_backward(widened(dy), self.saved, self.labels.reshape(-1), *self.settings)
        return narrowed(dx, dy.dtype).reshape(self.shape)


# --- any array module ---


@_quiet
def _loss_array(
    logits: Array, labels: Array, smoothing: float, class_weights: Array | None, needed: bool
) -> tuple[Array, tuple[Any, ...]]:
    """The loss of logits (rows, classes), and what backward needs."""
    xp = array_module(logits)
    classes = logits.shape[1]
    log_p = _log_softmax(logits, axis=1)
    picked = log_p[xp.arange(len(log_p)), labels]
    weights: Any = None
    total: Any = len(log_p)
    if class_weights is not None:
        weights = class_weights[labels]
        total = weights.sum()
        picked = picked * weights
    loss = -picked.sum() * ((1 - smoothing) / total)
    if smoothing:
        smooth = log_p if class_weights is None else log_p * class_weights
        loss -= smooth.sum() * (smoothing / classes / total)
    return loss.astype(logits.dtype), (log_p, weights, total)


@_quiet
def _loss_backward_array(
    dy: Array,
    kept: tuple[Any, ...],
    labels: Array,
    smoothing: float,
    class_weights: Array | None,
) -> Array:
    log_p, weights, total = kept
    xp = array_module(log_p)
    classes = log_p.shape[1]
    each: Any = 1.0  # how much probability mass each row's target holds
    if class_weights is not None:
        each = weights[:, None] * (1 - smoothing)
        each = each + smoothing / classes * class_weights.sum()
    dx = xp.exp(log_p) * each
    dx[xp.arange(len(log_p)), labels] -= (1 - smoothing) * (1.0 if weights is None else weights)
    if smoothing:
        dx -= smoothing / classes * (1.0 if class_weights is None else class_weights)
    share = dy / total
    if class_weights is not None:
        share = xp.where(total == 0, share.dtype.type(np.nan), share)  # 0 / 0 in every element
    dx *= share
    return dx


# --- CUDA: the gradient is made with the loss, and backward only scales it ---

_THREADS = 256


def _loss_cuda(
    logits: Array, labels: Array, smoothing: float, class_weights: Array | None, needed: bool
) -> tuple[Array, tuple[Any, ...]]:
    if logits.dtype != np.float32:
        return _loss_array(logits, labels, smoothing, class_weights, needed)
    xp = array_module(logits)
    rows, classes = logits.shape
    row_loss, row_weight = xp.empty(rows, np.float32), xp.empty(rows, np.float32)
    gradient = xp.empty(logits.shape, np.float32) if needed else None
    loss, total = xp.empty((), np.float32), xp.empty((), np.float32)
    cuda.launch(
        "cross_entropy",
        -(-rows * 32 // _THREADS),
        _THREADS,
        xp.ascontiguousarray(logits),  # (rows, classes)
        xp.ascontiguousarray(labels).astype(np.int64, copy=False),  # (rows,)
        class_weights,  # (classes,) or None
        row_loss,  # (rows,)
        row_weight,  # (rows,)
        gradient,  # (rows, classes) or None
        rows,
        classes,
        smoothing,
    )
    cuda.launch(
        "mean_of_rows",
        1,
        _THREADS,
        row_loss,  # (rows,)
        row_weight,  # (rows,)
        loss,  # ()
        total,  # (): the sum of the weights
        rows,
    )
    return loss, (gradient, total)


def _loss_backward_cuda(
    dy: Array,
    kept: tuple[Any, ...],
    labels: Array,
    smoothing: float,
    class_weights: Array | None,
) -> Array:
    if dy.dtype != np.float32:
        return _loss_backward_array(dy, kept, labels, smoothing, class_weights)
    gradient, total = kept
    dx = array_module(dy).empty(gradient.shape, np.float32)
    cuda.launch_elementwise(
        "scale_gradient",
        dx.size,
        gradient,  # (rows, classes)
        dy,  # ()
        total,  # ()
        dx,  # (rows, classes)
        dx.size,
    )
    return dx


_loss: Any = by_device(cpu=_loss_array, cuda=_loss_cuda)
_loss_backward: Any = by_device(cpu=_loss_backward_array, cuda=_loss_backward_cuda)
