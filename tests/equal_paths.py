"""The shared engine against the plain loop: the same numbers and the same tokens, for any model."""

import importlib
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from tl_steer._capture import capture
from tl_steer._scoring import ChoicePlan, Read
from tl_steer.directions import SteeringVectors
from tl_steer.interventions import Ablate, Add, ProjectOut, SetProjection, steer
from tl_steer.models import identify
from tl_steer.models.backend import HOOKS, find_hook_point, is_bridge
from tl_steer.positions import parse_positions

from .tiny_model import TABLE, score, write

CLOSE = 1e-4
POSITIONS = [
    *TABLE,
    "tokens_matching('c')",
    "~tokens_matching('c')",
    "after('b')",
    "(after('b') | generated_tokens())",
]
# One token each; several that differ in the last; several that differ before it; unlike lengths.
PAIRS = [((7,), (8,)), ((7, 9), (7, 8)), ((7, 8, 9), (7, 10, 9)), ((8,), (9, 10))]
# Equal and unequal lengths, a beginning of another, the same twice, one token alone.
PROMPTS = [[0, 3, 5, 6, 1, 4], [0, 3, 5], [0, 4, 5, 3], [0, 3, 5, 6, 1, 4], [0], [6, 5, 4, 3, 3, 0, 1]]
FORWARD, PACKING, LOGITS = (
    importlib.import_module(f"tl_steer.engine.{name}")
    for name in ("shared.forward", "shared.packing", "logits")
)


def hooks_of(model):
    """Short names of the hooks of this architecture that can be changed."""
    return [
        hook
        for hook in HOOKS
        if find_hook_point(model, hook, 0) is not None and not (is_bridge(model) and hook == "resid_mid")
    ]


def vectors(model, layers, hook="resid_post", *, seed=0, scale=4.0, n_positions=None):
    """Random vectors of the given length for some layers; with `places`, one for each first position."""
    width = model.cfg.n_heads * model.cfg.d_head if hook == "z" else model.cfg.d_model
    shape = (len(layers), width) if n_positions is None else (len(layers), n_positions, width)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(50 + seed))
    values = scale * values / values.norm(dim=-1, keepdim=True)
    return SteeringVectors(
        values, tuple(layers), hook, "made", torch.full((len(layers),), 100.0), identify(model)
    )


def choice_plan(prompts, pairs):
    """What score_cells is given, by hand: choices that differ in the last token alone are read together."""
    reads = []
    for question, (prompt, (first, second)) in enumerate(zip(prompts, pairs, strict=True)):
        prompt = tuple(prompt)
        if first[:-1] == second[:-1]:
            reads.append(Read(question, prompt + first[:-1], tuple(zip(first, second, strict=True)), (0, 1)))
            continue
        for choice, ids in enumerate((first, second)):
            reads.append(Read(question, prompt + ids[:-1], tuple((each,) for each in ids), (choice,)))
    return ChoicePlan(tuple(map(tuple, prompts)), tuple(reads))


def questions(prompts=PROMPTS):
    """Every type of choices, in turn."""
    return choice_plan(prompts, [PAIRS[row % len(PAIRS)] for row in range(len(prompts))])


def require_same_scores(model, plan, conditions, *, close=CLOSE, **options):
    """Every condition's frame, computed together, equals the plain loop's."""
    options = {"allow_empty": True} | options
    together = score(model, plan, conditions, **options)
    options.pop("memory", None)
    plainly = score(model, plan, conditions, reuse=False, **options)
    for result, expected in zip(together, plainly, strict=True):
        assert list(result) == list(expected)
        np.testing.assert_allclose(
            result["logit_difference"], expected["logit_difference"], rtol=0, atol=close
        )
        np.testing.assert_allclose(result["probability"], expected["probability"], rtol=0, atol=close)
        np.testing.assert_allclose(np.log(result["mass"]), np.log(expected["mass"]), rtol=0, atol=close)
        assert result["mass"].isna().all() == (not options.get("mass", True))
    return together


def require_same_texts(model, prompts, conditions, decoding, *, tie=1e-3, **options):
    """Every condition's tokens, written together, equal the plain loop's; where they part, it is a tie."""
    options = {"allow_empty": True} | options
    together = write(model, prompts, conditions, decoding, **options)
    options.pop("memory", None)
    plainly = write(model, prompts, conditions, decoding, reuse=False, **options)
    for operations, texts, expected in zip(conditions, together, plainly, strict=True):
        assert len(texts) == len(prompts)
        for prompt, new, other in zip(prompts, texts, expected, strict=True):
            if new != other:
                require_tie(model, [*prompt], operations, new, other, tie)
    return together


def require_tie(model, prompt, operations, new, other, tie):
    """One plain pass over what both texts have in common: the two next tokens' logits are alike."""
    index = next(i for i, (a, b) in enumerate(zip(new, other, strict=False)) if a != b)
    message = {"prompts": [prompt], "allow_empty": True}
    with torch.no_grad(), steer(model, *operations, **message):
        logits = model(torch.tensor([prompt + new[:index]]))[0, -1]
    assert abs(float(logits[new[index]] - logits[other[index]])) < tie


def require_same_activations(result, expected, *, close=CLOSE):
    torch.testing.assert_close(result.values, expected.values, rtol=0, atol=close, equal_nan=True)
    torch.testing.assert_close(
        result.stream_norm, expected.stream_norm, rtol=1e-5, atol=close, equal_nan=True
    )
    for name in ("token_index", "tokens", "prompt_lengths"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    for name in ("layers", "hook", "positions", "prompts", "completions"):
        assert getattr(result, name) == getattr(expected, name), name


def require_same_capture(model, prompts, *operations, **options):
    options = {"allow_empty": True} | options
    result = capture(model, prompts, *operations, **options)
    options.pop("memory", None)
    require_same_activations(result, capture(model, prompts, *operations, reuse=False, **options))
    return result


@contextmanager
def small_batches(tokens, block_tokens):
    """Few tokens go through a layer at once, attend together, or are summed over."""
    with pytest.MonkeyPatch.context() as patch:
        if tokens is not None:
            patch.setattr(FORWARD, "CACHED_TOKENS", tokens)
            patch.setattr(FORWARD, "MIN_TOKENS", 1)
        if block_tokens is not None:
            patch.setattr(PACKING, "BLOCK_TOKENS", block_tokens)
            patch.setattr(LOGITS, "VOCABULARY_PART", 40)
        yield


PACKED = st.sampled_from([(None, None), (None, None), (1, None), (5, 3), (9, 1), (None, 2)])
# Shares of what is free: so small that there is one row of one condition at a time.
MEMORY = st.sampled_from([None, None, None, 1e-12])


@st.composite
def prompt_lists(draw, longest=8):
    """Few different tokens, so that beginnings are shared; some are beginnings of others, or copies."""
    prompts = draw(
        st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=longest), min_size=1, max_size=5)
    )
    for source, length in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, longest)), min_size=0, max_size=3)
    ):
        prompts.append(prompts[source % len(prompts)][:length])
    return draw(st.permutations(prompts))


CATEGORIES = ["add", "add by place", "project out", "set", "zero", "to a vector", "to activations", "heads"]


@st.composite
def drawn_operations(draw, hooks, n_layers, n_heads, shortest):
    """Any operation at any hook, layer or layers, and position, as the arguments of `operation`."""
    category = draw(st.sampled_from(CATEGORIES))
    layers = st.lists(st.integers(0, n_layers - 1), min_size=1, max_size=3, unique=True)
    return {
        "category": category,
        "hook": "z" if category == "heads" else draw(st.sampled_from(hooks)),
        "layers": sorted(draw(layers)),
        "where": draw(st.sampled_from(POSITIONS)),
        "number": draw(st.sampled_from([-1.5, 0.5, 1.0, 2.0])),
        "seed": draw(st.integers(0, 3)),
        "n_positions": draw(st.integers(1, shortest)),
        "heads": draw(st.lists(st.integers(0, n_heads - 1), min_size=1, max_size=2, unique=True)),
    }


def operation(model, *, category, hook, layers, where, number, seed, n_positions, heads):
    """What was drawn, made for a model."""
    options = {"positions": parse_positions(where)}
    if category in ("add", "add by place"):
        n_positions = n_positions if category == "add by place" else None
        return Add(vectors(model, layers, hook, seed=seed, n_positions=n_positions), number, **options)
    if category == "project out":
        return ProjectOut(vectors(model, layers, hook, seed=seed), number, **options)
    if category == "set":
        return SetProjection(vectors(model, layers, hook, seed=seed), 3 * number, **options)
    if category == "to a vector":
        options["to"] = vectors(model, layers, hook, seed=seed).values[0]
    if category == "to activations":
        options["to"] = capture(model, [[0, 3, 4], [5, 6]], hook=hook, layers=layers, reuse=False)
    if category == "heads":
        options["heads"] = heads
    return Ablate(layers[0], hook, **options)


def draw_conditions(data, model, prompts, *, least=1, most=4, hooks=None):
    """Operations of some conditions; made outside the strategies: the run-time checks use `random`."""
    one = drawn_operations(
        hooks or hooks_of(model), model.cfg.n_layers, model.cfg.n_heads, min(map(len, prompts))
    )
    drawn = data.draw(st.lists(st.lists(one, max_size=3), min_size=least, max_size=most))
    return [tuple(operation(model, **options) for options in condition) for condition in drawn]
