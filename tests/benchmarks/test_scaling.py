"""The model of scaling on GPUs keeps its limits, and the script measures and prints its tables."""

import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

import gpucnn
from gpucnn import models, ops, optim
from gpucnn.distributed import Communicator, DistributedOptimizer, Work

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def model(monkeypatch):
    return load_script(FOLDER / "_scaling_model.py")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_script(FOLDER / "scaling.py")


@pytest.fixture
def cluster(model):
    """Machines of four GPUs and two adapters, with easy numbers."""
    protocol = model.Protocol(bandwidth=0.5, launch=1e-6, nvlink=2e-6, network=3e-6)
    return model.Cluster(4, nvlink=100e9, adapters=2, adapter=10e9, protocols=(protocol,))


@pytest.fixture
def step(model):
    """A megabyte complete half way through a backward pass of 2 ms, and one at its end."""
    buckets = model.Bucket(1_000_000, 0.5), model.Bucket(1_000_000, 1.0)
    return model.Step(1e-3, 2e-3, buckets)


def test_the_cost_of_a_ring_is_that_computed_by_hand(model, cluster):
    # 6 hops of 2 us; 6 / 4 of a megabyte at 50 GB/s
    assert model.ring_seconds(1_000_000, 4, cluster) == pytest.approx((1 + 12 + 30) * 1e-6)
    # 14 hops, 2 of them between machines; 14 / 8 of a megabyte at 10 GB/s, half of two adapters
    assert model.ring_seconds(1_000_000, 8, cluster) == pytest.approx((1 + 24 + 6 + 175) * 1e-6)


def test_small_and_large_reductions_take_the_protocol_that_is_faster(model, cluster):
    wide = model.Protocol(bandwidth=1.0, launch=100e-6, nvlink=2e-6, network=3e-6)
    both = replace(cluster, protocols=(*cluster.protocols, wide))
    alone = replace(cluster, protocols=(wide,))
    for nbytes, fastest in ((16, cluster), (100_000_000, alone)):
        assert model.ring_seconds(nbytes, 8, both) == model.ring_seconds(nbytes, 8, fastest)


def test_one_gpu_has_efficiency_1_and_more_have_less(model, cluster, step):
    assert model.efficiency(step, 1, cluster) == model.efficiency(step, 1, cluster, False) == 1
    found = [model.efficiency(step, n, cluster) for n in (1, 2, 4, 8, 16, 64)]
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < found[0]


def test_without_overlap_all_communication_is_added_to_the_step(model, cluster, step):
    added = model.step_seconds(step, 8, cluster, overlap=False) - step.seconds
    loss = model.ring_seconds(model.LOSS_BYTES, 8, cluster)
    assert added == pytest.approx(loss + 2 * model.ring_seconds(1_000_000, 8, cluster))


def test_overlap_hides_the_reductions_that_end_before_backward(model, cluster, step):
    loss = model.ring_seconds(model.LOSS_BYTES, 8, cluster)
    last = model.ring_seconds(1_000_000, 8, cluster)
    added = model.step_seconds(step, 8, cluster) - step.seconds
    assert added == pytest.approx(loss + last)
    early = replace(step, buckets=step.buckets[:1])
    assert model.step_seconds(early, 8, cluster) == pytest.approx(step.seconds + loss)


def test_a_reduction_waits_for_the_one_before_it(model, cluster, step):
    slow = replace(cluster, adapter=0.25e9)  # 7 ms each: longer than backward
    each = model.ring_seconds(1_000_000, 8, slow)
    loss = model.ring_seconds(model.LOSS_BYTES, 8, slow)
    assert model.step_seconds(step, 8, slow) == pytest.approx(1e-3 + loss + 1e-3 + 2 * each)


@pytest.mark.parametrize("link", ["nvlink", "adapter"])
def test_efficiency_grows_with_a_links_bandwidth_up_to_the_other_links(model, cluster, step, link):
    ample = replace(cluster, nvlink=1e15, adapter=1e15)
    speeds = [replace(ample, **{link: speed}) for speed in (1e8, 1e9, 1e10, 1e11)]
    found = [model.efficiency(step, 8, where) for where in speeds]
    assert found == sorted(set(found))


def test_the_least_step_has_the_efficiency_that_was_asked_for(model):
    work = model.workload("lenet5")
    least = model.least_step(work, 64, model.Cluster(), 0.95)
    forward = least * work.forward / (work.forward + work.backward)
    found = model.Step(forward, least - forward, work.buckets)
    assert model.efficiency(found, 64, model.Cluster()) == pytest.approx(0.95)


def test_the_work_of_alexnet_cifar10_is_that_counted_by_hand(model):
    work = model.workload("alexnet_cifar10")
    convolutions = [1024 * 3 * 64, 256 * 64 * 192, 64 * 192 * 384, 64 * 384 * 256, 64 * 256 * 256]
    layers = [9 * size for size in convolutions] + [4096 * 1024, 1024 * 1024, 1024 * 10]
    assert work.forward == sum(layers)
    assert work.backward == 2 * sum(layers) - layers[0]
    assert sum(bucket.nbytes for bucket in work.buckets) == 4 * 7_506_762
    assert [bucket.ready for bucket in work.buckets] == [
        # conv4's bias is in the first bucket
        pytest.approx(2 * sum(layers[3:]) / work.backward),
        1,
    ]
    assert work.step(512, 1e12).seconds == pytest.approx(
        2 * 512 * (work.forward + work.backward) / 1e12
    )


def test_the_buckets_of_the_model_are_those_that_the_optimizer_sends(model, rng):
    class Recorder(Communicator):
        rank, size, local_rank, local_size = 0, 1, 0, 1
        sent: list[int] = []

        def start_allreduce(self, x, wire=None):
            self.sent.append(x.nbytes)
            return Work()

    network, comm = models.lenet5(), Recorder()
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    reducer = DistributedOptimizer(optimizer, comm, bucket_bytes=50_000)
    x = gpucnn.tensor(rng.standard_normal((2, 28, 28, 1), dtype=np.float32))
    ops.cross_entropy(network(x), np.array([0, 1])).backward()
    reducer.reduce()
    found = [bucket.nbytes for bucket in model.workload("lenet5", 50_000).buckets]
    assert len(found) > 2
    padding = 64 * len(optimizer.parameters)  # each gradient starts on a line of 64 bytes
    np.testing.assert_allclose(comm.sent, found, rtol=0, atol=padding)


def test_what_the_script_predicts_is_called_predicted(script, capsys):
    script.predicted()
    said = capsys.readouterr().out
    assert said.startswith("Predicted, not measured")
    for block in said.strip().split("\n\n"):
        assert "predicted" in block.lower()
    assert re.search(r"\| \*\*half of float32's peak\*\* \|.* 9\d\.\d% \| 9\d\.\d% \|", said)


def test_a_late_reduction_begins_only_when_it_is_waited_for(script):
    events, seconds = [], Counter()

    class Recorded(Work):
        def test(self):
            events.append("test")
            return True

        def wait(self):
            events.append("wait")

    @contextmanager
    def clock(purpose):
        seconds[purpose] += 1
        yield

    def start():
        events.append("begin")
        return Recorded()

    late = script._Timed(clock, start, late=True)
    assert not late.test()
    assert events == []
    late.wait()
    assert events == ["begin", "wait"]
    script._Timed(clock, start, late=False)
    assert events == ["begin", "wait", "begin"]
    assert seconds == {"gradients": 3}


def test_without_the_extra_the_script_says_what_to_install(script, monkeypatch):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["scaling.py"])
    with pytest.raises(SystemExit, match=r'pip install "gpucnn\[distributed\]"'):
        script.main()


@pytest.mark.slow
def test_the_script_measures_processes_that_mpiexec_starts(script):
    try:
        script.mpiexec()
    except SystemExit as missing:
        pytest.skip(str(missing))
    options = "--model lenet5 --batch 6 --ranks 2 --rounds 1 --repeats 2".split()
    done = subprocess.run(
        [sys.executable, str(FOLDER / "scaling.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.findall(
        r"^\| lenet5 \| (?:one|strong|weak) \| (\d) x .* ([\d.]+)% \|$", done.stdout, re.M
    )
    assert len(rows) >= 3
    for processes, share in rows:
        assert (0 < float(share) < 100) == (processes == "2")
    for when in ("after", "during"):
        assert re.search(rf"^\| lenet5 \| 2 \| {when} backward \|.* \|$", done.stdout, re.M)
    assert re.search(r"^\| 2 \| 25\.00 \| [\d.]+ \| [\d.]+ \|$", done.stdout, re.M)
    assert "Predicted, not measured" in done.stdout
