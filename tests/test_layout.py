"""The stored strides: faster, and nothing else about the model changes."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from tl_steer.models import load_model, optimize_layout, restore_layout, tokenize

IDS = torch.tensor([[3, 17, 9, 44, 101, 6, 77, 12]])
# Read off transformer_lens 3.9's components: the weights that einsum and linear rearrange on each call.
PLAIN = {"W_Q", "W_K", "W_V", "W_O", "W_U"}
GATED = {"W_Q", "_W_K", "_W_V", "W_O", "W_U", "W_gate", "W_in", "W_out"}
COPIED = {"gpt2": PLAIN, "neox": PLAIN, "llama": GATED, "qwen2": GATED, "gemma2": GATED}


@pytest.fixture(params=COPIED)
def name(request):
    return request.param


@pytest.fixture
def plain(make_hf_model, name):
    """A model as TransformerLens stores it."""
    return load_model("tiny", hf_model=make_hf_model(name), layout=False)


def strides(model):
    return {key: weight.stride() for key, weight in model.named_parameters()}


class CopiedNumbers(TorchDispatchMode):
    """Counts the numbers that are copied."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default):
            self.count += result.numel()
        return result


def copied_numbers(model, ids):
    with CopiedNumbers() as copied:
        model(ids)
    return copied.count


def test_logits_are_equal_to_the_bit_before_and_after(plain):
    before = plain(IDS)
    for change in (optimize_layout, restore_layout):
        change(plain)
        assert torch.equal(plain(IDS), before)


def test_only_the_weights_that_components_copy_change_their_strides(make_hf_model, plain, name):
    before = strides(plain)
    optimize_layout(plain)
    stored = strides(plain)
    assert strides(load_model("tiny", hf_model=make_hf_model(name))) == stored  # the default
    changed = {key for key, stride in stored.items() if stride != before[key]}
    assert {key.rpartition(".")[2] for key in changed} == COPIED[name]
    assert sum(".W_Q" in key for key in changed) == plain.cfg.n_layers
    optimize_layout(plain)
    assert strides(plain) == stored
    plain.to(torch.bfloat16)
    assert strides(plain) == stored
    restore_layout(plain)
    assert strides(plain) == before


def test_the_copies_vanish(plain):
    """Counted at the dispatcher, so that a new TransformerLens with other rearrangements is noticed."""
    ids = IDS[:, :1]
    before = copied_numbers(plain, ids)
    optimize_layout(plain)
    one_weight = plain.W_Q[0].numel()
    assert before > plain.cfg.n_layers * one_weight
    assert copied_numbers(plain, ids) < one_weight


def test_values_names_shapes_and_parameters_stay(plain):
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    parameters = dict(plain.named_parameters())
    optimize_layout(plain)
    after = plain.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(parameter is parameters[key] for key, parameter in plain.named_parameters())


def test_the_state_can_be_saved_once_the_layout_is_restored(plain, tmp_path):
    optimize_layout(plain)
    with pytest.raises(ValueError, match="non contiguous"):
        save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    restore_layout(plain)
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    saved = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in plain.state_dict().items())


def test_loading_a_state_into_the_model_never_makes_it_wrong(plain):
    expected = plain(IDS)
    state = copy.deepcopy(plain.state_dict())
    optimize_layout(plain)
    stored = strides(plain)
    for assign in (False, True):
        plain.load_state_dict(state, assign=assign)
        assert (strides(plain) == stored) != assign
        assert torch.equal(plain(IDS), expected)


@pytest.mark.model
def test_the_embedded_models_logits_are_equal_to_the_bit(embedded):
    model = copy.deepcopy(embedded)
    ids = torch.tensor([tokenize(model, "The sea was calm that morning")])
    restore_layout(model)
    assert strides(model) != strides(embedded)
    assert torch.equal(model(ids), embedded(ids))
    optimize_layout(model)
    assert strides(model) == strides(embedded)
