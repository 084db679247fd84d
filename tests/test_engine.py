"""The engine against the plain loop: the same numbers and the same tokens on every path.

`reuse=False` is the oracle, which other files hold against Hugging Face and against passes by hand.
"""

import ast
import copy
import importlib
import inspect
import logging
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens import HookedTransformer
from transformer_lens.components import Attention, TransformerBlock
from transformer_lens.components.abstract_attention import AbstractAttention

from tl_steer._capture import capture
from tl_steer._generation import Decoding, generate
from tl_steer._scoring import choice_logits
from tl_steer.engine import Row
from tl_steer.engine.paths import SHARED, explain, path_of
from tl_steer.engine.shared import packed_hooked as stand_in
from tl_steer.engine.shared.forward import LayerwisePass
from tl_steer.engine.shared.packed_hooked import PackedHooked
from tl_steer.engine.shared.prefixes import Plan
from tl_steer.errors import HookDidNotFireError, ModelMismatchError, NonFiniteError
from tl_steer.interventions import Ablate, Add, ProjectOut, SetProjection, steer, steer_conditions
from tl_steer.interventions.operations import Edit
from tl_steer.models import load_model
from tl_steer.positions import (
    PromptTokens,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    parse_positions,
    token,
)
from tl_steer.prompts import ChoiceQuestions
from tl_steer.sweeps._sweep import sweep

from .equal_paths import (
    CLOSE,
    MEMORY,
    PACKED,
    PAIRS,
    POSITIONS,
    PROMPTS,
    choice_plan,
    draw_conditions,
    hooks_of,
    prompt_lists,
    questions,
    require_same_activations,
    require_same_capture,
    require_same_scores,
    require_same_texts,
    small_batches,
    vectors,
)  # fmt: skip
from .tiny_model import (
    all_hooks,
    favouring,
    hook_name,
    make_model,
    run_alone,
    score,
    word_tokenizer,
    write,
)

# Ids are drawn at random, and may look padded.
pytestmark = pytest.mark.filterwarnings("ignore:row . of the token ids")

MODEL = make_model(word_tokenizer())


@pytest.fixture(scope="session")
def talking(architecture):
    """A model of each architecture with a tokenizer, for positions that match text; do not change it."""
    model = copy.deepcopy(architecture[1])
    model.tokenizer = word_tokenizer()
    assert explain(model) == SHARED
    return model


def left_as_it_was(model, before):
    """No hook of the engine's is left, and attention is TransformerLens's own again."""
    return all_hooks(model) == before and not any("forward" in vars(block.attn) for block in model.blocks)


# Conditions that hypothesis draws


@settings(max_examples=12)
@given(data=st.data())
def test_scores_of_any_conditions_equal_the_plain_loop_s(talking, data):
    prompts = data.draw(prompt_lists())
    pairs = data.draw(st.lists(st.sampled_from(PAIRS), min_size=len(prompts), max_size=len(prompts)))
    conditions = draw_conditions(data, talking, prompts)
    mass, memory = data.draw(st.booleans()), data.draw(MEMORY)
    with small_batches(*data.draw(PACKED)):
        require_same_scores(talking, choice_plan(prompts, pairs), conditions, mass=mass, memory=memory)


@settings(max_examples=7)
@given(data=st.data())
def test_texts_of_any_conditions_equal_the_plain_loop_s(talking, data):
    prompts = data.draw(prompt_lists())
    conditions = draw_conditions(data, talking, prompts, most=3)
    most, least = data.draw(st.sampled_from([(1, 0), (2, 0), (6, 0), (6, 3)]))
    with small_batches(*data.draw(PACKED)):
        require_same_texts(talking, prompts, conditions, Decoding(most, least), memory=data.draw(MEMORY))


@settings(max_examples=12)
@given(data=st.data())
def test_what_any_operations_leave_at_any_hook_equals_the_plain_loop_s(talking, data):
    prompts = data.draw(prompt_lists())
    (condition,) = draw_conditions(data, talking, prompts, most=1)
    layers = st.lists(st.integers(0, talking.cfg.n_layers - 1), min_size=1, max_size=3, unique=True)
    with small_batches(*data.draw(PACKED)):
        require_same_capture(
            talking,
            prompts,
            *condition,
            positions=parse_positions(data.draw(st.sampled_from(POSITIONS))),
            layers=data.draw(layers),
            hook=data.draw(st.sampled_from(hooks_of(talking))),
            max_new_tokens=data.draw(st.sampled_from([0, 0, 1, 4])),
            memory=data.draw(MEMORY),
        )


# Every operation, hook, layer and position once, whatever is drawn


def test_a_vector_at_every_hook_of_every_layer(talking):
    layers = range(talking.cfg.n_layers)
    conditions = [
        (Add(vectors(talking, [layer], hook), 1.0, where),)
        for hook in hooks_of(talking)
        for layer in layers
        for where in (all_tokens(), current_token())
    ]
    scores = require_same_scores(talking, questions(), [(), *conditions])
    clean = scores[0]["logit_difference"]
    assert all((each["logit_difference"] - clean).abs().max() > 0.01 for each in scores[1:])
    require_same_texts(talking, PROMPTS, conditions[::5], Decoding(3))


def test_every_position(talking):
    conditions = [(Add(vectors(talking, [1]), 1.0, parse_positions(written)),) for written in POSITIONS]
    require_same_texts(talking, PROMPTS, conditions, Decoding(3))


@pytest.mark.parametrize("hook", ["resid_pre", "resid_post", "z"])
def test_every_position_of_hooks_of_every_width(hook):
    conditions = [(Add(vectors(MODEL, [1], hook), 1.0, parse_positions(written)),) for written in POSITIONS]
    require_same_scores(MODEL, questions(), conditions)


@pytest.mark.parametrize("written", POSITIONS)
def test_every_position_is_captured(written):
    operation = Add(vectors(MODEL, [1]), 1.0, parse_positions(written))
    require_same_capture(MODEL, PROMPTS, operation, positions=parse_positions(written), max_new_tokens=2)


def test_every_operation_of_one_layer_and_of_all(talking):
    everywhere = list(range(talking.cfg.n_layers))
    conditions = []
    for layers in ([1], everywhere):
        for where in (all_tokens(), last_token()):
            set_of = vectors(talking, layers)
            conditions += [(Add(set_of, 1.5, where),), (ProjectOut(set_of, positions=where),)]
            conditions += [(ProjectOut(set_of, 2.0, where),), (SetProjection(set_of, 5.0, where),)]
            conditions += [(Add(vectors(talking, layers, n_positions=1), 1.0, where),)]
            conditions += [tuple(Ablate(layer, "mlp_out", positions=where) for layer in layers)]
            conditions += [tuple(Ablate(layer, "z", heads=[0, 3], positions=where) for layer in layers)]
    require_same_scores(talking, questions(), conditions)
    require_same_texts(talking, PROMPTS, conditions[::2], Decoding(3))


def test_one_vector_a_position_in_a_condition_among_others(talking):
    prompts = [[0, 3, 5, 6], [0, 3, 5], [0, 3, 5, 6, 4], [4, 3, 5]]
    by_place = vectors(talking, [0, 2], "resid_pre", n_positions=3)
    where = [all_tokens(), last_token(), token(1), parse_positions("~token(0)")]
    conditions = [(Add(by_place, 1.0, each),) for each in where]
    require_same_scores(talking, questions(prompts), [(), *conditions])
    require_same_texts(talking, prompts, conditions, Decoding(3))


def test_one_vector_a_position_rejects_a_prompt_that_is_shorter():
    operation = Add(vectors(MODEL, [1], n_positions=3))
    for reuse in (True, False):
        for conditions in ([(operation,)], [(), (operation,)]):
            with pytest.raises(ValueError, match=r"first 3 positions, but a prompt is shorter: .*2 tokens"):
                score(MODEL, questions([[0, 3, 4], [0, 3]]), conditions, reuse=reuse)


def test_two_positions_at_two_layers_that_begin_at_different_tokens(talking):
    late_then_early = (
        Add(vectors(talking, [0]), 1.0, last_token()),
        Add(vectors(talking, [2], "resid_pre"), 1.0, token(0)),
    )
    conditions = [late_then_early, late_then_early[::-1], late_then_early[:1], late_then_early[1:]]
    require_same_scores(talking, questions(), conditions)
    require_same_texts(talking, PROMPTS, conditions, Decoding(4))


def test_a_condition_among_others_is_the_same_as_alone(talking):
    conditions = [
        (),
        (Add(vectors(talking, [2]), 1.0, last_token()),),
        (Ablate(0, "z"),),
        (ProjectOut(vectors(talking, [1], "attn_out"), positions=token(1)),),
    ]
    options = {"allow_empty": True}
    together = score(talking, questions(), conditions, **options)
    for condition, result in zip(conditions, together, strict=True):
        (alone,) = score(talking, questions(), [condition], **options)
        pd.testing.assert_frame_equal(result, alone, rtol=0, atol=CLOSE)


def test_prompts_far_longer_than_the_window_of_local_attention(talking):
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(3, 30, (41,), generator=generator).tolist()
    prompts = [start, [*start[:40], 7, 8, 9], [*start[:20], *range(3, 27)], start[:12]]
    conditions = [
        (),
        (Add(vectors(talking, [0]), 1.0, all_tokens()),),
        (Add(vectors(talking, [1]), 1.0, last_token()),),
        (Ablate(2, "attn_out", positions=token(30)),),
        (SetProjection(vectors(talking, [0], "resid_pre"), 4.0, parse_positions("span(10, 15)")),),
    ]
    with small_batches(16, None):
        require_same_scores(talking, questions(prompts), conditions)
    require_same_texts(talking, prompts, conditions[:4], Decoding(12, 12))
    require_same_capture(talking, prompts, *conditions[1], positions=all_tokens(), max_new_tokens=6)


def test_of_gemma_2_both_types_of_attention_and_its_soft_caps_are_shared(make_hf_model):
    model = load_model("tiny-gemma2", hf_model=make_hf_model("gemma2"), device="cpu")
    assert {block.attn.attn_type for block in model.blocks} == {"local", "global"}
    assert explain(model) == SHARED
    (long,) = prompts = [[3 + (7 * index) % 40 for index in range(44)]]
    window = model.cfg.window_size
    assert window < len(long)
    for changes in ({"window_size": 44}, {"attn_scores_soft_cap": 100.0}):
        # What the test's own prompt can tell: with other settings the plain loop says something else.
        other = copy.deepcopy(model)
        for block in other.blocks:
            for name, value in changes.items():
                setattr(block.attn.cfg, name, value)
        result, expected = (
            capture(each, prompts, positions=all_tokens(), reuse=False).values for each in (other, model)
        )
        assert (result - expected).abs().max() > 0.01
    require_same_capture(model, prompts, positions=all_tokens())


def test_rotations_reach_as_far_as_prompts_and_texts_do(monkeypatch):
    prompts, conditions = [[0, 3, 5, 6, 4, 3, 5], [4, 6]], [(), (Add(vectors(MODEL, [1]), 1.0),)]
    monkeypatch.setattr(AbstractAttention, "ROTARY_INITIAL_CACHE_SIZE", 3)
    for run in (
        lambda model: require_same_scores(model, questions(prompts), conditions),
        lambda model: require_same_texts(model, prompts[1:], conditions, Decoding(9, 9)),
        lambda model: require_same_capture(model, prompts, positions=all_tokens()),
    ):
        model = make_model(word_tokenizer(), **ROTARY)
        assert len(model.blocks[0].attn.rotary_cos) == 3
        run(model)


# Sweeps


def swept(model, *, reuse, **options):
    words = ["a c d", "a c", "a c e f", "b", "a c d", "f e d c b a"]
    pairs = [(" yes", " no"), (" ( A )", " ( B )"), (" good", " yes no")] * 2
    choice_plan = ChoiceQuestions(
        words,
        pairs,
        answers=[0, 1] * 3,
        factors=pd.DataFrame({"kind": ["x", "y", "y"] * 2, "group": [2, 0, 1, 1, 0, 2]}),
    )
    options = {"controls": 1, "progress": False, "multipliers": [-1.0, 2.0]} | options
    options = {"control_layers": "all"} | options
    return sweep(model, options.pop("vectors"), choice_plan, reuse=reuse, **options)


def setting(vector, multiplier, positions):
    return SetProjection(vector, multiplier, positions)


SWEEPS = {
    "three operations, layers together": {
        "hook": "resid_post", "layers": [0, 2, (0, 2)], "operations": ("add", "project_out", setting),
    },
    "a chunk for each row": {"hook": "resid_pre", "layers": [1], "positions": last_token(), "memory": 1e-12},
    "no mass, an empty selection": {
        "hook": "z", "positions": parse_positions("~token(0)"), "mass": False, "allow_empty": True,
    },
    "texts": {"hook": "mlp_out", "measure": "generate", "max_new_tokens": 4, "min_new_tokens": 2},
    "texts in chunks": {
        "hook": "resid_post", "layers": [2], "controls": 0, "measure": "generate", "max_new_tokens": 4,
        "positions": current_token(), "memory": 1e-12,
    },
}  # fmt: skip


def require_same_tables(model, name):
    options = dict(SWEEPS[name])
    options["vectors"] = vectors(model, [0, 1, 2], options.pop("hook"))
    result, expected = (swept(model, reuse=reuse, **options) for reuse in (True, False))
    pd.testing.assert_frame_equal(result, expected, rtol=1e-5, atol=CLOSE)
    for column in ("prompt_id", "vector", "layers", "multiplier", "choice", "split", "kind", "text"):
        assert result[column].equals(expected[column]), column
    assert result["dose"].nunique() >= 3
    np.testing.assert_allclose(result["dose"], expected["dose"], rtol=1e-5)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_s_table_equals_the_plain_loop_s_doses_texts_and_order_too(name):
    require_same_tables(MODEL, name)


def test_a_sweep_s_table_equals_the_plain_loop_s_in_every_architecture(talking):
    require_same_tables(talking, "three operations, layers together")


# Capture


@pytest.mark.parametrize("written", ["generated_tokens()", "all_tokens()"])
def test_what_is_generated_is_captured_as_by_the_plain_loop(talking, written):
    model = favouring(talking, 1, 2.0)  # some texts end early
    for operation in ((), (Add(vectors(model, [1]), 1.0, generated_tokens()),)):
        result = require_same_capture(
            model, PROMPTS, *operation, positions=parse_positions(written), max_new_tokens=5, layers=[-1, 0]
        )
        assert result.values.shape[1] == 2
        assert result.layers == (model.cfg.n_layers - 1, 0)


def test_a_capture_of_nothing_at_all_equals_the_plain_loop_s():
    require_same_capture(MODEL, [[0, 3], [4]], positions=token(5))
    require_same_capture(MODEL, [[0, 3], [4]], positions=generated_tokens())


# Generation


def test_drawn_tokens_of_a_condition_do_not_depend_on_other_conditions():
    decoding = Decoding(6, temperature=1.2, top_p=0.95, seed=2)
    conditions = [(Add(vectors(MODEL, [layer]), 1.5, current_token()),) for layer in range(3)]
    together = write(MODEL, PROMPTS, [(), *conditions], decoding)
    assert together == [write(MODEL, PROMPTS, [condition], decoding)[0] for condition in [(), *conditions]]
    assert together == write(MODEL, PROMPTS, [(), *conditions], decoding, reuse=False)
    assert len({str(texts) for texts in together}) == 4


def test_texts_that_end_at_different_times_leave_and_the_others_continue(talking):
    model = favouring(talking, 1, 3.0)
    prompts = [[0, *ids] for ids in ([3], [4, 5], [6, 7, 8], [9], [3, 4], [5, 6, 7], [8, 9, 3, 4], [10, 11])]
    conditions = [(), *((Add(vectors(model, [layer]), 2.0),) for layer in range(3))]
    texts = require_same_texts(model, prompts, conditions, Decoding(10))
    assert len({len(new) for condition in texts for new in condition}) > 2
    longer = require_same_texts(model, prompts, conditions, Decoding(10, 6))
    assert all(len(new) >= 6 for condition in longer for new in condition)
    assert all(1 not in new[:5] for condition in longer for new in condition)


# The user's own hooks


def at(name, change):
    def put(model):
        model.add_hook(hook_name(*name) if isinstance(name, tuple) else name, change)
        return lambda: model.reset_hooks(including_permanent=True)

    return put


def on(module, register, change):
    def put(model):
        return getattr(module(model), register)(change).remove

    return put


def permanent(model):
    model.add_perma_hook(hook_name("attn_out", 1), lambda x, hook: x * 2)
    return lambda: model.reset_hooks(including_permanent=True)


def for_a_while(model):
    block = model.hooks(fwd_hooks=[(hook_name("z", 0), lambda z, hook: z * 2)])
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


def outer_steer(model):
    block = steer(model, Add(vectors(model, [1], seed=3), 1.0))
    block.__enter__()
    return lambda: block.__exit__(None, None, None)


USERS = {
    "add_hook": at(("resid_post", 1), lambda x, hook: x * 1.5),
    "add_hook at the embedding": at("hook_embed", lambda x, hook: x * 1.5),
    "add_hook at the pattern": at("blocks.1.attn.hook_pattern", lambda x, hook: x * 0.5),
    "add_hook at the queries": at("blocks.0.attn.hook_q", lambda x, hook: x * 2),
    "add_perma_hook": permanent,
    "model.hooks": for_a_while,
    "a forward hook of an MLP": on(
        lambda model: model.blocks[0].mlp, "register_forward_hook", lambda m, inputs, x: x * 2
    ),
    "a forward hook of a block": on(
        lambda model: model.blocks[2], "register_forward_hook", lambda m, inputs, x: x * torch.arange(16)
    ),
    "a pre-hook of a block": on(
        lambda model: model.blocks[1],
        "register_forward_pre_hook",
        lambda m, inputs: (inputs[0] + torch.arange(16), *inputs[1:]),
    ),
    "a pre-hook of attention": on(
        lambda model: model.blocks[1].ln1, "register_forward_pre_hook", lambda m, inputs: (inputs[0] * 0,)
    ),
    "an outer steer": outer_steer,
}
CALLS = {
    "score": lambda model, **options: np.stack(
        [each["logit_difference"] for each in score(model, questions(), SOME_CONDITIONS, **options)]
    ),
    "capture": lambda model, **options: capture(
        model, PROMPTS, SOME_CONDITIONS[1][0], positions=all_tokens(), **options
    ).values.nan_to_num(),
    "generate": lambda model, **options: np.array(
        [
            (row + 6 * [-1])[:6]
            for condition in write(model, PROMPTS, SOME_CONDITIONS, Decoding(6), **options)
            for row in condition
        ]
    ),
    "sweep": lambda model, **options: sweep(
        model, vectors(model, [0, 1]), ["a b c", "a b"], multipliers=[1.0], measure="generate",
        max_new_tokens=5, controls=0, progress=False, **options,
    )["text"].to_numpy(dtype=str),
}  # fmt: skip
SOME_CONDITIONS = [(), (Add(vectors(MODEL, [1]), 1.0, last_token()),), (Ablate(0, "z"),)]


@pytest.fixture
def own():
    """A model that may be changed."""
    return copy.deepcopy(MODEL)


EVERYWHERE = ("add_hook", "a pre-hook of a block", "an outer steer")


@pytest.mark.parametrize(
    ("user", "call"),
    [(user, call) for user in USERS for call in CALLS if call in ("score", "capture") or user in EVERYWHERE],
)
def test_a_hook_of_the_user_s_own_is_honoured_and_stays(own, user, call):
    run = CALLS[call]
    without = run(own)
    take = USERS[user](own)
    before = all_hooks(own)
    result, expected = run(own), run(own, reuse=False)
    assert left_as_it_was(own, before)
    np.testing.assert_array_equal(result, expected)
    assert not np.array_equal(result, without)
    take()
    np.testing.assert_array_equal(run(own), without)


@pytest.mark.parametrize("mass", [True, False])
def test_a_hook_of_the_user_s_own_at_the_unembedding_is_honoured(own, mass):
    """Where only the choices' own logits are computed, too."""
    plan = choice_plan(PROMPTS, PAIRS[:1] * len(PROMPTS))
    (without,) = score(own, plan, [()], mass=mass)
    own.unembed.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    for reuse in (True, False):
        (result,) = score(own, plan, [()], mass=mass, reuse=reuse)
        np.testing.assert_allclose(result["logit_difference"], 2 * without["logit_difference"], rtol=1e-4)


def test_a_hook_of_every_module_is_honoured():
    """Registered with torch, not with the model: the pattern's is one that packed passes do not have."""
    pattern = MODEL.blocks[1].attn.hook_pattern
    without = CALLS["score"](MODEL)
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, x: x * 0.5 if module is pattern else None
    )
    try:
        result, expected = CALLS["score"](MODEL), CALLS["score"](MODEL, reuse=False)
    finally:
        handle.remove()
    assert not np.allclose(expected, without, rtol=0, atol=1e-3)
    np.testing.assert_allclose(result, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("call", CALLS)
def test_hooks_and_attention_are_as_before_afterwards(own, call):
    before = all_hooks(own)
    CALLS[call](own)
    assert left_as_it_was(own, before)


class StopError(Exception):
    pass


class Stopping:
    """An operation that changes nothing, and stops at the given position."""

    def __init__(self, index):
        self.place = index

    def edits(self, n_layers):
        def change(x, index):
            if int(index.max()) >= self.place:
                raise StopError
            return x

        return [Edit(1, "resid_pre", all_tokens(), change, None, "Stopping at layer 1")]


@pytest.mark.parametrize(
    ("bad", "error"),
    [(Stopping(2), StopError), (Stopping(8), StopError), (Add(vectors(MODEL, [2]), 3e38), NonFiniteError)],
    ids=["while prompts are read", "while texts are written", "not finite"],
)
def test_after_an_exception_in_the_middle_hooks_and_attention_are_as_before(own, bad, error):
    before = all_hooks(own)
    conditions = [(), (Ablate(1, "z"),), (bad,)]
    calls = [
        lambda: write(own, PROMPTS, conditions, Decoding(6, 6)),
        lambda: capture(own, PROMPTS, *conditions[1], *conditions[2], max_new_tokens=6),
    ]
    if not (isinstance(bad, Stopping) and bad.place == 8):
        calls.append(lambda: score(own, questions(), conditions))
    for call in calls:
        with pytest.raises(error):
            call()
        assert left_as_it_was(own, before)
    np.testing.assert_array_equal(CALLS["score"](own), CALLS["score"](MODEL))


def test_a_progress_callback_that_raises_leaves_nothing_behind(own):
    before = all_hooks(own)

    def on_progress(conditions):
        raise StopError

    with pytest.raises(StopError):
        score(own, questions(), [()], on_progress=on_progress)
    assert left_as_it_was(own, before)


# What is checked


WRONG = {
    "a hook that there is not": (Ablate(1, "resid_end"), ValueError, "'resid_end' does not exist at layer 1"),
    "a head that there is not": (Ablate(1, "z", heads=[3]), IndexError, "there are heads 0 to 2"),
    "a layer that there is not": (Ablate(5), IndexError, "layer 5 is out of range"),
    "another width": (Ablate(1, to=torch.zeros(5)), ValueError, "the vector has 5 numbers"),
    "another model": (
        Add(vectors(make_model(word_tokenizer(), seed=9), [1])), ModelMismatchError, "the vector of Add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", WRONG)
def test_every_condition_s_operations_are_checked(name, reuse):
    bad, error, message = WRONG[name]
    for run in (
        lambda: score(MODEL, questions(), [(), SOME_CONDITIONS[1], (bad,)], reuse=reuse),
        lambda: write(MODEL, PROMPTS, [(), SOME_CONDITIONS[1], (bad,)], Decoding(2), reuse=reuse),
        lambda: capture(MODEL, PROMPTS, SOME_CONDITIONS[1][0], bad, reuse=reuse),
    ):
        with pytest.raises(error, match=message):
            run()


@pytest.mark.parametrize("positions", [all_tokens(), generated_tokens()], ids=repr)
@pytest.mark.parametrize("reuse", [False, True])
def test_an_operation_whose_hook_does_not_fire_is_told(reuse, positions):
    """TransformerLens has the hook of an MLP's output also where there is no MLP."""
    model = make_model(word_tokenizer(), attn_only=True)
    condition = (Ablate(1, "mlp_out", positions=positions),)
    plan = choice_plan(PROMPTS, PAIRS[1:2] * len(PROMPTS))
    runs = [
        *(
            lambda conditions=conditions: score(model, plan, conditions, reuse=reuse)
            for conditions in ([condition], [(), condition])
        ),
        *(
            lambda conditions=conditions: write(model, PROMPTS, conditions, Decoding(3, 3), reuse=reuse)
            for conditions in ([condition], [(), condition])
        ),
        lambda: capture(model, PROMPTS, *condition, max_new_tokens=3, reuse=reuse),
    ]
    for run in runs:
        with pytest.raises(HookDidNotFireError, match=r"Ablate\(hook='mlp_out'\) at layer 1"):
            run()


# Models of other settings, where it applies as well

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4}
SUPPORTED = {
    "no norm": {"normalization_type": None, "init_weights": False},
    "folded norms": {"normalization_type": "LNPre"},
    "RMS norms, gated MLPs": {"normalization_type": "RMS", "gated_mlp": True},
    "attention alone": {"attn_only": True},
    "parallel blocks": {"parallel_attn_mlp": True},
    "one head of keys": {"n_key_value_heads": 1},
    "one head of keys with a soft cap": {"n_key_value_heads": 1, "attn_scores_soft_cap": 1.5},
    "rotation of pairs, of a part": {**ROTARY, "rotary_dim": 2, "rotary_adjacent_pairs": True},
    "a window of three": {
        "use_local_attn": True, "window_size": 3, "attn_types": ["local", "global", "local"],
    },
    "a local base": {
        **ROTARY, "rotary_base_local": 100.0, "use_local_attn": True, "window_size": 4,
        "attn_types": ["global", "local", "local"],
    },
    "no scale": {"use_attn_scale": False},
    "a scale of its own": {"attn_scale": 1.3},
    "scaled by the layer": {"scale_attn_by_inverse_layer_idx": True},
    "normed queries and keys": {**ROTARY, "use_qk_norm": True},
    "an input hook of the MLP": {"use_hook_mlp_in": True},
    "a norm after the embedding": {"post_embedding_ln": True},
    "experts": {"num_experts": 4, "experts_per_token": 2, "gated_mlp": True, "normalization_type": "RMS"},
    "norms before and after": {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
    "a soft cap of the logits": {"output_logits_soft_cap": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("part", ["ln1", "mlp"])
def test_a_forward_pass_that_was_replaced_is_used_and_stays(part):
    model = make_model(word_tokenizer(), **SUPPORTED["RMS norms, gated MLPs"])
    plan = choice_plan(PROMPTS, PAIRS[1:2] * len(PROMPTS))
    before = score(model, plan, [()])
    module = getattr(model.blocks[1], part)

    def doubled(x, forward=module.forward):
        return 2 * forward(x)

    module.forward = doubled
    result, expected = (score(model, plan, [()], reuse=reuse) for reuse in (True, False))
    assert module.forward is doubled
    assert abs(result[0] - before[0])["logit_difference"].max() > 1e-2
    np.testing.assert_allclose(result[0], expected[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", SUPPORTED)
def test_models_of_other_settings_are_shared_and_the_same(name):
    model = make_model(word_tokenizer(), **SUPPORTED[name])
    assert explain(model) == SHARED
    if name == "no norm":  # else logits are so large that rounding alone is more than 1e-4
        for weight in model.parameters():
            weight.mul_(0.6)
    conditions = [
        (),
        (Add(vectors(model, [1]), 1.0, all_tokens()),),
        (Add(vectors(model, [1], "resid_pre"), 1.0, current_token()), Ablate(2, "z", heads=[0])),
    ]
    with small_batches(8, 4):
        require_same_scores(model, questions(), conditions)
        require_same_scores(model, choice_plan(PROMPTS, PAIRS[:1] * len(PROMPTS)), conditions, mass=False)
        require_same_texts(model, PROMPTS, conditions, Decoding(6, 6))
        require_same_capture(model, PROMPTS, *conditions[2], positions=all_tokens(), hook="attn_out")


# Where it does not apply

LINEAR = {"d_model": 12}  # n_heads · d_head, where something wants them alike
UNSUPPORTED = {
    "use_attn_result": {"use_attn_result": True},
    "use_split_qkv_input": {"use_split_qkv_input": True},
    "use_attn_in": {"use_attn_in": True},
    "use_attention_sinks": {"use_attention_sinks": True},
    "use_hook_tokens": {"use_hook_tokens": True},
    "clip_qkv": {"clip_qkv": 0.3},
    "alibi": {"positional_embedding_type": "alibi"},
    "shortformer": {"positional_embedding_type": "shortformer"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "use_logn_attn": {**ROTARY, "use_logn_attn": True, "train_seq_length": 4},
    "use_dynamic_ntk_rope": {**ROTARY, "use_dynamic_ntk_rope": True, "train_seq_length": 4},
    "ungroup_grouped_query_attention": {"n_key_value_heads": 1, "ungroup_grouped_query_attention": True},
    "Olmo2ForCausalLM": {
        **LINEAR,
        **ROTARY,
        "original_architecture": "Olmo2ForCausalLM",
        "normalization_type": "RMS",
    },
}


# TransformerLens's own padded batches are not right here (or it cannot decode): prompts of one length.
UNPADDED = ("use_logn_attn", "use_dynamic_ntk_rope", "ungroup_grouped_query_attention", "bidirectional")


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_with_what_the_engine_does_not_know_is_run_whole_and_right(name, caplog):
    model = make_model(word_tokenizer(), **UNSUPPORTED[name])
    assert name in path_of(copy.deepcopy(model)).reason
    with caplog.at_level(logging.INFO, logger="tl_steer"):
        require_as_the_model_alone(model, [[0, 3, 5, 6], [0, 3, 5, 4]] if name in UNPADDED else PROMPTS)
    assert f"tiny: {explain(model)}" in caplog.text


def require_as_the_model_alone(model, prompts):
    """Scores, activations and tokens are those of each prompt alone, in one pass by TransformerLens."""
    conditions = [(), (Add(vectors(model, [1]), 1.0, last_token()),)]
    plan = choice_plan(prompts, PAIRS[:1] * len(prompts))
    scores = require_same_scores(model, plan, conditions, close=0)
    values = capture(model, prompts, positions=all_tokens(), hook="z").values
    texts = generate(
        model, prompts, max_new_tokens=1, return_tokens=True, use_cache=len({*map(len, prompts)}) > 1
    )
    for row, ids in enumerate(prompts):
        name = hook_name("z", 1)
        logits, seen = run_alone(model, ids, len(ids), reads=[name])
        result = scores[0]["logit_difference"][row]
        assert result == pytest.approx(float(logits[-1, 7] - logits[-1, 8]), abs=1e-3)
        torch.testing.assert_close(values[row, 1, : len(ids)], seen[name].flatten(1), rtol=1e-4, atol=1e-4)
        assert texts[row] == [int(logits[-1].argmax())]


def test_attention_of_another_kind_is_run_as_it_is():
    class Halved(Attention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) / 2

    model = copy.deepcopy(MODEL)
    model.blocks[1].attn.__class__ = Halved
    assert path_of(model).reason == "an attention layer is not TransformerLens's own"
    require_as_the_model_alone(model, PROMPTS)
    patched = copy.deepcopy(MODEL)
    forward = patched.blocks[1].attn.forward
    patched.blocks[1].attn.forward = lambda *args, **kwargs: forward(*args, **kwargs) / 2
    assert path_of(patched).reason == "an attention layer is not TransformerLens's own"
    np.testing.assert_allclose(CALLS["score"](patched), CALLS["score"](model), rtol=0, atol=CLOSE)
    assert patched.blocks[1].attn.forward is vars(patched.blocks[1].attn)["forward"]


def test_a_model_of_another_class_is_run_whole():
    class Mine(HookedTransformer):
        pass

    model = copy.deepcopy(MODEL)
    model.__class__ = Mine
    assert path_of(model).reason == "Mine is not a HookedTransformer"
    require_same_scores(model, questions(), SOME_CONDITIONS, close=0)


def test_without_reuse_nothing_of_the_engine_runs(monkeypatch):
    monkeypatch.setattr(LayerwisePass, "run", lambda *_, **__: pytest.fail("the engine ran"))
    for call in CALLS.values():
        call(MODEL, reuse=False)


# Attention


def layerwise_activations(model, prompts, module):
    """Outputs of each layer's module in a layerwise pass, "layer token …", and each prompt's tokens."""
    rows = [Row(tuple(ids), PromptTokens(len(ids), tuple(ids))) for ids in prompts]
    plan, given = Plan(rows, [()]), {layer: {} for layer in range(model.cfg.n_layers)}
    with steer_conditions(model, plan.conditions) as steering:
        layerwise = LayerwisePass(PackedHooked(model), plan, steering, budget=64)

        def reader(layer):
            def read(_module, _inputs, x):
                tokens = layerwise.current.tokens
                given[layer] |= dict(zip(range(tokens.start, tokens.stop), x[0], strict=True))

            return read

        handles = [
            module(block).register_forward_hook(reader(layer)) for layer, block in enumerate(model.blocks)
        ]
        layerwise.run(model.cfg.n_layers)
    for handle in handles:
        handle.remove()
    return given, [plan.path(0, row) for row in range(len(rows))]


@pytest.mark.parametrize("tokens", [None, 6])
@pytest.mark.parametrize("part", ["attn", "attn.hook_z"])
def test_the_attention_stand_in_gives_what_transformer_lens_s_own_gives(architecture, part, tokens):
    model = architecture[1]
    prompts = [[*PROMPTS[0], *range(20, 34)], *PROMPTS]
    with small_batches(tokens, 4):
        given, paths = layerwise_activations(model, prompts, lambda block: block.get_submodule(part))
    for ids, path in zip(prompts, paths, strict=True):
        for layer, block in enumerate(model.blocks):
            seen = []
            handle = block.get_submodule(part).register_forward_hook(
                lambda m, i, x, seen=seen: seen.append(x[0])
            )
            with torch.no_grad():
                model(torch.tensor([ids]))
            handle.remove()
            result = torch.stack([given[layer][int(number)] for number in path])
            torch.testing.assert_close(result, seen[0], rtol=1e-5, atol=1e-5)


def test_attention_is_called_with_what_the_stand_in_knows():
    """Where TransformerLens's forward takes something new, the stand-in has to learn what it means."""
    assert list(inspect.signature(AbstractAttention.forward).parameters) == [
        "self", "query_input", "key_input", "value_input", "past_kv_cache_entry", "additive_attention_mask",
        "attention_mask", "position_bias",
    ]  # fmt: skip
    given = {"query_input", "key_input", "value_input", "past_kv_cache_entry", "attention_mask"}
    assert given <= set(inspect.signature(stand_in._forward).parameters)
    calls = [
        node
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(TransformerBlock.forward))))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.attn"
    ]
    assert {keyword.arg for call in calls for keyword in call.keywords} == given
    assert not any(call.args for call in calls)
    assert Attention.forward is AbstractAttention.forward


def test_attention_hangs_on_no_setting_that_the_engine_does_not_know():
    """Every setting that TransformerLens's attention reads in a pass is refused, or does the same here."""
    passing = (
        "forward", "calculate_qkv_matrices", "_apply_qk_norm", "calculate_attention_scores",
        "calculate_z_scores", "apply_causal_mask", "_make_causal_mask", "apply_rotary", "rotate_every_two",
    )  # fmt: skip
    read = set()
    for name in passing:
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(AbstractAttention, name))))
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.cfg"
        }
    support = importlib.import_module("tl_steer.engine.shared.packed_hooked")
    alike = {
        "attn_scores_soft_cap", "d_head", "n_ctx", "n_heads", "device", "original_architecture",
        "rotary_adjacent_pairs", "rotary_dim", "use_qk_norm", "window_size",
    }  # fmt: skip
    assert read - set(support._SUPPORTED) == alike


# Precision


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.4), (torch.float16, 0.05)], ids=str)
def test_half_precision_equals_the_plain_loop_s_and_stays_half(dtype, close):
    model = make_model(word_tokenizer(), dtype=dtype)
    seen = []
    forward = model.blocks[2].forward
    model.blocks[2].forward = lambda x, **kwargs: seen.append(x.dtype) or forward(x, **kwargs)
    conditions = [(), (Add(vectors(model, [1]), 1.0, last_token()),), (ProjectOut(vectors(model, [0], "z")),)]
    require_same_scores(model, questions(), conditions, close=close)
    require_same_texts(model, PROMPTS, conditions, Decoding(4), tie=close)
    result, expected = (
        capture(model, PROMPTS, *conditions[1], positions=all_tokens(), reuse=reuse)
        for reuse in (True, False)
    )
    assert result.values.dtype is torch.float32
    require_same_activations(result, expected, close=close)
    assert set(seen) == {dtype}


# The embedded model


@pytest.mark.model
def test_the_embedded_model_s_numbers_and_tokens_equal_the_plain_loop_s(embedded):
    prompts = ["The sky is", "The sky is not"]
    stream = capture(embedded, prompts, positions=all_tokens(), layers=[3, 20], reuse=False)
    result = capture(embedded, prompts, positions=all_tokens(), layers=[3, 20])
    relative = (result.values - stream.values).norm(dim=-1) / stream.values.norm(dim=-1)
    assert relative.nan_to_num().max() < CLOSE
    torch.testing.assert_close(result.stream_norm, stream.stream_norm, rtol=1e-4, atol=0)
    one = vectors(embedded, [12]).scaled_to(dose=4.0)
    conditions = [(), (Add(one, 1.0),), (Add(one, -2.0, last_token()),), (ProjectOut(one),)]
    ids = [embedded.tokenizer(prompt)["input_ids"] for prompt in prompts]
    require_same_texts(embedded, ids, conditions[1:3], Decoding(3))
    for condition in conditions[1:]:
        together, plainly = (
            choice_logits(embedded, prompts, (" blue", " green"), *condition, reuse=reuse)
            for reuse in (True, False)
        )
        np.testing.assert_allclose(
            together["logit_difference"], plainly["logit_difference"], rtol=0, atol=CLOSE
        )
        np.testing.assert_allclose(np.log(together["mass"]), np.log(plainly["mass"]), rtol=0, atol=CLOSE)
