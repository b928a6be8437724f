"""Matrix products on a GPU, by kernels of our own: they fuse what follows a product, and CuPy can
capture them in a CUDA graph, unlike products of cuBLAS.

product     the product, its epilogue, and which kernel computes it
tensor      kernels/gemm_tensor.cu, on tensor cores
plain       kernels/gemm.cu, for any size and alignment
"""

from gpucnn.ops.gemm.operands import Epilogue
from gpucnn.ops.gemm.product import multiply

__all__ = ["Epilogue", "multiply"]
