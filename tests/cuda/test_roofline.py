"""The model of a launch's time gives the times computed by hand, and every card has a chip."""

from dataclasses import replace

import pytest

from gpucnn.cuda.card import Card
from gpucnn.cuda.roofline import (
    CHIPS,
    L2,
    MEMORY,
    RAMP,
    Chip,
    Load,
    Tiling,
    chip_of,
    memory_of,
    resident,
    time_of,
)
from gpucnn.cuda.tensor_plan import PATHS, TILES, Product, load_of, plan
from gpucnn.errors import ArgumentError

# Ten multiprocessors with easy numbers; a block's time is math's unless a test says otherwise
EASY = Chip("easy", Card(80, 10), 1e18, 1e18, 1 << 30, 1e18, {"bf16": 1e12}, 0.5)
PRODUCT = Load(0, 0, "bf16", issued=20e6, blocks=20, threads=128, resident=2)


def seconds(load: Load, chip: Chip = EASY) -> float:
    return time_of(load, chip).seconds - RAMP


def test_math_takes_as_long_as_the_busiest_multiprocessor() -> None:
    one = 1e6 / (1e12 * 0.5 / 10)
    assert seconds(PRODUCT) == pytest.approx(2 * one)
    assert seconds(replace(PRODUCT, blocks=21, issued=21e6)) == pytest.approx((2 + 1 / 0.75) * one)
    assert seconds(replace(PRODUCT, blocks=1, issued=1e6)) == pytest.approx(one / 0.75)
    assert seconds(replace(PRODUCT, reach=1.0)) == pytest.approx(one)


def test_each_time_can_be_the_longest() -> None:
    slow = replace(EASY, bandwidth=1e9, l2_bandwidth=1e9, clock=1e6)
    bounds = {
        "memory": (replace(PRODUCT, memory=1e6), 1e-3 / MEMORY),
        "L2": (replace(PRODUCT, l2=1e6), 1e-3 / L2),
        "shared": (replace(PRODUCT, shared=20 * 128e3), 2 * 1e-3),
        "math": (PRODUCT, 2 * 2e-5),
    }
    for bound, (load, expected) in bounds.items():
        assert time_of(load, slow).bound == bound
        assert seconds(load, slow) == pytest.approx(expected)


def test_blocks_that_meet_take_one_more_ramp() -> None:
    assert seconds(replace(PRODUCT, meets=True)) == pytest.approx(seconds(PRODUCT) + RAMP)


def test_a_product_with_an_unknown_grid_counts_as_full_waves() -> None:
    assert seconds(Load(0, 0, "bf16", issued=1e6)) == pytest.approx(1e6 / 0.5e12)


def test_a_path_that_the_chip_lacks_is_refused() -> None:
    with pytest.raises(ArgumentError, match="easy has no tensor cores for tf32"):
        time_of(replace(PRODUCT, path="tf32"), EASY)


def test_factors_beyond_l2_are_read_again_but_not_by_blocks_that_run_at_once() -> None:
    load = replace(PRODUCT, memory=100, factors=2 << 30, again=1000, rows=4, in_rows=100)
    assert memory_of(replace(load, factors=1 << 30), EASY) == 100
    assert memory_of(load, EASY) == 100 + 3 * 1000
    assert memory_of(replace(load, in_rows=40), EASY) == 100 + 1000
    assert memory_of(replace(load, in_rows=20), EASY) == 100


def test_a_tiling_counts_padding_as_issued_and_not_as_read() -> None:
    tiling = Tiling(100, 70, 30, 3, tile_m=64, tile_n=64, splits=2, k_padded=16)
    assert (tiling.rows, tiling.columns, tiling.blocks) == (2, 2, 24)
    assert tiling.issued == 2 * 24 * 64 * 64 * 16
    assert tiling.read(2, 4) == 3 * 30 * (100 * 2 * 2 + 70 * 2 * 4)


@pytest.mark.parametrize(
    ("card", "threads", "shared", "promised", "held"),
    [
        (Card(80, 108), 256, 0, None, 8),
        (Card(80, 108), 256, 0, 2, 2),
        (Card(75, 40), 256, 0, None, 4),
        (Card(75, 40), 128, 32 << 10, None, 2),
        (Card(80, 108), 128, 41 << 10, None, 3),  # and 1 KiB reserved for each
        (Card(80, 108), 128, 40 << 10, None, 4),
        (Card(75, 40), 128, 65 << 10, None, 1),
    ],
)
def test_a_multiprocessor_holds_what_fits(
    card: Card, threads: int, shared: int, promised: int | None, held: int
) -> None:
    assert resident(card, threads, shared, promised) == held


def test_a_card_has_the_speeds_of_its_kind_for_each_multiprocessor() -> None:
    for chip in CHIPS:
        assert chip_of(chip.card) is chip
    half = chip_of(Card(80, 54))
    assert half.name == "sm80-54"
    assert half.peaks["bf16"] == pytest.approx(156e12)
    assert half.l2_bandwidth == pytest.approx(5120 * 1.41e9 / 2)
    for sm, like in {50: 75, 70: 75, 86: 80, 89: 80, 100: 90, 103: 90, 120: 80, 121: 80}.items():
        (chip,) = (chip for chip in CHIPS if chip.card.sm == like)
        assert chip_of(Card(sm, chip.card.multiprocessors)).peaks == chip.peaks


@pytest.mark.parametrize(("card", "element"), [(chip.card, "half") for chip in CHIPS])
def test_no_other_tile_or_split_is_faster_by_the_model(card: Card, element: str) -> None:
    assert PATHS[element] in chip_of(card).peaks
    for product in (Product(128, 4096, 4096), Product(384, 1728, 8192), Product(9, 70, 100)):
        chosen = plan(product, element, card)
        least = time_of(
            load_of(product, element, chosen.tile, chosen.stages, chosen.splits, card),
            chip_of(card),
        ).seconds
        for tile in TILES:
            for splits in range(1, 1 + min(32, product.depth // 128)):
                load = load_of(product, element, tile, chosen.stages, splits, card)
                assert time_of(load, chip_of(card)).seconds >= least
