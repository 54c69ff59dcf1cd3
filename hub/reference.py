"""What a model on the Hub is called: `hf://owner/name@revision/path`, or `owner/name`."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from gptoss_convert.errors import OptionError

SCHEME = "hf://"

_PLAIN = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
"""Names of owners and repositories; the Hub also refuses `--` and `..` in them, which its cache relies on."""
_BARE = re.compile(rf"(?P<owner>{_PLAIN})/(?P<name>{_PLAIN})")
_FULL = re.compile(
    rf"hf://(?P<owner>{_PLAIN})/(?P<name>{_PLAIN})"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[A-Za-z0-9._-]+|[A-Za-z0-9._%+-]+))?"
    r"(?P<path>(?:/[A-Za-z0-9._+ -]+)*)/?"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]{0,199}")
_FILE_SUFFIXES = (".gguf", ".onnx", ".safetensors")
"""A name that ends so is a file that is not there, and no repository."""
_CACHED = re.compile(r"models--.+?--(?P<name>.+)")


@dataclass(frozen=True)
class HubReference:
    """A model on the Hub; nothing says that it exists."""

    owner: str
    name: str
    revision: str | None = None
    """Branch, tag or commit; None for the default branch."""
    path: str = ""
    """Folder or file in the repository, with `/` between its parts; empty for its root."""

    @property
    def repository(self) -> str:
        """Return `owner/name`."""
        return f"{self.owner}/{self.name}"

    @property
    def is_file(self) -> bool:
        """Whether the path names a single file."""
        return self.path.endswith(_FILE_SUFFIXES)

    def at(self, revision: str | None) -> HubReference:
        """Return the same model at `revision`, which an option names; None leaves it as it is.

        Raises:
            OptionError: another revision is named already, or it cannot be the name of one.
        """
        if revision is None:
            return self
        if self.revision not in (None, revision):
            raise OptionError("two revisions of one source", found=f"{self.revision} and {revision}")
        if not _is_revision(revision):
            raise OptionError("not a revision", found=repr(revision), expected="a branch, a tag or a commit")
        return replace(self, revision=revision)

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{SCHEME}{self.repository}{revision}" + (f"/{self.path}" if self.path else "")


def parse_uri(text: str) -> HubReference | None:
    """Return what `text` names if it begins with `hf://`; None if it does not.

    Raises:
        ValueError: what follows is no name of a model.
    """
    if not text.startswith(SCHEME):
        return None
    match = _FULL.fullmatch(text)
    revision = match and match["revision"] and unquote(match["revision"])
    parts = PurePosixPath(match["path"]).parts[1:] if match and match["path"] else ()
    if match is None or not _are_names(match["owner"], match["name"]) or ".." in parts:
        raise ValueError(f"{text!r}: write hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/PATH")
    if revision is not None and not _is_revision(revision):
        raise ValueError(f"{revision!r} cannot be the name of a revision")
    return HubReference(match["owner"], match["name"], revision, "/".join(parts))


def parse_source(text: str) -> HubReference | Path:
    """Return the model of the Hub that `text` names, or the path that it is otherwise.

    Without `hf://`, `owner/name` is a model of the Hub only if it cannot be a path that was mistyped: nothing is
    there, nothing called `owner` either, and `name` does not end as the name of a file.

    Raises:
        ValueError: as `parse_uri`.
    """
    reference = parse_uri(text)
    if reference is not None:
        return reference
    match = _BARE.fullmatch(text)
    if match is None or not _are_names(match["owner"], match["name"]) or text.endswith(_FILE_SUFFIXES):
        return Path(text)
    if os.path.lexists(text) or os.path.lexists(match["owner"]):
        return Path(text)
    return HubReference(match["owner"], match["name"])


def cached_commit(path: Path) -> str | None:
    """Return the commit that a path in the cache of `huggingface_hub` belongs to; None for any other path."""
    parts = path.absolute().parts
    for place, part in enumerate(parts[:-2]):
        if _CACHED.fullmatch(part) and parts[place + 1] == "snapshots":
            return parts[place + 2]
    return None


def upload_command(output: Path) -> str:
    """Return the command that uploads what was written, for people to complete and copy."""
    return shlex.join(["hf", "upload", f"OWNER/{output.stem if output.is_file() else output.name}", str(output)])


def _are_names(*names: str) -> bool:
    return not any(pair in name for name in names for pair in ("--", ".."))


def _is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None and ".." not in text
