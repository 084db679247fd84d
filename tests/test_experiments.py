"""Experiment files, findings from synthetic tables, preflight, and the contents of run folders."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tl_steer import plots
from tl_steer.activations import PairedActivations
from tl_steer.directions import SteeringVectors, mean_difference
from tl_steer.errors import UnfinishedRunError
from tl_steer.evaluation import choose
from tl_steer.evaluation._effectiveness import answer_shifts
from tl_steer.experiments import Results, measurements, own_experiments, read_experiment, run, write_report
from tl_steer.experiments.materials import in_unit, pairs_of, questions_of, weighted
from tl_steer.experiments.preflight import require_runnable
from tl_steer.experiments.report.findings import (
    choice_finding,
    mass_finding,
    separation_finding,
    text_finding,
    unreadable_finding,
)
from tl_steer.experiments.results import best_choice
from tl_steer.experiments.run_folder import is_finished
from tl_steer.prompts import read_claims
from tl_steer.sweeps.plans import digest

from .conftest import assert_raises
from .sweep_tables import condition, table_of, unsteered
from .test_evidence_report import ORGANISM, numbers, written
from .tiny_model import make_model, word_tokenizer

SMALLEST = """title = "small"
[pairs]
kind = "csv"
"""
QUESTIONS = """[questions]
kind = "sentiment"
[sweep]
multipliers = [-0.2, 0.2]
"""
ASKING = SMALLEST + QUESTIONS
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

HONESTY = ASKING.replace(SMALLEST, SMALLEST.replace('"csv"', '"honesty"\nlimit = 12'))
TRAINING = HONESTY.replace('"sentiment"', '"claims"\ntraining = true')


# --- files ----------------------------------------------------------------------------------------------


def test_defaults_of_omitted_tables_and_keys(tmp_path):
    experiment = read_experiment(written(tmp_path, SMALLEST))
    assert experiment.pairs.data == "sentiment_pairs"
    assert experiment.directions.method == "mean_difference"
    assert experiment.directions.unit == "dose"
    assert experiment.capture.layers == "all"
    assert experiment.questions is None
    assert experiment.text is None
    assert experiment.folder == tmp_path
    assert read_experiment(written(tmp_path, ASKING)).sweep.score == "shift"
    assert read_experiment(written(tmp_path, ASKING + "measure = 'generate'")).sweep.score == "accuracy"


def test_every_bundled_experiment_is_valid():
    assert {"demo", "honesty"} <= set(own_experiments())
    assert all(read_experiment(name).title for name in own_experiments())


def test_numbers_and_lists_are_converted_to_the_types_of_their_keys(tmp_path):
    text = ASKING.replace("[-0.2, 0.2]", "[-1, 2]") + "layers = [3, [17, 31]]\n"
    text += "[directions]\nmethod = 'principal_component'\nweights = { 17 = 1, -1 = -0.5 }\n"
    experiment = read_experiment(written(tmp_path, text + "component = { 1 = 1, 2 = 0.5 }"))
    assert experiment.sweep.multipliers == (-1.0, 2.0)
    assert experiment.sweep.layers == (3, (17, 31))
    assert experiment.directions.weights == {17: 1.0, -1: -0.5}
    assert experiment.directions.components == (1, 2)
    numbers = [*experiment.sweep.multipliers, *experiment.directions.weights.values()]
    assert {type(number) for number in numbers} == {float}


@pytest.mark.parametrize("negative", ["Hate", None])
def test_one_or_two_prompts_are_enough_for_an_activation_addition(tmp_path, negative):
    text = WORDS if negative else WORDS.replace('negative = "Hate"\n', "")
    experiment = read_experiment(written(tmp_path, text))
    assert experiment.has_prompts
    assert experiment.pairs.negative == negative
    assert experiment.directions.method == "activation_addition"
    assert experiment.directions.unit == "length"
    assert experiment.pairs.hook == "resid_pre"


TEXT = SMALLEST + "[text]\nprompts = ['a']\nlayers = [1]\n"
DIRECTIONS = SMALLEST + "[directions]\nmethod = 'mean_difference'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # keys and tables
        (ASKING.replace("multipliers", "multiplers"),
         r"mine.toml: \[sweep\] has no key 'multiplers'; did you mean 'multipliers'\?"),
        ("titel = 'a'\n" + SMALLEST, r"mine.toml: the file has no key 'titel'; did you mean 'title'\?"),
        ("source = 'a'\n" + SMALLEST, "the file has no key 'source'"),
        (SMALLEST + "[capture]\nxyz = 1",
         r"\[capture\] has no key 'xyz'; it may have positions, hook, layers"),
        (SMALLEST + "style = 'words'", r"\[pairs\] has no key 'style'"),
        (DIRECTIONS + "C = 2", r"\[directions\] has no key 'C'"),
        (SMALLEST.replace("csv", "cvs"),
         r"\[pairs\] kind = 'cvs': expected 'csv' or 'honesty' or 'organism' or 'prompts'. Did"),
        ("title = 'a'\n[pairs]\ndata = 'x'", r"\[pairs\] the key 'kind' is missing: expected 'csv' or"),
        ("title = 'a'", r"mine.toml: the key 'pairs' is missing"),
        ("title = 'a'\npairs = 3", r"pairs = 3: expected a table, \[pairs\]"),
        ("title = ", r"mine.toml is not a TOML file"),
        # types and ranges
        (ASKING.replace("[-0.2, 0.2]", "0.2"), r"\[sweep\] multipliers = 0.2: expected a list"),
        (ASKING.replace("[-0.2, 0.2]", "[]"), r"\[sweep\] multipliers = \[\]: expected at least 1"),
        (ASKING.replace("[-0.2, 0.2]", "[0, 1]"), r"\[sweep\] multipliers = \[0, 1\]: .*none of them 0"),
        (ASKING.replace("-0.2", "0.2"), r"\[sweep\] multipliers = \[0.2, 0.2\]: expected each once"),
        (ASKING + "operations = ['add', 'add']", r"\[sweep\] operations = .*: expected each once"),
        (ASKING + "controls = true", r"\[sweep\] controls = True: expected a whole number"),
        (ASKING + "controls = -1", r"\[sweep\] controls = -1: expected 0 or more"),
        (ASKING + "layers = 'al'", r"\[sweep\] layers = 'al': expected .* Did you mean 'all'\?"),
        (ASKING + "layers = [1.5]", r"\[sweep\] layers\[0\] = 1.5: expected a whole number"),
        (ASKING + "positions = 'last()'", r"\[sweep\] positions = 'last\(\)': .* cannot be read"),
        (ASKING + "operations = ['ad']", r"\[sweep\] operations\[0\] = 'ad': expected 'add' or 'proj"),
        (SMALLEST + "[capture]\nhook = 'resid'", r"\[capture\] hook = 'resid': expected 'resid_pre', "),
        (TEXT.replace("['a']", "['a', ' ']"), r"\[text\] prompts\[1\] = ' ': expected some text"),
        (TEXT + "temperature = 1\ndraws = 0", r"\[text\] draws = 0: expected 1 or more"),
        (TEXT + "repetition_penalty = 0", r"\[text\] repetition_penalty=0.0: expected a number above 0"),
        (DIRECTIONS + "weights = { a = 1 }", r"\[directions\] weights\['a'\]: expected a whole .* as key"),
        (DIRECTIONS + "weights = { 3 = 1, 4 = 0 }", r"\[directions\] weights = .*: .*none of them 0"),
        (SMALLEST + "[model]\nprocessing = { fold = true }",
         r"\[model\] processing\['fold'\]: expected 'fold_ln', .* as key"),
        (SMALLEST + "[model]\ntemplate_variables = { a = [1] }",
         r"\[model\] template_variables\['a'\] = \[1\]: expected true or false or a whole number or"),
        (SMALLEST + "[model]\nprocessing = 3", r"processing = 3: expected true or false or a table"),
        (SMALLEST + "[separation]\nfolds = 1", r"\[separation\] folds = 1: expected 2 or more"),
        # contradictions in a table
        (TRAINING.replace('"claims"', '"sentiment"'), r"training = true asks the claims of .*: use kind"),
        (TRAINING.replace("true", "true\ndata = 'a'"), r"training = true asks the claims of .*without data"),
        (ASKING.replace('"sentiment"', '"sentiment"\nwording = "study"'), r"wording = \"study\" is for kind"),
        (TEXT.replace("prompts = ['a']", ""), r"\[text\] give either prompts"),
        (ASKING + "measure = 'generate'\nscore = 'shift'",
         r"\[sweep\] score = 'shift' needs logits: use 'accuracy'"),
        (ASKING + "temperature = 0.7", r"\[sweep\] temperature, top_p, .* are for generated text"),
        (ASKING + "measure = 'generate'\ndraws = 3", r"\[sweep\] draws=3, temperature=0.0: expected one"),
        (ASKING + "measure = 'generate'\nchoices = 'sampled'", r"choices = 'sampled' needs probabilities"),
        (ORGANISM + "positions = 'last_token()'", r"\[damage\] positions = 'last_token\(\)' leaves"),
        (WORDS.replace("Love", "").replace("Hate", ""), r"\[pairs\] positive is empty, and negative is"),
        # contradictions between tables
        (ASKING.replace('"sentiment"', '"claims"\ntraining = true'), r"training = true .*not \"csv\""),
        (SMALLEST + "[questions]\nkind = 'claims'", r"\[questions\] and \[sweep\] belong together"),
        (TEXT.replace("layers = [1]", ""), r"\[text\] layers must be a list"),
        (ORGANISM.replace("organism-honesty", "gpt2"), r"\[pairs\] kind = \"organism\" .* 'gpt2' does not"),
        (ORGANISM.replace("organism-honesty", "gpt2").replace('"organism"\n[q', '"csv"\n[q'),
         r"\[questions\] kind = \"organism\" .* use one of organism-honesty"),
        (SMALLEST + "[directions]\nmethod = 'activation_addition'",
         r"kind = \"prompts\" and \[directions\] method = \"activation_addition\" go together"),
        (WORDS + "[directions]\nmethod = 'lda_direction'", r"go together: give both, or neither"),
        (WORDS + "[capture]\nlayers = [1]", r"\[capture\] and \[separation\] are about pairs"),
        (WORDS + "[damage]\npassages = 3", r"\[damage\] adds one vector to every token"),
        (WORDS + QUESTIONS + "shuffled = 2", r"\[sweep\] shuffled and orthogonal controls are made of pairs"),
        (WORDS.replace("layers", "operations = ['project_out']\nlayers"),
         r"\[text\] operations: .* cannot be projected out"),
        (WORDS[: WORDS.index("[text]")], r"kind = \"prompts\" needs \[text\], or \[questions\]"),
        (ASKING + "shuffled = 2\n[directions]\nmethod = 'principal_component'", r"\[sweep\] shuffled: "),
    ],
)  # fmt: skip
def test_errors_of_a_file_name_file_table_and_key(tmp_path, text, message):
    assert_raises(message, read_experiment, written(tmp_path, text))


def test_a_missing_file_is_an_error_with_the_names_of_bundled_experiments():
    message = r"neither a file nor one of .*demo, .*honesty, "
    assert_raises(message, read_experiment, "nowhere.toml", error=FileNotFoundError)


# --- findings -------------------------------------------------------------------------------------------


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
    text = separation_finding(table)
    assert text.startswith(start)
    assert numbers(text) == pytest.approx(expected)
    ties = accuracies.count(max(accuracies))
    assert (f"{ties} layers tie for the highest" in text) == (ties > 1)
    drawn = table.assign(
        auc=0.9, d_prime=1.0, null_low=0.4, null_high=0.55, null_mean=0.5, p_value=0.01, method="m"
    )
    count = (table["p_corrected"] <= 0.05).sum()
    assert f"at {count} of {len(table)} layers" in plots.separation(drawn).layout.title.subtitle.text


def test_separation_with_few_or_no_shuffles_says_so():
    for accuracies, p_corrected, phrase, expected in (
        ([0.5, 0.95], 1 / 11, "19 shuffles or more are needed", [0.95, 0.87, 1, 1, 100, 5, 0.05, 19]),
        ([0.9], np.nan, "no shuffled labels were run", [0.9, 0.82, 0.98, 0, 100, 5]),
    ):
        text = separation_finding(separations(accuracies, null_max=np.nan, p_corrected=p_corrected))
        assert phrase in text
        assert numbers(text) == pytest.approx(expected)


def swept(effect, n=40):
    """A sweep's table of one layer, with `effect` added to logit differences; 2 of 3 are right unsteered."""
    rng, rows = np.random.default_rng(0), np.arange(2 * n)
    answers = rows // n
    columns = {"kind": np.where(answers == 0, "positive", "negative")}
    columns["split"] = np.where(rows // 3 % 2 == 0, "choose", "report")
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
    steered = table["operation"] == "add"
    table.loc[steered, "operation"] = "project_out"
    table.loc[steered, ["multiplier", "dose"]] = np.nan
    return table


def test_the_best_operation_is_chosen_on_the_choosing_half_whichever_is_listed_first():
    table = swept(1.0)
    weaker = projected(swept(0.3))
    table = pd.concat([weaker, table[table["operation"] != "none"]], ignore_index=True)
    choices = choose(table, on="choose", report="report", value="shift")
    assert list(choices["operation"]) == ["project_out"] * 2 + ["add"] * 2
    oracle = max(choices[choices["split"] == "choose"].to_dict("records"), key=lambda row: row["value"])
    assert oracle["operation"] == "add"
    for split in ("choose", "report"):
        best = best_choice(choices, split=split)
        assert (best["operation"], best["split"], best["multiplier"]) == ("add", split, oracle["multiplier"])


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
        if row["vector"] == "none":
            assert row["shift_low"] == row["shift_high"] == 0
            continue
        # The interval of Bonett & Price 2012, by hand: with one more changed prompt in each direction.
        more = [*changes, 1, -1]
        spread = 1.96 * np.std(more) / np.sqrt(len(more))
        assert (row["shift_high"] - row["shift_low"]) / 2 == pytest.approx(spread, rel=0.2)


def test_unreadable_texts_are_counted_per_condition():
    table = as_texts(swept(1.0), unreadable=lambda rows: rows["multiplier"] * rows["prompt_id"] > 15)
    chosen = choose(table, on="choose", report="report", value="accuracy").iloc[1]
    opposite = chosen.copy()
    chosen["multiplier"], opposite["multiplier"] = 0.2, -0.2
    text = unreadable_finding(table, [chosen, opposite])
    assert numbers(text) == [0, 80, 4, 80, 7, 0.2, 0.21, 0, 80, 7, -0.2, 0.21]
    assert not text.startswith("Caution")
    many = as_texts(table, unreadable=lambda rows: rows["prompt_id"] < 8)
    assert unreadable_finding(many, [chosen]).startswith("Caution")
    assert numbers(unreadable_finding(as_texts(swept(1.0)), [chosen])) == []


def test_the_choice_is_reported_with_both_halves():
    choices = choose(swept(1.0), on="choose", report="report", value="accuracy")
    text = choice_finding(choices)
    on, report = choices.iloc[0], choices.iloc[1]
    expected = [on["n"], 7, on["multiplier"], on["dose"], on["value"], on["unsteered"]]
    expected += [round(100 * on["selection_agreement"]), report["n"]]
    expected += [report[each] for each in ("value", "low", "high", "unsteered", "change")]
    shown = numbers(text)
    assert shown[: len(expected)] == pytest.approx(expected, abs=0.005)
    assert shown[len(expected) :] == pytest.approx([report["change_low"], report["change_high"]], abs=0.005)
    assert ("may be no change" in text) == (report["change_low"] <= 0 <= report["change_high"])
    assert "selection_agreement" not in choice_finding(choices.assign(selection_agreement=np.nan))
    for score in ("accuracy", "d_prime"):
        caution = "the verdict says" in choice_finding(choices.assign(value_name=score))
        assert caution == (score == "d_prime")


def test_choices_with_little_probability_give_a_caution():
    table = swept(1.0)
    chosen = choose(table, on="choose", report="report", value="shift").iloc[1]
    assert mass_finding(table, chosen) is None
    table.loc[table["vector"] == "none", "mass"] = 0.02
    assert numbers(mass_finding(table, chosen)) == [0.02, 0.9]
    assert mass_finding(as_texts(table), chosen) is None


def test_open_prompts_are_counted():
    texts = pd.DataFrame(
        {"prompt_id": [5, 6, 5, 6], "layers": ["", "", "7", "7"],
         "operation": ["none", "none", "add", "add"], "multiplier": [0.0, 0.0, 8.0, 8.0]}
    )  # fmt: skip
    assert numbers(text_finding(texts)) == [2, 7]
    removed = texts.assign(multiplier=[0.0, 0.0, -8.0, np.nan])
    removed.loc[3, "operation"] = "project_out"
    assert "subtracted, left out and projected out" in text_finding(removed)


# --- runs -----------------------------------------------------------------------------------------------


def test_a_folder_with_other_files_is_an_error_and_unchanged(tmp_path):
    for folder, file, message in (
        ("run", "experiment.toml", r"already holds a run of another experiment file[^+]*- as"),
        ("notes", "notes.txt", "not empty"),
    ):
        out = tmp_path / folder
        out.mkdir()
        (out / file).write_text("old")
        with pytest.raises(FileExistsError, match=message):
            run(read_experiment(written(tmp_path, SMALLEST)), out, model=object())  # before any work
        assert [(each.name, each.read_text()) for each in out.iterdir()] == [(file, "old")]


class Untouched:
    """A model of 30 layers of which only the size may be read."""

    cfg = SimpleNamespace(n_layers=30)
    tokenizer = run_with_hooks = None


CAPTURED = "[capture]\nlayers = [10, -15]\n"
WEIGHTS = "[directions]\nmethod = 'mean_difference'\nweights = { 10 = 1.0, 5 = -0.5 }\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALLEST + "limit = 4", r"\[separation\] folds = 5: \[pairs\] has 4 groups.*folds to 2 to 4"),
        (SMALLEST + "limit = 10\n[directions]\nmethod = 'principal_component'\n"
         "of = 'differences'\ncomponent = 9",
         r"\[directions\] component = 9 does not exist: \[separation\] folds = 5 leaves 8 pairs, .* 1 to 8"),
        (SMALLEST + "limit = 10\n[directions]\nmethod = 'principal_component'\n"
         "of = 'centred_differences'\ncomponent = 8", r"component = 8 does not exist: .* 1 to 7"),
        (ASKING.replace("[-0.2, 0.2]", "[0.2]\nlayers = [[10, 12], 5]") + CAPTURED,
         r"\[sweep\] layers: there is no vector at \[5, 12\], since \[capture\] layers are \[10, 15\]"),
        (SMALLEST + "[text]\nprompts = ['a']\nlayers = [29, -1]", r"\[text\] layers: one is named twice"),
        (SMALLEST + CAPTURED.replace("10", "31"), r"\[capture\] layers: layer 31 is out of range"),
        (ASKING.replace("sentiment", "misconceptions") + "score = 'd_prime'",
         r"\[sweep\] score = 'd_prime' needs both .* \d+ with the one, 0 with the other: use 'accuracy' or"),
        (ASKING.replace('"sentiment"', '"sentiment"\nlimit = 2') + "score = 'd_prime'",
         r"\[sweep\] score = 'd_prime' .* 1 with the one, 1 with the other: .*, or ask more"),
        (ASKING.replace('"sentiment"', '"misconceptions"\nlimit = 1'),
         r"\[questions\] limit: give 2 or more"),
        (SMALLEST + "[text]\ndata = 'dilemmas'\nlimit = 5000\nlayers = [1]", r"limit = 5000 cannot be drawn"),
        (SMALLEST + "data = 'nowhere.csv'\n", r"nowhere\.csv"),
        (SMALLEST + "limit = 10\n[directions]\nmethod = 'principal_component'\n"
         "of = 'differences'\ncomponent = { 1 = 1.0, 9 = 0.5 }", r"component = 9 .* leaves 8 pairs"),
        (SMALLEST + CAPTURED + WEIGHTS, r"\[directions\] weights: there is no vector at \[5\]"),
        (ASKING + "layers = [10, [10, 12]]\n" + WEIGHTS,
         r"\[sweep\] layers: .* \[12\], since .* weights are of \[5, 10\]"),
        (HONESTY.replace('"sentiment"', '"claims"\ndata = "claims_train"'),
         r"\[questions\] asks 12 claims that are also in \[pairs\].*training"),
    ],
)  # fmt: skip
def test_errors_that_would_come_later_are_raised_before_the_model_works(tmp_path, text, message):
    experiment = read_experiment(written(tmp_path, text))
    errors = (ValueError, IndexError, FileNotFoundError)
    assert_raises(message, run, experiment, tmp_path / "runs" / "one", model=Untouched(), error=errors)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "columns",
    ["pair", "layer", "side", "prompt", "PC1", "projection", "side_positive,side_negative",
     "letter,letter_positive,letter_negative"],
)  # fmt: skip
def test_pair_columns_may_not_have_names_of_the_reports_columns(tmp_path, columns):
    rows = "".join(f"good {row},bad {row}" + ",0" * len(columns.split(",")) + "\n" for row in range(12))
    (tmp_path / "own.csv").write_text(f"positive,negative,{columns}\n{rows}")
    experiment = read_experiment(written(tmp_path, SMALLEST + "data = 'own.csv'\n"))
    message = rf"\[pairs\] data: the columns \['{columns.split('_positive')[0].split(',')[0]}'\] .*rename"
    assert_raises(message, run, experiment, tmp_path / "one", model=Untouched())


def test_experiments_without_problems_pass_the_preflight(tmp_path):
    rows = "".join(f"good {row},bad {row},A,B,x\n" for row in range(12))
    (tmp_path / "own.csv").write_text(f"positive,negative,letter_positive,letter_negative,topic\n{rows}")
    questions = ASKING.replace("[pairs]", "[pairs]\ndata = 'own.csv'") + "score = 'd_prime'\n"
    text = "[text]\nprompts = ['a']\nlayers = [-15]\n"
    experiment = questions + "layers = [10, [10, 15]]\n" + CAPTURED + text
    require_runnable(read_experiment(written(tmp_path, experiment)), Untouched())
    text = text.replace("[-15]", "[5, [5, -20]]")
    require_runnable(read_experiment(written(tmp_path, SMALLEST + WEIGHTS + text)), Untouched())


@pytest.fixture
def calls(monkeypatch):
    """Arguments of calls of `sweep` and `damage`; a sweep returns a table where adding beats projecting."""
    strong, weak = swept(1.0), projected(swept(0.3)).replace({"layers": {"7": "3"}})
    both = pd.concat([weak, strong[strong["operation"] != "none"]], ignore_index=True)
    swept_table = both[~both["control"]].reset_index(drop=True)
    recorded = []

    def sweeping(model, vectors, questions, **options):
        recorded.append(options | {"vectors": vectors})
        texts = pd.DataFrame({"prompt_id": [0], "prompt": ["a"]})
        return swept_table if options["measure"] == "choice" else texts

    def damaging(model, vectors, passages, **options):
        recorded.append(options)
        return pd.DataFrame()

    monkeypatch.setattr(measurements, "sweep", sweeping)
    monkeypatch.setattr(measurements, "damage", damaging)
    return recorded


def test_controls_damage_and_texts_are_of_the_best_operation(tmp_path, calls, planted):
    text = ASKING + "operations = ['project_out', 'add']\ncontrols = 1\ncontrol_layers = 'chosen'\n"
    text += "[text]\nprompts = ['a']\nchat = false\nlayers = 2\n"
    experiment = read_experiment(written(tmp_path, text))
    pairs, vectors = planted[0], mean_difference(planted[0])
    table = measurements.question_table(experiment, None, vectors, pairs, progress=False)
    measurements.damage_table(experiment, None, vectors, pairs, table, progress=False)
    measurements.text_table(experiment, None, vectors, [table], progress=False)
    asking, damaging, texts = calls
    assert texts["layers"] == [7, 3]  # best first
    assert [call["operations"] for call in calls] == [("project_out", "add"), ["add"], ("add",)]
    (condition,) = asking["control_layers"](table).to_dict("records")
    assert (condition["operation"], condition["layers"]) == ("add", "7")
    assert abs(condition["multiplier"]) == 0.2
    assert damaging["layers"] == [7]
    assert set(damaging["controls"]) >= set(asking["controls"]) == {"random 1"}
    # one name is one direction, in the sweep and in the damage
    torch.testing.assert_close(
        asking["controls"]["random 1"].values, damaging["controls"]["random 1"].values, rtol=0, atol=0
    )


def test_a_run_resumes_after_its_file_was_moved(tmp_path, calls, planted):
    """The selection of the controls' condition is part of a sweep's digest."""
    digests = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        experiment = read_experiment(written(tmp_path / folder, ASKING))
        measurements.question_table(experiment, None, mean_difference(planted[0]), planted[0], progress=False)
        digests.add(digest(calls[-1]["control_layers"]))
    assert len(digests) == 1


@pytest.mark.parametrize(("unit", "length"), [("dose", 10.0), ("one", 1.0), ("length", None)])
def test_a_unit_is_what_multiplier_one_stands_for(tmp_path, planted, unit, length):
    text = SMALLEST + f"[directions]\nmethod = 'mean_difference'\nunit = '{unit}'\nweights = {{ 1 = -0.5 }}"
    experiment = read_experiment(written(tmp_path, text))
    vectors = mean_difference(planted[0])
    scaled = in_unit(vectors, experiment)
    expected = np.linalg.norm(vectors.values, axis=-1) if length is None else [length] * 2
    np.testing.assert_allclose(np.linalg.norm(scaled.values, axis=-1), expected, rtol=1e-5)
    steered = weighted(scaled, experiment)
    assert steered.layers == (1,)
    np.testing.assert_allclose(steered.values[0], -0.5 * scaled.values[1], rtol=1e-6)
    assert weighted(scaled, read_experiment(written(tmp_path, SMALLEST))) is scaled


def test_a_model_is_loaded_with_the_options_of_the_file(tmp_path, monkeypatch):
    calls = []

    def loading(name, **options):
        calls.append(options | {"name": name})
        raise MemoryError("enough")

    monkeypatch.setattr(sys.modules["tl_steer.experiments._run"], "load_model", loading)
    text = "[model]\nname = 'gpt2-xl'\ndtype = 'bfloat16'\nprocessing = { center_writing_weights = true }\n"
    with pytest.raises(MemoryError, match="enough"):
        run(read_experiment(written(tmp_path, SMALLEST + text)), tmp_path / "out")
    processing = {"center_writing_weights": True}
    assert calls == [{"name": "gpt2-xl", "dtype": "bfloat16", "device": None, "processing": processing}]


def test_questions_ask_for_free_text_where_answers_are_read_from_it(tmp_path):
    questions = ASKING.replace('"sentiment"', '"claims"\nlimit = 4')
    letters, words = (
        questions_of(read_experiment(written(tmp_path, questions + f"measure = '{measure}'")), Untouched())
        for measure in ("choice", "generate")
    )
    assert all(prompt.endswith("Answer: (") for prompt in letters.prompts)
    assert all(prompt.endswith("(A) True\n(B) False\n\nAnswer:\n") for prompt in words.prompts)
    assert list(letters.answers) == list(words.answers)


def test_training_claims_are_those_of_the_pairs_and_labelled(tmp_path):
    experiment = read_experiment(written(tmp_path, TRAINING))
    claims, questions = read_claims(), questions_of(experiment, Untouched())
    pairs = pairs_of(experiment, Untouched())
    statements = [re.search('"(.*)"\n', prompt)[1] for prompt in questions.prompts]
    assert len(statements) == 12
    assert set(statements) <= set(claims["statement"])
    assert {re.search('"(.*)"\n', prompt)[1] for prompt in pairs.positive} == set(statements)
    assert list(questions.factors["claims"]) == ["training"] * 12
    limited = written(tmp_path, TRAINING.replace("true", "true\nlimit = 4"))
    fewer = questions_of(read_experiment(limited), Untouched())
    assert set(fewer.prompts) < set(questions.prompts)
    assert sorted(fewer.answers) == [0, 0, 1, 1]
    others = written(tmp_path, HONESTY.replace("sentiment", "claims"))
    others = questions_of(read_experiment(others), Untouched())
    assert "claims" not in others.factors
    assert not set(others.prompts) & set(questions.prompts)


def test_the_wording_is_that_of_the_file(tmp_path):
    text = HONESTY.replace("limit = 12", "limit = 12\nwording = 'study'")
    for kind in ("claims", "misconceptions"):
        questions = text.replace('"sentiment"', f"'{kind}'\nlimit = 4\nwording = 'study'")
        experiment = read_experiment(written(tmp_path, questions))
        asked, pairs = questions_of(experiment, Untouched()), pairs_of(experiment, Untouched())
        assert all(prompt.startswith("Question: ") for prompt in (*asked.prompts, *pairs.positive))


@pytest.mark.parametrize("broken", [TypeError("no such figure"), KeyboardInterrupt("stopped")])
def test_a_broken_report_leaves_the_run_and_the_same_call_writes_it(monkeypatch, tmp_path, broken):
    def breaking(folder):
        raise broken

    rows = "".join(f"{each} good,{each} bad\n" for each in "abcdefghij")
    (tmp_path / "own.csv").write_text(f"positive,negative\n{rows}")
    experiment = read_experiment(written(tmp_path, SMALLEST + "data = 'own.csv'\n"))
    one, model, times = tmp_path / "runs" / "one", make_model(word_tokenizer()), set()
    steps = sys.modules["tl_steer.experiments._run"]
    monkeypatch.setattr(steps, "write_report", breaking)
    for _ in range(2):
        with pytest.raises(UnfinishedRunError, match=rf"{broken}\).* are all in .*/runs/one;") as error:
            run(experiment, one, model=model, progress=False)
        assert error.value.__cause__ is broken
        assert not is_finished(one)
        times.add((one / "activations.safetensors").stat().st_mtime_ns)
    monkeypatch.setattr(steps, "write_report", lambda folder: (folder / "report.html").write_text("page"))
    assert run(experiment, one, model=model, progress=False) == one
    assert sorted(file.name for file in one.iterdir()) == [
        "activations.safetensors", "audit.csv", "experiment.toml", "report.html", "vectors.safetensors",
        "versions.json",
    ]  # fmt: skip
    assert is_finished(one)
    assert times == {(one / "activations.safetensors").stat().st_mtime_ns}, "captured once"
    assert list((tmp_path / "runs").iterdir()) == [one]


def test_data_paths_are_relative_to_the_experiment_file(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "p.csv").write_text("positive,negative\ngood,bad\nyes,no\n")
    monkeypatch.chdir(tmp_path)
    experiment = read_experiment(written(folder, SMALLEST + "data = 'p.csv'\n"))
    assert pairs_of(experiment, None).positive == ("good", "yes")


def test_a_limit_draws_equally_many_of_each_label_and_is_reproducible(tmp_path):
    experiment = read_experiment(written(tmp_path, ASKING.replace('"sentiment"', '"sentiment"\nlimit = 10')))
    questions = questions_of(experiment, None)
    assert sorted(questions.answers) == [0] * 5 + [1] * 5
    assert list(questions.prompts) == list(questions_of(experiment, None).prompts)


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
[damage]
passages = 3
max_tokens = 40
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
@pytest.mark.integration
def test_a_run_on_the_embedded_model_has_its_files_vectors_and_conditions(tiny_run):
    assert sorted(file.name for file in tiny_run.iterdir()) == [
        "activations.safetensors", "audit.csv", "damage.parquet", "experiment.toml", "report.html",
        "sweep.parquet", "text_damage.parquet", "vectors.safetensors", "versions.json",
    ]  # fmt: skip
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
    assert (copied / "report.html").read_text("utf-8").count("How was your day?") == 2  # texts, and the file
    assert len(Results.load(copied).separation) == 3
