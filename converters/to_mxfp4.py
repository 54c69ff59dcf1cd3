"""The recipe for MXFP4: expert matrices in four bits, everything else in bfloat16, in either published layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptoss_convert.assets import CONFIG, SIDECAR
from gptoss_convert.checkpoint import Checkpoint, Role, Tensor, inventory
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.recoding import PLAIN, QuantisingRecoding, Recoding
from gptoss_convert.converters.weight_folder import (
    carried_configuration,
    carry_over,
    plan_weight_folder,
    require_folder_name,
)
from gptoss_convert.encodings import ENCODINGS, Encoding, encoding
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats import huggingface_writer, openai_writer
from gptoss_convert.formats.scale_sidecar import NamedScales, read_sidecar
from gptoss_convert.tokenizer import TokenizerSource

LAYOUTS = ("hf", "openai")
PUBLISHED_SHARD_SIZE = 4_800_000_000
"""Bytes of tensor data per file in the published repositories."""
LARGEST_SINGLE_FILE = 16 << 30
"""OpenAI published gpt-oss-20b, which is smaller, in one file, and gpt-oss-120b in several."""


@dataclass(frozen=True, kw_only=True)
class Mxfp4Options:
    """What the user decides about an MXFP4 folder."""

    layout: Literal["hf", "openai"] = "hf"
    """That of the Hugging Face repositories, or of their folder `original`."""
    rule: ScaleRule = ScaleRule.MSE
    """How the scale of a block is chosen, where no named scale is as good."""
    dense: str | None = "bf16"
    """Encoding of everything but the expert matrices; None keeps that of the source."""
    max_shard_size: int | None = None
    """Bytes of tensor data per file; a single larger tensor gets a file of its own. None divides as published."""
    allow_lossy_source: bool = False
    """Whether numbers that were rounded when the source was stored may be decoded."""


def plan_mxfp4(
    checkpoint: Checkpoint,
    folder: Path,
    options: Mxfp4Options | None = None,
    *,
    base: Checkpoint | None = None,
    tokenizer: TokenizerSource | None = None,
) -> Plan:
    """Plan the conversion of `checkpoint` to a folder with experts in MXFP4. Reads no tensor data.

    Experts that are in MXFP4 already keep every bit. Others are quantised, and their blocks keep the scale that
    `base` or the file of scales beside the source names for them wherever it is as good as the rule's choice.

    Args:
        checkpoint: the model.
        folder: the folder to write.
        options: layout, rule, encodings.
        base: the model in MXFP4 that this one was decoded or tuned from; what is left of the change is measured.
        tokenizer: takes the place of the checkpoint's own.

    Raises:
        InputError: the checkpoint or the base is not sound, or a file beside it is damaged.
        OptionError: the base is another model, or has no MXFP4 experts.
        UnsupportedError: numbers of the source cannot be decoded, or the layout cannot express the model.
    """
    options = options or Mxfp4Options()
    checkpoint.require_sound()
    if options.layout == "openai" and options.dense != "bf16":
        raise OptionError("OpenAI's layout has bf16 only", found=f"dense {options.dense or 'as in the source'}")
    require_folder_name(folder)
    _require_whole_blocks(checkpoint)
    folder = folder.absolute()
    carried = carry_over(checkpoint, tokenizer)
    if options.layout == "openai":
        weights = openai_writer.lay_out_folder(
            checkpoint.config,
            folder,
            max_shard_size=options.max_shard_size or _published_shard_size(checkpoint),
            source=checkpoint.path,
        )
        texts = {}
    else:
        weights = huggingface_writer.lay_out_folder(
            checkpoint.config,
            _encodings(checkpoint, options),
            folder,
            max_shard_size=options.max_shard_size or PUBLISHED_SHARD_SIZE,
        )
        texts = {
            CONFIG: huggingface_writer.config_json(
                checkpoint.config,
                carried=carried_configuration(checkpoint),
                special_ids=carried.special_ids,
                experts=ENCODINGS["mxfp4"],
            )
        }
    recodings = quantising_recodings(checkpoint, base, options.rule)
    return plan_weight_folder(
        checkpoint,
        folder,
        weights,
        format_name="huggingface" if options.layout == "hf" else "openai",
        recoding=lambda source, target: recodings.get(source.name, PLAIN),
        carried=carried,
        texts=texts,
        notes=_notes(recodings, options.rule, base),
        allow_lossy_source=options.allow_lossy_source,
        inputs=() if base is None else (base.path, *base.files),
    )


def _published_shard_size(checkpoint: Checkpoint) -> int | None:
    """Return bytes of tensor data per file in OpenAI's layout; None for a single file."""
    mxfp4, bf16 = ENCODINGS["mxfp4"], ENCODINGS["bf16"]
    total = sum(
        (mxfp4 if spec.role is Role.EXPERTS else bf16).nbytes(spec.shape)
        for spec in inventory(checkpoint.config).values()
    )
    return None if total <= LARGEST_SINGLE_FILE else openai_writer.PUBLISHED_SHARD_SIZE


def _require_whole_blocks(checkpoint: Checkpoint) -> None:
    mxfp4 = ENCODINGS["mxfp4"]
    for name, spec in inventory(checkpoint.config).items():
        if spec.role is Role.EXPERTS and not mxfp4.fits(spec.shape[-1]):
            raise UnsupportedError(
                "rows of experts are not whole blocks of MXFP4",
                file=checkpoint.tensors[name].file,
                tensor=name,
                found=f"{spec.shape[-1]} elements",
                expected=f"a multiple of {mxfp4.block}",
            )


def _encodings(checkpoint: Checkpoint, options: Mxfp4Options) -> dict[str, Encoding]:
    """Return the encoding that every tensor gets in the Hugging Face layout."""
    others = None if options.dense is None else encoding(options.dense)
    return {
        name: ENCODINGS["mxfp4"] if spec.role is Role.EXPERTS else others or checkpoint.tensors[name].encoding
        for name, spec in inventory(checkpoint.config).items()
    }


def quantising_recodings(
    checkpoint: Checkpoint, base: Checkpoint | None = None, rule: ScaleRule = ScaleRule.MSE
) -> dict[str, Recoding]:
    """Return how each expert tensor that is not in MXFP4 yet is quantised, by its name.

    Raises:
        InputError: the base is not sound, or a file beside the checkpoint is damaged.
        OptionError: the base is another model, or has no MXFP4 experts.
    """
    experts = {
        name: checkpoint.tensors[name]
        for name, spec in inventory(checkpoint.config).items()
        if spec.role is Role.EXPERTS and checkpoint.tensors[name].encoding.name != "mxfp4"
    }
    if base is not None:
        return {
            name: QuantisingRecoding(rule, base=_tensor_of_base(base, tensor)) for name, tensor in experts.items()
        }
    named = _named_scales(checkpoint, experts)
    return {name: QuantisingRecoding(rule, named=named.get(name)) for name in experts}


def _tensor_of_base(base: Checkpoint, tensor: Tensor) -> Tensor:
    base.require_sound()
    found = base.tensors.get(tensor.name)
    if found is None or found.shape != tensor.shape:
        raise OptionError(
            "the model to take scales from is another one",
            file=base.path,
            tensor=tensor.name,
            found="nothing" if found is None else f"shape {list(found.shape)}",
            expected=f"shape {list(tensor.shape)}",
        )
    if found.encoding.name != "mxfp4":
        raise OptionError(
            "the model to take scales from is not in MXFP4",
            file=base.path,
            tensor=tensor.name,
            found=found.encoding.name,
            expected="mxfp4",
        )
    return found


def _named_scales(checkpoint: Checkpoint, experts: Mapping[str, Tensor]) -> dict[str, NamedScales]:
    path = checkpoint.assets.path(SIDECAR)
    if path is None or checkpoint.format != "huggingface":
        return {}
    return read_sidecar(path, {name: tensor.shape for name, tensor in experts.items()})


def _notes(recodings: Mapping[str, Recoding], rule: ScaleRule, base: Checkpoint | None) -> tuple[str, ...]:
    if not recodings:
        return ("experts: in MXFP4 already, every bit is kept",)
    kept = [recoding for recoding in recodings.values() if isinstance(recoding, QuantisingRecoding)]
    if base is not None:
        where = f", or that of {base.path} where it is as good"
    elif any(recoding.named for recoding in kept):
        where = f", or that in {SIDECAR} where it is as good"
    else:
        where = ""
    return (f"experts: {len(recodings)} tensors are quantised, scales by rule {rule}{where}",)
