"""README.md of an ONNX folder: what it is, what runs it, and how to prove that it is the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gptoss_convert.checkpoint import ModelConfig, parameter_count
from gptoss_convert.description import Description
from gptoss_convert.errors import OptionError, printable
from gptoss_convert.formats.onnx.genai_config import GRAPH_FILE, GraphFacts, SpecialIds

QUESTION = "Why is the sky blue?"
LONGEST_ANSWER = 512
"""Positions after which the script of the folder ends."""
_HUB = "https://huggingface.co/"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What runs a graph."""

    title: str
    provider: str
    """onnxruntime's name of the execution provider."""
    option: str
    """Its name for `verify --provider`."""
    packages: str
    """For pip: runtime and what the script needs; the versions are those that graphs are made for."""
    remark: str = ""


TARGETS: Mapping[str, Target] = {
    "cpu": Target(
        title="processors",
        provider="CPUExecutionProvider",
        option="cpu",
        packages="onnxruntime-genai==0.18.0",
    ),
    "cuda": Target(
        title="NVIDIA GPUs (CUDA)",
        provider="CUDAExecutionProvider",
        option="cuda",
        packages="onnxruntime-genai-cuda==0.18.0 onnxruntime-gpu==1.31.1",
    ),
    "directml": Target(
        title="GPUs of all makers on Windows (DirectML)",
        provider="DmlExecutionProvider",
        option="dml",
        packages="onnxruntime-directml==1.24.4 tokenizers",
        remark="onnxruntime-windowsml (1.30) has DirectML too, and takes the place of onnxruntime-directml.\n"
        "Neither lives beside the package onnxruntime: use a virtual environment of its own.",
    ),
    "webgpu": Target(
        title="GPUs of all makers (WebGPU)",
        provider="WebGpuExecutionProvider",
        option="webgpu",
        packages="onnxruntime-webgpu==1.27.0 tokenizers",
        remark="It takes the place of the package onnxruntime: use a virtual environment of its own.",
    ),
}

_BY_GENAI = """\
import onnxruntime_genai as genai

model = genai.Model(".")
tokenizer = genai.Tokenizer(model)
parameters = genai.GeneratorParams(model)
parameters.set_search_options(max_length={longest}, do_sample=False)
generator = genai.Generator(model, parameters)
generator.append_tokens(tokenizer.encode({prompt}))
text = tokenizer.create_stream()
while not generator.is_done():
    generator.generate_next_token()
    print(text.decode(generator.get_next_tokens()[0]), end="", flush=True)
"""
_BY_ONNXRUNTIME = """\
import numpy as np, onnxruntime, tokenizers

session = onnxruntime.InferenceSession("{file}", providers=["{provider}"])
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
kind = np.float16 if "float16" in session.get_outputs()[1].type else np.float32
names = [item.name for item in session.get_inputs() if item.name.startswith("past")]
cache, start = [np.zeros((1, {heads}, 0, {size}), kind)] * len(names), 0
ids = tokenizer.encode({prompt}).ids
while start < {longest} and ids[-1] not in {ends}:
    part = np.array([ids[start : start + {chunk}]])
    places = np.arange(start, start := start + part.shape[1])[None]
    feeds = {{"input_ids": part, "position_ids": places, "attention_mask": np.ones((1, start), np.int64)}}
    logits, *cache = session.run(None, feeds | dict(zip(names, cache)))
    if start == len(ids):
        ids.append(int(logits[0, -1].argmax()))
        print(tokenizer.decode(ids[-1:]), end="", flush=True)
"""
_PROMPT = "<|start|>user<|message|>{question}<|end|><|start|>assistant"


def readme(
    config: ModelConfig,
    *,
    target: str,
    graph: GraphFacts,
    special: SpecialIds,
    experts: str,
    activations: str,
    description: Description,
) -> str:
    """Return the model card of a folder.

    Args:
        config: the model.
        target: what the graph is for.
        graph: what it asks of programs.
        special: tokens that end what is generated.
        experts: encoding of the expert matrices.
        activations: type that is computed with, and of matrices other than experts.
        description: what the source says about the model.

    Raises:
        OptionError: there is no such target.
    """
    if target not in TARGETS:
        raise OptionError("unknown target", found=target, expected="one of " + ", ".join(TARGETS))
    means = TARGETS[target]
    name = _line(description.name or "gpt-oss")
    billions = parameter_count(config) / 1e9
    said = (
        f"An ONNX graph of {name}, {billions:.3g} billion parameters, made by gptoss-convert for\n"
        f"onnxruntime's {means.provider}. Expert matrices are stored as {experts}, all others as {activations},\n"
        "which is computed with too.\n"
    )
    parts = (
        f"---\n{yaml.safe_dump(_front_matter(target, description), sort_keys=False, width=math.inf)}---\n",
        f"# {name} for {means.title}\n",
        said,
        "## Run\n",
        f"```sh\npip install {means.packages}\n```\n",
        f"{means.remark}\n" if means.remark else "",
        f"```python\n{script(config, target=target, graph=graph, special=special)}```\n",
        "## Verify\n",
        "Compare numbers and answers with those of the model that it was made from:\n",
        f"```sh\ngptoss-convert verify SOURCE . --provider {means.option}\n```\n",
    )
    return "\n".join(part for part in parts if part)


def script(
    config: ModelConfig,
    *,
    target: str,
    graph: GraphFacts,
    special: SpecialIds,
    question: str | None = None,
    longest: int = LONGEST_ANSWER,
) -> str:
    """Return a Python program that lets the folder that it is run in answer a question.

    Graphs with a growing cache are run by onnxruntime alone, of which there are packages for every target.

    Args:
        config: the model.
        target: what the graph is for.
        graph: what it asks of programs.
        special: tokens that end what is generated.
        question: a Python expression; by default a question as a text.
        longest: positions after which it ends.
    """
    before, after = _PROMPT.split("{question}")
    literal = f'"{before}{QUESTION}{after}"'
    template = _BY_GENAI if graph.shares_cache else _BY_ONNXRUNTIME
    return template.format(
        file=GRAPH_FILE,
        provider=TARGETS[target].provider,
        heads=config.num_key_value_heads,
        size=config.head_dim,
        prompt=literal if question is None else f'"{before}" + {question} + "{after}"',
        longest=longest,
        ends=list(special.ends),
        chunk=graph.prefill_chunk or LONGEST_ANSWER,
    )


def _front_matter(target: str, description: Description) -> dict[str, Any]:
    """Return the metadata that model hubs read; texts are of one line, so that none of them ends it."""
    stated: dict[str, Any] = {
        "license": printable((description.license or "").lower()),
        "license_name": printable(description.license_name or ""),
        "license_link": printable(description.license_link or ""),
        "base_model": [
            printable(item.repo_url.removeprefix(_HUB))
            for item in description.base_models
            if item.repo_url is not None and item.repo_url.startswith(_HUB)
        ],
    }
    return {
        **{key: value for key, value in stated.items() if value},
        "library_name": "onnx",
        "pipeline_tag": "text-generation",
        "tags": ["gpt-oss", "onnx", target],
    }


def _line(text: str) -> str:
    """Return a text of strangers as plain text of one line in Markdown."""
    return "".join(f"\\{char}" if char in "\\`*_[]<>#|" else char for char in printable(text))
