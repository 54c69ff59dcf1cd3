"""The ONNX container: one protobuf message, of which the metadata and the initialisers are read.

Source: onnx.proto of ONNX 1.17 (field numbers), and the encoding of protobuf messages
(protobuf.dev/programming-guides/encoding). Nodes and all else are skipped unseen, so that a file of any contents
costs time in proportion to its size, and memory in proportion to its initialisers; the library is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from gptoss_convert.errors import InputError
from gptoss_convert.formats.onnx.data_types import stored_nbytes
from gptoss_convert.formats.storage import FileRef

LARGEST_MODEL = 256 << 20
"""Bytes of a file without its weights; gpt-oss-120b takes a tenth of it."""
MOST_FIELDS = 1 << 22
LARGEST_RANK = 8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXTERNAL = 1
"""`TensorProto.DataLocation`."""

_MODEL_GRAPH, _MODEL_METADATA = 7, 14
_GRAPH_INITIALISER = 5
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14

_OFFSET = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class DeclaredArray:
    """An initialiser as the graph declares it."""

    name: str
    data_type: int
    """`TensorProto.DataType`."""
    dims: tuple[int, ...]
    external: Mapping[str, str] | None
    """Location, offset and length as they are written; None for one whose numbers lie in the graph."""

    def place(self, model: FileRef) -> Place:
        """Return where the numbers lie.

        Raises:
            InputError: it is not said, or not in numbers.
        """
        if self.external is None:
            raise InputError("initialiser of a weight lies in the graph itself", file=model.path, tensor=self.name)
        for key in ("location", "offset", "length"):
            if key not in self.external:
                raise InputError(f"external data of an initialiser lack {key}", file=model.path, tensor=self.name)
        for key in ("offset", "length"):
            if not _OFFSET.fullmatch(self.external[key]):
                raise InputError(
                    f"{key} of external data is no number",
                    file=model.path,
                    tensor=self.name,
                    found=repr(self.external[key]),
                )
        return Place(self.external["location"], int(self.external["offset"]), int(self.external["length"]))

    @property
    def nbytes(self) -> int:
        """Bytes that type and dimensions ask for; `data_type` must be one that weights have."""
        return stored_nbytes(self.data_type, self.dims)


@dataclass(frozen=True)
class Place:
    """Where numbers lie: the name of a file, and a range of its bytes."""

    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class OnnxModel:
    """What is read of a model."""

    metadata: Mapping[str, str]
    initialisers: Mapping[str, DeclaredArray]
    """Those of the outermost graph, by name."""


def read_model(file: FileRef) -> OnnxModel:
    """Read the metadata and initialisers of an ONNX file.

    Raises:
        InputError: the file is too large, or breaks a rule of the format.
    """
    if file.size > LARGEST_MODEL:
        raise InputError(
            "ONNX file is too large",
            file=file.path,
            found=f"{file.size} bytes",
            expected=f"at most {LARGEST_MODEL}",
        )
    return _Parser(file).model()


class _Parser:
    """Reads one file; counts fields, so that hostile files end early."""

    def __init__(self, file: FileRef) -> None:
        self._file = file
        self._fields_left = MOST_FIELDS

    def model(self) -> OnnxModel:
        metadata: dict[str, str] = {}
        graph: memoryview | None = None
        for number, value in self._fields(memoryview(self._file.read(0, self._file.size))):
            if number == _MODEL_GRAPH:
                if graph is not None:
                    self._refuse("a second graph")
                graph = self._bytes(value)
            elif number == _MODEL_METADATA:
                self._add_entry(metadata, value)
        if graph is None:
            self._refuse("no graph")
        return OnnxModel(metadata, self._initialisers(graph))

    def _initialisers(self, graph: memoryview) -> dict[str, DeclaredArray]:
        found: dict[str, DeclaredArray] = {}
        for number, value in self._fields(graph):
            if number == _GRAPH_INITIALISER:
                array = self._array(self._bytes(value))
                if array.name in found:
                    raise InputError("initialiser occurs twice", file=self._file.path, tensor=array.name)
                found[array.name] = array
        return found

    def _array(self, message: memoryview) -> DeclaredArray:
        once: dict[int, int | memoryview] = {}
        dims: list[int] = []
        external: dict[str, str] = {}
        for number, value in self._fields(message):
            if number == _DIMS:
                dims += [value] if isinstance(value, int) else self._packed(value)
            elif number == _EXTERNAL_DATA:
                self._add_entry(external, value)
            elif number in (_DATA_TYPE, _NAME, _DATA_LOCATION):
                if number in once:
                    self._refuse("a field of an initialiser twice")
                once[number] = value
        name = self._text(once.get(_NAME, memoryview(b"")))
        if len(dims) > LARGEST_RANK or any(not 1 <= size < 1 << 48 for size in dims):
            raise InputError(
                "dimensions of an initialiser are out of range", file=self._file.path, tensor=name, found=dims[:16]
            )
        is_external = self._int(once.get(_DATA_LOCATION, 0)) == _EXTERNAL
        return DeclaredArray(
            name, self._int(once.get(_DATA_TYPE, 0)), tuple(dims), external if is_external else None
        )

    def _add_entry(self, entries: dict[str, str], value: int | memoryview) -> None:
        entry = {number: self._text(item) for number, item in self._fields(self._bytes(value)) if number in (1, 2)}
        key = entry.get(_ENTRY_KEY, "")
        if key in entries:
            self._refuse(f"{key!r} twice")
        entries[key] = entry.get(_ENTRY_VALUE, "")

    def _fields(self, message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield number and value of each field: an integer, or the bytes of a text or message."""
        position = 0
        while position < len(message):
            self._fields_left -= 1
            if self._fields_left < 0:
                self._refuse(f"more than {MOST_FIELDS} fields")
            tag, position = self._varint(message, position)
            number, kind = tag >> 3, tag & 7
            if kind == _VARINT:
                value, position = self._varint(message, position)
                yield number, value
                continue
            if kind == _BYTES:
                count, position = self._varint(message, position)
            elif kind in (_FIXED32, _FIXED64):
                count = 4 if kind == _FIXED32 else 8
            else:
                self._refuse(f"wire type {kind}")
            if number == 0 or count > len(message) - position:
                self._refuse("a field that ends behind its message")
            yield number, message[position : position + count]
            position += count

    def _varint(self, message: memoryview, position: int) -> tuple[int, int]:
        """Return the number that begins at `position`, and where it ends."""
        number = 0
        for index, byte in enumerate(message[position : position + 10]):
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return number, position + index + 1
        return self._refuse("a number without end")

    def _packed(self, data: memoryview) -> list[int]:
        numbers: list[int] = []
        position = 0
        while position < len(data) and len(numbers) <= LARGEST_RANK:
            number, position = self._varint(data, position)
            numbers.append(number)
        return numbers

    def _bytes(self, value: int | memoryview) -> memoryview:
        return self._refuse("a number in place of bytes") if isinstance(value, int) else value

    def _int(self, value: int | memoryview) -> int:
        return value if isinstance(value, int) else self._refuse("bytes in place of a number")

    def _text(self, value: int | memoryview) -> str:
        try:
            return bytes(self._bytes(value)).decode("utf-8")
        except UnicodeDecodeError:
            return self._refuse("a text that is not UTF-8")

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            "damaged ONNX file", file=self._file.path, found=what, hint="write or download the file again"
        )
