"""ONNX, the format of onnxruntime."""

from __future__ import annotations

from gptoss_convert.formats.onnx.reader import NAME, TITLE, read, recognises

__all__ = ["NAME", "TITLE", "read", "recognises"]
