"""A folder served over HTTP/1.1 with byte ranges, and the client that fetches them: standard library only.

    with serve("cache") as server, RangeClient(server.url) as client:
        part = client.get("level0.bin", first=1000, num_bytes=500)

The server is for one machine and for tests: no encryption and no access control, so it binds to the loopback interface
unless told otherwise, and hands out nothing but files inside its folder.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

_BLOCK_BYTES = 64 * 1024
_MOST_BYTES = 2**28  # of a file that is fetched whole
_PACED_BLOCKS_PER_SECOND = 50
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(eq=False)
class Served:
    """A server at work; `bytes_per_second` may be changed meanwhile, None sends as fast as it can."""

    url: str
    bytes_per_second: float | None = None


@contextmanager
def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    bytes_per_second: float | None = None,
) -> Iterator[Served]:
    """Serve a folder's files until the end of the block.

    Args:
        host: 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one; `Served.url` names it.
        bytes_per_second: send each answer at this pace.

    Raises:
        ValueError: there is no such folder.
    """
    root = Path(folder).resolve()
    if not root.is_dir():
        raise ValueError(f"there is no folder {folder} to serve; make it first")
    served = Served("", bytes_per_second)
    with ThreadingHTTPServer((host, port), partial(_Handler, root, served)) as server:
        served.url = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # of an idle connection, seconds
    disable_nagle_algorithm = True  # else the body of a small answer waits 40 ms behind its head

    def __init__(self, root: Path, served: Served, *connection: object) -> None:
        self.root, self.served = root, served
        super().__init__(*connection)  # type: ignore[arg-type]  # answers the connection before it returns

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: a fetch makes a request a chunk."""

    def _answer(self, *, with_body: bool) -> None:
        path = self._inside()
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            file = path.open("rb")
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with file:
            size = file.seek(0, 2)
            wanted = self._wanted(size)
            if wanted is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{size}")
                return
            first, end, part = wanted
            self.send_response(HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - first))
            self.send_header("Accept-Ranges", "bytes")
            if part:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{size}")
            self.end_headers()
            if with_body:
                self._send(file, first, end)

    def _inside(self) -> Path | None:
        """The file asked for; None where it is none, or lies outside the folder (by "..", or by a link)."""
        try:
            path = (self.root / unquote(urlsplit(self.path).path, errors="strict").lstrip("/")).resolve()
            return path if path.is_relative_to(self.root) and path.is_file() else None
        except (ValueError, OSError):  # a zero byte, a name that is too long, letters that are none
            return None

    def _wanted(self, size: int) -> tuple[int, int, bool] | None:
        """First byte, end, and whether that is a part; None where the range holds no byte of the file. As RFC 9110 allows,
        several ranges, other units and what cannot be read are answered with the whole file."""
        header = self.headers.get("Range")
        match = _RANGE.fullmatch(header.strip()) if header else None
        if match is None or match.groups() == ("", ""):
            return 0, size, False
        first, last = match.groups()
        if len(first) > 18 or len(last) > 18:
            return None
        if first and last and int(last) < int(first):
            return 0, size, False
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        return (start, end, True) if start < end else None

    def _refuse(self, status: HTTPStatus, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _send(self, file: BinaryIO, first: int, end: int) -> None:
        file.seek(first)
        begun, sent = time.perf_counter(), 0
        while sent < end - first:
            pace = self.served.bytes_per_second
            most = (
                _BLOCK_BYTES
                if pace is None
                else max(1, min(_BLOCK_BYTES, int(pace / _PACED_BLOCKS_PER_SECOND)))
            )
            block = file.read(min(most, end - first - sent))
            if (
                not block
            ):  # the file was cut short meanwhile: what is missing must not pass for the next answer
                self.close_connection = True
                return
            try:
                self.wfile.write(block)
            except OSError:
                self.close_connection = True  # whoever asked has gone
                return
            sent += len(block)
            if pace is not None:
                time.sleep(max(0.0, begun + sent / pace - time.perf_counter()))


class RangeClient:
    """Fetches files and byte ranges over one kept connection."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"got the address {url!r}; allowed is http://host:port, as serve(folder).url gives it"
            )
        self.url, self.base = url, parts.path.rstrip("/")
        self._connection = HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)

    def __enter__(self) -> RangeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, path: str, *, first: int = 0, num_bytes: int | None = None) -> bytes:
        """Bytes of a file: all of it, or `num_bytes` from `first` on.

        Raises:
            ValueError: there is no such file, or no such bytes in it.
            ConnectionError: the server cannot be reached, or breaks off.
        """
        if num_bytes is not None and (first < 0 or num_bytes < 1):
            raise ValueError(
                f"got first={first}, num_bytes={num_bytes}; allowed are 0 or more, and 1 or more"
            )
        wanted = {} if num_bytes is None else {"Range": f"bytes={first}-{first + num_bytes - 1}"}
        try:
            self._connection.request("GET", f"{self.base}/{quote(path)}", headers=wanted)
            answer = self._connection.getresponse()
            most = _MOST_BYTES if num_bytes is None else num_bytes
            body = answer.read(most + 1)
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise ConnectionError(
                f"{self.url} broke off at {path} ({error or type(error).__name__}); check that it is up, and fetch again"
            ) from error
        if len(body) > most:
            self._connection.close()  # with the rest of the answer still in it
            raise ValueError(f"{self.url}/{path} gave more than {most:,} bytes; ask for a part of it")
        return _checked(answer, body, f"{self.url}/{path}", first, num_bytes)


def _checked(answer: HTTPResponse, body: bytes, name: str, first: int, num_bytes: int | None) -> bytes:
    """The body, if it is what was asked for."""
    if num_bytes is None and answer.status == HTTPStatus.OK:
        return body
    if num_bytes is not None and answer.status == HTTPStatus.PARTIAL_CONTENT:
        said = answer.getheader("Content-Range", "")
        if len(body) == num_bytes and said.startswith(f"bytes {first}-{first + num_bytes - 1}/"):
            return body
        raise ValueError(
            f"{name} gave {len(body):,} bytes ({said}) where {num_bytes:,} from byte {first:,} were wanted; "
            "the file has changed, publish it again"
        )
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        raise ValueError(
            f"{name} has no byte {first:,} ({answer.getheader('Content-Range')}); publish it again"
        )
    raise ValueError(
        f"{name} was answered {answer.status} {answer.reason}; check the address, and that ranges are served"
    )
