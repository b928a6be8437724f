"""Softmax, its logarithm, and the cross-entropy loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import cuda
from gpucnn.autograd import Function
from gpucnn.device import Array, array_module, by_device, device_of
from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import ceil_div, is_int
from gpucnn.ops._exact import narrowed, wide, widened
from gpucnn.ops._kernels import defines, lanes, takes
from gpucnn.ops._labels import checked_labels, class_weights
from gpucnn.ops.elementwise import float_tensor
from gpucnn.precision import autocast_dtype
from gpucnn.tensor import Tensor


def softmax(x: Any, axis: int = -1) -> Tensor:
    """e**x divided by its sum along `axis`: between 0 and 1, with sum 1.

    y has x's shape and dtype.  -infinity marks a masked class, whose probability is 0.  Where
    every class is masked or one is +infinity, all probabilities are NaN, as in PyTorch.
    Raises ArgumentError unless axis is an int, ShapeError for one out of range, DtypeError unless x
    is floating-point.
    """
    x = _checked("softmax", x, axis)
    return _Softmax(axis)(x)


def log_softmax(x: Any, axis: int = -1) -> Tensor:
    """The logarithm of softmax, accurate for probabilities that softmax would round to 0.

    y has x's shape and dtype.  A masked class, -infinity, stays -infinity.
    Raises ArgumentError unless axis is an int, ShapeError for one out of range, DtypeError unless x
    is floating-point.
    """
    x = _checked("log_softmax", x, axis)
    return _LogSoftmax(axis)(x)


def cross_entropy(
    logits: Any,
    target: Any,
    weight: Any = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """The mean, or sum, of -log softmax(logits)[target] over the examples: a scalar, in nats.

    logits is (..., K), at least two-dimensional; target is (...), integers in 0..K-1: a tensor,
    array or list.  With label_smoothing s in [0, 1) the target distribution is 1 - s for the label
    plus s / K for every class.  weight (K,) weights each example by its label and makes the mean a
    weighted one; the smoothed part is weighted class by class.  reduction is "mean" or "sum".

    A class whose logit is -infinity is masked: its probability and its gradient are 0.  As in
    PyTorch, the loss is infinite if a masked class is the label or gets a share of the target by
    smoothing (its gradient is then that share), and NaN if its weight is 0 or all weights are.

    Half precision is computed in float32.  The loss has the dtype of logits; under autocast it is
    float32.

    Raises ShapeError if shapes do not fit or there is no example; DtypeError for logits that are
    not floating-point or labels that are not integers; ArgumentError for another reduction, and for
    label_smoothing or a label out of range.  Labels on a GPU are not checked, because that would
    stall every step; one out of range makes the loss NaN.
    Source: Szegedy et al. 2016, section 7 (label smoothing).
    """
    logits = _checked("cross_entropy", logits, -1)
    labels = checked_labels("cross_entropy", "logits", logits, target)
    if not 0 <= label_smoothing < 1:
        raise ArgumentError(
            f"cross_entropy: label_smoothing must be in [0, 1), got {label_smoothing}"
        )
    if reduction not in ("mean", "sum"):
        raise ArgumentError(
            f"cross_entropy: reduction {reduction!r} is unknown; expected mean or sum"
        )
    weight = class_weights("cross_entropy", logits, weight)
    return _CrossEntropy(labels, label_smoothing, weight, reduction == "mean")(logits)


softmax_cross_entropy = cross_entropy


def _checked(op: str, x: Any, axis: int) -> Tensor:
    t = float_tensor(op, x)
    if not is_int(axis):
        raise ArgumentError(f"{op}: axis must be an int, got {axis!r}")
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(f"{op}: axis {axis} is out of range for shape {t.shape}")
    return t


# Infinities and NaN are legitimate results here, so NumPy does not warn; a GPU never does.
_quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")


def _largest(x: Array, axis: int) -> Array:
    """The maximum along `axis`, which stays with size 1; 0 for an axis without elements."""
    find = x.max if x.shape[axis] else x.sum
    return find(axis=axis, keepdims=True)


@_quiet
def _log_softmax(x: Array, axis: int) -> Array:
    xp = array_module(x)
    shifted = x - _largest(x, axis)
    return shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))


class _Softmax(Function):
    name = "softmax"

    def __init__(self, axis: int) -> None:
        self.axis = axis

    @_quiet
    def forward(self, x: Array) -> Array:
        dtype, x = x.dtype, widened(x)
        y = array_module(x).exp(x - _largest(x, self.axis))
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

    def __init__(
        self, labels: Array, smoothing: float, class_weights: Array | None, mean: bool
    ) -> None:
        self.labels = labels
        self.settings = (smoothing, class_weights, mean)

    def forward(self, logits: Array) -> Array:
        self.shape = logits.shape
        rows = logits.reshape(-1, logits.shape[-1])
        loss, self.saved = _forward(rows, self.labels.reshape(-1), *self.settings, self.needs[0])
        kept = logits.dtype if autocast_dtype() is None else wide(logits.dtype)
        return narrowed(loss, kept)

    def backward(self, dy: Array) -> Array:
        dx = self.saved.backward(None if self.starts else widened(dy))
        return dx.reshape(self.shape)


# --- any array module ---


@_quiet
def _forward_array(
    logits: Array,
    labels: Array,
    smoothing: float,
    class_weights: Array | None,
    mean: bool,
    needed: bool,
) -> tuple[Array, "_LogProbabilities"]:
    """The loss of logits (rows, classes) for labels (rows,), and the state for backward.

    The loss is float32 for half precision.
    """
    xp = array_module(logits)
    classes, dtype, logits = logits.shape[1], logits.dtype, widened(logits)
    log_p = _log_softmax(logits, axis=1)
    picked = log_p[xp.arange(len(log_p)), labels]
    weights: Any = None
    total: Any = len(log_p) if mean else 1
    if class_weights is not None:
        weights = class_weights[labels]
        total = weights.sum() if mean else 1
        picked = picked * weights
    loss = -picked.sum() * ((1 - smoothing) / total)
    if smoothing:
        smooth = log_p if class_weights is None else log_p * class_weights
        loss -= smooth.sum() * (smoothing / classes / total)
    saved = _LogProbabilities(log_p, labels, smoothing, class_weights, weights, total, dtype)
    return loss.astype(logits.dtype), saved


@dataclass(eq=False)
class _LogProbabilities:
    log_p: Array  # (rows, classes)
    labels: Array  # (rows,)
    smoothing: float
    class_weights: Array | None  # (classes,)
    weights: Array | None  # (rows,): the weight of each row's label
    total: Any  # what divides the sum: 1, the rows or the sum of their weights, an array ()
    dtype: np.dtype[Any]  # of the logits

    @_quiet
    def backward(self, dy: Array | None) -> Array:
        """d loss / d logits times dy, a number; None: times 1."""
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
        if dy is None:
            dy = xp.ones((), dx.dtype)
        share = dy / self.total
        if class_weights is not None and hasattr(self.total, "dtype"):
            share = xp.where(self.total == 0, share.dtype.type(np.nan), share)  # 0 / 0 everywhere
        dx *= share
        return narrowed(dx, self.dtype)


# --- CUDA: forward computes the gradient with the loss; backward scales it unless dy is 1 ---


def _forward_cuda(
    logits: Array,
    labels: Array,
    smoothing: float,
    class_weights: Array | None,
    mean: bool,
    needed: bool,
) -> tuple[Array, "_LogProbabilities | _Gradient"]:
    if not takes(logits):
        return _forward_array(logits, labels, smoothing, class_weights, mean, needed)
    xp = array_module(logits)
    rows, classes = logits.shape
    # float16 cannot hold the gradient of a mean over many rows until a scaled loss multiplies it;
    # with weights it is divided by their sum in backward.
    later = logits.dtype == np.float16 or class_weights is not None
    dtype = np.dtype(np.float32) if later else logits.dtype
    gradient = xp.empty(logits.shape, dtype) if needed else None
    scratch, results = xp.empty((2, rows), np.float32), xp.empty(2, np.float32)
    cuda.launch_elementwise(
        "cross_entropy",
        rows * 32,  # a warp per row
        xp.ascontiguousarray(logits),  # (rows, classes)
        xp.ascontiguousarray(labels).astype(np.int64, copy=False),  # (rows,)
        class_weights,  # (classes,) or None
        scratch[0],  # (rows,): the losses
        scratch[1],  # (rows,): the weights of their labels
        cuda.counters(device_of(logits), 1),
        results[:1],  # the loss
        results[1:],  # the sum of the weights
        gradient,  # (rows, classes) or None
        rows,
        classes,
        smoothing,
        mean,
        defines={**defines(logits.dtype), "GRADIENT": cuda.c_type(dtype)},
    )
    total = results[1:] if mean and class_weights is not None else None
    return results[0], _Gradient(gradient, total, logits.dtype)


@dataclass(eq=False)
class _Gradient:
    gradient: Any  # (rows, classes): of the loss, times total if there is one; None unless needed
    total: Array | None  # (1,): the sum of the weights
    dtype: np.dtype[Any]  # of the logits

    def backward(self, dy: Array | None) -> Array:
        """d loss / d logits times dy, a number; None: times 1."""
        gradient = self.gradient
        if dy is None and self.total is None and gradient.dtype == self.dtype:
            return gradient
        dx = array_module(gradient).empty(gradient.shape, self.dtype)
        cuda.launch_elementwise(
            "scale_gradient",
            ceil_div(dx.size, lanes(self.dtype)),
            gradient,  # (rows, classes)
            dy,  # () or None
            self.total,  # (1,) or None
            dx,  # (rows, classes)
            dx.size,
            defines={**defines(self.dtype), "GRADIENT": cuda.c_type(gradient.dtype)},
        )
        return dx


_forward: Any = by_device(cpu=_forward_array, cuda=_forward_cuda)
