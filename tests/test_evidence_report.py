"""The report's evidence: numbers and verdicts of findings, with and without certainty or values."""

import re
from importlib import resources

import numpy as np
import pandas as pd
import pytest

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

from .conftest import assert_raises

CHOSEN = pd.Series(
    {"vector": "v", "control": False, "operation": "add", "layers": "7", "hook": "resid_post",
     "multiplier": 0.2, "dose": 0.21}
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>"


def numbers(text):
    """All numbers of a sentence, as printed."""
    return [float(each) for each in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("−", "-"))]


# Controls


def beside_controls(*, p_value=0.05, controls=19, effect=2.0, value="shift", **changes):
    """One row as `against_controls` returns it."""
    row = CHOSEN.to_dict() | {
        "n": 60, "value": value, "effect": effect, "effect_low": effect - 0.25, "effect_high": effect + 0.25,
        "controls": controls, "null_low": -0.41, "null_high": 0.62, "null_mean": 0.03, "p_value": p_value,
        "q_value": 0.04,
    }  # fmt: skip
    return pd.DataFrame([row | changes])


@pytest.mark.parametrize(
    ("as_far", "controls", "verdict"),
    [(0, 19, ""), (0, 3, "too few"), (1, 19, "may be chance"), (7, 19, "may be chance"),
     (1, 59, "rarely by chance")],
)  # fmt: skip
def test_an_effect_stands_beside_its_controls_and_its_p(as_far, controls, verdict):
    p, floor = (as_far + 1) / (controls + 1), 1 / (controls + 1)
    text = controls_finding(beside_controls(p_value=p, controls=controls), CHOSEN)
    expected = [controls, -0.41, 0.62, p, controls, floor, 1, 0.05, 1]
    assert numbers(text) == pytest.approx([2, 1.75, 2.25, *[as_far] * (as_far > 0), *expected], rel=0.03)
    assert ("under none of" in text) == (as_far == 0)
    verdicts = ("too few", "may be chance", "rarely by chance")
    assert [each for each in verdicts if each in text] == ([verdict] if verdict else [])


@pytest.mark.parametrize(
    ("value", "name", "centre"),
    [("shift", "logit difference", "zero"), ("accuracy", "accuracy", "controls' mean"),
     ("d_prime", "d′", "controls' mean"), ("flipped", "answers that change", "zero")],
)  # fmt: skip
def test_accuracy_and_d_prime_are_compared_with_the_mean_of_the_controls(value, name, centre):
    text = controls_finding(beside_controls(value=value), CHOSEN)
    assert name in text
    assert f"as far from {'the ' * (centre != 'zero')}{centre}" in text


def test_without_controls_at_the_chosen_condition_there_are_no_numbers():
    for missing in (beside_controls(controls=0, p_value=np.nan), beside_controls(p_value=np.nan)):
        text = controls_finding(missing, CHOSEN)
        assert "no controls" in text
        assert numbers(text) == []


def test_the_controls_table_has_each_condition_and_marks_those_with_a_small_q():
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
    row = {"vector": "v", "control": False, "layers": "7", "n": 80, "slope": slope, "slope_low": slope - half,
           "slope_high": slope + half, "wrong": wrong, "wrong_low": wrong - 0.05, "wrong_high": wrong + 0.05,
           "r_squared": r_squared}  # fmt: skip
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
def test_slopes_have_their_interval_their_controls_and_cautions(changes, expected, cautions):
    text = steerability_finding(slopes(**changes), "7", "v")
    assert numbers(text) == expected
    assert [each for each in (UNSURE, DIVIDED, BADLY) if each in text] == cautions


# Damage


def cost(*, loss=0.05, half=0.02, usable=True, why="", controls=()):
    row = CHOSEN.to_dict() | {
        "kl": 0.12, "kl_low": 0.1, "kl_high": 0.14, "loss_change": loss, "loss_change_low": loss - half,
        "loss_change_high": loss + half, "effect": 2.0, "effect_low": 1.5, "effect_high": 2.5,
        "usable": usable, "why": why,
    }  # fmt: skip
    beside = [row | {"vector": f"random {k}", "control": True, "kl": kl} for k, kl in enumerate(controls)]
    return pd.DataFrame([row, *beside])


def usable(*, cells=2, why="largest tried", sign=1, ends=(0.1, 0.2)):
    low, high = ends if cells else (np.nan, np.nan)
    return pd.DataFrame(
        [{"sign": sign, "usable": cells, "smallest_multiplier": low, "largest_multiplier": high,
          "largest_dose": high, "why": why}]
    )  # fmt: skip


def test_damage_has_its_interval_its_controls_and_the_usable_range():
    text = damage_finding(cost(controls=(0.3, 0.5)), usable(), CHOSEN)
    assert numbers(text) == [0.12, 0.1, 0.14, 0.3, 0.5, 0.05, 0.03, 0.07, 0.1, 0.2, 0.2]
    assert "Added" in text
    for loss, unsure in ((0.05, False), (0.01, True), (np.nan, True)):
        assert ("may be nothing" in damage_finding(cost(loss=loss), usable(), CHOSEN)) == unsure


def test_only_controls_with_the_same_absolute_multiplier_are_compared():
    table = cost(controls=(0.3, 9.0))
    table.loc[2, "multiplier"] = 0.4
    for multiplier in (0.2, -0.2):  # a random control has no sign
        table.loc[1, "multiplier"] = multiplier
        assert "(random controls 0.30)" in damage_finding(table, usable(), CHOSEN)


def test_projections_have_controls_and_a_range_too():
    removed = cost(controls=(0.3,)).assign(operation="project_out", multiplier=np.nan)
    chosen = CHOSEN.copy()
    chosen["operation"], chosen["multiplier"] = "project_out", np.nan
    text = damage_finding(removed, usable(sign=0, cells=1, ends=(np.nan, np.nan)), chosen)
    assert "(random controls 0.30)" in text
    assert text.endswith("Projected out, it is usable.")
    text = damage_finding(removed, usable(sign=0, cells=0, why="no effect"), chosen)
    assert "Projected out, it is not usable: no effect" in text


@pytest.mark.parametrize(
    ("cells", "why", "words"),
    [(0, "no effect", "no effect"), (0, "damage first", "suffers"), (0, "collapse first", "falls apart"),
     (2, "damage", "suffers"), (2, "collapse", "falls apart"), (2, "no effect", "not clear"),
     (2, "largest tried", "no larger")],
)  # fmt: skip
def test_the_usable_range_ends_for_a_reason(cells, why, words):
    text = damage_finding(cost(), usable(cells=cells, why=why, sign=-1), CHOSEN)
    last = text[text.index("Subtracted") :]
    assert words in last
    assert ("no multiplier tried is usable" in last) == (cells == 0)


def test_the_cost_table_has_every_condition_but_controls_and_the_reason():
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
    """Two texts unsteered and two at each of two multipliers; values by condition."""
    cells = [("none", "", "none", 0.0), ("v", "7", "add", -0.3), ("v", "7", "add", 0.3)]
    return pd.DataFrame(
        [
            {"vector": vector, "layers": layers, "operation": operation, "multiplier": multiplier,
             "distinct_2": distinct[row] + off, "loss": loss[row] + off}
            for row, (vector, layers, operation, multiplier) in enumerate(cells)
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


def test_the_worst_texts_of_a_projection_have_no_multiplier():
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
def test_agreement_stands_beside_chance(split_half, null, cone, expected, verdict):
    values = {"pairs": 72, "split_half": split_half, "split_half_null": null, "single": 0.5, "cone": cone}
    text = agreement_finding(pd.DataFrame([{"layer": layer, **values} for layer in (3, 7)]), 7)
    assert numbers(text) == expected
    assert [each for each in ("above", "do not determine") if each in text] == verdict


def confounded(rows):
    columns = ["factor", "contrast", "cosine", "null_high", "differs", "balanced"]
    table = pd.DataFrame(rows, columns=columns).assign(layer=7)
    return table.assign(share=table["cosine"] ** 2)


ALONG = ("length", "per unit", 0.5, 0.2, True, True)
BESIDE = ("topic", "a − b", 0.1, 0.2, False, True)
SIDED = ("letter", "A − B", np.nan, np.nan, False, False)
ALL = ("all", "", 0.52, 0.3, True, False)


@pytest.mark.parametrize(
    ("rows", "expected", "named"),
    [
        ([ALONG, BESIDE, ALL], [7, 0.5], ["length"]),
        ([BESIDE, ALL], [7], []),
        ([("length", "per unit", 0.05, 0.01, True, True)], [7], []),  # beyond chance, but tiny
        ([SIDED, BESIDE, ALL], [7], ["letter"]),
        ([SIDED], [], ["letter"]),  # no cosine
    ],
)
def test_confounds_name_the_factors_that_the_vector_lies_along_or_cannot_be_told_from(rows, expected, named):
    text = confounds_finding(confounded(rows), 7)
    assert numbers(text) == expected
    assert [each for each in ("length", "topic", "letter", "all (") if each in text] == named
    assert ("may be chance" in text) == (named == ["length"])
    assert ("cannot tell letter" in text) == (named == ["letter"])
    assert ("along none of" in text) == (7 in expected and named != ["length"])


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


def test_a_prediction_has_its_p_and_the_number_of_measures():
    text = prediction_finding(predicted(1 / 30))
    assert numbers(text) == [0.8, 0.033, 2, 30, 0.033]
    assert "split half" in text
    assert "flattered" in text
    assert prediction_finding(predicted(0.2)).startswith("None does so measurably; the nearest is split half")
    assert numbers(prediction_finding(predicted(0.2).assign(p_value=np.nan))) == []
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


VERDICTS = ["reverses the answers", "loss of sensitivity", "is an improvement", "is a shift of bias"]


def verdict(table):
    """The finding, and its verdict."""
    shifts, detection = effectiveness(table, by="kind"), signal_detection(table)
    text = effect_finding(shifts, detection, CHOSEN, factor="kind", signal=["positive"], written=False)
    return text, [each for each in VERDICTS if each in text]


def test_a_reversal_has_the_numbers_of_its_table():
    table = answers(0.8, 0.2)
    text, verdicts = verdict(table)
    assert verdicts == ["reverses the answers"]
    assert "without a measurable shift of bias" in text
    row = signal_detection(table).set_index("vector").loc["v"]
    shown = re.search(r"d′ is (\S+) \[(\S+), (\S+)\]; d′ changes by (\S+) \[(\S+), (\S+)\]", text)
    names = ["", "_low", "_high", "_change", "_change_low", "_change_high"]
    expected = [row[f"d_prime{name}"] for name in names]
    assert numbers(" ".join(shown.groups())) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("before", "after", "toward", "expected"),
    [
        (0.8, 0.2, 10, "reverses the answers"),
        (0.8, 0.5, 0, "loss of sensitivity"),  # either side may be chance: no reversal
        (0.8, 0.48, 0, "loss of sensitivity"),
        (0.45, 0.05, 0, "loss of sensitivity"),
        (0.5, 0.9, 0, "is an improvement"),
    ],
)
def test_a_reversal_needs_measurable_sensitivity_before_and_after(before, after, toward, expected):
    text, verdicts = verdict(answers(before, after, toward=toward))
    assert verdicts == [expected]
    assert ("along with a shift of bias" in text) == (toward > 0)
    assert ("“positive” is said more often" in text) == (toward > 0)


@pytest.mark.parametrize(
    ("moves", "expected", "unsure"), [(0.0, [2.0, 1], False), (1.5, [3.0], True), (-1.5, [3.0], True)]
)
def test_kinds_moved_apart_are_compared_with_how_far_controls_move_them_apart(moves, expected, unsure):
    text, _ = verdict(answers(0.5, 0.9, control_moves=moves))
    assert "1 control vector" in text
    assert set(expected) <= set(numbers(text))
    assert ("need not be the vector's" in text) == unsure


def test_controls_without_readable_answers_are_not_compared_with():
    table = answers(0.5, 0.9)
    table.loc[table["vector"] == "random 1", "logit_difference"] = np.nan
    text, _ = verdict(table)
    assert "too few answers can be read" in text
    assert "nan" not in text


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
        (ORGANISM.replace("organism-honesty", "gpt2").replace('"organism"\n[q', '"csv"\n[q'),
         r"\[questions\] kind = \"organism\" .* use one of organism-honesty"),
        (ORGANISM + "positions = 'last_token()'", r"\[damage\] positions = 'last_token\(\)' leaves"),
        (ORGANISM + "max_tokens = 1", r"\[damage\] max_tokens = 1: give 2 or more"),
        (ORGANISM + "passages = -1", r"\[damage\] passages = -1: give 0 or more"),
        (ORGANISM.replace("layers", "orthogonal = -1\nlayers"), r"\[sweep\] orthogonal = -1: give 0"),
        (WORDS + "shuffled = 2", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
        (WORDS + "orthogonal = 1", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
        (WORDS + "[damage]\npassages = 3", r"\[damage\] adds one vector to every token"),
        (WORDS + "measure = 'generate'\nchoices = 'sampled'", r"choices = 'sampled' draws .* not have"),
    ],
)  # fmt: skip
def test_a_file_that_asks_for_what_cannot_be_is_refused_when_it_is_read(tmp_path, text, message):
    assert_raises(message, read_experiment, written(tmp_path, text))


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
def test_what_would_break_later_is_told_before_the_model_works(tmp_path, organism, text, error, message):
    assert_raises(message, require_runnable, read_experiment(written(tmp_path, text)), organism, error=error)


def test_what_fits_is_not_refused(tmp_path, organism):
    require_runnable(read_experiment(written(tmp_path, ORGANISM)), organism)
    no_damage = ORGANISM.replace('data = "organism"', "passages = 0")
    require_runnable(read_experiment(written(tmp_path, no_damage)), organism)


# End to end, on model organisms with a planted behaviour


def organism_run(name, folder, multipliers):
    """An experiment of the package with fewer controls and multipliers."""
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
def test_a_planted_lie_is_found_to_reverse_the_answers_and_no_bias(lying):
    text = findings_of(lying)
    assert Results.load(lying).chosen["multiplier"] < 0
    assert "This reverses the answers, without a measurable shift of bias" in text
    assert "is a shift of bias" not in text


@pytest.mark.integration
def test_a_planted_bias_is_found_to_be_one_in_both_directions(leaning):
    text = findings_of(leaning)
    assert text.count("is a shift of bias") == 2
    assert "reverses" not in text
    assert "is an improvement" not in text


@pytest.mark.integration
def test_every_section_of_evidence_is_there_with_its_figures_and_tables(lying):
    html = (lying / "report.html").read_text("utf-8")
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
def test_the_sentence_of_the_report_has_the_numbers_of_its_table(leaning):
    results = Results.load(leaning)
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

    monkeypatch.setattr(asking, "text_damage", measured)
    table = asking.text_damage_table(object(), pd.DataFrame({"text": ["a"]}), progress=False)
    assert table["loss"].isna().all()
    assert "a text does not fit" in caplog.text
