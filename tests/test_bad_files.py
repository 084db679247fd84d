"""Foreign or damaged files: read correctly, or rejected with a clear error."""

import csv
import functools
import io
import json
import math
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import tl_steer as ts
from tl_steer.directions.exchange import load_gguf, load_pt, save_gguf, save_pt
from tl_steer.experiments import read_experiment
from tl_steer.experiments.config_file import Experiment, own_experiments
from tl_steer.positions import PromptTokens
from tl_steer.texts.judge_requests import ReplyCache

from .conftest import assert_raises, make_pairs
from .fuzzing import damaged, fuzz, numbers, one_changed, texts
from .tiny_model import D_MODEL, made_vector, make_model, word_tokenizer


def content_of(save_to, *args) -> bytes:
    """Content of a file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        save_to(*args, Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def as_json(value) -> bytes:
    """JSON of any depth: `json.dumps` gives up at a thousand."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000


# ---- CSV
COLUMNS = {
    ts.read_claims: ("statement", "label"),
    ts.prompts.read_reviews: ("review", "label"),
    ts.prompts.read_misconceptions: ("question", "correct", "incorrect"),
    ts.prompts.read_dilemmas: ("dilemma",),
    ts.prompts.read_prompts: ("prompt",),
    ts.prompts.read_neutral: ("passage",),
    ts.read_pairs: ("positive", "negative"),
}
TEXTS = ["The sky is blue.", "Ice, when hot, sinks.", "It said “so”.\nTwice."]


def csv_rows(reader):
    """Header and three rows, with a column of the user's own."""
    columns = [["1", "0", "1"] if name == "label" else TEXTS for name in COLUMNS[reader]]
    return [[*COLUMNS[reader], "topic"], *map(list, zip(*columns, ["weather"] * 3, strict=True))]


def as_csv(rows) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def check_csv(result, content):
    if isinstance(result, ts.prompts.ContrastPairs):
        result = {"positive": result.positive, "negative": result.negative}
    header, *body = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    for name in next(names for names in COLUMNS.values() if set(names) <= set(result)):
        values = list(result[name])
        assert values, "no rows"
        if name == "label":
            assert set(values) <= {0, 1}
        else:
            assert all(isinstance(value, str) and value.strip() for value in values)
            assert values == [row[header.index(name)] for row in body if row]


def changed_csv(reader):
    """A valid table with a value, a row or a column's name changed."""
    numerals = numbers().map(lambda number: str(number)[:400])
    rows = one_changed(csv_rows(reader), st.one_of(texts(), numerals, st.sampled_from(COLUMNS[reader])))
    lists = rows.filter(lambda table: isinstance(table, list))
    return lists.filter(lambda table: all(isinstance(row, list) for row in table)).map(as_csv)


def damaged_csv(reader):
    return damaged(as_csv(csv_rows(reader)))


def check_damaged_csv(result, content):
    if b'"' not in content:  # with unbalanced quotation marks, csv.reader may rightly differ
        check_csv(result, content)


# ---- experiments
def experiments(change, write=lambda values: values):
    folder = resources.files("tl_steer.experiments")
    files = [tomllib.loads((folder / f"{name}.toml").read_text()) for name in own_experiments()]
    return st.sampled_from(files).map(write).flatmap(change)


def as_toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        items = (f"{json.dumps(str(key))} = {as_toml(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        depth = 0
        while isinstance(value, list) and len(value) == 1:  # no recursion: the nesting can be far too deep
            value, depth = value[0], depth + 1
        inner = f"[{', '.join(map(as_toml, value))}]" if isinstance(value, list) else as_toml(value)
        return "[" * depth + inner + "]" * depth
    return json.dumps(value) if isinstance(value, str) else str(value)


def toml_file(values) -> bytes:
    if not isinstance(values, dict):
        return as_toml(values).encode()
    return "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in values.items()).encode()


def numbers_in(value):
    if is_dataclass(value):
        value = tuple(getattr(value, each.name) for each in fields(value))
    if isinstance(value, Mapping):
        value = (*value, *value.values())
    if isinstance(value, tuple):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []


def check_experiment(result, content):
    assert isinstance(result, Experiment)
    assert all(math.isfinite(number) for number in numbers_in(result))
    assert result.source.encode() == content


# ---- recorded answers
RECORDED = [
    {
        "sentence": f"Is it true that {claim}? (A)",
        "answer_neut": "True.",
        "steered": {
            "layer1_mult2": {"answer_pos": "(A) True", "answer_neg": "False"},
            "layer1,2_mult0.5": {"answer_zeroedout": "neither"},
        },
    }
    for claim in ("ice floats", "fire is cold")
]


def check_recorded(result, content):
    items = json.loads(content.decode("utf-8-sig"))
    steered = [list(item.get("steered", {}).values()) for item in items]
    answers = {item["answer_neut"] for item in items}
    answers |= {text for conditions in steered for condition in conditions for text in condition.values()}
    assert len(result) == len(items) * (1 + sum(map(len, steered[0])))
    assert set(result["text"]) == answers
    assert list(result["prompt"][: len(items)]) == [item["sentence"] for item in items]
    assert (result["multiplier"].map(math.isfinite) == (result["operation"] != "project_out")).all()


# ---- vectors and activations
@functools.cache
def saved(name) -> bytes:
    positive, negative = np.random.default_rng(0).normal(size=(2, 4, 3, 8))
    pairs = make_pairs(positive + 1, negative)
    return content_of((ts.mean_difference(pairs) if name == "vectors" else pairs).save)


def parsed_or_text(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def safetensors_file(tensors, metadata) -> bytes:
    if not isinstance(metadata, dict):
        metadata = {"format": as_json(metadata).decode()}

    def writable(value):
        text = value if isinstance(value, str) else as_json(value).decode()
        return text.encode("utf-8", "replace").decode()

    return save(tensors, {writable(key): writable(value) for key, value in metadata.items()})


def changed_tensors(tensors):
    """Tensors with one removed, added, or of another shape, type or value."""

    def changed(name, change):
        tensor, others = tensors[name].clone(), {key: value.clone() for key, value in tensors.items()}
        if change == "remove":
            del others[name]
        elif change == "add":
            others[f"{name}.more"] = tensor
        elif isinstance(change, float):
            others[name].view(-1)[:1] = change if tensor.is_floating_point() else -7
        else:
            others[name] = tensor.to(change) if isinstance(change, torch.dtype) else tensor[change].clone()
        return others

    dtypes = [torch.float16, torch.int32, torch.complex64, torch.bool]
    shapes = [0, (None, None, None), slice(-1), slice(0), (..., slice(-1))]
    changes = ["remove", "add", math.nan, math.inf, *dtypes, *shapes]
    return st.builds(changed, st.sampled_from(sorted(tensors)), st.sampled_from(changes))


def changed_safetensors(name):
    content = saved(name)
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    tensors, metadata = load(content), {key: parsed_or_text(text) for key, text in metadata.items()}
    metadata_changed = one_changed(metadata).map(lambda values: safetensors_file(tensors, values))
    tensors_changed = changed_tensors(tensors).map(lambda values: safetensors_file(values, metadata))
    return st.one_of(metadata_changed, metadata_changed, tensors_changed)


def check_vectors(result, content):
    assert result.values.dtype == torch.float32
    assert bool(torch.isfinite(result.values).all())
    assert len(result.values) == len(result.layers) == len(result.stream_norm) > 0
    assert not bool(torch.isinf(result.stream_norm).any())
    assert all(type(layer) is int and 0 <= layer < result.identity.n_layers for layer in result.layers)
    assert len(set(result.layers)) == len(result.layers)
    assert type(result.hook) is type(result.method) is str
    assert all(torch.equal(vector.values, row) for vector, row in zip(result, result.values, strict=True))
    repr(result * 0.5)


def check_activations(result, content):
    for side in (result.positive, result.negative):
        prompts, layers, width, _ = side.values.shape
        assert (prompts, layers) == (len(side.prompts), len(side.layers))
        assert tuple(side.token_index.shape) == tuple(side.tokens.shape) == (prompts, width)
        assert all(isinstance(prompt, str) for prompt in side.prompts)
    assert len(result.factors) == len(result)
    repr(result)
    if bool((result.positive.token_index >= 0).all()):
        result.subset([0])


# ---- the judge's cache
REPLIES = [{"key": key * 64, "reply": reply} for key, reply in zip("abc", ["1", "é", "tie"], strict=True)]


def as_lines(entries) -> bytes:
    entries = entries if isinstance(entries, list) else [entries]
    return b"".join(b"\n" + as_json(entry) + b"\n" for entry in entries)


def check_cache(result, content):
    """Check that each valid line with a key and a reply is in the cache, the last one per key."""
    replies = {}
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("key", "reply")):
            replies[entry["key"]] = entry["reply"]
    assert all(result[key] == reply for key, reply in replies.items())
    assert "z" * 64 not in result


# ---- control vectors and tensors of other libraries
@functools.cache
def tiny():
    return make_model(word_tokenizer())


@functools.cache
def exchanged(save_to) -> bytes:
    vector, values = made_vector(tiny(), 1), torch.ones(2, D_MODEL)
    vectors = ts.SteeringVectors(values, (1, 2), "resid_post", "mean", torch.ones(2), vector.identity)
    return content_of(save_to, vectors)


def gguf_files(change):
    """Changes of a GGUF file of ours, and of one without our description, as other libraries write it."""
    own = exchanged(save_gguf)
    return change(own) | change(own.replace(b"tl_steer.description", b"xx_steer.description"))


def huge_counts(content: bytes):
    """Eight bytes somewhere replaced by an enormous length, which must not be allocated."""
    sizes = st.sampled_from([2**63 - 1, 2**62, 2**40, 2**32, 2**64 - 1])
    return st.builds(
        lambda offset, size: content[:offset] + size.to_bytes(8, "little") + content[offset + 8 :],
        st.integers(4, min(len(content) - 8, 400)),
        sizes,
    )


def check_imported(result, content):
    assert bool(torch.isfinite(result.values).all())
    assert tuple(result.values.shape) == (len(result.layers), D_MODEL)
    assert set(result.layers) <= {0, 1, 2}


def loading(load_from):
    return lambda path: load_from(path, tiny())


# ---- tables of sweeps
TABLE = {
    "prompt_id": [0, 1] * 3, "prompt": ["a", "b"] * 3, "kind": ["x", "y"] * 3, "control": [False] * 6,
    "vector": ["none"] * 2 + ["v"] * 4, "operation": ["none"] * 2 + ["add"] * 4,
    "layers": [""] * 2 + ["1"] * 4, "hook": [""] * 2 + ["resid_post"] * 4,
    "multiplier": [0.0] * 2 + [1.0] * 2 + [-1.0] * 2, "dose": [0.0] * 2 + [0.1] * 4,
    "split": ["choose", "report"] * 3, "answer": [0, 1] * 3, "choice": [0, 0, 1, 1, 0, 1],
    "logit_difference": [1.0, -1.0, 2.0, 0.5, -2.0, 0.1], "probability": [0.5] * 6, "mass": [0.9] * 6,
    "text": [None] * 6,
}  # fmt: skip


def read_table(path):
    try:
        table = pd.read_parquet(path)
    except Exception:  # not a file that pandas wrote
        return None
    return [ts.effectiveness(table), ts.evaluation.prompt_slopes(table), ts.effectiveness(table, by="kind")]


def changed_tables():
    """The table with a column removed, renamed or of other values."""
    cells = st.one_of(st.sampled_from([0, 1, 2.5, -1]), st.none()), st.text("ab01", max_size=3)
    others = st.one_of(st.lists(cell, min_size=6, max_size=6) for cell in cells)
    whole = one_changed(TABLE, others).filter(lambda columns: isinstance(columns, dict))
    columns_of_six = whole.filter(lambda columns: all(len(column) == 6 for column in columns.values()))
    return columns_of_six.map(as_parquet)


def as_parquet(columns) -> bytes:
    names = [name.encode("utf-8", "replace").decode().replace("\x00", "0") for name in columns]
    try:
        return content_of(pd.DataFrame(dict(zip(names, columns.values(), strict=True))).to_parquet)
    except Exception:  # mixed types that Parquet does not take
        hypothesis.reject()


def check_table(result, content):
    for table in result:
        for column in table.select_dtypes("number"):
            assert not np.isinf(table[column].to_numpy(float, na_value=0)).any(), column


# ---- all files: inputs, function and check of each target.
TARGETS = {
    **{f.__name__: (functools.partial(changed_csv, f), f, check_csv) for f in COLUMNS},
    **{f"damaged {f.__name__}": (functools.partial(damaged_csv, f), f, check_damaged_csv) for f in COLUMNS},
    "experiment": (lambda: experiments(one_changed).map(toml_file), read_experiment, check_experiment),
    "damaged experiment": (lambda: experiments(damaged, toml_file), read_experiment, check_experiment),
    "recorded answers": (lambda: one_changed(RECORDED).map(as_json), ts.texts.read_recorded, check_recorded),
    "damaged recorded answers": (lambda: damaged(as_json(RECORDED)), ts.texts.read_recorded, check_recorded),
    "vectors": (lambda: changed_safetensors("vectors"), ts.SteeringVectors.load, check_vectors),
    "damaged vectors": (lambda: damaged(saved("vectors")), ts.SteeringVectors.load, check_vectors),
    "activations": (lambda: changed_safetensors("pairs"), ts.PairedActivations.load, check_activations),
    "damaged activations": (lambda: damaged(saved("pairs")), ts.PairedActivations.load, check_activations),
    "replies": (lambda: one_changed(REPLIES).map(as_lines), ReplyCache, check_cache),
    "damaged replies": (lambda: damaged(as_lines(REPLIES)), ReplyCache, check_cache),
    "control vectors": (lambda: gguf_files(huge_counts), loading(load_gguf), check_imported),
    "damaged control vectors": (lambda: gguf_files(damaged), loading(load_gguf), check_imported),
    "tensors": (lambda: damaged(exchanged(save_pt)), loading(load_pt), check_imported),
    "tables": (changed_tables, read_table, check_table),
}


@pytest.mark.integration
@pytest.mark.parametrize("examples", [100, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore:.* (repeated|have the same text)")  # all its pairs have
def test_a_bad_file_is_read_correctly_or_rejected(name, examples, tmp_path):
    inputs, read, check = TARGETS[name]
    if name == "tables":  # three functions read each one
        examples //= 10
    elif read in COLUMNS:  # all of them share one reader
        examples //= len(COLUMNS)
    fuzz(inputs(), read, check, examples, tmp_path)


# ---- the text form of positions
PIECES = [
    "token(", "span(", "all_tokens()", "last_token()", "generated_tokens()", "after('a')", "tokens_matching(",
    "0", "-1", "1.5", "None", "'a'", ")", ",", " ", "|", "&", "~", "(", "a", ".x", "**", "[0]", "True",
    "10" * 30, "1e400", "~" * 3000, "(" * 300, "lambda: 0", "\x00", "\n", "é", "\ud800", "__import__('os')",
]  # fmt: skip


def select(positions):
    return positions.select(PromptTokens(3, (3, 4, 5), tiny().tokenizer))


def check_positions(result, text):
    assert ts.positions.parse_positions(result.label) == result
    mask = select(result)
    assert mask.shape == (3,)
    assert mask.dtype == torch.bool


@pytest.mark.integration
@pytest.mark.parametrize("examples", [200, pytest.param(4000, marks=pytest.mark.slow)])
def test_malformed_positions_are_rejected(examples):
    joined = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
    broken = damaged(b"(token(0) | span(1, -1)) & ~after('a b')")
    inputs = joined | broken.map(lambda content: content.decode("utf-8", "replace"))
    fuzz(inputs, ts.positions.parse_positions, check_positions, examples)


# ---- inputs that once failed
EXPERIMENT = 'title = "a"\n[pairs]\nkind = "csv"\n[questions]\nkind = "sentiment"\n[sweep]\nmultipliers = '


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (ts.read_claims, "statement,label\na\x00b,1\n", "NUL characters in it; save it as CSV in UTF-8"),
        (ts.read_claims, "statement,label,statement\na,1,b\n", "several columns 'statement'"),
        (read_experiment, EXPERIMENT + "[nan]\n", "a finite number"),
        (read_experiment, EXPERIMENT + "[1.0, inf]\n", "a finite number"),
        (read_experiment, EXPERIMENT + f"[{10**400}]\n", "a finite number"),
        (read_experiment, EXPERIMENT + f"[{'9' * 5000}]\n", "not a TOML file"),
        (read_experiment, EXPERIMENT + "[" * 5000 + "\n", "nested too deeply"),
    ],
    ids=["NUL", "repeated column", "NaN", "infinite", "large", "too large", "too deep"],
)
def test_texts_that_once_failed_are_rejected(read, content, message, tmp_path):
    (tmp_path / "input").write_text(content)
    assert_raises(message, read, tmp_path / "input")


def test_positions_without_whole_numbers_or_nested_too_deeply_are_rejected():
    wrong = ["token(1.5)", "token('1')", "token(True)", "span(0, 1.5)", f"token({10**40})", "after(5)"]
    for text in [*wrong, "~" * 100_000, "(" * 200]:
        message = r"cannot be read|whole numbers|needs? a text"
        assert_raises(message, lambda text: select(ts.positions.parse_positions(text)), text)


def test_a_too_deeply_nested_line_of_replies_is_skipped(tmp_path):
    (tmp_path / "replies").write_bytes(as_lines(REPLIES) + b"\n" + b"[" * 100_000 + b"\n")
    assert ReplyCache(tmp_path / "replies")["a" * 64] == "1"


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "1e999", "NaN"])
def test_vectors_with_a_non_finite_fingerprint_are_rejected(number, tmp_path):
    """Every difference from it would be NaN, and NaN is not larger than the tolerance."""
    changed = saved("vectors").replace(b"-0.9921568627450981", f"{number:<19}".encode())
    assert changed != saved("vectors")
    (tmp_path / "vectors").write_bytes(changed)
    assert_raises("finite|infinite|not valid", ts.SteeringVectors.load, tmp_path / "vectors")


def test_a_fingerprint_of_zeros_matches_no_model():
    zeros = replace(ts.identify(tiny()), fingerprint=(0.0,) * 256)
    assert not zeros.same_model(ts.identify(tiny()))
