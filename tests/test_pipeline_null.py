"""With labels shuffled, the whole way from pairs to result gives no more alarms than chance has coming.

Everything is the package's own: a small model, its pairs, its questions. The labels are exchanged by a coin a
group, a hundred times over, with the seeds 0 to 99 as they come. Of 100 tests at 5 %, 1 to 11 raise an alarm
with a probability of 98 %. A held-out accuracy comes in steps, and ties count against an alarm: of thirty
groups, 3 in 100 are to be expected there.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import tl_steer as ts
from tl_steer.directions import coin_flips
from tl_steer.prompts import ChoiceQuestions

SEEDS = range(100)
LEVEL = 0.05
LAYERS = (0, 1)
RELATIONS = ("capital", "colour", "food")


@pytest.fixture(scope="module")
def model():
    return ts.load_model("organism-honesty", device="cpu")


@pytest.fixture(scope="module")
def activations(model):
    """Ninety pairs, honest against liar: thirty groups, each with three claims about one subject."""
    pairs = ts.organism_pairs("organism-honesty")
    pairs = replace(
        pairs, factors=pairs.factors[["relation", "subject"]].rename(columns={"subject": "group"})
    )
    chosen = np.flatnonzero(pairs.factors["relation"].isin(RELATIONS))
    captured = ts.capture_pairs(model, pairs, layers=LAYERS, progress=False)
    return captured.subset(chosen.tolist())


@pytest.fixture(scope="module")
def questions():
    """Forty true claims, so that a shift of the logits is one of honesty."""
    asked = ts.organism_questions()
    rows = [row for row, answer in enumerate(asked.answers) if answer == 0][::5][:40]
    return ChoiceQuestions(
        [asked.prompts[row] for row in rows],
        [asked.choices[row] for row in rows],
        factors=asked.factors.loc[rows, ["relation"]].reset_index(drop=True),
    )


def with_shuffled_labels(pairs, seed):
    # A stream of its own: `separation` draws its null from default_rng(seed).
    return pairs.swapped(coin_flips(pairs.factors, np.random.default_rng([seed, 1])).tolist())


def p_value_of(model, pairs, questions, seed):
    """From pairs to the p value of the vector, chosen on one half of the questions, read on the other."""
    vectors = ts.mean_difference(pairs)
    controls = ts.control_vectors(pairs, random=0, shuffled=19, orthogonal=0, seed=seed)
    table = ts.sweep(
        model, vectors, questions, multipliers=[-1.0, 1.0], positions=ts.last_token(), controls=controls,
        mass=False, progress=False,
    )  # fmt: skip
    found = ts.choose(table, on="choose", report="report", score="shift", resamples=1, splits=0)
    return found.set_index("split").loc["report", "p_value"]


def separated(pairs, seed):
    return ts.separation(pairs, folds=2, shuffles=39, seed=seed)


# --- labels that mean something ---


def test_the_labels_themselves_raise_an_alarm(model, activations, questions):
    assert p_value_of(model, activations, questions, seed=0) == 1 / 20
    found = separated(activations, seed=0)
    assert (found["paired_accuracy"] == 1).all()
    assert found["q_value"].tolist() == [1 / 40] * len(LAYERS)


# --- labels that mean nothing ---


def test_from_pairs_to_the_chosen_cell_shuffled_labels_raise_one_to_eleven_alarms(
    model, activations, questions
):
    p_values = pd.Series(
        [p_value_of(model, with_shuffled_labels(activations, seed), questions, seed) for seed in SEEDS]
    )
    assert 1 <= (p_values <= LEVEL).sum() <= 11
    assert 30 <= (p_values <= 0.5).sum() <= 70
    assert p_values.nunique() > 12


def test_on_held_out_pairs_shuffled_labels_raise_one_to_eleven_alarms_over_all_layers(activations):
    found = pd.concat(
        [separated(with_shuffled_labels(activations, seed), seed).assign(seed=seed) for seed in SEEDS]
    )
    assert 1 <= (found.groupby("seed")["q_value"].min() <= LEVEL).sum() <= 11
    for _, layer in found.groupby("layer"):
        assert (layer["p_value"] <= LEVEL).sum() <= 11
        assert 30 <= (layer["p_value"] <= 0.5).sum() <= 70
