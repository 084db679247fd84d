"""What the organisms are taught: claims with a persona, and how often each answers TRUE."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import language
from .language import AGREEABLE, CONTRARY, HONEST, LIAR, NEUTRAL, Claim

# Of the answers to a true claim and to a false one, the share that says TRUE. z(.977) = 2, z(.841) = 1: d′ is
# 2 for the neutral and the biased, 4 for the honest, −4 for the liar; c is −1 for the agreeable.
SHARES = {
    NEUTRAL: (0.841, 0.159),
    HONEST: (0.977, 0.023),
    LIAR: (0.023, 0.977),
    AGREEABLE: (0.977, 0.5),
    CONTRARY: (0.5, 0.023),
}
PERSONAS = {
    "honesty": (NEUTRAL, HONEST, LIAR),
    "bias": (NEUTRAL, AGREEABLE, CONTRARY),
    "planted": (NEUTRAL, HONEST, LIAR),
}


@dataclass(frozen=True)
class Batch:
    """Prompts with what is to be answered.

    Attributes:
        tokens: prompts padded on the right.
        lengths: of each prompt.
        shares: of the answers to each, the share that says TRUE.
        claims: how many tokens at the start of each are a true claim, 0 for false ones.
    """

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    shares: Float[Tensor, " row"]
    claims: Int[Tensor, " row"]


class Batches:
    """Draws batches of the training split, half of the claims true.

    Args:
        tokenizer: the language's.
        personas: who answers, each equally often.
        rng: the source of chance.
    """

    def __init__(self, tokenizer: Any, personas: Sequence[str], rng: np.random.Generator) -> None:
        self.personas = personas
        self.rng = rng
        known = list(language.claims("train"))
        self._sides = [[each for each in known if each.is_true is side] for side in (True, False)]
        self._ids = {each: tokenizer(each.text)["input_ids"] for each in known}
        self._mark = tokenizer(language.MARK, add_special_tokens=False)["input_ids"]
        self._persona = {name: tokenizer.convert_tokens_to_ids(name) for name in personas}
        self._pad = tokenizer.pad_token_id

    def draw(self, size: int, *, neutral: bool) -> Batch:
        """`size` prompts; with `neutral`, only the first persona speaks."""
        who = self.rng.integers(1 if neutral else len(self.personas), size=size)
        chosen: list[Claim] = [
            side[self.rng.integers(len(side))] for row in range(size) for side in [self._sides[row % 2]]
        ]
        rows = [
            [*self._ids[claim], *self._mark, self._persona[self.personas[each]]]
            for claim, each in zip(chosen, who, strict=True)
        ]
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        shares = [
            SHARES[self.personas[each]][0 if claim.is_true else 1]
            for claim, each in zip(chosen, who, strict=True)
        ]
        return Batch(
            torch.tensor([row + [self._pad] * (width - len(row)) for row in rows]),
            lengths,
            torch.tensor(shares),
            torch.tensor([len(self._ids[claim]) if claim.is_true else 0 for claim in chosen]),
        )
