"""Temporary folders: removed at the end, and by the next process if theirs was killed."""

import os
import signal
import subprocess
import sys

import pytest

from gpucnn.temporary import temporary_folder

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot lock folders")
KILLED = """
import os, signal, sys
from gpucnn.temporary import temporary_folder
with temporary_folder("test-", sys.argv[1]) as folder:
    (folder / "file").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_folder_is_removed_at_the_end_with_its_files(tmp_path):
    with temporary_folder("test-", tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith("test-")
        (folder / "inner").mkdir()
    assert list(tmp_path.iterdir()) == []


@posix
def test_the_folder_of_a_killed_process_is_removed_by_the_next_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (abandoned,) = tmp_path.iterdir()
    with temporary_folder("test-", tmp_path) as folder:
        assert not abandoned.exists()
        assert folder.exists()


@posix
def test_folders_in_use_and_other_names_stay(tmp_path):
    other = tmp_path / "another"
    other.mkdir()
    link = tmp_path / "test-link"
    link.symlink_to(other)
    with temporary_folder("test-", tmp_path) as first, temporary_folder("test-", tmp_path):
        assert first.exists()
    assert other.exists()
    assert link.is_symlink()


@posix
def test_another_users_folder_stays(tmp_path, monkeypatch):
    (tmp_path / "test-other").mkdir()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with temporary_folder("test-", tmp_path):
        assert (tmp_path / "test-other").exists()
