"""Bytes of a file on the Hub, fetched range by range.

The Hub answers a request for a large file with the address of a storage server, signed and valid for a while. It
is asked once per file, and again when the address has expired; ranges then come from there. Every answer is held
against what was asked for before a byte of it is used (RFC 9110, 14 and 15.3.7).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from gptoss_convert.errors import InputError
from gptoss_convert.hub.failures import (
    TRANSIENT_STATUS,
    Retries,
    TransientError,
    asked_wait,
    reported,
    transient_failures,
)

TIMEOUT = httpx2.Timeout(10.0, read=60.0, pool=None)
"""Seconds without any sign of life."""
_EXPIRED = frozenset({400, 401, 403, 410})
"""How storage servers refuse an address whose signature has expired."""


@dataclass(frozen=True)
class _Location:
    url: str
    headers: dict[str, str]
    is_signed: bool
    """Whether it is the address of a storage server."""


class RangedFile:
    """A file of one commit, of which any number of threads may fetch ranges."""

    def __init__(self, repository: str, commit: str, name: str, *, size: int, etag: str, retries: Retries) -> None:
        """Look the file up.

        Args:
            repository: `owner/name`.
            commit: its hash.
            name: of the file in the repository.
            size: bytes, by the list of files.
            etag: hash of the contents, by the list of files.
            retries: for every request.

        Raises:
            InputError: the Hub has another file, does not give it, or does not answer.
        """
        self._url = hf_hub_url(repository, name, revision=commit)
        self._place = f"hf://{repository}@{commit}/{name}"
        self._commit, self._size, self._etag, self._retries = commit, size, etag, retries
        self._lock = threading.Lock()
        self._location: _Location | None = None
        self._version: str | None = None
        with reported(self._place):
            retries.run(self._located)

    def read_some(self, view: memoryview, offset: int) -> int:
        """Fill `view` with the bytes from `offset` on, or as far as the file goes; return how many there are.

        What came before a connection broke is kept, and only the rest is asked for again.

        Raises:
            InputError: the server does not answer, or with something else.
        """
        wanted = view[: max(self._size - offset, 0)]
        done = 0

        def attempt() -> None:
            nonlocal done
            for chunk in self._fetched(offset + done, len(wanted) - done):
                wanted[done : done + len(chunk)] = chunk
                done += len(chunk)
            if done < len(wanted):
                raise TransientError(f"answer ended {len(wanted) - done} bytes early")

        if wanted:
            with reported(self._place):
                self._retries.run(attempt)
        return len(wanted)

    def _fetched(self, offset: int, count: int) -> Iterator[bytes]:
        """Yield the body of one answer, which may end early but never goes on for too long."""
        location = self._located()
        headers = location.headers | {
            "Range": f"bytes={offset}-{offset + count - 1}",
            "Accept-Encoding": "identity",  # a range of compressed bytes would be something else
        }
        try:
            with get_session().stream("GET", location.url, headers=headers, timeout=TIMEOUT) as answer:
                self._require_range(answer, offset, count, location)
                rest = count
                for chunk in answer.iter_raw():
                    rest -= len(chunk)
                    if rest < 0:
                        raise self._error("server sent more than the range that was asked for")
                    yield chunk
        except httpx2.TransportError as error:
            raise TransientError(f"connection failed ({type(error).__name__})") from error

    def _require_range(self, answer: httpx2.Response, offset: int, count: int, location: _Location) -> None:
        """Refuse an answer that is not the range, before its body is read."""
        status = answer.status_code
        if status in TRANSIENT_STATUS:
            raise TransientError(f"server answered {status}", wait=asked_wait(answer.headers))
        if status in _EXPIRED and location.is_signed:
            self._forget(location)
            raise TransientError(f"server answered {status}", wait=0)
        if status == httpx2.codes.OK and (offset, count) != (0, self._size):
            raise self._error(
                "server does not serve ranges", hint="leave out --stream, so that the files are downloaded"
            )
        if status not in (httpx2.codes.OK, httpx2.codes.PARTIAL_CONTENT):
            raise self._error("server refused a range", found=f"status {status}")
        expected = f"bytes {offset}-{offset + count - 1}/{self._size}"
        found = answer.headers.get("Content-Range")
        if status == httpx2.codes.PARTIAL_CONTENT and found != expected:
            raise self._error("server sent another range", found=found, expected=expected)
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._error("server sent compressed bytes", found=answer.headers["Content-Encoding"])
        version = answer.headers.get("ETag")
        with self._lock:
            self._version = self._version or version
        if version != self._version:
            raise self._error("file changed while it was read", found=version, expected=self._version)

    def _located(self) -> _Location:
        """Return where ranges are fetched from; the Hub is asked if that is not known."""
        with self._lock:
            if self._location is None:
                with transient_failures():
                    found = get_hf_file_metadata(self._url, timeout=TIMEOUT.read, headers=build_hf_headers())
                for what, value, expected in (
                    ("size", found.size, self._size),
                    ("contents", found.etag, self._etag),
                    ("commit", found.commit_hash, self._commit),
                ):
                    if value != expected:
                        raise self._error(f"Hub has another {what} than it listed", found=value, expected=expected)
                is_signed = urlsplit(found.location)[:2] != urlsplit(self._url)[:2]
                # The token is for the Hub alone.
                headers = build_hf_headers(token=False if is_signed else None)
                self._location = _Location(found.location, headers, is_signed)
            return self._location

    def _forget(self, location: _Location) -> None:
        with self._lock:
            if self._location is location:
                self._location = None

    def _error(self, what: str, **facts: Any) -> InputError:
        return InputError(what, file=self._place, **facts)
