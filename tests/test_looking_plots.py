"""Figures of means, components and the logit lens hold what their tables hold."""

import itertools

import numpy as np
import pandas as pd
import pytest

import tl_steer as ts
from tl_steer import plots
from tl_steer.analysis import component_factors as factors_table
from tl_steer.analysis import mean_projections as means_table
from tl_steer.models import ChatPrompt
from tl_steer.plots import style
from tl_steer.plots.format import escape, visible

from .conftest import assert_raises
from .test_plots import (
    NASTY,
    activation_table,
    after,
    assert_common_style,
    assert_needs_table,
    named,
    texts_of,
)
from .tiny_model import make_model, word_tokenizer

SIDES = ("positive", "negative")


@pytest.fixture
def projected():
    return activation_table(["projection", "cosine"])


@pytest.fixture
def means(projected):
    return means_table(projected).sample(frac=1, random_state=0)


@pytest.fixture
def related():
    table = activation_table(["PC1", "PC2"]).drop(columns=["explained_3", "explained_4"], errors="ignore")
    table["topic"] = np.where(table["truth"], NASTY, "plain")
    table.loc[table["side"] == "positive", "PC1"] += 5
    return factors_table(table).sample(frac=1, random_state=0)


@pytest.fixture
def coordinates():
    """Two vectors of a hundred coordinates; the second has one far away."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 100))
    values[1, 42] = -30
    tables = []
    for layer, row in zip((3, 8), values, strict=True):
        share = row**2 / (row**2).sum()
        rows = pd.DataFrame({"layer": layer, "coordinate": range(100), "value": row, "share": share})
        rows["rank"] = pd.Series(-share).rank().astype(int)
        tables.append(rows.assign(spread=np.sqrt((row**2).mean()), kurtosis=1.5, n_half_energy=7 * layer))
    return pd.concat(tables).sample(frac=1, random_state=0)


def lens_table(layers=(0, 4, 9), multipliers=(20.0, -20.0), top=3):
    rng = np.random.default_rng(0)
    cells = itertools.product(layers, multipliers, range(1, top + 1))
    table = pd.DataFrame(cells, columns=["layer", "multiplier", "rank"])
    table["token_id"] = range(100, 100 + len(table))
    table["token"] = [f" t{index}" for index in range(len(table))]
    table["logit"] = rng.normal(size=len(table))
    table["probability"] = rng.uniform(size=len(table))
    return table.sample(frac=1, random_state=0)


@pytest.fixture
def lens():
    return lens_table()


@pytest.mark.parametrize(
    ("name", "fixture", "column"),
    [
        ("mean_projections", "means", "projection_low"),
        ("component_factors", "related", "correlation"),
        ("vector_components", "coordinates", "share"),
        ("logit_lens", "lens", "token"),
    ],
)
def test_figures_need_their_table_and_share_one_style(name, fixture, column, request):
    table = request.getfixturevalue(fixture)
    assert_needs_table(name, table, column, name)
    assert_common_style(name, table).to_json()


@pytest.mark.parametrize(
    ("name", "fixture"), [("component_factors", "related"), ("vector_components", "coordinates")]
)
def test_an_unknown_layer_and_repeated_rows_raise(name, fixture, request):
    table = request.getfixturevalue(fixture)
    assert_raises("no layer 7 in the table; it has", getattr(plots, name), table, layer=7)
    assert_raises("expected one", getattr(plots, name), pd.concat([table, table]))


# --- means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["projection", "cosine"])
def test_means_show_both_sides_and_the_difference_below(means, value):
    figure = plots.mean_projections(means, value=value)
    below = "y3" if value == "projection" else "y2"
    for name, axis in (("positive", "y"), ("negative", "y"), ("difference", below)):
        rows = means[means["side"] == name].sort_values("layer")
        line = named(figure, name)
        assert (line.yaxis or "y") == axis
        assert list(line.x) == [0, 4, 9]
        assert list(line.y) == list(rows[value])
        around = next(trace for trace in figure.data if trace.name == name and trace.fill == "toself")
        assert list(around.y) == [*rows[f"{value}_high"], *rows[f"{value}_low"][::-1]]
        assert f"{value} {rows[value].iloc[0]:.3g}".replace("-", "−") in line.hovertext[0]
    assert named(figure, "positive").line.color == style.MEANINGS["positive"]
    assert named(figure, "negative").line.color == style.MEANINGS["negative"]
    assert figure.layout[below.replace("y", "xaxis")].title.text == "layer"
    assert "6 pairs" in figure.layout.title.subtitle.text


def test_the_spread_of_each_side_has_a_panel_between(means):
    figure = plots.mean_projections(means)
    for side in SIDES:
        rows = means[means["side"] == side].sort_values("layer")
        around, line = (each for each in figure.data if each.name == side and each.yaxis == "y2")
        assert list(line.y) == list(rows["spread"])
        assert list(around.y) == [*rows["spread_high"], *rows["spread_low"][::-1]]
        assert line.showlegend is False
        assert f"spread {rows['spread'].iloc[0]:.3g}" in line.hovertext[0]
    assert figure.layout.yaxis2.title.text == "spread (SD)"
    assert_raises("lacks the columns spread_low", plots.mean_projections, means.drop(columns="spread_low"))


def test_the_first_ranks_are_written_at_the_differences_of_projections_only(projected):
    many = activation_table(["projection", "cosine"], layers=range(6))
    table = means_table(many)
    line = named(plots.mean_projections(table), "difference")
    ranks = table[table["side"] == "difference"]["rank"]
    assert list(line.text) == [str(rank) if rank <= 3 else "" for rank in ranks]
    assert all(f"rank {rank};" in text for rank, text in zip(ranks, line.hovertext, strict=True))
    assert named(plots.mean_projections(table, value="cosine"), "difference").text is None


def test_a_factor_and_the_side_differ_by_dashes_and_names_never_become_markup(projected):
    loud = projected.assign(topic=np.where(projected["truth"], NASTY, "plain"))
    texts = texts_of(plots.mean_projections(means_table(loud, by=["side", "topic"])))
    assert not any("<a href" in text or "<b>loud" in text for text in texts)
    assert any("&lt;b&gt;loud" in text for text in texts)
    table = means_table(projected, by=["side", "truth"])
    figure = plots.mean_projections(table)
    names = [f"{side}, {truth}" for side in (*SIDES, "difference") for truth in (True, False)]
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == names
    for truth in (True, False):
        lines = [named(figure, f"{side}, {truth}") for side in (*SIDES, "difference")]
        assert len({line.line.dash for line in lines}) == 1
        rows = table[(table["truth"] == truth) & (table["side"] == "difference")]
        assert list(lines[2].y) == list(rows["projection"])
    assert named(figure, "positive, True").line.dash != named(figure, "positive, False").line.dash


def test_means_of_one_factor_have_no_difference(projected):
    figure = plots.mean_projections(means_table(projected, by="truth"))
    assert named(figure, "True").line.color == style.MEANINGS["true"]
    assert [axis.title.text for axis in figure.select_yaxes()][1:] == ["spread (SD)"]
    assert "6 prompts" in figure.layout.title.subtitle.text


def test_means_of_two_factors_and_an_unknown_value_raise(projected, means):
    assert_raises("'projection' or 'cosine'; got", plots.mean_projections, means, value="effect")
    three = means_table(projected.assign(half=projected["pair"] < 3), by=["side", "truth", "half"])
    assert_raises(r"split by \['side', 'truth', 'half'\]", plots.mean_projections, three)


# --- components and factors --------------------------------------------------------------------------------


def test_the_heatmap_holds_each_layers_correlations_centred_on_zero(related):
    figure = plots.component_factors(related, layer=4)
    (heatmap,) = figure.data
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    steps = figure.layout.sliders[0].steps
    assert [step.label for step in steps] == ["0", "4", "9"]
    assert figure.layout.sliders[0].active == 1
    for drawn, layer in ((figure, 4), (after(figure, steps[2].args), 9)):
        (heatmap,) = drawn.data
        assert [name[:3] for name in heatmap.y] == ["PC1", "PC2"]
        explained = 100 * (0.4 + layer / 100)
        assert heatmap.y[0] == f"PC1 ({explained:.3g}%)"
        for row, column in itertools.product(range(2), range(len(heatmap.x))):
            factor, _, level = heatmap.x[column].partition(" = ")
            rows = related[(related["layer"] == layer) & (related["component"] == row + 1)]
            rows = rows[rows["factor"] == factor]
            (cell,) = rows[rows["level"].map(escape) == level].to_dict("records")
            assert heatmap.z[row][column] == pytest.approx(cell["correlation"], rel=1e-4)
            sure = cell["correlation_low"] * cell["correlation_high"] > 0
            assert heatmap.text[row][column].startswith("<b>") == sure
            shown = heatmap.text[row][column].removeprefix("<b>").removesuffix("</b>").replace("−", "-")
            assert float(shown) == pytest.approx(cell["correlation"], abs=0.005001)
            assert "n = 12 prompts, 6 independent units" in heatmap.hovertext[row][column]
    assert not any("<b>loud" in text or "<a " in text for text in texts_of(figure))
    assert "side = positive" in figure.data[0].x


def test_a_missing_correlation_is_a_dash_and_too_many_factors_raise(related):
    many = pd.concat([related.assign(factor=f"factor {index}") for index in range(15)])
    many = many.drop_duplicates(["layer", "component", "factor", "level"])
    assert_raises("at most 14", plots.component_factors, many)
    related.loc[related["layer"] == 4, ["correlation", "correlation_low", "correlation_high"]] = np.nan
    (heatmap,) = plots.component_factors(related, layer=4).data
    assert set(itertools.chain(*heatmap.text)) == {"–"}
    assert set(itertools.chain(*heatmap.z)) == {None}


# --- a vector's own numbers --------------------------------------------------------------------------------


def test_the_histogram_counts_every_coordinate_and_names_the_largest(coordinates):
    figure = plots.vector_components(coordinates, layer=3)
    for drawn, layer in ((figure, 3), (after(figure, figure.layout.sliders[0].steps[1].args), 8)):
        bars, curve, strip = drawn.data
        rows = coordinates[coordinates["layer"] == layer]
        counts, edges = np.histogram(rows["value"], bins=60)
        assert [count or 0 for count in bars.y] == list(counts)
        assert sum(count or 0 for count in bars.y) == 100
        np.testing.assert_allclose(bars.x, (edges[1:] + edges[:-1]) / 2, rtol=1e-3, atol=1e-3)
        spread, width = rows["spread"].iloc[0], edges[1] - edges[0]
        at = len(curve.x) // 2
        density = np.exp(-((curve.x[at] / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
        assert curve.y[at] == pytest.approx(100 * width * density, rel=1e-3)
        largest = rows.sort_values("rank").head(6)
        np.testing.assert_allclose(strip.x, largest["value"], rtol=1e-4)
        for text, coordinate in zip(strip.text, largest["coordinate"], strict=True):
            assert text.split()[0] == str(coordinate)
        assert f"layer {layer}: {7 * layer} of 100" in drawn.layout.title.subtitle.text
    assert drawn.data[2].text[0].split()[0] == "42"
    assert drawn.data[2].textposition[0] == "middle right", "toward the middle"


# --- logit lens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["probability", "logit"])
def test_the_lens_has_a_panel_per_multiplier_and_each_token_in_its_cell(lens, value):
    figure = plots.logit_lens(lens, value=value)
    assert [note.text for note in figure.layout.annotations] == ["vector × +20", "vector × −20"]
    for heatmap, multiplier in zip(figure.data, (20.0, -20.0), strict=True):
        assert list(heatmap.x) == [1, 2, 3]
        assert list(heatmap.y) == ["0", "4", "9"]
        for (row, layer), (column, rank) in itertools.product(enumerate((0, 4, 9)), enumerate((1, 2, 3))):
            where = (lens["layer"] == layer) & (lens["rank"] == rank) & (lens["multiplier"] == multiplier)
            (cell,) = lens[where].to_dict("records")
            assert heatmap.z[row][column] == pytest.approx(cell[value], rel=1e-4)
            assert heatmap.text[row][column] == cell["token"].replace(" ", "␣")
            assert f"(id {cell['token_id']})" in heatmap.hovertext[row][column]
            assert f"probability {cell['probability']:.3g}" in heatmap.hovertext[row][column]
    assert {heatmap.coloraxis for heatmap in figure.data} == {"coloraxis"}
    assert figure.layout.coloraxis.cmax == lens[value].max()
    assert figure.layout.coloraxis.cmin == (0 if value == "probability" else lens["logit"].min())


@pytest.mark.parametrize(
    ("count", "shown"),
    [(12, list(range(12))), (13, [0, 2, 4, 6, 8, 10, 12]), (30, [2, 5, 8, 11, 14, 17, 20, 23, 26, 29])],
)
def test_of_many_layers_every_kth_from_the_last_is_shown(count, shown):
    table = lens_table(layers=range(count), top=1)
    figure = plots.logit_lens(table)
    assert list(figure.data[0].y) == [str(layer) for layer in shown]
    assert f"{len(shown)} of {count} layers" in figure.layout.title.subtitle.text
    chosen = plots.logit_lens(table, layers=[5, 1])
    assert list(chosen.data[0].y) == ["1", "5"]
    assert len(plots.logit_lens(table, layers=range(count)).data[1].y) == count


def test_a_figure_of_more_layers_is_taller_and_ranks_beyond_ten_are_left_out():
    table = lens_table(layers=range(12), top=12)
    figure = plots.logit_lens(table)
    assert list(figure.data[0].x) == list(range(1, 11))
    assert figure.layout.height > plots.logit_lens(table, layers=[0]).layout.height + 2 * 11 * 20


def test_activations_are_told_apart_by_prompt_and_token(lens):
    table = lens.drop(columns="multiplier").assign(
        prompt_id=lens["multiplier"].map({20.0: 0, -20.0: 3}), token_index=7, prompt=NASTY
    )
    figure = plots.logit_lens(table)
    assert [note.text for note in figure.layout.annotations] == ["prompt 0, token 7", "prompt 3, token 7"]
    assert "&lt;b&gt;loud" in figure.data[0].hovertext[0][0]


def test_tokens_are_text_and_nothing_in_them_is_unseen_or_active(lens):
    lens["token"] = NASTY
    texts = texts_of(plots.logit_lens(lens))
    assert not any("<b>loud" in text or "<a " in text or "%{x}" in text for text in texts)
    assert any("&lt;b&gt;loud" in text for text in texts)
    assert visible(" the") == "␣the"
    assert visible("\n\t") == "⏎⇥"
    assert visible("\u200b") == "<U+200B>"
    assert visible("\ufe0f") == "<U+FE0F>", "an accent that stands alone"
    assert visible("e\u0301") == "e\u0301"
    assert visible("\xa0") == "<U+00A0>"
    assert visible("日本é") == "日本é"


def test_long_tokens_are_cut_in_their_cell_and_whole_in_the_hover(lens):
    lens["token"] = "=" * 40
    heatmap = plots.logit_lens(lens).data[0]
    assert heatmap.text[0][0] == "=" * 10 + "…"
    assert "=" * 40 in heatmap.hovertext[0][0]


def test_the_lens_raises_for_tables_and_arguments_that_do_not_fit(lens):
    assert_raises("'probability' or 'logit'; got", plots.logit_lens, lens, value="rank")
    assert_raises(r"no layers \[7\] in the table; it has 0, 4, 9", plots.logit_lens, lens, layers=[4, 7])
    assert_raises("share their layer and rank", plots.logit_lens, pd.concat([lens, lens]))
    with pytest.raises(ValueError, match=r"5 combinations of \['multiplier'\] are too many"):
        plots.logit_lens(lens_table(multipliers=(1, 2, 3, 4, 5)))


# --- histograms of projections -----------------------------------------------------------------------------


def test_a_panel_of_all_prompts_stands_before_those_of_a_factor(projected):
    figure = plots.projections(projected, facet="truth", overall=True, layer=4)
    assert [note.text for note in figure.layout.annotations] == ["all", "truth: True", "truth: False"]
    histograms = [trace for trace in figure.data if trace.type == "histogram"]
    assert [len(trace.x) for trace in histograms] == [6, 6, 3, 3, 3, 3]
    rows = projected[projected["layer"] == 4].sort_values("pair")
    for index, side in enumerate(SIDES):
        np.testing.assert_allclose(histograms[index].x, rows[rows["side"] == side]["projection"], rtol=1e-4)
    moved = after(figure, figure.layout.sliders[0].steps[2].args)
    rows = projected[(projected["layer"] == 9) & (projected["side"] == "positive")].sort_values("pair")
    np.testing.assert_allclose(moved.data[0].x, rows["projection"], rtol=1e-4)
    assert sum(trace.showlegend is not False for trace in figure.data) == 2


def test_the_panel_of_all_prompts_counts_and_is_the_only_one_without_a_factor(projected):
    four = projected.assign(topic=projected["pair"] % 4)
    assert len(plots.projections(four, facet="topic").layout.annotations) == 4
    assert_raises("at most 4 panels", plots.projections, four, facet="topic", overall=True)
    assert plots.projections(projected, overall=True) == plots.projections(projected)


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
        figure = getattr(plots, name)
        shown, older = (figure(each).to_json() for each in (table, table.drop(columns="label")))
        assert ["a e" in text for text in (shown, older)] == [True, True], name
        assert ["a e d" in text for text in (shown, older)] == [False, True], name
