"""float32, bfloat16 and float16: rounding, overflow, and dtypes that a device lacks."""

import math

import pytest
import torch

import tl_steer as ts
from tl_steer._generation import Decoding
from tl_steer._scoring import plan_choices
from tl_steer.directions import SteeringVector
from tl_steer.engine import logits_of
from tl_steer.engine.logits import log_normaliser, logits_at
from tl_steer.errors import NonFiniteError
from tl_steer.interventions import Ablate, Add, ProjectOut, SetProjection, steer
from tl_steer.models import identify, load_model
from tl_steer.models.loading import _device
from tl_steer.positions import all_tokens, generated_tokens, tokens_matching

from .conftest import assert_raises, random_hf_model
from .tiny_model import D_MODEL, made_vector, make_model, score, word_tokenizer, write

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
MODELS = {dtype: make_model(word_tokenizer(), dtype=dtype) for dtype in DTYPES}
MODEL = MODELS[torch.float32]
PROMPTS = ["a c d", "e f g h", "a b", "c d"]
LAYER, MULTIPLIER, VALUE = 1, 7.7, 1.3
VECTOR = made_vector(MODEL, LAYER, scale=0.31).values
UNIT = VECTOR.double() / VECTOR.double().norm()

# Each operation, and its formula in float64, one position per row.
OPERATIONS = {
    "add": (lambda v: Add(v, MULTIPLIER), lambda x: x + MULTIPLIER * VECTOR.double()),
    "project out": (ProjectOut, lambda x: x - (x @ UNIT)[..., None] * UNIT),
    "set projection": (lambda v: SetProjection(v, VALUE), lambda x: x + (VALUE - x @ UNIT)[..., None] * UNIT),
    "ablate": (lambda v: Ablate(LAYER, to=v.values), lambda x: VECTOR.double().expand_as(x)),
}


def vector_of(model):
    """The same float32 vector, as one of this model's."""
    return SteeringVector(VECTOR, LAYER, "resid_post", "made", 10.0, identify(model))


def streams(model, *operations, reuse=True):
    captured = ts.capture(model, PROMPTS, *operations, positions=all_tokens(), layers=LAYER, reuse=reuse)
    values = captured.values[:, 0]
    return values[~values[..., 0].isnan()]


def under_steer(model, *operations):
    """`streams` by the user's own calls, one prompt at a time."""
    result = []
    for prompt in PROMPTS:
        with torch.no_grad(), steer(model, *operations):
            result.append(model(torch.tensor([ts.tokenize(model, prompt)]), stop_at_layer=LAYER + 1)[0])
    return torch.cat(result)


def is_rounded_once(result, exact, dtype):
    """Whether each number is the dtype's nearest to the exact one, apart from float32's error before it."""
    error = 1e-6 * exact.abs().amax(-1, keepdim=True).clamp_min(1)
    if dtype == torch.float32:
        return bool(((result.double() - exact).abs() <= 4 * error).all())
    low, high = ((exact + side * error).to(dtype).double() for side in (-1, 1))
    return bool(((result.double() >= low) & (result.double() <= high)).all())


@pytest.mark.parametrize("way", ["engine", "plain loop", "steer"])
@pytest.mark.parametrize("name", OPERATIONS)
@EACH_DTYPE
def test_an_operation_is_computed_exactly_and_rounded_once(dtype, name, way):
    model, (operation_of, formula) = MODELS[dtype], OPERATIONS[name]
    operation = operation_of(vector_of(model))
    if way == "steer":
        clean, result = under_steer(model), under_steer(model, operation)
        assert result.dtype == dtype
    else:
        reuse = way == "engine"
        clean, result = streams(model, reuse=reuse), streams(model, operation, reuse=reuse)
    assert is_rounded_once(result, formula(clean.double()), dtype)


@EACH_DTYPE
def test_choices_and_texts_in_each_dtype_are_the_model_s_own(dtype):
    model = MODELS[dtype]
    operation = Add(vector_of(model), 2.0)
    yes, no = model.tokenizer.convert_tokens_to_ids(["yes", "no"])
    coarse = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for reuse in (True, False):
        table = ts.choice_logits(model, PROMPTS, (" yes", " no"), operation, reuse=reuse)
        texts = ts.generate(model, PROMPTS, operation, max_new_tokens=4, return_tokens=True, reuse=reuse)
        for row, prompt in enumerate(PROMPTS):
            ids = ts.tokenize(model, prompt)
            with torch.no_grad(), steer(model, operation, prompts=[ids]):
                logits = model(torch.tensor([[*ids, *texts[row][:-1]]]))[0, len(ids) - 1 :].double()
            expected = float(logits[0, yes] - logits[0, no])
            assert math.isclose(table["logit_difference"][row], expected, abs_tol=coarse)
            chosen = logits.gather(1, torch.tensor(texts[row])[:, None])[:, 0]
            assert (logits.amax(-1) - chosen).max() <= coarse


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_the_oracle_detects_a_vector_that_was_rounded_before_the_addition(dtype):
    clean = streams(MODELS[dtype])
    exact = clean.double() + MULTIPLIER * VECTOR.double()
    early = (clean + MULTIPLIER * VECTOR.to(dtype).float()).to(dtype)
    in_half = clean.to(dtype) + MULTIPLIER * VECTOR.to(dtype)
    results = (early, in_half, (clean + MULTIPLIER * VECTOR).to(dtype))
    assert [is_rounded_once(each, exact, dtype) for each in results] == [False, False, True]


def unembedded_by_hand(model, stream):
    """Logits in float64 of streams after the last block."""
    x = stream.double() - stream.double().mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()
    x = x * model.ln_final.w.double() + model.ln_final.b.double()
    return x @ model.W_U.double() + model.b_U.double()


@EACH_DTYPE
def test_a_stream_is_unembedded_in_float32_whatever_the_model_rounds_to(dtype):
    model = MODELS[dtype]
    stream = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = torch.tensor([[3, 9], [4, 4], [0, 1], [7, 2], [8, 3]])
    with torch.no_grad():
        logits = unembedded_by_hand(model, stream)
        for result, expected in (
            (logits_of(model, stream), logits),
            (logits_at(model, stream, tokens), logits.gather(1, tokens)),
            (log_normaliser(model, stream), logits.logsumexp(-1)),
        ):
            torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


@EACH_DTYPE
def test_choices_are_told_apart_in_float32_by_a_model_in_half_precision(dtype):
    model = MODELS[dtype]
    operation = Add(vector_of(model), 2.0)
    pair = model.tokenizer.convert_tokens_to_ids(["yes", "no"])
    for prompt in PROMPTS:
        ids = ts.tokenize(model, prompt)
        with torch.no_grad(), steer(model, operation, prompts=[ids]):
            _, cache = model.run_with_cache(torch.tensor([ids]))
        scores = unembedded_by_hand(model, cache["resid_post", -1][0, -1]).log_softmax(-1)[pair]
        result = choices(model, prompt, operation, reuse=False).loc[0]
        assert math.isclose(result["logit_difference"], float(scores[0] - scores[1]), abs_tol=2e-5)
        assert math.isclose(result["mass"], float(scores.exp().sum()), rel_tol=2e-5)


# Infinite in the prompt that has a "b", and in no other.
OVERFLOWING = Add(made_vector(MODEL, 1), 3e38, tokens_matching("b"))
# Finite where it is added; its mean is not, so that the next layer's norm returns NaN.
ONES = SteeringVector(torch.full((D_MODEL,), 1e38), 0, "resid_post", "made", 1.0, identify(MODEL))
LATE = Add(ONES, 1.5, tokens_matching("b"))


def with_nan():
    """A model that overflows by itself, in the prompt that has a "b"."""
    model = make_model(word_tokenizer())
    model.embed.W_E[model.tokenizer.convert_tokens_to_ids("b")] = torch.nan
    return model


def choices(model, prompts, *operations, **options):
    return ts.choice_logits(model, prompts, (" yes", " no"), *operations, **options)


def texts(model, prompts, *operations, **options):
    return ts.generate(model, prompts, *operations, max_new_tokens=3, **options)


IN_PROMPT = r"prompt 2 \('<s> a b', 3 tokens\)"
OVERFLOW = f"the stream became NaN or infinite in {IN_PROMPT}"
SMALLER = rf"{OVERFLOW}\. Use a smaller multiplier\.$"
REUSE = pytest.mark.parametrize("reuse", [True, False], ids=["engine", "plain loop"])


@REUSE
@pytest.mark.parametrize("call", [ts.capture, choices, texts])
@pytest.mark.parametrize(("make_model", "operations", "message", "captured"), [
    (lambda: MODEL, [OVERFLOWING], rf"^Add\(multiplier=3e\+38\) at layer 1: {SMALLER}", None),
    (lambda: MODEL, [LATE], rf"^Add\(multiplier=1\.5\) at layer 0: {SMALLER}", 1),
    (with_nan, [], rf"^without any operation: {OVERFLOW}.*Load the model in bfloat16", 0),
], ids=["at the layer", "in a later layer", "in the model"])  # fmt: skip
def test_the_prompt_in_which_the_stream_overflows_is_named(
    make_model, operations, message, captured, call, reuse
):
    """`captured`: the layer that the engine's capture reads before the overflow is detected."""
    if call is ts.capture and reuse and captured is not None:
        message = rf"^layer {captured}, {IN_PROMPT}: the activation is NaN or infinite\.$"
    options = {"allow_empty": True, "reuse": reuse}
    assert_raises(message, call, make_model(), PROMPTS, *operations, error=NonFiniteError, **options)


@REUSE
def test_a_prompt_that_overflows_in_its_answer_is_named(reuse):
    add, options = Add(made_vector(MODEL, 1), 3e38, generated_tokens()), {"min_new_tokens": 3, "reuse": reuse}
    message = r"in prompt 0 \('<s> e f', 3 tokens\)"
    assert_raises(message, texts, MODEL, ["e f"], add, error=NonFiniteError, **options)


def test_the_row_of_a_users_own_pass_and_the_prompt_of_a_sweep_are_named():
    tokens = torch.tensor([[0, 3, 5], [0, 3, 4]])
    message = r"in row 1 \('<s> a b', 3 tokens\)\. Use a smaller multiplier"
    with pytest.raises(NonFiniteError, match=message), steer(MODEL, OVERFLOWING, allow_empty=True):
        MODEL(tokens, attention_mask=torch.ones_like(tokens))
    questions = ts.ChoiceQuestions(PROMPTS, [(" yes", " no")] * len(PROMPTS))
    message = r"Add\(multiplier=3e\+38\) at layer 1: the stream became NaN or infinite in prompt \d"
    options = {"multipliers": [3e38], "controls": 0, "progress": False, "error": NonFiniteError}
    assert_raises(message, ts.sweep, MODEL, made_vector(MODEL, 1).at(layers=1), questions, **options)


@REUSE
def test_the_guilty_prompt_is_named_among_many_conditions(reuse):
    conditions = [(), (Add(made_vector(MODEL, 0)),), (OVERFLOWING,), (Add(made_vector(MODEL, 2), -1.0),)]
    options = {"allow_empty": True, "reuse": reuse, "error": NonFiniteError}
    plan = plan_choices(MODEL, PROMPTS, [(" yes", " no")] * len(PROMPTS))
    assert_raises(f"at layer 1: {OVERFLOW}", score, MODEL, plan, conditions, **options)
    ids = [ts.tokenize(MODEL, prompt) for prompt in PROMPTS]
    assert_raises(f"at layer 1: {OVERFLOW}", write, MODEL, ids, conditions, Decoding(2), **options)


@pytest.mark.parametrize(("request_", "cuda", "mps", "device"), [
    (None, True, True, "cuda"), ("auto", True, True, "cuda"),
    (None, False, True, "cpu"), ("auto", False, True, "mps"),
    (None, False, False, "cpu"), ("auto", False, False, "cpu"),
    ("cpu", True, True, "cpu"), (torch.device("cuda", 1), True, False, "cuda:1"),
])  # fmt: skip
def test_the_device_is_the_requested_or_best_one(monkeypatch, request_, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert _device(request_) == device


@pytest.mark.parametrize(("name", "message"), [
    ("gpu", "unknown; use 'auto', 'cpu'"), ("mps", "finds 0 'mps'"), ("cuda:2", "torch finds 2 'cuda'"),
])  # fmt: skip
def test_a_device_that_does_not_exist_is_rejected(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert_raises(message, load_model, "tiny", hf_model=random_hf_model("llama"), device=name)


@EACH_DTYPE
def test_dtype_auto_is_that_of_the_files(tmp_path, dtype):
    random_hf_model("qwen2").to(dtype).save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu", dtype="auto").W_E.dtype == dtype
    assert load_model(tmp_path, device="cpu").W_E.dtype == torch.float32


def test_in_float64_nothing_is_rounded_to_float32():
    model = make_model(word_tokenizer(), dtype=torch.float64)
    vector, at = vector_of(model), ts.token(1)
    plain = under_steer(model)
    assert (under_steer(model, Add(vector, 0.0), ProjectOut(vector, 0.0)) == plain).all()
    assert (under_steer(model, Add(vector, 1e-9)) != plain).any(-1).all()  # 1e-9 of a vector is not lost
    others = (under_steer(model, Add(vector, MULTIPLIER, at)) == plain).all(-1)
    assert others.sum() == len(plain) - len(PROMPTS)
