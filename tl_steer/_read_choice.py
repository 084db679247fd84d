"""Which of two choices a free-text answer gives: as the study read it, and as a careful reader would."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ._util.validation import checked

# What a prompt lists under the letters; a chat format may go on behind the second.
LISTED = re.compile(
    r"^ *\(A\) (.+)\n *\(B\) (.+?)(?: *(?:\[/INST\]|<\||</s>|<end_of_turn>).*)?$", re.MULTILINE
)

# What is no verdict wherever it stands; {first} and {second} are the choices as words.
NO_VERDICT = (
    r"[^.!?;\n]*\?",  # a question, often the asked one again
    r"(?:\(A\):? *)?{first}\W*(?:or|and|/|(?=\(B\)))\W*(?:\(B\):? *)?{second}",  # both offered
    r"{second}\W*(?:or|and|/)\W*{first}|\(A\) *(?:or|and|/) *\(B\)",
    r"\b(?:if|whether)\b[^.,!?;\n]*",  # a condition
    # somebody else's opinion
    r"\b(?:people|some|many|most|others|they|critics|experts)(?: \w+)?? "
    r"(?:believe|think|say|claim|argue|consider)\b[^.,!?;\n]*",
    # a refusal: "I cannot say that it is true"
    r"\b(?:(?:can't|cannot|can not|couldn't|unable to|not able to|not going to)(?: \w+)?? "
    r"(?:confirm|determine|say|tell|verify|judge|answer|decide|assess)"
    r"|not (?:sure|certain)|unsure|uncertain|unclear|(?:don't|do not|doesn't) know)\b[^.,!?;\n]*",
    r"\b(?:may|might|could)(?: or may not)?(?: not)? be\b[^.,!?;\n]*",  # no more than possible
    r"\b(?:partly|partially|half|sometimes)[ -](?:{first}|{second})",
    r"\bneither(?: \w+)?? (?:{first}|{second}) nor (?:{first}|{second})",
    r"\b(?:while|although|though)\b[^.,!?;\n]*",  # what is granted
    r"\(A\):? *{second}|\(B\):? *{first}",  # a letter with the other one's words
    r"\b(?:opposite|contrary)\b[^.!?;\n]*",
    # the claim told again: "the claim that penguins cannot fly is …"
    r"\b(?:claim|statement|assertion|idea|notion) that\b[^.!?\n]*?"
    r"(?= (?:is|was|seems|appears)\b(?: \w+){0,3}?"
    r" \(?(?:{first}|{second}|[AB]\)|(?:in)?correct|(?:in)?accurate|untrue|wrong))",
)
# Words in quotation marks are the claim told again, behind these words or where they name neither choice.
QUOTED = re.compile(r"((?:claim|statement|sentence|assertion)\b\W*)?[\"“”]([^\"“”\n]*)[\"“”]", re.I)
NEGATION = re.compile(
    r"(?:\b(?:not|never|cannot|hardly|doubt|deny|denied|far from|no(?= doubt))\b|n't\b)(?! (?:only|just)\b)",
    re.I,
)
CLAUSE_END = re.compile(
    r"[.,;:!\n]|\b(?:but|and|so|because|since|rather)\b", re.I
)  # a "not" reaches no further
ANNOUNCED = re.compile(
    r"(?:\b(?:answer|verdict|conclusion|choice)(?: ?:| is:?| would be:?| should be:?)"
    r"(?: not)?(?: the)?(?: option)?"
    r"|\bI(?:'d|'ll| would| will)? (?:choose|pick|select|go with)(?: the)?(?: option)?"
    r"|\bbut(?: \w+){0,2}(?: is|'s)(?: actually| in fact)?(?: not)?"
    r"|\b(?:however|in fact|in reality|actually|therefore|thus|hence|overall)\b[^.!?\n]*)\W*$",
    re.I,
)
# A bare letter counts at the start of a line or after one of these words; elsewhere it may be an article.
LETTER_AFTER = ("is", "be", "with", "say", "not", "option", "answer", "choose", "pick", "select", "answer:")
LETTER_BEFORE = r"(?=\s*(?:$|\n|[.,;:!)–—-])|\s+(?:is|was|because|since)\b)"
EDGES = ' \t\n.,;:!*_"“”'  # around a choice that is given word for word
NOT_A_NOUN = (
    r"(?! (?:answer|option|choice|response|statement|one)\b)"  # "the correct answer is …" says nothing yet
)
NOT_OF_A_NOUN = r"(?<!\bthe )(?<!\ba )(?<!\ban )"  # nor does "the correct number is …"
SYNONYMS = {
    ("true", "false"): (
        rf"{NOT_OF_A_NOUN}(?<!\w)(?:correct|accurate)(?!\w){NOT_A_NOUN}",
        rf"{NOT_OF_A_NOUN}(?<!\w)(?:untrue|incorrect|inaccurate|wrong)(?!\w){NOT_A_NOUN}",
    )
}
JUDGED = (  # "(A) is not correct" names (B), "(B) is correct" only (B)
    r"(?: (?:is|was|would be|seems) "
    r"(?:correct|right|true|(?P<rejected>incorrect|wrong|false|not (?:correct|right|true|the|my))))?"
)


@dataclass(frozen=True)
class _Reader:
    """Compiled patterns for two choices; the groups "first" and "second" tell which of them is named."""

    study: re.Pattern[str]
    mention: re.Pattern[str]
    no_verdict: tuple[re.Pattern[str], ...]


@checked
def read_choice(
    text: str, choices: Sequence[str] = ("True", "False"), *, rule: str = "careful"
) -> int | None:
    """Which choice an answer in words gives: 0, 1, or None where it cannot be told.

    Args:
        text: what the model wrote.
        choices: the two, as words or as letters; case and outer spaces do not matter. (A) and (B) stand for
            words in this order; choices that are letters, such as ("(B)", "(A)"), stand for themselves.
        rule: "study": the first choice named as a whole word decides, "true", "(A)" or "A" against "false",
            "(B)", "B" or "not true" (words in any case, letters in upper case). It can be checked by eye, and
            it is crude: "It isn't true" reads as true, and "A dog" as the letter.
            "careful": what a person would read. Negations count ("not true", "I would not say it's true"), an
            article is no letter, and for true and false other words do (correct, untrue, incorrect, wrong).
            Refusals, hedges, other people's opinions, and both choices without a verdict give None.

    Raises:
        ValueError: an unknown rule, or choices that are not two different ones.

    A text that is one of the choices, word for word, gives it. Of others, the careful rule erases what is no
    verdict (`NO_VERDICT`). Then decides the last choice that is announced ("the answer is …"), else what the
    text opens with, else what all mentions agree on.
    """
    reader = _reader(tuple(choice.strip() for choice in choices))
    if rule == "study":
        found = reader.study.search(text)
        return None if found is None else _meant(found)
    if rule != "careful":
        raise ValueError(f"rule={rule!r} is unknown: use 'careful' or 'study'.")
    said, *own = (each.strip(EDGES).casefold() for each in (text, *choices))
    if len(said) > 1 and own.count(said) == 1:
        return own.index(said)
    return _verdict(_without_noise(text, reader), reader)


def read_answer(text: str, choices: Sequence[str], prompt: str, *, rule: str = "careful") -> int | None:
    """Which choice a text gives to a prompt: like `read_choice`, but letters also by what they stand for.

    Args:
        text: what the model wrote.
        choices: the two; of "A" and "B", in either order, each may also be named by the words that the prompt
            lists last under (A) and (B), or by True and False where it lists none.
        prompt: what was asked.
        rule: of `read_choice`.

    Raises:
        ValueError: as `read_choice`; also where the prompt lists the same words under both letters.
    """
    words = tuple(choice.strip() for choice in choices)
    if set(words) != {"A", "B"}:
        return read_choice(text, words, rule=rule)
    listed = LISTED.findall(prompt)
    found = read_choice(text, listed[-1] if listed else ("True", "False"), rule=rule)
    return None if found is None else words.index("AB"[found])


def _meant(found: re.Match[str]) -> int:
    return 0 if found["first"] is not None else 1


def _without_noise(text: str, reader: _Reader) -> str:
    """The text in plain characters, with everything erased that is no verdict."""
    text = QUOTED.sub(lambda found: _unquoted(found, reader), text)
    text = re.sub(r"[*_\"“”`]", "", text).replace("’", "'")
    for pattern in reader.no_verdict:
        text = pattern.sub(" … ", text)
    return text.strip(" \t\n…,;:.-")


def _unquoted(found: re.Match[str], reader: _Reader) -> str:
    """What stands for a quotation: itself, if it may be the verdict."""
    behind, quoted = found.groups()
    if behind or not reader.mention.search(quoted):
        return f"{behind or ''} … "
    return found[0]


def _verdict(text: str, reader: _Reader) -> int | None:
    mentions = list(reader.mention.finditer(text))
    starts = [0, *(found.end() for found in mentions)]
    sides = [
        _meant(found) ^ _is_negated(text[start : found.start()], found)
        for start, found in zip(starts, mentions, strict=False)
    ]
    announced = [
        side for found, side in zip(mentions, sides, strict=True) if ANNOUNCED.search(text[: found.start()])
    ]
    if announced:
        return announced[-1]
    if mentions and mentions[0].start() == 0:
        sentence = re.split(r"[.!?](?!\S)|\n", text[mentions[0].end() :])[0]
        end = mentions[0].end() + len(sentence)
        sides = [side for found, side in zip(mentions, sides, strict=True) if found.start() < end]
    return sides[0] if len(set(sides)) == 1 else None


def _is_negated(before: str, found: re.Match[str]) -> bool:
    """Whether an odd number of negations stands before it in its clause, or a rejection behind it."""
    negations = NEGATION.findall(CLAUSE_END.split(before)[-1])
    return (len(negations) + bool(found["rejected"])) % 2 == 1


@lru_cache(maxsize=64)
def _reader(choices: tuple[str, ...]) -> _Reader:
    if len(choices) != 2 or not all(choices) or choices[0].casefold() == choices[1].casefold():
        raise ValueError(f"choices={choices}: give two different ones that are not empty.")
    own_letters = [re.fullmatch(r"\(?([A-Za-z])\)?", choice) for choice in choices]
    if all(own_letters):
        letters = [found[1].upper() for found in own_letters if found]
        study = [rf"\b{letter}\b" for letter in letters]
        offered = [rf"\(?\b{letter}\b\)?" for letter in letters]
        mentions = [_letter(letter) for letter in letters]
    else:
        words = [rf"(?i:(?<!\w){re.escape(choice)}(?!\w))" for choice in choices]
        study = [rf"{words[0]}|\bA\b", rf"(?i:\bnot\s+){words[0]}|{words[1]}|\bB\b"]
        # Of "No" and "No, they do not", the longer one is not read as the one it begins with.
        shorter = [choices[1 - place].casefold().startswith(choices[place].casefold()) for place in (0, 1)]
        offered = [
            f"(?!{words[1 - place]}){words[place]}" if shorter[place] else words[place] for place in (0, 1)
        ]
        synonyms = SYNONYMS.get((choices[0].casefold(), choices[1].casefold()), ("(?!)", "(?!)"))
        mentions = [
            rf"{word}|(?i:{synonym})|{_letter(letter)}"
            for word, synonym, letter in zip(offered, synonyms, "AB", strict=True)
        ]
    erased = (
        pattern.replace("{first}", offered[0]).replace("{second}", offered[1]) for pattern in NO_VERDICT
    )
    return _Reader(
        study=re.compile("(?P<first>{})|(?P<second>{})".format(*study)),
        mention=re.compile("(?:(?P<first>{})|(?P<second>{}))".format(*mentions) + f"(?i:{JUDGED})"),
        no_verdict=tuple(re.compile(pattern, re.I) for pattern in erased),
    )


def _letter(letter: str) -> str:
    """Where a letter is meant as one: (A) anywhere, bare only in `LETTER_AFTER` and before a pause."""
    after = "|".join([r"(?<![^\n])", *(rf"(?<=\b{word} )" for word in LETTER_AFTER)])
    brackets = rf"\((?i:{letter})(?:\)[.:]?|\Z)"  # the last one may be cut off: "the answer is (A"
    bare = rf"(?i:{after}){letter}{LETTER_BEFORE}[.:)]?|(?<![^\n]){letter.lower()}\)"
    return f"{brackets}|{bare}"
