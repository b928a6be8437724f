"""Make gpucnn/weights/NAME.safetensors from a finished run of a training script.

    python .ci/pack_weights.py runs/RUN/last.safetensors --data DIR --images "CIFAR-10: ..." \
        --recipe "..." --command "python examples/speedrun_cifar10.py --seed 0"

Filters and matrices become float16.  The accuracy on the card is that of the rounded weights on the
test set, which is read from DIR.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import data, models, train, weights
from gpucnn.checkpoint import read_checkpoint, write_checkpoint
from gpucnn.train.run_data import load_data

KEPT = ("model", "classes", "normalize", "script", "settings", "history")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", help="the run's last.safetensors")
    add("--data", required=True, help="the folder of the data set")
    add("--images", required=True, metavar="TEXT", help="on the card: the data set")
    add("--recipe", required=True, metavar="TEXT", help="on the card: how it was trained")
    add("--command", required=True, metavar="TEXT", help="on the card: the command that trained it")
    options = parser.parse_args()

    saved = read_checkpoint(options.run)
    name, config = saved.model_config()
    arrays: dict[str, Any] = {
        key: x.astype(np.float16) if x.ndim >= 2 else x for key, x in saved.part("model").items()
    }
    model = models.build(name, **config)
    model.load_state_dict(arrays)
    _, test = load_data(saved.info, options.data)
    normalize = data.Normalize(**saved.info["normalize"])
    loader = data.DataLoader(test, 500, transform=normalize, device="cpu")
    card = {
        "data": options.images,
        "recipe": options.recipe,
        "command": options.command,
        "seed": saved.info["settings"]["seed"],
        "accuracy": train.evaluate(model, loader).accuracy,
    }
    if name == "speedrun_cifar10":
        six_views = train.evaluate(models.SixViews(model), loader)
        card["accuracy with six views"] = six_views.accuracy
    card["sha256"] = weights.fingerprint(arrays)
    path = Path(weights.__file__).with_name(f"{name}.safetensors")
    info = {key: saved.info[key] for key in KEPT} | {"card": card}
    write_checkpoint(path, {f"model.{key}": x for key, x in arrays.items()}, info)
    print(f"{path}: {path.stat().st_size:,} bytes\n{json.dumps(card, indent=2)}")


if __name__ == "__main__":
    main()
