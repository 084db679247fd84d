"""Questions with two possible continuations, one of which may be the correct answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked, short_repr
from ..models import ChatFormat, ChatPrompt, prompt_label
from .honesty import Wording, answered_prompt, claim_question
from .pairs import Rows, checked_columns, checked_labels, row_numbers

MISCONCEPTION = {
    "plain": "{question}\n\nChoices:\n(A) {first}\n(B) {second}",
    "study": "Question: {question}\n\nChoices:\n (A) {first}\n (B) {second}",
}
SENTIMENT_EXAMPLES = (
    ("The staff remembered our names and the soup was wonderful.", "positive"),
    ("It broke on the second day and nobody answered my letters.", "negative"),
)


@checked
@dataclass(frozen=True, eq=False)
class ChoiceQuestions:
    """Prompts, each with two choices that are appended exactly as written.

    Args:
        prompts: the questions. A `ChatPrompt` keeps the message that it was rendered from.
        choices: one pair per prompt. The first is the *signal* meaning ("true", "positive"), whatever its
            letter.
        answers: 0 or 1 per prompt, the index of its correct choice; or `None`.
        factors: one row per prompt; a column `split` names parts that are analysed separately.

    Raises:
        ValueError: no prompts, an empty one, lengths that differ, equal choices, other answers.
    """

    prompts: Sequence[str]
    choices: Sequence[tuple[str, str]]
    answers: Sequence[int] | None = None
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        # Copies, without a column's index, so that later changes by the caller have no effect.
        for name in ("prompts", "choices", "answers", "factors"):
            values = getattr(self, name)
            if values is None:
                continue
            values = values.reset_index(drop=True) if name == "factors" else tuple(values)
            object.__setattr__(self, name, values)
            if len(values) != len(self.prompts):
                raise ValueError(f"{len(values)} {name} for {len(self.prompts)} prompts: give one for each.")
        if not self.prompts:
            raise ValueError("no questions given; pass at least one prompt.")
        for row, (prompt, pair) in enumerate(zip(self.prompts, self.choices, strict=True)):
            if not prompt:
                raise ValueError(f"question {row} is empty.")
            if len(pair) != 2 or pair[0] == pair[1] or not all(pair):
                raise ValueError(f"question {row} needs two different, non-empty choices; got {pair!r}.")
        if wrong := sorted(set(self.answers or ()) - {0, 1}):
            raise ValueError(f"answers must be 0 or 1, the correct choice's index; got {wrong}.")

    def __len__(self) -> int:
        return len(self.prompts)

    __repr__ = short_repr

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the prompts in tables and figures: the user message, or the prompt itself."""
        return tuple(map(prompt_label, self.prompts))

    @classmethod
    @checked
    def from_frame(
        cls,
        table: pd.DataFrame,
        *,
        prompt: str = "prompt",
        choices: Sequence[str] = ("first", "second"),
        answer: str | None = None,
        factors: Sequence[str] = (),
        chat: ChatFormat | None = None,
    ) -> "ChoiceQuestions":
        """Questions from a table, one per row.

        Args:
            table: any table of yours.
            prompt: the column of prompts.
            choices: the two columns of choices, that of the signal first.
            answer: the column of the correct choice: its index (0 or 1) or its text, ignoring case and
                surrounding space.
            factors: the columns to keep as factors.
            chat: renders each prompt as a user message. Each choice then begins the model's turn, so that the
                format decides the space around it.

        Raises:
            ValueError: a column that is missing or there twice, a prompt or choice that is not text, an
                answer that is neither an index nor a choice, or could be either; and as the constructor.
        """
        names = [prompt, *choices, *([] if answer is None else [answer]), *factors]
        if len(choices) != 2:
            raise ValueError(f"choices={list(choices)}: expected the names of two columns.")
        if wrong := [name for name in names if list(table.columns).count(name) != 1]:
            raise ValueError(
                f"the table needs one column each of {wrong}; it has {list(table.columns)}: "
                "name its columns in prompt=…, choices=…, answer=… and factors=…."
            )
        for name in names[:3]:
            if wrong := [(row, value) for row, value in table[name].items() if not isinstance(value, str)]:
                raise ValueError(f"row {wrong[0][0]}: {name} is {wrong[0][1]!r:.60}, expected text.")
        if same := list(table.index[table[choices[0]] == table[choices[1]]]):
            raise ValueError(
                f"row {same[0]}: {choices[0]} and {choices[1]} are the same, expected two choices."
            )
        prompts, pairs = list(table[prompt]), list(zip(*(table[name] for name in choices), strict=True))
        if chat is not None and prompts:
            rendered = [_in_chat(chat, *row) for row in zip(prompts, pairs, strict=True)]
            prompts, pairs = map(list, zip(*rendered, strict=True))
        answers = None if answer is None else list(map(_answer_index, table.index, table[answer], pairs))
        return cls(prompts, pairs, answers, table[list(factors)] if factors else None)

    @checked
    def subset(self, rows: Rows) -> "ChoiceQuestions":
        """Some of the questions: `rows` as indices from 0, in the order given, or as a mask."""
        rows = row_numbers(rows, len(self))
        columns = (self.prompts, self.choices, self.answers)
        parts = [values and [values[row] for row in rows] for values in columns]
        return ChoiceQuestions(*parts, None if self.factors is None else self.factors.iloc[rows])


def _in_chat(chat: ChatFormat, message: str, pair: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    """A message as a prompt, and its choices as continuations; a space between them goes to the choices."""
    choices = [choice.strip() for choice in pair]
    rendered = [chat.render(message, answer_prefix=choice) for choice in choices]
    prompt = rendered[0].removesuffix(choices[0]).rstrip(" ")
    return ChatPrompt(prompt, user=message, chat=chat), tuple(text.removeprefix(prompt) for text in rendered)


def _answer_index(row: Any, answer: Any, pair: tuple[str, str]) -> int:
    """Index of the choice that an answer names by its index or its text."""
    texts = [choice.strip().casefold() for choice in pair]
    indices = {index for index in (0, 1) if texts[index] == str(answer).strip().casefold()}
    if not isinstance(answer, bool | np.bool_) and answer in (0, 1, "0", "1"):
        indices.add(int(answer))
    if len(indices) != 1:
        problem = "could be either" if indices else "is neither an index nor a choice"
        raise ValueError(
            f"row {row}: the answer {answer!r:.60} to the choices {pair!r:.60} {problem}: expected 0 or 1, "
            "the index of the right choice, or its text. Of a label (1: the first choice is right), "
            "give the column 1 - label."
        )
    return indices.pop()


@checked
def sentiment_questions(
    reviews: pd.DataFrame, *, examples: Sequence[tuple[str, str]] = SENTIMENT_EXAMPLES
) -> ChoiceQuestions:
    """'Review: "…" Sentiment:' as plain text; " positive" (the signal) against " negative".

    Args:
        reviews: `review` and `label` (1 positive), from `read_reviews`.
        examples: reviews with their answers, shown before each. Without any, the embedded model gives the two
            words 5% of the probability; after one of each, 90%.

    Raises:
        ValueError: no reviews, a column missing, an empty review, or labels other than 0 and 1.
    """
    labels = checked_labels(reviews, "reviews", "review")
    shots = "".join(f'Review: "{review}"\nSentiment: {answer}\n\n' for review, answer in examples)
    requests = [f'Review: "{review}"\nSentiment:' for review in reviews["review"]]
    prompts = [ChatPrompt(shots + each, each) for each in requests]
    factors = pd.DataFrame({"kind": labels.map({1: "positive", 0: "negative"})})
    return ChoiceQuestions(prompts, [(" positive", " negative")] * len(prompts), list(1 - labels), factors)


@checked
def claim_questions(
    claims: pd.DataFrame, chat: ChatFormat, *, free_text: bool = False, wording: Wording = "plain"
) -> ChoiceQuestions:
    """Whether claims are true: "A" (true, the signal) against "B" (false).

    Args:
        claims: `statement` and `label` (1 true), from `read_claims`.
        chat: the model's chat format.
        free_text: end the user's turn in "Answer:" and let the model continue freely: for
            `sweep(measure="generate")`, which reads the choice from the text. By default the model's turn
            begins with "Answer: (" (in the study's wording with "("), so that a single letter is scored.
        wording: "plain", or "study" for the prompts of the study's recorded answers (with `free_text=True`,
            exactly those); see `honesty_pairs`.

    Raises:
        ValueError: no claims, a column missing, an empty statement, or labels other than 0 and 1.
    """
    labels = checked_labels(claims, "claims", "statement")
    answer = None if free_text else "("
    prompts = [
        answered_prompt(claim_question(claim, wording=wording), answer, chat, wording)
        for claim in claims["statement"]
    ]
    factors = pd.DataFrame({"truth": labels.map({1: "true", 0: "false"})})
    return ChoiceQuestions(prompts, [("A", "B")] * len(prompts), list(1 - labels), factors)


@checked
def misconception_questions(
    questions: pd.DataFrame, chat: ChatFormat, *, free_text: bool = False, wording: Wording = "plain"
) -> ChoiceQuestions:
    """Questions with the correct answer and the common misconception, lettered in turn.

    The correct answer is (A) in even rows and (B) in odd ones; it is the signal either way.

    Args:
        questions: `question`, `correct` and `incorrect`, from `read_misconceptions`.
        chat: the model's chat format.
        free_text, wording: as for `claim_questions`.

    Raises:
        ValueError: no questions, a column missing, or an empty value.
    """
    columns = ["question", "correct", "incorrect"]
    checked_columns(questions, "misconceptions", *columns)
    prompts, choices = [], []
    for row, (question, *answers) in enumerate(questions[columns].itertuples(index=False)):
        first, second = answers if row % 2 == 0 else answers[::-1]
        text = MISCONCEPTION[wording].format(question=question, first=first, second=second)
        prompts.append(answered_prompt(text, None if free_text else "(", chat, wording))
        choices.append(("A", "B") if row % 2 == 0 else ("B", "A"))
    letters = pd.DataFrame({"letter": [choice[0] for choice in choices]})
    return ChoiceQuestions(prompts, choices, [0] * len(prompts), letters)
