"""What was written under each cell, side by side."""

from collections.abc import Iterable, Sequence

import pandas as pd

from .._util.validation import checked
from ..sweeps.sweep_table import CELL, UNSTEERED, require_one_row_a_prompt, sweep_table, text_keys


@checked
def side_by_side(
    table: pd.DataFrame,
    *,
    layers: int | str | Sequence[int | str | Sequence[int]] | None = None,
    multipliers: float | Sequence[float] | None = None,
    operation: str | Sequence[str] | None = None,
    vector: str | Sequence[str] | None = None,
    controls: bool = False,
) -> pd.DataFrame:
    """The texts of a sweep, a row a prompt (or draw of it) and a column a cell.

    Args:
        table: of `sweep(…, measure="generate")` or `read_recorded`.
        layers: 17, "17+31" (steered together), or several, such as [17, (17, 31)]; by default all there are.
        multipliers, operation, vector: one or several; by default all there are.
        controls: whether control vectors are shown too.

    Returns:
        prompt_id, draw and label (where the table has them), prompt, and the texts from the most negative
        multiplier through "unsteered" to the most positive, then operations without one. A column's name is
        what tells it from the others: "−16", "layer 18, −16", "layer 18, project out". NA where a cell lacks
        a prompt.

    Raises:
        ValueError: columns are missing, there are no texts, a value is asked for that is not there, or a
            prompt is in a cell twice.
    """
    table = sweep_table(table, "prompt_id", "prompt", "text")
    if not table["text"].notna().any():
        raise ValueError(
            "the table has no texts: sweep with measure='generate', or give what read_recorded reads."
        )
    asked = {"layers": layers, "multiplier": multipliers, "operation": operation, "vector": vector}
    rows = table if controls else table[~table["control"].astype(bool)]
    for column, wanted in asked.items():
        rows = _selected(rows, column, wanted)
    require_one_row_a_prompt(rows)
    keys = text_keys(rows)
    about = [*keys, "prompt", *(["label"] if "label" in rows else [])]
    prompts = rows.drop_duplicates(keys)[about].set_index(keys)
    cells = _in_order(rows[list(CELL)].drop_duplicates())
    texts = {name: _texts_of(rows, cell) for name, cell in zip(_names(cells), _records(cells), strict=True)}
    return prompts.join(pd.DataFrame(texts, index=prompts.index)).reset_index()


def _selected(rows: pd.DataFrame, column: str, wanted: object) -> pd.DataFrame:
    """Rows with the values wanted of a column, and the unsteered ones."""
    if wanted is None:
        return rows
    unsteered = rows["vector"] == UNSTEERED
    known = list(rows.loc[~unsteered, column].dropna().unique())
    given = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    values = [_layers(value) if column == "layers" else value for value in given]
    if missing := [value for value in values if value not in known]:
        raise ValueError(
            f"there is no {column} {missing[0]!r}; the table has {', '.join(map(str, known)) or 'none'}."
        )
    return rows[unsteered | rows[column].isin(values)]


def _layers(value: object) -> str:
    """Layers as a table names them."""
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _in_order(cells: pd.DataFrame) -> pd.DataFrame:
    """By multiplier, unsteered before an added zero; of equal ones by place in the table."""
    steered = cells["vector"] != UNSTEERED
    order = cells.assign(steered=steered).sort_values(
        ["multiplier", "steered"], kind="stable", na_position="last"
    )
    return order.drop(columns="steered").reset_index(drop=True)


def _names(cells: pd.DataFrame) -> list[str]:
    """What tells each cell from the others."""
    steered = cells[cells["vector"] != UNSTEERED]
    several = {name for name in CELL if steered[name].nunique(dropna=False) > 1}
    names = []
    for cell in _records(cells):
        bare = pd.isna(cell["multiplier"])
        how = [cell["operation"].replace("project_out", "project out")] * (bare or "operation" in several)
        how += [] if bare else [_signed(cell["multiplier"])]
        where = {"vector": cell["vector"], "layers": f"layer {cell['layers']}", "hook": cell["hook"]}
        parts = [*(told for name, told in where.items() if name in several), " ".join(how)]
        names.append("unsteered" if cell["vector"] == UNSTEERED else ", ".join(parts))
    return names


def _signed(multiplier: float) -> str:
    """All its digits, so that no two are alike: "+16", "−0.5"."""
    return f"{float(multiplier):+}".removesuffix(".0").replace("-", "−")


def _texts_of(rows: pd.DataFrame, cell: dict[str, object]) -> pd.Series:
    same = pd.Series(True, rows.index)
    for name, value in cell.items():
        same &= rows[name].isna() if pd.isna(value) else rows[name] == value
    return rows[same].set_index(text_keys(rows))["text"]


def _records(cells: pd.DataFrame) -> list[dict[str, object]]:
    return cells.to_dict("records")
