import pytest

from gpucnn import optim
from gpucnn.errors import ArgumentError


def rates(schedule, steps):
    return [schedule(step) for step in range(steps)]


def test_constant_and_step():
    assert rates(optim.Constant(0.1), 2) == [0.1, 0.1]
    assert rates(optim.Step(1.0, 2, 0.5), 6) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_cosine_falls_from_lr_to_final_and_stays_there():
    cosine = optim.Cosine(1.0, 10, final=0.2)
    assert cosine(0) == 1
    assert cosine(5) == pytest.approx(0.6)
    assert cosine(10) == cosine(15) == pytest.approx(0.2)


def test_one_cycle_rises_linearly_over_a_quarter_and_falls_linearly_to_nothing():
    schedule = optim.OneCycle(0.8, 16)
    assert rates(schedule, 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    falling = [schedule(step) for step in range(4, 17)]
    assert falling == pytest.approx([0.8 * (16 - step) / 12 for step in range(4, 17)])
    assert schedule(16) == schedule(99) == 0
    assert max(rates(optim.OneCycle(0.8, 3128), 3128)) == pytest.approx(0.8)


def test_one_cycle_of_one_step_and_without_rise():
    assert optim.OneCycle(0.5, 1)(0) == 0.5
    assert rates(optim.OneCycle(1.0, 4, rise=0), 4) == pytest.approx([1, 0.75, 0.5, 0.25])


def test_warmup_scales_the_first_steps_of_any_schedule():
    assert rates(optim.Warmup(optim.Step(1.0, 3), 4), 5) == pytest.approx(
        [0.25, 0.5, 0.75, 0.1, 0.1]
    )


@pytest.mark.parametrize(
    "build",
    [
        lambda: optim.Step(1.0, 0),
        lambda: optim.Cosine(1.0, 0),
        lambda: optim.OneCycle(1.0, 0),
        lambda: optim.OneCycle(1.0, 5, rise=1.0),
        lambda: optim.Warmup(optim.Constant(1.0), 0),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ArgumentError, match="must be"):
        build()
