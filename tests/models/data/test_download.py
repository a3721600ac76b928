import hashlib
import socket
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.checksum import sha256_of
from models.data.download import DownloadError, OfficialArchive, fetch

_CONTENT = bytes(range(256)) * 1024
_HALF = len(_CONTENT) // 2


@dataclass
class _Mirror:
    """What the local server serves, how it fails, and what it was asked for."""

    port: int = 0
    ranges: bool = True
    chunked: bool = False
    drop_after: int | None = None  # bytes of a body, then the connection closes
    asked: list[str | None] = field(default_factory=list)  # the Range header of each request

    def archive(self, name: str = "photos.tgz", sha256: str = hashlib.sha256(_CONTENT).hexdigest()) -> OfficialArchive:
        return OfficialArchive(url=f"http://127.0.0.1:{self.port}/data/{name}", sha256=sha256)


def _handler(mirror: _Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            mirror.asked.append(asked)
            self.close_connection = True
            if self.path != "/data/photos.tgz":
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and mirror.ranges else 0
            if start >= len(_CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            body = _CONTENT[start:]
            if mirror.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if mirror.chunked:
                self.wfile.write(f"{len(body):x}\r\n".encode())
            self.wfile.write(body if mirror.drop_after is None else body[: mirror.drop_after])
            if mirror.chunked and mirror.drop_after is None:
                self.wfile.write(b"\r\n0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    return Handler


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Mirror]:
    """A real HTTP server on a free port, with Range support."""
    monkeypatch.setenv("no_proxy", "*")
    state = _Mirror()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture
def garbage_port() -> Iterator[int]:
    """A server that answers every connection with something that is not HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def answer() -> None:
            with suppress(TimeoutError):  # a test that never connects must not hang
                connection, _ = listener.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"this is not HTTP\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def _fails(action: Callable[[], object]) -> str:
    with pytest.raises(DownloadError) as caught:
        action()
    return str(caught.value)


def test_a_file_is_downloaded_whole(mirror: _Mirror, tmp_path: Path) -> None:
    """The file lies under its own name in the folder, which is created, and no part is left."""
    folder = tmp_path / "cache" / "normscope"
    path = fetch(mirror.archive(), folder)
    assert path == folder / "photos.tgz"
    assert path.read_bytes() == _CONTENT
    assert list(folder.iterdir()) == [path]
    assert mirror.asked == [None]


def test_a_part_is_continued(mirror: _Mirror, tmp_path: Path) -> None:
    """From `photos.tgz.part` only the missing bytes are asked for, and the whole is verified."""
    (tmp_path / "photos.tgz.part").write_bytes(_CONTENT[:_HALF])
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT
    assert mirror.asked == [f"bytes={_HALF}-"]


def test_a_server_without_ranges_starts_over(mirror: _Mirror, tmp_path: Path) -> None:
    """Where the server answers with the whole file, the part is replaced, not appended to."""
    mirror.ranges = False
    (tmp_path / "photos.tgz.part").write_bytes(_CONTENT[:_HALF])
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT


def test_a_part_that_is_whole_already_is_only_verified(mirror: _Mirror, tmp_path: Path) -> None:
    """The server has no more bytes (416): the checksum decides."""
    (tmp_path / "photos.tgz.part").write_bytes(_CONTENT)
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT


def test_a_dropped_connection_leaves_the_part(mirror: _Mirror, tmp_path: Path) -> None:
    """The error says how far it came and what to do; the next call goes on from there."""
    mirror.drop_after = _HALF
    message = _fails(lambda: fetch(mirror.archive(), tmp_path))
    assert f"{_HALF} of {len(_CONTENT)} bytes" in message
    assert "run again to resume" in message
    assert (tmp_path / "photos.tgz.part").read_bytes() == _CONTENT[:_HALF]
    assert not (tmp_path / "photos.tgz").exists()
    mirror.drop_after = None
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT
    assert mirror.asked == [None, f"bytes={_HALF}-"]


def test_a_second_drop_counts_from_the_start(mirror: _Mirror, tmp_path: Path) -> None:
    """A resumed transfer that breaks again keeps what both brought."""
    (tmp_path / "photos.tgz.part").write_bytes(_CONTENT[:1000])
    mirror.drop_after = 500
    assert f"1500 of {len(_CONTENT)} bytes" in _fails(lambda: fetch(mirror.archive(), tmp_path))
    assert (tmp_path / "photos.tgz.part").read_bytes() == _CONTENT[:1500]


def test_a_dropped_chunked_transfer_is_a_download_error(mirror: _Mirror, tmp_path: Path) -> None:
    """A server that does not tell the length can break off too: the same error, no file under the final name."""
    mirror.chunked, mirror.drop_after = True, _HALF
    assert "run again" in _fails(lambda: fetch(mirror.archive(), tmp_path))
    assert not (tmp_path / "photos.tgz").exists()


def test_a_chunked_transfer_is_downloaded_whole(mirror: _Mirror, tmp_path: Path) -> None:
    """No Content-Length is needed."""
    mirror.chunked = True
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT


def test_a_wrong_checksum_deletes_the_part(mirror: _Mirror, tmp_path: Path) -> None:
    """Nothing of a file that is not the published one is kept; the error names both digests."""
    message = _fails(lambda: fetch(mirror.archive(sha256="0" * 64), tmp_path))
    assert hashlib.sha256(_CONTENT).hexdigest() in message
    assert "0" * 64 in message
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_file_is_found_out(mirror: _Mirror, tmp_path: Path) -> None:
    """A part with wrong bytes is completed, fails its checksum and is deleted, so that the next call succeeds."""
    (tmp_path / "photos.tgz.part").write_bytes(b"x" * _HALF)
    assert "SHA-256" in _fails(lambda: fetch(mirror.archive(), tmp_path))
    assert fetch(mirror.archive(), tmp_path).read_bytes() == _CONTENT


def test_an_existing_file_is_not_fetched_again(mirror: _Mirror, tmp_path: Path) -> None:
    """A second call asks nobody."""
    first = fetch(mirror.archive(), tmp_path)
    assert fetch(mirror.archive(), tmp_path) == first
    assert len(mirror.asked) == 1


def test_an_http_error_names_the_url_and_the_way_around(mirror: _Mirror, tmp_path: Path) -> None:
    """A file that is not there: URL, status, and --archive as the remedy."""
    archive = mirror.archive("missing.tgz")
    message = _fails(lambda: fetch(archive, tmp_path))
    assert archive.url in message
    assert "404" in message
    assert "--archive PATH" in message


def test_an_http_error_leaves_no_connection_open(mirror: _Mirror, tmp_path: Path) -> None:
    """The response behind the error is closed, not left to the garbage collector (which warns about it)."""
    with pytest.raises(DownloadError) as caught:
        fetch(mirror.archive("missing.tgz"), tmp_path)
    cause = caught.value.__cause__
    assert isinstance(cause, urllib.error.HTTPError)
    was_closed = cause.closed
    cause.close()
    assert was_closed


def test_no_connection_is_a_download_error(tmp_path: Path) -> None:
    """Nobody listens: the same error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    archive = OfficialArchive(url=f"http://127.0.0.1:{port}/a.tgz", sha256="0" * 64)
    assert f"cannot download {archive.url}" in _fails(lambda: fetch(archive, tmp_path))


def test_an_answer_that_is_not_http_is_a_download_error(garbage_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A captive portal or a broken proxy: the same error."""
    monkeypatch.setenv("no_proxy", "*")
    archive = OfficialArchive(url=f"http://127.0.0.1:{garbage_port}/a.tgz", sha256="0" * 64)
    assert f"cannot download {archive.url}" in _fails(lambda: fetch(archive, tmp_path))


def test_sha256_of_a_file(tmp_path: Path) -> None:
    """64 hexadecimal digits, as hashlib says."""
    (tmp_path / "file").write_bytes(_CONTENT)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(_CONTENT).hexdigest()
