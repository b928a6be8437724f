import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpucnn import train
from gpucnn.errors import CheckpointError

TENSORS = {"model.w": np.arange(12, dtype=np.float32).reshape(3, 4).T, "optimizer.v": np.ones(3)}


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "a.safetensors"
    train.write_checkpoint(path, TENSORS, {"step": 3, "text": "ä", "pi": 0.1 + 0.2})
    checkpoint = train.read_checkpoint(path)
    assert checkpoint.info == {"format": 1, "step": 3, "text": "ä", "pi": 0.1 + 0.2}
    assert np.array_equal(checkpoint.part("model")["w"], TENSORS["model.w"])
    assert list(checkpoint.part("optimizer")) == ["v"]
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    train.write_checkpoint(path, TENSORS, {"step": 1})

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        train.write_checkpoint(path, TENSORS, {"step": 2})
    assert train.read_checkpoint(path).info["step"] == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("seed", range(8))
def test_a_file_cut_anywhere_is_named_as_damaged(seed, tmp_path):
    path = tmp_path / "a.safetensors"
    train.write_checkpoint(path, TENSORS, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(np.random.default_rng(seed).integers(len(whole)))])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged"):
        train.read_checkpoint(path)


def test_a_missing_a_foreign_and_a_future_file_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        train.read_checkpoint(tmp_path / "none")
    save_file({"w": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not written by gpucnn"):
        train.read_checkpoint(tmp_path / "other.safetensors")
    train.write_checkpoint(tmp_path / "new.safetensors", {}, {"format": 2})
    with pytest.raises(CheckpointError, match="format 2, and this gpucnn reads 1"):
        train.read_checkpoint(tmp_path / "new.safetensors")
