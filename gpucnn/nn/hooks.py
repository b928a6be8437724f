"""Hooks of one module, which see its inputs, outputs and gradients; observers of all modules."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gpucnn.autograd import Function, grad_enabled
from gpucnn.device import Array, array_module
from gpucnn.errors import ArgumentError, GraphError
from gpucnn.tensor import Tensor

PreHook = Callable[[Any, tuple[Any, ...]], Any]  # (module, args): new args or None
Hook = Callable[[Any, tuple[Any, ...], Any], Any]  # (module, args, output): a new output or None
# (module, grad_input, grad_output): a new grad_input or None
BackwardHook = Callable[[Any, tuple[Any, ...], tuple[Any, ...]], Any]
Observer = Callable[[Any, tuple[Any, ...], Any], None]

observers: list[Observer] = []


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer(module, args, output)` after the forward pass of every module in the block.

    It sees the output after the module's own hooks, and its return value is ignored.
    """
    observers.append(observer)
    try:
        yield
    finally:
        observers.remove(observer)


class Hooks:
    """The hooks of one module, in the order of registration."""

    def __init__(self) -> None:
        self.forward_pre: dict[int, PreHook] = {}
        self.forward: dict[int, Hook] = {}
        self.backward: dict[int, BackwardHook] = {}

    def __bool__(self) -> bool:
        return bool(self.forward_pre or self.forward or self.backward)

    def before(
        self, module: Any, inputs: tuple[Any, ...]
    ) -> "tuple[tuple[Any, ...], _Gradients | None]":
        """The inputs for module.forward, and what `after` needs."""
        for hook in tuple(self.forward_pre.values()):
            replacement = hook(module, inputs)
            if replacement is not None:
                inputs = replacement if isinstance(replacement, tuple) else (replacement,)
        if not self.backward or not grad_enabled():
            return inputs, None
        gradients = _Gradients(module, tuple(self.backward.values()))
        return gradients.of_inputs(inputs), gradients

    def after(
        self, module: Any, inputs: tuple[Any, ...], output: Any, gradients: "_Gradients | None"
    ) -> Any:
        """The output of the module, from that of module.forward."""
        for hook in tuple(self.forward.values()):
            replacement = hook(module, inputs, output)
            output = output if replacement is None else replacement
        return output if gradients is None else gradients.of_output(output)


# --- backward hooks ---


class _Gradients:
    """The gradients of one forward pass of a module, which its backward hooks will see."""

    def __init__(self, module: Any, hooks: tuple[BackwardHook, ...]) -> None:
        self._module, self._hooks = module, hooks
        self._of_output: tuple[Array | None, ...] = ()
        self._inputs = 0
        self._reaches_inputs = False  # an input requires a gradient

    def of_inputs(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs for forward: the hooks are called once the gradients of all are complete."""
        self._inputs, self._reaches_inputs = len(inputs), any(map(_requires_grad, inputs))
        return tuple(_passed(inputs, self._call))

    def of_output(self, output: Any) -> Any:
        """The output of the module: its gradients are kept for the hooks."""
        if isinstance(output, Tensor):
            return _passed([output], self._keep)[0]
        if type(output) not in (tuple, list):
            raise ArgumentError(
                f"register_full_backward_hook: {type(self._module).__name__} returned a "
                f"{type(output).__name__}; expected a tensor, or a tuple or list of tensors"
            )
        return type(output)(_passed(output, self._keep))

    def _keep(self, gradients: tuple[Array | None, ...]) -> tuple[Array | None, ...]:
        self._of_output = gradients
        if not self._reaches_inputs:
            before = (None,) * self._inputs
            if self._call(before) is not before:
                raise GraphError(
                    f"register_full_backward_hook: a hook of {type(self._module).__name__} "
                    "returned gradients, but no input requires one\n  return None"
                )
        return gradients

    def _call(self, gradients: tuple[Any, ...]) -> tuple[Any, ...]:
        """The gradients of the inputs, as the hooks leave them."""
        for hook in self._hooks:
            replaced = hook(self._module, gradients, self._of_output)
            if replaced is None:
                continue
            replaced = tuple(replaced) if isinstance(replaced, tuple | list) else (replaced,)
            if len(replaced) != len(gradients):
                raise GraphError(
                    f"register_full_backward_hook: {type(self._module).__name__} has "
                    f"{len(gradients)} inputs, the hook returned {len(replaced)} gradients"
                )
            gradients = replaced
        return gradients


def _requires_grad(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _passed(
    values: Sequence[Any], receive: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> list[Any]:
    """values, of which those that require a gradient pass it through `receive`, all at once.

            x ──────┐              ┌── Part ── x
                    Gate ── empty ─┤
            y ──────┘              └── Part ── y

    Forward copies nothing.  Backward visits the parts first, since they are newer.  Each leaves its
    gradient with the gate, which calls receive(gradients) and returns the result.
    """
    picked = [i for i, x in enumerate(values) if _requires_grad(x)]
    passed = list(values)
    if picked:
        gate = _Gate(receive, len(passed), picked)
        empty = gate(*(values[i] for i in picked))
        for i in picked:
            passed[i] = _Part(gate, i, values[i]._data)(empty)
    return passed


class _Gate(Function):
    name = "backward hook"

    def __init__(
        self, receive: Callable[[tuple[Any, ...]], tuple[Any, ...]], count: int, picked: list[int]
    ) -> None:
        self.receive, self.picked = receive, picked
        self.gradients: list[Array | None] = [None] * count

    def forward(self, *arrays: Array) -> Array:
        return array_module(arrays[0]).zeros(0, "float32")

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        gradients: tuple[Any, ...] = tuple(self.gradients)
        self.gradients = [None] * len(gradients)  # a kept graph may be walked again
        gradients = tuple(x.data if isinstance(x, Tensor) else x for x in self.receive(gradients))
        # Copied for a leaf, which keeps it: another tensor's gradient may be the same array.
        return tuple(
            dx.copy() if isinstance(x, Tensor) and x.is_leaf and hasattr(dx, "dtype") else dx
            for x, dx in zip(self.inputs, (gradients[i] for i in self.picked), strict=True)
        )


class _Part(Function):
    name = "backward hook"

    def __init__(self, gate: _Gate, i: int, x: Array) -> None:
        self.gate, self.i = gate, i
        self.x: Array | None = x

    def forward(self, empty: Array) -> Array:
        x, self.x = self.x, None
        return x

    def backward(self, dy: Array) -> Array:
        self.gate.gradients[self.i] = dy
        return array_module(dy).zeros(0, "float32")
