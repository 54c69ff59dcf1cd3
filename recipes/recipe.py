"""Recipes: TOML files that say which artifacts are made of a source, and how they are judged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from gptoss_convert.assets import read_small_file
from gptoss_convert.converters.conversions import CONVERSIONS, Conversion
from gptoss_convert.errors import InputError, OptionError
from gptoss_convert.hub.reference import HubReference, parse_uri

if TYPE_CHECKING:
    from gptoss_convert.converters.conversions import ConversionOptions

VERSION = 1
"""Of the recipes that can be read."""
LARGEST_RECIPE = 1 << 20
MOST_ARTIFACTS = 1000

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Names of files and folders that every system, shell and URL takes as they are."""
_RESERVED = ("manifest.json", "build-state.json", "provenance.json", "bom.json", "model.sig", "report", "cards")
"""Names that a build writes beside the artifacts."""

_HUB_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}\Z"

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A table of the file."""


class _Source(_Section, frozen=True):
    path: Name
    adapter: Name | None = None
    tokenizer: Name | None = None
    scales_from: Name | None = None


class _Verify(_Section, frozen=True):
    prompts: Name | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    policy: Name | None = None
    provider: Name | None = None
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    timeout: Annotated[float, msgspec.Meta(gt=0)] | None = None


class _Footprint(_Section, frozen=True):
    devices: tuple[Name, ...] = ()
    context: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Card(_Section, frozen=True):
    base_model: Annotated[str, msgspec.Meta(pattern=_HUB_ID)] | None = None


class _Artifact(_Section, frozen=True):
    to: str
    output: str
    name: str | None = None
    runtimes: tuple[Name, ...] = ()
    options: dict[str, Any] = {}


class _Recipe(_Section, frozen=True):
    version: int
    source: _Source
    artifacts: Annotated[tuple[_Artifact, ...], msgspec.Meta(min_length=1, max_length=MOST_ARTIFACTS)]
    verify: _Verify = _Verify()
    footprint: _Footprint = _Footprint()
    card: _Card = _Card()


@dataclass(frozen=True, kw_only=True)
class SourceRecipe:
    """What artifacts are made of."""

    path: HubReference | Path
    adapter: Path | None
    tokenizer: Path | None
    scales_from: Path | None
    """For the conversions that take it."""


@dataclass(frozen=True, kw_only=True)
class VerifyRecipe:
    """How artifacts are judged: structure and weights always, distributions if there are prompts."""

    prompts: str | Path | None
    """Name of a built-in set, or a file."""
    max_tokens: int | None
    policy: Path | None
    provider: str | None
    threads: int | None
    timeout: float | None


@dataclass(frozen=True, kw_only=True)
class FootprintRecipe:
    """Which devices it is asked about whether artifacts fit."""

    devices: tuple[str, ...]
    """Names of profiles, or sizes."""
    context: int | None
    """Tokens that there has to be room for."""


@dataclass(frozen=True, kw_only=True)
class ArtifactRecipe:
    """One artifact."""

    name: str
    output: str
    """Name of the file or folder, in the folder of the build."""
    conversion: Conversion
    options: ConversionOptions
    runtimes: tuple[str, ...]
    """That it is run in; empty for all those made for its format."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says; paths are resolved against its own folder."""

    path: Path
    source: SourceRecipe
    verify: VerifyRecipe
    footprint: FootprintRecipe
    base_model: str | None
    """Hub id that model cards name as the base; None to name what the source says of itself."""
    artifacts: tuple[ArtifactRecipe, ...]

    def only(self, names: tuple[str, ...]) -> Recipe:
        """Return the recipe for some of its artifacts.

        Raises:
            OptionError: there is none of such a name.
        """
        known = {item.name: item for item in self.artifacts}
        for name in names:
            if name not in known:
                raise OptionError("no such artifact", file=self.path, found=name, expected=" or ".join(known))
        return replace(self, artifacts=tuple(item for item in self.artifacts if item.name in names))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe; nothing that it names is opened.

    Raises:
        InputError: the file cannot be read, is no TOML, or says something that no build can do.
    """
    data = read_small_file(path, largest=LARGEST_RECIPE)
    try:
        stated = msgspec.toml.decode(data, type=_Recipe)
    except (
        msgspec.DecodeError,
        ValueError,
        RecursionError,
    ) as error:  # a number of too many digits is no DecodeError
        raise InputError(f"not a recipe: {error}", file=path, hint="see docs/recipes.md") from None
    if stated.version != VERSION:
        raise InputError("recipe of another version", file=path, found=stated.version, expected=VERSION)
    try:
        artifacts = tuple(_artifact(item, number) for number, item in enumerate(stated.artifacts, 1))
    except (OptionError, InputError) as error:
        raise InputError(error.what, file=path, found=error.found, expected=error.expected) from None
    _require_different("name", [item.name for item in artifacts], path)
    _require_different("output", [item.output for item in artifacts], path)
    _require_known_devices(stated.footprint.devices, path)
    folder = path.parent
    source, verify = stated.source, stated.verify
    if source.adapter is not None and verify.prompts is not None:
        raise InputError(
            "distributions cannot be compared with a source that an adapter is merged into",
            file=path,
            expected="no prompts",
            hint="build a BF16 folder with the adapter, and the other artifacts from that",
        )
    return Recipe(
        path=path,
        source=SourceRecipe(
            path=_on_the_hub(source.path, path) or folder / source.path,
            adapter=_beside(folder, source.adapter),
            tokenizer=_beside(folder, source.tokenizer),
            scales_from=_beside(folder, source.scales_from),
        ),
        verify=VerifyRecipe(
            prompts=_prompts(folder, verify.prompts),
            max_tokens=verify.max_tokens,
            policy=_beside(folder, verify.policy),
            provider=verify.provider,
            threads=verify.threads,
            timeout=verify.timeout,
        ),
        footprint=FootprintRecipe(devices=stated.footprint.devices, context=stated.footprint.context),
        base_model=stated.card.base_model,
        artifacts=artifacts,
    )


def _artifact(stated: _Artifact, number: int) -> ArtifactRecipe:
    name = stated.name or stated.output
    place = f"artifacts[{number}]"
    if stated.to not in CONVERSIONS:
        raise InputError(f"{place}: no such target", found=stated.to, expected=" or ".join(CONVERSIONS))
    for what, text in (("name", name), ("output", stated.output)):
        if not _PLAIN_NAME.fullmatch(text) or text.endswith("."):
            raise InputError(f"{place}: {what} is not a plain name", found=text, expected="letters, digits, . _ -")
    if stated.output.casefold() in _RESERVED or stated.output.casefold().endswith(".partial"):
        raise InputError(f"{place}: the build itself uses this name", found=stated.output)
    conversion = CONVERSIONS[stated.to]
    return ArtifactRecipe(
        name=name,
        output=stated.output,
        conversion=conversion,
        options=_options(conversion, stated.options, place),
        runtimes=stated.runtimes,
    )


def _options(conversion: Conversion, stated: Mapping[str, Any], place: str) -> ConversionOptions:
    """Return the options of a conversion from a table with the names of their fields."""
    known = list(signature(conversion.options_class).parameters)
    for key in stated:
        if key not in known:
            what = f"{place}: a conversion to {conversion.name} has no such option"
            raise InputError(what, found=key, expected=", ".join(known))
    try:
        options: ConversionOptions = msgspec.convert(dict(stated), cast(type, conversion.options_class))
    except msgspec.ValidationError as error:
        raise InputError(f"{place}: options: {error}") from None
    return options


def _require_different(what: str, names: Sequence[str], path: Path) -> None:
    """Refuse names that are the same on some system."""
    folded = [name.casefold() for name in names]
    for name in names:
        if folded.count(name.casefold()) > 1:
            raise InputError(f"two artifacts with the same {what}", file=path, found=name)


def _require_known_devices(devices: Sequence[str], path: Path) -> None:
    from gptoss_convert.verify.footprint.profiles import find_budget

    for device in devices:
        try:
            find_budget(device)
        except OptionError as error:
            raise InputError(error.what, file=path, found=error.found, expected=error.expected) from None


def _beside(folder: Path, name: str | None) -> Path | None:
    return None if name is None else folder / name


def _on_the_hub(name: str, recipe: Path) -> HubReference | None:
    """Return the model of the Hub that `name` is; without `hf://` it is a path, as everything else in a recipe."""
    try:
        return parse_uri(name)
    except ValueError as error:
        raise InputError(f"source: {error}", file=recipe) from None


def _prompts(folder: Path, stated: str | None) -> str | Path | None:
    from gptoss_convert.verify.prompts import PRESETS

    return stated if stated is None or stated in PRESETS else folder / stated
