"""What is fuzzed: for every kind of file that strangers write, the code that reads it.

A target puts a sound model into a folder and replaces one file of it by the input. Where a length or a checksum
would turn most inputs away at once, that is made to fit, so that what comes after it is reached as well.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from os import truncate, utime
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gptoss_convert.assets import Assets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.adapter import with_adapter
from gptoss_convert.errors import GptossConvertError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf.container import read_header as read_gguf_header
from gptoss_convert.formats.model_card import describe_folder
from gptoss_convert.formats.onnx import metadata
from gptoss_convert.formats.onnx.container import read_model
from gptoss_convert.formats.peft import open_adapter
from gptoss_convert.formats.safetensors import read_folder, read_header
from gptoss_convert.formats.scale_sidecar import SIDECAR_NAME, read_sidecar
from gptoss_convert.formats.storage import FileRef
from gptoss_convert.formats.tokenizer_files import tokenizer_files
from gptoss_convert.formats.tokenizer_json import find_tokenizer
from gptoss_convert.inspection import inspect_checkpoint
from gptoss_convert.recipes.check import check_manifest
from gptoss_convert.recipes.recipe import read_recipe
from gptoss_convert.recipes.state import STATE, read_state
from gptoss_convert.report import render_report
from gptoss_convert.report.document import read_document
from gptoss_convert.verify.declaration import read_declaration
from gptoss_convert.verify.pack.reader import read_pack
from gptoss_convert.verify.policy import read_policy
from gptoss_convert.verify.prompts import load_prompts
from gptoss_convert.verify.template_sandbox import render
from gptoss_convert.verify.text_encoder import TextEncoder
from tests.cli.command import run_here
from tests.support.adapters import pair, write_adapter
from tests.support.bounds import bounded
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.conversions import make_checkpoint
from tests.support.packs import make_pack, read_arrays, write_arrays
from tests.support.tokenizers import write_small_tokenizer
from tests.unit.formats.gguf import models

SHAPE = Shape(layers=1, hidden=32, intermediate=32, experts=2, experts_per_token=2, heads=2, kv_heads=1, vocab=288)
TOKENS = 260
HOLE = 1 << 20
"""Bytes of zeros after an input, in place of numbers that a sound header asks for."""
LONGEST_ERROR = 2000
"""Characters of an error, whatever the input."""

_TIMES = count(1)

Reader = Callable[[bytes], object]
"""Reads one input; an error that the package raises on purpose is an answer."""


@dataclass(frozen=True)
class Target:
    """A reader, and inputs to begin with."""

    read: Reader
    seeds: tuple[bytes, ...]

    def run(self, data: bytes, *, extra: int = HOLE) -> None:
        """Read one input.

        Raises:
            Exception: the reader crashed, or took more memory or time than it may.
        """
        with bounded(len(data) + extra):
            try:
                self.read(data)
            except GptossConvertError as error:
                line = str(error)
                assert line.isprintable(), line
                assert len(line) < LONGEST_ERROR, line
                json.dumps(error.as_dict(), allow_nan=False)


def _put(path: Path, data: bytes, *, hole: int = 0) -> Path:
    """Write a file that no cache takes for the one before it."""
    path.write_bytes(data)
    if hole:
        truncate(path, len(data) + hole)
    stamp = next(_TIMES)
    utime(path, ns=(stamp, stamp))
    return path


def _huggingface(folder: Path) -> Path:
    write_huggingface(folder, SHAPE)
    write_small_tokenizer(folder, TOKENS)
    return folder


def _look(checkpoint: Checkpoint) -> None:
    """Read whatever `inspect` and the writers of small files do, and the first row of every tensor."""
    inspect_checkpoint(checkpoint).as_dict()
    for problem in checkpoint.problems:
        assert str(problem).isprintable()
    for tensor in checkpoint.tensors.values():
        tensor.read(0, 1)
    if checkpoint.tokenizer is not None:
        tokenizer_files(checkpoint.tokenizer.vocabulary())


def _in_model(folder: Path, name: str, *, more: Iterable[bytes] = ()) -> Target:
    """Open the model in `folder` with the input in place of the file `name`."""
    path = folder / name

    def read(data: bytes) -> None:
        _put(path, data)
        _look(open_checkpoint(folder))

    return Target(read, (*([path.read_bytes()] if path.exists() else []), *more))


def safetensors(folder: Path) -> Target:
    """A safetensors file."""
    source = write_huggingface(folder, SHAPE)
    path = source / "model.safetensors"
    whole = path.read_bytes()
    return Target(
        lambda data: read_header(FileRef.at(_put(path, data))),
        (whole[:4000], (2).to_bytes(8, "little") + b"{}", b""),
    )


def safetensors_header(folder: Path) -> Target:
    """The header of a safetensors file, with the right length before it and zeros after it."""
    source = _huggingface(folder)
    path = source / "model.safetensors"
    whole = path.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    size = len(whole) - 8 - len(header)

    def read(data: bytes) -> None:
        _put(path, len(data).to_bytes(8, "little") + data, hole=size)
        _look(open_checkpoint(folder))

    small = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return Target(read, (header, small))


def safetensors_index(folder: Path) -> Target:
    """model.safetensors.index.json."""
    write_huggingface(folder, SHAPE, shards=2)
    path = folder / "model.safetensors.index.json"
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        _put(path, data)
        read_folder(folder)

    return Target(read, (seed,))


def gguf_header(folder: Path) -> Target:
    """A GGUF file as a container; zeros follow an input that ends with one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = models.write(folder / "model.gguf", models.random_values())
    whole = path.read_bytes()
    header_end = _header_end(whole)

    def read(data: bytes) -> None:
        header = read_gguf_header(FileRef.at(_put(path, data, hole=HOLE if data.endswith(b"\0") else 0)))
        for value in header.metadata.values():
            if value.is_array:
                list(value.value)

    return Target(read, (whole[:header_end] + b"\0", whole[:24]))


def gguf(folder: Path) -> Target:
    """A GGUF file as a model, with zeros after what is given; tokenizer files are made of its vocabulary."""
    path = folder / "model.gguf"
    source = _huggingface(folder / "source")
    assert run_here("to-gguf", source, "-o", path, "-q").exit_code == 0
    whole = path.read_bytes()
    plain = models.write(folder / "plain.gguf", models.random_values()).read_bytes()

    def read(data: bytes) -> None:
        _put(path, data, hole=HOLE)
        _look(open_checkpoint(path))

    return Target(read, tuple(content[: _header_end(content)] for content in (whole, plain)))


def _header_end(content: bytes) -> int:
    """Return about where the data of a small GGUF file begin: after the name of its last tensor."""
    return content.rindex(b".weight") + 64


def onnx_container(folder: Path) -> Target:
    """An ONNX file, without nodes, as a model."""
    source = _huggingface(folder / "source")
    assert run_here("to-onnx", source, "-o", folder / "model", "-q", "--target", "cpu").exit_code == 0
    path = folder / "model/model.onnx"
    model = onnx.load(path, load_external_data=False)
    for name in ("node", "input", "output", "value_info"):
        model.graph.ClearField(name)
    small = onnx.ModelProto()
    small.ir_version = 10
    small.graph.initializer.add(name="a", data_type=1, dims=[2], data_location=1)
    entry = small.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../x"

    def read(data: bytes) -> None:
        found = read_model(FileRef.at(_put(path, data)))
        for array in found.initialisers.values():
            with suppress(GptossConvertError):
                array.place(FileRef.at(path))
        _look(open_checkpoint(folder / "model"))

    return Target(read, (model.SerializeToString(), small.SerializeToString()))


def onnx_metadata(folder: Path) -> Target:
    """What the metadata of an ONNX file say about its weights, and the configuration in them."""
    source = _huggingface(folder / "source")
    assert run_here("to-onnx", source, "-o", folder / "model", "-q", "--target", "cpu").exit_code == 0
    path = folder / "model/model.onnx"
    model = onnx.load(path, load_external_data=False)
    for name in ("node", "input", "output", "value_info"):
        model.graph.ClearField(name)
    (index,) = (index for index, entry in enumerate(model.metadata_props) if entry.key == metadata.METADATA_KEY)
    seed, sound = model.metadata_props[index].value.encode(), model.SerializeToString()

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "ignore")
        metadata.parse(text, path)
        changed = onnx.ModelProto.FromString(sound)  # protobuf frees what was replaced with the whole message
        changed.metadata_props[index].value = text
        _put(path, changed.SerializeToString())
        _look(open_checkpoint(folder / "model"))

    return Target(read, (seed,))


def onnx_data(folder: Path) -> Target:
    """Name, offset and length of external data."""
    source = _huggingface(folder / "source")
    assert run_here("to-onnx", source, "-o", folder / "model", "-q", "--target", "cpu").exit_code == 0
    path = folder / "model/model.onnx"
    model = onnx.load(path, load_external_data=False)
    for name in ("node", "input", "output", "value_info"):
        model.graph.ClearField(name)
    index = next(index for index, item in enumerate(model.graph.initializer) if item.external_data)
    entries = model.graph.initializer[index].external_data
    seed = "\n".join(f"{entry.key}={entry.value}" for entry in entries).encode()
    model.graph.initializer[index].ClearField("external_data")
    sound = model.SerializeToString()

    def read(data: bytes) -> None:
        changed = onnx.ModelProto.FromString(sound)  # protobuf frees what was replaced with the whole message
        for line in data.decode("utf-8", "ignore").split("\n"):
            key, _, value = line.partition("=")
            changed.graph.initializer[index].external_data.add(key=key, value=value)
        _put(path, changed.SerializeToString())
        _look(open_checkpoint(folder / "model"))

    return Target(read, (seed,))


def config(folder: Path) -> Target:
    """config.json of a Hugging Face folder."""
    _huggingface(folder)
    sound = json.loads((folder / "config.json").read_bytes())
    kinds: list[Mapping[str, Any]] = [
        {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors", "version": "0.14.0", "format": "mxfp4-pack-quantized",
         "config_groups": {"group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 32}, "targets": ["Linear"]}}},
    ]  # fmt: skip
    more = [json.dumps(sound | {"quantization_config": kind}).encode() for kind in kinds]
    new = dict(sound)
    new["rope_parameters"] = new.pop("rope_scaling") | {"rope_theta": new.pop("rope_theta")}
    mlx = sound | {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    return _in_model(folder, "config.json", more=[*more, json.dumps(new).encode(), json.dumps(mlx).encode()])


def openai_config(folder: Path) -> Target:
    """config.json in OpenAI's layout."""
    write_original(folder, SHAPE)
    write_small_tokenizer(folder, TOKENS)
    return _in_model(folder, "config.json")


def tokenizer(folder: Path) -> Target:
    """tokenizer.json, from which files are written anew and an encoder is made."""
    _huggingface(folder)
    path = folder / "tokenizer.json"
    assets = Assets(folder)
    seed = json.loads(path.read_bytes())
    compact = json.dumps(seed, separators=(",", ":")).encode()
    seed["model"]["merges"] = [" ".join(merge) for merge in seed["model"]["merges"][:3]]

    def read(data: bytes) -> None:
        _put(path, data)
        source = find_tokenizer(assets, {})
        assert source is not None
        tokenizer_files(source.vocabulary())
        TextEncoder(source, SHAPE.vocab).encode(["caf\u00e9 12"])

    return Target(read, (compact, json.dumps(seed, separators=(",", ":")).encode()))


def tokenizer_config(folder: Path) -> Target:
    """tokenizer_config.json."""
    _huggingface(folder)
    named = {"chat_template": [{"name": "default", "template": "x"}], "bos_token": {"content": "<|startoftext|>"}}
    return _in_model(
        folder, "tokenizer_config.json", more=[json.dumps(named).encode(), b'{"add_bos_token": false}']
    )


def model_card(folder: Path) -> Target:
    """README.md, of which the header is YAML."""
    _huggingface(folder)
    path = folder / "README.md"
    seeds = (
        b"---\nlicense: apache-2.0\ntags: [a, b]\nlanguage:\n- en\nbase_model: me/base\nname: x\n---\n# Model\n",
        b"---\na: &a [x, x]\nb: &b [*a, *a]\n<<: {c: d}\ntags: [*b]\n---\n",
    )

    def read(data: bytes) -> None:
        _put(path, data)
        describe_folder(Assets(folder), {}, 10)

    return Target(read, seeds)


def generation_config(folder: Path) -> Target:
    """generation_config.json."""
    _huggingface(folder)
    sampling = b'{"temperature": 0.5, "top_k": 40, "top_p": 0.9, "eos_token_id": [1, 2]}'
    return _in_model(folder, "generation_config.json", more=[sampling])


def adapter_config(folder: Path) -> Target:
    """adapter_config.json, merged into a model."""
    model = open_checkpoint(_huggingface(folder / "model"))
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    path = write_adapter(folder / "adapter", pair(module, (2, 32), (64, 2))) / "adapter_config.json"
    patterns = {"peft_type": "LORA", "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.\d+": 4},
                "use_rslora": True, "target_parameters": ["mlp.experts.down_proj"]}  # fmt: skip

    def read(data: bytes) -> None:
        _put(path, data)
        _look(with_adapter(model, open_adapter(path.parent)))

    return Target(read, (path.read_bytes(), json.dumps(patterns).encode()))


def adapter_header(folder: Path) -> Target:
    """The header of adapter_model.safetensors."""
    model = open_checkpoint(_huggingface(folder / "model"))
    modules = ("self_attn.q_proj", "mlp.experts", "mlp.experts.base_layer")
    shapes = (((2, 32), (64, 2)), ((4, 32), (32, 4)), ((4, 32), (64, 4)))
    tensors: dict[str, Any] = {}
    for module, (a, b) in zip(modules, shapes, strict=True):
        tensors |= pair(f"base_model.model.model.layers.0.{module}", a, b)
    tensors["base_model.model.lm_head.modules_to_save.weight"] = np.zeros((288, 32), np.float32)
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    path = write_adapter(folder / "adapter", tensors, target_parameters=targets) / "adapter_model.safetensors"
    whole = path.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    size = len(whole) - 8 - len(header)

    def read(data: bytes) -> None:
        _put(path, len(data).to_bytes(8, "little") + data, hole=size)
        _look(with_adapter(model, open_adapter(path.parent)))

    return Target(read, (header,))


def sidecar(folder: Path) -> Target:
    """The ZIP file that names scales."""
    source = write_huggingface(folder / "source", SHAPE)
    assert run_here("to-bf16", source, "-o", folder / "model", "-q").exit_code == 0
    path = folder / "model" / SIDECAR_NAME
    shapes = {f"model.layers.0.mlp.experts.{name}": (2, size, 32)
              for name, size in (("gate_up_proj", 64), ("down_proj", 32))}  # fmt: skip

    def read(data: bytes) -> None:
        for scales in read_sidecar(_put(path, data), shapes).values():
            scales.read(0, 2 * scales.rows)

    return Target(read, (path.read_bytes(),))


def prompts(folder: Path) -> Target:
    """A file of prompts, encoded with a tokenizer."""
    model = open_checkpoint(_huggingface(folder))
    path = folder / "prompts.jsonl"
    seeds = (
        b'{"text": "hello", "name": "a", "kind": "code"}\n{"ids": [1, 2, 3], "max_tokens": 2}\n',
        b'{"messages": [{"role": "user", "content": "hi"}]}\n',
        (
            b'{"messages": [{"role": "developer", "tools": [{"name": "f", "description": "d", "parameters": '
            b'{"type": "object", "properties": {"x": {"type": "string", "enum": ["a"]}}}}], "content": "c"}, '
            b'{"role": "assistant", "channel": "analysis", "content": "hm"}]}\n'
        ),
    )

    def read(data: bytes) -> None:
        if b"template" not in data:  # would start a process
            load_prompts(_put(path, data), model.tokenizer, model.config)

    return Target(read, seeds)


def policy(folder: Path) -> Target:
    """A policy in TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "policy.toml"
    whole = (Path(__file__).parents[2] / "verify/policy.toml").read_bytes()

    def read(data: bytes) -> None:
        read_policy(_put(path, data)).changes()

    return Target(read, (whole, b"version = 1\n[profiles.exact]\nmean_kl = 1e-3\n[evidence.quick]\nprompts = 3\n"))


def manifest(folder: Path) -> Target:
    """The manifest beside an artifact, as `verify` reads it."""
    source = _huggingface(folder / "source")
    assert run_here("to-gguf", source, "-o", folder / "model.gguf", "-q", "--manifest").exit_code == 0
    (path,) = folder.glob("*.json")
    artifact = open_checkpoint(folder / "model.gguf")

    def read(data: bytes) -> None:
        _put(path, data)
        found = read_declaration(artifact)
        if found is not None:
            found.as_dict()

    return Target(read, (path.read_bytes(),))


def recipe(folder: Path) -> Target:
    """A recipe in TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.toml"
    seed = (
        b'version = 1\n[source]\npath = "model"\ntokenizer = "t"\n[verify]\nprompts = "quick"\nthreads = 2\n'
        b'[[artifacts]]\nto = "gguf"\noutput = "x.gguf"\nruntimes = ["llama.cpp"]\noptions = {experts = "mxfp4"}\n'
        b'[[artifacts]]\nname = "b"\nto = "bf16"\noutput = "bf16"\n'
    )
    return Target(lambda data: read_recipe(_put(path, data)), (seed,))


def _read_packs(folder: Path, data: bytes) -> None:
    """Open a pack, and read all of it."""
    opened = read_pack(_put(folder / "x.pack", data))
    _look_at_packed(opened.model)
    for name in opened.fingerprints:
        opened.samples(name)
    for run in opened.runs.values():
        recording = folder / "recording"
        shutil.rmtree(recording, ignore_errors=True)
        recording.mkdir()
        run.extract(recording)


def _look_at_packed(model: Checkpoint) -> None:
    if model.tokenizer is not None:
        tokenizer_files(model.tokenizer.vocabulary())


def pack(folder: Path) -> Target:
    """A reference pack; its distributions are extracted too."""
    place = folder / "listed.pack"
    make_pack(
        make_checkpoint(folder / "source", replace(SHAPE, vocab=512), fill="gauss", edge_blocks=False),
        place,
        top=20,
    )
    seed = place.read_bytes()
    return Target(lambda data: _read_packs(folder, data), (seed,))


def pack_facts(folder: Path) -> Target:
    """The JSON in a reference pack."""
    place = folder / "listed.pack"
    make_pack(
        make_checkpoint(folder / "source", replace(SHAPE, vocab=512), fill="gauss", edge_blocks=False),
        place,
        top=20,
    )
    arrays = read_arrays(place)

    def read(data: bytes) -> None:
        write_arrays(place, {**arrays, "facts": np.frombuffer(data, np.uint8)})
        _read_packs(folder, place.read_bytes())

    return Target(read, (arrays["facts"].tobytes(),))


def document(folder: Path) -> Target:
    """The document of a verification, and the reports that are made of it."""
    source = _huggingface(folder / "source")
    assert run_here("to-gguf", source, "-o", folder / "model.gguf", "-q").exit_code == 0
    seed = run_here("verify", source, folder / "model.gguf", "--weights", "--json", "-q").stdout.encode()
    path = folder / "document.json"

    def read(data: bytes) -> None:
        render_report(read_document(_put(path, data)))

    return Target(read, (_compact(seed),))


def state(folder: Path) -> Target:
    """The state that a build left."""
    source = _huggingface(folder / "model")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'version = 1\nsource.path = "{source.name}"\n[[artifacts]]\nto = "gguf"\noutput = "x.gguf"\n'
    )
    assert run_here("build", recipe, "-o", folder / "dist", "-q").exit_code == 0
    path = folder / "dist" / STATE

    def read(data: bytes) -> None:
        _put(path, data)
        read_state(path.parent).serialise()

    return Target(read, (_compact(path.read_bytes()),))


def _compact(data: bytes) -> bytes:
    """Return JSON without what does not matter: the fuzzer cuts what is longer than its inputs."""
    return json.dumps(json.loads(data), separators=(",", ":")).encode()


def build_manifest(folder: Path) -> Target:
    """The manifest of a build, as `check` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.gguf").write_bytes(b"GGUF")
    digest = sha256(b"GGUF").hexdigest()
    file = {"name": "x.gguf", "nbytes": 4, "sha256": digest}
    tool = {"name": "gptoss-convert", "version": "1"}
    seed = {"kind": "build", "manifest_version": 1, "tool": tool, "artifacts": [{"name": "x", "files": [file]}]}
    path = folder / "manifest.json"
    return Target(lambda data: check_manifest(_put(path, data)), (json.dumps(seed).encode(),))


def chat_template(folder: Path) -> Target:
    """A chat template, as the process that renders it does; loops that it may end by force are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"messages": [{"role": "user", "content": "hi"}], "tools": None, "add_generation_prompt": False}
    seeds = (
        b"{% for m in messages %}{{ m['role'] ~ m.content | tojson }}{% endfor %}",
        b"{% macro f(x) %}{{ x.y }}{% endmacro %}{{ f(messages) }}{{ strftime_now('%Y') }}",
        b"{% set ns = namespace(a=1) %}{% if ns.a is defined %}{{ raise_exception('no') }}{% endif %}",
        b"{{ ''.__class__.__mro__ }}{{ messages | attr('__init__') }}",
    )

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "ignore")
        if len(text) > 400 or any(word in text for word in ("range", "*", "join", "center", "indent", "<<")):
            return
        # A template can raise anything; that it is caught is what the process does, so nothing is learned of it.
        with suppress(Exception):
            render(text, variables, 10_000)

    return Target(read, seeds)


TARGETS: dict[str, Callable[[Path], Target]] = {
    target.__name__: target
    for target in (
        safetensors, safetensors_header, safetensors_index, gguf_header, gguf, onnx_container, onnx_metadata,
        onnx_data, config, openai_config, tokenizer, tokenizer_config, generation_config, model_card,
        adapter_config, adapter_header, sidecar, prompts, policy, recipe, manifest, chat_template,
        pack, pack_facts, document, state, build_manifest,
    )
}  # fmt: skip
"""By name; each takes an empty folder to work in."""


def prepared(name: str, folder: Path) -> Target:
    """Return the target of this name, ready to run in the new folder `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    return TARGETS[name](folder)
