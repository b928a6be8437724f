"""gpucnn warmup: what it compiles, what is already cached, and its errors without CUDA."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from scripts import assert_refused

import gpucnn
from gpucnn import commands as cli
from gpucnn import cuda, cudasim, precision
from gpucnn.commands import launches, warmup
from gpucnn.cuda import compiler as cuda_compiler
from gpucnn.cuda import launcher
from gpucnn.cudasim import compiler as cudasim_compiler
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DeviceError

ROOT = Path(gpucnn.__file__).parents[1]


@pytest.fixture
def fresh(monkeypatch, tmp_path, compiler):
    """An empty kernel cache, and a compiler that only creates files; returns "was cached" flags."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def compile_kernels(code, options, how):
        path = cudasim_compiler.cache_folder() / f"{hash((code, options, how))}.so"
        made.append(path.exists())
        path.touch()

    monkeypatch.setattr(cudasim.module.RawModule, "compile", compile_now)
    monkeypatch.setattr(cudasim_compiler, "compile_kernels", compile_kernels)
    return made


def compile_now(self):
    """RawModule.compile without the cache of this process."""
    cudasim_compiler.compile_kernels(self._code, self._options, None)


def test_the_second_time_everything_is_cached(fresh, capsys):
    files = [file for file, _ in launches.specialisations(launches.of_model("alexnet_cifar10", 4))]
    arguments = ["warmup", "--device", "cudasim", "--batch", "4"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert sorted(line.split()[1] for line in out.splitlines()[:-1]) == sorted(files)
    assert out.splitlines()[-1] == (f"alexnet_cifar10 on cudasim: {len(files)} compiled, 0 cached")
    assert err == ""  # no progress bar without a terminal
    assert cli.main(arguments) == 0
    assert f"0 compiled, {len(files)} cached" in capsys.readouterr().out
    assert fresh == [False] * len(files) + [True] * len(files)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_after_warmup_training_and_inference_compile_nothing(monkeypatch, tmp_path):
    device = Device("cudasim")
    warmup.warm_up("lenet5", "cudasim", 2)
    compiled = []
    original = cudasim_compiler.compile_kernels

    def compile_kernels(*args):
        compiled.append(args)
        return original(*args)

    monkeypatch.setattr(cudasim_compiler, "compile_kernels", compile_kernels)
    launches.of_model("lenet5", 2, device=device, run=True)
    assert compiled == []


def test_a_batch_a_step_and_an_inference_launch_only_kernels_of_the_package():
    found = launches.of_model("alexnet_cifar10", 4)
    assert list(found) == ["batch", "training", "inference"]
    assert [launch.kernel.name for launch in found["batch"]] == ["crop_flip_normalize"]
    names = {launch.kernel.name for phase in found.values() for launch in phase}
    assert names <= set(cuda.kernels())
    assert "dropout" not in {launch.kernel.name for launch in found["inference"]}


def test_launches_are_recorded_without_a_compiler_and_without_running(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("something was compiled or run")

    monkeypatch.setattr(cudasim_compiler, "compiler", refuse)
    monkeypatch.setattr(launcher.CheckedKernel, "run", refuse)
    assert len(launches.of_model("resnet18_cifar", 2)["training"]) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--device cuda", 'needs CuPy, which is not installed: pip install "gpucnn[cuda12]"'),
        ("--device cpu", "device cpu runs no kernels; expected cuda or cudasim"),
        ("--device tpu", "device 'tpu' is unknown"),
        ("--device cudasim --model alexnet13", "model 'alexnet13' is unknown"),
        ("--device cudasim --model mlp", "cannot be built from {}"),
        ("--device cudasim --batch 0", "expected at least 1, got 0"),
    ],
)
def test_an_unusable_device_or_model_is_one_message(arguments, message, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert_refused(cli.main, ["warmup", *arguments.split()], message, capsys)


# --- with a stand-in for CuPy that counts what it compiles ---


class DynamicLibNotFoundError(RuntimeError):
    """cuda.pathfinder's."""


class CompileException(Exception):
    """cupy.cuda.compiler's."""


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """A CuPy with a driver; its compiler raises `cupy.failure` unless that is None.

    It has no arrays: launches are recorded on the simulator, and `cupy.recorded` lists the calls.
    """
    folder = tmp_path / "kernels"
    folder.mkdir()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(folder))

    class RawModule:
        def __init__(self, code, options):
            self.code, self.options = code, options

        def compile(self):
            if fake.failure is not None:
                raise fake.failure
            (folder / f"{hash((self.code, self.options))}.cubin").touch()

        def get_function(self, name):
            self.compile()

    runtime = types.SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0)
    fake = types.SimpleNamespace(
        cuda=types.SimpleNamespace(runtime=runtime, Device=cudasim.cuda.Device),
        RawModule=RawModule,
        ndarray=type("ndarray", (), {}),
        failure=None,
        recorded=[],
    )
    original = launches.of_model

    def of_model(model, batch, device):
        fake.recorded.append((model, batch, device))
        (folder / "cupys own sum.cubin").touch()
        return original(model, batch)

    monkeypatch.setattr(launches, "of_model", of_model)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    cuda_compiler.load_module.cache_clear()
    yield fake
    cuda_compiler.load_module.cache_clear()
    launcher.checked_kernel.cache_clear()


def test_on_cuda_a_kernel_counts_as_compiled_if_it_adds_a_file_to_cupys_cache(cupy):
    compiled, cached = warmup.warm_up("alexnet_cifar10", "cuda", 4)
    names = [name for name, _ in compiled]
    assert names[0] == "CuPy's own kernels"
    assert "conv2d_forward.cu" in names
    assert cached == []
    assert cupy.recorded == [("alexnet_cifar10", 4, Device("cuda"))]
    compiled, cached = warmup.warm_up("alexnet_cifar10", "cuda", 4)
    assert compiled == []
    assert [name for name, _ in cached] == names


WITHOUT_THE_SIMULATOR = """
import sys
for name in ("gpucnn.cudasim", "fcntl", "resource", "pwd"):
    sys.modules[name] = None
from gpucnn.commands import main
"""


def test_warming_up_a_gpu_does_not_import_the_simulator(tmp_path):
    """As on Windows, the simulator's modules cannot be imported."""
    (tmp_path / "cupy.py").write_text("""
import contextlib, os, types
class ndarray: pass
class RawModule:
    def __init__(self, code, options):
        self.name = str(abs(hash(code)))
    def compile(self):
        open(os.path.join(os.environ["CUPY_CACHE_DIR"], self.name), "w").close()
one = lambda index=0: contextlib.nullcontext()
runtime = types.SimpleNamespace(getDeviceCount=lambda: 1)
cuda = types.SimpleNamespace(Device=one, runtime=runtime)
""")
    program = f"""{WITHOUT_THE_SIMULATOR}
import types
from gpucnn.commands import launches
kernel = types.SimpleNamespace(file="pool2d.cu")
launch = types.SimpleNamespace(kernel=kernel, defines=())
launches.of_model = lambda *_, device: {{"training": [launch]}}
sys.exit(main(["warmup"]))
"""
    done = run(program, PYTHONPATH=f"{tmp_path}:{ROOT}", CUPY_CACHE_DIR=str(tmp_path))
    assert (done.stderr, done.returncode) == ("", 0)
    assert "pool2d.cu" in done.stdout
    assert done.stdout.endswith("alexnet_cifar10 on cuda: 1 compiled, 1 cached\n")


@pytest.mark.gpu
def test_a_real_gpu_is_warmed_up_without_the_simulator(tmp_path, monkeypatch):
    skip_without_cuda()
    monkeypatch.setattr(precision, "_float32_precision", None)  # as in a new process
    program = f"{WITHOUT_THE_SIMULATOR}sys.exit(main(['warmup', '--model', 'lenet5']))"
    done = run(program, CUPY_CACHE_DIR=str(tmp_path))
    assert (done.stderr, done.returncode) == ("", 0)
    names = [line.split("  ")[1] for line in done.stdout.splitlines()[:-1]]
    made = launches.of_model("lenet5", 128, device=Device.parse("cuda"), run=True)
    files = map(launches.specialisation_name, launches.specialisations(made))
    assert names == ["CuPy's own kernels", *files]
    assert "0 cached" in done.stdout


def run(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def skip_without_cuda():
    try:
        Device.parse("cuda")
    except DeviceError as error:
        pytest.skip(str(error).splitlines()[0])


def test_cupy_without_nvrtc_is_reported_with_the_remedy(cupy, capsys):
    cupy.failure = DynamicLibNotFoundError('Failure finding "libnvrtc.so.12":\n  No such file')
    assert cli.main(["warmup"]) == 2
    error = capsys.readouterr().err
    assert "device cuda:0 needs NVRTC, and CuPy could not load it (Failure finding" in error
    assert '\n  install CuPy with both: pip install "gpucnn[cuda12]"' in error


def test_cupy_without_the_cuda_headers_is_reported_with_the_same_remedy(cupy, capsys):
    cupy.failure = RuntimeError("Failed to find CUDA headers. Please install CUDA toolkit headers")
    assert cli.main(["warmup"]) == 2
    error = capsys.readouterr().err
    assert "device cuda:0 needs CUDA's headers, and CuPy found none (Failed to find" in error
    assert '\n  install CuPy with both: pip install "gpucnn[cuda12]"' in error


@pytest.mark.gpu
def test_a_real_cupy_without_headers_is_reported_with_the_remedy():
    skip_without_cuda()
    done = run(
        "import sys; from cuda import pathfinder; from gpucnn.commands import main; "
        "pathfinder.find_nvidia_header_directory = lambda _: None; "
        "sys.exit(main(['warmup', '--model', 'lenet5']))"
    )
    assert done.returncode == 2
    assert "needs CUDA's headers, and CuPy found none" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "failure",
    [
        CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
        RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available"),
    ],
    ids=["too old", "too new"],
)
def test_a_gpu_that_cupys_nvrtc_does_not_support_is_referred_to_doctor(cupy, capsys, failure):
    cupy.failure = failure
    assert cli.main(["warmup"]) == 2
    error = capsys.readouterr().err
    assert "device cuda:0 needs a CuPy whose NVRTC compiles for this GPU" in error
    assert "`gpucnn doctor` says which one does" in error


def test_a_kernel_that_cupy_cannot_compile_shows_the_compilers_message(cupy, capsys):
    cupy.failure = CompileException("pool2d.cu(7): error: nvrtc: nothing")
    assert cli.main(["warmup"]) == 2
    error = capsys.readouterr().err
    assert "kernels/augment.cu does not compile for cuda:0:\npool2d.cu(7)" in error


def test_the_first_launch_without_nvrtc_raises_the_same_error(cupy):
    cupy.failure = DynamicLibNotFoundError('Failure finding "libnvrtc.so.12"')
    ready = launcher.checked_kernel("relu_forward", Device("cuda"), ())
    with pytest.raises(DeviceError, match="device cuda:0 needs NVRTC"):
        ready.run((1, 1, 1), (32, 1, 1), 0, ())


def test_any_other_exception_of_cupy_keeps_its_type(cupy):
    cupy.failure = MemoryError("out of memory")
    with pytest.raises(MemoryError):
        warmup.warm_up("alexnet_cifar10", "cuda", 4)


def test_a_cupy_that_caches_only_in_memory_is_refused(cupy, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    with pytest.raises(ArgumentError, match="CuPy does not keep compiled kernels\n  unset it"):
        warmup.warm_up("alexnet_cifar10", "cuda", 4)
