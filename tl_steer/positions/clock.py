"""Which absolute position each slot of a forward pass holds, told from inside the pass.

The keys that are cached and the attention mask are known to the first block that runs, before any hook of
that pass; the new tokens are known to the embedding. Both are read with forward pre-hooks, which fire under
`HookedTransformer.generate`, with `start_at_layer` and with a cache.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .language import Positions, PromptTokens


class Clock:
    """Follows a model's forward passes, and resolves `Positions` for each.

    Where neither `prompts` nor `prompt_lengths` says where the prompts end, a pass with nothing cached
    begins a new prompt. Where that would be a guess, positions that depend on the end are refused.

    Args:
        model: the model whose passes are followed while the clock is entered.
        prompts: the ids of each row's prompt.
        prompt_lengths: how many of each row's unpadded tokens are the prompt.

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
    ) -> None:
        self.model = model
        self.passes = 0
        self._told = _told_prompts(model.tokenizer, prompts, prompt_lengths)
        self._prompts: list[PromptTokens] = []
        self._guess = ""  # why the prompts' ends would be a guess, if so
        self._least: list[int] = []  # tokens that each row's prompt has at least, in that case
        self._tokens: Tensor | None = None
        self._previous: list[list[int]] | int | None = None
        self._most = 0  # tokens that the longest row has brought, where its prompt was told
        self._last_block = -1
        self._masks: dict[Positions, Tensor] = {}

    def __enter__(self) -> "Clock":
        with ExitStack() as stack:
            handles = [self.model.embed.register_forward_pre_hook(self._on_embed)]
            stack.callback(handles[0].remove)
            for number, block in enumerate(self.model.blocks):
                hook = self._on_block(number)
                handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
                stack.callback(handles[-1].remove)
            self._handles = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

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

    def _on_embed(self, _module: Any, inputs: tuple) -> None:
        self._tokens = inputs[0]
        self._last_block = -1

    def _on_block(self, number: int) -> Any:
        def begin(_module: Any, inputs: tuple, kwargs: dict) -> None:
            if number <= self._last_block or self._last_block == -1:
                self._begin_pass(inputs[0] if inputs else kwargs["resid_pre"], kwargs)
                self._tokens = None
            self._last_block = number

        return begin

    def _begin_pass(self, residual: Tensor, kwargs: dict) -> None:
        batch, new = residual.shape[:2]
        entry = kwargs.get("past_kv_cache_entry")
        past = 0 if entry is None else entry.past_keys.shape[1]
        attention = kwargs.get("attention_mask")
        has_mask = attention is not None
        if attention is None:
            attention = torch.ones(batch, past + new, dtype=torch.long, device=residual.device)
        places = attention.long().cumsum(-1) - 1
        self.index = torch.where(attention.bool(), places, -1)[:, -new:]
        self.passes += 1
        self._masks = {}
        if self._told:
            self._prompts = self._told
            self._most = max(self._most, self.index.amax().item() + 1)
        elif past == 0:
            self._begin_prompts(has_mask)
        elif not self._prompts:
            self._guess = "the first pass under steer(…) goes on from a cache"
            self._least = self.index[:, 0].clamp(min=0).tolist()
            self._prompts = [PromptTokens(int(row.max()) + 1) for row in self.index]

    def _begin_prompts(self, has_mask: bool) -> None:
        """Take what a pass with nothing cached brings for new prompts, unless that would be a guess."""
        ids = self._unpadded_ids()
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
        elif len(lengths) > 1 and not has_mask:
            self._guess = "the batch has several rows and no attention mask"
        if not grew:
            self._least = lengths
        tokens = [None] * len(lengths) if ids is None else [tuple(row) for row in ids]
        self._prompts = [
            PromptTokens(length, row, self.model.tokenizer)
            for length, row in zip(lengths, tokens, strict=True)
        ]

    def _unpadded_ids(self) -> list[list[int]] | None:
        if self._tokens is None or self._tokens.shape != self.index.shape:
            return None
        return [row[index >= 0].tolist() for row, index in zip(self._tokens, self.index, strict=True)]


def _told_prompts(
    tokenizer: Any, prompts: Sequence[Sequence[int]] | None, lengths: Sequence[int] | None
) -> list[PromptTokens]:
    if prompts is not None:
        return [PromptTokens(len(ids), tuple(ids), tokenizer) for ids in prompts]
    return [PromptTokens(int(length)) for length in lengths or ()]


def _continues(ids: list[list[int]], previous: list[list[int]]) -> bool:
    return len(ids) == len(previous) and all(
        len(now) > len(before) and now[: len(before)] == before
        for now, before in zip(ids, previous, strict=True)
    )
