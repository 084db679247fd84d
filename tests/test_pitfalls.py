"""Defects seen in published steering libraries, each a test named for the defect."""

import inspect
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA

from tl_steer.activations import PairedActivations
from tl_steer.capture import capture, capture_pairs
from tl_steer.directions import (
    SteeringVectors,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from tl_steer.evaluation.sweep import sweep
from tl_steer.generation import generate
from tl_steer.interventions import Ablate, Add, HookDidNotFireError, NonFiniteError, ProjectOut, steer
from tl_steer.models import ModelMismatchError, load_model
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, span, token
from tl_steer.prompts import ChoiceQuestions, contrast_pairs

from .conftest import make_pairs
from .tiny_model import (
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
PROMPTS = [[0, 3, 4, 1, 5], [0, 9, 8], [0, 1, 1, 7, 2, 2, 1]]
VECTOR = made_vector(MODEL, 1, scale=9.0)


def spoken(*operations, **options):
    return generate(MODEL, PROMPTS, *operations, max_new_tokens=6, return_tokens=True, **options)


def by_hand(where):
    """Greedy tokens, each from a whole pass, with the vector added at the indices that `where` lists."""
    changes = [Change(1, "resid_post", lambda x: x + VECTOR.values, where)]
    return [greedy_alone(MODEL, ids, 6, changes, stops=[1]) for ids in PROMPTS]


def test_only_generated_tokens_survives_the_cache():
    expected = by_hand(lambda prompt, length: range(prompt, length))
    assert expected != spoken()
    for use_cache in (True, False):
        assert spoken(Add(VECTOR, 1.0, generated_tokens()), use_cache=use_cache) == expected


def test_the_first_new_token_is_steered_by_current_token_and_not_by_generated_tokens():
    loud = made_vector(MODEL, 1, scale=40.0)
    plain, current, generated = (
        [ids[0] for ids in spoken(*operations)]
        for operations in ((), (Add(loud, 1.0, current_token()),), (Add(loud, 1.0, generated_tokens()),))
    )
    assert generated == plain
    assert all(a != b for a, b in zip(current, plain, strict=True))


def test_a_list_of_positions_survives_the_second_decode_step():
    positions = token(0) | token(2) | token(-1) | span(1, 2)
    expected = by_hand(lambda prompt, length: sorted({0, 1, 2, prompt - 1}))
    assert spoken(Add(VECTOR, 1.0, positions)) == expected
    assert spoken(Add(VECTOR, 1.0, positions), use_cache=False) == expected


def test_every_row_of_a_batch_is_steered():
    clean, steered = (capture(MODEL, PROMPTS, *operations) for operations in ((), (Add(VECTOR),)))
    for row in range(len(PROMPTS)):
        torch.testing.assert_close(steered.values[row, 1, 0] - clean.values[row, 1, 0], VECTOR.values)
    assert spoken(Add(VECTOR)) == [
        generate(MODEL, [ids], Add(VECTOR), max_new_tokens=6, return_tokens=True)[0] for ids in PROMPTS
    ]


def test_the_last_token_captured_is_never_padding():
    found = capture(MODEL, PROMPTS).single()
    for row, ids in enumerate(PROMPTS):
        for layer in range(3):
            name = hook_name("resid_post", layer)
            alone = run_alone(MODEL, ids, len(ids), reads=[name])[1][name][-1]
            torch.testing.assert_close(found[row, layer], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_token_is_the_same_under_either_padding(side):
    width = max(map(len, PROMPTS))
    tokens, mask = torch.ones(3, width).long(), torch.zeros(3, width).long()
    for row, ids in enumerate(PROMPTS):
        place = slice(width - len(ids), None) if side == "left" else slice(None, len(ids))
        tokens[row, place], mask[row, place] = torch.tensor(ids), 1
    with torch.no_grad(), steer(MODEL, Add(VECTOR, 1.0, last_token())):
        logits = MODEL(tokens, attention_mask=mask)
    changes = [Change(1, "resid_post", lambda x: x + VECTOR.values, lambda prompt, length: [prompt - 1])]
    for row, ids in enumerate(PROMPTS):
        expected = run_alone(MODEL, ids, len(ids), changes)[0]
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, rtol=1e-4, atol=1e-3)


def test_a_pad_id_that_is_a_real_token_is_not_masked_away():
    assert MODEL.tokenizer.pad_token_id == 1
    prompts = [[1, 1, 3, 1], [0, 1], [1, 4, 4, 5, 1, 1]]
    found = capture(MODEL, prompts, positions=all_tokens())
    assert (found.token_index >= 0).sum(-1).tolist() == [4, 2, 6]
    name = hook_name("resid_post", 2)
    for row, ids in enumerate(prompts):
        alone = run_alone(MODEL, ids, len(ids), reads=[name])[1][name]
        torch.testing.assert_close(found.values[row, 2, : len(ids)], alone, rtol=1e-4, atol=1e-4)
    expected = [greedy_alone(MODEL, ids, 5, stops=[1]) for ids in prompts]
    assert generate(MODEL, prompts, max_new_tokens=5, return_tokens=True) == expected


def test_no_second_bos_before_text_that_has_one():
    found = capture(MODEL, ["<s> a b", "a b"], positions=all_tokens())
    assert found.tokens.tolist() == [[0, 3, 4], [0, 3, 4]]


def test_the_last_layer_is_the_last_block_s_output_and_not_the_normed_one(make_hf_model):
    hf_model = make_hf_model("gpt2")
    model = load_model("tiny-gpt2", hf_model=hf_model, device="cpu")
    seen = []
    handle = hf_model.transformer.h[-1].register_forward_hook(
        lambda _module, _inputs, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        states = hf_model(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
    handle.remove()
    model.tokenizer = word_tokenizer()
    found = capture(model, [[5, 6, 7]], layers=-1).single()[0, 0]
    torch.testing.assert_close(found, seen[0].reshape(-1, 48)[-1], rtol=1e-3, atol=1e-4)
    assert (found - states[-1][0, -1]).abs().max() > 0.1


def test_capture_at_a_layer_shows_exactly_the_vector_added_there():
    clean, steered = (
        capture(MODEL, PROMPTS, *operations).single() for operations in ((), (Add(VECTOR, 2.0),))
    )
    assert torch.equal(steered[:, 0], clean[:, 0])
    assert torch.equal(steered[:, 1], clean[:, 1] + 2.0 * VECTOR.values)


def test_steering_twice_one_after_the_other_equals_steering_once():
    tokens = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        with steer(MODEL, Add(VECTOR, 1.0)):
            once = MODEL(tokens)
        with steer(MODEL, Add(VECTOR, 5.0)):
            MODEL(tokens)
        with steer(MODEL, Add(VECTOR, 1.0)):
            again, twice_inside = MODEL(tokens), MODEL(tokens)
    assert torch.equal(once, again)
    assert torch.equal(once, twice_inside)
    assert torch.equal(MODEL(tokens)[0], run_alone(MODEL, PROMPTS[0], 5)[0])


def test_no_hook_leaks_and_the_user_s_own_stay():
    seen = []
    point = MODEL.blocks[1].hook_resid_post
    point.add_hook(lambda x, hook: seen.append(1))
    before = all_hooks(MODEL)

    def failing():
        with steer(MODEL, Add(VECTOR)):
            MODEL(torch.tensor([PROMPTS[0]]))
            raise ZeroDivisionError

    try:
        with pytest.raises(ZeroDivisionError):
            failing()
        assert all_hooks(MODEL) == before
        generate(MODEL, PROMPTS, Add(VECTOR), max_new_tokens=2)
        capture(MODEL, PROMPTS, Add(VECTOR))
        assert all_hooks(MODEL) == before
        assert len(seen) == 4
    finally:
        point.remove_hooks()


def test_pca_of_differences_keeps_the_signal_and_its_sign():
    rng = np.random.default_rng(0)
    axis, other = np.eye(16)[:2]
    shared = rng.standard_normal((40, 1, 16))
    difference = axis + rng.standard_normal((40, 1, 1)) * 0.5 * other
    pairs = make_pairs(shared + difference, shared)
    found = principal_component(pairs, of="differences")[0].values.numpy()
    assert found @ axis > 0.95
    assert abs(PCA(1).fit(difference[:, 0]).components_[0] @ axis) < 0.1
    for rows in (range(39, -1, -1), range(40)):
        again = principal_component(pairs.subset(rows), of="differences")[0].values.numpy()
        np.testing.assert_allclose(again, found, atol=1e-5)


def test_nothing_given_is_changed_in_place():
    vector, target, prompts = VECTOR.values.clone(), torch.ones(16), [list(ids) for ids in PROMPTS]
    weights = weights_of(MODEL)
    generate(MODEL, prompts, Add(VECTOR, 3.0), ProjectOut(VECTOR), Ablate(2, to=target), max_new_tokens=3)
    pairs = capture_pairs(MODEL, contrast_pairs(["a b"], ["c d"]), Add(VECTOR))
    values = pairs.positive.values.clone()
    mean_difference(pairs).scaled_to(dose=2.0)
    assert prompts == PROMPTS
    assert torch.equal(VECTOR.values, vector)
    assert torch.equal(target, torch.ones(16))
    assert torch.equal(pairs.positive.values, values)
    assert all(torch.equal(weight, weights[name]) for name, weight in MODEL.state_dict().items())


def test_an_overflow_in_float16_is_an_error_that_names_layer_and_multiplier():
    half = make_model(word_tokenizer(), dtype=torch.float16)
    told = r"Add\(multiplier=100000\) at layer 1: the stream became NaN or infinite"
    for call in (generate, capture):
        with pytest.raises(NonFiniteError, match=told):
            call(half, PROMPTS, Add(made_vector(half, 1), 1e5), max_new_tokens=2)


def test_half_precision_is_added_in_float32():
    half = make_model(word_tokenizer(), dtype=torch.bfloat16)
    vector = made_vector(half, 1, scale=0.3)
    clean, steered = (
        capture(half, PROMPTS, *operations, layers=1).single() for operations in ((), (Add(vector, 7.7),))
    )
    assert torch.equal(steered[:, 0], (clean[:, 0] + 7.7 * vector.values).bfloat16().float())


def test_a_probe_s_direction_is_not_in_the_scaler_s_space():
    rng = np.random.default_rng(0)
    scale = np.array([0.01, 1.0, 100.0])
    z = rng.standard_normal((600, 1, 3))
    z[:300] += 1
    z[300:] -= 1
    found = logistic_direction(make_pairs(z[:300] * scale, z[300:] * scale))[0].values
    wanted = 1 / scale
    assert float(found.double() @ torch.from_numpy(wanted)) / np.linalg.norm(wanted) > 0.99


def choice_questions(count):
    letters = "abcdefghijklmnopqrstuvwxyz"
    factors = pd.DataFrame({"letter": ["A"] * (count // 4 * 3) + ["B"] * (count - count // 4 * 3)})
    prompts = [f"{letters[row % 26]} {letters[row // 26]} :" for row in range(count)]
    answers = [row % 2 for row in range(count)]
    return ChoiceQuestions(prompts, [(" yes", " no")] * count, answers=answers, factors=factors)


def swept(asked, **options):
    vectors = VECTOR.at(layers=[0, 1], stream_norm=[10.0, 10.0])
    return sweep(MODEL, vectors, asked, **{"multipliers": [1.0], "controls": 1, "progress": False} | options)


def test_no_prompt_is_in_both_halves_of_a_sweep():
    table = swept(choice_questions(16))
    halves = table.groupby("split")["prompt_id"].agg(set)
    assert set(halves.index) == {"choose", "report"}
    assert halves["choose"].isdisjoint(halves["report"])
    assert (table.groupby("prompt_id")["split"].nunique() == 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_half_of_a_sweep_has_more_of_a_factor_than_the_other(seed):
    once = swept(choice_questions(32), seed=seed, controls=0).query("vector == 'none'")
    counts = once.groupby(["letter", "answer", "split"]).size().unstack("split")
    assert (counts["choose"] == counts["report"]).all()


def test_a_long_run_s_mean_is_not_taken_in_half_precision():
    count = 30000
    values = np.full((count, 1, 2), 0.1, dtype=np.float32)
    values[:, 0, 1] = np.linspace(0, 1, count, dtype=np.float32)
    found = mean_difference(make_pairs(values, np.zeros_like(values)))[0].values.double()
    expected = values.astype(np.float64).mean(0)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    in_half = np.add.accumulate(values[:, 0, 0].astype(np.float16))[-1] / count
    assert abs(float(in_half) - expected[0]) > 0.05


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalization_type": "LNPre"}, "normalization: LNPre against LN"),
        ({"n_layers": 4}, "n_layers: 4 against 3"),
        ({"seed": 1}, "the weights differ"),
    ],
)
def test_a_vector_from_a_folded_or_another_model_is_refused_saying_which(changes, told):
    foreign = made_vector(make_model(word_tokenizer(), **changes), 1)
    for call in (
        lambda: generate(MODEL, "a", Add(foreign), max_new_tokens=1),
        lambda: capture(MODEL, "a", ProjectOut(foreign)),
    ):
        with pytest.raises(ModelMismatchError, match=told):
            call()


@pytest.mark.parametrize("kind", [SteeringVectors, PairedActivations])
def test_a_pickle_that_somebody_sent_is_never_run(tmp_path, kind):
    path = tmp_path / "sent.safetensors"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="never loaded"):
        kind.load(path)
    source = "".join(inspect.getsource(module) for module in map(inspect.getmodule, (kind, SteeringVectors)))
    assert "torch.load" not in source
    assert "import pickle" not in source


def test_every_random_choice_takes_a_seed_and_records_it(planted):
    pairs, _ = planted
    directions = [random_direction(pairs, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(directions[0].values, directions[1].values)
    assert not torch.allclose(directions[0].values, directions[2].values)
    assert directions[2].info["seed"] == 1
    assert random_like(directions[0], seed=7).info["seed"] == 7
    torch.manual_seed(3)
    said = [spoken(temperature=1.0, seed=seed) for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]
    tables = [swept(choice_questions(8), seed=seed) for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_the_dose_stands_beside_the_multiplier_and_differs_by_layer():
    asked = choice_questions(8)
    table = swept(asked, multipliers=[1.0, -3.0])
    for layer in (0, 1):
        found = table.query(f"layers == '{layer}' and vector != 'none'")
        norm = float(capture(MODEL, list(asked.prompts), layers=layer).stream_norm[0])
        np.testing.assert_allclose(found["dose"], found["multiplier"].abs() * 9.0 / norm, rtol=1e-4)
    assert table.query("vector != 'none' and multiplier == 1")["dose"].round(6).nunique() == 2


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_tokenizer_that_pads_on_the_right_does_not_shift_generation(side):
    model = make_model(word_tokenizer())
    model.tokenizer.padding_side = side
    vector = made_vector(model, 1, scale=9.0)
    changes = [Change(1, "resid_post", lambda x: x + vector.values, lambda prompt, length: [prompt - 1])]
    found = generate(model, PROMPTS, Add(vector, 1.0, last_token()), max_new_tokens=5, return_tokens=True)
    assert found == [greedy_alone(model, ids, 5, changes, stops=[1]) for ids in PROMPTS]
    assert model.tokenizer.padding_side == side


def test_an_unknown_hook_name_is_not_ignored():
    for call in (
        lambda: generate(MODEL, "a", Ablate(1, "resid_end"), max_new_tokens=1),
        lambda: capture(MODEL, "a", hook="resid_end"),
    ):
        with pytest.raises(
            ValueError, match=r"'resid_end' does not exist at layer .* this model has resid_pre"
        ):
            call()


def test_a_hook_that_did_not_fire_is_told():
    def stopping():
        with steer(MODEL, Add(VECTOR)):
            MODEL(torch.tensor([PROMPTS[0]]), stop_at_layer=1)

    with pytest.raises(HookDidNotFireError, match=r"Add\(multiplier=1\) at layer 1: the hook did not fire"):
        stopping()
