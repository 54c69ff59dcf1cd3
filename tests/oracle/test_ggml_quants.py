"""Numbers that llama.cpp quantised: what we decode, what we copy, and what llama.cpp computes from the copy."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.encodings.ggml import GgmlQuantised, ggml_encoding
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf.names import gguf_names
from gptoss_convert.verify.weights import compare_weights
from tests.cli.foreign import with_data
from tests.peers import ggml_quants, llama_cpp_runtime
from tests.support import gguf_files
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf

Kind = gguf.GGMLQuantizationType
FOREIGN = [kind for kind in Kind if isinstance(ggml_encoding(kind.value), GgmlQuantised) and kind.value > 1]
KINDS = [kind for kind in FOREIGN if kind.name not in ("Q8_0", "BF16", "MXFP4")]
SHAPE = Shape(layers=2, hidden=256, intermediate=256, heads=4, kv_heads=2, head_dim=64)
MIXES = {
    # As `llama-quantize` makes Q4_K_M: more bits where they matter most.
    "q4_k_m": {"attn_q": "Q4_K", "attn_k": "Q4_K", "attn_v": "Q6_K", "attn_output": "Q4_K", "output": "Q6_K",
               "token_embd": "Q4_K", "ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K"},
    "gate and up apart": {"attn_q": "Q5_0", "output": "Q8_0", "token_embd": "Q5_K", "ffn_gate_exps": "Q5_1",
                          "ffn_up_exps": "IQ4_XS", "ffn_down_exps": "Q3_K"},
    "gate alone": {"ffn_gate_exps": "Q2_K", "ffn_down_exps": "IQ3_S", "attn_output": "TQ2_0"},
}  # fmt: skip


def encoding_of(kind: Kind) -> GgmlQuantised:
    encoding = ggml_encoding(kind.value)
    assert isinstance(encoding, GgmlQuantised)
    return encoding


@pytest.mark.parametrize("kind", KINDS)
def test_what_llama_cpp_quantised_is_decoded_as_llama_cpp_does(kind: Kind) -> None:
    rng = np.random.default_rng(kind.value)
    values = rng.standard_t(3, (17, 256)).astype(np.float32) * np.exp2(rng.integers(-9, 3, (17, 1))).astype(
        np.float32
    )
    packed = ggml_quants.quantise(values, kind)
    np.testing.assert_array_equal(encoding_of(kind).decode((packed,)), ggml_quants.dequantise(packed, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_block_is_decoded_as_llama_cpp_does(kind: Kind) -> None:
    rng = np.random.default_rng(kind.value)
    packed = rng.integers(0, 256, (4000, encoding_of(kind).bytes_per_block)).astype(np.uint8)
    expected = ggml_quants.dequantise(packed, kind)
    finite = np.isfinite(expected).all(axis=1)
    assert finite.sum() > 2000
    np.testing.assert_array_equal(encoding_of(kind).decode((packed[finite],)), expected[finite])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if encoding_of(kind).bits_per_weight >= 4])
def test_what_llama_cpp_quantised_keeps_what_its_encoding_promises(kind: Kind) -> None:
    """Also of numbers with tails so heavy that a few of them set every scale."""
    values = np.random.default_rng(2).standard_t(2, (64, 512)).astype(np.float32)
    error = encoding_of(kind).decode((ggml_quants.quantise(values, kind),)) - values
    decibels = 10 * np.log10(np.square(values, dtype=float).sum() / np.square(error, dtype=float).sum())
    assert decibels > encoding_of(kind).least_signal_to_noise


# --- whole files


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our GGUF file of a random model, in float32."""
    folder = tmp_path_factory.mktemp("wide")
    checkpoint = make_checkpoint(folder / "model", SHAPE, edge_blocks=False, fill="gauss")
    return to_gguf(checkpoint, folder / "f32.gguf", dense="f32", experts="f32")


@pytest.fixture(scope="module", params=MIXES.values(), ids=MIXES)
def quantised(request: pytest.FixtureRequest, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with matrices that llama.cpp quantised."""
    return requantised(wide, tmp_path_factory.mktemp("quantised") / "model.gguf", request.param)


def requantised(source: Path, target: Path, mix: Mapping[str, str]) -> Path:
    """Quantise matrices by the part of the model that they are."""
    data: dict[str, tuple[NDArray[np.uint8], Kind]] = {}
    for name, values in gguf_files.dequantised(source).items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        if name.endswith(".weight") and part in mix:
            kind = Kind[mix[part]]
            packed = ggml_quants.quantise(values.reshape(-1, values.shape[-1]), kind)
            data[name] = packed.reshape(*values.shape[:-1], -1), kind
    return with_data(source, target, data)


def numbers(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)


def test_every_number_of_the_file_is_decoded_as_llama_cpp_does(quantised: Path) -> None:
    stored = {}
    for tensor in gguf.GGUFReader(quantised).tensors:
        kind, shape = tensor.tensor_type, [int(size) for size in reversed(tensor.shape)]
        values = (
            tensor.data
            if kind.name == "F32"
            else ggml_quants.dequantise(tensor.data.reshape(-1, tensor.data.shape[-1]), kind)
        )
        stored[tensor.name] = values.reshape(shape)
    for name, tensor in open_checkpoint(quantised).tensors.items():
        names, found = gguf_names(name), numbers(tensor)
        if len(names) == 1:
            np.testing.assert_array_equal(found, stored[names[0]], err_msg=name)
        else:
            np.testing.assert_array_equal(found[:, 0::2], stored[names[0]], err_msg=name)
            np.testing.assert_array_equal(found[:, 1::2], stored[names[1]], err_msg=name)


def test_copy_has_the_same_tensors_and_metadata(quantised: Path, tmp_path: Path) -> None:
    copied = to_gguf(quantised, tmp_path / "copy.gguf")
    assert gguf_files.tensors(copied) == gguf_files.tensors(quantised)
    assert gguf_files.metadata(copied) == gguf_files.metadata(quantised)
    assert all(item.passed for item in compare_weights(open_checkpoint(quantised), open_checkpoint(copied)))


def test_llama_cpp_computes_the_same_from_a_copy(quantised: Path, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, SHAPE.vocab, 8).tolist()
    copied = to_gguf(quantised, tmp_path / "copy.gguf", split_max_size=500_000)
    expected, found = (
        llama_cpp_runtime.next_token_logprobs(path, ids, vocab=SHAPE.vocab) for path in (quantised, copied)
    )
    np.testing.assert_array_equal(found, expected)


def test_decoded_file_holds_what_the_quantised_one_means(quantised: Path, tmp_path: Path) -> None:
    options = GgufOptions(dense="f32", experts="f32", allow_lossy_source=True)
    plan = plan_gguf(open_checkpoint(quantised), tmp_path / "f32.gguf", options)
    execute(plan)
    with warnings.catch_warnings(action="error"):
        comparisons = list(compare_weights(open_checkpoint(quantised), open_checkpoint(plan.output)))
    assert [item.name for item in comparisons if item.different or not item.passed] == []
