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
from typing import Any, Self, TypeVar

from gpucnn.creation import tensor
from gpucnn.device import Array, Device, default_device, device_of, to_device, working_on
from gpucnn.errors import ArgumentError, CheckpointError, OutOfMemory
from gpucnn.nn.hooks import Hook, HookHandle, observers
from gpucnn.out_of_memory import ModuleContext, enter_module, module_context, used_bytes
from gpucnn.tensor import Tensor

_T = TypeVar("_T")


class Parameter(Tensor):
    """A tensor that a module trains: a leaf, created with requires_grad=True.

    It stays on the device of `data`, unless `with gpucnn.device(...)` names another one.
    requires_grad=False freezes it: backward computes no gradient for it, optimizers skip it, and it
    remains in the state dict.
    """

    __slots__ = ()

    def __init__(self, data: Array) -> None:
        super().__init__(to_device(data, default_device() or device_of(data)), requires_grad=True)


class Module:
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
    _forward_hooks: dict[int, Hook] | None = None

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs: Any) -> Any:
        outer = module_context()
        enter_module(_context(self, inputs, outer))
        try:
            output = self.forward(*inputs)
        except OutOfMemory as error:
            if outer is None:  # free the arrays in these frames: the handler needs their memory
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            enter_module(outer)
        if self._forward_hooks:
            for hook in tuple(self._forward_hooks.values()):
                replacement = hook(self, inputs, output)
                output = output if replacement is None else replacement
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
        return HookHandle(vars(self).setdefault("_forward_hooks", {}), hook)

    def _is_watched(self) -> bool:
        """Whether a hook or an observer will see this module's output."""
        return bool(observers or self._forward_hooks)

    # --- parts ---

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; ArgumentError if that would silently drop a parameter or buffer.

        Another parameter, a module or None may replace a parameter; a buffer may be replaced by any
        tensor too.
        """
        old = vars(self).get(name)
        if isinstance(old, Tensor) and not _may_replace(old, value):
            kind, made = ("parameter", "nn.Parameter") if _is_trained(old) else ("buffer", "tensor")
            raise ArgumentError(
                f"{type(self).__name__}: {name} is a {kind}; expected another one or None, got "
                f"{type(value).__name__}\n  change it in place, module.{name}.data[...] = array, "
                f"or assign gpucnn.{made}(array)"
            )
        super().__setattr__(name, value)

    def _own_parts(self) -> "Iterator[tuple[str, Module | Tensor]]":
        """(name, part) of each direct part, in the order of assignment."""
        for name, value in vars(self).items():
            if name != "_forward_hooks":  # a hook may be a module, but is not a part
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
        return _once((n, value) for n, value in self._named_tensors() if _is_trained(value))

    def parameters(self) -> list[Tensor]:
        """Every parameter, frozen ones too, each once and always in the same order."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of every tensor that is saved but not trained, each once."""
        return _once((n, value) for n, value in self._named_tensors() if not _is_trained(value))

    def buffers(self) -> list[Tensor]:
        """Every tensor that is saved but not trained, each once and always in the same order."""
        return [buffer for _, buffer in self.named_buffers()]

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Set the attribute `name` to a buffer, or to None for a buffer that comes later.

        Assigning a Tensor to an attribute has the same effect; this checks the name first.  Raises
        ArgumentError for a name with dots, an empty one, or one that another attribute or method
        has; and for anything but None or a Tensor that is not trained.
        """
        who = f"{type(self).__name__}.register_buffer"
        if not isinstance(name, str) or name == "" or "." in name:
            raise ArgumentError(f"{who}: expected a name without dots, got {name!r}")
        old = getattr(self, name, None)
        if old is not None and (not isinstance(old, Tensor) or _is_trained(old)):
            raise ArgumentError(f"{who}: the attribute {name!r} exists already; use another name")
        if tensor is not None and (not isinstance(tensor, Tensor) or _is_trained(tensor)):
            trained = isinstance(tensor, Tensor)
            raise ArgumentError(
                f"{who}: {name} is "
                + ("trained" if trained else f"a {type(tensor).__name__}")
                + "; expected a Tensor without a gradient, or None\n  pass "
                + ("tensor.detach()" if trained else "gpucnn.tensor(array)")
            )
        setattr(self, name, tensor)

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

    # --- mode, device, dtype ---

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

    def to(self, device: str | Device) -> Self:
        """Move parameters and buffers to `device`, in place, and drop gradients; return self.

        Build the optimizer afterwards: it raises GraphError for arrays that were replaced.
        """
        target = Device.parse(device)
        return self._replace(lambda array: to_device(array, target))

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers to `dtype`, in place, and drop gradients; return self.

        Build the optimizer afterwards, as for `to`.
        """
        return self._replace(lambda array: array.astype(dtype))

    def _replace(self, change: Callable[[Array], Array]) -> Self:
        for _, value in self._named_tensors():
            with working_on(value.device):
                value.data = change(value.data)
            value.grad = None
        return self

    # --- state ---

    def state_dict(self) -> dict[str, Array]:
        """{name: array} of parameters and buffers: the arrays themselves, not copies."""
        return {name: value.data for name, value in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state`, which maps names to arrays or tensors on any device, into this module.

        Raises CheckpointError, listing up to 20 differences, if names are missing or unexpected or
        shapes differ; the module is unchanged then.
        """
        own = dict(self._named_tensors())
        problems = [f"missing: {name}" for name in own if name not in state]
        problems += [f"unexpected: {name}" for name in state if name not in own]
        for name in own.keys() & state.keys():
            if tuple(state[name].shape) != own[name].shape:
                problems.append(
                    f"{name}: expected {own[name].shape}, got {tuple(state[name].shape)}"
                )
        if problems:
            raise CheckpointError(
                f"load_state_dict: the state does not fit {type(self).__name__}\n  "
                + "\n  ".join(sorted(problems)[:20])
            )
        for name, value in own.items():
            with working_on(value.device):
                value.data[...] = tensor(state[name], value.device).data
            value._changed()

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


def _is_trained(tensor: Tensor) -> bool:
    """Whether a module's tensor is a parameter, possibly a frozen one, rather than a buffer."""
    return isinstance(tensor, Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _may_replace(old: Tensor, new: Any) -> bool:
    """Whether `new` may replace `old`: None, or a value that holds a part of the same kind."""
    if new is None:
        return True
    parts = [part for _, part in _parts("", new)]
    return any(not isinstance(p, Tensor) or _is_trained(p) or not _is_trained(old) for p in parts)


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
