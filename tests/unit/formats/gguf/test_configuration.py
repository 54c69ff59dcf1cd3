"""The configuration as GGUF metadata."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_convert.checkpoint import FULL, SLIDING, ModelConfig, YarnRope
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.gguf.configuration import configuration_metadata, parse_configuration
from gptoss_convert.formats.gguf.container import (
    Value,
    ValueType,
    boolean,
    float32,
    read_header,
    serialise_header,
    string,
    strings,
    uint32,
)
from gptoss_convert.formats.huggingface import parse_config
from gptoss_convert.formats.storage import FileRef

PUBLISHED = Path(__file__).resolve().parents[3] / "data/gpt-oss"
PATH = Path("model.gguf")


def published(size: str) -> ModelConfig:
    path = PUBLISHED / size / "config.json"
    return parse_config(json.loads(path.read_text(encoding="utf-8")), path)


def metadata_of(config: ModelConfig) -> dict[str, Value]:
    return {"general.architecture": string("gpt-oss"), **configuration_metadata(config, file_type=38, path=PATH)}


def parsed(metadata: dict[str, Value], vocab_size: int = 201088) -> ModelConfig:
    return parse_configuration(metadata, vocab_size, PATH)


METADATA = metadata_of(published("20b"))


@st.composite
def decimals(draw: st.DrawFn) -> float:
    """Numbers of up to six digits, which float32 tells apart."""
    return float(f"{draw(st.integers(1, 999_999))}e{draw(st.integers(-12, 12))}")


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Configurations of any size, as far as a GGUF file tells them apart."""
    counts = st.integers(1, 1 << 20)
    layers = draw(st.integers(1, 64))
    key_value_heads = draw(st.integers(1, 64))
    experts = draw(st.integers(1, 256))
    return ModelConfig(
        num_hidden_layers=layers,
        hidden_size=draw(counts),
        intermediate_size=draw(counts),
        num_local_experts=experts,
        num_experts_per_tok=draw(st.integers(1, experts)),
        num_attention_heads=key_value_heads * draw(st.integers(1, 64)),
        num_key_value_heads=key_value_heads,
        head_dim=2 * draw(st.integers(1, 512)),
        vocab_size=draw(counts),
        max_position_embeddings=draw(st.integers(1, (1 << 31) - 1)),
        sliding_window=draw(counts),
        layer_types=tuple(draw(st.lists(st.sampled_from([SLIDING, FULL]), min_size=layers, max_size=layers))),
        rope=YarnRope(
            theta=draw(decimals()),
            factor=draw(decimals()),
            beta_fast=draw(decimals()),
            beta_slow=draw(decimals()),
            original_context_length=draw(counts),
            truncate=False,
        ),
        rms_norm_eps=draw(decimals()),
        swiglu_limit=7.0,
    )


@given(configs())
def test_any_configuration_returns_from_a_file(tmp_path: Path, config: ModelConfig) -> None:
    path = tmp_path / "file.gguf"
    path.write_bytes(serialise_header(metadata_of(config), []))
    metadata = dict(read_header(FileRef.at(path)).metadata)
    assert parsed(metadata, config.vocab_size) == config


@pytest.mark.parametrize("size", ["20b", "120b"])
def test_published_configuration_returns(size: str) -> None:
    assert parsed(metadata_of(published(size))) == published(size)


def test_keys_are_those_of_gguf_py() -> None:
    names = {
        key.replace("{arch}", "gpt-oss")
        for group in (gguf.Keys.General, gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope)
        for key in vars(group).values()
        if isinstance(key, str)
    }
    assert METADATA.keys() <= names


@pytest.mark.parametrize(
    ("key", "kind", "value"),
    [
        ("gpt-oss.block_count", ValueType.UINT32, 24),
        ("gpt-oss.context_length", ValueType.UINT32, 131072),
        ("gpt-oss.embedding_length", ValueType.UINT32, 2880),
        ("gpt-oss.feed_forward_length", ValueType.UINT32, 2880),
        ("gpt-oss.attention.head_count", ValueType.UINT32, 64),
        ("gpt-oss.attention.head_count_kv", ValueType.UINT32, 8),
        ("gpt-oss.rope.scaling.type", ValueType.STRING, "yarn"),
        ("gpt-oss.rope.scaling.factor", ValueType.FLOAT32, 32.0),
        ("gpt-oss.rope.scaling.original_context_length", ValueType.UINT32, 4096),
        ("gpt-oss.rope.scaling.yarn_beta_fast", ValueType.FLOAT32, 32.0),
        ("gpt-oss.rope.scaling.yarn_beta_slow", ValueType.FLOAT32, 1.0),
        ("gpt-oss.rope.freq_base", ValueType.FLOAT32, 150000.0),
        ("gpt-oss.attention.layer_norm_rms_epsilon", ValueType.FLOAT32, 1e-5),
        ("gpt-oss.expert_count", ValueType.UINT32, 32),
        ("gpt-oss.expert_used_count", ValueType.UINT32, 4),
        ("gpt-oss.attention.key_length", ValueType.UINT32, 64),
        ("gpt-oss.attention.value_length", ValueType.UINT32, 64),
        ("general.file_type", ValueType.UINT32, 38),
        ("gpt-oss.attention.sliding_window", ValueType.UINT32, 128),
        ("gpt-oss.expert_feed_forward_length", ValueType.UINT32, 2880),
    ],
)
def test_metadata_of_gpt_oss_20b(key: str, kind: ValueType, value: object) -> None:
    assert METADATA[key] == Value(kind, value)


def test_metadata_of_gpt_oss_20b_have_no_other_keys() -> None:
    assert len(METADATA) == 21  # those above and general.architecture


def test_layers_that_do_not_alternate_are_listed() -> None:
    config = replace(published("20b"), layer_types=(FULL, *[SLIDING] * 23))
    pattern = metadata_of(config)["gpt-oss.attention.sliding_window_pattern"]
    assert pattern.type is ValueType.BOOL
    assert pattern.value.tolist() == [False] + [True] * 23


def test_swiglu_limit_that_llama_cpp_does_not_compute_with_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"swiglu limit \(model.gguf\): found 6.0, expected 7.0"):
        configuration_metadata(replace(published("20b"), swiglu_limit=6.0), file_type=38, path=PATH)


def test_files_of_august_2025_lack_the_betas() -> None:
    old = {key: value for key, value in METADATA.items() if "yarn_beta" not in key}
    assert parsed(old) == published("20b")


@pytest.mark.parametrize(
    ("interval", "kinds"), [(1, [FULL] * 4), (2, [SLIDING, FULL] * 2), (4, [SLIDING] * 3 + [FULL])]
)
def test_number_as_pattern_means_that_every_nth_layer_is_full(interval: int, kinds: list[str]) -> None:
    key = "gpt-oss.attention.sliding_window_pattern"
    config = parsed(METADATA | {key: uint32(interval), "gpt-oss.block_count": uint32(4)})
    assert list(config.layer_types) == kinds


@pytest.mark.parametrize(
    "key",
    [
        "general.architecture",
        "gpt-oss.rope.scaling.type",
        "gpt-oss.block_count",
        "gpt-oss.context_length",
        "gpt-oss.embedding_length",
        "gpt-oss.attention.head_count",
        "gpt-oss.rope.scaling.factor",
        "gpt-oss.rope.scaling.original_context_length",
        "gpt-oss.rope.freq_base",
        "gpt-oss.attention.layer_norm_rms_epsilon",
        "gpt-oss.expert_count",
        "gpt-oss.expert_used_count",
        "gpt-oss.attention.key_length",
        "gpt-oss.attention.sliding_window",
        "gpt-oss.expert_feed_forward_length",
    ],
)
def test_missing_key_is_an_error_that_names_it(key: str) -> None:
    without = {name: value for name, value in METADATA.items() if name != key}
    with pytest.raises(InputError, match=key):
        parsed(without)


@pytest.mark.parametrize(
    "value",
    [
        string("24"),
        boolean(True),
        float32(24.0),
        uint32(0),
        uint32((1 << 32) - 1),
        Value(ValueType.INT32, -1),
        Value(ValueType.UINT64, 1 << 40),
        Value(ValueType.UINT32, np.array([24])),
        strings(["24"]),
    ],
)
@pytest.mark.parametrize(
    "key", ["block_count", "attention.head_count", "expert_used_count", "attention.key_length"]
)
def test_count_of_another_kind_is_refused(key: str, value: Value) -> None:
    with pytest.raises(InputError, match=key):
        parsed(METADATA | {f"gpt-oss.{key}": value})


@pytest.mark.parametrize(
    "value", [string("1"), boolean(True), float32(0), float32(-1), float32(float("nan")), float32(float("inf"))]
)
@pytest.mark.parametrize("key", ["rope.freq_base", "rope.scaling.factor", "attention.layer_norm_rms_epsilon"])
def test_number_of_another_kind_is_refused(key: str, value: Value) -> None:
    with pytest.raises(InputError, match=key):
        parsed(METADATA | {f"gpt-oss.{key}": value})


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_number_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="freq_base"):
        parsed(METADATA | {"gpt-oss.rope.freq_base": Value(ValueType.FLOAT64, value)})


def test_pattern_0_means_that_every_layer_is_sliding() -> None:
    config = parsed(METADATA | {"gpt-oss.attention.sliding_window_pattern": uint32(0)})
    assert set(config.layer_types) == {SLIDING}


@pytest.mark.parametrize("value", [strings(["a"] * 24), string("2"), float32(2.0), Value(ValueType.INT32, -2)])
def test_pattern_of_another_kind_is_refused(value: Value) -> None:
    with pytest.raises(InputError, match="sliding_window_pattern"):
        parsed(METADATA | {"gpt-oss.attention.sliding_window_pattern": value})


def test_pattern_of_another_length_is_refused() -> None:
    pattern = Value(ValueType.BOOL, np.array([True] * 23))
    with pytest.raises(InputError, match="23 entries for 24 layers"):
        parsed(METADATA | {"gpt-oss.attention.sliding_window_pattern": pattern})


@pytest.mark.parametrize(
    ("key", "value", "conflict"),
    [
        ("attention.head_count_kv", 7, "not a multiple"),
        ("expert_used_count", 33, "33 of only 32 experts"),
        ("attention.key_length", 63, "odd"),
        ("block_count", 5000, "out of range"),
    ],
)
def test_contradictions_are_refused(key: str, value: int, conflict: str) -> None:
    with pytest.raises(InputError, match=conflict):
        parsed(METADATA | {f"gpt-oss.{key}": uint32(value)})


@pytest.mark.parametrize("name", ["llama", "gpt-oss2", "GPTOSS", ""])
def test_other_architecture_is_not_supported(name: str) -> None:
    with pytest.raises(UnsupportedError, match="not a gpt-oss model"):
        parsed(METADATA | {"general.architecture": string(name)})


def as_ollama(metadata: Mapping[str, Value]) -> dict[str, Value]:
    """The same metadata under the keys of Ollama, which left some out."""
    keys = {key.replace("gpt-oss.", "gptoss."): value for key, value in metadata.items()}
    left_out = ("rope.scaling.type", "expert_feed_forward_length", "rope.scaling.yarn_beta_fast")
    for key in (*left_out, "rope.scaling.yarn_beta_slow"):
        keys.pop(f"gptoss.{key}", None)
    return keys | {"general.architecture": string("gptoss")}


def test_keys_of_ollama_mean_the_same() -> None:
    assert "gpt-oss.expert_feed_forward_length" in METADATA
    assert parsed(as_ollama(METADATA)) == parsed(METADATA)


def test_what_ollama_states_goes_before_what_it_leaves_out() -> None:
    stated = as_ollama(METADATA) | {"gptoss.expert_feed_forward_length": uint32(64)}
    assert parsed(stated).intermediate_size == 64
    with pytest.raises(UnsupportedError, match="YaRN"):
        parsed(as_ollama(METADATA) | {"gptoss.rope.scaling.type": string("linear")})


@pytest.mark.parametrize("key", ["block_count", "feed_forward_length", "rope.freq_base"])
def test_key_that_ollama_writes_is_missed(key: str) -> None:
    metadata = as_ollama(METADATA)
    del metadata[f"gptoss.{key}"]
    with pytest.raises(InputError, match=rf"gptoss\.{key}"):
        parsed(metadata)


@pytest.mark.parametrize("key", ["rope.scaling.type", "expert_feed_forward_length"])
def test_key_that_only_ollama_leaves_out_is_missed_elsewhere(key: str) -> None:
    metadata = dict(METADATA)
    del metadata[f"gpt-oss.{key}"]
    with pytest.raises(InputError, match=rf"gpt-oss\.{key}"):
        parsed(metadata)


@pytest.mark.parametrize("name", ["linear", "longrope", "none"])
def test_other_rope_scaling_is_not_supported(name: str) -> None:
    with pytest.raises(UnsupportedError, match="YaRN"):
        parsed(METADATA | {"gpt-oss.rope.scaling.type": string(name)})


@pytest.mark.parametrize("value", [uint32(1), strings(["gpt-oss"])])
def test_architecture_must_be_a_text(value: Value) -> None:
    with pytest.raises(InputError, match=r"general\.architecture"):
        parsed(METADATA | {"general.architecture": value})
