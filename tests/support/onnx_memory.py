"""Size of an ONNX folder, and the memory that its graph takes, by arithmetic on the configuration alone."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from gptoss_convert.checkpoint import ModelConfig, Role, inventory
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.formats.huggingface import parse_config

EXPERTS_AT_ONCE = 4
"""Experts of a layer that are decoded together: those that a token goes to, or a group."""
CHUNK = 256
"""Positions of a prompt that are computed at once."""
SCORE_BYTES = 2 * 4
"""Of each score of a query and a key: float32, what an operator reads and what it writes."""
MATRICES = (Role.ATTENTION, Role.UNEMBEDDING)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What matters about a graph."""

    experts: str
    """Encoding of the expert matrices."""
    others: str
    """Encoding of all other matrices, and type of the cache."""
    embedding: str
    """Encoding of the embedding."""
    is_standard: bool
    """Of standard operators, which decode experts, write all scores of a chunk to memory, and write a new cache.
    Kernels of attention and experts need no room for the former, and add to the cache in place."""
    matrices: str | None = None
    """Encoding of attention's matrices and the unembedding, if not that of all others."""
    is_packed: bool = False
    """Whether the runtime keeps a second copy of encoded matrices, in an order of its own."""

    @property
    def looked_up(self) -> int:
        """Bytes of what a number of an expert is decoded by: an int32 index for MXFP4, else the number itself."""
        return 4 if self.experts == "mxfp4" else ENCODINGS[self.others].nbytes((1,))


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    weights: int
    packed: int
    """Second copies of matrices."""
    decoded: int
    """Experts that are decoded at once, with the numbers that they are looked up by."""
    scores: int
    """Of a chunk with all positions, in one layer: no experts are decoded meanwhile."""
    cache: int
    """Twice where the graph writes a new one."""

    @property
    def total(self) -> int:
        return self.weights + self.packed + max(self.decoded, self.scores) + self.cache


def memory(config: ModelConfig, graph: Graph, *, context: int) -> Memory:
    """Return what a graph takes for a prompt that fills a cache of `context` positions."""
    experts, others = ENCODINGS[graph.experts], ENCODINGS[graph.others]

    def encoding(role: Role) -> Encoding:
        if role is Role.EMBEDDING:
            return ENCODINGS[graph.embedding]
        if graph.matrices is not None and role in MATRICES:
            return ENCODINGS[graph.matrices]
        return experts if role is Role.EXPERTS else others

    stored = [(encoding(spec.role), spec.shape) for spec in inventory(config).values()]
    packed = sum(found.nbytes(shape) for found, shape in stored if graph.is_packed and found.block > 1)
    number = others.nbytes((1,))
    largest = 2 * config.intermediate_size * config.hidden_size
    cache = 2 * config.num_hidden_layers * context * config.num_key_value_heads * config.head_dim * number
    chunk = min(CHUNK, context)
    return Memory(
        weights=sum(found.nbytes(shape) for found, shape in stored),
        packed=packed,
        decoded=EXPERTS_AT_ONCE * largest * (graph.looked_up + number) if graph.is_standard else 0,
        scores=config.num_attention_heads * chunk * context * SCORE_BYTES if graph.is_standard else 0,
        cache=cache * 2 if graph.is_standard else cache,
    )


def _config(size: str) -> ModelConfig:
    path = Path(__file__).parents[1] / "data/gpt-oss" / size / "config.json"
    return parse_config(json.loads(path.read_text(encoding="utf-8")), path)


CONFIGS = {size: _config(size) for size in ("20b", "120b")}
"""Of the published models."""


MXFP4 = Graph(experts="mxfp4", others="f16", embedding="f16", is_standard=True)
GRAPHS = {
    "directml, webgpu": (
        MXFP4,
        replace(MXFP4, others="f32", embedding="f32"),
        replace(MXFP4, experts="int8-block"),
        replace(MXFP4, experts="f16"),
    ),
    "cuda": (replace(MXFP4, is_standard=False),),
    "cpu": (
        Graph(experts="int8-block", others="f32", embedding="bf16", is_standard=False),
        Graph(
            experts="int4-block",
            others="f32",
            embedding="bf16",
            is_standard=False,
            matrices="int8-block",
            is_packed=True,
        ),
    ),
}
"""By target."""
CONTEXTS = (4096, 32768, 131072)


def table() -> str:
    """The table of docs/onnx.md, in Markdown."""
    lines = [
        "| model | target | experts | others, cache | files | memory at 4,096 tokens | at 32,768 | at 131,072 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, config in CONFIGS.items():
        for target, graphs in GRAPHS.items():
            for graph in graphs:
                needed = [memory(config, graph, context=context) for context in CONTEXTS]
                sizes = [needed[0].weights, *(item.total for item in needed)]
                experts = graph.experts.removesuffix("-block")
                cells = [f"gpt-oss-{size}", target, experts, graph.others]
                lines.append(f"| {' | '.join(cells + [f'{nbytes / 1e9:.1f} GB' for nbytes in sizes])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
