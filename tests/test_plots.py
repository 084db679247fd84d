"""Figures hold what their tables hold, and text never becomes markup."""

import html
import itertools
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from scipy import stats

import tl_steer as ts
from tl_steer import plots
from tl_steer._util.characters import visible
from tl_steer.analysis import component_factors as factors_table
from tl_steer.analysis import mean_projections as means_table
from tl_steer.evaluation import prompt_slopes, steerability
from tl_steer.models import ChatPrompt
from tl_steer.plots import style
from tl_steer.plots.format import controls_text, counted, escape, levels, number, shortened, wrapped
from tl_steer.plots.marks import control_marks, layer_axis, layer_positions, multiplier_ranks
from tl_steer.plots.panels import panels_of

from .conftest import assert_raises
from .test_groups import grouped_sweep
from .test_looking import row_of, rows_of
from .tiny_model import make_model, word_tokenizer

NASTY = '<b>loud</b> & "x" &lt; <a href="https://example.org">y</a> $5 to $6 %{x}'
SIDES = ("positive", "negative")
LAYERS = ("3", "5", "10", "3+5")
MULTIPLIERS = (-4.0, -2.0, 2.0, 4.0)


@pytest.fixture
def separated():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.4, 0.9, 6)
    table = pd.DataFrame({"layer": range(6), "paired_accuracy": accuracy})
    table["paired_accuracy_low"], table["paired_accuracy_high"] = accuracy - 0.1, accuracy + 0.05
    return table.assign(
        auc=rng.uniform(size=6), d_prime=rng.normal(size=6), null_low=0.35, null_high=0.62, null_mean=0.5,
        p_value=0.0099, p_corrected=[0.01, 0.02, 0.03, 0.05, 0.051, 0.2], null_max=0.71, pairs=60, folds=5,
        method="mean_difference",
    )  # fmt: skip


def activation_table(columns, layers=(0, 4, 9), pairs=6):
    """A row per layer, pair and side, shuffled: no figure may depend on the order of rows."""
    rng = np.random.default_rng(1)
    rows = itertools.product(layers, range(pairs), SIDES)
    table = pd.DataFrame(rows, columns=["layer", "pair", "side"])
    table["truth"] = table["pair"] % 2 == 0
    table["prompt"] = (table["side"] + " prompt " + table["pair"].astype(str)).where(table["pair"] > 0, NASTY)
    for column in columns:
        table[column] = rng.normal(size=len(table))
        if column.startswith("PC"):
            table[f"explained_{column[2:]}"] = 0.4 / int(column[2:]) + table["layer"] / 100
    return table.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.fixture
def components():
    return activation_table(["PC1", "PC2", "PC3", "PC4"]).assign(decomposed="pooled")


@pytest.fixture
def projected():
    return activation_table(["projection", "cosine"])


def sweep_table(*, vectors=("honesty",), operations=("add",), controls=3, truths=("true", "false")):
    """Like the table of `effectiveness`, with a different value for each condition."""
    conditions = [("none", False, "none", "", "", 0.0, 0.0)]
    names = [(name, False) for name in vectors] + [(f"random {k}", True) for k in range(controls)]
    for (name, control), layers in itertools.product(names, LAYERS):
        for operation, multiplier in [*itertools.product(operations, MULTIPLIERS), ("project_out", np.nan)]:
            dose = abs(multiplier) / 10
            conditions.append((name, control, operation, layers, "resid_post", multiplier, dose))
    columns = ["vector", "control", "operation", "layers", "hook", "multiplier", "dose", "truth"]
    table = pd.DataFrame([(*each, truth) for each in conditions for truth in truths], columns=columns)
    table["n"] = 50
    rng = np.random.default_rng(2)
    for value in ("accuracy", "signal_rate", "logit_difference", "shift"):
        table[value] = rng.uniform(0.3, 0.7, len(table))
        table[f"{value}_low"], table[f"{value}_high"] = table[value] - 0.1, table[value] + 0.2
    return table


def pooled_table(**options):
    return sweep_table(truths=("all",), **options).drop(columns="truth")


@pytest.fixture
def detected(pooled):
    columns = ["vector", "control", "operation", "layers", "hook", "multiplier", "dose"]
    table = pooled[columns].assign(n_signal=30, n_noise=20, hit_rate=0.8, false_alarm_rate=0.3)
    rng = np.random.default_rng(3)
    for value in ("d_prime", "criterion"):
        table[value] = rng.normal(size=len(table))
        table[f"{value}_low"], table[f"{value}_high"] = table[value] - 0.5, table[value] + 0.25
    return table


@pytest.fixture
def means(projected):
    return means_table(projected).sample(frac=1, random_state=0)


@pytest.fixture
def related():
    table = activation_table(["PC1", "PC2"])
    table["topic"] = np.where(table["truth"], NASTY, "plain")
    table.loc[table["side"] == "positive", "PC1"] += 5
    return factors_table(table).sample(frac=1, random_state=0)


@pytest.fixture
def coordinates():
    """Two vectors of a hundred coordinates; the second has one far away."""
    values = np.random.default_rng(0).normal(size=(2, 100))
    values[1, 42] = -30
    tables = []
    for layer, row in zip((3, 8), values, strict=True):
        rows = pd.DataFrame({"layer": layer, "coordinate": range(100), "value": row, "share": row**2})
        rows["share"] /= rows["share"].sum()
        rows["rank"] = rows["share"].rank(ascending=False).astype(int)
        tables.append(rows.assign(spread=np.sqrt((row**2).mean()), kurtosis=1.5, n_half_energy=7 * layer))
    return pd.concat(tables).sample(frac=1, random_state=0)


def lens_table(layers=(0, 4, 9), multipliers=(20.0, -20.0), top=3):
    rng = np.random.default_rng(0)
    squares = itertools.product(layers, multipliers, range(1, top + 1))
    table = pd.DataFrame(squares, columns=["layer", "multiplier", "rank"])
    n = len(table)
    table = table.assign(token_id=range(100, 100 + n), token=[f" t{index}" for index in range(n)])
    table["logit"], table["probability"] = rng.normal(size=n), rng.uniform(size=n)
    return table.sample(frac=1, random_state=0)


swept, pooled, lens = (pytest.fixture(each) for each in (sweep_table, pooled_table, lens_table))


def named(figure, name, axis=None):
    """The trace of that name in the legend, or without an entry the only one; or the one on an x axis."""
    traces = list(figure.select_traces({"name": name}))
    if axis is not None:
        traces = [trace for trace in traces if trace.xaxis == axis]
    elif len(traces) > 1:
        traces = [trace for trace in traces if trace.showlegend is not False] or [
            trace for trace in traces if trace.hovertext is not None
        ]
    return traces[0]


def line_labels(figure):
    """The names at the ends of lines, from below."""
    return [note.text for note in figure.layout.annotations if note.xshift]


def entries(figure):
    """The names in the legend."""
    return [trace.name for trace in figure.data if trace.showlegend is not False]


def title_of(figure):
    return figure.layout.title.text.replace("<br>", " ")


def subtitle_of(figure):
    return figure.layout.title.subtitle.text.replace("<br>", " ")


def pixels(text):
    """Sum of the channels of `rgb(…)`."""
    return sum(map(int, text[4:-1].split(",")))


def titles_of(figure):
    """The titles of the panels."""
    return [note.text for note in figure.layout.annotations if not note.xshift]


def texts_of(figure):
    """All texts that a figure can show, as sent to the browser."""
    texts, values = [], [figure.to_dict()]
    while values:
        value = values.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            values += [part for key, part in value.items() if key != "legendgroup"]
        elif isinstance(value, list | tuple | np.ndarray):
            values += list(value)
    return texts


def assert_escaped(figure):
    """The hostile text is in the figure, as text."""
    texts = texts_of(figure)
    assert any("&lt;b&gt;loud&lt;/b&gt;" in text for text in texts)
    assert not any(part in text for text in texts for part in ("<b>loud", "<a "))


# --- all figures -------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_plots_load_plotly_with_the_first_function_and_little_else_of_the_package():
    code = f"""
import sys, types
sys.modules["tl_steer"] = types.ModuleType("tl_steer")  # empty, so that nothing else is imported
sys.modules["tl_steer"].__path__ = [{str(Path(plots.__file__).parents[1])!r}]
import tl_steer.plots
before = "plotly" in sys.modules
for name in tl_steer.plots.__all__:
    getattr(tl_steer.plots, name)
others = {{name.split(".")[1] for name in sys.modules if name.startswith("tl_steer.")}}
print(before, "plotly" in sys.modules, sorted(others))
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "False True ['_util', 'plots', 'tables']\n"


def test_every_public_name_is_a_function_and_stays_one_after_its_module_is_imported():
    assert all(callable(getattr(plots, name)) for name in plots.__all__)
    assert set(plots.__all__) <= set(dir(plots))
    assert_raises("separation", getattr, plots, "scatter", error=AttributeError)


@pytest.mark.parametrize(
    ("name", "fixture", "column"),
    [
        ("separation", "separated", "paired_accuracy"),
        ("pca", "components", "explained_2"),
        ("projections", "projected", "cosine"),
        ("effectiveness", "pooled", "accuracy_low"),
        ("dose_response", "pooled", "shift_high"),
        ("signal_detection", "detected", "criterion"),
        ("mean_projections", "means", "projection_low"),
        ("component_factors", "related", "correlation"),
        ("vector_components", "coordinates", "share"),
        ("logit_lens", "lens", "token"),
    ],
)
def test_figures_need_their_table_leave_it_unchanged_and_share_one_style(name, fixture, column, request):
    draw, table = getattr(plots, name), request.getfixturevalue(fixture)
    producer, before = name.replace("dose_response", "effectiveness"), table.copy(deep=True)
    assert_raises(rf"plots\.{name}.*lacks.*{column}.*{producer}", draw, table.drop(columns=column))
    assert_raises(rf"plots\.{name}.*no rows.*{producer}", draw, table.iloc[:0])
    figure = draw(table)
    pd.testing.assert_frame_equal(table, before)
    assert figure.to_json()
    layout = figure.layout
    assert layout.template == style.template()
    assert layout.template.layout.legend.orientation == "h", "a narrow figure keeps its width"
    assert layout.width == 900
    assert 350 <= layout.height <= 700
    assert re.search("pair|prompt|coordinate|layer", subtitle_of(figure))
    for axes in (figure.select_xaxes, figure.select_yaxes):
        assert any(axis.title.text for axis in axes() if axis.visible is not False)


@pytest.mark.parametrize(
    ("name", "fixture", "column", "value", "message"),
    [
        ("separation", "separated", "folds", "1", "'1': expected numbers"),
        ("pca", "components", "explained_2", "1", "'1': expected numbers"),
        ("separation", "separated", "paired_accuracy", True, "True: expected numbers"),
        ("separation", "separated", "layer", 1.0, "1.0: expected whole numbers"),
        ("effectiveness", "pooled", "control", pd.NA, "<NA>: expected true or false"),
        ("effectiveness", "pooled", "operation", 1, "1: expected text in every row"),
    ],
)
def test_a_column_of_another_type_raises(name, fixture, column, value, message, request):
    table = request.getfixturevalue(fixture).astype({column: object})
    table.loc[table.index[0], column] = value
    assert_raises(rf"plots\.{name}: the column '{column}' holds {message}", getattr(plots, name), table)


@pytest.mark.parametrize(
    ("name", "fixture", "options", "message"),
    [
        ("effectiveness", "pooled", {"value": "mass"}, "'signal_rate' or 'logit_difference' or 'shift'; got"),
        ("effectiveness", "swept", {"facet": "politeness"}, "lacks the columns politeness; it has"),
        ("effectiveness", "swept", {}, r"split by \['truth'\].*facet"),
        ("dose_response", "swept", {}, r"split by \['truth'\].*facet"),
        ("dose_response", "swept", {"facet": "truth", "x": "layer"}, "'dose' or 'multiplier'"),
        ("signal_detection", "detected", {"layer": 7}, r"no layer 7 .* 3, 5, 10, 3\+5"),
        ("pca", "components", {"y": 7}, "PC7"),
        ("pca", "components", {"x": 2, "y": 2}, "two different"),
        ("pca", "components", {"layer": 5}, "no layer 5 in the table; it has 0, 4, 9"),
        ("pca", "components", {"symbol": "letter"}, "letter"),
        ("projections", "projected", {"layers": [5]}, r"layers=\[5\]: expected one or more of 0, 4, 9"),
        ("projections", "projected", {"layers": []}, r"layers=\[\]: expected one or more of 0, 4, 9"),
        ("projections", "projected", {"layer": 0, "layers": "all"}, "layer=… is where the slider starts"),
        ("projections", "projected", {"facet": "pair"}, "at most 4 panels"),
        ("component_factors", "related", {"layer": 7}, "no layer 7 in the table; it has 0, 4, 9"),
        ("vector_components", "coordinates", {"layer": 7}, "no layer 7 in the table; it has 3, 8"),
        ("mean_projections", "means", {"value": "effect"}, "'projection' or 'cosine'; got"),
        ("logit_lens", "lens", {"value": "rank"}, "'probability' or 'logit'; got"),
        ("logit_lens", "lens", {"layers": [4, 7]}, r"layers=\[4, 7\]: expected one or more of 0, 4, 9"),
    ],
)
def test_arguments_that_do_not_fit_the_table_raise(name, fixture, options, message, request):
    assert_raises(message, getattr(plots, name), request.getfixturevalue(fixture), **options)


def test_tables_that_cannot_be_drawn_raise(
    swept, pooled, detected, components, projected, means, related, coordinates, lens
):
    unsteered, projected_out = (rows_of(pooled, operation=name) for name in ("none", "project_out"))
    recorded = swept.assign(dose=swept["dose"].where(swept["operation"] == "none"))
    three = means_table(projected.assign(half=projected["pair"] < 3), by=["side", "truth", "half"])
    sweep = pd.DataFrame({"prompt_id": [0], "prompt": ["a"], "multiplier": [1.0], "text": ["b"]})
    for draw, table, options, message in (
        (plots.effectiveness, pooled.assign(accuracy=np.nan), {}, "NaN in every row"),
        (plots.effectiveness, unsteered, {}, "no steered condition"),
        (plots.effectiveness, sweep_table(truths="abcdefg"), {"facet": "truth"}, "too many panels"),
        (plots.dose_response, recorded, {"facet": "truth", "x": "dose"}, "no steered row has a dose"),
        (plots.dose_response, projected_out, {}, "no steered row has a multiplier"),
        (plots.signal_detection, detected.assign(d_prime=np.nan), {}, "signal and noise"),
        (plots.side_by_side, sweep, {}, "side by side first"),
        (plots.mean_projections, means.drop(columns="spread_low"), {}, "lacks the columns spread_low"),
        (plots.mean_projections, three, {}, r"split by \['side', 'truth', 'half'\]"),
        (plots.logit_lens, lens_table(multipliers=range(1, 6)), {}, r"5 combinations of \['multiplier'\]"),
        # With a slider, the text of one prompt would be at the point of another.
        (plots.pca, components.drop(index=5), {}, "each pair and side once"),
        (plots.projections, projected.drop(index=5), {}, "each pair and side once"),
        (plots.pca, pd.concat([components] * 2), {}, "each pair and side once"),
        (plots.projections, pd.concat([projected] * 2), {}, "each pair and side once"),
        (plots.component_factors, pd.concat([related] * 2), {}, "expected one table"),
        (plots.vector_components, pd.concat([coordinates] * 2), {}, "expected one vector"),
        (plots.logit_lens, pd.concat([lens] * 2), {}, "share their layer and rank"),
    ):
        assert_raises(message, draw, table, **options)


# --- text and colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (counted, ([3, 5, 4], "pair"), "3 to 5 pairs"), (counted, ([1.0, np.nan], "pair"), "1 pair"),
        (counted, ([2.0, 2], "pair"), "2 pairs"), (counted, ([0.5], "pair"), "0.5 pairs"),
        (counted, ([pd.NA], "pair"), "no pairs"), (counted, ([12345678], "pair"), "12345678 pairs"),
        (number, (-0.12345,), "−0.123"), (number, (float("nan"),), "–"),
        (levels, (pd.Series(["negative", "positive"]),), ["positive", "negative"]),
        (levels, (pd.Series([False, True]),), ["True", "False"]),
        (levels, (pd.Series([10, 9, 2, None]),), ["2.0", "9.0", "10.0", "missing"]),
        (visible, (" the",), "␣the"), (visible, ("\n\t",), "⏎⇥"), (visible, ("\u200b",), "<U+200B>"),
        (visible, ("\ufe0f",), "<U+FE0F>"), (visible, ("e\u0301",), "e\u0301"),
        (visible, ("\xa0",), "<U+00A0>"), (visible, ("日本é",), "日本é"),
    ],
)  # fmt: skip
def test_counts_numbers_levels_and_tokens_as_text(function, arguments, text):
    assert function(*arguments) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""), (1, "; grey: 1 control direction (p ≥ 0.5)"), (19, "; grey: 19 control directions"),
        (18, "; grey: 18 control directions (p ≥ 0.053)"),
    ],
)  # fmt: skip
def test_subtitles_say_which_p_value_so_few_controls_can_reach(count, text):
    assert controls_text(count) == text


def test_escaped_text_reads_as_it_was_written_and_has_no_active_character():
    escaped = escape(NASTY)
    assert html.unescape(escaped) == NASTY
    assert not set("<>$") & set(escaped)
    assert "%{" not in escaped


def test_wrapping_keeps_every_character_of_a_short_text_and_both_ends_of_a_long_one():
    short = "word & <i> " * 20
    assert wrapped(short).replace("<br>", " ").strip() == escape(short).strip()
    assert max(map(len, wrapped("x" * 500).split("<br>"))) <= 72
    long = wrapped("begin " + "x" * 5000 + " Answer: (A")
    assert long.startswith("begin")
    assert long.endswith("Answer: (A")
    assert len(long) < 700
    assert wrapped("one\n\ntwo") == "one<br><br>two"


@pytest.mark.parametrize("longest", range(20, 60))
def test_long_texts_are_not_cut_within_a_special_token(longest):
    text = "Hello you<|im_end|>\n<|im_start|>assistant\n" + "x" * 40 + "<|im_end|>" * 3 + " [/INST] good bye"
    rest = re.sub(r"<\|im_(end|start)\|>|\[/INST\]", "", shortened(text, longest))
    assert not set(rest.replace("[…]", "")) & set("<|>[]/_I"), rest


def test_a_level_has_the_same_colour_with_any_other_levels():
    together = style.level_colours(["film", "negative", "positive"])
    assert style.level_colours(["positive"])["positive"] == together["positive"]
    assert style.level_colours(["True"])["True"] == style.level_colours(["false", "true"])["true"]
    assert len(set(style.level_colours("abcdefg").values())) == 7
    assert_raises("Group them first", style.level_colours, "abcdefgh")


def test_multipliers_diverge_blue_and_red_and_deepen_with_size():
    colours = style.multiplier_colours([-8, -2, 0, 2, 8, float("nan")])
    assert set(colours) == {-8, -2, 0, 2, 8}
    red, _, blue = np.array([colours[each][4:-1].split(",") for each in (-8, -2, 2, 8)], int).T
    assert list(red > blue) == [False, False, True, True]
    assert pixels(colours[-8]) < pixels(colours[-2])
    assert pixels(colours[8]) < pixels(colours[2])


def test_separation_shows_the_curve_its_band_the_null_and_chance(separated):
    figure = plots.separation(separated.sample(frac=1, random_state=0))
    line = named(figure, "mean_difference")
    assert list(line.x) == list(range(6))
    assert list(line.y) == list(separated["paired_accuracy"])
    null, _, threshold, band, _ = figure.data
    assert list(band.y) == [*separated["paired_accuracy_high"], *separated["paired_accuracy_low"][::-1]]
    assert (list(null.y), list(threshold.y)) == ([0.62] * 6 + [0.35] * 6, [0.71] * 2)
    assert "at each layer" in null.name
    assert "at all layers together" in threshold.name
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == 0.5
    low, high = figure.layout.yaxis.range
    assert low < min(separated["paired_accuracy_low"].min(), 0.35)
    assert high >= 1
    for part in ("AUC", "d′", "p = 0.0099 for this layer alone", "for all layers p = 0.01", "layer 0"):
        assert part in line.hovertext[0]
    assert "4 of 6 layers" in title_of(figure)
    assert subtitle_of(figure).endswith("; p ≤ 0.05, corrected for all layers")


def test_separation_gives_each_method_a_line_with_its_name_at_its_end(separated):
    other = separated.assign(method="lda_direction", paired_accuracy=0.5, p_corrected=[0.01, *[0.9] * 5])
    figure = plots.separation(pd.concat([separated, other]))
    assert "4 and 1 of 6 layers" in title_of(figure)
    assert sorted(filter(None, line_labels(figure))) == ["lda_direction", "mean_difference"]
    assert set(named(figure, "lda_direction").y) == {0.5}
    assert named(figure, "mean_difference").line.color != named(figure, "lda_direction").line.color
    assert not figure.layout.showlegend
    assert sum("together" in (trace.name or "") for trace in figure.data) == 2
    by_vector = plots.separation(separated.assign(vector=["a", "b"] * 3))
    assert list(named(by_vector, "b").x) == [1, 3, 5]
    assert_escaped(plots.separation(separated.assign(method=NASTY)))


def test_separation_says_that_few_shuffles_cannot_be_significant(separated):
    tested = ["null_low", "null_high", "null_mean", "p_value", "p_corrected", "null_max"]
    figure = plots.separation(separated.assign(**dict.fromkeys(tested, np.nan)))
    assert "p ≤" not in subtitle_of(figure)
    assert not any("shuffled" in (trace.name or "") for trace in figure.data)
    figure = plots.separation(separated.assign(null_max=np.nan, p_corrected=1 / 11))
    assert subtitle_of(figure).endswith("; 19 shuffles or more are needed to reach p ≤ 0.05")
    assert not any("together" in (trace.name or "") for trace in figure.data)


def after(figure, *changes):
    """What Plotly.update would make of a figure's traces and layout."""
    figure = go.Figure(figure)
    for data, *layouts in changes:
        for name, values in data.items():
            for trace, value in zip(figure.data, values, strict=True):
                trace[name] = value
        for layout in layouts:
            figure.update_layout(layout)
    return figure


def assert_shows(figure, table, layer, across, up):
    """Compare the visible points, by pair and side as their hovers name them."""
    points = {}
    for trace in figure.select_traces({"visible": True}):
        for text, *point in zip(trace.hovertext, trace.x, trace.y, strict=True):
            pair, side = re.search(r"<b>pair (\d+)</b>.* side: (\w+)", text).groups()
            points[int(pair), side] = point
    assert points == {
        (row["pair"], row["side"]): [float(f"{row[f'PC{component}']:.5g}") for component in (across, up)]
        for row in rows_of(table, layer=layer).to_dict("records")
    }


def test_pca_menu_and_slider_reach_every_layer_and_pair_of_components_in_either_order(components):
    figure = plots.pca(components, symbol="truth", layer=4)
    slider, menu = figure.layout.sliders[0], figure.layout.updatemenus[0]
    assert [step.label for step in slider.steps] == ["0", "4", "9"]
    assert [button.label for button in menu.buttons] == ["PC1 / PC2", "PC1 / PC3", "PC2 / PC3"]
    buttons = zip(menu.buttons, [(1, 2), (1, 3), (2, 3)], strict=True)
    for step, (button, pair) in itertools.product(slider.steps, buttons):
        one, other = after(figure, step.args, button.args), after(figure, button.args, step.args)
        assert one.to_dict() == other.to_dict()
        layer = int(step.label)
        assert_shows(one, components, layer, *pair)
        trace = next(one.select_traces({"visible": True}))
        for letter, component in zip("xy", pair, strict=True):
            axis = one.layout[trace[f"{letter}axis"].replace(letter, f"{letter}axis", 1)]
            share = 100 * (0.4 / component + layer / 100)
            assert axis.title.text == f"PC{component} ({share:.3g}% of the variance)"
            assert axis.visible
        assert len(list(one.select_xaxes({"visible": True}))) == 1
        # without it, the white ground of an unseen pair of axes covers the points
        assert all(axis.overlaying == "x" for axis in list(one.select_xaxes())[1:])


def test_pca_says_of_what_its_components_are(components):
    for of, subtitle, share in (
        ("pooled", "both sides pooled", "of the variance"),
        ("differences", "mean kept", "of the differences' sum of squares"),
        ("centred_differences", "differences, mean removed", "of the differences' variance"),
    ):
        figure = plots.pca(components.assign(decomposed=of))
        assert subtitle in subtitle_of(figure)
        assert all(share in axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis))
    mixed = np.where(components["pair"] == 0, "pooled", "differences")
    for of in (mixed, "raw"):
        assert_raises("column decomposed", plots.pca, components.assign(decomposed=of))


def test_pca_starts_at_the_selected_components_and_layer(components):
    figure = plots.pca(components, x=4, y=2, layer=9)
    assert_shows(figure, components, 9, 4, 2)
    assert figure.layout.sliders[0].active == 2
    assert figure.layout.updatemenus[0].buttons[0].label == "PC4 / PC2"
    two = components.drop(columns=["PC3", "PC4", "explained_3", "explained_4"])
    assert not plots.pca(two).layout.updatemenus


def test_pca_colours_by_one_factor_and_marks_by_another(components):
    figure = plots.pca(components, colour="truth", symbol="side")
    shown = list(figure.select_traces({"visible": True}))
    names = [f"{truth}, {side}" for truth in (True, False) for side in SIDES]
    assert [trace.name for trace in shown] == names
    assert shown[0].marker.color == shown[1].marker.color == style.MEANINGS["true"]
    assert shown[0].marker.symbol == shown[2].marker.symbol != shown[1].marker.symbol
    assert figure.layout.legend.title.text == "truth, side"


def test_hovers_show_the_prompt_as_text_once_for_all_layers(components, projected):
    for figure, copies in ((plots.pca(components), 3), (plots.projections(projected), 1)):
        assert_escaped(figure)
        shown = sum("positive prompt 3" in text for text in texts_of(figure))
        assert shown == copies, "once for each pair of components"


def test_projection_histograms_hold_the_layers_values_and_share_their_bins(projected):
    figure = plots.projections(projected, by="side", facet="truth", layer=0)
    step = figure.layout.sliders[0].steps[2]
    assert step.label == "9"
    for drawn, layer in ((figure, 0), (after(figure, step.args), 9)):
        panels = itertools.product([True, False], SIDES)
        marks = [drawn.select_traces({"type": name}) for name in ("histogram", "scatter")]
        for (truth, side), histogram, strip in zip(panels, *marks, strict=True):
            rows = rows_of(projected, layer=layer, truth=truth, side=side).sort_values("pair")
            assert histogram.bingroup == "projection"
            np.testing.assert_allclose(histogram.x, rows["projection"], rtol=1e-4)
            np.testing.assert_allclose(strip.x, rows["projection"], rtol=1e-4)
            np.testing.assert_allclose(strip.customdata, rows["cosine"], rtol=1e-4)
            for pair, text in zip(rows["pair"], strip.hovertext, strict=True):
                assert f"pair {pair}<" in text
    assert figure.layout.barmode == "overlay"
    assert titles_of(figure) == ["truth: True", "truth: False"]
    assert len(entries(figure)) == 2


@pytest.mark.parametrize(("facet", "panels"), [(None, 1), ("truth", 3)])
def test_all_layers_on_one_sheet_are_histograms_of_their_own(projected, facet, panels):
    figure = plots.projections(projected, layers="all", facet=facet, overall=bool(facet))
    assert not figure.layout.sliders
    expected = ["layer 0", "layer 4"] if panels == 1 else ["layer 0, all", "layer 0, truth: True"]
    assert titles_of(figure)[:2] == expected
    drawn = itertools.product((0, 4, 9), (None, True, False)[:panels], SIDES)
    for (layer, truth, side), trace in zip(drawn, figure.data, strict=True):
        ends = rows_of(projected, layer=layer)["projection"].agg(["min", "max"])
        where = {} if truth is None else {"truth": truth}
        values = rows_of(projected, layer=layer, side=side, **where)["projection"]
        edges, counts = np.array(trace.x[::2], float), np.array(trace.y[1:-1:2])
        assert trace.name == side
        np.testing.assert_allclose(edges[[0, -1]], ends, rtol=1e-4)
        assert list(counts) == list(np.histogram(values, np.linspace(*ends, len(edges)))[0])
        assert counts.sum() == len(values)
    ranges = {axis.range for axis in figure.select_xaxes() if axis.range}
    assert len(ranges) == 3  # of each layer, common to its panels
    assert titles_of(plots.projections(projected, layers=[9, 0])) == ["layer 9", "layer 0"]


def test_a_panel_of_all_prompts_is_before_those_of_a_factor(projected):
    figure = plots.projections(projected, facet="truth", overall=True, layer=4)
    assert titles_of(figure) == ["all", "truth: True", "truth: False"]
    for drawn, layer in ((figure, 4), (after(figure, figure.layout.sliders[0].steps[2].args), 9)):
        histograms = list(drawn.select_traces({"type": "histogram"}))
        assert [len(trace.x) for trace in histograms] == [6, 6, 3, 3, 3, 3]
        for side, trace in zip(SIDES, histograms, strict=False):
            rows = rows_of(projected, layer=layer, side=side).sort_values("pair")
            np.testing.assert_allclose(trace.x, rows["projection"], rtol=1e-4)
    assert len(entries(figure)) == 2
    four = projected.assign(topic=projected["pair"] % 4)
    assert len(titles_of(plots.projections(four, facet="topic"))) == 4
    assert_raises("at most 4 panels", plots.projections, four, facet="topic", overall=True)
    assert plots.projections(projected, overall=True) == plots.projections(projected)


# --- effectiveness and dose --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["accuracy", "signal_rate", "logit_difference", "shift"])
def test_effectiveness_draws_each_condition_at_its_layer_with_its_interval(pooled, value):
    figure = plots.effectiveness(pooled, value=value)
    positions = dict(zip(figure.layout.xaxis.ticktext, figure.layout.xaxis.tickvals, strict=True))
    assert [positions[layer] for layer in ("3", "5", "10")] == [3, 5, 10]
    assert positions["3+5"] > 10
    for multiplier, name in ((-4.0, "−4"), (2.0, "+2"), (np.nan, "project out")):
        line = named(figure, name)
        for layers in LAYERS:
            row = row_of(pooled, vector="honesty", layers=layers, multiplier=multiplier)
            at = list(line.x).index(positions[layers])
            assert line.y[at] == row[value]
            np.testing.assert_allclose(line.y[at] + line.error_y.array[at], row[f"{value}_high"])
            np.testing.assert_allclose(line.y[at] - line.error_y.arrayminus[at], row[f"{value}_low"])
            for part in (f"layer {layers}", "n = 50", number(row["dose"])):
                assert part in line.hovertext[at]
        assert np.isnan(line.y[3]), "no line leads from layer 10 to 3+5"
        assert np.isfinite(np.asarray(line.error_y.array, dtype=float)).all()


def control_values(table, size, value, **where):
    """A value of the controls of one |multiplier| (NaN: without one), condition by condition."""
    rows = rows_of(table, control=True, **where)
    return rows_of(rows.assign(multiplier=rows["multiplier"].abs()), multiplier=size)[value]


def bounds(*groups):
    """Outline of a band: the largest value of each group, and back along the smallest."""
    return [*(each.max() for each in groups), *(each.min() for each in reversed(groups))]


def test_effectiveness_shows_the_unsteered_value_and_the_range_of_the_controls_of_each_size(pooled):
    figure = plots.effectiveness(pooled)
    unsteered, row = named(figure, "unsteered"), row_of(pooled, operation="none")
    assert set(unsteered.y) == {row["accuracy"]}
    assert unsteered.line.dash == "dash"
    around = figure.data[figure.data.index(unsteered) - 1]
    assert set(pd.Series(around.y).dropna()) == {row["accuracy_low"], row["accuracy_high"]}
    assert around.fill is None, "only bands of controls are filled"
    pooled.loc[pooled["operation"] == "none", ["shift", "shift_low", "shift_high"]] = 0.0
    unmoved = plots.effectiveness(pooled, value="shift").data
    assert [trace.name for trace in unmoved if trace.mode == "lines" and not trace.fill] == ["unsteered"]
    for name, size in (("controls, ±2", 2), ("controls, ±4", 4), ("controls, project out", np.nan)):
        singles, layer_set = figure.select_traces({"name": name})
        assert list(singles.x) == [3, 5, 10, 10, 5, 3]
        *groups, both = (control_values(pooled, size, "accuracy", layers=layers) for layers in LAYERS)
        assert {len(each) for each in groups} == {3 if np.isnan(size) else 6}
        np.testing.assert_allclose(singles.y, bounds(*groups))
        np.testing.assert_allclose(sorted(set(layer_set.y)), [both.min(), both.max()])
    assert controls_text(3) in subtitle_of(figure)
    assert "ring" in subtitle_of(figure)
    order = [trace.name for trace in figure.data if (trace.name or "").startswith("controls")]
    assert order.index("controls, ±4") < order.index("controls, ±2"), "the smaller is drawn above the larger"
    assert pixels(named(figure, "controls, ±2").fillcolor) < pixels(named(figure, "controls, ±4").fillcolor)
    lines = [index for index, trace in enumerate(figure.data) if trace.mode == "lines+markers"]
    assert len(order) < min(lines), "lines are drawn above all bands"


@pytest.mark.parametrize("facet", [None, "truth"])
def test_a_point_within_its_own_controls_is_a_ring_and_panels_have_their_own_rows(swept, pooled, facet):
    table = swept if facet else pooled
    figure = plots.effectiveness(table, facet=facet)
    truths = {"x": "true", "x2": "false"} if facet else {"x": None}
    assert titles_of(figure) == [f"truth: {truth}" for truth in truths.values() if truth]
    assert facet is None or figure.layout.yaxis2.matches == "y"
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert len(names) == len(set(names))
    lines, dots = (list(figure.select_traces({"mode": mode})) for mode in ("lines+markers", "markers"))
    assert len(lines) == 5 * len(truths)
    rings = 0
    for line, dot in zip(lines, dots, strict=True):
        assert dot.legendgroup == line.legendgroup
        assert (dot.xaxis, dot.showlegend, dot.hoverinfo) == (line.xaxis, False, "skip")
        multiplier = np.nan if line.name == "project out" else float(line.name.replace("−", "-"))
        where = {"truth": truths[line.xaxis]} if facet else {}
        shown = set(zip(dot.x, dot.y, strict=True))
        for x, y, text in zip(line.x, line.y, line.hovertext, strict=True):
            if not text:
                continue
            where["layers"] = text.split("layer ")[1].split(",")[0]
            assert y == row_of(table, vector="honesty", multiplier=multiplier, **where)["accuracy"]
            null = control_values(table, abs(multiplier), "accuracy", **where)
            assert ((x, y) in shown) == (null.min() <= y <= null.max())
            assert text.endswith(f"its controls {number(null.min())} to {number(null.max())}")
            rings += (x, y) in shown
    assert 0 < rings < 4 * len(lines)


def test_operations_differ_by_name_and_dash_and_have_their_own_controls():
    table = pooled_table(operations=("add", "set"))
    table.loc[table["control"] & (table["operation"] == "set"), "accuracy"] += 5
    figure = plots.effectiveness(table)
    added, replaced = (named(figure, f"{operation} +4") for operation in ("add", "set"))
    assert added.line.dash != replaced.line.dash
    assert added.line.color == replaced.line.color
    expected = row_of(table, vector="honesty", operation="set", layers="3", multiplier=4.0)
    assert replaced.y[0] == expected["accuracy"]
    assert max(named(figure, "controls, add ±4").y) < 1
    assert max(named(figure, "controls, set ±4").y) > 5
    for line, start in ((added, "its controls 0."), (replaced, "its controls 5.")):
        assert all(start in text for text in line.hovertext if text)


def test_without_controls_there_is_no_band_and_no_ring_also_in_the_subtitle(pooled):
    bare = rows_of(pooled, control=False)
    for figure in (plots.effectiveness(bare), plots.dose_response(bare)):
        assert not any("controls" in (trace.name or "") for trace in figure.data)
        assert not any(len(trace.x) for trace in figure.select_traces({"mode": "markers"}))
        assert "ring" not in subtitle_of(figure)


def test_several_vectors_get_panels_with_their_own_controls():
    table = pooled_table(vectors=("honesty", "lda"))
    owners = {"random 0": "honesty", "random 1": "lda"}
    table["control_of"] = table["vector"].map(owners).fillna("")
    table["accuracy"] += table["control_of"].map({"honesty": 1, "lda": -1, "": 0})
    table["vector"] = table["vector"].replace({name: f"random 1 ({owner})" for name, owner in owners.items()})
    figure = plots.effectiveness(table)
    assert titles_of(figure) == ["honesty", "lda"]
    for axis, owner in (("x", "honesty"), ("x2", "lda")):
        band = next(figure.select_traces({"name": "controls, ±4", "xaxis": axis}))
        rows = table[table["control_of"].isin([owner, ""])]
        values = control_values(rows, 4, "accuracy", layers="3")
        np.testing.assert_allclose([band.y[0], band.y[-1]], [values.max(), values.min()])


@pytest.mark.parametrize(
    ("layers", "positions"),
    [
        (["17+31", "31", "", "2", "10+11", "17"],
         {"2": 2, "17": 17, "31": 31, "10+11": 38.25, "17+31": 45.5}),
        (["3+5"], {"3+5": 1}),
        (["17", "31", "18", "19", "", "17+31"], {"17": 0, "18": 1, "19": 2, "31": 3, "17+31": 4}),
    ],
)  # fmt: skip
def test_single_layers_are_at_their_index_and_sets_after_them_unless_few_are_far_apart(layers, positions):
    result = layer_positions(pd.DataFrame({"layers": layers}))
    assert result == positions
    assert list(result) == list(positions)


def test_controls_at_one_layer_alone_have_a_visible_band(swept):
    figure = plots.effectiveness(swept[~swept["control"] | (swept["layers"] == "5")], facet="truth")
    bands = [trace for trace in figure.data if "controls" in (trace.name or "")]
    assert bands
    assert all((min(band.x), max(band.x)) == pytest.approx((4.7, 5.3)) for band in bands)


def test_lines_over_layers_far_apart_have_gaps_and_their_whiskers_are_next_to_each_other(swept):
    wide = rows_of(swept, control=False).replace({"layers": {"10": "30", "3": "4"}})
    figure = plots.effectiveness(wide, facet="truth")
    lines = list(figure.select_traces({"mode": "lines+markers", "xaxis": "x"}))
    assert list(figure.layout.xaxis.ticktext) == ["4", "5", "30", "3+5"]
    for position in range(4):
        xs = [next(x for x in line.x if x is not None and abs(x - position) < 0.5) for line in lines]
        assert len(set(xs)) == len(lines)
        assert max(xs) + min(xs) == pytest.approx(2 * position)
    for line in lines:  # nothing is drawn from 5 to 30, nor to the set
        assert [x is None or x != x for x in line.x] == [False, False, True, False, True, False]


def test_dose_response_goes_through_the_unsteered_condition_among_controls_of_either_sign(swept):
    figure = plots.dose_response(swept, facet="truth")
    for truth, axis in (("true", "x"), ("false", "x2")):
        line = named(figure, "5", axis)
        assert list(line.x) == [-0.4, -0.2, 0.0, 0.2, 0.4]
        before = row_of(swept, operation="none", truth=truth)["shift"]
        rows = rows_of(swept, truth=truth, vector="honesty", layers="5", operation="add")
        rows = rows.sort_values("multiplier")
        down, up = (rows["shift"][sign * rows["multiplier"] > 0] for sign in (-1, 1))
        assert list(line.y) == [*down, before, *up]
        bands = list(figure.select_traces({"name": "controls", "xaxis": axis}))
        assert {tuple(trace.x[:5]) for trace in bands} == {(-0.4, -0.2, 0.0, 0.2, 0.4)}
        expected = []
        for layers in LAYERS:
            small, large = (
                control_values(swept, size, "shift", layers=layers, truth=truth) for size in (2, 4)
            )
            expected.append(bounds(large, small, pd.Series([before]), small, large))
        assert sorted(list(trace.y) for trace in bands) == sorted(expected)
        # one opaque grey: bands that lie upon each other look like one
        assert {(trace.fillcolor, trace.fill) for trace in bands} == {(bands[0].fillcolor, "toself")}
        assert bands[0].fillcolor.startswith("#")
    assert named(figure, "3+5").line.dash == "dot"
    assert controls_text(3) in subtitle_of(figure)
    assert sum(bool(trace.showlegend) for trace in figure.select_traces({"name": "controls"})) == 1
    half = swept[~swept["control"] | (swept["multiplier"] > 0)]
    band = next(plots.dose_response(half, facet="truth").select_traces({"name": "controls"}))
    assert max(band.x) == pytest.approx(-min(band.x)), "on both sides, though of one sign"
    assert max(band.x) > 0


def test_a_dose_within_its_own_layers_controls_is_a_ring(pooled):
    figure = plots.dose_response(pooled)
    for layers in LAYERS:
        line = named(figure, layers)
        (dots,) = figure.select_traces({"mode": "markers", "legendgroup": layers})
        expected = []
        for x, y in zip(line.x, line.y, strict=True):
            null = control_values(pooled, 10 * abs(x), "shift", layers=layers) if x else pd.Series([0.0])
            if null.min() <= y <= null.max():
                expected.append((x, y))
        assert list(zip(dots.x, dots.y, strict=True)) == expected


def test_more_than_five_control_vectors_over_multipliers_are_one_band():
    table = pooled_table(controls=6)
    ranks = multiplier_ranks(table, caller="")
    lines, (band,) = (
        list(control_marks(panels_of(rows, None, caller="")[0], "shift", ranks, str))
        for rows in (table[table["vector"] != "random 5"], table)
    )
    assert len(lines) == 5 * len(LAYERS)
    assert list(band.x) == [0, 1, 2, 3, 3, 2, 1, 0]
    small, large = (control_values(table, size, "shift") for size in (2, 4))
    np.testing.assert_allclose(band.y, bounds(large, small, small, large))


def test_dose_response_is_by_multiplier_where_no_dose_is_known(swept):
    recorded = swept.assign(dose=swept["dose"].where(swept["operation"] == "none"))
    for table, options in ((recorded, {}), (swept, {"x": "multiplier"})):
        figure = plots.dose_response(table, facet="truth", **options)
        assert list(named(figure, "5", "x").x) == sorted([0.0, *MULTIPLIERS])
        assert figure.layout.xaxis.title.text == "multiplier of the vector"
        assert "by multiplier" in figure.layout.title.text


def test_many_layers_have_a_colour_bar_instead_of_a_long_legend(pooled):
    steered = rows_of(pooled, layers="3", control=False)
    copies = [steered.assign(layers=str(layer)) for layer in (3, *range(10, 22))]
    figure = plots.dose_response(pd.concat([rows_of(pooled, operation="none"), *copies]))
    assert not any(trace.showlegend for trace in figure.data)
    (bar,) = [trace for trace in figure.data if trace.marker.showscale or trace.marker.colorbar.title.text]
    assert (bar.marker.cmin, bar.marker.cmax) == (3, 21)


# --- signal detection --------------------------------------------------------------------------------------


def test_signal_detection_shows_one_layers_path_in_the_order_of_the_multiplier(detected):
    figure = plots.signal_detection(detected, layer=5)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == list(LAYERS)
    for step in steps:
        shown = {trace.name: trace for trace in after(figure, step.args).select_traces({"visible": True})}
        assert sorted(shown) == ["add", "control directions", "project out", "unsteered"]
        path = shown["add"]
        rows = detected[~detected["control"] & detected["layers"].isin([step.label, ""])]
        rows = rows.dropna(subset="multiplier").sort_values("multiplier")
        assert list(path.x) == list(rows["criterion"])
        assert list(path.y) == list(rows["d_prime"])
        assert list(path.text) == ["−4", "−2", "", "+2", "+4"]
        np.testing.assert_allclose(path.error_x.array, rows["criterion_high"] - rows["criterion"])
        np.testing.assert_allclose(path.error_y.arrayminus, rows["d_prime"] - rows["d_prime_low"])
        assert len(shown["control directions"].x) == 3 * 5
    assert figure.layout.sliders[0].active == 1
    assert [trace.visible for trace in figure.data] == steps[1].args[0]["visible"]
    together = plots.signal_detection(detected.assign(d_prime=1.0, criterion=0.5), layer=5)
    (path,) = together.select_traces({"name": "add", "visible": True})
    assert sorted(filter(None, path.text)) == ["−4 to +4"], "one label at the same point"


def test_signal_detection_has_the_auc_and_the_verdict_where_they_are_known(detected):
    scored = detected.assign(auc=0.9, auc_low=0.85, auc_high=0.95, verdict="bias")
    for table, known in ((detected, False), (scored, True), (scored.assign(auc=np.nan, verdict=""), False)):
        texts = [text for trace in plots.signal_detection(table).data for text in trace.hovertext]
        for part in ("AUC 0.9 [0.85, 0.95]", "verdict: bias"):
            assert all((part in text) == known for text in texts)


def test_signal_detection_has_the_same_axes_at_all_layers_with_their_meaning(detected):
    figure = plots.signal_detection(detected)
    axes = figure.layout.xaxis, figure.layout.yaxis
    for axis, value, meaning in zip(axes, ("criterion", "d_prime"), ("signal more often", "d′"), strict=True):
        assert meaning in axis.title.text
        real = rows_of(detected, control=False)
        assert axis.range[0] < min(real[f"{value}_low"].min(), detected[value].min())
        assert axis.range[1] > max(real[f"{value}_high"].max(), detected[value].max())
    assert any("hits 80%, false alarms 30%" in text for text in texts_of(figure))


@pytest.mark.parametrize(("to", "millimetres"), [("column", 85), ("page", 178)])
def test_a_printed_figure_has_the_width_of_a_column_or_page_and_nothing_to_click(detected, to, millimetres):
    figure = plots.signal_detection(detected, layer=5)
    before = json.loads(figure.to_json())
    printed = plots.for_print(figure, to)
    layout = printed.layout
    assert json.loads(figure.to_json()) == before
    assert layout.width == pytest.approx(millimetres / 25.4 * 96, abs=1)
    assert (layout.sliders, layout.title.text, layout.legend.orientation) == ((), None, "h")
    assert [trace.visible for trace in printed.data] == [trace.visible for trace in figure.data]
    titled = plots.for_print(figure, to, title=True, height=500).layout
    assert titled.height >= 500
    assert titled.title.text == figure.layout.title.text
    assert_raises("'column' or 'page'", plots.for_print, figure, "poster")


# Names of columns of figures and tables.
FACTORS = (
    "honest", "value", "rank", "level", "count", "low", "label", "x", "y", "group", "size", "name", "again",
    "row_name",
)  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_may_have_any_name_and_only_drawn_columns_are_checked(name, swept, projected, components):
    sweep = grouped_sweep().drop(columns="group").astype({"topic": str})
    slopes, lines = prompt_slopes(sweep), steerability(sweep, by="topic", resamples=5)
    for draw, table, factor in (
        (partial(plots.effectiveness, facet=name), swept, "truth"),
        (partial(plots.dose_response, facet=name), swept, "truth"),
        (partial(plots.prompt_slopes, facet=name), slopes, "topic"),
        (partial(plots.steerability, facet=name), lines, "topic"),
        (partial(plots.projections, facet=name), projected, "truth"),
        (partial(plots.pca, colour=name), components, "truth"),
    ):
        as_text = table.assign(**{factor: table[factor].map("level {}".format)})
        (option,) = draw.keywords
        expected = draw.func(as_text.rename(columns={factor: "zz"}), **{option: "zz"}).to_json()
        renamed = as_text.rename(columns={factor: name})
        assert draw(renamed).to_json() == expected.replace("zz", name), draw.func.__name__


@pytest.mark.parametrize("n_panels", [2, 3, 4])
def test_long_titles_of_panels_do_not_run_into_each_other(n_panels):
    """At 700 pixels a panel has 540 / columns of them, and a character of the title about 6.8."""
    figure = plots.dose_response(sweep_table(truths="abcdef"[:n_panels]), facet="truth")
    titles = [axis.title.text for axis in figure.select_xaxes() if axis.title.text]
    assert "stream norm), signed" in titles[0].replace("<br>", " ")
    longest = max(len(line) for title in titles for line in title.split("<br>"))
    assert 6.8 * longest * len(titles) <= 560


@pytest.mark.parametrize("columns", [1, 3])
def test_layer_axes_have_a_few_ticks_of_whole_layers(columns):
    for n_layers in (12, 30, 48, 80):
        positions = {str(layer): float(layer) for layer in range(n_layers)} | {"17+31": n_layers + 9.0}
        *singles, layer_set = layer_axis(positions, columns)["ticktext"]
        assert layer_set == "17+31"
        assert 4 <= len(singles) <= 12
        assert np.ptp(np.diff(list(map(int, singles)))) == 0
    odd = {str(layer): float(layer) for layer in range(1, 18, 2)}
    assert set(layer_axis(odd, columns)["ticktext"]) >= {"1", "5", "9", "13", "17"}


@pytest.mark.parametrize("value", ["projection", "cosine"])
def test_means_show_both_sides_then_their_spread_and_the_difference_below(means, value):
    figure = plots.mean_projections(means, value=value)
    below = "y3" if value == "projection" else "y2"
    panels = [("positive", "y", value), ("negative", "y", value), ("difference", below, value)]
    panels += [(side, "y2", "spread") for side in SIDES if value == "projection"]
    for name, axis, quantity in panels:
        rows = rows_of(means, side=name).sort_values("layer")
        around, line = (each for each in figure.data if each.name == name and (each.yaxis or "y") == axis)
        assert list(line.x) == [0, 4, 9]
        assert list(line.y) == list(rows[quantity])
        assert list(around.y) == [*rows[f"{quantity}_high"], *rows[f"{quantity}_low"][::-1]]
        assert around.fill == "toself"
        assert f"{quantity} {number(rows[quantity].iloc[0])}" in line.hovertext[0]
        assert line.showlegend is False, "the two sides are named at their ends"
    assert sorted(filter(None, line_labels(figure))) == ["negative", "positive"]
    colours = [next(figure.select_traces({"name": side})).fillcolor for side in SIDES]
    assert colours == [style.translucent(style.MEANINGS[side], 0.15) for side in SIDES]
    assert value == "cosine" or figure.layout.yaxis2.title.text == "spread (SD)"
    assert figure.layout[below.replace("y", "xaxis")].title.text == "layer"
    assert "6 pairs" in subtitle_of(figure)


def test_the_first_ranks_are_written_at_the_differences_of_projections_only():
    table = means_table(activation_table(["projection", "cosine"], layers=range(6)))
    line = named(plots.mean_projections(table), "difference")
    ranks = rows_of(table, side="difference")["rank"]
    assert list(line.text) == [str(rank) if rank <= 3 else "" for rank in ranks]
    assert all(f"rank {rank};" in text for rank, text in zip(ranks, line.hovertext, strict=True))
    assert named(plots.mean_projections(table, value="cosine"), "difference").text is None


def test_a_factor_and_the_side_differ_by_dashes_and_names_never_become_markup(projected):
    loud = projected.assign(topic=np.where(projected["truth"], NASTY, "plain"))
    assert_escaped(plots.mean_projections(means_table(loud, by=["side", "topic"])))
    table = means_table(projected, by=["side", "truth"])
    figure = plots.mean_projections(table)
    names = [f"{side}, {truth}" for side in (*SIDES, "difference") for truth in (True, False)]
    assert sorted(filter(None, line_labels(figure))) == sorted(names[:4])
    assert entries(figure) == names[4:]
    dashes = [named(figure, name).line.dash for name in names]
    assert dashes == dashes[:2] * 3
    assert dashes[0] != dashes[1]
    for truth in (True, False):
        rows = rows_of(table, truth=truth, side="difference")
        assert list(named(figure, f"difference, {truth}").y) == list(rows["projection"])


def test_means_of_one_factor_have_no_difference(projected):
    figure = plots.mean_projections(means_table(projected, by="truth"))
    assert named(figure, "True").line.color == style.MEANINGS["true"]
    assert [axis.title.text for axis in figure.select_yaxes()][1:] == ["spread (SD)"]
    assert "6 prompts" in subtitle_of(figure)


# --- components and factors --------------------------------------------------------------------------------


def test_the_heatmap_holds_each_layers_correlations_centred_on_zero(related):
    figure = plots.component_factors(related, layer=4)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "4", "9"]
    assert figure.layout.sliders[0].active == 1
    for drawn, layer in ((figure, 4), (after(figure, steps[2].args), 9)):
        (heatmap,) = drawn.data
        assert [name[:3] for name in heatmap.y] == ["PC1", "PC2"]
        assert heatmap.y[0] == f"PC1 ({100 * (0.4 + layer / 100):.3g}%)"
        for row, column in itertools.product(range(2), range(len(heatmap.x))):
            factor, _, level = heatmap.x[column].partition(" = ")
            rows = rows_of(related, layer=layer, component=row + 1, factor=factor)
            (cell,) = rows[rows["level"].map(escape) == level].to_dict("records")
            text = heatmap.text[row][column]
            assert heatmap.z[row][column] == pytest.approx(cell["correlation"], rel=1e-4)
            assert text.startswith("<b>") == (cell["correlation_low"] * cell["correlation_high"] > 0)
            shown = text.removeprefix("<b>").removesuffix("</b>").replace("−", "-")
            assert float(shown) == pytest.approx(cell["correlation"], abs=0.005001)
            assert "n = 12 prompts, 6 independent units" in heatmap.hovertext[row][column]
    assert_escaped(figure)
    assert "side = positive" in figure.data[0].x


def test_a_missing_correlation_is_a_dash_and_too_many_factors_raise(related):
    many = pd.concat([related.assign(factor=f"factor {index}") for index in range(15)])
    many = many.drop_duplicates(["layer", "component", "factor", "level"])
    assert_raises("at most 14", plots.component_factors, many)
    related.loc[related["layer"] == 4, ["correlation", "correlation_low", "correlation_high"]] = np.nan
    (heatmap,) = plots.component_factors(related, layer=4).data
    assert set(itertools.chain(*heatmap.text)) == {"–"}
    assert set(itertools.chain(*heatmap.z)) == {None}


def test_the_histogram_counts_every_coordinate_and_names_the_largest(coordinates):
    figure = plots.vector_components(coordinates, layer=3)
    for drawn, layer in ((figure, 3), (after(figure, figure.layout.sliders[0].steps[1].args), 8)):
        bars, curve, strip = drawn.data
        rows = rows_of(coordinates, layer=layer)
        counts, edges = np.histogram(rows["value"], bins=60)
        assert [count or 0 for count in bars.y] == list(counts)
        np.testing.assert_allclose(bars.x, (edges[1:] + edges[:-1]) / 2, rtol=1e-3, atol=1e-3)
        x, y = (values[len(curve.x) // 2] for values in (curve.x, curve.y))
        density = stats.norm.pdf(x, scale=rows["spread"].iloc[0])
        assert y == pytest.approx(100 * (edges[1] - edges[0]) * density, rel=1e-3)
        largest = rows.sort_values("rank").head(6)
        np.testing.assert_allclose(strip.x, largest["value"], rtol=1e-4)
        assert [text.split()[0] for text in strip.text] == list(largest["coordinate"].astype(str))
        assert f"layer {layer}: {7 * layer} of 100" in subtitle_of(drawn)
    assert strip.text[0].split()[0] == "42"
    assert strip.textposition[0] == "middle right", "toward the middle"


# --- logit lens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["probability", "logit"])
def test_the_lens_has_a_panel_per_multiplier_and_each_token_in_its_cell(lens, value):
    figure = plots.logit_lens(lens, value=value)
    assert titles_of(figure) == ["vector × +20", "vector × −20"]
    for heatmap, multiplier in zip(figure.data, (20.0, -20.0), strict=True):
        assert list(heatmap.x) == [1, 2, 3]
        assert list(heatmap.y) == ["0", "4", "9"]
        for (row, layer), (column, rank) in itertools.product(enumerate((0, 4, 9)), enumerate((1, 2, 3))):
            cell = row_of(lens, layer=layer, rank=rank, multiplier=multiplier)
            assert heatmap.z[row][column] == pytest.approx(cell[value], rel=1e-4)
            assert heatmap.text[row][column] == cell["token"].replace(" ", "␣")
            assert f"(id {cell['token_id']})" in heatmap.hovertext[row][column]
            assert f"probability {cell['probability']:.3g}" in heatmap.hovertext[row][column]
    assert {heatmap.coloraxis for heatmap in figure.data} == {"coloraxis"}
    assert figure.layout.coloraxis.cmax == lens[value].max()
    assert figure.layout.coloraxis.cmin == (0 if value == "probability" else lens["logit"].min())


MANY_LAYERS = {12: range(12), 13: range(0, 13, 2), 30: range(2, 30, 3)}


@pytest.mark.parametrize(("count", "shown"), MANY_LAYERS.items(), ids=map(str, MANY_LAYERS))
def test_of_many_layers_every_kth_from_the_last_is_shown(count, shown):
    table = lens_table(layers=range(count), top=1)
    figure, chosen = plots.logit_lens(table), plots.logit_lens(table, layers=[5, 1])
    assert list(figure.data[0].y) == [str(layer) for layer in shown]
    assert f"{len(shown)} of {count} layers" in subtitle_of(figure)
    assert list(chosen.data[0].y) == ["1", "5"]
    assert figure.layout.height > chosen.layout.height
    assert len(plots.logit_lens(table, layers=range(count)).data[1].y) == count


def test_ranks_beyond_ten_are_left_out():
    assert list(plots.logit_lens(lens_table(top=12)).data[0].x) == list(range(1, 11))


def test_panels_of_activations_are_named_by_prompt_and_token(lens):
    prompt_ids = lens["multiplier"].map({20.0: 0, -20.0: 3})
    table = lens.drop(columns="multiplier").assign(prompt_id=prompt_ids, token_index=7, prompt=NASTY)
    figure = plots.logit_lens(table)
    assert titles_of(figure) == ["prompt 0, token 7", "prompt 3, token 7"]
    assert "&lt;b&gt;loud" in figure.data[0].hovertext[0][0]


def test_tokens_are_text_in_their_cell_and_complete_in_the_hover(lens):
    figure = plots.logit_lens(lens.assign(token=NASTY))
    assert_escaped(figure)
    assert not any("%{x}" in text for text in texts_of(figure))
    heatmap = plots.logit_lens(lens.assign(token="=" * 40)).data[0]
    assert heatmap.text[0][0] == "=" * 10 + "…"
    assert "=" * 40 in heatmap.hovertext[0][0]


def test_figures_name_prompts_by_their_message_and_by_the_prompt_in_older_tables():
    model = make_model(word_tokenizer())
    sides = [[ChatPrompt(f"c {side} {word} d", f"{side} {word}\n") for word in "efgh"] for side in "ab"]
    pairs = ts.capture_pairs(model, ts.contrast_pairs(*sides))
    vectors, one = ts.mean_difference(pairs), ts.capture(model, sides[0][:1])
    questions = ts.ChoiceQuestions(sides[0], [(" c", " d")] * 4)
    options = {"layers": [0], "multipliers": [-1, 1], "controls": 0, "progress": False}
    texts = ts.sweep(model, vectors, questions, measure="generate", max_new_tokens=2, **options)
    tables = {
        "projections": ts.projections(pairs, vectors),
        "pca": ts.pca(pairs, components=2),
        "logit_lens": ts.logit_lens(model, one),
        "traces": ts.traces(one, vectors),
        "prompt_slopes": ts.evaluation.prompt_slopes(ts.sweep(model, vectors, questions, **options)),
        "side_by_side": ts.texts.side_by_side(texts),
    }
    for name, table in tables.items():
        figures = [getattr(plots, name)(each) for each in (table, table.drop(columns="label"))]
        shown, older = (each.body if name == "side_by_side" else each.to_json() for each in figures)
        assert ["a e" in text for text in (shown, older)] == [True, True], name
        assert ["a e d" in text for text in (shown, older)] == [False, True], name


# --- heat maps of conditions -------------------------------------------------------------------------------


@pytest.fixture
def tested(swept):
    """Like the table of `against_controls`: conditions of a vector, some without controls."""
    table = rows_of(swept, vector="honesty")[
        ["vector", "control", "operation", "layers", "hook", "multiplier"]
    ]
    table = table.assign(dose=0.1, truth=rows_of(swept, vector="honesty")["truth"], n=50, value_name="shift")
    rng = np.random.default_rng(4)
    table["effect"] = rng.normal(size=len(table))
    table["effect_low"], table["effect_high"] = table["effect"] - 0.1, table["effect"] + 0.2
    p_values = rng.uniform(size=len(table)) / 5
    table = table.assign(controls=20, null_low=-0.3, null_high=0.2, p_value=p_values)
    table.loc[table["layers"] == "3", ["null_low", "null_high", "p_value"]] = np.nan
    table.loc[table["layers"] == "3", "controls"] = 0
    return table.sample(frac=1, random_state=0)


def cells_of(figure, index):
    """The value and text of each cell of a panel, by layers and column as the axes name them."""
    heat_map = list(figure.select_traces({"type": "heatmap"}))[index]
    columns, layers = figure.layout.xaxis.ticktext, figure.layout.yaxis.ticktext
    return {
        (layer, column): (heat_map.z[row][rank], heat_map.text[row][rank])
        for (row, layer), (rank, column) in itertools.product(enumerate(layers), enumerate(columns))
    }


def marked_cells(figure, index):
    dots = list(figure.select_traces({"type": "scatter"}))[index]
    columns, layers = figure.layout.xaxis.ticktext, figure.layout.yaxis.ticktext
    return {(layers[round(y - 0.2)], columns[round(x - 0.3)]) for x, y in zip(dots.x, dots.y, strict=True)}


def column_name(row):
    return "project<br>out" if np.isnan(row["multiplier"]) else number(row["multiplier"], "+g")


def test_against_controls_shows_each_effect_and_a_dot_where_the_controls_are_exceeded(tested):
    figure = plots.against_controls(tested, facet="truth")
    assert titles_of(figure) == ["truth: true", "truth: false"]
    assert list(figure.layout.yaxis.ticktext) == list(LAYERS), "upwards, layer sets last"
    assert list(figure.layout.xaxis.ticktext) == ["−4", "−2", "+2", "+4", "project<br>out"]
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax == -tested["effect"].abs().max()
    for index, truth in enumerate(("true", "false")):
        rows = rows_of(tested, truth=truth).to_dict("records")
        expected = {(row["layers"], column_name(row)): row for row in rows}
        assert {key: z for key, (z, _) in cells_of(figure, index).items()} == {
            key: row["effect"] for key, row in expected.items()
        }
        assert marked_cells(figure, index) == {key for key, row in expected.items() if row["p_value"] <= 0.05}
    exceeding, known = (tested["p_value"] <= 0.05).sum(), tested["p_value"].notna().sum()
    assert f"{exceeding} of {known} tested conditions exceed" in title_of(figure)
    hovers = np.array(figure.data[0].hovertext)
    assert all("effect " in text for text in hovers.ravel())
    assert ["p = " in text for text in hovers[:, 0]] == [False, True, True, True]
    assert all("20 controls: −0.3 to 0.2" in text for text in hovers[1:].ravel())


def test_against_controls_says_when_no_p_value_can_be_low_and_needs_one_effect(tested):
    few = tested.assign(p_value=0.5, controls=3, null_low=-1.0, null_high=1.0)
    assert "lowest possible p 0.25" in subtitle_of(plots.against_controls(few, facet="truth"))
    mixed = pd.concat([tested, tested.assign(value_name="accuracy")])
    assert_raises("several effects", plots.against_controls, mixed, facet="truth")
    assert_raises("facet", plots.against_controls, tested)
    assert_escaped(plots.against_controls(tested.assign(vector=NASTY), facet="truth"))


@pytest.mark.parametrize("value", ["accuracy", "shift"])
def test_effect_map_colours_by_the_difference_from_unsteered(swept, value):
    figure = plots.effect_map(swept, value=value, facet="truth")
    for index, truth in enumerate(("true", "false")):
        base = row_of(swept, operation="none", truth=truth)
        spec = ".0%" if value == "accuracy" else "+.2f"
        assert titles_of(figure)[index].endswith(f"<br>unsteered {number(base[value], spec)}")
        rows = rows_of(swept, vector="honesty", truth=truth).to_dict("records")
        apart = set()
        cells = cells_of(figure, index)
        for row in rows:
            key = row["layers"], column_name(row)
            assert cells[key] == (pytest.approx(row[value] - base[value]), number(row[value], spec))
            if row[f"{value}_low"] > base[f"{value}_high"] or row[f"{value}_high"] < base[f"{value}_low"]:
                apart.add(key)
        assert marked_cells(figure, index) == apart
    alike = plots.effect_map(swept.assign(**{value: 0.5}), value=value, facet="truth")
    assert alike.layout.coloraxis.cmax == (0.25 if value == "accuracy" else 1.0)
    assert_raises("no unsteered", plots.effect_map, rows_of(swept, vector="honesty"), facet="truth")


def test_a_level_or_multiplier_without_a_value_has_no_panel_or_line(swept):
    swept.loc[swept["truth"] == "false", "accuracy"] = np.nan
    swept.loc[swept["multiplier"] == 4, "accuracy"] = np.nan
    figure = plots.effectiveness(swept, facet="truth")
    assert len(list(figure.select_yaxes())) == 1
    assert "+4" not in line_labels(figure)
    assert "+2" in line_labels(figure)


def test_headings_are_broken_into_lines_that_fit_a_narrow_figure():
    figure = style.styled(go.Figure(), "long " * 20, "longer " * 30)
    title, subtitle = figure.layout.title.text.split("<br>"), figure.layout.title.subtitle.text.split("<br>")
    assert max(map(len, title)) <= 48
    assert max(map(len, subtitle)) <= 66
    assert figure.layout.margin.t > style.styled(go.Figure(), "short", "short").layout.margin.t


def test_a_panel_without_a_marked_cell_has_no_dots(tested):
    tested.loc[tested["truth"] == "false", "p_value"] = 0.5
    figure = plots.against_controls(tested, facet="truth")
    assert marked_cells(figure, 0)
    assert not marked_cells(figure, 1)


def test_a_printed_figure_has_space_for_the_names_at_the_ends_of_its_lines(pooled):
    figure = plots.effectiveness(pooled)
    assert line_labels(figure)
    assert plots.for_print(figure, "column").layout.margin.r == figure.layout.margin.r > 50
