"""What is no document of a verification is refused; what is one is what its schema says."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gptoss_convert.errors import InputError
from gptoss_convert.report import render_report
from gptoss_convert.report.document import parse_document, read_document
from tests.support.documents import MARKUP, SCHEMA, document

VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
WHOLE = document("model.gguf", outcome="fail", memory=True)


@pytest.mark.parametrize("names", [("a",), ("a", MARKUP), ()])
def test_documents_of_these_tests_are_as_the_schema_says(names: tuple[str, ...]) -> None:
    VALIDATOR.validate(document(*names, memory=True))
    parse_document(document(*names, memory=True))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values, but only of the first item of a list."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


PLACES = list(places(WHOLE))


@pytest.mark.parametrize("wrong", [None, [], "text", -1, 0.5, True, {"x": 1}], ids=repr)
def test_what_is_refused_is_against_the_schema(wrong: Any) -> None:
    """Each value in turn is something else: what the schema allows is taken, what is refused is against it."""
    for path in PLACES:
        changed = copy.deepcopy(WHOLE)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = wrong
        try:
            parse_document(changed)
        except InputError:
            assert not VALIDATOR.is_valid(changed), path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"schema_version": 1}', "document of another version"),
        ("{}", "not the document of a verification"),
        ('{"schema_version": 2}', "not the document of a verification"),
    ],
)
def test_what_is_no_document_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        render_report(read_document(path))


def test_document_is_kept_as_it_was() -> None:
    assert json.loads(render_report(WHOLE)["report.json"]) == WHOLE
