"""Declarations and sources of kernels: parsed, assembled, and every kernel has a caller."""

import re

import numpy as np
import pytest

from gpucnn import cuda
from gpucnn.cuda import declarations
from gpucnn.cuda.declarations import callers
from gpucnn.errors import ArgumentError
from gpucnn.precision import bfloat16


def test_declarations_give_names_types_and_lines(files):
    found = cuda.kernels()
    assert "commented_out" not in found
    scale = found["scale"]
    assert (scale.file, scale.line) == ("outer.cu", 2)
    assert [(p.name, p.kind, p.pointer, p.const) for p in scale.parameters] == [
        ("x", "float", True, True),
        ("y", "float", True, False),
        ("factor", "float", False, False),
        ("n", "int", False, False),
    ]
    assert [str(p.dtype({})) for p in found["bounded"].parameters] == ["uint8", "int64", "uint64"]
    assert found["bounded"].bound == "THREADS"
    assert found["geometry"].parameters[1].dtype({}) is None
    assert found["wide"].wide
    assert not found["narrow"].wide


def test_assembled_source_has_each_header_once_and_true_line_numbers(files):
    (files / "outer.cu").write_text(
        '#include "inner.cuh"\n#include "ptx.cuh"\n#include "inner.cuh"\nint last;\n'
    )
    lines = cuda.assemble("outer.cu", {"ptx.cuh": "replaced"}, "/folder/").splitlines()
    assert lines.count("struct Geometry {") == 1
    assert "replaced" in lines
    assert lines[lines.index("int last;") - 1] == '#line 4 "/folder/outer.cu"'
    assert lines[lines.index("struct Geometry {") - 1] == '#line 1 "/folder/inner.cuh"'


def test_every_kernel_of_the_package_has_parameters_that_launch_can_cast():
    cuda.kernels.cache_clear()
    for kernel in cuda.kernels().values():
        assert kernel.parameters, kernel.name
        for parameter in kernel.parameters:
            struct = re.search(rf"struct\s+{parameter.kind}\b", cuda.assemble(kernel.file))
            assert parameter.dtype({}) is not None or struct, (kernel.name, parameter)


def test_a_type_may_be_a_macro_of_the_file_or_of_the_launch():
    (typed,) = declarations.declarations(
        "typed.cu",
        '#ifndef X\n#define X float\n#endif\nextern "C" __global__ void typed(const X* x, Y* y) {}',
    )
    x, y = typed.parameters
    assert (x.kind, x.dtype({})) == ("X", np.float32)
    assert x.dtype({"X": "half"}) == np.float16
    assert x.dtype({"X": "bfloat16"}) == bfloat16()
    assert x.dtype({"X": "tf32"}) == np.float32
    assert y.dtype({}) is None  # a struct, as far as the file says


def test_an_unknown_kernel_is_named():
    with pytest.raises(ArgumentError, match="no kernel 'conv3d'"):
        cuda.kernel("conv3d")


def test_two_kernels_of_one_name_are_refused(files):
    (files / "second.cu").write_text((files / "outer.cu").read_text())
    with pytest.raises(ArgumentError, match=r"declared twice: in outer\.cu and second\.cu"):
        cuda.kernels()


# --- callers ---


def test_every_kernel_of_the_package_has_a_caller():
    cuda.kernels.cache_clear()
    assert [name for name in cuda.kernels() if not callers(name)] == []


@pytest.mark.parametrize(
    ("call", "launched"),
    [
        ('cuda.launch("scale", 1, 32, x)', {"scale"}),
        ('cuda.launch_elementwise(\n    "scale", x.size, x)', {"scale"}),
        ('cuda.launch(f"scale_{kind}", 1, 32, x)', {"scale_up", "scale_down"}),
        ('cuda.launch("scale_", 1, 32, x)', set()),
        ('names = "scale"', set()),
    ],
)
def test_a_caller_launches_by_name_or_by_the_prefix_of_a_formatted_name(
    monkeypatch, tmp_path, call, launched
):
    (tmp_path / "ops" / "conv2d").mkdir(parents=True)
    (tmp_path / "ops" / "conv2d" / "cuda.py").write_text(f"{call}\n")
    monkeypatch.setattr(declarations, "_PACKAGE", tmp_path)
    found = {name for name in ("scale", "scale_up", "scale_down", "scaled") if callers(name)}
    assert found == launched
    assert all(callers(name) == ["gpucnn/ops/conv2d/cuda.py"] for name in launched)


def test_a_folder_with_any_characters_is_quoted_as_in_a_string_literal():
    source = declarations.assemble("pool2d.cu", folder='a "b"\n\\/')
    assert '#line 1 "a \\"b\\"\\n\\\\/pool2d.cu"\n' in source
