"""Every code block of the documentation runs, or NOT_RUN says why it cannot.

- ```python blocks are programs; those of a page run in its order (tests/test_docs.py).
- ```py blocks are fragments: FRAGMENTS holds what comes before each.
- Commands, in ```sh and ```console blocks and in indented ones, are in RUN or NOT_RUN.  Their
  scripts must exist and must know their flags.
- docs/check.py runs the notebooks.
"""

import functools
import os
import re
import shlex
import subprocess
import sys

import pytest
from scripts import load_script
from test_docs import DOCS, PAGES, ROOT, blocks

import gpucnn
from gpucnn import data, models, nn, ops, optim, train
from gpucnn.errors import MissingExtra

SIMULATOR = "gpucnn/cudasim/README.md"
ALL = {**PAGES, SIMULATOR: (ROOT / SIMULATOR).read_text(encoding="utf-8")}
NAMES = {"gpucnn": gpucnn, "data": data, "models": models, "nn": nn, "ops": ops, "optim": optim}
NAMES |= {"train": train}
SMALL = """
import numpy as np
images = np.zeros((2, 32, 32, 3), np.float32)
labels = np.zeros(2, np.int64)
train_set = data.Synthetic(n=8)
model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.Linear(256, 10))
optimizer = optim.SGD(model.parameters(), lr=0.01)
normalize = data.Normalize((0.5,) * 3, (0.2,) * 3)
loader = data.DataLoader(train_set, 4, transform=normalize, device="cpu")
"""
# {page: {the first line of a fragment: what comes before it}}.  They run with the simulator in
# place of a GPU.
FRAGMENTS = {
    "docs/devices.md": {
        'x = gpucnn.tensor(images, device="cuda")': SMALL,
        "theirs = torch.from_dlpack(model(x).detach())    # no copy": SMALL
        + "import pytest\ntorch = pytest.importorskip('torch')\nx = gpucnn.tensor(images)",
        "timer = gpucnn.cuda.Timer(device)": SMALL
        + "import gpucnn.cuda\ndevice = 'cpu'\ndef step(images, labels): model(images)",
        "from gpucnn.train.memory_limit import check_memory_limit": SMALL,
    },
    "docs/distributed.md": {
        "from gpucnn import data, nn, optim, train": "import pytest\npytest.importorskip('mpi4py')",
    },
    "docs/gallery.md": {
        "print(gpucnn.inspect.analyze(model, (32, 32, 3)))": SMALL + "import gpucnn.inspect",
        'model = models.lenet5(weights="default")': SMALL
        + "digits = np.zeros((2, 28, 28, 1), np.uint8)",
        'gpucnn.save("own.safetensors", model)            # the weights of any module': SMALL
        + "gpucnn.save('best.safetensors', models.build('lenet5'), 'lenet5', {})",
    },
    "docs/kernels.md": {
        "cuda.launch(": """
from gpucnn import cuda, cudasim
from gpucnn.ops._kernels import Divisor
from gpucnn.ops.geometry import Geometry
g = Geometry.of("max_pool2d", (1, 8, 8, 8), 2, 2, 0)
x, y = cudasim.zeros((1, 8, 8, 8), "float16"), cudasim.empty((1, 4, 4, 8), "float16")
winners = cudasim.empty((1, 4, 4, 8), "uint8")
groups = 1
grid, block = (1, 1), 256
""",
    },
    "docs/training.md": {
        'gpucnn.set_float32_precision("highest")   # float32 products in float32; "high" is TF32': (
            "import pytest\npytest.importorskip('ml_dtypes')\n" + SMALL
        ),
    },
}

RUN = [  # in a folder of their own
    "gpucnn doctor",
    "gpucnn kernels",
    "python examples/digits.py",
    "python examples/lecture.py --out lecture",
    "python examples/train_iris.py",
]
NOT_RUN = {  # the start of a command: the reason
    "pip install": "installs packages",
    "git clone": "needs the network",
    "python -m venv": "makes an environment",
    "pre-commit install": "changes the checkout",
    ".ci/run": "is what runs this test",
    "pytest": "is what runs this test",
    "GPUCNN_DEVICE=cudasim pytest": "is what runs this test",
    "PYTHONPATH=tests python -m fuzzing": "takes minutes; .ci/run runs it",
    "mpiexec": "takes minutes or other machines; tests/distributed starts smaller runs",
    "srun": "needs a cluster",
    "gpucnn check": "takes minutes or a GPU; tests/commands runs its parts",
    "gpucnn warmup --device cuda": "needs a GPU; tests/commands runs it on the simulator",
    "gpucnn kernels --export": "needs NVRTC; tests/commands/test_kernel_export.py runs it",
    "gpucnn predict": "needs pictures; tests/weights and tests/commands run it",
    "gpucnn convert": "needs weights of torchvision's; tests/interop converts others",
    "gpucnn export": "needs a finished run; tests/interop exports",
    "python examples/train_": "takes minutes; tests/examples runs it with few images",
    "python examples/speedrun_cifar10.py": "takes minutes; tests/examples runs it with few images",
    "python examples/look_inside.py": "needs a finished run; tests/examples makes one",
    "python benchmarks/": "takes minutes; tests/benchmarks runs it with small sizes",
    "python docs/screenshot.py": "needs Chromium",
    "python docs/check.py": "builds the site; .ci/run runs it",
    "GPUCNN_CUDASIM=debug gdb": "needs gdb",
}
# Other blocks in a language that are not run, by their first lines
NOT_RUN_BLOCKS = {
    'x = gpucnn.tensor(images, device="cudasim")  # or model.to("cudasim")': "a line of a program",
    'if (threadIdx.x == 0 && blockIdx.x == 3) printf("block 3 starts at pixel %d\\n", m0);': (
        "a line of a kernel"
    ),
}
DATA_LANGUAGES = {"", "text", "{toctree}", "{api}", "{code-cell}", "{include}"}

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)((?:    .*\n)(?:(?:    .*)?\n)*)")
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )?(?:pip|git|python|gpucnn|pytest|mpiexec|srun|pre-commit|gdb|\.ci/run)\b.*"
)


def fences(page):
    """(language, text) of every fenced block."""
    return [(words.split()[0] if words else "", text) for words, text in _FENCE.findall(ALL[page])]


def commands(page):
    """Every command of a page; continued lines are joined, and && separates two."""
    texts = [text for language, text in fences(page) if language in ("sh", "console")]
    texts += _INDENTED.findall(_FENCE.sub("", ALL[page]) + "\n")
    found = []
    for text in texts:
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            for part in line.strip().removeprefix("$ ").split(" && "):
                if _COMMAND.fullmatch(part):
                    found.append(re.split(r"\s+#\s|\s{3,}", part)[0].strip())
    return found


COMMANDS = sorted({(page, command) for page in ALL for command in commands(page)})


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_run_or_has_a_reason_not_to_be(page, command):
    assert command in RUN or any(command.startswith(start) for start in NOT_RUN), (
        f"{page} shows a command that is neither in RUN nor in NOT_RUN: {command}"
    )


def test_no_reason_is_left_over():
    shown = {command for _, command in COMMANDS}
    assert [run for run in RUN if run not in shown] == []
    assert [s for s in NOT_RUN if not any(command.startswith(s) for command in shown)] == []
    first_lines = {text.split("\n")[0] for page in ALL for _, text in fences(page)}
    assert [line for line in NOT_RUN_BLOCKS if line not in first_lines] == []
    for page, fragments in FRAGMENTS.items():
        assert set(fragments) <= {text.split("\n")[0] for text in blocks(page, "py")}, page


@pytest.mark.parametrize("page", ALL)
def test_every_block_in_a_language_is_run_or_has_a_reason_not_to_be(page):
    for language, text in fences(page):
        first = text.split("\n")[0]
        if language in ("sh", "console"):
            assert any(line.strip() for line in text.splitlines())
        elif language == "py":
            assert first in FRAGMENTS.get(page, {}), f"{page}: no entry in FRAGMENTS for: {first}"
        elif language == "python":
            known = page in PAGES or first in NOT_RUN_BLOCKS or first == "# try.py"
            assert known, f"{page}: not run: {first}"
        else:
            known = language in DATA_LANGUAGES or first in NOT_RUN_BLOCKS
            assert known, f"{page}: a block in {language} that is not run: {first}"


@pytest.mark.parametrize(
    ("page", "first"), [(page, first) for page, known in FRAGMENTS.items() for first in known]
)
def test_the_fragments_of_a_page_run(page, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict(NAMES)
    exec(compile(FRAGMENTS[page][first], f"before {page}", "exec"), names)
    (text,) = (text for text in blocks(page, "py") if text.split("\n")[0] == first)
    text = re.sub(r'"cuda(:1)?"', '"cudasim"', text)
    try:
        exec(compile(text, page, "exec"), names)
    except MissingExtra as error:
        pytest.skip(str(error))


def test_the_program_of_the_simulators_manual_runs():
    (program,) = (text for _, text in fences(SIMULATOR) if text.startswith("# try.py"))
    before = gpucnn.get_conv_algorithm()
    try:
        exec(compile(program, SIMULATOR, "exec"), {})
    finally:
        gpucnn.set_conv_algorithm(before)


def arguments(command):
    """The command as a list: this Python for `python` and `gpucnn`."""
    words = shlex.split(command)
    if words[0] == "gpucnn":
        return [sys.executable, "-m", *words]
    return [sys.executable, *words[1:]]


def run(command, folder, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", **environment}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", RUN)
def test_the_commands_of_the_pages_run(command, tmp_path):
    for folder in ("examples", "kernels"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    done = run(arguments(command), tmp_path, GPUCNN_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout


@functools.cache
def help_text(program):
    return run([*program, "--help"], ROOT).stdout


def scripts_of(page):
    return re.findall(r"\b(?:examples|benchmarks|docs)/\w+\.py\b", "\n".join(commands(page)))


@pytest.mark.parametrize("page", [page for page in ALL if scripts_of(page)])
def test_the_scripts_of_a_page_exist(page):
    assert [script for script in scripts_of(page) if not (ROOT / script).is_file()] == []


WITH_FLAGS = sorted(
    {
        command
        for _, command in COMMANDS
        if re.match(r"(python (examples|benchmarks|docs)/|gpucnn \w+ ).* --[a-z]", command)
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("command", WITH_FLAGS)
def test_the_flags_of_a_command_exist(command):
    words = arguments(command)
    text = help_text(tuple(words[: 4 if command.startswith("gpucnn") else 2]))
    assert text
    for flag in re.findall(r"(?<= )--[a-z][a-z0-9-]*", command):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", text), f"{command}: no {flag}"


def test_a_block_that_nobody_runs_is_seen(monkeypatch):
    page = "docs/new.md"
    text = "A\n\n```py\nnew(1)\n```\n\n    gpucnn unknown --flag   # why\n\n```lua\nprint(1)\n```\n"
    monkeypatch.setitem(ALL, page, text)
    assert commands(page) == ["gpucnn unknown --flag"]
    with pytest.raises(AssertionError, match=r"no entry in FRAGMENTS for: new\(1\)"):
        test_every_block_in_a_language_is_run_or_has_a_reason_not_to_be(page)
    with pytest.raises(AssertionError, match="neither in RUN nor in NOT_RUN"):
        test_every_command_is_run_or_has_a_reason_not_to_be(page, *commands(page))


def test_the_figures_of_the_lecture_are_those_that_its_script_draws():
    drawn = set(load_script(ROOT / "examples" / "lecture.py").figures())
    shown = set(re.findall(r"\((?:lecture/)?(\w+)\.png\)", ALL["docs/lecture.md"]))
    assert shown == drawn
    assert {path.stem for path in (DOCS / "lecture").glob("*.png")} | {"letter_m"} == drawn
