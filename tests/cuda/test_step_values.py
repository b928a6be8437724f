"""Values that change from step to step reach the device before each replay."""

import numpy as np
import pytest

from gpucnn import cuda
from gpucnn.cuda.graph import Graph
from gpucnn.cuda.step_values import NotCapturable, StepValues
from gpucnn.device import Device, to_host, working_on


@pytest.fixture
def device(gpu):
    device = Device.parse(gpu)
    with working_on(device):
        yield device


def test_outside_of_a_capture_there_is_no_array_and_no_refusal():
    assert cuda.step_value(lambda: 1, np.float32) is None
    cuda.refuse_capture("never")


def test_values_of_several_dtypes_and_shapes_are_sent_in_the_order_of_registration(device):
    called = []

    def produce(name, value):
        called.append(name)
        return value

    values = StepValues(device, 256)
    with values.collecting():
        rate = cuda.step_value(lambda: produce("rate", 0.5), np.float32)
        state = cuda.step_value(lambda: produce("state", (2**64 - 1, 7)), np.uint64, (2,))
        draws = cuda.step_value(lambda: produce("draws", [[1, 2], [3, 4]]), np.int64, (2, 2))
    assert called == []
    for _ in range(2):
        values.send()
    assert called == ["rate", "state", "draws"] * 2
    assert (to_host(rate), rate.shape, rate.dtype) == (0.5, (), np.float32)
    assert to_host(state).tolist() == [2**64 - 1, 7]
    assert to_host(draws).tolist() == [[1, 2], [3, 4]]
    assert all(array.data.ptr % 16 == 0 for array in (rate, state, draws))


def test_a_number_is_rounded_as_a_launch_rounds_it(device):
    values = StepValues(device, 64)
    at = values.add(lambda: 0.1, np.float32)
    values.send()
    assert to_host(at) == np.float32(0.1)


def test_each_replay_reads_its_own_values(device):
    """A slot is used again after eight steps."""
    numbers = iter(range(100))
    graph = Graph(device, 64)
    xp, seen = device.xp, []
    total = xp.zeros((), np.float64)
    with graph.capturing():
        at = cuda.step_value(lambda: 2.0 ** next(numbers), np.float64)
        total += at
    for _ in range(20):
        graph.replay()
        seen.append(total.copy())
    assert [float(to_host(x)) for x in seen] == [2.0 ** (n + 1) - 1 for n in range(20)]


def test_too_many_values_are_refused_with_their_number(device):
    values = StepValues(device, 32)
    values.add(lambda: 0, np.float32)
    with pytest.raises(NotCapturable, match=r"more than 32 bytes .* 1 values and one of 24 bytes"):
        values.add(lambda: 0, np.int64, (3,))


def test_what_cannot_be_replayed_is_refused_while_a_step_is_captured(device):
    values = StepValues(device, 32)
    with values.collecting(), pytest.raises(NotCapturable, match="draws on the host"):
        cuda.refuse_capture("it draws on the host")
    cuda.refuse_capture("no longer")
