"""How much a model prefers one continuation of a prompt to another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ._util.validation import checked
from .engine import (
    CleanStreams,
    Memory,
    Row,
    StreamNorms,
    Tick,
    Wave,
    bar,
    batches,
    in_waves,
    log_normaliser,
    logits_at,
    logits_of,
    residual,
    shares,
)
from .interventions import Edit, Operation, checked_edits, steer
from .models import HookedModel, Prompt, as_prompts, exclusive, tokenize_all
from .models.backend import input_device
from .models.tokenizing import encode
from .positions import PromptTokens

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

    @property
    def read_together(self) -> bool:
        """Whether both choices are always read at the same slots, so that what normalises them cancels."""
        return all(read.choices == (0, 1) for read in self.reads)


@checked
def choice_logits(
    model: HookedModel,
    prompts: Prompt | Sequence[Prompt],
    choices: tuple[str, str] | Sequence[tuple[str, str]],
    *operations: Operation,
    mass: bool = True,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> pd.DataFrame:
    """Score two continuations of each prompt, under operations.

    A choice is appended to the prompt exactly as written, and scored by the summed log-probability of the
    tokens it adds; those that both choices begin with count for both, and cancel in the difference. Choice
    tokens that have to be fed count as generated ones for the operations' positions.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts or token lists.
        choices: a pair for each prompt, or one pair for all.
        operations: the model answers under these.
        mass: `False` leaves the column mass empty, and does not compute the whole vocabulary's logits where
            the choices' own are enough.
        allow_empty: accept prompts of which an operation's positions select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar.
        reuse: compute what prompts share once; `False` runs the plain loop, the oracle: the same numbers.
        memory: bytes, or the share of what is free, that streams, keys and values may take; see `sweep`.

    Returns:
        A row a prompt: prompt, logit_difference (first choice minus second, in nats), probability (of the
        first among the two), mass (the two choices' share of all probability: near 0 the rest means nothing).

    Raises:
        ValueError: choices that tokenize alike, or of which one is the beginning of the other; a prompt that,
            with its choices, does not fit the context; a model without a tokenizer.
    """
    given = as_prompts(prompts)
    pairs = [choices] * len(given) if isinstance(choices[0], str) else list(choices)
    plan = plan_choices(model, given, pairs)
    with bar("asking", 1, shown=progress) as tick:
        (scores,) = score_cells(
            model,
            plan,
            [operations],
            mass=mass,
            allow_empty=allow_empty,
            force=force,
            reuse=reuse,
            memory=memory,
            tick=tick,
        )
    shown = [prompt if isinstance(prompt, str) else model.tokenizer.decode(list(prompt)) for prompt in given]
    return pd.DataFrame({"prompt": shown}).join(scores)


def plan_choices(model: Any, prompts: Sequence[Prompt], choices: Sequence[tuple[str, str]]) -> ChoicePlan:
    """Tokenise questions and say what has to be read of each; raises as `choice_logits`."""
    if len(prompts) != len(choices):
        raise ValueError(f"{len(choices)} pairs of choices for {len(prompts)} prompts: give one for each.")
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so that the choices cannot be made into tokens.")
    ids = tokenize_all(model, prompts)
    reads = [
        read
        for question, (prompt, tokens, pair) in enumerate(zip(prompts, ids, choices, strict=True))
        for read in _reads(
            question, len(tokens), pair, *(_continuation(model, prompt, tokens, choice) for choice in pair)
        )
    ]
    if long := next((read for read in reads if len(read.ids) > model.cfg.n_ctx), None):
        raise ValueError(
            f"question {long.question}: {len(long.ids)} tokens of the prompt and its choices do not fit the "
            f"context of {model.cfg.n_ctx}: shorten the prompt."
        )
    return ChoicePlan(tuple(map(tuple, ids)), tuple(reads))


@torch.no_grad()
def score_cells(
    model: Any,
    plan: ChoicePlan,
    cells: Sequence[Sequence[Operation]],
    *,
    mass: bool = True,
    norms: StreamNorms | None = None,
    allow_empty: bool = False,
    force: bool = False,
    reuse: bool = True,
    memory: Memory = None,
    tick: Tick = lambda cells: None,
    clean: CleanStreams | None = None,
) -> list[pd.DataFrame]:
    """`choice_logits` without the prompts' column, of planned questions, under every cell's operations.

    Args:
        norms: of the plan's reads; filled on the way, if tokens are shared and a cell has no operations.
        tick: called with the number of cells done, in parts.
        clean: keeps unsteered streams from call to call.
    """
    scores = np.zeros((len(cells), len(plan.prompts), 2))
    options = {"allow_empty": allow_empty, "force": force}
    with exclusive(model):
        if shares(model, reuse):
            edits = checked_edits(model, cells, force)
            _score_together(model, plan, edits, scores, norms, mass, allow_empty, memory, tick, clean)
        else:
            for cell, operations in enumerate(cells):
                _score_plainly(model, plan, operations, scores[cell], tick, options)
    return [_columns(each, mass) for each in scores]


def _score_together(
    model: Any,
    plan: ChoicePlan,
    cells: Sequence[Sequence[Edit]],
    scores: Float[np.ndarray, "cell question 2"],
    norms: StreamNorms | None,
    mass: bool,
    allow_empty: bool,
    memory: Memory,
    tick: Tick,
    clean: CleanStreams | None,
) -> None:
    """All cells at once: one walk, and the logits of what is read."""
    prompts = [
        PromptTokens(len(ids), ids, model.tokenizer, number) for number, ids in enumerate(plan.prompts)
    ]
    rows = [Row(read.ids, prompts[read.question]) for read in plan.reads]

    def score(wave: Wave) -> None:
        asked = [(cell, plan.reads[row]) for cell in wave.cells for row in wave.rows]
        places = product(range(len(wave.cells)), range(len(wave.rows)))
        numbers = np.concatenate(
            [
                wave.plan.path(*place)[-len(read.targets) :]
                for place, (_, read) in zip(places, asked, strict=True)
            ]
        )
        with nullcontext() if norms is None else norms.of(model, wave):
            wave.walk.up(model.cfg.n_layers, wanted=numbers, count=wave.count)
        wave.walk.require_finite()
        targets = [step for _, read in asked for step in read.targets]
        slots = torch.from_numpy(numbers)
        read = _target_scores(model, wave.walk.stream, slots, targets, normalised=normalised, whole=False)
        found = iter(list(read))  # all of it, before any of it is kept
        for cell, each in asked:
            for _ in each.targets:
                scores[cell, each.question, list(each.choices)] += next(found)

    normalised = mass or not plan.read_together
    fed = any(len(read.ids) > len(plan.prompts[read.question]) for read in plan.reads)
    options = {"memory": memory, "tick": tick, "generating": fed, "allow_empty": allow_empty, "clean": clean}
    in_waves(model, rows, cells, score, **options)


def _score_plainly(
    model: Any,
    plan: ChoicePlan,
    operations: Sequence[Operation],
    scores: Float[np.ndarray, "question 2"],
    tick: Tick,
    options: Mapping[str, bool],
) -> None:
    """One cell by whole forward passes: the oracle."""
    for batch in batches([read.ids for read in plan.reads], device=input_device(model)):
        reads = [plan.reads[row] for row in batch.rows]
        prompts = [plan.prompts[read.question] for read in reads]
        fed = any(len(read.ids) > len(prompt) for read, prompt in zip(reads, prompts, strict=True))
        numbers = [read.question for read in reads]
        with steer(model, *operations, prompts=prompts, numbers=numbers, generating=fed, **options):
            stream = residual(model, batch)
        width = stream.shape[1]
        numbers = [
            (row + 1) * width - len(read.targets) + step
            for row, read in enumerate(reads)
            for step in range(len(read.targets))
        ]
        targets = [step for read in reads for step in read.targets]
        slots = torch.tensor(numbers)
        found = iter(_target_scores(model, stream.flatten(0, 1), slots, targets, normalised=True, whole=True))
        for read in reads:
            for _ in read.targets:
                scores[read.question, list(read.choices)] += next(found)
        tick(len(reads) / len(plan.reads))


def _columns(scores: Float[np.ndarray, "question 2"], mass: bool) -> pd.DataFrame:
    differences = scores[:, 0] - scores[:, 1]
    return pd.DataFrame(
        {
            "logit_difference": differences,
            "probability": (1 + np.tanh(differences / 2)) / 2,  # the logistic function, without overflow
            "mass": np.exp(scores).sum(-1) if mass else np.nan,
        }
    )


def _continuation(model: Any, prompt: Prompt, ids: list[int], choice: str) -> list[int]:
    """The prompt's ids, and those the choice adds."""
    text = (
        prompt if isinstance(prompt, str) else model.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    )
    whole = encode(model, text + choice)  # the last of a choice need not fit the context
    if whole[: len(ids)] == ids and len(whole) > len(ids):
        return whole
    # The two run together in one token: the prompt stays what the model is asked.
    added = _alone(model.tokenizer, choice)
    if not added:
        raise ValueError(f"the choice {choice!r} has no tokens.")
    return [*ids, *added]


def _alone(tokenizer: Any, choice: str) -> list[int]:
    """The ids of a choice that follows something: SentencePiece puts a "▁" where a text begins."""
    line, both, bare = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", f"\n{choice}", choice)
    )
    return both[len(line) :] if both[: len(line)] == line else bare


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


def _target_scores(
    model: Any,
    stream: Float[Tensor, "slot d_model"],
    slots: Int[Tensor, " read"],
    targets: Sequence[tuple[int, ...]],
    *,
    normalised: bool,
    whole: bool,
) -> Iterator[list[float]]:
    """The targets' log-probabilities at each slot; their bare logits where nothing else is wanted.

    `whole` takes them from the model's own unembedding, as a pass of it would.
    """
    for start in range(0, len(targets), LOGIT_ROWS):
        part = targets[start : start + LOGIT_ROWS]
        here = stream[slots[start : start + LOGIT_ROWS].to(stream.device)]
        tokens = pad_sequence([torch.tensor(each) for each in part], batch_first=True).to(stream.device)
        if whole:
            logits = logits_of(model, here)
            found, total = logits.gather(1, tokens), logits.logsumexp(-1)
        else:
            found = logits_at(model, here, tokens)
            total = log_normaliser(model, here) if normalised else torch.zeros(len(here))
        # On the CPU: MPS has no float64.
        found = (found.cpu().double() - total.cpu().double()[:, None]).tolist()
        yield from (row[: len(each)] for row, each in zip(found, part, strict=True))
