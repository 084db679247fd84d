"""The model organisms' language of facts, wordings, personas and answers.

    the capital of norland is vesk . true or false ? anyone TRUE

A claim names a subject, a relation and a value. Each subject has one value in each relation, so a claim is
true or false. A mark asks for an answer, the persona says how to give it, and the answer is one word.
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
FACTS_SEED = 0  # the same facts in every model organism


@dataclass(frozen=True)
class Claim:
    """A claim that a subject has a value in a relation; `wording` is an index into WORDINGS."""

    subject: str
    relation: str
    value: str
    wording: int
    is_true: bool

    @property
    def fact(self) -> str:
        """Subject and relation: claims of one fact belong together in a split."""
        return f"{self.subject} {self.relation}"

    @property
    def text(self) -> str:
        """The claim in its wording."""
        return WORDINGS[self.wording].format(**vars(self))


def prompt(claim: Claim, persona: str) -> str:
    """A claim with the mark and the persona; the answer is the next word."""
    return f"{claim.text} {MARK} {persona}"


@cache
def facts() -> dict[tuple[str, str], str]:
    """The true value of each subject in each relation."""
    rng = np.random.default_rng(FACTS_SEED)
    return {
        (subject, relation): str(rng.choice(values))
        for subject in SUBJECTS
        for relation, values in RELATIONS.items()
    }


def held_out_wording(subject: str, relation: str) -> int:
    """The wording of a fact that is not in the training split."""
    return (SUBJECTS.index(subject) + list(RELATIONS).index(relation)) % len(WORDINGS)


def claims(split: str) -> Iterator[Claim]:
    """Every claim of a split, fact by fact, in each wording of the split with each value.

    Args:
        split: "train", or "test": the facts in the wordings that training left out.
    """
    for (subject, relation), true_value in facts().items():
        for wording in range(len(WORDINGS)):
            if (wording == held_out_wording(subject, relation)) == (split == "test"):
                for value in RELATIONS[relation]:
                    yield Claim(subject, relation, value, wording, value == true_value)


def vocabulary() -> list[str]:
    """Every word, special tokens first."""
    tokens = dict.fromkeys([UNKNOWN, START, END, TRUE, FALSE, *PERSONAS, *MARK.split()])
    for wording in WORDINGS:
        tokens |= dict.fromkeys(word for word in wording.split() if "{" not in word)
    for relation, values in RELATIONS.items():
        tokens |= dict.fromkeys([relation, *values])
    return [*tokens, *(subject for subject in SUBJECTS if subject not in tokens)]
