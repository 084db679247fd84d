"""Control vectors, and effects compared with those of controls."""

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

from .conftest import assert_raises, make_identity, make_pairs
from .sweep_tables import condition, table_of, unsteered
from .tiny_model import make_model, word_tokenizer

COUNTS = {"random": 3, "shuffled": 4, "orthogonal": 2}


def some_pairs(pairs=12, layers=(0, 2), width=16, *, factors=None, seed=0, identity=None):
    rng = np.random.default_rng(seed)
    shift = rng.normal(size=(1, len(layers), width))
    positive, negative = rng.normal(size=(2, pairs, len(layers), width))
    return make_pairs(positive + shift, negative, layers=layers, factors=factors, identity=identity)


def lengths(vectors):
    return np.linalg.norm(vectors.values.double().numpy(), axis=-1)


# --- control vectors ---------------------------------------------------------------------------------------


def test_controls_have_names_and_per_layer_the_length_of_the_vectors():
    pairs = some_pairs()
    scaled = mean_difference(pairs).scaled_to(dose=0.3)
    for estimator, vectors in (
        (mean_difference, None),
        (logistic_direction, None),
        (mean_difference, scaled),
    ):
        studied = estimator(pairs) if vectors is None else vectors
        result = control_vectors(pairs, estimator=estimator, vectors=vectors, **COUNTS)
        assert list(result) == [f"{name} {k + 1}" for name, count in COUNTS.items() for k in range(count)]
        for each in result.values():
            np.testing.assert_allclose(lengths(each), lengths(studied), rtol=1e-6)
            for name in ("layers", "hook", "identity"):
                assert getattr(each, name) == getattr(studied, name)
            assert torch.equal(each.stream_norm, studied.stream_norm)
            assert each.info["length_of"] == studied.method
        for one, other in itertools.combinations(result.values(), 2):
            assert (one.cosine_similarity(other).abs() < 0.99).all()
    assert len(control_vectors(pairs)) == 11
    assert control_vectors(pairs, random=0, shuffled=0, orthogonal=0) == {}


def test_orthogonal_vectors_and_random_ones_of_layers_that_add_up():
    """Random directions are the same at all layers: drawn per layer, their sum would be half as long."""
    pairs = some_pairs(layers=(0, 1, 2, 3), width=64)
    studied = mean_difference(pairs)
    result = control_vectors(pairs, random=20, shuffled=0, orthogonal=20)
    for name, each in result.items():
        total, length = each.values.sum(0).norm(), each.norms().sum()
        assert total > (0.9999 if name.startswith("random") else 0.9) * length, name
        if name.startswith("orthogonal"):
            products = (each.values.double() * studied.values.double()).sum(-1)
            assert (products.abs() < 1e-5 * studied.norms() ** 2).all()
            assert each.method == "orthogonal_direction"
    assert (result["orthogonal 1"].cosine_similarity(result["orthogonal 2"]).abs() < 0.6).all()


def test_a_shuffled_vector_is_the_estimate_of_pairs_with_half_of_the_groups_swapped():
    """Against a search of all swaps of whole groups: one gives the vector, up to its length."""
    groups = np.array([0, 0, 1, 2, 2, 3])
    pairs = some_pairs(6, factors=pd.DataFrame({"group": groups, "letter": list("ABABAB")}))
    positive, negative = (side.double().numpy() for side in pairs.sides())
    true, swaps = (positive - negative).mean(0), set()
    for each in control_vectors(pairs, random=0, shuffled=7, orthogonal=0, seed=3).values():
        matches = {}
        for coins in itertools.product([False, True], repeat=4):
            sign = np.where(np.array(coins)[groups], -1, 1)[:, None, None]
            mean = (sign * (positive - negative)).mean(0)
            mean *= lengths(each)[:, None] / np.linalg.norm(mean, axis=-1, keepdims=True)
            if np.allclose(mean, each.values.numpy(), rtol=1e-4, atol=1e-5):
                matches[coins] = mean
        ((coins, mean),) = matches.items()
        assert sum(coins) == 2
        assert each.info["exchanged_pairs"] == np.array(coins)[groups].sum()
        assert each.method == "shuffled mean_difference"
        swaps.add(coins)
        cosine = (mean * true).sum(-1) / np.linalg.norm(mean, axis=-1) / np.linalg.norm(true, axis=-1)
        np.testing.assert_allclose(each.info["cosine_with_vector"], cosine, atol=1e-5)
    assert len(swaps) > 2


def test_the_signal_cancels_in_a_shuffled_vector():
    """A coin flip per group would leave some of it, and scaling would restore its length."""
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


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("pooled", "does not see which side is which"),
        ("differences", "does not see which side is which"),
        ("centred_differences", "not a control: the mean difference"),
    ],
)
def test_principal_components_have_no_shuffled_controls(of, message):
    """Swapped pairs have the same component or, of centred differences, the removed mean: the behaviour."""
    noise, shift = np.random.default_rng(0).standard_normal((2, 40, 1, 8)), np.array([9.0, *np.zeros(7)])
    pairs = make_pairs(noise[0] + shift, noise[1])
    estimator = functools.partial(ts.principal_component, of=of)
    assert_raises(rf"{message}.*shuffled=0", control_vectors, pairs, estimator=estimator, shuffled=1)
    assert len(control_vectors(pairs, estimator=estimator, shuffled=0)) == 6
    if of == "centred_differences":
        swapped = pairs.swapped([row % 2 == 0 for row in range(40)])
        assert abs(float(estimator(pairs)[0].values[0])) < 0.5
        assert abs(float(estimator(swapped)[0].values[0])) > 0.99


def test_a_random_direction_replaces_shuffled_vectors_of_equal_differences():
    pairs = make_pairs(np.ones((6, 1, 4)), np.zeros((6, 1, 4)))
    one, two = control_vectors(pairs, random=0, shuffled=2, orthogonal=0).values()
    assert lengths(one) == pytest.approx(2)
    assert abs(float(one.cosine_similarity(two))) < 0.999


def test_a_control_does_not_depend_on_the_number_of_others():
    pairs, one_each = some_pairs(), dict.fromkeys(COUNTS, 1)
    many = control_vectors(pairs, random=6, shuffled=3, orthogonal=2, seed=5)
    other = control_vectors(pairs, **one_each, seed=6)
    for name, each in control_vectors(pairs, **one_each, seed=5).items():
        assert torch.equal(each.values, many[name].values)
        assert each.info["seed"] == many[name].info["seed"]
        assert not torch.equal(each.values, other[name].values)
    assert len({each.info["seed"] for each in many.values()}) == 11


def test_inputs_are_unchanged_and_controls_survive_a_file(tmp_path):
    pairs = some_pairs()
    studied = mean_difference(pairs)
    before = [side.clone() for side in (*pairs.sides(), studied.values)]
    control = control_vectors(pairs, vectors=studied)["shuffled 1"]
    assert all(torch.equal(*each) for each in zip(before, (*pairs.sides(), studied.values), strict=True))
    control.save(tmp_path / "control.safetensors")
    loaded = SteeringVectors.load(tmp_path / "control.safetensors")
    assert torch.equal(loaded.values, control.values)
    assert loaded.info["seed"] == control.info["seed"]


def test_controls_of_some_layers_and_of_vectors_with_positions():
    pairs = some_pairs(layers=(0, 2, 3))
    some = mean_difference(pairs).weighted({3: 2.0, 0: 0.5})
    values = torch.randn(2, 3, 16)
    several = SteeringVectors(values, (0, 2), "resid_post", "made", torch.ones(2), pairs.identity)
    for studied, options in ((some, {}), (several, {"shuffled": 0})):
        result = control_vectors(pairs, vectors=studied, **options)
        assert len(result) == (11 if studied is some else 6)
        for each in result.values():
            assert each.layers == studied.layers
            np.testing.assert_allclose(lengths(each), lengths(studied), rtol=1e-6)
        products = (result["orthogonal 1"].values.double() * studied.values.double()).sum(-1)
        assert products.abs().max() < 1e-4


PAIRS = some_pairs()
DEEPER = some_pairs(layers=(0, 3)).identity
OTHER_LAYERS = mean_difference(some_pairs(layers=(0, 3), identity=DEEPER))
OTHER_WIDTH = mean_difference(some_pairs(identity=make_identity(d_model=17)))
STUDIED = mean_difference(PAIRS)
OTHER_HOOK = STUDIED[0].at(layers=0, hook="resid_pre", stream_norm=[1.0])
BY_POSITION = SteeringVectors(torch.ones(2, 3, 16), (0, 2), "resid_post", "", torch.ones(2), PAIRS.identity)


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (PAIRS, {"shuffled": -1}, r"'shuffled': -1.*0 or more"),
        (PAIRS.subset([]), {"vectors": STUDIED, "shuffled": 2}, "0 groups of pairs are too few to swap half"),
        (some_pairs(3), {"shuffled": 4}, "3 groups of pairs are too few to swap half"),
        (some_pairs(identity=DEEPER), {"vectors": OTHER_LAYERS}, r"layers \[0, 2\].*shuffled=0"),
        (PAIRS, {"vectors": OTHER_HOOK}, "captured at resid_post.*the vectors are at resid_pre"),
        (PAIRS, {"vectors": BY_POSITION}, "one vector per layer.*shuffled=0"),
        (PAIRS, {"vectors": OTHER_WIDTH}, "d_model: 17 against 16"),
        (PAIRS, {"vectors": STUDIED.weighted({2: 1.0, 0: 0.0})}, r"length zero .*of layers \[0\]"),
        (some_pairs(width=1), {"shuffled": 0}, "nothing is orthogonal to a vector of one number"),
    ],
)
def test_controls_that_do_not_exist_are_errors(pairs, options, message):
    assert_raises(message, control_vectors, pairs, **options)


def test_coin_flips_are_fair_and_one_per_group():
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
    ordered, tests = sorted(p_values), len(p_values)
    levels = sorted({p * tests / rank for p in ordered for rank in range(1, tests + 1)})
    result = {}
    for level in levels:
        passing = [p for rank, p in enumerate(ordered, 1) if p <= level * rank / tests + 1e-12]
        for p in ordered[: ordered.index(passing[-1]) + 1] if passing else []:
            result.setdefault(p, min(level, 1.0))
    return [result[p] for p in p_values]


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


# --- effects and controls ----------------------------------------------------------------------------------

MULTIPLIERS = (-2.0, 1.0, 2.0)


def sweep_table(*, vectors=("honesty",), controls=("random 1", "random 2", "shuffled 1"), prompts=40, seed=0):
    """Answers drawn at random, with a push along the vector."""
    rng = np.random.default_rng(seed)
    before = rng.normal(size=prompts)
    columns = {"answers": np.arange(prompts) % 2, "kind": np.where(np.arange(prompts) % 4 < 2, "x", "y")}
    parts = [unsteered(logits=before, **columns)]
    sizes = dict.fromkeys(vectors, 1.0) | dict.fromkeys(controls, 0.3)
    for (vector, size), layers in itertools.product(sizes.items(), ("3", "5+7")):
        direction, projection = size * rng.normal(size=2)
        pushes = {multiplier: direction * multiplier for multiplier in MULTIPLIERS} | {np.nan: projection}
        for multiplier, push in pushes.items():
            where = {"operation": "project_out" if np.isnan(multiplier) else "add", "multiplier": multiplier}
            logits = before + push + rng.normal(size=prompts)
            parts.append(condition(logits=logits, vector=vector, layers=layers, **where, **columns))
    return table_of(*parts)


def effect_by_hand(table, row, value, kind=None):
    """A condition's effect, prompt by prompt."""
    rows = table if kind is None else table[table["kind"] == kind]
    multiplier = row["multiplier"]
    same = rows["multiplier"].isna() if np.isnan(multiplier) else rows["multiplier"] == multiplier
    for name in ("vector", "operation", "layers"):
        same &= rows[name] == row[name]
    then = rows[rows["vector"] == "none"].set_index("prompt_id")
    now = rows[same].set_index("prompt_id").loc[then.index]
    if value == "bias":
        change = now["logit_difference"] - then["logit_difference"]
        return np.mean([change[then["answer"] == answer].mean() for answer in (0, 1)])
    if value.startswith("shift"):
        change = now["logit_difference"] - then["logit_difference"]
        return (change * (1 - 2 * then["answer"] * (value == "shift_toward_answer"))).mean()
    if value == "flipped":
        return (now["choice"] != then["choice"]).mean()
    if value.endswith("accuracy"):
        return (now["choice"] == now["answer"]).mean() - (then["choice"] == then["answer"]).mean()

    def detection(part):
        hits, false_alarms = (
            z_of((part["choice"][part["answer"] == answer] == 0).sum(), (part["answer"] == answer).sum())
            for answer in (0, 1)
        )
        return hits - false_alarms if value == "d_prime" else -(hits + false_alarms) / 2

    return detection(now) - detection(then)


def test_an_improvement_is_not_beaten_by_controls_that_only_do_harm():
    """Any push lowers accuracy: farther down is not as good as up."""
    answers = np.arange(40) % 2
    errors = {"none": 10, "honesty": 5, "random 1": 18, "random 2": 18, "random 3": 18}
    conditions = [
        condition(np.where(np.arange(40) < count, 1 - answers, answers), answers, vector=vector)
        for vector, count in errors.items()
    ]
    (row,) = against_controls(table_of(*conditions), value="accuracy").to_dict("records")
    numbers = [row["effect"], row["null_low"], row["p_value"]]
    assert numbers == pytest.approx([5 / 40, -8 / 40, 1 / 4])


def test_the_bias_weighs_both_right_answers_equally():
    answers = np.repeat([0, 1], [30, 10])
    moved = {"none": 0.0, "honesty": np.where(answers == 0, 0.2, 1.0), "random 1": 0.1}
    conditions = [
        condition(answers=answers, logits=np.sin(np.arange(40)) + change, vector=vector)
        for vector, change in moved.items()
    ]
    effects = {
        value: against_controls(table_of(*conditions), value=value)["effect"].iloc[0]
        for value in ("bias", "shift")
    }
    assert effects == pytest.approx({"bias": 0.6, "shift": 0.4})


def z_of(count, n):
    return float(torch.special.ndtri(torch.tensor((count + 0.5) / (n + 1), dtype=torch.float64)))


VALUES = (
    "shift",
    "bias",
    "shift_toward_answer",
    "flipped",
    "accuracy",
    "readable_accuracy",
    "d_prime",
    "criterion",
)


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
    for row in result.to_dict("records"):
        kind = row["kind"] if by else None
        effect = effect_by_hand(table, row, value, kind)
        assert row["effect"] == pytest.approx(effect, abs=1e-9)
        assert row["n"] == 40 / len(kinds)
        # multipliers of the same size; there is no condition with -1
        sizes = {row["multiplier"], -row["multiplier"]} & set(MULTIPLIERS) or {np.nan}
        by_control = [
            [effect_by_hand(table, row | {"vector": name, "multiplier": each}, value, kind) for each in sizes]
            for name in ("random 1", "random 2", "shuffled 1")
        ]
        every, middle = list(itertools.chain.from_iterable(by_control)), 0
        if value in (
            "shift_toward_answer",
            "accuracy",
            "readable_accuracy",
            "d_prime",
        ):  # any push lowers these
            middle = (sum(map(np.mean, by_control)) + effect) / 4
        distances = [np.abs(np.array(effects) - middle).max() for effects in by_control]
        reached = sum(each > abs(effect - middle) - 1e-9 for each in distances)
        assert row["controls"] == 3
        assert (row["null_low"], row["null_high"]) == pytest.approx((min(every), max(every)), abs=1e-9)
        assert row["null_mean"] == pytest.approx(np.mean(every), abs=1e-9)
        assert row["p_value"] == pytest.approx((reached + 1) / 4)
    for _, tests in result.groupby(["operation", *(["kind"] if by else [])]):
        np.testing.assert_allclose(tests["q_value"], step_up(tests["p_value"]))


def test_intervals_are_those_of_the_tables_the_effects_come_from():
    table = sweep_table()
    detected = signal_detection(table)
    for source, value, name in (
        (effectiveness(table), "shift", "shift"),
        (detected, "d_prime", "d_prime_change"),
        (detected, "criterion", "criterion_change"),
    ):
        own = source[source["vector"] == "honesty"]
        result = against_controls(table, value=value)
        for end in ("", "_low", "_high"):
            np.testing.assert_array_equal(result[f"effect{end}"], own[f"{name}{end}"])
    for value in ("flipped", "accuracy"):
        result = against_controls(table, value=value)
        low, effect, high = (result[f"effect{end}"] for end in ("_low", "", "_high"))
        assert ((low <= effect) & (effect <= high) & (low < high)).all()


def test_a_tied_control_has_reached_the_effect_in_spite_of_rounding():
    table = sweep_table(prompts=12)
    twin = table[table["vector"] == "honesty"].assign(vector="random 1", control=True)
    twin["logit_difference"] += 1e-13
    table = pd.concat([table[table["vector"].isin(["none", "honesty"])], twin])
    for value in VALUES:
        assert (against_controls(table, value=value)["p_value"].dropna() == 1).all()


def test_a_random_vector_is_called_as_often_as_the_p_value_says():
    """Each layer is a trial. Counted as two, a control's conditions would give p = 1/7 in a quarter."""
    rng = np.random.default_rng(0)
    vectors, layers = ["honesty", "random 1", "random 2", "random 3"], [str(layer) for layer in range(400)]
    conditions = pd.MultiIndex.from_product(
        [vectors, layers, [-2.0, 2.0]], names=["vector", "layers", "multiplier"]
    ).to_frame(index=False)
    labels = {"operation": "add", "hook": "resid_post", "control_of": "", "prompt_id": 0, "dose": 0.1}
    labels |= {"answer": 0, "choice": 0}
    push = rng.normal(size=len(conditions) // 2).repeat(2)  # the same for both multipliers
    conditions = conditions.assign(
        logit_difference=push * conditions["multiplier"] + 0.01 * rng.normal(size=len(conditions)),
        control=conditions["vector"] != "honesty",
        **labels,
    )
    before = unsteered(logits=[0.0], answers=[0])[list(conditions)]
    result = against_controls(table_of(before, conditions))
    called = result.loc[result["multiplier"] == 2, "p_value"]
    assert len(called) == 400
    for level in sorted(set(called)):
        assert level - 0.12 < (called <= level).mean() < level + 0.06


def test_each_vector_is_compared_with_its_own_controls_and_shared_ones():
    names = ("random 1 (honesty)", "random 1 (lda)", "shuffled 1")
    table = sweep_table(vectors=("honesty", "lda"), controls=names)
    table.loc[table["vector"] == "random 1 (lda)", "logit_difference"] += 50
    owners = {"random 1 (honesty)": "lda", "random 1 (lda)": "honesty"}  # the column decides, not the name
    result = against_controls(table.assign(control_of=table["vector"].map(owners).fillna("")))
    assert set(result["controls"]) == {2}
    result = result.set_index("vector")
    assert (result.loc["lda", "null_high"] < 20).all()
    assert (result.loc["honesty", "null_high"] > 20).all()
    older = against_controls(table.drop(columns="control_of"))
    assert set(older["controls"]) == {3}
    assert (older["null_high"] > 20).all()


def test_controls_at_other_layers_do_not_count():
    table = sweep_table()
    at_three = table[~table["control"] | (table["layers"] == "3")]
    result = against_controls(at_three).set_index("layers")
    tested = ["null_low", "null_high", "null_mean", "p_value", "q_value"]
    for layers, count in (("3", 3), ("5+7", 0)):
        assert (result.loc[layers, "controls"] == count).all()
        assert (result.loc[layers, tested].notna() == bool(count)).all(axis=None)
    assert result["effect"].notna().all()
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


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda table: table[~table["control"]], {}, "no controls.*control_vectors"),
        (lambda table: table[table["vector"] != "none"], {}, "no unsteered condition"),
        (lambda table: table[table["vector"] != "honesty"], {}, "all steered conditions are controls"),
        (lambda table: table, {"value": "mass"}, "'mass': expected one of shift, bias"),
        (lambda table: table.assign(logit_difference=np.nan), {}, "shift is NaN in every steered.*flipped"),
        (lambda table: table, {"by": "kinds"}, "lacks the columns kinds"),
        (lambda table: table.assign(effect="x"), {"by": "effect"}, "names of results"),
        (lambda table: table.drop(columns="control"), {}, "lacks the columns control"),
    ],
)
def test_tables_without_anything_to_compare_are_rejected(change, options, message):
    assert_raises(message, against_controls, change(sweep_table()), **options)


# --- from pairs to the table -------------------------------------------------------------------------------


def test_effects_of_a_sweep_and_its_controls_in_table_and_figure():
    model = make_model(word_tokenizer())
    sides = ["a b good", "c d good", "e f yes", "g h yes"], ["a b bad", "c d bad", "e f no", "g h no"]
    activations = ts.capture_pairs(model, ts.contrast_pairs(*sides), progress=False)
    vectors = mean_difference(activations).scaled_to(dose=0.4)
    controls = control_vectors(activations, vectors=vectors, random=3, shuffled=2, seed=1)
    prompts = ["a b c :", "d :", "e f g h :", "i j :"]
    questions = ts.ChoiceQuestions(prompts, [(" yes", " no")] * 4, answers=[0, 1, 0, 1])
    table = ts.sweep(
        model, vectors, questions, multipliers=[-1.0, 1.0, 2.0], operations=("add", "project_out"),
        layers=[0, 2, (0, 1)], controls=controls, control_layers="all", progress=False,
    )  # fmt: skip
    assert set(table.loc[table["control"], "vector"]) == set(controls)
    doses = table[table["operation"] == "add"].groupby(["layers", "multiplier"])["dose"].agg(["min", "max"])
    np.testing.assert_allclose(doses["min"], doses["max"], rtol=1e-5)
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
