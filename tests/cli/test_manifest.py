"""`--manifest`: hashes that anybody can check."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.cli.command import run_here
from tests.cli.samples import Samples


@pytest.mark.parametrize(("command", "output"), [("to-gguf", "x.gguf"), ("to-bf16", "x"), ("to-mxfp4", "x")])
def test_manifest_has_the_hashes_that_others_compute(
    command: str, output: str, samples: Samples, tmp_path: Path
) -> None:
    assert run_here(command, samples.path("bf16"), "-o", tmp_path / output, "--manifest", "-q").exit_code == 0
    (path,) = tmp_path.rglob("*manifest.json")
    manifest = json.loads(path.read_bytes())
    inspected = json.loads(run_here("inspect", tmp_path / output, "--hash", "--json").stdout)
    assert manifest["canonical_hash"] == inspected["hash"]
    written = {file.name for file in path.parent.iterdir()} - {path.name}
    assert {file["name"] for file in manifest["files"]} == written
    for file in manifest["files"]:
        content = (path.parent / file["name"]).read_bytes()
        assert (file["nbytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
