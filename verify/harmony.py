"""Harmony, the format of conversations that gpt-oss was trained on.

    <|start|>{role}[ to={recipient}][<|channel|>{channel}][ {content type}]<|message|>{content}<|end|>

Source: OpenAI's openai-harmony, `render_conversation_for_training` with `auto_drop_analysis` off: every message is
rendered, and nothing that is not a message. An answer at the end of a conversation ends with `<|return|>`, a call
of a tool with `<|call|>`. Tools write their name in the place of the role. Text of system and developer messages is
taken as it is; see "OpenAI harmony response format" in OpenAI's cookbook for what the model expects there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from gptoss_convert.errors import InputError
from gptoss_convert.verify.text_encoder import Control, Piece

START = Control("<|start|>")
CHANNEL = Control("<|channel|>")
CONSTRAIN = Control("<|constrain|>")
MESSAGE = Control("<|message|>")
END = Control("<|end|>")
CALL = Control("<|call|>")
RETURN = Control("<|return|>")
CONTROLS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN)
"""All control tokens of the format."""


class Message(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What one party says."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str
    name: str | None = None
    """Of the tool that answers, such as `functions.get_weather`; of another author, to tell several apart."""
    channel: Literal["analysis", "commentary", "final"] | None = None
    """An assistant that names none calls tools in `commentary` and says all else in `final`."""
    recipient: str | None = None
    """To whom it speaks; an assistant calls a tool so."""
    content_type: str | None = None
    """Such as `code`; `<|constrain|>json` has the control token in front."""

    @property
    def effective_channel(self) -> str | None:
        """The channel that is rendered."""
        if self.role != "assistant" or self.channel is not None:
            return self.channel
        return "commentary" if self.is_call else "final"

    @property
    def is_call(self) -> bool:
        """Whether the assistant calls a tool."""
        return self.role == "assistant" and self.recipient is not None


def render(messages: Sequence[Message]) -> Iterator[Piece]:
    """Yield the pieces of a conversation.

    Raises:
        InputError: a tool has no name.
    """
    for index, message in enumerate(messages):
        yield START
        yield from _header(message)
        yield MESSAGE
        yield message.content
        if index == len(messages) - 1 and message.role == "assistant" and message.effective_channel == "final":
            yield RETURN
        else:
            yield CALL if message.is_call else END


def _header(message: Message) -> Iterator[Piece]:
    if message.role == "tool":
        if message.name is None:
            raise InputError("message of a tool has no `name`", expected='for example "functions.get_weather"')
        yield message.name
    else:
        yield message.role
        if message.name is not None:
            yield f":{message.name}"
    if message.recipient not in (None, "all"):  # the library does not write the latter
        yield f" to={message.recipient}"
    if message.effective_channel is not None:
        yield CHANNEL
        yield message.effective_channel
    if message.content_type is not None:
        kind = message.content_type.removeprefix(CONSTRAIN.token)
        if kind == message.content_type:
            yield f" {kind}"
        else:
            yield " "
            yield CONSTRAIN
            yield kind


def plain_text(messages: Sequence[Message]) -> str:
    """Return what is said without the format, for models that lack its control tokens."""
    return "\n\n".join(message.content for message in messages)
