"""Checks of what is read: against Hugging Face, in batches, under padding, and by the engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._capture import capture
from .._generation import Decoding, generate, write_cells
from .._scoring import choice_logits, plan_choices, score_cells
from ..engine.support import obstacle
from ..interventions import Add, Operation, steer
from ..models import exclusive, identify, is_bridge, probe_difference
from ..positions import all_tokens
from .check import LENGTHS, NATS, Check, DoesNotApplyError, Finding, Worst, apart, logits_apart
from .context import Pass, Subject, as_batch, choices, reading, scored, shortfall


def equal_logits(subject: Subject) -> Finding:
    """Against the Hugging Face model: prompt by prompt, and on tokens that show scaled positions."""
    worst = Worst()
    for row, (mine, theirs) in enumerate(zip(subject.alone, _hugging_face(subject), strict=True)):
        width = theirs.logits.shape[-1]  # TransformerLens may know a larger vocabulary, never a smaller one
        worst.see(logits_apart(mine.logits[:, :width], theirs.logits), subject.named(row))
    off, allowed = probe_difference(subject.model, subject.hf_model)
    worst.see(LENGTHS[subject.dtype] * off / allowed, f"probe tokens: {off:.2g} nats, at most {allowed:.2g}")
    return worst.finding()


def equal_streams(subject: Subject) -> Finding:
    """`capture` at every layer against what the Hugging Face model's blocks give; the first that differs."""
    centred, worst = identify(subject.model).centred, Worst()
    for row, theirs in enumerate(_hugging_face(subject)):
        captured = capture(subject.model, [subject.ids[row]], positions=all_tokens()).values[0]
        for layer, stream in theirs.streams.items():
            stream = stream.float() - stream.float().mean(-1, keepdim=True) if centred else stream.float()
            share = apart(captured[layer], stream)
            if worst.measured <= LENGTHS[subject.dtype]:  # behind the first that differs, all do
                worst.see(share, f"layer {layer}, {subject.named(row)}")
    return worst.finding()


def equal_alone(subject: Subject) -> Finding:
    """`capture` of all prompts in padded batches, by whole passes, against each prompt alone."""
    subject.require_lengths()
    layers = subject.layers
    captured = capture(subject.model, subject.ids, positions=all_tokens(), layers=layers, reuse=False)
    worst = Worst()
    for row, expected in enumerate(subject.alone):
        for place, layer in enumerate(layers):
            stream = expected.streams[layer].float()
            share = apart(captured.values[row, place, : len(stream)], stream)
            worst.see(share, f"layer {layer}, {subject.named(row)}")
    return worst.finding()


def equal_padded(subject: Subject) -> Finding:
    """The model's own forward on a padded batch with a mask, left and right, against each prompt alone."""
    subject.require_lengths()
    width, worst = max(map(len, subject.ids)), Worst()
    for side in ("left", "right"):
        gaps = [width - len(ids) for ids in subject.ids]
        starts = [gap if side == "left" else 0 for gap in gaps]
        mask = torch.zeros(len(gaps), width, dtype=torch.long)
        tokens = torch.zeros_like(mask)
        for row, (start, ids) in enumerate(zip(starts, subject.ids, strict=True)):
            mask[row, start : start + len(ids)] = 1
            tokens[row, start : start + len(ids)] = torch.tensor(ids)
        tokens, mask = (as_batch(subject.model, each.tolist()) for each in (tokens, mask))
        with torch.no_grad():
            logits = subject.model(tokens, attention_mask=mask).float().cpu()
        for row, (start, expected) in enumerate(zip(starts, subject.alone, strict=True)):
            here = logits[row, start : start + len(expected.logits)]
            worst.see(logits_apart(here, expected.logits), f"padded on the {side}, {subject.named(row)}")
    return worst.finding()


def equal_sides(subject: Subject) -> Finding:
    """`capture`, `choice_logits` and `generate` whatever the tokenizer's padding side says."""
    subject.require_lengths()
    if subject.model.tokenizer is None:
        raise DoesNotApplyError("the model has no tokenizer, and so no padding side.")
    options, found = {"max_new_tokens": subject.new_tokens, "return_tokens": True}, []
    for side in ("left", "right"):
        with _padding_side(subject.model.tokenizer, side):
            stream = capture(subject.model, subject.ids, layers=subject.layers, reuse=False).values
            found.append((stream, generate(subject.model, subject.ids, **options)))
    (left, written), (right, rewritten) = found
    worst = Worst()
    for row in range(len(subject.ids)):
        other = "" if written[row] == rewritten[row] else ": the texts differ"
        worst.see(torch.inf if other else apart(left[row], right[row]), subject.named(row) + other)
    return worst.finding()


def equal_choices(subject: Subject) -> Finding:
    """`choice_logits` against the log-softmax of the model's own logits, with the shortcuts and without."""
    pair, ids = choices(subject)
    worst = Worst()
    for reuse in (True, False):
        table = choice_logits(subject.model, subject.ids, pair, reuse=reuse)
        table = table.assign(**{"log mass": np.log(table["mass"].clip(lower=1e-30))})
        for row, expected in enumerate(subject.alone):
            for name, value in scored(expected.logits[-1], ids).items():
                worst.see(abs(table.loc[row, name] - value), f"{name}, {subject.named(row)}")
    return worst.finding()


def equal_reuse(subject: Subject) -> Finding:
    """The engine's shortcuts against whole passes, steered at several layers: streams, and greedy tokens."""
    if reason := obstacle(subject.model):
        raise DoesNotApplyError(f"every cell is run whole here, because {reason}.")
    worst = Worst()
    for layer in subject.layers:
        operation = Add(subject.vector(layer, dose=0.3))
        one, other = (
            capture(subject.model, subject.ids, operation, positions=all_tokens(), reuse=reuse)
            for reuse in (True, False)
        )
        for row, ids in enumerate(subject.ids):
            share = apart(one.values[row, :, : len(ids)], other.values[row, :, : len(ids)])
            worst.see(share, f"steered at layer {layer}, {subject.named(row)}")
    return worst.finding()


def equal_reuse_texts(subject: Subject) -> Finding:
    """What the engine writes, steered, against the next tokens of whole passes over the same text."""
    if reason := obstacle(subject.model):
        raise DoesNotApplyError(f"every cell is run whole here, because {reason}.")
    worst, cells = Worst(), _cells(subject)
    decoding = Decoding(max_new_tokens=subject.new_tokens)
    written = write_cells(subject.model, subject.ids, list(cells.values()), decoding)
    for (told, operations), texts in zip(cells.items(), written, strict=True):
        for row, (ids, new) in enumerate(zip(subject.ids, texts, strict=True)):
            logits = _under(subject, operations, ids, new[:-1])
            worst.see(shortfall(logits, len(ids), new), f"{told}, {subject.named(row)}")
    return worst.finding()


def equal_cells(subject: Subject) -> Finding:
    """Several cells of a sweep, run together, against the log-softmax of steered passes of each alone."""
    if reason := obstacle(subject.model):
        raise DoesNotApplyError(f"every cell is run whole here, because {reason}.")
    (pair, tokens), worst, cells = choices(subject), Worst(), _cells(subject)
    plan = plan_choices(subject.model, subject.ids, [pair] * len(subject.ids))
    together = score_cells(subject.model, plan, list(cells.values()))
    for (told, operations), table in zip(cells.items(), together, strict=True):
        for row, ids in enumerate(subject.ids):
            expected = scored(_under(subject, operations, ids)[-1], tokens)["logit_difference"]
            worst.see(abs(table["logit_difference"][row] - expected), f"{told}, {subject.named(row)}")
    return worst.finding()


def _cells(subject: Subject) -> dict[str, tuple[Operation, ...]]:
    """Cells that share what they can: unsteered, and two multipliers at the first layer, the last, both."""
    first, last = subject.layers[0], subject.layers[-1]
    return {"unsteered": ()} | {
        f"steered at {' and '.join(f'layer {layer}' for layer in places)}, {multiplier:+g}": tuple(
            Add(subject.vector(layer, dose=0.3), multiplier) for layer in places
        )
        for places in dict.fromkeys([(first,), (last,), tuple(dict.fromkeys((first, last)))])
        for multiplier in (1.0, -1.0)
    }


def _under(
    subject: Subject, operations: Sequence[Operation], ids: Sequence[int], fed: Sequence[int] = ()
) -> Float[Tensor, "pos d_vocab"]:
    """The model's own logits of one prompt, and of what it has written, steered."""
    with torch.no_grad(), steer(subject.model, *operations, prompts=[ids]):
        return subject.model(as_batch(subject.model, [[*ids, *fed]]))[0].float().cpu()


def equal_inputs(subject: Subject) -> Finding:
    """What a block is given against what the one before it gave."""
    layers = [layer for layer in subject.layers if layer]
    if not layers:
        raise DoesNotApplyError("the model has a single layer.")
    options = {"positions": all_tokens(), "layers": layers, "hook": "resid_pre", "reuse": False}
    worst = Worst()
    for row, expected in enumerate(subject.alone):
        given = capture(subject.model, [subject.ids[row]], **options).values[0]
        for place, layer in enumerate(layers):
            share = apart(given[place], expected.streams[layer - 1].float())
            worst.see(share, f"layer {layer}, {subject.named(row)}")
    return worst.finding()


def _hugging_face(subject: Subject) -> list[Pass]:
    """Each prompt alone through the Hugging Face model; streams are what its blocks give, not yet normed."""
    hf_model = subject.hf_model
    if hf_model is None:
        raise DoesNotApplyError(
            "there is nothing to compare with: pass hf_model=…, the same weights loaded by transformers."
        )
    if is_bridge(subject.model) and _share(hf_model, subject.model.original_model):
        raise DoesNotApplyError(
            "hf_model is the very model that the bridge was put into, so that nothing would be compared: "
            "pass another copy of the same weights."
        )
    if any(module.training for module in hf_model.modules()):
        raise DoesNotApplyError(
            "hf_model is in training mode, where dropout may be on: hf_model.eval() first."
        )
    passes = []
    with exclusive(hf_model, evaluation=False):
        for ids in subject.ids:
            given = torch.tensor([ids], device=hf_model.device)
            with torch.no_grad(), reading(_blocks(hf_model, subject.model.cfg.n_layers)) as streams:
                logits = hf_model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
            passes.append(Pass(logits.float().cpu(), streams))
    return passes


def _share(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have a weight in common, not only its numbers."""
    held = set(map(id, one.parameters()))
    return any(id(weight) in held for weight in other.parameters())


def _blocks(hf_model: Any, count: int) -> nn.ModuleList:
    lists = [module for module in hf_model.modules() if isinstance(module, nn.ModuleList)]
    for blocks in lists:
        if len(blocks) == count:
            return blocks
    raise ValueError(
        f"{type(hf_model).__name__} has no list of {count} blocks: hf_model=… is another model than this one."
    )


@contextmanager
def _padding_side(tokenizer: Any, side: str) -> Iterator[None]:
    before = tokenizer.padding_side
    tokenizer.padding_side = side
    try:
        yield
    finally:
        tokenizer.padding_side = before


_LENGTH = "of the stream's length"
CHECKS = (
    Check(
        "logits equal Hugging Face's",
        "of the logits' length",
        "The model predicts what transformers predicts with the same weights. Where not, the weights "
        "were converted wrongly, and every number is another model's.",
        equal_logits,
        LENGTHS,
    ),
    Check(
        "streams equal Hugging Face's",
        _LENGTH,
        "capture reads at each layer what that block of transformers gives. Where not, a vector made "
        "here means something else there, or layers are counted from elsewhere.",
        equal_streams,
        LENGTHS,
    ),
    Check(
        "layers follow one another",
        _LENGTH,
        "resid_pre of a layer is resid_post of the one before. Where not, a vector read at one hook does "
        "not belong at the other.",
        equal_inputs,
        LENGTHS,
    ),
    Check(
        "a batch equals its prompts alone",
        _LENGTH,
        "What is captured of a prompt does not depend on the others beside it. Where not, the model "
        "ignores the attention mask, and padding leaks into every batched number.",
        equal_alone,
        LENGTHS,
    ),
    Check(
        "padding with a mask changes nothing",
        "of the logits' length",
        "The model's own forward, given a mask, is the same padded on the left, on the right, and alone. "
        "Where not, your own batches are wrong, inside `with steer(…)` too.",
        equal_padded,
        LENGTHS,
    ),
    Check(
        "the padding side does not matter",
        _LENGTH,
        "Our functions give the same whatever tokenizer.padding_side says. Where not, two notebooks with "
        "the same code disagree.",
        equal_sides,
        LENGTHS,
    ),
    Check(
        "choices are the model's own",
        "nats",
        "choice_logits is the log-softmax of the model's own logits at the prompt's last token. Where "
        "not, logit differences and probability mass are wrong.",
        equal_choices,
        NATS,
    ),
    Check(
        "shortcuts equal whole passes",
        _LENGTH,
        "The engine, which computes once what cells share, gives the streams that whole forward passes "
        "give. Where not, pass reuse=False everywhere, and report it.",
        equal_reuse,
        LENGTHS,
    ),
    Check(
        "shortcuts write the same tokens",
        "nats below the best token",
        "What the engine writes under an operation is what greedy whole passes choose. Where not, pass "
        "reuse=False to generate and sweep, and report it.",
        equal_reuse_texts,
        NATS,
    ),
    Check(
        "cells together equal cells alone",
        "nats",
        "A sweep's cells, which share passes, prefer what each cell's own whole passes prefer. Where not, "
        "one cell leaks into another: pass reuse=False to sweep, and report it.",
        equal_cells,
        NATS,
    ),
)
