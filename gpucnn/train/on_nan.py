"""What a Trainer does about a step that is not finite: stop, skip it, or halve the rate."""

import warnings
from typing import Any

from gpucnn.errors import ArgumentError, DivergenceError, TrainingWarning
from gpucnn.optim import Optimizer

MODES = ("stop", "skip", "halve-lr")
REMEDY = "restart with a lower learning rate, or resume from an earlier checkpoint"
_MOST_SKIPPED, _MOST_HALVINGS = 50, 10  # in a row


class OnNan:
    """The policy, and what it has done so far in this run.

    skipped    steps without an update
    halvings   how often the learning rates were halved
    """

    def __init__(self, mode: str) -> None:
        if mode not in MODES:
            raise ArgumentError(
                f"Trainer: on_nan={mode!r} is unknown; expected {', '.join(map(repr, MODES))}"
            )
        self.mode = mode
        self.skipped = self.halvings = self._in_a_row = 0
        self._warned = False

    def good_step(self) -> None:
        self._in_a_row = 0

    def bad_step(self, text: str, damaged: bool, optimizer: Optimizer) -> None:
        """Decide about a fault that `text` describes; the update was left out.

        damaged: the parameters or states themselves are not finite, which no later step can mend.

        Raises DivergenceError if training cannot go on.
        """
        if self.mode == "stop" or damaged:
            raise DivergenceError(f"{text}\n  {REMEDY}")
        self._in_a_row += 1
        most = _MOST_SKIPPED if self.mode == "skip" else _MOST_HALVINGS
        if self._in_a_row > most:
            raise DivergenceError(
                f"{text}\n  {most} steps in a row before it were left out (on_nan={self.mode!r})"
                f"\n  {REMEDY}"
            )
        self.skipped += 1
        then = "the update is left out"
        if self.mode == "halve-lr":
            self.halvings += 1
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            then += " and the learning rate halved"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{text}\n  {then}, here and at later steps like it, which are only counted",
                TrainingWarning,
                stacklevel=2,
            )

    def scheduled(self, optimizer: Optimizer) -> None:
        """Scale the rates that a scheduler has just set."""
        if self.halvings:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5**self.halvings

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "halvings": self.halvings, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.halvings = state["skipped"], state["halvings"]
        self._in_a_row = state["in_a_row"]
