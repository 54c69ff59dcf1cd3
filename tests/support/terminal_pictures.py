"""Makes docs/pictures/*.svg of what commands print: `python -m tests.support.terminal_pictures`, in the root.

Commands run at a terminal of their own, on the built-in model and on the configuration of gpt-oss-20b.
"""

import html
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.cli.command import PROGRAM, environment
from tests.support.conversions import TINY

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
MODELS = "/models"
"""Shown in place of the folder that commands run in."""


FONTS = "ui-monospace, Menlo, Consolas, DejaVu Sans Mono"


@dataclass(frozen=True)
class Picture:
    """A terminal in which some commands were run."""

    name: str
    columns: int
    commands: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file."""
        return FOLDER / f"{self.name}.svg"


PICTURES = (
    Picture("inspect", 100, ("inspect tiny-gpt-oss --hash",)),
    Picture(
        "convert",
        100,
        ("to-gguf tiny-gpt-oss -o tiny-gpt-oss.gguf", "verify tiny-gpt-oss tiny-gpt-oss.gguf --weights"),
    ),
    Picture(
        "verify",
        132,
        ("to-gguf tiny -o small.gguf --dense q8_0", "verify tiny small.gguf --weights"),
    ),
    Picture(
        "footprint", 132, ("footprint gpt-oss-20b --as gguf --threads 8 --budget laptop-16gb --budget gpu-24gb",)
    ),
)


def draw(picture: Picture) -> str:
    """Run the commands of a picture and return it as SVG, which loads nothing: rich's names fonts on the web."""
    console = Console(record=True, width=picture.columns, file=StringIO(), force_terminal=True, highlight=False)
    for text in _transcript(picture):
        console.print(text, overflow="fold", soft_wrap=False)
    svg = console.export_svg(title="gptoss-convert", unique_id=picture.name)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", FONTS)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def words(svg: str) -> list[str]:
    """Return the words that a picture shows."""
    return html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", svg, flags=re.DOTALL)).split()


def _transcript(picture: Picture) -> Iterator[Text]:
    """Yield what the terminal shows, line by line."""
    with tempfile.TemporaryDirectory() as name:
        desk = Path(name).resolve()
        for model in ("tiny-gpt-oss", "tiny"):
            shutil.copytree(TINY, desk / model)
        shutil.copytree(ROOT / "tests" / "data" / "gpt-oss" / "20b", desk / "gpt-oss-20b")
        for number, command in enumerate(picture.commands):
            if number:
                yield Text()
            yield Text.assemble(("$ ", "green"), (f"gptoss-convert {command}", "bold"))
            shown = _run(command.split(), desk, picture.columns).replace(str(desk), MODELS)
            yield from (Text.from_ansi(line.rstrip()) for line in shown.splitlines())
    yield Text()


def _run(arguments: list[str], folder: Path, columns: int) -> str:
    """Return what a command prints on a terminal of so many columns."""
    ours, its = pty.openpty()
    variables = environment({"TERM": "xterm-256color", "COLUMNS": str(columns)})
    process = subprocess.Popen(
        [*PROGRAM, *arguments], cwd=folder, env=variables, stdin=its, stdout=its, stderr=subprocess.DEVNULL
    )
    os.close(its)
    shown = b""
    try:
        while piece := os.read(ours, 1 << 16):
            shown += piece
    except OSError:
        pass  # so Linux says that the other side is closed
    finally:
        os.close(ours)
    if process.wait():
        raise RuntimeError(f"gptoss-convert {' '.join(arguments)} ended with {process.returncode}")
    return shown.decode().replace("\r\n", "\n")


def main(names: list[str]) -> None:
    """Write the pictures that are named, or all."""
    for picture in PICTURES:
        if not names or picture.name in names:
            picture.path.write_text(draw(picture), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
