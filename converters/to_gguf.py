"""The recipe for GGUF: which tensor goes where in which encoding, and what the file says about the model."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint, Role, Tensor, TensorSpec, inventory
from gptoss_convert.converters.plan import (
    WHOLE,
    Plan,
    PlannedFile,
    PlannedTensor,
    Selection,
    Target,
    Transfer,
)
from gptoss_convert.encodings import ENCODINGS, Encoding, encoding
from gptoss_convert.errors import InputError, OptionError, UnsupportedError
from gptoss_convert.formats.gguf.blocks import pack
from gptoss_convert.formats.gguf.configuration import configuration_metadata
from gptoss_convert.formats.gguf.container import (
    TYPE_NUMBERS,
    TensorInfo,
    Value,
    ValueType,
    aligned,
    serialise_header,
    uint32,
)
from gptoss_convert.formats.gguf.description import Description, description_metadata
from gptoss_convert.formats.gguf.names import gguf_names
from gptoss_convert.formats.gguf.reader import split_path
from gptoss_convert.formats.gguf.vocabulary import vocabulary_metadata
from gptoss_convert.tokenizer import TokenizerSource

DENSE_ENCODINGS = ("bf16", "f16", "f32", "q8_0")
EXPERT_ENCODINGS = ("mxfp4", "bf16", "f16", "f32", "q8_0")

_ALWAYS_F32 = {Role.NORM, Role.ATTENTION_BIAS, Role.SINKS, Role.ROUTER, Role.EXPERT_BIAS}
"""llama.cpp computes with these in float32 and expects them stored so."""
_FALLBACK = {"q8_0": "f16", "mxfp4": "bf16"}
"""For rows that are no whole number of blocks; f16 for q8_0 is llama.cpp's choice too."""

# `llama_ftype` in llama.h
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_FILE_TYPE_MXFP4_MOE = 38
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
    description: Description = field(default_factory=Description)


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
        UnsupportedError: llama.cpp cannot run this model.
    """
    options = options or GgufOptions()
    checkpoint.require_sound()
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
    metadata = {
        **description_metadata(
            options.description, checkpoint.assets, config, fallback_name=checkpoint.path.resolve().stem
        ),
        **configuration_metadata(config, file_type=_file_type(choices)),
        "general.quantization_version": uint32(_QUANTIZATION_VERSION),
        **vocabulary_metadata(tokenizer.vocabulary(), vocab_size=config.vocab_size, path=tokenizer.path),
    }
    parts = _split(choices, options.split_max_size)
    files, targets = _lay_out(parts, metadata, output)
    return Plan(
        source=checkpoint.path,
        source_format=checkpoint.format,
        source_files=checkpoint.files,
        format="gguf",
        # llama.cpp opens the first part, so that one comes last.
        files=files,
        transfers=_transfers(choices, targets),
        notes=_notes(checkpoint, tokenizer, metadata, choices),
    )


@dataclass(frozen=True)
class _Choice:
    """A tensor of the output before it has a place."""

    name: str
    source: Tensor
    role: Role
    selection: Selection
    shape: tuple[int, ...]
    encoding: Encoding
    note: str | None

    @property
    def nbytes(self) -> int:
        return self.encoding.nbytes(self.shape)


def _choose_encodings(checkpoint: Checkpoint, options: GgufOptions) -> list[_Choice]:
    choices: list[_Choice] = []
    for canonical, spec in inventory(checkpoint.config).items():
        tensor = checkpoint.tensors[canonical]
        names = gguf_names(canonical)
        for index, name in enumerate(names):
            selection = _selection(spec, index, len(names))
            shape = _selected_shape(spec.shape, selection)
            chosen, note = _encoding_for(name, spec.role, tensor, options)
            choices.append(_Choice(name, tensor, spec.role, selection, shape, chosen, note))
    _refuse_idle_overrides(choices, options)
    return choices


def _selection(spec: TensorSpec, index: int, count: int) -> Selection:
    """Return which rows, or for a bias which elements, go to counterpart `index` of `count`."""
    if count == 1:
        return WHOLE
    return Selection(axis=0 if spec.role is Role.EXPERTS else 1, start=index, step=count)


def _selected_shape(shape: tuple[int, ...], selection: Selection) -> tuple[int, ...]:
    """Return `shape` with the selected dimension (the last for axis 1, the one before for axis 0) divided."""
    if selection.step == 1:
        return shape
    dimension = len(shape) - 2 + selection.axis
    return tuple(size // selection.step if at == dimension else size for at, size in enumerate(shape))


def _encoding_for(name: str, role: Role, tensor: Tensor, options: GgufOptions) -> tuple[Encoding, str | None]:
    """Return the encoding of a tensor, and why it is another one than asked for."""
    override = next(
        (kind for pattern, kind in reversed(options.overrides) if fnmatch.fnmatchcase(name, pattern)), None
    )
    if role in _ALWAYS_F32:
        if override not in (None, "f32"):
            raise OptionError(f"llama.cpp needs tensor {name} in f32", found=override)
        return ENCODINGS["f32"], None
    wanted = override or (options.experts if role is Role.EXPERTS else options.dense)
    if wanted is None and tensor.encoding.name not in TYPE_NUMBERS:
        raise UnsupportedError(
            "numbers of the source cannot be decoded",
            file=tensor.file,
            tensor=tensor.name,
            found=tensor.encoding.name,
        )
    chosen = tensor.encoding if wanted is None else encoding(wanted)
    if chosen.fits(tensor.columns):
        return chosen, None
    fallback = ENCODINGS[_FALLBACK[chosen.name]]
    reason = f"rows of {tensor.columns} are not whole blocks of {chosen.block}: {fallback.name}, not {chosen.name}"
    return fallback, reason


def _refuse_idle_overrides(choices: Sequence[_Choice], options: GgufOptions) -> None:
    for pattern, _ in options.overrides:
        if not any(fnmatch.fnmatchcase(choice.name, pattern) for choice in choices):
            raise OptionError(
                "no tensor of the output matches the pattern",
                found=pattern,
                expected="for example blk.*.attn_q.weight",
            )


def _file_type(choices: Sequence[_Choice]) -> int:
    """Return `general.file_type` as llama.cpp's converter does: by the dense matrices, then by the experts."""
    dense = next(choice.encoding.name for choice in choices if choice.role is Role.EMBEDDING)
    experts = next(choice.encoding.name for choice in choices if choice.role is Role.EXPERTS)
    if experts == "mxfp4":
        return _FILE_TYPES["q8_0"] if dense == "q8_0" else _FILE_TYPE_MXFP4_MOE
    return _FILE_TYPES[experts]


def _split(choices: Sequence[_Choice], split_max_size: int | None) -> list[list[_Choice]]:
    """Return the tensors of each file: a new file begins where the next tensor would pass the limit."""
    parts: list[list[_Choice]] = [[]]
    size = 0
    for choice in choices:
        if split_max_size is not None and parts[-1] and size + choice.nbytes > split_max_size:
            parts.append([])
            size = 0
        parts[-1].append(choice)
        size += choice.nbytes
    return parts


def _lay_out(
    parts: Sequence[Sequence[_Choice]], metadata: dict[str, Value], output: Path
) -> tuple[tuple[PlannedFile, ...], dict[str, PlannedTensor]]:
    """Return the files, the first part last, and the place of every tensor by name."""
    count = len(parts)
    total = sum(map(len, parts))
    files: list[PlannedFile] = []
    placed: dict[str, PlannedTensor] = {}
    for index, part in enumerate(parts):
        infos, end = [], 0
        for choice in part:
            infos.append(TensorInfo(choice.name, choice.shape, choice.encoding, end))
            end = aligned(end + choice.nbytes)
        keys = metadata if index == 0 else {}
        header = serialise_header(keys | _split_metadata(index, count, total), infos)
        path = output if count == 1 else split_path(output, index, count)
        files.append(PlannedFile(path, header, len(header) + end))
        for choice, info in zip(part, infos, strict=True):
            placed[choice.name] = PlannedTensor(
                name=choice.name,
                shape=choice.shape,
                encoding=choice.encoding,
                file=count - 1 - index,
                offset=len(header) + info.offset,
                note=choice.note,
            )
    return tuple(reversed(files)), placed


def _split_metadata(index: int, count: int, tensors: int) -> dict[str, Value]:
    if count == 1:
        return {}
    return {
        "split.no": Value(ValueType.UINT16, index),
        "split.count": Value(ValueType.UINT16, count),
        "split.tensors.count": Value(ValueType.INT32, tensors),
    }


def _transfers(choices: Sequence[_Choice], placed: dict[str, PlannedTensor]) -> tuple[Transfer, ...]:
    """Return one transfer per source tensor, so that it is read once however many tensors it becomes."""
    by_source: dict[str, list[_Choice]] = {}
    for choice in choices:
        by_source.setdefault(choice.source.name, []).append(choice)
    return tuple(
        Transfer(group[0].source, tuple(Target(placed[choice.name], choice.selection, pack) for choice in group))
        for group in by_source.values()
    )


def _notes(
    checkpoint: Checkpoint, tokenizer: TokenizerSource, metadata: dict[str, Value], choices: Sequence[_Choice]
) -> tuple[str, ...]:
    notes = []
    if tokenizer.path.parent.resolve() != checkpoint.path.resolve() and tokenizer.path != checkpoint.path:
        notes.append(f"tokenizer: {tokenizer.path}")
    if "general.license" not in metadata:
        notes.append("licence: not stated by the source; state it with --license")
    if not checkpoint.config.rope.truncate:
        notes.append(
            "llama.cpp rounds the YaRN range of gpt-oss, whatever a file says: "
            "its logits differ slightly from the true model's (docs/gguf.md)"
        )
    fallbacks = [choice for choice in choices if choice.note]
    if fallbacks:
        notes.append(f"{len(fallbacks)} tensors are not stored as asked: {fallbacks[0].name}: {fallbacks[0].note}")
    return tuple(notes)


def tokenizer_in(folder: Path) -> TokenizerSource:
    """Return the tokenizer in `folder`, to take the place of a checkpoint's own.

    Raises:
        InputError: there is none.
    """
    from gptoss_convert.formats.huggingface import find_tokenizer

    assets = Assets(folder)
    config = assets.read_json_object("config.json") or {}
    tokenizer = find_tokenizer(assets, config)
    if tokenizer is None:
        raise InputError("no tokenizer in this folder", file=folder, expected="tokenizer.json")
    return tokenizer
