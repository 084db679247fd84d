"""The same questions under every vector, layer and multiplier, as one tidy table."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..capture import capture
from ..choices import plan_choices, score_cells
from ..directions import SteeringVectors
from ..engine import Memory, Site, StreamNorms, Tick, bar
from ..generation import Decoding, completion_text, write_cells
from ..models import Layer, tokenize_all
from ..positions import Positions, all_tokens
from ..prompts import ChoiceQuestions
from .cells import Cell, OperationMaker, sweep_cells
from .tables import asked_table, assembled, written_answers


def sweep(
    model: Any,
    vectors: SteeringVectors | Mapping[str, SteeringVectors],
    questions: ChoiceQuestions | list[str],
    *,
    layers: Iterable[Layer | tuple[Layer, ...]] | None = None,
    multipliers: Sequence[float],
    operations: Sequence[str | OperationMaker] = ("add",),
    positions: Positions | None = None,
    measure: Literal["choice", "generate"] = "choice",
    max_new_tokens: int = 30,
    min_new_tokens: int = 0,
    controls: int | Mapping[str, SteeringVectors] = 5,
    seed: int = 0,
    out: str | Path | None = None,
    mass: bool = True,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = True,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Ask questions under every cell: vector × operation × layers × multiplier, and unsteered.

    Args:
        model: a `HookedTransformer`.
        vectors: one set, or several by name.
        questions: choice questions, or (with "generate") plain prompts.
        layers: single layers, or tuples of layers that are steered together; by default each layer there is.
        multipliers: numbers in front of the vectors, signs included.
        operations: "add", "project_out" (once a layer, multiplier NaN), or a callable that makes an operation
            of a vector, a multiplier and positions.
        positions: at which tokens; by default `all_tokens()`.
        measure: "choice" scores the two continuations, "generate" writes text (greedily) and reads it.
        max_new_tokens, min_new_tokens: length of the texts; each ends at the end of its turn.
        controls: how many random directions of the same length, or control vectors by name.
        seed: of the random directions and of the split.
        out: a Parquet file to write; it may not exist yet.
        mass: `False` leaves the column mass empty, and does not compute the whole vocabulary's logits where
            the choices' own are enough.
        allow_empty: accept prompts of which `positions` selects nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar over cells.
        reuse: compute what cells and prompts share once: a cell costs what it changes, from its first changed
            layer and position on. `False` runs whole forward passes, the oracle: the same numbers.
        memory: what may be kept between passes, in bytes (`2 * 10**9`) or as a share of what is free (0.8);
            by default half of what is free, and on a CPU at most 512 MiB. With less, more passes are made.

    Returns:
        A row a prompt and cell: prompt_id, prompt, the factors, vector, control, operation, layers ("17+31"),
        hook, multiplier, dose, split ("choose" or "report", balanced over factors and answers, unless the
        factors have a column of that name), answer, choice, logit_difference, probability, mass, text.

    Raises:
        ValueError: plain prompts with "choice", a factor that has one of the table's names, no multipliers.
        FileExistsError: `out` exists.
    """
    positions = all_tokens() if positions is None else positions
    named = {vectors.method: vectors} if isinstance(vectors, SteeringVectors) else dict(vectors)
    cells = sweep_cells(
        named,
        controls,
        layers=layers,
        multipliers=multipliers,
        operations=operations,
        positions=positions,
        seed=seed,
    )
    if out is not None:
        _require_free(Path(out))
    asked = _asked(questions, seed)
    options = {"allow_empty": allow_empty, "force": force, "reuse": reuse, "memory": memory}
    ask = _asker(model, questions, measure, Decoding(max_new_tokens, min_new_tokens), mass)
    with bar("sweeping", len(cells), shown=progress) as tick:
        answers, norms = ask(cells, options, tick)
    table = assembled(asked, [cell.labels(norms) for cell in cells], answers)
    if out is not None:
        _write(table, Path(out))
    return table


def _asked(questions: ChoiceQuestions | list[str], seed: int) -> pd.DataFrame:
    prompts = questions.prompts if isinstance(questions, ChoiceQuestions) else questions
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("questions must be ChoiceQuestions, or a list of at least one prompt.")
    if isinstance(questions, ChoiceQuestions):
        return asked_table(prompts, answers=questions.answers, factors=questions.factors, seed=seed)
    return asked_table(prompts, seed=seed)


Norms = Mapping[tuple[str, int], float]  # the unsteered stream's typical norm by hook and layer
Asker = Callable[[Sequence[Cell], Mapping[str, Any], Tick], tuple[pd.DataFrame, Norms]]


def _asker(
    model: Any, questions: ChoiceQuestions | list[str], measure: str, decoding: Decoding, mass: bool
) -> Asker:
    """What is measured, a row a prompt, cell by cell; and the typical norms, on the way."""
    if measure == "choice":
        if not isinstance(questions, ChoiceQuestions):
            raise ValueError(
                "measure='choice' needs ChoiceQuestions; a list of prompts goes with measure='generate'."
            )
        return partial(_scores, model, questions, mass)
    if measure == "generate":
        return partial(_texts, model, questions, decoding)
    raise ValueError(f"measure={measure!r} is unknown: use 'choice' or 'generate'.")


def _scores(
    model: Any,
    questions: ChoiceQuestions,
    mass: bool,
    cells: Sequence[Cell],
    options: Mapping[str, Any],
    tick: Tick,
) -> tuple[pd.DataFrame, Norms]:
    plan = plan_choices(model, questions.prompts, questions.choices)
    norms = StreamNorms(_sites(model, cells), [read.question for read in plan.reads])
    operations = [cell.operations for cell in cells]
    scores = score_cells(model, plan, operations, mass=mass, norms=norms, tick=tick, **options)
    return _scored(pd.concat(scores, ignore_index=True)), _typical(model, norms, plan.prompts)


def _texts(
    model: Any,
    questions: ChoiceQuestions | list[str],
    decoding: Decoding,
    cells: Sequence[Cell],
    options: Mapping[str, Any],
    tick: Tick,
) -> tuple[pd.DataFrame, Norms]:
    ids = tokenize_all(model, questions.prompts if isinstance(questions, ChoiceQuestions) else questions)
    norms = StreamNorms(_sites(model, cells), range(len(ids)))
    operations = [cell.operations for cell in cells]
    written = write_cells(model, ids, operations, decoding, norms=norms, tick=tick, **options)
    texts = [completion_text(model, new) for cell in written for new in cell]
    return _written(texts, questions), _typical(model, norms, ids)


def _written(texts: list[str], questions: ChoiceQuestions | list[str]) -> pd.DataFrame:
    if isinstance(questions, ChoiceQuestions):
        return written_answers(texts, questions.prompts, questions.choices)
    return written_answers(texts, questions, None)


def _scored(scores: pd.DataFrame) -> pd.DataFrame:
    preferred = np.where(scores["logit_difference"] > 0, 0, 1)
    missing = pd.array([pd.NA] * len(scores), dtype="string")
    return scores.assign(choice=pd.array(preferred, dtype="Int64"), text=missing)


def _sites(model: Any, cells: Sequence[Cell]) -> list[Site]:
    """Every layer and hook that is steered."""
    edits = [
        edit
        for cell in cells
        for operation in cell.operations
        for edit in operation.edits(model.cfg.n_layers)
    ]
    return sorted({(edit.layer, edit.hook) for edit in edits})


def _typical(model: Any, norms: StreamNorms, prompts: Sequence[Sequence[int]]) -> Norms:
    """The unsteered stream's typical norm on these prompts by hook and layer, measured if it was not seen."""
    if norms.seen:
        return {(hook, layer): norm for (layer, hook), norm in norms.typical().items()}
    found = {}
    for hook in sorted({hook for _, hook in norms.sites}):
        layers = [layer for layer, other in norms.sites if other == hook]
        measured = capture(model, prompts, layers=layers, hook=hook, reuse=False).stream_norm.tolist()
        found |= {(hook, layer): norm for layer, norm in zip(layers, measured, strict=True)}
    return found


def _require_free(path: Path) -> None:
    """Before anything is run: a table that cannot be kept is lost work."""
    if path.exists():
        raise FileExistsError(f"{path} exists: give another name, or move it away first.")
    path.parent.mkdir(parents=True, exist_ok=True)


def _write(table: pd.DataFrame, path: Path) -> None:
    """Whole or not at all: a reader never sees half a table."""
    scratch = path.with_name(path.name + ".part")
    table.to_parquet(scratch, index=False)
    os.replace(scratch, path)
