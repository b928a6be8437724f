"""The checks in environments of their own: the tests on each Python and NumPy that gpucnn admits.

nox -l                              lists the sessions
nox -s lint                         runs one
nox -s tests-3.12 -- tests/optim    passes arguments to pytest

pyproject.toml has the Pythons, in its classifiers, and the bounds of each dependency.
"""

import re
from pathlib import Path

import nox

_PROJECT = nox.project.load_toml("pyproject.toml")
_PYTHONS = nox.project.python_versions(_PROJECT)
_DEPENDENCIES = _PROJECT["project"]["dependencies"]

nox.options.sessions = ["lint", "tests"]


@nox.session(python=_PYTHONS)
def tests(session: nox.Session) -> None:
    """pytest on each Python of the classifiers."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(name="numpy-oldest", python=_PYTHONS[0])
def numpy_oldest(session: nox.Session) -> None:
    """pytest with the oldest NumPy, and the oldest of all that gpucnn depends on."""
    oldest = [re.sub(r">=([\d.]+).*", r"==\1", dependency) for dependency in _DEPENDENCIES]
    session.install("-e", ".[test]", *oldest)
    session.run("pytest", *session.posargs)


@nox.session(name="numpy-newest", python=_PYTHONS[-1])
def numpy_newest(session: nox.Session) -> None:
    """pytest with the newest NumPy, on the newest Python."""
    session.install("-e", ".[test]")
    session.install("--upgrade", "--upgrade-strategy", "eager", *_DEPENDENCIES)
    session.run("python", "-c", "import numpy; print('NumPy', numpy.__version__)")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy, and the files that GitHub reads, by their schemas."""
    session.install("-e", ".[half,data,distributed]")  # their types
    session.install("ruff>=0.12", "mypy>=1.15", "check-jsonschema>=0.35")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    for schema, files in {
        "github-workflows": ".github/workflows/*.yml",
        "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
        "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
        "dependabot": ".github/dependabot.yml",
        "citation-file-format": "CITATION.cff",
    }.items():
        paths = map(str, Path().glob(files))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *paths)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site and check it."""
    session.install("-e", ".[docs]")
    session.run("python", "docs/check.py", *session.posargs)


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, check them, train a step with each."""
    session.run("bash", ".ci/package.sh", external=True, env={"PYTHON": session.bin + "/python"})
