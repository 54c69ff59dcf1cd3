"""`gptoss-convert inspect`."""

import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import run_here, run_process
from tests.cli.foreign import with_encodings
from tests.cli.samples import SHAPE, Kind, Samples
from tests.cli.schemas import INSPECTION, PROBLEM, schema
from tests.support import gguf_files
from tests.support.checkpoints import REAL_20B, Shape, write_huggingface, write_safetensors
from tests.support.conversions import make_checkpoint
from tests.support.foreign_layouts import QUARK, model_arrays, quark, write_folder
from tests.support.layouts import huggingface_tensors
from tests.support.tokenizers import DATA, write_small_tokenizer

PARAMETERS = sum(math.prod(tensor.shape) for tensor in huggingface_tensors(SHAPE, experts="bf16"))
ROLES = {
    "embedding", "unembedding", "norm", "attention", "attention bias", "attention sinks", "router", "experts",
    "expert bias",
}  # fmt: skip
KINDS: list[Kind] = ["huggingface", "sharded", "bf16", "original", "gguf", "split"]


def inspected(source: Path) -> Any:
    outcome = run_here("inspect", source, "--json")
    assert outcome.stderr == ""
    return json.loads(outcome.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_the_documented_keys_and_types(kind: Kind, samples: Samples) -> None:
    document = inspected(samples.path(kind))
    assert (
        schema(document | {"details": {}, "description": {"name": document["description"]["name"]}}) == INSPECTION
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_model_has_the_same_configuration_and_parameters(kind: Kind, samples: Samples) -> None:
    document, other = inspected(samples.path(kind)), inspected(samples.path("huggingface"))
    assert document["config"] == other["config"]
    assert document["parameters"] == PARAMETERS == sum(group["parameters"] for group in document["groups"])
    assert document["tokenizer"]["special"] == other["tokenizer"]["special"]
    assert document["tokenizer"]["chat_templates"] == other["tokenizer"]["chat_templates"]


@pytest.mark.parametrize(
    ("kind", "format_name", "title", "files", "experts"),
    [
        ("huggingface", "huggingface", "Hugging Face safetensors", 1, "mxfp4"),
        ("sharded", "huggingface", "Hugging Face safetensors", 3, "mxfp4"),
        ("bf16", "huggingface", "Hugging Face safetensors", 1, "bf16"),
        ("original", "openai", "OpenAI original safetensors", 1, "mxfp4"),
        ("gguf", "gguf", "GGUF", 1, "mxfp4"),
        ("split", "gguf", "GGUF", 2, "mxfp4"),
    ],
)
def test_format_files_and_encodings(
    kind: Kind, format_name: str, title: str, files: int, experts: str, samples: Samples
) -> None:
    document = inspected(samples.path(kind))
    assert (document["format"], document["title"], document["files"]) == (format_name, title, files)
    encodings = {group["role"]: group["encoding"] for group in document["groups"]}
    assert encodings.keys() == ROLES
    assert encodings["experts"] == experts
    assert encodings["embedding"] == encodings["unembedding"] == encodings["attention"] == "bf16"


def test_remarks_are_said_and_are_no_problems(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, SHAPE)
    write_folder(folder, SHAPE, quark(model_arrays(SHAPE)), quantization=QUARK)
    outcome = run_here("inspect", folder)
    remarks = inspected(folder)["remarks"]
    assert len(remarks) == 2
    assert all(f"remark: {remark}\n" in outcome.stdout for remark in remarks)
    assert "no problems found" in outcome.stdout


def test_bytes_are_those_of_the_stored_tensors(samples: Samples) -> None:
    stored = sum(tensor.nbytes for tensor in huggingface_tensors(SHAPE))
    assert inspected(samples.path("huggingface"))["nbytes"] == stored


@pytest.mark.parametrize(
    ("size", "layers", "experts", "parameters", "active"),
    [("20b", 24, 32, 20.91, 3.61), ("120b", 36, 128, 116.83, 5.13)],
)
def test_parameters_of_the_real_models_are_the_published_ones(
    size: str, layers: int, experts: int, parameters: float, active: float, tmp_path: Path
) -> None:
    """The numbers, in thousand millions, are those of OpenAI's model card (arXiv:2508.10925, table 1)."""
    shutil.copy(DATA / size / "config.json", tmp_path)
    shape = Shape(**{**vars(REAL_20B), "layers": layers, "experts": experts})
    write_header_alone(tmp_path / "model.safetensors", shape)
    document = inspected(tmp_path)
    assert round(document["parameters"] / 1e9, 2) == parameters
    assert round(document["active_parameters"] / 1e9, 2) == active


def write_header_alone(path: Path, shape: Shape) -> None:
    """Write a safetensors file whose data are a hole, which takes no space on the disk."""
    offsets, end = {}, 0
    for tensor in huggingface_tensors(shape):
        offsets[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    header = json.dumps(offsets).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + end)


def test_table_shows_the_facts(samples: Samples) -> None:
    source = samples.path("huggingface")
    outcome = run_here("inspect", source)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    lines = outcome.stdout.splitlines()
    assert lines[0] == f"{source}: Hugging Face safetensors, 1 file(s) with tensors"
    facts = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in lines[: lines.index("Tensors")]}
    assert facts["layers"] == "2 (1 with a window of 128)"
    assert facts["experts"] == "4, 4 per token"
    assert facts["context"] == "131072 (YaRN 32 x 4096)"
    assert facts["tokenizer"] == "501 tokens (21 control), 256 merges, 11 padding rows"
    assert lines[-1] == "no problems found"


def test_foreign_encodings_are_named(tmp_path: Path) -> None:
    encodings = {
        "token_embd.weight": "Q4_K",
        "output.weight": "Q6_K",
        "blk.0.attn_q.weight": "IQ4_XS",
        "blk.0.attn_output.weight": "Q5_1",
        "blk.0.ffn_down_exps.weight": "Q4_0",
    }
    document = inspected(foreign(tmp_path, encodings))
    assert document["problems"] == []
    found = {(group["role"], group["encoding"]) for group in document["groups"]}
    assert found >= {
        ("embedding", "q4_k"),
        ("unembedding", "q6_k"),
        ("attention", "iq4_xs"),
        ("attention", "q5_1"),
        ("attention", "bf16"),
        ("experts", "q4_0"),
        ("experts", "mxfp4"),
    }


def foreign(folder: Path, encodings: dict[str, str]) -> Path:
    """Write a GGUF file with rows of 256, the block of the K-quants, and `encodings` by tensor."""
    write_small_tokenizer(folder / "model")
    write_huggingface(folder / "model", Shape(layers=1, hidden=256, intermediate=256))
    assert run_here("to-gguf", folder / "model", "-o", folder / "ours.gguf").exit_code == 0
    return with_encodings(folder / "ours.gguf", folder / "foreign.gguf", encodings)


def test_foreign_encodings_are_copied(tmp_path: Path) -> None:
    source = foreign(tmp_path, {"output.weight": "Q6_K"})
    outcome = run_here("to-gguf", source, "-o", tmp_path / "x.gguf")
    assert outcome.exit_code == 0, outcome.stderr
    assert gguf_files.tensors(tmp_path / "x.gguf") == gguf_files.tensors(source)


def test_foreign_encodings_are_decoded_with_permission(tmp_path: Path) -> None:
    source = foreign(tmp_path, {"output.weight": "Q6_K"})
    arguments: list[str | Path] = ["to-gguf", source, "-o", tmp_path / "x.gguf", "--dense", "f32"]
    outcome = run_here(*arguments)
    assert outcome.exit_code == 4
    assert "lm_head.weight" in outcome.stderr
    assert "q6_k" in outcome.stderr
    assert "--allow-lossy-source" in outcome.stderr
    assert run_here(*arguments, "--allow-lossy-source").exit_code == 0
    found, expected = (gguf_files.dequantised(path) for path in (tmp_path / "x.gguf", source))
    assert (found["output.weight"] == expected["output.weight"]).all()


def broken(samples: Samples, folder: Path) -> Path:
    """Return a model whose configuration has a layer more than its weights."""
    return with_layers(samples.copy("huggingface", folder), 3)


def with_layers(source: Path, layers: int) -> Path:
    """Let the configuration of a model state another number of layers."""
    config = json.loads((source / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_problems_are_listed_and_exit_1(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("inspect", broken(samples, tmp_path))
    problems = [line for line in outcome.stdout.splitlines() if line.startswith("problem: ")]
    assert outcome.exit_code == 1
    assert len(problems) == 17
    assert all("tensor is missing" in line and "model.layers.2." in line for line in problems)


def test_problems_in_json_have_documented_keys(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("inspect", broken(samples, tmp_path), "--json")
    problems = json.loads(outcome.stdout)["problems"]
    assert outcome.exit_code == 1
    assert {json.dumps(schema(problem)) for problem in problems} == {json.dumps(PROBLEM)}


def test_a_model_without_tokenizer_is_a_problem(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "tokenizer.json").unlink()
    document = inspected(source)
    assert document["tokenizer"] is None
    assert [problem["what"] for problem in document["problems"]] == ["no tokenizer beside the weights"]


def test_output_does_not_depend_on_the_hash_seed(samples: Samples, tmp_path: Path) -> None:
    source = with_layers(samples.copy("huggingface", tmp_path), 1)
    outputs = {run_process("inspect", source, env={"PYTHONHASHSEED": seed}).stdout for seed in "123"}
    assert len(outputs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_model_has_the_same_hash(kind: Kind, samples: Samples) -> None:
    outcome = run_here("inspect", samples.path(kind), "--hash", "--json")
    expected = run_here("inspect", samples.path("huggingface"), "--hash", "--json")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    document = json.loads(outcome.stdout)
    assert document["hash"] == json.loads(expected.stdout)["hash"]
    assert document["hash"].keys() == {"model", "tensors"}
    assert len(document["hash"]["tensors"]) == 17 * SHAPE.layers + 3
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in document["hash"]["tensors"].values())


def test_hash_of_a_model_is_that_of_the_listed_tensors(samples: Samples) -> None:
    document = json.loads(run_here("inspect", samples.path("gguf"), "--hash", "--json").stdout)["hash"]
    listing = "".join(f"{value}  {name}\n" for name, value in sorted(document["tensors"].items()))
    assert document["model"] == hashlib.sha256(listing.encode()).hexdigest()


def test_table_shows_the_hash(samples: Samples) -> None:
    outcome = run_here("inspect", samples.path("gguf"), "--hash")
    expected = json.loads(run_here("inspect", samples.path("gguf"), "--hash", "--json").stdout)["hash"]["model"]
    (line,) = (line for line in outcome.stdout.splitlines() if line.startswith("canonical hash "))
    assert line.split() == ["canonical", "hash", expected]


def test_unsound_models_are_not_hashed(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("inspect", broken(samples, tmp_path), "--hash", "--json")
    document = json.loads(outcome.stdout)
    assert outcome.exit_code == 1
    assert document["hash"] is None
    assert len(document["problems"]) == 17


def test_encodings_without_codec_are_not_hashed(tmp_path: Path) -> None:
    outcome = run_here("inspect", foreign(tmp_path, {"output.weight": "Q8_1"}), "--hash")
    assert outcome.exit_code == 4
    assert "lm_head.weight" in outcome.stderr
    assert "q8_1" in outcome.stderr


def test_no_tensor_data_is_read(samples: Samples, tmp_path: Path) -> None:
    """With every scale 255, reading any expert would be an error."""
    source = samples.copy("huggingface", tmp_path)
    path = source / "model.safetensors"
    entries = [
        (tensor.name, tensor.dtype, tensor.shape, b"\xff" * tensor.nbytes) for tensor in huggingface_tensors(SHAPE)
    ]
    write_safetensors(path, entries)
    assert run_here("inspect", source).exit_code == 0
    assert run_here("inspect", source, "--hash").exit_code == 3
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--dry-run").exit_code == 0
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf").exit_code == 3
