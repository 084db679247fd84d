"""Directions of letter, truth and length, how far vectors lie along them, and vectors without them."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom

from tl_steer import plots
from tl_steer.analysis import confounds
from tl_steer.analysis._separation import balanced_folds
from tl_steer.directions import SteeringVectors, factor_directions, mean_difference, without_factors
from tl_steer.errors import ModelMismatchError

from .conftest import make_identity, make_pairs
from .test_plots import NASTY

WIDTH = 48
# Orthogonal axes, and a behaviour that leans on truth with a known cosine.
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


def planted_pairs(*, pairs=80, noise=0.1, behaviour=BEHAVIOUR, seed=0, layers=1, factors=None):
    """Activations that are the sum of letter, truth, length and behaviour, and noise."""
    known, tokens = design(pairs, seed=seed)
    rng = np.random.default_rng(seed)
    sides = []
    for side, sign in (("positive", 0.5), ("negative", -0.5)):
        letter = np.where(known[f"letter_{side}"] == "A", 0.5, -0.5)
        rows = np.outer(letter, LETTER) + np.outer(known["truth"], TRUTH) + np.outer(tokens, LENGTH)
        values = (rows + sign * behaviour)[:, None] + noise * rng.normal(size=(pairs, layers, WIDTH))
        sides.append(values)
    source = make_pairs(*sides, factors=known if factors is None else factors)
    for side in (source.positive, source.negative):
        side.prompt_lengths.copy_(torch.as_tensor(tokens))
    return source


def cosine(one, other):
    one, other = np.asarray(one, float), np.asarray(other, float)
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


# --- directions of factors ---


def test_directions_of_factors_are_the_planted_ones_with_their_length():
    result = factor_directions(planted_pairs())
    assert list(result) == ["letter", "truth", "tokens"]
    for name, planted in (("letter", LETTER), ("truth", TRUTH), ("tokens", LENGTH)):
        direction = result[name].values[0].numpy()
        assert cosine(direction, planted) > 0.99, name
        assert np.linalg.norm(direction) == pytest.approx(np.linalg.norm(planted), rel=0.05), name
    assert {name: each.info["contrast"] for name, each in result.items()} == {
        "letter": "A − B", "truth": "1 − 0", "tokens": "per unit",
    }  # fmt: skip
    assert result["letter"].method == "factor: letter"


def test_a_letters_direction_is_a_mean_over_sides_of_differences_of_means():
    pairs = planted_pairs(noise=1.0)
    result = factor_directions(pairs)["letter"].values[0].numpy()
    gaps = []
    for name in ("positive", "negative"):
        rows = getattr(pairs, name).values[:, 0, 0].double().numpy()
        is_a = (pairs.factors[f"letter_{name}"] == "A").to_numpy()
        gaps.append(rows[is_a].mean(0) - rows[~is_a].mean(0))
    np.testing.assert_allclose(result, (gaps[0] + gaps[1]) / 2, atol=1e-5)


def test_a_numbers_direction_is_the_least_squares_slope_within_sides():
    pairs = planted_pairs(noise=1.0)
    result = factor_directions(pairs)["tokens"].values[0].numpy()
    slopes = []
    for side in (pairs.positive, pairs.negative):
        rows, x = side.values[:, 0, 0].double().numpy(), side.prompt_lengths.double().numpy()
        slopes.append(np.polyfit(x, rows, 1)[0])
    np.testing.assert_allclose(result, np.mean(slopes, axis=0), atol=1e-5)


def test_the_behaviour_has_no_part_in_a_factors_direction():
    """The same activations with another behaviour, however large, give the same directions."""
    one, two = (factor_directions(planted_pairs(behaviour=each)) for each in (BEHAVIOUR, 50 * AXES[5]))
    for name in one:
        torch.testing.assert_close(one[name].values, two[name].values, atol=1e-4, rtol=0)


def test_where_activations_do_not_vary_a_factors_direction_is_an_error_that_names_the_layer():
    sides = np.random.default_rng(0).normal(size=(2, 4, 2, 8))
    sides[:, :, 1] = sides[:, :1, 1]
    factors = pd.DataFrame({"letter": list("ABAB"), "group": range(4)})
    with pytest.raises(ValueError, match=r"resid_post at layers \[1\] does not vary"):
        factor_directions(make_pairs(*sides, factors=factors))


def test_a_side_with_one_level_leaves_the_direction_to_the_other():
    pairs = planted_pairs()
    factors = pairs.factors.drop(columns=["letter_positive", "letter_negative", "truth"]).assign(
        kind_positive="a", kind_negative=["a", "b"] * 40
    )
    changed = make_pairs(*(side[:, :, :].numpy() for side in pairs.sides()), factors=factors)
    rows = changed.negative.values[:, 0, 0].numpy()
    result = factor_directions(changed)["kind"].values[0].numpy()
    np.testing.assert_allclose(result, rows[::2].mean(0) - rows[1::2].mean(0), atol=1e-4)


def test_a_factor_between_the_sides_only_has_no_direction_of_its_own():
    factors = design()[0].assign(tone_positive="warm", tone_negative="cold")
    assert list(factor_directions(planted_pairs(factors=factors))) == ["letter", "truth", "tokens"]


def test_levels_stand_against_the_rest_and_names_are_left_out():
    rng = np.random.default_rng(0)
    topic = rng.choice(["art", "food", "law"], 80)
    factors = pd.DataFrame(
        {"topic": topic, "claim": [f"claim {k}" for k in range(80)], "same": 1, "group": range(80)}
    )
    pairs = make_pairs(*rng.normal(size=(2, 80, 1, WIDTH)), factors=factors)
    result = factor_directions(pairs)
    assert list(result) == ["topic = art", "topic = food", "topic = law"]
    sides = [side[:, 0].double().numpy() for side in pairs.sides()]
    by_hand = np.mean([rows[topic == "food"].mean(0) - rows[topic != "food"].mean(0) for rows in sides], 0)
    np.testing.assert_allclose(result["topic = food"].values[0], by_hand, atol=1e-5)
    assert result["topic = food"].info["contrast"] == "food − rest"


def test_pairs_of_which_a_factor_is_missing_are_left_out_of_it():
    pairs = planted_pairs(noise=1.0)
    label = pairs.factors["truth"].astype(object).where(np.arange(80) >= 10, None)
    pairs = make_pairs(*(side.numpy() for side in pairs.sides()), factors=pd.DataFrame({"label": label}))
    known = pairs.subset(range(10, 80))
    expected = factor_directions(known)["label"].values
    torch.testing.assert_close(factor_directions(pairs)["label"].values, expected, atol=1e-5, rtol=0)


# --- a vector without them ---


def test_without_factors_nothing_is_left_along_any_of_them():
    pairs = planted_pairs(noise=1.0, layers=3)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    before = vectors.values.clone(), directions["letter"].values.clone()
    rest = without_factors(vectors, directions)
    assert torch.equal(vectors.values, before[0])
    assert torch.equal(directions["letter"].values, before[1])
    for direction in directions.values():
        assert rest.cosine_similarity(direction).abs().max() < 1e-6
    for layer in range(3):  # the residual of least squares on the directions
        span = np.stack([each.values[layer].numpy() for each in directions.values()]).T.astype(float)
        vector = vectors.values[layer].double().numpy()
        fitted = span @ np.linalg.lstsq(span, vector, rcond=None)[0]
        np.testing.assert_allclose(rest.values[layer], vector - fitted, atol=1e-5)
    assert rest.info["without"] == ["letter", "truth", "tokens"]
    assert rest.info["pairs"] == 80
    assert rest.method == "mean_difference without letter, truth, tokens"
    assert (rest.norms() < vectors.norms()).all()


def test_what_leans_on_truth_keeps_the_rest():
    pairs = planted_pairs(noise=0.01)
    rest = without_factors(mean_difference(pairs), pairs, names="truth")
    assert cosine(rest.values[0], AXES[3]) > 0.99
    assert rest.norms().item() == pytest.approx(0.8, abs=0.02)
    assert rest.info["without"] == ["truth"]


def test_levels_that_depend_on_each_other_take_away_no_more_than_their_span():
    """Three levels against the rest span two dimensions, or three: never an arbitrary further one."""
    rng = np.random.default_rng(0)
    vector = mean_difference(planted_pairs(noise=1.0))
    one, two = (_as(vector, rng.normal(size=(1, WIDTH))) for _ in range(2))
    rest = without_factors(vector, {"one": one, "two": two, "both": one - 2 * two, "zero": 0 * one})
    expected = without_factors(vector, {"one": one, "two": two})
    torch.testing.assert_close(rest.values, expected.values, atol=1e-5, rtol=0)


def _as(vectors, values, **changes):
    """Other values in the same place."""
    fields = {"layers": vectors.layers, "hook": vectors.hook, "identity": vectors.identity} | changes
    return SteeringVectors(
        torch.as_tensor(values, dtype=torch.float32),
        fields["layers"],
        fields["hook"],
        "made",
        vectors.stream_norm[: len(values)],
        fields["identity"],
    )


def test_what_cannot_be_projected_out_is_refused():
    pairs = planted_pairs(layers=2)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    with pytest.raises(ValueError, match=r"no direction of \['tone'\]; there are \['letter'"):
        without_factors(vectors, directions, names=["tone"])
    with pytest.raises(ValueError, match="no factor to project out"):
        without_factors(vectors, {})
    with pytest.raises(ValueError, match=r"no direction of 'letter' at layers \[1\]"):
        without_factors(vectors, {"letter": directions["letter"].weighted({0: 1.0})})
    with pytest.raises(ValueError, match="nothing is left of the vector at layer 0"):
        without_factors(directions["letter"], directions)
    with pytest.raises(ValueError, match="at resid_post, the direction of 'letter' at resid_pre"):
        without_factors(vectors, {"letter": _as(vectors, directions["letter"].values, hook="resid_pre")})
    with pytest.raises(ValueError, match="one per position"):
        without_factors(_as(vectors, np.ones((2, 3, WIDTH))), directions)
    other = make_identity(n_layers=2, d_model=WIDTH, fingerprint=tuple(np.linspace(2, 3, 256)))
    with pytest.raises(ModelMismatchError):
        without_factors(_as(vectors, vectors.values, identity=other), directions)


# --- how far vectors lie along them ---


def test_confounds_find_the_planted_cosine_and_no_other():
    table = confounds(mean_difference(planted_pairs()), planted_pairs(seed=1)).set_index("factor")
    assert list(table.index) == ["letter", "truth", "tokens", "all"]
    assert table.loc["truth", "cosine"] == pytest.approx(LEAN, abs=0.03)
    assert table.loc["truth", "share"] == pytest.approx(LEAN**2, abs=0.03)
    assert table["differs"].to_dict() == {"letter": False, "truth": True, "tokens": False, "all": True}
    assert abs(table.loc["letter", "cosine"]) < 0.1
    assert table.loc["all", "cosine"] == pytest.approx(LEAN, abs=0.05)
    assert table["balanced"].all()
    assert list(table.columns) == [
        "layer", "contrast", "cosine", "share", "null_high", "differs", "balanced", "pairs", "method",
    ]  # fmt: skip


def test_the_share_of_all_is_that_of_the_span():
    pairs = planted_pairs(noise=2.0)
    vectors, directions = mean_difference(pairs), factor_directions(pairs)
    table = confounds(vectors, pairs, shuffles=5).set_index("factor")
    vector = vectors.values[0].double().numpy()
    span = np.stack([each.values[0].double().numpy() for each in directions.values()]).T
    fitted = span @ np.linalg.lstsq(span, vector, rcond=None)[0]
    assert table.loc["all", "share"] == pytest.approx((fitted @ fitted) / (vector @ vector), abs=1e-6)
    for name, direction in directions.items():
        assert table.loc[name, "cosine"] == pytest.approx(cosine(vector, direction.values[0]), abs=1e-6)
    rest = without_factors(vectors, directions)
    assert (confounds(rest, pairs, shuffles=5)["cosine"].abs() < 1e-6).all()


def spanned(vector, directions):
    """Cosine of a vector with the nearest one in the span of directions."""
    span = np.stack([np.ravel(each) for each in directions]).T
    return np.linalg.norm(span @ np.linalg.lstsq(span, vector, rcond=None)[0]) / np.linalg.norm(vector)


def noise_of(pairs, vector, shuffles):
    """|cosines| with factors that mean nothing, a row a shuffle: residuals of a regression within sides.

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
        for side in (shuffled.positive, shuffled.negative):
            side.prompt_lengths.copy_(tokens[order])
        result = [each.values[0].numpy() for each in factor_directions(shuffled).values()]
        drawn.append([*(abs(cosine(vector, each)) for each in result), spanned(vector, result)])
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
    """A vector of one half, asked with the other, of factors without any direction; layers are alike."""
    rng, result = np.random.default_rng(0), []
    tables = draws(200)
    for _ in range(tables):
        factors, _ = design(60)
        sides = rng.normal(size=(2, 60, 10, WIDTH)) + 2 * rng.normal(size=(2, 60, 1, WIDTH))
        pairs = make_pairs(*sides, factors=factors)
        half = balanced_folds(factors, folds=2)
        one, other = (pairs.subset(np.flatnonzero(half == each).tolist()) for each in (0, 1))
        result.append(confounds(mean_difference(one), other, shuffles=99)["differs"].any())
    low, high = binom.ppf([0.005, 0.995], tables, 0.05)
    assert low <= sum(result) <= high


def test_with_few_shuffles_nothing_can_differ():
    pairs, source = planted_pairs(), mean_difference(planted_pairs(seed=1))
    for shuffles, known in ((18, False), (19, True)):
        table = confounds(source, pairs, shuffles=shuffles)
        assert table["null_high"].notna().all() == table["differs"].any() == known
    text = plots.confounds(confounds(source, pairs, shuffles=18)).layout.title.subtitle.text
    assert "19 shuffles or more are needed" in text


def test_a_factor_between_the_sides_only_is_marked_and_has_no_number():
    factors = design()[0].assign(tone_positive="warm", tone_negative="cold")
    pairs = planted_pairs(factors=factors)
    table = confounds(mean_difference(pairs), pairs).set_index("factor")
    assert table["balanced"].to_dict() == {
        "letter": True, "truth": True, "tone": False, "tokens": True, "all": False,
    }  # fmt: skip
    assert table.loc["tone", ["cosine", "share", "null_high"]].isna().all()
    assert not table.loc["tone", "differs"]
    only = make_pairs(
        *(side.numpy() for side in pairs.sides()), factors=factors[["tone_positive", "tone_negative"]]
    )
    table = confounds(mean_difference(only), only)
    assert list(table["factor"]) == ["tone", "all"]
    assert table["cosine"].isna().all()


def test_shared_layers_are_asked_about():
    pairs = planted_pairs(layers=3)
    table = confounds(mean_difference(pairs).weighted({2: 1.0, 1: -1.0}), pairs, shuffles=2)
    assert list(table["layer"].unique()) == [1, 2]
    assert table.set_index(["layer", "factor"])["cosine"][1, "truth"] == pytest.approx(-LEAN, abs=0.03)


def test_the_same_seed_gives_the_same_table():
    pairs = planted_pairs()
    one, two, other = (confounds(mean_difference(pairs), pairs, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one.equals(other)


def test_pairs_without_factors_are_refused(planted):
    pairs, _ = planted
    with pytest.raises(ValueError, match="no factor varies among these pairs"):
        confounds(mean_difference(pairs), pairs)
    with pytest.raises(ValueError, match="shuffles=0: give 1 or more"):
        confounds(mean_difference(planted_pairs()), planted_pairs(), shuffles=0)


# --- the figure ---


@pytest.fixture
def table():
    factors = design()[0].assign(tone_positive="warm", tone_negative="cold", kind=[NASTY, "b"] * 40)
    pairs = planted_pairs(factors=factors, layers=4, noise=1.0)
    return confounds(mean_difference(pairs), pairs, shuffles=20)


def test_a_heatmap_holds_the_cosines_and_dots_those_beyond_chance(table):
    figure = plots.confounds(table.sample(frac=1, random_state=0).sort_values("factor", kind="stable"))
    heat, *marks = figure.data
    assert list(heat.x) == [0, 1, 2, 3]
    names = dict(zip(heat.y, heat.z, strict=True))
    rows = table[table["factor"] == "truth"].sort_values("layer")
    assert list(names["truth (1 − 0)"]) == pytest.approx(list(rows["cosine"]), abs=1e-4)
    assert list(names["tone (cold − warm)"]) == [None] * 4
    assert "all others together" in names
    assert (heat.zmin, heat.zmax) == (-1, 1)
    dots, questions = marks
    assert len(dots.x) == table["differs"].sum()
    assert list(zip(questions.x, questions.y, strict=True)) == [(k, "tone (cold − warm)") for k in range(4)]
    assert "<b>loud" not in figure.to_json().replace("\\u003c", "<")


def test_a_figure_of_another_table_is_refused(table):
    with pytest.raises(ValueError, match=r"plots\.confounds.*lacks the columns differs.*confounds"):
        plots.confounds(table.drop(columns="differs"))
    with pytest.raises(ValueError, match="several tables in one"):
        plots.confounds(pd.concat([table, table]))
    many = pd.concat([table[table["factor"] == "truth"].assign(factor=f"f{k}") for k in range(21)])
    with pytest.raises(ValueError, match="21 factors cannot be read"):
        plots.confounds(many)
