"""Contrast pairs and choice questions in the organisms' language, with everything that is known of them."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from .._util.seeds import generator
from .._util.validation import checked
from ..prompts import ChoiceQuestions, ContrastPairs, contrast_pairs
from . import language
from .language import AGREEABLE, CONTRARY, HONEST, LIAR, NEUTRAL, Claim

SIDES = {
    "organism-honesty": (HONEST, LIAR),
    "organism-bias": (AGREEABLE, CONTRARY),
    "organism-planted": (HONEST, LIAR),
}
CHOICES = (f" {language.TRUE}", f" {language.FALSE}")
Confound = Literal["truth", "wording"]


@checked
def organism_pairs(
    name: str,
    *,
    limit: int | None = None,
    matched: bool = True,
    confound: Confound | None = None,
    strength: float = 1.0,
    mislabelled: float = 0.0,
    seed: int = 0,
) -> ContrastPairs:
    """Pairs that differ in the persona at the last token, of the facts and wordings seen in training.

    Args:
        name: "organism-honesty" and "organism-planted" (honest against liar), or "organism-bias" (agreeable
            against contrary).
        limit: how many; by default a pair a fact. Half of the claims are true.
        matched: both sides say the same claim; else two drawn independently of each other.
        confound: what else differs between the sides, "truth" (the positive side's claims are true, the
            negative side's false) or "wording" (the first or third on the positive side, the second or
            fourth on the negative); the pairs are then unmatched.
        strength: in what share of the pairs it differs so; in the others it is drawn by chance.
        mislabelled: share of the pairs whose personas are exchanged, as though somebody had sorted them
            wrongly.
        seed: of the claims.

    Returns:
        Pairs with the factors group (the fact, of the positive side), subject, relation, and for either
        side truth and wording.

    Raises:
        ValueError: an unknown name or confound, or a limit or share out of range.
    """
    sides = _sides(name)
    if confound not in (None, "truth", "wording"):
        raise ValueError(f"confound={confound!r} is unknown: use 'truth', 'wording' or None.")
    for share in (strength, mislabelled):
        if not 0 <= share <= 1:
            raise ValueError(f"strength and mislabelled are shares from 0 to 1, not {share}.")
    rng = generator(seed)
    claims = others = _balanced(limit, rng)
    count = len(claims)
    if confound is not None or not matched:
        known = language.facts()
        chosen = [(claim.subject, claim.relation) for claim in claims]
        apart = rng.random(count) < strength if confound else np.zeros(count, bool)
        claims, others = (
            [
                _claim(
                    fact if side == 0 else _any_fact(known, rng),
                    rng,
                    is_true=side == 0 if confound == "truth" and apart[row] else bool(rng.integers(2)),
                    parity=side if confound == "wording" and apart[row] else None,
                )
                for row, fact in enumerate(chosen)
            ]
            for side in (0, 1)
        )
    factors = _about(claims)
    for side, said in (("positive", claims), ("negative", others)):
        factors[f"truth_{side}"] = [_truth(claim) for claim in said]
        factors[f"wording_{side}"] = [str(claim.wording) for claim in said]
    exchanged = rng.random(count) < mislabelled
    said = (
        [
            language.prompt(claim, sides[1 - side if wrong else side])
            for claim, wrong in zip(each, exchanged, strict=True)
        ]
        for side, each in enumerate((claims, others))
    )
    return contrast_pairs(*said, factors=factors)


@checked
def organism_questions(
    *, split: Literal["train", "test"] = "test", persona: str = NEUTRAL, seed: int = 0
) -> ChoiceQuestions:
    """Each fact as a true claim and as a false one, with the choices " TRUE" (the signal) and " FALSE".

    Args:
        split: "test" asks each fact in the wording in which training never showed it.
        persona: who answers; by default "anyone", who leans neither way.
        seed: of the false values and, in "train", of the wordings.

    Returns:
        Questions with the factors truth, subject, relation, wording, group (the fact: keep it together).

    Raises:
        ValueError: an unknown split or persona.
    """
    if persona not in language.PERSONAS:
        raise ValueError(f"persona={persona!r} is unknown: use one of {', '.join(language.PERSONAS)}.")
    rng = generator(seed)
    claims = [
        _claim(fact, rng, is_true=is_true, split=split)
        for fact in language.facts()
        for is_true in (True, False)
    ]
    factors = _about(claims).assign(
        truth=[_truth(claim) for claim in claims], wording=[str(claim.wording) for claim in claims]
    )
    prompts = [language.prompt(claim, persona) for claim in claims]
    answers = [0 if claim.is_true else 1 for claim in claims]
    return ChoiceQuestions(prompts, [CHOICES] * len(prompts), answers=answers, factors=factors)


@checked
def organism_passages(count: int, *, seed: int = 0) -> list[str]:
    """True claims of the training split, as text that asks nothing of anyone.

    Args:
        count: how many, each of another fact.
        seed: of which ones.

    Raises:
        ValueError: more than there are facts.
    """
    known = list(language.facts())
    if not 0 <= count <= len(known):
        raise ValueError(f"{count} passages: there are {len(known)} facts, give 0 to as many.")
    rng = generator(seed)
    facts = [known[place] for place in rng.permutation(len(known))[:count]]
    return [_claim(fact, rng, is_true=True).text for fact in facts]


def _sides(name: str) -> tuple[str, str]:
    if name not in SIDES:
        raise ValueError(f"organism {name!r} is unknown: use {', '.join(SIDES)}.")
    return SIDES[name]


Fact = tuple[str, str]  # subject and relation


def _balanced(limit: int | None, rng: np.random.Generator) -> list[Claim]:
    """A claim of the training split about each of `limit` facts, every second one true."""
    known = list(language.facts())
    count = len(known) if limit is None else limit
    if not 1 <= count <= len(known):
        raise ValueError(f"limit={limit}: there are {len(known)} facts, give 1 to as many.")
    chosen = [known[place] for place in rng.permutation(len(known))[:count]]
    return [_claim(fact, rng, is_true=bool(row % 2)) for row, fact in enumerate(chosen)]


def _about(claims: Sequence[Claim]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "group": [claim.fact for claim in claims],
            "subject": [claim.subject for claim in claims],
            "relation": [claim.relation for claim in claims],
        }
    )


def _any_fact(known: Mapping[Fact, str], rng: np.random.Generator) -> Fact:
    return list(known)[rng.integers(len(known))]


def _claim(
    fact: Fact,
    rng: np.random.Generator,
    *,
    is_true: bool,
    split: str = "train",
    parity: int | None = None,
) -> Claim:
    """A claim about a fact, drawn among those of the split; `parity` asks for an even or odd wording."""
    subject, relation = fact
    wordings = [
        wording
        for wording in range(len(language.WORDINGS))
        if (wording == language.held_out_wording(subject, relation)) == (split == "test")
        and parity in (None, wording % 2)
    ]
    true_value = language.facts()[fact]
    values = [value for value in language.RELATIONS[relation] if (value == true_value) == is_true]
    return Claim(subject, relation, str(rng.choice(values)), int(rng.choice(wordings)), is_true)


def _truth(claim: Claim) -> str:
    return "true" if claim.is_true else "false"
