"""A Dask cluster of several processes writes the bytes that threads write, whoever of them dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import distributed
import pytest

import gptoss_convert as gc
from gptoss_convert.converters import executors
from gptoss_convert.converters.execute import Resources, execute
from gptoss_convert.converters.executors import CALLS_AT_ONCE, ClusterExecutor, opened_executor
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.session import find_unfinished
from gptoss_convert.converters.tasks import tasks
from gptoss_convert.errors import GptossConvertError, InputError, OptionError, OutputError, UnsupportedError
from tests.cli.command import run_here
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.tokenizers import write_small_tokenizer

SMALL = Resources(jobs=1, memory=256 << 10)
"""Tasks that are as small as they can be."""
SHAPE = Shape(layers=6, hidden=128, intermediate=160, experts=4, experts_per_token=2)
WORKERS = 2


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of worker processes, each started anew when it dies, with another working directory than ours."""
    here = Path.cwd()
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.run(os.chdir, "/")
        assert Path.cwd() == here
        yield cluster.scheduler_address.replace("tcp://", "dask://")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in MXFP4, and in BF16 with numbers that MXFP4 cannot hold."""
    folder = tmp_path_factory.mktemp("models")
    for name, experts in (("mxfp4", "mxfp4"), ("bf16", "bf16")):
        write_small_tokenizer(folder / name)
        write_huggingface(folder / name, SHAPE, experts=experts)  # type: ignore[arg-type]
    return {"mxfp4": folder / "mxfp4", "bf16": folder / "bf16"}


def gguf(sources: dict[str, Path], folder: Path) -> Plan:
    return gc.plan_gguf(gc.open(sources["mxfp4"]), folder / "out.gguf", gc.GgufOptions(dense="q8_0"))


def quantised(sources: dict[str, Path], folder: Path) -> Plan:
    return gc.plan_mxfp4(gc.open(sources["bf16"]), folder / "out", gc.Mxfp4Options(rule="floor")).with_manifest()


def decoded(sources: dict[str, Path], folder: Path) -> Plan:
    return gc.plan_bf16(gc.open(sources["mxfp4"]), folder / "out")


Planned = Callable[[dict[str, Path], Path], Plan]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_threads(planned: Planned, sources: dict[str, Path], folder: Path) -> dict[str, bytes]:
    """The files that threads of this process write."""
    folder.mkdir()
    execute(planned(sources, folder), resources=SMALL)
    return contents(folder)


@pytest.mark.parametrize("planned", [gguf, quantised, decoded])
def test_a_cluster_writes_the_same_bytes(
    planned: Planned, sources: dict[str, Path], address: str, tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    told = 0

    def add(_: str, nbytes: int) -> None:
        nonlocal told
        told += nbytes

    plan = planned(sources, tmp_path / "cluster")
    with opened_executor(address) as executor:
        execute(plan, resources=SMALL, executor=executor, progress=add)
    assert told == plan.data_nbytes
    assert contents(tmp_path / "cluster") == by_threads(planned, sources, tmp_path / "threads")


def test_names_that_are_relative_mean_what_they_mean_here(
    sources: dict[str, Path], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources["mxfp4"], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    outcome = run_here("to-gguf", "model", "-o", "out.gguf", "--executor", address, "--quiet")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    gc.convert("model", "threads.gguf", "gguf")
    assert Path("out.gguf").read_bytes() == Path("threads.gguf").read_bytes()


def test_a_program_names_the_cluster_too(sources: dict[str, Path], address: str, tmp_path: Path) -> None:
    for name, executor in (("cluster.gguf", address), ("threads.gguf", None)):
        gc.convert(sources["mxfp4"], tmp_path / name, "gguf", executor=executor)
    assert (tmp_path / "cluster.gguf").read_bytes() == (tmp_path / "threads.gguf").read_bytes()


def test_a_worker_that_is_killed_changes_no_byte(sources: dict[str, Path], address: str, tmp_path: Path) -> None:
    """The worker dies in the middle of a task that has written nothing yet, or some of it."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    plan = quantised(sources, folder)
    client = distributed.Client(address.replace("dask", "tcp"), set_as_default=False)
    victims = []

    def kill_once(_: str, __: int) -> None:
        busy = [worker for worker, calls in client.processing().items() if calls]
        if busy and not victims:
            victims.append(client.run(os.getpid, workers=busy[:1])[busy[0]])
            os.kill(victims[0], signal.SIGKILL)

    with client, opened_executor(address) as executor:
        assert isinstance(executor, ClusterExecutor)
        resources = executor.resources(SMALL)
        assert len(list(tasks(plan, resources))) > 2 * resources.jobs + 20
        execute(plan, resources=SMALL, executor=executor, progress=kill_once)
        assert victims[0] not in client.run(os.getpid).values()
    assert contents(folder) == by_threads(quantised, sources, tmp_path / "threads")


CLIENT = """
import os, signal, sys
from gptoss_convert.cli import run
from gptoss_convert.converters import execute
add, lines = execute.Journal.add, iter(range(100))
def counted(*arguments):
    add(*arguments)
    if next(lines) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
execute.Journal.add = counted
sys.exit(run(sys.argv[1:]))
"""


def test_a_client_that_is_killed_is_gone_on_with_on_this_machine(
    sources: dict[str, Path], address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    limits = ("--manifest", "--max-memory", "256KiB", "--jobs", "1")
    options = ("to-mxfp4", str(sources["bf16"]), "-o", str(folder / "out"), "--rule", "floor", *limits)
    command = [sys.executable, "-P", "-c", CLIENT, *options, "--executor", address]
    killed = subprocess.run(command, capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    plan = quantised(sources, folder)
    unfinished = find_unfinished(plan)
    assert unfinished is not None
    assert 0 < unfinished.share < 1
    outcome = run_here(*options, "--resume")
    assert outcome.exit_code == 0, outcome.stderr
    assert "resumes an unfinished output" in outcome.stderr
    assert contents(folder) == by_threads(quantised, sources, tmp_path / "threads")


def test_what_a_cluster_left_off_a_cluster_goes_on_with(
    sources: dict[str, Path], address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    plan, steps = quantised(sources, folder), iter(range(100))

    def stop(_: str, __: int) -> None:
        if next(steps) == 9:
            raise KeyboardInterrupt

    with opened_executor(address) as executor:
        with pytest.raises(KeyboardInterrupt):
            execute(plan, resources=SMALL, executor=executor, progress=stop)
        lines = (folder / "out.partial.journal").read_text().splitlines()
        assert len(lines) == 11
        execute(plan, resources=SMALL, executor=executor, resume=True)
    assert contents(folder) == by_threads(quantised, sources, tmp_path / "threads")


def test_error_on_a_worker_arrives_with_its_cause_and_leaves_what_is_finished(
    sources: dict[str, Path], address: str, tmp_path: Path
) -> None:
    plan, steps = gguf(sources, tmp_path), iter(range(100))

    def remove(_: str, __: int) -> None:
        if next(steps) == 3:
            (tmp_path / "out.gguf.partial").unlink()

    with (
        opened_executor(address) as executor,
        pytest.raises(OutputError, match="every worker has to see") as caught,
    ):
        execute(plan, resources=SMALL, executor=executor, progress=remove)
    assert caught.value.hint == "every worker has to see the folder of the output under the same name"
    assert isinstance(caught.value.__cause__, OutputError)
    assert isinstance(caught.value.__cause__.__cause__, FileNotFoundError)


def test_damaged_source_is_the_error_that_it_is_here(address: str, tmp_path: Path) -> None:
    write_small_tokenizer(tmp_path)
    plan = gc.plan_gguf(gc.open(write_huggingface(tmp_path, SHAPE)), tmp_path / "out.gguf")
    file = tmp_path / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    with opened_executor(address) as executor, pytest.raises(InputError, match=r"changed while|became shorter"):
        execute(plan, executor=executor)
    assert not list(tmp_path.glob("out*"))


def test_calls_that_a_worker_may_have_begun_are_waited_for(address: str) -> None:
    with opened_executor(address) as executor:
        assert isinstance(executor, ClusterExecutor)
        begun, unsent = executor.submit(time.sleep, 0.5), executor.submit(time.sleep, 60)
        assert unsent.cancel()
        executor.send()
        time.sleep(0.2)
        assert not begun.cancel()
        assert begun.result(10) is None


def test_calls_are_taken_back_where_no_worker_is_left() -> None:
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50
    ) as cluster, opened_executor(cluster.scheduler_address.replace("tcp", "dask")) as executor:  # fmt: skip
        assert isinstance(executor, ClusterExecutor)
        cluster.scale(0)
        while cluster.scheduler_info["workers"]:
            time.sleep(0.05)
        answers = [executor.submit(len, b"") for _ in range(CALLS_AT_ONCE)]
        time.sleep(0.2)
        assert answers[0].cancel()
        assert all(answer.cancel() or answer.done() for answer in answers)


def refusal(address: str) -> GptossConvertError:
    with pytest.raises(GptossConvertError) as caught, opened_executor(address):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "address", ["dask", "dask://", "dask://host", "ray://host:1", "dask://host:1/x", "dask://:1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    error = refusal(address)
    assert isinstance(error, OptionError)
    assert error.expected == "dask://HOST:PORT"


def test_nobody_at_the_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "SECONDS_TO_CONNECT", 1)
    error = refusal("dask://127.0.0.1:9")
    assert isinstance(error, OptionError)
    assert str(error).startswith("no Dask scheduler answers at 127.0.0.1:9; ")


def test_missing_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    error = refusal("dask://127.0.0.1:9")
    assert isinstance(error, UnsupportedError)
    assert str(error) == "distributed is not installed; pip install 'gptoss-convert[dask]'"


def test_workers_of_another_version_are_an_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "__version__", "99.0")
    error = refusal(address)
    assert isinstance(error, OptionError)
    assert "has other versions: found gptoss-convert 0.1.0" in str(error)
    assert "expected gptoss-convert 99.0" in str(error)


def test_cluster_without_workers_is_an_error() -> None:
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as cluster:
        error = refusal(cluster.scheduler_address.replace("tcp", "dask"))
    assert str(error) == "cluster has no workers; start some with `dask worker`"


def test_source_that_is_no_file_is_refused(sources: dict[str, Path], address: str, tmp_path: Path) -> None:
    plan: Any = replace(gguf(sources, tmp_path), inputs=(PurePosixPath("hf:/owner/name"),))
    with opened_executor(address) as executor, pytest.raises(OptionError, match="does not stream its source"):
        execute(plan, executor=executor)
    assert list(tmp_path.iterdir()) == []


def test_every_thread_of_a_cluster_has_the_memory_of_a_job(address: str) -> None:
    with opened_executor(address) as executor:
        assert isinstance(executor, ClusterExecutor)
        assert executor.resources(Resources(jobs=4, memory=1000)) == Resources(
            jobs=WORKERS * CALLS_AT_ONCE, memory=WORKERS * CALLS_AT_ONCE * 250
        )
