"""Metadata under `general.`: what the model is called, who made it, under which licence, from what.

Names and guesses are those of `gguf.Metadata`, which llama.cpp's converter uses: the model card's front matter
first, then the folder's name. What the user states goes before both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptoss_convert.assets import GENERATION_CONFIG, LICENSE, MODEL_CARD, Assets, read_json_object
from gptoss_convert.checkpoint import ModelConfig, Role, inventory
from gptoss_convert.errors import InputError
from gptoss_convert.formats.gguf.configuration import ARCHITECTURE
from gptoss_convert.formats.gguf.container import Value, ValueType, string, strings

REVISION_KEY = "gptoss_convert.source.revision"
"""GGUF has no key for the revision of the source; keys of a tool carry its name."""
_APACHE_TITLE = b"Apache License"
_APACHE_VERSION = b"Version 2.0, January 2004"


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the user states about a model; None leaves it to the model card and the folder's name."""

    name: str | None = None
    author: str | None = None
    version: str | None = None
    organization: str | None = None
    description: str | None = None
    quantized_by: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    url: str | None = None
    repo_url: str | None = None
    source_url: str | None = None
    source_repo_url: str | None = None
    source_revision: str | None = None
    """Commit of the repository that the weights came from."""
    base_models: tuple[str, ...] = ()
    """Hub ids (`owner/name`) of the models that this one derives from."""


def description_metadata(
    stated: Description, assets: Assets, config: ModelConfig, *, fallback_name: str
) -> dict[str, Value]:
    """Return the `general.` metadata in the order of llama.cpp's converter.

    Raises:
        InputError: the model card is damaged or states something that is no text.
    """
    import gguf

    card: Any = _load_card(assets, config)
    for field in (
        "name", "author", "version", "organization", "description", "quantized_by", "license", "license_name",
        "license_link", "url", "repo_url", "source_url", "source_repo_url",
    ):  # fmt: skip
        if (value := getattr(stated, field)) is not None:
            setattr(card, field, value)
    if stated.base_models:
        card.base_models = [_base_model(hub_id) for hub_id in stated.base_models]
    if card.name is None:
        card.name = fallback_name
    if card.license is None:
        card.license = _recognise_license(assets)
    if card.size_label is None:
        card.size_label = gguf.size_label(*parameter_counts(config), config.num_local_experts)
    writer = gguf.GGUFWriter(path=None, arch=ARCHITECTURE)
    writer.add_type(gguf.GGUFType.MODEL)
    try:
        card.set_gguf_meta_model(writer)
        metadata = {key: _checked(value) for key, value in writer.kv_data[0].items()}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"model card states something that is no text: {error}", file=_card_path(assets)) from None
    if stated.source_revision is not None:
        metadata[REVISION_KEY] = string(stated.source_revision)
    return metadata


def _load_card(assets: Assets, config: ModelConfig) -> Any:
    """Return `gguf.Metadata` filled from the asset folder."""
    import gguf

    # Bounds and types of the files that the library is about to read by itself.
    assets.read(MODEL_CARD)
    for name in ("config.json", GENERATION_CONFIG):
        if (path := assets.path(name)) is not None:
            read_json_object(path)
    folder = None if assets.folder is None else assets.folder.resolve()
    try:
        return gguf.Metadata.load(None, folder, None, parameter_counts(config)[0])
    except Exception as error:  # a foreign parser on a stranger's file
        raise InputError(f"model card cannot be read: {error}", file=_card_path(assets)) from None


def _card_path(assets: Assets) -> str:
    return str(assets.path(MODEL_CARD) or MODEL_CARD)


def _base_model(hub_id: str) -> dict[str, str]:
    import gguf

    owner, _, name = hub_id.rpartition("/")
    to_title: Callable[[str], str] = gguf.Metadata.id_to_title
    entry = {"name": to_title(name)}
    if owner:
        entry["organization"] = to_title(owner)
        entry["repo_url"] = f"https://huggingface.co/{hub_id}"
    return entry


def _recognise_license(assets: Assets) -> str | None:
    """Return `apache-2.0` if the folder's LICENSE is that text."""
    text = assets.read(LICENSE) or b""
    head = text[:1000]
    return "apache-2.0" if _APACHE_TITLE in head and _APACHE_VERSION in head else None


def parameter_counts(config: ModelConfig) -> tuple[int, int, int]:
    """Return the number of parameters in all, shared by all tokens, and in the matrices of one expert.

    Expert biases count as shared: so does `GGUFWriter.get_total_parameter_count`, from which the size label of
    every published GGUF comes.
    """
    total = shared = expert = 0
    for spec in inventory(config).values():
        size = math.prod(spec.shape)
        total += size
        if spec.role is Role.EXPERTS:
            expert += size // config.num_local_experts
        else:
            shared += size
    return total, shared, expert


def _checked(entry: Any) -> Value:
    """Return a value of the library's writer as our own, if it is a text, a list of texts or a number."""
    kind, value = ValueType(int(entry.type)), entry.value
    if kind is ValueType.ARRAY:
        if not all(isinstance(item, str) for item in value):
            raise TypeError(f"{value!r} is no list of texts")
        return strings(value)
    if kind is ValueType.STRING and not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return Value(kind, value)
