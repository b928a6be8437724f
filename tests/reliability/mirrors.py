"""A server on 127.0.0.1 that misbehaves as the path of the request says."""

import contextlib
import gzip
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np

CONTENT = np.random.default_rng(0).integers(0, 256, 40_000).astype(np.uint8).tobytes()
SIZE = len(CONTENT)
_PAGE = b"<html><form action='/login'>Welcome to our network</form></html>"
_ENDLESS = b"y" * 65_536


def head(status="200 OK", *lines, length=None):
    lines = [f"HTTP/1.1 {status}", *lines]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode()


def chunk(content):
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


CHUNKED = "Transfer-Encoding: chunked"


def part(start, stop, total=SIZE, **options):
    return head(
        "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{total}", **options
    )


class Mirror(socketserver.ThreadingTCPServer):
    """asked lists (path, first byte requested or 0)."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.stop = [], threading.Event()
        self.tls = None

    def url(self, fault, scheme="http"):
        return f"{scheme}://localhost:{self.server_address[1]}/{fault}"

    def handle_error(self, request, client_address):
        pass  # the client went away, or refused the certificate


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True)
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            more = self.request.recv(4096)
            if not more:
                return
            asked += more
        path = asked.split()[1].decode().strip("/")
        found = re.search(rb"Range: bytes=(\d+)-", asked)
        start = int(found[1]) if found else 0
        self.server.asked.append((path, start))
        with contextlib.suppress(OSError):
            getattr(self, path)(start)

    def finish(self):
        self.request.close()  # with TLS, another socket than the server's

    def send(self, *parts):
        for content in parts:
            self.request.sendall(content)

    def forever(self, content):
        while not self.server.stop.is_set():
            self.send(content)

    def drip(self, content, pause=0.02):
        for byte in content:
            self.send(bytes([byte]))
            if self.server.stop.wait(pause):
                return

    def wait(self):
        self.server.stop.wait(10)

    def reset(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()

    # --- good mirrors ---

    def good(self, start):
        answer = part(start, SIZE, length=SIZE - start) if start else head(length=SIZE)
        self.send(answer, CONTENT[start:])

    def good_in_chunks(self, start):
        self.send(head("200 OK", CHUNKED), chunk(CONTENT), chunk(b""))

    def steady(self, start):
        self.send(part(start, SIZE, length=SIZE - start) if start else head(length=SIZE))
        for at in range(start, SIZE, 2000):  # 66 kB/s
            self.send(CONTENT[at : at + 2000])
            time.sleep(0.03)

    # --- silent or slow ---

    def silent(self, start):
        self.wait()

    def silent_in_headers(self, start):
        self.send(head(length=SIZE)[:20])
        self.wait()

    def silent_in_body(self, start):
        self.send(head(length=SIZE), CONTENT[: SIZE // 2])
        self.wait()

    def drips_the_status(self, start):
        self.drip(head(length=SIZE))

    def drips_headers(self, start):
        self.send(b"HTTP/1.1 200 OK\r\n")
        self.drip(b"X: y\r\n" * 1000)

    def drips_the_body(self, start):
        self.send(head(length=SIZE))
        self.drip(CONTENT)

    def drips_a_chunk_size(self, start):
        self.send(head("200 OK", CHUNKED))
        self.drip(b"0" * 10_000)

    def fast_then_drips(self, start):
        self.send(head(length=SIZE), CONTENT[:20_000])
        self.drip(CONTENT[20_000:])

    # --- too much ---

    def three_gib(self, start):
        self.send(head(length=3 << 30))
        self.forever(_ENDLESS)

    def endless(self, start):
        self.send(head())
        self.forever(_ENDLESS)

    def endless_chunks(self, start):
        self.send(head("200 OK", CHUNKED))
        self.forever(chunk(_ENDLESS))

    def endless_tiny_chunks(self, start):
        self.send(head("200 OK", CHUNKED))
        self.forever((f"1;{'x' * 60_000}\r\n").encode() + b"y\r\n")

    def endless_headers(self, start):
        self.send(b"HTTP/1.1 200 OK\r\n")
        self.forever(b"X: y\r\n" * 1000)

    def endless_header(self, start):
        self.send(b"HTTP/1.1 200 OK\r\nX: ")
        self.forever(_ENDLESS)

    def endless_status(self, start):
        self.send(b"HTTP/1.1 200 ")
        self.forever(_ENDLESS)

    def endless_continue(self, start):
        self.forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    def endless_error_page(self, start):
        self.send(head("404 Not Found"))
        self.forever(_ENDLESS)

    def endless_redirect(self, start):
        self.send(head("302 Found", "Location: /good"))
        self.forever(_ENDLESS)

    # --- another file ---

    def other_bytes(self, start):
        self.send(head(length=SIZE), b"x" * SIZE)

    def length_too_small(self, start):
        self.send(head(length=SIZE - 1), CONTENT)

    def length_too_large(self, start):
        self.send(head(length=SIZE + 1), CONTENT)

    def length_negative(self, start):
        self.send(head(length=-5), b"x" * 5)

    def length_of_5000_digits(self, start):
        self.send(head(length="9" * 5000), b"x" * 5)

    def gzipped(self, start):
        content = gzip.compress(CONTENT)
        self.send(head("200 OK", "Content-Encoding: gzip", length=len(content)), content)

    def gzipped_in_chunks(self, start):
        content = gzip.compress(CONTENT)
        self.send(head("200 OK", "Content-Encoding: gzip", CHUNKED), chunk(content), chunk(b""))

    def portal(self, start):
        self.send(head("200 OK", "Content-Type: text/html; charset=utf-8"), _PAGE)

    def portal_without_type(self, start):
        self.send(head(), _PAGE)

    def other_offset(self, start):
        self.send(part(7, SIZE, length=SIZE - 7), CONTENT[7:])

    def other_total(self, start):
        self.send(part(start, SIZE + 9, SIZE + 9, length=SIZE + 9 - start), CONTENT[start:])

    def range_of_nonsense(self, start):
        self.send(head("206 Partial Content", "Content-Range: bytes x-y/z"), CONTENT[start:])

    def beyond_the_end(self, start):
        self.send(head("416 Range Not Satisfiable", length=0))

    def no_content(self, start):
        self.send(head("204 No Content"))

    def empty(self, start):
        self.send(head(length=0))

    def no_http(self, start):
        self.send(CONTENT)

    def escapes(self, start):
        self.send(b"HTTP/1.1 404 \x1b[2J\x1b]0;title\x07\r\n\r\n")

    # --- broken off ---

    def reset_at_once(self, start):
        self.reset()

    def reset_in_body(self, start):
        self.send(head(length=SIZE), CONTENT[: SIZE // 3])
        time.sleep(0.02)  # the client has read it
        self.reset()

    def closed_in_headers(self, start):
        self.send(head(length=SIZE)[:-4])

    def closed_in_body(self, start):
        self.send(head(length=SIZE), CONTENT[: SIZE // 3])

    def closed_in_chunk(self, start):
        self.send(head("200 OK", CHUNKED), chunk(CONTENT)[:9000])

    # --- refusals ---

    def forbidden(self, start):
        self.send(head("403 Forbidden", length=0))

    def broken(self, start):
        self.send(head("500 Internal Server Error", length=0))

    def busy_once(self, start):
        if [path for path, _ in self.server.asked].count("busy_once") > 1:
            self.good(start)
        else:
            self.send(head("429 Too Many Requests", "Retry-After: 1", length=0))

    def busy_for_a_month(self, start):
        self.send(head("503 Service Unavailable", "Retry-After: 2600000", length=0))

    def busy_until_nonsense(self, start):
        self.send(head("503 Service Unavailable", f"Retry-After: {'9' * 5000}", length=0))

    # --- redirects ---

    def redirect_to(self, place):
        self.send(head("302 Found", f"Location: {place}", length=0))

    def redirected(self, start):
        self.redirect_to("/good")

    def redirected_to_itself(self, start):
        self.redirect_to("/redirected_to_itself")

    def redirected_to_a_file(self, start):
        self.redirect_to("file:///etc/passwd")

    def redirected_to_ftp(self, start):
        self.redirect_to("ftp://localhost/x")

    def redirected_to_plain_http(self, start):
        self.redirect_to(self.server.url("good"))

    def redirected_to_nonsense(self, start):
        self.redirect_to("http://[::1")

    def redirected_nowhere(self, start):
        self.send(head("302 Found", length=0))


@contextlib.contextmanager
def serving(server) -> Iterator[Mirror]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
