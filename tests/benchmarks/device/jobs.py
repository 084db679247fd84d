"""The benchmark's jobs in sizes for an accelerator, their prompts, and the contender transformers alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import tl_steer as ts
from tl_steer.models import ChatFormat

from ..jobs import LETTERS, OURS, SIDES, Condition, Job
from ..measuring import Task, texts_array
from ..ours import QUESTION, WARM

ALONE = "transformers"  # for sweeps `strong`, else its `generate`
FOUR = (-2.0, -1.0, 1.0, 2.0)  # multipliers of vectors about as long as a block's output
EIGHT = (*FOUR, -0.5, -0.25, 0.25, 0.5)
ROWS = 512  # per batch of transformers alone
SIZES = {False: (128, 128, 64, 16, 30), True: (3, 3, 3, 3, 4)}  # prompts by job, and new tokens; for a trial


def jobs_of(n_layers: int, *, is_trial: bool) -> tuple[Job, ...]:
    """All jobs, in the order in which they run."""
    pairs, last, every, texts, new = SIZES[is_trial]
    five = tuple(n_layers * tenth // 10 for tenth in (1, 3, 5, 7, 9))
    sample = {"sample_layers": five[::2], "sample_multipliers": FOUR[-1:], "repeats": 1 if is_trial else 3}
    grid = {"layers": five, "multipliers": FOUR, **sample}
    all_layers = {"layers": tuple(range(n_layers)), "multipliers": EIGHT, "positions": "last", **sample}
    return (
        Job("capture", "Capture", "capture", pairs, ()),
        Job("choice-last", "Choice sweep, last token", "choice", last, (ALONE,), **all_layers),
        Job("choice-all", "Choice sweep, every token", "choice", every, (ALONE,), **grid),
        Job("generate-sweep", "Generation sweep", "generate", texts, (ALONE,), new_tokens=new, **grid),
        Job("generate-one", "One generation", "generate", min(8, texts), (ALONE,), new_tokens=4 * new),
    )


def materials(tokenizer: Any, count: int) -> dict[str, Any]:
    """Pairs and questions about claims, as text and ids, and others for the warm-up; see `ours`."""
    chat = ChatFormat("llama-2", tokenizer)
    claims = ts.read_claims("claims_train")["statement"].tolist()

    def entries(answer: str, part: slice) -> list[dict[str, Any]]:
        texts = [chat.render(QUESTION.format(claim=each), answer_prefix=answer) for each in claims[part]]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]  # the format writes the BOS
        return [{"text": text, "ids": each} for text, each in zip(texts, ids, strict=True)]

    data = {"letters": tokenizer.convert_tokens_to_ids(list(LETTERS))}
    for prefix, part in (("", slice(count)), ("warm_", slice(-WARM, None))):
        sides = {side: entries(f"Answer: ({a}", part) for side, a in zip(SIDES, LETTERS, strict=True)}
        data |= {f"{prefix}pairs": sides, f"{prefix}questions": entries("Answer: (", part)}
    return data


def alone(bench: Any, job: Job) -> Task:
    """A job by transformers alone, on `bench.model`, a Hugging Face model."""
    conditions, count = job.conditions(OURS), job.new_tokens
    is_text, is_last = job.measure == "generate", job.positions == "last"

    def run(key: str, conditions: list[Condition]) -> torch.Tensor:
        from .. import strong

        ids = [entry["ids"] for entry in bench.data[key][: job.prompts]]
        if not conditions:
            batch = bench.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(bench.device)
            options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
            return bench.model.generate(**batch, **options)[None, :, -count:]
        if is_text:
            return strong.generate(bench.model, ids, bench.vectors, conditions, count, rows=ROWS)
        arguments = bench.model, ids, bench.data["letters"], bench.vectors, conditions
        return strong.choice_last(*arguments) if is_last else strong.choice_every(*arguments, rows=ROWS)

    def arrays(values: torch.Tensor) -> dict[str, np.ndarray]:
        values = texts_array(map(id_texts, values.tolist())) if is_text else values.float().cpu().numpy()
        return {"conditions": np.array(conditions or [(0, 0)]), "values": values}

    return Task(
        warm_up=lambda: run("warm_questions", conditions[:1]),
        run=lambda: run("questions", conditions),
        arrays=arrays,
        conditions=len(conditions) or 1,
        tokens=lambda values: values.numel() if is_text else 0,
    )


def id_texts(rows: Sequence[Sequence[int]]) -> list[str]:
    """Token ids as texts, so that different ones never read alike."""
    return [" ".join(map(str, row)) for row in rows]
