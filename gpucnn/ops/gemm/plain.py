"""kernels/gemm.cu: products on CUDA cores, of any size and alignment."""

from gpucnn import cuda
from gpucnn.device import device_of
from gpucnn.integers import ceil_div
from gpucnn.ops.gemm.operands import Operands

_TILE = (128, 64)
_MIN_SPLIT = 64  # the fewest of K that a split sums


def splits_of_k(operands: Operands) -> int:
    """Three blocks fit on a multiprocessor; two for each keep it busy while others end."""
    card = cuda.card_of(device_of(operands.a))
    blocks = ceil_div(operands.m, _TILE[0]) * ceil_div(operands.n, _TILE[1])
    return max(1, min(2 * card.multiprocessors // blocks, operands.k // _MIN_SPLIT))


def run(operands: Operands) -> None:
    whole = all(length % 4 == 0 for length in (*operands.rows, operands.n))
    arrays = [operands.a, operands.b, operands.y]
    aligned = all(array.data.ptr % (4 * array.itemsize) == 0 for array in arrays)
    defines = operands.types(cuda.c_type(operands.a.dtype))
    aligning = {"ALIGNED": int(whole and aligned)}
    operands.launch("gemm", _TILE, 128, splits_of_k(operands), defines | aligning)
