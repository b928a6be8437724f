"""Parameter groups: what an optimizer accepts as `params`, checked and filled in."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpucnn.errors import ArgumentError, DeviceMismatch, DtypeError
from gpucnn.tensor import Tensor

_NUMBERS = (int, float, np.number)


def list_parameters(who: str, parameters: Any) -> list[Tensor]:
    """`parameters` as a list of tensors; ArgumentError, in one line, for anything else."""
    return _tensors(who, _list(who, parameters))


def _list(who: str, parameters: Any) -> list[Any]:
    if callable(getattr(parameters, "parameters", None)):
        what = type(parameters).__name__
        raise ArgumentError(f"{who}: expected parameters, got a {what}; pass model.parameters()")
    if isinstance(parameters, Tensor):
        raise ArgumentError(f"{who}: expected a list of parameters, got one tensor; pass [tensor]")
    try:
        return list(parameters)
    except TypeError:
        what = type(parameters).__name__
        raise ArgumentError(f"{who}: expected a list of parameters, got a {what}") from None


def _tensors(who: str, listed: list[Any]) -> list[Tensor]:
    for i, p in enumerate(listed):
        if not isinstance(p, Tensor):
            raise ArgumentError(
                f"{who}: expected tensors, parameter {i} is a {type(p).__name__}; "
                "pass model.parameters()"
            )
    return listed


def make_groups(who: str, params: Any, defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Parameter groups from `params`: tensors, or dicts with "params" and hyperparameters.

    `defaults` supplies the hyperparameters that a group omits.  "params" becomes a tuple.  Raises
    ArgumentError for an unknown hyperparameter, DeviceMismatch or DtypeError for parameters on
    several devices or of several dtypes.
    """
    listed = _list(who, params)
    if listed and isinstance(listed[0], dict):
        groups = [_fill(f"{who}: group {i}", group, defaults) for i, group in enumerate(listed)]
    else:
        groups = [{"params": tuple(_tensors(who, listed)), **defaults}]
    _check(who, [p for group in groups for p in group["params"]])
    return groups


def _fill(who: str, group: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(group, dict):
        raise ArgumentError(
            f'{who}: expected a dict with "params", like group 0, got a {type(group).__name__}'
        )
    if "params" not in group:
        raise ArgumentError(f'{who}: "params" is missing; the group has {", ".join(group)}')
    unknown = [str(key) for key in group if key != "params" and key not in defaults]
    if unknown:
        raise ArgumentError(
            f"{who}: unknown hyperparameter {', '.join(unknown)}; expected {', '.join(defaults)}"
        )
    params = group["params"]
    params = [params] if isinstance(params, Tensor) else params
    return {**defaults, **group, "params": tuple(list_parameters(who, params))}


def _check(who: str, parameters: list[Tensor]) -> None:
    if not parameters:
        raise ArgumentError(
            f"{who}: there are no parameters to train; an iterator can be used only once"
        )
    if len({id(p) for p in parameters}) != len(parameters):
        raise ArgumentError(f"{who}: a parameter is listed twice")
    if not any(p.requires_grad for p in parameters):
        raise ArgumentError(
            f"{who}: every parameter has requires_grad=False; set it on those to train"
        )
    first = parameters[0]
    for i, p in enumerate(parameters):
        if not p.is_leaf:
            raise ArgumentError(f"{who}: expected leaf tensors, parameter {i} is an op's result")
        if p.device != first.device:
            raise DeviceMismatch(f"{who}: parameters on both {first.device} and {p.device}")
        if p.dtype != first.dtype:
            raise DtypeError(f"{who}: parameters of both {first.dtype} and {p.dtype}")


def check_number(who: str, name: str, value: Any, below: float = math.inf) -> None:
    """Raise ArgumentError unless value is a number in [0, below); without below, inf is allowed."""
    if is_number(value, below):
        return
    if not isinstance(value, _NUMBERS):
        raise ArgumentError(f"{who}: {name} must be a number, got a {type(value).__name__}")
    if below == math.inf:
        raise ArgumentError(f"{who}: {name} must not be negative, got {value}")
    raise ArgumentError(f"{who}: {name} must be in [0, {below:g}), got {value}")


def is_number(value: Any, below: float = math.inf) -> bool:
    """Whether value is a number in [0, below); without below, infinity is one."""
    if type(value) is float and 0 <= value < below:
        return True  # the fast path: every step() checks all hyperparameters
    return isinstance(value, _NUMBERS) and bool(value >= 0 and (value < below or below == math.inf))


def plain(value: Any) -> Any:
    """A hyperparameter as plain JSON data: NumPy scalars become Python's, tuples become lists."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
