"""Old names of functions, arguments and attributes, which warn until they are removed."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def deprecated(old: str, new: str, removed_in: str) -> None:
    """Warn, at the line that called the calling function, that `new` replaces `old`."""
    text = f"{old} is deprecated and will be removed in gpucnn {removed_in}; use {new}"
    warnings.warn(text, DeprecationWarning, stacklevel=3)


def renamed_function(old: str, new: Callable[P, T], removed_in: str) -> Callable[P, T]:
    """The function `new` under its old name."""

    @wraps(new)
    def call(*args: P.args, **options: P.kwargs) -> T:
        deprecated(old, new.__name__, removed_in)
        return new(*args, **options)

    return call


def renamed_argument(
    old: str, new: str, removed_in: str
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Decorate a function to take the keyword argument `new` under its old name too."""

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> T:
            if old in options:
                deprecated(f"{function.__name__}({old}=...)", f"{new}=...", removed_in)
                if new in options:
                    raise TypeError(f"{function.__name__}: got both {old} and {new}")
                options[new] = options.pop(old)
            return function(*args, **options)

        return call

    return decorate


def renamed_attribute(old: str, new: str, removed_in: str) -> property:
    """A property for the old name of the attribute `new`, to read and to set."""

    def read(self: Any) -> Any:
        deprecated(f"{type(self).__name__}.{old}", new, removed_in)
        return getattr(self, new)

    def write(self: Any, value: Any) -> None:
        deprecated(f"{type(self).__name__}.{old}", new, removed_in)
        setattr(self, new, value)

    return property(read, write)
