"""Tokenizer files written from the canonical vocabulary."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import Assets
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.vocabulary import GgufTokenizer, vocabulary_metadata
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from gptoss_convert.formats.tokenizer_json import HuggingFaceTokenizer
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from tests.support.tokenizers import DATA, write_real_tokenizer, write_small_tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = TokenKind
SMALL = Vocabulary(
    tokens=["a", "b", "ab", None, "<|end|>", "extra", "<|return|>", "<|call|>"],
    kinds=[NORMAL, NORMAL, NORMAL, UNUSED, CONTROL, USER_DEFINED, CONTROL, CONTROL],
    merges=["a b"],
    pattern=r"\s+|\S+",
    special_ids={"bos": 4, "eos": 6},
    added_automatically={"bos": False, "eos": False},
    chat_templates={"default": "{{ messages }}"},
)
PUBLISHED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def read(folder: Path) -> Vocabulary:
    return HuggingFaceTokenizer(Assets(folder), {}).vocabulary()


def written(vocabulary: Vocabulary, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(vocabulary).items():
        (folder / name).write_bytes(content)
    return folder


def parsed(vocabulary: Vocabulary, name: str) -> Any:
    return json.loads(tokenizer_files(vocabulary)[name])


# --- the published tokenizer


@pytest.mark.parametrize("write", [write_real_tokenizer, write_small_tokenizer])
def test_published_files_return_byte_for_byte(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    files = tokenizer_files(read(tmp_path))
    assert {name: files[name] for name in PUBLISHED} == {name: (tmp_path / name).read_bytes() for name in PUBLISHED}


def test_published_files_return_from_the_metadata_of_a_gguf_file(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    metadata = vocabulary_metadata(read(tmp_path), vocab_size=540, path=path)
    files = tokenizer_files(GgufTokenizer(path, metadata).vocabulary())
    assert {name: files[name] for name in PUBLISHED} == {name: (tmp_path / name).read_bytes() for name in PUBLISHED}


def test_published_generation_config_returns_but_for_a_version(tmp_path: Path) -> None:
    write_real_tokenizer(tmp_path)
    # As of openai/gpt-oss-20b and -120b; it also names the version of transformers that wrote it.
    assert parsed(read(tmp_path), "generation_config.json") == {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": [200002, 199999, 200012],
        "pad_token_id": 199999,
    }


def test_names_are_those_of_the_repository(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    assert set(tokenizer_files(read(tmp_path))) == {*PUBLISHED, "generation_config.json"}
    assert {path.name for path in DATA.glob("*.json")} > {"tokenizer_config.json", "special_tokens_map.json"}


# --- any vocabulary


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Tokens with gaps between them, of which some are made of two others."""
    texts = draw(st.lists(st.text("abcdeé", min_size=1, max_size=3), min_size=1, max_size=12, unique=True))
    kinds = draw(st.lists(st.sampled_from([NORMAL, NORMAL, CONTROL, USER_DEFINED]), min_size=12, max_size=12))
    entries: list[tuple[str | None, TokenKind]] = []
    for text, kind in zip(texts, kinds, strict=False):
        spelled = text if kind is NORMAL else f"<|{text}|>" if kind is CONTROL else f"+{text}"
        entries += [(None, UNUSED)] * draw(st.integers(0, 2)) + [(spelled, kind)]
    ordinary = {text for text, kind in entries if kind is NORMAL and text is not None}
    splits = [(text[:cut], text[cut:]) for text in sorted(ordinary) for cut in range(1, len(text))]
    special = [index for index, (_, kind) in enumerate(entries) if kind is CONTROL]
    purposes = st.lists(st.sampled_from(["bos", "eos", "pad", "unk"]), unique=True, max_size=4 if special else 0)
    names = st.lists(st.sampled_from(["tool_use", "rag"]), unique=True)
    return Vocabulary(
        tokens=[text for text, _ in entries],
        kinds=[kind for _, kind in entries],
        merges=[f"{left} {right}" for left, right in splits if {left, right} <= ordinary],
        pattern=draw(st.text(max_size=5)),
        special_ids={purpose: draw(st.sampled_from(special)) for purpose in draw(purposes)},
        added_automatically={"bos": False, "eos": False},
        chat_templates={name: draw(st.text(max_size=5)) for name in ["default", *draw(names)]},
    )


@given(vocabularies())
def test_any_vocabulary_returns(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    assert read(written(vocabulary, tmp_path)) == vocabulary


@given(vocabularies())
def test_equal_vocabularies_give_equal_bytes(vocabulary: Vocabulary) -> None:
    reordered = replace(
        vocabulary,
        special_ids=dict(reversed(vocabulary.special_ids.items())),
        chat_templates=dict(reversed(vocabulary.chat_templates.items())),
    )
    assert tokenizer_files(reordered) == tokenizer_files(vocabulary)


def test_kinds_become_flags() -> None:
    added = parsed(SMALL, "tokenizer.json")["added_tokens"]
    assert {token["content"]: token["special"] for token in added} == {
        "<|end|>": True,
        "extra": False,
        "<|return|>": True,
        "<|call|>": True,
    }
    assert {token["id"] for token in added} == {4, 5, 6, 7}


def test_ids_without_token_are_left_out() -> None:
    content = parsed(SMALL, "tokenizer.json")
    assert content["model"]["vocab"] == {"a": 0, "b": 1, "ab": 2}
    assert "3" not in parsed(SMALL, "tokenizer_config.json")["added_tokens_decoder"]


def test_added_token_that_a_merge_needs_is_an_ordinary_one_too(tmp_path: Path) -> None:
    kinds = [NORMAL, NORMAL, CONTROL, *SMALL.kinds[3:]]
    vocabulary = replace(SMALL, kinds=kinds)
    assert parsed(vocabulary, "tokenizer.json")["model"]["vocab"]["ab"] == 2
    assert read(written(vocabulary, tmp_path)).kinds == kinds


@pytest.mark.parametrize(
    ("special_ids", "ends"),
    [
        ({"eos": 6}, [6, 7]),
        ({"eos": 4}, [4, 6, 7]),
        ({"eos": 7, "bos": 4}, [7, 6]),
        ({}, [6, 7]),
    ],
)
def test_generation_ends_with_eos_and_every_token_that_ends_gpt_oss(
    special_ids: dict[str, int], ends: list[int]
) -> None:
    content = parsed(replace(SMALL, special_ids=special_ids), "generation_config.json")
    assert content["eos_token_id"] == ends
    assert content.get("bos_token_id") == special_ids.get("bos")


def test_ordinary_tokens_do_not_end_generation() -> None:
    kinds = [kind if kind is not CONTROL else NORMAL for kind in SMALL.kinds]
    content = parsed(replace(SMALL, kinds=kinds, special_ids={}), "generation_config.json")
    assert content == {"do_sample": True}


def test_no_template_gives_no_file() -> None:
    files = tokenizer_files(replace(SMALL, chat_templates={}))
    assert "chat_template.jinja" not in files
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])


@pytest.mark.parametrize("names", [["default", "tool_use"], ["tool_use"], ["../../../tmp/x", "default"]])
def test_several_templates_give_no_files_of_such_names(names: list[str], tmp_path: Path) -> None:
    vocabulary = replace(SMALL, chat_templates={name: f"{{# {name} #}}" for name in names})
    assert set(tokenizer_files(vocabulary)) == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"
    }  # fmt: skip
    assert read(written(vocabulary, tmp_path)).chat_templates == vocabulary.chat_templates


# --- what is no tokenizer of gpt-oss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": ["a", "b", "ab", None, "a", "extra", "x", "y"]}, "two ids have the same token: found a"),
        ({"merges": ["a c"]}, "made of no tokens: found a c"),
        ({"merges": ["b a"]}, "made of no tokens: found b a"),
        ({"merges": ["ab"]}, "not two tokens"),
        ({"merges": ["a b c"]}, "not two tokens"),
        ({"special_ids": {"eos": 3}}, "eos token has an id without a token: found 3"),
        ({"special_ids": {"pad": 8}}, "pad token has an id without a token: found 8"),
        ({"special_ids": {"bos": -1}}, "bos token has an id without a token: found -1"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tokenizer_files(replace(SMALL, **change))


def test_tokenizer_that_adds_tokens_is_not_supported() -> None:
    with pytest.raises(UnsupportedError, match=r"adds tokens by itself.*bos"):
        tokenizer_files(replace(SMALL, added_automatically={"bos": True, "eos": False}))
