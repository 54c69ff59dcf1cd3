"""Execution: the same bytes however the work is cut and whoever does it, and the right ones."""

import errno
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_convert.canonical_hash import SEGMENT_ROWS
from gptoss_convert.checkpoint import Checkpoint, Tensor
from gptoss_convert.converters import execute as execute_module
from gptoss_convert.converters.execute import Resources, execute
from gptoss_convert.converters.plan import Plan, Transfer
from gptoss_convert.converters.recoding import NOTHING_FOUND, Findings
from gptoss_convert.converters.tasks import LEAST_MEMORY_PER_JOB, Task, TaskResult, run_task, tasks
from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
from gptoss_convert.encodings import ENCODINGS, Array, LossClass, Order
from gptoss_convert.encodings.deviation import deviation
from gptoss_convert.errors import BudgetError, InputError, OutputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.formats.gguf.names import gguf_names
from gptoss_convert.formats.storage import FileRef, PartsStorage, StoredArray
from tests.support.checkpoints import Shape, write_huggingface, write_original
from tests.support.memory import FilesInMemory, zeros
from tests.support.tokenizers import write_small_tokenizer

SHAPE = Shape(layers=1, experts=3, experts_per_token=2)
OPTIONS = {
    "as it is": GgufOptions(),
    "q8_0": GgufOptions(dense="q8_0"),
    "f16": GgufOptions(dense="f16"),
    "f32": GgufOptions(dense="f32", experts="f32"),
    "split": GgufOptions(split_max_size=100_000),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One model in every layout, and as a GGUF file."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("mxfp4", "bf16", "openai"):
        write_small_tokenizer(folder / name)
    found = {
        "mxfp4": open_checkpoint(write_huggingface(folder / "mxfp4", SHAPE, shards=3, placement="shuffled")),
        "bf16": open_checkpoint(write_huggingface(folder / "bf16", SHAPE, experts="bf16")),
        "openai": open_checkpoint(write_original(folder / "openai", SHAPE)),
    }
    execute(plan_gguf(found["mxfp4"], folder / "model.gguf"))
    return found | {"gguf": open_checkpoint(folder / "model.gguf")}


def contents(
    checkpoint: Checkpoint, folder: Path, options: GgufOptions | None = None, **how: Any
) -> dict[str, bytes]:
    """The files that a conversion writes."""
    folder.mkdir()
    execute(plan_gguf(checkpoint, folder / "out.gguf", options), **how)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def numbers(path: Path) -> dict[str, Array]:
    """The tensors of a GGUF file, as gguf-py reads them."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(tensor.shape[::-1]))
        for tensor in gguf.GGUFReader(path).tensors
    }


def canonical_numbers(checkpoint: Checkpoint) -> dict[str, Array]:
    """The tensors of a checkpoint under their GGUF names."""
    found: dict[str, Array] = {}
    for name, tensor in checkpoint.tensors.items():
        values = tensor.encoding.decode(tensor.read(0, tensor.rows)).reshape(tensor.shape)
        names = gguf_names(name)
        found |= {half: values if len(names) == 1 else values[:, index::2] for index, half in enumerate(names)}
    return found


def assert_same_numbers(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


# --- the right bytes


@pytest.mark.parametrize(
    ("source", "experts"),
    [
        ("mxfp4", None),
        ("bf16", None),
        ("openai", None),
        ("gguf", None),
        ("mxfp4", "bf16"),
        ("mxfp4", "f32"),
        ("bf16", "mxfp4"),  # they came from MXFP4
    ],
)
def test_numbers_arrive_exactly(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, source: str, experts: str | None
) -> None:
    contents(checkpoints[source], tmp_path / "out", GgufOptions(experts=experts))
    assert_same_numbers(numbers(tmp_path / "out/out.gguf"), canonical_numbers(checkpoints["mxfp4"]))


def test_layouts_with_the_same_encodings_become_the_same_data(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    plans = [plan_gguf(checkpoints[name], tmp_path / f"{name}.gguf") for name in ("mxfp4", "openai", "gguf")]
    for plan in plans:
        execute(plan)
    data = [plan.output.read_bytes()[len(plan.files[0].header) :] for plan in plans]
    assert data[0] == data[1] == data[2]


def test_split_files_hold_the_same_numbers(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    written = contents(checkpoints["mxfp4"], tmp_path / "out", OPTIONS["split"])
    assert len(written) > 1
    split = open_checkpoint(tmp_path / "out" / min(written))
    split.require_sound()
    assert_same_numbers(canonical_numbers(split), canonical_numbers(checkpoints["mxfp4"]))


def test_planned_tensors_can_be_read_where_they_were_written(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    plan = plan_gguf(checkpoints["bf16"], tmp_path / "out.gguf")
    execute(plan)
    artifact = open_checkpoint(plan.output)
    for transfer in plan.transfers:
        target, found = transfer.target, artifact.tensors[transfer.target.name]
        assert (target.shape, target.encoding) == (found.shape, found.encoding)
        for planned, read in zip(target.read(0, target.rows), found.read(0, found.rows), strict=True):
            np.testing.assert_array_equal(planned, read)


# --- the same bytes however the work is cut


@pytest.fixture(scope="module")
def reference(
    checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], dict[str, bytes]]:
    """What one thread writes in one piece per tensor."""
    written: dict[tuple[str, str], dict[str, bytes]] = {}

    def get(source: str, options: str) -> dict[str, bytes]:
        if (source, options) not in written:
            folder = tmp_path_factory.mktemp("reference") / "out"
            how = {"resources": Resources(jobs=1)}
            written[source, options] = contents(checkpoints[source], folder, OPTIONS[options], **how)
        return written[source, options]

    return get


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("source", ["mxfp4", "bf16", "gguf"])
def test_bytes_depend_neither_on_jobs_nor_on_memory(
    checkpoints: dict[str, Checkpoint],
    reference: Callable[[str, str], dict[str, bytes]],
    tmp_path: Path,
    source: str,
    options: str,
) -> None:
    for jobs in (1, 2, 3, 4):
        for memory in (jobs * LEAST_MEMORY_PER_JOB, 192 << 20):
            how = {"resources": Resources(jobs=jobs, memory=memory)}
            written = contents(checkpoints[source], tmp_path / f"{jobs}-{memory}", OPTIONS[options], **how)
            assert written == reference(source, options)


@pytest.mark.parametrize("options", ["as it is", "split"])
@pytest.mark.parametrize("source", ["mxfp4", "bf16", "gguf"])
def test_processes_write_the_same_bytes(
    checkpoints: dict[str, Checkpoint],
    reference: Callable[[str, str], dict[str, bytes]],
    tmp_path: Path,
    source: str,
    options: str,
) -> None:
    with ProcessPoolExecutor(2) as pool:
        written = contents(checkpoints[source], tmp_path / "out", OPTIONS[options], executor=pool)
    assert written == reference(source, options)


@settings(max_examples=15)
@pytest.mark.parametrize("name", ["gate_up_proj", "gate_up_proj_bias", "down_proj"])
@pytest.mark.parametrize("source", ["mxfp4", "bf16", "gguf"])
@given(data=st.data())
def test_any_cut_writes_every_byte_once_and_the_same(
    checkpoints: dict[str, Checkpoint], data: st.DataObject, source: str, name: str
) -> None:
    plan = plan_gguf(checkpoints[source], Path("out.gguf"), GgufOptions(experts="bf16"))
    transfer = next(t for t in plan.transfers if t.source.name.endswith(name))
    rows = transfer.source.rows
    whole, cut = FilesInMemory(), FilesInMemory()
    written = run_task(Task(transfer, 0, rows, rows), whole).nbytes
    start = nbytes = 0
    while start < rows:
        stop = data.draw(st.integers(start + 1, rows))
        nbytes += run_task(Task(transfer, start, stop, data.draw(st.integers(1, rows))), cut).nbytes
        start = stop
    runs = whole.runs()
    assert cut.runs() == runs
    assert (
        nbytes
        == written
        == transfer.target.nbytes
        == sum(len(run) for file in runs.values() for run in file.values())
    )


# --- tasks


def transfer_of(
    shape: tuple[int, ...], source: str, target: str, *, row_group: int = 1, order: Order = "C"
) -> Transfer:
    return Transfer(
        zeros("t", shape, source, row_group=row_group), zeros("t", shape, target, row_group=1, order=order)
    )


def plan_of(*transfers: Transfer) -> Plan:
    return Plan(source=Path(), source_format="", inputs=(), format="", files=(), transfers=transfers)


@given(
    matrices=st.integers(1, 5),
    rows=st.integers(1, 6_000),
    columns=st.integers(1, 2000).map(lambda blocks: 32 * blocks),
    in_groups=st.booleans(),
    source=st.sampled_from(["mxfp4", "bf16"]),
    target=st.sampled_from(["mxfp4", "bf16"]),
    order=st.sampled_from(["C", "F"]),
    jobs=st.integers(1, 8),
    memory=st.integers(LEAST_MEMORY_PER_JOB, 64 << 20),
)
def test_tasks_cover_all_rows_once_and_keep_within_memory(
    matrices: int,
    rows: int,
    columns: int,
    in_groups: bool,
    source: str,
    target: str,
    order: Order,
    jobs: int,
    memory: int,
) -> None:
    shape = (matrices, rows, columns)
    transfer = transfer_of(shape, source, target, row_group=rows if in_groups else 1, order=order)
    resources = Resources(jobs=jobs, memory=jobs * memory)
    found = list(tasks(plan_of(transfer, transfer), resources))
    assert found == 2 * found[: len(found) // 2]
    end = 0
    for task in found[: len(found) // 2]:
        assert task.transfer is transfer
        assert task.start == end
        assert task.stop > task.start
        end = task.stop
        height = task.stop - task.start
        step = min(task.step, height)
        held, working = height * transfer.holding_bytes_per_row, step * transfer.working_bytes_per_row
        assert height <= SEGMENT_ROWS or transfer.gathers or held + working <= memory
    assert end == matrices * rows


@given(matrices=st.integers(1, 5), rows=st.integers(1, 500), columns=st.integers(1, 64), memory=st.integers(18, 24))
def test_tasks_begin_at_matrices_or_at_segments_of_one(matrices: int, rows: int, columns: int, memory: int) -> None:
    transfer = transfer_of((matrices, rows, 32 * columns), "bf16", "q8_0")
    for task in tasks(plan_of(transfer), Resources(jobs=1, memory=1 << memory)):
        first, last = task.start // rows, (task.stop - 1) // rows
        assert first == last or (task.start % rows, task.stop % rows) == (0, 0)
        assert task.start % rows % SEGMENT_ROWS == 0
        assert task.step % SEGMENT_ROWS == 0 or (task.stop - task.start) % rows == 0


def test_matrices_that_lie_in_columns_are_moved_whole_where_memory_allows() -> None:
    expert = 5760 * 2880
    transfer = transfer_of((4, 5760, 2880), "bf16", "bf16", row_group=5760, order="F")
    assert [task.start for task in tasks(plan_of(transfer), Resources(jobs=1, memory=6 * expert))] == [
        0, 5760, 11520, 17280,
    ]  # fmt: skip


def test_small_tensors_are_moved_in_one_piece(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    for checkpoint in checkpoints.values():
        plan = plan_gguf(checkpoint, tmp_path / "out.gguf")
        assert len(list(tasks(plan, Resources()))) <= SHAPE.experts * len(checkpoint.tensors)


def copied(plan: Plan) -> list[str]:
    """Names of the tensors that tasks copy; no tensor is done in both ways."""
    ways = {(task.transfer.source.name, task.same_bytes is not None) for task in tasks(plan, Resources())}
    assert len(ways) == len({name for name, _ in ways})
    return [name for name, copies in ways if copies]


def test_tensors_that_keep_their_bytes_are_copied(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    plan = plan_bf16(checkpoints["mxfp4"], tmp_path / "out")
    same = [name for name, tensor in checkpoints["mxfp4"].tensors.items() if tensor.encoding.name == "bf16"]
    assert sorted(copied(plan)) == sorted(same)


def test_tensors_whose_values_are_hashed_are_not_copied(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    plan = plan_bf16(checkpoints["mxfp4"], tmp_path / "out")
    assert copied(plan)
    assert not copied(plan.with_manifest())


def test_copies_cover_all_rows_and_are_evenly_mixed_with_conversions(tmp_path: Path) -> None:
    """A third of the bytes are copied, and at any time a third of what was done were copies."""

    def stored(name: str, rows: int) -> Tensor:
        array = StoredArray(FileRef(tmp_path / name, rows * 2048), 0, np.dtype("<u2"), 1024)
        return Tensor(name, (rows, 1024), ENCODINGS["bf16"], PartsStorage((array,)))

    source, target = stored("old", 300_001), stored("new", 300_001)
    conversion = transfer_of((600_000, 1024), "q8_0", "bf16")
    found = list(tasks(plan_of(Transfer(source, target), conversion), Resources()))
    spans = [(task.start, task.stop) for task in found if task.same_bytes is not None]
    assert [0, *(stop for _, stop in spans)] == [*(start for start, _ in spans), 300_001]
    largest = max(task.nbytes for task in found)
    assert largest <= 16 << 20
    copies = total = 0
    for task in found:
        copies += task.nbytes if task.same_bytes is not None else 0
        total += task.nbytes
        assert abs(copies - total / 3) <= largest
    assert copies == target.nbytes


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP])
def test_bytes_do_not_depend_on_the_system_copying(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """Neither where it refuses nor, with None, where it has no such call."""
    plan = plan_bf16(checkpoints["mxfp4"], tmp_path / "out")
    execute(plan)
    expected = {path.name: path.read_bytes() for path in plan.output.iterdir()}

    def refuse(*_: object) -> int:
        assert refusal is not None
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    if refusal is None:
        monkeypatch.delattr(os, "copy_file_range")
    execute(plan, replace=True)
    assert {path.name: path.read_bytes() for path in plan.output.iterdir()} == expected


def test_source_that_became_shorter_is_an_error_where_it_is_copied(tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path / "model")
    checkpoint = open_checkpoint(write_huggingface(tmp_path / "model", SHAPE))
    plan = plan_bf16(checkpoint, tmp_path / "out")
    file = checkpoint.tensors["lm_head.weight"].file
    status = file.stat()
    os.truncate(file, file.stat().st_size // 2)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match="became shorter"):
        execute(plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_memory_is_shared_by_the_jobs() -> None:
    assert Resources(jobs=4, memory=400).memory_per_job == 100


@pytest.mark.parametrize("jobs", [1, 3])
def test_too_little_memory_is_refused_before_anything_is_written(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, jobs: int
) -> None:
    plan = plan_gguf(checkpoints["mxfp4"], tmp_path / "out.gguf")
    least = jobs * LEAST_MEMORY_PER_JOB
    with pytest.raises(BudgetError, match=f"too little memory for {jobs} jobs.*expected at least {least}"):
        execute(plan, resources=Resources(jobs=jobs, memory=least - 1))
    assert_nothing_written(tmp_path)


# --- what the caller is told


def test_progress_adds_up_to_all_bytes(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    plan = plan_gguf(checkpoints["mxfp4"], tmp_path / "out.gguf")
    written: dict[str, int] = {}

    def remember(name: str, nbytes: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        written[name] = written.get(name, 0) + nbytes

    execute(plan, resources=Resources(jobs=3, memory=3 * LEAST_MEMORY_PER_JOB), progress=remember)
    assert written == {transfer.source.name: transfer.target.nbytes for transfer in plan.transfers}
    assert sum(written.values()) == plan.data_nbytes


# --- failures


def assert_nothing_written(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if "out" in path.name] == []


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan for a folder of its own, whose files may be damaged."""
    write_small_tokenizer(tmp_path)
    return plan_gguf(open_checkpoint(write_huggingface(tmp_path, SHAPE)), tmp_path / "out.gguf")


def test_existing_output_is_refused(plan: Plan) -> None:
    plan.output.write_bytes(b"old")
    with pytest.raises(OutputError, match="output exists"):
        execute(plan)
    assert plan.output.read_bytes() == b"old"
    execute(plan, replace=True)
    assert plan.output.stat().st_size == plan.nbytes


def test_source_that_became_shorter_is_an_error(plan: Plan, tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(InputError, match="became shorter"):
        execute(plan)
    assert_nothing_written(tmp_path)


def overwrite_scale(plan: Plan, scale: int) -> None:
    """Set every byte of the first scales of the down projection."""
    transfer = next(t for t in plan.transfers if t.source.name.endswith("down_proj"))
    storage: Any = transfer.source.storage
    part = storage.parts[1]
    status = part.file.path.stat()
    with part.file.path.open("r+b") as file:
        file.seek(part.offset)
        file.write(bytes([scale]) * part.items)
    os.utime(part.file.path, ns=(status.st_atime_ns, status.st_mtime_ns))  # it was so from the beginning


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_scale_that_is_no_number_is_an_error_that_names_the_tensor(plan: Plan, tmp_path: Path, pool: Any) -> None:
    overwrite_scale(plan, 255)
    executor = pool and pool(2)
    with pytest.raises(InputError, match=r"255.*model\.layers\.0\.mlp\.experts\.down_proj") as caught:
        execute(plan, executor=executor)
    assert caught.value.file == str(tmp_path / "model.safetensors")
    assert_nothing_written(tmp_path)
    if executor:
        executor.shutdown()


@pytest.mark.parametrize("experts", ["f16", "q8_0"])
def test_number_that_the_target_cannot_hold_is_an_error_that_names_the_tensor(tmp_path: Path, experts: str) -> None:
    write_small_tokenizer(tmp_path)
    checkpoint = open_checkpoint(write_huggingface(tmp_path, SHAPE, edge_blocks=False))
    plan = plan_gguf(checkpoint, tmp_path / "out.gguf", GgufOptions(experts=experts))
    overwrite_scale(plan, 250)
    with pytest.raises(InputError, match=r"exceeds the largest.*experts\.down_proj"):
        execute(plan)
    assert_nothing_written(tmp_path)


def test_failed_write_is_an_error_of_ours(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite, calls = os.pwrite, iter(range(10**6))

    def sometimes(descriptor: int, data: memoryview, offset: int) -> int:
        if next(calls) == 5:
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", sometimes)
    with pytest.raises(OutputError, match="No space left on device"):
        execute(plan, resources=Resources(jobs=2))
    assert not plan.output.exists()


def stop_with(error: type[BaseException]) -> Callable[[str, int], None]:
    """A receiver of progress that raises an error."""

    def stop(tensor: str, nbytes: int) -> None:
        raise error

    return stop


def unfinished(output: Path) -> list[str]:
    """Names of what an interrupted run leaves of an output."""
    return [f"{output.name}.partial", f"{output.name}.partial.journal"]


def test_interruption_leaves_what_is_finished(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(plan, progress=stop_with(KeyboardInterrupt))
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == unfinished(plan.output)


def test_fault_of_the_program_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        execute(plan, progress=stop_with(ValueError))
    assert_nothing_written(tmp_path)


def test_no_task_runs_on_after_an_interruption(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = [], []

    def slow(*arguments: Any) -> TaskResult:
        begun.append(arguments)
        time.sleep(0.02 * len(begun))
        ended.append(arguments)
        return run_task(*arguments)

    monkeypatch.setattr(execute_module, "run_task", slow)
    with ThreadPoolExecutor(4) as pool:
        with pytest.raises(KeyboardInterrupt):
            execute(plan, executor=pool, resources=Resources(jobs=4), progress=stop_with(KeyboardInterrupt))
        assert len(begun) == len(ended)
    assert len(begun) < len(list(tasks(plan, Resources(jobs=4))))
    assert not plan.output.exists()


def test_plan_that_names_other_files_is_checked_before_anything_is_written(plan: Plan, tmp_path: Path) -> None:
    file = replace(plan.files[0], path=plan.transfers[0].source.file)
    with pytest.raises(OutputError, match="source files"):
        execute(replace(plan, files=(file,)), replace=True)
    assert_nothing_written(tmp_path)


# --- folders


BIG = Shape(layers=1, hidden=256, intermediate=288, experts=2, experts_per_token=2)
"""Matrices that are larger than the least memory of a job."""
TARGETS: dict[str, Callable[[Checkpoint, Path], Plan]] = {
    "bf16": plan_bf16,
    "bf16 in shards": lambda source, out: plan_bf16(source, out, Bf16Options(max_shard_size=300_000)),
    "mxfp4": plan_mxfp4,
    "openai": lambda source, out: plan_mxfp4(source, out, Mxfp4Options(layout="openai")),
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One model in every form; `named` is in BF16 with names of scales."""
    folder = tmp_path_factory.mktemp("big")
    write_small_tokenizer(folder / "mxfp4")
    write_huggingface(folder / "mxfp4", BIG, fill="every block")
    write_huggingface(folder / "bf16", BIG, fill="every block", experts="bf16")
    write_original(folder / "openai", BIG, fill="every block")
    source = open_checkpoint(folder / "mxfp4")
    execute(plan_gguf(source, folder / "gguf"))
    execute(plan_gguf(source, folder / "f32", GgufOptions(dense="f32", experts="f32")))
    execute(plan_bf16(source, folder / "named"))
    return {path.name: open_checkpoint(path) for path in folder.iterdir()}


def folder_contents(plan: Plan, **how: Any) -> dict[str, bytes]:
    """The files of a folder, with its manifest, in which is all that the report says."""
    execute(plan.with_manifest(), **how)
    return {path.name: path.read_bytes() for path in plan.output.iterdir()}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["mxfp4", "bf16", "openai", "gguf", "f32", "named"])
def test_bytes_of_folders_depend_neither_on_jobs_nor_on_memory(
    big: dict[str, Checkpoint], tmp_path: Path, source: str, target: str
) -> None:
    """Nor do the names of scales; of the manifest, figures are sums whose order may show in their last digits."""
    written = []
    cuts = set()
    for jobs, memory in ((1, 192 << 20), (1, LEAST_MEMORY_PER_JOB), (3, 3 * LEAST_MEMORY_PER_JOB), (4, 8 << 20)):
        plan = TARGETS[target](big[source], tmp_path / f"{jobs}-{memory}")
        resources = Resources(jobs=jobs, memory=memory)
        cuts.add(len(list(tasks(plan, resources))))
        found = folder_contents(plan, resources=resources)
        facts = json.loads(found.pop("manifest.json"))
        written.append((found, facts["canonical_hash"], facts["files"], facts["loss"]))
    assert len(cuts) > 1
    assert written[0] == written[1] == written[2] == written[3]
    named = target.startswith("bf16") and source in ("mxfp4", "openai", "gguf", "named")
    assert ("mxfp4-scales.zip" in written[0][0]) == named


@pytest.mark.parametrize(("source", "target"), [("mxfp4", "bf16"), ("f32", "bf16"), ("named", "mxfp4")])
def test_processes_write_the_same_folders(
    big: dict[str, Checkpoint], tmp_path: Path, source: str, target: str
) -> None:
    """`named` reads names of scales from a file that all of them have open."""
    expected = folder_contents(TARGETS[target](big[source], tmp_path / "threads"))
    with ProcessPoolExecutor(2) as pool:
        resources = Resources(jobs=2, memory=2 * LEAST_MEMORY_PER_JOB)
        found = folder_contents(TARGETS[target](big[source], tmp_path / "x"), resources=resources, executor=pool)
    for name in found.keys() - {"manifest.json"} | expected.keys() - {"manifest.json"}:
        assert found[name] == expected[name], name


@settings(max_examples=15)
@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj", "q_proj.weight"])
@pytest.mark.parametrize("source", ["mxfp4", "bf16", "f32", "gguf"])
@given(data=st.data())
def test_any_cut_of_a_folder_writes_every_byte_once_and_the_same(
    checkpoints: dict[str, Checkpoint], big: dict[str, Checkpoint], data: st.DataObject, source: str, name: str
) -> None:
    """BF16 experts are put together in columns before they are written."""
    checkpoint = checkpoints[source] if source in checkpoints else big[source]
    plan = plan_bf16(checkpoint, Path("out"))
    transfer = next(t for t in plan.transfers if t.source.name.endswith(name))
    assert transfer.gathers == name.endswith(("gate_up_proj", "down_proj"))
    rows = transfer.source.rows
    whole, cut = FilesInMemory(), FilesInMemory()
    result = run_task(Task(transfer, 0, rows, rows), whole)
    cuts = sorted({0, rows, *data.draw(st.sets(st.integers(1, rows - 1), max_size=8))})
    pieces = [
        run_task(Task(transfer, start, stop, data.draw(st.integers(1, rows))), cut)
        for start, stop in pairwise(cuts)
    ]
    assert cut.runs() == whole.runs()
    assert sum(piece.nbytes for piece in pieces) == result.nbytes == transfer.target.nbytes
    found = sum((piece.findings for piece in pieces), NOTHING_FOUND)
    assert found.deviation.different == result.findings.deviation.different
    assert found.deviation.values == result.findings.deviation.values


@settings(max_examples=15)
@given(data=st.data())
def test_any_cut_names_the_same_scales(checkpoints: dict[str, Checkpoint], data: st.DataObject) -> None:
    plan = plan_bf16(checkpoints["mxfp4"], Path("out"))
    transfer = next(t for t in plan.transfers if t.source.name.endswith("down_proj"))
    rows = transfer.source.rows
    whole = run_task(Task(transfer, 0, rows, rows), FilesInMemory()).named_scales
    assert whole is not None
    start = 0
    while start < rows:
        stop = data.draw(st.integers(start + 1, rows))
        part = run_task(Task(transfer, start, stop, data.draw(st.integers(1, rows))), FilesInMemory()).named_scales
        if part is None:
            assert (whole[start:stop] == 255).all()
        else:
            np.testing.assert_array_equal(part, whole[start:stop])
        start = stop


def test_order_in_which_tasks_end_does_not_show(big: dict[str, Checkpoint], tmp_path: Path) -> None:
    """The later a task began, the sooner it ends."""
    expected = folder_contents(plan_bf16(big["mxfp4"], tmp_path / "threads"))

    class Late(ThreadPoolExecutor):
        number = 0

        def submit(self, function: Any, /, *arguments: Any, **named: Any) -> Any:
            self.number += 1
            delay = 0.004 * (-self.number % 8)
            return super().submit(lambda: (time.sleep(delay), function(*arguments, **named))[1])

    with Late(8) as pool:
        resources = Resources(jobs=8, memory=8 * LEAST_MEMORY_PER_JOB)
        found = folder_contents(plan_bf16(big["mxfp4"], tmp_path / "out"), resources=resources, executor=pool)
    assert found["mxfp4-scales.zip"] == expected["mxfp4-scales.zip"]
    hashes = [json.loads(files["manifest.json"])["canonical_hash"] for files in (found, expected)]
    assert hashes[0] == hashes[1]


# --- what the report says


def with_norm(folder: Path, values: Array) -> Checkpoint:
    """The model as a GGUF file in which the last norm has these values, in F32."""
    write_small_tokenizer(folder)
    source = open_checkpoint(write_huggingface(folder, SHAPE))
    path = folder / "model.gguf"
    execute(plan_gguf(source, path))
    tensor = open_checkpoint(path).tensors["model.norm.weight"]
    storage: Any = tensor.storage
    with path.open("r+b") as file:
        file.seek(storage.stored.offset)
        file.write(values.astype("<f4").tobytes())
    return open_checkpoint(path)


@pytest.mark.parametrize("target", TARGETS)
def test_norms_that_fit_bf16_are_exact(tmp_path: Path, target: str) -> None:
    checkpoint = with_norm(tmp_path, np.linspace(-2, 2, SHAPE.hidden + 1)[: SHAPE.hidden])
    plan = TARGETS[target](checkpoint, tmp_path / "out")
    assert plan.loss is LossClass.LOSSY
    report = execute(plan)
    assert report.loss is LossClass.VALUE_EXACT
    (norm,) = [item for item in report.tensors if item.transfer.source.name == "model.norm.weight"]
    assert norm.transfer.loss is LossClass.LOSSY
    assert norm.loss is LossClass.VALUE_EXACT
    assert (norm.findings.deviation.values, norm.findings.deviation.different) == (SHAPE.hidden, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_other_norms_are_rounded_and_told_with_figures(tmp_path: Path, target: str) -> None:
    values = np.linspace(-2, 2, SHAPE.hidden + 1, dtype=np.float32)[: SHAPE.hidden]
    values[5] += np.float32(2**-20)
    report = execute(TARGETS[target](with_norm(tmp_path, values), tmp_path / "out"))
    assert report.loss is LossClass.LOSSY
    lossy = [item for item in report.tensors if item.loss is LossClass.LOSSY]
    assert [item.transfer.source.name for item in lossy] == ["model.norm.weight"]
    bf16 = ENCODINGS["bf16"]
    expected = deviation(values[None], bf16.decode(bf16.encode(values[None])))
    assert lossy[0].findings == Findings(expected)
    assert expected.different == 1
    assert lossy[0].as_dict()["rounding"]["different"] == 1
    assert lossy[0].as_dict()["loss"] == "lossy"


# --- folders that cannot be written


def test_interruption_leaves_what_is_finished_of_a_folder(big: dict[str, Checkpoint], tmp_path: Path) -> None:
    plan = plan_bf16(big["mxfp4"], tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        execute(plan, progress=stop_with(KeyboardInterrupt))
    assert sorted(path.name for path in tmp_path.iterdir()) == unfinished(plan.output)


def test_fault_of_the_program_leaves_no_folder(big: dict[str, Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^$"):
        execute(plan_bf16(big["mxfp4"], tmp_path / "out"), progress=stop_with(ValueError))
    assert list(tmp_path.iterdir()) == []


def test_names_of_scales_that_cannot_be_written_are_an_error(
    big: dict[str, Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", refuse)
    with pytest.raises(
        OutputError, match=r"No space left on device.*mxfp4-scales\.zip|mxfp4-scales\.zip.*No space"
    ):
        execute(plan_bf16(big["mxfp4"], tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_replaced_on_demand(big: dict[str, Checkpoint], tmp_path: Path) -> None:
    plan = plan_bf16(big["mxfp4"], tmp_path / "out")
    execute(plan)
    before = {path.name: path.read_bytes() for path in plan.output.iterdir()}
    with pytest.raises(OutputError, match="output exists"):
        execute(plan)
    execute(plan_mxfp4(big["mxfp4"], tmp_path / "out"), replace=True)
    assert "mxfp4-scales.zip" not in {path.name for path in plan.output.iterdir()}
    execute(plan, replace=True)
    assert {path.name: path.read_bytes() for path in plan.output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
