"""Writes packs: the file appears under its name when it is complete."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from gptoss_convert.converters.output import Outputs, new_files
from gptoss_convert.converters.plan import PlannedFile
from gptoss_convert.encodings import Array, Float32
from gptoss_convert.errors import InputError
from gptoss_convert.formats.safetensors_writer import NewArray, lay_out
from gptoss_convert.tokenizer import Vocabulary
from gptoss_convert.verify.pack import layout
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.recording import Recording

STEP_VALUES = 1 << 21
"""Log-probabilities that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class PackShape:
    """What decides how large a pack is."""

    positions: int
    columns: int
    """Log-probabilities per position."""
    is_whole: bool
    """Whether these are all."""
    layers: int
    chosen: int
    """Experts per token."""
    samples: int
    """Numbers of all tensors."""

    def arrays(self, runs: Sequence[str], facts: int, vocabulary: int | None) -> list[NewArray]:
        """Return the arrays of the pack; `facts` and `vocabulary` are numbers of bytes."""
        arrays = [NewArray(layout.FACTS, "U8", (facts,)), NewArray(layout.IDS, "I32", (self.positions,))]
        if vocabulary is not None:
            arrays.append(NewArray(layout.VOCABULARY, "U8", (vocabulary,)))
        arrays.append(NewArray(layout.SAMPLES, "F32", (self.samples,)))
        for run in runs:
            wide = (self.positions, self.columns)
            arrays.append(NewArray(f"{run}.{layout.LOGPROBS}", "F32", wide))
            if not self.is_whole:
                arrays.append(NewArray(f"{run}.{layout.TOKENS}", "I32", wide))
                arrays.append(NewArray(f"{run}.{layout.REST}", "F32", (self.positions,)))
            arrays.append(NewArray(f"{run}.{layout.ROUTING}", "I16", (self.positions, self.layers, self.chosen)))
            arrays.append(NewArray(f"{run}.{layout.MARGINS}", "F32", (self.positions, self.layers)))
        return arrays

    def nbytes(self, runs: Sequence[str], facts: int, vocabulary: int | None) -> int:
        """Return the bytes of a pack, its header included."""
        placed = lay_out(self.arrays(runs, facts, vocabulary), Path())
        return placed.files[0][0].size


def columns_kept(vocab_size: int, top: int) -> tuple[int, bool]:
    """Return how many log-probabilities of a position are kept, and whether these are all.

    All of them are kept where a list of the `top` likeliest with their ids would be as long.
    """
    return (vocab_size, True) if vocab_size <= 2 * top else (top, False)


def compressed_vocabulary(vocabulary: Vocabulary, vocab_size: int, path: Path) -> bytes:
    """Return the array `vocabulary`.

    Raises:
        InputError: it has texts that are no UTF-8, or more tokens than the model; `path` is the file to name.
    """
    if len(vocabulary.tokens) > vocab_size:
        raise InputError(
            "tokenizer has more tokens than the model", file=path, found=len(vocabulary.tokens), expected=vocab_size
        )
    stored = layout.StoredVocabulary(
        tokens=list(vocabulary.tokens),
        kinds=[int(kind) for kind in vocabulary.kinds],
        merges=list(vocabulary.merges),
        pattern=vocabulary.pattern,
        special_ids=dict(vocabulary.special_ids),
        added_automatically=dict(vocabulary.added_automatically),
        chat_templates=dict(vocabulary.chat_templates),
    )
    try:
        return zlib.compress(msgspec.json.encode(stored))
    except UnicodeEncodeError as error:
        raise InputError(f"tokenizer holds text that is no UTF-8: {error.reason}", file=path) from None


def write_pack(
    path: Path,
    facts: layout.Facts,
    shape: PackShape,
    prompts: PromptSet,
    vocabulary: bytes | None,
    samples: Sequence[Float32],
    runs: Mapping[str, Recording],
) -> tuple[int, float]:
    """Write a pack, which replaces a file of its name.

    Args:
        path: the new file.
        facts: what is no array.
        shape: of the arrays.
        prompts: their ids.
        vocabulary: from `compressed_vocabulary`; None if the reference has no tokenizer.
        samples: the numbers that are kept of each tensor.
        runs: whole recordings of the reference runner, by the name that they have in the pack.

    Returns:
        The bytes of the file, and the mean probability that the kept tokens have together in the reference.

    Raises:
        InputError: the reference says something of itself that no pack can hold.
        OutputError: the file cannot be written.
    """
    text = _checked_json(facts, path)
    placed = lay_out(
        shape.arrays(list(runs), len(text), None if vocabulary is None else len(vocabulary)), path.parent
    )
    ((file, header),) = placed.files
    mass = 0.0
    with new_files([PlannedFile(path, file.size, header)]) as outputs:
        small: dict[str, bytes | Array] = {
            layout.FACTS: text,
            layout.IDS: np.array([token for prompt in prompts.prompts for token in prompt.ids], "<i4"),
            layout.SAMPLES: np.concatenate(samples).astype("<f4"),
        }
        if vocabulary is not None:
            small[layout.VOCABULARY] = vocabulary
        for name, data in small.items():
            outputs.write(path, data, placed.placed[name].offset)
        offsets = {name: stored.offset for name, stored in placed.placed.items()}
        for run, recording in runs.items():
            found = _write_run(outputs, path, offsets, run, recording, shape)
            mass = found if run == layout.REFERENCE_RUN else mass
    return file.size, mass


def _checked_json(facts: layout.Facts, path: Path) -> bytes:
    """Return the facts as JSON that a reader of packs accepts."""
    try:
        text = msgspec.json.encode(facts)
        msgspec.json.decode(text, type=layout.Facts)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise InputError(f"reference cannot be recorded: {error}", file=path) from None
    return text


def _write_run(
    outputs: Outputs, path: Path, offsets: Mapping[str, int], run: str, recording: Recording, shape: PackShape
) -> float:
    mass = 0.0
    for name, rows, first in _rows(recording, shape):
        if name == layout.LOGPROBS:
            mass += float(np.exp(rows.astype(np.float64)).sum())
        outputs.write(path, rows, offsets[f"{run}.{name}"] + first * (rows.nbytes // len(rows)))
    return mass / recording.positions


def _rows(recording: Recording, shape: PackShape) -> Iterator[tuple[str, NDArray[Any], int]]:
    """Yield arrays by the last part of their names, some rows at a time, and the number of the first row."""
    step = max(STEP_VALUES // recording.columns, 1)
    for start in range(0, recording.positions, step):
        logprobs = recording.distributions(start, min(start + step, recording.positions)).logprobs
        if shape.is_whole:
            yield layout.LOGPROBS, logprobs.astype("<f4"), start
            continue
        tokens = likeliest(logprobs, shape.columns)
        kept = np.take_along_axis(logprobs, tokens, axis=1)
        others = np.exp(logprobs)
        np.put_along_axis(others, tokens, 0, axis=1)
        with np.errstate(divide="ignore"):
            rest = np.log(others.sum(axis=1))
        yield layout.LOGPROBS, kept.astype("<f4"), start
        yield layout.TOKENS, tokens.astype("<i4"), start
        yield layout.REST, rest.astype("<f4"), start
    routing, margins = recording.routing(), recording.router_margins()
    assert routing is not None
    assert margins is not None
    yield layout.ROUTING, routing.astype("<i2"), 0
    yield layout.MARGINS, margins.astype("<f4"), 0


def likeliest(logprobs: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the `count` likeliest tokens of each position, best first; of equal ones, the lowest ids."""
    bound = np.partition(logprobs, -count, axis=1)[:, -count]
    tokens = np.empty((len(logprobs), count), np.intp)
    for row, least in enumerate(bound):
        candidates = np.flatnonzero(logprobs[row] >= least)
        order = np.argsort(-logprobs[row, candidates], kind="stable")[:count]
        tokens[row] = candidates[order]
    return tokens
