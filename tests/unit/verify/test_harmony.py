"""Harmony piece by piece; that it is OpenAI's format is shown in tests/oracle/test_prompts.py."""

import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.harmony import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    MESSAGE,
    RETURN,
    START,
    Message,
    plain_text,
    render,
)


def test_an_answer_ends_the_conversation_only_at_its_end() -> None:
    answer = Message(role="assistant", content="Yes.")
    rendered = [START, "assistant", CHANNEL, "final", MESSAGE, "Yes."]
    question = [START, "user", MESSAGE, "Why?", END]
    messages = [answer, Message(role="user", content="Why?"), answer]
    assert list(render(messages)) == [*rendered, END, *question, *rendered, RETURN]


def test_thoughts_do_not_end_the_conversation() -> None:
    *_, last = render([Message(role="assistant", channel="analysis", content="Hm.")])
    assert last == END


def test_a_tool_is_called_and_answers() -> None:
    call = Message(role="assistant", recipient="functions.f", content_type="<|constrain|>json", content="{}")
    answer = Message(role="tool", name="functions.f", recipient="assistant", channel="commentary", content="1")
    assert list(render([call, answer])) == [
        *(
            START,
            "assistant",
            " to=functions.f",
            CHANNEL,
            "commentary",
            " ",
            CONSTRAIN,
            "json",
            MESSAGE,
            "{}",
            CALL,
        ),
        *(START, "functions.f", " to=assistant", CHANNEL, "commentary", MESSAGE, "1", END),
    ]


def test_a_tool_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="no `name`"):
        list(render([Message(role="tool", content="1")]))


def test_plain_text_keeps_what_is_said() -> None:
    messages = [Message(role="user", content="Why?"), Message(role="assistant", content="So.\n")]
    assert plain_text(messages) == "Why?\n\nSo.\n"
