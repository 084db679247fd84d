"""Generation: greedy tokens of Hugging Face and of whole passes, sampling against its distribution, ends."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tl_steer._generation import Decoding, generate
from tl_steer._util.seeds import derived_seed
from tl_steer.engine import plain
from tl_steer.interventions import Add
from tl_steer.models import chat_format, load_model
from tl_steer.positions import parse_positions

from .conftest import assert_raises
from .tiny_model import (
    N_LAYERS,
    TABLE,
    Change,
    all_hooks,
    byte_tokenizer,
    favouring,
    greedy_alone,
    made_vector,
    make_model,
    run_alone,
    word_tokenizer,
    write,
)

MODEL = make_model(word_tokenizer())
END = 1
PROMPTS = [[0, 3, 4, 1, 5], [0, 9, 8], [0, 1, 1, 7, 2, 2, 1], [0, 30, 31, 32]]


def new_tokens(prompts, *operations, model=MODEL, **options):
    return generate(model, prompts, *operations, return_tokens=True, **options)


def steering(positions, scale=8.0):
    return Add(made_vector(MODEL, 1, scale=scale), 1.0, parse_positions(positions))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("positions", TABLE)
def test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand(positions, use_cache):
    vector = made_vector(MODEL, 1, scale=8.0)
    changes = [Change(1, "resid_post", lambda x: x + vector.values, TABLE[positions])]
    expected = [greedy_alone(MODEL, ids, 6, changes, stops=[END]) for ids in PROMPTS]
    assert new_tokens(PROMPTS, steering(positions), max_new_tokens=6, use_cache=use_cache) == expected


def test_the_vector_of_that_test_changes_the_text():
    names = ("all_tokens()", "generated_tokens()", "current_token()", "last_token()", "token(0)")
    operations = [(), *((steering(name),) for name in names)]
    assert len({str(new_tokens(PROMPTS, *each, max_new_tokens=6)) for each in operations}) >= 4


@settings(max_examples=10, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=8), min_size=2, max_size=3),
    positions=st.sampled_from(list(TABLE)),
    layer=st.integers(0, N_LAYERS - 1),
    sampling=st.fixed_dictionaries({
        "temperature": st.sampled_from([0.0, 0.7, 1.5]),
        "top_p": st.sampled_from([0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.1, 3.0]),
    }),
)  # fmt: skip
def test_a_batch_equals_its_rows_alone_also_when_sampling(prompts, positions, layer, sampling):
    options = {"max_new_tokens": 5, "seed": 3, **sampling}
    operation = Add(made_vector(MODEL, layer, scale=8.0), 1.0, parse_positions(positions))
    together = new_tokens(prompts, operation, **options)
    assert together == [new_tokens([ids], operation, **options)[0] for ids in prompts]
    assert together == new_tokens(prompts, operation, **options, use_cache=False)
    assert together == new_tokens(prompts, operation, **options, reuse=False)


def test_a_vector_minus_itself_changes_nothing():
    vector, texts = made_vector(MODEL, 1, scale=8.0), ["a b c", "d"]
    unsteered = generate(MODEL, texts, max_new_tokens=8)
    assert_raises(r"length zero at layers \[1\].*allow_zero=True", Add, vector - vector, 5.0)
    for unchanged in (Add(vector - vector, 5.0, allow_zero=True), Add(vector, 0.0)):
        assert generate(MODEL, texts, unchanged, max_new_tokens=8) == unsteered
    assert generate(MODEL, texts, Add(vector), max_new_tokens=8) != unsteered


def test_text_is_the_new_text_alone_without_special_tokens():
    ending, texts = favouring(MODEL, END, 6.0), ["a b c", "d", "e f g h i"]
    result = generate(ending, texts, max_new_tokens=8)
    for text, new_text in zip(texts, result, strict=True):
        ids = greedy_alone(ending, ending.tokenizer(text)["input_ids"], 8, stops=[END])
        assert new_text == ending.tokenizer.decode([i for i in ids if i > 1])
    assert generate(ending, "a b c", max_new_tokens=8) == result[:1]


def test_a_row_ends_at_the_end_of_its_turn_and_the_others_continue():
    ending = favouring(MODEL, END, 2.5)
    expected = [greedy_alone(ending, ids, 12, stops=[END]) for ids in PROMPTS]
    assert len(set(map(len, expected))) > 1
    for use_cache in (True, False):
        assert new_tokens(PROMPTS, model=ending, max_new_tokens=12, use_cache=use_cache) == expected


def test_no_end_comes_before_the_minimum():
    ending = favouring(MODEL, END, 30.0)  # it would end at once
    assert new_tokens(PROMPTS, model=ending, max_new_tokens=9) == [[END]] * 4
    endless = favouring(MODEL, END, -1000.0)
    result = new_tokens(PROMPTS, model=ending, max_new_tokens=9, min_new_tokens=4)
    assert result == [[*greedy_alone(endless, ids, 4), END] for ids in PROMPTS]


def test_the_chat_format_s_end_of_turn_stops_too():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }} {{ m.content }} <unk>{% endfor %}"
        "{% if add_generation_prompt %}a{% endif %}"
    )
    model = favouring(make_model(tokenizer), 2, 5.0)  # id 2 is <unk>, which ends a turn here
    assert chat_format(model).end_of_turn() == "<unk>"
    result = new_tokens(PROMPTS, model=model, max_new_tokens=12)
    assert result == [greedy_alone(model, ids, 12, stops=[1, 2]) for ids in PROMPTS]
    assert any(ids[-1] == 2 for ids in result)


def oracle_sample_distribution(logits, temperature, top_p):
    """The nucleus, one token after the other, in float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    weights /= weights.sum()
    nucleus, total = np.zeros_like(weights), 0.0
    for index in np.argsort(-weights, kind="stable"):
        if total >= top_p:
            break
        nucleus[index], total = weights[index], total + weights[index]
    return nucleus / nucleus.sum()


def require_sampled_from(samples, expected):
    """Chi-squared test of sampled tokens; rare ones are counted together, if they are enough."""
    assert set(samples) <= set(np.flatnonzero(expected))
    counts, means = np.bincount(samples, minlength=len(expected)), len(samples) * expected
    common = means >= 5
    observed, predicted = [*counts[common]], [*means[common]]
    if means[~common].sum() >= 5:
        observed, predicted = [*observed, counts[~common].sum()], [*predicted, means[~common].sum()]
    assert chisquare(observed, np.array(predicted) * sum(observed) / sum(predicted)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("temperature", "top_p", "penalty"),
    [(1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (2.0, 0.6, 1.0), (1.0, 0.3, 1.0), (1.0, 1.0, 2.0)],
)
def test_samples_follow_the_penalized_and_tempered_nucleus(temperature, top_p, penalty):
    prompt = [0, 3, 4, 4, 5]
    logits = run_alone(MODEL, prompt, len(prompt))[0][-1].double().numpy()
    assert {True, False} == set((logits[prompt] < 0).tolist())
    for token_id in set(prompt):
        logits[token_id] = logits[token_id] * penalty if logits[token_id] < 0 else logits[token_id] / penalty
    decoding = Decoding(1, temperature=temperature, top_p=top_p, repetition_penalty=penalty, draws=3000)
    (samples,) = write(MODEL, [prompt], [()], decoding)
    expected = oracle_sample_distribution(logits, temperature, top_p)
    require_sampled_from([token_id for (token_id,) in samples], expected)


def test_the_seed_decides_and_another_seed_says_something_else():
    options = {"max_new_tokens": 8, "temperature": 1.0}
    torch.manual_seed(0)
    first = new_tokens(PROMPTS, **options, seed=1)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    assert new_tokens(PROMPTS, **options, seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert new_tokens(PROMPTS, **options, seed=2) != first
    assert new_tokens(PROMPTS[::-1], **options, seed=1) == first[::-1]


def test_prompts_of_equal_probabilities_are_sampled_independently():
    model = make_model(word_tokenizer())
    model.unembed.W_U.zero_()
    texts = new_tokens(PROMPTS, model=model, max_new_tokens=8, min_new_tokens=8, temperature=1.0)
    assert len(set(map(tuple, texts))) == len(PROMPTS)


def test_a_small_nucleus_is_greedy():
    greedy = new_tokens(PROMPTS, max_new_tokens=6)
    assert new_tokens(PROMPTS, max_new_tokens=6, temperature=1.0, top_p=1e-6) == greedy


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_tokenizer_s_padding_side_does_not_matter_and_stays(side):
    model, texts = make_model(word_tokenizer()), ["a b c", "d", "e f g h i"]
    model.tokenizer.padding_side = side
    assert generate(model, texts, max_new_tokens=5) == generate(MODEL, texts, max_new_tokens=5)
    assert model.tokenizer.padding_side == side


def test_generation_leaves_prompts_vectors_and_hooks_alone():
    vector, before, prompts = made_vector(MODEL, 1), all_hooks(MODEL), [list(ids) for ids in PROMPTS]
    values = vector.values.clone()
    generate(MODEL, prompts, Add(vector, 2.0), max_new_tokens=3)
    assert prompts == PROMPTS
    assert torch.equal(vector.values, values)
    assert all_hooks(MODEL) == before


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts given; pass a list with at least one"),
        ([""], {"model": make_model(byte_tokenizer())}, "the prompt '' is empty"),
        ([[0] * 45], {"max_new_tokens": 4}, "45 tokens and 4 new ones do not fit the context of 48"),
        (["a"], {"max_new_tokens": 0}, "at least one new token"),
        (["a"], {"max_new_tokens": 3, "min_new_tokens": 4}, "a minimum that does not exceed the maximum"),
        (["a"], {"temperature": -1.0}, r"temperature is 0 \(greedy\) or more"),
        (["a"], {"temperature": 1.0, "top_p": 0.0}, r"top_p lies in \(0, 1\]"),
        (["a"], {"temperature": 1.0, "top_p": 1.1}, r"top_p lies in \(0, 1\]"),
        (["a"], {"temperature": float("nan")}, "temperature=nan"),
        (["a"], {"temperature": float("inf")}, "temperature=inf"),
        (["a"], {"repetition_penalty": 0.0}, "repetition_penalty=0.0: expected a number above 0"),
        (["a"], {"repetition_penalty": float("nan")}, "repetition_penalty=nan"),
        (["a"], {"temperature": 1.0, "seed": -1}, "seed=-1: expected a whole number"),
        ([[0, 99]], {}, "token ids must lie in 0 to"),
    ],
)
def test_bad_input_is_rejected(prompts, options, message):
    assert_raises(message, new_tokens, prompts, **options)


def test_a_context_that_is_just_full_is_allowed():
    assert len(new_tokens([[0] * 44], max_new_tokens=4)[0]) <= 4


def test_generated_tokens_alone_leave_the_first_new_token_as_it_was():
    steered = new_tokens(PROMPTS, steering("generated_tokens()", scale=30.0), max_new_tokens=5)
    unsteered = new_tokens(PROMPTS, max_new_tokens=5)
    assert [ids[0] for ids in steered] == [ids[0] for ids in unsteered]
    assert steered != unsteered


@pytest.mark.parametrize(("minimum", "penalty"), [(0, 1.0), (5, 1.0), (10, 0.7), (10, 1.1), (10, 2.5)])
def test_the_repetition_penalty_is_hugging_face_s(make_hf_model, make_tokenizer, minimum, penalty):
    hf_model, tokenizer = make_hf_model("llama", seed=4), make_tokenizer()
    end = tokenizer.eos_token_id
    with torch.no_grad():
        hf_model.lm_head.weight[end] *= 3  # it ends now and then
    model = load_model("tiny-llama", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    prompts = [[1, *range(3, 3 + length), 5, 5] for length in (2, 9, 4, 6, 3)]
    options = {"max_new_tokens": 10, "min_new_tokens": minimum}
    expected = [hugging_face_greedy(hf_model, ids, 10, end, minimum, penalty) for ids in prompts]
    if minimum == 10:
        assert expected != new_tokens(prompts, model=model, **options)
    else:
        assert len(set(map(len, expected))) > 1
    for more in ({}, {"use_cache": False}, {"reuse": False}):
        assert new_tokens(prompts, model=model, **options, **more, repetition_penalty=penalty) == expected


@pytest.mark.parametrize("options", [{}, {"memory": 1}, {"reuse": False}])
def test_each_draw_is_the_text_of_a_seed_of_its_own_whatever_the_condition(options, monkeypatch):
    # a prompt's draws are in several batches
    monkeypatch.setattr(plain, "batches", functools.partial(plain.batches, budget=20))
    conditions = [(), (Add(made_vector(MODEL, 1, scale=8.0)),)]
    settings = {"max_new_tokens": 5, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.3}
    results = write(MODEL, PROMPTS, conditions, Decoding(**settings, draws=3, seed=7), **options)
    seeds = [7, derived_seed(7, 1), derived_seed(7, 2)]
    for condition, result in zip(conditions, results, strict=True):
        alone = [new_tokens(PROMPTS, *condition, **settings, seed=seed) for seed in seeds]
        assert result == [alone[draw][row] for row in range(len(PROMPTS)) for draw in range(3)]
    assert len({tuple(text) for text in results[0]}) > 6


def hugging_face_greedy(hf_model, ids, count, end, min_new_tokens, repetition_penalty=1.0):
    tokens = torch.tensor([ids])
    with torch.no_grad():
        out = hf_model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=count,
            min_new_tokens=min_new_tokens, eos_token_id=end, pad_token_id=end,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
    return out[0, len(ids) :].tolist()


@pytest.mark.model
def test_greedy_text_equals_hugging_face_alone_and_in_a_batch_of_different_lengths(embedded, embedded_hf):
    """Each token is Hugging Face's most likely one after those before it: by induction, its greedy text.

    Where it is not, the two logits lie within 1e-3 of one another: a tie, which rounding decides.
    """
    hf_model, tokenizer = embedded_hf
    chats = ["How was your day?", "Name a colour, and say no more than that."]
    prompts = [chat_format(embedded).render(chat) for chat in chats] + ["Once upon a time"]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    together = new_tokens(prompts, model=embedded, max_new_tokens=20)
    alone = [new_tokens(prompt, model=embedded, max_new_tokens=20)[0] for prompt in prompts]
    for row, new in [*enumerate(together), *enumerate(alone)]:
        assert len(new) == 20 or new[-1] == tokenizer.eos_token_id
        tokens = torch.tensor([ids[row] + new])
        with torch.no_grad():
            logits = hf_model(tokens, attention_mask=torch.ones_like(tokens)).logits[0]
        logits = logits[len(ids[row]) - 1 : -1]
        below_best = logits.amax(-1) - logits[torch.arange(len(new)), new]
        assert float(below_best.max()) < 1e-3
