"""`gptoss-convert footprint`: exit codes, what people read, and the JSON document with its schema."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.cli.command import run_here
from tests.cli.samples import Samples
from tests.support.conversions import TINY, to_gguf
from tests.support.footprint_tables import CONFIGURATIONS, verdict_tables

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "footprint.schema.json").read_text(encoding="utf-8"))
MEASURE = ("--measure", "--context", "512", "--prompt", "64", "--answer", "2", "--threads", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(TINY, tmp_path_factory.mktemp("footprint") / "tiny.gguf")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with nothing but the configuration of gpt-oss-20b."""
    shutil.copy(CONFIGURATIONS["20b"], tmp_path)
    return tmp_path


def document(*arguments: str | Path, exit_code: int = 0) -> Any:
    """What `--json` prints, held against the schema."""
    outcome = run_here("footprint", *arguments, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    found = json.loads(outcome.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)


def test_schema_is_a_schema_that_knows_every_key() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for item in objects(SCHEMA):
        assert item["additionalProperties"] is False
        assert set(item["required"]) == set(item["properties"])


@pytest.mark.parametrize("kind", ["huggingface", "gguf", "split"])
def test_every_format_is_predicted_from_its_headers(kind: Any, samples: Samples) -> None:
    found = document(samples.path(kind))
    assert found["measurement"] is None
    assert found["verdicts"] == []
    assert found["prediction"]["runtime"] == ("transformers" if kind == "huggingface" else "llama.cpp")
    assert found["weight_bytes"] == sum(group["nbytes"] for group in found["weights"])


def test_a_form_is_predicted_from_a_bare_configuration(bare: Path) -> None:
    found = document(bare, "--as", "gguf", "--context", "131072", "--budget", "gpu-24gb", "--budget", "64GB")
    assert found["form"] == "gguf"
    assert found["prediction"]["least_cache"] == 12 * 2048 * (131072 + 128)
    assert [verdict["verdict"] for verdict in found["verdicts"]] == ["fits", "fits"]
    assert [verdict["device"] for verdict in found["verdicts"]] == ["gpu", "cpu"]
    assert [verdict["largest_context"] for verdict in found["verdicts"]] == [131072, 131072]


def test_over_budget_exits_with_6_and_says_by_how_much(bare: Path) -> None:
    outcome = run_here("footprint", bare, "--as", "onnx-directml", "--budget", "gpu-12gb")
    assert outcome.exit_code == 6
    assert "OVER BUDGET" in outcome.stdout
    assert "too much" in outcome.stdout
    (verdict,) = document(bare, "--as", "gguf", "--budget", "2GB", exit_code=6)["verdicts"]
    assert (verdict["verdict"], verdict["largest_context"]) == ("over budget", None)


def test_a_size_is_of_the_device_that_is_chosen(bare: Path) -> None:
    needed = [
        document(bare, "--as", "gguf", "--device", device, "--budget", "24GB")["verdicts"][0]["needed"]
        for device in ("cpu", "gpu")
    ]
    assert needed[0] != needed[1]


def test_measuring_shows_phases_and_the_difference(tiny: Path) -> None:
    found = document(tiny, *MEASURE, "--budget", "1GB", "--largest-error", "0.3")
    assert [phase["phase"] for phase in found["measurement"]["phases"]] == [
        "start", "import", "load", "prefill", "decode",
    ]  # fmt: skip
    assert found["comparison"]["prediction"]["positions"] == 66
    assert found["prediction"]["positions"] == 512
    outcome = run_here("footprint", tiny, *MEASURE, "--largest-error", "0.3")
    assert outcome.exit_code == 0
    for words in ("measured with a prompt of 64 tokens", "prefill", "private memory once loaded", "off by"):
        assert words in outcome.stdout


def test_a_prediction_that_is_off_fails(tiny: Path) -> None:
    outcome = run_here("footprint", tiny, *MEASURE, "--largest-error", "0")
    assert outcome.exit_code == 1
    assert "FAIL: the prediction is off by" in outcome.stdout


def test_a_child_without_memory_fails_with_its_phase(tiny: Path) -> None:
    found = document(tiny, *MEASURE, "--memory-limit", "20MB", "--budget", "16GB", exit_code=6)
    assert found["measurement"]["ending"] == "out of memory"
    assert found["measurement"]["died_in"] == "start"
    assert found["over_budget"] is True
    assert "in phase start" in found["verdicts"][0]["reason"]
    outcome = run_here("footprint", tiny, *MEASURE, "--memory-limit", "20MB")
    assert outcome.exit_code == 6
    assert "FAIL: out of memory in phase start" in outcome.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        ([], 2, "there are no weights beside the configuration"),
        (["--as", "gguf", "--measure"], 2, "a form that is not there cannot be measured"),
        (["--as", "gguf", "--prompt", "3"], 2, "are for --measure"),
        (["--as", "gguf", "--budget", "laptop"], 2, "no such budget: found laptop"),
        (["--as", "gguf", "--context", "200000"], 2, "the model has no such context"),
        (["--as", "gguf", "--kv-type", "int8"], 2, "llama.cpp has no KV cache of this type"),
        (["--as", "gguf", "--runtime", "vllm"], 2, "memory of this runtime cannot be predicted"),
        (["--as", "gguf", "--runtime", "transformers"], 4, "transformers does not load this format"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: list[str], exit_code: int, words: str, bare: Path) -> None:
    outcome = run_here("footprint", bare, *arguments)
    assert outcome.exit_code == exit_code
    assert words in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert outcome.stdout == ""


def test_a_format_without_runtime_asks_for_a_form(samples: Samples) -> None:
    outcome = run_here("footprint", samples.path("original"))
    assert outcome.exit_code == 4
    assert "say with --as what it is to be converted to" in outcome.stderr
    assert document(samples.path("original"), "--as", "onnx-cpu")["format"] == "onnx"


def test_tables_of_the_manual_are_what_the_command_says() -> None:
    manual = (ROOT / "docs" / "footprint.md").read_text(encoding="utf-8")
    assert verdict_tables() in manual


def test_a_report_shows_what_is_needed_beside_the_budget(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    outcome = run_here("footprint", tiny, "--budget", "laptop-16gb", "--budget", "10MB", "--report", folder)
    assert outcome.exit_code == 6
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    schema = json.loads((ROOT / "docs" / "verification.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    needed = document(tiny, "--budget", "laptop-16gb")["prediction"]["needed"]
    assert [sum(entry["predicted"].values()) for entry in found["memory"]] == [needed] * 2
    assert [entry["budget"] for entry in found["memory"]][1] == 10_000_000
    assert found["outcome"] == "fail"
    assert "tiny.gguf" in (folder / "report.html").read_text(encoding="utf-8")
    again = run_here("footprint", tiny, "--report", folder)
    assert (again.exit_code, "--force" in again.stderr) == (5, True)


def test_a_report_has_phases_that_were_measured(tiny: Path, tmp_path: Path) -> None:
    outcome = run_here("footprint", tiny, *MEASURE, "--report", tmp_path / "report")
    assert outcome.exit_code in (0, 1), outcome.stderr
    (entry,) = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))["memory"]
    assert entry["budget"] is None
    assert list(entry["measured"])[-1] == "decode"
