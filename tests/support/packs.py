"""Packs of small models, and packs with damage in them."""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.record import PackReport, RecordOptions, plan_pack, record
from tests.support.checkpoints import Entry, write_safetensors
from tests.support.recordings import prompt_set

IDS = [[(5 * place + start) % 400 for place in range(20)] for start in range(3)]

_NUMPY = {"U8": "u1", "I16": "<i2", "I32": "<i4", "F32": "<f4"}

Arrays = dict[str, NDArray[Any]]
"""The arrays of a pack by name."""


def make_pack(
    checkpoint: Path, path: Path, *, ids: Sequence[Sequence[int]] | PromptSet = IDS, top: int = 1024
) -> PackReport:
    """Record a model on these token ids."""
    prompts = ids if isinstance(ids, PromptSet) else prompt_set(ids)
    options = RecordOptions(prompts=prompts, top=top, threads=1)
    return record(plan_pack(open_checkpoint(checkpoint), path, options))


def read_arrays(path: Path) -> Arrays:
    """Every array of a pack, read without the code under test."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    data = content[8 + length :]
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], _NUMPY[entry["dtype"]])
        .reshape(entry["shape"])
        .copy()
        for name, entry in json.loads(content[8 : 8 + length]).items()
    }


def write_arrays(path: Path, arrays: Arrays) -> Path:
    """Write a file with these arrays."""
    names = {np.dtype(code): name for name, code in _NUMPY.items()} | {
        np.dtype("<f8"): "F64",
        np.dtype("<i8"): "I64",
    }
    return write_safetensors(
        path, [Entry(name, names[data.dtype], data.shape, data.tobytes()) for name, data in arrays.items()]
    )


def facts_of(arrays: Arrays) -> Any:
    """The JSON of a pack."""
    return json.loads(arrays["facts"].tobytes())


def with_facts(change: Callable[[Any], object]) -> Callable[[Arrays], None]:
    """A change of a pack's JSON."""

    def apply(arrays: Arrays) -> None:
        facts = facts_of(arrays)
        change(facts)
        arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)

    return apply
