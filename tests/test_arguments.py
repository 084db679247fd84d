"""Arguments of public functions: wrong types are rejected, NumPy and pandas values converted."""

import copy
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

import tl_steer as ts
from tl_steer._util import validation
from tl_steer._util.validation import checked
from tl_steer.experiments._run import run
from tl_steer.experiments.config_file import read_experiment
from tl_steer.experiments.run_folder import is_finished
from tl_steer.experiments.run_report import read_results, write_report
from tl_steer.models import ChatFormat, load_hugging_face

from .fuzzing import PACKAGE, fuzz, invalid, raised_in, same_type
from .public_calls import MODEL, N_LAYERS, NAMES, Materials, figure_calls, public_calls
from .public_names import PUBLIC
from .tiny_model import D_MODEL, made_vector

# Constructed by the package itself, called thousands of times by the engine, or compared with their own type.
UNCHECKED = {
    "JudgeCost", "ModelIdentity", "Positions", "Positions.select", "Positions.require_some",
    "ModelIdentity.require", "ModelIdentity.same_model", "Add.edits", "ProjectOut.edits",
    "SetProjection.edits", "Ablate.edits", "SteeringVector.cosine_similarity",
    "SteeringVectors.cosine_similarity",
}  # fmt: skip


def public():
    """Name and function of every public function, constructor and method with parameters."""
    for name, member in PUBLIC.items():
        name = name if name.startswith("plots.") else name.rpartition(".")[2]
        if inspect.isfunction(member) and inspect.signature(member).parameters:
            yield name, member
        if not inspect.isclass(member) or issubclass(member, Exception):
            continue
        yield name, member.__init__
        for method, function in inspect.getmembers(member, inspect.isroutine):
            if method != "__getitem__" and method.startswith("_"):
                continue
            if len(inspect.signature(function).parameters) > (not inspect.ismethod(function)):
                yield f"{name}.{method}", function


class OtherType:
    """A type that no function accepts."""


def test_every_public_call_rejects_other_types():
    functions = dict(public())
    assert set(functions) >= UNCHECKED
    failures = []
    for name in functions.keys() - UNCHECKED:
        parameters = inspect.signature(functions[name]).parameters
        if set(parameters) - {"self", "cls"} - set(typing.get_type_hints(functions[name])):
            failures.append(f"{name} lacks annotations")
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        try:
            functions[name](**{key: OtherType() for key, each in parameters.items() if each.kind in named})
            failures.append(f"{name} accepts another type")
        except Exception as error:
            rejected = isinstance(error, TypeError) and raised_in(error) == Path(validation.__file__)
            if not rejected or not re.search(r"must be .*; got an OtherType\.", str(error)):
                failures.append(f"{name}: {error!r}")
    assert not failures, "\n".join(failures)


def wrong_calls(folder):
    """Calls with a common mistake, and a part of the message of their errors."""
    m, materials = MODEL, Materials()
    v, one = materials.vectors, materials.vectors[1]
    torch.save(np.ones((2, 3)), folder / "array.pt")
    capture = checked(inspect.unwrap(ts.capture))  # the tests' type checks bind arguments first

    def sweep(**changes):
        options = {"vectors": v, "questions": materials.questions, "multipliers": [1.0], "progress": False}
        return ts.sweep(m, **options | changes)

    def vector(**changes):
        options = {"values": one.values, "layer": 1, "hook": "resid_post", "method": "x", "stream_norm": 1.0}
        return ts.SteeringVector(**options | {"identity": one.identity} | changes)

    return [
        (lambda: ts.directions.without_factors(v, {}, names=[None]), "Sequence[str] or None; got [None]"),
        (lambda: sweep(multipliers=0.1), "in a list: [0.1]"),
        (lambda: sweep(operations="add"), "in a list: ['add']"),
        (lambda: sweep(layers="15"), "got '15'"),
        (lambda: sweep(controls=v), "got a SteeringVectors"),
        (lambda: sweep(out=folder / "x.csv"), "Parquet"),
        (lambda: sweep(memory="2GB"), "got '2GB'"),
        (lambda: sweep(questions="text", measure="generate"), "in a list"),
        (lambda: sweep(layers=[(0, 1), (1, 0)]), "requested twice"),
        (lambda: ts.capture("gpt2", "a"), "HookedTransformer or TransformerBridge; got 'gpt2'"),
        (lambda: ts.capture(m, "a", positions=-1), "Positions, Mapping[int, Positions] or None; got -1"),
        (lambda: ts.capture(m, "a", positions=ts.last_token), "mean to call it, last_token(…)?"),
        (lambda: ts.capture(m, "a", layers=["5"]), "got ['5']"),
        (lambda: ts.capture(m, ["a", None]), "where item 1 is None"),
        (lambda: capture(m, "a", layer=1), "capture() got an unexpected keyword"),
        (lambda: capture(m), "missing 1 required positional argument: 'prompts'"),
        (lambda: v[[0, 1]], "int; got [0, 1]"),
        (lambda: v * "2", "scaled by a number"),
        (lambda: v.cosine_similarity(one), "cannot combine"),
        (lambda: v.weighted([1.0]), "got [1.0]"),
        (lambda: ts.generate(m, "a", [ts.Add(one)]), "out of its list"),
        (lambda: ts.generate(m, "a", one), "got a SteeringVector"),
        (lambda: ts.generate(m, "a", temperature="hot"), "float; got 'hot'"),
        (lambda: ts.Add(one.values), "got a Tensor of shape"),
        (lambda: ts.Ablate(1, "z", heads=0), "in a list: [0]"),
        (lambda: vector(values=np.ones(D_MODEL)), "got a ndarray of shape"),
        (lambda: vector(layer=-1), "0 to"),
        (lambda: vector(layer=99), "layer 99 is out of range"),
        (lambda: replace(v, layers=(0,) * N_LAYERS), "twice"),
        (lambda: ts.choice_logits(m, "a", ("a", "b", "c")), "got ('a', 'b', 'c')"),
        (lambda: ts.ChoiceQuestions([*"ab"], [("A", "B")] * 2, answers=[None, 0]), "where item 0 is None"),
        (lambda: ts.ChoiceQuestions("a", [("A", "B")]), "in a list: ['a']"),
        (lambda: ts.chat_format(m).render([{"role": "user"}]), "str; got [{'role': 'user'}]"),
        (lambda: ts.load_model(processing="center_writing_weights"), "got 'center_writing_weights'"),
        (lambda: ts.load_model(backend="x"), "'hooked'"),
        (lambda: ts.load_model(device="gpu"), "device='gpu'"),
        (lambda: ts.activation_addition(m, ["a"], ["b"]), "out of its list"),
        (lambda: ts.contrast_pairs(["a"], ["b"], factors={"x": 1}), "DataFrame or None; got {'x': 1}"),
        (lambda: ts.exchange.load_pt(folder / "array.pt", m), "plain tensors"),
    ]


def test_common_mistakes_are_rejected_by_the_package_itself(tmp_path):
    """The error is raised by a line of the package: users' processes have no other type checks."""
    failures = []
    for call, message in wrong_calls(tmp_path):
        try:
            call()
            failures.append((call.__code__.co_firstlineno, "nothing was raised"))
        except Exception as error:
            is_ours = raised_in(error).is_relative_to(PACKAGE)
            if message not in str(error) or "\x1b" in str(error) or not is_ours:
                failures.append((call.__code__.co_firstlineno, raised_in(error), error))
    assert failures == []


# ---- conversion


@checked
def example(
    numbers: Sequence[int] | None = None,
    *,
    texts: Sequence[str] = (),
    prompts: str | Sequence[int] | Sequence[str | Sequence[int]] = "a",
    word: Literal["x", "y"] = "x",
    number: float = 1.0,
    whole: int = 1,
    by_name: Mapping[str, int] | None = None,
    values: Float[Tensor, "a b"] | None = None,
    function: Callable[[int], int] | None = None,
    rows: Iterable[Any] = (),
    mask: Sequence[bool] | None = None,
    flag: bool = False,
    anything: Any = None,
):
    """Return its arguments."""
    return dict(locals())


def short_id(value):
    """A test id that is the same in every process: a generator's repr has its address."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(
    ("name", "value", "converted"),
    [
        ("numbers", np.arange(3), [0, 1, 2]),
        ("numbers", torch.tensor([3, 1]), [3, 1]),
        ("numbers", pd.Series([2, 1], index=[7, 8]), [2, 1]),
        ("numbers", [np.int64(3), 4], [3, 4]),
        ("numbers", {5: "a"}.keys(), [5]),
        ("texts", (each for each in "ab"), ["a", "b"]),
        ("prompts", torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ("number", np.float32(0.5), 0.5),
        ("number", torch.tensor(2.0), 2.0),
        ("number", 3, 3),
        ("whole", np.int64(2), 2),
        ("by_name", {"a": np.int64(1)}, {"a": 1}),
        ("rows", [True, 1], [True, 1]),
        ("mask", np.array([True, False]), [True, False]),
        ("flag", np.True_, True),
    ],
    ids=short_id,
)
def test_numpy_pandas_torch_and_generators_become_python_values(name, value, converted):
    result = example(**{name: value})[name]
    assert result == converted
    assert type(result) is type(converted)


def test_a_matching_value_is_passed_on_unchanged():
    values = {"numbers": [1], "texts": ("a",), "values": torch.ones(2, 3), "anything": np.ones(2)}
    assert all(example(**{name: value})[name] is value for name, value in values.items())


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("numbers", 15, TypeError, r"^example: numbers must be .*; got 15\. Put it in a list: \[15\]\.$"),
        ("numbers", [1, 2, "a", 4], TypeError, r"got \[1, 2, 'a', 4\], where item 2 is 'a'\.$"),
        ("numbers", np.array([1.5]), TypeError, r"got a ndarray of shape \(1,\)\.$"),
        ("prompts", b"ab", TypeError, r"got b'ab'"),
        ("word", "z", ValueError, r"must be 'x' or 'y'; got 'z'\.$"),
        ("word", 3, TypeError, r"must be 'x' or 'y'; got 3\.$"),
        ("number", "2", TypeError, r"must be float; got '2'\.$"),
        ("by_name", {"a": 1, "b": "c"}, TypeError, r"where item 'b' is 'c'\.$"),
        ("values", torch.ones(2), TypeError, r"'a b'\] or None; got a Tensor of shape \(2,\)\.$"),
        ("function", 3, TypeError, r"a function or None; got 3\.$"),
        ("whole", int, TypeError, r"got the class int\.$"),
        ("rows", 5, TypeError, r"Iterable\[Any\]; got 5\. Put it in a list"),
        ("numbers", [True, False], TypeError, r"True and False are not taken for numbers\.$"),
        ("numbers", [0, True], TypeError, r"where item 1 is True\. True and False are not"),
        ("number", True, TypeError, r"must be float; got True\. True and False are not"),
        ("whole", torch.tensor(True), TypeError, r"True and False are not"),
        ("by_name", {"a": False}, TypeError, r"True and False are not"),
        ("numbers", np.array([True, False]), TypeError, r"True and False are not"),
        ("texts", ["a" * 1000] * 700 + [None], TypeError, "where item 700 is None"),
        ("numbers", [1] * 1500 + [1.5] + [2] * 500, TypeError, r"where item 1500 is 1\.5"),
        ("by_name", dict.fromkeys(map(str, range(900)), 1) | {"k900": None}, TypeError, "'k900' is None"),
    ],
    ids=short_id,
)  # fmt: skip
def test_wrong_types_are_rejected_with_value_and_fix(name, value, error, message):
    with pytest.raises(error, match=message) as raised:
        example(**{name: value})
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("wrong", [1.5, None, "3", True])
def test_a_wrong_id_of_many_prompts_is_named(wrong):
    prompts = [[1, 2]] * 100 + [[1] * 40 + [wrong] + [2] * 40] + [[1, 2]] * 100
    with pytest.raises(TypeError, match=re.escape(repr(wrong))):
        ts.generate(MODEL, prompts, max_new_tokens=1, progress=False)


def test_numbers_of_a_table_are_layers_and_multipliers():
    vectors = Materials().vectors
    table = pd.DataFrame({"layer": [1, 2], "multiplier": [0.5, 1.0]})
    assert vectors[table["layer"][1]].layer == 2
    sweep = functools.partial(
        ts.sweep, MODEL, vectors, ["a b"], measure="generate", controls=0, max_new_tokens=2, progress=False
    )
    from_table = sweep(layers=table["layer"], multipliers=table["multiplier"].to_numpy())
    pd.testing.assert_frame_equal(from_table, sweep(layers=[1, 2], multipliers=[0.5, 1.0]))


# ---- fuzzing

FIXED = {"tokenizer", "client", "embedder", "out", "path", "cache", "it", "self"}  # never replaced


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


@pytest.fixture(scope="module")
def calls(folder):
    materials = Materials()
    figures = figure_calls(materials)
    return public_calls(materials, folder) | {f"plots.{name}": call for name, call in figures.items()}


def unchanged(before: Any, after: Any) -> bool:
    """Whether an argument is as it was before the call."""
    if isinstance(before, pd.DataFrame | pd.Series):
        return before.equals(after)
    if isinstance(before, Tensor):
        return before.shape == after.shape and torch.equal(before.nan_to_num(7), after.nan_to_num(7))
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(unchanged, before, after))
    if isinstance(before, Mapping):
        return list(before) == list(after) and all(unchanged(before[key], after[key]) for key in before)
    if is_dataclass(before):
        return all(
            unchanged(getattr(before, each.name), getattr(after, each.name)) for each in fields(before)
        )
    return True


def require_finite(result: Any, changed: Any = None) -> None:
    for value in result.values() if isinstance(result, dict) else [result]:
        if isinstance(value, ts.SteeringVectors | ts.SteeringVector):
            assert bool(torch.isfinite(value.values).all())


class Changes(dict):
    """Arguments whose repr is short."""

    def __repr__(self):
        return f"Changes({', '.join(f'{name}={value!r:.300}' for name, value in self.items())})"


@st.composite
def changes(draw, arguments):
    """One or two arguments, replaced."""
    names = st.sampled_from(sorted(set(arguments) - FIXED))
    replaced = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    return Changes({name: draw(invalid(arguments[name])) for name in replaced})


def checked_call(call, folder):
    """A call that raises where it modifies its arguments or leaves temporary files in the folder."""

    def run(changed):
        for path in folder.iterdir():
            path.unlink()
        arguments = call.arguments | changed
        mutable = pd.DataFrame | list | dict | Tensor | ts.PairedActivations
        before = {key: copy.deepcopy(value) for key, value in arguments.items() if isinstance(value, mutable)}
        try:
            return call(**changed)
        finally:
            modified = [key for key, value in before.items() if not unchanged(value, arguments[key])]
            assert not modified, f"modified: {modified}"
            assert not list(folder.glob(".*")), "a temporary file was left"

    return run


@pytest.mark.integration
def test_every_public_function_has_a_valid_call(calls):
    assert set(calls) == set(NAMES)
    for call in calls.values():
        call()


@pytest.mark.integration
@pytest.mark.parametrize("examples", [2, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_invalid_arguments_give_a_result_or_a_refusal(name, examples, calls, folder):
    call = calls[name]
    for value in call.arguments.values():  # cached strategies call the package: not while drawing
        same_type(value)
    fuzz(changes(call.arguments), checked_call(call, folder), require_finite, examples)


# ---- reprs, paths


def test_reprs_of_public_dataclasses_are_short():
    texts = [f"{number} {'word ' * 100}\n" for number in range(40)]
    factors = pd.DataFrame({f"factor {number}": texts for number in range(20)})
    pairs = ts.prompts.ContrastPairs(texts, [text + "!" for text in texts], factors)
    activations = ts.capture_pairs(MODEL, ts.contrast_pairs(list("abcd"), list("efgh")))
    vectors, ablation = ts.mean_difference(activations), ts.Ablate(1, to=torch.zeros(D_MODEL))
    instances = [
        pairs, activations, activations.positive, vectors, vectors[1], activations.identity, ablation,
        ts.ChoiceQuestions(texts, [(" A", " B")] * 40, [0] * 40, factors), read_experiment("demo"),
        ts.Add(vectors, 0.1), ts.ProjectOut(vectors[1]), ts.SetProjection(vectors, 2.0),
        ts.last_token() | ts.token(3), ts.preview(MODEL, "a b c", ts.last_token()),
        ChatFormat("plain", MODEL.tokenizer), ts.texts.JudgeCost(*range(8), 0.5),
    ]  # fmt: skip
    public = {each for each in PUBLIC.values() if is_dataclass(each) and isinstance(each, type)}
    assert public <= {type(each) for each in instances}
    for each in instances:
        lines = repr(each).splitlines()
        assert len(lines) <= 10, each
        assert max(map(len, lines)) <= 200, each
    factors = pd.DataFrame({"letter": ["A", "B"] * 20, "note": ["x", None] * 20})
    text = repr(ts.prompts.ContrastPairs(texts, texts[::-1], factors))
    assert "letter (A/B), note (x/nan), group (40 levels)" in text
    assert "to=float32 [16]" in repr(ablation)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.csv").write_text("statement,label\nIce is cold.,1\n")
    (tmp_path / "own.toml").write_text("title = 3")
    assert len(ts.read_claims("~/own.csv")) == len(ts.read_claims(Path("~/own.csv"))) == 1
    made_vector(MODEL, 1).save("~/vector.safetensors")
    assert ts.SteeringVectors.load(Path("~/vector.safetensors")).layers == (1,)
    with pytest.raises(ValueError, match=r"own\.toml: "):
        read_experiment("~/own.toml")


def test_every_public_function_of_a_path_checks_its_arguments():
    """The check is also where `~` becomes the home folder."""
    classes = [each for each in PUBLIC.values() if isinstance(each, type)]
    functions = [getattr(each, name) for each in classes for name in ("save", "load") if hasattr(each, name)]
    functions += [each for each in PUBLIC.values() if inspect.isfunction(each)]
    functions += [read_experiment, run, is_finished, read_results, write_report, load_hugging_face]
    paths = [each for each in functions if "Path" in str(typing.get_type_hints(inspect.unwrap(each)))]
    assert len(paths) > 20
    assert [each for each in paths if not hasattr(each, "__wrapped__")] == []
