"""The bundled data: sizes, balance, no duplicates, and no words or lengths that give answers away."""

import re
from collections import Counter
from importlib import resources

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import tl_steer as ts

from .conftest import assert_raises

NEGATIONS = {"no", "not", "never", "none", "nothing", "nobody", "without", "cannot", "neither", "nor"}
ABSOLUTES = {"all", "every", "always", "only", "entirely", "any", "must"}
HEDGES = {"some", "usually", "often", "many", "most", "can", "may", "about", "mostly", "sometimes"}
TRUTH = {"true", "truth", "false", "lie", "lies", "honest", "wrong", "correct", "incorrect"}
MOOD = {
    "happy", "sad", "good", "bad", "great", "terrible", "wonderful", "awful", "love", "hate", "joy", "angry",
    "beautiful", "ugly", "best", "worst", "nice", "horrible", "lovely", "nasty", "excellent", "delicious",
    "disgusting", "sadly", "fortunately", "unfortunately", "pleasant", "unpleasant", "enjoy", "enjoyed",
}  # fmt: skip
MANNERS = {"please", "thank", "thanks", "sorry", "welcome", "kindly", "pardon", "damn", "stupid", "idiot"}


def normalised(text):
    """A sentence without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


@pytest.fixture(scope="module")
def tables():
    """Every bundled table by its file's name."""
    pairs = ts.read_pairs()
    return {
        "claims_train": ts.read_claims("claims_train"),
        "claims_eval": ts.read_claims("claims_eval"),
        "sentiment_pairs": pd.DataFrame({"positive": pairs.positive, "negative": pairs.negative}),
        "reviews": ts.prompts.read_reviews(),
        "misconceptions": ts.prompts.read_misconceptions(),
        "dilemmas": ts.prompts.read_dilemmas(),
        "neutral": ts.prompts.read_neutral(),
    }


@pytest.fixture(scope="module")
def claims(tables):
    both = pd.concat([tables["claims_train"], tables["claims_eval"]], ignore_index=True)
    return both.assign(words=both["statement"].map(words))


@pytest.fixture(scope="module")
def passages(tables):
    return list(tables["neutral"]["passage"])


def test_sizes_are_as_documented(tables):
    assert Counter(tables["claims_train"]["label"]) == {1: 210, 0: 210}
    assert Counter(tables["claims_eval"]["label"]) == {1: 100, 0: 100}
    minima = {"sentiment_pairs": 60, "reviews": 120, "misconceptions": 100, "dilemmas": 20, "neutral": 110}
    assert {name: len(tables[name]) for name, size in minima.items() if len(tables[name]) < size} == {}
    topics = Counter(tables["neutral"]["topic"])
    assert len(topics) >= 10
    assert len(set(topics.values())) == 1


@pytest.mark.parametrize("name", ["claims_train", "claims_eval", "reviews"])
def test_labels_are_balanced_in_every_topic(tables, name):
    counts = pd.crosstab(tables[name]["topic"], tables[name]["label"])
    assert (counts[0] == counts[1]).all(), counts[counts[0] != counts[1]]
    assert len(counts) >= 10


def test_no_text_comes_twice_within_or_across_files(tables):
    columns = {"statement", "positive", "negative", "review", "question", "dilemma", "passage"}
    texts = [text for table in tables.values() for name in columns & set(table) for text in table[name]]
    assert len(texts) > 1000
    assert [text for text, count in Counter(map(normalised, texts)).items() if count > 1] == []


def test_no_evaluation_claim_is_a_training_claim_with_a_word_changed(tables):
    """A claim that shares nearly all its words with a training claim is not held out."""
    train, held_out = (
        [words(text) for text in tables[name]["statement"]] for name in ("claims_train", "claims_eval")
    )
    assert [(a, b) for a in train for b in held_out if len(a & b) > 0.8 * len(a | b)] == []


def test_reviews_are_one_sentence_each(tables):
    reviews = tables["reviews"]["review"]
    assert [text for text in reviews if re.search(r"[.!?…]\s+[A-Z]", text) or text[-1] not in ".!?"] == []


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("sentiment_pairs", "positive", "negative"), ("misconceptions", "correct", "incorrect")],
)
def test_both_sides_of_a_pair_or_a_question_differ(tables, name, one, other):
    sides = (tables[name][side].map(normalised) for side in (one, other))
    assert not np.equal(*sides).any()


def fisher(claims, vocabulary):
    """p-value of Fisher's exact test: do claims with these words occur equally often under both labels?"""
    hit = np.array([bool(bag & vocabulary) for bag in claims["words"]])
    label = np.asarray(claims["label"]) == 1
    counts = [[(hit & label).sum(), (hit & ~label).sum()], [(~hit & label).sum(), (~hit & ~label).sum()]]
    return stats.fisher_exact(counts)[1]


@pytest.mark.parametrize(
    "vocabulary", [NEGATIONS, ABSOLUTES, HEDGES], ids=["negations", "absolutes", "hedges"]
)
def test_no_class_of_words_predicts_a_claim_s_truth(claims, vocabulary):
    assert fisher(claims, vocabulary) > 0.05


def test_no_single_word_predicts_a_claim_s_truth(claims):
    counts = Counter(word for bag in claims["words"] for word in bag)
    p_values = {word: fisher(claims, {word}) for word, count in counts.items() if count >= 5}
    assert len(p_values) > 50
    assert min(p_values.values()) > 0.05 / len(p_values), min(p_values, key=p_values.get)


def test_a_bag_of_words_of_the_training_claims_is_at_chance_on_the_others(tables):
    """Within the 95 % interval around one half."""
    train, held_out = tables["claims_train"], tables["claims_eval"]
    classifier = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1000))
    predicted = classifier.fit(train["statement"], train["label"]).predict(held_out["statement"])
    correct = int((predicted == held_out["label"]).sum())
    assert stats.binomtest(correct, len(held_out)).pvalue > 0.05


def test_length_predicts_no_label(tables, claims):
    """Austin 2009: groups count as balanced below a tenth of a standard deviation; reviews may vary more."""

    def difference(one, other):
        one, other = one.str.len(), other.str.len()
        return abs(np.mean(one) - np.mean(other)) / np.sqrt((np.var(one) + np.var(other)) / 2)

    def by_label(table, column):
        return difference(*(table.loc[table["label"] == label, column] for label in (1, 0)))

    pairs, questions = tables["sentiment_pairs"], tables["misconceptions"]
    assert by_label(claims, "statement") < 0.1
    assert difference(questions["correct"], questions["incorrect"]) < 0.1
    assert by_label(tables["reviews"], "review") < 0.25
    assert difference(pairs["positive"], pairs["negative"]) < 0.1


def test_texts_are_trimmed_and_printable_and_files_are_resources_of_the_package(tables):
    texts = [text for table in tables.values() for name in table if name != "label" for text in table[name]]
    assert [text for text in texts if text != text.strip() or not text.isprintable() or "  " in text] == []
    files = [file for file in resources.files("tl_steer.data").iterdir() if file.name.endswith(".csv")]
    assert {file.name for file in files} == {f"{name}.csv" for name in tables}
    assert all(file.read_text(encoding="utf-8").count("\n") > 20 for file in files)


def test_neutral_passages_are_sentences_of_similar_length_with_different_beginnings(passages):
    """The first three words are unique, and no first word begins many of them."""
    assert [passage for passage in passages if not re.match(r'["A-Z].*(\.|\."|\?")$', passage)] == []
    sizes = [len(passage.split()) for passage in passages]
    assert 25 <= min(sizes) <= max(sizes) <= 60
    starts = [normalised(passage).split() for passage in passages]
    assert len({tuple(start[:3]) for start in starts}) == len(starts)
    assert max(Counter(start[0] for start in starts).values()) <= len(starts) / 10


def test_neutral_passages_share_no_run_of_six_words(passages):
    """Passages from a template would."""
    tokens = [normalised(passage).split() for passage in passages]
    runs = Counter(run for each in tokens for run in {tuple(each[i : i + 6]) for i in range(len(each) - 5)})
    assert max(runs.values()) == 1, runs.most_common(1)


@pytest.mark.parametrize("vocabulary", [TRUTH, MOOD, MANNERS], ids=["truth", "mood", "manners"])
def test_neutral_passages_have_no_word_of_truth_mood_or_manners(passages, vocabulary):
    assert [passage for passage in passages if words(passage) & vocabulary] == []


def test_a_table_of_passages_needs_only_that_column(tmp_path):
    (tmp_path / "own.csv").write_text("source,passage\nx,One two.\n")
    table = ts.prompts.read_neutral(tmp_path / "own.csv")
    assert table.to_dict("records") == [{"passage": "One two.", "source": "x"}]
    (tmp_path / "other.csv").write_text("text\nOne two.\n")
    assert_raises("lacks the columns", ts.prompts.read_neutral, tmp_path / "other.csv")
