"""The graph of an ONNX file under construction: nodes, constants, and the names of values."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpucnn.device import CPU, Array, to_device
from gpucnn.tensor import Tensor

_LAYOUTS = {"nchw": (0, 3, 1, 2), "nhwc": (0, 2, 3, 1)}  # permutations from the other layout


@dataclass
class Graph:
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
