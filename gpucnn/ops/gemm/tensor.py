"""kernels/gemm_tensor.cu: products on tensor cores."""

from gpucnn import cuda
from gpucnn.cuda.tensor_plan import Plan, Product, element_of, plan
from gpucnn.device import device_of
from gpucnn.ops.gemm.operands import Operands

_MOST = 1 << 24  # numbers in a row: 32-bit offsets reach the last row of a tile


def element(operands: Operands, tf32: bool) -> str | None:
    """The kernel's ELEMENT; None if it cannot compute the product."""
    a, b = operands.a, operands.b
    name = element_of(a.dtype, tf32, cuda.card_of(device_of(a)))
    chunk = 16 // a.itemsize
    fits = all(length % chunk == 0 and length < _MOST for length in operands.rows)
    aligned = all(array.data.ptr % 16 == 0 for array in (a, b, operands.y))
    mask = operands.epilogue.mask
    return name if fits and aligned and (mask is None or mask.data.ptr % 16 == 0) else None


def choose(operands: Operands, element: str) -> Plan:
    product = Product(operands.m, operands.n, operands.k, result=operands.y.nbytes)
    return plan(product, element, cuda.card_of(device_of(operands.a)))


def run(operands: Operands, element: str) -> None:
    chosen = choose(operands, element)
    operands.launch(
        "gemm_tensor",
        (chosen.tile.m, chosen.tile.n),
        chosen.tile.threads,
        chosen.splits,
        chosen.defines(element) | operands.types(element),
        chosen.shared,
    )
