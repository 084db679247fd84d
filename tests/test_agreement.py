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

from .conftest import make_pairs
from .test_plots import named

MEAN = {"mean_difference": mean_difference}
QUICK = {"splits": 20, "resamples": 20, "shuffles": 20}


def noisy(signal, *, pairs=40, width=64, noise=1.0, factors=None, seed=0):
    """Pairs that differ by `signal` ("layer width") plus noise, beside a topic that both sides share."""
    rng = np.random.default_rng(seed)
    signal = np.broadcast_to(signal, (np.shape(signal)[0], width))
    topic = rng.normal(size=(pairs, 1, width))
    sides = [topic + noise * rng.normal(size=(pairs, len(signal), width)) / np.sqrt(2) for _ in range(2)]
    return make_pairs(sides[0] + signal, sides[1], factors=factors)


def unit(width=64, seed=5):
    axis = np.random.default_rng(seed).normal(size=width)
    return axis / np.linalg.norm(axis)


def cosine(one, other):
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


# --- the card ---


def test_a_card_has_a_row_a_layer_and_method():
    table = agreement(noisy(np.stack([unit(), 0 * unit()])), **QUICK)
    assert list(table) == [
        "layer", "method", "split_half", "split_half_low", "split_half_high", "split_half_null",
        "reliability", "single", "single_low", "single_high", "cone", "between", "pairs",
    ]  # fmt: skip
    assert list(table["layer"]) == [0, 1] * 4
    assert list(table["method"].unique()) == [
        "mean_difference", "principal_component", "logistic_direction", "lda_direction",
    ]  # fmt: skip
    assert set(table["pairs"]) == {40}


def test_split_halves_are_a_plain_loop_over_halves():
    pairs = noisy(np.stack([2 * unit(), 0.5 * unit()]), factors=pd.DataFrame({"group": np.arange(40) // 2}))
    result = agreement(pairs, estimators=MEAN, **QUICK, seed=3)
    difference = (pairs.positive.values - pairs.negative.values)[:, :, 0].double().numpy()
    halves = [
        balanced_folds(pairs.factors, folds=2, seed=int(each)) == 0
        for each in np.random.SeedSequence(3).generate_state(20)
    ]
    for layer in (0, 1):
        rows = difference[:, layer]
        cosines = [cosine(rows[half].mean(0), rows[~half].mean(0)) for half in halves]
        row = result.loc[layer]
        assert row["split_half"] == pytest.approx(np.mean(cosines), abs=1e-6)
        assert row["split_half_low"] == pytest.approx(np.quantile(cosines, 0.025), abs=1e-6)
        assert row["split_half_high"] == pytest.approx(np.quantile(cosines, 0.975), abs=1e-6)
        assert row["reliability"] == pytest.approx(np.sqrt(2 / (1 + 1 / np.mean(cosines))), abs=1e-6)


OPTIONS = [{}] + [
    {"component": component, "of": of, "sign": sign}
    for component in (1, 2)
    for of in ("pooled", "differences", "centred_differences", "pair_centred")
    for sign in ("mean", "vote")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_the_shortcut_through_inner_products_equals_estimates_from_activations(options):
    """The estimator inside a lambda is not recognised, so it runs on the activations of each draw."""
    width = 10 if options.get("sign") == "vote" else 90
    factors = pd.DataFrame({"group": np.arange(24) // 2, "letter": ["A", "B"] * 12})
    pairs = noisy(np.stack([unit(width), 0 * unit(width)]), pairs=24, width=width, factors=factors)
    estimator = partial(principal_component, **options) if options else mean_difference
    tables = [
        (
            agreement(pairs, estimators={"it": each}, **QUICK).drop(columns="reliability"),
            separation(pairs, estimator=each, shuffles=20),
        )
        for each in (estimator, lambda pairs: estimator(pairs))
    ]
    for shortcut, activations in zip(*tables, strict=True):
        pd.testing.assert_frame_equal(shortcut, activations, atol=2e-5, rtol=0)


def test_draws_in_which_no_pair_differs_have_no_cosine_and_are_not_called_reliable():
    rng = np.random.default_rng(0)
    positive = np.repeat(rng.normal(size=(1, 1, 6)), 8, axis=0)
    negative = positive.copy()
    negative[0] += 1
    pairs = make_pairs(positive, negative)
    shortcut, activations = (
        agreement(pairs, estimators={"it": each}, **QUICK).drop(columns="reliability")
        for each in (mean_difference, lambda pairs: mean_difference(pairs))
    )
    pd.testing.assert_frame_equal(shortcut, activations, atol=1e-5, rtol=0)
    assert (
        agreement(pairs, estimators=MEAN, **QUICK)[["split_half", "reliability", "cone"]]
        .isna()
        .all(axis=None)
    )
    component = partial(principal_component, of="differences")
    for each in (component, lambda pairs: component(pairs)):
        with pytest.raises(ValueError, match=r"layers \[0\]"):
            agreement(pairs, estimators={"it": each}, **QUICK)


def test_shuffled_labels_that_cancel_to_rounding_are_ties_in_the_null():
    """Twelve times the same difference, of far longer activations in float32; eight train."""
    rng = np.random.default_rng(0)
    topic = 1000 * rng.normal(size=(12, 1, 30))
    positive = (topic + rng.normal(size=30)).astype(np.float32)
    pairs = make_pairs(positive, topic.astype(np.float32))
    shortcut, activations = (
        separation(pairs, estimator=each, folds=3, shuffles=100)
        for each in (mean_difference, lambda pairs: mean_difference(pairs))
    )
    pd.testing.assert_frame_equal(shortcut, activations, atol=1e-12, rtol=0)


def test_halves_keep_groups_whole_and_kinds_balanced():
    factors = pd.DataFrame({"group": np.arange(40) // 2, "letter": ["A", "A", "B", "B"] * 10})
    seen = []

    def spy(pairs):
        if len(pairs) < 40:
            seen.append(pairs.factors)
        return mean_difference(pairs)

    agreement(
        noisy(unit()[None], factors=factors), estimators={"spy": spy}, splits=4, resamples=1, shuffles=1
    )
    assert len(seen) == 8
    for one, other in zip(seen[::2], seen[1::2], strict=True):
        assert set(one["group"]) & set(other["group"]) == set()
        assert set(one["letter"].value_counts()) == set(other["letter"].value_counts()) == {10}


def test_single_pairs_are_compared_with_the_vector_of_all():
    pairs = noisy(unit()[None], noise=0.2)
    difference = (pairs.positive.values - pairs.negative.values)[:, 0, 0].double().numpy()
    cosines = [cosine(row, difference.mean(0)) for row in difference]
    row = agreement(pairs, estimators=MEAN, **QUICK).loc[0]
    assert row["single"] == pytest.approx(np.mean(cosines), abs=1e-6)
    expected = np.quantile(cosines, [0.025, 0.975])
    assert list(row[["single_low", "single_high"]]) == pytest.approx(list(expected), abs=1e-6)


def test_the_cone_holds_95_percent_of_resampled_vectors():
    """Against a loop over the rows drawn, in degrees by arcus tangens."""
    pairs = noisy(unit()[None], noise=0.3, factors=pd.DataFrame({"group": np.arange(40) // 2}))
    result = agreement(pairs, estimators=MEAN, splits=1, shuffles=1, resamples=60, seed=2)["cone"].item()
    difference = (pairs.positive.values - pairs.negative.values)[:, 0, 0].double().numpy()
    whole = difference.mean(0) / np.linalg.norm(difference.mean(0))
    angles = []
    for each in np.random.SeedSequence(2).generate_state(60):
        drawn = difference[bootstrap_rows(pairs.factors, np.random.default_rng(int(each)))].mean(0)
        across = drawn - (drawn @ whole) * whole
        angles.append(np.degrees(np.arctan2(np.linalg.norm(across), drawn @ whole)))
    assert result == pytest.approx(np.quantile(angles, 0.95), abs=1e-3)
    assert result < 30


def test_the_cone_of_noise_alone_is_45_degrees_and_not_90():
    """Draws scatter around the vector as it scatters around the truth: tan = 1."""
    cone = agreement(noisy(np.zeros((1, 1500)), pairs=60, width=1500), estimators=MEAN, **QUICK)["cone"]
    assert cone.item() == pytest.approx(45, abs=4)


def test_strong_pairs_agree_and_noise_does_not_reach_its_null():
    table = agreement(noisy(np.stack([5 * unit(), 0 * unit()])), estimators=MEAN, **QUICK).set_index("layer")
    assert table.loc[0, "split_half"] > 0.8
    assert table.loc[0, "split_half_null"] < 0.5
    assert table.loc[0, "split_half"] > table.loc[0, "split_half_null"]
    assert table.loc[1, "split_half"] < table.loc[1, "split_half_null"]


def test_the_null_exchanges_the_sides_of_half_the_groups_of_each_kind():
    factors = pd.DataFrame({"group": np.arange(40) // 2, "letter": ["A", "A", "B", "B"] * 10})
    marked = make_pairs(np.ones((40, 1, 2)), -np.ones((40, 1, 2)), factors=factors)
    seen = []

    def spy(pairs):
        if len(pairs) < 40:
            sign = pairs.sides()[0][:, 0, 0].numpy()
            seen.append(pairs.factors.assign(sign=sign).groupby("letter")["sign"].sum())
            assert (pairs.factors.assign(sign=sign).groupby("group")["sign"].nunique() == 1).all()
        return mean_difference(pairs)

    agreement(marked, estimators={"spy": spy}, splits=1, shuffles=20, resamples=20)
    halves, exchanged = seen[:2], seen[2:42]
    assert [set(kind) for kind in halves] == [{10}, {10}]
    assert all((kind == 0).all() for kind in exchanged)


@pytest.mark.statistics
def test_reliability_is_the_cosine_with_the_vector_of_infinitely_many_pairs():
    truth, reliability, reached = 0.8 * unit(width=400), [], []
    for seed in range(12):
        pairs = noisy(truth[None], pairs=100, width=400, noise=0.4, seed=seed)
        reliability.append(agreement(pairs, estimators=MEAN, **QUICK)["reliability"].item())
        reached.append(cosine(mean_difference(pairs).values[0].double().numpy(), truth))
    assert 0.5 < np.mean(reached) < 0.95
    assert np.mean(reliability) == pytest.approx(np.mean(reached), abs=0.02)


def test_a_principal_component_of_differences_does_not_know_the_sides():
    """Its axis is the same whichever side is which, so its null is as high as itself."""
    pairs = noisy(3 * unit()[None], noise=0.3)
    row = agreement(pairs, estimators={"pc": partial(principal_component, of="differences")}, **QUICK).loc[0]
    assert row["split_half"] > 0.9
    assert row["split_half_null"] > 0.9
    assert np.isnan(row["reliability"])


def test_slow_methods_are_drawn_less_often_and_say_so():
    calls = []

    def counting(pairs):
        calls.append(len(pairs))
        return mean_difference(pairs)

    pairs = noisy(unit()[None])
    table = agreement(pairs, estimators={"slow": logistic_direction, "quick": counting}, **QUICK)
    table = table.set_index("method")
    assert len(calls) == 1 + 2 * 20 + 2 * 20 + 20 + 1
    percentiles = ["split_half_low", "split_half_high", "split_half_null", "cone"]
    assert table.loc["slow", percentiles].isna().all()
    assert table.loc["quick", percentiles].notna().all()
    assert table.loc["slow", ["split_half", "single", "between"]].notna().all()
    more = agreement(pairs, estimators={"slow": logistic_direction}, **QUICK, slow_resamples=20)
    assert more[percentiles].notna().all(axis=None)


def test_methods_are_compared_both_ways_and_a_card_has_their_mean():
    pairs = noisy(np.stack([unit(), 3 * unit()]))
    methods = {
        "mean": mean_difference,
        "logistic": logistic_direction,
        "against": lambda p: -mean_difference(p),
    }
    table = method_agreement(pairs, estimators=methods).set_index(["layer", "method", "other"])["cosine"]
    assert len(table) == 2 * 3 * 2
    vectors = {name: each(pairs).values.double().numpy() for name, each in methods.items()}
    for (layer, one, other), result in table.items():
        assert result == pytest.approx(cosine(vectors[one][layer], vectors[other][layer]), abs=1e-6)
    assert table[1, "mean", "against"] == pytest.approx(-1)
    card = agreement(pairs, estimators=methods, **QUICK).set_index(["layer", "method"])
    by_hand = (table[1, "mean", "logistic"] + table[1, "mean", "against"]) / 2
    assert card.loc[(1, "mean"), "between"] == pytest.approx(by_hand)


def test_one_method_has_none_to_agree_with():
    assert agreement(noisy(unit()[None]), estimators=MEAN, **QUICK)["between"].isna().all()
    assert method_agreement(noisy(unit()[None]), estimators=MEAN).empty


def test_the_same_seed_gives_the_same_card_and_leaves_the_pairs_alone():
    pairs = noisy(unit()[None])
    before = pairs.positive.values.clone()
    one, two, other = (agreement(pairs, estimators=MEAN, **QUICK, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)
    assert (pairs.positive.values == before).all()


def test_what_a_card_cannot_be_made_of_is_refused():
    pairs = noisy(unit()[None])
    with pytest.raises(ValueError, match=r"3 groups of pairs: .* at least 4"):
        agreement(pairs.subset(range(3)))
    with pytest.raises(ValueError, match="no estimators given"):
        agreement(pairs, estimators={})
    with pytest.raises(ValueError, match="no estimators given"):
        method_agreement(pairs, estimators={})
    with pytest.raises(TypeError, match=r"len returned int: an estimator must return SteeringVectors"):
        method_agreement(pairs, estimators={"a": len})
    with pytest.raises(ValueError, match=r"'\\ud800' has half of a surrogate pair"):
        method_agreement(pairs, estimators={"a": mean_difference, "\ud800": mean_difference})
    with pytest.raises(ValueError, match=r"\(0, 100, 200, 5\): give 1 or more"):
        agreement(pairs, splits=0)


# --- drawing pairs anew ---

KINDS = pd.DataFrame(
    {"group": np.arange(60) // 2, "letter": ["A", "B"] * 30, "label": np.repeat([0, 1, 0], [20, 20, 20])}
)


def test_bootstrap_rows_draw_whole_groups_within_their_kind():
    for seed in range(10):
        rows = bootstrap_rows(KINDS, np.random.default_rng(seed))
        drawn = KINDS.iloc[rows]
        counts = drawn.groupby("group")["letter"].value_counts().unstack()
        assert (counts["A"] == counts["B"]).all()
        assert drawn["label"].value_counts().to_dict() == {0: 40, 1: 20}
        assert drawn["group"].nunique() < 30


def test_bootstrap_rows_of_plain_pairs_draw_pairs():
    rows = np.stack(
        [bootstrap_rows(pd.DataFrame(index=range(30)), np.random.default_rng(k)) for k in range(200)]
    )
    assert rows.shape == (200, 30)
    assert np.bincount(rows.ravel(), minlength=30).min() > 140  # 200 expected
    assert np.mean([len(set(row)) for row in rows]) == pytest.approx(30 * (1 - (29 / 30) ** 30), abs=0.5)


def test_permuted_rows_keep_what_groups_share_and_balance():
    indices = set()
    for seed in range(20):
        rows = permuted_rows(KINDS, np.random.default_rng(seed))
        assert sorted(rows) == list(range(60))
        moved = KINDS.iloc[rows].reset_index(drop=True)
        assert (moved.groupby(KINDS["group"])["label"].nunique() == 1).all()
        assert (moved.groupby(KINDS["group"])["letter"].nunique() == 2).all()
        indices.add(tuple(moved["group"]))
        starts = set(moved["letter"][::2])
        assert starts == {"A", "B"}  # in each group A came first: pairs change places within theirs
    assert len(indices) == 20


def test_permuted_rows_of_unequal_groups_change_places_with_their_like():
    factors = pd.DataFrame({"group": [0, 1, 1, 2, 3, 3, 4]})
    rows = permuted_rows(factors, np.random.default_rng(1))
    assert sorted(rows) == list(range(7))
    assert {tuple(sorted(rows[1:3])), tuple(sorted(rows[4:6]))} == {(1, 2), (4, 5)}


# --- what it predicts ---


def made_effects(sizes, *, dose=0.5, vector="honesty", multiplier=1.0):
    """What `effectiveness` gives of single layers, with a control and an unsteered cell beside."""
    layers = [str(layer) for layer in range(len(sizes))]
    cells = pd.DataFrame({"vector": vector, "control": False, "operation": "add", "layers": layers})
    cells = cells.assign(hook="resid_post", multiplier=multiplier, dose=dose, shift=sizes)
    controls = cells.assign(vector="random 1", control=True, shift=np.arange(len(sizes)) ** 2)
    several = cells.iloc[:1].assign(layers="1+2", shift=99.0)
    unsteered = cells.iloc[:1].assign(vector="none", layers="", operation="none", multiplier=0.0, dose=0.0)
    table = pd.concat([unsteered, controls, several, cells], ignore_index=True)
    return table.sample(frac=1, random_state=0)


SIZES = np.random.default_rng(4).normal(size=12)


def card(**columns):
    return pd.DataFrame({"layer": range(12), "method": "mean_difference", **columns})


def test_prediction_is_spearmans_correlation_with_the_size_of_the_effect():
    known = np.random.default_rng(1).normal(size=12)
    doses = np.linspace(0.2, 0.6, 12)
    table = prediction(card(split_half=known, cone=-known), made_effects(SIZES, dose=doses))
    expected = stats.spearmanr(known, np.abs(SIZES) / doses).statistic
    assert list(table["measure"]) == ["split_half", "cone"]
    assert list(table["correlation"]) == pytest.approx([expected, -expected])
    row = table.iloc[0]
    assert (row["vector"], row["operation"], row["hook"], row["multiplier"]) == (
        "honesty", "add", "resid_post", 1.0,
    )  # fmt: skip
    assert (row["method"], row["n"], row["dose_low"], row["dose_high"]) == ("mean_difference", 12, 0.2, 0.6)


def test_the_p_value_counts_circular_shifts():
    known = np.random.default_rng(1).normal(size=12)
    result = prediction(card(auc=known), made_effects(SIZES))["p_value"].item()
    reached = [abs(stats.spearmanr(np.roll(known, shift), np.abs(SIZES)).statistic) for shift in range(12)]
    assert result == np.mean(np.array(reached) >= reached[0] - 1e-9)
    perfect = prediction(card(auc=np.abs(SIZES)), made_effects(SIZES))
    assert perfect["correlation"].item() == pytest.approx(1)
    assert perfect["p_value"].item() == pytest.approx(1 / 12)


def test_smooth_curves_are_not_called_related_as_often_as_a_free_permutation_would():
    rng = np.random.default_rng(0)
    shifted, free = [], []
    for _ in range(200):
        one, two = (np.convolve(np.tile(rng.normal(size=24), 3), np.ones(9), "same")[24:48] for _ in range(2))
        two = two - two.min() + 1
        table = prediction(pd.DataFrame({"layer": range(24), "single": one}), made_effects(two, dose=1.0))
        shifted.append(table["p_value"].item() <= 0.05)
        free.append(stats.spearmanr(one, two).pvalue <= 0.05)
    assert np.mean(free) > 0.2
    assert np.mean(shifted) < 0.1


def test_cards_of_several_methods_and_tables_are_each_compared():
    several = pd.concat([card(single=SIZES), card(single=-SIZES).assign(method="lda_direction")])
    separation = card(paired_accuracy=SIZES, method="mean_difference")
    effects = pd.concat(
        [made_effects(SIZES), made_effects(SIZES, multiplier=-1.0).query("vector == 'honesty'")]
    )
    table = prediction([several, separation], effects)
    assert len(table) == 2 * 3
    assert set(zip(table["method"], table["measure"], strict=True)) == {
        ("mean_difference", "single"),
        ("lda_direction", "single"),
        ("mean_difference", "paired_accuracy"),
    }


def test_a_projection_has_no_dose_to_divide_by():
    known = np.arange(12.0)
    effects = made_effects(SIZES, dose=np.nan, multiplier=np.nan)
    row = prediction(card(single=known), effects).loc[0]
    assert row["correlation"] == pytest.approx(stats.spearmanr(known, np.abs(SIZES)).statistic)
    assert np.isnan(row["dose_low"])


def test_slopes_per_dose_are_predicted_as_they_are():
    slopes = made_effects(SIZES).drop(columns=["multiplier", "dose", "shift"]).assign(n=40)
    slopes["slope_per_dose"] = made_effects(SIZES)["shift"]
    table = prediction(card(single=np.abs(SIZES)), slopes, value="slope_per_dose")
    assert "multiplier" not in table
    assert table["correlation"].item() == pytest.approx(1)


def test_a_measure_that_does_not_vary_predicts_nothing():
    row = prediction(card(single=1.0), made_effects(SIZES)).loc[0]
    assert np.isnan(row["correlation"])
    assert np.isnan(row["p_value"])


def test_layers_where_a_measure_is_missing_are_left_out():
    known = np.where(np.arange(12) < 2, np.nan, np.abs(SIZES))
    row = prediction(card(reliability=known), made_effects(SIZES)).loc[0]
    assert row["n"] == 10
    assert row["correlation"] == pytest.approx(1)


def test_what_cannot_be_predicted_from_is_refused():
    effects = made_effects(SIZES)
    with pytest.raises(ValueError, match="lacks the columns shift"):
        prediction(card(single=SIZES), effects.drop(columns="shift"))
    with pytest.raises(ValueError, match="layer 0 is twice in the effects of honesty"):
        prediction(
            card(single=SIZES), pd.concat([effects.assign(label=k) for k in (0, 1)]).sort_values("layers")
        )
    with pytest.raises(ValueError, match="layer 0 is twice in the measures of mean_difference"):
        prediction(pd.concat([card(single=SIZES)] * 2).sort_values("layer"), effects)
    with pytest.raises(ValueError, match="have no measure of"):
        prediction(card(other=SIZES), effects)
    with pytest.raises(ValueError, match="3 layers in common"):
        prediction(card(single=SIZES)[:3], effects)
    with pytest.raises(ValueError, match="no condition of one layer but controls"):
        prediction(card(single=SIZES), effects[effects["control"]])


def test_a_card_and_an_effect_go_together(planted):
    """The tables as the functions make them, end to end."""
    rng = np.random.default_rng(0)
    strength = np.linspace(0, 2, 8)
    pairs = noisy(strength[:, None] * unit(), noise=0.5)
    source = agreement(pairs, estimators=MEAN, **QUICK)
    effects = made_effects(strength + 0.05 * rng.normal(size=8), dose=0.3)
    table = prediction(source, effects).set_index("measure")["correlation"]
    assert table["split_half"] > 0.8
    assert table["cone"] < -0.8


# --- the figure ---


@pytest.fixture
def drawn():
    rng = np.random.default_rng(0)
    table = pd.DataFrame([(layer, name) for name in ("mean", "<b>lda</b>") for layer in range(5)])
    table = table.set_axis(["layer", "method"], axis=1)
    for column in ("split_half", "single", "between", "cone", "reliability"):
        table[column] = rng.uniform(0.3, 0.9, size=10)
    for column in ("split_half", "single"):
        table[f"{column}_low"], table[f"{column}_high"] = table[column] - 0.1, table[column] + 0.1
    return table.assign(split_half_null=0.25, cone=70 * table["cone"], pairs=40).sample(
        frac=1, random_state=0
    )


def test_a_figure_has_a_panel_a_measure_and_a_line_a_method(drawn):
    figure = plots.agreement(drawn)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(lines) == 8
    panels = dict(zip(("split_half", "single", "between", "cone"), ("y", "y2", "y3", "y4"), strict=True))
    rows = drawn[drawn["method"] == "mean"].sort_values("layer")
    for measure, axis in panels.items():
        line = next(each for each in lines if each.name == "mean" and each.yaxis == axis)
        assert list(line.x) == list(range(5))
        assert list(line.y) == list(rows[measure])
    assert [trace.name for trace in figure.data if trace.showlegend] == ["mean", "&lt;b&gt;lda&lt;/b&gt;"]
    assert figure.layout.yaxis4.title.text == "degrees"
    assert "<b>lda" not in figure.to_json().replace("\\u003c", "<")
    dotted = [trace for trace in figure.data if trace.line.dash == "dot"]
    assert all(set(trace.y) == {0.25} for trace in dotted)
    assert len(dotted) == 2


def test_one_method_has_bands_and_no_panel_for_others(drawn):
    alone = drawn[drawn["method"] == "mean"].assign(between=np.nan)
    figure = plots.agreement(alone)
    assert len({trace.yaxis for trace in figure.data}) == 3
    assert sum(trace.fill == "toself" for trace in figure.data) == 3  # null, halves, single pairs
    assert named(figure, "mean").hovertext[0].startswith("<b>layer 0</b>, mean, 40 pairs<br>halves ")


def test_a_figure_of_another_table_is_refused(drawn):
    with pytest.raises(ValueError, match=r"plots\.agreement.*lacks the columns cone.*agreement"):
        plots.agreement(drawn.drop(columns="cone"))
    with pytest.raises(ValueError, match="there twice"):
        plots.agreement(pd.concat([drawn, drawn]))
