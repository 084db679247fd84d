"""Mean and spread of the projections of both sides by layer, and the difference of the same pairs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from .._util.validation import checked
from ..prompts.pairs import SIDES, group_numbers
from ..statistics import mean_interval, nested, spread_interval
from .kinds import require_kinds

VALUES = ("projection", "cosine")
SPREAD = ("spread", "spread_low", "spread_high")
NEEDED = ("layer", "pair", "side", *VALUES)


@checked
def mean_projections(table: pd.DataFrame, *, by: str | Sequence[str] = "side") -> pd.DataFrame:
    """Mean and spread of projections at each layer, and by how much the sides of the same pairs differ.

    Args:
        table: what `projections` makes.
        by: "side", a factor, or several.

    Returns:
        A row a layer and level of `by`:
        layer, the columns of `by`, n;
        projection, cosine: means, with Student's 95 % intervals in …_low and …_high.
        spread: standard deviation of the projections (ddof 1), with a 95 % interval in spread_low and
        spread_high (`statistics.spread_interval`). Small where a side's projections are peaked; it grows with
        the norm of the residual stream, so compare sides within a layer.

        Where `by` has "side", also a row with side "difference", of n whole pairs: the mean of positive minus
        negative with a paired interval; `spread` is there the pairs' differences' own, and
        effect: the projection's mean difference over this spread;
        rank: the layer's place by effect, 1 for the largest;
        projection_rank: its place by the difference itself.

    Raises:
        ValueError: no rows, missing columns, or a layer that has a pair's side twice.

    The stream grows from layer to layer, and projections with it, so ranks of the difference itself favour
    late layers. The effect has no unit: it compares layers. Ranks are among the layers of one level of the
    other factors.

    A factor that differs between the sides of a pair (the letter) leaves no whole pair in any of its levels,
    and so no difference; in a table of all levels, what it adds to the differences counts as their spread,
    though the pairs balance it. Intervals take groups whole (`statistics.mean_interval`): the rows that share
    a value of the factor `group`, or without this column a pair. On the pairs that the vectors were made
    from, differences flatter; `separation` holds pairs out.
    """
    by = [by] if isinstance(by, str) else list(by)
    _require(table, by)
    group = group_numbers(table if "group" in table else table.assign(group=table["pair"]))
    means = _summarised(table, ["layer", *by], group)
    if "side" not in by:
        return means.sort_values(["layer", *by], ignore_index=True)
    others = [name for name in by if name != "side"]
    differences = _differences(table, ["layer", *others], group)
    both = pd.concat([means, _ranked(differences, others)], ignore_index=True)
    both["side"] = pd.Categorical(both["side"], [*SIDES, "difference"])
    both = both.sort_values(["layer", *others, "side"], ignore_index=True)
    return both.astype({"side": table["side"].dtype})


def _require(table: pd.DataFrame, by: Sequence[str]) -> None:
    missing = [name for name in (*NEEDED, *by) if name not in table.columns]
    if missing or table.empty:
        found = f"has no columns {missing}, only {list(table.columns)}" if missing else "has no rows"
        raise ValueError(f"the table {found}: give the one that projections(…) makes.")
    results = {"n", "effect", "rank", "projection_rank", *SPREAD}
    results |= {f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")}
    if taken := sorted(results & set(by)):
        raise ValueError(f"by={taken} have the names of results: rename these factors first.")
    require_kinds(table, ("layer", "pair", *VALUES), maker="projections(…)")
    keys = ["layer", *[name for name in by if name != "side"], "pair", "side"]
    if table.duplicated(keys).any():
        raise ValueError(
            "a layer has the same side of a pair twice: are these several tables in one? "
            "Name the column that tells them apart in by=…"
        )


def _summarised(table: pd.DataFrame, keys: list[str], group: Int[np.ndarray, " row"]) -> pd.DataFrame:
    """n, and each value's mean with its interval, in each cell of `keys`."""
    cells = table.groupby(keys, dropna=False, observed=True)
    found = cells.size().rename("n").reset_index()
    sample = cells.ngroup().to_numpy()
    group = nested(sample, group)
    for name in VALUES:
        ends = mean_interval(table[name].to_numpy(float), sample, group)
        found[[name, f"{name}_low", f"{name}_high"]] = np.stack(ends, 1)
    spread = spread_interval(table["projection"].to_numpy(float), sample, group)
    return found.assign(**dict(zip(SPREAD, spread, strict=True)))


def _differences(table: pd.DataFrame, keys: list[str], group: Int[np.ndarray, " row"]) -> pd.DataFrame:
    """Positive minus negative of each pair that is whole within a cell of `keys`, summarised."""
    index = [*keys, "pair"]
    positive, negative = (table[table["side"] == side].set_index(index)[[*VALUES]] for side in SIDES)
    whole = positive.index.isin(negative.index)
    gaps = positive.sub(negative.reindex(positive.index))[whole].reset_index()
    found = _summarised(gaps, keys, group[table["side"] == SIDES[0]][whole]).assign(side="difference")
    deviation = found["spread"].to_numpy()
    # A tie of rounding errors is no spread: pairs that all differ alike have no effect to speak of.
    known = deviation > 1e-12 * np.abs(found["projection"].to_numpy())
    return found.assign(effect=np.where(known, found["projection"] / np.where(known, deviation, 1.0), np.nan))


def _ranked(differences: pd.DataFrame, others: list[str]) -> pd.DataFrame:
    ranked = differences.copy()
    for rank, value in (("rank", "effect"), ("projection_rank", "projection")):
        column = ranked.groupby(others, dropna=False, observed=True)[value] if others else ranked[value]
        ranked[rank] = column.rank(ascending=False, method="min").astype("Int64")
    return ranked
