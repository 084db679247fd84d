"""Answers that the study's scripts recorded, as the table that a sweep makes."""

import logging
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from .._read_choice import read_answer
from .._util.file_io import read_text
from .._util.validation import checked
from ..sweeps.sweep_table import UNSTEERED, asked_table, assembled, written_answers
from .recorded_items import UNSTEERED_CELL, Item, RecordedCell, naming_item, recorded_draws, recorded_items
from .recorded_labels import labels_of_items

logger = logging.getLogger(__name__)

Choices = Sequence[str] | Sequence[Sequence[str]] | None


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
    """Recorded answers as a sweep's table, which `effectiveness`, `choose` and the figures take.

    Args:
        path: a JSON file of yours, or "recorded_example": 12 claims of "claims_eval", with answers that are
            made up to try things out; no model gave them. A file is a list with an object a prompt:
            {"sentence": prompt, "answer_neut": unsteered text, "steered": {"layer17,31_mult4": {"answer_pos":
            text, "answer_neg": text, "answer_zeroedout_pos": text, …}, …}}; old files have no "steered".
            Or an object with the unsteered answers of several recordings of the same prompts: {"prompts":
            [prompt, …], "answers": {recording: [text, …], …}}.
        labels: what is known of the prompts. Claims, `statement` and `label` (1 true): an item's claim is the
            longest statement in its sentence, its answer 0 where true and 1 where false, and the factors are
            `truth` ("true", "false") and the further columns. Or a row an item, in their order: `answer` (0
            or 1), the other columns are factors.
        choices: how texts are read, the signal first. ("A", "B") reads letters, and the words that the prompt
            lists under them. A list gives a pair an item; `None` reads nothing.
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
        ValueError: a file that breaks off or has another layout, items whose cells differ, labels or choices
            that do not fit; names the file, the item (counted from 0, as `prompt_id`) and what is wrong.

    The study's answers were sampled, so that one recording is one draw per prompt, and all steered conditions
    of a file are compared with the same unsteered draw: `against_baselines` compares with several.

    Removing a projection has no multiplier. Of the zeroed-out answers those at the smallest multiplier are
    read, "pos" and "neg" as two draws of one condition. Those at larger multipliers are left out where they
    repeat the answers of a smaller one word for word: the study's scripts wrote those of the last set of
    layers again for every later multiplier.
    """
    if vector == UNSTEERED:
        raise ValueError(f"{vector!r} is the name of the unsteered condition: rename the vector.")
    file, content = str(path), _content(path)
    if draws := recorded_draws(content, file):
        prompts, recordings = draws
        cells, texts = [UNSTEERED_CELL] * len(recordings), list(recordings.values())
        more = {"draw": list(range(len(recordings))), "recording": list(recordings)}
    else:
        items = list(recorded_items(content, file))
        prompts = [prompt for prompt, _ in items]
        cells, numbers = _without_copies(items, _same_cells(items, file), file)
        texts = [[answered[cell] for _, answered in items] for cell in cells]
        more = {"draw": numbers} if any(numbers) else {}
    answers, factors = (None, None) if labels is None else labels_of_items(prompts, labels, file)
    asked = asked_table(prompts, answers=answers, factors=factors, seed=seed)
    written = [text for column in texts for text in column]
    outcomes = written_answers(written, prompts, _pairs(choices, prompts, rule, file), rule=rule)
    table = assembled(asked, [_labels(cell, vector, hook) for cell in cells], outcomes)
    return table.assign(**{name: np.repeat(values, len(prompts)) for name, values in more.items()})


def _without_copies(
    items: Sequence[Item], cells: Sequence[RecordedCell], file: str
) -> tuple[list[RecordedCell], list[int]]:
    """The cells without removals that repeat those of a smaller multiplier, and the draw of each."""
    texts = {cell: [answered[cell] for _, answered in items] for cell in cells}
    removals = [cell for cell in cells if cell.is_removal]
    smallest = {cell.layers: cell.multiplier for cell in sorted(removals, key=lambda cell: -cell.multiplier)}
    first = [texts[cell] for cell in removals if cell.multiplier == smallest[cell.layers]]
    copies = {cell for cell in removals if cell.multiplier > smallest[cell.layers] and texts[cell] in first}
    if copies:
        logger.info("%s: %d zeroed-out conditions repeat others and are left out", file, len(copies))
    kept = [cell for cell in cells if cell not in copies]
    layers = [cell.layers if cell.is_removal else cell for cell in kept]
    return kept, [layers[:place].count(each) for place, each in enumerate(layers)]


def _same_cells(items: Sequence[Item], file: str) -> list[RecordedCell]:
    """The first item's cells, the unsteered one first, if all items have the same."""
    cells = items[0][1]
    for row, (_, answered) in enumerate(items):
        missing = [f"lacks {cell}" for cell in cells if cell not in answered]
        differing = [*missing, *(f"has {cell}" for cell in answered if cell not in cells)]
        if differing:
            more = f" (and {len(differing) - 1} more differences)" if len(differing) > 1 else ""
            with naming_item(file, row):
                raise ValueError(f"unlike item 0, it {differing[0]}{more}.")
    return list(cells)


def _pairs(choices: Choices, prompts: Sequence[str], rule: str, file: str) -> list[tuple[str, str]] | None:
    """A pair of choices an item, each tried, so that an error can name its item."""
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


def _labels(cell: RecordedCell, vector: str, hook: str) -> dict[str, object]:
    """The table's columns of a cell; of the unsteered one as `sweep` has them."""
    steered = cell != UNSTEERED_CELL
    return {
        "vector": vector if steered else UNSTEERED,
        "control": False,
        "control_of": "",
        "operation": "project_out" if cell.is_removal else cell.operation,
        "layers": cell.layers,
        "hook": hook if steered else "",
        "multiplier": math.nan if cell.is_removal else cell.multiplier,
        "dose": math.nan if steered else 0.0,
    }


def _content(path: str | Path) -> str:
    own = resources.files("tl_steer.data") / f"{path}.json"
    if isinstance(path, str) and "/" not in path and own.is_file():
        return own.read_text(encoding="utf-8")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is neither a file nor 'recorded_example'.")
    return read_text(Path(path))
