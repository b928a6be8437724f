"""The --help texts of the training scripts: the shared flags read the same in all of them."""

import re
from pathlib import Path

import pytest
from scripts import load_script

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = ("train_alexnet_cifar10", "train_lenet", "train_image_folder")
SHARED = (
    "--model --epochs --batch-size --lr --weight-decay --optimizer --schedule --augment --limit "
    "--seed --exact --device --threads --out --save-every --checkpoint-every --keep --max-time "
    "--on-nan --memory-limit --quiet --resume --distributed --grad-dtype --sync-bn --micro-batches"
).split()


def help_of(name, capsys):
    """{flag: its --help text, with single spaces}."""
    module = load_script(EXAMPLES / f"{name}.py")
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out.partition("\nrun:")[2]
    entries = re.split(r"\n  (?=\S)", text.replace("\n\n", "\n"))[1:]
    return {entry.split()[0].rstrip(","): " ".join(entry.split()) for entry in entries}


def test_all_training_scripts_have_the_same_flags_in_the_same_words(capsys):
    texts = [help_of(name, capsys) for name in SCRIPTS]
    for text in texts:
        assert set(SHARED) <= text.keys()
    own = {
        "--model",
        "--epochs",
        "--batch-size",
        "--lr",
        "--schedule",
        "--augment",
        "--keep",
        "--limit",
    }
    for flag in set(SHARED) - own:
        assert len({text[flag] for text in texts}) == 1, flag
    for flag in own - {"--model", "--augment", "--limit"}:  # the defaults differ
        assert len({text[flag].partition("(default")[0] for text in texts}) == 1, flag


def test_a_script_with_a_recipe_of_its_own_has_the_other_flags_in_the_same_words(capsys):
    own, shared = help_of("speedrun_cifar10", capsys), help_of("train_lenet", capsys)
    missing = {"--model", "--lr", "--weight-decay", "--optimizer", "--schedule"}
    assert missing.isdisjoint(own)
    assert set(SHARED) - missing <= own.keys()
    for flag in set(SHARED) - missing - {"--augment", "--limit"}:
        assert own[flag].partition("(default")[0] == shared[flag].partition("(default")[0]


@pytest.mark.parametrize("name", [*SCRIPTS, "speedrun_cifar10"])
def test_every_flag_of_a_training_script_says_its_default(name, capsys):
    for flag, text in help_of(name, capsys).items():
        assert "(default" in text, flag
        assert "None" not in text
