"""gptoss-convert: convert gpt-oss checkpoints, and verify what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Tensor
    from gptoss_convert.converters.execute import Resources, execute
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
    from gptoss_convert.errors import GptossConvertError
    from gptoss_convert.formats import open_checkpoint

__version__ = "0.1.0"

_PUBLIC = {
    "Checkpoint": "checkpoint",
    "GgufOptions": "converters.to_gguf",
    "GptossConvertError": "errors",
    "ModelConfig": "checkpoint",
    "Plan": "converters.plan",
    "Resources": "converters.execute",
    "Tensor": "checkpoint",
    "execute": "converters.execute",
    "open_checkpoint": "formats",
    "plan_gguf": "converters.to_gguf",
}

__all__ = [
    "Checkpoint",
    "GgufOptions",
    "GptossConvertError",
    "ModelConfig",
    "Plan",
    "Resources",
    "Tensor",
    "execute",
    "open_checkpoint",
    "plan_gguf",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
