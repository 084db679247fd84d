"""Damage against slow oracles: KL by torch.distributions, loss by Hugging Face, n-grams by hand; ranges."""

import math

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
from tl_steer.plots.axes import log_axis
from tl_steer.positions import all_tokens, current_token, generated_tokens, last_token, prompt_tokens, token
from tl_steer.prompts import read_neutral
from tl_steer.sweeps import damage
from tl_steer.sweeps._sweep import sweep
from tl_steer.texts import text_damage

from .tiny_model import Change, hook_name, made_vector, make_model, run_alone, word_tokenizer

MODEL = make_model(word_tokenizer())
PASSAGES = ["a b c d e", "f g h", "a b c k", "i j k l m n o p", "q", "r s t u v w x y z A B"]
CONDITION = ["vector", "control", "control_of", "operation", "layers", "hook", "multiplier"]


def several(model=MODEL, *, layers=(0, 1, 2), scale=4.0, seed=0, hook="resid_post"):
    values = [made_vector(model, layer, hook, scale=scale, seed=seed + layer).values for layer in layers]
    norms = torch.full((len(layers),), 10.0)
    return SteeringVectors(torch.stack(values), layers, hook, "made", norms, identify(model))


def measured(passages=PASSAGES, *, model=MODEL, vectors=None, **options):
    options = {"multipliers": [-1.0, 2.0], "controls": 0, "progress": False} | options
    return damage(model, vectors or several(model), passages, **options)


def condition(table, **values):
    chosen = table
    for name, value in values.items():
        chosen = chosen[chosen[name] == value]
    return chosen


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


# Passages

EVERY = {
    "all_tokens()": (all_tokens(), lambda prompt, length: range(length)),
    "current_token()": (current_token(), lambda prompt, length: range(length)),
    "generated_tokens()": (generated_tokens(), lambda prompt, length: range(1, length)),
    "~token(0)": (~token(0), lambda prompt, length: range(1, length)),
}


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("where", EVERY)
def test_every_number_equals_a_loop_over_whole_passes(where, reuse):
    positions, indices = EVERY[where]
    vectors = several()
    table = measured(vectors=vectors, layers=[0, 2], positions=positions, reuse=reuse)
    assert len(table) == len(PASSAGES) * 5
    for layer in (0, 2):
        for multiplier in (-1.0, 2.0):
            result = condition(table, layers=str(layer), multiplier=multiplier)
            changes = [added(vectors[layer], multiplier, indices)]
            expected = [alone(ids, changes) for ids in ids_of(PASSAGES)]
            np.testing.assert_allclose(result["kl"], [kl for kl, _ in expected], atol=1e-5)
            np.testing.assert_allclose(result["loss"], [loss for _, loss in expected], atol=1e-5)
            before = np.array([alone(ids)[1] for ids in ids_of(PASSAGES)])
            np.testing.assert_allclose(result["loss_change"], result["loss"] - before, atol=1e-5)
            assert (result["kl"] > 1e-3).all() or where != "all_tokens()"


@pytest.mark.parametrize("reuse", [True, False])
def test_other_operations_several_layers_and_hooks_are_measured_too(reuse):
    vectors = several(hook="resid_pre")

    def reflected(vector, multiplier, positions):
        return ProjectOut(vector, multiplier, positions=positions)

    def off(vector, multiplier, positions):
        return Ablate(vector.layer, "z", heads=[1], positions=positions)

    table = measured(
        vectors=vectors, layers=[1, (0, 2)], operations=("add", "project_out", reflected, off), reuse=reuse,
        multipliers=[2.0],
    )  # fmt: skip

    def everywhere(prompt, length):
        return range(length)

    def removed(layer, strength):
        unit = vectors[layer].values / vectors[layer].values.norm()
        return Change(layer, "resid_pre", lambda x: x - strength * (x @ unit) * unit, everywhere)

    def silenced(layer):
        rest = torch.ones(3, 4)
        rest[1] = 0
        return Change(layer, "z", lambda x: x * rest.flatten(), everywhere)

    for labelled, indices in (("1", (1,)), ("0+2", (0, 2))):
        ways = {
            "add": [added(vectors[layer], 2.0, everywhere) for layer in indices],
            "project_out": [removed(layer, 1.0) for layer in indices],
            "reflected": [removed(layer, 2.0) for layer in indices],
            "off": [silenced(layer) for layer in indices],
        }
        for operation, changes in ways.items():
            result = condition(table, layers=labelled, operation=operation)
            expected = [alone(ids, changes) for ids in ids_of(PASSAGES)]
            np.testing.assert_allclose(result[["kl", "loss"]], expected, atol=1e-5)


def test_the_unsteered_condition_comes_first_and_has_no_divergence():
    table = measured()
    unsteered = table.head(len(PASSAGES))
    assert set(unsteered["vector"]) == set(unsteered["operation"]) == {"none"}
    assert (table["vector"] == "none").sum() == len(PASSAGES)
    assert unsteered["kl"].tolist() == unsteered["loss_change"].tolist() == [0.0] * len(PASSAGES)
    np.testing.assert_allclose(unsteered["loss"], [alone(ids)[1] for ids in ids_of(PASSAGES)], atol=1e-5)


def test_columns_are_a_sweeps_and_the_passages_own():
    passages = pd.DataFrame({"topic": list("xxyyzz"), "passage": PASSAGES}, index=range(10, 16))
    table = measured(passages, controls=1)
    assert list(table) == [
        "prompt_id",
        "prompt",
        "topic",
        *CONDITION,
        "dose",
        "tokens",
        "kl",
        "loss",
        "loss_change",
    ]
    assert table["prompt"].tolist() == PASSAGES * 13
    assert table["prompt_id"].tolist() == list(range(6)) * 13
    assert table["topic"].tolist() == list("xxyyzz") * 13
    assert table["control"].dtype == bool
    # <s> is in front of every passage, so that as many tokens are predicted as there are words
    assert table["tokens"].tolist() == [5, 3, 4, 8, 1, 11] * 13
    sweep_table = sweep(
        MODEL, several(), PASSAGES, multipliers=[-1.0, 2.0], controls=1, control_layers="all",
        measure="generate", max_new_tokens=1, progress=False,
    )  # fmt: skip
    pd.testing.assert_frame_equal(
        table[CONDITION].drop_duplicates(), sweep_table[CONDITION].drop_duplicates()
    )


@pytest.mark.parametrize("reuse", [True, False])
def test_adding_nothing_changes_nothing(reuse):
    table = measured(multipliers=[0.0], reuse=reuse)
    np.testing.assert_allclose(table["kl"], 0, atol=1e-6)
    np.testing.assert_allclose(table["loss_change"], 0, atol=1e-5)
    assert (table["kl"] >= 0).all()
    with pytest.raises(ValueError, match="length zero at layers"):
        measured(vectors=several(scale=0.0), reuse=reuse)


def test_by_default_there_are_20_controls_at_given_layers_and_none_without_layers():
    options = {"multipliers": [1.0], "progress": False}
    given = damage(MODEL, several(), PASSAGES[:2], layers=[1], **options)
    assert given.loc[given["control"], "vector"].nunique() == 20
    assert set(given.loc[given["control"], "control_of"]) == {"made"}
    assert not damage(MODEL, several(), PASSAGES[:2], **options)["control"].any()


def test_controls_are_random_directions_of_the_same_length_and_take_the_seed():
    first, again, other = (measured(controls=2, seed=seed, layers=[1]) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    controls = first[first["control"]]
    assert sorted(set(controls["vector"])) == ["random 1", "random 2"]
    assert controls["kl"].groupby(controls["vector"]).mean().nunique() == 2
    np.testing.assert_allclose(
        sorted(set(controls["dose"].round(6))), sorted(set(first["dose"].round(6)))[1:]
    )
    assert not np.allclose(controls["kl"], other.loc[other["control"], "kl"])
    own = condition(first, control=False)
    pd.testing.assert_frame_equal(own, condition(other, control=False))


def test_a_batch_equals_its_passages_alone():
    together = measured()
    apart = pd.concat([measured([passage]) for passage in PASSAGES], ignore_index=True)
    together = together.sort_values(["prompt", "layers", "multiplier"]).reset_index(drop=True)
    apart = apart.sort_values(["prompt", "layers", "multiplier"]).reset_index(drop=True)
    names = ["tokens", "kl", "loss", "loss_change"]
    np.testing.assert_allclose(together[names], apart[names], atol=2e-6)


@pytest.mark.parametrize(("rows", "memory"), [(1, None), (3, None), (7, None), (4096, 20_000)])
def test_the_numbers_do_not_depend_on_the_positions_or_the_memory_of_a_part(monkeypatch, rows, memory):
    expected = measured()
    monkeypatch.setattr(logits_module, "ROWS", rows)
    pd.testing.assert_frame_equal(measured(memory=memory), expected, rtol=0, atol=2e-6)


def test_never_more_distributions_than_a_part_of_the_positions_are_made(monkeypatch):
    sizes, logits_of = [], logits_module.logits_of

    def counting(model, stream):
        sizes.append(len(stream))
        return logits_of(model, stream)

    monkeypatch.setattr(logits_module, "logits_of", counting)
    monkeypatch.setattr(logits_module, "ROWS", 5)
    measured()
    # 32 positions in parts: the unsteered ones once for themselves, and once for all six conditions together
    assert max(sizes) == 5
    assert sum(sizes) == 32 * (1 + 1 + 6)


def test_the_dose_is_the_added_length_over_the_streams_norm_on_the_passages():
    vectors = several(scale=4.0)
    table = measured(vectors=vectors, layers=[1], multipliers=[2.0], operations=("add", "project_out"))
    norms = []
    for ids in ids_of(PASSAGES):
        _, seen = run_alone(MODEL, ids, len(ids), reads=[hook_name("resid_post", 1)])
        norms.append(np.median(seen[hook_name("resid_post", 1)][1:].norm(dim=-1)))
    (dose,) = set(condition(table, operation="add")["dose"])
    assert dose == pytest.approx(8.0 / np.median(norms), rel=1e-5)
    assert condition(table, operation="project_out")["dose"].isna().all()


def test_only_the_first_tokens_of_a_passage_are_read():
    cut = measured(max_tokens=4)
    assert cut["tokens"].max() == 3
    direct = measured([" ".join(passage.split()[:3]) for passage in PASSAGES])
    pd.testing.assert_frame_equal(cut.drop(columns="prompt"), direct.drop(columns="prompt"))


def test_a_passage_of_one_token_has_nothing_to_predict():
    passages = [[3, 4, 5], [6], [7, 8]]
    table = measured(passages)
    assert table["tokens"].tolist() == [2, 0, 1] * 7
    single = table[table["prompt_id"] == 1]
    assert single[["kl", "loss", "loss_change"]].isna().all(axis=None)
    others = table[table["prompt_id"] != 1].reset_index(drop=True)
    direct = measured([[3, 4, 5], [7, 8]])
    np.testing.assert_allclose(others[["kl", "loss"]], direct[["kl", "loss"]], atol=2e-6)


def test_a_passage_of_two_tokens_of_which_the_first_is_not_steered_does_not_change():
    table = measured([[3, 4], [5, 6, 7]], positions=generated_tokens())
    np.testing.assert_allclose(table.loc[table["prompt_id"] == 0, "kl"], 0, atol=1e-6)
    steered = table[(table["prompt_id"] == 1) & (table["vector"] != "none")]
    assert (steered["kl"] > 1e-3).all()


@pytest.mark.parametrize(
    ("passages", "options", "message"),
    [
        ([], {}, "no prompts given"),
        ([""], {"model": "none"}, "is empty"),
        ([[3], [4]], {}, "every passage is a single token"),
        (PASSAGES, {"max_tokens": 1}, "max_tokens=1: at least 2"),
        (PASSAGES, {"multipliers": []}, "needs multipliers; none given"),
        (
            PASSAGES,
            {"positions": last_token()},
            r"last_token\(\) leaves generated tokens alone.*current_token",
        ),
        (PASSAGES, {"positions": prompt_tokens()}, r"prompt_tokens\(\) leaves generated tokens alone"),
        (PASSAGES, {"positions": token(0)}, r"token\(0\) leaves generated tokens alone"),
        (pd.DataFrame({"text": PASSAGES}), {}, "no column 'passage'; it has text"),
        (pd.DataFrame({"passage": PASSAGES, "kl": 1, "dose": 2}), {}, r"\['dose', 'kl'\] have names of"),
        (["a " * 60], {}, "does not fit the context"),
    ],
)
def test_bad_input_is_rejected(passages, options, message):
    options = dict(options)
    model = make_model(bare_tokenizer()) if options.pop("model", None) else MODEL
    with pytest.raises(ValueError, match=message):
        measured(passages, model=model, **options)


def bare_tokenizer():
    """Without BOS, so that an empty text has no tokens."""
    tokenizer = word_tokenizer()
    tokenizer._tokenizer.post_processor = None
    return tokenizer


def test_without_a_bos_the_first_word_is_what_the_second_is_predicted_from():
    model = make_model(bare_tokenizer())
    table = measured(["a b c"], model=model, vectors=several(model), layers=[0], multipliers=[1.0])
    assert table["tokens"].tolist() == [2, 2]
    changes = [added(several(model)[0], 1.0, lambda prompt, length: range(length))]
    ids = ids_of(["a b c"], model)[0]
    expected = alone(ids, changes, model=model)
    np.testing.assert_allclose(table.loc[1, ["kl", "loss"]].astype(float), expected, atol=1e-5)


def test_model_vectors_and_passages_are_left_alone():
    passages, vectors = pd.DataFrame({"passage": PASSAGES}), several()
    before = passages.copy(), vectors.values.clone(), {k: v.clone() for k, v in MODEL.state_dict().items()}
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
    table = damage(model, vectors, passages, multipliers=[1.5], controls=0, progress=False)

    def steered(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden += 1.5 * values

    def passes():
        for ids in passages:
            tokens = torch.tensor([ids])
            with torch.no_grad():
                result = hf_model(tokens, labels=tokens)
            yield float(result.loss), result.logits[0, :-1].log_softmax(-1).exp().numpy()

    clean = list(passes())
    handle = hf_model.model.layers[1].register_forward_hook(steered)
    changed = list(passes())
    handle.remove()
    np.testing.assert_allclose(table["loss"], [loss for loss, _ in [*clean, *changed]], atol=1e-4)
    kl = [
        np.mean([stats.entropy(*rows) for rows in zip(before, after, strict=True)])
        for (_, before), (_, after) in zip(clean, changed, strict=True)
    ]
    np.testing.assert_allclose(condition(table, layers="1")["kl"], kl, rtol=1e-4)
    assert min(kl) > 0.01


@pytest.mark.model
def test_on_the_embedded_model_the_loss_is_hugging_faces_and_both_ways_agree(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    passages = read_neutral().head(3)
    values = torch.randn(1, 576, generator=torch.Generator().manual_seed(0))
    vectors = SteeringVectors(
        values * 100 / values.norm(), (17,), "resid_post", "made", torch.ones(1), identify(embedded)
    )
    options = {"multipliers": [1.0], "controls": 0, "max_tokens": 24, "progress": False}
    table = damage(embedded, vectors, passages, **options)
    for row, passage in enumerate(passages["passage"]):
        tokens = torch.tensor([tokenizer(passage)["input_ids"][:24]])
        with torch.no_grad():
            expected = float(hf_model(tokens, labels=tokens).loss)
        assert table.loc[row, "loss"] == pytest.approx(expected, abs=1e-4)
    plain = damage(embedded, vectors, passages, reuse=False, **options)
    pd.testing.assert_frame_equal(table, plain, rtol=0, atol=1e-4)
    assert (condition(table, layers="17")["kl"] > 0.01).all()


# Texts

WRITTEN = ["a b a b a b", "", "c", "d e f g", None, "!!! ... !!!"]


def written(texts=WRITTEN, *, prompts=None, conditions=1):
    """A generating sweep's table with these texts in each condition."""
    table = sweep(
        MODEL, several(), prompts or [f"{word} :" for word in "abcdef"], layers=[0],
        multipliers=[float(number) for number in range(1, conditions)] or [1.0], controls=0,
        measure="generate", max_new_tokens=1, progress=False,
    ).head(len(texts) * conditions)  # fmt: skip
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
    result = text_damage(written([*COUNTED, None], prompts=[f"{word} :" for word in "abcdefgh"]))
    names = ["words", "distinct_1", "distinct_2", "distinct_3"]
    np.testing.assert_allclose(result[names].astype(float).iloc[:-1], list(COUNTED.values()))
    assert result[names].iloc[-1].isna().all()


def test_unreadable_answers_are_those_without_a_choice_where_there_are_choices():
    table = written()
    assert text_damage(table)["unreadable"].isna().all()
    asked = table.assign(choice=pd.array([0, pd.NA, 1, pd.NA, pd.NA, 0], dtype="Int64"))
    result = text_damage(asked)["unreadable"]
    assert result.isna().tolist() == [False, False, False, False, True, False]  # no text, no verdict
    assert result.dropna().tolist() == [False, True, False, True, False]
    known = table.assign(answer=pd.array([0] * 6, dtype="Int64"))  # choices there were, and none was read
    assert text_damage(known)["unreadable"].dropna().all()


@pytest.mark.parametrize("reuse", [True, False])
def test_the_loss_of_a_text_is_that_of_its_tokens_behind_its_prompt(reuse):
    prompts = ["a b :", "c :", "a b :", "a b d :", "e :", "f g h i :"]
    texts = ["k l m", "k l m", "n", "yes no yes", "o p q r s", "t"]
    result = text_damage(written(texts, prompts=prompts), MODEL, reuse=reuse, progress=False)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        asked = MODEL.tokenizer(prompt)["input_ids"]
        new = MODEL.tokenizer(text, add_special_tokens=False)["input_ids"]
        logits, _ = run_alone(MODEL, asked + new, len(asked))
        expected = torch.nn.functional.cross_entropy(logits[len(asked) - 1 : -1].double(), torch.tensor(new))
        assert result.loc[row, "loss"] == pytest.approx(float(expected), abs=1e-5)
        assert result.loc[row, "tokens"] == len(new)


def test_the_loss_is_unsteered_and_the_models_own_texts_are_likely():
    prompts = ["a b c :", "d e :", "f :", "g h i :"]
    table = sweep(
        MODEL, several(scale=20.0), prompts, layers=[0], multipliers=[1.0], controls=0, measure="generate",
        max_new_tokens=8, min_new_tokens=8, progress=False,
    )  # fmt: skip
    result = text_damage(table, MODEL, progress=False).groupby("vector", sort=False)["loss"].mean()
    assert result["made"] > result["none"] + 0.5
    assert table.loc[table["vector"] == "made", "text"].tolist() == generate(
        MODEL, prompts, Add(several(scale=20.0)[0]), max_new_tokens=8, min_new_tokens=8
    )


def test_empty_and_missing_texts_have_no_loss_and_disturb_no_other():
    result = text_damage(written(), MODEL, progress=False)
    assert result["tokens"].tolist()[:4] == [6, 0, 1, 4]
    assert result["loss"].isna().tolist() == [False, True, False, False, True, False]
    assert pd.isna(result.loc[4, "tokens"])
    nothing = text_damage(written(["", ""]), MODEL, progress=False)
    assert nothing["loss"].isna().all()
    assert nothing["tokens"].tolist() == [0, 0]


def test_without_a_model_there_is_no_loss_and_the_columns_are_the_same():
    table = written()
    bare, full = text_damage(table), text_damage(table, MODEL, progress=False)
    assert list(bare) == list(full) == [
        "prompt_id", "prompt", "label", *CONDITION, "dose", "split", "answer", "text", "words", "distinct_1",
        "distinct_2", "distinct_3", "unreadable", "tokens", "loss",
    ]  # fmt: skip
    assert bare[["tokens", "loss"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(
        bare.drop(columns=["tokens", "loss"]), full.drop(columns=["tokens", "loss"])
    )


def test_texts_that_cannot_be_measured_are_rejected():
    with pytest.raises(ValueError, match="lacks the columns text"):
        text_damage(written().drop(columns="text"))
    with pytest.raises(ValueError, match="has no texts"):
        text_damage(written([None, None]))
    with pytest.raises(ValueError, match="is twice in the condition"):
        text_damage(pd.concat([written(), written()]))
    with pytest.raises(ValueError, match="and 50 new ones do not fit the context of 48"):
        text_damage(written(["a " * 50]), MODEL, progress=False)


# Means


def test_means_are_taken_condition_by_condition_with_students_interval():
    table = measured(pd.DataFrame({"passage": PASSAGES, "topic": list("xxxyyy")}), controls=1)
    means = mean_damage(table)
    assert len(means) == 13
    assert means["n"].tolist() == [6] * 13
    for _, row in means.iterrows():
        rows = table
        for name in CONDITION:
            rows = rows[rows[name] == row[name]]
        for name in ("kl", "loss", "loss_change"):
            assert row[name] == pytest.approx(rows[name].mean())
            if row["vector"] != "none" or name == "loss":
                low, high = stats.t.interval(0.95, 5, rows[name].mean(), stats.sem(rows[name]))
                assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((low, high))
        assert row["perplexity"] == pytest.approx(math.exp(rows["loss"].mean()))
    assert (means.loc[means["vector"] == "none", ["kl", "kl_low", "kl_high", "loss_change_high"]] == 0).all(
        axis=None
    )
    split = mean_damage(table, by="topic")
    assert len(split) == 26
    assert split["n"].tolist() == [3] * 26
    assert list(split)[8:10] == ["topic", "n"]


def test_damage_that_is_no_number_is_refused_and_missing_of_any_kind_left_out():
    table = text_damage(written(["a b", "c"], prompts=["a :", "b :"]))
    with pytest.raises(ValueError, match="'words' holds 'x': expected numbers"):
        mean_damage(table.assign(words=["x", 2]))
    assert mean_damage(table.assign(words=pd.Series([pd.NA, 4], dtype=object))).loc[0, "words"] == 4


def test_means_of_texts_leave_out_what_has_no_value():
    table = written(["a b a b", "", "c", "d e f"], prompts=["a :", "b :", "c :", "d :"])
    table = table.assign(choice=pd.array([0, pd.NA, pd.NA, 1], dtype="Int64"))
    means = mean_damage(text_damage(table))
    assert means.loc[0, "words"] == 2.0
    assert means.loc[0, "distinct_2"] == pytest.approx((2 / 3 + 1) / 2)
    assert means.loc[0, "unreadable"] == 0.5
    low, high = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert means.loc[0, ["unreadable_low", "unreadable_high"]].tolist() == pytest.approx([low, high])


def test_means_reject_what_is_no_damage():
    with pytest.raises(ValueError, match="no measure of damage"):
        mean_damage(written().drop(columns="text"))
    with pytest.raises(ValueError, match="is twice in the condition"):
        mean_damage(pd.concat([measured(), measured()]))
    with pytest.raises(ValueError, match=r"by=\['kl'\].* names of results"):
        mean_damage(measured(), by="kl")


# Effect beside damage


def conditions_of(rows, *, vector="made", control=False, control_of="", layers="3", operation="add"):
    """(multiplier, …) to a row a condition."""
    named = {
        "vector": vector,
        "control": control,
        "control_of": control_of,
        "operation": operation,
        "layers": layers,
        "hook": "resid_post",
    }
    return [named | row for row in rows]


UNSTEERED = {
    "vector": "none",
    "control": False,
    "control_of": "",
    "operation": "none",
    "layers": "",
    "hook": "",
    "multiplier": 0.0,
}


def effects_of(*conditions, spread=0.1):
    """A table of effects: each condition's multiplier and effect, in a narrow interval."""
    rows = [UNSTEERED | {"effect": 0.0}, *conditions]
    table = pd.DataFrame(rows)
    table["shift"] = table.pop("effect")
    table["shift_low"], table["shift_high"] = table["shift"] - spread, table["shift"] + spread
    return table.assign(dose=table["multiplier"].abs() / 10, n=50).drop(
        columns=["kl", "loss"], errors="ignore"
    )


def damages_of(*conditions):
    """A table of damage of two passages that differ a little: each condition's kl and loss change."""
    rows = [
        {key: row[key] for key in UNSTEERED if key in row}
        | {"prompt_id": passage, "dose": 9.0, "loss": 3.0}
        | {"kl": row.get("kl", 0.0), "loss_change": row.get("loss", 0.0) + (passage - 0.5) * 1e-4}
        for row in [UNSTEERED, *conditions]
        for passage in range(2)
    ]
    return pd.DataFrame(rows)


def texts_of(values):
    """A table of texts' measures: {(vector, multiplier): (words, distinct_2, unreadable)}, two texts each."""
    rows = []
    for (vector, multiplier), (words, distinct_2, unreadable) in values.items():
        named = (
            UNSTEERED if vector == "none" else conditions_of([{"multiplier": multiplier}], vector=vector)[0]
        )
        for prompt in range(2):
            rows.append(
                named
                | {"prompt_id": prompt, "words": words, "distinct_2": distinct_2, "unreadable": unreadable}
            )
    return pd.DataFrame(rows)


RISING = conditions_of(
    [
        {"multiplier": 1.0, "effect": 0.05, "kl": 0.001, "loss": 0.001},
        {"multiplier": 2.0, "effect": 0.5, "kl": 0.01, "loss": 0.01},
        {"multiplier": 4.0, "effect": 1.0, "kl": 0.05, "loss": 0.06},
        {"multiplier": 8.0, "effect": 1.5, "kl": 0.4, "loss": 0.5},
        {"multiplier": 16.0, "effect": 0.8, "kl": 5.0, "loss": 4.0},
    ]
)


def joined(conditions=RISING, *, texts=None, extra=(), **options):
    return effect_and_damage(
        effects_of(*conditions, *extra), damages_of(*conditions, *extra), texts, **options
    )


def test_each_condition_is_told_usable_or_why_not():
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
    wrong = conditions_of(
        [
            {"multiplier": -2.0, "effect": -0.5, "kl": 0.01},
            {"multiplier": -4.0, "effect": 0.7, "kl": 0.02},
            {"multiplier": 2.0, "effect": -0.6, "kl": 0.005},
        ]
    )
    projected = conditions_of([{"multiplier": np.nan, "effect": -0.5, "kl": 0.01}], operation="project_out")
    table = joined([*wrong, *projected])
    assert table["reason"].tolist() == ["unsteered", "", "no effect", "no effect", ""]
    assert table["pareto"].tolist() == [True, True, False, False, True]


def test_where_more_is_better_a_subtracted_vector_may_gain_and_harm_by_controls_is_no_match():
    """An accuracy does not go with the multiplier's sign, and any push may lower it."""
    conditions = conditions_of(
        [{"multiplier": -2.0, "effect": 0.4, "kl": 0.01}, {"multiplier": 2.0, "effect": -0.3, "kl": 0.01}]
    )
    harm = conditions_of([{"multiplier": 2.0, "effect": -0.5, "kl": 0.01}], vector="random 1", control=True)
    table = joined(conditions, extra=harm, directed=False)
    assert table["reason"].tolist()[:3] == ["unsteered", "", "no effect"]
    assert table["control_effect"].tolist()[1:3] == [-0.5, -0.5]
    better = conditions_of([{"multiplier": 2.0, "effect": 0.6, "kl": 0.01}], vector="random 1", control=True)
    assert joined(conditions, extra=better, directed=False)["reason"].tolist()[:3] == [
        "unsteered", "no effect", "no effect",
    ]  # fmt: skip


def test_texts_are_compared_with_the_unsteered_ones_though_the_effects_have_no_such_row():
    texts = texts_of({("none", 0.0): (20, 0.9, 0.0), ("made", 2.0): (20, 0.1, 0.0)})
    effects = effects_of(*RISING).query("vector != 'none'")
    table = effect_and_damage(effects, damages_of(*RISING), texts)
    assert table.set_index("multiplier")["collapse"][2.0] == "repetition"


def test_bounds_can_be_moved():
    assert joined(max_loss_change=0.7)["reason"].tolist()[-2:] == ["", "collapse"]
    assert joined(max_loss_change=0.02)["reason"].tolist()[2:4] == ["", "damage"]
    assert joined(max_kl=0.02)["reason"].tolist()[2:4] == ["", "damage"]
    assert joined(collapse_loss=0.3)["collapsed"].tolist()[-2:] == [True, True]
    assert joined(collapse_loss=5.0)["reason"].tolist()[-1] == "damage"


def test_the_upper_end_of_the_loss_changes_interval_decides_and_one_passage_is_too_few():
    conditions = conditions_of([{"multiplier": 1.0, "effect": 1.0, "loss": 0.0999}])
    assert joined(conditions)["loss_change"].iloc[1] < 0.1
    assert joined(conditions)["reason"].tolist()[1] == "damage"
    one = damages_of(*RISING)
    one = one[one["prompt_id"] == 0]
    assert not effect_and_damage(effects_of(*RISING), one)["usable"].any()


def test_an_effect_that_random_directions_have_too_is_none():
    near = conditions_of([{"multiplier": -2.0, "effect": 0.6, "kl": 0.01}], vector="random 1", control=True)
    table = joined(extra=near)
    assert table.loc[table["multiplier"] == 2.0, "reason"].tolist() == ["no effect"]
    assert table.loc[table["multiplier"] == 2.0, "control_effect"].tolist() == pytest.approx([0.6])
    assert table.loc[table["multiplier"] == 4.0, "reason"].tolist() == [""]
    assert table.loc[table["multiplier"] == 4.0, "control_effect"].isna().all()
    assert not table.loc[table["control"], "usable"].any()


def test_controls_of_another_vector_or_layer_do_not_count():
    two = [*conditions_of([RISING[1]], vector="a"), *conditions_of([RISING[1]], vector="b")]
    two = [dict(row, vector=name) for row, name in zip(two, "ab", strict=True)]
    controls = conditions_of(
        [{"multiplier": 2.0, "effect": 9.0}], vector="random 1 (a)", control=True, control_of="b"
    )
    controls += conditions_of(
        [{"multiplier": 2.0, "effect": 9.0}], vector="random 2", control=True, layers="4"
    )
    table = joined(two, extra=controls)
    assert table.set_index("vector").loc[["a", "b"], "reason"].tolist() == ["", "no effect"]
    older = [{name: value for name, value in row.items() if name != "control_of"} for row in controls]
    effects, damages = effects_of(*two, *controls), damages_of(*two, *older)
    table = effect_and_damage(effects.drop(columns="control_of"), damages.drop(columns="control_of"))
    assert table.set_index("vector").loc[["a", "b"], "reason"].tolist() == ["no effect"] * 2


def test_the_pareto_set_equals_a_comparison_of_every_pair():
    rng = np.random.default_rng(0)
    rows = [
        {
            "multiplier": sign * (number + 1.0),
            "effect": round(rng.normal(), 1),
            "kl": round(rng.exponential(), 1),
        }
        for number in range(15)
        for sign in (-1, 1)
    ]
    conditions = [
        row
        for vector in ("a", "b")
        for row in conditions_of(
            [dict(row, effect=row["effect"] * (1 if vector == "a" else -1)) for row in rows], vector=vector
        )
    ]
    table = joined(conditions)
    for number, row in table.iloc[1:].iterrows():
        sign = np.sign(row["multiplier"])
        rivals = [(0.0, 0.0)]
        for other, rival in table.iloc[1:].iterrows():
            if other != number and rival["vector"] == row["vector"] and np.sign(rival["multiplier"]) == sign:
                rivals.append((sign * rival["effect"], rival["kl"]))
        own = sign * row["effect"], row["kl"]
        beaten = any(gain >= own[0] and kl <= own[1] and (gain, kl) != own for gain, kl in rivals)
        assert row["pareto"] == (not beaten), row
    assert 4 < table["pareto"].sum() < 40


def test_the_pareto_set_can_be_weighed_by_the_loss():
    conditions = conditions_of(
        [
            {"multiplier": 1.0, "effect": 1.0, "kl": 0.5, "loss": 0.1},
            {"multiplier": 2.0, "effect": 1.0, "kl": 0.1, "loss": 0.5},
        ]
    )
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
    assert table.loc[2.0, "reason"] == ("collapse" if rule else "")
    assert table.loc[4.0, "reason"] == ""
    assert table.loc[4.0, ["words", "distinct_2", "unreadable"]].tolist() == [20, 0.9, 0]
    assert table.loc[8.0, ["words", "distinct_2", "unreadable"]].isna().all()
    before = texts_of({("none", 0.0): (20, 0.9, True), ("made", 2.0): (20, 0.9, True)})
    assert joined(texts=before)["reason"].tolist()[2] == "", "unreadable unsteered too"


def test_tables_that_do_not_fit_together_are_rejected():
    effects, damages = effects_of(*RISING), damages_of(*RISING)
    with pytest.raises(ValueError, match="no steered condition is in both tables"):
        effect_and_damage(effects, damages.replace({"vector": {"made": "other"}}))
    with pytest.raises(ValueError, match="condition is twice in the effects"):
        effect_and_damage(pd.concat([effects, effects]), damages)
    with pytest.raises(ValueError, match=r"lacks the columns flips, .*effectiveness"):
        effect_and_damage(effects, damages, value="flips")
    with pytest.raises(ValueError, match=r"lacks the columns kl; .*that damage returns"):
        effect_and_damage(effects, damages.drop(columns="kl"))
    with pytest.raises(ValueError, match=r"lacks the columns words, .*text_damage"):
        effect_and_damage(effects, damages, written())
    with pytest.raises(ValueError, match="cost='words': expected one of kl, loss_change"):
        effect_and_damage(effects, damages, cost="words")


def test_joining_leaves_the_tables_alone():
    tables = effects_of(*RISING), damages_of(*RISING), texts_of({("none", 0.0): GOOD})
    before = [table.copy() for table in tables]
    effect_and_damage(*tables)
    for table, was in zip(tables, before, strict=True):
        pd.testing.assert_frame_equal(table, was)


# Usable doses


def ranged(*conditions, **options):
    return usable_range(joined(list(conditions), **options)).set_index("sign")


def test_the_range_goes_from_the_first_usable_condition_to_the_last_without_a_gap():
    row = ranged(*RISING).loc[1]
    assert row["conditions"] == 5
    assert row["usable"] == 2
    assert (row["smallest_multiplier"], row["largest_multiplier"]) == (2.0, 4.0)
    assert (row["smallest_dose"], row["largest_dose"]) == pytest.approx((0.2, 0.4))
    assert (row["collapse_multiplier"], row["collapse_dose"]) == pytest.approx((16.0, 1.6))
    assert row["reason"] == "damage"


def test_conditions_behind_a_gap_are_not_in_the_range():
    harmful = dict(RISING[1], multiplier=3.0, loss=0.5)
    row = ranged(RISING[1], harmful, RISING[2]).loc[1]
    assert (row["smallest_multiplier"], row["largest_multiplier"], row["usable"]) == (2.0, 2.0, 1)
    assert row["reason"] == "damage"
    assert np.isnan(row["collapse_dose"])


def test_each_sign_has_its_range_in_the_order_of_size():
    negative = [dict(row, multiplier=-row["multiplier"], effect=-row["effect"]) for row in reversed(RISING)]
    table = ranged(*negative, *RISING[:3])
    assert table.loc[-1, ["smallest_multiplier", "largest_multiplier"]].tolist() == [-2.0, -4.0]
    assert table.loc[1, "reason"] == "largest tried"


@pytest.mark.parametrize(
    ("effects", "losses", "why"),
    [
        ([0.0, 0.0], [0.0, 0.0], "no effect"),
        ([0.0, 1.0], [0.0, 0.5], "damage first"),
        ([0.0, 1.0], [0.0, 5.0], "collapse first"),
        ([1.0, 1.0], [0.5, 5.0], "damage first"),
    ],
)
def test_an_empty_range_says_why(effects, losses, why):
    conditions = conditions_of(
        [
            {"multiplier": float(number + 1), "effect": effect, "loss": loss, "kl": 0.1}
            for number, (effect, loss) in enumerate(zip(effects, losses, strict=True))
        ]
    )
    row = ranged(*conditions).loc[1]
    assert row["reason"] == why
    assert row["usable"] == 0
    assert row[["smallest_multiplier", "largest_multiplier", "smallest_dose", "largest_dose"]].isna().all()


def test_projections_and_layers_have_rows_of_their_own_and_controls_have_none():
    projected = conditions_of([{"multiplier": np.nan, "effect": 0.5, "kl": 0.01}], operation="project_out")
    deeper = conditions_of(RISING[2:3], layers="3+5")
    deeper = [dict(row, layers="3+5") for row in deeper]
    control = conditions_of([{"multiplier": 2.0, "effect": 0.0}], vector="random 1", control=True)
    table = usable_range(joined([*RISING, *projected, *deeper], extra=control))
    assert list(zip(table["operation"], table["layers"], table["sign"], strict=True)) == [
        ("add", "3", 1), ("project_out", "3", 0), ("add", "3+5", 1),
    ]  # fmt: skip
    assert table["usable"].tolist() == [2, 1, 1]
    assert table["reason"].tolist() == ["damage", "largest tried", "largest tried"]
    assert set(table["vector"]) == {"made"}


def test_a_range_of_another_table_is_rejected():
    with pytest.raises(ValueError, match=r"lacks .* usable, collapsed, reason; .*effect_and_damage"):
        usable_range(effects_of(*RISING))


# Figures


def drawn(figure, name):
    """The traces of that name that have points."""
    return [
        trace
        for trace in figure.data
        if trace.name == name and trace.x is not None and trace.x[0] is not None
    ]


@pytest.fixture(scope="module")
def mean():
    return mean_damage(measured(controls=2, operations=("add", "project_out")))


@pytest.mark.parametrize("value", ["kl", "loss_change", "loss"])
def test_damage_is_drawn_at_its_dose_a_line_a_layer_and_sign_with_its_interval(mean, value):
    figure = plots.damage(mean, value=value)
    for layer in ("0", "1", "2"):
        added_, subtracted = drawn(figure, f"{layer}")
        for trace, sign, dash in ((added_, 1, "solid"), (subtracted, -1, "dot")):
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
    shown = [(x, y) for trace in controls for x, y in zip(trace.x, trace.y, strict=True)]
    assert set(shown) == set(
        zip(*mean.loc[mean["control"] & mean["dose"].notna(), ["dose", value]].T.to_numpy(), strict=True)
    )


def test_lines_go_from_the_smallest_dose_to_the_largest():
    table = mean_damage(measured(multipliers=[4.0, 1.0, 2.0], layers=[1]))
    (line,) = drawn(plots.damage(table), "1")
    assert list(line.x) == sorted(line.x)
    assert len(line.x) == 3


def test_measures_of_texts_are_drawn_too():
    table = written(["a b a b", "c d", "e e e"], prompts=["a :", "b :", "c :"], conditions=2)
    figure = plots.damage(mean_damage(text_damage(table)), value="distinct_2")
    (line,) = drawn(figure, "0")
    assert line.y[0] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert "word pairs" in figure.layout.yaxis.title.text


def test_a_damage_that_is_zero_has_no_place_on_a_logarithmic_axis(mean):
    table = mean.assign(kl=mean["kl"].where(mean["layers"] != "1", 0.0))
    figure = plots.damage(table)
    assert not drawn(figure, "1")
    low, high = (10.0**end for end in figure.layout.yaxis.range)
    values = table.loc[table["kl"] > 0, "kl"]
    assert low < values.min() < values.max() < high


PLANE = [
    *RISING,
    *conditions_of(
        [
            {"multiplier": -2.0, "effect": -0.4, "kl": 0.02},
            {"multiplier": -4.0, "effect": -0.1, "kl": 0.03, "loss": 3.0},
        ]
    ),
]
CONTROL = conditions_of([{"multiplier": 2.0, "effect": 0.1, "kl": 0.01}], vector="random 1", control=True)


@pytest.mark.parametrize("cost", ["kl", "loss_change"])
def test_the_plane_shows_each_condition_by_effect_and_cost_and_what_became_of_it(cost):
    table = joined(PLANE, extra=CONTROL, cost=cost)
    figure = plots.effect_and_damage(table)
    (points,) = drawn(figure, "3")
    rows = table[(table["vector"] == "made")].sort_values("multiplier")
    assert list(points.x) == rows[cost].tolist()
    assert list(points.y) == rows["effect"].tolist()
    kinds = [
        "collapsed" if row.collapsed else "usable" if row.usable else "not usable"
        for row in rows.itertuples()
    ]
    assert sorted(set(kinds)) == ["collapsed", "not usable", "usable"]
    symbols = {"usable": "circle", "not usable": "circle-open", "collapsed": "x-thin-open"}
    assert list(points.marker.symbol) == [symbols[kind] for kind in kinds]
    for name, symbol in symbols.items():
        (key,) = [trace for trace in figure.data if trace.name == name]
        assert (key.marker.symbol, key.showlegend) == (symbol, True)
    (control,) = drawn(figure, "controls")
    assert (list(control.x), list(control.y)) == (table.loc[table["control"], cost].tolist(), [0.1])
    assert (figure.layout.xaxis.type == "log") == (cost == "kl")


def test_the_pareto_set_of_each_sign_is_a_line_from_the_cheapest_on():
    figure = plots.effect_and_damage(joined(PLANE))
    lines = drawn(figure, "Pareto set")
    assert [list(line.y) for line in lines] == [[-0.4], [0.05, 0.5, 1.0, 1.5]]
    np.testing.assert_allclose(lines[1].x, [0.001, 0.01, 0.05, 0.4])
    assert [line.showlegend for line in lines] == [True, False]


def test_multipliers_are_written_at_the_pareto_set_and_at_what_collapsed():
    (labels,) = [
        trace for trace in plots.effect_and_damage(joined(PLANE)).data if trace.mode == "markers+text"
    ]
    assert dict(zip(labels.text, labels.y, strict=True)) == {
        "+8": 1.5, "+4": 1.0, "+16": 0.8, "+2": 0.5, "−2": -0.4, "−4": -0.1, "+1": 0.05,
    }  # fmt: skip


def test_labels_that_would_cover_each_other_are_left_out():
    near = dict(RISING[2], multiplier=5.0, effect=1.0001, kl=0.0501)
    (labels,) = [
        trace
        for trace in plots.effect_and_damage(joined([*RISING, near])).data
        if trace.mode == "markers+text"
    ]
    assert "+5" in labels.text
    assert "+4" not in labels.text


def test_hover_says_what_a_condition_did_what_it_cost_and_why_it_is_not_usable():
    figure = plots.effect_and_damage(joined(PLANE, extra=CONTROL))
    (points,) = drawn(figure, "3")
    hover = dict(zip(points.y, points.hovertext, strict=True))
    assert "layer 3, add +2" in hover[0.5]
    assert "effect 0.5 [0.4, 0.6]" in hover[0.5]
    assert "KL 0.01 [0.01, 0.01]" in hover[0.5]
    assert "controls reach 0.1" in hover[0.5]
    assert hover[0.5].endswith("usable")
    assert hover[1.5].endswith("not usable: damage")
    assert hover[0.8].endswith("not usable: collapse (loss)")


def test_several_vectors_get_panels_and_names_never_become_markup(mean):
    name = "<b>loud</b> $5"
    conditions = [dict(row, vector=vector) for vector in (name, "quiet") for row in RISING]
    for figure in (
        plots.effect_and_damage(joined(conditions)),
        plots.damage(mean.replace({"vector": {"made": name}})),
    ):
        message = figure.to_json()
        assert "<b>loud" not in message
        assert "$5" not in message
    assert [each.text for each in plots.effect_and_damage(joined(conditions)).layout.annotations] == [
        "&lt;b&gt;loud&lt;/b&gt; &#36;5", "quiet",
    ]  # fmt: skip


def test_figures_share_the_projects_look_and_leave_their_tables_alone(mean):
    table = joined(PLANE)
    for draw, given in ((plots.damage, mean), (plots.effect_and_damage, table)):
        before = given.copy()
        figure = draw(given)
        assert figure.layout.template.layout.colorway == plots.style.QUALITATIVE
        assert figure.layout.width == plots.style.WIDTH
        assert "per point" in figure.layout.title.subtitle.text
        pd.testing.assert_frame_equal(given, before)


def test_figures_reject_what_they_cannot_draw(mean):
    with pytest.raises(ValueError, match="got 'pain'"):
        plots.damage(mean, value="pain")
    with pytest.raises(ValueError, match=r"plots.damage.*lacks the columns words.*mean_damage"):
        plots.damage(mean, value="words")
    with pytest.raises(ValueError, match="has no rows"):
        plots.damage(mean.head(0))
    with pytest.raises(ValueError, match="has a dose above 0"):
        plots.damage(mean[mean["multiplier"].isna()])
    with pytest.raises(ValueError, match="rows share their"):
        plots.damage(pd.concat([mean, mean]))
    table = joined(PLANE)
    with pytest.raises(ValueError, match="the table's cost must be one of kl, loss_change"):
        plots.effect_and_damage(pd.concat([table, table.assign(vector="other", cost="loss_change")]))
    with pytest.raises(ValueError, match=r".*lacks the columns pareto.*effect_and_damage"):
        plots.effect_and_damage(table.drop(columns="pareto"))
    with pytest.raises(ValueError, match="has a kl above 0"):
        plots.effect_and_damage(table.assign(kl=0.0))


@pytest.mark.parametrize(("low", "high"), [(1.08, 1.61), (0.05, 0.1), (0.01, 0.02), (0.1, 3.0), (1e-4, 10.0)])
def test_a_logarithmic_axis_has_ticks_enough_to_read_it_and_not_too_many(low, high):
    axis = log_axis(pd.Series([low, high]))
    inside = [tick for tick in axis["tickvals"] if low <= tick <= high * (1 + 1e-9)]
    assert 2 <= len(inside) <= 8
    assert axis["ticktext"][axis["tickvals"].index(inside[0])] == f"{inside[0]:g}"
