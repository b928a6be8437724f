import os
import stat
import threading
from pathlib import Path

import pytest

from gpucnn.errors import ArgumentError, OutputError
from gpucnn.files import refuse_same_file, write_whole

posix = pytest.mark.skipif(os.name != "posix", reason="signals and links of POSIX")


def test_pieces_are_written_in_order_and_a_str_as_utf8(tmp_path):
    write_whole(tmp_path / "a", iter([b"one ", memoryview(b"two")]))
    write_whole(tmp_path / "b", "ä")
    assert (tmp_path / "a").read_bytes() == b"one two"
    assert (tmp_path / "b").read_bytes() == "ä".encode()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@posix
@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_the_mode_follows_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


@posix
def test_a_link_stays_and_the_file_that_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/file")
    for text in ("dangling", "again"):
        write_whole(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == text
    assert os.listdir(tmp_path / "disk") == ["file"]


@posix
def test_a_device_or_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(OutputError, match=r"\(not a regular file\): choose the name of a file"):
            write_whole(path, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_threads_that_write_one_path_leave_one_whole_file(tmp_path):
    texts = [str(i) * 100_000 for i in range(4)]
    errors = []

    def write(text):
        try:
            for _ in range(5):
                write_whole(tmp_path / "a", text)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "a").read_text() in texts
    assert os.listdir(tmp_path) == ["a"]


def test_litter_of_a_killed_process_that_had_our_pid_is_removed(tmp_path):
    """In a container each run may have the same pid."""
    litter = tmp_path / f".a.{os.getpid()}.0123abcd.part"
    litter.touch()
    own = tmp_path / ".a.notes.part"
    own.touch()
    write_whole(tmp_path / "a", "x")
    assert sorted(os.listdir(tmp_path)) == [".a.notes.part", "a"]


@posix
def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def recorded(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    write_whole(tmp_path / "a", "x")
    assert calls == ["file", "rename", "folder"]


@posix
def test_a_limit_on_file_sizes_is_named_and_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"\(File too large\): .* \(ulimit -f\)"):
            write_whole(path, b"x" * 3_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


@posix
@pytest.mark.parametrize("how", ["the same", "relative", "link", "hard link"])
def test_a_target_that_is_the_source_by_any_name_is_refused(how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, target = tmp_path / "a", tmp_path / "b"
    source.touch()
    if how == "link":
        target.symlink_to("a")
    elif how == "hard link":
        os.link(source, target)
    else:
        target = source if how == "the same" else Path("./a")
    with pytest.raises(ArgumentError, match=r"convert: .* is the file to read"):
        refuse_same_file("convert", source, target)
    refuse_same_file("convert", source, tmp_path / "new")
