"""Makes docs/commands.md of the commands themselves: `python -m tests.support.command_reference`, in the root.

The texts are those of `--help`; change them there, in `commands/` and `options.py`.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from gptoss_convert.cli import COMMANDS, cli, load_command
from gptoss_convert.options import SectionedCommand

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
EXAMPLES = "\b\nExamples:\n"
LEAD = """# Commands

What `gptoss-convert COMMAND --help` says. How commands behave together (exit codes, output, errors, sizes) is in
[command line](command-line.md). All of them take these options:
"""
Option = tuple[str, str]
"""As it is written, and what it does."""
Sections = dict[str, list[Option]]


def command_reference() -> str:
    """The page, in Markdown."""
    sections = {name: _options(name) for name in COMMANDS}
    every = [[option for options in each.values() for option in options] for each in sections.values()]
    common = [option for option in every[0] if all(option in options for options in every)]
    lines = [LEAD, *_table({"": common})]
    for name, each in sections.items():
        lines += ["", *_introduction(name)]
        own = {heading: [item for item in options if item not in common] for heading, options in each.items()}
        lines += ["", *_table(own)]
    return "\n".join(lines).rstrip() + "\n"


def _options(name: str) -> Sections:
    command = _command(name)
    with _context(command, name) as context:
        return command.options_by_section(context)


def _context(command: click.Command, name: str) -> click.Context:
    """Return the context that a command has in the program: click keeps the option for help of the first one."""
    program = click.Context(cli, info_name="gptoss-convert", **cli.context_settings)
    return click.Context(command, info_name=name, parent=program)


def _command(name: str) -> SectionedCommand:
    command = load_command(name)
    assert isinstance(command, SectionedCommand), name
    return command


def _introduction(name: str) -> Iterator[str]:
    """Yield the lines about a command before its options."""
    command = _command(name)
    with _context(command, name) as context:
        usage = " ".join(command.collect_usage_pieces(context))
    yield from (f"## {name}", "", "```text", f"gptoss-convert {name} {usage}", "```")
    text, _, examples = inspect.cleandoc(command.help or "").partition(EXAMPLES)
    assert "\b" not in text, f"{name}: what comes before examples is paragraphs"
    yield from ("", _with_links(text.strip()))
    if examples:
        yield from ("", "```console", *(f"$ {line.strip()}" for line in examples.strip().splitlines()), "```")


def _table(sections: Sections) -> Iterator[str]:
    """Yield one table for all options, since tables below each other have columns of different widths."""
    if any(sections.values()):
        yield from ("| option | effect |", "|---|---|")
    for heading, options in sections.items():
        if heading and options:
            yield f"| **{heading}** | |"
        for written, effect in options:
            yield f"| {', '.join(map(_code, written.split(', ')))} | {_cell(effect)} |"


def _code(text: str) -> str:
    """Return an option as code; a bar would end a cell of the table, also within backquotes."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _cell(text: str) -> str:
    """Return a sentence as a cell: with ranges in words, with links, and no other markup."""
    text = " ".join(text.split())
    text = re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", text)
    text = re.sub(r"x>=(\d+)", r"at least \1", text)
    assert not set("|<") & set(text), text
    return _with_links(text.replace("*", "\\*"))


def _with_links(text: str) -> str:
    return re.sub(r"docs/([\w/-]+\.md)", r"[\1](\1)", text)


if __name__ == "__main__":
    PAGE.write_text(command_reference(), encoding="utf-8", newline="\n")
