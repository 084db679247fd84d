"""The report's evidence: each sentence where it is certain, where it is not, where numbers are missing."""

import re
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import torch

from tl_steer.directions import mean_difference
from tl_steer.evaluation import effectiveness, signal_detection
from tl_steer.experiments import Results, asking, read_experiment, run
from tl_steer.experiments.checks import require_runnable
from tl_steer.experiments.report.effects import effect_finding
from tl_steer.experiments.report.evidence_findings import (
    agreement_finding,
    confounds_finding,
    controls_finding,
    damage_finding,
    prediction_finding,
    steerability_finding,
    texts_finding,
)
from tl_steer.experiments.report.tables import (
    confounds_table,
    controls_table,
    cost_table,
    detection_table,
    prediction_table,
)
from tl_steer.models import load_model

CHOSEN = pd.Series(
    {"vector": "v", "control": False, "operation": "add", "layers": "7", "hook": "resid_post",
     "multiplier": 0.2, "dose": 0.21}
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>"


def numbers(text):
    """Every number of a sentence, as it is printed."""
    return [float(each) for each in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


# Controls


def beside_controls(*, p_value=0.05, controls=19, effect=2.0, value="shift", **changes):
    """One row as `against_controls` makes it."""
    row = CHOSEN.to_dict() | {
        "n": 60, "value": value, "effect": effect, "effect_low": effect - 0.25, "effect_high": effect + 0.25,
        "controls": controls, "null_low": -0.41, "null_high": 0.62, "null_mean": 0.03, "p_value": p_value,
        "q_value": 0.04,
    }  # fmt: skip
    return pd.DataFrame([row | changes])


def test_an_effect_beyond_all_controls_is_told_with_the_smallest_p_there_can_be():
    told = controls_finding(beside_controls(), CHOSEN)
    assert "the logit difference changes by +2.00 [+1.75, +2.25]" in told
    assert "under none of 19 control vectors is it as far from zero (−0.41 to +0.62)" in told
    assert "p = 0.05 (with 19 it cannot be below 0.05)" in told
    assert "chance" not in told
    assert "too few" not in told
    assert "Over all 1 cell with controls, q is below 0.05 in 1" in told


def test_few_controls_are_said_to_be_too_few():
    assert "so there are too few to tell" in controls_finding(
        beside_controls(controls=3, p_value=0.25), CHOSEN
    )


@pytest.mark.parametrize(("as_far", "chance"), [(1, "this may be chance"), (7, "this may be chance")])
def test_controls_that_go_as_far_are_counted(as_far, chance):
    told = controls_finding(beside_controls(p_value=(as_far + 1) / 20), CHOSEN)
    assert f"under {as_far} of 19 control vectors it is as far from zero" in told
    assert told.index(chance) > 0


def test_one_of_many_controls_that_goes_as_far_is_not_called_chance():
    assert "so rarely by chance" in controls_finding(beside_controls(controls=59, p_value=2 / 60), CHOSEN)


def test_what_any_push_lowers_is_compared_with_the_controls_mean():
    for value, words in {"accuracy": "the accuracy changes by", "d_prime": "d′ changes by"}.items():
        told = controls_finding(beside_controls(value=value), CHOSEN)
        assert words in told
        assert "as far from the controls' mean" in told
    assert "the share of answers that change is +2.00" in controls_finding(
        beside_controls(value="flipped"), CHOSEN
    )


def test_without_controls_at_the_chosen_cell_nothing_is_compared():
    for missing in (beside_controls(controls=0, p_value=np.nan), beside_controls(p_value=np.nan)):
        assert (
            controls_finding(missing, CHOSEN) == "At the chosen cell there are no controls to compare with."
        )


def test_the_controls_table_has_each_cell_and_marks_what_survives_all_of_them():
    both = pd.concat(
        [beside_controls(), beside_controls(multiplier=-0.2, q_value=0.3, effect=-0.5)], ignore_index=True
    )
    table = controls_table(both, both)
    assert table.marked == [True, False]
    assert table.rows[0] == [
        "add", "+0.20", "0.21", "+2.00 [+1.75, +2.25]", "−0.41 to +0.62", "19", "0.05", "0.04",
    ]  # fmt: skip
    assert "shift (nats)" in table.columns
    assert "over 2 cells" in table.note
    removed = beside_controls(operation="project_out", multiplier=np.nan, dose=np.nan)
    assert controls_table(removed, removed).rows[0][:3] == ["project out", "", "–"]


# Slopes


def slopes(*, slope=1.5, half=0.1, wrong=0.1, r_squared=0.9, control=None):
    rows = [
        {"vector": "v", "control": False, "layers": "7", "n": 80, "slope": slope, "slope_low": slope - half,
         "slope_high": slope + half, "wrong": wrong, "wrong_low": wrong - 0.05, "wrong_high": wrong + 0.05,
         "r_squared": r_squared}
    ]  # fmt: skip
    if control is not None:
        rows.append(rows[0] | {"vector": "random 1", "control": True, "slope": control})
    return pd.DataFrame(rows)


def test_slopes_are_told_with_their_interval_their_controls_and_those_that_go_the_other_way():
    told = steerability_finding(slopes(control=-0.7), "7", "v")
    assert "At layer 7 the mean slope is +1.50 [+1.40, +1.60]" in told
    assert "up to ±0.70" in told
    assert "10% [5%, 15%] of the 80 questions move the other way." in told
    assert "controls" not in steerability_finding(slopes(), "7", "v")


def test_a_slope_whose_interval_holds_zero_is_not_said_to_move_anything():
    told = steerability_finding(slopes(slope=0.05), "7", "v")
    assert "the questions together do not measurably move" in told
    assert "do not measurably" not in steerability_finding(slopes(), "7", "v")


def test_a_mean_over_many_that_disagree_is_not_left_to_speak_for_all():
    assert "does not speak for all" in steerability_finding(slopes(wrong=0.4), "7", "v")
    assert "does not speak for all" not in steerability_finding(slopes(), "7", "v")


def test_lines_that_fit_badly_are_told():
    assert "(median r² 0.30)" in steerability_finding(slopes(r_squared=0.3), "7", "v")
    for fine in (0.9, np.nan):
        assert "r²" not in steerability_finding(slopes(r_squared=fine), "7", "v")


# Damage


def cost(*, loss=0.05, half=0.02, usable=True, why="", controls=()):
    row = CHOSEN.to_dict() | {
        "kl": 0.12, "kl_low": 0.1, "kl_high": 0.14, "loss_change": loss, "loss_change_low": loss - half,
        "loss_change_high": loss + half, "effect": 2.0, "effect_low": 1.5, "effect_high": 2.5,
        "usable": usable, "why": why,
    }  # fmt: skip
    rows = [
        row,
        *(row | {"vector": f"random {k}", "control": True, "kl": kl} for k, kl in enumerate(controls)),
    ]
    return pd.DataFrame(rows)


def usable(*, cells=2, why="largest tried", sign=1, ends=(0.1, 0.2)):
    low, high = ends if cells else (np.nan, np.nan)
    return pd.DataFrame(
        [{"sign": sign, "usable": cells, "smallest_multiplier": low, "largest_multiplier": high,
          "largest_dose": high, "why": why}]
    )  # fmt: skip


def test_damage_is_told_with_its_interval_beside_the_controls():
    told = damage_finding(cost(controls=(0.3, 0.5)), usable(), CHOSEN)
    assert "the KL divergence is 0.12 [0.10, 0.14] nats (random controls 0.30 to 0.50)" in told
    assert "the loss changes by +0.05 [+0.03, +0.07]." in told
    assert "Added, the vector is usable at multiplier +0.10 to +0.20 (dose 0.20)" in told
    assert "no larger one was tried" in told


def test_damage_that_may_be_nothing_is_told_so():
    assert "which may be nothing" in damage_finding(cost(loss=0.01), usable(), CHOSEN)
    assert "which may be nothing" in damage_finding(cost(loss=np.nan), usable(), CHOSEN)
    assert "which may be nothing" not in damage_finding(cost(), usable(), CHOSEN)


def test_only_controls_of_the_same_multiplier_stand_beside_it():
    table = cost(controls=(0.3, 9.0))
    table.loc[2, "multiplier"] = 0.4
    assert "(random controls 0.30)" in damage_finding(table, usable(), CHOSEN)
    table.loc[1, "multiplier"] = -0.2  # a control has no sign
    assert "(random controls 0.30)" in damage_finding(table, usable(), CHOSEN)


def test_projections_have_controls_and_a_range_too():
    removed = cost(controls=(0.3,)).assign(operation="project_out", multiplier=np.nan)
    chosen = CHOSEN.copy()
    chosen["operation"], chosen["multiplier"] = "project_out", np.nan
    told = damage_finding(removed, usable(sign=0, cells=1, ends=(np.nan, np.nan)), chosen)
    assert "(random controls 0.30)" in told
    assert told.endswith("Projected out, it is usable.")
    told = damage_finding(removed, usable(sign=0, cells=0, why="no effect"), chosen)
    assert "Projected out, it is not usable: no effect is beyond zero" in told


@pytest.mark.parametrize(
    ("why", "words"),
    [("no effect", "no effect is beyond zero and beyond the controls"),
     ("damage first", "the text suffers"), ("collapse first", "the text falls apart before")],
)  # fmt: skip
def test_where_no_multiplier_is_usable_the_reason_is_told(why, words):
    told = damage_finding(cost(), usable(cells=0, why=why, sign=-1), CHOSEN)
    assert "Subtracted, no multiplier tried is usable: " + words in told


@pytest.mark.parametrize(
    ("why", "words"),
    [("damage", "at the next the text suffers"), ("collapse", "at the next the text falls apart"),
     ("no effect", "at the next the effect is not clear")],
)  # fmt: skip
def test_what_ends_the_usable_range_is_told(why, words):
    assert words in damage_finding(cost(), usable(why=why), CHOSEN)


def test_the_cost_table_has_every_cell_but_controls_and_says_why_not():
    table = cost_table(
        pd.concat([cost(controls=(0.3,)), cost(usable=False, why="damage").assign(multiplier=0.4)]),
        effect="change of d′",
    )
    assert [row[:2] for row in table.rows] == [["+0.20", "usable"], ["+0.40", "the text suffers"]]
    assert table.marked == [True, False]
    assert "change of d′" in table.columns
    assert table.rows[0][2:] == ["0.21", "+2.00 [+1.50, +2.50]", "0.12 [0.10, 0.14]", "+0.05 [+0.03, +0.07]"]


# Texts


def texts(distinct, loss):
    """Two texts unsteered and two at each of two multipliers; values by cell."""
    cells = [("none", "", "none", 0.0), ("v", "7", "add", -0.3), ("v", "7", "add", 0.3)]
    return pd.DataFrame(
        [
            {"vector": vector, "layers": layers, "operation": operation, "multiplier": multiplier,
             "distinct_2": distinct[place] + off, "loss": loss[place] + off}
            for place, (vector, layers, operation, multiplier) in enumerate(cells)
            for off in (-0.02, 0.02)
        ]
    )  # fmt: skip


def test_the_worst_texts_are_told_with_where_they_are():
    told = texts_finding(texts((0.9, 0.8, 0.7), (1.0, 3.0, 2.0)))
    assert "90% are different unsteered, and 70% where that is lowest (layer 7, multiplier +0.30)." in told
    assert (
        "a loss of 1.00 nats a token, and at most 3.00 to the steered ones (layer 7, multiplier −0.30)"
        in told
    )
    assert "collapsed" not in told


def test_texts_that_repeat_themselves_have_collapsed():
    told = texts_finding(texts((0.9, 0.4, 0.8), (1.0, 3.0, 2.0)))
    assert "(layer 7, multiplier −0.30): there the text has collapsed." in told


def test_texts_without_numbers_are_not_given_any():
    nothing = (np.nan,) * 3
    assert texts_finding(texts(nothing, nothing)) == "They are too short to tell."
    assert "loss" not in texts_finding(texts((0.9, 0.8, 0.7), nothing))
    assert "word pairs" not in texts_finding(texts((0.9, np.nan, np.nan), (1.0, 3.0, 2.0)))
    removed = texts((0.9, 0.4, 0.8), nothing).replace({"multiplier": {-0.3: np.nan}})
    assert "(layer 7, projected out)" in texts_finding(removed)


# What could be known beforehand


def agreeing(*, split_half=0.9, null=0.4, cone=12.34):
    return pd.DataFrame(
        [{"layer": layer, "pairs": 72, "split_half": split_half, "split_half_null": null, "single": 0.5,
          "cone": cone} for layer in (3, 7)]
    )  # fmt: skip


def test_pairs_that_agree_are_told_beside_chance():
    told = agreement_finding(agreeing(), 7)
    assert told.startswith(
        "At layer 7 the vectors of two halves of the 72 pairs have a cosine of 0.90, above"
    )
    assert numbers(told) == [7, 72, 0.9, 97.5, 0.4, 0.5, 95, 12.3]


def test_pairs_that_agree_no_more_than_chance_do_not_determine_a_vector():
    assert "these pairs do not determine a vector there" in agreement_finding(agreeing(split_half=0.3), 7)


def test_agreement_without_a_null_or_a_cone_is_told_alone():
    told = agreement_finding(agreeing(null=np.nan, cone=np.nan), 7)
    assert numbers(told) == [7, 72, 0.9, 0.5]
    assert "exchanged" not in told


def confounded(rows):
    columns = ["factor", "contrast", "cosine", "null_high", "differs", "balanced"]
    table = pd.DataFrame(rows, columns=columns).assign(layer=7)
    return table.assign(share=table["cosine"] ** 2)


ALONG = ("length", "per unit", 0.5, 0.2, True, True)
BESIDE = ("topic", "a − b", 0.1, 0.2, False, True)
SIDED = ("letter", "A − B", np.nan, np.nan, False, False)
ALL = ("all", "", 0.52, 0.3, True, False)


def test_what_the_vector_lies_along_is_named_and_what_it_does_not_is_not():
    told = confounds_finding(confounded([ALONG, BESIDE, ALL]), 7)
    assert "lies along length (cosine +0.50), farther than along factors that mean nothing" in told
    assert "may be chance" in told
    assert "topic" not in told
    assert "all (" not in told


def test_a_vector_along_nothing_is_said_to_lie_along_none():
    told = confounds_finding(confounded([BESIDE, ALL]), 7)
    assert (
        told == "At layer 7 the vector lies along none of these farther than along factors that mean nothing."
    )


def test_a_tiny_cosine_beyond_chance_is_not_worth_a_warning():
    tiny = ("length", "per unit", 0.05, 0.01, True, True)
    assert "along none of these" in confounds_finding(confounded([tiny]), 7)


def test_a_factor_found_on_one_side_alone_cannot_be_told_from_the_behaviour():
    told = confounds_finding(confounded([SIDED, BESIDE, ALL]), 7)
    assert told.startswith("The pairs cannot tell letter from the behaviour")
    assert "none of the others" in told
    assert "layer 7" not in confounds_finding(confounded([SIDED]), 7)  # no cosine: nothing else to tell


def test_the_confounds_table_has_dashes_where_there_is_no_direction():
    table = confounds_table(confounded([ALONG, SIDED]))
    assert table.rows == [
        ["length", "per unit", "+0.50", "0.25", "0.20"], ["letter", "A − B", "–", "–", "–"],
    ]  # fmt: skip
    assert table.marked == [True, False]
    assert "one side alone" in table.note
    assert "one side alone" not in confounds_table(confounded([ALONG])).note


def predicted(p_value, *, n=30):
    return pd.DataFrame(
        {"measure": ["split_half", "single", "between"], "correlation": [0.8, 0.2, np.nan],
         "p_value": [p_value, 0.9, np.nan], "n": [n, n, 0]}
    )  # fmt: skip


def test_the_best_of_several_measures_is_called_flattered():
    told = prediction_finding(predicted(1 / 30))
    assert "split half (rank correlation +0.80, p = 0.033)" in told
    assert "2 measures were tried over 30 layers, with which no p can be below 0.033" in told
    assert "flattered" in told


def test_no_measure_that_predicts_is_told_so():
    assert prediction_finding(predicted(0.2)).startswith("None does so measurably; the nearest is split half")
    nothing = predicted(0.2).assign(p_value=np.nan)
    assert prediction_finding(nothing) == "No measure varies over the layers."
    assert [row[0] for row in prediction_table(predicted(0.2)).rows] == ["split half", "single"]


# The verdict


def answers(right_before, right_after, *, toward=0, n=60, control_moves=0.0):
    """A sweep's rows: shares of right answers of either kind before and after; one vector, one control.

    Of either kind the first answers are right; `toward` answers of each kind more say the signal.
    """
    kind = np.repeat(["positive", "negative"], n)
    answer = np.repeat([0, 1], n)
    sign = np.where(answer == 0, 1.0, -1.0)

    def choices(right):
        is_right = np.tile(np.arange(n) < round(right * n), 2)
        return np.where(is_right, answer, 1 - answer)

    def rows(vector, choice, moved, **labels):
        return pd.DataFrame(
            {"prompt_id": range(2 * n), "prompt": "p", "kind": kind, "split": "report", "vector": vector,
             "control": vector == "random 1", "hook": "resid_post", "mass": 0.9, "probability": 0.5,
             "answer": pd.array(answer, dtype="Int64"), "choice": pd.array(choice, dtype="Int64"),
             "logit_difference": sign + moved} | labels
        )  # fmt: skip

    after = choices(right_after)
    for each in (0, 1):
        after[np.flatnonzero((after == 1) & (answer == each))[:toward]] = 0
    steered = {"operation": "add", "layers": "7", "multiplier": 0.2, "dose": 0.21}
    apart = 1.0 if right_after > right_before else -1.0
    noise = np.tile([0.0, 0.02], n)
    return pd.concat(
        [
            rows("none", choices(right_before), 0.0, operation="none", layers="", multiplier=0.0, dose=0.0),
            rows("v", after, apart * sign + noise, **steered),
            rows("random 1", choices(right_before), control_moves * sign + noise, **steered),
        ],
        ignore_index=True,
    )


def verdict(table):
    shifts = effectiveness(table, by="kind")
    return effect_finding(
        shifts, signal_detection(table), CHOSEN, factor="kind", signal=["positive"], written=False
    )


def test_answers_turned_round_are_called_a_reversal_with_the_numbers_of_the_table():
    table = answers(0.8, 0.2)
    told = verdict(table)
    assert "This reverses the answers, without a measurable shift of bias" in told
    found = signal_detection(table).set_index("vector").loc["v"]
    shown = re.search(r"d′ is (\S+) \[(\S+), (\S+)\]; d′ changes by (\S+) \[(\S+), (\S+)\]", told).groups()
    names = ["d_prime", "d_prime_low", "d_prime_high", "d_prime_change", "d_prime_change_low",
             "d_prime_change_high"]  # fmt: skip
    for number, name in zip(shown, names, strict=True):
        assert float(number.replace("−", "-")) == pytest.approx(found[name], abs=0.005)


def test_a_reversal_that_leans_to_one_answer_tells_the_bias_too():
    told = verdict(answers(0.8, 0.2, toward=10))
    assert "This reverses the answers, along with a shift of bias" in told
    assert "“positive” is said more often" in told


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.5), (0.8, 0.48), (0.45, 0.05)])
def test_answers_are_not_called_reversed_where_either_side_may_be_chance(before, after):
    told = verdict(answers(before, after))
    assert "reverses" not in told
    assert "This is a loss of sensitivity" in told


def test_kinds_moved_apart_are_compared_with_how_far_controls_move_them_apart():
    assert "the difference between the two ways is 2.00, more than under 1 control vector" in verdict(
        answers(0.5, 0.9)
    )
    told = verdict(answers(0.5, 0.9, control_moves=1.5))
    assert (
        "but under 1 control vector of the same length up to 3.00, so this need not be the vector's" in told
    )
    # A control that moves the kinds apart the other way does as much.
    assert "need not be the vector's doing" in verdict(answers(0.5, 0.9, control_moves=-1.5))


def test_controls_of_which_nothing_can_be_read_are_not_compared_with():
    table = answers(0.5, 0.9)
    table.loc[table["vector"] == "random 1", "logit_difference"] = np.nan
    told = verdict(table)
    assert "under 1 control vector of the same length too few answers can be read to compare with" in told
    assert "nan" not in told


def test_the_detection_table_marks_what_is_not_covered_and_sums_up_controls():
    table = answers(0.8, 0.2)
    found, accuracy = signal_detection(table), effectiveness(table)
    shown = detection_table(found, accuracy)
    assert [row[0] for row in shown.rows] == ["unsteered", "v", "1 control"]
    assert shown.marked == [True, False, False]
    assert "†" not in str(shown.rows) + shown.note
    control = found.set_index("vector").loc["random 1"]
    assert float(shown.rows[2][3]) == pytest.approx(control["d_prime"], abs=0.005)
    change = np.where(found["vector"] == "v", False, found["change_covered"])
    marked = detection_table(found.assign(change_covered=change), accuracy)
    assert [cell[-1] == "†" for cell in marked.rows[1]] == [False] * 5 + [True] * 2
    assert "† Fewer than 5" in marked.note


# What is refused before the model works

ORGANISM = """title = "o"
[model]
name = "organism-honesty"
[pairs]
kind = "organism"
[questions]
kind = "organism"
[sweep]
multipliers = [-1, 1]
layers = [0]
[damage]
data = "organism"
"""
WORDS = """title = "w"
[pairs]
kind = "prompts"
positive = "Love"
negative = "Hate"
[questions]
kind = "sentiment"
[sweep]
multipliers = [-1, 1]
"""


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ORGANISM.replace("organism-honesty", "gpt2"), r"\[pairs\] kind = \"organism\" .* 'gpt2' does not"),
        (
            ORGANISM.replace("organism-honesty", "gpt2").replace('"organism"\n[q', '"csv"\n[q'),
            r"\[questions\] kind = \"organism\" .* use one of organism-honesty",
        ),
        (ORGANISM + "positions = 'last_token()'", r"\[damage\] positions = 'last_token\(\)' leaves"),
        (ORGANISM + "max_tokens = 1", r"\[damage\] max_tokens = 1: give 2 or more"),
        (ORGANISM + "passages = -1", r"\[damage\] passages = -1: give 0 or more"),
        (ORGANISM.replace("layers", "orthogonal = -1\nlayers"), r"\[sweep\] orthogonal = -1: give 0"),
        (WORDS + "shuffled = 2", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
        (WORDS + "orthogonal = 1", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
        (WORDS + "[damage]\npassages = 3", r"\[damage\] adds one vector to every token"),
        (
            WORDS + "measure = 'generate'\nchoices = 'sampled'",
            r"choices = 'sampled' draws .* 'generate' does not have",
        ),
    ],
)  # fmt: skip
def test_a_file_that_asks_for_what_cannot_be_is_refused_when_it_is_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_experiment(written(tmp_path, text))


@pytest.fixture(scope="module")
def organism():
    return load_model("organism-honesty", device="cpu")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (ORGANISM.replace('data = "organism"', "data = 'nowhere.csv'"), FileNotFoundError, r"nowhere\.csv"),
        (ORGANISM.replace('data = "organism"', ""), ValueError, r"\[damage\] data: of the tokens .* unknown"),
        (
            ORGANISM.replace("[q", "limit = 3\n[q").replace("layers", "shuffled = 2\nlayers")
            + "[separation]\nfolds = 2",
            ValueError,
            r"\[sweep\] shuffled = 2 .* \[pairs\] has 3: give 4 or more, or shuffled = 0",
        ),
    ],
)  # fmt: skip
def test_what_would_break_later_is_told_before_the_model_works(tmp_path, organism, text, error, message):
    with pytest.raises(error, match=message):
        require_runnable(read_experiment(written(tmp_path, text)), organism)


def test_what_fits_is_not_refused(tmp_path, organism):
    require_runnable(read_experiment(written(tmp_path, ORGANISM)), organism)
    no_damage = ORGANISM.replace('data = "organism"', "passages = 0")
    require_runnable(read_experiment(written(tmp_path, no_damage)), organism)


# End to end, where the truth is planted


SHORTER = "\n[separation]\nshuffles = 10\n"


def organism_run(name, folder, multipliers):
    """An experiment of the package with fewer controls and multipliers."""
    text = (resources.files("tl_steer.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    for few in (("\ncontrols = 9", "\ncontrols = 3"), ("shuffled = 9", "shuffled = 2"), ("= 60", "= 12")):
        assert few[0] in text
        text = text.replace(*few)
    text = text.replace("\n\n[directions]", "\nlimit = 60\n\n[directions]")
    text = re.sub(r"multipliers = .*", f"multipliers = {multipliers}", text) + SHORTER
    text = text.replace('title = "', f'title = "{HOSTILE} ')
    return run(read_experiment(written(folder, text)), folder / "out", progress=False)


@pytest.fixture(scope="module")
def lying(tmp_path_factory):
    return organism_run("organism_honesty", tmp_path_factory.mktemp("honesty"), [-2, 1, 2])


@pytest.fixture(scope="module")
def leaning(tmp_path_factory):
    return organism_run("organism_bias", tmp_path_factory.mktemp("bias"), [-1, 0.5, 1])


def found_in(folder):
    html = (folder / "report.html").read_text("utf-8")
    return html[html.index('id="findings"') : html.index("<nav>")]


def test_a_planted_lie_is_found_to_reverse_the_answers_and_no_bias(lying):
    found = found_in(lying)
    assert Results.load(lying).chosen["multiplier"] < 0
    assert "This reverses the answers, without a measurable shift of bias" in found
    assert "This is a shift of bias" not in found


def test_a_planted_bias_is_found_to_be_one_in_both_directions(leaning):
    found = found_in(leaning)
    assert found.count("This is a shift of bias and not measurably an improvement") == 2
    assert "reverses" not in found
    assert "This is an improvement" not in found


def test_every_section_of_evidence_is_there_with_its_figures_and_tables(lying):
    html = (lying / "report.html").read_text("utf-8")
    for id_ in ("agreement", "confounds", "controls", "steerability", "damage"):
        assert f'<section id="{id_}">' in html
    for figure in ("agreement", "confounds", "steerability", "slopes", "damage"):
        assert f'id="{figure}-figure"' in html
    part = html[html.index('<section id="controls">') : html.index('<section id="steerability">')]
    assert part.count("<tr") == 1 + 3  # heads, and each multiplier at the chosen layer
    part = html[html.index("<table", html.index('<section id="damage">')) : html.index('<section id="made">')]
    assert part.count("<tr") == 1 + 3
    assert 'id="prediction"' not in html  # three layers are too few
    assert 'id="text-damage"' not in html  # nothing was written
    assert HOSTILE not in html
    assert "&lt;img src=x" in html


def test_a_control_is_the_same_direction_in_the_sweep_and_in_the_damage(tmp_path, monkeypatch, planted):
    given = {}

    def measured(*_, **options):
        given.update(options["controls"])
        return pd.DataFrame()

    monkeypatch.setattr(asking, "damage", measured)
    monkeypatch.setattr(asking, "chosen_cell", lambda *_: CHOSEN)
    experiment = read_experiment(written(tmp_path, ORGANISM))
    vectors = mean_difference(planted[0])
    asking.damage_table(experiment, None, vectors, planted[0], pd.DataFrame(), progress=False)
    swept = asking._controls(experiment, vectors, planted[0])
    assert list(given) == ["random 1", "random 2"]
    for name, control in given.items():
        torch.testing.assert_close(control.values, swept[name].values, rtol=0, atol=0)


def test_a_text_that_no_longer_fits_costs_its_likelihood_and_not_the_run(monkeypatch, caplog):
    def measured(table, model=None, **_):
        if model is not None:
            raise ValueError("a text does not fit")
        return table.assign(loss=np.nan)

    monkeypatch.setattr(asking, "text_damage", measured)
    found = asking.text_damage_table(object(), pd.DataFrame({"text": ["a"]}), progress=False)
    assert found["loss"].isna().all()
    assert "a text does not fit" in caplog.text


def test_damage_is_measured_with_random_controls_at_the_chosen_layer(lying):
    results = Results.load(lying)
    layer = results.chosen["layers"]
    swept = results.questions[
        (results.questions["layers"] == layer) & (results.questions["vector"] == "random 1")
    ]
    damaged = results.damage[results.damage["vector"] == "random 1"]
    assert set(damaged["layers"]) == {layer}
    assert set(damaged["multiplier"]) == set(swept["multiplier"])
    kinds = {name.split()[0] for name in results.questions.loc[results.questions["control"], "vector"]}
    assert kinds == {"random", "shuffled", "orthogonal"}
    assert {name.split()[0] for name in results.damage.loc[results.damage["control"], "vector"]} == {"random"}


def test_the_sentence_of_the_report_has_the_numbers_of_its_table(leaning):
    results = Results.load(leaning)
    told = damage_finding(results.cost, results.usable, results.chosen)
    row = results.cost[
        (results.cost["multiplier"] == results.chosen["multiplier"]) & ~results.cost["control"].astype(bool)
    ].iloc[0]
    assert f"{row['kl']:.2f} [{row['kl_low']:.2f}, {row['kl_high']:.2f}] nats" in told
    read = results.damage[
        (results.damage["multiplier"] == row["multiplier"]) & (results.damage["vector"] == row["vector"])
    ]
    assert row["kl"] == pytest.approx(read["kl"].mean())
    assert len(read) == 12
