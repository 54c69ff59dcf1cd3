"""Comparison of everything about checkpoints but their numbers."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import FULL, Checkpoint, ModelConfig, YarnRope
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.errors import GptossConvertError, InputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.tokenizer import TokenKind, Vocabulary
from gptoss_convert.verify.structure import StructureCheck, compare_structure, unreadable_structure
from tests.peers import llama_cpp_converter
from tests.support import ollama
from tests.support.checkpoints import Shape, write_original
from tests.support.conversions import TINY, make_checkpoint
from tests.support.memory import zeros
from tests.support.tokenizers import write_small_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("model") / "hf", Shape(), edge_blocks=False))


@dataclass(frozen=True)
class Fixed:
    """A tokenizer that has its vocabulary, or an error."""

    result: Vocabulary | GptossConvertError
    path: Path = Path("tokenizer.json")

    def vocabulary(self) -> Vocabulary:
        if isinstance(self.result, GptossConvertError):
            raise self.result
        return self.result


def failures(reference: Checkpoint, artifact: Checkpoint) -> dict[str, StructureCheck]:
    result = compare_structure(reference, artifact)
    assert result.passed is not bool(result.failed)
    return {check.name: check for check in result.failed}


def left_out(reference: Checkpoint, artifact: Checkpoint) -> dict[str, str]:
    checks = compare_structure(reference, artifact).checks
    return {check.name: check.note for check in checks if check.passed is None}


def vocabulary(model: Checkpoint) -> Vocabulary:
    assert model.tokenizer is not None
    return model.tokenizer.vocabulary()


def with_vocabulary(model: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(model, tokenizer=Fixed(replace(vocabulary(model), **changes)))


# --- what must not be an alarm


def test_model_agrees_with_itself_in_every_fact(model: Checkpoint) -> None:
    result = compare_structure(model, model)
    assert (result.failed, left_out(model, model)) == ((), {})
    assert result.reason == f"{len(result.checks)} facts agree"


CONVERSIONS: dict[str, Callable[[Checkpoint, Path], Any]] = {
    "gguf": lambda source, path: plan_gguf(source, path / "m.gguf", GgufOptions()),
    "split gguf": lambda source, path: plan_gguf(source, path / "m.gguf", GgufOptions(split_max_size=200_000)),
    "bf16": lambda source, path: plan_bf16(source, path / "m"),
    "mxfp4": lambda source, path: plan_mxfp4(source, path / "m"),
    "openai": lambda source, path: plan_mxfp4(source, path / "m", Mxfp4Options(layout="openai")),
}


@pytest.mark.parametrize("there", CONVERSIONS)
def test_conversions_of_this_tool_agree_there_and_back(there: str, model: Checkpoint, tmp_path: Path) -> None:
    plan = CONVERSIONS[there](model, tmp_path)
    execute(plan)
    artifact = open_checkpoint(plan.output)
    assert failures(model, artifact) == {}
    assert failures(artifact, model) == {}
    (tmp_path / "back").mkdir()
    back = plan_bf16(artifact, tmp_path / "back" / "m")
    execute(back)
    assert failures(artifact, open_checkpoint(back.output)) == {}
    assert failures(model, open_checkpoint(back.output)) == {}


@pytest.mark.parametrize("trained", [False, True])
def test_file_of_llama_cpps_converter_agrees(trained: bool, model: Checkpoint, tmp_path: Path) -> None:
    source = open_checkpoint(TINY) if trained else model
    llama_cpp_converter.convert(source.path, tmp_path / "theirs.gguf")
    artifact = open_checkpoint(tmp_path / "theirs.gguf")
    assert failures(source, artifact) == {}
    assert set(left_out(source, artifact)) == {
        "config.rope.truncate", "generation.bos_token_id", "generation.eos_token_id", "generation.pad_token_id",
    }  # fmt: skip


def test_file_of_ollama_differs_in_what_ollama_changes(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path / "hf")
    source = make_checkpoint(tmp_path / "hf", Shape(layers=3))
    artifact = open_checkpoint(ollama.write_ollama(tmp_path / "m.gguf", source))
    assert set(failures(open_checkpoint(source), artifact)) == {"tokenizer.eos", "tokenizer.pad"}


def test_layout_without_tokenizer_is_not_compared(model: Checkpoint, tmp_path: Path) -> None:
    original = open_checkpoint(write_original(tmp_path / "original", Shape(), edge_blocks=False))
    assert failures(model, original) == failures(original, model) == {}
    assert left_out(original, model) == {"tokenizer": "the reference has no tokenizer"}
    assert left_out(model, original)["tokenizer"] == "the artifact has no tokenizer"


def test_gguf_says_nothing_of_truncation(model: Checkpoint) -> None:
    rounded = replace(model, config=replace(model.config, rope=replace(model.config.rope, truncate=True)))
    assert set(failures(model, rounded)) == {"config.rope.truncate"}
    assert failures(rounded, replace(model, format="gguf")) == {}
    assert left_out(rounded, replace(model, format="gguf")) == {"config.rope.truncate": "GGUF has no key for it"}


def test_numbers_are_compared_as_float32(model: Checkpoint) -> None:
    def with_theta(theta: float) -> Checkpoint:
        return replace(model, config=replace(model.config, rope=replace(model.config.rope, theta=theta)))

    assert failures(with_theta(150000.001), with_theta(150000.0)) == {}
    assert set(failures(with_theta(150000.1), with_theta(150000.0))) == {"config.rope.theta"}


def test_templates_differ_in_more_than_line_breaks_and_spelling_of_names(model: Checkpoint) -> None:
    def with_templates(**templates: str) -> Checkpoint:
        return with_vocabulary(model, chat_templates=templates)

    assert failures(with_templates(default="a\nb"), with_templates(default="a\r\nb")) == {}
    assert (
        failures(with_templates(default="a", **{"tool-use": "b"}), with_templates(default="a", tool_use="b")) == {}
    )
    assert set(failures(with_templates(default="a"), with_templates(default="a "))) == {"chat_template.default"}
    only = with_templates(default="a"), with_templates(default="a", rag="b")
    assert failures(*only) == {}
    assert left_out(*only) == {"chat_template.rag": "the reference does not state it"}
    assert set(failures(*reversed(only))) == {"chat_template.rag"}


def test_what_a_tokenizer_does_not_mention_it_does_not_add(model: Checkpoint) -> None:
    silent, adding = (with_vocabulary(model, added_automatically=flags) for flags in ({}, {"bos": True}))
    assert failures(model, silent) == {}
    assert set(failures(silent, adding)) == {"tokenizer.adds_bos"}


# --- what must be one


def changed(config: ModelConfig, name: str) -> ModelConfig:
    """Return a configuration with another value in one field."""
    outer, _, inner = name.rpartition(".")
    if outer:
        return replace(config, rope=replace(config.rope, **{inner: other(getattr(config.rope, inner))}))
    return replace(config, **{name: other(getattr(config, name))})


def other(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return (FULL, *value[1:]) if isinstance(value, tuple) else value * 2


FIELDS = [field.name for field in fields(ModelConfig) if field.name != "rope"]
FIELDS += [f"rope.{field.name}" for field in fields(YarnRope)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_of_the_configuration_is_compared(name: str, model: Checkpoint) -> None:
    found = failures(model, replace(model, config=changed(model.config, name)))
    assert list(found) == [f"config.{name}"]
    assert found[f"config.{name}"].reference != found[f"config.{name}"].artifact


def test_layers_of_another_kind_are_named(model: Checkpoint) -> None:
    found = failures(model, replace(model, config=replace(model.config, layer_types=(FULL, FULL))))
    assert found["config.layer_types"] == StructureCheck("config.layer_types", "sf", "ff", False, "layers 0")


def test_missing_unknown_and_misshaped_tensors_are_named(model: Checkpoint) -> None:
    (gone, bent), rest = list(model.tensors)[:2], list(model.tensors)[2:]
    tensors = {name: model.tensors[name] for name in rest} | {"z": zeros("z", (3, 4)), bent: zeros(bent, (9,))}
    found = failures(model, replace(model, tensors=tensors))
    assert list(found) == ["tensors", f"tensor.{gone}", f"tensor.{bent}", "tensor.z"]
    assert found[f"tensor.{gone}"].artifact == "absent"
    assert found[f"tensor.{bent}"].artifact == "9"
    assert found["tensor.z"].reference == "absent"
    assert found["tensors"].note == f"{gone}, {bent}, z"


def test_problems_of_the_artifact_are_told_and_those_of_the_reference_raised(model: Checkpoint) -> None:
    damaged = replace(model, problems=tuple(InputError(f"wrong {index}") for index in range(5)))
    found = failures(model, damaged)["artifact"]
    assert (found.artifact, found.note) == ("5 problem(s)", "wrong 0; wrong 1; wrong 2")
    with pytest.raises(InputError, match="wrong 0"):
        compare_structure(damaged, model)


def test_artifact_that_cannot_be_opened_fails() -> None:
    result = unreadable_structure(InputError("file is truncated", file="x.gguf"))
    assert not result.passed
    assert result.reason == "artifact is unreadable, not readable: file is truncated (x.gguf)"


VOCABULARIES: dict[str, tuple[Callable[[Vocabulary], dict[str, Any]], str]] = {
    "tokenizer.tokens": (
        lambda v: {"tokens": [*v.tokens[:7], "new", *v.tokens[8:]]},
        '1 of 501 differ, first id 7: "(" became "new"',
    ),
    "tokenizer.kinds": (
        lambda v: {"kinds": [*v.kinds[:500], TokenKind.USER_DEFINED]},
        '1 of 501 differ, first id 500: "control" became "user_defined"',
    ),
    "tokenizer.merges": (
        lambda v: {"merges": [v.merges[1], v.merges[0], *v.merges[2:]]},
        "are exchanged",
    ),
    "tokenizer.pattern": (lambda v: {"pattern": r"\s+"}, "another regular expression"),
    "tokenizer.eos": (
        lambda v: {"special_ids": {**v.special_ids, "eos": 481}},
        '"<|return|>" became "<|endoftext|>"',
    ),
    "tokenizer.pad": (lambda v: {"special_ids": {"bos": 480, "eos": 484}}, "the artifact does not state it"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_part_of_the_vocabulary_is_compared(name: str, model: Checkpoint) -> None:
    change, note = VOCABULARIES[name]
    found = failures(model, with_vocabulary(model, **change(vocabulary(model))))
    assert list(found) == [name]
    assert found[name].note.endswith(note)
    assert found[name].reference != found[name].artifact


def test_token_that_is_missing_at_the_end_is_named(model: Checkpoint) -> None:
    shorter = with_vocabulary(model, tokens=vocabulary(model).tokens[:-1], kinds=vocabulary(model).kinds[:-1])
    note = failures(model, shorter)["tokenizer.tokens"].note
    assert note == '1 of 501 differ, first id 500: "<|endofprompt|>" became absent'


def test_tokenizer_that_is_lost_or_damaged_fails(model: Checkpoint) -> None:
    assert set(failures(model, replace(model, tokenizer=None))) == {"tokenizer"}
    damaged = failures(model, replace(model, tokenizer=Fixed(InputError("damaged tokenizer"))))
    assert damaged["tokenizer"].note == "damaged tokenizer"


@pytest.mark.parametrize(
    ("content", "failed"),
    [
        ({"eos_token_id": [484, 481, 494], "pad_token_id": 481, "bos_token_id": 480}, set()),
        ({"eos_token_id": [494, 484, 481]}, set()),
        ({"eos_token_id": 484, "pad_token_id": 480}, {"generation.eos_token_id", "generation.pad_token_id"}),
        ([], {"generation"}),
    ],
)
def test_tokens_that_end_generation_are_compared(
    content: Any, failed: set[str], model: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert set(failures(model, replace(model, assets=Assets(tmp_path)))) == failed


def test_digests_are_those_that_anybody_computes(model: Checkpoint) -> None:
    checks = {check.name: check for check in compare_structure(model, model).checks}
    text = json.dumps(list(vocabulary(model).tokens), separators=(",", ":"))
    assert checks["tokenizer.tokens"].reference == hashlib.sha256(text.encode()).hexdigest()
    template = (model.path / "chat_template.jinja").read_bytes()
    assert checks["chat_template.default"].artifact == hashlib.sha256(template).hexdigest()
