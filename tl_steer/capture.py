"""Activations at named positions, layers and hooks, while the model reads or generates."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .activations import Activations, PairedActivations
from .engine import Memory, Reading, Row, Tick, Wave, bar, batches, in_waves, residual, shares
from .generation import Decoding, completion_text, decode, require_room, write_cells
from .interventions import Edit, NonFiniteError, Operation, checked_edits, steer
from .models import Layers, Prompt, as_prompts, hook_point, identify, resolve_layers, tokenize_all
from .positions import Clock, Positions, PromptTokens, last_token
from .prompts import ContrastPairs


def capture(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    *operations: Operation,
    positions: Positions | None = None,
    layers: Layers = None,
    hook: str = "resid_post",
    max_new_tokens: int = 0,
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
        model: a `HookedTransformer`.
        prompts: texts or token lists.
        operations: the model runs, and generates, under these; the hook is read after them.
        positions: which tokens; by default `last_token()`.
        layers: 0-based block indices, negatives from the end; by default all.
        hook: short hook name.
        max_new_tokens: generate (greedily) so many tokens, and read the hook there too. The last new token is
            never fed back and has no activation.
        allow_empty: accept prompts of which `positions`, or an operation's, select nothing.
        force: accept vectors of other weights of the same shapes and processing.
        progress: show a bar.
        reuse: compute what prompts share once; `False` runs the plain loop, the oracle: the same numbers.
        memory: bytes, or the share of what is free, that streams, keys and values may take; see `sweep`.

    Raises:
        EmptySelectionError: a prompt of which nothing is selected.
        NonFiniteError: an activation is NaN or infinite.
        ValueError, IndexError: no prompts, an unknown hook, a layer out of range.
    """
    positions = last_token() if positions is None else positions
    ids = tokenize_all(model, prompts)
    layers = resolve_layers(layers, model.cfg.n_layers)
    if max_new_tokens:
        require_room(model, ids, max_new_tokens)
    if not allow_empty:
        _require_some(model, ids, positions, generating=max_new_tokens > 1)  # the last is never fed back
    recorder = _Recorder(layers, positions, len(ids))
    options = {"allow_empty": allow_empty, "force": force}
    with bar("capturing", 1, shown=progress) as tick, torch.no_grad():
        run = _record_together if shares(model, reuse) else _record_plainly
        new = run(model, ids, operations, recorder, hook, max_new_tokens, memory, tick, options)
    return Activations(
        **recorder.assembled([prompt + new[row] for row, prompt in enumerate(ids)]),
        prompt_lengths=torch.tensor([len(prompt) for prompt in ids]),
        layers=layers,
        hook=hook,
        positions=positions,
        prompts=tuple(_as_text(model, prompts, ids)),
        identity=identify(model),
        completions=tuple(completion_text(model, text) for text in new) if max_new_tokens else (),
    )


def capture_pairs(
    model: Any,
    pairs: ContrastPairs,
    *operations: Operation,
    positions: Positions | None = None,
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


def _record_together(
    model: Any,
    ids: Sequence[list[int]],
    operations: Sequence[Operation],
    recorder: "_Recorder",
    hook: str,
    max_new_tokens: int,
    memory: Memory,
    tick: Tick,
    options: Mapping[str, bool],
) -> list[list[int]]:
    """Texts are written first; then they and what they answer are read in one walk."""
    new: list[list[int]] = [[] for _ in ids]
    if max_new_tokens:
        (new,) = write_cells(model, ids, [operations], Decoding(max_new_tokens), memory=memory, **options)
    (edits,) = checked_edits(model, [operations], options["force"])
    rows = [
        Row(tuple(prompt + text[:-1]), PromptTokens(len(prompt), tuple(prompt), model.tokenizer))
        for prompt, text in zip(ids, new, strict=True)
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
        generating=max_new_tokens > 1,
        allow_empty=options["allow_empty"],
    )
    return new


def _record_plainly(
    model: Any,
    ids: Sequence[list[int]],
    operations: Sequence[Operation],
    recorder: "_Recorder",
    hook: str,
    max_new_tokens: int,
    memory: Memory,
    tick: Tick,
    options: Mapping[str, bool],
) -> list[list[int]]:
    """Batch by batch, in whole passes, while the model reads or generates: the oracle."""
    new: list[list[int]] = [[] for _ in ids]
    edits = [edit for operation in operations for edit in operation.edits(model.cfg.n_layers)]
    stop = _last_layer(recorder.layers, edits) + 1
    for batch in batches(ids, device=model.cfg.device, extra=max_new_tokens):
        asked = [ids[row] for row in batch.rows]
        steered = steer(model, *operations, prompts=asked, generating=max_new_tokens > 1, **options)
        with steered as clock, recorder.reading(model, hook, clock, batch.rows):
            if max_new_tokens:
                for row, text in zip(batch.rows, decode(model, batch, Decoding(max_new_tokens)), strict=True):
                    new[row] = text
            else:
                residual(model, batch, stop_at_layer=stop)
        tick(len(batch.rows) / len(ids))
    return new


class _Recorder:
    """Collects what a hook holds at the selected positions, pass by pass."""

    def __init__(self, layers: tuple[int, ...], positions: Positions, n_prompts: int) -> None:
        self.layers, self.positions = layers, positions
        self.values: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        self.rows: list[Tensor] = []
        self.index: list[Tensor] = []
        self.norms = torch.full((n_prompts, len(layers)), torch.nan)

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
        def read(_module: Any, _inputs: tuple, x: Tensor) -> None:
            stream = x.flatten(2) if x.ndim == 4 else x
            selected = clock.mask(self.positions)
            self.values[layer].append(stream[selected.to(x.device)].float().cpu())
            if place == 0:
                self.rows.append(prompts[selected.nonzero()[:, 0].cpu()])
                self.index.append(clock.index[selected].cpu())
            if clock.passes == 1:
                self.norms[prompts, place] = _typical_norms(stream, clock)

        return read

    def walk(self, model: Any, hook: str, wave: Wave, *, stop: int) -> None:
        """Walk a wave of one cell, and record it."""
        paths = wave.plan.trunk.growth.paths
        chosen = [torch.from_numpy(row.selected(self.positions)).nonzero()[:, 0] for row in wave.plan.rows]
        numbers = [torch.from_numpy(path)[places] for path, places in zip(paths, chosen, strict=True)]
        needed, held = torch.cat(numbers).unique(return_inverse=True)
        reading = Reading([(layer, hook) for layer in self.layers], needed.numpy())
        with reading.of(model, wave):
            wave.walk.up(stop, count=wave.count)
        rows = torch.tensor(wave.rows)
        self.rows.append(rows.repeat_interleave(torch.tensor([len(places) for places in chosen])))
        self.index.append(torch.cat(chosen))
        norms = reading.typical_norms(wave)
        for place, layer in enumerate(self.layers):
            self.values[layer].append(reading.values[layer, hook][held])
            self.norms[rows, place] = norms[layer, hook]

    def assembled(self, sequences: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Everything recorded, by prompt and padded; `sequences` are the prompts with what was generated."""
        rows, index = torch.cat(self.rows), torch.cat(self.index)
        order = torch.argsort(rows * (int(index.max()) + 1 if len(index) else 1) + index)
        rows, index = rows[order], index[order]
        counts = torch.bincount(rows, minlength=len(sequences))
        slots = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
        shape = (len(sequences), int(counts.max()))
        token_index, tokens = torch.full(shape, -1), torch.full(shape, -1)
        token_index[rows, slots] = index
        tokens[rows, slots] = torch.tensor(
            [sequences[row][place] for row, place in zip(rows, index, strict=True)]
        ).long()
        width = next(iter(self.values.values()))[0].shape[-1]
        values = torch.full((len(sequences), len(self.layers), shape[1], width), torch.nan)
        for place, layer in enumerate(self.layers):
            held = torch.cat(self.values.pop(layer))[order]
            if not bool(torch.isfinite(held).all()):
                row = int(rows[(~torch.isfinite(held)).any(-1)][0])
                raise NonFiniteError(f"layer {layer}, prompt {row}: the activation is NaN or infinite.")
            values[rows, place, slots] = held
        stream_norm = torch.nanquantile(self.norms, 0.5, dim=0)
        return {"values": values, "token_index": token_index, "tokens": tokens, "stream_norm": stream_norm}


def _last_layer(layers: Sequence[int], edits: Sequence[Edit]) -> int:
    """The last that has to run for every layer to be read and every edit made."""
    return max([*layers, *(edit.layer for edit in edits)])


def _require_some(
    model: Any, ids: Sequence[Sequence[int]], positions: Positions, *, generating: bool
) -> None:
    for row, prompt in enumerate(ids):
        tokens = PromptTokens(len(prompt), tuple(prompt), model.tokenizer)
        positions.require_some(tokens, f"prompt {row}", generating=generating)


def _as_text(model: Any, prompts: Prompt | Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[str]:
    given = as_prompts(prompts)
    decode = str if model.tokenizer is None else model.tokenizer.decode
    return [
        prompt if isinstance(prompt, str) else decode(list(row))
        for prompt, row in zip(given, ids, strict=True)
    ]


def _typical_norms(stream: Float[Tensor, "batch pos d_hook"], clock: Clock) -> Float[Tensor, " batch"]:
    """Each row's median norm over its positions except the first; NaN of a one-token prompt."""
    norms = stream.float().norm(dim=-1).cpu()
    index = clock.index.cpu()
    return torch.where(index > 0, norms, torch.nan).nanquantile(0.5, dim=-1)
