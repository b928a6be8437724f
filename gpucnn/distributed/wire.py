"""Number formats of gradients in transit: converted, reduced, converted back.

Arrays on a GPU must be on the current device.
"""

from collections.abc import Iterator

import numpy as np

from gpucnn.device import Array, array_module

# The dtype of an array in each format.  NumPy has no bfloat16: its bits are in a uint16.
WIRE_DTYPES = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}
_BLOCK = 64 * 1024  # elements on the CPU: temporaries stay in the cache


def pack(x: Array, wire: str, out: Array) -> None:
    """Round x (n,) to the wire's format; out (n,) has its dtype in WIRE_DTYPES.

    fp16 is infinite above 65504, and loses bits below 6e-5; bf16 has float32's range and 8 bits.
    """
    with np.errstate(over="ignore"):
        if wire != "bf16":
            out[...] = x
            return
        for part in _blocks(x):
            out[part] = _to_bfloat16(x[part].astype(np.float32, copy=False))


def unpack(x: Array, wire: str, out: Array) -> None:
    """Convert x (n,), in the wire's format, to the dtype of out (n,)."""
    with np.errstate(over="ignore"):
        if wire != "bf16":
            out[...] = x
            return
        for part in _blocks(x):
            out[part] = _from_bfloat16(x[part])


def add_bfloat16(a: Array, b: Array, out: Array) -> None:
    """Add a and b, bfloat16 in uint16 (n,), and round to bfloat16; out may be one of them."""
    with np.errstate(over="ignore", invalid="ignore"):
        for part in _blocks(out):
            out[part] = _to_bfloat16(_from_bfloat16(a[part]) + _from_bfloat16(b[part]))


def _blocks(x: Array) -> Iterator[slice]:
    """Pieces of x, to be converted one after another; a GPU takes it whole."""
    step = _BLOCK if isinstance(x, np.ndarray) else max(x.size, 1)
    return (slice(low, low + step) for low in range(0, x.size, step))


def _to_bfloat16(x: Array) -> Array:
    """float32 x to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = x.view(np.uint32)
    upper = bits >> 16
    rounded = (bits + ((upper & 1) + 0x7FFF)) >> 16
    return array_module(x).where(x == x, rounded, upper | 0x40).astype(np.uint16)


def _from_bfloat16(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)
