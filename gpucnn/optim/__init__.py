"""Optimizers, and schedules for their learning rate."""

from gpucnn.optim.adam import Adam, AdamW
from gpucnn.optim.optimizer import Optimizer, clip_gradient_norm
from gpucnn.optim.schedule import Constant, Cosine, OneCycle, Schedule, Step, Warmup
from gpucnn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "OneCycle",
    "Optimizer",
    "Schedule",
    "Step",
    "Warmup",
    "clip_gradient_norm",
]
