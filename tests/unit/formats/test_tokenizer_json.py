"""Tokenizer files of a Hugging Face folder."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import LARGEST_TOKENIZER, Assets
from gptoss_convert.errors import GptossConvertError, InputError, UnsupportedError
from gptoss_convert.formats.gguf.vocabulary import O200K_PATTERN
from gptoss_convert.formats.tokenizer_json import HuggingFaceTokenizer
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from tests.support.tokenizers import write_small_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}
MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "byte_fallback": False}
TOKENIZER: dict[str, Any] = {
    "added_tokens": [
        {"id": 3, "content": "<|end|>", "special": True},
        {"id": 5, "content": "extra", "special": False},
        {"id": 6, "content": "<|like|>", "special": False},
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]},
    "post_processor": BYTE_LEVEL,
    "model": MODEL,
}


def read(
    folder: Path,
    tokenizer: object = TOKENIZER,
    settings: object = None,
    *,
    declared_ids: Mapping[str, int] | None = None,
) -> Vocabulary:
    """The vocabulary of a folder with this tokenizer.json and tokenizer_config.json (None: without)."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return HuggingFaceTokenizer(Assets(folder), declared_ids or {}).vocabulary()


def read_bytes(folder: Path, content: bytes) -> Vocabulary:
    (folder / "tokenizer.json").write_bytes(content)
    return HuggingFaceTokenizer(Assets(folder), {}).vocabulary()


def with_model(**fields: Any) -> dict[str, Any]:
    return TOKENIZER | {"model": MODEL | fields}


# --- the published tokenizer, cut


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_small_tokenizer(folder, tokens=300)
    return HuggingFaceTokenizer(Assets(folder), {"eos": 302, "bos": 999}).vocabulary()


def test_published_tokenizer_has_its_tokens(published: Vocabulary) -> None:
    assert len(published.tokens) == 321
    assert published.tokens[:3] == ["!", '"', "#"]
    assert published.tokens[300] == "<|startoftext|>"


def test_published_tokenizer_has_normal_and_control_tokens(published: Vocabulary) -> None:
    assert published.kinds == [TokenKind.NORMAL] * 300 + [TokenKind.CONTROL] * 21


def test_published_tokenizer_splits_as_o200k(published: Vocabulary) -> None:
    assert published.pattern == O200K_PATTERN


def test_published_tokenizer_names_its_special_tokens(published: Vocabulary) -> None:
    assert published.special_ids == {"bos": 300, "eos": 304, "pad": 301}


def test_published_tokenizer_adds_nothing(published: Vocabulary) -> None:
    assert published.added_automatically == {"bos": False, "eos": False}


def test_published_tokenizer_has_one_chat_template(published: Vocabulary) -> None:
    template = Path(__file__).resolve().parents[2] / "data/gpt-oss/chat_template.jinja"
    assert published.chat_templates == {"default": template.read_bytes().decode()}


def test_published_merges_make_tokens(published: Vocabulary) -> None:
    assert published.merges
    assert {merge.replace(" ", "") for merge in published.merges} <= set(published.tokens)


# --- tokens


def test_tokens_lie_at_their_ids(tmp_path: Path) -> None:
    vocabulary = read(tmp_path)
    assert vocabulary.tokens == ["a", "b", "ab", "<|end|>", None, "extra", "<|like|>"]
    assert vocabulary.kinds == [
        *[TokenKind.NORMAL] * 3,
        TokenKind.CONTROL,
        TokenKind.UNUSED,
        TokenKind.USER_DEFINED,
        TokenKind.CONTROL,
    ]


def test_added_token_may_repeat_an_ordinary_one(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, TOKENIZER | {"added_tokens": [{"id": 1, "content": "b", "special": True}]})
    assert vocabulary.tokens == ["a", "b", "ab"]
    assert vocabulary.kinds[1] is TokenKind.CONTROL


@pytest.mark.parametrize("merges", [[["a", "b"], ["ab", "a"]], ["a b", "ab a"]])
def test_both_spellings_of_merges_are_read(tmp_path: Path, merges: object) -> None:
    assert read(tmp_path, with_model(merges=merges)).merges == ["a b", "ab a"]


def test_no_merges_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, with_model(merges=[])).merges == []


# --- special tokens, templates


def test_special_tokens_are_named_by_text_or_by_object(tmp_path: Path) -> None:
    settings = {"bos_token": "<|end|>", "eos_token": {"content": "extra"}, "pad_token": None}
    assert read(tmp_path, settings=settings).special_ids == {"bos": 3, "eos": 5}


def test_special_token_that_is_no_added_token_is_not_known(tmp_path: Path) -> None:
    assert read(tmp_path, settings={"bos_token": "a", "eos_token": "<|missing|>"}).special_ids == {}


def test_ids_of_the_model_configuration_fill_the_gaps(tmp_path: Path) -> None:
    vocabulary = read(tmp_path, settings={"bos_token": "<|end|>"}, declared_ids={"bos": 0, "eos": 1})
    assert vocabulary.special_ids == {"bos": 3, "eos": 1}


def test_tokenizer_without_post_processor_adds_what_its_settings_say(tmp_path: Path) -> None:
    tokenizer = {key: value for key, value in TOKENIZER.items() if key != "post_processor"}
    settings = {"add_bos_token": True, "add_eos_token": False, "add_sep_token": "yes"}
    assert read(tmp_path, tokenizer, settings).added_automatically == {"bos": True, "eos": False}


def test_post_processor_goes_before_the_settings(tmp_path: Path) -> None:
    assert read(tmp_path, settings={"add_bos_token": True}).added_automatically == {"bos": False, "eos": False}


def test_chat_template_of_the_settings_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert read(tmp_path, settings={"chat_template": "settings"}).chat_templates == {"default": "settings"}
    assert read(tmp_path, settings={}).chat_templates == {"default": "file"}


def test_chat_templates_may_have_names(tmp_path: Path) -> None:
    templates = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    vocabulary = read(tmp_path, settings={"chat_template": templates})
    assert vocabulary.chat_templates == {"default": "d", "tool_use": "t"}


def test_folder_without_chat_template_has_none(tmp_path: Path) -> None:
    assert read(tmp_path).chat_templates == {}


# --- other tokenizers


@pytest.mark.parametrize(
    "change",
    [
        {"model": MODEL | {"type": "WordPiece"}},
        {"model": MODEL | {"type": "Unigram"}},
        {"model": MODEL | {"byte_fallback": True}},
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": BYTE_LEVEL},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, SPLIT]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL, BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": ["Split", "ByteLevel"]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": 2}},
        *(
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT | change, BYTE_LEVEL]}}
            for change in (
                {"pattern": {"String": " "}},
                {"pattern": {"Regex": 5}},
                {"pattern": r"\s+"},
                {"behavior": "Removed"},
                {"invert": True},
                {"type": "Digits"},
            )
        ),
        *(
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL | change]}}
            for change in ({"add_prefix_space": True}, {"use_regex": True}, {"type": "Metaspace"})
        ),
        {"post_processor": {"type": "TemplateProcessing"}},
        {"post_processor": {"type": "Sequence"}},
        {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, {"type": "TemplateProcessing"}]}},
    ],
)
def test_other_tokenizer_is_not_supported(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json"):
        read(tmp_path, TOKENIZER | change)


def test_sequence_of_byte_level_post_processors_is_supported(tmp_path: Path) -> None:
    tokenizer = TOKENIZER | {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL]}}
    assert read(tmp_path, tokenizer).added_automatically == {"bos": False, "eos": False}


# --- damage

SOUND = json.dumps(TOKENIZER).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"version https://git-lfs.github.com/spec/v1",
        b"<html></html>",
        b'{"model":' + b"[" * 100_000,
        SOUND[:-1],
        SOUND + b"x",
        SOUND.replace(b'"a": 0', b'"a": -1'),
        SOUND.replace(b'"a": 0', b'"a": 4194305'),
        SOUND.replace(b'"a": 0', b'"a": 1e3'),
        SOUND.replace(b'"a": 0', b'"a": "0"'),
        SOUND.replace(b'"a": 0', b'"a": 99999999999999999999999'),
        SOUND.replace(b'"a": 0', b'"\\ud800": 0'),
    ],
)
def test_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        read_bytes(tmp_path, content)


@pytest.mark.parametrize(
    "damage", [(b'"ab": 2', b'"\xff": 2'), (b'["a", "b"]', b'["\xff", "b"]'), (b"extra", b"\xc3")]
)
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, damage: tuple[bytes, bytes]) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        read_bytes(tmp_path, SOUND.replace(*damage))


@pytest.mark.parametrize("vocab", [{"a": 0, "b": 0}, {"a": 3}])
def test_id_of_two_tokens_is_refused(tmp_path: Path, vocab: dict[str, int]) -> None:
    with pytest.raises(InputError, match="used twice"):
        read(tmp_path, with_model(vocab=vocab))


def test_id_of_two_added_tokens_is_refused(tmp_path: Path) -> None:
    added = [{"id": 3, "content": "x"}, {"id": 3, "content": "y"}]
    with pytest.raises(InputError, match="used twice"):
        read(tmp_path, TOKENIZER | {"added_tokens": added})


def test_tokenizer_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="token ids are out of range"):
        read(tmp_path, TOKENIZER | {"added_tokens": [], "model": MODEL | {"vocab": {}}})


@pytest.mark.parametrize(
    "merges",
    [
        None,
        5,
        {},
        [1],
        [["a"]],
        [["a", "b", "c"]],
        [["a", 1]],
        ["a b", ["a", "b"]],
        [["a", "b"], "a b"],
        [["a b", "c"]],
    ],
)
def test_damaged_merges_are_refused(tmp_path: Path, merges: object) -> None:
    with pytest.raises(InputError, match="merge"):
        read(tmp_path, with_model(merges=merges))


@pytest.mark.parametrize("merge", ["ab", "a b c", ""])
def test_merge_of_other_than_two_tokens_is_refused(tmp_path: Path, merge: str) -> None:
    with pytest.raises(InputError, match="merge"):
        read(tmp_path, with_model(merges=["a b", merge]))


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "Sequence", "processors": None},
        {"type": "Sequence", "processors": 5},
        {"type": ["ByteLevel"]},
        {"type": "Sequence", "processors": [{"type": {}}]},
    ],
)
def test_damaged_post_processor_is_refused(tmp_path: Path, processor: object) -> None:
    with pytest.raises(GptossConvertError):
        read(tmp_path, TOKENIZER | {"post_processor": processor})


@pytest.mark.parametrize(
    "template",
    [5, {}, [], ["text"], [{"name": "a"}], [{"name": "a", "template": 1}], [{"name": "a", "template": "x"}] * 2],
)
def test_damaged_chat_templates_are_refused(tmp_path: Path, template: object) -> None:
    with pytest.raises(InputError, match="chat_template"):
        read(tmp_path, settings={"chat_template": template})


def test_chat_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InputError, match="chat template is not UTF-8"):
        read(tmp_path)


def test_chat_template_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(InputError, match="too large"):
        read(tmp_path)


def test_tokenizer_of_many_megabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(LARGEST_TOKENIZER + 1)
    with pytest.raises(InputError, match="too large"):
        HuggingFaceTokenizer(Assets(tmp_path), {}).vocabulary()


def test_hostile_chat_template_is_only_text(tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__ }}{% for i in range(10**9) %}{% endfor %}"
    assert read(tmp_path, settings={"chat_template": template}).chat_templates == {"default": template}


@pytest.mark.parametrize("settings", [[], 5, "text"])
def test_settings_that_are_no_object_are_refused(tmp_path: Path, settings: object) -> None:
    with pytest.raises(InputError, match=r"tokenizer_config\.json"):
        read(tmp_path, settings=settings)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="file is missing"):
        HuggingFaceTokenizer(Assets(tmp_path), {}).vocabulary()


@given(place=st.integers(0, len(SOUND) - 1), byte=st.sampled_from(b'0123456789-.,:{}[]"anull \\'))
def test_damaged_byte_gives_an_error_of_ours_or_a_vocabulary(tmp_path: Path, place: int, byte: int) -> None:
    content = bytearray(SOUND)
    content[place] = byte
    with contextlib.suppress(GptossConvertError):
        read_bytes(tmp_path, bytes(content))
