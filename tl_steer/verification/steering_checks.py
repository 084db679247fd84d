"""Checks of operations: where they land, how they are rounded, and that nothing of them stays."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._capture import capture
from .._generation import generate
from ..errors import NonFiniteError
from ..interventions import Ablate, Add, Operation, ProjectOut, SetProjection, steer
from ..models import hook_point, is_hooked
from .check import LENGTHS, Check, DoesNotApplyError, Finding, Worst, apart, logits_apart
from .context import Pass, Subject, alone, as_batch, reading
from .model_state import differing, hooks

DOSES = (0.1, 0.3, 1.0, 3.0)
MULTIPLIER = 0.7  # no power of two, so that the product is rounded
FLOAT32_STEPS = 32  # float32 roundings that an operation's arithmetic may add up to
COPIED = 3e9  # weights of which a float32 copy is made
# Exact but for the last bit: what two passes of the same shape may differ by.
LAST_BITS = {dtype: 4 * torch.finfo(dtype).eps for dtype in LENGTHS}


def repeated(subject: Subject) -> Finding:
    """Two passes over each prompt."""
    worst = Worst()
    for row, (first, ids) in enumerate(zip(subject.alone, subject.ids, strict=True)):
        worst.see(logits_apart(alone(subject.model, ids).logits, first.logits), subject.named(row))
    return worst.finding()


def landed(subject: Subject) -> Finding:
    """A vector added at a layer: that block gives it, the one before does not, and `capture` sees it."""
    worst, row = Worst(), _longest(subject)
    clean, ids = subject.alone[row], subject.ids[row]
    for layer in subject.layers:
        vector = subject.vector(layer)
        expected = (clean.streams[layer].float() + vector.values).to(subject.dtype).float()
        steered = _under(subject, row, Add(vector)).streams
        captured = capture(subject.model, [ids], Add(vector), layers=layer, reuse=False).values[0, 0]
        told = f"added at layer {layer}, {subject.named(row)}"
        worst.see(apart(steered[layer].float(), expected), told)
        worst.see(apart(captured, expected[-1:]), f"captured, {told}")
        if layer:
            before = apart(steered[layer - 1].float(), clean.streams[layer - 1].float())
            worst.see(before, f"seen at layer {layer - 1}, {told}")
    return worst.finding()


def rounded(subject: Subject) -> Finding:
    """Each operation against float64 rounded once to the stream's dtype, beyond what float32 may err."""
    worst, row = Worst(), _longest(subject)
    for layer in {subject.layers[0], subject.layers[-1]}:
        for operation, exact in _operations(subject, layer):
            with _before(subject.model, layer) as unsteered:  # the same pass: two may round differently
                found = _under(subject, row, operation).streams[layer].double()
            (clean,) = (stream.double() for stream in unsteered)
            expected, told = exact(clean), f"{type(operation).__name__} at layer {layer}"
            slack = FLOAT32_STEPS * torch.finfo(torch.float32).eps * clean.norm(dim=-1, keepdim=True)
            beyond = (found - expected).abs() - slack - _half_step(expected, subject.dtype)
            worst.see(float((beyond.clamp_min(0) / (2 * _half_step(expected, subject.dtype))).max()), told)
    return worst.finding()


def nothing(subject: Subject) -> Finding:
    """Operations with a multiplier or strength of 0."""
    worst, row = Worst(), _longest(subject)
    for layer in subject.layers:
        vector = subject.vector(layer)
        found = _under(subject, row, Add(vector, 0.0), ProjectOut(vector, 0.0))
        worst.see(logits_apart(found.logits, subject.alone[row].logits), f"layer {layer}")
    return worst.finding()


def finite(subject: Subject) -> Finding:
    """The largest number of the stream, unsteered and at every dose, beside the largest of the dtype."""
    largest, worst = torch.finfo(subject.dtype).max, Worst()
    last = subject.model.cfg.n_layers - 1
    for row, clean in enumerate(subject.alone):
        reached = max(float(stream.double().abs().max()) for stream in clean.streams.values())
        worst.see(reached / largest, f"unsteered, {subject.named(row)}")
    for layer in subject.layers:
        for dose in DOSES:
            operation, told = Add(subject.vector(layer, dose=dose)), f"dose {dose:g} at layer {layer}"
            try:
                reached = capture(subject.model, subject.ids, operation, layers=last).single()
            except NonFiniteError as error:
                return Finding(torch.inf, f"{told}: {error}")
            worst.see(float(reached.abs().max()) / largest, told)
    return worst.finding()


def half_precision(subject: Subject) -> Finding:
    """Next-token distributions against those of a float32 copy."""
    if subject.dtype not in (torch.float16, torch.bfloat16):
        raise DoesNotApplyError(f"the weights are {str(subject.dtype).removeprefix('torch.')}.")
    if not is_hooked(subject.model):
        raise DoesNotApplyError("only a HookedTransformer is copied in float32.")
    if (count := sum(weight.numel() for weight in subject.model.parameters())) > COPIED:
        raise DoesNotApplyError(f"a float32 copy of {count:.1e} weights is not made.")
    precise = nn.Module.to(copy.deepcopy(subject.model), torch.float32)
    precise.cfg.dtype = torch.float32
    worst = Worst()
    for row, (mine, ids) in enumerate(zip(subject.alone, subject.ids, strict=True)):
        exact, found = (each.logits.double().log_softmax(-1) for each in (alone(precise, ids), mine))
        worst.see(float((exact.exp() * (exact - found)).sum(-1).max()), subject.named(row))
    return worst.finding()


def gone(subject: Subject) -> Finding:
    """Hooks after `steer`, left in order, by an exception or refused, after `capture` and `generate`."""
    before, vector = hooks(subject.model), subject.vector(subject.layers[-1])
    ids = [subject.ids[0][:1]]  # there is room for new tokens behind it
    good = Add(vector)
    _under(subject, 0, good)
    for broken in (_interrupted, _refused):
        broken(subject, good)
    capture(subject.model, ids, good)
    generate(subject.model, ids, good, max_new_tokens=2, return_tokens=True)
    found = differing(before, hooks(subject.model))
    if found.measured:
        return found
    again = logits_apart(alone(subject.model, subject.ids[0]).logits, subject.alone[0].logits)
    return Finding(float(again > LAST_BITS[subject.dtype]), "logits differ after steering" if again else "")


def _under(subject: Subject, row: int, *operations: Operation) -> Pass:
    """One prompt through the model's own forward, steered; read behind whatever the operations do."""
    ids = subject.ids[row]
    steered, seeing = steer(subject.model, *operations, prompts=[ids]), reading(subject.model.blocks)
    with torch.no_grad(), steered, seeing as seen:
        logits = subject.model(as_batch(subject.model, [ids]))[0]
    return Pass(logits.float().cpu(), seen)


@contextmanager
def _before(model: Any, layer: int) -> Iterator[list[Float[Tensor, "pos d_model"]]]:
    """While this is entered, what a block gives for the first row, pass by pass, before it is steered."""
    seen: list[Tensor] = []

    def keep(_module: Any, inputs: tuple) -> None:
        seen.append(inputs[0][0].detach().cpu())

    handle = hook_point(model, "resid_post", layer).register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _interrupted(subject: Subject, operation: Operation) -> None:
    try:
        with steer(subject.model, operation):
            raise KeyError("on purpose")
    except KeyError:
        return


def _refused(subject: Subject, operation: Operation) -> None:
    try:
        with steer(subject.model, operation, Ablate(0, "no such hook")):
            pass
    except ValueError:
        return


Exact = Callable[[Float[Tensor, "pos d_model"]], Float[Tensor, "pos d_model"]]


def _operations(subject: Subject, layer: int) -> list[tuple[Operation, Exact]]:
    """Each of the four, and what it does, written down in float64."""
    vector = subject.vector(layer)
    along, value = vector.values.double(), 0.5 * float(vector.values.norm())
    unit = along / along.norm()

    def projection(x: Tensor) -> Tensor:
        return (x @ unit)[:, None]

    return [
        (Add(vector, MULTIPLIER), lambda x: x + MULTIPLIER * along),
        (ProjectOut(vector), lambda x: x - projection(x) * unit),
        (SetProjection(vector, value), lambda x: x + (value - projection(x)) * unit),
        (Ablate(layer, to=vector.values), lambda x: along.expand_as(x)),
    ]


def _half_step(x: Float[Tensor, "pos d"], dtype: torch.dtype) -> Float[Tensor, "pos d"]:
    """Half the distance between neighbouring numbers of a dtype, at each number."""
    limits = torch.finfo(dtype)
    _, exponent = torch.frexp(x)
    steps = limits.eps * torch.ldexp(torch.ones_like(x), exponent - 1)
    return steps.clamp_min(limits.tiny * limits.eps) / 2


def _longest(subject: Subject) -> int:
    return max(range(len(subject.ids)), key=lambda row: len(subject.ids[row]))


CHECKS: tuple[Check, ...] = (
    Check(
        "a pass can be repeated",
        "of the logits' length",
        "The same prompt gives the same logits twice. Where not, something random is at work (dropout), "
        "and no difference between two runs is the steering's alone.",
        repeated,
        LAST_BITS,
    ),
    Check(
        "a vector appears at its layer",
        "of the stream's length",
        "After Add at layer L, block L gives the stream plus the vector, block L − 1 what it gave "
        "before, and capture reads just that. Where not, layers are off by one between reading and "
        "steering.",
        landed,
        LAST_BITS,
    ),
    Check(
        "arithmetic is in float32",
        "steps of the stream's dtype",
        "All four operations equal float64 rounded once to the stream's dtype. Where not, small vectors "
        "vanish in half precision before they are added.",
        rounded,
        0.01,
    ),
    Check(
        "a multiplier of 0 changes nothing",
        "of the logits' length",
        "Add and ProjectOut with 0 leave the logits as they are. Where not, the unsteered cell of a "
        "sweep is not what it is compared with.",
        nothing,
        LAST_BITS,
    ),
    Check(
        "doses 0.1 to 3 stay finite",
        "of the dtype's range",
        "No number of the stream leaves the range of its dtype, unsteered or steered at any sampled "
        "layer. Where one does, texts are noise: load the model in bfloat16 or float32.",
        finite,
        0.999,
    ),
    Check(
        "half precision is near float32",
        "nats (KL divergence)",
        "The model predicts nearly what its float32 copy predicts. Where not, effects as small as the "
        "difference are rounding.",
        half_precision,
        0.1,
    ),
    Check(
        "hooks are gone afterwards",
        "hooks",
        "After steer, left in order, by an exception or refused, every hook is as before. Where not, a "
        "run that should be unsteered is not.",
        gone,
    ),
)
