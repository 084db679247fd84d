"""Texts of all conditions in one table, one column per condition."""

from collections.abc import Iterable, Sequence

import pandas as pd

from .._util.validation import checked
from ..sweeps.sweep_table import (
    CONDITION,
    UNSTEERED,
    condition_rows,
    require_unique_prompts,
    text_keys,
    validated_sweep,
)


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
    """The texts of a sweep, one row per prompt (or draw of it) and one column per condition.

    Args:
        table: of `sweep(…, measure="generate")` or `read_recorded`.
        layers: 17, "17+31" (steered together), or several, such as [17, (17, 31)]; by default all.
        multipliers, operation, vector: one or several; by default all.
        controls: whether control vectors are included.

    Returns:
        prompt_id, draw and label (where the table has them), prompt, and the texts from the most negative
        multiplier through "unsteered" to the most positive, then operations without one. A column's name
        distinguishes it from the others: "−16", "layer 18, −16", "layer 18, project out". NA where a
        condition lacks a prompt. `.attrs["doses"]` has the dose of each column that has one.

    Raises:
        ValueError: columns are missing, there are no texts, a requested value is missing, or a prompt is in
            a condition twice.
    """
    table = validated_sweep(table, "prompt_id", "prompt", "text")
    if not table["text"].notna().any():
        raise ValueError("the table has no texts: expected a sweep(…, measure='generate').")
    rows = table if controls else table[~table["control"].astype(bool)]
    requests = {"layers": layers, "multiplier": multipliers, "operation": operation, "vector": vector}
    for column, request in requests.items():
        rows = _selected(rows, column, request)
    require_unique_prompts(rows)
    keys = text_keys(rows)
    labels = [*keys, "prompt", *(["label"] if "label" in rows else [])]
    prompts = rows.drop_duplicates(keys)[labels].set_index(keys)
    # By multiplier, unsteered before an added zero; ties in the order of the table.
    conditions = rows.assign(steered=rows["vector"] != UNSTEERED)[[*CONDITION, "steered"]].drop_duplicates()
    conditions = conditions.sort_values(["multiplier", "steered"], kind="stable", na_position="last")
    columns = {
        name: condition_rows(rows, condition).set_index(keys)
        for name, (_, condition) in zip(_names(conditions), conditions.iterrows(), strict=True)
    }
    texts = pd.DataFrame({name: column["text"] for name, column in columns.items()}, index=prompts.index)
    wide = prompts.join(texts).reset_index()
    doses = {name: float(column["dose"].max()) for name, column in columns.items() if "dose" in column}
    wide.attrs["doses"] = {name: dose for name, dose in doses.items() if dose > 0}
    return wide


def _selected(rows: pd.DataFrame, column: str, request: object) -> pd.DataFrame:
    """Rows with the requested values of a column, and the unsteered ones."""
    if request is None:
        return rows
    unsteered = rows["vector"] == UNSTEERED
    known = list(rows.loc[~unsteered, column].dropna().unique())
    values = [request] if isinstance(request, str) or not isinstance(request, Iterable) else list(request)
    if column == "layers":  # as a table names them
        sets = [value if isinstance(value, tuple | list) else [value] for value in values]
        values = ["+".join(map(str, layers)) for layers in sets]
    if missing := [value for value in values if value not in known]:
        names = ", ".join(map(str, known)) or "none"
        raise ValueError(f"there is no {column} {missing[0]!r}; the table has {names}.")
    return rows[unsteered | rows[column].isin(values)]


def _names(conditions: pd.DataFrame) -> list[str]:
    """Names that distinguish the conditions."""
    steered = conditions[conditions["steered"]]
    varied = {name for name in CONDITION if steered[name].nunique(dropna=False) > 1}
    names = []
    for condition in conditions.to_dict("records"):
        multiplier = condition["multiplier"]
        # All digits of a multiplier, so that no two names are alike: "+16", "−0.5".
        signed = "" if pd.isna(multiplier) else f"{float(multiplier):+}".removesuffix(".0").replace("-", "−")
        operation = condition["operation"].replace("project_out", "project out")
        setting = f"{operation} {signed}".strip() if "operation" in varied or not signed else signed
        labels = condition | {"layers": f"layer {condition['layers']}"}
        parts = [labels[name] for name in ("vector", "layers", "hook") if name in varied]
        names.append(", ".join([*parts, setting]) if condition["steered"] else "unsteered")
    return names
