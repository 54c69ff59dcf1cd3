"""The recipe for BF16: a Hugging Face folder with every tensor in bfloat16, as transformers writes and reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.assets import CONFIG
from gptoss_convert.checkpoint import Checkpoint, Tensor, inventory
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.recoding import PLAIN, NamingRecoding, Recoding
from gptoss_convert.converters.weight_folder import (
    Carried,
    carried_configuration,
    carry_over,
    plan_weight_folder,
    require_folder_name,
)
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats.huggingface_writer import config_json, lay_out_folder
from gptoss_convert.formats.scale_sidecar import SIDECAR_NAME
from gptoss_convert.tokenizer import TokenizerSource

DEFAULT_SHARD_SIZE = 5_000_000_000
"""Bytes of tensor data per file, as transformers has it."""


@dataclass(frozen=True, kw_only=True)
class Bf16Options:
    """What the user decides about a BF16 folder."""

    max_shard_size: int = DEFAULT_SHARD_SIZE
    """Bytes of tensor data per file; a single larger tensor gets a file of its own."""
    allow_lossy_source: bool = False
    """Whether numbers that were rounded when the source was stored may be decoded."""


def plan_bf16(
    checkpoint: Checkpoint,
    folder: Path,
    options: Bf16Options | None = None,
    *,
    tokenizer: TokenizerSource | None = None,
) -> Plan:
    """Plan the conversion of `checkpoint` to a Hugging Face folder in bfloat16. Reads no tensor data.

    Scales of MXFP4 blocks that the values alone do not tell are named in a file beside the weights, so that
    `to-mxfp4` can restore every byte.

    Args:
        checkpoint: the model.
        folder: the folder to write.
        options: size of the shards.
        tokenizer: takes the place of the checkpoint's own.

    Raises:
        InputError: the checkpoint is not sound, or a file beside it is damaged.
        UnsupportedError: numbers of the source cannot be decoded.
    """
    options = options or Bf16Options()
    checkpoint.require_sound()
    require_folder_name(folder)
    bf16 = ENCODINGS["bf16"]
    encodings = dict.fromkeys(inventory(checkpoint.config), bf16)
    carried = _with_named_scales(carry_over(checkpoint, tokenizer), checkpoint)
    config = config_json(
        checkpoint.config,
        carried=carried_configuration(checkpoint),
        special_ids=carried.special_ids,
        experts=bf16,
    )
    plan = plan_weight_folder(
        checkpoint,
        folder,
        lay_out_folder(checkpoint.config, encodings, folder.absolute(), max_shard_size=options.max_shard_size),
        format_name="huggingface",
        recoding=_recoding,
        carried=carried,
        texts={CONFIG: config},
        notes=(),
        allow_lossy_source=options.allow_lossy_source,
    )
    from_mxfp4 = any(transfer.source.encoding.name == "mxfp4" for transfer in plan.transfers)
    return replace(plan, scale_sidecar=folder.absolute() / SIDECAR_NAME) if from_mxfp4 else plan


def _with_named_scales(carried: Carried, checkpoint: Checkpoint) -> Carried:
    """Return `carried` with the file of scales beside weights that were decoded before."""
    path = checkpoint.assets.path(SIDECAR_NAME)
    decoded = all(tensor.encoding.name != "mxfp4" for tensor in checkpoint.tensors.values())
    if path is None or checkpoint.format != "huggingface" or not decoded:
        return carried
    return replace(carried, copies={**carried.copies, SIDECAR_NAME: path})


def _recoding(source: Tensor, target: Tensor) -> Recoding:
    return NamingRecoding() if source.encoding.name == "mxfp4" else PLAIN
