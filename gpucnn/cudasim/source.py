"""Rewrite CUDA source for a C++ compiler, which compiles it after native/cuda.h.

Macros and functions can implement nearly everything in CUDA C++ that is not C++.  These are the
exceptions, rewritten so that line numbers do not change:

    __shared__ float tile[8][132];       becomes a reference into the block's shared memory
    extern __shared__ float tile[];      becomes a pointer to its dynamic part
    #pragma unroll                       is removed: g++ vectorises loops better if not unrolled
"""

import re

from gpucnn.errors import KernelError

_COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
_ALIGNMENT = r"(?:(?:__align__|alignas)\s*\(\s*(?P<align>[^()]*)\s*\)\s*)?"
_DYNAMIC = re.compile(
    rf"\bextern\s+__shared__\s+{_ALIGNMENT}(?P<type>[^;\[\]]+?)\s*\b(?P<name>\w+)\s*\[\s*\]\s*;"
)
_STATIC = re.compile(rf"\b__shared__\s+{_ALIGNMENT}(?P<rest>[^;]+);")
_EXTENTS = r"(?P<extents>(?:\[[^\]]*\]\s*)*)"
_FIRST = re.compile(rf"(?P<type>.*[\s>*])(?P<name>\w+)\s*{_EXTENTS}", re.DOTALL)
_NEXT = re.compile(rf"\s*(?P<name>\w+)\s*{_EXTENTS}")
_KERNEL = re.compile(
    r"\b__global__\b(?:[^(){};]*__launch_bounds__\s*\([^()]*\))?[^(){};]*?\b(\w+)\s*\(([^()]*)\)\s*\{"
)


def kernels(code: str) -> dict[str, list[tuple[str, bool]]]:
    """The kernels in `code`: name -> [(parameter, whether it points to const), ...]."""
    return {
        name: [
            (parameter.replace("*", " ").split()[-1], bool(re.search(r"\bconst\b.*\*", parameter)))
            for parameter in re.sub(r"\s+", " ", parameters).split(",")
            if parameter.strip()
        ]
        for name, parameters in _KERNEL.findall(blank_comments(code))
    }


def rewrite(code: str) -> str:
    """`code` with __shared__ declarations translated to C++ and without unroll pragmas."""
    visible = blank_comments(code)  # of the same length, so that positions agree
    pieces, end = [], 0
    declarations = [(m, _dynamic) for m in _DYNAMIC.finditer(visible)]
    dynamic_spans = [m.span() for m, _ in declarations]
    for match in _STATIC.finditer(visible):
        if not any(start <= match.start() < stop for start, stop in dynamic_spans):
            declarations.append((match, _static))
    for match, translate in sorted(declarations, key=lambda pair: pair[0].start()):
        text = translate(match)
        lines = code.count("\n", match.start(), match.end())
        pieces += [code[end : match.start()], text + "\n" * lines]
        end = match.end()
    code = "".join([*pieces, code[end:]])
    return re.sub(r"(?m)^[ \t]*#[ \t]*pragma[ \t]+unroll\b[^\n]*$", "", code)


def blank_comments(code: str) -> str:
    """`code` with comments and literals replaced by as many spaces."""
    return _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), code)


def _dynamic(match: re.Match[str]) -> str:
    kind, name = match["type"], match["name"]
    return f"{kind}* const {name} = reinterpret_cast<{kind}*>(cudasim_shared.start);"


def _static(match: re.Match[str]) -> str:
    first, *others = _split(match["rest"])
    parts = [_FIRST.fullmatch(first), *map(_NEXT.fullmatch, others)]
    result = ""
    for part in parts:
        if part is None or parts[0] is None:
            raise KernelError(
                f"cudasim: cannot parse the declaration {match[0]!r}\n"
                "  declare each variable in a statement of its own"
            )
        kind, name, extents = parts[0]["type"].strip(), part["name"], part["extents"]
        align = match["align"] or f"alignof(cudasim_type_{name})"
        result += (
            f"using cudasim_type_{name} = {kind}{extents}; "
            f"static const size_t cudasim_at_{name} = "
            f"cudasim_reserve_shared(&cudasim::shared_used, "
            f'sizeof(cudasim_type_{name}), {align}, "{name}"); '
            f"if (cudasim_at_{name} == ~size_t(0)) "
            f'cudasim_no_shared(sizeof(cudasim_type_{name}), "{name}"); '
            f"cudasim_type_{name}& {name} = *reinterpret_cast<cudasim_type_{name}*>"
            f"(cudasim_shared.start + cudasim_at_{name}); "
        )
    return result.replace("\n", " ")


def _split(declarators: str) -> list[str]:
    """Split at commas outside brackets."""
    pieces, depth = [""], 0
    for character in declarators:
        depth += (character in "<([") - (character in ">)]")
        if character == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += character
    return pieces
