"""The sweep's table: columns, conditions against direct calls, doses by hand, controls, splits, files."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from tl_steer._generation import generate
from tl_steer._read_choice import read_answer
from tl_steer._scoring import choice_logits
from tl_steer._util.seeds import derived_seed
from tl_steer.directions import SteeringVectors
from tl_steer.errors import EmptySelectionError
from tl_steer.evaluation import against_controls, choose
from tl_steer.interventions import Add, ProjectOut
from tl_steer.models import ChatPrompt, identify
from tl_steer.positions import all_tokens, last_token, token
from tl_steer.prompts import ChoiceQuestions
from tl_steer.sweeps._sweep import sweep
from tl_steer.sweeps.chunks import in_order
from tl_steer.sweeps.plans import digest

from .conftest import assert_raises
from .sweep_tables import NAN
from .tiny_model import (
    all_hooks,
    favouring,
    hook_name,
    made_vector,
    make_model,
    run_alone,
    weights_of,
    word_tokenizer,
)

MODEL = make_model(word_tokenizer())
PROMPTS = ["a b c :", "d :", "e f g h :", "i j :", "k :", "l m n :", "o p :", "q r :"]
COLUMNS = [
    "prompt_id", "prompt", "label", "kind", "vector", "control", "control_of", "operation", "layers", "hook",
    "multiplier", "dose", "split", "answer", "choice", "logit_difference", "probability", "mass", "text",
]  # fmt: skip
SCORES = ["logit_difference", "probability", "mass"]


def questions(**changes):
    fields = {
        "prompts": PROMPTS,
        "choices": [(" yes", " no")] * 8,
        "answers": [0, 1] * 4,
        "factors": pd.DataFrame({"kind": ["x", "x", "y", "y"] * 2}),
    }
    return ChoiceQuestions(**(fields | changes))


def several(seed=0, *, hook="resid_post", layers=(0, 1, 2), scale=4.0, model=MODEL):
    values = [made_vector(model, layer, hook, scale=scale, seed=seed + layer).values for layer in layers]
    norms = torch.full((len(layers),), 10.0)
    return SteeringVectors(torch.stack(values), layers, hook, "made", norms, identify(model))


def swept(vectors=None, own_questions=None, *, model=MODEL, **options):
    options = {"multipliers": [-1.0, 2.0], "controls": 0, "control_layers": "all"} | options
    vectors = several() if vectors is None else vectors
    own_questions = questions() if own_questions is None else own_questions
    return sweep(model, vectors, own_questions, progress=False, **options)


def rows_of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def test_columns_are_in_their_order_and_rows_are_prompts_by_conditions():
    table = swept(controls=2)
    assert list(table) == COLUMNS
    assert table["prompt_id"].tolist() == list(range(8)) * (1 + 3 * 3 * 2)
    assert table["prompt"].tolist() == PROMPTS * 19
    assert table["control"].dtype == bool
    assert str(table["choice"].dtype) == str(table["answer"].dtype) == "Int64"
    assert table.index.equals(pd.RangeIndex(len(table)))
    assert not table.duplicated(["prompt_id", "vector", "layers", "multiplier", "operation"]).any()
    unsteered = rows_of(table, vector="none")
    names = ["operation", "layers", "hook", "multiplier", "dose", "control"]
    assert unsteered[names].to_numpy().tolist() == [["none", "", "", 0.0, 0.0, False]] * 8
    direct = choice_logits(MODEL, PROMPTS, (" yes", " no"))
    np.testing.assert_array_equal(unsteered[SCORES], direct[SCORES])


@pytest.mark.parametrize("positions", [all_tokens(), last_token(), token(0)], ids=repr)
def test_every_condition_of_a_choice_sweep_equals_a_direct_call(positions):
    vectors = several()
    table = swept(vectors, layers=[0, -1, (0, 2)], operations=("add", "project_out"), positions=positions)
    for layers, label in (((0,), "0"), ((2,), "2"), ((0, 2), "0+2")):
        for multiplier in (-1.0, 2.0):
            result = rows_of(table, layers=label, operation="add", multiplier=multiplier)
            require_choices(result, *(Add(vectors[layer], multiplier, positions) for layer in layers))
        result = rows_of(table, layers=label, operation="project_out")
        require_choices(result, *(ProjectOut(vectors[layer], positions=positions) for layer in layers))
        assert result[["multiplier", "dose"]].isna().all(axis=None)
    assert len(table) == 8 * (1 + 3 * 2 + 3)


def require_choices(rows, *operations):
    """The rows are those of a direct call under these operations."""
    direct = choice_logits(MODEL, PROMPTS, (" yes", " no"), *operations)
    np.testing.assert_allclose(rows[SCORES], direct[SCORES], rtol=1e-6)
    assert rows["choice"].tolist() == [0 if x > 0 else 1 for x in direct["logit_difference"]]
    assert rows["text"].isna().all()
    assert set(rows["hook"]) == {"resid_post"}


def test_every_condition_of_a_generating_sweep_equals_a_direct_call():
    vectors = several(scale=9.0)
    table = swept(vectors, PROMPTS, layers=[1, 2], measure="generate", max_new_tokens=4)
    assert list(table) == [name for name in COLUMNS if name != "kind"]
    for layer, multiplier in itertools.product((1, 2), (-1.0, 2.0)):
        direct = generate(MODEL, PROMPTS, Add(vectors[layer], multiplier), max_new_tokens=4)
        assert rows_of(table, layers=str(layer), multiplier=multiplier)["text"].tolist() == direct
    assert rows_of(table, vector="none")["text"].tolist() == generate(MODEL, PROMPTS, max_new_tokens=4)
    assert table[["answer", "choice", *SCORES]].isna().all(axis=None)
    assert table["text"].nunique() > 8


SAMPLING = {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3}


@pytest.mark.parametrize("reuse", [True, False])
def test_every_draw_of_a_sweep_equals_a_direct_call_with_its_seed(reuse):
    vectors = several(scale=9.0)
    options = {"measure": "generate", "max_new_tokens": 4, "layers": [1], "seed": 3}
    table = swept(vectors, draws=3, reuse=reuse, **options, **SAMPLING)
    assert list(table) == [*COLUMNS[:2], "draw", *COLUMNS[2:]]
    assert table["prompt_id"].tolist() == [row for row in range(8) for _ in range(3)] * 3
    assert table["draw"].tolist() == [0, 1, 2] * 8 * 3
    assert (table.groupby("prompt_id")[["prompt", "split", "answer", "kind"]].nunique() == 1).all(axis=None)
    seeds = [3, derived_seed(3, 1), derived_seed(3, 2)]
    for multiplier in (0.0, -1.0, 2.0):
        operations = [Add(vectors[1], multiplier)] if multiplier else []
        rows = rows_of(table, multiplier=multiplier)
        for draw, seed in enumerate(seeds):
            direct = generate(MODEL, PROMPTS, *operations, max_new_tokens=4, seed=seed, **SAMPLING)
            assert rows_of(rows, draw=draw)["text"].tolist() == direct
    pairs = zip(table["text"], table["prompt"], strict=True)
    read = [read_answer(text, (" yes", " no"), prompt) for text, prompt in pairs]
    assert table["choice"].astype(object).where(table["choice"].notna(), None).tolist() == read
    assert table["choice"].notna().sum() > 3
    doses = [each.groupby("multiplier")["dose"].first() for each in (table, swept(vectors, **options))]
    np.testing.assert_allclose(*doses, rtol=1e-5)


def test_a_penalty_alone_is_greedy_and_one_draw_has_no_column():
    vectors = several(scale=9.0)
    options = {"measure": "generate", "max_new_tokens": 6, "layers": [1]}
    table = swept(vectors, repetition_penalty=2.0, **options)
    assert list(table) == COLUMNS
    direct = generate(MODEL, PROMPTS, Add(vectors[1], 2.0), max_new_tokens=6, repetition_penalty=2.0)
    assert rows_of(table, multiplier=2.0)["text"].tolist() == direct
    assert table["text"].tolist() != swept(vectors, **options)["text"].tolist()


def test_sampled_texts_of_plain_prompts_are_the_same_in_chunks_and_from_a_file(tmp_path):
    options = {"measure": "generate", "max_new_tokens": 3, "draws": 2, "controls": 2, **SAMPLING}
    options |= {"own_questions": PROMPTS, "control_layers": "chosen"}
    whole = swept(**options)
    for stored in ({"executor": in_order}, {"out": tmp_path / "table.parquet"}):
        pd.testing.assert_frame_equal(swept(**options, **stored), whole)
    assert whole["control"].any()


def test_texts_of_choice_questions_are_read():
    talking = favouring(MODEL, MODEL.tokenizer.convert_tokens_to_ids("True"), 4.0)
    own_questions = questions(choices=[(" True", " False")] * 4 + [("A", "B")] * 2 + [("B", "A")] * 2)
    options = {"measure": "generate", "max_new_tokens": 1, "layers": [1]}
    read = rows_of(swept(None, own_questions, model=talking, **options), vector="none")
    assert set(read["text"]) == {"True"}
    # "True" stands for (A): where B is the signal, that is choice 1.
    assert read["choice"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert swept(**options)["choice"].isna().any()


def median_norm(hook, layer):
    name = hook_name(hook, layer)
    each = []
    for prompt in PROMPTS:
        ids = MODEL.tokenizer(prompt)["input_ids"]
        stream = run_alone(MODEL, ids, len(ids), reads=[name])[1][name]
        each.append(np.median(np.linalg.norm(stream.flatten(1).double().numpy(), axis=-1)[1:]))
    return np.median(each)


@pytest.mark.parametrize("hook", ["resid_post", "z"])
def test_the_dose_is_the_added_length_over_the_stream_s_norm_on_these_questions(hook):
    vectors = several(hook=hook, scale=3.0)
    table = swept(vectors * 2.0, layers=[0, 2, (0, 2)], multipliers=[-0.5, 4.0])
    by_layer = {layer: 6.0 / median_norm(hook, layer) for layer in (0, 2)}
    for multiplier in (-0.5, 4.0):
        for layers, unit in (("0", by_layer[0]), ("2", by_layer[2]), ("0+2", max(by_layer.values()))):
            result = rows_of(table, layers=layers, multiplier=multiplier)["dose"]
            np.testing.assert_allclose(result, abs(multiplier) * unit, rtol=1e-4)


def test_callables_make_operations_and_are_named():
    vectors, calls = several(), []

    def twice(vector, multiplier, positions):
        calls.append((vector.layer, multiplier, positions))
        return Add(vector, 2 * multiplier, positions)

    table = swept(vectors, layers=[1], operations=(twice,), positions=last_token())
    require_choices(rows_of(table, operation="twice", multiplier=2.0), Add(vectors[1], 4.0, last_token()))
    assert calls == [(1, -1.0, last_token()), (1, 2.0, last_token())]
    dose = 2 * 2 * 4.0 / median_norm("resid_post", 1)
    np.testing.assert_allclose(rows_of(table, multiplier=2.0)["dose"], dose, rtol=1e-4)


def test_controls_have_the_vectors_length_are_marked_and_take_the_seed():
    table, again, other = (swept(layers=[0, 2], controls=3, seed=seed) for seed in (1, 1, 2))
    controls = rows_of(table, control=True)
    assert controls["vector"].unique().tolist() == ["random 1", "random 2", "random 3"]
    assert rows_of(table, control=False)["vector"].unique().tolist() == ["none", "made"]
    for layer in ("0", "2"):
        doses = rows_of(table, layers=layer, multiplier=2.0).groupby("vector")["dose"].first()
        np.testing.assert_allclose(doses, doses["made"], rtol=1e-5)
    assert rows_of(table, layers="2", multiplier=2.0, prompt_id=0)["logit_difference"].nunique() == 4
    pd.testing.assert_frame_equal(again, table)
    assert not np.allclose(controls["logit_difference"], rows_of(other, control=True)["logit_difference"])


def test_no_two_controls_of_several_vectors_are_the_same():
    vectors = {"one": several(0), "two": several(50)}
    table = swept(vectors, layers=[1], multipliers=[3.0], controls=12)
    controls = rows_of(table, control=True, prompt_id=0)
    assert controls["vector"].iloc[0] == "random 1 (one)"
    assert controls["vector"].nunique() == controls["logit_difference"].round(7).nunique() == 24
    assert controls["control_of"].tolist() == ["one"] * 12 + ["two"] * 12
    assert set(rows_of(table, control=False)["control_of"]) == {""}


def test_controls_by_name_are_marked_and_used():
    table = swept(layers=[1], multipliers=[2.0], controls={"shuffled": several(70)})
    require_choices(rows_of(table, control=True, vector="shuffled"), Add(several(70)[1], 2.0))
    assert set(table["control_of"]) == {""}


def key_of(row):
    """(layers, multiplier), with None for a projection, so that keys can be compared."""
    return row["layers"], None if np.isnan(row["multiplier"]) else row["multiplier"]


def best_by_hand(table, score):
    """(vector, operation) to the (layers, multiplier) that does best on the choosing half."""
    half = table[(table["split"] == "choose") & ~table["control"]].assign(score=score)
    best = {}
    for keys, rows in half[half["vector"] != "none"].groupby(["vector", "operation"], sort=False):
        means = rows.groupby(["layers", "multiplier", "dose"], dropna=False)["score"].mean().reset_index()
        top = means[means["score"] >= means["score"].max() - 1e-9].copy()
        top["first"] = [int(layers.split("+")[0]) for layers in top["layers"]]
        best[keys] = key_of(top.sort_values(["dose", "first"], kind="stable").iloc[0])
    return best


def at_best(table, best):
    """The rows of a sweep with controls everywhere that one with chosen layers has."""
    is_chosen = []
    for row in table.to_dict("records"):
        chosen = {keys for keys, condition in best.items() if condition == key_of(row)}
        owners = {vector for vector, operation in chosen if operation == row["operation"]}
        is_chosen.append(not row["control"] or (bool(owners) and row["control_of"] in {"", *owners}))
    return table[is_chosen].reset_index(drop=True)


def right(table):
    return (table["choice"] == table["answer"]).fillna(False).astype(float)


def direction(table):
    unsteered = table[table["vector"] == "none"].set_index("prompt_id")["logit_difference"]
    moved = table["logit_difference"] - table["prompt_id"].map(unsteered)
    return moved * np.sign(table["multiplier"]).fillna(1)


def changed(table):
    unsteered = table[table["vector"] == "none"].set_index("prompt_id")["text"]
    return (table["text"] != table["prompt_id"].map(unsteered)).astype(float)


RULES = {
    "accuracy": (questions(), {}, right),
    "shift": (questions(answers=None), {}, direction),
    "texts": (PROMPTS, {"measure": "generate", "max_new_tokens": 2}, changed),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shared", [False, True])
def test_controls_run_at_the_condition_that_does_best_on_the_choosing_half(rule, shared):
    own_questions, options, score = RULES[rule]
    controls = {"own": several(70), "other": several(80)} if shared else 3
    vectors = {"one": several(0), "two": several(50)}
    options |= {"layers": [0, 2, (0, 1)], "multipliers": [-2.0, -1.0, 1.0], "controls": controls}
    options |= {"operations": ("add", "project_out")}
    everywhere = swept(vectors, own_questions, **options)
    best = best_by_hand(everywhere, score(everywhere))
    assert len(best) == 4
    expected = at_best(everywhere, best)
    assert expected["control"].sum() < everywhere["control"].sum() / 2
    for executor in (None, in_order):
        table = swept(vectors, own_questions, control_layers="chosen", executor=executor, **options)
        pd.testing.assert_frame_equal(table, expected, rtol=1e-4, atol=1e-5)
    for name in vectors:
        multipliers = table.loc[table["control_of"].isin(["", name]) & table["control"], "multiplier"]
        assert set(multipliers.isna()) == {True, False}, "controls of the projection and of the addition"


def test_controls_of_the_chosen_multiplier_serve_the_opposite_one_too():
    chosen = {"vector": "made", "operation": "add", "layers": "0", "hook": "resid_post", "multiplier": 1.0}
    options = {"multipliers": [-1.0, 1.0, 2.0], "control_layers": lambda table: pd.DataFrame([chosen])}
    table = swept(controls=2, **options)
    controls = rows_of(table, control=True)[["layers", "multiplier"]].drop_duplicates()
    assert controls.to_numpy().tolist() == [["0", 1.0]]
    result = against_controls(table).set_index(["layers", "multiplier"])["controls"]
    assert [result["0", each] for each in (-1.0, 1.0, 2.0)] == [2, 2, 0]


def test_a_function_selects_from_the_table_without_controls_and_must_name_conditions():
    tables = []

    def by_shift(table):
        tables.append(table)
        return choose(table, on="choose", report="report", value="shift", splits=0, resamples=1)

    table = swept(controls=20, control_layers=by_shift)
    pd.testing.assert_frame_equal(tables[0], table[~table["control"]])
    chosen = tuple(by_shift(tables[0])[["layers", "multiplier"]].iloc[0])
    controls = table[table["control"]]
    assert set(zip(controls["layers"], controls["multiplier"], strict=True)) == {chosen}
    result = against_controls(table).set_index(["layers", "multiplier"])
    assert result.loc[chosen, "controls"] == 20
    message = "lacks the columns operation, layers, hook, multiplier"
    assert_raises(message, swept, controls=1, control_layers=lambda _: pd.DataFrame({"vector": ["made"]}))


def test_by_default_there_are_enough_controls_for_p_below_5_percent_at_the_chosen_condition():
    table = sweep(MODEL, several(), questions(), multipliers=[-1.0, 2.0], progress=False)
    controls = rows_of(table, control=True)
    assert (controls["vector"].nunique(), controls["layers"].nunique()) == (20, 1)
    most = against_controls(table)["controls"].max()
    assert 1 / (1 + most) < 0.05


def test_if_no_prompt_has_the_choosing_split_all_prompts_decide():
    own = questions(factors=pd.DataFrame({"split": ["train", "test"] * 4}))
    table = swept(own_questions=own, controls=1, control_layers="chosen")
    ((layers, size),) = best_by_hand(table.assign(split="choose"), right(table)).values()
    controls = table[table["control"]]
    assert (set(controls["layers"]), set(controls["multiplier"])) == ({layers}, {size})


def test_divided_by_layers_the_multiplier_and_dose_are_those_of_the_quotient():
    table = swept(layers=[1, (0, 2)], multipliers=[2.0], divide_by_layers=True, controls=1)
    assert set(rows_of(table, vector="made", layers="1")["multiplier"]) == {2.0}
    both = rows_of(table, vector="made", layers="0+2")
    assert set(both["multiplier"]) == {1.0}
    require_choices(both, Add(several()[0], 1.0), Add(several()[2], 1.0))
    doses = [4.0 / median_norm("resid_post", layer) for layer in (0, 2)]
    np.testing.assert_allclose(both["dose"], max(doses), rtol=1e-4)
    assert set(rows_of(table, control=True, layers="0+2")["multiplier"]) == {1.0}


def test_several_vectors_keep_their_names_hooks_and_layers():
    vectors = {"one": several(0, layers=(0, 1)), "two": several(5, hook="mlp_out", layers=(2,))}
    rows = swept(vectors)[["vector", "layers", "hook"]].drop_duplicates().iloc[1:]
    assert rows.to_numpy().tolist() == [
        ["one", "0", "resid_post"], ["one", "1", "resid_post"], ["two", "2", "mlp_out"],
    ]  # fmt: skip


def test_the_split_is_disjoint_and_balanced_over_factors_and_answers_for_every_seed():
    """A factor with another level in each prompt ("id") does not change that."""
    factors = {"kind": ["x", "y"] * 20, "topic": ["p"] * 24 + ["q"] * 16, "id": range(40)}
    own_questions = questions(
        prompts=[f"{first} {second} :" for first in "abcd" for second in "abcdefghij"],
        choices=[(" yes", " no")] * 40,
        answers=[0, 0, 1, 1] * 10,
        factors=pd.DataFrame(factors),
    )
    splits = set()
    for seed in (0, 1, 2, 3, 3):
        table = swept(several().weighted({0: 1.0}), own_questions, multipliers=[1.0], seed=seed)
        assert (table.groupby("prompt_id")["split"].nunique() == 1).all()
        once = rows_of(table, vector="none")
        assert set(once["split"]) == {"choose", "report"}
        for names, most in ((["kind", "topic", "answer"], 1), (["kind"], 2), (["topic"], 2), (["answer"], 2)):
            counts = once.groupby([*names, "split"]).size().unstack("split", fill_value=0)
            assert (counts["choose"] - counts["report"]).abs().max() <= most
        splits.add(tuple(once["split"]))
    assert len(splits) == 4


def test_a_split_among_the_factors_is_used():
    split = ["choose", "report", "report", "choose"] * 2
    factors = pd.DataFrame({"kind": list("xxyyxxyy"), "split": split})
    table = swept(own_questions=questions(factors=factors), layers=[0])
    assert list(table) == COLUMNS
    assert table["split"].tolist() == split * 3


def test_parquet_holds_the_table(tmp_path):
    path = tmp_path / "sweep.parquet"
    table = swept(layers=[0, (1, 2)], operations=("add", "project_out"), out=path, controls=1)
    pd.testing.assert_frame_equal(pd.read_parquet(path), table)
    assert list(tmp_path.iterdir()) == [path]
    other = tmp_path / "made" / "texts.parquet"
    texts = swept(own_questions=PROMPTS, measure="generate", max_new_tokens=2, layers=[0], out=str(other))
    pd.testing.assert_frame_equal(pd.read_parquet(other), texts)


def test_a_vector_of_length_zero_is_rejected_by_name_and_layer():
    vectors = several().weighted({0: 1.0, 1: 0.0, 2: 1.0})
    assert_raises(r"vectors 'flat' have length zero at layers \[1\]", swept, {"flat": vectors})
    assert_raises(r"have length zero at layers \[1\]", swept, vectors, layers=[(0, 1)])
    assert_raises("vectors 'other' have length zero", swept, controls={"other": vectors})
    assert set(swept(vectors, layers=[0, 2])["layers"]) == {"", "0", "2"}
    table = swept({"flat": vectors}, layers=[1], controls=1, allow_zero=True)
    assert (table.groupby("prompt_id")["logit_difference"].nunique() == 1).all()
    assert set(rows_of(table, vector="flat")["dose"]) == {0.0}


def test_the_same_prompt_twice_is_never_split_between_the_halves():
    """Nor are groups that share a text: 1 and 4 are "b :", 0 and 7 are "a :"."""
    texts = [f"{word} :" for word in "abcdbefa"]
    for seed in range(6):
        once = rows_of(swept(own_questions=questions(prompts=texts), layers=[0], seed=seed), vector="none")
        assert (once.groupby("prompt")["split"].nunique() == 1).all()
        assert once.drop_duplicates("prompt")["split"].value_counts().tolist() == [3, 3]
        grouped = questions(prompts=texts, factors=pd.DataFrame({"group": list("aabbccdd")}))
        split = rows_of(swept(own_questions=grouped, layers=[0], seed=seed), vector="none")["split"]
        assert split.iloc[[0, 1, 4, 5, 6, 7]].nunique() == 1


@pytest.mark.parametrize("fourth", ["d", None, NAN, pd.NA])
def test_prompts_of_a_group_are_in_the_same_half_and_those_without_are_one_group(fourth):
    groups = pd.Series(["a", "a", fourth, fourth, "b", "b", fourth, "c"], dtype=object)
    table = swept(own_questions=questions(factors=pd.DataFrame({"group": groups})), layers=[0])
    split = rows_of(table, vector="none").groupby("group", dropna=False)["split"]
    assert (split.nunique() == 1).all()
    assert sorted(split.first()) == ["choose", "choose", "report", "report"]


SAME_NAME = [lambda vector, m, at: Add(vector, m, at), lambda vector, m, at: Add(vector, -m, at)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"own_questions": PROMPTS}, ValueError, "measure='choice' needs ChoiceQuestions"),
        ({"own_questions": (), "measure": "generate"}, ValueError, "at least one prompt"),
        ({"own_questions": "a b c", "measure": "generate"}, (ValueError, TypeError), "questions"),
        ({"multipliers": []}, ValueError, "operation 'add' needs multipliers; none given"),
        ({"multipliers": [1.0, 1.0]}, ValueError, "requested twice"),
        ({"operations": SAME_NAME}, ValueError, "requested twice"),
        ({"operations": ("subtract",)}, ValueError, "'subtract' is unknown: use 'add', 'project_out' or a"),
        ({"operations": ()}, ValueError, "no operations given"),
        ({"layers": [3]}, IndexError, "layer 3 is out of range"),
        ({"layers": [(0, 0)]}, ValueError, "name the same block twice"),
        ({"layers": [0, -3]}, ValueError, "requested twice"),
        ({"layers": []}, ValueError, "no layers given"),
        ({"controls": -1}, ValueError, "controls=-1: give how many"),
        ({"controls": {"none": several()}}, ValueError, "controls named .*none.*has that name"),
        ({"controls": {"made": several()}}, ValueError, "controls named .*made.*has that name"),
        ({"vectors": {}}, ValueError, "no vectors given"),
        ({"vectors": several(layers=(0, 1)), "layers": [2]}, KeyError, "no vector at layer 2"),
        ({"vectors": {"none": several()}}, ValueError, "'none' is the name of the unsteered condition"),
        *(
            ({"factors": pd.DataFrame({name: range(8)})}, ValueError, rf"factors \['{name}'\]")
            for name in ("dose", "prompt", "text", "draw")
        ),
        ({"positions": token(4)}, EmptySelectionError, r"token\(4\) selects no token of"),
        ({"measure": "generate", "draws": 2}, ValueError, "draws=2, temperature=0.0: .* above 0 for several"),
        ({"measure": "generate", "draws": 0, "temperature": 1.0}, ValueError, "draws=0, .*one draw or more"),
        ({"draws": 2, "temperature": 1.0}, ValueError, "temperature=1.0, draws=2 with measure='choice'"),
        ({"repetition_penalty": 1.1}, ValueError, "repetition_penalty=1.1 with measure='choice'"),
        ({"measure": "generate", "repetition_penalty": -1.0}, ValueError, "-1.0: expected a number"),
    ],
)
def test_bad_input_is_rejected(options, error, message):
    options = {"multipliers": [1.0]} | options
    factors = questions(factors=options.pop("factors", None))
    assert_raises(message, swept, **({"own_questions": factors} | options), error=error)


def test_a_sweep_changes_neither_vectors_nor_questions_nor_model():
    vectors, own_questions = several(), questions()
    values, factors = vectors.values.clone(), own_questions.factors.copy()
    hooks, weights = all_hooks(MODEL), weights_of(MODEL)
    swept(vectors, own_questions, controls=1, operations=("add", "project_out"))
    assert torch.equal(vectors.values, values)
    assert own_questions.factors.equals(factors)
    assert all_hooks(MODEL) == hooks
    assert all(torch.equal(weight, weights[name]) for name, weight in MODEL.state_dict().items())


def test_if_neither_choice_is_likelier_none_is_chosen():
    model = make_model(word_tokenizer())
    model.W_U[:] = model.b_U[:] = 0.0
    table = swept(model=model)
    assert (table["logit_difference"] == 0).all()
    assert table["choice"].isna().all()


def test_one_vector_is_swept_as_a_set_of_one():
    one = swept(several()[1], controls=1)
    pd.testing.assert_frame_equal(one, swept(several()[1].as_vectors(), controls=1))
    assert set(swept({"own": several()[1]}, controls=1)["vector"]) == {"none", "own", "random 1"}


def test_a_stored_sweep_may_not_depend_on_a_hook(tmp_path):
    out = tmp_path / "table.parquet"
    with MODEL.hooks([("blocks.0.hook_resid_post", lambda stream, hook: stream)]):
        assert_raises(r"there is a hook at blocks\.0\.hook_resid_post", swept, out=out)
        swept()
    assert not list(tmp_path.iterdir())
    swept(out=out)


def test_the_label_of_a_prompt_is_a_factor_its_message_or_the_prompt():
    prompts = [ChatPrompt(prompt, f"say {prompt}") for prompt in PROMPTS]
    plain, table = swept(layers=[0]), swept(own_questions=questions(prompts=prompts), layers=[0])
    assert list(plain["label"]) == list(plain["prompt"])
    assert list(table["label"]) == [f"say {prompt}" for prompt in PROMPTS] * 3
    pd.testing.assert_frame_equal(table.drop(columns="label"), plain.drop(columns="label"))
    assert digest(questions(prompts=prompts)) == digest(questions())  # an interrupted sweep continues
    factors = pd.DataFrame({"label": [1, 1, 0, 0] * 2})
    table = swept(own_questions=questions(answers=None, factors=factors), layers=[0])
    assert list(table) == [name for name in COLUMNS if name != "kind"]
    assert list(table["label"]) == [1, 1, 0, 0] * 6
    assert (table.groupby("split")["label"].mean() == 0.5).all()
    assert table["answer"].isna().all()
    assert table["choice"].notna().all()
