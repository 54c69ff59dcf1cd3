"""Prompts as token ids: the same ids go through every format."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A text as the model sees it."""

    name: str
    kind: str
    """What it exercises: chat, code, language, long, ..."""
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PromptSet:
    """Prompts that are run together."""

    name: str
    prompts: tuple[Prompt, ...]

    @property
    def positions(self) -> int:
        """Token ids in all prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def sha256(self) -> str:
        """Digest of the ids: for each prompt their number and themselves, all as little-endian 32-bit integers."""
        digest = hashlib.sha256()
        for prompt in self.prompts:
            digest.update(struct.pack(f"<I{len(prompt.ids)}I", len(prompt.ids), *prompt.ids))
        return digest.hexdigest()
