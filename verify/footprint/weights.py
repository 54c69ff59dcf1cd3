"""Bytes of the weights by role and encoding: of a file, or of a form that a model could be converted to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Role, inventory
from gptoss_convert.encodings import ENCODINGS

_COMPUTED_IN_F32 = (Role.NORM, Role.ATTENTION_BIAS, Role.SINKS, Role.ROUTER, Role.EXPERT_BIAS)
"""Roles that GGUF files hold in float32, whatever the rest is stored in."""


@dataclass(frozen=True, kw_only=True)
class WeightGroup:
    """All tensors of one role in one encoding."""

    role: str
    encoding: str
    parameters: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form that a model can be converted to, with the defaults of the command that does it."""

    name: str
    format: str
    """Name in `gptoss_convert.formats.FORMATS`."""
    experts: str
    """Encoding of the expert matrices."""
    others: str
    """Encoding of embedding, unembedding and attention matrices."""
    small: str
    """Encoding of norms, biases, sinks and routers."""
    embedding: str | None = None
    """Encoding of the embedding, where it is not that of the unembedding."""
    provider: str | None = None
    """Execution provider that an ONNX folder is made for, by onnxruntime-genai's name."""


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form(name="gguf", format="gguf", experts="mxfp4", others="bf16", small="f32"),
        Form(name="gguf-q8_0", format="gguf", experts="mxfp4", others="q8_0", small="f32"),
        Form(name="mxfp4", format="huggingface", experts="mxfp4", others="bf16", small="bf16"),
        Form(name="bf16", format="huggingface", experts="bf16", others="bf16", small="bf16"),
        Form(
            name="onnx-cpu",
            format="onnx",
            experts="int8-block",
            others="f32",
            small="f32",
            embedding="bf16",
            provider="cpu",
        ),
        Form(name="onnx-directml", format="onnx", experts="mxfp4", others="f16", small="f32", provider="dml"),
        Form(name="onnx-webgpu", format="onnx", experts="mxfp4", others="f16", small="f32", provider="webgpu"),
        Form(name="onnx-cuda", format="onnx", experts="mxfp4", others="f16", small="f16", provider="cuda"),
    )
}
"""By the name that the command line has for it."""


def weights_of_checkpoint(checkpoint: Checkpoint) -> tuple[WeightGroup, ...]:
    """Return the weights of a file or folder. Reads nothing."""
    specs = inventory(checkpoint.config)
    parameters: Counter[tuple[str, str]] = Counter()
    nbytes: Counter[tuple[str, str]] = Counter()
    for name, tensor in checkpoint.tensors.items():
        key = (str(specs[name].role), tensor.encoding.name)
        parameters[key] += math.prod(tensor.shape)
        nbytes[key] += tensor.nbytes
    return _groups(parameters, nbytes)


def weights_of_form(config: ModelConfig, form: Form) -> tuple[WeightGroup, ...]:
    """Return the weights that a model with this configuration has in `form`."""
    parameters: Counter[tuple[str, str]] = Counter()
    nbytes: Counter[tuple[str, str]] = Counter()
    for spec in inventory(config).values():
        name = (
            form.experts
            if spec.role is Role.EXPERTS
            else form.small
            if spec.role in _COMPUTED_IN_F32
            else form.embedding or form.others
            if spec.role is Role.EMBEDDING
            else form.others
        )
        encoding = ENCODINGS[name]
        if not encoding.fits(spec.shape[-1]):
            encoding = ENCODINGS["f16" if name == "q8_0" else "bf16"]
        parameters[str(spec.role), encoding.name] += math.prod(spec.shape)
        nbytes[str(spec.role), encoding.name] += encoding.nbytes(spec.shape)
    return _groups(parameters, nbytes)


def total(groups: Collection[WeightGroup], *roles: Role) -> int:
    """Return the bytes of the groups with one of these roles; of all groups if none is named."""
    wanted = set(map(str, roles))
    return sum(group.nbytes for group in groups if not wanted or group.role in wanted)


def number_type(groups: Collection[WeightGroup]) -> str:
    """Return the encoding of attention matrices: what a graph computes with, and keeps in its cache."""
    return max(
        (group for group in groups if group.role == str(Role.ATTENTION)), key=lambda group: group.nbytes
    ).encoding


def _groups(
    parameters: Mapping[tuple[str, str], int], nbytes: Mapping[tuple[str, str], int]
) -> tuple[WeightGroup, ...]:
    order = [str(role) for role in Role]
    return tuple(
        WeightGroup(role=key[0], encoding=key[1], parameters=parameters[key], nbytes=nbytes[key])
        for key in sorted(nbytes, key=lambda key: (order.index(key[0]), key[1]))
    )
