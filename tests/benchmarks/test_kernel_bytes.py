"""The bytes of a launch are those counted by hand, and every kernel's access pattern is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

import gpucnn
from gpucnn import Tensor, cuda, ops, optim
from gpucnn.cuda.card import Card
from gpucnn.cuda.roofline import chip_of
from gpucnn.device import Device
from gpucnn.errors import ArgumentError

FOLDER = Path(__file__).parents[2] / "benchmarks"
DEVICE = Device("cudasim")  # launches are recorded, not run: no compiler is needed


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_script(FOLDER / "_launch_work.py")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_script(FOLDER / "kernel_bytes.py")


def zeros(*shape):
    return Tensor(DEVICE.xp.zeros(shape, np.float32), requires_grad=True)


def recorded(function):
    with cuda.record_launches(run=False) as launches, np.errstate(all="ignore"):
        function()
    return launches


@pytest.fixture
def convolution():
    """The launches of a convolution of 16 x 8 x 8 pixels, 32 channels and 192 filters of 3 x 3,
    forward and backward."""
    x, weight, bias = zeros(16, 8, 8, 32), zeros(192, 3, 3, 32), zeros(192)
    launches = recorded(lambda: ops.conv2d(x, weight, bias, padding=1).sum().backward())
    return {
        launch.kernel.name.removeprefix("conv2d_").split("_1")[0]: launch for launch in launches
    }


X, WEIGHT, BIAS, Y = 16 * 64 * 32 * 4, 192 * 288 * 4, 192 * 4, 16 * 64 * 192 * 4


def test_a_forward_launch_has_the_bytes_and_multiply_adds_counted_by_hand(model, convolution):
    work = model.work_of(convolution["forward"])
    assert work.launch.kernel.name == "conv2d_forward_128x64_vector"
    assert work.least == X + WEIGHT + BIAS + Y
    assert (work.extra, work.path) == (0, "fp32")
    assert work.flops == work.issued == 2 * 1024 * 192 * 288
    # 3 tiles of 64 filters read all pixels, 8 tiles of 128 pixels all filters; each over K = 288
    assert work.l2 == 4 * 288 * (3 * 1024 + 8 * 192) + BIAS + Y


def test_an_operand_is_read_again_if_both_do_not_fit_in_l2(model, convolution):
    work = model.work_of(convolution["forward"])
    small = replace(chip_of(Card(80, 1)), l2_size=X + WEIGHT)  # runs few of the 24 blocks at once
    assert work.memory(small) == work.least
    small = replace(small, l2_size=X + WEIGHT - 1)
    assert work.memory(small) == work.least + 2 * X  # three rows of the grid


def test_blocks_that_run_at_once_share_what_they_read(model, convolution):
    work = model.work_of(convolution["forward"])
    (held,) = {work.load(chip_of(Card(80, count))).resident for count in (1, 24)}
    for multiprocessors, again in ((24, 0), (24 // held, 0), (24 // held - 1, 1)):
        chip = replace(chip_of(Card(80, multiprocessors)), l2_size=1)
        assert work.memory(chip) == work.least + again * X


def test_a_tensor_core_launch_has_its_type_and_the_tile_of_its_defines(model):
    gpucnn.set_float32_precision("high")  # as cards with TF32 do by themselves
    x, weight = zeros(16, 8, 8, 32), zeros(192, 3, 3, 32)
    (launch,) = recorded(lambda: ops.conv2d(x, weight, padding=1))
    work = model.work_of(launch)
    assert (work.name, work.path) == ("conv2d_forward_tensor", "tf32")
    rows, columns = (dict(launch.defines)[name] for name in ("TILE_M", "TILE_N"))
    assert work.l2 == 4 * 288 * (1024 * 192 // columns + 192 * 1024 // rows) + Y
    assert work.flops == work.issued == 2 * 1024 * 192 * 288


def test_padding_of_ragged_tiles_is_issued_and_not_counted_as_work(model):
    x, weight = zeros(1, 8, 8, 12), zeros(80, 1, 1, 12)
    (launch,) = recorded(lambda: ops.conv2d(x, weight))
    work = model.work_of(launch)
    assert work.flops == 2 * 64 * 80 * 12
    assert work.issued == 2 * 128 * 128 * 16


def test_the_workspace_of_a_split_sum_is_extra_written_and_read(model, convolution):
    work = model.work_of(convolution["grad_weight"])
    assert work.launch.grid[2] == 4  # splits
    assert work.least == X + Y + WEIGHT + BIAS
    tiles = 2 * 5  # of 128 filters and 64 of K
    assert work.extra == pytest.approx(2 * 4 * tiles * 128 * 64 * 4, rel=0.05)  # and of the bias
    assert work.flops == 2 * 1024 * 192 * 288
    assert work.issued == 2 * 1024 * tiles * 128 * 64


def test_an_optimizer_moves_only_the_parameters_that_have_gradients(model):
    parameters = [zeros(100), zeros(50)]
    optimizer = optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].grad = DEVICE.xp.zeros(100, np.float32)
    (launch,) = recorded(optimizer.step)
    tables = 2 * 2 * 8
    assert model.work_of(launch).least == 5 * 4 * 100 + tables


def test_a_kernel_without_an_access_pattern_is_an_error(model, convolution):
    launch = convolution["forward"]
    unknown = replace(launch, kernel=replace(launch.kernel, name="mystery"))
    with pytest.raises(ArgumentError, match="no access pattern is known for kernel mystery"):
        model.work_of(unknown)


@pytest.mark.parametrize("kernel", cuda.kernels())
def test_the_table_has_a_line_for_every_kernel(model, kernel):
    assert any(kernel.startswith(beginning) for beginning in model.KERNELS)


def test_every_line_of_the_table_is_of_a_kernel(model):
    for beginning in model.KERNELS:
        assert any(kernel.startswith(beginning) for kernel in cuda.kernels()), beginning


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("tf32", 4), ("bf16", 2)])
def test_the_least_of_a_step_is_that_counted_by_hand(script, precision, size):
    weights, biases = [500, 25_000, 400_000, 5_000], 20 + 50 + 500 + 10
    read = 2 * sum(weights) - weights[0]  # the images need no gradient
    update = (sum(weights) + biases) * (4 + 5 * 4 + (2 if size == 2 else 0))
    convolutions = 2 * (784 + 11520) + 3 * (2880 + 3200)
    pools, winners = 2 * (11520 + 2880) + 2 * (3200 + 800), 2 * (2880 + 800)
    dense = 3 * (800 + 500) + 3 * (500 + 10)
    image = (convolutions + pools + dense) * size + winners + 2 * 10 * 4 + 784 * (1 + size)
    assert script.least_of_step("lenet", 2, precision) == 2 * image + read * size + update


def test_a_step_that_does_not_compute_in_the_precision_is_refused(script, monkeypatch):
    record = script.record
    monkeypatch.setattr(
        script, "record", lambda model, batch, _, card: record(model, batch, "fp32", card)
    )
    with pytest.raises(ArgumentError, match="computes in bf16 on sm80-108: its products take fp32"):
        script.recorded("lenet", 2, "bf16", "sm80-108")


def test_the_table_has_a_line_for_each_launch_and_its_sum(script, capsys):
    script.main(["--model", "lenet", "--batch", "2"])
    head, columns, *rows, _, total, once, least = capsys.readouterr().out.splitlines()
    assert head == "lenet, batch 2, fp32, sm90-132; MB, by a model, not measured"
    assert total.startswith(f"{len(rows)} launches ask device memory for ")
    at = columns.index("memory") - 2
    asked = sum(float(row[at : at + 8]) for row in rows)
    assert asked == pytest.approx(float(total.split()[-2]), abs=1)
    assert all(line.endswith(" x") for line in (once, least))
