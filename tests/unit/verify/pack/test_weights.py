"""Weights of artifacts against what a pack keeps of the reference's."""

import json
import shutil
from pathlib import Path

import pytest

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.encodings import LossClass
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.verify.declaration import read_declaration
from gptoss_convert.verify.pack.reader import Pack, read_pack
from gptoss_convert.verify.pack.weights import verify_weights_by_pack
from gptoss_convert.verify.weights import Basis, TensorComparison, WeightsResult, verify_weights
from tests.cli.command import run_here
from tests.support.checkpoints import Shape
from tests.support.conversions import make_checkpoint, to_gguf
from tests.support.packs import make_pack
from tests.support.planted_faults import DOWN, FAULTS, GATE_UP, NORM

IN_WEIGHTS = [name for name, fault in FAULTS.items() if fault.tier == "weights"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `model`, `model.pack`, `exact.gguf`, `q8.gguf` and the ONNX folder `int8` lie."""
    folder = tmp_path_factory.mktemp("weights")
    model = make_checkpoint(folder / "model", Shape(), fill="gauss", edge_blocks=False)
    make_pack(model, folder / "model.pack")
    to_gguf(model, folder / "exact.gguf")
    to_gguf(model, folder / "q8.gguf", dense="q8_0", experts="q8_0")
    assert run_here("to-onnx", model, "-o", folder / "int8", "--target", "cpu", "-q").exit_code == 0
    return folder


@pytest.fixture(scope="module")
def pack(folder: Path) -> Pack:
    return read_pack(folder / "model.pack")


def compared(pack: Pack, path: Path) -> WeightsResult:
    artifact = open_checkpoint(path)
    return verify_weights_by_pack(pack, artifact, declaration=read_declaration(artifact), jobs=2)


def named(result: WeightsResult, name: str) -> TensorComparison:
    return next(item for item in result.tensors if item.name == name)


@pytest.mark.parametrize("name", ["model", "exact.gguf", "int8"])
def test_exact_artifacts_are_proved_by_hashes(name: str, pack: Pack, folder: Path) -> None:
    """Those without signs of zero too."""
    result = compared(pack, folder / name)
    assert (result.passed, result.reason) == (True, f"all {len(pack.model.tensors)} tensors are value-exact")
    assert {item.basis for item in result.tensors} == {Basis.HASH}
    assert {item.expected for item in result.tensors} == {LossClass.VALUE_EXACT}


def test_bf16_folder_of_mxfp4_is_proved_by_hashes(pack: Pack, folder: Path) -> None:
    execute(plan_bf16(open_checkpoint(folder / "model"), folder / "bf16"))
    assert compared(pack, folder / "bf16").loss is LossClass.VALUE_EXACT


def test_rounded_tensors_are_judged_by_a_sample(pack: Pack, folder: Path) -> None:
    result = compared(pack, folder / "q8.gguf")
    assert result.passed
    exact = verify_weights(open_checkpoint(folder / "model"), open_checkpoint(folder / "q8.gguf"))
    sampled = [item for item in result.tensors if item.basis is Basis.SAMPLE]
    assert [item.name for item in sampled] == [item.name for item in exact.tensors if item.different]
    for item in sampled:
        whole = named(exact, item.name)
        assert item.found is item.expected is LossClass.LOSSY
        assert item.signal_to_noise == pytest.approx(whole.signal_to_noise, abs=3)
    assert f"{len(sampled)} are lossy as promised, as far as a few numbers of each tell" in result.reason
    json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", IN_WEIGHTS)
def test_every_fault_in_exact_numbers_is_found(name: str, pack: Pack, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(folder / "exact.gguf", tmp_path / "faulty.gguf"))
    FAULTS[name].plant(path)
    result = compared(pack, path)
    assert [item.name for item in result.failed] == [FAULTS[name].named]
    assert f"tensor {FAULTS[name].named} has another canonical hash where value-exact is promised" in result.reason


@pytest.mark.parametrize("name", ["norm zeroed", "swapped experts", "gate and up exchanged"])
def test_coarse_fault_in_rounded_numbers_shows_in_the_sample(
    name: str, pack: Pack, folder: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copyfile(folder / "q8.gguf", tmp_path / "faulty.gguf"))
    FAULTS[name].plant(path)
    (failed,) = compared(pack, path).failed
    assert failed.name == FAULTS[name].named
    assert failed.name in (NORM, DOWN, GATE_UP)


def test_missing_and_damaged_tensors_are_findings(pack: Pack, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(folder / "exact.gguf", tmp_path / "faulty.gguf"))
    FAULTS["sinks missing"].plant(path)
    result = compared(pack, path)
    assert result.not_compared == (FAULTS["sinks missing"].named.removeprefix("tensor."),)
    assert not result.passed
