"""Pairs of activations: subsets, swapped sides, files, errors."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tl_steer.activations import PairedActivations
from tl_steer.directions import mean_difference
from tl_steer.errors import ModelMismatchError
from tl_steer.models import ChatPrompt
from tl_steer.positions import last_token, token

from .conftest import make_pairs


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    factors = pd.DataFrame(
        {"group": [5, 5, 6, 7], "truth": ["yes", "no", "é", "no"], "odd": [True, False, True, False]}
    )
    source = make_pairs(rng.standard_normal((4, 2, 8)), rng.standard_normal((4, 2, 8)), factors=factors)
    message = {"positions": token(0) | last_token(), "completions": ("w", "x", "y", "z")}
    message["completion_tokens"] = ((1,), (2, 3), (), (4, 5, 6))
    message["under"] = ("Add(multiplier=2) at layer 0, resid_post, all_tokens()",)
    positive = dataclasses.replace(source.positive, **message, prompt_lengths=torch.tensor([1, 2, 3, 4]))
    message |= {
        "completions": ("W", "X", "Y", "Z"),
        "completion_tokens": ((7, 8), (9,), (10,), ()),
        "under": (),
    }
    negative = dataclasses.replace(source.negative, **message)
    return PairedActivations(positive, negative, factors)


TENSORS = ("values", "token_index", "tokens", "prompt_lengths", "stream_norm")
WRITTEN = ("completions", "completion_tokens", "under")


def require_same(a, b):
    for name in TENSORS:
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True)
    for name in ("layers", "hook", "positions", "prompts", "identity", *WRITTEN):
        assert getattr(a, name) == getattr(b, name), name


def by_layer(pairs):
    """The same with positions of its own at each of the two layers."""

    def side(each):
        count = len(each)
        index = torch.tensor([[[0, 3], [2, -1]]]).expand(count, -1, -1)
        values = each.values.expand(-1, -1, 2, -1).clone()
        values[:, 1, 1] = torch.nan
        message = {"token_index": index, "tokens": index + 5 * (index >= 0), "values": values}
        return dataclasses.replace(each, **message, positions={0: token(0) | token(3), 1: token(2)})

    return PairedActivations(side(pairs.positive), side(pairs.negative), pairs.factors)


def test_positions_per_layer_survive_a_file(pairs, tmp_path):
    source, path = by_layer(pairs), tmp_path / "pairs.safetensors"
    source.save(path)
    loaded = PairedActivations.load(path)
    require_same(loaded.positive, source.positive)
    require_same(loaded.negative, source.negative)
    assert loaded.positive.token_index.shape == (4, 2, 2)
    assert "{0: (token(0) | token(3)), 1: token(2)}" in repr(loaded)


DAMAGE = {
    r"positions of the layers \[0\], not of \[0, 1\]": lambda each: each["positions"]["positive"].pop("1"),
    "values has shape": lambda each: each.update(positive=["a"], labels={}),
    "nowhere": lambda each: each.update(positions="nowhere()"),
    r"layers \[99, 1\] of a model that has 2": lambda each: each.update(layers=[99, 1]),
    "text must be str; got 5": lambda each: each["positive"].__setitem__(0, 5),
    "KeyError: 'hook'": lambda each: each.pop("hook"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_activations_are_rejected(pairs, tmp_path, message):
    by_layer(pairs).save(tmp_path / "a.safetensors")
    rewritten(tmp_path / "a.safetensors", lambda description, *_: DAMAGE[message](description))
    with pytest.raises(ValueError, match=rf"a\.safetensors is damaged \(.*{message}"):
        PairedActivations.load(tmp_path / "a.safetensors")


def rewritten(path, change):
    """Change a file's description, metadata and tensors in place."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = json.loads(metadata["description"])
    change(description, metadata, tensors)
    save_file(tensors, path, metadata=metadata | {"description": json.dumps(description)})


def test_a_subset_has_the_rows_in_the_order_given(pairs):
    part = pairs.subset([3, 0, 0])
    assert len(part) == 3
    assert part.positive.prompts == ("positive prompt 3", "positive prompt 0", "positive prompt 0")
    assert part.negative.completions == ("Z", "W", "W")
    assert part.positive.completion_tokens == ((4, 5, 6), (1,), (1,))
    assert torch.equal(part.negative.values, pairs.negative.values[[3, 0, 0]])
    assert part.positive.prompt_lengths.tolist() == [4, 1, 1]
    assert part.factors["group"].tolist() == [7, 5, 5]
    assert part.factors.index.tolist() == [0, 1, 2]
    require_same(pairs.subset(range(4)).positive, pairs.positive)


def test_swapping_exchanges_everything_of_a_pair_but_its_factors(pairs):
    flips = [True, False, False, True]
    swapped = pairs.swapped(flips)
    for row, flip in enumerate(flips):
        first, second = (pairs.negative, pairs.positive) if flip else (pairs.positive, pairs.negative)
        for mixed, source in ((swapped.positive, first), (swapped.negative, second)):
            for name in TENSORS[:4]:
                assert torch.equal(getattr(mixed, name)[row], getattr(source, name)[row])
            assert mixed.prompts[row] == source.prompts[row]
            assert mixed.completions[row] == source.completions[row]
            assert mixed.completion_tokens[row] == source.completion_tokens[row]
    assert swapped.factors.equals(pairs.factors)
    require_same(swapped.swapped(flips).positive, pairs.positive)
    before = pairs.positive.values.clone(), pairs.negative.values.clone()
    pairs.swapped([True] * 4).positive.values.zero_()
    pairs.subset([0]).positive.values.zero_()
    assert all(map(torch.equal, before, (pairs.positive.values, pairs.negative.values)))


def test_swapping_without_completions_and_with_a_wrong_count():
    source = make_pairs(np.ones((2, 1, 4)), np.zeros((2, 1, 4)))
    swapped = source.swapped([True, False])
    assert swapped.positive.completions == swapped.positive.completion_tokens == ()
    with pytest.raises(ValueError, match="1 flips for 2 pairs"):
        source.swapped([True])


def test_a_round_trip_through_a_file(pairs, tmp_path):
    factors = pd.DataFrame(
        {
            "level": pd.Categorical(["low", "high", "low", None], ["low", "high", "never"], ordered=True),
            "score": pd.array([1, None, 3, 4], dtype="Int64"),
            "known": pd.array([True, None, False, True], dtype="boolean"),
            "text": pd.array(["yes", None, "é", "no"], dtype="string"),
            "day": pd.to_datetime(["2026-01-31", None, "2026-02-01", "2026-02-02"]),
            "share": np.array([0.1, np.nan, 0.3, 1.0], dtype=np.float32),
            "rank": np.array([3, 2, 1, 0], dtype=np.uint8),
        }
    )
    own = {"positions": token(2), "stream_norm": torch.tensor([3.0, torch.nan])}
    own["identity"] = dataclasses.replace(pairs.identity, name="the same under another name")
    own["prompts"] = (ChatPrompt("<user> hi", "hi"), *pairs.negative.prompts[1:])
    pairs.positive.values[0, 0, 0, 0] = torch.nan
    for tables in (factors, pd.DataFrame(index=range(4))):
        source = PairedActivations(pairs.positive, dataclasses.replace(pairs.negative, **own), tables)
        source.save(tmp_path / "a.safetensors")
        again = PairedActivations.load(tmp_path / "a.safetensors")
        require_same(again.positive, source.positive)
        require_same(again.negative, source.negative)
        assert again.negative.prompts[0].user == "hi"
        pd.testing.assert_frame_equal(again.factors, tables, check_index_type=False, check_column_type=False)
    every = {field.name for field in dataclasses.fields(pairs.positive)}
    assert every == {*TENSORS, *WRITTEN, "layers", "hook", "positions", "prompts", "identity"}


def test_missing_factors_and_numbers_survive_a_file(pairs, tmp_path):
    factors = pairs.factors.assign(
        truth=pd.array(["yes", None, "é", "no"], dtype="string"),
        score=pd.array([1, None, 3, 4], dtype="Int64"),
        odd=np.array([np.int64(7), np.bool_(True), pd.NaT, "x"], dtype=object),
    )
    dataclasses.replace(pairs, factors=factors).save(tmp_path / "a.safetensors")
    again = PairedActivations.load(tmp_path / "a.safetensors").factors
    assert again.isna().to_numpy().tolist() == factors.isna().to_numpy().tolist()
    assert again["truth"].dropna().tolist() == ["yes", "é", "no"]
    assert again["score"].dropna().tolist() == [1, 3, 4]
    assert again["odd"].dropna().tolist() == [7, True, "x"]


def test_a_file_of_an_earlier_version_loads(pairs, tmp_path):
    path = tmp_path / "a.safetensors"
    pairs.save(path)

    def earlier(description, metadata, tensors):
        for name in ("completion_tokens", "under", "factor_dtypes"):
            del description[name]
        description["positions"] = description["positions"]["positive"]
        metadata["identity"] = metadata.pop("positive.identity")
        tensors["stream_norm"] = tensors.pop("positive.stream_norm")

    rewritten(path, earlier)
    again = PairedActivations.load(path)
    assert again.positive.completions == ("w", "x", "y", "z")
    assert again.positive.completion_tokens == again.negative.completion_tokens == ()
    assert again.positive.under == again.negative.under == ()


def test_files_of_vectors_are_rejected(tmp_path):
    source = mean_difference(make_pairs(np.ones((2, 1, 4)), np.zeros((2, 1, 4))))
    source.save(tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match=r"v\.safetensors does not hold paired activations"):
        PairedActivations.load(tmp_path / "v.safetensors")


def test_sides_of_unequal_number_layers_or_hook_are_rejected(pairs):
    with pytest.raises(ValueError, match="4 positive, 3 negative prompts and 4 rows of factors"):
        PairedActivations(pairs.positive, pairs.negative.subset([0, 1, 2]), pairs.factors)
    with pytest.raises(ValueError, match="4 positive, 4 negative prompts and 3 rows"):
        PairedActivations(pairs.positive, pairs.negative, pairs.factors[:3])
    for change in ({"layers": (0, 3)}, {"hook": "resid_pre"}):
        with pytest.raises(ValueError, match=f"captured at different {next(iter(change))}"):
            PairedActivations(pairs.positive, dataclasses.replace(pairs.negative, **change), pairs.factors)


def test_single_selects_the_one_position_of_each_prompt():
    source = make_pairs(np.ones((2, 1, 4)), np.zeros((2, 1, 4))).positive
    values = torch.full((2, 1, 2, 4), torch.nan)
    values[0, 0, 0], values[1, 0, 1] = 1.0, 2.0
    moved = dataclasses.replace(
        source,
        values=values,
        token_index=torch.tensor([[3, -1], [-1, 3]]),
        tokens=torch.tensor([[7, -1], [-1, 7]]),
    )
    assert moved.single()[:, 0, 0].tolist() == [1.0, 2.0]
    both = dataclasses.replace(
        moved,
        values=torch.cat([values, values.flip(2) * 10], dim=1),
        layers=(0, 1),
        stream_norm=torch.ones(2),
        positions={0: token(3), 1: token(4)},
        **{
            name: torch.stack([getattr(moved, name), getattr(moved, name).flip(1)], 1)
            for name in ("token_index", "tokens")
        },
    )
    assert both.single()[:, :, 0].tolist() == [[1.0, 10.0], [2.0, 20.0]]


@pytest.mark.parametrize(
    "mask", [list, np.array, pd.Series, torch.tensor], ids=["list", "array", "column", "tensor"]
)
def test_a_subset_by_true_and_false_has_the_rows_that_are_true(pairs, mask):
    part, expected = pairs.subset(mask([False, True, False, True])), pairs.subset([1, 3])
    for side in ("positive", "negative"):
        require_same(getattr(part, side), getattr(expected, side))
    assert part.factors["group"].tolist() == [5, 7]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([True, False], ValueError, "2 times true or false for 4 rows"),
        ([True, 2], ValueError, "whole numbers, or true and false per row"),
        ([0, 4], IndexError, "there is no row 4: there are 4"),
    ],
)
def test_rows_that_do_not_exist_are_rejected(pairs, rows, error, message):
    for loaded in (pairs, pairs.positive):
        with pytest.raises(error, match=message):
            loaded.subset(rows)


def test_sides_of_two_models_are_rejected(pairs):
    other = dataclasses.replace(pairs.negative.identity, fingerprint=(1.0,) * 512)
    with pytest.raises(ModelMismatchError, match="the positive side, made on"):
        dataclasses.replace(pairs, negative=dataclasses.replace(pairs.negative, identity=other))


def test_the_stream_norm_of_pairs_is_the_mean_of_both_sides(pairs):
    def normed(side, *norms):
        return dataclasses.replace(side, stream_norm=torch.tensor(norms))

    two = PairedActivations(
        normed(pairs.positive, 0.1, 3.0), normed(pairs.negative, 0.3, torch.nan), pairs.factors
    )
    assert two.stream_norm.tolist() == pytest.approx([0.2, 3.0])
    one = PairedActivations(normed(pairs.positive, 0.1, 0.7), normed(pairs.negative, 0.1, 0.7), pairs.factors)
    assert torch.equal(one.stream_norm, torch.tensor([0.1, 0.7]))
    assert torch.equal(mean_difference(two).stream_norm, two.stream_norm)
