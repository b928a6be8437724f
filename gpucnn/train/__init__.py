"""The training loop, what watches it, and checkpoints."""

from gpucnn.train.callbacks import (
    Callback,
    Checkpoints,
    Curves,
    EpochLine,
    MetricsFile,
    ProgressBar,
)
from gpucnn.train.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.train.metrics import Evaluation, RunningMetrics, evaluate
from gpucnn.train.trainer import Trainer

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
