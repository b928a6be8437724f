"""The learning-rate finder: the loss while the rate grows from step to step."""

import copy
import io
import math
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpucnn.checkpoint import Checkpoint
from gpucnn.device import to_host, working_on
from gpucnn.errors import ArgumentError, kind, missing_extra
from gpucnn.files import write_whole
from gpucnn.integers import is_int
from gpucnn.tensor import Tensor
from gpucnn.train.batches import (
    check_logits,
    check_loss,
    checked_batch,
    closing_batches,
    device_of_model,
)
from gpucnn.train.trainer import Trainer
from gpucnn.train.trainer_state import restore, state_of

_SMOOTHING = 0.9  # of the running mean of the losses
_WINDOW = 0.05  # of the steps, on either side of the one whose slope is fitted
_MOST = 4.0  # times the lowest loss: training diverges


@dataclass(frozen=True)
class LearningRates:
    """What find_lr has tried.

    lrs           the learning rate of each step
    losses        the loss of each step, before its update, in nats
    smoothed      their running mean, of about ten steps, corrected for its start
    suggestion    the rate at which the loss falls most steeply, by lines fitted to a tenth of the
                  steps; None if it never falls
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float | None

    def plot(self, path: str | Path) -> None:
        """Draw losses over learning rates, and the suggestion, as a PNG.

        Raises MissingExtra without matplotlib, OutputError if the file cannot be written.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_extra("LearningRates.plot", "matplotlib", "plot") from error

        figure = Figure(figsize=(6, 3.5), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses, alpha=0.3, label="loss")
        axes.plot(self.lrs, self.smoothed, label="running mean")
        if self.suggestion is not None:
            axes.axvline(
                self.suggestion, color="tab:red", label=f"suggestion {self.suggestion:.2g}"
            )
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats)")
        low, high = min(self.smoothed), max(self.smoothed[0], min(self.smoothed))
        axes.set_ylim(low - 0.1 * (high - low + 0.1), high + 0.5 * (high - low + 0.1))
        axes.grid(alpha=0.3)
        axes.legend()
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        write_whole(path, picture.getvalue())


def find_lr(
    trainer: Trainer, min_lr: float = 1e-6, max_lr: float = 10.0, steps: int = 100
) -> LearningRates:
    """Train for up to `steps` steps while the learning rate grows from min_lr to max_lr.

    The rate grows by the same factor in every step, for all groups of the optimizer.  It ends early
    if the loss is not finite, or four times the lowest running mean.  Batches come from the
    Trainer's loader, again from its start where it ends; the scheduler does not step.  Afterwards
    model, optimizer, loader and random generators are as before, so training gives the same bits
    as without the search.

        rates = train.find_lr(trainer)
        print(rates.suggestion)

    Build the Trainer's optimizer, and a schedule if you have one, anew with the rate of your
    choice; the suggestion is a rate at which training goes well, not the largest one.

    Raises ArgumentError unless 0 < min_lr < max_lr and steps is at least 10; for a Trainer of
    several ranks, or whose loader has no state_dict.  With an error or Ctrl-C in a step, the state
    is restored too.
    Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
    """
    if not isinstance(trainer, Trainer):
        raise ArgumentError(f"find_lr: expected a Trainer, got {kind(trainer)}")
    if not 0 < min_lr < max_lr < math.inf:
        raise ArgumentError(f"find_lr: expected 0 < min_lr < max_lr, got {min_lr} and {max_lr}")
    if not is_int(steps) or steps < 10:
        raise ArgumentError(f"find_lr: steps must be at least 10, got {steps!r}")
    if trainer.ranks.exchanges:
        raise ArgumentError("find_lr: a Trainer with comm trains on all ranks; use one without")
    if not hasattr(trainer.loader, "state_dict"):
        raise ArgumentError(
            f"find_lr: {kind(trainer.loader)} has no state_dict, so its position could not be "
            "restored\n  train with a data.DataLoader"
        )
    lrs = np.geomspace(min_lr, max_lr, steps).tolist()
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    with _restoring(trainer), np.errstate(all="ignore"), closing(_batches(trainer)) as batches:
        trainer.model.train()
        for lr, (images, labels) in zip(lrs, batches, strict=False):
            with working_on(images.device):
                loss = _step(trainer, images, labels, lr)
            if not math.isfinite(loss):
                break
            losses.append(loss)
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smoothed.append(mean / (1 - _SMOOTHING ** len(losses)))
            if smoothed[-1] > _MOST * min(smoothed):
                break
    tried = lrs[: len(losses)]
    return LearningRates(tried, losses, smoothed, _steepest(tried, losses, steps))


def _step(trainer: Trainer, images: Tensor, labels: Tensor, lr: float) -> float:
    """A step of the trainer's, eager and unguarded; the loss before it."""
    optimizer, precision = trainer.optimizer, trainer._precision
    for group in optimizer.param_groups:
        group["lr"] = lr
    with precision.products():
        if trainer._guard.parts.count > 1:
            value = float(trainer._guard.gradients(images, labels).mean.item())
            if math.isfinite(value):
                precision.step(optimizer)
            return value
        with precision.forward():
            logits = trainer.model(images)
            check_logits("find_lr", logits, images, trainer.loader)
            loss = trainer.loss(logits, labels)
        check_loss("find_lr", loss)
        value = float(loss.item())
        if math.isfinite(value):
            optimizer.zero_grad()
            loss.backward(precision.start(loss))
            precision.step(optimizer)
    return value


def _batches(trainer: Trainer) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The loader's batches, epoch after epoch."""
    device, count = device_of_model(trainer.model), -1
    while count:
        count = 0
        with closing_batches(trainer.loader) as batches:
            for batch in batches:
                count += 1
                yield checked_batch("find_lr", batch, device)
    raise ArgumentError("find_lr: the loader yielded no batch")


@contextmanager
def _restoring(trainer: Trainer) -> Iterator[None]:
    """Leave the trainer as it was before the block."""
    tensors, info = state_of(trainer)
    arrays = {name: np.array(to_host(x)) for name, x in tensors.items()}
    info = copy.deepcopy(info)
    modes = [(module, module.training) for module in trainer.model.modules()]
    history = trainer.history
    try:
        yield
    finally:
        restore(trainer, Checkpoint(Path("find_lr"), arrays, info))
        trainer.history = history
        for module, training in modes:
            module.training = training
        trainer.optimizer.zero_grad()


def _steepest(lrs: list[float], losses: list[float], steps: int) -> float | None:
    """The rate in the middle of the steps whose fitted line falls most steeply."""
    reach = max(2, round(_WINDOW * steps))
    offsets = np.arange(-reach, reach + 1)
    if len(losses) < len(offsets):
        return None
    windows = np.lib.stride_tricks.sliding_window_view(np.array(losses), len(offsets))
    slopes = windows @ offsets
    steepest = int(slopes.argmin())
    return lrs[steepest + reach] if slopes[steepest] < 0 else None
