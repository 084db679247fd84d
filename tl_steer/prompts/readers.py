"""Load claims, reviews, pairs and questions: bundled data sets by name, CSV and JSON files by path."""

import csv
import io
import itertools
import json
import warnings
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from .._util.file_io import read_text
from .._util.validation import checked, warn
from ..models import ChatFormat
from ..models.chat_template import space
from .choice_questions import ChoiceQuestions
from .pairs import SIDES, ContrastPairs, truth_labels

PROMPT = ("prompt",)
BEHAVIOURS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


@checked
def read_claims(path_or_name: str | Path = "claims_train") -> pd.DataFrame:
    """Claims: `statement`, `label` (1 true, 0 false), and any other columns.

    Args:
        path_or_name: a file, or "claims_train" (210 true, 210 false) or "claims_eval" (100, 100). Files are
            CSV (separated by commas, semicolons or tabs) or JSON (one object per line, or a list of objects),
            in UTF-8. Labels may also be true and false.

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: another format or encoding, a column is missing, a value empty, or another label.

    Warns of claims that are repeated, and of those that are repeated with the other label.
    """
    return _read(path_or_name, "statement", "label", answer="label")


@checked
def read_reviews(path_or_name: str | Path = "reviews") -> pd.DataFrame:
    """Reviews: `review`, `label` (1 positive, 0 negative); "reviews" has 60 of each.

    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, "review", "label", answer="label")


@checked
def read_misconceptions(path_or_name: str | Path = "misconceptions") -> pd.DataFrame:
    """Questions many answer wrongly: `question`, `correct`, `incorrect`.

    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, "question", "correct", "incorrect", answer="correct")


@checked
def read_dilemmas(path_or_name: str | Path = "dilemmas") -> pd.DataFrame:
    """Moral dilemmas in free text: `dilemma`. `path_or_name` and errors are as for `read_claims`."""
    return _read(path_or_name, "dilemma")


@checked
def read_prompts(path_or_name: str | Path = "dilemmas") -> pd.DataFrame:
    """Open prompts: `prompt`, from a column of this name or `dilemma`, or from the lines of a .txt file.

    `path_or_name` and errors are as for `read_claims`. Empty lines are skipped.
    """
    if str(path_or_name).lower().endswith(".txt"):
        lines = [line.strip() for line in _content(path_or_name).splitlines()]
        table = pd.DataFrame({"prompt": list(filter(None, lines))}, dtype=object)
        if table.empty:
            raise ValueError(f"{path_or_name} has no lines with text: expected one prompt per line.")
    else:
        table = _table(path_or_name, PROMPT, ("dilemma",)).rename(columns={"dilemma": "prompt"})
    _warn_of_repeats(list(table["prompt"]), None, path_or_name)
    return table


@checked
def read_neutral(path_or_name: str | Path = "neutral") -> pd.DataFrame:
    """Neutral passages: `passage`, and in "neutral" (120 of 25 to 60 words) `topic`.

    For `damage`: plain prose of twelve topics, with no leaning in mood, truth or manners.
    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, "passage")


@checked
def read_pairs(
    path_or_name: str | Path = "sentiment_pairs",
    *,
    chat: ChatFormat | None = None,
    system_positive: str | None = None,
    system_negative: str | None = None,
) -> ContrastPairs:
    """Contrast pairs: `positive` and `negative`; other columns become factors.

    Of questions with answers by behaviour (see `read_questions`), the positive side is the question followed
    by the answer that matches the behaviour. If the system messages differ, a column `prompt` is enough: both
    sides have the same message from the user, as for persona vectors.

    Args:
        path_or_name: as for `read_claims`.
        chat: renders each text as a user message, and an answer as the beginning of the model's turn.
        system_positive, system_negative: system messages of the two sides; they need `chat`.

    Raises:
        FileNotFoundError, ValueError: as `read_claims`; system messages without `chat`, or for a chat format
            that has none.

    Warns of pairs that are repeated, and of pairs whose two sides are the same text.
    """
    systems = (system_positive, system_negative)
    if chat is None and systems != (None, None):
        raise ValueError("system messages are parts of a chat: give chat=chat_format(model).")
    table = _table(path_or_name, SIDES, BEHAVIOURS, *([PROMPT] if system_positive != system_negative else []))
    columns = next(each for each in (SIDES, BEHAVIOURS, PROMPT) if set(each) <= set(table))
    if columns is BEHAVIOURS:
        answers = [zip(table["question"], table[name], strict=True) for name in BEHAVIOURS[1:]]
        sides = [
            [_answered(*each, chat, system) for each in rows]
            for rows, system in zip(answers, systems, strict=True)
        ]
    else:
        names = SIDES if columns is SIDES else PROMPT * 2
        sides = [
            [text if chat is None else chat.render(text, system=system) for text in table[name]]
            for name, system in zip(names, systems, strict=True)
        ]
    pairs = ContrastPairs(*sides, table.drop(columns=[*columns]))
    _warn_of_repeats(["\n".join(pair) for pair in zip(*sides, strict=True)], None, path_or_name)
    if same := [row for row, (one, other) in enumerate(zip(*sides, strict=True)) if one == other]:
        warn(
            f"{path_or_name}: {len(same)} of {len(pairs)} pairs have the same text on both sides, first row "
            f"{same[0] + 1} ({sides[0][same[0]]!r:.60}), and say nothing about the behaviour. Remove them."
        )
    return pairs


@checked
def read_questions(
    path: str | Path,
    *,
    prompt: str = "prompt",
    choices: Sequence[str] = ("first", "second"),
    answer: str | None = None,
    chat: ChatFormat | None = None,
) -> ChoiceQuestions:
    """Questions with two choices; all other columns become factors.

    A file may also be in the format of Anthropic's model-written evaluations and of contrastive activation
    addition: `question`, `answer_matching_behavior` and `answer_not_matching_behavior`. Then the first choice
    is the answer that matches the behaviour, and no answer is correct.

    Args:
        path: a CSV or JSON file, as for `read_claims`.
        prompt, choices, answer, chat: as for `ChoiceQuestions.from_frame`. `answer` is by default the column
            "answer", if present.

    Raises:
        FileNotFoundError, ValueError: as `read_claims` and `ChoiceQuestions.from_frame`.

    Warns of questions that are repeated, and of those that are repeated with another answer.
    """
    columns = (prompt, *choices)
    table = _table(path, columns, BEHAVIOURS)
    if not set(columns) <= set(table):
        columns = BEHAVIOURS
    elif answer is None and "answer" in table:
        answer = "answer"
    factors = [name for name in table if name not in (*columns, answer)]
    names = {"prompt": columns[0], "choices": columns[1:], "answer": answer, "factors": factors}
    table.index += 1  # rows are numbered from 1 in errors about files
    try:
        questions = ChoiceQuestions.from_frame(table, **names, chat=chat)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from error
    indices = questions.answers or [0] * len(questions)
    answers = [pair[index] for pair, index in zip(questions.choices, indices, strict=True)]
    _warn_of_repeats(list(table[columns[0]]), answers, path)
    return questions


def _answered(question: str, answer: str, chat: ChatFormat | None, system: str | None) -> str:
    """A question with an answer: in the model's turn, or after a space."""
    if chat is None:
        return question + space(question, answer) + answer
    return chat.render(question, system=system, answer_prefix=answer.strip())


def _read(path_or_name: str | Path, *columns: str, answer: str | None = None) -> pd.DataFrame:
    """The rows of a file. Warns of texts in the first column that are repeated."""
    table = _table(path_or_name, columns)
    _warn_of_repeats(list(table[columns[0]]), answer and list(table[answer]), path_or_name)
    return table


def _warn_of_repeats(texts: Sequence[str], answers: Sequence[Any] | None, source: str | Path) -> None:
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(" ".join(text.split()), []).append(row)
    repeated = [each for each in rows.values() if len(each) > 1]
    opposed = [each for each in repeated if answers and len({answers[row] for row in each}) > 1]
    counts = [
        f"{len(each)} {problem}, first in rows {[row + 1 for row in each[0]]} ({texts[each[0][0]]!r:.60})"
        for each, problem in ((repeated, "repeated"), (opposed, "repeated with different answers"))
        if each
    ]
    if counts:
        warn(f"{source}: {'; '.join(counts)}. Remove the copies and correct the answers.")


def _table(path_or_name: str | Path, columns: Sequence[str], *others: Sequence[str]) -> pd.DataFrame:
    """The rows of a file, with `columns` first, or one of the `others` that it may have instead."""
    content = _content(path_or_name)
    is_json = content.lstrip()[:1] in ("{", "[")
    try:
        table = _json_rows(content) if is_json else _csv_rows(content, {*columns, *itertools.chain(*others)})
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, csv.Error) as error:
        name = "JSON" if is_json else "CSV"
        raise ValueError(f"{path_or_name} cannot be read as {name}: {error}") from error
    columns = next((each for each in (columns, *others) if set(each) <= set(table)), columns)
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path_or_name} lacks the columns {missing}; it has {list(table.columns)}.")
    if table.empty:
        raise ValueError(f"{path_or_name} has no rows.")
    labels = truth_labels(table["label"]) if "label" in columns else None
    for column in columns:
        for row, value in enumerate(table[column], 1):
            if column == "label" and pd.isna(labels[row - 1]):
                raise ValueError(f"{path_or_name}, row {row}: label {value!r} must be 0, 1, true or false.")
            if column != "label" and not (isinstance(value, str) and value.strip()):
                raise ValueError(f"{path_or_name}, row {row}: {column} is {value!r:.60}, expected text.")
    if labels is not None:
        table["label"] = labels.astype(int)
    return table[[*columns, *(name for name in table if name not in columns)]]


def _csv_rows(content: str, names: set[str]) -> pd.DataFrame:
    """The rows of a CSV file; the columns `names` are text."""
    if "\x00" in content:
        raise pd.errors.ParserError("there are NUL characters in it; save it as CSV in UTF-8.")

    def header(separator: str) -> list[str]:
        return next(filter(None, csv.reader(io.StringIO(content), delimiter=separator)), [])

    # From the header: texts contain commas, semicolons and tabs of their own.
    separator = max((",", ";", "\t"), key=lambda each: len(names & {*header(each)}))
    # pandas renames the second of two columns.
    if twice := [name for name in names if header(separator).count(name) > 1]:
        raise pd.errors.ParserError(f"it has several columns {twice[0]!r}; leave one, or rename them.")
    with warnings.catch_warnings():
        # A comma outside quotation marks: pandas would shift the columns, or cut the row with a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # Empty cells are an error, and "None" or "NA" may be an answer: nothing is read as missing.
        options = {"dtype": dict.fromkeys(names, str), "keep_default_na": False, "index_col": False}
        return pd.read_csv(io.StringIO(content), sep=separator, **options)


def _json_rows(content: str) -> pd.DataFrame:
    """The objects of a list or of lines; a list of one item, as in files of behaviours, becomes the item."""
    lines = [content] if content.lstrip()[0] == "[" else content.split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line) if line.strip() else []
        except (ValueError, RecursionError) as error:
            message = f"line {number}: {error}; expected one object per line, or a list."
            raise pd.errors.ParserError(message) from error
        rows += value if isinstance(value, list) else [value]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise pd.errors.ParserError(f"{wrong[0]!r:.60} is not an object with named values.")
    single = {
        name: [value[0] if isinstance(value, list) and len(value) == 1 else value for value in column]
        for name, column in pd.DataFrame(rows, dtype=object).items()
    }
    return pd.DataFrame(single)


def _content(path_or_name: str | Path) -> str:
    folder = resources.files("tl_steer.data")
    names = sorted(file.name[:-4] for file in folder.iterdir() if file.name.endswith(".csv"))
    if str(path_or_name) in names and isinstance(path_or_name, str):
        return (folder / f"{path_or_name}.csv").read_text(encoding="utf-8")
    if not (path := Path(path_or_name)).is_file():
        raise FileNotFoundError(f"{path} is neither a file nor one of {', '.join(names)}.")
    return read_text(path)
