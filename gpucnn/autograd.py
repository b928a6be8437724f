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
from collections.abc import Iterable
from contextlib import ContextDecorator
from typing import Any, Literal, TypeAlias

import numpy as np

from gpucnn.device import CPU, Array, Device, array_module, device_of, working_on
from gpucnn.errors import DeviceMismatch, GraphError, OutOfMemory
from gpucnn.gradient_checks import check_gradient, fits
from gpucnn.graph_memory import overlaps, saved_arrays
from gpucnn.hooks import HookedLeaves
from gpucnn.out_of_memory import ModuleContext, module_context, raise_out_of_memory
from gpucnn.tensor import Tensor
from gpucnn.watching import current_watcher

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

    def _recreate_cm(self) -> "_GradMode":
        return _GradMode(self._enabled)  # a decorated function may run in several threads


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

    A node whose gradient is `mask_scale * (y != 0)` times another array, such as a ReLU's, may set
    `positive`: its only consumer can then multiply by that in its own kernel.  The consumer's
    backward asks `self.mask(i)` for the factor of input i, and the producer's backward finds
    `self.masked` True.  A node whose result is 0 where input 0 is, and else only where backward
    returns 0, such as a dropout's, may set `keeps_zeros`: it is positive if input 0 is.  Then its
    backward must call `self.mask(0)`, and if it is masked, add no factor of its own.
    """

    name = "function"
    positive = False
    keeps_zeros = False
    mask_scale = 1.0
    masked = False
    starts = False  # in backward: dy is the 1 that `backward` of a scalar starts from
    consumers = 0  # inputs of recorded calls that take the result
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
        except MemoryError as error:
            raise_out_of_memory(error, self.name, module_context(), inputs, any(self.needs))
        watcher = current_watcher()
        if watcher is not None:
            watcher.forward(self, inputs, y)
        if not any(self.needs):
            self.saved = None
            return Tensor(y)
        self.inputs = inputs
        for x in inputs:
            if isinstance(x, Tensor) and x._node is not None:
                x._node.consumers += 1
        self.order = next(_order)
        self.context = module_context()
        self._versions = _versions(inputs)
        result = Tensor(y, requires_grad=True)
        result._node = self
        return result

    def mask(self, i: int) -> float | None:
        """The factor by which backward must multiply input i's gradient where input i is not 0.

        Where input i is 0, its gradient must be 0.  None: leave the gradient as it is.  To ask
        is to promise it; ask in backward only.
        """
        x = self.inputs[i]
        factor = _mask_factor(x)
        if factor is not None:
            x._node.masked = True  # type: ignore[union-attr]  # there is a factor, so a node
        return factor

    def _free(self) -> None:
        self.saved = None
        self.inputs = ()


def _mask_factor(x: Operand) -> float | None:
    """The factor that a consumer of x may apply for x's node: see Function.mask."""
    if not isinstance(x, Tensor) or x._node is None or x._retain or x._node.consumers != 1:
        return None
    node: Function = x._node
    if node.positive:
        return node.mask_scale
    inner = _mask_factor(node.inputs[0]) if node.keeps_zeros and node.inputs else None
    return None if inner is None else inner * node.mask_scale


def may_be_masked(x: Tensor) -> bool:
    """Whether backward may learn from Function.mask that x's gradient needs a factor: on a GPU."""
    node: Function | None = None if isinstance(x._data, np.ndarray) else x._node
    while node is not None and node.keeps_zeros and not node.positive and node.inputs:
        first = node.inputs[0]
        node = first._node if isinstance(first, Tensor) else None
    return node is not None and node.positive


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
    walk unless retain_graph is set.  A leaf's hooks run as soon as its `.grad` is complete.

    Raises GraphError if nothing was recorded, the graph was freed before, or an input has changed
    since it was used; ShapeError, DtypeError or DeviceMismatch if a gradient, passed in or
    computed by an op, does not match its tensor.
    """
    if not root.requires_grad:
        raise GraphError(
            "backward: this tensor does not depend on one with requires_grad=True, "
            "or was computed under no_grad()"
        )
    one = gradient is None
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
            _walk(root, gradient, retain_graph, one)
    except BaseException as error:
        for node in tape(root):  # what is left of the graph may be walked again
            node.masked = False
        if isinstance(error, OutOfMemory):
            traceback.clear_frames(error.__traceback__)  # free their arrays for the handler
        raise


def _walk(root: Tensor, gradient: Array, retain_graph: bool, one: bool) -> None:
    """Visit every node behind root, newest first; `one`: gradient is 1."""
    gradients: dict[int, Array] = {}  # by id(node): the gradient of the node's result
    results: dict[int, Tensor] = {}  # by id(node): its result, for retain_grad
    queue: list[tuple[int, Function]] = []  # newest node first
    hooked: HookedLeaves | None = None  # from the first leaf with a hook

    def receive(tensor: Tensor, dy: Array) -> None:
        nonlocal hooked
        node = tensor._node
        if node is None:
            tensor.grad = dy if tensor.grad is None else _sum(tensor.grad, dy)
            if tensor._hooks:
                hooked = hooked or HookedLeaves()
                hooked.reach(tensor)
        elif id(node) in gradients:
            gradients[id(node)] = _sum(gradients[id(node)], dy)
        else:
            gradients[id(node)] = dy
            results[id(node)] = tensor
            heapq.heappush(queue, (-node.order, node))

    receive(root, gradient)
    del gradient
    watcher = current_watcher()
    while queue:
        node = heapq.heappop(queue)[1]
        dy = gradients.pop(id(node))
        tensor = results.pop(id(node))
        _check_usable(node)
        inputs = node.inputs
        node.last_use = not retain_graph
        node.starts = one and tensor is root
        try:
            if tensor._retain:
                tensor.grad = _copy(dy) if tensor.grad is None else _sum(tensor.grad, dy)
            with working_on(device_of(dy)):
                input_gradients = _checked(node, node.backward(dy))
            node.masked = False  # a kept graph may be walked again
            if watcher is not None:
                watcher.backward(node, dy, input_gradients)
            _separate(node, input_gradients, dy)
            del dy
            if not retain_graph:
                node._free()
            for x, dx in zip(inputs, input_gradients, strict=True):
                if isinstance(x, Tensor) and dx is not None:
                    receive(x, dx)
            if hooked is not None:
                finished = hooked.finished(inputs, lambda: _behind(n for _, n in queue))
        except MemoryError as error:
            what = f"the gradient of {node.name}"
            raise_out_of_memory(error, what, node.context, [tensor], training=True)
        del input_gradients, dx, inputs, tensor  # free the last gradients before the next node
        if hooked is not None:
            _call_hooks(finished)
    if hooked is not None:
        _call_hooks(hooked.rest())


def _call_hooks(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        with working_on(leaf.device):
            for hook in tuple(leaf._hooks.values()) if leaf._hooks else ():
                hook(leaf)


def tape(root: Tensor) -> list[Function]:
    """Every recorded operation that `root` depends on, in the order of the backward pass."""
    return sorted(_behind([root._node]), key=lambda node: -node.order)


def _behind(nodes: Iterable[Function | None]) -> list[Function]:
    """The nodes, and all that they depend on, once each."""
    found: dict[int, Function] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in found:
            continue
        found[id(node)] = node
        waiting += [t._node for t in node.inputs if isinstance(t, Tensor)]
    return list(found.values())


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
        elif not fits(dx, x._data):  # first, because building an error text is slow
            dx = _array(dx)
            check_gradient(f"{node.name}: backward, input {len(gradients)}", dx, x.data)
        gradients.append(dx)
    return gradients


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
        if not dx.flags.c_contiguous or overlaps(dx, others):
            gradients[i] = _copy(dx)


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
