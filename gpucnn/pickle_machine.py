"""Interpret pickles from untrusted files without executing code.

A pickle is a program for a stack machine that can import and call any function, reserve any amount
of memory and run for ever.  Python's unpickler is not used here.  `Machine` interprets only the
opcodes of dicts, lists, tuples, strings and numbers.  The names that a pickle may refer to are
given by the caller, with stand-ins for the functions among them; any other name is an error.

Limits: each opcode makes at most one object, there are at most `_MAX_OBJECTS`, strings are no
longer than the file, and only strings are hashed.  So time and memory are proportional to the file.
"""

import codecs
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.errors import kind

# A CIFAR batch of 50,000 images needs 7 an image in protocol 0, for two labels and a file name.
_MAX_OBJECTS = 1_000_000
_MAX_DIGITS = 64  # of a number, in characters or bytes
_LONG_TEXT = 1 << 16  # characters; longer text holds the bytes of an array


class Refused(Exception):
    """The reason why a pickle, or a file that holds one, is not read."""


@dataclass(frozen=True, eq=False)
class StandIn:
    """Called in place of the function that a pickle names."""

    call: Callable[..., Any]


class Machine:
    """Interprets a pickle: a stack of values, the stacks below each mark, and a memo.

    names        {(module, name): what it stands for}; only a StandIn can be called
    set_state    called with an object and the state that the pickle gives it
    persistent   called with a reference to an object outside the pickle; returns the object
    """

    def __init__(
        self,
        content: bytes,
        names: Mapping[tuple[str, str], Any],
        set_state: Callable[[Any, Any], None],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.content, self.view = content, memoryview(content)
        self.names, self.set_state, self.persistent = names, set_state, persistent
        self.at = 0  # after `run`: the length of the pickle
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value of the pickle.  Raises Refused, or for a damaged one, any exception."""
        content, size = self.content, len(self.content)
        objects = 0
        while self.at < size:
            code = content[self.at]
            if code == _BYTE_INT:  # labels, by the thousand
                ints = _BYTE_INTS.match(content, self.at)
                end = ints.end() if ints else size
                self.stack += content[self.at + 1 : end : 2]
                objects += (end - self.at) // 2
                self.at = end
            else:
                self.at += 1
                if code == _STOP:
                    return self.stack.pop()
                operation, argument = _OPERATIONS.get(code, (None, None))
                if operation is None:
                    raise Refused(f"it uses opcode 0x{code:02x}, which no array needs")
                if argument is None:
                    operation(self)
                else:
                    (value,) = argument.unpack_from(content, self.at)
                    self.at += argument.size
                    operation(self, value)
                objects += 1
            if objects > _MAX_OBJECTS:
                raise Refused(f"it makes more than {_MAX_OBJECTS:,} objects")
        raise Refused("it ends too early")

    # --- arguments ---

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if not self.at <= end <= len(self.content):
            raise Refused("it ends too early")
        value = self.view[self.at : end]
        self.at = end
        return value

    def line(self) -> memoryview:
        value = self.take(self.content.find(b"\n", self.at) - self.at)
        self.at += 1
        return value

    def digits(self) -> bytes:
        value = self.line()
        if len(value) > _MAX_DIGITS:
            raise Refused(f"it contains a number of {len(value)} digits")
        return bytes(value)

    # --- values ---

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_bytes(self, size: int) -> None:
        self.stack.append(bytes(self.take(size)))

    def push_int(self) -> None:
        text = self.digits()
        self.push(text == b"01" if text in (b"00", b"01") else int(text))  # I01 is True

    def push_long(self) -> None:
        self.push(int(self.digits().removesuffix(b"L")))

    def push_binary_long(self, size: int) -> None:
        if size > _MAX_DIGITS:
            raise Refused(f"it contains an integer of {size} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def push_string(self) -> None:
        """A str of Python 2's protocol 0, as its repr."""
        text = self.line()
        if len(text) < 2 or text[0] not in b"'\"" or text[-1] != text[0]:
            raise Refused("it contains a string without quotes")
        self.push(codecs.escape_decode(text[1:-1])[0])

    def push_text(self, raw: memoryview, encoding: str) -> None:
        if len(raw) > _LONG_TEXT and _is_wide(raw, encoding):
            raise Refused("it contains a long text that is not Latin-1")  # up to 4 bytes each
        self.push(str(raw, encoding))

    # --- containers ---

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def last(self, expected: type) -> Any:
        if type(self.stack[-1]) is not expected:
            raise Refused(f"it fills {kind(self.stack[-1])}, not a {expected.__name__}")
        return self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        self.last(list).extend(values)

    def update(self, values: list[Any]) -> None:
        target = self.last(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Hashing a tuple of tuples takes exponential time; equal hashes of ints, quadratic.
            if not isinstance(key, str | bytes):
                raise Refused(f"it contains a dict with {kind(key)} as a key")
            target[key] = value

    def push_dict(self) -> None:
        values = self.since_mark()
        self.push({})
        self.update(values)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Refused("it takes a value from an empty stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def memoize(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused(f"it recalls value {index}, which it never stored")
        self.push(self.memo[index])

    # --- names ---

    def push_name(self, module: str, name: str) -> None:
        if (module, name) not in self.names:
            raise Refused(f"it refers to {module[:60]}.{name[:60]}")
        self.push(self.names[module, name])

    def stack_name(self) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("it refers to a name that is not text")
        self.push_name(module, name)

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, StandIn) or not isinstance(arguments, tuple):
            raise Refused(f"it calls {kind(function)}")
        self.push(function.call(*arguments))

    def build(self) -> None:
        target, state = self.pop(2)
        self.set_state(target, state)
        self.push(target)

    def refer(self) -> None:
        if self.persistent is None:
            raise Refused("it refers to an object outside")
        self.push(self.persistent(*self.pop(1)))


# Each opcode's operation, and the layout of the number that is passed to it.
_BYTE, _U2, _U4, _U8, _I4, _FLOAT = map(struct.Struct, ("B", "<H", "<I", "<Q", "<i", ">d"))
_OPERATIONS: dict[int, tuple[Callable[..., None], struct.Struct | None]] = {
    0x80: (lambda m, _: None, _BYTE),  # the protocol
    0x95: (lambda m, _: None, _U8),  # the size of a frame: only a hint for reading ahead
    ord("N"): (lambda m: m.push(None), None),
    0x88: (lambda m: m.push(True), None),
    0x89: (lambda m: m.push(False), None),
    ord("I"): (Machine.push_int, None),
    ord("L"): (Machine.push_long, None),
    ord("J"): (Machine.push, _I4),
    ord("M"): (Machine.push, _U2),
    0x8A: (Machine.push_binary_long, _BYTE),
    0x8B: (Machine.push_binary_long, _I4),
    ord("F"): (lambda m: m.push(float(m.digits())), None),
    ord("G"): (Machine.push, _FLOAT),
    ord("S"): (Machine.push_string, None),
    ord("T"): (Machine.push_bytes, _I4),
    ord("U"): (Machine.push_bytes, _BYTE),
    ord("B"): (Machine.push_bytes, _U4),
    ord("C"): (Machine.push_bytes, _BYTE),
    0x8E: (Machine.push_bytes, _U8),
    0x96: (Machine.push_bytes, _U8),
    ord("V"): (lambda m: m.push_text(m.line(), "raw-unicode-escape"), None),
    ord("X"): (lambda m, size: m.push_text(m.take(size), "utf-8"), _U4),
    0x8C: (lambda m, size: m.push_text(m.take(size), "utf-8"), _BYTE),
    0x8D: (lambda m, size: m.push_text(m.take(size), "utf-8"), _U8),
    ord("("): (Machine.mark, None),
    ord("]"): (lambda m: m.push([]), None),
    ord("l"): (lambda m: m.push(m.since_mark()), None),
    ord("a"): (lambda m: m.extend(m.pop(1)), None),
    ord("e"): (lambda m: m.extend(m.since_mark()), None),
    ord(")"): (lambda m: m.push(()), None),
    ord("t"): (lambda m: m.push(tuple(m.since_mark())), None),
    0x85: (lambda m: m.push(tuple(m.pop(1))), None),
    0x86: (lambda m: m.push(tuple(m.pop(2))), None),
    0x87: (lambda m: m.push(tuple(m.pop(3))), None),
    ord("}"): (lambda m: m.push({}), None),
    ord("d"): (Machine.push_dict, None),
    ord("s"): (lambda m: m.update(m.pop(2)), None),
    ord("u"): (lambda m: m.update(m.since_mark()), None),
    ord("p"): (lambda m: m.memoize(int(m.digits())), None),
    ord("q"): (Machine.memoize, _BYTE),
    ord("r"): (Machine.memoize, _U4),
    0x94: (lambda m: m.memoize(len(m.memo)), None),
    ord("g"): (lambda m: m.recall(int(m.digits())), None),
    ord("h"): (Machine.recall, _BYTE),
    ord("j"): (Machine.recall, _U4),
    ord("c"): (lambda m: m.push_name(str(m.line(), "ascii"), str(m.line(), "ascii")), None),
    0x93: (Machine.stack_name, None),
    ord("R"): (Machine.call, None),
    ord("b"): (Machine.build, None),
    ord("Q"): (Machine.refer, None),
}
_STOP, _BYTE_INT = ord("."), ord("K")
_BYTE_INTS = re.compile(b"(?:K.){1,1000}", re.DOTALL)  # as many as the pickler writes at once


def _is_wide(raw: memoryview, encoding: str) -> bool:
    """Whether the text has characters above U+00FF."""
    if encoding == "utf-8":
        return bool(np.frombuffer(raw, np.uint8).max() > 0xC3)  # their first bytes
    return re.search(rb"\\(U|u(?!00))", raw) is not None
