"""Estimators: a planted direction, numpy and scikit-learn as oracles, orientation, precision, seeds."""

import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tokenizers import processors

from tl_steer._generation import generate
from tl_steer.activations import PairedActivations
from tl_steer.analysis import separation
from tl_steer.directions import (
    apply_estimator,
    control_vectors,
    digest,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    random_like,
)
from tl_steer.directions.classifiers import discriminant_normal
from tl_steer.directions.estimators import principal_axes
from tl_steer.errors import NoDirectionError
from tl_steer.models import identify
from tl_steer.prompts import contrast_pairs
from tl_steer.recipes import activation_addition, vectors_from_pairs

from .conftest import assert_raises, make_pairs
from .tiny_model import D_MODEL, byte_tokenizer, hook_name, make_model, run_alone, word_tokenizer

FORMS = ("pooled", "differences", "centred_differences", "pair_centred")


ESTIMATORS = {  # those that find a shift that all pairs share
    "mean_difference": mean_difference,
    **{of: partial(principal_component, of=of) for of in FORMS if of != "centred_differences"},
    "logistic": logistic_direction,
    "lda": lda_direction,
}


def cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture
def pairs(planted):
    return planted[0]


def sides_of(pairs, layer):
    positive, negative = pairs.sides()
    return positive[:, layer].double().numpy(), negative[:, layer].double().numpy()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_recover_a_planted_direction_at_every_layer(name):
    """1000 pairs, 2 layers: sides that overlap around a direction, in isotropic noise."""
    rng = np.random.default_rng(1)
    direction = rng.standard_normal((2, 32))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    noise = rng.standard_normal((2, 1000, 2, 32))
    vectors = ESTIMATORS[name](make_pairs(noise[0] + 1.5 * direction, noise[1] - 1.5 * direction))
    for layer in range(2):
        assert cosine(vectors[layer].values, direction[layer]) > 0.95
        assert abs(cosine(vectors[layer].values, direction[1 - layer])) < 0.5


def test_uncentred_differences_keep_a_constant_signal():
    """The same shift in every pair is the signal; what varies between the differences is not."""
    rng = np.random.default_rng(3)
    axis, nuisance = np.linalg.qr(rng.standard_normal((32, 2)))[0].T
    shared = rng.standard_normal((60, 1, 32)) * 3
    variation = rng.standard_normal((60, 1, 1)) * nuisance * 0.6
    shift = axis * 2 + variation + rng.standard_normal((60, 1, 32)) * 0.05
    pairs = make_pairs(shared + shift / 2, shared - shift / 2)
    assert abs(cosine(PCA(1).fit(shift[:, 0]).components_[0], axis)) < 0.2
    for of in ("differences", "pair_centred"):
        assert cosine(principal_component(pairs, of=of)[0].values, axis) > 0.95


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("of", FORMS)
def test_components_equal_numpy_and_scikit_learn(pairs, of, number):
    for layer in range(2):
        positive, negative = sides_of(pairs, layer)
        if of == "pooled":
            expected = PCA(3).fit(np.concatenate([positive, negative])).components_[number - 1]
        elif of == "centred_differences":
            rows = (positive - negative) - (positive - negative).mean(0)
            expected = np.linalg.svd(rows)[2][number - 1]
        else:
            scatter = (positive - negative).T @ (positive - negative)  # what is not centred
            expected = np.linalg.eigh(scatter)[1][:, -number]
        result = principal_component(pairs, component=number, of=of)[layer].values
        assert abs(cosine(result, expected)) == pytest.approx(1, abs=1e-5)


def test_centring_removes_the_behaviours_mean_so_that_it_is_not_the_first_component():
    """The study's pairs share a claim: what varies comes first, honesty after it; uncentred, honesty.

    `letter` has opposite signs on the sides; `fact` (how strongly a claim is taken as true) is multiplied by
    the answer, too; honesty is a shift that varies a little.
    """
    rng = np.random.default_rng(0)
    letter, fact, honest = np.linalg.qr(rng.standard_normal((32, 3)))[0].T
    answer = np.where(np.arange(400) % 2, 1.0, -1.0)[:, None]  # the positive side says "true" of true claims
    topic = rng.standard_normal((400, 32))
    half = answer * 2.0 * letter + answer * rng.normal(0, 4.0, (400, 1)) * fact
    half = half + rng.normal(6.0, 3.0, (400, 1)) * honest + rng.normal(0, 0.05, (400, 32))
    pairs = make_pairs((topic + half)[:, None], (topic - half)[:, None])
    first, second, third = (
        principal_component(pairs, component=number, of="centred_differences")[0].values
        for number in (1, 2, 3)
    )
    assert abs(cosine(first, fact)) > 0.95
    assert cosine(second, honest) > 0.95
    assert abs(cosine(third, letter)) > 0.95
    assert cosine(principal_component(pairs, of="differences")[0].values, honest) > 0.95


def test_the_sign_is_the_pairs_majority_or_their_mean():
    """Of 50 pairs 35 are a little higher on the positive side, 15 far lower."""
    rng = np.random.default_rng(0)
    axis = np.linalg.qr(rng.standard_normal((16, 1)))[0][:, 0]
    along = np.concatenate([rng.uniform(0.5, 1.5, 35), rng.uniform(-9, -7, 15)])
    half = along[:, None] * axis + rng.normal(0, 0.01, (50, 16))
    pairs = make_pairs(half[:, None], -half[:, None])
    for of in FORMS:
        by_vote, by_mean = (principal_component(pairs, of=of, sign=sign) for sign in ("vote", "mean"))
        vote, mean = (vectors[0].values.double().numpy() for vectors in (by_vote, by_mean))
        assert (half @ vote > 0).sum() == 35
        assert (half @ mean).mean() > 0
        np.testing.assert_allclose(vote, -mean, atol=1e-6)
        assert by_vote.info["sign"][0] == -by_mean.info["sign"][0]
        assert by_vote.info["arguments"] == {"component": 1, "of": of, "sign": "vote"}
    mixed = principal_component(pairs, component={1: 1.0, 2: 0.5}, sign="vote").info
    assert mixed["arguments"]["sign"] == "vote"


@pytest.mark.parametrize(
    ("sign", "shifts", "expected"),
    [("vote", [1.0, 1.0, -3.0, -3.0], -1), ("mean", [2.0, -2.0], 1)],
    ids=["a tied vote goes by the mean", "a tied mean by the largest entry"],
)
def test_ties_have_a_sign(sign, shifts, expected):
    rows = np.zeros((len(shifts), 1, 3))
    rows[:, 0, 1] = shifts
    result = principal_component(make_pairs(rows, -rows), of="differences", sign=sign)[0].values
    assert result.tolist() == [0, expected, 0]


@pytest.mark.parametrize("how", ["one prompt repeated", "zeros", "identical sides up to rounding"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_where_nothing_varies_every_estimator_names_the_layer(name, how):
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 12, 3, 16)).astype(np.float32)
    layers = [0, 2]
    if how == "one prompt repeated":
        positive[:, layers] = negative[:, layers] = positive[0, layers]
    elif how == "zeros":
        positive[:, layers] = negative[:, layers] = 0
    elif name == "pooled":
        pytest.skip("all prompts together vary")
    else:
        negative[:, layers] = positive[:, layers] * (1 + 6e-8 * rng.choice([-1, 1], (12, 2, 16)))
    with pytest.raises(ValueError, match=r"resid_post at layers \[0, 2\] "):
        ESTIMATORS[name](make_pairs(positive, negative))


@pytest.mark.parametrize("name", ["mean_difference", "logistic", "lda"])
def test_differences_that_cancel_have_no_direction(name):
    positive, negative = np.random.default_rng(0).standard_normal((2, 12, 3, 16))
    positive[6:, 1], negative[6:, 1] = negative[:6, 1], positive[:6, 1].copy()
    with pytest.raises(NoDirectionError, match=r"at layers \[1\] .*on average") as error:
        ESTIMATORS[name](make_pairs(positive, negative))
    partly = apply_estimator(ESTIMATORS[name], make_pairs(positive, negative), allow_zero=True)
    assert not partly[1].values.any()
    whole = ESTIMATORS[name](make_pairs(positive[:, [0, 2]], negative[:, [0, 2]]))
    torch.testing.assert_close(partly.values[[0, 2]], whole.values, rtol=1e-5, atol=1e-6)
    assert isinstance(pickle.loads(pickle.dumps(error.value)), NoDirectionError)


def test_lda_of_one_prompt_repeated_on_each_side_has_no_direction():
    positive, negative = np.random.default_rng(0).standard_normal((2, 12, 2, 16))
    positive[:, 1], negative[:, 1] = positive[0, 1], negative[0, 1]
    pairs, message = make_pairs(positive, negative), r"lda_direction: .* layers \[1\] .*does not vary"
    assert_raises(message, lda_direction, pairs, error=NoDirectionError)
    np.testing.assert_allclose(mean_difference(pairs)[1].values, positive[0, 1] - negative[0, 1], rtol=1e-5)


@pytest.mark.parametrize("of", FORMS)
def test_a_component_beyond_the_variance_is_an_error_that_names_the_layer(of):
    """At layer 1 the sides differ by multiples of one vector, from one point: one direction, and rounding."""
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 6, 2, 8))
    base, step = 100 * rng.standard_normal((2, 8))
    size = rng.uniform(0.01, 1, (6, 1))
    positive[:, 1], negative[:, 1] = base + size * step, base - size * step
    pairs, message = make_pairs(positive, negative), r"at layers \[1\] varies in fewer than 2 directions"
    assert abs(cosine(principal_component(pairs, of=of)[1].values, step)) == pytest.approx(1, abs=1e-5)
    for component in (2, {1: 1.0, 2: 0.5}):
        assert_raises(message, principal_component, pairs, component=component, of=of)


def test_components_that_do_not_exist_are_rejected():
    pairs = make_pairs(*np.random.default_rng(0).standard_normal((2, 3, 1, 32)))
    numbers = {"pooled": 5, "differences": 3, "centred_differences": 2, "pair_centred": 3}
    for of, available in numbers.items():
        principal_component(pairs, component=available, of=of)
        message = f"does not exist: 3 pairs give 1 to {available}"
        for wrong in (0, available + 1, {1: 1.0, available + 1: 1.0}):
            assert_raises(message, principal_component, pairs, component=wrong, of=of)
    for empty in ({}, {1: 1.0, 2: 0.0}):
        assert_raises("give one component or more, with weights", principal_component, pairs, component=empty)
    for option in ({"sign": "median"}, {"of": "centred"}):
        assert_raises("|".join(option), principal_component, pairs, error=(ValueError, TypeError), **option)


@pytest.mark.parametrize("of", FORMS)
def test_a_mix_is_the_unit_vector_along_the_weighted_sum_of_oriented_axes(pairs, of):
    first, second = (principal_component(pairs, component=number, of=of) for number in (1, 2))
    signs = {"1": first.info["sign"], "2": second.info["sign"]}
    for weights in ({1: 1.0, 2: 0.5}, {2: -3.0, 1: 0.25}, {2: 7.0}):
        result = principal_component(pairs, component=weights, of=of)
        one, two = weights.get(1, 0.0), weights.get(2, 0.0)
        total = one * first.values.double() + two * second.values.double()
        expected = total / np.hypot(one, two)  # axes are orthonormal
        np.testing.assert_allclose(result.values, expected, atol=1e-6)
        assert result.info["sign"] == {str(number): signs[str(number)] for number in weights}


def test_a_mean_over_a_long_run_is_not_taken_in_half_precision():
    rows = 4096 + np.random.default_rng(0).standard_normal((20000, 2, 4)).astype(np.float32)
    # Without a common offset: a running sum in float32 or float16 is off by more than the tolerance.
    small = np.random.default_rng(1).random((20000, 2, 4)).astype(np.float32)
    for positive, negative, rtol in ((rows + np.float32(1e-3), rows, 1e-6), (small, 0 * small, 1e-7)):
        expected = (positive.astype(np.float64) - negative.astype(np.float64)).mean(0)
        result = mean_difference(make_pairs(positive, negative)).values
        np.testing.assert_allclose(result, expected, rtol=rtol)


def test_logistic_equals_scikit_learn_in_activation_space(pairs):
    rows, labels = np.concatenate(sides_of(pairs, 1)), [1] * 200 + [0] * 200
    scaler = StandardScaler().fit(rows)
    fitted = LogisticRegression(C=0.5, max_iter=2000).fit(scaler.transform(rows), labels)
    result = logistic_direction(pairs, C=0.5)[1].values
    assert cosine(result, fitted.coef_[0] / scaler.scale_) > 1 - 1e-6


def test_the_logistic_direction_is_in_activation_space():
    """Badly scaled features, as massive activations are: the plane's normal, not the scaler's."""
    rng = np.random.default_rng(5)
    scale, labels = np.logspace(-2, 2, 16), np.repeat([1.0, -1.0], 400)
    rows = (rng.standard_normal((800, 16)) * 0.5 + 0.3 * labels[:, None]) * scale
    result = logistic_direction(make_pairs(rows[:400, None], rows[400:, None]))[0].values.double().numpy()
    in_scaler_space = LogisticRegression().fit(StandardScaler().fit_transform(rows), labels).coef_[0]

    def accuracy(direction):
        margin = rows @ direction
        return (np.sign(margin - np.median(margin)) == labels).mean()

    assert accuracy(result) > 0.97
    assert accuracy(in_scaler_space) < 0.9
    assert cosine(result, in_scaler_space / scale) > 0.99


def test_a_constant_feature_does_not_divide_by_zero():
    positive, negative = np.random.default_rng(0).standard_normal((2, 30, 1, 8))
    positive[..., 0] += 2
    positive[..., 3] = negative[..., 3] = 7
    result = logistic_direction(make_pairs(positive, negative))[0].values
    assert result.isfinite().all()
    assert float(result[3]) == 0


def lda_normal(positive, negative):
    labels = [1] * len(positive) + [0] * len(negative)
    fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return fitted.fit(np.concatenate([positive, negative]), labels).coef_[0]


SPREAD = np.logspace(-1, 2, 60)  # a few numbers much larger than the others, as in a residual stream
LDA_CASES = {
    "fewer rows than numbers": (20, np.ones(60), 60),
    "more rows than numbers": (200, np.ones(60), 60),
    "as many": (30, np.ones(60), 60),
    "three pairs": (3, np.ones(60), 60),
    "two pairs": (2, np.ones(60), 60),
    "few rows, unlike scales": (20, SPREAD, 60),
    "many rows, unlike scales": (200, SPREAD, 60),
    "few directions of variance": (20, SPREAD, 3),
    "a constant number": (20, np.where(np.arange(60) == 5, 0, SPREAD), 60),
    "one number": (30, np.ones(1), 1),
}


@pytest.mark.parametrize("case", LDA_CASES)
def test_lda_equals_scikit_learn(case):
    pairs, scales, factors = LDA_CASES[case]
    rng = np.random.default_rng(0)
    width = len(scales)
    mixing = rng.standard_normal((factors, width))
    rows = rng.standard_normal((2, pairs, 2, factors)) @ mixing
    rows += 0.01 * rng.standard_normal(rows.shape)
    rows[0] += 0.5 * rng.standard_normal((2, width))
    activations = make_pairs(*(rows * scales + 3 * scales))
    for layer, vector in enumerate(lda_direction(activations)):
        expected = lda_normal(*sides_of(activations, layer))
        difference = np.subtract(*sides_of(activations, layer)).mean(0)
        expected *= np.sign(expected @ difference) / np.linalg.norm(expected)
        np.testing.assert_allclose(vector.values, expected, atol=1e-6)


def test_lda_does_not_depend_on_the_units_where_scikit_learn_loses_digits():
    """Standardised rows have the same normal in their own units, and are easy to solve for."""
    rng = np.random.default_rng(0)
    scales = np.logspace(-3, 3, 200)
    rows = rng.standard_normal((2, 60, 3)) @ rng.standard_normal((3, 200))
    rows += 0.01 * rng.standard_normal(rows.shape)
    rows[0] += 0.3 * rng.standard_normal(200)
    result = discriminant_normal(*(rows * scales))
    assert cosine(result * scales, lda_normal(*rows)) > 1 - 1e-9
    assert cosine(lda_normal(*(rows * scales)) * scales, lda_normal(*rows)) < 1 - 1e-6


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "mean_difference"])
def test_all_but_the_mean_difference_are_unit_vectors_with_the_positive_side_up(pairs, name):
    vectors = ESTIMATORS[name](pairs)
    np.testing.assert_allclose(vectors.values.norm(dim=-1), 1, rtol=1e-5)
    for layer in range(2):
        positive, negative = sides_of(pairs, layer)
        direction = vectors[layer].values.double().numpy()
        assert (positive @ direction).mean() > (negative @ direction).mean()
        assert vectors.info["sign"][layer] in (-1, 1)
        swapped = ESTIMATORS[name](pairs.swapped([True] * 200))
        assert cosine(swapped[layer].values, direction) == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_the_same_every_time_and_in_any_order_of_the_pairs(pairs, name):
    once = ESTIMATORS[name](pairs).values
    assert torch.equal(once, ESTIMATORS[name](pairs).values)
    shuffled = ESTIMATORS[name](pairs.subset(np.random.default_rng(0).permutation(200).tolist())).values
    torch.testing.assert_close(shuffled, once, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", [40, 400], ids=["more numbers than rows", "more rows than numbers"])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-7])
def test_axes_are_exact_however_small_their_share_of_the_variance(rows, spread):
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    scales = np.array([1.0, 0.5 * spread, 0.2 * spread, *[1e-3 * spread] * 61])
    table = (rng.standard_normal((rows, 64)) * scales) @ frame.T
    expected = np.linalg.svd(table)[2]
    result = principal_axes(torch.from_numpy(table)[None], 3)[0]
    assert result.shape == (3, 64)
    for axis, target in zip(result.numpy(), expected, strict=False):
        assert abs(cosine(axis, target)) == pytest.approx(1, abs=1e-9)
        assert axis[np.abs(axis).argmax()] > 0


def test_the_sign_of_a_flipped_component_is_recorded():
    signs = set()
    for seed in range(8):
        positive, negative = np.random.default_rng(seed).standard_normal((2, 50, 1, 16)).astype(np.float32)
        result = principal_component(make_pairs(positive, negative), of="differences")
        axis = np.linalg.svd((positive.astype(float) - negative)[:, 0])[2][0]
        axis *= np.sign(axis[np.abs(axis).argmax()])
        assert cosine(result[0].values, axis * result.info["sign"][0]) == pytest.approx(1, abs=1e-5)
        signs.add(result.info["sign"][0])
    assert signs == {-1, 1}


def test_random_directions_take_a_seed_and_are_spread_over_the_sphere(pairs):
    once, again, other = (random_direction(pairs, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(once.values, again.values)
    assert once.info["seed"] == 1
    np.testing.assert_allclose(once.values.norm(dim=-1), 1, rtol=1e-5)
    assert once.cosine_similarity(other).abs().max() < 0.6
    assert abs(cosine(once[0].values, once[1].values)) < 0.6
    many = np.stack([random_direction(pairs, seed=seed)[0].values for seed in range(400)])
    assert np.abs(many.mean(0)).max() < 5 * (1 / 32 / 400) ** 0.5
    np.testing.assert_allclose((many**2).mean(0), 1 / 32, rtol=0.5)


def test_seeds_of_any_size_but_negative_ones(pairs):
    pairs = pairs.subset(range(40))
    calls = {
        "random": lambda seed: random_direction(pairs, seed=seed).values.tolist(),
        "controls": lambda seed: control_vectors(pairs, random=1, seed=seed)["random 1"].values.tolist(),
        "separation": lambda seed: separation(pairs, shuffles=1, seed=seed).to_dict(),
        "generate": lambda seed: generate(WORDS, "a b", max_new_tokens=9, temperature=2.0, seed=seed),
    }
    seeds = [0, 1, 2**31, 2**32, 2**63, np.uint64(2**64 - 1), 2**64, 2**64 + 1, 2**200]
    for name, call in calls.items():
        results = [str(call(seed)) for seed in seeds]
        assert str(call(np.int64(1))) == results[1]
        assert len(set(results)) > (1 if name == "separation" else len(seeds) - 1), name
        for bad in (-1, -(2**70)):
            assert_raises(f"seed={bad}: expected a whole number", call, bad)


def test_a_random_control_is_one_direction_for_all_layers_or_one_per_position(pairs):
    vectors = mean_difference(pairs) * 3.0
    shape = (len(vectors.layers), 3, vectors.values.shape[-1])
    by_position = replace(vectors, values=torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    for source in (vectors, by_position):
        control = random_like(source, seed=4)
        torch.testing.assert_close(control.values.norm(dim=-1), source.values.norm(dim=-1))
        units = control.values / control.values.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(units, units[:1].expand_as(units))
        assert control.cosine_similarity(source).abs().max() < 0.7
        assert control.info["seed"] == 4
    assert (torch.linalg.matrix_rank(units[0]) == 3).all()
    other = random_like(vectors, seed=5).cosine_similarity(random_like(vectors, seed=4))
    assert abs(float(other[0])) < 0.9


def test_estimates_have_provenance_and_change_no_input(pairs):
    before = pairs.positive.values.clone(), pairs.negative.values.clone()
    for name, estimate in ESTIMATORS.items():
        vectors = estimate(pairs)
        assert vectors.identity == pairs.identity, name
        assert vectors.layers == pairs.layers
        assert vectors.info["pairs"] == 200
        assert vectors.info["positions"] == "last_token()"
        assert torch.equal(vectors.stream_norm, pairs.stream_norm)
    assert all(map(torch.equal, before, (pairs.positive.values, pairs.negative.values)))
    fewer = mean_difference(pairs.subset(range(100)))
    assert fewer.info["data"] != mean_difference(pairs).info["data"]


FACTORS = {
    "plain": {"group": [0, 1, 2], "topic": ["a", "b", "a"], "score": [1.5, 2.0, -0.0]},
    "missing": {"score": [1.0, float("nan"), 2.5], "text": ["a", None, "b"], "flag": [True, None, False]},
    "Int64": {"kind": pd.array([1, None, 2], dtype="Int64")},
    "boolean": {"flag": pd.array([True, None, False], dtype="boolean")},
    "string": {"text": pd.array(["a", None, "b"], dtype="string")},
    "dates": {"when": pd.to_datetime(["2020-01-01", None, "2020-01-02"])},
    "categories": {"kind": pd.Categorical(["x", None, "y"])},
    "numbered": {number: [number] * 3 for number in range(12)},
}


@pytest.mark.parametrize("name", FACTORS)
def test_the_digest_survives_a_file(tmp_path, name):
    pairs = make_pairs(np.ones((3, 1, 8)), np.zeros((3, 1, 8)), factors=pd.DataFrame(FACTORS[name]))
    pairs.save(tmp_path / "pairs.safetensors")
    assert digest(PairedActivations.load(tmp_path / "pairs.safetensors")) == digest(pairs)


def test_other_prompts_completions_or_factors_have_another_digest(tmp_path):
    def pairs_of(positive=(), negative=(), flags=(True, None)):
        pairs = make_pairs(np.ones((2, 1, 8)), np.zeros((2, 1, 8)), factors=pd.DataFrame({"flag": flags}))
        sides = [
            replace(side, completions=("a",) * len(tokens), completion_tokens=tokens)
            for side, tokens in ((pairs.positive, positive), (pairs.negative, negative))
        ]
        return PairedActivations(*sides, pairs.factors)

    some, others, plain = ((1, 2), (3,)), ((1,), (2, 3)), pairs_of()
    different = [
        plain, pairs_of(some), pairs_of(negative=some), pairs_of(some, some), pairs_of(some, others),
        pairs_of(others, some), pairs_of(flags=(None, True)), pairs_of(flags=(1, None)),
        pairs_of(flags=("True", None)), plain.subset([1, 0]), plain.subset([0]), plain.swapped([True, True]),
    ]  # fmt: skip
    assert len(set(map(digest, different))) == len(different)
    moved = replace(plain.positive, values=plain.positive.values + 1)
    assert digest(replace(plain, positive=moved)) == digest(plain)
    different[4].save(tmp_path / "pairs.safetensors")
    assert digest(PairedActivations.load(tmp_path / "pairs.safetensors")) == digest(different[4])


BYTES, WORDS = make_model(byte_tokenizer()), make_model(word_tokenizer())


def activations_alone(model, text, hook, layers):
    """Activations "layer pos d_model" of one text alone."""
    ids = model.tokenizer(text)["input_ids"]
    names = [hook_name(hook, layer) for layer in layers]
    seen = run_alone(model, ids, len(ids), reads=names)[1]
    return torch.stack([seen[name] for name in names])


@pytest.mark.parametrize(
    ("positive", "negative"), [("Love", "Hate"), ("é!", "a"), ("a", ""), ("", "bc"), ("Shopping", None)]
)
def test_activation_addition_is_the_difference_at_each_position(positive, negative):
    texts = [text for text in (positive, negative) if text is not None]
    vectors = activation_addition(BYTES, *texts, layers=[0, 2])
    length = max(len(text.encode()) for text in texts)
    padded = [text + " " * (length - len(text.encode())) for text in texts]
    first, *others = (activations_alone(BYTES, text, "resid_pre", [0, 2]) for text in padded)
    assert vectors.values.shape == (2, length, D_MODEL)
    torch.testing.assert_close(vectors.values, first - sum(others), rtol=1e-4, atol=1e-4)
    assert (vectors.hook, vectors.info["positions"]) == ("resid_pre", length)
    assert vectors.info["arguments"] == {"positive": positive, "negative": negative}


@pytest.mark.parametrize(
    ("model", "prompts", "message"),
    [
        (BYTES, [""], "positive is empty, and negative too or not given"),
        (BYTES, ["", ""], "positive is empty, and negative too or not given"),
        (BYTES, ["", None], "positive is empty, and negative too or not given"),
        (BYTES, ["Love", "Love"], "'Love' and 'Love *' are the same tokens"),
        (BYTES, ["Love", "Love  "], "'Love' and 'Love *' are the same tokens"),
        (WORDS, ["a", "b c"], "no token for a space"),
    ],
)
def test_activation_addition_of_equal_or_empty_prompts_is_an_error(model, prompts, message):
    assert_raises(message, activation_addition, model, *prompts)


def test_one_prompt_is_not_one_prompt_minus_spaces():
    alone, spaces = (activation_addition(BYTES, "Shopping", negative) for negative in (None, ""))
    assert not torch.allclose(alone.values, spaces.values, atol=0.1)
    assert alone.info["data"] != spaces.info["data"]


def test_an_empty_side_has_the_bos_of_the_other_side():
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<end>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<end> $A", special_tokens=[("<end>", 0)]
    )
    vectors = activation_addition(make_model(tokenizer), "ab", "", layers=1)
    assert vectors.values.shape[1] == 3
    assert vectors.values[0, 0].abs().max() < 1e-5


def test_a_tokenizer_without_a_space_takes_prompts_of_equal_length():
    for prompts in (["a"], ["a", "b"]):
        assert activation_addition(WORDS, *prompts).values.shape[1] == 2  # <s> and the word


def test_vectors_from_pairs_are_mean_differences_of_the_last_tokens():
    pairs = contrast_pairs(["a b good", "c good"], ["a b bad", "c bad"])
    result = vectors_from_pairs(WORDS, pairs, layers=[1], hook="mlp_out")

    def mean(texts):
        last = [activations_alone(WORDS, text, "mlp_out", [1])[0, -1].double().numpy() for text in texts]
        return np.mean(last, axis=0)

    expected = mean(pairs.positive) - mean(pairs.negative)
    np.testing.assert_allclose(result.values[0], expected, rtol=1e-3, atol=1e-4)
    assert result.identity == identify(WORDS)
