"""The folder of a training run: a new one that holds no other run, and the run to go on with."""

from datetime import datetime
from pathlib import Path

from gpucnn.arguments import output_folder
from gpucnn.checkpoint import Checkpoint, read_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError

RUNS = Path("runs")  # below the current directory
LAST = "last.safetensors"


def find_run(resume: str, out: str | None, script: str) -> tuple[Path, Checkpoint]:
    """The checkpoint that --resume means, and its path.

    resume is the file that was named; "" means last.safetensors in `out`, or, if that is None too,
    of the newest run of `script` in runs/.

    Raises CheckpointError if there is none, or it was not written by `script`.
    """
    if not resume and out is None:
        return newest_run(script)
    path = Path(resume) if resume else Path(str(out)) / LAST
    checkpoint = read_checkpoint(path)
    writer = checkpoint.info.get("script")
    if writer != script:
        raise CheckpointError(
            f"--resume: {path} was not written by {script}.py"
            + (f"; go on with it by {writer}.py" if writer else "")
        )
    return path, checkpoint


def newest_run(script: str, file: str = LAST) -> tuple[Path, Checkpoint]:
    """The checkpoint `file` of the newest run of `script` in runs/, and its path.

    Raises CheckpointError if there is none.
    """
    found = sorted(RUNS.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        checkpoint = read_checkpoint(path)
        if checkpoint.info.get("script") == script:
            return path, checkpoint
    raise CheckpointError(f"there is no run in {RUNS}/ of {script}.py; name a file")


def refuse_to_overwrite(out: str | Path) -> None:
    """Raises ArgumentError if `out` holds a run."""
    if (Path(out) / LAST).exists():
        raise ArgumentError(
            f"--out: {out} holds a run already\n  go on with it: --resume; or choose another folder"
        )


def new_folder(out: str | None) -> Path:
    """The folder of a new run, made: `out`, or one in runs/ named by the time.

    Raises ArgumentError if it cannot be made, or holds a run.
    """
    if out is not None:
        refuse_to_overwrite(out)
        return output_folder(out)
    output_folder(RUNS)
    folder = RUNS / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    while True:  # runs that start in the same second are kept apart
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            folder = folder.with_name(folder.name + "x")
        except OSError as error:
            raise ArgumentError(f"--out: {folder} cannot be made ({error.strerror})") from error
