"""Model identities: what changes them, what does not, and which mismatches raise."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tl_steer.errors import ModelMismatchError
from tl_steer.models import ModelIdentity, identify, load_model, optimize_layout, restore_layout
from tl_steer.models.backend import BACKENDS

from .conftest import assert_raises, make_identity

EACH_NAME = pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])


def identity_of(hf_model, **options):
    return identify(load_model("tiny", hf_model=hf_model, **options))


def assert_same(first, second, same=True):
    """Compare in both directions."""
    assert first.same_model(second) == same
    assert second.same_model(first) == same


@pytest.fixture
def identity(make_hf_model):
    return identity_of(make_hf_model("llama"))


def fine_tuned(hf_model, size):
    """Change every weight by `size` of its typical value."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in hf_model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * size * parameter.pow(2).mean().sqrt())
    return hf_model


def test_an_identity_has_the_models_shapes_and_name(make_hf_model, make_tokenizer):
    result = identify(load_model("some/tiny", hf_model=make_hf_model("gemma2"), tokenizer=make_tokenizer()))
    assert (result.name, result.revision) == ("tiny", None)
    assert (result.n_layers, result.d_model, result.n_heads, result.d_head) == (4, 48, 4, 16)
    assert len(result.fingerprint) == 512
    assert result.tokenizer
    assert ModelIdentity.from_json(result.to_json()) == result


PROJECTIONS = {  # how many numbers of the first, middle and last block are in the fingerprint
    "self_attn.o_proj": [86, 85, 85], "self_attn.q_proj": [32, 32, 32],
    "self_attn.v_proj": [32, 32, 32], "mlp.down_proj": [22, 21, 21],
}  # fmt: skip


def changed_in(hf_model, projection, layers, change):
    with torch.no_grad():
        for layer in layers:
            change(hf_model.model.layers[layer].get_submodule(projection).weight)
    return hf_model


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_fingerprint_is_of_four_weights_of_the_first_middle_and_last_block(make_hf_model, backend):
    """Each of the twelve weights is shifted by a different whole number."""
    changed, unchanged = make_hf_model("llama"), make_hf_model("llama")
    weights = [(projection, layer) for projection in PROJECTIONS for layer in range(3)]
    for shift, (projection, layer) in enumerate(weights, 1):
        changed_in(changed, projection, [layer], lambda weight, shift=shift: weight.add_(shift))
    fingerprints = [identity_of(each, backend=backend).fingerprint for each in (changed, unchanged)]
    shifts = np.subtract(*fingerprints)
    np.testing.assert_allclose(shifts, shifts.round(), atol=1e-4)
    counts = np.bincount(shifts.round().astype(int), minlength=13).tolist()
    assert counts == [0, *(number for each in PROJECTIONS.values() for number in each)]


@pytest.mark.parametrize(("projection", "layers"), [
    ("self_attn.q_proj", range(3)), ("self_attn.v_proj", range(3)), ("mlp.down_proj", range(3)),
    ("self_attn.o_proj", [0]), ("self_attn.o_proj", [1]), ("self_attn.o_proj", [2]),
])  # fmt: skip
def test_a_change_of_one_weight_alone_is_another_model(make_hf_model, identity, projection, layers):
    """As after merging an adapter with peft's defaults: q and v changed, W_O unchanged."""
    merged = changed_in(make_hf_model("llama"), projection, layers, lambda weight: weight.mul_(1.05))
    other = identity_of(merged)
    assert (identity.fingerprint[:256] == other.fingerprint[:256]) == (projection != "self_attn.o_proj")
    assert_same(identity, other, False)


def test_an_identity_of_an_older_file_is_compared_by_the_weights_it_has(identity):
    old = replace(identity, fingerprint=identity.fingerprint[:256])
    other = replace(old, fingerprint=tuple(1.1 * value for value in old.fingerprint))
    assert_same(old, identity)
    assert_same(other, identity, False)
    assert not replace(identity, fingerprint=identity.fingerprint[:255]).same_model(identity)


def in_integers(weight):
    return torch.nn.Parameter(weight.to(torch.uint8), requires_grad=False)


def test_the_fingerprint_ends_before_a_weight_that_cannot_be_read(make_hf_model, identity):
    model = load_model("tiny", hf_model=make_hf_model("llama"), backend="bridge")
    projection = model.blocks[1].attn.v.original_component
    projection.weight = in_integers(projection.weight)
    result = identify(model)
    assert len(result.fingerprint) == 256 + 96
    assert result.same_model(identity)
    model.blocks[2].attn.o.original_component.to("meta")
    assert_raises("tiny has weights on meta: they are offloaded", identify, model)
    hooked = load_model("tiny", hf_model=make_hf_model("gpt2"))
    for block in hooked.blocks:
        block.attn.W_O = in_integers(block.attn.W_O)
    assert identify(hooked).fingerprint == ()


@EACH_NAME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_the_same_model(make_hf_model, name, dtype):
    hf_model = make_hf_model(name)
    model = load_model("tiny", hf_model=hf_model)
    exact = identify(model)
    assert_same(exact, identity_of(hf_model, dtype=dtype))
    assert_same(exact, identify(model.to(dtype)))


@EACH_NAME
def test_loading_again_or_in_another_layout_gives_an_equal_identity(make_hf_model, name):
    model = load_model("tiny", hf_model=make_hf_model(name))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    plain = identity_of(make_hf_model(name), layout=False)
    assert identify(model) == plain
    for change in (restore_layout, optimize_layout):
        change(model)
        assert identify(model) == plain
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@EACH_NAME
def test_a_fine_tuned_model_is_refused_and_rounding_is_not(make_hf_model, name):
    original = identity_of(make_hf_model(name))
    assert original.same_model(identity_of(fine_tuned(make_hf_model(name), 0.005)))
    message = r"the activations, made on tiny, .* other: the weights"
    for hf_model in (fine_tuned(make_hf_model(name), 0.05), make_hf_model(name, seed=1)):
        other = replace(identity_of(hf_model), name="other")
        assert_raises(message, original.require, other, what="the activations", error=ModelMismatchError)
        original.require(other, force=True)


@pytest.mark.parametrize(("processing", "normalization", "centred"), [
    (True, "LNPre", True),
    ({"fold_ln": True}, "LNPre", False),
    ({"center_writing_weights": True}, "LN", True),
    ({"scalar_centring": True}, "LN", "scalar"),
])  # fmt: skip
def test_other_processing_is_refused_even_if_forced(make_hf_model, processing, normalization, centred):
    hf_model = make_hf_model("gpt2")
    plain, other = identity_of(hf_model), identity_of(hf_model, processing=processing)
    assert (plain.normalization, plain.centred) == ("LN", False)
    assert (other.normalization, other.centred) == (normalization, centred)
    message = r"cannot be used with tiny: .*against.*same processing"
    for first, second in ((plain, other), (other, plain)):
        assert_raises(message, first.require, second, force=True, error=ModelMismatchError)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_centring_is_measured_on_the_weights(make_hf_model, dtype):
    model = load_model("tiny", hf_model=make_hf_model("gpt2"), dtype=dtype)
    assert not identify(model).centred
    weights = model.W_E.data.float()
    model.W_E.data = (weights - weights.mean(-1, keepdim=True)).to(dtype)
    assert identify(model).centred


@pytest.mark.parametrize("shape", ["n_layers", "d_model", "n_heads", "d_head"])
def test_other_shapes_are_rejected_even_if_forced_other_names_are_not(identity, shape):
    identity.require(replace(identity, name="another", revision="abc", tokenizer="def"))
    other = replace(identity, **{shape: getattr(identity, shape) + 1}, name="wide")
    message = rf"made on tiny, cannot be used with wide: {shape}: \d+ against \d+"
    assert_raises(message, identity.require, other, force=True, error=ModelMismatchError)


def test_the_tokenizers_digest_follows_the_vocabulary(make_hf_model, make_tokenizer):
    model = load_model("tiny", hf_model=make_hf_model("gpt2"), tokenizer=make_tokenizer(bos=True))
    first = identify(model).tokenizer
    model.tokenizer = make_tokenizer(bos=False)
    assert identify(model).tokenizer == first
    model.tokenizer.add_tokens(["zebra"])
    assert identify(model).tokenizer not in ("", first)
    model.tokenizer = None
    assert identify(model).tokenizer == ""


@pytest.mark.parametrize("missing", [(0,), (1,), (0, 1)])
def test_weights_that_cannot_be_read_warn_and_do_not_raise(identity, missing):
    sides = [replace(identity, fingerprint=()) if i in missing else identity for i in (0, 1)]
    with pytest.warns(UserWarning, match="cannot compare the weights of tiny and tiny"):
        sides[0].require(sides[1])


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_layers": 0}, "n_layers"), ({"n_layers": 2.5}, "n_layers"), ({"d_head": True}, "d_head"),
    ({"name": 3}, "name"), ({"centred": "rows"}, "centred"), ({"extra": 1}, "extra"),
    ({"fingerprint": [float("nan")]}, "fingerprint"), ({"fingerprint": [1e40]}, "fingerprint"),
    ({"fingerprint": None}, "fingerprint"), ({"fingerprint": [True]}, "fingerprint"),
])  # fmt: skip
def test_invalid_values_in_a_file_are_rejected(changes, message):
    text = json.dumps(json.loads(make_identity().to_json()) | changes)
    assert_raises(f"not a model identity: {message}", ModelIdentity.from_json, text)


@pytest.mark.parametrize("text", ["[]", "{}", '{"name": "tiny"}', "not json"])
def test_other_files_are_rejected(text):
    assert_raises("not a model identity", ModelIdentity.from_json, text)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scalar_centring_is_seen_in_the_weights_and_survives_a_file(make_hf_model, dtype):
    """The mean of a trained matrix hardly changes the fingerprint: the centring itself is compared."""
    hf_model = make_hf_model("gpt2")
    with torch.no_grad():
        for name, weight in hf_model.named_parameters():
            if "c_proj.weight" in name:
                weight.sub_(0.9 * weight.mean())
    plain, scalar, rows = (
        identity_of(hf_model, dtype=dtype, processing=processing, check=False)
        for processing in (False, {"scalar_centring": True}, {"center_writing_weights": True})
    )
    assert (plain.centred, scalar.centred, rows.centred) == (False, "scalar", True)
    assert ModelIdentity.from_json(scalar.to_json()) == scalar
    assert replace(scalar, centred=False).same_model(plain)
    for one, other in ((plain, scalar), (scalar, plain), (scalar, rows)):
        assert_raises(r"centred: .*scalar", one.require, other, force=True, error=ModelMismatchError)
