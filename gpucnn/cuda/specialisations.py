"""The sets of `defines` with which the package launches kernels: each is compiled by itself.

Tests compile every one for every architecture.  A file that is not listed has one, without defines.
"""

from collections.abc import Iterator, Mapping
from itertools import product

from gpucnn.cuda.declarations import Define, kernels

Defines = Mapping[str, Define]

_ELEMENTS = ("float", "half", "bfloat16")
_BY_ELEMENT: tuple[Defines, ...] = tuple({"X": x} for x in _ELEMENTS)
# Operands of the same type; or float images, rounded to the gradient's half precision.
_IMAGES: tuple[Defines, ...] = (
    *({"IMAGE": e, "ELEMENT": e} for e in _ELEMENTS),
    *({"IMAGE": "float", "ELEMENT": e} for e in _ELEMENTS[1:]),
)

_PRODUCTS: tuple[Defines, ...] = tuple(
    {"ELEMENT": element, "RESULT": result, "BIAS": "float", "FORM": form, "ALIGNED": aligned}
    for element in _ELEMENTS
    for result in dict.fromkeys((element, "float"))
    for form in ("NT", "NN", "TN")
    for aligned in (0, 1)
)

SPECIALISATIONS: dict[str, tuple[Defines, ...]] = {
    "activation.cu": _BY_ELEMENT,
    "augment.cu": _BY_ELEMENT,
    "batch_norm.cu": _BY_ELEMENT,
    "conv2d_grad_weight.cu": _IMAGES,
    "conv2d_grad_weight_narrow.cu": _IMAGES,
    "conv2d_grad_weight_plain.cu": _IMAGES,
    "cross_entropy.cu": (
        {"X": "float", "GRADIENT": "float"},
        {"X": "half", "GRADIENT": "float"},
        {"X": "bfloat16", "GRADIENT": "float"},
        {"X": "bfloat16", "GRADIENT": "bfloat16"},
    ),
    "dropout.cu": _BY_ELEMENT,
    "gemm.cu": _PRODUCTS,
    "group_norm.cu": _BY_ELEMENT,
    "interpolate.cu": _BY_ELEMENT,
    "local_response_norm.cu": _BY_ELEMENT,
    "pool2d.cu": tuple(
        {"X": x, "WINNER": winner} for x, winner in product(_ELEMENTS, ("uint8", "int"))
    ),
}


def specialisations() -> Iterator[tuple[str, Defines]]:
    """Every file and each of its sets of defines."""
    for file in sorted({kernel.file for kernel in kernels().values()}):
        for defines in SPECIALISATIONS.get(file, ({},)):
            yield file, defines
