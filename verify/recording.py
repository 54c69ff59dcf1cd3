"""What a run left behind: log-probabilities and routing of every position, on disk.

A recording is a folder. Log-probabilities over the real vocabulary take 804 kB per position, so they are written
as they come and read a few positions at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, BinaryIO, Self

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from gptoss_convert.assets import read_small_file
from gptoss_convert.errors import InputError
from gptoss_convert.verify.runners.protocol import Scores

SCHEMA_VERSION = 1
FACTS = "recording.json"


@dataclass(frozen=True, kw_only=True)
class _Array:
    """One of the arrays of a recording: a file of rows, one per position, little-endian."""

    name: str
    dtype: DTypeLike


_LOGPROBS = _Array(name="logprobs.f32", dtype=np.dtype("<f4"))
_TOKENS = _Array(name="tokens.i32", dtype=np.dtype("<i4"))
_REST = _Array(name="rest.f32", dtype=np.dtype("<f4"))
_ROUTING = _Array(name="routing.i16", dtype=np.dtype("<i2"))
_MARGINS = _Array(name="router_margins.f32", dtype=np.dtype("<f4"))
_DECODED = _Array(name="decoded.u8", dtype=np.dtype("u1"))
"""1 for a position that was decoded, 0 for one that was computed together with others."""


_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Facts(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What stands in `recording.json`."""

    schema_version: int
    prompt_lengths: list[_Count]
    shapes: dict[str, list[_Count]]
    """Shape of a row by the name of its file."""


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """Next-token distributions at successive positions, normalised in float64."""

    tokens: NDArray[np.int32] | None
    """[positions, columns]: the token of each column; None if column i is token i."""
    logprobs: NDArray[np.float64]
    """[positions, columns]: natural log-probabilities."""
    rest: NDArray[np.float64] | None = None
    """[positions]: probability of all tokens without a column, if it is known exactly."""


class Recording:
    """A recording that can be read. Positions are numbered through all prompts."""

    def __init__(self, folder: Path) -> None:
        """Open the recording in `folder`.

        Raises:
            InputError: it is damaged or of another version.
        """
        self.folder = folder
        path = folder / FACTS
        try:
            facts = msgspec.json.decode(read_small_file(path), type=_Facts)
        except msgspec.MsgspecError as error:
            raise InputError(f"not a recording: {error}", file=path) from None
        if facts.schema_version != SCHEMA_VERSION:
            raise InputError(
                "recording of another version", file=path, found=facts.schema_version, expected=SCHEMA_VERSION
            )
        self.prompt_lengths: tuple[int, ...] = tuple(facts.prompt_lengths)
        self.positions = sum(self.prompt_lengths)
        self._spans: tuple[tuple[int, int], ...] = ((0, self.positions),)
        self._shapes = {name: tuple(shape) for name, shape in facts.shapes.items()}
        if len(self._shapes.get(_LOGPROBS.name, ())) != 1:
            raise InputError("recording without log-probabilities", file=path)
        for array in (_LOGPROBS, _TOKENS, _REST, _ROUTING, _MARGINS, _DECODED):
            self._require_size(array)

    def excerpt(self, prompts: Sequence[int], lengths: Sequence[int]) -> Recording:
        """Return the recording of the beginnings of some prompts, which says the same as that of the whole.

        What a model says at a position does not depend on what comes after it.

        Args:
            prompts: indices of the prompts.
            lengths: positions of each that are kept.

        Raises:
            ValueError: a prompt is shorter.
        """
        starts = np.cumsum([0, *self.prompt_lengths]).tolist()
        if any(length > self.prompt_lengths[prompt] for prompt, length in zip(prompts, lengths, strict=True)):
            raise ValueError(f"prompts of {self.prompt_lengths} positions have no excerpt of {list(lengths)}")
        part = copy(self)
        part.prompt_lengths = tuple(lengths)
        part.positions = sum(lengths)
        part._spans = tuple(
            (starts[prompt], starts[prompt] + length) for prompt, length in zip(prompts, lengths, strict=True)
        )
        return part

    @property
    def columns(self) -> int:
        """Log-probabilities per position: the size of the vocabulary unless only the likeliest tokens are known."""
        return self._shapes[_LOGPROBS.name][0]

    @property
    def is_whole(self) -> bool:
        """Whether the log-probabilities of all tokens are known."""
        return _TOKENS.name not in self._shapes

    @property
    def prompt_of_position(self) -> NDArray[np.int64]:
        """[positions]: index of the prompt."""
        return np.repeat(np.arange(len(self.prompt_lengths)), self.prompt_lengths)

    @property
    def place_in_prompt(self) -> NDArray[np.int64]:
        """[positions]: position in the prompt."""
        return np.concatenate([np.arange(length) for length in self.prompt_lengths])

    def distributions(self, start: int, stop: int) -> Distributions:
        """Return the distributions of positions `start` to `stop`.

        Runtimes that add up their softmax in float32 leave an error of 1e-4, one constant per position; where all
        tokens are known, it is taken out.
        """
        logprobs = self._rows(_LOGPROBS, start, stop).astype(np.float64)
        if not self.is_whole:
            tokens = self._rows(_TOKENS, start, stop)
            rest = None
            if _REST.name in self._shapes:
                rest = np.exp(self._rows(_REST, start, stop).astype(np.float64))
            return Distributions(tokens=tokens, logprobs=logprobs, rest=rest)
        logprobs -= _log_sum_exp(logprobs)[:, None]
        return Distributions(tokens=None, logprobs=logprobs)

    def routing(self) -> NDArray[np.int16] | None:
        """Return the chosen experts, [positions, layers, experts per token]; None if the runtime did not tell."""
        return self._rows(_ROUTING, 0, self.positions) if _ROUTING.name in self._shapes else None

    def router_margins(self) -> NDArray[np.float32] | None:
        """Return the margins of the routers, [positions, layers]; None if the runtime did not tell."""
        return self._rows(_MARGINS, 0, self.positions) if _MARGINS.name in self._shapes else None

    def decoded(self) -> NDArray[np.bool_]:
        """Return which positions were computed one by one, on the KV cache of those before, [positions]."""
        if _DECODED.name not in self._shapes:
            return np.zeros(self.positions, np.bool_)
        return self._rows(_DECODED, 0, self.positions).astype(np.bool_)

    def _rows(self, array: _Array, start: int, stop: int) -> NDArray[Any]:
        shape = self._shapes[array.name]
        width = math.prod(shape)
        dtype = np.dtype(array.dtype)
        data = np.empty((stop - start, *shape), dtype)
        done = before = 0
        with (self.folder / array.name).open("rb") as stream:
            for first, last in self._spans:
                begin, end = (min(max(place - before, 0), last - first) for place in (start, stop))
                before += last - first
                if begin < end:
                    stream.seek((first + begin) * width * dtype.itemsize)
                    part = np.fromfile(stream, dtype, (end - begin) * width)
                    data[done : done + end - begin] = part.reshape(end - begin, *shape)
                    done += end - begin
        return data

    def _require_size(self, array: _Array) -> None:
        shape = self._shapes.get(array.name)
        if shape is None:
            return
        path = self.folder / array.name
        expected = self.positions * math.prod(shape) * np.dtype(array.dtype).itemsize
        found = path.stat().st_size if path.is_file() else None
        if found != expected:
            raise InputError(
                "recording is damaged",
                file=path,
                found="nothing" if found is None else f"{found} bytes",
                expected=expected,
            )


class RecordingWriter:
    """Writes a recording; a context manager. The recording is complete once `finish` returned."""

    def __init__(self, folder: Path, prompt_lengths: Sequence[int]) -> None:
        """Begin a recording in `folder`, which must exist."""
        self._folder = folder
        self._lengths = tuple(prompt_lengths)
        self._streams: dict[str, BinaryIO] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._next = (0, 0)
        self.prefilled = 0
        """Positions that were computed together with others."""
        self.decoded = 0
        """Positions that were computed one by one, on the KV cache."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(self, scores: Scores) -> None:
        """Write the scores of the next positions.

        Raises:
            ValueError: they are not the next positions, or of another shape than those before.
        """
        count = len(scores.logprobs)
        prompt, start = self._next
        if not count or (scores.prompt, scores.start) != (prompt, start) or start + count > self._lengths[prompt]:
            raise ValueError(
                f"scores of prompt {scores.prompt} from position {scores.start}, {count} of them, "
                f"come at prompt {prompt}, position {start}"
            )
        parts = {
            _LOGPROBS: scores.logprobs,
            _TOKENS: scores.tokens,
            _REST: scores.rest,
            _ROUTING: scores.routing,
            _MARGINS: scores.router_margins,
            _DECODED: np.full(count, scores.decoded),
        }
        given = {array: rows for array, rows in parts.items() if rows is not None}
        shapes = {array.name: rows.shape[1:] for array, rows in given.items()}
        if (self._shapes and self._shapes != shapes) or any(len(rows) != count for rows in given.values()):
            raise ValueError(f"scores of shapes {shapes} come after {self._shapes}")
        self._shapes = shapes
        for array, rows in given.items():
            if array.name not in self._streams:
                self._streams[array.name] = (self._folder / array.name).open("wb")
            self._streams[array.name].write(np.ascontiguousarray(rows, array.dtype).data)
        if scores.decoded:
            self.decoded += count
        else:
            self.prefilled += count
        self._next = (prompt, start + count)
        if start + count == self._lengths[prompt]:
            self._next = (prompt + 1, 0)

    def finish(self) -> None:
        """Complete the recording.

        Raises:
            ValueError: positions are missing.
        """
        if self._next != (len(self._lengths), 0):
            raise ValueError(f"the run ended before prompt {self._next[0]}, position {self._next[1]}")
        for stream in self._streams.values():
            stream.flush()
        facts = _Facts(
            schema_version=SCHEMA_VERSION,
            prompt_lengths=list(self._lengths),
            shapes={name: list(shape) for name, shape in self._shapes.items()},
        )
        (self._folder / FACTS).write_bytes(msgspec.json.encode(facts))


def _log_sum_exp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(sum(exp(values))) of each row; NaN if the row holds one."""
    largest = values.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.log(np.exp(values - largest).sum(axis=1)) + largest[:, 0])
