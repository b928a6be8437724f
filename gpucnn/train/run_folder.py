"""The folders of training runs: create a new one, find the one to resume."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from gpucnn.arguments import output_folder, report
from gpucnn.checkpoint import Checkpoint, read_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError

RUNS = Path("runs")  # below the current directory
LAST = "last.safetensors"
BEST = "best.safetensors"


class Found(NamedTuple):
    """A checkpoint that can be read, and the errors of newer ones that cannot."""

    path: Path
    checkpoint: Checkpoint
    damaged: list[CheckpointError]

    def where(self) -> str:
        """Where a run resumed from it continues."""
        info = self.checkpoint.info
        return f"after epoch {info.get('epoch')}, step {info.get('step')}"


def before_last(age: int) -> str:
    """The name of the checkpoint `age` saves before last.safetensors."""
    return f"last-{age}.safetensors" if age else LAST


def kept(folder: Path) -> dict[int, Path]:
    """{age: path} of a run's last.safetensors (age 0) and those before it, newest first."""
    try:
        names = os.listdir(folder)
    except OSError:  # no folder, or that of another user
        return {}
    found = {}
    for name in names:
        match = re.fullmatch(r"last(?:-([1-9]\d{0,8}))?\.safetensors", name)
        if match:
            found[int(match[1] or 0)] = folder / name
    return dict(sorted(found.items()))


def newest_readable(path: Path) -> Found:
    """The checkpoint `path`, or if it cannot be read, the newest of those before it in its run.

    Raises CheckpointError if none can be read.
    """
    files = list(kept(path.parent).values())
    older = files[files.index(path) + 1 :] if path in files else files if path.name == LAST else []
    damaged: list[CheckpointError] = []
    for candidate in (path, *older):
        try:
            return Found(candidate, read_checkpoint(candidate), damaged)
        except CheckpointError as error:
            damaged.append(error)
    if not older:
        raise damaged[0]
    raise CheckpointError("\n".join(map(str, damaged))) from damaged[0]


def find_run(resume: str, out: str | None, script: str) -> tuple[Path, Checkpoint]:
    """The path and the content of the checkpoint that --resume means.

    resume names the file.  "" means last.safetensors in `out`, or, if `out` is None, in the newest
    run of `script` in runs/.  If the file is damaged, the one before it is used instead, with a
    warning.

    Raises CheckpointError if there is none, or if another script wrote it.
    """
    if not resume and out is None:
        return newest_run(script)
    path = Path(resume) if resume else Path(str(out)) / LAST
    found = newest_readable(path)
    _check_writer(found, script)
    return _use(found)


def newest_run(script: str | None, file: str = LAST) -> tuple[Path, Checkpoint]:
    """The path and the content of the checkpoint `file` of the newest run of `script` in runs/.

    script None means any.  Runs without a readable checkpoint are skipped with a warning.  Raises
    CheckpointError if there is no other.
    """
    for folder in _newest_first(file):
        try:
            found = newest_readable(folder / file)
        except CheckpointError as error:
            report(f"warning: {folder} is skipped: {error}")
            continue
        if script is None or found.checkpoint.info.get("script") == script:
            return _use(found)
    what = "run" if script is None else f"run of {script}.py"
    raise CheckpointError(f"{RUNS}/ has no {what}; name a checkpoint file")


def _newest_first(file: str) -> list[Path]:
    """The folders in runs/ that have the checkpoint `file`, or one before it."""
    ages = {}
    for folder in RUNS.iterdir() if RUNS.is_dir() else ():
        files = kept(folder).values() if file == LAST else [folder / file]
        try:
            times = [os.lstat(path).st_mtime for path in files]
        except OSError:
            continue
        if times:
            ages[folder] = max(times)
    return sorted(ages, key=lambda folder: ages[folder], reverse=True)


def _check_writer(found: Found, script: str) -> None:
    info = found.checkpoint.info
    writer = info.get("script")
    if writer != script:
        raise CheckpointError(
            f"{found.path} was not written by {script}.py"
            + (f"\n  it is a run of {writer}.py" if writer else "")
        )


def _use(found: Found) -> tuple[Path, Checkpoint]:
    for error in found.damaged:
        report(f"warning: {error}")
    if found.damaged:
        report(f"warning: using {found.path} instead, which continues {found.where()}")
    return found.path, found.checkpoint


def refuse_to_overwrite(out: str | Path) -> None:
    """Raise ArgumentError if `out` holds a run: a checkpoint, or a link in place of one."""
    folder = Path(out)
    if kept(folder) or os.path.lexists(folder / BEST):
        raise ArgumentError(
            f"--out: {out} already holds a run\n  resume it with --resume, or choose another folder"
        )


def new_folder(out: str | None) -> Path:
    """Create the folder of a new run: `out`, or one in runs/ named after the current time.

    Raises ArgumentError if it cannot be created, or already holds a run.
    """
    if out is not None:
        refuse_to_overwrite(out)
        return output_folder(out)
    output_folder(RUNS)
    folder = RUNS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    while True:  # another run may have started in the same second
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder = folder.with_name(folder.name + "x")
        except OSError as error:
            raise ArgumentError(f"--out: {folder} cannot be created ({error.strerror})") from error
