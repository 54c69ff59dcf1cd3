"""How commands are told their source: a path, or a model on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from gptoss_convert.errors import OptionError, UnsupportedError
from gptoss_convert.hub.reference import HubReference, parse_source

Command = TypeVar("Command", bound=Callable[..., Any])

STREAM_JOBS = 8
"""Requests in flight: a server takes longer to answer than this machine to convert."""
STREAM_MEMORY_PER_JOB = 48 << 20
"""Bytes: enough for an expert of gpt-oss in BF16, whose rows lie in columns."""


class Source(click.ParamType["HubReference | Path"]):
    """A path, `hf://owner/name@revision`, or `owner/name`."""

    name = "source"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HubReference | Path:
        """Return the model of the Hub, or the path."""
        if isinstance(value, HubReference | Path):
            return value
        try:
            return parse_source(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def hub_options(command: Command) -> Command:
    """Add the options of a source on the Hub that is downloaded or looked at."""
    for option in (
        click.option(
            "--offline", is_flag=True, help="[input] Use only what is in the cache of the Hugging Face Hub."
        ),
        click.option(
            "--revision",
            metavar="REVISION",
            help="[input] Branch, tag or commit of a model on the Hub (default: its main branch).",
        ),
    ):
        command = option(command)
    return command


def stream_option(command: Command) -> Command:
    """Add the option to read a source on the Hub where it lies."""
    return click.option(
        "--stream",
        is_flag=True,
        help="[input] Read the weights of a model on the Hub by ranges as they are needed, without a copy of them.",
    )(command)


def paths_among(*sources: HubReference | Path) -> Iterator[Path]:
    """Yield the sources that are paths on this machine."""
    yield from (source for source in sources if isinstance(source, Path))


def locate(
    source: HubReference | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    stream: bool = False,
    progress: bool = True,
) -> Path:
    """Return the path to open; what is on the Hub is downloaded, unless it is streamed.

    Raises:
        InputError: the Hub does not have it, does not give it, or does not answer; or it is not in the cache.
        OptionError: options do not fit the source or each other.
        OutputError: the cache cannot be written.
        UnsupportedError: the library for the Hub is not installed.
    """
    if isinstance(source, Path):
        for name, is_given in (("--revision", revision is not None), ("--stream", stream)):
            if is_given:
                raise OptionError(
                    f"{name} is for a model on the Hugging Face Hub",
                    found=f"the path {source}",
                    expected="hf://OWNER/NAME",
                )
        return source
    if stream and offline:
        raise OptionError("--stream needs a connection", hint="leave out --offline, or --stream to use the cache")
    reference = source.at(revision)
    try:
        from gptoss_convert.hub.download import download
        from gptoss_convert.hub.path import open_remote
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"models on the Hub need the library {error.name}", hint="pip install 'gptoss-convert[hub]'"
        ) from error
    return open_remote(reference) if stream else download(reference, offline=offline, progress=progress)
