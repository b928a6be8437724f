"""The kernels of kernels/*.cu: their declarations, and their sources with headers inlined.

Read this first, then compiler.py and launcher.py.  Each kernel is declared once, in its .cu file,
and `kernels()` parses that declaration:

    extern "C" __global__ __launch_bounds__(256) void scale(const float* x, float* y, int n) {
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.errors import ArgumentError
from gpucnn.precision import bfloat16

WIDE = "wide_offsets"  # marks a kernel whose offsets into arrays have 64 bits

Define = int | float | str

_PACKAGE = Path(__file__).parent.parent  # gpucnn/
# A wheel has kernels/ inside the package, a checkout beside it.  Importing gpucnn.kernels could
# find the folder of an installed copy instead of that of a checkout on PYTHONPATH.
KERNELS = folder if (folder := _PACKAGE / "kernels").is_dir() else _PACKAGE.parent / "kernels"

_DTYPES = {
    "float": "float32", "double": "float64", "half": "float16", "__half": "float16",
    "bfloat16": "bfloat16", "tf32": "float32", "__nv_bfloat16": "uint16", "bool": "bool",
    "int": "int32", "int32_t": "int32", "int32": "int32",
    "unsigned": "uint32", "unsigned int": "uint32", "uint32_t": "uint32", "uint32": "uint32",
    "long long": "int64", "int64_t": "int64", "int64": "int64",
    "unsigned long long": "uint64", "uint64_t": "uint64", "uint64": "uint64",
    "short": "int16", "unsigned short": "uint16", "uint16_t": "uint16", "uint16": "uint16",
    "signed char": "int8", "int8_t": "int8", "unsigned char": "uint8", "uint8_t": "uint8",
    "uint8": "uint8",
}  # fmt: skip

# The type in kernels/ of an array's elements, for `defines`
_C_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"[^\n]*$')
_KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?P<words>[^(){};]*(?:__launch_bounds__\s*\((?P<bounds>[^()]*)\))?'
    r"[^(){};]*?)\b(?P<name>\w+)\s*\((?P<parameters>[^()]*)\)\s*\{"
)
_DEFAULT = re.compile(r"^#ifndef (\w+)\n#define \1 (\S+)", re.MULTILINE)
_LAUNCH = re.compile(r'launch(?:_\w+)?\(\s*(f?)"(\w+)')


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.  `const float* x` has kind "float", pointer and const."""

    name: str
    kind: str  # the C type, as written in the source
    pointer: bool
    const: bool
    default: str | None = None  # what the file defines `kind` as, if it is a macro

    def dtype(self, defines: Mapping[str, Define]) -> np.dtype[Any] | None:
        """The NumPy dtype of a number, or of a pointer's elements; None for a struct.

        DtypeError for bfloat16 without the package ml_dtypes.
        """
        name = _DTYPES.get(str(defines.get(self.kind, self.default or self.kind)))
        if name is None:
            return None
        return bfloat16() if name == "bfloat16" else np.dtype(name)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel's declaration."""

    name: str
    file: str
    line: int
    parameters: tuple[Parameter, ...]
    bound: str | None  # threads per block in __launch_bounds__, as written in the source
    blocks: str | None  # blocks per multiprocessor there
    wide: bool  # 64-bit offsets


def kernel(name: str) -> Kernel:
    """The declaration of kernel `name`; ArgumentError if no .cu file declares it."""
    found = kernels().get(name)
    if found is None:
        raise ArgumentError(
            f"launch: there is no kernel {name!r}\n  the kernels are {', '.join(kernels())}"
        )
    return found


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Every kernel in kernels/*.cu, by name."""
    found: dict[str, Kernel] = {}
    for file in sorted(path.name for path in KERNELS.glob("*.cu")):
        for declared in declarations(file, _read(file)):
            if declared.name in found:
                raise ArgumentError(
                    f"kernel {declared.name} is declared twice: "
                    f"in {found[declared.name].file} and {file}"
                )
            found[declared.name] = declared
    return found


def c_type(dtype: np.dtype[Any]) -> str:
    """The name in kernels/ of float32, float16 or bfloat16."""
    return _C_TYPES[dtype.name]


def callers(name: str) -> list[str]:
    """The Python files that launch kernel `name`, such as gpucnn/optim/sgd.py.

    An f-string, f"conv2d_forward_{...}", matches every kernel with its constant prefix.
    """
    found = []
    for folder in ("ops", "optim", "data"):
        for file in sorted((_PACKAGE / folder).rglob("*.py")):
            launches = _LAUNCH.findall(file.read_text(encoding="utf-8"))
            if any(name == text or (f and name.startswith(text)) for f, text in launches):
                found.append(f"gpucnn/{file.relative_to(_PACKAGE).as_posix()}")
    return found


def declarations(file: str, text: str) -> list[Kernel]:
    """The kernels declared in `text`, the contents of `file`."""
    text = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    macros = dict(_DEFAULT.findall(text))
    result = []
    for match in _KERNEL.finditer(text):
        parameters = tuple(
            _parameter(p, macros) for p in match["parameters"].split(",") if p.strip()
        )
        bounds = [word.strip() for word in (match["bounds"] or "").split(",")]
        bound, blocks = (*(word or None for word in bounds), None)[:2]
        line = text.count("\n", 0, match.start()) + 1
        wide = WIDE in match["words"].split()
        result.append(Kernel(match["name"], file, line, parameters, bound, blocks, wide))
    return result


def _parameter(text: str, macros: Mapping[str, str]) -> Parameter:
    text = text.replace("__restrict__", " ").replace("__grid_constant__", " ")
    pointer = "*" in text
    words = text.replace("*", " ").split()
    kind = " ".join(word for word in words[:-1] if word != "const")
    return Parameter(words[-1], kind, pointer, "const" in words, macros.get(kind))


# --- sources ---


@functools.cache
def _read(file: str) -> str:
    return (KERNELS / file).read_text(encoding="utf-8")


def assemble(file: str, headers: Mapping[str, str] | None = None, folder: str = "") -> str:
    """The source of kernels/`file` with all headers inlined.

    Headers are inlined because CuPy's cache key covers only the source.  `headers` maps header
    names to replacement texts; `folder` prefixes the file names shown by compilers and debuggers.
    """
    folder = folder.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f"#define {WIDE}\n" + _splice(file, _read(file), dict(headers or {}), folder, set())


def _splice(file: str, text: str, headers: dict[str, str], folder: str, done: set[str]) -> str:
    lines = [f'#line 1 "{folder}{file}"']
    for number, line in enumerate(text.splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append(line)
            continue
        name = include[1]
        if name not in done:
            done.add(name)
            if name in headers:
                lines.append(headers[name])
            else:
                lines.append(_splice(name, _read(name), headers, folder, done))
        lines.append(f'#line {number + 1} "{folder}{file}"')
    return "\n".join(lines)


def struct_fields(source: str, name: str) -> list[str]:
    """The names of the int fields of `struct name` in assembled source, in order."""
    match = re.search(rf"\bstruct\s+{name}\s*\{{([^{{}}]*)\}}", _COMMENT.sub("", source))
    groups = re.findall(r"\bint\s+([^;]+);", match[1]) if match else []
    return [field.strip() for group in groups for field in group.split(",")]
