"""The study's experiment files on small random models with the depth of its models."""

import re
from importlib import resources

import pytest
import tokenizers
import torch
import transformers

from tl_steer.directions import SteeringVectors
from tl_steer.experiments import own_experiments, read_experiment, read_results, run
from tl_steer.experiments.preflight import require_runnable
from tl_steer.models import chat_format, load_model, tokenize
from tl_steer.prompts import read_claims, read_dilemmas, read_misconceptions

from .conftest import assert_raises

STUDY = [name for name in own_experiments() if name.endswith(("_llama2", "_gpt2_xl"))]


def trained_tokenizer(bos):
    """Byte-level, with merges learnt from the package's own texts; `bos`: a token before every text."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    texts = [*read_claims()["statement"], *read_dilemmas()["dilemma"], *read_misconceptions()["question"]]
    special = ["<s>", "</s>"] if bos else ["<|endoftext|>"]
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": special, "show_progress": False, "initial_alphabet": alphabet}
    inner.train_from_iterator(sorted(texts), tokenizers.trainers.BpeTrainer(vocab_size=1500, **options))
    if bos:
        template = tokenizers.processors.TemplateProcessing
        inner.post_processor = template(single="<s> $A", special_tokens=[("<s>", 0)])
    named = {"bos_token": special[0], "eos_token": special[-1]}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named)


@pytest.fixture(scope="module")
def llama(make_hf_model):
    """The layers, name and chat format of Llama-2-13b-chat, with little width."""
    tokenizer = trained_tokenizer(bos=True)
    sizes = {"num_hidden_layers": 40, "max_position_embeddings": 512, "vocab_size": len(tokenizer)}
    hf_model = make_hf_model("llama", **sizes)
    return load_model("llama-2-13b-chat", hf_model=hf_model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="module")
def gpt2(make_hf_model):
    """The layers of gpt2-xl, with the processing of its file."""
    tokenizer = trained_tokenizer(bos=False)
    hf_model = make_hf_model("gpt2", n_layer=48, n_positions=256, vocab_size=len(tokenizer))
    processing = read_experiment("activation_addition_gpt2_xl").model.processing
    return load_model("gpt2-xl", hf_model=hf_model, tokenizer=tokenizer, device="cpu", processing=processing)


def shortened(folder, name, *changes):
    """A file with less data and shorter texts, in the same conditions."""
    text = (resources.files("tl_steer.experiments") / f"{name}.toml").read_text(encoding="utf-8")
    less = [
        (r"max_new_tokens = \d+", "max_new_tokens = 4"), ("shuffles = 20", "shuffles = 2"),
        (r"\[questions\]", "[questions]\nlimit = 4"), ('(data = "dilemmas")', r"\1\nlimit = 2"),
        ('(kind = "honesty")', r"\1\nlimit = 12"),
    ]  # fmt: skip
    for pattern, new in (*less, *changes):
        text = re.sub(pattern, new, text)
    (folder / "short.toml").write_text(text, encoding="utf-8")
    return read_experiment(folder / "short.toml")


def test_every_file_of_the_study_has_a_twin_for_the_embedded_model():
    assert len(STUDY) == 5
    for name in STUDY:
        big, small = read_experiment(name), read_experiment(re.sub(r"_(llama2|gpt2_xl)$", "", name))
        assert big.model.name in ("llama-2-13b-chat", "gpt2-xl")
        assert small.model.name == "smollm2-135m-instruct"
        assert big.pairs.kind == small.pairs.kind
        assert (big.questions is None) == (small.questions is None)


def test_the_files_together_have_the_studys_settings():
    files = [read_experiment(name) for name in STUDY]
    sweeps = [each.sweep for each in files if each.sweep is not None]
    questions = [each.questions for each in files if each.sweep is not None]
    pairs = [each.pairs for each in files if each.pairs.kind == "honesty"]
    for sweep in sweeps:
        assert (sweep.measure, sweep.max_new_tokens) == ("generate", 30)
        assert sweep.layers == (17, 18, 19, 31, (17, 31))
        assert (sweep.temperature, sweep.top_p) == (0.6, 0.9)  # Llama-2-chat's own
    sizes = {kind: set() for kind in ("claims", "misconceptions")}
    for question, sweep in zip(questions, sweeps, strict=True):
        sizes[question.kind] |= {abs(multiplier) for multiplier in sweep.multipliers}
    ranges = {kind: (min(each), max(each)) for kind, each in sizes.items()}
    assert ranges == {"claims": (4, 16), "misconceptions": (8, 40)}
    assert max(max(each.text.multipliers) for each in files if each.text) == 50
    assert {each.wording for each in (*pairs, *questions)} == {"study"}
    components = [file.directions for file in files if file.directions.method == "principal_component"]
    assert {(each.of, each.sign) for each in components} == {("centred_differences", "vote")}
    assert [each.component for each in components if isinstance(each.component, int)] == [2, 2]
    (words,) = (each.text for each in files if each.directions.method == "activation_addition")
    assert (words.temperature, words.repetition_penalty, words.max_new_tokens) == (1.0, 1.1, 60)
    for name, expected in (
        ("persona", {False, True}), ("shared", {"claim", "letter"}), ("style", {"letters", "words"}),
    ):  # fmt: skip
        assert {getattr(each, name) for each in pairs} == expected
    methods = {"mean_difference", "principal_component", "activation_addition"}
    assert {file.directions.method for file in files} == methods
    assert {sweep.positions for sweep in sweeps} == {"all_tokens()", "current_token()"}
    assert any("project_out" in sweep.operations for sweep in sweeps)


@pytest.mark.integration
@pytest.mark.parametrize("name", STUDY)
def test_a_file_of_the_study_runs_to_its_report(name, request, tmp_path):
    model = request.getfixturevalue("gpt2" if name.endswith("gpt2_xl") else "llama")
    require_runnable(read_experiment(name), model)
    experiment = shortened(tmp_path, name)
    out = run(experiment, tmp_path / "out", model=model, progress=False)
    results = read_results(out)
    html = (out / "report.html").read_text("utf-8")
    assert results.vectors.layers == tuple(range(model.cfg.n_layers))
    assert (out / "audit.csv").exists() == (not experiment.has_prompts)
    if experiment.sweep is not None:
        questions = results.questions[~results.questions["control"]]
        conditions = questions.groupby(["operation", "layers", "multiplier"], dropna=False).ngroups
        sets, sizes = len(experiment.sweep.layers), len(experiment.sweep.multipliers)
        assert conditions == 1 + sets * (sizes + ("project_out" in experiment.sweep.operations))
        assert questions["logit_difference"].isna().all()
        assert set(questions["layers"]) == {"", "17", "18", "19", "31", "17+31"}
        assert 'id="answers"' in html
    if experiment.text is not None:
        assert set(results.texts["multiplier"].dropna()) == {0.0, *experiment.text.multipliers}
        assert 'id="texts"' in html


@pytest.mark.integration
def test_training_claims_are_labelled_in_the_report_and_the_table(llama, tmp_path):
    changes = ("limit = 60\n", ""), ("limit = 40 .*", "")
    out = run(shortened(tmp_path, "training_claims", *changes), tmp_path / "out", model=llama, progress=False)
    results, html = read_results(out), (out / "report.html").read_text("utf-8")
    assert chat_format(llama).kind == "llama-2"
    assert tokenize(llama, chat_format(llama).render("Hello"))[:1] == [llama.tokenizer.bos_token_id]
    assert set(results.questions["claims"]) == {"training"}
    assert results.questions["prompt_id"].nunique() == 4
    assert html.count("These are training claims: they made the vector") == 1


@pytest.mark.integration
@pytest.mark.parametrize(
    "changes",
    [(), (("Love", "Shopping"), ("negative = .*", ""))],
    ids=["two prompts", "one prompt"],
)
def test_the_vector_of_prompts_is_their_difference_by_position(gpt2, tmp_path, changes):
    experiment = shortened(tmp_path, "activation_addition_gpt2_xl", *changes)
    out = run(experiment, tmp_path / "out", model=gpt2, progress=False)
    vectors = SteeringVectors.load(out / "vectors.safetensors")
    sides = [experiment.pairs.positive, experiment.pairs.negative]
    sides = [gpt2.tokenizer(text)["input_ids"] for text in sides if text is not None]
    (space,) = gpt2.tokenizer(" ")["input_ids"]
    length, streams = max(map(len, sides)), []
    for ids in sides:
        with torch.no_grad():
            _, cache = gpt2.run_with_cache(torch.tensor([ids + [space] * (length - len(ids))]))
        streams.append(cache["blocks.6.hook_resid_pre"][0])
    expected = streams[0] - streams[1] if len(streams) > 1 else streams[0]
    assert vectors.values.shape[1] == length
    torch.testing.assert_close(vectors[6].values, expected, rtol=1e-4, atol=1e-4)
    if changes:
        assert "nothing subtracted" in (out / "report.html").read_text("utf-8")
    else:
        assert vectors[6].values[0].abs().max() < 1e-5  # the token that both begin with


@pytest.mark.integration
def test_a_prompt_with_fewer_tokens_than_vectors_is_an_error_with_both_numbers(gpt2, tmp_path):
    short = shortened(tmp_path, "activation_addition_gpt2_xl", (r"<\|endoftext\|>I think dogs are", "I"))
    message = r"\[text\] the prompt 'I' has 1 tokens, fewer than the \d vectors"
    assert_raises(message, run, short, tmp_path / "runs" / "out", model=gpt2, progress=False)
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.integration
def test_weights_are_for_steering_and_saved_vectors_have_none(llama, tmp_path):
    results = []
    for weights, multiplier in (("weights = { 31 = -0.5 }", 50), ("", -25)):
        changes = [("weights = {.*", weights), ("layers = .*", "layers = [31]")]
        changes += [("multipliers = .*", f"multipliers = [{multiplier}]"), ("operations = .*", "")]
        experiment = shortened(tmp_path, "dilemmas_llama2", *changes)
        out = run(experiment, tmp_path / f"out {multiplier}", model=llama, progress=False)
        results.append(read_results(out))
    weighted, plain = results
    torch.testing.assert_close(weighted.vectors.values, plain.vectors.values)
    torch.testing.assert_close(weighted.vectors.norms(), torch.ones(40))
    one, other = (each.texts[each.texts["vector"] != "none"] for each in results)
    assert list(one["text"]) == list(other["text"])
    assert list(one["dose"]) == pytest.approx(list(other["dose"]))
    assert list(one["text"]) != list(weighted.texts.query("vector == 'none'")["text"])
