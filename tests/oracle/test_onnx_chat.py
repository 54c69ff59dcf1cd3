"""A chat through the folder that the command wrote: as a user has it, from the command line to the last token."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch
import transformers
from numpy.typing import NDArray

from tests.cli.command import run_process
from tests.peers import transformers_model
from tests.support.conversions import TINY

MESSAGES = [
    {"role": "system", "content": "Answer in one sentence, and name your sources where you have any."},
    {"role": "user", "content": "Which river flows through Vienna, Bratislava, Budapest and Belgrade?"},
    {"role": "assistant", "content": "The Danube."},
    {"role": "user", "content": "And where does it end? Tell me the sea and the countries of its delta, please."},
]
ANSWER = 12
"""Tokens that are generated at most."""
EXACT = 1e-4
"""Largest distance of logits of about 16, from float32 sums in another order."""


@pytest.fixture(scope="module", params=["cpu", "directml"])
def target(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(target: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `to-onnx` writes; for DirectML in float32, so that it can be compared closely on the processor."""
    path = tmp_path_factory.mktemp("onnx") / target
    done = run_process("to-onnx", TINY, "-o", path, "--target", target, "--activations", "f32", "--quiet")
    assert done.exit_code == 0, done.stderr
    return path


@pytest.fixture(scope="module")
def model(target: str, folder: Path) -> Any:
    """The folder in onnxruntime-genai as it is, but for the provider, which is the processor."""
    config = onnxruntime_genai.Config(str(folder))
    if target != "cpu":
        config.clear_providers()
    return onnxruntime_genai.Model(config)


@pytest.fixture(scope="module")
def reference() -> Any:
    return transformers_model.load(TINY, "float32")


@pytest.fixture(scope="module")
def prompt(model: Any) -> list[int]:
    """The conversation by the chat template of the folder."""
    tokenizer = onnxruntime_genai.Tokenizer(model)
    text = tokenizer.apply_chat_template(json.dumps(MESSAGES), add_generation_prompt=True)
    return [int(token) for token in tokenizer.encode(text)]


def logits_of(reference: Any, ids: Any) -> NDArray[np.float32]:
    """Logits [positions, vocabulary] by transformers."""
    with torch.inference_mode():
        found: NDArray[np.float32] = reference(input_ids=torch.tensor([list(map(int, ids))])).logits[0].numpy()
    return found


def started(model: Any, prompt: list[int]) -> Any:
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + ANSWER, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    return generator


def test_chat_template_of_the_folder_makes_the_tokens_of_transformers(prompt: list[int]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert prompt == tokenizer(text)["input_ids"]
    assert len(prompt) > 128  # more than the attention window


def test_logits_of_the_whole_prompt_are_those_of_transformers(
    model: Any, prompt: list[int], reference: Any
) -> None:
    found = np.asarray(started(model, prompt).get_output("logits"))
    assert found.shape == (1, len(prompt), reference.config.vocab_size)
    np.testing.assert_allclose(found[0], logits_of(reference, prompt), rtol=0, atol=EXACT)


def test_answer_is_that_of_transformers(model: Any, folder: Path, prompt: list[int], reference: Any) -> None:
    generator, answer = started(model, prompt), []
    while not generator.is_done():
        generator.generate_next_token()
        answer.append(int(generator.get_next_tokens()[0]))
    ends = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["eos_token_id"]
    expected = reference.generate(
        torch.tensor([prompt]), max_new_tokens=ANSWER, do_sample=False, eos_token_id=ends
    )[0, len(prompt) :].tolist()
    assert answer == expected[: len(answer)]
    assert len(answer) in (len(expected), len(expected) - 1)  # one of them counts the token that ends it
    tokenizer = onnxruntime_genai.Tokenizer(model)
    assert tokenizer.decode(np.array(answer, np.int32))


def test_two_prompts_of_different_length_go_through_together(
    target: str, folder: Path, prompt: list[int], reference: Any
) -> None:
    """Padded where the graph wants it: at the ends for kernels that are told lengths, else at the beginnings."""
    sequences = [prompt, prompt[7:-60]]
    length = len(prompt)
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    places = []
    for row, sequence in enumerate(sequences):
        first = 0 if target == "cpu" else length - len(sequence)
        places.append(slice(first, first + len(sequence)))
        ids[row, places[-1]], mask[row, places[-1]] = sequence, 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    logits = run(folder, {"input_ids": ids, "attention_mask": mask, "position_ids": positions})
    for row, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        np.testing.assert_allclose(logits[row, place], logits_of(reference, sequence), rtol=0, atol=EXACT)


def run(folder: Path, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Logits [batch, positions, vocabulary] of a graph with empty caches, loaded as its genai_config.json says."""
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    options = onnxruntime.SessionOptions()
    for key, value in config["model"]["decoder"]["session_options"].items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    inputs = {node.name: node.shape for node in session.get_inputs()}
    empty = {
        name: np.zeros((2, shape[1], 0, shape[3]), np.float32)
        for name, shape in inputs.items()
        if name.startswith("past")
    }
    given = {name: value for name, value in feeds.items() if name in inputs}
    found: NDArray[np.float32] = session.run(["logits"], given | empty)[0]
    return found
