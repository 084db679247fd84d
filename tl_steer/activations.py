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
ROW_TENSORS = ("values", "token_index", "tokens", "prompt_lengths")  # fields with one row per prompt
ROW_TEXTS = ("prompts", "completions", "completion_tokens")  # the same, or ()
FILE_TEXTS = ("completions", "completion_tokens", "under")


@checked
@dataclass(frozen=True, eq=False)
class Activations:
    """Activations at the selected positions of some prompts, at some layers.

    Attributes:
        values: float32 on the CPU, positions padded on the right with NaN.
        token_index: each position's index in its unpadded prompt and completion, −1 where empty; with a layer
            axis where layers have different positions.
        tokens: the token id there, −1 where empty; same shape.
        prompt_lengths: tokens in each prompt.
        layers: 0-based block indices, in the order of the axis.
        hook: short hook name, "resid_post".
        positions: the selection, or one per layer.
        prompts: the prompts, as text.
        stream_norm: typical norm per layer: the median, over prompts, of each prompt's median norm over
            its positions except the first (where attention sinks are a hundred times larger); NaN where every
            prompt has one token. Under operations, that of the steered activations.
        identity: the model they came from.
        completions: generated or given completions, else ().
        completion_tokens: the ids of each, including the last one, which was not fed back.
        under: the operations during the capture, "Add(multiplier=2) at layer 3, resid_post, all_tokens()".
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
            row, *index = (int(each) for each in (counts != 1).nonzero()[0])
            layer = self.layers[index[0]] if index else None
            selection = self.positions if layer is None else f"{self.positions[layer]} at layer {layer}"
            raise ValueError(
                f"single() needs one position per prompt, but {selection} selected "
                f"{int(counts[row, *index])} of prompt {row}: use .values, or capture at last_token()."
            )
        if self.values.shape[2] == 1:
            return self.values[:, :, 0]
        where = known.int().argmax(-1).reshape(len(self), -1).expand(-1, len(self.layers))
        return self.values[torch.arange(len(self))[:, None], torch.arange(len(self.layers)), where]

    @checked
    def at_layer(self, index: int) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
        """`token_index` and `tokens` at an index of the layer axis."""
        if self.token_index.ndim == 2:
            return self.token_index, self.tokens
        return self.token_index[:, index], self.tokens[:, index]

    @checked
    def subset(self, rows: Rows) -> "Activations":
        """Some of the prompts: `rows` as indices from 0, in the order given, or as a mask."""
        return _selected(self, row_numbers(rows, len(self)))


def _selected(activations: Activations, rows: list[int]) -> Activations:
    tensors = {name: getattr(activations, name)[rows] for name in ROW_TENSORS}
    texts = {name: getattr(activations, name) for name in ROW_TEXTS}
    texts = {name: tuple(text[row] for row in rows) if text else () for name, text in texts.items()}
    return replace(activations, **tensors, **texts)


def _where(activations: "Activations | PairedActivations") -> str:
    layers = activations.layers
    count = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{activations.hook} of {count}, {activations.identity.name}"


@checked
@dataclass(frozen=True, eq=False)
class PairedActivations:
    """The two sides of contrast pairs, row by row.

    Attributes:
        positive, negative: activations of each side, with the same layers, hook and positions.
        factors: one row per pair; "group" names what a split must keep together.
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
            raise ValueError("only one of the two sides was captured at different positions per layer.")
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
        """Typical norm per layer: the mean of both sides'."""
        return torch.stack([self.positive.stream_norm, self.negative.stream_norm]).nanmean(dim=0)

    @property
    def identity(self) -> ModelIdentity:
        """The model both sides came from."""
        return self.positive.identity

    def sides(self) -> tuple[Float[Tensor, "pair layer d_hook"], Float[Tensor, "pair layer d_hook"]]:
        """Positive and negative values, one position each.

        Raises:
            ValueError: several positions per prompt, or NaN or infinite values.
        """
        sides = self.positive.single(), self.negative.single()
        for name, values in zip(("positive", "negative"), sides, strict=True):
            if not bool(torch.isfinite(values).all()):
                row, index = (int(each) for each in (~torch.isfinite(values)).nonzero()[0][:2])
                raise ValueError(
                    f"the {name} prompt {row} has NaN or infinite activations at layer {self.layers[index]}: "
                    "capture again (in float32, if the model overflows), or leave the pair out with subset."
                )
        return sides

    @checked
    def subset(self, rows: Rows) -> "PairedActivations":
        """Some of the pairs: `rows` as indices from 0, in the order given, or as a mask."""
        rows = row_numbers(rows, len(self))
        factors = self.factors.iloc[rows].reset_index(drop=True)
        return PairedActivations(_selected(self.positive, rows), _selected(self.negative, rows), factors)

    @checked
    def swapped(self, flips: Sequence[bool]) -> "PairedActivations":
        """Swap the sides of some pairs, as a null hypothesis in which the labels mean nothing.

        Args:
            flips: for each pair, whether its sides are swapped.

        Raises:
            ValueError: not one per pair.
        """
        if len(flips) != len(self):
            raise ValueError(f"{len(flips)} flips for {len(self)} pairs: give one for each.")
        if not any(flips):
            return self
        flip = torch.tensor(list(map(bool, flips)))

        def mixed(own: Activations, other: Activations) -> Activations:
            def fields(names: Sequence[str]) -> list[tuple[str, Any, Any]]:
                return [(name, getattr(own, name), getattr(other, name)) for name in names]

            tensors = {
                name: torch.where(flip.view(-1, *[1] * (one.ndim - 1)), two, one)
                for name, one, two in fields(ROW_TENSORS)
            }
            texts = {
                name: tuple(two[row] if flips[row] else one[row] for row in range(len(one)) if two)
                for name, one, two in fields(ROW_TEXTS)
            }
            under = tuple(dict.fromkeys((*own.under, *other.under)))
            return replace(own, **tensors, **texts, under=under)

        return PairedActivations(
            mixed(self.positive, self.negative), mixed(self.negative, self.positive), self.factors
        )

    @checked
    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file at `path`, with everything else as JSON in its metadata; atomically.

        Raises:
            OSError: the file cannot be written; an existing file stays as it was.
        """
        sides = {"positive": self.positive, "negative": self.negative}
        tensors = {
            # Copied, except the largest: safetensors rejects tensors that the two sides share.
            f"{side}.{name}": getattr(activations, name).contiguous()
            if name == "values"
            else getattr(activations, name).contiguous().clone()
            for side, activations in sides.items()
            for name in (*ROW_TENSORS, "stream_norm")
        }
        description = {
            "layers": self.layers,
            "hook": self.hook,
            **{name: side.prompts for name, side in sides.items()},
            "labels": {name: [prompt_label(each) for each in side.prompts] for name, side in sides.items()},
            "positions": {name: _positions_json(side.positions) for name, side in sides.items()},
            **{text: {name: getattr(side, text) for name, side in sides.items()} for text in FILE_TEXTS},
            "factors": self.factors.to_dict(orient="list"),
            "factor_dtypes": {name: _dtype_json(column) for name, column in self.factors.items()},
        }
        metadata = {
            "format": FORMAT,
            **{f"{name}.identity": side.identity.to_json() for name, side in sides.items()},
            "description": json.dumps(description, default=_plain),
        }
        write_safetensors(path, tensors, metadata)
        logger.info("wrote %s: %d pairs at %s of %d layers", path, len(self), self.hook, len(self.layers))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "PairedActivations":
        """Read a file that `save` wrote at `path`.

        Raises:
            ValueError: another type of file, or a damaged one.
        """
        metadata, tensors = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} does not hold paired activations ({FORMAT!r}).")
        try:
            description = json.loads(metadata["description"])
            sides = [_restored(side, description, metadata, tensors) for side in ("positive", "negative")]
            factors = pd.DataFrame(description["factors"], index=range(len(sides[0])))
            for name, dtype in description.get("factor_dtypes", {}).items():
                dtype = pd.CategoricalDtype(**dtype) if isinstance(dtype, dict) else dtype
                factors[name] = factors[name].astype(dtype)
            return cls(*sides, factors)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically."""
    with atomic(path) as scratch:
        # Not `save_file`: it has a scratch file of its own, which a kill leaves on the disk.
        scratch.write_bytes(safetensors_of(dict(tensors), metadata=dict(metadata)))


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. Raises ValueError for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file; pickles are never loaded ({error}).") from error


def _restored(
    side: str, description: Any, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Activations:
    """One side of a file. Earlier versions have positions, norms and identity once, and fewer fields."""
    texts = {name: description.get(name, {}).get(side, ()) for name in FILE_TEXTS}
    positions = description["positions"]
    positions = positions if isinstance(positions, str) else positions.get(side, positions)
    labels = description.get("labels", {}).get(side, description[side])
    activations = Activations(
        **{name: tensors[f"{side}.{name}"] for name in ROW_TENSORS},
        stream_norm=tensors["stream_norm" if "stream_norm" in tensors else f"{side}.stream_norm"],
        layers=tuple(description["layers"]),
        hook=description["hook"],
        positions={int(layer): parse_positions(each) for layer, each in positions.items()}
        if isinstance(positions, dict)
        else parse_positions(positions),
        prompts=tuple(
            prompt if prompt == label else ChatPrompt(prompt, label)
            for prompt, label in zip(description[side], labels, strict=False)  # counted in `_check_shapes`
        ),
        identity=ModelIdentity.from_json(metadata.get("identity") or metadata[f"{side}.identity"]),
        completions=tuple(texts["completions"]),
        completion_tokens=tuple(map(tuple, texts["completion_tokens"])),
        under=tuple(texts["under"]),
    )
    _check_shapes(activations)
    return activations


def _check_shapes(activations: Activations) -> None:
    """Check that a file has as many of everything as there are prompts, layers and positions."""
    layers, by_layer = activations.layers, isinstance(activations.positions, Mapping)
    n_layers = activations.identity.n_layers
    if not all(type(layer) is int and 0 <= layer < n_layers for layer in layers):
        raise ValueError(f"layers {list(layers)} of a model that has {n_layers}")
    texts = (*activations.prompts, *activations.completions, *activations.under, activations.hook)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("prompts, completions, operations and the hook must be text")
    if by_layer and tuple(activations.positions) != layers:
        raise ValueError(f"positions of the layers {list(activations.positions)}, not of {list(layers)}")
    values = activations.values
    positions = values.shape[2] if values.ndim == 4 else -1
    indexed = (len(activations), *([len(layers)] if by_layer else []), positions)
    expected = {
        "values": (len(activations), len(layers), positions, values.shape[-1]),
        "token_index": indexed,
        "tokens": indexed,
        "prompt_lengths": (len(activations),),
        "stream_norm": (len(layers),),
    }
    for name, shape in expected.items():
        if tuple(getattr(activations, name).shape) != shape:
            raise ValueError(f"{name} has shape {tuple(getattr(activations, name).shape)}, not {shape}")


def _plain(value: Any) -> Any:
    """JSON fallback: NumPy scalars become Python numbers, missing values null, everything else str."""
    if isinstance(value, np.generic):
        return value.item()
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)


def _dtype_json(column: pd.Series) -> str | dict[str, Any]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return {"categories": column.cat.categories.tolist(), "ordered": bool(column.cat.ordered)}
    return str(column.dtype)


def _positions_json(positions: Positions | Mapping[int, Positions]) -> str | dict[str, str]:
    if isinstance(positions, Mapping):
        return {str(layer): each.label for layer, each in positions.items()}
    return positions.label
