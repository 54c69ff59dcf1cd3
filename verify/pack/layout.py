"""What a pack is made of: the arrays of a safetensors file, and the JSON in one of them.

| array | dtype | shape | holds |
|---|---|---|---|
| `facts` | U8 | [bytes] | JSON, as `Facts` |
| `vocabulary` | U8 | [bytes] | JSON, as `StoredVocabulary`, compressed by zlib; only if the model has a tokenizer |
| `ids` | I32 | [positions] | token ids of all prompts, one after the other |
| `samples` | F32 | [numbers] | some numbers of each tensor in canonical order, at `fingerprint.sampled_places` |
| `RUN.logprobs` | F32 | [positions, columns] | natural log-probabilities of the token after each position |
| `RUN.tokens` | I32 | [positions, columns] | the token of each column; not if column i is token i |
| `RUN.rest` | F32 | [positions] | log of the probability of all other tokens; with `RUN.tokens` only |
| `RUN.routing` | I16 | [positions, layers, experts per token] | the chosen experts |
| `RUN.router_margins` | F32 | [positions, layers] | how far the last of them was ahead |

RUN is `reference`, or the name of a runtime that the reference runner imitated.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from gptoss_convert.formats.config_fields import Count
from gptoss_convert.formats.stored_config import StoredConfig

VERSION = 1

LARGEST_HEADER = 1 << 20
"""Bytes of the safetensors header; a pack has some twenty arrays."""
LARGEST_FACTS = 32 << 20
"""Bytes; 411 tensors take 60 kB, and names of a few thousand prompts not much more."""
LARGEST_VOCABULARY = 64 << 20
"""Bytes of the JSON of a vocabulary; that of gpt-oss takes 9 million."""
MOST_POSITIONS = 1 << 22
MOST_TOKENS = 1 << 24
"""Of a vocabulary; gpt-oss has 201088."""

FACTS = "facts"
VOCABULARY = "vocabulary"
IDS = "ids"
SAMPLES = "samples"
LOGPROBS, TOKENS, REST, ROUTING, MARGINS = "logprobs", "tokens", "rest", "routing", "router_margins"
"""Of each run, after its name and a dot."""
REFERENCE_RUN = "reference"
"""Name of the run that imitates nobody."""

_Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_Text = Annotated[str, msgspec.Meta(max_length=1000)]
_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_Figure = Annotated[float, msgspec.Meta(ge=0, le=1e30)]


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of the JSON."""


class Stamp(msgspec.Struct, frozen=True):
    """What tells packs from other files, and their versions apart."""

    pack_version: int


class StoredFingerprint(_Section, frozen=True):
    """A tensor of the reference."""

    encoding: _Text
    sha256: _Digest
    """Canonical hash."""
    sha256_of_positive_zeros: _Digest | None = None
    """The same with all zeros positive, if that is another one; known of MXFP4 only."""


class StoredPrompt(_Section, frozen=True):
    """A prompt; its ids are in the array `ids`."""

    name: _Text
    kind: _Text
    tokens: Count


class StoredPrompts(_Section, frozen=True):
    """All prompts, in order."""

    name: _Text
    sha256: _Digest
    """Of the ids, as `PromptSet.sha256`."""
    prompts: list[StoredPrompt]
    remarks: list[_Text] = []


class StoredRun(_Section, frozen=True):
    """A run of the reference runner."""

    imitates: _Name | None = None
    """Runtime as which it computed; None for the model as published."""
    versions: dict[_Text, _Text] = {}
    seconds: _Figure | None = None


class Facts(_Section, frozen=True):
    """All that is not an array."""

    pack_version: int
    tool: _Text
    """Version of gptoss-convert."""
    source: _Text
    """Name of the file or folder, without where it lay."""
    source_format: _Text
    config: StoredConfig
    canonical_hash: _Digest
    tensors: dict[str, StoredFingerprint]
    prompts: StoredPrompts
    generation: dict[_Text, _Id | list[_Id] | None] | None
    """Ids in generation_config.json; None if there is no such file."""
    noise_floor: _Figure
    """Mean KL of the reference in bfloat16, in nats."""
    runs: list[StoredRun]


class StoredVocabulary(_Section, frozen=True):
    """The fields of `Vocabulary`."""

    tokens: list[str | None]
    kinds: list[int]
    merges: list[str]
    pattern: str
    special_ids: dict[str, _Id]
    added_automatically: dict[str, bool]
    chat_templates: dict[str, str]
