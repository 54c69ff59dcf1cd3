"""Canonical tensors made from tensors of safetensors files."""

from __future__ import annotations

import numpy as np

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.errors import InputError
from gptoss_convert.formats.safetensors import StoredTensor
from gptoss_convert.formats.storage import PartsStorage, StoredArray, TransposedStorage

FLOAT_DTYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_MXFP4 = ENCODINGS["mxfp4"]
_BLOCK_BYTES = 16
PACKED_DTYPES = {"U8": 16, "U32": 4}
"""Items of a packed block by dtype."""
_SCALE_DTYPES = ("U8", "F8_E8M0")


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
    name = FLOAT_DTYPES.get(stored.dtype)
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
    return _mxfp4(name, blocks, scales)


def packed_mxfp4_tensor(name: str, codes: StoredTensor, scales: StoredTensor | None) -> Tensor:
    """Return the MXFP4 tensor whose codes are not cut into blocks.

    `codes` are U8 `[..., in / 2]` or U32 `[..., in / 8]` (four bytes each, the first one lowest), `scales` U8 or
    F8_E8M0 `[..., in / 32]`. The bytes are those of `mxfp4_tensor`.

    Raises:
        InputError: a part is missing, or the two do not fit each other.
    """
    if scales is None:
        raise InputError("weight without scales", file=codes.file.path, tensor=codes.name)
    if codes.dtype not in PACKED_DTYPES:
        raise InputError(
            "weight with scales is not packed codes",
            file=codes.file.path,
            tensor=codes.name,
            found=codes.dtype,
            expected=" or ".join(PACKED_DTYPES),
        )
    if scales.dtype not in _SCALE_DTYPES:
        raise InputError(
            "scales are not bytes",
            file=scales.file.path,
            tensor=scales.name,
            found=scales.dtype,
            expected=" or ".join(_SCALE_DTYPES),
        )
    if len(codes.shape) < 2 or 0 in codes.shape or codes.shape[-1] % PACKED_DTYPES[codes.dtype]:
        raise InputError(
            "packed codes are no rows of whole blocks of 32",
            file=codes.file.path,
            tensor=codes.name,
            found=f"{codes.dtype} {list(codes.shape)}",
        )
    expected = (*codes.shape[:-1], codes.shape[-1] // PACKED_DTYPES[codes.dtype])
    if scales.shape != expected:
        raise InputError(
            "scales do not fit the codes",
            file=scales.file.path,
            tensor=scales.name,
            found=list(scales.shape),
            expected=list(expected),
        )
    return _mxfp4(name, codes, scales)


def _mxfp4(name: str, codes: StoredTensor, scales: StoredTensor) -> Tensor:
    """Return the tensor of codes and scales that fit each other; the last dimension of `scales` is a row."""
    *outer, per_row = scales.shape
    byte = np.dtype("u1")
    storage = PartsStorage(
        (
            StoredArray(codes.file, codes.offset, byte, per_row * _BLOCK_BYTES),
            StoredArray(scales.file, scales.offset, byte, per_row),
        )
    )
    return Tensor(name, (*outer, per_row * _MXFP4.block), _MXFP4, storage)
