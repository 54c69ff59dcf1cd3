"""The vocabulary as GGUF metadata."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import Assets
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.container import (
    Value,
    ValueType,
    read_header,
    serialise_header,
    string,
    strings,
    uint32,
)
from gptoss_convert.formats.gguf.vocabulary import O200K_PATTERN, GgufTokenizer, vocabulary_metadata
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.formats.tokenizer_json import HuggingFaceTokenizer
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from tests.support.tokenizers import write_small_tokenizer

PATH = Path("tokenizer.json")
SMALL = Vocabulary(
    tokens=["a", "b", "ab", None, "<|end|>"],
    kinds=[TokenKind.NORMAL, TokenKind.NORMAL, TokenKind.NORMAL, TokenKind.UNUSED, TokenKind.CONTROL],
    merges=["a b"],
    pattern=O200K_PATTERN,
    special_ids={"bos": 4, "eos": 4, "pad": 0},
    added_automatically={"bos": False, "eos": True},
    chat_templates={"default": "{{ messages }}"},
)


def metadata_of(vocabulary: Vocabulary, vocab_size: int = 8) -> dict[str, Value]:
    return vocabulary_metadata(vocabulary, vocab_size=vocab_size, path=PATH)


def parsed(metadata: dict[str, Value]) -> Vocabulary:
    return GgufTokenizer(PATH, metadata).vocabulary()


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Any vocabulary of the pre-tokenizer that llama.cpp knows."""
    used = st.tuples(st.text(), st.sampled_from([TokenKind.NORMAL, TokenKind.CONTROL, TokenKind.USER_DEFINED]))
    gap = st.just((None, TokenKind.UNUSED))
    entries = [*draw(st.lists(used | gap, max_size=20)), draw(used)]
    ids = st.integers(0, len(entries) - 1)
    names = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
    return Vocabulary(
        tokens=[text for text, _ in entries],
        kinds=[kind for _, kind in entries],
        merges=draw(st.lists(st.text())),
        pattern=O200K_PATTERN,
        special_ids=draw(st.dictionaries(st.sampled_from(["bos", "eos", "unk", "sep", "pad", "cls", "mask"]), ids)),
        added_automatically=draw(st.dictionaries(st.sampled_from(["bos", "eos", "sep"]), st.booleans())),
        chat_templates=draw(st.dictionaries(names | st.just("default"), st.text(), max_size=3)),
    )


@given(vocabularies(), st.integers(0, 5))
def test_any_vocabulary_returns_from_a_file(tmp_path: Path, vocabulary: Vocabulary, padding: int) -> None:
    path = tmp_path / "file.gguf"
    metadata = metadata_of(vocabulary, len(vocabulary.tokens) + padding)
    path.write_bytes(serialise_header(metadata, []))
    assert parsed(dict(read_header(FileRef.at(path)).metadata)) == vocabulary


def test_vocabulary_of_tokenizer_json_returns(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    vocabulary = HuggingFaceTokenizer(Assets(tmp_path), {}).vocabulary()
    assert parsed(metadata_of(vocabulary, 512)) == vocabulary


def test_ids_without_token_are_padding() -> None:
    metadata = metadata_of(SMALL)
    tokens = list(metadata["tokenizer.ggml.tokens"].value)
    assert tokens == ["a", "b", "ab", "[PAD3]", "<|end|>", "[PAD5]", "[PAD6]", "[PAD7]"]
    assert metadata["tokenizer.ggml.token_type"].value.tolist() == [1, 1, 1, 5, 3, 5, 5, 5]


def test_kinds_are_numbered_as_in_gguf_py() -> None:
    assert {kind.name: kind.value for kind in TokenKind}.items() <= {
        k.name: k.value for k in gguf.TokenType
    }.items()


def test_scalar_keys() -> None:
    metadata = metadata_of(SMALL)
    assert metadata["tokenizer.ggml.model"] == string("gpt2")
    assert metadata["tokenizer.ggml.pre"] == string("gpt-4o")
    assert metadata["tokenizer.ggml.bos_token_id"] == uint32(4)
    assert metadata["tokenizer.ggml.padding_token_id"] == uint32(0)
    assert metadata["tokenizer.ggml.add_eos_token"] == Value(ValueType.BOOL, True)
    assert metadata["tokenizer.chat_template"] == string("{{ messages }}")


def test_keys_are_those_of_gguf_py() -> None:
    purposes = ("bos", "eos", "unk", "sep", "pad", "mask")  # gguf-py has no key for cls, llama.cpp has
    everything = replace(
        SMALL,
        special_ids=dict.fromkeys(purposes, 0),
        added_automatically=dict.fromkeys(purposes, False),
        chat_templates={"default": "", "tool_use": ""},
    )
    names = {key.format(name="tool_use") for key in vars(gguf.Keys.Tokenizer).values() if isinstance(key, str)}
    assert metadata_of(everything).keys() <= names


def test_named_templates_are_listed() -> None:
    metadata = metadata_of(replace(SMALL, chat_templates={"default": "d", "tool use": "t"}))
    assert metadata["tokenizer.chat_template"] == string("d")
    assert metadata["tokenizer.chat_template.tool_use"] == string("t")
    assert list(metadata["tokenizer.chat_templates"].value) == ["tool_use"]


def test_vocabulary_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(InputError, match="more tokens than the embedding has rows"):
        metadata_of(SMALL, 4)


@pytest.mark.parametrize("index", [-1, 8])
def test_special_id_outside_the_embedding_is_refused(index: int) -> None:
    with pytest.raises(InputError, match="eos token is outside the vocabulary"):
        metadata_of(replace(SMALL, special_ids={"eos": index}))


def test_other_pre_tokenizer_is_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="regular expression"):
        metadata_of(replace(SMALL, pattern=r"\s+"))


METADATA = metadata_of(SMALL)


@pytest.mark.parametrize(("key", "value"), [("model", "llama"), ("pre", "qwen2"), ("pre", "")])
def test_other_tokenizer_in_a_file_is_not_supported(key: str, value: str) -> None:
    with pytest.raises(UnsupportedError, match="tokenizer is not that of gpt-oss"):
        parsed(METADATA | {f"tokenizer.ggml.{key}": string(value)})


@pytest.mark.parametrize("key", ["tokens", "token_type", "merges"])
def test_missing_list_is_an_error_that_names_it(key: str) -> None:
    without = {name: value for name, value in METADATA.items() if name != f"tokenizer.ggml.{key}"}
    with pytest.raises(InputError, match=key):
        parsed(without)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", uint32(1)),
        ("tokens", Value(ValueType.INT32, np.array([1, 2]))),
        ("token_type", strings(["1"] * 8)),
        ("merges", string("a b")),
    ],
)
def test_list_of_another_kind_is_refused(key: str, value: Value) -> None:
    with pytest.raises(InputError, match=key):
        parsed(METADATA | {f"tokenizer.ggml.{key}": value})


def test_kinds_must_be_as_many_as_tokens() -> None:
    kinds = Value(ValueType.INT32, np.ones(7, np.int32))
    with pytest.raises(InputError, match=r"token_type does not fit tokens \(tokenizer.json\): found 7, expected 8"):
        parsed(METADATA | {"tokenizer.ggml.token_type": kinds})


@pytest.mark.parametrize("number", [0, 2, 6, 99, -1])
def test_token_of_unknown_kind_counts_as_normal(number: int) -> None:
    kinds = Value(ValueType.INT32, np.array([number] + [1] * 7, np.int32))
    assert parsed(METADATA | {"tokenizer.ggml.token_type": kinds}).kinds[0] is TokenKind.NORMAL


def test_id_of_another_kind_is_not_known() -> None:
    assert "eos" not in parsed(METADATA | {"tokenizer.ggml.eos_token_id": string("4")}).special_ids
