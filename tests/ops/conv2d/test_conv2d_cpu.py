"""The engines on NumPy: against the portable half, and for every number of threads."""

import itertools

import numpy as np
import pytest
from conv_cases import CONVOLUTIONS, WIDE, Convolution, rng
from devices import in_both_dtypes, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from gpucnn.errors import ShapeError
from gpucnn.ops.conv2d import cpu, portable, winograd_tiles
from gpucnn.ops.conv2d.winograd_tiles import transforms

ALL = (True, True, True)


def run(half, case, x, weight, bias, dy, needs=ALL):
    """y, dx, dweight and dbias; dy None: ones."""
    y, saved = half.forward(x, weight, bias, case.geometry, needs)
    dy = np.ones_like(y) if dy is None else dy
    return (y, *saved.backward(dy, needs, False))


def draw_dy(case, dtype=np.float64):
    g = case.geometry
    return rng.standard_normal((g.n, g.oh, g.ow, case.oc)).astype(dtype)


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *WIDE], ids=str)
@pytest.mark.parametrize("algorithm", ["winograd", "exact"])
def test_numpy_half_equals_the_portable_half(case, algorithm):
    gpucnn.set_conv_algorithm(algorithm)
    arrays = *case.draw(), draw_dy(case)
    actual, expected = (run(half, case, *arrays) for half in (cpu, portable))
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert a.dtype == e.dtype
        assert relative(a, e) < 1e-12


@pytest.mark.parametrize("channels", [6, 96], ids=["narrow", "wide"])
def test_many_parts_and_spans_of_winograd_add_up(channels, monkeypatch):
    monkeypatch.setattr(winograd_tiles, "_NARROW_BYTES", 1)  # parts of one image: 3 in a sum
    monkeypatch.setattr(winograd_tiles, "_SPAN_TILES", 24)  # 6 images
    gpucnn.set_conv_algorithm("winograd")
    case = Convolution(n=20, h=8, w=7, c=channels, oc=channels)
    arrays = *case.draw(), draw_dy(case)
    expected = run(portable, case, *arrays)
    runs = []
    for threads in (1, 3):
        gpucnn.set_num_threads(threads)
        runs.append(run(cpu, case, *arrays))
    for one, three, e in zip(*runs, expected, strict=True):
        np.testing.assert_array_equal(one, three)
        assert relative(one, e) < 1e-12


@in_both_dtypes
def test_winograd_of_images_of_every_small_size_equals_the_portable_half(dtype):
    gpucnn.set_conv_algorithm("winograd")
    for h, w in itertools.product(range(1, 10), repeat=2):
        case = Convolution(n=2, h=h, w=w, c=2, oc=3)
        arrays = *case.draw(dtype), draw_dy(case, dtype)
        actual, expected = (run(half, case, *arrays) for half in (cpu, portable))
        for a, e in zip(actual, expected, strict=True):
            assert relative(a, e) < (1e-5 if dtype == np.float32 else 1e-12)


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
    st.sampled_from(["winograd", "exact"]),
)
def test_any_geometry_that_fits_matches_the_portable_half(
    sizes, kernel_size, stride, padding, dilation, algorithm
):
    case = Convolution(*sizes, kernel_size, stride, padding, dilation)
    try:
        assert case.geometry
    except ShapeError:
        return
    gpucnn.set_conv_algorithm(algorithm)
    draws = np.random.default_rng(sum(sizes))
    x, weight, _ = case.draw()
    x, weight = draws.standard_normal(x.shape), draws.standard_normal(weight.shape)
    g = case.geometry
    dy = draws.standard_normal((g.n, g.oh, g.ow, case.oc))
    needs = (True, True, False)
    actual, expected = (run(half, case, x, weight, None, dy, needs) for half in (cpu, portable))
    assert actual[3] is None
    for a, e in zip(actual[:3], expected[:3], strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("algorithm", ["winograd", "exact"])
@pytest.mark.parametrize(
    "case",
    [
        Convolution(n=300, h=16, w=16, c=4, oc=5),
        Convolution(n=900, h=33, w=20, c=3, oc=8),
        Convolution(n=40, h=16, w=16, c=32, oc=8, stride=2, groups=2),
        Convolution(n=2, h=120, w=120, c=24, oc=3),
        Convolution(n=20, h=17, w=16, c=8, oc=8, padding=2, dilation=2, groups=2),
    ],
    ids=str,
)
def test_bits_do_not_depend_on_the_number_of_threads(case, algorithm):
    gpucnn.set_conv_algorithm(algorithm)
    arrays = *case.draw(np.float32), draw_dy(case, np.float32)
    runs = []
    for threads in (1, 2, 5, 2):
        gpucnn.set_num_threads(threads)
        runs.append(run(cpu, case, *arrays))
    for other in runs[1:]:
        for a, e in zip(other, runs[0], strict=True):
            np.testing.assert_array_equal(a, e)


def test_float32_errors_are_what_the_docstring_says():
    case = Convolution(n=8, h=8, w=8, c=384, oc=64)
    arrays = case.draw(np.float32)
    expected = run(portable, case, *(a.astype(np.float64) for a in arrays), None)[0]
    errors = {}
    for algorithm in ("winograd", "exact"):
        gpucnn.set_conv_algorithm(algorithm)
        errors[algorithm] = relative(run(cpu, case, *arrays, None)[0], expected)
    assert errors["exact"] < 1e-6
    assert errors["exact"] < errors["winograd"] < 1e-5


@pytest.mark.parametrize(
    "needs",
    [(False, True, True), (True, False, False), (False, True, False), (False, False, True)],
)
@pytest.mark.parametrize("algorithm", ["winograd", "exact", "portable"])
@pytest.mark.parametrize("case", [CONVOLUTIONS[0], CONVOLUTIONS[12]], ids=str)
def test_only_what_needs_a_gradient_gets_one(case, algorithm, needs):
    half = portable if algorithm == "portable" else cpu
    gpucnn.set_conv_algorithm("exact" if half is portable else algorithm)
    _, *gradients = run(half, case, *case.draw(), None, needs)
    assert tuple(gradient is not None for gradient in gradients) == needs


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("algorithm", ["winograd", "exact"])
@pytest.mark.parametrize("case", [CONVOLUTIONS[0], CONVOLUTIONS[12]], ids=str)
def test_the_result_is_saved_only_if_the_relu_needs_it(case, algorithm, relu):
    gpucnn.set_conv_algorithm(algorithm)
    y, saved = cpu.forward(*case.draw(), case.geometry, ALL, relu)
    assert saved.epilogue.y is (y if relu else None)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (2, 5)])
def test_transforms_compute_a_correlation(m, r):
    at, g, bt = transforms(m, r)
    d, f = rng.standard_normal(m + r - 1), rng.standard_normal(r)
    y = at @ ((g @ f) * (bt @ d))
    np.testing.assert_allclose(y, np.correlate(d, f, "valid"), rtol=1e-13, atol=1e-13)
