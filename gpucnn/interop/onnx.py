"""ONNX export: translate the tape of one forward pass.

The model runs once on zeros.  The tape then holds every op with its inputs and settings, and each
becomes one or more ONNX nodes.  So any forward method that uses only the ops in _OPS, and does not
branch on values, can be exported.

ONNX images are (N, C, H, W).  A value keeps the layout in which it was computed, and is transposed
only for an op that needs the other one.  A convolutional network thus starts with one Transpose
node and has another one before its linear layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn._version import __version__
from gpucnn.autograd import enable_grad, tape
from gpucnn.device import CPU, Array, to_device
from gpucnn.errors import ArgumentError, missing_extra
from gpucnn.nn import Module
from gpucnn.ops.geometry import Geometry
from gpucnn.tensor import Tensor

OPSET = 20  # the first one with Gelu
_IR_VERSION = 9  # released with that opset; older runtimes read it too
_LAYOUTS = {"nchw": (0, 3, 1, 2), "nhwc": (0, 2, 3, 1)}  # permutations from the other layout


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
    does not depend on its input, and if the file cannot be written; MissingExtra without the
    package onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("export_onnx", "onnx", "onnx") from error
    try:
        onnx.save(_to_onnx(onnx, model, tuple(input_shape), metadata or {}), str(path))
    except OSError as error:
        raise ArgumentError(f"export_onnx: {path} cannot be written ({error.strerror})") from error


def _to_onnx(
    onnx: Any, model: Module, input_shape: tuple[int, ...], metadata: Mapping[str, str]
) -> Any:
    x, y = _trace(model, input_shape)
    named = [*model.named_parameters(), *model.named_buffers()]
    graph = _Graph({id(value): name for name, value in named})
    graph.names[id(x)] = {"": "input"}
    for node in reversed(tape(y)):
        if node.name not in _OPS:
            raise ArgumentError(
                f"export_onnx: cannot translate the op {node.name!r}\n"
                f"  expected one of {', '.join(sorted(_OPS))}"
            )
        layout, name = _OPS[node.name](graph, node)
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
    with model.evaluating(), enable_grad():
        y = model(x)
    if not isinstance(y, Tensor) or y.is_leaf:
        raise ArgumentError("export_onnx: the model's output does not depend on its input")
    return x, y


# --- the graph ---


@dataclass
class _Graph:
    """The ONNX graph under construction."""

    parameters: dict[int, str]  # by id of the tensor: its name in the model
    # (op, input names, output name, attributes) of each node
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)  # by name
    # By id of the tape's node that computed the value, or of the leaf: {layout: name of the value}.
    # The layout "" is gpucnn's own, which is nhwc for images.
    names: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output, a new one if none is given."""
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append((op, inputs, output, attributes))
        return output

    def constant(self, array: Any, name: str = "") -> str:
        """Add a constant; return its name."""
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def get(self, value: Any, layout: str = "") -> str:
        """The name of `value`, a tensor or a number, in gpucnn's layout or transposed to "nchw"."""
        if not isinstance(value, Tensor):
            return self.constant(np.array(value, np.float32))
        names = self.names.setdefault(id(value if value._node is None else value._node), {})
        if layout in names:
            return names[layout]
        if not names:  # a new leaf: transpose it here rather than at run time
            array = to_device(value.data, CPU)
            name = self.parameters.get(id(value), "")
            names[layout] = self.constant(
                array.transpose(_LAYOUTS["nchw"]) if layout else array, name
            )
        else:
            other = next(iter(names.values()))
            perm = _LAYOUTS[layout or "nhwc"]
            names[layout] = self.add("Transpose", [other], perm=perm)
        return names[layout]

    def layout(self, value: Any) -> str:
        """The layout in which `value` was computed; gpucnn's own for a leaf or a number."""
        if not isinstance(value, Tensor) or value._node is None:
            return ""
        return next(iter(self.names[id(value._node)]))


_Emit = Callable[[_Graph, Any], tuple[str, str]]


def _unary(op: str, **renamed: str) -> _Emit:
    """An elementwise op: the layout of its input does not matter."""

    def emit(graph: _Graph, node: Any) -> tuple[str, str]:
        layout = graph.layout(node.inputs[0])
        attributes = {key: getattr(node, name) for key, name in renamed.items()}
        return layout, graph.add(op, [graph.get(node.inputs[0], layout)], **attributes)

    return emit


def _binary(op: str) -> _Emit:
    """An op with two operands that broadcast.  Operands of one shape may stay in nchw."""

    def emit(graph: _Graph, node: Any) -> tuple[str, str]:
        tensors = [operand for operand in node.inputs if isinstance(operand, Tensor)]
        same = len({operand.shape for operand in tensors}) == 1
        layout = graph.layout(tensors[0]) if same else ""
        names = [
            graph.get(operand, layout) if isinstance(operand, Tensor) else graph.get(operand)
            for operand in node.inputs
        ]
        return layout, graph.add(op, names)

    return emit


def _along(op: str) -> _Emit:
    """An op along node.axis, in gpucnn's own layout."""

    def emit(graph: _Graph, node: Any) -> tuple[str, str]:
        names = [graph.get(operand) for operand in node.inputs]
        return "", graph.add(op, names, axis=node.axis)

    return emit


def _geometry(g: Geometry, dilation: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kernel_shape": [g.kh, g.kw],
        "strides": [g.stride_h, g.stride_w],
        "pads": [g.top, g.left, g.bottom, g.right],
    }
    if dilation:
        attributes["dilations"] = [g.dilation_h, g.dilation_w]
    return attributes


def _conv2d(graph: _Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    names = [graph.get(x, "nchw"), graph.get(weight, "nchw")]
    if bias is not None:
        names.append(graph.get(bias))
    geometry = _geometry(node.geometry, dilation=True)
    result = graph.add("Conv", names, group=node.geometry.groups, **geometry)
    if node.relu:
        result = graph.add("Relu", [result])
    if node.pool is not None:
        result = graph.add("MaxPool", [result], **_geometry(node.pool, dilation=False))
    return "nchw", result


def _max_pool2d(graph: _Graph, node: Any) -> tuple[str, str]:
    x = graph.get(node.inputs[0], "nchw")
    return "nchw", graph.add("MaxPool", [x], **_geometry(node.geometry, dilation=False))


def _avg_pool2d(graph: _Graph, node: Any) -> tuple[str, str]:
    g, (count_include_pad, bottom, right) = node.geometry, node.area
    ceil = (g.bottom, g.right) != (bottom, right)  # ceil_mode let the last window extend
    if count_include_pad and ceil and g.padded and (g.top or g.left or bottom or right):
        raise ArgumentError(
            "export_onnx: ONNX has no avg_pool2d with padding, ceil_mode and count_include_pad\n"
            "  use count_include_pad=False, or an image size that the windows divide"
        )
    return "nchw", graph.add(
        "AveragePool",
        [graph.get(node.inputs[0], "nchw")],
        count_include_pad=int(count_include_pad and not ceil),
        **_geometry(g, dilation=False),
    )


def _global_avg_pool2d(graph: _Graph, node: Any) -> tuple[str, str]:
    pooled = graph.add("GlobalAveragePool", [graph.get(node.inputs[0], "nchw")])
    return "", graph.add("Flatten", [pooled], axis=1)


def _adaptive_avg_pool2d(graph: _Graph, node: Any) -> tuple[str, str]:
    """The mean over each window as two matrix products: over its rows, then over its columns."""
    _, h, w, _ = node.shape
    means = []
    for size, windows in ((h, node.rows), (w, node.columns)):
        means.append(np.zeros((len(windows), size), np.float32))
        for mean, window in zip(means[-1], windows, strict=True):
            mean[window] = 1 / (window.stop - window.start)
    rows, columns = graph.constant(means[0]), graph.constant(means[1].T)
    by_row = graph.add("MatMul", [rows, graph.get(node.inputs[0], "nchw")])
    return "nchw", graph.add("MatMul", [by_row, columns])


def _batch_norm(graph: _Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    if x.ndim not in (2, 4):
        raise ArgumentError(
            f"export_onnx: batch_norm of shape {x.shape}; expected (N, C) or (N, H, W, C)"
        )
    layout = "nchw" if x.ndim == 4 else ""
    statistics = [graph.constant(to_device(array, CPU)) for array in (node.mean, node.var)]
    names = [graph.get(x, layout), graph.get(weight), graph.get(bias), *statistics]
    return layout, graph.add("BatchNormalization", names, epsilon=node.eps)


def _local_response_norm(graph: _Graph, node: Any) -> tuple[str, str]:
    x = node.inputs[0]
    size, alpha, beta, k = node.constants
    if x.ndim != 4 or size % 2 == 0:
        raise ArgumentError(
            f"export_onnx: local_response_norm of shape {x.shape} over {size} channels; "
            "ONNX has it only for images and agrees only for odd sizes"
        )
    return "nchw", graph.add(  # ONNX divides alpha by size
        "LRN", [graph.get(x, "nchw")], size=size, alpha=alpha * size, beta=beta, bias=k
    )


def _linear(graph: _Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    names = [graph.get(x), graph.get(weight)]
    if x.ndim == 2:
        names += [] if bias is None else [graph.get(bias)]
        return "", graph.add("Gemm", names, transB=1)
    names[1] = graph.add("Transpose", [names[1]], perm=[1, 0])
    product = graph.add("MatMul", names)
    return "", product if bias is None else graph.add("Add", [product, graph.get(bias)])


def _matmul(graph: _Graph, node: Any) -> tuple[str, str]:
    return "", graph.add("MatMul", [graph.get(operand) for operand in node.inputs])


def _reshape(graph: _Graph, node: Any) -> tuple[str, str]:
    x, shape = node.inputs[0], list(node.shape)
    if x.ndim and shape and x.shape[0] == shape[0]:
        shape[0] = 0  # 0 copies the input's size: any batch size will do
    name = graph.constant(np.array(shape, np.int64))
    return "", graph.add("Reshape", [graph.get(x), name])


def _transpose(graph: _Graph, node: Any) -> tuple[str, str]:
    return "", graph.add("Transpose", [graph.get(node.inputs[0])], perm=list(node.axes))


def _pad(graph: _Graph, node: Any) -> tuple[str, str]:
    before, after = zip(*node.widths, strict=True)
    widths = graph.constant(np.array([*before, *after], np.int64))
    return "", graph.add("Pad", [graph.get(node.inputs[0]), widths, graph.get(float(node.value))])


def _power(graph: _Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    names = [graph.get(node.inputs[0], layout), graph.get(float(node.exponent))]
    return layout, graph.add("Pow", names)


def _gelu(graph: _Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    return layout, graph.add("Gelu", [graph.get(node.inputs[0], layout)], approximate="tanh")


_OPS: dict[str, _Emit] = {
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "add": _binary("Add"),
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "concatenate": _along("Concat"),
    "conv2d": _conv2d,
    "divide": _binary("Div"),
    "exp": _unary("Exp"),
    "gelu": _gelu,
    "global_avg_pool2d": _global_avg_pool2d,
    "leaky_relu": _unary("LeakyRelu", alpha="negative_slope"),
    "linear": _linear,
    "local_response_norm": _local_response_norm,
    "log": _unary("Log"),
    "log_softmax": _along("LogSoftmax"),
    "matmul": _matmul,
    "max_pool2d": _max_pool2d,
    "multiply": _binary("Mul"),
    "negative": _unary("Neg"),
    "pad": _pad,
    "power": _power,
    "relu": _unary("Relu"),
    "reshape": _reshape,
    "sigmoid": _unary("Sigmoid"),
    "softmax": _along("Softmax"),
    "sqrt": _unary("Sqrt"),
    "subtract": _binary("Sub"),
    "tanh": _unary("Tanh"),
    "transpose": _transpose,
}
