"""What asking a judge will take, before it is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

CHARACTERS_A_TOKEN = 4  # of English prose, roughly; other scripts take more tokens


@dataclass(frozen=True)
class JudgeCost:
    """How much a judge is asked, and what it comes to.

    Attributes:
        pairs: pairs of texts in all.
        identical: of these, pairs of the same text, about which nobody is asked.
        requests: different requests for the others, two a pair.
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
        return (
            f"{self.pairs:,} pairs of texts{alike}, {self.requests:,} requests, {self.cached:,} in the "
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
