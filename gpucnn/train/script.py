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
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpucnn.arguments import exit_status, naming_flags, positive_int
from gpucnn.checkpoint import Checkpoint
from gpucnn.data import default_root
from gpucnn.device import Device, choose_device
from gpucnn.errors import ArgumentError, CheckpointError
from gpucnn.ops import get_conv_algorithm, set_conv_algorithm
from gpucnn.precision import chosen
from gpucnn.random import manual_seed
from gpucnn.train.flags import EXECUTION, RECIPE, RUN, add_execution, add_recipe
from gpucnn.train.job import Job
from gpucnn.train.lock import FolderLock
from gpucnn.train.processes import Processes
from gpucnn.train.run_folder import LAST, find_run, refuse_to_overwrite
from gpucnn.train.saved_settings import check_epochs, check_settings

__all__ = ["EXECUTION", "RECIPE", "RUN", "Job", "Script"]

ADAM_LR = 0.001  # the default learning rate of adam and adamw
_OPTIONAL = ("--optimizer", "--lr", "--schedule", "--weight-decay")


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
        keep: int = 2,
        shown: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
    ) -> None:
        """epochs, batch_size, lr, schedule and keep are defaults, augment and limit help texts.

        lr is SGD's learning rate; the default for Adam and AdamW is ADAM_LR.  If epochs or lr is
        None, the script sets job.settings.epochs or .lr before it calls Job.train, and `shown`,
        {setting: text}, describes that default in --help.  without lists flags of the recipe that
        the script does not have: "--optimizer", "--lr", "--schedule" and "--weight-decay", for a
        script that gives Job.train an optimizer and a scheduler of its own.

        Raises ArgumentError for another flag in `without`.
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
        self._actions: dict[str, argparse.Action] = {}
        self._paths: dict[str, tuple[str, str]] = {}  # setting: (flag, remedy if it is missing)
        self._sgd_lr = lr
        shown = {
            "lr": f"{lr} for sgd, {ADAM_LR} for adam and adamw",
            "augment": "--augment",
            "limit": "all",
            **(shown or {}),
        }
        if not set(without) <= set(_OPTIONAL):
            raise ArgumentError(f"Script: without may list {', '.join(_OPTIONAL)}, got {without}")
        add_recipe(self.add, epochs, batch_size, schedule, augment, limit, shown, without)
        add_execution(self.add, keep)
        self._add_resume()

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
                   and lets the command line change only --epochs and those of EXECUTION
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
        self._actions[key] = self._groups[group].add_argument(
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

        Returns the exit status: 0 on success and after --max-time; 2 after an error, which is
        printed; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.
        """
        processes = Processes()

        def run_and_time() -> None:
            started = time.perf_counter()
            job = self.start(argv, processes)
            try:
                run(job)
            finally:
                job.close()
            if processes.rank == 0:
                print(f"wall time {time.perf_counter() - started:.1f} s")

        algorithm = get_conv_algorithm()
        try:
            with naming_flags(self.defaults):
                status = exit_status(run_and_time, tell=processes.tell)
        except Exception:
            if processes.comm is not None and processes.comm.size > 1:
                processes.tell(traceback.format_exc())
            processes.end(1)
            raise
        finally:
            set_conv_algorithm(algorithm)
        processes.end(status)
        return status

    def start(self, argv: Sequence[str] | None = None, processes: Processes | None = None) -> Job:
        """The job that the command line, or `argv`, describes.

        Its settings are the defaults, overridden by those of the resumed run and then by the
        command line.  Prints the device and the reason for it; applies --threads, --exact and
        --seed.  A run that resumes in its own folder locks it.  With --distributed, `processes`
        connects to the others, of which rank 0 finds the run to resume.

        Raises ArgumentError, CheckpointError or DeviceError for a mistake in the command line.
        """
        given = vars(self._parser.parse_args(argv))
        processes = processes or Processes()
        if "grad_dtype" in given and not given.get("distributed"):  # a resumed run may have it
            raise ArgumentError("--grad-dtype needs --distributed: one process sends no gradients")
        processes.connect(given.get("distributed", False))
        resume = given.pop("resume", None)
        checkpoint, in_place = processes.from_rank_0(lambda: self._run_to_resume(resume, given))
        if checkpoint is not None:
            given.setdefault("out", str(checkpoint.path.parent))
        settings = argparse.Namespace(**self._settings(given, checkpoint))
        if "lr" in self.defaults and settings.lr is None:
            sgd = getattr(settings, "optimizer", "sgd") == "sgd"
            settings.lr = self._sgd_lr if sgd else ADAM_LR

        device, reason = (
            choose_device()
            if settings.device == "auto"
            else (Device.parse(settings.device), "--device")
        )
        device = processes.own_device(device, settings.threads)
        settings.quiet = settings.quiet or processes.rank > 0
        lock = FolderLock(Path(settings.out)) if in_place and processes.rank == 0 else None
        job = Job(self.recorded, settings, device, checkpoint, lock, processes.comm)
        precision = chosen(settings.precision, device)
        job.say(f"device: {device} ({reason}), {precision}")
        if device.kind == "cpu" and precision != "fp32":
            job.say(f"note: the CPU rounds to {precision} but computes in fp32: it is slower so")
        if settings.exact:
            set_conv_algorithm("exact")
        manual_seed(settings.seed)
        return job

    def _run_to_resume(
        self, resume: str | None, given: dict[str, Any]
    ) -> tuple[Checkpoint | None, bool]:
        """The checkpoint that --resume means, if given, and whether --out is its folder."""
        out = given.get("out")
        checkpoint, in_place = None, False
        if resume is not None:
            path, checkpoint = find_run(resume, out, self.name)
            in_place = out is None or Path(out).absolute() == path.parent.absolute()
        if out is not None and not in_place:
            refuse_to_overwrite(out)
        return checkpoint, in_place

    def _add_resume(self) -> None:
        self._groups[EXECUTION].add_argument(
            "--resume",
            nargs="?",
            const="",
            metavar="FILE",
            help="resume a stopped run; the result is as if it had never stopped; with --epochs N, "
            "train until N epochs in all, with the schedule of N epochs "
            f"(default: {LAST} in --out, else in the newest run of this script)",
        )

    def _settings(self, given: dict[str, Any], checkpoint: Checkpoint | None) -> dict[str, Any]:
        execution, saved = self._restored(checkpoint) if checkpoint else ({}, {})
        for key, value in given.items():
            if key in saved and saved[key] != value:
                if key == "epochs" and checkpoint is not None:
                    check_epochs(value, checkpoint.info["epoch"])
                    continue
                raise ArgumentError(
                    f"--resume: the run has {_flag(key)} {saved[key]}, the command line {value}\n"
                    f"  omit {_flag(key)} to resume, or start a new run without --resume"
                )
        settings = {**self.defaults, **execution, **saved, **given}
        for key, (flag, remedy) in self._paths.items():
            path = settings[key]
            if path is not None and not os.path.exists(os.path.expanduser(path)):
                raise ArgumentError(f"{flag}: {path} does not exist\n  {remedy}")
        return settings

    def _restored(self, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
        """The recorded settings of a checkpoint, those of EXECUTION first.

        Raises CheckpointError unless each is a value that its flag could have.
        """
        parts = []
        for part in ("execution", "settings"):
            found = checkpoint.info.get(part)
            if not isinstance(found, dict):
                raise CheckpointError(f"{checkpoint.path}: has no {part} of a training script")
            known = {
                key: value
                for key, value in found.items()
                if key in self.defaults and (key in self._of_run) == (part == "settings")
            }
            check_settings(self._actions, self.defaults, known, checkpoint.path)
            parts.append(known)
        return parts[0], parts[1]

    def recorded(self, settings: argparse.Namespace) -> dict[str, Any]:
        """The settings that a checkpoint stores for --resume; paths are absolute."""
        values = vars(settings)
        execution = values.keys() - self._of_run - {"out", "quiet", "distributed"}
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
