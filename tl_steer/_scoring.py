"""How much a model prefers one continuation of a prompt to another."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from ._util.logs import bar
from ._util.validation import checked
from .engine import CleanStreams, FinalStreams, Memory, Row, RunOptions, StreamNorms, final_streams
from .engine.logits import log_normaliser, logits_at, logits_of
from .engine.plain import DEFAULT_OPTIONS
from .interventions import Operation
from .models import HookedModel, Prompt, as_prompts, is_hooked, tokenize_all
from .models.tokenizing import encode
from .positions import PromptTokens

LOGIT_ROWS = 512  # positions whose logits are in memory at once


@dataclass(frozen=True)
class Read:
    """One sequence to run, and the log-probabilities to read at its last slots."""

    question: int  # the prompt's index
    ids: tuple[int, ...]  # the prompt, and the tokens of a choice that have to be fed
    targets: tuple[tuple[int, ...], ...]  # for each of the last slots, the next tokens that are scored
    choices: tuple[int, ...]  # the choice of each target


@dataclass(frozen=True)
class ChoicePlan:
    """Tokenized questions, to be scored under any number of conditions."""

    prompts: tuple[tuple[int, ...], ...]
    reads: tuple[Read, ...]

    @property
    def read_together(self) -> bool:
        """Whether both choices are always read at the same slots, so that their normaliser cancels."""
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
    tokens that it adds. Choice tokens that have to be fed count as generated for the operations' positions.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts or token lists.
        choices: a pair for each prompt, or one pair for all.
        operations: the model answers under these.
        mass: `False` leaves the column mass empty, and computes the whole vocabulary's logits only where the
            choices' own are not enough.
        allow_empty, force, progress, reuse, memory: as for `generate`.

    Returns:
        A row per prompt: prompt, logit_difference (first choice minus second, in nats), probability (of the
        first among the two), mass (the two choices' share of all probability: near 0 the rest means nothing).

    Raises:
        ValueError: choices that tokenize alike, or of which one is the beginning of the other; a prompt that,
            with its choices, does not fit the context; a model without a tokenizer.
    """
    prompts = as_prompts(prompts)
    pairs = [choices] * len(prompts) if isinstance(choices[0], str) else list(choices)
    plan = plan_choices(model, prompts, pairs)
    with bar("scoring choices", 1, visible=progress) as on_progress:
        options = RunOptions(reuse, memory, force, allow_empty, on_progress)
        (scores,) = score_conditions(model, plan, [operations], mass=mass, options=options)
    texts = [
        prompt if isinstance(prompt, str) else model.tokenizer.decode(list(prompt)) for prompt in prompts
    ]
    return pd.DataFrame({"prompt": texts}).join(scores)


def plan_choices(model: Any, prompts: Sequence[Prompt], choices: Sequence[tuple[str, str]]) -> ChoicePlan:
    """Tokenize questions, and list the sequences to run for each; raises as `choice_logits`."""
    if len(prompts) != len(choices):
        raise ValueError(
            f"{len(choices)} pairs of choices for {len(prompts)} prompts: expected one for each."
        )
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer: expected one, to tokenize the choices.")
    ids = tokenize_all(model, prompts)
    reads = []
    for question, (prompt, tokens, pair) in enumerate(zip(prompts, ids, choices, strict=True)):
        first, second = (_continuation(model, prompt, tokens, choice) for choice in pair)
        reads += _reads(question, len(tokens), pair, first, second)
    for read in reads:
        if len(read.ids) > model.cfg.n_ctx:
            raise ValueError(
                f"question {read.question}: {len(read.ids)} tokens of the prompt and its choices do not fit "
                f"the context of {model.cfg.n_ctx}: shorten the prompt."
            )
    return ChoicePlan(tuple(map(tuple, ids)), tuple(reads))


def score_conditions(
    model: Any,
    plan: ChoicePlan,
    conditions: Sequence[Sequence[Operation]],
    *,
    mass: bool = True,
    norms: StreamNorms | None = None,
    clean: CleanStreams | None = None,
    options: RunOptions = DEFAULT_OPTIONS,
) -> list[pd.DataFrame]:
    """`choice_logits` of tokenized questions under several conditions, without the column prompt.

    Args:
        norms: of the plan's reads; filled by the shared engine if a condition has no operations.
        clean: caches unsteered residual streams from call to call.
    """
    scores = np.zeros((len(conditions), len(plan.prompts), 2))
    prompts = [PromptTokens(len(ids), ids, model.tokenizer, i) for i, ids in enumerate(plan.prompts)]
    rows = [Row(read.ids, prompts[read.question]) for read in plan.reads]
    counts = [len(read.targets) for read in plan.reads]
    normalise = mass or not plan.read_together

    def score(streams: FinalStreams) -> None:
        reads = [(i, plan.reads[row]) for i in streams.conditions for row in streams.rows]
        targets = [step for _, read in reads for step in read.targets]
        # All of them before any is added: `score` may be called again after running out of memory.
        log_probs = iter(list(_target_scores(model, streams, targets, normalise=normalise)))
        for condition, read in reads:
            for _ in read.targets:
                scores[condition, read.question, list(read.choices)] += next(log_probs)

    final_streams(model, rows, counts, conditions, score, options, norms=norms, clean=clean)
    differences = scores[..., 0] - scores[..., 1]
    columns = {
        "logit_difference": differences,
        "probability": (1 + np.tanh(differences / 2)) / 2,  # the logistic function, without overflow
        "mass": np.exp(scores).sum(-1) if mass else np.full_like(differences, np.nan),
    }
    return [pd.DataFrame({name: each[i] for name, each in columns.items()}) for i in range(len(conditions))]


def _continuation(model: Any, prompt: Prompt, ids: list[int], choice: str) -> list[int]:
    """The prompt's ids, and those the choice adds."""
    tokenizer = model.tokenizer
    if not isinstance(prompt, str):
        prompt = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    whole = encode(model, prompt + choice)  # the last of a choice need not fit the context
    if whole[: len(ids)] == ids and len(whole) > len(ids):
        return whole
    # Prompt and choice merge in one token: the prompt keeps its own ids. The choice is tokenized after a line
    # break, since SentencePiece puts a "▁" where a text begins.
    line, both, bare = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("\n", f"\n{choice}", choice)
    )
    added = both[len(line) :] if both[: len(line)] == line else bare
    if not added:
        raise ValueError(f"the choice {choice!r} has no tokens.")
    return [*ids, *added]


def _reads(
    question: int, length: int, pair: tuple[str, str], first: list[int], second: list[int]
) -> list[Read]:
    """The sequences of one question of `length` tokens: one, if the choices differ in one token only."""
    shared = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    if shared is None:
        alike = "tokenize alike" if first == second else "begin alike, and one ends where the other continues"
        names = f"question {question}: the choices {pair[0]!r} and {pair[1]!r}"
        raise ValueError(f"{names} {alike}: expected choices that differ in a token.")
    if len(first) == len(second) == shared + 1:
        targets = tuple(zip(first[length:], second[length:], strict=True))
        return [Read(question, tuple(first[:-1]), targets, (0, 1))]
    return [
        Read(question, tuple(ids[:-1]), tuple((token,) for token in ids[length:]), (choice,))
        for choice, ids in enumerate((first, second))
    ]


def _target_scores(
    model: Any, streams: FinalStreams, targets: Sequence[tuple[int, ...]], *, normalise: bool
) -> Iterator[list[float]]:
    """The targets' log-probabilities at each slot; without `normalise`, the shared engine's bare logits.

    The plain loop and a bridge take them from the model's own unembedding.
    """
    slots = streams.slots.flatten().to(streams.stream.device)
    for start in range(0, len(targets), LOGIT_ROWS):
        part = targets[start : start + LOGIT_ROWS]
        stream = streams.stream[slots[start : start + LOGIT_ROWS]]
        tokens = pad_sequence([torch.tensor(each) for each in part], batch_first=True).to(stream.device)
        if streams.is_plain or not is_hooked(model):
            logits = logits_of(model, stream)
            scores, total = logits.gather(1, tokens), logits.logsumexp(-1)
        else:
            scores = logits_at(model, stream, tokens)
            total = log_normaliser(model, stream) if normalise else torch.zeros(len(stream))
        # On the CPU: MPS has no float64.
        scores = (scores.cpu().double() - total.cpu().double()[:, None]).tolist()
        yield from (row[: len(each)] for row, each in zip(scores, part, strict=True))
