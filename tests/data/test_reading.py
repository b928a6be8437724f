import os
import socket
import sys

import pytest

from gpucnn.data.reading import open_regular, read_bounded
from gpucnn.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of Unix")


def test_a_file_is_read_if_it_is_no_longer_than_allowed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(path)
    assert read_bounded(path, 5, "5 bytes") == b"12345"
    assert read_bounded(tmp_path / "link", 9, "9 bytes") == b"12345"
    with pytest.raises(DataError, match=r"a: expected 4 bytes, got 5 bytes\n"):
        read_bounded(path, 4, "4 bytes")


def test_a_sparse_file_of_a_terabyte_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="got 1,099,511,627,776 bytes"):
        read_bounded(tmp_path / "a", 1000, "at most 1000 bytes")


def test_what_is_not_a_file_is_refused_by_name_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in {
        "pipe": "expected a file, got a pipe",
        "folder": "got a folder",
        "device": "got a device",
        "dangling": "there is no such file",
        "loop": "cannot be read",
        "x" * 5000: "cannot be read",
    }.items():
        with pytest.raises(DataError, match=f"{name}: .*{reason}"):
            open_regular(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        with pytest.raises(DataError, match="socket: cannot be read"):
            open_regular(tmp_path / "socket")


def test_no_descriptor_is_left_open(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for _ in range(5):
        with pytest.raises(DataError):
            open_regular(tmp_path / "pipe")
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read_is_named(tmp_path):
    (tmp_path / "a").touch(0o000)
    with pytest.raises(DataError, match=r"a: cannot be read \(Permission denied\)"):
        open_regular(tmp_path / "a")


@pytest.mark.parametrize("change", [b"12", b"1234567"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change):
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    fdopen = os.fdopen

    def changed(descriptor, mode):
        file = fdopen(descriptor, mode)

        class Changing:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def fileno(self):
                return file.fileno()

            def read(self, size):
                path.write_bytes(change)  # after the size was checked
                return file.read(size)

        return Changing()

    monkeypatch.setattr(os, "fdopen", changed)
    with pytest.raises(DataError, match="its size changed from 5 bytes"):
        read_bounded(path, 100, "at most 100 bytes")
