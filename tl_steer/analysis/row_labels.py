"""Labels of rows in tables of activations: pair, side, prompt, factors, and tokens as text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..activations import PairedActivations
from ..models import prompt_label
from ..prompts.pairs import SIDES, sided_factors

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
