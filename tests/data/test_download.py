"""Downloads from a server on 127.0.0.1 that truncates, stalls or sends wrong data on request."""

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from gpucnn.data import DataNotFound, cifar, download, mnist, transfer

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000).astype(np.uint8).tobytes()
EXPECTED = download.Expected(hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


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
        if behaviour == "nolength":  # more than the file, and no end
            rest += b"y" * 1_000_000
        elif behaviour == "cut":  # sends a third of the rest, then closes the connection
            rest = rest[: len(rest) // 3]
        elif behaviour == "stall":
            self.wfile.write(rest[:1000])
            self.wfile.flush()
            self.server.release.wait(10)
            return
        elif behaviour == "slow":
            for i in range(0, len(rest), 15_000):
                self.wfile.write(rest[i : i + 15_000])
                self.wfile.flush()
                if self.server.release.wait(0.03):
                    return
            return
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch):
    """Allow the servers of these tests, which do without TLS, and use no proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transfer, "SCHEMES", ("http",))


@pytest.fixture
def server():
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


def fetch(server, path, *behaviours):
    base = f"http://127.0.0.1:{server.server_port}"
    return download.fetch([f"{base}/{b}/file.bin" for b in behaviours], path, EXPECTED, quiet=True)


def test_a_download_leaves_the_whole_file_and_nothing_else(server, tmp_path):
    path = tmp_path / "new" / "file.bin"
    assert fetch(server, path, "good") == path
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.asked == [("/good/file.bin", None)]


def test_a_server_need_not_send_the_length_and_what_it_sends_beyond_the_file_is_ignored(
    server, tmp_path
):
    assert fetch(server, tmp_path / "f", "nolength").read_bytes() == CONTENT


@pytest.mark.parametrize("have", [1, 1000, len(CONTENT) - 1])
def test_a_partial_file_is_resumed(server, tmp_path, have):
    (tmp_path / "f.part").write_bytes(CONTENT[:have])
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    assert server.asked == [("/good/file.bin", f"bytes={have}-")]


def test_a_complete_partial_file_needs_no_transfer(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    assert server.asked == []


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
    monkeypatch.setattr(download, "TIMEOUT", 1.0)
    assert fetch(server, tmp_path / "f", "stall", "good").read_bytes() == CONTENT
    assert server.asked[1] == ("/good/file.bin", "bytes=1000-")


def test_a_slow_mirror_is_abandoned_for_a_faster_one(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SPEED_WINDOW", 0.1)
    monkeypatch.setattr(download, "MINIMUM_SPEED", 1e6)
    assert fetch(server, tmp_path / "f", "slow", "good").read_bytes() == CONTENT
    assert server.asked[1][0] == "/good/file.bin"
    assert server.asked[1][1] is not None  # it resumes


def test_a_mirror_slower_than_any_use_is_left_in_the_last_round_too(server, tmp_path, monkeypatch):
    for name, value in {"SPEED_WINDOW": 0.1, "MINIMUM_SPEED": 1e6, "SLOWEST": 9e5}.items():
        monkeypatch.setattr(download, name, value)
    with pytest.raises(DataNotFound, match=r"only \d+\.\d kB/s"):
        fetch(server, tmp_path / "f", "404", "slow")
    assert [path for path, _ in server.asked].count("/slow/file.bin") == 2


def test_a_download_is_not_repeated_while_another_thread_has_it(server, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(server, tmp_path / "f", "slow")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "f"] * 2
    assert server.asked == [("/slow/file.bin", None)]
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_a_part_that_another_process_renamed_before_it_was_locked_is_left_alone(
    server, tmp_path, monkeypatch
):
    lock = download._lock

    def finished_meanwhile(file):
        monkeypatch.setattr(download, "_lock", lock)
        (tmp_path / "f.part").rename(tmp_path / "f")
        (tmp_path / "f").write_bytes(CONTENT)
        return lock(file)

    monkeypatch.setattr(download, "_lock", finished_meanwhile)
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    assert server.asked == []
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_another_process_is_waited_for_but_not_for_ever(server, tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(download, "GRACE", 0.15 - len(CONTENT) / download.SLOWEST)
    url = f"http://127.0.0.1:{server.server_port}/good/file.bin"
    with open(tmp_path / "f.part", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataNotFound, match="another process has been downloading it for too"):
            download.fetch([url], tmp_path / "f", EXPECTED)
    assert capsys.readouterr().err == "waiting: another process is downloading f\n"
    assert server.asked == []


def test_the_speed_is_that_of_the_last_window_not_of_the_whole_transfer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(transfer.time, "monotonic", lambda: now[0])
    meter = transfer.Meter(timeout=1, speed=1000, window=10, until=1e9)
    meter.allow(1 << 30)
    for now[0], count in ((0, 50_000_000), (11, 50_000_000), (22, 100)):
        meter.read(lambda buffer, count=count: count, None)
    now[0] = 33
    with pytest.raises(ConnectionAbortedError, match=r"only 0\.0 kB/s"):
        meter.read(lambda buffer: 100, None)


def test_without_locks_a_download_has_a_part_of_its_own(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_lock", lambda file: None)
    assert fetch(server, tmp_path / "f", "good").read_bytes() == CONTENT
    with pytest.raises(DataNotFound, match="broke off"):
        fetch(server, tmp_path / "g", "cut")
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]


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
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    with socket.socket() as silent:  # accepts connections and never responds
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        urls = [f"http://127.0.0.1:{silent.getsockname()[1]}/{i}" for i in range(40)]
        with pytest.raises(DataNotFound, match="timed out") as error:
            download.fetch(urls, tmp_path / "f", EXPECTED, quiet=True)
    assert str(error.value).count("timed out") <= 4  # of forty


def test_a_refused_connection_is_a_failure(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(DataNotFound, match=r"127.0.0.1: .*refused"):
        download.fetch([f"http://127.0.0.1:{port}/x"], tmp_path / "f", EXPECTED, quiet=True)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "ftp://127.0.0.1/x", "file:///x", "nonsense"]
)
def test_only_https_is_used(tmp_path, monkeypatch, url):
    monkeypatch.undo()
    with pytest.raises(DataNotFound, match="refused, because it is not https"):
        download.fetch([url], tmp_path / "f", EXPECTED, quiet=True)


def test_every_official_mirror_is_https_and_every_size_is_stated():
    versions = (*cifar._CIFAR10, *cifar._CIFAR100)
    collections = (mnist._MNIST, mnist._FASHION)
    for url in (u for v in versions for u in v.urls):
        assert url.startswith("https://")
    for url in (u for c in collections for u in c.mirrors):
        assert url.startswith("https://")
    assert all(160e6 < v.size < 171e6 for v in versions)
    assert all(4e3 < expected.size < 27e6 for c in collections for expected in c.files.values())


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataNotFound, match=r"cannot be written(?s:.*)GPUCNN_DATA"):
        fetch(server, tmp_path / "file" / "f", "good")
    assert server.asked == []


def test_a_full_disk_is_named_and_no_other_mirror_is_tried(server, tmp_path):
    resource = pytest.importorskip("resource", reason="limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # writes fail beyond it
    try:
        with pytest.raises(DataNotFound, match=r"f: cannot be written \(File too large\)"):
            fetch(server, tmp_path / "f", "good", "good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(server.asked) == 1
    assert not (tmp_path / "f").exists()


def test_the_bar_shows_name_and_size(server, tmp_path, capsys):
    url = f"http://127.0.0.1:{server.server_port}/good/file.bin"
    download.fetch([url], tmp_path / "file.bin", EXPECTED)
    assert "file.bin" in capsys.readouterr().err
