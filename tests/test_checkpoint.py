import errno
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpucnn.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from gpucnn.errors import CheckpointError, OutputError

TENSORS = {
    "model.weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "optimizer.v": np.ones(3),
}


def test_what_was_written_is_read_back(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, TENSORS, {"step": 3, "text": "ä", "pi": 0.1 + 0.2})
    checkpoint = read_checkpoint(path)
    assert checkpoint.info == {"format": FORMAT, "step": 3, "text": "ä", "pi": 0.1 + 0.2}
    assert checkpoint.path == path
    assert np.array_equal(checkpoint.part("model")["weight"], TENSORS["model.weight"])
    assert list(checkpoint.part("optimizer")) == ["v"]
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_is_named_and_leaves_the_old_file_and_nothing_else(
    call, tmp_path, monkeypatch
):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutputError) as caught:
            write_checkpoint(path, TENSORS, {"step": 2})
    assert str(caught.value) == (
        f"{path} cannot be written (No space left on device): free some space there"
    )
    assert read_checkpoint(path).info["step"] == 1
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_ctrl_c_during_a_write_propagates_and_leaves_no_file(tmp_path, monkeypatch):
    def stopped(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "a.safetensors", TENSORS, {})
    assert os.listdir(tmp_path) == []


def test_a_folder_of_that_name_or_a_missing_folder_is_an_output_error(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(OutputError, match=r"a\.safetensors cannot be written \(Is a dir"):
        write_checkpoint(tmp_path / "a.safetensors", TENSORS, {})
    with pytest.raises(OutputError, match=r"cannot be written \(No such file or directory"):
        write_checkpoint(tmp_path / "none" / "a.safetensors", TENSORS, {})
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory"):
        write_checkpoint(tmp_path / "file" / "a.safetensors", TENSORS, {})
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "file"]


@pytest.mark.parametrize("seed", range(8))
def test_a_file_cut_anywhere_is_named_as_damaged(seed, tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(np.random.default_rng(seed).integers(len(whole)))])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("other", [1, FORMAT + 1, "2"])
def test_a_file_of_another_format_is_refused_with_both_numbers(other, tmp_path):
    """Format 1 had other tensor names: 0.w and 0.b for 0.weight and 0.bias."""
    path = tmp_path / "other.safetensors"
    write_checkpoint(path, {}, {"format": other})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).splitlines()[0] == (
        f"checkpoint {path}: format {other}; this version of gpucnn reads format {FORMAT}"
    )


def test_a_missing_and_a_foreign_file_have_different_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none")
    save_file({"w": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not written by gpucnn"):
        read_checkpoint(tmp_path / "other.safetensors")
