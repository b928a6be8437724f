"""Softmax, its logarithm, and the cross-entropy loss."""

from dataclasses import dataclass
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
    """e**x divided by its sum along `axis`: between 0 and 1, with sum 1.

    y has x's shape and dtype.  -infinity marks a masked class, whose probability is 0.  Where
    every class is masked or one is +infinity, all probabilities are NaN, as in PyTorch.
    Raises ShapeError for an axis out of range, DtypeError unless x is floating-point.
    """
    x = _checked("softmax", x, axis)
    return _Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """The logarithm of softmax, accurate for probabilities that softmax would round to 0.

    y has x's shape and dtype.  A masked class, -infinity, stays -infinity.
    Raises ShapeError for an axis out of range, DtypeError unless x is floating-point.
    """
    x = _checked("log_softmax", x, axis)
    return _LogSoftmax(axis)(x)


def cross_entropy(
    logits: Any, target: Any, weight: Any = None, label_smoothing: float = 0.0
) -> Tensor:
    """The mean of -log softmax(logits)[target] over the examples: a scalar, in nats.

    logits is (..., K), at least two-dimensional; target is (...), integers in 0..K-1: a tensor,
    array or list.  With label_smoothing s in [0, 1) the target distribution is 1 - s for the label
    plus s / K for every class.  weight (K,) weights each example by its label and makes the mean a
    weighted one; the smoothed part is weighted class by class.

    A class whose logit is -infinity is masked: its probability and its gradient are 0.  As in
    PyTorch, the loss is infinite if a masked class is the label or gets a share of the target by
    smoothing (its gradient is then that share), and NaN if its weight is 0 or all weights are.

    Raises ShapeError if shapes do not fit or there is no example; DtypeError for logits that are
    not floating-point or labels that are not integers; ArgumentError for label_smoothing or a
    label out of range.  Labels on a GPU are not checked, because that would stall every step; one
    out of range makes the loss NaN.
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


softmax_cross_entropy = cross_entropy


def _checked(op: str, x: Any, axis: int) -> Tensor:
    t = float_tensor(op, x)
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(f"{op}: axis {axis} is out of range for shape {t.shape}")
    return t


def _labels(logits: Tensor, labels: Any) -> Array:
    """The labels, a tensor, array or list, as an array on the device of logits, checked."""
    op = "cross_entropy"
    labels = labels.data if isinstance(labels, Tensor) else labels
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{op}: expected integer labels, got {labels.dtype}")
    if labels.shape != logits.shape[:-1] or logits.ndim < 2:
        raise ShapeError(
            f"{op}: logits {logits.shape} need labels of shape {logits.shape[:-1]}, "
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


# Infinities and NaN are legitimate results here, so NumPy does not warn; a GPU never does.
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
        dtype, x = x.dtype, widened(x)
        y = array_module(x).exp(x - x.max(axis=self.axis, keepdims=True))
        y /= y.sum(axis=self.axis, keepdims=True)
        y = narrowed(y, dtype)
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        dtype, dy, y = dy.dtype, widened(dy), widened(y)
        return narrowed(y * (dy - (dy * y).sum(axis=self.axis, keepdims=True)), dtype)


class _LogSoftmax(Function):
    name = "log_softmax"

    def __init__(self, axis: int) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        y = narrowed(_log_softmax(widened(x), self.axis), x.dtype)
        self.saved = (y,)
        return y

    def backward(self, dy: Array) -> Array:
        (y,) = self.saved
        dtype, dy, y = dy.dtype, widened(dy), widened(y)
        dx = dy - array_module(dy).exp(y) * dy.sum(axis=self.axis, keepdims=True)
        return narrowed(dx, dtype)


class _CrossEntropy(Function):
    name = "cross_entropy"

    def __init__(self, labels: Array, smoothing: float, class_weights: Array | None) -> None:
        self.labels = labels
        self.settings = (smoothing, class_weights)

    def forward(self, logits: Array) -> Array:
        self.shape = logits.shape
        rows = widened(logits.reshape(-1, logits.shape[-1]))
        loss, self.saved = _forward(rows, self.labels.reshape(-1), *self.settings, self.needs[0])
        return narrowed(loss, logits.dtype)

    def backward(self, dy: Array) -> Array:
        dx = self.saved.backward(widened(dy))
        return narrowed(dx, dy.dtype).reshape(self.shape)


# --- any array module ---


@_quiet
def _forward_array(
    logits: Array, labels: Array, smoothing: float, class_weights: Array | None, needed: bool
) -> tuple[Array, "_LogProbabilities"]:
    """The loss of logits (rows, classes) for labels (rows,), and the state for backward."""
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
    saved = _LogProbabilities(log_p, labels, smoothing, class_weights, weights, total)
    return loss.astype(logits.dtype), saved


@dataclass(eq=False)
class _LogProbabilities:
    log_p: Array  # (rows, classes)
    labels: Array  # (rows,)
    smoothing: float
    class_weights: Array | None  # (classes,)
    weights: Array | None  # (rows,): the weight of each row's label
    total: Any  # the sum of the weights: a number, or an array ()

    @_quiet
    def backward(self, dy: Array) -> Array:
        log_p, smoothing, class_weights = self.log_p, self.smoothing, self.class_weights
        weights: Any = 1.0 if self.weights is None else self.weights
        xp = array_module(log_p)
        classes = log_p.shape[1]
        mass: Any = 1.0  # of each row's target distribution
        if class_weights is not None:
            mass = weights[:, None] * (1 - smoothing)
            mass = mass + smoothing / classes * class_weights.sum()
        dx = xp.exp(log_p) * mass
        dx[xp.arange(len(log_p)), self.labels] -= (1 - smoothing) * weights
        if smoothing:
            dx -= smoothing / classes * (1.0 if class_weights is None else class_weights)
        share = dy / self.total
        if class_weights is not None:
            share = xp.where(self.total == 0, share.dtype.type(np.nan), share)  # 0 / 0 everywhere
        dx *= share
        return dx


# --- CUDA: forward computes the gradient with the loss, and backward only scales it ---


def _forward_cuda(
    logits: Array, labels: Array, smoothing: float, class_weights: Array | None, needed: bool
) -> tuple[Array, "_LogProbabilities | _Gradient"]:
    if logits.dtype != np.float32:
        return _forward_array(logits, labels, smoothing, class_weights, needed)
    xp = array_module(logits)
    rows, classes = logits.shape
    row_loss, row_weight = xp.empty(rows, np.float32), xp.empty(rows, np.float32)
    gradient = xp.empty(logits.shape, np.float32) if needed else None
    loss, total = xp.empty((), np.float32), xp.empty((), np.float32)
    cuda.launch_elementwise(
        "cross_entropy",
        rows * 32,  # a warp per row
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
        256,
        row_loss,  # (rows,)
        row_weight,  # (rows,)
        loss,  # ()
        total,  # (): the sum of the weights
        rows,
    )
    return loss, _Gradient(gradient, total)


@dataclass(eq=False)
class _Gradient:
    gradient: Any  # (rows, classes): of the sum of the row losses; None unless needed
    total: Array  # (): the sum of the weights

    def backward(self, dy: Array) -> Array:
        dx = array_module(dy).empty(self.gradient.shape, np.float32)
        cuda.launch_elementwise(
            "scale_gradient",
            dx.size,
            self.gradient,  # (rows, classes)
            dy,  # ()
            self.total,  # ()
            dx,  # (rows, classes)
            dx.size,
        )
        return dx


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
