"""Lower bound on the time of a job: required operations, and the machine's rate.

The count, without the engine: every distinct prefix of the prompts is one position. Unsteered, all blocks run
on each position; in a condition, the blocks after the steered layer, on each position or, where only the last
token is steered, on each prompt's last. All blocks run on every new token but the last, per condition. Logits
are computed where they are read. Norms, rotations, softmax and data movement are left out.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from .jobs import OURS, Job

ROWS, WIDTH, OUT = 1024, 576, 1536  # the embedded model's MLP, at full utilisation
TRIALS = 60


def matrix_rates() -> list[float]:
    """Operations per second of one matrix product, per trial."""
    rows, weight = torch.randn(ROWS, WIDTH), torch.randn(OUT, WIDTH)
    torch.nn.functional.linear(rows, weight)
    rates = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        rates.append(2 * ROWS * WIDTH * OUT / (time.perf_counter() - start))
    return rates


def operations(cfg: Any, job: Job, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Operations (two per multiply-add) of the unsteered condition and all others.

    `full` counts every required block on every required position; `pruned` leaves out, in the last block,
    everything but keys and values at positions that are not read.
    """
    above = [cfg.n_layers - (layer + 1) for layer, _ in job.conditions(OURS)]
    positions, runs, is_last = prefixes(prompts), 1 + len(above), job.positions == "last"
    whole = sum(_token(cfg, len(prefix)) for prefix in positions)
    steered = sum(_token(cfg, len(prompt)) for prompt in prompts) if is_last else whole
    fed = sum(_token(cfg, len(prompt) + new) for prompt in prompts for new in range(1, job.new_tokens))
    reads = runs * len(prompts) * {"capture": 0, "choice": 1, "generate": job.new_tokens}[job.measure]
    logits = 2 * cfg.d_model * cfg.d_vocab * reads
    full = whole * cfg.n_layers + steered * sum(above) + fed * cfg.n_layers * runs + logits
    unread = positions - {tuple(prompt) for prompt in prompts}
    pruned = sum(_token(cfg, len(prefix)) - _keys_and_values(cfg) for prefix in unread)
    return {
        "positions": len(positions),
        "tokens": sum(map(len, prompts)),
        "full": float(full),
        "pruned": float(full - pruned * (1 if is_last else 1 + sum(map(bool, above)))),
    }


def ratios(
    work: dict[str, float], before: list[float], after: list[float], seconds: float
) -> dict[str, float]:
    """Measured seconds over the bound, with rates measured before and after the job in the same process."""
    typical, best = statistics.median([*before, *after]), max([*before, *after])
    return {
        **work,
        "rate_before": statistics.median(before),
        "rate_after": statistics.median(after),
        "rate": typical,
        "best_rate": best,
        "ratio": seconds * typical / work["full"],
        "ratio_pruned": seconds * typical / work["pruned"],
        "ratio_best_rate": seconds * best / work["full"],
    }


def prefixes(prompts: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """Distinct prefixes of the prompts."""
    return {tuple(prompt[:stop]) for prompt in prompts for stop in range(1, len(prompt) + 1)}


def _token(cfg: Any, context: int) -> int:
    """One block on one token that attends to `context` tokens, itself included."""
    heads = cfg.n_heads * cfg.d_head
    queries_and_output = 2 * cfg.d_model * heads
    mlp = (3 if cfg.gated_mlp else 2) * cfg.d_model * cfg.d_mlp
    attention = 2 * heads * context
    return _keys_and_values(cfg) + 2 * (queries_and_output + mlp + attention)


def _keys_and_values(cfg: Any) -> int:
    return 2 * 2 * cfg.d_model * (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
