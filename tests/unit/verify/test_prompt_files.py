"""Lines of a file of prompts: what they may say, and how they are refused."""

import re
from pathlib import Path

import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.harmony import Message
from gptoss_convert.verify.prompt_files import Conversation, Ids, Templated, Text, parse_prompt_lines

EACH_KIND = b"""\xef\xbb\xbf{"text": "Once"}\r

{"name": "greeting", "kind": "polite", "messages": [{"role": "user", "content": "Hi\\u2028"}]}
{"messages": [{"role": "user", "content": [1]}], "render": "template", "tools": [{"a": 1}]}
{"ids": [1, 2, 3], "max_tokens": 2}"""


def test_each_kind_of_line() -> None:
    text, conversation, templated, ids = parse_prompt_lines(EACH_KIND, "p.jsonl")
    assert text.content == Text(text="Once")
    assert (text.number, text.name, text.kind, text.max_tokens) == (1, "line 1", "text", None)
    assert conversation.content == Conversation(messages=(Message(role="user", content="Hi\u2028"),))
    assert (conversation.number, conversation.name, conversation.kind) == (3, "greeting", "polite")
    assert templated.content == Templated(messages=({"role": "user", "content": [1]},), tools=({"a": 1},))
    assert ids.content == Ids(ids=(1, 2, 3))
    assert ids.max_tokens == 2


def test_the_examples_of_the_documentation_are_sound() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "prompts.md").read_bytes()
    (examples,) = re.findall(rb"```json\n(.*?)```", text, re.DOTALL)
    kinds = [type(line.content) for line in parse_prompt_lines(examples, "prompts.md")]
    assert kinds == [Text, Conversation, Templated, Ids]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"{", "not a prompt"),
        (b"[]", "not a prompt: Expected `object`"),
        (b'{"text": "\xff"}', "not a prompt"),
        (b'{"txt": "a"}', "unknown field `txt`"),
        (b"{}", "one of `text`, `messages` and `ids`.*none of them"),
        (b'{"text": "a", "ids": [1]}', "found text and ids"),
        (b'{"text": 1}', r"`\$\.text`"),
        (b'{"ids": []}', "prompt is empty"),
        (b'{"ids": [4, -1]}', r"`\$\.ids\[1\]`"),
        (b'{"ids": [2147483648]}', "ids"),
        (b'{"ids": [1.5]}', "ids"),
        (b'{"ids": [1], "max_tokens": 0}', "max_tokens"),
        (b'{"ids": [1], "render": "harmony"}', "only `messages` can be rendered"),
        (b'{"messages": null}', r"`\$\.messages`"),
        (b'{"messages": [{"role": "robot", "content": "a"}]}', r"`\$\.messages\[0\]\.role`"),
        (b'{"messages": [{"role": "user", "content": "a", "chanel": "final"}]}', "unknown field `chanel`"),
        (b'{"messages": [{"role": "user", "content": ["a"]}]}', r"`\$\.messages\[0\]\.content`"),
        (b'{"messages": [], "render": "jinja"}', r"`\$\.render`"),
        (b'{"messages": [], "tools": []}', "tools.*developer message"),
        (b'{"messages": [' + b"[" * 100_000, "not a prompt"),
    ],
)
def test_bad_lines_are_named(line: bytes, what: str) -> None:
    with pytest.raises(InputError, match=rf"line 2: .*{what}") as caught:
        parse_prompt_lines(b'{"text": "a"}\n' + line, "p.jsonl")
    assert caught.value.file == "p.jsonl"


def test_names_are_different() -> None:
    line = b'{"name": "twin", "text": "a"}\n'
    with pytest.raises(InputError, match=r"line 3: name is that of line 1 too \(p.jsonl\): found twin"):
        parse_prompt_lines(line + b"\n" + line, "p.jsonl")


@pytest.mark.parametrize("data", [b"", b"\n \r\n"])
def test_a_file_without_prompts_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="holds no prompts"):
        parse_prompt_lines(data, "p.jsonl")
