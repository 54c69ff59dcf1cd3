"""Verification as a whole: what is compared, what is run, and what is left out."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify import verification
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.parts import FILE, RUNTIME
from gptoss_convert.verify.policy import Policy, default_policy
from gptoss_convert.verify.prompts import PromptSet
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Status
from gptoss_convert.verify.verdict import Cause
from gptoss_convert.verify.verification import (
    ArtifactResult,
    LogitsOptions,
    VerifyOptions,
    verify_artifacts,
    verify_written,
)
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.planted_faults import FAULTS, NORM
from tests.support.recordings import prompt_set

SHAPE = Shape(layers=2)
PROMPTS = prompt_set([[(5 * place + start) % 400 for place in range(20)] for start in range(3)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("reference"), SHAPE, fill="gauss", edge_blocks=False)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def sound(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(folder, tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture
def faulty(sound: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copyfile(sound, tmp_path / "faulty.gguf"))
    FAULTS["norm zeroed"].plant(path)
    return path


@pytest.fixture
def other_shape(tmp_path: Path) -> Path:
    return write_huggingface(tmp_path / "other", Shape(layers=1), edge_blocks=False)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The built-in one, content with little evidence."""
    policy = default_policy()
    return msgspec.structs.replace(
        policy, evidence=msgspec.structs.replace(policy.evidence, positions=40, prompts=3)
    )


def options(policy: Policy, *, weights: bool = True, bisection: PromptSet | None = None) -> VerifyOptions:
    """Run our own runtime alone."""
    logits = LogitsOptions(prompts=PROMPTS, runtimes=("reference",), threads=1)
    return VerifyOptions(weights=weights, logits=logits, bisection_prompts=bisection, policy=policy, jobs=1)


def only(result: verification.Verification) -> ArtifactResult:
    (artifact,) = result.artifacts
    return artifact


def test_structure_and_weights_alone(reference: Checkpoint, sound: Path, faulty: Path, tmp_path: Path) -> None:
    result = verify_artifacts(reference, [sound, faulty, tmp_path / "nothing.gguf"], VerifyOptions())
    assert [item.verdict.outcome for item in result.artifacts] == [Outcome.PASS, Outcome.FAIL, Outcome.FAIL]
    assert [item.verdict.cause for item in result.artifacts] == [None, Cause.FILE, Cause.FILE]
    assert result.outcome is Outcome.FAIL
    assert NORM in result.artifacts[1].verdict.reason
    assert "nothing.gguf" in result.artifacts[2].verdict.reason
    assert (result.artifacts[2].format, result.artifacts[2].weights) == (None, None)
    assert [item.logits for item in result.artifacts] == [(), (), ()]
    json.dumps(result.as_dict(), allow_nan=False)


def test_sound_artifact_is_run(
    reference: Checkpoint, sound: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In our own runtime, for which no baseline is made."""
    monkeypatch.setattr(verification, "make_baseline", lambda *given: pytest.fail("made one"))
    said: list[str] = []
    wanted = options(policy)
    assert wanted.logits is not None
    wanted = replace(wanted, logits=replace(wanted.logits, work=tmp_path))
    artifact = only(verify_artifacts(reference, [sound], wanted, say=said.append))
    assert (artifact.verdict.outcome, artifact.verdict.cause) == (Outcome.PASS, None)
    (logits,) = artifact.logits
    part = logits.comparison(FILE)
    assert part is not None
    assert part.mean_kl == 0
    assert [line.split()[1] for line in said] == [str(sound), str(reference.path)]
    assert list(tmp_path.iterdir()) == []  # recordings are large


def test_artifact_that_failed_already_is_not_run(reference: Checkpoint, faulty: Path, policy: Policy) -> None:
    said: list[str] = []
    artifact = only(verify_artifacts(reference, [faulty], options(policy), say=said.append))
    assert artifact.verdict.outcome is Outcome.FAIL
    assert artifact.logits == ()
    assert said == []


def test_without_weights_a_faulty_artifact_is_run_and_searched(
    reference: Checkpoint, faulty: Path, sound: Path, policy: Policy
) -> None:
    wanted = options(policy, weights=False, bisection=PROMPTS)
    first, second = verify_artifacts(reference, [faulty, sound], wanted).artifacts
    assert (first.verdict.outcome, first.verdict.cause) == (Outcome.FAIL, Cause.FILE)
    assert first.weights is None
    assert first.bisection is not None
    assert first.bisection.finding is not None
    assert first.bisection.finding.tensor == NORM
    assert second.verdict.outcome is Outcome.PASS
    assert second.bisection is None


def test_model_of_another_shape_fails_and_leaves_the_others_alone(
    reference: Checkpoint, other_shape: Path, sound: Path, policy: Policy
) -> None:
    wanted = options(policy, weights=False, bisection=PROMPTS)
    other, good = verify_artifacts(reference, [other_shape, sound], wanted).artifacts
    assert (other.verdict.outcome, other.verdict.cause) == (Outcome.FAIL, Cause.FILE)
    assert (other.logits, other.bisection) == ((), None)
    assert good.verdict.outcome is Outcome.PASS


def test_other_number_of_chosen_experts_fails_without_a_run(
    reference: Checkpoint, folder: Path, policy: Policy, tmp_path: Path
) -> None:
    """Which experts were chosen cannot be compared then."""
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    assert config["num_experts_per_tok"] == 4
    path.write_text(json.dumps(config | {"num_experts_per_tok": 2, "experts_per_token": 2}))
    wanted = options(policy, weights=False, bisection=PROMPTS)
    artifact = only(verify_artifacts(reference, [tmp_path / "model"], wanted))
    assert artifact.verdict.outcome is Outcome.FAIL
    assert "config.num_experts_per_tok is 2, not 4" in artifact.verdict.reason
    assert artifact.logits == ()


def test_profile_is_that_of_the_coarsest_encoding_that_rounds(
    folder: Path, reference: Checkpoint, tmp_path: Path
) -> None:
    plan = plan_bf16(reference, tmp_path / "bf16")
    execute(plan)
    coarse = to_gguf(plan.output, tmp_path / "coarse.gguf", dense="q8_0", experts="mxfp4")
    paths = [
        to_gguf(folder, tmp_path / "exact.gguf", dense="f32"),
        to_gguf(folder, tmp_path / "eight.gguf", dense="q8_0"),
        plan.output,
    ]
    profiles = [item.profile for item in verify_artifacts(reference, paths, VerifyOptions()).artifacts]
    assert profiles == ["exact", "lossy-8bit", "exact"]
    assert only(verify_artifacts(open_checkpoint(plan.output), [coarse], VerifyOptions())).profile == "lossy-4bit"


def test_lossy_artifact_is_held_against_the_limits_of_its_encodings(
    reference: Checkpoint, folder: Path, policy: Policy, tmp_path: Path
) -> None:
    artifact = only(
        verify_artifacts(reference, [to_gguf(folder, tmp_path / "x.gguf", dense="q8_0")], options(policy))
    )
    part = artifact.logits[0].comparison(FILE)
    assert part is not None
    assert part.judgement is not None
    assert part.judgement.profile == artifact.profile == "lossy-8bit"
    assert part.mean_kl is not None
    assert 1e-9 < part.mean_kl < 1e-1


def test_missing_runtime_is_inconclusive_and_says_how_to_install_it(
    reference: Checkpoint, sound: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = replace(RUNTIMES["llama.cpp"], needs=(("no_such_module",),))
    monkeypatch.setitem(RUNTIMES, "llama.cpp", absent)
    wanted = VerifyOptions(logits=LogitsOptions(prompts=PROMPTS), policy=policy)
    result = verify_artifacts(reference, [sound], wanted)
    artifact = only(result)
    assert (result.outcome, artifact.verdict.cause) == (Outcome.INCONCLUSIVE, Cause.EVIDENCE)
    assert absent.install in artifact.verdict.reason
    assert artifact.structure.passed
    assert [run.status for run in artifact.logits[0].runs] == [Status.MISSING]


def test_given_baseline_takes_the_place_of_the_one_that_would_be_made(
    reference: Checkpoint, sound: Path, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a foreign runtime: here our own under another name, so that figures are exact."""
    foreign = replace(RUNTIMES["reference"], name="foreign", formats=("gguf",))
    monkeypatch.setitem(RUNTIMES, "foreign", foreign)
    monkeypatch.setattr(verification, "make_baseline", lambda *given: pytest.fail("made one"))
    logits = LogitsOptions(prompts=PROMPTS, runtimes=("foreign",), baselines=(sound,), threads=1)
    artifact = only(verify_artifacts(reference, [sound], VerifyOptions(logits=logits, policy=policy)))
    part = artifact.logits[0].comparison(RUNTIME)
    assert part is not None
    assert part.mean_kl == 0
    assert artifact.verdict.outcome is Outcome.PASS


def test_baseline_of_another_model_is_refused(
    reference: Checkpoint, sound: Path, faulty: Path, tmp_path: Path
) -> None:
    """It would put the blame on the runtime."""
    other = to_gguf(make_checkpoint(tmp_path / "other", Shape(layers=1)), tmp_path / "other.gguf")
    for baselines, words in (
        ((other,), "baseline is another model: "),
        ((sound, faulty), "two baselines of one format"),
    ):
        logits = LogitsOptions(prompts=PROMPTS, baselines=baselines)
        with pytest.raises(OptionError, match=words):
            verify_artifacts(reference, [sound], VerifyOptions(logits=logits))


def test_unknown_runtime_is_refused_before_anything_is_compared() -> None:
    with pytest.raises(OptionError, match=r"no such runtime: found llama, expected reference or transformers or"):
        LogitsOptions(prompts=PROMPTS, runtimes=("llama.cpp", "llama"))


def test_runtime_that_does_not_load_the_format_is_refused(reference: Checkpoint, sound: Path) -> None:
    logits = LogitsOptions(prompts=PROMPTS, runtimes=("transformers",))
    with pytest.raises(OptionError, match=r"found transformers, expected reference or llama.cpp"):
        verify_artifacts(reference, [sound], VerifyOptions(logits=logits))


def test_there_has_to_be_something_to_verify() -> None:
    with pytest.raises(OptionError, match="nothing to verify"):
        VerifyOptions(weights=False)


def test_unsound_reference_cannot_judge(sound: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(sound, tmp_path / "model.gguf"))
    FAULTS["sinks missing"].plant(path)
    with pytest.raises(InputError):
        verify_artifacts(open_checkpoint(path), [sound], VerifyOptions())


def test_written_file_is_compared(reference: Checkpoint, sound: Path, faulty: Path) -> None:
    assert verify_written(reference, sound).verdict.outcome is Outcome.PASS
    verdict = verify_written(reference, faulty).verdict
    assert (verdict.outcome, verdict.cause) == (Outcome.FAIL, Cause.FILE)


def test_changes_of_the_policy_are_told(reference: Checkpoint, sound: Path, policy: Policy) -> None:
    document = verify_artifacts(reference, [sound], VerifyOptions(policy=policy)).as_dict()
    assert document["policy"]["changes"] == [
        {"name": "evidence.positions", "value": 40, "default": 2000},
        {"name": "evidence.prompts", "value": 3, "default": 32},
    ]
    assert document["prompts"] is None
