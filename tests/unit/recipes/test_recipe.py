"""Recipes: what they may say, and what is refused."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.converters.to_gguf import GgufOptions
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.recipes.recipe import read_recipe

HEAD = 'version = 1\nsource.path = "model"\n'
GGUF = '[[artifacts]]\nto = "gguf"\noutput = "model.gguf"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_paths_are_beside_the_recipe(tmp_path: Path) -> None:
    text = HEAD + 'source.adapter = "lora"\nverify.policy = "limits.toml"\n' + GGUF
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.source.path == tmp_path / "model"
    assert recipe.source.adapter == tmp_path / "lora"
    assert recipe.verify.policy == tmp_path / "limits.toml"


@pytest.mark.parametrize(("stated", "prompts"), [("quick", "quick"), ("mine.jsonl", Path("mine.jsonl"))])
def test_prompts_are_a_set_or_a_file(stated: str, prompts: "str | Path", tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, f'{HEAD}verify.prompts = "{stated}"\n{GGUF}'))
    assert recipe.verify.prompts == (prompts if isinstance(prompts, str) else tmp_path / prompts)


def test_options_are_those_of_the_conversion(tmp_path: Path) -> None:
    text = HEAD + GGUF + 'options = {dense = "q8_0", overrides = [["blk.*", "f16"]], description.name = "Mine"}\n'
    text += '[[artifacts]]\nto = "mxfp4"\noutput = "folder"\nname = "for vLLM"\noptions = {rule = "even"}\n'
    with pytest.raises(InputError, match="name is not a plain name"):
        read_recipe(written(tmp_path, text))
    gguf, mxfp4 = read_recipe(written(tmp_path, text.replace("for vLLM", "vllm"))).artifacts
    assert isinstance(gguf.options, GgufOptions)
    assert (gguf.options.dense, gguf.options.overrides) == ("q8_0", [("blk.*", "f16")])
    assert gguf.options.description.name == "Mine"
    assert mxfp4.options == Mxfp4Options(rule=ScaleRule.EVEN)
    assert (gguf.name, mxfp4.name) == ("model.gguf", "vllm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "missing required field `version`"),
        ("version = 1\n[[", "not a recipe"),
        ('version = 2\nsource.path = "m"\n' + GGUF, "another version"),
        (HEAD, "missing required field `artifacts`"),
        (HEAD + "artifacts = []\n", "length >= 1"),
        (HEAD + "colour = 1\n" + GGUF, "unknown field `colour`"),
        (HEAD + GGUF.replace("gguf", "zip", 1), r"no such target .*: found zip"),
        (HEAD + GGUF + GGUF, "same name"),
        (HEAD + GGUF + GGUF.replace("model.gguf", "MODEL.gguf"), "same name"),
        (HEAD + GGUF + 'name = "a"\n' + GGUF + 'name = "b"\n', "same output"),
        (HEAD + GGUF.replace("model.gguf", "../model.gguf"), "not a plain name"),
        (HEAD + GGUF.replace("model.gguf", "/model.gguf"), "not a plain name"),
        (HEAD + GGUF.replace("model.gguf", "-rf"), "not a plain name"),
        (HEAD + GGUF.replace("model.gguf", "manifest.json"), "itself uses this name"),
        (HEAD + GGUF + 'options = {densse = "f16"}\n', r"no such option .*: found densse, expected dense, experts"),
        (HEAD + GGUF + "options = {dense = 8}\n", r"options: Expected `str \| null`, got `int`"),
        (HEAD + '[[artifacts]]\nto = "onnx"\noutput = "o"\n', "options: Object missing required field `target`"),
        (HEAD + 'source.adapter = "l"\nverify.prompts = "quick"\n' + GGUF, "adapter"),
        (HEAD + "verify.max_tokens = 0\n" + GGUF, "not a recipe: Expected `int` >= 1"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_recipe(written(tmp_path, text))
    assert raised.value.file == str(tmp_path / "recipe.toml")


def test_some_artifacts_only(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, HEAD + GGUF + GGUF.replace("model", "other")))
    assert [item.name for item in recipe.only(("other.gguf",)).artifacts] == ["other.gguf"]
    with pytest.raises(OptionError, match="no such artifact"):
        recipe.only(("third",))


@given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: (HEAD + GGUF + text).encode()))
def test_any_bytes_are_a_recipe_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("any") / "recipe.toml"
    path.write_bytes(data)
    with suppress(InputError):
        read_recipe(path)
