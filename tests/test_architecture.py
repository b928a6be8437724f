"""Imports point downward and form no cycle; an op is one file or folder; files stay short."""

import ast
from pathlib import Path

import pytest

from gpucnn import ops

ROOT = Path(__file__).parents[1]

# From the top down.  A module may import from its own layer and from those below it.  A package
# stands for all of its modules; the longest matching name determines the layer of a module.
LAYERS = (
    ("gpucnn.commands", "gpucnn.__main__"),
    ("gpucnn",),
    ("gpucnn.train", "gpucnn.inspect", "gpucnn.interop"),
    ("gpucnn.models", "gpucnn.checkpoint", "gpucnn.distributed"),
    ("gpucnn.nn", "gpucnn.optim", "gpucnn.data", "gpucnn.testing", "gpucnn.weights"),
    ("gpucnn.ops",),
    (
        "gpucnn.autograd",
        "gpucnn.creation",
        "gpucnn.gradient_checks",
        "gpucnn.graph_memory",
        "gpucnn.out_of_memory",
        "gpucnn.tensor",
        "gpucnn.tensor_data",
        "gpucnn.tensor_file",
    ),
    ("gpucnn.cuda", "gpucnn.cpu", "gpucnn.dlpack", "gpucnn.precision", "gpucnn.watching"),
    ("gpucnn.device",),
    ("gpucnn.cudasim",),
    (
        "gpucnn.deprecation",
        "gpucnn.errors",
        "gpucnn.random",
        "gpucnn.files",
        "gpucnn.hooks",
        "gpucnn.arguments",
        "gpucnn.integers",
        "gpucnn.schema",
        "gpucnn.temporary",
        "gpucnn.pickle_machine",
        "gpucnn._version",
    ),
)
MAX_LINES = 400
SOURCES = {".py", ".cu", ".cuh", ".cpp", ".h"}
# The modules that may import by a computed name.
DYNAMIC = {"gpucnn.commands.check.child"}
SHARED_BY_OPS = {"geometry"}  # the public modules of gpucnn.ops that define no op
SETTINGS = {"get_conv_algorithm", "set_conv_algorithm"}  # what gpucnn.ops exports besides ops


def modules(root):
    """{dotted name: path} of every module of the package."""
    found = {}
    for path in sorted((root / "gpucnn").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(found):
    """{module: the modules that it imports}, in functions and under TYPE_CHECKING too."""
    return {
        name: {module for module in _imported(path, found) if module != name}
        for name, path in found.items()
    }


def _imported(path, found):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in found)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, which this test does not follow"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from members & found.keys()
            if node.module in found and members - found.keys():
                yield node.module


def layer(module):
    """The index of a module's layer, 0 at the top; None if it has none."""
    while module:
        for number, names in enumerate(LAYERS):
            if module in names:
                return number
        module = module.rpartition(".")[0] if module.count(".") > 1 else ""
    return None


def upward(graph):
    """The imports that point to a higher layer."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if layer(other) < layer(name)
    ]


def cycle(graph):
    """The modules of an import cycle, in order; [] if there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph[name]):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name))), [])


def dynamic(found):
    """The modules that can import from the package by a computed name, unseen by `imports`."""
    return {
        name
        for name, path in found.items()
        if _imports_by_name(ast.parse(path.read_text(encoding="utf-8")))
    }


def _imports_by_name(tree):
    """Whether it uses import_module and the like for more than a literal name outside gpucnn."""
    methods = ("import_module", "__import__", "run_module", "run_path")
    names = (*methods, "exec", "eval")  # eval is also a method of models
    harmless = {
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.args[0] if node.args else None, ast.Constant)
        and not str(node.args[0].value).startswith("gpucnn")
    }
    return any(
        (isinstance(node, ast.Name) and node.id in names)
        or (isinstance(node, ast.Attribute) and node.attr in methods)
        or (isinstance(node, ast.alias) and node.asname and node.name in names)
        for node in ast.walk(tree)
        if node not in harmless
    )


@pytest.fixture(scope="module")
def graph():
    return imports(modules(ROOT))


def test_every_module_has_a_layer(graph):
    assert [name for name in graph if layer(name) is None] == []


def test_imports_point_downward(graph):
    assert len(graph) > 100
    assert upward(graph) == []


def test_no_module_imports_itself_through_others(graph):
    assert cycle(graph) == []


def test_no_module_imports_by_a_computed_name():
    assert dynamic(modules(ROOT)) == DYNAMIC


def test_no_source_file_is_longer_than_400_lines():
    folders = ("gpucnn", "kernels", "tests", "examples", "benchmarks", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in SOURCES
    }
    assert len(lengths) > 250
    assert {path for path, lines in lengths.items() if lines > MAX_LINES} == set()


# --- one op, one file or folder ---


def test_an_op_is_one_file_of_ops_or_the_op_file_of_a_folder():
    for name in set(ops.__all__) - SETTINGS:
        package, file, *inside = getattr(ops, name).__module__.removeprefix("gpucnn.").split(".")
        assert package == "ops", name
        assert inside in ([], ["op"]), name
        assert not file.startswith("_"), name


def test_every_public_file_and_folder_of_ops_defines_an_op():
    folder = ROOT / "gpucnn" / "ops"
    names = {path.stem for path in folder.glob("[!_]*.py")}
    names |= {path.parent.name for path in folder.glob("*/op.py")}
    defining = {getattr(ops, name).__module__.split(".")[2] for name in set(ops.__all__) - SETTINGS}
    assert names == defining | SHARED_BY_OPS


def test_a_private_file_of_ops_is_shared_by_several_ops(graph):
    private = {name for name in graph if name.startswith("gpucnn.ops._")}
    users = {
        name: {user.split(".")[2] for user, others in graph.items() if name in others}
        for name in private
    }
    assert private
    assert [name for name, ops in users.items() if len(ops) < 2] == []


# --- the checks detect violations ---


def tree(root, **files):
    for name, text in files.items():
        path = root / "gpucnn" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "gpucnn" / "__init__.py").write_text("")
    return imports(modules(root))


def test_an_upward_import_is_detected_inside_a_function(tmp_path):
    graph = tree(tmp_path, errors="def f():\n    from gpucnn.nn import layers\n", nn__layers="")
    assert upward(graph) == ["gpucnn.errors imports gpucnn.nn.layers"]


def test_a_cycle_is_detected_even_under_type_checking(tmp_path):
    graph = tree(
        tmp_path,
        ops__a="from gpucnn.ops import b\n",
        ops__b="import gpucnn.ops.c\n",
        ops__c="if TYPE_CHECKING:\n    from gpucnn.ops.a import T\n",
    )
    assert sorted(cycle(graph)) == ["gpucnn.ops.a", "gpucnn.ops.b", "gpucnn.ops.c"]


def test_an_import_by_a_computed_name_is_detected(tmp_path):
    tree(
        tmp_path,
        a="import importlib\nimportlib.import_module('gpucnn.' + 'nn')\n",
        b="from importlib import import_module as load\n",
        c="__import__('gpucnn.nn')\n",
        d="import re\nre.compile('import_module')\n",
        e="from importlib import import_module\nimport_module('cuda.pathfinder')\n",
        f="from importlib import import_module\nimport_module('gpucnn.nn')\n",
    )
    assert dynamic(modules(tmp_path)) == {f"gpucnn.{name}" for name in "abcf"}
