"""NcclCommunicator, on a stand-in for NCCL: ranks are threads, each with a GPU of its own.

Most tests run on a stand-in for CuPy, and on CuPy where there are two GPUs.
"""

import gc

import fake_nccl
import lazy_cuda
import numpy as np
import pytest
from devices import SECOND_CUDA
from nccl_ranks import cupy_with_fake_nccl, error_of, numbers, ranks

from gpucnn.device import Device, working_on
from gpucnn.distributed.wire import pack, unpack
from gpucnn.errors import DeviceMismatch, DistributedError, DtypeError, ShapeError


@pytest.fixture(params=["stand-in", SECOND_CUDA])
def cupy(request, monkeypatch):
    """CuPy, or the stand-in, with the stand-in for NCCL."""
    if request.param == "stand-in":
        return lazy_cuda.modules(monkeypatch, fake_nccl)
    cupy = cupy_with_fake_nccl(monkeypatch)
    x = cupy.zeros(1, np.float32)
    x += 1  # compiled here: NVRTC's first compilation may fail if two threads begin it at once
    x *= 2
    return cupy


# --- numbers ---


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int32", "int64", "uint8", "uint32", "uint64"]
)
def test_allreduce_adds_every_dtype_in_place(cupy, dtype):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank, dtype))
        comm.allreduce(x)
        return x.get()

    for found in ranks(2, program):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, numbers(0, dtype) + numbers(1, dtype))


def test_uint16_on_the_wire_as_bf16_is_added_as_bfloat16(cupy):
    def program(comm):
        bits = np.empty(7, np.uint16)
        pack(numbers(comm.rank), "bf16", bits)
        on_host, x = bits.copy(), cupy.asarray(bits)
        comm.start_allreduce(x, "bf16").wait()
        comm.start_allreduce(on_host, "bf16").wait()
        found = np.empty(7, np.float32)
        unpack(x.get(), "bf16", found)
        np.testing.assert_array_equal(on_host, x.get())
        return found

    for found in ranks(2, program):
        np.testing.assert_array_equal(found, numbers(0) + numbers(1))


@pytest.mark.parametrize("dtype", ["float32", "uint16", "bool", "complex64"])
@pytest.mark.parametrize("root", [0, 1])
def test_broadcast_copies_any_dtype_from_the_root(cupy, dtype, root):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank, dtype))
        comm.broadcast(x, root)
        return x.get()

    for found in ranks(2, program):
        np.testing.assert_array_equal(found, numbers(root, dtype))


def test_empty_arrays_need_no_call(cupy):
    def program(comm):
        x = cupy.asarray(np.empty((0, 3), np.float32))
        comm.allreduce(x)
        comm.broadcast(x)
        return comm._comm.calls

    assert ranks(2, program) == [[], []]


def test_host_arrays_and_objects_go_to_the_host_communicator(cupy):
    def program(comm):
        x, y = numbers(comm.rank), numbers(comm.rank)
        comm.allreduce(x)
        comm.broadcast(y, 1)
        comm.barrier()
        return x, y, comm.gather(comm.rank), comm.share(comm.rank, 1), comm._comm.calls

    for x, y, gathered, shared, calls in ranks(2, program):
        np.testing.assert_array_equal(x, numbers(0) + numbers(1))
        np.testing.assert_array_equal(y, numbers(1))
        assert (gathered, shared, calls) == ([0, 1], 1, [])


# --- streams and memory ---


def test_a_reduction_waits_for_the_work_before_it_and_the_current_stream_for_the_reduction(cupy):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank))
        x += 1
        work = comm.start_allreduce(x)
        work.wait()
        x *= 3
        return x.get()

    for found in ranks(2, program):
        np.testing.assert_array_equal(found, (numbers(0) + numbers(1) + 2) * 3)


def test_work_that_was_enqueued_after_the_start_does_not_delay_the_reduction(cupy):
    def program(comm):
        x, y = cupy.asarray(numbers(comm.rank)), cupy.asarray(numbers(5))
        work = comm.start_allreduce(x)
        y += 1
        comm._stream.synchronize()
        done = work.test()
        work.wait()
        return done, y.get()

    for done, y in ranks(2, program):
        assert done
        np.testing.assert_array_equal(y, numbers(5) + 1)


def test_several_reductions_may_be_under_way_and_be_waited_for_in_any_order(cupy):
    def program(comm):
        arrays = [cupy.asarray(numbers(comm.rank) + i) for i in range(3)]
        works = [comm.start_allreduce(x) for x in arrays]
        for i in (2, 0, 1):
            works[i].wait()
            arrays[i] += 1
        assert not comm._pending
        return [x.get() for x in arrays]

    for found in ranks(2, program):
        for i, x in enumerate(found):
            np.testing.assert_array_equal(x, numbers(0) + numbers(1) + 2 * i + 1)


def test_an_array_that_nobody_else_holds_keeps_its_memory_until_its_work_was_waited_for(cupy):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank))
        work = comm.start_allreduce(x)
        del x, work
        gc.collect()
        y = cupy.asarray(numbers(9))  # would take x's memory
        y.get()
        comm.allreduce(cupy.asarray(numbers(8)))
        assert not comm._pending
        return y.get()

    for found in ranks(2, program):
        np.testing.assert_array_equal(found, numbers(9))


def test_a_wait_on_another_stream_orders_that_stream_and_the_one_that_owns_the_memory(cupy):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank))
        work = comm.start_allreduce(x)
        with cupy.cuda.Stream(non_blocking=True):
            work.wait()
            x *= 2
            doubled = x.get()
        del x, work
        gc.collect()
        y = cupy.asarray(numbers(9))
        return doubled, y.get()

    for doubled, y in ranks(2, program):
        np.testing.assert_array_equal(doubled, 2 * (numbers(0) + numbers(1)))
        np.testing.assert_array_equal(y, numbers(9))


def test_memory_freed_after_a_wait_on_another_stream_is_not_reused_too_early(cupy):
    def program(comm):
        x = cupy.asarray(numbers(comm.rank))
        work = comm.start_allreduce(x)
        other = cupy.cuda.Stream(non_blocking=True)
        with other:
            work.wait()
        del x, work
        gc.collect()
        y = cupy.asarray(numbers(9))
        found = y.get()
        other.synchronize()
        return found, y.get()

    for found, later in ranks(2, program):
        np.testing.assert_array_equal(found, numbers(9))
        np.testing.assert_array_equal(later, numbers(9))


def test_a_step_with_reductions_can_be_captured_and_nothing_waits_for_the_host(cupy):
    def program(comm):
        x = cupy.asarray(numbers(0))
        y = cupy.asarray(numbers(1))
        x += 1
        x *= 2  # compiles the kernels
        x.get()
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            stream.begin_capture()
            x += 1
            first = comm.start_allreduce(x)
            y += 1
            assert not first.test()
            second = comm.start_allreduce(y)
            first.wait()
            second.wait()
            x += 1
            graph = stream.end_capture()
            if graph is None:  # the stand-in only checks
                return None
            for _ in range(2):
                graph.launch(stream)
            return x.get(), y.get()

    for found in ranks(2, program):
        if found is not None:
            x, y = found
            once = ((numbers(0) + 1) * 2 + 1) * 2 + 1
            np.testing.assert_array_equal(x, (once + 1) * 2 + 1)
            np.testing.assert_array_equal(y, ((numbers(1) + 1) * 2 + 1) * 2)


# --- what is refused ---


def test_an_unknown_dtype_is_refused(cupy):
    def program(comm):
        return [
            str(error_of(comm.start_allreduce, cupy.asarray(numbers(0, dtype)), wire))
            for dtype, wire in (("uint16", None), ("bool", None), ("float32", "bf16"))
        ]

    first, second, third = ranks(1, program)[0]
    assert first.endswith("uint32, uint64, or uint16 as bf16, got uint16")
    assert second.endswith("got bool")
    assert third.endswith("got float32 as bf16")


def test_refusals_are_of_their_classes(cupy):
    def program(comm):
        with working_on(Device("cuda", 1)):
            there = cupy.asarray(numbers(0))
        apart = cupy.asarray(np.zeros((4, 4), np.float32))[:, :2]
        halves = cupy.asarray(numbers(0, "uint16"))
        return [error_of(comm.start_allreduce, x) for x in (there, apart, halves)]

    mismatch, shape, dtype = ranks(1, program)[0]
    assert isinstance(mismatch, DeviceMismatch)
    assert "x is on cuda:1, rank 0 communicates on cuda:0" in str(mismatch)
    assert isinstance(shape, ShapeError)
    assert "x (4, 2) is not contiguous" in str(shape)
    assert isinstance(dtype, DtypeError)


def test_a_number_of_elements_that_differs_between_ranks_names_the_rank(standin):
    def program(comm):
        x = standin.asarray(numbers(0, n=7 + comm.rank))
        return str(error_of(comm.start_allreduce, x))

    for rank, text in enumerate(ranks(2, program)):
        assert text.startswith(f"rank {rank}: NCCL on cuda:{rank}: NCCL_ERROR_INVALID_USAGE")
        assert "NCCL_DEBUG=WARN" in text


def test_an_asynchronous_error_is_raised_at_the_next_start_and_wait(standin):
    def program(comm):
        x = standin.asarray(numbers(0))
        work = comm.start_allreduce(x)
        comm._comm.fail = 6
        errors = [error_of(call) for call in (work.wait, lambda: comm.start_allreduce(x))]
        comm._comm.fail = 0  # the watching thread sees no error that lasts
        return errors

    for rank, errors in enumerate(ranks(2, program)):
        for error in errors:
            assert isinstance(error, DistributedError)
            assert str(error).startswith(f"rank {rank}: NCCL on cuda:{rank}: NCCL_ERROR_REMOTE")


def test_an_error_code_that_cupy_does_not_know_is_reported_too(standin):
    def program(comm):
        comm._comm.fail = 8  # ncclTimeout, newer than CuPy 14.2
        text = str(error_of(comm.start_allreduce, standin.asarray(numbers(0))))
        comm._comm.fail = 0
        return text

    assert "NCCL on cuda:0: error 8\n" in ranks(1, program)[0]
