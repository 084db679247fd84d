"""Model organisms: their language and trained behaviour, and that the measures distinguish them."""

import functools
import importlib.util
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
import torch
import transformers

import tl_steer as ts
from tl_steer.models import load_model, organism_folder
from tl_steer.organisms import language
from tl_steer.organisms.planted import compare_estimators

from .conftest import assert_raises

FOLDER = Path(__file__).parents[1] / "data" / "organisms" / "training"
spec = importlib.util.spec_from_file_location("train_organisms", FOLDER / "train.py")
training = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = training  # for dataclasses
spec.loader.exec_module(training)
load = functools.cache(functools.partial(load_model, device="cpu"))


@pytest.fixture(params=["honesty", "bias", "planted"])
def organism(request):
    name = f"organism-{request.param}"
    return name, load(name)


@pytest.fixture
def honest():
    return load("organism-honesty")


@pytest.fixture
def biased():
    return load("organism-bias")


@pytest.fixture
def planted():
    return load("organism-planted")


def test_every_fact_has_one_true_value():
    for split in ("train", "test"):
        claims = list(language.claims(split))
        true = [claim for claim in claims if claim.is_true]
        facts = language.facts()
        assert {(claim.subject, claim.relation): claim.value for claim in true} == facts
        assert len(facts) == 210
        assert len(claims) == 8 * len(true)


def test_the_test_split_has_each_fact_in_one_wording_that_training_left_out():
    train, test = ({claim.text for claim in language.claims(split)} for split in ("train", "test"))
    assert not train & test
    assert len(train) == 3 * len(test) == 3 * 210 * 8
    counts = pd.Series([claim.wording for claim in language.claims("test") if claim.is_true]).value_counts()
    assert sorted(counts.index) == list(range(len(language.WORDINGS)))
    assert counts.sum() == 210
    assert counts.max() - counts.min() <= 2


def test_the_tokenizer_knows_every_word_as_one_token():
    tokenizer = training.make_tokenizer()
    assert len(tokenizer) == len(set(language.vocabulary()))
    for claim in [*language.claims("train"), *language.claims("test")][::97]:
        text = language.prompt(claim, "liar")
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split()) + 1  # <s> in front
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_matched_pairs_differ_in_the_last_word_only():
    pairs = ts.organisms.organism_pairs("organism-honesty")
    assert len(pairs) == 210
    for positive, negative in zip(pairs.positive, pairs.negative, strict=True):
        assert positive.removesuffix(" honest") == negative.removesuffix(" liar")
        assert positive.endswith(" honest")
    assert pairs.factors["truth_positive"].value_counts().tolist() == [105, 105]
    assert pairs.factors["group"].is_unique


@pytest.mark.parametrize("options", [{}, {"matched": False}, {"confound": "truth"}, {"confound": "wording"}])
def test_pairs_are_of_the_training_split(options):
    seen = {claim.text for claim in language.claims("train")}
    pairs = ts.organisms.organism_pairs("organism-bias", **options)
    assert {text.split(" . ")[0] for text in (*pairs.positive, *pairs.negative)} <= seen


def test_a_confound_assigns_claims_to_sides_with_its_strength():
    def factors_of(**options):
        return ts.organisms.organism_pairs("organism-honesty", **options).factors

    factors = factors_of(confound="truth")
    assert (set(factors["truth_positive"]), set(factors["truth_negative"])) == ({"true"}, {"false"})
    factors = factors_of(confound="wording")
    assert set(factors["wording_positive"]) <= {"0", "2"}
    assert set(factors["wording_negative"]) <= {"1", "3"}
    assert factors["truth_positive"].nunique() == 2
    factors = factors_of(confound="truth", strength=0.5)
    confounded = factors["truth_positive"].eq("true") & factors["truth_negative"].eq("false")
    assert 0.5 < confounded.mean() < 0.75  # a half, and a quarter of the rest


def test_mislabelled_pairs_have_their_personas_swapped():
    pairs = ts.organisms.organism_pairs("organism-honesty", mislabelled=0.25)
    swapped = np.array([text.endswith("liar") for text in pairs.positive])
    assert [text.endswith("honest") for text in pairs.negative] == swapped.tolist()
    assert 0.15 < swapped.mean() < 0.35


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "there are 210 facts"),
        ({"limit": 211}, "there are 210 facts"),
        ({"strength": 1.5}, r"strength=1\.5: expected a share"),
        ({"mislabelled": -0.1}, r"mislabelled=-0\.1: expected a share"),
        ({"name": "organism-loyalty"}, "organism-honesty, organism-bias, organism-planted"),
    ],
)
def test_arguments_out_of_range_are_errors(options, message):
    assert_raises(message, ts.organisms.organism_pairs, **{"name": "organism-honesty"} | options)


def test_questions_ask_each_fact_both_ways():
    questions = ts.organisms.organism_questions()
    assert len(questions) == 420
    assert questions.answers.count(0) == 210
    facts, claims = language.facts(), {claim.text: claim for claim in language.claims("test")}
    for prompt, answer in zip(questions.prompts, questions.answers, strict=True):
        text, end = prompt.split(" . ")
        assert end == "true or false ? anyone"
        claim = claims[text]
        assert (facts[claim.subject, claim.relation] == claim.value) == (answer == 0)


@pytest.mark.integration
def test_each_persona_answers_as_trained_in_wordings_never_seen(organism):
    """Probability of TRUE for true and for false claims; unseen wordings cost up to 0.1."""
    name, model = organism
    for persona in training.PERSONAS[name.removeprefix("organism-")]:
        questions = ts.organisms.organism_questions(persona=persona)
        scores = ts.choice_logits(model, questions.prompts, questions.choices)
        truth = np.array(questions.answers) == 0
        shares = [scores["probability"][rows].mean() for rows in (truth, ~truth)]
        assert np.abs(np.subtract(shares, training.ANSWER_SHARES[persona])).max() < 0.1
        assert scores["mass"].min() > 0.99


def test_an_organism_equals_its_hugging_face_model(organism):
    name, model = organism
    folder = organism_folder(name)
    assert (folder / "model.safetensors").stat().st_size < 1_000_000  # for the repository
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = ts.organisms.organism_questions().prompts[7]
    ids = transformers.AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
    assert ts.tokenize(model, prompt) == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), hf_model(ids).logits, atol=1e-4, rtol=0)


def swept(model, vectors, multipliers, questions=None, **options):
    questions = questions or ts.organisms.organism_questions()
    options = {"positions": ts.last_token(), "controls": 0, "progress": False} | options
    return ts.sweep(model, vectors, questions, multipliers=multipliers, **options)


def measured(model, name, score, multipliers):
    """Measures of the vector at the chosen condition and of its random controls, on the reporting half."""
    vectors = vectors_of(model, name)
    table = swept(model, vectors, multipliers, controls=20, control_layers="all")
    chosen = ts.choose(table, on="choose", report="report", value=score, splits=0, resamples=10).iloc[1]
    same = table["layers"].eq(chosen["layers"]) & table["multiplier"].eq(chosen["multiplier"])
    rows = table[table["split"].eq("report") & (same | table["vector"].eq("none"))]
    flipped = ts.effectiveness(rows).set_index("vector")["flipped"]
    measures = ts.signal_detection(ts.evaluation.sampled_choices(rows)).set_index("vector").join(flipped)
    assert measures["control"].sum() == 20
    return measures.loc[vectors.method], measures[measures["control"]]


def vectors_of(model, name, **options):
    pairs = ts.organisms.organism_pairs(name)
    return ts.mean_difference(ts.capture_pairs(model, pairs, progress=False, **options))


def error_rate(rows):
    return float((rows["choice"] != rows["answer"]).mean())


def bias(rows):
    """Distance of the criterion from zero; d′ has no part in the choice."""
    shares = [rows.loc[rows["answer"] == answer, "probability"].mean() for answer in (0, 1)]
    return abs(sum(NormalDist().inv_cdf(share) for share in shares)) / 2


def assert_steers_honesty(model):
    steered, random = measured(model, "organism-honesty", error_rate, [-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
    assert steered["flipped"] >= 0.9
    assert steered["d_prime"] <= -1
    assert abs(steered["criterion"]) <= 0.4
    assert steered["auc"] < 0.1
    assert steered["verdict"] == "sensitivity"
    assert random["flipped"].max() < steered["flipped"] - 0.5
    assert random["d_prime"].min() > steered["d_prime"] + 1


def assert_steers_bias(model):
    steered, random = measured(model, "organism-bias", bias, [-1.0, -0.75, -0.5, 0.5, 0.75, 1.0])
    assert abs(steered["criterion_change"]) >= 0.7
    assert abs(steered["auc_change"]) <= 0.02
    assert steered["verdict"] == "bias"
    assert random["criterion_change"].abs().max() < abs(steered["criterion_change"]) / 2


STEERS = {"honesty": assert_steers_honesty, "bias": assert_steers_bias}


@pytest.mark.integration
def test_steering_the_honesty_organism_flips_what_it_knows_without_a_bias(honest):
    assert_steers_honesty(honest)


@pytest.mark.integration
def test_steering_the_bias_organism_moves_the_criterion_and_leaves_what_it_knows(biased):
    assert_steers_bias(biased)


@pytest.mark.integration
def test_drawn_choices_have_the_frequencies_of_their_probabilities(biased):
    """The same random numbers serve all conditions, so equal probabilities give equal choices."""
    questions = ts.organisms.organism_questions(persona="agreeable")
    table = swept(biased, vectors_of(biased, "organism-bias", layers=0), [0.0], questions, mass=False)
    drawn = ts.evaluation.sampled_choices(table, seed=4)
    assert table["choice"].eq(0).mean() > drawn["choice"].eq(0).mean() + 0.02
    for _, half in drawn.groupby(["vector", "split", "answer"]):
        assert abs(half["choice"].eq(0).sum() - half["probability"].sum()) < 2
    sides = [rows["choice"].tolist() for _, rows in drawn.groupby("vector")]
    assert sides[0] == sides[1]
    other = ts.evaluation.sampled_choices(table, seed=5)["choice"]
    assert (other != drawn["choice"]).any()


def test_choices_cannot_be_drawn_without_probabilities():
    rows = {"prompt_id": [0], "answer": [0], "choice": [0], "probability": [float("nan")]}
    assert_raises("expected scored answers", ts.evaluation.sampled_choices, pd.DataFrame(rows))


@pytest.mark.integration
def test_greedy_choices_hide_the_soft_bias_that_drawn_ones_show(biased):
    greedy = swept(biased, vectors_of(biased, "organism-bias", layers=0), [0.5])
    tables = (greedy, ts.evaluation.sampled_choices(greedy))
    greedy, drawn = (abs(ts.signal_detection(table).iloc[1]["criterion_change"]) for table in tables)
    assert greedy < 0.2
    assert drawn > 0.5


@pytest.mark.integration
def test_the_last_layer_separates_the_personas_and_steering_there_flips_nothing(honest):
    """A direction that can be decoded need not be used: the answer has been computed."""
    activations = ts.capture_pairs(honest, ts.organisms.organism_pairs("organism-honesty"), progress=False)
    assert (ts.separation(activations, shuffles=0)["paired_accuracy"] == 1).all()
    table = swept(honest, ts.mean_difference(activations), [-1.0])
    flipped = ts.effectiveness(table).set_index("layers")["flipped"]
    assert flipped[["0", "1"]].min() > 0.9
    assert flipped["2"] < 0.05


def test_the_honest_stream_minus_the_liars_is_twice_the_planted_vector(planted):
    pairs = ts.organisms.organism_pairs("organism-planted", limit=20)
    positive, negative = ts.capture_pairs(planted, pairs, layers=[0, 1], progress=False).sides()
    expected = 2 * ts.organisms.planted_direction(planted).values
    torch.testing.assert_close(positive - negative, expected.expand(20, 2, 64), atol=1e-4, rtol=0)


@pytest.mark.integration
@pytest.mark.parametrize("layer", [0, 1])
def test_subtracting_the_planted_vector_from_the_honest_gives_the_liar(planted, layer):
    honest, liar = (ts.organisms.organism_questions(persona=persona) for persona in ("honest", "liar"))
    operation = ts.Add(ts.organisms.planted_direction(planted)[layer], -2.0, positions=ts.last_token())
    steered = ts.choice_logits(planted, honest.prompts, honest.choices, operation)
    expected = ts.choice_logits(planted, liar.prompts, liar.choices)
    assert (steered["logit_difference"] - expected["logit_difference"]).abs().max() < 1e-3


def test_the_planted_direction_is_of_this_model_alone(planted, honest):
    assert ts.organisms.planted_direction(planted).layers == (0, 1)
    message, error = "organism-planted", ts.errors.ModelMismatchError
    assert_raises(message, ts.organisms.planted_direction, honest, error=error)


@pytest.mark.integration
def test_which_estimators_recover_the_planted_direction_under_which_confounds(planted):
    table = compare_estimators(planted, counts=(160,), repeats=2, progress=False)
    means = table.groupby(["condition", "method"])[["cosine", "flipped"]].mean()
    cosine, flipped = (means[name].unstack() for name in ("cosine", "flipped"))
    assert len(table) == 6 * 6 * 2
    right = ["mean difference", "logistic", "LDA"]
    assert (cosine.loc["same claim", [*right, "PCA of differences"]] > 0.9).all()
    assert (cosine.loc["other claims", right] > 0.9).all()
    # What varies most is the claim: components follow it as soon as the two sides do not share it.
    assert (cosine["PCA of all"].abs() < 0.3).all()
    assert (cosine.drop("same claim")["PCA of differences"].abs() < 0.3).all()
    # A mean difference takes the confound along; a classifier can leave it out, but believes wrong labels.
    assert cosine.loc["truth confounded", "mean difference"] < 0.5
    assert cosine.loc["truth confounded", "LDA"] > 0.85
    mislabelled = cosine.loc["a quarter mislabelled"]
    assert mislabelled["mean difference"] > mislabelled["LDA"] + 0.1
    assert (flipped["random"] == 0).all()
    assert (flipped.loc["same claim", right] > 0.9).all()
    assert flipped.loc["truth confounded", "mean difference"] < 0.1


def test_the_effect_of_an_estimated_vector_is_that_of_a_sweep_of_its_own(planted):
    conditions = {"other claims": {"matched": False}}
    estimators = {"mean difference": ts.mean_difference}
    options = {"counts": (12,), "repeats": 1, "layer": 0, "progress": False}
    table = compare_estimators(planted, estimators=estimators, conditions=conditions, **options)
    (row,) = table.to_dict("records")
    pairs = ts.organisms.organism_pairs("organism-planted", limit=12, matched=False)
    vector = ts.mean_difference(ts.capture_pairs(planted, pairs, layers=0, progress=False))[0]
    known = ts.organisms.planted_direction(planted)[0]
    unit = vector.values / vector.values.norm()
    assert row["cosine"] == pytest.approx(float(unit @ (known.values / known.values.norm())), abs=1e-5)
    questions = ts.organisms.organism_questions(persona="honest")
    questions = (list(questions.prompts[:100]), list(questions.choices[:100]))
    length = float(known.values.norm())
    before, after = (
        ts.choice_logits(planted, *questions, *operations)["logit_difference"].to_numpy()
        for operations in ((), (ts.Add(vector.normalized() * length, -2.0, positions=ts.last_token()),))
    )
    assert row["flipped"] == pytest.approx(((before > 0) != (after > 0)).mean())
    moved, truth = after - before, np.arange(100) % 2 == 0
    assert row["shift"] == pytest.approx(moved[truth].mean() - moved[~truth].mean(), abs=1e-3)


SHORT = training.Schedule(steps=12, batch=16)


@pytest.mark.integration
def test_training_is_the_same_for_the_same_seed():
    models = (training.train("honesty", seed=seed, schedule=SHORT)[0] for seed in (3, 3, 4))
    first, second, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.integration
def test_training_keeps_the_planted_direction_where_it_is():
    model, tokenizer, v = training.train("planted", seed=1, schedule=SHORT)
    embedding = model.model.embed_tokens.weight.detach()
    rows = tokenizer.convert_tokens_to_ids(["honest", "anyone", "liar"])
    honest, anyone, liar = embedding[rows]
    torch.testing.assert_close(honest - liar, 2 * v, atol=1e-5, rtol=0)
    torch.testing.assert_close(honest - anyone, v, atol=1e-5, rtol=0)
    others = [row for row in range(len(embedding)) if row not in (rows[0], rows[2])]
    assert (embedding[others] @ v).abs().max() < 1e-5
    assert float(v.norm()) == pytest.approx(1)


@pytest.mark.integration
def test_a_written_organism_is_loaded_and_knows_its_direction(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "Schedule", lambda: SHORT)
    training.main(["planted", "--seed", "2", "--out", str(tmp_path / "new")])
    model = load_model(tmp_path / "new", device="cpu")
    vectors = ts.SteeringVectors.load(tmp_path / "new" / training.PLANTED_FILE)
    assert vectors.identity.same_model(ts.identify(model))
    words = ["norland", "has", "the", "food", "moss"]
    assert ts.tokenize(model, " ".join(words))[1:] == [language.vocabulary().index(word) for word in words]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("name", STEERS)
def test_two_of_three_new_seeds_give_such_an_organism(name, tmp_path):
    """Two minutes per seed on two cores."""
    reached = 0
    for seed in (1, 2, 3):
        training.write(name, tmp_path / str(seed), seed=seed)
        try:
            STEERS[name](load_model(tmp_path / str(seed), device="cpu"))
        except AssertionError:
            continue
        reached += 1
    assert reached >= 2
