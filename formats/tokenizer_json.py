"""Tokenizer files of a Hugging Face folder, read into the canonical vocabulary.

Source of the rules: the tokenizers library's `tokenizer.json`, and, for which id serves which purpose,
`SpecialVocab` in llama.cpp's gguf-py (vocab.py), so that both tools choose the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gptoss_convert.assets import (
    CHAT_TEMPLATE,
    LARGEST_TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    Assets,
    is_utf8,
    read_small_file,
)
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.kernels import NATIVE
from gptoss_convert.tokenizer import TokenKind, Vocabulary

PURPOSES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
LARGEST_ID = 1 << 22


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False


class _Model(msgspec.Struct):
    vocab: dict[str, int]
    merges: msgspec.Raw
    type: str = "BPE"
    byte_fallback: bool = False


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


def find_tokenizer(assets: Assets, config: Mapping[str, Any]) -> HuggingFaceTokenizer | None:
    """Return the tokenizer among `assets`, with the ids that config.json declares; None if there is none."""
    if assets.path(TOKENIZER_JSON) is None:
        return None
    declared = {purpose: config.get(f"{purpose}_token_id") for purpose in PURPOSES}
    return HuggingFaceTokenizer(assets, {key: value for key, value in declared.items() if type(value) is int})


@dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer in a folder with `tokenizer.json`."""

    assets: Assets
    declared_ids: Mapping[str, int]
    """Ids by purpose that the model's own configuration declares; `tokenizer_config.json` goes before them."""

    @property
    def path(self) -> Path:
        """Path of `tokenizer.json`."""
        folder = self.assets.folder
        assert folder is not None
        return folder / TOKENIZER_JSON

    def vocabulary(self) -> Vocabulary:
        """Read and check the vocabulary.

        Raises:
            InputError: a file is missing or damaged.
            UnsupportedError: it is no byte-level BPE as gpt-oss uses.
        """
        tokenizer = self._decode(read_small_file(self.path, largest=LARGEST_TOKENIZER))
        if tokenizer.model.type != "BPE" or tokenizer.model.byte_fallback or tokenizer.normalizer is not None:
            raise UnsupportedError("tokenizer is not the byte-level BPE of gpt-oss", file=self.path)
        settings = self.assets.read_json_object(TOKENIZER_CONFIG) or {}
        tokens, kinds = self._tokens(tokenizer)
        return Vocabulary(
            tokens=tokens,
            kinds=kinds,
            merges=self._merges(tokenizer.model.merges),
            pattern=self._pattern(tokenizer.pre_tokenizer),
            special_ids=self._special_ids(tokenizer, settings),
            added_automatically=self._added_automatically(tokenizer, settings),
            chat_templates=self._chat_templates(settings),
        )

    def _decode(self, data: bytes) -> _Tokenizer:
        try:
            return msgspec.json.decode(data, type=_Tokenizer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"damaged tokenizer: {error}", file=self.path) from None

    def _tokens(self, tokenizer: _Tokenizer) -> tuple[list[str | None], list[TokenKind]]:
        vocab = tokenizer.model.vocab
        added: dict[int, _AddedToken] = {}
        for token in tokenizer.added_tokens:
            if added.setdefault(token.id, token) != token:
                raise InputError(f"token id {token.id} is used twice", file=self.path)
        ids = [*vocab.values(), *added]
        if not ids or min(ids) < 0 or max(ids) > LARGEST_ID:
            raise InputError("token ids are out of range", file=self.path, expected=f"0 to {LARGEST_ID}")
        tokens: list[str | None] = [None] * (max(ids) + 1)
        kinds = [TokenKind.UNUSED] * len(tokens)
        for text, index in vocab.items():
            if tokens[index] is not None:
                raise InputError(f"token id {index} is used twice", file=self.path)
            tokens[index] = text
            kinds[index] = TokenKind.NORMAL
        for index, token in added.items():
            if tokens[index] not in (None, token.content):
                raise InputError(f"token id {index} is used twice", file=self.path)
            tokens[index] = token.content
            marked = token.special or (token.content.startswith("<|") and token.content.endswith("|>"))
            kinds[index] = TokenKind.CONTROL if marked else TokenKind.USER_DEFINED
        return tokens, kinds

    def _merges(self, raw: msgspec.Raw) -> list[str]:
        """Return merges as `"left right"`; both spellings occur, pairs since tokenizers 0.20."""
        joined = None if NATIVE is None else NATIVE.join_pairs(memoryview(raw))
        try:
            if joined is not None:
                return joined.decode("utf-8").split("\n")[:-1]
            pairs = msgspec.json.decode(raw, type=list[tuple[str, str]])
        except msgspec.ValidationError:
            pairs = None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"damaged tokenizer: merges: {error}", file=self.path) from None
        if pairs is None:
            try:
                merges = msgspec.json.decode(raw, type=list[str])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InputError(f"damaged tokenizer: merges: {error}", file=self.path) from None
        else:
            merges = list(map(" ".join, pairs))
        if any(merge.count(" ") != 1 for merge in merges):
            raise InputError("a merge is not two tokens of byte-level BPE", file=self.path)
        return merges

    def _pattern(self, pre_tokenizer: dict[str, Any] | None) -> str:
        """Return the regular expression of `Sequence[Split(regex), ByteLevel]`."""
        steps = (pre_tokenizer or {}).get("pretokenizers")
        if isinstance(steps, list) and len(steps) == 2 and all(isinstance(step, dict) for step in steps):
            split, byte_level = steps
            pattern = split.get("pattern")
            regex = pattern.get("Regex") if isinstance(pattern, dict) else None
            if (
                isinstance(regex, str)
                and (split.get("type"), split.get("behavior"), split.get("invert")) == ("Split", "Isolated", False)
                and byte_level.get("type") == "ByteLevel"
                and not byte_level.get("add_prefix_space")
                and not byte_level.get("use_regex")
            ):
                return regex
        raise UnsupportedError(
            "pre-tokenizer is not that of gpt-oss",
            file=self.path,
            expected="a Split by regex, then ByteLevel",
        )

    def _special_ids(self, tokenizer: _Tokenizer, settings: dict[str, Any]) -> dict[str, int]:
        by_content = {token.content: token.id for token in reversed(tokenizer.added_tokens)}
        ids: dict[str, int] = {}
        for purpose in PURPOSES:
            entry = settings.get(f"{purpose}_token")
            content = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(content, str) and content in by_content:
                ids[purpose] = by_content[content]
        return ids | {key: value for key, value in self.declared_ids.items() if key not in ids}

    def _added_automatically(self, tokenizer: _Tokenizer, settings: dict[str, Any]) -> dict[str, bool]:
        added: dict[str, bool] = {}
        processor = tokenizer.post_processor or {}
        steps = processor.get("processors", [processor] if processor else [])
        steps = steps if isinstance(steps, list) else [steps]
        kinds = {str(step.get("type")) if isinstance(step, dict) else repr(step) for step in steps}
        if kinds - {"ByteLevel"}:
            raise UnsupportedError(
                "tokenizer adds tokens by a post-processor that gpt-oss does not have",
                file=self.path,
                found=", ".join(sorted(kinds)),
                expected="ByteLevel",
            )
        if kinds:
            added |= {"bos": False, "eos": False}
        for purpose in PURPOSES:
            if isinstance(flag := settings.get(f"add_{purpose}_token"), bool):
                added.setdefault(purpose, flag)
        return added

    def _chat_templates(self, settings: dict[str, Any]) -> dict[str, str]:
        entry = settings.get("chat_template")
        if entry is None:
            data = self.assets.read(CHAT_TEMPLATE)
            if data is None:
                return {}
            try:
                return {"default": data.decode("utf-8")}
            except UnicodeDecodeError:
                raise InputError("chat template is not UTF-8", file=self.assets.path(CHAT_TEMPLATE)) from None
        pairs = [("default", entry)]
        if isinstance(entry, list):
            items = [item if isinstance(item, dict) else {} for item in entry]
            pairs = [(str(item.get("name")), item.get("template")) for item in items]
        named = dict(pairs)
        sound = all(isinstance(text, str) and is_utf8(name + text) for name, text in pairs)
        if not pairs or not sound or len(named) < len(pairs):
            raise InputError(
                "chat_template is neither a text nor a list of texts with different names",
                file=self.assets.path(TOKENIZER_CONFIG),
            )
        return named
