"""What a deviation is made of, and who is to blame: runs that were made already, with numbers put into each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.decode import Decoding, choose_decoding
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.logits import Examiner, LogitsResult, Subject
from gptoss_convert.verify.parts import ARITHMETIC, CACHE, CONVERSION, DECODE, DEPARTURES, FILE, RUNTIME, TOTAL
from gptoss_convert.verify.policy import Policy, default_policy
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runners.launch import Run, Status
from gptoss_convert.verify.runners.protocol import Settings
from gptoss_convert.verify.runs import Runs
from gptoss_convert.verify.verdict import Cause
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.recordings import log_softmax, prompt_set, recording

VOCAB, LAYERS, EXPERTS = 12, 2, 4
LENGTHS = (60,) * 8
POSITIONS = sum(LENGTHS)
RANDOM = np.random.default_rng(3)
IDS = [RANDOM.integers(0, VOCAB, length).tolist() for length in LENGTHS]
TRUE = 3 * RANDOM.standard_normal((POSITIONS, VOCAB))
"""Logits of the reference."""
ERROR = RANDOM.standard_normal((POSITIONS, VOCAB))
OTHER_ERROR = RANDOM.standard_normal((POSITIONS, VOCAB))
FAR, NEAR = 0.8, 0.01
"""Sizes of an error beyond all limits, and within all but those of an equal file."""
ROUTES = np.tile(np.arange(4), (POSITIONS, LAYERS, 1))
MARGINS = np.ones((POSITIONS, LAYERS))
LLAMA_CPP, TRANSFORMERS, ONNXRUNTIME, REFERENCE = (
    RUNTIMES[name] for name in ("llama.cpp", "transformers", "onnxruntime", "reference")
)
ARTIFACT, BEST = Path("artifact"), Path("best")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_huggingface(tmp_path_factory.mktemp("model"), Shape(layers=LAYERS)))


@dataclass
class Bench:
    """Runs by what they are of; those that a case needs are put in, and nothing else can be started."""

    folder: Path
    reference: Checkpoint
    policy: Policy
    made: dict[tuple[str, Path, Settings], Run] = field(default_factory=dict)
    count: int = 0

    def put(
        self,
        runtime: str,
        path: Path,
        error: Any = 0.0,
        *,
        dtype: str = "float32",
        imitates: str | None = None,
        status: Status = Status.COMPLETED,
        routing: Any = None,
        margins: Any = None,
        listed: int | None = None,
    ) -> None:
        """Put a run whose logits are those of the reference and `error`, or one that ended otherwise."""
        settings = Settings(dtype=dtype, imitates=imitates)
        folder = self.folder / f"run-{self.count}"
        self.count += 1
        run = Run(
            runtime=runtime,
            artifact=path,
            settings=settings,
            folder=folder,
            status=status,
            reason=None if status is Status.COMPLETED else "because of what it says",
        )
        if status is Status.COMPLETED:
            ours = runtime == "reference"
            recording(
                folder,
                LENGTHS,
                log_softmax(TRUE + error),
                listed=listed,
                routing=ROUTES if routing is None and ours else routing,
                margins=MARGINS if margins is None and ours else margins,
            )
        self.made[runtime, path.absolute(), settings] = run

    def examiner(self, **options: Any) -> Examiner:
        prompts = replace(prompt_set(IDS), name="quick")
        runs = Runs(prompts=prompts, vocab_size=VOCAB, folder=self.folder, made=self.made, say=self._refuse)
        return Examiner(runs=runs, policy=self.policy, named_tokens=None, **options)

    def _refuse(self, line: str) -> None:
        raise AssertionError(f"started: {line}")

    def examine(
        self,
        runtime: Any = LLAMA_CPP,
        *,
        is_exact: bool = True,
        profile: str = "exact",
        baseline: Path | None = None,
        **options: Any,
    ) -> LogitsResult:
        subject = Subject(
            reference=self.reference,
            artifact=replace(self.reference, path=ARTIFACT),
            is_exact=is_exact,
            profile=profile,
            baseline=baseline,
        )
        return self.examiner(**options).examine(subject, runtime)

    def put_all(self, *, file: Any = 0.0, departures: Any = 0.0, runtime: Any = 0.0, **of_runtime: Any) -> None:
        """Put all that llama.cpp's artifact takes, each with its own error."""
        model = self.reference.path
        self.put("reference", model)
        self.put("reference", model, departures, imitates="llama.cpp")
        self.put("reference", ARTIFACT, file)
        self.put("reference", ARTIFACT, file + departures, imitates="llama.cpp")
        self.put("llama.cpp", ARTIFACT, file + departures + runtime, **of_runtime)

    def put_decoded(self, error: Any = 0.0, *, status: Status = Status.COMPLETED) -> None:
        """Put a run of the artifact in onnxruntime token by token, whose logits have `error` where it decodes."""
        decoding = self.decoding
        starts = np.cumsum([0, *LENGTHS])
        rows = np.concatenate(
            [starts[i] + np.arange(n) for i, n in zip(decoding.indices, decoding.lengths, strict=True)]
        )
        decoded = np.concatenate(
            [np.arange(n) >= prefix for n, prefix in zip(decoding.lengths, decoding.prefixes, strict=True)]
        )
        settings = Settings(prefixes=decoding.prefixes)
        folder = self.folder / "decoded"
        if status is Status.COMPLETED:
            logits = TRUE[rows] + decoded[:, None] * (error if np.ndim(error) == 0 else error[rows])
            recording(folder, decoding.lengths, log_softmax(logits), prefixes=decoding.prefixes)
        self.made["onnxruntime", ARTIFACT.absolute(), settings] = Run(
            runtime="onnxruntime",
            artifact=ARTIFACT,
            settings=settings,
            folder=folder,
            status=status,
            reason=None if status is Status.COMPLETED else "because of what it says",
        )

    @property
    def decoding(self) -> Decoding:
        prompts = replace(prompt_set(IDS), name="quick")
        found = choose_decoding(prompts, self.reference.config.sliding_window)
        assert found is not None
        return found

    def put_noise(self, error: Any) -> None:
        self.put("reference", self.reference.path, error, dtype="bfloat16")


@pytest.fixture
def bench(tmp_path: Path, checkpoint: Checkpoint) -> Bench:
    return Bench(tmp_path, checkpoint, default_policy())


def outcomes(result: LogitsResult) -> Mapping[str, Outcome | None]:
    return {item.part: item.judgement and item.judgement.outcome for item in result.comparisons}


# --- passes and blame


def test_everything_right_passes_without_cause(bench: Bench) -> None:
    bench.put_all(runtime=NEAR * ERROR)
    result = bench.examine()
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.PASS, None)
    total = result.comparison(TOTAL)
    assert total is not None
    assert result.verdict.reason == (
        f"the file holds the reference's numbers and llama.cpp agrees, mean KL {total.mean_kl:.2g}"
    )
    assert outcomes(result) == {TOTAL: Outcome.PASS, DEPARTURES: Outcome.PASS, RUNTIME: Outcome.PASS}
    assert result.noise_floor is None
    assert [run.runtime for run in result.runs] == ["llama.cpp", "reference", "reference"]


def test_file_alone_deviates(bench: Bench) -> None:
    bench.put_all(file=FAR * ERROR, runtime=NEAR * OTHER_ERROR)
    result = bench.examine(is_exact=False)
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.FAIL, Cause.FILE)
    assert result.verdict.reason.startswith("the numbers in the file already depart, computed exactly: mean KL")
    assert outcomes(result) == {
        TOTAL: Outcome.PASS,
        FILE: Outcome.FAIL,
        DEPARTURES: Outcome.PASS,
        RUNTIME: Outcome.PASS,
    }


def test_runtime_alone_deviates(bench: Bench) -> None:
    bench.put_all(runtime=FAR * ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine()
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.FAIL, Cause.RUNTIME)
    assert result.verdict.reason.startswith("llama.cpp computes something else than the file says: mean KL")
    assert outcomes(result) == {TOTAL: Outcome.PASS, DEPARTURES: Outcome.PASS, RUNTIME: Outcome.FAIL}


def test_file_is_blamed_before_the_runtime(bench: Bench) -> None:
    bench.put_all(file=FAR * ERROR, runtime=FAR * OTHER_ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine(is_exact=False)
    assert outcomes(result)[RUNTIME] is Outcome.FAIL
    assert result.verdict.cause is Cause.FILE


def test_known_departure_passes_and_is_named(bench: Bench) -> None:
    bench.put_all(departures=FAR * ERROR, runtime=NEAR * OTHER_ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine()
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.PASS, Cause.RUNTIME)
    assert "rightly but for its own rounded YaRN range, which alone makes mean KL" in result.verdict.reason
    parts = result.comparison(DEPARTURES), result.comparison(TOTAL)
    assert all(part is not None and f"{part.mean_kl:.2g}" in result.verdict.reason for part in parts)
    assert outcomes(result) == {TOTAL: Outcome.PASS, DEPARTURES: Outcome.FAIL, RUNTIME: Outcome.PASS}


def test_departure_that_only_turns_routing_is_named_too(bench: Bench) -> None:
    turned = np.arange(POSITIONS) % 10 == 0
    model = bench.reference.path
    error, routes, margins = turned[:, None] * ERROR, ROUTES.copy(), MARGINS.copy()
    routes[turned] += 4
    margins[turned] = 0.001
    bench.put_all(departures=error)
    bench.put("reference", model, margins=margins)
    bench.put("reference", model, error, imitates="llama.cpp", routing=routes)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine()
    departures = result.comparison(DEPARTURES)
    assert departures is not None
    assert departures.judgement is not None
    assert departures.judgement.routing_excused
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.PASS, Cause.RUNTIME)


def test_runtime_without_departures_is_compared_with_the_reference_itself(bench: Bench) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("transformers", ARTIFACT, NEAR * ERROR)
    result = bench.examine(TRANSFORMERS)
    assert outcomes(result) == {TOTAL: Outcome.PASS, RUNTIME: Outcome.PASS}
    assert result.verdict.outcome is Outcome.PASS


def test_in_our_own_runtime_the_file_is_all_there_is(bench: Bench) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("reference", ARTIFACT, NEAR * ERROR)
    assert bench.examine(REFERENCE, profile="lossy-8bit").verdict.outcome is Outcome.PASS
    result = bench.examine(REFERENCE, profile="exact")
    assert outcomes(result) == {TOTAL: Outcome.PASS, FILE: Outcome.FAIL}
    assert result.verdict.cause is Cause.FILE


# --- routing


@pytest.mark.parametrize("told", [True, False])
def test_other_experts_alone_pass_as_routing(bench: Bench, told: bool) -> None:
    """A runtime that tells its experts is judged where they are the same; one that does not, by margins."""
    turned = np.arange(POSITIONS) % 5 == 0
    routes, margins = ROUTES.copy(), MARGINS.copy()
    routes[turned, 1, 3] = 9
    margins[turned, 1] = 0.001
    model = bench.reference.path
    bench.put_all(runtime=turned[:, None] * ERROR + NEAR * OTHER_ERROR, routing=routes if told else None)
    bench.put("reference", model, imitates="llama.cpp", margins=margins)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine()
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.PASS, Cause.ROUTING)
    part = result.comparison(RUNTIME)
    assert part is not None
    assert part.routing is not None
    assert part.routing.criterion == ("experts" if told else "margin")
    share = sum(turned[start + 4 : start + 60].sum() for start in range(0, POSITIONS, 60)) / (8 * 56)
    assert f"at {share:.1%} of the positions close router scores let it choose others" in result.verdict.reason


def test_other_experts_are_no_excuse_for_errors_elsewhere(bench: Bench) -> None:
    routes = ROUTES.copy()
    routes[::5, 1, 3] = 9
    bench.put_all(runtime=FAR * ERROR, routing=routes)
    bench.put_noise(NEAR * OTHER_ERROR)
    verdict = bench.examine().verdict
    assert (verdict.outcome, verdict.cause) == (Outcome.FAIL, Cause.RUNTIME)


# --- runs that were not completed


@pytest.mark.parametrize("status", [Status.MISSING, Status.TOO_LARGE, Status.TIMED_OUT, Status.KILLED])
def test_runtime_that_cannot_be_run_here_says_nothing_about_the_file(bench: Bench, status: Status) -> None:
    bench.put("llama.cpp", ARTIFACT, status=status)
    result = bench.examine()
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.INCONCLUSIVE, Cause.EVIDENCE)
    assert result.verdict.reason == (
        f"a run is missing: {ARTIFACT} in llama.cpp: {status}, because of what it says"
    )
    assert result.comparisons == ()
    assert [run.status for run in result.runs] == [status]


@pytest.mark.parametrize("status", [Status.CRASHED, Status.REFUSED])
def test_runtime_that_does_not_load_the_file_fails_it(bench: Bench, status: Status) -> None:
    bench.put("llama.cpp", ARTIFACT, status=status)
    result = bench.examine()
    assert result.verdict.outcome is Outcome.FAIL
    assert result.verdict.reason.startswith(f"llama.cpp does not run it: {ARTIFACT} in llama.cpp: {status}")


@pytest.mark.parametrize("status", list(set(Status) - {Status.COMPLETED}))
def test_reference_that_does_not_run_is_not_the_files_fault(bench: Bench, status: Status) -> None:
    bench.put_all()
    bench.put("reference", bench.reference.path, imitates="llama.cpp", status=status)
    result = bench.examine()
    assert result.verdict.outcome is Outcome.INCONCLUSIVE
    assert f"{bench.reference.path} in reference as llama.cpp computes: {status}" in result.verdict.reason
    assert [run.runtime for run in result.runs] == ["llama.cpp", "reference"]


# --- evidence


def test_too_few_positions_are_inconclusive(bench: Bench) -> None:
    evidence = msgspec.structs.replace(bench.policy.evidence.quick, positions=POSITIONS)
    bench.policy = msgspec.structs.replace(
        bench.policy, evidence=msgspec.structs.replace(bench.policy.evidence, quick=evidence)
    )
    bench.put_all()
    bench.put_noise(0)
    verdict = bench.examine().verdict
    assert (verdict.outcome, verdict.cause) == (Outcome.INCONCLUSIVE, Cause.EVIDENCE)
    scored = POSITIONS - 4 * len(LENGTHS)
    reason = f"the runtime cannot be judged: scored positions {scored} is too little, {POSITIONS} is the least"
    assert verdict.reason == reason


def test_likeliest_tokens_that_cover_too_little_are_inconclusive(bench: Bench) -> None:
    bench.put_all(listed=1)
    bench.put_noise(0)
    verdict = bench.examine().verdict
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "coverage" in verdict.reason


def test_runtime_that_computes_nan_fails(bench: Bench) -> None:
    broken = np.zeros((POSITIONS, VOCAB))
    broken[30] = np.nan
    bench.put_all(runtime=broken)
    bench.put_noise(0)
    verdict = bench.examine().verdict
    assert (verdict.outcome, verdict.cause) == (Outcome.FAIL, Cause.RUNTIME)
    assert "positions with NaN 1 is beyond the limit of 0" in verdict.reason


# --- noise floor


def test_noise_floor_is_measured_where_a_limit_does_not_hold_and_may_turn_it(bench: Bench) -> None:
    bench.put_all(runtime=0.15 * ERROR)
    profile = msgspec.structs.replace(
        bench.policy.profiles["exact-in-runtime"], median_kl=None, same_top1=0.5, same_top1_clear=None
    )
    bench.policy = msgspec.structs.replace(
        bench.policy, profiles={**bench.policy.profiles, "exact-in-runtime": profile}
    )
    bench.put_noise(0.15 * OTHER_ERROR)
    result = bench.examine()
    total = result.comparison(TOTAL)
    assert total is not None
    assert total.mean_kl is not None
    assert total.mean_kl > profile.mean_kl
    assert result.noise_floor == pytest.approx(total.mean_kl, rel=0.3)
    assert result.verdict.outcome is Outcome.PASS


def test_noise_floor_is_measured_if_wanted(bench: Bench) -> None:
    bench.put_all()
    bench.put_noise(NEAR * OTHER_ERROR)
    assert bench.examine().noise_floor is None
    floor = bench.examine(noise_floor_wanted=True).noise_floor
    assert floor is not None
    assert floor > 0


def test_noise_floor_that_cannot_be_measured_changes_nothing(bench: Bench) -> None:
    bench.put_all(runtime=FAR * ERROR)
    bench.put("reference", bench.reference.path, dtype="bfloat16", status=Status.KILLED)
    result = bench.examine()
    assert result.noise_floor is None
    assert result.verdict.outcome is Outcome.FAIL


# --- the most exact file


def test_runtime_that_spoils_this_file_alone_is_told_from_its_arithmetic(bench: Bench) -> None:
    bench.put_all(runtime=FAR * ERROR)
    bench.put("llama.cpp", BEST, NEAR * ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine(baseline=BEST)
    assert outcomes(result) == {
        TOTAL: Outcome.PASS,
        DEPARTURES: Outcome.PASS,
        RUNTIME: Outcome.FAIL,
        ARITHMETIC: None,
        CONVERSION: Outcome.FAIL,
    }
    assert result.verdict.cause is Cause.RUNTIME
    assert bench.made["llama.cpp", BEST.absolute(), Settings()] in result.runs


def test_conversion_is_told_from_arithmetic_that_both_files_share(bench: Bench) -> None:
    bench.put_all(runtime=FAR * ERROR)
    bench.put("llama.cpp", BEST, FAR * ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine(baseline=BEST)
    arithmetic, conversion = result.comparison(ARITHMETIC), result.comparison(CONVERSION)
    assert arithmetic is not None
    assert conversion is not None
    assert arithmetic.mean_kl is not None
    assert arithmetic.mean_kl > 0.01
    assert conversion.mean_kl == pytest.approx(0, abs=1e-9)
    assert conversion.judgement is not None
    assert conversion.judgement.outcome is Outcome.PASS


def test_lossy_file_is_held_against_its_own_limits_within_the_runtime(bench: Bench) -> None:
    bench.put_all(file=NEAR * ERROR)
    bench.put("llama.cpp", BEST)
    profiles = {
        name: result.judgement.profile
        for name in ("exact", "lossy-4bit")
        for result in bench.examine(is_exact=False, profile=name, baseline=BEST).comparisons
        if result.part == CONVERSION and result.judgement is not None
    }
    assert profiles == {"exact": "exact-in-runtime", "lossy-4bit": "lossy-4bit"}


def test_conversion_takes_routing_from_the_reference(bench: Bench) -> None:
    """llama.cpp tells no routing, neither of the artifact nor of the most exact file."""
    margins = MARGINS.copy()
    margins[::4, 0] = 0.001
    bench.put_all()
    bench.put("reference", bench.reference.path, imitates="llama.cpp", margins=margins)
    bench.put("llama.cpp", BEST)
    conversion = bench.examine(baseline=BEST).comparison(CONVERSION)
    assert conversion is not None
    assert conversion.routing is not None
    assert conversion.routing.criterion == "margin"
    steady = (margins.min(axis=1) > 0.05).reshape(8, 60)[:, 4:].mean()
    assert conversion.routing.steady_share == pytest.approx(steady)


def test_most_exact_file_that_does_not_run_is_left_out(bench: Bench) -> None:
    bench.put_all()
    bench.put("llama.cpp", BEST, status=Status.REFUSED)
    assert CONVERSION not in outcomes(bench.examine(baseline=BEST))


def test_artifact_that_is_the_most_exact_file_is_not_compared_with_itself(bench: Bench) -> None:
    bench.put_all()
    assert CONVERSION not in outcomes(bench.examine(baseline=ARTIFACT))


def test_result_is_json(bench: Bench) -> None:
    bench.put_all(runtime=NEAR * ERROR)
    document = bench.examine().as_dict()
    msgspec.json.encode(document)
    assert list(document) == ["runtime", "verdict", "noise_floor", "comparisons", "runs"]
    assert [item["imitates"] for item in document["runs"]] == [None, None, "llama.cpp"]


# --- token by token


def test_decoding_is_held_against_the_reference_and_the_prefill(bench: Bench) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("onnxruntime", ARTIFACT, NEAR * ERROR)
    bench.put_decoded(NEAR * OTHER_ERROR)
    result = bench.examine(ONNXRUNTIME)
    assert outcomes(result) == dict.fromkeys((TOTAL, RUNTIME, DECODE, CACHE), Outcome.PASS)
    decode, cache = result.comparison(DECODE), result.comparison(CACHE)
    assert decode is not None
    assert cache is not None
    assert decode.mean_kl is not None
    scored = sum(
        length - max(prefix, 4)
        for length, prefix in zip(bench.decoding.lengths, bench.decoding.prefixes, strict=True)
    )
    assert decode.summary.positions == cache.summary.positions == scored
    assert result.verdict.reason.endswith(f"; token by token as well, {decode.mean_kl:.2g}")


def test_deviation_on_the_cache_alone_fails_and_is_named(bench: Bench) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("onnxruntime", ARTIFACT, NEAR * ERROR)
    bench.put_decoded(FAR * OTHER_ERROR)
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine(ONNXRUNTIME)
    assert outcomes(result) == {
        TOTAL: Outcome.PASS,
        RUNTIME: Outcome.PASS,
        DECODE: Outcome.FAIL,
        CACHE: Outcome.FAIL,
    }
    assert (result.verdict.outcome, result.verdict.cause) == (Outcome.FAIL, Cause.RUNTIME)
    assert result.verdict.reason.startswith(
        "decode: token by token, onnxruntime computes with the graph something else than the weights say: mean KL"
    )


def test_positions_before_the_cache_is_used_are_not_taken_for_decoded(bench: Bench) -> None:
    """A prefill that deviates is not what is judged as decoding."""
    bench.put("reference", bench.reference.path)
    bench.put("onnxruntime", ARTIFACT, FAR * ERROR)
    bench.put_decoded()
    bench.put_noise(NEAR * OTHER_ERROR)
    result = bench.examine(ONNXRUNTIME)
    assert outcomes(result)[DECODE] is Outcome.PASS
    assert (outcomes(result)[RUNTIME], outcomes(result)[CACHE]) == (Outcome.FAIL, Outcome.FAIL)
    assert result.verdict.reason.startswith("onnxruntime computes with the graph something else than")


@pytest.mark.parametrize(
    ("status", "outcome"), [(Status.CRASHED, Outcome.FAIL), (Status.TIMED_OUT, Outcome.INCONCLUSIVE)]
)
def test_decoding_that_does_not_end_well_is_told(bench: Bench, status: Status, outcome: Outcome) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("onnxruntime", ARTIFACT)
    bench.put_decoded(status=status)
    result = bench.examine(ONNXRUNTIME)
    assert result.verdict.outcome is outcome
    assert f"in onnxruntime, decode (token by token): {status}, because" in result.verdict.reason


def test_nothing_is_decoded_if_nobody_wants_it(bench: Bench) -> None:
    bench.put("reference", bench.reference.path)
    bench.put("onnxruntime", ARTIFACT)
    assert set(outcomes(bench.examine(ONNXRUNTIME, decoded_positions=0))) == {TOTAL, RUNTIME}
