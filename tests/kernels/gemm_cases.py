"""Helpers for tests of matrix products: random operands, launches and the oracle."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
from tensor_cases import dtype_of, excess, host, on

import gpucnn
from gpucnn import cuda
from gpucnn.cuda.tensor_plan import BYTES, Plan
from gpucnn.ops import gemm
from gpucnn.ops.gemm import plain, tensor

FORMS = ("NT", "NN", "TN")


@dataclass(frozen=True)
class Product:
    """y (m, n) = A (m, k) * B (k, n) with all that the form's epilogue can do."""

    form: str
    m: int
    n: int
    k: int
    element: str  # half, bfloat16, tf32, or float: CUDA cores
    result: str  # half, bfloat16 or tf32: float32

    def operands(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A and B as float32, of values that the element represents."""
        a, b = (rng.standard_normal(s, np.float32) for s in ((self.m, self.k), (self.k, self.n)))
        if self.element == "float":
            return a, b
        if self.element == "tf32":
            mask = np.uint32(0xFFFFE000)
            return (a.view(np.uint32) & mask).view(np.float32), (b.view(np.uint32) & mask).view(
                np.float32
            )
        dtype = dtype_of(self.element)
        return a.astype(dtype).astype(np.float32), b.astype(dtype).astype(np.float32)


def random_product(rng: np.random.Generator, element: str, aligned: bool, rounds: bool) -> Product:
    """Any sizes up to a few hundred; aligned: those of tensor cores.

    rounds: the result always has the operands' dtype, which takes fewer compilations.
    """
    form = str(rng.choice(FORMS))
    m, n, k = (int(size) for size in np.exp(rng.uniform(0, np.log(300), 3)))
    if aligned:
        chunk = 16 // BYTES[element]
        if form != "NT":
            n = n // chunk * chunk + chunk
        if form == "TN":
            m = m // chunk * chunk + chunk
        else:
            k = k // chunk * chunk + chunk
    result = (
        "tf32" if element in ("tf32", "float") or (not rounds and rng.random() < 0.3) else element
    )
    return Product(form, m, n, k, element, result)


def excesses(
    product: Product, rng: np.random.Generator, device: str, kernel: str | None = None
) -> dict[str, float]:
    """The largest errors by what is allowed (at most 1 for right results); tensor_cases.excess.

    `kernel`: that kernel must have run.
    """
    a, b = product.operands(rng)
    m, n = product.m, product.n
    bias = rng.standard_normal(n, np.float32) if product.form == "NT" else None
    mask = rng.integers(-1, 2, (m, n)).astype(np.float32) if product.form == "NN" else None
    stored = "tf32" if product.element == "float" else product.element
    given_a = on(device, a.T.copy() if product.form == "TN" else a, stored)
    given_b = on(device, b.T.copy() if product.form == "NT" else b, stored)
    epilogue = gemm.Epilogue(
        bias=None if bias is None else gpucnn.tensor(bias, device).data,
        relu=product.form == "NT",
        mask=None if mask is None else on(device, mask, product.result),
        scale=0.75,
        column_sum=product.form == "TN",
    )
    with cuda.count_launches() as launches:
        y, sums = gemm.multiply(
            product.form,
            given_a,
            given_b,
            dtype_of(product.result),
            epilogue,
            tf32=product.element == "tf32",
        )
    assert kernel in (None, *launches)
    exact, sizes = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    if bias is not None:
        exact, sizes = np.maximum(exact + bias, 0), sizes + np.abs(bias)
    if mask is not None:
        exact = np.where(mask != 0, 0.75 * exact, 0)
    steps = product.k // 8 + 70  # the splits add, too
    found = {"y": excess(host(y), exact, sizes, steps, product.result)}
    if sums is not None:
        column_sizes = np.abs(a).astype(np.float64).sum(1)
        exact_sums = a.astype(np.float64).sum(1)
        found["sums"] = excess(host(sums), exact_sums, column_sizes, product.k, "tf32")
    return found


@contextmanager
def planned(chosen: Plan | None, splits: int) -> Iterator[None]:
    """Let products run with this tile and number of splits."""
    with pytest.MonkeyPatch.context() as patch:
        if chosen is not None:
            forced = Plan(chosen.tile, chosen.stages, splits, "chosen by a test")
            patch.setattr(tensor, "choose", lambda *_: forced)
        patch.setattr(plain, "splits_of_k", lambda _: splits)
        yield
