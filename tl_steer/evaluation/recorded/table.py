"""Answers that the study's scripts recorded, as the table that a sweep makes."""

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pandas as pd

from ...arguments import checked
from ..reading import read_answer
from ..tables import UNSTEERED, asked_table, assembled, written_answers
from .items import UNSTEERED_CELL, Item, RecordedCell, naming_item, recorded_items
from .labels import labels_of_items

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
        ones "zeroedout_pos", "zeroedout_neg" or "zeroedout" at +m. The scores are NaN, and so is each steered
        cell's dose: the stream's norm was not recorded.

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: a file that breaks off or has another layout, items whose cells differ, labels or choices
            that do not fit; names the file, the item (counted from 0, as `prompt_id`) and what is wrong.

    The zeroed-out answers are not "project_out": in the study's files they vary with sign and multiplier,
    which those of a plain removal of the projection cannot, and what was run is not known.
    """
    if vector == UNSTEERED:
        raise ValueError(f"{vector!r} is the name of the unsteered cell: give the vector another.")
    file = str(path)
    items = list(recorded_items(_content(path), file))
    prompts = [prompt for prompt, _ in items]
    cells = _same_cells(items, file)
    answers, factors = (None, None) if labels is None else labels_of_items(prompts, labels, file)
    asked = asked_table(prompts, answers=answers, factors=factors, seed=seed)
    texts = [answered[cell] for cell in cells for _, answered in items]
    outcomes = written_answers(texts, prompts, _pairs(choices, prompts, rule, file), rule=rule)
    return assembled(asked, [_labels(cell, vector, hook) for cell in cells], outcomes)


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
        "operation": cell.operation,
        "layers": cell.layers,
        "hook": hook if steered else "",
        "multiplier": cell.multiplier,
        "dose": math.nan if steered else 0.0,
    }


def _content(path: str | Path) -> str:
    own = resources.files("tl_steer.data") / f"{path}.json"
    if isinstance(path, str) and "/" not in path and own.is_file():
        return own.read_text(encoding="utf-8")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is neither a file nor 'recorded_example'.")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read as UTF-8: {error}") from error
