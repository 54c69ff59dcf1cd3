"""Canonical tensors made of the tensors of GGUF files: those that are read, and those that a plan will write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from gptoss_convert.checkpoint import Collected, ModelConfig, Tensor, collect_tensors, inventory
from gptoss_convert.encodings.mixed import Mixed
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.blocks import RecordStorage
from gptoss_convert.formats.gguf.container import TensorInfo
from gptoss_convert.formats.gguf.dialects import LLAMA_CPP, Dialect
from gptoss_convert.formats.gguf.names import canonical_name, gguf_names, split_layer
from gptoss_convert.formats.storage import DecodedStorage, FileRef, InterleavedStorage, StoredArray


@dataclass(frozen=True)
class PlacedTensor:
    """A tensor of a GGUF file; `info.offset` counts from the start of `file`."""

    file: FileRef
    info: TensorInfo


Placed: TypeAlias = Mapping[str, PlacedTensor]
"""By name in the file, over all shards."""


def canonical_tensors(placed: Placed, config: ModelConfig, dialect: Dialect = LLAMA_CPP) -> Collected:
    """Return the canonical tensors, and what is wrong with those that are none."""
    shapes = {name: spec.shape for name, spec in inventory(config).items()}

    def canonical(name: str) -> Iterable[Tensor]:
        layer, inner = split_layer(name)
        if layer is not None and inner in dialect.in_layer:
            contents = [f"model.layers.{layer}.{other}" for other in dialect.in_layer[inner]]
            yield from _consecutive(contents, shapes, placed[name])
            return
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
        UnsupportedError: two halves alternate within blocks, or cannot be decoded and have different encodings.
    """
    counterparts = [_tensor(name, placed[other]) for other in gguf_names(name)]
    if len(counterparts) == 1:
        return counterparts[0]
    even, odd = counterparts
    if even.shape != odd.shape:
        raise InputError(
            "tensor does not fit its other half", file=odd.file, tensor=name, found=odd.shape, expected=even.shape
        )
    axis = 0 if len(even.shape) == 3 else 1
    doubled = len(even.shape) - (2 if axis == 0 else 1)
    shape = tuple(2 * size if index == doubled else size for index, size in enumerate(even.shape))
    if even.encoding != odd.encoding:
        return _mixed(Tensor(name, shape, Mixed(even.encoding, odd.encoding), even.storage), even, odd, axis)
    if axis == 1 and even.encoding.block > 1:
        raise UnsupportedError("bias is stored in blocks", file=even.file, tensor=name, found=even.encoding.name)
    return Tensor(name, shape, even.encoding, InterleavedStorage(even.storage, odd.storage, axis))


def _mixed(whole: Tensor, even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """Return `whole` with the storage of two halves of different encodings, which are decoded as they are read."""
    if not whole.encoding.can_decode:
        raise UnsupportedError(
            "two halves of a tensor have different encodings, and one cannot be decoded",
            file=odd.file,
            tensor=whole.name,
            found=whole.encoding.name,
        )
    first, second = (DecodedStorage(half.storage, half.encoding) for half in (even, odd))
    return replace(whole, storage=InterleavedStorage(first, second, axis))


def halves(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the even and the odd rows of a tensor of `Mixed` encoding as they are stored, each a tensor.

    Raises:
        ValueError: it is no such tensor.
    """
    storage = tensor.storage
    if not isinstance(storage, InterleavedStorage):
        raise ValueError(f"{tensor.name} is not stored in two halves")
    even, odd = storage.even, storage.odd
    if not isinstance(even, DecodedStorage) or not isinstance(odd, DecodedStorage):
        raise ValueError(f"the halves of {tensor.name} have one encoding")
    divided = len(tensor.shape) - (2 if storage.axis == 0 else 1)
    shape = tuple(size // 2 if index == divided else size for index, size in enumerate(tensor.shape))
    return (
        Tensor(tensor.name, shape, even.encoding, even.stored),
        Tensor(tensor.name, shape, odd.encoding, odd.stored),
    )


def _consecutive(
    names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], placed: PlacedTensor
) -> Iterator[Tensor]:
    """Yield the tensors called `names` that lie one after the other, along the first dimension, in a stored one.

    Raises:
        InputError: it has not the shape that the configuration says.
        UnsupportedError: it is stored in blocks that span two of them.
    """
    info = placed.info
    if len(names) > 1:
        known = [shapes[name] for name in names if name in shapes]
        expected = (sum(shape[0] for shape in known), *(known[0][1:] if known else ()))
        if info.shape != expected:
            raise InputError(
                "tensor does not fit the configuration",
                file=placed.file.path,
                tensor=info.name,
                found=f"shape {list(info.shape)}",
                expected=list(expected),
            )
    offset = info.offset
    for name in names:
        shape = shapes[name] if len(names) > 1 else info.shape
        if not info.encoding.fits(shape[-1]):
            raise UnsupportedError(
                "blocks span several tensors", file=placed.file.path, tensor=info.name, found=info.encoding.name
            )
        part = replace(info, shape=shape, offset=offset)
        yield _tensor(name, replace(placed, info=part))
        offset += part.nbytes


def _tensor(name: str, placed: PlacedTensor) -> Tensor:
    info = placed.info
    rows = StoredArray(placed.file, info.offset, np.dtype("u1"), info.encoding.row_nbytes(info.shape[-1]))
    return Tensor(name, info.shape, info.encoding, RecordStorage(rows, info.encoding, info.order))
