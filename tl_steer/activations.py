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
        prompts, prompt_lengths: each prompt's text and number of tokens.
        layers, hook: 0-based block indices, in the order of the axis, and short hook name.
        positions: the selection, or one per layer.
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
        """The values, one position per prompt and layer. Raises ValueError for more or fewer."""
        known = self.token_index >= 0
        counts = known.sum(-1)
        if wrong := (counts != 1).nonzero().tolist():
            row, *index = wrong[0]
            layers = [self.layers[each] for each in index]
            selection = f"{self.positions[layers[0]]} at layer {layers[0]}" if layers else self.positions
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
        rows = row_numbers(rows, len(self))
        changed: dict[str, Any] = {name: getattr(self, name)[rows] for name in ROW_TENSORS}
        for name in ROW_TEXTS:
            texts = getattr(self, name)
            changed[name] = tuple(texts[row] for row in rows) if texts else ()
        return replace(self, **changed)


def _where(activations: "Activations | PairedActivations") -> str:
    layers = activations.layers
    count = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{activations.hook} of {count}, {activations.identity.name}"


@checked
@dataclass(frozen=True, eq=False)
class PairedActivations:
    """The two sides of contrast pairs, row by row.

    Attributes:
        positive, negative: activations of each side, with the same layers and hook.
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
        """Positive and negative values. Raises ValueError for several positions, NaN or infinity."""
        sides = self.positive.single(), self.negative.single()
        for name, values in zip(("positive", "negative"), sides, strict=True):
            if not bool(torch.isfinite(values).all()):
                row, index, _ = (~torch.isfinite(values)).nonzero()[0].tolist()
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
        return PairedActivations(self.positive.subset(rows), self.negative.subset(rows), factors)

    @checked
    def swapped(self, flips: Sequence[bool]) -> "PairedActivations":
        """Swap the sides of some pairs, as a null hypothesis in which the labels mean nothing.

        `flips` says for each pair whether its sides are swapped. Raises ValueError for another number.
        """
        if len(flips) != len(self):
            raise ValueError(f"{len(flips)} flips for {len(self)} pairs: give one for each.")
        if not any(flips):
            return self
        flip = torch.tensor(list(map(bool, flips)))

        def mixed(own: Activations, other: Activations) -> Activations:
            changed: dict[str, Any] = {"under": tuple(dict.fromkeys((*own.under, *other.under)))}
            for name in ROW_TENSORS:
                one, two = getattr(own, name), getattr(other, name)
                changed[name] = torch.where(flip.view(-1, *[1] * (one.ndim - 1)), two, one)
            for name in ROW_TEXTS:  # either has one per prompt, or none
                texts = zip(flips, getattr(own, name), getattr(other, name), strict=False)
                changed[name] = tuple(two if is_flipped else one for is_flipped, one, two in texts)
            return replace(own, **changed)

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
        tensors = {}
        for name, side in sides.items():
            tensors[f"{name}.values"] = side.values.contiguous()
            for field in (*ROW_TENSORS[1:], "stream_norm"):  # cloned: safetensors rejects shared tensors
                tensors[f"{name}.{field}"] = getattr(side, field).contiguous().clone()
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
        metadata = {"format": FORMAT, "description": json.dumps(description, default=_plain)}
        metadata |= {f"{name}.identity": side.identity.to_json() for name, side in sides.items()}
        write_safetensors(path, tensors, metadata)
        logger.info("wrote %s: %d pairs at %s of %d layers", path, len(self), self.hook, len(self.layers))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "PairedActivations":
        """Read a file that `save` wrote at `path`. Raises ValueError for other or damaged files."""
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
    labels = description.get("labels", {}).get(side, description[side])
    positions = description["positions"]
    positions = positions if isinstance(positions, str) else positions.get(side, positions)
    if isinstance(positions, dict):
        positions = {int(layer): parse_positions(each) for layer, each in positions.items()}
    else:
        positions = parse_positions(positions)
    activations = Activations(
        **{name: tensors[f"{side}.{name}"] for name in ROW_TENSORS},
        stream_norm=tensors["stream_norm" if "stream_norm" in tensors else f"{side}.stream_norm"],
        layers=tuple(description["layers"]),
        hook=description["hook"],
        positions=positions,
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
    if not all(0 <= layer < n_layers for layer in layers):
        raise ValueError(f"layers {list(layers)} of a model that has {n_layers}")
    if by_layer and tuple(activations.positions) != layers:
        raise ValueError(f"positions of the layers {list(activations.positions)}, not of {list(layers)}")
    prompts, _, positions, width = len(activations), *activations.values.shape[1:]
    indexed = (prompts, len(layers), positions) if by_layer else (prompts, positions)
    expected = {
        "values": (prompts, len(layers), positions, width),
        "token_index": indexed,
        "tokens": indexed,
        "prompt_lengths": (prompts,),
        "stream_norm": (len(layers),),
    }
    for name, shape in expected.items():
        if (actual := tuple(getattr(activations, name).shape)) != shape:
            raise ValueError(f"{name} has shape {actual}, not {shape}")


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
    is_mapping = isinstance(positions, Mapping)
    return {str(layer): each.label for layer, each in positions.items()} if is_mapping else positions.label
