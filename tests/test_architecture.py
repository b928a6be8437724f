"""The package keeps its shape: imports point downward, files stay short, and each has its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down.  A module imports from its own layer and from those below it.  A package
# stands for all of its modules; the longest name that fits a module decides.
LAYERS = (
    ("gpucnn.commands", "gpucnn.__main__"),
    ("gpucnn",),
    ("gpucnn.train", "gpucnn.inspect", "gpucnn.interop"),
    ("gpucnn.models", "gpucnn.checkpoint"),
    ("gpucnn.nn", "gpucnn.optim", "gpucnn.data", "gpucnn.testing"),
    ("gpucnn.ops",),
    ("gpucnn.autograd", "gpucnn.creation", "gpucnn.tensor"),
    ("gpucnn.cuda", "gpucnn.cpu", "gpucnn.dlpack", "gpucnn.out_of_memory"),
    ("gpucnn.device",),
    ("gpucnn.cudasim",),
    (
        "gpucnn.errors",
        "gpucnn.random",
        "gpucnn.files",
        "gpucnn.arguments",
        "gpucnn.integers",
        "gpucnn._version",
    ),
)
LONGEST = 400  # lines in a file


def modules(root):
    """{dotted name: path} of every module of the package."""
    found = {}
    for path in sorted((root / "gpucnn").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(found):
    """{module: the modules that it imports}, also inside functions and for types alone."""
    return {
        name: {module for module in _named(path, found) if module != name}
        for name, path in found.items()
    }


def _named(path, found):
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
    """The number of a module's layer, 0 at the top; None if no layer has it."""
    while module:
        for number, names in enumerate(LAYERS):
            if module in names:
                return number
        module = module.rpartition(".")[0] if module.count(".") > 1 else ""
    return None


def upward(graph):
    """Each import of a module from a layer above its own."""
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if layer(other) < layer(name)
    ]


def cycle(graph):
    """The modules of one import cycle, in order; [] if there is none."""
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


def test_no_file_of_the_package_is_longer_than_400_lines():
    files = [*(ROOT / "gpucnn").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {path for path, lines in lengths.items() if lines > LONGEST} == set()


# --- the checks see what they are for ---


def tree(root, **files):
    for name, text in files.items():
        path = root / "gpucnn" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "gpucnn" / "__init__.py").write_text("")
    return imports(modules(root))


def test_an_upward_import_is_seen_inside_a_function_too(tmp_path):
    graph = tree(tmp_path, errors="def f():\n    from gpucnn.nn import layers\n", nn__layers="")
    assert upward(graph) == ["gpucnn.errors imports gpucnn.nn.layers"]


def test_a_cycle_is_seen_even_for_types_alone(tmp_path):
    graph = tree(
        tmp_path,
        ops__a="from gpucnn.ops import b\n",
        ops__b="import gpucnn.ops.c\n",
        ops__c="if TYPE_CHECKING:\n    from gpucnn.ops.a import T\n",
    )
    assert sorted(cycle(graph)) == ["gpucnn.ops.a", "gpucnn.ops.b", "gpucnn.ops.c"]
