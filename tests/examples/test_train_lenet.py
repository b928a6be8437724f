import struct
from pathlib import Path

import numpy as np
import pytest
from scripts import assert_refused, load_script
from small_script import same_bits, stop_at
from stopped_runs import kill_in_step_3

import gpucnn
from gpucnn import data, train
from gpucnn.commands import main as gpucnn_command

SCRIPT = Path(__file__).parents[2] / "examples" / "train_lenet.py"


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def idx_files(tmp_path_factory):
    """A folder of idx files in which class k is a bright bar at row 2 k + 4."""
    folder = tmp_path_factory.mktemp("idx")
    rng = np.random.default_rng(6)
    for split, n in (("train", 200), ("t10k", 60)):
        labels = rng.integers(10, size=n)
        images = rng.integers(60, size=(n, 28, 28))
        images[np.arange(n), 2 * labels + 4] = 255
        header = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(
            header + images.astype(np.uint8).tobytes()
        )
        header = struct.pack(">2I", 0x801, n)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            header + labels.astype(np.uint8).tobytes()
        )
    return folder


@pytest.mark.parametrize(
    ("dataset", "model", "first"),
    [("fashion-mnist", "lenet", "T-shirt/top"), ("mnist", "lenet5", "0")],
)
def test_it_trains_on_idx_files_and_leaves_a_checkpoint_that_predicts(
    dataset, model, first, script, idx_files, tmp_path, capsys
):
    flags = f"--dataset {dataset} --model {model} --epochs 1 --threads 1 --limit 48 --device cpu"
    threads = gpucnn.get_num_threads()
    try:
        status = script.main([*flags.split(), "--data", str(idx_files), "--out", str(tmp_path)])
    finally:
        gpucnn.set_num_threads(threads)
    assert status == 0
    out = capsys.readouterr().out
    assert "device: cpu" in out
    assert "48 images of 28x28x1" in out
    assert "test accuracy" in out
    assert f"  {first} " in out
    info = train.read_checkpoint(tmp_path / "best.safetensors").info
    assert info["model"] == {"name": model, "config": {}}
    assert gpucnn.load(tmp_path / "best.safetensors").training is False
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    checkpoint = str(tmp_path / "best.safetensors")
    assert gpucnn_command(["predict", checkpoint, str(tmp_path / "a.png"), "--top", "10"]) == 0
    assert f"  {first} " in capsys.readouterr().out


def test_it_learns(script, idx_files, tmp_path, capsys):
    flags = "--dataset mnist --epochs 8 --batch-size 20 --lr 0.01 --device cpu"
    assert script.main([*flags.split(), "--data", str(idx_files), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert float(out.split("test accuracy ")[1].split("%")[0]) > 60


def test_the_same_seed_gives_the_same_bits(script, idx_files, tmp_path, capsys):
    flags = "--epochs 1 --limit 32 --device cpu --batch-size 16 --seed".split()
    states = []
    for run, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(run)
        assert script.main([*flags, str(seed), "--data", str(idx_files), "--out", str(out)]) == 0
        states.append(gpucnn.load(out / "last.safetensors").state_dict())
    assert all(np.array_equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(np.array_equal(states[0][k], states[2][k]) for k in states[0])


SMALL = "--limit 48 --batch-size 16 --epochs 2 --seed 3 --device cpu --quiet".split()


@pytest.mark.slow
def test_stopped_or_killed_it_resumes_to_the_bits_of_a_run_never_stopped(
    script, idx_files, tmp_path, capsys
):
    flags = [*SMALL, "--data", str(idx_files)]
    whole, stopped, killed = (tmp_path / name for name in ("whole", "stopped", "killed"))
    assert script.main([*flags, "--out", str(whole)]) == 0

    with stop_at(5):
        assert script.main([*flags, "--out", str(stopped)]) == 130
    assert "stopped in epoch 2, after step 5; resume with --resume" in capsys.readouterr().err
    assert script.main(["--resume", "--out", str(stopped), "--quiet"]) == 0
    assert same_bits(whole, stopped)

    kill_in_step_3(SCRIPT, flags, killed)
    assert script.main(["--resume", str(killed / "last.safetensors"), "--quiet"]) == 0
    assert same_bits(whole, killed)


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(
    script, idx_files, tmp_path, capsys
):
    flags = [*SMALL, "--data", str(idx_files), "--out", str(tmp_path / "run")]
    assert script.main(flags) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert script.main(flags) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert script.main([*flags, "--resume", "--hold-out", "9"]) == 2
    assert "the run has --hold-out None, the command line 9" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epochs 0", "expected at least 1, got 0"),
        ("--dataset imagenet", "invalid choice"),
        ("--model alexnet", "invalid choice"),
        ("--device tpu", "device 'tpu' is unknown"),
        ("--lr -1", "lr"),
        ("--out a_file/x", "cannot be created"),
        ("--data damaged", "not an idx file"),
        ("--data mispelt", "--data: mispelt does not exist"),
        ("--hold-out 200", "--hold-out: 200 of 200 training images leave none"),
    ],
)
def test_a_mistake_is_one_clear_text_and_exit_status_2(
    flags, message, script, idx_files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("")
    Path("damaged").mkdir()
    Path("damaged/train-images-idx3-ubyte").write_bytes(b"no idx")
    (Path("damaged") / "train-labels-idx1-ubyte").write_bytes(b"no idx")
    if "--data" not in flags:
        flags += f" --data {idx_files}"
    assert_refused(
        script.main, [*flags.split(), "--limit", "8", "--batch-size", "8"], message, capsys
    )
    assert not Path("runs").exists()
    assert not Path("mispelt").exists()


def test_without_data_and_network_the_error_says_where_to_put_the_files(
    script, tmp_path, monkeypatch, capsys
):
    def fetch(urls, path, sha256):
        raise data.DataNotFound(f"{path.name} could not be downloaded; put it into {path.parent}")

    monkeypatch.setattr("gpucnn.data.mnist.fetch", fetch)
    assert script.main(["--data", str(tmp_path)]) == 2
    assert "could not be downloaded; put it into" in capsys.readouterr().err


def test_help_names_every_default(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert "None" not in text
    assert "(default: fashion-mnist)" in text
    assert "all cores" in text


def test_a_missing_folder_in_the_environment_is_named_and_not_created(
    script, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GPUCNN_DATA", str(tmp_path / "mispelt"))
    assert script.main(["--dataset", "mnist"]) == 2
    assert f"GPUCNN_DATA: {tmp_path / 'mispelt'} does not exist" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
