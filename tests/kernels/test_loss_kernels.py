"""The loss kernels where shapes and labels are unusual."""

import numpy as np
import pytest
from kernel_cases import error_beside_cpu, on_gpu

from gpucnn import ops

pytestmark = pytest.mark.usefixtures("compiler")


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (300, 2), (7, 1000), (2, 3, 5)])
def test_any_number_of_rows_and_classes_agrees_with_the_cpu(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    labels = rng.integers(0, shape[-1], shape[:-1])
    logits = rng.standard_normal(shape) * 5
    assert error_beside_cpu(lambda _, t: ops.softmax_cross_entropy(t, labels), logits) <= 2e-6


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4, 9e3]])
    assert error_beside_cpu(lambda _, t: ops.softmax_cross_entropy(t, [2]), logits) <= 2e-6


@pytest.mark.parametrize("label", [-1, 3, 1 << 40])
def test_a_label_that_is_no_class_makes_the_loss_nan_and_touches_no_memory(
    label: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setenv("GPUCNN_CUDASIM", "address")
    logits = on_gpu(rng.standard_normal((4, 3), np.float32), gradient=True)
    labels = on_gpu(np.array([0, 1, label, 2]))
    weights = on_gpu(np.ones(3, np.float32))
    assert np.isnan(ops.softmax_cross_entropy(logits, labels, 0.1, weights).numpy())


def test_a_gradient_that_is_not_one_scales_the_result(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((5, 4))
    labels = rng.integers(0, 4, 5)
    assert error_beside_cpu(lambda _, t: ops.softmax_cross_entropy(t, labels) * 3.0, logits) <= 2e-6
