"""The report's evidence: numbers and verdicts of findings, for certain, uncertain and missing values."""

import re
from contextlib import nullcontext
from importlib import resources
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from tl_steer._report import evidence
from tl_steer._report import report_tables as tables
from tl_steer._report.verdict import Kinds, effect_finding
from tl_steer.experiments import measurements, read_experiment, read_results, run
from tl_steer.experiments.preflight import require_runnable
from tl_steer.models import load_model

CHOSEN = pd.Series(
    {"vector": "v", "control": False, "operation": "add", "layers": "7", "hook": "resid_post",
     "multiplier": 0.2, "dose": 0.21}
)  # fmt: skip
PROJECTED = pd.Series({**CHOSEN, "operation": "project_out", "multiplier": np.nan})
HOSTILE = "<img src=x onerror=alert(1)>"


def numbers(text):
    """All numbers in a sentence."""
    return [float(each) for each in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


def phrases(text, *known):
    """Those of the known phrases that are in the text."""
    return [each for each in known if each in text]


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
        (0, 19, []), (0, 18, ["19 or more"]), (0, 2, ["19 or more"]), (1, 19, ["may be chance"]), (1, 59, []),
        (6, 6, ["may be chance"]),
    ],
)  # fmt: skip
def test_an_effect_is_compared_with_its_controls_by_p_value(as_far, controls, verdict):
    p, floor = (as_far + 1) / (controls + 1), 1 / (controls + 1)
    text = evidence.controls_finding(control_row(p_value=p, controls=controls), CHOSEN)
    expected = [7, 0.2, 0.21, 2, *[as_far] * (as_far > 0), controls, -0.41, 0.62, p]
    expected += [controls, floor, 19, 0.05] * (verdict == ["19 or more"])
    assert numbers(text) == pytest.approx(expected, rel=0.04)
    assert ("under none of" in text) == (as_far == 0)
    assert phrases(text, "19 or more", "may be chance") == verdict
    assert not re.search(r"farther|beyond|more than|q is", text)


@pytest.mark.parametrize(
    ("value", "name", "centre"),
    [("shift", "logit difference", "zero"), ("accuracy", "accuracy", "the controls' mean"),
     ("d_prime", "d′", "the controls' mean"), ("flipped", "answers that change", "zero")],
)  # fmt: skip
def test_accuracy_and_d_prime_are_compared_with_the_mean_of_the_controls(value, name, centre):
    text = evidence.controls_finding(control_row(value=value), CHOSEN)
    assert name in text
    assert f"as far from {centre}" in text


def test_without_controls_at_the_chosen_condition_there_are_no_numbers():
    for missing in (control_row(controls=0, p_value=np.nan), control_row(p_value=np.nan)):
        text = evidence.controls_finding(missing, CHOSEN)
        assert "no controls" in text
        assert numbers(text) == [7, 0.2, 0.21]  # where
    assert "no controls" in evidence.controls_finding(control_row(), CHOSEN.replace(0.2, -0.2))


def test_the_controls_table_marks_what_its_sentence_calls_significant():
    weak = control_row(multiplier=-0.2, p_value=0.1, effect=-0.5)
    table = tables.controls_table(pd.concat([control_row(), weak], ignore_index=True))
    assert table.marked == [True, False]
    assert table.rows[0] == ["add", "+0.20", "0.21", "+2.00 [+1.75, +2.25]", "−0.41 to +0.62", "19", "0.05"]
    assert "shift of the logit difference (nats)" in table.columns
    assert "cannot be below" not in table.note
    few = tables.controls_table(control_row(controls=4, p_value=0.2))
    assert few.marked == [False]
    assert "With 4 controls p cannot be below 0.2: 19 can reach 0.05" in few.note
    removed = control_row(operation="project_out", multiplier=np.nan, dose=np.nan)
    assert tables.controls_table(removed).rows[0][:3] == ["project out", "", "–"]


def slopes(*, slope=1.5, wrong=0.1, r_squared=0.9, control=None):
    row = {
        "vector": "v",
        "control": False,
        "layers": "7",
        "hook": "resid_post",
        "n": 80,
        "r_squared": r_squared,
    }
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
        ({"slope": -1.5, "wrong": 0.9}, [7, -1.5, -1.6, -1.4, 10, 5, 15, 80], []),
        ({"r_squared": 0.3}, [7, 1.5, 1.4, 1.6, 10, 5, 15, 80, 0.3], [BADLY]),
        ({"r_squared": np.nan}, [7, 1.5, 1.4, 1.6, 10, 5, 15, 80], []),
    ],
)
def test_slopes_have_intervals_controls_and_cautions(changes, expected, cautions):
    text = evidence.steerability_finding(slopes(**changes), CHOSEN)
    assert numbers(text) == expected
    assert phrases(text, UNSURE, DIVIDED, BADLY) == cautions


def cost(*, loss=0.05, usable=True, reason="", controls=()):
    row = CHOSEN.to_dict() | {"usable": usable, "reason": reason}
    row |= around(0.02, kl=0.12, loss_change=loss) | around(0.5, effect=2.0)
    random = [row | {"vector": f"random {k}", "control": True, "kl": kl} for k, kl in enumerate(controls)]
    return pd.DataFrame([row, *random])


def usable(*, count=2, reason="largest tried", sign=1):
    low, high = (0.1, 0.2) if count else (np.nan, np.nan)
    ends = {"smallest_multiplier": low, "largest_multiplier": high, "largest_dose": high}
    return pd.DataFrame([{"sign": sign, "usable": count, "reason": reason, **ends}])


def test_damage_has_intervals_controls_of_the_same_absolute_multiplier_and_the_usable_range():
    text = evidence.damage_finding(cost(controls=(0.3, 0.5)), usable(), CHOSEN)
    assert numbers(text) == [0.12, 0.1, 0.14, 0.3, 0.5, 0.05, 0.03, 0.07, 0.1, 0.2, 0.2]
    assert "Added" in text
    for loss, unsure in ((0.05, False), (0.01, True), (np.nan, True)):
        assert ("may be nothing" in evidence.damage_finding(cost(loss=loss), usable(), CHOSEN)) == unsure
    table = cost(controls=(0.3, 9.0))
    table.loc[2, "multiplier"] = 0.4
    for multiplier in (0.2, -0.2):  # a random control has no sign
        table.loc[1, "multiplier"] = multiplier
        assert "(random controls 0.30)" in evidence.damage_finding(table, usable(), CHOSEN)


@pytest.mark.parametrize(("count", "end"), [(1, "it is usable."), (0, "it is not usable: no effect")])
def test_a_projection_has_controls_and_is_usable_or_not(count, end):
    removed = cost(controls=(0.3,)).assign(operation="project_out", multiplier=np.nan)
    text = evidence.damage_finding(removed, usable(sign=0, count=count, reason="no effect"), PROJECTED)
    assert "(random controls 0.30)" in text
    assert f"Projected out, {end}" in text


@pytest.mark.parametrize(
    ("count", "reason", "words"),
    [(0, "no effect", "no effect"), (0, "damage first", "suffers"), (0, "collapse first", "falls apart"),
     (2, "damage", "suffers"), (2, "collapse", "falls apart"), (2, "no effect", "not clear"),
     (2, "largest tried", "no larger")],
)  # fmt: skip
def test_the_usable_range_ends_for_a_reason(count, reason, words):
    text = evidence.damage_finding(cost(), usable(count=count, reason=reason, sign=-1), CHOSEN)
    last = text[text.index("Subtracted") :]
    assert words in last
    assert ("no multiplier tried is usable" in last) == (count == 0)


def test_the_cost_table_has_every_condition_but_controls_and_the_reason():
    unusable = cost(usable=False, reason="damage").assign(multiplier=0.4)
    table = tables.cost_table(pd.concat([cost(controls=(0.3,)), unusable]), effect="change of d′")
    assert [row[:2] for row in table.rows] == [["+0.20", "usable"], ["+0.40", "the text suffers"]]
    assert table.rows[0][2:] == ["0.21", "+2.00 [+1.50, +2.50]", "0.12 [0.10, 0.14]", "+0.05 [+0.03, +0.07]"]
    assert table.marked == [True, False]
    assert "change of d′" in table.columns
    assert "the 1 control (too few for p ≤ 0.05)" in table.note
    many = tables.cost_table(cost(controls=[0.3] * 19), effect="change of d′").note
    assert "beyond that of the 19 controls, and the" in many


def texts(distinct, loss):
    """Two texts unsteered and two at each of two multipliers; values by condition."""
    table = pd.DataFrame(
        [("none", "", "none", 0.0), ("v", "7", "add", -0.3), ("v", "7", "add", 0.3)],
        columns=["vector", "layers", "operation", "multiplier"],
    ).assign(distinct_2=distinct, loss=loss)
    values = ["distinct_2", "loss"]
    return pd.concat([table.assign(**(table[values] + off)) for off in (-0.02, 0.02)], ignore_index=True)


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
    text = evidence.texts_finding(texts(distinct, loss))
    assert numbers(text) == expected
    assert ("collapsed" in text) == (min(distinct) < 0.45)
    assert "projected out" not in text
    removed = texts((0.9, 0.4, 0.8), MISSING).replace({"multiplier": {-0.3: np.nan}})
    assert "(layer 7, projected out)" in evidence.texts_finding(removed)


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
    text = evidence.agreement_finding(pd.DataFrame({"layer": [3, 7], **values}), 7)
    assert numbers(text) == expected
    assert phrases(text, "above", "do not determine") == verdict


def confounded(rows):
    columns = ["factor", "contrast", "cosine", "null_high", "differs", "balanced"]
    table = pd.DataFrame(rows, columns=columns).assign(layer=7)
    return table.assign(share=table["cosine"] ** 2)


ALONG = ("length", "per unit", 0.5, 0.2, True, True)
ACROSS = ("topic", "a − b", 0.1, 0.2, False, True)
SIDED = ("letter", "A − B", np.nan, np.nan, False, False)
ALL = ("all", "", 0.52, 0.3, True, False)
# Phrases of the finding
TOPIC, CHANCE, UNKNOWN, NO_FACTOR = "with topic", "may be chance", "cannot tell letter", "along none of"
TOGETHER, PROJECT, TINY_SHARE = "together", "project it out", "less than a hundredth"


@pytest.mark.parametrize(
    ("rows", "expected", "named", "words"),
    [
        ([ALONG, ACROSS, ALL], [7, 0.5], ["length"], [CHANCE, PROJECT]),
        ([ACROSS, ("all", "", 0.25, 0.3, False, True)], [7, 0.1], [], [TOPIC, NO_FACTOR]),
        # beyond chance, but tiny
        ([("length", "per unit", 0.05, 0.01, True, True)], [7, 0.05], ["length"], [CHANCE, TINY_SHARE]),
        # none alone, but together
        ([ACROSS, ("all", "", 0.52, 0.3, True, True)], [7, 0.1, 0.52], [], [TOPIC, NO_FACTOR, TOGETHER]),
        ([SIDED, ACROSS, ALL], [7, 0.1, 0.52], ["letter"], [TOPIC, UNKNOWN, NO_FACTOR, TOGETHER]),
        ([SIDED], [], ["letter"], [UNKNOWN]),  # no cosine
    ],
)
def test_confounds_name_the_factors_along_the_vector_or_not_distinguishable(rows, expected, named, words):
    text = evidence.confounds_finding(confounded(rows), 7)
    assert numbers(text) == expected
    assert phrases(text, "length", "letter", "all (") == named
    assert phrases(text, TOPIC, CHANCE, UNKNOWN, NO_FACTOR, TOGETHER, PROJECT, TINY_SHARE) == words


def test_the_confounds_table_has_dashes_where_there_is_no_direction():
    table = tables.confounds_table(confounded([ALONG, SIDED]))
    assert table.rows == [["length", "per unit", "+0.50", "0.25", "0.20"], ["letter", "A − B", "–", "–", "–"]]
    assert table.marked == [True, False]
    assert "one side alone" in table.note
    assert "one side alone" not in tables.confounds_table(confounded([ALONG])).note


def predicted(*p_values, n=30):
    columns = {"correlation": [-0.2, 0.8, np.nan], "p_value": [*p_values, np.nan], "n": [n, n, 0]}
    return pd.DataFrame({"measure": ["single", "split_half", "between"], **columns})


def test_a_prediction_names_the_first_measure_of_its_table():
    text = evidence.prediction_finding(predicted(0.9, 1 / 30))
    assert numbers(text) == [0.8, 0.033, 2, 30]
    assert text.startswith("The smallest p is split half")
    assert "overestimated" in text
    few = evidence.prediction_finding(predicted(0.1, 0.1, n=10))
    assert numbers(few) == [2, 0.8, 0.1, 2, 10, 0.1, 20, 0.05]
    assert "tie" in few
    for table in (predicted(0.9, 1 / 30), predicted(0.1, 0.1), predicted(0.3, 0.2)):
        assert [row[0] for row in tables.prediction_table(table).rows] == ["split half", "single"]
        assert "is split half" in evidence.prediction_finding(table)
    weak = evidence.prediction_finding(predicted(0.2, 0.9))
    assert weak.startswith("No measurable correlation. The smallest p is")
    assert numbers(evidence.prediction_finding(predicted(np.nan, np.nan))) == []


def detected(verdict, *, auc=(0.9, 0.9), shift=2.0, d_prime=(2.0, 1.0), criterion=-1.0, logits=True):
    """Two rows as `signal_detection` returns them: unsteered and steered; intervals of ±0.05."""
    values = pd.DataFrame({"auc": auc, "d_prime": d_prime, "criterion": [0.3, 0.3 + criterion]})
    values = values.join((values - values.iloc[0]).add_suffix("_change")).assign(shift=[0.0, shift])
    unsteered = CHOSEN.to_dict() | {"vector": "none", "operation": "none", "layers": "", "multiplier": 0.0}
    table = pd.DataFrame([unsteered, CHOSEN.to_dict()]).assign(**around(0.05, **values))
    table = table.assign(n_signal=60, n_noise=50, covered=True, change_covered=True, verdict=["", verdict])
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


ANSWERS = {"positive": 0, "negative": 1}


def finding(table, *, shifts=(1.0, 1.0), signal="positive", is_generated=False):
    kinds = Kinds("kind", "reviews", signal, ANSWERS, is_generated, has_noise=signal != "")
    return effect_finding(moved(*shifts), table, CHOSEN, kinds)


def verdict(table, **options):
    """The finding without the movement, and its verdicts."""
    text = finding(table, **options)
    sentence = text[text.index("). ") + 3 :]
    return sentence, phrases(sentence.replace(f"without a measurable {BIAS[2:]}", ""), *VERDICTS)


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
        ({"verdict": "sensitivity", "auc": (0.45, 0.1), "shift": 0.0}, [LOSS], []),  # at chance before
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
    assert [each for each in named if each in verdicts] == verdicts
    assert all(each in text for each in words)
    cannot_tell = table["verdict"].iloc[1] == "cannot tell"
    assert ("d′" in text) == (cannot_tell or not logits)
    before, after = table.to_dict("records")

    def values(*columns):
        return [after[f"{column}{end}"] for column in columns for end in ("", "_low", "_high")]

    shown = [*values("shift"), before["auc"], after["auc"], *values("auc_change")]
    shown = shown if logits else values("criterion_change", "d_prime_change")
    shown += values("d_prime_change") * cannot_tell
    assert numbers(text) == pytest.approx([110] * ("110" in text) + shown, abs=0.005)


@pytest.mark.parametrize(
    ("name", "shift", "opposite"), [("neither", 0.2, True), ("sensitivity", 0.2, True), ("bias", 0.2, False)]
)
def test_types_that_move_opposite_ways_are_no_shift_of_bias(name, shift, opposite):
    words = ["over both kinds", "do not move the same way"]
    assert phrases(verdict(detected(name, shift=shift))[0], *words) == [words[opposite]]


def test_an_undecided_verdict_has_its_reason_and_no_number():
    text, named = verdict(detected("cannot tell", logits=False), is_generated=True)
    assert named == ["cannot tell bias from sensitivity"]
    assert "too few of some kind" in text
    assert numbers(text) == [110]
    unread = detected("cannot tell", logits=False)
    unread[[name for name in unread if name.startswith("d_prime")]] = np.nan
    assert verdict(unread, is_generated=True)[1] == ["Too few"]
    assert verdict(detected("cannot tell"), signal="")[1] == ["cannot be distinguished"]


@pytest.mark.parametrize(
    ("shifts", "words"),
    [
        ((1.0, 1.0), "both kinds of reviews move toward “positive”"), ((1.0, -1.0), "its own right answer"),
        ((-1.0, 1.0), "its own wrong answer"), ((0.0, 0.0), "do not measurably move"),
        ((0.0, -1.0), "reviews of kind negative move away from “positive”, those of kind positive do not"),
    ],
)  # fmt: skip
def test_movement_is_reported_by_question_type_and_without_controls(shifts, words):
    text = finding(detected("bias"), shifts=shifts)
    assert words in text
    assert "control" not in text
    assert numbers(text)[3:9] == pytest.approx([shift + off for shift in shifts for off in (0, -0.1, 0.1)])


def test_the_detection_table_has_the_verdict_and_marks_what_is_not_covered():
    detection = pd.concat([detected("both"), detected("").iloc[1:]], ignore_index=True)
    detection.loc[2, ["vector", "control"]] = ["random 1", True]
    accuracy = detection.assign(accuracy=0.8, accuracy_low=0.7, accuracy_high=0.9)
    table = tables.detection_table(detection, accuracy)
    heads = [["unsteered", "", ""], ["v", "both", "+0.20"], ["1 control", "", "+0.20"]]
    assert [row[:3] for row in table.rows] == heads
    assert table.marked == [True, False, False]
    assert "†" not in str(table.rows) + table.note
    by_name = dict(zip(table.columns, table.rows[1], strict=True))
    assert by_name["AUC"] == "0.900 [0.850, 0.950]"
    assert by_name["change of AUC"] == "+0.000 [−0.050, +0.050]"
    assert by_name["change of d′"] == "−1.00 [−1.05, −0.95]"
    assert table.rows[2][4:7] == ["0.900", "+0.000", "1.00"]
    uncovered = detection.assign(change_covered=detection["vector"] != "v")
    marked = tables.detection_table(uncovered, accuracy)
    assert [text[-1:] == "†" for text in marked.rows[1]] == [False] * 8 + [True] * 2
    assert "not known to cover, and is not used for the verdict" in marked.note
    unscored = detection.assign(auc=np.nan, auc_change=np.nan)
    assert tables.detection_table(unscored, accuracy).rows[1][4:6] == ["–", "–"]


@pytest.fixture(scope="module")
def organism():
    return load_model("organism-honesty", device="cpu")


DAMAGE = 'data = "organism"'


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (ORGANISM.replace(DAMAGE, "data = 'nowhere.csv'"), FileNotFoundError, r"nowhere\.csv"),
        (ORGANISM.replace(DAMAGE, ""), ValueError, r"\[damage\] data: of the tokens .* unknown"),
        (ORGANISM.replace("[q", "limit = 3\n[q").replace("layers", "shuffled = 2\nlayers")
         + "[separation]\nfolds = 2", ValueError,
         r"\[sweep\] shuffled = 2 .* \[pairs\] has 3: give 4 or more, or shuffled = 0"),
        (ORGANISM, None, ""),
        (ORGANISM.replace(DAMAGE, "passages = 0"), None, ""),
    ],
)  # fmt: skip
def test_the_preflight_raises_what_would_fail_later_and_nothing_else(
    tmp_path, organism, text, error, message
):
    experiment = read_experiment(written(tmp_path, text))
    with pytest.raises(error, match=message) if error else nullcontext():
        require_runnable(experiment, organism)


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
    """The heading and all findings of a run's page."""
    html = (folder / "report.html").read_text("utf-8")
    return " ".join(re.findall('<h1>.*?</h1>|<span class="finding">.*?</span>', html, re.DOTALL))


@pytest.mark.integration
def test_a_planted_lie_reverses_the_answers_with_every_section_of_evidence(lying):
    html, text = (lying / "report.html").read_text("utf-8"), findings_of(lying)
    assert read_results(lying).chosen["multiplier"] < 0
    assert "This reverses the answers, without a measurable shift of bias" in text
    assert "is a shift of bias" not in text
    assert "<h1>Reversed answers: each kind of claims moves toward its own wrong answer" in html
    # no prediction (three layers are too few), no texts
    expected = ["controls", "steerability", "damage", "agreement", "confounds", "separation"]
    assert re.findall('class="section" id="(.*?)"', html)[4:10] == expected
    for start, end in (("controls", "steerability"), ("damage", "agreement")):
        part = html[html.index(f'section" id="{start}">') : html.index(f'section" id="{end}">')]
        # headings, and each multiplier at the chosen layer
        assert part[part.index("<table") :].count("<tr") == 1 + 3
    assert HOSTILE not in html
    assert "&lt;img src=x" in html


@pytest.mark.integration
def test_damage_is_measured_with_random_controls_at_the_chosen_layer(lying):
    results = read_results(lying)
    questions, damage, layer = results.questions, results.damage, results.chosen["layers"]
    swept = questions[(questions["layers"] == layer) & (questions["vector"] == "random 1")]
    damaged = damage[damage["vector"] == "random 1"]
    assert set(damaged["layers"]) == {layer}
    assert set(damaged["multiplier"]) == set(swept["multiplier"])
    types = [set(table[table["control"]]["vector"].str.split().str[0]) for table in (questions, damage)]
    assert types == [{"random", "shuffled", "orthogonal"}, {"random"}]


@pytest.mark.integration
def test_a_planted_bias_is_a_bias_in_both_directions_and_its_cost_has_the_numbers_of_the_table(leaning):
    text, results = findings_of(leaning), read_results(leaning)
    assert "<h1>A shift of bias: both kinds of claims move" in text
    assert text.count("is a shift of bias") == 2
    assert not re.search("reverses|is an improvement", text)
    rows = results.cost[~results.cost["control"].astype(bool)]
    row = rows[rows["multiplier"] == results.chosen["multiplier"]].iloc[0]
    text = evidence.damage_finding(results.cost, results.usable, results.chosen)
    assert numbers(text)[:3] == [round(row[each], 2) for each in ("kl", "kl_low", "kl_high")]
    damage = results.damage[results.damage["vector"] == row["vector"]]
    damage = damage[damage["multiplier"] == row["multiplier"]]
    assert row["kl"] == pytest.approx(damage["kl"].mean())
    assert len(damage) == 12


def test_texts_that_do_not_fit_lose_their_likelihood_and_nothing_else(monkeypatch, caplog):
    texts = pd.DataFrame({"text": ["a"]})
    results = Mock(side_effect=[ValueError("a text does not fit"), texts])
    monkeypatch.setattr(measurements, "text_damage", results)
    assert measurements.text_damage_table(object(), texts, progress=False) is texts
    assert len(results.call_args.args) == 1  # without the model
    assert "a text does not fit" in caplog.text
