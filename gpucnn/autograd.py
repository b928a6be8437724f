"""Reverse-mode differentiation, define by run: recording the graph and walking it backward.

Each call of a Function computes an array and, if an input requires a gradient, stores itself as
the result's node.  `backward` visits the nodes newest first.  It passes each node the gradient of
its result, and adds the gradients that the node returns to those of its inputs.  A node's saved
arrays are freed as soon as it has been visited.
"""

import heapq
import itertools
import threading
import traceback
from collections.abc import Iterator
from contextlib import ContextDecorator
from types import ModuleType
from typing import Any, Literal, TypeAlias

import numpy as np

from gpucnn.device import CPU, Array, Device, array_module, device_of, working_on
from gpucnn.errors import DeviceMismatch, DtypeError, GraphError, OutOfMemory, ShapeError
from gpucnn.out_of_memory import ModuleContext, explain, module_context
from gpucnn.tensor import Tensor

Operand: TypeAlias = Tensor | int | float | None

_order = itertools.count()
_state = threading.local()


def grad_enabled() -> bool:
    """Whether this thread records operations."""
    return getattr(_state, "enabled", True)


class _GradMode(ContextDecorator):
    """Switches recording in this thread on or off: a context manager and a decorator."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._outer: list[bool] = []

    def __enter__(self) -> None:
        self._outer.append(grad_enabled())
        _state.enabled = self._enabled

    def __exit__(self, *exc: object) -> Literal[False]:
        _state.enabled = self._outer.pop()
        return False


def no_grad() -> _GradMode:
    """Record nothing inside the block: `with gpucnn.no_grad(): ...` or `@gpucnn.no_grad()`."""
    return _GradMode(False)


def enable_grad() -> _GradMode:
    """Record again inside a no_grad block."""
    return _GradMode(True)


class Function:
    """One differentiable operation; each call makes one instance.  A subclass is an op:

        class _Scale(Function):
            name = "scale"

            def __init__(self, factor):      # everything that is not a tensor
                self.factor = factor

            def forward(self, x):            # arrays in, array out
                return x * self.factor

            def backward(self, dy):          # a gradient, or a tuple of one per input
                return dy * self.factor

        y = _Scale(2.0)(x)

    Inputs are Tensors, Python numbers or None; forward gets arrays, numbers and None.
    `self.needs` says for each input whether its gradient is needed (all False: nothing is
    recorded).  backward must not change dy.  Each gradient has the shape, dtype and device of its
    input, or is None for an input without one; anything else is an error that names the op.

    forward stores what backward needs in `self.saved`: a tuple of arrays, or, if the op has
    several engines, an object from the engine that ran, with a `backward` of its own.
    `saved_arrays` finds the arrays in either.  Where `self.last_use` is true, backward may
    overwrite the saved arrays: the graph is not kept.
    """

    name = "function"
    saved: Any = ()  # None once it is freed
    needs: tuple[bool, ...] = ()
    inputs: tuple[Operand, ...] = ()
    order = -1
    last_use = False
    context: ModuleContext | None = None
    _versions: tuple[int, ...] = ()

    def forward(self, *arrays: Any) -> Array:
        raise NotImplementedError

    def backward(self, dy: Array) -> Any:
        raise NotImplementedError

    def __call__(self, *inputs: Operand) -> Tensor:
        device = _common_device(self.name, inputs)
        record = grad_enabled()
        self.needs = tuple(record and isinstance(t, Tensor) and t.requires_grad for t in inputs)
        try:
            with working_on(device):
                y = _array(self.forward(*(t._data if isinstance(t, Tensor) else t for t in inputs)))
        except OutOfMemory as error:
            explain(error, self.name, module_context(), training=any(self.needs))
            raise
        if not any(self.needs):
            self.saved = None
            return Tensor(y)
        self.inputs = inputs
        self.order = next(_order)
        self.context = module_context()
        self._versions = _versions(inputs)
        result = Tensor(y, requires_grad=True)
        result._node = self
        return result

    def _free(self) -> None:
        self.saved = None
        self.inputs = ()


def _array(y: Array) -> Array:
    """y as an array: NumPy returns a scalar where a result has no axes."""
    return np.asarray(y) if isinstance(y, np.generic) else y


def _versions(inputs: tuple[Operand, ...]) -> tuple[int, ...]:
    return tuple(t._version for t in inputs if isinstance(t, Tensor))


def _common_device(name: str, inputs: tuple[Operand, ...]) -> Device:
    """The device that all input tensors share; DeviceMismatch if there are two."""
    first = None
    for tensor in inputs:
        if not isinstance(tensor, Tensor):
            continue
        first = tensor.device if first is None else first
        if tensor.device != first:
            raise DeviceMismatch(
                f"{name}: one input is on {first}, another on {tensor.device}\n"
                f"  move one of them: tensor.to({str(first)!r}), or model.to(device) for a model"
            )
    return first or CPU


def backward(root: Tensor, gradient: Array | None = None, retain_graph: bool = False) -> None:
    """Add d root / d leaf to `.grad` of every leaf that root depends on.

    gradient is the array to start from, of root's shape, dtype and device; None means 1 and needs
    a root with one element.  Tensors marked by `retain_grad()` get a `.grad` too.  A `.grad` shares
    no memory with gradient, with another `.grad` or with the graph.  The graph is freed during the
    walk unless retain_graph is set.

    Raises GraphError if nothing was recorded, the graph was freed before, or an input has changed
    since it was used; ShapeError, DtypeError or DeviceMismatch if a gradient, passed in or
    computed by an op, does not match its tensor.
    """
    if not root.requires_grad:
        raise GraphError(
            "backward: this tensor does not depend on one with requires_grad=True, "
            "or was computed under no_grad()"
        )
    if gradient is None:
        if root.data.size != 1:
            raise GraphError(
                f"backward: expected a scalar, got shape {root.shape}\n"
                "  reduce it first (.sum() or .mean()), or pass the gradient to start from"
            )
        with working_on(root.device):
            gradient = array_module(root.data).ones_like(root.data)
    else:
        gradient = _array(gradient.data if isinstance(gradient, Tensor) else gradient)
        check_gradient("backward", gradient, root.data)
        if root.is_leaf:
            gradient = _copy(gradient)
    try:
        with working_on(root.device):
            _walk(root, gradient, retain_graph)
    except OutOfMemory as error:
        traceback.clear_frames(error.__traceback__)  # free their arrays for the handler
        raise


def _walk(root: Tensor, gradient: Array, retain_graph: bool) -> None:
    """Visit every node behind root, newest first."""
    gradients: dict[int, Array] = {}  # by id(node): the gradient of the node's result
    results: dict[int, Tensor] = {}  # by id(node): its result, for retain_grad
    queue: list[tuple[int, Function]] = []  # newest node first

    def receive(tensor: Tensor, dy: Array) -> None:
        node = tensor._node
        if node is None:
            tensor.grad = dy if tensor.grad is None else _sum(tensor.grad, dy)
        elif id(node) in gradients:
            gradients[id(node)] = _sum(gradients[id(node)], dy)
        else:
            gradients[id(node)] = dy
            results[id(node)] = tensor
            heapq.heappush(queue, (-node.order, node))

    receive(root, gradient)
    del gradient
    while queue:
        node = heapq.heappop(queue)[1]
        dy = gradients.pop(id(node))
        tensor = results.pop(id(node))
        _check_usable(node)
        inputs = node.inputs
        node.last_use = not retain_graph
        try:
            if tensor._retain:
                tensor.grad = _copy(dy) if tensor.grad is None else _sum(tensor.grad, dy)
            with working_on(device_of(dy)):
                input_gradients = _checked(node, node.backward(dy))
            _separate(node, input_gradients, dy)
            del dy
            if not retain_graph:
                node._free()
            for x, dx in zip(inputs, input_gradients, strict=True):
                if isinstance(x, Tensor) and dx is not None:
                    receive(x, dx)
        except OutOfMemory as error:
            explain(error, f"the gradient of {node.name}", node.context, training=True)
            raise
        del input_gradients, dx, inputs, tensor  # free the last gradients before the next node


def tape(root: Tensor) -> list[Function]:
    """Every recorded operation that `root` depends on, in the order of the backward pass."""
    found: dict[int, Function] = {}
    waiting = [root._node]
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        waiting += [t._node for t in node.inputs if isinstance(t, Tensor)]
    return sorted(found.values(), key=lambda node: -node.order)


def _sum(a: Array, b: Array) -> Array:
    with working_on(device_of(a)):
        return _array(a + b)


def _copy(x: Array) -> Array:
    with working_on(device_of(x)):
        return x.copy()


# --- the gradients that a node returned ---


def _checked(node: Function, returned: Any) -> list[Array | None]:
    """The gradient of each input, checked; None where none is needed or none was returned."""
    if not isinstance(returned, tuple):
        returned = (returned,)
    if len(returned) != len(node.inputs):
        raise GraphError(
            f"{node.name}: expected backward to return {len(node.inputs)} gradients, one for each "
            f"input, got {len(returned)}\n  return None for an input without a gradient"
        )
    gradients: list[Array | None] = []
    for x, needed, dx in zip(node.inputs, node.needs, returned, strict=True):
        if not needed or dx is None or not isinstance(x, Tensor):
            dx = None
        elif not _fits(dx, x._data):  # first, because building an error text is slow
            dx = _array(dx)
            check_gradient(f"{node.name}: backward, input {len(gradients)}", dx, x.data)
        gradients.append(dx)
    return gradients


def _fits(dx: Any, x: Array) -> bool:
    """Whether dx matches x; may be False for a matching subclass or NumPy scalar."""
    return (
        type(dx) is type(x)
        and dx.shape == x.shape
        and dx.dtype == x.dtype
        and (isinstance(x, np.ndarray) or dx.device.id == x.device.id)
    )


def check_gradient(where: str, dx: Any, x: Array) -> None:
    """Raise unless dx is an array with x's device, shape and dtype.

    Raises GraphError, DeviceMismatch, ShapeError or DtypeError; the message begins with `where`.
    """
    if _fits(dx, x):
        return
    try:
        array_module(dx)
    except TypeError:
        raise GraphError(
            f"{where}: expected a gradient as an array, got {type(dx).__name__}"
        ) from None
    if device_of(dx) != device_of(x):
        raise DeviceMismatch(
            f"{where}: expected a gradient on {device_of(x)}, the tensor's device, got one on "
            f"{device_of(dx)}"
        )
    if dx.shape != x.shape:
        raise ShapeError(f"{where}: expected a gradient of shape {x.shape}, got {dx.shape}")
    if dx.dtype != x.dtype:
        raise DtypeError(
            f"{where}: expected a gradient of {x.dtype}, got {dx.dtype}\n"
            f"  convert it: gradient.astype({str(x.dtype)!r})"
        )


def _separate(node: Function, gradients: list[Array | None], dy: Array) -> None:
    """Copy each gradient that a leaf will keep but that shares memory with the graph.

    An op may return dy, a view of it, an input, a saved array or one array for two inputs.  An
    array that the op allocated is kept as it is: a parameter's gradient costs no copy.
    """
    for i, dx in enumerate(gradients):
        x = node.inputs[i]
        if dx is None or not isinstance(x, Tensor) or x._node is not None or x.grad is not None:
            continue
        others = [dy, *gradients[:i], *gradients[i + 1 :]]
        others += [other._data for other in node.inputs if isinstance(other, Tensor)]
        if not node.last_use:
            others += saved_arrays(node)
        if not dx.flags.c_contiguous or _overlaps(dx, others):
            gradients[i] = _copy(dx)


def saved_arrays(node: Function) -> Iterator[Array]:
    """The arrays in `node.saved`, including those inside containers and engines' objects."""
    waiting = [node.saved]
    seen: set[int] = set()  # objects may refer to each other
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple | list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif hasattr(value, "dtype") and hasattr(value, "base"):
            yield value
        elif not isinstance(value, type | ModuleType) and id(value) not in seen:
            seen.add(id(value))
            waiting.append(value.__getstate__())  # what is in __dict__ and __slots__


def _overlaps(x: Array, others: list[Array | None]) -> bool:
    """Whether x may share memory with one of the others.

    Views of one array do if their address ranges overlap.  Owners are compared first: that is
    cheaper, and most arrays have different ones.
    """
    owner, kind = _owner(x), type(x)
    for other in others:
        same = type(other) is kind and _owner(other) is owner
        if same and array_module(x).may_share_memory(x, other):
            return True
    return False


def _owner(x: Array) -> Array:
    """The array that x is a view of, or x itself if it is not a view."""
    while isinstance(x.base, type(x)):
        x = x.base
    return x


def _check_usable(node: Function) -> None:
    if node.saved is None:
        raise GraphError(
            f"backward: the graph behind {node.name} was already freed by an earlier backward\n"
            "  run the forward pass again, or pass retain_graph=True the first time"
        )
    if _versions(node.inputs) != node._versions:
        raise GraphError(
            f"backward: an input of {node.name} was changed in place after it was used "
            "(an optimizer step between forward and backward?)\n  run the forward pass again"
        )


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum dy over the axes that broadcasting added or expanded, back to `shape`."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and dy.shape[i + extra] != 1
    )
    accumulator = np.float32 if dy.dtype == np.float16 else None  # float16 overflows
    total = dy.sum(axis=axes, keepdims=True, dtype=accumulator)
    return total.astype(dy.dtype, copy=False).reshape(shape)
