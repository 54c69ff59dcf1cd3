"""Checkpoints with a tokenizer, and conversions of them with this project."""

from pathlib import Path

import gptoss_convert.demo
from gptoss_convert.converters.execute import execute
from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
from gptoss_convert.formats import open_checkpoint
from tests.support import tokenizers
from tests.support.checkpoints import write_huggingface
from tests.support.layouts import Shape

TINY = Path(gptoss_convert.demo.__file__).parent / gptoss_convert.demo.MODEL
"""The built-in model, which was really trained."""


def make_checkpoint(folder: Path, shape: Shape, **options: object) -> Path:
    """Write a random checkpoint with a small tokenizer; `options` are those of `write_huggingface`."""
    ids = tokenizers.write_small_tokenizer(folder)
    return write_huggingface(folder, shape, special_ids=ids, **options)  # type: ignore[arg-type]


def to_gguf(checkpoint: Path, output: Path, **options: object) -> Path:
    """Convert a checkpoint with this project and return the (first) file."""
    plan = plan_gguf(open_checkpoint(checkpoint), output, GgufOptions(**options))  # type: ignore[arg-type]
    execute(plan)
    return plan.output
