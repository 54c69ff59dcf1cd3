"""Verdicts on the published models, as the command line derives them from their configurations."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.cli.command import run_here

DATA = Path(__file__).parents[1] / "data" / "gpt-oss"
CONFIGURATIONS = {size: DATA / size / "config.json" for size in ("20b", "120b")}
BUDGETS = ("laptop-16gb", "gpu-16gb", "gpu-24gb", "gpu-80gb")
ROWS = (
    ("gguf", "llama.cpp"),
    ("gguf-q8_0", "llama.cpp"),
    ("onnx-directml", "onnxruntime-genai"),
    ("onnx-cuda", "onnxruntime-genai"),
    ("onnx-cpu", "onnxruntime-genai"),
    ("mxfp4", "transformers"),
)
"""Form and runtime. Graphs for a GPU are not asked about a laptop's memory, nor those for the CPU about a GPU's."""
CONTEXT = "8192"


def verdict_tables() -> str:
    """The tables of docs/footprint.md, in Markdown."""
    lines = [
        "| model | form | runtime | " + " | ".join(BUDGETS) + " |",
        "|---|---|---|" + "---|" * len(BUDGETS),
    ]
    for size, path in CONFIGURATIONS.items():
        with TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_bytes(path.read_bytes())
            for form, runtime in ROWS:
                cells = [_cell(Path(folder), form, runtime, budget) for budget in BUDGETS]
                lines.append(f"| gpt-oss-{size} | `{form}` | {runtime} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(folder: Path, form: str, runtime: str, budget: str) -> str:
    on_gpu = budget.startswith("gpu")
    if (form in ("onnx-directml", "onnx-cuda") and not on_gpu) or (form == "onnx-cpu" and on_gpu):
        return ""
    options = ("--as", form, "--runtime", runtime, "--context", CONTEXT, "--threads", "8", "--budget", budget)
    outcome = run_here("footprint", folder, *options, "--json")
    (verdict,) = json.loads(outcome.stdout)["verdicts"]
    context = verdict["largest_context"]
    said = "no" if context is None else f"up to {context:,} tokens"
    assert outcome.exit_code == (6 if verdict["verdict"] == "over budget" else 0)
    return f"{said}; {verdict['needed'] / 1e9:.1f} of {verdict['available'] / 1e9:.1f} GB"
