"""Bundles on the device that they are for: scripts that verify and answer, with real runtimes and without torch."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptoss_convert.bundle.runtimes import LLAMA_CPP
from tests.cli.command import environment, run_here
from tests.peers.llama_cpp_source import LLAMA_CPP_COMMIT, option_names
from tests.support.conversions import TINY, to_gguf
from tests.support.edge import block
from tests.support.planted_faults import FAULTS

CONTEXT = "64"


@dataclass(frozen=True)
class Device:
    """A machine that bundles were copied to."""

    folder: Path

    def run(self, script: Path | str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script from somewhere else than its bundle."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        known = {"PYTHONPATH": str(self.folder / "path"), "PATH": programs} | variables
        return subprocess.run(
            ["sh", str(script), *arguments], cwd=self.folder, env=environment(known), capture_output=True,
            encoding="utf-8", timeout=300,
        )  # fmt: skip


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Model and artifacts are gone before anything is run."""
    workshop, folder = tmp_path_factory.mktemp("workshop"), tmp_path_factory.mktemp("a device")
    model = shutil.copytree(TINY, workshop / "model")
    to_gguf(model, workshop / "tiny.gguf")
    assert run_here("to-onnx", model, "-o", workshop / "tiny-cpu", "--target", "cpu", "-q").exit_code == 0
    made = run_here(
        "bundle", workshop / "tiny.gguf", "--device", "laptop-16gb", "--reference", model, "--max-tokens", "40",
        "--context", CONTEXT, "-o", folder / "gguf", "-q",
    )  # fmt: skip
    assert made.exit_code == 0, made.stderr
    pack = folder / "gguf" / "reference.pack"
    for target, kind in (("onnx", "tiny-cpu"),):
        made = run_here(
            "bundle", workshop / kind, "--device", "laptop-16gb", "--pack", pack, "--context", CONTEXT,
            "-o", folder / target, "-q",
        )  # fmt: skip
        assert made.exit_code == 0, made.stderr
    shutil.rmtree(workshop)
    block(folder / "path")
    return Device(folder)


@pytest.mark.parametrize("bundle", ["gguf", "onnx"])
def test_a_bundle_verifies_without_torch(bundle: str, device: Device) -> None:
    done = device.run(device.folder / bundle / "verify.sh", "--threads", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass" in done.stdout.lower()
    runtimes = {"gguf": ["llama.cpp"], "onnx": ["onnxruntime", "onnxruntime-genai"]}
    for name in runtimes[bundle]:
        assert name in done.stdout


@pytest.mark.parametrize(("bundle", "artifact"), [("gguf", "tiny.gguf"), ("onnx", "tiny-cpu")])
def test_a_fault_is_found_on_the_device(bundle: str, artifact: str, device: Device, tmp_path: Path) -> None:
    copy = shutil.copytree(device.folder / bundle, tmp_path / "bundle")
    FAULTS["flipped nibble" if bundle == "gguf" else "norm zeroed"].plant(copy / artifact)
    done = device.run(copy / "verify.sh", "--threads", "1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "has another canonical hash" in done.stdout
    assert run_here("check", copy, "-q").exit_code == 1
    assert run_here("check", device.folder / bundle, "-q").exit_code == 0


def test_a_graph_answers(device: Device) -> None:
    done = device.run(device.folder / "onnx" / "start.sh", "Who", "are", "you?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_server_is_started_with_options_that_it_has(device: Device, tmp_path: Path) -> None:
    """The arguments reach a program that lists them; llama.cpp's parser knows every option."""
    server = tmp_path / "my server"
    server.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    server.chmod(0o755)
    done = device.run(device.folder / "gguf" / "start.sh", "--verbose-prompt", LLAMA_SERVER=str(server))
    place, *arguments = done.stdout.splitlines()
    assert Path(place) == device.folder / "gguf"
    assert arguments[:4] == ["--model", "tiny.gguf", "--ctx-size", CONTEXT]
    assert arguments[-1] == "--verbose-prompt"
    named = {item for item in arguments[:-1] if item.startswith("--")}
    assert named <= option_names()
    assert LLAMA_CPP_COMMIT.startswith(LLAMA_CPP)


def options_of(script: str) -> set[str]:
    return set(re.findall(r" (--[a-z-]+ [^-\s]\S*)", script))


def test_scripts_for_windows_say_the_same(device: Device) -> None:
    for bundle in ("gguf", "onnx"):
        for name in ("start", "verify"):
            unix = (device.folder / bundle / f"{name}.sh").read_text()
            windows = (device.folder / bundle / f"{name}.cmd").read_bytes().decode()
            assert windows.count("\r\n") == windows.count("\n") > 3
            assert options_of(unix) == options_of(windows)
            assert subprocess.run(["sh", "-n"], input=unix, text=True).returncode == 0
