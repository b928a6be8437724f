"""The worker pool, and results that must not depend on its size."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import gpucnn
from gpucnn import nn, ops
from gpucnn.cpu import alone, parallel, spans, usable_cores
from gpucnn.cpu.workers import _Job
from gpucnn.errors import ArgumentError


@pytest.fixture(autouse=True)
def _restore():
    before = gpucnn.get_num_threads()
    yield
    gpucnn.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_piece_runs_once(threads):
    gpucnn.set_num_threads(threads)
    done = []
    parallel(done.append, range(100))
    assert sorted(done) == list(range(100))


def test_pieces_run_at_the_same_time():
    gpucnn.set_num_threads(3)
    meeting = threading.Barrier(3, timeout=120)
    parallel(lambda _: meeting.wait(), range(3))  # times out unless three run at once


def test_the_callers_errstate_holds_in_every_thread():
    gpucnn.set_num_threads(3)
    meeting = threading.Barrier(3, timeout=120)

    def seen():
        found = []

        def look(_):
            meeting.wait()
            found.append(np.geterr()["over"])

        parallel(look, range(3))
        return found

    with np.errstate(over="raise"):
        assert seen() == ["raise"] * 3
    assert seen() == ["warn"] * 3


@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_in_a_piece_reaches_the_caller_and_the_pool_still_works(threads):
    gpucnn.set_num_threads(threads)
    for _ in range(20):
        with pytest.raises(ZeroDivisionError):
            parallel(lambda i: 1 // (i - 5), range(10))
    done = []
    parallel(done.append, range(10))
    assert len(done) == 10


def test_an_exception_in_a_helper_reaches_the_caller():
    gpucnn.set_num_threads(2)
    caller = threading.current_thread()

    def fail_elsewhere(_):
        time.sleep(0.01)
        if threading.current_thread() is not caller:
            raise KeyError("from a helper")

    with pytest.raises(KeyError, match="from a helper"):
        parallel(fail_elsewhere, range(50))


def test_an_interrupt_starts_no_more_pieces():
    gpucnn.set_num_threads(2)
    done = []

    def interrupt(i):
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        done.append(i)
        time.sleep(0.005)

    with pytest.raises(KeyboardInterrupt):
        parallel(interrupt, range(1000))
    assert len(done) < 500


def test_nested_calls_run_in_the_same_thread():
    gpucnn.set_num_threads(3)
    places = []

    def outer(_):
        here = threading.get_ident()
        parallel(lambda _: places.append(threading.get_ident() == here), range(5))

    parallel(outer, range(6))
    assert places == [True] * 30


def test_several_threads_may_call_at_once():
    gpucnn.set_num_threads(3)
    totals = []

    def work():
        for _ in range(50):
            done = []
            parallel(done.append, range(8))
            totals.append(len(done))

    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=600)
    assert totals == [8] * 200


def test_the_default_is_the_number_of_cores_of_the_process():
    code = "import gpucnn; print(gpucnn.get_num_threads())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == usable_cores()


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", True])
def test_a_number_of_threads_that_is_not_a_positive_int_is_refused(n):
    with pytest.raises(ArgumentError, match="positive int"):
        gpucnn.set_num_threads(n)


def test_reducing_the_number_of_threads_ends_the_helpers():
    gpucnn.set_num_threads(4)
    parallel(lambda _: None, range(8))
    gpucnn.set_num_threads(1)
    assert not [t for t in threading.enumerate() if t.name == "gpucnn worker"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_starts_its_own_threads():
    code = """
import os, threading
import gpucnn
from gpucnn.cpu import parallel
gpucnn.set_num_threads(3)
done = []
parallel(done.append, range(50))
child = os.fork()
done.clear()
parallel(done.append, range(50))
assert sorted(done) == list(range(50)) and gpucnn.get_num_threads() == 3
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, timeout=600)


def test_the_interpreter_exits_silently_with_waiting_workers():
    code = """
import gpucnn
from gpucnn.cpu import parallel
gpucnn.set_num_threads(4)
parallel(lambda i: None, range(50))
"""
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=600
    )
    assert (out.returncode, out.stdout, out.stderr) == (0, "", "")


@pytest.mark.parametrize("threads", [1, 3])
def test_ufunc_buffers_are_short_inside_a_piece_and_restored_after(threads):
    gpucnn.set_num_threads(threads)
    before, inside = np.getbufsize(), []
    parallel(lambda piece: inside.append(np.getbufsize()), range(20))
    assert set(inside) == {2048}
    assert np.getbufsize() == before


def test_alone_runs_every_piece_in_the_calling_thread():
    gpucnn.set_num_threads(3)
    names = []
    with alone():
        parallel(lambda _: names.append(threading.current_thread().name), range(50))
    assert names == [threading.current_thread().name] * 50
    meeting = threading.Barrier(2, timeout=120)
    parallel(lambda _: meeting.wait(), range(2))  # has helpers again afterwards


def test_spans_cover_the_range():
    assert [list(range(10)[s]) for s in spans(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(spans(0, 4)) == []


def test_a_training_step_has_the_same_bits_for_every_number_of_threads():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((48, 16, 16, 3), dtype=np.float32), rng.integers(0, 10, 48)
    results = []
    for threads in (1, 2, 5):
        gpucnn.set_num_threads(threads)
        gpucnn.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.LocalResponseNorm(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(216, 300),
            nn.ReLU(),
            nn.Linear(300, 10),
        )
        loss = ops.cross_entropy(model(gpucnn.tensor(x)), labels)
        loss.backward()
        results.append([loss.data, *(p.grad for p in model.parameters())])
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(a, e)
            assert a.dtype == np.float32


def test_the_caller_waits_for_pieces_that_helpers_took_before_it_began(monkeypatch):
    lead = _Job.lead

    def late(job):
        time.sleep(0.1)  # the caller loses its core, and the helper takes piece 0
        lead(job)

    monkeypatch.setattr(_Job, "lead", late)
    finished = []

    def work(piece):
        time.sleep(0.5 if piece == 0 else 0)
        finished.append(piece)

    gpucnn.set_num_threads(3)
    parallel(work, range(2))
    assert sorted(finished) == [0, 1]


# --- changing the number of threads while they work ---


@pytest.mark.parametrize("n", [1, 2, 6])
def test_a_piece_may_change_the_number_of_threads_of_the_next_call(n):
    gpucnn.set_num_threads(4)
    meeting = threading.Barrier(4, timeout=120)  # so that helpers make the call too

    def change(_):
        meeting.wait()
        gpucnn.set_num_threads(n)

    parallel(change, range(4))
    assert gpucnn.get_num_threads() == n
    meeting = threading.Barrier(n, timeout=120)
    parallel(lambda _: meeting.wait(), range(n))


def test_threads_may_change_the_number_of_threads_while_others_run_jobs():
    def change(start):
        for i in range(100):
            gpucnn.set_num_threads(1 + (start + i) % 4)

    changers = [threading.Thread(target=change, args=(start,)) for start in range(2)]
    for changer in changers:
        changer.start()
    for _ in range(200):
        done = []
        parallel(done.append, range(9))
        assert sorted(done) == list(range(9))
    for changer in changers:
        changer.join(timeout=120)
        assert not changer.is_alive()


@pytest.mark.parametrize("refusal", [RuntimeError("can't start new thread"), MemoryError()])
def test_fewer_threads_work_where_the_system_refuses_more(monkeypatch, refusal):
    gpucnn.set_num_threads(1)
    gpucnn.set_num_threads(5)
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            raise refusal
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    done = []
    with pytest.warns(RuntimeWarning, match="gpucnn uses 3 instead of 5"):
        parallel(done.append, range(20))
    parallel(done.append, range(20))  # without another warning
    assert len(done) == 40
    assert gpucnn.get_num_threads() == 3


def test_an_interrupt_at_any_line_of_the_caller_starts_no_more_pieces(monkeypatch):
    jobs = []

    def interrupted(job):
        jobs.append(job)
        raise KeyboardInterrupt

    gpucnn.set_num_threads(1)
    monkeypatch.setattr(_Job, "lead", interrupted)
    with pytest.raises(KeyboardInterrupt):
        parallel(lambda _: None, range(9))
    assert not jobs[0].todo
