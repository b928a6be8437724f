"""Optimizers, learning rate schedulers and gradient clipping."""

from gpucnn.optim import lr_scheduler
from gpucnn.optim.adam import Adam, AdamW
from gpucnn.optim.clip_grad import clip_grad_norm_
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_grad_norm_", "lr_scheduler"]
