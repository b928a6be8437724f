"""What every optimizer shares: one flat buffer for the parameters, and its state."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn.allocator import give_back_freed_memory
from gpucnn.device import Array, array_module, working_on
from gpucnn.errors import (
    ArgumentError,
    CheckpointError,
    DeviceMismatch,
    DtypeError,
    GraphError,
    OutOfMemory,
)
from gpucnn.out_of_memory import explain
from gpucnn.tensor import Tensor
from gpucnn.threads import parallel

# Elements that a worker updates at a time.  SGD is fastest with this or twice as many: fewer cost
# two threads more waits for the interpreter's lock.  Adam takes the same time with any.
_BLOCK = 128 * 1024
_ALIGN = 16  # elements: each parameter starts on a 64-byte line of the flat buffer
_THREADS = 256  # of a block on a GPU
_MOST_BLOCKS = 1024  # for one parameter: they fill any GPU, and walk on from there
_ROWS = 16  # parameters in one launch: kernels/optimizer.cu, GRADIENTS


class Optimizer:
    """Base of SGD, Adam and AdamW.

    The parameters' arrays become views of one flat buffer, and so does each state (velocity,
    moments), with 64-byte alignment.  `lr` may be set between steps: a schedule does.
    Parameters without a gradient are left alone.
    """

    states: tuple[str, ...] = ()  # names of the flat state buffers
    lr: float

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.steps = 0  # how many step() calls there were
        _check(type(self).__name__, self.parameters, lr)
        first = self.parameters[0].data
        xp = array_module(first)
        self._starts, size = [], 0
        for parameter in self.parameters:
            self._starts.append(size)
            size += -(-parameter.size // _ALIGN) * _ALIGN
        self._table: tuple[Array, Array] | None = None  # on a GPU: starts and sizes
        with self._working("the state"):
            self._flat = xp.zeros(size, dtype=first.dtype)
            self._state = {name: xp.zeros_like(self._flat) for name in self.states}
        for parameter, view in zip(self.parameters, self._views(self._flat), strict=True):
            view[...] = parameter.data
            parameter.data = view
        del first
        give_back_freed_memory()  # where the parameters were, and what initialising them took

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        try:
            with working_on(self.parameters[0].device):
                yield
        except OutOfMemory as error:
            explain(error, f"{what} of {type(self).__name__}", None)
            raise

    def _views(self, flat: Array) -> list[Array]:
        return [
            flat[start : start + parameter.size].reshape(parameter.shape)
            for start, parameter in zip(self._starts, self.parameters, strict=True)
        ]

    def zero_grad(self) -> None:
        """Forget every parameter's gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Move every parameter that has a gradient.

        Raises GraphError if a parameter's array was replaced since the optimizer was built.
        """
        self.steps += 1
        with self._working("a step"):
            if not isinstance(self._flat, np.ndarray) and self._flat.dtype == np.float32:
                self._step_on_gpu()
            else:
                self._step_on_arrays()

    def _step_on_arrays(self) -> None:
        """Parameter by parameter; on the CPU, in blocks that the workers share."""
        update = self.update()
        work: list[tuple[Array, ...]] = []
        for start, parameter in zip(self._starts, self.parameters, strict=True):
            if parameter.grad is None:
                continue
            self._check_own(start, parameter)
            gradient = parameter.grad.reshape(-1)
            block = _BLOCK if isinstance(self._flat, np.ndarray) else max(parameter.size, 1)
            for low in range(0, parameter.size, block):
                high = min(low + block, parameter.size)
                here = slice(start + low, start + high)
                buffers = (self._state[name][here] for name in self.states)
                work.append((self._flat[here], gradient[low:high], *buffers))
            parameter._version += 1
        _run(update, work)

    def _check_own(self, start: int, parameter: Tensor) -> None:
        """The parameter's array must still be the view that the optimizer made."""
        data, flat = parameter.data, self._flat
        if isinstance(data, np.ndarray):
            same = data.base is flat
        else:
            same = data.data.ptr == flat.data.ptr + start * flat.itemsize
        if not same:
            raise GraphError(
                f"{type(self).__name__}: a parameter's array was replaced after the optimizer "
                "was built\n  call model.to(device) or model.astype(dtype) before building it"
            )

    def _step_on_gpu(self) -> None:
        """All parameters in one launch, or one for every 16 of a large model."""
        xp = array_module(self._flat)
        sizes = [parameter.size for parameter in self.parameters]
        if self._table is None:
            table = np.array([self._starts, sizes], np.int64)
            self._table = (xp.asarray(table[0]), xp.asarray(table[1]))
        for first in range(0, len(sizes), _ROWS):
            rows = slice(first, first + _ROWS)
            gradients: list[Array | None] = [None] * _ROWS
            for i, parameter in enumerate(self.parameters[rows]):
                if parameter.grad is not None:
                    self._check_own(self._starts[first + i], parameter)
                    gradients[i] = xp.ascontiguousarray(parameter.grad)
                    parameter._version += 1
            blocks = min(-(-max(sizes[rows]) // _THREADS), _MOST_BLOCKS)
            grid = (blocks, len(sizes[rows]))
            self.launch(grid, _THREADS, *self._table, first, *gradients)

    def launch(self, grid: tuple[int, int], block: int, *table: Array | int | None) -> None:
        """Launch the rule's kernel in kernels/optimizer.cu.

        table is its parameters `starts` to `g15`: the flat buffers come before, numbers after.
        """
        raise NotImplementedError

    def update(self) -> Callable[..., None]:
        """The rule of this step: `rule(p, g, *states, scratch)` changes p and the states in place.

        p, g, the states and scratch are flat arrays of one length; g must stay as it is.
        """
        raise NotImplementedError

    def hyperparameters(self) -> dict[str, Any]:
        """The settings by their names in the constructor, lr as it is now."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "hyperparameters": {...}, state name: flat array, ...}; not copies."""
        return {"steps": self.steps, "hyperparameters": self.hyperparameters(), **self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, with this optimizer's own hyperparameters but the state's lr.

        Raises CheckpointError, and changes nothing, if it belongs to another optimizer or model.
        """
        for name, buffer in self._state.items():
            if name not in state or tuple(state[name].shape) != buffer.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise CheckpointError(
                    f"{type(self).__name__}: the state does not fit: expected {name} of shape "
                    f"{buffer.shape}, got {found}"
                )
        for name, buffer in self._state.items():
            buffer[...] = array_module(buffer).asarray(state[name])
        self.steps = int(state["steps"])
        self.lr = float(state["hyperparameters"]["lr"])

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.hyperparameters().items())
        return f"{type(self).__name__}({len(self.parameters)} parameters, {settings})"


def _run(update: Callable[..., None], work: list[tuple[Array, ...]]) -> None:
    """Apply the rule to each block: on the CPU the workers share them."""
    if not work:
        return
    xp = array_module(work[0][0])

    def run(block: tuple[Array, ...]) -> None:
        update(*block, xp.empty_like(block[0]))

    if xp is np:
        parallel(run, work)
    else:
        for block in work:
            run(block)


def _check(name: str, parameters: list[Tensor], lr: float) -> None:
    if not parameters:
        raise ArgumentError(f"{name}: there are no parameters to train")
    if not lr >= 0:
        raise ArgumentError(f"{name}: lr must not be negative, got {lr}")
    if len({id(p) for p in parameters}) != len(parameters):
        raise ArgumentError(f"{name}: a parameter is listed twice")
    first = parameters[0]
    for p in parameters:
        if not isinstance(p, Tensor) or not p.requires_grad or not p.is_leaf:
            raise ArgumentError(f"{name}: expected leaf tensors with requires_grad=True, got {p!r}")
        if p.device != first.device:
            raise DeviceMismatch(f"{name}: parameters on both {first.device} and {p.device}")
        if p.dtype != first.dtype:
            raise DtypeError(f"{name}: parameters of both {first.dtype} and {p.dtype}")


def clip_gradient_norm(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients so that their joint Euclidean norm is at most `limit`; the norm before.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    if not limit > 0:
        raise ArgumentError(f"clip_gradient_norm: limit must be positive, got {limit}")
    leaves = [p for p in parameters if p.grad is not None]
    gradients: list[Array] = [p.grad for p in leaves]
    norm = math.sqrt(sum(float((g * g).sum()) for g in gradients))
    if norm > limit:
        for p, g in zip(leaves, gradients, strict=True):
            p.grad = g * (limit / norm)
    return norm
