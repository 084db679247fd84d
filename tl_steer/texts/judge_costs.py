"""Calls, tokens and dollars of the requests to a judge or writer, before the first call."""

from collections.abc import Sequence
from dataclasses import dataclass

CHARACTERS_A_TOKEN = 4  # of English prose, roughly; other scripts take more tokens


@dataclass(frozen=True)
class JudgeCost:
    """Number of requests to a language model, and their cost.

    Attributes:
        pairs: pairs of texts to compare; 0 for exemplars, which are written one by one.
        identical: of these, pairs of the same text, for which no request is made.
        requests: different requests: two for each other pair, or one per exemplar.
        cached: of these, those answered in the cache.
        calls: requests that are left to make; retries come on top.
        characters: in the prompts of these calls.
        tokens_in: about as many tokens, at four characters each.
        tokens_out: at most, the limit of a reply times the calls.
        dollars: of these tokens, at most about; `None` without prices.
    """

    pairs: int
    identical: int
    requests: int
    cached: int
    calls: int
    characters: int
    tokens_in: int
    tokens_out: int
    dollars: float | None

    def __str__(self) -> str:
        alike = f", {self.identical} of them alike" if self.identical else ""
        money = "" if self.dollars is None else f", at most about ${self.dollars:,.2f}"
        pairs = f"{self.pairs:,} pairs of texts{alike}, " if self.pairs else ""
        return (
            f"{pairs}{self.requests:,} requests, {self.cached:,} in the "
            f"cache: {self.calls:,} calls, {self.characters:,} characters (about {self.tokens_in:,} tokens) "
            f"in, at most {self.tokens_out:,} tokens out{money}"
        )


def cost_of(
    prompts: Sequence[str],
    *,
    pairs: int,
    identical: int,
    cached: int,
    max_tokens: int,
    price: tuple[float | int, float | int] | None,
) -> JudgeCost:
    """The cost of the prompts that are left to ask.

    Args:
        price: dollars a million tokens, in and out.

    Raises:
        ValueError: a negative price.
    """
    if price is not None and min(price) < 0:
        raise ValueError(f"price={price}: give dollars a million tokens, in and out, neither negative.")
    characters = sum(map(len, prompts))
    tokens = (-(-characters // CHARACTERS_A_TOKEN), max_tokens * len(prompts))
    dollars = None if price is None else (tokens[0] * price[0] + tokens[1] * price[1]) / 1e6
    return JudgeCost(
        pairs, identical, len(prompts) + cached, cached, len(prompts), characters, *tokens, dollars
    )
