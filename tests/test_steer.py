"""`steer`: restores all hooks, leaves the user's own in place, and reports edits that were not applied."""

import copy
import functools

import pytest
import torch

from tl_steer._capture import capture
from tl_steer._generation import generate
from tl_steer.directions import SteeringVector
from tl_steer.errors import EmptySelectionError, HookDidNotFireError, ModelMismatchError, NonFiniteError
from tl_steer.interventions import Ablate, Add, SetProjection, steer
from tl_steer.models import identify, load_model
from tl_steer.positions import generated_tokens, last_token, parse_positions, token

from .tiny_model import (
    D_MODEL,
    TABLE,
    Change,
    all_hooks,
    greedy_alone,
    hook_name,
    made_vector,
    make_model,
    run_alone,
    weights_of,
    word_tokenizer,
)

MODEL = make_model(word_tokenizer())
IDS = [0, 3, 4, 5, 6]
TOKENS = torch.tensor([IDS])
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}


def added(vector, multiplier=1.0, positions="all_tokens()"):
    """The change by hand that `Add` is."""
    return Change(vector.layer, vector.hook, lambda x: x + multiplier * vector.values, TABLE[positions])


def by_hand(*changes):
    return run_alone(MODEL, IDS, 5, changes)[0]


def steered(*operations, tokens=TOKENS, **options):
    """Logits of the first row."""
    with torch.no_grad(), steer(MODEL, *operations, **options):
        return MODEL(tokens)[0]


@pytest.fixture
def user_hooks():
    """Hooks of the user's: one of each kind, counting how often they run."""
    seen = []
    point = MODEL.blocks[1].hook_resid_post
    point.add_hook(lambda x, hook: seen.append("added"))
    MODEL.add_perma_hook(hook_name("resid_pre", 0), lambda x, hook: seen.append("permanent"))
    handles = [
        point.register_forward_hook(lambda *_: seen.append("plain")),
        MODEL.blocks[0].register_forward_pre_hook(lambda *_: seen.append("before")),
    ]
    yield seen
    for handle in handles:
        handle.remove()
    MODEL.reset_hooks(including_permanent=True)


def test_afterwards_every_hook_is_as_before_and_those_of_the_user_have_run(user_hooks):
    before, weights = all_hooks(MODEL), weights_of(MODEL)
    with steer(MODEL, Add(made_vector(MODEL, 1), 2.0), Ablate(2, "z", heads=[0])):
        MODEL(TOKENS)
    assert all_hooks(MODEL) == before
    assert sorted(user_hooks) == ["added", "before", "permanent", "plain"]
    assert all(torch.equal(weight, weights[name]) for name, weight in MODEL.state_dict().items())
    user_hooks.clear()
    MODEL(TOKENS)
    assert len(user_hooks) == 4


class StopError(Exception):
    pass


def stop(*_, **__):
    raise StopError


EXCEPTIONS = {
    "inside": (StopError, [], stop),
    "in a pass": (
        StopError, [], lambda: MODEL.run_with_hooks(TOKENS, fwd_hooks=[(hook_name("resid_mid", 1), stop)]),
    ),
    "while entering": (ValueError, [Ablate(1, "nothing")], stop),
    "not finite": (
        NonFiniteError, [Add(made_vector(MODEL, 2), 3e38)],
        lambda: MODEL.generate(TOKENS, max_new_tokens=2, **GREEDY),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "operations", "run"), EXCEPTIONS.values(), ids=EXCEPTIONS)
def test_after_an_exception_every_hook_is_as_before(user_hooks, error, operations, run):
    before = all_hooks(MODEL)
    with pytest.raises(error), steer(MODEL, Add(made_vector(MODEL, 1), 2.0), *operations):
        run()
    assert all_hooks(MODEL) == before


def test_an_error_while_hooks_are_registered_leaves_none(monkeypatch):
    before = all_hooks(MODEL)
    monkeypatch.setattr(MODEL.blocks[2].hook_resid_post, "register_forward_hook", lambda hook: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        steered(Add(made_vector(MODEL, 0)), Add(made_vector(MODEL, 2)))
    monkeypatch.undo()
    assert all_hooks(MODEL) == before


def test_hooks_of_the_user_are_added_and_removed_inside():
    vector = made_vector(MODEL, 1)
    expected = by_hand(added(vector))
    with torch.no_grad(), steer(MODEL, Add(vector)):
        MODEL.run_with_hooks(TOKENS, fwd_hooks=[(hook_name("resid_post", 1), lambda x, hook: x * 0)])
        MODEL.reset_hooks()
        torch.testing.assert_close(MODEL(TOKENS)[0], expected)


def test_nested_blocks_add_up_and_the_inner_one_ends_first():
    first, second = made_vector(MODEL, 1, seed=1), made_vector(MODEL, 1, seed=2)
    one, other = added(first), added(second, -2.0, "token(0)")
    expected = by_hand(one, other), by_hand(one), by_hand()
    with torch.no_grad(), steer(MODEL, Add(first)):
        with steer(MODEL, Add(second, -2.0, token(0))):
            torch.testing.assert_close(MODEL(TOKENS)[0], expected[0])
        torch.testing.assert_close(MODEL(TOKENS)[0], expected[1])
    assert torch.equal(MODEL(TOKENS)[0], expected[2])
    assert torch.equal(steered(), expected[2])


@pytest.mark.parametrize(
    "positions", ["all_tokens()", "current_token()", "generated_tokens()", "last_token()", "~token(0)"]
)
def test_transformer_lens_s_own_generation_is_steered_at_the_same_tokens_with_and_without_a_cache(positions):
    vector = made_vector(MODEL, 1, scale=9.0)
    operation = Add(vector, 1.0, parse_positions(positions))
    expected = greedy_alone(MODEL, IDS, 6, [added(vector, 1.0, positions)])
    for cached in (True, False):
        with steer(MODEL, operation, prompt_lengths=None if cached else [5]):
            result = MODEL.generate(TOKENS, max_new_tokens=6, use_past_kv_cache=cached, **GREEDY)
        assert result[0, 5:].tolist() == expected


def test_passes_that_start_at_a_layer_are_steered():
    vector = made_vector(MODEL, 2)
    with torch.no_grad():
        residual = MODEL(TOKENS, stop_at_layer=1)
        with steer(MODEL, Add(vector, 1.0, last_token())):
            result = MODEL(residual, start_at_layer=1)
    torch.testing.assert_close(result[0], by_hand(added(vector, 1.0, "last_token()")))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda model: model(TOKENS, stop_at_layer=1), r"at layer 1: the hook did not fire.*stop_at_layer"),
        (lambda model: make_model(word_tokenizer())(TOKENS), "no pass of this model ran"),
        (lambda model: model(TOKENS), r"Add\(multiplier=1\) at layer 1: the hook did not fire"),
    ],
    ids=["the pass stops before", "another model", "the block is bypassed"],
)
def test_an_operation_whose_hook_was_not_reached_is_an_error(run, message):
    model = copy.deepcopy(MODEL)
    model.blocks[1].forward = lambda x, **_: x
    with pytest.raises(HookDidNotFireError, match=message):  # noqa: SIM117
        with steer(model, Add(made_vector(MODEL, 0)), Add(made_vector(MODEL, 1))):
            run(model)


def test_a_prompt_shorter_than_its_length_is_an_error():
    operation = Add(made_vector(MODEL, 1), positions=last_token())
    with pytest.raises(ValueError, match=r"prompt of 9 tokens, but no row had more than 4"):
        steered(operation, tokens=TOKENS[:, :4], prompt_lengths=[9])


def test_other_weights_are_accepted_only_with_force_by_capture_and_generate(make_hf_model):
    first, second = (load_model("tiny", hf_model=make_hf_model("gpt2", seed=seed)) for seed in (0, 1))
    identity = identify(first)
    values = torch.ones(identity.d_model)
    operation = Add(SteeringVector(values, 1, "resid_post", "made", 1.0, identity))
    for call in (capture, functools.partial(generate, return_tokens=True)):
        with pytest.raises(ModelMismatchError, match="pass force=True"):
            call(second, [[3, 4]], operation, max_new_tokens=2)
        call(second, [[3, 4]], operation, max_new_tokens=2, force=True)


def test_a_vector_of_another_model_is_rejected_without_force():
    vector = made_vector(make_model(word_tokenizer(), seed=5), 1)
    with pytest.raises(ModelMismatchError, match=r"the vector of Add\(multiplier=1\) at layer 1.*force=True"):
        steered(Add(vector))
    torch.testing.assert_close(steered(Add(vector), force=True), by_hand(added(vector)))
    deeper = made_vector(make_model(word_tokenizer(), n_layers=4), 1)
    with pytest.raises(ModelMismatchError, match="n_layers: 4 against 3"):
        steered(Add(deeper), force=True)


def test_a_hook_that_the_architecture_lacks_is_an_error_that_lists_the_others():
    parallel = make_model(word_tokenizer(), parallel_attn_mlp=True)
    message = r"'resid_mid' does not exist at layer 1 of tiny; .* has resid_pre, resid_post"
    with pytest.raises(ValueError, match=message), steer(parallel, Ablate(1, "resid_mid")):
        pass


def test_every_operation_with_a_model_is_checked():
    other = make_model(word_tokenizer(), seed=5)
    for operation in (SetProjection(made_vector(other, 1), 1.0), Ablate(1, to=capture(other, ["a b"]))):
        with pytest.raises(ModelMismatchError):
            steered(operation)


def test_an_empty_selection_is_an_error_unless_allowed():
    vector = made_vector(MODEL, 1)
    for positions in ("token(5)", "tokens_matching('nowhere')", "span(3, 3)", "~all_tokens()"):
        operation = Add(vector, 1.0, parse_positions(positions))
        message = r"selects no token of Add.* row 0 \('<s> a b c d', 5 tokens\)"
        with pytest.raises(EmptySelectionError, match=message):
            steered(operation)
        assert torch.equal(steered(operation, allow_empty=True), by_hand())
    steered(Add(vector, 1.0, generated_tokens()))  # of what may come


def test_every_prompt_of_a_block_is_checked():
    operation = Add(made_vector(MODEL, 1), 1.0, token(3))
    with pytest.raises(EmptySelectionError, match=r"'e f g', 3 tokens"), steer(MODEL, operation):  # noqa: PT012
        MODEL(TOKENS)
        MODEL(torch.tensor([[7, 8, 9]]))


def test_vectors_tensors_and_residuals_are_not_changed():
    vector, target = made_vector(MODEL, 1), torch.ones(D_MODEL)
    several = made_vector(MODEL, 1).at(layers=[0, 2])
    residual = MODEL(TOKENS, stop_at_layer=1).clone()
    tensors = [vector.values, target, several.values, TOKENS, residual]
    copies = [tensor.clone() for tensor in tensors]
    steered(Add(vector, 3.0), Ablate(2, to=target), SetProjection(several, 2.0))
    with steer(MODEL, Add(made_vector(MODEL, 1, "resid_pre"), 5.0)):
        MODEL(residual, start_at_layer=1)
    assert all(map(torch.equal, tensors, copies))
