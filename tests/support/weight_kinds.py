"""Weights to quantise: numbers of known distributions, and those of the built-in model, in bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.demo import MODEL
from gptoss_convert.encodings import ENCODINGS
from gptoss_convert.formats import open_checkpoint

Bits16 = NDArray[np.uint16]

_SIZE = 0.02
"""Root mean square of the made-up weights, about that of gpt-oss."""
_TRAINED = (
    "embed_tokens.weight",
    "lm_head.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "o_proj.weight",
)


def random_weights(rows: int, columns: int) -> dict[str, Bits16]:
    """Matrices `[rows, columns]` of numbers that are drawn independently of each other."""
    rng = np.random.default_rng(0)
    shape = (rows, columns)
    kinds = {
        "Gaussian": rng.standard_normal(shape),
        "Gaussian x lognormal rows": rng.standard_normal(shape) * rng.lognormal(0, 1, (rows, 1)),
        "Laplace": rng.laplace(size=shape),
        "Student-t4": rng.standard_t(4, shape),
    }
    return {name: to_bfloat16(_SIZE * values) for name, values in kinds.items()}


def trained_weights() -> dict[str, Bits16]:
    """Matrices of the built-in model that were trained and stored in BF16: attention and embeddings, by name."""
    found = {}
    with as_file(files("gptoss_convert.demo").joinpath(MODEL)) as folder:
        for name, tensor in open_checkpoint(folder).tensors.items():
            if name.endswith(_TRAINED):
                found[name] = tensor.read(0, tensor.rows)[0].reshape(tensor.rows, tensor.columns)
    return found


def trained_experts() -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Codes and scales of the built-in model's experts, which are in MXFP4."""
    with as_file(files("gptoss_convert.demo").joinpath(MODEL)) as folder:
        return [
            (chunk[0].reshape(tensor.rows, -1), chunk[1].reshape(tensor.rows, -1))
            for name, tensor in open_checkpoint(folder).tensors.items()
            if tensor.encoding.name == "mxfp4"
            for chunk in [tensor.read(0, tensor.rows)]
        ]


def weight_kinds(rows: int, columns: int) -> Mapping[str, list[Bits16]]:
    """All kinds of weights, each as a list of matrices."""
    return {
        **{name: [bits] for name, bits in random_weights(rows, columns).items()},
        "trained": list(trained_weights().values()),
    }


def to_bfloat16(values: NDArray[np.float64]) -> Bits16:
    bits: Bits16 = ENCODINGS["bf16"].encode(values.astype(np.float32))[0]
    return bits
