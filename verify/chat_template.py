"""Chat templates, which are programs of strangers: rendered in jinja2's sandbox, in a process with bounds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from gptoss_convert.errors import InputError, UnsupportedError
from gptoss_convert.verify.text_encoder import Control, Piece


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What rendering a conversation may take."""

    seconds: float = 20
    memory: int = 1 << 30
    """Bytes of address space."""
    characters: int = 4 << 20
    """Of the rendered text."""


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    special_tokens: Mapping[str, str],
    controls: Iterable[str],
    limits: Limits | None = None,
) -> Iterator[Piece]:
    """Return the pieces of a conversation as the template of its model renders it, without a generation prompt.

    Args:
        template: source of the template.
        messages: what it is told as `messages`.
        tools: what it is told as `tools`.
        special_tokens: token by purpose (bos, eos, ...); `{purpose}_token` in the template.
        controls: control tokens of the model; wherever the template writes one, it becomes one.
        limits: bounds; None for the usual ones.

    Raises:
        InputError: a message spells a control token, which could not be told from the template's own; the template
            is unsound, refuses the messages, or needs more than the limits.
        UnsupportedError: jinja2 is not installed.
    """
    longest_first = sorted(controls, key=len, reverse=True)
    variables: dict[str, Any] = {"messages": messages, "tools": tools, "add_generation_prompt": False}
    try:
        _refuse_spelled([*messages, *(tools or ())], longest_first)
        variables |= {f"{purpose}_token": token for purpose, token in special_tokens.items()}
        text = _run(template, variables, limits or Limits())
    except RecursionError:
        raise InputError("messages are nested too deeply") from None
    return _split(text, longest_first)


def _refuse_spelled(messages: object, controls: Sequence[str]) -> None:
    for text in _texts(messages):
        for control in controls:
            if control in text:
                raise InputError(
                    "a message spells a control token, which the chat template would make a real one",
                    found=control,
                    hint='render the conversation with "render": "harmony"',
                )


def _texts(value: object) -> Iterator[str]:
    """Yield every text in parsed JSON, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _split(text: str, controls: Sequence[str]) -> Iterator[Piece]:
    if not controls:
        yield text
        return
    known = frozenset(controls)
    for part in re.split(f"({'|'.join(map(re.escape, controls))})", text):
        if part in known:
            yield Control(part)
        elif part:
            yield part


def _run(template: str, variables: Mapping[str, Any], limits: Limits) -> str:
    if find_spec("jinja2") is None:
        raise UnsupportedError(
            "rendering a chat template needs the package `jinja2`",
            hint="install it with `pip install 'gptoss-convert[verify]'`",
        )
    request = {
        "template": template,
        "variables": variables,
        "memory": limits.memory,
        "characters": limits.characters,
    }
    command = [sys.executable, "-P", "-m", "gptoss_convert.verify.template_sandbox"]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=limits.seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"chat template did not end within {limits.seconds:g} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise InputError(
            f"chat template could not be rendered: {last[0] if last else 'its process was killed'}"
        ) from None
    if "error" in answer:
        raise InputError(f"chat template could not be rendered: {answer['error']}")
    text: str = answer["text"]
    return text
