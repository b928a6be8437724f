"""Parts of a module by name: setting them with a check of the name, and looking them up."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from gpucnn.errors import ArgumentError
from gpucnn.nn.parameter import is_trained
from gpucnn.tensor import Tensor


class Registration:
    """A base of Module, which has the methods that it declares."""

    named_modules: Callable[[str, bool], Iterator[tuple[str, Any]]]
    _named_tensors: Callable[[], Iterator[tuple[str, Tensor]]]

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Set the attribute `name` to a buffer, or to None for a buffer that comes later.

        Assigning a Tensor to an attribute has the same effect; this checks the name first.  Raises
        ArgumentError for a name with dots, an empty one, or one that another attribute or method
        has; and for anything but None or a Tensor that is not trained.
        """
        who = f"{type(self).__name__}.register_buffer"
        old = self._registered(who, name)
        if old is not None and (not isinstance(old, Tensor) or is_trained(old)):
            raise ArgumentError(f"{who}: the attribute {name!r} exists already; use another name")
        if tensor is not None and (not isinstance(tensor, Tensor) or is_trained(tensor)):
            trained = isinstance(tensor, Tensor)
            raise ArgumentError(
                f"{who}: {name} is "
                + ("trained" if trained else f"a {type(tensor).__name__}")
                + "; expected a Tensor without a gradient, or None\n  pass "
                + ("tensor.detach()" if trained else "gpucnn.tensor(array)")
            )
        setattr(self, name, tensor)

    def register_parameter(self, name: str, parameter: Tensor | None) -> None:
        """Set the attribute `name` to a parameter, or to None for one that the module goes without.

        Assigning a Parameter to an attribute has the same effect; this checks the name, as
        register_buffer does.  Raises ArgumentError also for anything but None, a Parameter or
        another leaf that requires a gradient.
        """
        who = f"{type(self).__name__}.register_parameter"
        old = self._registered(who, name)
        if old is not None and not (isinstance(old, Tensor) and is_trained(old)):
            raise ArgumentError(f"{who}: the attribute {name!r} exists already; use another name")
        if parameter is not None and not (isinstance(parameter, Tensor) and is_trained(parameter)):
            raise ArgumentError(
                f"{who}: {name} is a {type(parameter).__name__} that is not trained; expected an "
                "nn.Parameter or None\n  pass nn.Parameter(array)"
            )
        setattr(self, name, parameter)

    def add_module(self, name: str, module: Any) -> None:
        """Set the attribute `name` to a module, or to None.

        Assigning a module to an attribute has the same effect; this checks the name, as
        register_buffer does.  Raises ArgumentError also for anything but a module or None.
        """
        who = f"{type(self).__name__}.add_module"
        old = self._registered(who, name)
        if old is not None and not isinstance(old, Registration):
            raise ArgumentError(f"{who}: the attribute {name!r} exists already; use another name")
        if module is not None and not isinstance(module, Registration):
            raise ArgumentError(
                f"{who}: {name} is a {type(module).__name__}; expected a module or None"
            )
        setattr(self, name, module)

    def register_module(self, name: str, module: Any) -> None:
        """The same as add_module."""
        self.add_module(name, module)

    def get_submodule(self, target: str) -> Any:
        """The module of that dotted name, as in named_modules; "" is this module.

        Raises ArgumentError if there is none.
        """
        return self._found("get_submodule", target, self.named_modules("", False))

    def get_parameter(self, target: str) -> Tensor:
        """The parameter of that dotted name, as in state_dict; ArgumentError if there is none."""
        named = ((name, t) for name, t in self._named_tensors() if is_trained(t))
        parameter: Tensor = self._found("get_parameter", target, named)
        return parameter

    def get_buffer(self, target: str) -> Tensor:
        """The buffer of that dotted name, as in state_dict; ArgumentError if there is none."""
        named = ((name, t) for name, t in self._named_tensors() if not is_trained(t))
        buffer: Tensor = self._found("get_buffer", target, named)
        return buffer

    def _registered(self, who: str, name: Any) -> Any:
        """The attribute `name`, None if there is none; ArgumentError for a name that cannot be."""
        if not isinstance(name, str) or name == "" or "." in name:
            raise ArgumentError(f"{who}: expected a name without dots, got {name!r}")
        return getattr(self, name, None)

    def _found(self, who: str, target: str, named: Iterator[tuple[str, Any]]) -> Any:
        parts = dict(named)
        if target in parts:
            return parts[target]
        close = difflib.get_close_matches(str(target), parts, n=3) or list(parts)[:10]
        listed = ", ".join(repr(name) for name in close)
        raise ArgumentError(
            f"{type(self).__name__}.{who}: there is no {target!r}; it has {listed or 'none'}"
        )
