"""The gradient of broadcasting."""

from gpucnn.device import Array
from gpucnn.ops._exact import narrowed, wide


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum dy over the axes that broadcasting added or expanded, back to `shape`."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        i + extra for i, n in enumerate(shape) if n == 1 and dy.shape[i + extra] != 1
    )
    total = dy.sum(axis=axes, keepdims=True, dtype=wide(dy.dtype))
    return narrowed(total, dy.dtype).reshape(shape)
