"""How far vectors of the same pairs agree, and whether that predicts what they do later."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer import plots
from tl_steer.analysis import agreement, method_agreement, separation
from tl_steer.analysis._agreement import bootstrap_rows
from tl_steer.analysis._confounds import permuted_rows
from tl_steer.analysis._separation import balanced_folds
from tl_steer.directions import logistic_direction, mean_difference, principal_component
from tl_steer.evaluation import prediction

from .conftest import assert_raises, make_pairs
from .test_plots import named

MEAN = {"mean_difference": mean_difference}
QUICK = {"splits": 20, "resamples": 20, "shuffles": 20}
GROUPS = pd.DataFrame({"group": np.arange(40) // 2})
LETTERS = GROUPS.assign(letter=["A", "A", "B", "B"] * 10)


def noisy(signal, *, pairs=40, width=64, noise=1.0, factors=None, seed=0):
    """Pairs that differ by `signal` ("layer width") plus noise, next to a topic that both sides share."""
    rng = np.random.default_rng(seed)
    signal = np.broadcast_to(signal, (np.shape(signal)[0], width))
    topic = rng.normal(size=(pairs, 1, width))
    sides = [topic + noise * rng.normal(size=(pairs, len(signal), width)) / np.sqrt(2) for _ in range(2)]
    return make_pairs(sides[0] + signal, sides[1], factors=factors)


def unit(width=64):
    axis = np.random.default_rng(5).normal(size=width)
    return axis / np.linalg.norm(axis)


def cosine(one, other):
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def differences(pairs):
    return (pairs.positive.values - pairs.negative.values)[:, :, 0].double().numpy()


def both_ways(estimator, function):
    """An estimator inside a lambda is not recognised, so it runs on the activations of each draw."""
    return [function(each) for each in (estimator, lambda pairs: estimator(pairs))]


def test_the_table_has_a_row_per_layer_and_method():
    table = agreement(noisy(np.stack([unit(), 0 * unit()])), **QUICK)
    columns = "layer method split_half split_half_low split_half_high split_half_null reliability single"
    assert list(table) == f"{columns} single_low single_high cone between pairs".split()
    assert list(table["layer"]) == [0, 1] * 4
    methods = ["mean_difference", "principal_component", "logistic_direction", "lda_direction"]
    assert list(table["method"]) == np.repeat(methods, 2).tolist()
    assert set(table["pairs"]) == {40}


def test_split_halves_and_single_pairs_equal_plain_loops():
    pairs = noisy(np.stack([2 * unit(), 0.5 * unit()]), factors=GROUPS)
    result = agreement(pairs, estimators=MEAN, **QUICK, seed=3)
    seeds = np.random.SeedSequence(3).generate_state(20)
    halves = [balanced_folds(GROUPS, folds=2, seed=int(each)) == 0 for each in seeds]
    for layer, rows in enumerate(differences(pairs).swapaxes(0, 1)):
        row = result.loc[layer]
        split = [cosine(rows[half].mean(0), rows[~half].mean(0)) for half in halves]
        single = [cosine(each, rows.mean(0)) for each in rows]
        for name, cosines in (("split_half", split), ("single", single)):
            expected = [np.mean(cosines), *np.quantile(cosines, [0.025, 0.975])]
            assert list(row[[name, f"{name}_low", f"{name}_high"]]) == pytest.approx(expected, abs=1e-6)
        assert row["reliability"] == pytest.approx(np.sqrt(2 / (1 + 1 / np.mean(split))), abs=1e-6)


OPTIONS = [{}] + [
    {"component": component, "of": of, "sign": sign}
    for component in (1, 2)
    for of in ("pooled", "differences", "centred_differences", "pair_centred")
    for sign in ("mean", "vote")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_shortcut_through_inner_products_equals_estimates_from_activations(options):
    width = 10 if options.get("sign") == "vote" else 90
    factors = pd.DataFrame({"group": np.arange(24) // 2, "letter": ["A", "B"] * 12})
    pairs = noisy(np.stack([unit(width), 0 * unit(width)]), pairs=24, width=width, factors=factors)
    estimator = partial(principal_component, **options) if options else mean_difference
    for function in (
        lambda each: agreement(pairs, estimators={"it": each}, **QUICK).drop(columns="reliability"),
        lambda each: separation(pairs, estimator=each, shuffles=20),
    ):
        pd.testing.assert_frame_equal(*both_ways(estimator, function), atol=2e-5, rtol=0)


def test_draws_in_which_no_pair_differs_have_no_cosine_and_no_reliability():
    positive = np.repeat(np.random.default_rng(0).normal(size=(1, 1, 6)), 8, axis=0)
    pairs = make_pairs(positive, positive + np.eye(8)[0, :, None, None])

    def measured(estimator):
        return agreement(pairs, estimators={"it": estimator}, **QUICK)

    tables = both_ways(mean_difference, measured)
    pd.testing.assert_frame_equal(*tables, atol=1e-5, rtol=0)
    assert tables[0][["split_half", "reliability", "cone"]].isna().all(axis=None)
    component = partial(principal_component, of="differences")
    both_ways(component, lambda each: assert_raises(r"layers \[0\]", measured, each))


def test_shuffled_labels_that_cancel_to_rounding_are_ties_in_the_null():
    """Twelve times the same difference, of far longer activations in float32; eight train."""
    rng = np.random.default_rng(0)
    topic = 1000 * rng.normal(size=(12, 1, 30))
    positive, negative = (np.float32(each) for each in (topic + rng.normal(size=30), topic))
    pairs = make_pairs(positive, negative)
    tables = both_ways(mean_difference, lambda each: separation(pairs, estimator=each, folds=3, shuffles=100))
    pd.testing.assert_frame_equal(*tables, atol=1e-12, rtol=0)


def test_halves_keep_groups_whole_and_strata_balanced_and_the_null_swaps_half_the_groups():
    marked = make_pairs(np.ones((40, 1, 2)), -np.ones((40, 1, 2)), factors=LETTERS)
    seen = []

    def spy(pairs):
        if len(pairs) < 40:
            seen.append(pairs.factors.assign(sign=pairs.sides()[0][:, 0, 0].numpy()))
        return mean_difference(pairs)

    agreement(marked, estimators={"spy": spy}, splits=4, shuffles=20, resamples=1)
    assert len(seen) == 2 * (4 + 20)
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert set(one["group"]) & set(other["group"]) == set()
    for number, half in enumerate(seen):
        assert (half.groupby("group")["sign"].nunique() == 1).all()
        assert set(half.groupby("letter")["sign"].sum()) == ({10} if number < 8 else {0})


def test_the_cone_contains_95_percent_of_resampled_vectors():
    """Against a loop over the rows drawn, in degrees by the arctangent."""
    pairs = noisy(unit()[None], noise=0.3, factors=GROUPS)
    result = agreement(pairs, estimators=MEAN, splits=1, shuffles=1, resamples=60, seed=2)["cone"].item()
    rows = differences(pairs)[:, 0]
    whole = rows.mean(0) / np.linalg.norm(rows.mean(0))
    angles = []
    for each in np.random.SeedSequence(2).generate_state(60):
        drawn = rows[bootstrap_rows(GROUPS, np.random.default_rng(int(each)))].mean(0)
        across = drawn - (drawn @ whole) * whole
        angles.append(np.degrees(np.arctan2(np.linalg.norm(across), drawn @ whole)))
    assert result == pytest.approx(np.quantile(angles, 0.95), abs=1e-3)


def test_the_cone_of_noise_alone_is_45_degrees_and_not_90():
    """Draws scatter around the vector as it scatters around the truth: tan = 1."""
    cone = agreement(noisy(np.zeros((1, 1500)), pairs=60, width=1500), estimators=MEAN, **QUICK)["cone"]
    assert cone.item() == pytest.approx(45, abs=4)


def test_agreement_grows_with_the_signal_and_predicts_effects_that_do():
    strength = np.linspace(0, 3, 8)
    source = agreement(noisy(strength[:, None] * unit(), noise=0.5), estimators=MEAN, **QUICK)
    noise, *_, signal = source.iloc
    assert noise["split_half"] < noise["split_half_null"]
    assert signal["split_half_null"] < 0.5 < 0.8 < signal["split_half"]
    effects = effects_of(strength + 0.05 * np.random.default_rng(0).normal(size=8), dose=0.3)
    correlation = prediction(source, effects).set_index("measure")["correlation"]
    assert correlation["split_half"] > 0.8
    assert correlation["cone"] < -0.8


@pytest.mark.statistics
def test_reliability_is_the_cosine_with_the_vector_of_infinitely_many_pairs():
    truth, reliability, reached = 0.8 * unit(width=400), [], []
    for seed in range(12):
        pairs = noisy(truth[None], pairs=100, width=400, noise=0.4, seed=seed)
        reliability.append(agreement(pairs, estimators=MEAN, **QUICK)["reliability"].item())
        reached.append(cosine(mean_difference(pairs).values[0].double().numpy(), truth))
    assert 0.5 < np.mean(reached) < 0.95
    assert np.mean(reliability) == pytest.approx(np.mean(reached), abs=0.02)


def test_a_principal_component_of_differences_ignores_the_labels():
    """Its axis is the same whichever side is which, so its null is as high as itself."""
    pairs = noisy(3 * unit()[None], noise=0.3)
    row = agreement(pairs, estimators={"pc": partial(principal_component, of="differences")}, **QUICK).loc[0]
    assert row[["split_half", "split_half_null"]].min() > 0.9
    assert np.isnan(row["reliability"])


def test_slow_methods_are_resampled_less_often_and_have_no_percentiles():
    calls, pairs = [], noisy(unit()[None])

    def counting(pairs):
        calls.append(len(pairs))
        return mean_difference(pairs)

    table = agreement(pairs, estimators={"slow": logistic_direction, "quick": counting}, **QUICK)
    slow, quick = table.iloc
    assert len(calls) == 1 + 2 * 20 + 2 * 20 + 20
    percentiles = ["split_half_low", "split_half_high", "split_half_null", "cone"]
    assert slow[percentiles].isna().all()
    assert quick[percentiles].notna().all()
    assert slow[["split_half", "single", "between"]].notna().all()
    more = agreement(pairs, estimators={"slow": logistic_direction}, **QUICK, slow_resamples=20)
    assert more[percentiles].notna().all(axis=None)


def test_methods_are_compared_both_ways_and_agreement_has_their_mean():
    pairs = noisy(np.stack([unit(), 3 * unit()]))
    methods = MEAN | {"logistic": logistic_direction, "against": lambda pairs: -mean_difference(pairs)}
    table = method_agreement(pairs, estimators=methods).set_index(["layer", "method", "other"])["cosine"]
    assert len(table) == 2 * 3 * 2
    vectors = {name: each(pairs).values.double().numpy() for name, each in methods.items()}
    for (layer, one, other), result in table.items():
        assert result == pytest.approx(cosine(vectors[one][layer], vectors[other][layer]), abs=1e-6)
    assert table[1, "mean_difference", "against"] == pytest.approx(-1)
    means = agreement(pairs, estimators=methods, **QUICK).set_index(["layer", "method"])["between"]
    expected = table.groupby(level=["layer", "method"], sort=False).mean()
    assert means.to_dict() == pytest.approx(expected.to_dict())
    assert agreement(pairs, estimators=MEAN, **QUICK)["between"].isna().all()
    assert method_agreement(pairs, estimators=MEAN).empty


def test_the_same_seed_gives_the_same_table_and_the_pairs_are_unchanged():
    pairs = noisy(unit()[None])
    before = pairs.positive.values.clone()
    one, two, other = (agreement(pairs, estimators=MEAN, **QUICK, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)
    assert (pairs.positive.values == before).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pairs: agreement(pairs.subset(range(3))), r"3 groups of pairs: .* at least 4"),
        (lambda pairs: method_agreement(pairs, estimators={}), "no estimators given"),
        (lambda pairs: method_agreement(pairs, estimators={"a": len}), "len returned int"),
        (lambda pairs: method_agreement(pairs, estimators={"\ud800": len}), r"'\\ud800' has half"),
        (lambda pairs: agreement(pairs, splits=0), r"\(0, 100, 200, 5\): give 1 or more"),
    ],
)  # fmt: skip
def test_wrong_input_is_rejected(call, message):
    assert_raises(message, call, noisy(unit()[None]), error=(ValueError, TypeError))


STRATA = pd.DataFrame(
    {"group": np.arange(60) // 2, "letter": ["A", "B"] * 30, "label": np.repeat([0, 1, 0], 20)}
)


def test_bootstrap_rows_draw_whole_groups_within_their_stratum():
    for seed in range(10):
        drawn = STRATA.iloc[bootstrap_rows(STRATA, np.random.default_rng(seed))]
        counts = drawn.groupby("group")["letter"].value_counts().unstack()
        assert (counts["A"] == counts["B"]).all()
        assert drawn["label"].value_counts().to_dict() == {0: 40, 1: 20}
        assert drawn["group"].nunique() < 30


def test_bootstrap_rows_of_plain_pairs_draw_pairs():
    plain = pd.DataFrame(index=range(30))
    rows = np.stack([bootstrap_rows(plain, np.random.default_rng(seed)) for seed in range(200)])
    assert rows.shape == (200, 30)
    assert np.bincount(rows.ravel(), minlength=30).min() > 140  # 200 expected
    assert np.mean([len(set(row)) for row in rows]) == pytest.approx(30 * (1 - (29 / 30) ** 30), abs=0.5)


def test_permuted_rows_keep_groups_together_and_balanced():
    orders = set()
    for seed in range(20):
        rows = permuted_rows(STRATA, np.random.default_rng(seed))
        assert sorted(rows) == list(range(60))
        moved = STRATA.iloc[rows].reset_index(drop=True)
        levels = moved.groupby(STRATA["group"])[["label", "letter"]].nunique()
        assert (levels == [1, 2]).all(axis=None)
        orders.add(tuple(moved["group"]))
        assert set(moved["letter"][::2]) == {"A", "B"}  # in each group A came first: pairs are permuted, too
    assert len(orders) == 20
    rows = permuted_rows(pd.DataFrame({"group": [0, 1, 1, 2, 3, 3, 4]}), np.random.default_rng(1))
    assert sorted(rows) == list(range(7))
    assert {tuple(sorted(rows[1:3])), tuple(sorted(rows[4:6]))} == {(1, 2), (4, 5)}  # groups of one size


def effects_of(sizes, *, dose=0.5, multiplier=1.0):
    """A table as from `effectiveness`, of single layers; with a control, two layers and no steering."""
    columns = {
        "vector": "honesty", "control": False, "operation": "add", "shift": sizes, "hook": "resid_post",
        "layers": list(map(str, range(len(sizes)))), "multiplier": multiplier, "dose": dose,
    }  # fmt: skip
    steered = pd.DataFrame(columns)
    controls = steered.assign(vector="random 1", control=True, shift=np.arange(len(sizes)) ** 2)
    several = steered[:1].assign(layers="1+2", shift=99.0)
    unsteered = steered[:1].assign(vector="none", layers="", operation="none", multiplier=0.0, dose=0.0)
    return pd.concat([unsteered, controls, several, steered]).sample(frac=1, random_state=0)


def measures(**columns):
    return pd.DataFrame({"layer": range(12), "method": "mean_difference", **columns})


SIZES, MEASURE = (np.random.default_rng(seed).normal(size=12) for seed in (4, 1))
EFFECTS, SINGLE = effects_of(SIZES), measures(single=SIZES)


def test_prediction_is_spearmans_correlation_with_the_size_of_the_effect():
    doses = np.linspace(0.2, 0.6, 12)
    table = prediction(measures(split_half=MEASURE, cone=-MEASURE), effects_of(SIZES, dose=doses))
    rank = stats.spearmanr(MEASURE, np.abs(SIZES) / doses).statistic
    assert table.set_index("measure")["correlation"].to_dict() == pytest.approx(
        {"split_half": rank, "cone": -rank}
    )
    expected = {
        "vector": "honesty", "operation": "add", "hook": "resid_post", "multiplier": 1.0,
        "method": "mean_difference", "n": 12, "dose_low": 0.2, "dose_high": 0.6,
    }  # fmt: skip
    assert table.loc[0, list(expected)].to_dict() == expected


def test_the_p_value_counts_circular_shifts():
    result = prediction(measures(auc=MEASURE), effects_of(SIZES))["p_value"].item()
    reached = [abs(stats.spearmanr(np.roll(MEASURE, shift), np.abs(SIZES)).statistic) for shift in range(12)]
    assert result == np.mean(np.array(reached) >= reached[0] - 1e-9)
    perfect = prediction(measures(auc=np.abs(SIZES)), effects_of(SIZES))
    assert perfect[["correlation", "p_value"]].iloc[0].tolist() == pytest.approx([1, 1 / 12])


def test_smooth_curves_are_not_called_related_as_often_as_a_free_permutation_would():
    rng = np.random.default_rng(0)
    shifted, free = [], []
    for _ in range(200):
        one, two = (np.convolve(np.tile(rng.normal(size=24), 3), np.ones(9), "same")[24:48] for _ in range(2))
        two = two - two.min() + 1
        table = prediction(pd.DataFrame({"layer": range(24), "single": one}), effects_of(two, dose=1.0))
        shifted.append(table["p_value"].item() <= 0.05)
        free.append(stats.spearmanr(one, two).pvalue <= 0.05)
    assert np.mean(free) > 0.2
    assert np.mean(shifted) < 0.1


def test_tables_of_several_methods_and_functions_are_each_compared():
    several = pd.concat([SINGLE, SINGLE.assign(method="lda_direction")])
    negative = effects_of(SIZES, multiplier=-1.0).query("vector == 'honesty'")
    table = prediction([several, measures(paired_accuracy=SIZES)], pd.concat([EFFECTS, negative]))
    rows = [("mean_difference", "single"), ("lda_direction", "single")]
    expected = dict.fromkeys([*rows, ("mean_difference", "paired_accuracy")], 2)
    assert table.groupby(["method", "measure"]).size().to_dict() == expected


def test_effects_without_a_dose_and_slopes_per_dose_are_not_divided():
    row = prediction(measures(single=MEASURE), effects_of(SIZES, dose=np.nan, multiplier=np.nan)).loc[0]
    assert row["correlation"] == pytest.approx(stats.spearmanr(MEASURE, np.abs(SIZES)).statistic)
    assert np.isnan(row["dose_low"])
    slopes = EFFECTS.rename(columns={"shift": "slope_per_dose"}).assign(n=40)
    slopes = slopes.drop(columns=["multiplier", "dose"])
    table = prediction(measures(single=np.abs(SIZES)), slopes, value="slope_per_dose")
    assert "multiplier" not in table
    assert table["correlation"].item() == pytest.approx(1)


def test_layers_without_a_measure_are_left_out_and_a_constant_has_no_correlation():
    known = np.where(np.arange(12) < 2, np.nan, np.abs(SIZES))
    row, constant = prediction(measures(reliability=known, single=1.0), EFFECTS).iloc
    assert row["n"] == 10
    assert row["correlation"] == pytest.approx(1)
    assert constant[["correlation", "p_value"]].isna().all()


TWICE = pd.concat([EFFECTS.assign(label=number) for number in (0, 1)]).sort_values("layers")


@pytest.mark.parametrize(
    ("table", "effects", "message"),
    [
        (SINGLE, EFFECTS.drop(columns="shift"), "lacks the columns shift"),
        (SINGLE, TWICE, "layer 0 is twice in the effects of honesty"),
        (pd.concat([SINGLE, SINGLE]).sort_values("layer"), EFFECTS, "0 is twice in the measures of mean"),
        (measures(other=SIZES), EFFECTS, "have no measure of"),
        (SINGLE[:3], EFFECTS, "3 layers in common"),
        (SINGLE, EFFECTS[EFFECTS["control"]], "no condition of one layer but controls"),
    ],
)  # fmt: skip
def test_prediction_rejects_tables_that_cannot_be_compared(table, effects, message):
    assert_raises(message, prediction, table, effects)


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    measured = {name: rng.uniform(0.3, 0.9, 10) for name in ("split_half", "single", "between", "cone")}
    ends = {f"{name}_{end}": measured[name] + by
            for name in ("split_half", "single") for end, by in (("low", -0.1), ("high", 0.1))}  # fmt: skip
    table = pd.DataFrame({"method": ["mean", "<b>lda</b>"] * 5, "layer": np.arange(10) // 2})
    table = table.assign(**measured, **ends, split_half_null=0.25, reliability=0.5, pairs=40)
    return table.sample(frac=1, random_state=0)


def test_the_figure_has_a_panel_per_measure_and_a_line_per_method(table):
    figure = plots.agreement(table)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 8
    rows = table[table["method"] == "mean"].sort_values("layer")
    for measure, axis in {"split_half": "y", "single": "y2", "between": "y3", "cone": "y4"}.items():
        (line,) = (each for each in lines if each.name == "mean" and each.yaxis == axis)
        assert list(line.x) == list(range(5))
        assert list(line.y) == list(rows[measure])
    assert [trace.name for trace in figure.data if trace.showlegend] == ["mean", "&lt;b&gt;lda&lt;/b&gt;"]
    assert figure.layout.annotations[3].text.endswith("(degrees)")
    assert "<b>lda" not in figure.to_json().replace("\\u003c", "<")
    dotted = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert [set(trace.y) for trace in dotted] == [{0.25}] * 2


def test_one_method_has_bands_and_no_panel_for_others(table):
    figure = plots.agreement(table[table["method"] == "mean"].assign(between=np.nan))
    assert len({trace.yaxis for trace in figure.data}) == 3
    assert sum(trace.fill == "toself" for trace in figure.data) == 3  # null, halves, single pairs
    assert named(figure, "mean").hovertext[0].startswith("<b>layer 0</b>, mean, 40 pairs<br>halves ")


def test_a_figure_of_another_table_is_rejected(table):
    message = r"plots\.agreement.*lacks the columns cone.*agreement"
    assert_raises(message, plots.agreement, table.drop(columns="cone"))
    assert_raises("there twice", plots.agreement, pd.concat([table, table]))
