"""Module: parameters, buffers and submodules under one name, callable like a function.

A module's attributes are its parts; no call registers them.  A Parameter is trained, and so is a
Tensor with requires_grad=True.  Any other Tensor is a buffer, such as running statistics: saved,
but not trained.  A Module is a child.  Lists, tuples and dicts are searched for parts at any depth.
Names in a state dict join attribute names, list indices and dict keys with dots: blocks.0.weight,
heads.left.weight.
"""

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from gpucnn.creation import tensor
from gpucnn.device import Array, working_on
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.hooks import HookHandle
from gpucnn.nn.hooks import BackwardHook, Hook, Hooks, PreHook, observers
from gpucnn.nn.parameter import is_trained
from gpucnn.nn.placement import Placement
from gpucnn.nn.registration import Registration
from gpucnn.nn.state import differences
from gpucnn.out_of_memory import (
    ModuleContext,
    enter_module,
    module_context,
    raise_out_of_memory,
    used_bytes,
)
from gpucnn.tensor import Tensor

_T = TypeVar("_T")


class IncompatibleKeys(NamedTuple):
    """The names in which a module and a state that it has loaded differ."""

    missing_keys: list[str]  # of the module, not in the state
    unexpected_keys: list[str]  # of the state, not in the module


class Module(Registration, Placement):
    """A part of a network.  A subclass assigns its parts in __init__ and computes in forward.

        class Block(nn.Module):
            def __init__(self):
                self.conv = nn.Conv2d(3, 16, 3, padding=1)

            def forward(self, x):
                return self.conv(x).relu()

    There is no super().__init__() to call.  Dropout and batch normalisation read `training`; set it
    with train() and eval().
    """

    training = True
    _module_hooks: Hooks | None = None

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs: Any) -> Any:
        hooks = self._module_hooks
        if hooks is not None:
            inputs, gradients = hooks.before(self, inputs)
        outer = module_context()
        enter_module(_context(self, inputs, outer))
        try:
            output = self.forward(*inputs)
        except MemoryError as error:
            if outer is None:  # free the arrays in these frames: the handler needs their memory
                traceback.clear_frames(error.__traceback__)
            raise_out_of_memory(error, "the forward pass", module_context(), inputs)
        finally:
            enter_module(outer)
        if hooks is not None:
            output = hooks.after(self, inputs, output, gradients)
        for observer in observers:
            observer(self, inputs, output)
        return output

    # --- hooks ---

    def register_forward_hook(self, hook: Hook) -> HookHandle:
        """Call `hook(module, args, output)` after each forward pass; args is a tuple.

        A result other than None replaces the output.  Hooks run in the order of registration, each
        on the output that the one before it left.  `handle.remove()` unregisters the hook, and so
        does the end of `with model.register_forward_hook(hook):`.
        """
        return HookHandle(self._own_hooks().forward, hook)

    def register_forward_pre_hook(self, hook: PreHook) -> HookHandle:
        """Call `hook(module, args)` before each forward pass; args is a tuple.

        A result other than None replaces args; one that is not a tuple becomes the only argument.
        Order and handle are as for register_forward_hook.
        """
        return HookHandle(self._own_hooks().forward_pre, hook)

    def register_full_backward_hook(self, hook: BackwardHook) -> HookHandle:
        """Call `hook(module, grad_input, grad_output)` in each backward pass through the module.

        Both are tuples of arrays: the gradients of the arguments of forward, and of its outputs.
        An entry is None for what has no gradient, such as images that do not require one.  A result
        other than None replaces grad_input; it is one array per argument.  Forward returns a
        tensor, or a tuple or list of them.  Order and handle are as for register_forward_hook.

        Raises ArgumentError in the forward pass for other outputs; GraphError in the backward pass
        for gradients that do not match the arguments.
        """
        return HookHandle(self._own_hooks().backward, hook)

    def _own_hooks(self) -> Hooks:
        hooks: Hooks = vars(self).setdefault("_module_hooks", Hooks())
        return hooks

    def _is_watched(self) -> bool:
        """Whether a hook or an observer will see this module's inputs, output or gradients."""
        return bool(observers or self._module_hooks)

    # --- parts ---

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; ArgumentError if that would silently drop a parameter or buffer.

        Another parameter, a module or None may replace a parameter; a buffer may be replaced by any
        tensor too.
        """
        old = vars(self).get(name)
        if isinstance(old, Tensor) and not _may_replace(old, value):
            kind, made = ("parameter", "nn.Parameter") if is_trained(old) else ("buffer", "tensor")
            raise ArgumentError(
                f"{type(self).__name__}: {name} is a {kind}; expected another one or None, got "
                f"{type(value).__name__}\n  change it in place, module.{name}.data[...] = array, "
                f"or assign gpucnn.{made}(array)"
            )
        super().__setattr__(name, value)

    def _own_parts(self) -> "Iterator[tuple[str, Module | Tensor]]":
        """(name, part) of each direct part, in the order of assignment."""
        for name, value in vars(self).items():
            yield from _parts(name, value)

    def named_children(self) -> "Iterator[tuple[str, Module]]":
        """(name, module) of each direct submodule, in the order of assignment."""
        for name, part in self._own_parts():
            if isinstance(part, Module):
                yield name, part

    def children(self) -> "Iterator[Module]":
        """The direct submodules, in the order of assignment."""
        return (module for _, module in self.named_children())

    def named_modules(
        self, prefix: str = "", remove_duplicate: bool = True
    ) -> "Iterator[tuple[str, Module]]":
        """(dotted name, module) of this module, called `prefix`, and of all below it.

        A shared module appears once, under its first name; with remove_duplicate=False it appears
        under each of its names.
        """
        return _once(self._walk(prefix)) if remove_duplicate else self._walk(prefix)

    def modules(self) -> "Iterator[Module]":
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _walk(self, prefix: str = "") -> "Iterator[tuple[str, Module]]":
        yield prefix, self
        for name, child in self.named_children():
            yield from child._walk(f"{prefix}.{name}" if prefix else name)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self._walk():
            for name, part in module._own_parts():
                if isinstance(part, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, part

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, parameter) of every parameter, frozen ones too, each once."""
        return _once((n, value) for n, value in self._named_tensors() if is_trained(value))

    def parameters(self) -> list[Tensor]:
        """Every parameter, frozen ones too, each once and always in the same order."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of every tensor that is saved but not trained, each once."""
        return _once((n, value) for n, value in self._named_tensors() if not is_trained(value))

    def buffers(self) -> list[Tensor]:
        """Every tensor that is saved but not trained, each once and always in the same order."""
        return [buffer for _, buffer in self.named_buffers()]

    def apply(self, function: "Callable[[Module], Any]") -> Self:
        """Call `function(module)` for every module below this one, then for this one; return self.

        Children come before their parent, and a module that is used twice is visited twice.
        """
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # --- gradients ---

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze (True) every parameter; return self.

        Backward computes no gradient for a frozen parameter, and optimizers skip it.  It stays in
        the state dict.  Use Parameters for what is unfrozen later: a plain Tensor with
        requires_grad=True becomes a buffer when it is frozen.
        """
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Set the gradient of every parameter to None."""
        for parameter in self.parameters():
            parameter.grad = None

    # --- mode ---

    def train(self, mode: bool = True) -> Self:
        """Set training mode, or evaluation mode, here and in all modules below; return self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode: no dropout, normalisation by running statistics; return self."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[Self]:
        """Set evaluation mode inside the block, then restore each module's previous mode."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            yield self.eval()
        finally:
            for module, mode in modes:
                module.training = mode

    # --- state ---

    def state_dict(self) -> dict[str, Array]:
        """{name: array} of parameters and buffers: the arrays themselves, not copies."""
        return {name: value.data for name, value in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy `state`, which maps names to arrays or tensors on any device, into this module.

        Values of another floating-point dtype are converted to the module's, as PyTorch does; too
        large ones become infinite.  With strict=False, names that are missing or unexpected are
        left out and returned.
        Raises CheckpointError as `check_state_dict` does; the module is unchanged then.
        """
        self.check_state_dict(state, strict)
        own = dict(self._named_tensors())
        for name, value in own.items():
            if name in state:
                with working_on(value.device), np.errstate(over="ignore"):
                    value.data[...] = tensor(state[name], value.device).data
                value._changed()
        return IncompatibleKeys(
            [name for name in own if name not in state], [name for name in state if name not in own]
        )

    def check_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Raise CheckpointError unless load_state_dict would accept `state`.

        The error lists up to 20 differences: names that are missing or unexpected, if strict; other
        shapes, and other dtypes, unless both are floating-point.  Only shape and dtype of each
        value are read.
        """
        problems = differences(dict(self._named_tensors()), state, strict)
        if problems:
            raise CheckpointError(
                f"load_state_dict: the state does not fit {type(self).__name__}\n  "
                + "\n  ".join(problems[:20])
            )

    # --- description ---

    def extra_repr(self) -> str:
        """The module's settings, as repr shows them in the parentheses."""
        return ""

    def __repr__(self) -> str:
        name, settings = type(self).__name__, self.extra_repr()
        lines = [f"({key}): {child!r}" for key, child in self.named_children()]
        if not lines:
            return f"{name}({settings})"
        body = "\n".join([settings, *lines] if settings else lines)
        return f"{name}(\n  " + body.replace("\n", "\n  ") + "\n)"

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Multiply-adds of one forward pass, without those of the submodules."""
        return 0


def _may_replace(old: Tensor, new: Any) -> bool:
    """Whether `new` may replace `old`: None, or a value that holds a part of the same kind."""
    if new is None:
        return True
    parts = [part for _, part in _parts("", new)]
    return any(not isinstance(p, Tensor) or is_trained(p) or not is_trained(old) for p in parts)


def _once(named: Iterator[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
    """Each named value once, under its first name."""
    seen: set[int] = set()
    for name, value in named:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _parts(name: str, value: Any) -> Iterator[tuple[str, Module | Tensor]]:
    """(dotted name, part) of each module and tensor in `value`, the attribute `name`."""
    if isinstance(value, Module | Tensor):
        yield name, value
    elif isinstance(value, list | tuple | deque):
        for i, item in enumerate(value):
            yield from _parts(f"{name}.{i}", item)
    elif isinstance(value, dict):
        keys: set[str] = set()
        for key, item in value.items():
            parts = list(_parts(f"{name}.{key}", item))
            if parts and (not _names_a_part(key) or str(key) in keys):
                raise ArgumentError(
                    f"{name} has a part under the key {key!r}, which makes no unique name\n"
                    "  use ints, or strings without dots"
                )
            if parts:
                keys.add(str(key))
            yield from parts
    elif isinstance(value, set | frozenset) and any(_parts(name, list(value))):
        raise ArgumentError(
            f"{name} is a set with modules or tensors: without an order they have no names\n"
            "  use a list or a dict"
        )


def _names_a_part(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key != "" and "." not in key)


def _context(module: Module, inputs: tuple[Any, ...], outer: ModuleContext | None) -> ModuleContext:
    """The context of a call of `module`; the outermost call sets the model and the batch size."""
    if outer is not None:
        return ModuleContext(outer.model, module, outer.images, outer.used)
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or x.ndim < 2:
        return ModuleContext(module, module, 0, 0)
    # The batch does not count: it belongs to the memory that grows with the batch size.
    before = used_bytes(x.device) - int(x.data.nbytes)
    return ModuleContext(module, module, len(x), before)
