"""gpucnn --print-completion: what bash offers after sourcing the script, and without shtab."""

import shutil
import subprocess
import sys

import pytest
from scripts import assert_refused

from gpucnn.commands import main
from gpucnn.commands.check import PARTS
from gpucnn.models.registry import BY_NAME

# What bash itself does at the Tab key: set the words and the cursor, call the registered function.
_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
definition=$(complete -p gpucnn)
[[ $definition =~ -F\\ ([^ ]+) ]] || exit 3
"${BASH_REMATCH[1]}" gpucnn "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def printed(shell):
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "gpucnn", "--print-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    path = tmp_path_factory.mktemp("completion") / "gpucnn.bash"
    path.write_text(printed("bash"))
    return path


@pytest.fixture
def offered(script, tmp_path):
    """What bash offers for the last of `words`, in a folder with a checkpoint and a subfolder."""
    (tmp_path / "best.safetensors").touch()
    (tmp_path / "backup").mkdir()

    def offered(*words):
        command = ["bash", "--norc", "-c", _TAB, "bash", str(script), "gpucnn", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path
        )
        assert (done.stderr, done.returncode) == ("", 0)
        return {line.strip().removesuffix("/") for line in done.stdout.splitlines() if line}

    return offered


def test_bash_offers_the_commands(offered):
    assert offered("") >= {"predict", "convert", "export", "doctor", "kernels", "warmup", "check"}
    assert offered("ker") == {"kernels"}


def test_bash_offers_the_flags_of_a_command(offered):
    assert offered("warmup", "--") == {"--help", "--device", "--model", "--batch"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("warmup", "--model", ""), set(BY_NAME)),
        (("check", "--parts", ""), {part.name for part in PARTS}),
        (("warmup", "--device", ""), {"cuda", "cudasim"}),
        (("predict", "--device", ""), {"auto", "cpu", "cuda", "cudasim"}),
        (("--print-completion", ""), {"bash", "zsh", "tcsh"}),
        (("predict", "b"), {"best.safetensors", "backup"}),
        (("kernels", "--export", "b"), {"backup"}),
    ],
    ids=["models", "parts", "kernel devices", "devices", "shells", "files", "folders"],
)
def test_bash_offers_what_an_argument_takes(offered, words, expected):
    assert offered(*words) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_shells_own_parser_accepts_its_script(shell, tmp_path):
    text = printed(shell)
    assert "cuda_convnet_18pct" in text
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(text)
    subprocess.run([shell, "-n", "script"], cwd=tmp_path, check=True, timeout=600)


def test_without_shtab_one_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    message = '--print-completion needs shtab: pip install "gpucnn[completion]"'
    error = assert_refused(main, ["--print-completion", "bash"], message, capsys)
    assert error.count("\n") == 1
