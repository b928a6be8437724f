"""How NcclCommunicator picks GPUs, starts and ends; and what the stand-ins themselves refuse."""

import gc
import platform
import threading
import time

import fake_nccl
import pytest
from fake_ranks import run
from mpiexec import run_ranks
from nccl_ranks import Ended, error_of, numbers

from gpucnn.device import Device, working_on
from gpucnn.distributed import NcclCommunicator, local_device, nccl
from gpucnn.errors import ArgumentError, DeviceError, DistributedError, MissingExtra


def test_each_rank_takes_the_gpu_of_its_local_rank(standin):
    found = run(4, local_device)
    assert found == [Device("cuda", i) for i in range(4)]


def test_more_ranks_than_gpus_are_refused_on_all_of_them(standin, monkeypatch):
    monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", lambda: 2)
    errors = run(4, lambda host: error_of(local_device, host))
    for error in errors:
        assert isinstance(error, DeviceError)
        assert str(error) == (
            f"ranks 0 and 2 would share GPU 0000:01:00.0 of {platform.node()}\n"
            "  NCCL needs a GPU for each rank; that machine runs 4 ranks on 2: start 2 there "
            "(mpiexec -n 2 on one machine), or use --device cpu"
        )


def test_a_launcher_may_show_each_process_a_gpu_of_its_own(standin, monkeypatch):
    monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", lambda: 1)
    monkeypatch.setattr(
        standin.cuda.runtime, "deviceGetPCIBusId", lambda index: str(threading.get_ident())
    )
    assert run(3, local_device) == [Device("cuda", 0)] * 3


def test_two_ranks_that_ask_for_one_gpu_are_refused(standin):
    errors = run(2, lambda host: error_of(NcclCommunicator, host, Device("cuda", 3)))
    assert ["would share GPU 0000:04:00.0" in str(error) for error in errors] == [True, True]


def test_a_rank_without_a_gpu_is_named_on_all_ranks(standin, monkeypatch):
    def count():
        return 0 if threading.current_thread().name == "late" else 4

    monkeypatch.setattr(standin.cuda.runtime, "getDeviceCount", count)

    def program(host):
        if host.rank == 1:
            threading.current_thread().name = "late"
        return str(error_of(local_device, host))

    for text in run(2, program):
        assert text.startswith("rank 1: device cuda needs an NVIDIA GPU")


@pytest.mark.parametrize("start", [local_device, NcclCommunicator])
def test_what_is_no_communicator_is_refused(start):
    with pytest.raises(ArgumentError, match=f"{start.__name__}: expected a Communicator, got None"):
        start(None)


def test_without_nccl_one_line_says_what_to_install(standin, monkeypatch):
    monkeypatch.setattr(fake_nccl, "available", False)
    errors = run(2, lambda host: error_of(NcclCommunicator, host))
    for error in errors:
        assert isinstance(error, MissingExtra)
        assert str(error) == (
            "rank 0: training on several GPUs needs NCCL, which CuPy does not find: "
            'pip install "nvidia-nccl-cu13"'
        )


def test_an_id_that_cannot_be_made_on_rank_0_is_an_error_on_all_ranks(standin, monkeypatch):
    def fails():
        raise fake_nccl.NcclError(2)

    monkeypatch.setattr(fake_nccl, "get_unique_id", fails)
    for error in run(2, lambda host: error_of(NcclCommunicator, host)):
        assert isinstance(error, DistributedError)
        assert str(error).startswith("rank 0: NCCL on cuda:0: NCCL_ERROR_SYSTEM_ERROR")


@pytest.mark.parametrize("hangs", [False, True])
def test_abort_ends_nccl_and_then_the_processes_once_even_if_nccl_hangs(
    standin, monkeypatch, hangs
):
    monkeypatch.setattr(nccl, "ABORT_SECONDS", 0.1 if hangs else 20)
    monkeypatch.setattr(nccl, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(nccl, "_GRACE_SECONDS", 0.01)
    statuses = []

    def program(host):
        def end(status):
            statuses.append(status)
            raise Ended

        host.abort = end
        comm = NcclCommunicator(host)
        host.barrier()
        release, released = threading.Event(), []
        if hangs:
            comm._comm.abort = lambda: released.append(release.wait(20))
        assert isinstance(error_of(comm.abort, 7), Ended)
        assert not released
        release.set()
        time.sleep(0.1)  # the watching thread would look here
        if not hangs:
            with working_on(comm.device):
                x = standin.asarray(numbers(0))
                assert "aborted or destroyed" in str(error_of(comm.allreduce, x))

    run(2, program)
    assert statuses == [7, 7]


@pytest.mark.parametrize("notices", [False, True])
def test_an_error_that_the_program_does_not_notice_ends_the_ranks(
    standin, monkeypatch, capfd, notices
):
    monkeypatch.setattr(nccl, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(nccl, "_GRACE_SECONDS", 20.0 if notices else 0.05)
    ended = threading.Event()

    def end(status):
        assert status == 2
        ended.set()

    def program(host):
        host.abort = end
        comm = NcclCommunicator(host)
        comm._comm.fail = 6
        if notices:
            with working_on(comm.device), pytest.raises(DistributedError):
                comm.start_allreduce(standin.asarray(numbers(0)))
        found = ended.wait(0.3 if notices else 20)
        comm._comm.fail = 0
        return found

    assert run(1, program) == [not notices]
    text = capfd.readouterr().err
    assert text.startswith("" if notices else "rank 0: NCCL on cuda:0: NCCL_ERROR_REMOTE_ERROR")


def test_the_watching_thread_ends_with_its_communicator(standin, monkeypatch):
    monkeypatch.setattr(nccl, "_POLL_SECONDS", 0.01)
    before = set(threading.enumerate())

    def program(host):
        comm = NcclCommunicator(host)
        (thread,) = set(threading.enumerate()) - before - {threading.current_thread()}
        time.sleep(0.1)  # it has looked
        assert thread.is_alive()
        del comm
        gc.collect()
        thread.join(20)
        return thread.is_alive()

    assert run(1, program) == [False]


def test_what_the_others_do_to_nccl_after_the_goodbye_is_no_error(standin, monkeypatch):
    monkeypatch.setattr(nccl, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(nccl, "_GRACE_SECONDS", 0.05)
    statuses = []

    def program(host):
        host.abort = statuses.append
        comm = NcclCommunicator(host)
        comm.close()
        comm._comm.fail = 6  # as when another process has ended
        time.sleep(0.2)

    run(2, program)
    assert statuses == []


def test_ranks_of_mpi_that_cannot_each_have_a_gpu_all_end_with_one_error():
    done = run_ranks(
        3,
        """
import lazy_cuda, fake_nccl, pytest
from gpucnn.distributed import MPICommunicator, NcclCommunicator, local_device
from gpucnn.errors import DeviceError

lazy_cuda.DEVICES = 2
patch = pytest.MonkeyPatch()
lazy_cuda.modules(patch, fake_nccl)
comm = MPICommunicator()
for call in (local_device, NcclCommunicator):
    with pytest.raises(DeviceError, match="ranks 0 and 2 would share GPU 0000:01:00.0"):
        call(comm)
lazy_cuda.DEVICES = 4
assert str(local_device(comm)) == f"cuda:{comm.rank}"
fake_nccl.available = comm.rank != 1
with pytest.raises(ImportError, match="^rank 1: training on several GPUs needs NCCL"):
    NcclCommunicator(comm)
""",
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- the stand-ins themselves ---


def test_the_stand_in_refuses_what_nccl_refuses(standin):
    def program(host):
        with standin.cuda.Device(host.rank):
            comm = fake_nccl.NcclCommunicator(2, host.share(fake_nccl.get_unique_id()), host.rank)
            x, stream = standin.asarray(numbers(0)), standin.cuda.Stream()
            pointer, on_host = x.data.ptr, numbers(0)
            other = host.gather(pointer)[1 - host.rank]

            def reduce(pointer=pointer, count=7, kind=fake_nccl.NCCL_FLOAT32, op=0):
                comm.allReduce(pointer, pointer, count, kind, op, stream.ptr)

            found = [
                error_of(reduce, pointer, 7, 10).status,
                error_of(reduce, on_host.ctypes.data).status,
                error_of(reduce, other).status,  # the other rank's GPU
                error_of(reduce, pointer, 7, 7, 9).status,
                error_of(comm.broadcast, pointer, pointer, 7, 7, 2, stream.ptr).status,
                error_of(reduce, pointer, 7, 7 - host.rank).status,  # another dtype
                error_of(reduce, pointer, 7 - host.rank).status,  # another count
            ]
            comm.destroy()
            return [*found, error_of(reduce).status, error_of(comm.check_async_error).status]

    assert run(2, program) == [[4, 4, 4, 4, 4, 5, 5, 4, 4]] * 2


def test_the_stand_in_for_cupy_sees_a_missing_wait_and_freed_memory(standin):
    x = standin.asarray(numbers(1))
    with standin.cuda.Stream() as other:
        y = standin.asarray(numbers(0))
        y.get()
        x *= 2
    other.synchronize()
    assert not (x._host == 2 * numbers(1)).all()  # x was written before it was set
    standin.cuda.get_current_stream().synchronize()
    with other:
        x *= 2
    del x
    gc.collect()
    standin.cuda.get_current_stream().synchronize()
    with pytest.raises(AssertionError, match="freed memory"):
        other.synchronize()


def test_the_stand_in_has_the_names_and_codes_of_cupys_module():
    try:
        from cupy_backends.cuda.libs import nccl as real
    except ImportError as error:
        pytest.skip(f"CuPy's module for NCCL does not load: {error}")
    codes = [name for name in dir(fake_nccl) if name.startswith("NCCL_")]
    assert {name: getattr(real, name) for name in codes} == {
        name: getattr(fake_nccl, name) for name in codes
    }
    for name in ("allReduce", "broadcast", "check_async_error", "abort", "destroy"):
        assert hasattr(real.NcclCommunicator, name)
    assert type(real.get_unique_id()) is type(fake_nccl.get_unique_id())
    for status in range(1, 7):
        text = str(fake_nccl.NcclError(status))
        assert str(real.NcclError(status)).startswith(text.partition(":")[0])
