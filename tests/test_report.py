"""The report in a browser: it draws, asks no network, and runs nothing that a model wrote."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tl_steer.activations import Activations, PairedActivations
from tl_steer.directions import mean_difference
from tl_steer.experiments import Results, read_experiment, report_html
from tl_steer.experiments.report.texts import text_rows, without_shared_ends
from tl_steer.positions import last_token

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOTHING = pd.DataFrame({"split": pd.Series([], dtype=str)})  # a table that the experiment did not ask for
HOSTILE = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>&amp; {{ 7*7 }}"
EXPERIMENT = f"""title = "A title with <b>marks</b>"
question = '''What is asked? {HOSTILE}'''
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


def made_pairs(pairs=24, layers=3, width=16):
    """Sides that differ along one axis, more so at later layers; hostile prompts."""
    import torch

    from tl_steer.models import ModelIdentity

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, pairs, layers, 1, width))
    noise[0, ..., 0] += np.arange(layers)[None, :, None] * 1.5
    identity = ModelIdentity(
        "toy", None, layers, width, 4, 4, "RMS", False, "", tuple(np.linspace(-1, 1, 256))
    )

    def side(values, name):
        return Activations(
            torch.tensor(values, dtype=torch.float32),
            torch.full((pairs, 1), 4),
            torch.full((pairs, 1), 7),
            torch.full((pairs,), 5),
            tuple(range(layers)),
            "resid_post",
            last_token(),
            tuple(f"{name} prompt {row} {HOSTILE}" for row in range(pairs)),
            torch.full((layers,), 10.0),
            identity,
        )

    factors = pd.DataFrame({"group": range(pairs), "topic": [HOSTILE, "plain"] * (pairs // 2)})
    return PairedActivations(side(noise[0], "positive"), side(noise[1], "negative"), factors)


def made_sweep(n=20):
    """Choice cells at two layers with a control, and texts at one, hostile throughout."""
    rng = np.random.default_rng(1)
    kinds = ["positive"] * n + ["negative"] * n
    cells = [("none", False, "none", "", "", 0.0, 0.0)]
    cells += [
        (vector, vector != "mean_difference", "add", layer, "resid_post", multiplier, abs(multiplier))
        for vector in ("mean_difference", "random 1")
        for layer in ("1", "2")
        for multiplier in (-0.2, 0.2)
    ]
    names = ["vector", "control", "operation", "layers", "hook", "multiplier", "dose"]
    frames = []
    before = np.where(np.array(kinds) == "positive", 1.0, -1.0) + rng.normal(0, 0.8, 2 * n)
    for cell in cells:
        moved = before + rng.normal(5 * cell[5] * (not cell[1]), 0.1, 2 * n) * (cell[5] != 0)
        asked = {
            "prompt_id": range(2 * n),
            "prompt": [f"{HOSTILE} {i}" for i in range(2 * n)],
            "said": None,
            "kind": kinds,
        }
        measured = {
            "split": ["choose", "report"] * n,
            "answer": pd.array([0] * n + [1] * n, dtype="Int64"),
            "choice": pd.array((moved <= 0).astype(int), dtype="Int64"),
            "logit_difference": moved, "probability": 0.5, "mass": 0.9, "text": None,
        }  # fmt: skip
        frames.append(pd.DataFrame(asked | measured).assign(**dict(zip(names, cell, strict=True))))
    for multiplier in (-0.3, 0.0, 0.3):
        cell = cells[0] if multiplier == 0 else (*cells[1][:3], "2", "resid_post", multiplier, 0.3)
        text = {
            "prompt_id": [2 * n, 2 * n + 1], "prompt": "…", "said": ["How was your day?", HOSTILE],
            "kind": None, "split": "text", "answer": pd.array([pd.NA] * 2, dtype="Int64"),
            "choice": pd.array([pd.NA] * 2, dtype="Int64"),
            "logit_difference": np.nan, "probability": np.nan, "mass": np.nan,
            "text": [f"said at {multiplier} {HOSTILE}", "line one\nline two"],
        }  # fmt: skip
        frames.append(pd.DataFrame(text).assign(**dict(zip(names, cell, strict=True))))
    return pd.concat(frames, ignore_index=True).astype({"text": "string", "kind": "string", "said": "string"})


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A run made up, without a model."""
    file = tmp_path_factory.mktemp("experiment") / "experiment.toml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    pairs = made_pairs()
    audit = pd.DataFrame(
        {"factor": ["topic", "tokens"], "level": [HOSTILE, "mean"], "positive": [12.0, 13.25],
         "negative": [12.0, 14.0],
         "difference": [0.0, -0.42], "differs": [False, True]}
    )  # fmt: skip
    versions = {
        "date": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "seed": 1, "python": "3.11", "device": "cpu",
        "dtype": "torch.float32", "packages": {"tl-steer": "0.1.0"},
        "model": {"name": "toy", "revision": None, "n_layers": 3, "d_model": 16},
    }  # fmt: skip
    vectors = mean_difference(pairs).scaled_to(dose=1.0)
    return Results(read_experiment(file), versions, audit, pairs, vectors, made_sweep(), NOTHING, NOTHING)


@pytest.fixture(scope="module")
def html(results):
    return report_html(results)


def test_hostile_text_is_escaped_wherever_it_comes_from(html):
    body = html[html.index("</style>") :]
    outside = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)
    assert "<img" not in outside
    assert "window.hacked" in outside  # it is there, as text
    assert "<script>window.hacked" not in body
    assert "&lt;script&gt;window.hacked" in outside
    assert "<b>marks</b>" not in outside


def test_the_report_names_no_address_to_load_from(html):
    assert not re.search(r"""<(script|link|img|iframe)[^>]+(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert html.count("Plotly.newPlot(") >= 11
    assert "default-src 'none'" in html


def test_the_first_screen_answers_the_question(html):
    found = html[html.index('id="findings"') : html.index("<nav>")]
    assert "Held-out pairs" in found
    assert "moves both kinds of questions" in found
    assert "shift of bias" in found
    assert "1 control vector of the same length" in found


def test_the_chosen_cell_and_its_opposite_are_both_told(results):
    from tl_steer.experiments.report.page import findings

    chosen = results.chosen["multiplier"]
    assert results.opposite["multiplier"] == -chosen
    assert results.opposite["layers"] == results.chosen["layers"]
    told = [finding for finding in findings(results) if "half not chosen on" in finding]
    signs = [finding[: finding.index("(dose")].split()[-1][0] for finding in told]
    assert signs == (["−", "+"] if chosen < 0 else ["+", "−"])


def test_minus_none_and_plus_stand_side_by_side(html):
    row = re.search(r"<tr><td>How was your day\?</td>(.*?)</tr>", html, re.DOTALL).group(1)
    order = [row.index(f"said at {multiplier}") for multiplier in (-0.3, 0.0, 0.3)]
    assert order == sorted(order)
    assert "−0.30 (dose 0.30)" in html


def test_the_experiment_file_is_shown_whole(html):
    import html as library

    shown = re.search(r"<pre>(.*?)</pre>", html, re.DOTALL).group(1)
    assert library.unescape(shown) == EXPERIMENT


def test_without_questions_or_texts_the_report_has_the_pairs_alone(results, tmp_path):
    text = EXPERIMENT[: EXPERIMENT.index("[questions]")] + "[separation]\nshuffles = 0\nfolds = 3\n"
    file = tmp_path / "pairs.toml"
    file.write_text(text, encoding="utf-8")
    args = (results.versions, results.audit, results.activations, results.vectors)
    html = report_html(Results(read_experiment(file), *args, *[NOTHING] * 3))
    assert 'id="pca"' in html
    assert 'id="detection"' not in html
    assert 'id="texts"' not in html


def rerun(results, folder, text, sweep):
    """The same run with another experiment file and another sweep."""
    file = folder / "other.toml"
    file.write_text(text, encoding="utf-8")
    return replace(results, experiment=read_experiment(file), sweep=sweep)


def with_projections(sweep, *, moved):
    """A sweep's table in which positive additions are projections, and move logit differences so far."""
    table = sweep[(sweep["split"] != "text") & (sweep["multiplier"] >= 0)].copy()
    steered = table["operation"] == "add"
    table.loc[steered, ["operation", "multiplier", "dose"]] = "project_out", np.nan, np.nan
    before = table[~steered].set_index("prompt_id")["logit_difference"]
    table.loc[steered, "logit_difference"] = table.loc[steered, "prompt_id"].map(before) + moved
    return table


def test_questions_whose_right_answer_is_always_the_signal_have_a_report_without_detection(results, tmp_path):
    sweep = made_sweep().rename(columns={"kind": "letter"})
    asked = sweep["split"] != "text"
    sweep.loc[asked, "letter"] = sweep.loc[asked, "letter"].map({"positive": "A", "negative": "B"})
    sweep.loc[asked, "answer"] = 0
    html = report_html(rerun(results, tmp_path, EXPERIMENT.replace('"sentiment"', '"misconceptions"'), sweep))
    assert "cannot be told apart" in html
    assert 'id="effects"' in html
    assert 'id="doses"' in html
    assert 'id="detection"' not in html


def test_projections_alone_have_a_report_without_doses(results, tmp_path):
    text = EXPERIMENT.replace("[text]", "operations = ['project_out']\n[text]")
    html = report_html(rerun(results, tmp_path, text, with_projections(made_sweep(), moved=1.0)))
    assert 'id="doses"' not in html
    assert 'id="detection"' in html
    assert "of the same length" not in html[html.index('id="findings"') : html.index("<nav>")]


def test_the_report_follows_the_best_operation_and_tells_the_choice_of_each(results, tmp_path):
    from tl_steer.experiments.report.page import findings

    text = EXPERIMENT.replace("[text]", "operations = ['project_out', 'add']\n[text]")
    whole = made_sweep()
    weaker = with_projections(whole, moved=0.01)
    both = rerun(results, tmp_path, text, pd.concat([weaker, whole[whole["operation"] == "add"]]))
    assert (both.chosen["operation"], both.chosen["split"]) == ("add", "report")
    chosen = [finding for finding in findings(both) if finding.startswith("Chosen by")]
    assert ["(project_out)" in finding for finding in chosen] == [True, False, True, False]
    assert ["accuracy" in finding for finding in chosen] == [False, False, True, True]


WRITTEN = EXPERIMENT.replace("[text]", "measure = 'generate'\n[text]")


def written_sweep(*, broken=()):
    """The made sweep as if its answers were read from texts; none can be read at the multipliers `broken`."""
    sweep = made_sweep()
    asked = sweep["split"] != "text"
    sweep.loc[asked, ["logit_difference", "probability", "mass"]] = np.nan
    sweep.loc[asked, "text"] = "I would say so. " + HOSTILE
    sweep.loc[asked & sweep["multiplier"].isin(broken), "choice"] = pd.NA
    return sweep


def test_answers_in_words_have_a_report_without_logits(results, tmp_path):
    html = report_html(rerun(results, tmp_path, WRITTEN, written_sweep()))
    found = html[html.index('id="findings"') : html.index("<nav>")]
    assert "change of the share that says “positive”" in found
    assert "a choice could be read" in found
    assert "logit" not in found
    for id_ in ("effectiveness-figure", "signal-figure", "doses-figure", "detection", "answers"):
        assert f'id="{id_}"' in html
    assert 'id="shift-figure"' not in html
    assert "&lt;script&gt;window.hacked" in html[html.index('id="answers"') : html.index('id="texts"')]


def test_answers_that_cannot_be_read_are_shown_as_such(results, tmp_path):
    html = report_html(rerun(results, tmp_path, WRITTEN, written_sweep(broken=[0.2])))
    found = html[html.index('id="findings"') : html.index("<nav>")]
    assert "Caution: the answers are texts" in found
    assert "[unreadable]" in html[html.index('id="answers"') : html.index('id="texts"')]


def test_a_run_of_which_no_answer_can_be_read_has_a_report(results, tmp_path):
    html = report_html(rerun(results, tmp_path, WRITTEN, written_sweep(broken=[-0.2, 0.0, 0.2])))
    assert 'id="doses"' not in html
    assert 'id="signal-figure"' not in html
    assert 'id="detection"' not in html
    assert 'id="effectiveness-figure"' in html


@pytest.mark.parametrize("broken", [[-0.2, 0.0, 0.2], [-0.2, 0.2]])
def test_where_no_cell_has_a_d_prime_accuracy_chooses_and_the_report_says_so(results, tmp_path, broken):
    text = WRITTEN.replace("[text]", "score = 'd_prime'\n[text]")
    found = rerun(results, tmp_path, text, written_sweep(broken=broken))
    assert (found.chosen["score"], found.chosen["split"]) == ("accuracy", "report")
    html = report_html(found)
    assert "were to be chosen by d′, for which too few answers can be read" in html
    assert "All questions have the same right answer" not in html
    read = rerun(results, tmp_path, text, written_sweep())
    assert read.chosen["score"] == "d_prime"
    assert "too few answers can be read on the half" not in report_html(read)


def test_the_effect_figure_has_a_panel_of_all_questions(html):
    figure = html[html.index('id="effectiveness-figure"') : html.index('id="shift-figure"')]
    assert "kind: all" in figure
    assert "kind: positive" in figure


def test_shared_beginnings_and_ends_are_left_out_by_whole_words():
    asked = ["Why is it so", "Who was it", "When"]
    texts = [f"<s>user\n{question}?\nAnswer:" for question in asked]
    assert without_shared_ends(texts) == asked
    assert without_shared_ends([*texts, "<s>user\nHow?\nAnswer:"]) == [*asked, "How"]
    assert without_shared_ends(["same", "same"]) == ["same", "same"]
    assert without_shared_ends(["alone"]) == ["alone"]


def test_texts_stand_from_the_lowest_multiplier_to_the_highest_and_removal_last():
    texts = made_sweep()
    texts = texts[texts["split"] == "text"]
    more = texts[texts["multiplier"] == 0.3]
    removed = more.assign(operation="project_out", multiplier=np.nan, dose=np.nan, text="removed")
    (layer,) = text_rows(pd.concat([removed, more.assign(multiplier=8.0, text="at 8"), texts]))
    assert layer.layer == "2"
    assert [head.split()[0] for head in layer.heads] == ["−0.30", "unsteered", "+0.30", "+8.00", "project"]
    assert layer.plain == 1
    said, written = layer.rows[0]
    assert said == "How was your day?"
    assert [text.split(" <")[0] for text in written] == [
        "said at -0.3", "said at 0.0", "said at 0.3", "at 8", "removed",
    ]  # fmt: skip


def test_vectors_of_two_words_have_a_report_without_pairs(results, tmp_path):
    text = """title = "words"
[pairs]
kind = "prompts"
positive = "<b>Love</b>"
negative = "Hate"
[text]
prompts = ["How was your day?"]
layers = [2]
multipliers = [-0.3, 0.3]
"""
    file = tmp_path / "words.toml"
    file.write_text(text, encoding="utf-8")
    info = {"positive": "<b>Love</b>", "negative": "Hate", "positions": 3}
    vectors = replace(results.vectors, method="activation_addition", info=info)
    sweep = made_sweep()
    changes = {"experiment": read_experiment(file), "audit": None, "activations": None, "vectors": vectors}
    words = replace(results, **changes, sweep=sweep[sweep["split"] == "text"])
    html = report_html(words)
    assert "one vector for each of the first 3 tokens" in html
    assert "&lt;b&gt;Love&lt;/b&gt;" in html
    assert "<b>Love" not in html
    for id_ in ("audit", "separation", "pca", "projections", "effects"):
        assert f'id="{id_}"' not in html
    assert html.count("said at 0.3") == 1


@pytest.fixture(scope="module")
def page(html, tmp_path_factory):
    """The report opened in headless Chromium; `page.seen` holds console messages, errors and requests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}: install Debian's package chromium")
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(html, encoding="utf-8")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport={"width": 1100, "height": 1000},
        )  # fmt: skip
        page = context.new_page()
        page.seen = {"errors": [], "requests": []}
        page.on(
            "console", lambda message: message.type == "error" and page.seen["errors"].append(message.text)
        )
        page.on("pageerror", lambda error: page.seen["errors"].append(str(error)))
        page.on("request", lambda request: page.seen["requests"].append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length > 6")
        yield page
        context.close()


def test_every_figure_is_drawn_without_errors_or_requests(page):
    figures = page.locator(".figure .js-plotly-plot")
    assert figures.count() == 11
    for place in range(11):
        assert figures.nth(place).locator("svg.main-svg").count() > 0
        assert figures.nth(place).locator(".trace path, .point, .bars path, .hm image").count() > 0
    assert page.seen["errors"] == []
    assert [url for url in page.seen["requests"] if not url.startswith(("file:", "data:", "blob:"))] == []


def test_a_hover_shows_the_prompt_as_text(page):
    figure = page.locator("#figure-pca")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".scatterlayer .point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = figure.locator(".hoverlayer .hovertext")
    label.first.wait_for()
    assert "prompt" in label.first.text_content()
    assert "<script>" in label.first.text_content()


def test_a_slider_step_moves_the_points(page):
    figure = page.locator("#figure-pca")
    figure.scroll_into_view_if_needed()
    read = "document.getElementById('figure-pca').data.map(trace => Array.from(trace.x || [])).flat().join()"
    before = page.evaluate(read)
    box = figure.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    assert page.evaluate(read) != before


def test_nothing_that_a_model_wrote_runs(page):
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("#texts td", has_text="said at 0.3").first.text_content().endswith("{{ 7*7 }}")
