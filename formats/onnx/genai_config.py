"""genai_config.json: what onnxruntime-genai has to know to run a folder as it is.

Fields are those of config.cpp in onnxruntime-genai 0.18.0; what is not said here is left to its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from gptoss_convert.checkpoint import SLIDING, ModelConfig
from gptoss_convert.errors import InputError, OptionError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

GENAI_CONFIG = "genai_config.json"
GRAPH_FILE = "model.onnx"
LONGEST_SHARED_CACHE = 8192
"""Positions that a shared cache is made for unless a program asks for more: it takes its memory at the start, which
would be 6.4 GB for the whole context of gpt-oss-20b in float16."""

_PROVIDER_OPTIONS: Mapping[str, list[dict[str, dict[str, str]]]] = {
    "cpu": [],
    "cuda": [{"cuda": {"enable_cuda_graph": "0"}}],
    "directml": [{"dml": {"enable_graph_capture": "0"}}],
    "webgpu": [{"webgpu": {"enableGraphCapture": "0"}}],
}
"""By target. Captured graphs need a cache of constant size, and branches that never change."""
_SESSION_OPTIONS: Mapping[str, dict[str, Any]] = {
    # The provider takes neither memory patterns nor parallel execution, of which the latter is off by default
    # (onnxruntime's documentation of the DirectML execution provider, configuration options).
    "directml": {"enable_mem_pattern": False},
}


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Token ids that programs treat in a way of their own."""

    ends: tuple[int, ...]
    """Tokens that end what is generated, the usual one first."""
    bos: int | None = None
    pad: int | None = None

    @classmethod
    def of_generation_config(cls, generation_config: Mapping[str, Any], vocab_size: int) -> Self:
        """Return the ids that a generation_config.json names, without those that the vocabulary has no place for.

        onnxruntime-genai reads the logits of every id that ends generation, whether it is there or not.

        Raises:
            InputError: none is left that ends generation.
        """

        def known(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < vocab_size

        stated = generation_config.get("eos_token_id")
        ends = tuple(dict.fromkeys(filter(known, stated if isinstance(stated, list) else [stated])))
        if not ends:
            raise InputError(
                "no token ends what is generated",
                file="generation_config.json",
                found=f"eos_token_id {stated}",
                expected=f"ids from 0 to {vocab_size - 1}",
            )
        bos, pad = generation_config.get("bos_token_id"), generation_config.get("pad_token_id")
        return cls(ends=ends, bos=bos if known(bos) else None, pad=pad if known(pad) else None)


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """What a graph asks of the program that runs it."""

    has_position_ids: bool
    """Whether positions are an input."""
    shares_cache: bool
    """Whether past and present keys may be the same memory, of a size that is fixed at the start."""
    windowed_cache: bool
    """Whether layers with a sliding window keep the positions of one window only."""
    rounds_if_prepacked: bool
    """Whether the CPU would round activations to 8 bits for weights that it packs when they are loaded."""
    prefill_chunk: int | None
    """Positions to compute at once at most, where memory grows with them."""

    @classmethod
    def of_model(cls, model: ModelProto, *, prefill_chunk: int | None) -> Self:
        """Return the facts that a graph shows itself; its maker says how many positions to compute at once."""
        nodes = list(_nodes(model.graph))
        attention = [node for node in nodes if node.op_type == "GroupQueryAttention"]
        return cls(
            has_position_ids=any(item.name == "position_ids" for item in model.graph.input),
            shares_cache=bool(attention),
            windowed_cache=any(_integer(node, "sliding_window_cache") == 1 for node in attention),
            rounds_if_prepacked=any(
                node.op_type == "QMoE" and _integer(node, "expert_weight_bits") == 8 for node in nodes
            ),
            prefill_chunk=prefill_chunk,
        )


def genai_config(config: ModelConfig, *, target: str, graph: GraphFacts, special: SpecialIds) -> dict[str, Any]:
    """Return the contents of genai_config.json for a graph called `GRAPH_FILE`.

    Sampling is as transformers does it with the published generation_config.json: from the 50 likeliest tokens.

    Raises:
        OptionError: there is no such target.
    """
    if target not in _PROVIDER_OPTIONS:
        raise OptionError("unknown target", found=target, expected="one of " + ", ".join(_PROVIDER_OPTIONS))
    context = config.max_position_embeddings
    ids = {"bos_token_id": special.bos, "pad_token_id": special.ends[0] if special.pad is None else special.pad}
    model = {
        "type": "gptoss",
        "vocab_size": config.vocab_size,
        "context_length": context,
        "eos_token_id": list(special.ends),
        **{name: value for name, value in ids.items() if value is not None},
        "decoder": _decoder(config, target, graph),
    }
    search: dict[str, Any] = {
        "max_length": min(context, LONGEST_SHARED_CACHE) if graph.shares_cache else context,
        "past_present_share_buffer": graph.shares_cache,
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
    }
    if graph.prefill_chunk is not None:
        search["chunk_size"] = graph.prefill_chunk
    return {"model": model, "search": search}


def _decoder(config: ModelConfig, target: str, graph: GraphFacts) -> dict[str, Any]:
    session = {"log_id": "onnxruntime-genai", **_SESSION_OPTIONS.get(target, {})}
    if target == "cpu" and graph.rounds_if_prepacked:
        session["session.disable_prepacking"] = "1"
    decoder: dict[str, Any] = {
        "filename": GRAPH_FILE,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "head_size": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **({"position_ids": "position_ids"} if graph.has_position_ids else {}),
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "session_options": {**session, "provider_options": _PROVIDER_OPTIONS[target]},
    }
    if graph.windowed_cache:
        decoder["sliding_window"] = {
            "window_size": config.sliding_window,
            "slide_key_value_cache": False,
            "slide_inputs": False,
            "layers": [index for index, kind in enumerate(config.layer_types) if kind == SLIDING],
        }
    return decoder


def _nodes(graph: GraphProto) -> list[NodeProto]:
    """Return the nodes of a graph and of its branches."""
    found: list[NodeProto] = []
    for node in graph.node:
        found.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


def _integer(node: NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)
