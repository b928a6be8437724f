"""Asynchronous copies complete as late as possible, which exposes missing waits."""

import time

import numpy as np
import pytest

from gpucnn import cudasim as xp

HOST = np.arange(6, dtype=np.float32)


@pytest.fixture
def stream():
    return xp.cuda.Stream(non_blocking=True)


def pinned(values):
    memory = xp.cuda.alloc_pinned_memory(values.nbytes)
    array = np.frombuffer(memory, values.dtype, values.size)
    array[...] = values
    return array


def begin(stream):
    """Start a copy of HOST on `stream`; return its source and target."""
    source, target = pinned(HOST), xp.empty(6, np.float32)
    stream.wait_event(xp.cuda.get_current_stream().record())
    target.set(source, stream=stream)
    return source, target


def test_a_copy_is_not_complete_until_its_event_is_waited_for(stream):
    _, target = begin(stream)
    copied = stream.record()
    assert np.isnan(target.get()).all()
    assert not copied.done
    before = xp.cuda.counters.host_syncs
    xp.cuda.get_current_stream().wait_event(copied)
    assert xp.cuda.counters.host_syncs == before
    assert copied.done
    np.testing.assert_array_equal(target.get(), HOST)


def test_an_event_recorded_before_the_copy_waits_for_nothing(stream):
    early = stream.record()
    _, target = begin(stream)
    xp.cuda.get_current_stream().wait_event(early)
    assert early.done
    assert np.isnan(target.get()).all()
    stream.synchronize()
    np.testing.assert_array_equal(target.get(), HOST)


def test_overwriting_the_source_too_early_copies_wrong_values(stream):
    source, target = begin(stream)
    source[...] = -1
    xp.cuda.Device(0).synchronize()
    assert (target.get() == -1).all()


def test_copies_on_one_stream_complete_in_order(stream):
    first, second = pinned(HOST), pinned(HOST + 10)
    target = xp.empty(6, np.float32)
    stream.wait_event(xp.cuda.get_current_stream().record())
    events = []
    for source in (first, second):
        target.set(source, stream=stream)
        events.append(stream.record())
    events[0].synchronize()
    np.testing.assert_array_equal(target.get(), HOST)
    events[1].synchronize()
    np.testing.assert_array_equal(target.get(), HOST + 10)


def test_memory_that_another_stream_may_still_use_is_refused(stream):
    stream.wait_event(xp.cuda.get_current_stream().record())  # too early: before the array
    target = xp.empty(6, np.float32)
    with pytest.raises(RuntimeError, match="whose earlier work may still use it"):
        target.set(pinned(HOST), stream=stream)
    stream.wait_event(xp.cuda.get_current_stream().record())
    target.set(pinned(HOST), stream=stream)


def test_memory_of_the_copys_own_stream_needs_no_event(stream):
    with stream:
        target = xp.empty(6, np.float32)
    target.set(pinned(HOST), stream=stream)
    assert np.isnan(target.get()).all()


def test_copies_from_ordinary_memory_or_on_the_current_stream_are_synchronous(stream):
    target = xp.empty(6, np.float32)
    target.set(HOST, stream=stream)
    np.testing.assert_array_equal(target.get(), HOST)
    target.set(pinned(HOST + 1))
    np.testing.assert_array_equal(target.get(), HOST + 1)


def test_events_with_disable_timing_give_no_elapsed_time():
    timed, untimed = xp.cuda.Event(), xp.cuda.Event(disable_timing=True)
    timed.record()
    untimed.record()
    with pytest.raises(ValueError, match="disable_timing"):
        xp.cuda.get_elapsed_time(timed, untimed)
    time.sleep(0.002)
    later = xp.cuda.get_current_stream().record()
    assert xp.cuda.get_elapsed_time(timed, later) >= 2


def test_the_device_has_the_memory_of_the_setting(monkeypatch):
    pool = xp.get_default_memory_pool()
    pool.free_all_blocks()
    size = pool.used_bytes() + 2**20
    monkeypatch.setenv("GPUCNN_CUDASIM", f"memory={size}")
    assert xp.cuda.runtime.memGetInfo() == (2**20, size)
    held = xp.zeros(2**19, np.uint8)
    assert xp.cuda.runtime.memGetInfo() == (2**19, size)
    del held  # cached by the pool, which frees it when memory runs out
    assert xp.zeros(2**20, np.uint8).size == 2**20
    with pytest.raises(xp.cuda.memory.OutOfMemoryError, match="allocating 1,049,088 bytes"):
        xp.zeros(2**20 + 1, np.uint8)


def test_using_allocator_applies_only_inside_its_block():
    asked = []

    def allocator(size):
        asked.append(size)
        return outer(size)

    outer = xp.cuda.get_allocator()
    with xp.cuda.using_allocator(allocator):
        xp.zeros(10, np.float32) + 1
    xp.zeros(10, np.float32)
    assert asked == [40, 40]
    assert xp.cuda.get_allocator() == outer
