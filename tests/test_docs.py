"""The README and the pages of docs/, as far as a test can check them."""

import re
import runpy
import textwrap
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
from gpu.public_functions import ARRAYLESS
from test_architecture import LAYERS
from test_public_names import NAMES, listed

import gpucnn
from gpucnn import OutOfMemory, cuda, nn, optim
from gpucnn.device import choose_device

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md")))
    if DOCS / "_build" not in path.parents
}
FROM_PYTORCH = "docs/coming_from_pytorch.md"
PACKAGES = "gpucnn", "cuda", "data", "inspect", "models", "nn", "ops", "optim", "train"
# Files of a run, an export or a report, and examples of names.
PRODUCED = set(
    "config.json metrics.csv curves.png digits.png manifest.json report.md report.json "
    "report.before.md check/report.md check/report.json "
    "docs/cards/h100-sxm.md docs/cards/rtx-4090.md".split()
)


def blocks(page, language):
    """The fenced blocks of a page in one language; "" for those that name none."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    for path in re.findall(r"`([\w./-]+\.(?:py|md|cu|cuh|h|toml|png|csv|json))`", PAGES[page]):
        assert path in PRODUCED or (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        assert "://" in link or ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_every_folder_that_a_page_names_exists(page):
    for path in re.findall(r"`((?:[\w-]+/)+)`", PAGES[page]):
        assert path == "runs/" or (ROOT / path).is_dir() or (DOCS / path).is_dir(), path


@pytest.mark.parametrize("page", PAGES)
def test_every_name_of_the_package_that_a_page_uses_exists(page):
    text = PAGES[page]
    if page == FROM_PYTORCH:  # PyTorch's names are in the first column
        text = re.sub(r"^\|[^|\n]*\|", "|", text, flags=re.MULTILINE)
    code = re.findall(r"^```py(?:thon)?\n.*?^```$|`[^`\n]+`", text, re.DOTALL | re.MULTILINE)
    pattern = rf"(?<![\w./])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+(?![\w/])"
    for name in re.findall(pattern, "\n".join(code)):
        if not name.endswith(".py"):
            resolve_name(name if name.startswith("gpucnn.") else f"gpucnn.{name}")


def test_names_that_the_page_for_pytorch_users_calls_the_same_exist():
    model = nn.Linear(1, 1)
    owners = {
        "nn": nn,
        "optim": optim,
        "lr_scheduler": optim.lr_scheduler,
        "x": gpucnn.tensor(1.0),
        "model": model,
        "optimizer": optim.SGD(model.parameters()),
    }
    rows = re.findall(r"^\| ([^|]*) \| (?:[^|]*\| )?same\b", PAGES[FROM_PYTORCH], re.MULTILINE)
    names = re.findall(r"`([a-z_]+(?:\.\w+)?)(?:\(.*?\))?`", "\n".join(rows))
    for name in names:
        owner, _, attribute = name.rpartition(".")
        if owner != "torch":
            assert hasattr(owners[owner or "model"], attribute), name
    assert len(names) > 40


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page != "README.md" and blocks(page, "python")]
)
def test_the_programs_of_a_page_run(page, monkeypatch):
    if choose_device()[0].kind == "cudasim":  # "auto" would take minutes there
        monkeypatch.setenv("GPUCNN_DEVICE", "cpu")
    names: dict = {}
    for program in blocks(page, "python"):
        exec(compile(program, page, "exec"), names)


def test_the_weight_conversion_that_a_page_shows_gives_pytorchs_outputs(rng):
    torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
    names: dict = {}
    for program in blocks(FROM_PYTORCH, "python"):
        exec(compile(program, FROM_PYTORCH, "exec"), names)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(4 * 6 * 7, 5),
    ).eval()  # fmt: skip
    state = names["from_pytorch"]({k: v.numpy() for k, v in theirs.state_dict().items()})
    state["3.weight"] = names["after_flatten"](state["3.weight"], 4, 6, 7)
    ours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(168, 5))
    ours.load_state_dict(state)
    x = rng.standard_normal((2, 8, 9, 3), dtype=np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours.eval()(gpucnn.tensor(x)).numpy(), expected, atol=1e-5)


def test_the_message_about_memory_is_worded_as_the_page_about_devices_shows_it():
    mib = 2**20
    error = OutOfMemory(int(15.8 * mib), int(148.8 * mib), int(11.2 * mib), "cudasim")
    error.where = "the gradient of conv2d in layer 10 (Conv2d)"
    error.images, error.batch_size = 128, 112
    assert textwrap.indent(str(error), "    ") in PAGES["docs/devices.md"]


def test_the_flags_that_the_pages_show_are_those_of_the_training_script(capsys):
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples" / "train_alexnet_cifar10.py"))["main"](["--help"])
    text = capsys.readouterr().out
    for page in ("README.md", "docs/training.md"):
        for row in re.findall(r"^\| (`--.*?) \| ", PAGES[page], re.MULTILINE):
            for word in re.findall(r"--[a-z][a-z0-9-]*|(?<=\|)[a-z_0-9-]+", row):
                assert re.search(rf"(?<![\w-]){word}(?![\w-])", text), (page, word)


def test_every_page_is_reached_from_the_readme_or_the_front_page_of_the_site():
    toctrees = "\n".join(PAGES[f"docs/{page}.md"] for page in ("index", "api/index"))
    for link in PAGES:
        entry = link.removeprefix("docs/").removesuffix(".md")
        in_toctree = {entry, entry.removeprefix("api/"), f"{entry}.md"} & set(toctrees.split("\n"))
        assert (
            link in ("README.md", "docs/index.md")
            or f"({link})" in PAGES["README.md"]
            or (link.startswith("docs/") and in_toctree)
        ), link


def entries():
    """ "{module}.{name}" for each name in an {api} block, in order."""
    return [
        f"{module}.{name}".removeprefix("gpucnn.")
        for page in (page for page in PAGES if page.startswith("docs/api/"))
        for module, names in re.findall(
            r"^```\{api\} ([\w.]+)\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE
        )
        for name in names.split()
    ]


def test_the_reference_has_every_public_name_once():
    public = {
        f"{module}.{name}".removeprefix("gpucnn.")
        for module in (*ARRAYLESS, *NAMES)
        for name in listed(module)
    }
    there = entries()
    assert {
        "public, but in no {api} block of docs/api/": sorted(public - set(there)),
        "in an {api} block, but not public": sorted(set(there) - public),
        "twice": sorted({name for name in there if there.count(name) > 1}),
    } == {
        "public, but in no {api} block of docs/api/": [],
        "in an {api} block, but not public": [],
        "twice": [],
    }


def test_the_readme_is_at_most_150_lines():
    assert len(PAGES["README.md"].splitlines()) <= 150


def test_the_counts_of_kernels_and_their_files_are_true():
    kernels = cuda.kernels()
    files = {path.name for path in (ROOT / "kernels").glob("*.cu")}
    assert f"all {len(kernels)} kernels" in PAGES["README.md"]
    said = re.search(r"(\d+) `\.cu` files that declare (\d+) kernels", PAGES["docs/kernels.md"])
    assert said
    assert said.groups() == (str(len(files)), str(len(kernels)))


def test_the_architecture_page_draws_the_layers_that_the_imports_keep():
    (drawn,) = (b for b in blocks("docs/architecture.md", "") if b.startswith("commands"))
    lines = ["gpucnn" if "public names" in line else line for line in drawn.splitlines()]
    assert [set(line.split()) for line in lines] == [
        {name.removeprefix("gpucnn.") for name in layer} for layer in LAYERS
    ]


def test_the_architecture_page_lists_the_tree():
    (tree,) = (b for b in blocks("docs/architecture.md", "") if b.startswith("gpucnn/"))
    listed = set(re.findall(r"^  (\S+)", tree, re.MULTILINE))
    package = ROOT / "gpucnn"
    there = {path.name for path in package.glob("*.py")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert listed == there
    for folder in re.findall(r"^(\S+/)", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir(), folder
