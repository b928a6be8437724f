"""Loss and accuracy, accumulated on the device and read back only on demand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn import schema
from gpucnn.autograd import no_grad
from gpucnn.device import Array, array_module, to_host, working_on
from gpucnn.distributed import Communicator
from gpucnn.distributed.communicator import check_communicator
from gpucnn.errors import ArgumentError, kind
from gpucnn.nn import Module
from gpucnn.ops import cross_entropy
from gpucnn.tensor import Tensor
from gpucnn.train.batches import check_loader, check_logits, checked_batch, device_of_model
from gpucnn.train.scores import ClassScores, scores_of


@dataclass(frozen=True)
class Totals:
    """Sums over a batch; the arrays are on the current device, () each."""

    count: int  # images
    loss: Array  # float64
    correct: Array  # predictions
    mean: Array  # the mean loss


def batch_totals(loss: Tensor, logits: Tensor, labels: Tensor) -> Totals:
    """The totals of a batch with its mean loss, logits (N, K) and labels (N,)."""
    n = len(labels)
    correct = (logits.data.argmax(axis=1) == labels.data).sum()
    return Totals(n, loss.data.astype(np.float64) * n, correct, loss.data)


class RunningMetrics:
    """Running sums over the batches of an epoch: examples, loss, correct predictions.

    `add` accumulates on the device; `loss`, `accuracy` and `state_dict` wait for it.  `last_loss`
    is the mean loss of the latest batch, an array of one element on the device; None before it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last_loss: Any = None
        self._loss: Any = 0.0
        self._correct: Any = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, K) and labels (N,)."""
        with working_on(logits.device):
            self.add_totals(batch_totals(loss, logits, labels))

    def add_totals(self, totals: Totals) -> None:
        """Add the totals of a batch on the current device."""
        self.count += totals.count
        self._loss = self._loss + totals.loss
        self._correct = self._correct + totals.correct
        self.last_loss = totals.mean

    @property
    def sums(self) -> tuple[Any, Any]:
        """The sums of loss and correct predictions, on the device: reading them waits for it."""
        return self._loss, self._correct

    # --- sums that a graph adds to: (loss, correct), arrays of one element ---

    def has(self, sums: tuple[Array, Array]) -> bool:
        """Whether the running sums are in these arrays."""
        return self._loss is sums[0]

    def move_to(self, sums: tuple[Array, Array]) -> None:
        """Copy the running sums into these arrays, and keep them there."""
        sums[0][...], sums[1][...] = self._loss, self._correct
        self._loss, self._correct = sums

    def copy_sums(self) -> None:
        """Keep the running sums elsewhere: their arrays are wanted for others."""
        self._loss, self._correct = self._loss.copy(), self._correct.copy()

    @property
    def loss(self) -> float:
        """The mean loss per example so far, in nats; NaN before the first."""
        return float(_number(self._loss)) / self.count if self.count else float("nan")

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions so far, 0 to 1; NaN before the first."""
        return int(_number(self._correct)) / self.count if self.count else float("nan")

    def state_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "loss": float(_number(self._loss)),
            "correct": int(_number(self._correct)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; CheckpointError, without a change, for anything else."""
        schema.record(
            {"count": schema.integer(), "loss": schema.number(), "correct": schema.integer()}
        )(state, "metrics")
        schema.integer(0, state["count"])(state["correct"], "metrics.correct")
        self.count, self._loss, self._correct = state["count"], state["loss"], state["correct"]


def _number(x: Any) -> Any:
    """A sum as a host number; it is on the device after `add`."""
    return to_host(x) if hasattr(x, "get") else x


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a data set."""

    loss: float  # mean, nats
    confusion: np.ndarray[Any, np.dtype[np.int64]]  # (K, K): row true class, column predicted
    metrics: dict[str, float]  # of `evaluate`, by name: means over the images

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions, 0 to 1."""
        return float(np.trace(self.confusion) / max(self.confusion.sum(), 1))

    @property
    def per_class(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """(K,) the accuracy within each true class, 0 to 1; NaN for a class without examples."""
        totals = self.confusion.sum(axis=1)
        hits = np.diagonal(self.confusion)
        shares = np.full(len(totals), np.nan)
        np.divide(hits, totals, out=shares, where=totals > 0)
        return shares

    @property
    def class_scores(self) -> ClassScores:
        """Precision, recall and F1 of each class, from all images."""
        return scores_of(self.confusion)


Metric = Callable[[Tensor, Tensor], Any]  # (logits, labels) -> a number, the mean over a batch


def check_metrics(who: str, metrics: Mapping[str, Metric] | None) -> dict[str, Metric]:
    """A copy of `metrics`; ArgumentError unless it maps names to functions."""
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise ArgumentError(f"{who}: expected metrics as {{name: function}}, got {kind(metrics)}")
    for name, metric in metrics.items():
        if not isinstance(name, str) or name in ("", "loss", "accuracy"):
            raise ArgumentError(
                f"{who}: {name!r} cannot name a metric; expected a text other than "
                "'loss' and 'accuracy', which are always computed"
            )
        if not callable(metric):
            raise ArgumentError(
                f"{who}: the metric {name} is {kind(metric)}; expected a function of "
                "(logits, labels)"
            )
    return dict(metrics)


def _measured(name: str, metric: Metric, logits: Tensor, labels: Tensor) -> Array | float:
    """A metric's number for a batch, on the host or the device."""
    value = metric(logits, labels)
    value = value.data if isinstance(value, Tensor) else value
    if getattr(value, "size", 1) != 1 or not (
        hasattr(value, "dtype") or isinstance(value, int | float)
    ):
        raise ArgumentError(
            f"evaluate: the metric {name} returned {kind(value)}; expected a number, the mean over "
            "the images of a batch"
        )
    return value.reshape(()) if hasattr(value, "get") else float(value)


def evaluate(
    model: Module,
    loader: Any,
    comm: Communicator | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Evaluate `model` on every batch of `loader`, in evaluation mode and without gradients.

    loader yields (images, labels) on the model's device; the model returns logits (N, K).  The
    loss is ops.cross_entropy.  Each module's mode is restored.  With comm, loader is this rank's
    `DataLoader.part`, and the result is that of all ranks.

    metrics maps names to functions of (logits (N, K), labels (N,)) that return a number, such as
    {"top5": top_k_accuracy}.  The number is taken as a mean over the images of a batch, and the
    result's `metrics` has the mean over all images.

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatch for any other batch, logits or
    labels, and ShapeError if K is not the number of classes of loader.dataset.
    """
    check_loader("evaluate", loader)
    if comm is not None:
        check_communicator("evaluate", comm)
    if comm is not None and not hasattr(loader, "filled"):
        raise ArgumentError(
            f"evaluate: expected this rank's part of a data.DataLoader, got {kind(loader)}"
        )
    measures = check_metrics("evaluate", metrics)
    device = device_of_model(model)
    sums: dict[str, Any] = dict.fromkeys(measures, 0.0)
    running = RunningMetrics()
    confusion: Any = 0
    with model.evaluating(), no_grad():
        for batch in loader:
            images, labels = checked_batch("evaluate", batch, device)
            if comm is not None and loader.filled:
                continue
            with working_on(images.device):
                logits = model(images)
                check_logits("evaluate", logits, images, loader)
                running.add(cross_entropy(logits, labels), logits, labels)
                targets = labels.data
                xp, k = array_module(targets), logits.shape[1]
                if not bool(((targets >= 0) & (targets < k)).all()):  # bincount waits anyway
                    low, high = int(targets.min()), int(targets.max())
                    raise ArgumentError(
                        f"evaluate: the model has {k} outputs, so labels must be in 0..{k - 1}; "
                        f"this batch has labels from {low} to {high}\n"
                        "  build the model with the number of classes of the data"
                    )
                pairs = targets * k + logits.data.argmax(axis=1)
                confusion = confusion + xp.bincount(pairs, minlength=k * k).reshape(k, k)
                for name, metric in measures.items():
                    value = _measured(name, metric, logits, labels)
                    sums[name] = sums[name] + value * len(labels)
    confusion = None if isinstance(confusion, int) else to_host(confusion)
    state = running.state_dict()
    count, loss = state["count"], state["loss"]
    totals = {name: float(_number(value)) for name, value in sums.items()}
    if comm is not None:
        parts = comm.gather((count, loss, confusion, totals))
        count, loss = sum(part[0] for part in parts), sum(part[1] for part in parts)
        totals = {name: sum(part[3][name] for part in parts) for name in totals}
        found = [part[2] for part in parts if part[2] is not None]
        confusion = sum(found) if found else None
    if confusion is None:
        raise ArgumentError("evaluate: the loader yielded no batch")
    return Evaluation(loss / count, confusion, {name: x / count for name, x in totals.items()})
