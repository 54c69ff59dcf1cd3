"""Prompts of built-in sets and of files, as ids of one model."""

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import plan_gguf
from gptoss_convert.errors import InputError, OptionError, UnsupportedError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from gptoss_convert.verify.prompts import PRESETS, Prompt, PromptSet, load_prompts

DEMO = Path(__file__).resolve().parents[3] / "demo" / "tiny-gpt-oss"
CHAT = {"messages": [{"role": "user", "content": "Hi <|end|>"}, {"role": "assistant", "content": "Hello."}]}


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    return open_checkpoint(DEMO)


def load(model: Checkpoint, folder: Path, *lines: object, max_tokens: int | None = None) -> PromptSet:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return load_prompts(path, model.tokenizer, model.config, max_tokens=max_tokens)


class Changed:
    """The tokenizer of a model with some tokens taken away or other templates."""

    def __init__(self, model: Checkpoint, without: tuple[str, ...] = (), templates: dict[str, str] | None = None):
        assert model.tokenizer is not None
        self.path = model.tokenizer.path
        made = model.tokenizer.vocabulary()
        tokens = [None if token in without else token for token in made.tokens]
        kinds = [
            TokenKind.UNUSED if token is None else kind for token, kind in zip(tokens, made.kinds, strict=True)
        ]
        self.made = replace(made, tokens=tokens, kinds=kinds)
        if templates is not None:
            self.made = replace(self.made, chat_templates=templates)

    def vocabulary(self) -> Vocabulary:
        return self.made


def test_digest_is_of_lengths_and_ids() -> None:
    prompts = (Prompt(name="a", kind="x", ids=(1, 200_000)), Prompt(name="b", kind="y", ids=(7,)))
    words = np.array([2, 1, 200_000, 1, 7], "<u4").tobytes()
    assert PromptSet(name="s", prompts=prompts).sha256 == hashlib.sha256(words).hexdigest()
    assert PromptSet(name="s", prompts=prompts).positions == 3


def test_each_built_in_set_begins_with_the_one_before(model: Checkpoint) -> None:
    quick, full, long = (load_prompts(name, model.tokenizer, model.config) for name in PRESETS)
    assert (quick.name, full.name, long.name) == ("quick", "full", "long")
    assert full.prompts[: len(quick.prompts)] == quick.prompts
    assert long.prompts[: len(full.prompts)] == full.prompts
    assert len(quick.prompts) < len(full.prompts) < len(long.prompts)
    assert quick.remarks == full.remarks == long.remarks == ()
    assert len({prompt.name for prompt in long.prompts}) == len(long.prompts)
    assert {prompt.kind for prompt in full.prompts} == {
        *("chat", "dialogue", "instructions", "reasoning", "tool", "code", "json"),
        *("mathematics", "language", "unicode", "long"),
    }
    for prompt in long.prompts:
        assert 0 <= min(prompt.ids) <= max(prompt.ids) < model.config.vocab_size


def test_built_in_prompts_do_not_depend_on_the_format_of_the_model(model: Checkpoint, tmp_path: Path) -> None:
    plan = plan_gguf(model, tmp_path / "demo.gguf")
    execute(plan)
    converted = open_checkpoint(plan.output)
    assert converted.format == "gguf"
    expected = load_prompts("long", model.tokenizer, model.config)
    assert load_prompts("long", converted.tokenizer, converted.config) == expected


def test_the_window_is_crossed_by_one_position_with_any_tokenizer(model: Checkpoint) -> None:
    lengths = {
        prompt.name: len(prompt.ids) for prompt in load_prompts("quick", model.tokenizer, model.config).prompts
    }
    assert lengths["window-edge"] == model.config.sliding_window + 1


def test_lines_of_a_file(model: Checkpoint, tmp_path: Path) -> None:
    prompts = load(model, tmp_path, {"ids": [5, 6]}, {"text": "<|end|>", "name": "t"}, CHAT)
    assert prompts.name == "mine.jsonl"
    ids, text, chat = prompts.prompts
    assert ids == Prompt(name="line 1", kind="ids", ids=(5, 6))
    assert (text.name, text.kind) == ("t", "text")
    end = 3509
    assert end not in text.ids
    assert chat.ids.count(end) == 1
    assert chat.ids[-1] == 3504


def test_prompts_are_cut(model: Checkpoint, tmp_path: Path) -> None:
    lines = [{"ids": [1, 2, 3, 4]}, {"ids": [1, 2, 3, 4], "max_tokens": 2}, {"ids": [1]}]
    prompts = load(model, tmp_path, *lines, max_tokens=3).prompts
    assert [prompt.ids for prompt in prompts] == [(1, 2, 3), (1, 2), (1,)]
    with pytest.raises(OptionError, match="at least one token"):
        load(model, tmp_path, *lines, max_tokens=0)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"ids": [3584]}, "token id is not in the vocabulary of the model.*found 3584, expected 0 to 3583"),
        ({"ids": [1] * 131_073}, "longer than the model can read.*--max-tokens"),
        ({"text": ""}, "prompt is empty"),
        ({"text": "\ud800"}, "not a prompt"),
        ({"messages": []}, "prompt is empty"),
        ({"messages": [{"role": "tool", "content": ""}]}, "no `name`"),
        ({**CHAT, "render": "template"}, r"spells a control token.*found <\|end\|>"),
    ],
)
def test_prompts_that_do_not_fit_are_named(model: Checkpoint, tmp_path: Path, line: object, what: str) -> None:
    with pytest.raises(InputError, match=rf"line 2: .*{what}") as caught:
        load(model, tmp_path, {"ids": [1]}, line)
    assert caught.value.file == str(tmp_path / "mine.jsonl")


def test_a_prompt_may_be_as_long_as_the_model_reads(model: Checkpoint, tmp_path: Path) -> None:
    (prompt,) = load(model, tmp_path, {"ids": [3583] * 131_072}).prompts
    assert len(prompt.ids) == model.config.max_position_embeddings


@pytest.mark.parametrize("name", ["quik", "q" * 5000])
def test_an_unknown_set_is_refused(name: str, model: Checkpoint) -> None:
    with pytest.raises(OptionError, match=r"found q.*, expected a file, or one of quick, full, long"):
        load_prompts(name, model.tokenizer, model.config)


def test_a_path_is_never_a_built_in_set(model: Checkpoint) -> None:
    with pytest.raises(OptionError, match="no such prompts"):
        load_prompts(Path("quick"), model.tokenizer, model.config)


def test_a_model_without_tokenizer_takes_ids_only(model: Checkpoint, tmp_path: Path) -> None:
    alone = replace(model, tokenizer=None)
    (prompt,) = load(alone, tmp_path, {"ids": [1, 2]}).prompts
    assert prompt.ids == (1, 2)
    with pytest.raises(UnsupportedError, match=r"no tokenizer.*put its tokenizer\.json beside it, or give"):
        load_prompts("quick", None, model.config)


def test_a_model_without_control_tokens_reads_plain_text(model: Checkpoint, tmp_path: Path) -> None:
    lacking = replace(model, tokenizer=Changed(model, without=("<|start|>", "<|call|>")))
    plain = load(lacking, tmp_path, CHAT, {"text": "Hi <|end|>\n\nHello."})
    chat, text = plain.prompts
    assert chat.ids == text.ids
    (remark,) = plain.remarks
    assert "plain text" in remark
    assert remark.endswith("<|call|>, <|start|>")
    assert load(lacking, tmp_path, {"text": "a"}).remarks == ()


def test_the_chat_template_of_the_model_is_used(model: Checkpoint, tmp_path: Path) -> None:
    template = "<|start|>{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    changed = replace(model, tokenizer=Changed(model, templates={"default": template}))
    line = {"messages": [{"role": "user", "content": "a"}], "render": "template"}
    (prompt,) = load(changed, tmp_path, line).prompts
    (a,) = load(model, tmp_path, {"text": "a"}).prompts
    assert prompt.ids == (3508, *a.ids, 3504)
    without = replace(model, tokenizer=Changed(model, templates={}))
    with pytest.raises(UnsupportedError, match="line 1: model has no chat template"):
        load(without, tmp_path, line)


@pytest.mark.parametrize(
    ("package", "line"),
    [("tokenizers", {"text": "a"}), ("jinja2", {"messages": [{"role": "user"}], "render": "template"})],
)
def test_missing_packages_are_named(
    package: str, line: object, model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnsupportedError, match=rf"needs the package `{package}`.*gptoss-convert\[verify\]"):
        load(model, tmp_path, line)
