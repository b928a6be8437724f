"""Tensor: an array, its device and its gradient.

Nothing is computed here: operators and methods call gpucnn.ops, and backward calls
gpucnn.autograd.  Both import Tensor, so gpucnn/__init__.py passes them to `bind` once everything
is loaded.  Properties and conversions of the array are in gpucnn/tensor_data.py.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gpucnn.device import Array, Device, working_on
from gpucnn.errors import ArgumentError, DtypeError, GraphError, ShapeError
from gpucnn.hooks import GradHooks, HookHandle
from gpucnn.integers import is_int
from gpucnn.precision import is_floating
from gpucnn.tensor_data import TensorData, is_operand

Scalar = int | float


class _Late(Protocol):
    """A module that imports this one."""

    def __getattr__(self, name: str) -> Callable[..., "Tensor"]: ...


ops: _Late
autograd: _Late


def bind(ops_module: Any, autograd_module: Any) -> None:
    """Set the modules that compute Tensor's operators and its backward pass."""
    global ops, autograd
    ops, autograd = ops_module, autograd_module


class _Casts:
    """PyTorch's names for astype.  They are apart because they hide Python's types in a class."""

    __slots__ = ()

    def half(self) -> "Tensor":
        """float16: astype("float16")."""
        return ops.astype(self, "float16")

    def bfloat16(self) -> "Tensor":
        """bfloat16: astype("bfloat16")."""
        return ops.astype(self, "bfloat16")

    def float(self) -> "Tensor":
        """float32: astype("float32")."""
        return ops.astype(self, "float32")

    def double(self) -> "Tensor":
        """float64: astype("float64")."""
        return ops.astype(self, "float64")

    def int(self) -> "Tensor":
        """int32: astype("int32")."""
        return ops.astype(self, "int32")

    def long(self) -> "Tensor":
        """int64: astype("int64")."""
        return ops.astype(self, "int64")

    def bool(self) -> "Tensor":
        """Whether each element differs from 0: astype("bool")."""
        return ops.astype(self, "bool")


class Tensor(TensorData, _Casts):
    """An array that remembers how it was computed.

    data           the NumPy or CuPy array
    grad           an array of the same shape and dtype, in its own memory, or None
    requires_grad  whether operations on this tensor are recorded

    Create one with `gpucnn.tensor`.  Images are (N, H, W, C).  Operators broadcast as in NumPy and
    take tensors, arrays and Python numbers.  They never promote: operands of different dtypes raise
    DtypeError.  Comparisons, == too, are element by element; a set or dict tells tensors apart by
    identity.
    """

    __slots__ = ("__weakref__", "_hooks", "_node", "_retain", "grad", "requires_grad")

    def __init__(self, data: Array, requires_grad: bool = False) -> None:
        self._data = data
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self._node: Any = None  # the autograd.Function that computed it
        self._retain = False
        self._hooks: GradHooks | None = None
        self._version = 0
        self._cache = None

    # --- properties ---

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation computed it; by default only leaves get a `.grad`."""
        return self._node is None

    def __iter__(self) -> Iterator["Tensor"]:
        """The parts along the first axis, in order."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        if self._node is not None:
            return self._described(f"from={self._node.name}")
        return self._described("requires_grad" if self.requires_grad else "")

    # --- devices ---

    def to(self, device: "str | Device") -> "Tensor":
        """This tensor on `device`: itself if it is there, else a copy that passes gradients back.

        device is "auto", "cpu", "cuda", "cuda:N" or a Device; DeviceError if it cannot be used.
        """
        return ops.to_device(self, Device.parse(device))

    def cpu(self) -> "Tensor":
        """This tensor on the CPU: to("cpu")."""
        return self.to("cpu")

    def cuda(self, index: int = 0) -> "Tensor":
        """This tensor on CUDA device number `index`: to("cuda:0")."""
        return self.to(f"cuda:{index}")

    def detach(self) -> "Tensor":
        """A tensor that shares this one's memory but not its graph."""
        return Tensor(self.data)

    # --- gradients ---

    def backward(self, gradient: Array | None = None, retain_graph: bool = False) -> None:
        """Add this tensor's gradient to `.grad` of every leaf it depends on.

        gradient is the array to start from, of this tensor's shape, dtype and device; None means 1
        and needs a tensor with one element.  The graph is freed unless retain_graph is set.
        Raises GraphError, ShapeError, DtypeError or DeviceMismatch: see autograd.backward.
        """
        autograd.backward(self, gradient, retain_graph)

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Set `requires_grad` and return the tensor itself.

        Raises DtypeError for True on a tensor of integers, and GraphError for False on the result
        of a recorded operation: use detach() instead.
        """
        if requires_grad and not is_floating(self.dtype):
            raise DtypeError(
                f"requires_grad_: only floating-point tensors have gradients, got {self.dtype}\n"
                "  convert the tensor first: x.astype('float32')"
            )
        if not requires_grad and not self.is_leaf:
            raise GraphError(
                f"requires_grad_: the result of {self._node.name} always requires a gradient; "
                "only a leaf can be frozen\n  use detach() for the same values without the graph"
            )
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> "Tensor":
        """Make backward set `.grad` of this tensor, leaf or not; returns the tensor itself.

        Raises GraphError if the tensor does not require a gradient.
        """
        if not self.requires_grad:
            raise GraphError("retain_grad: this tensor does not require a gradient")
        self._retain = not self.is_leaf
        return self

    def register_post_accumulate_grad_hook(self, hook: Callable[["Tensor"], Any]) -> HookHandle:
        """Call hook(self) in each backward pass that adds to `.grad`, once `.grad` is complete.

        For leaves; the hook runs before the rest of the pass.  Hooks run in the order of
        registration, and may replace `.grad`.  `handle.remove()` unregisters the hook.
        Raises GraphError for the result of a recorded operation.
        """
        if not self.is_leaf:
            raise GraphError(
                f"register_post_accumulate_grad_hook: expected a leaf, got the result of "
                f"{self._node.name}\n  retain_grad() keeps the gradient of a result"
            )
        self._hooks = self._hooks or GradHooks()
        return HookHandle(self._hooks, hook)

    def zero_grad(self) -> None:
        """Set `.grad` to None."""
        self.grad = None

    # --- operators ---

    def __add__(self, other: Any) -> "Tensor":
        return ops.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "Tensor":
        return ops.subtract(self, other)

    def __rsub__(self, other: Any) -> "Tensor":
        return ops.subtract(other, self)

    def __mul__(self, other: Any) -> "Tensor":
        return ops.multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "Tensor":
        return ops.divide(self, other)

    def __rtruediv__(self, other: Any) -> "Tensor":
        return ops.divide(other, self)

    def __pow__(self, exponent: Scalar) -> "Tensor":
        """self ** exponent for a number: ops.power."""
        return ops.power(self, exponent)

    def __neg__(self) -> "Tensor":
        return ops.negative(self)

    def __matmul__(self, other: Any) -> "Tensor":
        """(..., M, K) @ (..., K, N), leading axes broadcast: ops.matmul."""
        return ops.matmul(self, other)

    def __rmatmul__(self, other: Any) -> "Tensor":
        return ops.matmul(other, self)

    def __abs__(self) -> "Tensor":
        return ops.abs(self)

    def __eq__(self, other: object) -> "Tensor":  # type: ignore[override]  # as in NumPy
        return ops.eq(self, other) if is_operand(other) else NotImplemented

    def __ne__(self, other: object) -> "Tensor":  # type: ignore[override]
        return ops.ne(self, other) if is_operand(other) else NotImplemented

    def __lt__(self, other: Any) -> "Tensor":
        return ops.lt(self, other)

    def __le__(self, other: Any) -> "Tensor":
        return ops.le(self, other)

    def __gt__(self, other: Any) -> "Tensor":
        return ops.gt(self, other)

    def __ge__(self, other: Any) -> "Tensor":
        return ops.ge(self, other)

    __hash__ = object.__hash__

    def __getitem__(self, index: Any) -> "Tensor":
        """self[index] as in NumPy, always contiguous: ops.getitem."""
        return ops.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise GraphError(
            "a tensor cannot be changed in place: the graph may still need its old values\n"
            "  create a new one (gpucnn.ops.where, pad, concatenate), or write to a leaf's .data "
            "before it is used"
        )

    # --- ops as methods ---

    def reshape(self, *shape: Any) -> "Tensor":
        """The elements in row order in a new shape, `x.reshape(2, -1)` or `x.reshape((2, -1))`.

        One size may be -1, to be inferred.  Raises ShapeError if the sizes do not match.
        """
        return ops.reshape(
            self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        )

    def view(self, *shape: Any) -> "Tensor":
        """The same as `reshape`: memory is shared where the tensor is contiguous, else copied."""
        return self.reshape(*shape)

    def squeeze(self, axis: Any = None) -> "Tensor":
        """Without the axes `axis` of size 1; None means all of these, others stay: ops.squeeze."""
        return ops.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> "Tensor":
        """With a new axis of size 1 at position `axis` of the result: ops.unsqueeze."""
        return ops.unsqueeze(self, axis)

    def permute(self, *axes: Any) -> "Tensor":
        """The axes in the order `axes`, contiguous, as `transpose` with all axes."""
        return ops.transpose(self, axes[0] if len(axes) == 1 and not is_int(axes[0]) else axes)

    def clone(self) -> "Tensor":
        """A contiguous copy, which passes gradients back: ops.clone."""
        return ops.clone(self)

    def contiguous(self) -> "Tensor":
        """The tensor itself if its elements lie in memory in row order, else a copy of it.

        Results of ops are contiguous.
        """
        return self if self._data.flags.c_contiguous else ops.clone(self)

    def flatten(self) -> "Tensor":
        """(N, ...) as (N, M), in row order.  Raises ShapeError for a scalar."""
        return ops.flatten(self)

    def transpose(self, *axes: Any) -> "Tensor":
        """The axes in the order `axes`, `x.transpose(0, 2, 1)` or `x.transpose((0, 2, 1))`.

        Without axes, their order is reversed.  The result is contiguous.
        Raises ArgumentError unless axes is a permutation of the tensor's axes.
        """
        if len(axes) == 1 and not isinstance(axes[0], int):
            axes = tuple(axes[0])
        return ops.transpose(self, axes or None)

    @property
    def T(self) -> "Tensor":
        """The tensor with its axes reversed, contiguous."""
        return ops.transpose(self)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis`: one axis, a tuple of axes, or None for all.

        Reduced axes stay with size 1 if keepdims is set.  Half precision is summed in float32.
        Raises ArgumentError for an axis that is out of range or repeated.
        """
        return ops.sum(self, axis, keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis`; axis and keepdims as for `sum`.

        Raises ShapeError for no elements, DtypeError for integers.
        """
        return ops.mean(self, axis, keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The largest value over `axis`; axis and keepdims as for `sum`.

        NaN wins; elements that tie share the gradient equally.  Raises ShapeError for no elements.
        """
        return ops.max(self, axis, keepdims)

    def min(self, axis: Any = None, keepdims: bool = False) -> "Tensor":
        """The smallest value over `axis`; ties, NaN and errors as for `max`."""
        return ops.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Array:
        """The positions of the largest values as an integer array, which has no gradient.

        axis None takes the position in the flattened tensor; of equal values the first wins, and
        a NaN wins over every number.  Raises ShapeError for no elements, ArgumentError unless axis
        is one of the tensor's.
        """
        if axis is not None and not (is_int(axis) and -self.ndim <= axis < self.ndim):
            raise ArgumentError(f"argmax: axis {axis} is not one of shape {self.shape}")
        if (self.size if axis is None else self.shape[axis]) == 0:
            raise ShapeError(f"argmax: nothing to compare in shape {self.shape}")
        with working_on(self.device):
            return self.data.argmax(axis=axis)

    def abs(self) -> "Tensor":
        """|x|, element by element; the gradient at 0 is 0.  Raises DtypeError for bools."""
        return ops.abs(self)

    def clamp(self, min: Any = None, max: Any = None) -> "Tensor":
        """x limited to the numbers min and max, of which one may be None: ops.clamp."""
        return ops.clamp(self, min, max)

    def exp(self) -> "Tensor":
        """e**x, element by element.  Raises DtypeError for integers."""
        return ops.exp(self)

    def log(self) -> "Tensor":
        """The natural logarithm: -infinity at 0, NaN below.  Raises DtypeError for integers."""
        return ops.log(self)

    def sqrt(self) -> "Tensor":
        """The square root: NaN below 0.  Raises DtypeError for integers."""
        return ops.sqrt(self)

    def relu(self) -> "Tensor":
        """max(x, 0), element by element; the gradient at 0 is 0, and NaN stays NaN."""
        return ops.relu(self)

    def astype(self, dtype: Any) -> "Tensor":
        """The tensor converted to dtype, or itself if it has it; the gradient is converted back."""
        return ops.astype(self, dtype)

    def sigmoid(self) -> "Tensor":
        """1 / (1 + e**-x), element by element.  Raises DtypeError for integers."""
        return ops.sigmoid(self)

    def tanh(self) -> "Tensor":
        """The hyperbolic tangent, element by element.  Raises DtypeError for integers."""
        return ops.tanh(self)

    def softmax(self, axis: int = -1) -> "Tensor":
        """e**x divided by its sum over `axis`: ops.softmax."""
        return ops.softmax(self, axis)
