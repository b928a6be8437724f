"""The argument `weights` of the networks that come trained."""

from typing import TypeVar

from gpucnn import weights as files
from gpucnn.errors import ArgumentError
from gpucnn.nn import Module

_Model = TypeVar("_Model", bound=Module)


def trained(model: _Model, name: str, weights: str | None, **config: int) -> _Model:
    """The model, with the weights that come with gpucnn and in evaluation mode if they are wanted.

    config is what the model was built with.  Raises ArgumentError for weights other than "default"
    or None, or if they are for another config.
    """
    if weights is None:
        return model
    if weights != "default":
        raise ArgumentError(
            f'{name}: weights must be "default" or None, got {weights!r:.99}\n'
            "  for a file of your own: gpucnn.load(path)"
        )
    info = files.info(name)
    built_with = {"classes": len(info["classes"]), "channels": len(info["normalize"]["mean"])}
    if config != built_with:
        wanted, got = (", ".join(f"{k}={v}" for k, v in c.items()) for c in (built_with, config))
        raise ArgumentError(f"{name}: its trained weights are for {wanted}, got {got}")
    model.load_state_dict(files.state_dict(name))
    return model.eval()
