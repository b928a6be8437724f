"""Module: parameters, buffers and other modules under one name, callable as a function.

Nothing is registered: a module is what its attributes are.  A Parameter is trained, and so is a
Tensor that an attribute was set to with requires_grad=True; any other Tensor is a buffer (running
statistics), saved but not trained; a Module is a child.  Lists, tuples and dicts of them, nested or
not, are looked through.  The state's names are the attributes' names joined by dots, and by the
places and keys in lists and dicts: blocks.0.weight, heads.left.weight.
"""

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from gpucnn.creation import tensor
from gpucnn.device import Array, Device, default_device, device_of, to_device, working_on
from gpucnn.errors import ArgumentError, CheckpointError, OutOfMemory
from gpucnn.out_of_memory import ModuleContext, enter_module, module_context, used_bytes
from gpucnn.tensor import Tensor

Observer = Callable[["Module", tuple[Any, ...], Any], None]
_observers: list[Observer] = []


class Parameter(Tensor):
    """A tensor that a module trains: always a leaf that requires its gradient.

    It is where `data` is, or on the device of the `with gpucnn.device(...)` around it.
    """

    __slots__ = ()

    def __init__(self, data: Array) -> None:
        super().__init__(to_device(data, default_device() or device_of(data)), requires_grad=True)


class Module:
    """A piece of a network.  A subclass sets its parts in __init__ and computes in forward.

        class Block(nn.Module):
            def __init__(self):
                self.conv = nn.Conv2d(3, 16, 3, padding=1)

            def forward(self, x):
                return self.conv(x).relu()

    `training` is what dropout and batch normalisation ask; set it with train() and eval().
    """

    training = True

    def forward(self, *inputs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no forward method")

    def __call__(self, *inputs: Any) -> Any:
        outer = module_context()
        enter_module(_context(self, inputs, outer))
        try:
            output = self.forward(*inputs)
        except OutOfMemory as error:
            if outer is None:  # whoever handles it needs the memory of the arrays in these frames
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            enter_module(outer)
        for observer in _observers:
            observer(self, inputs, output)
        return output

    # --- parts ---

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; ArgumentError where a parameter or buffer would be lost in silence.

        A parameter can become another one, a module or None; a buffer any tensor as well.
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
            yield from _parts(name, value)

    def named_children(self) -> "Iterator[tuple[str, Module]]":
        """(name, module) of each direct part, in the order of assignment."""
        for name, part in self._own_parts():
            if isinstance(part, Module):
                yield name, part

    def named_modules(self, prefix: str = "") -> "Iterator[tuple[str, Module]]":
        """(dotted name, module) of this module and all below it; this one's name is `prefix`."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, part in module._own_parts():
                if isinstance(part, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, part

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, parameter) of every parameter, each parameter once."""
        seen: set[int] = set()
        for name, value in self._named_tensors():
            if _is_trained(value) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> list[Tensor]:
        """Every parameter, in a fixed order: what an optimizer takes."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of what is saved but not trained."""
        for name, value in self._named_tensors():
            if not _is_trained(value):
                yield name, value

    # --- mode, device, dtype ---

    def train(self, mode: bool = True) -> Self:
        """Training mode (or evaluation mode) for this module and all below; returns itself."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode: no dropout, running statistics; returns itself."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[Self]:
        """Evaluation mode inside the block; each module gets its own mode back after it."""
        modes = [(module, module.training) for _, module in self.named_modules()]
        try:
            yield self.eval()
        finally:
            for module, mode in modes:
                module.training = mode

    def to(self, device: str | Device) -> Self:
        """Move parameters and buffers to `device`; do it before an optimizer is built."""
        target = Device.parse(device)
        return self._replace(lambda array: to_device(array, target))

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers to `dtype`; do it before an optimizer is built."""
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
        """Copy `state`, arrays or tensors of any device, into parameters and buffers.

        Raises CheckpointError, and changes nothing, if a name is missing or unknown, or a shape
        differs.
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

    # --- for people ---

    def extra_repr(self) -> str:
        """What a repr shows between the parentheses besides the children."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  {name}: " + repr(child).replace("\n", "\n  ")
            for name, child in self.named_children()
        ]
        if not lines:
            return f"{type(self).__name__}({self.extra_repr()})"
        return "\n".join([f"{type(self).__name__}({self.extra_repr()}", *lines, ")"])

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Multiply-adds of one forward call, without those of its children."""
        return 0


def _is_trained(tensor: Tensor) -> bool:
    """Whether a tensor in a module is one of its parameters; a frozen Parameter is, too."""
    return isinstance(tensor, Parameter) or (tensor.requires_grad and tensor.is_leaf)


def _may_replace(old: Tensor, new: Any) -> bool:
    """Whether an attribute may become `new`: None, or what holds a part of the same use."""
    if new is None:
        return True
    parts = [part for _, part in _parts("", new)]
    return any(not isinstance(p, Tensor) or _is_trained(p) or not _is_trained(old) for p in parts)


def _parts(name: str, value: Any) -> Iterator[tuple[str, Module | Tensor]]:
    """(dotted name, part) of each module and tensor that `value`, the attribute `name`, holds."""
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
                    f"{name} has a part under {key!r}, which gives it no name of its own\n"
                    "  use keys that are numbers, or words without dots"
                )
            if parts:
                keys.add(str(key))
            yield from parts
    elif isinstance(value, set | frozenset) and any(_parts(name, list(value))):
        raise ArgumentError(
            f"{name} is a set with modules or tensors, which has no order to name them by\n"
            "  use a list or a dict"
        )


def _names_a_part(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and key != "" and "." not in key)


def _context(module: Module, inputs: tuple[Any, ...], outer: ModuleContext | None) -> ModuleContext:
    """The context of a call of `module`; the outermost call decides the model and the batch."""
    if outer is not None:
        return ModuleContext(outer.model, module, outer.images, outer.used)
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or x.ndim < 2:
        return ModuleContext(module, module, 0, 0)
    before = used_bytes(x.device) - int(x.data.nbytes)  # the batch itself grows with its size
    return ModuleContext(module, module, len(x), before)


def observed() -> bool:
    """Whether somebody looks at what single modules give."""
    return bool(_observers)


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Call `observer(module, inputs, output)` after every module's forward inside the block."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)
