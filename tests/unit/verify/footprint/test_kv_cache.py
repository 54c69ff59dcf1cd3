"""KV caches have the bytes that attention's windows and head sizes make."""

from dataclasses import replace

import pytest

from gptoss_convert.errors import OptionError
from gptoss_convert.verify.footprint.kv_cache import cell_bytes, least_cache, llama_cpp_cache, whole_cache
from tests.support.onnx_memory import CONFIGS

FULL_CONTEXT = 131072


def test_a_position_of_a_layer_takes_2048_bytes_at_16_bits() -> None:
    """8 heads of 64 numbers, twice; not of 2880 / 64 = 45, as tools count that divide the hidden size by heads."""
    for config in CONFIGS.values():
        assert cell_bytes(config, "f16") == cell_bytes(config, "bf16") == 2048
        assert cell_bytes(config, "f32") == 4096
        assert cell_bytes(config, "q8_0") == 1088
        assert cell_bytes(config, "q4_0") == 576


@pytest.mark.parametrize(
    ("size", "full", "window"), [("20b", 3_221_225_472, 3_145_728), ("120b", 4_831_838_208, 4_718_592)]
)
def test_half_of_the_layers_remember_one_window(size: str, full: int, window: int) -> None:
    cache = least_cache(CONFIGS[size], FULL_CONTEXT, "f16")
    assert (cache.full_bytes, cache.window_bytes) == (full, window)
    assert cache.nbytes == full + window


def test_a_cache_without_window_is_twice_as_large() -> None:
    whole = whole_cache(CONFIGS["20b"], FULL_CONTEXT, "f16")
    assert whole.nbytes == 2 * least_cache(CONFIGS["20b"], FULL_CONTEXT, "f16").full_bytes


@pytest.mark.parametrize(
    ("context", "batch", "full", "window"),
    [
        (4096, 512, 4096, 768),  # 128 and 512 become 768
        (4096, 256, 4096, 512),
        (4096, 1024, 4096, 1280),
        (16384, 512, 16384, 768),
        (300, 512, 512, 512),  # never more than the other layers have
        (131072, 64, 131072, 256),
    ],
)
def test_llama_cpp_rounds_as_its_log_says(context: int, batch: int, full: int, window: int) -> None:
    cache = llama_cpp_cache(CONFIGS["20b"], context, batch, "f16")
    assert (cache.full_cells, cache.window_cells) == (full, window)


def test_types_that_do_not_fit_the_heads_are_refused() -> None:
    with pytest.raises(OptionError, match="not whole blocks of 32: found q8_0"):
        cell_bytes(replace(CONFIGS["20b"], head_dim=16), "q8_0")
    with pytest.raises(OptionError, match="no such type of a KV cache: found int8, expected f32 or f16"):
        cell_bytes(CONFIGS["20b"], "int8")
