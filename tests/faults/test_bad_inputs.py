"""Bad inputs, one row each: refused with one line that says what is wrong, and nothing is written."""

import functools
import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Outcome, run_here, run_process
from tests.cli.samples import SHARDS, Kind, Samples
from tests.faults.checks import assert_one_line, contents
from tests.faults.damage import (
    ABSENT,
    INDEX,
    WEIGHTS,
    Damage,
    appended,
    both,
    config,
    cut,
    entry,
    fields,
    fifo_in_place_of,
    first_byte,
    folder_in_place_of,
    header,
    header_length,
    header_text,
    intact,
    next_part,
    not_indexed,
    number,
    only,
    overwritten,
    placed,
    remove,
    rename,
    renamed,
    substituted,
    tokenizer,
    with_tensor,
    without,
    write,
)

# A warning of numpy's would be a second line on standard error.
pytestmark = pytest.mark.filterwarnings("error")


def bad(
    name: str,
    damage: Damage,
    exit_code: int,
    *words: str,
    model: Kind = "huggingface",
    options: Sequence[str] = (),
) -> Any:
    """Return a row: what is wrong, how to get there, the exit code, and what the one line must name."""
    return pytest.param(model, damage, exit_code, words, options, id=name)


sharded = functools.partial(bad, model="sharded")
in_bf16 = functools.partial(bad, model="bf16")
in_original = functools.partial(bad, model="original")
in_gguf = functools.partial(bad, model="gguf")
in_split = functools.partial(bad, model="split")

LAYER = "model.layers.1."
Q = LAYER + "self_attn.q_proj.weight"
SINKS = LAYER + "self_attn.sinks"
GATE_UP = LAYER + "mlp.experts.gate_up_proj"
DOWN = LAYER + "mlp.experts.down_proj"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
CARD = "README.md"

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4792272488\n"
WEB_PAGE = "<!DOCTYPE html>\n<html><body>404</body></html>\n"
BF16_LARGEST, BF16_NAN = b"\x7f\x7f", b"\xc0\x7f"
ROPE = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
SPLIT_BY_DIGIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
ALIASES = "---\na: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"

# fmt: off
SAFETENSORS = [
    bad("empty file", cut(0, WEIGHTS), 3, WEIGHTS, "found 0 bytes"),
    bad("7 bytes", cut(7, WEIGHTS), 3, WEIGHTS, "found 7 bytes", "at least 8"),
    bad("header length 0", header_length(0), 3, WEIGHTS, "header length 0"),
    bad("header length beyond the file", header_length(10**7), 3, WEIGHTS, "header length 10000000", "truncated"),
    bad("header length 2^63", header_length(2**63), 3, WEIGHTS, "header length 9223372036854775808"),
    bad("header length 2^64 - 1", header_length(2**64 - 1), 3, WEIGHTS, "header length 18446744073709551615"),
    bad("truncated in the header", cut(1000, WEIGHTS), 3, WEIGHTS, "truncated in its header", "1000 bytes"),
    bad("truncated in the data", cut(-1, WEIGHTS), 3, WEIGHTS, "truncated", "at least"),
    bad("trailing byte", appended(b"\0", WEIGHTS), 3, WEIGHTS, "after the last tensor"),
    bad("Git LFS pointer", write(WEIGHTS, LFS_POINTER), 3, WEIGHTS, "Git LFS pointer", "git lfs pull"),
    bad("web page", write(WEIGHTS, WEB_PAGE), 3, WEIGHTS, "web page", "download"),
    bad("GGUF file under another name", write(WEIGHTS, b"GGUF" + bytes(100)), 3, WEIGHTS, "GGUF"),
    bad("gzip file", write(WEIGHTS, b"\x1f\x8b\x08" + bytes(100)), 3, WEIGHTS, "not a safetensors file"),
    bad("header is not JSON", header_text("{'a': 1}"), 3, WEIGHTS, "not valid JSON"),
    bad("header is not UTF-8", header_text(b'{"\xff": 1}'), 3, WEIGHTS, "not valid JSON"),
    bad("header is a list", header_text("[]"), 3, WEIGHTS, "not a JSON object"),
    bad("header is nested deeply", header_text('{"a":' * 100_000), 3, WEIGHTS, "not valid JSON"),
    bad("header key occurs twice", header_text('{"a": 1, "a": 2}'), 3, WEIGHTS, "a key occurs twice"),
    bad("header entry is a number", header(lambda tensors: tensors | {Q: 1}), 3, WEIGHTS, Q, "dtype"),
    bad("header entry lacks its dtype", entry(Q, dtype=ABSENT), 3, WEIGHTS, Q, "dtype"),
    bad("unknown dtype", entry(Q, dtype="Q4"), 3, WEIGHTS, Q, "found 'Q4'", "BF16"),
    bad("dtype of many pages", entry(Q, dtype="x" * 100_000), 3, WEIGHTS, Q),
    bad("negative dimension", entry(Q, shape=[-128, -64]), 3, WEIGHTS, Q, "found [-128, -64]"),
    bad("dimension with a fraction", entry(Q, shape=[128.0, 64]), 3, WEIGHTS, Q, "found [128.0, 64]"),
    bad("rank 9", entry(Q, shape=[128, 64] + [1] * 7), 3, WEIGHTS, Q, "at most 8"),
    bad("shape overflows 64 bits", entry(Q, shape=[2**32, 2**32]), 3, WEIGHTS, Q, "do not fit shape"),
    bad("offsets reversed", entry(Q, data_offsets=[16384, 0]), 3, WEIGHTS, Q, "[16384, 0]", "ascending"),
    bad("offset is no number", entry(Q, data_offsets=[False, 16384]), 3, WEIGHTS, Q, "[False, 16384]"),
    bad("offsets do not fit the shape", entry(Q, shape=[127, 64]), 3, WEIGHTS, Q, "16384 bytes", "expected 16256"),
    bad("overlapping tensors", entry(Q, data_offsets=[0, 16384]), 3, WEIGHTS, "overlap", "offset"),
    bad("hole between tensors", header(lambda tensors: {Q: tensors[Q]}), 3, WEIGHTS, Q, "hole"),
    bad("folder in place of the file", folder_in_place_of(WEIGHTS), 3, WEIGHTS, "not a regular file"),
]

SHARDED = [
    sharded("missing shard", remove(SHARDS[1]), 3, SHARDS[1], "missing"),
    sharded("shard is a folder", folder_in_place_of(SHARDS[1]), 3, SHARDS[1], "not a regular file"),
    sharded("shard is a Git LFS pointer", write(SHARDS[1], LFS_POINTER), 3, SHARDS[1], "git lfs pull"),
    sharded("shard is cut", cut(-1, SHARDS[2]), 3, SHARDS[2], "truncated"),
    sharded("tensor not in the index", not_indexed(Q), 3, Q, "not in the index"),
    sharded("tensor in another shard", placed(NORM, SHARDS[0]), 3, NORM, f"expected {SHARDS[0]}"),
    sharded("tensor in no shard", placed("ghost", SHARDS[0]), 3, "ghost", SHARDS[0], "missing"),
    sharded("index names no file", placed(NORM, "ghost.safetensors"), 3, "ghost.safetensors", "missing"),
    sharded("index leaves the folder", placed(NORM, "../x"), 3, INDEX, NORM, "found '../x'"),
    sharded("index names an absolute path", placed(NORM, "/etc/passwd"), 3, INDEX, "'/etc/passwd'"),
    sharded("index names a drive", placed(NORM, "C:\\x"), 3, INDEX, NORM, "C:"),
    sharded("index names NUL", placed(NORM, "a\0b"), 3, INDEX, NORM, r"'a\x00b'"),
    sharded("index names a number", fields(INDEX, weight_map={NORM: 7}), 3, INDEX, NORM, "found 7"),
    sharded("index names 300 letters", placed(NORM, "x" * 300), 3, "x" * 300),
    sharded("index has no weight_map", write(INDEX, "{}"), 3, INDEX, "no weight_map"),
    sharded("index is not JSON", write(INDEX, "{"), 3, INDEX, "not valid JSON"),
    sharded("index is a Git LFS pointer", write(INDEX, LFS_POINTER), 3, INDEX, "git lfs pull"),
    sharded("shards without index", remove(INDEX), 3, INDEX, "found 3 *.safetensors files"),
]

TENSORS = [
    bad("blocks without scales", without(GATE_UP + "_scales"), 3, WEIGHTS, GATE_UP + "_blocks", "without scales"),
    bad("scales without blocks", without(GATE_UP + "_blocks"), 3, WEIGHTS, GATE_UP + "_scales", "without blocks"),
    bad("blocks of 8 bytes", with_tensor(DOWN + "_blocks", "U8", 4, 64, 6, 8), 3, WEIGHTS, DOWN, "[4, 64, 6, 8]"),
    bad("blocks without rows", with_tensor(DOWN + "_blocks", "U8", 4, 0, 3, 16), 3, WEIGHTS, DOWN, "[4, 0, 3, 16]"),
    bad("scales of other blocks", with_tensor(DOWN + "_scales", "U8", 4, 64, 2), 3, WEIGHTS, DOWN,
        "found [4, 64, 2]",
        "expected [4, 64, 3]"),
    bad("scales as BF16", with_tensor(DOWN + "_scales", "BF16", 4, 64, 3), 3, WEIGHTS, DOWN + "_scales",
        "found BF16", "expected U8"),
    bad("expert bias transposed", with_tensor(DOWN + "_bias", "BF16", 64, 4), 3, WEIGHTS, DOWN + "_bias",
        "found shape [64, 4]", "expected [4, 64]"),
    bad("one tensor with fewer experts",
        both(with_tensor(DOWN + "_blocks", "U8", 3, 64, 3, 16), with_tensor(DOWN + "_scales", "U8", 3, 64, 3)),
        3, WEIGHTS, DOWN, "found shape [3, 64, 96]", "expected [4, 64, 96]"),
    bad("more experts than configured", config(num_local_experts=3, num_experts_per_tok=3), 3, WEIGHTS,
        "found shape [4, 64]", "expected [3, 64]", "more"),
    bad("wrong shape", with_tensor(Q, "BF16", 64, 128), 3, WEIGHTS, Q, "found shape [64, 128]",
        "expected [128, 64]"),
    bad("wrong rank", with_tensor(Q, "BF16", 128 * 64), 3, WEIGHTS, Q, "found shape [8192]", "expected [128, 64]"),
    bad("wrong dtype", with_tensor(Q, "F8_E4M3", 128, 64), 3, WEIGHTS, Q, "found F8_E4M3", "BF16"),
    bad("scalar", with_tensor(NORM, "BF16"), 3, WEIGHTS, NORM, "found shape []"),
    bad("tensor without numbers", with_tensor(NORM, "BF16", 0), 3, WEIGHTS, NORM, "found shape [0]"),
    bad("extra tensor", with_tensor("vision.weight", "BF16", 2), 3, WEIGHTS, "vision.weight", "unknown tensor"),
    bad("missing sinks", without(SINKS), 3, WEIGHTS, SINKS, "missing", "expected [4]"),
    bad("missing last layer", config(num_hidden_layers=3, layer_types=ABSENT), 3, WEIGHTS, "layers.2.", "missing"),
    bad("more layers than configured", config(num_hidden_layers=1, layer_types=ABSENT), 3, WEIGHTS, LAYER,
        "1 layers"),
    bad("OpenAI's names under a Hugging Face configuration",
        renamed(lambda name: name.replace("model.layers", "block")),
        3, WEIGHTS, "model.layers.0.", "missing"),
    in_bf16("experts of two dimensions", with_tensor(GATE_UP, "BF16", 64, 192), 3, WEIGHTS, GATE_UP,
        "found [64, 192]"),
    in_bf16("experts in canonical orientation", with_tensor(GATE_UP, "BF16", 4, 192, 64), 3, WEIGHTS, GATE_UP,
        "found shape [4, 64, 192]", "expected [4, 192, 64]"),
    in_original("fused qkv too short", with_tensor("block.1.attn.qkv.bias", "BF16", 128), 3, WEIGHTS,
        "block.1.attn.qkv.bias",
        "found shape [128]", "expected [256]"),
    in_original("OpenAI's blocks without scales", without("block.1.mlp.mlp1_weight.scales"), 3, WEIGHTS,
        "without scales",
        "block.1.mlp.mlp1_weight.blocks"),
]

NUMBERS = [
    bad("scale byte 255", number(DOWN + "_scales", 5, b"\xff"), 3, WEIGHTS, DOWN, "255", "NaN"),
    bad("scale byte 253 with a large code as F32",
        both(number(DOWN + "_scales", 0, b"\xfd"), number(DOWN + "_blocks", 0, b"\x77")),
        3, WEIGHTS, DOWN, "253", options=["--experts", "f32"]),
    bad("BF16 too large for F16", number(Q, 7, BF16_LARGEST), 3, WEIGHTS, Q, "3.38953e+38", "65504",
        options=["--dense", "f16"]),
    bad("BF16 too large for Q8_0", number(Q, 7, BF16_LARGEST), 3, WEIGHTS, Q, "q8_0", options=["--dense", "q8_0"]),
    bad("NaN for Q8_0", number(Q, 7, BF16_NAN), 3, WEIGHTS, Q, "not finite", options=["--dense", "q8_0"]),
    in_bf16("NaN for MXFP4", number(GATE_UP, 7, BF16_NAN), 3, WEIGHTS, GATE_UP, "not finite",
        options=["--experts", "mxfp4"]),
]

CONFIGURATION = [
    bad("no config.json", remove(CONFIG), 3, "not a checkpoint", CONFIG),
    bad("empty config.json", write(CONFIG, ""), 3, CONFIG, "not valid JSON"),
    bad("config.json is cut", write(CONFIG, '{"model_type": "gpt_oss",'), 3, CONFIG, "not valid JSON"),
    bad("config.json is a list", write(CONFIG, "[1]"), 3, CONFIG, "not a JSON object", "found list"),
    bad("config.json is a web page", write(CONFIG, WEB_PAGE), 3, CONFIG, "web page"),
    bad("config.json is UTF-16", write(CONFIG, '{"model_type": 1}'.encode("utf-16")), 3, CONFIG, "not valid JSON"),
    bad("config.json is nested deeply", write(CONFIG, "[" * 100_000), 3, CONFIG, "not valid JSON"),
    bad("config.json of something else", write(CONFIG, '{"a": 1}'), 3, "not a checkpoint"),
    bad("wrong model_type", config(model_type="llama"), 4, CONFIG, "found model_type 'llama'", "expected gpt_oss"),
    bad("other quantization method", config(quantization_config={"quant_method": "nvfp4"}), 4, CONFIG,
        "found nvfp4",
        "expected mxfp4"),
    bad("tied embeddings", config(tie_word_embeddings=True), 4, CONFIG, "lm_head.weight",
        "found tie_word_embeddings true", "set tie_word_embeddings to false"),
    bad("no attention bias", config(attention_bias=False), 4, CONFIG, "attention_bias", "found False"),
    bad("other activation", config(hidden_act="gelu"), 4, CONFIG, "hidden_act", "found gelu", "expected silu"),
    bad("swiglu limit other than 7", config(swiglu_limit=8.0), 4, "swiglu limit", "found 8.0",
        "expected 7.0"),
    bad("other rope", config(rope_scaling={"rope_type": "llama3"}), 4, CONFIG, "found llama3", "expected yarn"),
    bad("rope without type", config(rope_scaling={"rope_type": ABSENT}), 3, CONFIG, "rope_type"),
    bad("no rope", config(rope_scaling=ABSENT), 3, CONFIG, "expected rope_scaling and rope_theta"),
    bad("no rope_theta", config(rope_theta=ABSENT), 3, CONFIG, "expected rope_scaling and rope_theta"),
    bad("rope_parameters without theta", config(rope_scaling=ABSENT, rope_theta=ABSENT, rope_parameters=ROPE), 3,
        CONFIG, "rope_theta"),
    bad("rope_theta is negative", config(rope_theta=-1), 3, CONFIG, "rope_theta"),
    bad("rope_theta is NaN", config(rope_theta=float("nan")), 3, CONFIG, "rope_theta"),
    bad("rope_theta is infinite", config(rope_theta=float("inf")), 3, CONFIG, "rope_theta"),
    bad("rope_theta exceeds float32", config(rope_theta=1e300), 3, CONFIG, "rope_theta"),
    bad("epsilon is infinite", config(rms_norm_eps=float("inf")), 3, CONFIG, "rms_norm_eps"),
    bad("layer_types too short", config(layer_types=["full_attention"]), 3, CONFIG, "1 entries", "2 layers"),
    bad("unknown layer type", config(layer_types=["full_attention", "linear"]), 4, CONFIG, "found linear"),
    bad("no hidden_size", config(hidden_size=ABSENT), 3, CONFIG, "hidden_size"),
    bad("hidden_size is text", config(hidden_size="64"), 3, CONFIG, "hidden_size"),
    bad("model without layers", config(num_hidden_layers=0), 3, CONFIG, "num_hidden_layers"),
    bad("a thousand million layers", config(num_hidden_layers=10**9), 3, CONFIG, "num_hidden_layers"),
    bad("no window", config(sliding_window=None), 3, CONFIG, "sliding_window"),
    bad("heads not in groups", config(num_key_value_heads=3), 3, CONFIG, "num_key_value_heads 3"),
    bad("odd head_dim", config(head_dim=31), 3, CONFIG, "head_dim 31"),
    bad("more experts per token than experts", config(num_experts_per_tok=5), 3, CONFIG, "5 of only 4"),
    bad("no experts per token", config(num_experts_per_tok=ABSENT, experts_per_token=ABSENT), 3, CONFIG,
        "num_experts_per_tok"),
    bad("special id outside the vocabulary", config(unk_token_id=10**6), 3, "unk token", "found 1000000"),
    bad("half a surrogate pair", config(hidden_act="\ud800"), 4, CONFIG),
    in_original("OpenAI's configuration without experts", config(num_experts=ABSENT), 3, CONFIG, "num_experts"),
    in_original("OpenAI's scaling factor is huge", config(rope_scaling_factor=1e9), 3, CONFIG),
    in_original("OpenAI's scaling factor is larger still", config(rope_scaling_factor=1e308), 3, CONFIG),
]

TOKENIZERS = [
    bad("no tokenizer", remove(TOKENIZER), 3, "no tokenizer", "expected tokenizer.json", "--tokenizer"),
    bad("tokenizer is a folder", folder_in_place_of(TOKENIZER), 3, TOKENIZER),
    bad("tokenizer is not JSON", write(TOKENIZER, "{"), 3, TOKENIZER, "damaged"),
    bad("tokenizer is a Git LFS pointer", write(TOKENIZER, LFS_POINTER), 3, TOKENIZER, "damaged"),
    bad("tokenizer is nested deeply", write(TOKENIZER, "[" * 100_000), 3, TOKENIZER, "damaged"),
    bad("tokenizer without model", write(TOKENIZER, "{}"), 3, TOKENIZER, "`model`"),
    bad("tokenizer of another kind", tokenizer(model={"type": "Unigram"}), 4, TOKENIZER, "byte-level BPE"),
    bad("other pre-tokenizer", tokenizer(pre_tokenizer={"pretokenizers": [{"type": "Whitespace"}]}), 4, TOKENIZER,
        "pre-tokenizer", "expected a Split"),
    bad("other regular expression", tokenizer(pre_tokenizer=SPLIT_BY_DIGIT), 4, TOKENIZER, "pre-tokenizer",
        r"found \d"),
    bad("post-processor that adds tokens", tokenizer(post_processor={"type": "TemplateProcessing"}), 4, TOKENIZER,
        "found TemplateProcessing"),
    bad("post-processor without a name", tokenizer(post_processor={"type": {}}), 4, TOKENIZER, "post-processor"),
    bad("normaliser", tokenizer(normalizer={"type": "NFC"}), 4, TOKENIZER, "byte-level BPE"),
    bad("vocabulary smaller than the tokenizer",
        both(config(vocab_size=500), with_tensor(EMBEDDING, "BF16", 500, 64),
             with_tensor("lm_head.weight", "BF16", 500, 64)),
        3, TOKENIZER, "found 501", "at most 500"),
    bad("token id used twice", tokenizer(model={"vocab": {"!": 1}}), 3, TOKENIZER, "id 1 is used twice"),
    bad("negative token id", tokenizer(model={"vocab": {"!": -1}}), 3, TOKENIZER, "out of range"),
    bad("huge token id", tokenizer(model={"vocab": {"!": 2**40}}), 3, TOKENIZER, "out of range"),
    bad("no vocabulary", tokenizer(model={"vocab": ABSENT}), 3, TOKENIZER, "vocab"),
    bad("merges are numbers", tokenizer(model={"merges": [1]}), 3, TOKENIZER, "merges"),
    bad("merge with a space", tokenizer(model={"merges": [["a b", "c"]]}), 3, TOKENIZER, "merge"),
    bad("merge with a space, in one text", tokenizer(model={"merges": ["a b c"]}), 3, TOKENIZER, "merge"),
    bad("merge of one token", tokenizer(model={"merges": ["ab"]}), 3, TOKENIZER, "merge"),
    bad("token is half a surrogate pair", tokenizer(model={"vocab": {"\ud800": 501}}), 3, TOKENIZER, "damaged"),
    bad("tokenizer_config.json is not JSON", write(TOKENIZER_CONFIG, "{"), 3, TOKENIZER_CONFIG, "not valid JSON"),
    bad("chat template is not UTF-8", write(TEMPLATE, b"\xff{{ x }}"), 3, TEMPLATE, "not UTF-8"),
    bad("chat template of 17 MB", write(TEMPLATE, b"x" * 17_000_000), 3, TEMPLATE, "17000000 bytes", "at most"),
    bad("chat template is a number", fields(TOKENIZER_CONFIG, chat_template=7), 3, TOKENIZER_CONFIG,
        "chat_template"),
    bad("chat template is half a surrogate pair", fields(TOKENIZER_CONFIG, chat_template="\ud800"), 3,
        TOKENIZER_CONFIG),
]

DESCRIPTION = [
    bad("model card with broken YAML", write(CARD, "---\nname: [\n---\n"), 3, CARD),
    bad("model card is not UTF-8", write(CARD, b"---\nname: \xff\n---\n"), 3, CARD),
    bad("model card of 17 MB", write(CARD, b"x" * 17_000_000), 3, CARD, "17000000 bytes"),
    bad("licence is a date", write(CARD, "---\nlicense: 2026-01-01\n---\n"), 3, CARD, "in license"),
    bad("name is a mapping", write(CARD, "---\nname: {a: b}\n---\n"), 3, CARD, "is no text"),
    bad("name is half a surrogate pair", write(CARD, '---\nname: "\\ud800"\n---\n'), 3, CARD),
    bad("tags are numbers", write(CARD, "---\ntags: [1]\n---\n"), 3, CARD, "in tags"),
    bad("tags multiplied by aliases", write(CARD, ALIASES + "tags: [*b, *b, *b, *b, *b, *b]\n---\n"), 3, CARD),
    bad("generation_config.json is not JSON", write(GENERATION, "{"), 3, GENERATION, "not valid JSON"),
    bad("generation_config.json is a list", write(GENERATION, "[]"), 3, GENERATION, "not a JSON object"),
    bad("top_k is text", fields(GENERATION, top_k="many"), 3, GENERATION),
    bad("top_k is huge", fields(GENERATION, top_k=10**12), 3, GENERATION),
    bad("temperature is a list", fields(GENERATION, temperature=[0.5, 0.5]), 3, GENERATION),
]

SOURCES = [
    bad("pickled weights", rename(WEIGHTS, "pytorch_model.bin"), 4, "pytorch_model.bin", "safetensors"),
    bad("no weights", remove(WEIGHTS), 3, "no safetensors file"),
    bad("LoRA adapter", only({"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": ""}), 4,
        "an adapter", "merge it"),
    bad("LoRA adapter with config.json",
        both(renamed(lambda name: f"base_model.model.{name}.lora_A"), rename(WEIGHTS, "adapter_model.safetensors")),
        3, "adapter_model.safetensors", "more: see"),
    bad("empty folder", only({}), 3, "not a checkpoint"),
]


def second_part_is_the_first(source: Path) -> None:
    shutil.copy(source, next_part(source))


def second_part_is_of_three(source: Path) -> None:
    substituted(part_count(2), part_count(3))(next_part(source))


def block_count(layers: int) -> bytes:
    key = b"gpt-oss.block_count"
    return struct.pack(f"<Q{len(key)}sII", len(key), key, 4, layers)


def part_count(parts: int) -> bytes:
    return b"split.count" + struct.pack("<IH", 2, parts)


def tensor_count(tensors: int) -> bytes:
    return b"split.tensors.count" + struct.pack("<Ii", 5, tensors)


GGUF = [
    in_gguf("cut in the magic", cut(3), 3, "not a checkpoint"),
    in_gguf("cut in the header", cut(20), 3, "truncated", "20 bytes"),
    in_gguf("cut in the vocabulary", cut(5000), 3, "truncated", "5000 bytes"),
    in_gguf("cut in the data", cut(-1000), 3, "truncated", "tensor output.weight"),
    in_gguf("version 2", overwritten(4, struct.pack("<I", 2)), 4, "version 0x2", "expected version 3"),
    in_gguf("big endian", overwritten(4, struct.pack(">I", 3)), 4, "big-endian"),
    in_gguf("2^63 tensors", overwritten(8, struct.pack("<Q", 2**63)), 3, "number of tensors", f"{2**63}"),
    in_gguf("2^40 metadata keys", overwritten(16, struct.pack("<Q", 2**40)), 3, "metadata keys"),
    in_gguf("metadata key of 2^60 bytes", overwritten(24, struct.pack("<Q", 2**60)), 3, "too long"),
    in_gguf("metadata key twice", substituted(b"general.type", b"general.name"), 3, "general.name", "twice"),
    in_gguf("metadata key missing", substituted(b"gpt-oss.block_count", b"gpt-oss.block_kount"), 3, "block_count"),
    in_gguf("other architecture", substituted(b"gpt-oss", b"gpt-neo"), 4, "found gpt-neo", "expected gpt-oss"),
    in_gguf("other pre-tokenizer in GGUF", substituted(b"gpt-4o", b"llama3"), 4, "llama3", "gpt-4o"),
    in_gguf("more layers than tensors", substituted(block_count(2), block_count(3)), 3, "layers.2.", "missing"),
    in_gguf("fewer layers than tensors", substituted(block_count(2), block_count(1)), 3, "layers.1.", "unknown"),
    in_gguf("no layers in GGUF", substituted(block_count(2), block_count(0)), 3, "block_count", "found 0"),
    in_gguf("unknown tensor in GGUF", substituted(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"), 3,
        "blk.1.attn_x.weight", "unknown tensor"),
    in_gguf("tensor twice in GGUF", substituted(b"blk.1.attn_k.weight", b"blk.1.attn_q.weight"), 3,
        "blk.1.attn_q.weight", "twice"),
    in_gguf("gate without up", substituted(b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_no_exps.weight"), 3,
        "blk.1.ffn_gate_exps.weight", "other half"),
    in_gguf("scale byte 255 in GGUF", first_byte("blk.1.ffn_down_exps.weight", 255), 3, DOWN, "255"),
    in_split("second part is missing", lambda first: next_part(first).unlink(), 3, "00002-of-00002", "missing"),
    in_split("second part is cut", lambda first: cut(-1000)(next_part(first)), 3, "00002-of-00002", "truncated"),
    in_split("second part is the first", second_part_is_the_first, 3, "00002-of-00002", "split.no", "found 0"),
    in_split("second part is of a set of three", second_part_is_of_three, 3, "00002-of-00002", "split.count",
        "found 3", "expected 2"),
    in_split("parts hold fewer tensors than they say", substituted(tensor_count(41), tensor_count(42)), 3,
        "00001-of-00002", "split.tensors.count", "found 41", "expected 42"),
]

OPTIONS = [
    bad("pattern that matches nothing", intact, 2, "found blk.9.*", options=["--tensor-type", "blk.9.*=q8_0"]),
    bad("pattern that matches a norm", intact, 2, "output_norm.weight", "f32", "found q8_0",
        options=["--tensor-type", "output_norm.*=q8_0"]),
    bad("pattern that matches a router", intact, 2, "blk.0.ffn_gate_inp.weight", "f32", "found bf16",
        options=["--tensor-type", "*.ffn_gate_inp.weight=bf16"]),
    bad("folder without tokenizer", intact, 3, "nothing is there", "nowhere", options=["--tokenizer", "nowhere"]),
    bad("name that is not UTF-8", intact, 2, "name", options=["--name", "\udcff"]),
    bad("base model that is not UTF-8", intact, 2, "base-model", options=["--base-model", "a/\udcff"]),
]
# fmt: on


ROWS = [
    *SAFETENSORS,
    *SHARDED,
    *TENSORS,
    *NUMBERS,
    *CONFIGURATION,
    *TOKENIZERS,
    *DESCRIPTION,
    *SOURCES,
    *GGUF,
    *OPTIONS,
]


@pytest.mark.parametrize(("model", "damage", "exit_code", "words", "options"), ROWS)
def test_bad_input_is_refused_in_one_line(
    model: Kind,
    damage: Damage,
    exit_code: int,
    words: Sequence[str],
    options: Sequence[str],
    samples: Samples,
    tmp_path: Path,
) -> None:
    source = samples.copy(model, tmp_path)
    damage(source)
    before = contents(tmp_path)
    (tmp_path / "output").mkdir()

    outcome = run_here("to-gguf", source, "-o", tmp_path / "output" / "x.gguf", *options)

    assert_one_line(outcome, exit_code, words, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("model", "damage"), [pytest.param(*row.values[:2], id=row.id) for row in ROWS if not row.marks]
)
def test_bad_input_can_be_inspected(model: Kind, damage: Damage, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy(model, tmp_path)
    damage(source)
    outcome = run_here("inspect", source)
    problems = [line for line in outcome.stdout.splitlines() if line.startswith("problem: ")]
    assert outcome.exit_code in (1 if problems else 0, 3, 4)
    assert len(outcome.stderr.splitlines()) == (outcome.exit_code > 1)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, TOKENIZER])
def test_a_pipe_in_place_of_a_needed_file_is_refused_at_once(name: str, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    fifo_in_place_of(name)(source)
    outcome = run_process("to-gguf", source, "-o", tmp_path / "x.gguf", timeout=20)
    assert_one_line(outcome, 3, [], tmp_path)


@pytest.mark.parametrize("name", [TOKENIZER_CONFIG, TEMPLATE, GENERATION, CARD, "LICENSE"])
def test_a_pipe_in_place_of_an_optional_file_is_not_read(name: str, samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    fifo_in_place_of(name)(source)
    assert run_process("to-gguf", source, "-o", tmp_path / "x.gguf", "-q", timeout=20) == Outcome(0, "", "")


TOO_LONG = pytest.param(
    "x" * 300,
    id="name of 300 letters",
)


@pytest.mark.parametrize("source", ["nowhere", "-", "", "pipe", "loop", "/dev/zero", "text", TOO_LONG])
def test_source_that_is_neither_folder_nor_gguf_file(source: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "text").write_text("hello")
    outcome = run_process("to-gguf", source, "-o", "x.gguf", cwd=tmp_path, timeout=20)
    assert_one_line(outcome, 3, [source[:10]], tmp_path)
    assert not (tmp_path / "x.gguf").exists()


def test_a_later_part_of_a_split_set_names_the_first(samples: Samples, tmp_path: Path) -> None:
    second = next_part(samples.path("split"))
    outcome = run_here("to-gguf", second, "-o", tmp_path / "x.gguf")
    assert_one_line(outcome, 3, ["not the first shard", "name model-00001-of-00002.gguf instead"], tmp_path)


def test_a_part_under_another_name_says_which_name_it_needs(samples: Samples, tmp_path: Path) -> None:
    first = samples.copy("split", tmp_path)
    outcome = run_here("to-gguf", first.rename(tmp_path / "other.gguf"), "-o", tmp_path / "x.gguf")
    assert_one_line(outcome, 3, ["other.gguf", "expected NAME-00001-of-00002.gguf"], tmp_path)
