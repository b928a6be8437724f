"""Integers: arithmetic on sizes, and what counts as one."""

import numpy as np


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def is_int(value: object) -> bool:
    """Whether value is an int of Python's or NumPy's, and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
