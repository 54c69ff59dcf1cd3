"""Names of onnxruntime's execution providers."""

from __future__ import annotations

from collections.abc import Mapping

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "dml": "DmlExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""onnxruntime's names by those of onnxruntime-genai, for the providers that graphs are made for."""


def provider_named(name: str) -> str:
    """Return onnxruntime's name of a provider that is called by it or by that of onnxruntime-genai."""
    return PROVIDERS.get(name.lower(), name)
