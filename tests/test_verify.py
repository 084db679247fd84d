"""`verify`: every check passes on a sound model, and fails where, and only where, its promise is broken."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

import tl_steer as ts
from tl_steer.interventions import Add
from tl_steer.models import hook_point, load_hugging_face, load_model
from tl_steer.verification import shown, summary, verify
from tl_steer.verification.verify import CHECKS

from .conftest import random_hf_model
from .test_cli import command
from .tiny_model import D_MODEL, all_hooks, byte_tokenizer, make_model, weights_of, word_tokenizer

PROMPTS_OF_IDS = [[3, 9], [5, 7, 11, 13, 17]]
NAMES = [check.name for check in CHECKS]
CHAT = "{{ bos_token }}{% for turn in messages %}{{ turn['content'] }} : {% endfor %}"


def tiny(**options):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    return make_model(tokenizer, n_layers=2, **options)


def results(model, *, prompts=("a b", "c d e f g"), **options):
    table = verify(model, progress=False, prompts=list(prompts), **options)
    return table.set_index("check")


def failed(table):
    return set(table.index[table["result"] == "failed"])


def subclassed(model, **methods):
    """The model with methods of its class replaced, as a subclass would."""
    model.__class__ = type("Broken", (type(model),), methods)
    return model


# Models that are broken on purpose


def hooked():
    model = tiny()
    model.blocks[1].hook_resid_post.add_hook(lambda x, hook: None)
    return model


def training():
    return tiny().train()


def wanting_gradients():
    model = tiny()
    model.unembed.W_U.requires_grad_(True)
    return model


def with_dropout():
    model = tiny().train()
    forward = type(model.blocks[1].mlp).forward
    dropping = {"forward": lambda self, x: torch.nn.functional.dropout(forward(self, x), 0.1, self.training)}
    subclassed(model.blocks[1].mlp, **dropping)
    return model


def doubling_its_input():
    model = tiny()
    subclassed(model.blocks[1].hook_resid_pre, forward=lambda self, x: 2 * x)
    return model


def ignoring_the_mask():
    def forward(self, *inputs, attention_mask=None, **options):
        return HookedTransformer.forward(self, *inputs, **options)

    return subclassed(tiny(), forward=forward)


def refusing_right_padding():
    def forward(self, *inputs, attention_mask=None, **options):
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("padded on the right")
        return HookedTransformer.forward(self, *inputs, attention_mask=attention_mask, **options)

    return subclassed(tiny(), forward=forward)


def minding_the_padding_side():
    def forward(self, given, *inputs, **options):
        if given.ndim == 2 and self.tokenizer.padding_side == "left":
            given = (given + 1) % self.cfg.d_vocab
        return HookedTransformer.forward(self, given, *inputs, **options)

    model = subclassed(tiny(), forward=forward)
    model.tokenizer.padding_side = "right"
    return model


def with_a_wrong_cache():
    def forward(self, given, *inputs, past_kv_cache=None, **options):
        if past_kv_cache is not None and past_kv_cache[0].past_keys.shape[1]:
            given = (given + 1) % self.cfg.d_vocab
        return HookedTransformer.forward(self, given, *inputs, past_kv_cache=past_kv_cache, **options)

    return subclassed(tiny(), forward=forward)


def with_two_bos():
    from tokenizers import processors

    model = tiny()
    twice = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 0)])
    model.tokenizer.backend_tokenizer.post_processor = twice
    return model


def chatting_with_two_bos():
    model = tiny()
    model.tokenizer.chat_template = "{{ bos_token }}" + CHAT
    return model


def with_another_tokenizer():
    model = tiny()
    model.tokenizer.add_tokens(["unheard"])
    return model


def nearly_overflowing():
    model = tiny(dtype=torch.float16)
    # Where the vector of layer 1 is largest: the stream is at 0.6 of what float16 holds.
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    model.blocks[-1].mlp.b_out[drawn.argmax()] = 4e4
    return model


def wrong_in_half_precision():
    model = tiny(dtype=torch.float16)
    mlp = model.blocks[1].mlp
    forward = type(mlp).forward
    subclassed(mlp, forward=lambda self, x: forward(self, x) * (3 if self.W_in.dtype == torch.float16 else 1))
    return model


def leaking_hooks():
    def register_forward_hook(self, hook, **options):
        HookPoint.register_forward_hook(self, lambda *_: None)
        return HookPoint.register_forward_hook(self, hook, **options)

    model = tiny()
    subclassed(model.blocks[-1].hook_resid_post, register_forward_hook=register_forward_hook)
    return model


def writing_into_its_weights():
    def forward(self, *inputs, **options):
        self.pos_embed.W_pos[-1, 0] += 1  # of a position that no prompt reaches
        return HookedTransformer.forward(self, *inputs, **options)

    return subclassed(tiny(), forward=forward)


def writing_into_its_settings():
    def forward(self, *inputs, **options):
        self.tokenizer.truncation_side = "left"
        return HookedTransformer.forward(self, *inputs, **options)

    return subclassed(tiny(), forward=forward)


# What is broken in the package itself, in the place where a check meets it


def miscounting_choices(monkeypatch):
    def wrong(*arguments, **options):
        return ts.choice_logits(*arguments, **options).assign(mass=0.5)

    monkeypatch.setattr("tl_steer.verification.reading.choice_logits", wrong)
    return tiny()


def miscalculating_engine(monkeypatch):
    from tl_steer.engine import attention

    def wrong(attn, q, k, v, mask):
        return 2 * attention.weighted_values(attn, q, k, v, mask)

    monkeypatch.setattr("tl_steer.engine.walk.weighted_values", wrong)
    monkeypatch.setattr("tl_steer.engine.decoding.weighted_values", wrong)
    return tiny()


def mixing_cells(monkeypatch):
    """Where several cells share a pass, the first one's operations are all of theirs."""
    from tl_steer.interventions.cells import CellSteering

    changed = CellSteering.changed

    def wrong(self, layer, hook, x, parts):
        return changed(self, layer, hook, x, [replace(part, cell=parts[0].cell) for part in parts])

    monkeypatch.setattr(CellSteering, "changed", wrong)
    return tiny()


def unseeded(monkeypatch):
    seeds = iter(range(100))

    def wrong(*arguments, **options):
        if options.get("temperature"):
            options["seed"] = next(seeds)
        return ts.generate(*arguments, **options)

    monkeypatch.setattr("tl_steer.verification.writing.generate", wrong)
    return tiny()


def off_by_one(monkeypatch):
    def wrong(model, hook, layer):
        return hook_point(model, hook, max(0, layer - 1))

    monkeypatch.setattr("tl_steer.interventions.steering.hook_point", wrong)
    return tiny()


def rounding_the_vector(monkeypatch):
    adding = Add._adding

    def wrong(self, vector):
        return adding(self, replace(vector, values=vector.values.bfloat16().float()))

    monkeypatch.setattr(Add, "_adding", wrong)
    return tiny(dtype=torch.bfloat16)


def adding_nothing_as_something(monkeypatch):
    adding = Add._adding

    def wrong(self, vector):
        return adding(self if self.multiplier else Add(vector, 0.01), vector)

    monkeypatch.setattr(Add, "_adding", wrong)
    return tiny()


@dataclass
class Broken:
    """A model, the checks that have to fail, and those that may because they rest on the same thing."""

    made: Callable
    fails: set[str]
    may: frozenset[str] = frozenset()
    told: str = ""


BATCHED = {
    "choices are the model's own",
    "greedy tokens are the best ones",
    "a cache changes nothing",
}  # fmt: skip
STEERED = {
    "arithmetic is in float32", "a multiplier of 0 changes nothing", "shortcuts equal whole passes",
    "shortcuts write the same tokens", "cells together equal cells alone",
}  # fmt: skip
NOISY = frozenset(NAMES) - {
    "no hooks were left behind", "gradients are off", "one BOS before text", "one BOS before chat",
    "every token has an embedding", "doses 0.1 to 3 stay finite", "weights are unchanged",
    "settings are unchanged", "arithmetic is in float32",
}  # fmt: skip
BROKEN = [
    Broken(hooked, {"no hooks were left behind"}, told=r"^blocks\.1\.hook_resid_post$"),
    Broken(training, {"evaluation mode"}, told=r"call model\.eval\(\): the model, embed"),
    Broken(wanting_gradients, {"gradients are off"}, told=r"unembed\.W_U$"),
    Broken(with_dropout, {"a pass can be repeated", "evaluation mode"}, NOISY),
    Broken(doubling_its_input, {"layers follow one another"}, told=r"^layer 1, prompt \d \('<s>"),
    Broken(
        ignoring_the_mask,
        {"a batch equals its prompts alone", "padding with a mask changes nothing"},
        frozenset(BATCHED),
    ),
    Broken(refusing_right_padding, {"padding with a mask changes nothing"}, told="ValueError: padded on"),
    Broken(minding_the_padding_side, {"the padding side does not matter"}),
    Broken(miscounting_choices, {"choices are the model's own"}, told=r"^log mass, prompt"),
    Broken(
        miscalculating_engine,
        {
            "shortcuts equal whole passes",
            "shortcuts write the same tokens",
            "cells together equal cells alone",
        },
        frozenset({"choices are the model's own"}),
        told=r"^steered at layer",
    ),
    Broken(
        mixing_cells,
        {"cells together equal cells alone", "shortcuts write the same tokens"},
        told=r"^HookDidNotFireError: Add\(multiplier=-1\) at layer \d",
    ),
    Broken(
        with_a_wrong_cache,
        {"greedy tokens are the best ones", "a cache changes nothing"},
        told=r"^(with a cache|layer \d)",
    ),
    Broken(unseeded, {"the same seed, the same text"}, told="prompt"),
    Broken(with_two_bos, {"one BOS before text"}, told="'The sky"),
    Broken(chatting_with_two_bos, {"one BOS before chat"}, told="'<s> ?<s>"),
    Broken(with_another_tokenizer, {"every token has an embedding"}, told="^'unheard'$"),
    Broken(off_by_one, {"a vector appears at its layer"}, frozenset(STEERED), told="layer 1"),
    Broken(rounding_the_vector, {"arithmetic is in float32"}, told="^Add at layer"),
    Broken(adding_nothing_as_something, {"a multiplier of 0 changes nothing"}),
    Broken(nearly_overflowing, {"doses 0.1 to 3 stay finite"}, told=r"dose 3 at layer 1: Add"),
    Broken(wrong_in_half_precision, {"half precision is near float32"}),
    Broken(leaking_hooks, {"hooks are gone afterwards"}, told=r"^blocks\.1\.hook_resid_post$"),
    Broken(writing_into_its_weights, {"weights are unchanged"}, told=r"^pos_embed\.W_pos$"),
    Broken(writing_into_its_settings, {"settings are unchanged"}, told=r"^tokenizer\.truncation_side$"),
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.made.__name__)
def test_what_is_broken_fails_and_nothing_else(broken, monkeypatch):
    arguments = [monkeypatch] if broken.made.__code__.co_argcount else []
    table = results(broken.made(*arguments))
    assert broken.fails <= failed(table) <= broken.fails | broken.may
    for name in broken.fails if broken.told else ():
        assert re.search(broken.told, table.loc[name, "detail"]), table.loc[name, "detail"]


OF_HUGGING_FACE = {"logits equal Hugging Face's", "streams equal Hugging Face's"}


def test_every_check_can_fail():
    assert set().union(OF_HUGGING_FACE, *(broken.fails for broken in BROKEN)) == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def changed(hf_model, change):
    other = copy.deepcopy(hf_model)
    with torch.no_grad():
        change(other)
    return other


@pytest.mark.parametrize(
    ("change", "fails", "told"),
    [
        (lambda hf: hf.model.layers[1].mlp.down_proj.weight.mul_(1.1), OF_HUGGING_FACE, "^layer 1, prompt"),
        (lambda hf: hf.lm_head.weight[:40].mul_(1.1), {"logits equal Hugging Face's"}, "^prompt"),
        (lambda hf: hf.model.layers.insert(0, hf.model.layers.pop(2)), OF_HUGGING_FACE, "^layer 0, prompt"),
        (lambda hf: hf.model.layers.pop(2), OF_HUGGING_FACE, "no list of 3 blocks"),
    ],
    ids=["other weights in a layer", "another head", "layers shifted", "another depth"],
)
def test_another_hugging_face_model_is_noticed(change, fails, told):
    hf_model = random_hf_model("llama")
    model = load_model("tiny", hf_model=hf_model, device="cpu")
    table = results(model, hf_model=changed(hf_model, change), prompts=PROMPTS_OF_IDS)
    assert failed(table) == fails
    assert re.search(told, table.loc[sorted(fails)[-1], "detail"])


# Models that are sound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_sound_model_passes(dtype):
    table = verify(tiny(dtype=dtype), progress=False).set_index("check")  # its own prompts
    assert not failed(table)
    unfit = OF_HUGGING_FACE | ({"half precision is near float32"} if dtype == torch.float32 else set())
    assert set(table.index[table["result"] == "does not apply"]) == unfit
    assert "pass hf_model=" in table.loc["logits equal Hugging Face's", "detail"]


@pytest.mark.parametrize("backend", ts.models.BACKENDS)
def test_every_architecture_passes_on_either_backend(architecture, backend):
    hf_model, model = architecture
    if backend == "bridge":
        model = load_model("tiny", hf_model=copy.deepcopy(hf_model), device="cpu", backend="bridge")
    table = results(model, hf_model=hf_model, prompts=PROMPTS_OF_IDS)
    assert not failed(table), table["detail"].to_dict()
    assert set(table.index[table["result"] == "passed"]) >= OF_HUGGING_FACE
    if backend == "bridge":
        assert "is not a HookedTransformer" in table.loc["shortcuts equal whole passes", "detail"]


@pytest.mark.parametrize(
    "processing", [True, pytest.param({"center_writing_weights": True}, marks=pytest.mark.slow)], ids=str
)
def test_a_model_that_is_folded_and_centred_still_equals_hugging_face(processing):
    hf_model = random_hf_model("gpt2")
    model = load_model("tiny", hf_model=hf_model, device="cpu", processing=processing)
    assert not failed(results(model, hf_model=hf_model, prompts=PROMPTS_OF_IDS))


def test_the_model_is_left_as_it_was():
    model = tiny()
    model.blocks[0].hook_resid_pre.add_hook(lambda x, hook: None)
    model.tokenizer.padding_side = "right"
    hooks, weights = all_hooks(model), weights_of(model)
    results(model)
    assert all_hooks(model) == hooks
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert model.tokenizer.padding_side == "right"


def test_a_model_without_finite_numbers_fails_without_an_exception():
    model = tiny(dtype=torch.float16)
    model.blocks[0].mlp.b_out[:] = torch.inf
    table = results(model)
    assert "doses 0.1 to 3 stay finite" in failed(table)
    told = "NonFiniteError: without any operation: the stream became NaN or infinite in prompt"
    assert table.loc["a batch equals its prompts alone", "detail"].startswith(told)


def test_an_exception_in_a_check_is_a_failure_with_its_message():
    def forward(self, *inputs, **options):
        raise RuntimeError("out of order")

    table = results(subclassed(tiny(), forward=forward))
    assert table.loc["a vector appears at its layer", "detail"] == "RuntimeError: out of order"
    assert "one BOS before text" not in failed(table)


def test_prompts_of_one_s_own_are_used_and_refused_where_they_are_wrong():
    model = tiny()
    alike = results(model, prompts=["a b c", "d e f"])
    assert "give some of different lengths" in alike.loc["a batch equals its prompts alone", "detail"]
    assert alike.loc["a vector appears at its layer", "result"] == "passed"
    assert not failed(results(model, prompts=[[0, 3, 4], [0, 3, 4, 5, 6, 7]]))
    full = results(model, prompts=["a " * 46, "b"])
    assert "give shorter ones" in full.loc["a cache changes nothing", "detail"]
    with pytest.raises(ValueError, match="no prompts given"):
        verify(model, prompts=[])
    with pytest.raises(ValueError, match="does not fit the context"):
        verify(model, prompts=["a " * 60])


def test_a_model_without_tokenizer_and_one_without_bos():
    model = tiny()
    model.tokenizer = None
    table = results(model, prompts=PROMPTS_OF_IDS)
    assert not failed(table)
    assert table.loc["one BOS before text", "detail"] == "the model has no tokenizer."
    assert not failed(verify(make_model(byte_tokenizer()), progress=False).set_index("check"))


def test_the_table_has_a_row_a_check_and_says_what_each_means():
    table = results(tiny()).reset_index()
    columns = ["check", "result", "measured", "allowed", "unit", "meaning", "detail"]
    assert list(table.columns) == columns
    assert list(table["check"]) == NAMES
    assert set(table["result"]) <= {"passed", "failed", "does not apply"}
    passed = table[table["result"] == "passed"]
    assert (passed["measured"] <= passed["allowed"]).all()
    assert (passed["detail"] == "").all()
    assert all(meaning.endswith(".") and len(meaning) > 60 for meaning in table["meaning"])


# In a terminal


def test_what_failed_is_shown_first_within_the_terminal_s_width():
    table = verify(hooked(), progress=False, prompts=["a b", "c d e"])
    assert summary(table).startswith(f"{len(NAMES)} checks: ")
    assert "1 failed" in summary(table)
    text = shown(table)
    lines = text.splitlines()
    assert lines[0].startswith("FAILED  no hooks were left behind")
    assert "1 hooks (at most 0)" in lines[0]
    assert lines[1].strip() == "blocks.1.hook_resid_post"
    assert max(map(len, lines)) <= 100
    marks = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert marks == sorted(marks, key=["FAILED", "–", "passed"].index)


def test_the_command_prints_the_table_and_counts(monkeypatch, capsys):
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias")
    assert status == 0
    assert re.search(r"passed  logits equal Hugging Face's +\d", output)
    told = rf"organism-bias: {len(NAMES)} checks: \d+ passed, 0 failed, \d not applicable, in \d+ s"
    assert re.search(told, output.splitlines()[-1])


def test_the_command_s_status_is_1_where_a_check_fails(monkeypatch, capsys):
    def loading(*arguments, **options):
        model = load_model(*arguments, **options)
        model.blocks[0].hook_resid_post.add_hook(lambda x, hook: None)
        return model

    monkeypatch.setattr(sys.modules["tl_steer.models"], "load_model", loading)
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias")
    assert status == 1
    assert output.startswith("FAILED  no hooks were left behind")
    status, _, error = command(monkeypatch, capsys, "verify", "nothing-like-that")
    assert (status, "Traceback" in error) == (1, False)
    assert "model 'nothing-like-that' is unknown" in error


def test_the_command_takes_dtype_and_backend(monkeypatch, capsys):
    options = ["--dtype", "bfloat16", "--backend", "bridge", "--device", "cpu"]
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias", *options)
    assert status == 0
    assert re.search(r"–       half precision is near float32\n +only a HookedTransformer", output)


@pytest.mark.model
def test_the_embedded_model_passes_every_check(embedded, embedded_hf):
    table = results(embedded, hf_model=embedded_hf[0])
    assert not failed(table), table["detail"].to_dict()
    unfit = set(table.index[table["result"] == "does not apply"])
    assert unfit == {"half precision is near float32"}


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_embedded_model_passes_every_check_in_half_precision(dtype):
    hf_model, tokenizer = load_hugging_face(dtype=dtype)
    model = load_model(hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    table = results(model, hf_model=hf_model)
    assert not failed(table), table["detail"].to_dict()
    assert (table["result"] == "passed").all()


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_passes_on_the_bridge(embedded_hf):
    table = results(load_model(backend="bridge", device="cpu"), hf_model=embedded_hf[0])
    assert not failed(table), table["detail"].to_dict()


# What is sound, and looks broken


@pytest.fixture
def bridge():
    return load_model("tiny", backend="bridge", hf_model=random_hf_model("llama"), device="cpu")


def test_a_bridge_that_was_used_has_no_hooks_left_behind(bridge):
    tokens = torch.tensor([PROMPTS_OF_IDS[1]])
    bridge.original_model(tokens, output_hidden_states=True)
    bridge.run_with_cache(tokens)
    table = results(bridge, prompts=PROMPTS_OF_IDS)
    assert table.loc["no hooks were left behind", "result"] == "passed"


def test_the_model_that_a_bridge_was_put_into_is_nothing_to_compare_with(bridge):
    table = results(bridge, prompts=PROMPTS_OF_IDS, hf_model=bridge.original_model)
    for name in OF_HUGGING_FACE:
        assert table.loc[name, "result"] == "does not apply"
        assert "the very model that the bridge was put into" in table.loc[name, "detail"]


def test_a_hugging_face_model_that_trains_is_nothing_to_compare_with(bridge):
    table = results(bridge, prompts=PROMPTS_OF_IDS, hf_model=random_hf_model("llama").train())
    for name in OF_HUGGING_FACE:
        assert table.loc[name, "result"] == "does not apply"
        assert "hf_model.eval()" in table.loc[name, "detail"]


def test_a_prompt_that_fills_the_context_leaves_no_hooks():
    model = tiny()
    ids = [[3 + place % 20 for place in range(model.cfg.n_ctx)], [5, 7]]
    assert failed(results(model, prompts=ids)) == set()


def test_a_placeholder_that_is_never_embedded_is_no_lack():
    model = tiny()
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    assert results(model).loc["every token has an embedding", "result"] == "passed"
