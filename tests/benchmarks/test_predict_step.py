"""The predicted time of a launch is that computed by hand, and every line says "predicted"."""

from dataclasses import replace
from pathlib import Path

import pytest
from scripts import load_script

from gpucnn.cuda import roofline, tensor_plan
from gpucnn.cuda.card import Card
from gpucnn.errors import ArgumentError
from gpucnn.ops.conv2d import grad_weight as conv2d_grad_weight
from gpucnn.ops.conv2d import tensor as conv2d_tensor
from gpucnn.ops.gemm import tensor as gemm_tensor

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield load_script(FOLDER / "predict_step.py")


@pytest.fixture(scope="module")
def works(script):
    return script.recorded("alexnet_cifar10", 128, "fp32", "sm90-132")


@pytest.fixture
def card(script):
    """Ten multiprocessors with easy numbers; memory and L2 are never the limit."""
    peaks = {"fp32": 1e12, "bf16": 1e13}
    return roofline.Chip("easy", Card(80, 10), 1e18, 1e18, 1 << 30, 1e18, peaks, 0.5)


@pytest.fixture
def product(works):
    """A launch of 128 x 128 tiles, 256 threads, two blocks a multiprocessor."""
    return next(work for work in works if work.name == "conv2d_forward_128x128_vector")


def on_grid(product, blocks):
    """`product` with this many blocks of a million operations each."""
    launch = replace(product.launch, grid=(blocks, 1, 1))
    return replace(product, launch=launch, blocks=blocks, issued=blocks * 1_000_000)


def test_the_step_has_the_operations_that_were_counted_by_hand(works):
    convolutions = [1024 * 3 * 64, 256 * 64 * 192, 64 * 192 * 384, 64 * 384 * 256, 64 * 256 * 256]
    layers = [9 * size for size in convolutions] + [4096 * 1024, 1024 * 1024, 1024 * 10]
    assert sum(work.flops for work in works) == 2 * 128 * (3 * sum(layers) - layers[0])


def test_full_waves_run_at_the_reach_of_the_peak(script, card, product):
    each = 1e6 / (1e12 * 0.84 / 10)
    assert script.launch_time(on_grid(product, 20), card) == roofline.Time(
        pytest.approx(roofline.RAMP + 2 * each), "math"
    )
    assert script.launch_time(on_grid(product, 200), card).seconds == pytest.approx(
        roofline.RAMP + 20 * each
    )


def test_a_kernel_reaches_the_share_of_multiply_adds_in_its_loop(script, card, product):
    work = on_grid(product, 200)
    few = replace(work, name="conv2d_forward_128x64_few")
    ramp = roofline.RAMP
    assert (script.launch_time(few, card).seconds - ramp) * 0.75 == pytest.approx(
        (script.launch_time(work, card).seconds - ramp) * 0.84
    )


def test_a_tail_lasts_as_long_as_a_block_on_every_multiprocessor(script, card, product):
    seconds = {n: script.launch_time(on_grid(product, n), card).seconds for n in range(20, 42)}
    assert seconds[20] < seconds[21] == pytest.approx(seconds[30])
    assert seconds[30] < seconds[31] == pytest.approx(seconds[40])
    assert seconds[40] < seconds[41]


def test_a_multiprocessor_with_one_warp_a_scheduler_is_slower(script, card, product):
    def alone(threads):
        work = on_grid(product, 10)
        return script.launch_time(
            replace(work, launch=replace(work.launch, block=(threads, 1, 1))), card
        ).seconds - roofline.RAMP  # fmt: skip

    assert alone(128) == pytest.approx(alone(256) / 0.75)


def test_tensor_cores_have_their_own_peak_and_reach(script, card, product):
    work = replace(on_grid(product, 200), path="bf16")
    assert script.launch_time(work, card).seconds == pytest.approx(
        roofline.RAMP + 200 * 1e6 / (1e13 * 0.5)
    )
    with pytest.raises(ArgumentError, match="easy has no tensor cores for tf32"):
        script.launch_time(replace(work, path="tf32"), card)


@pytest.mark.parametrize("name", ["T4", "A100", "H100"])
def test_the_optimizer_takes_its_bytes_over_the_bandwidth(script, works, name):
    card = script.CARDS[name]
    (step,) = [work for work in works if work.name == "sgd_step"]
    size = 5 * 4 * 7_506_762 + 2 * 16 * 8  # and where the 16 parameters start and end
    assert script.launch_time(step, card) == roofline.Time(
        pytest.approx(roofline.RAMP + size / (card.bandwidth * roofline.MEMORY)), "memory"
    )


def test_an_eager_step_lasts_as_long_as_the_host_and_a_graph_does_not(script):
    times = [roofline.Time(5e-6, "memory")] * 10
    assert script.step_seconds(times, host=0) == pytest.approx(10 * (5e-6 + script.GAP))
    assert script.step_seconds(times, host=30e-6) == pytest.approx(300e-6)
    assert script.step_seconds(times, host=1e-6) == script.step_seconds(times, host=0)


def test_no_card_is_predicted_to_beat_its_peak(script, works):
    for card in script.CARDS.values():
        times = [script.launch_time(work, card) for work in works]
        least = sum(work.flops for work in works) / card.peaks["fp32"]
        assert least < script.step_seconds(times, 0) < 3 * least


@pytest.mark.parametrize(
    ("name", "precision"), [("H100", "bf16"), ("A100", "tf32"), ("T4", "fp16")]
)
def test_a_plan_expects_the_time_that_is_predicted_of_its_launch(
    script, monkeypatch, name, precision
):
    """So the plan with the least time is that with the least predicted time.

    A plan knows neither masks nor sums for biases: their bytes make up the difference.
    """
    chip, expected = script.CARDS[name], []

    def noted(product, element, card, tiles=tensor_plan.TILES):
        chosen = tensor_plan.plan(product, element, card, tiles)
        load = tensor_plan.load_of(
            product, element, chosen.tile, chosen.stages, chosen.splits, card
        )
        expected.append(roofline.time_of(load, chip).seconds)
        return chosen

    for module in (conv2d_tensor, conv2d_grad_weight, gemm_tensor):
        monkeypatch.setattr(module, "plan", noted)
    for planner in ("forward_plan", "grad_input_plan"):  # without their caches
        monkeypatch.setattr(conv2d_tensor, planner, getattr(conv2d_tensor, planner).__wrapped__)
    works = script.recorded("alexnet_cifar10", 128, precision, str(chip.card))
    products = [work for work in works if "_tensor" in work.name]
    assert len(products) > 15
    expected = expected[len(expected) // 2 :]  # of the second of two steps
    for work, seconds in zip(products, expected, strict=True):
        names = [parameter.name for parameter in work.launch.kernel.parameters]
        unknown = sum(
            value.nbytes
            for name, value in zip(names, work.launch.values, strict=True)
            if name in ("bias", "mask", "sums", "dbias") and hasattr(value, "shape")
        )
        most = seconds + unknown / (chip.bandwidth * roofline.MEMORY)
        assert 0.999 * seconds <= script.launch_time(work, chip).seconds <= 1.005 * most


def test_every_line_of_the_script_says_predicted(script, capsys):
    script.main("--model lenet --batch 8 --card H100 --card T4 --graph".split())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert all(line.startswith("predicted") for line in lines)
    assert "on H100" in lines[-2]
    assert "on T4" in lines[-1]
    assert all("(one graph)" in line for line in lines[-2:])
