"""cudasim compared with the installed CuPy: every public name, and every argument.

CuPy can be imported without a driver and a GPU.  A table in cudasim's README lists the names that
CuPy does not have; these tests check that it is complete.
"""

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import gpucnn
from gpucnn import cudasim

README = Path(cudasim.__file__).with_name("README.md").read_text(encoding="utf-8")

# Attributes of every Python class.
OF_EVERY_CLASS = {
    *dir(object), "__module__", "__slots__", "__dict__", "__weakref__", "__annotations__",
    "__static_attributes__", "__firstlineno__",
}  # fmt: skip
CLASSES = {
    "ndarray": "ndarray",
    "RawModule": "RawModule",
    "module.Function": "RawKernel",
    "lib.stride_tricks": "lib.stride_tricks",
    "linalg": "linalg",
    "cuda.Stream.null": "cuda.Stream.null",
    **{
        f"cuda.{name}": f"cuda.{name}"
        for name in "Device Event Graph MemoryPointer MemoryPool Stream memory runtime".split()
    },
}


@pytest.fixture(scope="module")
def cupy():
    return pytest.importorskip("cupy", reason="CuPy is not installed")


def find(root, path):
    """The object at `path` under `root`, or LookupError."""
    for name in path.split("."):
        if not hasattr(root, name):
            raise LookupError(path)
        root = getattr(root, name)
    return root


def public_names():
    """(cudasim's name, CuPy's name) of every public name of cudasim."""
    names = [(name, name) for name in cudasim.__all__]
    names += [(f"cuda.{name}", f"cuda.{name}") for name in cudasim.cuda.__all__]
    instances = {
        "cuda.Device": cudasim.cuda.Device(),
        "cuda.Event": cudasim.cuda.Event(),
        "cuda.MemoryPointer": cudasim.cuda.MemoryPointer(0),
        "cuda.MemoryPool": cudasim.get_default_memory_pool(),
        "cuda.Stream.null": cudasim.cuda.Stream.null,
        "RawModule": cudasim.RawModule(code=""),
    }
    for ours, theirs in CLASSES.items():
        members = {*vars(find(cudasim, ours)), *vars(instances.get(ours, object))}
        for name in sorted(members - OF_EVERY_CLASS):
            if not re.match(r"_(?!_)", name):
                names.append((f"{ours}.{name}", f"{theirs}.{name}"))
    return names


def listed():
    """The first column of the README's table of names that CuPy does not have."""
    table = README.split("| name |", 1)[1].split("\n\n", 1)[0]
    return {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")}


# --- signatures ---


def parameters(thing):
    """A callable's parameters, from its signature or Cython's docstring; None without either."""
    try:
        return list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):
        pass
    text = (getattr(thing, "__doc__", None) or "").strip()
    head = re.match(r"[\w.]+\(", text)
    if head is None:
        return None
    found, kind = [], inspect.Parameter.POSITIONAL_OR_KEYWORD
    for word in arguments(text[head.end() :]):
        word = word.replace("\\", "")
        if word == "/":
            found = [p.replace(kind=inspect.Parameter.POSITIONAL_ONLY) for p in found]
        elif word == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif word.startswith("**"):
            found.append(inspect.Parameter(word[2:], inspect.Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            found.append(inspect.Parameter(word[1:], inspect.Parameter.VAR_POSITIONAL))
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            word, equal, _ = word.partition("=")
            default = None if equal else inspect.Parameter.empty
            found.append(inspect.Parameter(word.split()[-1], kind, default=default))
    return found


def arguments(text):
    """Split at commas, up to the closing bracket of the list."""
    pieces, depth = [""], 0
    for character in text:
        if character == ")" and depth == 0:
            break
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return [piece.strip() for piece in pieces if piece.strip()]


def refused(ours, theirs):
    """The names of parameters that `theirs` lacks or has at another position."""
    positional = [p for p in theirs if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = {p.kind for p in theirs}
    named = {p.name: p for p in theirs if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for place, p in enumerate(ours):
        there = positional[place] if place < len(positional) else None
        any_number, any_name = p.VAR_POSITIONAL in kinds, p.VAR_KEYWORD in kinds
        if p.kind == p.VAR_POSITIONAL:
            taken = any_number
        elif p.kind == p.VAR_KEYWORD:
            taken = any_name
        elif p.kind == p.POSITIONAL_ONLY:
            taken = any_number or there is not None
        elif p.kind == p.KEYWORD_ONLY:
            taken = any_name or p.name in named
        else:
            same = there is not None and there.name == p.name and p.name in named
            taken = same or (any_number and any_name)
        there = named.get(p.name, there)
        must = there is not None and there.default is p.empty and there.kind not in (2, 4)
        if not taken or (p.default is not p.empty and must):
            yield p.name


def test_the_parser_of_cythons_docstrings_reads_names_kinds_and_defaults():
    text = "_ndarray_base.f(self, Py_ssize_t n, tuple axes=(0, 1), *, out=None, \\*\\*rest) -> x"
    fake = type("Fake", (), {"__doc__": text, "__signature__": 3})()
    assert [(p.name, p.kind.name, p.default is p.empty) for p in parameters(fake)] == [
        ("self", "POSITIONAL_OR_KEYWORD", True),
        ("n", "POSITIONAL_OR_KEYWORD", True),
        ("axes", "POSITIONAL_OR_KEYWORD", False),
        ("out", "KEYWORD_ONLY", False),
        ("rest", "VAR_KEYWORD", True),
    ]


def test_an_argument_that_only_cudasim_takes_is_found():
    def ours(a, axis=None, *, out=None, where=True): ...

    def theirs(a, dtype, axis=None, *, out=None): ...

    both = [list(inspect.signature(f).parameters.values()) for f in (ours, theirs)]
    assert list(refused(*both)) == ["axis", "where"]  # axis is third in theirs
    assert list(refused(both[1], both[1])) == []


# --- cudasim against CuPy ---


def test_every_public_name_is_cupys_or_listed_in_the_readme(cupy):
    missing = set()
    for ours, theirs in public_names():
        try:
            find(cupy, theirs)
        except LookupError:
            missing.add(ours)
    assert missing == listed()


def test_every_argument_is_one_of_cupys_at_the_same_position(cupy):
    found, unread = {}, []
    for ours, theirs in public_names():
        if ours in listed() or ours.split(".")[-1].startswith("__"):
            continue
        try:
            thing = find(cudasim, ours)
        except LookupError:  # an attribute of instances
            continue
        same = find(cupy, theirs)
        if not callable(thing) or thing is same or inspect.ismodule(same):
            continue
        own = list(inspect.signature(thing).parameters.values())
        other = parameters(same)
        if other is None:
            unread.append(ours)
        elif names := list(refused(own, other)):
            found[ours] = names
    assert found == {}
    assert unread == []


def test_constants_and_dtypes_are_the_same_objects(cupy):
    for name in cudasim.__all__:
        value = getattr(cudasim, name)
        if value is getattr(np, name, cudasim):
            assert getattr(cupy, name) is value or getattr(cupy, name) == value, name


def test_a_launch_takes_the_arguments_that_cupys_does(cupy):
    ours = list(inspect.signature(cudasim.module.Function.__call__).parameters.values())
    theirs = parameters(cupy.RawKernel.__call__)
    assert list(refused(ours, theirs)) == []


def test_a_function_that_cupy_lacks_is_refused_by_numpys_protocol_too(cupy):
    x = cudasim.zeros((3, 4), np.float32)
    assert not hasattr(cupy, "is_busday")
    with pytest.raises(TypeError, match="no implementation found"):
        np.is_busday(x)
    with pytest.raises(TypeError):  # a ufunc
        np.spacing(x)


def test_what_cupy_refuses_to_do_with_an_array_is_refused_here():
    x = cudasim.zeros((3, 4), np.float32)
    assert not hasattr(x, "__index__")
    with pytest.raises(TypeError):
        [1, 2, 3][cudasim.ones((), np.int64)]
    with pytest.raises(TypeError, match="unexpected keyword argument: where"):
        cudasim.sum(x, where=x > 0)
    with pytest.raises(TypeError, match="takes 4 positional arguments, got 5"):
        cudasim.max(x, 0, None, False, 0)
    with pytest.raises(TypeError, match="unexpected keyword argument: initial"):
        x.max(initial=0)
    with pytest.raises(TypeError, match="unexpected keyword argument: where"):
        np.add(x, x, where=x > 0)
    with pytest.raises(TypeError):
        x.item(0)
    with pytest.raises(TypeError, match="float64 into float32"):
        x.set(np.zeros((3, 4)))
    with pytest.raises(RuntimeError, match="not contiguous"):
        x[:, ::2].set(np.zeros((3, 2), np.float32))
    with pytest.raises(AttributeError):
        cudasim.multiply.at(x, 0, 1)


def uses_of_xp():
    """(file:line, path, keywords) of each `xp.path` and each call of one in the package."""
    package = Path(gpucnn.__file__).parent
    for file in sorted(package.rglob("*.py")):
        if file.is_relative_to(package / "cudasim"):
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            path = dotted(node)
            if path.startswith("xp."):
                call = calls.get(id(node))
                keywords = [k.arg for k in call.keywords] if call else []
                yield f"{file.name}:{node.lineno}", path.removeprefix("xp."), keywords


def dotted(node):
    """The text of an expression of the form a.b.c; "" for any other."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(names)]) if isinstance(node, ast.Name) else ""


def test_cupy_has_every_function_and_keyword_that_the_package_uses(cupy):
    found = list(uses_of_xp())
    assert len({path for _, path, _ in found}) > 30
    for where, path, keywords in found:
        if path in listed():
            continue
        taken = parameters(find(cupy, path)) if keywords else []
        assert taken is not None, path
        anything = any(p.kind == p.VAR_KEYWORD for p in taken)
        assert anything or {p.name for p in taken} >= set(keywords), (where, path, keywords)
