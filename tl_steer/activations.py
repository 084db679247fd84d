"""Captured activations as labelled values, alone and in pairs, and their files."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_of
from torch import Tensor

from ._util.file_io import atomic
from ._util.validation import checked
from .models import ChatPrompt, ModelIdentity, prompt_label
from .positions import Positions, parse_positions
from .prompts.pairs import Rows, row_numbers

logger = logging.getLogger(__name__)

FORMAT = "tl_steer activations 1"
SIDE_TENSORS = ("values", "token_index", "tokens", "prompt_lengths", "stream_norm")
SIDE_TEXTS = ("completions", "completion_tokens", "under")
TEXTS = ("prompts", "completions", "completion_tokens")  # fields with a row a prompt, or ()


@checked
@dataclass(frozen=True, eq=False)
class Activations:
    """What a hook held at the selected positions of some prompts, at some layers.

    Attributes:
        values: float32 on the CPU, positions padded on the right with NaN.
        token_index: each position's index in its unpadded prompt and completion, −1 where empty; with a layer
            axis where layers have different positions.
        tokens: the token id there, −1 where empty; shaped alike.
        prompt_lengths: tokens in each prompt.
        layers: 0-based block indices, in the order of the axis.
        hook: short hook name, "resid_post".
        positions: what was selected, or what at each layer.
        prompts: the prompts as they were given, as text.
        stream_norm: typical norm at each layer: the median, over prompts, of each prompt's median norm over
            its positions except the first (where attention sinks are a hundred times larger); NaN where every
            prompt has one token. Of the stream as it was read: under operations, of the changed one.
        identity: the model they came from.
        completions: new text where the capture generated or was given some, else ().
        completion_tokens: the ids of each, the last one, which was not fed back, included.
        under: what the model was steered with meanwhile, an edit each: "Add(multiplier=2) at layer 3,
            resid_post, all_tokens()".
    """

    values: Float[Tensor, "prompt layer pos d_hook"]
    token_index: Int[Tensor, "prompt pos"] | Int[Tensor, "prompt layer pos"]
    tokens: Int[Tensor, "prompt pos"] | Int[Tensor, "prompt layer pos"]
    prompt_lengths: Int[Tensor, " prompt"]
    layers: tuple[int, ...]
    hook: str
    positions: Positions | Mapping[int, Positions]
    prompts: tuple[str, ...]
    stream_norm: Float[Tensor, " layer"]
    identity: ModelIdentity
    completions: tuple[str, ...] = ()
    completion_tokens: tuple[tuple[int, ...], ...] = ()
    under: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return f"Activations({len(self)} prompts at {self.positions}, {_where(self)})"

    def single(self) -> Float[Tensor, "prompt layer d_hook"]:
        """The values where each prompt has exactly one position at each layer.

        Raises:
            ValueError: some prompt has another number of positions.
        """
        known = self.token_index >= 0
        counts = known.sum(-1)
        if not bool((counts == 1).all()):
            row, *place = (int(each) for each in (counts != 1).nonzero()[0])
            layer = self.layers[place[0]] if place else None
            selected = self.positions if layer is None else f"{self.positions[layer]} at layer {layer}"
            count = int(counts[row, *place])
            raise ValueError(
                f"single() needs one position a prompt, but {selected} selected {count} of prompt {row}: use "
                ".values, or capture at last_token()."
            )
        if self.values.shape[2] == 1:
            return self.values[:, :, 0]
        where = known.int().argmax(-1).reshape(len(self), -1).expand(-1, len(self.layers))
        return self.values[torch.arange(len(self))[:, None], torch.arange(len(self.layers)), where]

    @checked
    def at_layer(self, place: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
        """`token_index` and `tokens` of the layer at a place of the layer axis."""
        if self.token_index.ndim == 2:
            return self.token_index, self.tokens
        return self.token_index[:, place], self.tokens[:, place]

    @checked
    def subset(self, rows: Rows) -> "Activations":
        """The same of some prompts: `rows` counted from 0, in the order given, or true and false a prompt."""
        rows = row_numbers(rows, len(self))
        texts = {
            name: tuple(getattr(self, name)[row] for row in rows) if getattr(self, name) else ()
            for name in TEXTS
        }
        return replace(
            self,
            values=self.values[rows],
            token_index=self.token_index[rows],
            tokens=self.tokens[rows],
            prompt_lengths=self.prompt_lengths[rows],
            **texts,
        )


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy's numbers are plain ones, what is missing is null, the rest text."""
    if isinstance(value, np.generic):
        return value.item()
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _dtype(column: pd.Series) -> str | dict[str, Any]:
    """A column's dtype as JSON."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return {"categories": column.cat.categories.tolist(), "ordered": bool(column.cat.ordered)}
    return str(column.dtype)


def _written(positions: Positions | Mapping[int, Positions]) -> str | dict[str, str]:
    """Positions as a file has them: as they are written, or so by layer."""
    if isinstance(positions, Mapping):
        return {str(layer): each.label for layer, each in positions.items()}
    return positions.label


def _read(written: str | dict[str, str]) -> Positions | dict[int, Positions]:
    if isinstance(written, dict):
        return {int(layer): parse_positions(each) for layer, each in written.items()}
    return parse_positions(written)


def _where(held: "Activations | PairedActivations") -> str:
    layers = f"layer {held.layers[0]}" if len(held.layers) == 1 else f"{len(held.layers)} layers"
    return f"{held.hook} of {layers}, {held.identity.name}"


def _require_shapes(held: Activations) -> None:
    """What a file may have got wrong: as many of everything as there are prompts, layers and positions."""
    if not all(type(layer) is int and 0 <= layer < held.identity.n_layers for layer in held.layers):
        raise ValueError(f"layers {list(held.layers)} of a model that has {held.identity.n_layers}")
    if not all(isinstance(text, str) for text in (*held.prompts, *held.completions, *held.under, held.hook)):
        raise ValueError("prompts, completions, edits and the hook must be text")
    prompts, layers = len(held), len(held.layers)
    positions = held.values.shape[2] if held.values.ndim == 4 else -1
    by_layer = isinstance(held.positions, Mapping)
    if by_layer and tuple(held.positions) != held.layers:
        raise ValueError(f"positions of the layers {list(held.positions)}, not of {list(held.layers)}")
    indexed = (prompts, layers, positions) if by_layer else (prompts, positions)
    wanted = {
        "values": (prompts, layers, positions, held.values.shape[-1]),
        "token_index": indexed,
        "tokens": indexed,
        "prompt_lengths": (prompts,),
        "stream_norm": (layers,),
    }
    for name, shape in wanted.items():
        if tuple(getattr(held, name).shape) != shape:
            raise ValueError(f"{name} has shape {tuple(getattr(held, name).shape)}, not {shape}")


@checked
@dataclass(frozen=True, eq=False)
class PairedActivations:
    """The two sides of contrast pairs, row by row.

    Attributes:
        positive, negative: activations of each side, with the same layers, hook and positions.
        factors: a row a pair; "group" names what a split must keep together.
    """

    positive: Activations
    negative: Activations
    factors: pd.DataFrame

    def __post_init__(self) -> None:
        if not len(self.positive) == len(self.negative) == len(self.factors):
            raise ValueError(
                f"{len(self.positive)} positive, {len(self.negative)} negative prompts and "
                f"{len(self.factors)} rows of factors: pairs need as many of each."
            )
        for name in ("layers", "hook"):
            if getattr(self.positive, name) != getattr(self.negative, name):
                raise ValueError(f"the two sides were captured at different {name}.")
        if self.positive.token_index.ndim != self.negative.token_index.ndim:
            raise ValueError(
                "one of the two sides alone was captured at positions of its own for each layer."
            )
        self.positive.identity.require(self.negative.identity, what="the positive side")

    def __len__(self) -> int:
        return len(self.positive)

    def __repr__(self) -> str:
        return f"PairedActivations({len(self)} pairs at {self.positive.positions}, {_where(self)})"

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of both sides."""
        return self.positive.layers

    @property
    def hook(self) -> str:
        """Hook of both sides."""
        return self.positive.hook

    @property
    def stream_norm(self) -> Float[Tensor, " layer"]:
        """Typical norm at each layer, over the prompts of both sides; of two captures the mean of theirs."""
        return torch.stack([self.positive.stream_norm, self.negative.stream_norm]).nanmean(dim=0)

    @property
    def identity(self) -> ModelIdentity:
        """The model both sides came from."""
        return self.positive.identity

    def sides(self) -> tuple[Float[Tensor, "pair layer d_hook"], Float[Tensor, "pair layer d_hook"]]:
        """Positive and negative values, one position each.

        Raises:
            ValueError: several positions a prompt; or NaN or infinite values, of which no estimate is made.
        """
        sides = self.positive.single(), self.negative.single()
        for name, values in zip(("positive", "negative"), sides, strict=True):
            if not bool(torch.isfinite(values).all()):
                row, place = (int(each) for each in (~torch.isfinite(values)).nonzero()[0][:2])
                raise ValueError(
                    f"the {name} prompt {row} has NaN or infinite activations at layer {self.layers[place]}: "
                    "capture again (in float32, if the model overflows), or leave the pair out with subset."
                )
        return sides

    @checked
    def subset(self, rows: Rows) -> "PairedActivations":
        """The same of some pairs: `rows` counted from 0, in the order given, or true and false a pair."""
        rows = row_numbers(rows, len(self))
        factors = self.factors.iloc[rows].reset_index(drop=True)
        return PairedActivations(self.positive.subset(rows), self.negative.subset(rows), factors)

    @checked
    def swapped(self, flips: Sequence[bool]) -> "PairedActivations":
        """The same with the sides of some pairs exchanged: a null in which the labels mean nothing.

        Args:
            flips: for each pair, whether its sides are exchanged.

        Raises:
            ValueError: not one a pair.
        """
        flips = [bool(each) for each in flips]
        if len(flips) != len(self):
            raise ValueError(f"{len(flips)} flips for {len(self)} pairs: give one for each.")
        flip = torch.tensor(flips)

        def mixed(mine: Activations, other: Activations) -> Activations:
            choose = {
                name: torch.where(
                    flip.view(-1, *[1] * (getattr(mine, name).ndim - 1)),
                    getattr(other, name),
                    getattr(mine, name),
                )
                for name in ("values", "token_index", "tokens", "prompt_lengths")
            }
            texts = {
                name: tuple(
                    theirs if flipped else own
                    for own, theirs, flipped in zip(
                        getattr(mine, name), getattr(other, name), flips, strict=False
                    )
                )
                for name in TEXTS
            }
            # Where only some are exchanged, a side has some of each.
            under = tuple(dict.fromkeys((*mine.under, *other.under))) if any(flips) else mine.under
            return replace(mine, under=under, **texts, **choose)

        return PairedActivations(
            mixed(self.positive, self.negative), mixed(self.negative, self.positive), self.factors
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file at `path`, with everything else as JSON in its metadata.

        The file is there whole or not at all.

        Raises:
            OSError: the file cannot be written; one that was there before stays as it was.
        """
        sides = {"positive": self.positive, "negative": self.negative}
        tensors = {
            # Copied, but for the largest: safetensors refuses tensors that the two sides share.
            f"{name}.{tensor}": getattr(side, tensor).contiguous().clone()
            if tensor != "values"
            else side.values.contiguous()
            for name, side in sides.items()
            for tensor in SIDE_TENSORS
        }
        described = {
            "layers": self.layers,
            "hook": self.hook,
            **{name: side.prompts for name, side in sides.items()},
            "labels": {name: [prompt_label(each) for each in side.prompts] for name, side in sides.items()},
            "positions": {name: _written(side.positions) for name, side in sides.items()},
            **{text: {name: getattr(side, text) for name, side in sides.items()} for text in SIDE_TEXTS},
            "factors": self.factors.to_dict(orient="list"),
            "factor_dtypes": {name: _dtype(column) for name, column in self.factors.items()},
        }
        metadata = {
            "format": FORMAT,
            **{f"{name}.identity": side.identity.to_json() for name, side in sides.items()},
            "description": json.dumps(described, default=_plain),
        }
        with atomic(path) as scratch:
            # Not `save_file`: it has a scratch file of its own, which a kill leaves behind.
            scratch.write_bytes(safetensors_of(tensors, metadata=metadata))
        logger.info("wrote %s: %d pairs at %s of %d layers", path, len(self), self.hook, len(self.layers))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "PairedActivations":
        """Read what `save` wrote at `path`.

        Raises:
            ValueError: another kind of file, or a damaged one.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a safetensors file; pickles are never loaded ({error})."
            ) from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} does not hold paired activations ({FORMAT!r}).")
        try:
            return cls._restored(metadata, tensors)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error

    @classmethod
    def _restored(cls, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> "PairedActivations":
        described = json.loads(metadata["description"])

        # Files of earlier versions have positions, norms and identity once, and neither labels, the tokens of
        # completions, edits nor types of factors.
        def side(name: str) -> Activations:
            own = {each: tensors[f"{name}.{each}"] for each in SIDE_TENSORS if each != "stream_norm"}
            texts = {text: described.get(text, {}).get(name, ()) for text in SIDE_TEXTS}
            positions = described["positions"]
            labels = described.get("labels", {}).get(name, described[name])
            result = Activations(
                **own,
                stream_norm=tensors["stream_norm" if "stream_norm" in tensors else f"{name}.stream_norm"],
                layers=tuple(described["layers"]),
                hook=described["hook"],
                positions=_read(positions if isinstance(positions, str) else positions.get(name, positions)),
                prompts=tuple(
                    prompt if prompt == label else ChatPrompt(prompt, label)
                    for prompt, label in zip(described[name], labels, strict=False)  # counted below
                ),
                identity=ModelIdentity.from_json(metadata.get("identity") or metadata[f"{name}.identity"]),
                completions=tuple(texts["completions"]),
                completion_tokens=tuple(map(tuple, texts["completion_tokens"])),
                under=tuple(texts["under"]),
            )
            _require_shapes(result)
            return result

        positive = side("positive")
        factors = pd.DataFrame(described["factors"], index=range(len(positive)))
        for name, dtype in described.get("factor_dtypes", {}).items():
            factors[name] = factors[name].astype(
                pd.CategoricalDtype(**dtype) if isinstance(dtype, dict) else dtype
            )
        return cls(positive, side("negative"), factors)
