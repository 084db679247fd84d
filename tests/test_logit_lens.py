"""The logit lens against the Hugging Face model's own final norm and head."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tl_steer import capture, logit_lens, plots
from tl_steer.analysis._projections import token_texts
from tl_steer.errors import ModelMismatchError
from tl_steer.models import identify, load_model
from tl_steer.positions import all_tokens, last_token, span

from .conftest import VOCABULARY, assert_raises
from .test_looking import rows_of, vectors_of
from .tiny_model import all_hooks, byte_tokenizer, made_vector, make_model, weights_of, word_tokenizer

PROMPTS = [[3, 14, 15, 92, 65], [35, 89]]


def vectors_for(model, *, shape=()):
    values = torch.randn(2, *shape, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    return vectors_of(values, layers=(0, 2), identity=identify(model))


@pytest.fixture
def tiny():
    return make_model(word_tokenizer())


def final_parts(hf_model):
    """(final norm, head, whether the norm's weights are 1 + w, soft cap) of a Hugging Face model."""
    name, body = type(hf_model).__name__, hf_model.base_model
    norm = next(getattr(body, each) for each in ("norm", "ln_f", "final_layer_norm") if hasattr(body, each))
    is_gemma = name.startswith("Gemma2")
    cap = hf_model.config.final_logit_softcapping if is_gemma else None
    return norm, hf_model.get_output_embeddings(), is_gemma, cap


def spread(table, value, shape):
    """All tokens' values by id, one row per vector or activation."""
    rows, ids = (table[column].to_numpy().reshape(-1, VOCABULARY) for column in (value, "token_id"))
    return np.take_along_axis(rows, ids.argsort(-1), -1).reshape(*shape, VOCABULARY)


def assert_logits(table, expected, *, atol):
    """Compare the logits and probabilities of all tokens."""
    np.testing.assert_allclose(spread(table, "logit", expected.shape[:-1]), expected, atol=atol)
    probabilities = spread(table, "probability", expected.shape[:-1])
    np.testing.assert_allclose(probabilities, expected.softmax(-1), atol=atol / 10)


# --- the numbers -------------------------------------------------------------------------------------------


def test_vectors_are_read_as_hugging_faces_norm_and_head_read_them(architecture):
    hf_model, model = architecture
    vectors = vectors_for(model)
    table = logit_lens(model, vectors, multipliers=(20, -3), top=VOCABULARY)
    norm, head, _, cap = final_parts(hf_model)
    with torch.no_grad():
        expected = head(norm(vectors.values[:, None] * torch.tensor([20.0, -3.0])[:, None]))
    expected = expected if cap is None else cap * torch.tanh(expected / cap)
    assert_logits(table, expected, atol=2e-4)
    assert list(table["rank"]) == list(range(1, VOCABULARY + 1)) * 4
    assert list(table["layer"].iloc[:: 2 * VOCABULARY]) == [0, 2]
    assert list(table["multiplier"].iloc[::VOCABULARY]) == [20, -3, 20, -3]


def test_the_last_layers_stream_gives_the_models_own_prediction(architecture):
    hf_model, model = architecture
    table = logit_lens(model, capture(model, PROMPTS, layers=-1), top=VOCABULARY)
    for prompt, ids in enumerate(PROMPTS):
        rows = rows_of(table, prompt_id=prompt)
        with torch.no_grad():
            assert_logits(rows, hf_model(torch.tensor([ids])).logits[0, -1], atol=3e-4)
        assert set(rows["token_index"]) == {len(ids) - 1}
        assert set(rows["layer"]) == {model.cfg.n_layers - 1}


def test_without_the_norm_it_is_what_the_vector_adds_to_the_logits(architecture):
    """Twice the vector adds twice as much; weights of the norm and centring stay, biases and cap do not."""
    hf_model, model = architecture
    norm, head, is_gemma, _ = final_parts(hf_model)
    vectors = vectors_for(model)
    values = vectors.values - (vectors.values.mean(-1, keepdim=True) if hasattr(norm, "bias") else 0)
    weight = norm.weight.detach() + (1 if is_gemma else 0)
    once, twice = (logit_lens(model, vectors, multipliers=[m], top=VOCABULARY, norm=False) for m in (1, 2))
    assert_logits(once, (values * weight) @ head.weight.detach().T, atol=1e-4)
    logits, doubled = (spread(table, "logit", (2,)) for table in (once, twice))
    np.testing.assert_allclose(doubled, 2 * logits, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_folded_models_are_read_as_they_are(name, make_hf_model):
    """Folding moves the norm's weights into the unembedding, and centring its columns moves every logit."""
    hf_model = make_hf_model(name)
    folded, plain = (
        load_model(f"tiny-{name}", hf_model=hf_model, device="cpu", processing=each) for each in (True, False)
    )
    assert folded.cfg.normalization_type.endswith("Pre")
    tables = (logit_lens(each, capture(each, PROMPTS, layers=-1), top=VOCABULARY) for each in (folded, plain))
    np.testing.assert_allclose(*(spread(table, "probability", (2,)) for table in tables), atol=1e-4)
    message = r"these vectors, made on .*, cannot be used with"
    assert_raises(message, logit_lens, folded, vectors_for(plain), error=ModelMismatchError)


def test_a_bfloat16_model_is_read_in_float32_from_its_own_weights(make_hf_model):
    hf_model = make_hf_model("llama")
    model = load_model("tiny-llama", hf_model=hf_model, device="cpu", dtype="bfloat16")
    vectors = vectors_for(model)
    table = logit_lens(model, vectors, multipliers=[1], top=VOCABULARY)
    norm, head, *_ = final_parts(hf_model)
    weight, unembedding = (part.weight.detach().bfloat16().float() for part in (norm, head))
    x = vectors.values
    normed = x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * weight
    np.testing.assert_allclose(spread(table, "logit", (2,)), normed @ unembedding.T, atol=1e-5)
    assert model.cfg.dtype == model.ln_final.w.dtype == model.W_U.dtype == torch.bfloat16


def test_a_model_without_a_final_norm_is_only_unembedded():
    model = make_model(word_tokenizer(), normalization_type=None)
    vectors = vectors_for(model)
    table = logit_lens(model, vectors, multipliers=[1], top=3)
    best = (vectors.values @ model.W_U + model.b_U).topk(3)
    assert table["token_id"].tolist() == best.indices.flatten().tolist()
    np.testing.assert_allclose(table["logit"], best.values.flatten(), atol=1e-5)


def test_the_bias_of_the_unembedding_counts(tiny):
    with torch.no_grad():
        tiny.unembed.b_U[9] = 100.0
    assert set(logit_lens(tiny, vectors_for(tiny), top=1)["token_id"]) == {9}
    assert set(logit_lens(tiny, vectors_for(tiny), top=1, norm=False)["token_id"]) != {9}


# --- sources -----------------------------------------------------------------------------------------------


def test_activations_with_positions_by_layer_are_read_at_their_own(tiny):
    positions = {1: last_token(), 0: span(0, 2)}
    together, *alone = (
        logit_lens(tiny, capture(tiny, ["a b c", "d"], positions=each, layers=layer), top=2)
        for layer, each in [(None, positions), *positions.items()]
    )
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True), rtol=1e-4)


def test_every_position_of_every_prompt_is_read_alone_and_padding_never(tiny):
    activations = capture(tiny, ["a b c", "d"], positions=all_tokens(), layers=[0, 1])
    table = logit_lens(tiny, activations, top=2, layers=[1])
    assert set(table["layer"]) == {1}
    indices = table[["prompt_id", "token_index"]].to_numpy()[::2].tolist()
    assert indices == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    assert list(table["prompt"])[-1] == "d"
    for row in table.query("rank == 1").to_dict("records"):
        x = activations.values[row["prompt_id"], 1, row["token_index"]]
        with torch.no_grad():
            logits = tiny.unembed(tiny.ln_final(x[None, None]))[0, 0]
        assert row["token_id"] == int(logits.argmax())
        best = [float(each.max()) for each in (logits, logits.softmax(-1))]
        assert [row["logit"], row["probability"]] == pytest.approx(best, abs=1e-5)


def test_the_rows_of_several_chunks_are_the_same(tiny, monkeypatch):
    whole = logit_lens(tiny, vectors_for(tiny), top=4)
    # The module by its name: in its package, the function has the same.
    monkeypatch.setattr(sys.modules["tl_steer.analysis._logit_lens"], "MAX_LOGITS", 1)
    pd.testing.assert_frame_equal(whole, logit_lens(tiny, vectors_for(tiny), top=4), rtol=1e-5)


def test_one_vector_per_position_is_read_position_by_position(tiny):
    vectors = vectors_for(tiny, shape=(3,))
    table = logit_lens(tiny, vectors, multipliers=[1], top=1)
    assert list(table["token_index"]) == [0, 1, 2] * 2
    alone = vectors_of(vectors.values[:, 1], layers=(0, 2), identity=vectors.identity)
    expected = logit_lens(tiny, alone, multipliers=[1], top=1)["token_id"]
    assert rows_of(table, token_index=1)["token_id"].tolist() == expected.tolist()


def test_one_vector_is_accepted_and_layers_are_chosen_from_the_source(tiny):
    one = made_vector(tiny, 1)
    assert set(logit_lens(tiny, one)["layer"]) == {1}
    assert logit_lens(tiny, one).equals(logit_lens(tiny, one.at(layers=1)))
    assert set(logit_lens(tiny, vectors_for(tiny), layers=-1)["layer"]) == {2}


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (vectors_for, {"layers": [0, 1]}, r"nothing at layers \[1\]; there are \[0, 2\]"),
        (lambda model: made_vector(model, 1, "z"), {}, "are at z, not of the residual stream"),
        (lambda model: capture(model, ["a"], hook="z"), {}, "these activations are at z"),
        (lambda model: capture(model, ["a"]), {"multipliers": [1]}, "multipliers are for vectors"),
        (vectors_for, {"multipliers": []}, "no multipliers"),
        (vectors_for, {"top": 0}, "top=0: give 1 to"),
        (vectors_for, {"top": 1000}, "top=1000: give 1 to"),
    ],
)
def test_sources_that_cannot_be_read_are_rejected(tiny, source, options, message):
    assert_raises(message, logit_lens, tiny, source(tiny), **options)


def test_another_models_vectors_are_rejected_unless_forced(tiny):
    other = make_model(word_tokenizer(), seed=5)
    for source, message in (
        (vectors_for(other), r"these vectors.*weights differ.*force=True"),
        (capture(other, ["a"]), "these activations"),
    ):
        assert_raises(message, logit_lens, tiny, source, error=ModelMismatchError)
    assert len(logit_lens(tiny, vectors_for(other), force=True)) == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_and_the_vectors_are_unchanged(dtype):
    model = make_model(word_tokenizer(), dtype=dtype)
    vectors, weights, hooks = vectors_for(model), weights_of(model), all_hooks(model)
    values = vectors.values.clone()
    with torch.enable_grad():
        logit_lens(model, vectors)
        assert torch.is_grad_enabled()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all_hooks(model) == hooks
    assert model.cfg.dtype == dtype
    assert torch.equal(vectors.values, values)


# --- tokens as text ----------------------------------------------------------------------------------------


def test_byte_level_tokens_are_text_with_spaces_and_single_bytes_are_named():
    tokenizer = byte_tokenizer([("Ġ", "a"), ("Ã", "©")])
    texts = {
        "a": "a", "Ġa": " a", "Ġ": " ", "Ċ": "\n", "Ã©": "é", "Ã": "<0xC3>", "©": "<0xA9>", "<end>": "<end>",
    }  # fmt: skip
    ids = [tokenizer.get_vocab()[piece] for piece in texts]
    unknown = len(tokenizer)
    assert token_texts(tokenizer, [*ids, unknown]) == [*texts.values(), f"<id {unknown}>"]


def test_sentencepiece_tokens_keep_the_space_that_decoding_one_by_one_drops():
    pieces = ["<unk>", "▁the", "the", "<0x0A>", "Ġ"]
    inner = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert token_texts(tokenizer, range(5)) == ["<unk>", " the", "the", "<0x0A>", "Ġ"]
    assert token_texts(None, [7, 8]) == ["7", "8"]


@pytest.mark.model
def test_all_tokens_of_the_embedded_model_have_distinct_texts(embedded):
    ids = list(range(embedded.cfg.d_vocab))
    texts = token_texts(embedded.tokenizer, ids)
    assert len(set(texts)) == len(ids)
    for token in ids[::7]:
        decoded = embedded.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        assert "\ufffd" in decoded or decoded == texts[token]


@pytest.mark.model
def test_the_embedded_models_last_layer_is_hugging_faces_prediction(embedded, embedded_hf):
    hf_model, tokenizer = embedded_hf
    prompt = "The capital of France is"
    table = logit_lens(embedded, capture(embedded, prompt, layers=-1), top=5)
    with torch.no_grad():
        expected = hf_model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1).topk(5)
    assert table["token_id"].tolist() == expected.indices.tolist()
    np.testing.assert_allclose(table["probability"], expected.values, atol=1e-4)
    assert table["token"].iloc[0] == tokenizer.decode(expected.indices[0])


@pytest.mark.parametrize("panels", [1, 2])
def test_a_single_layer_is_drawn(panels):
    rows = {"layer": 3, "rank": 1, "token_id": 5, "token": "a", "logit": 1.0, "probability": 0.5}
    figure = plots.logit_lens(pd.DataFrame([rows | {"multiplier": panel} for panel in range(panels)]))
    assert [list(each.y) for each in figure.data] == [["3"]] * panels
