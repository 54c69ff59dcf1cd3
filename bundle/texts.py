"""The texts of a bundle: instructions, lock file, scripts for Linux and Windows, Ollama's Modelfile.

Names that go into scripts are plain (`PLAIN_NAME`), so that neither shell sees anything in them; texts of strangers
appear in Markdown only, escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from gptoss_convert.assets import read_small_file
from gptoss_convert.bundle.runtimes import BundleRuntime, lock_of
from gptoss_convert.checkpoint import ModelConfig
from gptoss_convert.errors import InputError, printable
from gptoss_convert.formats.onnx.genai_config import GENAI_CONFIG, GraphFacts, SpecialIds
from gptoss_convert.formats.onnx.readme import QUESTION, script
from gptoss_convert.report.markdown import code as span
from gptoss_convert.report.markdown import text
from gptoss_convert.verify.footprint.verdict import Fit, Verdict

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Names of files and folders that both shells take as they are."""

PACK = "reference.pack"
LOCK = "requirements.txt"
README = "README.md"
MODELFILE = "Modelfile"
PROGRAM = "start.py"
_WINDOWS_LINE = "\r\n"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the texts say."""

    name: str
    """Of the artifact in the bundle: the file to open, or the folder."""
    runtime: BundleRuntime
    context: int
    verdict: Verdict
    reference: str
    """Name of what was recorded."""
    canonical_hash: str
    """Of it."""
    prompts: str
    positions: int

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU computes."""
        return self.verdict.budget.device == "gpu"


def lock_file(runtime: BundleRuntime) -> str:
    """Return a requirements file with exact versions of everything."""
    notes = {"colorama": ' ; sys_platform == "win32"'}
    lines = [f"{name}=={version}{notes.get(name, '')}" for name, version in lock_of(runtime).items()]
    head = f"# {runtime.title}: pip install -r {LOCK}, in a virtual environment with Python 3.11 or later"
    return "\n".join([head, *lines, ""])


def verify_command(facts: Facts) -> list[str]:
    """Return the arguments of the command that verifies the artifact."""
    return ["gptoss-convert", "verify", "--against", PACK, facts.name, *facts.runtime.verify_options]


def server_options(facts: Facts) -> list[str]:
    """Return the arguments of llama-server.

    One sequence at a time, as memory is predicted for: each further one takes a window of the cache of its own.
    """
    options = ["--model", facts.name, "--ctx-size", str(facts.context), "--parallel", "1", "--jinja"]
    options += ["--n-gpu-layers", "999" if facts.on_gpu else "0"]
    return [*options, "--host", "127.0.0.1", "--port", "8080"]


def scripts(facts: Facts) -> Mapping[str, str]:
    """Return the scripts by name; those for Linux are to be made executable."""
    verify = " ".join(verify_command(facts))
    if facts.runtime.name == "llama.cpp":
        options = " ".join(server_options(facts))
        unix = f'exec "${{LLAMA_SERVER:-llama-server}}" {options} "$@"'
        set_server = 'if not defined LLAMA_SERVER set "LLAMA_SERVER=llama-server"'
        windows = [set_server, f'"%LLAMA_SERVER%" {options} %*']
        inner = ""
    else:
        unix, windows, inner = f'exec python3 "../{PROGRAM}" "$@"', [f'python "..\\{PROGRAM}" %*'], facts.name
    return {
        "start.sh": _for_linux(unix, inner),
        "start.cmd": _for_windows(windows, inner),
        "verify.sh": _for_linux(f'exec {verify} "$@"'),
        "verify.cmd": _for_windows([f"{verify} %*"]),
    }


def _for_linux(command: str, inner: str = "") -> str:
    enter = 'cd -- "$(dirname -- "$0")"' + (f' && cd "{inner}"' if inner else "")
    return f"#!/bin/sh\nset -eu\n{enter}\n{command}\n"


def _for_windows(commands: Sequence[str], inner: str = "") -> str:
    lines = ["@echo off", "setlocal", f'cd /d "%~dp0{inner}" || exit /b 1', *commands, "exit /b %ERRORLEVEL%", ""]
    return _WINDOWS_LINE.join(lines)


def modelfile(facts: Facts) -> str:
    """Return what Ollama makes a model of."""
    return f"FROM ./{facts.name}\nPARAMETER num_ctx {facts.context}\n"


class _Model(msgspec.Struct, frozen=True):
    eos_token_id: list[int] | int


class _Search(msgspec.Struct, frozen=True):
    past_present_share_buffer: bool = True
    chunk_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None = None


class _GenaiConfig(msgspec.Struct, frozen=True):
    """What the program that answers has to know."""

    model: _Model
    search: _Search = _Search()


def program(folder: Path, config: ModelConfig, *, target: str, context: int) -> str:
    """Return a Python program that answers the question of its command line, run in the folder of a graph.

    Raises:
        InputError: the folder's genai_config.json is damaged.
    """
    path = folder / GENAI_CONFIG
    try:
        said = msgspec.json.decode(read_small_file(path), type=_GenaiConfig)
    except msgspec.MsgspecError as error:
        raise InputError(f"cannot be understood: {error}", file=path) from None
    ends = said.model.eos_token_id
    graph = GraphFacts(
        has_position_ids=not said.search.past_present_share_buffer,
        shares_cache=said.search.past_present_share_buffer,
        windowed_cache=False,
        rounds_if_prepacked=False,
        prefill_chunk=said.search.chunk_size,
    )
    answer = script(
        config,
        target=target,
        graph=graph,
        special=SpecialIds(ends=tuple(ends if isinstance(ends, list) else [ends])),
        question="question",
        longest=context,
    )
    return f'"""Answers a question."""\n\nimport sys\n\nquestion = " ".join(sys.argv[1:]) or "{QUESTION}"\n{answer}'


def code(name: str) -> str:
    """Return a name of strangers as a code span, without control characters."""
    return span(printable(name))


def readme(facts: Facts, files: Sequence[str]) -> str:
    """Return the instructions, in Markdown."""
    largest, fits = facts.verdict.largest_context, facts.verdict.fit is Fit.FITS
    parts = [
        _HEAD.format(
            name=code(facts.name),
            device=text(facts.verdict.budget.title),
            reference=code(facts.reference),
            runtime=facts.runtime.title,
            hash=code(facts.canonical_hash),
            memory=text(facts.verdict.reason),
            context=facts.context,
            room="none fits" if largest is None else f"up to {largest:,} tokens fit",
            warning="" if fits else " **The device is too small for it.**",
        ),
        _INSTALL.format(lock=LOCK),
        facts.runtime.remark,
        _VERIFY.format(
            runtime=facts.verdict.prediction.runtime, positions=facts.positions, prompts=code(facts.prompts)
        ),
        "## Start",
    ]
    if facts.runtime.name != "llama.cpp":
        parts.append(_ANSWER.format(question=QUESTION))
    else:
        parts += [_SERVE, _OLLAMA if MODELFILE in files else _NO_OLLAMA]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


_HEAD = """
# {name} for {device}

Made of {reference} by gptoss-convert, for {runtime}. The reference's canonical hash is
{hash}; `gptoss-convert inspect --hash` prints it of the model itself.

Memory, predicted: {memory}, with a context of {context:,} tokens, which the start script asks for;
{room}.{warning}
"""
_INSTALL = """
## Install

In a virtual environment of its own:

```sh
pip install -r {lock}
```
"""
_VERIFY = """
## Check that everything arrived

```sh
gptoss-convert check .
```

## Verify

`verify.sh`, or `verify.cmd` on Windows, holds the numbers of the artifact, and what {runtime} makes of
{positions:,} positions of the prompts {prompts}, against what was recorded of the reference. Neither the
reference nor torch is needed. Exit code 0 means that it passed, 1 that it did not.

```sh
sh verify.sh
```
"""
_ANSWER = """
`start.sh`, or `start.cmd` on Windows, answers the question of its command line.

```sh
sh start.sh {question}
```
"""
_SERVE = """
`start.sh`, or `start.cmd` on Windows, serves at http://127.0.0.1:8080, for one conversation at a time; further
options of llama-server are passed on.

```sh
sh start.sh
```
"""
_OLLAMA = f"""
With Ollama:

```sh
ollama create gpt-oss -f {MODELFILE}
```
"""
_NO_OLLAMA = "There is no Modelfile: Ollama takes models of one file only."
