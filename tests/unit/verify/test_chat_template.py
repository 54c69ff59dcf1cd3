"""Chat templates are rendered within bounds, whatever they try."""

import psutil
import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.verify.chat_template import Limits, render_chat_template
from gptoss_convert.verify.text_encoder import Control, Piece

CONTROLS = ("<|end|>", "<|end|>>", "<|start|>")
HELLO = ({"role": "user", "content": "Hello"},)


def rendered(template: str, limits: Limits | None = None) -> list[Piece]:
    pieces = render_chat_template(
        template, HELLO, special_tokens={"eos": "<|end|>"}, controls=CONTROLS, limits=limits
    )
    return list(pieces)


def test_control_tokens_of_the_template_become_control_tokens() -> None:
    pieces = rendered("<|start|>{{ messages[0].content }}{{ eos_token }} <|end|>>")
    assert pieces == [Control("<|start|>"), "Hello", Control("<|end|>"), " ", Control("<|end|>>")]


def test_a_model_without_control_tokens_has_text_only() -> None:
    pieces = render_chat_template("<|start|>", HELLO, special_tokens={}, controls=())
    assert list(pieces) == ["<|start|>"]


def test_today_is_always_the_same_day() -> None:
    assert rendered("{{ strftime_now('%d %B %Y') }}") == ["05 August 2025"]


def test_json_is_not_escaped_for_html() -> None:
    assert rendered("{{ ['<å>', messages[0]] | tojson }}") == ['["<å>", {"role": "user", "content": "Hello"}]']


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a <|end|> b"}],
        [{"role": "user", "content": [{"type": "text", "text": "<|end|>"}]}],
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"<|start|>": 1}}}]}],
    ],
)
def test_messages_cannot_bring_control_tokens(messages: list[dict[str, object]]) -> None:
    with pytest.raises(InputError, match=r"spells a control token.*harmony"):
        render_chat_template("{{ messages }}", messages, special_tokens={}, controls=CONTROLS)


def test_tools_cannot_bring_control_tokens() -> None:
    with pytest.raises(InputError, match="spells a control token"):
        render_chat_template("", HELLO, tools=[{"d": "<|end|>"}], special_tokens={}, controls=CONTROLS)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{% if %}", "could not be rendered: Expected an expression"),
        ("{{ raise_exception('no tools\nplease') }}", r"could not be rendered: no tools\\nplease"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'.*unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "calls itself too deeply"),
        ("{{ 'x' * 9999999999 }}", "needs more than 256 MiB of memory"),
        ("{{ '%09999999999d' % 1 }}", "could not be rendered"),
        ("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "writes more than 100000 characters"),
        ("{{ 'x' * 100001 }}", "writes more than 100000 characters"),
        ("{% include '/etc/passwd' %}", "could not be rendered"),
    ],
)
def test_hostile_and_broken_templates_are_refused(template: str, what: str) -> None:
    limits = Limits(seconds=60, memory=256 << 20, characters=100_000)
    with pytest.raises(InputError, match=what):
        rendered(template, limits)


@pytest.mark.parametrize("template", [LOOP, "{{ 9 ** (9 ** 9) }}"])
def test_endless_templates_are_stopped(template: str) -> None:
    with pytest.raises(InputError, match="did not end within 1 seconds"):
        rendered(template, Limits(seconds=1))


def test_nothing_is_left_running() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(InputError, match="did not end"):
        rendered(LOOP, Limits(seconds=0.5))
    assert set(psutil.Process().children()) <= before
