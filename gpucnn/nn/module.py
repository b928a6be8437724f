"""Module: parameters, buffers and other modules under one name, callable as a function.

Nothing is registered: a module is what its attributes are.  A Parameter is trained; any other
Tensor is a buffer (running statistics), saved but not trained; a Module, or a list of them, is a
child.  The state's names are the attributes' names joined by dots.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from gpucnn.device import Array, Device, array_module, default_device, device_of, to_device
from gpucnn.errors import CheckpointError, OutOfMemory
from gpucnn.out_of_memory import Place, go_to, place, used_bytes
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
        outer = place()
        go_to(_place(self, inputs, outer))
        try:
            output = self.forward(*inputs)
        except OutOfMemory as error:
            if outer is None:  # whoever handles it needs the memory of the arrays in these frames
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            go_to(outer)
        for observer in _observers:
            observer(self, inputs, output)
        return output

    # --- parts ---

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) of each direct part, in the order of assignment."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list | tuple):
                for i, part in enumerate(value):
                    if isinstance(part, Module):
                        yield f"{name}.{i}", part

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted name, module) of this module and all below it; this one's name is `prefix`."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}.{name}" if prefix else name, value

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter) of every parameter, each parameter once."""
        seen: set[int] = set()
        for name, value in self._named_tensors():
            if isinstance(value, Parameter) and id(value) not in seen:
                seen.add(id(value))
                yield name, value

    def parameters(self) -> list[Parameter]:
        """Every parameter, in a fixed order: what an optimizer takes."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of what is saved but not trained."""
        for name, value in self._named_tensors():
            if not isinstance(value, Parameter):
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

    def to(self, device: str | Device) -> Self:
        """Move parameters and buffers to `device`; do it before an optimizer is built."""
        target = Device.parse(device)
        return self._replace(lambda array: to_device(array, target))

    def astype(self, dtype: Any) -> Self:
        """Convert parameters and buffers to `dtype`; do it before an optimizer is built."""
        return self._replace(lambda array: array.astype(dtype))

    def _replace(self, change: Callable[[Array], Array]) -> Self:
        for _, value in self._named_tensors():
            value.data = change(value.data)
            value.grad = None
        return self

    # --- state ---

    def state_dict(self) -> dict[str, Array]:
        """{name: array} of parameters and buffers: the arrays themselves, not copies."""
        return {name: value.data for name, value in self._named_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy `state` into parameters and buffers.

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
        for name, tensor in own.items():
            value = state[name].data if isinstance(state[name], Tensor) else state[name]
            tensor.data[...] = array_module(tensor.data).asarray(value)
            tensor._version += 1

    # --- for people ---

    def extra(self) -> str:
        """What a repr shows between the parentheses besides the children."""
        return ""

    def __repr__(self) -> str:
        lines = [
            f"  {name}: " + repr(child).replace("\n", "\n  ") for name, child in self.children()
        ]
        if not lines:
            return f"{type(self).__name__}({self.extra()})"
        return "\n".join([f"{type(self).__name__}({self.extra()}", *lines, ")"])

    def multiply_adds(self, inputs: tuple[Any, ...], output: Any) -> int:
        """Multiply-adds of one forward call, without those of its children."""
        return 0


def _place(module: Module, inputs: tuple[Any, ...], outer: Place | None) -> Place:
    """Where the program is while `module` is called: in the model that the call before began."""
    if outer is not None:
        return Place(outer.model, module, outer.images, outer.used)
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or x.ndim < 2:
        return Place(module, module, 0, 0)
    before = used_bytes(x.device) - int(x.data.nbytes)  # the batch itself grows with its size
    return Place(module, module, len(x), before)


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
