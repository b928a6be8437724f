"""Downloads from mirrors that are slow, broken or hostile, and by several processes at once.

Every download ends with the right file or with a DataNotFound that gives the reason for each
mirror; a file that is not complete and verified never has the final name.
"""

import hashlib
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reliability import mirrors
from reliability.mirrors import CONTENT, SIZE
from reliability.tally import bounded

from gpucnn.data import DataNotFound, download, transfer

EXPECTED = download.Expected(hashlib.sha256(CONTENT).hexdigest(), SIZE)
SETTINGS = {
    "TIMEOUT": 0.3,
    "PATIENCE": 2.0,
    "MINIMUM_SPEED": 200e3,
    "SLOWEST": 20e3,
    "SPEED_WINDOW": 0.2,
}
SLOW = "a mirror that is silent or sends a byte now and then"
ENDLESS = "a mirror that sends a body, headers or chunks without end"
OTHER = "a mirror that serves another file, a login page or a wrong range"
BROKEN = "a connection that is refused, reset or closed early"
BUSY = "a mirror that answers 403, 429, 500 or 503"
REDIRECT = "a redirect to a file, to plain http, in a loop or to nonsense"
TLS = "a TLS or DNS failure"

# Fault: its row in the table, and the reason given if there is no other mirror; None if the
# download succeeds all the same.
FAULTS = {
    "silent": (SLOW, "timed out"),
    "silent_in_headers": (SLOW, "timed out"),
    "silent_in_body": (SLOW, "timed out"),
    "drips_the_status": (SLOW, r"only 0\.\d kB/s"),
    "drips_headers": (SLOW, r"only 0\.\d kB/s"),
    "drips_the_body": (SLOW, r"only \d+\.\d kB/s"),
    "drips_a_chunk_size": (SLOW, r"only \d+\.\d kB/s"),
    "fast_then_drips": (SLOW, r"only \d+\.\d kB/s"),
    "steady": (SLOW, None),
    "three_gib": (ENDLESS, "has a file of 3221225472 bytes, expected 40000"),
    "endless": (ENDLESS, "wrong SHA-256"),
    "endless_chunks": (ENDLESS, "wrong SHA-256"),
    "endless_tiny_chunks": (ENDLESS, "far more bytes than the file has"),
    "endless_headers": (ENDLESS, "got more than 100 headers"),
    "endless_header": (ENDLESS, "header line"),
    "endless_status": (ENDLESS, "status line"),
    "endless_continue": (ENDLESS, "far more bytes than the file has"),
    "endless_error_page": (ENDLESS, "HTTP 404 Not Found"),
    "endless_redirect": (ENDLESS, "far more bytes than the file has"),
    "other_bytes": (OTHER, "wrong SHA-256"),
    "length_too_small": (OTHER, "has a file of 39999 bytes, expected 40000"),
    "length_too_large": (OTHER, "has a file of 40001 bytes, expected 40000"),
    "length_negative": (OTHER, "broke off at 5 of 40000"),
    "length_of_5000_digits": (OTHER, "localhost: "),
    "gzipped": (OTHER, r"has a file of \d+ bytes, expected 40000"),
    "gzipped_in_chunks": (OTHER, "wrong SHA-256"),
    "portal": (OTHER, "a web page, perhaps the login page of this network"),
    "portal_without_type": (OTHER, "broke off at 64 of 40000"),
    "other_offset": (OTHER, "sent a part of the file"),
    "other_total": (OTHER, "has a file of 40009 bytes, expected 40000"),
    "range_of_nonsense": (OTHER, "sent a part of the file"),
    "beyond_the_end": (OTHER, "HTTP 416"),
    "no_content": (OTHER, "HTTP 204"),
    "empty": (OTHER, "has a file of 0 bytes"),
    "no_http": (OTHER, "localhost: "),
    "escapes": (OTHER, r"HTTP 404 \\x1b\[2J"),
    "reset_at_once": (BROKEN, "reset"),
    "reset_in_body": (BROKEN, "reset|broke off"),
    "closed_in_headers": (BROKEN, "localhost: "),
    "closed_in_body": (BROKEN, r"broke off at \d+ of 40000"),
    "closed_in_chunk": (BROKEN, "IncompleteRead"),
    "forbidden": (BUSY, "HTTP 403 Forbidden"),
    "broken": (BUSY, "HTTP 500"),
    "busy_once": (BUSY, None),
    "busy_for_a_month": (BUSY, "HTTP 503"),
    "busy_until_nonsense": (BUSY, "HTTP 503"),
    "redirected": (REDIRECT, None),
    "redirected_to_itself": (REDIRECT, "HTTP 302"),
    "redirected_to_a_file": (REDIRECT, "HTTP 302|not https"),
    "redirected_to_ftp": (REDIRECT, "refused, because it is not https: ftp:"),
    "redirected_to_nonsense": (REDIRECT, "Invalid IPv6 URL"),
    "redirected_nowhere": (REDIRECT, "HTTP 302"),
}


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setattr(download, name, value)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(transfer, "SCHEMES", ("http",))


@pytest.fixture
def mirror():
    with mirrors.serving(mirrors.Mirror()) as server:
        yield server


def fetch(path, *urls):
    """The downloaded bytes, or the error's text; asserts what holds for every download."""
    try:
        download.fetch(urls, path, EXPECTED, quiet=True)
    except DataNotFound as error:
        assert not path.exists()
        left = list(path.parent.iterdir())
        assert left in ([], [path.with_name("file.bin.part")])
        assert all(part.stat().st_size <= SIZE for part in left)
        return str(error)
    assert list(path.parent.iterdir()) == [path]
    return path.read_bytes()


@pytest.mark.parametrize("have", [0, 1000], ids=["whole", "resumed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_mirror_beside_a_good_one_costs_nothing_but_time(
    mirror, tmp_path, tally, fault, have
):
    path = tmp_path / "file.bin"
    if have:
        path.with_name("file.bin.part").write_bytes(CONTENT[:have])
    with tally(FAULTS[fault][0]), bounded():
        assert fetch(path, mirror.url(fault), mirror.url("good")) == CONTENT


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_mirror_alone_ends_in_its_reason_and_a_later_call_succeeds(
    mirror, tmp_path, tally, fault
):
    path, (row, reason) = tmp_path / "file.bin", FAULTS[fault]
    with tally(row), bounded():
        found = fetch(path, mirror.url(fault))
        if reason is None:
            assert found == CONTENT
        else:
            assert not isinstance(found, bytes)
            assert re.search(reason, found), found
            assert "\x1b" not in found
            assert fetch(path, mirror.url("good")) == CONTENT


def test_a_mirror_may_send_the_file_in_chunks(mirror, tmp_path):
    assert fetch(tmp_path / "file.bin", mirror.url("good_in_chunks")) == CONTENT


def test_a_whole_round_of_bad_mirrors_before_a_good_one(mirror, tmp_path, tally):
    bad = ["portal_without_type", "other_bytes", "closed_in_body", "endless", "drips_the_body"]
    with tally("five bad mirrors before a good one"), bounded():
        found = fetch(tmp_path / "file.bin", *map(mirror.url, bad), mirror.url("good"))
        assert found == CONTENT


def test_the_time_of_a_download_is_limited(mirror, tmp_path, monkeypatch, tally):
    monkeypatch.setattr(download, "GRACE", 0.3 - SIZE / download.SLOWEST)
    monkeypatch.setattr(download, "SPEED_WINDOW", 9.0)
    with tally(SLOW), bounded(seconds=30):
        found = fetch(tmp_path / "file.bin", *[mirror.url("drips_the_body")] * 9)
        assert "the time for the download is over" in found


# --- the network below HTTP ---


@pytest.fixture
def tls(mirror, monkeypatch):
    """The mirror, over TLS."""
    monkeypatch.setattr(transfer, "SCHEMES", ("https",))
    mirror.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    mirror.tls.load_cert_chain(Path(__file__).with_name("localhost.pem"))
    return mirror


def test_a_trusted_certificate_is_accepted(tls, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).with_name("localhost.pem")))
    assert fetch(tmp_path / "file.bin", tls.url("good", "https")) == CONTENT


def test_an_untrusted_certificate_is_refused(tls, tmp_path, tally):
    with tally(TLS), bounded():
        found = fetch(tmp_path / "file.bin", tls.url("good", "https"))
        assert "certificate" in found
    assert tls.asked == []


def test_a_redirect_from_https_to_plain_http_is_refused(tls, tmp_path, monkeypatch, tally):
    monkeypatch.setenv("SSL_CERT_FILE", str(Path(__file__).with_name("localhost.pem")))
    with tally(REDIRECT), bounded():
        found = fetch(tmp_path / "file.bin", tls.url("redirected_to_plain_http", "https"))
        assert "refused, because it is not https: http://localhost" in found


def test_a_server_without_tls_is_refused(mirror, tmp_path, monkeypatch, tally):
    monkeypatch.setattr(transfer, "SCHEMES", ("https",))
    with tally(TLS, times=2), bounded():
        assert "localhost: " in fetch(tmp_path / "file.bin", mirror.url("good", "https"))
        assert "not https" in fetch(tmp_path / "file.bin", mirror.url("good"))
    assert mirror.asked == []


def test_a_host_that_does_not_exist_is_a_reason(mirror, tmp_path, tally):
    names = ["mirror.invalid", "a" * 70, "a..b", "[::1"]
    with tally(TLS, times=len(names)), bounded():
        for name in names:
            assert fetch(tmp_path / "file.bin", f"http://{name}/x", mirror.url("good")) == CONTENT
            (tmp_path / "file.bin").unlink()


def test_a_refused_connection_is_a_reason(mirror, tmp_path, tally):
    with mirrors.socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
    with tally(BROKEN), bounded():
        assert "refused" in fetch(tmp_path / "file.bin", url)


# --- several processes ---

PROGRAM = f"""
import sys
from pathlib import Path
from gpucnn.data import download, transfer
transfer.SCHEMES = ("http",)
vars(download).update({SETTINGS!r})
print("ready", flush=True)
input()
download.fetch(sys.argv[2:], Path(sys.argv[1]), download.Expected{tuple(EXPECTED)!r}, True)
"""


def ready(count, path, *urls):
    """Processes that have imported gpucnn and download after `go`."""
    command = [sys.executable, "-c", PROGRAM, str(path), *urls]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    workers = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
    assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * count
    return workers


def go(worker):
    worker.stdin.write("\n")
    worker.stdin.flush()


def test_four_processes_download_a_file_once(mirror, tmp_path, tally):
    workers = ready(4, tmp_path / "file.bin", mirror.url("steady"))
    with tally("four processes that download one file"), bounded():
        for worker in workers:
            go(worker)
        for worker in workers:
            assert (worker.communicate()[1], worker.returncode) == ("", 0)
        assert list(tmp_path.iterdir()) == [tmp_path / "file.bin"]
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [start for _, start in mirror.asked].count(0) == 1  # the rest resume this one's part


def test_a_process_takes_over_from_one_that_was_killed(mirror, tmp_path, tally):
    path = tmp_path / "file.bin"
    part = path.with_name("file.bin.part")
    first, second = ready(2, path, mirror.url("steady"))
    with tally("kill -9 of a process that downloads, while another waits"), bounded():
        go(first)
        while not (part.exists() and part.stat().st_size > 4000):
            assert first.poll() is None
            time.sleep(0.005)
        go(second)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert (second.communicate()[1], second.returncode) == ("", 0)
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == CONTENT
    assert mirror.asked[0] == ("steady", 0)
    assert all(start >= 4000 for _, start in mirror.asked[1:])  # the part was resumed
