"""The report of a synthetic run: sections, numbers, escaping. `test_hostile_text` opens it in a browser."""

import html as entities
import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

import tl_steer as ts
from tl_steer._report import Results
from tl_steer._report.answers import without_shared_ends
from tl_steer._report.findings import prompts_finding
from tl_steer._report.page import report_page
from tl_steer._report.sections import sections
from tl_steer._report.summary import summary
from tl_steer.activations import PairedActivations
from tl_steer.directions import mean_difference
from tl_steer.experiments import read_experiment
from tl_steer.experiments.run_report import settings_of
from tl_steer.sweeps.sweep_table import condition_rows

from .conftest import make_pairs
from .sweep_tables import condition, table_of, unsteered

EMPTY = pd.DataFrame({"split": pd.Series([], dtype=str)})  # a table of steps that the experiment lacks
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp; {{ 7*7 }}"
EXPERIMENT = f"""title = "A title with <b>marks</b>"
question = '''What is the question? {HOSTILE}'''
seed = 1
[pairs]
kind = "csv"
[questions]
kind = "sentiment"
[sweep]
layers = [1, 2]
multipliers = [-0.2, 0.2]
[text]
prompts = ["How was your day?"]
[separation]
shuffles = 10
folds = 3
"""
GENERATED = EXPERIMENT.replace("[text]", "measure = 'generate'\n[text]")
VERSIONS = {
    "date": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "seed": 1, "python": "3.11", "device": "cpu",
    "dtype": "torch.float32", "packages": {"tl-steer": "0.1.0"},
    "model": {"name": "tiny", "revision": None, "n_layers": 3, "d_model": 16},
}  # fmt: skip


def synthetic_pairs(text, pairs):
    """Sides that differ along one axis, more so at later layers; `text` is in prompts and factors."""
    sides = np.random.default_rng(0).standard_normal((2, pairs, 3, 16))
    sides[0, ..., 0] += np.arange(3) * 1.5
    factors = pd.DataFrame({"group": range(pairs), "topic": ([text, "plain"] * pairs)[:pairs]})
    plain = make_pairs(*sides, factors=factors)
    named = (
        replace(side, prompts=tuple(f"{each} {text}" for each in side.prompts))
        for side in (plain.positive, plain.negative)
    )
    return PairedActivations(*named, factors)


def synthetic_sweep(text=HOSTILE, n=20):
    """Choice conditions at two layers with a control, and texts at one; `text` in all of them."""
    rng, answers = np.random.default_rng(1), np.repeat([0, 1], n)
    before = np.where(answers == 0, 1.0, -1.0) + rng.normal(0, 0.8, 2 * n)
    columns = {"kind": np.where(answers == 0, "positive", "negative"), "text": None}
    columns |= {"prompt": [f"{text} {row}" for row in range(2 * n)], "split": ["choose", "report"] * n}
    tables = [unsteered(answers=answers, logits=before, **columns)]
    for vector, effect in (("mean_difference", 5.0), ("random 1", 0.0)):
        for layer, multiplier in product(("1", "2"), (-0.2, 0.2)):
            logits = before + rng.normal(effect * multiplier, 0.1, 2 * n)
            where = {"vector": vector, "layers": layer, "multiplier": multiplier, "norm": 1.0}
            tables.append(condition(answers=answers, logits=logits, **where, **columns))
    columns = {"prompt_id": [2 * n, 2 * n + 1], "prompt": ["How was your day?", text]}
    columns |= {"kind": None, "probability": np.nan, "mass": np.nan, "split": "text", "norm": 1.0}
    for multiplier in (-0.3, 0.0, 0.3):
        columns["text"] = [f"said at {multiplier} {text}", "line one\nline two"]
        vector = "mean_difference" if multiplier else "none"
        where = {"vector": vector, "layers": "2", "multiplier": multiplier}
        tables.append(condition([None] * 2, [None] * 2, logits=[np.nan] * 2, **where, **columns))
    strings = dict.fromkeys(["text", "kind"], "string")
    return table_of(*tables).drop(columns="topic").astype(strings)


def synthetic_results(folder, experiment=EXPERIMENT, *, text=HOSTILE, pairs=24, sweep=None):
    """A run without a model. Three pairs are too few to halve: no agreement, which takes longest."""
    file = folder / "experiment.toml"
    file.write_text(experiment, encoding="utf-8")
    audit = pd.DataFrame(
        [("topic", text, 12.0, 12.0, 0.0, False), ("tokens", "mean", 13.25, 14.0, -0.42, True)],
        columns=["factor", "level", "positive", "negative", "difference", "differs"],
    )
    versions = VERSIONS | {"python": text, "model": VERSIONS["model"] | {"name": text, "revision": text}}
    activations = synthetic_pairs(text, pairs)
    vectors = mean_difference(activations).scaled_to(dose=1.0)
    sweep = synthetic_sweep(text) if sweep is None else sweep
    is_text = sweep["split"] == "text"
    tables = sweep[~is_text], sweep[is_text]
    settings = settings_of(read_experiment(file), versions, tables[0])
    return Results(settings, *tables, EMPTY, EMPTY, audit, activations, vectors)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return synthetic_results(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def html(results):
    return report_page(results).page


@pytest.fixture
def variant(tmp_path):
    """Results of another experiment file and sweep, on three pairs."""

    def make(experiment, sweep=None):
        text = experiment.replace("shuffles = 10", "shuffles = 0")
        return synthetic_results(tmp_path, text, pairs=3, sweep=sweep)

    return make


def part(html, start, end):
    return html[html.index(start) : html.index(end)]


def section_ids(html):
    return re.findall('<details class="section" id="(.*?)"', html)


def figures_of(html):
    """The figures of a page by id, as the browser reads them."""
    return json.loads(re.search(r"const figures = (\{.*?\});\n// A figure", html, re.DOTALL)[1])


PAIRS = ["separation", "pca", "projections", "audit"]
QUESTIONS = ["effects", "doses", "detection", "choice"]
EVIDENCE = ["controls", "steerability", "agreement", "confounds"]


def test_texts_are_escaped_and_nothing_is_loaded(html):
    body = html[html.index("</style>") :]
    outside = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    assert "<script>window.hacked" not in body
    assert "&lt;script&gt;window.hacked" in outside
    assert not re.search("<img|<b>marks</b>", outside)
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert "default-src 'none'" in html
    assert entities.unescape(re.search(r"<pre>(.*?)</pre>", html, re.DOTALL)[1]) == EXPERIMENT


def test_sections_and_figures_are_in_order(html):
    assert section_ids(html) == ["texts", *QUESTIONS, *EVIDENCE, *PAIRS, "made"]
    names = ["summary", "effectiveness", "shift", "doses", "detection", "controls", "steerability", "slopes"]
    names += ["agreement", "confounds", "separation", "pca", "projections"]
    assert re.findall('id="figure-([a-z]+)"', html) == names
    figures = figures_of(html)
    assert set(figures) == set(names)
    assert all("width" not in figure["layout"] for figure in figures.values())
    assert {"kind: all", "kind: positive"} <= {
        each["text"] for each in figures["effectiveness"]["layout"]["annotations"]
    }
    contents = part(html, "<nav", "</nav>")
    assert re.findall('href="#(.*?)"', contents) == ["top", *section_ids(html)]


def test_the_verdict_is_the_heading_and_each_statement_is_about_the_reporting_half(results, html):
    top = summary(results)
    heading = entities.unescape(re.search("<h1>(.*?)</h1>", html)[1])
    assert heading == top.verdict
    assert heading.startswith("A shift of bias: both kinds of reviews move")
    assert "Chosen on 20 reviews, measured on 20 others" in top.where
    assert set(results.rows["split"]) == {"report"}
    effects = next(section for section in sections(results) if section.id == "effects")
    for row in (results.chosen, results.opposite):
        assert f"{row['multiplier']:+.2f} (dose {row['dose']:.2f})".replace("-", "−") in effects.finding
    assert results.opposite["multiplier"] == -results.chosen["multiplier"]
    assert results.opposite["layers"] == results.chosen["layers"]
    assert effects.finding.count("This is a shift of bias") == 2


def test_the_tiles_have_the_numbers_of_the_tables(results):
    effect, detection, damage = summary(results).tiles
    (row,) = condition_rows(results.detection, results.chosen).to_dict("records")
    shifts = [row[f"shift{end}"] for end in ("", "_low", "_high")]
    found = [
        float(each) for each in re.findall(r"[+-]\d+\.\d+", f"{effect.value} {effect.text}".replace("−", "-"))
    ]
    assert found[:3] == pytest.approx(shifts, abs=0.005)
    p_value = condition_rows(results.against_controls, results.chosen)["p_value"].iloc[0]
    assert f"p = {p_value:.2g}" in effect.text
    assert f"{row['auc']:.3f} steered" in detection.text
    assert damage.value == "Not measured"


def test_three_texts_are_of_one_prompt_and_the_steered_layer(results, html):
    top = summary(results)
    assert top.prompt == "How was your day?"
    assert [heading.partition(" (")[0] for heading, _ in top.texts] == [
        "layer 2, multiplier −0.30", "unsteered", "layer 2, multiplier +0.30",
    ]  # fmt: skip
    assert [text.split(" <")[0] for _, text in top.texts] == [f"said at {each}" for each in (-0.3, 0.0, 0.3)]


def shown(results):
    """Ids of sections, ids of figures, and verdict, cautions and findings as one text."""
    parts, top = sections(results), summary(results)
    figures = {figure for section in parts for figure, _ in section.figures}
    text = " ".join([top.verdict, *top.cautions, *(section.finding for section in parts)])
    return [section.id for section in parts], figures, text


def planted_sweep(*, bias=0.0, own=0.0, controls=19, n=60, aligned=True):
    """A sweep of one condition that adds `bias` toward the signal and `own` toward each right answer."""
    rng, answers = np.random.default_rng(1), np.repeat([0, 1], n)
    right = np.where(answers == 0, 1.0, -1.0)
    before = 0.5 * right + rng.normal(0, 1.0, 2 * n)
    kinds = np.where(answers == 0, "positive", "negative") if aligned else np.arange(2 * n) // 2 % 2
    columns = {"kind": kinds.astype(str), "split": ["choose", "report"] * n}
    tables = [unsteered(answers=answers, logits=before, **columns)]
    for vector, scale in [("mean_difference", 1.0), *((f"random {k}", 0.02) for k in range(controls))]:
        logits = before + scale * (bias + own * right) + rng.normal(0, 0.1, 2 * n)
        where = {"vector": vector, "layers": "1", "multiplier": 0.2, "norm": 1.0}
        tables.append(condition(answers=answers, logits=logits, **where, **columns))
    return table_of(*tables).drop(columns="topic").astype({"kind": "string"})


TOWARD, OWN = (
    "both kinds of reviews move {} “positive”",
    "each kind of reviews moves toward its own {} answer",
)


@pytest.mark.parametrize(
    ("planted", "start", "phrases"),
    [
        ({"bias": 2.0}, "A shift of bias: ", [TOWARD.format("toward"), "does not measurably change"]),
        ({"bias": -2.0}, "A shift of bias: ", [TOWARD.format("away from")]),
        ({"own": 2.0}, "An improvement: ", [OWN.format("right"), "the ranking improves"]),
        ({"own": -3.0}, "Reversed answers: ", [OWN.format("wrong"), "the ranking is reversed"]),
        ({"own": -0.4}, "A loss of sensitivity: ", ["the ranking gets worse"]),
        ({"own": 2.0, "bias": 4.0}, "An improvement and a shift of bias: ", [TOWARD.format("toward")]),
        ({"own": 2.0, "controls": 0}, "An improvement: ", ["no control vectors were run"]),
        (
            {"own": 2.0, "controls": 3},
            "An improvement: ",
            ["3 control vectors this may be chance (p = 0.25)"],
        ),
        ({"own": 2.0, "aligned": False}, "An improvement: ", [OWN.format("right")]),
        ({}, "No measurable shift of bias or change of sensitivity: ", ["do not measurably move"]),
    ],
)
def test_the_verdict_says_what_was_planted(variant, planted, start, phrases):
    line = summary(variant(EXPERIMENT, planted_sweep(**planted))).verdict
    assert line.startswith(start)
    assert [phrase for phrase in phrases if phrase not in line] == []
    assert ("chance" in line) == (planted.get("controls") == 3)


def test_the_caution_of_a_double_verdict_names_the_effect_that_may_be_chance(variant):
    table = planted_sweep(bias=4.0, own=1.0)
    sign = table["vector"].map(lambda name: {"0": 1, "1": -1}.get(name[-1], 0))  # of some controls
    table["logit_difference"] += 3 * sign * (1 - 2 * table["answer"].astype(float))
    line = summary(variant(EXPERIMENT, table)).verdict
    assert "the change of sensitivity may be chance" in line
    assert "the shift of bias" not in line


def test_answers_that_are_all_choice_1_move_relative_to_choice_0(variant):
    table = planted_sweep(bias=-2.0).query("answer == 1").assign(kind="negative")
    top = summary(variant(EXPERIMENT, table.astype({"kind": "string"})))
    assert top.verdict.startswith("Reviews move away from “choice 0”; all have the same right answer")
    assert "toward “choice 0”" in top.tiles[0].text
    assert top.tiles[0].value.startswith("−2.0")


def test_a_notebook_writes_the_page_of_a_run_from_its_tables(results, html, tmp_path):
    """The same verdict, sections and figures as from the run's folder, without its audit and texts."""
    page = ts.report(
        results.questions, activations=results.activations, vectors=results.vectors, damage=None,
        by="kind", signal="positive", noun="reviews", score="shift", seed=1,
    )  # fmt: skip
    page.save(tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text("utf-8")
    assert re.search("<h1>.*?</h1>", written)[0] == re.search("<h1>.*?</h1>", html)[0]
    assert section_ids(written) == [each for each in section_ids(html) if each not in ("texts", "audit")]
    assert figures_of(written)["summary"] == figures_of(html)["summary"]
    assert "srcdoc" in page._repr_html_()
    assert len(repr(page)) < 200
    assert page.verdict == summary(results).verdict
    alone = ts.report(results.questions.assign(text="a"), texts=results.texts, score="shift")
    elsewhere = results.questions["control"] & (results.questions["layers"] == results.chosen["layers"])
    other = ts.report(results.questions[~elsewhere], score="shift")
    assert "no control vectors were run in this condition" in other.verdict
    assert section_ids(alone.page) == ["texts", *QUESTIONS, "controls", "steerability", "made"]
    with pytest.raises(ValueError, match="has 40 values"):
        ts.report(results.questions.assign(many=results.questions["prompt_id"].map(str)), by="many")
    with pytest.raises(ValueError, match="no answered questions"):
        ts.report(results.questions.assign(answer=pd.NA))


def test_without_questions_and_texts_there_are_sections_of_pairs_only(variant):
    text = EXPERIMENT[: EXPERIMENT.index("[questions]")] + "[separation]\nshuffles = 0\nfolds = 3\n"
    results = variant(text, EMPTY)
    assert shown(results)[0] == ["confounds", *PAIRS]
    assert summary(results).where.startswith("Held-out paired accuracy")
    assert "<nav" in report_page(results).page


def with_projections(sweep, *, moved):
    """A sweep's table with projections in place of positive additions, which add `moved` to logits."""
    table = sweep[(sweep["split"] != "text") & (sweep["multiplier"] >= 0)].copy()
    steered = table["operation"] == "add"
    table.loc[steered, ["operation", "multiplier", "dose"]] = "project_out", np.nan, np.nan
    before = table[~steered].set_index("prompt_id")["logit_difference"]
    table.loc[steered, "logit_difference"] = table.loc[steered, "prompt_id"].map(before) + moved
    return table


def test_questions_with_one_right_answer_have_no_detection(variant):
    sweep = synthetic_sweep().rename(columns={"kind": "letter"})
    sweep["letter"] = sweep["letter"].map({"positive": "A", "negative": "B"})
    sweep.loc[sweep["split"] != "text", "answer"] = 0
    ids, _, text = shown(variant(EXPERIMENT.replace('"sentiment"', '"misconceptions"'), sweep))
    assert ids == ["effects", "doses", "choice", "controls", "steerability", "confounds", *PAIRS]
    assert "cannot be distinguished" in text


def test_projections_alone_have_no_doses(variant):
    text = EXPERIMENT.replace("[text]", "operations = ['project_out']\n[text]")
    results = variant(text, with_projections(synthetic_sweep(), moved=1.0))
    assert shown(results)[0] == ["effects", "detection", "choice", "controls", "confounds", *PAIRS]
    assert (summary(results).figure, summary(results).texts) == (None, [])


def test_the_best_operation_is_chosen_and_each_choice_reported(variant):
    text = EXPERIMENT.replace("[text]", "operations = ['project_out', 'add']\n[text]")
    whole = synthetic_sweep()
    both = pd.concat([with_projections(whole, moved=0.01), whole[whole["operation"] == "add"]])
    results = variant(text, both)
    assert (results.chosen["operation"], results.chosen["split"]) == ("add", "report")
    choice = next(section for section in sections(results) if section.id == "choice")
    assert choice.finding.count("Chosen by") == 2
    assert choice.finding.count("(project_out)") == 1


def generated_sweep(broken):
    """The sweep with answers as texts; none can be read at the multipliers `broken`."""
    sweep = synthetic_sweep()
    is_question = sweep["split"] != "text"
    sweep.loc[is_question, ["logit_difference", "probability", "mass"]] = np.nan
    sweep.loc[is_question, "text"] = "I would say so. " + HOSTILE
    sweep.loc[is_question & sweep["multiplier"].isin(broken), "choice"] = pd.NA
    return sweep


def test_generated_answers_have_no_logits_and_are_escaped(variant):
    generated = variant(GENERATED, generated_sweep(broken=[0.2]))
    ids, figures, text = shown(generated)
    assert ids == [*QUESTIONS[:3], "answers", "choice", "controls", "confounds", *PAIRS]
    assert {"effectiveness", "signal", "doses", "detection"} < figures
    assert "shift" not in figures
    assert "share that says “positive”" in text
    assert "logit" not in text
    answers = part(report_page(generated).page, 'section" id="answers"', 'section" id="choice"')
    assert "&lt;script&gt;window.hacked" in answers
    assert "[unreadable]" in answers


@pytest.mark.parametrize("broken", [[0.2], [], [-0.2, 0.0, 0.2], [-0.2, 0.2]])
def test_unreadable_answers_give_a_caution_and_are_not_scored_by_d_prime(variant, broken):
    scored = variant(GENERATED.replace("[text]", "score = 'd_prime'\n[text]"), generated_sweep(broken))
    some = len(broken) < 2
    assert list(scored.chosen[["value_name", "split"]]) == ["d_prime" if some else "accuracy", "report"]
    ids, figures, text = shown(scored)
    assert "effectiveness" in figures
    assert ({"doses", "detection"} <= set(ids)) == ("signal" in figures) == some
    assert ("Caution" in text) == (broken != [])
    assert ("were to be chosen by d′" in text) != some
    assert "same right answer" not in text


def test_shared_beginnings_and_ends_are_left_out_by_whole_words():
    questions = ["Why is it so", "Who was it", "When"]
    texts = [f"<s>user\n{question}?\nAnswer:" for question in questions]
    assert without_shared_ends(texts) == questions
    assert without_shared_ends([*texts, "<s>user\nHow?\nAnswer:"]) == [*questions, "How"]
    assert without_shared_ends(["same", "same"]) == ["same", "same"]
    assert without_shared_ends(["alone"]) == ["alone"]


def test_vectors_of_two_words_have_a_report_without_pairs(results, tmp_path):
    file = tmp_path / "words.toml"
    file.write_text(
        'title = "words"\n[pairs]\nkind = "prompts"\npositive = "<b>Love</b>"\nnegative = "Hate"\n'
        '[text]\nprompts = ["How was your day?"]\nlayers = [2]\nmultipliers = [-0.3, 0.3]\n'
    )
    info = {"positive": "<b>Love</b>", "negative": "Hate", "positions": 3}
    vectors = replace(results.vectors, method="activation_addition", info=info)
    changes = {
        "settings": settings_of(read_experiment(file), VERSIONS, results.questions),
        "audit": None,
        "activations": None,
    }
    only_texts = replace(results, **changes, vectors=vectors, questions=results.questions.head(0))
    html = report_page(only_texts).page
    assert section_ids(html) == ["texts", "made"]
    assert "No effect was measured" in html
    assert "first 3 tokens" in html
    assert "&lt;b&gt;Love&lt;/b&gt;" in html
    assert "<b>Love" not in html


@pytest.mark.parametrize(
    ("negative", "phrase"), [(None, "'Love', nothing subtracted,"), ("Hate", "'Love' minus that on 'Hate',")]
)
def test_a_vector_of_one_prompt_is_reported_with_nothing_subtracted(results, negative, phrase):
    info = {"arguments": {"positive": "Love", "negative": negative}, "positions": 3}
    assert f"the residual stream on {phrase}" in prompts_finding(replace(results.vectors, info=info))
