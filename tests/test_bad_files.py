"""Files that others made, or that were damaged on the way: read right, or refused in words."""

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

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load, save

import tl_steer as ts
from tl_steer.evaluation.judging.cache import ReplyCache
from tl_steer.experiments import read_experiment
from tl_steer.experiments.files import Experiment, own_experiments
from tl_steer.positions import PromptTokens

from .bad_input import Target, damaged, numbers, one_changed, texts, tried
from .conftest import make_pairs
from .tiny_model import D_MODEL, make_model, word_tokenizer

# ---- CSV

READERS = {
    ts.read_claims: ("statement", "label"),
    ts.read_reviews: ("review", "label"),
    ts.read_misconceptions: ("question", "correct", "incorrect"),
    ts.read_dilemmas: ("dilemma",),
    ts.read_neutral: ("passage",),
    ts.read_pairs: ("positive", "negative"),
}


def a_table(columns):
    """Header and three rows, with a column of the user's own."""
    cells = {"label": ["1", "0", "1"]}
    plain = ["The sky is blue.", "Ice, when hot, sinks.", "It said “so”.\nTwice."]
    return [
        [*columns, "topic"],
        *([*(cells.get(name, plain)[row] for name in columns), "weather"] for row in range(3)),
    ]


def as_csv(rows) -> bytes:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue().encode("utf-8", "surrogatepass")


def columns_of(result) -> dict[str, list]:
    if isinstance(result, ts.ContrastPairs):
        return {"positive": list(result.positive), "negative": list(result.negative)}
    return {name: list(result[name]) for name in result}


def csv_target(reader, columns):
    """Tables with a cell, a row or a name changed, and the bytes of a valid one damaged."""
    rows = a_table(columns)
    cells = st.one_of(texts(), numbers().map(lambda number: str(number)[:400]), st.sampled_from(columns))
    changed = one_changed(rows, cells).filter(
        lambda each: isinstance(each, list) and all(isinstance(row, list) for row in each)
    )

    def check(result, given):
        found = columns_of(result)
        for name in columns:
            assert found[name], "no rows"
            if name == "label":
                assert set(found[name]) <= {0, 1}
            else:
                assert all(isinstance(cell, str) and cell.strip() for cell in found[name])
        header, *body = csv.reader(io.StringIO(given.decode("utf-8-sig"), newline=""))
        body = [row for row in body if row]
        for name in set(columns) - {"label"}:
            written = [row[header.index(name)] for row in body]
            assert found[name] == written

    def check_damaged(result, given):
        if b'"' not in given:  # where quotation marks are lost, two readers may well differ
            check(result, given)

    return Target(changed.map(as_csv), reader, check), Target(damaged(as_csv(rows)), reader, check_damaged)


# ---- experiments

EXPERIMENTS = [
    tomllib.loads((resources.files("tl_steer.experiments") / f"{name}.toml").read_text())
    for name in own_experiments()
]


def as_toml(values) -> str:
    if isinstance(values, bool):
        return str(values).lower()
    if isinstance(values, dict):
        return (
            "{" + ", ".join(f"{json.dumps(str(key))} = {as_toml(each)}" for key, each in values.items()) + "}"
        )
    if isinstance(values, list):
        depth = 0
        while isinstance(values, list) and len(values) == 1:  # without recursion: far too deep ones come too
            values, depth = values[0], depth + 1
        inner = ", ".join(map(as_toml, values)) if isinstance(values, list) else as_toml(values)
        return "[" * depth + (f"[{inner}]" if isinstance(values, list) else inner) + "]" * depth
    return json.dumps(values) if isinstance(values, str) else str(values)


def toml_file(values) -> bytes:
    if not isinstance(values, dict):
        return as_toml(values).encode()
    return "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in values.items()).encode()


def numbers_in(value):
    if is_dataclass(value):
        for each in fields(value):
            yield from numbers_in(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from numbers_in(key)
            yield from numbers_in(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, int | float):
        yield value


def check_experiment(result, given):
    assert isinstance(result, Experiment)
    assert all(math.isfinite(number) for number in numbers_in(result))
    assert result.source.encode() == given


EXPERIMENT_TARGETS = {
    "experiment": Target(
        st.sampled_from(EXPERIMENTS).flatmap(one_changed).map(toml_file), read_experiment, check_experiment
    ),
    "damaged experiment": Target(
        st.sampled_from(EXPERIMENTS).map(toml_file).flatmap(damaged), read_experiment, check_experiment
    ),
}

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


def check_recorded(result, given):
    items = json.loads(given.decode("utf-8-sig"))
    texts_given = {
        text
        for item in items
        for text in (
            item["answer_neut"],
            *(each for cell in item.get("steered", {}).values() for each in cell.values()),
        )
    }
    cells = 1 + sum(len(cell) for cell in items[0].get("steered", {}).values())
    assert len(result) == len(items) * cells
    assert set(result["text"]) == texts_given
    assert list(result["prompt"][: len(items)]) == [item["sentence"] for item in items]
    assert result["multiplier"].map(math.isfinite).all()


RECORDED_TARGETS = {
    "recorded answers": Target(
        one_changed(RECORDED).map(lambda items: json_text(items).encode()), ts.read_recorded, check_recorded
    ),
    "damaged recorded answers": Target(
        damaged(json.dumps(RECORDED, indent=1).encode()), ts.read_recorded, check_recorded
    ),
}


def json_text(value) -> str:
    """JSON of any depth: `json.dumps` itself gives up at a thousand."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 5000


# ---- vectors and activations

PAIRS = make_pairs(
    np.random.default_rng(0).normal(size=(4, 3, 8)) + 1, np.random.default_rng(1).normal(size=(4, 3, 8))
)
VECTORS = ts.mean_difference(PAIRS)


@functools.cache
def saved(kind) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        {"vectors": VECTORS, "activations": PAIRS}[kind].save(Path(folder) / "saved")
        return (Path(folder) / "saved").read_bytes()


def parts_of(content: bytes):
    """The tensors of a safetensors file and its metadata, JSON in it read."""
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    return load(content), {key: _json_or_text(text) for key, text in metadata.items()}


def _json_or_text(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def whole_of(tensors, metadata) -> bytes:
    if not isinstance(metadata, dict):
        metadata = {"format": json_text(metadata)}
    told = {
        key.encode("utf-8", "replace").decode(): value if isinstance(value, str) else json_text(value)
        for key, value in metadata.items()
    }
    told = {key: text.encode("utf-8", "replace").decode() for key, text in told.items()}
    return save(tensors, told)


def other_tensors(tensors):
    """One tensor left out, of another shape, another type, or with numbers that are none."""

    def changed(name, kind):
        others = {key: each.clone() for key, each in tensors.items()}
        tensor = others[name]
        if kind == "none":
            del others[name]
        elif kind in ("nan", "inf"):
            tensor.view(-1)[:1] = float(kind) if tensor.is_floating_point() else -7
        elif kind == "more":
            others[f"{name}.more"] = tensor.clone()
        else:
            others[name] = {
                "half": lambda: tensor.to(torch.float16),
                "whole": lambda: tensor.to(torch.int32),
                "complex": lambda: tensor.to(torch.complex64),
                "truth": lambda: tensor.bool(),
                "flat": lambda: tensor.reshape(-1),
                "deep": lambda: tensor[None, None, None],
                "less": lambda: tensor[:-1].clone(),
                "empty": lambda: tensor[:0].clone(),
                "narrow": lambda: tensor[..., :-1].clone(),
            }[kind]()
        return others

    kinds = [
        "none",
        "nan",
        "inf",
        "more",
        "half",
        "whole",
        "complex",
        "truth",
        "flat",
        "deep",
        "less",
        "empty",
        "narrow",
    ]
    return st.builds(changed, st.sampled_from(sorted(tensors)), st.sampled_from(kinds))


def safetensors_inputs(kind):
    tensors, metadata = parts_of(saved(kind))
    return st.one_of(
        one_changed(metadata).map(lambda told: whole_of(tensors, told)),
        one_changed(metadata).map(lambda told: whole_of(tensors, told)),
        other_tensors(tensors).map(lambda others: whole_of(others, metadata)),
    )


def check_vectors(result, given):
    assert isinstance(result, ts.SteeringVectors)
    assert result.values.dtype == torch.float32
    assert bool(torch.isfinite(result.values).all())
    assert len(result.values) == len(result.layers) == len(result.stream_norm) > 0
    assert not bool(torch.isinf(result.stream_norm).any())
    assert all(type(layer) is int and 0 <= layer < result.identity.n_layers for layer in result.layers)
    assert len(set(result.layers)) == len(result.layers)
    assert type(result.hook) is type(result.method) is str
    assert all(torch.equal(vector.values, row) for vector, row in zip(result, result.values, strict=True))
    repr(result)
    result * 0.5


def check_activations(result, given):
    assert isinstance(result, ts.PairedActivations)
    for side in (result.positive, result.negative):
        prompts, layers, width, _ = side.values.shape
        assert (prompts, layers) == (len(side.prompts), len(side.layers))
        assert tuple(side.token_index.shape) == tuple(side.tokens.shape) == (prompts, width)
        assert all(type(prompt) is str for prompt in side.prompts)
    assert len(result.factors) == len(result)
    repr(result)
    if bool((result.positive.token_index >= 0).all()):
        result.subset([0])


# ---- the judge's cache

REPLIES = b"".join(
    b"\n" + json.dumps({"key": key * 64, "reply": reply}).encode() + b"\n"
    for key, reply in zip("abc", ["1", "é", "tie"], strict=True)
)


def check_cache(result, given):
    """Every reply that is there stands on a whole line of the file."""
    lines = []
    for line in given.split(b"\n"):
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    written = {
        each["key"]: each["reply"]
        for each in lines
        if isinstance(each, dict) and isinstance(each.get("key"), str) and isinstance(each.get("reply"), str)
    }
    for key, reply in written.items():
        assert result[key] == reply
    assert "z" * 64 not in result


def cache_lines(entries) -> bytes:
    entries = entries if isinstance(entries, list) else [entries]
    return b"\n".join(json_text(each).encode() for each in entries)


# ---- control vectors and tensors of other libraries


def written(save_to, *given) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        save_to(*given, Path(folder) / "written")
        return (Path(folder) / "written").read_bytes()


TINY = make_model(word_tokenizer())
OWN = ts.SteeringVectors(
    torch.ones(2, D_MODEL), (1, 2), "resid_post", "made", torch.ones(2), ts.identify(TINY)
)
GGUF = written(ts.save_gguf, OWN)
OTHERS_GGUF = GGUF.replace(b"tl_steer.description", b"xx_steer.description")


def huge_counts(content: bytes):
    """Eight bytes anywhere that say an enormous length: nothing must be allocated for it."""
    sizes = st.sampled_from([2**63 - 1, 2**62, 2**40, 2**32, 2**64 - 1]).map(
        lambda size: size.to_bytes(8, "little")
    )
    places = st.integers(4, min(len(content) - 8, 400))
    return st.builds(lambda place, size: content[:place] + size + content[place + 8 :], places, sizes)


def check_imported(result, given):
    assert isinstance(result, ts.SteeringVectors)
    assert bool(torch.isfinite(result.values).all())
    assert tuple(result.values.shape) == (len(result.layers), D_MODEL)
    assert set(result.layers) <= {0, 1, 2}


def load_gguf(path):
    return ts.load_gguf(path, TINY)


def load_pt(path):
    return ts.load_pt(path, TINY)


# ---- tables given back

TABLE = pd.DataFrame(
    {
        "prompt_id": [0, 1] * 3,
        "prompt": ["a", "b"] * 3,
        "kind": ["x", "y"] * 3,
        "vector": ["none"] * 2 + ["v"] * 4,
        "control": False,
        "operation": ["none"] * 2 + ["add"] * 4,
        "layers": [""] * 2 + ["1"] * 4,
        "hook": [""] * 2 + ["resid_post"] * 4,
        "multiplier": [0.0] * 2 + [1.0] * 2 + [-1.0] * 2,
        "dose": [0.0] * 2 + [0.1] * 4,
        "split": ["choose", "report"] * 3,
        "answer": pd.array([0, 1] * 3, dtype="Int64"),
        "choice": pd.array([0, 0, 1, 1, 0, 1], dtype="Int64"),
        "logit_difference": [1.0, -1.0, 2.0, 0.5, -2.0, 0.1],
        "probability": 0.5,
        "mass": 0.9,
        "text": None,
    }
)
PARQUET = written(lambda path: TABLE.to_parquet(path))


def read_table(path):
    try:
        table = pd.read_parquet(path)
    except Exception:  # not ours to read
        return None
    return [
        function(table)
        for function in (ts.effectiveness, ts.prompt_slopes, lambda each: ts.effectiveness(each, by="kind"))
    ]


def changed_table():
    """The table with a column left out, of other values, or of another name."""
    columns = {name: TABLE[name].tolist() for name in TABLE}
    others = st.lists(
        st.one_of(st.sampled_from([0, 1, 2.5, -1]), st.none()), min_size=6, max_size=6
    ) | st.lists(st.text("ab01", max_size=3), min_size=6, max_size=6)
    return one_changed(columns, others).filter(_is_table).map(_as_parquet)


def _is_table(columns) -> bool:
    return isinstance(columns, dict) and all(
        isinstance(each, list) and len(each) == 6 for each in columns.values()
    )


def _as_parquet(columns) -> bytes:
    kept = {
        name.encode("utf-8", "replace").decode().replace("\x00", "0"): values
        for name, values in columns.items()
    }
    try:
        return written(lambda path: pd.DataFrame(kept).to_parquet(path))
    except Exception:  # nor could anybody have written it
        return PARQUET


def check_table(result, given):
    for found in result:
        for name in found.columns:
            if pd.api.types.is_float_dtype(found[name]):
                assert not np.isinf(found[name].to_numpy(float, na_value=0)).any()


# ---- all of them

FILES = {
    **{f"{reader.__name__}": csv_target(reader, columns)[0] for reader, columns in READERS.items()},
    **{f"damaged {reader.__name__}": csv_target(reader, columns)[1] for reader, columns in READERS.items()},
    **EXPERIMENT_TARGETS,
    **RECORDED_TARGETS,
    "vectors": Target(safetensors_inputs("vectors"), ts.SteeringVectors.load, check_vectors),
    "damaged vectors": Target(damaged(saved("vectors")), ts.SteeringVectors.load, check_vectors),
    "activations": Target(safetensors_inputs("activations"), ts.PairedActivations.load, check_activations),
    "damaged activations": Target(
        damaged(saved("activations")), ts.PairedActivations.load, check_activations
    ),
    "replies": Target(
        one_changed([{"key": "a" * 64, "reply": "1"}, {"key": "b" * 64, "reply": "2"}]).map(cache_lines),
        ReplyCache,
        check_cache,
    ),
    "damaged replies": Target(damaged(REPLIES), ReplyCache, check_cache),
    "control vectors": Target(huge_counts(GGUF) | huge_counts(OTHERS_GGUF), load_gguf, check_imported),
    "damaged control vectors": Target(damaged(GGUF) | damaged(OTHERS_GGUF), load_gguf, check_imported),
    "tensors": Target(damaged(written(ts.save_pt, OWN)), load_pt, check_imported),
    "tables": Target(changed_table(), read_table, check_table),
}


ORDINARY, SLOW = 100, 2_000  # of each kind of reader as many whole files with a thing changed as damaged ones
READERS_ALIKE = 2 * len(READERS)  # these six share one reader


def share(name: str, examples: int) -> int:
    """How many of the examples a target gets."""
    if name == "tables":  # each is read by three functions
        return examples // 10
    return 2 * examples // READERS_ALIKE if name.removeprefix("damaged ").startswith("read_") else examples


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_read_right_or_refused(name, tmp_path):
    tried(FILES[name], share(name, ORDINARY), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_thousands_of_bad_files_are_read_right_or_refused(name, tmp_path):
    tried(FILES[name], share(name, SLOW), tmp_path)


# ---- the language of positions, which is no file

PIECES = [
    "token(",
    "span(",
    "all_tokens()",
    "last_token()",
    "generated_tokens()",
    "after('a')",
    "tokens_matching(",
    "0",
    "-1",
    "1.5",
    "None",
    "'a'",
    ")",
    ",",
    " ",
    "|",
    "&",
    "~",
    "(",
    "a",
    ".x",
    "**",
    "[0]",
    "True",
    "10" * 30,
    "1e400",
    "~" * 3000,
    "(" * 300,
    "lambda: 0",
    "\x00",
    "\n",
    "é",
    "\ud800",
    "__import__('os')",
]


def check_positions(result, text):
    assert ts.parse_positions(result.label) == result
    mask = result.select(PromptTokens(3, (3, 4, 5), TINY.tokenizer))
    assert mask.shape == (3,)
    assert mask.dtype == torch.bool


POSITIONS = Target(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
    | damaged(b"(token(0) | span(1, -1)) & ~after('a b')").map(lambda each: each.decode("utf-8", "replace")),
    ts.parse_positions,
    check_positions,
)


def test_positions_written_wrongly_are_refused():
    tried(POSITIONS, 2 * ORDINARY)


@pytest.mark.slow
def test_thousands_of_positions_written_wrongly_are_refused():
    tried(POSITIONS, 2 * SLOW)


# ---- what was found, each as it came


def csv_of(content: bytes, folder):
    (folder / "claims.csv").write_bytes(content)
    return folder / "claims.csv"


def test_a_csv_with_a_nul_byte_is_refused(tmp_path):
    with pytest.raises(ValueError, match="NUL characters in it; save it as CSV in UTF-8"):
        ts.read_claims(csv_of(b"statement,label\na\x00b,1\n", tmp_path))


def test_a_csv_with_a_column_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="several columns 'statement'"):
        ts.read_claims(csv_of(b"statement,label,statement\na,1,b\n", tmp_path))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("multipliers = [nan]", "a finite number"),
        ("multipliers = [1.0, inf]", "a finite number"),
        (f"multipliers = [{10**400}]", "a finite number"),
        (f"multipliers = [{'9' * 5000}]", "not a TOML file"),
        ("multipliers = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_numbers_that_are_none_and_far_too_deep_lists_are_refused_in_an_experiment(line, told, tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text(f'title = "a"\n[pairs]\nkind = "csv"\n[questions]\nkind = "sentiment"\n[sweep]\n{line}\n')
    with pytest.raises(ValueError, match=told):
        read_experiment(file)


@pytest.mark.parametrize(
    "text",
    [
        "token(1.5)",
        "token('1')",
        "token(True)",
        "span(0, 1.5)",
        f"token({10**40})",
        "~" * 100_000,
        "(" * 200,
        "after(5)",
    ],
)
def test_positions_that_are_no_whole_numbers_or_too_deep_are_refused(text):
    with pytest.raises(ValueError, match=r"cannot be read|whole numbers|needs? a text"):
        ts.parse_positions(text).select(PromptTokens(3, (3, 4, 5), TINY.tokenizer))


def test_a_line_of_replies_that_is_nested_too_deeply_is_skipped(tmp_path):
    (tmp_path / "replies").write_bytes(REPLIES + b"\n" + b"[" * 100_000 + b"\n")
    assert ReplyCache(tmp_path / "replies")["a" * 64] == "1"


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "1e999", "NaN"])
def test_vectors_of_a_model_whose_fingerprint_is_not_finite_are_refused(number, tmp_path):
    """With it the comparison with any model would be NaN, and NaN is not larger than the tolerance."""
    changed = saved("vectors").replace(b"-0.9921568627450981", f"{number:<19}".encode())
    assert changed != saved("vectors")
    (tmp_path / "vectors").write_bytes(changed)
    with pytest.raises(ValueError, match=r"finite|infinite|not as it must be"):
        ts.SteeringVectors.load(tmp_path / "vectors")


def test_a_fingerprint_of_nothing_but_zeros_is_no_model():
    nothing = replace(ts.identify(TINY), fingerprint=(0.0,) * 256)
    assert not nothing.same_model(ts.identify(TINY))


@pytest.mark.parametrize(("part", "told"), [("layers", "layers"), ("positive", "is damaged")])
def test_activations_whose_layers_or_prompts_are_of_another_kind_are_refused(part, told, tmp_path):
    tensors, metadata = parts_of(saved("activations"))
    metadata["description"][part][0] = {"layers": 99, "positive": 5}[part]
    (tmp_path / "activations").write_bytes(whole_of(tensors, metadata))
    with pytest.raises(ValueError, match=told):
        ts.PairedActivations.load(tmp_path / "activations")
