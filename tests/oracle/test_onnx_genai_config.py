"""onnxruntime-genai runs folders with the genai_config.json that is written here, and computes the whole model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
import pytest
import tokenizers
import torch

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
    expected = model.generate(torch.tensor([prompt]), max_length=LONGEST_ANSWER, do_sample=False)[0, len(prompt) :]
    assert len(printed) > 20
    assert printed[:200] == tokenizer.decode(expected.tolist())[: len(printed)][:200]
