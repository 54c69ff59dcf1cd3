"""Journals with sound checksums that no run of ours wrote: a line that is not one counts as the end."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gptoss_convert
from gptoss_convert import Plan
from tests.cli.command import run_here
from tests.cli.samples import Samples
from tests.faults.test_resume import SMALL, contents, folder, interrupt

__all__ = ["folder"]

DEEP = b"[" * 100_000 + b"]" * 100_000
Lines = list[dict[str, Any]]


def line(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def record(**facts: object) -> Callable[[Lines], list[object]]:
    return lambda lines: [lines[0], lines[1] | facts, *lines[2:]]


def written(place: int, value: object) -> Callable[[Lines], list[object]]:
    def change(lines: Lines) -> list[object]:
        entry = next(entry for entry in lines if "written" in entry)
        run = list(entry["written"][0])
        run[place] = value
        return [lines[0], entry | {"written": [run]}]

    return change


HOSTILE: dict[str, Callable[[Lines], list[object]]] = {
    "nested deeply": lambda lines: [lines[0], b'{"a":' + DEEP + b"}"],
    "no JSON": lambda lines: [lines[0], b"hello"],
    "no UTF-8": lambda lines: [lines[0], b'{"a":"\xff"}'],
    "digits": lambda lines: [lines[0], b'{"nbytes":' + b"9" * 5000 + b"}"],
    "two numbers for rows": record(rows=[1, 2]),
    "rows are a number": record(rows=5),
    "rows are lists": record(rows=[[1], [2], [3]]),
    "no bytes": lambda lines: [lines[0], {key: lines[1][key] for key in lines[1].keys() - {"nbytes"}}],
    "bytes are text": record(nbytes="x"),
    "another file": written(0, 99),
    "a negative file": written(0, -1),
    "a negative offset": written(1, -9),
    "an offset beyond any": written(1, 1 << 80),
    "a negative length": written(2, -1),
    "a length beyond any": written(2, 1 << 60),
    "endless pieces": written(4, 1 << 61),
    "findings are a list": record(findings=[1]),
    "digests are no base64": record(digests="!!!"),
    "scales of another shape": record(named_scales=[1, 2, "eJw="]),
}


def unfinished(source: Path, folder: Path) -> Plan:
    """Interrupt a conversion that converts something."""
    options = gptoss_convert.GgufOptions(dense="q8_0")
    plan = gptoss_convert.plan_gguf(gptoss_convert.open_checkpoint(source), folder / "out.gguf", options)
    interrupt(plan, 40)
    return plan


@pytest.mark.parametrize("kind", HOSTILE)
def test_line_that_is_none_of_ours_is_not_believed(
    kind: str, samples: Samples, folder: Path, tmp_path: Path
) -> None:
    plan = unfinished(samples.path("huggingface"), folder)
    journal = folder / "out.gguf.partial.journal"
    lines = [json.loads(text[9:]) for text in journal.read_bytes().splitlines()]
    journal.write_bytes(b"".join(map(line, HOSTILE[kind](lines))))
    gptoss_convert.execute(plan, resources=SMALL, resume=True)
    (output,) = contents(folder).values()
    undisturbed = tmp_path / "undisturbed.gguf"
    words = ("to-gguf", samples.path("huggingface"), "-o", undisturbed, "--dense", "q8_0", "-q")
    assert run_here(*words).exit_code == 0
    assert output == undisturbed.read_bytes()


@pytest.mark.parametrize("memory", [0, -1, 1, "x", 1 << 80])
def test_heading_with_an_impossible_size_of_tasks_is_none(memory: object, samples: Samples, folder: Path) -> None:
    plan = unfinished(samples.path("huggingface"), folder)
    journal = folder / "out.gguf.partial.journal"
    first = json.loads(journal.read_bytes().splitlines()[0][9:])
    journal.write_bytes(line(first | {"memory_per_job": memory}))
    outcome = run_here("to-gguf", plan.source, "-o", plan.output, "--dense", "q8_0", "-q", "--resume")
    assert outcome.exit_code == 5
    assert "no journal tells about" in outcome.stderr
