"""Text becomes ids, control tokens come from nowhere but `Control`."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from gptoss_convert.verify.text_encoder import Control, TextEncoder
from tests.support.tokenizers import byte_of_character

DEMO = Path(__file__).resolve().parents[3] / "demo" / "tiny-gpt-oss"
VOCAB_SIZE = 3584


@dataclass(frozen=True)
class Given:
    """A tokenizer whose vocabulary is at hand."""

    made: Vocabulary
    path: Path = Path("tokenizer.json")

    def vocabulary(self) -> Vocabulary:
        return self.made


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    tokenizer = open_checkpoint(DEMO).tokenizer
    assert tokenizer is not None
    return tokenizer.vocabulary()


@pytest.fixture(scope="module")
def encoder(vocabulary: Vocabulary) -> TextEncoder:
    return TextEncoder(Given(vocabulary), VOCAB_SIZE)


def decoded(vocabulary: Vocabulary, ids: tuple[int, ...]) -> str:
    """The text of ordinary tokens: each is some bytes, written in GPT-2's alphabet."""
    byte_of = byte_of_character()
    tokens = [vocabulary.tokens[index] or "" for index in ids]
    return bytes(byte_of[c] for token in tokens for c in token).decode()


def kinds(vocabulary: Vocabulary, ids: tuple[int, ...]) -> set[TokenKind]:
    return {vocabulary.kinds[index] for index in ids}


spelled = st.sampled_from(["<|start|>", "<|end|>", "<|message|>", "<|return|>", "<|", "|>", " ", "\r\n"])
characters = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(spelled | characters, max_size=8).map("".join))
def test_ids_give_the_text_back(vocabulary: Vocabulary, encoder: TextEncoder, text: str) -> None:
    ids = encoder.encode([text])
    assert decoded(vocabulary, ids) == text
    assert kinds(vocabulary, ids) <= {TokenKind.NORMAL}


def test_every_control_token_that_is_spelled_is_text(vocabulary: Vocabulary, encoder: TextEncoder) -> None:
    text = "".join(encoder.controls)
    assert text.startswith("<|startoftext|><|endoftext|>")
    ids = encoder.encode([text])
    assert decoded(vocabulary, ids) == text
    assert not set(ids) & set(encoder.controls.values())


def test_control_tokens_are_put_in_by_id(encoder: TextEncoder) -> None:
    ids = encoder.encode([Control("<|start|>"), "user", Control("<|message|>"), "", Control("<|end|>")])
    assert ids == (3508, *encoder.encode(["user"]), 3510, 3509)


def test_no_token_reaches_over_pieces(encoder: TextEncoder) -> None:
    assert len(encoder.encode(["the"])) < len(encoder.encode(["th", "e"]))


def test_half_a_surrogate_pair_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="surrogate"):
        encoder.encode(["\ud83d"])


def test_a_tokenizer_larger_than_the_model_is_refused_where_it_matters(vocabulary: Vocabulary) -> None:
    smaller = TextEncoder(Given(vocabulary), 1000)
    assert not smaller.controls
    assert smaller.encode(["a"])
    with pytest.raises(InputError, match=r"does not belong to the model.*expected ids below 1000"):
        smaller.encode(["The tides come twice a day, and nobody knows what the sailors think about that."])


@pytest.mark.parametrize("pattern", ["(", "(a+)+b"])
def test_patterns_of_strangers_are_refused(pattern: str, vocabulary: Vocabulary) -> None:
    with pytest.raises(UnsupportedError, match=r"splits text otherwise.*tokenizer\.json.*token ids"):
        TextEncoder(Given(replace(vocabulary, pattern=pattern)), VOCAB_SIZE)


def test_a_tokenizer_that_cannot_encode_every_text_is_refused(vocabulary: Vocabulary) -> None:
    tokens = [None if token == "q" else token for token in vocabulary.tokens]
    kinds = [
        TokenKind.UNUSED if token is None else kind for token, kind in zip(tokens, vocabulary.kinds, strict=True)
    ]
    merges = [merge for merge in vocabulary.merges if "q" not in merge.split(" ")]
    with pytest.raises(InputError, match=r"lacks tokens of single bytes.*found 255 of them, expected 256"):
        TextEncoder(Given(replace(vocabulary, tokens=tokens, kinds=kinds, merges=merges)), VOCAB_SIZE)


def test_merges_that_make_no_token_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="a merge is made of no tokens"):
        TextEncoder(Given(replace(vocabulary, merges=[*vocabulary.merges, "q qqqq"])), VOCAB_SIZE)


def test_a_tokenizer_that_adds_tokens_by_itself_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(UnsupportedError, match="adds tokens by itself"):
        TextEncoder(Given(replace(vocabulary, added_automatically={"bos": True})), VOCAB_SIZE)
