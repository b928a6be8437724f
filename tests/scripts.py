"""Load scripts of examples/ and benchmarks/ as modules, and run command lines that must fail."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def load_script(path: Path) -> ModuleType:
    """Import the script at `path`; meanwhile it is in sys.modules, where dataclasses look it up."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
    return module


def assert_refused(
    main: Callable[[list[str]], int],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """Assert that main exits with status 2 and prints `message` to standard error; return that."""
    status: object
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    return error
