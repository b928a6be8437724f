"""Every kernel and layer is compared with the CPU: a fault is detected and named."""

import numpy as np
import pytest
from recorded import Recorded

import gpucnn
from gpucnn import cuda, nn, precision
from gpucnn.commands.check import agreement, kernels, step_modes
from gpucnn.cuda import compiler, launcher
from gpucnn.ops.conv2d import cuda as conv2d_cuda


@pytest.fixture
def fault(monkeypatch):
    """A function that replaces text in the source of a kernel."""
    assemble = compiler.assemble

    def forget():
        compiler.load_module.cache_clear()
        launcher.checked_kernel.cache_clear()

    def put(file, right, wrong):
        assert right in assemble(file), "the kernel has changed: update the fault"

        def assemble_with_fault(name, *rest):
            text = assemble(name, *rest)
            return text.replace(right, wrong) if name == file else text

        monkeypatch.setattr(compiler, "assemble", assemble_with_fault)
        forget()

    yield put
    forget()


@pytest.fixture
def few(monkeypatch):
    """Only the cases of ReLU and pooling, which compile in a second."""

    def cases(rng, gpu):
        yield from kernels._elementwise(rng, gpu)
        yield from kernels._pools(rng, gpu)

    monkeypatch.setattr(agreement, "cases", cases)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "few")
def test_a_wrong_kernel_fails_its_case_and_no_other(fault):
    fault("pool2d.cu", "value[i] > best[i]", "value[i] >= best[i]")  # ties go to the last
    recorded = Recorded()
    agreement._every_kernel(recorded.reporter)
    failed = [what for what, state in recorded.states().items() if state == "fail"]
    assert failed
    assert all(what.startswith("max_pool2d") for what in failed)
    assert len(failed) < len(recorded.all("row"))
    finding = next(f for f in recorded.all("finding") if f["state"] == "fail")
    assert "allowed 2e-06" in finding["found"]
    assert "max_pool2d_forward" in finding["remedy"]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler", "few")
def test_a_kernel_that_does_not_compile_is_reported_with_the_compilers_message(fault):
    fault("activation.cu", "__global__", "__global__ nonsense")
    recorded = Recorded()
    agreement._every_kernel(recorded.reporter)
    states = recorded.states()
    assert states["relu"] == states["leaky_relu"] == "fail"
    assert "max_pool2d 5" in [row["cells"]["case"] for row in recorded.all("row")]
    assert "nonsense" in recorded.text()


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_file_that_does_not_compile_is_named_before_its_cases_run(fault, monkeypatch):
    fault("activation.cu", "__global__", "__global__ nonsense")
    declared = {name: cuda.kernel(name) for name in ("relu_forward", "max_pool2d_forward")}
    monkeypatch.setattr(cuda, "kernels", lambda: declared)
    recorded = Recorded()
    agreement._compile(recorded.reporter)
    assert recorded.states() == {"compiling activation.cu": "fail", "compiling": "note"}


@pytest.mark.usefixtures("compiler")
def test_a_layer_that_differs_from_the_cpus_is_named(monkeypatch):
    recorded = Recorded()
    layer = nn.ReLU()
    agreement._layer(recorded.reporter, "lenet5", "ReLU", layer, (2, 3, 3, 4))
    assert recorded.states() == {}
    monkeypatch.setattr(agreement, "largest", lambda ours, theirs: 1e-3)
    agreement._layer(recorded.reporter, "lenet5", "ReLU", layer, (2, 3, 3, 4))
    assert recorded.states() == {"lenet5: ReLU, batch 2": "fail"}


def test_every_way_restores_the_choice_of_kernels():
    before = gpucnn.get_conv_algorithm(), vars(conv2d_cuda).copy()
    with kernels.every_way("plain", (128, 128)):
        assert conv2d_cuda._tile(1, 1, 1) == (128, 128)
    assert (gpucnn.get_conv_algorithm(), vars(conv2d_cuda)) == before


@pytest.mark.usefixtures("compiler")
def test_a_layer_agrees_on_a_gpu_that_uses_tf32(monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", "high")  # as an A100's default
    recorded = Recorded()
    layer = nn.Linear(64, 16, generator=np.random.default_rng(0))
    agreement._layer(recorded.reporter, "lenet5", "Linear", layer, (32, 64))
    assert recorded.states() == {}
    assert precision._float32_precision == "high"


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_a_whole_step_agrees_on_a_gpu_that_uses_tf32(monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", "high")
    recorded = Recorded()
    agreement._whole_step(recorded.reporter)
    assert recorded.states() == {"step of lenet5": "ok"}


@pytest.mark.parametrize("setting", [None, "high", "highest"])
def test_the_comparison_of_precisions_restores_the_setting(setting, monkeypatch):
    monkeypatch.setattr(precision, "_float32_precision", setting)
    monkeypatch.setattr(step_modes, "_gradients", lambda device, autocast: {"loss": np.ones(1)})
    step_modes._compare(Recorded().reporter, step_modes._MODES[0])
    assert precision._float32_precision == setting
