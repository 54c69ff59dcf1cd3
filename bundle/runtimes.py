"""What runs a bundle's artifact, and the exact packages that its lock file installs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from gptoss_convert import __version__
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import UnsupportedError
from gptoss_convert.verify.footprint.profiles import Device
from gptoss_convert.verify.runners.genai_config import read_genai_config

LLAMA_CPP = "0c1e57098bba"
"""Revision of llama.cpp whose options the start scripts use."""


@dataclass(frozen=True, kw_only=True)
class BundleRuntime:
    """A runtime for one kind of artifact."""

    name: str
    """Also of its table of pins."""
    title: str
    runtime: str
    """Name in `gptoss_convert.verify.runners.RUNTIMES`; its memory is predicted."""
    device: Device | None
    """What computes; None for both."""
    verify_options: tuple[str, ...]
    """Of `gptoss-convert verify`, so that it uses what the lock file installs."""
    pins: tuple[str, ...]
    """Tables of pins."""
    remark: str = ""


BUNDLE_RUNTIMES: Mapping[str, BundleRuntime] = {
    item.name: item
    for item in (
        BundleRuntime(
            name="llama.cpp",
            title="llama.cpp",
            runtime="llama.cpp",
            device=None,
            verify_options=("--runtime", "llama.cpp"),
            pins=("llama.cpp",),
            remark="The lock file installs llama.cpp as a library, which verifies. The program that serves, "
            f"`llama-server`, is your own or your distribution's; the start script is written for {LLAMA_CPP} "
            "of llama.cpp, and takes another program from the variable `LLAMA_SERVER`.",
        ),
        BundleRuntime(
            name="cpu",
            title="onnxruntime-genai on the processor",
            runtime="onnxruntime-genai",
            device="cpu",
            verify_options=(),
            pins=("cpu",),
        ),
        BundleRuntime(
            name="cuda",
            title="onnxruntime-genai on GPUs of NVIDIA",
            runtime="onnxruntime-genai",
            device="gpu",
            verify_options=("--provider", "cuda"),
            pins=("cuda",),
        ),
        BundleRuntime(
            name="directml",
            title="onnxruntime with DirectML, on Windows",
            runtime="onnxruntime",
            device="gpu",
            verify_options=("--runtime", "onnxruntime", "--provider", "dml"),
            pins=("directml", "tokenizers"),
            remark="Windows ML (the package onnxruntime-windowsml) has DirectML too, and takes the place of "
            "onnxruntime-directml. Neither lives beside the package onnxruntime.",
        ),
        BundleRuntime(
            name="webgpu",
            title="onnxruntime with WebGPU",
            runtime="onnxruntime",
            device="gpu",
            verify_options=("--runtime", "onnxruntime", "--provider", "webgpu"),
            pins=("webgpu", "tokenizers"),
            remark="The package onnxruntime-webgpu does not live beside the package onnxruntime.",
        ),
    )
}
"""By name: llama.cpp, or the target of an ONNX folder."""

_TARGETS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "directml",
    "WebGpuExecutionProvider": "webgpu",
}


def runtime_of(artifact: Checkpoint, folder: Path) -> BundleRuntime:
    """Return what runs an artifact at the edge.

    Args:
        artifact: the opened model.
        folder: where it lies.

    Raises:
        InputError: the folder does not say what it is made for.
        UnsupportedError: it is no form for the edge.
    """
    if artifact.format == "gguf":
        return BUNDLE_RUNTIMES["llama.cpp"]
    if artifact.format != "onnx":
        raise UnsupportedError(
            "bundles are made of what runs at the edge",
            file=artifact.path,
            found=artifact.format,
            expected="a GGUF file or an ONNX folder",
            hint="`gptoss-convert footprint SRC --fit DEVICE` prints the command that makes one",
        )
    provider = read_genai_config(folder).model.decoder.provider
    if provider not in _TARGETS:
        raise UnsupportedError("made for a provider that there is no lock file for", file=folder, found=provider)
    return BUNDLE_RUNTIMES[_TARGETS[provider]]


def lock_of(runtime: BundleRuntime) -> Mapping[str, str]:
    """Return exact versions by distribution, of this program and everything that it imports there."""
    tables = _tables()
    pins = {"gptoss-convert": __version__}
    for name in ("this-program", *runtime.pins):
        pins |= tables[name]
    return dict(sorted(pins.items()))


@cache
def _tables() -> Mapping[str, Mapping[str, str]]:
    return tomllib.loads(files("gptoss_convert.bundle").joinpath("pins.toml").read_text(encoding="utf-8"))
