"""Every public name: a removal or an addition must be made here too, and so on purpose.

The names of the packages that compute are those of gpu/public_functions.py, where each function
has a call that compares devices.  Deprecate a name before you remove it: see CONTRIBUTING.md.
"""

import ast
import dataclasses
import importlib
from pathlib import Path

import pytest
from gpu.public_functions import ARRAYLESS, TABLE

NAMES = {
    "cuda": """
        Card Define Launch OPTIONS Timer assemble c_type card_of compile_file compiling
        count_launches counters kernel kernels launch launch_elementwise options record_launches
        refuse_capture set_reference_card step_value struct_values
    """,
    "cudasim": """
        RawModule abs absolute add all any arange argmax argmin argsort array array_equal asarray
        ascontiguousarray asnumpy bincount bool_ broadcast_to ceil clip concatenate copyto cos cuda
        cumsum divide dot dtype e einsum empty empty_like equal exp expand_dims expm1 finfo flip
        float16 float32 float64 floating floor floor_divide full full_like generic
        get_default_memory_pool greater greater_equal iinfo inf int16 int32 int64 int8 integer
        isfinite isinf isnan kernel_headers less less_equal lib linalg log log1p logical_and
        logical_not logical_or matmul max maximum may_share_memory mean min minimum moveaxis
        multiply nan ndarray negative newaxis not_equal ones ones_like pad pi power prod
        promote_types ravel repeat require_compiler reshape result_type rint roll sign sin sqrt
        square squeeze stack std subtract sum swapaxes take take_along_axis tanh tensordot tile
        transpose true_divide uint16 uint32 uint64 uint8 unique var where zeros zeros_like
    """,
    "distributed": """
        Communicator DistributedOptimizer MPICommunicator NcclCommunicator SyncBatchNorm Work
        convert_sync_batchnorm local_device
    """,
    "deprecation": "deprecated renamed_argument renamed_attribute renamed_function",
    "errors": """
        ArgumentError CheckpointError DistributedError DataError DeviceError DeviceMismatch
        DivergenceError DtypeError GpucnnError GraphError KernelError MissingExtra OutOfMemory
        OutputError ShapeError TrainingWarning kind missing_extra readable_size
    """,
    "inspect.draw": """
        File Image THEMES Theme chart clip_outliers colormap heatmap label overlay pictures resize
        tile write_maps write_png write_tiles
    """,
    "inspect.page": """
        Content Html STYLE card chart data_uri document element figure gallery join layers pixels
        row section table
    """,
    "interop": "export_onnx",
    "nn.init": """
        Initializer Weights constant dirac dirac_first kaiming_normal kaiming_uniform normal ones
        whitening xavier_normal
        xavier_uniform zeros
    """,
    "optim.lr_scheduler": """
        CosineAnnealingLR LRScheduler LambdaLR LinearLR SequentialLR StepLR TriangularLR
    """,
    "weights": "DEFAULT fingerprint info names path state_dict",
    "testing": "avg_pool2d_loops conv2d_loops gradcheck max_pool2d_loops",
}


def listed(module):
    if module in NAMES:
        return NAMES[module].split()
    called = [name.partition(".")[2] for name in TABLE if name.partition(".")[0] == module]
    return called + ARRAYLESS[module].split()


def public(name):
    """The names in a module's __all__; without one, those that it defines."""
    module = importlib.import_module(f"gpucnn.{name}" if name != "gpucnn" else name)
    if hasattr(module, "__all__"):
        assert len(module.__all__) == len(set(module.__all__))
        assert not [name for name in module.__all__ if not hasattr(module, name)]
        return set(module.__all__)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    return {name for node in tree.body for name in defined(node) if not name.startswith("_")}


def defined(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if len(name) > 1]  # not a TypeVar


@pytest.mark.parametrize("module", [*ARRAYLESS, *NAMES])
def test_the_public_names_are_those_listed(module):
    names = listed(module)
    assert len(names) == len(set(names))
    there = public(module)
    assert {
        "public, but not listed": sorted(there - set(names)),
        "listed, but not public": sorted(set(names) - there),
    } == {"public, but not listed": [], "listed, but not public": []}


def test_every_package_and_module_for_users_is_listed():
    files = Path(importlib.import_module("gpucnn").__file__).parent.glob("*/__init__.py")
    internal = {"checkpoint", "commands", "cpu"}
    assert {path.parent.name for path in files} <= internal | {*ARRAYLESS, *NAMES}


@pytest.mark.parametrize("module", [*ARRAYLESS, *NAMES])
def test_public_dataclasses_cannot_be_changed(module):
    there = importlib.import_module(f"gpucnn.{module}" if module != "gpucnn" else module)
    classes = filter(dataclasses.is_dataclass, (getattr(there, name) for name in public(module)))
    assert [kind for kind in classes if not kind.__dataclass_params__.frozen] == []
