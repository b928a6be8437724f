"""pyproject.toml, the README, the workflows, the citation and the changelog agree."""

import re
import tomllib
from pathlib import Path

import pytest
from scripts import load_script

import gpucnn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows(page):
    """The cells of each row of a page's table of extras, and [] if it has none."""
    table = re.search(r"^\| extra \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text("utf-8"), re.M)
    return [line.split(" | ") for line in table[1].splitlines()] if table else []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name == "README.md" or rows(page)], ids=lambda p: p.name
)
def test_a_table_of_extras_has_those_of_pyproject(page):
    named = [name for row in rows(page) for name in re.findall(r"`([\w-]+)`", row[0])]
    assert sorted(named) == sorted(EXTRAS)


def test_an_extra_that_an_error_or_a_page_names_exists():
    texts = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    for folder in ("gpucnn", "docs", "examples", "benchmarks"):
        texts += [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]
    named = set()
    for path in texts:
        text = path.read_text(encoding="utf-8")
        for names in re.findall(r"(?:gpucnn|\"\.)\[([a-z][\w,-]*)\]", text):
            named |= set(names.split(","))
        named |= set(re.findall(r"missing_extra\((?:[^()]*, )\"([\w-]+)\"\)", text))
    assert named >= {"plot", "data", "onnx", "completion", "test", "dev"}
    assert named <= EXTRAS.keys()


def test_the_workflows_test_the_pythons_of_the_classifiers():
    found = re.findall(r"^Programming .* :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert PROJECT["requires-python"] == f">={found[0]}"
    text = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", text, re.MULTILINE)
    assert re.findall(r"[\d.]+", matrix) == found
    for workflow in WORKFLOWS:
        used = re.findall(r"python(?:-version)?: \"(.*)\"", workflow.read_text(encoding="utf-8"))
        assert set(used) <= set(found)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_and_limits_its_token(workflow):
    text = workflow.read_text(encoding="utf-8")
    actions = re.findall(r"uses: (.*)", text)
    assert actions
    assert [name for name in actions if not re.fullmatch(r"[\w/-]+@v\d+\.\d+\.\d+", name)] == []
    assert re.search(r"^permissions:( \{\}|\n  contents: read)$", text, re.MULTILINE)
    assert text.count("persist-credentials: false") == text.count("actions/checkout@")


def test_the_scripts_and_sessions_that_the_workflows_run_exist():
    text = "".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    scripts = set(re.findall(r"\.ci/[\w.]+", text))
    assert scripts == {".ci/package.sh", ".ci/release.py", ".ci/smoke.py"}
    assert [name for name in scripts if not (ROOT / name).is_file()] == []
    nox = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    sessions = set(re.findall(r"name=\"([\w-]+)\"", nox)) | set(
        re.findall(r"^def (\w+)", nox, re.M)
    )
    used = set(" ".join(re.findall(r"nox -s ([a-z ]+)$", text, re.M)).split())
    used |= set(re.findall(r"session: (.*)", text)) | set(re.findall(r"nox -s \"(\w+)-\$", text))
    assert used == {"tests", "numpy-oldest", "numpy-newest", "lint", "package", "docs"}
    assert used <= sessions


# --- a release ---


@pytest.fixture
def faults():
    return load_script(ROOT / ".ci" / "release.py").faults


@pytest.fixture
def release(tmp_path):
    """A tree that may be released as v0.1.0."""
    (tmp_path / "gpucnn").mkdir()
    (tmp_path / "gpucnn" / "_version.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 0.1.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [0.1.0] - 2027-01-31\n")
    return tmp_path


def test_a_release_needs_version_citation_and_a_dated_section_to_agree(faults, release):
    assert faults("v0.1.0", release) == []
    assert [text.split(":")[0] for text in faults("v0.1.1", release)] == [
        "gpucnn/_version.py",
        "CITATION.cff",
        "CHANGELOG.md",
    ]
    (release / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [0.1.0]\n")
    assert faults("v0.1.0", release) == [
        "CHANGELOG.md: expected a section for v0.1.0, with its date"
    ]


def test_the_citation_names_this_version(faults):
    found = faults(f"v{gpucnn.__version__}")
    assert [text for text in found if not text.startswith("CHANGELOG.md")] == []
