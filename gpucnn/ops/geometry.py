"""The geometry of a sliding window: computed and checked once, and passed to both devices."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from gpucnn.errors import ArgumentError, ShapeError
from gpucnn.integers import ceil_div, is_int

Size: TypeAlias = int | tuple[int, int]
Padding: TypeAlias = (
    int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] | Literal["valid", "same"]
)


@dataclass(frozen=True)
class Geometry:
    """How windows of (kh, kw) pixels slide over padded images (n, h, w, c).

    Output pixel (i, j) sees input rows i * stride_h - top + r * dilation_h for r in 0..kh-1;
    columns likewise.  All fields are ints, in pixels except for n, c and groups.  The struct is
    passed to CUDA kernels by value (Geometry in kernels/common.cuh).
    """

    n: int
    h: int
    w: int
    c: int
    kh: int
    kw: int
    oh: int
    ow: int
    stride_h: int
    stride_w: int
    top: int
    bottom: int
    left: int
    right: int
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1

    @property
    def padded(self) -> bool:
        """Whether there is padding on any side."""
        return bool(self.top or self.bottom or self.left or self.right)

    @staticmethod
    def of(
        op: str,
        shape: tuple[int, ...],
        kernel_size: Size,
        stride: Size = 1,
        padding: Padding = 0,
        dilation: Size = 1,
        groups: int = 1,
        ceil_mode: bool = False,
    ) -> "Geometry":
        """The geometry of a window over images of `shape` (N, H, W, C).

        padding is an int, (vertical, horizontal), ((top, bottom), (left, right)), "valid" (none)
        or "same": output = ceil(size / stride), with an odd row or column of zeros at the end.
        With ceil_mode the last window may extend past the edge if it starts on the image or on the
        padding before it.  The padding that such a window needs is added to bottom and right.

        Raises ArgumentError for a bad argument, ShapeError if x is not images or no window fits;
        the messages begin with `op`.
        """
        if len(shape) != 4:
            raise ShapeError(f"{op}: expected images (N, H, W, C), got shape {shape}")
        n, h, w, c = shape
        kh, kw = pair(op, "kernel_size", kernel_size, 1)
        sh, sw = pair(op, "stride", stride, 1)
        dh, dw = pair(op, "dilation", dilation, 1)
        (top, bottom), (left, right) = _padding(op, padding, (h, w), (kh, kw), (sh, sw), (dh, dw))
        oh, bottom = _positions(h, kh, sh, top, bottom, dh, ceil_mode)
        ow, right = _positions(w, kw, sw, left, right, dw, ceil_mode)
        if oh < 1 or ow < 1:
            raise ShapeError(
                f"{op}: a window of {(kh - 1) * dh + 1} x {(kw - 1) * dw + 1} pixels does not fit "
                f"into an image of {h + top + bottom} x {w + left + right} (padding included)\n"
                f"  x {shape}, window {(kh, kw)}, dilation {(dh, dw)}, "
                f"padding {((top, bottom), (left, right))}"
            )
        return Geometry(
            n, h, w, c, kh, kw, oh, ow, sh, sw, top, bottom, left, right, dh, dw, groups
        )


def pair(op: str, what: str, value: Size, least: int) -> tuple[int, int]:
    """value as a pair of ints; ArgumentError, naming `op` and `what`, if one is below `least`."""
    both = (value, value) if is_int(value) else value
    if not (isinstance(both, tuple | list) and len(both) == 2 and all(map(is_int, both))):
        raise ArgumentError(f"{op}: {what} must be an int or a pair of ints, got {value!r}")
    first, second = (int(v) for v in both)  # type: ignore[arg-type]  # checked by is_int
    if min(first, second) < least:
        raise ArgumentError(f"{op}: {what} must be at least {least}, got {value!r}")
    return first, second


def _padding(
    op: str,
    padding: Padding,
    image: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        total = [
            max((ceil_div(size, s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, k, s, d in zip(image, window, stride, dilation, strict=True)
        ]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    if isinstance(padding, tuple | list) and len(padding) == 2 and not all(map(is_int, padding)):
        vertical, horizontal = padding
        if not (is_int(vertical) or is_int(horizontal)):
            return pair(op, "padding", vertical, 0), pair(op, "padding", horizontal, 0)
    if isinstance(padding, str):
        raise ArgumentError(
            f"{op}: padding {padding!r} is unknown; expected an int, (vertical, horizontal), "
            '((top, bottom), (left, right)), "valid" or "same"'
        )
    vertical, horizontal = pair(op, "padding", padding, 0)  # type: ignore[arg-type]
    return (vertical, vertical), (horizontal, horizontal)


def _positions(
    size: int, k: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool
) -> tuple[int, int]:
    """Output size along one axis, and the padding after it that the last window needs."""
    extent = (k - 1) * dilation + 1
    slack = size + before + after - extent
    if slack < 0:
        return 0, after
    count = slack // stride + 1
    if ceil_mode and slack % stride and count * stride < size + before:
        count += 1
        after += stride - slack % stride
    return count, after
