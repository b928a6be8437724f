"""The memory of a run, predicted before its first step."""

import json
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import gpucnn
from gpucnn import cuda, data, nn, optim
from gpucnn.cudasim.memory import unpoisoned
from gpucnn.device import Device
from gpucnn.errors import ArgumentError
from gpucnn.train import memory_limit
from gpucnn.train.job import _check_memory
from gpucnn.train.memory_limit import check_memory_limit

MIB = 1 << 20


@pytest.fixture
def model(rng):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, generator=rng), nn.ReLU(), nn.GlobalAvgPool2d(), nn.Linear(8, 4)
    )


@pytest.fixture
def used(monkeypatch):
    """The process uses 100 MiB."""
    monkeypatch.setattr(memory_limit, "resident_bytes", lambda: 100 * MIB)


def refusal(model, batch_size, limit, **options):
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    with pytest.raises(ArgumentError) as caught:
        check_memory_limit(model, optimizer, (16, 16, 3), batch_size, limit, **options)
    return str(caught.value)


def test_a_batch_that_exceeds_the_limit_is_refused_with_the_largest_that_fits(model, used):
    message = refusal(model, 4000, 110 * MIB)
    fits = int(re.search(r"at most (\d+) images", message)[1])
    assert re.match(
        r"a step on 4000 images would need about \d+.\d MiB, the limit is 110.0 MiB\n"
        r"  in use 100.0 MiB \(2.0 KiB of it model and SGD\), activations \d+.\d MiB, ",
        message,
    )
    optimizer = optim.SGD(model.parameters(), 0.1)
    check_memory_limit(model, optimizer, (16, 16, 3), fits * 9 // 10, 110 * MIB)
    assert "at most" in refusal(model, fits * 11 // 10, 110 * MIB)


def test_in_half_precision_a_larger_batch_fits_on_a_gpu(model):
    model.to(Device("cudasim"))

    def fits(precision):
        used = gpucnn.cudasim.get_default_memory_pool().used_bytes()
        message = refusal(model, 9999, used + 64 * MIB, precision=precision)
        return int(re.search(r"at most (\d+) images", message)[1])

    with cuda.record_launches(False), unpoisoned(), np.errstate(all="ignore"):
        assert 1.2 * fits("fp32") < fits("fp16") < 2 * fits("fp32")  # images are float32 in both


@pytest.mark.parametrize("prefetch", [0, 1, 2, 8])
def test_batches_that_the_loader_makes_ahead_count(prefetch, model, used):
    message = refusal(model, 4096, 101 * MIB, prefetch=prefetch)
    batch = 12  # MiB: 4096 float32 images of 16 x 16 x 3
    assert f", images {(prefetch + 2) * batch}.0 MiB\n" in message


@pytest.mark.parametrize("limit", [1, 100 * MIB])
def test_where_not_even_one_image_fits_the_message_says_so(limit, model, used):
    assert refusal(model, 8, limit).endswith(
        "\n  not even one image fits: raise the limit, or use a smaller model"
    )


def test_the_check_changes_neither_the_model_nor_its_generators(model):
    model.eval()
    before = {name: array.copy() for name, array in model.state_dict().items()}
    state = gpucnn.default_generator().bit_generator.state
    optimizer = optim.Adam(model.parameters(), 0.1)
    check_memory_limit(model, optimizer, (16, 16, 3), 8, 1 << 40)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    after = gpucnn.default_generator().bit_generator.state
    np.testing.assert_equal(after, state)


def test_on_a_gpu_the_pool_counts(model, compiler):
    model.to("cudasim")
    pool = gpucnn.cudasim.get_default_memory_pool()
    optimizer = optim.SGD(model.parameters(), 0.1)
    limit = pool.used_bytes() + 2 * MIB
    check_memory_limit(model, optimizer, (16, 16, 3), 8, limit)
    with pytest.raises(ArgumentError, match=r"at most \d+ images"):
        check_memory_limit(model, optimizer, (16, 16, 3), 200, limit)


@pytest.mark.parametrize("left", [3, 10])
def test_the_check_needs_less_memory_than_the_limit_leaves(left, model, used):
    tracemalloc.start()
    try:
        refusal(model, 100_000, (100 + left) * MIB)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < left * MIB


@pytest.mark.parametrize("arguments", [(0, 1, 2), (1, 0, 2), (1, 1, -1)])
def test_sizes_that_make_no_sense_are_refused(model, arguments):
    batch_size, limit, prefetch = arguments
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ArgumentError, match="expected batch_size >= 1"):
        check_memory_limit(model, optimizer, (16, 16, 3), batch_size, limit, prefetch)


def test_among_several_processes_the_message_says_whose_images_it_counts(model, used):
    images = np.zeros((1000, 16, 16, 3), np.uint8)
    loader = data.DataLoader(data.Dataset(images, np.zeros(1000, np.int64), ("a",)), 1000)
    optimizer = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ArgumentError, match=r"(?s)a step on 500 images .*one of 2 processes"):
        _check_memory(model, optimizer, loader, 101 * MIB, ranks=2, precision=None)


CODE = """
import json, re
from pathlib import Path
import numpy as np
import gpucnn
from gpucnn import data, models, ops, optim
from gpucnn.train.memory_limit import check_memory_limit

def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

gpucnn.set_num_threads(2)
model = models.build("alexnet_cifar10")
optimizer = optim.SGD(model.parameters(), 0.001, momentum=0.9)
images = np.random.default_rng(0).integers(0, 256, (384, 32, 32, 3), np.uint8)
dataset = data.Dataset(images, np.arange(384) % 10, tuple("abcdefghij"))
normalize = data.Normalize([0.5] * 3, [0.3] * 3)
loader = data.DataLoader(dataset, 96, transform=normalize, device="cpu")
limit, before = 256 << 20, status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
try:
    check_memory_limit(model, optimizer, (32, 32, 3), 96, limit)
except gpucnn.errors.ArgumentError as error:
    message = str(error)
of_check = status("VmHWM")
Path("/proc/self/clear_refs").write_text("5")
for x, labels in loader:
    loss = ops.cross_entropy(model(x), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(json.dumps([message, of_check, status("VmHWM")]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_prediction_is_within_10_percent_of_a_runs_peak_and_the_check_within_its_limit():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    message, of_check, of_run = json.loads(done.stdout)
    predicted = float(re.search(r"about ([\d.]+) MiB", message)[1]) * MIB
    assert 0.9 < predicted / of_run < 1.1
    assert of_check < 256 * MIB
