"""The built-in model, and the story that `gptoss-convert demo` tells with it.

`tiny-gpt-oss` is a gpt-oss model of 4 layers and 16 experts that was really trained; its weights take 7.8 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.description import Description
from gptoss_convert.errors import OutputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.inspection import Inspection, inspect_checkpoint
from gptoss_convert.verify.weights import TensorComparison, compare_weights

MODEL = "tiny-gpt-oss"


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration did and found."""

    source: Inspection
    plan: Plan
    artifact: Inspection
    comparisons: tuple[TensorComparison, ...]


def run_demo(folder: Path) -> DemoResult:
    """Convert the built-in model to GGUF in `folder`, inspect the file, and compare every tensor with the source.

    Raises:
        OutputError: the file exists already or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make folder: {error.strerror}", file=folder) from error
    with as_file(files(__package__).joinpath(MODEL)) as model:
        source = open_checkpoint(model)
        options = GgufOptions(description=Description(license="apache-2.0"))
        plan = plan_gguf(source, folder / f"{MODEL}.gguf", options)
        execute(plan)
        artifact = open_checkpoint(plan.output)
        return DemoResult(
            source=inspect_checkpoint(source),
            plan=plan,
            artifact=inspect_checkpoint(artifact),
            comparisons=tuple(compare_weights(source, artifact)),
        )
