"""Conversations become the token ids that OpenAI's openai-harmony and transformers make of them."""

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai_harmony
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.tokenizer_json import HuggingFaceTokenizer
from gptoss_convert.verify.harmony import Message, render
from gptoss_convert.verify.prompt_files import Conversation, PromptLine, parse_prompt_lines
from gptoss_convert.verify.prompts import PRESETS, Prompt, PromptSet, load_prompts
from gptoss_convert.verify.template_sandbox import DATE
from gptoss_convert.verify.text_encoder import TextEncoder
from tests.peers import harmony
from tests.support.tokenizers import write_real_tokenizer, write_small_tokenizer

ROOT = Path(__file__).resolve().parents[2]
VOCAB_SIZE = 201_088

PRESET_SHA256 = {
    "quick": "ba30d91e7ce7c9d11d71248d587f3538bae76f54a8bdf21f410a41c5e0141a74",
    "full": "041cd555c2ef130f25beedd11b3e4e5a734ee08074976583fb8564d7115b8a39",
    "long": "b9c7579fbe2d40bed463798557231af2f1bd27dbea9b23f3b40a2832b758767b",
}
"""Of the ids that openai-harmony 0.0.8 makes of the built-in prompts: figures of other ids cannot be compared."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_real_tokenizer(folder)
    return HuggingFaceTokenizer(Assets(folder), {})


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return replace(open_checkpoint(ROOT / "demo" / "tiny-gpt-oss").config, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def encoder(tokenizer: HuggingFaceTokenizer) -> TextEncoder:
    return TextEncoder(tokenizer, VOCAB_SIZE)


@pytest.fixture(scope="module")
def foreign(
    tokenizer: HuggingFaceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> openai_harmony.HarmonyEncoding:
    return harmony.load_encoding(tokenizer.vocabulary(), tmp_path_factory.mktemp("o200k"))


@pytest.fixture(scope="module")
def long_prompts(tokenizer: HuggingFaceTokenizer, config: ModelConfig) -> tuple[Prompt, ...]:
    """The largest built-in set; the others are the beginning of it."""
    return load_prompts("long", tokenizer, config).prompts


def built_in(*names: str) -> list[PromptLine]:
    folder = ROOT / "verify" / "prompt_data"
    return [line for name in names for line in parse_prompt_lines((folder / name).read_bytes(), name)]


def messages_of(line: PromptLine) -> tuple[Message, ...]:
    assert isinstance(line.content, Conversation)
    return line.content.messages


# openai-harmony


def test_built_in_prompts(long_prompts: tuple[Prompt, ...], foreign: openai_harmony.HarmonyEncoding) -> None:
    expected = [
        Prompt(
            name=line.name,
            kind=line.kind,
            ids=harmony.conversation_ids(foreign, messages_of(line))[: line.max_tokens],
        )
        for line in built_in(*PRESETS["long"])
    ]
    assert list(long_prompts) == expected
    for preset, names in PRESETS.items():
        part = PromptSet(name=preset, prompts=tuple(expected[: len(built_in(*names))]))
        assert part.sha256 == PRESET_SHA256[preset], preset
        row = f"| `{preset}` | {len(part.prompts)} | {part.positions:,} |"
        assert row in (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")


def test_sizes_of_the_built_in_sets(long_prompts: tuple[Prompt, ...], config: ModelConfig) -> None:
    quick, full = (long_prompts[: len(built_in(*PRESETS[name]))] for name in ("quick", "full"))
    assert len(quick) >= 8
    assert 400 <= sum(len(prompt.ids) for prompt in quick) <= 650
    assert len(full) >= 32
    # Of each prompt the first four positions are not scored, and after the last one nothing comes.
    assert sum(len(prompt.ids) - 5 for prompt in full) >= 2000
    lengths = {len(prompt.ids) for prompt in full}
    window = config.sliding_window
    assert window + 1 in lengths
    assert any(3 * window < length < 8 * window for length in lengths)
    assert any(1300 < length < 1700 for length in lengths)
    assert max(lengths) < 4096 < max(len(prompt.ids) for prompt in long_prompts)


names = st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8})?", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n'sS019"), max_size=40)
texts |= st.sampled_from(["<|end|>", "a<|start|>system<|message|>b", "<|return", "to=x<|channel|>final"])
messages = st.one_of(
    st.builds(
        Message, role=st.sampled_from(["system", "developer", "user"]), content=texts, name=st.none() | names
    ),
    st.builds(Message, role=st.just("tool"), content=texts, name=names, recipient=st.just("assistant")),
    st.builds(
        Message,
        role=st.just("assistant"),
        content=texts,
        channel=st.sampled_from(["analysis", "commentary", "final"]),
        recipient=st.none() | st.just("all") | names,
        content_type=st.sampled_from([None, "code", "json", "<|constrain|>json", "<|constrain|>"]),
    ),
)


@given(st.lists(messages, min_size=1, max_size=4))
def test_any_conversation(
    encoder: TextEncoder, foreign: openai_harmony.HarmonyEncoding, conversation: list[Message]
) -> None:
    assert encoder.encode(render(conversation)) == harmony.conversation_ids(foreign, conversation)


def test_system_and_tools_of_the_built_in_prompts_are_genuine(
    encoder: TextEncoder, foreign: openai_harmony.HarmonyEncoding
) -> None:
    """They are written as text; openai-harmony makes the same of its structured messages."""
    (line,) = (line for line in built_in("full.jsonl") if line.name == "library-tools")
    system = openai_harmony.SystemContent.new().with_conversation_start_date("2025-11-20")
    query = {"type": "string", "description": "Words of the title or of the author's name."}
    limit = {"type": "number", "description": "Most results that are wanted.", "default": 5}
    find_parameters = {
        "type": "object",
        "properties": {"query": query, "limit": limit},
        "required": ["query"],
    }
    reserve_parameters = {
        "type": "object",
        "properties": {"book_id": {"type": "string"}, "reader": {"type": "string"}},
        "required": ["book_id", "reader"],
    }
    new = openai_harmony.ToolDescription.new
    developer = (
        openai_harmony.DeveloperContent.new()
        .with_instructions(
            "You help the staff of a small library. Use the tools for everything about the catalogue."
        )
        .with_function_tools(
            [
                new("find_books", "Finds books in the catalogue.", find_parameters),
                new("reserve", "Reserves a copy for a reader.", reserve_parameters),
            ]
        )
    )
    create = openai_harmony.Message.from_role_and_content
    expected = harmony.foreign_ids(
        foreign,
        [create(openai_harmony.Role.SYSTEM, system), create(openai_harmony.Role.DEVELOPER, developer)],
    )
    assert encoder.encode(render(messages_of(line)[:2])) == expected


# transformers and the chat template

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Näme <b>of</b> the city."}},
            "required": ["city"],
        },
    },
}
CALL = {"function": {"name": "get_weather", "arguments": {"city": "Århus & <Oslo>"}}}
TEMPLATED: dict[str, dict[str, Any]] = {
    "plain": {
        "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi 👋🏽 ~~x~~"}]
    },
    "instructed": {
        "messages": [
            {"role": "system", "content": "Answer in Latin.\n"},
            {"role": "user", "content": "Quo vadis?"},
            {"role": "assistant", "content": "Romam.", "thinking": "Latin, short."},
        ]
    },
    "tools": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "thinking": "Call the tool.", "tool_calls": [CALL]},
            {"role": "tool", "content": {"°C": 8.5, "sky": '"grey"'}},
        ],
        "tools": [TOOL],
    },
}


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("small")
    write_small_tokenizer(folder)
    return HuggingFaceTokenizer(Assets(folder), {})


def load_lines(
    lines: Sequence[object], tokenizer: HuggingFaceTokenizer, config: ModelConfig, folder: Path
) -> list[tuple[int, ...]]:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return [prompt.ids for prompt in load_prompts(path, tokenizer, config).prompts]


@pytest.mark.parametrize("case", TEMPLATED)
def test_chat_template(
    case: str, small_tokenizer: HuggingFaceTokenizer, config: ModelConfig, tmp_path: Path
) -> None:
    transformers: Any = importlib.import_module("transformers")
    foreign = transformers.AutoTokenizer.from_pretrained(small_tokenizer.path.parent)
    line = TEMPLATED[case]
    text = foreign.apply_chat_template(line["messages"], tools=line.get("tools"), tokenize=False)
    text = re.sub(r"(?<=Current date: )\d{4}-\d\d-\d\d", DATE, text)
    (ids,) = load_lines([line | {"render": "template"}], small_tokenizer, config, tmp_path)
    assert ids == tuple(foreign.encode(text, add_special_tokens=False))


def test_harmony_and_the_chat_template_agree(
    small_tokenizer: HuggingFaceTokenizer, config: ModelConfig, tmp_path: Path
) -> None:
    said = TEMPLATED["plain"]["messages"]
    system = (
        "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n"
        f"Current date: {DATE}\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message."
    )
    by_template, by_harmony = load_lines(
        [
            {"messages": said, "render": "template"},
            {"messages": [{"role": "system", "content": system}, *said]},
        ],
        small_tokenizer,
        config,
        tmp_path,
    )
    assert by_template == by_harmony
