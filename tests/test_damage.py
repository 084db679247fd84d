"""Damage against slow oracles: KL by torch.distributions, loss by Hugging Face, n-grams by hand; ranges."""

import itertools
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, kl_divergence

from tl_steer import plots
from tl_steer._generation import generate
from tl_steer.directions import SteeringVectors
from tl_steer.engine import logits as logits_module
from tl_steer.evaluation import effect_and_damage, mean_damage, usable_range
from tl_steer.interventions import Ablate, Add, ProjectOut
from tl_steer.models import identify, load_model
from tl_steer.plots.marks import log_axis
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, prompt_tokens, token
from tl_steer.prompts import read_neutral
from tl_steer.sweeps import damage
from tl_steer.sweeps.sweep_table import CONDITION
from tl_steer.texts import text_damage

from .conftest import assert_raises
from .test_sweep import MODEL, rows_of, several, swept
from .tiny_model import Change, hook_name, made_vector, make_model, run_alone, weights_of, word_tokenizer

PASSAGES = ["a b c d e", "f g h", "a b c k", "i j k l m n o p", "q", "r s t u v w x y z A B"]
CONDITION = list(CONDITION)
MEASURED = ["tokens", "kl", "loss", "loss_change"]


def measured(passages=PASSAGES, *, model=MODEL, vectors=None, **options):
    options = {"multipliers": [-1.0, 2.0], "controls": 0, "progress": False} | options
    return damage(model, vectors or several(model=model), passages, **options)


def alone(ids, changes=(), *, model=MODEL):
    """KL and loss of one passage, from whole unpadded passes and torch.distributions in float64."""
    clean, steered = (run_alone(model, ids, 1, each)[0].double()[:-1] for each in ((), changes))
    kl = kl_divergence(Categorical(logits=clean), Categorical(logits=steered))
    loss = torch.nn.functional.cross_entropy(steered, torch.tensor(ids[1:]))
    return float(kl.mean()), float(loss)


def added(vector, multiplier, where):
    return Change(vector.layer, vector.hook, lambda x: x + multiplier * vector.values, where)


def ids_of(passages, model=MODEL):
    return [model.tokenizer(passage)["input_ids"] for passage in passages]


def bare_tokenizer():
    """Without BOS, so that an empty text has no tokens."""
    tokenizer = word_tokenizer()
    tokenizer._tokenizer.post_processor = None
    return tokenizer


# Passages

EVERY = {  # positions, and the first one that they select
    "all_tokens()": (all_tokens(), 0),
    "current_token()": (current_token(), 0),
    "generated_tokens()": (generated_tokens(), 1),
    "~token(0)": (~token(0), 1),
}


def from_(first):
    return lambda prompt, length: range(first, length)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("where", EVERY)
def test_every_number_equals_a_loop_over_whole_passes(where, reuse):
    positions, first = EVERY[where]
    vectors = several()
    table = measured(vectors=vectors, layers=[0, 2], positions=positions, reuse=reuse)
    assert len(table) == len(PASSAGES) * 5
    before = np.array([alone(ids)[1] for ids in ids_of(PASSAGES)])
    unsteered = table.head(len(PASSAGES))
    assert set(unsteered["vector"]) == set(unsteered["operation"]) == {"none"}
    assert (unsteered[["kl", "loss_change"]] == 0).all(axis=None)
    np.testing.assert_allclose(unsteered["loss"], before, atol=1e-5)
    for layer, multiplier in itertools.product((0, 2), (-1.0, 2.0)):
        result = rows_of(table, layers=str(layer), multiplier=multiplier)
        changes = [added(vectors[layer], multiplier, from_(first))]
        expected = [alone(ids, changes) for ids in ids_of(PASSAGES)]
        np.testing.assert_allclose(result[["kl", "loss"]], expected, atol=1e-5)
        np.testing.assert_allclose(result["loss_change"], result["loss"] - before, atol=1e-5)
        assert (result["kl"] > 1e-3).all() or where != "all_tokens()"


@pytest.mark.parametrize("reuse", [True, False])
def test_other_operations_several_layers_and_hooks_are_measured_too(reuse):
    vectors, rest = several(hook="resid_pre"), torch.ones(3, 4)
    rest[1] = 0

    def reflected(vector, multiplier, positions):
        return ProjectOut(vector, multiplier, positions=positions)

    def off(vector, multiplier, positions):
        return Ablate(vector.layer, "z", heads=[1], positions=positions)

    def removed(layer, strength):
        unit = vectors[layer].values / vectors[layer].values.norm()
        return Change(layer, "resid_pre", lambda x: x - strength * (x @ unit) * unit, from_(0))

    oracles = {
        "add": lambda layer: added(vectors[layer], 2.0, from_(0)),
        "project_out": lambda layer: removed(layer, 1.0),
        "reflected": lambda layer: removed(layer, 2.0),
        "off": lambda layer: Change(layer, "z", lambda x: x * rest.flatten(), from_(0)),
    }
    operations = ("add", "project_out", reflected, off)
    table = measured(
        vectors=vectors, layers=[1, (0, 2)], operations=operations, reuse=reuse, multipliers=[2.0]
    )
    for label, layers in (("1", (1,)), ("0+2", (0, 2))):
        for operation, change in oracles.items():
            result = rows_of(table, layers=label, operation=operation)
            expected = [alone(ids, [change(layer) for layer in layers]) for ids in ids_of(PASSAGES)]
            np.testing.assert_allclose(result[["kl", "loss"]], expected, atol=1e-5)


def test_columns_are_a_sweeps_and_the_passages_own():
    passages = pd.DataFrame({"topic": list("xxyyzz"), "passage": PASSAGES}, index=range(10, 16))
    table = measured(passages, controls=1)
    assert list(table) == ["prompt_id", "prompt", "topic", *CONDITION, "dose", *MEASURED]
    expected = {
        "prompt": PASSAGES,
        "prompt_id": [*range(6)],
        "topic": list("xxyyzz"),
        "tokens": [5, 3, 4, 8, 1, 11],  # <s> comes first, so that as many tokens are predicted as words
    }
    for name, values in expected.items():
        assert table[name].tolist() == values * 13
    sweep_table = swept(several(), PASSAGES, controls=1, measure="generate", max_new_tokens=1)
    pd.testing.assert_frame_equal(
        table[CONDITION].drop_duplicates(), sweep_table[CONDITION].drop_duplicates()
    )


@pytest.mark.parametrize("reuse", [True, False])
def test_adding_nothing_changes_nothing(reuse):
    table = measured(multipliers=[0.0], reuse=reuse)
    np.testing.assert_allclose(table["kl"], 0, atol=1e-6)
    np.testing.assert_allclose(table["loss_change"], 0, atol=1e-5)
    assert (table["kl"] >= 0).all()
    assert_raises("length zero at layers", measured, vectors=several(scale=0.0), reuse=reuse)


def test_controls_are_random_directions_of_the_same_length_and_take_the_seed():
    first, again, other = (measured(controls=2, seed=seed, layers=[1]) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    controls, own = rows_of(first, control=True), rows_of(first, control=False)
    assert sorted(set(controls["vector"])) == ["random 1", "random 2"]
    assert controls["kl"].groupby(controls["vector"]).mean().nunique() == 2
    assert set(controls["dose"].round(6)) == set(own["dose"].round(6)) - {0.0}
    assert not np.allclose(controls["kl"], rows_of(other, control=True)["kl"])
    pd.testing.assert_frame_equal(own, rows_of(other, control=False))
    options = {"multipliers": [1.0], "progress": False}
    default = rows_of(damage(MODEL, several(), PASSAGES[:2], layers=[1], **options), control=True)
    assert default["vector"].nunique() == 20
    assert set(default["control_of"]) == {"made"}
    assert not damage(MODEL, several(), PASSAGES[:2], **options)["control"].any()


@pytest.mark.parametrize(("rows", "memory"), [(1, None), (3, None), (7, None), (4096, 20_000)])
def test_numbers_do_not_depend_on_memory_or_on_how_many_positions_are_computed_at_once(
    monkeypatch, rows, memory
):
    expected, sizes, logits_of = measured(), [], logits_module.logits_of

    def counting(model, stream):
        sizes.append(len(stream))
        return logits_of(model, stream)

    monkeypatch.setattr(logits_module, "logits_of", counting)
    monkeypatch.setattr(logits_module, "ROWS", rows)
    pd.testing.assert_frame_equal(measured(memory=memory), expected, rtol=0, atol=2e-6)
    assert 0 < max(sizes) <= rows


def test_the_dose_is_the_added_length_over_the_streams_norm_on_the_passages():
    vectors = several(scale=4.0)
    table = measured(vectors=vectors, layers=[1], multipliers=[2.0], operations=("add", "project_out"))
    norms = []
    for ids in ids_of(PASSAGES):
        _, seen = run_alone(MODEL, ids, len(ids), reads=[hook_name("resid_post", 1)])
        norms.append(np.median(seen[hook_name("resid_post", 1)][1:].norm(dim=-1)))
    (dose,) = set(rows_of(table, operation="add")["dose"])
    assert dose == pytest.approx(8.0 / np.median(norms), rel=1e-5)
    assert rows_of(table, operation="project_out")["dose"].isna().all()


def test_only_the_first_tokens_of_a_passage_are_read():
    cut = measured(max_tokens=4)
    assert cut["tokens"].max() == 3
    direct = measured([" ".join(passage.split()[:3]) for passage in PASSAGES])
    pd.testing.assert_frame_equal(cut.drop(columns="prompt"), direct.drop(columns="prompt"))


def test_a_passage_of_one_token_has_nothing_to_predict():
    table = measured([[3, 4, 5], [6], [7, 8]])
    assert table["tokens"].tolist() == [2, 0, 1] * 7
    assert rows_of(table, prompt_id=1)[MEASURED[1:]].isna().all(axis=None)
    others, direct = table[table["prompt_id"] != 1], measured([[3, 4, 5], [7, 8]])
    np.testing.assert_allclose(others[MEASURED], direct[MEASURED], atol=2e-6)


def test_a_passage_of_two_tokens_of_which_the_first_is_not_steered_does_not_change():
    table = measured([[3, 4], [5, 6, 7]], positions=generated_tokens())
    np.testing.assert_allclose(rows_of(table, prompt_id=0)["kl"], 0, atol=1e-6)
    assert (rows_of(table, prompt_id=1, vector="made")["kl"] > 1e-3).all()


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        ([], {}, "no prompts given"),
        ([""], {"model": make_model(bare_tokenizer())}, "is empty"),
        ([[3], [4]], {}, "every passage is a single token"),
        (PASSAGES, {"max_tokens": 1}, "max_tokens=1: at least 2"),
        (PASSAGES, {"multipliers": []}, "needs multipliers; none given"),
        (PASSAGES, {"positions": last_token()}, r"last_token\(\) leaves generated .*current_token"),
        (PASSAGES, {"positions": prompt_tokens()}, r"prompt_tokens\(\) leaves generated tokens alone"),
        (PASSAGES, {"positions": token(0)}, r"token\(0\) leaves generated tokens alone"),
        (pd.DataFrame({"text": PASSAGES}), {}, "no column 'passage'; it has text"),
        (pd.DataFrame({"passage": PASSAGES, "kl": 1, "dose": 2}), {}, r"\['dose', 'kl'\] have names of"),
        (["a " * 60], {}, "does not fit the context"),
    ],
)
def test_bad_input_is_rejected(passages, options, message):
    assert_raises(message, measured, passages, **options)


def test_without_a_bos_the_second_word_is_predicted_from_the_first():
    model = make_model(bare_tokenizer())
    table = measured(["a b c"], model=model, layers=[0], multipliers=[1.0])
    assert table["tokens"].tolist() == [2, 2]
    changes = [added(several(model=model)[0], 1.0, from_(0))]
    expected = alone(ids_of(["a b c"], model)[0], changes, model=model)
    np.testing.assert_allclose(table.loc[1, ["kl", "loss"]].astype(float), expected, atol=1e-5)


def test_model_vectors_and_passages_are_unchanged():
    passages, vectors = pd.DataFrame({"passage": PASSAGES}), several()
    before = passages.copy(), vectors.values.clone(), weights_of(MODEL)
    measured(passages, vectors=vectors)
    pd.testing.assert_frame_equal(passages, before[0])
    assert torch.equal(vectors.values, before[1])
    assert all(torch.equal(value, before[2][name]) for name, value in MODEL.state_dict().items())


def test_the_loss_is_hugging_faces_own(make_hf_model):
    hf_model = make_hf_model("llama")
    model = load_model("tiny-llama", hf_model=hf_model, device="cpu")
    passages = [[5, 9, 77, 3, 120], [8, 8, 1], [4, 100, 101, 102, 103, 104, 105]]
    values = made_vector(MODEL, 0).values.repeat(3)
    vectors = SteeringVectors(values[None], (1,), "resid_post", "made", torch.ones(1), identify(model))
    table = measured(passages, model=model, vectors=vectors, multipliers=[1.5])

    def steer(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden += 1.5 * values

    @torch.no_grad()
    def passes():
        for ids in passages:
            result = hf_model(torch.tensor([ids]), labels=torch.tensor([ids]))
            yield float(result.loss), result.logits[0, :-1].log_softmax(-1).exp().numpy()

    clean = list(passes())
    handle = hf_model.model.layers[1].register_forward_hook(steer)
    changed = list(passes())
    handle.remove()
    np.testing.assert_allclose(table["loss"], [loss for loss, _ in [*clean, *changed]], atol=1e-4)
    pairs = zip(clean, changed, strict=True)
    kl = [stats.entropy(before, after, axis=-1).mean() for (_, before), (_, after) in pairs]
    np.testing.assert_allclose(rows_of(table, layers="1")["kl"], kl, rtol=1e-4)
    assert min(kl) > 0.01


@pytest.mark.model
def test_on_the_embedded_model_the_loss_is_hugging_faces_and_both_ways_agree(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    passages = read_neutral().head(3)
    values = torch.randn(1, 576, generator=torch.Generator().manual_seed(0))
    values *= 100 / values.norm()
    vectors = SteeringVectors(values, (17,), "resid_post", "made", torch.ones(1), identify(embedded))
    options = {"multipliers": [1.0], "controls": 0, "max_tokens": 24, "progress": False}
    table = damage(embedded, vectors, passages, **options)
    for row, passage in enumerate(passages["passage"]):
        tokens = torch.tensor([tokenizer(passage)["input_ids"][:24]])
        with torch.no_grad():
            expected = float(hf_model(tokens, labels=tokens).loss)
        assert table.loc[row, "loss"] == pytest.approx(expected, abs=1e-4)
    plain = damage(embedded, vectors, passages, reuse=False, **options)
    pd.testing.assert_frame_equal(table, plain, rtol=0, atol=1e-4)
    assert (rows_of(table, layers="17")["kl"] > 0.01).all()


# Texts

WRITTEN = ["a b a b a b", "", "c", "d e f g", None, "!!! ... !!!"]


def written(texts=WRITTEN, *, prompts=None, conditions=1):
    """A generating sweep's table with these texts in each condition."""
    prompts = prompts or [f"{word} :" for word in "abcdefgh"]
    table = swept(several(), prompts, measure="generate", max_new_tokens=1, layers=[0], multipliers=[1.0])
    table = table[table["prompt_id"] < len(texts)].head(len(texts) * conditions).reset_index(drop=True)
    return table.assign(text=pd.array(list(texts) * conditions, dtype="string"))


COUNTED = {
    # pairs: (the cat) (cat ,) (, the) (the cat) (cat !)
    "The cat, the CAT!": (6, 4 / 6, 4 / 5, 1),
    "don't don’t stop": (3, 1, 1, 1),  # written in two ways, one word each
    "": (0, np.nan, np.nan, np.nan),
    "word": (1, 1, np.nan, np.nan),
    ".....": (5, 1 / 5, 1 / 4, 1 / 3),
    "a\n\n\n\n": (1, 2 / 5, 2 / 4, 2 / 3),  # ends of lines repeat, and are no words
    "  \t ": (0, np.nan, np.nan, np.nan),
}


def test_words_and_distinct_n_grams_are_counted_by_hand():
    result = text_damage(written([*COUNTED, None]))[["words", "distinct_1", "distinct_2", "distinct_3"]]
    np.testing.assert_allclose(result.astype(float).iloc[:-1], list(COUNTED.values()))
    assert result.iloc[-1].isna().all()


def test_an_answer_without_a_choice_is_unreadable_if_the_prompts_have_choices():
    table = written()
    assert text_damage(table)["unreadable"].isna().all()
    read = table.assign(choice=pd.array([0, pd.NA, 1, pd.NA, pd.NA, 0], dtype="Int64"))
    result = text_damage(read)["unreadable"].astype(object)
    assert result.where(result.notna(), None).tolist() == [False, True, False, True, None, False]
    no_choice_read = table.assign(answer=pd.array([0] * 6, dtype="Int64"))
    assert text_damage(no_choice_read)["unreadable"].dropna().all()


@pytest.mark.parametrize("reuse", [True, False])
def test_the_loss_of_a_text_is_that_of_its_tokens_after_its_prompt(reuse):
    prompts = ["a b :", "c :", "a b :", "a b d :", "e :", "f g h i :"]
    texts = ["k l m", "k l m", "n", "yes no yes", "o p q r s", "t"]
    result = text_damage(written(texts, prompts=prompts), MODEL, reuse=reuse, progress=False)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        ids = MODEL.tokenizer(prompt)["input_ids"]
        new = MODEL.tokenizer(text, add_special_tokens=False)["input_ids"]
        logits, _ = run_alone(MODEL, ids + new, len(ids))
        expected = torch.nn.functional.cross_entropy(logits[len(ids) - 1 : -1].double(), torch.tensor(new))
        assert result.loc[row, "loss"] == pytest.approx(float(expected), abs=1e-5)
        assert result.loc[row, "tokens"] == len(new)


def test_the_loss_is_unsteered_and_the_models_own_texts_are_likely():
    prompts, vectors = ["a b c :", "d e :", "f :", "g h i :"], several(scale=20.0)
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    table = swept(vectors, prompts, layers=[0], multipliers=[1.0], measure="generate", **options)
    result = text_damage(table, MODEL, progress=False).groupby("vector", sort=False)["loss"].mean()
    assert result["made"] > result["none"] + 0.5
    direct = generate(MODEL, prompts, Add(vectors[0]), **options)
    assert rows_of(table, vector="made")["text"].tolist() == direct


def test_empty_and_missing_texts_and_texts_without_a_model_have_no_loss():
    bare, full = text_damage(written()), text_damage(written(), MODEL, progress=False)
    assert full["tokens"].tolist()[:4] == [6, 0, 1, 4]
    assert full["loss"].isna().tolist() == [False, True, False, False, True, False]
    assert pd.isna(full.loc[4, "tokens"])
    empty = text_damage(written(["", ""]), MODEL, progress=False)
    assert empty["loss"].isna().all()
    assert empty["tokens"].tolist() == [0, 0]
    assert list(bare) == [
        "prompt_id", "prompt", "label", *CONDITION, "dose", "split", "answer", "text", "words", "distinct_1",
        "distinct_2", "distinct_3", "unreadable", "tokens", "loss",
    ]  # fmt: skip
    assert bare[["tokens", "loss"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(bare, full.assign(tokens=bare["tokens"], loss=bare["loss"]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_damage(written().drop(columns="text")), "lacks the columns text"),
        (lambda: text_damage(written([None, None])), "has no texts"),
        (lambda: text_damage(pd.concat([written(), written()])), "is twice in the condition"),
        (lambda: text_damage(written(["a " * 50]), MODEL, progress=False), "50 new ones do not fit the con"),
        (lambda: mean_damage(written().drop(columns="text")), "no measure of damage"),
        (lambda: mean_damage(pd.concat([measured(), measured()])), "is twice in the condition"),
        (lambda: mean_damage(measured(), by="kl"), r"by=\['kl'\].* names of results"),
        (lambda: mean_damage(measured().assign(kl="x")), "'kl' holds 'x': expected numbers"),
        (lambda: joined(damages=damages_of(steered(2.0, vector="b"))), "no steered condition is in both"),
        (lambda: joined(effects=pd.concat([effects_of(*RISING)] * 2)), "condition is twice in the effects"),
        (lambda: joined(value="flips"), "lacks the columns flips, .*effectiveness"),
        (lambda: joined(damages=damages_of(*RISING).drop(columns="kl")), "columns kl; .*that damage returns"),
        (lambda: joined(texts=effects_of(*RISING)), "lacks the columns .*words, .*text_damage"),
        (lambda: joined(cost="words"), "cost='words': expected one of kl, loss_change"),
        (lambda: usable_range(effects_of(*RISING)), "usable, collapsed, reason; .*effect_and_damage"),
    ],
)
def test_tables_that_cannot_be_measured_averaged_joined_or_searched_are_rejected(call, message):
    assert_raises(message, call)


# Means


def test_means_are_taken_condition_by_condition_with_students_interval():
    table = measured(pd.DataFrame({"passage": PASSAGES, "topic": list("xxxyyy")}), controls=1)
    means = mean_damage(table)
    assert means["n"].tolist() == [6] * 13
    for _, row in means.iterrows():
        rows = rows_of(table, **row[CONDITION])
        for name in ("kl", "loss", "loss_change"):
            assert row[name] == pytest.approx(rows[name].mean())
            if row["vector"] != "none" or name == "loss":
                interval = stats.t.interval(0.95, 5, rows[name].mean(), stats.sem(rows[name]))
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx(interval)
        assert row["perplexity"] == pytest.approx(math.exp(rows["loss"].mean()))
    unsteered = rows_of(means, vector="none")
    assert (unsteered[["kl", "kl_low", "kl_high", "loss_change_high"]] == 0).all(axis=None)
    split = mean_damage(table, by="topic")
    assert split["n"].tolist() == [3] * 26
    assert list(split)[8:10] == ["topic", "n"]


def test_means_of_texts_leave_out_missing_values():
    table = written(["a b a b", "", "c", "d e f"])
    table = text_damage(table.assign(choice=pd.array([0, pd.NA, pd.NA, 1], dtype="Int64")))
    row = mean_damage(table).loc[0]
    assert row["words"] == 2.0
    assert row["distinct_2"] == pytest.approx((2 / 3 + 1) / 2)
    interval = stats.binomtest(2, 4).proportion_ci(method="wilson")
    expected = [0.5, interval.low, interval.high]
    assert row[["unreadable", "unreadable_low", "unreadable_high"]].tolist() == pytest.approx(expected)
    partly = table.assign(words=pd.Series([pd.NA, 4, pd.NA, 4], dtype=object))
    assert mean_damage(partly).loc[0, "words"] == 4


# Effect next to damage


def steered(multiplier, effect=0.0, kl=0.0, loss=0.0, **names):
    """A condition, its effect, and its damage: KL and change of the loss."""
    row = {"vector": "made", "control": False, "control_of": "", "operation": "add", "layers": "3"}
    row |= {"hook": "resid_post", "multiplier": multiplier, "effect": effect, "kl": kl, "loss": loss}
    return row | names


def control(multiplier, effect=0.0, kl=0.0, vector="random 1", **names):
    return steered(multiplier, effect, kl, vector=vector, control=True, **names)


UNSTEERED = steered(0.0, vector="none", operation="none", layers="", hook="")


def effects_of(*conditions):
    """A table of effects, in narrow intervals."""
    table = pd.DataFrame([UNSTEERED, *conditions]).drop(columns=["kl", "loss"])
    table["shift"] = table.pop("effect")
    table["shift_low"], table["shift_high"] = table["shift"] - 0.1, table["shift"] + 0.1
    return table.assign(dose=table["multiplier"].abs() / 10, n=50)


def damages_of(*conditions):
    """A table of damage of two passages that differ a little."""
    rows = pd.DataFrame([UNSTEERED, *conditions]).drop(columns="effect").assign(dose=9.0)
    changes = [rows["loss"] - 0.5e-4, rows["loss"] + 0.5e-4]
    return pd.concat([rows.assign(prompt_id=i, loss_change=each, loss=3.0) for i, each in enumerate(changes)])


def texts_of(values):
    """Measures of two texts each: {(vector, multiplier): (words, distinct_2, unreadable)}."""
    rows = []
    for (vector, multiplier), measures in values.items():
        row = UNSTEERED if vector == "none" else steered(multiplier, vector=vector)
        measures = dict(zip(("words", "distinct_2", "unreadable"), measures, strict=True))
        rows += [row | measures | {"prompt_id": prompt} for prompt in (0, 1)]
    return pd.DataFrame(rows)


RISING = [
    steered(1.0, 0.05, 0.001, 0.001),
    steered(2.0, 0.5, 0.01, 0.01),
    steered(4.0, 1.0, 0.05, 0.06),
    steered(8.0, 1.5, 0.4, 0.5),
    steered(16.0, 0.8, 5.0, 4.0),
]


def joined(conditions=RISING, *, effects=None, damages=None, texts=None, extra=(), **options):
    conditions = [*conditions, *extra]
    effects = effects_of(*conditions) if effects is None else effects
    damages = damages_of(*conditions) if damages is None else damages
    return effect_and_damage(effects, damages, texts, **options)


def test_each_condition_is_usable_or_has_the_reason_why_not():
    table = joined()
    assert table["reason"].tolist() == ["unsteered", "no effect", "", "", "damage", "collapse"]
    assert table["usable"].tolist() == [False, False, True, True, False, False]
    assert table["collapse"].tolist() == ["", "", "", "", "", "loss"]
    assert table["pareto"].tolist() == [True, True, True, True, True, False]
    assert table["dose"].tolist() == [0, 0.1, 0.2, 0.4, 0.8, 1.6]
    np.testing.assert_allclose(table["kl"], [0, 0.001, 0.01, 0.05, 0.4, 5.0])
    assert (table["passages"] == 2).all()
    assert (table["n"] == 50).all()


def test_the_intended_side_is_the_multipliers():
    wrong = [steered(-2.0, -0.5, 0.01), steered(-4.0, 0.7, 0.02), steered(2.0, -0.6, 0.005)]
    table = joined([*wrong, steered(np.nan, -0.5, 0.01, operation="project_out")])
    assert table["reason"].tolist() == ["unsteered", "", "no effect", "no effect", ""]
    assert table["pareto"].tolist() == [True, True, False, False, True]


def test_where_more_is_better_a_subtracted_vector_may_gain_and_harm_by_controls_is_no_match():
    """An accuracy does not go with the multiplier's sign, and any push may lower it."""
    conditions = [steered(-2.0, 0.4, 0.01), steered(2.0, -0.3, 0.01)]
    table = joined(conditions, extra=[control(2.0, -0.5, 0.01)], directed=False)
    assert table["reason"].tolist()[:3] == ["unsteered", "", "no effect"]
    assert table["control_effect"].tolist()[1:3] == [-0.5, -0.5]
    better = joined(conditions, extra=[control(2.0, 0.6, 0.01)], directed=False)
    assert better["reason"].tolist()[:3] == ["unsteered", "no effect", "no effect"]


def test_texts_are_compared_with_the_unsteered_ones_though_the_effects_have_no_such_row():
    texts = texts_of({("none", 0.0): (20, 0.9, 0.0), ("made", 2.0): (20, 0.1, 0.0)})
    table = joined(effects=effects_of(*RISING).query("vector != 'none'"), texts=texts)
    assert table.set_index("multiplier")["collapse"][2.0] == "repetition"


@pytest.mark.parametrize(
    ("bound", "rows", "reasons"),
    [
        ({"max_loss_change": 0.7}, slice(4, 6), ["", "collapse"]),
        ({"max_loss_change": 0.02}, slice(2, 4), ["", "damage"]),
        ({"max_kl": 0.02}, slice(2, 4), ["", "damage"]),
        ({"collapse_loss": 0.3}, slice(4, 6), ["collapse", "collapse"]),
        ({"collapse_loss": 5.0}, slice(5, 6), ["damage"]),
    ],
)
def test_bounds_can_be_moved(bound, rows, reasons):
    assert joined(**bound)["reason"].tolist()[rows] == reasons


def test_the_upper_end_of_the_loss_changes_interval_decides_and_one_passage_is_too_few():
    table = joined([steered(1.0, 1.0, loss=0.0999)])
    assert table["loss_change"].iloc[1] < 0.1
    assert table["reason"].tolist()[1] == "damage"
    assert not joined(damages=rows_of(damages_of(*RISING), prompt_id=0))["usable"].any()


def test_an_effect_that_random_directions_have_too_is_none():
    table = joined(extra=[control(-2.0, 0.6, 0.01)])
    own = rows_of(table, control=False).set_index("multiplier")
    assert own.loc[2.0, ["reason", "control_effect"]].tolist() == ["no effect", 0.6]
    assert own.loc[4.0, "reason"] == ""
    assert np.isnan(own.loc[4.0, "control_effect"])
    assert not rows_of(table, control=True)["usable"].any()


def test_controls_of_another_vector_or_layer_do_not_count():
    two = [steered(2.0, 0.5, 0.01, 0.01, vector=vector) for vector in "ab"]
    controls = [
        control(2.0, 9.0, vector="random 1 (a)", control_of="b"),
        control(2.0, 9.0, vector="random 2", layers="4"),
    ]
    tables = effects_of(*two, *controls), damages_of(*two, *controls)
    older = [table.drop(columns="control_of") for table in tables]
    for arguments, reasons in ((tables, ["", "no effect"]), (older, ["no effect"] * 2)):
        table = effect_and_damage(*arguments).set_index("vector")
        assert table.loc[["a", "b"], "reason"].tolist() == reasons


def test_the_pareto_set_equals_a_comparison_of_every_pair():
    rng = np.random.default_rng(0)
    multipliers = [sign * (number + 1.0) for number in range(15) for sign in (-1, 1)]
    drawn = [(each, round(rng.normal(), 1), round(rng.exponential(), 1)) for each in multipliers]
    table = joined(
        [
            steered(multiplier, side * effect, kl, vector=vector)
            for vector, side in (("a", 1), ("b", -1))
            for multiplier, effect, kl in drawn
        ]
    )
    rows = [
        (row["vector"], np.sign(row["multiplier"]), np.sign(row["multiplier"]) * row["effect"], row["kl"])
        for _, row in table.iloc[1:].iterrows()
    ]
    for (vector, sign, gain, kl), on_the_set in zip(rows, table["pareto"].iloc[1:], strict=True):
        rivals = [(0.0, 0.0), *(rival[2:] for rival in rows if rival[:2] == (vector, sign))]
        beaten = any(each[0] >= gain and each[1] <= kl and each != (gain, kl) for each in rivals)
        assert on_the_set == (not beaten), (vector, sign, gain, kl)
    assert 4 < table["pareto"].sum() < 40


def test_the_pareto_set_can_be_weighed_by_the_loss():
    conditions = [steered(1.0, 1.0, 0.5, 0.1), steered(2.0, 1.0, 0.1, 0.5)]
    assert joined(conditions)["pareto"].tolist() == [True, False, True]
    assert joined(conditions, cost="loss_change")["pareto"].tolist() == [True, True, False]


GOOD = (20, 0.9, False)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ((20, 0.44, False), "repetition"),
        ((20, 0.46, False), ""),
        ((20, 0.9, True), "unreadable"),
        ((0, np.nan, False), "empty"),
        ((20, 0.1, True), "repetition, unreadable"),
    ],
)
def test_a_condition_whose_texts_fall_apart_has_collapsed_and_says_by_which_rule(text, rule):
    texts = texts_of({("none", 0.0): GOOD, ("made", 2.0): text, ("made", 4.0): GOOD})
    table = joined(texts=texts).set_index("multiplier")
    assert table.loc[2.0, "collapse"] == rule
    assert table.loc[[2.0, 4.0], "reason"].tolist() == ["collapse" if rule else "", ""]
    measures = table[["words", "distinct_2", "unreadable"]]
    assert measures.loc[4.0].tolist() == [20, 0.9, 0]
    assert measures.loc[8.0].isna().all()
    before = texts_of({("none", 0.0): (20, 0.9, True), ("made", 2.0): (20, 0.9, True)})
    assert joined(texts=before)["reason"].tolist()[2] == "", "unreadable unsteered too"


def test_joining_does_not_change_the_tables():
    tables = effects_of(*RISING), damages_of(*RISING), texts_of({("none", 0.0): GOOD})
    before = [table.copy() for table in tables]
    effect_and_damage(*tables)
    for table, copied in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table, copied)


# Usable doses


BOUNDS = ["smallest_multiplier", "largest_multiplier", "smallest_dose", "largest_dose"]
COLLAPSE = ["collapse_multiplier", "collapse_dose"]
GAP = [RISING[1], dict(RISING[1], multiplier=3.0, loss=0.5), RISING[2]]
NEGATIVE = [dict(row, multiplier=-row["multiplier"], effect=-row["effect"]) for row in reversed(RISING)]
BOTH_SIGNS = [*NEGATIVE, *RISING[:3]]


@pytest.mark.parametrize(
    ("conditions", "sign", "usable", "reason", "expected"),
    [
        (RISING, 1, 2, "damage", [2.0, 4.0, 0.2, 0.4, 16.0, 1.6]),
        (GAP, 1, 1, "damage", [2.0, 2.0, 0.2, 0.2, np.nan, np.nan]),
        (BOTH_SIGNS, -1, 2, "damage", [-2.0, -4.0, 0.2, 0.4, -16.0, 1.6]),
        (BOTH_SIGNS, 1, 2, "largest tried", [2.0, 4.0, 0.2, 0.4, np.nan, np.nan]),
    ],
    ids=["first to last", "gap", "negative", "positive"],
)
def test_a_range_ends_at_a_gap_and_each_sign_has_its_own(conditions, sign, usable, reason, expected):
    row = usable_range(joined(conditions)).set_index("sign").loc[sign]
    assert (row["usable"], row["reason"]) == (usable, reason)
    assert row[[*BOUNDS, *COLLAPSE]].to_list() == pytest.approx(expected, nan_ok=True)
    assert row["conditions"] == sum(each["multiplier"] * sign > 0 for each in conditions)


@pytest.mark.parametrize(
    ("effects", "losses", "reason"),
    [
        ([0.0, 0.0], [0.0, 0.0], "no effect"),
        ([0.0, 1.0], [0.0, 0.5], "damage first"),
        ([0.0, 1.0], [0.0, 5.0], "collapse first"),
        ([1.0, 1.0], [0.5, 5.0], "damage first"),
    ],
)
def test_an_empty_range_says_why(effects, losses, reason):
    values = zip((1.0, 2.0), effects, losses, strict=True)
    conditions = [steered(multiplier, effect, 0.1, loss) for multiplier, effect, loss in values]
    row = usable_range(joined(conditions)).iloc[0]
    assert (row["reason"], row["usable"]) == (reason, 0)
    assert row[BOUNDS].isna().all()


def test_projections_and_layers_have_rows_of_their_own_and_controls_have_none():
    projected = steered(np.nan, 0.5, 0.01, operation="project_out")
    table = usable_range(joined([*RISING, projected, dict(RISING[2], layers="3+5")], extra=[control(2.0)]))
    columns = ["vector", "operation", "layers", "sign", "usable", "reason"]
    assert table[columns].to_numpy().tolist() == [
        ["made", "add", "3", 1, 2, "damage"],
        ["made", "project_out", "3", 0, 1, "largest tried"],
        ["made", "add", "3+5", 1, 1, "largest tried"],
    ]


# Figures


def drawn(figure, name):
    """The traces of that name that have points."""
    named = [trace for trace in figure.data if trace.name == name and trace.x is not None]
    return [trace for trace in named if trace.x[0] is not None]


@pytest.fixture(scope="module")
def mean():
    options = {"operations": ("add", "project_out"), "multipliers": [4.0, -1.0, 2.0, 1.0]}
    return mean_damage(measured(controls=2, **options))


@pytest.mark.parametrize("value", ["kl", "loss_change", "loss"])
def test_damage_is_drawn_at_its_dose_one_line_per_layer_and_sign_with_its_interval(mean, value):
    figure = plots.damage(mean, value=value)
    for layer in ("0", "1", "2"):
        for trace, sign, dash in zip(drawn(figure, layer), (1, -1), ("solid", "dot"), strict=True):
            rows = mean[(mean["layers"] == layer) & (mean["multiplier"] * sign > 0) & ~mean["control"]]
            rows = rows.sort_values("dose")
            assert list(trace.x) == rows["dose"].tolist()
            assert list(trace.y) == rows[value].tolist()
            assert trace.line.dash == dash
            np.testing.assert_allclose(trace.error_y.array, rows[f"{value}_high"] - rows[value])
    assert figure.layout.xaxis.type == "log"
    assert (figure.layout.yaxis.type == "log") == (value == "kl")
    assert len(drawn(figure, "unsteered")) == (value != "kl")
    controls = drawn(figure, "controls")
    assert len(controls) == 2 * 3 * 2
    points = {point for trace in controls for point in zip(trace.x, trace.y, strict=True)}
    rows = mean[mean["control"] & mean["dose"].notna()]
    assert points == set(zip(rows["dose"], rows[value], strict=True))


def test_measures_of_texts_are_drawn_too():
    table = written(["a b a b", "c d", "e e e"], conditions=2)
    figure = plots.damage(mean_damage(text_damage(table)), value="distinct_2")
    (line,) = drawn(figure, "0")
    assert line.y[0] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert "word pairs" in figure.layout.yaxis.title.text


def test_a_damage_of_zero_is_not_on_the_logarithmic_axis(mean):
    table = mean.assign(kl=mean["kl"].where(mean["layers"] != "1", 0.0))
    figure = plots.damage(table)
    assert not drawn(figure, "1")
    low, high = (10.0**end for end in figure.layout.yaxis.range)
    values = table.loc[table["kl"] > 0, "kl"]
    assert low < values.min() < values.max() < high


PLANE = [*RISING, steered(-2.0, -0.4, 0.02), steered(-4.0, -0.1, 0.03, 3.0)]


@pytest.mark.parametrize("cost", ["kl", "loss_change"])
def test_the_plane_shows_each_condition_by_effect_and_cost_and_its_state(cost):
    table = joined(PLANE, extra=[control(2.0, 0.1, 0.01)], cost=cost)
    figure = plots.effect_and_damage(table)
    (points,) = drawn(figure, "3")
    rows = table[table["vector"] == "made"].sort_values("multiplier")
    assert list(points.x) == rows[cost].tolist()
    assert list(points.y) == rows["effect"].tolist()
    symbols = {"usable": "circle", "not usable": "circle-open", "collapsed": "x-thin-open"}
    states = np.select([rows["collapsed"], rows["usable"]], ["collapsed", "usable"], "not usable")
    assert set(states) == set(symbols)
    assert list(points.marker.symbol) == [symbols[state] for state in states]
    for name, symbol in symbols.items():
        (key,) = [trace for trace in figure.data if trace.name == name]
        assert (key.marker.symbol, key.showlegend) == (symbol, True)
    (controls,) = drawn(figure, "controls")
    assert (list(controls.x), list(controls.y)) == (table.loc[table["control"], cost].tolist(), [0.1])
    assert (figure.layout.xaxis.type == "log") == (cost == "kl")


def test_the_pareto_set_of_each_sign_is_a_line_from_the_cheapest_on():
    figure = plots.effect_and_damage(joined(PLANE))
    lines = drawn(figure, "Pareto set")
    assert [list(line.y) for line in lines] == [[-0.4], [0.05, 0.5, 1.0, 1.5]]
    np.testing.assert_allclose(lines[1].x, [0.001, 0.01, 0.05, 0.4])
    assert [line.showlegend for line in lines] == [True, False]


def test_a_plane_without_multipliers_has_no_labels():
    table = joined(PLANE).assign(pareto=False, collapsed=False)
    (labels,) = [trace for trace in plots.effect_and_damage(table).data if trace.mode == "markers+text"]
    assert not len(labels.x)


def labels_of(conditions):
    """Texts next to points, with the points' y."""
    figure = plots.effect_and_damage(joined(conditions))
    (labels,) = [trace for trace in figure.data if trace.mode == "markers+text"]
    return dict(zip(labels.text, labels.y, strict=True))


def test_multipliers_are_written_at_the_pareto_set_and_at_collapsed_conditions_without_overlap():
    assert labels_of(PLANE) == {
        "+8": 1.5, "+4": 1.0, "+16": 0.8, "+2": 0.5, "−2": -0.4, "−4": -0.1, "+1": 0.05,
    }  # fmt: skip
    labels = labels_of([*RISING, dict(RISING[2], multiplier=5.0, effect=1.0001, kl=0.0501)])
    assert labels.keys() & {"+4", "+5"} == {"+5"}


def test_hover_says_the_effect_the_cost_and_why_a_condition_is_not_usable():
    figure = plots.effect_and_damage(joined(PLANE, extra=[control(2.0, 0.1, 0.01)]))
    (points,) = drawn(figure, "3")
    hover = dict(zip(points.y, points.hovertext, strict=True))
    for part in ("layer 3, add +2", "effect 0.5 [0.4, 0.6]", "KL 0.01 [0.01, 0.01]", "controls reach 0.1"):
        assert part in hover[0.5]
    for effect, end in ((0.5, "usable"), (1.5, "not usable: damage"), (0.8, "not usable: collapse (loss)")):
        assert hover[effect].endswith(end)


def test_several_vectors_get_panels_and_names_never_become_markup(mean):
    name = "<b>loud</b> $5"
    table = joined([dict(row, vector=vector) for vector in (name, "quiet") for row in RISING])
    plane = plots.effect_and_damage(table)
    for figure in (plane, plots.damage(mean.replace({"vector": {"made": name}}))):
        assert not re.search(r"<b>loud|\$5", figure.to_json())
    titles = [each.text.replace("<br>", " ") for each in plane.layout.annotations]
    assert titles == ["&lt;b&gt;loud&lt;/b&gt; &#36;5", "quiet"]


def test_figures_do_not_change_their_tables(mean):
    for draw, table in ((plots.damage, mean), (plots.effect_and_damage, joined(PLANE))):
        before = table.copy()
        assert "per point" in draw(table).layout.title.subtitle.text
        pd.testing.assert_frame_equal(table, before)


def two_costs():
    return pd.concat([joined(PLANE), joined(PLANE, cost="loss_change").assign(vector="other")])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda mean: plots.damage(mean, value="pain"), "got 'pain'"),
        (lambda mean: plots.damage(mean, value="words"), "lacks the columns words.*mean_damage"),
        (lambda mean: plots.damage(mean.head(0)), "has no rows"),
        (lambda mean: plots.damage(mean[mean["multiplier"].isna()]), "has a dose above 0"),
        (lambda mean: plots.damage(pd.concat([mean, mean])), "rows share their"),
        (
            lambda _: plots.effect_and_damage(joined(PLANE).drop(columns="pareto")),
            "pareto.*effect_and_damage",
        ),
        (lambda _: plots.effect_and_damage(joined(PLANE).assign(kl=0.0)), "has a kl above 0"),
        (lambda _: plots.effect_and_damage(two_costs()), "cost must be one of kl, loss_change"),
    ],
)
def test_figures_reject_other_tables(mean, call, message):
    assert_raises(message, call, mean)


@pytest.mark.parametrize(("low", "high"), [(1.08, 1.61), (0.05, 0.1), (0.01, 0.02), (0.1, 3.0), (1e-4, 10.0)])
def test_a_logarithmic_axis_has_ticks_enough_to_read_it_and_not_too_many(low, high):
    axis = log_axis(pd.Series([low, high]))
    inside = [tick for tick in axis["tickvals"] if low <= tick <= high * (1 + 1e-9)]
    assert 2 <= len(inside) <= 8
    assert axis["ticktext"][axis["tickvals"].index(inside[0])] == f"{inside[0]:g}"
