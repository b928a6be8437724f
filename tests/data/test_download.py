"""Downloads from a server on 127.0.0.1 that truncates, stalls or sends wrong data on request."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gpucnn.data import DataNotFound, download

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The path selects the behaviour; its last letter distinguishes mirrors."""

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        behaviour = self.path.split("/")[1]
        if behaviour.isdigit():
            self.send_error(int(behaviour))
            return
        content = b"x" * len(CONTENT) if behaviour == "wrong" else CONTENT
        start = int(asked[6:-1]) if asked and behaviour != "norange" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if asked and behaviour != "norange" else 200)
        if asked and behaviour != "norange":
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if behaviour != "nolength":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if behaviour == "cut":  # sends a third of the rest, then closes the connection
            rest = rest[: len(rest) // 3]
        elif behaviour == "stall":
            self.wfile.write(rest[:1000])
            self.wfile.flush()
            self.server.release.wait(10)
            return
        elif behaviour == "slow":
            for i in range(0, len(rest), 5000):
                self.wfile.write(rest[i : i + 5000])
                self.wfile.flush()
                if self.server.release.wait(0.03):
                    return
            return
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    server.asked, server.release = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, path, *behaviours, sha256=SHA256):
    base = f"http://127.0.0.1:{server.server_port}"
    return download.fetch([f"{base}/{b}/file.bin" for b in behaviours], path, sha256, quiet=True)


def test_a_download_leaves_the_whole_file_and_nothing_else(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    assert fetch(server, path, "good") == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.asked == [("/good/file.bin", None)]


def test_a_server_need_not_send_the_length(server, tmp_path):
    assert fetch(server, tmp_path / "f", "nolength").read_bytes() == CONTENT


@pytest.mark.parametrize("have", [1, 1000, len(CONTENT) - 1])
def test_a_partial_file_is_resumed(server, tmp_path, have):
    (tmp_path / "f.part").write_bytes(CONTENT[:have])
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    assert server.asked == [("/good/file.bin", f"bytes={have}-")]


def test_a_complete_partial_file_needs_no_transfer(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"other bytes", CONTENT + b"more", b"x" * len(CONTENT)])
def test_a_partial_file_with_other_contents_is_discarded(server, tmp_path, part):
    (tmp_path / "f.part").write_bytes(part)
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT


def test_a_server_that_ignores_the_range_restarts_the_download(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:1000])
    assert fetch(server, tmp_path / "f", "norange").read_bytes() == CONTENT


def test_a_broken_connection_resumes_at_the_next_mirror(server, tmp_path):
    assert fetch(server, tmp_path / "f", "cut", "good").read_bytes() == CONTENT
    assert server.asked[1] == ("/good/file.bin", f"bytes={len(CONTENT) // 3}-")


def test_a_failed_call_keeps_its_data_for_the_next(server, tmp_path):
    with pytest.raises(DataNotFound, match="broke off at"):
        fetch(server, tmp_path / "f", "cut")
    have = (tmp_path / "f.part").stat().st_size
    assert have > len(CONTENT) // 3  # two attempts
    assert not (tmp_path / "f").exists()
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    assert server.asked[-1][1] == f"bytes={have}-"


def test_a_stalled_connection_resumes_at_the_next_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    assert fetch(server, tmp_path / "f", "stall", "good").read_bytes() == CONTENT
    assert server.asked[1] == ("/good/file.bin", "bytes=1000-")


def test_a_slow_mirror_is_abandoned_for_a_faster_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.1)
    monkeypatch.setattr(download, "MINIMUM_SPEED", 1e6)
    assert fetch(server, tmp_path / "f", "slow", "good").read_bytes() == CONTENT
    assert server.asked[1][0] == "/good/file.bin"
    assert server.asked[1][1] is not None  # it resumes


def test_a_slow_mirror_is_used_if_it_is_the_only_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.1)
    monkeypatch.setattr(download, "MINIMUM_SPEED", 1e6)
    assert fetch(server, tmp_path / "f", "404", "slow").read_bytes() == CONTENT
    assert fetch(server, tmp_path / "g", "slow", "404").read_bytes() == CONTENT


@pytest.mark.parametrize("bad", ["404", "500", "wrong"])
def test_a_bad_mirror_is_skipped_and_not_tried_again(server, tmp_path, bad):
    assert fetch(server, tmp_path / "f", bad, "good").read_bytes() == CONTENT
    with pytest.raises(DataNotFound):
        fetch(server, tmp_path / "g", bad, "403")
    assert [path for path, _ in server.asked].count(f"/{bad}/file.bin") == 2


def test_the_error_lists_each_mirror_and_the_remedy(server, tmp_path):
    with pytest.raises(DataNotFound) as error:
        fetch(server, tmp_path / "f", "404", "wrong")
    message = str(error.value)
    assert "f could not be downloaded" in message
    assert "HTTP 404" in message
    assert "wrong SHA-256" in message
    assert f"in {tmp_path}" in message
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_gives_up_within_its_patience(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    with socket.socket() as silent:  # accepts connections and never responds
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}/{i}" for i in range(40)]
        with pytest.raises(DataNotFound, match="timed out") as error:
            download.fetch(urls, tmp_path / "f", SHA256, quiet=True)
    assert str(error.value).count("timed out") <= 4  # of forty


def test_a_refused_connection_and_an_invalid_url_are_failures(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DataNotFound, match=r"127.0.0.1: .*refused"):
        download.fetch([f"http://127.0.0.1:{port}/x"], tmp_path / "f", SHA256, quiet=True)
    with pytest.raises(DataNotFound, match="unknown url type"):
        download.fetch(["nonsense"], tmp_path / "f", SHA256, quiet=True)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataNotFound, match=r"cannot be written(?s:.*)GPUCNN_DATA"):
        fetch(server, tmp_path / "file" / "f", "good")
    assert server.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_and_no_other_mirror_is_tried(server, tmp_path, monkeypatch):
    copy = download._copy

    def to_full_disk(response, file, bar, minimum_speed):
        with open("/dev/full", "wb", buffering=0) as full:
            copy(response, full, bar, minimum_speed)

    monkeypatch.setattr(download, "_copy", to_full_disk)
    with pytest.raises(DataNotFound, match=r"f: cannot be written \(No space left on device\)"):
        fetch(server, tmp_path / "f", "good", "good")
    assert len(server.asked) == 1


def test_the_bar_shows_name_and_size(server, tmp_path, capsys):
    url = f"http://127.0.0.1:{server.server_port}/good/file.bin"
    download.fetch([url], tmp_path / "file.bin", SHA256)
    assert "file.bin" in capsys.readouterr().err
