"""How the ops of a tape become ONNX nodes: OPS has an entry for each."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.device import CPU, to_device
from gpucnn.errors import ArgumentError
from gpucnn.interop.onnx_graph import Graph
from gpucnn.ops.geometry import Geometry
from gpucnn.tensor import Tensor

Emit = Callable[[Graph, Any], tuple[str, str]]


def _unary(op: str, **renamed: str) -> Emit:
    """An elementwise op: the layout of its input does not matter."""

    def emit(graph: Graph, node: Any) -> tuple[str, str]:
        layout = graph.layout(node.inputs[0])
        attributes = {key: getattr(node, name) for key, name in renamed.items()}
        return layout, graph.add(op, [graph.get(node.inputs[0], layout)], **attributes)

    return emit


def _binary(op: str) -> Emit:
    """An op with two operands that broadcast.  Operands of one shape may stay in nchw."""

    def emit(graph: Graph, node: Any) -> tuple[str, str]:
        tensors = [operand for operand in node.inputs if isinstance(operand, Tensor)]
        same = len({operand.shape for operand in tensors}) == 1
        layout = graph.layout(tensors[0]) if same else ""
        names = [
            graph.get(operand, layout) if isinstance(operand, Tensor) else graph.get(operand)
            for operand in node.inputs
        ]
        return layout, graph.add(op, names)

    return emit


def _along(op: str) -> Emit:
    """An op along node.axis, in gpucnn's own layout."""

    def emit(graph: Graph, node: Any) -> tuple[str, str]:
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


def _then_relu(graph: Graph, node: Any, result: str) -> str:
    """The result, after the ReLU if one is fused into the node."""
    return graph.add("Relu", [result]) if node.relu else result


def _conv2d(graph: Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    names = [graph.get(x, "nchw"), graph.get(weight, "nchw")]
    if bias is not None:
        names.append(graph.get(bias))
    geometry = _geometry(node.geometry, dilation=True)
    result = graph.add("Conv", names, group=node.geometry.groups, **geometry)
    result = _then_relu(graph, node, result)
    if node.pool is not None:
        result = graph.add("MaxPool", [result], **_geometry(node.pool, dilation=False))
    return "nchw", result


def _conv_transpose2d(graph: Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    g = node.geometry
    names = [graph.get(x, "nchw"), graph.get(weight, "nchw")]
    if bias is not None:
        names.append(graph.get(bias))
    covered = (
        (g.oh - 1) * g.stride_h + (g.kh - 1) * g.dilation_h + 1 - g.top - g.bottom,
        (g.ow - 1) * g.stride_w + (g.kw - 1) * g.dilation_w + 1 - g.left - g.right,
    )
    return "nchw", graph.add(
        "ConvTranspose",
        names,
        group=g.groups,
        output_padding=[g.h - covered[0], g.w - covered[1]],
        **_geometry(g, dilation=True),
    )


def _interpolate(graph: Graph, node: Any) -> tuple[str, str]:
    g, scales = node.resize, node.scales
    coordinates = ("asymmetric", "half_pixel", "align_corners")[g.mode]
    by_size = all(
        abs(s * o - n) < 1e-6 for s, o, n in zip(scales, (g.oh, g.ow), (g.h, g.w), strict=True)
    )
    x = graph.get(node.inputs[0], "nchw")
    if by_size or g.mode == 2:
        sizes = [graph.add("Shape", [x], end=2), graph.constant(np.array([g.oh, g.ow], np.int64))]
        given = ["", "", graph.add("Concat", sizes, axis=0)]
    else:  # the scale is not that of the sizes, because those were rounded down
        given = ["", graph.constant(np.array([1, 1, *(1 / s for s in scales)], np.float32))]
    return "nchw", graph.add(  # onnxruntime 1.32 mistakes axes after a Transpose
        "Resize",
        [x, *given],
        mode="linear" if g.mode else "nearest",
        nearest_mode="floor",
        coordinate_transformation_mode=coordinates,
    )


def _max_pool2d(graph: Graph, node: Any) -> tuple[str, str]:
    x = graph.get(node.inputs[0], "nchw")
    return "nchw", graph.add("MaxPool", [x], **_geometry(node.geometry, dilation=False))


def _avg_pool2d(graph: Graph, node: Any) -> tuple[str, str]:
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


def _global_avg_pool2d(graph: Graph, node: Any) -> tuple[str, str]:
    pooled = graph.add("GlobalAveragePool", [graph.get(node.inputs[0], "nchw")])
    return "", graph.add("Flatten", [pooled], axis=1)


def _adaptive_avg_pool2d(graph: Graph, node: Any) -> tuple[str, str]:
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


def _batch_norm(graph: Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    if x.ndim not in (2, 4):
        raise ArgumentError(
            f"export_onnx: batch_norm of shape {x.shape}; expected (N, C) or (N, H, W, C)"
        )
    layout = "nchw" if x.ndim == 4 else ""
    statistics = [graph.constant(to_device(array, CPU)) for array in (node.mean, node.var)]
    names = [graph.get(x, layout), graph.get(weight), graph.get(bias), *statistics]
    result = graph.add("BatchNormalization", names, epsilon=node.eps)
    return layout, _then_relu(graph, node, result)


def _layer_norm(graph: Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    axes = node.normalized_axes
    shape = x.shape[x.ndim - axes :]
    names = [graph.get(x), graph.constant(np.ones(shape, np.float32))]
    if weight is not None:
        names[1] = graph.get(weight)
    if bias is not None:
        names.append(graph.get(bias))
    return "", graph.add("LayerNormalization", names, axis=-axes, epsilon=node.eps)


def _group_norm(graph: Graph, node: Any) -> tuple[str, str]:
    """As an instance normalisation of the groups: opset 20 has no other one with channel scales."""
    x, *parameters = node.inputs
    if x.ndim not in (2, 4):
        raise ArgumentError(
            f"export_onnx: group_norm of shape {x.shape}; expected (N, C) or (N, H, W, C)"
        )
    layout, groups = "nchw" if x.ndim == 4 else "", node.groups
    sizes = [0, x.shape[-1], *x.shape[1:-1]]
    by_group = graph.constant(np.array([0, groups, -1], np.int64))
    names = [graph.add("Reshape", [graph.get(x, layout), by_group])]
    names += [graph.constant(make(groups, np.float32)) for make in (np.ones, np.zeros)]
    result = graph.add("InstanceNormalization", names, epsilon=node.eps)
    result = graph.add("Reshape", [result, graph.constant(np.array(sizes, np.int64))])
    shape = graph.constant(np.array([-1, *[1] * (x.ndim - 2)], np.int64))
    for op, parameter in zip(("Mul", "Add"), parameters, strict=True):
        if parameter is not None:
            along = graph.add("Reshape", [graph.get(parameter), shape])
            result = graph.add(op, [result, along])
    return layout, result


def _local_response_norm(graph: Graph, node: Any) -> tuple[str, str]:
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


def _linear(graph: Graph, node: Any) -> tuple[str, str]:
    x, weight, bias = node.inputs
    names = [graph.get(x), graph.get(weight)]
    if x.ndim == 2:
        names += [] if bias is None else [graph.get(bias)]
        return "", _then_relu(graph, node, graph.add("Gemm", names, transB=1))
    names[1] = graph.add("Transpose", [names[1]], perm=[1, 0])
    product = graph.add("MatMul", names)
    if bias is not None:
        product = graph.add("Add", [product, graph.get(bias)])
    return "", _then_relu(graph, node, product)


def _matmul(graph: Graph, node: Any) -> tuple[str, str]:
    return "", graph.add("MatMul", [graph.get(operand) for operand in node.inputs])


def _reshape(graph: Graph, node: Any) -> tuple[str, str]:
    x, shape = node.inputs[0], list(node.shape)
    if x.ndim and shape and x.shape[0] == shape[0]:
        shape[0] = 0  # 0 copies the input's size: any batch size will do
    name = graph.constant(np.array(shape, np.int64))
    return "", graph.add("Reshape", [graph.get(x), name])


def _transpose(graph: Graph, node: Any) -> tuple[str, str]:
    return "", graph.add("Transpose", [graph.get(node.inputs[0])], perm=list(node.axes))


def _pad(graph: Graph, node: Any) -> tuple[str, str]:
    before, after = zip(*node.widths, strict=True)
    widths = graph.constant(np.array([*before, *after], np.int64))
    return "", graph.add("Pad", [graph.get(node.inputs[0]), widths, graph.get(float(node.value))])


def _power(graph: Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    names = [graph.get(node.inputs[0], layout), graph.get(float(node.exponent))]
    return layout, graph.add("Pow", names)


def _gelu(graph: Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    x = graph.get(node.inputs[0], layout)
    return layout, graph.add("Gelu", [x], approximate=node.approximate)


def _silu(graph: Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    x = graph.get(node.inputs[0], layout)
    return layout, graph.add("Mul", [x, graph.add("Sigmoid", [x])])


def _softplus(graph: Graph, node: Any) -> tuple[str, str]:
    layout = graph.layout(node.inputs[0])
    x, beta = graph.get(node.inputs[0], layout), graph.get(float(node.beta))
    return layout, graph.add("Div", [graph.add("Softplus", [graph.add("Mul", [x, beta])]), beta])


OPS: dict[str, Emit] = {
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "add": _binary("Add"),
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "concatenate": _along("Concat"),
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "divide": _binary("Div"),
    "exp": _unary("Exp"),
    "gelu": _gelu,
    "global_avg_pool2d": _global_avg_pool2d,
    "group_norm": _group_norm,
    "interpolate": _interpolate,
    "layer_norm": _layer_norm,
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
    "silu": _silu,
    "softmax": _along("Softmax"),
    "softplus": _softplus,
    "sqrt": _unary("Sqrt"),
    "subtract": _binary("Sub"),
    "tanh": _unary("Tanh"),
    "transpose": _transpose,
}
