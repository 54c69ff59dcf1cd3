"""onnxruntime-genai runs folders with the genai_config.json that is written here, and computes the whole model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
import pytest
import tokenizers
import torch

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.genai_config import GraphFacts, SpecialIds, genai_config
from gptoss_convert.formats.onnx.readme import LONGEST_ANSWER, QUESTION, script
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Status, run_in_child
from gptoss_convert.verify.runners.protocol import Settings
from tests.peers import onnxruntime_genai_builder, transformers_model
from tests.support.conversions import TINY
from tests.support.scripts import run_script

IDS = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel().tolist()[:160]
"""More positions than a window has."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as onnxruntime-genai's own tool makes it."""
    return onnxruntime_genai_builder.build(TINY, tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture(scope="module")
def ours(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with a genai_config.json of our own."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("ours") / "model")
    (folder / "genai_config.json").write_text(json.dumps(of_folder(folder), indent=1), encoding="utf-8")
    return folder


def of_folder(folder: Path, target: str = "cpu", prefill_chunk: int | None = None) -> dict[str, Any]:
    checkpoint = open_checkpoint(TINY)
    generation = json.loads((TINY / "generation_config.json").read_text(encoding="utf-8"))
    graph = onnx.load(folder / "model.onnx", load_external_data=False)
    return genai_config(
        checkpoint.config,
        target=target,
        graph=GraphFacts.of_model(graph, prefill_chunk=prefill_chunk),
        special=SpecialIds.of_generation_config(generation, checkpoint.config.vocab_size),
    )


def test_what_both_say_about_the_model_is_the_same(built: Path) -> None:
    theirs = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))
    made = of_folder(built)
    assert theirs["model"]["decoder"]["sliding_window"].pop("cache_slack") == 0  # the default
    differing = {key for key in made["model"] if made["model"][key] != theirs["model"][key]}
    assert differing == set()
    limits = {"max_length": 8192}  # theirs takes the memory for the whole context
    common = made["search"].keys() & theirs["search"].keys()
    assert {key: made["search"][key] for key in common} == {key: theirs["search"][key] for key in common} | limits


def test_all_logits_are_those_of_the_model(ours: Path, tmp_path: Path) -> None:
    run = run_in_child(RUNTIMES["onnxruntime-genai"], ours, [IDS], tmp_path, Settings(threads=1))
    assert (run.status, run.reason) == (Status.COMPLETED, None), run.log_tail
    recorded = run.recording().distributions(0, len(IDS)).logprobs
    np.testing.assert_allclose(recorded, transformers_model.next_token_logprobs(TINY, IDS), rtol=0, atol=5e-5)


@pytest.mark.parametrize("chunk", [None, 16])
def test_text_is_generated_until_a_token_ends_it(ours: Path, tmp_path: Path, chunk: int | None) -> None:
    prompt = IDS[:50]
    expected = []
    for _ in range(3):
        expected.append(int(transformers_model.next_token_logprobs(TINY, prompt + expected)[-1].argmax()))
    folder = shutil.copytree(ours, tmp_path / "model")
    config = of_folder(folder, prefill_chunk=chunk)
    config["model"]["eos_token_id"] = expected[2:]
    config["search"]["do_sample"] = False
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = onnxruntime_genai.Model(str(folder))
    generator = onnxruntime_genai.Generator(model, onnxruntime_genai.GeneratorParams(model))
    generator.append_tokens(np.array(prompt, np.int32))
    generated = []
    while not generator.is_done():
        generator.generate_next_token()
        generated.append(int(generator.get_next_tokens()[0]))
    assert generated == expected


def test_script_of_the_model_card_prints_what_the_model_answers(ours: Path) -> None:
    checkpoint = open_checkpoint(TINY)
    facts = GraphFacts.of_model(onnx.load(ours / "model.onnx", load_external_data=False), prefill_chunk=None)
    printed = run_script(
        script(checkpoint.config, target="cpu", graph=facts, special=SpecialIds(ends=(3504,))), ours
    )
    tokenizer = tokenizers.Tokenizer.from_file(str(ours / "tokenizer.json"))
    prompt = tokenizer.encode(f"<|start|>user<|message|>{QUESTION}<|end|><|start|>assistant").ids
    model = transformers_model.load(TINY, "float32")
    expected = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, len(prompt) :]
    text = tokenizer.decode(expected.tolist())
    compared = min(len(printed), len(text))
    assert compared > 20
    assert printed[:compared] == text[:compared]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders as they are written for a target."""
    place = tmp_path_factory.mktemp("converted")

    def folder(**options: Any) -> Path:
        path = place / "-".join(map(str, options.values()))
        if not path.exists():
            execute(plan_onnx(open_checkpoint(TINY), path, OnnxOptions(**options)))
        return path

    return folder


FOLDERS: list[dict[str, Any]] = [
    {"target": "cpu", "prefill_chunk": 48},
    {"target": "cpu", "prefill_chunk": 48, "windowed_cache": True},
    {"target": "directml", "activations": "f32", "prefill_chunk": 48},
]


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-genai"])
@pytest.mark.parametrize("options", FOLDERS, ids=str)
def test_converted_folder_is_computed_in_chunks(
    options: dict[str, Any], runtime: str, converted: Callable[..., Path], tmp_path: Path
) -> None:
    folder = converted(**options)
    run = run_in_child(RUNTIMES[runtime], folder, [IDS], tmp_path, Settings(threads=1, provider="cpu"))
    assert (run.status, run.reason) == (Status.COMPLETED, None), run.log_tail
    recorded = run.recording().distributions(0, len(IDS)).logprobs
    np.testing.assert_allclose(recorded, transformers_model.next_token_logprobs(TINY, IDS), rtol=0, atol=5e-5)


def test_script_of_a_folder_for_gpus_prints_what_the_model_answers(converted: Callable[..., Path]) -> None:
    """As it stands in README.md, but on the processor, and with a shorter answer."""
    folder = converted(**FOLDERS[2])
    card = (folder / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(code.splitlines()) == 16
    for there, here in (
        ("DmlExecutionProvider", "CPUExecutionProvider"),
        (f"start < {LONGEST_ANSWER}", "start < 60"),
    ):
        assert code.count(there) == 1
        code = code.replace(there, here)
    printed = run_script(code, folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode(f"<|start|>user<|message|>{QUESTION}<|end|><|start|>assistant").ids
    ids = list(prompt)
    ends = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["eos_token_id"]
    while len(ids) <= 60 and ids[-1] not in ends:
        ids.append(int(transformers_model.next_token_logprobs(TINY, ids)[-1].argmax()))
    assert len(ids) > len(prompt) + 10
    assert printed == "".join(tokenizer.decode([token]) for token in ids[len(prompt) :])
