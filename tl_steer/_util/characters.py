"""Characters that cannot be seen, or that control terminals and the direction of text, made visible."""

import unicodedata

SYMBOLS_OF_SPACES = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
# Unicode directional formatting characters, which can reorder the text after them.
DIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def without_controls(text: str) -> str:
    """A code point for each control and directional formatting character; line ends and tabs stay."""
    return "".join(_code_point(each) if _is_control(each) else each for each in text)


def visible(token: str) -> str:
    """Show every character of a token: spaces, line ends, controls and combining marks at its start."""
    return "".join(visible_character(each, index == 0) for index, each in enumerate(token))


def visible_character(character: str, is_first: bool) -> str:
    """A symbol for a space, a code point for another invisible character; `is_first` of its token."""
    category = unicodedata.category(character)[0]
    is_invisible = category in "CZ" or (category == "M" and is_first)
    return SYMBOLS_OF_SPACES.get(character, _code_point(character) if is_invisible else character)


def _code_point(character: str) -> str:
    return f"<U+{ord(character):04X}>"


def _is_control(character: str) -> bool:
    control = unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t\r"
    return control or unicodedata.bidirectional(character) in DIRECTIONAL
