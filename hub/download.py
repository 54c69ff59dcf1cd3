"""Models of the Hub in the cache of `huggingface_hub`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from gptoss_convert.assets import CARRIED, CONFIG, SIDECAR
from gptoss_convert.errors import InputError
from gptoss_convert.hub.failures import RETRIES, Retries, reported, transient_failures
from gptoss_convert.hub.reference import HubReference

_SMALL = ("*.json", "*.jinja", "LICENSE*", "NOTICE*", "USAGE_POLICY*", "README.md", SIDECAR)
_WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data")
_SPLIT = re.compile(r"(?P<stem>.+)-[0-9]{5}(?P<count>-of-[0-9]{5}\.gguf)")


def download(
    reference: HubReference, *, offline: bool = False, progress: bool = True, retries: Retries = RETRIES
) -> Path:
    """Return where a model lies in the cache, after downloading what of it is not there.

    Only files that this program reads are downloaded: not the other copies of the weights that repositories of
    gpt-oss have in sub-folders. All of them are of one commit.

    Args:
        reference: the model; its revision is looked up first.
        offline: only look into the cache.
        progress: whether `huggingface_hub` shows its bars.
        retries: for requests that fail on the way; single files have those of `huggingface_hub`.

    Raises:
        InputError: the Hub does not have it, does not give it, or does not answer; or it is not in the cache.
        OutputError: the cache cannot be written.
    """
    allowed, ignored = patterns(reference)

    def attempt() -> str:
        with transient_failures():
            return snapshot_download(
                reference.repository,
                revision=reference.revision,
                allow_patterns=allowed,
                ignore_patterns=ignored,
                local_files_only=offline,
            )

    with reported(str(reference), cache=Path(constants.HF_HUB_CACHE)), progress_bars(shown=progress):
        path = Path(retries.run(attempt)) / reference.path
    if not path.exists():
        raise InputError("repository has nothing there that can be read", file=str(reference))
    return path


def patterns(reference: HubReference) -> tuple[list[str], list[str]]:
    """Return the patterns of files to download and of those to leave out; `*` stands for `/` too."""
    folder, _, file = reference.path.rpartition("/") if reference.is_file else (reference.path, "", "")
    prefix = f"{folder}/" if folder else ""
    if file.endswith(".gguf"):
        split = _SPLIT.fullmatch(file)
        return [prefix + (f"{split['stem']}-?????{split['count']}" if split else file)], []
    allowed = [prefix + pattern for pattern in (*_SMALL, *_WEIGHTS)]
    # OpenAI's layout has its tokenizer in the folder above.
    return ([*allowed, CONFIG, *CARRIED] if prefix else allowed), [f"{prefix}*/*"]


@contextlib.contextmanager
def progress_bars(*, shown: bool) -> Iterator[None]:
    """Let `huggingface_hub` show its bars, or not."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
