"""The tokenizer files of a Hugging Face folder, written from the canonical vocabulary.

Layout, order of keys and line breaks are those of the files that OpenAI published, so that the vocabulary of
gpt-oss gives `tokenizer.json` and its companions byte for byte, whichever format the vocabulary was kept in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from gptoss_convert.assets import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.tokenizer_json import PURPOSES
from gptoss_convert.tokenizer import TokenKind, Vocabulary

END_TOKENS = ("<|return|>", "<|endoftext|>", "<|call|>")
"""Control tokens that end what gpt-oss generates, in the order of the published generation_config.json."""
_MAPPED = ("bos", "eos", "pad")
"""Purposes that the published special_tokens_map.json names."""
_UNBOUNDED = int(1e30)
"""transformers' `VERY_LARGE_INTEGER`: the tokenizer knows no longest text."""


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Return the contents of the tokenizer files by name; equal vocabularies give equal bytes.

    `tokenizer.json` encodes and decodes as the vocabulary says. Ids without a token are left out. The chat template
    is `chat_template.jinja`, several ones go into `tokenizer_config.json`. `generation_config.json` names every
    token that ends generation, where a vocabulary names one.

    Raises:
        InputError: two ids have the same token, a merge is made of no tokens, or a special id has no token.
        UnsupportedError: encoding adds tokens by itself, which the tokenizer of gpt-oss never does.
    """
    added = sorted(purpose for purpose, always in vocabulary.added_automatically.items() if always)
    if added:
        raise UnsupportedError("tokenizer adds tokens by itself, unlike that of gpt-oss", found=", ".join(added))
    repeated = [
        text
        for text, count in Counter(token for token in vocabulary.tokens if token is not None).items()
        if count > 1
    ]
    if repeated:
        raise InputError("two ids have the same token", found=repeated[0])
    special = _special_tokens(vocabulary)
    files = {
        TOKENIZER_JSON: _tokenizer_json(vocabulary),
        TOKENIZER_CONFIG: _json(_tokenizer_config(vocabulary, special)),
        SPECIAL_TOKENS_MAP: _json({f"{key}_token": special[key] for key in _MAPPED if key in special}),
        GENERATION_CONFIG: _json(_generation_config(vocabulary)),
    }
    if list(vocabulary.chat_templates) == ["default"]:
        files[CHAT_TEMPLATE] = vocabulary.chat_templates["default"].encode("utf-8")
    return files


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
    """Return the token by purpose."""
    special = {}
    for purpose in PURPOSES:
        index = vocabulary.special_ids.get(purpose)
        if index is None:
            continue
        token = vocabulary.tokens[index] if 0 <= index < len(vocabulary.tokens) else None
        if token is None:
            raise InputError(f"{purpose} token has an id without a token", found=index)
        special[purpose] = token
    return special


def _added_tokens(vocabulary: Vocabulary) -> dict[int, dict[str, Any]]:
    """Return the tokens that are found in a text before it is split, by id."""
    return {
        index: {
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": kind is not TokenKind.CONTROL,
            "special": kind is TokenKind.CONTROL,
        }
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if token is not None and kind in (TokenKind.CONTROL, TokenKind.USER_DEFINED)
    }


def _tokenizer_json(vocabulary: Vocabulary) -> bytes:
    added = _added_tokens(vocabulary)
    pairs = [tuple(merge.split(" ")) for merge in vocabulary.merges]
    ids = {token: index for index, token in enumerate(vocabulary.tokens) if token is not None}
    ordinary = {token: index for token, index in ids.items() if index not in added}
    for pair in pairs:
        if len(pair) != 2:
            raise InputError("a merge is not two tokens of byte-level BPE", found=" ".join(pair))
        for token in (*pair, "".join(pair)):
            if token not in ordinary:
                if token not in ids:
                    raise InputError("a merge is made of no tokens", found=" ".join(pair))
                ordinary[token] = ids[token]  # also an added token may be made of others
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index} | token for index, token in added.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": vocabulary.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": dict(sorted(ordinary.items(), key=lambda item: item[1])),
            "merges": pairs,
        },
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2)


def _tokenizer_config(vocabulary: Vocabulary, special: Mapping[str, str]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "added_tokens_decoder": {
            str(index): dict(sorted(token.items())) for index, token in _added_tokens(vocabulary).items()
        },
        "clean_up_tokenization_spaces": False,
        "extra_special_tokens": {},
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": _UNBOUNDED,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    content |= {f"{purpose}_token": token for purpose, token in special.items()}
    templates = vocabulary.chat_templates
    if templates and list(templates) != ["default"]:
        content["chat_template"] = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    return dict(sorted(content.items()))


def _generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    ends = [vocabulary.special_ids["eos"]] if "eos" in vocabulary.special_ids else []
    control = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind is TokenKind.CONTROL
    }
    ends += [control[token] for token in END_TOKENS if token in control and control[token] not in ends]
    content: dict[str, Any] = {"do_sample": True}
    if ends:
        content["eos_token_id"] = ends
    content |= {
        f"{key}_token_id": vocabulary.special_ids[key] for key in ("bos", "pad") if key in vocabulary.special_ids
    }
    return dict(sorted(content.items()))
