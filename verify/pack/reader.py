"""Packs as they are read: files of strangers, so that every length and every number is checked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from gptoss_convert.assets import GENERATION_CONFIG, Assets
from gptoss_convert.canonical_hash import model_digest
from gptoss_convert.checkpoint import Checkpoint, FileWriter, ModelConfig, Tensor, inventory
from gptoss_convert.description import Description
from gptoss_convert.encodings import ENCODINGS, Chunk, Float32, Order
from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.formats import FORMATS
from gptoss_convert.formats.safetensors import StoredTensor, read_header
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from gptoss_convert.verify.pack import layout
from gptoss_convert.verify.pack.fingerprint import Fingerprint, sampled_numbers
from gptoss_convert.verify.prompts import Prompt, PromptSet
from gptoss_convert.verify.recording import RecordingWriter
from gptoss_convert.verify.runners.protocol import Scores

MOST_MASS_ERROR = 1e-3
"""How far the probabilities of a position may be from 1 together; those written here are off by 1e-6."""
STEP_VALUES = 1 << 21
"""Log-probabilities that are in memory at once."""

_DTYPES: Mapping[str, Any] = {
    "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
}

_Schema = TypeVar("_Schema", bound=msgspec.Struct)


@dataclass(frozen=True, kw_only=True)
class PackedRun:
    """What the reference runner computed, as it lies in a pack."""

    imitates: str | None
    """Runtime as which it computed; None for the model as published."""
    versions: Mapping[str, str]
    seconds: float | None
    lengths: tuple[int, ...]
    """Tokens of each prompt."""
    vocab_size: int
    experts: int
    arrays: Mapping[str, StoredTensor]
    """By the last part of their names."""

    @property
    def columns(self) -> int:
        """Log-probabilities per position."""
        return self.arrays[layout.LOGPROBS].shape[1]

    @property
    def is_whole(self) -> bool:
        """Whether the log-probabilities of all tokens are known."""
        return layout.TOKENS not in self.arrays

    def extract(self, folder: Path) -> None:
        """Write a recording into the existing `folder`, a few positions at a time.

        Raises:
            InputError: the pack holds no probabilities there, or tokens or experts that do not exist.
        """
        step, first = max(STEP_VALUES // self.columns, 1), 0
        with RecordingWriter(folder, self.lengths) as writer:
            for prompt, length in enumerate(self.lengths):
                for start in range(0, length, step):
                    stop = min(start + step, length)
                    rows = {name: _read(array, first + start, first + stop) for name, array in self.arrays.items()}
                    self._check(rows)
                    writer.add(
                        Scores(
                            prompt=prompt,
                            start=start,
                            logprobs=rows[layout.LOGPROBS],
                            tokens=rows.get(layout.TOKENS),
                            rest=rows.get(layout.REST),
                            routing=rows.get(layout.ROUTING),
                            router_margins=rows.get(layout.MARGINS),
                        )
                    )
                first += length
            writer.finish()

    def _check(self, rows: Mapping[str, NDArray[Any]]) -> None:
        logprobs = rows[layout.LOGPROBS].astype(np.float64)
        with np.errstate(over="ignore"):
            mass = np.exp(logprobs).sum(axis=1)
            if layout.REST in rows:
                mass += np.exp(rows[layout.REST].astype(np.float64))
        if not (np.abs(mass - 1) <= MOST_MASS_ERROR).all():  # NaN is no mass either
            raise self._error(
                layout.LOGPROBS, "probabilities of a position do not add up to 1", found=f"{mass.max():.4g}"
            )
        if layout.TOKENS in rows:
            ordered = np.sort(rows[layout.TOKENS], axis=1)
            outside = ordered[:, 0].min() < 0 or ordered[:, -1].max() >= self.vocab_size
            if outside or (ordered[:, 1:] == ordered[:, :-1]).any():
                raise self._error(layout.TOKENS, "a position lists a token twice, or one that does not exist")
        if (
            layout.ROUTING in rows
            and not ((rows[layout.ROUTING] >= 0) & (rows[layout.ROUTING] < self.experts)).all()
        ):
            raise self._error(layout.ROUTING, "a position has an expert that does not exist")
        if layout.MARGINS in rows and not (rows[layout.MARGINS] >= 0).all():
            raise self._error(layout.MARGINS, "a router's margin is not a number from 0 on")

    def _error(self, array: str, what: str, *, found: object = None) -> InputError:
        stored = self.arrays[array]
        return InputError(f"pack is damaged: {what}", file=stored.file.path, tensor=stored.name, found=found)


@dataclass(frozen=True, kw_only=True)
class Pack:
    """An opened pack: what stands for the reference."""

    path: Path
    tool: str
    """Version of gptoss-convert that wrote it."""
    source: str
    """Name of the file or folder that was recorded."""
    canonical_hash: str
    """Of the reference, whose tensors have these digests."""
    model: Checkpoint
    """The reference without its numbers: they cannot be read."""
    fingerprints: Mapping[str, Fingerprint]
    """By canonical name."""
    prompts: PromptSet
    noise_floor: float
    """Mean KL of the reference in bfloat16, in nats."""
    runs: Mapping[str | None, PackedRun]
    """By the runtime as which the reference runner computed; None for the model as published."""
    _sampled: Mapping[str, tuple[StoredTensor, int, int]]

    def samples(self, name: str) -> Float32:
        """Return the numbers that are kept of tensor `name`, float32, at `sampled_places`.

        Raises:
            InputError: the file cannot be read.
        """
        array, start, stop = self._sampled[name]
        return _read(array, start, stop)


def read_pack(path: Path) -> Pack:
    """Open a pack. Distributions are checked when they are extracted, all else now.

    Raises:
        InputError: it is no pack, of another version, damaged, or contradicts itself.
    """
    file = FileRef.at(path)
    arrays = _Arrays(file, read_header(file, largest=layout.LARGEST_HEADER))
    facts = _facts(arrays)
    config = facts.config.model_config(path)
    if config.vocab_size > layout.MOST_TOKENS:
        raise InputError("vocabulary is larger than any", file=path, found=config.vocab_size)
    fingerprints = _fingerprints(facts, config, path)
    prompts = _prompts(facts, arrays, config)
    sampled = _sampled_arrays(arrays, config)
    runs = _runs(facts, arrays, config, prompts)
    model = Checkpoint(
        path=path,
        format=facts.source_format,
        config=config,
        tensors={
            name: Tensor(name, spec.shape, ENCODINGS[fingerprints[name].encoding], _Absent(file.path))
            for name, spec in inventory(config).items()
        },
        assets=_PackedAssets(None, facts.generation),
        tokenizer=_tokenizer(arrays, config),
        describe=Description,
        details={},
        problems=(),
    )
    arrays.require_all_known()
    return Pack(
        path=path,
        tool=facts.tool,
        source=facts.source,
        canonical_hash=facts.canonical_hash,
        model=model,
        fingerprints=fingerprints,
        prompts=prompts,
        noise_floor=facts.noise_floor,
        runs=runs,
        _sampled=sampled,
    )


class _Arrays:
    """The arrays of a file, each of which is asked for by its name."""

    def __init__(self, file: FileRef, stored: Mapping[str, StoredTensor]) -> None:
        self.file = file
        self._stored = dict(stored)
        self._unknown = dict(stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def take(self, name: str, dtype: str, shape: Sequence[int | None]) -> StoredTensor:
        """Return an array of this type and shape; None stands for any number.

        Raises:
            InputError: there is none.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise InputError("pack lacks an array", file=self.file.path, tensor=name)
        self._unknown.pop(name, None)
        fits = len(stored.shape) == len(shape) and all(
            expected in (None, found) for expected, found in zip(shape, stored.shape, strict=True)
        )
        if stored.dtype != dtype or not fits:
            text = [("any" if length is None else length) for length in shape]
            raise InputError(
                "array of the pack has another type or shape",
                file=self.file.path,
                tensor=name,
                found=f"{stored.dtype} {list(stored.shape)}",
                expected=f"{dtype} [{', '.join(map(str, text))}]",
            )
        return stored

    def bytes(self, name: str, largest: int) -> bytes:
        """Return the bytes of an array that has at most `largest`.

        Raises:
            InputError: there is none, or it is larger.
        """
        stored = self.take(name, "U8", [None])
        if stored.nbytes > largest:
            raise InputError(
                "array of the pack is too large",
                file=self.file.path,
                tensor=name,
                found=f"{stored.nbytes} bytes",
                expected=f"at most {largest}",
            )
        return self.file.read(stored.offset, stored.nbytes)

    def require_all_known(self) -> None:
        """Raise `InputError` if there is an array that nobody took."""
        for name in sorted(self._unknown):
            raise InputError("pack has an array that does not belong to it", file=self.file.path, tensor=name)


def _read(array: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Return rows `start` to `stop`."""
    dtype = _DTYPES[array.dtype]
    rows = np.empty((stop - start, *array.shape[1:]), dtype)
    array.file.read_into(rows, array.offset + start * (rows.nbytes // max(len(rows), 1)))
    return rows


def _decoded(data: bytes, schema: type[_Schema], arrays: _Arrays, name: str) -> _Schema:
    try:
        return msgspec.json.decode(data, type=schema)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InputError(f"pack is damaged: {error}", file=arrays.file.path, tensor=name) from None


def _facts(arrays: _Arrays) -> layout.Facts:
    if layout.FACTS not in arrays:
        raise InputError("not a pack", file=arrays.file.path, hint="make one with `gptoss-convert record`")
    data = arrays.bytes(layout.FACTS, layout.LARGEST_FACTS)
    version = _decoded(data, layout.Stamp, arrays, layout.FACTS).pack_version
    if version != layout.VERSION:
        raise InputError(
            "pack of another version",
            file=arrays.file.path,
            found=version,
            expected=layout.VERSION,
            hint="record it again, or use the version of gptoss-convert that recorded it",
        )
    return _decoded(data, layout.Facts, arrays, layout.FACTS)


def _fingerprints(facts: layout.Facts, config: ModelConfig, path: Path) -> dict[str, Fingerprint]:
    if facts.source_format not in FORMATS:
        raise InputError("pack of an unknown format", file=path, found=facts.source_format)
    specs = inventory(config)
    if facts.tensors.keys() != specs.keys():
        name = min(facts.tensors.keys() ^ specs.keys())
        what = (
            "pack does not know a tensor of its model"
            if name in specs
            else "pack knows a tensor that its model has not"
        )
        raise InputError(what, file=path, tensor=name)
    for name, stored in facts.tensors.items():
        encoding = ENCODINGS.get(stored.encoding)
        if encoding is None or not encoding.fits(specs[name].shape[-1]):
            raise InputError(
                "tensor cannot be in this encoding",
                file=path,
                tensor=name,
                found=stored.encoding,
                expected="one of " + ", ".join(ENCODINGS) + ", with rows of whole blocks",
            )
    if model_digest({name: stored.sha256 for name, stored in facts.tensors.items()}) != facts.canonical_hash:
        raise InputError("canonical hash of the pack is not that of its tensors", file=path)
    return {
        name: Fingerprint(
            encoding=facts.tensors[name].encoding,
            sha256=facts.tensors[name].sha256,
            sha256_of_positive_zeros=facts.tensors[name].sha256_of_positive_zeros,
        )
        for name in specs
    }


def _prompts(facts: layout.Facts, arrays: _Arrays, config: ModelConfig) -> PromptSet:
    path = arrays.file.path
    lengths = [prompt.tokens for prompt in facts.prompts.prompts]
    positions = sum(lengths)
    if not 1 <= positions <= layout.MOST_POSITIONS:
        raise InputError("pack has no prompts, or too many", file=path, found=f"{positions} positions")
    longest = max(lengths)
    if longest > config.max_position_embeddings:
        raise InputError("prompt is longer than the model can read", file=path, found=f"{longest} tokens")
    ids = _read(arrays.take(layout.IDS, "I32", [positions]), 0, positions)
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InputError("pack has a token that its model has not", file=path, tensor=layout.IDS)
    ends = np.cumsum(lengths)
    prompts = PromptSet(
        name=facts.prompts.name,
        prompts=tuple(
            Prompt(name=prompt.name, kind=prompt.kind, ids=tuple(ids[end - prompt.tokens : end].tolist()))
            for prompt, end in zip(facts.prompts.prompts, ends, strict=True)
        ),
        remarks=tuple(facts.prompts.remarks),
    )
    if prompts.sha256 != facts.prompts.sha256:
        raise InputError(
            "token ids of the pack are not those that were recorded",
            file=path,
            tensor=layout.IDS,
            found=prompts.sha256,
            expected=facts.prompts.sha256,
        )
    return prompts


def _sampled_arrays(arrays: _Arrays, config: ModelConfig) -> dict[str, tuple[StoredTensor, int, int]]:
    counts = {name: sampled_numbers(spec.shape) for name, spec in inventory(config).items()}
    array = arrays.take(layout.SAMPLES, "F32", [sum(counts.values())])
    places, end = {}, 0
    for name, count in counts.items():
        places[name] = (array, end, end + count)
        end += count
    return places


def _runs(
    facts: layout.Facts, arrays: _Arrays, config: ModelConfig, prompts: PromptSet
) -> dict[str | None, PackedRun]:
    path = arrays.file.path
    names = [run.imitates for run in facts.runs]
    if None not in names or len(set(names)) != len(names):
        raise InputError("pack lacks the run of its reference, or has a run twice", file=path)
    if layout.REFERENCE_RUN in names:
        raise InputError("pack has a run that imitates the reference", file=path)
    return {run.imitates: _run(run, arrays, config, prompts) for run in facts.runs}


def _run(run: layout.StoredRun, arrays: _Arrays, config: ModelConfig, prompts: PromptSet) -> PackedRun:
    name, positions = run.imitates or layout.REFERENCE_RUN, prompts.positions

    def take(array: str, dtype: str, *shape: int | None) -> StoredTensor:
        return arrays.take(f"{name}.{array}", dtype, [positions, *shape])

    is_whole = f"{name}.{layout.TOKENS}" not in arrays
    logprobs = take(layout.LOGPROBS, "F32", config.vocab_size if is_whole else None)
    columns = logprobs.shape[1]
    if not 1 <= columns <= config.vocab_size:
        raise InputError(
            "pack lists no tokens, or more than there are", file=logprobs.file.path, tensor=logprobs.name
        )
    found = {layout.LOGPROBS: logprobs}
    if not is_whole:
        found[layout.TOKENS] = take(layout.TOKENS, "I32", columns)
        found[layout.REST] = take(layout.REST, "F32")
    layers, chosen = config.num_hidden_layers, config.num_experts_per_tok
    found[layout.ROUTING] = take(layout.ROUTING, "I16", layers, chosen)
    found[layout.MARGINS] = take(layout.MARGINS, "F32", layers)
    return PackedRun(
        imitates=run.imitates,
        versions=run.versions,
        seconds=run.seconds,
        lengths=tuple(len(prompt.ids) for prompt in prompts.prompts),
        vocab_size=config.vocab_size,
        experts=config.num_local_experts,
        arrays=found,
    )


@dataclass(frozen=True)
class _Absent:
    """Numbers that a pack does not have."""

    path: Path
    row_group: int = 1
    order: Order = "C"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def read(self, start: int, stop: int) -> Chunk:
        raise InputError("a pack has no weights", file=self.path, hint="name the reference itself")

    def write(self, writer: FileWriter, start: int, chunk: Chunk) -> None:
        raise OutputError("a pack has no weights", file=self.path)


@dataclass(frozen=True)
class _PackedAssets(Assets):
    """Of the files beside the reference, the ids in generation_config.json."""

    generation: Mapping[str, Any] | None

    def read_json_object(self, name: str) -> dict[str, Any] | None:
        if name != GENERATION_CONFIG or self.generation is None:
            return None
        return dict(self.generation)


@dataclass(frozen=True)
class _PackedTokenizer:
    """A vocabulary that was read already."""

    path: Path
    content: Vocabulary

    def vocabulary(self) -> Vocabulary:
        return self.content


def _tokenizer(arrays: _Arrays, config: ModelConfig) -> _PackedTokenizer | None:
    if layout.VOCABULARY not in arrays:
        return None
    path = arrays.file.path
    data = _decompressed(arrays.bytes(layout.VOCABULARY, layout.LARGEST_VOCABULARY), path)
    stored = _decoded(data, layout.StoredVocabulary, arrays, layout.VOCABULARY)
    if len(stored.kinds) != len(stored.tokens) or len(stored.tokens) > config.vocab_size:
        raise InputError(
            "pack has kinds of more or fewer tokens than there are",
            file=path,
            tensor=layout.VOCABULARY,
            found=f"{len(stored.tokens)} tokens, {len(stored.kinds)} kinds",
            expected=f"at most {config.vocab_size}",
        )
    unknown = set(stored.kinds) - {kind.value for kind in TokenKind}
    if unknown:
        raise InputError("unknown kind of token", file=path, tensor=layout.VOCABULARY, found=min(unknown))
    return _PackedTokenizer(
        path,
        Vocabulary(
            tokens=stored.tokens,
            kinds=[TokenKind(kind) for kind in stored.kinds],
            merges=stored.merges,
            pattern=stored.pattern,
            special_ids=stored.special_ids,
            added_automatically=stored.added_automatically,
            chat_templates=stored.chat_templates,
        ),
    )


def _decompressed(data: bytes, path: Path) -> bytes:
    """Return what zlib compressed; no more of it than a vocabulary can have is ever made."""
    decompressor = zlib.decompressobj()
    try:
        text = decompressor.decompress(data, layout.LARGEST_VOCABULARY)
    except zlib.error as error:
        raise InputError(f"pack is damaged: {error}", file=path, tensor=layout.VOCABULARY) from None
    if not decompressor.eof or decompressor.unused_data:
        raise InputError(
            "vocabulary of the pack is cut, or larger than any can be", file=path, tensor=layout.VOCABULARY
        )
    return text
