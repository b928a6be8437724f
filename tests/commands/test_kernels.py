"""Exported kernels: files that NVIDIA's tools take, launches that anybody can repeat from them."""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from devices import CUDA, CUDASIM

import gpucnn
from gpucnn import commands as cli
from gpucnn import cuda, cudasim
from gpucnn.commands import launches
from gpucnn.commands.kernels import export_kernels
from gpucnn.cuda import launcher, nvrtc, sass
from gpucnn.cuda.declarations import assemble
from gpucnn.device import Device
from gpucnn.errors import ArgumentError, DeviceError
from gpucnn.integers import ceil_div

BATCH = 8  # the least at which every sum of the step is split, as in a batch of 128
ARCHITECTURES = [80, 90]


@pytest.fixture
def library():
    try:
        nvrtc.version()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    try:
        nvrtc.version()
    except DeviceError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("exported") / "kernels"
    export_kernels("alexnet_cifar10", ARCHITECTURES, folder, BATCH)
    return folder


@pytest.fixture(scope="module")
def manifest(exported):
    return json.loads((exported / "manifest.json").read_text())


def in_order(manifest):
    """(entry, launch) of every launch, as they were numbered."""
    pairs = [(entry, launch) for entry in manifest["entries"] for launch in entry["launches"]]
    pairs.sort(key=lambda pair: pair[1]["number"])
    assert [launch["number"] for _, launch in pairs] == list(range(len(pairs)))
    return pairs


# --- the files ---


@pytest.mark.parametrize("architecture", ["sm_80", pytest.param("sm_90", marks=pytest.mark.slow)])
def test_every_cubin_is_machine_code_that_nvdisasm_and_cuobjdump_read(
    exported, manifest, architecture
):
    try:
        folder = Path(sass._nvdisasm()).parent
    except DeviceError as error:
        pytest.skip(str(error))
    kernels = defaultdict(set)
    for entry in manifest["entries"]:
        kernels[entry["cubin"][architecture]].add(entry["name"])

    def check(item):
        path, names = item
        listing = output(folder / "nvdisasm", "-c", exported / path)
        assert f".target\t{architecture}" in listing
        assert names <= set(re.findall(r"^\.text\.(\w+):", listing, re.MULTILINE))
        if (folder / "cuobjdump").exists():
            assert architecture in output(folder / "cuobjdump", "--list-elf", exported / path)

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, kernels.items()))


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_source_and_options_are_all_it_takes_to_make_the_rest_again(exported, manifest):
    compiled = {}
    for entry in manifest["entries"]:
        source = (exported / entry["source"]).read_text()
        assert source == assemble(Path(entry["source"]).name)
        for architecture, path in entry["ptx"].items():
            ptx = (exported / path).read_text()
            assert f".target {architecture}" in ptx
            assert f".entry {entry['name']}(" in ptx
        key = source, *entry["options"]
        if key not in compiled:
            compiled[key] = nvrtc.compile_source(source, "again.cu", 80, entry["options"])
        usage = compiled[key].usage[entry["name"]]
        assert usage.registers == entry["registers"]["sm_80"] <= entry["register_budget"]
        assert usage.shared == entry["static_shared_bytes"]["sm_80"]


# --- the launches ---


@pytest.fixture(scope="module", params=[CUDASIM, CUDA])
def place(request):
    return Device.parse(request.param)


@pytest.fixture(scope="module")
def real(place):
    """Every launch of a real batch and step on a GPU: what it was, before and after."""
    seen = []
    run = launcher.CheckedKernel.run

    def host(values):
        return [v.get() if isinstance(v, place.xp.ndarray) else v for v in values]

    def watched(self, grid, block, shared, values):
        before = host(values)
        run(self, grid, block, shared, values)
        seen.append((self.declared.name, grid, block, shared, before, host(values)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher.CheckedKernel, "run", watched)
        with cuda.count_launches() as counted:
            phases = ("batch", "training")
            launches.of_model("alexnet_cifar10", BATCH, phases, place, run=True)
    assert sum(counted.values()) == len(seen)
    return seen


def test_the_manifest_has_the_launches_of_a_real_step_in_their_order(manifest, real):
    listed = [
        (entry["name"], tuple(launch["grid"]), tuple(entry["block"]), entry["dynamic_shared_bytes"])
        for entry, launch in in_order(manifest)
    ]
    assert listed == [launch[:4] for launch in real]
    assert manifest["launches"] == {"batch": 1, "training": len(real) - 1}


def test_an_export_repeats_itself_and_leaves_the_default_generator_alone():
    def numbers():
        made = launches.of_model("alexnet_cifar10", BATCH, ("training",))["training"]
        return [[v for v in launch.values if isinstance(v, np.generic)] for launch in made]

    state = gpucnn.random.default_generator().bit_generator.state
    first = numbers()
    assert any(len(values) > 5 for values in first)  # dropout's, for one
    assert str(gpucnn.random.default_generator().bit_generator.state) == str(state)
    gpucnn.manual_seed(7)
    assert numbers() == first


def test_a_batch_of_128_makes_the_same_launches_as_the_smaller_one_of_these_tests():
    counts = [
        len(launches.of_model("alexnet_cifar10", batch, ("training",))["training"])
        for batch in (BATCH, 128)
    ]
    assert counts[0] == counts[1]


class Replay:
    """Runs launches from an export's files alone: cubins on a GPU, sources on the simulator."""

    def __init__(self, folder, manifest, place):
        self.folder, self.xp = folder, place.xp
        self.buffers = [self.xp.empty(size, np.uint8) for size in manifest["buffers"]]
        self.modules = {}
        self.capability = int(self.xp.cuda.Device(place.index).compute_capability)

    def function(self, entry):
        key = entry["source"], *entry["options"]
        if key not in self.modules:
            if self.xp is cudasim:
                code = (self.folder / entry["source"]).read_text()
                inline = assemble("ptx.cuh").partition("\n")[2]  # the simulator has words for it
                code = code.replace(inline, '#include "ptx.h"\n')
                module = self.xp.RawModule(code=code, options=tuple(entry["options"]))
            else:
                module = self.xp.RawModule(path=str(self.folder / self.binary(entry)))
            self.modules[key] = module
        return self.modules[key].get_function(entry["name"])

    def binary(self, entry):
        """The cubin for this GPU, else the newest PTX that its driver can translate.

        CUPY_COMPILE_WITH_PTX=1 asks for PTX, as it does of CuPy.
        """
        known = [a for a in ARCHITECTURES if a <= self.capability]
        same = [a for a in known if a // 10 == self.capability // 10]
        if os.environ.get("CUPY_COMPILE_WITH_PTX") == "1":
            same = []
        return entry["cubin"][f"sm_{same[-1]}"] if same else entry["ptx"][f"sm_{known[-1]}"]

    def value(self, argument):
        if argument["kind"] == "null":
            return np.uint64(0)
        if argument["kind"] == "number":
            return np.dtype(argument["dtype"]).type(argument["value"])
        if argument["kind"] == "struct":
            fields = argument["fields"]
            return np.array(tuple(fields.values()), [(name, np.int32) for name in fields])
        dtype = np.dtype(argument["dtype"])
        end = argument["offset"] + int(np.prod(argument["shape"])) * dtype.itemsize
        memory = self.buffers[argument["buffer"]][argument["offset"] : end]
        array = memory.view(dtype).reshape(argument["shape"])
        if "values" in argument:
            array[...] = self.xp.asarray(np.array(argument["values"], dtype))
        return array

    def run(self, entry, launch, values):
        shared = entry["dynamic_shared_bytes"]
        self.function(entry)(
            tuple(launch["grid"]), tuple(entry["block"]), tuple(values), shared_mem=shared
        )


@pytest.fixture
def replay(exported, manifest, place):
    with gpucnn.device(place):
        yield Replay(exported, manifest, place)


def test_each_launch_repeated_from_the_files_gives_the_frameworks_own_bits(
    replay, manifest, place, real
):
    for (entry, launch), (*_, before, after) in zip(in_order(manifest), real, strict=True):
        values = [replay.value(argument) for argument in launch["arguments"]]
        for argument, value, was in zip(launch["arguments"], values, before, strict=True):
            if argument["kind"] == "array":
                assert (was.dtype, was.shape) == (value.dtype, value.shape), argument
                if "values" in argument:
                    np.testing.assert_array_equal(value.get(), was)
                value.set(was)
            else:
                assert was.tobytes() == value.tobytes(), argument
        replay.run(entry, launch, values)
        for argument, value, expected in zip(launch["arguments"], values, after, strict=True):
            if argument["kind"] == "array":
                assert same(value.get(), expected, place), (launch["number"], entry["name"])


def test_a_wrong_number_in_the_manifest_would_be_noticed(replay, manifest, place, real):
    entry, launch = next(pair for pair in in_order(manifest) if pair[0]["name"] == "relu_forward")
    *_, before, after = real[launch["number"]]
    for size, equal in ((launch["arguments"][-1]["value"], True), (5, False)):
        values = [replay.value(argument) for argument in launch["arguments"]]
        values[0].set(before[0])
        values[1].fill(7)
        values[-1] = np.dtype(launch["arguments"][-1]["dtype"]).type(size)
        replay.run(entry, launch, values)
        assert same(values[1].get(), after[1], place) == equal


def same(ours, theirs, place):
    """To the bit; on a GPU, where CuPy's NVRTC may be another version than ours, nearly.

    What no kernel writes may be NaN, in both.
    """
    if ours.tobytes() == theirs.tobytes():
        return True
    if place.kind != "cuda" or ours.dtype != np.float32:
        return False
    finite = np.isfinite(theirs)
    if not (np.isfinite(ours) == finite).all():
        return False
    ours, theirs = ours[finite], theirs[finite]
    return np.abs(ours - theirs).max(initial=0) <= 1e-6 * np.abs(theirs).max(initial=0)


def test_the_launches_in_a_row_from_the_manifest_alone_compute_finite_numbers(replay, manifest):
    rng = np.random.default_rng(1)
    for buffer in replay.buffers:  # any numbers: what a stranger would begin with
        numbers = rng.standard_normal(ceil_div(buffer.size, 4), np.float32) * np.float32(0.01)
        buffer.set(numbers.view(np.uint8)[: buffer.size])
    for entry, launch in in_order(manifest):
        values = [replay.value(argument) for argument in launch["arguments"]]
        replay.run(entry, launch, values)
        for argument, value in zip(launch["arguments"], values, strict=True):
            if argument["kind"] == "array" and argument["dtype"] == "float32":
                assert np.isfinite(value.get()).all(), (launch["number"], entry["name"], argument)


# --- hostile use ---


@pytest.mark.usefixtures("library")
def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert cli.main(["kernels", "--export", str(tmp_path)]) == 2
    assert "is not empty\n  name a folder that does not exist yet" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("library")
def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArgumentError, match="file cannot be written"):
        export_kernels("alexnet_cifar10", [80], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("library")
def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path, capsys):
    folder = tmp_path / "kernels"
    assert cli.main(["kernels", "--export", str(folder), "--arch", "80", "13"]) == 2
    error = capsys.readouterr().err
    assert "does not compile for sm_13\n  it knows sm_" in error
    assert not folder.exists()
    with pytest.raises(SystemExit):
        cli.main(["kernels", "--export", str(folder), "--arch", "ampere"])


@pytest.mark.parametrize("flags", ["--arch 90", "--model lenet5", "--batch 4"])
def test_flags_that_nothing_would_read_are_refused(flags, capsys):
    assert cli.main(["kernels", *flags.split()]) == 2
    assert "--arch, --model and --batch go with --export DIR" in capsys.readouterr().err


@pytest.mark.usefixtures("library")
def test_an_unknown_model_leaves_no_folder(tmp_path):
    with pytest.raises(ArgumentError, match="'alexnet13' is unknown"):
        export_kernels("alexnet13", [80], tmp_path / "a" / "kernels")
    assert not (tmp_path / "a" / "kernels").exists()


def test_without_nvrtc_the_way_out_is_named_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    for function in (nvrtc._library, nvrtc.architectures):
        function.cache_clear()
    try:
        assert cli.main(["kernels", "--export", str(tmp_path / "kernels")]) == 2
    finally:
        for function in (nvrtc._library, nvrtc.architectures):
            function.cache_clear()
    assert (
        'NVRTC needs cuda-pathfinder to be found; pip install "gpucnn[nvrtc]"'
        in capsys.readouterr().err
    )
    assert not (tmp_path / "kernels").exists()


@pytest.fixture
def instant(monkeypatch):
    """A compiler that needs no time and no NVRTC."""

    class Usage(dict):
        def __missing__(self, name):
            return nvrtc.Usage(8, 0, 0, 0)

    binary = nvrtc.Binary(b"cubin", "ptx", Usage())
    monkeypatch.setattr(nvrtc, "architectures", lambda: (80,))
    monkeypatch.setattr(nvrtc, "version", lambda: "13.0")
    monkeypatch.setattr(nvrtc, "compile_source", lambda *args: binary)


@pytest.mark.usefixtures("instant")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("there", [False, True])
def test_a_stop_or_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, error, there):
    folder = tmp_path / "kernels"
    if there:
        folder.mkdir()
    calls = []

    def failing(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return nvrtc.Binary(b"cubin", "ptx", {})

    monkeypatch.setattr(nvrtc, "compile_source", failing)
    expected = ArgumentError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        export_kernels("lenet5", [80], folder, 2)
    assert folder.exists() == there
    assert not list(tmp_path.glob("kernels/*"))


@pytest.mark.usefixtures("instant")
def test_the_manifest_is_the_last_file_to_appear(tmp_path, monkeypatch):
    from gpucnn.commands import kernels as kernel_export

    moved, replace = [], kernel_export.os.replace

    def watched(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(kernel_export.os, "replace", watched)
    export_kernels("lenet5", [80], tmp_path, 2)
    assert moved == ["sm_80", "source", "manifest.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "sm_80", "source"]


def test_a_killed_export_leaves_no_manifest_and_says_what_to_remove(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from gpucnn.commands import kernels; from gpucnn.cuda import nvrtc\n"
        "nvrtc.architectures, nvrtc.version = lambda: (80,), lambda: '13.0'\n"
        "nvrtc.compile_source = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "kernels.export_kernels('lenet5', [80], sys.argv[1], 2)"
    )
    folder = tmp_path / "kernels"
    done = subprocess.run([sys.executable, "-c", program, folder], check=False, timeout=120)
    assert done.returncode == -9
    assert [path.name for path in folder.iterdir()] == [".partial"]
    try:
        nvrtc.version()
    except DeviceError as error:
        pytest.skip(str(error))
    with pytest.raises(
        ArgumentError, match=r"was stopped, or is still at work\n  remove .*partial"
    ):
        export_kernels("lenet5", [80], folder, 2)


@pytest.mark.usefixtures("instant")
def test_a_folder_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # modes do not stop root
    with pytest.raises(ArgumentError, match=r"kernels cannot be written \(Permission denied\)"):
        export_kernels("lenet5", [80], tmp_path / "kernels", 2)
