"""autocast and set_float32_precision: who sees them, and the dtypes that they give."""

import sys
import threading

import numpy as np
import pytest
from devices import host, leaf, tensor

import gpucnn
from gpucnn import autocast, ops, precision
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DtypeError
from gpucnn.ops._checks import product_dtype
from gpucnn.precision import autocast_dtype, bfloat16, is_floating, is_half

HALVES = ["float16", "bfloat16"]


def test_autocast_nests_and_an_error_or_enabled_false_restores_the_outer_one():
    assert autocast_dtype() is None
    with autocast("bfloat16"):
        assert autocast_dtype() == bfloat16()
        with autocast("float16"):
            assert autocast_dtype() == np.float16
            with autocast("bfloat16", enabled=False):
                assert autocast_dtype() is None
            assert autocast_dtype() == np.float16
        with pytest.raises(ZeroDivisionError), autocast(np.float16):
            1 / 0  # noqa: B018
        assert autocast_dtype() == bfloat16()
    assert autocast_dtype() is None


def test_one_autocast_may_be_entered_again_inside_itself():
    again = autocast("float16")
    with again, autocast("bfloat16"):
        with again:
            assert autocast_dtype() == np.float16
        assert autocast_dtype() == bfloat16()
    assert autocast_dtype() is None


def test_a_decorated_function_runs_under_autocast_in_every_thread():
    @autocast("float16")
    def dtype():
        meet.wait(10)
        return autocast_dtype()

    meet, found = threading.Barrier(2), []
    threads = [threading.Thread(target=lambda: found.append(dtype())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [np.float16] * 2


def test_autocast_is_of_one_thread():
    found = []
    with autocast("float16"):
        thread = threading.Thread(target=lambda: found.append(autocast_dtype()))
        thread.start()
        thread.join()
    assert found == [None]


@pytest.mark.parametrize("dtype", ["float32", np.float64, "half", None, 16])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(DtypeError, match='autocast: expected "bfloat16" or "float16", got'):
        autocast(dtype)


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype(np.float16), "bfloat16"])
def test_names_types_and_dtypes_are_taken(dtype):
    with autocast(dtype), autocast(bfloat16()), autocast(bfloat16().type):
        pass


def test_dtypes_are_told_apart():
    halves = [np.dtype(np.float16), bfloat16()]
    assert all(map(is_half, halves))
    assert all(map(is_floating, [*halves, np.dtype(np.float32), np.dtype(np.float64)]))
    others = [np.dtype(t) for t in (np.int16, np.uint16, bool, "V2", [("x", np.float16)])]
    assert not any(map(is_half, [*others, np.dtype(np.float32)]))
    assert not any(map(is_floating, others))


def test_without_ml_dtypes_float16_works_and_bfloat16_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bfloat16.cache_clear()
    try:
        with autocast("float16"):
            pass
        with pytest.raises(DtypeError, match=r'bfloat16 needs .* ml_dtypes: pip install "gpucnn\['):
            autocast("bfloat16")
    finally:
        bfloat16.cache_clear()


# --- the dtype of products and of mixed operands ---


@pytest.mark.parametrize("half", HALVES)
def test_autocast_applies_to_float32_and_its_own_dtype(half):
    one = {name: gpucnn.tensor([1.0], dtype=name) for name in ("float32", "float64", *HALVES)}
    other = HALVES[1 - HALVES.index(half)]
    assert product_dtype(one["float32"]) is None
    with autocast(half):
        assert product_dtype(one["float32"], one["float32"]) == one[half].dtype
        assert product_dtype(one[half], one["float32"], one["float32"]) == one[half].dtype
        assert product_dtype(one["float64"], one["float64"]) is None
        assert product_dtype(one["float32"], one[other]) is None


@pytest.mark.parametrize("half", HALVES)
def test_half_precision_beside_float32_becomes_float32_under_autocast_only(half, device, rng):
    x, y = rng.standard_normal((2, 3, 4)).astype(np.float32)
    for op in (lambda a, b: a + b, lambda a, b: b * a, lambda a, b: ops.concatenate([a, b])):
        a, b = leaf(x, device, half), leaf(y, device)
        with pytest.raises(DtypeError):
            op(a, b)
        with autocast(half):
            result = op(a, b)
            assert op(a, a).dtype == a.dtype
        assert result.dtype == np.float32
        result.sum().backward()
        assert (a.grad.dtype, b.grad.dtype) == (a.dtype, np.float32)
        exact = op(tensor(host(a).astype(np.float32), device), tensor(y, device))
        np.testing.assert_array_equal(host(result), host(exact))
        with autocast(half), pytest.raises(DtypeError):
            op(a, b.astype("float64"))


# --- float32 ---


def test_float32_precision_is_highest_on_the_cpu_and_for_the_simulator(monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", None)
    assert gpucnn.get_float32_precision("cpu") == "highest"
    gpucnn.set_float32_precision("high")
    assert gpucnn.get_float32_precision("cpu") == "highest"  # it has no TF32
    for wrong in ("medium", "HIGH", None, True):
        with pytest.raises(ArgumentError, match=r'expected "highest" or "high", got'):
            gpucnn.set_float32_precision(wrong)


@pytest.mark.usefixtures("compiler")
def test_the_simulator_uses_tf32_only_if_asked(monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", None)
    simulator = Device.parse("cudasim")
    assert not precision.uses_tf32(simulator)
    gpucnn.set_float32_precision("high")
    able = precision.compute_capability(simulator) >= 80
    assert precision.uses_tf32(simulator) == able
    gpucnn.set_float32_precision("highest")
    assert gpucnn.get_float32_precision(simulator) == "highest"


def test_the_precision_of_a_block_is_that_of_its_thread(monkeypatch):
    """Blocks of two threads may overlap in any order: neither sees nor restores the other's."""
    monkeypatch.setattr(precision, "_float32_precision", None)
    monkeypatch.setattr(precision, "compute_capability", lambda device: 80)
    device, inside, outside = Device("cuda"), threading.Event(), threading.Event()
    seen = []

    def other():
        with precision.float32_precision("highest"):
            inside.set()
            outside.wait(10)
            seen.append(precision.uses_tf32(device))

    thread = threading.Thread(target=other)
    with precision.float32_precision("high"):
        thread.start()
        inside.wait(10)
        seen.append(precision.uses_tf32(device))
    outside.set()
    thread.join()
    assert seen == [True, False]
    assert precision.uses_tf32(device)  # the default of the card, as before
    gpucnn.set_float32_precision("highest")
    assert not precision.uses_tf32(device)


@pytest.mark.parametrize(("capability", "expected"), [(75, "highest"), (80, "high"), (90, "high")])
def test_cuda_devices_use_tf32_by_default_if_they_have_it(capability, expected, monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", None)
    monkeypatch.setattr(precision, "compute_capability", lambda device: capability)
    device = Device("cuda")
    assert ("high" if precision.uses_tf32(device) else "highest") == expected
    gpucnn.set_float32_precision("highest")
    assert not precision.uses_tf32(device)


@pytest.mark.gpu
def test_a_real_card_is_asked_for_its_compute_capability(monkeypatch):
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(precision, "_float32_precision", None)
    device = Device.parse("cuda")
    able = int(device.xp.cuda.Device(device.index).compute_capability) >= 80
    assert gpucnn.get_float32_precision("cuda") == ("high" if able else "highest")
