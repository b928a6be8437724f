"""Watchers: see every operation that a thread runs, forward and backward.

with watching(watcher):
    loss = ops.cross_entropy(model(images), labels)
    loss.backward()
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpucnn.device import Array

_state = threading.local()


class Watcher:
    """Override what you need; `node` is the autograd.Function that ran."""

    def forward(self, node: Any, inputs: tuple[Any, ...], y: Array) -> None:
        """After the forward pass: inputs as node was called with them, y the result's array."""

    def backward(self, node: Any, dy: Array, gradients: list[Array | None]) -> None:
        """After the backward pass: the gradient of the result, and of each of node.inputs."""


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the operations of this thread inside the block."""
    outer = current_watcher()
    _state.watcher = watcher
    try:
        yield
    finally:
        _state.watcher = outer


def current_watcher() -> Watcher | None:
    """This thread's watcher, or None."""
    return getattr(_state, "watcher", None)
