"""Writes LoRA adapters in PEFT's layout, sound or not, without PEFT."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.checkpoints import Entry, write_safetensors

LAYER = "base_model.model.model.layers.0"
DTYPES = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype("u1"): "U8"}

Arrays = Mapping[str, NDArray[Any]]


def write_adapter(folder: Path, tensors: Arrays, **config: Any) -> Path:
    """Write adapter_config.json, of rank 2 unless `config` says otherwise, and adapter_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, **config)
    entries = [Entry(name, DTYPES[a.dtype], a.shape, a.tobytes()) for name, a in tensors.items()]
    write_safetensors(folder / "adapter_model.safetensors", entries, metadata={"format": "pt"})
    return folder


def write_config(folder: Path, **config: Any) -> None:
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "someone/base"} | config
    (folder / "adapter_config.json").write_text(json.dumps(content), encoding="utf-8")


def pair(module: str, a: tuple[int, ...], b: tuple[int, ...], *, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random A and B of these shapes for a module, named as PEFT names them."""
    rng = np.random.default_rng(seed)
    return {
        f"{module}.lora_A.weight": rng.standard_normal(a, np.float32),
        f"{module}.lora_B.weight": rng.standard_normal(b, np.float32),
    }
