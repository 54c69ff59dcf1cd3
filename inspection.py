"""What a checkpoint is: format, configuration, sizes, tokenizer, and what is wrong with it."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Role, inventory
from gptoss_convert.description import Description
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.formats import format_named
from gptoss_convert.tokenizer import TokenKind, Vocabulary

if TYPE_CHECKING:
    from gptoss_convert.canonical_hash import CheckpointHash


LONGEST_TEMPLATE = 64 << 10
"""Characters of a chat template that is as such templates are; that of gpt-oss has a quarter of it."""
_UNUSUAL = re.compile(r"__\w{1,40}__|\|\s{0,9}attr\b|{%[-+]?\s{0,9}(?:include|import|from|extends)\b")
"""What a chat template never needs, and one that wants out of its sandbox does."""


@dataclass(frozen=True)
class TensorGroup:
    """All tensors of one role in one encoding."""

    role: str
    encoding: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class TokenizerFacts:
    """What is worth knowing about a vocabulary."""

    tokens: int
    padding_rows: int
    """Rows of the embedding without a token."""
    merges: int
    control_tokens: int
    special: Mapping[str, str]
    """Token and id by purpose."""
    chat_templates: Mapping[str, str]
    """SHA-256 of the template by name."""


@dataclass(frozen=True)
class Inspection:
    """The facts about one checkpoint."""

    path: str
    format: str
    title: str
    files: int
    config: ModelConfig
    parameters: int
    active_parameters: int
    """Parameters that take part in computing one token; looking up its embedding is not counted."""
    groups: tuple[TensorGroup, ...]
    nbytes: int
    tokenizer: TokenizerFacts | None
    description: Description | None
    details: Mapping[str, str]
    problems: tuple[GptossConvertError, ...]
    remarks: tuple[str, ...] = ()
    """What was repaired, assumed or left out in reading."""
    hash: CheckpointHash | None = None
    """None unless it was asked for: all tensor data must be read for it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON-ready data."""
        said = {} if self.description is None else asdict(self.description)
        return asdict(self) | {
            "description": {key: value for key, value in said.items() if value},
            "problems": [problem.as_dict() for problem in self.problems],
        }


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """Gather the facts about `checkpoint`. Reads the tokenizer, but no tensor data."""
    problems = list(checkpoint.problems)
    facts = None
    remarks = checkpoint.remarks
    if checkpoint.tokenizer is None:
        problems.append(InputError("no tokenizer beside the weights", file=checkpoint.path))
    else:
        try:
            vocabulary = checkpoint.tokenizer.vocabulary()
            facts = _tokenizer_facts(vocabulary, checkpoint.config.vocab_size)
            remarks += tuple(_unusual_templates(vocabulary))
        except GptossConvertError as problem:
            problems.append(problem)
    description = None
    try:
        description = checkpoint.describe()
    except GptossConvertError as problem:
        problems.append(problem)
    groups = _groups(checkpoint)
    return Inspection(
        path=str(checkpoint.path),
        format=checkpoint.format,
        title=format_named(checkpoint.format).TITLE,
        files=len(checkpoint.files),
        config=checkpoint.config,
        parameters=sum(group.parameters for group in groups),
        active_parameters=active_parameters(checkpoint.config),
        groups=groups,
        nbytes=sum(group.nbytes for group in groups),
        tokenizer=facts,
        description=description,
        details=checkpoint.details,
        problems=tuple(problems),
        remarks=remarks,
    )


def active_parameters(config: ModelConfig) -> int:
    """Return how many parameters compute one token: of the experts, those that are chosen.

    The embedding is left out, as in OpenAI's figures (3.6e9 for gpt-oss-20b, 5.1e9 for gpt-oss-120b).
    """
    active = 0
    for spec in inventory(config).values():
        size = math.prod(spec.shape)
        if spec.role in (Role.EXPERTS, Role.EXPERT_BIAS):
            active += size // config.num_local_experts * config.num_experts_per_tok
        elif spec.role is not Role.EMBEDDING:
            active += size
    return active


def _groups(checkpoint: Checkpoint) -> tuple[TensorGroup, ...]:
    specs = inventory(checkpoint.config)
    counts: Counter[tuple[str, str]] = Counter()
    parameters: Counter[tuple[str, str]] = Counter()
    nbytes: Counter[tuple[str, str]] = Counter()
    for name, tensor in checkpoint.tensors.items():
        role = str(specs[name].role) if name in specs else "unknown"
        key = (role, tensor.encoding.name)
        counts[key] += 1
        parameters[key] += math.prod(tensor.shape)
        nbytes[key] += tensor.nbytes
    order = [str(role) for role in Role] + ["unknown"]
    return tuple(
        TensorGroup(*key, counts[key], parameters[key], nbytes[key])
        for key in sorted(counts, key=lambda key: (order.index(key[0]), key[1]))
    )


def _unusual_templates(vocabulary: Vocabulary) -> Iterator[str]:
    """Yield what is strange about chat templates, which are never run here but by most who get the model."""
    for name, text in vocabulary.chat_templates.items():
        if match := _UNUSUAL.search(text):
            yield f"chat template {name!r} has {match[0]!r}, which none needs: look at it before you run it"
        if len(text) > LONGEST_TEMPLATE:
            yield f"chat template {name!r} has {len(text)} characters: look at it before you run it"


def _tokenizer_facts(vocabulary: Vocabulary, vocab_size: int) -> TokenizerFacts:
    def described(index: int) -> str:
        known = 0 <= index < len(vocabulary.tokens)
        return f"{vocabulary.tokens[index] if known else '?'} ({index})"

    tokens = sum(token is not None for token in vocabulary.tokens)
    return TokenizerFacts(
        tokens=tokens,
        padding_rows=vocab_size - tokens,
        merges=len(vocabulary.merges),
        control_tokens=sum(kind is TokenKind.CONTROL for kind in vocabulary.kinds),
        special={purpose: described(index) for purpose, index in vocabulary.special_ids.items()},
        chat_templates={
            name: hashlib.sha256(text.encode()).hexdigest() for name, text in vocabulary.chat_templates.items()
        },
    )
