"""Damaged and hostile model files: each ends in an error of gpucnn, and none resumes a run."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from forged import forge
from fuzzing.safetensors_files import header_and_body, joined
from reliability.tally import bounded

import gpucnn
from gpucnn import data, models, nn, optim, train
from gpucnn.checkpoint import read_checkpoint, write_checkpoint
from gpucnn.errors import CheckpointError
from gpucnn.files import write_whole
from gpucnn.interop.torchvision import convert_file


def trainer(scheduler=True):
    images = data.Synthetic(n=32)
    loader = data.DataLoader(
        images, 8, shuffle=True, device="cpu", transform=data.Normalize((0.5,) * 3, (0.3,) * 3)
    )
    model = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(196, 10)
    )
    optimizer = optim.Adam(model.parameters(), 0.01)
    rates = optim.lr_scheduler.StepLR(optimizer, 3) if scheduler else None
    return train.Trainer(model, optimizer, loader, scheduler=rates)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A training run's checkpoint, and one of another step."""
    folder = tmp_path_factory.mktemp("saved")
    run = trainer()
    for name in ("one", "other"):
        run.fit(1)
        run.save(folder / name)
    return folder / "one", (folder / "one").read_bytes(), (folder / "other").read_bytes()


# --- damage ---


def flip(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def header_end(content):
    return 8 + int.from_bytes(content[:8], "little")


def a_bit_of_a_tensor(content, other, rng):
    return flip(content, int(rng.integers(header_end(content), len(content))), rng.integers(8))


def a_bit_of_the_header(content, other, rng):
    return flip(content, int(rng.integers(header_end(content))), int(rng.integers(8)))


def cut(content, other, rng):
    return content[: int(rng.integers(len(content)))]


def zeros(content, other, rng):
    at, size = int(rng.integers(len(content))), int(2 ** rng.integers(3, 12))
    return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]


def a_block_of_another_file(content, other, rng):
    at, size = int(rng.integers(len(content))), int(2 ** rng.integers(3, 12))
    return content[:at] + other[at : at + size] + content[at + size :]


def swapped(content, other, rng):
    """Two tensors of one size change places, by their offsets or their names."""
    header, body = header_and_body(content)
    names = [name for name in header if name != "__metadata__"]
    sizes = {name: header[name]["data_offsets"] for name in names}
    pairs = [
        (one, two)
        for one in names
        for two in names
        if one < two and sizes[one][1] - sizes[one][0] == sizes[two][1] - sizes[two][0]
    ]
    one, two = pairs[int(rng.integers(len(pairs)))]
    if rng.random() < 0.5:
        header[one], header[two] = header[two], header[one]
    else:
        offsets = header[one]["data_offsets"], header[two]["data_offsets"]
        header[two]["data_offsets"], header[one]["data_offsets"] = offsets
    return joined(header, body)


DAMAGE = {
    "a checkpoint with a flipped bit in a tensor": (a_bit_of_a_tensor, 400),
    "a checkpoint with a flipped bit in its header": (a_bit_of_the_header, 400),
    "a checkpoint cut short": (cut, 150),
    "a checkpoint with a block of zeros": (zeros, 150),
    "a checkpoint with a block of another one": (a_block_of_another_file, 150),
    "a checkpoint with two tensors exchanged": (swapped, 50),
}


@pytest.mark.parametrize("fault", DAMAGE)
def test_no_damaged_checkpoint_is_read_or_resumed(fault, saved, tally, tmp_path):
    path, content, other = saved
    damage, times = DAMAGE[fault]
    rng = np.random.default_rng(1)
    run = trainer()
    damaged = tmp_path / "damaged.safetensors"
    done = 0
    while done < times:
        changed = damage(content, other, rng)
        if changed == content:  # a block of zeros over zeros
            continue
        damaged.write_bytes(changed)
        with tally(fault), bounded(), pytest.raises(CheckpointError, match=r"damaged\.safetensors"):
            run.resume(damaged)
        done += 1
    assert (run.epoch, run.step) == (0, 0)
    run.resume(path)
    assert (run.epoch, run.step) == (1, 4)


# --- hostile checkpoints ---

LENET = {f"model.{k}": x for k, x in models.lenet5().state_dict().items()}


def raw(header, size=0):
    """A safetensors file; a sparse one if `size` is large."""

    def write(path):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        with open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)

    return write


def claims(info, shape, dtype="F32", name="model.x"):
    """A sparse file of the size that its header claims."""
    nbytes = int(np.prod(shape)) * {"F32": 4, "U8": 1}[dtype]
    tensors = {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}

    def write(path):
        forge(path, {}, info)
        header = header_and_body(path.read_bytes())[0] | tensors
        header["__metadata__"]["gpucnn_tensors_crc32"] = json.dumps({name: 0})
        raw(header, nbytes)(path)

    return write


def of_lenet(**info):
    return lambda path: forge(path, LENET, info)


def named(model, **config):
    return of_lenet(model={"name": model, "config": config})


GIB = 1 << 30
HOSTILE = {
    "sizes of 3.4 GiB": named("mlp", sizes=[30_000, 30_000]),
    "a million layers": named("mlp", sizes=[1] * 1_000_000),
    "a million million classes": named("lenet5", classes=10**12),
    "classes of 10**30": named("alexnet", classes=10**30),
    "a generator as config": named("lenet5", generator=3),
    "a config with the model's name": named("lenet5", name="lenet5"),
    "sizes of text": named("mlp", sizes=["a", "b"]),
    "6 GiB for a model of its size": claims({"model": {"name": "lenet5"}}, [6 * GIB], "U8"),
    "6 GiB beside a model": claims({"model": {"name": "lenet5"}}, [6 * GIB], "U8", "optimizer.v"),
    "6 GiB for no model": claims({}, [6 * GIB], "U8"),
    "JSON of 200,000 levels": lambda path: forge(path, LENET, '{"x":' + "[" * 200_000),
    "a header of 200,000 levels": raw(b'{"x":' * 200_000),
    "a header of 100 MB": raw(b" " * 100_000_000),
    "a header of 8 MB of dicts": raw(b"[" + b"{}," * 2_700_000 + b"{}]"),
    "a header of 4 million numbers": raw(b"[" + b"1," * 4_000_000 + b"1]"),
    "a header longer than the file": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "a tensor with a million axes": raw({"x": {"dtype": "F32", "shape": [1] * 10**6,
                                               "data_offsets": [0, 4]}}, 4),
    "sizes whose product overflows": raw({"x": {"dtype": "F32", "shape": [2**62] * 32,
                                                "data_offsets": [0, 4]}}, 4),
    "an array of bfloat16": raw({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, 4),
    "an array of float8": raw({"x": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}, 4),
    "100,000 empty tensors": raw({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                  for i in range(100_000)}),
    "class names that are numbers": of_lenet(model={"name": "lenet5"}, classes=[1] * 10),
    "half of a surrogate pair": of_lenet(model={"name": "lenet5"}, classes=["\ud800"] * 10),
    "a history of other columns": of_lenet(history=[{"epoch": 1, "loss": 2}]),
    "not a number": lambda path: forge(path, LENET, '{"format": 3, "lr": NaN}'),
    "a format of 100,000 letters": lambda path: forge(path, LENET, {"format": ["a" * 100_000]}),
    "a name of 100,000 letters": lambda path: forge(path, LENET, {"model": {"a" * 100_000: 1}}),
    "a tensor of 100,000 letters": raw({"x" * 100_000: {}}),
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
}  # fmt: skip


SLOW = {  # seconds each to parse
    "a million layers", "a header of 8 MB of dicts", "a header of 4 million numbers",
    "a tensor with a million axes", "100,000 empty tensors",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_refused_by_every_reader(name, tally, tmp_path):
    path = tmp_path / "hostile.safetensors"
    HOSTILE[name](path)
    run = trainer()
    readers = [
        lambda: read_checkpoint(path),
        lambda: gpucnn.load(path),
        lambda: gpucnn.load(path, nn.Linear(3, 3)),
        lambda: run.resume(path),
        lambda: convert_file(path, tmp_path / "out.safetensors"),
    ]
    with tally("a crafted checkpoint"):
        for read in readers[:1] if name in SLOW else readers:
            with bounded(), pytest.raises(CheckpointError) as caught:
                read()
            assert len(str(caught.value)) < 11_000


# --- a run's state ---


def changed(info, where, value):
    *path, last = where.split("/")
    for key in path:
        info = info[int(key) if key.isdigit() else key]
    info[int(last) if last.isdigit() else last] = value


STATES = {
    "loader/batch": 9, "loader/epoch": -1, "loader/seed": "x", "loader": [], "metrics/correct": 9,
    "metrics/count": -1, "metrics/loss": None, "metrics": {}, "epoch": 7, "step": "4",
    "optimizer/steps": "3", "optimizer/param_groups": 3, "optimizer/param_groups/0": [],
    "optimizer/param_groups/0/lr": "x", "optimizer/param_groups/0/betas": [0.9, "x"],
    "optimizer/param_groups/0/eps": 0, "optimizer/param_groups/0/other": 1,
    "optimizer/param_groups/0/params": ["x"], "optimizer/param_groups/0/weight_decay": True,
    "scheduler/state/step_size": 0, "scheduler/state/gamma": "x", "scheduler/state": {},
    "scheduler/state/base_lrs": [], "scheduler/state/last_epoch": -3, "scheduler/name": "Adam",
    "generators": {}, "generators/": {},
    "generators//buffer_pos": 10**9, "generators//bit_generator": "MT19937",
    "generators//state/counter": [1], "generators//state/key": [-1, 0],
    "generators//uinteger": 2**32, "history/0/epoch": "1", "history": [], "lr": -1,
}  # fmt: skip


@pytest.mark.parametrize("where", STATES)
def test_a_state_with_a_value_that_it_cannot_have_is_refused(where, saved, tally, tmp_path):
    whole = read_checkpoint(saved[0])
    info = json.loads(json.dumps(whole.info))
    changed(info, where, STATES[where])
    forge(tmp_path / "a.safetensors", whole.tensors, info)
    run = trainer()
    with tally("a run's state with an impossible value"), bounded(), pytest.raises(CheckpointError):
        run.resume(tmp_path / "a.safetensors")


@pytest.mark.parametrize("change", ["dtype", "nan", "missing", "counts"])
def test_a_state_with_other_arrays_is_refused(change, saved, tally, tmp_path):
    whole = read_checkpoint(saved[0])
    tensors = dict(whole.tensors)
    if change == "dtype":
        tensors["model.0.weight"] = tensors["model.0.weight"].astype(np.float64)
    elif change == "nan":
        tensors["optimizer.mean"] = tensors["optimizer.mean"] * np.float32("nan")
    elif change == "missing":
        del tensors["optimizer.square"]
    else:
        tensors["optimizer.counts"] = -tensors["optimizer.counts"]
    write_checkpoint(tmp_path / "a.safetensors", tensors, whole.info)
    run = trainer()
    with tally("a run's state with an impossible value"), bounded(), pytest.raises(CheckpointError):
        run.resume(tmp_path / "a.safetensors")


# --- kills ---

WRITER = """
import sys, time
from gpucnn.files import write_whole
def pieces():
    yield b"new" * 100_000
    print("half", flush=True)
    time.sleep(60)
write_whole(sys.argv[1], pieces())
"""


@contextmanager
def half_written(path):
    """A process that has written half of `path`, and waits; the end of the block kills it."""
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"half\n"
            yield
        finally:
            os.kill(writer.pid, signal.SIGKILL)


def test_kill_9_in_the_middle_of_a_write_leaves_the_old_file_and_the_next_write_cleans_up(
    tally, tmp_path
):
    path = tmp_path / "a"
    path.write_text("old")
    with tally("kill -9 in the middle of a write", times=2):
        with half_written(path):
            pass
        assert path.read_text() == "old"
        assert len(os.listdir(tmp_path)) == 2
        with half_written(path):
            assert len(os.listdir(tmp_path)) == 2  # it removed the litter of the killed one
            write_whole(path, "next")
            assert path.read_text() == "next"
            assert len(os.listdir(tmp_path)) == 2  # a, and the temporary file of the living one
        write_whole(path, "last")
        assert os.listdir(tmp_path) == ["a"]
        assert path.read_text() == "last"
