"""Means per layer, factors of components, and coordinates of vectors, against scipy and plain loops."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tl_steer.analysis import component_factors, mean_projections, pca, projections, vector_components
from tl_steer.directions import SteeringVectors, mean_difference, principal_component

from .conftest import assert_raises, make_identity, make_pairs

SIDES = ("positive", "negative")


@pytest.fixture
def factors():
    """Twelve pairs: truth is shared by a pair, the letter differs between its sides."""
    return pd.DataFrame(
        {
            "group": range(12), "truth": [1, 0] * 6, "letter_positive": ["A", "A", "B", "B"] * 3,
            "letter_negative": ["B", "B", "A", "A"] * 3, "topic": ["sea", "sky", "sun"] * 4,
            "tokens": [5, 9, 7, 11] * 3,
        }
    )  # fmt: skip


@pytest.fixture
def pairs(factors):
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(2, 12, 3, 6)) * np.array([[1], [2], [9]])  # it grows with the layer
    sides[0] += np.array([[0.8], [0.8], [0]])
    return make_pairs(*sides, layers=(1, 2, 4), factors=factors)


@pytest.fixture
def projected(pairs):
    table = projections(pairs, mean_difference(pairs))
    return table.sample(frac=1, random_state=0)  # nothing may depend on the order of rows


def rows_of(table, **where):
    """The rows with these values; NaN is one."""
    for column, value in where.items():
        table = table[table[column].isna() if value != value else table[column] == value]
    return table


def row_of(table, **where):
    (row,) = rows_of(table, **where).to_dict("records")
    return row


def samples_of(projected, layer, value):
    """Values per side and their differences, pair by pair."""
    rows = rows_of(projected, layer=layer).sort_values("pair")
    samples = {side: rows_of(rows, side=side)[value].to_numpy() for side in SIDES}
    return samples | {"difference": samples["positive"] - samples["negative"]}


# --- means -------------------------------------------------------------------------------------------------


def test_means_differences_and_their_intervals_are_scipys(projected):
    table = mean_projections(projected)
    assert list(table["side"]) == [*SIDES, "difference"] * 3
    assert list(table["layer"]) == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert set(table["n"]) == {12}
    for layer, value in itertools.product((1, 2, 4), ("projection", "cosine")):
        samples = samples_of(projected, layer, value)
        for side, sample in samples.items():
            result = row_of(table, layer=layer, side=side)
            expected = [sample.mean(), *stats.ttest_1samp(sample, 0).confidence_interval()]
            assert [result[f"{value}{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected)
        if value == "projection":
            t = stats.ttest_rel(samples["positive"], samples["negative"]).statistic
            assert result["effect"] == pytest.approx(t / np.sqrt(12))


def test_the_spread_is_the_standard_deviation_of_each_side_and_of_the_differences(projected):
    table = mean_projections(projected)
    for layer in (1, 2, 4):
        for side, values in samples_of(projected, layer, "projection").items():
            result = row_of(table, layer=layer, side=side)
            squares = (values - values.mean()) ** 2 * 12 / 11
            half = stats.t.ppf(0.975, 11) * squares.std(ddof=1) / np.sqrt(12) / squares.mean() / 2
            correction = 12 / (12 - stats.norm.ppf(0.975))  # Bonett 2006
            ends = np.sqrt(correction) * values.std(ddof=1) * np.exp([-half * correction, half * correction])
            assert result["spread"] == pytest.approx(values.std(ddof=1))
            assert (result["spread_low"], result["spread_high"]) == pytest.approx(ends)


def test_a_peaked_side_has_the_smaller_spread():
    """Planted: the positive side varies four times less along the direction."""
    sides = np.random.default_rng(1).normal(size=(2, 200, 1, 6))
    sides[0, ..., 0] = 3 + sides[0, ..., 0] / 4
    many = make_pairs(*sides)
    table = mean_projections(projections(many, vectors_of(np.eye(6)[:1], identity=many.identity)))
    positive, negative = (row_of(table, side=side) for side in SIDES)
    assert positive["spread"] == pytest.approx(0.25, rel=0.2)
    assert positive["spread_high"] < negative["spread_low"]


def test_on_the_mean_difference_itself_the_difference_is_its_length(pairs, projected):
    differences = mean_projections(projected).query("side == 'difference'")
    np.testing.assert_allclose(differences["projection"], mean_difference(pairs).norms(), rtol=1e-5)


def test_layers_are_ranked_by_effect_and_by_the_difference_itself(projected):
    """The late layer's activations are nine times larger, so its difference is the largest and says least."""
    table = mean_projections(projected)
    differences = rows_of(table, side="difference").set_index("layer")
    for rank, value in (("rank", "effect"), ("projection_rank", "projection")):
        assert differences[rank].tolist() == stats.rankdata(-differences[value]).tolist()
    assert differences.loc[4, ["rank", "projection_rank"]].tolist() == [3, 1]
    assert table.loc[table["side"] != "difference", "rank"].isna().all()


def test_each_level_of_a_second_factor_has_its_own_differences_and_ranks(projected):
    table = mean_projections(projected, by=["side", "truth"])
    alone = mean_projections(rows_of(projected, truth=1))
    own = rows_of(table, truth=1).drop(columns="truth").reset_index(drop=True)
    pd.testing.assert_frame_equal(own[alone.columns], alone, check_dtype=False)
    assert set(table["n"]) == {6}


def test_a_factor_that_differs_within_pairs_leaves_means_and_no_difference(projected):
    table = mean_projections(projected, by=["side", "letter"])
    assert set(table["side"]) == {"positive", "negative"}
    where = {"layer": 2, "side": "positive", "letter": "B"}
    rows, result = rows_of(projected, **where), row_of(table, **where)
    assert result["projection"] == pytest.approx(rows["projection"].mean())
    assert result["n"] == len(rows) == 6


def test_without_the_side_there_are_means_only(projected):
    table = mean_projections(projected, by="topic")
    assert list(table.columns[:3]) == ["layer", "topic", "n"]
    assert "rank" not in table
    result, rows = row_of(table, layer=1, topic="sky"), rows_of(projected, layer=1, topic="sky")
    assert (result["n"], result["cosine"]) == (8, pytest.approx(rows["cosine"].mean()))


def test_only_whole_pairs_make_a_difference(projected):
    drop = (projected["pair"] < 4) & (projected["side"] == "positive")
    drop |= (projected["pair"] == 11) & (projected["side"] == "negative")
    table = mean_projections(projected[~drop])
    assert [row_of(table, layer=1, side=side)["n"] for side in (*SIDES, "difference")] == [8, 11, 7]
    whole = mean_projections(projected[projected["pair"].between(4, 10)])
    with_rest, alone = (row_of(each, layer=1, side="difference")["projection"] for each in (table, whole))
    assert with_rest == pytest.approx(alone)


def test_pairs_that_all_differ_alike_have_no_effect_to_rank(projected):
    alike = projected.assign(projection=np.where(projected["side"] == "positive", 0.3, 0.1))
    differences = mean_projections(alike).query("side == 'difference'")
    assert differences["effect"].isna().all()
    assert differences["rank"].isna().all()
    np.testing.assert_allclose(differences["projection"], 0.2)


def test_means_reject_other_tables(projected):
    twice = pd.concat([projected.assign(vector=name) for name in "ab"])
    for message, table, options in (
        ("lacks the columns kind.*projections returns", projected, {"by": ["side", "kind"]}),
        ("no rows", projected.iloc[:0], {}),
        (r"several tables in one.*by=", twice, {}),
    ):
        assert_raises(message, mean_projections, table, **options)
    assert len(mean_projections(twice, by=["vector", "side"])) == 18


# --- components and factors --------------------------------------------------------------------------------


def test_correlations_and_their_intervals_are_scipys(pairs):
    components = pca(pairs, components=2)
    table = component_factors(components)
    coded = {("tokens", ""): components["tokens"]}
    levels = {"side": ["positive"], "truth": [1], "letter": ["A"], "topic": ["sea", "sky", "sun"]}
    for factor, values in levels.items():
        coded |= {(factor, str(value)): components[factor] == value for value in values}
    assert set(zip(table["factor"], table["level"], strict=True)) == set(coded)
    assert len(table) == 3 * 2 * len(coded)
    for result in table.to_dict("records"):
        rows = components[components["layer"] == result["layer"]]
        values = coded[result["factor"], result["level"]][rows.index].astype(float)
        oracle = stats.pearsonr(rows[f"PC{result['component']}"], values)
        assert result["correlation"] == pytest.approx(oracle.statistic)
        half = stats.norm.ppf(0.975) / np.sqrt(12 - 3)  # of units; scipy counts rows
        ends = np.tanh(np.arctanh(oracle.statistic) + np.array([-half, half]))
        assert [result["correlation_low"], result["correlation_high"]] == pytest.approx(list(ends))
        assert result["explained"] == rows[f"explained_{result['component']}"].iloc[0]
        assert (result["n"], result["units"]) == (24, 12)


def test_with_every_row_a_unit_the_interval_is_pearsonrs(pairs):
    components = pca(pairs, components=1).drop(columns="group")
    components["pair"] = range(len(components))
    result = row_of(component_factors(components, factors=["tokens"]), layer=2)
    rows = rows_of(components, layer=2)
    interval = stats.pearsonr(rows["PC1"], rows["tokens"]).confidence_interval()
    assert (result["correlation_low"], result["correlation_high"]) == pytest.approx(tuple(interval))


def test_the_sign_says_which_level_is_higher(pairs):
    components = pca(pairs, components=1)
    components["PC1"] = np.where(components["letter"] == "B", 1.0, -1.0)
    result = row_of(component_factors(components), layer=1, factor="letter")
    assert result["level"] == "A"
    ends = [result[f"correlation{end}"] for end in ("", "_low", "_high")]
    assert ends == pytest.approx([-1, -1, -1])


@pytest.mark.statistics
def test_intervals_of_factors_that_a_pair_shares_cover():
    """Both sides alike and truth by chance: 95 of 100 intervals hold zero; by sides, far fewer would."""
    rng = np.random.default_rng(0)
    layers, pairs = 400, 40
    shared = rng.normal(size=(layers, pairs))
    truth = rng.permutation([0, 1] * (pairs // 2))
    columns = {
        "layer": np.repeat(range(layers), 2 * pairs), "pair": np.tile(range(pairs), 2 * layers),
        "side": np.tile(np.repeat(SIDES, pairs), layers), "prompt": "", "truth": np.tile(truth, 2 * layers),
        "PC1": np.tile(shared, 2).ravel(), "explained_1": 1.0,
    }  # fmt: skip
    table = pd.DataFrame(columns)
    result = component_factors(table, factors=["truth"])
    holds = (result["correlation_low"] < 0) & (result["correlation_high"] > 0)
    assert 0.92 < holds.mean() < 0.98
    half = 1.96 / np.sqrt(2 * pairs - 3)
    assert (np.arctanh(result["correlation"]).abs() < half).mean() < 0.88


def test_units_are_groups_and_missing_values_are_left_out_of_their_factor_only(pairs):
    components = pca(pairs, components=1, layers=2)
    by_group = components.assign(group=components["group"] // 2)
    assert set(component_factors(by_group)["units"]) == {6}
    components["truth"] = components["truth"].where(components["pair"] != 3)
    table = component_factors(components)
    result, rows = row_of(table, factor="truth"), components[components["pair"] != 3]
    assert (result["n"], result["units"], result["level"]) == (22, 11, "1.0")
    assert result["correlation"] == pytest.approx(stats.pearsonr(rows["PC1"], rows["truth"]).statistic)
    assert row_of(table, factor="side")["n"] == 24


def test_factors_that_cannot_be_coded_are_left_out_and_rejected_by_name(pairs):
    components = pca(pairs, components=1).assign(one="same")
    components["name"] = "name " + components["pair"].astype(str)
    assert not {"name", "one", "group"} & set(component_factors(components)["factor"])
    for table, options, message in (
        (components, {"factors": ["name"]}, "'name' has 12 levels"),
        (components, {"factors": ["one"]}, "'one' has 1 levels"),
        (components, {"factors": ["group"]}, r"not a factor of this table; it has \['side', 'truth'"),
        (components.drop(columns="explained_1"), {}, "lacks the columns explained_1.*pca returns"),
        (components.iloc[:0], {}, "no rows"),
    ):
        assert_raises(message, component_factors, table, **options)


def test_a_component_that_does_not_vary_has_no_correlation():
    rows = np.outer(np.arange(8.0), np.ones(8)).reshape(2, 4, 1, 8)
    table = pca(make_pairs(*rows), components=2).assign(PC2=0.0)
    table = component_factors(table).query("component == 2")
    assert table[["correlation", "correlation_low", "correlation_high"]].isna().all(axis=None)


def test_the_planted_direction_is_the_component_that_correlates_with_the_side(planted):
    table = component_factors(pca(planted[0], components=3))
    result = table[table["factor"] == "side"].set_index(["layer", "component"])["correlation"]
    assert (result.loc[:, 1] > 0.95).all()
    assert (result.loc[:, [2, 3]].abs() < 0.3).all()


# --- projections on a component ----------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["pooled", "differences", "centred_differences"])
@pytest.mark.parametrize("component", [1, 2])
def test_centred_projections_on_a_principal_component_are_its_coordinates(pairs, component, of):
    """Up to the sign, which the two tables set alike."""
    vectors = principal_component(pairs, component=component, of=of)
    table = projections(pairs, vectors, centred=True)
    coordinates = pca(pairs, components=2, of=of)
    np.testing.assert_allclose(table["projection"], coordinates[f"PC{component}"], atol=1e-5)
    assert list(table["prompt"]) == list(coordinates["prompt"])


@pytest.mark.parametrize("of", ["differences", "centred_differences"])
def test_both_sides_are_projected_on_the_components_of_their_differences(pairs, of):
    table = pca(pairs, components=3, of=of)
    assert (table["decomposed"] == of).all()
    assert len(table) == 3 * 2 * len(pairs)
    for index, layer in enumerate(pairs.layers):
        positive, negative = (side[:, index].double().numpy() for side in pairs.sides())
        rows = positive - negative
        rows = rows - rows.mean(0) if of == "centred_differences" else rows
        squares, axes = np.linalg.eigh(rows.T @ rows)
        centred = np.concatenate([positive, negative]) - (positive.mean(0) + negative.mean(0)) / 2
        at_layer = rows_of(table, layer=layer)
        for number in (1, 2, 3):
            explained, result = at_layer[f"explained_{number}"], at_layer[f"PC{number}"].to_numpy()
            assert explained.iloc[0] == pytest.approx(squares[-number] / squares.sum())
            np.testing.assert_allclose(np.abs(result), np.abs(centred @ axes[:, -number]), atol=1e-6)
            assert result[: len(pairs)].mean() > result[len(pairs) :].mean()


def test_components_of_differences_that_do_not_vary_are_refused():
    positive, negative = np.random.default_rng(0).normal(size=(2, 5, 2, 8))
    positive[:, 1] = negative[:, 1] + 1.0
    alike = make_pairs(positive, negative)
    assert len(pca(alike, components=1, of="differences")) == 20
    for components, of, message in (
        (2, "differences", "layer 1 vary in fewer than 2 directions"),
        (1, "centred_differences", "layer 1 vary in fewer than 1"),
        (5, "centred_differences", "5 pairs give 1 to 4"),
    ):
        assert_raises(message, pca, alike, components=components, of=of)


# --- a vector's own numbers --------------------------------------------------------------------------------


def vectors_of(values, *, layers=None, hook="resid_post", identity=None):
    """Steering vectors with the values "layer d_hook" (or "layer pos d_hook")."""
    values = torch.as_tensor(values, dtype=torch.float32)
    layers = tuple(range(len(values))) if layers is None else layers
    identity = identity or make_identity(d_model=values.shape[-1], n_layers=8)
    return SteeringVectors(values, layers, hook, "planted", torch.ones(len(values)), identity)


def test_coordinates_have_shares_and_ranks():
    table = vector_components(vectors_of([[3.0, 0.0, -4.0, 0.0]], layers=(5,)))
    columns = ["layer", "coordinate", "value", "rank", "spread", "n_half_energy"]
    rows = [(5, 0, 3, 2, 2.5, 1), (5, 1, 0, 3, 2.5, 1), (5, 2, -4, 1, 2.5, 1), (5, 3, 0, 4, 2.5, 1)]
    assert list(table[columns].itertuples(index=False, name=None)) == rows
    np.testing.assert_allclose(table["share"], [9 / 25, 0, 16 / 25, 0])


def test_spread_and_kurtosis_are_scipys_and_half_of_the_energy_is_counted():
    values = np.random.default_rng(0).standard_t(3, size=(2, 50)).astype(np.float32)
    table = vector_components(vectors_of(values))
    for layer, vector in enumerate(values.astype(float)):
        rows = rows_of(table, layer=layer)
        np.testing.assert_allclose(rows["kurtosis"], stats.kurtosis(vector))
        np.testing.assert_allclose(rows["spread"], np.linalg.norm(vector) / np.sqrt(50))
        energies = np.sort(vector**2)[::-1].cumsum()
        assert set(rows["n_half_energy"]) == {1 + sum(energies < energies[-1] / 2)}


def test_a_random_direction_is_normal_and_an_eighth_of_it_carries_half():
    table = vector_components(vectors_of(np.random.default_rng(1).normal(size=(1, 20000))))
    assert table["kurtosis"].iloc[0] == pytest.approx(0, abs=0.1)
    assert table["n_half_energy"].iloc[0] / 20000 == pytest.approx(1 / 8, abs=0.003)


def test_equal_coordinates_need_half_of_them():
    for count in range(2, 60, 2):
        assert set(vector_components(vectors_of(np.full((1, count), 0.1)))["n_half_energy"]) == {count // 2}
    assert vector_components(vectors_of(np.full((1, 10), 0.1)))["kurtosis"].isna().all()


def test_one_vector_is_accepted_and_vectors_without_coordinates_are_rejected():
    vectors = vectors_of(np.eye(3)[:2], layers=(4, 1))
    expected = rows_of(vector_components(vectors), layer=1).reset_index(drop=True)
    pd.testing.assert_frame_equal(vector_components(vectors[1]), expected)
    assert_raises("one per position", vector_components, vectors_of(np.ones((1, 2, 3))))
    assert_raises(r"length zero \(layers \[1\]\)", vector_components, vectors_of([[1.0, 0.0], [0.0, 0.0]]))
