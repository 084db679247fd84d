"""Tokens as text, so that no two of them read alike."""

from collections.abc import Sequence
from typing import Any


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each id: " the" and "the" differ, and so do two bytes that are no character alone.

    Args:
        tokenizer: a Hugging Face tokenizer, or None, which gives the ids themselves.
        ids: any, also those beyond the vocabulary, which some models have rows for ("<id 50260>").

    Decoding ids one by one loses this: SentencePiece drops the space in front, and every part of a character
    becomes U+FFFD. So texts are read from the vocabulary itself; a byte that is no
    character alone is written "<0xE2>".
    """
    if tokenizer is None:
        return [str(token) for token in ids]
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens([min(token, size - 1) for token in ids])
    byte_of = _byte_alphabet() if _is_byte_level(tokenizer) else None
    special = set(tokenizer.get_added_vocab())
    return [
        f"<id {token}>" if token >= size or piece is None else _text(piece, byte_of, special)
        for token, piece in zip(ids, pieces, strict=True)
    ]


def _text(piece: str, byte_of: dict[str, int] | None, special: set[str]) -> str:
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
    """Whether its vocabulary spells bytes with GPT-2's letters, in which "Ġ" is a space."""
    space = tokenizer.get_vocab().get("Ġ")
    return space is not None and tokenizer.decode([space], clean_up_tokenization_spaces=False) == " "


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's sign for each byte: printable ones are themselves, the others follow from U+0100 on.

    Source: Radford et al. 2019, `bytes_to_unicode` in the released encoder.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
