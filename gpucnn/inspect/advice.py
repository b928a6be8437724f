"""What looks wrong in a network, found from one pass of one image: no weights, no data."""

from dataclasses import dataclass
from typing import Any

from gpucnn.nn import (
    AvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    LeakyReLU,
    LocalResponseNorm,
    LogSoftmax,
    MaxPool2d,
    Module,
    ReLU,
    Reshape,
    Sigmoid,
    Softmax,
    ZeroPad2d,
)
from gpucnn.ops.geometry import Geometry
from gpucnn.tensor import Tensor

_KEEP_SIGN = (
    MaxPool2d,
    AvgPool2d,
    GlobalAvgPool2d,
    Flatten,
    Reshape,
    Dropout,
    LocalResponseNorm,
    ZeroPad2d,
)


@dataclass(frozen=True)
class Advice:
    """A warning: the layer's name, and what is wrong with it and the way out."""

    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}"


@dataclass(frozen=True, eq=False)
class Call:
    """One run of one layer without children: where its input came from, and its shape."""

    name: str
    module: Module
    source: "Call | None"  # None: the image, or something that no layer made
    input_shape: tuple[int, ...]


class Flow:
    """An observer for nn.observe that notes which layer's output went into which.

    Layers are followed by the tensors that they hand on: what a module computes between its
    layers with gpucnn.ops breaks the chain, and nothing is claimed beyond the break.
    """

    def __init__(self, model: Module) -> None:
        self.calls: list[Call] = []
        self.last: Call | None = None  # made the model's output
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._maker: dict[int, Call] = {}
        self._alive: list[Any] = []  # an id is a tensor's own only as long as the tensor lives

    def __call__(self, module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module is self._model:
            self.last = self._maker.get(id(output))
        name = self._names.get(id(module))
        if name is None or any(True for _ in module.named_children()) or not inputs:
            return
        x = inputs[0]
        shape = x.shape if isinstance(x, Tensor) else ()
        call = Call(name or type(module).__name__, module, self._maker.get(id(x)), shape)
        self.calls.append(call)
        self._maker[id(output)] = call
        self._alive += [x, output]
        if module is self._model:
            self.last = call


def advise(flow: Flow) -> tuple[Advice, ...]:
    """Everything that is wrong with the network whose pass `flow` has seen."""
    found = [advice for call in flow.calls for advice in (*_unseen(call), *_idle_relu(call))]
    return (*found, *_ending(flow.last))


def _unseen(call: Call) -> list[Advice]:
    """Rows and columns of the image that no window of a convolution or pool sees."""
    module, shape = call.module, call.input_shape
    if isinstance(module, Conv2d):
        kernel, stride, dilation = module.weight.shape[1:3], module.stride, module.dilation
        v = Geometry.of("conv2d", shape, (kernel[0], kernel[1]), stride, module.padding, dilation)
    elif isinstance(module, MaxPool2d | AvgPool2d):
        stride = module.stride or module.kernel_size
        v = Geometry.of(
            "pool2d", shape, module.kernel_size, stride, module.padding, ceil_mode=module.ceil_mode
        )
    else:
        return []
    ends, gaps = [], []
    for what, size, k, outputs, step, before, spread in (
        ("row", v.h, v.kh, v.oh, v.stride_h, v.top, v.dilation_h),
        ("column", v.w, v.kw, v.ow, v.stride_w, v.left, v.dilation_w),
    ):
        seen = {i * step - before + r * spread for i in range(outputs) for r in range(k)}
        unseen = set(range(size)) - seen
        tail = size - 1 - max(seen & set(range(size)), default=-1)
        if len(unseen) > tail:
            gaps.append(
                f"no window sees {len(unseen)} of its {size} {what}s: "
                f"window {k}, stride {step}, dilation {spread} leave gaps"
            )
        elif tail:
            ends.append(f"the last {tail} {what}{'s' if tail > 1 else ''}")
    if ends:
        gaps.append(
            f"no window sees {' and '.join(ends)} of its {v.h} x {v.w} input; pad by more, or "
            "choose a window and stride that fit"
        )
    return [Advice(call.name, text) for text in gaps]


def _idle_relu(call: Call) -> list[Advice]:
    """A ReLU whose input cannot be negative: it passes everything on as it is."""
    if not isinstance(call.module, ReLU | LeakyReLU):
        return []
    before = call.source
    while before is not None and isinstance(before.module, _KEEP_SIGN):
        before = before.source
    if before is None or not isinstance(before.module, _never_negative):
        return []
    kind, cause = type(call.module).__name__, type(before.module).__name__
    return [
        Advice(
            call.name,
            f"{kind} does nothing: its input comes from {cause} {before.name} and is never "
            "negative; leave one of them out",
        )
    ]


_never_negative = (ReLU, Sigmoid, Softmax)


def _ending(last: Call | None) -> list[Advice]:
    """What stands after the last layer that has parameters."""
    found = []
    while last is not None and not last.module.state_dict():
        name, module = last.name, last.module
        if isinstance(module, Dropout):
            text = "dropout after the last layer erases logits in training; put it before the layer"
            found.append(Advice(name, text))
        elif isinstance(module, Softmax):
            again = (
                "taken a second time it changes nothing"
                if isinstance(module, LogSoftmax)
                else "on probabilities it learns slowly"
            )
            text = (
                f"the network ends in {type(module).__name__}, and ops.cross_entropy "
                f"applies softmax itself ({again}); train on the logits before it"
            )
            found.append(Advice(name, text))
        elif isinstance(module, ReLU):
            text = "a ReLU after the last layer: no logit can be negative; leave it out"
            found.append(Advice(name, text))
        last = last.source
    return found[::-1]
