"""The table of seeded faults: what counts as detected, and what each line says."""

import numpy as np
import pytest
from kernel_cases import on_gpu
from seeded_faults import Fault, Table

from gpucnn import ops
from gpucnn.errors import KernelError

pytestmark = pytest.mark.usefixtures("compiler")

POSITIVE = "signs[i] > 0.0f"  # in kernels/activation.cu


def leaky_relu_is_right() -> None:
    x = on_gpu(np.zeros(5, np.float32), gradient=True)
    ops.leaky_relu(x, 0.5).backward(on_gpu(np.ones(5, np.float32)).data)
    np.testing.assert_array_equal(x.grad.get(), 0.5)


def detect(table: Table, what: str, right: str, wrong: str) -> None:
    fault = Fault(what, "activation.cu", right, wrong)
    table.detect(fault, [("a check without kernels", bool), ("gradient at 0", leaky_relu_is_right)])


def test_each_line_names_what_detected_the_fault() -> None:
    table = Table()
    detect(table, "sign of 0", POSITIVE, "signs[i] >= 0.0f")
    last, total = table.text().splitlines()[-2:]
    assert last.split(maxsplit=4)[4] == "fast  values: gradient at 0"
    assert total == "1 of 1 seeded faults detected"


def test_a_fault_that_changes_nothing_fails_and_is_in_the_table() -> None:
    table = Table()
    with pytest.raises(AssertionError, match="no fault: no check detects it"):
        detect(table, "no fault", POSITIVE, POSITIVE)
    last, total = table.text().splitlines()[-2:]
    assert last.endswith("NOT DETECTED")
    assert total == "0 of 1 seeded faults detected"


def test_a_fault_that_does_not_compile_is_not_detected() -> None:
    table = Table()
    with pytest.raises(KernelError, match="cannot compile"):
        detect(table, "syntax", POSITIVE, "signs[i] >")
    assert table.text().endswith("0 of 1 seeded faults detected")


def test_a_fault_in_text_that_the_kernel_no_longer_has_is_not_detected() -> None:
    table = Table()
    with pytest.raises(AssertionError, match="has changed: update the text"):
        detect(table, "old text", "a former kernel", "")
    assert table.text().endswith("0 of 1 seeded faults detected")


def test_a_check_that_launches_no_kernel_with_the_fault_does_not_run() -> None:
    def misled() -> None:
        raise AssertionError

    fault = Fault("sign of 0", "activation.cu", POSITIVE, "signs[i] >= 0.0f")
    with pytest.raises(AssertionError, match="no check detects it"):
        Table().detect(fault, [("a check without kernels", misled)])
