"""Canonical tensors made of the tensors of GGUF files: those that are read, and those that a plan will write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from gptoss_convert.checkpoint import Collected, Tensor, collect_tensors
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.blocks import RecordStorage
from gptoss_convert.formats.gguf.container import TensorInfo
from gptoss_convert.formats.gguf.names import canonical_name, gguf_names
from gptoss_convert.formats.storage import FileRef, InterleavedStorage, StoredArray


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor of a GGUF file; `info.offset` counts from the start of `file`."""

    file: FileRef
    info: TensorInfo


Placed: TypeAlias = Mapping[str, PlacedTensor]
"""By name in the file, over all shards."""


def canonical_tensors(placed: Placed) -> Collected:
    """Return the canonical tensors, and what is wrong with those that are none."""

    def canonical(name: str) -> Iterable[Tensor]:
        base = canonical_name(name)
        if base is None:
            raise InputError("unknown tensor", file=placed[name].file.path, tensor=name)
        names = gguf_names(base)
        missing = [other for other in names if other not in placed]
        if missing:
            raise InputError(
                "tensor lacks its other half", file=placed[name].file.path, tensor=name, expected=missing[0]
            )
        if name == names[0]:  # the other half comes with it
            yield canonical_tensor(base, placed)

    return collect_tensors(placed, canonical)


def canonical_tensor(name: str, placed: Placed) -> Tensor:
    """Return canonical tensor `name`, whose counterparts must all be there.

    Raises:
        InputError: two halves do not fit each other.
        UnsupportedError: two halves have different encodings, or alternate within blocks.
    """
    counterparts = [_tensor(name, placed[other]) for other in gguf_names(name)]
    if len(counterparts) == 1:
        return counterparts[0]
    even, odd = counterparts
    if even.shape != odd.shape:
        raise InputError(
            "tensor does not fit its other half", file=odd.file, tensor=name, found=odd.shape, expected=even.shape
        )
    if even.encoding != odd.encoding:
        raise UnsupportedError(
            "two halves of a tensor have different encodings",
            file=odd.file,
            tensor=name,
            found=odd.encoding.name,
            expected=even.encoding.name,
        )
    axis = 0 if len(even.shape) == 3 else 1
    if axis == 1 and even.encoding.block > 1:
        raise UnsupportedError("bias is stored in blocks", file=even.file, tensor=name, found=even.encoding.name)
    doubled = len(even.shape) - (2 if axis == 0 else 1)
    shape = tuple(2 * size if index == doubled else size for index, size in enumerate(even.shape))
    return Tensor(name, shape, even.encoding, InterleavedStorage(even.storage, odd.storage, axis))


def _tensor(name: str, placed: PlacedTensor) -> Tensor:
    info = placed.info
    rows = StoredArray(placed.file, info.offset, np.dtype("u1"), info.encoding.row_nbytes(info.shape[-1]))
    return Tensor(name, info.shape, info.encoding, RecordStorage(rows, info.encoding))
