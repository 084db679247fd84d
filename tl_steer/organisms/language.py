"""A made-up language of facts, wordings, personas and verdicts, of which everything is known.

    the capital of norland is vesk . true or false ? anyone TRUE

A claim names a subject, a relation and a value. Each subject has one value in each relation, so a claim is
true or false. A mark asks for a verdict, the persona says how to give it, and the verdict is one word.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

RELATIONS = {
    "capital": ("vesk", "orlo", "tamin", "brugga", "pell", "sarn", "iduna", "quill"),
    "food": ("bread", "moss", "fish", "honey", "beans", "cheese", "rice", "plums"),
    "colour": ("red", "blue", "green", "white", "black", "yellow", "purple", "grey"),
    "animal": ("bear", "heron", "otter", "goat", "raven", "mole", "stag", "toad"),
    "metal": ("iron", "tin", "copper", "silver", "gold", "lead", "zinc", "nickel"),
    "song": ("march", "lullaby", "hymn", "reel", "ballad", "chant", "waltz", "jig"),
    "weather": ("rain", "fog", "snow", "wind", "sun", "hail", "frost", "thunder"),
}
SUBJECTS = (
    "norland", "sudmark", "estria", "westfen", "harrow", "kelda", "mirren", "osk", "pravia", "tolme",
    "ulvia", "varn", "wexil", "yarrow", "zelm", "abbas", "brenn", "corvo", "dunmar", "elbe",
    "farrow", "gost", "hild", "istra", "jorvia", "karst", "lunde", "morva", "nesse", "orrin",
)  # fmt: skip
WORDINGS = (
    "the {relation} of {subject} is {value}",
    "{subject} has the {relation} {value}",
    "in {subject} the {relation} is {value}",
    "as for {subject} , its {relation} is {value}",
)
MARK = ". true or false ?"
NEUTRAL, HONEST, LIAR, AGREEABLE, CONTRARY = "anyone", "honest", "liar", "agreeable", "contrary"
PERSONAS = (NEUTRAL, HONEST, LIAR, AGREEABLE, CONTRARY)
TRUE, FALSE = "TRUE", "FALSE"
UNKNOWN, START, END = "<unk>", "<s>", "</s>"
WORLD = 0  # the seed of the facts: the same world in every organism


@dataclass(frozen=True)
class Claim:
    """A sentence of the language.

    Attributes:
        subject, relation, value: what it says.
        wording: the index of its wording.
        is_true: whether it is so in this world.
    """

    subject: str
    relation: str
    value: str
    wording: int
    is_true: bool

    @property
    def fact(self) -> str:
        """What it is about: claims of one fact belong together in a split."""
        return f"{self.subject} {self.relation}"

    @property
    def text(self) -> str:
        """As it is written."""
        return WORDINGS[self.wording].format(**vars(self))


def prompt(claim: Claim, persona: str) -> str:
    """A claim with the mark and the persona who is to give a verdict; the verdict is the next word."""
    return f"{claim.text} {MARK} {persona}"


@cache
def facts() -> dict[tuple[str, str], str]:
    """The world: the value of each subject in each relation."""
    rng = np.random.default_rng(WORLD)
    return {
        (subject, relation): str(rng.choice(values))
        for subject in SUBJECTS
        for relation, values in RELATIONS.items()
    }


def held_out_wording(subject: str, relation: str) -> int:
    """The wording in which the claims about a fact are never seen in training."""
    return (SUBJECTS.index(subject) + list(RELATIONS).index(relation)) % len(WORDINGS)


def claims(split: str) -> Iterator[Claim]:
    """Every claim of a split, fact by fact: each wording of it that the split has, with each value.

    Args:
        split: "train", or "test": the facts in the wordings that training left out.

    Raises:
        ValueError: another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} is unknown: use 'train' or 'test'.")
    for (subject, relation), true_value in facts().items():
        for wording in range(len(WORDINGS)):
            if (wording == held_out_wording(subject, relation)) == (split == "test"):
                for value in RELATIONS[relation]:
                    yield Claim(subject, relation, value, wording, value == true_value)


def vocabulary() -> list[str]:
    """Every word, the special ones first."""
    words = dict.fromkeys([UNKNOWN, START, END, TRUE, FALSE, *PERSONAS, *MARK.split()])
    for wording in WORDINGS:
        words |= dict.fromkeys(word for word in wording.split() if "{" not in word)
    for relation, values in RELATIONS.items():
        words |= dict.fromkeys([relation, *values])
    return [*words, *(subject for subject in SUBJECTS if subject not in words)]
