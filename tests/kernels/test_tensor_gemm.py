"""Matrix products on tensor cores and on CUDA cores: results, checked modes, splits, the plan."""

from typing import Any

import numpy as np
import pytest
from gemm_cases import FORMS, Product, excesses, planned, random_product
from tensor_cases import DEFAULT, MODES, dtype_of, host, on, plan, random_plan, seeds, tiles

import gpucnn
from gpucnn import cuda
from gpucnn.cuda import tensor_plan
from gpucnn.cuda.card import Card, card_of, set_reference_card
from gpucnn.device import Device
from gpucnn.errors import ArgumentError
from gpucnn.ops import gemm

pytestmark = pytest.mark.usefixtures("compiler", "current")

A100, H100, T4 = Card(80, 108), Card(90, 132), Card(75, 40)
QUICK = 12  # random sizes in the default run


@pytest.mark.parametrize(
    ("seed", "element"), seeds("half", QUICK) + seeds("tf32", QUICK) + seeds("bfloat16", 0)
)
def test_tensor_cores_are_right_to_two_units_for_random_sizes(
    seed: int, element: str, gpu: str
) -> None:
    rng, quick = np.random.default_rng(seed), seed < QUICK
    product = random_product(rng, element, aligned=True, rounds=quick)
    chosen = plan(DEFAULT[element]) if quick else random_plan(rng, element)
    with planned(chosen, int(rng.choice([1, 1, 2, 3, 5]))):
        found = excesses(product, rng, gpu, "gemm_tensor")
    assert max(found.values()) <= 1, (found, product)


@pytest.mark.parametrize(
    ("seed", "element"), seeds("half", QUICK) + seeds("float", QUICK) + seeds("bfloat16", 0)
)
def test_cuda_cores_are_right_to_two_units_for_random_sizes(
    seed: int, element: str, gpu: str
) -> None:
    rng = np.random.default_rng(seed)
    product = random_product(rng, element, aligned=False, rounds=seed < QUICK)
    with planned(None, int(rng.choice([1, 1, 2, 3, 5]))):
        found = excesses(product, rng, gpu)
    assert max(found.values()) <= 1, (found, product)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("element", ["float", "half"])
def test_a_product_over_nothing_is_the_epilogue_of_zeros(form: str, element: str, gpu: str) -> None:
    with planned(plan("64x64", 4), 1):
        product = Product(form, 16, 24, 0, element, "tf32" if element == "float" else element)
        found = excesses(product, np.random.default_rng(0), gpu)
    assert max(found.values()) <= 1


# --- checked modes ---


def forms() -> list[Any]:
    """Every form of each element and plan; all but one are slow."""
    return [
        pytest.param(
            *tile.values,
            form,
            marks=[] if (tile.id, form) == ("half-64x64-4", "TN") else pytest.mark.slow,
            id=f"{tile.id}-{form}",
        )
        for tile in tiles()
        for form in FORMS
    ]


@pytest.mark.parametrize("mode", [*MODES[:2], pytest.param(MODES[2], marks=pytest.mark.slow)])
@pytest.mark.parametrize(("element", "chosen", "form"), forms())
def test_no_access_is_out_of_bounds_or_races_or_conflicts(
    mode: str,
    element: str,
    chosen: tensor_plan.Plan,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    for splits in (1, 3):  # ragged tiles; the last k-tile, and with 3 splits the last split, short
        product = Product(form, 72, 200, 104, element, element)
        with planned(chosen, splits):
            found = excesses(product, rng, "cudasim", "gemm_tensor")
        assert max(found.values()) <= 1, found


@pytest.mark.slow
@pytest.mark.parametrize("mode", [*MODES[:2], "fast,schedule=highest", "fast,schedule=random:5"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("element", "size"), [("float", 200), ("float", 199), ("half", 199)])
def test_the_cuda_cores_kernel_is_clean_too(
    mode: str,
    form: str,
    element: str,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", mode)
    for splits in (1, 3):
        with planned(None, splits):
            found = excesses(Product(form, size, size, 52, element, element), rng, "cudasim")
        assert max(found.values()) <= 1, found


# --- epilogues ---


def test_relu_lets_nan_through_and_the_mask_hides_infinity(gpu: str) -> None:
    a = np.eye(16, dtype=np.float32)
    b = np.full((16, 16), -1, np.float32)
    b[0, 0], b[1, 1] = np.nan, np.inf
    given = on(gpu, a, "half"), on(gpu, b, "half")
    clipped, _ = gemm.multiply("NN", *given, np.float32, gemm.Epilogue(relu=True))
    expected = np.maximum(a @ np.where(np.isfinite(b), b, 0), 0)
    assert np.isnan(host(clipped)[:, 0]).all()  # 0 * NaN in every row
    assert (host(clipped)[2:, 2:] == expected[2:, 2:]).all()
    mask = np.zeros((16, 16), np.float32)
    mask[3, 3], mask[4, 4], mask[5, 5] = np.nan, -0.0, -2
    kept, _ = gemm.multiply(
        "NN", *given, np.float32, gemm.Epilogue(mask=on(gpu, mask, "tf32"), scale=0.5)
    )
    exact = np.zeros((16, 16), np.float32)
    exact[3, 3] = exact[5, 5] = -0.5
    np.testing.assert_array_equal(host(kept), exact)


def test_operands_of_two_dtypes_are_multiplied_in_half_precision(
    gpu: str, rng: np.random.Generator
) -> None:
    a, b = rng.standard_normal((2, 16, 16), np.float32)
    mixed, _ = gemm.multiply("NT", on(gpu, a, "half"), on(gpu, b, "tf32"), np.float32)
    both, _ = gemm.multiply("NT", on(gpu, a, "half"), on(gpu, b, "half"), np.float32)
    np.testing.assert_array_equal(host(mixed), host(both))


def test_an_operand_that_is_not_aligned_takes_the_cuda_cores(
    gpu: str, rng: np.random.Generator
) -> None:
    a = rng.standard_normal((16, 16)).astype(np.float16).astype(np.float32)
    shifted = on(gpu, np.concatenate([[0], a.ravel()]).astype(np.float32), "half")[1:]
    with cuda.count_launches() as launches:
        y, _ = gemm.multiply("NT", shifted.reshape(16, 16), on(gpu, a, "half"), np.float32)
    assert launches == {"gemm": 1}
    np.testing.assert_allclose(host(y), a @ a.T, rtol=1e-5, atol=1e-5)


def test_tf32_truncates_and_runs_only_if_allowed(gpu: str) -> None:
    a = np.full((16, 16), 1 + 2.0**-11 + 2.0**-12, np.float32)  # rounds up, truncates to 1
    b = np.eye(16, dtype=np.float32)
    given = on(gpu, a, "tf32"), on(gpu, b, "tf32")
    truncated, _ = gemm.multiply("NN", *given, np.float32, tf32=True)
    exact, _ = gemm.multiply("NN", *given, np.float32)
    np.testing.assert_array_equal(host(truncated), 1)
    np.testing.assert_array_equal(host(exact), a)


# --- splits ---


@pytest.mark.parametrize("element", ["half", "float"])
def test_the_order_of_splits_does_not_depend_on_which_is_last(
    element: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    a, b = (rng.standard_normal((40, 640), np.float32) for _ in range(2))
    stored = "tf32" if element == "float" else element
    results = []
    for schedule in ("lowest", "highest", "random:1", "random:2"):
        monkeypatch.setenv("GPUCNN_CUDASIM", f"fast,schedule={schedule},threads=1")
        with planned(plan("64x64", 4), 5), cuda.record_launches() as launches:
            given = on("cudasim", a, stored), on("cudasim", b, stored)
            results.append(host(gemm.multiply("NT", *given, np.float32)[0]))
        assert launches[0].grid[2] == 5
    assert all((result == results[0]).all() for result in results)


def test_counters_are_zero_after_a_split_sum_and_are_kept(
    gpu: str, rng: np.random.Generator
) -> None:
    device = Device.parse(gpu)
    product = Product("TN", 72, 72, 160, "half", "tf32")
    with planned(plan("64x64", 4), 5):
        excesses(product, rng, gpu)
    counters = cuda.counters(device, 4)
    assert not gpucnn.Tensor(counters.astype(np.int64)).numpy().any()
    assert cuda.counters(device, counters.size) is counters
    more = cuda.counters(device, counters.size + 1)
    assert more.size > counters.size
    assert cuda.counters(device, 1) is more


# --- the plan ---


def test_a_small_product_is_split_and_a_large_one_is_not() -> None:
    dense = tensor_plan.Product(128, 4096, 9216)
    large = tensor_plan.Product(16384, 4096, 4096)
    assert tensor_plan.plan(large, "half", A100).splits == 1
    assert str(tensor_plan.plan(large, "half", A100).tile) == "128x128"
    chosen = tensor_plan.plan(dense, "half", H100)
    blocks = -(-dense.rows // chosen.tile.m) * -(-dense.columns // chosen.tile.n) * chosen.splits
    assert chosen.splits > 1
    assert 132 / 2 < blocks <= 132  # device memory is the limit: no need to fill all
    assert tensor_plan.plan(dense, "half", T4).stages == 2


def test_a_plan_depends_on_the_card_and_says_why_in_a_line() -> None:
    product = tensor_plan.Product(128, 4096, 9216)
    lines = {tensor_plan.plan(product, "tf32", card).explain() for card in (A100, H100)}
    assert len(lines) == 2
    assert all("\n" not in line and "predicted" in line for line in lines)
    assert any("sm80-108" in line for line in lines)


def test_a_reference_card_decides_the_splits(rng: np.random.Generator) -> None:
    a, b = (on("cudasim", rng.standard_normal((64, 4096), np.float32), "half") for _ in range(2))
    grids = []
    try:
        for card in ("sm80-108", "sm80-2", None):
            set_reference_card(card)
            with cuda.record_launches(run=False) as launches:
                gemm.multiply("NT", a, b, np.float32)
            grids.append(launches[0].grid)
    finally:
        set_reference_card(None)
    assert grids[0][2] > grids[1][2]
    assert str(card_of(Device.parse("cudasim"))) == "sm90-132"


@pytest.mark.parametrize("name", ["", "A100", "sm80", "sm80-0", "80-108", None])
def test_a_wrong_name_of_a_card_says_what_is_expected(name: Any) -> None:
    with pytest.raises(ArgumentError, match="such as sm80-108"):
        Card.parse(name)


def test_tensor_cores_of_a_card_take_its_dtypes() -> None:
    float16, float32 = np.dtype(np.float16), np.dtype(np.float32)
    take = tensor_plan.element_of
    assert [take(float16, False, card) for card in (T4, A100)] == ["half", "half"]
    assert [take(dtype_of("bfloat16"), False, card) for card in (T4, A100)] == [None, "bfloat16"]
    assert [take(float32, True, card) for card in (T4, A100)] == [None, "tf32"]
    assert take(float32, False, A100) is None
    assert take(float16, False, Card(70, 80)) is None
