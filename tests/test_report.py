"""The report of a synthetic run: sections, numbers, escaping. `test_hostile_text` opens it in a browser."""

import html as entities
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from tl_steer.activations import PairedActivations
from tl_steer.directions import mean_difference
from tl_steer.experiments import Results, read_experiment, report_html
from tl_steer.experiments.report.findings import prompts_finding
from tl_steer.experiments.report.page import findings, sections
from tl_steer.experiments.report.text_rows import text_rows, without_shared_ends

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
EVIDENCE = ["agreement", "confounds", "controls", "steerability"]


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
    columns = {"said": None, "kind": np.where(answers == 0, "positive", "negative"), "text": None}
    columns |= {"prompt": [f"{text} {row}" for row in range(2 * n)], "split": ["choose", "report"] * n}
    tables = [unsteered(answers=answers, logits=before, **columns)]
    for vector, effect in (("mean_difference", 5.0), ("random 1", 0.0)):
        for layer, multiplier in product(("1", "2"), (-0.2, 0.2)):
            logits = before + rng.normal(effect * multiplier, 0.1, 2 * n)
            where = {"vector": vector, "layers": layer, "multiplier": multiplier, "norm": 1.0}
            tables.append(condition(answers=answers, logits=logits, **where, **columns))
    columns = {"prompt_id": [2 * n, 2 * n + 1], "prompt": "…", "said": ["How was your day?", text]}
    columns |= {"kind": None, "probability": np.nan, "mass": np.nan, "split": "text", "norm": 1.0}
    for multiplier in (-0.3, 0.0, 0.3):
        columns["text"] = [f"said at {multiplier} {text}", "line one\nline two"]
        vector = "mean_difference" if multiplier else "none"
        where = {"vector": vector, "layers": "2", "multiplier": multiplier}
        tables.append(condition([None] * 2, [None] * 2, logits=[np.nan] * 2, **where, **columns))
    strings = dict.fromkeys(["text", "kind", "said"], "string")
    return table_of(*tables).drop(columns="topic").astype(strings)


def synthetic_results(folder, experiment=EXPERIMENT, *, text=HOSTILE, pairs=24, sweep=None):
    """A run without a model. Three pairs are too few to halve: no agreement, which takes longest."""
    file = folder / "experiment.toml"
    file.write_text(experiment, encoding="utf-8")
    audit = pd.DataFrame(
        [("topic", text, 12.0, 12.0, 0.0, False), ("tokens", "mean", 13.25, 14.0, -0.42, True)],
        columns=["factor", "level", "positive", "negative", "difference", "differs"],
    )
    versions = {
        "date": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "seed": 1, "python": text, "device": "cpu",
        "dtype": "torch.float32", "packages": {"tl-steer": "0.1.0"},
        "model": {"name": text, "revision": text, "n_layers": 3, "d_model": 16},
    }  # fmt: skip
    activations = synthetic_pairs(text, pairs)
    vectors = mean_difference(activations).scaled_to(dose=1.0)
    sweep = synthetic_sweep(text) if sweep is None else sweep
    return Results(read_experiment(file), versions, audit, activations, vectors, sweep, EMPTY, EMPTY)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return synthetic_results(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def html(results):
    return report_html(results)


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
    return re.findall('<section id="(.*?)"', html)


PAIRS = ["audit", "separation", "pca", "projections"]
QUESTIONS = [*PAIRS, "effects", "doses", "detection", "choice"]


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
    assert section_ids(html) == [*QUESTIONS, *EVIDENCE, "texts", "made"]
    figures = ["separation", "pca", "projections", "effectiveness", "shift", "doses", "detection"]
    figures += ["agreement", "confounds", "steerability", "slopes"]
    assert re.findall('id="([a-z]+)-figure"', html) == figures
    assert html.count("Plotly.newPlot(") >= len(figures)
    assert html.index('id="findings"') < html.index("<nav>") < html.index('<section id="audit"')
    effect = part(html, 'id="effectiveness-figure"', 'id="shift-figure"')
    assert [title for title in ("kind: all", "kind: positive") if title not in effect] == []


def test_findings_name_the_verdict_and_both_signs(results, html):
    separation, chosen, opposite, *_ = findings(results)
    assert "Held-out" in separation
    assert results.opposite["multiplier"] == -results.chosen["multiplier"]
    assert results.opposite["layers"] == results.chosen["layers"]
    for finding, row in ((chosen, results.chosen), (opposite, results.opposite)):
        assert f"{row['multiplier']:+.2f} (dose {row['dose']:.2f})".replace("-", "−") in finding
        assert "a shift of bias" in finding
        assert finding in entities.unescape(part(html, 'id="findings"', "<nav>"))


def test_texts_are_ordered_by_multiplier_in_the_page(html):
    row = re.search(r"<tr><td>How was your day\?</td>(.*?)</tr>", html, re.DOTALL)[1]
    order = [row.index(f"said at {multiplier}") for multiplier in (-0.3, 0.0, 0.3)]
    assert order == sorted(order)
    assert "−0.30 (dose 0.30)" in html


def shown(results):
    """Ids of sections, ids of figures, and the findings as one text."""
    parts = sections(results)
    figures = {figure for section in parts for figure, _ in section.figures}
    return [section.id for section in parts], figures, " ".join(findings(results))


def test_without_questions_and_texts_there_are_sections_of_pairs_only(variant):
    text = EXPERIMENT[: EXPERIMENT.index("[questions]")] + "[separation]\nshuffles = 0\nfolds = 3\n"
    assert shown(variant(text, EMPTY))[0] == [*PAIRS, "confounds"]
    assert text_rows(EMPTY) == []


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
    assert ids == [*PAIRS, "effects", "doses", "choice", *EVIDENCE[1:]]
    assert "cannot be distinguished" in text


def test_projections_alone_have_no_doses(variant):
    text = EXPERIMENT.replace("[text]", "operations = ['project_out']\n[text]")
    ids, _, text = shown(variant(text, with_projections(synthetic_sweep(), moved=1.0)))
    assert ids == [*PAIRS, "effects", "detection", "choice", "confounds", "controls"]
    assert "length" not in text


def test_the_best_operation_is_chosen_and_each_choice_reported(variant):
    text = EXPERIMENT.replace("[text]", "operations = ['project_out', 'add']\n[text]")
    whole = synthetic_sweep()
    both = pd.concat([with_projections(whole, moved=0.01), whole[whole["operation"] == "add"]])
    results = variant(text, both)
    assert (results.chosen["operation"], results.chosen["split"]) == ("add", "report")
    chosen = [finding for finding in findings(results) if finding.startswith("Chosen by")]
    assert ["(project_out)" in finding for finding in chosen] == [True, False, True, False]
    assert ["accuracy" in finding for finding in chosen] == [False, False, True, True]


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
    assert ids == [*QUESTIONS, "answers", "confounds", "controls"]
    assert {"effectiveness", "signal", "doses", "detection"} < figures
    assert "shift" not in figures
    assert "share that says “positive”" in text
    assert "logit" not in text
    answers = part(report_html(generated), 'id="answers"', 'id="texts"')
    assert "&lt;script&gt;window.hacked" in answers
    assert "[unreadable]" in answers


@pytest.mark.parametrize("broken", [[0.2], [], [-0.2, 0.0, 0.2], [-0.2, 0.2]])
def test_unreadable_answers_give_a_caution_and_are_not_scored_by_d_prime(variant, broken):
    scored = variant(GENERATED.replace("[text]", "score = 'd_prime'\n[text]"), generated_sweep(broken))
    some, baseline = len(broken) < 2, 0.0 not in broken
    assert list(scored.chosen[["value_name", "split"]]) == ["d_prime" if some else "accuracy", "report"]
    ids, figures, text = shown(scored)
    assert "effectiveness" in figures
    assert ({"doses", "detection"} <= set(ids)) == ("signal" in figures) == baseline
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


def test_texts_are_ordered_by_multiplier_with_removal_last():
    texts = synthetic_sweep().query("split == 'text'")
    more = texts[texts["multiplier"] == 0.3]
    removed = more.assign(operation="project_out", multiplier=np.nan, dose=np.nan, text="removed")
    (layer,) = text_rows(pd.concat([removed, more.assign(multiplier=8.0, text="at 8"), texts]))
    assert (layer.layer, layer.plain) == ("2", 1)
    assert [head.split()[0] for head in layer.heads] == ["−0.30", "unsteered", "+0.30", "+8.00", "project"]
    prompt, answers = layer.rows[0]
    assert prompt == "How was your day?"
    said = [f"said at {multiplier}" for multiplier in (-0.3, 0.0, 0.3)]
    assert [text.split(" <")[0] for text in answers] == [*said, "at 8", "removed"]


def test_vectors_of_two_words_have_a_report_without_pairs(results, tmp_path):
    file = tmp_path / "words.toml"
    file.write_text(
        'title = "words"\n[pairs]\nkind = "prompts"\npositive = "<b>Love</b>"\nnegative = "Hate"\n'
        '[text]\nprompts = ["How was your day?"]\nlayers = [2]\nmultipliers = [-0.3, 0.3]\n'
    )
    info = {"positive": "<b>Love</b>", "negative": "Hate", "positions": 3}
    vectors = replace(results.vectors, method="activation_addition", info=info)
    changes = {"experiment": read_experiment(file), "audit": None, "activations": None, "vectors": vectors}
    html = report_html(replace(results, **changes, sweep=results.sweep.query("split == 'text'")))
    assert section_ids(html) == ["texts", "made"]
    assert "first 3 tokens" in html
    assert "&lt;b&gt;Love&lt;/b&gt;" in html
    assert "<b>Love" not in html
    assert html.count("said at 0.3") == 1


@pytest.mark.parametrize(
    ("negative", "phrase"), [(None, "'Love', nothing subtracted,"), ("Hate", "'Love' minus that on 'Hate',")]
)
def test_a_vector_of_one_prompt_is_reported_with_nothing_subtracted(results, negative, phrase):
    info = {"arguments": {"positive": "Love", "negative": negative}, "positions": 3}
    assert f"the residual stream on {phrase}" in prompts_finding(replace(results.vectors, info=info))
