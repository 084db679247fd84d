"""What hooks hold during a walk, at the tokens somebody asked for, and how long the stream is there."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...models import hook_point
from .chunking import Wave

Site = tuple[int, str]


class Reading:
    """Reads hooks at some layers while a walk goes by.

    Args:
        sites: layer and hook of each place to read.
        numbers: which of the trunk's tokens, in ascending order.

    Attributes:
        values: by site, what the hook holds at these tokens, float32 on the CPU.
        norms: by site, the length of what it holds at every token of the trunk.
    """

    def __init__(self, sites: Sequence[Site], numbers: Int[np.ndarray, " read"] | None = None) -> None:
        self.sites = sites
        self.numbers = np.empty(0, dtype=np.int64) if numbers is None else numbers
        self.values: dict[Site, Float[Tensor, "read d_hook"]] = {}
        self.norms: dict[Site, Float[Tensor, " token"]] = {}

    @contextmanager
    def of(self, model: Any, wave: Wave) -> Iterator[None]:
        """While this is entered, the wave's walk is read."""
        trunk = len(wave.plan.trunk.growth)
        with ExitStack() as stack:
            for site in self.sites:
                layer, hook = site
                self.norms[site] = torch.empty(trunk)
                handle = hook_point(model, hook, layer).register_forward_hook(self._reader(site, wave, trunk))
                stack.callback(handle.remove)
            yield

    def typical_norms(self, wave: Wave) -> dict[Site, Float[Tensor, " row"]]:
        """Each row's median length over its prompt without the first position; NaN of a one-token prompt."""
        paths = [
            torch.from_numpy(path[1 : row.prompt.length])
            for path, row in zip(wave.plan.trunk.growth.paths, wave.plan.rows, strict=True)
        ]
        numbers = pad_sequence(paths, batch_first=True)
        missing = torch.arange(numbers.shape[1]) >= torch.tensor([len(path) for path in paths])[:, None]
        return {
            site: norms[numbers].masked_fill(missing, torch.nan).nanquantile(0.5, dim=1)
            if numbers.shape[1]
            else torch.full((len(paths),), torch.nan)
            for site, norms in self.norms.items()
        }

    def _reader(self, site: Site, wave: Wave, trunk: int) -> Any:
        def read(_module: Any, _inputs: tuple, x: Tensor) -> None:
            start, stop = wave.walk.now.tokens.start, wave.walk.now.tokens.stop
            if start >= trunk:
                return
            stream = (x.flatten(2) if x.ndim == 4 else x)[0, : trunk - start].float()
            self.norms[site][start : start + len(stream)] = stream.norm(dim=-1).cpu()
            first, last = np.searchsorted(self.numbers, (start, stop))
            if site not in self.values:
                self.values[site] = torch.empty(len(self.numbers), stream.shape[-1])
            here = torch.from_numpy(self.numbers[first:last] - start).to(stream.device)
            self.values[site][first:last] = stream[here].cpu()

        return read


class StreamNorms:
    """The unsteered stream's typical norm at some sites, taken while cells are run that are unsteered.

    Args:
        sites: layer and hook of each.
        prompt_of: which prompt each row asks about; rows of the same prompt have the same norms.

    Attributes:
        seen: whether there was an unsteered cell.
    """

    def __init__(self, sites: Sequence[Site], prompt_of: Sequence[int]) -> None:
        self.prompt_of = torch.tensor(list(prompt_of))
        self.sites = tuple(sites)
        self._norms = {site: torch.full((int(self.prompt_of.max()) + 1,), torch.nan) for site in sites}
        self.seen = False

    @contextmanager
    def of(self, model: Any, wave: Wave) -> Iterator[None]:
        """While this is entered, the wave's walk is read, if a cell of it is unsteered."""
        if all(wave.plan.cells):
            yield
            return
        reading = Reading(self.sites)
        with reading.of(model, wave):
            yield
        self.seen = True
        for site, norms in reading.typical_norms(wave).items():
            self._norms[site][self.prompt_of[list(wave.rows)]] = norms

    def typical(self) -> dict[Site, float]:
        """The median over prompts of each prompt's typical norm, by site."""
        return {site: float(norms.nanquantile(0.5)) for site, norms in self._norms.items()}
