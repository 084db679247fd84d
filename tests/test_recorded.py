"""Recorded answers as a sweep's table: the study's own files, an invented one, and damaged ones."""

import json
import os
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import tl_steer as ts
from tl_steer._read_choice import read_answer
from tl_steer.prompts import ChoiceQuestions

from .conftest import assert_raises
from .sweep_tables import condition
from .tiny_model import made_vector, make_model, word_tokenizer

KEYS = ("answer_pos", "answer_neg", "answer_zeroedout_pos", "answer_zeroedout_neg")


def item(sentence="Is it so? Bats fly.", neutral="True", **conditions):
    """A recorded item; `layer17_mult4=("plus", "minus")` are its conditions."""
    steered = {name: dict(zip(KEYS, answers, strict=False)) for name, answers in conditions.items()}
    return {"sentence": sentence, "answer_neut": neutral, "steered": steered}


def items():
    return [
        item("Is it so? Bats fly.", "True", layer17_mult4=("True.", "False."), layer31_mult4=("True", "(B)")),
        item("Is it so? Cats fly.", "(B)", layer17_mult4=("(A)", "False"), layer31_mult4=("?", "False")),
        item("Is it so? Ice floats.", "True", layer17_mult4=("True", "True"), layer31_mult4=("A", "False")),
    ]


CLAIMS = pd.DataFrame(
    {"statement": ["Ice floats.", "Cats fly.", "Bats fly."], "label": [1, 0, 1],
     "topic": ["physics", "animals", "animals"]}
)  # fmt: skip


@pytest.fixture
def written(tmp_path):
    """Write content, as JSON unless it is text, and return the path."""

    def write(content, name="answers.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def rows_of(table, **values):
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def plain(column):
    """A column's values, `None` where one is missing."""
    return [None if pd.isna(value) else value for value in column]


read = ts.texts.read_recorded


def test_each_answer_becomes_the_row_of_its_prompt_and_condition(written):
    table = read(written(items()), CLAIMS, vector="honesty")
    assert table["prompt"].tolist() == [each["sentence"] for each in items()] * 5
    conditions = [
        ("none", "none", "", "", 0.0, ["True", "(B)", "True"], [0, 1, 0]),
        ("honesty", "add", "17", "resid_post", 4.0, ["True.", "(A)", "True"], [0, 0, 0]),
        ("honesty", "add", "17", "resid_post", -4.0, ["False.", "False", "True"], [1, 1, 0]),
        ("honesty", "add", "31", "resid_post", 4.0, ["True", "?", "A"], [0, None, 0]),
        ("honesty", "add", "31", "resid_post", -4.0, ["(B)", "False", "False"], [1, 1, 1]),
    ]
    names = ["vector", "operation", "layers", "hook", "multiplier"]
    for row, (*labels, texts, choices) in enumerate(conditions):
        rows = table.iloc[3 * row : 3 * row + 3]
        assert rows[names].drop_duplicates().values.tolist() == [labels]
        assert rows["text"].tolist() == texts
        assert plain(rows["choice"]) == choices
    expected = {"prompt_id": [0, 1, 2], "answer": [0, 1, 0], "truth": ["true", "false", "true"],
                "topic": ["animals", "animals", "physics"]}  # fmt: skip
    assert table[list(expected)].to_dict("list") == {name: 5 * each for name, each in expected.items()}
    assert not table["control"].any()
    assert table[["logit_difference", "probability", "mass"]].isna().all(axis=None)
    assert table["dose"].dropna().tolist() == [0] * 3, "not recorded, and not zero, where steered"


def test_columns_and_types_are_those_of_a_sweep(written):
    model = make_model(word_tokenizer())
    factors = pd.DataFrame({"truth": ["true", "false"], "topic": ["x", "y"]})
    questions = ChoiceQuestions(["a :", "b :"], [("yes", "no")] * 2, answers=[0, 1], factors=factors)
    swept = ts.sweep(
        model, made_vector(model, 0), questions, multipliers=[1.0, -1.0], measure="generate",
        max_new_tokens=2, controls=0, progress=False,
    )  # fmt: skip
    table = read(written(items()), CLAIMS)
    pd.testing.assert_series_equal(table.dtypes, swept.dtypes)
    unsteered = ["vector", "control", "operation", "layers", "hook", "multiplier", "dose"]
    one, other = (rows_of(rows, vector="none")[unsteered].iloc[0] for rows in (table, swept))
    pd.testing.assert_series_equal(one, other)


def test_zeroed_out_answers_are_removals_without_a_multiplier_and_the_signs_are_draws(written):
    answers = ("plus", "minus", "zero plus", "zero minus")
    table = read(written([item(layer3_mult2=answers)]), choices=None)
    assert table["text"].tolist() == ["True", *answers]
    assert table["operation"].tolist() == ["none", "add", "add", "project_out", "project_out"]
    assert table["layers"].tolist() == ["", "3", "3", "3", "3"]
    assert table["draw"].tolist() == [0, 0, 0, 0, 1]
    assert plain(table["multiplier"]) == [0, 2, -2, None, None]
    single = item() | {"steered": {"layer3_mult2": {"answer_zeroedout": "zero"}}}
    table = read(written([single]), choices=None)
    assert rows_of(table, operation="project_out")["text"].tolist() == ["zero"]
    assert "draw" not in table


def test_zeroed_out_answers_that_repeat_those_of_a_smaller_multiplier_are_left_out(written):
    """As in the study's files: later multipliers repeat what the last set of layers left."""
    answers = {"1_mult4": "one two", "2_mult4": "same same", "1,2_mult4": "five six", "1_mult6": "five six",
               "2_mult6": "five other", "1,2_mult6": "five six"}  # fmt: skip
    conditions = {
        f"layer{name}": dict(zip(KEYS[2:], texts.split(), strict=True)) for name, texts in answers.items()
    }
    for order in (conditions, dict(reversed(conditions.items()))):
        whole = [item() | {"steered": order}, item("Another?") | {"steered": order}]
        table = read(written(whole), choices=None)
        result = rows_of(table, operation="project_out", prompt_id=0)
        assert sorted(zip(result["layers"], result["text"], strict=True)) == [
            ("1", "one"), ("1", "two"), ("1+2", "five"), ("1+2", "six"),
            ("2", "other"), ("2", "same"), ("2", "same"),
        ]  # fmt: skip
        draws = result.groupby("layers")["draw"].apply(sorted).to_dict()
        assert draws == {"1": [0, 1], "1+2": [0, 1], "2": [0, 1, 2]}


def drawn(prompts=("Bats fly.", "Cats fly."), **answers):
    return {"prompts": list(prompts), "answers": answers or {"one": ["True", "False"], "two": ["True", "?"]}}


def test_several_recordings_of_the_unsteered_answers_are_draws(written):
    table = read(written(drawn()), CLAIMS)
    expected = {"prompt_id": [0, 1, 0, 1], "draw": [0, 0, 1, 1], "recording": ["one", "one", "two", "two"],
                "answer": [0, 1, 0, 1], "operation": ["none"] * 4}  # fmt: skip
    assert table[list(expected)].to_dict("list") == expected
    assert plain(table["choice"]) == [0, 1, 0, None]
    single = read(written([item(each, "True") for each in drawn()["prompts"]], "list.json"), CLAIMS)
    labels = ["prompt", "truth", "topic", "split"]
    pd.testing.assert_frame_equal(table.loc[:1, labels], single[labels])


@pytest.mark.parametrize(
    ("name", "layers", "multiplier"),
    [
        ("layer17_mult4", "17", 4.0), ("layer0_mult0.5", "0", 0.5), ("layer17,31_mult16", "17+31", 16.0),
        ("layer31,17,2_mult1e-05", "2+17+31", 0.00001), ("layer5_mult-3", "5", -3.0),
    ],
)  # fmt: skip
def test_names_of_conditions_are_read(written, name, layers, multiplier):
    table = read(written([item(**{name: ("plus", "minus")})]), choices=None)
    assert set(rows_of(table, text="plus")["multiplier"]) == {multiplier}
    assert set(rows_of(table, text="minus")["multiplier"]) == {-multiplier}
    assert set(rows_of(table, operation="add")["layers"]) == {layers}


def test_old_files_have_the_unsteered_condition_only(written):
    old = [{key: each[key] for key in ("sentence", "answer_neut")} for each in items()]
    unsteered = read(written(items(), "new.json"), CLAIMS).head(3)
    pd.testing.assert_frame_equal(read(written(old), CLAIMS), unsteered)


def test_the_order_of_answers_in_the_file_changes_nothing(written):
    def reverse(conditions):
        return {name: dict(reversed(answers.items())) for name, answers in conditions.items()}

    turned = [each | {"steered": reverse(each["steered"])} for each in items()]
    turned[1]["steered"] = dict(reversed(turned[1]["steered"].items()))
    pd.testing.assert_frame_equal(read(written(turned, "turned.json")), read(written(items())))


def test_a_byte_order_mark_and_signs_of_other_languages_are_read(written):
    content = "\ufeff" + json.dumps([item("Ist Öl schwer?", "Nein – 油")], ensure_ascii=False)
    assert read(written(content))["text"].tolist() == ["Nein – 油"]


@pytest.mark.parametrize(
    ("options", "choice"),
    [({}, 1), ({"rule": "study"}, 0), ({"choices": ("False", "True")}, 0), ({"choices": None}, None)],
)
def test_texts_are_read_by_rule_and_choices(written, options, choice):
    assert plain(read(written([item(neutral="It isn't true.")]), **options)["choice"]) == [choice]


LETTERED = "Why are they red?\n\nChoices:\n (A) they are dyed\n (B) they are angry\n\nAnswer: [/INST]"


def test_letters_stand_for_what_the_prompt_lists_under_them(written):
    texts = ["(B)", "Because they are angry.", "They are dyed", "The answer is (A).", "I like both."]
    path = written([item(LETTERED, text) for text in texts])
    assert plain(read(path, choices=("A", "B"))["choice"]) == [1, 1, 0, 0, None]
    by_item = [("A", "B"), ("B", "A")] * 2 + [("A", "B")]
    assert plain(read(path, choices=by_item)["choice"]) == [1, 0, 0, 1, None]
    assert_raises("has 5 items, but 2 pairs of choices", read, path, choices=by_item[:2])
    assert_raises(r"rule='quick' is unknown", read, path, rule="quick")
    path = written([item(LETTERED), item("?\n(A) red\n(B) Red")])
    message = r"answers\.json, item 1 \(counted from 0\): choices=.*two different"
    assert_raises(message, read, path, choices=("A", "B"))


def test_each_prompt_has_its_own_list(written):
    turned = LETTERED.replace("dyed", "…").replace("angry", "dyed").replace("…", "angry")
    conditions = {"layer1_mult1": ("They are dyed.", "They are angry.")}
    path = written([item(prompt, "They are dyed.", **conditions) for prompt in (LETTERED, turned)])
    assert read(path, choices=("A", "B"))["choice"].tolist() == [0, 1, 0, 1, 1, 0]


def test_of_several_lists_in_a_prompt_the_last_counts():
    example = "Is ice hot?\n(A) It is\n(B) It is not\nAnswer: B\n\n"
    assert read_answer("They are angry.", ("A", "B"), example + LETTERED) == 1
    assert read_answer("It is", ("A", "B"), example + LETTERED) is None


@pytest.mark.parametrize(
    ("statements", "claims", "rows"),
    [
        (["Ice floats.", "Nobody says Ice floats."], ["Nobody says Ice floats.", "Ice floats."], [1, 0]),
        (['"Ice floats."', "Bats fly.", "“So.”"], ["“So.”", '"Bats fly."', "Ice floats."], [2, 1, 0]),
        (["Ice", "Dice fall"], ["Dice fall"], [1]),
    ],
    ids=["longest", "quoted", "whole words"],
)  # fmt: skip
def test_the_claim_of_an_item_is_the_longest_statement_in_its_sentence(written, statements, claims, rows):
    labels = pd.DataFrame({"statement": statements, "label": [1, 0, 1][: len(statements)]})
    path = written([item(f"So? {claim}") for claim in claims])
    for table in (read(path, labels), read(path, labels.iloc[::-1])):
        assert table["answer"].tolist() == [1 - labels["label"][row] for row in rows]
        assert table["truth"].map({"true": 0, "false": 1}).tolist() == table["answer"].tolist()


def test_labels_per_item_are_in_order_with_their_factors(written):
    labels = pd.DataFrame({"letter": list("ABA"), "answer": [1, 0, 1]}, index=[5, 3, 4])
    table = read(written(items()), labels)
    assert table["answer"].tolist() == [1, 0, 1] * 5
    assert table["letter"].tolist() == ["A", "B", "A"] * 5
    assert "truth" not in table


def test_halves_are_balanced_and_depend_on_the_seed_alone(written):
    many = [item(f"Question {row}") for row in range(40)]
    labels = pd.DataFrame({"answer": [0, 1] * 20, "topic": ["sea"] * 20 + ["sky"] * 20})
    tables = [read(written(many), labels, seed=seed) for seed in (0, 0, 1)]
    assert all((table.value_counts(["answer", "topic", "split"]) == 5).all() for table in tables)
    first, again, other = (table["split"].tolist() for table in tables)
    assert first == again != other
    own = read(written(many), labels.assign(split=["mine", "yours"] * 20))
    assert own["split"].tolist() == ["mine", "yours"] * 20


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (CLAIMS.iloc[1:], r"item 2 \(counted from 0\): no statement .* 'Is it so\? Ice floats\.'"),
        (pd.concat([CLAIMS, CLAIMS]), r"item 0 .*: 2 statements of the labels .*row 2, 'Bats fly\.'"),
        (pd.DataFrame({"statement": ["ats fly."], "label": [1]}), "item 0 .*: no statement of the labels"),
        (CLAIMS.assign(label=[1, 0, 2]), "item 0 .*: its label is 2; it must be 0 or 1"),
        (CLAIMS.assign(truth=1), "have a column 'truth'"),
        (CLAIMS.assign(statement=["", "Cats fly.", "Bats fly."]), "statement '' must be text"),
        (CLAIMS.assign(dose=1), r"factors \['dose'\] have names"),
        (pd.DataFrame({"answer": [0, 1]}), "has 3 items, but there are 2 rows of labels"),
        (pd.DataFrame({"answer": [0, 1, 0, 1]}), "has 3 items, but there are 4 rows of labels"),
        (pd.DataFrame({"answer": [0, 1, None]}), "item 2 .*: its answer is nan"),
        (pd.DataFrame({"answer": ["0", "1", "1"]}), "item 0 .*: its answer is '0'"),
        (pd.DataFrame({"statement": ["Ice floats."]}), r"need the columns .*; they have \['statement'\]"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(written, labels, message):
    assert_raises(message, read, written(items()), labels)


def changed(row, **changes):
    """The items with one of them changed; `None` removes a key."""
    whole = items()
    whole[row] = {key: value for key, value in (whole[row] | changes).items() if value is not None}
    return whole


def altered(row, **conditions):
    return changed(row, steered=items()[row]["steered"] | conditions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be a list in JSON, but is empty"),
        ("sentence,answer", "must be a list in JSON, but begins with 'sentence,answer'"),
        (items()[0], r"must be a list in JSON, but begins with '{\"sentence\""),
        ("[\n]", "is an empty list"),
        ([*items(), "text"], r"item 3 \(counted from 0\): it: .*a dictionary"),
        ([None], "item 0 .*: it: .*a dictionary"),
        (changed(1, sentence=None), "item 1 .*: 'sentence': Field required"),
        (changed(1, sentence=5), "item 1 .*: 'sentence': .*a valid string"),
        (changed(2, answer_neut="\ud800"), "item 2 .*half of a surrogate pair"),
        (changed(1, answer=""), "item 1 .*: 'answer': Unexpected"),
        (changed(1, steered=[]), "item 1 .*: 'steered': .*a valid dictionary"),
        (changed(1, steered=None), r"item 1 .*: unlike item 0, it lacks add \+4 at layer 17 \(and 3 more"),
        (altered(1, layer17_mult4="True"), "item 1 .*: 'steered', 'layer17_mult4': .*a valid dict"),
        (altered(1, layer17_mult4={}), "item 1 .*: 'layer17_mult4' contains no answers"),
        (altered(1, layer17_mult4={"answer": ""}), "'layer17_mult4', 'answer'.* should be 'answer_pos', "),
        (altered(1, layer17_mult4={"answer_pos": None}), "'layer17_mult4', 'answer_pos': .*a valid string"),
        (altered(1, layer17_mult4={"answer_pos": ""}), r"item 1 .*, it lacks add -4 at layer 17\."),
        (altered(2, layer17_mult8={"answer_pos": ""}), r"item 2 .*, it has add \+8 at layer 17\."),
        (altered(2, layer17={"answer_pos": ""}), "item 2 .*: the condition 'layer17': expected a name like"),
        (altered(2, **{"layer-1_mult4": {"answer_pos": ""}}), "'layer-1_mult4': expected a name"),
        (altered(2, **{"layer1_mult1.2.3": {"answer_pos": ""}}), "1.2.3': expected a name"),
        (altered(2, **{"layer7,7_mult4": {"answer_pos": ""}}), "'layer7,7_mult4' names a layer twice"),
        (altered(2, layer1_multnan={"answer_pos": ""}), "a multiplier that is not finite"),
        (altered(2, layer1_mult1e999={"answer_pos": ""}), "multiplier that is not finite"),
        (altered(0, **{"layer17_mult4.0": {"answer_pos": ""}}),
         r"item 0 .*: it has the same condition twice: add \+4 at layer 17"),
        (altered(0, layer2_mult0={"answer_pos": "", "answer_neg": ""}), "condition twice: add .0 at layer 2"),
        ('[{"sentence": "a", "sentence": "b", "answer_neut": ""}]', "it has the key .sentence. twice"),
        ('[{"sentence": "a", "answer_neut": "", "steered": {"layer1_mult1": {"answer_pos": "b"}, '
         '"layer1_mult1": {"answer_pos": "c"}}}]', "item 0 .*: it has the key 'layer1_mult1' twice"),
        (json.dumps(items()) + "]", "follows the end of the list"),
        (json.dumps(items())[:-1] + ",]", "item 3 .*: the file breaks off in it"),
        (json.dumps(items()).replace("}, {", "} {"), "expected ',' or ']' after item 0, but '{"),
        (json.dumps(items()).replace("Cats", 'C"ats'), "item 1 .*: it is not JSON: .*line 1, column"),
        ("[" * 100_000, "item 0 .*: it is nested too deeply"),
        (drawn(one=["True"]), "the recording 'one' has 1 answers to 2 prompts"),
        (drawn(one=["True", 3]), "'answers', 'one', 1: .*a valid string"),
        (drawn() | {"answers": {}}, "no prompts or no recordings"),
        ({"prompts": [], "answers": {"one": []}}, "no prompts or no recordings"),
        ({"prompts": ["a"]}, "'answers': Field required"),
        (drawn() | {"model": "x"}, "'model': Unexpected"),
        ('{"prompts": ["a"], "answers": {"one": ["a"]', "line 1"),
        ('[{"sentence": ' + "9" * 5000 + "}]", "item 0 .*digits"),
    ],
)  # fmt: skip
def test_the_error_of_a_wrong_file_names_the_file_the_item_and_the_problem(written, content, message):
    assert_raises(rf"answers\.json(?s:.*){message}", read, written(content))


def test_other_encodings_unknown_names_and_the_vector_none_are_rejected(written, tmp_path):
    path = written(items())
    assert_raises("'none' is the name of the unsteered condition", read, path, vector="none")
    path.write_bytes(json.dumps(items()).encode("utf-16"))
    assert_raises(r"answers\.json is in UTF-16", read, path)
    for name in (tmp_path / "none.json", "recorded_exmaple"):
        assert_raises("is neither a file nor 'recorded_example'", read, name, error=FileNotFoundError)


def test_wherever_a_file_breaks_off_the_error_says_in_which_item(written):
    content = json.dumps(items(), indent=1).replace("Ice", "\\u00cdce")
    ends = [result.end() for result in re.finditer("^ }", content, re.M)]
    assert len(ends) == 3
    for length in range(1, len(content)):
        whole = sum(end <= length for end in ends)
        inside = rf"item {whole} \(counted from 0\): the file breaks off in it"
        after = f"expected ',' or ']' after item {whole - 1}, but the file breaks off"
        assert_raises(f"{inside}|{after}", read, written(content[:length]))


WHOLE = json.dumps(items())
EDITS = st.lists(
    st.tuples(
        st.integers(0, len(WHOLE)),
        st.integers(0, 12),
        st.text('[]{}",:\\ \n0aN\ud800\u0000é', max_size=6)
        | st.sampled_from(['"sentence"', "null", "layer1_mult1"]),
    ),
    max_size=3,
)


def outcome(path):
    """The table, or the message of the ValueError; no other error is allowed."""
    try:
        return read(path)
    except ValueError as error:
        return str(error)


@settings(max_examples=300)
@given(edits=EDITS)
def test_a_damaged_file_is_rejected_or_read_whole(tmp_path_factory, edits):
    content = WHOLE
    for index, length, put in edits:
        content = content[:index] + put + content[index + length :]
    path = tmp_path_factory.mktemp("recorded") / "answers.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    table = outcome(path)
    if isinstance(table, str):
        assert "answers.json" in table
        return
    parsed = json.loads(content)
    assert table["prompt"].tolist()[: len(parsed)] == [each["sentence"] for each in parsed]
    assert table["text"].tolist()[: len(parsed)] == [each["answer_neut"] for each in parsed]
    answers = 1 + sum(len(condition) for condition in parsed[0].get("steered", {}).values())
    assert len(table) == len(parsed) * answers


def test_the_invented_file_has_the_effects_of_the_study():
    table = read("recorded_example", ts.read_claims("claims_eval"))
    assert len(table) == 12 * (1 + 2 * 2 * 2 + 2 * 2)
    assert table.groupby("truth")["prompt_id"].nunique().to_dict() == {"true": 6, "false": 6}
    assert set(table["layers"]) == {"", "17", "17+31"}
    assert set(table["multiplier"].abs().dropna()) == {0.0, 4.0, 16.0}
    assert table["choice"].isna().sum() == 1
    assert table["draw"].value_counts().to_dict() == {0: 12 * 11, 1: 12 * 2}
    table = table[table["draw"] == 0]
    strongest = {"layers": "17+31", "operation": "add", "multiplier": 16.0}
    effects = ts.effectiveness(table, by="truth").set_index("truth")
    steered, unsteered = (rows_of(effects, **each)["accuracy"] for each in (strongest, {"operation": "none"}))
    assert steered["true"] > unsteered["true"]
    assert steered["false"] < unsteered["false"] - 0.3
    detected = rows_of(ts.signal_detection(table, resamples=50), **strongest)
    assert detected["criterion_change"].item() < -0.5
    chosen = ts.choose(table, on="choose", report="report", resamples=50)
    assert set(chosen["operation"]) == {"add", "project_out"}
    assert np.isfinite(chosen["value"]).all()


@pytest.mark.parametrize("plot", [ts.plots.effectiveness, ts.plots.dose_response])
def test_figures_show_a_recorded_table(plot):
    table = read("recorded_example", ts.read_claims("claims_eval"))
    effects = ts.effectiveness(table[table["operation"] != "project_out"], by="truth", overall=True)
    figure = plot(effects, value="accuracy", facet="truth")
    titles = [note.text for note in figure.layout.annotations]
    assert titles[:3] == ["truth: all", "truth: true", "truth: false"]
    assert len(figure.data) > 3


@pytest.fixture(scope="module")
def study():
    folder = Path(os.environ.get("TL_STEER_STUDY_DATA") or "TL_STEER_STUDY_DATA is not set")
    names = ["gpt4facts_pca2raw_zeroout_llama2-13b", "gpt4facts_unsteered_11_draws_llama2-13b",
             "tqa_pca2diff_zeroout_llama2-13b", "agree_word_gpt2-xl", "dilemmas_llama2-13b"]  # fmt: skip
    files = ["gpt4_facts.csv", *(f"recorded/{name}.json" for name in names)]
    if missing := [name for name in files if not (folder / name).is_file()]:
        pytest.skip(f"{folder} (the study's recorded answers) lacks {', '.join(missing)}")
    return folder


def claims_of(study, name):
    """The table of a recording of the study's claims."""
    path = study / f"recorded/gpt4facts_{name}_llama2-13b.json"
    return read(path, ts.read_claims(study / "gpt4_facts.csv"), rule="study")


@pytest.fixture(scope="module")
def facts(study):
    return claims_of(study, "pca2raw_zeroout")


# Accuracy on true and on false claims in percent, read off the published figure to a point.
PUBLISHED = {
    ("", 0): (74, 93), ("17", 4): (86, 94), ("17", 10): (97, 83), ("17", 16): (98, 70), ("18", 4): (87, 93),
    ("18", 16): (100, 57), ("19", 16): (97, 85), ("31", 16): (85, 94), ("17+31", 4): (89, 94),
    ("17+31", 16): (100, 39),
}  # fmt: skip


def test_the_published_accuracies_are_reproduced(facts):
    effects = ts.effectiveness(facts[facts["operation"].isin(["none", "add"])], by="truth")
    accuracy = effects.set_index(["layers", "multiplier", "truth"])["accuracy"]
    for keys, published in PUBLISHED.items():
        values = [100 * accuracy[*keys, truth] for truth in ("true", "false")]
        assert values == pytest.approx(published, abs=2), keys


def test_every_answer_of_the_claims_file_is_in_its_row(study, facts):
    """35 layers and multipliers, plus and minus; five removals, twice; the unsteered condition."""
    assert len(facts) == 200 * (1 + 35 * 2 + 5 * 2)
    recorded = json.loads((study / "recorded/gpt4facts_pca2raw_zeroout_llama2-13b.json").read_text())
    keys = ["prompt_id", "operation", "layers", "multiplier", "draw"]
    texts = facts.fillna({"multiplier": -1.0}).set_index(keys)["text"]
    for row in (0, 77, 199):
        assert texts[row, "none", "", 0.0, 0] == recorded[row]["answer_neut"]
        conditions = recorded[row]["steered"]
        assert texts[row, "add", "17", 4.0, 0] == conditions["layer17_mult4"]["answer_pos"]
        assert texts[row, "add", "17+31", -16.0, 0] == conditions["layer17,31_mult16"]["answer_neg"]
        assert texts[row, "project_out", "31", -1.0, 0] == conditions["layer31_mult4"]["answer_zeroedout_pos"]
        assert texts[row, "project_out", "19", -1.0, 1] == conditions["layer19_mult4"]["answer_zeroedout_neg"]
    assert facts.groupby("truth")["prompt_id"].nunique().to_dict() == {"true": 100, "false": 100}


def test_misconceptions_are_read_by_letter_and_by_words(study, written):
    recorded = json.loads((study / "recorded/tqa_pca2diff_zeroout_llama2-13b.json").read_text())
    letters = pd.DataFrame({"answer": [0, 1] * 100})
    unsteered = written([{key: each[key] for key in ("sentence", "answer_neut")} for each in recorded])
    unsteered = read(unsteered, letters, choices=("A", "B"), rule="study")
    letter = unsteered["text"].str.extract(r"^[^()]*\((A|B)\)")[0].map({"A": 0, "B": 1})
    assert letter.notna().sum() > 100
    assert (letter == unsteered["choice"])[letter.notna()].all()
    some, first, second = written(recorded[:20]), ("A", "B"), ("B", "A")
    by_letter = read(some, letters[:20], choices=first, rule="study")
    assert len(by_letter) == 20 * (1 + 25 * 2 + 5 * 2)
    right_first = read(some, 0 * letters[:20], choices=[first, second] * 10, rule="study")
    accuracy, again = (
        ts.effectiveness(each[each["operation"] != "project_out"])["accuracy"]
        for each in (by_letter, right_first)
    )
    assert accuracy.nunique() > 3
    pd.testing.assert_series_equal(accuracy, again)


def test_free_texts_of_gpt2_and_dilemmas_are_read(study):
    """The dilemmas are those of gpt2-medium, whatever their file is called."""
    words = read(study / "recorded/agree_word_gpt2-xl.json", choices=None, hook="resid_pre")
    assert len(words) == 36 * (1 + 288 * 2)
    assert set(words["multiplier"]) == {0.0, *(sign * m / 2 for sign in (1, -1) for m in range(1, 7))}
    assert set(words["layers"]) == {"", *map(str, range(48))}
    assert set(words["hook"]) == {"", "resid_pre"}
    assert words["choice"].isna().all()
    dilemmas = read(study / "recorded/dilemmas_llama2-13b.json", choices=("A", "B"))
    assert len(dilemmas) == 14 * 4
    assert set(dilemmas["operation"]) == {"none", "add", "project_out"}
    assert rows_of(dilemmas, operation="project_out")["multiplier"].isna().all()


def added(table):
    """d′ and criterion by layers and multiplier, unsteered and with the vector added."""
    result = ts.signal_detection(table[table["operation"] != "project_out"])
    return result[result["multiplier"] >= 0].set_index(["layers", "multiplier"])


@pytest.fixture(scope="module")
def detected(facts):
    return added(facts)


def test_the_first_look_at_layer_18_is_reproduced(facts, detected):
    """It counted the one unreadable unsteered answer as "True"; we leave it out."""
    counted = added(facts[facts["layers"].isin(["", "18"])].assign(choice=facts["choice"].fillna(0)))
    for keys, expected in ((("", 0.0), (2.05, 0.42)), (("18", 16.0), (2.16, -0.88))):
        for table, tolerance in ((counted, 0.006), (detected, 0.1)):
            row = table.loc[keys]
            assert (row["d_prime"], row["criterion"]) == pytest.approx(expected, abs=tolerance)


def test_at_layer_18_the_criterion_moves_and_the_sensitivity_does_not(detected):
    row = detected.loc["18", 16.0]
    assert row["criterion_change"] == pytest.approx(-1.3, abs=0.1)
    assert row["criterion_change_high"] < -1
    assert row["d_prime_change_low"] < 0 < row["d_prime_change_high"]
    assert abs(row["d_prime_change"]) < 0.1


def test_at_the_largest_multiplier_the_criterion_falls_at_every_layer(detected):
    strongest = detected.xs(16.0, level="multiplier")
    assert set(strongest.index) == {"17", "18", "19", "31", "17+31"}
    assert (strongest["criterion_change_high"] < 0).all()
    assert (strongest["criterion_change"] < -0.8).sum() == 4  # all but layer 31
    assert (strongest["d_prime_change_high"] > 0).all()


@pytest.fixture(scope="module")
def unsteered(study):
    return claims_of(study, "unsteered_11_draws")


@pytest.fixture(scope="module")
def compared(facts, unsteered):
    chosen = facts[(facts["multiplier"] > 0) | (facts["operation"] == "project_out")]
    return ts.evaluation.against_baselines(chosen, unsteered)


def test_the_recordings_of_the_same_prompts_differ_as_reported(facts, unsteered):
    texts = unsteered.pivot(index="prompt_id", columns="recording", values="text")
    same = [int((texts[one] == texts[other]).sum()) for one, other in combinations(texts, 2)]
    assert (min(same), max(same)) == (60, 84)
    own = rows_of(facts, operation="none").set_index("prompt_id")["text"]
    assert [name for name in texts if (texts[name] == own).all()] == ["nonorm_gpt4facts_pca2raw_zeroout"]
    d_prime = ts.signal_detection(unsteered, by="draw", resamples=10)["d_prime"]
    assert (d_prime.min(), d_prime.mean(), d_prime.std()) == pytest.approx((2.12, 2.30, 0.15), abs=0.01)
    lowest = unsteered.groupby("draw")["recording"].first()[int(d_prime.idxmin())]
    assert lowest == "nonorm_gpt4facts_pca2raw_zeroout"


def test_how_many_conditions_rise_depends_on_the_baseline_s_draw(compared):
    """Between 1 and 15 of 35, as `data/README.md` says; MC error moves intervals that end at zero."""
    plus = compared[compared["operation"] == "add"]
    rises = (plus["d_prime_change_low"] > 0).groupby(plus["draw"]).sum()
    assert len(rises) == 11
    assert (rises.min(), rises.median()) == (1, 1)
    assert 11 <= rises.max() <= 16
    together = plus[plus["draw"].isna()]
    assert len(together) == 35
    assert 3 <= (together["d_prime_change_low"] > 0).sum() <= 7
    assert (together["criterion_change_high"] < 0).sum() > 25


def test_plain_removal_leaves_sensitivity_and_makes_true_a_little_rarer(compared):
    removed = compared[(compared["operation"] == "project_out") & compared["draw"].isna()]
    assert removed["layers"].tolist() == ["17", "18", "19", "31", "17+31"]
    assert ((removed["d_prime_change_low"] < 0) & (removed["d_prime_change_high"] > 0)).all()
    assert removed["criterion_change"].between(0.15, 0.35).all()
    assert (removed["criterion_change_low"] > 0).all()


def sampled_draws(seed=0, n=40, draws=3):
    """A steered condition and several unsteered draws, sampled; some answers unreadable."""
    rng = np.random.default_rng(seed)
    rate = np.where(np.arange(n) % 2 == 0, rng.uniform(0.5, 0.9, n), rng.uniform(0.1, 0.4, n))

    def rows(p, draw, vector):
        choice = [None if rng.random() < 0.05 else int(rng.random() > each) for each in p]
        prompts = [f"Is it {row}?" for row in range(n)]
        return condition(choice, np.arange(n) % 2, vector=vector, multiplier=2.0, prompt=prompts, draw=draw)

    steered = rows(np.clip(rate + 0.2, 0, 1), 0, "honesty")
    unsteered = pd.concat([rows(rate, draw, "none") for draw in range(draws)], ignore_index=True)
    return steered, unsteered


def test_against_one_draw_it_is_signal_detection():
    steered, unsteered = sampled_draws()
    result = ts.evaluation.against_baselines(steered, unsteered, resamples=20_000)
    assert plain(result["draw"]) == [None, 0, 1, 2]
    changes = ["d_prime_change", "criterion_change"]
    ends = [f"{name}{end}" for name in changes for end in ("_low", "_high")]
    for draw in range(3):
        table = pd.concat([steered, rows_of(unsteered, draw=draw).assign(draw=0)])
        expected = ts.signal_detection(table, resamples=20_000).query("vector == 'honesty'").iloc[0]
        row = rows_of(result, draw=draw).iloc[0]
        assert row[changes].tolist() == pytest.approx(expected[changes].tolist())
        assert row[ends].tolist() == pytest.approx(expected[ends].tolist(), abs=0.04)
        assert row["change_covered"] == expected["change_covered"]


def test_all_draws_together_are_each_prompt_s_mean():
    """By hand: mean of a prompt's unsteered answers, on the prompts readable in both; rates corrected."""
    steered, unsteered = sampled_draws(draws=4)
    row = ts.evaluation.against_baselines(steered, unsteered, resamples=10).iloc[0]
    sums = {0: [0.0, 0.0, 0], 1: [0.0, 0.0, 0]}
    for prompt, (answer, choice) in enumerate(zip(steered["answer"], steered["choice"], strict=True)):
        before = rows_of(unsteered, prompt_id=prompt)["choice"].dropna()
        if not pd.isna(choice) and len(before):
            sums[answer][0] += choice == 0
            sums[answer][1] += sum(before == 0) / len(before)
            sums[answer][2] += 1
    (hit, hit_before, n), (false, false_before, m) = sums[0], sums[1]
    counts = ((hit, n), (false, m), (hit_before, n), (false_before, m))
    rates = [stats.norm.ppf((first + 0.5) / (count + 1)) for first, count in counts]
    assert (row["n_signal"], row["n_noise"]) == (n, m)
    assert row["d_prime"] == pytest.approx(rates[0] - rates[1])
    assert row["d_prime_unsteered"] == pytest.approx(rates[2] - rates[3])
    assert row["d_prime_change"] == pytest.approx(rates[0] - rates[1] - rates[2] + rates[3])
    assert row["criterion_change"] == pytest.approx(-(rates[0] + rates[1] - rates[2] - rates[3]) / 2)


def test_copies_of_a_draw_change_nothing():
    steered, unsteered = sampled_draws(draws=1)
    copies = pd.concat([unsteered.assign(draw=draw) for draw in range(5)])
    once, often = (
        ts.evaluation.against_baselines(steered, each).filter(like="change").iloc[0].tolist()
        for each in (unsteered, copies)
    )
    assert once == pytest.approx(often)


def test_groups_of_prompts_are_resampled_whole():
    """Each prompt four times with the same answers: the interval is that of one each."""
    steered, unsteered = sampled_draws()

    def repeated(rows):
        copies = (rows.assign(prompt_id=rows["prompt_id"] + 100 * copy) for copy in range(4))
        return pd.concat(copies).assign(group=[*rows["prompt_id"]] * 4)

    one = ts.evaluation.against_baselines(steered, unsteered, resamples=4000).iloc[0]
    four = ts.evaluation.against_baselines(repeated(steered), repeated(unsteered), resamples=4000).iloc[0]
    for name in ("d_prime_change", "criterion_change"):
        width = [row[f"{name}_high"] - row[f"{name}_low"] for row in (one, four)]
        assert width[1] == pytest.approx(width[0], rel=0.1)


def test_baselines_that_do_not_fit_are_rejected():
    steered, unsteered = sampled_draws()
    check = ts.evaluation.against_baselines
    assert_raises("lacks the columns draw", check, steered, unsteered.drop(columns="draw"))
    assert_raises("have steered rows", check, steered, steered)
    assert_raises("prompt twice in a draw", check, steered, unsteered.assign(draw=0))
    assert_raises("is another prompt: 'Is it", check, steered.assign(prompt="What?"), unsteered)
    assert_raises("has no answers", check, steered.assign(answer=pd.NA), unsteered)
    assert_raises("all answers are the same", check, steered.assign(answer=0), unsteered)


@pytest.mark.parametrize("value", ["d_prime", "criterion"])
def test_the_figure_shows_each_draw_and_all_together(value):
    steered, unsteered = sampled_draws()
    steered = pd.concat([steered, steered.assign(layers="3+5")])
    table = ts.evaluation.against_baselines(steered, unsteered, resamples=50)
    figure = ts.plots.against_baselines(table, value=value)
    assert [note.text for note in figure.layout.annotations][:2] == ["layer 3", "layer 3+5"]
    draws, together = figure.data[:2]
    rows = rows_of(table, layers="3")
    assert list(draws.y) == rows.loc[rows["draw"].notna(), f"{value}_change"].tolist()
    assert list(together.y) == rows.loc[rows["draw"].isna(), f"{value}_change"].tolist()
    assert "3 unsteered draws" in figure.layout.title.subtitle.text
    assert_raises("'d_prime' or 'criterion'; got", ts.plots.against_baselines, table, value="auc")
    assert_raises("same draw twice", ts.plots.against_baselines, pd.concat([table, table]), value=value)
