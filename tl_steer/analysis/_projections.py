"""Projections of activations on steering vectors, their means by layer and side, and the labels of rows."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from .._util.validation import checked
from ..activations import Activations, PairedActivations
from ..directions import SteeringVector, SteeringVectors
from ..models import Layers, prompt_label, resolve_layers
from ..prompts.pairs import SIDES, group_numbers, sided_factors
from ..statistics import mean_interval, nested, spread_interval
from ..tables import validated

LABELS = ("layer", "pair", "side", "prompt")
VALUES = ("projection", "cosine")
SPREAD = ("spread", "spread_low", "spread_high")
RESULTS = {
    "n", "effect", "rank", "projection_rank", *SPREAD,
    *(f"{name}{end}" for name in VALUES for end in ("", "_low", "_high")),
}  # fmt: skip


@checked
def projections(
    activations: PairedActivations, vectors: SteeringVectors, *, centred: bool = False
) -> pd.DataFrame:
    """Projection and cosine of every activation on the vector of its layer.

    Args:
        activations: both sides, one position each.
        vectors: for some of the same layers, at the same hook. Their length does not matter.
        centred: subtract each layer's mean activation, over both sides, first.

    Returns:
        One row per shared layer, pair and side: layer, pair, side ("positive", "negative"), prompt, label
        (its message, where it was rendered from one), the factors (those that differ between the sides as one
        column), projection (x · d, d the unit direction, in units of the residual stream) and cosine.

    Raises:
        ModelMismatchError: the vectors belong to another model.
        ValueError: no pairs, no layer in common, another hook, one vector per position, or a zero vector.

    Uncentred projections are in the units of `SetProjection`, and comparable within a layer. What all
    activations share dominates the cosines and differs between layers: to compare layers, or to read
    cosines, pass centred=True.

    Projections of the pairs that the vectors were made from are flattering: `separation` holds pairs out.
    """
    layers = shared_layers(activations, vectors)
    if not len(activations):
        raise ValueError("no pairs to project: the activations have none.")
    both = torch.cat(activations.sides()).double().numpy()
    directions, tables = vectors.normalized(), {}
    for layer in layers:
        rows = both[:, activations.layers.index(layer)]
        tables[layer] = projected(rows - rows.mean(0) if centred else rows, directions[layer])
    return labelled(activations, tables)


def shared_layers(activations: Activations | PairedActivations, vectors: SteeringVectors) -> list[int]:
    """The layers that both have, in the activations' order. Raises as `projections`."""
    vectors.identity.require(activations.identity, what="these vectors")
    if vectors.hook != activations.hook:
        raise ValueError(
            f"the vectors are at {vectors.hook}, the activations at {activations.hook}: "
            "capture there, or place the vectors with .at(…, hook=…)."
        )
    if vectors.has_positions:
        raise ValueError("these vectors have one direction per position: projections need one per layer.")
    side = activations.positive if isinstance(activations, PairedActivations) else activations
    if (count := vectors.values.shape[-1]) != (width := side.values.shape[-1]):
        raise ValueError(f"these vectors have {count} numbers, the activations {width}.")
    if shared := [layer for layer in activations.layers if layer in vectors.layers]:
        return shared
    raise ValueError(
        f"no layer in common: vectors at {list(vectors.layers)}, activations at {list(activations.layers)}."
    )


def chosen_layers(
    source: Activations | PairedActivations | SteeringVectors, layers: Layers
) -> tuple[int, ...]:
    """Some of the layers that a source has; all by default."""
    chosen = source.layers if layers is None else resolve_layers(layers, source.identity.n_layers)
    if missing := [layer for layer in chosen if layer not in source.layers]:
        raise ValueError(f"there is nothing at layers {missing}; there are {list(source.layers)}.")
    return chosen


def projected(rows: Float[np.ndarray, "row d_hook"], vector: SteeringVector) -> pd.DataFrame:
    """Per row the projection x · d on the unit direction, and the cosine (NaN of length zero)."""
    direction = vector.values.double().numpy()
    length = np.linalg.norm(direction)
    if length == 0:
        raise ValueError(f"the vector of layer {vector.layer} has length zero: it has no direction.")
    projection = rows @ (direction / length)
    norms = np.linalg.norm(rows, axis=-1)
    return pd.DataFrame({"projection": projection, "cosine": divided(projection, norms)})


def divided(
    values: Float[np.ndarray, "*shape"], lengths: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Element-wise quotient, NaN where the length is zero."""
    return np.divide(values, lengths, out=np.full(lengths.shape, np.nan), where=lengths > 0)


@checked
def mean_projections(table: pd.DataFrame, *, by: str | Sequence[str] = "side") -> pd.DataFrame:
    """Mean and spread of projections per layer, and the difference between the sides of the same pairs.

    Args:
        table: from `projections`.
        by: "side", a factor, or several.

    Returns:
        One row per layer and level of `by`:
        layer, the columns of `by`, n;
        projection, cosine: means, with Student's 95 % intervals in …_low and …_high.
        spread: standard deviation of the projections (ddof 1), with a 95 % interval in spread_low and
        spread_high (`statistics.spread_interval`). Compare it within a layer.

        Where `by` has "side", also a row with side "difference", of n whole pairs: the mean of positive minus
        negative with a paired interval; `spread` is there the standard deviation of these differences, and
        effect: the projection's mean difference over this spread;
        rank, projection_rank: the layer's ranks by effect and by the difference itself, 1 for the largest.

    Raises:
        ValueError: no rows, missing columns, or a layer that has a pair's side twice.

    Projections and spreads grow with the residual stream from layer to layer, so ranks of the difference
    itself favour late layers. The effect has no unit: it compares layers. Ranks are among the layers of one
    level of the other factors.

    A factor that differs between the sides of a pair (the letter) leaves no whole pair in any of its levels,
    and so no difference; without it in `by`, it adds to the spread of the differences. Intervals take groups
    whole (`statistics.mean_interval`): the rows that share a value of the factor `group`, else a pair. On the
    pairs that the vectors were made from, differences flatter; `separation` holds pairs out.
    """
    by = [by] if isinstance(by, str) else list(by)
    table = validated(
        table, "layer", "pair", "side", *VALUES,
        producer="projections", caller="mean_projections", factors=by,
    )  # fmt: skip
    require_unused(by, RESULTS)
    others = [name for name in by if name != "side"]
    if table.duplicated(["layer", *others, "pair", "side"]).any():
        raise ValueError(
            "a layer has the same side of a pair twice: are these several tables in one? "
            "Name the column that tells them apart in by=…"
        )
    group = group_numbers(table if "group" in table else table.assign(group=table["pair"]))
    means = _summarised(table, ["layer", *by], group)
    if "side" not in by:
        return means.sort_values(["layer", *by], ignore_index=True)
    both = pd.concat([means, _differences(table, others, group)], ignore_index=True)
    both["side"] = pd.Categorical(both["side"], [*SIDES, "difference"])
    both = both.sort_values(["layer", *others, "side"], ignore_index=True)
    return both.astype({"side": table["side"].dtype})


def _summarised(table: pd.DataFrame, keys: list[str], group: Int[np.ndarray, " row"]) -> pd.DataFrame:
    """n, and each value's mean with its interval, per combination of `keys`."""
    grouped = table.groupby(keys, dropna=False, observed=True)
    means = grouped.size().rename("n").reset_index()
    sample = grouped.ngroup().to_numpy()
    group = nested(sample, group)
    for name in VALUES:
        ends = mean_interval(table[name].to_numpy(float), sample, group)
        means[[name, f"{name}_low", f"{name}_high"]] = np.stack(ends, 1)
    means[[*SPREAD]] = np.stack(spread_interval(table["projection"].to_numpy(float), sample, group), 1)
    return means


def _differences(table: pd.DataFrame, others: list[str], group: Int[np.ndarray, " row"]) -> pd.DataFrame:
    """Positive minus negative of each pair that is whole at a layer and level of `others`, summarised."""
    keys = ["layer", *others]
    positive, negative = (table[table["side"] == side].set_index([*keys, "pair"]) for side in SIDES)
    positive, negative = positive[[*VALUES]], negative[[*VALUES]]
    whole = positive.index.isin(negative.index)
    gaps = positive.sub(negative.reindex(positive.index))[whole].reset_index()
    means = _summarised(gaps, keys, group[table["side"] == SIDES[0]][whole]).assign(side="difference")
    # Where all pairs differ equally, the spread is rounding error and there is no effect.
    is_known = means["spread"] > 1e-12 * means["projection"].abs()
    means["effect"] = means["projection"] / means["spread"].where(is_known)
    levels = means.groupby(others or np.zeros(len(means)), dropna=False, observed=True)
    ranks = levels[["effect", "projection"]].rank(ascending=False, method="min").astype("Int64")
    return means.assign(rank=ranks["effect"], projection_rank=ranks["projection"])


def labelled(pairs: PairedActivations, tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    """One table of the values per layer, those of the positive sides first, next to what they belong to.

    Columns: layer, pair, side, prompt, label (the message that a prompt was rendered from, else the prompt;
    or a factor of that name), the factors and the values. Factors that differ between the sides
    (letter_positive, letter_negative) become one column (letter).
    """
    joined = sided_factors(pairs.factors)
    require_unused(pairs.factors.columns, {*LABELS, *joined})
    require_unused(joined, LABELS)
    sides = []
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        factors = pairs.factors.reset_index(drop=True).drop(columns=[f"{name}_{other}" for name in joined])
        factors = factors.rename(columns={f"{name}_{side}": name for name in joined})
        prompts = getattr(pairs, side).prompts
        labels = {"pair": range(len(pairs)), "side": side, "prompt": list(map(str, prompts))}
        if "label" not in factors:
            labels["label"] = list(map(prompt_label, prompts))
        sides.append(pd.DataFrame(labels).join(factors))
    labels = pd.concat(sides, ignore_index=True)
    for values in tables.values():
        require_unused(labels, values)
    parts = {layer: pd.concat([labels, values], axis=1) for layer, values in tables.items()}
    return pd.concat(parts, names=["layer"]).reset_index("layer").reset_index(drop=True)


def require_unused(names: Iterable[Hashable], columns: Iterable[Hashable]) -> None:
    """Raise if factors have the names of other columns of a table."""
    if taken := sorted(set(map(str, names)) & set(columns)):
        raise ValueError(f"the factors {taken} have the names of other columns: rename them.")


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text of each token id, distinct for distinct tokens: " the" and "the" differ.

    Without a tokenizer the ids; ids beyond the vocabulary, for which some models have rows, as "<id 50260>".
    Texts are read from the vocabulary. Decoding ids one by one would drop SentencePiece's leading space and
    turn each part of a character into U+FFFD; here such a byte is "<0xE2>".
    """
    if tokenizer is None:
        return list(map(str, ids))
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens([min(token, size - 1) for token in ids])
    byte_of = _byte_alphabet(tokenizer)
    special = set(tokenizer.get_added_vocab())

    def text(piece: str) -> str:
        if piece in special:
            return piece
        if not set(piece) <= byte_of.keys():
            return piece.replace("▁", " ")  # SentencePiece's sign for a space
        raw = bytes(byte_of[sign] for sign in piece)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in raw)

    return [
        f"<id {token}>" if token >= size or piece is None else text(piece)
        for token, piece in zip(ids, pieces, strict=True)
    ]


def _byte_alphabet(tokenizer: Any) -> dict[str, int]:
    """GPT-2's sign for each byte, if the vocabulary spells bytes with them ("Ġ" is a space); else empty.

    Printable bytes are themselves, the others follow from U+0100 on.

    Source: Radford et al. 2019, `bytes_to_unicode` in the released encoder.
    """
    space = tokenizer.get_vocab().get("Ġ")
    if space is None or tokenizer.decode([space], clean_up_tokenization_spaces=False) != " ":
        return {}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
