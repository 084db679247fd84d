"""One measurement of tl_steer: `python -m benchmarks.ours JOB CONTENDER FOLDER OUTPUT`."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import tl_steer as ts
from tl_steer.models import embedded_folder

from . import floor
from .jobs import (
    BRIDGE,
    CLAIMS,
    COLUMNS,
    LETTERS,
    LONG_PROMPTS,
    MATERIALS,
    OURS,
    PLAIN,
    SIDES,
    VECTORS,
    Condition,
    Job,
    read_job,
    read_materials,
)
from .measuring import Task, environment, measure, report, texts_array

QUESTION = (
    'Question: Is the claim that follows here true or false? "{claim}"\n\nChoices:\n(A) True\n(B) False'
)
PAIRS, QUESTIONS = 64, 64
WARM = 2  # prompts of the warm-up, from claims that are not measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("contender", help='"prepare" writes the prompts')
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path, nargs="?", help="an .npz with the arrays to compare")
    args = parser.parse_args()
    model = ts.load_model(backend="bridge" if args.contender == BRIDGE else "hooked")
    if args.contender == "prepare":
        write_materials(model, args.folder)
        report(environment())
        return
    job, data = read_job(args.job, args.folder), read_materials(args.folder)
    task = TASKS[job.measure](model, job, args.contender, data, args.folder)
    before = floor.matrix_rates()
    record = measure(task, model, args.output)
    if args.contender == OURS:
        work = floor.operations(model.cfg, job, prompt_ids(job, data))
        record["floor"] = floor.ratios(work, before, floor.matrix_rates(), record["seconds"])
    report({**record, **environment()})


def prompt_ids(job: Job, data: dict) -> list[list[int]]:
    """The job's prompts as token ids; for a capture, those of both sides."""
    lists = data["pairs"].values() if job.measure == "capture" else [data["questions"]]
    return [prompt["ids"] for prompts in lists for prompt in prompts[: job.prompts]]


def claim_prompts(model: Any, claims: list[str], answer: str) -> list[str]:
    """Chat prompts about claims, ending with `answer`."""
    chat = ts.chat_format(model)
    return [chat.render(QUESTION.format(claim=claim), answer_prefix=answer) for claim in claims]


def questions(model: Any, count: int, *, claims_each: int) -> list[str]:
    """Prompts that end before the letter; several claims per prompt make it longer."""
    claims = ts.read_claims("claims_eval")["statement"].tolist()
    groups = [" ".join(claims[start : start + claims_each]) for start in range(0, len(claims), claims_each)]
    if len(groups) < count + WARM:
        raise ValueError(f"{len(claims)} claims do not make {count + WARM} questions of {claims_each} each.")
    return claim_prompts(model, groups[:count], "Answer: (")


def write_materials(model: Any, folder: Path) -> None:
    """Write all prompts as text and ids, the letters' ids, the model folder, and unit vectors."""
    claims = ts.read_claims("claims_train")["statement"].tolist()
    warm_claims = ts.read_claims("claims_eval")["statement"].tolist()[-WARM:]

    def with_ids(prompts: list[str]) -> list[dict[str, Any]]:
        return [{"text": prompt, "ids": ts.tokenize(model, prompt)} for prompt in prompts]

    def both_sides(statements: list[str]) -> dict[str, list[dict[str, Any]]]:
        return {
            side: with_ids(claim_prompts(model, statements, f"Answer: ({letter}"))
            for side, letter in zip(SIDES, LETTERS, strict=True)
        }

    studies = {
        count: with_ids(questions(model, QUESTIONS if count == 1 else LONG_PROMPTS, claims_each=count))
        for count in CLAIMS
    }
    values = {
        "model": str(embedded_folder()),
        "letters": [model.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS],
        "pairs": both_sides(claims[:PAIRS]),
        "questions": studies[1],
        "studies": studies,
        "warm_pairs": both_sides(warm_claims),
        "warm_questions": with_ids(claim_prompts(model, warm_claims, "Answer: (")),
    }
    (folder / MATERIALS).write_text(json.dumps(values))
    drawn = torch.randn(model.cfg.n_layers, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    np.save(folder / VECTORS, (drawn / drawn.norm(dim=-1, keepdim=True)).numpy())


def capture_task(model: Any, job: Job, contender: str, data: dict, _folder: Path) -> Task:
    """Residual stream of the last token at all layers, both sides."""

    def run(key: str, count: int) -> Any:
        sides = ([each["text"] for each in data[key][side][:count]] for side in SIDES)
        pairs = ts.contrast_pairs(*sides)
        return ts.capture_pairs(model, pairs, positions=ts.last_token(), reuse=contender != PLAIN)

    return Task(
        warm_up=lambda: run("warm_pairs", WARM),
        run=lambda: run("pairs", job.prompts),
        arrays=lambda activations: {"values": torch.stack(activations.sides()).numpy()},
        conditions=1,
    )


def sweep_task(model: Any, job: Job, contender: str, data: dict, folder: Path) -> Task:
    """The choice between two letters, or greedy texts of a fixed length, under every condition."""
    vectors = unit_vectors(model, folder)
    layers, multipliers = job.grid(contender)
    conditions = job.conditions(contender)
    by_choice = job.measure == "choice"

    def run(key: str, count: int, layers: Any, multipliers: Any) -> pd.DataFrame:
        prompts = [each["text"] for each in data[key][:count]]
        length = {"max_new_tokens": job.new_tokens, "min_new_tokens": job.new_tokens}
        options = {"mass": contender != COLUMNS} if by_choice else {"measure": "generate", **length}
        return ts.sweep(
            model,
            vectors,
            ts.ChoiceQuestions(prompts, [LETTERS] * len(prompts)) if by_choice else prompts,
            layers=layers,
            multipliers=multipliers,
            positions=positions(job.positions),
            controls=0,
            progress=False,
            reuse=contender != PLAIN,
            **options,
        )

    def arrays(table: pd.DataFrame) -> dict[str, np.ndarray]:
        values = by_condition(table, "logit_difference" if by_choice else "text", conditions)
        return {
            "conditions": np.array(conditions),
            "values": values if by_choice else texts_array(values.tolist()),
        }

    return Task(
        warm_up=lambda: run("warm_questions", WARM, layers[:1], multipliers[:1]),
        run=lambda: run("questions", job.prompts, layers, multipliers),
        arrays=arrays,
        conditions=len(conditions) + 1,  # the unsteered condition costs the same
        tokens=lambda table: len(table) * job.new_tokens,
    )


def generate_task(model: Any, job: Job, contender: str, data: dict, folder: Path) -> Task:
    """Greedy texts of a fixed length, under every condition or once without steering."""
    if job.layers:
        return sweep_task(model, job, contender, data, folder)

    def run(key: str, count: int) -> list[list[int]]:
        return ts.generate(
            model,
            [each["text"] for each in data[key][:count]],
            max_new_tokens=job.new_tokens,
            min_new_tokens=job.new_tokens,
            return_tokens=True,
            reuse=contender != PLAIN,
        )

    def arrays(rows: list[list[int]]) -> dict[str, np.ndarray]:
        texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return {"conditions": np.zeros((1, 2)), "values": texts_array([texts])}

    return Task(
        warm_up=lambda: run("warm_questions", WARM),
        run=lambda: run("questions", job.prompts),
        arrays=arrays,
        conditions=1,
        tokens=lambda rows: sum(map(len, rows)),
    )


def unit_vectors(model: Any, folder: Path) -> ts.SteeringVectors:
    """The job's vectors as `SteeringVectors`."""
    values = torch.from_numpy(np.load(folder / VECTORS))
    layers = tuple(range(len(values)))
    unknown = torch.full((len(values),), torch.nan)
    return ts.SteeringVectors(values, layers, "resid_post", "random", unknown, ts.identify(model))


def positions(name: str) -> ts.positions.Positions:
    return ts.last_token() if name == "last" else ts.all_tokens()


def by_condition(table: pd.DataFrame, column: str, conditions: list[Condition]) -> np.ndarray:
    """One column of a sweep's table, "condition prompt", in the order of `conditions`."""
    rows = []
    for layer, multiplier in conditions:
        matches = table[(table["layers"] == str(layer)) & (table["multiplier"] == multiplier)]
        rows.append(matches.sort_values("prompt_id")[column].to_numpy())
    return np.array(rows)


TASKS = {"capture": capture_task, "choice": sweep_task, "generate": generate_task}


if __name__ == "__main__":
    main()
