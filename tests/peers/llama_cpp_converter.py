"""llama.cpp's own converter, in a child process that stays alive from one checkpoint to the next.

Run as a script this file is that child: it reads one JSON list of arguments per line and answers each with
one line holding the exit code. As such it must not import anything of the project.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class ConverterError(Exception):
    """The converter failed; the message carries its log."""


class Converter:
    """A worker that converts one checkpoint after another; started when needed, and again if it died."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="llama-cpp-converter-")
        self._log = Path(self._folder.name, "log.txt")
        self._worker: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    def convert(self, checkpoint: Path, output: Path, outtype: str = "auto", *extra_args: str) -> None:
        """Write `output` (or its splits, if `extra_args` ask for them) from the Hugging Face `checkpoint`."""
        if self._worker is None or self._worker.poll() is not None:
            self._stop()
            self._worker = self._start()
        arguments = [str(checkpoint.absolute()), "--outfile", str(output.absolute()), "--outtype", outtype]
        arguments += extra_args
        before = self._log.stat().st_size
        answer = _exchange(self._worker, json.dumps(arguments))
        if answer.strip() == "0":
            return
        if not answer:
            self._stop()
        outcome = f"exit code {answer.strip()}" if answer else "the worker died"
        log = self._log.read_bytes()[before:].decode(errors="replace")
        raise ConverterError(f"convert_hf_to_gguf.py {' '.join(arguments)}: {outcome}\n{log}")

    def _start(self) -> subprocess.Popen[str]:
        from .llama_cpp_source import converter_source  # the worker, a bare script, cannot import it

        command = [sys.executable, "-P", __file__, str(converter_source())]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8", "TQDM_DISABLE": "1"}
        environment.pop("NO_LOCAL_GGUF", None)  # the converter is to use the gguf-py of its own tree
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                encoding="utf-8",
            )

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None


def convert(checkpoint: Path, output: Path, outtype: str = "auto", *extra_args: str) -> None:
    """`Converter.convert` by one worker shared by the whole test run."""
    _shared().convert(checkpoint, output, outtype, *extra_args)


@functools.cache
def _shared() -> Converter:
    converter = Converter()
    atexit.register(converter.close)
    return converter


def _exchange(worker: subprocess.Popen[str], line: str) -> str:
    """The worker's answer to one line, empty if it died."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
        return worker.stdout.readline()
    except OSError:  # the pipe is closed
        return ""


def _serve(root: Path, answers: IO[str]) -> None:
    path = list(sys.path)
    for line in sys.stdin:
        sys.path[:] = [str(root), str(root / "gguf-py"), *path]
        code = _run(root / "convert_hf_to_gguf.py", json.loads(line))
        # The next run gets fresh module and class state; torch and transformers, slow to import, stay.
        for name in [name for name in sys.modules if name.split(".")[0] in ("conversion", "gguf")]:
            del sys.modules[name]
        gc.collect()
        print(code, file=answers, flush=True)


def _run(script: Path, arguments: list[str]) -> int:
    try:
        # It recognises a pre-tokenizer by a hash over the ids of a test text, and so refuses a tokenizer
        # with a shortened vocabulary although the pre-tokenizer is the same.
        importlib.import_module("conversion.base").TextModel.get_vocab_base_pre = _gpt_4o
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _gpt_4o(model: object, tokenizer: object) -> str:
    return "gpt-4o"


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the converter prints goes to the log
    _serve(Path(sys.argv[1]), answers)
