"""The process that is measured: `python -m gptoss_convert.verify.footprint.child FOLDER`.

It reads `request.json` in the folder, and appends to `phases.jsonl` a line when a phase begins and one when it has
ended, so that its end at any time leaves what happened before and in which phase it was. Its standard input is a
pipe that its parent never writes to: when that ends, so does this process.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from gptoss_convert.verify.footprint.gpu import gpu_figures
from gptoss_convert.verify.footprint.meter import PhaseMeter
from gptoss_convert.verify.footprint.sessions import SESSIONS, Session

REQUEST, PHASES = "request.json", "phases.jsonl"
START, IMPORT, LOAD, PREFILL, DECODE = "start", "import", "load", "prefill", "decode"
LONGEST_ERROR = 300
"""Characters of an error."""


def main() -> None:
    """Do what the folder that the command line names asks for."""
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    folder = Path(sys.argv[1])
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    if request["limit"] is not None:
        _limit_memory(request["limit"])
    with (folder / PHASES).open("a", encoding="utf-8") as stream:
        try:
            _run(request, _Log(stream, PhaseMeter(request["artifact"])))
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
            kind = "missing" if isinstance(error, ImportError) else "error"
            _write(stream, {"error": text, "kind": kind})
        # Some runtimes do not survive being taken apart when their memory is used up.
        stream.flush()
        sys.stderr.flush()
        os._exit(0)


class _Log:
    def __init__(self, stream: TextIO, meter: PhaseMeter) -> None:
        self._stream = stream
        self._meter = meter

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        """Do some work as a phase."""
        _write(self._stream, {"begins": name})
        self._meter.begin()
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        _write(self._stream, {"phase": name, **self._meter.end(), "gpu": gpu_figures(), "seconds": seconds})
        return result


def _run(request: dict[str, Any], log: _Log) -> None:
    make = SESSIONS[request["runtime"]]
    log.phase(START, lambda: None)
    log.phase(IMPORT, lambda: [import_module(name) for name in make.MODULES])
    session: Session = log.phase(LOAD, lambda: make(request))
    prompt, answer, vocab = request["prompt"], request["answer"], request["vocab"]
    ids = [index % vocab for index in range(prompt + answer)]  # rows of the embedding that lie side by side
    log.phase(PREFILL, lambda: session.compute(ids[:prompt], 0))

    def decode() -> None:
        for index in range(prompt, prompt + answer):
            session.compute([ids[index]], index)

    log.phase(DECODE, decode)


def _limit_memory(nbytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))


def _write(stream: TextIO, line: dict[str, Any]) -> None:
    stream.write(json.dumps(line) + "\n")
    stream.flush()


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
