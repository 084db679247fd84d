"""Which model a vector belongs to, told from the model itself."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked, short_repr, warn
from ..errors import ModelMismatchError
from .backend import HookedModel, is_bridge
from .bridge import block_weight, is_folded, not_in_memory

# How many entries of which weights. New ones go to the end: older files are compared by what they have.
FINGERPRINT_PARTS = {"W_O": 256, "W_Q": 96, "W_V": 96, "W_out": 64}
TOLERANCE = 0.02  # of the length of each part: bfloat16 rounds by 0.4 %, fine-tuning moves more

_digests: "WeakKeyDictionary[Any, tuple[int, str]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelIdentity:
    """What has to agree for a vector to mean the same in two models.

    Attributes:
        name: TransformerLens's name for it, for messages; not compared.
        revision: the Hub's commit, where known; not compared.
        n_layers, d_model, n_heads, d_head: shapes.
        normalization: `HookedTransformer`'s `normalization_type`; "LNPre" and "RMSPre" are folded.
        centred: how the weights that write to the residual stream were centred: False, True (over d_model;
            measured on `W_E`), or "scalar" (by one mean of all entries; measured on `W_O`).
        tokenizer: digest of the vocabulary; "" without a tokenizer. Told, not compared.
        fingerprint: 256 fixed entries of `W_O` in the first, middle and last block, behind them 96 of `W_Q`,
            96 of `W_V` and 64 of `W_out`, up to the first of these that cannot be read (a mixture of
            experts has no `W_out`), so () where none can (4-bit). Older files have those of `W_O` alone.
    """

    name: str
    revision: str | None
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    normalization: str
    centred: bool | Literal["scalar"]
    tokenizer: str
    fingerprint: tuple[float, ...]

    __repr__ = short_repr

    def require(
        self, other: "ModelIdentity", *, force: bool = False, what: str = "this vector", hint: str = ""
    ) -> None:
        """Refuse `other` where it is not this model.

        Args:
            other: the identity of the model that it is to be used with.
            force: accept other weights of the same shapes and processing.
            what: the thing that belongs to this model, for the message.
            hint: added to the message where only the weights differ.

        Raises:
            ModelMismatchError: shapes or processing differ, or (without `force`) the weights do.
        """
        compared = ("n_layers", "d_model", "n_heads", "d_head", "normalization", "centred")
        differing = [name for name in compared if getattr(self, name) != getattr(other, name)]
        if differing:
            told = "; ".join(
                f"{name}: {getattr(self, name)} against {getattr(other, name)}" for name in differing
            )
            raise ModelMismatchError(
                f"{what}, made on {self.name}, cannot be used with {other.name}: {told}. Make "
                "anew what is of another model, or load with the same processing=…; force=True does not help."
            )
        if not (self.fingerprint and other.fingerprint):
            warn(
                f"cannot compare the weights of {self.name} and {other.name} (4-bit ones have no "
                "fingerprint): make sure yourself that both are the same model.",
            )
        elif not force and not self._distance(other) <= TOLERANCE:  # not so for NaN either
            raise ModelMismatchError(
                f"{what}, made on {self.name}, cannot be used with {other.name}: the weights differ.{hint}"
            )

    def same_model(self, other: "ModelIdentity") -> bool:
        """Whether `require` would accept `other`."""
        try:
            self.require(other)
        except ModelMismatchError:
            return False
        return True

    def to_json(self) -> str:
        """As JSON, for a file's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    @checked
    def from_json(cls, text: str) -> "ModelIdentity":
        """From `to_json`'s text.

        Raises:
            ValueError: not such a text.
        """
        values = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"not a model identity: expected the keys {sorted(names)}.")
        _require_kinds(values)
        return cls(**{**values, "fingerprint": tuple(values["fingerprint"])})

    def _distance(self, other: "ModelIdentity") -> float:
        """The largest of any weight that both have: a change of one is not diluted by the others."""
        mine, theirs = self._parts(), other._parts()
        common = min(len(mine), len(theirs))
        if [len(part) for part in mine[:common]] != [len(part) for part in theirs[:common]]:
            return float("inf")
        pairs = zip(mine[:common], theirs[:common], strict=True)
        # Not Python's max, which may miss NaN.
        return float(torch.stack([(one - two).norm() / one.norm() for one, two in pairs]).max())

    def _parts(self) -> list[Tensor]:
        """The fingerprint's numbers by weight, as far as it goes."""
        values = torch.tensor(self.fingerprint, dtype=torch.float64)
        ends = list(itertools.accumulate(FINGERPRINT_PARTS.values()))
        return [part for part in values.tensor_split(ends) if len(part)]


def _require_kinds(values: Mapping[str, Any]) -> None:
    """What a file may have got wrong: texts, counts, and a fingerprint of finite numbers or of none."""
    counts = all(
        type(values[name]) is int and values[name] > 0
        for name in ("n_layers", "d_model", "n_heads", "d_head")
    )
    texts = all(isinstance(values[name], str) for name in ("name", "normalization", "tokenizer"))
    centred = isinstance(values["centred"], bool) or values["centred"] == "scalar"
    kinds = centred and isinstance(values["revision"], str | None)
    weights = values["fingerprint"]
    finite = isinstance(weights, list) and all(
        type(each) in (int, float) and abs(each) < 1e30
        for each in weights  # not so for NaN either
    )
    if not (counts and texts and kinds and finite):
        raise ValueError(
            "not a model identity: counts must be whole numbers above 0, names texts, and the fingerprint "
            "finite numbers."
        )


@checked
def identify(model: HookedModel) -> ModelIdentity:
    """The identity of any model that TransformerLens runs, however it was loaded.

    A bridge has the identity of the `HookedTransformer` with the same weights.
    """
    cfg = model.cfg
    return ModelIdentity(
        name=cfg.model_name,
        revision=_revision(model),
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        normalization=_normalization(model),
        centred=_is_centred(model.W_E) or ("scalar" if _is_scalar_centred(model) else False),
        tokenizer=_vocabulary_digest(model.tokenizer),
        fingerprint=_fingerprint(model),
    )


def _revision(model: Any) -> str | None:
    if is_bridge(model):
        return getattr(getattr(model.original_model, "config", None), "_commit_hash", None)
    return getattr(model, "revision", None)


def _normalization(model: Any) -> str:
    folded = is_bridge(model) and is_folded(model)
    return f"{model.cfg.normalization_type}{'Pre' if folded else ''}"


def _is_centred(W_E: Float[Tensor, "d_vocab d_model"]) -> bool:
    rows = W_E[:512].float()
    return bool(rows.mean(-1).abs().mean() < 1e-3 * rows.abs().mean())


def _is_scalar_centred(model: Any) -> bool:
    """Whether the mean of all entries of W_O is zero but for rounding, in the first, middle and last block.

    In half precision by chance in one of some fifty random matrices, hence three.
    """
    if model.cfg.normalization_type not in ("LN", "LNPre"):  # no such step without a LayerNorm
        return False
    last = model.cfg.n_layers - 1
    return all(_has_zero_mean(_block_weight(model, layer, "W_O")) for layer in {0, last // 2, last})


def _has_zero_mean(weight: Tensor | None) -> bool:
    if weight is None or not weight.is_floating_point() or weight.is_meta:
        return False
    rounding = 1e-7 + 4 * torch.finfo(weight.dtype).eps / weight.numel() ** 0.5
    # Rows on the weight's device, which may lack float64.
    mean, size = (each.float().mean(-1).cpu().double().mean() for each in (weight, weight.abs()))
    return bool(mean.abs() < rounding * size)


def _fingerprint(model: Any) -> tuple[float, ...]:
    values: list[float] = []
    for name, count in FINGERPRINT_PARTS.items():
        found = _entries(model, name, count)
        if not found:
            break
        values += found
    return tuple(float(f"{value:.6g}") for value in values)


def _entries(model: Any, name: str, count: int) -> list[float]:
    """Of one weight in the first, middle and last block; none where one of the three cannot be read."""
    last = model.cfg.n_layers - 1
    values: list[float] = []
    for place, layer in enumerate((0, last // 2, last)):
        weight = _block_weight(model, layer, name)
        if weight is None or not weight.is_floating_point():
            return []
        if weight.is_meta:
            raise not_in_memory(model.cfg.model_name)
        # A fixed walk over logical indices: memory layout and device do not matter.
        flat = (torch.arange((count + 2 - place) // 3) * 7919 + 104729) % weight.numel()
        index = torch.unravel_index(flat, weight.shape)
        values += weight[tuple(axis.to(weight.device) for axis in index)].float().tolist()
    return values


def _block_weight(model: Any, layer: int, name: str) -> Tensor | None:
    return (block_weight if is_bridge(model) else _hooked_weight)(model, layer, name)


def _hooked_weight(model: Any, layer: int, name: str) -> Tensor | None:
    block = model.blocks[layer]
    if name == "W_out":
        return getattr(getattr(block, "mlp", None), name, None)
    shared = getattr(block.attn, f"_{name}", None)  # of grouped heads: W_V itself repeats it for each head
    return getattr(block.attn, name, None) if shared is None else shared


def _vocabulary_digest(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    size, digest = _digests.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        digest = hashlib.sha256(vocabulary).hexdigest()[:16]
        _digests[tokenizer] = (len(tokenizer), digest)
    return digest
