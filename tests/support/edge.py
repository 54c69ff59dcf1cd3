"""A machine without torch and what comes with it: processes in which these are not found."""

from pathlib import Path

FORBIDDEN = ("torch", "transformers", "tokenizers", "accelerate", "safetensors", "onnx", "jinja2")
BLOCKER = f"""
import sys

class Blind:
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN}:
            return None  # as where it is not installed: programs may ask before they import
        return self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = map(Blind, sys.meta_path)
"""


def block(folder: Path) -> Path:
    """Make a folder which, on PYTHONPATH, hides what is forbidden from a process and its children."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    return folder
