"""The training loop, its callbacks and metrics, and checkpoints."""

from gpucnn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.train.callbacks import (
    Checkpoints,
    Curves,
    EpochLine,
    MetricsFile,
    ProgressBar,
)
from gpucnn.train.metrics import Evaluation, RunningMetrics, evaluate
from gpucnn.train.trainer import Callback, Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "Curves",
    "EpochLine",
    "Evaluation",
    "MetricsFile",
    "ProgressBar",
    "RunningMetrics",
    "Trainer",
    "evaluate",
    "read_checkpoint",
    "write_checkpoint",
]
