"""Loss and accuracy, accumulated on the device and read back only on demand."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.autograd import no_grad
from gpucnn.device import array_module, to_host, working_on
from gpucnn.errors import ArgumentError
from gpucnn.nn import Module
from gpucnn.ops import cross_entropy
from gpucnn.tensor import Tensor
from gpucnn.train.batches import check_loader, check_logits, checked_batch, device_of_model


class RunningMetrics:
    """Running sums over the batches of an epoch: examples, loss, correct predictions.

    `add` accumulates on the device; `loss`, `accuracy` and `state_dict` wait for it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._loss: Any = 0.0
        self._correct: Any = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, K) and labels (N,)."""
        n = len(labels)
        self.count += n
        with working_on(logits.device):
            self._loss = self._loss + loss.data.astype(np.float64) * n
            self._correct = self._correct + (logits.data.argmax(axis=1) == labels.data).sum()

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
        self.count, self._loss, self._correct = state["count"], state["loss"], state["correct"]


def _number(x: Any) -> Any:
    """A sum as a host number; it is on the device after `add`."""
    return to_host(x) if hasattr(x, "get") else x


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a data set."""

    loss: float  # mean, nats
    confusion: np.ndarray[Any, np.dtype[np.int64]]  # (K, K): row true class, column predicted

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


def evaluate(model: Module, loader: Any) -> Evaluation:
    """Evaluate `model` on every batch of `loader`, in evaluation mode and without gradients.

    loader yields (images, labels) on the model's device; the model returns logits (N, K).  The
    loss is ops.cross_entropy.  Each module's mode is restored.

    Raises ArgumentError, ShapeError, DtypeError or DeviceMismatch for any other batch, logits or
    labels, and ShapeError if K is not the number of classes of loader.dataset.
    """
    check_loader("evaluate", loader)
    device = device_of_model(model)
    metrics = RunningMetrics()
    confusion: Any = 0
    with model.evaluating(), no_grad():
        for batch in loader:
            images, labels = checked_batch("evaluate", batch, device)
            with working_on(images.device):
                logits = model(images)
                check_logits("evaluate", logits, images, loader)
                metrics.add(cross_entropy(logits, labels), logits, labels)
                targets = labels.data
                xp, k = array_module(targets), logits.shape[1]
                if not bool(((targets >= 0) & (targets < k)).all()):  # bincount waits anyway
                    raise ArgumentError(f"evaluate: labels must be in 0..{k - 1}")
                pairs = targets * k + logits.data.argmax(axis=1)
                confusion = confusion + xp.bincount(pairs, minlength=k * k).reshape(k, k)
    if isinstance(confusion, int):
        raise ArgumentError("evaluate: the loader yielded no batch")
    return Evaluation(metrics.loss, to_host(confusion))
