"""ggml's records of scale and codes."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptoss_convert.encodings import ENCODINGS, Array, Chunk, Encoding
from gptoss_convert.formats.gguf.blocks import RecordStorage, pack, unpack
from gptoss_convert.formats.gguf.container import CodeOrder
from gptoss_convert.formats.storage import DecodedStorage, InterleavedStorage
from tests.unit.formats.moves import Case, pieces, ranges, stored_in

NAMES = ("f32", "f16", "bf16", "mxfp4", "q8_0")


def chunks(encoding: Encoding) -> st.SearchStrategy[Chunk]:
    """Up to five rows of up to three blocks of any bytes."""
    shapes = st.tuples(st.integers(0, 5), st.integers(1, 3))
    return shapes.flatmap(
        lambda shape: st.tuples(*(_parts(encoding, index, *shape) for index in _indices(encoding)))
    )


def _indices(encoding: Encoding) -> range:
    return range(len(encoding.parts))


def _parts(encoding: Encoding, index: int, rows: int, blocks: int) -> st.SearchStrategy[Array]:
    part = encoding.parts[index]
    shape = (rows, blocks * part.bytes_per_block)
    return hnp.arrays(np.uint8, shape).map(lambda data: data.view(part.dtype))


def as_bytes(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def raw_rows(packed: Array) -> Array:
    """Packed rows as they are read back: bytes `[rows, bytes per row]`."""
    return packed.view(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_unpack_is_the_inverse_of_pack(name: str, data: st.DataObject) -> None:
    encoding = ENCODINGS[name]
    chunk = data.draw(chunks(encoding))
    unpacked = unpack(encoding, raw_rows(pack(encoding, chunk)))
    assert [as_bytes(part) for part in unpacked] == [as_bytes(part) for part in chunk]
    assert [part.dtype for part in unpacked] == [part.dtype for part in chunk]
    assert [part.shape for part in unpacked] == [part.shape for part in chunk]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_pack_is_the_inverse_of_unpack(name: str, data: st.DataObject) -> None:
    encoding = ENCODINGS[name]
    rows = data.draw(hnp.arrays(np.uint8, (3, 2 * encoding.bytes_per_block)))
    assert as_bytes(pack(encoding, unpack(encoding, rows))) == rows.tobytes()


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), start=st.integers(0, 1))
def test_every_second_row_is_packed_like_a_copy_of_it(name: str, data: st.DataObject, start: int) -> None:
    encoding = ENCODINGS[name]
    chunk = data.draw(chunks(encoding))
    strided = tuple(part[start::2] for part in chunk)
    copied = tuple(part.copy() for part in strided)
    packed = pack(encoding, strided)
    assert as_bytes(packed) == as_bytes(pack(encoding, copied))
    assert packed.flags.c_contiguous


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_packing_leaves_its_input_alone(name: str, data: st.DataObject) -> None:
    chunk = data.draw(chunks(ENCODINGS[name]))
    before = [as_bytes(part) for part in chunk]
    pack(ENCODINGS[name], chunk)
    assert [as_bytes(part) for part in chunk] == before


@pytest.mark.parametrize("name", NAMES)
def test_packed_size_is_that_of_the_encoding(name: str) -> None:
    encoding = ENCODINGS[name]
    chunk = encoding.encode(np.ones((3, 64), np.float32))
    assert pack(encoding, chunk).nbytes == encoding.nbytes((3, 64))


def test_mxfp4_record_has_the_scale_first_and_elements_j_and_j_plus_16_in_byte_j() -> None:
    elements = np.arange(32, dtype=np.uint8) % 16
    elements[16:] = 15 - elements[16:]
    codes = elements[0::2] | elements[1::2] << 4
    packed = pack(ENCODINGS["mxfp4"], (codes[None], np.array([[99]], np.uint8)))
    record = np.frombuffer(packed.tobytes(), np.uint8)
    assert record[0] == 99
    assert (record[1:] & 15).tolist() == elements[:16].tolist()
    assert (record[1:] >> 4).tolist() == elements[16:].tolist()


@given(codes=hnp.arrays(np.uint8, (3, 32)), scales=hnp.arrays(np.uint8, (3, 2)))
def test_record_in_the_order_of_the_checkpoint_is_the_scale_and_its_codes(codes: Array, scales: Array) -> None:
    packed = raw_rows(pack(ENCODINGS["mxfp4"], (codes, scales), CodeOrder.CHECKPOINT))
    rows = packed.reshape(3, 2, 17)
    np.testing.assert_array_equal(rows[..., 0], scales)
    np.testing.assert_array_equal(rows[..., 1:].reshape(3, 32), codes)
    found_codes, found_scales = unpack(ENCODINGS["mxfp4"], packed.reshape(3, 34), CodeOrder.CHECKPOINT)
    np.testing.assert_array_equal(found_codes, codes)
    np.testing.assert_array_equal(found_scales, scales)


@pytest.mark.parametrize("rows", [1, 7, 400])
@pytest.mark.parametrize("name", ["mxfp4", "q8_0"])
def test_gguf_py_reads_the_same_numbers(name: str, rows: int) -> None:
    rng = np.random.default_rng(4)
    encoding = ENCODINGS[name]
    chunk = encoding.encode(rng.standard_normal((rows, 2880), np.float32))
    kind = gguf.GGMLQuantizationType[name.upper()]
    values = gguf.quants.dequantize(raw_rows(pack(encoding, chunk)), kind)
    np.testing.assert_array_equal(values, encoding.decode(chunk))


@given(codes=hnp.arrays(np.uint8, (2, 48)), scales=hnp.arrays(np.uint8, (2, 3), elements=st.integers(0, 252)))
def test_gguf_py_reads_the_same_numbers_from_any_mxfp4(codes: Array, scales: Array) -> None:
    packed = pack(ENCODINGS["mxfp4"], (codes, scales))
    values = gguf.quants.dequantize(raw_rows(packed), gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(values, ENCODINGS["mxfp4"].decode((codes, scales)))


# --- in files


def records(folder: Path, name: str) -> Case:
    encoding = ENCODINGS[name]
    contents: dict[Path, bytes] = {}
    chunk = encoding.encode(np.random.default_rng(5).standard_normal((6, 64), np.float32))
    stored = stored_in(folder / "file", raw_rows(pack(encoding, chunk)), contents)
    return Case(RecordStorage(stored, encoding), chunk, contents)


def records_in_checkpoint_order(folder: Path, name: str) -> Case:
    encoding = ENCODINGS[name]
    contents: dict[Path, bytes] = {}
    chunk = encoding.encode(np.random.default_rng(5).standard_normal((6, 64), np.float32))
    stored = stored_in(folder / "file", raw_rows(pack(encoding, chunk, CodeOrder.CHECKPOINT)), contents)
    return Case(RecordStorage(stored, encoding, CodeOrder.CHECKPOINT), chunk, contents)


def decoded_records(folder: Path, name: str) -> Case:
    """Stored in an encoding, moved as float32."""
    case = records(folder, name)
    encoding = ENCODINGS[name]
    return Case(DecodedStorage(case.storage, encoding), (encoding.decode(case.chunk),), case.contents)


def interleaved_records(folder: Path, name: str) -> Case:
    """Even and odd rows, as of gate and up."""
    encoding = ENCODINGS[name]
    contents: dict[Path, bytes] = {}
    chunk = encoding.encode(np.random.default_rng(6).standard_normal((8, 64), np.float32))
    halves = []
    for first in (0, 1):
        rows = raw_rows(pack(encoding, tuple(part[first::2] for part in chunk)))
        halves.append(RecordStorage(stored_in(folder / f"half{first}", rows, contents), encoding))
    return Case(InterleavedStorage(*halves, axis=0), chunk, contents)


LAYOUTS = [(layout, name) for layout in (records, interleaved_records, decoded_records) for name in NAMES]


@pytest.fixture(params=[*LAYOUTS, (records_in_checkpoint_order, "mxfp4")])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    layout, name = request.param
    made: Case = layout(tmp_path, name)
    return made


@given(data=st.data())
def test_rows_are_read_and_written_in_any_ranges_and_order(case: Case, data: st.DataObject) -> None:
    case.assert_reads(*data.draw(ranges(case.rows)))
    case.assert_writes(data.draw(pieces(case.rows)))


def test_storage_is_a_value_that_can_be_sent_to_another_process(case: Case) -> None:
    case.assert_is_a_value()
    assert case.storage.files == tuple(case.contents)


def test_storage_moves_rows_one_by_one(tmp_path: Path) -> None:
    assert records(tmp_path, "mxfp4").storage.row_group == 1
