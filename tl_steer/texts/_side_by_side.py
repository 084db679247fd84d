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
        condition lacks a prompt.

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
    conditions = _in_order(rows[list(CONDITION)].drop_duplicates())
    texts = {
        name: condition_rows(rows, condition).set_index(keys)["text"]
        for name, (_, condition) in zip(_names(conditions), conditions.iterrows(), strict=True)
    }
    return prompts.join(pd.DataFrame(texts, index=prompts.index)).reset_index()


def _selected(rows: pd.DataFrame, column: str, request: object) -> pd.DataFrame:
    """Rows with the requested values of a column, and the unsteered ones."""
    if request is None:
        return rows
    unsteered = rows["vector"] == UNSTEERED
    known = list(rows.loc[~unsteered, column].dropna().unique())
    values = [request] if isinstance(request, str) or not isinstance(request, Iterable) else list(request)
    values = [_layers(value) if column == "layers" else value for value in values]
    if missing := [value for value in values if value not in known]:
        raise ValueError(
            f"there is no {column} {missing[0]!r}; the table has {', '.join(map(str, known)) or 'none'}."
        )
    return rows[unsteered | rows[column].isin(values)]


def _layers(value: object) -> str:
    """Layers as a table names them."""
    return "+".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _in_order(conditions: pd.DataFrame) -> pd.DataFrame:
    """By multiplier, unsteered before an added zero; ties in the order of the table."""
    order = conditions.assign(steered=conditions["vector"] != UNSTEERED)
    return order.sort_values(["multiplier", "steered"], kind="stable", na_position="last")


def _names(conditions: pd.DataFrame) -> list[str]:
    """Names that distinguish the conditions."""
    steered = conditions[conditions["vector"] != UNSTEERED]
    varied = {name for name in CONDITION if steered[name].nunique(dropna=False) > 1}
    names = []
    for condition in conditions.to_dict("records"):
        setting = [] if pd.isna(condition["multiplier"]) else [_signed(condition["multiplier"])]
        if "operation" in varied or not setting:
            setting.insert(0, condition["operation"].replace("project_out", "project out"))
        parts = {
            "vector": condition["vector"],
            "layers": f"layer {condition['layers']}",
            "hook": condition["hook"],
        }
        name = ", ".join([*(part for key, part in parts.items() if key in varied), " ".join(setting)])
        names.append("unsteered" if condition["vector"] == UNSTEERED else name)
    return names


def _signed(multiplier: float) -> str:
    """All its digits, so that no two are alike: "+16", "−0.5"."""
    return f"{float(multiplier):+}".removesuffix(".0").replace("-", "−")
