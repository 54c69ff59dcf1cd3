"""Files of prompts: one JSON object per line.

| a line has | it is |
|---|---|
| `"text": "..."` | text, encoded as it is; control tokens that it spells are text |
| `"messages": [...]` | a conversation in Harmony, see `harmony.Message` |
| `"messages": [...], "render": "template"` | the model's chat template makes it, with `"tools"` if given |
| `"ids": [...]` | token ids |

and, if it likes, `"name"`, `"kind"` and `"max_tokens"`, to which the prompt is cut. Empty lines are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.verify.harmony import Message

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Text:
    """Text without any format."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages in Harmony."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Templated:
    """Messages for the model's own chat template, in its own terms."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] | None


@dataclass(frozen=True, kw_only=True)
class Ids:
    """Token ids."""

    ids: tuple[int, ...]


Content = Text | Conversation | Templated | Ids


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """A prompt as it stands in a file."""

    file: str
    number: int
    """Of the line, from 1."""
    name: str
    kind: str
    content: Content
    max_tokens: int | None

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Name this line in errors within the block that name no file."""
        with _named_errors(self.file, self.number):
            yield


class _Line(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    name: str | None = None
    kind: str | None = None
    text: str | None = None
    messages: msgspec.Raw = msgspec.Raw()
    """Empty if there are none."""
    ids: tuple[_Id, ...] | None = None
    render: Literal["harmony", "template"] | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    max_tokens: _Count | None = None


def parse_prompt_lines(data: bytes, file: str) -> list[PromptLine]:
    """Return the prompts in `data`; `file` is named in errors.

    Raises:
        InputError: a line is no prompt, two have the same name, or there is none at all.
    """
    lines: dict[str, PromptLine] = {}
    for number, content in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if content.strip():
            with _named_errors(file, number):
                line = _prompt_line(content, file, number)
                if line.name in lines:
                    raise InputError(f"name is that of line {lines[line.name].number} too", found=line.name)
            lines[line.name] = line
    if not lines:
        raise InputError("file holds no prompts", file=file)
    return list(lines.values())


def _prompt_line(data: bytes, file: str, number: int) -> PromptLine:
    line = _decode(data, _Line)
    kind, content = _content(line)
    return PromptLine(
        file=file,
        number=number,
        name=line.name or f"line {number}",
        kind=line.kind or kind,
        content=content,
        max_tokens=line.max_tokens,
    )


def _content(line: _Line) -> tuple[str, Content]:
    """Return the content, and the kind that it is called if the line does not say."""
    has = {"text": line.text is not None, "messages": bool(bytes(line.messages)), "ids": line.ids is not None}
    given = [name for name, there in has.items() if there]
    if len(given) != 1:
        raise InputError(
            "a prompt is one of `text`, `messages` and `ids`", found=" and ".join(given) or "none of them"
        )
    if line.render is not None and not has["messages"]:
        raise InputError("only `messages` can be rendered", found=f'"render": "{line.render}"')
    if line.tools is not None and line.render != "template":
        raise InputError(
            '`tools` are for `"render": "template"` only',
            hint="in Harmony, tools stand in the developer message",
        )
    if line.ids is not None:
        if not line.ids:
            raise InputError("prompt is empty")
        return "ids", Ids(ids=line.ids)
    if line.text is not None:
        return "text", Text(text=line.text)
    if line.render == "template":
        messages = _decode(line.messages, tuple[dict[str, Any], ...], "$.messages")
        return "chat", Templated(messages=messages, tools=line.tools)
    return "chat", Conversation(messages=_decode(line.messages, tuple[Message, ...], "$.messages"))


def _decode(data: bytes | msgspec.Raw, kind: type[_T], place: str = "$") -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = str(error) if "`$" in str(error) or place == "$" else f"{error} - at `$`"
        raise InputError(f"not a prompt: {what.replace('`$', f'`{place}')}") from None


@contextmanager
def _named_errors(file: str, number: int) -> Iterator[None]:
    try:
        yield
    except (InputError, UnsupportedError) as error:
        if error.file is not None:
            raise
        facts = {"found": error.found, "expected": error.expected, "hint": error.hint}
        raise type(error)(f"line {number}: {error.what}", file=file, **facts) from None
