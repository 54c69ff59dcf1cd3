"""What of an ONNX folder was executed, and what only looked at."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import helper

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.execution import Kernels, execution_of, look_at_kernels
from gptoss_convert.verify.judgement import Outcome
from gptoss_convert.verify.logits import LogitsResult
from gptoss_convert.verify.runners.launch import Run, Status
from gptoss_convert.verify.runners.protocol import Settings
from gptoss_convert.verify.verdict import Cause, Verdict
from gptoss_convert.verify.verification import VerifyOptions, verify_artifacts
from tests.support.conversions import TINY


def written(folder: Path, target: str) -> Path:
    execute(plan_onnx(open_checkpoint(TINY), folder / target, OnnxOptions(target=target)))
    return folder / target


def kernels(folder: Path) -> Kernels:
    found = look_at_kernels(open_checkpoint(folder))
    assert found is not None
    return found


def result(
    runtime: str, provider: str | None, *, prefill: int | None = 50, decode: int | None = None
) -> LogitsResult:
    def run(
        runtime: str, provider: str | None, *counts: int | None, prefixes: tuple[int, ...] | None = None
    ) -> Run:
        return Run(
            runtime=runtime,
            artifact=Path("model"),
            settings=Settings(prefixes=prefixes),
            folder=Path("run"),
            status=Status.COMPLETED,
            provider=provider,
            prefill_positions=counts[0],
            decode_positions=counts[1],
        )

    runs = [run(runtime, provider, prefill, 0), run("reference", None, 50, 0)]
    if decode is not None:
        runs.append(run(runtime, provider, 7, decode, prefixes=(7,)))
    verdict = Verdict(outcome=Outcome.PASS, cause=None, reason="all is well")
    return LogitsResult(runtime=runtime, runs=tuple(runs), comparisons=(), noise_floor=None, verdict=verdict)


DIRECTML = Kernels(provider="DmlExecutionProvider", release="onnxruntime 1.24", missing=(), unchecked=None)


def test_folder_for_one_provider_that_another_executed() -> None:
    found = execution_of(DIRECTML, [result("onnxruntime", "CPUExecutionProvider", decode=12)])
    assert not found.executed_on_target
    assert found.statement == (
        "executed on CPUExecutionProvider (onnxruntime: prefill 50 positions, decode 12); "
        "DirectML: kernels checked statically, onnxruntime 1.24 has them all, not executed here"
    )


def test_providers_go_by_one_name_in_both_runtimes() -> None:
    found = execution_of(
        DIRECTML, [result("onnxruntime", "DmlExecutionProvider"), result("onnxruntime-genai", "DML")]
    )
    assert found.executed_on_target
    assert found.statement == (
        "executed on DmlExecutionProvider (onnxruntime: prefill 50 positions, decode 0; "
        "onnxruntime-genai: prefill 50 positions, decode 0); "
        "DirectML: kernels checked statically, onnxruntime 1.24 has them all"
    )


def test_runs_that_were_not_completed_executed_nothing() -> None:
    found = execution_of(DIRECTML, [result("onnxruntime", None, prefill=None)])
    assert (found.runs, found.executed_on_target) == ((), False)
    assert found.statement.startswith("nothing executed; DirectML: ")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("directml", "kernels checked statically, onnxruntime 1.24 has them all"),
        ("cpu", "kernels checked statically, onnxruntime 1.31 has them all"),
        ("cuda", "kernels not checked: no list of them is known"),
        ("webgpu", "kernels not checked: no list of them is known"),
    ],
)
def test_folders_are_held_against_the_kernels_of_their_provider(target: str, expected: str, tmp_path: Path) -> None:
    assert str(kernels(written(tmp_path, target))) == expected


def test_other_formats_have_no_kernels() -> None:
    assert look_at_kernels(open_checkpoint(TINY)) is None


def test_graph_that_its_provider_does_not_run_fails(tmp_path: Path) -> None:
    folder = written(tmp_path, "directml")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.node.append(helper.make_node("Det", ["position_matrix"], ["unused"], name="planted"))
    model.graph.input.append(helper.make_tensor_value_info("position_matrix", 1, (2, 2)))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    found = kernels(folder)
    assert len(found.missing) == 1
    assert found.missing[0].startswith("planted is ai.onnx.Det-11 with any inputs")
    checked = verify_artifacts(open_checkpoint(TINY), [folder], VerifyOptions()).artifacts[0]
    assert (checked.verdict.outcome, checked.verdict.cause) == (Outcome.FAIL, Cause.FILE)
    assert "DirectML does not run the graph: kernels checked statically, onnxruntime 1.24 lacks 1: planted" in (
        checked.verdict.reason
    )
    assert not execution_of(found, [result("onnxruntime", "DmlExecutionProvider")]).lacks_kernels


def test_graph_that_cannot_be_read_is_not_checked(tmp_path: Path) -> None:
    folder = written(tmp_path, "directml")
    checkpoint = open_checkpoint(folder)
    (folder / "model.onnx").write_bytes(b"not a graph")
    found = look_at_kernels(checkpoint)
    assert found is not None
    assert str(found).startswith("kernels not checked: the graph cannot be read: ")
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["filename"] = "other.onnx"
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert "other.onnx is missing" in str(look_at_kernels(checkpoint))
