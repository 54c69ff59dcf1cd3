"""The recipe for ONNX: a folder that onnxruntime and onnxruntime-genai run, with a graph made for its target."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from gptoss_convert.assets import CONFIG, GENERATION_CONFIG, MODEL_CARD
from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Role, Tensor, inventory
from gptoss_convert.converters.half_experts import HalfExpertsRecoding
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.recoding import PLAIN, HalvingRecoding, Recoding, SignlessRecoding
from gptoss_convert.converters.to_mxfp4 import quantising_recodings
from gptoss_convert.converters.weight_folder import (
    Carried,
    carried_configuration,
    carry_over,
    plan_weight_folder,
    require_folder_name,
)
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.formats.huggingface_writer import config_json
from gptoss_convert.formats.onnx.genai_config import GENAI_CONFIG, GraphFacts, SpecialIds, genai_config
from gptoss_convert.formats.onnx.graph.options import DEFAULT_PREFILL_CHUNK, GraphOptions
from gptoss_convert.formats.onnx.kernel_check import KERNEL_TABLES, read_kernel_table, require_kernels
from gptoss_convert.formats.onnx.readme import readme
from gptoss_convert.formats.onnx.weights import Graph
from gptoss_convert.formats.onnx.writer import lay_out_graph
from gptoss_convert.tokenizer import TokenizerSource


@dataclass(frozen=True, kw_only=True)
class GraphTarget:
    """What runs a graph, and where graphs for it are made."""

    builder: str
    """`module:function`; the function takes a `ModelConfig` and `GraphOptions` and returns a `Graph`."""
    experts: tuple[str, ...]
    """Encodings of experts that it takes, the default first."""
    activations: tuple[Literal["f32", "f16"], ...]
    """Types that it computes with, the default first."""
    widens_embedding: bool = False
    """Whether its graph may have the embedding in bfloat16 where it computes in float32."""
    windowed_cache: bool = False
    """Whether its graph may keep no more positions than the window in layers that have one."""


_EMBEDDING = "model.embed_tokens.weight"
_GRAPHS = "gptoss_convert.formats.onnx.graph"
GRAPHS: Mapping[str, GraphTarget] = {
    "directml": GraphTarget(
        builder=f"{_GRAPHS}.standard:build_standard_graph",
        experts=("mxfp4", "int8", "f16"),
        activations=("f16", "f32"),
    ),
    "webgpu": GraphTarget(
        builder=f"{_GRAPHS}.standard:build_standard_graph",
        experts=("mxfp4", "int8", "f16"),
        activations=("f16", "f32"),
    ),
    "cpu": GraphTarget(
        builder=f"{_GRAPHS}.cpu:build_cpu_graph",
        experts=("int8", "int4"),
        activations=("f32",),
        widens_embedding=True,
        windowed_cache=True,
    ),
    "cuda": GraphTarget(
        builder=f"{_GRAPHS}.cuda:build_cuda_graph",
        experts=("mxfp4",),
        activations=("f16",),
        windowed_cache=True,
    ),
}
"""By name of the target."""


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """What the user decides about an ONNX folder."""

    target: str
    """One of `GRAPHS`."""
    experts: str | None = None
    """How the expert matrices are stored; None takes what suits the target and loses nothing."""
    activations: str | None = None
    """Type of all that is computed, and of matrices other than experts; None takes what suits the target."""
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK
    """Positions of a prompt that a runtime computes at once at most."""
    windowed_cache: bool = False
    """Whether layers with a sliding window keep the positions of one window only."""
    max_shard_size: int | None = None
    """Bytes of a file of external data; None writes one file."""
    allow_lossy_source: bool = False
    """Whether numbers that were rounded when the source was stored may be decoded."""


def plan_onnx(
    checkpoint: Checkpoint,
    folder: Path,
    options: OnnxOptions,
    *,
    tokenizer: TokenizerSource | None = None,
) -> Plan:
    """Plan the conversion of `checkpoint` to an ONNX folder. Reads no tensor data.

    Args:
        checkpoint: the model.
        folder: the folder to write.
        options: target, encodings, size of the files.
        tokenizer: takes the place of the checkpoint's own.

    Raises:
        InputError: the checkpoint is not sound, or a file beside it is damaged.
        OptionError: there is no such target, or it does not take what is asked for.
        UnsupportedError: numbers of the source cannot be decoded, the graph cannot express the model, the target's
            execution provider has no kernel for a node, or the library that makes graphs is not installed.
    """
    checkpoint.require_sound()
    require_folder_name(folder)
    target, graph_options = _resolve(options, checkpoint)
    _require_whole_blocks(checkpoint, graph_options)
    graph = build_graph(target, checkpoint.config, graph_options)
    if options.target in KERNEL_TABLES:
        require_kernels(graph.model, read_kernel_table(options.target))
    folder = folder.absolute()
    carried = carry_over(checkpoint, tokenizer)
    texts = _texts(checkpoint, carried, graph, options.target, graph_options)
    notes = [
        f"graph for {options.target}: experts {graph_options.experts}, computes in {graph_options.activations}"
    ]
    if GENAI_CONFIG not in texts:
        notes.append(f"no {GENAI_CONFIG}: the source does not say which token ends an answer")
    return plan_weight_folder(
        checkpoint,
        folder,
        lay_out_graph(graph, checkpoint.config, folder, max_shard_size=options.max_shard_size),
        format_name="onnx",
        recoding=_recodings(checkpoint, target, graph_options),
        carried=carried,
        texts=texts,
        notes=notes,
        allow_lossy_source=options.allow_lossy_source,
    )


def _texts(
    checkpoint: Checkpoint, carried: Carried, graph: Graph, target: str, options: GraphOptions
) -> dict[str, bytes]:
    """Return the small files that say how to run the folder, by name.

    A source without tokenizer and settings does not say which token ends an answer; its folder has a configuration
    and weights only.
    """
    config = config_json(
        checkpoint.config,
        carried=carried_configuration(checkpoint),
        special_ids=carried.special_ids,
        experts=None,
    )
    generation = checkpoint.assets.read_json_object(GENERATION_CONFIG) or json.loads(config)
    if generation.get("eos_token_id") is None:
        return {CONFIG: config}
    facts = GraphFacts.of_model(graph.model, prefill_chunk=options.prefill_chunk)
    special = SpecialIds.of_generation_config(generation, checkpoint.config.vocab_size)
    runtime = genai_config(checkpoint.config, target=target, graph=facts, special=special)
    card = readme(
        checkpoint.config,
        target=target,
        graph=facts,
        special=special,
        experts=options.experts,
        activations=options.activations,
        description=checkpoint.describe(),
    )
    return {
        CONFIG: config,
        GENAI_CONFIG: (json.dumps(runtime, indent=2) + "\n").encode(),
        MODEL_CARD: card.encode(),
    }


def build_graph(target: GraphTarget, config: ModelConfig, options: GraphOptions) -> Graph:
    """Return the graph of a model for a target.

    Raises:
        UnsupportedError: the graph cannot express the model, or the library that makes graphs is not installed.
    """
    if find_spec("onnx") is None:
        raise UnsupportedError("onnx is not installed", hint="pip install 'gptoss-convert[onnx]'")
    module, _, function = target.builder.partition(":")
    graph: Graph = getattr(import_module(module), function)(config, options)
    return graph


def _resolve(options: OnnxOptions, checkpoint: Checkpoint) -> tuple[GraphTarget, GraphOptions]:
    """Return the target, and what is asked of its graph; the embedding keeps its bytes where both allow it."""
    target = GRAPHS.get(options.target)
    if target is None:
        raise OptionError("unknown target", found=options.target, expected="one of " + ", ".join(GRAPHS))
    experts = options.experts or target.experts[0]
    activations = options.activations or target.activations[0]
    for what, asked, taken in (
        ("experts", experts, target.experts),
        ("activations", activations, target.activations),
    ):
        if asked not in taken:
            raise OptionError(
                f"target {options.target} does not take these {what}",
                found=asked,
                expected="one of " + ", ".join(taken),
            )
    if options.windowed_cache and not target.windowed_cache:
        able = ", ".join(name for name, item in GRAPHS.items() if item.windowed_cache)
        raise OptionError(f"target {options.target} has no cache of one window", expected=f"one of {able}")
    keeps = target.widens_embedding and ENCODINGS["bf16"].holds(checkpoint.tensors[_EMBEDDING].encoding)
    return target, GraphOptions(
        experts=experts,
        activations=activations,
        embedding="bf16" if keeps else "f32",
        prefill_chunk=options.prefill_chunk,
        windowed_cache=options.windowed_cache,
    )


def _require_whole_blocks(checkpoint: Checkpoint, options: GraphOptions) -> None:
    if options.experts == "f16":
        return
    mxfp4 = ENCODINGS["mxfp4"]
    for name, spec in inventory(checkpoint.config).items():
        if spec.role is Role.EXPERTS and not mxfp4.fits(spec.shape[-1]):
            raise UnsupportedError(
                "rows of experts are not whole blocks",
                file=checkpoint.tensors[name].file,
                tensor=name,
                found=f"{spec.shape[-1]} elements",
                expected=f"a multiple of {mxfp4.block}",
            )


def _recodings(
    checkpoint: Checkpoint, graph: GraphTarget, options: GraphOptions
) -> Callable[[Tensor, Tensor], Recoding]:
    """Return what tells how the numbers of a tensor get from source to target."""
    quantised = quantising_recodings(checkpoint) if options.experts == "mxfp4" else {}
    looked_at = options.activations == "f16" and options.experts in ("mxfp4", "int8")
    decoded_to_f16 = {
        name for name, spec in inventory(checkpoint.config).items() if looked_at and spec.role is Role.EXPERTS
    }
    hint = "use --activations f32" if "f32" in graph.activations else "use a target that has --activations f32"

    def recoding(source: Tensor, target: Tensor) -> Recoding:
        by_encodings = _RECODINGS.get((source.encoding.name, target.encoding.name), PLAIN)
        chosen = quantised.get(source.name, by_encodings)
        return HalfExpertsRecoding(chosen, hint) if target.name in decoded_to_f16 else chosen

    return recoding


_RECODINGS: Mapping[tuple[str, str], Recoding] = {
    ("bf16", "f16"): HalvingRecoding(),
    ("mxfp4", "int8-block"): SignlessRecoding(),
}
