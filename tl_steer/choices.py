"""How much a model prefers one continuation of a prompt to another."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from .engine import Batch, batches, logits_of, residual
from .interventions import Operation, steer
from .models import Prompt, as_prompts, tokenize, tokenize_all

LOGIT_ROWS = 512  # positions whose logits are held at once


@dataclass(frozen=True)
class Read:
    """One sequence to run, and what to read at its last slots.

    Attributes:
        question: which prompt.
        ids: the prompt, and the tokens of a choice as far as they have to be fed.
        targets: for each of the last slots, the next tokens whose log-probability is read.
        choices: which choice each target belongs to.
    """

    question: int
    ids: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    choices: tuple[int, ...]


@dataclass(frozen=True)
class ChoicePlan:
    """Questions tokenised once, to be scored under any number of operations."""

    prompts: tuple[tuple[int, ...], ...]
    reads: tuple[Read, ...]


def choice_logits(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    choices: tuple[str, str] | Sequence[tuple[str, str]],
    *operations: Operation,
    allow_empty: bool = False,
    force: bool = False,
) -> pd.DataFrame:
    """Score two continuations of each prompt, under operations.

    A choice is appended to the prompt exactly as written, and scored by the summed log-probability of the
    tokens it adds; those that both choices begin with count for both, and cancel in the difference. Choice
    tokens that have to be fed count as generated ones for the operations' positions.

    Args:
        model: a `HookedTransformer`.
        prompts: texts or token lists.
        choices: a pair for each prompt, or one pair for all.
        allow_empty: accept prompts of which an operation's positions select nothing.
        force: accept vectors of other weights of the same shapes and processing.

    Returns:
        A row a prompt: prompt, logit_difference (first choice minus second, in nats), probability (of the
        first among the two), mass (the two choices' share of all probability: near 0 the rest means nothing).

    Raises:
        ValueError: choices that tokenize alike, or of which one is the beginning of the other.
    """
    given = as_prompts(prompts)
    pairs = [choices] * len(given) if isinstance(choices[0], str) else list(choices)
    plan = plan_choices(model, given, pairs)
    scores = score_choices(model, plan, *operations, allow_empty=allow_empty, force=force)
    shown = [prompt if isinstance(prompt, str) else model.tokenizer.decode(list(prompt)) for prompt in given]
    return pd.DataFrame({"prompt": shown}).join(scores)


def plan_choices(model: Any, prompts: Sequence[Prompt], choices: Sequence[tuple[str, str]]) -> ChoicePlan:
    """Tokenise questions and say what has to be read of each; raises as `choice_logits`."""
    if len(prompts) != len(choices):
        raise ValueError(f"{len(choices)} pairs of choices for {len(prompts)} prompts: give one for each.")
    ids = tokenize_all(model, prompts)
    reads = [
        read
        for question, (prompt, tokens, pair) in enumerate(zip(prompts, ids, choices, strict=True))
        for read in _reads(
            question, len(tokens), pair, *(_continuation(model, prompt, tokens, choice) for choice in pair)
        )
    ]
    return ChoicePlan(tuple(map(tuple, ids)), tuple(reads))


@torch.no_grad()
def score_choices(
    model: Any, plan: ChoicePlan, *operations: Operation, allow_empty: bool = False, force: bool = False
) -> pd.DataFrame:
    """`choice_logits` without the prompts' column, of questions already planned."""
    scores = np.zeros((len(plan.prompts), 2))
    for batch in batches([read.ids for read in plan.reads], device=model.cfg.device):
        reads = [plan.reads[row] for row in batch.rows]
        prompts = [plan.prompts[read.question] for read in reads]
        fed = any(len(read.ids) > len(prompt) for read, prompt in zip(reads, prompts, strict=True))
        with steer(model, *operations, prompts=prompts, allow_empty=allow_empty, force=force, generating=fed):
            stream = residual(model, batch)
        for read, found in zip(reads, _log_probabilities(model, batch, stream, reads), strict=True):
            for step in found:
                scores[read.question, list(read.choices)] += step
    differences = scores[:, 0] - scores[:, 1]
    return pd.DataFrame(
        {
            "logit_difference": differences,
            "probability": (1 + np.tanh(differences / 2)) / 2,  # the logistic function, without overflow
            "mass": np.exp(scores).sum(-1),
        }
    )


def _continuation(model: Any, prompt: Prompt, ids: list[int], choice: str) -> list[int]:
    """The prompt's ids, and those the choice adds."""
    if isinstance(prompt, str):
        whole = tokenize(model, prompt + choice)
        if whole[: len(ids)] == ids and len(whole) > len(ids):
            return whole
    # The two run together in one token (or the prompt is ids): the prompt stays what the model is asked.
    added = model.tokenizer(choice, add_special_tokens=False)["input_ids"]
    if not added:
        raise ValueError(f"the choice {choice!r} has no tokens.")
    return [*ids, *added]


def _reads(
    question: int, asked: int, pair: tuple[str, str], first: list[int], second: list[int]
) -> list[Read]:
    """What to run for one question of `asked` tokens: once, where the choices differ in one token alone."""
    shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if shared is None:
        how = "tokenize alike" if first == second else "begin alike, and one ends where the other goes on"
        raise ValueError(
            f"question {question}: the choices {pair[0]!r} and {pair[1]!r} {how}; nothing tells them apart."
        )
    if len(first) == len(second) == shared + 1:
        return [
            Read(question, tuple(first[:-1]), tuple(zip(first[asked:], second[asked:], strict=True)), (0, 1))
        ]
    return [
        Read(question, tuple(ids[:-1]), tuple((token,) for token in ids[asked:]), (choice,))
        for choice, ids in enumerate((first, second))
    ]


def _log_probabilities(
    model: Any, batch: Batch, stream: Float[Tensor, "batch pos d_model"], reads: Sequence[Read]
) -> list[list[list[float]]]:
    """For each read, at each of its slots, the targets' log-probabilities; logits of these slots alone."""
    wanted = [
        (row, batch.tokens.shape[1] - len(read.targets) + step, targets)
        for row, read in enumerate(reads)
        for step, targets in enumerate(read.targets)
    ]
    found: dict[int, list[list[float]]] = defaultdict(list)
    for start in range(0, len(wanted), LOGIT_ROWS):
        part = wanted[start : start + LOGIT_ROWS]
        rows, slots = [row for row, _, _ in part], [slot for _, slot, _ in part]
        logits = logits_of(model, stream[rows, slots]).double()
        totals = logits.logsumexp(-1)
        for place, (row, _, targets) in enumerate(part):
            found[row].append((logits[place, list(targets)] - totals[place]).tolist())
    return [found[row] for row in range(len(reads))]
