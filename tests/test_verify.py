"""`verify`: each check passes on a sound model, and fails if, and only if, its property is violated."""

import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from tokenizers import processors
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

import tl_steer as ts
from tl_steer.engine.paths import path_of
from tl_steer.engine.shared import attention
from tl_steer.interventions import Add
from tl_steer.interventions.condition_steering import ConditionSteering
from tl_steer.models import hook_point, load_hugging_face, load_model
from tl_steer.verification import format_table, summary, verify
from tl_steer.verification._verify import CHECKS

from .conftest import assert_raises, random_hf_model
from .test_cli import command
from .tiny_model import D_MODEL, all_hooks, byte_tokenizer, make_model, weights_of, word_tokenizer

MODULE = sys.modules["tl_steer.verification._verify"]  # the package attribute is the function
IDS = [[3, 9], [5, 7, 11, 13, 17]]
NAMES = [check.name for check in CHECKS]
CHAT = "{{ bos_token }}{% for turn in messages %}{{ turn['content'] }} : {% endfor %}"
OF_HUGGING_FACE = {"logits equal Hugging Face's", "streams equal Hugging Face's"}


def tiny(**options):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    return make_model(tokenizer, n_layers=2, **options)


def select(monkeypatch, checks):
    """Let `verify` run these checks alone."""
    monkeypatch.setattr(MODULE, "CHECKS", tuple(check for check in CHECKS if check.name in checks))


def results(model, checks=NAMES, *, prompts=("a b", "c d e f g"), **options):
    """Table of the named checks, by check; None: the package's own prompts."""
    with pytest.MonkeyPatch.context() as patch:
        select(patch, checks)
        table = verify(model, progress=False, prompts=prompts and list(prompts), **options)
    return table.set_index("check")


def failed(table):
    return set(table.index[table["result"] == "failed"])


def subclassed(module, **methods):
    """Replace methods of this one module, as a subclass would."""
    module.__class__ = type("Broken", (type(module),), methods)


# Changes that give a tiny model one defect each
def with_a_hook(model):
    model.blocks[1].hook_resid_post.add_hook(lambda x, hook: None)


def in_training_mode(model):
    model.train()


def with_gradients(model):
    model.unembed.W_U.requires_grad_(True)


def with_dropout(model):
    mlp = model.train().blocks[1].mlp
    forward = type(mlp).forward
    dropout = torch.nn.functional.dropout
    subclassed(mlp, forward=lambda self, x: dropout(forward(self, x), 0.1, self.training))


def doubling_its_input(model):
    subclassed(model.blocks[1].hook_resid_pre, forward=lambda self, x: 2 * x)


def broken_forward(change):
    """Let a model's forward first call `change(model, tokens, options)`."""

    def forward(self, tokens, *inputs, **options):
        changed = change(self, tokens, options)
        return HookedTransformer.forward(self, tokens if changed is None else changed, *inputs, **options)

    def break_model(model):
        subclassed(model, forward=forward)
        model.tokenizer.padding_side = "right"

    break_model.__name__ = change.__name__
    return break_model


@broken_forward
def ignoring_the_mask(model, tokens, options):
    options.pop("attention_mask", None)


@broken_forward
def rejecting_right_padding(model, tokens, options):
    mask = options.get("attention_mask")
    if mask is not None and not mask[:, -1].all():
        raise ValueError("padded on the right")


@broken_forward
def depending_on_the_padding_side(model, tokens, options):
    left = tokens.ndim == 2 and model.tokenizer.padding_side == "left"
    return (tokens + 1) % model.cfg.d_vocab if left else tokens


@broken_forward
def with_a_wrong_cache(model, tokens, options):
    cache = options.get("past_kv_cache")
    filled = cache is not None and cache[0].past_keys.shape[1]
    return (tokens + 1) % model.cfg.d_vocab if filled else tokens


@broken_forward
def writing_into_its_weights(model, tokens, options):
    model.pos_embed.W_pos[-1, 0] += 1  # of a position beyond every prompt


@broken_forward
def writing_into_its_settings(model, tokens, options):
    model.tokenizer.truncation_side = "left"


@broken_forward
def raising(model, tokens, options):
    raise RuntimeError("out of order")


def with_two_bos(model):
    twice = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 0)])
    model.tokenizer.backend_tokenizer.post_processor = twice


def chatting_with_two_bos(model):
    model.tokenizer.chat_template = "{{ bos_token }}" + CHAT


def with_another_tokenizer(model):
    model.tokenizer.add_tokens(["unheard"])


def nearly_overflowing(model):
    # At the largest entry of layer 1's vector, the residual stream reaches 0.6 of float16's largest number.
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    model.blocks[-1].mlp.b_out[drawn.argmax()] = 4e4


def wrong_in_half_precision(model):
    mlp = model.blocks[1].mlp
    forward = type(mlp).forward
    subclassed(mlp, forward=lambda self, x: forward(self, x) * (3 if self.W_in.dtype == torch.float16 else 1))


def leaking_hooks(model):
    def register_forward_hook(self, hook, **options):
        HookPoint.register_forward_hook(self, lambda *_: None)
        return HookPoint.register_forward_hook(self, hook, **options)

    subclassed(model.blocks[-1].hook_resid_post, register_forward_hook=register_forward_hook)


# Defects of the package, where a check uses it


def miscounting_choices(_, monkeypatch):
    def wrong(*arguments, **options):
        return ts.choice_logits(*arguments, **options).assign(mass=0.5)

    monkeypatch.setattr("tl_steer.verification.reading_checks.choice_logits", wrong)


def miscalculating_engine(_, monkeypatch):
    for module, name in (("forward", "weighted_values"), ("decoding", "attention_weights")):
        right = getattr(attention, name)
        monkeypatch.setattr(
            f"tl_steer.engine.shared.{module}.{name}", lambda *args, right=right: 2 * right(*args)
        )


def mixing_conditions(_, monkeypatch):
    """In a pass of several conditions, all get the operations of the first."""
    changed = ConditionSteering.changed

    def wrong(self, layer, hook, x, parts):
        return changed(self, layer, hook, x, [replace(part, condition=parts[0].condition) for part in parts])

    monkeypatch.setattr(ConditionSteering, "changed", wrong)


def without_a_seed(_, monkeypatch):
    seeds = iter(range(100))

    def wrong(*arguments, **options):
        seed = {"seed": next(seeds)} if options.get("temperature") else {}
        return ts.generate(*arguments, **(options | seed))

    monkeypatch.setattr("tl_steer.verification.reading_checks.generate", wrong)


def off_by_one(_, monkeypatch):
    def wrong(model, hook, layer):
        return hook_point(model, hook, max(0, layer - 1))

    monkeypatch.setattr("tl_steer.interventions.steering.hook_point", wrong)


def rounding_the_vector(_, monkeypatch, adding=Add._change):
    def rounded(add, vector):
        return adding(add, replace(vector, values=vector.values.bfloat16().float()))

    monkeypatch.setattr(Add, "_change", rounded)


def adding_nothing_as_something(_, monkeypatch, adding=Add._change):
    def wrong(add, vector):
        return adding(add if add.multiplier else Add(vector, 0.01), vector)

    monkeypatch.setattr(Add, "_change", wrong)


@dataclass
class Broken:
    """A defect, the checks that must fail, and those that may because they depend on the same.

    `first` are checks that must run before, because the defect shows only after them.
    """

    change: Callable
    fails: set[str]
    may: set[str] = frozenset()
    detail: str = ""
    first: set[str] = frozenset()
    dtype: torch.dtype = torch.float32

    def model(self, monkeypatch):
        model = tiny(dtype=self.dtype)
        path_of(model)  # a defect that the engine's own probe finds would not be used
        patches_package = "monkeypatch" in self.change.__code__.co_varnames
        self.change(model, *[monkeypatch] * patches_package)
        return model


# Checks that depend on the same property
BATCHED = {"choices are the model's own", "greedy tokens are the best ones", "a cache changes nothing"}
NOISY = set(NAMES) - {
    "no hooks were left behind", "gradients are off", "one BOS before text", "one BOS before chat",
    "every token has an embedding", "doses 0.1 to 3 stay finite", "weights are unchanged",
    "settings are unchanged", "arithmetic is in float32",
}  # fmt: skip
SHARED = {"conditions equal each one alone", "shortcuts write the same tokens"}
SHORTCUTS = SHARED | {"shortcuts equal whole passes"}
STEERED = SHORTCUTS | {"arithmetic is in float32", "a multiplier of 0 changes nothing"}
CACHED = {"greedy tokens are the best ones", "a cache changes nothing"}
MASKED = {"a batch equals its prompts alone", "padding with a mask changes nothing"}
STEERS = {"a vector appears at its layer"}
BROKEN = [
    Broken(with_a_hook, {"no hooks were left behind"}, detail=r"^blocks\.1\.hook_resid_post$"),
    Broken(in_training_mode, {"evaluation mode"}, detail=r"call model\.eval\(\): the model, embed"),
    Broken(with_gradients, {"gradients are off"}, detail=r"unembed\.W_U$"),
    Broken(with_dropout, {"a pass can be repeated", "evaluation mode"}, may=NOISY),
    Broken(doubling_its_input, {"layers follow one another"}, detail=r"^layer 1, prompt \d \('<s>"),
    Broken(ignoring_the_mask, MASKED, may=BATCHED),
    Broken(rejecting_right_padding, {"padding with a mask changes nothing"}, detail="ValueError: padded on"),
    Broken(depending_on_the_padding_side, {"the padding side does not matter"}),
    Broken(miscounting_choices, {"choices are the model's own"}, detail=r"^log mass, prompt"),
    Broken(miscalculating_engine, SHORTCUTS, may={"choices are the model's own"}, detail="^steered at layer"),
    Broken(mixing_conditions, SHARED, detail=r"^HookDidNotFireError: Add\(multiplier=-1\) at layer \d"),
    Broken(with_a_wrong_cache, CACHED, detail=r"^(with a cache|layer \d)"),
    Broken(without_a_seed, {"the same seed, the same text"}, detail="prompt"),
    Broken(with_two_bos, {"one BOS before text"}, detail="'The sky"),
    Broken(chatting_with_two_bos, {"one BOS before chat"}, detail="'<s> ?<s>"),
    Broken(with_another_tokenizer, {"every token has an embedding"}, detail="^'unheard'$"),
    Broken(off_by_one, {"a vector appears at its layer"}, may=STEERED, detail="layer 1"),
    Broken(rounding_the_vector, {"arithmetic is in float32"}, detail="^Add at layer", dtype=torch.bfloat16),
    Broken(adding_nothing_as_something, {"a multiplier of 0 changes nothing"}),
    Broken(nearly_overflowing, {"doses 0.1 to 3 stay finite"}, detail="^dose 3 at layer 1: Add",
           dtype=torch.float16),
    Broken(wrong_in_half_precision, {"half precision is near float32"}, dtype=torch.float16),
    Broken(leaking_hooks, {"hooks are gone afterwards"}, detail=r"^blocks\.1\.hook_res", first=STEERS),
    Broken(writing_into_its_weights, {"weights are unchanged"}, detail=r"^pos_embed\.W_pos$", first=STEERS),
    Broken(writing_into_its_settings, {"settings are unchanged"}, detail=r"^tokenizer\.trunc", first=STEERS),
]  # fmt: skip
broken_models = pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.change.__name__)


@broken_models
def test_each_check_fails_on_its_defect(broken, monkeypatch):
    table = results(broken.model(monkeypatch), broken.fails | broken.first)
    assert failed(table) == broken.fails
    for name in broken.fails if broken.detail else ():
        assert re.search(broken.detail, table.loc[name, "detail"]), table.loc[name, "detail"]


@pytest.mark.integration
@broken_models
def test_no_other_check_fails_on_a_defect(broken, monkeypatch):
    names = failed(results(broken.model(monkeypatch)))
    assert broken.fails <= names <= broken.fails | broken.may


def test_every_check_can_fail():
    assert set().union(OF_HUGGING_FACE, *(broken.fails for broken in BROKEN)) == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize(
    ("change", "fails", "detail"),
    [
        (lambda hf: hf.model.layers[1].mlp.down_proj.weight.mul_(1.1), OF_HUGGING_FACE, "^layer 1, prompt"),
        (lambda hf: hf.lm_head.weight[:40].mul_(1.1), {"logits equal Hugging Face's"}, "^prompt"),
        (lambda hf: hf.model.layers.insert(0, hf.model.layers.pop(2)), OF_HUGGING_FACE, "^layer 0, prompt"),
        (lambda hf: hf.model.layers.pop(2), OF_HUGGING_FACE, "no list of 3 blocks"),
    ],
    ids=["other weights in a layer", "another head", "layers shifted", "another depth"],
)
def test_another_hugging_face_model_is_detected(change, fails, detail):
    hf_model = random_hf_model("llama")
    model = load_model("tiny", hf_model=hf_model, device="cpu")
    other = copy.deepcopy(hf_model)
    with torch.no_grad():
        change(other)
    table = results(model, OF_HUGGING_FACE, hf_model=other, prompts=IDS)
    assert failed(table) == fails
    assert re.search(detail, table.loc[sorted(fails)[-1], "detail"])


LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    ("architecture", "changes", "result"),
    [("neox", {"rope_parameters": LINEAR}, "failed"), ("llama", {}, "passed")],
)
def test_a_dropped_setting_is_detected_in_half_precision(architecture, changes, result):
    hf_model = random_hf_model(architecture, max_position_embeddings=512, **changes).to(torch.bfloat16)
    model = load_model("tiny", hf_model=hf_model, device="cpu", backend="hooked", check=False)
    table = results(model, ["logits equal Hugging Face's"], hf_model=hf_model, prompts=IDS)
    assert list(table["result"]) == [result], table["detail"].to_dict()


# Sound models


@pytest.fixture(scope="module")
def sound():
    """Table of a sound model with the package's own prompts."""
    return results(tiny(), prompts=None)


def assert_passed(table, *, unfit):
    """All checks passed except those that do not apply."""
    assert not failed(table), table["detail"].to_dict()
    assert set(table.index[table["result"] == "does not apply"]) == set(unfit)


def test_a_sound_model_passes(sound):
    assert_passed(sound, unfit=OF_HUGGING_FACE | {"half precision is near float32"})
    assert "pass hf_model=" in sound.loc["logits equal Hugging Face's", "detail"]


@pytest.mark.integration
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_sound_model_passes_in_half_precision(dtype):
    assert_passed(results(tiny(dtype=dtype), prompts=None), unfit=OF_HUGGING_FACE)


@pytest.mark.integration
def test_a_model_without_bos_passes():
    assert not failed(results(make_model(byte_tokenizer()), prompts=None))


def test_a_model_without_a_tokenizer_passes_and_with_a_prompt_that_fills_its_context():
    model = tiny()
    model.tokenizer = None
    long = [3 + index % 20 for index in range(model.cfg.n_ctx)]
    for prompts in (IDS, [long, [5, 7]]):
        table = results(model, prompts=prompts)
        assert not failed(table)
        assert table.loc["one BOS before text", "detail"] == "the model has no tokenizer."


def with_a_placeholder():
    """A model whose tokenizer has a token that is never embedded."""
    model = tiny()
    model.tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    return model


def used_bridge():
    """transformers and TransformerLens have left their own hooks."""
    model = load_model("tiny", backend="bridge", hf_model=random_hf_model("llama"), device="cpu")
    model.original_model(torch.tensor([IDS[1]]), output_hidden_states=True)
    model.run_with_cache(torch.tensor([IDS[1]]))
    return model


@pytest.mark.parametrize(
    ("make", "check"),
    [(with_a_placeholder, "every token has an embedding"), (used_bridge, "no hooks were left behind")],
)
def test_a_check_passes_what_is_usual(make, check):
    assert not failed(results(make(), {check}, prompts=IDS))


@pytest.mark.integration
@pytest.mark.parametrize("backend", ts.models.BACKENDS)
def test_every_architecture_passes_on_either_backend(architecture, backend):
    hf_model, model = architecture
    if backend == "bridge":
        model = load_model("tiny", hf_model=copy.deepcopy(hf_model), device="cpu", backend="bridge")
    table = results(model, hf_model=hf_model, prompts=IDS)
    assert not failed(table), table["detail"].to_dict()
    assert set(table.index[table["result"] == "passed"]) >= OF_HUGGING_FACE
    assert table.loc["shortcuts equal whole passes", "result"] == "passed"


@pytest.mark.integration
@pytest.mark.parametrize(
    "processing", [True, pytest.param({"center_writing_weights": True}, marks=pytest.mark.slow)], ids=str
)
def test_a_folded_and_centred_model_still_equals_hugging_face(processing):
    hf_model = random_hf_model("gpt2")
    model = load_model("tiny", hf_model=hf_model, device="cpu", processing=processing)
    assert not failed(results(model, hf_model=hf_model, prompts=IDS))


def test_the_table_has_one_row_per_check_with_its_meaning(sound):
    assert list(sound.columns) == ["result", "measured", "allowed", "unit", "meaning", "detail"]
    assert list(sound.index) == NAMES
    passed = sound[sound["result"] == "passed"]
    assert (passed["measured"] <= passed["allowed"]).all()
    assert (passed["detail"] == "").all()
    assert all(meaning.endswith(".") and len(meaning) > 60 for meaning in sound["meaning"])


def test_an_exception_in_a_check_is_a_failure_with_its_message():
    model = tiny(dtype=torch.float16)
    model.blocks[0].mlp.b_out[:] = torch.inf
    table = results(model, {"doses 0.1 to 3 stay finite", "a batch equals its prompts alone"})
    assert "doses 0.1 to 3 stay finite" in failed(table)
    message = "NonFiniteError: without any operation: the stream became NaN or infinite in prompt"
    assert table.loc["a batch equals its prompts alone", "detail"].startswith(message)
    raising(model := tiny())
    table = results(model, {"a vector appears at its layer", "one BOS before text"})
    assert table.loc["a vector appears at its layer", "detail"] == "RuntimeError: out of order"
    assert "one BOS before text" not in failed(table)


def test_the_user_s_prompts_are_used_and_rejected_if_they_do_not_fit():
    model, checks = tiny(), {"a batch equals its prompts alone", "a vector appears at its layer"}
    equal_lengths = results(model, checks, prompts=["a b c", "d e f"])
    assert "give some of different lengths" in equal_lengths.loc["a batch equals its prompts alone", "detail"]
    assert equal_lengths.loc["a vector appears at its layer", "result"] == "passed"
    assert not failed(results(model, checks, prompts=[[0, 3, 4], [0, 3, 4, 5, 6, 7]]))
    full = results(model, {"a cache changes nothing"}, prompts=["a " * 46, "b"])
    assert "give shorter ones" in full.loc["a cache changes nothing", "detail"]
    assert_raises("no prompts given", verify, model, prompts=[])
    assert_raises("does not fit the context", verify, model, prompts=["a " * 60])


def test_a_hugging_face_model_that_cannot_be_compared_with_does_not_apply():
    bridge = used_bridge()
    for hf_model, message in (
        (bridge.original_model, "the bridge's own model"),
        (random_hf_model("llama").train(), "hf_model.eval()"),
    ):
        table = results(bridge, OF_HUGGING_FACE, prompts=IDS, hf_model=hf_model)
        assert (table["result"] == "does not apply").all()
        assert table["detail"].str.contains(message, regex=False).all()


# In a terminal


def test_the_model_is_unchanged_and_failed_checks_are_shown_first_within_the_terminal_s_width():
    model = tiny()
    with_a_hook(model)
    model.tokenizer.padding_side = "right"
    hooks, weights = all_hooks(model), weights_of(model)
    table = verify(model, progress=False, prompts=["a b", "c d e"])
    assert all_hooks(model) == hooks
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert model.tokenizer.padding_side == "right"
    assert summary(table).startswith(f"{len(NAMES)} checks: ")
    assert "1 failed" in summary(table)
    lines = format_table(table).splitlines()
    assert lines[0].startswith("FAILED  no hooks were left behind")
    assert "1 hooks (at most 0)" in lines[0]
    assert lines[1].strip() == "blocks.1.hook_resid_post"
    assert max(map(len, lines)) <= 100
    marks = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert marks == sorted(marks, key=["FAILED", "–", "passed"].index)


def test_the_command_prints_the_table_and_counts(monkeypatch, capsys):
    select(monkeypatch, {*OF_HUGGING_FACE, "half precision is near float32"})
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias")
    assert status == 0
    assert re.search(r"passed  logits equal Hugging Face's +\d", output)
    assert re.search(r"\norganism-bias: 3 checks: 2 passed, 0 failed, 1 not applicable, in \d+ s$", output)


def test_the_command_s_status_is_1_if_a_check_fails(monkeypatch, capsys):
    def load_with_hook(*arguments, **options):
        model = load_model(*arguments, **options)
        with_a_hook(model)
        return model

    select(monkeypatch, {"no hooks were left behind"})
    monkeypatch.setattr(sys.modules["tl_steer.models"], "load_model", load_with_hook)
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias")
    assert (status, output.split("  ")[:2]) == (1, ["FAILED", "no hooks were left behind"])
    status, _, error = command(monkeypatch, capsys, "verify", "nothing-like-that")
    assert (status, "Traceback" in error) == (1, False)
    assert "model 'nothing-like-that' is unknown" in error


@pytest.mark.integration
def test_the_command_runs_all_checks_with_dtype_and_backend(monkeypatch, capsys):
    options = ["--dtype", "bfloat16", "--backend", "bridge", "--device", "cpu"]
    status, output, _ = command(monkeypatch, capsys, "verify", "organism-bias", *options)
    assert status == 0
    assert re.search(r"–       half precision is near float32\n +only a HookedTransformer", output)
    assert f"organism-bias: {len(NAMES)} checks: " in output


# The embedded model


@pytest.mark.integration
@pytest.mark.model
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(each, marks=pytest.mark.slow) for each in ("bfloat16", "float16"))]
)
def test_the_embedded_model_passes_every_check(dtype):
    hf_model, tokenizer = load_hugging_face(dtype=dtype)
    model = load_model(hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    unfit = {"half precision is near float32"} if dtype == "float32" else set()
    assert_passed(results(model, hf_model=hf_model), unfit=unfit)


@pytest.mark.integration
@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_passes_on_the_bridge(embedded_hf):
    table = results(load_model(backend="bridge", device="cpu"), hf_model=embedded_hf[0])
    assert not failed(table), table["detail"].to_dict()
