"""cuda.launch: declarations read from the source, arguments checked and cast, limits refused."""

import dataclasses
import re
import types

import numpy as np
import pytest

from gpucnn import cuda, cudasim
from gpucnn.cuda import compiler, launcher
from gpucnn.cuda import declarations as kernel_source
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DeviceError, DeviceMismatch, DtypeError, ShapeError
from gpucnn.ops.geometry import Geometry

SOURCE = """
#include "inner.cuh"
extern "C" __global__ void scale(const float* __restrict__ x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * factor;
}
/* extern "C" __global__ void commented_out(int* x) { } */
extern "C" __global__ __launch_bounds__(THREADS, 2) void
bounded(unsigned char* bytes, const long long* offsets,
        unsigned long long seed) {
    bytes[threadIdx.x] = (unsigned char)(seed >> 32);
}
extern "C" __global__ void geometry(int* out, const Geometry window, bool flag) {
    out[0] = window.n; out[1] = window.groups; out[2] = flag; out[3] = VALUE;
}
extern "C" __global__ void optional(const float* maybe, int* out) { out[0] = maybe ? 1 : 0; }
extern "C" __global__ wide_offsets void wide(unsigned char* x) { x[0] = 1; }
extern "C" __global__ void narrow(unsigned char* x) { x[0] = 1; }
extern "C" __global__ void dynamic(int* out, int n) {
    extern __shared__ int numbers[];
    numbers[threadIdx.x] = threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = numbers[n - 1 - threadIdx.x];
}
"""
INNER = """
struct Geometry {
    int n, h, w, c;  // as in Python
    int kh, kw, oh, ow, stride_h, stride_w, top, bottom, left, right;
    int dilation_h, dilation_w, groups;
};
#ifndef VALUE
#define VALUE 7
#endif
#define THREADS 64
"""
FILES = {"outer.cu": SOURCE.lstrip(), "inner.cuh": INNER.lstrip(), "ptx.cuh": "\n"}


CACHES = (
    kernel_source._read,
    cuda.kernels,
    launcher.checked_kernel,
    compiler.load_module,
    launcher._check_struct,
)


@pytest.fixture
def files(monkeypatch, tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(kernel_source, "KERNELS", tmp_path)
    for cache in CACHES:
        cache.cache_clear()
    yield tmp_path
    for cache in CACHES:
        cache.cache_clear()


@pytest.fixture
def xp(files):
    try:
        return Device.parse("cudasim").xp
    except DeviceError as error:
        pytest.skip(f"no C++ compiler: {error}")


# --- declarations and source ---


def test_declarations_give_names_types_and_lines(files):
    found = cuda.kernels()
    assert "commented_out" not in found
    scale = found["scale"]
    assert (scale.file, scale.line) == ("outer.cu", 2)
    assert [(p.name, p.kind, p.pointer, p.const) for p in scale.parameters] == [
        ("x", "float", True, True),
        ("y", "float", True, False),
        ("factor", "float", False, False),
        ("n", "int", False, False),
    ]
    assert [str(p.dtype({})) for p in found["bounded"].parameters] == ["uint8", "int64", "uint64"]
    assert found["bounded"].bound == "THREADS"
    assert found["geometry"].parameters[1].dtype({}) is None
    assert found["wide"].wide
    assert not found["narrow"].wide


def test_assembled_source_has_each_header_once_and_true_line_numbers(files):
    (files / "outer.cu").write_text(
        '#include "inner.cuh"\n#include "ptx.cuh"\n#include "inner.cuh"\nint last;\n'
    )
    lines = cuda.assemble("outer.cu", {"ptx.cuh": "replaced"}, "/folder/").splitlines()
    assert lines.count("struct Geometry {") == 1
    assert "replaced" in lines
    assert lines[lines.index("int last;") - 1] == '#line 4 "/folder/outer.cu"'
    assert lines[lines.index("struct Geometry {") - 1] == '#line 1 "/folder/inner.cuh"'


def test_every_kernel_of_the_package_has_parameters_that_launch_can_cast():
    cuda.kernels.cache_clear()
    for kernel in cuda.kernels().values():
        assert kernel.parameters, kernel.name
        for parameter in kernel.parameters:
            struct = re.search(rf"struct\s+{parameter.kind}\b", cuda.assemble(kernel.file))
            assert parameter.dtype({}) is not None or struct, (kernel.name, parameter)


def test_an_unknown_kernel_is_named():
    with pytest.raises(ArgumentError, match="no kernel 'conv3d'"):
        cuda.kernel("conv3d")


def test_two_kernels_of_one_name_are_refused(files):
    (files / "second.cu").write_text(FILES["outer.cu"])
    with pytest.raises(ArgumentError, match=r"is in outer\.cu and second\.cu"):
        cuda.kernels()


# --- launching ---


def test_python_numbers_become_the_c_type(xp):
    x = xp.asarray(np.arange(100, dtype=np.float32))
    y = xp.empty(100, np.float32)
    cuda.launch("scale", 4, 32, x, y, 0.5, 100)
    np.testing.assert_array_equal(y.get(), np.arange(100) / 2)
    cuda.launch("scale", (4, 1), (32,), x, y, np.float64(2), np.int64(100))
    np.testing.assert_array_equal(y.get(), np.arange(100) * 2)
    out = xp.empty(4, np.uint8)
    cuda.launch("bounded", 1, 4, out, xp.empty(1, np.int64), 2**63 + (7 << 32))
    assert out.get().tolist() == [7, 7, 7, 7]


def test_a_dataclass_goes_by_value_and_defines_make_a_specialisation(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    out = xp.empty(4, np.int32)
    cuda.launch("geometry", 1, 1, out, window, True)
    assert out.get().tolist() == [5, 3, 1, 7]
    cuda.launch("geometry", 1, 1, out, window, False, defines={"VALUE": 9})
    assert out.get().tolist() == [5, 3, 0, 9]


def test_none_is_a_null_pointer(xp):
    out = xp.empty(1, np.int32)
    cuda.launch("optional", 1, 1, None, out)
    assert out.item() == 0
    cuda.launch("optional", 1, 1, xp.zeros(1, np.float32), out)
    assert out.item() == 1


@pytest.mark.parametrize("size", [64, 4096 * 4])
def test_dynamic_shared_memory_beyond_48_kb_is_asked_for(xp, size):
    out = xp.empty(64, np.int32)
    cuda.launch("dynamic", 1, 64, out, 64, shared=size * 4)
    np.testing.assert_array_equal(out.get(), np.arange(63, -1, -1))


def test_an_empty_grid_runs_nothing(xp):
    empty = xp.empty(0, np.float32)
    with cuda.count_launches() as launches:
        cuda.launch("scale", 0, 32, empty, empty, 1.0, 0)
    assert launches["scale"] == 1


def test_launches_are_counted_by_name_only_inside_the_block(xp):
    x = xp.zeros(8, np.float32)
    cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    with cuda.count_launches() as outer, cuda.count_launches() as inner:
        cuda.launch("scale", 1, 8, x, x, 1.0, 8)
        cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    cuda.launch("scale", 1, 8, x, x, 1.0, 8)
    assert outer == inner == {"scale": 2}


def test_recorded_launches_say_what_was_launched_and_need_not_run(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    out = xp.full(4, 9, np.int32)
    with cuda.record_launches(run=False) as kept, cuda.count_launches() as counted:
        cuda.launch("geometry", (2, 1), 1, out, window, True, defines={"VALUE": 9})
    assert out.get().tolist() == [9, 9, 9, 9]
    with cuda.record_launches() as ran:
        cuda.launch("optional", 1, 1, None, out)
    assert out.get()[0] == 0
    with pytest.raises(ArgumentError), cuda.record_launches(run=False) as failed:
        cuda.launch("optional", 1, 1, 1, 2)
    out.fill(9)
    cuda.launch("optional", 1, 1, None, out)
    assert out.get()[0] == 0
    assert counted == {"geometry": 1}
    assert (len(ran), len(failed)) == (1, 0)
    (launch,) = kept
    assert (launch.kernel.name, launch.defines) == ("geometry", (("VALUE", 9),))
    assert (launch.grid, launch.block, launch.shared) == ((2, 1, 1), (1, 1, 1), 0)
    array, struct, flag = launch.values
    assert array is out
    assert cuda.struct_values(struct) == dataclasses.asdict(window)
    assert flag.dtype == np.bool_
    assert ran[0].values[0] == 0


def test_a_file_can_be_compiled_before_its_first_launch(xp, monkeypatch):
    from gpucnn.cudasim import compiler

    made, original = [], compiler.compile_kernels
    monkeypatch.setattr(
        compiler, "compile_kernels", lambda *args: made.append(args) or original(*args)
    )
    cuda.compile_file(Device.parse("cudasim"), "outer.cu", (("VALUE", 11),))
    assert len(made) == 1
    out = xp.empty(4, np.int32)
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1)
    cuda.launch("geometry", 1, 1, out, window, True, defines={"VALUE": 11})
    assert out.get()[3] == 11
    assert len(made) == 1


def test_a_struct_is_passed_as_raw_bytes_without_fields_to_describe(xp):
    window = Geometry.of("test", (5, 8, 8, 6), 3, 1, 1, groups=3)
    with cuda.record_launches() as kept:
        cuda.launch("geometry", 1, 1, xp.empty(4, np.int32), window, True)
    struct = kept[0].values[1]
    assert struct.dtype == "V68"
    assert len(struct.__array_interface__["descr"]) == 1
    assert np.frombuffer(struct.tobytes(), np.int32).tolist() == list(dataclasses.astuple(window))


# --- two devices ---


def test_shared_memory_is_asked_for_where_the_kernel_will_run():
    current, calls = [0], []

    class CudaDevice:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *exc):
            current.pop()

    class Function:
        def __setattr__(self, name, value):
            calls.append((name, value, current[-1]))

        def __call__(self, grid, block, args, shared_mem):
            calls.append(("run", shared_mem, current[-1]))

    runtime = types.SimpleNamespace(getDevice=lambda: current[-1])
    ready = launcher.CheckedKernel.__new__(launcher.CheckedKernel)
    ready.device, ready.shared, ready.function = Device("cuda", 1), 48 * 1024, Function()
    ready.xp = types.SimpleNamespace(
        cuda=types.SimpleNamespace(Device=CudaDevice, runtime=runtime),
    )
    for shared in (1024, 65536, 65536):
        ready.run((1, 1, 1), (32, 1, 1), shared, ())
    assert calls == [
        ("run", 1024, 1),
        ("max_dynamic_shared_size_bytes", 65536, 1),
        ("run", 65536, 1),
        ("run", 65536, 1),
    ]
    assert current == [0]


@pytest.mark.gpu
def test_a_second_gpu_runs_what_needs_more_shared_memory_than_the_default(files):
    try:
        device = Device.parse("cuda:1")
    except DeviceError as error:
        pytest.skip(str(error).splitlines()[0])
    with device.xp.cuda.Device(1):
        out = device.xp.empty(64, np.int32)
    cuda.launch("dynamic", 1, 64, out, 64, shared=65536)
    np.testing.assert_array_equal(out.get(), np.arange(63, -1, -1))


# --- refusals ---


@dataclasses.dataclass(frozen=True)
class Other:
    n: int


def test_wrong_arguments_are_refused_with_kernel_and_parameter(xp):
    x, y = xp.zeros(8, np.float32), xp.zeros(8, np.float32)
    window = Geometry.of("test", (1, 8, 8, 2), 3, 1, 1)
    out = xp.zeros(4, np.int32)

    def refused(error, match, name, *args, grid=1, block=8, shared=0):
        with pytest.raises(error, match=match):
            cuda.launch(name, grid, block, *args, shared=shared)

    refused(ArgumentError, r"expected 4 arguments \(x, y, factor, n\), got 3", "scale", x, y, 1.0)
    refused(
        DtypeError,
        "scale: x is an array of float32, got float64",
        "scale",
        x.astype(np.float64),
        y,
        1.0,
        8,
    )
    refused(DtypeError, "scale: y is an array of float32, got list", "scale", x, [1.0], 1.0, 8)
    refused(DeviceMismatch, "scale: y is on cpu", "scale", x, np.zeros(8, np.float32), 1.0, 8)
    refused(DeviceMismatch, "an argument is on cpu", "scale", np.zeros(8, np.float32), y, 1.0, 8)
    refused(
        ShapeError,
        "scale: x .* is not contiguous",
        "scale",
        xp.zeros((8, 2), np.float32)[:, 0],
        y,
        1.0,
        8,
    )
    refused(DtypeError, "scale: n is a int32, got 1.5", "scale", x, y, 1.0, 1.5)
    refused(DtypeError, "scale: factor is a float32, got str", "scale", x, y, "1", 8)
    refused(
        ArgumentError, "scale: n is a int32, and 4294967296 does not fit", "scale", x, y, 1.0, 2**32
    )
    refused(ArgumentError, "at least one array", "scale", 1, 2)
    refused(DtypeError, "geometry: window is a struct Geometry, got int", "geometry", out, 3, True)
    refused(ArgumentError, r"got a Other \(n\)", "geometry", out, Other(1), True)
    too_large = dataclasses.replace(window, n=2**31)
    refused(ArgumentError, "does not fit into 32 bits", "geometry", out, too_large, True)


def test_launches_past_the_limits_are_refused(xp):
    x = xp.zeros(8, np.float32)
    refused = [
        ({"grid": (1, 65536), "block": 1}, "grid"),
        ({"grid": 2**31, "block": 1}, "grid"),
        ({"grid": -1, "block": 1}, "grid"),
        ({"grid": 1, "block": 2048}, "block"),
        ({"grid": 1, "block": (1, 1, 65)}, "block"),
        ({"grid": 1, "block": (32, 33)}, "1056 threads"),
        ({"grid": 1, "block": 0}, "block"),
        ({"grid": 1, "block": 1, "shared": 300 * 1024}, "307200 bytes of dynamic shared memory"),
    ]
    for options, match in refused:
        with pytest.raises(ArgumentError, match=match):
            cuda.launch(
                "scale",
                options["grid"],
                options["block"],
                x,
                x,
                1.0,
                8,
                shared=options.get("shared", 0),
            )
    with pytest.raises(ArgumentError, match="has 128 threads; it takes 64"):
        cuda.launch(
            "bounded",
            1,
            128,
            xp.zeros(1, np.uint8),
            xp.zeros(1, np.int64),
            0,
            defines={"THREADS": 64},
        )


def test_arrays_past_31_bits_need_a_kernel_that_says_wide_offsets(xp, monkeypatch):
    monkeypatch.setattr(launcher, "_LARGEST", 7)
    x = xp.zeros(8, np.uint8)
    with pytest.raises(ShapeError, match="the kernel's offsets have 31 bits"):
        cuda.launch("narrow", 1, 1, x)
    cuda.launch("wide", 1, 1, x)
    assert x.get()[0] == 1


# --- the simulated device ---


def test_cudasim_is_a_device_of_its_own(xp):
    device = Device.parse("cudasim")
    assert str(device) == "cudasim"
    assert device.xp is cudasim
    with pytest.raises(DeviceError, match="device 'cudasim:1' is unknown"):
        Device.parse("cudasim:1")


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch):
    from gpucnn.cudasim import compiler

    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    compiler.compiler.cache_clear()
    try:
        with pytest.raises(
            DeviceError, match=r"needs a C\+\+17 compiler.*\n  install one .apt install"
        ):
            Device.parse("cudasim")
    finally:
        compiler.compiler.cache_clear()
