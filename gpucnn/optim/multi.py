"""Several optimizers as one: each kind of parameter has its own rule."""

from collections.abc import Mapping
from typing import Any

from gpucnn.errors import ArgumentError, CheckpointError, kind
from gpucnn.optim.half_copies import HalfCopy
from gpucnn.optim.optimizer import Optimizer
from gpucnn.optim.param_groups import make_groups


class MultiOptimizer(Optimizer):
    """Optimizers of different parameters, which step together and have one state.

        optimizer = optim.MultiOptimizer(
            optim.SGD([{"params": biases}, {"params": head, "lr": 0.67}], lr=0.053, momentum=0.85),
            optim.Muon(filters, lr=0.24),
        )
        trainer = train.Trainer(model, optimizer, loader)

    param_groups lists the groups of the first optimizer, then those of the second, and so on: the
    same dicts.  A scheduler counts the groups so; LambdaLR takes a function for each:

        schedule = optim.lr_scheduler.LambdaLR(
            optimizer, [lambda step: max(1 - step / 75, 0.0), *[lambda step: 1 - step / 200] * 2]
        )

    `parts` are the optimizers.  Step the whole, not a part of it.  A step checks everything before
    it changes anything.

    Raises ArgumentError unless there are Optimizers, of different parameters; DeviceMismatch or
    DtypeError for parameters on several devices or of several dtypes.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        for i, optimizer in enumerate(optimizers):
            if not isinstance(optimizer, Optimizer):
                raise ArgumentError(
                    f"MultiOptimizer: expected Optimizers, argument {i} is {kind(optimizer)}\n"
                    "  write MultiOptimizer(first, second)"
                )
        if not optimizers:
            raise ArgumentError("MultiOptimizer: expected Optimizers, got none")
        parts = tuple(part for optimizer in optimizers for part in optimizer.parts)
        parameters = [p for part in parts for p in part.parameters]
        make_groups("MultiOptimizer", parameters, {})  # or raise
        if len({part.steps for part in parts}) > 1:
            raise ArgumentError(
                "MultiOptimizer: the optimizers have done different numbers of steps: "
                f"{', '.join(str(part.steps) for part in parts)}"
            )
        self._parts = parts
        self.defaults = {}
        self.parameters = parameters
        self.param_groups = [group for part in parts for group in part.param_groups]
        self._flat = parts[0]._flat  # for its device and dtype, which are those of all
        self._by_kernel = all(part._by_kernel for part in parts)
        self._place = [(part, i) for part in parts for i in range(len(part.parameters))]

    @property
    def parts(self) -> tuple[Optimizer, ...]:
        return self._parts

    # --- what the parts share ---

    @property
    def steps(self) -> int:
        return self._parts[0].steps

    @steps.setter
    def steps(self, steps: int) -> None:
        for part in self._parts:
            part.steps = steps

    @property
    def guard(self) -> Any:
        return self._parts[0].guard

    @guard.setter
    def guard(self, guard: Any) -> None:
        for part in self._parts:
            part.guard = guard

    @property
    def unscale(self) -> Any:
        return self._parts[0].unscale

    @unscale.setter
    def unscale(self, unscale: Any) -> None:
        for part in self._parts:
            part.unscale = unscale

    @property
    def _bounds(self) -> Any:
        return self._parts[0]._bounds

    @_bounds.setter
    def _bounds(self, bounds: Any) -> None:
        for part in self._parts:
            part._bounds = bounds

    def offered_copies(self) -> list[HalfCopy]:
        return [copy for part in self._parts for copy in part.offered_copies()]

    # --- a step ---

    def check(self, who: str, group: Mapping[str, Any]) -> None:
        """Nothing: each part checks its own groups."""

    def _check_groups(self) -> None:
        for part in self._parts:
            part._check_groups()

    def _check_own(self, i: int) -> None:
        part, number = self._place[i]
        part._check_own(number)

    def step(self) -> None:
        """Step every part.  Raises what their step() does; no parameter is updated then."""
        self._ready()
        for part in self._parts:
            part.step()

    # --- state ---

    def state_dict(self) -> dict[str, Any]:
        """{"steps": int, "param_groups": [...], "optimizers": ["SGD", "Muon"], arrays, ...}.

        "params" of the groups count over all parts.  An array is named by its part:
        "0.velocity".
        """
        groups: list[dict[str, Any]] = []
        arrays: dict[str, Any] = {}
        first = 0
        for number, part in enumerate(self._parts):
            state = part.state_dict()
            for group in state["param_groups"]:
                groups.append({**group, "params": [first + i for i in group["params"]]})
            arrays |= {f"{number}.{k}": v for k, v in state.items() if hasattr(v, "dtype")}
            first += len(part.parameters)
        return {
            "steps": self.steps,
            "param_groups": groups,
            "optimizers": [type(part).__name__ for part in self._parts],
            **arrays,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.  Raises CheckpointError, and changes nothing, if it belongs to
        other optimizers or another model."""
        own = [type(part).__name__ for part in self._parts]
        given = state.get("optimizers") if isinstance(state, Mapping) else None
        if given != own:
            found = ", ".join(map(str, given))[:200] if isinstance(given, list) else "one optimizer"
            raise CheckpointError(
                f"MultiOptimizer: the state does not fit: expected that of {', '.join(own)}, "
                f"got that of {found}"
            )
        self._given_groups(state)  # or raise
        states = [self._state_of(number, state) for number in range(len(own))]
        for part, of_part in zip(self._parts, states, strict=True):
            part._checked_state(of_part)
        for part, of_part in zip(self._parts, states, strict=True):
            part.load_state_dict(of_part)

    def _state_of(self, number: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a part."""
        before = sum(len(part.param_groups) for part in self._parts[:number])
        after = before + len(self._parts[number].param_groups)
        prefix = f"{number}."
        arrays = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        groups = state["param_groups"][before:after]
        return {"steps": state["steps"], "param_groups": groups, **arrays}

    def __repr__(self) -> str:
        return f"MultiOptimizer({', '.join(map(repr, self._parts))})"
