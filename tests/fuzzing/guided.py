"""Atheris in place of chance: it keeps the files that reach new lines of the readers.

An optional engine (`pip install atheris`); the mutations that know the formats are the same.
"""

import base64
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from random import Random

from fuzzing.run import memory_folder, search_path, targets_of

READERS = ["gpucnn.checkpoint", "gpucnn.data", "gpucnn.interop", "gpucnn.models", "gpucnn.train"]


def missing_atheris() -> str | None:
    """Why this engine cannot run here; None if it can."""
    found = importlib.util.find_spec("atheris")
    return None if found else "it is not installed (pip install atheris)"


def guided(rng: Random, seconds: int) -> int:
    """Let Atheris read files with one reader for that long; returns how many.

    Raises RuntimeError with its report if it finds something.
    """
    number = rng.randrange(len(targets_of("fuzzing.targets")))
    with memory_folder() as folder:
        done = subprocess.run(
            [sys.executable, "-c", "from fuzzing.guided import work; work()", str(number),
             str(rng.randrange(1, 1 << 31)), str(seconds), folder],
            env={**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, errors="replace",
        )  # fmt: skip
        bad = [base64.b64encode(path.read_bytes()) for path in Path(folder).glob("crash-*")]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    if done.returncode != 0 or runs is None:
        said = re.findall(r"^RuntimeError: .*", done.stdout + done.stderr, re.MULTILINE)
        said += [f"base64: {content.decode()}" for content in bad]
        raise RuntimeError("\n  ".join(said) or done.stderr[-3000:])
    return int(runs[1])


def work() -> None:
    """The process that reads the files; it never returns."""
    number, seed, seconds, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    import atheris

    with atheris.instrument_imports(include=READERS):
        from fuzzing.targets import TARGETS

    from fuzzing.cases import Watch, mutator_of, verdict

    warnings.simplefilter("ignore")
    target = TARGETS[number]
    place, corpus = folder / "target", folder / "corpus"
    target.prepare(place)
    corpus.mkdir()
    for i, content in enumerate(target.corpus):
        (corpus / str(i)).write_bytes(content)
    watch = Watch()

    def read(content: bytes) -> None:
        what = verdict(target, place, content, watch)
        if what:
            raise RuntimeError(f"{target.name}: {what}")

    def mutate(content: bytes, longest: int, seed: int) -> bytes:
        rng = Random(seed)
        try:
            return mutator_of(target, rng)(rng, content, rng.choice(target.corpus))[:longest]
        except Exception:  # the content is no longer of the format
            return atheris.Mutate(content, longest)

    flags = [f"-seed={seed}", f"-max_total_time={seconds}", "-timeout=0", "-rss_limit_mb=0"]
    flags += ["-max_len=1048576", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()
