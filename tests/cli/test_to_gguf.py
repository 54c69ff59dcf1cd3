"""`gptoss-convert to-gguf`: what it plans, what it writes, what it says."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.cli.command import Outcome, run_here
from tests.cli.foreign import with_encodings
from tests.cli.samples import SHAPE, Kind, Samples
from tests.cli.schemas import PLAN, schema
from tests.support.adapters import LAYER, pair, write_adapter
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer

RUNS: list[tuple[Kind, list[str]]] = [
    ("huggingface", []),
    ("huggingface", ["--dense", "q8_0", "--experts", "bf16"]),
    ("huggingface", ["--split-max-size", "50KB"]),
    ("bf16", ["--experts", "mxfp4", "--tensor-type", "blk.1.*_exps.weight=bf16"]),
    ("original", ["--dense", "f32", "--split-max-size", "1"]),
    ("split", []),
]


def planned(*arguments: str | Path) -> Any:
    outcome = run_here("to-gguf", *arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def written(path: Path) -> list[dict[str, object]]:
    """Return the tensors of a GGUF file as gguf-py reads them, in the terms of a plan."""
    return [
        {
            "name": tensor.name,
            "shape": [int(size) for size in reversed(tensor.shape)],
            "encoding": tensor.tensor_type.name.lower(),
            "offset": tensor.data_offset,
            "nbytes": int(tensor.n_bytes),
        }
        for tensor in gguf.GGUFReader(path).tensors
    ]


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_dry_run_lists_the_tensors_that_the_run_writes(
    kind: Kind, options: list[str], samples: Samples, tmp_path: Path
) -> None:
    arguments = [str(samples.path(kind)), "-o", str(tmp_path / "x.gguf"), *options]
    plan = planned(*arguments, "--dry-run")
    assert run_here("to-gguf", *arguments).exit_code == 0

    for index, file in enumerate(plan["files"]):
        path = Path(file["path"])
        tensors = [tensor for tensor in plan["tensors"] if tensor["file"] == index]
        facts = [
            {key: tensor[key] for key in ("name", "shape", "encoding", "offset", "nbytes")} for tensor in tensors
        ]
        assert sorted(facts, key=lambda tensor: tensor["offset"]) == written(path)
        assert path.stat().st_size == file["nbytes"]
    assert {file["path"] for file in plan["files"]} == {str(path) for path in tmp_path.iterdir()}
    assert plan["nbytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "options"), RUNS[:3])
def test_json_of_a_run_is_that_of_its_dry_run_with_report_and_time(
    kind: Kind, options: list[str], samples: Samples, tmp_path: Path
) -> None:
    arguments = [str(samples.path(kind)), "-o", str(tmp_path / "x.gguf"), *options]
    plan = planned(*arguments, "--dry-run")
    result = planned(*arguments)
    assert result.pop("seconds") >= 0
    report = result.pop("report")
    assert result == plan
    assert [tensor["name"] for tensor in report["tensors"]] == list(
        dict.fromkeys(t["source"] for t in plan["tensors"])
    )
    assert schema(plan) == PLAN


@pytest.mark.parametrize("options", [[], ["--json"], ["--split-max-size", "50KB"], ["--force"]])
def test_dry_run_writes_nothing(options: list[str], samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--dry-run", *options)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_dry_run_shows_every_tensor_and_what_happens_to_it(samples: Samples, tmp_path: Path) -> None:
    source = samples.path("huggingface")
    outcome = run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--dense", "q8_0", "--dry-run")
    rows = {line.split()[0]: line.split()[1:] for line in outcome.stdout.splitlines() if " x " in line}
    assert rows["token_embd.weight"][:6] == ["512", "x", "64", "bf16", "q8_0", "lossy"]
    assert rows["blk.1.ffn_down_exps.weight"][5:8] == ["mxfp4", "mxfp4", "byte-exact"]
    assert rows["blk.0.ffn_gate_inp.weight"][3:6] == ["bf16", "f32", "value-exact"]


def test_split_files_keep_to_the_limit_and_llama_cpps_names(samples: Samples, tmp_path: Path) -> None:
    plan = planned(samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--split-max-size", "80KB")
    count = len(plan["files"])
    assert count > 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"x-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)
    ]
    for index in range(count):
        sizes = [tensor["nbytes"] for tensor in plan["tensors"] if tensor["file"] == index]
        assert sum(sizes) <= 80_000 or len(sizes) == 1


def test_split_files_know_their_place(samples: Samples, tmp_path: Path) -> None:
    plan = planned(samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--split-max-size", "80KB")
    for index, path in enumerate(sorted(tmp_path.iterdir())):
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items() if name.startswith("split.")}
        assert values == {
            "split.no": index,
            "split.count": len(plan["files"]),
            "split.tensors.count": len(plan["tensors"]),
        }


def test_a_limit_that_everything_fits_gives_one_file(samples: Samples, tmp_path: Path) -> None:
    planned(samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--split-max-size", "1GB")
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize(
    "options",
    [["--jobs", "1"], ["--jobs", "64"], ["--max-memory", "512KiB"], ["--max-memory", "1MiB", "--jobs", "3"]],
)
@pytest.mark.parametrize("kind", ["huggingface", "bf16"])
def test_jobs_and_memory_do_not_change_a_byte(
    kind: Kind, options: list[str], samples: Samples, tmp_path: Path
) -> None:
    for name, extra in (("a.gguf", []), ("b.gguf", options)):
        assert run_here("to-gguf", samples.path(kind), "-o", tmp_path / name, *extra).exit_code == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_run_says_what_it_wrote(samples: Samples, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", output, "--experts", "f32")
    first, *others = outcome.stdout.splitlines()
    assert first.startswith(f"{output}  {output.stat().st_size} bytes")
    assert "loss: value-exact" in others
    assert outcome.stderr.startswith("done in ")


def test_a_run_says_what_it_could_not_store_as_asked(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path / "model")
    write_huggingface(tmp_path / "model", Shape(heads=3, kv_heads=3, head_dim=16))
    outcome = run_here("to-gguf", tmp_path / "model", "-o", tmp_path / "x.gguf", "--dense", "q8_0")
    assert "note: 2 tensors are not stored as asked: blk.0.attn_output.weight: rows of 48" in outcome.stdout


@pytest.mark.parametrize("option", ["--force", "--dry-run", "--json", "--no-progress"])
def test_error_is_the_same_line_with_every_option(option: str, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", tmp_path, "-o", tmp_path / "x.gguf", option)
    assert outcome.exit_code == 3
    assert len(outcome.stderr.splitlines()) == 1
    assert outcome.stderr.startswith("error: not a checkpoint that can be read")


def test_error_in_json_has_documented_keys_and_the_exit_code(tmp_path: Path) -> None:
    outcome = run_here("to-gguf", tmp_path, "-o", tmp_path / "x.gguf", "--json")
    assert json.loads(outcome.stdout) == {
        "error": "InputError",
        "what": "not a checkpoint that can be read",
        "file": str(tmp_path),
        "tensor": None,
        "found": None,
        "expected": "a folder with config.json and safetensors files, a GGUF file, or an ONNX folder",
        "hint": None,
        "exit_code": 3,
    }


def test_tokenizer_of_another_folder(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    (source / "tokenizer.json").unlink()
    options = ("--tokenizer", samples.path("sharded"), "-q")
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", *options) == Outcome(0, "", "")
    tokens = gguf.GGUFReader(tmp_path / "x.gguf").get_field("tokenizer.ggml.tokens")
    assert tokens is not None
    assert len(tokens.contents()) == SHAPE.vocab


def test_source_folder_may_have_a_name_that_is_not_utf8(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path).rename(tmp_path / "gpt\udcff")
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "-q") == Outcome(0, "", "")


def test_config_with_a_byte_order_mark(samples: Samples, tmp_path: Path) -> None:
    source = samples.copy("huggingface", tmp_path)
    path = source / "config.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert run_here("inspect", source).exit_code == 0
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "-q") == Outcome(0, "", "")


def test_an_adapter_is_merged_on_the_way(samples: Samples, tmp_path: Path) -> None:
    columns, rows = SHAPE.hidden, SHAPE.heads * SHAPE.head_dim
    adapter = write_adapter(tmp_path / "tuned", pair(f"{LAYER}.self_attn.q_proj", (2, columns), (rows, 2)))
    source = samples.path("huggingface")
    plain, tuned = (tmp_path / name for name in ("plain.gguf", "tuned.gguf"))
    planned(source, "-o", plain)
    plan = planned(source, "-o", tuned, "--adapter", adapter)
    assert plan["notes"][0].startswith("adapter tuned, trained on someone/base: merged")
    before, after = ({t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors} for path in (plain, tuned))
    assert {name for name in before if before[name] != after[name]} == {"blk.0.attn_q.weight"}


@pytest.mark.parametrize(
    ("damage", "exit_code", "words"),
    [
        ({"use_dora": True}, 4, ["DoRA", "use_dora"]),
        ({"r": 3}, 3, ["does not fit the model", "rank 3"]),
        ({"peft_type": "IA3"}, 4, ["not a LoRA adapter"]),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(
    damage: dict[str, object], exit_code: int, words: list[str], samples: Samples, tmp_path: Path
) -> None:
    columns, rows = SHAPE.hidden, SHAPE.heads * SHAPE.head_dim
    tensors = pair(f"{LAYER}.self_attn.q_proj", (2, columns), (rows, 2))
    adapter = write_adapter(tmp_path / "tuned", tensors, **damage)
    outcome = run_here("to-gguf", samples.path("huggingface"), "-o", tmp_path / "x.gguf", "--adapter", adapter)
    assert outcome.exit_code == exit_code
    assert outcome.stderr.count("\n") == 1
    assert all(word in outcome.stderr for word in words)
    assert not (tmp_path / "x.gguf").exists()


def mixed_halves(samples: Samples, folder: Path) -> Path:
    """A GGUF file whose gate is in another encoding than its up."""
    return with_encodings(samples.path("gguf"), folder / "mixed.gguf", {"blk.0.ffn_gate_exps.weight": "Q4_0"})


def test_halves_in_different_encodings_are_copied_and_reported_one_by_one(samples: Samples, tmp_path: Path) -> None:
    report = planned(mixed_halves(samples, tmp_path), "-o", tmp_path / "x.gguf")["report"]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    halves = [tensor for tensor in report["tensors"] if tensor["name"] == name]
    assert [(half["source_encoding"], half["encoding"]) for half in halves] == [
        ("q4_0", "q4_0"),
        ("mxfp4", "mxfp4"),
    ]
    assert report["loss"] == "byte-exact"


def test_no_manifest_of_halves_that_are_copied_one_by_one(samples: Samples, tmp_path: Path) -> None:
    outcome = run_here("to-gguf", mixed_halves(samples, tmp_path), "-o", tmp_path / "x.gguf", "--manifest")
    assert outcome.exit_code == 4
    assert "model.layers.0.mlp.experts.gate_up_proj" in outcome.stderr
    assert not (tmp_path / "x.gguf").exists()
