"""Makes the golden files beside it with programs other than this project; see README.md."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from gguf import GGMLQuantizationType
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

FOLDER = Path(__file__).parent


def main() -> None:
    make_mxfp4_of_transformers()
    make_mxfp4_of_compressed_tensors()
    for name in ("mxfp4", "q8_0", "bf16", "f16"):
        make_blocks_of_gguf_py(name)
    make_container_of_gguf_py()
    for size in ("20b", "120b"):
        make_config_of_transformers(size)


def make_mxfp4_of_transformers() -> None:
    """Every code at every scale that BF16 holds exactly: 4 experts of 64 rows, one block to a row."""
    scales = np.minimum(np.arange(256), 252).astype(np.uint8).reshape(4, 64, 1)
    blocks = np.random.default_rng(0).integers(0, 256, (4, 64, 1, 16), np.uint8)
    blocks[..., :8] = np.arange(0x10, 0x100, 0x22, dtype=np.uint8)
    values = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    bits = values.contiguous().view(torch.int16).numpy().view(np.uint16)
    np.savez(FOLDER / "transformers-mxfp4.npz", blocks=blocks, scales=scales, bf16=bits)


def make_mxfp4_of_compressed_tensors() -> None:
    """A quantised Linear of 64 outputs and 96 inputs, whose rows differ in size, and the numbers that it means."""
    sizes = torch.exp2(torch.arange(64)[:, None] % 24 - 12)
    weight = (torch.randn(64, 96, generator=torch.Generator().manual_seed(2)) * sizes).bfloat16()
    scheme = preset_name_to_scheme("MXFP4A16", ["Linear"])
    blocks = weight.reshape(64, 3, 32)
    scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights)
    packed = MXFP4PackedCompressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    values = MXFP4PackedCompressor.decompress(dict(packed), scheme)["weight"]
    np.savez(
        FOLDER / "compressed-tensors-mxfp4.npz",
        weight_packed=packed["weight_packed"].numpy(),
        weight_scale=packed["weight_scale"].numpy(),
        values=values.float().numpy(),
    )


def make_blocks_of_gguf_py(name: str) -> None:
    """Numbers of very different sizes, their bytes, and the numbers that these bytes mean."""
    kind = GGMLQuantizationType[name.upper()]
    rng = np.random.default_rng(1)
    sizes = np.exp2(rng.integers(-12, 6, (16, 1)))
    values = (rng.standard_normal((16, 128)) * sizes).astype(np.float32)
    values[0] = 0
    data = gguf.quants.quantize(values, kind)
    np.savez(
        FOLDER / f"gguf-py-{name}.npz",
        values=values,
        data=data.view(np.uint8),
        decoded=gguf.quants.dequantize(data, kind),
    )


def make_container_of_gguf_py() -> None:
    """A file with a key of every type and a tensor of every encoding."""
    writer = gguf.GGUFWriter(FOLDER / "gguf-py.gguf", "gpt-oss")
    types = gguf.GGUFValueType
    for kind, value in (
        (types.UINT8, 255), (types.INT8, -128), (types.UINT16, 65535), (types.INT16, -32768),
        (types.UINT32, 4294967295), (types.INT32, -2147483648), (types.UINT64, 18446744073709551615),
        (types.INT64, -9223372036854775808), (types.FLOAT32, 0.1), (types.FLOAT64, 0.1), (types.BOOL, True),
        (types.STRING, "Grüße, 世界 🌍"),
    ):  # fmt: skip
        writer.add_key_value(f"scalar.{kind.name.lower()}", value, kind)
    writer.add_array("array.string", ["", "a", "Ġdie", "🌍"])
    writer.add_array("array.int32", [1, -2, 3])
    writer.add_array("array.float32", [0.5, -1.5])
    writer.add_array("array.bool", [True, False, True])
    values = np.linspace(-4, 4, 3 * 2 * 64, dtype=np.float32).reshape(3, 2, 64)
    for name in ("f32", "f16", "bf16", "q8_0", "mxfp4"):
        kind = GGMLQuantizationType[name.upper()]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_config_of_transformers(size: str) -> None:
    """The published configuration as transformers 5 saves it."""
    published = json.loads((FOLDER.parent / f"gpt-oss/{size}/config.json").read_text(encoding="utf-8"))
    GptOssConfig(**published).to_json_file(FOLDER / f"transformers-config-{size}.json")


if __name__ == "__main__":
    main()
