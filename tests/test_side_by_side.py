"""Texts side by side: as a table, and as a page that has all of them unchanged."""

import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import tl_steer as ts
from tl_steer._util.repetition import UNIT
from tl_steer.plots.style import multiplier_colours
from tl_steer.texts import text_damage

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


def test_each_draw_of_a_prompt_has_a_row_and_is_named_in_page_and_report():
    one = written(*added((-1.0, 1.0)))
    table = pd.concat([one.assign(draw=draw, text=one["text"] + f" draw {draw}") for draw in (0, 1)])
    wide = ts.texts.side_by_side(table.sample(frac=1, random_state=0))
    assert list(wide) == ["prompt_id", "draw", "prompt", "−1", "unsteered", "+1"]
    assert len(wide) == 6
    for row in wide.to_dict("records"):
        number = row["prompt_id"] - 4
        assert row["prompt"] == PROMPTS[number]
        assert row["+1"] == f"honesty add 18 1.0 {number} draw {row['draw']}"
    page = parsed(ts.plots.side_by_side(wide))
    assert page.headers == ["prompt", "−1 dose 0.1", "unsteered", "+1 dose 0.1"]
    draws = [f"{prompt} (draw {draw})" for prompt in PROMPTS for draw in (0, 1)]
    assert sorted(row[0] for row in page.rows) == sorted(draws)
    assert "6 draws" in page.text


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


def test_doses_of_the_columns_are_attributes_of_the_table():
    conditions = [condition("honesty", "add", "18", 4.0 * dose, dose=dose) for dose in (0.5, 1.0)]
    wide = ts.texts.side_by_side(written(*conditions, condition("honesty", "project_out", "18", np.nan)))
    assert wide.attrs["doses"] == {"add +2": 0.5, "add +4": 1.0}


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


# the page


class Page(HTMLParser):
    """The table of a page: headers and rows as text, attributes of cells, shaded parts."""

    def __init__(self, html):
        super().__init__()
        self.headers, self.rows, self.attributes, self.shaded, self.tags = [], [], [], [], []
        self.text, self.open = "", []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "input":
            return
        self.open.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
            self.attributes.append(dict(attributes))
        elif tag == "mark":
            self.shaded.append("")

    def handle_endtag(self, tag):
        while self.open.pop()[0] != tag:
            pass
        if tag == "thead":
            (self.headers,), self.rows, self.header_attributes = self.rows, [], self.attributes
            self.attributes = []

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        is_name = any(each.get("class") == "tls-name" for _, each in self.open)
        if not {"style", "script"} & set(tags):
            self.text += data
        if {"th", "td"} & set(tags) and not is_name:
            self.rows[-1][-1] += data
        if "mark" in tags:
            self.shaded[-1] += data


def parsed(page):
    return Page(page.body)


def wide(rows=3, columns=("−16", "unsteered", "+16"), text="A text of several words."):
    prompts = {"prompt_id": range(rows), "prompt": [f"Question {row}?" for row in range(rows)]}
    return pd.DataFrame(prompts | {name: [text] * rows for name in columns})


def test_the_page_has_every_text_under_its_header_and_cuts_none():
    texts = ["one <|im_end|>\n\n  two " + "word " * 3000 + "end<|im_end|>", "", pd.NA]
    page = parsed(ts.plots.side_by_side(wide().assign(**{"+16": texts})))
    assert page.headers == ["prompt", "−16", "unsteered", "+16"]
    text = "A text of several words."
    assert page.rows == [
        [f"Question {row}?", text, text, said] for row, said in enumerate([texts[0], "", "–"])
    ]
    assert "3 prompts, 3 conditions" in page.text


def test_nothing_of_a_text_becomes_markup():
    name = "layer <i>18</i>, +16"
    table = wide(text=NASTY).assign(prompt=NASTY, **{name: NASTY})
    page = parsed(ts.plots.side_by_side(table))
    assert page.rows == [[NASTY] * 5] * 3
    assert page.headers[-1] == name
    assert not {"b", "a", "i"} & set(page.tags)


def repeats_by_hand(text, n=3):
    """Number of n-grams that begin earlier too, and of units within them, by comparing all pairs."""
    units = [unit.casefold() for unit in UNIT.findall(text)]
    grams = [units[first : first + n] for first in range(len(units) - n + 1)]
    firsts = [first for first, gram in enumerate(grams) if gram in grams[:first]]
    return len(firsts), len({index for first in firsts for index in range(first, first + n)})


def shaded_units(page):
    return sum(len(UNIT.findall(part)) for part in page.shaded)


@pytest.mark.parametrize(
    ("text", "shaded"),
    [
        ("one two three four", []),
        ("one two one two", []),
        ("I'm sad, so sad. And I'M SAD, so.", ["I'M SAD, so"]),
        ("a b c d a b c x b c d", ["a b c", "b c d"]),
        ("no no no no no", ["no no no no"]),
        ("go go\ngo go\ngo", ["go go\ngo"]),
        ("<b>a</b> & <b>a</b>", ["<b>a</b>"]),
    ],
)
def test_words_that_repeat_the_text_are_shaded(text, shaded):
    page = parsed(ts.plots.side_by_side(wide(rows=1, columns=["+1"], text=text)))
    assert page.rows[0][1] == text
    assert page.shaded == shaded
    assert shaded_units(page) == repeats_by_hand(text)[1]


def test_the_share_of_shaded_sequences_is_one_minus_distinct_3():
    rng = np.random.default_rng(0)
    for length in (5, 10, 20, 40):
        text = " ".join(rng.choice(list("abc"), length))
        table = written(condition("honesty", "add", "18", 1.0, text=[text, "", ""]))
        (measured,) = text_damage(table).query("text == @text")["distinct_3"]
        repeats, units = repeats_by_hand(text)
        assert repeats / (length - 2) == pytest.approx(1 - measured)
        page = parsed(ts.plots.side_by_side(wide(rows=1, columns=["+1"], text=text)))
        assert shaded_units(page) == units


def test_headers_have_the_colours_of_their_multipliers_and_unsteered_is_tinted():
    columns = ["layer 6, −3", "layer 9, −3", "unsteered", "layer 6, +3", "layer 6, project out"]
    page = parsed(ts.plots.side_by_side(wide(columns=columns)))
    colours = multiplier_colours([-3, 3])
    expected = [None, *(f"--colour: {colours[each]}" for each in (-3.0, -3.0)), None]
    expected += [f"--colour: {colours[3.0]}", None]
    for attributes in (page.header_attributes, page.attributes[:6]):
        assert [each.get("style") for each in attributes] == expected
        assert [each.get("class") for each in attributes] == [None] * 3 + ["tls-unsteered"] + [None] * 2
    assert [each.get("data-layer") for each in page.header_attributes] == [None, "6", "9", None, "6", "6"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (wide().drop(columns="prompt"), r".*lacks the columns prompt.*side_by_side"),
        (wide(rows=0), "has no rows"),
        (wide(columns=[]), "no column of texts"),
    ],
)
def test_tables_without_texts_are_rejected(table, message):
    assert_raises(message, ts.plots.side_by_side, table)


def visible_texts(page, selector):
    return [each.inner_text() for each in page.locator(selector).all() if each.is_visible()]


FILTERED = [f"layer {layer}, {sign}1" for sign in "−+" for layer in (6, 9)]


@pytest.mark.integration
def test_checkboxes_hide_columns_and_a_word_hides_rows(opened):
    table = wide(columns=[*FILTERED[:2], "unsteered", *FILTERED[2:]], text="plain")
    table = table.assign(**{FILTERED[0]: ["apple", "plain", "plain"], "unsteered": ["x", "apple", "y"]})
    page = opened(ts.plots.side_by_side(table), width=1100)
    page.get_by_label("9").uncheck()
    assert visible_texts(page, "thead th") == ["prompt", FILTERED[0], "unsteered", FILTERED[2]]
    page.get_by_role("searchbox").fill("APPLE")
    assert visible_texts(page, "tbody th") == ["Question 0?", "Question 1?"]
    assert page.locator("output").inner_text() == "2 of 3 rows"
    page.get_by_label("−1").uncheck()  # rows are searched in the columns that are visible
    assert [text.split() for text in visible_texts(page, "tbody tr")] == [
        ["Question", "1?", "apple", "plain"]
    ]
    page.get_by_label("9").check()
    assert visible_texts(page, "thead th") == ["prompt", "unsteered", FILTERED[2], FILTERED[3]]
    assert page.errors == []


@pytest.mark.integration
@pytest.mark.parametrize("width", [1280, 400])
def test_no_text_is_wider_than_the_page(width, opened):
    text = "WWWW MMMM Yes, because it's important! " + "x" * 300 + " (i.e., 1,000 %) " + "油" * 90
    page = opened(ts.plots.side_by_side(wide(columns=FILTERED[:3], text=text).assign(prompt=text)), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [each.bounding_box() for each in page.locator("tbody tr:first-child > *").all()]
    is_below = [below["y"] > above["y"] for above, below in pairwise(boxes)]
    assert is_below == [width == 400] * 3
    for cell in page.locator("tbody :is(th, td)").all():
        assert cell.evaluate("each => each.scrollWidth - each.clientWidth") <= 0


@pytest.mark.integration
def test_an_image_is_as_wide_as_requested_and_has_all_rows(tmp_path):
    heights = {}
    for rows in (2, 60):
        ts.plots.side_by_side(wide(rows=rows)).write_image(tmp_path / "table.png", width=700, scale=1.5)
        content = (tmp_path / "table.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        width, heights[rows] = (int.from_bytes(content[start : start + 4]) for start in (16, 20))
        assert width == 1050
    assert heights[60] - heights[2] > 58 * 30
    assert_raises(
        "more than 16384: pass a ", ts.plots.side_by_side(wide(rows=400)).write_image, tmp_path / "x"
    )


def test_images_need_a_sensible_size_and_the_extra(monkeypatch, tmp_path):
    page = ts.plots.side_by_side(wide())
    for size in ({"width": 5}, {"scale": 0}, {"scale": 11}):
        assert_raises("expected a width from 100", page.write_image, tmp_path / "x.png", **size)
    monkeypatch.setitem(sys.modules, "choreographer", None)
    assert_raises(
        r"pip install 'tl-steer\[images\]'", page.write_image, tmp_path / "x.png", error=ImportError
    )
    assert list(tmp_path.iterdir()) == []
