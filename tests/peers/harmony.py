"""OpenAI's own renderer of conversations, openai-harmony, without network.

It wants the tokens of `o200k_base.tiktoken` and checks their SHA-256; those are the ordinary tokens of gpt-oss.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path

import openai_harmony as harmony

from gptoss_convert.tokenizer import Vocabulary
from gptoss_convert.verify.harmony import Message
from tests.support.tokenizers import byte_of_character

ORDINARY = 199_998
"""Tokens of o200k_base without its control tokens."""


def load_encoding(vocabulary: Vocabulary, folder: Path) -> harmony.HarmonyEncoding:
    """The encoding of gpt-oss; `folder` is where a copy of its tokens is left, 4 MB."""
    byte_of = byte_of_character()
    lines = []
    for index, token in enumerate(vocabulary.tokens[:ORDINARY]):
        assert token is not None
        lines.append(b"%s %d\n" % (base64.b64encode(bytes(byte_of[c] for c in token)), index))
    (folder / "o200k_base.tiktoken").write_bytes(b"".join(lines))
    before = os.environ.get("TIKTOKEN_ENCODINGS_BASE")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(folder)
    try:
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    finally:
        del os.environ["TIKTOKEN_ENCODINGS_BASE"]
        if before is not None:
            os.environ["TIKTOKEN_ENCODINGS_BASE"] = before


def conversation_ids(encoding: harmony.HarmonyEncoding, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a conversation, all messages rendered."""
    return foreign_ids(encoding, [_foreign(message) for message in messages])


def foreign_ids(encoding: harmony.HarmonyEncoding, messages: Sequence[harmony.Message]) -> tuple[int, ...]:
    """Token ids of a conversation in openai-harmony's own terms, all messages rendered."""
    config = harmony.RenderConversationConfig(auto_drop_analysis=False)
    conversation = harmony.Conversation.from_messages(messages)
    return tuple(encoding.render_conversation_for_training(conversation, config))


def _foreign(message: Message) -> harmony.Message:
    author = harmony.Author(role=harmony.Role(message.role), name=message.name)
    foreign = harmony.Message.from_author_and_content(author, message.content)
    if message.channel is not None:
        foreign = foreign.with_channel(message.channel)
    if message.recipient is not None:
        foreign = foreign.with_recipient(message.recipient)
    if message.content_type is not None:
        foreign = foreign.with_content_type(message.content_type)
    return foreign
