"""Graphs with the weights of checkpoints, in folders that runtimes load: the least that there has to be.

Numbers of all weights lie in one file, part after part. Every number is decoded and encoded again.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from gptoss_convert.checkpoint import SLIDING, ModelConfig, Tensor
from gptoss_convert.encodings import Chunk, Encoding
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.onnx.weights import Graph, Layout
from tests.support.onnx_models import put_tables_inside

DATA = "model.onnx.data"
_STEP = 1 << 24
"""Numbers that are converted at once."""


def write_onnx(checkpoint: Path, graph: Graph, folder: Path) -> Path:
    """Write model.onnx and its weights, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / DATA).open("wb") as file:
        end = 0
        places: dict[str, tuple[int, int]] = {}
        opened = open_checkpoint(checkpoint)
        for name, weight in graph.weights.items():
            assert weight.layout is Layout.ROWS
            offsets = []
            for initialiser in weight.initialisers:
                offsets.append(end)
                places[initialiser.name] = end, initialiser.nbytes
                end += initialiser.nbytes
            for start, chunk in _chunks(opened.tensors[name], weight.encoding):
                for offset, part, rows in zip(offsets, weight.encoding.parts, chunk, strict=True):
                    file.seek(offset + start * rows.shape[1] * part.dtype.itemsize)
                    file.write(np.ascontiguousarray(rows, part.dtype).data)
        file.truncate(end)
    put_tables_inside(graph)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for proto in model.graph.initializer:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            offset, length = places[proto.name]
            for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
                proto.external_data.add(key=key, value=value)
    onnx.save(model, folder / "model.onnx")
    return folder


def write_genai_config(
    folder: Path, config: ModelConfig, *, session_options: Mapping[str, str], windowed: bool = False
) -> None:
    """Write what onnxruntime-genai has to know, as its own builder does."""
    layers = [index for index, kind in enumerate(config.layer_types) if kind == SLIDING]
    window = {"window_size": config.sliding_window, "slide_key_value_cache": False, "slide_inputs": False}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **session_options},
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        **({"sliding_window": window | {"layers": layers, "cache_slack": 0}} if windowed else {}),
    }
    model = {
        "type": "gptoss",
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "bos_token_id": 0,
        "eos_token_id": [1],
        "pad_token_id": 1,
        "decoder": decoder,
    }
    search = {"max_length": 1024, "past_present_share_buffer": True}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))


def _chunks(tensor: Tensor, encoding: Encoding) -> Iterator[tuple[int, Chunk]]:
    step = max(_STEP // tensor.columns, 1)
    for start in range(0, tensor.rows, step):
        chunk = tensor.read(start, min(start + step, tensor.rows))
        yield start, chunk if tensor.encoding == encoding else encoding.encode(tensor.encoding.decode(chunk))
