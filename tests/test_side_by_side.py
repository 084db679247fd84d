"""Texts side by side: as a table, and as a figure that shows all of them unchanged."""

import html
import itertools
import re

import numpy as np
import pandas as pd
import pytest

import tl_steer as ts
from tl_steer.plots import text_figures

from . import sweep_tables
from .conftest import assert_raises

NASTY = '<b>loud</b> & "x" &lt; <a href="https://example.org">y</a> $5 to $6 %{x}'
PROMPTS = ["How are you?", "Who is there?", "Where to?"]


def condition(vector, operation, layers, multiplier, **columns):
    """A condition's rows; each text names its condition and prompt."""
    columns = {
        "vector": vector, "operation": operation, "layers": layers, "multiplier": multiplier,
        "prompt_id": [4, 5, 6], "prompt": PROMPTS,
        "text": [f"{vector} {operation} {layers} {multiplier} {row}" for row in range(3)],
    } | columns  # fmt: skip
    return sweep_tables.condition([None] * 3, **columns)


UNSTEERED = condition("none", "none", "", 0.0)


def written(*conditions):
    return sweep_tables.table_of(UNSTEERED, *conditions)


def added(multipliers=(16.0, -0.5, -16.0, 4.0), layers=("18",), vector="honesty", **more):
    return [
        condition(vector, "add", layer, multiplier, **more) for layer in layers for multiplier in multipliers
    ]


def test_each_prompt_has_a_row_with_the_text_of_every_condition_in_order():
    table = written(*added()).sample(frac=1, random_state=0)
    before = table.copy()
    wide = ts.texts.side_by_side(table)
    ts.plots.side_by_side(wide)
    pd.testing.assert_frame_equal(table, before)
    names = {
        "−16": "honesty add 18 -16.0", "−0.5": "honesty add 18 -0.5", "unsteered": "none none  0.0",
        "+4": "honesty add 18 4.0", "+16": "honesty add 18 16.0",
    }  # fmt: skip
    texts = {name: [f"{text} {row}" for row in range(3)] for name, text in names.items()}
    expected = pd.DataFrame({"prompt_id": [4, 5, 6], "prompt": PROMPTS} | texts)
    wide = wide.sort_values("prompt_id", ignore_index=True)
    pd.testing.assert_frame_equal(wide, expected, check_dtype=False)


def test_each_draw_of_a_prompt_has_a_row_and_is_named_in_figure_and_report():
    one = written(*added((-1.0, 1.0)))
    table = pd.concat([one.assign(draw=draw, text=one["text"] + f" draw {draw}") for draw in (0, 1)])
    wide = ts.texts.side_by_side(table.sample(frac=1, random_state=0))
    assert list(wide) == ["prompt_id", "draw", "prompt", "−1", "unsteered", "+1"]
    assert len(wide) == 6
    for row in wide.to_dict("records"):
        number = row["prompt_id"] - 4
        assert row["prompt"] == PROMPTS[number]
        assert row["+1"] == f"honesty add 18 1.0 {number} draw {row['draw']}"
    figure = ts.plots.side_by_side(wide)
    assert headers_of(figure) == ["prompt", "−1", "unsteered", "+1"]
    prompts = [re.sub("<.*?>", " ", text) for text in figure.data[0].cells.values[0]]
    assert sorted(prompts) == sorted(f"{prompt} (draw {draw})" for prompt in PROMPTS for draw in (0, 1))
    assert "6 draws" in figure.layout.title.subtitle.text


CONTROL = condition("random 1", "add", "18", 1.0, control=True)
REMOVED = condition("honesty", "project_out", "18", np.nan)


@pytest.mark.parametrize(
    ("conditions", "options", "names"),
    [
        (added((-1.0, 1.0), layers=("17", "17+31")), {},
         ["layer 17, −1", "layer 17+31, −1", "unsteered", "layer 17, +1", "layer 17+31, +1"]),
        ([condition("honesty", "zeroedout_pos", "18", 1.0), REMOVED, *added((1.0,))], {},
         ["unsteered", "zeroedout_pos +1", "add +1", "project out"]),
        ([*added((1.0,)), *added((1.0,), vector="kindness", hook="mlp_out")], {},
         ["unsteered", "honesty, resid_post, +1", "kindness, mlp_out, +1"]),
        ([REMOVED], {}, ["unsteered", "project out"]),
        (added((1.0, 1.00000001, 0.0)), {}, ["unsteered", "+0", "+1", "+1.00000001"]),
        ([*added((1.0,)), CONTROL], {}, ["unsteered", "+1"]),
        ([*added((1.0,)), CONTROL], {"controls": True}, ["unsteered", "honesty, +1", "random 1, +1"]),
    ],
    ids=["layers", "operations", "vectors", "removed", "late digits", "no controls", "controls"],
)  # fmt: skip
def test_names_of_conditions_have_only_their_differences(conditions, options, names):
    assert list(ts.texts.side_by_side(written(*conditions), **options))[2:] == names


@pytest.mark.parametrize(
    ("selection", "columns"),
    [
        ({"layers": 17}, ["−1", "unsteered", "+1"]),
        ({"layers": "17+31", "multipliers": 1}, ["unsteered", "+1"]),
        ({"layers": [17, (17, 31)], "multipliers": [1.0]}, ["unsteered", "layer 17, +1", "layer 17+31, +1"]),
        ({"layers": np.array([17]), "operation": "add", "vector": ["honesty"]}, ["−1", "unsteered", "+1"]),
    ],
)
def test_conditions_can_be_selected_and_unsteered_stays(selection, columns):
    table = written(*added((-1.0, 1.0), layers=("17", "17+31")))
    wide = ts.texts.side_by_side(table, **selection)
    assert list(wide)[2:] == columns
    assert wide[columns[-1]].iloc[0].startswith("honesty add 17")
    assert wide[columns].notna().all(axis=None)


def test_what_a_condition_lacks_is_missing():
    table = written(*added((1.0,))).drop(index=[4])
    assert ts.texts.side_by_side(table)["+1"].isna().tolist() == [False, True, False]


TABLE = written(*added())


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE.assign(text=pd.NA), {}, "has no texts"),
        (TABLE.drop(columns=["text", "layers"]), {}, "lacks the columns layers, text"),
        (TABLE, {"layers": 17}, "there is no layers '17'; the table has 18"),
        (TABLE, {"multipliers": [4, 5]}, r"no multiplier 5; the table has 16\.0, -0\.5"),
        (TABLE, {"operation": "project_out"}, "no operation 'project_out'; the table has add"),
        (written(UNSTEERED), {}, "prompt_id 4 is twice in the condition vector=none"),
    ],
)
def test_wrong_tables_and_requests_are_rejected(table, options, message):
    assert_raises(message, ts.texts.side_by_side, table, **options)


# the figure


def wide(rows=3, columns=("−16", "unsteered", "+16"), text="A text of several words."):
    prompts = {"prompt_id": range(rows), "prompt": [f"Question {row}?" for row in range(rows)]}
    return pd.DataFrame(prompts | {name: [text] * rows for name in columns})


def shown(figure):
    """The texts of each column as displayed: without line breaks, entities resolved."""
    columns = figure.data[0].cells.values
    return [[html.unescape(text.replace("<br>", " ")) for text in column] for column in columns]


def headers_of(figure):
    return [re.sub("<[^>]+>", "", text) for text in figure.data[0].header.values]


def test_the_figure_shows_every_text_under_its_header():
    table = wide().assign(**{"+16": ["one", "two\n\n  three ", pd.NA]})
    figure = ts.plots.side_by_side(table)
    questions, text = [f"Question {row}?" for row in range(3)], "A text of several words."
    assert shown(figure) == [questions, [text] * 3, [text] * 3, ["one", "two three", "–"]]
    assert headers_of(figure) == ["prompt", "−16", "unsteered", "+16"]
    assert figure.layout.title.subtitle.text == "3 prompts"


def test_nothing_of_a_text_becomes_markup():
    figure = ts.plots.side_by_side(wide(text=NASTY).assign(prompt=NASTY, **{"layer <i>18</i>, +16": NASTY}))
    for text in itertools.chain(figure.data[0].header.values, *figure.data[0].cells.values):
        assert not re.search(r"<(?!br>|/?b>$|b>)", text)
        assert "$" not in text
    assert "".join(shown(figure)[1][0].split()) == "".join(NASTY.split())
    assert "<b>" not in "".join(figure.data[0].cells.values[0])


def test_the_subtitle_says_that_only_the_first_rows_are_shown():
    figure = ts.plots.side_by_side(wide(rows=20), limit=5)
    assert [len(column) for column in shown(figure)] == [5] * 4
    assert figure.layout.title.subtitle.text == "5 of 20 prompts"


def test_the_middle_of_a_long_text_is_left_out():
    text = "begin " + "word " * 200 + "end"
    column = shown(ts.plots.side_by_side(wide(text=text), max_length=100))[1]
    assert re.fullmatch(r"begin word.* \[…\] .*word end", column[0])
    assert len(column[0]) <= 106


def test_what_all_prompts_begin_and_end_with_is_left_out():
    prompts = [f"Is the following claim true or false? {claim} Choices: (A) True (B) False"
             for claim in ("Ice floats.", "Ice sinks.", "Iron floats.")]  # fmt: skip
    figure = ts.plots.side_by_side(wide().assign(prompt=prompts))
    assert shown(figure)[0] == ["… Ice floats. …", "… Ice sinks. …", "… Iron floats. …"]
    assert "what they all begin and end with is left out" in figure.layout.title.subtitle.text
    assert shown(ts.plots.side_by_side(wide().assign(prompt=prompts[0])))[0] == [prompts[0]] * 3
    assert shown(ts.plots.side_by_side(wide(rows=1).assign(prompt=prompts[:1])))[0] == prompts[:1]


WIDE = "WWWW MMMM Yes, because it's important! " + "x" * 300 + " (i.e., 1,000 %) " + '"AI", Human: ' * 20


BOXES = """all => all.map(one => one.getBoundingClientRect())
    .map(box => ({left: box.left, right: box.right, bottom: box.bottom}))"""


@pytest.mark.integration
def test_a_browser_shows_every_line_within_its_column_and_without_scrolling(browser, tmp_path):
    tables = [
        wide(rows=2, columns=["+1"], text=WIDE),
        wide(rows=8, columns=["layer 17+31, −16", "unsteered", "layer 17+31, +16"], text=WIDE),
        wide(rows=8, columns=[f"zeroedout_neg +{number}" for number in range(7)], text=WIDE),
        wide(rows=1, text="油" * 90 + "😀" * 40),
    ]
    figures = [ts.plots.side_by_side(table) for table in tables]
    parts = [figure.to_html(full_html=False, include_plotlyjs=figure is figures[0]) for figure in figures]
    file = tmp_path / "tables.html"
    file.write_text("<meta charset='utf-8'>" + "".join(parts), encoding="utf-8")
    page = browser.new_page(viewport={"width": 950, "height": 1000})
    page.goto(file.as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .table').length == 4")
    drawn = page.locator(".js-plotly-plot")
    for index, (table, figure) in enumerate(zip(tables, figures, strict=True)):
        here = drawn.nth(index)
        texts, cells = (here.locator(which).evaluate_all(BOXES) for which in (".cell-text", ".cell-rect"))
        assert len(texts) == len(cells) == (len(table) + 1) * (len(table.columns) - 1)
        for text, cell in zip(texts, cells, strict=True):
            assert cell["left"] <= text["left"]
            assert text["right"] <= cell["right"]
            assert text["bottom"] <= cell["bottom"]
        end = max(cell["bottom"] for cell in cells) - here.evaluate("one => one.getBoundingClientRect().top")
        assert 0.85 * figure.layout.height <= end <= figure.layout.height - figure.layout.margin.b
    page.close()


def test_lines_are_as_long_as_the_column_is_wide():
    """A column of a third of 900 pixels holds about 48 characters of English at this size."""
    figure = ts.plots.side_by_side(wide(columns=["a", "b"], text="one word and then another " * 10))
    lengths = [len(line) for line in figure.data[0].cells.values[1][0].split("<br>")]
    assert 42 <= max(lengths) <= 58
    assert min(lengths[:-1]) >= 38


def test_headers_have_the_colours_of_their_multipliers():
    columns = ["layer 6, −3", "layer 9, −3", "unsteered", "+3", "project out"]
    figure = ts.plots.side_by_side(wide(columns=columns))
    prompt, minus, other_minus, unsteered, plus, projected = figure.data[0].header.fill.color
    assert minus == other_minus != plus
    assert prompt == unsteered == projected
    colour = text_figures.multiplier_colours([-3, 3])
    assert colour[3.0].removeprefix("rgb(").removesuffix(")") in plus


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (wide().drop(columns="prompt"), {}, r".*lacks the columns prompt.*side_by_side"),
        (wide(rows=0), {}, "has no rows"),
        (wide(columns=[]), {}, "no column of texts"),
        (wide(columns=[f"+{number}" for number in range(8)]), {}, "8 columns of texts cannot be .*layers="),
        (wide(), {"limit": 0}, "limit=0 must be at least 1"),
        (wide(), {"max_length": 5}, "max_length=5 at least 20"),
    ],
)
def test_tables_without_a_figure_are_rejected(table, options, message):
    assert_raises(message, ts.plots.side_by_side, table, **options)
