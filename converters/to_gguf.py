"""The recipe for GGUF: which tensor goes where in which encoding, and what the file says about the model."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from gptoss_convert.checkpoint import Checkpoint, Role, Tensor, inventory
from gptoss_convert.converters.plan import Entry, Plan, PlannedFile, Transfer
from gptoss_convert.converters.sources import require_faithful
from gptoss_convert.description import Description, model_name
from gptoss_convert.encodings import ENCODINGS, Encoding, encoding
from gptoss_convert.encodings.mixed import Mixed
from gptoss_convert.errors import InputError, OptionError, OutputError, UnsupportedError
from gptoss_convert.formats.gguf.configuration import configuration_metadata
from gptoss_convert.formats.gguf.container import TYPE_NUMBERS, uint32
from gptoss_convert.formats.gguf.description import description_metadata
from gptoss_convert.formats.gguf.names import canonical_name, gguf_names
from gptoss_convert.formats.gguf.reader import FILE_TYPE
from gptoss_convert.formats.gguf.tensors import canonical_tensor, halves
from gptoss_convert.formats.gguf.vocabulary import vocabulary_metadata
from gptoss_convert.formats.gguf.writer import GgufLayout, NewTensor, file_type, lay_out
from gptoss_convert.tokenizer import TokenizerSource

_ALWAYS_F32 = {Role.NORM, Role.ATTENTION_BIAS, Role.SINKS, Role.ROUTER, Role.EXPERT_BIAS}
"""llama.cpp computes with these in float32 and expects them stored so."""
_FALLBACK = {"q8_0": "f16", "mxfp4": "bf16"}
"""For rows that are no whole number of blocks; f16 for q8_0 is llama.cpp's choice too."""

_QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION in ggml.h."""


@dataclass(frozen=True, kw_only=True)
class GgufOptions:
    """What the user decides about a GGUF file; the defaults lose nothing."""

    dense: str | None = None
    """Encoding of embedding, unembedding and attention matrices; None keeps that of the source."""
    experts: str | None = None
    """Encoding of the expert matrices; None keeps that of the source."""
    overrides: Sequence[tuple[str, str]] = ()
    """(pattern, encoding) pairs for single tensors by GGUF name (`*` and `?` as in file names); last match wins."""
    split_max_size: int | None = None
    """Bytes of tensor data per file; None writes one file."""
    allow_lossy_source: bool = False
    """Whether numbers that were rounded when the source was stored may be decoded."""
    description: Description = field(default_factory=Description)
    """What the file says about the model, in place of what the source says."""


def plan_gguf(
    checkpoint: Checkpoint,
    output: Path,
    options: GgufOptions | None = None,
    *,
    tokenizer: TokenizerSource | None = None,
) -> Plan:
    """Plan the conversion of `checkpoint` to the GGUF file `output`. Reads the tokenizer, but no tensor data.

    Args:
        checkpoint: the model.
        output: path of the file; with splitting, `NAME.gguf` stands for `NAME-00001-of-0000N.gguf` and so on.
        options: encodings, splitting, description.
        tokenizer: takes the place of the checkpoint's own.

    Raises:
        InputError: the checkpoint is not sound or has no tokenizer.
        OptionError: an option does not fit the checkpoint.
        UnsupportedError: llama.cpp cannot run this model, or rounded numbers would be decoded without permission.
    """
    options = options or GgufOptions()
    checkpoint.require_sound()
    if not output.name or os.path.isdir(output):  # noqa: PTH112 - which may raise for odd names
        raise OutputError("output is a folder", file=output, hint="give the name of a file in it")
    tokenizer = tokenizer or checkpoint.tokenizer
    if tokenizer is None:
        raise InputError(
            "no tokenizer beside the weights",
            file=checkpoint.path,
            expected="tokenizer.json",
            hint="name the folder that has it with --tokenizer",
        )
    choices = _choose_encodings(checkpoint, options)
    config = checkpoint.config
    description = Description(name=PurePath(model_name(checkpoint.path)).stem).updated(checkpoint.describe())
    description = description.updated(options.description)
    metadata = {
        **description_metadata(description, config),
        **configuration_metadata(config, file_type=_file_type(checkpoint, choices), path=checkpoint.path),
        "general.quantization_version": uint32(_QUANTIZATION_VERSION),
        **vocabulary_metadata(tokenizer.vocabulary(), vocab_size=config.vocab_size, path=tokenizer.path),
    }
    tensors = [tensor for choice in choices for tensor in choice.new_tensors()]
    layout = lay_out(tensors, metadata, output, split_max_size=options.split_max_size)
    transfers = tuple(transfer for choice in choices for transfer in _transfers(choice, layout))
    require_faithful(transfers, allow_lossy=options.allow_lossy_source)
    return Plan(
        source=checkpoint.path,
        source_format=checkpoint.format,
        inputs=(checkpoint.path, *checkpoint.files, *checkpoint.assets.paths(), tokenizer.path),
        format="gguf",
        files=_planned_files(layout, choices),
        transfers=transfers,
        notes=_notes(checkpoint, tokenizer, description, choices),
    )


@dataclass(frozen=True)
class _Choice:
    """A canonical tensor and the encoding that it gets."""

    source: Tensor
    encoding: Encoding
    note: str | None

    def new_tensors(self) -> list[NewTensor]:
        """Return the tensors of the file that it becomes: one, or two halves of the dimension that alternates."""
        names, shape = gguf_names(self.source.name), self.source.shape
        divided = len(shape) - 2 if len(shape) == 3 else len(shape) - 1
        part = tuple(size // len(names) if at == divided else size for at, size in enumerate(shape))
        kinds = _by_part(self.encoding, len(names))
        return [NewTensor(name, part, kind) for name, kind in zip(names, kinds, strict=True)]


def _by_part(kind: Encoding, parts: int) -> tuple[Encoding, ...]:
    """Return the encoding of each of the `parts` tensors of a file that make up a tensor of encoding `kind`."""
    return (kind.even, kind.odd) if isinstance(kind, Mixed) else (kind,) * parts


def _transfers(choice: _Choice, layout: GgufLayout) -> Iterator[Transfer]:
    """Yield what to do for a tensor: halves of different encodings are copied one by one."""
    target = canonical_tensor(choice.source.name, layout.placed)
    if isinstance(target.encoding, Mixed):
        yield from map(Transfer, halves(choice.source), halves(target))
    else:
        yield Transfer(choice.source, target)


def _file_type(checkpoint: Checkpoint, choices: Sequence[_Choice]) -> int:
    """Return `general.file_type`: that of a GGUF file whose encodings are all kept, else as the converter's."""
    stated = checkpoint.details.get(FILE_TYPE, "")
    if re.fullmatch("[0-9]{1,9}", stated) and all(choice.encoding == choice.source.encoding for choice in choices):
        return int(stated)
    chosen = {choice.source.name: choice.encoding for choice in choices}
    return file_type(
        dense=chosen["model.embed_tokens.weight"], experts=chosen["model.layers.0.mlp.experts.down_proj"]
    )


def _choose_encodings(checkpoint: Checkpoint, options: GgufOptions) -> list[_Choice]:
    choices = []
    for name, spec in inventory(checkpoint.config).items():
        tensor = checkpoint.tensors[name]
        choice = _Choice(tensor, *_encoding_for(tensor, spec.role, options))
        if choice.encoding != tensor.encoding and not tensor.encoding.can_decode:
            raise UnsupportedError(
                "numbers of the source cannot be decoded", file=tensor.file, tensor=name, found=tensor.encoding.name
            )
        choices.append(choice)
    for pattern, _ in options.overrides:
        if not any(
            fnmatch.fnmatchcase(name, pattern) for choice in choices for name in gguf_names(choice.source.name)
        ):
            raise OptionError(
                "no tensor of the output matches the pattern",
                found=pattern,
                expected="for example blk.*.attn_q.weight",
            )
    return choices


def _encoding_for(tensor: Tensor, role: Role, options: GgufOptions) -> tuple[Encoding, str | None]:
    """Return the encoding of a tensor, and why it is another one than asked for."""
    wanted = _wanted(tensor, role, options)
    if role in _ALWAYS_F32 and wanted != "f32":
        raise OptionError(f"llama.cpp needs tensor {gguf_names(tensor.name)[0]} in f32", found=wanted)
    if wanted == tensor.encoding.name and not tensor.encoding.can_encode:
        return tensor.encoding, None  # an encoding of ggml that can only be copied
    if wanted not in TYPE_NUMBERS:
        raise OptionError("GGUF has no such encoding", found=wanted, expected="one of " + ", ".join(TYPE_NUMBERS))
    chosen = encoding(wanted)
    if chosen.fits(tensor.columns):
        return chosen, None
    fallback = ENCODINGS[_FALLBACK[chosen.name]]
    reason = f"rows of {tensor.columns} are not whole blocks of {chosen.block}: {fallback.name}, not {chosen.name}"
    return fallback, reason


def _wanted(tensor: Tensor, role: Role, options: GgufOptions) -> str:
    """Return the name of the encoding that the options ask for: by override, then by role, then as in the source.

    Raises:
        OptionError: overrides give the two halves of a tensor different encodings.
    """
    by_role = "f32" if role in _ALWAYS_F32 else options.experts if role is Role.EXPERTS else options.dense
    default = tensor.kept_encoding.name if by_role is None else by_role
    names = gguf_names(tensor.name)
    wanted = {
        next((kind for pattern, kind in reversed(options.overrides) if fnmatch.fnmatchcase(name, pattern)), default)
        for name in names
    }
    if len(wanted) > 1:
        raise OptionError(
            f"{' and '.join(names)} are halves of one tensor and need the same encoding",
            hint=f"use a pattern that matches both, such as {names[0].replace('gate', '*')}",
        )
    return wanted.pop()


def _planned_files(layout: GgufLayout, choices: Sequence[_Choice]) -> tuple[PlannedFile, ...]:
    by_name = {choice.source.name: choice for choice in choices}
    entries: dict[Path, list[Entry]] = {file.path: [] for file, _ in layout.files}
    for name, place in layout.placed.items():
        choice = by_name[str(canonical_name(name))]
        names = gguf_names(choice.source.name)
        entry = Entry(
            name=name,
            shape=place.info.shape,
            encoding=place.info.encoding,
            offset=place.info.offset,
            nbytes=place.info.nbytes,
            source=choice.source.name,
            source_encoding=_by_part(choice.source.encoding, len(names))[names.index(name)],
            note=choice.note,
        )
        entries[place.file.path].append(entry)
    return tuple(
        PlannedFile(file.path, file.size, header, tuple(entries[file.path])) for file, header in layout.files
    )


def _notes(
    checkpoint: Checkpoint, tokenizer: TokenizerSource, description: Description, choices: Sequence[_Choice]
) -> tuple[str, ...]:
    notes = [*(f"source: {remark}" for remark in checkpoint.remarks), *checkpoint.notes]
    if tokenizer.path.parent.resolve() != checkpoint.path.resolve() and tokenizer.path != checkpoint.path:
        notes.append(f"tokenizer: {tokenizer.path}")
    if not (description.license or description.license_name):
        notes.append("licence: not stated by the source; state it with --license")
    if not checkpoint.config.rope.truncate:
        notes.append(
            "llama.cpp rounds the YaRN range of gpt-oss, whatever a file says: "
            "its logits differ slightly from the true model's (docs/gguf.md)"
        )
    fallbacks = [choice for choice in choices if choice.note]
    if fallbacks:
        example = f"{gguf_names(fallbacks[0].source.name)[0]}: {fallbacks[0].note}"
        notes.append(f"{len(fallbacks)} tensors are not stored as asked: {example}")
    return tuple(notes)
