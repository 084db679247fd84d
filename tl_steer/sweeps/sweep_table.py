"""What the tables of sweeps share: how they are put together, and each prompt beside its unsteered self."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from .._read_choice import read_answer
from .._util.seeds import generator
from .._util.validation import holds_numbers
from ..models import prompt_label
from ..prompts.pairs import group_numbers
from ..statistics import nested

CELL = ("vector", "control", "control_of", "operation", "layers", "hook", "multiplier")
OUTCOMES = ("choice", "logit_difference", "probability", "mass", "text")
BESIDE = ("unsteered_choice", "unsteered_logit_difference")  # what `beside_unsteered` adds
UNSTEERED = "none"  # the name of its vector
DRAW = "draw"  # the column of tables with several texts per prompt
# Columns of numbers, where they are there; of those that are true, 0 and 1 alone.
NUMBERS = {
    "multiplier": False, "dose": False, "logit_difference": False, "probability": False, "mass": False,
    "draw": False, "answer": True, "choice": True,
}  # fmt: skip
FIXED = ("prompt_id", "prompt", *CELL, "dose", "split", "answer", *OUTCOMES)


def asked_table(
    prompts: Sequence[str],
    *,
    answers: Sequence[int] | None = None,
    factors: pd.DataFrame | None = None,
    seed: int,
) -> pd.DataFrame:
    """What every cell has in common, one row per prompt: prompt_id, prompt, label, answer, factors, split.

    Args:
        prompts: what is asked. `label` is the message that a `ChatPrompt` was rendered from, else the prompt.
        answers: 0 or 1 a prompt, or `None`.
        factors: one row per prompt. A column `split` is kept as it is, else `balanced_halves` makes one; a
            column `label` takes the place of the table's.
        seed: of the halves.

    Raises:
        ValueError: a factor that has one of the table's names.
    """
    asked = pd.DataFrame({"prompt_id": range(len(prompts)), "prompt": list(map(str, prompts))})
    asked["answer"] = pd.array([pd.NA] * len(asked) if answers is None else list(answers), dtype="Int64")
    if factors is not None:
        if clash := sorted(set(factors) & ({*FIXED, DRAW} - {"split"})):
            raise ValueError(f"factors may not be named {clash}: the table has columns of that name.")
        asked = asked.join(factors.reset_index(drop=True))
    if "split" not in asked:
        asked["split"] = balanced_halves(asked, seed)
    if "label" not in asked:
        asked.insert(2, "label", list(map(prompt_label, prompts)))
    return asked


def repeated(asked: pd.DataFrame, draws: int) -> pd.DataFrame:
    """A row per prompt and draw, with a column `draw` behind the prompt; as it is for a single draw."""
    if draws == 1:
        return asked
    rows = asked.loc[np.repeat(asked.index, draws)].reset_index(drop=True)
    rows.insert(2, DRAW, np.tile(np.arange(draws), len(asked)))
    return rows


def text_keys(table: pd.DataFrame) -> list[str]:
    """The columns that tell the rows of a condition apart: the prompt, and its draw where there is one."""
    return ["prompt_id", *([DRAW] if DRAW in table else [])]


def text_index(rows: pd.DataFrame) -> pd.Index:
    """The rows by `text_keys`."""
    return pd.MultiIndex.from_frame(rows[text_keys(rows)]) if DRAW in rows else pd.Index(rows["prompt_id"])


def balanced_halves(asked: pd.DataFrame, seed: int) -> Shaped[np.ndarray, " prompt"]:
    """ "choose" or "report" a prompt, equally many of each kind: sorted by kind, shuffled within, dealt out.

    Prompts of one `group` go to the same half, and those with the same text; prompts without a group are one
    group of their own. A kind is made of
    the factors with at least two prompts a level: what is another one in nearly every prompt (a number, a
    name) describes prompts, and would leave no two of a kind to be dealt out.
    """
    # As objects: a categorical's order, and those of its groups that no prompt has, do not count.
    group = same_text_together(group_numbers(asked.filter(["group"]).astype(object)), asked)
    labels = asked.drop(columns=["prompt_id", "prompt", "group"], errors="ignore").map(str)
    labels = labels.loc[:, (labels.columns == "answer") | (labels.nunique() * 2 <= len(labels))]
    kinds = labels.agg("\x00".join, axis=1).groupby(group).agg(lambda kinds: "\x01".join(sorted(kinds)))
    order = np.lexsort((generator(seed).random(len(kinds)), kinds.to_numpy()))
    half = pd.Series("report", index=kinds.index, dtype=object)
    half.iloc[order[::2]] = "choose"
    return half.loc[group].to_numpy()


def written_answers(
    texts: Sequence[str],
    prompts: Sequence[str],
    choices: Sequence[tuple[str, str]] | None,
    *,
    rule: str = "careful",
) -> pd.DataFrame:
    """The outcomes of texts, a row a text: `choice` as `read_answer` reads it, `text`; the scores are NaN.

    Args:
        texts: all prompts of the first cell, then of the next.
        prompts: what was asked.
        choices: a pair a prompt; `None` leaves `choice` missing.
        rule: of `read_choice`.
    """
    read: list[int | None] = [None] * len(texts)
    # Prompt by prompt, since making a reader for its choices takes longer than reading.
    for place, pair in enumerate(choices or ()):
        for row in range(place, len(texts), len(prompts)):
            read[row] = read_answer(texts[row], pair, prompts[place], rule=rule)
    choice = pd.array([pd.NA if each is None else each for each in read], dtype="Int64")
    return pd.DataFrame({"choice": choice, "text": pd.array(list(texts), dtype="string")}).assign(
        logit_difference=np.nan, probability=np.nan, mass=np.nan
    )


def assembled(
    asked: pd.DataFrame, cells: Sequence[Mapping[str, object]], outcomes: pd.DataFrame
) -> pd.DataFrame:
    """A sweep's table, cell by cell, in the order of columns that all of them have.

    Args:
        asked: what `asked_table` makes, or `repeated`.
        cells: the columns of each cell, and its dose.
        outcomes: a row a prompt and cell, all prompts of the first cell first.
    """
    count = len(asked)
    repeated = asked.iloc[np.tile(np.arange(count), len(cells))].reset_index(drop=True)
    named = pd.DataFrame(cells).loc[np.repeat(np.arange(len(cells)), count)].reset_index(drop=True)
    factors = [name for name in asked if name not in FIXED]
    table = pd.concat([repeated, named, outcomes], axis=1)
    return table[["prompt_id", "prompt", *factors, *FIXED[2:]]]


def sweep_table(
    table: pd.DataFrame, *names: str, maker: str = "a sweep", numbers: Sequence[str] = ()
) -> pd.DataFrame:
    """The table, checked to have the columns of a condition and `names`; arguments as `require_columns`.

    Tables that were written before `control_of` existed get it here, "": each control serves every vector.

    Raises as `require_columns`.
    """
    if "control_of" not in table:
        table = table.assign(control_of="")
    require_columns(table, *CELL, *names, maker=maker, numbers=numbers)
    return table


def require_columns(
    table: pd.DataFrame, *names: str, maker: str = "a sweep", numbers: Sequence[str] = ()
) -> None:
    """Refuse a table that lacks columns, or whose columns are not what those of a sweep are.

    Args:
        maker: what makes such a table, for the message.
        numbers: columns that must hold numbers, where they are there, beside those of a sweep.

    Raises:
        ValueError: names the missing ones, those that are there twice, and those with other kinds of values.
    """
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. "
            f"Give the table of {maker}."
        )
    _require_kinds(table, numbers)


def _require_kinds(table: pd.DataFrame, numbers: Sequence[str]) -> None:
    """Refuse a table with a column twice, numbers that are none, or a `control` other than true and false.

    Raises:
        ValueError: names the columns.
    """
    if twice := table.columns[table.columns.duplicated()].map(str).unique().tolist():
        raise ValueError(f"the table has several columns named {', '.join(twice)}: rename or drop some.")
    for name, whole in (NUMBERS | dict.fromkeys(numbers, False)).items():
        if name in table and (wrong := _wrong_cells(table[name], whole)):
            kind = "0, 1 or missing" if whole else "numbers"
            raise ValueError(
                f"the table's column {name!r} must be {kind}, and has {wrong[0]!r:.60}: give the table of a "
                "sweep, read back from Parquet, which keeps the kinds (CSV does not)."
            )
    if "prompt_id" in table and pd.api.types.infer_dtype(table["prompt_id"]).startswith("mixed"):
        raise ValueError("the table's column 'prompt_id' must be numbers or texts, not both.")
    for name in ("control_of", "text", "other_text", "verdict", "first_shown", "reason"):
        if name in table and (wrong := [each for each in table[name].dropna() if not isinstance(each, str)]):
            raise ValueError(f"the table's column {name!r} must be text, and has {wrong[0]!r:.60}.")
    if "control" in table and not table["control"].map(lambda each: isinstance(each, bool | np.bool_)).all():
        raise ValueError("the table's column 'control' must be true or false in every row.")


def _wrong_cells(column: pd.Series, whole: bool) -> list[object]:
    """What is no number, or of whole ones neither 0 nor 1; missing cells are none of these."""
    present = column[column.notna()]
    others: list[object] = []
    if not holds_numbers(present):
        others = [each for each in present if isinstance(each, bool) or not isinstance(each, Real)]
    return others or (present[~present.isin([0, 1])].tolist() if whole else [])


def factors_of(table: pd.DataFrame, by: str | Sequence[str], results: Iterable[str] = ()) -> list[str]:
    """The columns to split by, without those of the cell, which split every table already.

    Raises:
        ValueError: a column that is not there, an outcome (which would select prompts by their result), or
            one with the name of a column of the `results`.
    """
    names = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    require_columns(table, *names)
    chosen = [name for name in names if name in OUTCOMES]
    if chosen:
        raise ValueError(f"by={chosen} are outcomes: split by factors of the prompts, 'answer' or 'split'.")
    factors = [name for name in names if name not in (*CELL, "dose")]
    results = {*results, *BESIDE}
    if taken := sorted(each for each in factors if _of_interval(each) in results):
        raise ValueError(f"by={taken} have the names of results: rename these factors first.")
    return factors


def _of_interval(name: object) -> str:
    """The column whose interval a column belongs to, or its own name."""
    return str(name).removesuffix("_low").removesuffix("_high")


def serves(controls: pd.DataFrame, vector: str) -> pd.Series:
    """Whether each row of controls serves this vector: `control_of` is its name, or "" for all vectors."""
    return controls["control_of"].isin(["", vector])


def prompt_groups(rows: pd.DataFrame) -> Int[np.ndarray, " row"]:
    """Group number per row, from 0: draws of a prompt, prompts of one `group`, prompts of the same text."""
    if "prompt_id" not in rows:
        return same_text_together(group_numbers(rows), rows)
    labels = rows["prompt_id"].astype(object)
    if "group" in rows:
        prompts = "prompt " + labels.map(str)  # a prompt without a group is its own
        labels = ("group " + rows["group"].astype(object).map(str)).where(rows["group"].notna(), prompts)
    return same_text_together(pd.factorize(labels)[0], rows)


def same_text_together(group: Int[np.ndarray, " row"], rows: pd.DataFrame) -> Int[np.ndarray, " row"]:
    """Merge groups that share the text of a prompt, directly or through other groups; the order stays."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if "prompt" not in rows or rows.empty:
        return group
    n = group.max() + 1
    text = n + pd.factorize(rows["prompt"], use_na_sentinel=False)[0]
    size = text.max() + 1
    shared = coo_array((np.ones(len(group)), (group, text)), shape=(size, size))
    return connected_components(shared, directed=False)[1][group]


def beside_unsteered(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The table with `unsteered_choice` and `unsteered_logit_difference` of the same prompt and draw.

    Args:
        table: a sweep's table.
        by: factors within which a `prompt_id` is unique.

    Raises:
        ValueError: columns are missing, or a prompt (or a draw of it) is in a cell twice.

    Rows are as many and in the same order; NaN where the prompt has no unsteered row.
    """
    table = sweep_table(table, "prompt_id", "dose", "answer", "choice", "logit_difference")
    table = table.drop(columns=[*BESIDE], errors="ignore")
    require_one_row_a_prompt(table, by)
    keys = list(dict.fromkeys([*text_keys(table), *by]))
    rows = table.astype({"answer": "Int64", "choice": "Int64", "logit_difference": float})
    unsteered = rows.loc[rows["vector"] == UNSTEERED, [*keys, *(set(OUTCOMES[:2]) - set(keys))]]
    unsteered = unsteered.rename(columns=dict(zip(OUTCOMES, BESIDE, strict=False)))
    return rows.merge(unsteered, how="left", on=keys, validate="many_to_one")


def in_cells(rows: pd.DataFrame, by: Sequence[str]) -> "pd.api.typing.DataFrameGroupBy":
    """Rows by cell and factors, in the table's order; NaN (a projection's multiplier) is a key like any."""
    return rows.groupby([*CELL, *by], dropna=False, sort=False, observed=True)


def samples_and_groups(
    cells: "pd.api.typing.DataFrameGroupBy",
) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Number of each row's cell, and of its group within the cell, as `statistics.mean_interval` takes them.

    Args:
        cells: rows by cell, with `prompt_id`, and with `group` where there is one.
    """
    sample = cells.ngroup().to_numpy()
    return sample, nested(sample, prompt_groups(cells.obj))


def require_one_row_a_prompt(table: pd.DataFrame, by: Sequence[str] = ()) -> None:
    """Refuse a table in which a prompt, or a draw of it, is in a cell twice, unless `by` tells rows apart.

    Raises:
        ValueError: names the first such prompt and cell.
    """
    twice = table.duplicated(list(dict.fromkeys([*text_keys(table), *CELL, *by])))
    if twice.any():
        row = table[twice].iloc[0]
        cell = ", ".join(f"{name}={row[name]}" for name in (*text_keys(table)[1:], *CELL))
        raise ValueError(
            f"prompt_id {row['prompt_id']} is twice in the cell {cell}: give one sweep's table, "
            "or name in by=… the column that tells the sweeps apart."
        )


def in_cell(table: pd.DataFrame, cell: pd.Series) -> pd.Series:
    """Whether each row, of any of a sweep's tables, is of a cell.

    Args:
        cell: a row with the columns of a cell; those it lacks are not compared.
    """
    same = [
        table[name].eq(cell[name]) | (table[name].isna() & pd.isna(cell[name]))
        for name in CELL
        if name in cell
    ]
    return pd.concat(same, axis=1).all(axis=1)


def rows_of(table: pd.DataFrame, cell: pd.Series) -> pd.DataFrame:
    """The rows of a cell, never those of a control; `cell` as for `in_cell`."""
    return table[in_cell(table, cell) & ~table["control"].astype(bool)]
