"""Normalisations and losses as steps of a random graph, and activations without a kink."""

import math
from typing import Any

import numpy as np
from random_graphs import Graph, Pair

from gpucnn import ops

try:
    import torch
    import torch.nn.functional as F
except ImportError:  # the tests skip
    torch = F = None


def silu(graph: Graph) -> Pair:
    """PyTorch's, except for its NaN at the infinities."""
    x = graph.pick()
    far = x.theirs.abs() > 1000
    near = F.silu(torch.where(far, 0, x.theirs))
    return Pair(ops.silu(x.ours), torch.where(far, F.relu(x.theirs), near))


def softplus(graph: Graph) -> Pair:
    x, beta = graph.pick(), graph.settings(1.0, 0.5, 3.0)
    return Pair(ops.softplus(x.ours, beta), F.softplus(x.theirs, beta, threshold=700))


def layer_norm(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 1 and p.shape[-1] > 0)
    shape = x.shape[-graph.settings(*range(1, x.ndim + 1)) :]
    ours, theirs = _parameters(graph, shape)
    return Pair(
        ops.layer_norm(x.ours, shape, *ours, eps=0.1),
        F.layer_norm(x.theirs, shape, *theirs, eps=0.1),
    )


def group_norm(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2 and 0 not in p.shape[1:])
    channels = x.shape[-1]
    groups = graph.settings(*(n for n in (1, 2, 4, channels) if channels % n == 0))
    ours, (weight, bias) = _parameters(graph, (channels,))
    count = math.prod(x.shape[1:]) // groups
    first = torch.movedim(x.theirs, -1, 1).reshape(x.shape[0], groups, count)
    away = first - first.mean(2, keepdim=True)
    normal = away / ((away**2).mean(2, keepdim=True) + 0.1).sqrt()  # F's refuses single values
    theirs = torch.movedim(normal.reshape(x.shape[0], channels, *x.shape[1:-1]), 1, -1)
    theirs = theirs if weight is None else theirs * weight
    return Pair(
        ops.group_norm(x.ours, groups, *ours, eps=0.1), theirs if bias is None else theirs + bias
    )


def _parameters(graph: Graph, shape: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """weight and bias, each perhaps None, in both libraries."""
    pairs = [
        make(shape) if graph.settings(True, True, False) else Pair(None, None)  # type: ignore[arg-type]
        for make in (graph.finite, graph.leaf)
    ]
    return [p.ours for p in pairs], [p.theirs for p in pairs]


def _reduced(losses: Any, reduction: str) -> Any:
    return losses if reduction == "none" else getattr(losses, reduction)()


def binary_cross_entropy_with_logits(graph: Graph) -> Pair:
    x, reduction = graph.pick(), graph.settings("mean", "sum", "none")
    target = graph.constant(graph.rng.uniform(0, 1, x.shape))
    weights: dict[str, Any] = {"weight": None, "pos_weight": None}
    for name in weights:
        if graph.settings(True, False):
            weights[name] = graph.rng.uniform(0.5, 2, x.shape[-1:]).astype(np.float32)
    ours = ops.binary_cross_entropy_with_logits(x.ours, target.ours, reduction=reduction, **weights)
    weight, positive = (1 if w is None else torch.tensor(w).double() for w in weights.values())
    t = target.theirs
    losses = -positive * t * F.logsigmoid(x.theirs) - (1 - t) * F.logsigmoid(-x.theirs)
    return Pair(ours, _reduced(weight * losses, reduction))


def l1_loss(graph: Graph) -> Pair:
    a = graph.pick()
    b = graph.pick(lambda p: p.shape == a.shape)
    reduction = graph.settings("mean", "sum", "none")
    away = a.theirs - b.theirs
    losses = torch.where(away == 0, 0, away.abs())  # a slope of 0 at 0
    return Pair(ops.l1_loss(a.ours, b.ours, reduction), _reduced(losses, reduction))


def smooth_l1_loss(graph: Graph) -> Pair:
    a = graph.pick()
    b = graph.pick(lambda p: p.shape == a.shape)
    reduction, beta = graph.settings("mean", "sum", "none"), graph.settings(1.0, 0.5)
    theirs = F.smooth_l1_loss(a.theirs, b.theirs, reduction=reduction, beta=beta)
    return Pair(ops.smooth_l1_loss(a.ours, b.ours, reduction, beta), theirs)


def nll_loss(graph: Graph) -> Pair:
    x = graph.pick(lambda p: p.ndim >= 2 and p.shape[-1] > 0)
    classes = x.shape[-1]
    labels = graph.rng.integers(0, classes, x.shape[:-1])
    reduction, weights, theirs = graph.settings("mean", "sum", "none"), None, None
    if graph.rng.random() < 0.5:
        weights = graph.rng.uniform(0.5, 2, classes).astype(np.float32)
        theirs = torch.tensor(weights.astype(np.float64))
    rows, flat = x.theirs.reshape(-1, classes), torch.tensor(labels.reshape(-1))
    losses = F.nll_loss(rows, flat, theirs, reduction=reduction)
    if reduction == "none":
        losses = losses.reshape(labels.shape)
    return Pair(ops.nll_loss(x.ours, labels, weights, reduction), losses)
