from pathlib import Path

import numpy as np
import pytest
from scripts import assert_refused, load_script
from small_script import same_bits, stop_at
from stopped_runs import kill_in_step_3

from gpucnn import models, nn, train
from gpucnn.commands import main as gpucnn_command
from gpucnn.models import registry

SCRIPT = Path(__file__).parents[2] / "examples" / "train_image_folder.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("PIL", reason="needs Pillow")
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Reddish and bluish JPEGs of several sizes, in train/ and test/."""
    from PIL import Image

    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(8)
    for split, n in (("train", 6), ("test", 3)):
        for name, channel in (("blue", 2), ("red", 0)):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 90, (40 + 9 * i, 70 - 5 * i, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


@pytest.fixture
def small(monkeypatch):
    """A tiny network under the name alexnet: the tests are about the script."""
    monkeypatch.setitem(models.BY_NAME, "alexnet", alexnet)
    monkeypatch.setitem(registry._SIDES, alexnet, 227)


def alexnet(classes=1000, channels=3, generator=None):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 11, stride=8, generator=generator),
        nn.ReLU(),
        nn.GlobalAvgPool2d(),
        nn.Dropout(0.5),
        nn.Linear(4, classes, generator=generator),
    )


FLAGS = "--batch-size 4 --device cpu --lr 0.05".split()


def test_a_folder_of_jpegs_trains_tests_with_ten_views_and_predicts(
    script, photos, small, tmp_path, capsys
):
    arguments = [str(photos / "train"), "--test", str(photos / "test"), "--out", str(tmp_path)]
    assert script.main([*arguments, *FLAGS, "--epochs", "4"]) == 0
    out = capsys.readouterr().out
    assert "12 images as 256x256x3, 2 classes" in out
    assert "test accuracy with ten views 100.00%" in out
    info = train.read_checkpoint(tmp_path / "best.safetensors").info
    assert info["model"] == {"name": "alexnet", "config": {"classes": 2, "channels": 3}}
    image = str(photos / "test" / "red" / "0.jpg")
    assert gpucnn_command(["predict", str(tmp_path / "best.safetensors"), image]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  red ")


# Makes a subprocess use the `alexnet` of this file
SMALL = f"""
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_train_image_folder import alexnet, models, registry
models.BY_NAME["alexnet"], registry._SIDES[alexnet] = alexnet, 227
"""


@pytest.mark.slow
def test_stopped_or_killed_it_resumes_to_the_bits_of_a_run_never_stopped(
    script, photos, small, tmp_path, capsys
):
    flags = [str(photos / "train"), "--test", str(photos / "test"), *FLAGS, "--epochs", "2"]
    flags += ["--seed", "5", "--quiet", "--limit", "10"]
    whole, stopped, killed = (tmp_path / name for name in ("whole", "stopped", "killed"))
    assert script.main([*flags, "--out", str(whole)]) == 0

    with stop_at(4):
        assert script.main([*flags, "--out", str(stopped)]) == 130
    assert "stopped in epoch 2, after step 4; resume with --resume" in capsys.readouterr().err
    assert script.main(["--resume", str(stopped / "last.safetensors"), "--quiet"]) == 0
    assert "test accuracy with ten views" in capsys.readouterr().out
    assert same_bits(whole, stopped)

    kill_in_step_3(SCRIPT, flags, killed, SMALL)
    assert script.main(["--resume", "--out", str(killed), "--quiet"]) == 0
    assert same_bits(whole, killed)


def test_a_run_is_not_overwritten_and_not_resumed_with_other_settings(
    script, photos, small, tmp_path, capsys
):
    flags = [str(photos / "train"), *FLAGS, "--epochs", "1", "--out", str(tmp_path / "run")]
    assert script.main(flags) == 0
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    assert script.main(flags) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert script.main([*flags, "--resume", "--on-error", "skip"]) == 2
    assert "the run has --on-error raise, the command line skip" in capsys.readouterr().err
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_the_folder_may_come_before_or_after_the_flags(script, photos, small, tmp_path):
    flags = [*FLAGS, "--epochs", "1", "--quiet"]
    assert script.main([*flags, str(photos / "train"), "--out", str(tmp_path / "behind")]) == 0
    assert script.main([str(photos / "train"), *flags, "--out", str(tmp_path / "before")]) == 0
    assert same_bits(tmp_path / "behind", tmp_path / "before")


def test_without_augmentation_images_are_center_cropped_to_the_networks_input(
    script, photos, small, tmp_path, monkeypatch, capsys
):
    shapes = set()
    train_step = train.Trainer.train_step

    def watched(self, images, labels):
        shapes.add(images.shape)
        train_step(self, images, labels)

    monkeypatch.setattr(train.Trainer, "train_step", watched)
    flags = [str(photos / "train"), *FLAGS, "--epochs", "1", "--no-augment", "--limit", "4"]
    assert script.main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert "4 images as 227x227x3" in capsys.readouterr().out
    assert shapes == {(4, 227, 227, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "alexnet_torchvision", "alexnet_keras"])
def test_every_alexnet_of_full_size_takes_a_step(model, script, photos, tmp_path, capsys):
    arguments = [str(photos / "train"), "--model", model, "--out", str(tmp_path), "--epochs", "1"]
    assert script.main([*arguments, "--batch-size", "12", "--device", "cpu"]) == 0
    assert (tmp_path / "last.safetensors").stat().st_size > 4 * 58_000_000


def test_a_damaged_file_fails_or_is_skipped_as_asked(script, photos, small, tmp_path, capsys):
    import shutil

    shutil.copytree(photos / "train", tmp_path / "train")
    (tmp_path / "train" / "red" / "bad.jpg").write_bytes(b"no image")
    arguments = [str(tmp_path / "train"), *FLAGS, "--epochs", "1", "--out", str(tmp_path / "out")]
    assert script.main(arguments) == 2
    assert "bad.jpg: not a readable image" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"bad\.jpg: not a readable image .* 1 so far"):
        assert script.main([*arguments, "--on-error", "skip"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("none", "TRAIN: none does not exist"),
        ("", "TRAIN: name the folder"),
        ("TRAIN --test none", "--test: none does not exist"),
        ("TRAIN --test OTHER", "expected those of"),
        ("TRAIN --model lenet", "invalid choice"),
        ("TRAIN --epochs 0", "expected at least 1"),
        ("TRAIN --out a_file/x", "cannot be created"),
    ],
)
def test_a_mistake_is_one_clear_text_and_exit_status_2(
    flags, message, script, photos, small, tmp_path, monkeypatch, capsys
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("")
    Path("other/cat").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save("other/cat/a.png")
    words = flags.replace("TRAIN", str(photos / "train")).replace("OTHER", "other").split()
    assert_refused(script.main, [*words, "--device", "cpu"], message, capsys)


def test_links_out_of_the_folder_need_a_flag_and_some_image_must_be_readable(
    script, small, tmp_path, capsys
):
    outside, root = tmp_path / "x.png", tmp_path / "photos"
    outside.write_bytes(b"no image")
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.png").symlink_to(outside)
    flags = [str(root), *FLAGS, "--out", str(tmp_path / "run"), "--on-error", "skip"]
    assert script.main(flags) == 2
    assert "if you trust the folder" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="skipped, 1 so far"):
        assert script.main([*flags, "--follow-links"]) == 2
    assert "photos: none of 1 images can be read" in capsys.readouterr().err
