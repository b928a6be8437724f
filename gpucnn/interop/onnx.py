"""ONNX export: translate the tape of one forward pass.

The model runs once on zeros.  The tape then holds every op with its inputs and settings, and each
becomes one or more ONNX nodes.  So any forward method that uses only the ops in OPS, and does not
branch on values, can be exported.

ONNX images are (N, C, H, W).  A value keeps the layout in which it was computed, and is transposed
only for an op that needs the other one.  A convolutional network thus starts with one Transpose
node and has another one before its linear layers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn._version import __version__
from gpucnn.autograd import enable_grad, tape
from gpucnn.device import CPU, Array, to_device
from gpucnn.errors import ArgumentError, missing_extra
from gpucnn.files import write_whole
from gpucnn.interop.onnx_graph import Graph
from gpucnn.interop.onnx_ops import OPS
from gpucnn.nn import Module
from gpucnn.precision import autocast
from gpucnn.tensor import Tensor
from gpucnn.watching import Watcher, watching

OPSET = 20  # the first one with Gelu
_IR_VERSION = 9  # released with that opset; older runtimes read it too


def export_onnx(
    model: Module,
    path: str | Path,
    input_shape: Sequence[int],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model`, in evaluation mode, to `path` as an ONNX file of opset 20.

    input_shape is the shape of one example: (H, W, C) for images, (features,) for vectors.  The
    graph's input "input" is float32 (N, *input_shape), channels last as in gpucnn, for any N; its
    output is "output".  metadata becomes the file's metadata properties.  The model's mode and
    running statistics are unchanged afterwards.

    Raises ArgumentError if the model uses an op that this module cannot translate or its output
    does not depend on its input; OutputError if the file cannot be written; MissingExtra without
    the package onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("export_onnx", "onnx", "onnx") from error
    exported = _to_onnx(onnx, model, tuple(input_shape), metadata or {})
    write_whole(path, exported.SerializeToString())


def _to_onnx(
    onnx: Any, model: Module, input_shape: tuple[int, ...], metadata: Mapping[str, str]
) -> Any:
    x, y = _trace(model, input_shape)
    named = [*model.named_parameters(), *model.named_buffers()]
    graph = Graph({id(value): name for name, value in named})
    graph.names[id(x)] = {"": "input"}
    for node in reversed(tape(y)):
        if node.name not in OPS:
            raise ArgumentError(
                f"export_onnx: cannot translate the op {node.name!r}\n"
                f"  expected one of {', '.join(sorted(OPS))}"
            )
        layout, name = OPS[node.name](graph, node)
        graph.names[id(node)] = {layout: name}
    graph.add("Identity", [graph.get(y)], output="output")

    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    result = helper.make_model(
        helper.make_graph(
            [
                helper.make_node(op, inputs, [output], output, **attributes)
                for op, inputs, output, attributes in graph.nodes
            ],
            type(model).__name__,
            [helper.make_tensor_value_info("input", kind, ["N", *input_shape])],
            [helper.make_tensor_value_info("output", kind, ["N", *y.shape[1:]])],
            [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="gpucnn",
        producer_version=__version__,
    )
    helper.set_model_props(result, dict(metadata))
    onnx.checker.check_model(result)
    return result


# --- the tape ---


def _trace(model: Module, input_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Input and output of one recorded forward pass on zeros, in evaluation mode."""
    device = next((parameter.device for parameter in model.parameters()), CPU)
    zeros = to_device(np.zeros((1, *input_shape), np.float32), device)
    x = Tensor(zeros, requires_grad=True)  # puts every op on the tape
    with (
        model.evaluating(),
        enable_grad(),
        autocast("float16", enabled=False),
        watching(_Unrecorded(x)),
    ):
        y = model(x)  # in float32: what autocast converts would be part of the file
    if not isinstance(y, Tensor) or y.is_leaf:
        raise ArgumentError("export_onnx: the model's output does not depend on its input")
    return x, y


class _Unrecorded(Watcher):
    """Refuses ops whose result would be a constant of the file, such as comparisons."""

    def __init__(self, x: Tensor) -> None:
        self._x = x

    def forward(self, node: Any, inputs: tuple[Any, ...], y: Array) -> None:
        tensors = [operand for operand in inputs if isinstance(operand, Tensor)]
        if not any(node.needs) and any(t is self._x or not t.is_leaf for t in tensors):
            raise ArgumentError(
                f"export_onnx: cannot translate the op {node.name!r}\n"
                "  its result has no gradient: in the file it would be the same for every input"
            )
