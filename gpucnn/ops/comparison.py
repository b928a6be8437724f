"""Comparisons, element by element: tensors of bools, which have no gradient.

Operands are tensors, arrays, lists or Python numbers; shapes broadcast as in NumPy.  Comparisons
with NaN are False, except for ne.  Each raises DtypeError if the dtypes differ, or for a float and
a tensor of integers; ShapeError if the shapes do not broadcast.
"""

import operator
from collections.abc import Callable
from typing import Any

from gpucnn.autograd import Function, no_grad
from gpucnn.device import Array
from gpucnn.ops._promotion import float_operand
from gpucnn.ops.elementwise import operands
from gpucnn.tensor import Tensor


def eq(a: Any, b: Any) -> Tensor:
    """a == b, broadcast."""
    return _compare("eq", a, b)


def ne(a: Any, b: Any) -> Tensor:
    """a != b, broadcast; True for NaN."""
    return _compare("ne", a, b)


def lt(a: Any, b: Any) -> Tensor:
    """a < b, broadcast."""
    return _compare("lt", a, b)


def le(a: Any, b: Any) -> Tensor:
    """a <= b, broadcast."""
    return _compare("le", a, b)


def gt(a: Any, b: Any) -> Tensor:
    """a > b, broadcast."""
    return _compare("gt", a, b)


def ge(a: Any, b: Any) -> Tensor:
    """a >= b, broadcast."""
    return _compare("ge", a, b)


def _compare(name: str, a: Any, b: Any) -> Tensor:
    with no_grad():
        return _Compare(name)(*operands(name, a, b))


class _Compare(Function):
    def __init__(self, name: str) -> None:
        self.name = name

    def forward(self, a: Any, b: Any) -> Array:
        compare: Callable[[Any, Any], Array] = getattr(operator, self.name)
        return compare(*(float_operand(x) if hasattr(x, "dtype") else x for x in (a, b)))
