"""What the recipes for folders of safetensors files share: transfers, small files, files that are carried over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss_convert.assets import (
    CARRIED,
    CONFIG,
    MODEL_CARD,
    TOKENIZER_FILES,
    TOKENIZER_JSON,
    Assets,
)
from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.converters.plan import Entry, Plan, PlannedFile, Transfer
from gptoss_convert.converters.recoding import Recoding
from gptoss_convert.converters.sources import require_decodable, require_faithful
from gptoss_convert.errors import OutputError
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from gptoss_convert.formats.weight_folder import WeightFolder
from gptoss_convert.tokenizer import TokenizerSource


@dataclass(frozen=True)
class Carried:
    """Files that a folder gets besides its weights, and what is known of the tokenizer among them."""

    copies: Mapping[str, Path]
    """Files that are copied, by their name in the folder."""
    texts: Mapping[str, bytes]
    """Contents of files that are written anew."""
    special_ids: Mapping[str, int]
    """Token id by purpose, where the tokenizer was written anew."""
    notes: tuple[str, ...]


def carry_over(checkpoint: Checkpoint, tokenizer: TokenizerSource | None) -> Carried:
    """Return the files that travel from a checkpoint to a folder.

    A tokenizer that lies in files of its own is copied as it is; one that lies in a GGUF file is written anew.

    Args:
        checkpoint: the source.
        tokenizer: takes the place of the checkpoint's own.

    Raises:
        InputError: the tokenizer is damaged.
    """
    source = tokenizer or checkpoint.tokenizer
    # The model card of an ONNX folder says how to run that folder.
    names = [name for name in CARRIED if name != MODEL_CARD or checkpoint.format != "onnx"]
    copies = {name: path for name in names if (path := checkpoint.assets.path(name)) is not None}
    if source is None:
        return Carried(copies, {}, {}, ("no tokenizer: the source has none; name one with --tokenizer",))
    if source.path.name == TOKENIZER_JSON:
        beside = Assets(source.path.parent)
        copies = {name: path for name, path in copies.items() if name not in TOKENIZER_FILES}
        copies |= {name: path for name in TOKENIZER_FILES if (path := beside.path(name)) is not None}
        notes = () if source.path.parent == checkpoint.assets.folder else (f"tokenizer: {source.path}",)
        return Carried(copies, {}, {}, notes)
    vocabulary = source.vocabulary()
    written = tokenizer_files(vocabulary)
    copies = {name: path for name, path in copies.items() if name not in written}
    return Carried(copies, written, vocabulary.special_ids, (f"tokenizer files: written anew from {source.path}",))


def carried_configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the Hugging Face configuration that lies beside the source; empty if there is none."""
    raw = checkpoint.assets.read_json_object(CONFIG) or {}
    return raw if raw.get("model_type") == "gpt_oss" else {}


def plan_weight_folder(
    checkpoint: Checkpoint,
    folder: Path,
    weights: WeightFolder,
    *,
    format_name: str,
    recoding: Callable[[Tensor, Tensor], Recoding],
    carried: Carried,
    texts: Mapping[str, bytes],
    notes: Sequence[str],
    allow_lossy_source: bool,
    inputs: Sequence[Path] = (),
) -> Plan:
    """Return the plan for a folder.

    Args:
        checkpoint: the source.
        folder: where the files will be.
        weights: the layout of the tensors.
        format_name: of the layout.
        recoding: how the numbers of a tensor get from source to target.
        carried: files that travel from the source.
        texts: contents of further files by name, such as the configuration.
        notes: what the user should know.
        allow_lossy_source: whether numbers that were rounded when the source was stored may be decoded.
        inputs: files and folders that are read besides those of the source.

    Raises:
        UnsupportedError: numbers of the source cannot be decoded, or must not be.
    """
    transfers = tuple(
        Transfer(source, target, recoding(source, target))
        for name, target in weights.tensors.items()
        for source in (checkpoint.tensors[name],)
    )
    require_decodable(transfers)
    require_faithful(transfers, allow_lossy=allow_lossy_source)
    written = {**weights.texts, **texts, **carried.texts}
    files = [
        *_weight_files(weights, transfers),
        *(PlannedFile(folder / name, len(content), content) for name, content in written.items()),
        *(_copy(path, folder / name) for name, path in carried.copies.items() if name not in written),
    ]
    return Plan(
        source=checkpoint.path,
        source_format=checkpoint.format,
        inputs=(checkpoint.path, *checkpoint.files, *checkpoint.assets.paths(), *carried.copies.values(), *inputs),
        format=format_name,
        folder=folder.absolute(),
        files=tuple(replace(file, path=folder.absolute() / file.path.name) for file in files),
        transfers=transfers,
        notes=(*(f"source: {remark}" for remark in checkpoint.remarks), *checkpoint.notes, *carried.notes, *notes),
    )


def require_folder_name(folder: Path) -> None:
    """Refuse a path that cannot be the name of a new folder.

    Raises:
        OutputError: it has no last part.
    """
    if not folder.name:
        raise OutputError("output has no name", file=folder, hint="give the name of a new folder")


def _weight_files(weights: WeightFolder, transfers: Sequence[Transfer]) -> list[PlannedFile]:
    entries: dict[Path, list[Entry]] = {file.path: [] for file, _ in weights.files}
    for transfer in transfers:
        for part in weights.parts[transfer.target.name]:
            entry = Entry(
                name=part.name,
                shape=part.shape,
                encoding=transfer.target.encoding,
                offset=part.offset,
                nbytes=part.nbytes,
                source=transfer.source.name,
                source_encoding=transfer.source.encoding,
            )
            entries[part.file.path].append(entry)
    return [PlannedFile(file.path, file.size, header, tuple(entries[file.path])) for file, header in weights.files]


def _copy(source: Path, target: Path) -> PlannedFile:
    file = FileRef.at(source)
    return PlannedFile(target, file.size, b"", copied=file)
