"""`gptoss-convert verify`: exit codes, what people read, and the JSON document with its schema."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptoss_convert.verify.runners import RUNTIMES
from tests.cli.command import Outcome, run_here, run_process
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.planted_faults import FAULTS, NORM

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "verification.schema.json").read_text(encoding="utf-8"))
IDS = [[(5 * place + start) % 400 for place in range(20)] for start in range(3)]
POLICY = "version = 1\n[evidence]\npositions = 40\nprompts = 3\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `source`, `model.gguf`, `faulty.gguf`, `cut.gguf`, `lossy.gguf`, prompts and a policy lie."""
    folder = tmp_path_factory.mktemp("verify")
    source = make_checkpoint(folder / "source", Shape(layers=2), fill="gauss", edge_blocks=False)
    sound = to_gguf(source, folder / "model.gguf")
    to_gguf(source, folder / "lossy.gguf", dense="q8_0")
    for name, fault in (("faulty", "norm zeroed"), ("cut", "cut file")):
        FAULTS[fault].plant(Path(shutil.copyfile(sound, folder / f"{name}.gguf")))
    lines = [json.dumps({"ids": ids, "name": f"prompt {number}"}) for number, ids in enumerate(IDS)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "policy.toml").write_text(POLICY, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


OURS = ("--runtime", "reference", "--prompts", "prompts.jsonl", "--threads", "1")
ENOUGH = ("--policy", "policy.toml")


def verify(*arguments: str | Path) -> Outcome:
    return run_here("verify", "source", *arguments)


def document(*arguments: str | Path, exit_code: int) -> Any:
    """What `--json` prints, held against the schema."""
    outcome = verify(*arguments, "--json")
    assert outcome.exit_code == exit_code, outcome.stderr
    assert outcome.stderr == ""
    found = json.loads(outcome.stdout)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


# --- exit codes


def test_sound_artifact_exits_0() -> None:
    outcome = verify("model.gguf", "--weights")
    assert outcome.exit_code == 0
    assert "structure  pass: " in outcome.stdout
    assert "weights    pass: all 37 tensors are value-exact" in outcome.stdout
    assert (
        outcome.stdout.splitlines()[-1]
        == "  PASS: all 37 tensors are value-exact; 31 facts agree; 4 could not be compared"
    )


def test_faulty_artifact_exits_1_and_is_named() -> None:
    outcome = verify("faulty.gguf", "--weights")
    assert outcome.exit_code == 1
    assert f"FAIL (file): tensor {NORM} is lossy where value-exact is promised" in joined(outcome.stdout)


def test_one_faulty_artifact_of_several_exits_1_and_hides_nothing() -> None:
    outcome = verify("cut.gguf", "model.gguf", "--weights")
    assert outcome.exit_code == 1
    text = joined(outcome.stdout)
    assert "cut.gguf (unreadable)" in text
    assert "FAIL (file): artifact is unreadable, not readable: " in text
    assert "PASS: " in text
    assert text.index("cut.gguf") < text.index("FAIL (file)") < text.index("PASS: ")
    overview = [line.split() for line in outcome.stdout.splitlines()[-4:]]
    assert overview == [
        ["FAIL,", "all", "artifacts"],
        ["artifact", "format", "verdict", "numbers", "mean", "KL", "top-1"],
        ["cut.gguf", "unreadable", "FAIL", "(file)", "-", "-", "-"],
        ["model.gguf", "gguf", "PASS", "value-exact", "-", "-"],
    ]


def test_too_little_evidence_exits_1_unless_it_is_allowed() -> None:
    text = "the file cannot be judged: scored positions 9 is too little, 2000 is the least"
    for allowed, exit_code in (((), 1), (("--allow-inconclusive",), 0)):
        outcome = verify("model.gguf", *OURS, "--max-tokens", "7", *allowed)
        assert outcome.exit_code == exit_code
        assert "3 prompts, 21 positions" in outcome.stdout
        assert f"INCONCLUSIVE (evidence): {text}" in joined(outcome.stdout)


def test_failure_is_never_allowed() -> None:
    assert verify("faulty.gguf", "--weights", "--allow-inconclusive").exit_code == 1


def joined(text: str) -> str:
    """Undo the folding of long lines."""
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["model.gguf", "--weights", "--logits"], "--weights and --logits exclude each other"),
        (["model.gguf", "--prompts", "no-such-prompts"], "there are no such prompts"),
        (["model.gguf", "--prompts", "prompts.jsonl", "--runtime", "llama"], "no such runtime: found llama"),
        (
            ["model.gguf", "--prompts", "prompts.jsonl", "--runtime", "reference", "--runtime", "llama"],
            "no such runtime: found llama",
        ),
        (["model.gguf", "--prompts", "prompts.jsonl", "--runtime", "transformers"], "none of the runtimes"),
        (["model.gguf", "--work", "no-such-folder"], "does not exist"),
        (["model.gguf", "--max-tokens", "0"], "0 is not in the range"),
        (["model.gguf", "--threads", "0"], "0 is not in the range"),
    ],
)
def test_wrong_usage_exits_2(arguments: list[str], words: str) -> None:
    outcome = verify(*arguments)
    assert outcome.exit_code == 2
    assert words in outcome.stderr
    assert outcome.stdout == ""


def test_reference_that_cannot_be_read_exits_3() -> None:
    outcome = run_here("verify", "cut.gguf", "model.gguf", "--weights")
    assert outcome.exit_code == 3
    assert "cut.gguf" in outcome.stderr


def test_wrong_policy_exits_3(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("version = 1\n[profiles.exact]\nbest = 1\n")
    outcome = verify("model.gguf", "--weights", "--policy", path)
    assert outcome.exit_code == 3
    assert "not a policy" in outcome.stderr


def test_needs_no_torch_for_weights(folder: Path) -> None:
    """Nor any runtime: they are imported where they run."""
    code = (
        "import sys; from gptoss_convert.cli import run; "
        "run(['verify', 'source', 'model.gguf', '--weights', '-q']); "
        "sys.exit(bool({'torch', 'transformers', 'xllamacpp'} & sys.modules.keys()))"
    )
    outcome = run_process("-c", code, program=(sys.executable, "-P"), cwd=folder)
    assert (outcome.exit_code, outcome.stderr) == (0, "")


# --- what people read


@pytest.fixture(scope="module")
def told(folder: Path) -> Outcome:
    """A run of a lossy artifact in our own arithmetic, in a process of its own: with progress."""
    arguments = ("lossy.gguf", *OURS, *ENOUGH, "--noise-floor", "--timeout", "120")
    return run_process("verify", "source", *arguments, cwd=folder, timeout=120)


def test_tells_what_is_compared_and_what_was_found(told: Outcome) -> None:
    assert told.exit_code == 0, told.stderr
    text = joined(told.stdout)
    for words in (
        "reference source (huggingface)",
        "prompts prompts.jsonl: 3 prompts, 60 positions, SHA-256 of their ids ",
        "policy evidence.positions is 40 instead of 2000",
        "lossy.gguf (gguf, limits for lossy-8bit)",
        "ran lossy.gguf in reference: completed, prefill 60 positions, decode 0, peak memory ",
        "noise reference in bfloat16: mean KL ",
        "reference: next-token distributions at 48 positions",
        "PASS: the file loses what its encodings may and reference agrees, mean KL ",
    ):
        assert words in text


def test_says_what_it_is_doing(told: Outcome) -> None:
    for line in ("running lossy.gguf in reference: 60 positions", "running source in reference in bfloat16"):
        assert line in told.stderr


def test_quiet_says_nothing() -> None:
    outcome = verify("faulty.gguf", "--weights", "--quiet")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (1, "", "")


@pytest.mark.parametrize("as_json", [False, True])
def test_names_from_files_bring_no_control_characters(as_json: bool, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "evil\x1b[31m\u202e.gguf"
    shutil.copyfile(folder / "cut.gguf", target)
    sound = tmp_path / "sound\x1b]0;title\x07.gguf"
    shutil.copyfile(folder / "model.gguf", sound)
    outcome = verify(target, sound, "--weights", *(["--json"] if as_json else []))
    assert outcome.exit_code == 1
    assert not {c for c in outcome.stdout + outcome.stderr if not c.isprintable()} - {"\n"}
    assert "\\x1b[31m" in outcome.stdout or "\\u001b[31m" in outcome.stdout


# --- JSON


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def objects(schema: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)


def test_schema_knows_every_key() -> None:
    for item in objects(SCHEMA):
        assert item["additionalProperties"] is False
        assert set(item["required"]) == set(item["properties"])


def test_document_of_weights_alone() -> None:
    found = document("model.gguf", "faulty.gguf", "cut.gguf", "--weights", exit_code=1)
    assert found["outcome"] == "fail"
    assert found["prompts"] is None
    assert [item["verdict"]["outcome"] for item in found["artifacts"]] == ["pass", "fail", "fail"]
    assert [item["profile"] for item in found["artifacts"]] == ["exact", "exact", None]
    faulty, cut = found["artifacts"][1:]
    assert faulty["weights"]["worst_tensor"] == NORM
    assert cut["weights"] is None
    assert "cut.gguf" in cut["verdict"]["reason"]


def test_document_of_an_artifact_with_a_manifest(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    assert run_here("to-gguf", "source", "-o", target, "--manifest", "-q").exit_code == 0
    assert document(target, "--weights", exit_code=0)["artifacts"][0]["weights"]["manifest"]["passed"] is True
    FAULTS["norm zeroed"].plant(target)
    manifest = document(target, "--weights", exit_code=1)["artifacts"][0]["weights"]["manifest"]
    assert manifest["passed"] is False
    assert manifest["findings"]


def test_document_of_distributions_and_bisection() -> None:
    found = document("faulty.gguf", *OURS, *ENOUGH, "--logits", "--bisect", "--noise-floor", exit_code=1)
    (artifact,) = found["artifacts"]
    assert artifact["verdict"]["outcome"] == "fail"
    assert artifact["verdict"]["cause"] == "file"
    assert artifact["weights"] is None
    (logits,) = artifact["logits"]
    assert logits["noise_floor"] > 0
    assert [item["part"] for item in logits["comparisons"]] == ["total", "file"]
    assert [run["status"] for run in logits["runs"]] == ["completed", "completed"]
    assert [(run["artifact"], run["runtime"], run["run"]) for run in found["conditions"]["runs"]] == [
        (0, "reference", 0),
        (0, "reference", 1),
    ]
    assert artifact["bisection"]["finding"]["tensor"] == NORM
    changes = {change["name"]: change["value"] for change in found["policy"]["changes"]}
    assert changes == {"evidence.positions": 40, "evidence.prompts": 3}
    assert (found["prompts"]["prompts"], found["prompts"]["positions"]) == (3, 60)


def test_documents_of_two_runs_differ_in_their_conditions_alone() -> None:
    arguments = ("lossy.gguf", *OURS, *ENOUGH, "--max-tokens", "18")
    first, second = (document(*arguments, exit_code=0) for _ in range(2))
    assert first.pop("conditions") != second.pop("conditions")
    assert first == second


def test_document_of_a_missing_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(RUNTIMES["llama.cpp"], needs=(("no_such_module",),))
    monkeypatch.setitem(RUNTIMES, "llama.cpp", absent)
    found = document("model.gguf", "--prompts", "prompts.jsonl", exit_code=1)
    (artifact,) = found["artifacts"]
    assert found["outcome"] == "inconclusive"
    assert artifact["verdict"]["cause"] == "evidence"
    assert "not installed; install it with: pip install xllamacpp" in artifact["verdict"]["reason"]
    assert artifact["logits"][0]["runs"][0]["status"] == "missing"


def test_error_is_json_too() -> None:
    outcome = verify("model.gguf", "--weights", "--logits", "--json")
    assert outcome.exit_code == 2
    assert json.loads(outcome.stdout)["error"] == "OptionError"


# --- policy and prompts


def test_policy_of_ones_own_decides(tmp_path: Path) -> None:
    strict = tmp_path / "strict.toml"
    strict.write_text(f"{POLICY}[profiles.lossy-8bit]\nmean_kl = 1e-9\nnoise_factor = 0.0\n")
    outcome = verify("lossy.gguf", *OURS, "--policy", strict)
    assert outcome.exit_code == 1
    text = joined(outcome.stdout)
    assert "FAIL (file): the numbers in the file already depart, computed exactly: mean KL" in text
    assert "is beyond the limit of 1e-09" in text
    assert "policy profiles.lossy-8bit.mean_kl is 1e-09 instead of 0.01" in text
