"""The page of a report in Chromium, in light and in dark: nothing is loaded or run, and everything can be read."""

from collections.abc import Iterator

import pytest

from gptoss_convert.report import render_report
from tests.peers.chromium import Page, Scheme, page
from tests.support.documents import MARKUP, document

SCHEMES: tuple[Scheme, ...] = ("light", "dark")
CONTRAST = """(() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const pixel = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let item = element; item; item = item.parentElement) {
      const colour = getComputedStyle(item).backgroundColor;
      if (pixel(colour)[3] === 255 && colour !== 'rgba(0, 0, 0, 0)') return light(pixel(colour));
    }
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = light(pixel(element instanceof SVGElement ? style.fill : style.color)), back = ground(element);
    found.push((Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05));
  }
  return {least: Math.min(...found), texts: found.length};
})()"""
"""Least contrast of a text to what it stands on, as WCAG 2.1 defines it."""
OVERLAPS = """(() => {
  const found = [];
  for (const picture of document.querySelectorAll('svg')) {
    const texts = [...picture.querySelectorAll('text')].filter(text => text.textContent.trim());
    const boxes = texts.map(text => text.getBoundingClientRect());
    const frame = picture.getBoundingClientRect();
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 1 || a.right > frame.right + 1) found.push(`cut: ${texts[i].textContent}`);
      boxes.slice(i + 1).forEach((b, j) => {
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 1 && high > 3) found.push(`${texts[i].textContent} / ${texts[i + 1 + j].textContent}`);
      });
    });
  }
  return found;
})()"""
"""Texts in pictures that lie on each other, or reach out of the picture."""
COLOURS = """[...document.querySelectorAll('svg .mark-rect path, svg .mark-line path, svg .mark-symbol path')]
  .map(item => getComputedStyle(item)).map(style => [style.fill, style.stroke].join())"""


@pytest.fixture(scope="module", params=SCHEMES)
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page of a document with ordinary names and one that is markup, with everything unfolded."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    facts = document("gpt-oss-20b-q8.gguf", MARKUP, outcome="fail", memory=True)
    path.write_bytes(render_report(facts)["report.html"])
    with page() as opened:
        opened.open(path, scheme=request.param)
        opened.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
        yield opened


def test_nothing_but_the_page_is_asked_for(shown: Page) -> None:
    assert [address.rpartition("/")[2] for address in shown.requests] == ["report.html"]
    assert shown.complaints == []


def test_names_run_nothing(shown: Page) -> None:
    assert shown.evaluate("document.title").startswith("FAIL: Verification against <script>")
    assert shown.evaluate("document.querySelectorAll('script, img, iframe, object, embed, link').length") == 0
    assert shown.evaluate("document.querySelector('h2 code').textContent") == "gpt-oss-20b-q8.gguf"


def test_policy_stops_what_should_get_in_all_the_same(shown: Page) -> None:
    inserted = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">')"
    before = shown.evaluate("document.title")
    shown.evaluate(f"new Promise(done => {{ {inserted}; setTimeout(done, 200) }})")
    assert shown.evaluate("document.title") == before
    shown.evaluate("document.querySelector('img').remove()")


def test_every_text_can_be_told_from_its_ground(shown: Page) -> None:
    found = shown.evaluate(CONTRAST)
    assert found["texts"] > 500
    assert found["least"] >= 4.5  # level AA


def test_texts_of_pictures_do_not_overlap(shown: Page) -> None:
    assert shown.evaluate(OVERLAPS) == []


def test_pictures_have_the_colours_of_the_page(shown: Page) -> None:
    colours = shown.evaluate(COLOURS)
    assert len(colours) > 100
    assert not [colour for colour in colours if colour in ("none,none", "rgb(0, 0, 0),none", "none,rgb(0, 0, 0)")]


def test_page_itself_needs_no_sideways_scrolling(shown: Page) -> None:
    assert shown.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
