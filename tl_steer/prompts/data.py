"""Readers of claims, reviews, pairs and questions: the project's own by name, yours by path."""

import io
import warnings
from importlib import resources
from pathlib import Path

import pandas as pd

from ..arguments import checked
from .pairs import ContrastPairs, contrast_pairs


@checked
def read_claims(path_or_name: str | Path = "claims_train") -> pd.DataFrame:
    """Claims: `statement`, `label` (1 true, 0 false), and whatever other columns there are.

    Args:
        path_or_name: a CSV of yours, or "claims_train" (210 true, 210 false) or "claims_eval" (100, 100).

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: a column is missing, a cell empty, or a label other than 0 and 1.
    """
    return _read(path_or_name, ("statement", "label"))


@checked
def read_reviews(path_or_name: str | Path = "reviews") -> pd.DataFrame:
    """Reviews: `review`, `label` (1 positive, 0 negative); "reviews" has 60 of each.

    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, ("review", "label"))


@checked
def read_misconceptions(path_or_name: str | Path = "misconceptions") -> pd.DataFrame:
    """Questions many answer wrongly: `question`, `correct`, `incorrect`.

    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, ("question", "correct", "incorrect"))


@checked
def read_dilemmas(path_or_name: str | Path = "dilemmas") -> pd.DataFrame:
    """Moral dilemmas in free text: `dilemma`. `path_or_name` and errors are as for `read_claims`."""
    return _read(path_or_name, ("dilemma",))


@checked
def read_neutral(path_or_name: str | Path = "neutral") -> pd.DataFrame:
    """Neutral passages: `passage`, and in "neutral" (120 of 25 to 60 words) `topic`.

    What `damage` reads: plain prose of twelve topics, with no leaning in mood, truth or manners.
    `path_or_name` and errors are as for `read_claims`.
    """
    return _read(path_or_name, ("passage",))


@checked
def read_pairs(path_or_name: str | Path = "sentiment_pairs") -> ContrastPairs:
    """Contrast pairs: `positive` and `negative`; other columns become factors.

    `path_or_name` and errors are as for `read_claims`.
    """
    table = _read(path_or_name, ("positive", "negative"))
    factors = table.drop(columns=["positive", "negative"])
    return contrast_pairs(list(table["positive"]), list(table["negative"]), factors=factors)


def _read(path_or_name: str | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        with _opened(path_or_name) as file:
            table = _parsed(file.read(), columns)
    except (
        pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError, UnicodeDecodeError
    ) as error:  # fmt: skip
        raise ValueError(f"{path_or_name} cannot be read as CSV: {error}") from error
    if missing := [column for column in columns if column not in table]:
        raise ValueError(f"{path_or_name} lacks the columns {missing}; it has {list(table.columns)}.")
    for column in columns:
        empty = table.index[table[column].astype(str).str.strip() == ""]
        if len(empty):
            raise ValueError(f"{path_or_name}, row {empty[0] + 1}: {column} is empty.")
    if "label" in columns:
        table["label"] = _labels(table["label"], path_or_name)
    if table.empty:
        raise ValueError(f"{path_or_name} has no rows.")
    return table[[*columns, *(column for column in table if column not in columns)]]


def _parsed(content: str, columns: tuple[str, ...]) -> pd.DataFrame:
    if "\x00" in content:
        raise pd.errors.ParserError("there are NUL characters in it; save it as CSV in UTF-8.")
    # Empty cells are an error, and "None" or "NA" may be an answer: nothing is read as missing.
    options = {"keep_default_na": False, "index_col": False}
    with warnings.catch_warnings():
        # A comma outside quotation marks: pandas would shift the columns, or cut the row with a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        table = pd.read_csv(io.StringIO(content), dtype=dict.fromkeys(columns, str), **options)
        header = pd.read_csv(io.StringIO(content), dtype=str, header=None, nrows=1, **options).iloc[0]
    if twice := [column for column in columns if (header == column).sum() > 1]:  # pandas renames the second
        raise pd.errors.ParserError(f"it has several columns {twice[0]!r}; leave one, or rename them.")
    return table


def _labels(labels: pd.Series, path_or_name: str | Path) -> pd.Series:
    numbers = pd.to_numeric(labels, errors="coerce")
    wrong = labels[~numbers.isin([0, 1])]
    if len(wrong):
        raise ValueError(f"{path_or_name}, row {wrong.index[0] + 1}: label {wrong.iloc[0]!r} must be 0 or 1.")
    return numbers.astype(int)


def _opened(path_or_name: str | Path):
    own = resources.files("tl_steer.data") / f"{path_or_name}.csv"
    if isinstance(path_or_name, str) and "/" not in path_or_name and own.is_file():
        return own.open(encoding="utf-8")
    path = Path(path_or_name)
    if not path.is_file():
        names = sorted(
            file.name[:-4]
            for file in resources.files("tl_steer.data").iterdir()
            if file.name.endswith(".csv")
        )
        raise FileNotFoundError(f"{path} is neither a file nor one of {', '.join(names)}.")
    return path.open(encoding="utf-8-sig", newline="")
