"""Experts that a graph decodes to float16: what it rounds is counted, what it cannot hold is refused."""

import numpy as np
import pytest

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.half_experts import HalfExpertsRecoding
from gptoss_convert.converters.recoding import PLAIN, Recoded, Recoding, SignlessRecoding
from gptoss_convert.encodings import ENCODINGS, Chunk
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.onnx.graph.expert_matrices import number_pairs
from gptoss_convert.formats.onnx.graph.precision import PRECISIONS
from tests.support.memory import InMemory

NAME = "model.layers.3.mlp.experts.down_proj"
ALL_CODES = np.arange(0, 256, 17, dtype=np.uint8)[None]
"""[1, 16]: two of every code."""


def recode(chunk: Chunk, source: str = "mxfp4", target: str = "mxfp4", inner: Recoding = PLAIN) -> Recoded:
    rows, columns = len(chunk[0]), ENCODINGS[source].block * chunk[-1].shape[1]
    made = [
        Tensor(NAME, (rows, columns), ENCODINGS[name], InMemory(chunk if name == source else ()))
        for name in (source, target)
    ]
    return HalfExpertsRecoding(inner, "use --activations f32").recode(made[0], made[1], 0, chunk)


def blocks(scale: int) -> Chunk:
    """Three rows of two blocks, of which one has `scale`."""
    scales = np.full((3, 2), 120, np.uint8)
    scales[1, 1] = scale
    return np.tile(ALL_CODES, (3, 2)), scales


def rounded_by_the_table(chunk: Chunk) -> int:
    """Numbers that the table of the graph has not."""
    pairs = number_pairs(PRECISIONS["f16"])[chunk[1].repeat(16, axis=1).astype(int) << 8 | chunk[0]]
    return int(np.count_nonzero(pairs.reshape(len(chunk[0]), -1) != ENCODINGS["mxfp4"].decode(chunk)))


@pytest.mark.parametrize("scale", range(0, 141))
def test_numbers_that_the_graph_rounds_are_counted(scale: int) -> None:
    chunk = blocks(scale)
    recoded = recode(chunk)
    assert recoded.chunk is chunk
    assert recoded.findings.rounded_in_graph == rounded_by_the_table(chunk)
    assert (recoded.findings.rounded_in_graph > 0) == (scale < 104)


@pytest.mark.parametrize("scale", [0, 1, 90, 103, 104, 136, 140])
def test_integers_of_the_same_numbers_are_counted_as_well(scale: int) -> None:
    chunk = blocks(scale)
    recoded = recode(chunk, target="int8-block", inner=SignlessRecoding())
    nonzero = np.count_nonzero(ENCODINGS["mxfp4"].decode(chunk)[1, 32:])
    assert recoded.findings.rounded_in_graph == (nonzero if scale < 104 else 0)
    assert recoded.findings.signs_of_zero == 12


@pytest.mark.parametrize(
    ("target", "inner", "found"),
    [("mxfp4", PLAIN, "found 98304 in a block of scale 141, expected scale bytes up to 140"),
     ("int8-block", SignlessRecoding(), "found 98304 in a block of scale 8192, expected numbers up to 65504")],
)  # fmt: skip
def test_number_beyond_float16_is_refused(target: str, inner: Recoding, found: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        recode(blocks(141), target=target, inner=inner)
    message = str(raised.value)
    for words in (NAME, "beyond the range of f16", found, "use --activations f32"):
        assert words in message
    assert "\n" not in message


def test_zeros_of_any_scale_are_zeros_by_table_and_nan_by_product() -> None:
    chunk = np.zeros((1, 16), np.uint8), np.full((1, 1), 200, np.uint8)
    assert recode(chunk).findings.rounded_in_graph == 0
    with pytest.raises(UnsupportedError, match="found 0 in a block of scale"):
        recode(chunk, target="int8-block", inner=SignlessRecoding())


def test_scales_that_are_no_powers_are_looked_at_where_they_are_large() -> None:
    numbers = np.zeros((1, 64), np.float32)
    numbers[0, 0], numbers[0, 32] = 60000, 1e-9
    chunk = ENCODINGS["int8-block"].encode(numbers)
    assert recode(chunk, "int8-block", "int8-block").findings.rounded_in_graph == 1
    numbers[0, 0] = 70000
    with pytest.raises(UnsupportedError, match="found 7"):
        recode(ENCODINGS["int8-block"].encode(numbers), "int8-block", "int8-block")
