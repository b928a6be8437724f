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
