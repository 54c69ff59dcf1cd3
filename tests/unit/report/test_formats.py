"""Names with markup in them are text in every format, and every format is what its readers take."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import junitparser
import pytest
from markdown_it import MarkdownIt

from gptoss_convert.report import NAMES, render_report
from gptoss_convert.report.document import parse_document
from gptoss_convert.report.junit import render_junit
from gptoss_convert.report.markdown import LARGEST, code, render_markdown, text
from tests.support.documents import MARKUP, artifact, document

HOSTILE = render_report(document("sound.gguf", MARKUP, outcome="fail", memory=True))
EXTERNAL = {
    "script",
    "img",
    "link",
    "iframe",
    "object",
    "embed",
    "form",
    "input",
    "base",
    "use",
    "image",
    "foreignObject",
}


def test_all_files_are_there() -> None:
    assert tuple(HOSTILE) == NAMES
    assert all(HOSTILE.values())


def test_same_document_gives_the_same_bytes() -> None:
    assert render_report(document("sound.gguf", MARKUP, outcome="fail", memory=True)) == HOSTILE


# --- HTML


@pytest.fixture(scope="module")
def page() -> ElementTree.Element:
    """The page as XML: no element is left open, no attribute without quotes."""
    return ElementTree.fromstring(HOSTILE["report.html"].decode().partition("\n")[2])


def test_page_has_no_element_that_runs_or_loads_anything(page: ElementTree.Element) -> None:
    tags = {element.tag.rpartition("}")[2] for element in page.iter()}
    assert tags & EXTERNAL == set()
    assert {"html", "table", "svg", "style"} <= tags
    for element in page.iter():
        for name, value in element.attrib.items():
            plain = name.rpartition("}")[2]
            assert not plain.startswith("on"), (element.tag, name)
            assert plain not in ("src", "srcset", "style", "action", "data", "poster", "background")
            if plain == "href":
                assert value.startswith("#")
            if element.tag != "meta" and plain not in ("aria-label",):
                assert "url(" not in value


def test_page_forbids_to_run_or_load_anything(page: ElementTree.Element) -> None:
    (policy,) = (item.get("content") for item in page.iter("meta") if item.get("http-equiv"))
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]{43}='; base-uri 'none'; form-action 'none'", policy
    )


def test_browsers_see_the_elements_that_xml_sees(page: ElementTree.Element) -> None:
    found: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found.append(tag)

    parser = Parser()
    parser.feed(HOSTILE["report.html"].decode())
    assert found == [element.tag.rpartition("}")[2].lower() for element in page.iter()]


def test_links_in_the_page_lead_to_its_sections(page: ElementTree.Element) -> None:
    ids = [item.get("id") for item in page.iter() if item.get("id")]
    links = [item.get("href", "")[1:] for item in page.iter("a")]
    assert links == ["artifact-0", "artifact-1"]
    assert set(links) <= set(ids)
    assert len(ids) == len(set(ids))


def test_page_has_a_picture_of_everything(page: ElementTree.Element) -> None:
    captions = [item.findtext("strong") for item in page.iter("figcaption")]
    for title in (
        "Divergence from the reference, all together.", "Predicted and measured memory.",
        "Error of the weights by layer.", "Error of the hidden state by layer.", "How far positions diverge.",
        "Agreement by position.", "Agreement of routing by layer.",
    ):  # fmt: skip
        assert title in captions


# --- JUnit


def test_junit_is_read_by_another_program() -> None:
    suites = {suite.name: suite for suite in junitparser.JUnitXml.fromstring(HOSTILE["report.xml"])}
    sound, memory = suites["sound.gguf"], suites["memory"]
    assert len(suites) == 3
    assert (sound.failures, sound.errors) == (1, 0)  # the tensor that could not be compared
    assert sound.tests == len(list(sound))
    assert sound.time == 4.0
    assert {item.name: item.value for item in sound.properties()}["machine"] == "x86_64"
    assert (memory.tests, memory.failures) == (4, 0)


def outcomes(**changes: str) -> dict[str, str]:
    """The outcome of each case by group and name."""
    parsed = parse_document(document("model.gguf", **changes))
    root = ElementTree.fromstring(render_junit(parsed))
    return {
        f"{case.get('classname')}: {case.get('name')}": case[0].tag if len(case) else "passed"
        for case in root.iter("testcase")
    }


def test_verdicts_that_are_not_passed_are_not_green() -> None:
    assert outcomes()["model.gguf: verdict: PASS"] == "passed"
    assert outcomes(outcome="fail")["model.gguf: verdict: FAIL (file)"] == "failure"
    found = outcomes(outcome="inconclusive")
    assert found["model.gguf: verdict: INCONCLUSIVE (file)"] == "error"
    assert found["model.gguf: all together, model.gguf: mean KL"] == "error"


def test_departures_and_runs_that_are_missing_decide_nothing() -> None:
    found = outcomes()
    assert found["model.gguf: known departures of model.gguf, model.gguf: mean KL"] == "skipped"
    assert found["model.gguf: runs, model.gguf: model.gguf in model.gguf"] == "skipped"


def test_memory_over_its_budget_fails() -> None:
    facts = document(memory=True)
    facts["memory"][0]["budget"] = 13_600_000_000  # predicted 13.46 GB, measured 13.7 GB
    (suite,) = junitparser.JUnitXml.fromstring(render_junit(parse_document(facts)))
    assert [bool(case.result) for case in suite] == [False, True, False, False]


# --- Markdown

RENDERER = MarkdownIt("gfm-like", {"html": True, "linkify": False}).enable("table")


def test_markdown_of_hostile_names_is_text() -> None:
    tokens = RENDERER.parse(HOSTILE["report.md"].decode())
    inline = [child for token in tokens if token.type == "inline" for child in token.children or ()]
    kinds = {token.type for token in [*tokens, *inline]}
    assert (
        kinds & {"html_block", "html_inline", "link_open", "image", "fence", "code_block", "blockquote_open"}
        == set()
    )
    assert {token.tag for token in tokens if token.type == "heading_open"} == {"h2", "h3"}
    bold = [inline[index + 1].content for index, token in enumerate(inline) if token.type == "strong_open"]
    assert set(bold) == {"PASS", "FAIL (file)"}


@pytest.mark.parametrize("escape", [text, code])
def test_every_character_comes_through(escape) -> None:  # type: ignore[no-untyped-def]
    shown = "".join(map(chr, range(33, 127))) + " http://x.example @name a|b ``x` <b>"
    inline = RENDERER.parse(f"| a |\n| --- |\n| {escape(shown)} |")
    cell = [token for token in inline if token.type == "inline"][-1]
    assert "".join(child.content for child in cell.children or ()) == shown


def test_tables_of_hostile_names_keep_their_columns() -> None:
    lines = HOSTILE["report.md"].decode().splitlines()
    assert not [line for line in lines if line.startswith("|") and not line.endswith("|")]
    for token in RENDERER.parse(HOSTILE["report.md"].decode()):
        assert token.type != "inline" or "| ---" not in token.content


def test_long_reports_are_shortened_for_github() -> None:
    facts = document("model.gguf")
    facts["artifacts"] = [artifact(f"{'long name ' * 30}{number}") for number in range(800)]
    data = render_markdown(parse_document(facts))
    assert LARGEST - 10_000 < len(data) < LARGEST + 1000
    assert data.decode().endswith("The rest is left out here; the JSON document has it.\n")
