"""Activations at chosen positions, layers and hooks, while the model reads or generates."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ._generation import Decoding, completion_text, decode, require_context, write_conditions
from ._util.logs import bar
from ._util.validation import checked
from .activations import Activations, PairedActivations
from .engine import Memory, Row, RunOptions, residual, run_conditions
from .engine.paths import path_of
from .engine.plain import Batch, no_progress
from .engine.recording import Recorder
from .engine.shared.chunking import Chunk
from .interventions import Operation, edits_of
from .models import (
    HookedModel,
    Layers,
    Prompt,
    as_prompts,
    exclusive,
    identify,
    resolve_layers,
    tokenize,
    tokenize_all,
)
from .models.tokenizing import warn_of_padding
from .positions import Positions, PositionTracker, PromptTokens, last_token
from .prompts import ContrastPairs

logger = logging.getLogger(__name__)


@checked
def capture(
    model: HookedModel,
    prompts: Prompt | Sequence[Prompt],
    *operations: Operation,
    positions: Positions | Mapping[int, Positions] | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    max_new_tokens: int = 0,
    completions: Prompt | Sequence[Prompt] | None = None,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> Activations:
    """Run prompts, and read a hook at the selected positions of some layers.

    Only the selected positions are kept, so memory does not grow with the prompts' length; blocks after the
    last layer that is read or steered do not run, and no logits are computed.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts or token lists.
        operations: the model reads, and generates, under these; the hook is read after them.
        positions: which tokens; by default `last_token()`. Or different ones per layer, in one run:
            `{5: token(2) | token(3), 17: current_token()}`. Then `token_index` and `tokens` have an axis of
            layers.
        layers: 0-based block indices, negatives from the end; by default all, or those of `positions`.
        hook: short hook name.
        max_new_tokens: generate (greedily) this many tokens, and read the hook there too. The last new token
            is never fed back and has no activation.
        completions: read these instead, one after each prompt, as though the model had just generated them:
            texts (tokenized alone, no special tokens added) or token lists (as they are). The last token of
            each is not fed back either; an empty one adds nothing to the prompt.
        allow_empty: accept prompts of which `positions`, or an operation's, select nothing.
        force, progress, reuse, memory: as for `generate`.

    Raises:
        EmptySelectionError: a prompt of which nothing is selected.
        NonFiniteError: an activation is NaN or infinite; names layer and prompt.
        HookDidNotFireError: a bridge's hook that its architecture's own blocks do not use.
        ValueError, IndexError: no prompts, an unknown hook, a layer out of range, `layers` other than those
            of `positions`; completions that are not one per prompt, or do not fit the context after it.

    To compare two runs token by token, let the second read what the first has generated:
    `capture(model, prompts, completions=steered.completion_tokens)`. The texts, `steered.completions`, lack
    the token that ended them, and may tokenize differently.
    """
    ids = tokenize_all(model, prompts)
    at = _positions_by_layer(positions, layers, model.cfg.n_layers)
    texts = _completion_tokens(model, ids, completions, max_new_tokens)
    tokens = [PromptTokens(len(each), tuple(each), model.tokenizer, row) for row, each in enumerate(ids)]
    for row, (prompt, text) in enumerate(zip(tokens, texts, strict=True)):
        n_new = max_new_tokens or len(text)
        require_context(model, [prompt.ids], n_new)
        for each in () if allow_empty else dict.fromkeys(at.values()):
            each.require_some(prompt, f"prompt {row}", generating=n_new > 1)
    recorder = Recorder(at, hook, tokens)
    started = time.monotonic()
    with bar("capturing", 1, visible=progress) as on_progress, exclusive(model):
        options = RunOptions(reuse, memory, force, allow_empty, on_progress)
        texts = _record(model, recorder, texts, operations, max_new_tokens, options)
    by_layer = isinstance(positions, Mapping)
    positions = at if by_layer else next(iter(at.values()))
    new_text = {}
    if max_new_tokens or completions is not None:
        written = texts if completions is None else completions
        decode = str if model.tokenizer is None else partial(completion_text, model)
        new_text["completions"] = _as_text(written, texts, decode)
        new_text["completion_tokens"] = tuple(map(tuple, texts))
    log_args = (hook, len(ids), positions, len(at), time.monotonic() - started)
    logger.info("captured %s of %d prompts at %s of %d layers in %.1f s", *log_args)
    return Activations(
        **recorder.assembled([prompt + text for prompt, text in zip(ids, texts, strict=True)], by_layer),
        prompt_lengths=torch.tensor([len(prompt) for prompt in ids]),
        layers=tuple(at),
        hook=hook,
        positions=positions,
        prompts=_as_text(prompts, ids, getattr(model.tokenizer, "decode", str)),
        identity=identify(model),
        under=tuple(
            f"{edit.described}, {edit.hook}, {edit.positions}"
            for edit in edits_of(operations, model.cfg.n_layers)
        ),
        **new_text,
    )


@checked
def capture_pairs(
    model: HookedModel,
    pairs: ContrastPairs,
    *operations: Operation,
    positions: Positions | Mapping[int, Positions] | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    max_new_tokens: int = 0,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> PairedActivations:
    """`capture` of both sides of contrast pairs; the stream norm is that of both together.

    Args:
        pairs: from `contrast_pairs` or `honesty_pairs`.

    The other arguments, and what is raised, are those of `capture`.
    """
    where = {"positions": positions, "layers": layers, "hook": hook, "max_new_tokens": max_new_tokens}
    options = {"allow_empty": allow_empty, "force": force, "progress": progress}
    prompts, count = [*pairs.positive, *pairs.negative], len(pairs)
    both = capture(model, prompts, *operations, **where, **options, reuse=reuse, memory=memory)
    sides = both.subset(range(count)), both.subset(range(count, 2 * count))
    return PairedActivations(*sides, pairs.factors)


def _positions_by_layer(
    positions: Positions | Mapping[int, Positions] | None, layers: Layers, n_layers: int
) -> dict[int, Positions]:
    """The positions to read at each layer, in the order of the layers."""
    if not isinstance(positions, Mapping):
        positions = last_token() if positions is None else positions
        return dict.fromkeys(resolve_layers(layers, n_layers), positions)
    own = resolve_layers(list(positions), n_layers)
    if layers is not None and (others := resolve_layers(layers, n_layers)) != own:
        raise ValueError(
            f"layers={list(others)} and positions of the layers {list(own)}: expected the same layers in the "
            "same order. Leave layers out."
        )
    return dict(zip(own, positions.values(), strict=True))


def _record(
    model: Any,
    recorder: Recorder,
    texts: list[list[int]],
    operations: Sequence[Operation],
    max_new_tokens: int,
    options: RunOptions,
) -> list[list[int]]:
    """Record every prompt, followed by its text or by generated tokens; returns these.

    The shared engine generates first, and then reads prompts and texts in one layerwise pass; the plain loop
    reads while it generates.
    """
    if max_new_tokens and options.reuse and path_of(model).packed is not None:
        prompts, decoding = [prompt.ids for prompt in recorder.prompts], Decoding(max_new_tokens)
        silent = replace(options, on_progress=no_progress)
        (texts,) = write_conditions(model, prompts, [operations], decoding, options=silent)
        max_new_tokens, options = 0, replace(options, allow_empty=True)  # generation checked the selections
    texts = list(texts)
    rows = [
        Row((*prompt.ids, *text[:-1]), prompt) for prompt, text in zip(recorder.prompts, texts, strict=True)
    ]
    # The last layer that has to run for every layer to be read and every edit to be made.
    edits = edits_of(operations, model.cfg.n_layers)
    stop = max([*recorder.layers, *(edit.layer for edit in edits)]) + 1

    def plain(_condition: int, batch: Batch, tracker: PositionTracker, _start: None) -> None:
        with recorder.reading(model, tracker, batch.rows):
            if not max_new_tokens:
                residual(model, batch, stop_at_layer=stop)
                return
            for row, text in zip(batch.rows, decode(model, batch, Decoding(max_new_tokens)), strict=True):
                texts[row] = text

    def shared(chunk: Chunk) -> None:
        recorder.run(model, chunk, stop)

    run_conditions(model, rows, [operations], options, plain=plain, shared=shared, new_tokens=max_new_tokens)
    return texts


def _completion_tokens(
    model: Any,
    ids: Sequence[Sequence[int]],
    completions: Prompt | Sequence[Prompt] | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens to read after each prompt, tokenized alone; empty lists without completions."""
    if completions is None:
        return [[] for _ in ids]
    if max_new_tokens:
        raise ValueError(
            f"completions and max_new_tokens={max_new_tokens}: expected one of them. Completions are read, "
            "max_new_tokens are generated."
        )
    completions = as_prompts(completions)
    if len(completions) != len(ids):
        raise ValueError(f"{len(completions)} completions for {len(ids)} prompts: expected one for each.")
    tokens = []
    for text in completions:
        if isinstance(text, str) and model.tokenizer is not None:
            text = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens.append(tokenize(model, text) if len(text) else [])
    if not any(isinstance(completion, str) for completion in completions):
        warn_of_padding(model, tokens, completions=True)
    return tokens


def _as_text(
    prompts: Prompt | Sequence[Prompt], ids: Sequence[Sequence[int]], decode: Callable[[list[int]], str]
) -> tuple[str, ...]:
    """Prompts or completions as text: token lists are decoded."""
    pairs = zip(as_prompts(prompts), ids, strict=True)
    return tuple(prompt if isinstance(prompt, str) else decode(list(row)) for prompt, row in pairs)
