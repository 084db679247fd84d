"""Checks of activations, scores and texts: against Hugging Face, in batches, under padding, with a cache."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from .._capture import capture
from .._generation import generate
from .._scoring import choice_logits
from ..errors import DoesNotApplyError
from ..models import exclusive, identify, is_bridge, is_hooked
from ..models.equality import probe_difference
from ..positions import all_tokens, generated_tokens
from .comparison import (
    LAST_BITS,
    LENGTHS,
    NATS,
    choice_scores,
    greedy_shortfall,
    logits_error,
    relative_error,
)
from .context import Context, Measurements, Pass, as_batch, check, recording, run_alone

COPIED = 3e9  # largest number of weights of which a float32 copy is made
STREAM, LOGITS = "of the stream's length", "of the logits' length"


@check("a pass can be repeated", LOGITS, LAST_BITS)
def repeated(context: Context) -> Measurements:
    """The same prompt gives the same logits twice. Otherwise something random is at work (dropout), and no
    difference between two runs is due to steering alone."""
    for row, (first, ids) in enumerate(zip(context.passes, context.ids, strict=True)):
        yield logits_error(run_alone(context.model, ids).logits, first.logits), context.label(row)


@check("logits equal Hugging Face's", LOGITS, LENGTHS)
def equal_logits(context: Context) -> Measurements:
    """The model predicts what transformers predicts with the same weights. Otherwise the weights were
    converted wrongly, and every number is another model's."""
    for row, (ours, expected) in enumerate(zip(context.passes, _hugging_face(context), strict=True)):
        width = expected.logits.shape[-1]  # TransformerLens's vocabulary may be larger, never smaller
        yield logits_error(ours.logits[:, :width], expected.logits), context.label(row)
    off, allowed = probe_difference(context.model, context.hf_model)
    yield LENGTHS[context.dtype] * off / allowed, f"probe tokens: {off:.2g} nats, at most {allowed:.2g}"


@check("streams equal Hugging Face's", STREAM, LENGTHS)
def equal_streams(context: Context) -> Measurements:
    """capture reads at each layer what that block of transformers gives. Otherwise a vector made here means
    something else there, or layers are counted differently."""
    centred = identify(context.model).centred
    for row, expected in enumerate(_hugging_face(context)):
        captured = capture(context.model, [context.ids[row]], positions=all_tokens()).values[0]
        for layer, stream in expected.streams.items():
            stream = stream.float() - stream.float().mean(-1, keepdim=True) if centred else stream.float()
            error = relative_error(captured[layer], stream)
            yield error, f"layer {layer}, {context.label(row)}"
            if error > LENGTHS[context.dtype]:  # all later layers differ too
                return


@check("layers follow one another", STREAM, LENGTHS)
def equal_inputs(context: Context) -> Measurements:
    """resid_pre of a layer is resid_post of the one before. Otherwise a vector read at one hook does not
    belong at the other."""
    layers = [layer for layer in context.layers if layer]
    if not layers:
        raise DoesNotApplyError("the model has a single layer.")
    options = {"positions": all_tokens(), "layers": layers, "hook": "resid_pre", "reuse": False}
    for row, expected in enumerate(context.passes):
        inputs = capture(context.model, [context.ids[row]], **options).values[0]
        for stream, layer in zip(inputs, layers, strict=True):
            before = expected.streams[layer - 1].float()
            yield relative_error(stream, before), f"layer {layer}, {context.label(row)}"


@check("a batch equals its prompts alone", STREAM, LENGTHS)
def equal_alone(context: Context) -> Measurements:
    """Activations of a prompt do not depend on the others in its batch. Otherwise the model ignores the
    attention mask, and padding leaks into every batched number."""
    context.require_padding()
    options = {"positions": all_tokens(), "layers": context.layers, "reuse": False}
    captured = capture(context.model, context.ids, **options).values
    for row, expected in enumerate(context.passes):
        for values, layer in zip(captured[row], context.layers, strict=True):
            stream = expected.streams[layer].float()
            yield relative_error(values[: len(stream)], stream), f"layer {layer}, {context.label(row)}"


@check("padding with a mask changes nothing", LOGITS, LENGTHS)
def equal_padded(context: Context) -> Measurements:
    """The model's own forward, given a mask, is the same padded on the left, on the right, and alone.
    Otherwise your own batches are wrong, inside `with steer(…)` too."""
    context.require_padding()
    for side, order in (("left", -1), ("right", 1)):
        rows = [torch.tensor(ids[::order]) for ids in context.ids]
        ones = [torch.ones_like(ids) for ids in rows]
        padded = (pad_sequence(each, batch_first=True) for each in (rows, ones))
        tokens, mask = (as_batch(context.model, [row[::order] for row in each.tolist()]) for each in padded)
        with torch.no_grad():
            logits = context.model(tokens, attention_mask=mask).float().cpu()
        for row, expected in enumerate(context.passes):
            unpadded = logits[row, mask[row].bool().cpu()]
            yield logits_error(unpadded, expected.logits), f"padded on the {side}, {context.label(row)}"


@check("the padding side does not matter", STREAM, LENGTHS)
def equal_sides(context: Context) -> Measurements:
    """The package's functions give the same whatever tokenizer.padding_side is. Otherwise two notebooks with
    the same code disagree."""
    context.require_padding()
    results, before = [], context.tokenizer.padding_side
    options = {"max_new_tokens": context.new_tokens, "return_tokens": True}
    try:
        for side in ("left", "right"):
            context.tokenizer.padding_side = side
            results.append(capture(context.model, context.ids, layers=context.layers, reuse=False).values)
            results.append(generate(context.model, context.ids, **options))
    finally:
        context.tokenizer.padding_side = before
    left, left_texts, right, right_texts = results
    for row in range(len(context.ids)):
        if left_texts[row] == right_texts[row]:
            yield relative_error(left[row], right[row]), context.label(row)
        else:
            yield torch.inf, f"{context.label(row)}: the texts differ"


@check("choices are the model's own", "nats", NATS)
def equal_choices(context: Context) -> Measurements:
    """choice_logits is the log-softmax of the model's own logits at the prompt's last token. Otherwise logit
    differences and probability mass are wrong."""
    pair, ids = context.choices()
    for reuse in (True, False):
        table = choice_logits(context.model, context.ids, pair, reuse=reuse)
        table = table.assign(**{"log mass": np.log(table["mass"].clip(lower=1e-30))})
        for row, expected in enumerate(context.passes):
            for name, value in choice_scores(expected.logits[-1], ids).items():
                yield abs(table.loc[row, name] - value), f"{name}, {context.label(row)}"


@check("greedy tokens are the best ones", "nats below the best token", NATS)
def greedy_tokens(context: Context) -> Measurements:
    """generate, with a cache and without, chooses what whole passes over the same text rank first. Otherwise
    the cache is wrong, or the text is another model's."""
    options = {"max_new_tokens": context.new_tokens, "return_tokens": True, "reuse": False}
    for use_cache in (True, False):
        texts = generate(context.model, context.ids, use_cache=use_cache, **options)
        for row, (ids, new) in enumerate(zip(context.ids, texts, strict=True)):
            logits = run_alone(context.model, [*ids, *new[:-1]]).logits
            detail = f"with{'' if use_cache else 'out'} a cache, {context.label(row)}"
            yield greedy_shortfall(logits, len(ids), new), detail


@check("a cache changes nothing", STREAM, LENGTHS)
def equal_cached(context: Context) -> Measurements:
    """Activations of generated tokens are the same from a cache as in one pass over the whole text. Otherwise
    what is read or steered while generating is not what the text shows."""
    options = {"positions": generated_tokens(), "layers": context.layers, "allow_empty": True, "reuse": False}
    captured = capture(context.model, context.ids, max_new_tokens=context.new_tokens, **options)
    for row, (ids, new) in enumerate(zip(context.ids, captured.completion_tokens, strict=True)):
        if len(new) < 2:
            continue
        streams = run_alone(context.model, [*ids, *new[:-1]]).streams
        for values, layer in zip(captured.values[row], context.layers, strict=True):
            error = relative_error(values[: len(new) - 1], streams[layer][len(ids) :].float())
            yield error, f"layer {layer}, {context.label(row)}"


@check("the same seed, the same text", "prompts")
def equal_samples(context: Context) -> Measurements:
    """Sampling twice with one seed gives the same texts. Otherwise a run cannot be repeated."""
    options = {"max_new_tokens": context.new_tokens, "temperature": 1.0, "seed": 1, "return_tokens": True}
    first, second = (generate(context.model, context.ids, **options) for _ in range(2))
    rows = [row for row in range(len(context.ids)) if first[row] != second[row]]
    yield len(rows), context.label(rows[0]) if rows else ""


@check("half precision is near float32", "nats (KL divergence)", 0.1)
def half_precision(context: Context) -> Measurements:
    """The model predicts nearly what its float32 copy predicts. Otherwise effects as small as the difference
    are rounding."""
    if context.dtype not in (torch.float16, torch.bfloat16):
        raise DoesNotApplyError(f"the weights are {str(context.dtype).removeprefix('torch.')}.")
    if not is_hooked(context.model):
        raise DoesNotApplyError("only a HookedTransformer is copied in float32.")
    if (count := sum(weight.numel() for weight in context.model.parameters())) > COPIED:
        raise DoesNotApplyError(f"a float32 copy of {count:.1e} weights is not made.")
    precise = nn.Module.to(copy.deepcopy(context.model), torch.float32)
    precise.cfg.dtype = torch.float32
    for row, (half, ids) in enumerate(zip(context.passes, context.ids, strict=True)):
        exact, rounded = (each.logits.double().log_softmax(-1) for each in (run_alone(precise, ids), half))
        yield float((exact.exp() * (exact - rounded)).sum(-1).max()), context.label(row)


def _hugging_face(context: Context) -> list[Pass]:
    """Each prompt alone through the Hugging Face model, recorded at its blocks, before the final norm."""
    hf_model = context.hf_model
    if hf_model is None:
        raise DoesNotApplyError("pass hf_model=…, the same weights loaded by transformers, to compare with.")
    if is_bridge(context.model):
        own_weights = set(map(id, context.model.original_model.parameters()))
        if any(id(weight) in own_weights for weight in hf_model.parameters()):
            raise DoesNotApplyError("hf_model is the bridge's own model: pass another copy of the weights.")
    if any(module.training for module in hf_model.modules()):
        raise DoesNotApplyError("hf_model is in training mode, with dropout on: call hf_model.eval().")
    n_layers = context.model.cfg.n_layers
    lists = (module for module in hf_model.modules() if isinstance(module, nn.ModuleList))
    blocks = next((each for each in lists if len(each) == n_layers), None)
    if blocks is None:
        raise ValueError(
            f"{type(hf_model).__name__} has no list of {n_layers} blocks: hf_model=… is another model."
        )
    passes = []
    with exclusive(hf_model, evaluation=False):
        for ids in context.ids:
            tokens = torch.tensor([ids], device=hf_model.device)
            with torch.no_grad(), recording(blocks) as streams:
                logits = hf_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
            passes.append(Pass(logits.float().cpu(), streams))
    return passes
