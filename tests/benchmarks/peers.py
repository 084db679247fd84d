"""One measurement of a peer, in an environment of its own: `python -m benchmarks.peers JOB WHO FOLDER KEPT`.

hf: a forward hook on a Hugging Face decoder layer, set and taken away for each cell.
steering-vectors: its training on pairs; for a cell, its vector applied to the Hugging Face model.
repeng: its training on pairs, with the principal components that belong to it. Its vectors cannot be set at
one layer with one multiplier a cell without making the control model anew, so it sweeps nothing.

All take the same folder of weights in float32, the same prompts in batches padded on the left, and compute
logits only where they are read. Nothing of tl_steer is imported.
"""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from .jobs import PEER_BATCH, SIDES, VECTORS, Job, read_job, read_materials
from .measuring import Task, measure, report, surroundings, texts_array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("who", choices=["hf", "steering-vectors", "repeng"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("kept", type=Path, help="an .npz for what is compared")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)
    job, held = read_job(given.job, given.folder), read_materials(given.folder)
    model, tokenizer = load(held["model"])
    require_same_ids(tokenizer, held)
    task = TASKS[job.kind](model, tokenizer, job, given.who, held, np.load(given.folder / VECTORS))
    report({**measure(task, model, given.kept), **surroundings()})


def load(folder: str) -> tuple[Any, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def require_same_ids(tokenizer: Any, held: dict) -> None:
    """The libraries tokenize texts themselves: it has to come to what the other side reads."""
    prompts = [*held["questions"], *held["warm_questions"]]
    prompts += [each for key in ("pairs", "warm_pairs") for side in SIDES for each in held[key][side]]
    for prompt in prompts:
        if tokenizer(prompt["text"])["input_ids"] != prompt["ids"]:
            raise ValueError(f"other tokens than tl_steer's for {prompt['text']!r}.")


def capture_task(model: Any, tokenizer: Any, job: Job, who: str, held: dict, _vectors: Any) -> Task:
    trainer = {"hf": hooked_capture, "steering-vectors": trained_vector, "repeng": trained_control}[who]

    def texts(key: str, count: int) -> list[list[str]]:
        return [[each["text"] for each in held[key][side][:count]] for side in SIDES]

    run, keep = trainer(model, tokenizer)
    return Task(
        warm_up=lambda: run(*texts("warm_pairs", 2)),
        run=lambda: run(*texts("pairs", job.prompts)),
        keep=keep,
        cells=1,
    )


def hooked_capture(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    """The last token's stream behind each decoder layer, by hooks; no logits."""

    def run(positive: list[str], negative: list[str]) -> torch.Tensor:
        return torch.stack([torch.cat(list(side_batches(side))) for side in (positive, negative)])

    def side_batches(texts: list[str]) -> Iterator[torch.Tensor]:
        for batch in encoded(tokenizer, texts):
            found: list[torch.Tensor] = []
            handles = [
                layer.register_forward_hook(lambda _m, _i, out, kept=found: kept.append(last_of(out)))
                for layer in model.model.layers
            ]
            model.model(**batch, use_cache=False)
            for handle in handles:
                handle.remove()
            yield torch.stack(found, dim=1)

    return run, lambda found: {"values": found.numpy()}


def trained_vector(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    from steering_vectors import train_steering_vector

    def run(positive: list[str], negative: list[str]) -> Any:
        pairs = list(zip(positive, negative, strict=True))
        return train_steering_vector(model, tokenizer, pairs, batch_size=PEER_BATCH, read_token_index=-1)

    def keep(vector: Any) -> dict[str, np.ndarray]:
        found = vector.layer_activations
        return {"differences": torch.stack([found[layer] for layer in sorted(found)]).numpy()}

    return run, keep


def trained_control(model: Any, tokenizer: Any) -> tuple[Callable, Callable]:
    np.float_ = np.float64  # repeng 0.4.0 predates NumPy 2
    from repeng import ControlModel, ControlVector, DatasetEntry

    control = ControlModel(model, list(range(1, model.config.num_hidden_layers)))

    def run(positive: list[str], negative: list[str]) -> Any:
        entries = [DatasetEntry(*pair) for pair in zip(positive, negative, strict=True)]
        return ControlVector.train(control, tokenizer, entries, batch_size=PEER_BATCH, method="pca_center")

    return run, lambda _: {}


def choice_task(model: Any, tokenizer: Any, job: Job, who: str, held: dict, vectors: np.ndarray) -> Task:
    """The letters' logits at the last position, under one cell after the other."""
    first, second = held["letters"]

    def run(key: str, cells: list[tuple[int, float]]) -> torch.Tensor:
        texts = [each["text"] for each in held[key][: job.prompts]]
        rows = []
        for cell in cells:
            with steered(model, who, job.where, vectors, *cell):
                logits = [
                    model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1]
                    for batch in encoded(tokenizer, texts)
                ]
            rows.append(torch.cat([each[:, first] - each[:, second] for each in logits]))
        return torch.stack(rows)

    cells = job.cells(who)
    return Task(
        warm_up=lambda: run("warm_questions", cells[:1]),
        run=lambda: run("questions", cells),
        keep=lambda found: {"cells": np.array(cells), "values": found.numpy()},
        cells=len(cells),
    )


def generate_task(model: Any, tokenizer: Any, job: Job, who: str, held: dict, vectors: np.ndarray) -> Task:
    """Greedy tokens, under one cell after the other or once without steering."""

    def run(key: str, cells: list[tuple[int, float] | None]) -> list[torch.Tensor]:
        texts = [each["text"] for each in held[key][: job.prompts]]
        rows = []
        for cell in cells:
            with steered(model, who, job.where, vectors, *(cell or ())):
                rows.append(torch.cat([new_tokens(batch) for batch in encoded(tokenizer, texts)]))
        return rows

    def new_tokens(batch: Any) -> torch.Tensor:
        count = job.new_tokens
        found = model.generate(**batch, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return found[:, batch["input_ids"].shape[1] :]

    def keep(found: list[torch.Tensor]) -> dict[str, np.ndarray]:
        texts = [tokenizer.batch_decode(rows, skip_special_tokens=True) for rows in found]
        return {"cells": np.array(job.cells(who) or [(0, 0)]), "values": texts_array(texts)}

    cells = job.cells(who) or [None]
    return Task(
        warm_up=lambda: run("warm_questions", cells[:1]),
        run=lambda: run("questions", cells),
        keep=keep,
        cells=len(cells),
        tokens=lambda found: sum(rows.numel() for rows in found),
    )


@contextmanager
def steered(model: Any, who: str, where: str, vectors: np.ndarray, *cell: float) -> Iterator[None]:
    """A vector added behind one decoder layer while the block runs; without a cell, nothing."""
    if not cell:
        yield
        return
    layer, multiplier = cell
    vector = torch.from_numpy(vectors[layer])
    if who == "steering-vectors":
        from steering_vectors import SteeringVector

        with SteeringVector({layer: vector}, "decoder_block").apply(model, multiplier=multiplier):
            yield
        return

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        if where == "last":
            output = output.clone()
            output[:, -1] += multiplier * vector
            return output
        return output + multiplier * vector

    handle = model.model.layers[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def last_of(output: Any) -> torch.Tensor:
    return output[:, -1].clone()


def encoded(tokenizer: Any, texts: list[str]) -> Iterator[Any]:
    """Batches padded on the left."""
    for start in range(0, len(texts), PEER_BATCH):
        yield tokenizer(texts[start : start + PEER_BATCH], return_tensors="pt", padding=True)


TASKS = {"capture": capture_task, "choice": choice_task, "generate": generate_task}


if __name__ == "__main__":
    main()
