"""Activations at chosen tokens, and norms of the residual stream, read while the model runs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import HookDidNotFireError, NonFiniteError
from ..models import hook_point
from ..positions import Positions, PositionTracker, PromptTokens
from ..positions.tracker import slots_of
from .shared.chunking import Chunk

Site = tuple[int, str]  # layer and hook


class ActivationReader:
    """Reads hooks at some layers of the shared prefix.

    Args:
        sites: layer and hook of each.
        numbers: which of the prefix's tokens, in ascending order.

    Attributes:
        values: by site, the activations at these tokens, float32 on the CPU.
        norms: by site, the activations' length at every token of the prefix.
    """

    def __init__(self, sites: Sequence[Site], numbers: Int[np.ndarray, " read"] | None = None) -> None:
        self.sites = sites
        self.numbers = np.empty(0, dtype=np.int64) if numbers is None else numbers
        self.values: dict[Site, Float[Tensor, "read d_hook"]] = {}
        self.norms: dict[Site, Float[Tensor, " token"]] = {}
        self._slots: dict[tuple[int, int], Int[Tensor, " read"]] = {}  # to be read, by a pass's tokens

    @contextmanager
    def of(self, model: Any, chunk: Chunk) -> Iterator[None]:
        """Read the chunk's layerwise pass, which runs inside this block."""
        with ExitStack() as stack:
            for site in self.sites:
                layer, hook = site
                # On the device until all layers ran: each transfer would wait for a GPU.
                self.norms[site] = torch.empty(chunk.plan.prefix.stop, device=chunk.layerwise.stream.device)
                handle = hook_point(model, hook, layer).register_forward_hook(self._hook(site, chunk))
                stack.callback(handle.remove)
            yield
        self.norms = {site: norms.cpu() for site, norms in self.norms.items()}

    def typical_norms(self, chunk: Chunk) -> dict[Site, Float[Tensor, " row"]]:
        """Each row's median norm over its prompt without the first position; NaN of a one-token prompt."""
        paths = [
            torch.from_numpy(path[1 : row.prompt.length])
            for path, row in zip(chunk.plan.prefix.trie.paths, chunk.plan.rows, strict=True)
        ]
        numbers = pad_sequence(paths, batch_first=True)
        if not numbers.shape[1]:
            return {site: torch.full((len(paths),), torch.nan) for site in self.norms}
        is_padding = torch.arange(numbers.shape[1]) >= torch.tensor([len(path) for path in paths])[:, None]
        return {
            site: norms[numbers].masked_fill(is_padding, torch.nan).nanquantile(0.5, dim=1)
            for site, norms in self.norms.items()
        }

    def _hook(self, site: Site, chunk: Chunk) -> Callable[[Any, tuple, Tensor], None]:
        n_tokens = chunk.plan.prefix.stop

        def read(_module: Any, _inputs: tuple, x: Tensor) -> None:
            tokens = chunk.layerwise.current.tokens
            start, stop = tokens.start, tokens.stop
            if start >= n_tokens:
                return
            stream = slots_of(x, 1, x.shape[1])[0, : n_tokens - start].float()
            self.norms[site][start : start + len(stream)] = stream.norm(dim=-1)
            first, last = np.searchsorted(self.numbers, (start, stop))
            if site not in self.values:
                self.values[site] = torch.empty(len(self.numbers), stream.shape[-1])
            if first < last:
                if (start, stop) not in self._slots:
                    slots = torch.from_numpy(self.numbers[first:last] - start)
                    self._slots[start, stop] = slots.to(stream.device)
                self.values[site][first:last] = stream[self._slots[start, stop]].cpu()

        return read


class StreamNorms:
    """Typical norms of the unsteered residual stream, read while an unsteered condition runs.

    Args:
        sites: layer and hook of each.
        prompt_of: each row's prompt; rows of the same prompt have the same norms.

    Attributes:
        seen: whether there was an unsteered condition.
    """

    def __init__(self, sites: Sequence[Site], prompt_of: Sequence[int]) -> None:
        self.prompt_of = torch.tensor(list(prompt_of))
        self.sites = tuple(sites)
        self._norms = {site: torch.full((int(self.prompt_of.max()) + 1,), torch.nan) for site in sites}
        self.seen = False

    @contextmanager
    def of(self, model: Any, chunk: Chunk) -> Iterator[None]:
        """Read the chunk's layerwise pass, which runs inside this block, if a condition is unsteered."""
        if all(chunk.plan.conditions):
            yield
            return
        reader = ActivationReader(self.sites)
        with reader.of(model, chunk):
            yield
        self.seen = True
        for site, norms in reader.typical_norms(chunk).items():
            self._norms[site][self.prompt_of[list(chunk.rows)]] = norms

    def typical(self) -> dict[Site, float]:
        """The median over prompts of each prompt's typical norm, by site."""
        return {site: float(norms.nanquantile(0.5)) for site, norms in self._norms.items()}


class Recorder:
    """Collects a hook's activations at the positions selected at each layer, pass by pass."""

    def __init__(
        self, positions: Mapping[int, Positions], hook: str, prompts: Sequence[PromptTokens]
    ) -> None:
        self.layers, self.positions, self.hook, self.prompts = tuple(positions), positions, hook, prompts
        self.values: dict[int, list[Tensor]] = {layer: [] for layer in positions}
        # Prompts and absolute positions that each pass read, once for layers with the same positions.
        self.sources: dict[Positions, list[tuple[Tensor, Tensor]]] = {each: [] for each in positions.values()}
        self.norms = torch.full((len(prompts), len(positions)), torch.nan)

    @contextmanager
    def reading(self, model: Any, tracker: PositionTracker, rows: Sequence[int]) -> Iterator[None]:
        """Record every pass inside this block; `rows` are the batch's prompts."""
        prompts = torch.tensor(list(rows))
        with ExitStack() as stack:
            for column, layer in enumerate(self.layers):
                read = self._reader(column, layer, tracker, prompts)
                stack.callback(hook_point(model, self.hook, layer).register_forward_hook(read).remove)
            yield

    def _reader(
        self, column: int, layer: int, tracker: PositionTracker, prompts: Tensor
    ) -> Callable[[Any, tuple, Tensor], None]:
        positions = self.positions[layer]
        is_first = layer == next(each for each in self.layers if self.positions[each] == positions)

        def read(_module: Any, _inputs: tuple, x: Tensor) -> None:
            stream = tracker.slots_of(x)
            selected = tracker.mask(positions)
            self.values[layer].append(stream[selected.to(x.device)].float().cpu())
            if is_first:
                rows = prompts[selected.nonzero()[:, 0].cpu()]
                self.sources[positions].append((rows, tracker.index[selected].cpu()))
            if tracker.passes == 1:
                self.norms[prompts, column] = _typical_norms(stream, tracker)

        return read

    def run(self, model: Any, chunk: Chunk, stop: int) -> None:
        """Run a chunk of one condition through the layers before `stop`, and record it."""
        rows, paths = torch.tensor(chunk.rows), chunk.plan.prefix.trie.paths
        numbers, sources = {}, {}
        for positions in self.sources:
            selected = [torch.from_numpy(row.selected(positions)).nonzero()[:, 0] for row in chunk.plan.rows]
            numbers[positions] = torch.cat(
                [torch.from_numpy(path)[index] for path, index in zip(paths, selected, strict=True)]
            )
            counts = torch.tensor([len(index) for index in selected])
            sources[positions] = rows.repeat_interleave(counts), torch.cat(selected)
        needed = torch.cat([*numbers.values()]).unique()
        reader = ActivationReader([(layer, self.hook) for layer in self.layers], needed.numpy())
        with reader.of(model, chunk):
            chunk.layerwise.run(stop, on_tokens=chunk.on_tokens)
        self._require_fired(layer for layer, hook in reader.sites if (layer, hook) not in reader.values)
        values = {}
        for layer, positions in self.positions.items():
            # `pop`: frees the tokens that only other layers need.
            tokens = torch.searchsorted(needed, numbers[positions])
            values[layer] = reader.values.pop((layer, self.hook))[tokens]
            self._require_finite(layer, values[layer], sources[positions][0])
        # Nothing is added before everything of the chunk was read: it may run out of memory, and run again.
        norms = reader.typical_norms(chunk)
        for positions, source in sources.items():
            self.sources[positions].append(source)
        for column, layer in enumerate(self.layers):
            self.values[layer].append(values[layer])
            self.norms[rows, column] = norms[layer, self.hook]

    def assembled(self, sequences: Sequence[Sequence[int]], by_layer: bool) -> dict[str, Tensor]:
        """Everything recorded, by prompt and padded.

        Args:
            sequences: the prompts with what was generated.
            by_layer: whether `token_index` and `tokens` have a layer axis.
        """
        self._require_fired(layer for layer, parts in self.values.items() if not parts)
        layouts = {positions: _Layout(sources, sequences) for positions, sources in self.sources.items()}
        shape = (len(sequences), len(self.layers), max(each.width for each in layouts.values()))
        values = torch.full((*shape, self.values[self.layers[0]][0].shape[-1]), torch.nan)
        token_index, tokens = torch.full(shape, -1), torch.full(shape, -1)
        for column, (layer, positions) in enumerate(self.positions.items()):
            layout = layouts[positions]
            where = layout.rows, torch.full_like(layout.rows, column), layout.slots
            recorded = torch.cat(self.values.pop(layer))[layout.order]
            self._require_finite(layer, recorded, layout.rows)
            values[where] = recorded
            token_index[where], tokens[where] = layout.index, layout.tokens
        if not by_layer:
            token_index, tokens = token_index[:, 0].clone(), tokens[:, 0].clone()
        stream_norm = torch.nanquantile(self.norms, 0.5, dim=0)
        return {"values": values, "token_index": token_index, "tokens": tokens, "stream_norm": stream_norm}

    def _require_fired(self, unread: Iterable[int]) -> None:
        """Raise `HookDidNotFireError` if there are layers whose hook was not reached."""
        if layers := list(unread):
            raise HookDidNotFireError(
                f"hook {self.hook!r} did not fire at layers {layers}: nothing was read."
            )

    def _require_finite(
        self, layer: int, values: Float[Tensor, "read d_hook"], rows: Int[Tensor, " read"]
    ) -> None:
        """Raise `NonFiniteError` if activations are not finite; names the first such prompt."""
        finite = torch.isfinite(values).all(-1)
        if not bool(finite.all()):
            prompt = self.prompts[int(rows[~finite][0])].named()
            raise NonFiniteError(f"layer {layer}, {prompt}: the activation is NaN or infinite.")


class _Layout:
    """Prompt and slot of everything read at some positions, sorted by prompt and absolute position.

    Attributes:
        order: indices into what was read, pass by pass.
        rows, slots: prompt and padded position of each, in this order.
        index, tokens: its absolute position and token id.
        width: the largest number of positions per prompt.
    """

    def __init__(self, sources: Sequence[tuple[Tensor, Tensor]], sequences: Sequence[Sequence[int]]) -> None:
        rows, index = (torch.cat(part) for part in zip(*sources, strict=True))
        self.order = torch.argsort(rows * (int(index.max()) + 1 if len(index) else 1) + index)
        self.rows, self.index = rows[self.order], index[self.order]
        counts = torch.bincount(rows, minlength=len(sequences))
        self.slots = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[self.rows]
        self.width = int(counts.max())
        pairs = zip(self.rows.tolist(), self.index.tolist(), strict=True)
        self.tokens = torch.tensor([sequences[row][position] for row, position in pairs]).long()


def _typical_norms(
    stream: Float[Tensor, "batch pos d_hook"], tracker: PositionTracker
) -> Float[Tensor, " batch"]:
    """Each row's median norm over its prompt without the first position; NaN of a one-token prompt."""
    norms = stream.float().norm(dim=-1).cpu()
    index = tracker.index.cpu()
    ends = torch.tensor([prompt.length for prompt in tracker.prompts])
    inside = (index > 0) & (index < ends[:, None])
    return torch.where(inside, norms, torch.nan).nanquantile(0.5, dim=-1)
