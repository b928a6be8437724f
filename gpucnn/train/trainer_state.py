"""The state of a Trainer: what a checkpoint stores, and how a run continues from it."""

from collections.abc import Mapping
from typing import Any

from gpucnn.checkpoint import Checkpoint
from gpucnn.device import Array
from gpucnn.errors import CheckpointError
from gpucnn.train.random_state import generator_state, restore_generator
from gpucnn.train.replay import generators_of


def state_of(trainer: Any) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the plain JSON data of a checkpoint."""
    tensors = {f"model.{k}": v for k, v in trainer.model.state_dict().items()}
    optimizer = trainer.optimizer.state_dict()
    arrays = {k: v for k, v in optimizer.items() if hasattr(v, "dtype")}
    plain = {k: v for k, v in optimizer.items() if k not in arrays}
    tensors |= {f"optimizer.{k}": v for k, v in arrays.items()}
    scheduler = None
    if trainer.scheduler is not None:
        state = trainer.scheduler.state_dict()
        scheduler = {"name": type(trainer.scheduler).__name__, "state": state}
    info = {
        **trainer.info,
        "optimizer": {"name": type(trainer.optimizer).__name__, **plain},
        "scheduler": scheduler,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "lr": trainer._lr,
        "history": trainer.history,
        "metrics": trainer.metrics.state_dict(),
        "seconds": trainer._seconds,
        "on_nan": trainer._guard.state_dict(),
        "scaler": trainer._precision.state_dict(),
        "loader": trainer.loader.state_dict(),
        "generators": {k: generator_state(g) for k, g in generators_of(trainer.model).items()},
    }
    return tensors, info


def restore(trainer: Any, checkpoint: Checkpoint) -> None:
    """Continue from a checkpoint of a run: see Trainer.resume, which says what it raises."""
    info, state = checkpoint.info, checkpoint.part("model")
    for part, own in (("optimizer", trainer.optimizer), ("scheduler", trainer.scheduler)):
        saved = info[part]["name"] if info[part] else "no scheduler"
        ours = type(own).__name__ if own is not None else "no scheduler"
        if saved != ours:
            raise CheckpointError(
                f"resume: the run was trained with {saved}, the trainer has {ours}"
            )
    generators = generators_of(trainer.model)
    if generators.keys() != info["generators"].keys():
        raise CheckpointError("resume: the model's dropout generators differ from the run's")
    if len(info["history"]) != info["epoch"]:
        raise CheckpointError(
            f"resume: the history has {len(info['history'])} epochs; expected {info['epoch']}"
        )
    trainer.model.check_state_dict(state)
    for name, array in trainer.model.state_dict().items():
        if array.dtype != state[name].dtype:
            raise CheckpointError(
                f"resume: {name} is {state[name].dtype}, in the trainer's model {array.dtype}\n"
                "  build the model as for the run"
            )
    trainer.optimizer.load_state_dict(info["optimizer"] | checkpoint.part("optimizer"))
    if trainer.scheduler is not None:
        trainer.scheduler.load_state_dict(info["scheduler"]["state"])
    trainer.loader.load_state_dict(info["loader"])
    for key, generator in generators.items():
        restore_generator(generator, info["generators"][key])
    trainer.metrics.load_state_dict(info["metrics"])
    trainer.model.load_state_dict(state)
    trainer.epoch, trainer.step = info["epoch"], info["step"]
    trainer._lr = info["lr"]
    trainer.history, trainer._seconds = info["history"], info["seconds"]
    trainer._guard.load_state_dict(info["on_nan"])
    trainer._precision.load_state_dict(info.get("scaler"))
    if where := trainer._guard.damaged():
        raise CheckpointError(f"resume: {where}")


def reschedule(trainer: Any, planned: Mapping[str, Any]) -> None:
    """Go on with another schedule from the present step, as if it had been used from the start.

    planned is the state_dict of a scheduler of the same kind; its position is not used.
    """
    scheduler = trainer.scheduler
    state = scheduler.state_dict()
    scheduler.load_state_dict(
        {**planned, **{key: state[key] for key in ("base_lrs", "last_epoch")}}
    )
    scheduler._set_lr()
    trainer._guard.scheduled()
