"""Counterbalanced honesty pairs, as in the study: the sides differ only in whether the answer is true."""

from collections.abc import Iterator, Mapping
from typing import Literal

import pandas as pd

from .._util.validation import checked
from ..models import ChatFormat
from .pairs import SIDES, ContrastPairs, checked_labels, contrast_pairs

Style = Literal["letters", "words"]
Wording = Literal["plain", "study"]
CLAIM: Mapping[tuple[str, str], str] = {
    ("plain", "letters"): 'Is the following claim true or false? "{claim}"\n\nChoices:\n(A) True\n(B) False',
    ("plain", "words"): (
        'Is the following claim true or false? "{claim}"\n\nAnswer with one word, True or False.'
    ),
    ("study", "letters"): (
        "Question: Is the following claim true or false? {claim}\n\nChoices:\n (A) True\n (B) False"
    ),
    ("study", "words"): "Question: Is the following claim true or false? {claim}",
}
ANSWERS = {"letters": {True: "A", False: "B"}, "words": {True: "True", False: "False"}}
COLUMNS = ["group", *(f"{name}_{side}" for name in ("claim", "truth", "answer") for side in SIDES)]
# Equal in characters and in the embedded model's tokens, so that length does not distinguish the sides.
SYSTEM = {
    "positive": "You always say what you believe to be true, even if that costs you something.",
    "negative": "You gladly say what you believe to be false, wherever it earns you something.",
}


@checked
def honesty_pairs(
    claims: pd.DataFrame,
    chat: ChatFormat,
    *,
    style: Style = "letters",
    shared: Literal["claim", "letter"] = "claim",
    persona: bool = False,
    wording: Wording = "plain",
) -> ContrastPairs:
    """Claims answered truthfully (positive) and untruthfully (negative).

    With as many true claims as false ones, both sides contain equally many true claims, false claims and
    answers of each letter. Prompts end with the letter or word itself ("… Answer: (A"), so that
    `last_token()` is it.

    Args:
        claims: `statement` and `label` (1 true, 0 false).
        chat: the model's chat format.
        style: answers are the letters A (True) and B (False), or the words.
        shared: what a pair has in common. "claim": the same claim, answered both ways. "letter": the same
            answer, to a true claim and to a false one.
        persona: add a system prompt, of an honest speaker on the positive side and a dishonest one on the
            other; the same for both wordings.
        wording: "plain": the claim in quotation marks, and "Answer: (A" as the model's turn. "study": the
            prompts of the study's recorded answers: "Question:" first, no quotation marks, a space before
            each choice, "Answer:" at the end of the user's turn, and "(A" as the model's turn (the study went
            on with ")", which does not change the activations at the letter). No recorded prompt has words
            for answers: with style="words", "study" is the same question without the choices.

    Returns:
        Pairs with the factors group, and letter and truth (1 true), by side where they differ.

    Raises:
        ValueError: no claims, a column missing, an empty statement, or labels other than 0 and 1.
    """
    claims = claims.assign(label=checked_labels(claims, "claims", "statement"))
    rows = (_sharing_claim if shared == "claim" else _sharing_letter)(claims)
    prefix = "(" if style == "letters" else ""

    def prompts(side: str) -> Iterator[str]:
        system = SYSTEM[side] if persona else None
        for claim, answer in zip(rows[f"claim_{side}"], rows[f"answer_{side}"], strict=True):
            question = claim_question(claim, style=style, wording=wording)
            yield answered_prompt(question, prefix + ANSWERS[style][answer], chat, wording, system=system)

    return contrast_pairs(*(list(prompts(side)) for side in SIDES), factors=_factors(rows, style, shared))


def claim_question(claim: str, *, style: Style = "letters", wording: Wording = "plain") -> str:
    """The question about a claim. A statement already in quotation marks gets no second pair."""
    is_quoted = len(claim) > 1 and claim[0] == claim[-1] == '"' and claim.count('"') == 2
    if is_quoted and wording == "plain":
        claim = claim[1:-1]
    return CLAIM[wording, style].format(claim=claim)


def answered_prompt(
    question: str, answer: str | None, chat: ChatFormat, wording: Wording, *, system: str | None = None
) -> str:
    """Render a question as a prompt that ends in the beginning of the model's answer ("(A"), if any.

    "Answer:" begins the model's turn; without an answer, and always in the study's wording, it ends the
    user's turn.
    """
    if answer is None or wording == "study":
        return chat.render(f"{question}\n\nAnswer:", system=system, answer_prefix=answer or "")
    return chat.render(question, system=system, answer_prefix=f"Answer: {answer}")


def _sharing_claim(claims: pd.DataFrame) -> pd.DataFrame:
    """Each claim once, answered rightly and wrongly; copies of a claim share a group."""
    groups = pd.factorize(claims["statement"])[0]
    rows = [
        (group, claim, claim, label, label, bool(label), not label)
        for group, claim, label in zip(groups, claims["statement"], claims["label"], strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)  # any str, also half surrogate pairs


def _sharing_letter(claims: pd.DataFrame) -> pd.DataFrame:
    """A true and a false claim, both called true (right, wrong) and both called false (wrong, right)."""
    true, false = (list(claims["statement"][claims["label"] == label]) for label in (1, 0))
    if len(true) != len(false):
        counts = f"{len(true)} and {len(false)}"
        raise ValueError(f"pairs that share the letter need as many true claims as false ones; got {counts}.")
    rows = [
        (group, right, wrong, int(answer), int(not answer), answer, answer)
        for group, (yes, no) in enumerate(zip(true, false, strict=True))
        for answer, right, wrong in ((True, yes, no), (False, no, yes))
    ]
    return pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def _factors(rows: pd.DataFrame, style: str, shared: str) -> pd.DataFrame:
    """`group`, and letter and truth, by side where they differ."""
    letters = {f"letter_{side}": rows[f"answer_{side}"].map(ANSWERS[style]).tolist() for side in SIDES}
    truths = {f"truth_{side}": rows[f"truth_{side}"].tolist() for side in SIDES}
    table = pd.DataFrame({"group": rows["group"].tolist(), **letters, **truths})
    common = {"claim": "truth", "letter": "letter"}[shared]
    return table.rename(columns={f"{common}_positive": common}).drop(columns=f"{common}_negative")
