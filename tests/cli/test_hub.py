"""Sources on the Hugging Face Hub: downloaded, read where they lie, and never asked for unless they are named."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Outcome, environment, run_here, run_process
from tests.cli.foreign import with_encodings
from tests.cli.samples import Kind, Samples, source_in
from tests.support import hub_server
from tests.support.checkpoints import Shape, write_huggingface
from tests.support.hub import hub_of
from tests.support.hub_server import HubServer

Serve = Callable[[Path], HubServer]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Serve]:
    """Serves a folder as the repository owner/model."""
    contexts = []

    def start(folder: Path) -> HubServer:
        context = hub_of(folder, tmp_path / "cache")
        contexts.append(context)
        return context.__enter__()[0]

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


def contents(path: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of the files in a folder, by name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in files}


CONVERSIONS: list[tuple[Kind, list[str]]] = [
    ("huggingface", ["to-gguf"]),
    ("sharded", ["to-gguf", "--manifest"]),
    ("sharded", ["to-bf16"]),
    ("sharded", ["to-mxfp4", "--layout", "openai"]),
    ("bf16", ["to-mxfp4"]),
    ("bf16", ["to-gguf", "--jobs", "1", "--max-memory", "300KB"]),
    ("original", ["to-mxfp4"]),
    ("gguf", ["to-bf16"]),
    ("split", ["to-mxfp4"]),
    ("huggingface", ["to-onnx", "--target", "webgpu", "--activations", "f32"]),
]


@pytest.mark.parametrize(("kind", "command"), CONVERSIONS)
def test_streaming_writes_what_a_conversion_from_disk_writes(
    kind: Kind, command: list[str], samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    source = samples.path(kind)
    folder = source if source.is_dir() else source.parent
    hub(folder)
    uri = "hf://owner/model" if source.is_dir() else f"hf://owner/model/{source.name}"
    results = []
    for name, place, options in (("disk", str(source), []), ("hub", uri, ["--stream"])):
        (tmp_path / name).mkdir()
        output = tmp_path / name / ("x.gguf" if command[0] == "to-gguf" else "x")
        outcome = run_here(*command, place, "-o", output, *options)
        assert outcome.exit_code == 0, outcome.stderr
        results.append(contents(output.parent if command[0] == "to-gguf" else output))
    assert results[0] == results[1]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("command", [["to-gguf"], ["to-bf16"], ["to-mxfp4", "--layout", "openai"]])
def test_no_byte_of_the_weights_is_fetched_twice(
    command: list[str], samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    source = samples.path("sharded")
    server = hub(source)
    outcome = run_here(*command, "hf://owner/model", "-o", tmp_path / "x", "--stream")
    assert outcome.exit_code == 0, outcome.stderr
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    tokenizer = (source / "tokenizer.json").stat().st_size
    assert server.sent == weights + tokenizer
    assert len({(item.path, item.range) for item in server.ranges}) == len(server.ranges)


def test_several_requests_wait_for_the_server_at_once(samples: Samples, tmp_path: Path, hub: Serve) -> None:
    server = hub(samples.path("huggingface"))
    server.delay = 0.05
    outcome = run_here("to-gguf", "hf://owner/model", "-o", tmp_path / "x.gguf", "--stream")
    assert outcome.exit_code == 0, outcome.stderr
    assert server.most_at_once == 8


def test_matrices_in_columns_are_fetched_as_a_whole_or_refused(
    samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    write_huggingface(tmp_path / "model", Shape(layers=1, hidden=512, intermediate=512), experts="bf16")
    shutil.copy(samples.path("bf16") / "tokenizer.json", tmp_path / "model")
    server = hub(tmp_path / "model")
    command = ("to-gguf", "hf://owner/model", "-o", tmp_path / "x.gguf", "--stream", "--jobs", "1", "--max-memory")
    outcome = run_here(*command, "3MB")
    assert outcome.exit_code == 0, outcome.stderr
    assert len(server.ranges) < 60
    outcome = run_here(*command, "300KB", "--force")
    assert outcome.exit_code == 6
    assert "too little memory to stream matrices that lie in columns" in outcome.stderr


def test_encodings_that_are_only_copied_are_streamed_too(samples: Samples, tmp_path: Path, hub: Serve) -> None:
    (tmp_path / "repository").mkdir()
    changed = {"blk.0.ffn_gate_exps.weight": "Q4_0", "blk.1.ffn_up_exps.weight": "Q5_1"}
    source = with_encodings(samples.path("gguf"), tmp_path / "repository" / "mixed.gguf", changed)
    hub(source.parent)
    for place, name in ((source, "disk"), ("hf://owner/model/mixed.gguf", "hub")):
        options = ["--stream"] if name == "hub" else []
        outcome = run_here("to-gguf", place, "-o", tmp_path / f"{name}.gguf", *options)
        assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "disk.gguf").read_bytes() == (tmp_path / "hub.gguf").read_bytes()


@pytest.mark.parametrize(
    "fault",
    [hub_server.broken_connection, hub_server.short_body, hub_server.unavailable, hub_server.too_many_requests,
     hub_server.expired],
)  # fmt: skip
def test_failures_that_pass_change_nothing(
    fault: hub_server.Fault, samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    source = samples.path("huggingface")
    assert run_here("to-gguf", source, "-o", tmp_path / "disk.gguf").exit_code == 0
    server = hub(source)
    server.faults = dict.fromkeys(range(1, 60, 7), fault)
    outcome = run_here("to-gguf", "hf://owner/model", "-o", tmp_path / "hub.gguf", "--stream")
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "disk.gguf").read_bytes() == (tmp_path / "hub.gguf").read_bytes()


@pytest.mark.parametrize("fault", [hub_server.no_ranges, hub_server.another_version, hub_server.another_range])
def test_giving_up_is_one_line_and_leaves_nothing(
    fault: hub_server.Fault, samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    server = hub(samples.path("huggingface"))
    outcome = run_here("to-gguf", "hf://owner/model", "-o", tmp_path / "x.gguf", "--stream", "--dry-run", "--quiet")
    assert outcome.exit_code == 0, outcome.stderr
    server.faults = dict.fromkeys(range(len(server.ranges) + 5, 1000), fault)
    outcome = run_here("to-gguf", "hf://owner/model", "-o", tmp_path / "x.gguf", "--stream", "--quiet")
    assert outcome.exit_code == 3
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert not list(tmp_path.glob("x.gguf*"))


def test_run_that_gave_up_is_gone_on_with(samples: Samples, tmp_path: Path, hub: Serve) -> None:
    source, output = samples.path("huggingface"), tmp_path / "x.gguf"
    assert run_here("to-gguf", source, "-o", tmp_path / "disk.gguf").exit_code == 0
    server = hub(source)
    command = ("to-gguf", "hf://owner/model", "-o", output, "--stream", "--jobs", "1")
    server.faults = dict.fromkeys(range(30, 1000), hub_server.unavailable)
    outcome = run_here(*command, "--quiet")
    assert outcome.exit_code == 3
    assert outcome.stderr.count("\n") == 1
    assert "gave up after 8 attempts: server answered 503" in outcome.stderr
    assert "--resume goes on with it" in outcome.stderr
    assert not output.exists()

    before = {item.range for item in server.ranges}
    server.faults, first = {}, len(server.ranges)
    outcome = run_here(*command, "--resume")
    assert outcome.exit_code == 0, outcome.stderr
    assert output.read_bytes() == (tmp_path / "disk.gguf").read_bytes()
    again = [item.range for item in server.ranges[first:] if item.range in before]
    assert len(again) < 10 < len(before)  # headers, and what was in flight


def test_downloaded_model_is_converted_and_the_next_step_is_named(
    samples: Samples, tmp_path: Path, hub: Serve
) -> None:
    source = samples.path("huggingface")
    assert run_here("to-gguf", source, "-o", tmp_path / "disk.gguf").exit_code == 0
    server = hub(source)
    output = tmp_path / "hub.gguf"
    outcome = run_here("to-gguf", "hf://owner/model", "-o", output, "--revision", "main")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"snapshots/{server.commit}\n" in outcome.stderr
    assert outcome.stderr.endswith(f"to publish it: hf upload OWNER/hub {output}\n")
    assert (tmp_path / "disk.gguf").read_bytes() == output.read_bytes()


def test_bare_name_is_looked_for_on_the_hub_and_works_offline_afterwards(
    samples: Samples, tmp_path: Path, hub: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub(samples.path("huggingface"))
    monkeypatch.chdir(tmp_path)
    assert run_here("to-gguf", "owner/model", "-o", "online.gguf").exit_code == 0
    server.seen.clear()
    outcome = run_here("to-gguf", "owner/model", "-o", "offline.gguf", "--offline")
    assert outcome.exit_code == 0, outcome.stderr
    assert server.seen == []
    assert Path("online.gguf").read_bytes() == Path("offline.gguf").read_bytes()


def test_inspect_looks_at_headers_only(samples: Samples, hub: Serve) -> None:
    source = samples.path("sharded")
    server = hub(source)
    outcome = run_here("inspect", "hf://owner/model", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    there, here = json.loads(outcome.stdout), json.loads(run_here("inspect", source, "--json").stdout)
    assert {**there, "path": None} == {**here, "path": None}
    assert there["path"] == f"hf://owner/model@{server.commit}"
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in source.glob("*.safetensors"))
    assert server.sent == headers + (source / "tokenizer.json").stat().st_size


def test_hash_and_verification_of_a_model_on_the_hub(samples: Samples, tmp_path: Path, hub: Serve) -> None:
    source = samples.path("huggingface")
    hub(source)
    hashes = [json.loads(run_here("inspect", place, "--hash", "--json").stdout)["hash"] for place in
              ("hf://owner/model", str(source))]  # fmt: skip
    assert hashes[0] == hashes[1]
    outcome = run_here("to-gguf", "hf://owner/model", "-o", tmp_path / "x.gguf", "--stream", "--verify")
    assert outcome.exit_code == 0, outcome.stderr
    outcome = run_here("verify", "hf://owner/model", tmp_path / "x.gguf", "--weights")
    assert outcome.exit_code == 0, outcome.stderr + outcome.stdout


def test_recipe_names_the_commit_in_its_manifest(samples: Samples, tmp_path: Path, hub: Serve) -> None:
    server = hub(samples.path("huggingface"))
    (tmp_path / "release.toml").write_text(
        'version = 1\nsource.path = "hf://owner/model"\n[[artifacts]]\nto = "gguf"\noutput = "x.gguf"\n'
    )
    matrix = run_here("build", tmp_path / "release.toml", "--matrix")
    assert matrix.exit_code == 0, matrix.stderr
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    outcome = run_here("build", tmp_path / "release.toml", "-o", tmp_path / "dist", "--no-progress")
    assert outcome.exit_code == 0, outcome.stderr
    manifest: Any = json.loads((tmp_path / "dist" / "manifest.json").read_text())
    assert manifest["source"]["name"] == "model"
    assert manifest["source"]["revision"] == server.commit


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["to-gguf", "hf://owner", "-o", "x.gguf"], 2, "write hf://OWNER/NAME"),
        (["to-gguf", "hf://owner/model", "-o", "x.gguf", "--stream", "--offline"], 2, "needs a connection"),
        (["to-gguf", "hf://owner/model@a", "-o", "x.gguf", "--revision", "b"], 2, "two revisions"),
        (["to-gguf", "./model", "-o", "x.gguf", "--stream"], 2, "--stream is for a model on the Hugging Face Hub"),
        (["inspect", "./model", "--revision", "main"], 2, "--revision is for a model"),
        (["inspect", "hf://owner/other"], 3, "no such repository on the Hub"),
        (["verify", "./model", "hf://owner/model"], 3, "artifacts are files and folders"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: list[str], exit_code: int, message: str, samples: Samples, hub: Serve
) -> None:
    hub(samples.path("huggingface"))
    outcome = run_here(*arguments)
    assert outcome.exit_code == exit_code
    assert message in outcome.stderr
    assert outcome.stderr.count("error") <= 1


def test_no_socket_is_opened_for_sources_on_this_machine(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    source = samples.path("huggingface")
    assert run_here("inspect", source).exit_code == 0
    assert run_here("to-gguf", source, "-o", tmp_path / "x.gguf", "--verify").exit_code == 0
    assert run_here("verify", source, tmp_path / "x.gguf", "--weights").exit_code == 0
    assert run_here("inspect", tmp_path / "missing").exit_code == 3


def test_process_talks_to_the_endpoint_of_its_environment(samples: Samples, tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> Outcome:
        return run_process(*arguments, env=variables, cwd=tmp_path)

    with hub_server.serve(source_in(samples.path("huggingface")), "owner/model") as server:
        variables = environment(
            {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_secret"}
        )
        server.token = "hf_secret"
        streamed = run("to-gguf", "owner/model", "-o", "streamed.gguf", "--stream", "--debug")
        assert streamed.exit_code == 0, streamed.stderr
        downloaded = run("to-gguf", "owner/model", "-o", "downloaded.gguf", "--debug")
        assert downloaded.exit_code == 0, downloaded.stderr
        server.gated = True
        refused = run("to-gguf", "owner/model", "-o", "refused.gguf", "--stream", "--debug")
    assert refused.exit_code == 3
    assert refused.stderr.splitlines()[-1].startswith("error: access to this repository is restricted")
    for outcome in (streamed, downloaded, refused):
        assert "hf_secret" not in outcome.stdout + outcome.stderr
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "downloaded.gguf").read_bytes()
