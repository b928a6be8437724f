"""The command line of training scripts: shared flags, a folder per run, --resume, the result.

Your own script adds only what is specific to it:

    from gpucnn.train.script import Job, Script

    def run(job: Job) -> None:
        training, test = ...                                # by job.settings.data, say
        model = models.build(job.settings.model).to(job.device)
        loader = data.DataLoader(training, job.settings.batch_size, ...)
        job.train(model, loader, test_loader, classes=training.classes)

    if __name__ == "__main__":
        script = Script("my_script", "Train LeNet on my images.", epochs=8, batch_size=64, lr=0.04)
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

__all__ = ["EXECUTION", "RECIPE", "RUN", "Job", "Script"]

# The headings of --help.  EXECUTION: device, threads and files, which a resumed run may change.
RUN, RECIPE, EXECUTION = "run", "recipe", "execution"
ADAM_LR = 0.001  # the default learning rate of adam and adamw


class Script:
    """The command line of a training script.

    `name` is the script's file name without .py.  Checkpoints record it, so that --resume accepts
    only runs of this script.  `defaults` maps every setting to its default.
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
        """epochs, batch_size, lr, schedule: defaults; augment, limit: help texts of these flags.

        lr is SGD's learning rate; the default for Adam and AdamW is ADAM_LR.  If epochs or lr is
        None, the script sets job.settings.epochs or .lr before it calls Job.train, and `shown`,
        {setting: text}, describes that default in --help.
        """
        self.name = name
        self.defaults: dict[str, Any] = {}
        self._parser = argparse.ArgumentParser(
            description=description, argument_default=argparse.SUPPRESS
        )
        self._groups = {
            title: self._parser.add_argument_group(title) for title in (RUN, RECIPE, EXECUTION)
        }
        self._of_run: set[str] = set()
        self._paths: dict[str, tuple[str, str]] = {}  # setting: (flag, remedy if it is missing)
        self._sgd_lr = lr
        shown = {
            "lr": f"{lr} for sgd, {ADAM_LR} for adam and adamw",
            "augment": "--augment",
            "limit": "all",
            **(shown or {}),
        }
        self._add_recipe(epochs, batch_size, schedule, augment, limit, shown)
        self._add_execution()

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
        """Add a flag, or an optional positional argument.

        text       its --help text; the default, or `shown` if given, is appended
        group      its heading in --help: RUN, RECIPE or EXECUTION.  --resume restores every flag
                   and lets the command line change only those of EXECUTION
        missing    for an input path: the remedy that the error names if it does not exist
        options    for argparse's add_argument
        """
        key, positional = _key(flag), not flag.startswith("-")
        self.defaults[key] = default
        if group != EXECUTION:
            self._of_run.add(key)
        if missing is not None:
            self._paths[key] = (options.get("metavar", flag) if positional else flag, missing)
        if positional:
            options["nargs"] = "?"
        self._groups[group].add_argument(
            flag,
            help=f"{text} (default: {_default_text(default) if shown is None else shown})",
            **options,
        )

    def add_number(
        self, flag: str, text: str, default: int | None, shown: str | None = None, **how: Any
    ) -> None:
        """Add a flag for an integer of at least 1; the arguments are those of `add`."""
        self.add(flag, text, default, shown=shown, type=positive_int, metavar="N", **how)

    def add_data(self) -> None:
        """Add --data, the folder of a data set that can be downloaded."""
        self.add(
            "--data",
            "folder with the data set",
            None,
            shown=f"$GPUCNN_DATA, else {default_root()}",
            group=EXECUTION,
            missing="correct the name, or create the folder (mkdir) to download the data into it",
            metavar="DIR",
        )

    def main(self, run: Callable[[Job], object], argv: Sequence[str] | None = None) -> int:
        """Run a job from the command line, or from `argv`.

        Returns the exit status: 0 on success, 2 after an error, which is printed, 130 after Ctrl-C.
        """

        def run_and_time() -> None:
            started = time.perf_counter()
            run(self.start(argv))
            print(f"wall time {time.perf_counter() - started:.1f} s")

        algorithm = get_conv_algorithm()
        try:
            return exit_status(run_and_time)
        finally:
            set_conv_algorithm(algorithm)

    def start(self, argv: Sequence[str] | None = None) -> Job:
        """The job that the command line, or `argv`, describes.

        Its settings are the defaults, overridden by those of the resumed run and then by the
        command line.  Prints the device and the reason for it; applies --threads, --exact and
        --seed.

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
            else (Device.parse(settings.device), "--device")
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
        add("--lr", "peak learning rate", None, **rate)
        add("--weight-decay", "weight decay, also of biases", 5e-4, **rate)
        add("--optimizer", "update rule; sgd has momentum 0.9", "sgd", choices=tuple(OPTIMIZERS))
        text = (
            "learning rate over the steps.  one-cycle: linear up over the first quarter, linear "
            "down to 0; step: divided by 10 after each third"
        )
        add("--schedule", text, schedule, choices=tuple(SCHEDULES))
        add("--augment", augment, True, action=argparse.BooleanOptionalAction)
        add("--limit", limit, None, **number)
        text = "random seed for weights, order, augmentation and dropout"
        add("--seed", text, 0, type=non_negative_int, metavar="N")
        text = (
            "compute convolutions on the CPU as plain sums instead of with Winograd's algorithm: "
            "slower, with a third to an eighth of the rounding error"
        )
        add("--exact", text, False, action="store_true")

    def _add_execution(self) -> None:
        text = (
            "auto, cpu, cuda, cuda:N, or cudasim (the CUDA kernels on a CPU); auto means "
            "$GPUCNN_DEVICE, else a usable GPU, else the CPU"
        )
        self.add("--device", text, "auto", group=EXECUTION)
        text = "CPU threads; the result does not depend on them"
        self.add_number("--threads", text, None, "all cores", group=EXECUTION)
        text = f"output folder: config.json, metrics.csv, {LAST}, best.safetensors, curves.png"
        self.add("--out", text, None, shown="a new folder in runs/", group=EXECUTION, metavar="DIR")
        text = f"also write {LAST} every N steps; 0: only after each epoch and on Ctrl-C"
        self.add("--save-every", text, 0, group=EXECUTION, type=non_negative_int, metavar="N")
        text = "print only the result and warnings"
        self.add("--quiet", text, False, group=EXECUTION, action="store_true")
        self._groups[EXECUTION].add_argument(
            "--resume",
            nargs="?",
            const="",
            metavar="FILE",
            help="resume a stopped run; the result is as if it had never stopped "
            f"(default: {LAST} in --out, else in the newest run of this script)",
        )

    def _settings(self, given: dict[str, Any], checkpoint: Checkpoint | None) -> dict[str, Any]:
        saved = checkpoint.info["settings"] if checkpoint else {}
        for key, value in given.items():
            if key in saved and saved[key] != value:
                raise ArgumentError(
                    f"--resume: the run has {_flag(key)} {saved[key]}, the command line {value}\n"
                    f"  omit {_flag(key)} to resume, or start a new run without --resume"
                )
        execution = checkpoint.info["execution"] if checkpoint else {}
        settings = {**self.defaults, **execution, **saved, **given}
        for key, (flag, remedy) in self._paths.items():
            path = settings[key]
            if path is not None and not os.path.exists(os.path.expanduser(path)):
                raise ArgumentError(f"{flag}: {path} does not exist\n  {remedy}")
        return settings

    def recorded(self, settings: argparse.Namespace) -> dict[str, Any]:
        """The settings that a checkpoint stores for --resume; paths are absolute."""
        values = vars(settings)
        execution = values.keys() - self._of_run - {"out", "quiet"}
        for key in self._paths:
            if values[key] is not None:
                values = {**values, key: os.path.abspath(os.path.expanduser(values[key]))}
        return {
            "script": self.name,
            "settings": {key: values[key] for key in self.defaults if key in self._of_run},
            "execution": {key: values[key] for key in self.defaults if key in execution},
        }


def _key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _default_text(default: Any) -> str:
    return "off" if default is False else str(default)


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")
