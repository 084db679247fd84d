"""The prompts of all jobs, of the project's own claims, and the vectors; the same files for both sides."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tl_steer as ts
from tl_steer.models import embedded_folder

from .jobs import LETTERS, MATERIALS, SIDES, VECTORS

ASKED = 'Question: Is the claim that follows here true or false? "{claim}"\n\nChoices:\n(A) True\n(B) False'
PAIRS, QUESTIONS = 64, 64
WARM = 2  # prompts to warm up with, of claims that are not measured


def asked(model: Any, claims: list[str], answer: str) -> list[str]:
    """Chat prompts about claims, up to the given answer."""
    chat = ts.chat_format(model)
    return [chat.render(ASKED.format(claim=claim), answer_prefix=answer) for claim in claims]


def questions(model: Any, count: int, *, claims_each: int = 1) -> list[str]:
    """Prompts that end where the letter is due; several claims in one make it longer."""
    claims = ts.read_claims("claims_eval")["statement"].tolist()
    groups = [" ".join(claims[start : start + claims_each]) for start in range(0, len(claims), claims_each)]
    if len(groups) < count + WARM:
        raise ValueError(f"{len(claims)} claims do not make {count + WARM} questions of {claims_each} each.")
    return asked(model, groups[:count], "Answer: (")


def write_materials(model: Any, folder: Path) -> None:
    """Every prompt as text and as ids, the letters' ids, unit vectors, and where the weights lie."""
    claims = ts.read_claims("claims_train")["statement"].tolist()
    held_out = ts.read_claims("claims_eval")["statement"].tolist()[-WARM:]

    def described(prompts: list[str]) -> list[dict[str, Any]]:
        return [{"text": prompt, "ids": ts.tokenize(model, prompt)} for prompt in prompts]

    def both_sides(statements: list[str]) -> dict[str, list[dict[str, Any]]]:
        answers = [f"Answer: ({letter}" for letter in LETTERS]
        return {
            side: described(asked(model, statements, answer))
            for side, answer in zip(SIDES, answers, strict=True)
        }

    values = {
        "model": str(embedded_folder()),
        "letters": [model.tokenizer.convert_tokens_to_ids(letter) for letter in LETTERS],
        "pairs": both_sides(claims[:PAIRS]),
        "questions": described(questions(model, QUESTIONS)),
        "warm_pairs": both_sides(held_out),
        "warm_questions": described(asked(model, held_out, "Answer: (")),
    }
    (folder / MATERIALS).write_text(json.dumps(values))
    drawn = torch.randn(model.cfg.n_layers, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    np.save(folder / VECTORS, (drawn / drawn.norm(dim=-1, keepdim=True)).numpy())
