"""What a captured step depends on besides device memory, and what its capture must leave alone.

A replay repeats launches: no Python of the step runs.  So what that Python would read must be as
it was at the capture (`Dependencies`), and two steps in a row must have run alike (`Trace`).  A
capture runs the Python once without computing anything, so what it changes is restored (`Undo`).
"""

import functools
import operator
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.autograd import Function, Operand, grad_enabled
from gpucnn.cuda.card import card_of
from gpucnn.device import Array, Device
from gpucnn.graph_memory import saved_arrays
from gpucnn.nn.hooks import observers
from gpucnn.ops import get_conv_algorithm
from gpucnn.optim import Optimizer
from gpucnn.precision import autocast_dtype, uses_tf32
from gpucnn.random import current_part, default_generator
from gpucnn.tensor import Tensor
from gpucnn.train.random_state import generator_state
from gpucnn.watching import Watcher, current_watcher

_PLAIN = (bool, int, float, str, type(None), np.generic)


class Dependencies:
    """The state of modules, optimizer, loss and settings at one moment."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Any, device: Device) -> None:
        self._device = device
        self._settings = _settings(device)
        holders = [(f"module {name or 'outermost'}", m) for name, m in model.named_modules()]
        self._states = [(name, live, _seen(live)) for name, live in _states(holders, loss)]
        self._loss, self._variables = loss, _seen(_variables(loss))
        tensors = {id(t): t for t in (*optimizer.parameters, *_tensors(model))}
        self._tensors = [(t, t._data, t.requires_grad, _hooks(t)) for t in tensors.values()]
        self._optimizer = optimizer
        self._groups = [
            (group, len(group), [(k, v) for k, v in group.items() if k != "lr"])
            for group in optimizer.param_groups
        ]

    def changed(self) -> str:
        """What has changed since; "" if nothing has.  Learning rates may change."""
        if observers or current_watcher() is not None:
            return "an observer watches the modules"
        if _settings(self._device) != self._settings:
            return "the convolution algorithm, precision or gradient mode"
        for tensor, data, requires_grad, hooks in self._tensors:
            if tensor._data is not data or tensor.requires_grad != requires_grad:
                return self._name(tensor)
            if _hooks(tensor) != hooks:
                return f"the hooks of {self._name(tensor)}"
        groups = self._optimizer.param_groups
        if len(groups) != len(self._groups):
            return "the optimizer's groups"
        for now, (group, size, items) in zip(groups, self._groups, strict=True):
            if now is not group or len(group) != size:
                return "the optimizer's groups"
            for key, value in items:
                if group.get(key) != value:
                    return f"the optimizer's {key}"
        if not _unchanged(_variables(self._loss), self._variables):
            return "a variable of the loss"
        for name, live, saved in self._states:
            if not _unchanged(live, saved):
                keys = (
                    key
                    for key in {**live, **saved}
                    if not (key in live and key in saved and _unchanged(live[key], saved[key]))
                )
                return f"{name}: {next(keys, '')}"
        return ""

    def _name(self, tensor: Tensor) -> str:
        number = next((i for i, p in enumerate(self._optimizer.parameters) if p is tensor), None)
        return "a buffer" if number is None else f"parameter {number}"


def _hooks(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor._hooks.values()) if tensor._hooks else ()


def _settings(device: Device) -> tuple[Any, ...]:
    """What decides outside of the model which operations run."""
    return (
        get_conv_algorithm(),
        autocast_dtype(),
        uses_tf32(device),
        card_of(device),
        grad_enabled(),
        current_part(),
    )


def _states(holders: list[tuple[str, Any]], loss: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, live dict) of the attributes of the modules and of the loss."""
    for name, holder in holders:
        yield name, vars(holder)
    for holder in (loss, getattr(loss, "__self__", None)):
        if hasattr(holder, "__dict__"):
            yield "the loss", vars(holder)
    if isinstance(loss, functools.partial):
        yield "the loss", loss.keywords
    for module in loss.modules() if isinstance(loss, nn.Module) else ():
        yield "the loss", vars(module)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor in model._named_tensors()]


def _copied(value: Any) -> Any:
    """A copy of a container, so that a change of it in place is seen."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else value


def _variables(loss: Any) -> list[Any]:
    """The values of the variables that a function takes from around it, as far as they have one."""
    found = []
    for cell in getattr(loss, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty
            found.append(cell.cell_contents)
    return found


class _Attributes:
    """The attributes of an object at one moment: equal to the object while it has these."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, of: Any) -> None:
        self._of, self._were = of, _copied(vars(of))

    def __eq__(self, other: object) -> bool:
        return other is self._of and _same(vars(self._of), self._were)


class _One:
    """Equal to one tensor only: == of two tensors with one element would compare their values."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, of: Tensor) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return other is self._of


def _seen(value: Any) -> Any:
    """What `_unchanged` finds equal to `value` until it, or a plain object in it, is changed."""
    if isinstance(value, dict):
        return {key: _seen(item) for key, item in value.items()}
    if type(value) is list:
        return [_seen(item) for item in value]
    if type(value) is tuple:
        seen = tuple(map(_seen, value))  # the tuple itself is compared faster
        return value if all(map(operator.is_, seen, value)) else seen
    if isinstance(value, Tensor) and value.size == 1:
        return _One(value)
    known = isinstance(value, nn.Module | Tensor | Optimizer | type | ModuleType | FunctionType)
    # Another's own equality would be asked first.
    equality: Any = type(value).__eq__
    leaves_it = is_dataclass(value) or equality is object.__eq__
    return _Attributes(value) if leaves_it and not known and hasattr(value, "__dict__") else value


def _restore(live: dict[str, Any], saved: dict[str, Any]) -> None:
    """Make a dict as it was, and the lists in it, in place."""
    for key, value in saved.items():
        now = live.get(key)
        if type(value) is list and type(now) is list:
            now[:] = value
            saved[key] = now
    live.clear()
    live.update(saved)


def _unchanged(live: Any, saved: Any) -> bool:
    """Whether `live` is as it was when `saved` was made of it by `_seen`."""
    try:
        return bool(live == saved)  # of the same objects, dicts and lists compare identities
    except (TypeError, ValueError, RuntimeError):  # another array or tensor
        return False


def _same(live: Any, saved: Any) -> bool:
    """Whether two values are equal, tensors only if they are one, without a launch."""
    if live is saved:
        return True
    if isinstance(live, Tensor) or isinstance(saved, Tensor):
        return False
    if isinstance(live, dict) and isinstance(saved, dict):
        return live.keys() == saved.keys() and all(
            _same(live[key], value) for key, value in saved.items()
        )
    if type(live) in (list, tuple) and type(live) is type(saved):
        return len(live) == len(saved) and all(map(_same, live, saved))
    try:
        return bool(live == saved)
    except ValueError:  # another array
        return False


def _same_entry(key: str, live: dict[str, Any], saved: dict[str, Any]) -> bool:
    return key in live and key in saved and _same(live[key], saved[key])


class Undo:
    """Everything on the host that a step changes."""

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._modules = [(module, _copied(vars(module))) for module in model.modules()]
        tensors = {id(t): t for t in (*optimizer.parameters, *_tensors(model))}
        self._versions = [(t, t._version) for t in tensors.values()]
        self._optimizer, self._steps = optimizer, optimizer.steps
        self._generators = {id(g): g for g in _generators(model)}
        self._states = {key: g.bit_generator.state for key, g in self._generators.items()}
        self._drawn = self._random_numbers()
        self._globals = {"random": random.getstate(), "numpy": _numpys_state()}
        copies = optimizer.offered_copies()
        for tensor in tensors.values():
            tensor._cache = None  # so that the step computes in the graph what it would cache
        for copy in copies:  # but for what the optimizer's launch writes
            copy.offer()

    def _random_numbers(self) -> dict[Any, Any]:
        own = {key: generator_state(g) for key, g in self._generators.items()}
        return own | _global_numbers()

    def why_not(self) -> str:
        """Why a replay would not do what the step has done since; "" if it would."""
        if self._random_numbers() != self._drawn:
            return "the step draws random numbers on the host"
        for module, before in self._modules:
            if not _same(vars(module), before):
                keys = (key for key in vars(module) if not _same_entry(key, vars(module), before))
                return f"the step changes {type(module).__name__}.{next(keys, 'attributes')}"
        return ""

    def versions(self) -> list[tuple[Tensor, int]]:
        """By how much the step has changed the tensors' versions."""
        return [(t, t._version - v) for t, v in self._versions if t._version != v]

    def restore(self) -> None:
        """Make everything as it was."""
        for module, before in self._modules:
            if not _same(vars(module), before):
                _restore(vars(module), before)
        for tensor, version in self._versions:
            tensor._version, tensor._cache = version, None
        self._optimizer.steps, self._optimizer._bounds = self._steps, None
        # Where they differ only: another thread may be drawing.
        for key, generator in self._generators.items():
            if generator_state(generator) != self._drawn[key]:
                generator.bit_generator.state = self._states[key]
        for (name, now), restore in zip(_global_numbers().items(), _RESTORE, strict=True):
            if now != self._drawn[name]:
                restore(self._globals[name])


def _numpys_state() -> Any:
    return np.random.get_state()  # noqa: NPY002  a model's code may use it


def _global_numbers() -> dict[str, Any]:
    """The states of Python's and NumPy's global generators, which compare equal if they are."""
    _, words, position, *_ = _numpys_state()
    return {"random": random.getstate(), "numpy": (words.tobytes(), position)}


_RESTORE: tuple[Callable[[Any], object], ...] = (
    random.setstate,
    np.random.set_state,
)


def _generators(model: nn.Module) -> Iterator[np.random.Generator]:
    yield default_generator()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, np.random.Generator):
                yield value


class Trace(Watcher):
    """The operations of a step, with the numbers that they were given."""

    def __init__(self, keep: Callable[[Array], None] | None = None) -> None:
        """keep is called with every array that an operation uses."""
        self._calls: list[tuple[Any, ...]] = []
        self._keep = keep

    def forward(self, node: Function, inputs: tuple[Operand, ...], y: Array) -> None:
        numbers = tuple(x for x in inputs if not isinstance(x, Tensor))
        settings = tuple(
            (key, value)
            for key, value in vars(node).items()
            if key not in ("order", "consumers") and key[0] != "_" and _is_plain(value)
        )
        self._calls.append((node.name, numbers, settings, tuple(y.shape), y.dtype))
        if self._keep is None:
            return
        for x in inputs:
            if isinstance(x, Tensor):
                self._keep(x._data)
        for value in (*vars(node).values(), *saved_arrays(node)):
            for item in value if isinstance(value, tuple) else (value,):
                if hasattr(item, "dtype") and hasattr(item, "base"):
                    self._keep(item)

    def backward(self, node: Function, dy: Array, gradients: list[Array | None]) -> None:
        given = tuple(gradient is not None for gradient in gradients)
        self._calls.append(("the gradient of " + node.name, given))

    def difference(self, before: "Trace") -> str:
        """Describe the first operation that differs from those of an earlier step."""
        for call, earlier in zip(self._calls, before._calls, strict=False):
            if call != earlier:
                what = f"{call[0]} {call[1:3]}" if call[0] == earlier[0] else call[0]
                return f"two steps in a row differ: {what}, {earlier[0]} {earlier[1:3]} before"
        if len(self._calls) != len(before._calls):
            return "two steps in a row differ in the number of operations"
        return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
