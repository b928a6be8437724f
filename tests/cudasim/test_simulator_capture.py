"""Stream capture: what is recorded, what a graph repeats, and what is refused, beside CuPy's.

Every test with the `gpu` fixture runs on the simulator and, where there is one, on CuPy.
"""

import numpy as np
import pytest

from gpucnn import cuda, cudasim
from gpucnn.device import Device, working_on

H2D, D2H = "RuntimeError: H2D", "RuntimeError: D2H"
CUBLAS = "NotImplementedError"


@pytest.fixture
def xp(gpu):
    device = Device.parse(gpu)
    with working_on(device):
        yield device.xp


@pytest.fixture
def stream(xp):
    return xp.cuda.Stream(non_blocking=True)


def captured(stream, work):
    with stream:
        stream.begin_capture()
        try:
            work()
        finally:
            graph = stream.end_capture()
    return graph


def test_work_is_recorded_and_done_at_each_launch_into_the_same_memory(xp, stream):
    x, y = xp.arange(6, dtype=np.float32).reshape(2, 3), xp.zeros((2, 3), np.float32)
    made = {}

    def work():
        made["sum"] = (x + 1).sum(axis=0)
        made["chosen"] = xp.where(x > 2, x, made["sum"])
        y[...] += x
        y[0] = 7
        made["view"] = x[1, 2] * 2

    graph = captured(stream, work)
    assert not y.get().any()
    for factor in (1, 2):
        x[...] = xp.arange(6, dtype=np.float32).reshape(2, 3) * factor
        y.fill(0)
        graph.launch()
        host = np.arange(6, dtype=np.float32).reshape(2, 3) * factor
        total = (host + 1).sum(axis=0)
        np.testing.assert_array_equal(made["sum"].get(), total)
        np.testing.assert_array_equal(made["chosen"].get(), np.where(host > 2, host, total))
        np.testing.assert_array_equal(made["view"].get(), host[1, 2] * 2)
        np.testing.assert_array_equal(y.get(), [[7, 7, 7], host[1]])


def test_kernels_are_recorded_with_the_scalars_of_the_capture(xp, stream):
    x, y = xp.arange(40, dtype=np.float32), xp.empty(40, np.float32)

    def launch(slope):
        cuda.launch_elementwise("leaky_relu", 40, x, x, y, slope, 40)

    graph = captured(stream, lambda: launch(0.5))
    x[...] = -x
    graph.launch()
    np.testing.assert_array_equal(y.get(), -0.5 * np.arange(40, dtype=np.float32))


def test_the_stream_says_whether_it_captures(xp, stream):
    assert not stream.is_capturing()
    with stream:
        stream.begin_capture()
        assert stream.is_capturing()
        stream.end_capture()
    assert not stream.is_capturing()


def test_other_streams_work_as_usual_during_a_capture(xp, stream):
    x = xp.ones(3, np.float32)
    with stream:
        stream.begin_capture()
        with xp.cuda.Stream.null:
            y = x + 1
            host = y.get()
        stream.end_capture()
    assert host.tolist() == [2, 2, 2]


def _everything(xp):
    """Operations by name: (what happens in a capture: "" or an error, the operation)."""
    x = xp.arange(12, dtype=np.float32).reshape(3, 4)
    y = xp.zeros((3, 4), np.float32)
    index, mask = xp.array([0, 1]), x > 3
    pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(48), np.float32, 12).reshape(3, 4)
    current = xp.cuda.get_current_stream

    def set_item(key, value):
        y[key] = value

    def event():
        made = xp.cuda.Event(disable_timing=True)
        made.record(current())
        return made

    return {
        "get": (D2H, lambda: x.get()),
        "get into pinned memory": (D2H, lambda: x.get(out=pinned, blocking=False)),
        "item": (D2H, lambda: x.sum().item()),
        "bool": (D2H, lambda: bool((x > 0).all())),
        "int": (D2H, lambda: int(x[0, 0])),
        "tolist": (D2H, lambda: x.tolist()),
        "repr": (D2H, lambda: repr(x)),
        "asnumpy": (D2H, lambda: xp.asnumpy(x)),
        "set": (H2D, lambda: y.set(np.ones((3, 4), np.float32))),
        "set from pinned memory": (H2D, lambda: y.set(pinned, stream=current())),
        "asarray": (H2D, lambda: xp.asarray(np.ones(3))),
        "array of a list": (H2D, lambda: xp.array([1])),
        "index with a list": (H2D, lambda: x[[0, 1]]),
        "index with a new array": (H2D, lambda: x[xp.array([0])]),
        "index with a mask": (D2H, lambda: x[mask]),
        "assign to a mask": (D2H, lambda: set_item(mask, 0)),
        "bincount": (D2H, lambda: xp.bincount(index)),
        "where without values": (D2H, lambda: xp.where(mask)),
        "matmul": (CUBLAS, lambda: x @ x.T),
        "matmul into out": (CUBLAS, lambda: xp.matmul(x, x.T, out=xp.empty((3, 3), np.float32))),
        "dot of matrices": (CUBLAS, lambda: x.dot(x.T)),
        "einsum of two": (CUBLAS, lambda: xp.einsum("ij,kj->ik", x, x)),
        "synchronize": ("CUDARuntimeError", lambda: current().synchronize()),
        "synchronize the device": ("CUDARuntimeError", lambda: xp.cuda.Device().synchronize()),
        "wait for a captured event": ("CUDARuntimeError", lambda: event().synchronize()),
        "begin again": ("CUDARuntimeError", lambda: current().begin_capture()),
        "add": ("", lambda: x + x),
        "add a number": ("", lambda: x * np.float32(2) - 1),
        "add in place": ("", lambda: y.__iadd__(x)),
        "ufunc into out": ("", lambda: xp.multiply(x, 2, out=y)),
        "reductions": ("", lambda: (x.sum(axis=0), x.max(), x.mean(), x.std(), mask.any())),
        "argmax": ("", lambda: (x.argmax(axis=1) == index.sum()).sum()),
        "dot of vectors": ("", lambda: xp.dot(x[0], x[0])),
        "norm": ("", lambda: xp.linalg.norm(x)),
        "cumsum": ("", lambda: x.cumsum()),
        "fill": ("", lambda: y.fill(3)),
        "create": ("", lambda: (xp.zeros(3), xp.full(3, 2.0), xp.ones_like(x), xp.arange(3))),
        "copy": ("", lambda: (x.copy(), x.astype(np.float64), xp.ascontiguousarray(x.T))),
        "array of an array or a number": ("", lambda: (xp.array(x), xp.array(1))),
        "copyto": ("", lambda: xp.copyto(y, x)),
        "where": ("", lambda: xp.where(mask, x, y)),
        "concatenate": ("", lambda: (xp.concatenate([x, x]), xp.stack([x, x]))),
        "rearrange": ("", lambda: (xp.pad(x, 1), xp.tile(x, 2), xp.roll(x, 1), xp.repeat(x, 2))),
        "clip": ("", lambda: x.clip(0, 1)),
        "index with an array": ("", lambda: (x[index], x.take(index, axis=0))),
        "take along an axis": ("", lambda: xp.take_along_axis(x, index.reshape(1, 2), 1)),
        "assign": ("", lambda: (set_item(0, 3.0), set_item(0, x[1]), set_item(index, 0))),
        "add.at": ("", lambda: xp.add.at(y, index, 1)),
        "views": ("", lambda: (x.T, x.reshape(4, 3), x[1:], list(x))),
        "record an event": ("", lambda: event().done),
        "pinned memory": ("", lambda: xp.cuda.alloc_pinned_memory(10)),
        "free": ("", lambda: xp.get_default_memory_pool().free_all_blocks()),
        "memory": ("", lambda: xp.cuda.runtime.memGetInfo()),
    }


NAMES = list(_everything(cudasim))


@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_recorded_or_refused_as_by_cupy(xp, stream, name):
    expected, operation = _everything(xp)[name]
    kept, found = [], ""
    with stream:
        stream.begin_capture()
        try:
            kept.append(operation())
        except Exception as error:
            found = type(error).__name__
            found += next((f": {way}" for way in ("H2D", "D2H") if way in str(error)), "")
        try:
            graph = stream.end_capture()
        except xp.cuda.runtime.CUDARuntimeError:
            assert name.startswith("synchronize")
            return
    assert found == expected
    graph.launch()
    xp.cuda.Device().synchronize()


def test_the_default_stream_does_not_capture(xp):
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        xp.cuda.Stream.null.begin_capture()


def test_ending_what_has_not_begun_is_an_error(xp, stream):
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="IllegalState"):
        stream.end_capture()


def test_a_fork_is_recorded_through_its_event(xp, stream):
    x, other, made = xp.ones(3, np.float32), xp.cuda.Stream(non_blocking=True), []

    def work():
        other.wait_event(stream.record())
        with other:
            made.append(x * 2)
        stream.wait_event(other.record())
        made.append(made[0] + 1)

    graph = captured(stream, work)
    x.fill(5)
    graph.launch()
    assert made[1].get().tolist() == [11, 11, 11]
    assert (x + 1).get().tolist() == [6, 6, 6]


# --- the simulator alone ---


def test_results_are_poison_until_the_graph_is_launched():
    x, stream = cudasim.ones(3, np.float32), cudasim.cuda.Stream(non_blocking=True)
    made = []
    graph = captured(stream, lambda: made.append(x + 1))
    assert np.isnan(made[0].get()).all()
    graph.launch()
    assert made[0].get().tolist() == [2, 2, 2]


def test_memory_from_empty_is_poison_again_at_each_launch():
    stream, made = cudasim.cuda.Stream(non_blocking=True), []
    graph = captured(stream, lambda: made.append(cudasim.empty(3, np.float32)))
    made[0].fill(1)
    graph.launch()
    assert np.isnan(made[0].get()).all()


def test_a_graph_keeps_no_array_alive():
    x, stream = cudasim.ones(3, np.float32), cudasim.cuda.Stream(non_blocking=True)
    pool = cudasim.cuda.MemoryPool()
    with cudasim.cuda.using_allocator(pool.malloc):
        graph = captured(stream, lambda: x + 1)
    assert pool.used_bytes() == 0
    graph.launch()
    pool.free_all_blocks()
    with pytest.raises(cudasim.cuda.runtime.CUDARuntimeError, match="returned to the device"):
        graph.launch()


def test_a_wait_for_an_event_from_before_the_capture_is_refused():
    stream = cudasim.cuda.Stream(non_blocking=True)
    before = cudasim.cuda.Stream.null.record()
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="StreamCaptureIsolation"):
            stream.wait_event(before)
        with pytest.raises(RuntimeError, match="StreamCaptureInvalidated"):
            stream.end_capture()


def test_a_pool_that_is_deleted_returns_its_memory():
    from gpucnn.cudasim import streams

    pool = cudasim.cuda.MemoryPool()
    with cudasim.cuda.using_allocator(pool.malloc):
        address = cudasim.ones(3, np.float32).data.ptr
    assert address in streams.mapped
    del pool
    assert address not in streams.mapped
