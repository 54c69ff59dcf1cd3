"""How files are laid out: one module or package per format.

Adding a format means adding one module here with `NAME`, `TITLE`, `recognises` and `read`, and one entry to
`FORMATS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from gptoss_convert.assets import CONFIG, Assets
from gptoss_convert.checkpoint import Checkpoint
from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.formats.tokenizer_json import find_tokenizer
from gptoss_convert.tokenizer import TokenizerSource

FORMATS: dict[str, str] = {
    "onnx": "gptoss_convert.formats.onnx",
    "huggingface": "gptoss_convert.formats.huggingface",
    "openai": "gptoss_convert.formats.openai",
    "gguf": "gptoss_convert.formats.gguf",
}
"""Module by format name, in the order in which a path is tried."""


class Format(Protocol):
    """What a format's module offers."""

    NAME: str
    TITLE: str

    def recognises(self, path: Path) -> bool:
        """Return whether `path` is of this format, judged by its contents."""

    def read(self, path: Path) -> Checkpoint:
        """Open `path` without reading tensor data."""


def format_named(name: str) -> Format:
    """Return the module of format `name`, imported when first used."""
    return cast(Format, import_module(FORMATS[name]))


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a model of any readable format. No tensor data is read.

    The result may have `problems`, which `inspect` lists and a conversion refuses.

    Raises:
        InputError: nothing is there, no format recognises it, or a header is damaged.
        UnsupportedError: it is another kind of model.
    """
    path = Path(path) if isinstance(path, str) else path
    try:
        if not path.exists():
            raise InputError("nothing is there", file=path)
        for name in FORMATS:
            module = format_named(name)
            if module.recognises(path):
                return module.read(path)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}", file=path) from error
    if (path / "adapter_config.json").is_file():
        raise UnsupportedError(
            "this is an adapter, not a model",
            file=path,
            hint="merge it into its base model first, for example with PEFT, "
            "or convert the base model and name this folder with --adapter",
        )
    raise InputError(
        "not a checkpoint that can be read",
        file=path,
        expected="a folder with config.json and safetensors files, a GGUF file, or an ONNX folder",
    )


def open_tokenizer(path: Path | str) -> TokenizerSource:
    """Return the tokenizer of a folder with tokenizer.json, or of any readable model.

    Raises:
        InputError: there is none.
    """
    path = Path(path) if isinstance(path, str) else path
    assets = Assets(path)
    tokenizer: TokenizerSource | None = None
    if path.is_dir():
        tokenizer = find_tokenizer(assets, assets.read_json_object(CONFIG) or {})
    if tokenizer is None:
        tokenizer = open_checkpoint(path).tokenizer
    if tokenizer is None:
        raise InputError("no tokenizer there", file=path, expected="tokenizer.json")
    return tokenizer


__all__ = ["FORMATS", "Format", "format_named", "open_checkpoint", "open_tokenizer"]
