"""Optimizers, learning rate schedulers, gradient clipping and the loss scale of float16."""

from gpucnn.optim import lr_scheduler
from gpucnn.optim.adam import Adam, AdamW
from gpucnn.optim.clip_grad import clip_grad_norm_
from gpucnn.optim.loss_scaler import GradScaler
from gpucnn.optim.multi import MultiOptimizer
from gpucnn.optim.muon import Muon
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "GradScaler",
    "MultiOptimizer",
    "Muon",
    "Optimizer",
    "clip_grad_norm_",
    "lr_scheduler",
]
