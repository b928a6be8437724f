import builtins
import os
import pickle
import struct

import numpy as np
import pytest

from gpucnn.data.pickles import read_arrays
from gpucnn.errors import DataError


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(12, dtype=">i8").reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.zeros((1, 5)),
        np.array([True, False]),
    ],
)
def test_arrays_round_trip(array, protocol):
    back = read_arrays("x", pickle.dumps({"a": array, "n": 3}, protocol))
    assert back["n"] == 3
    assert back["a"].dtype == array.dtype
    np.testing.assert_array_equal(back["a"], array)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("posix.system|nt.system", Call(os.system, "touch {marker}")),
        ("builtins.eval|__builtin__.eval", Call(eval, "open({marker!r}, 'w')")),
        ("builtins.getattr|__builtin__.getattr", Call(getattr, "x", "y")),
        ("numpy.*load|numpy.load", Call(np.load, "{marker}")),
    ],
)
def test_a_pickle_that_calls_a_function_is_refused_without_the_call(tmp_path, protocol, name, call):
    marker = tmp_path / "called"
    function, arguments = call.call
    call = Call(function, *(a.format(marker=str(marker)) for a in arguments))
    for value in ({b"data": call}, call, {b"data": [1, (call,)]}):
        with pytest.raises(DataError, match=rf"evil: not a pickle.*({name}).*\n.*nothing"):
            read_arrays("evil", pickle.dumps(value, protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\nexec\n(S'1'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",  # STACK_GLOBAL
        b"(S'true'\nios\nsystem\n.",  # INST
        b"cnumpy\nndarray\n(I3\ntR.",  # allowed only as an argument
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy.core.multiarray\n_reconstruct\n}(S'a'\nI1\nsb.",  # state for a function
        b"cgpucnn.data.pickles\n_Array\n.",
        b"\x80\x02\x82\x01.",  # extension registry
        b"Pid\n.",  # persistent id
    ],
)
def test_handmade_pickles_are_refused(content):
    with pytest.raises(DataError, match="not a pickle of plain arrays"):
        read_arrays("evil", content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",  # announces 4 exabytes
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"x.",
        b"\x80\x02]" + b"r" + struct.pack("<I", (1 << 32) - 1) + b".",  # memo of 4 billion
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"].",
    ],
)
def test_pickles_that_ask_for_all_memory_are_refused(content):
    with pytest.raises(DataError, match="not a pickle of plain arrays"):
        read_arrays("evil", content)


def test_a_long_name_in_a_pickle_does_not_make_a_long_message():
    with pytest.raises(DataError) as error:
        read_arrays("evil", b"cos\n" + b"system " * 10_000 + b"\n.")
    assert len(str(error.value)) < 300


def test_objects_in_an_array_are_refused():
    for array in (np.array([{}], dtype=object), np.array(["text"]), np.zeros(2, "i4,i4")):
        with pytest.raises(DataError, match="not a pickle"):
            read_arrays("x", pickle.dumps({"a": array}, 2))


def test_an_array_shorter_or_longer_than_its_shape_is_refused():
    whole = pickle.dumps({"a": np.arange(10, dtype=np.uint8)}, 3)
    assert b"K\n\x85" in whole  # the shape (10,)
    for size in (9, 11):
        with pytest.raises(DataError, match="reshape"):
            read_arrays("x", whole.replace(b"K\n\x85", b"K" + bytes([size]) + b"\x85"))


def test_reading_does_not_modify_builtins():
    before = set(vars(builtins))
    with pytest.raises(DataError):
        read_arrays("evil", b"cnumpy.core.multiarray\n_reconstruct\n(N}(S'a'\nI1\nstb.")
    assert set(vars(builtins)) == before


LEGAL = {
    "labels": [0, 1, 255, 256, 65_536, -1, -(2**31), 2**40, -(2**70)] * 3,
    "filenames": ["a.png", "b'\"\\\n\t.png", "ä.png"] * 2,
    "nested": [(1, 2.5), (), [[], {"x": None}], (1, 2, 3, 4), True, False],
    "batch_label": "testing batch 1 of 1",
}


@pytest.mark.parametrize("protocol", range(6))
def test_containers_numbers_and_text_are_read_as_pickle_reads_them(protocol):
    LEGAL["again"] = LEGAL["labels"]  # the same list twice: recalled from the memo
    content = pickle.dumps(LEGAL, protocol)
    assert read_arrays("x", content) == LEGAL
    recalled = read_arrays("x", content)
    assert recalled["again"] is recalled["labels"]


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_pickle_of_python_2_is_read(protocol):
    """Handmade: Python 2 wrote bytes as their repr in protocol 0, and as BINSTRING since."""
    raw = bytes(range(256)) * 2
    if protocol == 0:
        text = b"S" + repr(raw)[1:].encode() + b"\n"
        numbers = b"(lp4\nI5\naL7L\na"
    else:
        text = b"T" + struct.pack("<i", len(raw)) + raw
        numbers = b"]r\x04\x00\x00\x00(K\x05M\x00\x01e"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I2\nI256\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
    )
    content = b"(dS'data'\np1\n" + array + text + b"tbsS'labels'\n" + numbers + b"s."
    back = read_arrays("x", content)
    np.testing.assert_array_equal(back["data"], np.tile(np.arange(256, dtype=np.uint8), (2, 1)))
    assert back["labels"] == ([5, 7] if protocol == 0 else [5, 256])


def test_a_long_array_of_protocol_0_to_2_is_read():
    array = np.random.default_rng(0).integers(0, 256, (50, 3072)).astype(np.uint8)
    for protocol in range(3):  # as Latin-1 text of more than 64 KiB
        back = read_arrays("x", pickle.dumps({"data": array}, protocol))
        np.testing.assert_array_equal(back["data"], array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02}(K\x01" + b"2\x86" * 40 + b"Nu.", "opcode 0x32"),  # DUP doubles a tuple
        (b"\x80\x02}(K\x01" + b"q\x00h\x00\x86" * 40 + b"Nu.", "dict with a tuple of . as a key"),
        (b"\x80\x02}()" + b"\x85" * 100_000 + b"Nu.", "dict with a tuple of . as a key"),
        (b"\x80\x02}(K\x01Nu.", "dict with an int as a key"),  # ints with equal hashes
        (b"\x80\x02(" + b"}" * 1_000_001 + b"l.", "more than 1,000,000 objects"),
        (b"\x80\x02](" + b"K\x01" * 1_000_001 + b"e.", "more than 1,000,000 objects"),
        (b"I" + b"1" * 5000 + b"\n.", "a number of 5000 digits"),
        (b"\x80\x02\x8b" + struct.pack("<i", 100) + b"1" * 100 + b".", "integer of 100 bytes"),
        (
            b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02\x86q\x03" + b"h\x01h\x03R" * 9,
            "as latin1",
        ),
        (
            b"(c_codecs\nencode\nq\x01(V" + b"a" * 999 + b"\nVlatin1\ntq\x02" + b"h\x01h\x02R" * 9,
            "more bytes than it contains",
        ),
        (b"X" + struct.pack("<I", 80_000) + "ä€".encode() * 16_000 + b".", "not Latin-1"),
        (b"V" + rb"\u20ac" * 16_000 + b"\n.", "not Latin-1"),
        (b"cnumpy\ndtype\n(S'u1,(1000000000,)f8'\ntR.", "not numeric"),
        (b"cnumpy\ndtype\n(S'u1'\ntR(I3\nS'4'\ntb.", "unknown byte order"),
        (b"}(Nt.", "contains a tuple of 1, not a dict"),
        (b"h\x07.", "recalls value 7"),
        (b"}]Nb.", "sets the state of a list"),
        (b"](e.K\x05", "contains a list of 0, not a dict"),
        (b"}" * 3, "ends too early"),
    ],
)
def test_a_pickle_that_takes_more_than_its_size_is_refused_by_name(content, reason):
    with pytest.raises(DataError, match=reason):
        read_arrays("evil", content)
