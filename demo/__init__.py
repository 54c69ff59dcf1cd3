"""The built-in model, and the story that `gptoss-convert demo` tells with it.

`tiny-gpt-oss` is a gpt-oss model of 4 layers and 16 experts that was really trained; its weights take 7.8 MB.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.plan import Plan
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.description import Description
from gptoss_convert.errors import OutputError
from gptoss_convert.formats import open_checkpoint
from gptoss_convert.inspection import Inspection, inspect_checkpoint
from gptoss_convert.verify.prompts import load_prompts
from gptoss_convert.verify.runners import RUNTIMES
from gptoss_convert.verify.runs import Say
from gptoss_convert.verify.verification import LogitsOptions, Verification, VerifyOptions, verify_artifacts

MODEL = "tiny-gpt-oss"
RUNTIME = "llama.cpp"
TOKENS = 32
"""Of each prompt: enough evidence for a verdict, in seconds."""


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration did and found."""

    source: Inspection
    plan: Plan
    artifact: Inspection
    verification: Verification


def run_demo(folder: Path, say: Say = lambda line: None) -> DemoResult:
    """Convert the built-in model to GGUF in `folder`, inspect the file, and verify it.

    Weights are always compared; distributions only where what `runs_models` asks for is installed.

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
        return DemoResult(
            source=inspect_checkpoint(source),
            plan=plan,
            artifact=inspect_checkpoint(open_checkpoint(plan.output)),
            verification=verify_artifacts(source, [plan.output], VerifyOptions(logits=_logits(source)), say=say),
        )


def runs_models() -> bool:
    """Return whether what it takes to compare distributions is installed: the extra `verify`."""
    runtimes = (RUNTIMES["reference"], RUNTIMES[RUNTIME])
    return all(runtime.is_installed for runtime in runtimes) and find_spec("tokenizers") is not None


def _logits(source: Checkpoint) -> LogitsOptions | None:
    if not runs_models():
        return None
    prompts = load_prompts("quick", source.tokenizer, source.config, max_tokens=TOKENS)
    # So small a model is not faster with more threads.
    return LogitsOptions(prompts=prompts, runtimes=(RUNTIME,), threads=1)
