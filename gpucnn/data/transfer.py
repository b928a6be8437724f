"""One HTTPS transfer, with limits on its time, its speed and its bytes.

A server is not trusted: it may send one byte a second, headers or chunks without end, or another
file.  So every byte, headers included, passes a meter, and nothing beyond the expected size is
written.  Importing this module imports urllib, which takes a tenth of the time of `import gpucnn`.
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    AbstractHTTPHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPRedirectHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

SCHEMES = ("https",)
FAILURES = (OSError, HTTPException, ValueError)  # what a transfer raises besides the classes below
_CHUNK = 1 << 18
_OVERHEAD = 1 << 20  # bytes allowed for headers; chunk headers may take as much as the file


class Rejected(Exception):
    """The mirror does not serve the file; asking again is pointless."""


class Busy(Exception):
    """The mirror asks to be left alone for `seconds`."""

    def __init__(self, text: str, seconds: float) -> None:
        super().__init__(text)
        self.seconds = seconds


class WrongRange(Exception):
    """The mirror answered a request for a range with another range."""


@dataclass
class Meter:
    """Limits of one transfer.

    timeout   seconds without a response or a byte
    speed     the lowest speed, in bytes per second, over each `window` seconds
    until     the time.monotonic() at which the transfer is stopped
    received  the bytes that have arrived, headers included
    """

    timeout: float
    speed: float
    window: float
    until: float
    received: int = field(default=0, init=False)
    _budget: int = field(default=0, init=False)  # the most that `received` may become
    _start: float | None = field(default=None, init=False)  # of the current window
    _before: int = field(default=0, init=False)  # bytes received before it

    def read(self, read: Callable[[Any], int | None], buffer: Any) -> int | None:
        """Call read(buffer), which returns the number of bytes; OSError beyond a limit."""
        now = time.monotonic()
        if now > self.until:
            raise TimeoutError("the time for the download is over")
        if self._start is None:
            self._start = now
        elif now - self._start > self.window:
            speed = (self.received - self._before) / (now - self._start)
            if speed < self.speed:
                raise ConnectionAbortedError(f"only {speed / 1e3:.1f} kB/s")
            self._start, self._before = now, self.received
        count = read(buffer)
        self.received += count or 0
        if self.received > self._budget:
            raise ConnectionAbortedError("sends far more bytes than the file has")
        return count

    def allow(self, size: int) -> None:
        """Allow the bytes of a file of `size` bytes and of the protocol around it."""
        self._budget = self.received + 2 * size + _OVERHEAD


def transfer(
    url: str, file: io.FileIO, size: int, meter: Meter, ranges: bool, tell: Callable[[int], object]
) -> None:
    """Append to `file` the rest of the `size` bytes that `url` serves.

    With ranges, only the missing bytes are requested; if the server sends the whole file, or
    without ranges, the file is truncated first.  tell(n) is called when the file has n bytes.

    Raises Rejected, Busy, WrongRange or one of FAILURES; what has arrived stays in the file.
    """
    meter.allow(size)
    offset = file.seek(0, io.SEEK_END) if ranges else 0
    with _open(url, offset, meter) as response:
        offset = _checked_offset(response, offset, size)
        file.truncate(offset)
        file.seek(offset)
        tell(offset)
        while offset < size:
            chunk = response.read1(min(_CHUNK, size - offset))
            if not chunk:
                raise ConnectionAbortedError(f"broke off at {offset} of {size} bytes")
            rest = memoryview(chunk)
            while rest:  # an unbuffered file may take a part only
                rest = rest[file.write(rest) :]
            offset += len(chunk)
            tell(offset)


def _checked_offset(response: Any, offset: int, size: int) -> int:
    """The position in the file of the body's first byte; an error if it is not of this file."""
    if response.headers.get_content_type() == "text/html":
        raise Rejected("sent a web page, perhaps the login page of this network")
    if response.status == 206:
        found = re.fullmatch(
            r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", "")
        )
        if found is None or int(found[1]) != offset:
            raise (WrongRange if offset else Rejected)("sent a part of the file, not the whole")
        length = found[2]
    elif response.status == 200:
        offset = 0
        length = "*" if response.length is None else str(response.length)
    else:
        raise Rejected(f"HTTP {response.status}")
    if length not in ("*", str(size)):
        raise Rejected(f"has a file of {length} bytes, expected {size}")
    return offset


def _open(url: str, offset: int, meter: Meter) -> Any:
    opener = OpenerDirector()  # without the handlers for file:, ftp: and data:
    handlers = (
        ProxyHandler(),
        _Connect(meter),
        _Redirect(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    )
    for handler in handlers:
        opener.add_handler(handler)
    headers = {"User-Agent": "gpucnn", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    _require_https(url)
    try:
        return opener.open(Request(url, headers=headers), timeout=meter.timeout)
    except HTTPError as error:
        error.close()
        text = f"HTTP {error.code} {error.reason}"
        if error.code not in (429, 503):
            raise Rejected(text) from error
        wait = error.headers.get("Retry-After", "")
        raise Busy(text, float(wait) if re.fullmatch(r"\d{1,9}", wait) else 0.0) from error
    except URLError as error:
        raise error.reason if isinstance(error.reason, OSError) else error from None


def _require_https(url: str) -> None:
    if urlsplit(url).scheme not in SCHEMES:
        raise Rejected(f"refused, because it is not https: {url}")


class _Redirect(HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connect(AbstractHTTPHandler):
    """Opens connections whose bytes pass the meter."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def https_open(self, request: Request) -> Any:
        return self.do_open(self._metered(HTTPSConnection), request)

    def http_open(self, request: Request) -> Any:
        return self.do_open(self._metered(HTTPConnection), request)

    https_request = AbstractHTTPHandler.do_request_
    http_request = AbstractHTTPHandler.do_request_

    def _metered(self, connection: Any) -> Any:
        def connect(host: str, **options: Any) -> HTTPConnection:
            made: Any = connection(host, **options)
            made.response_class = lambda socket, *rest, **named: HTTPResponse(
                _Socket(socket, self._meter),  # type: ignore[arg-type]  # it uses makefile only
                *rest,
                **named,
            )
            return made  # type: ignore[no-any-return]

        return connect


@dataclass(frozen=True)
class _Socket:
    """The part of a socket that HTTPResponse uses."""

    socket: Any
    meter: Meter

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Metered(self.socket.makefile(mode, buffering=0), self.meter))


class _Metered(io.RawIOBase):
    """A stream whose reads pass the meter."""

    def __init__(self, stream: Any, meter: Meter) -> None:
        self._stream, self._meter = stream, meter

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return self._meter.read(self._stream.readinto, buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()
