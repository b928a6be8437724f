"""TensorBoard and WandbLogger record what JSONLines records."""

import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
from run_lines import TIMES, StopAt, lines
from trainers import STEPS, build

from gpucnn import train
from gpucnn.errors import MissingExtra

# --- TensorBoard ---


def scalars(folder):
    """{name: [(step, value), ...]} by TensorBoard's own reader, or the record format by hand."""
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="reads event files"
    )
    reader = reading.EventAccumulator(str(folder))
    reader.Reload()
    return {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }


def expected(path):
    """What JSONLines has written, as `scalars` gives it."""
    found = {}
    for record in lines(path):
        step = record.pop("step", record["epoch"] * STEPS)
        del record["epoch"]
        for name, value in record.items():
            found.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return found


@pytest.fixture
def _tensorboard():
    pytest.importorskip("tensorboardX", reason='pip install "gpucnn[tensorboard]"')


@pytest.mark.usefixtures("_tensorboard")
@pytest.mark.filterwarnings("ignore")  # of TensorBoard's reader
@pytest.mark.parametrize("stop", [None, 6, 4])
def test_tensorboard_reads_what_json_lines_has_also_over_a_resume(stop, tmp_path):
    def fit(*callbacks, resume=False):
        logs = train.TensorBoard(tmp_path / "tb", 2), train.JSONLines(tmp_path / "run.jsonl", 2)
        trainer = build(callbacks=[train.Checkpoints(tmp_path, every=1), *logs, *callbacks])
        if resume:
            # of step 5: what was logged after it is forgotten
            trainer.resume(tmp_path / ("last-1.safetensors" if stop == 6 else "last.safetensors"))
        trainer.fit(3 - trainer.epoch)

    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            fit(StopAt(stop))
    fit(resume=stop is not None)
    found = {name: values for name, values in scalars(tmp_path / "tb").items() if name not in TIMES}
    assert found == expected(tmp_path / "run.jsonl")
    assert [step for step, _ in found["loss"]] == [2, 4, 6, 8, 10, 12]


def crc32c(content):
    """The checksum of TFRecord files, a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.usefixtures("_tensorboard")
def test_the_event_file_is_one_of_whole_records_with_our_values(tmp_path):
    path = tmp_path / "run.jsonl"
    build(callbacks=[train.TensorBoard(tmp_path / "tb", 2), train.JSONLines(path, 2)]).fit(1)
    (file,) = (tmp_path / "tb").iterdir()
    rest, records = file.read_bytes(), []
    while rest:
        size = int.from_bytes(rest[:8], "little")
        assert int.from_bytes(rest[8:12], "little") == crc32c(rest[:8])
        records.append(rest[12 : 12 + size])
        assert int.from_bytes(rest[12 + size : 16 + size], "little") == crc32c(records[-1])
        rest = rest[16 + size :]
    for record in lines(path):
        step = record.pop("step", STEPS)
        del record["epoch"]
        for name, value in record.items():
            # Event.step, a varint; Summary.Value.tag, a text, and simple_value, a float
            text = (
                b"\x0a" + bytes([len(name)]) + name.encode() + b"\x15" + np.float32(value).tobytes()
            )
            found = [r for r in records if text in r]
            assert any(bytes([0x10, step]) in r for r in found), name


@pytest.mark.usefixtures("_tensorboard")
def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, capsys):
    (tmp_path / "tb").write_text("a file")
    trainer = build(callbacks=[train.TensorBoard(tmp_path / "tb", 1)])
    assert len(trainer.fit(2)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"warning: {tmp_path / 'tb'} cannot be written (")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [(train.TensorBoard, "tensorboardX", "tensorboard"), (train.WandbLogger, "wandb", "wandb")],
)
def test_a_missing_package_is_named_with_the_command(kind, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    text = f'{kind.__name__} needs {package}: pip install "gpucnn[{extra}]"'
    with pytest.raises(MissingExtra) as caught:
        kind("folder")
    assert str(caught.value) == text


# --- Weights & Biases ---


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package: what was asked of it is in `calls`."""
    module = types.ModuleType("wandb")
    module.calls = []

    class Run:
        def log(self, values, step):
            module.calls.append((step, values))

        def finish(self):
            module.calls.append("finish")

    def init(**options):
        module.calls.append(options)
        return Run()

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_the_config_the_numbers_and_an_end(wandb, tmp_path):
    logger = train.WandbLogger("project", name="mine", id="abc", every=2, mode="offline")
    path = tmp_path / "run.jsonl"
    logs = [logger, train.JSONLines(path, 2), train.GradientNorm()]
    build(callbacks=logs, info={"settings": {"lr": 1}}).fit(1)
    first, *logged, last = wandb.calls
    assert first == {
        "config": {"settings": {"lr": 1}}, "project": "project", "name": "mine", "id": "abc",
        "mode": "offline", "resume": "allow",
    }  # fmt: skip
    assert last == "finish"
    assert [step for step, _ in logged] == [2, 4, 4]
    records = [{k: v for k, v in values.items() if k not in TIMES} for _, values in logged]
    for record in (wanted := lines(path)):
        record.pop("step", None)
    assert records == wanted


def test_wandb_is_finished_when_a_run_is_stopped_and_may_start_again(wandb):
    trainer = build(callbacks=[train.WandbLogger("project"), StopAt(2)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(1)
    assert wandb.calls[0] == {"config": {}, "project": "project", "name": None, "id": None}
    assert wandb.calls[-1] == "finish"
    trainer.fit(1)
    assert wandb.calls.count("finish") == 2


def test_wandb_that_fails_only_warns(wandb, capsys):
    def refuse(**options):
        raise RuntimeError("no network")

    wandb.init = refuse
    assert len(build(callbacks=[train.WandbLogger("project", every=1)]).fit(1)) == 1
    err = capsys.readouterr().err
    assert err.startswith("warning: WandbLogger failed (RuntimeError('no network')); training cont")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_real_wandb_records_a_run_offline(tmp_path):
    pytest.importorskip("wandb", reason='pip install "gpucnn[wandb]"')
    program = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from trainers import build
        from gpucnn import train
        build(callbacks=[train.WandbLogger("project", every=2, mode="offline")]).fit(1)
    """
    here = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), here], cwd=tmp_path, timeout=600,
        capture_output=True, text=True, env={**os.environ, "WANDB_SILENT": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "warning: " not in done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"train_loss" in content
    assert b"test_accuracy" in content
