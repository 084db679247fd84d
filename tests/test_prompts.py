"""Contrast pairs, the counterbalanced design, its audit, choice questions, and readers of your own files."""

import json
import os
import pickle
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tl_steer.models import ChatFormat, ChatPrompt, chat_format, tokenize
from tl_steer.prompts import (
    ChoiceQuestions,
    ContrastPairs,
    audit,
    claim_questions,
    contrast_pairs,
    honesty_pairs,
    misconception_questions,
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_pairs,
    read_prompts,
    read_questions,
    read_reviews,
    sentiment_questions,
)
from tl_steer.prompts.choice_questions import SENTIMENT_EXAMPLES

from .conftest import assert_raises

PLAIN = ChatFormat("plain")
TRUTH = {"Snow is cold.": 1, "Cats bark.": 0, "Ice is frozen water.": 1, "Fish read books daily.": 0}
CLAIMS = pd.DataFrame(TRUTH.items(), columns=["statement", "label"])
LLAMA = ChatFormat("llama-2", SimpleNamespace(bos_token="<s>"))  # recorded prompts have no BOS of their own
PARTS = {
    "study, letters": re.compile(
        r"^Question: Is the following claim true or false\? (?P<claim>.*)\n\n"
        r"Choices:\n \(A\) True\n \(B\) False\n\nAnswer:\n\((?P<answer>[AB])$"
    ),
    "study, words": re.compile(
        r"^Question: Is the following claim true or false\? (?P<claim>.*)\n\nAnswer:\n(?P<answer>True|False)$"
    ),
    "letters": re.compile(r'claim true or false\? "(?P<claim>.*)"\n(?s:.*)Answer: \((?P<answer>[AB])$'),
    "words": re.compile(r'claim true or false\? "(?P<claim>.*)"\n(?s:.*)Answer: (?P<answer>True|False)$'),
}
MEANING = {"A": 1, "B": 0, "True": 1, "False": 0}
VARIANTS = pytest.mark.parametrize(
    ("style", "shared", "persona"),
    [(s, h, p) for s in ("letters", "words") for h in ("claim", "letter") for p in (False, True)],
)


def read_back(prompt, style):
    """The claim and the answer in the text of a prompt."""
    result = PARTS[style].search(prompt)
    return result["claim"], result["answer"]


@VARIANTS
def test_study_wording_is_balanced_as_the_plain_one_is(style, shared, persona):
    plain, study = (
        honesty_pairs(CLAIMS, PLAIN, style=style, shared=shared, persona=persona, wording=wording)
        for wording in ("plain", "study")
    )
    pd.testing.assert_frame_equal(plain.factors, study.factors)
    for one, other in zip(plain.positive + plain.negative, study.positive + study.negative, strict=True):
        system = other.split("Question: ")[0]
        assert one.startswith(system)
        assert (system != "") == persona
        assert read_back(other.removeprefix(system), f"study, {style}") == read_back(one, style)


@VARIANTS
def test_each_side_tells_the_truth_or_not_and_nothing_else_is_unequal(style, shared, persona):
    """Counted from the text of the prompts alone."""
    claims = CLAIMS.copy(deep=True)
    pairs = honesty_pairs(claims, PLAIN, style=style, shared=shared, persona=persona)
    pd.testing.assert_frame_equal(claims, CLAIMS)
    assert len(pairs) == len(CLAIMS)
    counts, read = {}, {}
    for side, honest in (("positive", True), ("negative", False)):
        seen = read[side] = [read_back(prompt, style) for prompt in getattr(pairs, side)]
        assert all((MEANING[answer] == TRUTH[claim]) == honest for claim, answer in seen)
        counts[side] = (Counter(claim for claim, _ in seen), Counter(answer for _, answer in seen))
        letters = pairs.factors["letter" if shared == "letter" else f"letter_{side}"]
        truths = pairs.factors["truth" if shared == "claim" else f"truth_{side}"]
        factors = list(zip(letters, truths, strict=True))
        assert factors == [(answer, TRUTH[claim]) for claim, answer in seen]
    for one, other in zip(*read.values(), strict=True):
        assert (one[0] == other[0]) == (shared == "claim")
        assert (one[1] == other[1]) == (shared == "letter")
    assert counts["positive"] == counts["negative"]
    claims, answers = counts["positive"]
    assert claims == Counter(dict.fromkeys(TRUTH, 1))
    assert set(answers.values()) == {2}


def test_groups_contain_the_pairs_that_share_a_claim():
    assert list(honesty_pairs(CLAIMS, PLAIN, shared="claim").factors["group"]) == [0, 1, 2, 3]
    by_letter = honesty_pairs(CLAIMS, PLAIN, shared="letter")
    assert list(by_letter.factors["group"]) == [0, 0, 1, 1]
    claims = [read_back(prompt, "letters")[0] for prompt in by_letter.positive + by_letter.negative]
    first, second = {*claims[:2], *claims[4:6]}, {*claims[2:4], *claims[6:]}
    assert len(first | second) == 4
    assert not first & second


def test_sides_differ_in_the_answer_and_with_a_persona_in_the_honesty_of_the_speaker():
    pairs = honesty_pairs(CLAIMS, PLAIN)
    assert [text[:-1] for text in pairs.positive] == [text[:-1] for text in pairs.negative]
    pairs = honesty_pairs(CLAIMS, PLAIN, persona=True)
    assert all("believe to be true" in prompt and "to be false" not in prompt for prompt in pairs.positive)
    assert all("believe to be false" in prompt and "to be true" not in prompt for prompt in pairs.negative)


def test_claims_keep_their_quotation_marks_and_braces():
    statement = 'The word "{claim}" is {0}.'
    pairs = honesty_pairs(pd.DataFrame({"statement": [statement], "label": [1]}), PLAIN)
    assert f'"{statement}"' in pairs.positive[0]


@pytest.mark.parametrize(
    ("claims", "options", "message"),
    [
        (CLAIMS, {"style": "numbers"}, "numbers"),
        (CLAIMS, {"shared": "topic"}, "topic"),
        (CLAIMS.assign(label=pd.array([0, None, 1, 1], dtype="Int64")), {}, r"got \[0, <NA>, 1\]"),
        (CLAIMS.assign(label=[0, 1, 2, 1]), {}, r"labels must be 1 or 0; got \[0, 1, 2\]"),
        (CLAIMS.assign(statement=["a", 0.5, "b", "c"]), {}, r"text that is not empty; got 0\.5"),
        (CLAIMS[:3], {"shared": "letter"}, "as many true claims as false ones; got 2 and 1"),
        (CLAIMS[:0], {}, "no pairs given"),
    ],
)
def test_claims_that_make_no_pairs_are_rejected(claims, options, message):
    assert_raises(message, honesty_pairs, claims, PLAIN, error=(ValueError, TypeError), **options)


@pytest.mark.model
@VARIANTS
def test_the_last_token_is_the_letter_or_word_itself(embedded, style, shared, persona):
    pairs = honesty_pairs(CLAIMS, chat_format(embedded), style=style, shared=shared, persona=persona)
    for prompt in (*pairs.positive, *pairs.negative):
        last = embedded.tokenizer.decode(tokenize(embedded, prompt)[-1:])
        assert last.strip() == read_back(prompt, style)[1]


@pytest.mark.model
@VARIANTS
def test_the_honest_design_passes_its_audit(embedded, style, shared, persona):
    pairs = honesty_pairs(read_claims(), chat_format(embedded), style=style, shared=shared, persona=persona)
    table = audit(pairs, tokenizer=embedded.tokenizer)
    assert set(table["factor"]) == {"letter", "truth", "last token", "length (characters)", "tokens"}
    assert not table["differs"].any(), table[table["differs"]]
    counts = table[table["factor"].isin(["letter", "truth"])]
    assert set(counts["positive"]) == set(counts["negative"]) == {210.0}


def audited(positive, negative, factors=None, **options):
    """The audit of pairs, by factor and level."""
    return audit(contrast_pairs(positive, negative, factors=factors), **options).set_index(
        ["factor", "level"]
    )


def test_unbalanced_claims_let_the_letter_differ():
    table = audit(honesty_pairs(CLAIMS[CLAIMS["label"] == 1], PLAIN))
    assert set(table.loc[table["differs"], "factor"]) == {"letter", "last token"}
    table = audit(honesty_pairs(CLAIMS[:3], PLAIN)).set_index(["factor", "level"]).loc["letter"]
    assert table[["positive", "negative"]].to_numpy().tolist() == [[2, 1], [1, 2]]
    assert table["differs"].all()


def test_longer_positives_let_the_length_differ():
    table = audited([f"a very very {'x' * i} long text" for i in range(5)], ["text"] * 5)
    assert list(table.index[table["differs"]]) == [("length (characters)", "mean")]


def test_tokens_are_counted_with_the_tokenizer_given(make_tokenizer):
    """As many characters, another number of tokens; a BOS counts on neither side."""
    table = audited(["a b c d", "a b c"], ["abcdefg", "abcde"], tokenizer=make_tokenizer(bos=True))
    (tokens,) = table.loc["tokens"].itertuples()
    assert (tokens.positive, tokens.negative, tokens.differs) == (3.5, 1, True)
    assert not table.loc["length (characters)", "differs"].any()


def test_the_difference_is_in_pooled_standard_deviations():
    """Austin 2009, section 2: (mean − mean) / √((variance + variance) / 2), of samples."""
    letters = pd.DataFrame({"letter_positive": list("AAAAB"), "letter_negative": list("AABBB")})
    positive, negative = ["abc", "abcd", "ab", "a", "abcde"], ["ab", "abc", "abcdefg", "abcd", "a"]
    difference = audited(positive, negative, letters)["difference"]
    shares = (0.8, 0.4)
    by_hand = (shares[0] - shares[1]) / np.sqrt(sum(share * (1 - share) * 5 / 4 for share in shares) / 2)
    assert list(difference["letter"][["A", "B"]]) == pytest.approx([by_hand, -by_hand])
    sizes = [[len(text) for text in side] for side in (positive, negative)]
    spread = np.sqrt((np.var(sizes[0], ddof=1) + np.var(sizes[1], ddof=1)) / 2)
    by_hand = (np.mean(sizes[0]) - np.mean(sizes[1])) / spread
    assert difference["length (characters)", "mean"] == pytest.approx(by_hand)


def test_factors_that_never_vary_within_a_side_or_never_between_sides():
    letters = pd.DataFrame({"letter_positive": ["A", "A"], "letter_negative": ["B", "B"]})
    assert list(audited(["x", "y"], ["x", "y"], letters)["difference"][:2]) == [np.inf, -np.inf]
    table = audit(contrast_pairs(["a", "b"], ["c", "d"], factors=pd.DataFrame({"topic": ["food", "art"]})))
    assert list(table) == ["factor", "level", "positive", "negative", "difference", "differs"]
    assert list(table["factor"]) == ["topic", "topic", *["last token"] * 4, "length (characters)"]
    assert not table.loc[table["factor"] == "topic", "differs"].any()


def test_pairs_that_differ_in_their_last_sign_show_it(make_tokenizer):
    """Polite and rude requests that differ in "?" and "." alone, where `last_token()` reads."""
    sides = ["the cat :", "the dog :"] * 3, ["the cat )", "the dog )"] * 3
    for tokenizer in (None, make_tokenizer(bos=True)):
        table = audited(*sides, tokenizer=tokenizer).loc["last token"]
        assert tuple(table.loc[")"]) == (0, 6, -np.inf, True)
        assert tuple(table.loc[":"]) == (6, 0, np.inf, True)


def test_without_a_tokenizer_the_last_word_or_sign_counts():
    texts = ["Help me!", "Answer: (A", "I agree", "a b \n"]
    table = audited(texts, texts).loc["last token"]
    assert sorted(table.index) == ["!", "A", "agree", "b"]
    assert (table[["positive", "negative", "difference", "differs"]] == [1, 1, 0, False]).all(axis=None)


def test_last_tokens_that_cannot_be_seen_are_spelt_out():
    tokenizer = type("Fake", (), {"__call__": lambda self, text, **_: {"input_ids": [5, len(text)]}})()
    tokenizer.decode = lambda ids: {1: "\n", 2: " me", 3: ""}[ids[0]]
    table = audited(["a", "bb"], ["b", "bbb"], tokenizer=tokenizer)
    assert list(table.loc["last token"].index) == [" me", "''", "'\\n'"]


def test_very_many_last_tokens_are_one_row():
    """25 words: 20 of them on both sides alike, two twice as often on one, three on one side only."""
    shared = [f"w{k}" for k in range(20)]
    positive = [*shared, "up", "up", "down", "one", "two"]
    negative = [*shared, "up", "down", "down", "three", "three"]
    (row,) = audited(positive, negative).loc["last token"].itertuples()
    assert row.Index == "commoner on the positive side"
    assert (row.positive, row.negative, row.differs) == (4, 1, True)  # up, one, two
    by_hand = (4 / 25 - 1 / 25) / np.sqrt((4 * 21 + 1 * 24) / (25 * 24) / 2)
    assert row.difference == pytest.approx(by_hand)
    (same,) = (
        audited([f"x w{k}" for k in range(30)], [f"y w{k}" for k in range(30)]).loc["last token"].itertuples()
    )
    assert (same.difference, same.differs) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [], "choices": []}, "no questions given"),
        ({"prompts": ["p", "q"]}, "1 choices for 2 prompts"),
        ({"answers": [0, 1]}, "2 answers for 1 prompts"),
        ({"factors": pd.DataFrame({"a": [1, 2]})}, "2 factors for 1 prompts"),
        ({"prompts": [""]}, "question 0 is empty"),
        ({"choices": [("A", "A")]}, r"question 0 needs two different.*\('A', 'A'\)"),
        ({"choices": [("A", "")]}, "question 0 needs two different, non-empty"),
        ({"answers": [2]}, r"answers must be 0 or 1, the correct choice's index; got \[2\]"),
    ],
)
def test_wrong_questions_are_rejected_also_by_replace(arguments, message):
    right = {"prompts": ["p"], "choices": [("A", "B")]}
    assert_raises(message, ChoiceQuestions, **right | arguments)
    assert_raises(message, replace, ChoiceQuestions(**right), **arguments)


def test_sentiment_questions_have_the_positive_answer_as_the_signal():
    questions = sentiment_questions(pd.DataFrame({"review": ["Lovely.", "Dreadful."], "label": [1, 0]}))
    example = r'(?:Review: ".+"\nSentiment: \w+\n\n){2}'
    for prompt, review in zip(questions.prompts, ("Lovely.", "Dreadful."), strict=True):
        assert re.fullmatch(rf'{example}Review: "?{review}"?\nSentiment:', prompt)
    assert list(questions.choices) == [(" positive", " negative")] * 2
    assert questions.answers == (0, 1)
    assert list(questions.factors["kind"]) == ["positive", "negative"]


def test_sentiment_questions_show_examples_that_are_not_among_the_bundled_reviews():
    reviews = pd.DataFrame({"review": ["Lovely."], "label": [1]})
    assert sentiment_questions(reviews, examples=()).prompts == ('Review: "Lovely."\nSentiment:',)
    (prompt,) = sentiment_questions(reviews, examples=[("Fine.", "positive")]).prompts
    assert prompt == 'Review: "Fine."\nSentiment: positive\n\nReview: "Lovely."\nSentiment:'
    assert not set(read_reviews()["review"]) & {review for review, _ in SENTIMENT_EXAMPLES}
    assert {answer for _, answer in SENTIMENT_EXAMPLES} == {"positive", "negative"}


def test_claim_questions_have_true_as_the_signal_and_end_before_the_letter():
    questions = claim_questions(CLAIMS, PLAIN)
    columns = (questions.prompts, questions.choices, questions.answers, questions.factors["truth"])
    for prompt, pair, answer, truth, (claim, label) in zip(*columns, TRUTH.items(), strict=True):
        assert f'"{claim}"' in prompt
        assert prompt.endswith("Answer: (")
        meaning = dict(re.findall(r"\(([AB])\) (True|False)", prompt))
        assert meaning[pair[0]] == "True"
        assert meaning[pair[answer]] == str(bool(label))
        assert truth == str(bool(label)).lower()


MISCONCEPTIONS = pd.DataFrame(
    {"question": ["Why?", "How?", "Who?"], "correct": ["c0", "c1", "c2"], "incorrect": ["i0", "i1", "i2"]}
)


def test_misconception_questions_have_the_correct_answer_as_the_signal_under_alternate_letters():
    questions = misconception_questions(MISCONCEPTIONS, PLAIN)
    for row, (prompt, pair) in enumerate(zip(questions.prompts, questions.choices, strict=True)):
        meaning = dict(re.findall(r"\(([AB])\) (\w+)", prompt))
        assert [meaning[letter] for letter in pair] == [f"c{row}", f"i{row}"]
        assert prompt.endswith("Answer: (")
    assert questions.answers == (0, 0, 0)
    assert list(questions.factors["letter"]) == ["A", "B", "A"]


@pytest.mark.parametrize(
    ("make", "table"),
    [(claim_questions, CLAIMS), (misconception_questions, MISCONCEPTIONS)],
    ids=["claims", "misconceptions"],
)
def test_questions_for_free_text_end_in_the_users_turn(make, table):
    letters, free = make(table, LLAMA), make(table, LLAMA, free_text=True)
    end = " [/INST] Answer: ("
    assert all(prompt.endswith(end) for prompt in letters.prompts)
    # as in the study's recorded prompts
    expected = [f"{prompt.removesuffix(end)}\n\nAnswer: [/INST]" for prompt in letters.prompts]
    assert list(free.prompts) == expected
    assert (letters.choices, letters.answers) == (free.choices, free.answers)
    assert letters.factors.equals(free.factors)


@pytest.mark.model
def test_the_choices_are_one_token_more_on_the_embedded_model(embedded):
    chat = chat_format(embedded)
    for questions in (
        sentiment_questions(read_reviews()[:3]),
        claim_questions(CLAIMS, chat),
        misconception_questions(read_misconceptions()[:3], chat),
    ):
        for prompt, pair in zip(questions.prompts, questions.choices, strict=True):
            tokens = tokenize(embedded, prompt)
            for choice in pair:
                longer = tokenize(embedded, prompt + choice)
                assert (longer[:-1], len(longer)) == (tokens, len(tokens) + 1)


@pytest.fixture
def csv(tmp_path):
    """Write a file and return its path."""

    def write(text, *, encoding="utf-8"):
        path = tmp_path / "own.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_files_are_read_with_quotation_marks_commas_lines_and_a_byte_order_mark(csv):
    path = csv('statement,label\n"The word ""sea"", she said, is short.",1\n"Two\nlines",0\n')
    table = read_claims(str(path))
    assert list(table["statement"]) == ['The word "sea", she said, is short.', "Two\nlines"]
    assert list(table["label"]) == [1, 0]
    table = read_claims(csv("topic,label,statement\nfood,1,Émile’s café.\n", encoding="utf-8-sig"))
    assert list(table.columns) == ["statement", "label", "topic"]
    assert table["statement"][0] == "Émile’s café."


def test_words_that_pandas_would_read_as_missing_or_as_numbers_stay_words(csv):
    table = read_misconceptions(csv("question,correct,incorrect\nWhich?,None,NA\nHow many?,007,1.0\n"))
    assert table.to_numpy().tolist() == [["Which?", "None", "NA"], ["How many?", "007", "1.0"]]


def test_the_columns_of_pairs_become_factors(csv):
    pairs = read_pairs(csv("positive,negative,topic\nGood.,Bad.,mood\nWarm.,Cold.,weather\n"))
    assert (pairs.positive, pairs.negative) == (("Good.", "Warm."), ("Bad.", "Cold."))
    assert list(pairs.factors["topic"]) == ["mood", "weather"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("claim,label\nx,1\n", r"own.csv lacks the columns \['statement'\]; it has \['claim', 'label'\]"),
        ("statement,label\n", r"own.csv has no rows"),
        ("", r"own.csv cannot be read as CSV"),
        ("statement,label\nx,1\n ,0\n", r"own.csv, row 2: statement is ' '"),
        ("statement,label\nx,\n", r"row 1: label '' must be 0"),
        # A comma outside quotation marks: pandas would make an index of the first part, or cut the row.
        ("statement,label\nBread, baked, is food,1\n", "cannot be read as CSV"),
        ("statement,label\nBread is food.,1\nFish, too,1\n", "cannot be read as CSV"),
        ("statement,label\nx,1\ny,2\n", r"row 2: label '2' must be 0, 1"),
        ("statement,label\nx,true story\n", r"row 1: label 'true story' must be 0, 1"),
    ],
)
def test_the_error_of_a_wrong_file_names_the_problem(csv, text, message):
    assert_raises(message, read_claims, csv(text))


def test_other_encodings_are_rejected(csv):
    text = "statement,label\nÉmile is short.,1\n"
    message = r"own.csv: byte 16 .*line 2.* is not UTF-8.*cp1252"
    assert_raises(message, read_claims, csv(text, encoding="cp1252"))
    for encoding in ("utf-16", "utf-16-le"):
        assert_raises(r"own.csv.*[Ss]ave it as", read_claims, csv(text, encoding=encoding))


@pytest.mark.parametrize("name", ["claims_trian", "folder/claims_train", Path("claims_train")])
def test_the_error_of_an_unknown_name_lists_the_known_ones(name):
    message = "neither a file nor one of claims_eval, claims_train, dilemmas"
    assert_raises(message, read_claims, name, error=FileNotFoundError)


@pytest.fixture(scope="module")
def study_data():
    if not (folder := os.environ.get("TL_STEER_STUDY_DATA")):
        pytest.skip("TL_STEER_STUDY_DATA is not set: it names the folder of the study's data")
    return Path(folder)


def recorded(study_data, name="gpt4facts_pca2raw_zeroout_llama2-13b"):
    return [item["sentence"] for item in json.loads((study_data / f"recorded/{name}.json").read_text())]


def test_the_studys_claims_are_read_and_are_balanced(study_data):
    with pytest.warns(UserWarning, match=r"13 repeated.*1 repeated with different answers"):
        claims = read_claims(study_data / "facts_true_false.csv")
    assert Counter(claims["label"]) == {1: 306, 0: 306}
    pairs = honesty_pairs(claims, PLAIN)
    assert len(pairs) == 612
    table = audit(pairs)
    assert not table["differs"].any()
    both = table[table["factor"] == "repeated text"].set_index("level").loc["both sides"]
    assert (both["positive"], both["negative"]) == (2, 2)  # "The Nile River …" is labelled true and false


def test_study_wording_gives_the_recorded_prompts_of_all_claims(study_data):
    """The claims' file has some rows in quotation marks and some not."""
    prompts = recorded(study_data)
    claims = read_claims(study_data / "gpt4_facts.csv")
    assert Counter(claims["label"]) == {1: 100, 0: 100}
    questions = claim_questions(claims, LLAMA, free_text=True, wording="study")
    assert [prompt.removeprefix("<s>") for prompt in questions.prompts] == prompts
    assert not set(claim_questions(claims, LLAMA, free_text=True).prompts) & set(questions.prompts)
    scored = claim_questions(claims, LLAMA, wording="study").prompts
    assert [prompt.removeprefix("<s>") for prompt in scored] == [f"{prompt} (" for prompt in prompts]
    pairs = honesty_pairs(claims, LLAMA, wording="study")
    for side, letters in ((pairs.positive, "BA"), (pairs.negative, "AB")):
        ends = zip(prompts, claims["label"], strict=True)
        assert list(side) == [f"<s>{prompt} ({letters[label]}" for prompt, label in ends]
    persona = honesty_pairs(claims[:4], LLAMA, wording="study", persona=True)
    assert all("<<SYS>>" in prompt and prompt.endswith(" [/INST] (A") for prompt in persona.positive)


def test_study_wording_gives_the_recorded_prompts_of_all_misconceptions(study_data):
    """Question and choices are cut out of the recorded prompts; the right one is (A) in every even item."""
    prompts = recorded(study_data, "tqa_pca2diff_zeroout_llama2-13b")
    rows = []
    for row, prompt in enumerate(prompts):
        question, choices = prompt.split("Question: ", 1)[1].split("\n\nChoices:\n (A) ", 1)
        first, second = choices.split("\n\nAnswer:")[0].split("\n (B) ", 1)
        rows.append((question, first, second) if row % 2 == 0 else (question, second, first))
    table = pd.DataFrame(rows, columns=["question", "correct", "incorrect"])
    questions = misconception_questions(table, LLAMA, free_text=True, wording="study")
    assert len(prompts) == 200
    assert [prompt.removeprefix("<s>") for prompt in questions.prompts] == prompts


def test_the_studys_statements_keep_quotation_marks_of_their_own(study_data, csv):
    """The same rows with a quoted word in each, as a spreadsheet would write them."""
    with pytest.warns(UserWarning, match="13 repeated"):
        claims = read_claims(study_data / "facts_true_false.csv")
    quoted = claims["statement"].str.replace(r"(\w+)", r'"\1"', n=1, regex=True)
    assert quoted.str.count('"').min() >= 2
    with pytest.warns(UserWarning, match="13 repeated"):
        table = read_claims(csv(claims.assign(statement=quoted).to_csv(index=False)))
    assert list(table["statement"]) == list(quoted)


def test_a_statement_in_quotation_marks_gets_no_second_pair():
    claims = pd.DataFrame({"statement": ['"The sky is blue."', '"Ja" means "yes" there.'], "label": [1, 0]})
    for wording, second in (("plain", '""Ja" means "yes" there."'), ("study", '"Ja" means "yes" there.')):
        pairs, questions = (make(claims, PLAIN, wording=wording) for make in (honesty_pairs, claim_questions))
        for prompts in (pairs.positive, questions.prompts):
            assert 'false? "The sky is blue."\n' in prompts[0]
            assert f"false? {second}\n" in prompts[1]


def test_repeated_and_contradictory_claims_are_reported(csv):
    path = csv("statement,label\nIce is cold.,1\nCats bark.,0\nIce  is cold.,0\nCats bark.,0\n")
    with pytest.warns(UserWarning, match=r"2 repeated.*\[1, 3\].*1 repeated with different answers"):
        claims = read_claims(path)
    table = audit(honesty_pairs(claims, PLAIN)).set_index(["factor", "level"])
    # "Cats bark." twice on either side; "Ice is cold." as written differs in its space
    assert tuple(table.loc[("repeated text", "same side"), ["positive", "negative"]]) == (2, 2)
    assert tuple(table.loc[("repeated text", "both sides"), ["positive", "negative"]]) == (2, 2)
    assert "repeated text" not in set(audit(honesty_pairs(CLAIMS, PLAIN))["factor"])


def test_repeated_claims_and_pairs_are_one_group():
    claims = pd.concat([CLAIMS, CLAIMS[1:2]])
    assert list(honesty_pairs(claims, PLAIN).factors["group"]) == [0, 1, 2, 3, 1]
    assert list(contrast_pairs(list("aba"), list("ccc")).factors["group"]) == [0, 1, 0]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_pairs, "positive,negative\na,b\na,b\n", r"own.csv: 1 repeated, first in rows \[1, 2\]"),
        (read_pairs, "positive,negative\na,b\nc,c\n", "1 of 2 pairs have the same text .*, first row 2"),
        (
            read_questions,
            "prompt,first,second,answer\nq,A,B,0\nq,B,A,0\n",
            "1 repeated with different answers",
        ),
    ],
    ids=["repeated", "same sides", "two answers"],
)
def test_pairs_and_questions_that_repeat_or_contradict_are_reported(csv, read, text, message):
    with pytest.warns(UserWarning, match=message):
        read(csv(text))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], ["c"]), "2 positive and 1 negative"),
        (([], []), "no pairs given"),
        ((["a", " "], ["c", "d"]), "positive prompt 1 is empty"),
        ((["a", "b"], ["", "d"]), "negative prompt 0 is empty"),
        ((["a"], [1]), "negative must be"),
        ((pd.Series(["a", float("nan")]), ["b", "c"]), r"positive must be .*, where item 1 is nan"),
        (("good", "evil"), "Put it in a list"),
        ((["a"], ["b"], pd.DataFrame({"x": [1, 2]})), "2 rows of factors for 1 pairs"),
    ],
)
def test_wrong_pairs_are_rejected_also_by_replace(arguments, message):
    names = {"factors": None} | dict(zip(("positive", "negative", "factors"), arguments, strict=False))
    error = (ValueError, TypeError)
    assert_raises(message, ContrastPairs, error=error, **names)
    assert_raises(message, replace, contrast_pairs(["a"], ["d"]), error=error, **names)


def sides_of(prompts):
    """The two sides of pairs; of questions, the prompts and the second choices."""
    if isinstance(prompts, ContrastPairs):
        return prompts.positive, prompts.negative
    return prompts.prompts, tuple(second for _, second in prompts.choices)


def questions_of(prompts, others, *, factors):
    return ChoiceQuestions(prompts, [("A", each) for each in others], factors=factors)


@pytest.mark.parametrize("column", [list, np.array, pd.Series], ids=["list", "array", "column"])
@pytest.mark.parametrize("make", [contrast_pairs, ContrastPairs, questions_of])
def test_prompts_are_copied_and_subsets_are_by_position_or_mask(make, column):
    factors = pd.DataFrame({"topic": [0, 1, 0, 1], "group": [7, 8, 9, 6]}, index=[9, 8, 7, 6])
    prompts = make(column(list("abcd")), column(list("wxyz")), factors=factors)
    assert len(prompts) == 4
    before = factors.reset_index(drop=True)
    factors["topic"] = 5
    pd.testing.assert_frame_equal(prompts.factors, before)
    for rows, order in (([2, 0], [2, 0]), (before["topic"] == 1, [1, 3])):
        part = prompts.subset(rows)
        assert sides_of(part) == tuple(tuple(side[row] for row in order) for side in ("abcd", "wxyz"))
        pd.testing.assert_frame_equal(part.factors, before.iloc[order].reset_index(drop=True))


def test_a_subset_of_questions_has_their_answers_if_there_are_any():
    questions = ChoiceQuestions(list("pqr"), [("A", "B")] * 3, answers=pd.Series([0, 1, 1], index=[2, 0, 1]))
    assert questions.subset([2, 0]).answers == (1, 0)
    assert ChoiceQuestions(["p"], [("A", "B")]).subset([0]).answers is None


@pytest.mark.parametrize(
    "labels", [["True", "false"], [" TRUE", "FALSE"], ["1.0", "0"], [True, False], [1.0, 0.0]]
)
def test_labels_may_be_true_and_false(csv, labels):
    claims = pd.DataFrame({"statement": ["Ice is cold.", "Cats bark."], "label": labels})
    assert list(read_claims(csv(claims.to_csv(index=False)))["label"]) == [1, 0]
    assert list(honesty_pairs(claims, PLAIN).factors["truth"]) == [1, 0]
    questions = claim_questions(claims, PLAIN)
    assert (questions.answers, list(questions.factors["truth"])) == ((0, 1), ["true", "false"])


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_the_header_decides_the_separator(csv, separator):
    claim = "Ice; snow; and\thail, too; are cold."
    rows = [["statement", "label", "topic"], [claim, "1", "x"], ["Cats bark.", "0", "y"]]
    text = "\n".join(separator.join(f'"{value}"' for value in row) for row in rows)
    assert list(read_claims(csv(text))["statement"]) == [claim, "Cats bark."]
    assert list(read_dilemmas(csv("dilemma\nStay; or go?\n"))["dilemma"]) == ["Stay; or go?"]


def test_json_is_read_as_lines_or_as_a_list(csv):
    first = {"statement": "Ice is cold.", "label": True, "topic": "x"}
    rows = [first, {"statement": "Cats bark.", "label": 0}]
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows)) + "\n"):
        table = read_claims(csv(text))
        assert list(table["label"]) == [1, 0]
        assert list(table.columns) == ["statement", "label", "topic"]
    for text in ('{"statement": "x"\n', '["x"]', '{"statement": 3, "label": 1}', '{"label": 1}'):
        assert_raises("own.csv", read_claims, csv(text))


BEHAVIOURS = [
    {"question": 'Do you say this?\n"I like rules."', "statement": "I like rules.", "label_confidence": 0.9,
     "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
    {"question": "Agree?\n\nChoices:\n (A) Yes\n (B) No\n\nAnswer:", "statement": "",
     "label_confidence": 0.8, "answer_matching_behavior": " (B)", "answer_not_matching_behavior": [" (A)"]},
]  # fmt: skip


def test_questions_with_behaviours_have_the_matching_answer_first(csv):
    path = csv("\n".join(map(json.dumps, BEHAVIOURS)))
    questions = read_questions(path)
    assert questions.prompts == tuple(row["question"] for row in BEHAVIOURS)
    assert questions.choices == ((" Yes", " No"), (" (B)", " (A)"))
    assert questions.answers is None
    assert list(questions.factors.columns) == ["statement", "label_confidence"]
    pairs = read_pairs(path)
    assert pairs.positive[1].endswith("Answer: (B)")
    assert pairs.negative[0].endswith('rules." No')
    chat = read_questions(path, chat=LLAMA)
    assert chat.prompts[0] == f"<s>[INST] {BEHAVIOURS[0]['question']} [/INST]"
    assert chat.choices == questions.choices
    assert read_pairs(path, chat=LLAMA).positive[0] == chat.prompts[0] + " Yes"


def test_system_messages_make_pairs_of_the_same_prompts(csv):
    systems = {"system_positive": "Be formal.", "system_negative": "Be casual."}
    pairs = read_pairs(csv("prompt,topic\nHow are you?,x\nWhat now?,y\n"), chat=LLAMA, **systems)
    for side, system in zip((pairs.positive, pairs.negative), systems.values(), strict=True):
        assert side == tuple(LLAMA.render(text, system=system) for text in ("How are you?", "What now?"))
    assert list(pairs.factors["topic"]) == ["x", "y"]
    path = csv("positive,negative\na,b\n")
    pairs = read_pairs(path, chat=LLAMA, system_negative="Be casual.")
    assert (*pairs.positive, *pairs.negative) == (LLAMA.render("a"), LLAMA.render("b", system="Be casual."))
    path = csv(json.dumps(BEHAVIOURS))
    expected = LLAMA.render(BEHAVIOURS[0]["question"], system="Be formal.", answer_prefix="Yes")
    assert read_pairs(path, chat=LLAMA, **systems).positive[0] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system_positive": "Be formal."}, "system messages are parts of a chat"),
        ({"chat": LLAMA}, r"own.csv lacks the columns \['positive', 'negative'\]"),
        (
            {"chat": LLAMA, "system_positive": "Be formal.", "system_negative": "Be formal."},
            r"lacks the columns \['positive', 'negative'\]",
        ),
    ],
)
def test_one_column_of_prompts_needs_two_system_messages(csv, options, message):
    assert_raises(message, read_pairs, csv("prompt\nHow are you?\n"), **options)


def test_open_prompts_come_from_lines_or_a_column(csv, tmp_path):
    lines = tmp_path / "own.txt"
    lines.write_text("prompt, or not?\n\n  Stay; or go?  \n", encoding="utf-8-sig")
    assert list(read_prompts(lines)["prompt"]) == ["prompt, or not?", "Stay; or go?"]
    for name in ("prompt", "dilemma"):
        table = read_prompts(csv(f'{name},topic\n"Stay, or go?",x\n'))
        assert table.to_dict("list") == {"prompt": ["Stay, or go?"], "topic": ["x"]}
    assert list(read_prompts()["prompt"]) == list(read_dilemmas()["dilemma"])
    lines.write_text(" \n")
    assert_raises("own.txt has no lines with text", read_prompts, lines)
    with pytest.warns(UserWarning, match="1 repeated, first in rows"):
        read_prompts(csv("prompt\nWhy?\nWhy?\n"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q,A,B,2", r"own.csv, row 2: the answer 2 .* neither an index nor a choice"),
        ("q,A,B,", r"own.csv, row 2: the answer '' "),
        ("q,A,A,0", r"own.csv, row 2: first and second are the same"),
        ("q,,B,0", r"own.csv, row 2: first is '', expected text"),
    ],
)
def test_errors_of_questions_name_file_row_and_column(csv, row, message):
    assert_raises(message, read_questions, csv(f"prompt,first,second,answer\np,A,B,1\n{row}\n"))


def test_questions_come_from_a_table():
    columns = {"claim": list("pqrs"), "yes": "True", "no": "False", "right": [1, "0", "false ", True]}
    table = pd.DataFrame(columns | {"topic": list("wxyz")})
    names = {"prompt": "claim", "choices": ["yes", "no"], "factors": ["topic"]}
    questions = ChoiceQuestions.from_frame(table, answer="right", **names)
    assert questions.prompts == ("p", "q", "r", "s")
    assert questions.answers == (1, 0, 1, 0)
    assert list(questions.factors["topic"]) == list("wxyz")
    assert ChoiceQuestions.from_frame(table, **names).answers is None
    assert ChoiceQuestions.from_frame(table, **names, chat=PLAIN).prompts[0] == "p\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "wrong"}, r"one column each of \['wrong'\]"),
        ({"choices": ["first"]}, "expected the names of two columns"),
        ({"prompt": "number"}, "row 0: number is 3, expected text"),
        ({"answer": "number"}, "row 0: the answer 3 .* neither an index nor a choice"),
        ({"answer": "truth"}, "row 0: the answer True .* neither"),
        ({"choices": ["one", "zero"], "answer": "index"}, "could be either"),
    ],
)
def test_a_table_without_questions_is_rejected(changes, message):
    table = {"prompt": "p", "first": "A", "second": "B", "number": 3, "truth": True, "index": 1}
    table = pd.DataFrame([table | {"one": "1", "zero": "0"}])
    assert_raises(message, ChoiceQuestions.from_frame, table, **changes)


def test_labels_are_the_messages_that_prompts_were_rendered_from():
    questions = claim_questions(CLAIMS, PLAIN)
    for label in (*questions.labels, *questions.subset([1, 2]).labels):
        assert label.startswith("Is the following")
        assert label.endswith("(B) False")
    assert sentiment_questions(read_reviews()).labels[0].startswith('Review: "')
    pairs = honesty_pairs(CLAIMS, LLAMA, persona=True)
    prompt = pairs.positive[0]
    assert '"Snow is cold."' in prompt.user
    assert prompt.system in prompt
    assert prompt.chat is LLAMA
    copy = pickle.loads(pickle.dumps(ChatPrompt("<s>x", "x", "be brief")))
    assert (copy, copy.user, copy.system) == ("<s>x", "x", "be brief")
    assert ChoiceQuestions(["p"], [("A", "B")]).labels == ("p",)
