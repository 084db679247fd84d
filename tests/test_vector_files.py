"""Files of vectors: contents, other models and versions, damage, and atomic writing."""

import dataclasses
import itertools
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
from tl_steer.interventions import Add, steer
from tl_steer.models import identify
from tl_steer.recipes import activation_addition

from .conftest import make_identity, make_pairs
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


def rewritten(path, change, *, tensors=None):
    """The file again, with its description changed in place by `change`."""
    description = read_description(path)
    change(description)
    with safe_open(path, framework="pt") as file:
        loaded = {"values": file.get_tensor("values")} if tensors is None else tensors
    metadata = {"format": description.get("format", FORMAT), "description": json.dumps(description)}
    save_file(loaded, path, metadata=metadata)
    return path


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    factors = pd.DataFrame({"group": range(8), "truth": [True, False] * 4})
    return make_pairs(rng.standard_normal((8, 2, 8)), rng.standard_normal((8, 2, 8)) - 1, factors=factors)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "v.safetensors"
    vectors_of().save(path)
    return path


# Contents


def test_a_file_has_metadata(pairs, tmp_path):
    source = principal_component(pairs, component=2, of="differences")
    before = datetime.now(UTC)
    source.save(tmp_path / "v.safetensors")
    description = read_description(tmp_path / "v.safetensors")
    identity = description["model"]
    assert {**identity, "fingerprint": tuple(identity["fingerprint"])} == dataclasses.asdict(pairs.identity)
    assert (description["hook"], description["layers"]) == ("resid_post", [0, 1])
    assert description["method"] == "principal_component(2, differences)"
    assert description["info"]["pairs"] == 8
    assert description["stream_norm"] == [10.0, 10.0]
    assert description["units"]["values"] == "stream units of the model's hook, unscaled"
    packages = ("tl_steer", "torch", "transformers", "transformer_lens")
    assert description["versions"] == {name: version(name.replace("_", "-")) for name in packages}
    assert abs((datetime.fromisoformat(description["saved"]) - before).total_seconds()) < 60


@pytest.mark.parametrize(("length", "direction"), [(1.0, True), (1.001, False), (3.0, False)])
def test_metadata_has_whether_vectors_are_directions(pairs, tmp_path, length, direction):
    (mean_difference(pairs).normalized() * length).save(tmp_path / "v.safetensors")
    assert read_description(tmp_path / "v.safetensors")["units"]["direction"] is direction


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
def test_every_estimator_records_its_arguments(pairs, tmp_path, method):
    estimator, arguments = ESTIMATORS[method]
    source = estimator(pairs)
    assert source.method == method
    assert source.info["arguments"] == arguments
    assert source.info["positions"] == "last_token()"
    assert source.info["data"] == mean_difference(pairs).info["data"]
    assert source.info.get("seed") == (7 if method == "random_direction" else None)
    source.save(tmp_path / "v.safetensors")
    assert SteeringVectors.load(tmp_path / "v.safetensors").info == source.info


def test_controls_factors_and_vectors_without_factors_are_saved(pairs, tmp_path):
    factors = factor_directions(pairs)
    result = {**control_vectors(pairs, random=1, shuffled=1), **factors}
    result["without"] = without_factors(mean_difference(pairs), factors)
    for number, each in enumerate(result.values()):
        each.save(tmp_path / f"{number}.safetensors")
        assert SteeringVectors.load(tmp_path / f"{number}.safetensors").info == each.info
    assert result["truth"].info["arguments"] == {"factor": "truth"}
    assert result["truth"].info["data"] == mean_difference(pairs).info["data"]
    assert isinstance(result["random 1"].info["seed"], int)


def test_vectors_of_two_prompts_record_the_prompts(tmp_path):
    source = activation_addition(MODEL, "good", "bad")
    source[1].save(tmp_path / "v.safetensors")
    message = read_description(tmp_path / "v.safetensors")["info"]
    assert message["arguments"] == {"positive": "good", "negative": "bad"}
    assert message["positions"] == 2  # <s> and the word
    assert message["data"] != activation_addition(MODEL, "bad", "good").info["data"]


def test_a_sum_of_vectors_of_different_data_has_both_in_info(pairs):
    first, second = mean_difference(pairs), mean_difference(pairs.subset(range(4)))
    both = first - second
    assert both.info == {"of": [first.info, second.info]}
    assert (first + first * 2).info == first.info


def test_files_match_the_schema(saved):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(read_description(saved), schema())
    described = {name for name, part in schema()["properties"].items() if part}
    assert described == set(read_description(saved))


def test_info_that_is_not_json_is_rejected_before_anything_is_written(tmp_path):
    path = tmp_path / "v.safetensors"
    with pytest.raises(ValueError, match=r"info cannot be written as JSON.*Tensor"):
        vectors_of(info={"x": torch.ones(1)}).save(path)
    with pytest.raises(ValueError, match=r"at \$\.info\.seed: 'abc' is not of type 'integer'"):
        vectors_of(info={"seed": "abc"}).save(path)
    assert list(tmp_path.iterdir()) == []


# Other models


def test_a_file_of_another_model_is_rejected_with_the_differences(saved):
    assert SteeringVectors.load(saved, model=MODEL).layers == (0, 2)
    wider = make_model(word_tokenizer(), d_model=32)
    with pytest.raises(ModelMismatchError, match=r"v\.safetensors, made on tiny, .* d_model: 16 against 32"):
        SteeringVectors.load(saved, model=wider)
    with pytest.raises(ModelMismatchError, match=r"d_model: 16 against 32.*force=True does not help"):
        SteeringVectors.load(saved, model=wider, force=True)
    with pytest.raises(ModelMismatchError, match=r"n_layers: 3 against 4; normalization: LN against LNPre"):
        SteeringVectors.load(
            saved, model=make_model(word_tokenizer(), n_layers=4, normalization_type="LNPre")
        )


def test_force_accepts_other_weights_and_is_needed_again_to_steer(saved):
    other = make_model(word_tokenizer(), seed=1)
    with pytest.raises(ModelMismatchError, match=r"v\.safetensors, made on tiny, .* the weights differ"):
        SteeringVectors.load(saved, model=other)
    forced = SteeringVectors.load(saved, model=other, force=True)
    assert forced.identity == identify(MODEL)
    with pytest.raises(ModelMismatchError, match="the weights differ"), steer(other, Add(forced)):
        pass
    with steer(other, Add(forced), force=True):
        other("a b")


# Other versions


def test_a_file_of_version_1_still_loads():
    """Written by the version of the package that had it."""
    result = SteeringVectors.load(VERSION_1)
    assert result.values.tolist() == torch.arange(16.0).reshape(2, 8).tolist()
    assert (result.layers, result.hook, result.method) == ((3, 1), "resid_post", "mean_difference")
    assert float(result[3].stream_norm) == 10.0
    assert np.isnan(result[1].stream_norm)
    assert (result.identity.name, result.identity.revision, result.identity.d_model) == ("toy", "abc", 8)
    assert len(result.identity.fingerprint) == 256
    assert result.info == {"pairs": 2, "positions": "last_token()", "data": "00ff"}


def write_version_1(path, **changes):
    identity = {**dataclasses.asdict(make_identity(d_model=2)), "fingerprint": [0.5] * 256}
    description = {"layers": [1], "hook": "resid_post", "method": "by hand", "info": {}}
    metadata = {
        "format": "tl_steer vectors 1",
        "identity": json.dumps(identity),
        "description": json.dumps(description | changes),
    }
    save_file({"values": torch.tensor([[1.0, 2.0]]), "stream_norm": torch.tensor([3.0])}, path, metadata)
    return path


def test_a_file_of_version_1_written_by_hand(tmp_path):
    result = SteeringVectors.load(write_version_1(tmp_path / "v.safetensors"))
    assert result[1].values.tolist() == [1.0, 2.0]
    assert (result.method, result[1].stream_norm) == ("by hand", 3.0)
    assert result.identity.fingerprint == (0.5,) * 256
    result.save(tmp_path / "again.safetensors")
    again = SteeringVectors.load(tmp_path / "again.safetensors")
    assert torch.equal(again.values, result.values)
    assert again.identity == result.identity
    with pytest.raises(ValueError, match=r"at \$\.layers\[0\]: 'x' is not of type 'integer'"):
        SteeringVectors.load(write_version_1(tmp_path / "v.safetensors", layers=["x"]))


# Damage


def update(**values):
    return lambda description: description.update(values)


DAMAGE = {
    r"at \$\.layers\[1\]: '2' is not of type 'integer'": update(layers=[0, "2"]),
    r"at \$\.layers: \[0, 0\] has non-unique elements": update(layers=[0, 0]),
    r"layers \[0, 3\] of a model that has 3": update(layers=[0, 3]),
    r"values of shape \(2, 16\) and 2 norms are not those of 1 layers": update(layers=[0]),
    r"and 1 norms are not": update(stream_norm=[1.0]),
    r"at \$: 'model' is a required property": lambda description: description.pop("model"),
    r"at \$\.model: 'd_head' is a required": lambda description: description["model"].pop("d_head"),
    r"at \$\.model.centred: 'no' is not": lambda description: description["model"].update(centred="no"),
    r"2 layers with 17 numbers each": lambda description: description["model"].update(d_model=17),
    r"at \$: 'units' is a required property": lambda description: description.pop("units"),
    r"at \$\.saved: 'yesterday' does not match": update(saved="yesterday"),
    r"description is damaged \(int too large": update(stream_norm=[10**400, 1]),
    r"newer tl_steer: its format is 'tl_steer vectors 3', .*'tl_steer vectors 2'": update(
        format="tl_steer vectors 3"
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_description_is_an_error_with_its_path(saved, message):
    with pytest.raises(ValueError, match=rf"v\.safetensors.*{message}"):
        SteeringVectors.load(rewritten(saved, DAMAGE[message]))


VALUES = {"values": torch.ones(2, D_MODEL)}
WHOLE_NUMBERS = {"values": torch.ones(2, D_MODEL, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("description", "tensors", "message"),
    [
        ("{", VALUES, "its description is damaged"),
        ("[]", VALUES, "its description is damaged .not an object"),
        ("[" * 100_000, VALUES, "its description is damaged"),
        (None, VALUES, "its description is damaged"),
        (describe(vectors_of()), {"other": torch.ones(2)}, r"has no tensor 'values'; it has \['other'\]"),
        (describe(vectors_of()), WHOLE_NUMBERS, "not all finite floating-point numbers"),
    ],
)
def test_files_without_a_description_or_values_are_rejected(description, tensors, message, tmp_path):
    metadata = {"format": FORMAT} | ({} if description is None else {"description": description})
    save_file(tensors, tmp_path / "v.safetensors", metadata)
    with pytest.raises(ValueError, match=rf"v\.safetensors:? .*{message}"):
        SteeringVectors.load(tmp_path / "v.safetensors")


def test_numbers_written_as_4_0_are_4(saved):
    rewritten(
        saved, lambda message: message.update(layers=[0.0, 2.0], model={**message["model"], "n_layers": 3.0})
    )
    result = SteeringVectors.load(saved, model=MODEL)
    assert [type(layer) for layer in result.layers] == [int, int]
    assert type(result.identity.n_layers) is int


# Atomic writing


@pytest.fixture(params=["vectors", "activations"])
def saveable(request, pairs):
    return mean_difference(pairs) if request.param == "vectors" else pairs


def test_a_failed_write_leaves_the_old_file(saveable, tmp_path, monkeypatch):
    def failing(path, content):
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError(28, "No space left on device")

    path = tmp_path / "v.safetensors"
    saveable.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="No space left"):
        saveable.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["v.safetensors"]


def test_a_file_is_written_to_no_other_scratch_file_and_is_readable(saveable, tmp_path, monkeypatch):
    """The scratch file of safetensors' own writer outlives a kill, and only its owner may read it."""
    seen, flush = [], os.fsync

    def flushing(handle):
        seen.append(os.readlink(f"/proc/self/fd/{handle}"))
        flush(handle)

    (tmp_path / "plain").touch()
    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr("safetensors.torch.save_file", None)
    monkeypatch.setattr("safetensors.torch.serialize_file", None)
    saveable.save(tmp_path / "v.safetensors")
    assert Path(seen[0]).name.startswith(".v.safetensors.")
    assert (tmp_path / "v.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_temporary_file_is_in_the_folder_and_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, call=original: (events.append(name), call(*args))[1]
        )
    (tmp_path / "a.txt").write_text("old")
    with atomic(tmp_path / "a.txt") as scratch:
        assert scratch.parent == tmp_path
        assert scratch.name.startswith(f".a.txt.{os.getpid()}-")
        assert scratch.suffix == ".part"
        scratch.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert events[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_removes_the_scratch_file(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), atomic(str(tmp_path / "a.txt")) as scratch:  # noqa: PT012
        scratch.write_text("half")
        raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_nothing_written_is_an_error_and_two_writers_do_not_mix(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a.txt"):
        pass
    with atomic(tmp_path / "a.txt") as first, atomic(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


KILLED = """
import itertools, pathlib, sys, importlib.util
found = importlib.util.spec_from_file_location("writing", sys.argv[1])
writing = importlib.util.module_from_spec(found)
found.loader.exec_module(writing)
for number in itertools.count():
    with writing.atomic(sys.argv[2]) as scratch:
        scratch.write_text(str(number % 10) * 200_000)
"""


@pytest.mark.integration
@pytest.mark.skipif(os.name != "posix", reason="kill -9 is for posix")
def test_a_process_killed_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    module = Path(sys.modules["tl_steer._util.file_io"].__file__)
    for wait in (0.0, 0.05, 0.11):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(module), str(path)])
        for _ in itertools.count():
            if path.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
        text = path.read_text()
        assert len(text) == 200_000
        assert len(set(text)) == 1


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic(tmp_path / "link") as scratch:
        scratch.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
