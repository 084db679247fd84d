"""Control vectors, and effects beside those of controls."""

import functools
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import tl_steer as ts
from tl_steer.analysis import separation
from tl_steer.directions import (
    SteeringVectors,
    coin_flips,
    control_vectors,
    logistic_direction,
    mean_difference,
)
from tl_steer.evaluation import against_controls, effectiveness, signal_detection
from tl_steer.models import identify
from tl_steer.sweeps.sweep_table import CONDITION

from .conftest import make_identity, make_pairs
from .tiny_model import D_MODEL, make_model, word_tokenizer

COUNTS = {"random": 3, "shuffled": 4, "orthogonal": 2}


def some_pairs(pairs=12, layers=(0, 2), width=16, *, factors=None, seed=0, identity=None):
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=(1, len(layers), width))
    positive, negative = rng.normal(size=(2, pairs, len(layers), width))
    return make_pairs(positive + shift, negative, layers=layers, factors=factors, identity=identity)


def lengths(vectors):
    return np.linalg.norm(vectors.values.double().numpy(), axis=-1)


# --- control vectors ---------------------------------------------------------------------------------------


def test_controls_are_named_and_have_layer_by_layer_the_length_of_what_they_control():
    pairs = some_pairs()
    scaled = mean_difference(pairs).scaled_to(dose=0.3)
    for estimator, vectors in (
        (mean_difference, None),
        (logistic_direction, None),
        (mean_difference, scaled),
    ):
        studied = estimator(pairs) if vectors is None else vectors
        result = control_vectors(pairs, estimator=estimator, vectors=vectors, **COUNTS)
        assert list(result) == [
            "random 1", "random 2", "random 3", "shuffled 1", "shuffled 2", "shuffled 3", "shuffled 4",
            "orthogonal 1", "orthogonal 2",
        ]  # fmt: skip
        for each in result.values():
            np.testing.assert_allclose(lengths(each), lengths(studied), rtol=1e-6)
            assert (each.layers, each.hook) == (studied.layers, studied.hook)
            assert each.identity == studied.identity
            assert torch.equal(each.stream_norm, studied.stream_norm)
            assert each.info["length_of"] == studied.method
    assert [len(control_vectors(pairs)), len(control_vectors(pairs, random=0, shuffled=0, orthogonal=0))] == [
        11,
        0,
    ]


def test_every_control_is_another_direction():
    result = control_vectors(some_pairs(), **COUNTS)
    for one, other in itertools.combinations(result.values(), 2):
        assert (one.cosine_similarity(other).abs() < 0.99).all()


def test_an_orthogonal_vector_has_nothing_of_the_vector_and_is_random_otherwise():
    pairs = some_pairs(width=64)
    studied = mean_difference(pairs)
    one, two = control_vectors(pairs, random=0, shuffled=0, orthogonal=2).values()
    for each in (one, two):
        products = (each.values.double() * studied.values.double()).sum(-1)
        assert (products.abs() < 1e-5 * studied.norms() ** 2).all()
        assert each.method == "orthogonal_direction"
    assert (one.cosine_similarity(two).abs() < 0.6).all()


def test_random_controls_of_layers_steered_together_add_up_as_a_vector_whose_layers_agree():
    pairs = some_pairs(layers=(0, 1, 2, 3), width=64)
    studied = mean_difference(pairs)
    result = control_vectors(pairs, random=20, shuffled=0, orthogonal=20)
    for name, each in result.items():
        total, length = each.values.sum(0).norm(), each.norms().sum()
        assert total > (0.9999 if name.startswith("random") else 0.9) * length, name  # anew per layer: 0.5
        if name.startswith("orthogonal"):
            products = (each.values.double() * studied.values.double()).sum(-1)
            assert (products.abs() < 1e-5 * studied.norms() ** 2).all()


def test_a_shuffled_vector_is_the_estimate_of_pairs_of_which_half_the_groups_exchanged_their_sides():
    """Against a search of all exchanges of whole groups: some exchange gives the vector, up to its length."""
    factors = pd.DataFrame({"group": [0, 0, 1, 2, 2, 3], "letter": list("ABABAB")})
    pairs = some_pairs(6, factors=factors)
    positive, negative = (side.double().numpy() for side in pairs.sides())
    result = control_vectors(pairs, random=0, shuffled=7, orthogonal=0, seed=3)
    ways = set()
    for each in result.values():
        matches = []
        for coins in itertools.product([False, True], repeat=4):
            flip = np.array(coins)[factors["group"]][:, None, None]
            mean = (np.where(flip, negative, positive) - np.where(flip, positive, negative)).mean(0)
            mean *= lengths(each)[:, None] / np.linalg.norm(mean, axis=-1, keepdims=True)
            if np.allclose(mean, each.values.numpy(), rtol=1e-4, atol=1e-5):
                matches.append((coins, mean))
        ((coins, mean),) = matches
        assert sum(coins) == 2
        assert each.info["exchanged_pairs"] == np.array(coins)[factors["group"]].sum()
        assert each.method == "shuffled mean_difference"
        ways.add(coins)
        true = (positive - negative).mean(0)
        cosine = (mean * true).sum(-1) / np.linalg.norm(mean, axis=-1) / np.linalg.norm(true, axis=-1)
        np.testing.assert_allclose(each.info["cosine_with_vector"], cosine, atol=1e-5)
    assert len(ways) > 2


def test_what_the_labels_say_cancels_in_a_shuffled_vector_however_strong_it_is():
    """With a coin for each group some of it stays, and is made as long as the whole again."""
    rng = np.random.default_rng(0)
    shift = np.array([30.0, *np.zeros(15)])
    for count in (8, 9):  # of nine groups, one is left out
        noise = rng.standard_normal((2, count, 1, 16))
        pairs = make_pairs(noise[0] + shift, noise[1])
        result = control_vectors(pairs, random=0, shuffled=20, orthogonal=0)
        along = [each.info["cosine_with_vector"][0] for each in result.values()]
        assert np.abs(along).max() < 0.8
        assert abs(np.mean(along)) < 0.2
        assert {each.info["exchanged_pairs"] for each in result.values()} == {4}


def test_an_estimator_that_does_not_see_the_sides_has_no_shuffled_controls():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 40, 2, 8))
    pairs = make_pairs(noise[0] + np.array([9.0, *np.zeros(7)]), noise[1])
    for of in ("pooled", "differences"):
        estimator = functools.partial(ts.principal_component, of=of)
        with pytest.raises(ValueError, match=r"does not see which side is which.*shuffled=0"):
            control_vectors(pairs, estimator=estimator, shuffled=1)
        assert len(control_vectors(pairs, estimator=estimator, shuffled=0)) == 6


def test_shuffled_labels_turn_the_removed_mean_into_the_first_centred_component():
    """Why there are no such controls: what they steer along is the behaviour."""
    rng = np.random.default_rng(0)
    noise, shift = rng.standard_normal((2, 40, 1, 8)), np.array([9.0, *np.zeros(7)])
    pairs = make_pairs(noise[0] + shift, noise[1])
    estimator = functools.partial(ts.principal_component, of="centred_differences")
    exchanged = pairs.swapped([row % 2 == 0 for row in range(40)])
    assert abs(float(estimator(pairs)[0].values[0])) < 0.5
    assert abs(float(estimator(exchanged)[0].values[0])) > 0.99
    with pytest.raises(ValueError, match=r"not a control: the mean difference.*shuffled=0"):
        control_vectors(pairs, estimator=estimator, shuffled=1)
    assert len(control_vectors(pairs, estimator=estimator, shuffled=0)) == 6


def test_where_all_differences_are_alike_a_random_direction_takes_the_shuffled_ones_place():
    pairs = make_pairs(np.ones((6, 1, 4)), np.zeros((6, 1, 4)))
    one, two = control_vectors(pairs, random=0, shuffled=2, orthogonal=0).values()
    assert lengths(one) == pytest.approx(2)
    assert abs(float(one.cosine_similarity(two))) < 0.999


def test_a_control_does_not_depend_on_how_many_others_are_asked_for_and_keeps_its_seed():
    pairs = some_pairs()
    few = control_vectors(pairs, random=1, shuffled=1, orthogonal=1, seed=5)
    many = control_vectors(pairs, random=6, shuffled=3, orthogonal=2, seed=5)
    other = control_vectors(pairs, random=1, shuffled=1, orthogonal=1, seed=6)
    for name, each in few.items():
        assert torch.equal(each.values, many[name].values)
        assert each.info["seed"] == many[name].info["seed"]
        assert not torch.equal(each.values, other[name].values)
    assert len({each.info["seed"] for each in many.values()}) == 11


def test_pairs_and_vectors_are_as_they_were_and_controls_survive_a_file(tmp_path):
    pairs = some_pairs()
    studied = mean_difference(pairs)
    before = [side.clone() for side in (*pairs.sides(), studied.values)]
    result = control_vectors(pairs, vectors=studied)
    assert all(torch.equal(*each) for each in zip(before, (*pairs.sides(), studied.values), strict=True))
    result["shuffled 1"].save(tmp_path / "control.safetensors")
    again = SteeringVectors.load(tmp_path / "control.safetensors")
    assert torch.equal(again.values, result["shuffled 1"].values)
    assert again.info["seed"] == result["shuffled 1"].info["seed"]


def test_vectors_of_some_layers_get_controls_and_those_of_length_zero_none():
    pairs = some_pairs(layers=(0, 2, 3))
    some = mean_difference(pairs).weighted({3: 2.0, 0: 0.5})
    for each in control_vectors(pairs, vectors=some).values():
        assert each.layers == (3, 0)
        np.testing.assert_allclose(lengths(each), lengths(some), rtol=1e-6)
    with pytest.raises(ValueError, match=r"length zero .*of layers \[0\]"):
        control_vectors(pairs, vectors=some.weighted({3: 2.0, 0: 0.0}))


def test_vectors_one_a_position_have_random_and_orthogonal_controls_only():
    pairs = some_pairs()
    several = SteeringVectors(
        torch.randn(2, 3, 16), (0, 2), "resid_post", "made", torch.ones(2), pairs.identity
    )
    result = control_vectors(pairs, vectors=several, shuffled=0)
    assert len(result) == 6
    for each in result.values():
        np.testing.assert_allclose(lengths(each), lengths(several), rtol=1e-6)
    products = (result["orthogonal 1"].values.double() * several.values.double()).sum(-1)
    assert products.abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"one vector per layer.*shuffled=0"):
        control_vectors(pairs, vectors=several)


def test_nothing_is_orthogonal_to_one_number():
    pairs = make_pairs(*np.random.default_rng(0).standard_normal((2, 6, 1, 1)))
    with pytest.raises(ValueError, match="nothing is orthogonal to a vector of one number"):
        control_vectors(pairs, random=0, shuffled=0, orthogonal=1)


def test_controls_that_cannot_be_made_are_rejected():
    pairs = some_pairs()
    with pytest.raises(ValueError, match=r"'shuffled': -1.*0 or more"):
        control_vectors(pairs, shuffled=-1)
    with pytest.raises(ValueError, match=r"0 groups of pairs are too few to swap half"):
        control_vectors(pairs.subset([]), vectors=mean_difference(pairs), shuffled=2)
    with pytest.raises(ValueError, match=r"3 groups of pairs are too few to swap half"):
        control_vectors(some_pairs(3), shuffled=4)
    deeper = some_pairs(layers=(0, 3)).identity
    made = mean_difference(some_pairs(layers=(0, 3), identity=deeper))
    with pytest.raises(ValueError, match=r"layers \[0, 2\].*shuffled=0"):
        control_vectors(some_pairs(identity=deeper), vectors=made)
    elsewhere = mean_difference(pairs)[0].at(layers=0, hook="resid_pre", stream_norm=[1.0])
    with pytest.raises(ValueError, match=r"captured at resid_post.*the vectors are at resid_pre"):
        control_vectors(pairs, vectors=elsewhere)
    with pytest.raises(ts.errors.ModelMismatchError):
        control_vectors(pairs, vectors=mean_difference(some_pairs(identity=make_identity(d_model=17))))


def test_coins_are_fair_one_a_group_and_the_ones_separation_tosses():
    factors = pd.DataFrame({"group": [3, 1, 3, np.nan, np.nan, 1]})
    rng = np.random.default_rng(0)
    tosses = np.array([coin_flips(factors, rng) for _ in range(2000)])
    for one, other in ((0, 2), (1, 5), (3, 4)):
        assert (tosses[:, one] == tosses[:, other]).all()
    assert abs(tosses.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(tosses[:, 0], tosses[:, 1])[0, 1]) < 0.1
    ungrouped = np.array([coin_flips(pd.DataFrame({"x": range(4)}), rng) for _ in range(200)])
    assert len({tuple(row) for row in ungrouped}) == 16


# --- separation's false discovery --------------------------------------------------------------------------


def step_up(p_values):
    """Benjamini & Hochberg by its definition: q is the smallest level at which a test is a discovery."""
    p_values, tests = list(p_values), len(p_values)
    levels = sorted({p * tests / rank for p in p_values for rank in range(1, tests + 1)})
    result = []
    for p in p_values:
        for level in levels:
            passing = [q for rank, q in enumerate(sorted(p_values), 1) if q <= level * rank / tests + 1e-12]
            if passing and p <= max(passing):
                result.append(min(level, 1.0))
                break
    return result


def layered_pairs(*, strength=1.0, seed=0):
    """Seven layers, each with a stronger difference between the sides than the one before."""
    shift = np.linspace(0, strength, 7)[None, :, None]
    noise = np.random.default_rng(seed).normal(size=(2, 24, 7, 5))
    return make_pairs(noise[0] + shift, noise[1])


def test_the_corrected_p_value_is_a_loop_over_the_best_layer_of_each_shuffle():
    """The null itself is the accuracy of pairs with shuffled labels, without shuffles of its own."""
    pairs, shuffles = layered_pairs(), 39
    table = separation(pairs, folds=3, shuffles=shuffles)
    assert list(table)[9:13] == ["p_value", "p_corrected", "null_max", "pairs"]
    rng = np.random.default_rng(0)
    best = []
    for _ in range(shuffles):
        swapped = pairs.swapped(coin_flips(pairs.factors, rng).tolist())
        best.append(max(separation(swapped, folds=3, shuffles=0)["paired_accuracy"]))
    for row in table.to_dict("records"):
        reached = sum(each >= row["paired_accuracy"] for each in best)
        assert row["p_corrected"] == pytest.approx((1 + reached) / (1 + shuffles))
        assert row["p_corrected"] >= row["p_value"]
        assert (row["paired_accuracy"] > row["null_max"]) == (row["p_corrected"] <= 0.05)
    assert table["p_corrected"].nunique() > 2
    assert 0 < (table["p_corrected"] <= 0.05).sum() < (table["p_value"] <= 0.05).sum()
    assert table["null_max"].tolist() == [sorted(best)[-2]] * 7  # one shuffle of 39 may reach it


@pytest.mark.parametrize(("shuffles", "known"), [(18, False), (19, True), (20, True)])
def test_twenty_shuffles_are_enough_for_any_number_of_layers(shuffles, known):
    table = separation(layered_pairs(strength=4.0), folds=3, shuffles=shuffles)
    assert table["p_corrected"].min() == pytest.approx(1 / (shuffles + 1))
    assert table["null_max"].notna().all() == known
    none = separation(layered_pairs(), folds=3, shuffles=0)
    assert none[["p_corrected", "null_max"]].isna().all(axis=None)


# --- effects beside controls -------------------------------------------------------------------------------

MULTIPLIERS = (-2.0, 1.0, 2.0)


def sweep_table(*, vectors=("honesty",), controls=("random 1", "random 2", "shuffled 1"), prompts=40, seed=0):
    """Answers drawn at random, with a push along the vector; as `sweep` gives them."""
    rng = np.random.default_rng(seed)
    conditions = [("none", False, "none", "", "", 0.0, 0.0)]
    named = [(name, False, 1.0) for name in vectors] + [(name, True, 0.3) for name in controls]
    pushes = [0.0]
    for (name, control, size), layers in itertools.product(named, ("3", "5+7")):
        direction = rng.normal()
        for multiplier in MULTIPLIERS:
            conditions.append((name, control, "add", layers, "resid_post", multiplier, abs(multiplier) / 10))
            pushes.append(size * direction * multiplier)
        conditions.append((name, control, "project_out", layers, "resid_post", np.nan, np.nan))
        pushes.append(size * rng.normal())
    columns = ["vector", "control", "operation", "layers", "hook", "multiplier", "dose"]
    before = rng.normal(size=prompts)
    parts = []
    for condition, push in zip(conditions, pushes, strict=True):
        noise = 0 if condition[0] == "none" else rng.normal(size=prompts)
        part = pd.DataFrame({"prompt_id": range(prompts)}).assign(
            **dict(zip(columns, condition, strict=True))
        )
        part["kind"] = np.where(np.arange(prompts) % 4 < 2, "x", "y")
        part["answer"] = np.arange(prompts) % 2
        part["logit_difference"] = before + push + noise
        part["choice"] = pd.array((part["logit_difference"] <= 0).astype(int), dtype="Int64")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def effect_by_hand(table, row, value, kind=None):
    """A condition's effect, prompt by prompt."""
    rows = table if kind is None else table[table["kind"] == kind]
    unsteered = rows[rows["vector"] == "none"].set_index("prompt_id")
    same = [
        table[name].isna() if row[name] != row[name] else table[name] == row[name]
        for name in ("vector", "operation", "layers", "multiplier")
    ]
    steered = rows[np.logical_and.reduce(same)[rows.index]].set_index("prompt_id")
    now, then = (part.loc[unsteered.index] for part in (steered, unsteered))
    if value == "shift":
        return (now["logit_difference"] - then["logit_difference"]).mean()
    if value == "flipped":
        return (now["choice"] != then["choice"]).mean()
    if value.endswith("accuracy"):
        return (now["choice"] == now["answer"]).mean() - (then["choice"] == then["answer"]).mean()
    z = [
        {
            k: z_of((part["choice"][part["answer"] == k] == 0).sum(), (part["answer"] == k).sum())
            for k in (0, 1)
        }
        for part in (now, then)
    ]
    if value == "d_prime":
        return (z[0][0] - z[0][1]) - (z[1][0] - z[1][1])
    return -(z[0][0] + z[0][1]) / 2 + (z[1][0] + z[1][1]) / 2


def test_an_improvement_is_not_beaten_by_controls_that_only_do_harm():
    """Any push lowers accuracy: farther down is not as good as up."""
    table = sweep_table()
    right = table["answer"].to_numpy(int)
    choice = right.copy()
    rank = (
        table.groupby([name for name in CONDITION if name != "control_of"], dropna=False)
        .cumcount()
        .to_numpy()
    )
    wrong = {"none": 10, "honesty": 5}
    harm = table["vector"].map(lambda name: wrong.get(name, 18)).to_numpy()
    choice[rank < harm] = 1 - right[rank < harm]
    result = against_controls(table.assign(choice=pd.array(choice, dtype="Int64")), value="accuracy")
    np.testing.assert_allclose(result["effect"], 5 / 40)
    np.testing.assert_allclose(result["null_low"], -8 / 40)
    np.testing.assert_allclose(result["p_value"], 1 / 4)


def z_of(count, n):
    return float(torch.special.ndtri(torch.tensor((count + 0.5) / (n + 1), dtype=torch.float64)))


VALUES = ("shift", "flipped", "accuracy", "readable_accuracy", "d_prime", "criterion")


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("by", [(), "kind"])
def test_each_effect_its_null_p_and_q_are_those_of_a_plain_loop(value, by):
    table = sweep_table()
    result = against_controls(table, by=by, value=value)
    kinds = ["x", "y"] if by else [None]
    assert len(result) == 2 * 4 * len(kinds)
    assert set(result["vector"]) == {"honesty"}
    assert set(result["value_name"]) == {value}
    assert not result["control"].any()
    p_values = {kind: [] for kind in kinds}
    operations = {kind: [] for kind in kinds}
    for row in result.to_dict("records"):
        kind = row["kind"] if by else None
        effect = effect_by_hand(table, row, value, kind)
        assert row["effect"] == pytest.approx(effect, abs=1e-9)
        assert row["n"] == 40 / len(kinds)
        signs = [np.nan] if np.isnan(row["multiplier"]) else [-row["multiplier"], row["multiplier"]]
        by_control = {}
        for control in ("random 1", "random 2", "shuffled 1"):
            by_control[control] = [
                effect_by_hand(table, row | {"vector": control, "multiplier": multiplier}, value, kind)
                for multiplier in signs
                if multiplier != -1  # there is no such condition
            ]
        every = [each for conditions in by_control.values() for each in conditions]
        middle = 0
        if value in ("accuracy", "readable_accuracy", "d_prime"):  # any push lowers these
            middle = (
                sum(sum(conditions) / len(conditions) for conditions in by_control.values()) + effect
            ) / 4
        reached = sum(
            any(abs(each - middle) > abs(effect - middle) - 1e-9 for each in conditions)
            for conditions in by_control.values()
        )
        assert row["controls"] == 3
        assert (row["null_low"], row["null_high"]) == pytest.approx((min(every), max(every)), abs=1e-9)
        assert row["null_mean"] == pytest.approx(np.mean(every), abs=1e-9)
        assert row["p_value"] == pytest.approx((reached + 1) / 4)
        p_values[kind].append(row["p_value"])
        operations[kind].append((row["operation"], row["q_value"]))
    for kind in kinds:
        for operation in ("add", "project_out"):
            own = [name == operation for name, _ in operations[kind]]
            p = np.array(p_values[kind])[own]
            np.testing.assert_allclose(np.array([q for _, q in operations[kind]])[own], step_up(p))


def test_intervals_are_those_of_the_tables_the_effects_come_from():
    table = sweep_table()
    swept, detected = effectiveness(table), signal_detection(table)
    for source, value, name in (
        (swept, "shift", "shift"),
        (detected, "d_prime", "d_prime_change"),
        (detected, "criterion", "criterion_change"),
    ):
        own = source[(source["vector"] == "honesty")]
        result = against_controls(table, value=value)
        for end in ("", "_low", "_high"):
            np.testing.assert_array_equal(result[f"effect{end}"], own[f"{name}{end}"])
    for value in ("flipped", "accuracy"):
        result = against_controls(table, value=value)
        assert (result["effect_low"] <= result["effect"]).all()
        assert (result["effect"] <= result["effect_high"]).all()
        assert (result["effect_low"] < result["effect_high"]).all()


def test_the_smallest_p_is_one_over_controls_and_one_and_so_is_the_smallest_q():
    table = sweep_table(controls=[f"random {k}" for k in range(1, 20)])
    steered = table["vector"] == "honesty"
    table.loc[steered, "logit_difference"] += 1000 * table.loc[steered, "multiplier"].fillna(1)
    result = against_controls(table)
    assert set(result["p_value"]) == set(result["q_value"]) == {1 / 20}
    assert set(result["controls"]) == {19}


def test_a_control_that_ties_has_reached_the_effect_whatever_rounding_makes_of_it():
    table = sweep_table(prompts=12)
    twin = table[table["vector"] == "honesty"].assign(vector="random 1", control=True)
    twin["logit_difference"] += 1e-13
    table = pd.concat([table[table["vector"].isin(["none", "honesty"])], twin])
    for value in VALUES:
        assert (against_controls(table, value=value)["p_value"].dropna() == 1).all()


def test_a_vector_that_is_one_more_random_direction_is_called_no_more_often_than_the_p_value_says():
    """Each layer is a trial. Counted as two, a control's conditions would give p = 1/7 in a quarter."""
    rng = np.random.default_rng(0)
    names = ("honesty", "random 1", "random 2", "random 3")
    conditions = pd.DataFrame(
        [(name, str(layer), m) for name in names for layer in range(400) for m in (-2.0, 2.0)],
        columns=["vector", "layers", "multiplier"],
    )
    push = {key: rng.normal() for key in conditions.groupby(["vector", "layers"]).groups}
    along = np.array([push[key] for key in zip(conditions["vector"], conditions["layers"], strict=True)])
    conditions["logit_difference"] = along * conditions["multiplier"] + 0.01 * rng.normal(
        size=len(conditions)
    )
    conditions = conditions.assign(
        operation="add", hook="resid_post", control=conditions["vector"].str.startswith("random")
    )
    unsteered = {"vector": "none", "layers": "", "multiplier": 0.0, "logit_difference": 0.0}
    unsteered |= {"operation": "none", "hook": "", "control": False}
    table = pd.concat([pd.DataFrame([unsteered]), conditions]).assign(
        prompt_id=0, dose=0.1, answer=0, choice=0
    )
    result = against_controls(table)
    called = result.loc[result["multiplier"] == 2, "p_value"]
    assert len(called) == 400
    for level in sorted(set(called)):
        assert (called <= level).mean() < level + 0.06
        assert (called <= level).mean() > level - 0.12


def test_each_vector_is_beside_its_own_controls_and_those_of_none_in_particular():
    names = ("random 1 (honesty)", "random 1 (lda)", "shuffled 1")
    table = sweep_table(vectors=("honesty", "lda"), controls=names)
    table.loc[table["vector"] == "random 1 (lda)", "logit_difference"] += 50
    owners = {"random 1 (honesty)": "lda", "random 1 (lda)": "honesty"}  # the column decides, not the name
    result = against_controls(table.assign(control_of=table["vector"].map(owners).fillna("")))
    assert set(result["controls"]) == {2}
    result = result.set_index("vector")
    assert (result.loc["lda", "null_high"] < 20).all()
    assert (result.loc["honesty", "null_high"] > 20).all()
    older = against_controls(table)
    assert set(older["controls"]) == {3}
    assert (older["null_high"] > 20).all()


def test_controls_elsewhere_do_not_count_and_what_is_missing_is_nan():
    table = sweep_table()
    at_three = table[~table["control"] | (table["layers"] == "3")]
    result = against_controls(at_three).set_index("layers")
    assert (result.loc["3", "controls"] == 3).all()
    assert (result.loc["5+7", "controls"] == 0).all()
    tested = ["null_low", "null_high", "null_mean", "p_value", "q_value"]
    assert result.loc["5+7", tested].isna().all(axis=None)
    assert result.loc["5+7", "effect"].notna().all()
    assert result.loc["3", tested].notna().all(axis=None)
    moved = table.assign(hook=table["hook"].where(~table["control"], "resid_pre"))
    assert (against_controls(moved)["controls"] == 0).all()


def test_effects_that_are_nan_have_no_p_and_controls_that_are_nan_do_not_count():
    table = sweep_table()
    blank = (table["vector"] == "honesty") & (table["layers"] == "3")
    silent = (table["vector"] == "random 1") & (table["layers"] == "5+7")
    table.loc[blank | silent, "logit_difference"] = np.nan
    result = against_controls(table).set_index("layers")
    assert result.loc["3", ["effect", "p_value", "q_value"]].isna().all(axis=None)
    assert result.loc["3", "null_low"].notna().all()
    assert (result.loc["5+7", "controls"] == 2).all()
    assert result.loc["5+7", "p_value"].isin([1 / 3, 2 / 3, 1]).all()


def test_a_table_without_controls_or_anything_to_compare_is_refused_with_what_to_do():
    table = sweep_table()
    with pytest.raises(ValueError, match=r"no controls.*control_vectors"):
        against_controls(table[~table["control"]])
    with pytest.raises(ValueError, match="no unsteered condition"):
        against_controls(table[table["vector"] != "none"])
    with pytest.raises(ValueError, match="all steered conditions are controls"):
        against_controls(table[table["vector"] != "honesty"])
    with pytest.raises(ValueError, match="'mass': expected one of shift, flipped"):
        against_controls(table, value="mass")
    with pytest.raises(ValueError, match=r"shift is NaN in every steered condition.*flipped"):
        against_controls(table.assign(logit_difference=np.nan))
    with pytest.raises(ValueError, match="lacks the columns kinds"):
        against_controls(table, by="kinds")
    with pytest.raises(ValueError, match="names of results"):
        against_controls(table.assign(effect="x"), by="effect")
    with pytest.raises(ValueError, match="lacks the columns control"):
        against_controls(table.drop(columns="control"))


# --- from pairs to the table -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def controlled():
    """A tiny model, its vectors and controls, and a sweep with them."""
    model = make_model(word_tokenizer())
    sides = ["a b good", "c d good", "e f yes", "g h yes"], ["a b bad", "c d bad", "e f no", "g h no"]
    activations = ts.capture_pairs(model, ts.contrast_pairs(*sides), progress=False)
    vectors = mean_difference(activations).scaled_to(dose=0.4)
    controls = control_vectors(activations, vectors=vectors, random=3, shuffled=2, seed=1)
    asked = ts.ChoiceQuestions(
        ["a b c :", "d :", "e f g h :", "i j :"], [(" yes", " no")] * 4, answers=[0, 1, 0, 1]
    )
    table = ts.sweep(
        model, vectors, asked, multipliers=[-1.0, 1.0, 2.0], operations=("add", "project_out"),
        layers=[0, 2, (0, 1)], controls=controls, control_layers="all", progress=False,
    )  # fmt: skip
    return model, vectors, controls, table


def test_a_sweep_takes_the_controls_by_name_and_their_doses_are_the_vectors(controlled):
    model, vectors, controls, table = controlled
    assert set(controls) == set(table.loc[table["control"], "vector"])
    assert vectors.values.shape == (3, D_MODEL)
    assert identify(model) == controls["shuffled 1"].identity
    doses = table[table["operation"] == "add"].groupby(["layers", "multiplier"])["dose"].agg(["min", "max"])
    np.testing.assert_allclose(doses["min"], doses["max"], rtol=1e-5)
    shuffled = ts.Add(controls["shuffled 2"][2], 2.0)
    direct = ts.choice_logits(model, ["a b c :", "d :", "e f g h :", "i j :"], (" yes", " no"), shuffled)
    condition = (table["vector"] == "shuffled 2") & (table["layers"] == "2") & (table["multiplier"] == 2)
    np.testing.assert_allclose(
        table.loc[condition, "logit_difference"], direct["logit_difference"], rtol=1e-4, atol=1e-5
    )


def test_a_sweeps_effects_stand_beside_those_of_its_controls_and_are_drawn_so(controlled):
    *_, table = controlled
    result = ts.against_controls(table)
    assert len(result) == 3 * 4
    assert (result["controls"] == 6).all()
    assert result["p_value"].between(1 / 7, 1).all()
    summary = effectiveness(table)
    reach = summary[summary["control"] & (summary["layers"] == "2") & (summary["multiplier"].abs() == 1)]
    row = result[(result["layers"] == "2") & (result["multiplier"] == -1)].iloc[0]
    assert (row["null_low"], row["null_high"]) == (reach["shift"].min(), reach["shift"].max())
    figure = ts.plots.effectiveness(summary, value="shift")
    band = next(trace for trace in figure.data if trace.name == "controls, ±1")
    assert {row["null_low"], row["null_high"]} <= set(band.y)


def test_controls_may_not_be_named_like_a_vector_or_the_unsteered_condition(controlled):
    model, vectors, controls, _ = controlled
    asked = ts.ChoiceQuestions(["a b c :"], [(" yes", " no")])
    for name in ("none", "made"):
        with pytest.raises(ValueError, match=f"controls named .*{name}.*has that name"):
            ts.sweep(
                model, {"made": vectors}, asked, multipliers=[1.0], controls={name: controls["random 1"]},
                progress=False,
            )  # fmt: skip
