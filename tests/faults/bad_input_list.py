"""What strangers' files may do to a reader: the list, group by group, and what comes of each item.

An item is either refused (exit code, words of the one line) or legal (the conversion is exact). `IN_OTHER_TABLES`
names the rows that stand for items elsewhere, so that the list as a whole is complete.
"""

import json
import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from tests.cli.samples import SHARDS, Kind
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
    header_length,
    header_text,
    intact,
    next_part,
    number,
    overwritten,
    placed,
    read_header,
    remove,
    renamed,
    reordered,
    with_bytes,
    with_tensor,
    without,
    write,
)
from tests.unit.formats.gguf import models

INPUT, UNSUPPORTED = 3, 4
LAYER = "model.layers.1."
Q, NORM = LAYER + "self_attn.q_proj.weight", "model.norm.weight"
GATE_UP, DOWN = LAYER + "mlp.experts.gate_up_proj", LAYER + "mlp.experts.down_proj"
GRAPH, DATA = "model.onnx", "model.onnx.data"


@dataclass(frozen=True)
class Item:
    """An item of the list."""

    group: int
    name: str
    damage: Damage
    exit_code: int
    words: Sequence[str] = ()
    model: Kind = "huggingface"
    options: Sequence[str] = ()


def legal(group: int, name: str, damage: Damage, model: Kind = "huggingface", options: Sequence[str] = ()) -> Item:
    """An item that breaks no rule."""
    return Item(group, name, damage, 0, (), model, options)


def link(name: str, target: str) -> Damage:
    """Replace a file of the folder by a symbolic link."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return damage


def moved_out(name: str) -> Damage:
    """Move a file out of the folder, and leave a symbolic link to it."""

    def damage(folder: Path) -> None:
        shutil.move(folder / name, folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return damage


def hard_link(name: str) -> Damage:
    """Give a file of the folder a second name outside of it."""
    return lambda folder: os.link(folder / name, folder.parent / f"outside-{name}")


def huge_header(folder: Path) -> None:
    """Let the header be longer than any may be, in a file that is long enough for it."""
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 100_000_001))
    os.truncate(folder / WEIGHTS, 100_000_100)


def header_with(old: str, new: str) -> Damage:
    """Replace text in the header."""

    def damage(folder: Path) -> None:
        header, _ = read_header(folder / WEIGHTS)
        text = json.dumps(header)
        assert old in text
        header_text(text.replace(old, new, 1))(folder)

    return damage


def copied(name: str, new_name: str) -> Damage:
    return lambda folder: shutil.copyfile(folder / name, folder / new_name)  # type: ignore[return-value]


def twice_in_shards(folder: Path) -> None:
    """Store a tensor of the first shard in the last one too."""
    content, start = read_header(folder / SHARDS[0])
    name, found = next(iter(content.items()))
    data = (folder / SHARDS[0]).read_bytes()[start:][slice(*found["data_offsets"])]
    header, start = read_header(folder / SHARDS[2])
    rest = (folder / SHARDS[2]).read_bytes()[start:]
    header[name] = found | {"data_offsets": [len(rest), len(rest) + len(data)]}
    text = json.dumps(header).encode()
    (folder / SHARDS[2]).write_bytes(struct.pack("<Q", len(text)) + text + rest + data)


def many_entries(folder: Path) -> None:
    fields(INDEX, weight_map={f"ghost.{index}": SHARDS[0] for index in range(100_000)})(folder)


def with_bom(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())  # type: ignore[return-value]


def quantised(method: str, **more: object) -> Damage:
    return config(quantization_config={"quant_method": method, **more})


def aligned_to(value: int | str) -> Damage:
    """Replace the file by one of gguf-py that states an alignment."""

    def damage(path: Path) -> None:
        models.write(path, models.random_values(), change={"general.alignment": value})

    return damage


def encoded(**encodings: str) -> Damage:
    """Replace the file by one of gguf-py with tensors in other encodings; `_` stands for `.` in their names."""

    def damage(path: Path) -> None:
        named = {name.replace("_", "."): encoding for name, encoding in encodings.items()}
        models.write(path, models.random_values(), encodings=named)

    return damage


def type_of_tensor(number_: int) -> Damage:
    """Let the directory of a GGUF file give the tensor of the first experts another type."""

    def damage(path: Path) -> None:
        name = b"blk.0.ffn_down_exps.weight"
        start = path.read_bytes().index(name) + len(name) + 4 + 3 * 8
        overwritten(start, struct.pack("<I", number_))(path)

    return damage


def dimension_of_tensor(size: int) -> Damage:
    """Let the directory give the tensor of the first experts another first dimension."""

    def damage(path: Path) -> None:
        name = b"blk.0.ffn_down_exps.weight"
        overwritten(path.read_bytes().index(name) + len(name) + 4, struct.pack("<Q", size))(path)

    return damage


def rank_of_tensor(rank: int) -> Damage:
    def damage(path: Path) -> None:
        name = b"blk.0.ffn_down_exps.weight"
        overwritten(path.read_bytes().index(name) + len(name), struct.pack("<I", rank))(path)

    return damage


def offset_of_tensor(offset: int) -> Damage:
    def damage(path: Path) -> None:
        name = b"blk.0.ffn_down_exps.weight"
        overwritten(path.read_bytes().index(name) + len(name) + 4 + 3 * 8 + 4, struct.pack("<Q", offset))(path)

    return damage


def tokens_array(kind: int, length: int) -> Damage:
    """Let the array of tokens have another type of items, and length."""

    def damage(path: Path) -> None:
        key = b"tokenizer.ggml.tokens"
        overwritten(path.read_bytes().index(key) + len(key) + 4, struct.pack("<IQ", kind, length))(path)

    return damage


def part_of_another_model(first: Path) -> None:
    """Give the second part other tensors: those of the first."""
    content = first.read_bytes()
    index = content.index(b"split.no") + 12
    second = next_part(first).read_bytes()
    where = second.index(b"split.no") + 12
    next_part(first).write_bytes(content[:index] + second[where : where + 2] + content[index + 2 :])


def cut_in_data_of(name: bytes) -> Damage:
    return lambda path: cut(path.read_bytes().index(name) + 4)(path)


def external(key: str, value: str) -> Damage:
    """Let the initialiser of a weight say something else of its external data."""

    def change(model: onnx.ModelProto) -> None:
        array = next(item for item in model.graph.initializer if item.name == NORM)
        next(item for item in array.external_data if item.key == key).value = value

    return changed_graph(change)


def changed_graph(change: object) -> Damage:
    """Change model.onnx."""

    def damage(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        change(model)  # type: ignore[operator]
        (folder / GRAPH).write_bytes(model.SerializeToString())

    return damage


def huge_dims(model: onnx.ModelProto) -> None:
    array = next(item for item in model.graph.initializer if item.name == NORM)
    del array.dims[:]
    array.dims.extend([1 << 47, 1 << 47])


def foreign_node(model: onnx.ModelProto) -> None:
    node = model.graph.node.add()
    node.op_type, node.domain = "Run", "evil.example"


def far_opset(model: onnx.ModelProto) -> None:
    for opset in model.opset_import:
        opset.version = 9999


def nested(depth: int) -> Damage:
    """Put a graph in a graph in a graph, `depth` times, into an attribute of a node."""

    def field(tag: int, data: bytes) -> bytes:
        return varint(tag << 3 | 2) + varint(len(data)) + data

    def damage(folder: Path) -> None:
        attribute = b""
        for _ in range(depth):  # GraphProto.node, NodeProto.attribute, AttributeProto.g
            attribute = field(1, field(5, field(6, attribute)))
        with (folder / GRAPH).open("ab") as file:
            file.write(field(100, attribute))

    return damage


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])


def three_gigabytes(folder: Path) -> None:
    os.truncate(folder / GRAPH, 3 << 30)


ZEROS = bytes(16)
MINUS_ZEROS = b"\x88" * 16
SUBNORMAL = b"\x01\x00"
NAN = float("nan")
HOSTILE_TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% endfor %}"

# fmt: off
ITEMS = [
    Item(1, "header length above 100 MB", huge_header, INPUT, [WEIGHTS, "header length 100000001"]),
    Item(1, "1 byte", cut(1, WEIGHTS), INPUT, [WEIGHTS, "found 1 bytes", "at least 8"]),
    Item(1, "header length 1", header_length(1), INPUT, [WEIGHTS, "header length 1 "]),

    legal(2, "space before the header", header_with("{", " {")),
    Item(2, "garbage after the header", header_with('{"', '[] {"'), INPUT, [WEIGHTS, "not valid JSON"]),
    Item(2, "text after the header", lambda f: header_text(json.dumps(read_header(f / WEIGHTS)[0]) + "x")(f), INPUT,
         [WEIGHTS, "not valid JSON"]),
    Item(2, "NaN in a shape", entry(Q, shape=[NAN, 64]), INPUT, [WEIGHTS, "NaN is no number"]),
    Item(2, "infinity somewhere else", entry(Q, note=float("inf")), INPUT, [WEIGHTS, "Infinity"]),
    Item(2, "metadata that are no texts", lambda f: header_text(json.dumps(read_header(f / WEIGHTS)[0] |
         {"__metadata__": {"a": 1}}))(f), INPUT, [WEIGHTS, "metadata are not texts"]),
    Item(2, "integer of 5000 digits", header_with('"shape": [', '"shape": [' + "9" * 5000 + ", "), INPUT,
         [WEIGHTS, "not valid JSON"]),

    Item(3, "negative offset", entry(Q, data_offsets=[-1, 16383]), INPUT, [WEIGHTS, Q, "[-1, 16383]"]),
    Item(3, "offset with a fraction", entry(Q, data_offsets=[0.0, 16384.0]), INPUT, [WEIGHTS, Q, "[0.0, 16384.0]"]),
    Item(3, "offsets past the end", entry(Q, data_offsets=[10**9, 10**9 + 16384]), INPUT,
         [WEIGHTS, Q, "truncated"]),
    Item(3, "offset beyond 64 bits", entry(Q, data_offsets=[2**64, 2**64 + 16384]), INPUT, [WEIGHTS, Q, "offsets"]),
    Item(3, "file longer than the last offset", appended(bytes(9), WEIGHTS), INPUT, [WEIGHTS, "after the last"]),

    Item(4, "blocks as I8", with_tensor(DOWN + "_blocks", "I8", 4, 64, 3, 16), INPUT,
         [WEIGHTS, DOWN + "_blocks", "found I8", "expected U8"]),
    Item(4, "blocks as F4", entry(DOWN + "_blocks", dtype="F4"), INPUT, [WEIGHTS, DOWN + "_blocks", "'F4'"]),
    Item(4, "zero dimension", with_tensor(Q, "BF16", 0, 64), INPUT, [WEIGHTS, Q, "[0, 64]"]),
    Item(4, "dimension true", entry(Q, shape=[True, 64]), INPUT, [WEIGHTS, Q, "[True, 64]"]),

    Item(5, "link to itself", link(WEIGHTS, WEIGHTS), INPUT, [WEIGHTS]),
    Item(5, "link to a device", link(WEIGHTS, "/dev/zero"), INPUT, [WEIGHTS, "not a regular file"]),
    Item(5, "link to nothing", link(WEIGHTS, "nowhere"), INPUT, []),
    Item(5, "model card that is a link out of the folder", both(write("README.md", "x"), moved_out("README.md")),
         INPUT, ["README.md", "link"]),
    Item(5, "tokenizer that is a link out of the folder", moved_out("tokenizer.json"), INPUT,
         ["tokenizer.json", "link"]),
    Item(5, "configuration that is a link out of the folder", moved_out("config.json"), INPUT,
         ["config.json", "link"]),
    Item(5, "pipe in place of the index", fifo_in_place_of(INDEX), INPUT, [INDEX, "not a regular file"], "sharded"),

    Item(6, "tensor in two shards", twice_in_shards, INPUT, [SHARDS[2], "another shard than the index says"],
         "sharded"),
    Item(6, "URL in the index", placed(NORM, "https://example.org/x.safetensors"), INPUT,
         [INDEX, NORM, "https://example.org", "plain file name"], "sharded"),
    Item(6, "absolute path of Windows", placed(NORM, "\\\\host\\x"), INPUT, [INDEX, NORM, "host"], "sharded"),
    Item(6, "device of Windows", placed(NORM, "nul.safetensors"), INPUT, [INDEX, NORM, "nul.safetensors"],
         "sharded"),
    Item(6, "shard that differs in case", placed(NORM, SHARDS[2].upper()), INPUT, [SHARDS[2].upper(), "missing"],
         "sharded"),
    legal(6, "wrong total_size", fields(INDEX, metadata={"total_size": 1}), "sharded"),
    legal(6, "model.safetensors beside shards", copied(SHARDS[0], WEIGHTS), "sharded"),
    Item(6, "index of 100,000 entries", many_entries, INPUT, ["ghost.", "missing"], "sharded"),
    Item(6, "index names a tensor twice", lambda f: write(INDEX, (f / INDEX).read_text().replace(
         f'"{NORM}"', f'"{NORM}": "x", "{NORM}"', 1))(f), INPUT, [INDEX, "twice"], "sharded"),

    legal(7, "BOM", with_bom("config.json")),
    legal(7, "list of architectures is empty", config(architectures=[])),
    Item(7, "no head_dim", config(head_dim=ABSENT), INPUT, ["config.json", "head_dim"]),
    Item(7, "experts do not match the tensors", config(num_local_experts=8), INPUT, [WEIGHTS, "expected [8, 64]"]),
    Item(7, "rope of another kind", config(rope_scaling={"rope_type": "longrope"}), UNSUPPORTED,
         ["config.json", "found longrope", "expected yarn"]),
    Item(7, "weights of GPTQ", quantised("gptq", bits=4), UNSUPPORTED, ["config.json", "gptq"]),
    Item(7, "weights of bitsandbytes", quantised("bitsandbytes", load_in_4bit=True), UNSUPPORTED,
         ["config.json", "bitsandbytes"]),
    Item(7, "a field occurs twice", lambda f: write("config.json", (f / "config.json").read_text().replace(
         "{", '{"head_dim": 64, ', 1))(f), INPUT, ["config.json", "twice"]),
    legal(7, "modules_to_not_convert differ", quantised("mxfp4", modules_to_not_convert=["lm_head"])),

    legal(8, "no chat template", remove("chat_template.jinja")),
    legal(8, "chat template of 10 MB", write("chat_template.jinja", "x" * 10_000_000)),
    legal(8, "hostile chat template", write("chat_template.jinja", HOSTILE_TEMPLATE)),
    Item(8, "generation_config.json is malformed", write("generation_config.json", '{"top_k": '), INPUT,
         ["generation_config.json", "not valid JSON"]),
    Item(8, "tokenizer of 300 MB", lambda f: os.truncate(f / "tokenizer.json", 300 << 20), INPUT,
         ["tokenizer.json", "too large"]),

    legal(9, "scales before blocks", reordered(lambda name: name.replace("_scales", "_0"))),
    Item(9, "rows that are no whole number of blocks", config(intermediate_size=80), INPUT,
         [WEIGHTS, "mlp.experts"]),
    Item(9, "odd number of gate and up rows", both(with_tensor(GATE_UP + "_blocks", "U8", 4, 191, 2, 16),
         with_tensor(GATE_UP + "_scales", "U8", 4, 191, 2)), INPUT, [WEIGHTS, GATE_UP, "[4, 191, 64]"]),
    Item(9, "down and gate swapped", renamed(lambda name: name.replace("gate_up_proj", "x").replace(
         "down_proj", "gate_up_proj").replace("x", "down_proj")), INPUT, [WEIGHTS, "proj", "expected"]),
    Item(9, "no biases", without(LAYER + "self_attn.q_proj.bias"), INPUT, [WEIGHTS, "q_proj.bias", "missing"]),
    Item(9, "no last layer", lambda f: without(*(n for n in read_header(f / WEIGHTS)[0] if n.startswith(LAYER)))(f),
         INPUT, [WEIGHTS, LAYER, "missing"]),
    Item(9, "more layers than configured", config(num_hidden_layers=1, layer_types=["full_attention"]), INPUT,
         [WEIGHTS, LAYER, "1 layers"]),
    Item(9, "one expert by itself", with_tensor(LAYER + "mlp.experts.0.down_proj.weight", "BF16", 64, 96), INPUT,
         [WEIGHTS, "down_proj"]),

    legal(10, "scale byte 0", number(DOWN + "_scales", 3, b"\0")),
    legal(10, "scale byte 254", number(DOWN + "_scales", 3, b"\xfe")),
    legal(10, "all-zero block", with_bytes(DOWN + "_blocks", ZEROS)),
    legal(10, "block of negative zeros", with_bytes(DOWN + "_blocks", MINUS_ZEROS)),
    legal(10, "subnormal BF16", number(Q, 7, SUBNORMAL)),
    legal(10, "NaN in BF16", number(Q, 7, b"\xc1\x7f")),
    legal(10, "infinity in BF16", number(Q, 7, b"\x80\xff")),
    Item(10, "scale bytes above 140 for FP16, as the model has them", intact, INPUT, [WEIGHTS, "65504"],
         options=["--experts", "f16"]),

    Item(11, "version 1", overwritten(4, struct.pack("<I", 1)), UNSUPPORTED, ["version 0x1"], "gguf"),
    Item(11, "version 4", overwritten(4, struct.pack("<I", 4)), UNSUPPORTED, ["version 0x4"], "gguf"),
    Item(11, "magic", overwritten(0, b"GGUX"), INPUT, ["not a checkpoint"], "gguf"),
    Item(11, "rank 0", rank_of_tensor(0), INPUT, ["ffn_down_exps", "rank", "found 0"], "gguf"),
    Item(11, "rank 2^32 - 1", rank_of_tensor(2**32 - 1), INPUT, ["rank", "found 4294967295"], "gguf"),
    Item(11, "negative dimension", dimension_of_tensor(2**64 - 96), INPUT, ["impossible shape"], "gguf"),
    Item(11, "dimension 0", dimension_of_tensor(0), INPUT, ["impossible shape"], "gguf"),
    Item(11, "dimension 2^60", dimension_of_tensor(2**60), INPUT, ["ffn_down_exps"], "gguf"),
    Item(11, "unknown type", type_of_tensor(4711), UNSUPPORTED, ["ffn_down_exps", "type", "4711"], "gguf"),
    Item(11, "MXFP4 under another type", type_of_tensor(8), INPUT, ["blk.0.ffn_down_exps", "overlap"], "gguf"),
    Item(11, "offset that is not aligned", offset_of_tensor(7), INPUT, ["not aligned", "offset 7"], "gguf"),
    Item(11, "offset beyond the file", offset_of_tensor(2**40), INPUT, ["truncated"], "gguf"),
    Item(11, "offset beyond 63 bits", offset_of_tensor(2**64 - 32), INPUT, ["truncated"], "gguf"),
    Item(11, "overlapping tensors", offset_of_tensor(0), INPUT, ["overlap"], "gguf"),
    Item(11, "array of 2^60 texts", tokens_array(8, 2**60), INPUT, ["truncated"], "gguf"),
    Item(11, "array of 2^61 numbers", tokens_array(10, 2**61), INPUT, ["truncated"], "gguf"),
    Item(11, "array of arrays", tokens_array(9, 2), UNSUPPORTED, ["nested array", "tokenizer.ggml.tokens"], "gguf"),
    Item(11, "array of an unknown type", tokens_array(99, 2), INPUT, ["metadata type 99"], "gguf"),
    Item(11, "alignment 0", aligned_to(0), INPUT, ["general.alignment", "found 0"], "gguf"),
    Item(11, "alignment 3", aligned_to(3), INPUT, ["general.alignment", "found 3"], "gguf"),
    Item(11, "alignment 2^31", aligned_to(2**31), INPUT, [], "gguf"),
    Item(11, "alignment of another type", aligned_to("32"), INPUT, ["alignment"], "gguf"),
    Item(11, "numbers that were rounded", encoded(output_weight="q8_0"), UNSUPPORTED,
         ["q8_0", "--allow-lossy-source"], "gguf", ["--dense", "bf16"]),
    Item(11, "cut in a key", cut_in_data_of(b"general.architecture"), INPUT, ["truncated"], "gguf"),
    Item(11, "cut in the directory", cut_in_data_of(b"blk.1.attn_k.weight"), INPUT, ["truncated"], "gguf"),
    Item(11, "part of another model", part_of_another_model, INPUT, ["00002-of-00002"], "split"),

    Item(12, "file of 3 GB", three_gigabytes, INPUT, [GRAPH, "too large"], "onnx"),
    Item(12, "cut", cut(-1000, GRAPH), INPUT, [GRAPH, "damaged ONNX file"], "onnx"),
    Item(12, "location above", external("location", "../x"), INPUT, [GRAPH, "outside the folder", "'../x'"],
         "onnx"),
    Item(12, "absolute location", external("location", "/etc/passwd"), INPUT, [GRAPH, "outside the folder"],
         "onnx"),
    Item(12, "missing file", external("location", "x"), INPUT, ["missing"], "onnx"),
    Item(12, "link out of the folder", moved_out(DATA), INPUT, [DATA, "link"], "onnx"),
    Item(12, "hard link", hard_link(DATA), INPUT, [DATA, "hard link"], "onnx"),
    Item(12, "offset past the end", external("offset", str(10**12)), INPUT, [DATA, "truncated"], "onnx"),
    Item(12, "huge dimensions without data", changed_graph(huge_dims), INPUT, [GRAPH, "does not fit"], "onnx"),
    legal(12, "unknown domain", changed_graph(foreign_node), "onnx"),
    legal(12, "unsupported opset", changed_graph(far_opset), "onnx"),
    legal(12, "graphs in graphs", nested(5_000), "onnx"),
    Item(12, "metadata nested deeply", lambda f: changed_graph(lambda m: setattr(next(p for p in m.metadata_props
         if p.key == "gptoss_convert"), "value", "[" * 100_000))(f), INPUT, [GRAPH, "damaged metadata"], "onnx"),
]
# fmt: on

IN_OTHER_TABLES = {
    1: ["empty file", "7 bytes", "header length 0", "header length beyond the file", "header length 2^63",
        "header length 2^64 - 1", "truncated in the header", "truncated in the data"],
    2: ["header is not UTF-8", "header is not JSON", "header is a list", "header is nested deeply",
        "header key occurs twice"],
    3: ["offsets reversed", "overlapping tensors", "hole between tensors", "offset is no number"],
    4: ["negative dimension", "dimension with a fraction", "shape overflows 64 bits", "rank 9", "unknown dtype",
        "offsets do not fit the shape", "tensor without numbers"],
    5: ["Git LFS pointer", "web page", "gzip file", "folder in place of the file"],
    6: ["shards without index", "missing shard", "tensor not in the index", "index leaves the folder",
        "index names an absolute path", "index names a drive", "index names NUL"],
    7: ["no config.json", "empty config.json", "wrong model_type", "model without layers",
        "a thousand million layers", "layer_types too short", "no window", "other quantization method"],
    8: ["no tokenizer", "tokenizer is not JSON", "vocabulary smaller than the tokenizer", "token id used twice",
        "chat template of 17 MB", "generation_config.json is not JSON"],
    9: ["blocks without scales", "scales without blocks", "blocks of 8 bytes", "one tensor with fewer experts",
        "OpenAI's names under a Hugging Face configuration", "experts in canonical orientation", "LoRA adapter",
        "missing sinks", "extra tensor", "missing last layer"],
    10: ["scale byte 255", "scale byte 253 with a large code as F32", "NaN for Q8_0", "NaN for MXFP4"],
    11: ["big endian", "version 2", "2^63 tensors", "2^40 metadata keys", "metadata key of 2^60 bytes",
         "metadata key twice", "tensor twice in GGUF", "second part is missing", "second part is the first",
         "other architecture", "cut in the header", "cut in the vocabulary", "cut in the data"],
}  # fmt: skip
"""Rows of `test_bad_inputs` by group, which are items of the list too."""
