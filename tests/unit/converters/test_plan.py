"""What a plan says about itself, and that it is a value."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss_convert.checkpoint import Tensor
from gptoss_convert.converters.execute import Resources, execute
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.recoding import PLAIN, NamingRecoding, QuantisingRecoding, Recoding
from gptoss_convert.converters.tasks import tasks
from gptoss_convert.converters.to_bf16 import plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import plan_mxfp4
from gptoss_convert.encodings import ENCODINGS, LossClass, Order
from gptoss_convert.encodings.mxfp4_quantiser import ScaleRule
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.storage import FileRef, PartsStorage, SameBytes, StoredArray
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.memory import zeros
from tests.support.tokenizers import write_small_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in every layout."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("mxfp4", "bf16", "openai"):
        write_small_tokenizer(folder / name)
    write_huggingface(folder / "mxfp4", Shape(layers=1), shards=2)
    write_huggingface(folder / "bf16", Shape(layers=1), experts="bf16")
    write_original(folder / "openai", Shape(layers=1))
    execute(plan_gguf(open_checkpoint(folder / "mxfp4"), folder / "model.gguf"))
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return plan_gguf(open_checkpoint(folder / "mxfp4"), folder / "out.gguf")


@pytest.mark.parametrize(
    ("source", "target", "loss"),
    [
        ("mxfp4", "mxfp4", LossClass.BYTE_EXACT),
        ("mxfp4", "bf16", LossClass.VALUE_EXACT),
        ("bf16", "mxfp4", LossClass.LOSSY),
    ],
)
def test_loss_of_a_transfer(source: str, target: str, loss: LossClass) -> None:
    assert Transfer(zeros("t", (2, 32), source), zeros("t", (2, 32), target)).loss is loss


def in_rows(encoding: str, path: Path) -> Tensor:
    codec = ENCODINGS[encoding]
    rows = StoredArray(FileRef(path, 200), 0, codec.parts[0].dtype, 32 * codec.parts[0].per_block // codec.block)
    return Tensor("t", (2, 32), codec, PartsStorage((rows,)))


@pytest.mark.parametrize("encoding", ["bf16", "f16", "f32"])
def test_plain_numbers_that_keep_their_encoding_are_the_same_bytes(tmp_path: Path, encoding: str) -> None:
    source, target = in_rows(encoding, tmp_path / "old"), in_rows(encoding, tmp_path / "new")
    assert Transfer(source, target).same_bytes == SameBytes.of(source.storage, target.storage)


@pytest.mark.parametrize(
    ("source", "target", "recoding"),
    [
        pytest.param("bf16", "f16", PLAIN, id="converted"),
        pytest.param("mxfp4", "mxfp4", PLAIN, id="checked"),
        pytest.param("bf16", "bf16", NamingRecoding(), id="looked at"),
    ],
)
def test_numbers_that_have_to_be_looked_at_are_not_copied_unseen(
    tmp_path: Path, source: str, target: str, recoding: Recoding
) -> None:
    tensors = in_rows(source, tmp_path / "old"), in_rows(target, tmp_path / "new")
    assert SameBytes.of(*(tensor.storage for tensor in tensors)) is not None
    assert Transfer(*tensors, recoding).same_bytes is None


@pytest.mark.parametrize(("source", "target", "group"), [(1, 1, 1), (6, 1, 6), (1, 2, 2), (6, 2, 6)])
def test_rows_that_move_together(source: int, target: int, group: int) -> None:
    tensors = (zeros("t", (12, 32), row_group=rows) for rows in (source, target))
    assert Transfer(*tensors).row_group == group


def test_memory_of_a_row() -> None:
    plain, gathered = zeros("t", (12, 32), "bf16"), zeros("t", (12, 32), "bf16", row_group=6)
    columns = zeros("t", (12, 32), "bf16", row_group=6, order="F")
    assert Transfer(plain, plain).holding_bytes_per_row == 64
    assert Transfer(gathered, plain).holding_bytes_per_row == 128
    assert Transfer(columns, plain).holding_bytes_per_row == 64
    assert Transfer(plain, columns).holding_bytes_per_row == 64 + 64
    assert Transfer(plain, plain).working_bytes_per_row == 64
    converting = Transfer(plain, zeros("t", (12, 32), "mxfp4")).working_bytes_per_row
    assert converting >= 17 + 4 * 32


def test_rows_that_lie_in_columns_are_written_in_one_piece() -> None:
    rows, columns = zeros("t", (12, 32), "bf16"), zeros("t", (12, 32), "bf16", row_group=6, order="F")
    assert Transfer(rows, columns).gathers
    assert not Transfer(columns, rows).gathers


@pytest.mark.parametrize(
    ("source", "source_order", "target", "target_order", "recoding", "in_one_step"),
    [
        ("mxfp4", "C", "bf16", "F", NamingRecoding(), True),
        ("bf16", "F", "mxfp4", "C", QuantisingRecoding(ScaleRule.MSE), True),
        ("bf16", "F", "bf16", "F", PLAIN, True),
        ("bf16", "C", "bf16", "C", PLAIN, False),
        ("mxfp4", "C", "mxfp4", "C", PLAIN, False),
        ("f32", "C", "bf16", "F", PLAIN, False),
        ("f16", "F", "mxfp4", "C", QuantisingRecoding(ScaleRule.MSE), False),
    ],
)
def test_recodings_that_work_in_pieces_are_given_whole_tasks(
    source: str, source_order: Order, target: str, target_order: Order, recoding: Recoding, in_one_step: bool
) -> None:
    """Unless rows can be written one after the other as they come."""
    transfer = Transfer(
        zeros("t", (12, 32), source, order=source_order), zeros("t", (12, 32), target, order=target_order), recoding
    )
    assert transfer.in_one_step == in_one_step
    if in_one_step and transfer.gathers:
        assert transfer.working_bytes_per_row == 0


def test_plan_adds_up(plan: Plan) -> None:
    entries = [entry for file in plan.files for entry in file.entries]
    assert plan.nbytes == sum(file.nbytes for file in plan.files)
    assert plan.data_nbytes == sum(entry.nbytes for entry in entries)
    assert plan.data_nbytes <= plan.nbytes
    assert {entry.source for entry in entries} == {transfer.target.name for transfer in plan.transfers}


def test_loss_is_the_worst_of_all(plan: Plan) -> None:
    assert plan.loss is LossClass.VALUE_EXACT
    rounded = Transfer(zeros("t", (2, 32)), zeros("t", (2, 32), "bf16"))
    assert replace(plan, transfers=(*plan.transfers, rounded)).loss is LossClass.LOSSY
    assert replace(plan, transfers=()).loss is LossClass.BYTE_EXACT


def test_plan_is_ready_for_json(folder: Path) -> None:
    plan = plan_gguf(open_checkpoint(folder / "mxfp4"), folder / "out.gguf", GgufOptions(split_max_size=100_000))
    facts = json.loads(json.dumps(plan.as_dict()))
    assert facts["loss"] == "value-exact"
    assert facts["nbytes"] == plan.nbytes
    assert [Path(file["path"]) for file in facts["files"]] == [file.path for file in plan.files]
    assert [(entry["file"], entry["name"]) for entry in facts["tensors"]] == [
        (index, entry.name) for index, file in enumerate(plan.files) for entry in file.entries
    ]
    assert {entry["loss"] for entry in facts["tensors"]} == {"byte-exact", "value-exact"}


@pytest.mark.parametrize("source", ["mxfp4", "bf16", "openai", "model.gguf"])
def test_plans_and_tasks_are_values_that_can_be_sent_to_another_process(folder: Path, source: str) -> None:
    for options in (GgufOptions(), GgufOptions(dense="q8_0", experts="f32", split_max_size=100_000)):
        plan = plan_gguf(open_checkpoint(folder / source), folder / "out.gguf", options)
        assert plan_gguf(open_checkpoint(folder / source), folder / "out.gguf", options) == plan
        assert pickle.loads(pickle.dumps(plan)) == plan
        for task in tasks(plan, Resources()):
            assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize("source", ["mxfp4", "bf16", "openai", "model.gguf"])
@pytest.mark.parametrize("recipe", [plan_bf16, plan_mxfp4])
def test_plans_for_folders_are_values_too(folder: Path, source: str, recipe: Callable[..., Plan]) -> None:
    plan = recipe(open_checkpoint(folder / source), folder / "out")
    assert recipe(open_checkpoint(folder / source), folder / "out") == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    for task in tasks(plan, Resources()):
        assert pickle.loads(pickle.dumps(task)) == task
    entries = [entry for file in plan.files for entry in file.entries]
    assert plan.data_nbytes == sum(entry.nbytes for entry in entries)


def test_folder_is_the_output_and_holds_all_files(folder: Path) -> None:
    plan = plan_bf16(open_checkpoint(folder / "mxfp4"), folder / "out").with_manifest()
    assert plan.output == plan.folder == folder / "out"
    assert plan.paths_made_at_the_end == (folder / "out/mxfp4-scales.zip", folder / "out/manifest.json")
    paths = [*(file.path for file in plan.files), *plan.paths_made_at_the_end]
    assert {path.parent for path in paths} == {folder / "out"}
    assert len(set(paths)) == len(paths)
    facts = json.loads(json.dumps(plan.as_dict()))
    assert facts["files_made_at_the_end"] == [str(path) for path in plan.paths_made_at_the_end]
    assert facts["loss"] == "value-exact"


def test_files_are_copied_written_or_laid_out(folder: Path) -> None:
    """A text is all header, a copy has none, and of weights the header is what precedes the tensors."""
    plan = plan_mxfp4(open_checkpoint(folder / "mxfp4"), folder / "out")
    for file in plan.files:
        if file.entries:
            assert file.copied is None
            assert len(file.header) < file.nbytes
        elif file.copied is not None:
            assert file.header == b""
            assert file.copied.path == folder / "mxfp4" / file.path.name
            assert file.nbytes == file.copied.size
        else:
            assert file.path.name == "config.json"
            assert len(file.header) == file.nbytes


def test_copy_of_a_plan_writes_the_same_files(plan: Plan) -> None:
    execute(plan)
    written = plan.output.read_bytes()
    execute(pickle.loads(pickle.dumps(plan)), replace=True)
    assert plan.output.read_bytes() == written
