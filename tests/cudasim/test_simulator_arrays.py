"""The stand-in for CuPy: arrays, what they refuse, devices, streams, events, the memory pool."""

import numpy as np
import pytest

import gpucnn
from gpucnn import cudasim as xp
from gpucnn.device import Device, array_module, device_of, to_device
from gpucnn.errors import DeviceError, KernelError

HOST = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


@pytest.fixture
def x():
    return xp.asarray(HOST)


@pytest.mark.parametrize(
    "f",
    [
        lambda m, a: a + 2 * a - a / 3,
        lambda m, a: 2.0 - a,
        lambda m, a: np.float32(2) * a,
        lambda m, a: a @ a.T,
        lambda m, a: -(abs(a) ** 2),
        lambda m, a: (a > 1) | ~(a <= -3),
        lambda m, a: m.where(a > 0, a, m.exp(a) - 1),
        lambda m, a: m.maximum(a, 0).sum(axis=1, keepdims=True),
        lambda m, a: a.reshape(2, 6).transpose(1, 0)[::2, None],
        lambda m, a: a[a > 0],
        lambda m, a: a[m.asarray([2, 0]), m.asarray([1, 3])],
        lambda m, a: m.concatenate([a, m.zeros((1, 4), m.float32)]).mean(axis=0),
        lambda m, a: m.pad(a, ((1, 0), (0, 2))),
        lambda m, a: m.lib.stride_tricks.sliding_window_view(a, (2, 2)).sum((2, 3)),
        lambda m, a: m.lib.stride_tricks.as_strided(a, (2, 2), (16, 4)) * 1,
        lambda m, a: m.tanh(m.sqrt(m.log(m.exp(m.clip(a, 0, 3)) + 1))),
        lambda m, a: a.argmax(axis=1),
        lambda m, a: m.broadcast_to(a.max(), (2, 2)),
        lambda m, a: m.full((2, 3), 7, m.int64) + m.arange(3) + m.ones_like(a[:2, :3]),
    ],
)
def test_expressions_give_numpys_values_and_dtypes(f, x):
    result, expected = f(xp, x), f(np, HOST)
    assert isinstance(result, xp.ndarray)
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result.get(), expected)


def test_views_share_memory_and_copies_do_not(x):
    x[0] = 1
    view, copy = x[0], x.copy()
    view += 1
    x[1:, 2] = xp.zeros(2, np.float32)
    xp.add.at(x, (xp.asarray([2, 2]), xp.asarray([3, 3])), 10)
    np.multiply(x, 2, out=x)
    expected = HOST.copy()
    expected[0], expected[1:, 2] = 2, 0
    expected[2, 3] += 20
    np.testing.assert_array_equal(x.get(), expected * 2)
    assert copy.get()[0, 0] == 1
    assert xp.asarray(x) is x
    assert xp.array(x) is not x


def test_host_and_device_arrays_never_mix_implicitly(x):
    for mixed in (
        lambda: x + HOST,
        lambda: HOST + x,
        lambda: np.maximum(HOST, x),
        lambda: xp.concatenate([x, HOST]),
        lambda: x.dot(HOST.T),
        lambda: x[np.array([0, 1])],
    ):
        with pytest.raises(TypeError, match="cannot mix a NumPy array with an array on device"):
            mixed()
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Implicit conversion"):
        HOST[:] = x
    with pytest.raises(TypeError, match="set takes a NumPy array, got list"):
        x.set([1])
    with pytest.raises(TypeError, match="set: float64 into float32"):
        x.set(HOST.astype(np.float64))
    assert (x == "text") is False


def test_numpys_functions_stay_on_the_device(x):
    for result in (np.add(x, 1), np.exp(x), np.sum(x, axis=0), np.transpose(x)):
        assert isinstance(result, xp.ndarray)


def test_single_elements_become_python_numbers(x):
    total = x.sum()
    assert isinstance(total, xp.ndarray)
    assert total.item() == float(total) == int(total) == HOST.sum()
    assert bool(x[0, 0] < 0)
    with pytest.raises(ValueError, match="size 1"):
        x.item()
    assert x[0].tolist() == HOST[0].tolist()
    with pytest.raises(TypeError):
        [1, 2, 3][xp.asarray(1)]
    assert len(list(x)) == len(x) == 3


def test_fresh_arrays_are_poison():
    assert np.isnan(xp.empty(9, np.float32).get()).all()
    assert np.isnan(xp.empty((3, 3), np.float16).get()).all()
    assert np.isnan(xp.empty_like(xp.zeros(4)).get()).all()
    assert (xp.empty(5, np.int32).get() > 2**30).all()
    assert xp.empty(3, np.float32).data.ptr % 512 == 0


def test_tensors_live_on_it(x):
    tensor = gpucnn.tensor(HOST, device="cudasim", requires_grad=True)
    assert str(tensor.device) == "cudasim"
    (tensor * tensor).sum().backward()
    np.testing.assert_array_equal(tensor.grad.get(), 2 * HOST)
    assert "device=cudasim" in repr(tensor)
    assert tensor.to("cpu").device.kind == "cpu"
    assert array_module(x) is xp
    assert device_of(x) == Device.parse("cudasim") == device_of(to_device(HOST, device_of(x)))
    np.testing.assert_array_equal(to_device(x, Device("cpu")), HOST)


def test_devices_streams_and_events_work():
    with pytest.raises(DeviceError, match="device cudasim:1 does not exist"):
        xp.cuda.Device(1)
    stream = xp.cuda.Stream(non_blocking=True)
    start, end = xp.cuda.Event(), xp.cuda.Event()
    with pytest.raises(ValueError, match="both events must have been recorded"):
        xp.cuda.get_elapsed_time(start, end)
    with xp.cuda.Device(0), stream:
        assert xp.cuda.get_current_stream() is stream
        start.record()
        end.record(stream)
        stream.wait_event(end)
    assert xp.cuda.get_current_stream() is xp.cuda.Stream.null
    assert xp.cuda.get_elapsed_time(start, end) >= 0


def test_get_copies_into_out_and_without_blocking_the_host_does_not_wait():
    x, out = xp.asarray(HOST), np.empty_like(HOST)
    before = xp.cuda.counters.host_syncs
    assert x.get(out=out, blocking=False) is out
    assert xp.cuda.counters.host_syncs == before
    np.testing.assert_array_equal(out, HOST)
    assert x.get(out=out) is out
    assert xp.cuda.counters.host_syncs == before + 1
    for wrong in (np.empty(HOST.shape[::-1], HOST.dtype), np.empty(HOST.shape, np.float64)):
        with pytest.raises(ValueError, match="get: "):
            x.get(out=wrong)


def test_waits_for_the_device_are_counted(x):
    before = xp.cuda.counters.host_syncs
    y = x + 1
    assert xp.cuda.counters.host_syncs == before
    y.get()
    y.sum().item()
    xp.cuda.Device(0).synchronize()
    assert xp.cuda.counters.host_syncs == before + 3


def test_the_pool_reuses_freed_memory():
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    used, asked = pool.used_bytes(), pool.device_allocations
    for _ in range(5):
        held = xp.zeros(1000, np.float32)
        view = held[10:]
        del held
        assert pool.used_bytes() == used + 4096
        del view
        assert pool.used_bytes() == used
    assert pool.device_allocations == asked + 1
    assert pool.free_bytes() == 4096
    assert pool.total_bytes() == used + 4096


def test_a_kernel_that_writes_far_outside_its_arrays_damages_no_other(monkeypatch):
    monkeypatch.setenv("GPUCNN_CUDASIM", "fast")
    code = """extern "C" __global__ void spill(int* x, int n) {
        for (int i = threadIdx.x; i < n; i += 32) x[i] = i;
    }"""
    arrays = [xp.zeros(1000, np.int32) for _ in range(3)]
    function = xp.RawModule(code=code).get_function("spill")
    with pytest.raises(KernelError, match="accesses unmapped address"):
        function((1,), (32,), (arrays[1], np.int32(10**6)))
    assert arrays[1][992].item() == 992
    assert not arrays[0].get().any()
    assert not arrays[2].get().any()


def test_exceeding_the_pools_limit_is_out_of_memory():
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    pool.set_limit(pool.used_bytes() + 10_000)
    try:
        with pytest.raises(
            xp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 40,448"
        ):
            xp.empty(10_000, np.float32)
    finally:
        pool.set_limit(0)
    assert pool.get_limit() == 0


CODE = 'extern "C" __global__ void scale(float* x, float factor) { x[threadIdx.x] *= factor; }'


def test_a_launch_refuses_what_cupy_would_pass_wrongly():
    function = xp.RawModule(code=CODE).get_function("scale")
    x = xp.ones(8, np.float32)
    factor = np.float32(2)
    for args, error in [
        ((x, 2.0), "2.0 is a Python float; CuPy would pass 64 bits"),
        ((np.ones(8, np.float32), factor), "a NumPy array where the kernel expects device"),
        ((x[::2], factor), "is not contiguous"),
        ((x,), "expected 2 arguments, got 1"),
    ]:
        with pytest.raises(TypeError, match=error):
            function((1,), (4,), args)
    for grid, block, shared, error in [
        ((1, 70000), (1,), 0, "exceeds the device's limits: y must be 1 to 65535"),
        ((1,), (2048,), 0, "x must be 1 to 1024"),
        ((0,), (1,), 0, "x must be 1 to"),
        ((1,), (64, 32), 0, "more than 1024 threads"),
        ((1,), (1,), 50_000, "the function's limit is 49152"),
    ]:
        with pytest.raises(KernelError, match=error):
            function(grid, block, (x, factor), shared_mem=shared)
    with pytest.raises(TypeError, match="grid: expected a tuple"):
        function(1, (1,), (x, factor))
    with pytest.raises(KernelError, match=r"no kernel other; it has \['scale'\]"):
        xp.RawModule(code=CODE).get_function("other")
    function((1,), (8,), (x, factor))
    assert x.get().tolist() == [2.0] * 8


def test_a_view_knows_the_array_whose_memory_it_is():
    x = xp.zeros((4, 6), np.float32)
    assert x.base is None
    assert x[1:].base is x
    assert x.T[::2].base is x
    assert (x + 1).base is None
    assert x[1:].copy().base is None
    assert x.T.reshape(8, 3).base is None  # reshaping a non-contiguous array copies
    kept = xp.ones(5, np.float32)[1:]
    assert kept.base.shape == (5,)
    assert xp.empty(5, np.float32).base is None
