"""Files of vectors: contents, other models and versions, damage, and atomic writing."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tl_steer._util.file_io import atomic
from tl_steer.directions import (
    SteeringVectors,
    control_vectors,
    factor_directions,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
    without_factors,
)
from tl_steer.directions.vector_files import FORMAT, describe, schema
from tl_steer.errors import ModelMismatchError
from tl_steer.models import identify
from tl_steer.recipes import activation_addition

from .conftest import assert_raises, make_pairs
from .tiny_model import D_MODEL, make_model, word_tokenizer

VERSION_1 = Path(__file__).parent / "vectors_version_1.safetensors"
MODEL = make_model(word_tokenizer())


def vectors_of(model=MODEL, *, layers=(0, 2), info=None):
    values = torch.randn(len(layers), D_MODEL, generator=torch.Generator().manual_seed(3))
    norms = torch.tensor([float(10 + layer) for layer in layers])
    return SteeringVectors(values, layers, "resid_post", "made", norms, identify(model), info or {})


def read_description(path):
    """The metadata of a file, read with safetensors alone."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "description"}
    description = json.loads(metadata["description"])
    assert metadata["format"] == description["format"] == FORMAT
    return description


def rewritten(path, change):
    """The file again, with its description changed in place by `change`."""
    description = read_description(path)
    change(description)
    with safe_open(path, framework="pt") as file:
        tensors = {"values": file.get_tensor("values")}
    metadata = {"format": description.get("format", FORMAT), "description": json.dumps(description)}
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    factors = pd.DataFrame({"group": range(8), "truth": [True, False] * 4})
    return make_pairs(rng.standard_normal((8, 2, 8)), rng.standard_normal((8, 2, 8)) - 1, factors=factors)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "v.safetensors"


@pytest.fixture
def saved(path):
    vectors_of().save(path)
    return path


def test_a_file_has_metadata(pairs, path):
    before = datetime.now(UTC)
    principal_component(pairs, component=2, of="differences").save(path)
    description = read_description(path)
    identity = description["model"]
    assert {**identity, "fingerprint": tuple(identity["fingerprint"])} == dataclasses.asdict(pairs.identity)
    assert (description["hook"], description["layers"]) == ("resid_post", [0, 1])
    assert description["method"] == "principal_component(2, differences)"
    assert description["info"]["pairs"] == 8
    assert description["stream_norm"] == [10.0, 10.0]
    packages = ("tl_steer", "torch", "transformers", "transformer_lens")
    assert description["versions"] == {name: version(name.replace("_", "-")) for name in packages}
    assert abs((datetime.fromisoformat(description["saved"]) - before).total_seconds()) < 60


@pytest.mark.parametrize(("length", "direction"), [(1.0, True), (1.001, False), (3.0, False)])
def test_metadata_has_whether_vectors_are_directions(pairs, path, length, direction):
    (mean_difference(pairs).normalized() * length).save(path)
    assert read_description(path)["units"]["direction"] is direction


ESTIMATORS = {
    "mean_difference": (mean_difference, {}),
    "principal_component(1, pooled)": (principal_component, {"component": 1, "of": "pooled", "sign": "mean"}),
    "principal_component(+1·PC1 -0.5·PC2, pooled)": (
        partial(principal_component, component={1: 1.0, 2: -0.5}),
        {"component": {"1": 1.0, "2": -0.5}, "of": "pooled", "sign": "mean"},
    ),
    "logistic_direction": (partial(logistic_direction, C=0.5), {"C": 0.5}),
    "lda_direction": (lda_direction, {}),
    "random_direction": (partial(random_direction, seed=7), {}),
}


@pytest.mark.parametrize("method", ESTIMATORS)
def test_every_estimator_records_its_arguments(pairs, path, method):
    estimator, arguments = ESTIMATORS[method]
    source = estimator(pairs)
    assert source.method == method
    assert source.info["arguments"] == arguments
    assert source.info["positions"] == "last_token()"
    assert source.info["data"] == mean_difference(pairs).info["data"]
    assert source.info.get("seed") == (7 if method == "random_direction" else None)
    source.save(path)
    assert SteeringVectors.load(path).info == source.info


def test_controls_factors_and_vectors_without_factors_are_saved(pairs, path):
    factors = factor_directions(pairs)
    result = {**control_vectors(pairs, random=1, shuffled=1), **factors}
    result["without"] = without_factors(mean_difference(pairs), factors)
    for each in result.values():
        each.save(path)
        assert SteeringVectors.load(path).info == each.info
    assert result["truth"].info["arguments"] == {"factor": "truth"}
    assert result["truth"].info["data"] == mean_difference(pairs).info["data"]
    assert isinstance(result["random 1"].info["seed"], int)


def test_vectors_of_two_prompts_record_the_prompts(path):
    source = activation_addition(MODEL, "good", "bad")
    source[1].save(path)
    info = read_description(path)["info"]
    assert info["arguments"] == {"positive": "good", "negative": "bad"}
    assert info["positions"] == 2  # <s> and the word
    assert info["data"] != activation_addition(MODEL, "bad", "good").info["data"]


def test_a_sum_of_vectors_of_different_data_has_both_in_info(pairs):
    first, second = mean_difference(pairs), mean_difference(pairs.subset(range(4)))
    assert (first - second).info == {"of": [first.info, second.info]}
    assert (first + first * 2).info == first.info


def test_files_match_the_schema(saved):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(read_description(saved), schema())
    described = {name for name, part in schema()["properties"].items() if part}
    assert described == set(read_description(saved))


def test_info_that_is_not_json_is_rejected_before_anything_is_written(path, tmp_path):
    for info, message in (
        ({"x": torch.ones(1)}, "info cannot be written as JSON.*Tensor"),
        ({"seed": "abc"}, r"at \$\.info\.seed: 'abc' is not of type 'integer'"),
    ):
        assert_raises(message, vectors_of(info=info).save, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "force", "message"),
    [
        ({"d_model": 32}, False, r"v\.safetensors, made on tiny, .* d_model: 16 against 32"),
        ({"d_model": 32}, True, r"d_model: 16 against 32.*force=True does not help"),
        (
            {"n_layers": 4, "normalization_type": "LNPre"},
            False,
            "3 against 4; normalization: LN against",
        ),
        ({"seed": 1}, False, r"v\.safetensors, made on tiny, .* the weights differ"),
    ],
)
def test_a_file_of_another_model_is_rejected_with_the_differences(saved, changes, force, message):
    other = make_model(word_tokenizer(), **changes)
    assert_raises(message, SteeringVectors.load, saved, model=other, force=force, error=ModelMismatchError)


def test_force_accepts_other_weights(saved):
    other = make_model(word_tokenizer(), seed=1)
    assert SteeringVectors.load(saved, model=other, force=True).identity == identify(MODEL)


def test_a_file_of_version_1_still_loads(path):
    """Written by the version of the package that had it."""
    result = SteeringVectors.load(VERSION_1)
    assert result.values.tolist() == torch.arange(16.0).reshape(2, 8).tolist()
    assert (result.layers, result.hook, result.method) == ((3, 1), "resid_post", "mean_difference")
    assert float(result[3].stream_norm) == 10.0
    assert np.isnan(result[1].stream_norm)
    assert (result.identity.name, result.identity.revision, result.identity.d_model) == ("toy", "abc", 8)
    assert len(result.identity.fingerprint) == 256
    assert result.info == {"pairs": 2, "positions": "last_token()", "data": "00ff"}
    with safe_open(VERSION_1, framework="pt") as file:
        metadata, values = file.metadata(), file.get_tensor("values")
    metadata["description"] = json.dumps({**json.loads(metadata["description"]), "layers": ["x"]})
    save_file({"values": values, "stream_norm": torch.ones(2)}, path, metadata)
    message = r"at \$\.layers\[0\]: 'x' is not of type 'integer'"
    assert_raises(message, SteeringVectors.load, path)


def update(part=None, **values):
    return lambda description: (description if part is None else description[part]).update(values)


def without(name):
    return lambda description: description.pop(name)


DAMAGE = {
    r"at \$\.layers\[1\]: '2' is not of type 'integer'": update(layers=[0, "2"]),
    r"at \$\.layers: \[0, 0\] has non-unique elements": update(layers=[0, 0]),
    r"layers \[0, 3\] of a model that has 3": update(layers=[0, 3]),
    r"values of shape \(2, 16\) and 2 norms are not those of 1 layers": update(layers=[0]),
    r"and 1 norms are not": update(stream_norm=[1.0]),
    r"at \$: 'model' is a required property": without("model"),
    r"at \$\.model: 'd_head' is a required": lambda description: description["model"].pop("d_head"),
    r"at \$\.model.centred: 'no' is not": update("model", centred="no"),
    r"2 layers with 17 numbers each": update("model", d_model=17),
    r"at \$: 'units' is a required property": without("units"),
    r"at \$\.saved: 'yesterday' does not match": update(saved="yesterday"),
    r"description is damaged \(int too large": update(stream_norm=[10**400, 1]),
    r"its format is 'tl_steer vectors 3', .*'tl_steer vectors 2'": update(format="tl_steer vectors 3"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_description_is_an_error_with_its_path(saved, message):
    assert_raises(rf"v\.safetensors.*{message}", SteeringVectors.load, rewritten(saved, DAMAGE[message]))


VALUES, INTEGERS = ({"values": torch.ones(2, D_MODEL, dtype=dtype)} for dtype in (None, torch.int32))


@pytest.mark.parametrize(
    ("description", "tensors", "message"),
    [
        (None, VALUES, "its description is damaged"),
        ("{", VALUES, "its description is damaged"),
        ("[]", VALUES, "its description is damaged .not an object"),
        ("[" * 100_000, VALUES, "its description is damaged"),
        (describe(vectors_of()), {"other": torch.ones(2)}, r"has no tensor 'values'; it has \['other'\]"),
        (describe(vectors_of()), INTEGERS, "not all finite floating-point numbers"),
    ],
)
def test_files_without_a_description_or_values_are_rejected(description, tensors, message, path):
    save_file(tensors, path)
    assert_raises(r"v\.safetensors does not hold steering vectors", SteeringVectors.load, path)
    save_file(
        tensors, path, {"format": FORMAT} | ({} if description is None else {"description": description})
    )
    assert_raises(rf"v\.safetensors:? .*{message}", SteeringVectors.load, path)


def test_numbers_written_as_4_0_are_4(saved):
    rewritten(rewritten(saved, update(layers=[0.0, 2.0])), update("model", n_layers=3.0))
    result = SteeringVectors.load(saved, model=MODEL)
    assert [type(layer) for layer in result.layers] == [int, int]
    assert type(result.identity.n_layers) is int


@pytest.fixture(params=["vectors", "activations"])
def saveable(request, pairs):
    return mean_difference(pairs) if request.param == "vectors" else pairs


def test_a_failed_write_leaves_the_old_file(saveable, path, tmp_path, monkeypatch):
    def failing(path, content):
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device")

    saveable.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", failing)
    assert_raises("No space left", saveable.save, path, error=OSError)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.safetensors"]


def test_a_file_is_written_to_no_other_scratch_file_and_is_readable(saveable, path, tmp_path, monkeypatch):
    """The scratch file of safetensors' own writer outlives a kill, and only its owner may read it."""
    seen, flush = [], os.fsync

    def flushing(handle):
        seen.append(os.readlink(f"/proc/self/fd/{handle}"))
        flush(handle)

    (tmp_path / "plain").touch()
    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr("safetensors.torch.save_file", None)
    monkeypatch.setattr("safetensors.torch.serialize_file", None)
    saveable.save(path)
    assert Path(seen[0]).name.startswith(".v.safetensors.")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_temporary_file_is_in_the_folder_and_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    events, path = [], tmp_path / "a.txt"

    def recording(name, function, *args):
        events.append(name)
        return function(*args)

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, partial(recording, name, getattr(os, name)))
    path.write_text("old")
    with atomic(path) as scratch:
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(f".a.txt.{os.getpid()}-")
        assert scratch.suffix == ".part"
        scratch.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert events[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_removes_the_scratch_file(path, error):
    path.write_text("old")
    with pytest.raises(error), atomic(str(path)) as scratch:  # noqa: PT012
        scratch.write_text("half")
        raise error
    assert list(path.parent.iterdir()) == [path]
    assert path.read_text() == "old"


def test_nothing_written_is_an_error_and_two_writers_do_not_mix(path):
    with pytest.raises(FileNotFoundError), atomic(path):
        pass
    with atomic(path) as first, atomic(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import itertools, sys, importlib.util
spec = importlib.util.spec_from_file_location("writing", sys.argv[1])
writing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(writing)
for number in itertools.count():
    with writing.atomic(sys.argv[2]) as scratch:
        scratch.write_text(str(number % 10) * 200_000)
"""


@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is for posix")
def test_a_process_killed_while_writing_leaves_a_whole_file(path):
    command = [sys.executable, "-c", KILLED, sys.modules["tl_steer._util.file_io"].__file__, str(path)]
    for wait in (0.0, 0.05, 0.11):
        process = subprocess.Popen(command)
        while not path.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        text = path.read_text()
        assert text == text[0] * 200_000


def test_a_link_to_a_file_stays_a_link(path):
    link = path.with_name("link")
    path.write_text("old")
    link.symlink_to(path)
    with atomic(link) as scratch:
        scratch.write_text("new")
    assert link.is_symlink()
    assert path.read_text() == "new"
