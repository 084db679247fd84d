"""Text written to run as script, in every figure, preview, page and report: nothing runs, loads or links."""

import functools
import json
import re

import pandas as pd
import pytest

import tl_steer as ts
from tl_steer._report import page as report
from tl_steer._util.html_output import Html

from .public_calls import MODEL, Call, Materials, figure_calls
from .test_plots import texts_of
from .test_report import EXPERIMENT, synthetic_results

MARK = "markmark"  # in every text and name of the tables; replaced by the hostile text
HOSTILE = [
    ["<script>hacked=1</script>", "</script><script>hacked=2</script>", "<img src=x onerror=hacked=3>",
     "<svg/onload=hacked=4>", '"><b onmouseover="hacked=5">b</b>', "<!--", "]]>"],
    ["<a href='javascript:hacked=6'>a</a>", "<a href='http://evil.example/a'>b</a>",
     "<iframe src=//evil.example>", "<style>*{display:none}</style>",
     "<link rel=stylesheet href=//evil.example/c>", "'-hacked=8-'", "\\u003cscript\\u003e"],
    ["&lt;script&gt;hacked=9&lt;/script&gt;", "&#60;img src=x onerror=hacked=10&#62;", "{{7*7}}",
     "${hacked=11}", "%{x}", "%{customdata[0]}", "$\\href{javascript:hacked=12}{x}$",
     "<span style='background:url(//evil.example/d)'>e</span>"],
    ["\u202e<i>txt.exe\u2066", "\x1b[31m\x1b]8;;http://evil.example\x07click\x1b]8;;\x07", "\x00<b>nul",
     "\x07\x08", "{% raw %}", "<math><mi xlink:href='javascript:hacked=13'>f</mi></math>", "`hacked=14`",
     "</td></table></style></title><u>g</u>"],
]  # fmt: skip
TEXTS = [" ".join(group) for group in HOSTILE]


def marked(value, text: str):
    """The value with the hostile text instead of the mark, in values and column names of a table."""
    if isinstance(value, str):
        return value.replace(MARK, text)
    if not isinstance(value, pd.DataFrame):
        return value
    table = value.rename(columns=lambda name: marked(name, text))
    for index, (name, dtype) in enumerate(value.dtypes.items()):
        if isinstance(dtype, pd.StringDtype | pd.CategoricalDtype) or pd.api.types.is_object_dtype(dtype):
            column = value[name].astype(object)
            table.isetitem(index, column.map(lambda each: marked(each, text), na_action="ignore"))
    return table


@functools.cache
def plain_calls():
    return figure_calls(Materials(f" {MARK}"))


def figures(group: int) -> dict:
    """Every figure, drawn from tables full of hostile text."""

    def draw(call):
        arguments = {key: marked(value, TEXTS[group]) for key, value in call.arguments.items()}
        return Call(call.function, arguments, call.positional)()

    return {name: draw(call) for name, call in plain_calls().items()}


def fragments(group: int) -> list[str]:
    """HTML that is not a plotly figure: previews of positions, and the plots that are `Html`."""
    model = _Spelling(TEXTS[group])
    shown = [ts.preview(model, [3, 4, 5], ts.tokens_matching(text)) for text in HOSTILE[group]]
    shown += [each for each in figures(group).values() if isinstance(each, Html)]
    return [each._repr_html_() for each in shown]


class _Spelling:
    """A model whose tokens are the hostile text."""

    run_with_hooks = None

    def __init__(self, text):
        self.text, self.cfg, self.tokenizer = text, MODEL.cfg, self

    def decode(self, ids, **_):
        return self.text * len(ids)

    def batch_decode(self, rows, **_):
        return [self.decode(row) for row in rows]

    def convert_ids_to_tokens(self, ids):
        return [self.text] * len(ids)


def opened(browser, html: str, folder):
    """A page of `html`; `page.seen` holds dialogs and requests, `page.errors` errors of drawing."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    page.seen, page.errors = [], []  # a hover called from Python may find a point that is not drawn
    page.on("dialog", lambda dialog: (page.seen.append("dialog"), dialog.dismiss()))
    local = ("file:", "data:", "blob:")
    page.on("request", lambda request: request.url.startswith(local) or page.seen.append(request.url))
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(file.as_uri())
    return page


HOVER_ALL = """() => {
  const said = [];
  for (const figure of document.querySelectorAll('.js-plotly-plot')) {
    for (let curve = 0; curve < figure._fullData.length; curve++) {
      const trace = figure._fullData[curve];
      if (trace.visible !== true || !trace.xaxis || trace.hoverinfo === 'skip') continue;
      for (const point of [0, 1]) {
        const where = [{curveNumber: curve, pointNumber: point}];
        try { Plotly.Fx.hover(figure, where); } catch (error) { continue; }
        const hovers = figure.querySelector('.hoverlayer');
        for (const label of hovers.querySelectorAll('.hovertext')) said.push(label.textContent);
        if (hovers.querySelector(LINKS)) said.push('LINK in a hover of ' + figure.id);
      }
    }
  }
  return said;
}"""
LINKS = "a, img, iframe, script, link, object, embed, foreignObject"
LINKS += ", [onload], [onerror], [onclick], [onmouseover]"


def assert_harmless(page):
    """Nothing has run or been requested, and nothing in a figure is a link or loads."""
    page.wait_for_timeout(200)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.seen == []
    outer = "each => each.outerHTML"
    links = page.locator(f":is(.js-plotly-plot, .fragment > .tls) :is({LINKS})")
    assert links.evaluate_all(f"all => all.filter(each => !each.closest('.modebar')).map({outer})") == []
    written = f"all => all.filter(each => /txt.exe|^g$|hacked/.test(each.textContent)).map({outer})"
    assert page.locator("body :is(i, u, math)").evaluate_all(written) == []


def each_tip(page):
    """The tooltip of each fragment with tokens, at its first token."""
    for fragment in page.locator(".fragment", has=page.locator(".tls-token")).all():
        fragment.locator(".tls-token").first.focus()
        yield fragment.get_by_role("tooltip")


def hovers(page) -> list[str]:
    """Texts of all hovers, none of which has a link."""
    texts = page.evaluate(HOVER_ALL.replace("LINKS", json.dumps(LINKS)))
    assert not [text for text in texts if text.startswith("LINK")]
    return texts


def test_texts_of_figures_are_escaped():
    """Names of vectors, factors and columns, prompts and answers; other figures have tests of their own."""
    drawn = figures(1)
    html = {name for name, each in drawn.items() if isinstance(each, Html)}
    assert html == {"side_by_side", "tokens"}
    texts = {name: [each.body] if name in html else texts_of(each) for name, each in drawn.items()}
    for name, each in texts.items():
        assert not [text for text in each if re.search("<a |<iframe|<style>\\*|<link", text)], name
    shown = {name for name, each in texts.items() if any("&lt;iframe" in text for text in each)}
    plain = {"agreement", "logit_lens", "mean_projections", "separation", "vector_components"}
    assert shown == set(texts) - plain


@pytest.mark.integration
@pytest.mark.parametrize("group", range(len(TEXTS)))
def test_hostile_text_in_figures_and_fragments_is_shown_and_does_nothing(group, browser, tmp_path):
    from plotly.offline import get_plotlyjs

    drawn = {name: each for name, each in figures(group).items() if not isinstance(each, Html)}
    options = {"full_html": False, "include_plotlyjs": False}
    parts = [figure.to_html(**options, div_id=name) for name, figure in drawn.items()]
    shown = "".join(f'<div class="fragment">{each}</div>' for each in fragments(group))
    html = f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>{''.join(parts)}{shown}"
    page = opened(browser, html, tmp_path)
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {len(drawn)}")
    assert page.errors == []
    texts = hovers(page)
    assert_harmless(page)
    first = HOSTILE[group][0].replace("\u202e", "<U+202E>").replace("\u2066", "<U+2066>")
    assert any(first in text for text in texts), "hovers show the text as text"
    assert page.evaluate("document.body.textContent").count(first) > 10
    assert page.locator(".fragment > *").evaluate_all("all => all.map(each => each.localName)") == (
        ["style", "div", "script"] * len(fragments(group))
    )
    tips = [tip.text_content() for tip in each_tip(page)]
    assert any(first.replace(" ", "␣") in tip for tip in tips), "tooltips show the token as text"
    page.close()


@pytest.mark.integration
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_report_is_accessible_and_fits_its_window(browser, tmp_path, width, scheme):
    """By axe-core, with all sections open; its rules run in a page without the report's own policy."""
    from axe_playwright_python.sync_playwright import Axe

    (tmp_path / "report.html").write_text(
        report.report_page(synthetic_results(tmp_path)).page, encoding="utf-8"
    )
    size = {"width": width, "height": 900}
    page = browser.new_page(viewport=size, color_scheme=scheme, bypass_csp=True)
    page.goto((tmp_path / "report.html").as_uri())
    page.evaluate("document.getElementById('all').click()")
    page.locator(".plot").last.locator(".main-svg").first.wait_for()
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.close()


@pytest.mark.integration
def test_a_printed_report_has_all_sections_open(browser, tmp_path):
    page = opened(browser, report.report_page(synthetic_results(tmp_path)).page, tmp_path)
    assert page.locator("details[open]").count() == 0
    content = page.pdf(format="A4")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator(".plot:not(.js-plotly-plot)").count() == 0
    assert content.startswith(b"%PDF")
    page.close()


@pytest.fixture(scope="module")
def report_page(browser, tmp_path_factory):
    """The report of a synthetic run, with hostile text wherever text of others can come from."""
    folder, every = tmp_path_factory.mktemp("report"), " ".join(TEXTS)
    experiment = EXPERIMENT.replace('"A title with <b>marks</b>"', json.dumps(every))
    results = synthetic_results(folder, experiment, text=every)
    page = opened(browser, report.report_page(results).page, folder)
    page.locator("#all").click()
    page.locator(".plot").last.locator(".main-svg").first.wait_for()
    yield page
    page.close()


@pytest.mark.integration
def test_every_figure_of_a_report_is_drawn(report_page):
    drawn = report_page.locator(".plot.js-plotly-plot").all()
    assert len(drawn) == 13
    for figure in drawn:
        for part in ("svg.main-svg", ".trace path, .point, .bars path, .hm image"):
            assert figure.locator(part).count() > 0


@pytest.mark.integration
def test_a_mouse_shows_a_prompt_and_a_slider_moves_the_points(report_page):
    figure = report_page.locator("#figure-pca")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".scatterlayer .point").first.bounding_box()
    report_page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = figure.locator(".hoverlayer .hovertext")
    label.first.wait_for()
    assert "prompt" in label.first.text_content()
    assert "<script>" in label.first.text_content()
    read = "document.getElementById('figure-pca').data.map(trace => Array.from(trace.x || [])).flat().join()"
    before = report_page.evaluate(read)
    box = figure.locator(".slider-rail-touch-rect").bounding_box()
    report_page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    for _ in range(100):  # the page's policy forbids the evaluation that `wait_for_function` polls with
        report_page.wait_for_timeout(50)
        if report_page.evaluate(read) != before:
            return
    pytest.fail("the slider moved no points")


@pytest.mark.integration
def test_hostile_text_in_a_report_is_shown_and_does_nothing(report_page):
    assert report_page.errors == []
    hovers(report_page)
    assert_harmless(report_page)
    whole = report_page.evaluate("document.body.textContent")
    assert [text for text in (*HOSTILE[0], *HOSTILE[1], *HOSTILE[2]) if text not in whole] == []
    assert "{{7*7}}" in report_page.locator("#texts td", has_text="said at 0.3").first.text_content()


def test_a_terminal_is_sent_no_control_characters():
    """A preview printed where escape sequences work: they are written out, not obeyed."""
    for text in TEXTS:
        shown = str(ts.preview(_Spelling(text), [3, 4], ts.all_tokens()))
        assert not [sign for sign in shown if (sign < " " and sign != "\n") or sign in "\x7f\u202e\u2066"]
