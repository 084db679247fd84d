"""The absolute position of each slot of a forward pass, tracked from inside the pass.

The inputs of a pass (`models.watching`) are known before any of its hooks runs: under the model's own
`generate`, with `start_at_layer`, with a cache and without.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..models.passes import ForwardPass, watching
from .selectors import Positions, PromptTokens


class PositionTracker:
    """Follows a model's forward passes, and resolves `Positions` for each.

    Without `prompts` or `prompt_lengths`, a pass with nothing cached begins a new prompt. Where that would be
    a guess, positions that depend on the prompt's end raise ValueError.

    Args:
        model: its passes are followed inside a `with` block.
        prompts: token ids of each row's prompt.
        prompt_lengths: how many of each row's unpadded tokens are the prompt.
        numbers: each row's number among the caller's prompts, for messages.

    Attributes:
        passes: how many passes have begun.
        prompts: each row's prompt, as far as it is known.
        index: the absolute, unpadded position of each slot of the current pass, −1 for padding.
    """

    index: Int[Tensor, "batch pos"]

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]] | None = None,
        prompt_lengths: Sequence[int] | None = None,
        numbers: Sequence[int | None] | None = None,
    ) -> None:
        self.model = model
        self.passes = 0
        self.prompts: list[PromptTokens] = []
        self._known_prompts = _known_prompts(model.tokenizer, prompts, prompt_lengths, numbers)
        self._longest = 0  # tokens of the longest row so far, with known prompts
        self._ambiguity = ""  # why the prompts' ends would be a guess
        self._min_lengths: list[int] = []  # of each row's prompt, if its end would be a guess
        self._previous: list[list[int]] | int | None = None
        self._masks: dict[Positions, Tensor] = {}

    def __enter__(self) -> "PositionTracker":
        self._watch = watching(self.model, self._begin_pass)
        self._watch.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._watch.__exit__(*raised)

    def require_whole_prompts(self) -> None:
        """Raise `ValueError` if a known prompt is longer than all rows of the passes."""
        longest = max((prompt.length for prompt in self._known_prompts), default=0)
        if self.passes and longest > self._longest:
            raise ValueError(
                f"a prompt of {longest} tokens, but no row had more than {self._longest}: expected its last "
                "token in a pass. prompt_lengths counts a row's own tokens, without padding."
            )

    def mask(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Which slots of the current pass are selected."""
        if positions not in self._masks:
            self._masks[positions] = self._resolve(positions)
        return self._masks[positions]

    def slots_of(self, x: Float[Tensor, "..."]) -> Float[Tensor, "batch pos d_hook"]:
        """`slots_of` in the current pass."""
        return slots_of(x, *self.index.shape)

    def _resolve(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        if not self._ambiguity:
            return self._selected(positions, self.prompts)
        # A prompt may end anywhere from the first pass's last token to this one's. If the selection is the
        # same for both, it is not a guess.
        if not positions.needs_end:
            lengths = self._min_lengths, (self.index.amax(-1) + 1).tolist()
            early, late = (self._selected(positions, [*map(PromptTokens, each)]) for each in lengths)
            if torch.equal(early, late):
                return late
        raise ValueError(
            f"{positions} depends on where the prompt ends, which would be a guess here: {self._ambiguity}. "
            "Give prompt_lengths=[…] to steer(…), one number of unpadded tokens per row."
        )

    def _selected(self, positions: Positions, prompts: Sequence[PromptTokens]) -> Bool[Tensor, "batch pos"]:
        index = self.index
        if len(prompts) != index.shape[0]:
            raise ValueError(
                f"{len(prompts)} prompts for a pass of {index.shape[0]} rows: expected one per row."
            )
        longest = max(prompt.length for prompt in prompts)
        # One column more than the longest prompt: every later position is a generated token.
        table = torch.full((len(prompts), longest + 1), positions.generated)
        for row, prompt in zip(table, prompts, strict=True):
            row[: prompt.length] = positions.select(prompt)
        selected = table.to(index.device).gather(1, index.clamp(0, longest).long())
        return selected & (index >= 0)

    def _begin_pass(self, new: ForwardPass) -> None:
        mask, past = new.mask, new.past
        if mask is None:
            mask = torch.ones(new.rows, past + new.slots, dtype=torch.long, device=new.device)
        index = mask.long().cumsum(-1) - 1
        self.index = torch.where(mask.bool(), index, -1)[:, -new.slots :]
        self.passes += 1
        self._masks = {}
        if self._known_prompts:
            self.prompts = self._known_prompts
            self._longest = max(self._longest, self.index.amax().item() + 1)
        elif past == 0:
            self._begin_prompts(new)
        elif not self.prompts:
            self._ambiguity = "the first pass under steer(…) continues from a cache"
            self._min_lengths = self.index[:, 0].clamp(min=0).tolist()
            self.prompts = [PromptTokens(int(row.max()) + 1) for row in self.index]

    def _begin_prompts(self, new: ForwardPass) -> None:
        """Take the rows of a pass with nothing cached as new prompts, unless that would be a guess."""
        real, ids = self.index >= 0, None
        lengths = real.sum(-1).tolist()
        if new.tokens is None:
            grew = isinstance(self._previous, int) and self._previous < max(lengths)
            self._previous = max(lengths)
        else:
            ids = [row[mask].tolist() for row, mask in zip(new.tokens, real, strict=True)]
            grew = isinstance(self._previous, list) and _continues(ids, self._previous)
            self._previous = ids
        self._ambiguity = ""
        if grew:
            self._ambiguity = (
                "this pass begins with all of the previous one's input, as generation without a cache does"
            )
        elif len(lengths) > 1 and new.mask is None:
            self._ambiguity = "the batch has several rows and no attention mask"
        if not grew:
            self._min_lengths = lengths
        tokens = [None] * len(lengths) if ids is None else [tuple(row) for row in ids]
        self.prompts = [
            PromptTokens(length, row, self.model.tokenizer)
            for length, row in zip(lengths, tokens, strict=True)
        ]


def slots_of(x: Float[Tensor, "..."], rows: int, tokens: int) -> Float[Tensor, "batch pos d_hook"]:
    """A hook's activations in a pass of this shape, with the axis of heads of "z" flattened.

    Raises:
        ValueError: the hook has no row for each slot of the pass.
    """
    if x.shape[:2] != (rows, tokens) or x.ndim < 3:
        raise ValueError(
            f"the hook holds {tuple(x.shape)} in a pass of {rows} rows and {tokens} tokens: expected a row "
            "for each token, which this architecture lacks there. Use another hook."
        )
    return x.flatten(2)


def _known_prompts(
    tokenizer: Any,
    prompts: Sequence[Sequence[int]] | None,
    lengths: Sequence[int] | None,
    numbers: Sequence[int | None] | None,
) -> list[PromptTokens]:
    if prompts is not None:
        numbers = [None] * len(prompts) if numbers is None else numbers
        return [
            PromptTokens(len(ids), tuple(ids), tokenizer, number)
            for ids, number in zip(prompts, numbers, strict=True)
        ]
    if (shortest := min(lengths or (0,))) < 0:
        raise ValueError(
            f"prompt_lengths has {shortest}: expected the number of tokens of each row's prompt."
        )
    return [PromptTokens(int(length)) for length in lengths or ()]


def _continues(ids: list[list[int]], previous: list[list[int]]) -> bool:
    return len(ids) == len(previous) and all(
        len(now) > len(before) and now[: len(before)] == before
        for now, before in zip(ids, previous, strict=True)
    )
