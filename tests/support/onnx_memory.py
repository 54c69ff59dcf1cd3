"""Size of an ONNX folder, and memory of a GPU that its graph takes, by arithmetic on the configuration alone."""

import json
from dataclasses import dataclass
from pathlib import Path

from gptoss_convert.checkpoint import SLIDING, ModelConfig, Role, inventory
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.formats.huggingface import parse_config

EXPERTS_AT_ONCE = 4
"""Experts of a layer that are decoded together: those that a token goes to, or a group."""
INDEX_BYTES = 4
"""Each code of an expert is looked up by an int32, and becomes a number of the type that is computed with."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes."""

    weights: int
    decoded: int
    """Experts that are decoded at once, with the numbers that they are looked up by."""
    cache: int

    @property
    def gpu(self) -> int:
        return self.weights + self.decoded + self.cache


def memory(
    config: ModelConfig,
    *,
    experts: Encoding,
    others: Encoding,
    context: int,
    decodes: bool,
    windowed_cache: bool,
) -> Memory:
    """Return what a graph takes with a cache of `context` positions.

    Args:
        config: the model.
        experts: encoding of the expert matrices.
        others: encoding of all others, and type of the cache.
        context: positions.
        decodes: whether experts are decoded by the graph; kernels that take them as they are decode in registers.
        windowed_cache: whether layers with a sliding window keep no more positions than it has.
    """
    number = others.nbytes((1,))
    weights = sum(
        (experts if spec.role is Role.EXPERTS else others).nbytes(spec.shape) for spec in inventory(config).values()
    )
    largest = 2 * config.intermediate_size * config.hidden_size
    kept = sum(
        min(context, config.sliding_window) if windowed_cache and kind == SLIDING else context
        for kind in config.layer_types
    )
    return Memory(
        weights=weights,
        decoded=EXPERTS_AT_ONCE * largest * (INDEX_BYTES + number) if decodes else 0,
        cache=2 * kept * config.num_key_value_heads * config.head_dim * number,
    )


def _config(size: str) -> ModelConfig:
    path = Path(__file__).parents[1] / "data/gpt-oss" / size / "config.json"
    return parse_config(json.loads(path.read_text(encoding="utf-8")), path)


CONFIGS = {size: _config(size) for size in ("20b", "120b")}
"""Of the published models."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    size: str
    target: str
    experts: str
    decodes: bool
    windowed_cache: bool


_ROWS = (
    _Row(size="20b", target="directml, webgpu", experts="mxfp4", decodes=True, windowed_cache=False),
    _Row(size="20b", target="cuda", experts="mxfp4", decodes=False, windowed_cache=True),
    _Row(size="120b", target="directml, webgpu", experts="mxfp4", decodes=True, windowed_cache=False),
    _Row(size="120b", target="cuda", experts="mxfp4", decodes=False, windowed_cache=True),
)
_CONTEXTS = (4096, 32768, 131072)


def table() -> str:
    """The table of docs/onnx.md, in Markdown."""
    lines = [
        "| model | target | experts | others, cache | files | GPU at 4,096 tokens | at 32,768 | at 131,072 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in _ROWS:
        needed = [
            memory(
                CONFIGS[row.size],
                experts=ENCODINGS[row.experts],
                others=ENCODINGS["f16"],
                context=context,
                decodes=row.decodes,
                windowed_cache=row.windowed_cache,
            )
            for context in _CONTEXTS
        ]
        sizes = [needed[0].weights, *(item.gpu for item in needed)]
        cells = [f"gpt-oss-{row.size}", row.target, row.experts, "f16", *(f"{size / 1e9:.1f} GB" for size in sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
