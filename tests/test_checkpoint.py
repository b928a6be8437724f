import errno
import json
import os
import stat

import numpy as np
import pytest
from forged import forge, metadata
from safetensors.numpy import load_file, save_file

import gpucnn
from gpucnn import models
from gpucnn.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from gpucnn.errors import ArgumentError, CheckpointError, DtypeError, OutputError
from gpucnn.tensor_file import MAX_HEADER, TensorFile

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


@pytest.mark.parametrize("other", [1, FORMAT + 1, "3"])
def test_a_file_of_another_format_is_refused_with_both_numbers(other, tmp_path):
    """Format 1 had other tensor names: 0.w and 0.b for 0.weight and 0.bias."""
    path = tmp_path / "other.safetensors"
    forge(path, {}, {"format": other})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert str(caught.value).splitlines()[0] == (
        f"checkpoint {path}: format {other!r}; this version of gpucnn reads format {FORMAT}"
    )


def test_a_missing_and_a_foreign_file_have_different_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none")
    save_file({"w": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not written by gpucnn"):
        read_checkpoint(tmp_path / "other.safetensors")


# --- damage ---


def test_one_flipped_bit_of_a_tensor_is_found_and_the_tensor_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, TENSORS, {"step": 1})
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the checksum of the tensor model\.weight does not"):
        read_checkpoint(path)


def test_a_changed_entry_of_the_json_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, TENSORS, {"step": 123})
    path.write_bytes(path.read_bytes().replace(b"123", b"124"))
    with pytest.raises(CheckpointError, match="the checksum of its info does not match"):
        read_checkpoint(path)


@pytest.mark.parametrize("rename", [("one", "two"), ("F32", "I32"), ("[2,3]", "[3,2]")])
def test_a_header_with_other_names_dtypes_or_shapes_is_found(rename, tmp_path):
    path = tmp_path / "a.safetensors"
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    forge(path, {"x.one": one, "x.two": one.T.copy().reshape(2, 3)}, {"step": 1})
    content = path.read_bytes()
    old, new = (text.encode() for text in rename)
    start = content.index(b'"x.one":')  # behind the metadata
    head, entries = content[:start], content[start:]
    swapped = entries.replace(old, b"??").replace(new, old).replace(b"??", new)
    assert swapped != entries
    path.write_bytes(head + swapped)
    with pytest.raises(CheckpointError, match=r"the checksum of the tensor x\.(one|two) does not"):
        read_checkpoint(path)


def test_a_tensor_that_is_missing_from_the_header_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    header = metadata(TENSORS, {})
    save_file({"optimizer.v": TENSORS["optimizer.v"]}, path, header)
    with pytest.raises(CheckpointError, match=r"tensors and their checksums differ in model\.w"):
        read_checkpoint(path)


def test_the_library_safetensors_reads_what_is_written_and_the_reverse(tmp_path):
    tensors = {
        "empty": np.zeros((0, 3), np.float16),
        "scalar": np.array(2.5),
        "bool": np.array([True, False]),
        "bytes": np.arange(5, dtype=np.uint8),
        "big-endian": np.arange(4, dtype=">i4"),
        "strided": np.arange(12, dtype=np.int64)[::3],
        "as many axes as NumPy allows": np.ones((1,) * 64),
    }
    write_checkpoint(tmp_path / "a.safetensors", tensors, {})
    ours, theirs = (
        read_checkpoint(tmp_path / "a.safetensors").tensors,
        load_file(tmp_path / "a.safetensors"),
    )
    for name, array in tensors.items():
        for found in (ours[name], theirs[name]):
            assert np.array_equal(found, array)
            assert found.shape == array.shape
            assert found.dtype == array.dtype.newbyteorder("=")
    half = {"x": np.ones((2, 2), np.float16)}
    forge(tmp_path / "b.safetensors", half, {})
    assert np.array_equal(read_checkpoint(tmp_path / "b.safetensors").tensors["x"], half["x"])


def test_an_array_that_the_format_lacks_is_not_written(tmp_path):
    for array in (np.zeros(2, complex), np.array(["a"]), np.array([None])):
        with pytest.raises(DtypeError, match=r"x is .*; expected an array of numbers or bools"):
            write_checkpoint(tmp_path / "a", {"x": array}, {})
    assert os.listdir(tmp_path) == []


def test_what_read_checkpoint_would_refuse_is_not_written(tmp_path):
    for info in ({"classes": [1]}, {"x": float("nan")}, {"x": {1: 2, "1": 3}}, {"history": [{}]}):
        with pytest.raises(ArgumentError, match="info is not as expected"):
            write_checkpoint(tmp_path / "a", {}, info)
    with pytest.raises(ArgumentError, match=r"a header of .* bytes for 0 arrays; expected at most"):
        write_checkpoint(tmp_path / "a", {}, {"text": "x" * MAX_HEADER})
    assert os.listdir(tmp_path) == []


# --- hostile headers ---

ROW = {
    "epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": None, "test_accuracy": None,
    "lr": 0.1, "seconds": 1.0, "images_per_second": 9.0, "step_ms": None,
}  # fmt: skip
WRONG = [
    ({"classes": [1]}, r"classes\[0\]: expected text, got 1"),
    ({"classes": "cat"}, "classes: expected a list, got 'cat'"),
    ({"normalize": {"mean": [0.5], "std": [0.0]}}, r"normalize\.std\[0\]: expected a number of"),
    ({"normalize": {"mean": [0.5], "std": [1, 1]}}, r"normalize\.std: expected a list of 1, got"),
    ({"history": [{**ROW, "lr": "x"}]}, r"history\[0\]\.lr: expected a number of at least 0, got"),
    ({"history": [{**ROW, "loss": 1}]}, r"history\[0\]\.loss: unexpected; expected epoch, train"),
    ({"history": [{"epoch": 1}]}, r"history\[0\]: expected .*; train_loss is missing"),
    ({"history": [[]]}, r"history\[0\]: expected a dict with epoch, .* got a list of 0"),
    ({"epoch": True}, "epoch: expected an int of at least 0, got True"),
    ({"step": -1}, "step: expected an int of at least 0, got -1"),
    ({"lr": -(10**400)}, "lr: expected a number of at least 0"),
    ({"settings": {"data": {}}}, r"settings\.data: expected a finite number, got a dict"),
    ({"execution": 3}, "execution: expected a dict, got 3"),
    ({"script": 3}, "script: expected text, got 3"),
    ({"optimizer": {}}, "optimizer: expected name; name is missing"),
    ({"scheduler": []}, "scheduler: expected a dict with name, state"),
    ({"generators": {"": 1}}, "generators.: expected a dict, got 1"),
    ({"model": {"name": "mlp", "config": {"sizes": [[3]]}}}, r"sizes\[0\]: expected an int"),
    ('{"format": 3, "x": NaN}', "the number NaN"),
    ('{"format": 3, "x": 1e999}', "the number 1e999"),
    ('{"format": 3, "step": 1, "step": 2}', "a key occurs twice"),
    ('{"format": 3, "x": %s}' % ("1" * 5000), r"4300 digits"),
    ('{"format": 3, "classes": ["\\ud800"]}', "surrogates not allowed"),
    ('{"format": 3, "x": %s}' % ("[" * 200_000), "nested too deeply"),
    ("[3]", "format None"),
]  # fmt: skip


@pytest.mark.parametrize(("info", "message"), WRONG)
def test_an_entry_of_the_wrong_type_or_range_is_named(info, message, tmp_path):
    forge(tmp_path / "a.safetensors", TENSORS, info)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert str(tmp_path / "a.safetensors") in str(caught.value)
    assert len(str(caught.value)) < 600


def test_an_entry_that_a_reader_needs_and_the_file_lacks_is_a_checkpoint_error(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", TENSORS, {})
    info = read_checkpoint(tmp_path / "a.safetensors").info
    with pytest.raises(CheckpointError, match="no entry 'history'; it may hold only a model"):
        info["history"]


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "no header": (b"", b"", "header: not plain JSON"),
    "a list": ([], b"", "header: expected a dict, got a list"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not UTF-8"),
    "metadata of numbers": ({"__metadata__": {"gpucnn": 3}}, b"", "gpucnn: expected text, got 3"),
    "an entry without offsets": ({"x": {"dtype": "F32", "shape": [2]}}, b"", "x: expected dtype, "),
    "bfloat16 of another size": ({"x": entry("BF16")}, bytes(8), "x: expected 4 bytes from"),
    "float8": ({"x": entry("F8_E4M3", (8,))}, bytes(8), "dtype is F8_E4M3; expected one of F64"),
    "an unknown dtype": ({"x": entry("Z" * 99)}, bytes(8), "x: its dtype is ZZZZZZZZZZZZZZZZZZZZ;"),
    "a negative size": ({"x": entry(shape=(-2,))}, bytes(8), r"x\.shape\[0\]: expected an int"),
    "a size of text": ({"x": entry(shape=("2",))}, bytes(8), r"x\.shape\[0\]: expected an int"),
    "a million axes": ({"x": entry(shape=[1] * 10**6)}, bytes(8), "1000000 axes; expected at most"),
    "a shape that its bytes do not fill": ({"x": entry(shape=(3,))}, bytes(8), "expected 12 bytes"),
    "bytes beyond the end": ({"x": entry(offsets=(0, 8))}, bytes(4), "end at byte .* the file at"),
    "bytes behind the last tensor": ({"x": entry()}, bytes(9), "end at byte .* the file at"),
    "tensors that overlap": ({"x": entry(), "y": entry()}, bytes(8), "y: expected 8 bytes from"),
    "a gap": ({"x": entry(offsets=(4, 12))}, bytes(12), "x: expected 8 bytes from"),
    "too many elements to count": ({"x": entry(shape=[2**40] * 32)}, bytes(8), "x: expected"),
    "more elements than an array has": ({"x": entry(shape=[0, 2**62, 2**62], offsets=(0, 0))}, b"",
                                        "x: cannot allocate its 0 bytes|not written by gpucnn"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_lies_is_refused(name, tmp_path):
    header, data, message = HEADERS[name]
    raw(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "a.safetensors")


def test_something_other_than_a_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_checkpoint(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_checkpoint(tmp_path / "pipe")


# --- the model that a file names ---


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mlp", {"sizes": [30_000, 30_000]}),
        ("mlp", {"sizes": [1] * 1_000}),
        ("mlp", {"sizes": [2**62, 2**62]}),
        ("lenet5", {"classes": 10**12}),
        ("alexnet_cifar10", {"classes": 10**12}),
        ("alexnet", {"channels": 10**12}),
        ("lenet5", {"classes": 10**30}),
    ],
)
def test_a_config_larger_than_its_tensors_is_refused(name, config, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {f"model.{k}": x for k, x in models.lenet5().state_dict().items()}
    forge(path, tensors, {"model": {"name": name, "config": config}})
    with pytest.raises(CheckpointError, match="cannot be rebuilt"):
        read_checkpoint(path)


def test_no_tensor_of_a_file_that_does_not_fit_the_model_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    gpucnn.save(path, models.lenet5(), "lenet5")
    monkeypatch.setattr(TensorFile, "read", lambda self, name: pytest.fail(f"{name} was read"))
    with pytest.raises(CheckpointError, match=r"expected \(3, 84\), got \(10, 84\)"):
        gpucnn.load(path, models.lenet5(classes=3))


def test_more_beside_a_model_than_a_run_of_it_holds_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {f"model.{k}": x for k, x in models.lenet5().state_dict().items()}
    tensors["optimizer.v"] = np.zeros(10_000_000, np.uint8)
    forge(path, tensors, {"model": {"name": "lenet5"}})
    with pytest.raises(CheckpointError, match=r"10,000,000 bytes beside the .* of its model"):
        read_checkpoint(path)
