"""A captured step: one launch, memory of its own, and everything it needs kept alive."""

import gc

import numpy as np
import pytest

from gpucnn import cuda
from gpucnn.cuda.graph import Graph
from gpucnn.device import Device, to_host, working_on


@pytest.fixture
def device(gpu):
    device = Device.parse(gpu)
    with working_on(device):
        yield device


def double(xp, x):
    y = xp.empty(x.shape, np.float32)
    cuda.launch_elementwise("leaky_relu", x.size, x, x, y, 2.0, x.size, defines={"X": "float"})
    return y


def test_a_replay_is_one_launch_of_the_name_graph(device):
    xp = device.xp
    x = -xp.ones(5, np.float32)
    graph = Graph(device, 64)
    with cuda.count_launches() as launches:
        with graph.capturing():
            y = double(xp, double(xp, x))
        assert not launches  # recorded, not done
        graph.replay()
        graph.replay()
    assert launches == {"graph": 2}
    assert to_host(y).tolist() == [-4.0] * 5


def test_a_watcher_may_keep_a_graph_from_running(device):
    x = device.xp.zeros(3, np.float32)
    graph = Graph(device, 64)
    with graph.capturing():
        x += 1
    with cuda.record_launches(run=False) as launches:
        graph.replay()
    assert [launch.kernel.name for launch in launches] == ["graph"]
    assert not to_host(x).any()


def test_memory_of_the_capture_is_the_graphs_own(device):
    xp = device.xp
    x = xp.ones(10**6, np.float32)
    pool = xp.get_default_memory_pool()
    graph = Graph(device, 64)
    used = pool.used_bytes()
    with graph.capturing():
        y = x + 1
        del y
        z = x * 3
    assert pool.used_bytes() - used <= 2**16  # counters
    graph.replay()
    others = [xp.full(10**6, 7, np.float32) for _ in range(4)]
    graph.replay()
    assert (to_host(z) == 3).all()
    assert all((to_host(other) == 7).all() for other in others)
    del graph, z
    gc.collect()
    assert pool.used_bytes() - used <= sum(other.nbytes + 512 for other in others)


def test_arrays_from_before_the_capture_that_a_kernel_reads_stay_alive(device):
    xp = device.xp
    x = -xp.ones(300, np.float32)
    graph = Graph(device, 64)
    with graph.capturing():
        y = double(xp, x[:200])
    del x
    gc.collect()
    xp.get_default_memory_pool().free_all_blocks()
    taken = [xp.full(300, 9, np.float32) for _ in range(4)]
    graph.replay()
    assert to_host(y).tolist() == [-2.0] * 200
    assert all((to_host(other) == 9).all() for other in taken)


def test_an_error_ends_the_capture_and_work_goes_on(device):
    xp = device.xp
    x = xp.ones(3, np.float32)
    with (
        pytest.raises(RuntimeError, match="transfers are disallowed"),
        Graph(device, 64).capturing(),
    ):
        x.get()
    with pytest.raises(KeyboardInterrupt), Graph(device, 64).capturing():
        raise KeyboardInterrupt
    with pytest.raises(xp.cuda.runtime.CUDARuntimeError), Graph(device, 64).capturing():
        xp.cuda.get_current_stream().synchronize()
    assert not xp.cuda.get_current_stream().is_capturing()
    assert cuda.step_value(lambda: 0, np.float32) is None
    with cuda.count_launches() as launches:
        assert to_host(double(xp, x)).tolist() == [1.0] * 3
    assert launches == {"leaky_relu": 1}


def test_counters_of_the_captured_stream_are_zero_at_the_first_replay(device):
    """They are made on a stream that the replay does not run on."""
    graph = Graph(device, 64)
    with graph.capturing():
        found = cuda.counters(device, 4)
        y = found[:4] + np.uint32(1)
    graph.replay()
    assert to_host(y).tolist() == [1] * 4
