"""What every optimizer shares: one flat buffer for the parameters, and its state."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn.autograd import check_gradient
from gpucnn.cpu import give_back_freed_memory, parallel
from gpucnn.device import Array, array_module, device_of, to_device, working_on
from gpucnn.errors import (
    ArgumentError,
    CheckpointError,
    DeviceMismatch,
    DtypeError,
    GraphError,
    OutOfMemory,
)
from gpucnn.integers import ceil_div
from gpucnn.out_of_memory import explain
from gpucnn.tensor import Tensor

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
        self.parameters = _listed(type(self).__name__, parameters)
        self.lr = lr
        self.steps = 0  # how many step() calls there were
        _check(type(self).__name__, self.parameters, lr)
        first = self.parameters[0].data
        xp = array_module(first)
        self._starts, size = [], 0
        for parameter in self.parameters:
            self._starts.append(size)
            size += ceil_div(parameter.size, _ALIGN) * _ALIGN
        self._by_kernel = xp is not np and first.dtype == np.float32
        self._table: tuple[Array, Array] | None = None  # for the kernel: starts and sizes
        with self._working("the state"):
            self._flat = xp.zeros(size, dtype=first.dtype)
            self._state = {name: xp.zeros_like(self._flat) for name in self.states}
            for parameter, view in zip(self.parameters, self._views(self._flat), strict=True):
                view[...] = parameter.data
                parameter._data, parameter._cache = view, None  # the same values: graphs stay good
        # On a GPU: where each must still be at a step.
        self._addresses = [None if xp is np else p.data.data.ptr for p in self.parameters]
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

        Raises GraphError, and moves nothing, if a parameter's array was replaced since the
        optimizer was built; ShapeError, DtypeError or DeviceMismatch for a gradient unlike it.
        """
        moved = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for i in moved:
            self._check_own(i)
        self.steps += 1
        for i in moved:
            self.parameters[i]._changed()
        with self._working("a step"):
            if self._by_kernel:
                self._step_by_kernel()
            else:
                self._step_on_arrays(moved)

    def _check_own(self, i: int) -> None:
        """Parameter i's array must still be the view that the optimizer made, its gradient alike.

        It is another after model.to(device) or model.astype(dtype).
        """
        parameter, flat = self.parameters[i], self._flat
        data = parameter.data
        if isinstance(data, np.ndarray):
            same = data.base is flat
        else:
            same = data.data.ptr == self._addresses[i]
        name = type(self).__name__
        if not same:
            raise GraphError(
                f"{name}: the array of parameter {i} was replaced after the optimizer was built: "
                f"{flat.dtype} on {device_of(flat)} then, {data.dtype} on {device_of(data)} now\n"
                "  call model.to(device) or model.astype(dtype) before building it"
            )
        check_gradient(f"{name}: parameter {i}", parameter.grad, data)

    def _step_on_arrays(self, moved: list[int]) -> None:
        """Parameter by parameter; on the CPU, in blocks that the workers share."""
        work: list[tuple[Any, ...]] = []
        for i in moved:
            start, parameter = self._starts[i], self.parameters[i]
            gradient, rule = parameter.grad, self.update(i)
            assert gradient is not None
            gradient = gradient.reshape(-1)
            block = _BLOCK if isinstance(self._flat, np.ndarray) else max(parameter.size, 1)
            for low in range(0, parameter.size, block):
                high = min(low + block, parameter.size)
                here = slice(start + low, start + high)
                buffers = (self._state[name][here] for name in self.states)
                work.append((rule, self._flat[here], gradient[low:high], *buffers))
        _run(work)

    def _step_by_kernel(self) -> None:
        """All parameters in one launch, or one for every 16 of a large model."""
        xp = array_module(self._flat)
        if self._table is None:
            sizes = [parameter.size for parameter in self.parameters]
            table = np.array([self._starts, sizes], np.int64)
            self._table = (xp.asarray(table[0]), xp.asarray(table[1]))
        for first, grid in self._grids():
            gradients: list[Array | None] = [
                None if p.grad is None else xp.ascontiguousarray(p.grad)
                for p in self.parameters[first : first + _ROWS]
            ]
            gradients += [None] * (_ROWS - len(gradients))
            self.launch(grid, _THREADS, *self._table, first, *gradients)

    def _grids(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """The first parameter of each launch, and its grid: (blocks of each parameter, parameters).

        It depends on the parameters' sizes alone: the same at every step.
        """
        for first in range(0, len(self.parameters), _ROWS):
            rows = self.parameters[first : first + _ROWS]
            most = max(parameter.size for parameter in rows)
            yield first, (min(ceil_div(most, _THREADS), _MOST_BLOCKS), len(rows))

    def launch(self, grid: tuple[int, int], block: int, *table: Array | int | None) -> None:
        """Launch the rule's kernel in kernels/optimizer.cu.

        table is its parameters `starts` to `g15`: the flat buffers come before, numbers after.
        """
        raise NotImplementedError

    def update(self, i: int) -> Callable[..., None]:
        """This step's rule for parameter i, whose step it is: called once for each that moves.

        `rule(p, g, *states, scratch)` changes p and the states in place.  p, g, the states and
        scratch are flat arrays of one length; g must stay as it is.
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

        Its arrays may be on any device.  Raises CheckpointError, and changes nothing, if it belongs
        to another optimizer or model.
        """
        name = type(self).__name__
        try:
            steps, lr = int(state["steps"]), float(state["hyperparameters"]["lr"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{name}: the state does not fit: expected steps and hyperparameters with lr"
            ) from None
        for what, buffer in self._state.items():
            found = tuple(state[what].shape) if what in state else "nothing"
            if found != buffer.shape:
                raise CheckpointError(
                    f"{name}: the state does not fit: expected {what} of shape {buffer.shape}, "
                    f"got {found}"
                )
        with self._working("the state"):
            for what, buffer in self._state.items():
                buffer[...] = to_device(state[what], device_of(buffer))
        self.steps, self.lr = steps, lr

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.hyperparameters().items())
        return f"{type(self).__name__}({len(self.parameters)} parameters, {settings})"


def _run(work: list[tuple[Any, ...]]) -> None:
    """Apply each block's rule to its arrays: on the CPU the workers share them."""
    if not work:
        return
    xp = array_module(work[0][1])

    def run(block: tuple[Any, ...]) -> None:
        rule, *arrays = block
        rule(*arrays, xp.empty_like(arrays[0]))

    if xp is np:
        parallel(run, work)
    else:
        for block in work:
            run(block)


def _listed(who: str, parameters: Any) -> list[Tensor]:
    """parameters as a list of tensors; ArgumentError says in a line what was passed instead."""
    if callable(getattr(parameters, "parameters", None)):
        what = type(parameters).__name__
        raise ArgumentError(f"{who}: expected parameters, got a {what}; pass model.parameters()")
    if isinstance(parameters, Tensor):
        raise ArgumentError(f"{who}: expected a list of parameters, got one tensor; pass [tensor]")
    try:
        listed = list(parameters)
    except TypeError:
        what = type(parameters).__name__
        raise ArgumentError(f"{who}: expected a list of parameters, got a {what}") from None
    for i, p in enumerate(listed):
        if not isinstance(p, Tensor):
            raise ArgumentError(
                f"{who}: expected tensors, parameter {i} is a {type(p).__name__}; "
                "pass model.parameters()"
            )
    return listed


def _check(name: str, parameters: list[Tensor], lr: float) -> None:
    if not parameters:
        raise ArgumentError(
            f"{name}: there are no parameters to train; an iterator gives each only once"
        )
    if not isinstance(lr, int | float | np.number):
        raise ArgumentError(f"{name}: lr must be a number, got a {type(lr).__name__}")
    if not lr >= 0:
        raise ArgumentError(f"{name}: lr must not be negative, got {lr}")
    if len({id(p) for p in parameters}) != len(parameters):
        raise ArgumentError(f"{name}: a parameter is listed twice")
    first = parameters[0]
    for i, p in enumerate(parameters):
        if not p.is_leaf:
            raise ArgumentError(f"{name}: expected leaf tensors, parameter {i} is an op's result")
        if not p.requires_grad:
            raise ArgumentError(
                f"{name}: parameter {i} of shape {p.shape} has requires_grad=False; leave out what "
                "is frozen: [p for p in model.parameters() if p.requires_grad]"
            )
        if p.device != first.device:
            raise DeviceMismatch(f"{name}: parameters on both {first.device} and {p.device}")
        if p.dtype != first.dtype:
            raise DtypeError(f"{name}: parameters of both {first.dtype} and {p.dtype}")


def clip_gradient_norm(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale all gradients so that their joint Euclidean norm is at most `limit`; the norm before.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    leaves = [p for p in _listed("clip_gradient_norm", parameters) if p.grad is not None]
    if not limit > 0:
        raise ArgumentError(f"clip_gradient_norm: limit must be positive, got {limit}")
    gradients: list[Array] = [p.grad for p in leaves]
    squares = 0.0
    for g in gradients:
        with working_on(device_of(g)):
            squares += float((g * g).sum())
    norm = math.sqrt(squares)
    if norm > limit:
        for p, g in zip(leaves, gradients, strict=True):
            with working_on(device_of(g)):
                p.grad = g * (limit / norm)
    return norm
