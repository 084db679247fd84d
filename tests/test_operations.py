"""Each operation against its formula in float64, on every prompt alone; order, heads, dtypes, errors."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tl_steer.activations import Activations
from tl_steer.directions import SteeringVectors
from tl_steer.errors import NonFiniteError
from tl_steer.interventions import Ablate, Add, ProjectOut, SetProjection, steer
from tl_steer.models import identify
from tl_steer.positions import last_token, parse_positions, token

from .tiny_model import (
    D_HEAD,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    NAMES,
    TABLE,
    Change,
    hook_name,
    made_vector,
    make_model,
    run_alone,
    word_tokenizer,
)

MODEL = make_model(word_tokenizer())
HALF = make_model(word_tokenizer(), dtype=torch.float16)
PROMPT = [0, 3, 1, 4, 5]
PROMPTS = st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=6), min_size=1, max_size=3)
SPECS = st.tuples(
    st.sampled_from(["add", "project_out", "set", "zero", "replace"]),
    st.integers(0, N_LAYERS - 1),
    st.sampled_from(list(NAMES)),
    st.sampled_from(list(TABLE)),
    st.sampled_from([-2.0, -0.5, 0.0, 1.0, 2.0, 7.0]),
    st.integers(0, 3),
)


def operation_and_change(name, layer, hook, positions, number, seed):
    """An operation of the package, and the same as a change by hand."""
    vector = made_vector(MODEL, layer, hook, scale=2.0, seed=seed)
    v = vector.values.double()
    d = v / v.norm()
    where, positions = TABLE[positions], parse_positions(positions)
    cases = {
        "add": (Add(vector, number, positions), lambda x: x + number * v),
        "project_out": (ProjectOut(vector, number, positions), lambda x: x - number * (x * d).sum() * d),
        "set": (SetProjection(vector, number, positions), lambda x: x + (number - (x * d).sum()) * d),
        "zero": (Ablate(layer, hook, positions=positions), torch.zeros_like),
        "replace": (Ablate(layer - N_LAYERS, hook, to=v.float(), positions=positions), lambda x: v.clone()),
    }
    operation, change = cases[name]
    return operation, Change(layer, hook, lambda x: change(x.double()), where)


@pytest.mark.filterwarnings("ignore:row . begins with two BOS")
@settings(max_examples=40, deadline=None)
@given(st.lists(SPECS, min_size=1, max_size=4), PROMPTS, st.booleans(), st.booleans())
def test_operations_equal_their_formulas_on_each_prompt_alone(specs, prompts, left, known):
    operations, changes = zip(*(operation_and_change(*spec) for spec in specs), strict=True)
    width = max(map(len, prompts))
    tokens, mask = torch.ones(len(prompts), width).long(), torch.zeros(len(prompts), width).long()
    for row, prompt in enumerate(prompts):
        index = slice(width - len(prompt), None) if left else slice(None, len(prompt))
        tokens[row, index], mask[row, index] = torch.tensor(prompt), 1
    with torch.no_grad(), steer(MODEL, *operations, prompts=prompts if known else None):
        logits = MODEL(tokens, attention_mask=mask)
    for row, prompt in enumerate(prompts):
        expected, _ = run_alone(MODEL, prompt, len(prompt), changes)
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=1e-4, atol=2e-4)


def stream_after(*operations, layer=1, hook="resid_post", model=MODEL):
    """Activations at a hook after the operations, read by TransformerLens."""
    with torch.no_grad(), steer(model, *operations):
        _, cache = model.run_with_cache(torch.tensor([PROMPT]))
    return cache[hook_name(hook, layer)][0]


def clean(layer=1, hook="resid_post", model=MODEL):
    return run_alone(model, PROMPT, len(PROMPT), reads=[hook_name(hook, layer)])[1][hook_name(hook, layer)]


@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_only_the_projection_becomes_zero_its_opposite_or_the_value(scale):
    vector = made_vector(MODEL, 1, scale=scale)
    d = vector.values / vector.values.norm()
    before = clean()
    assert (before @ d).abs().min() > 0.01
    for operation, expected in (
        (ProjectOut(vector), torch.zeros(5)),
        (ProjectOut(vector, 2.0), -(before @ d)),
        (SetProjection(vector, 4.5), torch.full((5,), 4.5)),
    ):
        result = stream_after(operation)
        torch.testing.assert_close(result @ d, expected, atol=1e-5, rtol=1e-5)
        others = before - torch.outer(before @ d, d)
        torch.testing.assert_close(result - torch.outer(result @ d, d), others, atol=1e-4, rtol=0)


def test_operations_at_one_hook_are_applied_in_the_order_given():
    add, remove = Add(made_vector(MODEL, 1, scale=5.0)), ProjectOut(made_vector(MODEL, 1, scale=1.0))
    d = remove.vector.values
    assert (stream_after(add, remove) @ d).abs().max() < 1e-5
    shift = stream_after(remove, add) @ d
    torch.testing.assert_close(shift, (add.vector.values @ d).expand(5), atol=1e-5, rtol=1e-5)


def test_ablating_heads_leaves_the_others_bit_for_bit():
    for layer, heads in ((0, [1]), (2, (0, 2))):
        expected = clean(layer, "z")
        expected[:, list(heads)] = 0
        assert torch.equal(stream_after(Ablate(layer, "z", heads=heads), layer=layer, hook="z"), expected)


def test_ablating_heads_to_a_vector_uses_its_part_of_that_head():
    target = torch.arange(float(N_HEADS * D_HEAD))
    expected = clean(1, "z")
    expected[3, 2] = torch.tensor([8.0, 9.0, 10.0, 11.0])
    operation = Ablate(1, "z", heads=[2], to=target, positions=token(3))
    assert torch.equal(stream_after(operation, hook="z"), expected)


def activations(values):
    prompts, layers, positions, _ = values.shape
    index, layers = torch.zeros(prompts, positions, dtype=torch.long), tuple(range(layers))
    lengths, norms, texts = torch.ones(prompts, dtype=torch.long), torch.ones(len(layers)), ("",) * prompts
    return Activations(
        values, index, index, lengths, layers, "resid_post", last_token(), texts, norms, identify(MODEL)
    )


def test_ablating_to_activations_uses_the_mean_without_padding():
    values = torch.randn(3, N_LAYERS, 2, D_MODEL, generator=torch.Generator().manual_seed(1))
    values[0, :, 1] = torch.nan
    result = stream_after(Ablate(1, to=activations(values)))
    rows = np.concatenate([values[0, 1, :1], values[1, 1], values[2, 1]]).astype(np.float64)
    np.testing.assert_allclose(result, np.tile(rows.mean(0), (5, 1)), rtol=1e-6)


def vectors_at(layers, values, hook="resid_post"):
    return SteeringVectors(values, layers, hook, "x", torch.full((len(layers),), 30.0), identify(MODEL))


def test_vectors_of_several_layers_are_added_each_at_its_own():
    one, other = (made_vector(MODEL, layer, seed=layer) for layer in (0, 2))
    both = vectors_at((0, 2), torch.stack([one.values, other.values]))
    together = stream_after(Add(both, -3.0), layer=2)
    assert torch.equal(together, stream_after(Add(one, -3.0), Add(other, -3.0), layer=2))
    assert (together - stream_after(Add(other, -3.0), layer=2)).abs().max() > 0.1


@pytest.mark.parametrize(("positions", "indices"), [("all_tokens()", [0, 1, 2]), ("token(1)", [1])])
def test_vectors_with_positions_are_added_to_the_first_tokens(positions, indices):
    values = torch.randn(1, 3, D_MODEL, generator=torch.Generator().manual_seed(2))
    operation = Add(vectors_at((1,), values, "resid_pre"), 2.0, parse_positions(positions))
    expected = clean(hook="resid_pre")
    expected[indices] += 2 * values[0, indices]
    torch.testing.assert_close(stream_after(operation, hook="resid_pre"), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_streams_are_changed_in_float32_and_rounded_once(dtype):
    model = make_model(word_tokenizer(), dtype=dtype)
    x = clean(model=model)
    assert x.dtype is dtype
    vector = made_vector(model, 1, scale=0.37)
    result = stream_after(Add(vector, 3.3), ProjectOut(vector, 0.7), model=model)
    assert result.dtype is dtype
    v = vector.values
    d = v / v.norm()
    wide = x.float() + 3.3 * v
    assert torch.equal(result, (wide - 0.7 * (wide @ d)[:, None] * d).to(dtype))
    step = (x + (3.3 * v).to(dtype)).to(dtype)
    narrow = step - (0.7 * (step @ d.to(dtype))[:, None] * d.to(dtype)).to(dtype)
    assert not torch.equal(result, narrow)


def test_an_intermediate_value_beyond_float16_is_no_overflow():
    vector = dataclasses.replace(made_vector(HALF, 1), values=torch.ones(D_MODEL))
    filled = HALF.hooks([(hook_name("resid_post", 1), lambda x, hook: torch.full_like(x, 30000.0))])
    with torch.no_grad(), filled, steer(HALF, ProjectOut(vector)):
        result = HALF(torch.tensor([PROMPT]), stop_at_layer=2)
    assert result.abs().max() < 30


def test_an_overflow_names_layer_and_multiplier():
    message = (
        r"Add\(multiplier=1e\+06\) at layer 1: the stream became NaN or infinite in row 0 "
        r"\('<s> a </s> b c', 5 tokens\)\. Use a smaller multiplier"
    )
    with pytest.raises(NonFiniteError, match=message):
        stream_after(Add(made_vector(HALF, 1), 1e6), model=HALF)
    with pytest.raises(NonFiniteError, match=r"Add\(multiplier=3e\+38\) at layer 0"):
        stream_after(Add(made_vector(MODEL, 0, scale=50.0), 3e38), Add(made_vector(MODEL, 2), 1.0))


def test_an_overflow_is_an_error_where_the_pass_stops_early_and_in_a_later_block():
    overflow = pytest.raises(NonFiniteError, match="at layer 1")
    with torch.no_grad(), overflow, steer(HALF, Add(made_vector(HALF, 1), 1e6)):
        HALF(torch.tensor([PROMPT]), stop_at_layer=2)
    infinite = make_model(word_tokenizer())
    infinite.blocks[1].mlp.b_out[:] = torch.inf
    with pytest.raises(NonFiniteError, match=r"Add\(multiplier=1\) at layer 0"):
        stream_after(Add(made_vector(infinite, 0)), model=infinite)


def test_nan_in_padding_is_not_an_error():
    tokens, mask = torch.tensor([PROMPT, [1, 1, 0, 3, 4]]), torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    spoil = torch.zeros(2, 5, 1)
    spoil[1, :2] = torch.nan
    spoiling = MODEL.hooks([(hook_name("resid_post", 2), lambda x, hook: x + spoil)])
    with torch.no_grad(), spoiling, steer(MODEL, Add(made_vector(MODEL, 2))):
        result = MODEL(tokens, attention_mask=mask, stop_at_layer=3)
    assert result[mask.bool()].isfinite().all()


SIX_TOKENS = vectors_at((1,), torch.ones(1, 6, D_MODEL), "resid_pre")
LAYER_0 = activations(torch.zeros(1, 1, 1, D_MODEL))


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (lambda: Add(SIX_TOKENS), ValueError, r"first 6 positions, but a prompt is shorter: .*5 tokens"),
        (lambda: ProjectOut(SIX_TOKENS), ValueError, "needs one direction per layer"),
        (lambda: SetProjection(SIX_TOKENS, 1.0), ValueError, "needs one direction per layer"),
        (lambda: Add(made_vector(MODEL, 1, "z").at(layers=1, hook="resid_post")), ValueError,
         r"Add\(multiplier=1\) at layer 1: the vector has 12 numbers, but resid_post of tiny has 16"),
        (lambda: Ablate(1, "z", to=torch.zeros(D_MODEL)), ValueError, "has 16 numbers, but z of tiny has 12"),
        (lambda: Ablate(3), IndexError, r"layer 3 is out of range: this model has 3 layers, 0 to 2"),
        (lambda: Ablate(-4), IndexError, r"layer -4 is out of range"),
        (lambda: Ablate(1, "resid_last"), ValueError, "layer 1 of tiny; this model has resid_pre, resid_mid"),
        (lambda: Ablate(1, heads=[0]), ValueError, r"hook='resid_post', heads=\[0\]: expected hook 'z'"),
        (lambda: Ablate(1, "z", heads=[]), ValueError, r"heads=\[\]: expected hook 'z', and one head"),
        (lambda: Ablate(1, "z", heads=[0, 3]), IndexError, r"heads \(0, 3\), but there are heads 0 to 2"),
        (lambda: Ablate(1, "z", heads=[-1]), IndexError, "there are heads 0 to 2"),
        (lambda: Ablate(1, to=LAYER_0), ValueError, r"of resid_post at layers \[0\]: expected .* at layer 1"),
        (lambda: Ablate(0, "mlp_out", to=LAYER_0), ValueError, "expected mlp_out at layer 0"),
        (lambda: made_vector(MODEL, 1) * float("nan"), ValueError, "NaN or infinite"),
        (lambda: Ablate(1, to="mean"), ValueError, "'mean'"),
        (lambda: setattr(Ablate(1), "layer", 2), dataclasses.FrozenInstanceError, "layer"),
    ],
)  # fmt: skip
def test_wrong_operations_are_rejected_before_anything_runs(operation, error, message):
    with pytest.raises(error, match=message):
        stream_after(operation())


def test_a_vector_of_length_zero_is_an_error_that_names_its_layer():
    vectors = vectors_at((2, 0), torch.eye(2, D_MODEL))
    for zero in (vectors.weighted({2: 1.0, 0: 0.0}), vectors[0] * 0.0):
        for operation in (Add, ProjectOut, functools.partial(SetProjection, value=1.0)):
            with pytest.raises(ValueError, match=r"length zero.* layers \[0\]"):
                operation(zero)


def test_doses_of_several_layers_that_sum_above_1_warn():
    vector = made_vector(MODEL, 0, scale=3.0)
    several = vector.at(layers=[2, 0], stream_norm={0: 10.0, 2: 5.0})  # doses .3 and .6 at multiplier 1
    with pytest.warns(UserWarning, match=r"at 2 layers .* sum to 1\.8, .*[Dd]ivide the multiplier by 2"):
        Add(several, -2.0)
    Add(several, 1.1)
    Add(several[2], 100.0)
    Add(vector.at(layers=[0, 1]), 100.0)  # norms that are not known
