"""Experiment files, findings from synthetic tables, preflight, and the contents of run folders."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch

from tl_steer import experiments, plots
from tl_steer._report import findings
from tl_steer._report.results import best_choice
from tl_steer.activations import PairedActivations
from tl_steer.directions import SteeringVectors, mean_difference
from tl_steer.errors import UnfinishedRunError
from tl_steer.evaluation import choose, effectiveness
from tl_steer.evaluation._effectiveness import answer_shifts
from tl_steer.experiments import (
    measurements,
    own_experiments,
    read_experiment,
    read_results,
    run,
    write_report,
)
from tl_steer.experiments.materials import (
    factor_of,
    files_of,
    in_unit,
    pairs_of,
    prompts_of,
    questions_of,
    weighted,
)
from tl_steer.experiments.preflight import require_runnable
from tl_steer.experiments.run_folder import files_parts, is_finished
from tl_steer.models import ChatFormat
from tl_steer.prompts import read_claims
from tl_steer.sweeps.plans import digest
from tl_steer.sweeps.sweep_table import FIXED, question_table

from .conftest import assert_raises
from .sweep_tables import condition, table_of, unsteered
from .test_evidence_report import ORGANISM, numbers, written
from .test_run_resume import FILES, STEPS, TABLES
from .tiny_model import make_model, word_tokenizer

SMALLEST = 'title = "small"\n[pairs]\nkind = "csv"\n'
QUESTIONS = '[questions]\nkind = "sentiment"\n[sweep]\nmultipliers = [-0.2, 0.2]\n'
SWEEP = SMALLEST + QUESTIONS
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

HONESTY = SWEEP.replace(SMALLEST, SMALLEST.replace('"csv"', '"honesty"\nlimit = 12'))
TRAINING = HONESTY.replace('"sentiment"', '"claims"\ntraining = true')
GENERATED = SWEEP + "measure = 'generate'\n"
MODEL = SMALLEST + "[model]\n"
OTHER_MODEL = ORGANISM.replace("organism-honesty", "gpt2")
TEXT = SMALLEST + "[text]\nprompts = ['a']\nlayers = [1]\n"
OWN = SWEEP.replace('"sentiment"', '"csv"\ndata = "questions.csv"')
OWN_ROWS = """prompt,choice_0,choice_1,answer,group,style,topic
Is it A?, yes, no,0,1,formal,work
Is it B?, yes, no,0,1,formal,home
Is it C?, yes, no,1,2,casual,work
Is it D?, yes, no,no,3,casual,home
"""
DIRECTIONS = SMALLEST + "[directions]\nmethod = 'mean_difference'\n"


@pytest.fixture
def read(tmp_path):
    """Write an experiment file and read it."""
    return lambda text: read_experiment(written(tmp_path, text))


@pytest.fixture
def read_own(tmp_path, read):
    """Write an experiment file with pairs "good …" and "bad …" in more columns, and read it."""

    def make(columns="", values="", *, text=SMALLEST, n=12):
        rows = "".join(f"good {row},bad {row}{values}\n" for row in range(n))
        (tmp_path / "own.csv").write_text(f"positive,negative{columns}\n{rows}")
        return read(text.replace("[pairs]\n", "[pairs]\ndata = 'own.csv'\n"))

    return make


@pytest.fixture
def read_questions(tmp_path, read):
    """Write an experiment file and its questions, with changes to either, and read it."""

    def make(extra="", rows=OWN_ROWS):
        (tmp_path / "questions.csv").write_text(rows)
        return read(OWN.replace('questions.csv"\n', f'questions.csv"\n{extra}\n'))

    return make


def test_defaults_of_omitted_tables_and_keys(read, tmp_path):
    experiment = read(SMALLEST)
    assert experiment.pairs.data == "sentiment_pairs"
    assert (experiment.directions.method, experiment.directions.unit) == ("mean_difference", "dose")
    assert (experiment.capture.layers, experiment.questions, experiment.text) == ("all", None, None)
    assert experiment.folder == tmp_path
    assert read(SWEEP).sweep.score == "shift"
    assert read(GENERATED).sweep.score == "accuracy"


def test_every_bundled_experiment_is_valid():
    assert {"demo", "honesty"} <= set(own_experiments())
    assert all(read_experiment(name).title for name in own_experiments())


def test_numbers_and_lists_are_converted_to_the_types_of_their_keys(read):
    text = SWEEP.replace("[-0.2, 0.2]", "[-1, 2]") + "layers = [3, [17, 31]]\n"
    text += "[directions]\nmethod = 'principal_component'\nweights = { 17 = 1, -1 = -0.5 }\n"
    experiment = read(text + "component = { 1 = 1, 2 = 0.5 }")
    sweep, directions = experiment.sweep, experiment.directions
    assert (sweep.multipliers, sweep.layers) == ((-1.0, 2.0), (3, (17, 31)))
    assert (directions.weights, directions.components) == ({17: 1.0, -1: -0.5}, (1, 2))
    assert {type(number) for number in (*sweep.multipliers, *directions.weights.values())} == {float}


@pytest.mark.parametrize("negative", ["Hate", None])
def test_one_or_two_prompts_are_enough_for_an_activation_addition(read, negative):
    experiment = read(WORDS if negative else WORDS.replace('negative = "Hate"\n', ""))
    assert experiment.has_prompts
    assert (experiment.pairs.negative, experiment.pairs.hook) == (negative, "resid_pre")
    assert (experiment.directions.method, experiment.directions.unit) == ("activation_addition", "length")


FILE_ERRORS = [
    # keys and tables
    (SWEEP.replace("iers", "ier"), r"mine.toml: \[sweep\] has no key 'multiplier'; did .* 'multipliers'\?"),
    ("source = 'a'\n" + SMALLEST, "mine.toml: the file has no key 'source'"),
    (SMALLEST + "[capture]\nxyz = 1", r"\[capture\] has no key 'xyz'; it may have positions, hook, layers"),
    (SMALLEST + "style = 'words'", r"\[pairs\] has no key 'style'"),
    (SMALLEST.replace("csv", "cvs"), r"\[pairs\] kind = 'cvs': expected 'csv' or 'honesty' or .*\. Did"),
    ("title = 'a'\n[pairs]\ndata = 'x'", r"\[pairs\] the key 'kind' is missing: expected 'csv' or"),
    ("title = 'a'", r"mine.toml: the key 'pairs' is missing"),
    ("title = 'a'\npairs = 3", r"pairs = 3: expected a table, \[pairs\]"),
    ("title = ", r"mine.toml is not a TOML file"),
    # types and ranges
    (SWEEP.replace("[-0.2, 0.2]", "0.2"), r"\[sweep\] multipliers = 0.2: expected a list"),
    (SWEEP.replace("[-0.2, 0.2]", "[]"), r"\[sweep\] multipliers = \[\]: expected at least 1"),
    (SWEEP.replace("[-0.2, 0.2]", "[0, 1]"), r"\[sweep\] multipliers = \[0, 1\]: .*none of them 0"),
    (SWEEP.replace("-0.2", "0.2"), r"\[sweep\] multipliers = \[0.2, 0.2\]: expected each once"),
    (SWEEP + "controls = true", r"\[sweep\] controls = True: expected a whole number"),
    (SWEEP + "controls = -1", r"\[sweep\] controls = -1: expected 0 or more"),
    (SWEEP + "layers = 'al'", r"\[sweep\] layers = 'al': expected .* Did you mean 'all'\?"),
    (SWEEP + "layers = [1.5]", r"\[sweep\] layers\[0\] = 1.5: expected a whole number"),
    (SWEEP + "positions = 'last()'", r"\[sweep\] positions = 'last\(\)': .* cannot be read"),
    (SWEEP + "operations = ['ad']", r"\[sweep\] operations\[0\] = 'ad': expected 'add' or 'proj"),
    (TEXT.replace("['a']", "['a', ' ']"), r"\[text\] prompts\[1\] = ' ': expected some text"),
    (TEXT + "repetition_penalty = 0", r"\[text\] repetition_penalty=0.0: expected a number above 0"),
    (DIRECTIONS + "weights = { a = 1 }", r"\[directions\] weights\['a'\]: expected a whole .* as key"),
    (DIRECTIONS + "weights = { 3 = 1, 4 = 0 }", r"\[directions\] weights = .*: .*none of them 0"),
    (MODEL + "processing = { fold = true }", r"\[model\] processing\['fold'\]: expected 'fold_ln', .* key"),
    (MODEL + "template_variables = { a = [1] }", r"\[model\] .*\['a'\] = \[1\]: expected true or false or"),
    (MODEL + "processing = 3", r"processing = 3: expected true or false or a table"),
    (SMALLEST + "[separation]\nfolds = 1", r"\[separation\] folds = 1: expected 2 or more"),
    # contradictions in a table
    (TRAINING.replace("claims", "sentiment"), r"training = true asks the claims of .*: use kind"),
    (TRAINING.replace("true", "true\ndata = 'a'"), r"training = true asks the claims of .*without data"),
    (SWEEP.replace('"sentiment"', '"sentiment"\nwording = "study"'), r"wording = \"study\" is for kind"),
    (TEXT.replace("prompts = ['a']", ""), r"\[text\] give either prompts"),
    (GENERATED + "score = 'shift'", r"\[sweep\] score = 'shift' needs logits: use 'accuracy'"),
    (SWEEP + "temperature = 0.7", r"\[sweep\] temperature, top_p, .* are for generated text"),
    (GENERATED + "draws = 3", r"\[sweep\] draws=3, temperature=0.0: expected one"),
    (GENERATED + "choices = 'sampled'", r"choices = 'sampled' needs probabilities"),
    (ORGANISM + "positions = 'last_token()'", r"\[damage\] positions = 'last_token\(\)' leaves"),
    (WORDS.replace("Love", "").replace("Hate", ""), r"\[pairs\] positive is empty, and negative is"),
    (SWEEP.replace("sentiment", "csv"), r"\[questions\] kind = \"csv\" needs data"),
    (SWEEP.replace('"sentiment"', '"sentiment"\nchat = true'), r"chat and factor are for kind = \"csv\""),
    (SWEEP.replace('"sentiment"', '"sentiment"\nfactor = "kind"'), r"chat and factor are for kind = \"csv\""),
    (SMALLEST + "system_negative = 'Be rude.'", r"\[pairs\] system_positive and .* add chat = true"),
    # contradictions between tables
    (TRAINING.replace("honesty", "csv"), r"training = true .*not \"csv\""),
    (SMALLEST + "[questions]\nkind = 'claims'", r"\[questions\] and \[sweep\] belong together"),
    (TEXT.replace("layers = [1]", ""), r"\[text\] layers must be a list"),
    (OTHER_MODEL, r"\[pairs\] kind = \"organism\" .* 'gpt2' does not"),
    (OTHER_MODEL.replace('"organism"', '"csv"', 1), r"\[questions\] kind = \"organism\" .* one of organism-"),
    (SMALLEST + "[directions]\nmethod = 'activation_addition'", r"kind = \"prompts\" and .* go together"),
    (WORDS + "[directions]\nmethod = 'lda_direction'", r"\[directions\] .* together: give both, or neither"),
    (WORDS + "[capture]\nlayers = [1]", r"\[capture\] and \[separation\] are about pairs"),
    (WORDS + "[damage]\npassages = 3", r"\[damage\] adds one vector to every token"),
    (WORDS + QUESTIONS + "shuffled = 2", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
    (WORDS + "operations = ['project_out']", r"\[text\] operations: .* cannot be projected out"),
    (WORDS[: WORDS.index("[text]")], r"kind = \"prompts\" needs \[text\], or \[questions\]"),
    (SWEEP + "shuffled = 2\n[directions]\nmethod = 'principal_component'", r"\[sweep\] shuffled: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS)
def test_errors_of_a_file_name_file_table_and_key(tmp_path, text, message):
    assert_raises(message, read_experiment, written(tmp_path, text))


def test_a_missing_file_is_an_error_with_the_names_of_bundled_experiments():
    message = r"neither a file nor one of .*demo, .*honesty, "
    assert_raises(message, read_experiment, "nowhere.toml", error=FileNotFoundError)


def separations(accuracies, *, null_max=0.6, p_corrected=None):
    """A table as `separation` makes it, with intervals of ±0.08."""
    table = pd.DataFrame({"paired_accuracy": accuracies}).rename_axis("layer").reset_index()
    accuracy = table["paired_accuracy"]
    low, high = accuracy - 0.08, (accuracy + 0.08).clip(upper=1)
    p_corrected = np.where(accuracy > null_max, 0.01, 0.3) if p_corrected is None else p_corrected
    table = table.assign(paired_accuracy_low=low, paired_accuracy_high=high, p_corrected=p_corrected)
    return table.assign(null_max=null_max, pairs=100, folds=5)


@pytest.mark.parametrize(
    ("accuracies", "start", "expected"),
    [
        ([0.5, 0.62, 0.9, 0.95, 0.5, 0.8], "Held-out pairs separate",
         [4, 6, 1, 3, 5, 0.05, 0.95, 0.87, 1, 3, 0.6, 5, 100, 5]),
        ([0.95, 0.5, 0.95, 0.95], "Held-out pairs separate",
         [3, 4, 0, 2, 3, 0.05, 3, 0.95, 0.87, 1, 0, 0.6, 5, 100, 5]),
        ([0.48, 0.6, 0.5], "The pairs are not shown to separate",
         [3, 0.3, 0.6, 0.52, 0.68, 1, 0.6, 5, 100, 5]),
    ],
)  # fmt: skip
def test_separation_counts_the_layers_that_the_figure_counts(accuracies, start, expected):
    table = separations(accuracies)
    text = findings.separation_finding(table)
    assert text.startswith(start)
    assert numbers(text) == pytest.approx(expected)
    ties = accuracies.count(max(accuracies))
    assert (f"{ties} layers tie for the highest" in text) == (ties > 1)
    unused = dict.fromkeys(["auc", "d_prime", "null_low", "null_high", "null_mean", "p_value"], 0.5)
    drawn = table.assign(**unused, method="m")
    count = (table["p_corrected"] <= 0.05).sum()
    assert f" {count} of {len(table)} layers" in plots.separation(drawn).layout.title.text


@pytest.mark.parametrize(
    ("accuracies", "p_corrected", "phrase", "expected"),
    [
        ([0.5, 0.95], 1 / 11, "19 shuffles or more are needed", [0.95, 0.87, 1, 1, 100, 5, 0.05, 19]),
        ([0.9], np.nan, "no shuffled labels were run", [0.9, 0.82, 0.98, 0, 100, 5]),
    ],
)
def test_separation_with_few_or_no_shuffles_says_so(accuracies, p_corrected, phrase, expected):
    text = findings.separation_finding(separations(accuracies, null_max=np.nan, p_corrected=p_corrected))
    assert phrase in text
    assert numbers(text) == pytest.approx(expected)


def swept(effect, n=40):
    """A sweep's table of one layer, with `effect` added to logit differences; 2 of 3 are right unsteered."""
    rng, rows = np.random.default_rng(0), np.arange(2 * n)
    answers = rows // n
    kinds, splits = np.array(["positive", "negative"]), np.array(["choose", "report"])
    columns = {"kind": kinds[answers], "split": splits[rows // 3 % 2]}
    right = np.where(rows % 3 < 2, 1.0, -1.0)
    before = np.where(answers == 0, 1.0, -1.0) * right * rng.uniform(0.5, 1.5, 2 * n)
    conditions = [unsteered(answers=answers, logits=before, **columns)]
    for multiplier in (-0.2, 0.2):
        for vector, change in (("mean_difference", effect), ("random 1", 0.0)):
            logits = before + np.sign(multiplier) * change + rng.normal(0, 0.1, 2 * n)
            columns |= {"vector": vector, "layers": "7", "multiplier": multiplier, "norm": 1.05}
            conditions.append(condition(answers=answers, logits=logits, **columns))
    return table_of(*conditions)


def projected(table):
    """The table with a projection in place of each addition of a positive multiplier."""
    table = table[table["multiplier"] >= 0].copy()
    columns = ["operation", "multiplier", "dose"]
    table.loc[table["operation"] == "add", columns] = "project_out", np.nan, np.nan
    return table


def both_operations():
    """A sweep's table where adding (layer 7) beats projecting (layer 3), which is listed first."""
    table, weaker = swept(1.0), projected(swept(0.3)).replace({"layers": {"7": "3"}})
    return pd.concat([weaker, table[table["operation"] != "none"]], ignore_index=True)


def test_the_best_operation_is_chosen_on_the_choosing_half_whichever_is_listed_first():
    choices = choose(both_operations(), on="choose", report="report", value="shift")
    assert list(choices["operation"]) == ["project_out"] * 2 + ["add"] * 2
    oracle = max(choices[choices["split"] == "choose"].to_dict("records"), key=lambda row: row["value"])
    for split in ("choose", "report"):
        best = best_choice(choices, split=split)[["operation", "split", "multiplier"]]
        assert list(best) == ["add", split, oracle["multiplier"]]
    assert oracle["operation"] == "add"


def as_texts(table, *, unreadable=lambda rows: rows["choice"].isna()):
    """The table as if read from texts: no logits, and no choice where `unreadable` is true."""
    rows = table.assign(logit_difference=np.nan, probability=np.nan, mass=np.nan, text="words")
    rows.loc[unreadable(rows), "choice"] = pd.NA
    return rows


def test_the_shift_of_texts_is_the_paired_change_of_the_share_of_signal_answers():
    def unreadable(rows):
        return (rows["prompt_id"] % 7 == 0) & (rows["multiplier"] > 0) | (rows["prompt_id"] % 11 == 0)

    table = as_texts(swept(1.0), unreadable=unreadable)
    shifts = answer_shifts(table, by="kind", seed=3)
    assert len(shifts) == 10
    before = table[table["vector"] == "none"].set_index("prompt_id")["choice"]
    keys = ["vector", "multiplier", "kind"]
    for row in shifts.to_dict("records"):
        rows = table[(table[keys] == pd.Series(row)[keys]).all(axis=1)]
        both = zip(rows["choice"], rows["prompt_id"].map(before), strict=True)
        changes = [int(a == 0) - int(b == 0) for a, b in both if pd.notna(a) and pd.notna(b)]
        assert (row["n"], row["compared"]) == (len(rows), len(changes))
        assert row["shift"] == pytest.approx(np.mean(changes))
        assert row["shift_low"] <= row["shift"] <= row["shift_high"]
        # The interval of Bonett & Price 2012, by hand: with one more changed prompt in each direction.
        more = [*changes, 1, -1]
        spread = 1.96 * np.std(more) / np.sqrt(len(more)) * (row["vector"] != "none")
        assert (row["shift_high"] - row["shift_low"]) / 2 == pytest.approx(spread, rel=0.2)


def test_unreadable_texts_are_counted_per_condition():
    table = as_texts(swept(1.0), unreadable=lambda rows: rows["multiplier"] * rows["prompt_id"] > 15)
    chosen = choose(table, on="choose", report="report", value="accuracy").iloc[1]
    chosen, opposite = (pd.Series({**chosen, "multiplier": multiplier}) for multiplier in (0.2, -0.2))
    text = findings.unreadable_finding(table, [chosen, opposite])
    assert numbers(text) == [0, 80, 4, 80, 7, 0.2, 0.21, 0, 80, 7, -0.2, 0.21]
    assert not text.startswith("Caution")
    many = as_texts(table, unreadable=lambda rows: rows["prompt_id"] < 8)
    assert findings.unreadable_finding(many, [chosen]).startswith("Caution")
    assert numbers(findings.unreadable_finding(as_texts(swept(1.0)), [chosen])) == []


def test_the_choice_is_reported_with_both_halves():
    choices = choose(swept(1.0), on="choose", report="report", value="accuracy")
    text = findings.choice_finding(choices)
    on, report = choices.iloc[0], choices.iloc[1]
    expected = [on["n"], 7, *on[["multiplier", "dose", "value", "unsteered"]]]
    expected += [round(100 * on["selection_agreement"]), report["n"]]
    expected += [*report[["value", "low", "high", "unsteered", "change", "change_low", "change_high"]]]
    assert numbers(text) == pytest.approx(expected, abs=0.005)
    assert ("may be no change" in text) == (report["change_low"] <= 0 <= report["change_high"])
    assert "selection_agreement" not in findings.choice_finding(choices.assign(selection_agreement=np.nan))
    assert "the verdict says" not in text
    assert "the verdict says" in findings.choice_finding(choices.assign(value_name="d_prime"))


def test_choices_with_little_probability_give_a_caution():
    table = swept(1.0)
    chosen = choose(table, on="choose", report="report", value="shift").iloc[1]
    assert findings.mass_finding(table, chosen) is None
    table.loc[table["vector"] == "none", "mass"] = 0.02
    assert numbers(findings.mass_finding(table, chosen)) == [0.02, 0.9]
    assert findings.mass_finding(as_texts(table), chosen) is None


def test_open_prompts_are_counted():
    conditions = [("", "none", 0.0), ("", "none", 0.0), ("7", "add", 8.0), ("7", "add", 8.0)]
    texts = pd.DataFrame(conditions, columns=["layers", "operation", "multiplier"])
    texts["prompt_id"] = [5, 6, 5, 6]
    assert numbers(findings.text_finding(texts, "")) == [2, 7]
    texts.loc[2:, "multiplier"], texts.loc[3, "operation"] = [-8.0, np.nan], "project_out"
    assert "subtracted, left out and projected out" in findings.text_finding(texts, "")


@pytest.mark.parametrize(
    ("file", "message"),
    [("experiment.toml", r"holds a run of another experiment file[^+]*- as"), ("notes.txt", "not empty")],
)
def test_a_folder_with_other_files_is_an_error_and_unchanged(read, tmp_path, file, message):
    out = tmp_path / "run"
    out.mkdir()
    (out / file).write_text("old")
    assert_raises(message, run, read(SMALLEST), out, model=object(), error=FileExistsError)  # before any work
    assert [(each.name, each.read_text()) for each in out.iterdir()] == [(file, "old")]


OUTCOME = {
    "control": False, "control_of": "", "operation": "add", "layers": "3", "hook": "resid_post",
    "multiplier": 0.1, "dose": 0.1, "choice": 0, "logit_difference": 1.0, "probability": 0.7, "mass": 0.5,
}  # fmt: skip


class Untouched:
    """A model of 30 layers of which only the size may be read."""

    cfg = SimpleNamespace(n_layers=30)
    tokenizer = run_with_hooks = None


CAPTURED = "[capture]\nlayers = [10, -15]\n"
COMPONENT = DIRECTIONS.replace("mean_difference", "principal_component").replace("[dir", "limit = 10\n[dir")
COMPONENT += "of = 'differences'\ncomponent = "
WEIGHTS = "[directions]\nmethod = 'mean_difference'\nweights = { 10 = 1.0, 5 = -0.5 }\n"


PREFLIGHT_ERRORS = [
    (SMALLEST + "limit = 4", r"\[separation\] folds = 5: \[pairs\] has 4 groups.*folds to 2 to 4"),
    (COMPONENT + "9", r"\[directions\] component = 9 .*: \[separation\] folds = 5 leaves 8 pairs, .* 1 to 8"),
    (COMPONENT.replace("'diff", "'centred_diff") + "8", r"component = 8 does not exist: .* 1 to 7"),
    (COMPONENT + "{ 1 = 1.0, 9 = 0.5 }", r"component = 9 .* leaves 8 pairs"),
    (SWEEP + "layers = [[10, 12], 5]\n" + CAPTURED,
     r"\[sweep\] layers: there is no vector at \[5, 12\], since \[capture\] layers are \[10, 15\]"),
    (SMALLEST + "[text]\nprompts = ['a']\nlayers = [29, -1]", r"\[text\] layers: one is named twice"),
    (SMALLEST + CAPTURED.replace("10", "31"), r"\[capture\] layers: layer 31 is out of range"),
    (SWEEP.replace("sentiment", "misconceptions") + "score = 'd_prime'",
     r"\[sweep\] score = 'd_prime' needs both .* \d+ with the one, 0 with the other: use 'accuracy' or"),
    (SWEEP.replace('"sentiment"', '"sentiment"\nlimit = 2') + "score = 'd_prime'",
     r"\[sweep\] score = 'd_prime' .* 1 with the one, 1 with the other: .*, or ask more"),
    (SWEEP.replace('"sentiment"', '"misconceptions"\nlimit = 1'), r"\[questions\] limit: give 2 or more"),
    (SMALLEST + "[text]\ndata = 'dilemmas'\nlimit = 5000\nlayers = [1]", r"limit = 5000 cannot be drawn"),
    (SMALLEST + "data = 'nowhere.csv'\n", r"nowhere\.csv"),
    (SMALLEST + CAPTURED + WEIGHTS, r"\[directions\] weights: there is no vector at \[5\]"),
    (SWEEP + "layers = [10, [10, 12]]\n" + WEIGHTS, r"\[sweep\] layers: .* \[12\], .* weights .* \[5, 10\]"),
    (HONESTY.replace('"sentiment"', '"claims"\ndata = "claims_train"'),
     r"\[questions\] asks 12 claims that are also in \[pairs\].*training"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), PREFLIGHT_ERRORS)
def test_errors_that_would_come_later_are_raised_before_the_model_works(read, tmp_path, text, message):
    errors = (ValueError, IndexError, FileNotFoundError)
    assert_raises(message, run, read(text), tmp_path / "runs" / "one", model=Untouched(), error=errors)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "columns",
    ["pair", "layer", "side", "prompt", "PC1", "projection", "side_positive,side_negative",
     "letter,letter_positive,letter_negative"],
)  # fmt: skip
def test_pair_columns_may_not_have_names_of_the_reports_columns(read_own, tmp_path, columns):
    names = columns.split(",")
    message = rf"\[pairs\] data: the columns \['{names[0].removesuffix('_positive')}'\] .*rename"
    experiment = read_own(f",{columns}", ",0" * len(names))
    assert_raises(message, run, experiment, tmp_path / "one", model=Untouched())


def test_experiments_without_problems_pass_the_preflight(read, read_own):
    text = "[text]\nprompts = ['a']\nlayers = [-15]\n"
    questions = SWEEP + "score = 'd_prime'\nlayers = [10, [10, 15]]\n" + CAPTURED + text
    experiment = read_own(",letter_positive,letter_negative,topic", ",A,B,x", text=questions)
    require_runnable(experiment, Untouched())
    require_runnable(read(SMALLEST + WEIGHTS + text.replace("[-15]", "[5, [5, -20]]")), Untouched())


@pytest.fixture
def calls(monkeypatch):
    """Arguments of calls of `sweep` and `damage`; a sweep returns a table where adding beats projecting."""
    table, texts, recorded = both_operations(), pd.DataFrame({"prompt_id": [0], "prompt": ["a"]}), []
    table = table[~table["control"]].reset_index(drop=True)

    def record(*_, **options):
        recorded.append(options)
        return table if options.get("measure") == "choice" else texts

    for name in ("sweep", "damage"):
        monkeypatch.setattr(measurements, name, record)
    return recorded


def test_controls_damage_and_texts_are_of_the_best_operation(read, calls, planted):
    text = SWEEP + "operations = ['project_out', 'add']\ncontrols = 1\ncontrol_layers = 'chosen'\n"
    experiment = read(text + "[text]\nprompts = ['a']\nchat = false\nlayers = 2\n")
    pairs, vectors = planted[0], mean_difference(planted[0])
    table = measurements.question_table(experiment, None, vectors, pairs, progress=False)
    measurements.damage_table(experiment, None, vectors, pairs, table, progress=False)
    measurements.text_table(experiment, None, vectors, [table], progress=False)
    questions, damage, texts = calls
    assert [call["operations"] for call in calls] == [("project_out", "add"), ["add"], ("add",)]
    (best,) = questions["control_layers"](table).to_dict("records")
    assert (best["operation"], best["layers"], abs(best["multiplier"])) == ("add", "7", 0.2)
    assert damage["layers"] == [7]
    assert texts["layers"] == [7, 3]  # best first
    assert set(damage["controls"]) >= set(questions["controls"]) == {"random 1"}
    # one name is one direction, in the sweep and in the damage
    assert torch.equal(*(call["controls"]["random 1"].values for call in (questions, damage)))


def test_a_run_resumes_after_its_file_was_moved(tmp_path, calls, planted):
    """The selection of the controls' condition is part of a sweep's digest."""
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        experiment = read_experiment(written(folder, SWEEP))
        measurements.question_table(experiment, None, mean_difference(planted[0]), planted[0], progress=False)
    one, two = (digest(call["control_layers"]) for call in calls)
    assert one == two


@pytest.mark.parametrize(("unit", "length"), [("dose", 10.0), ("one", 1.0), ("length", None)])
def test_a_unit_is_what_multiplier_one_stands_for(read, planted, unit, length):
    experiment = read(DIRECTIONS + f"unit = '{unit}'\nweights = {{ 1 = -0.5 }}")
    vectors = mean_difference(planted[0])
    scaled = in_unit(vectors, experiment)
    expected = np.linalg.norm(vectors.values, axis=-1) if length is None else [length] * 2
    np.testing.assert_allclose(np.linalg.norm(scaled.values, axis=-1), expected, rtol=1e-5)
    steered = weighted(scaled, experiment)
    assert steered.layers == (1,)
    np.testing.assert_allclose(steered.values[0], -0.5 * scaled.values[1], rtol=1e-6)
    assert weighted(scaled, read(SMALLEST)) is scaled


def test_a_model_is_loaded_with_the_options_of_the_file(read, tmp_path, monkeypatch):
    load = Mock(side_effect=MemoryError("enough"))
    monkeypatch.setattr(STEPS, "load_model", load)
    text = MODEL + "name = 'gpt2-xl'\ndtype = 'bfloat16'\nprocessing = { center_writing_weights = true }\n"
    assert_raises("enough", run, read(text), tmp_path / "out", error=MemoryError)
    processing = {"center_writing_weights": True}
    load.assert_called_once_with("gpt2-xl", dtype="bfloat16", device=None, processing=processing)


def test_questions_ask_for_free_text_where_answers_are_read_from_it(read):
    text = SWEEP.replace('"sentiment"', '"claims"\nlimit = 4')
    letters, words = (
        questions_of(read(text + f"measure = '{measure}'"), Untouched()) for measure in ("choice", "generate")
    )
    assert all(prompt.endswith("Answer: (") for prompt in letters.prompts)
    assert all(prompt.endswith("(A) True\n(B) False\n\nAnswer:\n") for prompt in words.prompts)
    assert list(letters.answers) == list(words.answers)


def statements_in(prompts):
    return [re.search('"(.*)"\n', prompt)[1] for prompt in prompts]


def test_training_claims_are_those_of_the_pairs_and_labelled(read):
    training = read(TRAINING)
    questions, pairs = questions_of(training, Untouched()), pairs_of(training, Untouched())
    statements = statements_in(questions.prompts)
    assert len(statements) == 12
    assert set(statements) == set(statements_in(pairs.positive)) <= set(read_claims()["statement"])
    assert list(questions.factors["claims"]) == ["training"] * 12
    fewer = questions_of(read(TRAINING.replace("true", "true\nlimit = 4")), Untouched())
    assert set(fewer.prompts) < set(questions.prompts)
    assert sorted(fewer.answers) == [0, 0, 1, 1]
    others = questions_of(read(HONESTY.replace("sentiment", "claims")), Untouched())
    assert "claims" not in others.factors
    assert not set(others.prompts) & set(questions.prompts)


@pytest.mark.parametrize("kind", ["claims", "misconceptions"])
def test_the_wording_is_that_of_the_file(read, kind):
    text = HONESTY.replace("limit = 12", "limit = 12\nwording = 'study'")
    experiment = read(text.replace('"sentiment"', f"'{kind}'\nlimit = 4\nwording = 'study'"))
    prompts = [*questions_of(experiment, Untouched()).prompts, *pairs_of(experiment, Untouched()).positive]
    assert all(prompt.startswith("Question: ") for prompt in prompts)


@pytest.mark.parametrize("broken", [TypeError("no such figure"), KeyboardInterrupt("stopped")])
def test_a_broken_report_leaves_the_run_and_the_same_call_writes_it(monkeypatch, read, tmp_path, broken):
    rows = "".join(f"{each} good,{each} bad\n" for each in "abcdefghij")
    (tmp_path / "own.csv").write_text(f"positive,negative\n{rows}")
    experiment = read(SMALLEST + "data = 'own.csv'\n")
    one, model, times = tmp_path / "runs" / "one", make_model(word_tokenizer()), set()
    monkeypatch.setattr(STEPS, "write_report", Mock(side_effect=broken))
    for _ in range(2):
        with pytest.raises(UnfinishedRunError, match=rf"{broken}\).* are all in .*/runs/one;") as error:
            run(experiment, one, model=model, progress=False)
        assert error.value.__cause__ is broken
        assert not is_finished(one)
        times.add((one / "activations.safetensors").stat().st_mtime_ns)
    monkeypatch.setattr(STEPS, "write_report", lambda folder: (folder / "report.html").write_text("page"))
    assert run(experiment, one, model=model, progress=False) == one
    assert {file.name for file in one.iterdir()} == set(FILES) - {f"{name}.parquet" for name in TABLES}
    assert is_finished(one)
    assert times == {(one / "activations.safetensors").stat().st_mtime_ns}, "captured once"
    assert list((tmp_path / "runs").iterdir()) == [one]


def test_data_paths_are_relative_to_the_experiment_file(read_own, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pairs_of(read_own(n=2), None).positive == ("good 0", "good 1")


def test_questions_from_a_file_are_those_built_by_hand(read_questions):
    plain, chat = (questions_of(read_questions(extra), Untouched()) for extra in ("", "chat = true"))
    expected = [f"Is it {letter}?" for letter in "ABCD"]
    assert plain.prompts == tuple(expected)
    assert plain.choices == ((" yes", " no"),) * 4
    assert chat.prompts == tuple(ChatFormat("plain").render(each) for each in expected)
    assert chat.choices == (("yes", "no"),) * 4  # after a line break
    for questions in (plain, chat):
        assert questions.answers == (0, 0, 1, 1)
        assert list(questions.factors) == ["group", "style", "topic", "right_choice"]
        assert list(questions.factors["style"]) == ["formal", "formal", "casual", "casual"]


@pytest.mark.parametrize(
    ("extra", "rows", "factor"),
    [
        ("", OWN_ROWS, "style"),
        ("factor = 'topic'", OWN_ROWS, "topic"),
        ("factor = 'answer'", OWN_ROWS, "answer"),
        ("", OWN_ROWS.replace("casual", "formal").replace("style,topic", "topic,style"), "style"),
        ("", "\n".join(",".join(row.split(",")[:4]) for row in OWN_ROWS.splitlines()), "right_choice"),
    ],
)
def test_effects_are_reported_by_the_configured_factor_or_the_first_that_varies(
    read_questions, extra, rows, factor
):
    experiment = read_questions(extra, rows)
    questions = questions_of(experiment, None)
    require_runnable(experiment, Untouched())
    assert factor_of(experiment, questions.factors) == factor
    if factor == "right_choice":
        assert list(questions.factors[factor]) == ["yes", "yes", "no", "no"]
    rows = question_table(questions.prompts, answers=questions.answers, factors=questions.factors, seed=0)
    steered = [rows.assign(vector=name, **OUTCOME) for name in ("none", "v")]
    sweep = pd.concat(steered).reset_index(drop=True)
    assert factor_of(experiment, sweep.drop(columns=[*FIXED], errors="ignore")) == factor
    assert set(effectiveness(sweep, by=factor, overall=True)[factor]) > {"all"}


def test_texts_have_nouns_by_type_of_question(read, read_questions):
    nouns = {kind: read(SWEEP.replace("sentiment", kind)).questions.noun for kind in ("sentiment", "claims")}
    assert nouns | {"csv": read_questions().questions.noun} == {
        "sentiment": "reviews", "claims": "claims", "csv": "questions",
    }  # fmt: skip


QUESTION_ERRORS = [
    ("factor = 'tone'", OWN_ROWS, r"\[questions\] factor = 'tone': expected 'answer' or a column"),
    ("factor = 'topic'", OWN_ROWS.replace("home", "all"), r"factor = 'topic' has 2 values: .* 'all'"),
    ("", OWN_ROWS.replace("topic", "layers"), r"\[questions\] data: the columns \['layers'\] .*rename"),
    ("", OWN_ROWS.replace("answer", "right"), r"questions.csv lacks the column 'answer'"),
    ("", OWN_ROWS.replace("choice_1", "choice_2"), r"questions.csv lacks the columns .*'choice_1'"),
    ("limit = 3", OWN_ROWS, r"limit = 3 cannot be drawn: there are 2 and 2"),
    ("", OWN_ROWS.replace(",1,2,", ",0,2,").replace(",no,3,", ",0,3,").replace(",0,", ",1,"), "no question"),
]


@pytest.mark.parametrize(("extra", "rows", "message"), QUESTION_ERRORS)
def test_questions_that_cannot_be_reported_are_rejected_before_the_model_works(
    read_questions, tmp_path, extra, rows, message
):
    assert_raises(message, run, read_questions(extra, rows), tmp_path / "one", model=Untouched())


def test_many_values_are_no_factor_unless_named(read_questions):
    lines = [f"Is it {row}?, yes {row}, no {row},{row % 2},{row},topic {row},x" for row in range(12)]
    rows = "\n".join([OWN_ROWS.splitlines()[0], *lines])
    experiment = read_questions("", rows)
    assert factor_of(experiment, questions_of(experiment, None).factors) == "answer"
    message = "factor = 'style' has 12 values: expected at most 5"
    assert_raises(message, require_runnable, read_questions("factor = 'style'", rows), Untouched())


def test_open_prompts_are_read_from_a_file(read, tmp_path):
    (tmp_path / "own.txt").write_text("Why?\nHow?\nWho?\n")
    (tmp_path / "own.csv").write_text("prompt\nWhy?\nHow?\nWho?\n")
    for name in ("own.txt", "own.csv"):
        experiment = read(TEXT.replace("prompts = ['a']", f"data = '{name}'"))
        assert prompts_of(experiment) == ["Why?", "How?", "Who?"]
        assert files_of(experiment) == {name: tmp_path / name}
    text = TEXT.replace("prompts = ['a']", "data = 'own.txt'\nlimit = 2")
    assert len(set(prompts_of(read(text))) & {"Why?", "How?", "Who?"}) == 2


def test_pairs_in_the_chat_format_have_their_system_messages(read, tmp_path):
    (tmp_path / "own.csv").write_text("prompt\nWhy?\nHow?\n")
    text = SMALLEST + "data = 'own.csv'\nchat = true\nsystem_positive = 'Be formal.'\n"
    pairs = pairs_of(read(text + "system_negative = 'Be casual.'\n"), Untouched())
    assert pairs.positive == ("Be formal.\n\nWhy?\n", "Be formal.\n\nHow?\n")
    assert pairs.negative == ("Be casual.\n\nWhy?\n", "Be casual.\n\nHow?\n")
    assert read(text).has_chat
    assert not read(SMALLEST).has_chat


def test_changed_questions_are_noticed(read_questions):
    files = files_parts(read_questions())
    assert set(files) == {"questions.csv"}
    assert files_parts(read_questions("", OWN_ROWS.replace("Is it D?", "Is it E?"))) != files


def test_a_limit_draws_equally_many_of_each_label_and_is_reproducible(read, read_questions):
    experiment = read(SWEEP.replace('"sentiment"', '"sentiment"\nlimit = 10'))
    questions = questions_of(experiment, None)
    assert sorted(questions.answers) == [0] * 5 + [1] * 5
    assert list(questions.prompts) == list(questions_of(experiment, None).prompts)
    own = questions_of(read_questions("limit = 2"), None)
    assert (own.answers, len(own.factors)) == ((0, 1), 2)


TINY = """# tiny ✓
title = "Tiny <b>run</b>"
question = "Does it go?"
seed = 3
pairs = { kind = "csv", limit = 10 }
capture = { layers = [5, 12, 18] }
questions = { kind = "sentiment", limit = 12 }
damage = { passages = 3, max_tokens = 40 }
text = { prompts = ["How was your day?"], layers = 1, max_new_tokens = 4 }
separation = { shuffles = 5, folds = 3 }
[sweep]
layers = [12, 18]
multipliers = [-0.2, 0.2]
controls = 1
control_layers = "chosen"
"""


@pytest.fixture(scope="module")
def tiny_run(embedded, tmp_path_factory):
    """The run folder of a tiny experiment on the embedded model."""
    folder = tmp_path_factory.mktemp("tiny")
    return run(read_experiment(written(folder, TINY)), folder / "out", model=embedded, progress=False)


@pytest.mark.model
@pytest.mark.integration
def test_a_run_on_the_embedded_model_has_its_files_vectors_and_conditions(tiny_run):
    assert sorted(file.name for file in tiny_run.iterdir()) == FILES
    assert (tiny_run / "experiment.toml").read_bytes() == TINY.encode("utf-8")
    versions = json.loads((tiny_run / "versions.json").read_text())
    assert (versions["seed"], versions["model"]["n_layers"]) == (3, 30)
    assert versions["packages"]["torch"] == torch.__version__

    vectors = SteeringVectors.load(tiny_run / "vectors.safetensors")
    activations = PairedActivations.load(tiny_run / "activations.safetensors")
    assert (len(activations), vectors.layers) == (10, (5, 12, 18))
    positive, negative = (side.double().numpy() for side in activations.sides())
    mean = (positive - negative).mean(0)
    mean *= activations.stream_norm.numpy()[:, None] / np.linalg.norm(mean, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors.values.numpy(), mean, rtol=1e-4, atol=1e-4)

    table = pd.read_parquet(tiny_run / "sweep.parquet")
    questions, texts = table[table["split"] != "text"], table[table["split"] == "text"]
    conditions = questions.groupby(["vector", "layers", "multiplier"]).size()
    assert list(conditions) == [12] * 6  # unsteered, two layers at two multipliers, a chosen control
    assert not set(questions["prompt_id"]) & set(texts["prompt_id"])
    assert set(texts["said"]) == {"How was your day?"}
    assert sorted(texts["multiplier"]) == [-0.3, 0.0, 0.3]
    chosen = choose(questions, on="choose", report="report", value="shift").iloc[0]
    assert set(texts["layers"]) == {"", chosen["layers"]}
    assert set(questions.loc[questions["control"], "layers"]) == {chosen["layers"]}


@pytest.mark.model
@pytest.mark.integration
def test_a_report_is_made_of_the_folder_alone(tiny_run, tmp_path):
    copied = Path(shutil.copytree(tiny_run, tmp_path / "copy"))
    (copied / "report.html").unlink()
    write_report(copied)
    assert (copied / "report.html").read_text("utf-8").count(
        "How was your day?"
    ) == 3  # summary, texts, and the file
    assert len(read_results(copied).separation) == 3


@pytest.mark.model
@pytest.mark.integration
def test_the_experiment_that_new_writes_has_a_clear_result(embedded, tmp_path):
    shutil.copytree(Path(experiments.__file__).parent / "template", tmp_path / "formality")
    experiment = read_experiment(tmp_path / "formality" / "experiment.toml")
    results = read_results(run(experiment, tmp_path / "run", model=embedded, progress=False))
    assert results.settings.factor == "style"
    controls = results.against_controls
    assert controls["p_value"].max() < 0.05
    verdicts = results.detection.query("layers == @results.chosen['layers'] and not control")
    assert set(verdicts["verdict"]) == {"bias"}
    assert verdicts["auc"].min() > 0.9
    assert results.questions.query("vector == 'none'")["mass"].mean() > 0.5
    assert len(results.texts) == 12
    assert "style" in (tmp_path / "run" / "report.html").read_text("utf-8")
