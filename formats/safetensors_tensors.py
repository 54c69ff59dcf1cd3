"""Canonical tensors made from tensors of safetensors files."""

from __future__ import annotations

import numpy as np

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.errors import InputError
from gptoss_convert.formats.safetensors import StoredTensor
from gptoss_convert.formats.storage import PartsStorage, StoredArray, TransposedStorage

_PLAIN_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_MXFP4 = ENCODINGS["mxfp4"]


def narrowed(stored: StoredTensor, first: int, count: int) -> StoredTensor:
    """Return `count` entries of the first dimension of `stored`, from `first` on."""
    nbytes_each = stored.nbytes // stored.shape[0]
    return StoredTensor(
        stored.name,
        stored.dtype,
        (count, *stored.shape[1:]),
        stored.file,
        stored.offset + first * nbytes_each,
        count * nbytes_each,
    )


def plain_tensor(name: str, stored: StoredTensor) -> Tensor:
    """Return a float tensor stored in the canonical orientation."""
    if not stored.shape or 0 in stored.shape:
        raise InputError("tensor is empty", file=stored.file.path, tensor=name, found=f"shape {list(stored.shape)}")
    encoding = _float_encoding(stored)
    array = StoredArray(stored.file, stored.offset, encoding.parts[0].dtype, stored.shape[-1])
    return Tensor(name, stored.shape, encoding, PartsStorage((array,)))


def _float_encoding(stored: StoredTensor) -> Encoding:
    name = _PLAIN_DTYPES.get(stored.dtype)
    if name is None:
        raise InputError(
            "tensor has an unexpected dtype",
            file=stored.file.path,
            tensor=stored.name,
            found=stored.dtype,
            expected="BF16, F16 or F32",
        )
    return ENCODINGS[name]


def transposed_experts(name: str, stored: StoredTensor) -> Tensor:
    """Return experts stored as `[experts, in, out]` floats."""
    encoding = _float_encoding(stored)
    if len(stored.shape) != 3 or 0 in stored.shape:
        raise InputError(
            "experts are not [experts, in, out]", file=stored.file.path, tensor=name, found=list(stored.shape)
        )
    experts, columns, rows = stored.shape
    array = StoredArray(stored.file, stored.offset, encoding.parts[0].dtype, rows)
    return Tensor(name, (experts, rows, columns), encoding, TransposedStorage(array, columns))


def mxfp4_tensor(name: str, blocks: StoredTensor, scales: StoredTensor | None) -> Tensor:
    """Return the MXFP4 tensor whose parts are `blocks` `[..., in / 32, 16]` and `scales` `[..., in / 32]`.

    Raises:
        InputError: a part is missing, or the two do not fit each other.
    """
    if scales is None:
        raise InputError("blocks without scales", file=blocks.file.path, tensor=blocks.name)
    for part in (blocks, scales):
        if part.dtype != "U8":
            raise InputError(
                "MXFP4 part is not bytes",
                file=part.file.path,
                tensor=part.name,
                found=part.dtype,
                expected="U8",
            )
    if len(blocks.shape) != 4 or blocks.shape[-1] != 16 or 0 in blocks.shape:
        raise InputError(
            "MXFP4 blocks have the wrong shape",
            file=blocks.file.path,
            tensor=blocks.name,
            found=list(blocks.shape),
            expected="[experts, out, in / 32, 16]",
        )
    if scales.shape != blocks.shape[:-1]:
        raise InputError(
            "MXFP4 scales do not fit the blocks",
            file=scales.file.path,
            tensor=scales.name,
            found=list(scales.shape),
            expected=list(blocks.shape[:-1]),
        )
    experts, rows, per_row, _ = blocks.shape
    byte = np.dtype("u1")
    source = PartsStorage(
        (
            StoredArray(blocks.file, blocks.offset, byte, per_row * 16),
            StoredArray(scales.file, scales.offset, byte, per_row),
        )
    )
    return Tensor(name, (experts, rows, per_row * _MXFP4.block), _MXFP4, source)
