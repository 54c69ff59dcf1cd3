"""Prompts as token ids: the same ids go through every format."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from gptoss_convert.assets import read_small_file
from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError, OptionError, UnsupportedError
from gptoss_convert.tokenizer import TokenizerSource
from gptoss_convert.verify.chat_template import render_chat_template
from gptoss_convert.verify.harmony import CONTROLS, plain_text, render
from gptoss_convert.verify.prompt_files import (
    Conversation,
    Ids,
    PromptLine,
    Templated,
    Text,
    parse_prompt_lines,
)
from gptoss_convert.verify.text_encoder import Piece, TextEncoder

PRESETS = {
    "quick": ("quick.jsonl",),
    "full": ("quick.jsonl", "full.jsonl"),
    "long": ("quick.jsonl", "full.jsonl", "long.jsonl"),
}
"""Files in `prompt_data` by the name of a built-in set: a look, a verdict, and one beyond 4096 positions too."""

DECODE = "decode"
"""Name of the prompts that are taken from any others to be computed token by token."""


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
    remarks: tuple[str, ...] = ()
    """What the reader of a report should know about the prompts."""

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


def load_prompts(
    source: str | Path,
    tokenizer: TokenizerSource | None,
    config: ModelConfig,
    *,
    max_tokens: int | None = None,
) -> PromptSet:
    """Return the prompts of a built-in set or of a file, as token ids of one model.

    Args:
        source: a name in `PRESETS`, or a file as `prompt_files` describes it.
        tokenizer: the model's own; None if it has none, then prompts have to be token ids.
        config: the model's; ids are below its `vocab_size`, and no prompt has more tokens than it has positions.
        max_tokens: longer prompts are cut to so many tokens.

    Raises:
        InputError: the file or the tokenizer is damaged, or a prompt does not fit the model.
        OptionError: there is no such set or file, or `max_tokens` is less than 1.
        UnsupportedError: text has to be encoded, and there is no tokenizer, none as gpt-oss has, or no library for
            it; or the chat template is asked for, and there is none.
    """
    if max_tokens is not None and max_tokens < 1:
        raise OptionError("prompts have at least one token", found=max_tokens)
    renderer = _Renderer(tokenizer, config)
    prompts = []
    for line in _lines(source):
        with line.named_errors():
            ids = _cut(renderer.ids(line), line.max_tokens, max_tokens)
            _require_fitting(ids, config)
        prompts.append(Prompt(name=line.name, kind=line.kind, ids=ids))
    return PromptSet(name=_set_name(source), prompts=tuple(prompts), remarks=renderer.remarks)


def _set_name(source: str | Path) -> str:
    """Return the name of a built-in set, or that of a file, which never reads like a built-in one."""
    if isinstance(source, str) and source in PRESETS:
        return source
    name = Path(source).name
    return f"./{name}" if name in (*PRESETS, DECODE) else name


def _lines(source: str | Path) -> Iterable[PromptLine]:
    if isinstance(source, str) and source in PRESETS:
        folder = files("gptoss_convert.verify").joinpath("prompt_data")
        return [
            line
            for name in PRESETS[source]
            for line in parse_prompt_lines(folder.joinpath(name).read_bytes(), f"built-in {name}")
        ]
    path = Path(source)
    try:
        exists = path.exists()
    except OSError:  # a name may be too long to be one
        exists = False
    if not exists:
        raise OptionError(
            "there are no such prompts", found=source, expected=f"a file, or one of {', '.join(PRESETS)}"
        )
    return parse_prompt_lines(read_small_file(path), str(path))


def _cut(ids: tuple[int, ...], *limits: int | None) -> tuple[int, ...]:
    return ids[: min((limit for limit in limits if limit is not None), default=len(ids))]


def _require_fitting(ids: tuple[int, ...], config: ModelConfig) -> None:
    if not ids:
        raise InputError("prompt is empty")
    if max(ids) >= config.vocab_size:
        raise InputError(
            "token id is not in the vocabulary of the model",
            found=max(ids),
            expected=f"0 to {config.vocab_size - 1}",
        )
    if len(ids) > config.max_position_embeddings:
        raise InputError(
            "prompt is longer than the model can read",
            found=f"{len(ids)} tokens",
            expected=f"at most {config.max_position_embeddings}",
            hint="cut prompts with --max-tokens",
        )


class _Renderer:
    """Makes token ids of prompts; reads the tokenizer when the first one needs it."""

    def __init__(self, tokenizer: TokenizerSource | None, config: ModelConfig) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = config.vocab_size
        self._lacking: set[str] = set()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What has been done otherwise than asked."""
        if not self._lacking:
            return ()
        lacking = ", ".join(sorted(self._lacking))
        return (f"conversations are plain text, because the model lacks control tokens of Harmony: {lacking}",)

    def ids(self, line: PromptLine) -> tuple[int, ...]:
        """Return the token ids of a prompt, uncut."""
        content = line.content
        return content.ids if isinstance(content, Ids) else self._encoder.encode(self._pieces(content))

    def _pieces(self, content: Text | Conversation | Templated) -> Iterable[Piece]:
        if isinstance(content, Text):
            return [content.text]
        if isinstance(content, Templated):
            return self._templated(content)
        lacking = {control.token for control in CONTROLS} - self._encoder.controls.keys()
        self._lacking |= lacking
        return [plain_text(content.messages)] if lacking else render(content.messages)

    def _templated(self, content: Templated) -> Iterable[Piece]:
        vocabulary = self._encoder.vocabulary
        template = vocabulary.chat_templates.get("default")
        if template is None:
            raise UnsupportedError("model has no chat template", hint='leave out "render": "template"')
        controls = self._encoder.controls
        by_id = {index: token for token, index in controls.items()}
        special = {purpose: by_id.get(index) for purpose, index in vocabulary.special_ids.items()}
        return render_chat_template(
            template,
            content.messages,
            tools=content.tools,
            special_tokens={purpose: token for purpose, token in special.items() if token is not None},
            controls=controls,
        )

    @cached_property
    def _encoder(self) -> TextEncoder:
        if self._tokenizer is None:
            raise UnsupportedError(
                "model has no tokenizer, so that text cannot be made token ids",
                hint='put its tokenizer.json beside it, or give --prompts a file with lines {"ids": [...]}',
            )
        return TextEncoder(self._tokenizer, self._vocab_size)
