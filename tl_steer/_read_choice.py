"""Which of two choices a text gives as its answer: by the study's rule, or as a careful reader would."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ._util.validation import checked

# The choices that a prompt lists as (A) and (B); a chat format may continue after the second.
LISTED = re.compile(
    r"^ *\(A\) (.+)\n *\(B\) (.+?)(?: *(?:\[/INST\]|<\||</s>|<end_of_turn>).*)?$", re.MULTILINE
)

# Passages that give no verdict; {first} and {second} are the patterns of the choices.
NO_VERDICT = (
    r"[^.!?;\n]*\?",  # a question, often the prompt's repeated
    r"(?:\(A\):? *)?{first}\W*(?:or|and|/|(?=\(B\)))\W*(?:\(B\):? *)?{second}",  # both offered
    r"{second}\W*(?:or|and|/)\W*{first}|\(A\) *(?:or|and|/) *\(B\)",
    r"\b(?:if|whether)\b[^.,!?;\n]*",  # a condition
    # the opinion of others
    r"\b(?:people|some|many|most|others|they|critics|experts)(?: \w+)?? "
    r"(?:believe|think|say|claim|argue|consider)\b[^.,!?;\n]*",
    # a refusal: "I cannot say that it is true"
    r"\b(?:(?:can't|cannot|can not|couldn't|unable to|not able to|not going to)(?: \w+)?? "
    r"(?:confirm|determine|say|tell|verify|judge|answer|decide|assess)"
    r"|not (?:sure|certain)|unsure|uncertain|unclear|(?:don't|do not|doesn't) know)\b[^.,!?;\n]*",
    r"\b(?:may|might|could)(?: or may not)?(?: not)? be\b[^.,!?;\n]*",  # a mere possibility
    r"\b(?:partly|partially|half|sometimes)[ -](?:{first}|{second})",
    r"\bneither(?: \w+)?? (?:{first}|{second}) nor (?:{first}|{second})",
    r"\b(?:while|although|though)\b[^.,!?;\n]*",  # a concession
    r"\(A\):? *{second}|\(B\):? *{first}",  # a letter with the text of the other
    r"\b(?:opposite|contrary)\b[^.!?;\n]*",
    # the claim repeated: "the claim that penguins cannot fly is …"
    r"\b(?:claim|statement|assertion|idea|notion) that\b[^.!?\n]*?"
    r"(?= (?:is|was|seems|appears)\b(?: \w+){0,3}?"
    r" \(?(?:{first}|{second}|[AB]\)|(?:in)?correct|(?:in)?accurate|untrue|wrong))",
)
# Quotations repeat the claim if they follow one of these words or name neither choice.
QUOTED = re.compile(r"((?:claim|statement|sentence|assertion)\b\W*)?[\"“”]([^\"“”\n]*)[\"“”]", re.I)
NEGATION = re.compile(
    r"(?:\b(?:not|never|cannot|hardly|doubt|deny|denied|far from|no(?= doubt))\b|n't\b)(?! (?:only|just)\b)",
    re.I,
)
# The scope of a negation ends here.
CLAUSE_END = re.compile(r"[.,;:!\n]|\b(?:but|and|so|because|since|rather)\b", re.I)
ANNOUNCED = re.compile(
    r"(?:\b(?:answer|verdict|conclusion|choice)(?: ?:| is:?| would be:?| should be:?)"
    r"(?: not)?(?: the)?(?: option)?"
    r"|\bI(?:'d|'ll| would| will)? (?:choose|pick|select|go with)(?: the)?(?: option)?"
    r"|\bbut(?: \w+){0,2}(?: is|'s)(?: actually| in fact)?(?: not)?"
    r"|\b(?:however|in fact|in reality|actually|therefore|thus|hence|overall)\b[^.!?\n]*)\W*$",
    re.I,
)
# A letter without parentheses counts at the start of a line or after these; elsewhere it may be an article.
LETTER_AFTER = ("is", "be", "with", "say", "not", "option", "answer", "choose", "pick", "select", "answer:")
LETTER_BEFORE = r"(?=\s*(?:$|\n|[.,;:!)–—-])|\s+(?:is|was|because|since)\b)"
EDGES = ' \t\n.,;:!*_"“”'  # around a text that is one of the choices
NOT_A_NOUN = r"(?! (?:answer|option|choice|response|statement|one)\b)"  # "the correct answer is …"
NOT_OF_A_NOUN = r"(?<!\bthe )(?<!\ba )(?<!\ban )"  # "the correct number is …"
SYNONYMS = {
    ("true", "false"): (
        rf"{NOT_OF_A_NOUN}(?<!\w)(?:correct|accurate)(?!\w){NOT_A_NOUN}",
        rf"{NOT_OF_A_NOUN}(?<!\w)(?:untrue|incorrect|inaccurate|wrong)(?!\w){NOT_A_NOUN}",
    )
}
JUDGED = (  # "(A) is not correct" names (B), "(B) is correct" names (B)
    r"(?: (?:is|was|would be|seems) "
    r"(?:correct|right|true|(?P<rejected>incorrect|wrong|false|not (?:correct|right|true|the|my))))?"
)


@dataclass(frozen=True)
class _Patterns:
    """Compiled patterns for two choices, with the groups "first" and "second"."""

    study: re.Pattern[str]
    mention: re.Pattern[str]
    no_verdict: tuple[re.Pattern[str], ...]


@checked
def read_choice(
    text: str, choices: Sequence[str] = ("True", "False"), *, rule: str = "careful"
) -> int | None:
    """Which choice a text gives as its answer: 0, 1, or None if it is unclear.

    Args:
        text: what the model wrote.
        choices: two texts or two letters; case and outer spaces do not matter. (A) and (B) name texts in this
            order; choices that are letters, such as ("(B)", "(A)"), name themselves.
        rule: "study": the first choice named as a whole word decides, "true", "(A)" or "A" against "false",
            "(B)", "B" or "not true" (words in any case, letters in upper case). It can be checked by eye, and
            it is crude: "It isn't true" reads as true, and "A dog" as the letter.
            "careful": as a person would read. Negations count ("not true", "I would not say it's true"), an
            article is not a letter, and true and false have synonyms (correct, untrue, incorrect, wrong).
            Refusals, hedges, the opinions of others, and both choices without a verdict give None.

    Raises:
        ValueError: an unknown rule, or choices that are empty or equal.

    A text equal to one of the choices gives that choice. Otherwise the careful rule removes passages without
    a verdict (`NO_VERDICT`); then the last announced choice decides ("the answer is …"), else the choice at
    the text's start, else the choice on which all mentions agree.
    """
    patterns = _patterns(tuple(choice.strip() for choice in choices))
    if rule == "study":
        match = patterns.study.search(text)
        return match and _choice_of(match)
    if rule != "careful":
        raise ValueError(f"rule={rule!r} is unknown: use 'careful' or 'study'.")
    answer, *folded = (each.strip(EDGES).casefold() for each in (text, *choices))
    if len(answer) > 1 and folded.count(answer) == 1:
        return folded.index(answer)
    return _verdict(_without_noise(text, patterns), patterns)


def read_answer(text: str, choices: Sequence[str], prompt: str, *, rule: str = "careful") -> int | None:
    """Which choice a text gives, like `read_choice`, where letters also stand for the prompt's texts.

    Args:
        text: what the model wrote.
        choices: two; "A" and "B", in either order, may also be named by the texts that the prompt lists last
            under (A) and (B), or by True and False if it lists none.
        prompt: the question.
        rule: as for `read_choice`.

    Raises:
        ValueError: as `read_choice`; also if the prompt lists the same text under both letters.
    """
    choices = tuple(choice.strip() for choice in choices)
    if set(choices) != {"A", "B"}:
        return read_choice(text, choices, rule=rule)
    listed = LISTED.findall(prompt)
    letter = read_choice(text, listed[-1] if listed else ("True", "False"), rule=rule)
    return None if letter is None else choices.index("AB"[letter])


def _choice_of(match: re.Match[str]) -> int:
    return int(match["first"] is None)


def _without_noise(text: str, patterns: _Patterns) -> str:
    """The text without markup, and without passages that give no verdict."""

    def unquoted(match: re.Match[str]) -> str:
        prefix, quotation = match.groups()
        return match[0] if not prefix and patterns.mention.search(quotation) else f"{prefix or ''} … "

    text = re.sub(r"[*_\"“”`]", "", QUOTED.sub(unquoted, text)).replace("’", "'")
    for pattern in patterns.no_verdict:
        text = pattern.sub(" … ", text)
    return text.strip(" \t\n…,;:.-")


def _verdict(text: str, patterns: _Patterns) -> int | None:
    mentions = list(patterns.mention.finditer(text))
    starts = [0, *(match.end() for match in mentions)]
    sides = [
        _choice_of(match) ^ _is_negated(text[start : match.start()], match)
        for start, match in zip(starts, mentions, strict=False)
    ]
    announced = [
        side for match, side in zip(mentions, sides, strict=True) if ANNOUNCED.search(text[: match.start()])
    ]
    if announced:
        return announced[-1]
    if mentions and mentions[0].start() == 0:
        first_sentence = re.split(r"[.!?](?!\S)|\n", text[mentions[0].end() :])[0]
        end = mentions[0].end() + len(first_sentence)
        sides = [side for match, side in zip(mentions, sides, strict=True) if match.start() < end]
    return sides[0] if len(set(sides)) == 1 else None


def _is_negated(before: str, match: re.Match[str]) -> bool:
    """Whether an odd number of negations applies: before the mention in its clause, or after it."""
    negations = NEGATION.findall(CLAUSE_END.split(before)[-1])
    return (len(negations) + bool(match["rejected"])) % 2 == 1


@lru_cache(maxsize=64)
def _patterns(choices: tuple[str, ...]) -> _Patterns:
    if len(choices) != 2 or not all(choices) or choices[0].casefold() == choices[1].casefold():
        raise ValueError(f"choices={choices}: give two different ones that are not empty.")
    as_letters = [re.fullmatch(r"\(?([A-Za-z])\)?", choice) for choice in choices]
    if all(as_letters):
        letters = [match[1].upper() for match in as_letters if match]
        study = [rf"\b{letter}\b" for letter in letters]
        names = [rf"\(?\b{letter}\b\)?" for letter in letters]
        mentions = [_letter(letter) for letter in letters]
    else:
        names = whole = [rf"(?i:(?<!\w){re.escape(choice)}(?!\w))" for choice in choices]
        study = [rf"{whole[0]}|\bA\b", rf"(?i:\bnot\s+){whole[0]}|{whole[1]}|\bB\b"]
        folded = [choice.casefold() for choice in choices]
        for choice, other in ((0, 1), (1, 0)):
            if folded[other].startswith(folded[choice]):  # "No" is not read in "No, they do not"
                names = [*whole]
                names[choice] = f"(?!{whole[other]}){whole[choice]}"
        mentions = [
            rf"{name}|(?i:{synonym})|{_letter(letter)}"
            for name, synonym, letter in zip(
                names, SYNONYMS.get(tuple(folded), ("(?!)", "(?!)")), "AB", strict=True
            )
        ]
    filled = (pattern.replace("{first}", names[0]).replace("{second}", names[1]) for pattern in NO_VERDICT)
    return _Patterns(
        study=re.compile("(?P<first>{})|(?P<second>{})".format(*study)),
        mention=re.compile("(?:(?P<first>{})|(?P<second>{}))".format(*mentions) + f"(?i:{JUDGED})"),
        no_verdict=tuple(re.compile(pattern, re.I) for pattern in filled),
    )


def _letter(letter: str) -> str:
    """Pattern of a letter that names a choice: (A) anywhere, A after `LETTER_AFTER` and before a pause."""
    after = "|".join([r"(?<![^\n])", *(rf"(?<=\b{word} )" for word in LETTER_AFTER)])
    brackets = rf"\((?i:{letter})(?:\)[.:]?|\Z)"  # the last one may be cut off: "the answer is (A"
    bare = rf"(?i:{after}){letter}{LETTER_BEFORE}[.:)]?|(?<![^\n]){letter.lower()}\)"
    return f"{brackets}|{bare}"
