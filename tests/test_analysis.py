"""Separation, PCA and projections, on activations whose truth is known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from tl_steer.activations import PairedActivations
from tl_steer.analysis import pca, projections, separation
from tl_steer.analysis._separation import balanced_folds
from tl_steer.directions import mean_difference
from tl_steer.errors import ModelMismatchError

from .conftest import assert_raises, make_pairs
from .test_looking import vectors_of


def letters(n):
    """n pairs whose positive side has the letter A in half of them."""
    letter = {"letter_positive": ["A", "B"] * (n // 2), "letter_negative": ["B", "A"] * (n // 2)}
    return pd.DataFrame({"group": range(n), **letter, "tokens": np.random.default_rng(0).integers(5, 50, n)})


def test_a_planted_direction_separates_and_noise_does_not(planted):
    pairs, _ = planted
    mixed = torch.stack(pairs.sides())[:, :60].numpy()
    mixed[:, :, 1] = np.random.default_rng(0).normal(size=(2, 60, 32))
    table = separation(make_pairs(*mixed), shuffles=20)
    signal, noise = table.iloc
    assert table[["layer", "method", "pairs"]].to_numpy().tolist() == [
        [layer, "mean_difference", 60] for layer in (0, 1)
    ]
    assert min(signal["paired_accuracy"], signal["auc"]) > 0.99
    assert signal["p_value"] == pytest.approx(1 / 21)
    assert 0.35 < noise["paired_accuracy"] < 0.65
    assert noise["p_value"] > 0.05
    assert (table[["null_low", "null_mean", "null_high"]].diff(axis=1).iloc[:, 1:] > 0).all(axis=None)
    assert (table["null_mean"] - 0.5).abs().max() < 0.05


def test_separation_is_a_plain_loop_over_held_out_pairs():
    """Against a float64 loop that knows only the folds."""
    rng = np.random.default_rng(3)
    shift = rng.normal(size=(1, 2, 8)) * 0.5
    sides = np.float32(rng.normal(size=(30, 2, 8)) + shift + 5), np.float32(rng.normal(size=(30, 2, 8)) + 5)
    pairs = make_pairs(*sides)
    table = separation(pairs, folds=3, shuffles=0, seed=7)
    fold = balanced_folds(pairs.factors, folds=3, seed=7)
    for layer in (0, 1):
        along = np.zeros((2, 30))
        for row in range(30):
            train = fold != fold[row]
            positive, negative = (side[train, layer].astype(float) for side in sides)
            direction = positive.mean(0) - negative.mean(0)
            middle = (positive.mean(0) + negative.mean(0)) / 2
            for index, side in enumerate(sides):
                along[index, row] = (side[row, layer] - middle) @ direction / np.linalg.norm(direction)
        result = table.loc[layer]
        assert result["paired_accuracy"] == (along[0] > along[1]).mean()
        assert result["auc"] == pytest.approx(roc_auc_score([1] * 30 + [0] * 30, along.ravel()), abs=1e-6)
        pooled = np.sqrt((along[0].var(ddof=1) + along[1].var(ddof=1)) / 2)
        assert result["d_prime"] == pytest.approx((along[0].mean() - along[1].mean()) / pooled, rel=1e-5)
        oracle = stats.binomtest(round(result["paired_accuracy"] * 30), 30).proportion_ci(method="wilson")
        ends = result[["paired_accuracy_low", "paired_accuracy_high"]]
        assert list(ends) == pytest.approx([oracle.low, oracle.high])
    assert table[["null_low", "null_high", "null_mean", "p_value"]].isna().all(axis=None)


def test_the_estimator_sees_no_held_out_group():
    factors = pd.DataFrame({"group": np.repeat(range(12), 3)})
    seen = []

    def spy(train):
        seen.append(set(train.factors["group"]))
        assert len(train) == 3 * len(seen[-1])
        return mean_difference(train)

    values = np.random.default_rng(0).normal(size=(2, 36, 1, 4))
    separation(make_pairs(*values, factors=factors), estimator=spy, folds=4, shuffles=0)
    assert [len(groups) for groups in seen] == [9] * 4
    assert set.intersection(*seen) == set()


def test_the_null_flips_whole_groups():
    factors = pd.DataFrame({"group": np.repeat(range(10), 2)})
    pairs, flipped = make_pairs(np.ones((20, 1, 3)), np.zeros((20, 1, 3)), factors=factors), []

    def spy(train):
        sides = train.sides()[0][:, 0, 0].reshape(-1, 2)
        assert (sides[:, 0] == sides[:, 1]).all()
        flipped.append(float((sides == 0).float().mean()))
        return mean_difference(train)

    separation(pairs, estimator=spy, folds=5, shuffles=20)
    assert flipped[:5] == [0] * 5
    assert 0.4 < np.mean(flipped[5:]) < 0.6


def test_the_letters_direction_does_not_pass_for_the_behaviours():
    """A letter ten times larger than anything else and no behaviour: balanced folds stay at one half."""
    factors = letters(60)
    letter = np.where(factors["letter_positive"] == "A", 10.0, -10.0)[:, None, None] * np.ones((1, 3, 16))
    noise = np.random.default_rng(0).normal(size=(2, 60, 3, 16))
    table = separation(make_pairs(noise[0] + letter, noise[1] - letter, factors=factors), shuffles=0)
    assert ((table["paired_accuracy"] - 0.5).abs() < 0.15).all()


def test_the_same_seed_gives_the_same_table_and_the_pairs_are_unchanged(planted):
    pairs = planted[0].subset(range(20))
    before, factors = pairs.positive.values.clone(), pairs.factors.copy()
    pd.testing.assert_frame_equal(*(separation(pairs, shuffles=3, seed=4) for _ in range(2)))
    assert torch.equal(pairs.positive.values, before)
    pd.testing.assert_frame_equal(pairs.factors, factors)


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "give 2 to 4 folds"), ({"folds": 1}, "give 2 to 4"), ({"folds": 2, "shuffles": -1}, "0 or more")],
)
def test_separation_rejects_too_few_groups_folds_or_shuffles(options, message):
    assert_raises(message, separation, make_pairs(*np.zeros((2, 4, 1, 3))), **options)


@pytest.mark.parametrize("n", [60, 44, 98])
def test_folds_hold_equally_many_of_each_kind_of_pair(n):
    factors = letters(n)
    fold = balanced_folds(factors, folds=5, seed=1)
    counts = pd.crosstab(fold, factors["letter_positive"])
    assert (counts["A"] == counts["B"]).all()
    assert np.ptp(counts["A"]) <= 1
    assert (fold != balanced_folds(factors, folds=5, seed=0)).any()


def test_groups_stay_together_and_their_strata_are_balanced():
    factors = {"group": np.repeat(range(40), 2), "label": np.repeat([0, 1], 40), "letter": ["A", "B"] * 40}
    factors = pd.DataFrame(factors).sample(frac=1, random_state=0, ignore_index=True)
    fold = balanced_folds(factors, folds=4)
    assert (pd.Series(fold).groupby(factors["group"]).nunique() == 1).all()
    assert (pd.crosstab(fold, [factors["label"], factors["letter"]]) == 5).all(axis=None)


def test_strata_rarer_than_the_folds_are_spread_over_them():
    factors = pd.DataFrame({"group": range(20), "kind": ["a"] * 12 + ["b"] * 3 + ["c"] * 3 + ["d"] * 2})
    fold = balanced_folds(factors, folds=4)
    counts = pd.crosstab(fold, factors["kind"])
    assert (counts["a"] == 3).all()
    assert counts[["b", "c", "d"]].to_numpy().max() == 1
    assert set(np.bincount(fold)) == {5}


def test_factors_of_many_levels_are_ignored_in_the_balance():
    factors = letters(60).assign(claim=[f"claim {row}" for row in range(60)], length=np.linspace(0, 1, 60))
    counts = pd.crosstab(balanced_folds(factors, folds=5), factors["letter_positive"])
    assert (counts == 6).all(axis=None)


def test_pca_is_scikit_learns_up_to_sign(planted):
    pairs, _ = planted
    table = pca(pairs, components=2, layers=[1])
    rows = np.concatenate([side[:, 1].double().numpy() for side in pairs.sides()])
    oracle = PCA(2, svd_solver="full").fit(rows)
    np.testing.assert_allclose(table[["PC1", "PC2"]].abs(), np.abs(oracle.transform(rows)), atol=1e-8)
    explained = table[["explained_1", "explained_2"]].iloc[0]
    np.testing.assert_allclose(explained, oracle.explained_variance_ratio_)
    assert set(table["layer"]) == {1}
    assert list(table["side"]) == ["positive"] * 200 + ["negative"] * 200
    assert table["prompt"].iloc[201] == "negative prompt 1"


def test_the_positive_side_has_the_higher_mean_on_every_component(planted):
    pairs, _ = planted
    for each in (pairs, PairedActivations(pairs.negative, pairs.positive, pairs.factors)):
        means = pca(each).groupby(["side", "layer"])[["PC1", "PC2", "PC3"]].mean()
        assert (means.loc["positive"] > means.loc["negative"]).all(axis=None)


def test_pca_rejects_missing_components_and_layers_and_constant_activations():
    pairs = make_pairs(*np.random.default_rng(0).normal(size=(2, 2, 2, 8)), layers=(1, 3))
    assert set(pca(pairs, layers=-1)["layer"]) == {3}
    constant = make_pairs(*np.ones((2, 3, 1, 8)), layers=(3,))
    for each, options, message in (
        (pairs, {"components": 4}, "give 1 to 3"),
        (pairs, {"layers": [0]}, r"nothing at layers \[0\]; there are \[1, 3\]"),
        (constant, {"components": 1}, "activations at layer 3 vary in fewer than 1 directions"),
    ):
        assert_raises(message, pca, each, **options)


def test_a_component_in_which_nothing_varies_explains_nothing():
    rows = np.outer(np.arange(6.0), np.ones(8)).reshape(2, 3, 1, 8)
    table = pca(make_pairs(*rows), components=2)
    np.testing.assert_allclose(table[["explained_1", "explained_2"]], [[1, 0]] * 6, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_projections_are_the_dot_product_with_the_unit_direction(centred):
    sides = np.random.default_rng(0).normal(size=(2, 3, 1, 4))
    pairs, rows = make_pairs(*sides), np.concatenate(sides)[:, 0]
    rows = rows - centred * rows.mean(0)
    vectors = vectors_of([[0.0, 3.0, 0.0, 0.0]], identity=pairs.identity)
    table = projections(pairs, vectors, centred=centred)
    np.testing.assert_allclose(table["projection"], rows[:, 1], atol=1e-6)
    np.testing.assert_allclose(table["cosine"], rows[:, 1] / np.linalg.norm(rows, axis=1), atol=1e-6)


def test_projections_take_the_layers_that_both_have():
    pairs = make_pairs(*np.random.default_rng(0).normal(size=(2, 3, 3, 4)), layers=(1, 2, 4))
    table = projections(pairs, vectors_of(np.eye(4)[:2], layers=(4, 0), identity=pairs.identity))
    assert set(table["layer"]) == {4}
    np.testing.assert_allclose(table["projection"][:3], pairs.sides()[0][:, 2, 0], atol=1e-6)


ONES = np.ones((1, 4))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((1, 3)), {}, "these vectors have 3 numbers, the activations 4"),
        (ONES, {"hook": "resid_pre"}, "capture there"),
        (ONES, {"layers": (1,)}, "no layer in common"),
        (np.ones((1, 2, 4)), {}, "one per layer"),
        (0 * ONES, {}, "length zero"),
    ],
)
def test_projections_reject_vectors_that_do_not_fit(values, options, message):
    pairs = make_pairs(*np.random.default_rng(0).normal(size=(2, 3, 2, 4)), layers=(0, 2))
    assert_raises(message, projections, pairs, vectors_of(values, identity=pairs.identity, **options))


def test_projections_reject_another_model_and_no_pairs():
    pairs, other = (make_pairs(*np.zeros((2, 3, 1, width))) for width in (4, 5))
    vectors = vectors_of(ONES, identity=pairs.identity)
    assert_raises("these vectors", projections, other, vectors, error=ModelMismatchError)
    assert_raises("no pairs to project", projections, pairs.subset([]), vectors)


def test_factors_that_differ_between_the_sides_become_one_column():
    factors = pd.DataFrame({"group": [5, 6], "letter_positive": ["A", "B"], "letter_negative": ["B", "A"]})
    values = np.random.default_rng(0).normal(size=(2, 2, 1, 4))
    table = pca(make_pairs(*values, factors=factors), components=1)
    known = ["layer", "pair", "side", "prompt", "label", "group", "letter"]
    assert list(table.columns) == [*known, "decomposed", "PC1", "explained_1"]
    rows = [(0, 5, "A"), (1, 6, "B"), (0, 5, "B"), (1, 6, "A")]
    assert list(table[["pair", "group", "letter"]].itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize("names", [["side"], ["x", "x_positive", "x_negative"], ["PC1"]])
def test_factors_named_like_another_column_are_rejected(names):
    values = np.random.default_rng(0).normal(size=(2, 2, 1, 4))
    factors = pd.DataFrame(0, range(2), names)
    message = rf"\['{names[0]}'\] .*rename"
    assert_raises(message, pca, make_pairs(*values, factors=factors), components=1)
