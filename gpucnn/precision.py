"""The precision of products: TF32 for float32 tensors, and half precision by autocast.

    gpucnn.set_float32_precision("highest")     # float32 products in float32, not TF32
    with gpucnn.autocast("bfloat16"):           # products of half-precision numbers
        loss = ops.cross_entropy(model(images), labels)
    loss.backward()

"Half precision" means float16 or bfloat16: 16 bits.  NumPy and CuPy know bfloat16 by the package
ml_dtypes, whose dtype has NumPy's kind "V"; so test a dtype with `is_floating`, not by its kind.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ContextDecorator, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np

from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DtypeError

_INSTALL = 'pip install "gpucnn[half]"'
_TF32_SM = 80  # the first compute capability whose tensor cores take TF32

_float32_precision: str | None = None  # None: by device, see uses_tf32
_state = threading.local()  # dtype, of autocast; float32, which replaces _float32_precision


# --- dtypes ---


@functools.cache
def bfloat16() -> np.dtype[Any]:
    """The dtype of bfloat16; DtypeError without the package ml_dtypes."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise DtypeError(f"bfloat16 needs the package ml_dtypes: {_INSTALL}") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def is_half(dtype: Any) -> bool:
    """Whether `dtype`, a NumPy dtype, is float16 or bfloat16."""
    kind = dtype.kind  # the name of a dtype is slow to get
    return bool((kind == "f" and dtype.itemsize == 2) or (kind == "V" and dtype.name == "bfloat16"))


def is_floating(dtype: Any) -> bool:
    """Whether `dtype`, a NumPy dtype, is float16, bfloat16, float32 or float64."""
    kind = dtype.kind
    return bool(kind == "f" or (kind == "V" and dtype.name == "bfloat16"))


# --- float32 ---


def set_float32_precision(precision: str) -> None:
    """Choose how a GPU multiplies float32 tensors in conv2d, conv_transpose2d, linear and matmul.

    "highest"  in float32
    "high"     in TF32, on GPUs that have it (compute capability 8.0 and newer): tensor cores use 10
               bits of each factor's mantissa, truncated, and sum in float32

    Until it is called, CUDA devices use "high", as cuDNN's users get, and cudasim "highest".  CPUs
    always compute in float32.  Raises ArgumentError for anything else.
    """
    global _float32_precision
    if precision not in ("highest", "high"):
        raise ArgumentError(
            f'set_float32_precision: expected "highest" or "high", got {precision!r}'
        )
    _float32_precision = precision


def get_float32_precision(device: Device | str | None = None) -> str:
    """ "high" or "highest": how `device` (None: the default device) multiplies float32 tensors.

    "highest" on a device without TF32, whatever was set.
    """
    return "high" if uses_tf32(Device.parse(device)) else "highest"


def uses_tf32(device: Device) -> bool:
    """Whether products of float32 tensors on `device` are computed in TF32."""
    chosen = getattr(_state, "float32", None) or _float32_precision
    if device.kind == "cpu" or chosen == "highest":
        return False
    if chosen is None and device.kind == "cudasim":  # made for exact comparisons
        return False
    return compute_capability(device) >= _TF32_SM


@contextmanager
def float32_precision(precision: str | None) -> Iterator[None]:
    """Inside the block, in this thread, as after set_float32_precision(precision).

    None changes nothing.
    """
    outer = getattr(_state, "float32", None)
    _state.float32 = outer if precision is None else precision
    try:
        yield
    finally:
        _state.float32 = outer


@functools.cache
def compute_capability(device: Device) -> int:
    """That of a GPU, such as 80 for 8.0."""
    return int(device.xp.cuda.Device(device.index).compute_capability)


# --- autocast ---


class autocast(ContextDecorator):  # a function to its users, like torch.autocast
    """Compute products in half precision inside the block, in this thread.

    dtype is "bfloat16", "float16" or that NumPy dtype; enabled=False switches off an enclosing
    autocast.  It is meant for forward pass and loss; backward computes in the dtypes of forward:

        with gpucnn.autocast("bfloat16"):
            loss = ops.cross_entropy(model(images), labels)
        loss.backward()

    conv2d, conv_transpose2d, linear and matmul round their operands to `dtype`, sum in float32 and
    return `dtype`.  Parameters stay float32, and so are their gradients.  Other ops, norms too,
    compute in the dtype of their input, and keep statistics, sums and exponentials in float32;
    cross_entropy and binary_cross_entropy_with_logits return float32.

    On GPUs products run on tensor cores.  The CPU rounds in the same places and computes in
    float32, which is slow: it serves as a reference.  float16 has a smaller range, so train with a
    scaled loss: Trainer(precision="fp16").

    Raises DtypeError for another dtype, or for bfloat16 without the package ml_dtypes.
    """

    def __init__(self, dtype: Any, enabled: bool = True) -> None:
        self._dtype = _half_dtype(dtype) if enabled else None
        self._outer: list[np.dtype[Any] | None] = []

    def __enter__(self) -> None:
        self._outer.append(autocast_dtype())
        _state.dtype = self._dtype

    def __exit__(self, *exc: object) -> Literal[False]:
        _state.dtype = self._outer.pop()
        return False

    def _recreate_cm(self) -> "autocast":
        again = autocast(
            "float16", enabled=False
        )  # a decorated function may run in several threads
        again._dtype = self._dtype
        return again


def autocast_dtype() -> np.dtype[Any] | None:
    """The dtype of this thread's innermost autocast, or None."""
    return getattr(_state, "dtype", None)


def _half_dtype(dtype: Any) -> np.dtype[Any]:
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", None) or str(dtype)
    if name == "bfloat16":
        return bfloat16()
    if name == "float16":
        return np.dtype(np.float16)
    raise DtypeError(f'autocast: expected "bfloat16" or "float16", got {dtype!r}')


# --- the precision of a step by name ---

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "auto")
HALVES = {"bf16": "bfloat16", "fp16": "float16"}


def chosen(precision: str | None, device: Device) -> str:
    """What `precision`, a name or None, is on `device`: "fp32", "tf32", "bf16" or "fp16".

    None is what get_float32_precision says.  Raises ArgumentError for an unknown name.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ArgumentError(
            f"precision={precision!r} is unknown; expected {', '.join(map(repr, PRECISIONS))}"
        )
    if precision == "auto":
        capability = compute_capability(device) if device.kind == "cuda" else 0
        return "bf16" if capability >= 80 else "fp16" if capability >= 70 else "fp32"
    if precision in ("fp32", "bf16", "fp16"):
        return precision
    with float32_precision(None if precision is None else "high"):
        return "tf32" if uses_tf32(device) else "fp32"


def autocast_of(precision: str | None, device: Device) -> AbstractContextManager[None]:
    """For model and loss: autocast if `precision` on `device` is half precision, else nothing.

    Raises ArgumentError for an unknown name, DtypeError for bf16 without the package ml_dtypes.
    """
    half = HALVES.get(chosen(precision, device))
    return nullcontext() if half is None else autocast(half)
