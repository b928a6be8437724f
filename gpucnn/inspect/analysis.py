"""A network at a glance, before it is trained: sizes, cost, memory, and what looks wrong."""

from dataclasses import dataclass

from gpucnn.errors import GraphError
from gpucnn.inspect.advice import Advice, Flow, advise
from gpucnn.inspect.memory import Memory, training_memory
from gpucnn.nn import Module, Summary, observe, summary


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found; print it for a table.

    summary         layers in the order in which they ran: shapes, learnables, multiply-adds,
                    activation bytes, for one image
    warnings        what looks wrong, in the order of the layers
    memory          the predicted peak of a training step; None for a model without parameters
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
                f"training on {m.batch_size} images takes {mib(m.peak)} (predicted; peak in the "
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
) -> Analysis:
    """Look a network over, for images of input_shape (H, W, C).

    It warns of rows or columns that no window sees, of ReLUs whose input is never negative, and
    of dropout, softmax or ReLU after the last layer that has parameters.  batch_size and
    optimizer_states (1 for SGD, 2 for Adam) are those of `training_memory`.  The model is left
    as it was.
    """
    flow = Flow(model)
    with observe(flow):
        table = summary(model, input_shape)
    try:
        memory = training_memory(model, input_shape, batch_size, optimizer_states)
    except GraphError:
        memory = None  # nothing to train
    return Analysis(table, advise(flow), memory)


def mib(count: int) -> str:
    """Bytes in the unit that people compare memory in."""
    return f"{count / (1 << 20):,.1f} MiB"
