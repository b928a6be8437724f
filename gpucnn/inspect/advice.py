"""Find likely mistakes in a network from one forward pass of one image; weights do not matter."""

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
    """A warning: the layer's name, what is wrong, and how to fix it."""

    layer: str
    text: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.text}"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer without children."""

    name: str
    module: Module
    source: "Call | None"  # the call that computed its input; None if no layer did
    input_shape: tuple[int, ...]


class Flow:
    """An observer for nn.observe that records which layer's output is which layer's input.

    Layers are connected by the identity of their tensors.  An op that a module calls between its
    layers breaks the connection, and no warning looks past the break.
    """

    def __init__(self, model: Module) -> None:
        self.calls: list[Call] = []
        self.last: Call | None = None  # the call that computed the model's output
        self._model = model
        self._names = {id(module): name for name, module in model.named_modules()}
        self._producers: dict[int, Call] = {}  # by id of the output
        self._alive: list[Any] = []  # keeps tensors alive, so that their ids stay unique

    def __call__(self, module: Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module is self._model:
            self.last = self._producers.get(id(output))
        name = self._names.get(id(module))
        if name is None or any(True for _ in module.named_children()) or not inputs:
            return
        x = inputs[0]
        shape = x.shape if isinstance(x, Tensor) else ()
        call = Call(name or type(module).__name__, module, self._producers.get(id(x)), shape)
        self.calls.append(call)
        self._producers[id(output)] = call
        self._alive += [x, output]
        if module is self._model:
            self.last = call


def advise(flow: Flow) -> tuple[Advice, ...]:
    """The warnings for the network whose forward pass `flow` observed."""
    found = [advice for call in flow.calls for advice in (*_uncovered(call), *_idle_relu(call))]
    return (*found, *_ending(flow.last))


def _uncovered(call: Call) -> list[Advice]:
    """Rows and columns of the input that no window of a convolution or pooling layer covers."""
    module, shape = call.module, call.input_shape
    if isinstance(module, Conv2d):
        kernel, stride, dilation = module.weight.shape[1:3], module.stride, module.dilation
        g = Geometry.of("conv2d", shape, (kernel[0], kernel[1]), stride, module.padding, dilation)
    elif isinstance(module, MaxPool2d | AvgPool2d):
        stride = module.stride or module.kernel_size
        g = Geometry.of(
            "pool2d", shape, module.kernel_size, stride, module.padding, ceil_mode=module.ceil_mode
        )
    else:
        return []
    ends, gaps = [], []
    for what, size, k, outputs, step, before, spread in (
        ("row", g.h, g.kh, g.oh, g.stride_h, g.top, g.dilation_h),
        ("column", g.w, g.kw, g.ow, g.stride_w, g.left, g.dilation_w),
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
            f"no window sees {' and '.join(ends)} of its {g.h} x {g.w} input; pad by more, or "
            "choose a window and stride that fit"
        )
    return [Advice(call.name, text) for text in gaps]


def _idle_relu(call: Call) -> list[Advice]:
    """A ReLU whose input is never negative: it has no effect."""
    if not isinstance(call.module, ReLU | LeakyReLU):
        return []
    before = call.source
    while before is not None and isinstance(before.module, _KEEP_SIGN):
        before = before.source
    if before is None or not isinstance(before.module, _NEVER_NEGATIVE):
        return []
    kind, cause = type(call.module).__name__, type(before.module).__name__
    return [
        Advice(
            call.name,
            f"{kind} has no effect: its input comes from {cause} {before.name} and is never "
            "negative; remove one of them",
        )
    ]


_NEVER_NEGATIVE = (ReLU, Sigmoid, Softmax)


def _ending(last: Call | None) -> list[Advice]:
    """Dropout, softmax and ReLU after the last layer with parameters."""
    found = []
    while last is not None and not last.module.state_dict():
        name, module = last.name, last.module
        if isinstance(module, Dropout):
            text = (
                "dropout after the last layer zeroes logits in training; move it before the layer"
            )
            found.append(Advice(name, text))
        elif isinstance(module, Softmax):
            again = (
                "applied twice, it changes nothing"
                if isinstance(module, LogSoftmax)
                else "applied to probabilities, it makes training slow"
            )
            text = (
                f"the network ends in {type(module).__name__}, and ops.cross_entropy "
                f"applies softmax itself ({again}); train on the logits before it"
            )
            found.append(Advice(name, text))
        elif isinstance(module, ReLU):
            text = "a ReLU after the last layer makes negative logits impossible; remove it"
            found.append(Advice(name, text))
        last = last.source
    return found[::-1]
