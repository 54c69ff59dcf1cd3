"""docs/commands.md says what the commands say of themselves."""

from gptoss_convert.cli import COMMANDS, load_command
from tests.support.command_reference import PAGE, command_reference


def test_the_page_is_that_of_the_commands() -> None:
    is_current = PAGE.read_text(encoding="utf-8") == command_reference()
    assert is_current, "docs/commands.md is stale: run `python -m tests.support.command_reference` in the root"


def test_every_command_and_option_has_its_place() -> None:
    page = command_reference()
    for name in COMMANDS:
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"gptoss-convert {name} [OPTIONS]" in section
        common = page.partition("\n## ")[0]
        options = {option for param in load_command(name).params for option in param.opts if option[0] == "-"}
        assert {option for option in options if option not in section and option not in common} == set()
