"""The journal of a run: what was finished, so that a run that was stopped can go on.

It is a text file beside the partial output, with a line for each task that is done, added by whoever did it. Each
line begins with its own checksum. The first one says what is converted; the others say of some rows what was
written where, with checksums, and what was found out on the way.

A line is written after the data it speaks of. The system keeps both when the process is killed. When the machine
loses power it may keep the line and lose the data, which is why no line is believed: whoever goes on reads the data
again and does the task anew if a checksum differs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gptoss_convert import __version__
from gptoss_convert.converters.checksums import Run
from gptoss_convert.converters.fingerprints import Fingerprint, difference
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.recoding import NOTHING_FOUND, Findings
from gptoss_convert.converters.tasks import LEAST_MEMORY_PER_JOB, TaskResult
from gptoss_convert.errors import OutputError, as_output_error

VERSION = 1
_CHECK_DIGITS = 8
_LONGEST_LINE = 64 << 20
"""Bytes; a journal with a longer one is damaged."""


class Key(NamedTuple):
    """What identifies a task of a plan: the number of its transfer, and its rows."""

    transfer: int
    start: int
    stop: int


@dataclass(frozen=True)
class Record:
    """What a task did."""

    result: TaskResult
    runs: tuple[Run, ...]
    """What it wrote; nothing if it copied, since the source has the same bytes."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """What a journal is about."""

    tool: str
    """Version of this program."""
    conversion: Mapping[str, str]
    """Hashes of what the plan says, by aspect."""
    sources: Mapping[str, Fingerprint]
    """By absolute path."""
    memory_per_job: Annotated[int, msgspec.Meta(ge=LEAST_MEMORY_PER_JOB, lt=1 << 62)]
    """By which the plan was cut into tasks."""

    @classmethod
    def of(cls, plan: Plan, sources: Mapping[str, Fingerprint], memory_per_job: int) -> Heading:
        """Return the heading for a plan."""
        facts = plan.as_dict()
        aspects = {
            "source": [str(plan.source.absolute()), facts["source_format"]],
            "format": facts["format"],
            "files": [facts["files"], facts["files_made_at_the_end"]],
            "headers": [hashlib.sha256(file.header).hexdigest() for file in plan.files],
            "encodings": facts["tensors"],
            "way of converting": [repr(transfer.recoding) for transfer in plan.transfers],
        }
        return cls(
            tool=__version__,
            conversion={name: _hash(aspect) for name, aspect in aspects.items()},
            sources=sources,
            memory_per_job=memory_per_job,
        )

    def require_same(self, now: Heading, output: Path) -> None:
        """Refuse to go on with another conversion than the one that was begun.

        Raises:
            OutputError: `now` is another one; it says in what.
        """
        found = self.departure(now)
        if found is not None:
            raise OutputError(
                "unfinished output is of another conversion",
                file=output,
                found=found,
                hint="give the same source and options, or leave out --resume to begin anew",
            )

    def departure(self, now: Heading) -> str | None:
        """Return in what `now` is another conversion than the one that was begun; None if it is the same."""
        changed = difference(self.sources, now.sources)
        if self.tool != now.tool:
            return f"written by version {self.tool}, this is {now.tool}"
        if changed is not None:
            return f"source {changed[0]}: {changed[1]}"
        other = [name for name, digest in now.conversion.items() if self.conversion.get(name) != digest]
        return f"other {' and '.join(other)}" if other else None


class Journal:
    """A journal that is open for more lines.

    Any number of threads may add lines. Sent to another process, it opens the file there for itself.
    """

    def __init__(self, path: Path, output: Path, files: tuple[Path, ...], lines: Mapping[Key, _Place]) -> None:
        self._path = path
        self._output = output
        self._files = files
        self._lines = dict(lines)
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Journal, (self._path, self._output, self._files, {})

    def __del__(self) -> None:
        self.close()

    @classmethod
    def begun(cls, path: Path, heading: Heading, plan: Plan) -> Journal:
        """Begin a journal; the name must be free. It is on disk before anything is that it speaks of.

        Raises:
            OutputError: the system refused.
        """
        journal = cls(path, plan.output, _files(plan), {})
        content = {"journal_version": VERSION, **msgspec.to_builtins(heading)}
        with as_output_error(plan.output):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags, 0o666)
            try:
                try:
                    os.write(descriptor, _line(content))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return journal

    @classmethod
    def continued(cls, path: Path, plan: Plan) -> Journal:
        """Go on with a journal behind its last whole line.

        Raises:
            OutputError: the system refused.
        """
        end, lines = 0, {}
        for place, content in _lines(path):
            end = place.offset + place.nbytes
            if "rows" in content:
                lines[Key(*content["rows"])] = place
        with as_output_error(plan.output):
            os.truncate(path, end)
        return cls(path, plan.output, _files(plan), lines)

    def add(self, key: Key, record: Record) -> None:
        """Add a line about a task.

        Raises:
            OutputError: the system refused.
        """
        self._append(_encoded(key, record, self._files))

    def mark_publishing(self, ours: Mapping[str, tuple[int, int]]) -> None:
        """Say that files get their final names from now on.

        Args:
            ours: device and inode of what was written, by final name.

        Raises:
            OutputError: the system refused.
        """
        self._append({"publishing": ours})

    def _append(self, content: Mapping[str, Any]) -> None:
        line = _line(content)
        with as_output_error(self._output), self._lock:
            if self._descriptor is None:
                flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0)
                self._descriptor = os.open(self._path, flags)
            done = os.write(self._descriptor, line)
            if done < len(line):
                done += os.write(self._descriptor, line[done:])
        if done < len(line):
            raise OutputError("cannot write: journal line was cut", file=self._output)

    @property
    def has_records(self) -> bool:
        """Whether anything was finished."""
        return any("rows" in content for _, content in _lines(self._path))

    def find(self, key: Key) -> Record | None:
        """Return what is known of a task from the time before the journal was opened, or last read."""
        place = self._lines.get(key)
        if place is None:
            return None
        with self._path.open("rb") as file:
            file.seek(place.offset)
            content = _parsed(file.read(place.nbytes))
        try:
            return None if content is None else _decoded(content, self._files)
        except (IndexError, ValueError, zlib.error):  # no line of ours, or not of this plan: the task is done anew
            return None

    def read_again(self) -> None:
        """Find the lines that were added since."""
        self._lines = {Key(*content["rows"]): place for place, content in _lines(self._path) if "rows" in content}

    def close(self) -> None:
        """Close the file."""
        descriptor, self._descriptor = getattr(self, "_descriptor", None), None
        if descriptor is not None:
            os.close(descriptor)


@dataclass(frozen=True)
class Summary:
    """What a journal tells at a glance."""

    heading: Heading
    nbytes: int
    """Bytes of tensors that are written."""
    publishing: Mapping[str, tuple[int, int]] | None
    """Device and inode of what may have its final name, by that name; None if nothing may."""


def summarise(path: Path) -> Summary | None:
    """Return what the journal at `path` tells; None if there is none, or one that cannot be read."""
    lines = _lines(path)
    try:
        _, first = next(lines)
        if first.pop("journal_version") != VERSION:
            return None
        heading = msgspec.convert(first, Heading)
    except (StopIteration, KeyError, msgspec.ValidationError, OverflowError):
        return None
    written: dict[Key, int] = {}
    publishing = None
    for _, content in lines:
        if "rows" in content:
            written[Key(*content["rows"])] = content["nbytes"]
        if "publishing" in content:
            publishing = {name: (device, inode) for name, (device, inode) in content["publishing"].items()}
    return Summary(heading, sum(written.values()), publishing)


_Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
_Count = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
_Side = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _Entry(msgspec.Struct, frozen=True):
    """A line after the first one, as far as types and bounds go."""

    rows: tuple[_Index, _Index, _Index] | None = None
    nbytes: _Index = 0
    written: list[tuple[_Index, _Index, _Count, _Index, _Count, _Index]] = []
    """Of each run: number of the file, offset, bytes of a piece, CRC-32, pieces, and from one to the next."""
    findings: Findings = NOTHING_FOUND
    digests: str = ""
    named_scales: tuple[_Side, _Side, str] | None = None
    publishing: dict[str, tuple[int, int]] = {}


class _Place(NamedTuple):
    """Where a line lies."""

    offset: int
    nbytes: int


def _lines(path: Path) -> Iterator[tuple[_Place, dict[str, Any]]]:
    """Yield all lines up to the first one that is damaged, cut, or no line of a journal."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return
        with path.open("rb") as file:
            offset = 0
            while line := file.readline(_LONGEST_LINE):
                content = _parsed(line)
                if content is None or (offset and not _is_entry(content)):
                    return
                yield _Place(offset, len(line)), content
                offset += len(line)
    except OSError:
        return


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the contents of a line; None if it is not whole."""
    text = line[_CHECK_DIGITS + 1 : -1]
    if not line.endswith(b"\n") or line[: _CHECK_DIGITS + 1] != b"%08x " % zlib.crc32(text):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _is_entry(content: Mapping[str, Any]) -> bool:
    """Return whether a line after the first one has the fields that it must have, of the right types."""
    if "rows" in content and "nbytes" not in content:
        return False
    try:
        entry = msgspec.convert(content, _Entry)
    except (msgspec.ValidationError, OverflowError, RecursionError):
        return False
    # Pieces that overlap could be many more than the file has bytes.
    return all(pieces == 1 or stride >= nbytes for _, _, nbytes, _, pieces, stride in entry.written)


def _files(plan: Plan) -> tuple[Path, ...]:
    return tuple(file.path for file in plan.files)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _encoded(key: Key, record: Record, files: tuple[Path, ...]) -> dict[str, Any]:
    result, named = record.result, record.result.named_scales
    content: dict[str, Any] = {"rows": list(key), "nbytes": result.nbytes}
    if record.runs:
        content["written"] = [
            [files.index(run.path), run.offset, run.nbytes, run.crc, run.pieces, run.stride] for run in record.runs
        ]
    if result.findings != NOTHING_FOUND:
        content["findings"] = msgspec.to_builtins(result.findings)
    if result.segment_digests:
        content["digests"] = base64.b64encode(result.segment_digests).decode()
    if named is not None:
        packed = base64.b64encode(zlib.compress(named.tobytes(), 1)).decode()
        content["named_scales"] = [*named.shape, packed]
    return content


def _decoded(content: Mapping[str, Any], files: tuple[Path, ...]) -> Record:
    runs = tuple(Run(files[index], *facts) for index, *facts in content.get("written", ()))
    findings = msgspec.convert(content["findings"], Findings) if "findings" in content else NOTHING_FOUND
    named: NDArray[np.uint8] | None = None
    if "named_scales" in content:
        rows, blocks, packed = content["named_scales"]
        unpacked = zlib.decompressobj().decompress(base64.b64decode(packed), rows * blocks + 1)
        named = np.frombuffer(unpacked, np.uint8).reshape(rows, blocks)
    digests = base64.b64decode(content.get("digests", ""))
    return Record(TaskResult(content["nbytes"], findings, named, digests), runs)
