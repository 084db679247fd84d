"""A model on one device that is not the CPU, and on two: the CPU's numbers, and no tensor in the wrong place.

The devices are not there (`fake_devices`): what a GPU would refuse is refused, numbers are the CPU's.
"""

import builtins
import functools
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens import HookedTransformerConfig

import tl_steer as ts
from tl_steer.models import load_model
from tl_steer.models.conversion import spread

from .conftest import random_hf_model
from .fake_devices import KIND, Elsewhere, FakeDevices
from .tiny_model import made_vector, make_model, word_tokenizer

PROMPTS = ["a b c d good", "e f", "a b c"]
CHOICES = [("True", "False"), ("yes", "no"), ("True False", "False True")]
PAIRS = ts.contrast_pairs(["a good", "b good", "c d good"], ["a bad", "b bad", "c d bad"])


def placed(n_devices):
    """The tiny model spread over so many devices."""
    model = make_model(word_tokenizer())
    model.cfg.device, model.cfg.n_devices = KIND, n_devices
    spread(model)
    return model


@pytest.fixture(params=[1, 2], ids=["one device", "two devices"])
def elsewhere(request, monkeypatch):
    """A model whose weights are on one or two devices, of which the single one has no float64, as Apple's."""

    def plain_type(value):  # TransformerLens insists on a plain tensor where it starts at a layer
        return torch.Tensor if isinstance(value, Elsewhere) else builtins.type(value)

    def has_float64(device):
        return request.param > 1 or device.type == "cpu"

    monkeypatch.setattr(sys.modules["transformer_lens.HookedTransformer"], "type", plain_type, raising=False)
    for module in ("engine.logits", "_generation"):
        monkeypatch.setattr(f"tl_steer.{module}.has_float64", has_float64)
    with FakeDevices(float64=request.param > 1):
        yield placed(request.param)


def operations(model):
    vector = made_vector(model, 1)
    return [
        ts.Add(vector, 2.0, ts.current_token()),
        ts.ProjectOut(vector),
        ts.SetProjection(made_vector(model, 2, "z"), 1.0, ts.last_token()),
        ts.Ablate(1, "z", heads=[0], positions=ts.all_tokens()),
    ]


def swept(model, measure):
    vectors = ts.mean_difference(ts.capture_pairs(model, PAIRS))
    questions = ts.ChoiceQuestions(PROMPTS, CHOICES, answers=[0, 1, 0])
    options = {"measure": measure, "max_new_tokens": 3, "controls": 1, "progress": False}
    return ts.sweep(model, vectors, questions, layers=[(0, 2)], multipliers=[2.0], **options)


def damaged(model, **options):
    options |= {"multipliers": [1.0], "controls": 0, "progress": False}
    return ts.damage(model, made_vector(model, 1).at(layers=1), ["a b c", "d e f g"], **options)


def own_pass(model, **_):
    with ts.steer(model, *operations(model)):
        return model(torch.tensor([[0, 3, 4, 5]])).cpu()


def captured(model, *steering, **options):
    return ts.capture(model, PROMPTS, *steering, **options).values


def generated(model, *steering, **options):
    return ts.generate(model, PROMPTS, *steering, max_new_tokens=4, **options)


def lens(model, **options):
    return ts.logit_lens(model, made_vector(model, 1).at(layers=1), top=3, **options)


EVERYWHERE = {"positions": ts.all_tokens(), "max_new_tokens": 3}
COMPLETED = {"positions": ts.current_token(), "completions": ["a b", "c", "d e"]}
SAMPLED = {"temperature": 1.0, "top_p": 0.9}
CALLS = {
    "capture": lambda model, **reuse: captured(model, *operations(model), **EVERYWHERE, **reuse),
    "capture z": functools.partial(captured, hook="z"),
    "capture completions": functools.partial(captured, **COMPLETED),
    "generate": lambda model, **reuse: generated(model, *operations(model), **reuse),
    "generate sampled": functools.partial(generated, **SAMPLED),
    "generate without a cache": lambda model, **reuse: generated(
        model, *operations(model), use_cache=False, **reuse
    ),
    "choices": lambda model, **reuse: ts.choice_logits(model, PROMPTS, CHOICES, *operations(model), **reuse),
    "damage": damaged,
    "a user's own pass": own_pass,
}
ONCE = {
    "sweep of choices": lambda model: swept(model, "choice"),
    "sweep of texts": lambda model: swept(model, "generate"),
    "logit lens": lens,
    "logit lens without the norm": lambda model: lens(model, norm=False),
    "activation addition": lambda model: ts.activation_addition(model, "a b", "c d", layers=1).values,
    "identity": ts.identify,
}


def require_alike(result, expected):
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(result, expected, rtol=1e-4, atol=1e-4)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    else:
        assert result == expected


@pytest.mark.parametrize("reuse", [True, False], ids=["engine", "plain loop"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_gives_the_cpu_s_numbers_and_mixes_no_devices(elsewhere, call, reuse):
    expected = CALLS[call](make_model(word_tokenizer()), reuse=reuse)
    require_alike(CALLS[call](elsewhere, reuse=reuse), expected)
    assert {weight.device.type for weight in elsewhere.parameters()} == {KIND}


@pytest.mark.parametrize("call", ONCE)
def test_so_do_the_functions_that_use_them(elsewhere, call):
    require_alike(ONCE[call](elsewhere), ONCE[call](make_model(word_tokenizer())))


@pytest.mark.slow
def test_verify_finds_nothing_wrong(elsewhere):
    table = ts.verify(elsewhere, prompts=PROMPTS[:2], progress=False).set_index("check")
    assert set(table["result"]) == {"passed", "does not apply"}
    assert table.loc["a batch equals its prompts alone", "result"] == "passed"
    assert table.loc["hooks are gone afterwards", "result"] == "passed"


def test_layers_lie_where_the_pass_takes_the_stream(elsewhere):
    devices = [{weight.device.index for weight in block.parameters()} for block in elsewhere.blocks]
    last = elsewhere.cfg.n_devices - 1
    assert devices == ([{0}, {0}, {0}] if last == 0 else [{0}, {0}, {1}])
    assert elsewhere.W_E.device.index == elsewhere.W_pos.device.index == 0
    assert elsewhere.W_U.device.index == elsewhere.ln_final.w.device.index == last


def test_what_a_device_rejects_is_rejected():
    with FakeDevices(float64=False):
        here, there = torch.ones(2, device=f"{KIND}:0"), torch.ones(2, device=f"{KIND}:1")
        for mixed in (lambda: here + there, lambda: here + torch.ones(2), lambda: torch.ones(2)[here.long()]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        for refused in (here.double, here.numpy):
            with pytest.raises(TypeError, match=r"float64|cpu\(\)"):
                refused()
        assert (here + 1.0).tolist() == [2, 2]
        assert here[torch.tensor([0])].device == here.device


def test_layers_are_spread_when_a_model_is_loaded(monkeypatch):
    configs, options = [], {"device": "cuda", "n_devices": 2, "layout": False, "check": False}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("tl_steer.models.conversion.spread", lambda model: configs.append(model.cfg))
    load_model("tiny", hf_model=random_hf_model("gpt2"), **options)
    (cfg,) = configs
    assert isinstance(cfg, HookedTransformerConfig)
    assert (cfg.device, cfg.n_devices) == ("cuda", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_devices": 2, "device": "cpu"}, "n_devices=2 on 'cpu'"),
        ({"n_devices": 0, "device": "cpu"}, "n_devices=0"),
        ({"n_devices": 99, "device": "cuda"}, "n_devices=99, but there are"),
        ({"n_devices": 2, "backend": "bridge"}, "device_map"),
    ],
)
def test_devices_that_are_not_there_are_rejected(options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        load_model("tiny", hf_model=random_hf_model("gpt2"), **options)


def test_the_fake_devices_leave_no_trace():
    with FakeDevices():
        pass
    assert np.array_equal(torch.ones(2).numpy(), [1, 1])
    assert not torch._C._only_lift_cpu_tensors()
