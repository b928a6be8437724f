"""conv2d against slow loops, finite differences and PyTorch; every engine against the others."""

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
from devices import (
    CUDA,
    CUDASIM,
    assert_close,
    host,
    in_both_dtypes,
    leaf,
    relative,
    results,
    tensor,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn.errors import ArgumentError, DtypeError, ShapeError
from gpucnn.ops import conv2d
from gpucnn.ops.conv2d import winograd_tiles as _winograd_tiles
from gpucnn.ops.conv2d.op import (
    _backward,
    _backward_array,
    _backward_numpy,
    _forward,
    _forward_array,
    _forward_numpy,
    conv_algorithm,
    get_conv_algorithm,
    set_conv_algorithm,
)
from gpucnn.ops.conv2d.winograd_tiles import transforms
from gpucnn.ops.geometry import Geometry
from gpucnn.testing import conv2d_loops, gradcheck

ALL = (True, True, True)
rng = np.random.default_rng(0)

# n, h, w, c, oc, kernel, stride, padding, dilation, groups
GEOMETRIES = [
    (3, 8, 8, 5, 7, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (2, 7, 9, 3, 4, (3, 3), (1, 1), ((0, 2), (1, 0)), (1, 1), 1),
    (2, 2, 2, 3, 4, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (2, 9, 11, 4, 6, (3, 2), (2, 1), ((1, 1), (2, 2)), (1, 2), 2),
    (2, 9, 9, 8, 6, (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    (2, 9, 9, 8, 6, (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 2),
    (2, 10, 7, 4, 4, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    (2, 11, 11, 6, 6, (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 6),
    (2, 20, 23, 3, 5, (11, 11), (4, 4), ((2, 2), (2, 2)), (1, 1), 1),
    (3, 6, 20, 2, 3, (5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    (1, 5, 5, 2, 2, (5, 5), (3, 3), ((0, 0), (0, 0)), (1, 1), 1),
    (9, 8, 9, 4, 6, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    (2, 9, 13, 4, 6, (3, 3), (1, 1), ((0, 4), (7, 1)), (3, 2), 2),
    (2, 12, 10, 3, 2, (5, 5), (1, 1), ((1, 0), (0, 0)), (2, 1), 1),
]
# Filters whose transforms outgrow a core's cache, in large images and in small ones; tiles that see
# no pixel.
WIDE = [
    (3, 12, 10, 128, 128, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (20, 8, 8, 96, 96, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    (2, 1, 5, 3, 4, (3, 3), (1, 1), ((6, 0), (1, 1)), (1, 1), 1),
]
IDS = [f"{g[:6]}-{g[6]}-groups{g[9]}" for g in GEOMETRIES]


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    algorithm, threads = get_conv_algorithm(), gpucnn.get_num_threads()
    yield
    set_conv_algorithm(algorithm)
    gpucnn.set_num_threads(threads)


def draw(geometry, dtype=np.float64):
    n, h, w, c, oc, kernel, stride, padding, dilation, groups = geometry
    x = rng.standard_normal((n, h, w, c)).astype(dtype)
    f = rng.standard_normal((oc, *kernel, c // groups)).astype(dtype)
    b = rng.standard_normal(oc).astype(dtype)
    return x, f, b, Geometry.of("conv2d", x.shape, kernel, stride, padding, dilation, groups)


ENGINES = [
    *[pytest.param("cpu", name) for name in ("auto", "winograd", "im2col", "exact")],
    *[
        pytest.param(*place.values, name, marks=place.marks)
        for place in (CUDASIM, CUDA)
        for name in ("auto", "tiled", "plain")
    ],
]
every_engine = pytest.mark.parametrize(("device", "engine"), ENGINES)


def use(engine: str, request: pytest.FixtureRequest) -> None:
    """Let conv2d take this engine.  "tiled": the GPU's tiles for shapes too small for them."""
    if engine == "tiled":
        request.getfixturevalue("tiles_for_all")
    set_conv_algorithm("auto" if engine == "tiled" else engine)


@in_both_dtypes
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=IDS)
@every_engine
def test_forward_matches_the_loops(geometry, engine, dtype, device, request):
    use(engine, request)
    x, w, b, _ = draw(geometry, dtype)
    y = conv2d(*(tensor(a, device) for a in (x, w, b)), *geometry[6:])
    assert y.dtype == dtype
    assert_close(y, conv2d_loops(x, w, b, *geometry[6:]))


@pytest.mark.parametrize("geometry", [*GEOMETRIES, *WIDE], ids=str)
@pytest.mark.parametrize("algorithm", ["winograd", "im2col"])
def test_numpy_half_equals_the_array_half(geometry, algorithm):
    set_conv_algorithm(algorithm)
    x, w, b, window = draw(geometry)
    expected_y, expected_kept = _forward_array(x, w, b, window, ALL)
    y, kept = _forward_numpy(x, w, b, window, ALL)
    dy = rng.standard_normal(y.shape)
    expected = (expected_y, *_backward_array(dy, expected_kept, window, ALL))
    actual = (y, *_backward_numpy(dy, kept, window, ALL))
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert relative(a, e) < 1e-12


@pytest.mark.parametrize("channels", [6, 96], ids=["narrow", "wide"])
def test_many_parts_and_spans_of_winograd_add_up(channels, monkeypatch):
    monkeypatch.setattr(_winograd_tiles, "_NARROW_BYTES", 1)  # parts of one image: 3 in a sum
    monkeypatch.setattr(_winograd_tiles, "_SPAN_TILES", 24)  # 6 images
    set_conv_algorithm("winograd")
    geometry = (20, 8, 7, channels, channels, (3, 3), 1, ((1, 1), (1, 1)), 1, 1)
    x, w, b, window = draw(geometry)
    expected_y, expected_kept = _forward_array(x, w, b, window, ALL)
    dy = rng.standard_normal(expected_y.shape)
    expected = (expected_y, *_backward_array(dy, expected_kept, window, ALL))
    runs = []
    for threads in (1, 3):
        gpucnn.set_num_threads(threads)
        y, kept = _forward_numpy(x, w, b, window, ALL)
        runs.append((y, *_backward_numpy(dy, kept, window, ALL)))
    for one, three, e in zip(*runs, expected, strict=True):
        np.testing.assert_array_equal(one, three)
        assert relative(one, e) < 1e-12


@pytest.mark.parametrize(
    ("device", "engine"), [e for e in ENGINES if e.values[1] in ("auto", "winograd", "im2col")]
)
@pytest.mark.parametrize(
    "geometry",
    [
        (2, 5, 6, 2, 3, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
        (1, 5, 5, 4, 2, (3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2),
        (1, 6, 5, 1, 2, (5, 5), 1, ((2, 2), (2, 2)), 1, 1),
        (1, 3, 17, 2, 2, (2, 2), 1, ((0, 0), (0, 0)), 1, 1),
    ],
)
def test_gradients_match_finite_differences(geometry, engine, device):
    set_conv_algorithm(engine)
    x, w, b, _ = draw(geometry)
    gradcheck(lambda *t: conv2d(*t, *geometry[6:]), x, w, b, device=device)


def test_dw_matches_finite_differences_when_the_stride_skips_the_last_row(device):
    geometry = (1, 6, 6, 2, 2, (3, 3), 2, ((0, 0), (0, 0)), 1, 1)
    x, w, b, _ = draw(geometry)
    gradcheck(lambda *t: conv2d(*t, *geometry[6:]), x, w, b, device=device)


@in_both_dtypes
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=IDS)
@every_engine
def test_equals_pytorch(geometry, engine, dtype, device, request):
    torch = pytest.importorskip("torch", reason="the peer of this test")
    use(engine, request)
    x, w, b = (a.astype(np.float64) for a in draw(geometry, dtype)[:3])
    (top, bottom), (left, right) = geometry[7]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    padded = torch.nn.functional.pad(theirs[0].permute(0, 3, 1, 2), (left, right, top, bottom))
    result = torch.nn.functional.conv2d(
        padded,
        theirs[1].permute(0, 3, 1, 2),
        theirs[2],
        geometry[6],
        0,
        geometry[8],
        geometry[9],
    ).permute(0, 2, 3, 1)
    ours = [leaf(a, device, dtype) for a in (x, w, b)]
    y = conv2d(*ours, *geometry[6:])
    dy = rng.standard_normal(y.shape).astype(dtype)
    actual = results(y, dy, *ours)
    result.backward(torch.tensor(dy.astype(np.float64)))
    assert {a.dtype for a in actual} == {np.dtype(dtype)}
    for a, e in zip(actual, [result.detach(), *(t.grad for t in theirs)], strict=True):
        assert_close(a, e.numpy())


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(
        st.integers(1, 5),
        st.integers(1, 14),
        st.integers(1, 14),
        st.integers(1, 4),
        st.integers(1, 4),
    ),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["winograd", "im2col"]),
)
def test_any_geometry_that_fits_matches_the_array_half(
    sizes, kernel, stride, padding, dilation, algorithm
):
    n, h, w, c, oc = sizes
    try:
        window = Geometry.of("conv2d", (n, h, w, c), kernel, stride, padding, dilation)
    except ShapeError:
        return
    set_conv_algorithm(algorithm)
    draws = np.random.default_rng(sum(sizes))
    x, f = draws.standard_normal((n, h, w, c)), draws.standard_normal((oc, *kernel, c))
    y, kept = _forward_numpy(x, f, None, window, (True, True, False))
    expected_y, expected_kept = _forward_array(x, f, None, window, (True, True, False))
    dy = draws.standard_normal(y.shape)
    dx, dw, db = _backward_numpy(dy, kept, window, (True, True, False))
    expected_dx, expected_dw, _ = _backward_array(dy, expected_kept, window, (True, True, False))
    assert db is None
    np.testing.assert_allclose(y, expected_y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dw, expected_dw, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("padding", "pairs"),
    [
        (2, ((2, 2), (2, 2))),
        ((1, 2), ((1, 1), (2, 2))),
        (((0, 1), (2, 0)), ((0, 1), (2, 0))),
        ("valid", ((0, 0), (0, 0))),
        ("same", ((1, 1), (0, 1))),  # a 3 x 2 window: the odd column goes last
    ],
)
@in_both_dtypes
def test_every_form_of_padding_means_its_pairs(padding, pairs, dtype, device):
    x, w = (rng.standard_normal(s).astype(dtype) for s in ((2, 6, 7, 2), (3, 3, 2, 2)))
    y = conv2d(tensor(x, device), tensor(w, device), padding=padding)
    assert_close(y, conv2d_loops(x, w, padding=pairs))


def test_same_padding_follows_ceil_of_size_over_stride(device):
    x, w = (tensor(np.ones(s, np.float32), device) for s in ((1, 7, 8, 1), (1, 3, 3, 1)))
    assert conv2d(x, w, stride=2, padding="same").shape == (1, 4, 4, 1)


@in_both_dtypes
@every_engine
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(engine, dtype, device, request):
    use(engine, request)
    x = leaf(np.zeros((0, 8, 8, 3)), device, dtype)
    w = leaf(np.ones((4, 3, 3, 3)), device, dtype)
    y, dx, dw = results(conv2d(x, w, padding=1), np.zeros((0, 8, 8, 4)), x, w)
    assert y.shape == (0, 8, 8, 4)
    assert dx.shape == x.shape
    assert not dw.any()


@in_both_dtypes
@every_engine
def test_non_contiguous_inputs_give_the_same_bits(engine, dtype, device, request):
    use(engine, request)
    x, w, b, _ = draw(GEOMETRIES[0], dtype)
    dy = rng.standard_normal((3, 8, 8, 7)).astype(dtype)

    def gaps(array):  # every other number of a longer array
        long = tensor(np.repeat(array, 2, -1), device).data
        return gpucnn.tensor(long[..., ::2], requires_grad=True)

    runs = []
    for inputs in ([leaf(a, device) for a in (x, w, b)], [gaps(a) for a in (x, w, b)]):
        y = conv2d(*inputs, padding=1)
        runs.append(results(y, dy, *inputs))
    for a, e in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("algorithm", ["winograd", "im2col"])
@pytest.mark.parametrize(
    "geometry",
    [
        (300, 16, 16, 4, 5, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
        (900, 33, 20, 3, 8, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
        (40, 16, 16, 32, 8, (3, 3), 2, ((1, 1), (1, 1)), 1, 2),
        (2, 120, 120, 24, 3, (3, 3), 1, ((1, 1), (1, 1)), 1, 1),
        (20, 17, 16, 8, 8, (3, 3), 1, ((2, 2), (2, 2)), 2, 2),
    ],
)
def test_bits_do_not_depend_on_the_number_of_threads(geometry, algorithm):
    set_conv_algorithm(algorithm)
    x, w, b, window = draw(geometry, np.float32)
    dy = rng.standard_normal((window.n, window.oh, window.ow, len(w)), dtype=np.float32)
    results = []
    for threads in (1, 2, 5, 2):
        gpucnn.set_num_threads(threads)
        y, kept = _forward_numpy(x, w, b, window, ALL)
        results.append((y, *_backward_numpy(dy, kept, window, ALL)))
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)


def test_float32_errors_are_what_the_docstring_says():
    geometry = (8, 8, 8, 384, 64, (3, 3), 1, ((1, 1), (1, 1)), 1, 1)
    x, w, b, window = draw(geometry, np.float32)
    expected = _forward_array(*(a.astype(np.float64) for a in (x, w, b)), window, ALL)[0]
    errors = {}
    for algorithm in ("winograd", "exact"):
        set_conv_algorithm(algorithm)
        errors[algorithm] = relative(_forward_numpy(x, w, b, window, ALL)[0], expected)
    assert errors["exact"] < 1e-6
    assert errors["exact"] < errors["winograd"] < 1e-5


def test_only_what_needs_a_gradient_gets_one():
    x, w, b, window = draw(GEOMETRIES[0])
    for algorithm in ("winograd", "im2col"):
        set_conv_algorithm(algorithm)
        for needs in ((False, True, True), (True, False, False), (False, False, True)):
            y, kept = _forward_numpy(x, w, b, window, needs)
            given = _backward_numpy(np.ones_like(y), kept, window, needs)
            assert tuple(g is not None for g in given) == needs


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (2, 5)])
def test_transforms_compute_a_correlation(m, r):
    at, g, bt = transforms(m, r)
    d, f = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    y = at @ ((g @ f) * (bt @ d))
    np.testing.assert_allclose(y, np.correlate(d, f, "valid"), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("geometry", "tile"),
    [
        ((128, 16, 16, 64, 192, (3, 3), 1, 1, 1, 1), 4),
        ((128, 8, 8, 384, 256, (3, 3), 1, 1, 1, 1), 4),
        ((8, 13, 13, 256, 384, (3, 3), 1, 1, 1, 1), 4),
        ((8, 2, 2, 64, 64, (3, 3), 1, 1, 1, 1), 2),
        ((8, 1, 1, 64, 64, (3, 3), 1, 1, 1, 1), 0),  # the filter's centre alone: nothing to save
        ((8, 27, 27, 96, 256, (5, 5), 1, 2, 1, 1), 2),
        ((128, 32, 32, 3, 64, (3, 3), 1, 1, 1, 1), 0),  # few channels
        ((128, 32, 32, 64, 3, (3, 3), 1, 1, 1, 1), 0),  # few filters
        ((8, 16, 16, 64, 64, (3, 3), 2, 1, 1, 1), 0),
        ((8, 16, 16, 64, 64, (3, 3), 1, 2, 2, 1), 4),
        ((8, 12, 12, 64, 64, (3, 3), 1, 3, 3, 1), 4),
        ((8, 12, 12, 64, 64, (3, 3), 1, 6, 6, 1), 2),  # lattices of 2 x 2 pixels
        ((8, 12, 12, 64, 64, (3, 3), 1, 12, 12, 1), 0),  # of single pixels
        ((8, 16, 16, 64, 64, (3, 3), 1, 1, 1, 2), 4),
        ((8, 16, 16, 64, 64, (3, 3), 1, 1, 1, 8), 0),  # few channels in a group
        ((8, 16, 16, 64, 64, (1, 1), 1, 0, 1, 1), 0),
        ((8, 16, 16, 64, 64, (3, 5), 1, 2, 1, 1), 0),
    ],
)
def test_auto_follows_its_rule(geometry, tile):
    n, h, w, c, oc, kernel, *rest = geometry
    assert conv_algorithm(Geometry.of("conv2d", (n, h, w, c), kernel, *rest), oc) == tile


@pytest.mark.parametrize(
    ("images", "side", "tile"),
    [(1, 8, 0), (2, 8, 0), (4, 8, 4), (1, 16, 4), (20, 2, 0), (30, 2, 2)],
)
def test_auto_without_gradients_leaves_few_small_images_to_im2col(images, side, tile):
    window = Geometry.of("conv2d", (images, side, side, 64), (3, 3), 1, 1)
    assert conv_algorithm(window, 64, training=False) == tile
    assert conv_algorithm(window, 64) != 0


POOLS = [
    None,
    (2, None, 0, False),
    ((1, 3), None, 0, False),
    (3, 2, 1, False),
    ((2, 3), (2, 1), "same", True),
]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("relu", [False, True])
@in_both_dtypes
@every_engine
def test_relu_and_pooling_inside_equal_those_after(relu, pool, engine, dtype, device, request):
    use(engine, request)
    arrays = [rng.standard_normal(s).astype(dtype) for s in ((2, 7, 6, 5), (4, 3, 3, 5), (4,))]
    runs = []
    for inside in (True, False):
        leaves = [leaf(a, device) for a in arrays]
        if inside:
            y = conv2d(*leaves, padding=1, relu=relu, pool=pool)
        else:
            y = conv2d(*leaves, padding=1)
            y = gpucnn.ops.relu(y) if relu else y
            y = y if pool is None else gpucnn.ops.max_pool2d(y, *pool)
        runs.append(results(y, host(y), *leaves))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for inside, after in zip(*runs, strict=True):  # gradients are summed in another order
        assert relative(inside, after) < (1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("size", [8, 10, 16])  # 10: the last tiles hang over
def test_pooling_inside_a_wide_convolution_equals_that_after(size):
    set_conv_algorithm("winograd")
    arrays = [rng.standard_normal(s) for s in ((3, size, size, 96), (96, 3, 3, 96))]
    runs = []
    for pool in ((2, None, 0, False), None):
        leaves = [leaf(a, "cpu") for a in arrays]
        y = conv2d(*leaves, padding=1, relu=True, pool=pool)
        y = y if pool else gpucnn.ops.max_pool2d(y, 2)
        runs.append(results(y, host(y), *leaves))
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    for inside, after in zip(*runs, strict=True):
        assert relative(inside, after) < 1e-13


@pytest.mark.parametrize("pool", [((1, 300), None, 0, False), ((255, 1), None, 0, False)])
def test_pooling_inside_knows_the_places_of_long_windows(pool):
    set_conv_algorithm("im2col")
    shape = (1, 1, 600, 1) if pool[0][1] > 1 else (1, 510, 1, 1)
    x, w = rng.standard_normal(shape), np.ones((1, 1, 1, 1))
    gradients = []
    for inside in (True, False):
        leaves = [leaf(a, "cpu") for a in (x, w)]
        y = conv2d(*leaves, pool=pool if inside else None)
        y = y if inside else gpucnn.ops.max_pool2d(y, *pool)
        gradients.append(results(y, host(y), *leaves)[1])
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize(("dilation", "groups"), [(2, 1), (1, 2), ((3, 2), 2)])
def test_relu_and_pooling_inside_equal_those_after_lattices_and_groups(dilation, groups):
    set_conv_algorithm("winograd")
    arrays = [rng.standard_normal(s) for s in ((9, 9, 8, 4), (6, 3, 3, 4 // groups), (6,))]
    results = []
    for inside in (True, False):
        leaves = [gpucnn.tensor(a, requires_grad=True) for a in arrays]
        pool = (2, None, 0, False) if inside else None
        y = conv2d(*leaves, 1, 2, dilation, groups, relu=inside, pool=pool)
        y = y if inside else gpucnn.ops.max_pool2d(gpucnn.ops.relu(y), 2)
        (y * y).sum().backward()
        results.append([y.data, *(leaf.grad for leaf in leaves)])
    for inside, after in zip(*results, strict=True):
        np.testing.assert_array_equal(inside, after)


@pytest.mark.parametrize("pool", POOLS[:2])
@every_engine
def test_a_kept_graph_gives_the_same_gradients_twice(pool, engine, device, request):
    use(engine, request)
    shapes = ((1100, 4, 4, 5), (4, 3, 3, 5), (4,))
    leaves = [leaf(rng.standard_normal(s, dtype=np.float32), device) for s in shapes]
    loss = conv2d(*leaves, padding=1, relu=True, pool=pool).sum()
    runs = []
    for retain_graph in (True, True, False):
        loss.backward(retain_graph=retain_graph)
        runs.append([host(t.grad) for t in leaves])
        for t in leaves:
            t.grad = None
    for again in runs[1:]:
        for a, e in zip(again, runs[0], strict=True):
            np.testing.assert_array_equal(a, e)


def test_both_halves_have_the_same_signature():
    for pair in (_forward, _backward):
        assert inspect.signature(pair.cpu) == inspect.signature(pair.cuda)


def test_mistakes_are_named(device):
    def ones(*shape):
        return tensor(np.ones(shape, np.float32), device)

    x, w = ones(2, 8, 8, 3), ones(4, 3, 3, 5)
    with pytest.raises(ShapeError, match="x has 3 channels, w expects 5"):
        conv2d(x, w)
    with pytest.raises(ShapeError, match="filters"):
        conv2d(x, ones(3, 3))
    w = ones(4, 3, 3, 3)
    with pytest.raises(ShapeError, match="groups"):
        conv2d(x, w, groups=2)
    with pytest.raises(ShapeError, match="bias"):
        conv2d(x, w, ones(3))
    with pytest.raises(DtypeError, match="float64"):
        conv2d(x, w.astype(np.float64))
    with pytest.raises(ArgumentError, match="expected auto, winograd, im2col, exact"):
        set_conv_algorithm("fft")
