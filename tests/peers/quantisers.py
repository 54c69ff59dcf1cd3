"""MXFP4 quantisers of others, called as their own tools call them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from compressed_tensors.quantization.utils.mxfp_utils import generate_mx_scales
from numpy.typing import NDArray
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

from gptoss_convert.encodings import ENCODINGS, Chunk
from gptoss_convert.formats.gguf.blocks import unpack

Bits16 = NDArray[np.uint16]
Peer = Callable[[Bits16], Chunk]
"""Takes bits of bfloat16 `[rows, columns]`; returns codes `[rows, columns / 2]`, scales `[rows, columns / 32]`."""


def tensor_of(bits: Bits16) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.int16)).view(torch.bfloat16)


def float32_of(bits: Bits16) -> NDArray[np.float32]:
    return ENCODINGS["bf16"].decode((bits,))


def torchao(mode: ScaleCalculationMode) -> Peer:
    """torchao's `MXTensor` of four-bit floats, with one of its ways to choose the scale."""

    def quantise(bits: Bits16) -> Chunk:
        scales, codes = to_mx(tensor_of(bits), torch.float4_e2m1fn_x2, 32, mode)
        return codes.view(torch.uint8).numpy(), scales.view(torch.uint8).numpy()

    return quantise


def compressed_tensors(bits: Bits16) -> Chunk:
    """The format `mxfp4-pack-quantized` of llm-compressor: scales of observers, then codes of the compressor."""
    blocks = tensor_of(bits).float().reshape(len(bits), -1, 32)
    scales = generate_mx_scales(blocks.abs().amax(dim=-1))
    values = cast_to_fp4(blocks / torch.exp2(scales - 127)[..., None])
    return pack_fp4_to_uint8(values.reshape(bits.shape)).numpy(), scales.to(torch.uint8).numpy()


def gguf_py(bits: Bits16) -> Chunk:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it takes the logarithm of zero for blocks of zeros
        packed = gguf.quants.quantize(float32_of(bits), gguf.GGMLQuantizationType.MXFP4)
    return unpack(ENCODINGS["mxfp4"], packed)


def mlx(bits: Bits16) -> Chunk:
    """MLX on the processor, as `mlx_lm.convert -q --q-mode mxfp4` calls it."""
    with mx.stream(mx.cpu):
        values = mx.array(np.ascontiguousarray(bits)).view(mx.bfloat16)
        found: Any = mx.quantize(values, group_size=32, bits=4, mode="mxfp4")
    return np.array(found[0]).view(np.uint8), np.array(found[1])


PEERS: Mapping[str, Peer] = {
    **{f"torchao {mode.name}": torchao(mode) for mode in ScaleCalculationMode},
    "compressed-tensors": compressed_tensors,
    "gguf-py": gguf_py,
    "MLX": mlx,
}
