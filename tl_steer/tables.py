"""The columns of every table: one name, type and label per concept, and the check that a table has them.

A table is tidy: one row per observation, never an index with a meaning. Columns that end in `_low` and
`_high` are the 95 % interval of the column before the suffix.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd

Type = Literal["number", "integer", "binary", "boolean", "text", "name", "id"]
# What a column of each type holds, and a test of its single values.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "number": ("numbers", lambda each: isinstance(each, Real) and not isinstance(each, bool | np.bool_)),
    "integer": (
        "whole numbers in every row",
        lambda each: isinstance(each, int | np.integer) and not isinstance(each, bool),
    ),
    "binary": ("0, 1 or missing", lambda each: each in (0, 1)),
    "boolean": ("true or false in every row", lambda each: isinstance(each, bool | np.bool_)),
    "text": ("text", lambda each: isinstance(each, str)),
    "name": ("text in every row", lambda each: isinstance(each, str)),
    "id": ("numbers or text in every row, not both", lambda each: not pd.isna(each)),
}


@dataclass(frozen=True)
class Column:
    """What a column holds."""

    type: Type
    label: str  # for axes and hovers, with the unit in parentheses
    producers: str  # functions whose tables have it; "sweep" covers all tables that keep its columns


SCHEMA: dict[str, Column] = {
    "accuracy": Column("number", "accuracy (share of prompts)", "effectiveness"),
    "against": Column("name", "compared with", "judge, preference"),
    "answer": Column("binary", "index of the correct choice", "sweep"),
    "anti_steerable": Column("number", "prompts with a negative slope (share)", "steerability"),
    "auc": Column("number", "AUC", "separation, signal_detection"),
    "auc_change": Column("number", "change of the AUC", "signal_detection"),
    "balanced": Column("boolean", "factor varies within both sides", "confounds"),
    "between": Column("number", "cosine with other methods’ vectors", "agreement"),
    "blank": Column("number", "texts without an embedding", "embedding_effect"),
    "change": Column("number", "change against unsteered", "choose"),
    "change_covered": Column("boolean", "change is covered", "signal_detection, against_baselines"),
    "choice": Column("binary", "index of the choice", "sweep, read_recorded"),
    "collapse": Column("text", "rule by which the text has collapsed", "effect_and_damage"),
    "collapsed": Column("boolean", "text has collapsed", "effect_and_damage"),
    "compared": Column("number", "prompts readable in both", "answer_shifts"),
    "component": Column("integer", "component", "component_factors"),
    "condition": Column("name", "condition", "compare_estimators"),
    "cone": Column("number", "95% of resampled vectors lie within (degrees)", "agreement"),
    "consistent": Column("number", "prompts whose orders agree (share)", "preference"),
    "contrast": Column("text", "contrast", "confounds"),
    "control": Column("boolean", "control vector", "sweep"),
    "control_effect": Column("number", "largest effect of the controls", "effect_and_damage"),
    "control_of": Column("text", "vector of the control", "sweep"),
    "controls": Column("number", "controls", "choose, against_controls"),
    "coordinate": Column("integer", "coordinate", "vector_components"),
    "correlation": Column("number", "Pearson’s r", "component_factors, prediction"),
    "cosine": Column("number", "cosine", "projections, mean_projections, traces, confounds"),
    "compare_estimators.cosine": Column("number", "cosine with the planted direction", "compare_estimators"),
    "cosine_negative": Column("number", "cosine with the negative exemplars", "embedding_scores"),
    "cosine_positive": Column("number", "cosine with the positive exemplars", "embedding_scores"),
    "cost": Column("name", "measure of damage", "effect_and_damage"),
    "covered": Column("boolean", "interval is covered", "signal_detection"),
    "criterion": Column("number", "criterion c (negative: says the signal more often)",
                        "signal_detection, against_baselines"),
    "criterion_change": Column("number", "change of the criterion c", "signal_detection, against_baselines"),
    "d_prime": Column("number", "d′ (sensitivity)", "separation, signal_detection, against_baselines"),
    "d_prime_change": Column("number", "change of d′", "signal_detection, against_baselines"),
    "decided": Column("number", "decided", "preference"),
    "decomposed": Column("name", "decomposition", "pca"),
    "difference": Column("boolean", "values are differences", "traces, mean_traces"),
    "differs": Column("boolean", "cosine is beyond chance", "confounds"),
    "disagreeing": Column("number", "disagreeing", "preference"),
    "distinct_1": Column("number", "distinct words per text (share)", "text_damage, mean_damage"),
    "distinct_2": Column("number", "distinct word pairs per text (share)", "text_damage, mean_damage"),
    "distinct_3": Column("number", "distinct word triples per text (share)", "text_damage, mean_damage"),
    "dose": Column("number", "dose (‖multiplier · vector‖ / stream norm)", "sweep"),
    "draw": Column("number", "draw", "sweep, against_baselines"),
    "effect": Column("number", "effect", "effect_and_damage, against_controls"),
    "mean_projections.effect": Column("number", "effect (SD of the pairs)", "mean_projections"),
    "embedding_score": Column("number", "embedding score (cosine, positive − negative)", "embedding_scores"),
    "explained": Column("number", "explained share", "pca, component_factors"),
    "factor": Column("name", "factor", "component_factors, confounds"),
    "false_alarm_rate": Column("number", "false alarms", "signal_detection"),
    "first_share": Column("number", "first shown preferred", "preference"),
    "first_shown": Column("text", "answer shown first", "judge"),
    "flipped": Column("number", "choices that differ from unsteered (share)", "effectiveness"),
    "compare_estimators.flipped": Column("number", "answers flipped by subtracting it (share)",
                                         "compare_estimators"),
    "folds": Column("number", "folds", "separation"),
    "held_out_score": Column("number", "score on the half not chosen on", "choose"),
    "high": Column("number", "upper end of the 95% interval", "choose"),
    "hit_rate": Column("number", "hits", "signal_detection"),
    "hook": Column("name", "hook", "sweep"),
    "identical": Column("number", "identical", "preference"),
    "in_sample_score": Column("number", "score on the prompts chosen on", "choose"),
    "kl": Column("number", "KL of the predictions, unsteered ‖ steered (nats per token)",
                 "damage, mean_damage, effect_and_damage"),
    "kurtosis": Column("number", "excess kurtosis", "vector_components"),
    "label": Column("text", "message", "sweep, traces, projections, pca"),
    "layer": Column("integer", "layer", "separation, projections, pca, traces, logit_lens"),
    "layers": Column("name", "steered layer", "sweep"),
    "logit": Column("number", "logit", "logit_lens"),
    "logit_difference": Column("number", "logit difference, signal − other (nats)",
                               "choice_logits, sweep, effectiveness"),
    "loss": Column("number", "loss (nats per token)", "damage, mean_damage"),
    "loss_change": Column("number", "change of the loss on neutral text (nats per token)",
                          "damage, mean_damage"),
    "low": Column("number", "lower end of the 95% interval", "choose"),
    "mass": Column("number", "probability of both choices (share)", "choice_logits, sweep"),
    "method": Column("text", "method", "separation, agreement, confounds, compare_estimators"),
    "multiplier": Column("number", "multiplier of the vector", "sweep"),
    "multipliers": Column("number", "multipliers", "prompt_slopes"),
    "n": Column("number", "n", "effectiveness, signal_detection, mean_damage"),
    "n_half_energy": Column("number", "coordinates with half of the squared length", "vector_components"),
    "n_noise": Column("number", "noise prompts", "signal_detection"),
    "n_signal": Column("number", "signal prompts", "signal_detection"),
    "noise_shift": Column("number", "shift of noise prompts (nats)", "signal_detection"),
    "null": Column("number", "shuffled labels", "separation, confounds, choose"),
    "null_max": Column("number", "95% of shuffled labels at all layers together", "separation"),
    "null_mean": Column("number", "mean of shuffled labels", "separation"),
    "operation": Column("name", "operation", "sweep"),
    "optimism": Column("number", "optimism", "choose"),
    "other_text": Column("text", "other text", "judge"),
    "p_corrected": Column("number", "p, corrected for all layers", "separation, confounds"),
    "p_value": Column("number", "p", "separation, choose, against_controls"),
    "pair": Column("id", "pair", "projections, pca"),
    "paired_accuracy": Column("number", "paired accuracy (share of held-out pairs)", "separation"),
    "pairs": Column("number", "pairs", "separation, agreement, confounds, compare_estimators"),
    "pareto": Column("boolean", "in the Pareto set", "effect_and_damage"),
    "passages": Column("number", "passages", "effect_and_damage"),
    "PC": Column("number", "PC", "pca"),
    "perplexity": Column("number", "perplexity", "mean_damage"),
    "position": Column("integer", "position relative to the end of the prompt (0: the first new token)",
                       "traces, mean_traces"),
    "preference": Column("number", "preference (share of prompts, no preference: ½)", "preference"),
    "probability": Column("number", "probability", "logit_lens, choice_logits, sweep"),
    "projection": Column("number", "projection (residual stream units)",
                         "projections, mean_projections, traces"),
    "projection_rank": Column("number", "rank by projection", "mean_projections"),
    "prompt": Column("text", "prompt", "sweep"),
    "prompt_id": Column("id", "prompt", "sweep"),
    "q_value": Column("number", "q, false discovery rate", "against_controls"),
    "r_squared": Column("number", "r²", "prompt_slopes, steerability"),
    "rank": Column("number", "rank", "logit_lens, vector_components, mean_projections"),
    "reason": Column("text", "reason", "effect_and_damage, judge"),
    "recording": Column("text", "recording", "against_baselines"),
    "reliability": Column("number", "agreement expected of all such pairs", "agreement"),
    "repeat": Column("number", "repetition", "compare_estimators"),
    "score": Column("number", "embedding score (cosine, positive − negative)", "embedding_effect"),
    "selection_agreement": Column("number", "halves with the same choice (share)", "choose"),
    "share": Column("number", "share of the squared length", "vector_components, confounds"),
    "shift": Column("number", "shift of the logit difference (nats)", "effectiveness"),
    "compare_estimators.shift": Column("number", "change of the gap between true and false claims (nats)",
                                       "compare_estimators"),
    "embedding_effect.shift": Column("number", "shift of the embedding score (cosine)", "embedding_effect"),
    "choose.shift": Column("number", "shift of the logit difference in the multiplier's direction (nats)",
                           "choose"),
    "side": Column("name", "side", "projections, pca, mean_projections"),
    "signal_rate": Column("number", "signal rate (share of answers)", "effectiveness"),
    "signal_shift": Column("number", "shift of signal prompts (nats)", "signal_detection"),
    "single": Column("number", "cosine of single pairs with the vector", "agreement"),
    "slope": Column("number", "mean slope (nats per unit of multiplier)", "steerability"),
    "slope_per_dose": Column("number", "mean slope per dose (nats per unit of dose)", "steerability"),
    "prompt_slopes.slope": Column("number", "slope (nats per unit of multiplier)", "prompt_slopes"),
    "prompt_slopes.slope_per_dose": Column("number", "slope (nats per unit of dose)", "prompt_slopes"),
    "split": Column("text", "split", "sweep"),
    "split_half": Column("number", "cosine of vectors of two halves", "agreement"),
    "split_half_null": Column("number", "95% of shuffled labels", "agreement"),
    "spread": Column("number", "spread (SD)", "mean_projections, steerability, vector_components"),
    "text": Column("text", "text", "sweep, generate"),
    "ties": Column("number", "ties", "preference"),
    "token": Column("name", "token", "logit_lens, traces"),
    "token_id": Column("number", "token id", "logit_lens, traces"),
    "token_index": Column("number", "index of the token", "logit_lens"),
    "token_share": Column("number", "share of the commonest token", "mean_traces"),
    "toward": Column("name", "target of the slopes", "prompt_slopes, steerability"),
    "units": Column("number", "independent units", "component_factors"),
    "unreadable": Column("number", "unreadable answers (share)",
                         "effectiveness, mean_damage, signal_detection"),
    "preference.unreadable": Column("number", "unreadable", "preference"),
    "unsteered": Column("number", "unsteered", "choose"),
    "usable": Column("boolean", "usable", "effect_and_damage"),
    "value": Column("number", "value", "choose"),
    "value_name": Column("name", "quantity of the value", "choose, against_controls"),
    "vector_components.value": Column("number", "value of the coordinate (residual stream units)",
                                      "vector_components"),
    "vector": Column("name", "vector", "sweep"),
    "verdict": Column("text", "verdict", "signal_detection, judge"),
    "win_rate": Column("number", "win rate (share of prompts that both orders decide)", "preference"),
    "words": Column("number", "words per text", "text_damage, mean_damage"),
}  # fmt: skip


def column(name: str, producer: str = "") -> Column | None:
    """The definition of a column, or of the end of an interval; numbered columns (`cosine_2`) share one.

    A producer may give the name a meaning of its own: `embedding_effect.shift`.
    """
    base = re.sub(r"_(low|high|unsteered)$", "", name)
    names = [f"{producer.rpartition('.')[2]}.{base}", base, re.sub(r"_?\d+$", "", base)]
    return next((SCHEMA[each] for each in names if each in SCHEMA), None)


def validated(
    table: pd.DataFrame, *columns: str, producer: str, caller: str = "", factors: Iterable[str] = ()
) -> pd.DataFrame:
    """Check the columns that a function reads, and return the table with its number columns as float64.

    Args:
        table: as passed by the user. Other columns may be missing, and may hold anything.
        columns: those that the function reads.
        producer, caller: the functions that return and that read such a table, for the message.
        factors: columns that the user chose, of any type.
    """
    prefix = f"{caller}: " if caller else ""
    remedy = f"Pass the table that {producer} returns."
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{prefix}got {type(table).__name__}: expected a table. {remedy}")
    names = list(map(str, table.columns))
    if twice := ", ".join(sorted({name for name in names if names.count(name) > 1})):
        raise ValueError(f"{prefix}the table has several columns named {twice}: rename or drop some.")
    if missing := [name for name in (*columns, *factors) if name not in table.columns]:
        raise ValueError(
            f"{prefix}the table lacks the columns {', '.join(missing)}; it has {', '.join(names)}. {remedy}"
        )
    if table.empty:
        raise ValueError(f"{prefix}the table has no rows. {remedy}")
    changed = {}
    for name in columns:
        if (known := column(name, producer.partition("(")[0])) is None:
            continue
        if wrong := _wrong(table[name], known.type):
            holds, expected = f"{wrong[0]!r:.60}", TYPES[known.type][0]
            raise ValueError(f"{prefix}the column {name!r} holds {holds}: expected {expected}. {remedy}")
        if known.type == "number":
            changed[name] = pd.to_numeric(table[name].fillna(np.nan)).astype(float)
    return table.assign(**changed)


def _wrong(values: pd.Series, expected: Type) -> list[object]:
    """Values of another type."""
    if expected == "id" and pd.api.types.infer_dtype(values).startswith("mixed"):
        return [values.iloc[0]]
    is_numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if expected == "number" and is_numeric:
        return []
    _, is_allowed = TYPES[expected]
    present = values.dropna() if expected in ("number", "binary", "text") else values
    return [each for each in present.unique() if not is_allowed(each)]
