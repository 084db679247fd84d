"""Figures hold what their tables hold, and text never becomes markup."""

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

from tl_steer import plots
from tl_steer.evaluation import prompt_slopes, steerability
from tl_steer.plots import style
from tl_steer.plots.axes import layer_axis, layer_positions, multiplier_ranks
from tl_steer.plots.format import HOVER_LENGTH, controls_text, counted, escape, levels, number, wrapped
from tl_steer.plots.marks import control_marks
from tl_steer.plots.panels import panels_of

from .conftest import assert_raises
from .test_groups import grouped_sweep

NASTY = '<b>loud</b> & "x" &lt; <a href="https://example.org">y</a> $5 to $6 %{x}'
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
    rows = [
        {
            "layer": layer, "pair": pair, "side": side, "truth": pair % 2 == 0,
            "prompt": f"{side} prompt {pair}",
        }
        for layer, pair, side in itertools.product(layers, range(pairs), ("positive", "negative"))
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    table.loc[table["pair"] == 0, "prompt"] = NASTY
    for column in columns:
        table[column] = rng.normal(size=len(table))
    for layer in layers:
        for component in range(1, 5):
            if f"PC{component}" in columns:
                table.loc[table["layer"] == layer, f"explained_{component}"] = 0.4 / component + layer / 100
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


@pytest.fixture
def swept():
    return sweep_table()


@pytest.fixture
def pooled():
    return pooled_table()


def pooled_table(**options):
    return sweep_table(truths=("all",), **options).drop(columns="truth")


@pytest.fixture
def detected(pooled):
    table = pooled.iloc[:, :7].assign(n_signal=30, n_noise=20, hit_rate=0.8, false_alarm_rate=0.3)
    rng = np.random.default_rng(3)
    for value in ("d_prime", "criterion"):
        table[value] = rng.normal(size=len(table))
        table[f"{value}_low"], table[f"{value}_high"] = table[value] - 0.5, table[value] + 0.25
    return table


def named(figure, name):
    (trace,) = [trace for trace in figure.data if trace.name == name and trace.showlegend is not False]
    return trace


def row_of(table, **where):
    for column, value in where.items():
        table = table[table[column].isna() if value != value else table[column] == value]
    (row,) = table.to_dict("records")
    return row


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
others = {{name for name in sys.modules if name.startswith("tl_steer.") and "plots" not in name}}
print(before, "plotly" in sys.modules, sorted(others - {{"tl_steer._util", "tl_steer._util.validation"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True ['tl_steer.tables']\n"


def test_every_public_name_is_a_function_and_stays_one_after_its_module_is_imported():
    for name in plots.__all__:
        assert callable(getattr(plots, name))
        assert name in dir(plots)
    with pytest.raises(AttributeError, match="separation"):
        _ = plots.scatter


FIGURES = [
    ("separation", "separated", "paired_accuracy", "separation"),
    ("pca", "components", "explained_2", "pca"),
    ("projections", "projected", "cosine", "projections"),
    ("effectiveness", "pooled", "accuracy_low", "effectiveness"),
    ("dose_response", "pooled", "shift_high", "effectiveness"),
    ("signal_detection", "detected", "criterion", "signal_detection"),
]


def assert_needs_table(name, table, column, producer):
    draw = getattr(plots, name)
    assert_raises(rf"plots\.{name}.*lacks.*{column}.*{producer}", draw, table.drop(columns=column))
    assert_raises(rf"plots\.{name}.*no rows.*{producer}", draw, table.iloc[:0])


def assert_common_style(name, table):
    """The figure has the common template, width and titles, and leaves its table as it is."""
    before = table.copy(deep=True)
    figure = getattr(plots, name)(table)
    pd.testing.assert_frame_equal(table, before)
    assert isinstance(figure, go.Figure)
    assert figure.layout.template == style.template()
    assert figure.layout.width == 900
    assert figure.layout.title.subtitle.text
    for axes in (figure.select_xaxes, figure.select_yaxes):
        assert any(axis.title.text for axis in axes() if axis.visible is not False)
    return figure


@pytest.mark.parametrize(("name", "fixture", "column", "producer"), FIGURES)
def test_a_table_without_a_column_or_without_rows_raises(name, fixture, column, producer, request):
    assert_needs_table(name, request.getfixturevalue(fixture), column, producer)


@pytest.mark.parametrize(
    ("name", "fixture", "column", "value", "message"),
    [
        ("separation", "separated", "folds", "1", "holds '1': expected numbers"),
        ("pca", "components", "PC1", "1", "holds '1': expected numbers"),
        ("pca", "components", "explained_2", "1", "holds '1': expected numbers"),
        ("effectiveness", "pooled", "accuracy_low", "1", "holds '1': expected numbers"),
        ("separation", "separated", "paired_accuracy", True, "holds True: expected numbers"),
        ("separation", "separated", "layer", 1.0, "holds 1.0: expected whole numbers"),
        ("effectiveness", "pooled", "control", pd.NA, "holds <NA>: expected true or false"),
        ("effectiveness", "pooled", "operation", 1, "holds 1: expected text in every row"),
    ],
)
def test_a_column_of_another_type_raises(name, fixture, column, value, message, request):
    table = request.getfixturevalue(fixture)
    table = table.assign(**{column: table[column].astype(object)})
    table.loc[table.index[0], column] = value
    assert_raises(rf"plots\.{name}: the column '{column}' {message}", getattr(plots, name), table)


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([3, 5, 4], "3 to 5 pairs"), ([1.0, np.nan], "1 pair"), ([2.0, 2], "2 pairs"), ([0.5], "0.5 pairs"),
        ([pd.NA], "no pairs"), ([12345678], "12345678 pairs"),
    ],
)  # fmt: skip
def test_counts_have_a_noun_in_the_right_number(counts, text):
    assert counted(counts, "pair") == text


@pytest.mark.parametrize(("name", "fixture", "column", "producer"), FIGURES)
def test_figures_share_one_style_and_leave_the_table_unchanged(name, fixture, column, producer, request):
    figure = assert_common_style(name, request.getfixturevalue(fixture))
    assert 420 <= figure.layout.height <= 560
    assert any(unit in figure.layout.title.subtitle.text for unit in ("pair", "prompt"))
    assert figure.layout.template.layout.legend.x > 1, "the legend is next to the data"


def test_names_of_methods_are_escaped(separated):
    texts = texts_of(plots.separation(separated.assign(method=NASTY)))
    assert not any("<a href" in text or "<b>loud" in text for text in texts)
    assert any("&lt;b&gt;loud" in text for text in texts)


# --- text and colours -------------------------------------------------------------------------------------


def test_escaped_text_reads_as_it_was_written_and_has_no_active_character():
    import html

    escaped = escape(NASTY)
    assert html.unescape(escaped) == NASTY
    assert not set("<>$") & set(escaped)
    assert "%{" not in escaped


def test_wrapping_keeps_every_character_of_a_short_text_and_both_ends_of_a_long_one():
    short = "word & <i> " * 20
    assert wrapped(short).replace("<br>", " ").strip() == escape(short).strip()
    assert max(map(len, wrapped("x" * 500).split("<br>"))) <= 72
    long = "begin " + "x" * 5000 + " Answer: (A"
    assert wrapped(long).startswith("begin")
    assert wrapped(long).endswith("Answer: (A")
    assert len(wrapped(long)) < HOVER_LENGTH + 100
    assert wrapped("one\n\ntwo") == "one<br><br>two"


def test_levels_are_in_an_order_of_meaning_not_of_the_table():
    assert levels(pd.Series(["negative", "positive"])) == ["positive", "negative"]
    assert levels(pd.Series([False, True])) == ["True", "False"]
    assert levels(pd.Series([10, 9, 2, None])) == ["2.0", "9.0", "10.0", "missing"]


def test_numbers_are_short_and_signed_with_a_minus():
    assert number(-0.12345) == "−0.123"
    assert number(float("nan")) == "–"


def test_a_level_has_the_same_colour_with_any_other_levels():
    alone, together = (
        style.level_colours(["positive"]),
        style.level_colours(["film", "negative", "positive"]),
    )
    assert alone["positive"] == together["positive"]
    assert style.level_colours(["True"])["True"] == style.level_colours(["false", "true"])["true"]
    assert len(set(style.level_colours("abcdefg").values())) == 7
    assert_raises("Group them first", style.level_colours, "abcdefgh")


def test_multipliers_diverge_blue_and_red_and_deepen_with_size():
    colours = style.multiplier_colours([-8, -2, 0, 2, 8, float("nan")])
    channels = {key: [int(part) for part in colours[key][4:-1].split(",")] for key in (-8, -2, 2, 8)}
    for small, large in ((-2, -8), (2, 8)):
        assert sum(channels[large]) < sum(channels[small])
    assert all(channels[key][2] > channels[key][0] for key in (-8, -2))
    assert all(channels[key][0] > channels[key][2] for key in (2, 8))
    assert set(colours) == {-8, -2, 0, 2, 8}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, ""),
        (1, "; grey: 1 control direction (p ≥ 0.5)"),
        (18, "; grey: 18 control directions (p ≥ 0.053)"),
        (19, "; grey: 19 control directions"),
    ],
)
def test_subtitles_say_which_p_value_so_few_controls_can_reach(count, text, pooled):
    assert controls_text(count) == text
    for draw in (plots.effectiveness, plots.dose_response):
        assert controls_text(3) in draw(pooled, value="shift").layout.title.subtitle.text


# --- separation --------------------------------------------------------------------------------------------


def test_separation_shows_the_curve_its_band_the_null_and_chance(separated):
    figure = plots.separation(separated.sample(frac=1, random_state=0))
    line = named(figure, "mean_difference")
    assert list(line.x) == list(range(6))
    assert list(line.y) == list(separated["paired_accuracy"])
    null, _, threshold, band, _ = figure.data
    assert list(band.y) == [*separated["paired_accuracy_high"], *separated["paired_accuracy_low"][::-1]]
    assert list(null.y) == [0.62] * 6 + [0.35] * 6
    assert list(threshold.y) == [0.71] * 2
    assert "at each layer" in null.name
    assert "at all layers together" in threshold.name
    assert figure.layout.shapes[0].y0 == figure.layout.shapes[0].y1 == 0.5
    low, high = figure.layout.yaxis.range
    assert low < min(separated["paired_accuracy_low"].min(), 0.35)
    assert high >= 1
    for part in ("AUC", "d′", "p = 0.0099 for this layer alone", "for all layers p = 0.01", "layer 0"):
        assert part in line.hovertext[0]
    assert figure.layout.title.subtitle.text.endswith(
        "; p ≤ 0.05, corrected for all layers, at 4 of 6 layers"
    )


def test_separation_gives_each_method_a_line_and_the_null_one_legend_entry(separated):
    other = separated.assign(method="lda_direction", paired_accuracy=0.5, p_corrected=[0.01, *[0.9] * 5])
    figure = plots.separation(pd.concat([separated, other]))
    assert "at 4 and 1 of 6 layers, line by line" in figure.layout.title.subtitle.text
    assert set(named(figure, "lda_direction").y) == {0.5}
    assert named(figure, "mean_difference").line.color != named(figure, "lda_direction").line.color
    assert sum("at each layer" in (trace.name or "") and trace.showlegend for trace in figure.data) == 1
    assert sum("together" in (trace.name or "") for trace in figure.data) == 2
    by_vector = plots.separation(separated.assign(vector=["a", "b"] * 3))
    assert list(named(by_vector, "b").x) == [1, 3, 5]


def test_separation_without_shuffles_has_no_null_band(separated):
    tested = ["null_low", "null_high", "null_mean", "p_value", "p_corrected", "null_max"]
    figure = plots.separation(separated.assign(**dict.fromkeys(tested, np.nan)))
    assert "p ≤" not in figure.layout.title.subtitle.text
    assert not any("shuffled" in (trace.name or "") for trace in figure.data)


def test_separation_says_that_few_shuffles_cannot_be_significant(separated):
    figure = plots.separation(separated.assign(null_max=np.nan, p_corrected=1 / 11))
    assert figure.layout.title.subtitle.text.endswith("; 19 shuffles or more are needed to reach p ≤ 0.05")
    assert not any("together" in (trace.name or "") for trace in figure.data)


# --- pca ---------------------------------------------------------------------------------------------------


def axis_of(figure, trace, letter):
    return figure.layout[getattr(trace, f"{letter}axis").replace(letter, f"{letter}axis", 1)]


def after(figure, *changes):
    """What Plotly.update would make of a figure's traces and layout."""
    figure = go.Figure(figure)
    for data, *layout in changes:
        for name, values in data.items():
            for trace, value in zip(figure.data, values, strict=True):
                trace[name] = value
        for path, value in (layout[0] if layout else {}).items():
            figure.layout[path] = value
    return figure


def shown_points(figure):
    points = {}
    for trace in figure.data:
        if trace.visible:
            points |= dict(zip(trace.hovertext, zip(trace.x, trace.y, strict=True), strict=True))
    return points


def expected_points(table, layer, across, up):
    rows = table[table["layer"] == layer]
    return {
        (row["pair"], row["side"]): (float(f"{row[f'PC{across}']:.5g}"), float(f"{row[f'PC{up}']:.5g}"))
        for row in rows.to_dict("records")
    }


def by_label(points):
    labelled = {}
    for text, point in points.items():
        label = text.rsplit("<br>", 1)[1]
        side = "positive" if "side: positive" in label else "negative"
        labelled[int(label.split("</b>")[0].removeprefix("<b>pair ")), side] = point
    return labelled


def test_pca_menu_and_slider_reach_every_layer_and_pair_of_components_in_either_order(components):
    figure = plots.pca(components, symbol="truth", layer=4)
    slider, menu = figure.layout.sliders[0], figure.layout.updatemenus[0]
    assert [step.label for step in slider.steps] == ["0", "4", "9"]
    assert [button.label for button in menu.buttons] == ["PC1 / PC2", "PC1 / PC3", "PC2 / PC3"]
    for step, (button, (across, up)) in itertools.product(
        slider.steps, zip(menu.buttons, [(1, 2), (1, 3), (2, 3)], strict=True)
    ):
        one, other = after(figure, step.args, button.args), after(figure, button.args, step.args)
        assert one.to_dict() == other.to_dict()
        layer = int(step.label)
        assert by_label(shown_points(one)) == expected_points(components, layer, across, up)
        trace = next(trace for trace in one.data if trace.visible)
        for letter, component in (("x", across), ("y", up)):
            axis = axis_of(one, trace, letter)
            share = 100 * (0.4 / component + layer / 100)
            assert axis.title.text == f"PC{component} ({share:.3g}% of the variance)"
            assert axis.visible
        seen = [axis for axis in one.select_xaxes() if axis.visible]
        assert len(seen) == 1
        # without it, the white ground of an unseen pair of axes covers the points
        assert all(axis.overlaying == "x" for axis in list(one.select_xaxes())[1:])


def test_pca_says_of_what_its_components_are(components):
    subtitles = {
        "pooled": ("both sides pooled", "of the variance"),
        "differences": ("mean kept", "of the differences' sum of squares"),
        "centred_differences": ("differences, mean removed", "of the differences' variance"),
    }
    for of, (subtitle, share) in subtitles.items():
        figure = plots.pca(components.assign(decomposed=of))
        assert subtitle in figure.layout.title.subtitle.text
        assert share in figure.layout.xaxis.title.text
        assert share in figure.layout.yaxis.title.text
    mixed = components.assign(decomposed=np.where(components["pair"] == 0, "pooled", "differences"))
    for table in (mixed, components.assign(decomposed="raw")):
        assert_raises("column decomposed", plots.pca, table)


def test_pca_starts_where_it_is_asked_to(components):
    figure = plots.pca(components, x=4, y=2, layer=9)
    assert by_label(shown_points(figure)) == expected_points(components, 9, 4, 2)
    assert figure.layout.sliders[0].active == 2
    assert figure.layout.updatemenus[0].buttons[0].label == "PC4 / PC2"
    two = components.drop(columns=["PC3", "PC4", "explained_3", "explained_4"])
    assert not plots.pca(two).layout.updatemenus


def test_pca_colours_by_one_factor_and_marks_by_another(components):
    figure = plots.pca(components, colour="truth", symbol="side")
    shown = [trace for trace in figure.data if trace.visible]
    assert [trace.name for trace in shown] == [
        "True, positive", "True, negative", "False, positive", "False, negative",
    ]  # fmt: skip
    assert shown[0].marker.color == shown[1].marker.color == style.MEANINGS["true"]
    assert shown[0].marker.symbol == shown[2].marker.symbol != shown[1].marker.symbol
    assert figure.layout.legend.title.text == "truth, side"


@pytest.mark.parametrize("draw", ["pca", "projections"])
def test_hover_shows_the_prompt_as_text_once_for_all_layers(draw, request):
    table = request.getfixturevalue("components" if draw == "pca" else "projected")
    texts = texts_of(getattr(plots, draw)(table))
    assert any("&lt;b&gt;loud&lt;/b&gt;" in text for text in texts)
    assert not any("<b>loud" in text or "<a " in text for text in texts)
    copies = sum("positive prompt 3" in text for text in texts)
    assert copies == (3 if draw == "pca" else 1), "once for each pair of components"


@pytest.mark.parametrize("draw", ["pca", "projections"])
def test_layers_with_different_rows_raise_lest_a_text_stands_at_anothers_point(draw, request):
    table = request.getfixturevalue("components" if draw == "pca" else "projected")
    assert_raises("each pair and side once", getattr(plots, draw), table.drop(index=5))
    assert_raises("each pair and side once", getattr(plots, draw), pd.concat([table, table]))


# --- projections -------------------------------------------------------------------------------------------


def test_projection_histograms_hold_the_layers_values_and_share_their_bins(projected):
    figure = plots.projections(projected, by="side", facet="truth", layer=0)
    step = figure.layout.sliders[0].steps[2]
    assert step.label == "9"
    for drawn, layer in ((figure, 0), (after(figure, step.args), 9)):
        histograms = [trace for trace in drawn.data if trace.type == "histogram"]
        strips = [trace for trace in drawn.data if trace.type == "scatter"]
        assert {trace.bingroup for trace in histograms} == {"projection"}
        truths = itertools.product([True, False], ["positive", "negative"])
        for (truth, side), histogram, strip in zip(truths, histograms, strips, strict=True):
            rows = projected[(projected["layer"] == layer) & (projected["truth"] == truth)]
            rows = rows[rows["side"] == side].sort_values("pair")
            np.testing.assert_allclose(histogram.x, rows["projection"], rtol=1e-4)
            np.testing.assert_allclose(strip.x, rows["projection"], rtol=1e-4)
            np.testing.assert_allclose(strip.customdata, rows["cosine"], rtol=1e-4)
            assert all(
                f"pair {pair}<" in text for pair, text in zip(rows["pair"], strip.hovertext, strict=True)
            )
    assert figure.layout.barmode == "overlay"
    assert [note.text for note in figure.layout.annotations] == ["truth: True", "truth: False"]
    assert sum(trace.showlegend is not False for trace in figure.data) == 2


@pytest.mark.parametrize(("facet", "panels"), [(None, 1), ("truth", 3)])
def test_all_layers_on_one_sheet_are_histograms_of_their_own(projected, facet, panels):
    figure = plots.projections(projected, layers="all", facet=facet, overall=bool(facet))
    assert not figure.layout.sliders
    cells = [(layer, truth) for layer in (0, 4, 9) for truth in (None, True, False)[:panels]]
    titles = [note.text for note in figure.layout.annotations]
    assert titles[:2] == (["layer 0", "layer 4"] if panels == 1 else ["layer 0, all", "layer 0, truth: True"])
    assert len(figure.data) == 2 * len(cells)
    for (layer, truth), traces in zip(
        cells, zip(figure.data[::2], figure.data[1::2], strict=True), strict=True
    ):
        rows = projected[projected["layer"] == layer]
        ends = rows["projection"].agg(["min", "max"])
        rows = rows if truth is None else rows[rows["truth"] == truth]
        for side, trace in zip(("positive", "negative"), traces, strict=True):
            edges, counts = np.array(trace.x[::2], float), np.array(trace.y[1:-1:2])
            assert trace.name == side
            np.testing.assert_allclose(edges[[0, -1]], ends, rtol=1e-4)
            values = rows.loc[rows["side"] == side, "projection"]
            assert counts.sum() == len(values)
            exact = np.linspace(*ends, len(edges))
            expected = [((values >= low) & (values < high)).sum() for low, high in itertools.pairwise(exact)]
            expected[-1] += (values == exact[-1]).sum()
            assert list(counts) == expected
    ranges = {axis.range for axis in figure.select_xaxes() if axis.range}
    assert len(ranges) == 3  # of each layer, common to its panels


def test_a_sheet_has_the_layers_in_the_order_given(projected):
    figure = plots.projections(projected, layers=[9, 0])
    assert [note.text for note in figure.layout.annotations][:2] == ["layer 9", "layer 0"]


# --- effectiveness and dose --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["accuracy", "signal_rate", "logit_difference", "shift"])
def test_effectiveness_draws_each_cell_at_its_layer_with_its_interval(pooled, value):
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
            assert f"layer {layers}" in line.hovertext[at]
            assert "n = 50" in line.hovertext[at]
            assert number(row["dose"]) in line.hovertext[at]
        assert np.isnan(line.y[3]), "no line leads from layer 10 to 3+5"
        assert np.isfinite(np.asarray(line.error_y.array, dtype=float)).all()


def control_values(table, size, **where):
    """What the controls of one |multiplier| (NaN: without one) do, cell by cell."""
    rows = table[table["control"]]
    rows = rows[rows["multiplier"].isna() if np.isnan(size) else rows["multiplier"].isin([-size, size])]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_effectiveness_shows_the_unsteered_value_and_the_reach_of_the_controls_of_each_size(pooled):
    figure = plots.effectiveness(pooled)
    unsteered = named(figure, "unsteered")
    row = row_of(pooled, operation="none")
    assert set(unsteered.y) == {row["accuracy"]}
    assert unsteered.line.dash == "dash"
    around = figure.data[figure.data.index(unsteered) - 1]
    assert set(pd.Series(around.y).dropna()) == {row["accuracy_low"], row["accuracy_high"]}
    assert around.fill is None, "what is filled is a control's"
    for name, size in (("controls, ±2", 2), ("controls, ±4", 4), ("controls, project out", np.nan)):
        bands = [trace for trace in figure.data if trace.name == name]
        assert list(bands[0].x) == [3, 5, 10, 10, 5, 3]
        values = [control_values(pooled, size, layers=layers)["accuracy"] for layers in ("3", "5", "10")]
        assert {len(each) for each in values} == {3 if np.isnan(size) else 6}
        expected = [*(each.max() for each in values), *(each.min() for each in reversed(values))]
        np.testing.assert_allclose(bands[0].y, expected)
        both = control_values(pooled, size, layers="3+5")["accuracy"]
        np.testing.assert_allclose(sorted(set(bands[1].y)), [both.min(), both.max()])
    assert "3 control directions" in figure.layout.title.subtitle.text
    assert "ring" in figure.layout.title.subtitle.text


def test_the_band_of_a_smaller_multiplier_is_darker_and_drawn_over_that_of_a_larger_one(pooled):
    figure = plots.effectiveness(pooled)
    order = [trace.name for trace in figure.data if (trace.name or "").startswith("controls")]
    assert order.index("controls, ±4") < order.index("controls, ±2")
    depth = [sum(map(int, named(figure, f"controls, ±{size}").fillcolor[4:-1].split(","))) for size in (2, 4)]
    assert depth[0] < depth[1]
    lines = [index for index, trace in enumerate(figure.data) if trace.mode == "lines+markers"]
    assert len(order) < min(lines), "lines are drawn over all bands"


@pytest.mark.parametrize("facet", [None, "truth"])
def test_a_point_within_its_own_controls_is_a_ring_and_says_how_far_they_reach(swept, pooled, facet):
    table = swept if facet else pooled
    figure = plots.effectiveness(table, facet=facet)
    truths = {"x": "true", "x2": "false"} if facet else {"x": None}
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    dots = [trace for trace in figure.data if trace.mode == "markers"]
    assert len(lines) == len(dots) == 5 * len(truths)
    rings = 0
    for line, dot in zip(lines, dots, strict=True):
        assert dot.legendgroup == line.legendgroup
        assert (dot.xaxis, dot.showlegend, dot.hoverinfo) == (line.xaxis, False, "skip")
        size = np.nan if line.name == "project out" else abs(float(line.name.replace("−", "-")))
        where = {"truth": truths[line.xaxis]} if facet else {}
        shown = set(zip(dot.x, dot.y, strict=True))
        for x, y, text in zip(line.x, line.y, line.hovertext, strict=True):
            if not text:
                continue
            layers = text.split("layer ")[1].split(",")[0]
            null = control_values(table, size, layers=layers, **where)["accuracy"]
            assert ((x, y) in shown) == (null.min() <= y <= null.max())
            assert text.endswith(f"its controls {number(null.min())} to {number(null.max())}")
            rings += (x, y) in shown
    assert 0 < rings < 4 * len(lines)


def test_controls_of_another_operation_are_not_a_lines_own():
    table = pooled_table(operations=("add", "set"))
    table.loc[table["control"] & (table["operation"] == "set"), "accuracy"] += 5
    figure = plots.effectiveness(table)
    adding = named(figure, "controls, add ±4")
    assert max(adding.y) < 1
    assert max(named(figure, "controls, set ±4").y) > 5
    for operation, reaches in (("add", "its controls 0."), ("set", "its controls 5.")):
        assert all(reaches in text for text in named(figure, f"{operation} +4").hovertext if text)


def test_the_unsteered_shift_is_a_line_without_an_interval(pooled):
    unmoved = pooled["operation"] == "none"
    pooled.loc[unmoved, ["shift", "shift_low", "shift_high"]] = 0.0
    figure = plots.effectiveness(pooled, value="shift")
    assert [trace.name for trace in figure.data if trace.mode == "lines" and not trace.fill] == ["unsteered"]


def test_without_controls_there_is_no_band_no_ring_and_no_word_of_them(pooled):
    bare = pooled[~pooled["control"]]
    for figure in (plots.effectiveness(bare), plots.dose_response(bare)):
        assert not any("controls" in (trace.name or "") for trace in figure.data)
        assert not any(len(trace.x) for trace in figure.data if trace.mode == "markers")
        assert "ring" not in figure.layout.title.subtitle.text


def test_effectiveness_facets_share_an_axis_and_hold_each_its_rows(swept):
    figure = plots.effectiveness(swept, facet="truth")
    assert [note.text for note in figure.layout.annotations] == ["truth: true", "truth: false"]
    assert figure.layout.yaxis2.matches == "y"
    for truth, axis in (("true", "x"), ("false", "x2")):
        (line,) = [trace for trace in figure.data if trace.name == "+4" and trace.xaxis == axis]
        assert (
            line.y[0] == row_of(swept, vector="honesty", layers="3", multiplier=4.0, truth=truth)["accuracy"]
        )
    entries = [trace.name for trace in figure.data if trace.showlegend]
    assert len(entries) == len(set(entries))


def test_several_vectors_get_panels_with_their_own_controls():
    table = pooled_table(vectors=("honesty", "lda"))
    table["vector"] = table["vector"].replace(
        {"random 0": "random 1 (honesty)", "random 1": "random 1 (lda)"}
    )
    owners = {"random 1 (honesty)": "honesty", "random 1 (lda)": "lda"}
    table["control_of"] = table["vector"].map(owners).fillna("")
    for name, extra in (("random 1 (honesty)", 1), ("random 1 (lda)", -1)):
        table.loc[table["vector"] == name, "accuracy"] += extra
    figure = plots.effectiveness(table)
    assert [note.text for note in figure.layout.annotations] == ["honesty", "lda"]
    for axis, names in (("x", ["random 1 (honesty)", "random 2"]), ("x2", ["random 1 (lda)", "random 2"])):
        band = next(trace for trace in figure.data if trace.name == "controls, ±4" and trace.xaxis == axis)
        rows = table[
            table["vector"].isin(names) & (table["layers"] == "3") & (table["multiplier"].abs() == 4)
        ]
        np.testing.assert_allclose([band.y[0], band.y[-1]], [rows["accuracy"].max(), rows["accuracy"].min()])


def test_several_operations_are_told_apart_by_name_and_dash():
    table = pooled_table(operations=("add", "set"))
    figure = plots.effectiveness(table)
    assert named(figure, "add +4").line.dash != named(figure, "set +4").line.dash
    assert named(figure, "add +4").line.color == named(figure, "set +4").line.color
    expected = row_of(table, vector="honesty", operation="set", layers="3", multiplier=4.0)
    assert named(figure, "set +4").y[0] == expected["accuracy"]


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
        ("projections", "projected", {"layers": [5]}, "no layer 5 in the table; it has 0, 4, 9"),
        ("projections", "projected", {"layers": []}, "is empty"),
        ("projections", "projected", {"layer": 0, "layers": "all"}, "layer=… is where the slider starts"),
        ("projections", "projected", {"facet": "pair"}, "at most 4 panels"),
    ],
)
def test_arguments_that_do_not_fit_the_table_raise(name, fixture, options, message, request):
    assert_raises(message, getattr(plots, name), request.getfixturevalue(fixture), **options)


def test_tables_that_cannot_be_drawn_raise(swept, pooled, detected):
    recorded = swept.assign(dose=swept["dose"].where(swept["operation"] == "none"))
    assert_raises("NaN in every row", plots.effectiveness, pooled.assign(accuracy=np.nan))
    assert_raises("no steered condition", plots.effectiveness, pooled[pooled["operation"] == "none"])
    assert_raises("too many panels", plots.effectiveness, sweep_table(truths="abcdefg"), facet="truth")
    assert_raises("no steered row has a dose", plots.dose_response, recorded, facet="truth", x="dose")
    projected_out = pooled[pooled["operation"] == "project_out"]
    assert_raises("no steered row has a multiplier", plots.dose_response, projected_out)
    assert_raises("signal and noise", plots.signal_detection, detected.assign(d_prime=np.nan))
    sweep = pd.DataFrame({"prompt_id": [0], "prompt": ["a"], "multiplier": [1.0], "text": ["b"]})
    assert_raises("side by side first", plots.side_by_side, sweep)


@pytest.mark.parametrize(
    ("layers", "positions"),
    [
        (
            ["17+31", "31", "", "2", "10+11", "17"],
            {"2": 2, "17": 17, "31": 31, "10+11": 38.25, "17+31": 45.5},
        ),
        (["3+5"], {"3+5": 1}),
        (["17", "31", "18", "19", "", "17+31"], {"17": 0, "18": 1, "19": 2, "31": 3, "17+31": 4}),
    ],
)
def test_single_layers_are_at_their_index_and_sets_after_them_unless_few_are_far_apart(layers, positions):
    result = layer_positions(pd.DataFrame({"layers": layers}))
    assert result == positions
    assert list(result) == list(positions)


def test_multipliers_that_end_in_the_same_place_share_a_label(detected):
    together = detected.assign(d_prime=1.0, criterion=0.5)
    (path,) = [
        trace
        for trace in plots.signal_detection(together, layer=5).data
        if trace.name == "add" and trace.visible
    ]
    assert sorted(filter(None, path.text)) == ["−4 to +4"]


def test_controls_at_one_layer_alone_have_a_band_that_can_be_seen(swept):
    here = swept[~swept["control"] | (swept["layers"] == "5")]
    bands = [
        trace for trace in plots.effectiveness(here, facet="truth").data if "controls" in (trace.name or "")
    ]
    assert bands
    for trace in bands:
        assert (min(trace.x), max(trace.x)) == pytest.approx((4.7, 5.3))


def test_lines_over_layers_far_apart_have_gaps_and_their_whiskers_are_next_to_each_other(swept):
    wide = swept[~swept["control"]].replace({"layers": {"10": "30", "3": "4"}})
    figure = plots.effectiveness(wide, facet="truth")
    lines = [trace for trace in figure.data if trace.mode == "lines+markers" and trace.xaxis == "x"]
    assert list(figure.layout.xaxis.ticktext) == ["4", "5", "30", "3+5"]
    for position in range(4):
        xs = [next(x for x in line.x if x is not None and abs(x - position) < 0.5) for line in lines]
        assert len(set(xs)) == len(lines)
        assert max(xs) + min(xs) == pytest.approx(2 * position)
    for line in lines:  # nothing is drawn from 5 to 30, nor to the set
        assert [x is None or x != x for x in line.x] == [False, False, True, False, True, False]


@pytest.mark.parametrize(("to", "millimetres"), [("column", 85), ("page", 178)])
def test_a_printed_figure_has_the_width_of_a_column_or_page_and_nothing_to_click(detected, to, millimetres):
    figure = plots.signal_detection(detected, layer=5)
    before = json.loads(figure.to_json())
    printed = plots.for_print(figure, to)
    assert json.loads(figure.to_json()) == before
    assert printed.layout.width == pytest.approx(millimetres / 25.4 * 96, abs=1)
    assert not printed.layout.sliders
    assert printed.layout.title.text is None
    assert printed.layout.legend.orientation == "h"
    assert [trace.visible for trace in printed.data] == [trace.visible for trace in figure.data]
    assert plots.for_print(figure, to, title=True, height=500).layout.height >= 500
    assert plots.for_print(figure, to, title=True).layout.title.text == figure.layout.title.text
    assert_raises("'column' or 'page'", plots.for_print, figure, "poster")


def test_dose_response_goes_through_the_unsteered_cell_from_negative_to_positive(swept):
    figure = plots.dose_response(swept, facet="truth")
    for truth, axis in (("true", "x"), ("false", "x2")):
        (line,) = [trace for trace in figure.data if trace.name == "5" and trace.xaxis == axis]
        assert list(line.x) == [-0.4, -0.2, 0.0, 0.2, 0.4]
        rows = swept[(swept["truth"] == truth) & ((swept["vector"] == "honesty") & (swept["layers"] == "5"))]
        expected = rows.dropna(subset="multiplier").sort_values("multiplier")["shift"].tolist()
        expected.insert(2, row_of(swept, operation="none", truth=truth)["shift"])
        assert list(line.y) == expected
    assert named(figure, "3+5").line.dash == "dot"


def test_dose_response_shows_what_controls_of_either_sign_reach_at_each_dose_and_layer(swept):
    figure = plots.dose_response(swept, facet="truth")
    for truth, axis in (("true", "x"), ("false", "x2")):
        bands = [trace for trace in figure.data if trace.name == "controls" and trace.xaxis == axis]
        assert len(bands) == len(LAYERS)
        before = row_of(swept, operation="none", truth=truth)["shift"]
        expected = set()
        for layers in LAYERS:
            small, large = (
                control_values(swept, size, layers=layers, truth=truth)["shift"].agg(["min", "max"])
                for size in (2, 4)
            )
            high = [large["max"], small["max"], before, small["max"], large["max"]]
            low = [large["min"], small["min"], before, small["min"], large["min"]]
            expected.add((*high, *low))
        assert {tuple(trace.y) for trace in bands} == expected
        assert {tuple(trace.x[:5]) for trace in bands} == {(-0.4, -0.2, 0.0, 0.2, 0.4)}
        # one opaque grey: bands that lie upon each other look like one
        assert {(trace.fillcolor, trace.fill) for trace in bands} == {(bands[0].fillcolor, "toself")}
        assert bands[0].fillcolor.startswith("#")
    assert sum(bool(trace.showlegend) for trace in figure.data if trace.name == "controls") == 1


def test_controls_of_one_sign_have_a_band_on_both_sides(swept):
    half = swept[~swept["control"] | (swept["multiplier"] > 0)]
    figure = plots.dose_response(half, facet="truth")
    (band, *_) = (trace for trace in figure.data if trace.name == "controls")
    positions = np.array(band.x)
    assert positions.min() == pytest.approx(-positions.max())
    assert positions.max() > 0


def test_a_dose_within_its_own_layers_controls_is_a_ring(pooled):
    figure = plots.dose_response(pooled)
    for layers in LAYERS:
        line = named(figure, layers)
        (dots,) = [t for t in figure.data if t.mode == "markers" and t.legendgroup == layers]
        expected = []
        for x, y in zip(line.x, line.y, strict=True):
            null = control_values(pooled, 10 * abs(x), layers=layers)["shift"] if x else pd.Series([0.0])
            if null.min() <= y <= null.max():
                expected.append((x, y))
        assert list(zip(dots.x, dots.y, strict=True)) == expected


def test_more_than_five_control_vectors_over_multipliers_are_one_band():
    table = pooled_table(controls=6)
    ranks = multiplier_ranks(table, caller="")
    for count in (5, 6):
        rows = table[~table["control"] | (table["vector"] < f"random {count}")]
        (panel,) = panels_of(rows, None, caller="")
        traces = list(control_marks(panel, "shift", ranks, str))
        if count == 5:
            assert len(traces) == 5 * len(LAYERS)
            continue
        (band,) = traces
        assert list(band.x) == [0, 1, 2, 3, 3, 2, 1, 0]
        small, large = (control_values(rows, size)["shift"] for size in (2, 4))
        high = [large.max(), small.max(), small.max(), large.max()]
        low = [large.min(), small.min(), small.min(), large.min()]
        np.testing.assert_allclose(band.y, [*high, *low])


def test_dose_response_takes_the_multiplier_where_no_dose_is_known(swept):
    recorded = swept.assign(dose=swept["dose"].where(swept["operation"] == "none"))
    for figure in (
        plots.dose_response(recorded, facet="truth"),
        plots.dose_response(swept, facet="truth", x="multiplier"),
    ):
        (line,) = [trace for trace in figure.data if trace.name == "5" and trace.xaxis == "x"]
        multipliers = swept.loc[(swept["layers"] == "5") & ~swept["control"], "multiplier"].dropna()
        assert list(line.x) == sorted({0.0, *multipliers})
        assert figure.layout.xaxis.title.text == "multiplier of the vector"
        assert "by multiplier" in figure.layout.title.text


def test_many_layers_are_told_apart_by_a_colour_bar_instead_of_a_long_legend(pooled):
    one = pooled[(pooled["layers"].isin(["3", ""])) & ~pooled["control"]]
    steered = one[one["layers"] == "3"]
    table = pd.concat([one, *(steered.assign(layers=str(layer)) for layer in range(10, 22))])
    figure = plots.dose_response(table)
    assert not any(trace.showlegend for trace in figure.data)
    (bar,) = [trace for trace in figure.data if trace.marker.showscale or trace.marker.colorbar.title.text]
    assert (bar.marker.cmin, bar.marker.cmax) == (3, 21)


# --- signal detection --------------------------------------------------------------------------------------


def test_signal_detection_shows_one_layers_path_in_the_order_of_the_multiplier(detected):
    figure = plots.signal_detection(detected, layer=5)
    assert [step.label for step in figure.layout.sliders[0].steps] == list(LAYERS)
    for step in figure.layout.sliders[0].steps:
        drawn = after(figure, step.args)
        shown = [trace for trace in drawn.data if trace.visible]
        assert sorted(trace.name for trace in shown) == [
            "add", "control directions", "project out", "unsteered",
        ]  # fmt: skip
        (path,) = [trace for trace in shown if trace.name == "add"]
        rows = detected[
            (detected["vector"].isin(["honesty", "none"])) & detected["layers"].isin([step.label, ""])
        ]
        rows = rows.dropna(subset="multiplier").sort_values("multiplier")
        assert list(path.x) == list(rows["criterion"])
        assert list(path.y) == list(rows["d_prime"])
        assert list(path.text) == ["−4", "−2", "", "+2", "+4"]
        np.testing.assert_allclose(path.error_x.array, rows["criterion_high"] - rows["criterion"])
        np.testing.assert_allclose(path.error_y.arrayminus, rows["d_prime"] - rows["d_prime_low"])
        (controls,) = [trace for trace in shown if trace.name == "control directions"]
        assert len(controls.x) == 3 * 5
    assert figure.layout.sliders[0].active == 1
    assert [trace.visible for trace in figure.data] == figure.layout.sliders[0].steps[1].args[0]["visible"]


def test_signal_detection_says_the_auc_and_the_verdict_where_they_are_known(detected):
    scored = detected.assign(auc=0.9, auc_low=0.85, auc_high=0.95, verdict="bias")
    for table, known in ((detected, False), (scored, True), (scored.assign(auc=np.nan, verdict=""), False)):
        texts = [text for trace in plots.signal_detection(table).data for text in trace.hovertext]
        for part in ("AUC 0.9 [0.85, 0.95]", "verdict: bias"):
            assert all((part in text) == known for text in texts)


def test_signal_detection_keeps_its_axes_over_layers_and_says_what_they_mean(detected):
    figure = plots.signal_detection(detected)
    assert "says the signal more often" in figure.layout.xaxis.title.text
    assert "d′" in figure.layout.yaxis.title.text
    for axis, value in ((figure.layout.xaxis, "criterion"), (figure.layout.yaxis, "d_prime")):
        real = detected[~detected["control"]]
        assert axis.range[0] < min(real[f"{value}_low"].min(), detected[value].min())
        assert axis.range[1] > max(real[f"{value}_high"].max(), detected[value].max())
    texts = texts_of(figure)
    assert any("hits 80%, false alarms 30%" in text for text in texts)


# Names of columns of figures and tables.
FACTORS = (
    "honest", "value", "rank", "level", "count", "low", "label", "x", "y", "group", "size", "name", "again",
    "row_name",
)  # fmt: skip


@pytest.mark.parametrize("name", FACTORS)
def test_a_factor_may_have_any_name_and_only_drawn_columns_are_checked(name, swept, projected, components):
    sweep = grouped_sweep().drop(columns="group")
    slopes, lines = (
        steerable(sweep.astype({"topic": str}), **options)
        for steerable, options in ((prompt_slopes, {}), (steerability, {"by": "topic", "resamples": 5}))
    )
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
    figure = plots.dose_response(sweep_table(truths=tuple("abcdef"[:n_panels])), facet="truth")
    titles = [axis.title.text for axis in figure.select_xaxes() if axis.title.text]
    assert "stream norm), signed" in titles[0].replace("<br>", " ")
    longest = max(len(line) for title in titles for line in title.split("<br>"))
    assert 6.8 * longest * len(titles) <= 560


@pytest.mark.parametrize("n_layers", [12, 30, 48, 80])
@pytest.mark.parametrize("columns", [1, 3])
def test_layer_axes_have_a_few_ticks_of_whole_layers(n_layers, columns):
    positions = {str(layer): float(layer) for layer in range(n_layers)} | {"17+31": n_layers + 9.0}
    *singles, layer_set = layer_axis(positions, columns)["ticktext"]
    assert layer_set == "17+31"
    assert 4 <= len(singles) <= 12
    assert np.ptp(np.diff(list(map(int, singles)))) == 0


def test_layer_axes_of_every_other_layer_have_ticks():
    assert layer_axis({str(layer): float(layer) for layer in range(1, 18, 2)}, 3)["ticktext"] == [
        "1", "5", "9", "13", "17",
    ]  # fmt: skip


@pytest.mark.parametrize("longest", range(20, 60))
def test_long_texts_are_not_cut_or_broken_within_a_special_token(longest):
    text = "Hello you<|im_end|>\n<|im_start|>assistant\n" + "x" * 40 + "<|im_end|>" * 3 + " [/INST] good bye"
    table = pd.DataFrame({"prompt_id": [0], "prompt": [text], **{name: [text] for name in "abcdef"}})
    (column, *_) = plots.side_by_side(table, max_length=longest).data[0].cells["values"]
    shown = column[0].replace("&lt;", "<").replace("&gt;", ">").replace("<br>", "⏎")
    rest = re.sub(r"<\|im_(end|start)\|>|\[/INST\]", "", shown)
    assert not set(rest.replace("[…]", "")) & set("<|>[]/_I"), shown
