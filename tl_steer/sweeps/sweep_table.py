"""Tables of sweeps: assembled from outcomes, grouped by condition, paired with their unsteered rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from .._read_choice import read_answer
from .._util.seeds import generator
from ..models import prompt_label
from ..prompts.pairs import group_numbers
from ..statistics import Interval, nested
from ..tables import validated

CONDITION = ("vector", "control", "control_of", "operation", "layers", "hook", "multiplier")
OUTCOMES = ("choice", "logit_difference", "probability", "mass", "text")
UNSTEERED_OUTCOMES = ("unsteered_choice", "unsteered_logit_difference")  # of `with_unsteered`
UNSTEERED = "none"  # the name of its vector
DRAW = "draw"  # the column of tables with several texts per prompt
FIXED = ("prompt_id", "prompt", *CONDITION, "dose", "split", "answer", *OUTCOMES)

ByCondition = "pd.api.typing.DataFrameGroupBy"
IntervalOf = Callable[..., Interval]  # `mean_interval` or `rate_interval`


def question_table(
    prompts: Sequence[str],
    *,
    answers: Sequence[int] | None = None,
    factors: pd.DataFrame | None = None,
    seed: int,
) -> pd.DataFrame:
    """One row per prompt, the same in every condition: prompt_id, prompt, label, answer, factors, split.

    `label` is the message that a `ChatPrompt` was rendered from, else the prompt. A factor `split` or `label`
    replaces the table's own; other names of the table's columns raise `ValueError`.
    """
    questions = pd.DataFrame({"prompt_id": range(len(prompts)), "prompt": list(map(str, prompts))})
    questions["answer"] = pd.array([pd.NA] * len(prompts) if answers is None else list(answers), "Int64")
    if factors is not None:
        if clash := sorted(set(factors) & ({*FIXED, DRAW} - {"split"})):
            raise ValueError(f"the factors {clash} have names of the table's own columns. Rename them.")
        questions = questions.join(factors.reset_index(drop=True))
    if "split" not in questions:
        questions["split"] = balanced_halves(questions, seed)
    if "label" not in questions:
        questions.insert(2, "label", list(map(prompt_label, prompts)))
    return questions


def with_draws(questions: pd.DataFrame, draws: int) -> pd.DataFrame:
    """One row per prompt and draw, with a column `draw` after the prompt; unchanged for a single draw."""
    if draws == 1:
        return questions
    rows = questions.loc[np.repeat(questions.index, draws)].reset_index(drop=True)
    rows.insert(2, DRAW, np.tile(np.arange(draws), len(questions)))
    return rows


def text_keys(table: pd.DataFrame) -> list[str]:
    """The columns that identify a row within its condition: the prompt, and its draw if there are several."""
    return ["prompt_id", *([DRAW] if DRAW in table else [])]


def text_index(rows: pd.DataFrame) -> pd.Index:
    """Index of the rows by `text_keys`."""
    return pd.MultiIndex.from_frame(rows[text_keys(rows)]) if DRAW in rows else pd.Index(rows["prompt_id"])


def balanced_halves(questions: pd.DataFrame, seed: int) -> Shaped[np.ndarray, " prompt"]:
    """Stratified random split into "choose" and "report".

    Prompts of one `group`, and those with the same text, are in the same half. Strata are combinations of the
    answer and of the factors with at least two prompts per level: others would leave nothing to divide.
    """
    # As objects, so that unused categories and their order do not count.
    group = merged_by_text(group_numbers(questions.filter(["group"]).astype(object)), questions)
    labels = questions.drop(columns=["prompt_id", "prompt", "group"], errors="ignore").map(str)
    labels = labels.loc[:, (labels.columns == "answer") | (labels.nunique() * 2 <= len(labels))]
    strata = labels.agg("\x00".join, axis=1).groupby(group).agg(lambda each: "\x01".join(sorted(each)))
    order = np.lexsort((generator(seed).random(len(strata)), strata.to_numpy()))
    half = pd.Series("report", index=strata.index, dtype=object)
    half.iloc[order[::2]] = "choose"
    return half.loc[group].to_numpy()


def written_answers(
    texts: Sequence[str],
    prompts: Sequence[str],
    choices: Sequence[tuple[str, str]] | None,
    *,
    rule: str = "careful",
) -> pd.DataFrame:
    """Outcomes of generated texts, one row per text: `choice` and `text`; the scores are NaN.

    Args:
        texts: of all prompts under the first condition, then the next.
        choices: one pair per prompt; `None` leaves `choice` missing.
        rule: of `read_choice`.
    """
    answers: list[int | None] = [None] * len(texts)
    # Prompt by prompt, since compiling the reader of its choices takes longer than reading.
    for index, pair in enumerate(choices or ()):
        for row in range(index, len(texts), len(prompts)):
            answers[row] = read_answer(texts[row], pair, prompts[index], rule=rule)
    choice = pd.array([pd.NA if each is None else each for each in answers], dtype="Int64")
    return pd.DataFrame({"choice": choice, "text": pd.array(list(texts), dtype="string")}).assign(
        logit_difference=np.nan, probability=np.nan, mass=np.nan
    )


def assembled_table(
    questions: pd.DataFrame, conditions: Sequence[Mapping[str, object]], outcomes: pd.DataFrame
) -> pd.DataFrame:
    """A sweep's table: `questions` (from `with_draws`) under each condition, next to the outcomes."""
    count = len(questions)
    repeated = questions.iloc[np.tile(np.arange(count), len(conditions))].reset_index(drop=True)
    labels = pd.DataFrame(conditions).loc[np.repeat(np.arange(len(conditions)), count)]
    table = pd.concat([repeated, labels.reset_index(drop=True), outcomes], axis=1)
    factors = [name for name in questions if name not in FIXED]
    return table[["prompt_id", "prompt", *factors, *FIXED[2:]]]


def validated_sweep(
    table: pd.DataFrame, *columns: str, producer: str = "sweep", factors: Iterable[str] = ()
) -> pd.DataFrame:
    """`tables.validated` for the columns of a condition and others.

    Tables that were written before `control_of` existed get it here, "": each control serves every vector.
    """
    if isinstance(table, pd.DataFrame) and "control_of" not in table:
        table = table.assign(control_of="")
    return validated(table, *CONDITION, *columns, producer=producer, factors=factors)


def factors_of(table: pd.DataFrame, by: str | Sequence[str], results: Iterable[str] = ()) -> list[str]:
    """The columns to split by, without those of the condition, which split every table already.

    Raises:
        ValueError: a column that is missing, an outcome (which would select prompts by their result), or a
            name of the `results`.
    """
    names = [by] if isinstance(by, str) else list(dict.fromkeys(by))
    validated(table, producer="sweep", factors=names)
    if outcomes := [name for name in names if name in OUTCOMES]:
        raise ValueError(f"by={outcomes}: expected factors of the prompts, 'answer' or 'split'.")
    factors = [name for name in names if name not in (*CONDITION, "dose")]
    taken = {column for name in (*results, *UNSTEERED_OUTCOMES) for column in ends(name)}
    if clash := sorted(taken & set(factors)):
        raise ValueError(f"by={clash}: these factors have names of results. Rename them.")
    return factors


def ends(name: str) -> list[str]:
    """The columns of a value and of its interval."""
    return [name, f"{name}_low", f"{name}_high"]


def serves(controls: pd.DataFrame, vector: str) -> pd.Series:
    """Whether each row of controls serves this vector: `control_of` is its name, or "" for all vectors."""
    return controls["control_of"].isin(["", vector])


def prompt_groups(rows: pd.DataFrame) -> Int[np.ndarray, " row"]:
    """Group number per row, from 0: draws of a prompt, prompts of one `group`, prompts of the same text."""
    if "prompt_id" not in rows:
        return merged_by_text(group_numbers(rows), rows)
    labels = rows["prompt_id"].astype(object)
    if "group" in rows:
        prompts = "prompt " + labels.map(str)  # a prompt without a group is its own
        labels = ("group " + rows["group"].astype(object).map(str)).where(rows["group"].notna(), prompts)
    return merged_by_text(pd.factorize(labels)[0], rows)


def merged_by_text(group: Int[np.ndarray, " row"], rows: pd.DataFrame) -> Int[np.ndarray, " row"]:
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


def with_unsteered(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """A sweep's table with `unsteered_choice` and `unsteered_logit_difference` of the same prompt and draw.

    A `prompt_id` is unique within the factors `by`. NaN where the prompt has no unsteered row.
    """
    table = validated_sweep(table, "prompt_id", "dose", "answer", "choice", "logit_difference")
    table = table.drop(columns=[*UNSTEERED_OUTCOMES], errors="ignore")
    require_unique_prompts(table, by)
    keys = list(dict.fromkeys([*text_keys(table), *by]))
    rows = table.astype({"answer": "Int64", "choice": "Int64"})
    unsteered = rows.loc[rows["vector"] == UNSTEERED, [*keys, *(set(OUTCOMES[:2]) - set(keys))]]
    unsteered = unsteered.rename(columns=dict(zip(OUTCOMES, UNSTEERED_OUTCOMES, strict=False)))
    return rows.merge(unsteered, how="left", on=keys, validate="many_to_one")


def by_condition(rows: pd.DataFrame, by: Sequence[str] = ()) -> ByCondition:
    """Rows by condition and factors, in the table's order; NaN (a projection's multiplier) is a key too."""
    return rows.groupby([*CONDITION, *by], dropna=False, sort=False, observed=True)


def condition_means(
    conditions: ByCondition, outcomes: pd.DataFrame, intervals: Mapping[str, IntervalOf]
) -> pd.DataFrame:
    """One row per condition: its columns, dose, the factors, n (rows), and the mean of each outcome.

    Args:
        conditions: rows by condition, with `prompt_id`, and with `group` if there is one.
        outcomes: in the same rows; NaN does not count.
        intervals: the outcomes to average, and the function for their 95 % intervals: groups of prompts, and
            draws of a prompt, belong together.
    """
    sample = conditions.ngroup().to_numpy()
    group = nested(sample, prompt_groups(conditions.obj))
    result = conditions.agg(dose=("dose", "first"), n=("dose", "size"))
    for name, interval in intervals.items():
        values = interval(outcomes[name].to_numpy(float), sample, group)
        result[ends(name)] = np.stack(values, 1)
    factors = result.index.names[len(CONDITION) :]
    return result.reset_index()[[*CONDITION, "dose", *factors, *result.columns[1:]]]


def require_unique_prompts(table: pd.DataFrame, by: Sequence[str] = ()) -> None:
    """Raise `ValueError` if a prompt, or a draw of it, is in a condition twice."""
    twice = table.duplicated(list(dict.fromkeys([*text_keys(table), *CONDITION, *by])))
    if twice.any():
        row = table[twice].iloc[0]
        condition = ", ".join(f"{name}={row[name]}" for name in (*text_keys(table)[1:], *CONDITION))
        raise ValueError(
            f"prompt_id {row['prompt_id']} is twice in the condition {condition}: expected one sweep's "
            "table. Select rows, or name in by=… the column that distinguishes the sweeps."
        )


def condition_rows(table: pd.DataFrame, condition: pd.Series) -> pd.DataFrame:
    """The rows of a condition, without controls unless it has `control`; missing columns are not compared."""
    same = pd.Series(True, table.index)
    for name, value in ({"control": False} | dict(condition)).items():
        if name in CONDITION:
            same &= table[name].isna() if pd.isna(value) else table[name] == value
    return table[same]
