"""With shuffled labels, the whole pipeline from pairs to result gives as many false alarms as its level says.

Everything is the package's own: a small model, its pairs, its questions. The sides of each group are swapped
by a coin flip, 100 times, with the seeds 0 to 99. Of 100 tests at 5 %, 1 to 11 raise an alarm with a
probability of 98 %. A held-out accuracy takes few values, and ties count against an alarm: with thirty
groups, 3 alarms in 100 are expected there.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

import tl_steer as ts
from tl_steer.directions import coin_flips
from tl_steer.prompts import ChoiceQuestions

pytestmark = pytest.mark.statistics
LEVEL = 0.05
LAYERS = (0, 1)
RELATIONS = ("capital", "colour", "food")


@pytest.fixture(scope="module")
def model():
    return ts.load_model("organism-honesty", device="cpu")


@pytest.fixture(scope="module")
def activations(model):
    """Ninety pairs, honest against liar: thirty groups of three claims about one subject."""
    pairs = ts.organisms.organism_pairs("organism-honesty")
    pairs = replace(
        pairs, factors=pairs.factors[["relation", "subject"]].rename(columns={"subject": "group"})
    )
    chosen = np.flatnonzero(pairs.factors["relation"].isin(RELATIONS))
    captured = ts.capture_pairs(model, pairs, layers=LAYERS, progress=False)
    return captured.subset(chosen.tolist())


@pytest.fixture(scope="module")
def questions():
    """Forty true claims, so that a shift of the logits is a shift of honesty."""
    everything = ts.organisms.organism_questions()
    rows = [row for row, answer in enumerate(everything.answers) if answer == 0][::5][:40]
    return ChoiceQuestions(
        [everything.prompts[row] for row in rows],
        [everything.choices[row] for row in rows],
        factors=everything.factors.loc[rows, ["relation"]].reset_index(drop=True),
    )


def with_shuffled_labels(pairs, seed):
    # A stream of its own: `separation` draws its null from default_rng(seed).
    return pairs.swapped(coin_flips(pairs.factors, np.random.default_rng([seed, 1])).tolist())


def p_value_of(model, pairs, questions, seed):
    """p value on one half of the questions of the layer and sign chosen on the other half."""
    vectors = ts.mean_difference(pairs)
    controls = ts.control_vectors(pairs, random=0, shuffled=19, orthogonal=0, seed=seed)
    table = ts.sweep(
        model, vectors, questions, multipliers=[-1.0, 1.0], positions=ts.last_token(), controls=controls,
        control_layers="all", mass=False, progress=False,
    )  # fmt: skip
    chosen = ts.choose(table, on="choose", report="report", value="shift", resamples=1, splits=0)
    return chosen.set_index("split").loc["report", "p_value"]


def separated(pairs, seed):
    return ts.separation(pairs, folds=2, shuffles=39, seed=seed)


def test_true_labels_are_significant(model, activations, questions):
    assert p_value_of(model, activations, questions, seed=0) == 1 / 20
    table = separated(activations, seed=0)
    assert (table["paired_accuracy"] == 1).all()
    assert table["p_corrected"].tolist() == [1 / 40] * len(LAYERS)


@pytest.fixture(scope="module")
def seeds(draws):
    return range(draws(100))


def expected(seeds, level, probability):
    """Fewest and most of the tests with p ≤ level, with the given probability."""
    outside = (1 - probability) / 2
    return binom.ppf([outside, 1 - outside], len(seeds), level)


def test_p_values_of_the_chosen_condition_are_uniform(model, activations, questions, seeds):
    p_values = pd.Series(
        [p_value_of(model, with_shuffled_labels(activations, seed), questions, seed) for seed in seeds]
    )
    fewest, most = expected(seeds, LEVEL, 0.98)
    assert fewest <= (p_values <= LEVEL).sum() <= most
    fewest, most = expected(seeds, 0.5, 0.9999)
    assert fewest <= (p_values <= 0.5).sum() <= most
    assert p_values.nunique() > min(12, len(seeds) / 4)


def test_false_alarms_of_the_separation_over_all_layers(activations, seeds):
    table = pd.concat(
        [separated(with_shuffled_labels(activations, seed), seed).assign(seed=seed) for seed in seeds]
    )
    fewest, most = expected(seeds, LEVEL, 0.98)
    assert fewest <= (table.groupby("seed")["p_corrected"].min() <= LEVEL).sum() <= most
    for _, layer in table.groupby("layer"):
        assert (layer["p_value"] <= LEVEL).sum() <= most
        low, high = expected(seeds, 0.5, 0.9999)
        assert low <= (layer["p_value"] <= 0.5).sum() <= high
