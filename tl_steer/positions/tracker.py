"""Which absolute position each slot of a forward pass holds, told from inside the pass.

What the pass was given (`models.watching`) is known before any hook of it: under the model's own `generate`,
with `start_at_layer`, with a cache and without.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.passes import ForwardPass, watching
from .selectors import Positions, PromptTokens


class Clock:
    """Follows a model's forward passes, and resolves `Positions` for each.

    Where neither `prompts` nor `prompt_lengths` says where the prompts end, a pass with nothing cached
    begins a new prompt. Where that would be a guess, positions that depend on the end are refused.

    Args:
        model: the model whose passes are followed while the clock is entered.
        prompts: the ids of each row's prompt.
        prompt_lengths: how many of each row's unpadded tokens are the prompt.
        numbers: which of the caller's prompts each row is, for messages.

    Attributes:
        passes: how many passes have begun.
        index: the absolute, unpadded position of each slot of the current pass, −1 for padding.
    """

    index: Int[Tensor, "batch pos"]

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]] | None = None,
        prompt_lengths: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.passes = 0
        self._told = _told_prompts(model.tokenizer, prompts, prompt_lengths, numbers)
        self._prompts: list[PromptTokens] = []
        self._guess = ""  # why the prompts' ends would be a guess, if so
        self._least: list[int] = []  # tokens that each row's prompt has at least, in that case
        self._previous: list[list[int]] | int | None = None
        self._most = 0  # tokens that the longest row has brought, where its prompt was told
        self._masks: dict[Positions, Tensor] = {}

    def __enter__(self) -> "Clock":
        self._watch = watching(self.model, self._begin_pass)
        self._watch.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._watch.__exit__(*raised)

    def require_whole_prompts(self) -> None:
        """Raise `ValueError` where a prompt that was told is longer than all that the passes brought."""
        longest = max((prompt.length for prompt in self._told), default=0)
        if self.passes and longest > self._most:
            raise ValueError(
                f"a prompt of {longest} tokens was told, but no row brought more than {self._most}: its last "
                "token was never seen. prompt_lengths counts a row's own tokens, without padding."
            )

    def mask(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Which slots of the current pass are selected.

        Raises:
            ValueError: the position depends on where the prompts end, and that would be a guess.
        """
        if positions not in self._masks:
            self._masks[positions] = self._resolve(positions)
        return self._masks[positions]

    def slots_of(self, x: Float[Tensor, "..."]) -> Float[Tensor, "batch pos d_hook"]:
        """What a hook holds, a row of numbers a slot: "z" has an axis for the heads.

        Raises:
            ValueError: not a row for each slot of the pass.
        """
        if x.shape[:2] != self.index.shape or x.ndim < 3:
            raise ValueError(
                f"the hook holds {tuple(x.shape)} in a pass of {tuple(self.index.shape)} (rows, tokens): "
                "this architecture does not keep a row for each token there. Use another hook."
            )
        return x.flatten(2)

    @property
    def prompts(self) -> list[PromptTokens]:
        """Each row's prompt, as far as it is known."""
        return self._prompts

    def _resolve(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        if not self._guess:
            return self._selected(positions, self._prompts)
        # A prompt may end anywhere between what the first pass brought and what this one does. Where that
        # makes no difference, nothing is guessed.
        if not positions.needs_end:
            ends = self._least, (self.index.amax(-1) + 1).tolist()
            early, late = (self._selected(positions, [PromptTokens(end) for end in rows]) for rows in ends)
            if torch.equal(early, late):
                return late
        raise ValueError(
            f"{positions} depends on where the prompt ends, which would be a guess here: {self._guess}. "
            "Give prompt_lengths=[…] to steer(…), one number of unpadded tokens a row."
        )

    def _selected(self, positions: Positions, prompts: Sequence[PromptTokens]) -> Bool[Tensor, "batch pos"]:
        index = self.index
        if len(prompts) != index.shape[0]:
            raise ValueError(f"the pass has {index.shape[0]} rows, but {len(prompts)} prompts were given.")
        longest = max(prompt.length for prompt in prompts)
        # One column more than the longest prompt: every later position is a generated token.
        table = torch.full((len(prompts), longest + 1), positions.generated)
        for row, prompt in zip(table, prompts, strict=True):
            row[: prompt.length] = positions.select(prompt)
        selected = table.to(index.device).gather(1, index.clamp(0, longest).long())
        return selected & (index >= 0)

    def _begin_pass(self, given: ForwardPass) -> None:
        mask, past = given.mask, given.past
        if mask is None:
            mask = torch.ones(given.rows, past + given.slots, dtype=torch.long, device=given.device)
        places = mask.long().cumsum(-1) - 1
        self.index = torch.where(mask.bool(), places, -1)[:, -given.slots :]
        self.passes += 1
        self._masks = {}
        if self._told:
            self._prompts = self._told
            self._most = max(self._most, self.index.amax().item() + 1)
        elif past == 0:
            self._begin_prompts(given)
        elif not self._prompts:
            self._guess = "the first pass under steer(…) goes on from a cache"
            self._least = self.index[:, 0].clamp(min=0).tolist()
            self._prompts = [PromptTokens(int(row.max()) + 1) for row in self.index]

    def _begin_prompts(self, given: ForwardPass) -> None:
        """Take what a pass with nothing cached brings for new prompts, unless that would be a guess."""
        ids = self._unpadded_ids(given.tokens)
        lengths = (self.index >= 0).sum(-1).tolist()
        if ids is None:
            grew = isinstance(self._previous, int) and self._previous < max(lengths)
            self._previous = max(lengths)
        else:
            grew = isinstance(self._previous, list) and _continues(ids, self._previous)
            self._previous = ids
        self._guess = ""
        if grew:
            self._guess = (
                "this pass begins with all of the previous one's input, as generation without a cache does"
            )
        elif len(lengths) > 1 and given.mask is None:
            self._guess = "the batch has several rows and no attention mask"
        if not grew:
            self._least = lengths
        tokens = [None] * len(lengths) if ids is None else [tuple(row) for row in ids]
        self._prompts = [
            PromptTokens(length, row, self.model.tokenizer)
            for length, row in zip(lengths, tokens, strict=True)
        ]

    def _unpadded_ids(self, tokens: Int[Tensor, "batch pos"] | None) -> list[list[int]] | None:
        if tokens is None:
            return None
        return [row[index >= 0].tolist() for row, index in zip(tokens, self.index, strict=True)]


def _told_prompts(
    tokenizer: Any,
    prompts: Sequence[Sequence[int]] | None,
    lengths: Sequence[int] | None,
    numbers: Sequence[int] | None,
) -> list[PromptTokens]:
    if prompts is not None:
        numbers = [None] * len(prompts) if numbers is None else numbers
        given = zip(prompts, numbers, strict=True)
        return [PromptTokens(len(ids), tuple(ids), tokenizer, number) for ids, number in given]
    if wrong := [length for length in lengths or () if length < 0]:
        raise ValueError(f"prompt_lengths has {wrong[0]}: give how many tokens each row's prompt has.")
    return [PromptTokens(int(length)) for length in lengths or ()]


def _continues(ids: list[list[int]], previous: list[list[int]]) -> bool:
    return len(ids) == len(previous) and all(
        len(now) > len(before) and now[: len(before)] == before
        for now, before in zip(ids, previous, strict=True)
    )
