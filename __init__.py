"""gptoss-convert: convert gpt-oss checkpoints, and verify what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_convert.api import Converted, convert, open, verify
    from gptoss_convert.canonical_hash import hash_checkpoint
    from gptoss_convert.checkpoint import Checkpoint, ModelConfig, Tensor
    from gptoss_convert.converters.adapter import with_adapter
    from gptoss_convert.converters.execute import Report, Resources, execute
    from gptoss_convert.converters.plan import Plan
    from gptoss_convert.converters.to_bf16 import Bf16Options, plan_bf16
    from gptoss_convert.converters.to_gguf import GgufOptions, plan_gguf
    from gptoss_convert.converters.to_mxfp4 import Mxfp4Options, plan_mxfp4
    from gptoss_convert.converters.to_onnx import OnnxOptions, plan_onnx
    from gptoss_convert.errors import GptossConvertError
    from gptoss_convert.formats import open_checkpoint
    from gptoss_convert.formats.peft import open_adapter
    from gptoss_convert.verify.prompts import load_prompts
    from gptoss_convert.verify.verification import LogitsOptions, Verification, VerifyOptions, verify_artifacts

__version__ = "0.1.0"

_PUBLIC = {
    "Bf16Options": "converters.to_bf16",
    "Checkpoint": "checkpoint",
    "Converted": "api",
    "GgufOptions": "converters.to_gguf",
    "GptossConvertError": "errors",
    "LogitsOptions": "verify.verification",
    "ModelConfig": "checkpoint",
    "Mxfp4Options": "converters.to_mxfp4",
    "OnnxOptions": "converters.to_onnx",
    "Plan": "converters.plan",
    "Report": "converters.execute",
    "Resources": "converters.execute",
    "Tensor": "checkpoint",
    "Verification": "verify.verification",
    "VerifyOptions": "verify.verification",
    "convert": "api",
    "execute": "converters.execute",
    "hash_checkpoint": "canonical_hash",
    "load_prompts": "verify.prompts",
    "open": "api",
    "open_adapter": "formats.peft",
    "open_checkpoint": "formats",
    "plan_bf16": "converters.to_bf16",
    "plan_gguf": "converters.to_gguf",
    "plan_mxfp4": "converters.to_mxfp4",
    "plan_onnx": "converters.to_onnx",
    "verify": "api",
    "verify_artifacts": "verify.verification",
    "with_adapter": "converters.adapter",
}

__all__ = [
    "Bf16Options",
    "Checkpoint",
    "Converted",
    "GgufOptions",
    "GptossConvertError",
    "LogitsOptions",
    "ModelConfig",
    "Mxfp4Options",
    "OnnxOptions",
    "Plan",
    "Report",
    "Resources",
    "Tensor",
    "Verification",
    "VerifyOptions",
    "convert",
    "execute",
    "hash_checkpoint",
    "load_prompts",
    "open",
    "open_adapter",
    "open_checkpoint",
    "plan_bf16",
    "plan_gguf",
    "plan_mxfp4",
    "plan_onnx",
    "verify",
    "verify_artifacts",
    "with_adapter",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts fast."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
