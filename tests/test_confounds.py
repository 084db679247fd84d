"""Directions of letter, truth and length, how far vectors lie along them, and vectors without them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

from tl_steer import plots
from tl_steer.analysis import confounds
from tl_steer.analysis._separation import balanced_folds
from tl_steer.directions import factor_directions, mean_difference, without_factors
from tl_steer.errors import ModelMismatchError

from .conftest import assert_raises, make_identity, make_pairs
from .test_looking import vectors_of
from .test_plots import NASTY

WIDTH = 48
# Orthogonal axes, and a behaviour whose cosine with truth is known.
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0].T
LETTER, TRUTH, LENGTH = 4 * AXES[0], 2 * AXES[1], 0.5 * AXES[2]
LEAN = 0.6
BEHAVIOUR = LEAN * AXES[1] + 0.8 * AXES[3]


def design(pairs=80, *, seed=0):
    """Claims answered both ways: the positive side says A to true claims and B to false ones."""
    truth = np.arange(pairs) % 2
    tokens = 10 + np.random.default_rng(seed).integers(0, 6, pairs)
    letters = {"letter_positive": np.where(truth, "A", "B"), "letter_negative": np.where(truth, "B", "A")}
    return pd.DataFrame({"group": np.arange(pairs), **letters, "truth": truth}), tokens


def planted_pairs(*, noise=0.1, behaviour=BEHAVIOUR, seed=0, layers=1, factors=None):
    """80 pairs whose activations are the sum of letter, truth, length and behaviour, and noise."""
    known, tokens = design(seed=seed)
    rng = np.random.default_rng(seed)
    sides = []
    for side, sign in (("positive", 0.5), ("negative", -0.5)):
        letter = np.where(known[f"letter_{side}"] == "A", 0.5, -0.5)
        rows = np.outer(letter, LETTER) + np.outer(known["truth"], TRUTH) + np.outer(tokens, LENGTH)
        sides.append((rows + sign * behaviour)[:, None] + noise * rng.normal(size=(80, layers, WIDTH)))
    return with_lengths(make_pairs(*sides, factors=known if factors is None else factors), tokens)


def with_lengths(pairs, tokens):
    for side in (pairs.positive, pairs.negative):
        side.prompt_lengths.copy_(torch.as_tensor(tokens))
    return pairs


def cosine(one, other):
    one, other = (np.ravel(each).astype(float) for each in (one, other))
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def nearest(vector, directions):
    """The vector in the span of directions that is nearest to a vector."""
    span = np.stack([np.ravel(each) for each in directions]).T.astype(float)
    return span @ np.linalg.lstsq(span, np.ravel(vector).astype(float), rcond=None)[0]


def test_directions_of_factors_are_the_planted_ones_with_their_length():
    result = factor_directions(planted_pairs())
    for name, planted, contrast in (
        ("letter", LETTER, "A − B"), ("truth", TRUTH, "1 − 0"), ("tokens", LENGTH, "per unit"),
    ):  # fmt: skip
        direction = result.pop(name)
        assert cosine(direction.values[0], planted) > 0.99, name
        assert direction.norms().item() == pytest.approx(np.linalg.norm(planted), rel=0.05), name
        assert (direction.info["contrast"], direction.method) == (contrast, f"factor: {name}")
    assert not result


def test_directions_are_means_over_sides_of_differences_and_slopes():
    pairs = planted_pairs(noise=1.0)
    gaps, slopes = [], []
    for name in ("positive", "negative"):
        side = getattr(pairs, name)
        rows = side.values[:, 0, 0].double().numpy()
        is_a = (pairs.factors[f"letter_{name}"] == "A").to_numpy()
        gaps.append(rows[is_a].mean(0) - rows[~is_a].mean(0))
        slopes.append(np.polyfit(side.prompt_lengths.double().numpy(), rows, 1)[0])
    result = factor_directions(pairs)
    np.testing.assert_allclose(result["letter"].values[0], np.mean(gaps, 0), atol=1e-5)
    np.testing.assert_allclose(result["tokens"].values[0], np.mean(slopes, 0), atol=1e-5)


def test_the_behaviour_has_no_part_in_a_factors_direction():
    """The same activations with another behaviour, however large, give the same directions."""
    one, two = (factor_directions(planted_pairs(behaviour=each)) for each in (BEHAVIOUR, 50 * AXES[5]))
    for name in one:
        torch.testing.assert_close(one[name].values, two[name].values, atol=1e-4, rtol=0)


def test_where_activations_do_not_vary_a_factors_direction_is_an_error_that_names_the_layer():
    sides = np.random.default_rng(0).normal(size=(2, 4, 2, 8))
    sides[:, :, 1] = sides[:, :1, 1]
    pairs = make_pairs(*sides, factors=pd.DataFrame({"letter": list("ABAB"), "group": range(4)}))
    assert_raises(r"resid_post at layers \[1\] does not vary", factor_directions, pairs)


def test_a_factor_that_varies_within_one_side_has_its_direction_and_within_none_has_none():
    factors = pd.DataFrame({"kind_positive": "a", "kind_negative": ["a", "b"] * 40, "group": range(80)})
    pairs = planted_pairs(factors=factors.assign(tone_positive="warm", tone_negative="cold"))
    result = factor_directions(pairs)
    assert list(result) == ["kind", "tokens"]
    rows = pairs.negative.values[:, 0, 0].numpy()
    np.testing.assert_allclose(result["kind"].values[0], (rows[::2] - rows[1::2]).mean(0), atol=1e-4)


def test_several_levels_are_compared_with_the_rest_and_names_are_left_out():
    rng = np.random.default_rng(0)
    topic = rng.choice(["art", "food", "law"], 80)
    claims = [f"claim {number}" for number in range(80)]
    factors = pd.DataFrame({"topic": topic, "claim": claims, "same": 1, "group": range(80)})
    sides = rng.normal(size=(2, 80, 1, WIDTH))
    result = factor_directions(make_pairs(*sides, factors=factors))
    assert list(result) == ["topic = art", "topic = food", "topic = law"]
    by_hand = sides[:, topic == "food"].mean((0, 1)) - sides[:, topic != "food"].mean((0, 1))
    np.testing.assert_allclose(result["topic = food"].values, by_hand, atol=1e-5)
    assert result["topic = food"].info["contrast"] == "food − rest"


def test_pairs_of_which_a_factor_is_missing_are_left_out_of_it():
    pairs = planted_pairs(noise=1.0)
    label = pairs.factors["truth"].astype(object).where(np.arange(80) >= 10, None)
    pairs = make_pairs(*(side.numpy() for side in pairs.sides()), factors=pd.DataFrame({"label": label}))
    result, known = (factor_directions(each)["label"].values for each in (pairs, pairs.subset(range(10, 80))))
    torch.testing.assert_close(result, known, atol=1e-5, rtol=0)


def test_without_factors_nothing_is_left_along_any_of_them():
    pairs = planted_pairs(noise=1.0, layers=3)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    before = vectors.values.clone(), directions["letter"].values.clone()
    rest = without_factors(vectors, directions)
    assert torch.equal(vectors.values, before[0])
    assert torch.equal(directions["letter"].values, before[1])
    for layer in range(3):  # the residual of least squares on the directions
        fitted = nearest(vectors.values[layer], [each.values[layer] for each in directions.values()])
        np.testing.assert_allclose(rest.values[layer], vectors.values[layer].numpy() - fitted, atol=1e-5)
    assert (rest.info["without"], rest.info["pairs"]) == (["letter", "truth", "tokens"], 80)
    assert rest.method == "mean_difference without letter, truth, tokens"


def test_without_truth_the_rest_of_the_behaviour_stays():
    pairs = planted_pairs(noise=0.01)
    rest = without_factors(mean_difference(pairs), pairs, names="truth")
    assert cosine(rest.values[0], AXES[3]) > 0.99
    assert rest.norms().item() == pytest.approx(0.8, abs=0.02)
    assert rest.info["without"] == ["truth"]


def test_dependent_directions_remove_no_more_than_their_span():
    """Three levels against the rest span two dimensions, or three: never an arbitrary further one."""
    rng = np.random.default_rng(0)
    vector = mean_difference(planted_pairs(noise=1.0))
    one, two = (vectors_of(rng.normal(size=(1, WIDTH)), identity=vector.identity) for _ in range(2))
    rest = without_factors(vector, {"one": one, "two": two, "both": one - 2 * two, "zero": 0 * one})
    expected = without_factors(vector, {"one": one, "two": two})
    torch.testing.assert_close(rest.values, expected.values, atol=1e-5, rtol=0)


def test_vectors_and_directions_that_do_not_fit_are_rejected():
    pairs = planted_pairs(layers=2)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    letter, identity = directions["letter"], vectors.identity
    elsewhere = vectors_of(letter.values, hook="resid_pre", identity=identity)
    other = make_identity(n_layers=2, d_model=WIDTH, fingerprint=tuple(np.linspace(2, 3, 256)))
    for one, factors, names, message in (
        (vectors, directions, ["tone"], r"no direction of \['tone'\]; there are \['letter'"),
        (vectors, {}, None, "no factor to project out"),
        (vectors, {"letter": letter.weighted({0: 1.0})}, None, r"no direction of 'letter' at layers \[1\]"),
        (letter, directions, None, "nothing is left of the vector at layer 0"),
        (vectors, {"letter": elsewhere}, None, "at resid_post, the direction of 'letter' at resid_pre"),
        (vectors_of(np.ones((2, 3, WIDTH)), identity=identity), directions, None, "one per position"),
    ):
        assert_raises(message, without_factors, one, factors, names=names)
    other = vectors_of(vectors.values, identity=other)
    assert_raises("these vectors", without_factors, other, directions, error=ModelMismatchError)


def test_confounds_find_the_planted_cosine_only():
    table = confounds(mean_difference(planted_pairs()), planted_pairs(seed=1)).set_index("factor")
    cosines = {"letter": 0.0, "truth": LEAN, "tokens": 0.0, "all": LEAN}
    assert table["cosine"].to_dict() == pytest.approx(cosines, abs=0.05)
    assert table.loc["truth", "share"] == pytest.approx(LEAN**2, abs=0.03)
    assert table["differs"].to_list() == [False, True, False, True]
    assert table["balanced"].all()
    columns = "layer contrast cosine share null_high differs balanced pairs method"
    assert list(table.columns) == columns.split()


def test_the_share_of_all_is_that_of_the_span():
    pairs = planted_pairs(noise=2.0)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    table = confounds(vectors, pairs, shuffles=5).set_index("factor")
    vector = vectors.values[0].double().numpy()
    fitted = nearest(vector, [each.values[0] for each in directions.values()])
    assert table.loc["all", "share"] == pytest.approx((fitted @ fitted) / (vector @ vector), abs=1e-6)
    for name, direction in directions.items():
        assert table.loc[name, "cosine"] == pytest.approx(cosine(vector, direction.values[0]), abs=1e-6)
    rest = without_factors(vectors, directions)
    assert (confounds(rest, pairs, shuffles=5)["cosine"].abs() < 1e-6).all()


def noise_of(pairs, vector, shuffles):
    """|cosines| with meaningless factors, one row per shuffle: residuals of a regression within sides.

    Pairs take the factors of others, those of a pair together.
    """
    tokens, truth = pairs.positive.prompt_lengths, pairs.factors["truth"].to_numpy()
    design_matrix = np.stack([np.ones(80), truth, tokens.numpy()], axis=1)  # the letter goes with truth
    noise = []
    for side in pairs.sides():
        rows = side[:, 0].double().numpy()
        noise.append(rows - design_matrix @ np.linalg.pinv(design_matrix) @ rows)
    rng, drawn = np.random.default_rng(9), []
    for _ in range(shuffles):
        order = rng.permutation(80)
        factors = pairs.factors.iloc[order].reset_index(drop=True)
        shuffled = make_pairs(*(rows[:, None] for rows in noise), factors=factors)
        directions = factor_directions(with_lengths(shuffled, tokens[order])).values()
        result = [each.values[0].numpy() for each in directions]
        drawn.append([abs(cosine(vector, each)) for each in (*result, nearest(vector, result))])
    return np.array(drawn)


def test_the_null_is_a_loop_over_the_farthest_contrast_of_noise():
    pairs, source = planted_pairs(noise=1.0), mean_difference(planted_pairs(seed=1))
    high = confounds(source, pairs, shuffles=2000, seed=1).set_index("factor")["null_high"]
    drawn = noise_of(pairs, source.values[0].double().numpy(), 599)
    means, spreads = drawn.mean(0), drawn.std(0)
    farthest = sorted(max((row - means) / spreads) for row in drawn)[-30]  # 30 of 600 are 5 %
    for name, each in zip(("letter", "truth", "tokens", "all"), means + farthest * spreads, strict=True):
        assert high[name] == pytest.approx(each, abs=0.04), name
        assert high[name] > np.quantile(drawn[:, list(high.index).index(name)], 0.975)


@pytest.mark.statistics
def test_one_table_in_twenty_has_a_row_that_differs_by_chance(draws):
    """A vector of one half, tested with the other, and factors without any direction; layers are alike."""
    rng, result = np.random.default_rng(0), []
    factors, _ = design(60)
    for _ in range(draws(200)):
        sides = rng.normal(size=(2, 60, 10, WIDTH)) + 2 * rng.normal(size=(2, 60, 1, WIDTH))
        pairs = make_pairs(*sides, factors=factors)
        half = balanced_folds(factors, folds=2)
        one, other = (pairs.subset(np.flatnonzero(half == each).tolist()) for each in (0, 1))
        result.append(confounds(mean_difference(one), other, shuffles=99)["differs"].any())
    low, high = binom.ppf([0.005, 0.995], len(result), 0.05)
    assert low <= sum(result) <= high


def test_with_few_shuffles_nothing_can_differ():
    pairs, source = planted_pairs(), mean_difference(planted_pairs(seed=1))
    few, enough = (confounds(source, pairs, shuffles=each) for each in (18, 19))
    assert few["null_high"].isna().all()
    assert not few["differs"].any()
    assert enough["null_high"].notna().all()
    assert enough["differs"].any()
    assert "19 shuffles or more are needed" in plots.confounds(few).layout.title.subtitle.text


def test_a_factor_between_the_sides_only_is_not_balanced_and_has_no_numbers():
    factors = design()[0].assign(tone_positive="warm", tone_negative="cold")
    pairs = planted_pairs(factors=factors)
    table = confounds(mean_difference(pairs), pairs).set_index("factor")
    assert table.index[~table["balanced"]].to_list() == ["tone", "all"]
    assert table.loc["tone", ["cosine", "share", "null_high"]].isna().all()
    assert not table.loc["tone", "differs"]
    # prompts of one length
    only = make_pairs(*pairs.sides(), factors=factors[["tone_positive", "tone_negative"]])
    table = confounds(mean_difference(only), only)
    assert list(table["factor"]) == ["tone", "all"]
    assert table["cosine"].isna().all()


def test_only_shared_layers_are_tested_and_the_seed_decides():
    pairs = planted_pairs(layers=3)
    vectors = mean_difference(pairs).weighted({2: 1.0, 1: -1.0})
    one, two, other = (confounds(vectors, pairs, shuffles=20, seed=seed) for seed in (1, 1, 2))
    assert list(one["layer"].unique()) == [1, 2]
    assert one.set_index(["layer", "factor"])["cosine"][1, "truth"] == pytest.approx(-LEAN, abs=0.03)
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)


def test_pairs_without_factors_and_no_shuffles_are_rejected(planted):
    for pairs, shuffles, message in (
        (planted[0], 20, "no factor varies among these pairs"), (planted_pairs(), 0, "shuffles=0: give 1"),
    ):  # fmt: skip
        assert_raises(message, confounds, mean_difference(pairs), pairs, shuffles=shuffles)


@pytest.fixture
def table():
    factors = design()[0].assign(tone_positive="warm", tone_negative="cold", kind=[NASTY, "b"] * 40)
    pairs = planted_pairs(factors=factors, layers=4, noise=1.0)
    return confounds(mean_difference(pairs), pairs, shuffles=20)


def test_a_heatmap_shows_the_cosines_and_dots_mark_those_beyond_chance(table):
    figure = plots.confounds(table.sample(frac=1, random_state=0).sort_values("factor", kind="stable"))
    heat, dots, questions = figure.data
    assert list(heat.x) == [0, 1, 2, 3]
    names = dict(zip(heat.y, heat.z, strict=True))
    cosines = table[table["factor"] == "truth"].sort_values("layer")["cosine"]
    assert list(names["truth (1 − 0)"]) == pytest.approx(list(cosines), abs=1e-4)
    assert list(names["tone (cold − warm)"]) == [None] * 4
    assert "all others together" in names
    assert (heat.zmin, heat.zmax) == (-1, 1)
    assert len(dots.x) == table["differs"].sum()
    assert list(zip(questions.x, questions.y, strict=True)) == [(k, "tone (cold − warm)") for k in range(4)]
    assert "<b>loud" not in figure.to_json().replace("\\u003c", "<")


def test_a_figure_of_another_table_is_rejected(table):
    truth = table[table["factor"] == "truth"]
    many = pd.concat([truth.assign(factor=f"f{number}") for number in range(21)])
    for other, message in (
        (table.drop(columns="differs"), r"plots\.confounds.*lacks the columns differs.*confounds"),
        (pd.concat([table, table]), "several tables in one"),
        (many, "21 factors cannot be read"),
    ):
        assert_raises(message, plots.confounds, other)
