"""Answers that the study's scripts recorded, as the table that a sweep makes."""

import logging
import math
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from .._read_choice import read_answer
from .._util.file_io import read_text
from .._util.validation import checked
from ..prompts.pairs import truth_labels
from ..sweeps.sweep_table import UNSTEERED, assembled_table, question_table, written_answers
from .recorded_items import (
    UNSTEERED_CONDITION,
    Item,
    RecordedCondition,
    naming_item,
    recorded_draws,
    recorded_items,
)

logger = logging.getLogger(__name__)

Choices = Sequence[str] | Sequence[Sequence[str]] | None
QUOTATION_MARKS = "\"'“”‘’"


@checked
def read_recorded(
    path: str | Path,
    labels: pd.DataFrame | None = None,
    *,
    choices: Choices = ("True", "False"),
    rule: str = "careful",
    vector: str = "recorded",
    hook: str = "resid_post",
    seed: int = 0,
) -> pd.DataFrame:
    """Recorded answers as a sweep's table, for `effectiveness`, `choose` and the figures.

    Args:
        path: a JSON file, or "recorded_example": 12 claims of "claims_eval" with invented answers, to try
            things out. A file is a list with one object per prompt:
            {"sentence": prompt, "answer_neut": unsteered text, "steered": {"layer17,31_mult4": {"answer_pos":
            text, "answer_neg": text, "answer_zeroedout_pos": text, …}, …}}; old files have no "steered".
            Or an object with the unsteered answers of several recordings of the same prompts: {"prompts":
            [prompt, …], "answers": {recording: [text, …], …}}.
        labels: of the prompts. Claims, `statement` and `label` (1 true): an item's claim is the longest
            statement in its sentence, its answer 0 where true and 1 where false, and the factors are `truth`
            ("true", "false") and the further columns. Or one row per item, in their order: `answer` (0 or 1),
            the other columns are factors.
        choices: how texts are read, the signal first. ("A", "B") reads letters, and the words that the prompt
            lists under them. A list gives one pair per item; `None` reads nothing.
        rule: of `read_choice`; the study's published figures were read with "study".
        vector, hook: names for the table; the file does not have them.
        seed: of the split.

    Returns:
        The columns of `sweep`. The plus and minus answers are operation "add" at +m and −m, the zeroed-out
        ones "project_out" with multiplier NaN. The scores are NaN, and so is the dose of each steered
        condition: the norm of the residual stream was not recorded. Where a condition has several answers per
        prompt, also `draw`, from 0, and of several recordings `recording`, its name in the file.

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: a file that breaks off or has another layout, items whose conditions differ, labels or
            choices that do not fit; names the file, the item (counted from 0, as `prompt_id`) and the error.

    The study's answers were sampled, so that one recording is one draw per prompt, and all steered conditions
    of a file are compared with the same unsteered draw: `against_baselines` compares with several.

    Removing a projection has no multiplier. Of the zeroed-out answers those at the smallest multiplier are
    read, "pos" and "neg" as two draws of one condition. Those at larger multipliers are left out where they
    repeat the answers of a smaller one word for word: the study's scripts wrote those of the last set of
    layers again for every later multiplier.
    """
    if vector == UNSTEERED:
        raise ValueError(f"vector={vector!r} is the name of the unsteered condition. Pass another name.")
    file, content = str(path), _content(path)
    if draws := recorded_draws(content, file):
        prompts, texts = draws.prompts, list(draws.answers.values())
        conditions = [UNSTEERED_CONDITION] * len(texts)
        more = {"draw": range(len(texts)), "recording": list(draws.answers)}
    else:
        items = list(recorded_items(content, file))
        prompts = [prompt for prompt, _ in items]
        recorded = _without_copies(_texts_by_condition(items, file), file)
        conditions, texts = list(recorded), list(recorded.values())
        repeated = [each.layers if each.is_removal else each for each in conditions]
        numbers = [repeated[:index].count(each) for index, each in enumerate(repeated)]
        more = {"draw": numbers} if any(numbers) else {}
    answers, factors = (None, None) if labels is None else _labelled(prompts, labels, file)
    questions = question_table(prompts, answers=answers, factors=factors, seed=seed)
    written = [text for column in texts for text in column]
    outcomes = written_answers(written, prompts, _pairs(choices, prompts, rule, file), rule=rule)
    table = assembled_table(questions, [_columns(each, vector, hook) for each in conditions], outcomes)
    return table.assign(**{name: np.repeat(values, len(prompts)) for name, values in more.items()})


def _content(path: str | Path) -> str:
    bundled = resources.files("tl_steer.data") / f"{path}.json"
    if isinstance(path, str) and "/" not in path and bundled.is_file():
        return bundled.read_text(encoding="utf-8")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is neither a file nor 'recorded_example'.")
    return read_text(Path(path))


def _texts_by_condition(items: Sequence[Item], file: str) -> dict[RecordedCondition, list[str]]:
    """The texts of all items by the first item's conditions, the unsteered one first."""
    conditions = items[0][1]
    for row, (_, answers) in enumerate(items):
        differing = [f"lacks {each}" for each in conditions if each not in answers]
        differing += [f"has {each}" for each in answers if each not in conditions]
        if differing:
            more = f" (and {len(differing) - 1} more differences)" if len(differing) > 1 else ""
            with naming_item(file, row):
                raise ValueError(f"unlike item 0, it {differing[0]}{more}.")
    return {condition: [answers[condition] for _, answers in items] for condition in conditions}


def _without_copies(
    texts: dict[RecordedCondition, list[str]], file: str
) -> dict[RecordedCondition, list[str]]:
    """Leave out removals that repeat those at the smallest multiplier of any layers."""
    removals = [each for each in texts if each.is_removal]
    smallest = {each.layers: each.multiplier for each in sorted(removals, key=lambda each: -each.multiplier)}
    first = [texts[each] for each in removals if each.multiplier == smallest[each.layers]]
    copies = {each for each in removals if each.multiplier > smallest[each.layers] and texts[each] in first}
    if copies:
        logger.info("%s: %d zeroed-out conditions repeat others and are left out", file, len(copies))
    return {condition: each for condition, each in texts.items() if condition not in copies}


def _columns(condition: RecordedCondition, vector: str, hook: str) -> dict[str, object]:
    """The table's columns of a condition; of the unsteered one as `sweep` has them."""
    steered = condition != UNSTEERED_CONDITION
    return {
        "vector": vector if steered else UNSTEERED,
        "control": False,
        "control_of": "",
        "operation": "project_out" if condition.is_removal else condition.operation,
        "layers": condition.layers,
        "hook": hook if steered else "",
        "multiplier": math.nan if condition.is_removal else condition.multiplier,
        "dose": math.nan if steered else 0.0,
    }


def _pairs(choices: Choices, prompts: Sequence[str], rule: str, file: str) -> list[tuple[str, str]] | None:
    """One pair of choices per item, each tried, so that an error can name its item."""
    if choices is None:
        return None
    one_for_all = all(isinstance(choice, str) for choice in choices)
    pairs = [tuple(choices)] * len(prompts) if one_for_all else [tuple(pair) for pair in choices]
    if len(pairs) != len(prompts):
        raise ValueError(f"{file} has {len(prompts)} items, but {len(pairs)} pairs of choices were given.")
    for row, (pair, prompt) in enumerate(zip(pairs, prompts, strict=True)):
        with naming_item(file, row):
            read_answer("", pair, prompt, rule=rule)
    return pairs


def _labelled(prompts: Sequence[str], labels: pd.DataFrame, file: str) -> tuple[list[int], pd.DataFrame]:
    """The right answer of each item, and the factors, one row per item."""
    if {"statement", "label"} <= set(labels):
        claims = labels.iloc[_claim_rows(prompts, labels["statement"].tolist(), file)].reset_index(drop=True)
        if "truth" in claims:
            raise ValueError("the claims have a column 'truth', which is made of label. Rename it.")
        truth = truth_labels(claims["label"])
        # Wrong labels as they are, for the message.
        labels = _zeros_and_ones(truth.where(truth.notna(), claims["label"].astype(object)), file)
        claims.insert(0, "truth", ["true" if label else "false" for label in labels])
        return [1 - label for label in labels], claims.drop(columns=["statement", "label"])
    if "answer" not in labels:
        raise ValueError(
            f"labels need the columns statement and label, or answer; they have {list(labels.columns)}."
        )
    if len(labels) != len(prompts):
        raise ValueError(f"{file} has {len(prompts)} items, but there are {len(labels)} rows of labels.")
    return _zeros_and_ones(labels["answer"], file), labels.drop(columns="answer").reset_index(drop=True)


def _claim_rows(prompts: Sequence[str], statements: Sequence[str], file: str) -> list[int]:
    """The row of each item's claim: the longest statement in its sentence."""
    patterns = [_pattern(statement) for statement in statements]
    rows = []
    for item, prompt in enumerate(prompts):
        spans = {row: match.span() for row, each in enumerate(patterns) if (match := each.search(prompt))}
        # A statement within another is not the claim ("Ice floats." in "Nobody knows that ice floats.").
        longest = [row for row, span in spans.items() if not _is_within_another(span, spans.values())]
        with naming_item(file, item):
            if not longest:
                raise ValueError(f"no statement of the labels is in its sentence {prompt!r}.")
            if len(longest) > 1:
                several = "; ".join(f"row {row}, {statements[row]!r}" for row in longest[:3])
                raise ValueError(f"{len(longest)} statements of the labels are in its sentence ({several}).")
        rows += longest
    return rows


def _is_within_another(span: tuple[int, int], spans: Iterable[tuple[int, int]]) -> bool:
    return any(low <= span[0] and span[1] <= high and (low, high) != span for low, high in spans)


def _pattern(statement: str) -> re.Pattern[str]:
    """The statement as whole words, with or without quotation marks around it."""
    if not isinstance(statement, str) or not (bare := statement.strip().strip(QUOTATION_MARKS)):
        raise ValueError(f"labels: the statement {statement!r} must be text that is not empty.")
    before, after = (r"(?<!\w)" if bare[0].isalnum() else "", r"(?!\w)" if bare[-1].isalnum() else "")
    return re.compile(before + re.escape(bare) + after)


def _zeros_and_ones(values: pd.Series, file: str) -> list[int]:
    for item, value in enumerate(values):
        with naming_item(file, item):
            if pd.isna(value) or value not in (0, 1):
                raise ValueError(f"its {values.name} is {value!r}; it must be 0 or 1.")
    return [int(value) for value in values]
