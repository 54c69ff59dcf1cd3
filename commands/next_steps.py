"""What can be done with an artifact that was just written, for people at a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss_convert.converters.plan import Plan


def next_steps(plan: Plan, *, comparable: bool, compared: bool) -> Iterator[str]:
    """Yield one or two lines: how to prove that the artifact is its source, and how to run it.

    Args:
        plan: of the conversion that was executed.
        comparable: whether the source is what was converted, without an adapter or another tokenizer.
        compared: whether structure and weights were compared with it already.
    """
    output = shlex.quote(str(plan.output))
    if comparable:
        verify = f"gptoss-convert verify {shlex.quote(str(plan.source))} {output}"
        yield f"next: {verify}" if compared else f"next: {verify} --weights, or without --weights to run it, too"
    run = _run(plan, output)
    if run is not None:
        yield f"run:  {run}"


def _run(plan: Plan, output: str) -> str | None:
    if plan.format == "gguf":
        return f"llama-server --model {output} --ctx-size 8192 --jinja"
    if plan.format == "onnx":
        return f"the program in {shlex.quote(str(plan.output / 'README.md'))}"
    if plan.format == "huggingface":
        return f"transformers serve {output}"
    return None
