"""Projections of activations on steering vectors, their means by layer and side, and the labels of rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .._util.validation import checked
from ..activations import Activations, PairedActivations
from ..directions import SteeringVector, SteeringVectors
from ..models import prompt_label
from ..prompts.pairs import SIDES, group_numbers, sided_factors
from ..statistics import mean_interval, nested, spread_interval
from ..tables import validated

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
        ValueError: no pairs, no layer in common, another hook, one vector per position, or a vector of length
            zero.

    Uncentred projections are in the units of `SetProjection`, and comparable within a layer. What all
    activations share dominates the cosines and differs between layers: to compare layers, or to read
    cosines, pass centred=True.

    Projections of the pairs that the vectors were made from are flattering: `separation` holds pairs out.
    """
    layers = shared_layers(activations, vectors)
    if not len(activations):
        raise ValueError("no pairs to project: the activations have none.")
    both = np.concatenate([side.double().numpy() for side in activations.sides()])
    directions, labels = vectors.normalized(), side_labels(activations)
    tables = []
    for layer in layers:
        rows = both[:, activations.layers.index(layer)]
        rows = rows - rows.mean(0) if centred else rows
        tables.append(labelled(labels, layer, projected(rows, directions[layer])))
    return pd.concat(tables, ignore_index=True)


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
    shared = [layer for layer in activations.layers if layer in vectors.layers]
    if not shared:
        raise ValueError(
            f"no layer in common: vectors at {list(vectors.layers)}, "
            f"activations at {list(activations.layers)}."
        )
    return shared


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
        spread_high (`statistics.spread_interval`). Small where a side's projections are peaked; it grows with
        the norm of the residual stream, so compare sides within a layer.

        Where `by` has "side", also a row with side "difference", of n whole pairs: the mean of positive minus
        negative with a paired interval; `spread` is there the standard deviation of these differences, and
        effect: the projection's mean difference over this spread;
        rank, projection_rank: the layer's ranks by effect and by the difference itself, 1 for the largest.

    Raises:
        ValueError: no rows, missing columns, or a layer that has a pair's side twice.

    Projections grow with the residual stream from layer to layer, so ranks of the difference itself favour
    late layers. The effect has no unit: it compares layers. Ranks are among the layers of one level of the
    other factors.

    A factor that differs between the sides of a pair (the letter) leaves no whole pair in any of its levels,
    and so no difference; in a table of all levels, its contribution to the differences counts as their
    spread, though the pairs balance it. Intervals take groups whole (`statistics.mean_interval`): the rows
    that share a value of the factor `group`, or without this column a pair. On the pairs that the vectors
    were made from, differences flatter; `separation` holds pairs out.
    """
    by = [by] if isinstance(by, str) else list(by)
    table = validated(
        table, "layer", "pair", "side", *VALUES,
        producer="projections", caller="mean_projections", factors=by,
    )  # fmt: skip
    others = [name for name in by if name != "side"]
    if taken := sorted(RESULTS & set(by)):
        raise ValueError(f"by={taken} have the names of results: rename these factors first.")
    if table.duplicated(["layer", *others, "pair", "side"]).any():
        raise ValueError(
            "a layer has the same side of a pair twice: are these several tables in one? "
            "Name the column that tells them apart in by=…"
        )
    group = group_numbers(table if "group" in table else table.assign(group=table["pair"]))
    means = _summarised(table, ["layer", *by], group)
    if "side" not in by:
        return means.sort_values(["layer", *by], ignore_index=True)
    differences = _ranked(_differences(table, ["layer", *others], group), others)
    both = pd.concat([means, differences], ignore_index=True)
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
    spread = spread_interval(table["projection"].to_numpy(float), sample, group)
    return means.assign(**dict(zip(SPREAD, spread, strict=True)))


def _differences(table: pd.DataFrame, keys: list[str], group: Int[np.ndarray, " row"]) -> pd.DataFrame:
    """Positive minus negative of each pair that is whole within a combination of `keys`, summarised."""
    index = [*keys, "pair"]
    positive, negative = (table[table["side"] == side].set_index(index)[[*VALUES]] for side in SIDES)
    whole = positive.index.isin(negative.index)
    gaps = positive.sub(negative.reindex(positive.index))[whole].reset_index()
    means = _summarised(gaps, keys, group[table["side"] == SIDES[0]][whole]).assign(side="difference")
    # Where all pairs differ equally, the spread is rounding error and there is no effect.
    is_known = means["spread"] > 1e-12 * means["projection"].abs()
    return means.assign(effect=means["projection"] / means["spread"].where(is_known))


def _ranked(differences: pd.DataFrame, others: list[str]) -> pd.DataFrame:
    ranked = differences.copy()
    for rank, value in (("rank", "effect"), ("projection_rank", "projection")):
        column = ranked.groupby(others, dropna=False, observed=True)[value] if others else ranked[value]
        ranked[rank] = column.rank(ascending=False, method="min").astype("Int64")
    return ranked


LABELS = ("layer", "pair", "side", "prompt")


def side_labels(pairs: PairedActivations) -> pd.DataFrame:
    """One row per activation, all positive ones, then all negative ones: pair, side, prompt, label, factors.

    `label` is the message that a prompt was rendered from, else the prompt; or a factor of that name.
    Factors that differ between the sides (letter_positive, letter_negative) become one column (letter).
    """
    names, joined = set(map(str, pairs.factors.columns)), set(sided_factors(pairs.factors))
    if taken := {*LABELS, *joined} & names | set(LABELS) & joined:
        raise ValueError(
            f"the factors {sorted(taken)} have the name of another column of the table: rename them."
        )
    tables = []
    for side, other in zip(SIDES, SIDES[::-1], strict=True):
        factors = pairs.factors.reset_index(drop=True).drop(columns=[f"{name}_{other}" for name in joined])
        factors = factors.rename(columns={f"{name}_{side}": name for name in joined})
        prompts = getattr(pairs, side).prompts
        labels = {"pair": range(len(pairs)), "side": side, "prompt": list(map(str, prompts))}
        if "label" not in factors:
            labels["label"] = list(map(prompt_label, prompts))
        tables.append(pd.DataFrame(labels).join(factors))
    return pd.concat(tables, ignore_index=True)


def labelled(labels: pd.DataFrame, layer: int, values: pd.DataFrame) -> pd.DataFrame:
    """A layer's values with the labels of both sides."""
    if taken := sorted(set(labels) & set(values)):
        raise ValueError(f"the factors {taken} have the names of results: rename them first.")
    return pd.concat([pd.DataFrame({"layer": layer}, index=labels.index), labels, values], axis=1)


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
    byte_of = _byte_alphabet() if _is_byte_level(tokenizer) else None
    special = set(tokenizer.get_added_vocab())
    return [
        f"<id {token}>" if token >= size or piece is None else _piece_text(piece, byte_of, special)
        for token, piece in zip(ids, pieces, strict=True)
    ]


def _piece_text(piece: str, byte_of: dict[str, int] | None, special: set[str]) -> str:
    if piece in special:
        return piece
    if byte_of is None or not set(piece) <= byte_of.keys():
        return piece.replace("▁", " ")  # SentencePiece's sign for a space
    raw = bytes(byte_of[sign] for sign in piece)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in raw)


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether the vocabulary spells bytes with GPT-2's letters, in which "Ġ" is a space."""
    space = tokenizer.get_vocab().get("Ġ")
    return space is not None and tokenizer.decode([space], clean_up_tokenization_spaces=False) == " "


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's sign for each byte: printable ones are themselves, the others follow from U+0100 on.

    Source: Radford et al. 2019, `bytes_to_unicode` in the released encoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    signs = {chr(256 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | signs
