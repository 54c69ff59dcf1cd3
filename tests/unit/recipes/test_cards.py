"""Model cards: what hubs read, what was verified, and nothing that the build did not find out."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from gptoss_convert.errors import InputError, OutputError
from gptoss_convert.recipes.build import build
from gptoss_convert.recipes.check import check_manifest
from gptoss_convert.recipes.recipe import read_recipe
from tests.support.conversions import TINY

RECIPE = """
version = 1
source.path = "model"
footprint.devices = ["laptop-16gb", "20MB"]

[[artifacts]]
to = "gguf"
output = "model.gguf"

[[artifacts]]
to = "gguf"
output = "q8.gguf"
options = {dense = "q8_0"}

[[artifacts]]
to = "mxfp4"
output = "original"
options = {layout = "openai"}
"""
CARD = """---
license: apache-2.0
base_model: someone/gpt-oss-base
---
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def made(desk: Path, **options: Any) -> Path:
    build(read_recipe(desk / "recipe.toml"), desk / "dist", **options)
    return desk / "dist"


def front_matter(card: Path) -> Any:
    _, head, _ = card.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that is only looked at."""
    desk = tmp_path_factory.mktemp("cards")
    shutil.copytree(TINY, desk / "model")
    (desk / "model" / "README.md").write_text(CARD)
    (desk / "recipe.toml").write_text(RECIPE)
    return made(desk)


def test_every_artifact_has_a_card_that_the_manifest_names(finished: Path) -> None:
    cards = {f"cards/{path.name}": path for path in (finished / "cards").iterdir()}
    assert set(cards) == {"cards/model.gguf.md", "cards/q8.gguf.md", "cards/original.md"}
    stated = json.loads((finished / "manifest.json").read_text())["files"]
    assert {item["name"]: item["sha256"] for item in stated} == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in cards.items()
    }
    assert check_manifest(finished).passed


def test_hubs_are_told_what_the_source_says(finished: Path) -> None:
    assert front_matter(finished / "cards" / "q8.gguf.md") == {
        "license": "apache-2.0",
        "base_model": ["someone/gpt-oss-base"],
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", "gguf"],
    }
    assert "library_name" not in front_matter(finished / "cards" / "original.md")


def test_nothing_is_invented(desk: Path) -> None:
    """A source that says nothing of itself has no licence and no base; no runtime was run."""
    card = made(desk) / "cards" / "model.gguf.md"
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "Answers were not compared: no runtime was run." in card.read_text()
    assert not re.search(r"KL|\btop-1\b|accuracy|answers in", card.read_text())


def test_the_recipe_may_name_the_base(desk: Path) -> None:
    (desk / "recipe.toml").write_text(
        RECIPE.replace("version = 1", 'version = 1\ncard.base_model = "openai/gpt-oss-20b"')
    )
    assert front_matter(made(desk) / "cards" / "q8.gguf.md")["base_model"] == ["openai/gpt-oss-20b"]


@pytest.mark.parametrize("name", ["gpt-oss-20b", "a/b/c", "a/b: c", "a/b\\n"])
def test_a_base_that_is_no_hub_id_is_refused(name: str, desk: Path) -> None:
    (desk / "recipe.toml").write_text(RECIPE.replace("version = 1", f'version = 1\ncard.base_model = "{name}"'))
    with pytest.raises(InputError, match="base_model"):
        read_recipe(desk / "recipe.toml")


def test_a_card_says_what_the_manifest_says(finished: Path) -> None:
    for artifact in json.loads((finished / "manifest.json").read_text())["artifacts"]:
        card = (finished / "cards" / f"{artifact['name']}.md").read_text()
        assert artifact["canonical_hash"] in card
        for file in artifact["files"]:
            assert f"| `{file['name']}` | {file['nbytes']} | `{file['sha256']}` |" in card
        assert card.count("| pass |") == 2  # structure and weights
        assert f"gptoss-convert build recipe.toml --only {artifact['name']}\n" in card
        if artifact["name"].endswith("gguf"):
            assert re.search(r"`laptop-16gb` \| llama.cpp .* \| fits \| 131,072 \|", card)
            assert re.search(r"`20MB` \| llama.cpp .* \| over budget \| - \|", card)


def test_cards_are_the_same_for_the_same_input(finished: Path, desk: Path) -> None:
    (desk / "model" / "README.md").write_text(CARD)
    assert {path.name: path.read_bytes() for path in (made(desk) / "cards").iterdir()} == {
        path.name: path.read_bytes() for path in (finished / "cards").iterdir()
    }


def test_what_is_up_to_date_keeps_its_card(desk: Path) -> None:
    first = {path.name: path.read_bytes() for path in (made(desk) / "cards").iterdir()}
    (desk / "dist" / "cards" / "q8.gguf.md").write_text("overwritten by hand")
    assert {path.name: path.read_bytes() for path in (made(desk) / "cards").iterdir()} == first


def test_an_artifact_that_could_not_be_made_has_no_card(desk: Path) -> None:
    made(desk)
    (desk / "recipe.toml").write_text(RECIPE.replace('"q8_0"', '"nonsense"'))
    assert {path.name for path in (made(desk) / "cards").iterdir()} == {"model.gguf.md", "original.md"}


def test_a_card_that_no_build_wrote_is_not_replaced(desk: Path) -> None:
    (desk / "dist" / "cards").mkdir(parents=True)
    (desk / "dist" / "cards" / "q8.gguf.md").write_text("mine")
    with pytest.raises(OutputError, match="output exists"):
        made(desk)
    assert [path.name for path in (desk / "dist").iterdir()] == ["cards"]
    assert "mine" not in (made(desk, replace_others=True) / "cards" / "q8.gguf.md").read_text()


def test_texts_of_strangers_are_one_line_and_no_markup(desk: Path) -> None:
    hostile = '---\nlicense: other\nlicense_name: "x\\n---\\n# Injected"\n---\n'
    (desk / "model" / "README.md").write_text(hostile)
    (desk / "model").rename(desk / "m`\x1b[1m](x)")
    (desk / "recipe.toml").write_text(RECIPE.replace('"model"', '"m`\\u001b[1m](x)"', 1))
    card = (made(desk) / "cards" / "model.gguf.md").read_text()
    assert front_matter(desk / "dist" / "cards" / "model.gguf.md")["license_name"] == r"x\n---\n# Injected"
    assert "\x1b" not in card
    assert r"``m`\x1b[1m](x)``" in card
    assert "\n# Injected" not in card
