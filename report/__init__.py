"""Reports: one JSON document as Markdown, as JUnit's XML and as a page with pictures.

A report knows nothing but the document (docs/verification.schema.json), so it can be made later and elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

JSON_NAME = "report.json"
NAMES = (JSON_NAME, "report.md", "report.xml", "report.html")
"""Files of a report: the document, a summary for people, one for programs that run tests, and the page."""


def render_report(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the contents of all files of a report by name, in the order of `NAMES`.

    Args:
        document: what a verification became, as `Verification.as_dict` returns it or a file holds it.

    Raises:
        InputError: it is no such document.
        UnsupportedError: a library that the page needs is not installed.
    """
    from gptoss_convert.report.document import parse_document
    from gptoss_convert.report.html import render_html
    from gptoss_convert.report.junit import render_junit
    from gptoss_convert.report.markdown import render_markdown

    parsed = parse_document(document)
    text = json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    contents = (text.encode(), render_markdown(parsed), render_junit(parsed), render_html(parsed))
    return dict(zip(NAMES, contents, strict=True))
