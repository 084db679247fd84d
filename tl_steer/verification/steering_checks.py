"""Checks of steering: where operations act, their rounding, shared computations, and that nothing remains."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from jaxtyping import Float
from torch import Tensor

from .._capture import capture
from .._generation import Decoding, generate, write_conditions
from .._scoring import plan_choices, score_conditions
from ..engine.paths import SHARED, path_of
from ..errors import DoesNotApplyError, NonFiniteError
from ..interventions import Ablate, Add, Operation, ProjectOut, SetProjection, steer
from ..models import hook_point
from ..positions import all_tokens
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
from .state_checks import differences, hooks

DOSES = (0.1, 0.3, 1.0, 3.0)
MULTIPLIER = 0.7  # not a power of two, so that the product is rounded
FLOAT32_STEPS = 32  # float32 roundings that an operation's arithmetic may add up to

Exact = Callable[[Float[Tensor, "pos d_model"]], Float[Tensor, "pos d_model"]]


@check("a vector appears at its layer", "of the stream's length", LAST_BITS)
def at_its_layer(context: Context) -> Measurements:
    """After Add at layer L, block L gives its activations plus the vector, block L − 1 the same as before,
    and capture reads exactly that. Otherwise layers are off by one between reading and steering."""
    row = context.longest
    clean, ids = context.passes[row], context.ids[row]
    for layer in context.layers:
        vector = context.vector(layer)
        expected = (clean.streams[layer].float() + vector.values).to(context.dtype).float()
        steered = _run_steered(context, [Add(vector)], ids).streams
        captured = capture(context.model, [ids], Add(vector), layers=layer, reuse=False).values[0, 0]
        detail = f"added at layer {layer}, {context.label(row)}"
        yield relative_error(steered[layer].float(), expected), detail
        yield relative_error(captured, expected[-1:]), f"captured, {detail}"
        if layer:
            before = relative_error(steered[layer - 1].float(), clean.streams[layer - 1].float())
            yield before, f"seen at layer {layer - 1}, {detail}"


@check("arithmetic is in float32", "steps of the stream's dtype", 0.01)
def arithmetic(context: Context) -> Measurements:
    """All four operations equal float64 rounded once to the stream's dtype. Otherwise small vectors vanish in
    half precision before they are added."""
    ids = context.ids[context.longest]
    for layer in {context.layers[0], context.layers[-1]}:
        for operation, exact in _operations(context, layer):
            inputs: list[tuple[Tensor]] = []  # of the same pass, since two may round differently
            point = hook_point(context.model, "resid_post", layer)
            handle = point.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args))
            try:
                steered = _run_steered(context, [operation], ids).streams[layer].double()
            finally:
                handle.remove()
            ((unsteered,),) = inputs
            clean = unsteered[0].detach().cpu().double()
            expected = exact(clean)
            half_step = _half_step(expected, context.dtype)
            slack = FLOAT32_STEPS * torch.finfo(torch.float32).eps * clean.norm(dim=-1, keepdim=True)
            excess = ((steered - expected).abs() - slack - half_step).clamp_min(0)
            yield float((excess / (2 * half_step)).max()), f"{type(operation).__name__} at layer {layer}"


@check("a multiplier of 0 changes nothing", "of the logits' length", LAST_BITS)
def zero_multiplier(context: Context) -> Measurements:
    """Add and ProjectOut with 0 leave the logits as they are. Otherwise the unsteered condition of a sweep is
    not the baseline of the others."""
    row = context.longest
    for layer in context.layers:
        vector = context.vector(layer)
        steered = _run_steered(context, [Add(vector, 0.0), ProjectOut(vector, 0.0)], context.ids[row])
        yield logits_error(steered.logits, context.passes[row].logits), f"layer {layer}"


@check("doses 0.1 to 3 stay finite", "of the dtype's range", 0.999)
def finite(context: Context) -> Measurements:
    """The residual stream stays in the range of its dtype, unsteered or steered at any sampled layer.
    Otherwise texts are noise: load the model in bfloat16 or float32."""
    largest, last = torch.finfo(context.dtype).max, context.model.cfg.n_layers - 1
    for row, clean in enumerate(context.passes):
        reached = max(float(stream.double().abs().max()) for stream in clean.streams.values())
        yield reached / largest, f"unsteered, {context.label(row)}"
    for layer in context.layers:
        for dose in DOSES:
            operation, detail = Add(context.vector(layer, dose=dose)), f"dose {dose:g} at layer {layer}"
            try:
                reached = capture(context.model, context.ids, operation, layers=last).single()
            except NonFiniteError as error:
                yield torch.inf, f"{detail}: {error}"
                return
            yield float(reached.abs().max()) / largest, detail


@check("hooks are gone afterwards", "hooks")
def hooks_gone(context: Context) -> Measurements:
    """After steer, left normally, by an exception or by a rejected operation, every hook is as before.
    Otherwise a run that should be unsteered is not."""
    model, add = context.model, Add(context.vector(context.layers[-1]))
    before, ids = hooks(model), [context.ids[0][:1]]  # short, so that new tokens fit the context
    _run_steered(context, [add], context.ids[0])
    with suppress(KeyError), steer(model, add):
        raise KeyError("on purpose")
    with suppress(ValueError), steer(model, add, Ablate(0, "no such hook")):
        pass
    capture(model, ids, add)
    generate(model, ids, add, max_new_tokens=2, return_tokens=True)
    count, names = differences(before, hooks(model))
    yield count, names
    if not count:
        error = logits_error(run_alone(model, context.ids[0]).logits, context.passes[0].logits)
        yield float(error > LAST_BITS[context.dtype]), "logits differ after steering"


@check("shortcuts equal whole passes", "of the stream's length", LENGTHS)
def equal_reuse(context: Context) -> Measurements:
    """The engine, which computes once what conditions share, gives the activations of whole forward passes.
    Otherwise pass reuse=False everywhere, and report it."""
    _require_engine(context)
    for layer in context.layers:
        operation = Add(context.vector(layer, dose=0.3))
        shared, plain = (
            capture(context.model, context.ids, operation, positions=all_tokens(), reuse=reuse).values
            for reuse in (True, False)
        )
        for row, ids in enumerate(context.ids):
            error = relative_error(shared[row, :, : len(ids)], plain[row, :, : len(ids)])
            yield error, f"steered at layer {layer}, {context.label(row)}"


@check("shortcuts write the same tokens", "nats below the best token", NATS)
def equal_reuse_texts(context: Context) -> Measurements:
    """The engine generates, steered, what greedy whole passes choose. Otherwise pass reuse=False to generate
    and sweep, and report it."""
    _require_engine(context)
    conditions = _conditions(context)
    decoding = Decoding(max_new_tokens=context.new_tokens)
    texts_by_condition = write_conditions(context.model, context.ids, list(conditions.values()), decoding)
    for (name, operations), texts in zip(conditions.items(), texts_by_condition, strict=True):
        for row, (ids, new) in enumerate(zip(context.ids, texts, strict=True)):
            logits = _run_steered(context, operations, ids, new[:-1]).logits
            yield greedy_shortfall(logits, len(ids), new), f"{name}, {context.label(row)}"


@check("conditions equal each one alone", "nats", NATS)
def equal_conditions(context: Context) -> Measurements:
    """A sweep's conditions, which share passes, prefer what each condition's own whole passes prefer.
    Otherwise one condition leaks into another: pass reuse=False to sweep, and report it."""
    _require_engine(context)
    (pair, tokens), conditions = context.choices(), _conditions(context)
    plan = plan_choices(context.model, context.ids, [pair] * len(context.ids))
    tables = score_conditions(context.model, plan, list(conditions.values()))
    for (name, operations), table in zip(conditions.items(), tables, strict=True):
        for row, ids in enumerate(context.ids):
            logits = _run_steered(context, operations, ids).logits
            expected = choice_scores(logits[-1], tokens)["logit_difference"]
            yield abs(table["logit_difference"][row] - expected), f"{name}, {context.label(row)}"


def _require_engine(context: Context) -> None:
    if (path := path_of(context.model)).name != SHARED:
        raise DoesNotApplyError(f"conditions run in {path.name}, because {path.reason}.")


def _conditions(context: Context) -> dict[str, tuple[Operation, ...]]:
    """Conditions that share much: unsteered, and two multipliers at the first layer, the last, and both."""
    first, last = context.layers[0], context.layers[-1]
    conditions: dict[str, tuple[Operation, ...]] = {"unsteered": ()}
    for layers in ((first,), (last,), dict.fromkeys((first, last))):
        where = " and ".join(f"layer {layer}" for layer in layers)
        for multiplier in (1.0, -1.0):
            adds = tuple(Add(context.vector(layer, dose=0.3), multiplier) for layer in layers)
            conditions[f"steered at {where}, {multiplier:+g}"] = adds
    return conditions


def _run_steered(
    context: Context, operations: Sequence[Operation], ids: Sequence[int], new: Sequence[int] = ()
) -> Pass:
    """One prompt and its new tokens through the model's own forward, recorded after the operations."""
    steering = steer(context.model, *operations, prompts=[ids])
    with torch.no_grad(), steering, recording(context.model.blocks) as streams:
        logits = context.model(as_batch(context.model, [[*ids, *new]]))[0]
    return Pass(logits.float().cpu(), streams)


def _operations(context: Context, layer: int) -> list[tuple[Operation, Exact]]:
    """Each of the four operations, and its formula in float64."""
    vector = context.vector(layer)
    along, value = vector.values.double(), 0.5 * float(vector.values.norm())
    unit = along / along.norm()
    return [
        (Add(vector, MULTIPLIER), lambda x: x + MULTIPLIER * along),
        (ProjectOut(vector), lambda x: x - (x @ unit)[:, None] * unit),
        (SetProjection(vector, value), lambda x: x + (value - x @ unit)[:, None] * unit),
        (Ablate(layer, to=vector.values), lambda x: along.expand_as(x)),
    ]


def _half_step(x: Float[Tensor, "pos d"], dtype: torch.dtype) -> Float[Tensor, "pos d"]:
    """Half the distance between neighbouring numbers of a dtype, at each number."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(x)
    steps = limits.eps * torch.ldexp(torch.ones_like(x), exponent - 1)
    return steps.clamp_min(limits.tiny * limits.eps) / 2
