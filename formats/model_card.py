"""The description of a model in a Hugging Face folder: model card, generation settings, licence, folder name.

How a card's fields are understood, and what a folder's name says, is decided by `gguf.Metadata`, which llama.cpp's
converter uses too, so that both tools say the same. Reading and checking the files is done here, because they come
from strangers: only texts and lists of texts reach the library, in bounded number and length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gptoss_convert.assets import GENERATION_CONFIG, LICENSE, MODEL_CARD, Assets, is_utf8
from gptoss_convert.description import Description, Reference, model_name
from gptoss_convert.errors import InputError

LONGEST_TEXT = 10_000
LONGEST_LIST = 1_000
LARGEST_SETTING = 1 << 31

_APACHE_TITLE = b"Apache License"
_APACHE_VERSION = b"Version 2.0, January 2004"
_SAMPLING = {
    "sequence": ("sequence",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}
"""Keys of generation_config.json by GGUF's name of a setting."""
_WHOLE_SAMPLING = {"top_k", "penalty_last_n", "mirostat"}


def describe_folder(assets: Assets, config: Mapping[str, Any], parameters: int) -> Description:
    """Return what the folder of `assets` says about the model.

    Args:
        assets: the folder's files.
        config: the contents of its config.json.
        parameters: number of parameters of the model, by which a size in the folder's name is believed or not.

    Raises:
        InputError: the model card is damaged or states something that is no text.
    """
    import gguf

    folder = None if assets.folder is None else Path(model_name(assets.folder))
    named = {key: config[key] for key in ("_name_or_path",) if isinstance(config.get(key), str)}
    found: Any = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), _read_card(assets), named, folder, parameters
    )
    said: dict[str, Any] = {}
    for item in fields(Description):
        value = getattr(found, item.name, None)
        if value is None or item.name in ("base_models", "datasets", "tags", "languages"):
            continue
        said[item.name] = ",".join(value) if isinstance(value, list) else value
    for name in ("base_models", "datasets"):
        said[name] = tuple(Reference(**entry) for entry in getattr(found, name) or ())
    for name in ("tags", "languages"):
        said[name] = tuple(getattr(found, name) or ())
    said.setdefault("license", _recognise_license(assets))
    return Description(**said, sampling=_sampling(assets))


def describer(assets: Assets, config: Mapping[str, Any], parameters: int) -> partial[Description]:
    """Return `describe_folder` for later."""
    return partial(describe_folder, assets, config, parameters)


def hub_reference(hub_id: str) -> Reference:
    """Return the reference that a Hub id `owner/name` stands for."""
    import gguf

    card = {"base_model": hub_id}
    found: Any = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card, None, None, 0)
    return Reference(**found.base_models[0])


def _read_card(assets: Assets) -> dict[str, Any]:
    """Return the front matter of README.md: its scalars, lists of texts, and references."""
    data = assets.read(MODEL_CARD)
    if data is None:
        return {}
    path = assets.path(MODEL_CARD)
    try:
        lines = data.decode("utf-8-sig").splitlines()
        if not lines or lines[0] != "---":
            return {}
        end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
        # An unquoted `no` (Norwegian) would be read as false, and YAML has no tabs.
        text = "\n".join(lines[1:end]).replace("\t", "  ") + "\n"
        card = yaml.safe_load(text.replace("- no\n", '- "no"\n'))
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"model card cannot be read: {error}".replace("\n", " "), file=path) from None
    if not isinstance(card, dict):
        return {}
    stated = {key: value for key, value in card.items() if isinstance(key, str) and value is not None}
    checked = {key: _checked(value, references=key in _REFERENCE_KEYS) for key, value in stated.items()}
    bad = [key for key, value in checked.items() if value is None and key in _KNOWN_KEYS]
    if bad:
        raise InputError("model card states something that is no text", file=path, found=f"in {bad[0]}")
    return {key: value for key, value in checked.items() if value is not None}


def _checked(value: Any, *, references: bool) -> Any:
    """Return a text, a number as a text, or a list of texts and perhaps references; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, list) and len(value) <= LONGEST_LIST:
        items = [_reference(item) if references and isinstance(item, dict) else item for item in value]
        sound = all(_is_text(item) or (references and item and isinstance(item, dict)) for item in items)
        return items if sound else None
    return value if _is_text(value) else None


def _is_text(value: Any) -> bool:
    """Return whether `value` is a text of bounded length that can be written as UTF-8."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and is_utf8(value)


def _reference(entry: Mapping[Any, Any]) -> dict[str, str]:
    known = {item.name for item in fields(Reference)}
    return {key: value for key, value in entry.items() if key in known and _is_text(value)}


_REFERENCE_KEYS = {"base_model", "base_models", "base_model_sources", "dataset", "datasets", "dataset_sources"}
_KNOWN_KEYS = {item.name for item in fields(Description)} | {
    f"model_{item.name}" for item in fields(Description)
} | {"pipeline_tag", "language"} | _REFERENCE_KEYS  # fmt: skip


def _recognise_license(assets: Assets) -> str | None:
    """Return `apache-2.0` if the folder's LICENSE is that text."""
    head = (assets.read(LICENSE) or b"")[:1000]
    return "apache-2.0" if _APACHE_TITLE in head and _APACHE_VERSION in head else None


def _sampling(assets: Assets) -> dict[str, float | int | str]:
    """Return the sampling settings in generation_config.json."""
    settings = assets.read_json_object(GENERATION_CONFIG) or {}
    found: dict[str, float | int | str] = {}
    for name, keys in _SAMPLING.items():
        value: Any = next((settings[key] for key in keys if settings.get(key) is not None), None)
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_SETTING
        if number and name in _WHOLE_SAMPLING:
            number = value == int(value)
            value = int(value) if number else value
        if number or (name == "sequence" and _is_text(value)):
            found[name] = value
        elif value is not None:
            raise InputError(
                f"generation settings: {name} is not usable", file=assets.path(GENERATION_CONFIG), found=repr(value)
            )
    return found
