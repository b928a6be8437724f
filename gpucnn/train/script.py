"""What training scripts share: flags, a folder for each run, --resume, the result.

A script of your own gets all of it, and says only what is its own:

    from gpucnn.train.script import Job, Script

    def run(job: Job) -> None:
        training, test = ...                                # by job.settings.data, say
        model = models.build(job.settings.model).to(job.device)
        loader = data.DataLoader(training, job.settings.batch_size, ...)
        job.train(model, loader, test_loader, classes=training.classes)

    if __name__ == "__main__":
        script = Script("my_script", "Train what I want.", epochs=8, batch_size=64, lr=0.04)
        script.add("--model", "the network", "lenet", choices=("lenet", "lenet5"))
        sys.exit(script.main(run))

examples/train_lenet.py is such a script.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpucnn.arguments import exit_status, non_negative_float, non_negative_int, positive_int
from gpucnn.checkpoint import Checkpoint
from gpucnn.cpu import set_num_threads
from gpucnn.data import default_root
from gpucnn.device import Device, choose_device
from gpucnn.errors import ArgumentError
from gpucnn.ops import get_conv_algorithm, set_conv_algorithm
from gpucnn.random import manual_seed
from gpucnn.train.job import OPTIMIZERS, SCHEDULES, Job
from gpucnn.train.run_folder import LAST, find_run, refuse_to_overwrite

__all__ = ["RECIPE", "RUN", "WHERE", "Job", "Script"]

RUN, RECIPE, WHERE = "the run", "the recipe", "where and how"  # the headings of --help
ADAM_LR = 0.001  # the default learning rate of adam and adamw


class Script:
    """The command line of a training script.

    `name` is the file's, without .py: it is kept in checkpoints, so that --resume goes on with runs
    of this script only.  `defaults` has the default of every setting.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        epochs: int | None,
        batch_size: int,
        lr: float | None,
        schedule: str = "one-cycle",
        augment: str = "random crops and flips of the training images",
        limit: str = "use the first N images of each split",
        shown: Mapping[str, str] | None = None,
    ) -> None:
        """epochs, batch_size, lr and schedule are defaults; augment and limit say what these do.

        lr is the rate of SGD; Adam's is ADAM_LR.  The script may settle epochs and lr itself, if
        they are None here, before it calls Job.train; `shown` says for --help what they will be.
        """
        self.name = name
        self.defaults: dict[str, Any] = {}
        self._parser = argparse.ArgumentParser(
            description=description, argument_default=argparse.SUPPRESS
        )
        self._groups = {
            title: self._parser.add_argument_group(title) for title in (RUN, RECIPE, WHERE)
        }
        self._of_run: set[str] = set()
        self._paths: dict[str, tuple[str, str]] = {}  # setting: (flag, what to do without it)
        self._sgd_lr = lr
        shown = {
            "lr": f"{lr} for sgd, {ADAM_LR} for adam and adamw",
            "augment": "--augment",
            "limit": "all",
            **(shown or {}),
        }
        self._add_recipe(epochs, batch_size, schedule, augment, limit, shown)
        self._add_where_and_how()

    def add(
        self,
        flag: str,
        text: str,
        default: Any = None,
        *,
        shown: str | None = None,
        group: str = RUN,
        missing: str | None = None,
        **options: Any,
    ) -> None:
        """Add a flag, or a positional argument that may be left out.

        text, options  for --help and argparse; the default follows the text, or `shown` for it
        group          its heading in --help: "the run", "the recipe" or "where and how".  --resume
                       keeps all flags; those of "where and how" may be given anew, others not
        missing        for a path that is read: what to do if it does not exist, which is an error
        """
        key, positional = _key(flag), not flag.startswith("-")
        self.defaults[key] = default
        if group != WHERE:
            self._of_run.add(key)
        if missing is not None:
            self._paths[key] = (options.get("metavar", flag) if positional else flag, missing)
        if positional:
            options["nargs"] = "?"
        self._groups[group].add_argument(
            flag, help=f"{text} (default: {_said(default) if shown is None else shown})", **options
        )

    def add_number(
        self, flag: str, text: str, default: int | None, shown: str | None = None, **how: Any
    ) -> None:
        """Add a flag for a whole number of at least 1; the arguments are those of `add`."""
        self.add(flag, text, default, shown=shown, type=positive_int, metavar="N", **how)

    def add_data(self) -> None:
        """Add --data, the folder of a data set that may be downloaded."""
        self.add(
            "--data",
            "folder with the data set",
            None,
            shown=f"$GPUCNN_DATA, else {default_root()}",
            group=WHERE,
            missing="correct the name, or make the folder (mkdir) to have the data "
            "downloaded there",
            metavar="DIR",
        )

    def main(self, run: Callable[[Job], object], argv: Sequence[str] | None = None) -> int:
        """Run a job from the command line, or `argv`.

        Returns the exit status: 0 done, 2 an error (its text is printed), 130 stopped by Ctrl-C.
        """

        def whole() -> None:
            started = time.perf_counter()
            run(self.start(argv))
            print(f"wall time {time.perf_counter() - started:.1f} s")

        algorithm = get_conv_algorithm()
        try:
            return exit_status(whole)
        finally:
            set_conv_algorithm(algorithm)

    def start(self, argv: Sequence[str] | None = None) -> Job:
        """The job that the command line, or `argv`, asks for.

        Settles the settings: defaults, then those of a resumed run, then the command line.  Chooses
        the device and says why; sets --threads, --exact and the seed of the default generator.

        Raises ArgumentError, CheckpointError or DeviceError for a mistake in the command line.
        """
        given = vars(self._parser.parse_args(argv))
        resume = given.pop("resume", None)
        checkpoint = None
        if resume is not None:
            path, checkpoint = find_run(resume, given.get("out"), self.name)
            given.setdefault("out", str(path.parent))
            if Path(given["out"]).absolute() != path.parent.absolute():
                refuse_to_overwrite(given["out"])
        elif given.get("out") is not None:
            refuse_to_overwrite(given["out"])
        settings = argparse.Namespace(**self._settings(given, checkpoint))
        if settings.lr is None and settings.optimizer != "sgd":
            settings.lr = ADAM_LR
        elif settings.lr is None:
            settings.lr = self._sgd_lr

        device, reason = (
            choose_device()
            if settings.device == "auto"
            else (Device.parse(settings.device), "as asked")
        )
        job = Job(self.recorded, settings, device, checkpoint)
        job.say(f"device: {device} ({reason})")
        if settings.threads is not None:
            set_num_threads(settings.threads)
        if settings.exact:
            set_conv_algorithm("exact")
        manual_seed(settings.seed)
        return job

    def _add_recipe(
        self,
        epochs: int | None,
        batch_size: int,
        schedule: str,
        augment: str,
        limit: str,
        shown: Mapping[str, str],
    ) -> None:
        def add(flag: str, text: str, default: Any, **how: Any) -> None:
            self.add(flag, text, default, group=RECIPE, shown=shown.get(_key(flag)), **how)

        number = {"type": positive_int, "metavar": "N"}
        add("--epochs", "passes over the training set", epochs, **number)
        add("--batch-size", "images per step", batch_size, **number)
        rate = {"type": non_negative_float, "metavar": "X"}
        add("--lr", "learning rate, the highest of the schedule", None, **rate)
        add("--weight-decay", "decay of every parameter", 5e-4, **rate)
        add("--optimizer", "sgd has momentum 0.9", "sgd", choices=tuple(OPTIMIZERS))
        text = (
            "one-cycle: linear up over a quarter of the steps, then down to 0; "
            "step: a tenth after each third"
        )
        add("--schedule", text, schedule, choices=tuple(SCHEDULES))
        add("--augment", augment, True, action=argparse.BooleanOptionalAction)
        add("--limit", limit, None, **number)
        text = "of weights, order, augmentation and dropout"
        add("--seed", text, 0, type=non_negative_int, metavar="N")
        text = (
            "convolutions on the CPU as plain sums instead of Winograd's: slower, with a third to "
            "an eighth of its rounding error"
        )
        add("--exact", text, False, action="store_true")

    def _add_where_and_how(self) -> None:
        text = (
            "auto, cpu, cuda, cuda:N, or cudasim: the CUDA kernels on a CPU; auto takes what "
            "$GPUCNN_DEVICE names, else a GPU if one can be used, and says why"
        )
        self.add("--device", text, "auto", group=WHERE)
        text = "CPU threads; the result does not depend on it"
        self.add_number("--threads", text, None, "all cores", group=WHERE)
        text = f"folder for config.json, metrics.csv, {LAST}, best.safetensors, curves.png"
        self.add("--out", text, None, shown="a new one in runs/", group=WHERE, metavar="DIR")
        text = f"also write {LAST} every N steps; 0: after each epoch and when stopped with Ctrl-C"
        self.add("--save-every", text, 0, group=WHERE, type=non_negative_int, metavar="N")
        text = "print the result and warnings only"
        self.add("--quiet", text, False, group=WHERE, action="store_true")
        self._groups[WHERE].add_argument(
            "--resume",
            nargs="?",
            const="",
            metavar="FILE",
            help="go on with a stopped run, to the same result as if it had never stopped "
            f"(default file: {LAST} in --out, or of the newest run of this script)",
        )

    def _settings(self, given: dict[str, Any], checkpoint: Checkpoint | None) -> dict[str, Any]:
        saved = checkpoint.info["settings"] if checkpoint else {}
        for key, value in given.items():
            if key in saved and saved[key] != value:
                raise ArgumentError(
                    f"--resume: the run has {_flag(key)} {saved[key]}, the command line {value}\n"
                    f"  leave {_flag(key)} out to go on, or start a new run without --resume"
                )
        place = checkpoint.info["place"] if checkpoint else {}
        settings = {**self.defaults, **place, **saved, **given}
        for key, (flag, remedy) in self._paths.items():
            path = settings[key]
            if path is not None and not os.path.exists(os.path.expanduser(path)):
                raise ArgumentError(f"{flag}: {path} does not exist\n  {remedy}")
        return settings

    def recorded(self, settings: argparse.Namespace) -> dict[str, Any]:
        """What a checkpoint keeps of the settings, for --resume."""
        values = vars(settings)
        place = values.keys() - self._of_run - {"out", "quiet"}
        for key in self._paths:
            if values[key] is not None:
                values = {**values, key: os.path.abspath(os.path.expanduser(values[key]))}
        return {
            "script": self.name,
            "settings": {key: values[key] for key in self.defaults if key in self._of_run},
            "place": {key: values[key] for key in self.defaults if key in place},
        }


def _key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _said(default: Any) -> str:
    return "off" if default is False else str(default)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
