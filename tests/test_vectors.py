"""Steering vectors as values: their algebra, what does not mix, placing, doses, files."""

import dataclasses
import functools
import operator
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tl_steer._capture import capture
from tl_steer.activations import PairedActivations
from tl_steer.directions import SteeringVectors
from tl_steer.errors import ModelMismatchError
from tl_steer.interventions import Add, ProjectOut, SetProjection
from tl_steer.models import identify
from tl_steer.recipes import steering_vector

from .conftest import assert_raises, make_identity
from .tiny_model import D_MODEL, N_LAYERS, make_model, word_tokenizer

MODEL, ONES = make_model(word_tokenizer()), torch.ones(D_MODEL)
NUMBERS = st.floats(-100, 100, allow_nan=False, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
SEEDS = st.integers(0, 9)


def vectors(
    seed=0, *, layers=(1, 3), width=32, norms=(10.0, 40.0), hook="resid_post", positions=None, **identity
):
    shape = (len(layers), width) if positions is None else (len(layers), positions, width)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return SteeringVectors(
        values, layers, hook, f"method {seed}", torch.tensor(norms), make_identity(**identity), {"seed": seed}
    )


def close(a, b):
    torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-4)


@given(a=SEEDS, b=SEEDS, c=SEEDS, m=NUMBERS, n=NUMBERS, layer=st.sampled_from([None, 3]))
def test_the_algebra_is_that_of_a_vector_space(a, b, c, m, n, layer):
    a, b, c = (vectors(seed) if layer is None else vectors(seed)[layer] for seed in (a, b, c))
    close(a + b, b + a)
    close((a + b) + c, a + (b + c))
    close(a - b, a + -b)
    close(m * (a + b), m * a + m * b)
    close((m + n) * a, m * a + n * a)
    assert torch.equal((a * m).values, (m * a).values)
    assert torch.equal((a - a).values, torch.zeros_like(a.values))
    assert torch.equal((a + b).values, a.values + b.values)
    assert torch.equal((a * m).values, a.values * m)
    if m:
        torch.testing.assert_close((a / m).values, a.values / m)


@given(seed=st.integers(0, 50), dose=st.floats(0.01, 10), layer=st.sampled_from([None, 1]))
def test_a_dose_is_a_share_of_the_stream_s_norm(seed, dose, layer):
    source = vectors(seed) if layer is None else vectors(seed)[layer]
    scaled = source.scaled_to(dose=dose)
    expected = np.array([10.0, 40.0]) * dose if layer is None else 10.0 * dose
    np.testing.assert_allclose(np.linalg.norm(scaled.values.double().numpy(), axis=-1), expected, rtol=1e-5)
    close(scaled.normalized(), source.normalized())
    np.testing.assert_allclose(np.linalg.norm(source.normalized().values.numpy(), axis=-1), 1, rtol=1e-5)


def test_of_vectors_per_position_the_longest_has_the_length():
    source = vectors(positions=3).scaled_to(dose=0.5)
    lengths = np.linalg.norm(source.values.numpy(), axis=-1)
    np.testing.assert_allclose(lengths.max(-1), [5.0, 20.0], rtol=1e-5)
    before = np.linalg.norm(vectors(positions=3).values.numpy(), axis=-1)
    np.testing.assert_allclose(lengths[0] / lengths[0].max(), before[0] / before[0].max(), rtol=1e-4)


def test_cosine_similarity_per_layer():
    a, b = vectors(0), vectors(1)
    x, y = a.values.double().numpy(), b.values.double().numpy()
    expected = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(a.cosine_similarity(b), expected, atol=1e-6)
    assert a[3].cosine_similarity(b[3]).shape == ()
    assert float(a[3].cosine_similarity(b[3])) == pytest.approx(expected[1], abs=1e-6)
    a = vectors(0, positions=3)
    assert a.cosine_similarity(vectors(1, positions=3)).shape == (2,)
    assert float(a[1].cosine_similarity(-a[1])) == pytest.approx(-1)


def test_a_vector_is_selected_by_its_layer_not_its_row():
    source = vectors()
    for layer, row in ((1, 0), (3, 1), (-1, 1), (np.int64(3), 1)):
        assert torch.equal(source[layer].values, source.values[row])
    one = source[3]
    assert (one.layer, one.layers, one.hook, one.method) == (3, (3,), "resid_post", "method 0")
    assert one.stream_norm == 40.0
    assert [vector.layer for vector in source] == [1, 3]
    message = r"no vector at layer 2; there are vectors at layers \[1, 3\]"
    assert_raises(message, source.__getitem__, 2, error=KeyError)
    message = "layer 4 is out of range: this model has 4 layers"
    assert_raises(message, source.__getitem__, 4, error=IndexError)


def test_weighted_selects_and_scales_layers():
    source = vectors()
    both = source.weighted({3: -0.5, 1: 2.0})
    assert both.layers == (3, 1)
    assert torch.equal(both.values, torch.stack([source.values[1] * -0.5, source.values[0] * 2.0]))
    assert both.stream_norm.tolist() == [40.0, 10.0]
    assert torch.equal(source.weighted({-1: 1.0}).values, source.values[1:])
    assert torch.equal(vectors(positions=2).weighted({3: 3.0}).values, vectors(positions=2).values[1:] * 3)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({0: 1.0}, KeyError, "no vector at layer 0"),
        ({3: 1.0, -1: 1.0}, ValueError, "name the same block twice"),
        ({}, ValueError, "no layers given"),
        ({4: 1.0}, IndexError, "layer 4 is out of range"),
        ({3: "1"}, TypeError, "weights"),
        ({3: True}, TypeError, "weights"),
        ({3: float("nan")}, ValueError, r"weights=\{3: nan\}: expected finite numbers"),
        ({3: float("inf")}, ValueError, r"weights=\{3: inf\}: expected finite numbers"),
    ],
)
def test_wrong_weights_are_rejected(weights, error, message):
    assert_raises(message, vectors().weighted, weights, error=error)


def test_in_is_about_layers():
    source = vectors()
    for layer in (1, 3, -1, -3, np.int64(3)):
        assert layer in source
    for other in (0, 2, -2, 4, -5, True, 1.0, "1", None, source[1], [1]):
        assert other not in source


def test_placed_vectors_keep_their_provenance():
    source = vectors()[1]
    placed = source.at(layers=[0, -1], hook="resid_pre")
    assert (placed.layers, placed.hook) == ((0, 3), "resid_pre")
    assert torch.equal(placed.values, source.values.repeat(2, 1))
    assert placed.info == {"seed": 0, "read_at": {"layer": 1, "hook": "resid_post"}}
    assert placed[3].at(layers=2).info == placed.info
    assert (placed.method, placed.identity) == (source.method, source.identity)
    assert placed.stream_norm.isnan().all()
    message = r"norm at layers \[0, 3\] is not known.*prompts=….*\.at\(layers=…, stream_norm=…\)"
    assert_raises(message, placed.scaled_to, dose=0.3)
    known = source.at(layers=2, stream_norm=[20.0]).scaled_to(dose=0.3)
    assert known.hook == "resid_post"
    assert float(known.values.norm()) == pytest.approx(6.0, rel=1e-5)
    assert_raises("out of range", source.at, layers=4, error=IndexError)


def test_stream_norms_are_looked_up_by_layer():
    original = vectors()[1]
    norms = {3: 40.0, 0: 7.0, 2: 20.0}
    source = vectors(layers=(3, 0, 2), norms=tuple(norms.values()))
    for known in (norms, {-1: 40.0, 0: 7.0, -2: 20.0}, source):
        placed = original.at(layers=[0, 2, 3], stream_norm=known)
        assert placed.stream_norm.tolist() == [7.0, 20.0, 40.0]
        assert placed.scaled_to(dose=0.5).norms().tolist() == pytest.approx([3.5, 10.0, 20.0])
        message = r"expected layers \[1\] too"
        assert_raises(message, original.at, layers=[1, 0], stream_norm=known, error=KeyError)
    assert original.at(layers=[3, 0], stream_norm=[1.0, 2.0]).stream_norm.tolist() == [1.0, 2.0]
    message = r"has 3 numbers: expected one for each of layers \[0\]"
    assert_raises(message, original.at, layers=0, stream_norm=source.stream_norm)
    message = "expected norms of resid_pre"
    assert_raises(message, original.at, layers=0, hook="resid_pre", stream_norm=source)
    for part in (source.weighted({2: 1.0, 3: 1.0}), source[2] + source[2], source * 2.0, -source, source[-2]):
        expected = [norms[layer] for layer in part.layers]
        assert torch.as_tensor(part.stream_norm).reshape(-1).tolist() == expected


@pytest.mark.parametrize("combine", [operator.add, operator.sub, SteeringVectors.cosine_similarity])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fingerprint": tuple(np.linspace(1, -1, 256))}, ModelMismatchError, "the weights differ"),
        ({"normalization": "LNPre"}, ModelMismatchError, "normalization: RMS against LNPre"),
        ({"n_layers": 5}, ModelMismatchError, "n_layers: 4 against 5"),
        ({"hook": "mlp_out"}, ValueError, r"different hook do not mix: resid_post and mlp_out. Use \.at"),
        ({"layers": (1, 2)}, ValueError, r"different layers do not mix: \(1, 3\) and \(1, 2\)"),
        ({"layers": (3, 1)}, ValueError, "different layers do not mix"),
        ({"positions": 2}, ValueError, r"shapes \(2, 32\) and \(2, 2, 32\) do not mix"),
    ],
)
def test_vectors_of_different_models_hooks_or_layers_do_not_mix(combine, changes, error, message):
    assert_raises(message, combine, vectors(), vectors(**changes), error=error)
    assert_raises(None, combine, vectors(), vectors()[1], error=TypeError)


def test_only_numbers_scale():
    for source in (vectors(), vectors()[1]):
        for number in (np.float64(2), np.float32(2), np.int64(2)):
            for scaled in (number * source, source * number):
                assert type(scaled) is type(source)
                assert torch.equal(scaled.values, 2 * source.values)
        for factor in (torch.tensor(2.0), True, "2", np.ones(2)):
            assert_raises(None, operator.mul, source, factor, error=TypeError)


def test_errors_of_length_zero_name_the_layers():
    some = vectors().weighted({3: 0.0, 1: 1.0})
    for source in (some, some[3]):
        for call in (source.normalized, functools.partial(source.scaled_to, dose=1.0)):
            assert_raises(r"length zero has no direction.* of layers \[3\]\.$", call)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_and_infinity_are_rejected(number):
    source = vectors()
    values = source.values.clone()
    values[1, 5] = number
    message = r"the vector \(method 0, resid_post\) holds NaN or infinite numbers"
    assert_raises(message, dataclasses.replace, source, values=values)
    for one, factor in ((source[1], number), (source, 3e38)):
        assert_raises("NaN or infinite", operator.mul, one, factor)


def test_numbers_of_vectors_layers_and_norms_must_agree():
    # The run-time checks of the tests may reject the shapes first, with a type error of their own.
    for changes in ({"stream_norm": torch.ones(1)}, {"layers": (1, 2, 3)}):
        assert_raises(None, dataclasses.replace, vectors(), **changes, error=(ValueError, TypeError))


def test_vectors_are_immutable_and_arithmetic_does_not_change_them():
    source = vectors()
    before = source.values.clone()
    for one, name in ((source, "values"), (source[1], "layer")):
        assert_raises(None, setattr, one, name, None, error=dataclasses.FrozenInstanceError)
    results = [source + source, source * 2.0, -source, source.normalized(), source.weighted({1: 1.0})]
    for result in (*results, source[1], source[1].at(layers=[0, 1])):
        result.values.zero_()
    assert torch.equal(source.values, before)


@given(
    seed=st.integers(0, 99),
    positions=st.sampled_from([None, 1, 4]),
    norm=st.sampled_from([40.0, float("nan")]),
    info=st.dictionaries(st.text(), st.integers() | st.text()),
)
def test_a_round_trip_through_a_file(tmp_path_factory, seed, positions, norm, info):
    path = tmp_path_factory.mktemp("vectors") / "v.safetensors"
    source = vectors(seed, positions=positions, norms=(10.0, norm), revision="abc")
    source = dataclasses.replace(source, info={"é": [1, "x"], **info})
    for vectors_or_one, layers in ((source, (1, 3)), (source[3], (3,))):
        vectors_or_one.save(path)
        again = SteeringVectors.load(path)
        for layer in layers:
            assert torch.equal(again[layer].values, source[layer].values)
            np.testing.assert_equal(again[layer].stream_norm, source[layer].stream_norm)
        assert again.layers == layers
        for name in ("hook", "method", "identity", "info"):
            assert getattr(again, name) == getattr(source, name), name


@pytest.mark.parametrize("positions", [None, 3])
def test_one_vector_as_vectors_of_one_layer(positions):
    source = vectors(positions=positions)[3]
    alone = source.as_vectors()
    assert (alone.layers, alone.stream_norm.tolist(), alone.info) == ((3,), [40.0], source.info)
    assert torch.equal(alone[3].values, source.values)
    alone.values.zero_()
    assert source.values.any()
    assert alone.as_vectors() is alone
    assert source.has_positions == alone.has_positions == (positions is not None)


def test_a_vector_pickles_for_other_processes():
    source = vectors()[3]
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.values, source.values)
    assert (again.layer, again.identity) == (3, source.identity)


def test_vectors_of_one_layer_can_be_placed_like_the_vector_itself():
    source = vectors()
    placed, expected = (each.at(layers=[0, 1]) for each in (source.weighted({1: 1.0}), source[1]))
    assert placed.layers == expected.layers == (0, 1)
    assert torch.equal(placed.values, expected.values)
    assert_raises(r"say which one, vectors\[layer\]\.at", source.at, layers=[0, 1])


def test_reprs_are_one_line():
    values = torch.zeros(2, D_MODEL)
    values[0, :2], values[1, 0] = torch.tensor([3.0, 4.0]), 1.0
    identity = identify(MODEL)
    source = SteeringVectors(values, (0, 1), "resid_post", "mean_difference", torch.ones(2), identity)
    summary = "mean_difference at resid_post, length"
    assert repr(source) == f"SteeringVectors({summary} 1 to 5, layers [0, 1], {identity.name})"
    assert repr(source[0]) == f"SteeringVector({summary} 5, layer 0, {identity.name})"
    loaded = capture(MODEL, ["a b", "c"], layers=[0, 1])
    where = f"at last_token(), resid_post of 2 layers, {identity.name}"
    assert repr(loaded) == f"Activations(2 prompts {where})"
    both = PairedActivations(loaded, loaded, pd.DataFrame({"group": [0, 1]}))
    assert repr(both) == f"PairedActivations(2 pairs {where})"


@pytest.mark.parametrize(
    "convert",
    [
        lambda values: values,
        lambda values: values.double().requires_grad_(),
        lambda values: values.numpy(),
        lambda values: values.numpy()[::-1].copy()[::-1].astype(">f8"),
        lambda values: values.tolist(),
    ],
)
def test_a_steering_vector_from_a_tensor(convert):
    values = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(0))
    vector = steering_vector(MODEL, convert(values), layer=-1, hook="resid_pre", name="mine")
    assert (vector.layer, vector.hook, vector.method) == (N_LAYERS - 1, "resid_pre", "mine")
    assert vector.identity == identify(MODEL)
    assert torch.equal(vector.values, values)
    vector.values.zero_()
    assert values.all()
    assert_raises(r"at layers \[2\] is not known.*prompts=", vector.scaled_to, dose=0.5)


def test_stream_norms_of_a_steering_vector():
    prompts = ["a b c", "d e f g"]
    measured = capture(MODEL, prompts, layers=[2, 0])
    norm = float(measured.stream_norm[1])
    source = functools.partial(steering_vector, MODEL, ONES, layer=0)
    for options in (
        {"stream_norm": norm},
        {"stream_norm": {2: 1.0, -N_LAYERS: norm}},
        {"stream_norm": measured},
        {"prompts": prompts},
    ):
        vector = source(**options)
        assert vector.stream_norm == pytest.approx(norm)
        assert float(vector.scaled_to(dose=0.5).norms()) == pytest.approx(vector.stream_norm / 2)
    other_hook = capture(MODEL, prompts, hook="resid_pre")
    for options, message in (
        ({"stream_norm": 3.0, "prompts": prompts}, "expected one of them"),
        ({"stream_norm": 0.0}, "stream_norm=0 at layer 0: expected a number above 0"),
        ({"stream_norm": {1: 3.0}}, r"expected layers \[0\]"),
        ({"stream_norm": other_hook}, "expected norms of resid_post"),
        ({"stream_norm": torch.ones(N_LAYERS)}, "3 numbers: expected one"),
    ):
        assert_raises(message, source, error=(ValueError, KeyError), **options)


@pytest.mark.parametrize(
    ("tensor", "layer", "error", "message"),
    [
        (torch.ones(D_MODEL + 1), 0, ValueError, "vectors of 17 numbers; resid_post of tiny has 16"),
        (ONES[None], 0, ValueError, r"shape \(1, 16\).*one axis"),
        (ONES, 3, IndexError, "layer 3 is out of range"),
        (ONES * torch.nan, 0, ValueError, "NaN or infinite"),
        (np.ones(D_MODEL, dtype=complex), 0, ValueError, "complex128: expected real numbers"),
        (ONES.to(torch.complex64), 0, ValueError, "complex64: expected real numbers"),
        (ONES.bool(), 0, ValueError, "bool: expected real numbers"),
        (["a"] * D_MODEL, 0, ValueError, "expected real numbers"),
    ],
)
def test_tensors_that_are_not_vectors_of_the_model_are_rejected(tensor, layer, error, message):
    assert_raises(message, steering_vector, MODEL, tensor, layer=layer, error=error)


@pytest.mark.parametrize("numbers", [ONES, ONES.numpy(), ONES.tolist()])
@pytest.mark.parametrize("operation", [Add, ProjectOut, lambda vector: SetProjection(vector, 1.0)])
def test_numbers_instead_of_a_vector_are_an_error_with_the_remedy(operation, numbers):
    assert_raises(r"use steering_vector\(model, tensor, layer=…\)", operation, numbers, error=TypeError)
