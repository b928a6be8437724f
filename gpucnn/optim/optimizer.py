"""The base of every optimizer: parameters and state in flat buffers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpucnn import schema
from gpucnn.cpu import give_back_freed_memory, parallel
from gpucnn.device import Array, array_module, device_of, to_device, working_on
from gpucnn.errors import ArgumentError, CheckpointError, GraphError
from gpucnn.gradient_checks import check_gradient
from gpucnn.integers import ceil_div
from gpucnn.optim.half_copies import HalfCopies, HalfCopy
from gpucnn.optim.param_groups import check_number, make_groups, plain
from gpucnn.out_of_memory import explaining
from gpucnn.tensor import Tensor

# Elements per task of a CPU worker.  SGD is fastest with this size or twice this size; with smaller
# blocks, two threads contend for the interpreter's lock.  For Adam the size makes no difference.
_BLOCK = 128 * 1024
_ALIGN = 16  # elements: each parameter starts on a 64-byte line of the flat buffer
_THREADS = 256  # per block on a GPU
_WIDTH = 4  # elements of a thread: WIDTH in kernels/optimizer.cu
_MOST_BLOCKS = 1024  # per parameter: enough to fill any GPU; the kernel's loop covers the rest
_ROWS = 16  # parameters per launch: GRADIENTS in kernels/optimizer.cu
_GROUP = schema.record({"params": schema.list_of(schema.integer())}, others=schema.anything)
_STATE = schema.record(
    {"steps": schema.integer(), "param_groups": schema.list_of(_GROUP)}, others=schema.anything
)


class Optimizer:
    """Base of SGD, Adam, AdamW and Muon; a MultiOptimizer is several of them.

    params is an iterable of leaf tensors of one dtype on one device, or an iterable of parameter
    groups: dicts with "params" and the hyperparameters in which the group differs from `defaults`,
    the constructor's arguments.  `param_groups` lists the groups, each a dict with "params", a
    tuple, and every hyperparameter.  Hyperparameters may be changed there between steps, as a
    scheduler does.

    The parameters' arrays become views of one flat buffer, and so does each state (velocity,
    moments), with 64-byte alignment.  A parameter whose grad is None, such as a frozen one, is not
    updated, not even by weight decay.

    On a GPU under autocast, a step also writes the parameters in half precision: the next forward
    pass casts nothing.

    Raises ArgumentError for invalid params or hyperparameters, DeviceMismatch or DtypeError for
    parameters on several devices or of several dtypes.
    """

    states: tuple[str, ...] = ()  # names of the flat state buffers

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        self.defaults = defaults
        self.param_groups = make_groups(type(self).__name__, params, defaults)
        self._check_groups()
        self.parameters: list[Tensor] = [p for g in self.param_groups for p in g["params"]]
        self.steps = 0  # calls of step()
        first = self.parameters[0].data
        xp = array_module(first)
        self._starts, size = [], 0
        for parameter in self.parameters:
            self._starts.append(size)
            size += ceil_div(parameter.size, _ALIGN) * _ALIGN
        self._launches = list(self._plan())
        self._by_kernel = xp is not np and first.dtype == np.float32
        self._table: tuple[Array, Array] | None = None  # for the kernel: starts and sizes
        # For step_if_finite: the largest magnitudes of parameters and of each state, if known
        self._bounds: dict[str, float] | None = None
        # For a step on a GPU that the host does not wait for: (1,) int32, see kernels/optimizer.cu
        self.guard: Array | None = None
        # For a GradScaler: what multiplies the gradients; 0 skips the step, None is 1.  A number,
        # or an array () for the kernels
        self.unscale: Any = None
        with self._working("the state"):
            self._flat = xp.zeros(size, dtype=first.dtype)
            self._state = {name: xp.zeros_like(self._flat) for name in self.states}
            for parameter, view in zip(self.parameters, self._views(self._flat), strict=True):
                view[...] = parameter.data
                # Bypasses the change counter: the values are the same, so graphs stay valid
                parameter._data, parameter._cache = view, None
        self.copies = HalfCopies(self.parameters, self._starts, self._flat)
        # Device addresses of the views, which step() checks
        self._addresses = [None if xp is np else p.data.data.ptr for p in self.parameters]
        del first
        give_back_freed_memory()  # the parameters' old arrays, and temporaries of initialization

    @property
    def parts(self) -> "tuple[Optimizer, ...]":
        """The optimizers that it is made of: itself, but for a MultiOptimizer."""
        return (self,)

    def offered_copies(self) -> list[HalfCopy]:
        """The half-precision copies that the next forward pass will find."""
        return self.copies.offered()

    @property
    def lr(self) -> float:
        """The first group's learning rate; setting it sets every group's."""
        lr: float = self.param_groups[0]["lr"]
        return lr

    @lr.setter
    def lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr

    def check(self, who: str, group: Mapping[str, Any]) -> None:
        """Raise ArgumentError for a hyperparameter out of range; subclasses check their own."""
        check_number(who, "lr", group["lr"])

    def _check_groups(self) -> None:
        name = type(self).__name__
        for i, group in enumerate(self.param_groups):
            self.check(name if len(self.param_groups) == 1 else f"{name}: group {i}", group)

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        what = f"{what} of {type(self).__name__}"
        with explaining(what), working_on(self.parameters[0].device):
            yield

    def _views(self, flat: Array) -> list[Array]:
        return [
            flat[start : start + parameter.size].reshape(parameter.shape)
            for start, parameter in zip(self._starts, self.parameters, strict=True)
        ]

    def zero_grad(self) -> None:
        """Set every parameter's grad to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Update every parameter that has a gradient.

        Raises ArgumentError for a hyperparameter out of range; GraphError if a parameter's array
        was replaced since the optimizer was built; ShapeError, DtypeError or DeviceMismatch for a
        gradient that does not match its parameter.  No parameter is updated then.
        """
        moved = self._ready()
        self.steps += 1
        if not self._by_kernel and self.unscale == 0:
            return
        self._bounds = None
        with self._working("a step"):
            if self._by_kernel:
                self.copies.prepare(moved)
            for i in moved:
                self.parameters[i]._changed()
            if self._by_kernel:
                self._step_by_kernel()
                self.copies.offer()
            else:
                self._step_on_arrays(moved)

    def _ready(self) -> list[int]:
        """The numbers of the parameters that a step updates; raises what step() does."""
        self._check_groups()
        moved = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for i in moved:
            self._check_own(i)
        return moved

    def _check_own(self, i: int) -> None:
        """Raise unless parameter i's array is still the optimizer's view, and its gradient matches.

        model.to(device) and model.astype(dtype) replace the array.
        """
        parameter, flat = self.parameters[i], self._flat
        data = parameter._data  # reading .data would drop the cache
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
        """Update one parameter at a time; on the CPU, distribute its blocks over the workers."""
        work: list[tuple[Any, ...]] = []
        group_of = [group for group in self.param_groups for _ in group["params"]]
        for i in moved:
            start, parameter = self._starts[i], self.parameters[i]
            gradient, rule = parameter.grad, self.update(i, group_of[i])
            assert gradient is not None
            gradient = gradient.reshape(-1)
            if self.unscale is not None:
                gradient = gradient * gradient.dtype.type(self.unscale)
            block = _BLOCK if isinstance(self._flat, np.ndarray) else max(parameter.size, 1)
            for low in range(0, parameter.size, block):
                high = min(low + block, parameter.size)
                here = slice(start + low, start + high)
                buffers = (self._state[name][here] for name in self.states)
                work.append((rule, self._flat[here], gradient[low:high], *buffers))
        _run(work)

    def _step_by_kernel(self) -> None:
        """One launch for every 16 parameters of a group."""
        starts, sizes = self._tables()
        for group, first, grid in self._launches:
            gradients = self._gradients(first, grid[1])
            self.launch(self.param_groups[group], grid, _THREADS, starts, sizes, first, *gradients)

    def _tables(self) -> tuple[Array, Array]:
        """On the device: where each parameter starts in the flat buffers, and its length."""
        if self._table is None:
            xp = array_module(self._flat)
            sizes = [parameter.size for parameter in self.parameters]
            table = np.array([self._starts, sizes], np.int64)
            self._table = (xp.asarray(table[0]), xp.asarray(table[1]))
        return self._table

    def _gradients(self, first: int, rows: int) -> list[Array | None]:
        """A launch's gradients: of parameter `first` and the next ones, 16 with None at the end."""
        xp = array_module(self._flat)
        gradients: list[Array | None] = [
            None if p.grad is None else xp.ascontiguousarray(p.grad)
            for p in self.parameters[first : first + rows]
        ]
        return gradients + [None] * (_ROWS - len(gradients))

    def _plan(self) -> Iterator[tuple[int, int, tuple[int, int]]]:
        """The launches of a step: (group, first parameter, grid).

        grid is (blocks per parameter, parameters).  It depends only on sizes, so it is the same in
        every step.
        """
        start = 0
        for number, group in enumerate(self.param_groups):
            end = start + len(group["params"])
            for first in range(start, end, _ROWS):
                rows = self.parameters[first : min(first + _ROWS, end)]
                most = max(parameter.size for parameter in rows)
                blocks = min(ceil_div(most, _THREADS * _WIDTH), _MOST_BLOCKS)
                yield number, first, (blocks, len(rows))
            start = end

    def launch(
        self, group: Mapping[str, Any], grid: tuple[int, int], block: int, *table: Any
    ) -> None:
        """Launch the rule's kernel in kernels/optimizer.cu with the group's hyperparameters.

        table holds the kernel's arguments `starts` to `g15`, which follow the flat buffers.
        """
        raise NotImplementedError

    def update(self, i: int, group: Mapping[str, Any]) -> Callable[..., None]:
        """The rule that updates parameter i, of `group`; called once a step if it has a gradient.

        `rule(p, g, *states, scratch)` changes p and the states in place.  All its arguments are
        flat arrays of one length; it must not write to g.
        """
        raise NotImplementedError

    def bounds_after(
        self, group: Mapping[str, Any], gradient: float, bounds: Mapping[str, float]
    ) -> dict[str, float]:
        """Bounds on magnitudes after a step of `group`, intermediate results included.

        gradient bounds the gradient's elements.  `bounds` has "value", of a parameter, and each
        state, and so has the result.  Infinite if unknown: step_if_finite then makes every step on
        trial.
        """
        return dict.fromkeys(bounds, math.inf)

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "param_groups": [...], state name: flat array, ...}.

        A group is plain JSON data: its hyperparameters, and "params" as indices that count over all
        groups.  The arrays are not copies.
        """
        groups, first = [], 0
        for group in self.param_groups:
            numbers = list(range(first, first + len(group["params"])))
            settings = {key: plain(value) for key, value in group.items() if key != "params"}
            groups.append({**settings, "params": numbers})
            first += len(numbers)
        return {"steps": self.steps, "param_groups": groups, **self._state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: its steps, its arrays and its groups' hyperparameters.

        The arrays may be on any device.  Raises CheckpointError, and changes nothing, if the state
        belongs to another optimizer or model, or its groups have other numbers of parameters.
        """
        steps, groups = self._checked_state(state)
        with self._working("the state"):
            for what, buffer in self._state.items():
                buffer[...] = to_device(state[what], device_of(buffer))
        self.steps, self._bounds = steps, None
        for group, settings in zip(self.param_groups, groups, strict=True):
            group.update(settings)

    def _checked_state(self, state: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
        """The steps and the groups' hyperparameters of a state that fits."""
        given = self._given_groups(state)
        wrong = f"{type(self).__name__}: the state does not fit"
        settings = {key: schema.like(value) for key, value in self.defaults.items()}
        check_group = schema.record(settings, optional_entries={"initial_lr": schema.number(0)})
        for i, group in enumerate(given):
            try:
                check_group(group, f"group {i}")
                self.check(f"group {i}", group)
            except (ArgumentError, CheckpointError) as error:
                raise CheckpointError(f"{wrong}: {error}") from error
        for what, buffer in self._state.items():
            self.check_array(what, state.get(what), buffer.shape, buffer.dtype)
        return state["steps"], given

    def _given_groups(self, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The groups' hyperparameters in a state of as many groups and parameters."""
        wrong = f"{type(self).__name__}: the state does not fit"
        try:
            _STATE(state, "")
        except CheckpointError as error:
            raise CheckpointError(f"{wrong}: {error}") from None
        given = [dict(group) for group in state["param_groups"]]
        found = [len(group.pop("params")) for group in given]
        own = [len(group["params"]) for group in self.param_groups]
        if found != own:
            raise CheckpointError(
                f"{wrong}: expected {_sizes(own)}, got {_sizes(found)}\n"
                "  build the optimizer with the groups of the run"
            )
        return given

    def check_array(self, what: str, array: Any, shape: tuple[int, ...], dtype: Any) -> None:
        """Raise CheckpointError unless `array`, `what` of a state, has this shape and dtype."""
        found = tuple(getattr(array, "shape", ())) if array is not None else "nothing"
        wrong = f"{type(self).__name__}: the state does not fit"
        if found != shape:
            raise CheckpointError(f"{wrong}: expected {what} of shape {shape}, got {found}")
        if array.dtype != dtype:
            raise CheckpointError(f"{wrong}: expected {what} of {dtype}, got {array.dtype}")

    def __repr__(self) -> str:
        groups = []
        for group in self.param_groups:
            settings = [f"{key}={value}" for key, value in group.items() if key != "params"]
            groups.append(", ".join([f"{len(group['params'])} parameters", *settings]))
        return f"{type(self).__name__}({'; '.join(groups)})"


def _sizes(lengths: list[int]) -> str:
    one = len(lengths) == 1
    numbers = ", ".join(map(str, lengths))
    return f"{len(lengths)} group{'' if one else 's'} of {numbers} parameters"


def _run(work: list[tuple[Any, ...]]) -> None:
    """Apply each block's rule to its arrays; on the CPU, in parallel."""
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
