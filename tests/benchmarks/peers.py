"""A measurement of a peer, in its own environment: `python -m benchmarks.peers JOB CONTENDER FOLDER OUTPUT`.

hf: a forward hook on a Hugging Face decoder layer, set and removed per condition.
steering-vectors: its training on pairs; per condition, its vector applied to the Hugging Face model.
repeng: its training on pairs, including its principal components. It cannot set a vector at one layer with
one multiplier per condition without a new control model, so it runs no sweep.
transformers, written for sweeps: the functions of `strong`.

All use the same model folder in float32, the same prompts in padded batches, and compute logits only
where they are read. Nothing of tl_steer is imported.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from . import strong
from .jobs import PEER_BATCH, SIDES, STRONG, VECTORS, Condition, Job, read_job, read_materials
from .measuring import Task, environment, measure, report, texts_array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("contender", choices=["hf", "steering-vectors", "repeng", STRONG])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path, help="an .npz with the arrays to compare")
    args = parser.parse_args()
    job, data = read_job(args.job, args.folder), read_materials(args.folder)
    model, tokenizer = load(data["model"])
    require_same_ids(tokenizer, data)
    task_of = strong_task if args.contender == STRONG else TASKS[job.measure]
    task = task_of(model, tokenizer, job, args.contender, data, np.load(args.folder / VECTORS))
    report({**measure(task, model, args.output), **environment()})


def load(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer, quietly and without gradients."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def require_same_ids(tokenizer: Any, data: dict) -> None:
    """The libraries tokenize texts themselves; the ids must equal tl_steer's."""
    prompts = [*data["questions"], *data["warm_questions"]]
    prompts += [each for key in ("pairs", "warm_pairs") for side in SIDES for each in data[key][side]]
    for prompt in prompts:
        if tokenizer(prompt["text"])["input_ids"] != prompt["ids"]:
            raise ValueError(f"other tokens than tl_steer's for {prompt['text']!r}.")


def capture_task(model: Any, tokenizer: Any, job: Job, contender: str, data: dict, _vectors: Any) -> Task:
    trainer = {"hf": hooked_capture, "steering-vectors": trained_vector, "repeng": trained_control}[contender]

    def texts(key: str, count: int) -> list[list[str]]:
        return [[each["text"] for each in data[key][side][:count]] for side in SIDES]

    run, arrays = trainer(model, tokenizer)
    return Task(
        warm_up=lambda: run(*texts("warm_pairs", 2)),
        run=lambda: run(*texts("pairs", job.prompts)),
        arrays=arrays,
        conditions=1,
    )


def hooked_capture(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    """Residual stream of the last token after each decoder layer, by hooks; no logits."""

    def run(positive: list[str], negative: list[str]) -> torch.Tensor:
        return torch.stack([torch.cat(list(side_batches(side))) for side in (positive, negative)])

    def side_batches(texts: list[str]) -> Iterator[torch.Tensor]:
        for batch in encoded(tokenizer, texts):
            outputs: list[torch.Tensor] = []
            handles = [
                layer.register_forward_hook(lambda _m, _i, out, o=outputs: o.append(out[:, -1].clone()))
                for layer in model.model.layers
            ]
            model.model(**batch, use_cache=False)
            for handle in handles:
                handle.remove()
            yield torch.stack(outputs, dim=1)

    return run, lambda values: {"values": values.numpy()}


def trained_vector(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    from steering_vectors import train_steering_vector

    def run(positive: list[str], negative: list[str]) -> Any:
        pairs = list(zip(positive, negative, strict=True))
        return train_steering_vector(model, tokenizer, pairs, batch_size=PEER_BATCH, read_token_index=-1)

    def arrays(vector: Any) -> dict[str, np.ndarray]:
        values = [value for _, value in sorted(vector.layer_activations.items())]
        return {"differences": torch.stack(values).numpy()}

    return run, arrays


def trained_control(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    np.float_ = np.float64  # repeng 0.4.0 predates NumPy 2
    from repeng import ControlModel, ControlVector, DatasetEntry

    control = ControlModel(model, list(range(1, model.config.num_hidden_layers)))

    def run(positive: list[str], negative: list[str]) -> Any:
        entries = [DatasetEntry(*pair) for pair in zip(positive, negative, strict=True)]
        return ControlVector.train(control, tokenizer, entries, batch_size=PEER_BATCH, method="pca_center")

    return run, lambda _: {}


def choice_task(
    model: Any, tokenizer: Any, job: Job, contender: str, data: dict, vectors: np.ndarray
) -> Task:
    """Difference of the letters' logits at the last position, one condition at a time."""
    first, second = data["letters"]

    def run(key: str, conditions: list[Condition]) -> torch.Tensor:
        texts = [each["text"] for each in data[key][: job.prompts]]
        rows = []
        for condition in conditions:
            with steered(model, contender, job.positions, vectors, *condition):
                logits = [
                    model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1]
                    for batch in encoded(tokenizer, texts)
                ]
            rows.append(torch.cat([each[:, first] - each[:, second] for each in logits]))
        return torch.stack(rows)

    conditions = job.conditions(contender)
    return Task(
        warm_up=lambda: run("warm_questions", conditions[:1]),
        run=lambda: run("questions", conditions),
        arrays=lambda values: {"conditions": np.array(conditions), "values": values.numpy()},
        conditions=len(conditions),
    )


def generate_task(
    model: Any, tokenizer: Any, job: Job, contender: str, data: dict, vectors: np.ndarray
) -> Task:
    """Greedy tokens, one condition at a time or once without steering."""

    def run(key: str, conditions: list[Condition | None]) -> list[torch.Tensor]:
        texts = [each["text"] for each in data[key][: job.prompts]]
        rows = []
        for condition in conditions:
            with steered(model, contender, job.positions, vectors, *(condition or ())):
                rows.append(torch.cat([new_tokens(batch) for batch in encoded(tokenizer, texts)]))
        return rows

    def new_tokens(batch: Any) -> torch.Tensor:
        count = job.new_tokens
        tokens = model.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return tokens[:, batch["input_ids"].shape[1] :]

    def arrays(batches: list[torch.Tensor]) -> dict[str, np.ndarray]:
        conditions = np.array(job.conditions(contender) or [(0, 0)])
        return {"conditions": conditions, "values": decoded(tokenizer, batches)}

    conditions = job.conditions(contender) or [None]
    return Task(
        warm_up=lambda: run("warm_questions", conditions[:1]),
        run=lambda: run("questions", conditions),
        arrays=arrays,
        conditions=len(conditions),
        tokens=lambda batches: sum(rows.numel() for rows in batches),
    )


def strong_task(
    model: Any, tokenizer: Any, job: Job, contender: str, data: dict, vectors: np.ndarray
) -> Task:
    """All conditions in one call, with the unsteered one as a multiplier of 0."""
    is_text = job.measure == "generate"

    def run(key: str, conditions: list[Condition]) -> torch.Tensor:
        prompts = tokenizer([each["text"] for each in data[key][: job.prompts]])["input_ids"]
        if is_text:
            return strong.generate(model, prompts, torch.from_numpy(vectors), conditions, job.new_tokens)
        choices = strong.choice_last if job.positions == "last" else strong.choice_every
        return choices(model, prompts, data["letters"], torch.from_numpy(vectors), conditions)

    def arrays(values: torch.Tensor) -> dict[str, np.ndarray]:
        array = decoded(tokenizer, values) if is_text else values.numpy()
        return {"conditions": np.array(conditions), "values": array}

    conditions = [*job.conditions(contender), (len(vectors) - 1, 0.0)]
    return Task(
        warm_up=lambda: run("warm_questions", conditions[:1]),
        run=lambda: run("questions", conditions),
        arrays=arrays,
        conditions=len(conditions),
        tokens=lambda values: values.numel() if is_text else 0,
    )


def decoded(tokenizer: Any, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Texts of each batch of token rows."""
    return texts_array([tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in batches])


@contextmanager
def steered(
    model: Any, contender: str, positions: str, vectors: np.ndarray, *condition: float
) -> Iterator[None]:
    """Add a vector after one decoder layer while the block runs; nothing without a condition."""
    if not condition:
        yield
        return
    layer, multiplier = condition
    vector = torch.from_numpy(vectors[layer])
    if contender == "steering-vectors":
        from steering_vectors import SteeringVector

        with SteeringVector({layer: vector}, "decoder_block").apply(model, multiplier=multiplier):
            yield
        return

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        if positions == "last":
            output = output.clone()
            output[:, -1] += multiplier * vector
            return output
        return output + multiplier * vector

    handle = model.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def encoded(tokenizer: Any, texts: list[str]) -> Iterator[Any]:
    """Left-padded batches."""
    for start in range(0, len(texts), PEER_BATCH):
        yield tokenizer(texts[start : start + PEER_BATCH], return_tensors="pt", padding=True)


TASKS = {"capture": capture_task, "choice": choice_task, "generate": generate_task}


if __name__ == "__main__":
    main()
