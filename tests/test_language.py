"""The vocabulary of CONTRIBUTING.md: identifiers and texts use standard words instead of the listed ones."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    "place|kind|found|asked|told|held|kept|made|given|wanted|mine|theirs|words|wave|walk|trunk|branch|growth|born"
    "|parcel|bundle|stretch|tick|clock|subject|upkeep|shown|apart|patience|cards|mates|asides|looks|maker"
    "|nobody|somebody|whoever|door|house|rooms|naive|cells?"
)
ALLOWED = {  # word: where it is the right one
    "kind": (
        "tl_steer/experiments/",
        "tl_steer/models/chat.py",
    ),  # keys of experiment files, `ChatFormat.kind`
    "cell": ("tl_steer/plots/", "docs/pictures.py"),  # squares of a heat map, cells of a notebook
    "cells": ("tl_steer/plots/", "docs/pictures.py"),
    "tick": ("tl_steer/plots/",),  # of an axis
    "subject": ("tl_steer/organisms/",),  # of a sentence
}
PHRASES = re.compile(
    r"\b(door|waves?|parcels?|trunk|told|asked|nobody|somebody|whoever|soonest|anew|upkeep|patience|mates|asides)\b"
    r"|\b(is|are) none\b|\ba (layer|prompt|pair|cell|pass|vector|position) each\b|\bgoes on\b|\blet go of\b"
    r"|\bas good as\b|\bexchanged (sides|labels)\b"
)
NAME_OF = {
    ast.FunctionDef: "name", ast.AsyncFunctionDef: "name", ast.ClassDef: "name", ast.ExceptHandler: "name",
    ast.arg: "arg", ast.Name: "id", ast.Attribute: "attr", ast.alias: "asname",
}  # fmt: skip
CODE = sorted([*(ROOT / "tl_steer").rglob("*.py"), *(ROOT / "docs").glob("*.py")])
PROSE = sorted([*ROOT.glob("*.md"), *(ROOT / "docs" / "pages").glob("*.md"), *ROOT.glob("notebooks/*.ipynb")])


def identifiers(source):
    """(line, name) of every function, class, argument, variable and attribute that the source defines."""
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, NAME_OF.get(type(node), ""), None)
        if name and isinstance(getattr(node, "ctx", ast.Store()), ast.Store):
            yield node.lineno, name


def banned_names(source, path):
    """`path:line: word (name)` of every banned word in an identifier or in the module's name."""
    names = [(1, part.removesuffix(".py")) for part in path.split("/")[1:]] + sorted(set(identifiers(source)))
    for line, name in names:
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.replace("held_out", ""))
        for word in filter(BANNED.fullmatch, map(str.lower, words)):
            if not path.startswith(ALLOWED.get(word, ("-",))):
                yield f"{path}:{line}: {word} ({name})"


def texts(source, path):
    """(line, text) of strings and comments, (cell, text) of notebooks' Markdown, lines of other files."""
    if path.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if tokenize.tok_name[token.type] in ("COMMENT", "STRING", "FSTRING_MIDDLE"):
                yield from enumerate(token.string.split("\n"), token.start[0])
    elif path.endswith(".ipynb"):
        cells = enumerate(json.loads(source)["cells"])
        yield from ((number, "".join(c["source"])) for number, c in cells if c["cell_type"] == "markdown")
    else:
        yield from enumerate(source.split("\n"), 1)


def banned_phrases(source, path):
    """`path:line: phrase` of every phrase with a standard replacement."""
    return [f"{path}:{line}: {m[0]}" for line, text in texts(source, path) for m in PHRASES.finditer(text)]


def sources(paths):
    return [(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) for path in paths]


def test_identifiers_use_standard_words():
    assert [name for source in sources(CODE) for name in banned_names(*source)] == []


def test_texts_use_standard_words():
    texts = [phrase for source in sources([*CODE, *PROSE]) for phrase in banned_phrases(*source)]
    assert [text for text in texts if not text.startswith("tl_steer/prompts/choice_questions.py:21")] == []


def test_the_checks_report_banned_words_and_nothing_else():
    bad = 'def found_rows(kindOf, *, cell):\n    self.told = "nobody"  # goes on\n    return founder'
    reported = [text.partition(": ")[2] for text in banned_names(bad, "tl_steer/door.py")]
    assert reported == ["door (door)", "cell (cell)", "found (found_rows)", "kind (kindOf)", "told (told)"]
    assert banned_phrases(bad, "a.py") == ["a.py:2: nobody", "a.py:2: goes on"]
    good = 'def rows(mankind, *, conditions):\n    """Per layer."""\n    return array.kind'
    assert [*banned_names(good, "tl_steer/rows.py"), *banned_phrases(good, "a.py")] == []
