"""The command line: one module of `commands/` per command, which is imported when it is needed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

import click

from gptoss_convert import __version__
from gptoss_convert.process import run_command

COMMANDS = (
    "build", "bundle", "check", "demo", "doctor", "footprint", "inspect", "record", "report",
    "to-bf16", "to-gguf", "to-mxfp4", "to-onnx", "verify",
)  # fmt: skip
"""Names of all commands; the module is called the same, with underscores."""


def load_command(name: str) -> click.Command:
    """Import the command with the name `name`, one of `COMMANDS`."""
    identifier = name.replace("-", "_")
    command = getattr(importlib.import_module(f"gptoss_convert.commands.{identifier}"), identifier)
    assert isinstance(command, click.Command)
    return command


class Commands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; None if there is none of this name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with; suggest one if there is none of this name."""
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and close and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gptoss-convert")
def cli() -> None:
    """Convert gpt-oss checkpoints between formats, and verify what was written.

    \b
    Exit codes: 0 done; 1 a check failed; 2 wrong usage; 3 bad input file; 4 not supported;
    5 output cannot be written; 6 over budget; 70 internal error; 130 interrupted.
    """


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments` and return its exit code."""
    return run_command(cli, arguments)
