"""The entries of a checkpoint's JSON, each with the values that it may have.

Every entry is optional: a file of `gpucnn.save` holds a model, one of a Trainer a run.  A reader
uses info["history"] and the like; what the file lacks is a CheckpointError too.
"""

from typing import Any

from gpucnn.errors import CheckpointError
from gpucnn.schema import (
    Check,
    anything,
    integer,
    list_of,
    mismatch,
    number,
    optional,
    record,
    scalar,
    text,
)


class Info(dict[str, Any]):
    """The JSON of a checkpoint's header; info["name"] raises CheckpointError if it is missing."""

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(
            f"the checkpoint has no entry {key!r}; it may hold only a model, or no run of a script"
        )


def _scalar_or_list(item: Check) -> Check:
    """A scalar, or a list of values that `item` accepts."""

    def check(value: Any, where: str) -> None:
        (list_of(item) if isinstance(value, list) else scalar)(value, where)

    return check


_arguments = record({}, others=_scalar_or_list(integer()))  # of a function in gpucnn.models
_named_model = record({"name": text}, optional_entries={"config": _arguments})
_own_model = record({"class": text})


def _model(value: Any, where: str) -> None:
    """A model of gpucnn.models, or the class of a custom one."""
    if not isinstance(value, dict):
        raise mismatch(where, 'a dict with "name" and "config"', value)
    (_own_model if "class" in value else _named_model)(value, where)


def _normalize(value: Any, where: str) -> None:
    mean, std = number(-1e6, 1e6), number(1e-6, 1e6)  # their float32 reciprocals are finite
    record({"mean": list_of(mean), "std": list_of(std)})(value, where)
    list_of(std, length=len(value["mean"]))(value["std"], f"{where}.std")


_COLUMNS = {
    "epoch": integer(1),
    "train_loss": number(),
    "train_accuracy": number(0, 1),
    "test_loss": optional(number()),
    "test_accuracy": optional(number(0, 1)),
    "lr": number(0),
    "seconds": number(0),
    "images_per_second": number(0),
    "step_ms": optional(number(0)),
}
_ROW = record(_COLUMNS)


def _row(value: Any, where: str) -> None:
    """A row of a history; a Trainer's test_metrics add entries of their own."""
    added = {}
    if isinstance(value, dict):
        added = {k: v for k, v in value.items() if k.startswith("test_") and k not in _COLUMNS}
        value = {k: v for k, v in value.items() if k not in added}
    _ROW(value, where)
    record({}, others=optional(number()))(added, where)


_settings = record({}, others=_scalar_or_list(scalar))  # the values of flags
_state = record({}, others=anything)  # of an object, which checks it when it loads it

_INFO = record(
    {"format": anything},
    others=anything,
    optional_entries={
        # what prediction needs
        "model": _model,
        "classes": list_of(text),
        "normalize": _normalize,
        # a run of a training script
        "script": text,
        "settings": _settings,
        "execution": _settings,
        # a Trainer
        "optimizer": record({"name": text}, others=anything),
        "scheduler": optional(record({"name": text, "state": _state})),
        "epoch": integer(),
        "step": integer(),
        "lr": number(0),
        "history": list_of(_row),
        "metrics": _state,
        "seconds": number(0),
        "on_nan": record({"skipped": integer(), "halvings": integer(), "in_a_row": integer()}),
        "scaler": optional(_state),
        "loader": _state,
        "generators": record({}, others=_state),
    },
)


def checked_info(content: Any) -> Info:
    """The entries of a checkpoint's JSON; CheckpointError names one that is not as expected."""
    _INFO(content, "")
    return Info(content)
