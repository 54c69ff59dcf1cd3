"""Renders one chat template, in a process of its own; see `chat_template`.

Reads a request from standard input and writes the answer to standard output, both JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NoReturn

DATE = "2025-08-05"
"""What templates are told that today is: the same prompt has the same ids tomorrow. gpt-oss was released then."""


def main() -> None:
    """Answer the request: `{"text": ...}` or `{"error": ...}`."""
    request = json.load(sys.stdin.buffer)
    _limit_memory(request["memory"])
    try:
        answer = {"text": render(request["template"], request["variables"], request["characters"])}
    except MemoryError:
        answer = {"error": f"it needs more than {request['memory'] >> 20} MiB of memory"}
    except RecursionError:
        answer = {"error": "it calls itself too deeply"}
    except Exception as error:  # a template can raise anything
        answer = {"error": str(error)[:1000] or type(error).__name__}
    json.dump(answer, sys.stdout)


def render(template: str, variables: dict[str, Any], characters: int) -> str:
    """Return what `template` makes of `variables`, as transformers' `apply_chat_template` does.

    Raises:
        Exception: the template is unsound, refuses the variables, or writes more than `characters`.
    """
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": _date}
    parts: list[str] = []
    length = 0
    for part in environment.from_string(template).generate(**variables):
        length += len(part)
        if length > characters:
            raise ValueError(f"it writes more than {characters} characters")
        parts.append(part)
    return "".join(parts)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Write JSON without escapes for HTML, which jinja2's own filter has."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def _date(pattern: str) -> str:
    from datetime import date

    return date.fromisoformat(DATE).strftime(pattern)


def _limit_memory(size: int) -> None:
    if sys.platform in ("win32", "darwin"):
        return  # these have no such limit; there only the clock of the other process stops a template
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
