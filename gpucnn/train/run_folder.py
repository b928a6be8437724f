"""The folders of training runs: create a new one, find the one to resume."""

from datetime import datetime
from pathlib import Path

from gpucnn.arguments import output_folder
from gpucnn.checkpoint import Checkpoint, read_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError

RUNS = Path("runs")  # below the current directory
LAST = "last.safetensors"


def find_run(resume: str, out: str | None, script: str) -> tuple[Path, Checkpoint]:
    """The path and the content of the checkpoint that --resume means.

    resume names the file.  "" means last.safetensors in `out`, or, if `out` is None, in the newest
    run of `script` in runs/.

    Raises CheckpointError if there is none, or if another script wrote it.
    """
    if not resume and out is None:
        return newest_run(script)
    path = Path(resume) if resume else Path(str(out)) / LAST
    return path, read_run(path, script)


def read_run(path: str | Path, script: str) -> Checkpoint:
    """Read a checkpoint of a run of `script`; CheckpointError if another script wrote it."""
    checkpoint = read_checkpoint(path)
    writer = checkpoint.info.get("script")
    if writer != script:
        raise CheckpointError(
            f"{path} was not written by {script}.py"
            + (f"\n  it is a run of {writer}.py" if writer else "")
        )
    return checkpoint


def newest_run(script: str, file: str = LAST) -> tuple[Path, Checkpoint]:
    """The path and the content of the checkpoint `file` of the newest run of `script` in runs/.

    Raises CheckpointError if there is none.
    """
    found = sorted(RUNS.glob(f"*/{file}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        checkpoint = read_checkpoint(path)
        if checkpoint.info.get("script") == script:
            return path, checkpoint
    raise CheckpointError(f"{RUNS}/ has no run of {script}.py; name a checkpoint file")


def refuse_to_overwrite(out: str | Path) -> None:
    """Raise ArgumentError if `out` holds a run."""
    if (Path(out) / LAST).exists():
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
