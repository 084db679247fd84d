"""Texts written to run as script, in every figure, preview and report: nothing runs, loads or links."""

import functools
import json

import pandas as pd
import pytest

import tl_steer as ts
from tl_steer.directions import mean_difference
from tl_steer.experiments import Results, read_experiment, report_html

from . import test_report
from .public_calls import MODEL, Call, Materials, figure_calls
from .test_report import CHROMIUM, EXPERIMENT, FLAGS, NOTHING

MARK = "markmark"  # in every text and name of the tables; the hostile text takes its place
HOSTILE = [
    [
        "<script>hacked=1</script>",
        "</script><script>hacked=2</script>",
        "<img src=x onerror=hacked=3>",
        "<svg/onload=hacked=4>",
        '"><b onmouseover="hacked=5">b</b>',
        "<!--",
        "]]>",
    ],
    [
        "<a href='javascript:hacked=6'>a</a>",
        "<a href='http://evil.example/a'>b</a>",
        "<iframe src=//evil.example>",
        "<style>*{display:none}</style>",
        "<link rel=stylesheet href=//evil.example/c>",
        "'-hacked=8-'",
        "\\u003cscript\\u003e",
    ],
    [
        "&lt;script&gt;hacked=9&lt;/script&gt;",
        "&#60;img src=x onerror=hacked=10&#62;",
        "{{7*7}}",
        "${hacked=11}",
        "%{x}",
        "%{customdata[0]}",
        "$\\href{javascript:hacked=12}{x}$",
        "<span style='background:url(//evil.example/d)'>e</span>",
    ],
    [
        "\u202e<i>txt.exe\u2066",
        "\x1b[31m\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
        "\x00<b>nul",
        "\x07\x08",
        "{% raw %}",
        "<math><mi xlink:href='javascript:hacked=13'>f</mi></math>",
        "`hacked=14`",
        "</td></table></style></title><u>g</u>",
    ],
]
GROUPS = range(len(HOSTILE))


def hostile(group: int) -> str:
    return " ".join(HOSTILE[group])


def marked(value, text: str):
    """A table with the hostile text in the place of the mark, in cells and in the names of columns."""
    if not isinstance(value, pd.DataFrame):
        return value.replace(MARK, text) if isinstance(value, str) else value

    def cell(each):
        return each.replace(MARK, text) if isinstance(each, str) else each

    table = value.rename(columns=lambda name: cell(name))
    for place, (name, kind) in enumerate(value.dtypes.items()):
        if isinstance(kind, pd.StringDtype | pd.CategoricalDtype) or pd.api.types.is_object_dtype(kind):
            table.isetitem(place, value[name].astype(object).map(cell, na_action="ignore"))
    return table


@functools.cache
def plain_calls():
    return figure_calls(Materials(f" {MARK}"))


def figures(group: int) -> dict:
    """Every figure, drawn of tables full of hostile text."""
    drawn = {}
    for name, call in plain_calls().items():
        given = {key: marked(value, hostile(group)) for key, value in call.arguments.items()}
        drawn[name] = Call(call.function, given, call.positional)()
    return drawn


def previews(group: int) -> list[str]:
    texts = [
        ts.preview(_Spelling(hostile(group)), [3, 4, 5], ts.tokens_matching(text)) for text in HOSTILE[group]
    ]
    return [text._repr_html_() for text in texts]


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


def report(folder, monkeypatch) -> str:
    """The report of a made-up run, hostile wherever a text of others can come from."""
    every = " ".join(map(hostile, GROUPS))
    monkeypatch.setattr(test_report, "HOSTILE", every)
    file = folder / "experiment.toml"
    title = json.dumps(every)
    file.write_text(EXPERIMENT.replace('"A title with <b>marks</b>"', title), encoding="utf-8")
    audit = pd.DataFrame(
        {
            "factor": ["topic"],
            "level": [every],
            "positive": [1.0],
            "negative": [1.0],
            "difference": [0.0],
            "differs": [False],
        }
    )
    versions = {
        "date": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "seed": 1,
        "python": every,
        "device": "cpu",
        "dtype": "torch.float32",
        "packages": {"tl-steer": "0.1.0"},
        "model": {"name": every, "revision": every, "n_layers": 3, "d_model": 16},
    }
    pairs = test_report.made_pairs()
    vectors = mean_difference(pairs).scaled_to(dose=1.0)
    results = Results(
        read_experiment(file), versions, audit, pairs, vectors, test_report.made_sweep(), NOTHING, NOTHING
    )
    return report_html(results)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install Debian's package chromium")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=FLAGS,
            viewport={"width": 1100, "height": 1000},
        )
        yield context
        context.close()


def opened(browser, html: str, folder):
    """A page, with what it asked for and said; names that hostile text sets are looked for by `ran`."""
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    page = browser.new_page()
    page.seen = []
    page.on("dialog", lambda dialog: (page.seen.append("dialog"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: request.url.startswith(("file:", "data:", "blob:")) or page.seen.append(request.url),
    )
    page.errors = []  # of drawing; a hover called by hand may find a point that is not drawn
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
LINKS = (
    "a, img, iframe, script, link, object, embed, foreignObject, "
    "[onload], [onerror], [onclick], [onmouseover]"
)


def require_harmless(page):
    """Nothing ran, nothing was asked for, and nothing in a figure can be clicked or loads."""
    page.wait_for_timeout(200)
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.seen == []
    inside = ":is(.js-plotly-plot, .preview) :is(" + LINKS + ")"
    found = page.locator(inside).evaluate_all(
        "all => all.filter(each => !each.closest('.modebar')).map(each => each.outerHTML)"
    )
    assert found == []
    made = (
        "all => all.filter(each => /txt.exe|^g$|hacked/.test(each.textContent)).map(each => each.outerHTML)"
    )
    assert page.locator("body :is(i, u, math)").evaluate_all(made) == []


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_text_in_figures_and_previews_is_shown_and_does_nothing(group, browser, tmp_path):
    from plotly.offline import get_plotlyjs

    drawn = figures(group)
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=False, div_id=name) for name, figure in drawn.items()
    ]
    shown = "".join(f'<div class="preview">{each}</div>' for each in previews(group))
    html = f"<!doctype html><meta charset=utf-8><script>{get_plotlyjs()}</script>{''.join(parts)}{shown}"
    page = opened(browser, html, tmp_path)
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {len(drawn)}")
    assert page.errors == []
    said = page.evaluate(HOVER_ALL.replace("LINKS", json.dumps(LINKS)))
    assert not [each for each in said if each.startswith("LINK")]
    require_harmless(page)
    first = HOSTILE[group][0].replace("\u202e", "<U+202E>").replace("\u2066", "<U+2066>")
    whole = page.evaluate("document.body.textContent")
    assert any(first in each for each in said), "hovers show the text as text"
    assert whole.count(first) > 10
    page.close()


def test_hostile_text_in_a_report_is_shown_and_does_nothing(browser, tmp_path, monkeypatch):
    page = opened(browser, report(tmp_path, monkeypatch), tmp_path)
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 6")
    assert page.errors == []
    said = page.evaluate(HOVER_ALL.replace("LINKS", json.dumps(LINKS)))
    assert not [each for each in said if each.startswith("LINK")]
    require_harmless(page)
    whole = page.evaluate("document.body.textContent")
    for text in [*HOSTILE[0], *HOSTILE[1], *HOSTILE[2]]:
        assert text in whole
    page.close()


def test_a_terminal_is_sent_no_control_characters():
    """A preview printed where escape sequences work: they are written out, not obeyed."""
    for group in GROUPS:
        shown = str(ts.preview(_Spelling(hostile(group)), [3, 4], ts.all_tokens()))
        assert not [sign for sign in shown if (sign < " " and sign != "\n") or sign in "\x7f\u202e\u2066"]
