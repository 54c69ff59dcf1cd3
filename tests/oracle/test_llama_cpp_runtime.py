"""llama.cpp loads our files and computes what transformers computes.

llama.cpp rounds the YaRN range of gpt-oss to whole dimensions, which the model does not do. The comparison is
therefore with transformers in that mode, and one test shows the difference.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.peers import llama_cpp_converter, llama_cpp_runtime, metrics, transformers_model
from tests.support.conversions import TINY, to_gguf

VOCAB = 3584
IDS = np.load(Path(__file__).parents[1] / "data" / "heldout_ids.npy").ravel()[:192].tolist()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return transformers_model.next_token_logprobs(TINY, IDS, rope_truncate=True)


def logprobs(model: Path) -> np.ndarray:
    return llama_cpp_runtime.next_token_logprobs(model, IDS, vocab=VOCAB)


@pytest.fixture(scope="module")
def exact_file(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return what llama.cpp computes from a file in which every tensor is float32."""
    output = tmp_path_factory.mktemp("exact") / "f32.gguf"
    return logprobs(to_gguf(TINY, output, dense="f32", experts="f32"))


def test_float32_file_gives_the_distributions_of_transformers(expected: np.ndarray, exact_file: np.ndarray) -> None:
    assert metrics.kl_divergence(expected, exact_file).mean() < 1e-8
    assert metrics.top1_agreement(expected, exact_file) == 1


def test_rounded_yarn_range_of_llama_cpp_is_a_difference_that_no_file_can_mend(exact_file: np.ndarray) -> None:
    true_model = transformers_model.next_token_logprobs(TINY, IDS, rope_truncate=False)
    assert metrics.kl_divergence(true_model, exact_file).mean() > 1e-6


@pytest.mark.parametrize(
    ("options", "noise_floor"),
    [
        # What llama.cpp's arithmetic costs on the converter's own files (activations rounded to 8 bits or BF16).
        ({"dense": "f32"}, 1.2e-4),
        ({}, 1.5e-4),
        ({"dense": "q8_0"}, 4e-4),
        ({"dense": "f16", "experts": "f16"}, 1e-6),
        ({"split_max_size": 2_000_000}, 1.5e-4),
    ],
    ids=["mxfp4 and f32", "as the source", "mxfp4 and q8_0", "f16", "split"],
)
def test_file_is_within_the_noise_floor_of_the_runtime(
    options: dict[str, object], noise_floor: float, expected: np.ndarray, tmp_path: Path
) -> None:
    found = logprobs(to_gguf(TINY, tmp_path / "model.gguf", **options))
    assert metrics.kl_divergence(expected, found).mean() < noise_floor
    assert metrics.top1_agreement(expected, found) > 0.95


def test_distributions_are_those_of_the_converters_own_file(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.gguf"
    llama_cpp_converter.convert(TINY, theirs)
    ours = to_gguf(TINY, tmp_path / "ours.gguf")
    assert np.array_equal(logprobs(ours), logprobs(theirs))
