"""What every conversion demands of its source."""

from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.plan import Transfer
from gptoss_convert.converters.sources import ALLOW_LOSSY_SOURCE, require_faithful
from gptoss_convert.encodings import ENCODINGS, Encoding
from gptoss_convert.encodings.ggml import GgmlQuantised
from gptoss_convert.encodings.mixed import Mixed
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.formats.gguf.blocks import RecordStorage
from gptoss_convert.formats.storage import FileRef, StoredArray

Q4_K = GgmlQuantised("q4_k", 256, 144)
FAITHFUL = ("f32", "f16", "bf16", "mxfp4")
ROUNDED = (ENCODINGS["q8_0"], Q4_K, Mixed(ENCODINGS["mxfp4"], Q4_K))


def transfer(source: Encoding, target: Encoding, name: str = "lm_head.weight") -> Transfer:
    """A tensor of one row that is read from `source.gguf`."""

    def tensor(encoding: Encoding, file: str) -> Tensor:
        stored = StoredArray(FileRef(Path(file), 0), 0, encoding.parts[0].dtype, encoding.row_nbytes(256))
        return Tensor(name, (1, 256), encoding, RecordStorage(stored, encoding))

    return Transfer(tensor(source, "/source.gguf"), tensor(target, "/target"))


@pytest.mark.parametrize("target", ENCODINGS)
@pytest.mark.parametrize("source", FAITHFUL)
def test_encodings_of_the_published_models_may_become_anything(source: str, target: str) -> None:
    require_faithful([transfer(ENCODINGS[source], ENCODINGS[target])], allow_lossy=False)


@pytest.mark.parametrize("source", ROUNDED, ids=str)
def test_rounded_numbers_may_be_copied(source: Encoding) -> None:
    require_faithful([transfer(source, source)], allow_lossy=False)


@pytest.mark.parametrize("target", FAITHFUL)
@pytest.mark.parametrize("source", ROUNDED, ids=str)
def test_rounded_numbers_are_not_decoded_without_permission(source: Encoding, target: str) -> None:
    pair = transfer(source, ENCODINGS[target])
    with pytest.raises(UnsupportedError) as caught:
        require_faithful([pair], allow_lossy=False)
    assert caught.value.exit_code == 4
    assert (caught.value.file, caught.value.tensor) == ("/source.gguf", "lm_head.weight")
    assert caught.value.found == source.name
    assert target in caught.value.what
    assert ALLOW_LOSSY_SOURCE in str(caught.value)
    require_faithful([pair], allow_lossy=True)


def test_first_rounded_tensor_is_named() -> None:
    names = ("a", "b", "c")
    kinds = (ENCODINGS["bf16"], Q4_K, ENCODINGS["q8_0"])
    pairs = [transfer(kind, ENCODINGS["f32"], name) for name, kind in zip(names, kinds, strict=True)]
    with pytest.raises(UnsupportedError, match=r"tensor b.*q4_k"):
        require_faithful(iter(pairs), allow_lossy=False)
