"""What each cell of a sweep does beside what it costs."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from .._util.validation import checked
from ..sweeps.sweep_table import CELL, UNSTEERED, in_cells, require_columns, serves, sweep_table
from .damage_means import mean_damage

COSTS = ("kl", "loss_change")
ENDS = ("", "_low", "_high")
# Without control_of: of either table the caller may have given the controls by name, for all vectors.
KEYS = [name for name in CELL if name != "control_of"]


@checked
def effect_and_damage(
    effects: pd.DataFrame,
    damage_table: pd.DataFrame,
    text: pd.DataFrame | None = None,
    *,
    effect: str = "shift",
    cost: str = "kl",
    directed: bool = True,
    max_loss_change: float = 0.1,
    max_kl: float | None = None,
    min_distinct: float = 0.5,
    max_unreadable: float = 0.5,
    collapse_loss: float = 2.0,
) -> pd.DataFrame:
    """Put each cell's effect beside its damage, and say which cells are worth their cost.

    Args:
        effects: what `effectiveness` makes, or any table of cells with an effect and its interval.
        damage_table: what `damage` makes of the same vectors; cells that are not in both tables are left out.
        text: what `text_damage` makes of texts written under these cells (all, or some of them).
        effect: the column of `effects` that is the effect, 0 where steering does nothing.
        cost: which damage the Pareto set, and the figure, weighs against it, "kl" or "loss_change".
        directed: whether the effect goes with the multiplier's sign, as a shift does. `False` where more is
            better with either sign (accuracy, d′, flips): then what lowers it is no effect, and controls that
            lower it are no match for what raises it.
        max_loss_change: a cell is not usable where the upper end of its loss change's interval, in nats, is
            above this. 0.1 is 10 % more perplexity.
        max_kl: the same of the KL divergence; by default there is no bound, since what is wanted is a change.
        min_distinct: a text has collapsed where the mean distinct_2 is below this share of the unsteered
            texts'.
        max_unreadable: or where more than this share of the answers, and more than unsteered, is unreadable;
            or of the texts is without a word.
        collapse_loss: or where the mean loss change is above this, in nats: 2 is 7 times the perplexity.

    Returns:
        A row a cell: the cell's columns, dose (of the effects), n, passages, and, with 95 % intervals,
        effect; kl; loss_change.
        control_effect: the largest |effect| (if not directed, the largest effect) of control vectors in the
            same place, with either sign of the multiplier; NaN where there are none.
        words, distinct_2, unreadable: means of the texts; NaN without.
        pareto: no other cell of the vector, with a multiplier of the same sign, has as much effect for as
            little cost, or nothing at all for none. A projection (no multiplier) counts by |effect|.
        cost: the argument.
        collapsed: and by which of the rules, in `collapse` ("repetition", "unreadable", "empty", "loss").
        usable: the effect's interval lies beyond zero (if directed, on the multiplier's side), the effect is
            beyond that of the controls, the damage within the bounds, and the text has not collapsed. At
            least two passages.
        reason: "" where it is usable, else "unsteered", "collapse", "no effect" or "damage".

    Raises:
        ValueError: columns are missing, a cell is twice in `effects` (split by a factor: select one value),
            no steered cell is in both tables, or an unknown cost.

    The bounds are conventions, not findings: report them with the cells. One cell picked as the best of many
    is flattered; `choose` tells by how much.
    """
    if cost not in COSTS:
        raise ValueError(f"cost={cost!r} is unknown: use one of {', '.join(COSTS)}.")
    effects = _effects(effects, effect)
    table = _joined(effects, _damages(damage_table))
    texts = _texts(text, table)
    table = table.merge(texts, how="left", on=KEYS)
    table["control_effect"] = _control_effects(effects, table, directed)
    sign = np.sign(table["multiplier"]).fillna(0)
    gain, surely = _gains(table, sign) if directed else (table["effect"], table["effect_low"] > 0)
    table["pareto"] = _pareto(table, sign, gain, cost)
    table["cost"] = cost
    before = texts[texts["vector"] == UNSTEERED]
    table["collapse"] = _collapses(table, before, min_distinct, max_unreadable, collapse_loss)
    table["collapsed"] = table["collapse"] != ""
    kl_bound = np.inf if max_kl is None else max_kl
    table["reason"] = np.select(
        [
            table["vector"] == UNSTEERED,
            table["collapsed"],
            ~(surely & ~(gain <= table["control_effect"])),
            ~((table["loss_change_high"] <= max_loss_change) & (table["kl_high"] <= kl_bound)),
        ],
        ["unsteered", "collapse", "no effect", "damage"],
        "",
    )
    table["usable"] = table["reason"] == ""
    return table.drop(columns="empty")


def _effects(effects: pd.DataFrame, effect: str) -> pd.DataFrame:
    names = [f"{effect}{end}" for end in ENDS]
    effects = sweep_table(effects, "dose", "n", *names, maker="effectiveness", numbers=names)
    if effects.duplicated(list(CELL)).any():
        raise ValueError(
            "a cell is twice in the effects, as where they are split by a factor: select one value of it, "
            "or make them without by=…"
        )
    renamed = effects.rename(columns=dict(zip(names, [f"effect{end}" for end in ENDS], strict=True)))
    return renamed[[*CELL, "dose", "n", *(f"effect{end}" for end in ENDS)]]


def _damages(damage_table: pd.DataFrame) -> pd.DataFrame:
    require_columns(damage_table, *COSTS, maker="damage", numbers=COSTS)
    means = mean_damage(damage_table).rename(columns={"n": "passages"})
    return means[[*KEYS, "passages", *(f"{name}{end}" for name in COSTS for end in ENDS)]]


def _joined(effects: pd.DataFrame, damages: pd.DataFrame) -> pd.DataFrame:
    table = effects.merge(damages, on=KEYS, validate="one_to_one")
    if not ((table["vector"] != UNSTEERED) & ~table["control"].astype(bool)).any():
        raise ValueError(
            "no steered cell is in both tables: measure effect and damage with the same vectors (by the same "
            "names), operations, layers and multipliers."
        )
    return table


def _texts(text: pd.DataFrame | None, table: pd.DataFrame) -> pd.DataFrame:
    """Means of the texts' measures, cell by cell."""
    measures = ["words", "distinct_2", "unreadable", "empty"]
    if text is None:
        return table[KEYS].assign(**dict.fromkeys(measures, np.nan))
    text = sweep_table(text, *measures[:3], maker="text_damage")
    rows = text.assign(empty=text["words"] == 0).astype(dict.fromkeys(measures, float))
    return in_cells(rows, [])[measures].mean().reset_index().drop(columns="control_of")


def _control_effects(effects: pd.DataFrame, table: pd.DataFrame, directed: bool) -> list[float]:
    """The largest |effect|, or effect, of each vector's controls under the same condition."""
    place = ["operation", "layers", "hook", "size"]
    controls = effects[effects["control"].astype(bool)]
    reach = controls["effect"].abs() if directed else controls["effect"]
    controls = controls.assign(size=controls["multiplier"].abs().fillna(-1), reach=reach)
    names = effects.loc[~effects["control"].astype(bool), "vector"].unique()
    reached = {
        name: controls[serves(controls, name)].groupby(place)["reach"].max().to_dict() for name in names
    }
    sizes = table["multiplier"].abs().fillna(-1)
    everyone = controls.groupby(place)["reach"].max().to_dict()
    keys = zip(table["operation"], table["layers"], table["hook"], sizes, strict=True)
    return [
        reached.get(vector, everyone).get(key, np.nan)
        for vector, key in zip(table["vector"], keys, strict=True)
    ]


def _gains(table: pd.DataFrame, sign: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The effect towards the multiplier's side, and whether its interval lies beyond zero there."""
    gain = (table["effect"] * sign).where(sign != 0, table["effect"].abs())
    up, down = table["effect_low"] > 0, table["effect_high"] < 0
    return gain, up.where(sign > 0, down).where(sign != 0, up | down)


def _pareto(table: pd.DataFrame, sign: pd.Series, gain: pd.Series, cost: str) -> Bool[np.ndarray, " cell"]:
    """Undominated cells of each vector and sign; to do nothing is one of the choices."""
    found = np.zeros(len(table), dtype=bool)
    for _, rows in table.groupby([table["vector"], sign]).indices.items():
        points = np.stack([gain.to_numpy()[rows], -table[cost].to_numpy()[rows]], 1)
        found[rows] = _undominated(points, np.vstack([points, [0.0, 0.0]]))
    return found | (table["vector"] == UNSTEERED).to_numpy()


def _undominated(
    points: Float[np.ndarray, "point 2"], rivals: Float[np.ndarray, "rival 2"]
) -> Bool[np.ndarray, " point"]:
    """Points that no rival equals or exceeds in both, and exceeds in one; NaN is no point."""
    at_least = (rivals[None] >= points[:, None]).all(-1)
    better = (rivals[None] > points[:, None]).any(-1)
    return ~(at_least & better).any(1) & ~np.isnan(points).any(1)


def _collapses(
    table: pd.DataFrame, unsteered: pd.DataFrame, min_distinct: float, max_unreadable: float, loss: float
) -> list[str]:
    """Which rules say that a cell's text has collapsed, beside the unsteered texts' measures."""
    before = {
        name: float(unsteered[name].iloc[0]) if len(unsteered) else np.nan
        for name in ("distinct_2", "unreadable", "empty")
    }
    rules = {"repetition": table["distinct_2"] < min_distinct * before["distinct_2"]}
    for name in ("unreadable", "empty"):
        rules[name] = (table[name] > max_unreadable) & ~(table[name] <= before[name])
    rules["loss"] = table["loss_change"] > loss
    steered = table["vector"] != UNSTEERED
    broken = pd.DataFrame(rules).mul(steered, axis=0)
    return [", ".join(name for name in rules if row[name]) for row in broken.to_dict("records")]
