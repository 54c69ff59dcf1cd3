"""Model cards of a build: what hubs read, what was verified, and how the artifact was made.

A card says what the build found out, and nothing else: no figure of a benchmark, no name that nobody stated. It is
the same for the same manifest.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gptoss_convert import __version__
from gptoss_convert.description import Description
from gptoss_convert.errors import printable
from gptoss_convert.recipes.recipe import Recipe
from gptoss_convert.report import wording
from gptoss_convert.report.document import Artifact, parse_artifact
from gptoss_convert.report.markdown import code, figures, table, text
from gptoss_convert.verify.prompts import PromptSet

FOLDER = "cards"
"""In the folder of a build."""
_HUB = "https://huggingface.co/"
_LIBRARIES = {"gguf": "gguf", "onnx": "onnx", "huggingface": "transformers"}
"""Of hubs, by format; OpenAI's layout has none."""
_EXACTNESS = {
    "byte-exact": "Every code and scale is that of the source.",
    "value-exact": "Every number is that of the source, in another encoding where that holds it exactly.",
    "lossy": "Numbers were rounded; the verification below says by how much.",
}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What all cards of a build have in common."""

    recipe: Recipe
    recipe_sha256: str
    source: str
    """Name of the file or folder."""
    description: Description
    """What the source says about the model."""
    prompts: PromptSet | None


def card_name(artifact: str) -> str:
    """Return the path of an artifact's card, relative to the folder of the build."""
    return f"{FOLDER}/{artifact}.md"


def model_card(facts: Mapping[str, Any], verification: Mapping[str, Any], common: CardFacts) -> bytes:
    """Return the card of an artifact.

    Args:
        facts: what the manifest says of it.
        verification: what a document says of it.
        common: source and recipe.
    """
    # The path of a verification names this machine's folders.
    found = parse_artifact({**verification, "path": facts["output"]})
    head = yaml.safe_dump(_front_matter(facts, common), sort_keys=False, width=math.inf)
    return (f"---\n{head}---\n\n" + "\n\n".join(_blocks(facts, found, common)) + "\n").encode()


def _front_matter(facts: Mapping[str, Any], common: CardFacts) -> dict[str, Any]:
    """Return what hubs read; a key of which nothing is known is left out."""
    said, base = common.description, _base_models(common)
    # What an adapter was merged into is another model, and not the base in another encoding.
    relation = "quantized" if base and common.recipe.source.adapter is None else ""
    stated = {
        "license": printable((said.license or "").lower()),
        "license_name": printable(said.license_name or ""),
        "license_link": printable(said.license_link or ""),
        "base_model": base,
        "base_model_relation": relation,
        "library_name": _LIBRARIES.get(facts["format"], ""),
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", facts["format"]],
    }
    return {key: value for key, value in stated.items() if value}


def _base_models(common: CardFacts) -> list[str]:
    """Return Hub ids: the one that the recipe states, or that of the source, or those that it was made from."""
    if common.recipe.base_model is not None:
        return [common.recipe.base_model]
    said = common.description
    own = [url for url in (said.repo_url, said.source_repo_url) if url is not None]
    urls = own[:1] or [item.repo_url for item in said.base_models if item.repo_url is not None]
    return [printable(url.removeprefix(_HUB)) for url in urls if url.startswith(_HUB)]


def _blocks(facts: Mapping[str, Any], found: Artifact, common: CardFacts) -> Iterator[str]:
    yield f"# {text(facts['name'])}"
    yield (
        f"{code(facts['output'])} was made of {code(printable(common.source))} by gptoss-convert {__version__}. "
        f"{_EXACTNESS[facts['loss']]}"
    )
    yield "## Verification"
    yield f"**{text(wording.verdict(found))}**: {text(found.verdict.reason)}"
    yield table(("compared", "outcome", "finding"), list(_tiers(found)))
    for logits in found.logits:
        if logits.comparisons:
            yield f"{text(logits.runtime)}, {logits.comparisons[0].summary.positions:,} positions:"
            yield figures(logits)
    yield _prompts(common.prompts)
    if facts["footprint"]:
        yield "## Memory"
        yield "Predicted from headers, not measured."
        yield table(
            ("device", "runtime", "needed", "context", "verdict", "largest context"), _fits(facts["footprint"])
        )
    yield "## Files"
    rows = [(code(file["name"]), str(file["nbytes"]), code(file["sha256"])) for file in facts["files"]]
    yield table(("file", "bytes", "SHA-256"), rows)
    if facts["canonical_hash"] is not None:
        yield f"Canonical hash of the numbers: {code(facts['canonical_hash'])}"
    yield "## How it was made"
    name = common.recipe.path.name
    yield (
        f"With the recipe {code(printable(name))}, SHA-256 {code(common.recipe_sha256)}, and these options for "
        f"`{facts['to']}`: {code(json.dumps(facts['options'], ensure_ascii=True, sort_keys=True))}."
    )
    making = f"gptoss-convert build {shlex.quote(printable(name))} --only {facts['name']}"
    proving = f"gptoss-convert verify {shlex.quote(printable(common.source))} {facts['output']}"
    yield f"```sh\n{making}\n{proving}\n```"


def _tiers(found: Artifact) -> Iterator[tuple[str, str, str]]:
    yield "structure", "pass" if found.structure.passed else "fail", text(found.structure.reason)
    if found.weights is not None:
        yield "weights", "pass" if found.weights.passed else "fail", text(found.weights.reason)
    for logits in found.logits:
        yield f"answers in {text(logits.runtime)}", logits.verdict.outcome, text(logits.verdict.reason)


def _prompts(prompts: PromptSet | None) -> str:
    if prompts is None:
        return "Answers were not compared: no runtime was run."
    return (
        f"Prompts {code(prompts.name)}: {len(prompts.prompts)}, {prompts.positions:,} positions, "
        f"{code(prompts.sha256)}."
    )


def _fits(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            code(item["device"]),
            item["runtime"],
            f"{wording.size(item['needed'])} of {wording.size(item['available'])}",
            f"{item['context']:,}",
            item["verdict"],
            wording.NOTHING if item["largest_context"] is None else f"{item['largest_context']:,}",
        )
        for item in entries
    ]
