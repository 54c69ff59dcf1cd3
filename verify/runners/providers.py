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


_NO_KERNEL = ("Failed to find kernel", "Could not find an implementation")
"""How onnxruntime says that a provider has no kernel for a node, and neither has the processor."""


def require_kernels_of_folder(error: Exception, provider: str, made_for: str) -> None:
    """Raise `ImportError` if a graph was not loaded because it is made for another provider, which is not there.

    Args:
        error: what loading the graph raised.
        provider: onnxruntime's name of the provider that was to run it.
        made_for: that of the provider that the folder is made for.
    """
    if provider != made_for and any(words in str(error) for words in _NO_KERNEL):
        raise ImportError(
            f"{provider} has no kernel for the graph, which is made for {made_for}; install the package of "
            f"onnxruntime that has it, or choose another provider with --provider: {error}"
        ) from error
