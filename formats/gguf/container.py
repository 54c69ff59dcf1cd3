"""The GGUF container, version 3, little endian: header, metadata, tensor directory.

Source: ggml's docs/gguf.md and `gguf_init_from_file_impl` (ggml/src/gguf.cpp). Everything in a header is checked
against the size of the file before anything is allocated for it.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from gptoss_convert.encodings import ENCODINGS, Array, Encoding
from gptoss_convert.encodings.ggml import ggml_encoding
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.kernels import NATIVE

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
LARGEST_COUNT = 65_536
LARGEST_STRING = 16 << 20
LARGEST_RANK = 4
LARGEST_NAME = 63
"""Bytes in a tensor name (GGML_MAX_NAME without its terminator)."""
LARGEST_HEADER = 64 << 20
"""Bytes; the vocabulary of gpt-oss takes 13 million."""
WINDOW = 1 << 20

TYPE_NUMBERS = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30, "mxfp4": 39}
"""ggml type number (`ggml_type` in ggml.h) by encoding name, of the encodings that can be written."""
CHECKPOINT_MXFP4 = 4
"""The number under which Ollama stored MXFP4 in its first files; ggml gave the number up before GGUF existed."""
_ENCODING_NAMES = {number: name for name, number in TYPE_NUMBERS.items()} | {CHECKPOINT_MXFP4: "mxfp4"}


class ValueType(enum.IntEnum):
    """Type of a metadata value (`gguf_type` in gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_NUMBER_DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("?"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True)
class StringArray:
    """An array of strings as it lies in the file: for each a length (uint64) and its bytes."""

    count: int
    data: bytes

    @classmethod
    def of(cls, strings: Sequence[str]) -> StringArray:
        """Return `strings` in stored form."""
        if NATIVE is not None:
            ended = "\0".join([*strings, ""]).encode("utf-8")
            if ended.count(0) == len(strings):  # none of them has a zero byte of its own
                return cls(len(strings), NATIVE.prefix_lengths(ended))
        encoded = [text.encode("utf-8") for text in strings]
        prefixes = {length: struct.pack("<Q", length) for length in set(map(len, encoded))}
        pairs = zip(map(prefixes.__getitem__, map(len, encoded)), encoded, strict=True)
        return cls(len(encoded), b"".join(chain.from_iterable(pairs)))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        """Yield the strings; bytes that are not UTF-8 become replacement characters."""
        position = 0
        for _ in range(self.count):
            (length,) = struct.unpack_from("<Q", self.data, position)
            start = position + 8
            position = start + length
            yield self.data[start:position].decode("utf-8", "replace")


@dataclass(frozen=True)
class Value:
    """A typed metadata value: a number, a bool, a str, a one-dimensional numpy array, or a `StringArray`."""

    type: ValueType
    """For an array the type of its items."""
    value: Any

    @property
    def is_array(self) -> bool:
        """Whether this is an array of `type`."""
        return isinstance(self.value, np.ndarray | StringArray)

    def serialise(self) -> bytes:
        """Return type and value as they are stored."""
        if isinstance(self.value, StringArray):
            head = struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(self.value))
            return head + self.value.data
        if isinstance(self.value, np.ndarray):
            items = self.value.astype(_NUMBER_DTYPES[self.type])
            return struct.pack("<IIQ", ValueType.ARRAY, self.type, items.size) + items.tobytes()
        if self.type is ValueType.STRING:
            return struct.pack("<I", self.type) + _serialise_string(self.value)
        return struct.pack("<I", self.type) + np.array(self.value, _NUMBER_DTYPES[self.type]).tobytes()


def uint32(value: int) -> Value:
    """Return `value` as a uint32."""
    return Value(ValueType.UINT32, value)


def float32(value: float) -> Value:
    """Return `value` as a float32."""
    return Value(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    """Return `value` as a bool."""
    return Value(ValueType.BOOL, value)


def string(value: str) -> Value:
    """Return `value` as a string."""
    return Value(ValueType.STRING, value)


def strings(values: Sequence[str]) -> Value:
    """Return `values` as an array of strings."""
    return Value(ValueType.STRING, StringArray.of(values))


class CodeOrder(enum.Enum):
    """Which element of an MXFP4 block a nibble of its record stands for."""

    GGML = "ggml"
    """Byte j holds elements j and j + 16."""
    CHECKPOINT = "checkpoint"
    """Byte j holds elements 2j and 2j + 1, as in OpenAI's checkpoints: Ollama's first files."""


@dataclass(frozen=True)
class TensorInfo:
    """An entry of the tensor directory; `shape` is row-major, the reverse of ggml's `ne`."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding
    offset: int
    """In bytes from the start of the data section when writing; from the start of the file once read."""
    order: CodeOrder = CodeOrder.GGML
    """Of the codes of MXFP4; meaningless for other encodings."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.encoding.nbytes(self.shape)


@dataclass(frozen=True)
class Header:
    """A parsed GGUF header."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]


def aligned(position: int, alignment: int = ALIGNMENT) -> int:
    """Return the first multiple of `alignment` that is not below `position`."""
    return -(-position // alignment) * alignment


def serialise_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Return everything up to the data section, padded to the alignment."""
    pieces = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        pieces += (_serialise_string(key), value.serialise())
    for tensor in tensors:
        rank = len(tensor.shape)
        number = type_number(tensor.encoding)
        pieces += (
            _serialise_string(tensor.name),
            struct.pack(f"<I{rank}QIQ", rank, *reversed(tensor.shape), number, tensor.offset),
        )
    header = b"".join(pieces)
    return header.ljust(aligned(len(header)), b"\0")


def _serialise_string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def read_header(file: FileRef) -> Header:
    """Parse and check the header of a GGUF file.

    Raises:
        InputError: the file is damaged or breaks a rule of the format.
        UnsupportedError: it is big endian or of another version.
    """
    cursor = _Cursor(file)
    if cursor.take(4) != MAGIC:
        raise InputError("not a GGUF file", file=file.path, expected="the bytes 'GGUF' at its start")
    (version,) = struct.unpack("<I", cursor.take(4))
    if version != VERSION:
        what = "big-endian GGUF" if version == VERSION << 24 else "unsupported GGUF version"
        raise UnsupportedError(
            what, file=file.path, found=f"version {version:#x}", expected="version 3, little endian"
        )
    tensor_count, key_count = cursor.count("number of tensors"), cursor.count("number of metadata keys")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = cursor.string("metadata key")
        if key in metadata:
            raise InputError("metadata key occurs twice", file=file.path, found=key)
        metadata[key] = cursor.value(key)
    entries = [_read_tensor_info(cursor) for _ in range(tensor_count)]
    alignment = _alignment(file, metadata)
    return Header(metadata, _placed(file, entries, aligned(cursor.position, alignment), alignment))


def _alignment(file: FileRef, metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", uint32(ALIGNMENT))
    alignment = value.value
    if value.type is not ValueType.UINT32 or value.is_array or alignment < 8 or alignment & (alignment - 1):
        raise InputError("general.alignment is not a power of two of 8 or more", file=file.path, found=alignment)
    return int(alignment)


def _read_tensor_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.string("tensor name", largest=LARGEST_NAME)
    (rank,) = struct.unpack("<I", cursor.take(4))
    if not 1 <= rank <= LARGEST_RANK:
        raise InputError("tensor has an impossible rank", file=cursor.file.path, tensor=name, found=rank)
    extents = struct.unpack(f"<{rank}Q", cursor.take(8 * rank))
    number, offset = struct.unpack("<IQ", cursor.take(12))
    if 0 in extents or math.prod(extents) >= 1 << 63:
        raise InputError("tensor has an impossible shape", file=cursor.file.path, tensor=name, found=list(extents))
    encoding = encoding_of_type(number)
    if encoding is None:
        raise UnsupportedError("unknown ggml type", file=cursor.file.path, tensor=name, found=number)
    if not encoding.fits(extents[0]):
        raise InputError(
            "row is not a whole number of blocks",
            file=cursor.file.path,
            tensor=name,
            found=f"{extents[0]} elements of {encoding.name}",
            expected=f"a multiple of {encoding.block}",
        )
    order = CodeOrder.CHECKPOINT if number == CHECKPOINT_MXFP4 else CodeOrder.GGML
    return TensorInfo(name, tuple(reversed(extents)), encoding, offset, order)


def encoding_of_type(number: int) -> Encoding | None:
    """Return the encoding of a ggml type number, one that may not be decodable; None for an unknown number."""
    name = _ENCODING_NAMES.get(number)
    return ggml_encoding(number) if name is None else ENCODINGS[name]


def type_number(encoding: Encoding) -> int:
    """Return the ggml type number of an encoding of ggml, also of one that can only be copied."""
    if encoding.name in TYPE_NUMBERS:
        return TYPE_NUMBERS[encoding.name]
    import gguf

    return int(gguf.GGMLQuantizationType[encoding.name.upper()])


def _placed(file: FileRef, entries: Iterable[TensorInfo], data_start: int, alignment: int) -> dict[str, TensorInfo]:
    """Return the entries by name with absolute offsets; they must be aligned, disjoint and inside the file."""
    placed: dict[str, TensorInfo] = {}
    for entry in entries:
        if entry.name in placed:
            raise InputError("tensor occurs twice", file=file.path, tensor=entry.name)
        start = data_start + entry.offset
        if entry.offset % alignment:
            raise InputError(
                "tensor is not aligned", file=file.path, tensor=entry.name, found=f"offset {entry.offset}"
            )
        if start + entry.nbytes > file.size:
            raise InputError(
                "file is truncated",
                file=file.path,
                tensor=entry.name,
                found=f"{file.size} bytes",
                expected=f"at least {start + entry.nbytes}",
            )
        placed[entry.name] = replace(entry, offset=start)
    end = data_start
    for tensor in sorted(placed.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise InputError("tensor data overlap", file=file.path, tensor=tensor.name)
        end = tensor.offset + tensor.nbytes
    return placed


class _Cursor:
    """Reads a header front to back through a window, never beyond the end of the file."""

    def __init__(self, file: FileRef) -> None:
        self.file = file
        self._end = min(file.size, LARGEST_HEADER)
        self.position = 0
        self._window = b""
        self._window_start = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        self._require(count)
        start = self.position - self._window_start
        if start + count > len(self._window):
            self._window = self.file.read(self.position, min(max(count, WINDOW), self._end - self.position))
            self._window_start, start = self.position, 0
        self.position += count
        return self._window[start : start + count]

    def count(self, what: str) -> int:
        """Return the next uint64, which counts entries of the header."""
        (count,) = struct.unpack("<Q", self.take(8))
        if count > LARGEST_COUNT:
            raise InputError(f"impossible {what}", file=self.file.path, found=count, expected=f"<= {LARGEST_COUNT}")
        return int(count)

    def string(self, what: str, largest: int = LARGEST_STRING) -> str:
        """Return the next string, which must be UTF-8."""
        (length,) = struct.unpack("<Q", self.take(8))
        if length > largest:
            raise InputError(
                f"{what} is too long", file=self.file.path, found=length, expected=f"<= {largest} bytes"
            )
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{what} is not UTF-8", file=self.file.path) from None

    def value(self, key: str) -> Value:
        """Return the next typed value."""
        kind = self._value_type(key)
        if kind is ValueType.STRING:
            return Value(kind, self.string(f"value of {key}"))
        if kind is ValueType.ARRAY:
            return self._array(key)
        return Value(kind, self._numbers(kind, 1)[0].item())

    def _array(self, key: str) -> Value:
        kind = self._value_type(key)
        (count,) = struct.unpack("<Q", self.take(8))
        if kind is ValueType.ARRAY:
            raise UnsupportedError("nested array in metadata", file=self.file.path, found=key)
        if kind is ValueType.STRING:
            return Value(kind, self._strings(count))
        return Value(kind, self._numbers(kind, count))

    def _value_type(self, key: str) -> ValueType:
        (number,) = struct.unpack("<I", self.take(4))
        try:
            return ValueType(number)
        except ValueError:
            raise InputError(f"unknown metadata type {number}", file=self.file.path, found=key) from None

    def _numbers(self, kind: ValueType, count: int) -> Array:
        dtype = _NUMBER_DTYPES[kind]
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _strings(self, count: int) -> StringArray:
        """Step over `count` strings and return them undecoded: a vocabulary has hundreds of thousands."""
        self._require(8 * count)
        first = self.position
        unpack = struct.Struct("<Q").unpack_from
        window, base, position = self._window, self._window_start, self.position
        for _ in range(count):
            if position + 8 > base + len(window):
                self.position = position
                self._require(8)
                window = self.file.read(position, min(WINDOW, self._end - position))
                base = position
            (length,) = unpack(window, position - base)
            position += 8 + length
            if position > self._end:
                self.position = position - length
                self._require(length)
        self.position = position
        return StringArray(count, self.file.read(first, position - first))

    def _require(self, count: int) -> None:
        if count > self._end - self.position:
            needed = self.position + count
            if self._end < self.file.size:
                raise InputError(
                    "GGUF header is too large",
                    file=self.file.path,
                    found=f"{needed} bytes or more",
                    expected=f"at most {LARGEST_HEADER}",
                )
            raise InputError(
                "GGUF header is truncated",
                file=self.file.path,
                found=f"{self.file.size} bytes",
                expected=f"at least {needed}",
            )
