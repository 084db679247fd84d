"""Questions with two possible continuations, of which one may be right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from .._util.validation import checked, short_repr
from ..models import ChatFormat, ChatPrompt, prompt_label
from .honesty import Wording, answered_prompt, claim_question
from .pairs import Rows, row_numbers, truth_labels

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
        prompts: what is asked. A `ChatPrompt` keeps the message that it was rendered from.
        choices: a pair a prompt. The first is the *signal* meaning ("true", "positive"), whatever letter it
            wears.
        answers: 0 or 1 a prompt, which of its choices is right; `None` where none is.
        factors: a row a prompt, of what is known of it; a column `split` names parts kept apart.

    Raises:
        ValueError: no prompts, an empty one, lengths that differ, choices that are alike, other answers.
    """

    prompts: Sequence[str]
    choices: Sequence[tuple[str, str]]
    answers: Sequence[int] | None = None
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        # Tuples, and a copy: by place whatever index a column had, and nobody else's to change.
        for name in ("prompts", "choices", "answers"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.factors is not None:
            object.__setattr__(self, "factors", self.factors.reset_index(drop=True))
        count = len(self.prompts)
        if not count:
            raise ValueError("no questions given; pass at least one prompt.")
        given = {"choices": self.choices, "answers": self.answers, "factors": self.factors}
        for name, values in given.items():
            if values is not None and len(values) != count:
                raise ValueError(f"{len(values)} {name} for {count} prompts: give one for each.")
        for row, (prompt, pair) in enumerate(zip(self.prompts, self.choices, strict=True)):
            if not prompt:
                raise ValueError(f"question {row} is empty.")
            if len(pair) != 2 or pair[0] == pair[1] or not all(pair):
                raise ValueError(
                    f"question {row} needs two different choices that are not empty; got {pair!r}."
                )
        if self.answers is not None and not set(self.answers) <= {0, 1}:
            raise ValueError(
                f"answers must be 0 or 1, the right choice's place; got {sorted(set(self.answers))}."
            )

    def __len__(self) -> int:
        return len(self.prompts)

    __repr__ = short_repr

    @property
    def labels(self) -> tuple[str, ...]:
        """What tables and figures call each prompt: its user message, or the prompt itself."""
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
            answer: the column that says which choice is right: its index (0 or 1), or its text, where case
                and the space around it do not count.
            factors: the columns to keep as factors.
            chat: renders each prompt as a user message. Each choice then begins the model's turn, so that the
                space around it is that of the format instead of its own.

        Raises:
            ValueError: a column that is not there or there twice, a prompt or choice that is not text, an
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
            if wrong := [(row, cell) for row, cell in enumerate(table[name]) if not isinstance(cell, str)]:
                raise ValueError(f"row {wrong[0][0]}: {name} is {wrong[0][1]!r:.60}, expected text.")
        prompts, pairs = list(table[prompt]), list(zip(*(table[name] for name in choices), strict=True))
        if chat is not None:
            prompts, pairs = map(list, zip(*map(partial(_in_chat, chat), prompts, pairs), strict=True))
        answers = None
        if answer is not None:
            answers = [_index(row, *both) for row, both in enumerate(zip(table[answer], pairs, strict=True))]
        return cls(prompts, pairs, answers, table[list(factors)] if factors else None)

    @checked
    def subset(self, rows: Rows) -> "ChoiceQuestions":
        """Some of the questions: `rows` counted from 0, in the order given, or true and false a question."""
        rows = row_numbers(rows, len(self))
        return ChoiceQuestions(
            [self.prompts[row] for row in rows],
            [self.choices[row] for row in rows],
            answers=None if self.answers is None else [self.answers[row] for row in rows],
            factors=None if self.factors is None else self.factors.iloc[rows].reset_index(drop=True),
        )


def _in_chat(chat: ChatFormat, message: str, pair: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    """A message as a prompt, and its choices as they continue it: a space between them is the choices'."""
    choices = [choice.strip() for choice in pair]
    rendered = [chat.render(message, answer_prefix=choice) for choice in choices]
    prompt = rendered[0].removesuffix(choices[0]).rstrip(" ")
    return ChatPrompt(prompt, user=message, chat=chat), tuple(text.removeprefix(prompt) for text in rendered)


def _index(row: int, answer: Any, pair: tuple[str, str]) -> int:
    """Which of two choices an answer is, by its index or its text."""
    texts = [choice.strip().casefold() for choice in pair]
    is_index = not isinstance(answer, bool | np.bool_) and answer in (0, 1, "0", "1")
    indices = {index for index in (0, 1) if texts[index] == str(answer).strip().casefold()}
    indices |= {int(answer)} if is_index else set()
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
    _require_columns(reviews, "reviews", "review")
    labels = truth_labels(reviews["label"])
    shown = "".join(f'Review: "{review}"\nSentiment: {answer}\n\n' for review, answer in examples)
    requests = [f'Review: "{review}"\nSentiment:' for review in reviews["review"]]
    prompts = [ChatPrompt(shown + each, each) for each in requests]
    kinds = labels.map({1: "positive", 0: "negative"})
    return _questions(prompts, [(" positive", " negative")] * len(prompts), labels, kinds.rename("kind"))


@checked
def claim_questions(
    claims: pd.DataFrame, chat: ChatFormat, *, free_text: bool = False, wording: Wording = "plain"
) -> ChoiceQuestions:
    """Whether claims are true: "A" (true, the signal) against "B" (false).

    Args:
        claims: `statement` and `label` (1 true), from `read_claims`.
        chat: the model's chat format.
        free_text: the user's turn ends in "Answer:", and the model continues as it likes: for
            `sweep(measure="generate")`, which reads the choice from its words. By default the model's turn
            begins with "Answer: (" (in the study's wording with "("), so that a single letter is scored.
        wording: "plain", or "study" for the prompts of the study's recorded answers (with `free_text=True`,
            exactly those); see `honesty_pairs`.

    Raises:
        ValueError: no claims, a column missing, an empty statement, or labels other than 0 and 1.
    """
    _require_columns(claims, "claims", "statement")
    answer = None if free_text else "("
    prompts = [
        answered_prompt(claim_question(claim, wording=wording), answer, chat, wording)
        for claim in claims["statement"]
    ]
    labels = truth_labels(claims["label"])
    kinds = labels.map({1: "true", 0: "false"})
    return _questions(prompts, [("A", "B")] * len(prompts), labels, kinds.rename("truth"))


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
        ValueError: no questions, a column missing, or an empty cell.
    """
    _require_columns(questions, "misconceptions", "question", "correct", "incorrect", label=False)
    prompts, choices = [], []
    for row, (question, correct, incorrect) in enumerate(
        zip(questions["question"], questions["correct"], questions["incorrect"], strict=True)
    ):
        first, second = (correct, incorrect) if row % 2 == 0 else (incorrect, correct)
        prompts.append(
            answered_prompt(
                MISCONCEPTION[wording].format(question=question, first=first, second=second),
                None if free_text else "(",
                chat,
                wording,
            )
        )
        choices.append(("A", "B") if row % 2 == 0 else ("B", "A"))
    letters = pd.Series([choice[0] for choice in choices], name="letter")
    return _questions(prompts, choices, pd.Series([1] * len(prompts)), letters)


def _require_columns(table: pd.DataFrame, kind: str, *texts: str, label: bool = True) -> None:
    """Refuse a table that lacks a column, has one twice, or has cells of another kind."""
    wanted = [*texts, "label"] if label else list(texts)
    if missing := [name for name in wanted if list(table.columns).count(name) != 1]:
        raise ValueError(
            f"{kind} need one column each of {missing}; they have {list(table.columns)}: "
            f"read them with read_{kind}."
        )
    for name in texts:
        if wrong := [cell for cell in table[name] if not isinstance(cell, str) or not cell.strip()]:
            raise ValueError(f"{kind}: {name} must be text that is not empty; got {wrong[0]!r:.60}.")
    if label and truth_labels(table["label"]).isna().any():
        raise ValueError(f"{kind}: labels must be 1 or 0; got {list(table['label'].unique())!r:.100}.")


def _questions(
    prompts: list[str], choices: list[tuple[str, str]], labels: pd.Series, factor: pd.Series
) -> ChoiceQuestions:
    answers = [1 - int(label) for label in labels]
    return ChoiceQuestions(
        prompts, choices, answers=answers, factors=factor.reset_index(drop=True).to_frame()
    )
