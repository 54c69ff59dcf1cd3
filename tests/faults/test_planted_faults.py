"""Faults that a conversion could make: each is found, in the tier and the tensor where it is."""

import json
import shutil
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import plan_mxfp4
from gptoss_convert.errors import GptossConvertError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.declaration import read_declaration
from gptoss_convert.verify.structure import StructureResult, compare_structure, unreadable_structure
from gptoss_convert.verify.weights import WeightsResult, verify_weights
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint
from tests.support.planted_faults import EXPERT, FAULTS, ROW

SHAPE = Shape(layers=2, hidden=64, intermediate=96)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("reference") / "hf", SHAPE, fill="gauss"))


def plan(kind: str, source: Checkpoint, folder: Path) -> Plan:
    match kind:
        case "gguf":
            return plan_gguf(source, folder / "model.gguf", GgufOptions())
        case "gguf bf16":
            return plan_gguf(source, folder / "model.gguf", GgufOptions(experts="bf16"))
        case "bf16":
            return plan_bf16(source, folder / "model")
        case _:
            return plan_mxfp4(source, folder / "model")


@pytest.fixture(scope="module", params=["gguf", "gguf bf16", "bf16", "mxfp4"])
def sound(request: pytest.FixtureRequest, reference: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound artifact with a manifest."""
    planned = plan(request.param, reference, tmp_path_factory.mktemp("artifacts")).with_manifest()
    execute(planned)
    return planned.output


def copied(artifact: Path, folder: Path) -> Path:
    """Return a copy of an artifact, without its manifest, which would tell of every change."""
    target = folder / artifact.name
    if artifact.is_dir():
        shutil.copytree(artifact, target)
        (target / "manifest.json").unlink()
    else:
        shutil.copyfile(artifact, target)
    return target


def verified(reference: Checkpoint, path: Path) -> tuple[StructureResult, WeightsResult | None]:
    try:
        artifact = open_checkpoint(path)
    except GptossConvertError as error:
        return unreadable_structure(error), None
    weights = verify_weights(reference, artifact, declaration=read_declaration(artifact), jobs=2)
    return compare_structure(reference, artifact), weights


def test_sound_artifact_passes(reference: Checkpoint, sound: Path) -> None:
    structure, weights = verified(reference, sound)
    assert weights is not None
    assert weights.declaration is not None
    assert (structure.failed, weights.reason) == ((), f"all {len(reference.tensors)} tensors are {weights.loss}")
    assert structure.passed
    assert weights.passed


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_where_it_is(name: str, reference: Checkpoint, sound: Path, tmp_path: Path) -> None:
    fault = FAULTS[name]
    artifact = copied(sound, tmp_path)
    fault.plant(artifact)
    structure, weights = verified(reference, artifact)
    if fault.tier == "structure":
        assert fault.named in [check.name for check in structure.failed]
        assert fault.named.removeprefix("tensor.") in structure.reason + "".join(c.name for c in structure.failed)
    else:
        assert weights is not None
        assert structure.passed
        assert [item.name for item in weights.failed] == [fault.named]
        assert weights.worst is not None
        assert weights.worst.name == fault.named
        assert fault.named in weights.reason
        json.dumps(weights.as_dict(), allow_nan=False)
    json.dumps(structure.as_dict(), allow_nan=False)


def test_fault_of_structure_leaves_the_numbers_as_they_are(
    reference: Checkpoint, sound: Path, tmp_path: Path
) -> None:
    artifact = copied(sound, tmp_path)
    for name in ("window off by one", "rope factor", "tokens exchanged"):
        FAULTS[name].plant(artifact)
    structure, weights = verified(reference, artifact)
    assert {check.name for check in structure.failed} == {
        "config.sliding_window",
        "config.rope.factor",
        "tokenizer.tokens",
    }
    assert weights is not None
    assert weights.passed


def test_missing_tensor_does_not_hide_the_others(reference: Checkpoint, sound: Path, tmp_path: Path) -> None:
    artifact = copied(sound, tmp_path)
    FAULTS["norm zeroed"].plant(artifact)
    FAULTS["sinks missing"].plant(artifact)
    structure, weights = verified(reference, artifact)
    missing = FAULTS["sinks missing"].named
    assert [check.name for check in structure.failed] == ["artifact", "tensors", missing]
    assert weights is not None
    assert weights.not_compared == (missing.removeprefix("tensor."),)
    assert [item.name for item in weights.failed] == [FAULTS["norm zeroed"].named]
    assert len(weights.tensors) == len(reference.tensors) - 1


@pytest.mark.parametrize(("name", "different"), [("flipped nibble", 1), ("scale off by one", None)])
def test_changed_block_is_the_only_one_and_is_found(
    name: str, different: int | None, reference: Checkpoint, sound: Path, tmp_path: Path
) -> None:
    artifact = copied(sound, tmp_path)
    FAULTS[name].plant(artifact)
    _, weights = verified(reference, artifact)
    assert weights is not None
    (found,) = weights.failed
    assert found.different_blocks == 1
    assert different in (None, found.different)
    assert found.worst_block is not None
    assert (found.worst_block.expert, found.worst_block.row, found.worst_block.column) == (EXPERT, ROW, 32)
    if name == "scale off by one":
        assert found.worst_block.relative_error == pytest.approx(1)


def test_exchanged_tokens_are_named(reference: Checkpoint, sound: Path, tmp_path: Path) -> None:
    artifact = copied(sound, tmp_path)
    FAULTS["tokens exchanged"].plant(artifact)
    structure, _ = verified(reference, artifact)
    assert structure.failed[0].note == 'id 64 ("a") and id 65 ("b") are exchanged'
