"""The tokenizer that comes back from a GGUF file against the published one, as other programs load them."""

import functools
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from tests.peers import llama_cpp_converter
from tests.support import tokenizers
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.conversions import to_gguf

MAKERS = ("this project", "llama.cpp's converter")
HARMONY = (
    "<|start|>system<|message|>You are ChatGPT, a large language model.\nReasoning: low<|end|>"
    "<|start|>user<|message|>Wie geht's?<|end|><|start|>assistant<|channel|>analysis<|message|>Greeting.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    "<|start|>assistant<|channel|>final<|message|>Gut!<|return|><|endoftext|><|startoftext|><|endofprompt|>"
)
CODE = Path(__file__).read_text(encoding="utf-8")
SCRIPTS = (
    "The quick brown fox. Don't, I'LL, we've, CamelCaseWords, SCREAMING_SNAKE and 1234567890 3.14159e-10",
    "Größe, façade, naïve, Ångström, İstanbul, ﬁ ligature, Ⅷ, ½, ①, x² + y³",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "敏捷的棕色狐狸跳過懶狗。素早い茶色の狐。빠른 갈색 여우",
    "الثعلب البني السريع يقفز فوق الكلب الكسول; השועל החום המהיר",
    "तेज़ भूरी लोमड़ी; สุนัขจิ้งจอกสีน้ำตาล; დედამიწა; Հայաստան; ကမ္ဘာ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ☕️ 🫠 \U0001f9ff",
    "e\u0301 vs \u00e9, \u200b\u200d\ufeff zero width, \u202eright to left\u202c",
)
WHITESPACE = (" ", "  ", "\n", "\r\n\r\n", "\t\t x", "a  \n   b \n\n\n  ", "\u00a0\u2003\u3000 z", " " * 300, "")
CORPUS = (
    HARMONY,
    CODE,
    *SCRIPTS,
    *WHITESPACE,
    "<|start|",
    "<|end|><|end|>|>",
    "[PAD200019]",
    "<|reserved_200000|>",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published tokenizer and a small model."""
    folder = tmp_path_factory.mktemp("published") / "gpt-oss-20b"
    ids = tokenizers.write_real_tokenizer(folder)
    return write_huggingface(folder, Shape(layers=1, hidden=32, intermediate=32, vocab=201088), special_ids=ids)


@pytest.fixture(scope="module", params=MAKERS)
def returned(request: pytest.FixtureRequest, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer files made of a GGUF file."""
    folder = tmp_path_factory.mktemp("returned")
    path = folder / "model.gguf"
    if request.param == MAKERS[0]:
        to_gguf(published, path)
    else:
        llama_cpp_converter.convert(published, path)
    tokenizer = open_checkpoint(path).tokenizer
    assert tokenizer is not None
    for name, content in tokenizer_files(tokenizer.vocabulary()).items():
        (folder / name).write_bytes(content)
    path.unlink()
    return folder


@functools.cache
def tokenizer_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@functools.cache
def transformers_tokenizer_of(folder: Path) -> Any:
    transformers: Any = importlib.import_module("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same(published: Path, returned: Path, text: str) -> None:
    expected, found = tokenizer_of(published), tokenizer_of(returned)
    ids = expected.encode(text).ids
    assert found.encode(text).ids == ids
    for skipping in (False, True):
        assert found.decode(ids, skip_special_tokens=skipping) == expected.decode(ids, skip_special_tokens=skipping)


def test_files_are_the_published_ones(published: Path, returned: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (returned / name).read_bytes() == (published / name).read_bytes(), name
    found, expected = (
        json.loads((folder / "generation_config.json").read_text()) for folder in (returned, published)
    )
    expected.pop("transformers_version", None)
    assert found == expected


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_corpus_has_the_same_ids_and_text(published: Path, returned: Path, text: str) -> None:
    assert_same(published, returned, text)
    ids = tokenizer_of(returned).encode(text).ids
    assert tokenizer_of(returned).decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_single_ids(returned: Path) -> None:
    ids = tokenizer_of(returned).encode("<|start|>a<|message|>b<|call|>").ids
    assert [index for index in ids if index >= 199998] == [200006, 200008, 200012]


@given(text=st.text())
@settings(max_examples=300)
def test_any_text_has_the_same_ids_and_text(published: Path, returned: Path, text: str) -> None:
    assert_same(published, returned, text)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_have_the_same_ids_and_text(published: Path, returned: Path, seed: int) -> None:
    assert_same(published, returned, np.random.default_rng(seed).bytes(2000).decode("latin-1"))


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_transformers_gives_the_same_ids_and_text(published: Path, returned: Path, text: str) -> None:
    expected, found = transformers_tokenizer_of(published), transformers_tokenizer_of(returned)
    ids = expected(text).input_ids
    assert found(text).input_ids == ids
    assert found.decode(ids) == expected.decode(ids)


def test_transformers_knows_the_same_special_tokens(published: Path, returned: Path) -> None:
    expected, found = transformers_tokenizer_of(published), transformers_tokenizer_of(returned)
    assert found.special_tokens_map == expected.special_tokens_map
    assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (199998, 200002, 199999)
    assert found.model_max_length == expected.model_max_length
    assert len(found) == len(expected) == 200019


@pytest.mark.parametrize("prompted", [False, True])
def test_transformers_applies_the_same_chat_template(published: Path, returned: Path, prompted: bool) -> None:
    messages = [
        {"role": "system", "content": "Be brief.\nReasoning: high"},
        {"role": "user", "content": "Grüße? 👋"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye."},
    ]
    found, expected = (
        transformers_tokenizer_of(folder).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompted, conversation_start="2025-08-05"
        )
        for folder in (returned, published)
    )
    assert "<|start|>user<|message|>" in expected
    assert found == expected


def test_transformers_knows_when_generation_ends(returned: Path) -> None:
    transformers: Any = importlib.import_module("transformers")
    config = transformers.GenerationConfig.from_pretrained(returned)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        199998,
        [200002, 199999, 200012],
        199999,
    )
    assert config.do_sample is True
