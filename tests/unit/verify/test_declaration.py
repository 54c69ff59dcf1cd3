"""What the manifest beside an artifact declares."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.encodings import LossClass
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.declaration import Declaration, manifest_path, read_declaration
from gptoss_convert.verify.weights import verify_weights
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint

BYTE_EXACT, VALUE_EXACT, LOSSY = LossClass
NORM = "model.norm.weight"
EXPERTS = "model.layers.0.mlp.experts.down_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    shape = Shape(layers=1)
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("source") / "hf", shape, edge_blocks=False))


@pytest.fixture
def artifact(source: Checkpoint, tmp_path: Path) -> Path:
    """A GGUF file with its manifest."""
    plan = plan_gguf(source, tmp_path / "m.gguf", GgufOptions(dense="q8_0")).with_manifest()
    execute(plan)
    return plan.output


def declaration(artifact: Path) -> Declaration:
    found = read_declaration(open_checkpoint(artifact), jobs=2)
    assert found is not None
    json.dumps(found.as_dict())
    return found


def edit(artifact: Path, change: Callable[[Any], object]) -> None:
    path = manifest_path(artifact)
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


def test_artifact_has_no_declaration_without_a_manifest(source: Checkpoint) -> None:
    assert read_declaration(source) is None


def test_manifest_of_this_tool_is_the_artifacts(source: Checkpoint, artifact: Path) -> None:
    found = declaration(artifact)
    assert found.findings == ()
    losses = found.losses(source)
    assert losses.keys() == source.tensors.keys()
    assert (losses[EXPERTS], losses[NORM], losses["lm_head.weight"]) == (BYTE_EXACT, VALUE_EXACT, LOSSY)
    result = verify_weights(source, open_checkpoint(artifact), declaration=found)
    assert result.passed
    assert {item.name: item.declared for item in result.tensors} == losses


def test_manifest_of_a_folder_lies_in_it(source: Checkpoint, tmp_path: Path) -> None:
    plan = plan_bf16(source, tmp_path / "bf16").with_manifest()
    execute(plan)
    assert manifest_path(plan.output) == plan.output / "manifest.json"
    assert declaration(plan.output).findings == ()


def test_split_file_has_one_manifest(source: Checkpoint, tmp_path: Path) -> None:
    plan = plan_gguf(source, tmp_path / "m.gguf", GgufOptions(split_max_size=100_000)).with_manifest()
    execute(plan)
    assert len(plan.files) > 1
    assert declaration(plan.output).findings == ()
    os.truncate(plan.files[-1].path, plan.files[-1].nbytes)  # only the time changes
    assert declaration(plan.output).findings == ()


def test_changed_file_is_a_finding_and_the_weights_do_not_pass(source: Checkpoint, artifact: Path) -> None:
    content = artifact.read_bytes()
    artifact.write_bytes(content.replace(b"quantization_version", b"quantisation_version"))
    found = declaration(artifact)
    assert found.findings == ("m.gguf is not the file of the manifest: other SHA-256",)
    result = verify_weights(source, open_checkpoint(artifact), declaration=found)
    assert (result.failed, result.passed, result.reason) == ((), False, found.findings[0])
    json.dumps(result.as_dict(), allow_nan=False)


def test_longer_file_is_a_finding_without_being_hashed(artifact: Path) -> None:
    size = artifact.stat().st_size
    with artifact.open("ab") as file:
        file.write(b"x")
    assert declaration(artifact).findings == (f"m.gguf has {size + 1} bytes, not the {size} of the manifest",)


def test_manifest_of_an_earlier_file_declares_nothing(source: Checkpoint, tmp_path: Path) -> None:
    """It is the manifest that is wrong: no tensor is blamed for being worse than it says."""
    file = tmp_path / "m.gguf"
    execute(plan_gguf(source, file, GgufOptions()).with_manifest())
    execute(plan_gguf(source, file, GgufOptions(dense="q8_0")), replace=True)
    artifact = open_checkpoint(file)
    declaration = read_declaration(artifact)
    result = verify_weights(source, artifact, declaration=declaration)
    assert not result.passed
    assert result.failed == ()
    assert "of the manifest" in result.reason


def test_artifact_worse_than_declared_does_not_pass(source: Checkpoint, artifact: Path) -> None:
    def change(content: Any) -> None:
        (tensor,) = (item for item in content["tensors"] if item["name"] == "lm_head.weight")
        tensor["loss"] = "value-exact"

    edit(artifact, change)
    found = declaration(artifact)
    assert found.findings == ()
    result = verify_weights(source, open_checkpoint(artifact), declaration=found)
    assert [item.name for item in result.failed] == ["lm_head.weight"]
    assert "is lossy where value-exact is declared" in result.reason


def drop(content: Any, name: str) -> None:
    content["tensors"] = [item for item in content["tensors"] if item["name"] != name]


DAMAGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "other version": (lambda m: m.update(manifest_version=2), "is of version 2, not 1"),
    "no files": (lambda m: m.pop("files"), "is damaged"),
    "unknown class": (lambda m: m["tensors"][0].update(loss="fine"), "is damaged"),
    "file elsewhere": (lambda m: m["files"][0].update(name="../m.gguf"), "outside of its folder: ../m.gguf"),
    "file missing": (lambda m: m["files"][0].update(name="n.gguf"), "names n.gguf, which is missing"),
    "other digest": (lambda m: m["canonical_hash"].update(model="0" * 64), "not that of its tensors"),
    "better than its tensors": (lambda m: m.update(loss="byte-exact"), "not as the worst of its tensors"),
    "tensor missing": (lambda m: drop(m, NORM), f"does not name tensor {NORM}"),
    "other encoding": (lambda m: m["tensors"][0].update(encoding="f16"), "says f16 of tensor"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_manifest_that_is_not_the_artifacts_is_a_finding(name: str, artifact: Path) -> None:
    change, words = DAMAGES[name]
    edit(artifact, change)
    assert words in " ".join(declaration(artifact).findings)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_manifest_that_is_none_is_a_finding(content: bytes, artifact: Path) -> None:
    manifest_path(artifact).write_bytes(content)
    (finding,) = declaration(artifact).findings
    assert finding.startswith("manifest m.gguf.manifest.json is damaged")


@pytest.mark.parametrize("content", [{}, {"name": "my app", "icons": []}, {"tool": {"name": "other"}}])
def test_file_of_that_name_by_another_program_is_none(content: Any, artifact: Path) -> None:
    manifest_path(artifact).write_text(json.dumps(content))
    assert read_declaration(open_checkpoint(artifact)) is None


def test_huge_manifest_is_a_finding(artifact: Path) -> None:
    os.truncate(manifest_path(artifact), 1 << 30)
    declaration = read_declaration(open_checkpoint(artifact))
    assert declaration is not None
    assert len(declaration.findings) == 1
    assert "cannot be read: file is too large" in declaration.findings[0]


def test_conversion_from_another_form_declares_nothing_of_this_reference(
    source: Checkpoint, artifact: Path, tmp_path: Path
) -> None:
    """A byte-exact copy of rounded numbers is no promise about the numbers before."""
    plan = plan_gguf(open_checkpoint(artifact), tmp_path / "copy.gguf", GgufOptions()).with_manifest()
    execute(plan)
    found = declaration(plan.output)
    assert set(found.losses(open_checkpoint(artifact)).values()) == {BYTE_EXACT}
    assert found.losses(source) == {}
    assert verify_weights(source, open_checkpoint(plan.output), declaration=found).passed
