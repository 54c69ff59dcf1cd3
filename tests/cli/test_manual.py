"""Every command of the manual's guides, run in the order in which a reader would."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gptoss_convert as gc
from gptoss_convert.formats.safetensors import read_folder
from tests.cli.command import run_here
from tests.support.adapters import LAYER, pair, write_adapter
from tests.support.conversions import TINY

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted([ROOT / "README.md", *ROOT.glob("docs/index.md"), *ROOT.glob("docs/tutorial.md"),
                 *ROOT.glob("docs/recipes.md"), *ROOT.glob("docs/how-to/*.md")])  # fmt: skip
SHORTER = ("--max-tokens", "8", "--threads", "1", "--allow-inconclusive", "--runtime", "reference")
"""Added to what runs models: whole answers take minutes, and are judged in tests/oracle."""
RECIPE = 'version = 1\nsource.path = "gpt-oss-20b"\n[[artifacts]]\nto = "gguf"\noutput = "gpt-oss-20b.gguf"\n'
ELSEWHERE = ("directml\\", "doctor /data", "--signed-by", "--sign ")
"""Parts of commands for another system, or with things that only the reader has."""


def make_fine_tune(folder: Path) -> None:
    """Write the small model in BF16, with some of its experts changed."""
    gc.convert(TINY, folder, "bf16")
    stored = read_folder(folder)["model.layers.0.mlp.experts.down_proj"]
    with stored.file.path.open("r+b") as file:
        file.seek(stored.offset)
        numbers = np.frombuffer(file.read(2000), np.uint16) ^ 0x20
        file.seek(stored.offset)
        file.write(numbers.tobytes())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the guides take for granted, small."""
    for name in ("gpt-oss-20b", "gpt-oss-120b", "tiny-gpt-oss"):
        shutil.copytree(TINY, tmp_path / name)
    hidden, width = gc.open(TINY).config.hidden_size, gc.open(TINY).tensors[f"{LAYER[17:]}.self_attn.q_proj.weight"]
    write_adapter(tmp_path / "my-lora", pair(f"{LAYER}.self_attn.q_proj", (2, hidden), (width.shape[0], 2)))
    make_fine_tune(tmp_path / "my-finetune")
    for name in ("gpt-oss-20b", "tiny-gpt-oss"):
        gc.convert(tmp_path / name, tmp_path / f"{name}.gguf", "gguf")
    (tmp_path / "release.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield ("run", command) and ("write", contents of a recipe) in the order of the text."""
    fence, row = r"^```(\w+)\n(.*?)^```", r"^\|.*?`(gptoss-convert [a-z0-9-]+ [^`]*-o [^`]+)`"
    for found in re.finditer(f"{fence}|{row}", text, re.DOTALL | re.MULTILINE):
        language, contents, command = found.groups()
        if command and not re.search(r"\b[A-Z]{3,}\b", command):
            yield "run", command
        elif language == "toml" and "[[artifacts]]" in contents:
            yield "write", contents
        elif language in ("console", "sh"):
            for line in re.findall(r"^(?:\$ )?(gptoss-convert .*)$", contents, re.MULTILINE):
                yield "run", line


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_does_what_the_guide_wants(guide: Path, desk: Path) -> None:
    for what, text in steps(guide.read_text(encoding="utf-8")):
        if what == "write":
            (desk / "release.toml").write_text(re.sub(r"^prompts = .*$", "", text, flags=re.MULTILINE))
        elif not any(part in text for part in ELSEWHERE):
            arguments = shlex.split(text)[1:]
            if arguments[0] in ("to-gguf", "to-bf16", "to-mxfp4", "to-onnx"):
                arguments.append("--force")  # guides offer alternatives
            if arguments[0] == "record":
                arguments += SHORTER[:2]
            elif arguments[:2] == ["verify", "--against"]:
                arguments.append("--weights")
            elif arguments[0] == "verify" and "--weights" not in arguments:
                arguments += SHORTER
            outcome = run_here(*arguments, "--no-progress" if arguments[0] in ("verify", "build") else "--quiet")
            assert outcome.exit_code == 0, f"{text}\n{outcome.stdout[-2000:]}\n{outcome.stderr}"
