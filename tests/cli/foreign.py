"""GGUF files that gguf-py writes, which is not ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray


def with_encodings(source: Path, target: Path, encodings: Mapping[str, str]) -> Path:
    """Copy a GGUF file, with other encodings (and bytes that mean nothing) for the tensors named in `encodings`."""
    data = {}
    for tensor in gguf.GGUFReader(source).tensors:
        if tensor.name in encodings:
            kind = gguf.GGMLQuantizationType[encodings[tensor.name]]
            shape = [int(size) for size in reversed(tensor.shape)]
            data[tensor.name] = np.zeros(gguf.quant_shape_to_byte_shape(shape, kind), np.uint8), kind
    return with_data(source, target, data)


def with_data(
    source: Path, target: Path, data: Mapping[str, tuple[NDArray[np.uint8], gguf.GGMLQuantizationType]]
) -> Path:
    """Copy a GGUF file, with other bytes and another type for the tensors named in `data`."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "gpt-oss")
    _copy_metadata(reader, writer)
    for tensor in reader.tensors:
        content, kind = data.get(tensor.name, (tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, content, raw_dtype=kind)
    _write(writer)
    return target


def with_metadata_apart(source: Path, folder: Path) -> Path:
    """Copy a GGUF file in two parts, as llama.cpp's `gguf-split --no-tensor-first-split`; return the first."""
    reader = gguf.GGUFReader(source)
    paths = [folder / f"{source.stem}-0000{number}-of-00002.gguf" for number in (1, 2)]
    for index, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "gpt-oss")
        if index == 0:
            _copy_metadata(reader, writer)
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors if index == 1 else ():
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        _write(writer)
    return paths[0]


def _copy_metadata(reader: Any, writer: Any) -> None:
    for field in reader.fields.values():
        if field.name != "general.architecture" and not field.name.startswith("GGUF."):
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1])


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
