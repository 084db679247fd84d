"""Vectors from and for other libraries: the same layers, the same logits, and errors.

The oracles are Hugging Face's own model with a forward hook on the block, and the other libraries themselves.
"""

import builtins
import contextlib
import copy
import dataclasses
import importlib.util
import pickle
import struct
import sys
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from tl_steer import Add, SteeringVectors, capture, steer
from tl_steer.activations import PairedActivations
from tl_steer.directions.exchange import (
    from_repeng,
    from_steering_vectors,
    load_gguf,
    load_pt,
    save_gguf,
    save_pt,
    to_repeng,
    to_steering_vectors,
)
from tl_steer.directions.exchange.gguf import read_gguf
from tl_steer.directions.vector_files import describe
from tl_steer.errors import ModelMismatchError
from tl_steer.models import identify, load_model, tokenize

from .conftest import assert_raises, random_hf_model
from .tiny_model import D_MODEL, N_HEADS, N_LAYERS, make_model, word_tokenizer

MODEL = make_model(word_tokenizer())
ONES = torch.ones(D_MODEL)
BY_LAYER = {"2": ONES, 0: 3 * ONES}


def vectors_of(model=MODEL, *, layers=(2, 1), hook="resid_post", norms=None, seed=0):
    values = torch.randn(len(layers), model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    norms = [700.25 + layer for layer in layers] if norms is None else norms
    info = {"arguments": {"C": 1.0}, "data": "00ff", "seed": seed}
    return SteeringVectors(values, layers, hook, "made", torch.tensor(norms), identify(model), info)


@pytest.fixture
def reload(tmp_path):
    """Save a value with `torch.save` and load it with `load_pt`."""

    def load(value, model=MODEL, **options):
        torch.save(value, tmp_path / "v.pt")
        return load_pt(tmp_path / "v.pt", model, **options)

    return load


@pytest.fixture
def repeng(monkeypatch):
    # repeng 0.4 needs a name that numpy 2 no longer has
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    return pytest.importorskip("repeng", reason="repeng is not installed")


@pytest.fixture
def steering_vectors():
    return pytest.importorskip("steering_vectors", reason="steering-vectors is not installed")


def require_imported(result, vectors, origin):
    """Check the rows in ascending order, the model's identity, and that nothing unknown is claimed."""
    assert result.layers == tuple(sorted(vectors.layers))
    for layer in vectors.layers:
        assert torch.equal(result[layer].values, vectors[layer].values)
    assert (result.method, result.hook, result.identity) == ("imported", "resid_post", identify(MODEL))
    assert origin in result.info["from"]
    assert result.stream_norm.isnan().all()


@contextlib.contextmanager
def added_by_hooks(hf_model, rows, multiplier):
    """Hugging Face's model with `multiplier · rows[N]` added to the output of its block N."""
    blocks = hf_model.model.layers if hasattr(hf_model, "model") else hf_model.transformer.h

    def adding(row):
        def hook(module, args, output):
            return (output[0] + row, *output[1:]) if isinstance(output, tuple) else output + row

        return hook

    with contextlib.ExitStack() as stack:
        for layer, row in rows.items():
            stack.callback(blocks[layer].register_forward_hook(adding(multiplier * row)).remove)
        yield


def logits_of(hf_model, ids):
    with torch.no_grad():
        tokens = torch.tensor([ids])
        return hf_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]


def steered_logits(model, ids, vectors, multiplier):
    with torch.no_grad(), steer(model, Add(vectors, multiplier)):
        return model(torch.tensor([ids]))[0]


def gguf_rows(path):
    """`direction.N` for block N, as llama.cpp takes them, through the package gguf."""
    reader = gguf.GGUFReader(path)
    return {int(each.name.split(".")[1]): torch.tensor(np.array(each.data)) for each in reader.tensors}


def repeng_logits(hf_model, control_vector, layers, multiplier, ids):
    import repeng

    controlled = repeng.ControlModel(hf_model, list(layers))
    try:
        controlled.set_control(control_vector, multiplier)
        return logits_of(controlled, ids)
    finally:
        controlled.unwrap()


def exported_logits(way, hf_model, vectors, multiplier, ids, folder):
    """Logits with the vectors exported and applied in the other library's own way."""
    if "GGUF" in way:
        save_gguf(vectors, folder / "v.gguf")
    if way == "repeng":
        return repeng_logits(hf_model, to_repeng(vectors), vectors.layers, multiplier, ids)
    if way == "repeng from GGUF":
        import repeng

        control_vector = repeng.ControlVector.import_gguf(folder / "v.gguf")
        return repeng_logits(hf_model, control_vector, vectors.layers, multiplier, ids)
    if way == "steering-vectors":
        with to_steering_vectors(vectors).apply(hf_model, multiplier=multiplier):
            return logits_of(hf_model, ids)
    if way == "GGUF and a forward hook":
        rows = gguf_rows(folder / "v.gguf")
    else:
        save_pt(vectors, folder / "v.pt")
        rows = torch.load(folder / "v.pt", weights_only=True)
    with added_by_hooks(hf_model, rows, multiplier):
        return logits_of(hf_model, ids)


WAYS = ["repeng", "repeng from GGUF", "steering-vectors", "GGUF and a forward hook", ".pt and a forward hook"]
EMBEDDED = pytest.param("embedded", marks=[pytest.mark.integration, pytest.mark.model])


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen2", EMBEDDED])
def pair(request):
    """A model in float64, ours and Hugging Face's, a prompt, and (layers, multiplier) to steer with.

    In float32, Hugging Face's own logits of the embedded model differ from these by up to 4e-4 after strong
    steering of an early layer, so that two libraries could not be compared within 1e-4.
    """
    if request.param == "embedded":
        hf_model, tokenizer = request.getfixturevalue("embedded_hf")
        hf_model = copy.deepcopy(hf_model).double()
        model = load_model("smollm2", hf_model=hf_model, tokenizer=tokenizer, device="cpu")
        ids = tokenize(model, "The capital of France is a city called")
        cases = [((1,), 4.0), ((15,), -4.0), ((29,), 2.5), ((20, 8, 3), -1.5)]
    else:
        hf_model = random_hf_model(request.param).double()
        model = load_model(f"tiny-{request.param}", hf_model=hf_model, device="cpu")
        ids, cases = [1, 5, 7, 9], [((1,), 4.0), ((2, 1), -1.5)]
    return SimpleNamespace(model=model, hf_model=hf_model, ids=ids, cases=cases)


@pytest.mark.parametrize("way", WAYS)
def test_an_exported_vector_gives_the_same_logits(way, request, pair, tmp_path):
    if (library := way.split()[0].replace("-", "_")) in ("repeng", "steering_vectors"):
        request.getfixturevalue(library)
    plain = logits_of(pair.hf_model, pair.ids)
    for layers, multiplier in pair.cases:
        vectors = vectors_of(pair.model, layers=layers)
        ours = steered_logits(pair.model, pair.ids, vectors, multiplier)
        other_logits = exported_logits(way, pair.hf_model, vectors, multiplier, pair.ids, tmp_path)
        assert (other_logits - plain).abs().max() > 0.5  # steering changes the logits
        torch.testing.assert_close(other_logits, ours, rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(pair.hf_model, pair.ids), plain, rtol=0, atol=0)


def test_a_layer_off_by_one_gives_other_logits(pair):
    layer = pair.cases[0][0][0]
    vectors = vectors_of(pair.model, layers=(layer,))
    ours = steered_logits(pair.model, pair.ids, vectors, 4.0)
    for wrong in (layer - 1, layer + 1):
        with added_by_hooks(pair.hf_model, {wrong: vectors[layer].values}, 4.0):
            assert (logits_of(pair.hf_model, pair.ids) - ours).abs().max() > 0.1


@pytest.mark.parametrize("library", ["repeng", "steering-vectors", "GGUF"])
def test_an_imported_vector_gives_the_same_logits(library, repeng, steering_vectors, pair, tmp_path):
    width, layers = pair.model.cfg.d_model, pair.cases[-1][0][:2]
    rows = {layer: np.random.default_rng(layer).standard_normal(width).astype("f4") for layer in layers}
    if library == "steering-vectors":
        exported = steering_vectors.SteeringVector({layer: torch.tensor(row) for layer, row in rows.items()})
        with exported.apply(pair.hf_model, multiplier=-2.0):
            other_logits = logits_of(pair.hf_model, pair.ids)
        vectors = from_steering_vectors(exported, pair.model)
    else:
        exported = repeng.ControlVector("llama", rows)
        other_logits = repeng_logits(pair.hf_model, exported, layers, -2.0, pair.ids)
        vectors = from_repeng(exported, pair.model)
        if library == "GGUF":
            exported.export_gguf(tmp_path / "other.gguf")
            vectors = load_gguf(tmp_path / "other.gguf", pair.model)
    ours = steered_logits(pair.model, pair.ids, vectors, -2.0)
    torch.testing.assert_close(ours, other_logits, rtol=0, atol=1e-4)


def test_folded_weights_are_exported_and_centred_ones_only_with_force(tmp_path):
    """Folding does not change the residual stream; vectors of centred weights, added, give equal logits."""
    hf_model, ids, path = random_hf_model("gpt2"), [1, 5, 7, 9], tmp_path / "v.gguf"
    for processing in ({"fold_ln": True, "center_writing_weights": False}, True):
        model = load_model("tiny-gpt2", hf_model=hf_model, device="cpu", processing=processing)
        assert model.cfg.normalization_type == "LNPre"
        vectors = vectors_of(model, layers=(1,))
        for write in (save_gguf, save_pt) if processing is True else ():
            assert_raises(r"centred weights.*processing=False.*pass force", write, vectors, tmp_path / "v")
            write(vectors, tmp_path / "v", force=True)
        save_gguf(vectors, path, force=processing is True)
        with added_by_hooks(hf_model, gguf_rows(path), 3.0):
            other_logits = logits_of(hf_model, ids)
        ours = steered_logits(model, ids, vectors, 3.0)
        torch.testing.assert_close(other_logits.log_softmax(-1), ours.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_a_gguf_file_is_what_llama_cpp_reads(tmp_path):
    vectors = vectors_of()
    save_gguf(vectors, tmp_path / "v.gguf", model_hint="llama")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    assert metadata["general.architecture"] == "controlvector"
    assert metadata["controlvector.model_hint"] == "llama"
    assert metadata["controlvector.layer_count"] == 2
    assert [each.name for each in reader.tensors] == ["direction.1", "direction.2"]
    for layer, each in enumerate(reader.tensors, start=1):
        assert each.tensor_type == gguf.GGMLQuantizationType.F32
        assert each.shape.tolist() == [D_MODEL]
        np.testing.assert_array_equal(each.data, vectors[layer].values.numpy())
    assert [file.name for file in tmp_path.iterdir()] == ["v.gguf"]


def test_layer_0_cannot_be_written_as_gguf(tmp_path):
    for layers, hint, message in (
        ((2, 1), "\ud800", r"model_hint '\\ud800' has half of a surrogate pair"),
        ((0, 1), None, r"cannot hold layer 0: llama\.cpp steers the blocks from 1 on"),
    ):
        assert_raises(message, save_gguf, vectors_of(layers=layers), tmp_path / "v.gguf", model_hint=hint)
    assert list(tmp_path.iterdir()) == []


def test_a_round_trip_through_gguf_keeps_everything(tmp_path):
    vectors = vectors_of(norms=[7.125, float("nan")])
    save_gguf(vectors, tmp_path / "v.gguf")
    result = load_gguf(tmp_path / "v.gguf", MODEL)
    assert torch.equal(result.values, vectors.values)
    np.testing.assert_array_equal(result.stream_norm, [7.125, np.nan])
    for name in ("layers", "hook", "method", "identity", "info"):
        assert getattr(result, name) == getattr(vectors, name), name
    save_gguf(vectors[2], tmp_path / "one.gguf")
    assert torch.equal(load_gguf(tmp_path / "one.gguf", MODEL)[2].values, vectors[2].values)


def test_a_gguf_file_of_ours_is_rejected_for_another_model(tmp_path):
    path, other = tmp_path / "v.gguf", make_model(word_tokenizer(), seed=1)
    save_gguf(vectors_of(), path)
    message = r"v\.gguf, made on tiny, .* the weights differ"
    assert_raises(message, load_gguf, path, other, error=ModelMismatchError)
    assert load_gguf(path, other, force=True).layers == (2, 1)
    wider = make_model(word_tokenizer(), d_model=32)
    assert_raises("d_model: 16 against 32", load_gguf, path, wider, error=ModelMismatchError, force=True)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf(path, tensors, *, architecture="controlvector", **keys):
    """As another program writes it."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, text in keys.items():
        writer.add_string(name.replace("__", "."), text)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    finish(writer)
    return path


def row(width=D_MODEL, dtype="f4"):
    return np.arange(1, width + 1).astype(dtype)


def test_a_gguf_file_of_another_program_gets_the_identity_of_the_model(tmp_path):
    tensors = {"direction.2": row(), "direction.1": 2 * row()}
    path = write_gguf(tmp_path / "v.gguf", tensors, controlvector__model_hint="llama")
    result = load_gguf(path, MODEL)
    values = torch.tensor(np.stack([2 * row(), row()]))
    expected = dataclasses.replace(vectors_of(layers=(1, 2)), values=values)
    require_imported(result, expected, "GGUF control vector v.gguf")
    assert result.info["model_hint"] == "llama"


DESCRIBED = {"tl_steer__description": describe(vectors_of())}
WRONG_GGUF = {
    "names direction.0, which llama.cpp rejects.*from_repeng": ({"direction.0": row()}, {}),
    "'direction.1' is not float32": ({"direction.1": row(dtype="f2")}, {}),
    "'direction.x' of shape .* is not a direction": ({"direction.x": row()}, {}),
    "'token_embd' of shape": ({"token_embd": row()}, {}),
    r"'direction.1' of shape \(2, 16\) is not a dir": ({"direction.1": np.stack([row(), row()])}, {}),
    "unequal lengths": ({"direction.1": row(), "direction.2": row(8)}, {}),
    r"vectors of 8 numbers; resid_post of tiny has 16: they are of ano": ({"direction.1": row(8)}, {}),
    r"layers \[3\]; tiny has layers 0 to 2: they are of another model": ({"direction.3": row()}, {}),
    "NaN or infinite": ({"direction.1": row() * np.float32("nan")}, {}),
    "holds no vectors": ({}, {}),
    r"holds no control vector: .*is 'llama'": ({"direction.1": row()}, {"architecture": "llama"}),
    r"layers \[1\], but its own description says \[2, 1\]": ({"direction.1": row()}, DESCRIBED),
    "its description is damaged": ({"direction.1": row()}, {"tl_steer__description": "{"}),
}


@pytest.mark.parametrize("message", WRONG_GGUF)
def test_gguf_files_that_are_not_control_vectors_of_this_model_are_rejected(tmp_path, message):
    tensors, keys = WRONG_GGUF[message]
    path = write_gguf(tmp_path / "v.gguf", tensors, **keys)
    assert_raises(rf"v\.gguf.*{message}", load_gguf, path, MODEL)


def test_a_failed_gguf_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "v.gguf"
    save_gguf(vectors_of(), path)
    before = path.read_bytes()

    def full(self, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    assert_raises("No space left", save_gguf, vectors_of(seed=1), path, error=OSError)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.gguf"]


def test_every_type_of_key_is_read_as_by_the_package_gguf(tmp_path):
    path = tmp_path / "v.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    numbers = {"uint32": 7, "int32": -7, "float32": 0.5, "bool": True, "uint64": 2**40, "float64": 0.1}
    for name, number in numbers.items():
        getattr(writer, f"add_{name}")(name, number)
    for name, items in (("integers", [1, 2, 3]), ("texts", ["x", "é"]), ("floats", [0.25, 0.5])):
        writer.add_array(name, items)
    writer.add_custom_alignment(64)
    for layer in (1, 2):
        writer.add_tensor(f"direction.{layer}", row() * layer)
    writer.add_tensor("square", np.arange(6, dtype="f4").reshape(2, 3))
    finish(writer)
    reader, (keys, tensors) = gguf.GGUFReader(path), read_gguf(path)
    assert keys == {
        name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
    }
    assert set(tensors) == {each.name for each in reader.tensors}
    for each in reader.tensors:
        np.testing.assert_array_equal(tensors[each.name], each.data)


def test_wrong_lengths_are_rejected_at_once(tmp_path):
    """The package gguf counts to 2⁶⁰ in the first."""
    path, huge = tmp_path / "v.gguf", 2**60
    text = struct.pack("<Q", 1) + b"a"
    axes = struct.pack("<I4Q", 4, huge, huge, huge, huge) + struct.pack("<IQ", 0, 0)
    for counts, body, message in (
        ((0, 1), text + struct.pack("<IIQ", 9, 4, huge), ""),  # an array of that many numbers
        ((0, 1), text + struct.pack("<IIQ", 9, 8, huge), ""),  # of that many texts
        ((0, 1), text + struct.pack("<IQ", 8, huge), ""),  # a text of that length
        ((0, 1), struct.pack("<Q", huge), ""),  # a key of that length
        ((0, 1), text + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 5000, ""),  # nested arrays
        ((0, 1), text + struct.pack("<I", 77), ""),  # no such type
        ((0, 1), text + struct.pack("<IQ", 8, 2) + b"\xff\xfe", ""),  # no UTF-8
        ((huge, 0), b"", ".*ends too early"),
        ((0, huge), b"", ".*ends too early"),
        ((1, 0), text + axes, ".*ends too early"),
    ):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + body)
        assert_raises(rf"v\.gguf is damaged{message}", load_gguf, path, MODEL)


def test_a_round_trip_through_repeng(repeng):
    vectors = vectors_of(layers=(2, 0))
    source = to_repeng(vectors, model_type="llama")
    assert isinstance(source, repeng.ControlVector)
    assert source.model_type == "llama"
    assert {layer: row.dtype for layer, row in source.directions.items()} == {2: np.float32, 0: np.float32}
    require_imported(from_repeng(source, MODEL), vectors, "repeng ControlVector")
    source.directions[0][:] = 0
    assert vectors[0].values.abs().sum() > 0  # no memory is shared
    assert set(to_repeng(vectors[2]).directions) == {2}


def test_a_round_trip_through_steering_vectors(steering_vectors):
    vectors = vectors_of(layers=(2, 0))
    source = to_steering_vectors(vectors)
    assert isinstance(source, steering_vectors.SteeringVector)
    assert source.layer_type == "decoder_block"
    require_imported(from_steering_vectors(source, MODEL), vectors, "steering-vectors SteeringVector")
    assert set(to_steering_vectors(vectors[2]).layer_activations) == {2}


def test_objects_of_repeng_are_read_without_repeng():
    control_vector = SimpleNamespace(model_type="llama", directions={1: row(), -1: row(dtype="f8")})
    result = from_repeng(control_vector, MODEL)
    assert result.layers == (1, 2)
    assert result.info == {"from": "repeng ControlVector", "model_type": "llama"}


@pytest.mark.parametrize(
    ("load", "source", "message"),
    [
        (from_repeng, {"directions": {1: row(8)}}, "8 numbers; resid_post of tiny has 16"),
        (from_repeng, {"directions": {5: row()}}, r"layers \[5\]; tiny has layers 0 to 2"),
        (from_repeng, {"directions": {2: row(), -1: row()}}, "names the same block twice"),
        (from_repeng, {"directions": {1: row(dtype="i4")}}, "int32, not floating-point numbers"),
        (from_repeng, {"directions": {1: [1.0, 2.0]}}, "layer 1: list, not floating-point"),
        (from_repeng, {"directions": {}}, "holds no vectors"),
        (from_repeng, 3, "a ControlVector of repeng is needed, not int"),
        (
            from_steering_vectors,
            {"layer_activations": {1: torch.ones(D_MODEL)}, "layer_type": "mlp"},
            "layer type 'mlp' is not a block's output",
        ),
        (from_steering_vectors, 3, "a SteeringVector of steering-vectors is needed, not int"),
    ],
)
def test_objects_that_are_not_vectors_of_block_outputs_are_rejected(load, source, message):
    error = ValueError if isinstance(source, dict) else TypeError
    source = SimpleNamespace(model_type="llama", **source) if isinstance(source, dict) else source
    assert_raises(message, load, source, MODEL, error=error)


@pytest.mark.parametrize("export", [to_repeng, to_steering_vectors, save_gguf, save_pt])
def test_other_hooks_and_vectors_per_position_are_not_exported(export, tmp_path):
    path = (tmp_path / "v",) if export in (save_gguf, save_pt) else ()
    message = r"these vectors are at resid_pre.*\.at\(layers=…, hook="
    assert_raises(message, export, vectors_of(hook="resid_pre"), *path)
    flat = vectors_of()
    by_position = dataclasses.replace(flat, values=flat.values[:, None].repeat(1, 3, 1))
    for each in (by_position, by_position[2]):
        assert_raises(r"one vector per layer; these are one per position \(made", export, each, *path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_an_error_with_the_remedy(monkeypatch):
    for export, library in ((to_repeng, "repeng"), (to_steering_vectors, "steering-vectors")):
        monkeypatch.setitem(sys.modules, library.replace("-", "_"), None)
        assert_raises(f"pip install {library}", export, vectors_of(), error=ImportError)


def test_repeng_under_numpy_2_is_an_error_with_the_remedy(monkeypatch):
    if importlib.util.find_spec("repeng") is None:
        pytest.skip("repeng is not installed")
    for name in [name for name in sys.modules if name.partition(".")[0] == "repeng"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(np, "float_", raising=False)
    with pytest.raises(ImportError, match=r"pip install repeng.*numpy\.float_ = numpy\.float64"):
        to_repeng(vectors_of())


def test_a_tensor_of_all_layers_of_some_or_of_one(reload):
    values = torch.randn(N_LAYERS, D_MODEL, dtype=torch.float64)
    result = reload(values)
    assert torch.equal(result.values, values.float())
    assert (result.layers, result.method, result.info) == ((0, 1, 2), "imported", {"from": "file v.pt"})
    result = reload(values[:2].bfloat16(), layers=[2, 0])
    assert torch.equal(result[2].values, values[0].bfloat16().float())
    assert torch.equal(result[0].values, values[1].bfloat16().float())
    assert torch.equal(reload(values[0], layers=-1)[2].values, values[0].float())


def test_a_dictionary_by_layer_and_another_hook(reload):
    assert reload(BY_LAYER).layers == (0, 2)
    one = reload(BY_LAYER, layers=-1, hook="resid_pre")
    assert (one.layers, one.hook) == ((2,), "resid_pre")
    assert torch.equal(one[2].values, ONES)
    assert reload({1: torch.ones(N_HEADS * 4)}, hook="z").values.shape == (1, N_HEADS * 4)
    message = "hook 'resid_past' does not exist.*this model has resid_pre"
    assert_raises(message, reload, BY_LAYER, hook="resid_past")


def test_a_tensor_of_hidden_states_begins_with_the_embedding_and_ends_after_the_norm(make_hf_model, reload):
    hf_model, ids = make_hf_model("llama"), [5, 6, 7, 8]
    model = load_model("tiny-llama", hf_model=hf_model, device="cpu")
    with torch.no_grad():
        states = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    rows = torch.stack([state[0, -1] for state in states])
    for hook, layers in (("resid_post", (0, 1)), ("resid_pre", (0, 1, 2))):
        vectors = reload(rows, model, hook=hook)
        assert vectors.layers == layers
        expected = capture(model, [ids], hook=hook, layers=list(layers)).values[0, :, 0]
        torch.testing.assert_close(vectors.values, expected, rtol=1e-4, atol=1e-5)
    assert reload(rows, model, layers=[1]).layers == (1,)
    assert_raises(r"no vector for layers \[2\]; it has \[0, 1\]", reload, rows, model, layers=[2])
    assert_raises("4 vectors for 3 layers", reload, rows, model, hook="mlp_out")


def test_one_position_of_a_tensor_is_selected(reload):
    values = torch.randn(5, N_LAYERS + 1, D_MODEL)
    assert torch.equal(reload(values, position=-2, layers=[1]).values[0], values[3, 2])
    result = reload(values[:, :2], position=1, layers=[2, 0])
    assert torch.equal(result[2].values, values[1, 0])


@pytest.mark.parametrize(
    "name",
    [
        "layer_{}", "layer{}", "Layer {}", "model.layers.{}", "transformer.h.{}", "blocks.{}", "L{}", "h.{}",
        "blocks.{}.hook_resid_post", "{}",
    ],
)  # fmt: skip
def test_a_dictionary_of_named_layers(reload, name):
    result = reload({name.format(layer): torch.full((D_MODEL,), float(layer)) for layer in (2, 0)})
    assert result.layers == (0, 2)
    assert result.values[:, 0].tolist() == [0.0, 2.0]


def test_a_round_trip_through_plain_tensors(tmp_path):
    vectors = vectors_of(layers=(2, 0))
    save_pt(vectors, tmp_path / "v.pt")
    loaded = torch.load(tmp_path / "v.pt", weights_only=True)
    assert {layer: tuple(each.shape) for layer, each in loaded.items()} == {2: (D_MODEL,), 0: (D_MODEL,)}
    require_imported(load_pt(tmp_path / "v.pt", MODEL), vectors, "file v.pt")
    loaded[0].zero_()
    assert vectors[0].values.all()


class Trap:
    """Unpickling this is seen."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.unpickled = True",))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save(Trap(), path),
        lambda path: torch.save({1: Trap()}, path),
        lambda path: torch.save(Trap(), path, _use_new_zipfile_serialization=False),
        lambda path: path.write_bytes(pickle.dumps(Trap())),
    ],
)
@pytest.mark.parametrize(
    ("load", "message"),
    [
        (lambda path: load_pt(path, MODEL), "holds something else than plain tensors.*it was not run"),
        (lambda path: load_gguf(path, MODEL), "is not a GGUF file"),
        (SteeringVectors.load, "is not a safetensors file; pickles are never loaded"),
        (PairedActivations.load, "is not a safetensors file; pickles are never loaded"),
    ],
)
def test_a_pickle_with_code_is_rejected_and_not_run(tmp_path, write, load, message):
    write(tmp_path / "v.pt")
    assert_raises(rf"v\.pt {message}", load, tmp_path / "v.pt")
    assert not hasattr(builtins, "unpickled")


# Per essential part of the message, what a file has and the arguments with which it is loaded.
BAD_TENSORS = {
    "holds a int, not a tensor": (3, {}),
    "holds a list, not a tensor": ([ONES], {}),
    "the key 'layers' is not a layer": ({"layers": ONES}, {}),
    "the key 'hidden_states_1' is not a layer": ({"hidden_states_1": ONES}, {}),
    "the key 'model.layers.1.mlp' is not a layer": ({"model.layers.1.mlp": ONES}, {}),
    "the key 'blocks.1.hook_resid_pre' is not a layer at resid_post": ({"blocks.1.hook_resid_pre": ONES}, {}),
    "the key -1 is not a layer": ({-1: ONES}, {}),
    "two vectors for layer 1": ({"1": ONES, 1: ONES}, {}),
    "layer 1: torch.int64, not floating": ({1: ONES.long()}, {}),
    r"shape \(1, 16\); one axis is allowed, dense": ({1: ONES[None]}, {}),
    r"shape \(16,\); one axis is allowed, dense": ({1: ONES.to_sparse()}, {}),
    r"shape \(2, 3, 16\) and position=None: expected an index": (torch.ones(2, 3, D_MODEL), {}),
    r"shape \(1, 2, 3, 16\); give layer d_hook": (torch.ones(1, 2, 3, D_MODEL), {}),
    "8 numbers; resid_post of tiny has 16": (torch.ones(3, 8), {}),
    r"layers \[9\]; tiny has layers 0 to 2": ({9: ONES}, {}),
    "holds NaN or infinite numbers": (torch.full((3, D_MODEL), torch.inf), {}),
    "holds no vectors": ({}, {}),
    r"has 1 vectors for 3 layers of tiny: say with layers=\[…\]": (ONES, {}),
    r"no vector for layers \[1\]; it has \[0, 2\]": (BY_LAYER, {"layers": [0, 1]}),
    r"dictionary, which takes no position=0": ({0: ONES}, {"position": 0}),
    r"shape \(4, 16\) and position=0": (torch.ones(4, D_MODEL), {"position": 0}),
    "position=5, but its first axis has 5 positions": (torch.ones(5, 2, D_MODEL), {"position": 5}),
}


@pytest.mark.parametrize("message", BAD_TENSORS)
def test_tensors_that_are_not_vectors_of_this_model_are_rejected(reload, message):
    value, options = BAD_TENSORS[message]
    assert_raises(rf"v\.pt.*{message}", reload, value, error=(ValueError, IndexError), **options)


def test_damaged_tensor_files_are_rejected(tmp_path):
    path = tmp_path / "v.pt"
    torch.save(torch.ones(3, D_MODEL), path)
    for content in (b"", b"x", path.read_bytes()[: path.stat().st_size // 2]):
        path.write_bytes(content)
        assert_raises(r"v\.pt holds something else .* or is damaged", load_pt, path, MODEL)
