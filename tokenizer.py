"""The canonical vocabulary: what a tokenizer is, whichever file it came from."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class TokenKind(enum.IntEnum):
    """Kind of a token; the numbers are those of GGUF (`llama_token_type` in llama.h)."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    """An id without a token: a row of the embedding that pads the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE vocabulary.

    Tokens and merges are written in GPT-2's byte-to-unicode alphabet, as in `tokenizer.json`.
    """

    tokens: Sequence[str | None]
    """By id; None for an id without a token."""
    kinds: Sequence[TokenKind]
    """By id."""
    merges: Sequence[str]
    """`"left right"`, by rank."""
    pattern: str
    """Regular expression that splits text before BPE."""
    special_ids: Mapping[str, int]
    """Id by purpose: bos, eos, unk, sep, pad, cls, mask; those that are known, in the order found."""
    added_automatically: Mapping[str, bool]
    """Whether encoding adds the token of a purpose (bos, eos, ...) by itself; those that are known."""
    chat_templates: Mapping[str, str]
    """Template source by name; the usual one is called `default`. Never rendered here."""


class TokenizerSource(Protocol):
    """Where a vocabulary can be read from."""

    @property
    def path(self) -> Path:
        """The file that holds the vocabulary."""

    def vocabulary(self) -> Vocabulary:
        """Read and check the vocabulary.

        Raises:
            InputError: the file is missing or damaged.
            UnsupportedError: it is a tokenizer of another kind.
        """
