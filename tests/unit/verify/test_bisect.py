"""Where an artifact departs: the first layer, stage and tensor, or the field of the configuration."""

import json
import shutil
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.bisect import Bisection, bisect
from gptoss_convert.verify.prompts import PromptSet
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.planted_faults import DOWN, FAULTS, GATE_UP, NORM, SINKS
from tests.support.recordings import prompt_set

SHAPE = Shape(layers=2, hidden=64, intermediate=96)
STAGES_OF_LAYER = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("reference")
    return make_checkpoint(target, SHAPE, fill="gauss", edge_blocks=False)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Checkpoint:
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def prompts() -> PromptSet:
    """More positions than the window has, so that it matters."""
    return prompt_set(
        [[(7 * place + 3) % 400 for place in range(length)] for length in (SHAPE.sliding_window + 9, 20)]
    )


@pytest.fixture(scope="module")
def sound(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(folder, tmp_path_factory.mktemp("gguf") / "model.gguf")


def faulty(name: str, sound: Path, tmp_path: Path) -> Checkpoint:
    path = Path(shutil.copyfile(sound, tmp_path / "model.gguf"))
    FAULTS[name].plant(path)
    return open_checkpoint(path)


def test_equal_models_depart_nowhere(reference: Checkpoint, sound: Path, prompts: PromptSet) -> None:
    found = bisect(reference, open_checkpoint(sound), prompts)
    assert found == Bisection(
        positions=prompts.positions, finding=None, departures=(), hidden_errors=(0.0, 0.0, 0.0)
    )


@pytest.mark.parametrize(
    ("fault", "layer", "stage", "tensor"),
    [
        ("swapped experts", 1, "experts", DOWN),
        ("gate and up exchanged", 0, "experts", GATE_UP),
        ("flipped nibble", 0, "experts", GATE_UP),
        ("scale off by one", 1, "experts", DOWN),
        ("sinks zeroed", 1, "attention", SINKS),
        ("norm zeroed", 1, "norm", NORM),
    ],
)
def test_first_layer_stage_and_tensor_are_named(
    fault: str,
    layer: int,
    stage: str,
    tensor: str,
    reference: Checkpoint,
    sound: Path,
    prompts: PromptSet,
    tmp_path: Path,
) -> None:
    found = bisect(reference, faulty(fault, sound, tmp_path), prompts)
    assert found.finding is not None
    departure = found.finding.departure
    assert (departure.layer, departure.stage, found.finding.tensor) == (layer, stage, tensor)
    assert found.finding.reason.startswith(f"layer {layer}, {stage} departs: tensor {tensor} ")
    assert found.departures == (departure,)
    assert departure.relative_error > 0
    # Left to itself, the artifact is right up to that layer, and then no more.
    assert [error > 0 for error in found.hidden_errors] == [place > layer for place in range(3)]


@pytest.mark.parametrize(
    ("fault", "stage", "field"),
    [("window off by one", "attention", "config.sliding_window"), ("rope factor", "query", "config.rope.factor")],
)
def test_departure_with_equal_tensors_is_the_configurations(
    fault: str, stage: str, field: str, reference: Checkpoint, sound: Path, prompts: PromptSet, tmp_path: Path
) -> None:
    finding = bisect(reference, faulty(fault, sound, tmp_path), prompts).finding
    assert finding is not None
    assert (finding.departure.layer, finding.departure.stage, finding.tensor) == (0, stage, None)
    assert finding.reason == (
        f"layer 0, {stage} departs although all of its tensors are equal: the artifact states another {field}"
    )


def test_earlier_fault_comes_first(reference: Checkpoint, sound: Path, prompts: PromptSet, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(sound, tmp_path / "model.gguf"))
    for fault in ("swapped experts", "sinks zeroed", "flipped nibble"):
        FAULTS[fault].plant(path)
    finding = bisect(reference, open_checkpoint(path), prompts).finding
    assert finding is not None
    assert finding.tensor == GATE_UP


@pytest.fixture(scope="module")
def lossy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_gguf(folder, tmp_path_factory.mktemp("lossy") / "model.gguf", dense="q8_0")


def test_where_all_lose_no_more_than_they_may_the_largest_loss_is_told(
    reference: Checkpoint, lossy: Path, prompts: PromptSet
) -> None:
    found = bisect(reference, open_checkpoint(lossy), prompts)
    assert found.finding is not None
    assert found.finding.tensor is None
    assert found.finding.departure == max(found.departures, key=lambda item: item.relative_error)
    assert found.finding.reason.startswith("no stage departs by more than the encodings may lose; ")
    assert f"{found.finding.departure.place} loses most" in found.finding.reason
    places = [departure.place for departure in found.departures]
    assert places[:2] == ["embedding", "layer 0, query"]  # norms are never rounded
    assert places[-1] == "unembedding"
    assert all(0 < departure.relative_error < 0.05 for departure in found.departures)


def test_fault_is_told_from_losses_before_it(
    reference: Checkpoint, lossy: Path, prompts: PromptSet, tmp_path: Path
) -> None:
    found = bisect(reference, faulty("sinks zeroed", lossy, tmp_path), prompts)
    assert found.finding is not None
    assert found.finding.tensor == SINKS
    assert found.departures[-1] == found.finding.departure
    assert len(found.departures) > 5


def test_long_prompts_are_cut(reference: Checkpoint, sound: Path, prompts: PromptSet) -> None:
    long = prompt_set([[1] * 500, [2] * 500, [3] * 500])
    assert bisect(reference, open_checkpoint(sound), long).positions == 512


def test_is_json(reference: Checkpoint, sound: Path, prompts: PromptSet, tmp_path: Path) -> None:
    document = bisect(reference, faulty("norm zeroed", sound, tmp_path), prompts).as_dict()
    json.dumps(document, allow_nan=False)
    assert document["finding"]["departure"]["layer"] == 1
