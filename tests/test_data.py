"""The project's own data: as much as promised, balanced, no doubles, nothing that gives answers away."""

import re
from collections import Counter
from importlib import resources
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tl_steer.prompts import (
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_neutral,
    read_pairs,
    read_reviews,
)

NEGATIONS = {"no", "not", "never", "none", "nothing", "nobody", "without", "cannot", "neither", "nor"}
ABSOLUTES = {"all", "every", "always", "only", "entirely", "any", "must"}
HEDGES = {"some", "usually", "often", "many", "most", "can", "may", "about", "mostly", "sometimes"}


def normalised(text):
    """What is left of a sentence without case, punctuation and spacing."""
    return " ".join(re.findall(r"\w+", text.lower()))


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def doubles(texts):
    return [text for text, count in Counter(map(normalised, texts)).items() if count > 1]


@pytest.fixture(scope="module")
def claims():
    """Both files, with the part they are from."""
    parts = {name: read_claims(name) for name in ("claims_train", "claims_eval")}
    return pd.concat([table.assign(part=name) for name, table in parts.items()], ignore_index=True)


def test_there_is_as_much_as_promised():
    assert Counter(read_claims("claims_train")["label"]) == {1: 210, 0: 210}
    assert Counter(read_claims("claims_eval")["label"]) == {1: 100, 0: 100}
    assert len(read_pairs()) >= 60
    reviews = Counter(read_reviews()["label"])
    assert reviews[0] == reviews[1] >= 60
    assert len(read_misconceptions()) >= 100
    assert len(read_dilemmas()) >= 20
    neutral = Counter(read_neutral()["topic"])
    assert sum(neutral.values()) >= 110
    assert len(neutral) >= 10
    assert len(set(neutral.values())) == 1


def test_claims_and_reviews_are_balanced_in_every_topic(claims):
    for table in (
        claims[claims["part"] == "claims_train"],
        claims[claims["part"] == "claims_eval"],
        read_reviews(),
    ):
        counts = pd.crosstab(table["topic"], table["label"])
        assert (counts[0] == counts[1]).all(), counts[counts[0] != counts[1]]
        assert len(counts) >= 10


def test_no_claim_comes_twice_within_or_across_the_files(claims):
    assert not doubles(claims["statement"])


def test_no_claim_of_one_file_is_another_with_a_word_changed(claims):
    """A held-out claim that shares nearly all its words with a training claim is not held out."""
    sides = [claims.loc[claims["part"] == part, "statement"] for part in ("claims_train", "claims_eval")]
    bags = [[words(text) for text in side] for side in sides]
    alike = [
        (train, held_out)
        for train, bag in zip(sides[0], bags[0], strict=True)
        for held_out, other in zip(sides[1], bags[1], strict=True)
        if len(bag & other) > 0.8 * len(bag | other)
    ]
    assert not alike


def test_nothing_else_comes_twice():
    pairs = read_pairs()
    assert not doubles(pairs.positive + pairs.negative)
    assert not doubles(read_reviews()["review"])
    assert not doubles(read_misconceptions()["question"])
    assert not doubles(read_dilemmas()["dilemma"])
    assert not doubles(read_neutral()["passage"])


def test_reviews_and_pairs_do_not_overlap():
    pairs = read_pairs()
    assert not {normalised(text) for text in pairs.positive + pairs.negative} & {
        normalised(text) for text in read_reviews()["review"]
    }


def test_reviews_are_one_sentence_each():
    inner = [text for text in read_reviews()["review"] if re.search(r"[.!?…]\s+[A-Z]", text)]
    assert not inner
    assert all(text[-1] in ".!?" for text in read_reviews()["review"])


def test_both_sides_of_a_pair_or_a_question_differ():
    pairs, questions = read_pairs(), read_misconceptions()
    both = [*zip(pairs.positive, pairs.negative, strict=True)]
    both += zip(questions["correct"], questions["incorrect"], strict=True)
    assert all(normalised(one) != normalised(other) for one, other in both)


def fisher(texts, labels, vocabulary):
    """p that texts with a word of the vocabulary are as frequent under both labels."""
    hit = np.array([bool(words(text) & vocabulary) for text in texts])
    label = np.asarray(labels) == 1
    return stats.fisher_exact(
        [[(hit & label).sum(), (hit & ~label).sum()], [(~hit & label).sum(), (~hit & ~label).sum()]]
    )[1]


@pytest.mark.parametrize("kind", [NEGATIONS, ABSOLUTES, HEDGES], ids=["negations", "absolutes", "hedges"])
def test_no_kind_of_word_gives_a_claims_truth_away(claims, kind):
    assert fisher(claims["statement"], claims["label"], kind) > 0.05


def test_no_single_word_gives_a_claims_truth_away(claims):
    frequent = [
        word
        for word, count in Counter(w for text in claims["statement"] for w in words(text)).items()
        if count >= 5
    ]
    found = {word: fisher(claims["statement"], claims["label"], {word}) for word in frequent}
    assert len(found) > 50
    assert min(found.values()) > 0.05 / len(found), min(found, key=found.get)


def test_words_learnt_from_the_training_claims_do_not_tell_the_held_out_ones(claims):
    """A bag of words must stay at chance on held-out claims: within the 95 % interval around one half."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train, held_out = (claims[claims["part"] == part] for part in ("claims_train", "claims_eval"))
    reader = make_pipeline(CountVectorizer(binary=True), LogisticRegression(max_iter=1000))
    right = (
        reader.fit(train["statement"], train["label"]).predict(held_out["statement"]) == held_out["label"]
    ).sum()
    assert stats.binomtest(int(right), len(held_out)).pvalue > 0.05


def standardised(one, other):
    return (np.mean(one) - np.mean(other)) / np.sqrt((np.var(one) + np.var(other)) / 2)


def test_length_gives_nothing_away(claims):
    """Austin 2009: groups count as balanced below a tenth of a standard deviation; reviews may vary more."""
    size = claims["statement"].str.len()
    assert abs(standardised(size[claims["label"] == 1], size[claims["label"] == 0])) < 0.1
    questions = read_misconceptions()
    assert abs(standardised(questions["correct"].str.len(), questions["incorrect"].str.len())) < 0.1
    reviews = read_reviews()
    size = reviews["review"].str.len()
    assert abs(standardised(size[reviews["label"] == 1], size[reviews["label"] == 0])) < 0.25
    pairs = read_pairs()
    assert abs(standardised([*map(len, pairs.positive)], [*map(len, pairs.negative)])) < 0.1


def test_texts_are_trimmed_and_printable():
    tables = (
        read_claims("claims_train"),
        read_claims("claims_eval"),
        read_reviews(),
        read_misconceptions(),
        read_dilemmas(),
        read_neutral(),
    )
    texts = [text for table in tables for column in table if column != "label" for text in table[column]]
    texts += [*read_pairs().positive, *read_pairs().negative]
    assert all(text == text.strip() and text.isprintable() and "  " not in text for text in texts)


def test_every_file_is_readable_as_a_resource_of_the_package():
    """So that a wheel works away from the checkout."""
    names = {file.name for file in resources.files("tl_steer.data").iterdir() if file.name.endswith(".csv")}
    assert names == {
        f"{name}.csv"
        for name in (
            "claims_train",
            "claims_eval",
            "sentiment_pairs",
            "reviews",
            "misconceptions",
            "dilemmas",
            "neutral",
        )
    }
    for name in names:
        assert (resources.files("tl_steer.data") / name).read_text(encoding="utf-8").count("\n") > 20


def test_no_two_files_share_a_text():
    tables = {
        "train": read_claims("claims_train")["statement"],
        "eval": read_claims("claims_eval")["statement"],
        "reviews": read_reviews()["review"],
        "pairs": read_pairs().positive + read_pairs().negative,
        "questions": read_misconceptions()["question"],
        "dilemmas": read_dilemmas()["dilemma"],
        "neutral": read_neutral()["passage"],
    }
    bags = {name: set(map(normalised, texts)) for name, texts in tables.items()}
    assert all(not bags[one] & bags[other] for one, other in combinations(bags, 2))


# Neutral passages

TRUTH = {"true", "truth", "false", "lie", "lies", "honest", "wrong", "correct", "incorrect"}
MOOD = {
    "happy", "sad", "good", "bad", "great", "terrible", "wonderful", "awful", "love", "hate", "joy", "angry",
    "beautiful", "ugly", "best", "worst", "nice", "horrible", "lovely", "nasty", "excellent", "delicious",
    "disgusting", "sadly", "fortunately", "unfortunately", "pleasant", "unpleasant", "enjoy", "enjoyed",
}  # fmt: skip
MANNERS = {"please", "thank", "thanks", "sorry", "welcome", "kindly", "pardon", "damn", "stupid", "idiot"}


def test_neutral_passages_are_of_a_length_that_can_be_compared():
    sizes = [len(passage.split()) for passage in read_neutral()["passage"]]
    assert 25 <= min(sizes) <= max(sizes) <= 60


def test_no_two_neutral_passages_begin_alike():
    """Three words tell them apart, and no first word leads many of them."""
    starts = [normalised(passage).split() for passage in read_neutral()["passage"]]
    assert len({tuple(start[:3]) for start in starts}) == len(starts)
    assert max(Counter(start[0] for start in starts).values()) <= len(starts) / 10


def test_neutral_passages_share_no_run_of_words_as_templates_would():
    runs = Counter(
        run
        for passage in read_neutral()["passage"]
        for run in {tuple(normalised(passage).split()[start : start + 6]) for start in range(60)}
        if len(run) == 6
    )
    assert max(runs.values()) == 1, runs.most_common(1)


@pytest.mark.parametrize("kind", [TRUTH, MOOD, MANNERS], ids=["truth", "mood", "manners"])
def test_neutral_passages_have_no_word_of_truth_mood_or_manners(kind):
    found = {passage for passage in read_neutral()["passage"] if words(passage) & kind}
    assert not found


def test_neutral_passages_are_sentences():
    for passage in read_neutral()["passage"]:
        assert passage[0].isupper() or passage[0] == '"'
        assert passage.endswith((".", '."', '?"'))


def test_a_table_of_ones_own_needs_the_column_passage_alone(tmp_path):
    (tmp_path / "mine.csv").write_text("source,passage\nx,One two.\n")
    table = read_neutral(tmp_path / "mine.csv")
    assert table.to_dict("records") == [{"passage": "One two.", "source": "x"}]
    (tmp_path / "other.csv").write_text("text\nOne two.\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        read_neutral(tmp_path / "other.csv")
