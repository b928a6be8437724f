"""What importing gpucnn does not import, and the errors for a CuPy that does not work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gpucnn
from gpucnn.cuda import declarations as kernel_source

NOT_IMPORTED = ("cupy", "torch", "matplotlib", "PIL", "onnx", "urllib.request", "gpucnn.cudasim")

NO_DRIVER = """
class CUDARuntimeError(RuntimeError): pass
class ndarray: pass
class cuda:
    class runtime:
        @staticmethod
        def getDeviceCount():
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is too old")
"""
NO_NVRTC = """
class DynamicLibNotFoundError(RuntimeError): pass
class ndarray: pass
class RawModule:
    def __init__(self, code, options): pass
    def compile(self):
        raise DynamicLibNotFoundError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12"')
class cuda:
    using_allocator = get_allocator = RawModule(None, None).compile  # CuPy's own kernels
    class runtime:
        getDeviceCount = getDevice = staticmethod(lambda: 1)
    class Device:
        def __init__(self, index): pass
        def __enter__(self): return self
        def __exit__(self, *exc): return False
"""
NO_HEADERS = NO_NVRTC.replace("Failure finding", "Failed to find CUDA headers. Please install")
NO_HEADERS = NO_HEADERS.replace("libnvrtc.so.13 or libnvrtc.so.12", "CUDA toolkit headers")
BROKEN = "raise ImportError('libcudart.so.12: cannot open shared object file')"
UNTOUCHABLE = "raise SystemExit('cupy was imported')"


def run(tmp_path, cupy, *arguments):
    """Run Python with `cupy` as the source of the installed CuPy, ahead of any other."""
    package = tmp_path / "cupy"
    package.mkdir()
    (package / "__init__.py").write_text(cupy)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); " + arguments[0]
    command = [sys.executable, "-c", program, *arguments[1:]]
    environment = {name: value for name, value in os.environ.items() if name != "GPUCNN_DEVICE"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=600, env=environment
    )


COMMAND = "from gpucnn.commands import main; sys.exit(main())"


def test_importing_gpucnn_imports_no_optional_package_and_not_the_simulator(tmp_path):
    program = f"import gpucnn, gpucnn.cuda; print(*set({NOT_IMPORTED}) & set(sys.modules))"
    done = run(tmp_path, UNTOUCHABLE, program)
    assert (done.stdout.split(), done.stderr, done.returncode) == ([], "", 0)


def test_a_folder_with_the_packages_name_beside_the_program_is_named(tmp_path):
    """As Python finds it where `pip install -e` has added an importer that comes last."""
    (tmp_path / "gpucnn").mkdir()
    program = f"""
import sys
others, sys.path = sys.path, [{str(tmp_path)!r}]
import gpucnn
sys.path = others
gpucnn.__path__ = [*gpucnn.__path__, {str(Path(gpucnn.__file__).parent)!r}]
from gpucnn import nn
"""
    found = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert found.returncode == 1
    assert f"the folder {tmp_path / 'gpucnn'} hides the package gpucnn" in found.stderr


def test_training_on_the_cpu_does_not_import_an_installed_cupy(tmp_path):
    program = (
        "import numpy as np, gpucnn; from gpucnn import models, ops, optim; m = models.lenet5(); "
        "x = gpucnn.tensor(np.zeros((2, *models.input_shape('lenet5')), np.float32)); "
        "ops.cross_entropy(m(x), np.array([1, 2])).backward(); "
        "optim.SGD(m.parameters(), 0.1).step(); print('cupy' in sys.modules)"
    )
    done = run(tmp_path, UNTOUCHABLE, program)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize(
    ("cupy", "message"),
    [
        (NO_DRIVER, "needs an NVIDIA driver, and CuPy found none (cudaErrorInsufficientDriver"),
        (BROKEN, "needs CuPy, which does not load (libcudart.so.12: cannot open"),
        (NO_NVRTC, "needs NVRTC, and CuPy could not load it (Failure finding"),
        (NO_HEADERS, "needs CUDA's headers, and CuPy found none (Failed to find CUDA headers"),
    ],
    ids=["no driver", "does not load", "no NVRTC", "no headers"],
)
def test_a_cupy_that_cannot_compile_is_one_clear_text(tmp_path, cupy, message):
    done = run(tmp_path, cupy, COMMAND, "warmup", "--model", "lenet5", "--batch", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_auto_takes_the_cpu_without_a_driver_and_says_why(tmp_path):
    program = "from gpucnn.device import choose_device; print(*choose_device(), sep='|')"
    done = run(tmp_path, NO_DRIVER, program)
    assert done.stdout.startswith("cpu|device cuda needs an NVIDIA driver")
    assert done.stderr == ""


# --- the kernels folder ---


def test_the_kernels_are_in_the_package():
    assert (kernel_source.KERNELS / "ptx.cuh").is_file()


def test_a_checkout_on_pythonpath_runs_its_own_kernels(tmp_path):
    shutil.copytree(Path(gpucnn.__file__).parent, tmp_path / "gpucnn")
    shutil.copytree(kernel_source.KERNELS, tmp_path / "kernels")
    (tmp_path / "kernels" / "mine.cu").write_text('extern "C" __global__ void mine(int n) {}')
    code = "from gpucnn import cuda; print('mine' in cuda.kernels())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
    )
    assert answer.stdout.strip() == "True"
