"""GPUCNN_CUDASIM, the rewriting of sources, and the cache of compiled kernels."""

import subprocess

import numpy as np
import pytest

from gpucnn import cudasim
from gpucnn.cudasim import compiler, settings, source
from gpucnn.cudasim.cache import cache_folder
from gpucnn.errors import ArgumentError, KernelError

COUNT = 'extern "C" __global__ void count(int* x) { x[threadIdx.x] += STEP; }'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", settings.Settings()),
        ("address", settings.Settings(mode="address")),
        (" race , schedule=highest ", settings.Settings(mode="race", schedule="highest")),
        ("schedule=random:12", settings.Settings(schedule="random", seed=12)),
        ("banks", settings.Settings(mode="banks", ways=1)),
        ("banks=2", settings.Settings(mode="banks", ways=2)),
        ("fast,threads=3,debug", settings.Settings(threads=3, debug=True)),
    ],
)
def test_words_are_parsed_into_settings(text, expected):
    assert settings.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "fastest",
        "race,address",
        "banks=0",
        "schedule=random",
        "schedule=",
        "threads=0",
        "debug,debug",
    ],
)
def test_unknown_and_contradicting_words_are_refused(text):
    with pytest.raises(ArgumentError, match=r"GPUCNN_CUDASIM=.*\n  expected words separated by"):
        settings.parse(text)


def test_unknown_words_are_refused_at_the_launch(monkeypatch):
    function = cudasim.RawModule(code=COUNT, options=("-DSTEP=1",)).get_function("count")
    monkeypatch.setenv("GPUCNN_CUDASIM", "fats")
    with pytest.raises(ArgumentError, match="'fats' is unknown"):
        function((1,), (4,), (cudasim.zeros(4, np.int32),))


def test_checked_modes_and_debug_run_blocks_on_one_core():
    assert settings.parse("threads=7").workers == 7
    assert settings.parse("threads=7,debug").workers == 1
    assert settings.parse("threads=7,race").workers == 1


def test_rewriting_keeps_lines_and_leaves_comments_alone():
    code = """// __shared__ float not_this[4];
__shared__ __align__(16) Tile<A, 3>
    tile[2], other[N + 1][4];  /* extern __shared__ int nor_this[]; */
#pragma unroll 4
extern __shared__ float numbers[];
__shared__ unsigned long long single;
const char* text = "__shared__ int x[3];";
"""
    rewritten = source.rewrite(code)
    assert len(rewritten.splitlines()) == len(code.splitlines())
    assert rewritten.splitlines()[0] == code.splitlines()[0]
    assert rewritten.splitlines()[6] == code.splitlines()[6]
    assert "using cudasim_type_tile = Tile<A, 3>[2];" in rewritten
    assert "using cudasim_type_other = Tile<A, 3>[N + 1][4];" in rewritten
    assert "float* const numbers = " in rewritten
    assert "using cudasim_type_single = unsigned long long;" in rewritten
    assert "unroll" not in rewritten


def test_a_library_is_compiled_once_and_found_again(monkeypatch, tmp_path):
    compiler.runtime()  # stays loaded from the user's cache
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = cudasim.zeros(4, np.int32)

    def launch(step: int) -> None:
        module = cudasim.RawModule(code=COUNT, options=(f"-DSTEP={step}",))
        module.get_function("count")((1,), (4,), (x,))

    launch(1)
    launch(2)  # another specialisation
    kept = list((tmp_path / "gpucnn" / "cudasim").iterdir())
    assert len([path for path in kept if path.suffix == ".so"]) == len(kept) == 2
    monkeypatch.setattr(compiler.subprocess, "run", None)  # fails if a compiler is started
    launch(1)
    assert x.get().tolist() == [4] * 4


def test_a_cache_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    folder = cache_folder()
    assert tmp_path not in folder.parents
    assert folder.is_dir()


def test_a_compilers_error_is_shown_with_its_line():
    code = 'extern "C" __global__ void broken(int* x) {\n    x[0] = y;\n}'
    function = cudasim.RawModule(code=code).get_function("broken")
    with pytest.raises(KernelError, match=r"(?s)cannot compile a kernel.*:2:12: error: .*y"):
        function((1,), (1,), (cudasim.zeros(4, np.int32),))


def test_a_missing_compiler_in_cxx_is_skipped(monkeypatch):
    compiler.compiler.cache_clear()
    monkeypatch.setenv("CXX", "/nowhere/c++")
    path, version = compiler.compiler()
    compiler.compiler.cache_clear()
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
    assert version == answer.stdout.splitlines()[0]
