"""The door: every public function has one, wrong kinds are refused in words, and what is natural comes in."""

import functools
import inspect
import json
import subprocess
import sys
import tempfile
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import tl_steer as ts
from tl_steer import arguments
from tl_steer.arguments import checked

from . import wrong_arguments
from .public_calls import MODEL
from .tiny_model import made_vector

ROOT = Path(__file__).parents[1]
# What the package makes itself, what the engine calls by the thousand, and what is compared with its like.
WITHOUT = {
    "JudgeCost", "ModelIdentity", "Positions", "Positions.select", "Positions.require_some",
    "ModelIdentity.require", "ModelIdentity.same_model", "Add.edits", "ProjectOut.edits",
    "SetProjection.edits", "Ablate.edits", "SteeringVector.cosine_similarity",
    "SteeringVectors.cosine_similarity",
}  # fmt: skip


def public():
    """Every public call by its name: functions, constructors and methods that take something."""
    places = [("", ts, ts.__all__), ("plots.", ts.plots, ts.plots.__all__)]
    for prefix, place, names in places:
        for name in names:
            thing = getattr(place, name)
            if inspect.isfunction(thing) and inspect.signature(thing).parameters:
                yield f"{prefix}{name}", thing
            if not inspect.isclass(thing) or issubclass(thing, Exception):
                continue
            yield name, thing.__init__
            for method, function in inspect.getmembers(thing, inspect.isroutine):
                if method != "__getitem__" and method.startswith("_"):
                    continue
                if len(inspect.signature(function).parameters) > (not inspect.ismethod(function)):
                    yield f"{name}.{method}", function


EVERY = dict(public())
PUBLIC = {name: call for name, call in EVERY.items() if name not in WITHOUT}


class Stranger:
    """Of no kind that anything takes."""


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_call_refuses_what_nobody_takes(name):
    signature = inspect.signature(PUBLIC[name])
    assert set(signature.parameters) - {"self", "cls"} <= set(typing.get_type_hints(PUBLIC[name]))
    given = {
        parameter: Stranger()
        for parameter, of in signature.parameters.items()
        if of.kind in (of.POSITIONAL_OR_KEYWORD, of.KEYWORD_ONLY)
    }
    with pytest.raises(TypeError, match=r"must be .*; got a Stranger\.") as raised:
        PUBLIC[name](**given)
    assert raised.traceback[-1].path == Path(arguments.__file__)


def test_the_names_without_a_door_are_there():
    assert set(EVERY) >= WITHOUT


with tempfile.TemporaryDirectory() as folder:
    WRONG = {name: words for name, (_, words) in wrong_arguments.wrong_calls(Path(folder)).items()}


@pytest.fixture(scope="module")
def raised():
    """What each wrong argument raises in a process of its own, where types are checked by the door alone."""
    command = [sys.executable, "-m", "tests.wrong_arguments"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_in_words_without_the_checks_of_the_tests(raised, name):
    kind, words, file = raised[name]
    assert WRONG[name] in words
    assert Path(file).is_relative_to(Path(ts.__file__).parent), f"{kind} comes from {file}"
    assert "\x1b" not in words


@checked
def taking(
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
    """What came in."""
    return dict(locals())


def told_shortly(value):
    """A test's name, the same in every process: generators and functions are told by their address."""
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("numbers", np.arange(3), [0, 1, 2]),
        ("numbers", torch.tensor([3, 1]), [3, 1]),
        ("numbers", pd.Series([2, 1], index=[7, 8]), [2, 1]),
        ("numbers", pd.Index([4]), [4]),
        ("numbers", [np.int64(3), 4], [3, 4]),
        ("numbers", (np.int32(3),), (3,)),
        ("numbers", range(2), range(2)),
        ("numbers", {5: "a"}.keys(), [5]),
        ("texts", (each for each in "ab"), ["a", "b"]),
        ("texts", np.array(["a", "b"]), ["a", "b"]),
        ("prompts", torch.tensor([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ("number", np.float32(0.5), 0.5),
        ("number", np.int64(2), 2),
        ("number", torch.tensor(2.0), 2.0),
        ("number", 3, 3),
        ("whole", np.int64(2), 2),
        ("by_name", {"a": np.int64(1)}, {"a": 1}),
        ("rows", {1, 2}, {1, 2}),
        ("rows", [True, 1], [True, 1]),
        ("mask", np.array([True, False]), [True, False]),
        ("flag", np.True_, True),
    ],
    ids=told_shortly,
)
def test_what_is_natural_comes_in_as_pythons_own(name, given, taken):
    came = taking(**{name: given})[name]
    assert came == taken
    assert type(came) is type(taken)


def test_what_fits_comes_in_as_it_is():
    for name, value in {
        "numbers": [1],
        "texts": ("a",),
        "values": torch.ones(2, 3),
        "anything": np.ones(2),
    }.items():
        assert taking(**{name: value})[name] is value


@pytest.mark.parametrize(
    ("name", "given", "kind", "words"),
    [
        ("numbers", 15, TypeError, r"^taking: numbers must be .*; got 15\. Put it in a list: \[15\]\.$"),
        ("numbers", [1, 2, "a", 4], TypeError, r"got \[1, 2, 'a', 4\], where item 2 is 'a'\.$"),
        ("numbers", np.array([1.5]), TypeError, r"got a ndarray of shape \(1,\)\.$"),
        ("texts", "abc", TypeError, r"Sequence\[str\]; got 'abc'\. Put it in a list: \['abc'\]\."),
        ("prompts", b"ab", TypeError, r"got b'ab'"),
        ("prompts", None, TypeError, r"str, Sequence\[int\] or Sequence\[str \| Sequence\[int\]\]; got None"),
        ("word", "z", ValueError, r"must be 'x' or 'y'; got 'z'\.$"),
        ("word", 3, TypeError, r"must be 'x' or 'y'; got 3\.$"),
        ("number", "2", TypeError, r"must be float; got '2'\.$"),
        ("number", [2.0], TypeError, r"got \[2\.0\]\. Take it out of its list\.$"),
        ("whole", 2.0, TypeError, r"must be int; got 2\.0"),
        ("by_name", {"a": 1, "b": "c"}, TypeError, r"where item 'b' is 'c'\.$"),
        ("values", torch.ones(2), TypeError, r"'a b'\] or None; got a Tensor of shape \(2,\)\.$"),
        ("function", 3, TypeError, r"a function or None; got 3\.$"),
        ("whole", ts.last_token, TypeError, r"Did you mean to call it, last_token\(…\)\?$"),
        ("whole", int, TypeError, r"got the class int\.$"),
        ("rows", 5, TypeError, r"Iterable\[Any\]; got 5\. Put it in a list"),
        ("numbers", [True, False], TypeError, r"True and False are not taken for numbers\.$"),
        ("numbers", [0, True], TypeError, r"where item 1 is True\. True and False are not"),
        ("numbers", np.array([True, False]), TypeError, r"True and False are not"),
        ("number", True, TypeError, r"must be float; got True\. True and False are not"),
        ("whole", torch.tensor(True), TypeError, r"True and False are not"),
        ("by_name", {"a": False}, TypeError, r"True and False are not"),
    ],
    ids=told_shortly,
)  # fmt: skip
def test_what_does_not_fit_is_told_in_words(name, given, kind, words):
    with pytest.raises(kind, match=words):
        taking(**{name: given})


def test_a_long_value_is_told_shortly():
    with pytest.raises(TypeError, match=r"where item 700 is None") as raised:
        taking(texts=["a" * 1000] * 700 + [None])
    assert len(str(raised.value)) < 600


def test_numbers_of_a_table_are_layers_and_multipliers():
    vectors = ts.SteeringVectors(
        torch.stack([made_vector(MODEL, layer).values for layer in (1, 2)]), (1, 2), "resid_post", "made",
        torch.ones(2), made_vector(MODEL, 1).identity,
    )  # fmt: skip
    table = pd.DataFrame({"layer": [1, 2], "multiplier": [0.5, 1.0]})
    assert vectors[table["layer"][1]].layer == 2
    sweep = functools.partial(
        ts.sweep, MODEL, vectors, ["a b"], measure="generate", controls=0, max_new_tokens=2, progress=False
    )
    of_a_table = sweep(layers=table["layer"], multipliers=table["multiplier"].to_numpy())
    pd.testing.assert_frame_equal(of_a_table, sweep(layers=[1, 2], multipliers=[0.5, 1.0]))
