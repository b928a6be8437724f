"""The choice of a convolution's engine on the CPU: a process-wide setting and a written rule."""

from gpucnn.errors import ArgumentError
from gpucnn.integers import ceil_div
from gpucnn.ops.conv2d.engine import Engine
from gpucnn.ops.conv2d.im2col import Im2col
from gpucnn.ops.conv2d.space_to_batch import SpaceToBatch
from gpucnn.ops.conv2d.winograd import Winograd
from gpucnn.ops.geometry import Geometry

_ALGORITHMS = ("auto", "winograd", "exact", "plain")
_algorithm = "auto"
_TILES = {3: (4, 2), 5: (2,)}  # Winograd's tile sizes by filter size


def set_conv_algorithm(name: str) -> None:
    """Set the algorithm of conv2d, for the whole process.

    "auto"      the fastest for the shape; choose_algorithm states the rule
    "winograd"  Winograd wherever it applies, even for small images or few channels
    "exact"     one matrix product over windows copied out of the image (im2col).  Its float32
                error is that of the plain sum: 5e-7 of the largest value over 384 channels,
                against 5e-6 with Winograd
    "plain"     on a GPU the reference kernel, one thread for each output element; every other
                name selects the tiled kernels there.  On the CPU the same as "exact"

    Winograd's error scales with the largest value in a tile, not with the result, and nothing
    checks it at run time.  Use "exact" where values are orders of magnitude apart.  The error stays
    below

        s * sum over the channels of (largest |x| in the tile) * (sum of the filter's |weight|)

    In float32, s = 6.5e-6 for tiles of 4 x 4 results, which see 6 x 6 pixels, and for filters of
    5 x 5; s = 7.2e-7 for tiles of 2 x 2 with filters of 3 x 3.  That is 3 a 2**-24.  The transforms
    magnify a pixel on its way to a result by at most a = 36 or 4, and each of three steps (the
    image's transform, the sum over channels, the result's transform) rounds once.  The worst of
    random extreme inputs reached a third of the bound.  An infinity or a NaN turns every result of
    the tiles that see it into NaN: up to 64 for each filter of 3 x 3, compared with 9 for the plain
    sum.

    Raises ArgumentError for an unknown name.
    """
    global _algorithm
    if name not in _ALGORITHMS:
        raise ArgumentError(
            f"set_conv_algorithm: {name!r} is unknown\n  expected {', '.join(_ALGORITHMS)}"
        )
    _algorithm = name


def get_conv_algorithm() -> str:
    """The name last given to `set_conv_algorithm`; "auto" at first."""
    return _algorithm


def choose_algorithm(g: Geometry, filters: int, training: bool = True) -> Engine:
    """The engine for a convolution to `filters` channels on the CPU.

    "winograd" uses Winograd's cheapest tile where one exists; "exact" and "plain" use im2col.  The
    rest of this docstring is the rule of "auto".

    Winograd's F(m x m, r x r) needs stride 1 and square filters: tiles of m = 4 or 2 for r = 3,
    m = 2 for r = 5.  A tile costs (m + r - 1)**2 multiplications, the plain sum r * r per pixel.
    Dilation d splits an image into d * d images of every d-th pixel, and each is tiled on its own.
    The tile size with the fewest multiplications for this image wins, the larger one on a tie.

    im2col is used instead unless Winograd saves a third of the multiplications, and if a group has
    fewer than 16 channels or filters, where the transforms would cost more than the products.

    Without `training`, 1.5 times the multiplications of the filters' transform are added to
    Winograd's: for a single small image, reading the transformed filters does not pay off, even
    from the cache.
    """
    if _algorithm in ("exact", "plain"):
        return Im2col()
    tile, cost = _cheapest_tile(g)
    if tile == 0:
        return Im2col()
    if _algorithm == "auto":
        if g.c < 16 * g.groups or filters < 16 * g.groups:
            return Im2col()
        extra = 0 if training else 1.5 * (tile + g.kh - 1) ** 2 * g.kh * g.kw
        if 3 * (g.n * cost + extra) > 2 * g.n * g.oh * g.ow * g.kh * g.kw:
            return Im2col()
    dense = g.dilation_h == g.dilation_w == g.groups == 1
    return Winograd(tile) if dense else SpaceToBatch(Winograd(tile))


def _cheapest_tile(g: Geometry) -> tuple[int, int]:
    """Winograd's tile size for this geometry, 0 for none, and its multiplications per image."""
    best, least = 0, 0
    for m in _TILES.get(g.kh, ()) if g.stride_h == g.stride_w == 1 and g.kh == g.kw else ():
        down, across = ceil_div(g.oh, m * g.dilation_h), ceil_div(g.ow, m * g.dilation_w)
        cost = down * g.dilation_h * across * g.dilation_w * (m + g.kh - 1) ** 2
        if best == 0 or cost < least:
            best, least = m, cost
    return best, least
