"""Define-by-run differentiation: the tape, and how it is walked backward.

Each call of a Function computes arrays and, if a gradient may be wanted, leaves itself on the
result as its node.  `backward` visits the nodes newest first, hands each the gradient of its
result, and adds what comes back to the gradients of its inputs.  A node's saved arrays are
freed as soon as they have been used.
"""

import heapq
import itertools
import threading
import traceback
from contextlib import ContextDecorator
from typing import Any, Literal, TypeAlias

import numpy as np

from gpucnn.device import CPU, Array, Device, array_module, device_of, working_on
from gpucnn.errors import DeviceMismatch, GraphError, OutOfMemory, ShapeError
from gpucnn.out_of_memory import Place, explain, place
from gpucnn.tensor import Tensor

Operand: TypeAlias = Tensor | int | float | None

_order = itertools.count()
_state = threading.local()


def grad_enabled() -> bool:
    """Whether operations are being recorded in this thread."""
    return getattr(_state, "enabled", True)


class _GradMode(ContextDecorator):
    """Switches recording in this thread; usable as `with` and as a decorator."""

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
    """Record nothing in the block: `with gpucnn.no_grad(): ...` or `@gpucnn.no_grad()`."""
    return _GradMode(False)


def enable_grad() -> _GradMode:
    """Record again inside a no_grad block."""
    return _GradMode(True)


class Function:
    """One differentiable operation.  A subclass is one op:

        class _Scale(Function):
            name = "scale"

            def __init__(self, factor):      # what is not a tensor
                self.factor = factor

            def forward(self, x):            # arrays in, array out
                return x * self.factor

            def backward(self, dy):          # a gradient, or a tuple of one per input
                return dy * self.factor

        y = _Scale(2.0)(x)

    Inputs are Tensors, Python numbers or None; forward sees arrays, numbers and None.  It keeps
    what backward needs in `self.saved`; it may look at `self.needs`, which says for each input
    whether its gradient will be asked for (all False: nothing is recorded).  backward returns
    None for an input without a gradient, and must not change dy; where `self.last_use` is true the
    saved arrays are its own, to overwrite.
    """

    name = "function"
    saved: tuple[Any, ...] | None = ()
    needs: tuple[bool, ...] = ()
    inputs: tuple[Operand, ...] = ()
    order = -1
    last_use = False
    place: Place | None = None
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
                y = _array(self.forward(*(t.data if isinstance(t, Tensor) else t for t in inputs)))
        except OutOfMemory as error:
            explain(error, self.name, place(), training=any(self.needs))
            raise
        if not any(self.needs):
            self.saved = None
            return Tensor(y)
        self.inputs = inputs
        self.order = next(_order)
        self.place = place()
        self._versions = _versions(inputs)
        result = Tensor(y, requires_grad=True)
        result._node = self
        return result

    def _free(self) -> None:
        self.saved = None
        self.inputs = ()


def _array(y: Array) -> Array:
    """NumPy makes a scalar of an array without axes; a tensor holds the array."""
    return np.asarray(y) if isinstance(y, np.generic) else y


def _versions(inputs: tuple[Operand, ...]) -> tuple[int, ...]:
    return tuple(t._version for t in inputs if isinstance(t, Tensor))


def _common_device(name: str, inputs: tuple[Operand, ...]) -> Device:
    """The one device of all inputs that are tensors."""
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

    gradient is the array to start from, of root's shape; None means 1 and needs a scalar root.
    Tensors that asked for it with `retain_grad()` get theirs too.  Unless retain_graph, the
    graph is freed on the way.  Raises GraphError if nothing was recorded, the graph is already
    freed, or an input was changed in place since it was used.
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
    elif isinstance(gradient, Tensor):
        gradient = gradient.data
    if gradient.shape != root.shape:
        raise ShapeError(
            f"backward: expected a gradient of shape {root.shape}, got {gradient.shape}"
        )
    if device_of(gradient) != root.device:
        raise DeviceMismatch(f"backward: the gradient is not on {root.device}, where the tensor is")
    try:
        with working_on(root.device):
            _walk(root, gradient, retain_graph)
    except OutOfMemory as error:
        traceback.clear_frames(error.__traceback__)  # whoever handles it needs their arrays' memory
        raise


def _walk(root: Tensor, gradient: Array, retain_graph: bool) -> None:
    """Visit every node behind root, newest first."""
    gradients: dict[int, Array] = {}  # by id(node): the gradient of the node's result
    results: dict[int, Tensor] = {}  # by id(node): its result, for retain_grad
    queue: list[tuple[int, Function]] = []  # newest node first

    def receive(tensor: Tensor, dy: Array) -> None:
        node, dy = tensor._node, _array(dy)
        if node is None:
            tensor.grad = dy if tensor.grad is None else tensor.grad + dy
        elif id(node) in gradients:
            gradients[id(node)] = gradients[id(node)] + dy
        else:
            gradients[id(node)] = dy
            results[id(node)] = tensor
            heapq.heappush(queue, (-node.order, node))

    receive(root, gradient)
    while queue:
        node = heapq.heappop(queue)[1]
        dy = gradients.pop(id(node))
        tensor = results.pop(id(node))
        if tensor._retain:
            tensor.grad = dy if tensor.grad is None else tensor.grad + dy
        _check_usable(node)
        inputs, needs = node.inputs, node.needs
        node.last_use = not retain_graph
        try:
            given = node.backward(dy)
            del dy
            if not retain_graph:
                node._free()
            if not isinstance(given, tuple):
                given = (given,)
            for wanted, needed, dx in zip(inputs, needs, given, strict=True):
                if needed and isinstance(wanted, Tensor) and dx is not None:
                    receive(wanted, dx)
        except OutOfMemory as error:
            explain(error, f"the gradient of {node.name}", node.place, training=True)
            raise
        del given, dx, inputs, tensor  # or the last gradient would outlive its use


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
    """The adjoint of broadcasting: dy summed down to `shape`."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and dy.shape[i + extra] != 1
    )
    accumulator = np.float32 if dy.dtype == np.float16 else None  # float16 overflows
    total = dy.sum(axis=axes, keepdims=True, dtype=accumulator)
    return total.astype(dy.dtype, copy=False).reshape(shape)
