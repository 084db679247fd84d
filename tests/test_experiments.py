"""Experiment files, findings made of tables whose truth is known, and what a run's folder holds."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from tl_steer.activations import PairedActivations
from tl_steer.directions import SteeringVectors, mean_difference
from tl_steer.evaluation import choose, effectiveness, signal_detection
from tl_steer.evaluation.answer_shifts import answer_shifts
from tl_steer.experiments import (
    Results,
    UnfinishedRunError,
    asking,
    own_experiments,
    read_experiment,
    run,
    write_report,
)
from tl_steer.experiments.checks import require_runnable
from tl_steer.experiments.materials import in_unit, questions_of, steered_with
from tl_steer.experiments.report import (
    choice_finding,
    effect_finding,
    mass_finding,
    ranking_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from tl_steer.experiments.results import best_choice
from tl_steer.experiments.unfinished import is_finished

SMALLEST = """title = "small"
[pairs]
kind = "csv"
"""
ASKING = (
    SMALLEST
    + """[questions]
kind = "sentiment"
[sweep]
multipliers = [-0.2, 0.2]
"""
)
WORDS = """title = "words"
[pairs]
kind = "prompts"
positive = "Love"
negative = "Hate"
[text]
prompts = ["I hate you because"]
chat = false
layers = [1]
"""


def written(tmp_path, text, name="mine.toml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


# --- files ----------------------------------------------------------------------------------------------


def test_what_is_left_out_has_defaults(tmp_path):
    experiment = read_experiment(written(tmp_path, SMALLEST))
    assert experiment.pairs.data == "sentiment_pairs"
    assert experiment.directions.method == "mean_difference"
    assert experiment.directions.unit == "dose"
    assert experiment.capture.layers == "all"
    assert experiment.questions is None
    assert experiment.text is None
    assert experiment.folder == tmp_path


def test_every_own_experiment_is_valid():
    assert {"demo", "honesty"} <= set(own_experiments())
    for name in own_experiments():
        assert read_experiment(name).title


def test_the_demo_writes_texts_at_more_than_one_layer():
    text = read_experiment("demo").text
    assert text.layers == 2
    assert text.max_new_tokens == 20


def test_layers_that_are_steered_together_are_a_list_in_the_list(tmp_path):
    text = ASKING + "layers = [3, [17, 31]]\n"
    assert read_experiment(written(tmp_path, text)).sweep.layers == (3, (17, 31))


def test_scores_are_by_what_is_measured(tmp_path):
    assert read_experiment(written(tmp_path, ASKING)).sweep.score == "shift"
    assert read_experiment(written(tmp_path, ASKING + "measure = 'generate'")).sweep.score == "accuracy"


def test_layers_as_keys_are_whole_numbers_with_numbers(tmp_path):
    text = SMALLEST + (
        "[directions]\nmethod = 'principal_component'\nweights = { 17 = 1, -1 = -0.5 }\n"
        "component = { 1 = 1, 2 = 0.5 }"
    )
    directions = read_experiment(written(tmp_path, text)).directions
    assert directions.weights == {17: 1.0, -1: -0.5}
    assert directions.components == (1, 2)


def test_two_words_need_no_more_than_themselves(tmp_path):
    experiment = read_experiment(written(tmp_path, WORDS))
    assert experiment.directions.method == "activation_addition"
    assert experiment.directions.unit == "length"
    assert experiment.pairs.hook == "resid_pre"


def test_whole_numbers_stand_for_numbers(tmp_path):
    text = ASKING.replace("[-0.2, 0.2]", "[-1, 2]")
    assert read_experiment(written(tmp_path, text)).sweep.multipliers == (-1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ASKING.replace("multipliers", "multiplers"),
            r"mine.toml: \[sweep\] has no key 'multiplers'; did you mean 'multipliers'\?",
        ),
        ("titel = 'a'\n" + SMALLEST, r"mine.toml: the file has no key 'titel'; did you mean 'title'\?"),
        (
            SMALLEST + "[capture]\nxyz = 1",
            r"\[capture\] has no key 'xyz'; it may have positions, hook, layers",
        ),
        (SMALLEST + "style = 'words'", r"\[pairs\] has no key 'style'"),
        (
            SMALLEST.replace("csv", "cvs"),
            r"\[pairs\] kind = 'cvs' is not allowed; use 'csv' or 'honesty' or 'organism' or 'prompts'. Did",
        ),
        ("title = 'a'\n[pairs]\ndata = 'x'", r"\[pairs\] the key 'kind' is missing"),
        ("title = 'a'", r"mine.toml: the key 'pairs' is missing"),
        ("title = 'a'\npairs = 3", r"'pairs' must be a table, \[pairs\], not 3"),
        (
            ASKING.replace("[-0.2, 0.2]", "0.2"),
            r"\[sweep\] multipliers = 0.2 is not allowed; use a list of: a finite number",
        ),
        (ASKING.replace("[-0.2, 0.2]", "[]"), r"\[sweep\] multipliers: give at least one"),
        (ASKING.replace("[-0.2, 0.2]", "[0, 1]"), r"\[sweep\] multipliers: .*none of them 0"),
        (ASKING.replace("-0.2", "0.2"), r"\[sweep\] multipliers = \[0.2, 0.2\]: give each once"),
        (ASKING + "operations = ['add', 'add']", r"\[sweep\] operations = .*: give each once"),
        (ASKING + "controls = true", r"\[sweep\] controls = True is not allowed; use a whole number"),
        (ASKING + "controls = -1", r"\[sweep\] controls = -1: give 0 or more"),
        (ASKING + "layers = 'al'", r"\[sweep\] layers = 'al' is not allowed; .* Did you mean 'all'\?"),
        (ASKING + "positions = 'last()'", r"\[sweep\] positions 'last\(\)' cannot be read"),
        (
            ASKING + "operations = ['ad']",
            r"\[sweep\] operations = \['ad'\] is not allowed; use a list of: 'add' or 'project_out'",
        ),
        (
            SMALLEST + "[capture]\nhook = 'resid'",
            r"\[capture\] hook = 'resid' is unknown; use one of resid_pre",
        ),
        (SMALLEST + "[questions]\nkind = 'claims'", r"\[questions\] and \[sweep\] belong together"),
        (SMALLEST + "[text]\nprompts = ['a']", r"\[text\] layers must be a list"),
        (SMALLEST + "[text]\nlayers = [1]", r"\[text\] give either prompts"),
        (SMALLEST + "[text]\nprompts = ['a']\nlayers = []", r"\[text\] layers must not be empty"),
        (
            SMALLEST + "[text]\nprompts = ['a']\nlayers = [1]\nmultipliers = [1, 0]",
            r"\[text\] multipliers = \[1.0, 0.0\].*no multiplier of 0",
        ),
        (
            SMALLEST + "[text]\nprompts = ['a']\nlayers = [1]\nmultipliers = [1, 1]",
            r"\[text\] multipliers = \[1.0, 1.0\]: give each once",
        ),
        (
            SMALLEST + "[text]\nprompts = ['a']\nlayers = [1]\npositions = 'last()'",
            r"\[text\] positions 'last\(\)' cannot be read",
        ),
        (
            ASKING + "measure = 'generate'\nscore = 'shift'",
            r"\[sweep\] score = 'shift' is .* measure = 'generate' does not have: use 'accuracy' or",
        ),
        (ASKING + "measure = 'write'", r"\[sweep\] measure = 'write' is not allowed; use 'choice' or 'gen"),
        (ASKING + "measure = 'generate'\nmax_new_tokens = 0", r"\[sweep\] max_new_tokens = 0: give 1 or"),
        (
            SMALLEST + "[directions]\nmethod = 'mean_difference'\nweights = { a = 1 }",
            r"\[directions\] weights = \{'a': 1\} is not allowed; use a table of a whole number to a finite",
        ),
        (
            SMALLEST + "[directions]\nmethod = 'mean_difference'\nweights = { 3 = 1, 4 = 0 }",
            r"\[directions\] weights = \{3: 1.0, 4: 0.0\}: .* none of them 0",
        ),
        (
            SMALLEST + "[directions]\nmethod = 'principal_component'\ncomponent = {}",
            r"\[directions\] component = \{\}: give one or more",
        ),
        (
            SMALLEST + "[model]\nprocessing = { fold = true }",
            r"\[model\] processing: \['fold'\] is unknown; TransformerLens has fold_ln, center_writing_we",
        ),
        (SMALLEST + "[model]\nprocessing = 3", r"processing = 3 is not allowed; use true or false, or"),
        (
            SMALLEST + "[directions]\nmethod = 'activation_addition'",
            r"kind = \"prompts\" and \[directions\] method = \"activation_addition\" go together",
        ),
        (WORDS + "[directions]\nmethod = 'lda_direction'", r"go together: give both, or neither"),
        (WORDS + "[capture]\nlayers = [1]", r"\[capture\] and \[separation\] are about pairs"),
        (WORDS + "[separation]\nfolds = 3", r"\[capture\] and \[separation\] are about pairs"),
        (WORDS.replace("layers", "operations = ['project_out']\nlayers"), r"\[text\] operations: one vector"),
        (WORDS[: WORDS.index("[text]")], r"kind = \"prompts\" needs \[text\], or \[questions\]"),
        (WORDS.replace("Love", "").replace("Hate", ""), r"\[pairs\] positive and negative are both empty"),
        (WORDS.replace("positive", "hook = 'resid'\npositive"), r"\[pairs\] hook = 'resid' is unknown"),
        (SMALLEST + "limit = 0", r"\[pairs\] limit = 0: give 1 or more"),
        (SMALLEST + "[separation]\nfolds = 1", r"\[separation\] .*folds = 1"),
        (SMALLEST + "[directions]\nmethod = 'mean_difference'\nC = 2", r"\[directions\] has no key 'C'"),
        ("title = ", r"mine.toml is not a TOML file"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_by_file_table_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_experiment(written(tmp_path, text))


def test_a_file_that_is_not_there_is_told_with_the_names_there_are():
    with pytest.raises(FileNotFoundError, match=r"neither a file nor one of .*demo, .*honesty, "):
        read_experiment("nowhere.toml")


# --- findings -------------------------------------------------------------------------------------------


def separations(accuracies, *, high=0.6, pairs=100):
    """A table as `separation` makes it; intervals as wide as 100 pairs give."""
    half = 0.08
    return pd.DataFrame(
        {
            "layer": range(len(accuracies)),
            "paired_accuracy": accuracies,
            "paired_accuracy_low": np.subtract(accuracies, half),
            "paired_accuracy_high": np.minimum(np.add(accuracies, half), 1),
            "null_low": 1 - high, "null_high": high, "null_mean": 0.5,
            "pairs": pairs, "folds": 5,
        }
    )  # fmt: skip


def test_layers_whose_interval_clears_the_null_band_are_named():
    told = separation_finding(separations([0.5, 0.55, 0.9, 0.95, 0.5, 0.8]))
    assert "separate at 3 of 6 layers (2–3, 5)" in told
    assert "layer 3 with 0.95" in told


def test_points_above_the_band_with_intervals_that_reach_into_it_are_not_called_separation():
    told = separation_finding(separations([0.5, 0.62, 0.5]))
    assert told.startswith("Held-out pairs do not clearly separate at any layer")
    assert "(1)" in told
    assert "by chance" in told


def test_pairs_that_do_not_separate_are_told_plainly():
    told = separation_finding(separations([0.48, 0.51, 0.5]))
    assert told.startswith("The pairs do not separate in this model: at none of 3 layers")
    assert "0.48 to 0.51" in told
    assert "not shown to carry" in told


def test_without_exchanged_labels_nothing_is_compared():
    assert "no exchanged labels were run" in separation_finding(separations([0.9], high=np.nan))


def swept(effect, *, controls=0.0, n=40, seed=0):
    """A sweep's table of one layer: `effect(kind)` is added to the logit difference of either kind.

    Before steering, two of three positive reviews and two of three negative ones are answered rightly.
    """
    rng = np.random.default_rng(seed)
    answer = np.repeat([0, 1], n)
    kind = np.where(answer == 0, "positive", "negative")
    sign = np.where(answer == 0, 1.0, -1.0)
    before = sign * np.where(np.arange(2 * n) % 3 < 2, 1.0, -1.0) * rng.uniform(0.5, 1.5, 2 * n)
    cells = [("none", False, "none", "", "", 0.0, 0.0, np.zeros(2 * n))]
    for multiplier in (-0.2, 0.2):
        added = np.sign(multiplier) * np.array([effect(each) for each in kind]) + rng.normal(0, 0.1, 2 * n)
        cells.append(("mean_difference", False, "add", "7", "resid_post", multiplier, 0.21, added))
        noise = np.sign(multiplier) * controls + rng.normal(0, 0.1, 2 * n)
        cells.append(("random 1", True, "add", "7", "resid_post", multiplier, 0.21, noise))
    frames = []
    for vector, control, operation, layers, hook, multiplier, dose, added in cells:
        frame = pd.DataFrame(
            {"prompt_id": range(2 * n), "prompt": [f"p{i}" for i in range(2 * n)], "kind": kind}
        )
        frame["split"] = np.where(np.arange(2 * n) // 3 % 2 == 0, "choose", "report")
        frame["logit_difference"] = before + added
        frame["answer"] = pd.array(answer, dtype="Int64")
        frame["choice"] = pd.array(np.where(frame["logit_difference"] > 0, 0, 1), dtype="Int64")
        frame["probability"], frame["mass"], frame["text"] = 0.5, 0.9, None
        labels = {
            "vector": vector,
            "control": control,
            "operation": operation,
            "layers": layers,
            "hook": hook,
        }
        frames.append(frame.assign(**labels, multiplier=multiplier, dose=dose))
    return pd.concat(frames, ignore_index=True)


def told_of(table, score="shift"):
    half = table[table["split"] == "report"]
    chosen = choose(table, on="choose", report="report", score=score).iloc[1]
    return effect_finding(
        effectiveness(half, by="kind"), signal_detection(half), chosen, factor="kind", signal=["positive"]
    )


def test_a_vector_that_moves_both_kinds_alike_is_a_shift_of_bias():
    told = told_of(swept(lambda kind: 1.0))
    assert "moves both kinds of questions" in told
    assert "“positive”" in told
    assert "This is a shift of bias" in told
    assert "improvement" in told.split("bias")[1]
    assert "farther than 1 control vector of the same length" in told


def test_a_vector_that_moves_each_kind_toward_its_own_answer_is_an_improvement():
    told = told_of(swept(lambda kind: 2.0 if kind == "positive" else -2.0, n=80), score="d_prime")
    assert "moves each kind of question toward its own right answer" in told
    assert "This is an improvement, without a measurable shift of bias" in told


@pytest.mark.parametrize(
    ("size", "verdict"), [(0.75, "This is a loss of sensitivity"), (2.0, "This reverses the answers")]
)
def test_a_vector_that_harms_is_not_called_an_improvement(size, verdict):
    told = told_of(
        swept(lambda kind: -size if kind == "positive" else size, n=80),
        score=lambda rows: rows["multiplier"].iloc[0],
    )
    assert "toward its own wrong answer" in told
    assert verdict in told
    assert "improvement" not in told


def test_a_vector_that_does_nothing_is_told_so():
    told = told_of(swept(lambda kind: 0.0), score=lambda rows: rows["multiplier"].iloc[0])
    assert "moves no kind of question measurably" in told
    assert "neither a shift of bias nor an improvement" in told


def test_a_vector_that_moves_one_kind_names_it_and_the_one_that_stays():
    told = told_of(swept(lambda kind: 0.8 if kind == "negative" else 0.0))
    assert re.search(
        "moves questions of kind negative (toward|away from) “positive”, and positive not measurably", told
    )


def test_random_directions_that_move_as_far_take_the_credit_away():
    told = told_of(swept(lambda kind: 1.0, controls=-1.5))
    assert "1 control vector of the same length moves them as far" in told
    assert "need not be the vector's doing" in told


def projected(table):
    """The same table with a projection in place of each addition of a positive multiplier."""
    kept = table[table["multiplier"] >= 0].copy()
    steered = kept["operation"] == "add"
    kept.loc[steered, "operation"] = "project_out"
    kept.loc[steered, ["multiplier", "dose"]] = np.nan
    return kept


def test_a_projection_is_not_said_to_have_a_length():
    told = told_of(projected(swept(lambda kind: 1.0)))
    assert "farther than 1 control vector (at most" in told
    assert "length" not in told


def test_the_best_operation_is_chosen_on_the_choosing_half_whichever_is_listed_first():
    table = swept(lambda kind: 1.0)
    weaker = projected(swept(lambda kind: 0.3))
    table = pd.concat([weaker, table[table["operation"] != "none"]], ignore_index=True)
    choices = choose(table, on="choose", report="report", score="shift")
    assert list(choices["operation"]) == ["project_out"] * 2 + ["add"] * 2
    oracle = max(choices[choices["split"] == "choose"].to_dict("records"), key=lambda row: row["value"])
    assert oracle["operation"] == "add"
    for split in ("choose", "report"):
        best = best_choice(choices, split=split)
        assert (best["operation"], best["split"], best["multiplier"]) == ("add", split, oracle["multiplier"])


def as_texts(table, *, unreadable=lambda rows: rows["choice"].isna()):
    """The same choices, as if read from texts: no logits, and none where `unreadable` says so."""
    rows = table.assign(logit_difference=np.nan, probability=np.nan, mass=np.nan, text="words")
    rows.loc[unreadable(rows), "choice"] = pd.NA
    return rows


def told_of_texts(table):
    half = table[table["split"] == "report"]
    chosen = choose(table, on="choose", report="report", score="accuracy").iloc[1].copy()
    chosen["multiplier"] = 0.2
    return effect_finding(
        answer_shifts(half, by="kind"),
        signal_detection(half),
        chosen,
        factor="kind",
        signal=["positive"],
        written=True,
    )


def test_the_shift_of_texts_is_the_paired_change_of_the_share_that_says_the_signal():
    def unreadable(rows):
        return (rows["prompt_id"] % 7 == 0) & (rows["multiplier"] > 0) | (rows["prompt_id"] % 11 == 0)

    table = as_texts(swept(lambda kind: 1.0), unreadable=unreadable)
    found = answer_shifts(table, by="kind", seed=3)
    assert len(found) == 10
    unsteered = table[table["vector"] == "none"].set_index("prompt_id")["choice"]
    for row in found.to_dict("records"):
        cell = table[
            (table["vector"] == row["vector"])
            & (table["multiplier"] == row["multiplier"])
            & (table["kind"] == row["kind"])
        ]
        changes = []
        for prompt, choice in zip(cell["prompt_id"], cell["choice"], strict=True):
            if pd.notna(choice) and pd.notna(unsteered[prompt]):
                changes.append(int(choice == 0) - int(unsteered[prompt] == 0))
        assert (row["n"], row["compared"]) == (len(cell), len(changes))
        assert row["shift"] == pytest.approx(np.mean(changes))
        assert row["shift_low"] <= row["shift"] <= row["shift_high"]
        if row["vector"] == "none":
            assert row["shift_low"] == row["shift_high"] == 0
            continue
        # The interval's source, Bonett & Price 2012, by hand: a changed prompt more of either kind.
        more = [*changes, 1, -1]
        spread = 1.96 * np.std(more) / np.sqrt(len(more))
        assert (row["shift_high"] - row["shift_low"]) / 2 == pytest.approx(spread, rel=0.2)


def test_a_vector_that_only_breaks_texts_moves_no_kind():
    broken = as_texts(
        swept(lambda kind: 0.0),
        unreadable=lambda rows: (rows["multiplier"] > 0) & (rows["prompt_id"] % 2 > 0),
    )
    assert "moves no kind of question measurably" in told_of_texts(broken)


def test_a_shift_of_bias_shows_in_texts_too():
    told = told_of_texts(as_texts(swept(lambda kind: 5.0)))
    assert "moves both kinds of questions toward “positive”" in told
    assert "change of the share that says “positive”" in told
    assert "logit" not in told
    assert "This is a shift of bias" in told


def test_texts_of_which_nothing_can_be_read_are_not_given_a_verdict():
    told = told_of_texts(as_texts(swept(lambda kind: 5.0), unreadable=lambda rows: rows["multiplier"] > 0))
    assert "there is nothing to compare with control vectors" in told
    assert "Too few of these answers can be read" in told
    assert "improvement" not in told


def test_questions_of_which_no_answer_at_all_can_be_read_are_not_said_to_be_alike():
    told = told_of_texts(as_texts(swept(lambda kind: 5.0), unreadable=lambda rows: rows["prompt_id"] >= 0))
    assert "Too few of these answers can be read" in told
    assert "same right answer" not in told


def test_texts_have_no_ranking_and_no_mass():
    table = as_texts(swept(lambda kind: 1.0))
    chosen = choose(table, on="choose", report="report", score="accuracy").iloc[1]
    assert ranking_finding(table, chosen) is None
    assert mass_finding(table, chosen) is None


def test_unreadable_texts_are_counted_where_they_are():
    table = as_texts(
        swept(lambda kind: 1.0), unreadable=lambda rows: rows["multiplier"] * rows["prompt_id"] > 15
    )
    chosen = choose(table, on="choose", report="report", score="accuracy").iloc[1]
    turned = chosen.copy()
    chosen["multiplier"], turned["multiplier"] = 0.2, -0.2
    told = unreadable_finding(table, [chosen, turned])
    assert "(0 of 80 unsteered, 4 of 80 at layer 7, multiplier +0.20 (dose 0.21), 0 of 80 at" in told
    assert not told.startswith("Caution")
    assert "count as wrong" in told
    many = as_texts(table, unreadable=lambda rows: rows["prompt_id"] < 8)
    assert unreadable_finding(many, [chosen]).startswith("Caution: the answers are texts")
    assert unreadable_finding(as_texts(swept(lambda kind: 1.0)), [chosen]).endswith("a choice could be read.")


def test_what_did_not_move_is_not_said_to_be_matched_by_chance():
    told = told_of(swept(lambda kind: 0.0))
    assert "1 control vector of the same length moves them by at most" in told
    assert "doing" not in told


def test_questions_with_one_right_answer_cannot_tell_bias_from_sensitivity():
    table = swept(lambda kind: 1.0)
    assert "cannot be told apart" in told_of(table[table["kind"] == "positive"])


def test_a_shift_of_bias_leaves_the_ranking_as_it_was():
    table = swept(lambda kind: 5.0)  # so far that all answers are alike
    chosen = choose(table, on="choose", report="report", score="shift").iloc[1]
    half = table[table["split"] == "report"]
    found = re.search(
        r"AUC of (\S+) unsteered and (\S+) steered \(change (\S+) \[(\S+), (\S+)\]\)",
        ranking_finding(half, chosen),
    )
    then, now, change, low, high = (float(number.replace("−", "-")) for number in found.groups())
    cells = [
        half[half["vector"] == "none"],
        half[(half["vector"] == chosen["vector"]) & (half["multiplier"] == chosen["multiplier"])],
    ]
    oracle = [roc_auc_score((cell["answer"] == 0).astype(int), cell["logit_difference"]) for cell in cells]
    np.testing.assert_allclose([then, now], oracle, atol=6e-4)
    assert low <= change <= high
    assert low <= 0 <= high


def test_an_improvement_shows_in_the_ranking():
    table = swept(lambda kind: 2.0 if kind == "positive" else -2.0, n=80)
    chosen = choose(table, on="choose", report="report", score="d_prime").iloc[1]
    low = re.search(r"\[([+−]\S+),", ranking_finding(table[table["split"] == "report"], chosen)).group(1)
    assert low.startswith("+")
    assert low != "+0.000"


def test_questions_with_one_right_answer_have_no_ranking():
    table = swept(lambda kind: 1.0)
    chosen = choose(table, on="choose", report="report", score="shift").iloc[1]
    assert ranking_finding(table[table["kind"] == "positive"], chosen) is None


def test_the_choice_is_told_with_both_halves():
    table = swept(lambda kind: 1.0)
    choices = choose(table, on="choose", report="report", score="accuracy")
    told = choice_finding(choices)
    on, report = choices.iloc[0], choices.iloc[1]
    assert f"on {on['n']} questions" in told
    assert f"with {on['value']:.2f} (unsteered {on['unsteered']:.2f})" in told
    assert f"other {report['n']} it is {report['value']:.2f}" in told
    assert ("may be no change" in told) == (report["change_low"] <= 0 <= report["change_high"])


def test_choices_that_hold_little_probability_are_warned_of():
    table = swept(lambda kind: 1.0)
    chosen = choose(table, on="choose", report="report", score="shift").iloc[1]
    assert mass_finding(table, chosen) is None
    table.loc[table["vector"] == "none", "mass"] = 0.02
    assert "hold 0.02 of the probability unsteered, 0.90 steered" in mass_finding(table, chosen)


def test_nothing_is_claimed_of_texts():
    texts = pd.DataFrame(
        {
            "prompt_id": [5, 6, 5, 6], "layers": ["", "", "7", "7"],
            "operation": ["none", "none", "add", "add"], "multiplier": [0.0, 0.0, 8.0, 8.0],
        }
    )  # fmt: skip
    told = text_finding(texts)
    assert told.startswith("2 open prompts were answered with the vector left out and added at layer 7")
    assert "what they say is not measured" in told
    removed = texts.assign(multiplier=[0.0, 0.0, -8.0, np.nan])
    removed.loc[3, "operation"] = "project_out"
    assert "subtracted, left out and projected out" in text_finding(removed)


# --- runs -----------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "experiment.toml").write_text("old")
    with pytest.raises(FileExistsError, match=r"already holds a run of another experiment file[^+]*- as"):
        run(read_experiment(written(tmp_path, SMALLEST)), out, model=object())  # refused before any work
    assert [file.name for file in out.iterdir()] == ["experiment.toml"]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        run(read_experiment(written(tmp_path, SMALLEST)), tmp_path, model=object())


def test_a_run_that_breaks_before_anything_is_done_leaves_nothing(tmp_path):
    experiment = read_experiment(written(tmp_path, SMALLEST + "data = 'nowhere.csv'\n"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        run(experiment, tmp_path / "runs" / "one", model=object())
    assert list((tmp_path / "runs").iterdir()) == []


class Untouched:
    """A model of 30 layers of which only the size may be looked at."""

    cfg = SimpleNamespace(n_layers=30)
    tokenizer = run_with_hooks = None


CAPTURED = "[capture]\nlayers = [10, -15]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "limit = 4", r"\[separation\] folds = 5 cannot be made of the 4 groups.*folds to 2 to 4"),
        (SMALLEST + "limit = 1", r"\[separation\] folds = 5 cannot be made of the 1 groups.*: use more"),
        (
            SMALLEST + "limit = 10\n[directions]\nmethod = 'principal_component'\n"
            "of = 'differences'\ncomponent = 9",
            r"\[directions\] component = 9 does not exist: \[separation\] folds = 5 leaves 8 pairs .* 1 to 8",
        ),
        (
            ASKING.replace("[-0.2, 0.2]", "[0.2]\nlayers = [[10, 12], 5]") + CAPTURED,
            r"\[sweep\] layers: there is no vector at \[5, 12\], since \[capture\] layers are \[10, 15\]",
        ),
        (ASKING + "layers = [15, -15]\n" + CAPTURED, r"\[sweep\] layers: one is named twice"),
        (
            SMALLEST + CAPTURED + "[text]\nprompts = ['a']\nlayers = [5]",
            r"\[text\] layers: there is no vector at \[5\]",
        ),
        (SMALLEST + "[text]\nprompts = ['a']\nlayers = [29, -1]", r"\[text\] layers: one is named twice"),
        (SMALLEST + CAPTURED.replace("10", "31"), r"\[capture\] layers: layer 31 is out of range"),
        (
            ASKING.replace("sentiment", "misconceptions") + "score = 'd_prime'",
            r"\[sweep\] score = 'd_prime' needs both .* \[questions\] kind = 'misconceptions' has \d+ with "
            r"the one, 0 with the other: use 'accuracy' or 'shift'\.",
        ),
        (
            ASKING.replace('"sentiment"', '"sentiment"\nlimit = 2') + "score = 'd_prime'",
            r"\[sweep\] score = 'd_prime' .* 1 with the one, 1 with the other: .*, or ask more",
        ),
        (
            ASKING.replace('"sentiment"', '"misconceptions"\nlimit = 1'),
            r"\[questions\] limit: give 2 or more",
        ),
        (SMALLEST + "[text]\ndata = 'dilemmas'\nlimit = 5000\nlayers = [1]", r"limit = 5000 cannot be drawn"),
    ],
)  # fmt: skip
def test_what_would_break_later_is_told_before_the_model_works(tmp_path, text, message):
    experiment = read_experiment(written(tmp_path, text))
    with pytest.raises((ValueError, IndexError), match=message):
        run(experiment, tmp_path / "runs" / "one", model=Untouched())
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "columns",
    ["pair", "layer", "side", "prompt", "PC1", "projection", "side_positive,side_negative",
     "letter,letter_positive,letter_negative"],
)  # fmt: skip
def test_pair_columns_with_names_of_the_reports_own_are_refused_early(tmp_path, columns):
    rows = "".join(f"good {row},bad {row}" + ",0" * len(columns.split(",")) + "\n" for row in range(12))
    (tmp_path / "own.csv").write_text(f"positive,negative,{columns}\n{rows}")
    experiment = read_experiment(written(tmp_path, SMALLEST + "data = 'own.csv'\n"))
    clashing = columns.split("_positive")[0].split(",")[0]
    with pytest.raises(ValueError, match=rf"\[pairs\] data: the columns \['{clashing}'\] .*rename"):
        run(experiment, tmp_path / "one", model=Untouched())


def test_what_fits_is_not_refused(tmp_path):
    rows = "".join(f"good {row},bad {row},A,B,x\n" for row in range(12))
    (tmp_path / "own.csv").write_text(f"positive,negative,letter_positive,letter_negative,topic\n{rows}")
    asking = (
        ASKING.replace("[pairs]", "[pairs]\ndata = 'own.csv'")
        + "score = 'd_prime'\nlayers = [10, [10, 15]]\n"
    )
    text = "[text]\nprompts = ['a']\nlayers = [-15]\n"
    require_runnable(read_experiment(written(tmp_path, asking + CAPTURED + text)), Untouched())


def test_controls_are_run_for_the_chosen_cell_of_the_best_operation(tmp_path, monkeypatch, planted):
    text = ASKING + "operations = ['project_out', 'add']\ncontrols = 1\ncontrol_layers = 'chosen'\n"
    both = swept(lambda kind: 1.0)
    both = pd.concat([projected(swept(lambda kind: 0.3)), both[both["operation"] != "none"]])
    calls = []

    def sweeping(model, vectors, questions, **options):
        calls.append(options)
        return both[~both["control"]].reset_index(drop=True)

    monkeypatch.setattr(asking, "sweep", sweeping)
    experiment = read_experiment(written(tmp_path, text))
    asking.asked_table(experiment, None, mean_difference(planted[0]), planted[0], progress=False)
    assert [call["operations"] for call in calls] == [("project_out", "add"), ["add"]]
    assert calls[1]["layers"] == [7]
    assert calls[1]["multipliers"] == [-0.2, 0.2]


def test_texts_are_written_at_the_layers_of_the_best_operation_first(tmp_path, monkeypatch, planted):
    text = ASKING + "operations = ['project_out', 'add']\n[text]\nprompts = ['a']\nchat = false\nlayers = 2\n"
    strong, weak = swept(lambda kind: 1.0), projected(swept(lambda kind: 0.3)).replace({"layers": {"7": "3"}})
    both = pd.concat([weak, strong[strong["operation"] != "none"]], ignore_index=True)
    given = {}

    def sweeping(model, vectors, prompts, **options):
        given.update(options)
        return pd.DataFrame({"prompt_id": [0], "prompt": prompts})

    monkeypatch.setattr(asking, "sweep", sweeping)
    experiment = read_experiment(written(tmp_path, text))
    asking.written_table(experiment, None, mean_difference(planted[0]), [both], progress=False)
    assert given["layers"] == [7, 3]


def test_weights_are_looked_for_among_the_layers_that_have_vectors(tmp_path):
    weighted = "[directions]\nmethod = 'mean_difference'\nweights = { 10 = 1.0, 5 = -0.5 }\n"
    with pytest.raises(ValueError, match=r"\[directions\] weights: there is no vector at \[5\]"):
        require_runnable(read_experiment(written(tmp_path, SMALLEST + CAPTURED + weighted)), Untouched())
    asking = ASKING + "layers = [10, [10, 12]]\n" + weighted
    with pytest.raises(ValueError, match=r"\[sweep\] layers: .* \[12\], since .* weights are of \[5, 10\]"):
        require_runnable(read_experiment(written(tmp_path, asking)), Untouched())
    text = "[text]\nprompts = ['a']\nlayers = [5, [5, -20]]\n"
    require_runnable(read_experiment(written(tmp_path, SMALLEST + weighted + text)), Untouched())


def test_every_component_of_a_mix_must_exist(tmp_path):
    text = SMALLEST + (
        "limit = 10\n[directions]\nmethod = 'principal_component'\nof = 'differences'\n"
        "component = { 1 = 1.0, 9 = 0.5 }"
    )
    with pytest.raises(ValueError, match=r"component = 9 does not exist: .* leaves 8 pairs"):
        require_runnable(read_experiment(written(tmp_path, text)), Untouched())


@pytest.mark.parametrize(("unit", "length"), [("dose", 10.0), ("one", 1.0), ("length", None)])
def test_a_unit_is_what_multiplier_one_stands_for(tmp_path, planted, unit, length):
    text = SMALLEST + f"[directions]\nmethod = 'mean_difference'\nunit = '{unit}'\nweights = {{ 1 = -0.5 }}"
    experiment = read_experiment(written(tmp_path, text))
    made = mean_difference(planted[0])
    found = in_unit(made, experiment)
    expected = np.linalg.norm(made.values, axis=-1) if length is None else [length] * 2
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=-1), expected, rtol=1e-5)
    steered = steered_with(found, experiment)
    assert steered.layers == (1,)
    np.testing.assert_allclose(steered.values[0], -0.5 * found.values[1], rtol=1e-6)
    assert steered_with(found, read_experiment(written(tmp_path, SMALLEST))) is found


def test_a_model_is_loaded_with_what_the_file_says_of_it(tmp_path, monkeypatch):
    asked = {}
    steps = sys.modules["tl_steer.experiments.run"]
    monkeypatch.setattr(steps, "load_model", lambda name, **options: asked.update(options, name=name))
    text = "[model]\nname = 'gpt2-xl'\ndtype = 'bfloat16'\nprocessing = { center_writing_weights = true }\n"
    steps._loaded(read_experiment(written(tmp_path, SMALLEST + text)))
    assert asked == {
        "name": "gpt2-xl", "dtype": "bfloat16", "device": None,
        "processing": {"center_writing_weights": True},
    }  # fmt: skip


def test_free_answers_are_asked_for_where_they_are_to_be_read(tmp_path):
    model = SimpleNamespace(tokenizer=None, cfg=None, run_with_hooks=None)
    asking = ASKING.replace('"sentiment"', '"claims"\nlimit = 4')
    letters, words = (
        questions_of(read_experiment(written(tmp_path, asking + f"measure = '{measure}'")), model)
        for measure in ("choice", "generate")
    )
    assert all(prompt.endswith("Answer: (") for prompt in letters.prompts)
    assert all(prompt.endswith("(A) True\n(B) False\n\nAnswer:\n") for prompt in words.prompts)
    assert list(letters.answers) == list(words.answers)


@pytest.fixture
def reporting(monkeypatch, tmp_path):
    """A run whose work and versions are done at once: give it what happens in the report."""
    steps, worked = sys.modules["tl_steer.experiments.run"], []

    def work(experiment, model, out, *_, **__):
        worked.append(out)
        (out / "sweep.parquet").write_text("the sweep")

    monkeypatch.setattr(steps, "_work", work)
    monkeypatch.setattr(steps, "_versions", lambda *_, **__: {})
    monkeypatch.setattr(steps, "require_runnable", lambda *_: None)
    for name, made in (("_parts", {}), ("bytes_allowed", 2**20)):
        monkeypatch.setattr(sys.modules["tl_steer.experiments.unfinished"], name, lambda *_, made=made: made)
    experiment = read_experiment(written(tmp_path, SMALLEST))

    def start(report, **options):
        monkeypatch.setattr(steps, "write_report", report)
        return run(experiment, tmp_path / "runs" / "one", model=object(), **options)

    return SimpleNamespace(start=start, worked=worked)


@pytest.mark.parametrize("broken", [TypeError("no such figure"), KeyboardInterrupt("stopped")])
def test_a_report_that_breaks_costs_nothing_and_the_same_call_makes_it(reporting, tmp_path, broken):
    def breaking(folder):
        raise broken

    one = tmp_path / "runs" / "one"
    for _ in range(2):
        with pytest.raises(UnfinishedRunError, match=rf"{broken}\).* are all in .*/runs/one;") as told:
            reporting.start(breaking)
        assert told.value.__cause__ is broken
        assert not is_finished(one)
    assert reporting.start(lambda folder: (folder / "report.html").write_text("made")) == one
    assert sorted(file.name for file in one.iterdir()) == [
        "experiment.toml", "report.html", "sweep.parquet", "versions.json",
    ]  # fmt: skip
    assert is_finished(one)
    assert reporting.worked == [one]  # once
    assert list((tmp_path / "runs").iterdir()) == [one]


def test_data_is_looked_for_beside_the_experiment_file(tmp_path, monkeypatch):
    from tl_steer.experiments.materials import pairs_of

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "p.csv").write_text("positive,negative\ngood,bad\nyes,no\n")
    monkeypatch.chdir(tmp_path)
    experiment = read_experiment(written(folder, SMALLEST + "data = 'p.csv'\n"))
    assert pairs_of(experiment, None).positive == ("good", "yes")


def test_a_limit_draws_as_many_of_each_label_and_the_same_again(tmp_path):
    experiment = read_experiment(written(tmp_path, ASKING.replace('"sentiment"', '"sentiment"\nlimit = 10')))
    drawn = questions_of(experiment, None)
    assert sorted(drawn.answers) == [0] * 5 + [1] * 5
    assert list(drawn.prompts) == list(questions_of(experiment, None).prompts)


def test_a_limit_beyond_the_data_is_told(tmp_path):
    from tl_steer.experiments.materials import pairs_of

    with pytest.raises(ValueError, match=r"limit = 5000 cannot be drawn"):
        pairs_of(read_experiment(written(tmp_path, SMALLEST + "limit = 5000\n")), None)


TINY = """# tiny ✓
title = "Tiny <b>run</b>"
question = "Does it go?"
seed = 3
[pairs]
kind = "csv"
limit = 10
[capture]
layers = [5, 12, 18]
[questions]
kind = "sentiment"
limit = 12
[sweep]
layers = [12, 18]
multipliers = [-0.2, 0.2]
controls = 1
control_layers = "chosen"
[text]
prompts = ["How was your day?"]
layers = 1
max_new_tokens = 4
[separation]
shuffles = 5
folds = 3
"""


@pytest.fixture(scope="module")
def tiny_run(embedded, tmp_path_factory):
    """The run folder of a tiny experiment on the embedded model."""
    folder = tmp_path_factory.mktemp("tiny")
    return run(read_experiment(written(folder, TINY)), folder / "out", model=embedded, progress=False)


@pytest.mark.model
def test_a_run_folder_holds_everything_and_nothing_else(tiny_run):
    assert sorted(file.name for file in tiny_run.iterdir()) == [
        "activations.safetensors", "audit.csv", "damage.parquet", "experiment.toml", "report.html",
        "sweep.parquet", "text_damage.parquet", "vectors.safetensors", "versions.json",
    ]  # fmt: skip
    assert [file.name for file in tiny_run.parent.iterdir() if file.name.startswith(".")] == []
    assert (tiny_run / "experiment.toml").read_bytes() == TINY.encode("utf-8")


@pytest.mark.model
def test_a_runs_vectors_have_dose_one_and_come_from_its_activations(tiny_run):
    vectors = SteeringVectors.load(tiny_run / "vectors.safetensors")
    activations = PairedActivations.load(tiny_run / "activations.safetensors")
    assert len(activations) == 10
    assert vectors.layers == (5, 12, 18)
    np.testing.assert_allclose(vectors.norms().numpy(), activations.stream_norm.numpy(), rtol=1e-5)
    positive, negative = (side.double().numpy() for side in activations.sides())
    mean = (positive - negative).mean(0)
    cosine = (
        (vectors.values.numpy() * mean).sum(-1)
        / np.linalg.norm(vectors.values, axis=-1)
        / np.linalg.norm(mean, axis=-1)
    )
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


@pytest.mark.model
def test_a_runs_sweep_has_its_cells_and_texts_of_their_own(tiny_run):
    table = pd.read_parquet(tiny_run / "sweep.parquet")
    asked, texts = table[table["split"] != "text"], table[table["split"] == "text"]
    cells = asked[["vector", "layers", "multiplier"]].drop_duplicates()
    assert (
        len(cells) == 1 + 4 + 2
    )  # unsteered, two layers at two multipliers, one control at the chosen layer
    assert (asked.groupby(["vector", "layers", "multiplier"]).size() == 12).all()
    assert asked.loc[asked["vector"] == "random 1", "control"].all()
    assert not set(asked["prompt_id"]) & set(texts["prompt_id"])
    assert set(texts["said"]) == {"How was your day?"}
    assert sorted(texts["multiplier"]) == [-0.3, 0.0, 0.3]
    chosen = choose(asked, on="choose", report="report", score="shift").iloc[0]
    assert set(texts["layers"]) == {"", chosen["layers"]}
    assert set(asked.loc[asked["control"], "layers"]) == {chosen["layers"]}


@pytest.mark.model
def test_a_run_tells_its_versions_and_seed(tiny_run):
    import torch

    versions = json.loads((tiny_run / "versions.json").read_text())
    assert versions["seed"] == 3
    assert versions["packages"]["torch"] == torch.__version__
    assert versions["model"]["n_layers"] == 30


@pytest.mark.model
def test_a_report_is_made_of_the_folder_alone(tiny_run, tmp_path):
    import shutil

    copied = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    (copied / "report.html").unlink()
    write_report(copied)
    assert (copied / "report.html").read_text("utf-8").count("How was your day?") == 2  # texts, and the file
    assert len(Results.load(copied).separation) == 3
