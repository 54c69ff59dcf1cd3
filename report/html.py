"""The report as one page: no script, nothing from elsewhere, pictures inside.

jinja2 escapes every text; the pictures come from a library that escapes the texts in them. A policy in the page
forbids browsers to run or load anything, whatever should stand in it all the same.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from gptoss_convert.errors import UnsupportedError
from gptoss_convert.report import charts, wording
from gptoss_convert.report.document import Artifact, Document, Logits

MOST_ROWS = 2000
"""Of a table; the document has them all."""
_PACKAGE = "gptoss_convert.report"


def require_libraries() -> None:
    """Raise `UnsupportedError` if a library is missing that the page needs."""
    charts.require_renderer()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise UnsupportedError(
            "pages need jinja2, which is not installed",
            hint="install it with: pip install 'gptoss-convert[report]'",
        ) from None


def render_html(document: Document) -> bytes:
    """Return the page in UTF-8, which is well-formed XML too.

    Raises:
        UnsupportedError: a library is not installed.
    """
    require_libraries()
    import jinja2
    from markupsafe import Markup

    templates = files(_PACKAGE).joinpath("templates")
    style = templates.joinpath("style.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(templates.joinpath("page.html").read_text(encoding="utf-8"))
    page = template.render(
        document=document,
        say=wording,
        style=Markup(style),
        policy=_policy(style),
        pictures=_pictures(document),
        artifacts=[_shown(index, item, document) for index, item in enumerate(document.artifacts)],
        most=MOST_ROWS,
    )
    return page.encode()


def _policy(style: str) -> str:
    """Return a content security policy that allows this style and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _pictures(document: Document) -> dict[str, Any]:
    return {"percentiles": _drawn(charts.percentiles(document)), "memory": _drawn(charts.memory(document.memory))}


def _shown(index: int, artifact: Artifact, document: Document) -> dict[str, Any]:
    """Return an artifact with its pictures, and the rows of its tables that a reader looks for."""
    tensors = [] if artifact.weights is None else artifact.weights.tensors
    return {
        "index": index,
        "it": artifact,
        "error_by_layer": _drawn(charts.error_by_layer(artifact)),
        "hidden_error_by_layer": _drawn(charts.hidden_error_by_layer(artifact)),
        "logits": [_shown_logits(index, item, document) for item in artifact.logits],
        "open_checks": [check for check in artifact.structure.checks if check.passed is not True],
        "tensors": [tensor for tensor in tensors if tensor.different or not tensor.passed],
        "equal": sum(not tensor.different and tensor.passed for tensor in tensors),
    }


def _shown_logits(index: int, logits: Logits, document: Document) -> dict[str, Any]:
    return {
        "it": logits,
        "histogram": _drawn(charts.histogram(logits)),
        "by_position": _drawn(charts.agreement_by_position(logits)),
        "routing": _drawn(charts.routing_by_layer(logits)),
        "runs": [
            (run, document.conditions_of(index, logits.runtime, number)) for number, run in enumerate(logits.runs)
        ],
    }


def _drawn(specification: dict[str, Any] | None) -> Any:
    """Return a picture as markup; None if there is nothing to show."""
    from markupsafe import Markup

    return None if specification is None else Markup(charts.draw(specification))
