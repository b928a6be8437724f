"""The arguments that cudasim's functions accept: those of both CuPy and NumPy.

NumPy does the computation, and it accepts more than CuPy: `where=` in a sum, other positions of
`axis`.  A program that used those would fail only on a GPU, so arguments that are not in these
tables are refused.  `=` marks optional arguments; `/` and `*` are Python's.
"""

import inspect
from collections.abc import Callable
from typing import Any

UNARY = """
    abs absolute ceil cos exp expm1 floor isfinite isinf isnan log log1p logical_not negative rint
    sign sin sqrt square tanh
"""
BINARY = """
    add divide equal floor_divide greater greater_equal less less_equal logical_and logical_or
    maximum minimum multiply not_equal power subtract true_divide
"""
SCATTERS = ("add", "maximum", "minimum", "subtract")  # ufuncs whose `at` CuPy has

FUNCTIONS = """
    all(a, axis=, out=, keepdims=)
    any(a, axis=, out=, keepdims=)
    argmax(a, axis=, *, out=, keepdims=)
    argmin(a, axis=, *, out=, keepdims=)
    argsort(a, axis=, kind=)
    array_equal(a1, a2, equal_nan=)
    bincount(x, /, weights=, minlength=)
    broadcast_to(array, shape)
    clip(a, a_min, a_max, out=)
    concatenate(tup, /, axis=, out=, *, dtype=, casting=)
    copyto(dst, src, casting=, where=)
    cumsum(a, axis=, dtype=, out=)
    dot(a, b, out=)
    einsum(*operands, dtype=, optimize=)
    expand_dims(a, axis)
    flip(a, /, axis=)
    matmul(a, b, /, *, out=, dtype=, casting=)
    max(a, axis=, out=, keepdims=)
    mean(a, axis=, dtype=, out=, keepdims=)
    min(a, axis=, out=, keepdims=)
    moveaxis(a, source, destination)
    pad(array, pad_width, mode=, **kwargs)
    prod(a, axis=, dtype=, out=, keepdims=)
    ravel(a, order=)
    repeat(a, repeats, axis=)
    reshape(a, newshape, /, order=)
    result_type(*arrays_and_dtypes)
    roll(a, shift, axis=)
    squeeze(a, axis=)
    stack(tup, /, axis=, out=, *, dtype=, casting=)
    std(a, axis=, dtype=, out=, ddof=, keepdims=)
    sum(a, axis=, dtype=, out=, keepdims=)
    swapaxes(a, axis1, axis2)
    take(a, indices, axis=, out=)
    take_along_axis(a, indices, /, axis)
    tensordot(a, b, axes=)
    tile(A, reps)
    transpose(a, axes=)
    unique(ar, return_index=, return_inverse=, return_counts=, axis=, *, equal_nan=)
    var(a, axis=, dtype=, out=, ddof=, keepdims=)
    where(condition, x=, y=, /)
"""
STRIDE_TRICKS = """
    as_strided(x, shape=, strides=)
    sliding_window_view(x, window_shape, axis=, *, subok=, writeable=)
"""
LINALG = """
    norm(x, ord=, axis=, keepdims=)
"""
METHODS = """
    all(axis=, out=, keepdims=)
    any(axis=, out=, keepdims=)
    argmax(axis=, out=, *, keepdims=)
    argmin(axis=, out=, *, keepdims=)
    argsort(axis=, kind=)
    clip(min=, max=, out=)
    cumsum(axis=, dtype=, out=)
    dot(b, /, out=)
    flatten(order=)
    max(axis=, out=, keepdims=)
    mean(axis=, dtype=, out=, keepdims=)
    min(axis=, out=, keepdims=)
    prod(axis=, dtype=, out=, keepdims=)
    ravel(order=)
    repeat(repeats, axis=)
    reshape(*shape, order=)
    round(decimals=, out=)
    squeeze(axis=)
    std(axis=, dtype=, out=, ddof=, keepdims=)
    sum(axis=, dtype=, out=, keepdims=)
    swapaxes(axis1, axis2, /)
    take(indices, axis=, out=)
    transpose(*axes)
    var(axis=, dtype=, out=, ddof=, keepdims=)
    view(dtype=)
"""


def table(text: str) -> dict[str, inspect.Signature]:
    """The signatures in one of the texts above, by name."""
    lines = [line.strip().partition("(") for line in text.strip().splitlines()]
    return {name: _signature(rest.removesuffix(")")) for name, _, rest in lines}


def ufuncs() -> dict[str, inspect.Signature]:
    """The signatures of the element-wise functions, by name."""
    unary = _signature("x, /, out=, *, casting=, dtype=")
    binary = _signature("x1, x2, /, out=, *, casting=, dtype=")
    return dict.fromkeys(UNARY.split(), unary) | dict.fromkeys(BINARY.split(), binary)


def _signature(text: str) -> inspect.Signature:
    parameters: list[inspect.Parameter] = []
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    for word in text.split(", "):
        if word == "/":
            parameters = [p.replace(kind=inspect.Parameter.POSITIONAL_ONLY) for p in parameters]
        elif word == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif word.startswith("**"):
            parameters.append(inspect.Parameter(word[2:], inspect.Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            parameters.append(inspect.Parameter(word[1:], inspect.Parameter.VAR_POSITIONAL))
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            default = None if word.endswith("=") else inspect.Parameter.empty
            parameters.append(inspect.Parameter(word.rstrip("="), kind, default=default))
    return inspect.Signature(parameters)


def refusal(name: str, signature: inspect.Signature) -> Callable[[tuple[Any, ...], Any], None]:
    """A function refuse(args, options) that raises TypeError unless they match `signature`."""
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    any_number = inspect.Parameter.VAR_POSITIONAL in kinds.values()
    any_name = inspect.Parameter.VAR_KEYWORD in kinds.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    most = 10**6 if any_number else sum(kind in positional for kind in kinds.values())
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = frozenset(name for name, kind in kinds.items() if kind in named)

    def refuse(args: tuple[Any, ...], options: Any) -> None:
        if len(args) > most:
            raise TypeError(f"{name}{signature} takes {most} positional arguments, got {len(args)}")
        if not (any_name or options.keys() <= names):
            unknown = ", ".join(options.keys() - names)
            raise TypeError(f"{name}{signature} got an unexpected keyword argument: {unknown}")

    return refuse
