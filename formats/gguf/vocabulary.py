"""The vocabulary as GGUF metadata.

Source: `_set_vocab_gpt2` and `SpecialVocab` in llama.cpp's converter. The pre-tokenizer is named by its regular
expression; llama.cpp calls that of o200k `gpt-4o`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.container import (
    StringArray,
    Value,
    ValueType,
    boolean,
    string,
    strings,
    uint32,
)
from gptoss_convert.formats.gguf.dialects import DIALECTS, LLAMA_CPP
from gptoss_convert.tokenizer import TokenKind, Vocabulary

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS,
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS,
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
PRE_TOKENIZERS = {O200K_PATTERN: "gpt-4o"}
"""llama.cpp's name of a pre-tokenizer by its regular expression."""
_PATTERNS = {name: pattern for pattern, name in PRE_TOKENIZERS.items()}

_PREFIX = "tokenizer.ggml."
_Scalar = TypeVar("_Scalar", int, bool)
_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # GGUF's own spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
_ADD_KEYS = {"bos": "add_bos_token", "eos": "add_eos_token", "sep": "add_sep_token"}
_TEMPLATE_KEY = "tokenizer.chat_template"
_PADDING = re.compile(r"\[PAD[0-9]+\]")
"""A token that pads the vocabulary: unused in files of llama.cpp's converter, defined by the user in Ollama's."""


def vocabulary_metadata(vocabulary: Vocabulary, *, vocab_size: int, path: Path) -> dict[str, Value]:
    """Return the metadata that describes `vocabulary`, filled up to `vocab_size` rows of the embedding.

    Args:
        vocabulary: the canonical vocabulary.
        vocab_size: rows of the embedding; ids without a token become `[PADid]` of kind unused.
        path: file to name in errors.

    Raises:
        InputError: the vocabulary is larger than the embedding, or a special id is outside of it.
        UnsupportedError: llama.cpp has no pre-tokenizer for its regular expression.
    """
    if len(vocabulary.tokens) > vocab_size:
        raise InputError(
            "tokenizer has more tokens than the embedding has rows",
            file=path,
            found=len(vocabulary.tokens),
            expected=f"at most {vocab_size}",
        )
    pre_tokenizer = PRE_TOKENIZERS.get(vocabulary.pattern)
    if pre_tokenizer is None:
        raise UnsupportedError(
            "llama.cpp has no pre-tokenizer for this regular expression",
            file=path,
            found=vocabulary.pattern,
            expected="that of o200k",
        )
    padding = range(len(vocabulary.tokens), vocab_size)
    tokens = [f"[PAD{index}]" if text is None else text for index, text in enumerate(vocabulary.tokens)]
    tokens += [f"[PAD{index}]" for index in padding]
    kinds = np.full(vocab_size, TokenKind.UNUSED, np.int32)
    kinds[: len(vocabulary.kinds)] = vocabulary.kinds
    metadata = {
        _PREFIX + "model": string("gpt2"),
        _PREFIX + "pre": string(pre_tokenizer),
        _PREFIX + "tokens": strings(tokens),
        _PREFIX + "token_type": Value(ValueType.INT32, kinds),
        _PREFIX + "merges": strings(vocabulary.merges),
    }
    for purpose, index in vocabulary.special_ids.items():
        if not 0 <= index < vocab_size:
            raise InputError(f"{purpose} token is outside the vocabulary", file=path, found=index)
        metadata[_PREFIX + _ID_KEYS[purpose]] = uint32(index)
    for purpose, added in vocabulary.added_automatically.items():
        if purpose in _ADD_KEYS:
            metadata[_PREFIX + _ADD_KEYS[purpose]] = boolean(added)
    return metadata | _template_metadata(vocabulary.chat_templates)


def _template_metadata(templates: Mapping[str, str]) -> dict[str, Value]:
    """Return the templates; other than the default one they are listed by name, with `_` for odd characters."""
    named = {
        "".join(c if c.isascii() and c.isalnum() else "_" for c in name): text
        for name, text in templates.items()
        if name != "default"
    }
    metadata = {f"{_TEMPLATE_KEY}.{name}": string(text) for name, text in named.items()}
    if named:
        metadata["tokenizer.chat_templates"] = strings(list(named))
    if "default" in templates:
        metadata[_TEMPLATE_KEY] = string(templates["default"])
    return metadata


def _is_padding(token: str | None, kind: TokenKind) -> bool:
    return token is None or (kind is TokenKind.USER_DEFINED and _PADDING.fullmatch(token) is not None)


@dataclass(frozen=True)
class GgufTokenizer:
    """The vocabulary in the metadata of a GGUF file."""

    path: Path
    metadata: Mapping[str, Value]

    def vocabulary(self) -> Vocabulary:
        """Decode the vocabulary.

        Raises:
            InputError: a key is missing or contradicts another.
            UnsupportedError: it is a tokenizer of another kind.
        """
        model, pre = self._text(_PREFIX + "model"), self._pre_tokenizer()
        if model != "gpt2" or pre not in _PATTERNS:
            raise UnsupportedError(
                "tokenizer is not that of gpt-oss",
                file=self.path,
                found=f"{model}, {pre}",
                expected="gpt2, gpt-4o",
            )
        texts = list(self._array("tokens", StringArray))
        numbers = np.asarray(self._array("token_type", np.ndarray))
        if len(numbers) != len(texts):
            raise InputError(
                "token_type does not fit tokens", file=self.path, found=len(numbers), expected=len(texts)
            )
        known = set(TokenKind)
        kinds = [TokenKind(number) if number in known else TokenKind.NORMAL for number in numbers.tolist()]
        tokens = [None if kind is TokenKind.UNUSED else text for kind, text in zip(kinds, texts, strict=True)]
        used = len(tokens)
        while used and _is_padding(tokens[used - 1], kinds[used - 1]):
            used -= 1
        return Vocabulary(
            tokens=tokens[:used],
            kinds=kinds[:used],
            merges=list(self._array("merges", StringArray)),
            pattern=_PATTERNS[pre],
            special_ids=self._scalars(_ID_KEYS, int),
            added_automatically=self._scalars(_ADD_KEYS, bool),
            chat_templates=self._templates(),
        )

    def _pre_tokenizer(self) -> str:
        """Return llama.cpp's name of the pre-tokenizer."""
        dialect = DIALECTS.get(self._text("general.architecture"), LLAMA_CPP)
        name = self._text(_PREFIX + "pre")
        return dialect.pre_tokenizers.get(name, name)

    def _text(self, key: str) -> str:
        value = self.metadata.get(key)
        return value.value if value is not None and isinstance(value.value, str) else ""

    def _array(self, key: str, kind: type[Any]) -> Any:
        value = self.metadata.get(_PREFIX + key)
        if value is None or not isinstance(value.value, kind):
            raise InputError(f"metadata key is missing or no list: {_PREFIX}{key}", file=self.path)
        return value.value

    def _scalars(self, keys: Mapping[str, str], kind: type[_Scalar]) -> dict[str, _Scalar]:
        found = {purpose: self.metadata.get(_PREFIX + key) for purpose, key in keys.items()}
        return {
            purpose: value.value
            for purpose, value in found.items()
            if value is not None and type(value.value) is kind
        }

    def _templates(self) -> dict[str, str]:
        templates = {}
        for key, value in self.metadata.items():
            if isinstance(value.value, str) and key.startswith(_TEMPLATE_KEY):
                templates[key.removeprefix(_TEMPLATE_KEY).removeprefix(".") or "default"] = value.value
        return templates
