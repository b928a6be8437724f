"""The operands of a product, as both kernels take them."""

from dataclasses import dataclass

import numpy as np

from gpucnn import cuda
from gpucnn.device import Array, array_module, device_of
from gpucnn.integers import ceil_div


@dataclass(frozen=True, eq=False)
class Epilogue:
    """What happens to the float32 sums before they are rounded and stored, in this order."""

    bias: Array | None = None  # (N,), added to each row
    relu: bool = False  # negative values become 0
    # (M, N) of y's dtype: y is `scale` times the sum where mask != 0, and 0 where mask == 0
    mask: Array | None = None
    scale: float = 1.0
    column_sum: bool = False  # TN only: also return the sums of a's columns (M,), float32


@dataclass(frozen=True, eq=False)
class Operands:
    form: str  # NT, NN or TN
    m: int
    n: int
    k: int
    a: Array
    b: Array
    y: Array  # (m, n)
    sums: Array | None  # (m,), the sums of a's columns
    epilogue: Epilogue

    @property
    def rows(self) -> list[int]:
        """The lengths of the rows of a and b."""
        return [self.a.shape[1], self.b.shape[1]]

    def launch(
        self,
        kernel: str,
        tile: tuple[int, int],
        threads: int,
        splits: int,
        defines: dict[str, cuda.Define],
        shared: int = 0,
    ) -> None:
        """Run `kernel` (gemm or gemm_tensor) over tiles of tile[0] rows and tile[1] columns."""
        row_tiles, column_tiles = ceil_div(self.m, tile[0]), ceil_div(self.n, tile[1])
        xp = array_module(self.a)
        tiles = row_tiles * column_tiles
        part = arrived = None
        if splits > 1:
            summed = 0 if self.sums is None else row_tiles * tile[0]
            part = xp.empty(splits * (tiles * tile[0] * tile[1] + summed), np.float32)
            arrived = cuda.counters(device_of(self.a), tiles + row_tiles)
        epilogue = self.epilogue
        bias = None if epilogue.bias is None else xp.ascontiguousarray(epilogue.bias)
        mask = None if epilogue.mask is None else xp.ascontiguousarray(epilogue.mask)
        cuda.launch(
            kernel,
            (row_tiles, column_tiles + (self.sums is not None), splits),
            threads,
            self.a,  # NT, NN: (m, k); TN: (k, m)
            self.b,  # NT: (n, k); NN, TN: (k, n)
            bias,  # (n,) or None
            mask,  # (m, n) or None
            self.y,  # (m, n)
            self.sums,  # (m,) or None
            part,  # the splits' sums
            arrived,  # (tiles + row_tiles,)
            self.m,
            self.n,
            self.k,
            splits,
            epilogue.relu,
            epilogue.scale,
            shared=shared,
            defines=defines,
        )

    def types(self, element: str) -> dict[str, cuda.Define]:
        """The defines that name the types and the form."""
        bias = self.epilogue.bias
        return {
            "ELEMENT": element,
            "RESULT": cuda.c_type(self.y.dtype),
            "BIAS": "float" if bias is None else cuda.c_type(bias.dtype),
            "FORM": self.form,
        }
