"""A summary of a network before training: shapes, cost, memory, and likely mistakes."""

from dataclasses import dataclass

from gpucnn.errors import GraphError
from gpucnn.inspect.advice import Advice, Flow, advise
from gpucnn.inspect.memory import Memory, training_memory
from gpucnn.nn import Module, Summary, observe, summary


@dataclass(frozen=True)
class Analysis:
    """The result of `analyze`; print it as a table.

    summary    for each layer, in execution order: output shape, parameters, multiply-adds and
               activation bytes, for one image
    warnings   likely mistakes, in the order of the layers
    memory     the predicted peak of a training step; None for a model without parameters
    """

    summary: Summary
    warnings: tuple[Advice, ...]
    memory: Memory | None

    def __str__(self) -> str:
        parts = [str(self.summary), ""]
        parts += [f"warning: {advice}" for advice in self.warnings] or ["no warnings"]
        if self.memory is not None:
            m = self.memory
            parts += [
                "",
                f"training on {m.batch_size} images needs {mib(m.peak)} (predicted; peak in the "
                f"backward pass of {m.at}):",
                f"  parameters {mib(m.parameters)}, optimizer {mib(m.optimizer)}, images "
                f"{mib(m.images)}, activations {mib(m.activations)}, gradients "
                f"{mib(m.gradients)}, work space {mib(m.work)}",
            ]
        return "\n".join(parts)


def analyze(
    model: Module,
    input_shape: tuple[int, ...],
    batch_size: int = 128,
    optimizer_states: int = 1,
    precision: str | None = None,
) -> Analysis:
    """Summarise a network for images of input_shape (H, W, C), and warn of likely mistakes.

    Warnings: rows or columns of an input that no window covers, a ReLU whose input is never
    negative, and dropout, softmax or ReLU after the last layer with parameters.  batch_size,
    optimizer_states (1 for SGD, 2 for Adam) and precision (a Trainer's) are passed to
    `training_memory`, whose errors it raises.  The model is left unchanged.

    Raises ShapeError if the network does not accept input_shape.
    """
    flow = Flow(model)
    with observe(flow):
        table = summary(model, input_shape)
    try:
        memory = training_memory(model, input_shape, batch_size, optimizer_states, precision)
    except GraphError:
        memory = None  # nothing to train
    return Analysis(table, advise(flow), memory)


def mib(count: int) -> str:
    """A number of bytes as text, in MiB."""
    return f"{count / (1 << 20):,.1f} MiB"
