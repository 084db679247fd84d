"""What the choice sweep at every token must compute, counted without the engine, against the machine's rate.

The count: every distinct beginning of the prompts has one position to compute. Without steering all blocks
run on each; in a cell the blocks behind the steered layer do. To that come the logits of each prompt's last
position, in every cell. Norms, rotations and softmax are left out, and so is everything that moves data.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

JOB = "choice-all"
ROWS, WIDTH, OUT = 1024, 576, 1536  # the embedded model's own MLP on a batch that fills the machine
TRIALS = 60


def matrix_rates() -> list[float]:
    """Operations a second of one matrix product, trial by trial."""
    rows, weight = torch.randn(ROWS, WIDTH), torch.randn(OUT, WIDTH)
    torch.nn.functional.linear(rows, weight)
    rates = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weight)
        rates.append(2 * ROWS * WIDTH * OUT / (time.perf_counter() - start))
    return rates


def operations(
    cfg: Any, prompts: Sequence[Sequence[int]], cells: Sequence[tuple[int, float]]
) -> dict[str, float]:
    """Operations (two for each multiplication and addition) of the unsteered pass and of all cells.

    `full` runs each block that has to run on every distinct position; `pruned` leaves out, in the last
    block, what only unread positions would need: all but their keys and values.
    """
    positions = distinct(prompts)
    blocks = [cfg.n_layers] + [cfg.n_layers - (layer + 1) for layer, _ in cells]
    block = sum(_token(cfg, len(prefix)) for prefix in positions)
    unread = positions - {tuple(prompt) for prompt in prompts}
    spared = sum(_token(cfg, len(prefix)) - _keys_and_values(cfg) for prefix in unread)
    logits = 2 * cfg.d_model * cfg.d_vocab * len(prompts) * len(blocks)
    full = block * sum(blocks) + logits
    return {
        "positions": len(positions),
        "tokens": sum(map(len, prompts)),
        "full": float(full),
        "pruned": float(full - spared * sum(1 for count in blocks if count)),
    }


def described(
    work: dict[str, float], before: list[float], after: list[float], seconds: float
) -> dict[str, float]:
    """Seconds against those the work would take at the machine's rate, around the job in the same process."""
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


def distinct(prompts: Sequence[Sequence[int]]) -> set[tuple[int, ...]]:
    """Every beginning of every prompt, once."""
    return {tuple(prompt[:stop]) for prompt in prompts for stop in range(1, len(prompt) + 1)}


def _token(cfg: Any, seen: int) -> int:
    """One block on one token that attends to `seen` tokens, itself among them."""
    heads = cfg.n_heads * cfg.d_head
    queries_and_output = 2 * cfg.d_model * heads
    mlp = (3 if cfg.gated_mlp else 2) * cfg.d_model * cfg.d_mlp
    attention = 2 * heads * seen
    return _keys_and_values(cfg) + 2 * (queries_and_output + mlp + attention)


def _keys_and_values(cfg: Any) -> int:
    kept = (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    return 2 * 2 * cfg.d_model * kept
