"""The model card of a folder names what runs it, and its script runs."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
import yaml
from onnx import numpy_helper, parser

from gptoss_convert.description import Description, Reference
from gptoss_convert.errors import OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.genai_config import GraphFacts, SpecialIds
from gptoss_convert.formats.onnx.readme import readme, script
from tests.support.conversions import TINY
from tests.support.scripts import run_script

CONFIG = open_checkpoint(TINY).config
GROWING = GraphFacts(
    has_position_ids=True, shares_cache=False, windowed_cache=False, rounds_if_prepacked=False, prefill_chunk=4
)
SHARED = replace(GROWING, has_position_ids=False, shares_cache=True, prefill_chunk=None)
END = 3504
SPECIAL = SpecialIds(ends=(END,))
DESCRIPTION = Description(
    name="gpt-oss-20b",
    license="Apache-2.0",
    base_models=(Reference(name="gpt-oss-20b", repo_url="https://huggingface.co/openai/gpt-oss-20b"),),
)


def card(target: str = "cpu", graph: GraphFacts = SHARED, description: Description = DESCRIPTION) -> str:
    return readme(
        CONFIG,
        target=target,
        graph=graph,
        special=SPECIAL,
        experts="mxfp4",
        activations="f16",
        description=description,
    )


def front_matter(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_hubs_are_told_licence_and_base_model() -> None:
    assert front_matter(card("directml")) == {
        "license": "apache-2.0",
        "base_model": ["openai/gpt-oss-20b"],
        "library_name": "onnx",
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", "onnx", "directml"],
    }
    bare = front_matter(card(description=Description()))
    assert bare.keys() == {"library_name", "pipeline_tag", "tags"}


def test_what_strangers_say_stays_text() -> None:
    hostile = Description(name="a\n# b <script>`", license_name="x\n---\n# y: [", license="other")
    text = card(description=hostile)
    assert front_matter(text)["license_name"] == "x\\n---\\n# y: ["
    assert "\n# b" not in text
    assert "<script>" not in text.replace("\\<", "")


@pytest.mark.parametrize(
    ("target", "package", "provider"),
    [
        ("cpu", "onnxruntime-genai", "cpu"),
        ("cuda", "onnxruntime-genai-cuda", "cuda"),
        ("directml", "onnxruntime-directml", "dml"),
        ("webgpu", "onnxruntime-webgpu", "webgpu"),
    ],
)
def test_card_names_package_and_provider_of_the_target(target: str, package: str, provider: str) -> None:
    text = card(target)
    assert re.search(rf"^pip install {package}==", text, re.MULTILINE)
    assert f"gptoss-convert verify SOURCE . --provider {provider}\n" in text


@pytest.mark.parametrize("graph", [GROWING, SHARED], ids=["onnxruntime", "onnxruntime-genai"])
def test_script_is_short_and_in_the_card(graph: GraphFacts) -> None:
    program = script(CONFIG, target="cpu", graph=graph, special=SPECIAL)
    assert len([line for line in program.splitlines() if line]) <= 15
    assert f"```python\n{program}```\n" in card(graph=graph)


def test_unknown_target_is_refused() -> None:
    with pytest.raises(OptionError, match="found npu, expected one of cpu, cuda, directml, webgpu"):
        card("npu")


ANSWER = "gravity"
COUNTS = """
    <ir_version: 10, opset_import: ["" : 20]>
    agraph (int64[batch, n] input_ids, int64[batch, total] attention_mask, int64[batch, n] position_ids, {caches})
        => (float[batch, n, 3584] logits, {presents})
    <int64[3] axes = {{0, 2, 3}}, int64[4] entry = {{0, 1, 0, 64}}, int64 first = {{0}}, float zero = {{0.}}>
    {{
        nexts = Gather(successors, input_ids)
        logits = OneHot(nexts, vocabulary, off_and_on)
        places = Cast<to = 1>(position_ids)
        columns = Unsqueeze(places, outer)
        new = Expand(columns, sizes)
        {steps}
    }}
"""
"""Each token has one successor, whatever came before; the cache holds positions."""


def write_folder(folder: Path) -> None:
    """Write a graph that answers `ANSWER`, with the tokenizer of the tiny model."""
    tokenizer = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))
    (folder / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    last = tokenizer.encode("<|start|>assistant").ids[-1]
    answer = tokenizer.encode(ANSWER).ids
    assert len({last, *answer}) == len(answer) + 1
    successors = np.zeros(3584, np.int64)
    for token, following in zip([last, *answer], [*answer, END], strict=True):
        successors[token] = following
    layers = range(CONFIG.num_hidden_layers)
    parts = [f"{part}_{layer}" for layer in layers for part in ("key", "value")]
    shape = f"[batch, {CONFIG.num_key_value_heads}, past, {CONFIG.head_dim}]"
    text = COUNTS.format(
        caches=", ".join(f"float{shape} past_{part}" for part in parts),
        presents=", ".join(f"float{shape.replace('past', 'total')} present_{part}" for part in parts),
        steps="\n".join(f"present_{part} = Concat<axis = 2>(past_{part}, new)" for part in parts),
    )
    model = parser.parse_model(text)
    constants = {
        "successors": successors,
        "vocabulary": np.array(3584),
        "off_and_on": np.array([0, 1], np.float32),
        "outer": np.array([1, 3]),
        "sizes": np.array([1, CONFIG.num_key_value_heads, 1, CONFIG.head_dim]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.save(model, folder / "model.onnx")


def test_script_for_onnxruntime_prints_the_answer(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert run_script(script(CONFIG, target="cpu", graph=GROWING, special=SPECIAL), tmp_path) == ANSWER
