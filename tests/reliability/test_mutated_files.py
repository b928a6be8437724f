"""30,000 mutated files: every reader succeeds or raises a GpucnnError that names the problem.

`python -m fuzzing` (tests/fuzzing/) runs new ones for as long as it is told.
"""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from fuzzing import corpus
from fuzzing.faulty import FAULTS
from fuzzing.run import fuzz, search_path
from fuzzing.safetensors_files import header_and_body, joined, sealed

from gpucnn import train
from gpucnn.errors import CheckpointError

CASES = 30_000
SEED = 14


def test_every_reader_survives_30000_mutated_files(tally):
    pytest.importorskip("PIL", reason="needs Pillow")
    from fuzzing.targets import TARGETS

    report = fuzz(SEED, CASES)
    lost = {finding.target for _, finding in report.findings}
    for target in TARGETS:
        with suppress(AssertionError), tally(target.row, report.counts[target.name]):
            assert target.name not in lost
    assert not report.findings, report.text()
    assert report.total == CASES


def test_the_fuzzer_finds_every_kind_of_fault():
    report = fuzz(SEED, 80, targets="fuzzing.faulty", limit=0.5)
    found = {(finding.target, finding.what) for _, finding in report.findings}
    for name, (_, words) in FAULTS.items():
        assert any(target == name and words in what for target, what in found), name


def test_mutated_checkpoints_have_the_checksums_of_their_content(tmp_path):
    path = tmp_path / "file.safetensors"
    header, body = header_and_body(corpus.runs("sgd")[0])
    metadata = header["__metadata__"]
    metadata["gpucnn"] = metadata["gpucnn"].replace('"epoch": 0', '"epoch": -7')
    path.write_bytes(joined(header, body))
    with pytest.raises(CheckpointError, match="checksum"):
        train.read_checkpoint(path)
    path.write_bytes(sealed(header, body))
    with pytest.raises(CheckpointError, match="-7"):
        train.read_checkpoint(path)


GOOD_FILES = """
import zlib
from fuzzing.targets import TARGETS
for target in TARGETS:
    print(target.name, *(zlib.crc32(content) for content in target.corpus))
"""


@pytest.mark.parametrize(
    "arguments",
    [("-m", "fuzzing", "--seed", "3", "--case", "6"), ("-c", GOOD_FILES)],
    ids=["a case", "the good files"],
)
def test_a_file_is_the_same_in_every_process(arguments):
    one, other = (
        subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": search_path(), "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for hash_seed in "12"
    )
    assert one
    assert one == other
