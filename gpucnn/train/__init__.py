"""The training loop, its callbacks and metrics, and checkpoints."""

from gpucnn.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpucnn.train.callbacks import Curves, EpochLine, MetricsFile, SettingsFile, TimeLimit
from gpucnn.train.checkpoints import Checkpoints
from gpucnn.train.gradient_norm import GradientNorm
from gpucnn.train.loggers import JSONLines, Logger, TensorBoard, WandbLogger
from gpucnn.train.lr_finder import LearningRates, find_lr
from gpucnn.train.metrics import Evaluation, RunningMetrics, evaluate
from gpucnn.train.monitors import EarlyStopping, ModelCheckpoint
from gpucnn.train.progress import ProgressBar
from gpucnn.train.reporters import reporters
from gpucnn.train.scores import (
    ClassScores,
    confusion_matrix,
    confusion_table,
    precision_recall,
    top_k_accuracy,
)
from gpucnn.train.trainer import Callback, Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "Checkpoints",
    "ClassScores",
    "Curves",
    "EarlyStopping",
    "EpochLine",
    "Evaluation",
    "GradientNorm",
    "JSONLines",
    "LearningRates",
    "Logger",
    "MetricsFile",
    "ModelCheckpoint",
    "ProgressBar",
    "RunningMetrics",
    "SettingsFile",
    "TensorBoard",
    "TimeLimit",
    "Trainer",
    "WandbLogger",
    "confusion_matrix",
    "confusion_table",
    "evaluate",
    "find_lr",
    "precision_recall",
    "read_checkpoint",
    "top_k_accuracy",
    "write_checkpoint",
]

Trainer._reporters = staticmethod(reporters)
