"""What the tables of a sweep share: the columns of a cell, and each prompt beside its unsteered self."""

from collections.abc import Sequence

import pandas as pd

CELL = ("vector", "control", "operation", "layers", "hook", "multiplier")
OUTCOMES = ("choice", "logit_difference", "probability", "mass", "text")
UNSTEERED = "none"  # the name of its vector


def require_columns(table: pd.DataFrame, *names: str) -> None:
    """Refuse a table that lacks columns.

    Raises:
        ValueError: names the missing ones.
    """
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}. "
            "Give the table of a sweep."
        )


def factors_of(table: pd.DataFrame, by: str | Sequence[str]) -> list[str]:
    """The columns to split by, without those of the cell, which split every table already.

    Raises:
        ValueError: a column that is not there, or an outcome (which would select prompts by their result).
    """
    names = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    require_columns(table, *names)
    chosen = [name for name in names if name in OUTCOMES]
    if chosen:
        raise ValueError(f"by={chosen} are outcomes: split by factors of the prompts, 'answer' or 'split'.")
    return [name for name in names if name not in (*CELL, "dose")]


def beside_unsteered(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The table with `unsteered_choice` and `unsteered_logit_difference` of the same prompt in each row.

    Args:
        table: a sweep's table.
        by: factors within which a `prompt_id` is unique.

    Raises:
        ValueError: columns are missing, or a prompt is in a cell twice.

    Rows are as many and in the same order; NaN where the prompt has no unsteered row.
    """
    require_columns(table, "prompt_id", *CELL, "dose", "answer", "choice", "logit_difference")
    _require_one_row_a_prompt(table, by)
    keys = list(dict.fromkeys(["prompt_id", *by]))
    rows = table.astype({"answer": "Int64", "choice": "Int64", "logit_difference": float})
    unsteered = rows.loc[rows["vector"] == UNSTEERED, [*keys, *(set(OUTCOMES[:2]) - set(keys))]]
    unsteered = unsteered.rename(columns={name: f"unsteered_{name}" for name in OUTCOMES[:2]})
    return rows.merge(unsteered, how="left", on=keys, validate="many_to_one")


def in_cells(rows: pd.DataFrame, by: Sequence[str]) -> "pd.api.typing.DataFrameGroupBy":
    """Rows by cell and factors, in the table's order; NaN (a projection's multiplier) is a key like any."""
    return rows.groupby([*CELL, *by], dropna=False, sort=False, observed=True)


def _require_one_row_a_prompt(table: pd.DataFrame, by: Sequence[str]) -> None:
    twice = table.duplicated(list(dict.fromkeys(["prompt_id", *CELL, *by])))
    if twice.any():
        row = table[twice].iloc[0]
        cell = ", ".join(f"{name}={row[name]}" for name in CELL)
        raise ValueError(
            f"prompt_id {row['prompt_id']} is twice in the cell {cell}: give one sweep's table, "
            "or name in by=… the column that tells the sweeps apart."
        )
