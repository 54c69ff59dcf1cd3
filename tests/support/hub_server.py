"""The few requests of the Hugging Face Hub that a download makes, answered from a folder on this machine.

As on the Hub, a small file comes from the Hub itself, and a large one from a storage server of another origin, to
which a signed address leads that stops being valid. Faults are answers that a test orders in advance.
"""

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".onnx.data", "tokenizer.json")

Fault = Callable[["_Handler", bytes, int, int], None]
"""Answers a request for bytes `first` to `last` of a large file with these contents."""


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubServer:
    """A repository on a Hub, and what was asked of it."""

    folder: Path
    repository: str
    commit: str = field(default_factory=lambda: secrets.token_hex(20))
    """Another one each time: what a commit holds never changes, and is remembered."""
    token: str | None = None
    """That has to be sent; None if the repository is public."""
    gated: bool = False
    faults: dict[int, Fault] = field(default_factory=dict)
    """By the number of the request for ranges, from 0; those of a negative number come every time."""
    hub_faults: list[int] = field(default_factory=list)
    """Statuses with which the next requests to the Hub itself are refused."""
    seen: list[Seen] = field(default_factory=list)
    sent: int = 0
    """Bytes of large files."""
    signature: int = 0
    """In the addresses that are valid."""
    delay: float = 0.0
    """Seconds until the answer to a request for a range begins."""
    at_once: int = 0
    most_at_once: int = 0
    """Requests for ranges that waited for their answer at the same time."""
    endpoint: str = ""
    storage: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def ranges(self) -> list[Seen]:
        """Requests for parts of large files."""
        return [
            request for request in self.seen if request.path.startswith("/storage/") and request.method == "GET"
        ]

    def listing(self) -> dict[str, tuple[int, str, bool]]:
        """Return size, hash and whether it is large of every file by name."""
        files = {}
        for path in sorted(item for item in self.folder.rglob("*") if item.is_file()):
            name, data = path.relative_to(self.folder).as_posix(), contents(path)
            is_large = name.endswith(LARGE_SUFFIXES)
            files[name] = len(data), _digests(data)[is_large], is_large
        return files


def contents(path: Path) -> bytes:
    """Return the bytes of a file, which are kept in memory until it changes."""
    return _contents(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _contents(path: Path, changed: int) -> bytes:
    return path.read_bytes()


@lru_cache(maxsize=64)
def _digests(data: bytes) -> tuple[str, str]:
    """Return git's hash of a blob, and SHA-256."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


@contextmanager
def serve(folder: Path, repository: str) -> Iterator[HubServer]:
    """Serve `folder` as the only commit of `repository`."""
    state = HubServer(folder, repository)
    handler = type("Handler", (_Handler,), {"state": state})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    state.endpoint, state.storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in servers]
    for server, thread in zip(servers, threads, strict=True):
        server.daemon_threads = True
        thread.start()
    try:
        yield state
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client may leave before it has read an answer that it refuses."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        with self.state.lock:
            number = len(self.state.ranges)
            self.state.seen.append(
                Seen(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"))
            )
            refused = self.state.hub_faults.pop(0) if not self._is_storage and self.state.hub_faults else None
        parts = unquote(url.path).strip("/").split("/")
        if refused is not None:
            self.answer(refused, b"{}")
        elif self._is_storage:
            self._serve_range(parts[1:], url.query, number)
        elif parts[:1] == ["api"]:
            self._serve_api(parts[1:], url.query)
        elif len(parts) > 4 and parts[2] == "resolve":
            self._serve_resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404, b"{}")

    @property
    def _is_storage(self) -> bool:
        return int(self.connection.getsockname()[1]) == int(self.state.storage.rpartition(":")[2])

    def answer(self, status: int, body: bytes, *, length: int | None = None, **headers: str) -> None:
        """Send an answer; `length` is what it claims, and the connection is cut if that is more than there is."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            with self.state.lock:  # before it is sent: who has it all may look at once
                self.state.sent += len(body) if self._is_storage else 0
            self.wfile.write(body)
        if length is not None and length > len(body):
            self.close_connection = True

    def _refused(self, repository: str, revision: str) -> bool:
        state = self.state
        if repository != state.repository or (
            state.token is not None and self.headers.get("Authorization") != f"Bearer {state.token}"
        ):
            self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        elif state.gated:
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
        elif revision not in ("main", self.state.commit):
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        else:
            return False
        return True

    def _serve_api(self, parts: list[str], query: str) -> None:
        if parts[:1] != ["models"] or len(parts) < 3:
            self.answer(404, b"{}")
            return
        repository, rest = "/".join(parts[1:3]), parts[3:]
        if self._refused(repository, rest[1] if rest else "main"):
            return
        listing = self.state.listing()
        if rest[:1] == ["tree"]:
            body: object = [
                {"type": "file", "path": name, "size": size, "oid": etag}
                | ({"lfs": {"oid": etag, "size": size, "pointerSize": 130}} if is_large else {})
                for name, (size, etag, is_large) in listing.items()
            ]
        else:
            siblings = []
            for name, (size, etag, is_large) in listing.items():
                item: dict[str, object] = {"rfilename": name}
                if parse_qs(query).get("blobs"):
                    item |= {"size": size, "blobId": etag}
                    if is_large:
                        item["lfs"] = {"size": size, "sha256": etag, "pointerSize": 130}
                siblings.append(item)
            body = {"id": repository, "modelId": repository, "sha": self.state.commit, "siblings": siblings}
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _serve_resolve(self, repository: str, revision: str, name: str) -> None:
        if self._refused(repository, revision):
            return
        found = self.state.listing().get(name)
        if found is None:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=self.state.commit)
            return
        size, etag, is_large = found
        if not is_large:
            self.answer(
                200, (self.state.folder / name).read_bytes(), ETag=f'"{etag}"', X_Repo_Commit=self.state.commit
            )
            return
        self.answer(
            302,
            b"",
            Location=f"{self.state.storage}/storage/{name}?signature={self.state.signature}",
            X_Linked_Etag=f'"{etag}"',
            X_Linked_Size=str(size),
            X_Repo_Commit=self.state.commit,
        )

    def _serve_range(self, parts: list[str], query: str, number: int) -> None:
        if parse_qs(query) != {"signature": [str(self.state.signature)]}:
            self.answer(403, b"expired")
            return
        data = contents(self.state.folder / "/".join(parts))
        asked = self.headers.get("Range")
        if asked is None:
            first, last = 0, len(data) - 1
        else:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(stop) if stop else len(data) - 1, len(data) - 1)
        with self.state.lock:
            self.state.at_once += 1
            self.state.most_at_once = max(self.state.most_at_once, self.state.at_once)
        time.sleep(self.state.delay)
        with self.state.lock:
            self.state.at_once -= 1
        fault = self.state.faults.get(number, self.state.faults.get(-1))
        if fault is not None:
            fault(self, data, first, last)
        elif asked is None:
            self.answer(200, data, ETag='"1"')
        else:
            self.answer_range(data, first, last)

    def answer_range(self, data: bytes, first: int, last: int, *, etag: str = '"1"') -> None:
        """Answer as asked."""
        body = data[first : last + 1]
        self.answer(206, body, ETag=etag, Content_Range=f"bytes {first}-{last}/{len(data)}")


def broken_connection(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """Half of the body comes, then nothing more."""
    count = last + 1 - first
    handler.answer(
        206,
        data[first : first + count // 2],
        length=count,
        ETag='"1"',
        Content_Range=f"bytes {first}-{last}/{len(data)}",
    )


def short_body(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The body is whole by its own account, but shorter than the range."""
    body = data[first : last + 1][: (last + 1 - first) // 2]
    handler.answer(206, body, ETag='"1"', Content_Range=f"bytes {first}-{last}/{len(data)}")


def long_body(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The body is longer than the range."""
    body = data[first : last + 1] + b"more"
    handler.answer(206, body, ETag='"1"', Content_Range=f"bytes {first}-{last}/{len(data)}")


def unavailable(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """503."""
    handler.answer(503, b"")


def too_many_requests(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """429, with a time to wait."""
    handler.answer(429, b"", Retry_After="7")


def another_range(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """As many bytes from another place, which says so."""
    body = data[first + 1 : last + 2]
    handler.answer(206, body, ETag='"1"', Content_Range=f"bytes {first + 1}-{last + 1}/{len(data)}")


def another_size(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The range of a file that became longer."""
    body = data[first : last + 1]
    handler.answer(206, body, ETag='"1"', Content_Range=f"bytes {first}-{last}/{len(data) + 1}")


def no_ranges(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The whole file."""
    handler.answer(200, data, ETag='"1"')


def another_version(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The range, of a file that was replaced."""
    handler.answer_range(data, first, last, etag='"2"')


def compressed(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """The range in another coding."""
    handler.answer(
        206,
        data[first : last + 1],
        ETag='"1"',
        Content_Range=f"bytes {first}-{last}/{len(data)}",
        Content_Encoding="gzip",
    )


def not_found(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """404."""
    handler.answer(404, b"")


def expired(handler: _Handler, data: bytes, first: int, last: int) -> None:
    """Every address that was given so far stops being valid."""
    handler.state.signature += 1
    handler.answer(403, b"expired")
