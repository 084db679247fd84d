"""The report's evidence: numbers and verdicts of findings, for certain, uncertain and missing values."""

import re
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from tl_steer.experiments import Results, measurements, read_experiment, run
from tl_steer.experiments.preflight import require_runnable
from tl_steer.experiments.report.evidence import (
    agreement_finding,
    confounds_finding,
    controls_finding,
    damage_finding,
    prediction_finding,
    steerability_finding,
    texts_finding,
)
from tl_steer.experiments.report.findings import effect_finding
from tl_steer.experiments.report.report_tables import (
    confounds_table,
    controls_table,
    cost_table,
    detection_table,
    prediction_table,
)
from tl_steer.models import load_model

from .conftest import assert_raises

CHOSEN = pd.Series(
    {"vector": "v", "control": False, "operation": "add", "layers": "7", "hook": "resid_post",
     "multiplier": 0.2, "dose": 0.21}
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>"


def numbers(text):
    """All numbers in a sentence."""
    return [float(each) for each in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


def written(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


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


# Controls


def around(half, **values):
    """Columns with intervals of ± `half`."""
    ends = {"": 0.0, "_low": -half, "_high": half}
    return {f"{name}{end}": value + off for name, value in values.items() for end, off in ends.items()}


def control_row(*, p_value=0.05, controls=19, effect=2.0, value="shift", **changes):
    """One row as `against_controls` returns it."""
    row = CHOSEN.to_dict() | around(0.25, effect=effect) | {
        "n": 60, "value_name": value, "controls": controls, "null_low": -0.41, "null_high": 0.62,
        "null_mean": 0.03, "p_value": p_value,
    }  # fmt: skip
    return pd.DataFrame([row | changes])


@pytest.mark.parametrize(
    ("as_far", "controls", "verdict"),
    [
        (0, 19, ""), (0, 18, "19 or more"), (0, 2, "19 or more"), (1, 19, "may be chance"), (1, 59, ""),
        (6, 6, "may be chance"),
    ],
)  # fmt: skip
def test_an_effect_is_compared_with_its_controls_by_p_value(as_far, controls, verdict):
    p, floor = (as_far + 1) / (controls + 1), 1 / (controls + 1)
    text = controls_finding(control_row(p_value=p, controls=controls), CHOSEN)
    expected = [7, 0.2, 0.21, 2, *[as_far] * (as_far > 0), controls, -0.41, 0.62, p]
    expected += [controls, floor, 19, 0.05] * (verdict == "19 or more")
    assert numbers(text) == pytest.approx(expected, rel=0.04)
    assert ("under none of" in text) == (as_far == 0)
    assert [each for each in ("19 or more", "may be chance") if each in text] == (
        [verdict] if verdict else []
    )
    assert not re.search(r"farther|beyond|more than|q is", text)


@pytest.mark.parametrize(
    ("value", "name", "centre"),
    [("shift", "logit difference", "zero"), ("accuracy", "accuracy", "the controls' mean"),
     ("d_prime", "d′", "the controls' mean"), ("flipped", "answers that change", "zero")],
)  # fmt: skip
def test_accuracy_and_d_prime_are_compared_with_the_mean_of_the_controls(value, name, centre):
    text = controls_finding(control_row(value=value), CHOSEN)
    assert name in text
    assert f"as far from {centre}" in text


def test_without_controls_at_the_chosen_condition_there_are_no_numbers():
    for missing in (control_row(controls=0, p_value=np.nan), control_row(p_value=np.nan)):
        text = controls_finding(missing, CHOSEN)
        assert "no controls" in text
        assert numbers(text) == [7, 0.2, 0.21]  # where
    assert "no controls" in controls_finding(control_row(), CHOSEN.replace(0.2, -0.2))


def test_the_controls_table_marks_what_its_sentence_calls_significant():
    both = pd.concat(
        [control_row(), control_row(multiplier=-0.2, p_value=0.1, effect=-0.5)], ignore_index=True
    )
    table = controls_table(both)
    assert table.marked == [True, False]
    assert table.rows[0] == ["add", "+0.20", "0.21", "+2.00 [+1.75, +2.25]", "−0.41 to +0.62", "19", "0.05"]
    assert "shift of the logit difference (nats)" in table.columns
    assert "cannot be below" not in table.note
    few = control_row(controls=4, p_value=0.2)
    assert controls_table(few).marked == [False]
    assert "With 4 controls p cannot be below 0.2: 19 can reach 0.05" in controls_table(few).note
    removed = control_row(operation="project_out", multiplier=np.nan, dose=np.nan)
    assert controls_table(removed).rows[0][:3] == ["project out", "", "–"]


# Slopes


def slopes(*, slope=1.5, wrong=0.1, r_squared=0.9, control=None):
    row = {"vector": "v", "control": False, "layers": "7", "n": 80, "r_squared": r_squared}
    row |= around(0.1, slope=slope) | around(0.05, anti_steerable=wrong)
    controls = [] if control is None else [row | {"vector": "random 1", "control": True, "slope": control}]
    return pd.DataFrame([row, *controls])


UNSURE, DIVIDED, BADLY = "not measurably move", "not speak for all", "badly"  # the cautions of slopes


@pytest.mark.parametrize(
    ("changes", "expected", "cautions"),
    [
        ({}, [7, 1.5, 1.4, 1.6, 10, 5, 15, 80], []),
        ({"control": -0.7}, [7, 1.5, 1.4, 1.6, 0.7, 10, 5, 15, 80], []),
        ({"slope": 0.05}, [7, 0.05, -0.05, 0.15, 10, 5, 15, 80], [UNSURE]),
        ({"wrong": 0.4}, [7, 1.5, 1.4, 1.6, 40, 35, 45, 80], [DIVIDED]),
        ({"r_squared": 0.3}, [7, 1.5, 1.4, 1.6, 10, 5, 15, 80, 0.3], [BADLY]),
        ({"r_squared": np.nan}, [7, 1.5, 1.4, 1.6, 10, 5, 15, 80], []),
    ],
)
def test_slopes_have_intervals_controls_and_cautions(changes, expected, cautions):
    text = steerability_finding(slopes(**changes), "7", "v")
    assert numbers(text) == expected
    assert [each for each in (UNSURE, DIVIDED, BADLY) if each in text] == cautions


# Damage


def cost(*, loss=0.05, usable=True, reason="", controls=()):
    row = CHOSEN.to_dict() | {"usable": usable, "reason": reason}
    row |= around(0.02, kl=0.12, loss_change=loss) | around(0.5, effect=2.0)
    random = [row | {"vector": f"random {k}", "control": True, "kl": kl} for k, kl in enumerate(controls)]
    return pd.DataFrame([row, *random])


def usable(*, count=2, reason="largest tried", sign=1, ends=(0.1, 0.2)):
    low, high = ends if count else (np.nan, np.nan)
    return pd.DataFrame(
        [{"sign": sign, "usable": count, "smallest_multiplier": low, "largest_multiplier": high,
          "largest_dose": high, "reason": reason}]
    )  # fmt: skip


def test_damage_has_intervals_controls_of_the_same_absolute_multiplier_and_the_usable_range():
    text = damage_finding(cost(controls=(0.3, 0.5)), usable(), CHOSEN)
    assert numbers(text) == [0.12, 0.1, 0.14, 0.3, 0.5, 0.05, 0.03, 0.07, 0.1, 0.2, 0.2]
    assert "Added" in text
    for loss, unsure in ((0.05, False), (0.01, True), (np.nan, True)):
        assert ("may be nothing" in damage_finding(cost(loss=loss), usable(), CHOSEN)) == unsure
    table = cost(controls=(0.3, 9.0))
    table.loc[2, "multiplier"] = 0.4
    for multiplier in (0.2, -0.2):  # a random control has no sign
        table.loc[1, "multiplier"] = multiplier
        assert "(random controls 0.30)" in damage_finding(table, usable(), CHOSEN)


def test_a_projection_has_controls_and_is_usable_or_not():
    removed = cost(controls=(0.3,)).assign(operation="project_out", multiplier=np.nan)
    chosen = CHOSEN.copy()
    chosen["operation"], chosen["multiplier"] = "project_out", np.nan
    for count, end in ((1, "it is usable."), (0, "it is not usable: no effect")):
        text = damage_finding(removed, usable(sign=0, count=count, reason="no effect"), chosen)
        assert "(random controls 0.30)" in text
        assert f"Projected out, {end}" in text


@pytest.mark.parametrize(
    ("count", "reason", "words"),
    [(0, "no effect", "no effect"), (0, "damage first", "suffers"), (0, "collapse first", "falls apart"),
     (2, "damage", "suffers"), (2, "collapse", "falls apart"), (2, "no effect", "not clear"),
     (2, "largest tried", "no larger")],
)  # fmt: skip
def test_the_usable_range_ends_for_a_reason(count, reason, words):
    text = damage_finding(cost(), usable(count=count, reason=reason, sign=-1), CHOSEN)
    last = text[text.index("Subtracted") :]
    assert words in last
    assert ("no multiplier tried is usable" in last) == (count == 0)


def test_the_cost_table_has_every_condition_but_controls_and_the_reason():
    table = cost_table(
        pd.concat([cost(controls=(0.3,)), cost(usable=False, reason="damage").assign(multiplier=0.4)]),
        effect="change of d′",
    )
    assert [row[:2] for row in table.rows] == [["+0.20", "usable"], ["+0.40", "the text suffers"]]
    assert table.marked == [True, False]
    assert "change of d′" in table.columns
    assert "the 1 control (too few for p ≤ 0.05)" in table.note
    many = cost_table(cost(controls=[0.3] * 19), effect="change of d′").note
    assert "beyond that of the 19 controls, and the" in many
    assert table.rows[0][2:] == ["0.21", "+2.00 [+1.50, +2.50]", "0.12 [0.10, 0.14]", "+0.05 [+0.03, +0.07]"]


# Texts


def texts(distinct, loss):
    """Two texts unsteered and two at each of two multipliers; values by condition."""
    conditions = [("none", "", "none", 0.0), ("v", "7", "add", -0.3), ("v", "7", "add", 0.3)]
    return pd.DataFrame(
        [
            {"vector": vector, "layers": layers, "operation": operation, "multiplier": multiplier,
             "distinct_2": distinct[row] + off, "loss": loss[row] + off}
            for row, (vector, layers, operation, multiplier) in enumerate(conditions)
            for off in (-0.02, 0.02)
        ]
    )  # fmt: skip


MISSING = (np.nan,) * 3


@pytest.mark.parametrize(
    ("distinct", "loss", "expected"),
    [
        ((0.9, 0.8, 0.7), (1.0, 3.0, 2.0), [90, 70, 7, 0.3, 1, 3, 7, -0.3]),
        ((0.9, 0.4, 0.8), (1.0, 3.0, 2.0), [90, 40, 7, -0.3, 1, 3, 7, -0.3]),
        ((0.9, 0.8, 0.7), MISSING, [90, 70, 7, 0.3]),
        ((0.9, np.nan, np.nan), (1.0, 3.0, 2.0), [1, 3, 7, -0.3]),
        (MISSING, MISSING, []),
    ],
)
def test_the_worst_texts_have_their_numbers_and_their_condition(distinct, loss, expected):
    text = texts_finding(texts(distinct, loss))
    assert numbers(text) == expected
    assert ("collapsed" in text) == (min(distinct) < 0.45)
    assert "projected out" not in text
    removed = texts((0.9, 0.4, 0.8), MISSING).replace({"multiplier": {-0.3: np.nan}})
    assert "(layer 7, projected out)" in texts_finding(removed)


# Agreement, confounds and prediction


@pytest.mark.parametrize(
    ("split_half", "null", "cone", "expected", "verdict"),
    [
        (0.9, 0.4, 12.34, [7, 72, 0.9, 97.5, 0.4, 0.5, 95, 12.3], ["above"]),
        (0.3, 0.4, 12.34, [7, 72, 0.3, 97.5, 0.4, 0.5, 95, 12.3], ["do not determine"]),
        (0.9, np.nan, np.nan, [7, 72, 0.9, 0.5], []),
    ],
)
def test_agreement_is_compared_with_chance(split_half, null, cone, expected, verdict):
    values = {"pairs": 72, "split_half": split_half, "split_half_null": null, "single": 0.5, "cone": cone}
    text = agreement_finding(pd.DataFrame([{"layer": layer, **values} for layer in (3, 7)]), 7)
    assert numbers(text) == expected
    assert [each for each in ("above", "do not determine") if each in text] == verdict


def confounded(rows):
    columns = ["factor", "contrast", "cosine", "null_high", "differs", "balanced"]
    table = pd.DataFrame(rows, columns=columns).assign(layer=7)
    return table.assign(share=table["cosine"] ** 2)


ALONG = ("length", "per unit", 0.5, 0.2, True, True)
ACROSS = ("topic", "a − b", 0.1, 0.2, False, True)
SIDED = ("letter", "A − B", np.nan, np.nan, False, False)
ALL = ("all", "", 0.52, 0.3, True, False)


@pytest.mark.parametrize(
    ("rows", "expected", "named"),
    [
        ([ALONG, ACROSS, ALL], [7, 0.5], ["length"]),
        ([ACROSS, ("all", "", 0.25, 0.3, False, True)], [7, 0.1], []),
        ([("length", "per unit", 0.05, 0.01, True, True)], [7, 0.05], ["length"]),  # beyond chance, but tiny
        ([ACROSS, ("all", "", 0.52, 0.3, True, True)], [7, 0.1, 0.52], []),  # none alone, but together
        ([SIDED, ACROSS, ALL], [7, 0.1, 0.52], ["letter"]),
        ([SIDED], [], ["letter"]),  # no cosine
    ],
)
def test_confounds_name_the_factors_that_the_vector_lies_along_or_cannot_be_told_from(rows, expected, named):
    text = confounds_finding(confounded(rows), 7)
    assert numbers(text) == expected
    assert [each for each in ("length", "letter", "all (") if each in text] == named
    assert ("with topic" in text) == (0.1 in expected)
    assert ("may be chance" in text) == (named == ["length"])
    assert ("cannot tell letter" in text) == (named == ["letter"])
    assert ("along none of" in text) == (7 in expected and named != ["length"])
    assert ("together" in text) == (0.52 in expected)
    assert ("project it out" in text) == (0.5 in expected)
    assert ("less than a hundredth" in text) == (0.05 in expected)


def test_the_confounds_table_has_dashes_where_there_is_no_direction():
    table = confounds_table(confounded([ALONG, SIDED]))
    assert table.rows == [
        ["length", "per unit", "+0.50", "0.25", "0.20"], ["letter", "A − B", "–", "–", "–"],
    ]  # fmt: skip
    assert table.marked == [True, False]
    assert "one side alone" in table.note
    assert "one side alone" not in confounds_table(confounded([ALONG])).note


def predicted(*p_values, n=30):
    return pd.DataFrame(
        {"measure": ["single", "split_half", "between"], "correlation": [-0.2, 0.8, np.nan],
         "p_value": [*p_values, np.nan], "n": [n, n, 0]}
    )  # fmt: skip


def test_a_prediction_names_the_first_measure_of_its_table():
    text = prediction_finding(predicted(0.9, 1 / 30))
    assert numbers(text) == [0.8, 0.033, 2, 30]
    assert text.startswith("The smallest p is split half")
    assert "overestimated" in text
    few = prediction_finding(predicted(0.1, 0.1, n=10))
    assert numbers(few) == [2, 0.8, 0.1, 2, 10, 0.1, 20, 0.05]
    assert "tie" in few
    for table in (predicted(0.9, 1 / 30), predicted(0.1, 0.1), predicted(0.3, 0.2)):
        assert [row[0] for row in prediction_table(table).rows] == ["split half", "single"]
        assert "is split half" in prediction_finding(table)
    assert prediction_finding(predicted(0.2, 0.9)).startswith("No measurable correlation. The smallest p is")
    assert numbers(prediction_finding(predicted(np.nan, np.nan))) == []


# The verdict


def detected(verdict, *, auc=(0.9, 0.9), shift=2.0, d_prime=(2.0, 1.0), criterion=-1.0, logits=True):
    """Two rows as `signal_detection` returns them: unsteered and steered; intervals of ±0.05."""
    values = {
        "auc": auc, "auc_change": (0.0, auc[1] - auc[0]), "shift": (0.0, shift), "d_prime": d_prime,
        "d_prime_change": (0.0, d_prime[1] - d_prime[0]), "criterion": (0.3, 0.3 + criterion),
        "criterion_change": (0.0, criterion),
    }  # fmt: skip
    unsteered = CHOSEN.to_dict() | {"vector": "none", "operation": "none", "layers": "", "multiplier": 0.0}
    rows = []
    for step, condition in enumerate((unsteered, CHOSEN.to_dict())):
        row = {**condition, "n_signal": 60, "n_noise": 50, "covered": True, "change_covered": True}
        row |= around(0.05, **{name: both[step] for name, both in values.items()})
        rows.append(row | {"verdict": verdict * step})
    table = pd.DataFrame(rows)
    return table if logits else table.assign(**dict.fromkeys(table.filter(regex="^(auc|shift)"), np.nan))


def moved(positive, negative):
    """Two rows as `effectiveness` by kind returns them."""
    shift = around(0.1, shift=np.array([positive, negative]))
    return pd.DataFrame({**CHOSEN.to_dict(), "kind": ["positive", "negative"], **shift})


BIAS, LOSS, GAIN, TURN = "a shift of bias", "a loss of sensitivity", "an improvement", "reverses the answers"
VERDICTS = (
    TURN, LOSS, GAIN, BIAS, "no measurable shift of bias or change", "cannot tell bias from sensitivity",
    "cannot be distinguished", "Too few",
)  # fmt: skip


def verdict(table, *, shifts=(1.0, 1.0), signal=("positive",), is_generated=False):
    """The finding without the movement, and its verdicts."""
    text = effect_finding(
        moved(*shifts), table, CHOSEN, factor="kind", signal=list(signal), is_generated=is_generated
    )
    sentence = text[text.index("). ") + 3 :]
    return sentence, [each for each in VERDICTS if each in sentence]


@pytest.mark.parametrize(
    ("table", "verdicts", "words"),
    [
        # d′ says a loss, and the AUC that nothing is lost
        ({"verdict": "bias"}, [BIAS], ["toward “positive”", "without a measurable change of sensitivity"]),
        ({"verdict": "bias", "shift": -2.0}, [BIAS], ["away from “positive”"]),
        ({"verdict": "sensitivity", "auc": (0.9, 0.7), "shift": 0.0, "d_prime": (1.0, 2.0)}, [LOSS],
         ["without a measurable shift of bias"]),
        ({"verdict": "sensitivity", "auc": (0.7, 0.9), "shift": 0.0}, [GAIN], ["shift of bias"]),
        ({"verdict": "both", "auc": (0.9, 0.7)}, [LOSS, BIAS], ["along with a shift of bias toward"]),
        ({"verdict": "both", "auc": (0.9, 0.1)}, [TURN, BIAS], ["along with a shift of bias toward"]),
        ({"verdict": "sensitivity", "auc": (0.9, 0.1), "shift": 0.0}, [TURN], ["without a measurable"]),
        ({"verdict": "sensitivity", "auc": (0.9, 0.48), "shift": 0.0}, [LOSS], []),  # either side of 0.5
        ({"verdict": "sensitivity", "auc": (0.45, 0.1), "shift": 0.0}, [LOSS], []),  # not told apart before
        ({"verdict": "neither", "shift": 0.0}, ["no measurable shift of bias or change"], ["110 answers"]),
        ({"verdict": "cannot tell"}, ["cannot tell bias from sensitivity"], ["110 answers", "d′ changes by"]),
        ({"verdict": "bias", "d_prime": (2.0, 2.0), "logits": False}, [BIAS], ["toward “positive”"]),
        ({"verdict": "bias", "d_prime": (2.0, 2.0), "criterion": 1.0, "logits": False}, [BIAS], ["away"]),
        ({"verdict": "sensitivity", "criterion": 0.0, "logits": False}, [LOSS], []),
        ({"verdict": "sensitivity", "d_prime": (1.0, 2.0), "criterion": 0.0, "logits": False}, [GAIN], []),
        ({"verdict": "both", "d_prime": (1.0, -1.0), "logits": False}, [TURN], ["along with a shift"]),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence_of_the_numbers_it_was_decided_by(table, verdicts, words):
    logits = table.get("logits", True)
    table = detected(**table)
    text, named = verdict(table, is_generated=not logits)
    expected = [each for each in VERDICTS if each in verdicts]
    named = [each for each in named if not (each == BIAS and f"without a measurable {BIAS[2:]}" in text)]
    assert [each for each in named if each in expected] == expected
    assert all(each in text for each in words)
    cannot_tell = table["verdict"].iloc[1] == "cannot tell"
    assert ("d′" in text) == (cannot_tell or not logits)
    before, after = table.to_dict("records")

    def values(*columns):
        return [after[f"{column}{end}"] for column in columns for end in ("", "_low", "_high")]

    shown = [*values("shift"), before["auc"], after["auc"], *values("auc_change")]
    shown = shown if logits else values("criterion_change", "d_prime_change")
    shown += values("d_prime_change") * cannot_tell
    number_of_answers = [110] * ("110" in text)
    assert numbers(text) == pytest.approx([*number_of_answers, *shown], abs=0.005)


def test_types_that_move_opposite_ways_are_no_shift_of_bias():
    for name, shift, opposite in (("neither", 0.2, True), ("sensitivity", 0.2, True), ("bias", 0.2, False)):
        text, _ = verdict(detected(name, shift=shift))
        assert ("do not move the same way" in text) == opposite
        assert ("over both kinds" in text) != opposite


def test_an_undecided_verdict_has_its_reason_and_no_number():
    text, named = verdict(detected("cannot tell", logits=False), is_generated=True)
    assert named == ["cannot tell bias from sensitivity"]
    assert "too few of some kind" in text
    assert numbers(text) == [110]
    unread = detected("cannot tell", logits=False)
    unread[[name for name in unread if name.startswith("d_prime")]] = np.nan
    assert verdict(unread, is_generated=True)[1] == ["Too few"]
    assert verdict(detected("cannot tell"), signal=["positive", "negative"])[1] == ["cannot be distinguished"]


def test_movement_is_reported_by_question_type_and_without_controls():
    for shifts, words in (
        ((1.0, 1.0), "both kinds of questions toward “positive”"), ((1.0, -1.0), "its own right answer"),
        ((-1.0, 1.0), "its own wrong answer"), ((0.0, 0.0), "no kind of question measurably"),
        ((0.0, -1.0), "negative away from “positive”, and positive not measurably"),
    ):  # fmt: skip
        text = effect_finding(
            moved(*shifts), detected("bias"), CHOSEN, factor="kind", signal=["positive"], is_generated=False
        )
        assert words in text
        assert "control" not in text
        shown = [value for shift in shifts for value in (shift, shift - 0.1, shift + 0.1)]
        assert numbers(text)[3:9] == pytest.approx(shown)


def detection_tables():
    table = pd.concat([detected("both"), detected("").iloc[1:]], ignore_index=True)
    table.loc[2, ["vector", "control"]] = ["random 1", True]
    return table, table.assign(accuracy=0.8, accuracy_low=0.7, accuracy_high=0.9)


def test_the_detection_table_has_the_verdict_and_marks_what_is_not_covered():
    detection, accuracy = detection_tables()
    shown = detection_table(detection, accuracy)
    assert [row[:3] for row in shown.rows] == [
        ["unsteered", "", ""], ["v", "both", "+0.20"], ["1 control", "", "+0.20"],
    ]  # fmt: skip
    assert shown.marked == [True, False, False]
    assert "†" not in str(shown.rows) + shown.note
    by_name = dict(zip(shown.columns, shown.rows[1], strict=True))
    assert by_name["AUC"] == "0.900 [0.850, 0.950]"
    assert by_name["change of AUC"] == "+0.000 [−0.050, +0.050]"
    assert by_name["change of d′"] == "−1.00 [−1.05, −0.95]"
    assert shown.rows[2][4:7] == ["0.900", "+0.000", "1.00"]
    change = np.where(detection["vector"] == "v", False, detection["change_covered"])
    marked = detection_table(detection.assign(change_covered=change), accuracy)
    assert [cell[-1:] == "†" for cell in marked.rows[1]] == [False] * 8 + [True] * 2
    assert "not known to cover, and is not used for the verdict" in marked.note
    unscored = detection.assign(auc=np.nan, auc_change=np.nan)
    assert detection_table(unscored, accuracy).rows[1][4:6] == ["–", "–"]


# Preflight


@pytest.fixture(scope="module")
def organism():
    return load_model("organism-honesty", device="cpu")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (ORGANISM.replace('data = "organism"', "data = 'nowhere.csv'"), FileNotFoundError, r"nowhere\.csv"),
        (ORGANISM.replace('data = "organism"', ""), ValueError, r"\[damage\] data: of the tokens .* unknown"),
        (ORGANISM.replace("[q", "limit = 3\n[q").replace("layers", "shuffled = 2\nlayers")
         + "[separation]\nfolds = 2", ValueError,
         r"\[sweep\] shuffled = 2 .* \[pairs\] has 3: give 4 or more, or shuffled = 0"),
    ],
)  # fmt: skip
def test_errors_that_would_come_later_are_raised_before_the_model_works(
    tmp_path, organism, text, error, message
):
    assert_raises(message, require_runnable, read_experiment(written(tmp_path, text)), organism, error=error)


def test_experiments_without_problems_pass_the_preflight(tmp_path, organism):
    for damage in ('data = "organism"', "passages = 0"):
        text = ORGANISM.replace('data = "organism"', damage)
        require_runnable(read_experiment(written(tmp_path, text)), organism)


# End to end, on model organisms with a planted behaviour


def organism_run(name, folder, multipliers):
    """A bundled experiment with fewer controls and multipliers."""
    text = (resources.files("tl_steer.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    for few in (("\ncontrols = 10", "\ncontrols = 3"), ("shuffled = 10", "shuffled = 2"), ("= 60", "= 12")):
        assert few[0] in text
        text = text.replace(*few)
    text = text.replace("\n\n[directions]", "\nlimit = 60\n\n[directions]")
    text = re.sub(r"multipliers = .*", f"multipliers = {multipliers}", text)
    text = text.replace('title = "', f'title = "{HOSTILE} ') + "\n[separation]\nshuffles = 10\n"
    return run(read_experiment(written(folder, text)), folder / "out", progress=False)


@pytest.fixture(scope="module")
def lying(tmp_path_factory):
    return organism_run("organism_honesty", tmp_path_factory.mktemp("honesty"), [-2, 1, 2])


@pytest.fixture(scope="module")
def leaning(tmp_path_factory):
    return organism_run("organism_bias", tmp_path_factory.mktemp("bias"), [-1, 0.5, 1])


def findings_of(folder):
    html = (folder / "report.html").read_text("utf-8")
    return html[html.index('id="findings"') : html.index("<nav>")]


@pytest.mark.integration
def test_a_planted_lie_reverses_the_answers_with_every_section_of_evidence(lying):
    html, text = (lying / "report.html").read_text("utf-8"), findings_of(lying)
    assert Results.load(lying).chosen["multiplier"] < 0
    assert "This reverses the answers, without a measurable shift of bias" in text
    assert "is a shift of bias" not in text
    expected = ["agreement", "confounds", "controls", "steerability", "damage", "made"]
    sections = re.findall('<section id="(.*?)"', html)
    assert sections[-len(expected) :] == expected  # no prediction (three layers are too few), no texts
    assert re.findall('id="([a-z]+)-figure"', html)[-5:] == [
        "agreement", "confounds", "steerability", "slopes", "damage",
    ]  # fmt: skip
    for start, end in (("controls", "steerability"), ("damage", "made")):
        part = html[html.index(f'<section id="{start}">') : html.index(f'<section id="{end}">')]
        # headings, and each multiplier at the chosen layer
        assert part[part.index("<table") :].count("<tr") == 1 + 3
    assert HOSTILE not in html
    assert "&lt;img src=x" in html


@pytest.mark.integration
def test_damage_is_measured_with_random_controls_at_the_chosen_layer(lying):
    results = Results.load(lying)
    layer = results.chosen["layers"]
    questions, damage = results.questions, results.damage
    swept = questions[(questions["layers"] == layer) & (questions["vector"] == "random 1")]
    damaged = damage[damage["vector"] == "random 1"]
    assert set(damaged["layers"]) == {layer}
    assert set(damaged["multiplier"]) == set(swept["multiplier"])
    types = [
        {name.split()[0] for name in table.loc[table["control"], "vector"]} for table in (questions, damage)
    ]
    assert types == [{"random", "shuffled", "orthogonal"}, {"random"}]


@pytest.mark.integration
def test_a_planted_bias_is_a_bias_in_both_directions_and_its_cost_has_the_numbers_of_the_table(leaning):
    text, results = findings_of(leaning), Results.load(leaning)
    assert text.count("is a shift of bias") == 2
    assert not re.search("reverses|is an improvement", text)
    rows = results.cost[~results.cost["control"].astype(bool)]
    row = rows[rows["multiplier"] == results.chosen["multiplier"]].iloc[0]
    text = damage_finding(results.cost, results.usable, results.chosen)
    assert numbers(text)[:3] == [round(row[each], 2) for each in ("kl", "kl_low", "kl_high")]
    damage = results.damage[results.damage["vector"] == row["vector"]]
    damage = damage[damage["multiplier"] == row["multiplier"]]
    assert row["kl"] == pytest.approx(damage["kl"].mean())
    assert len(damage) == 12


def test_texts_that_do_not_fit_lose_their_likelihood_and_nothing_else(monkeypatch, caplog):
    def measured(table, model=None, **_):
        if model is not None:
            raise ValueError("a text does not fit")
        return table.assign(loss=np.nan)

    monkeypatch.setattr(measurements, "text_damage", measured)
    table = measurements.text_damage_table(object(), pd.DataFrame({"text": ["a"]}), progress=False)
    assert table["loss"].isna().all()
    assert "a text does not fit" in caplog.text
