"""Graphs as onnxruntime-genai's own tool, `onnxruntime_genai.models.builder`, makes them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def build(
    checkpoint: Path, folder: Path, *, precision: str = "fp32", provider: str = "cpu", options: Sequence[str] = ()
) -> Path:
    """Write model.onnx, its weights and genai_config.json of a Hugging Face `checkpoint` to `folder`.

    `options` are the builder's extra options, `name=value`.
    """
    command: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "onnxruntime_genai.models.builder",
        "-m",
        checkpoint,
        "-i",
        checkpoint,
    ]
    command += ["-o", folder, "-p", precision, "-e", provider, "-c", folder.with_name(f"{folder.name}-cache")]
    if options:
        command += ["--extra_options", *options]
    done = subprocess.run(
        command,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"the builder failed (exit code {done.returncode}):\n{done.stdout}")
    return folder
