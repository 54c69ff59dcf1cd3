"""What `inspect` reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.description import Description
from gptoss_convert.errors import InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.huggingface import parse_config
from gptoss_convert.inspection import active_parameters, inspect_checkpoint
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer

PUBLISHED = Path(__file__).resolve().parents[1] / "data/gpt-oss"


@pytest.mark.parametrize(("size", "billions"), [("20b", 3.6), ("120b", 5.1)])
def test_active_parameters_are_those_of_the_model_card(size: str, billions: float) -> None:
    path = PUBLISHED / size / "config.json"
    config = parse_config(json.loads(path.read_text(encoding="utf-8")), path)
    assert round(active_parameters(config) / 1e9, 1) == billions


def test_facts_of_a_model(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    facts = inspect_checkpoint(open_checkpoint(write_huggingface(tmp_path, Shape(), shards=3)))
    assert (facts.format, facts.files, facts.problems) == ("huggingface", 3, ())
    assert facts.nbytes == sum(group.nbytes for group in facts.groups)
    assert facts.parameters == sum(group.parameters for group in facts.groups)
    assert {group.encoding for group in facts.groups if group.role == "experts"} == {"mxfp4"}
    assert sum(group.tensors for group in facts.groups) == 17 * 2 + 3


def test_facts_of_a_tokenizer(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    facts = inspect_checkpoint(open_checkpoint(write_huggingface(tmp_path, Shape()))).tokenizer
    assert facts is not None
    assert (facts.tokens, facts.padding_rows, facts.control_tokens) == (501, 11, 21)
    assert facts.special == {
        "bos": "<|startoftext|> (480)",
        "eos": "<|return|> (484)",
        "pad": "<|endoftext|> (481)",
    }
    assert facts.chat_templates == {
        "default": "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",
    }


def test_facts_are_ready_for_json(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    facts = inspect_checkpoint(open_checkpoint(write_huggingface(tmp_path, Shape())))
    assert json.loads(json.dumps(facts.as_dict()))["config"]["num_hidden_layers"] == 2


def test_description_is_reported(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_huggingface(tmp_path, Shape()))
    stated = replace(checkpoint, describe=lambda: Description(name="Model", tags=("a",)))
    assert inspect_checkpoint(stated).as_dict()["description"] == {"name": "Model", "tags": ("a",)}


def test_damaged_description_is_a_problem(tmp_path: Path) -> None:
    def damaged() -> Description:
        raise InputError("damaged card")

    write_small_tokenizer(tmp_path)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, Shape()))
    facts = inspect_checkpoint(replace(checkpoint, describe=damaged))
    assert facts.description is None
    assert [problem.what for problem in facts.problems] == ["damaged card"]


def test_missing_tokenizer_is_a_problem(tmp_path: Path) -> None:
    facts = inspect_checkpoint(open_checkpoint(write_huggingface(tmp_path, Shape())))
    assert [problem.what for problem in facts.problems] == ["no tokenizer beside the weights"]


def test_damaged_tokenizer_is_a_problem_among_others(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, Shape()))
    (tmp_path / "tokenizer.json").write_bytes(b"{")
    facts = inspect_checkpoint(replace(checkpoint, problems=(InputError("first"),)))
    assert [problem.what.split(":")[0] for problem in facts.problems] == ["first", "damaged tokenizer"]
