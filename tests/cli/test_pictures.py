"""Pictures of terminals in the manual show what commands print."""

import re

import pytest

from tests.support.terminal_pictures import PICTURES, Picture, draw, words


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_shows_what_commands_print(picture: Picture) -> None:
    stale = (
        f"{picture.path.name} is stale: run `python -m tests.support.terminal_pictures {picture.name}` in the root"
    )
    assert words(picture.path.read_text(encoding="utf-8")) == words(draw(picture)), stale


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_loads_nothing(picture: Picture) -> None:
    svg = picture.path.read_text(encoding="utf-8")
    assert re.findall(r"@import|@font-face|href=|url\((?!#)", svg) == []
