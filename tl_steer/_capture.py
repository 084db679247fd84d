"""Activations at named positions, layers and hooks, while the model reads or generates."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ._generation import Decoding, completion_text, decode, require_room, write_cells
from ._util.validation import checked
from .activations import Activations, PairedActivations
from .engine import Memory, Reading, Row, Tick, Wave, bar, batches, in_waves, residual, shares
from .errors import HookDidNotFireError, NonFiniteError
from .interventions import Edit, Operation, checked_edits, edits_of, steer
from .models import (
    HookedModel,
    Layers,
    Prompt,
    as_prompts,
    exclusive,
    hook_point,
    identify,
    resolve_layers,
    tokenize,
    tokenize_all,
)
from .models.backend import input_device
from .models.tokenizing import warn_of_padding
from .positions import Clock, Positions, PromptTokens, last_token
from .prompts import ContrastPairs

logger = logging.getLogger(__name__)


@checked
def capture(
    model: HookedModel,
    prompts: Prompt | Sequence[Prompt],
    *operations: Operation,
    positions: Positions | Mapping[int, Positions] | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    max_new_tokens: int = 0,
    completions: Prompt | Sequence[Prompt] | None = None,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> Activations:
    """Run prompts, and read a hook at the selected positions of the layers asked for.

    Only the selected positions are kept, so memory does not grow with the prompts' length; blocks behind the
    last layer asked for are not run, and no logits are computed that nobody reads.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`.
        prompts: texts or token lists.
        operations: the model runs, and generates, under these; the hook is read after them.
        positions: which tokens; by default `last_token()`. Or different ones per layer, in one run:
            `{5: token(2) | token(3), 17: current_token()}`. Then `token_index` and `tokens` have an axis of
            layers.
        layers: 0-based block indices, negatives from the end; by default all, or those of `positions`.
        hook: short hook name.
        max_new_tokens: generate (greedily) so many tokens, and read the hook there too. The last new token is
            never fed back and has no activation.
        completions: read these instead, one behind each prompt, as though the model had just written them:
            texts (tokenized alone, no special tokens added) or token lists (as they are). Here, too, the last
            token of each is not fed back; an empty one leaves the prompt alone.
        allow_empty: accept prompts of which `positions`, or an operation's, select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar.
        reuse: compute what prompts share once; `False` runs the plain loop, the oracle: the same numbers.
        memory: bytes, or the share of what is free, that streams, keys and values may take; see `sweep`.

    Raises:
        EmptySelectionError: a prompt of which nothing is selected.
        NonFiniteError: an activation is NaN or infinite; names layer and prompt.
        HookDidNotFireError: a bridge's hook that its architecture's own blocks pass by.
        ValueError, IndexError: no prompts, an unknown hook, a layer out of range, `layers` other than those
            of `positions`; completions that are not one a prompt, or do not fit the context behind it.

    To compare two runs token by token, let the second read what the first has written:
    `capture(model, prompts, completions=steered.completion_tokens)`. The texts, `steered.completions`, lack
    the token that ended them, and may be tokenized in another way than they were written.
    """
    ids = tokenize_all(model, prompts)
    at = _positions_by_layer(positions, layers, model.cfg.n_layers)
    layers = tuple(at)
    positions = at if isinstance(positions, Mapping) else next(iter(at.values()))
    given = _given(model, ids, completions, max_new_tokens)
    asked = _Asked(ids, given, operations, max_new_tokens, allow_empty, force)
    for prompt, text in zip(ids, given, strict=True):
        require_room(model, [prompt], max_new_tokens or len(text))
    if not allow_empty:
        feeding = [max_new_tokens > 1 or len(text) > 1 for text in given]
        for each in dict.fromkeys(at.values()):
            _require_some(model, ids, each, feeding)
    tokens = [
        PromptTokens(len(prompt), tuple(prompt), model.tokenizer, number) for number, prompt in enumerate(ids)
    ]
    recorder = _Recorder(at, tokens)
    begun = time.monotonic()
    with bar("capturing", 1, shown=progress) as tick, exclusive(model), torch.no_grad():
        run = _record_together if shares(model, reuse) else _record_plainly
        new = run(model, asked, recorder, hook, memory, tick)
    told = (hook, len(ids), positions, len(layers), time.monotonic() - begun)
    logger.info("captured %s of %d prompts at %s of %d layers in %.1f s", *told)
    sequences = [prompt + text for prompt, text in zip(ids, new, strict=True)]
    return Activations(
        **recorder.assembled(sequences, by_layer=isinstance(positions, Mapping)),
        prompt_lengths=torch.tensor([len(prompt) for prompt in ids]),
        layers=layers,
        hook=hook,
        positions=positions,
        prompts=tuple(_as_text(model, prompts, ids)),
        identity=identify(model),
        under=tuple(f"{edit.described}, {edit.hook}, {edit.positions}" for edit in asked.edits(model)),
        **_completed(model, completions, new) if max_new_tokens or completions is not None else {},
    )


@checked
def capture_pairs(
    model: HookedModel,
    pairs: ContrastPairs,
    *operations: Operation,
    positions: Positions | Mapping[int, Positions] | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    max_new_tokens: int = 0,
    allow_empty: bool = False,
    force: bool = False,
    progress: bool = False,
    reuse: bool = True,
    memory: Memory = None,
) -> PairedActivations:
    """`capture` of both sides of contrast pairs; the stream's norm is taken over both together.

    Args:
        pairs: from `contrast_pairs` or `honesty_pairs`.

    The other arguments, and what is raised, are those of `capture`.
    """
    both = capture(
        model,
        [*pairs.positive, *pairs.negative],
        *operations,
        positions=positions,
        layers=layers,
        hook=hook,
        max_new_tokens=max_new_tokens,
        allow_empty=allow_empty,
        force=force,
        progress=progress,
        reuse=reuse,
        memory=memory,
    )
    count = len(pairs)
    sides = both.subset(range(count)), both.subset(range(count, 2 * count))
    return PairedActivations(*sides, pairs.factors)


def _positions_by_layer(
    positions: Positions | Mapping[int, Positions] | None, layers: Layers, n_layers: int
) -> dict[int, Positions]:
    """The positions to read at each layer, in the order of the layers."""
    if not isinstance(positions, Mapping):
        return dict.fromkeys(
            resolve_layers(layers, n_layers), last_token() if positions is None else positions
        )
    own = resolve_layers(list(positions), n_layers)
    if layers is not None and (given := resolve_layers(layers, n_layers)) != own:
        raise ValueError(
            f"layers={list(given)} and positions of the layers {list(own)}: expected the same layers in the "
            "same order. Leave layers out."
        )
    return dict(zip(own, positions.values(), strict=True))


@dataclass(frozen=True)
class _Asked:
    """What is run: prompts, and behind each what was given or what is generated, under some operations."""

    prompts: Sequence[list[int]]
    given: Sequence[list[int]]
    operations: Sequence[Operation]
    max_new_tokens: int
    allow_empty: bool
    force: bool

    @property
    def feeds(self) -> bool:
        """Whether any new token is fed back: the last never is."""
        return self.max_new_tokens > 1 or any(len(text) > 1 for text in self.given)

    def edits(self, model: Any) -> list[Edit]:
        """All that the operations come down to."""
        return edits_of(self.operations, model.cfg.n_layers)


def _record_together(
    model: Any, asked: _Asked, recorder: "_Recorder", hook: str, memory: Memory, tick: Tick
) -> Sequence[list[int]]:
    """Texts are written first; then they and what they answer are read in one walk."""
    new = asked.given
    if asked.max_new_tokens:
        options = {"allow_empty": asked.allow_empty, "force": asked.force, "memory": memory}
        (new,) = write_cells(
            model, asked.prompts, [asked.operations], Decoding(asked.max_new_tokens), **options
        )
    (edits,) = checked_edits(model, [asked.operations], asked.force)
    rows = [
        Row((*prompt.ids, *text[:-1]), prompt) for prompt, text in zip(recorder.prompts, new, strict=True)
    ]

    def record(wave: Wave) -> None:
        recorder.walk(model, hook, wave, stop=_last_layer(recorder.layers, edits) + 1)

    in_waves(
        model,
        rows,
        [edits],
        record,
        memory=memory,
        tick=tick,
        generating=asked.feeds,
        allow_empty=asked.allow_empty,
    )
    return new


def _record_plainly(
    model: Any, asked: _Asked, recorder: "_Recorder", hook: str, memory: Memory, tick: Tick
) -> Sequence[list[int]]:
    """Batch by batch, in whole passes, while the model reads or generates: the oracle."""
    new = list(asked.given)
    stop = _last_layer(recorder.layers, asked.edits(model)) + 1
    read = [prompt + text[:-1] for prompt, text in zip(asked.prompts, new, strict=True)]
    options = {"generating": asked.feeds, "allow_empty": asked.allow_empty, "force": asked.force}
    for batch in batches(read, device=input_device(model), extra=asked.max_new_tokens):
        prompts = [asked.prompts[row] for row in batch.rows]
        steered = steer(model, *asked.operations, prompts=prompts, numbers=batch.rows, **options)
        with steered as clock, recorder.reading(model, hook, clock, batch.rows):
            if asked.max_new_tokens:
                texts = decode(model, batch, Decoding(asked.max_new_tokens))
                for row, text in zip(batch.rows, texts, strict=True):
                    new[row] = text
            else:
                residual(model, batch, stop_at_layer=stop)
        tick(len(batch.rows) / len(read))
    recorder.require_read(hook)
    return new


class _Recorder:
    """Collects what a hook holds at the positions selected at each layer, pass by pass."""

    def __init__(self, positions: Mapping[int, Positions], prompts: Sequence[PromptTokens]) -> None:
        self.layers, self.positions, self.prompts = tuple(positions), positions, prompts
        self.values: dict[int, list[Tensor]] = {layer: [] for layer in positions}
        # Prompts and absolute positions that were read in each pass, once for layers with the same positions.
        self.places: dict[Positions, list[tuple[Tensor, Tensor]]] = {each: [] for each in positions.values()}
        self.norms = torch.full((len(prompts), len(positions)), torch.nan)

    @contextmanager
    def reading(self, model: Any, hook: str, clock: Clock, rows: Sequence[int]) -> Iterator[None]:
        """While this is entered, every pass is recorded; `rows` are the batch's prompts."""
        prompts = torch.tensor(list(rows))
        with ExitStack() as stack:
            for place, layer in enumerate(self.layers):
                reader = self._reader(place, layer, clock, prompts)
                stack.callback(hook_point(model, hook, layer).register_forward_hook(reader).remove)
            yield

    def _reader(self, place: int, layer: int, clock: Clock, prompts: Tensor) -> Any:
        positions = self.positions[layer]
        is_first = layer == next(each for each in self.layers if self.positions[each] == positions)

        def read(_module: Any, _inputs: tuple, x: Tensor) -> None:
            stream = clock.slots_of(x)
            selected = clock.mask(positions)
            self.values[layer].append(stream[selected.to(x.device)].float().cpu())
            if is_first:
                places = prompts[selected.nonzero()[:, 0].cpu()], clock.index[selected].cpu()
                self.places[positions].append(places)
            if clock.passes == 1:
                self.norms[prompts, place] = _typical_norms(stream, clock)

        return read

    def walk(self, model: Any, hook: str, wave: Wave, *, stop: int) -> None:
        """Walk a wave of one cell, and record it."""
        rows, paths = torch.tensor(wave.rows), wave.plan.trunk.growth.paths
        numbers, places = {}, {}
        for positions in self.places:
            chosen = [torch.from_numpy(row.selected(positions)).nonzero()[:, 0] for row in wave.plan.rows]
            numbers[positions] = torch.cat(
                [torch.from_numpy(path)[some] for path, some in zip(paths, chosen, strict=True)]
            )
            counts = torch.tensor([len(some) for some in chosen])
            places[positions] = rows.repeat_interleave(counts), torch.cat(chosen)
        needed = torch.cat([*numbers.values()]).unique()
        reading = Reading([(layer, hook) for layer in self.layers], needed.numpy())
        with reading.of(model, wave):
            wave.walk.up(stop, count=wave.count)
        values = {}
        for layer, positions in self.positions.items():
            # `pop`: what other layers need of a layer's tokens is not kept.
            values[layer] = reading.values.pop((layer, hook))[torch.searchsorted(needed, numbers[positions])]
            self._require_finite(layer, values[layer], places[positions][0])
        for positions, read in places.items():
            self.places[positions].append(read)
        norms = reading.typical_norms(wave)
        for place, layer in enumerate(self.layers):
            self.values[layer].append(values[layer])
            self.norms[rows, place] = norms[layer, hook]

    def require_read(self, hook: str) -> None:
        """Raise `HookDidNotFireError` where a layer's hook was never reached."""
        unread = [layer for layer, read in self.values.items() if not read]
        if unread:
            raise HookDidNotFireError(f"hook {hook!r} did not fire at layers {unread}: nothing was read.")

    def assembled(self, sequences: Sequence[Sequence[int]], *, by_layer: bool) -> dict[str, Tensor]:
        """Everything recorded, by prompt and padded.

        Args:
            sequences: the prompts with what was generated.
            by_layer: whether `token_index` and `tokens` have a layer axis.
        """
        layouts = {positions: _Layout(places, sequences) for positions, places in self.places.items()}
        shape = (len(sequences), len(self.layers), max(each.width for each in layouts.values()))
        width = next(iter(self.values.values()))[0].shape[-1]
        values = torch.full((*shape, width), torch.nan)
        token_index, tokens = torch.full(shape, -1), torch.full(shape, -1)
        for place, (layer, positions) in enumerate(self.positions.items()):
            layout = layouts[positions]
            where = layout.rows, torch.full_like(layout.rows, place), layout.slots
            held = torch.cat(self.values.pop(layer))[layout.order]
            self._require_finite(layer, held, layout.rows)
            values[where] = held
            token_index[where], tokens[where] = layout.index, layout.tokens
        if not by_layer:
            token_index, tokens = token_index[:, 0].clone(), tokens[:, 0].clone()
        stream_norm = torch.nanquantile(self.norms, 0.5, dim=0)
        return {"values": values, "token_index": token_index, "tokens": tokens, "stream_norm": stream_norm}

    def _require_finite(
        self, layer: int, values: Float[Tensor, "read d_hook"], rows: Int[Tensor, " read"]
    ) -> None:
        """Raise `NonFiniteError` for activations that are not; names the first such prompt."""
        finite = torch.isfinite(values).all(-1)
        if not bool(finite.all()):
            prompt = self.prompts[int(rows[~finite][0])].named()
            raise NonFiniteError(f"layer {layer}, {prompt}: the activation is NaN or infinite.")


class _Layout:
    """Where what was read at some positions belongs: sorted by prompt and absolute position.

    Attributes:
        order: of what was read, pass by pass.
        rows, slots: prompt and padded position of each, in this order.
        index, tokens: its absolute position and token id.
        width: the most positions that a prompt has.
    """

    def __init__(self, places: Sequence[tuple[Tensor, Tensor]], sequences: Sequence[Sequence[int]]) -> None:
        rows, index = (torch.cat(part) for part in zip(*places, strict=True))
        self.order = torch.argsort(rows * (int(index.max()) + 1 if len(index) else 1) + index)
        self.rows, self.index = rows[self.order], index[self.order]
        counts = torch.bincount(rows, minlength=len(sequences))
        self.slots = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[self.rows]
        self.width = int(counts.max())
        pairs = zip(self.rows.tolist(), self.index.tolist(), strict=True)
        self.tokens = torch.tensor([sequences[row][place] for row, place in pairs]).long()


def _last_layer(layers: Sequence[int], edits: Sequence[Edit]) -> int:
    """The last that has to run for every layer to be read and every edit made."""
    return max([*layers, *(edit.layer for edit in edits)])


def _require_some(
    model: Any, ids: Sequence[Sequence[int]], positions: Positions, feeding: Sequence[bool]
) -> None:
    """`feeding`: behind which prompts new tokens are fed back."""
    for row, (prompt, generating) in enumerate(zip(ids, feeding, strict=True)):
        tokens = PromptTokens(len(prompt), tuple(prompt), model.tokenizer)
        positions.require_some(tokens, f"prompt {row}", generating=generating)


def _given(
    model: Any,
    ids: Sequence[Sequence[int]],
    completions: Prompt | Sequence[Prompt] | None,
    max_new_tokens: int,
) -> list[list[int]]:
    """The tokens to read behind each prompt; none where nothing was given."""
    if completions is None:
        return [[] for _ in ids]
    if max_new_tokens:
        raise ValueError(
            f"completions and max_new_tokens={max_new_tokens} exclude each other: "
            "give completions to read them, max_new_tokens to generate."
        )
    given = as_prompts(completions)
    if len(given) != len(ids):
        raise ValueError(f"{len(given)} completions for {len(ids)} prompts: give one for each.")
    ids = [_completion_ids(model, completion) for completion in given]
    if not any(isinstance(completion, str) for completion in given):
        warn_of_padding(model, ids, completions=True)
    return ids


def _completion_ids(model: Any, completion: Prompt) -> list[int]:
    if isinstance(completion, str) and model.tokenizer is not None:
        completion = model.tokenizer(completion, add_special_tokens=False)["input_ids"]
    return tokenize(model, completion) if len(completion) else []


def _completed(
    model: Any, given: Prompt | Sequence[Prompt] | None, new: Sequence[Sequence[int]]
) -> dict[str, tuple]:
    """What was read behind the prompts, as text and as ids."""
    texts = [None] * len(new) if given is None else as_prompts(given)
    decode = str if model.tokenizer is None else partial(completion_text, model)
    return {
        "completions": tuple(
            text if isinstance(text, str) else decode(ids) for text, ids in zip(texts, new, strict=True)
        ),
        "completion_tokens": tuple(tuple(ids) for ids in new),
    }


def _as_text(model: Any, prompts: Prompt | Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[str]:
    given = as_prompts(prompts)
    decode = str if model.tokenizer is None else model.tokenizer.decode
    return [
        prompt if isinstance(prompt, str) else decode(list(row))
        for prompt, row in zip(given, ids, strict=True)
    ]


def _typical_norms(stream: Float[Tensor, "batch pos d_hook"], clock: Clock) -> Float[Tensor, " batch"]:
    """Each row's median norm over its prompt without the first position; NaN of a one-token prompt."""
    norms = stream.float().norm(dim=-1).cpu()
    index = clock.index.cpu()
    ends = torch.tensor([prompt.length for prompt in clock.prompts])
    inside = (index > 0) & (index < ends[:, None])
    return torch.where(inside, norms, torch.nan).nanquantile(0.5, dim=-1)
