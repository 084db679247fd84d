"""One measurement of tl_steer, in a process of its own: `python -m benchmarks.ours JOB WHO FOLDER KEPT`."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import tl_steer as ts

from . import floor, materials
from .jobs import COLUMNS, LETTERS, PLAIN, SIDES, VECTORS, Job, read_job, read_materials
from .measuring import Task, measure, report, surroundings, texts_array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("who", help='"prepare" writes the prompts')
    parser.add_argument("folder", type=Path)
    parser.add_argument("kept", type=Path, nargs="?", help="an .npz for what is compared")
    given = parser.parse_args()
    model = ts.load_model()
    if given.who == "prepare":
        materials.write_materials(model, given.folder)
        report(surroundings())
        return
    job, held = read_job(given.job, given.folder), read_materials(given.folder)
    task = TASKS[job.kind](model, job, given.who, held, given.folder)
    before = floor.matrix_rates() if job.name == floor.JOB else []
    found = measure(task, model, given.kept)
    if job.name == floor.JOB:
        ids = [question["ids"] for question in held["questions"][: job.prompts]]
        work = floor.operations(model.cfg, ids, job.cells(given.who))
        found["floor"] = floor.described(work, before, floor.matrix_rates(), found["seconds"])
    report({**found, **surroundings()})


def capture_task(model: Any, job: Job, who: str, held: dict, _folder: Path) -> Task:
    """The stream of the last token at all layers, both sides."""
    reuse = who != PLAIN

    def pairs(key: str, count: int) -> ts.ContrastPairs:
        return ts.contrast_pairs(*([each["text"] for each in held[key][side][:count]] for side in SIDES))

    def captured(of: ts.ContrastPairs) -> Any:
        return ts.capture_pairs(model, of, positions=ts.last_token(), reuse=reuse)

    return Task(
        warm_up=lambda: captured(pairs("warm_pairs", materials.WARM)),
        run=lambda: captured(pairs("pairs", job.prompts)),
        keep=lambda found: {"values": torch.stack(found.sides()).numpy()},
        cells=1,
    )


def choice_task(model: Any, job: Job, who: str, held: dict, folder: Path) -> Task:
    """The choice between two letters in every cell."""
    vectors = unit_vectors(model, folder)
    layers, multipliers = job.grid(who)
    cells = job.cells(who)

    def swept(key: str, count: int, layers: Any, multipliers: Any) -> pd.DataFrame:
        prompts = [each["text"] for each in held[key][:count]]
        return ts.sweep(
            model,
            vectors,
            ts.ChoiceQuestions(prompts, [LETTERS] * len(prompts)),
            layers=layers,
            multipliers=multipliers,
            positions=positions(job.where),
            controls=0,
            progress=False,
            reuse=who != PLAIN,
            mass=who != COLUMNS,
        )

    return Task(
        warm_up=lambda: swept("warm_questions", materials.WARM, layers[:1], multipliers[:1]),
        run=lambda: swept("questions", job.prompts, layers, multipliers),
        keep=lambda table: {"cells": np.array(cells), "values": by_cell(table, "logit_difference", cells)},
        cells=counted(cells),
    )


def generate_task(model: Any, job: Job, who: str, held: dict, folder: Path) -> Task:
    """Greedy texts of exactly so many tokens, in every cell or once without steering."""
    if job.layers:
        return generate_sweep_task(model, job, who, held, folder)

    def written(key: str, count: int) -> list[list[int]]:
        return ts.generate(
            model,
            [each["text"] for each in held[key][:count]],
            max_new_tokens=job.new_tokens,
            min_new_tokens=job.new_tokens,
            return_tokens=True,
            reuse=who != PLAIN,
        )

    return Task(
        warm_up=lambda: written("warm_questions", materials.WARM),
        run=lambda: written("questions", job.prompts),
        keep=lambda rows: {"cells": np.zeros((1, 2)), "values": texts_array([decoded(model, rows)])},
        cells=1,
        tokens=lambda rows: sum(map(len, rows)),
    )


def generate_sweep_task(model: Any, job: Job, who: str, held: dict, folder: Path) -> Task:
    """`generate_task` where there are cells."""
    vectors = unit_vectors(model, folder)
    layers, multipliers = job.grid(who)
    cells = job.cells(who)

    def swept(key: str, count: int, layers: Any, multipliers: Any) -> pd.DataFrame:
        return ts.sweep(
            model,
            vectors,
            [each["text"] for each in held[key][:count]],
            layers=layers,
            multipliers=multipliers,
            positions=positions(job.where),
            measure="generate",
            max_new_tokens=job.new_tokens,
            min_new_tokens=job.new_tokens,
            controls=0,
            progress=False,
            reuse=who != PLAIN,
        )

    return Task(
        warm_up=lambda: swept("warm_questions", materials.WARM, layers[:1], multipliers[:1]),
        run=lambda: swept("questions", job.prompts, layers, multipliers),
        keep=lambda table: {
            "cells": np.array(cells),
            "values": texts_array(by_cell(table, "text", cells)),
        },
        cells=counted(cells),
        tokens=lambda table: len(table) * job.new_tokens,  # at least and at most so many
    )


def unit_vectors(model: Any, folder: Path) -> ts.SteeringVectors:
    """The vectors of the job as tl_steer holds them."""
    values = torch.from_numpy(np.load(folder / VECTORS))
    layers = tuple(range(len(values)))
    unknown = torch.full((len(values),), torch.nan)
    return ts.SteeringVectors(values, layers, "resid_post", "random", unknown, ts.identify(model))


def positions(where: str) -> ts.positions.Positions:
    """At which tokens the vector is added."""
    return ts.last_token() if where == "last" else ts.all_tokens()


def counted(cells: list[tuple[int, float]]) -> int:
    """Cells that the seconds are divided by.

    A sweep does the unsteered cell, too, which is a cell like the others: nobody reads a sweep without it.
    """
    return len(cells) + 1


def by_cell(table: pd.DataFrame, column: str, cells: list[tuple[int, float]]) -> np.ndarray:
    """One column of a sweep, a row a cell in the order given and a column a prompt."""
    rows = []
    for layer, multiplier in cells:
        found = table[(table["layers"] == str(layer)) & (table["multiplier"] == multiplier)]
        rows.append(found.sort_values("prompt_id")[column].to_numpy())
    return np.array(rows)


def decoded(model: Any, rows: list[list[int]]) -> list[str]:
    """New tokens as text, as the peers decode theirs."""
    return [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


TASKS = {"capture": capture_task, "choice": choice_task, "generate": generate_task}


if __name__ == "__main__":
    main()
