"""Identify the model that a vector belongs to, from the model itself."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from annotated_types import Gt, Interval
from jaxtyping import Float
from torch import Tensor

from .._util.validation import checked, short_repr, warn
from ..errors import ModelMismatchError
from .backend import HookedModel, is_bridge
from .bridge import block_weight, is_folded, not_in_memory

# Number of entries by weight. New weights go to the end: older files are compared by the ones they have.
FINGERPRINT_PARTS = {"W_O": 256, "W_Q": 96, "W_V": 96, "W_out": 64}
TOLERANCE = 0.02  # of the length of each part: bfloat16 rounds by 0.4 %, fine-tuning moves more
COMPARED = ("n_layers", "d_model", "n_heads", "d_head", "normalization", "centred")

_digests: "WeakKeyDictionary[Any, tuple[int, str]]" = WeakKeyDictionary()


@dataclass(frozen=True)
class ModelIdentity:
    """The properties of a model that must agree for a vector to mean the same in another one.

    Attributes:
        name: TransformerLens's name, for messages; not compared.
        revision: the Hub's commit, if known; not compared.
        n_layers, d_model, n_heads, d_head: shapes.
        normalization: `HookedTransformer`'s `normalization_type`; "LNPre" and "RMSPre" are folded.
        centred: how the weights that write to the residual stream are centred: False, True (over d_model;
            measured on `W_E`), or "scalar" (by one mean of all entries; measured on `W_O`).
        tokenizer: digest of the vocabulary, "" without a tokenizer; not compared.
        fingerprint: fixed entries of the first, middle and last block: 256 of `W_O`, 96 of `W_Q`, 96 of `W_V`
            and 64 of `W_out`, up to the first weight that cannot be read (experts have no `W_out`); () if
            none can (4-bit). Older files have those of `W_O` only.
    """

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid"}

    name: str
    revision: str | None
    n_layers: Annotated[int, Gt(0)]
    d_model: Annotated[int, Gt(0)]
    n_heads: Annotated[int, Gt(0)]
    d_head: Annotated[int, Gt(0)]
    normalization: str
    centred: bool | Literal["scalar"]
    tokenizer: str
    fingerprint: tuple[Annotated[float, Interval(gt=-1e30, lt=1e30)], ...]

    __repr__ = short_repr

    def require(
        self, other: "ModelIdentity", *, force: bool = False, what: str = "this vector", hint: str = ""
    ) -> None:
        """Raise ModelMismatchError if `other`, the model in use, has other shapes, processing or weights.

        Args:
            other: the identity of the model in use.
            force: accept other weights of the same shapes and processing.
            what: the object that belongs to this model, for the message.
            hint: added to the message if only the weights differ.
        """
        differences = [
            f"{name}: {getattr(self, name)} against {getattr(other, name)}"
            for name in COMPARED
            if getattr(self, name) != getattr(other, name)
        ]
        mismatch = f"{what}, made on {self.name}, cannot be used with {other.name}:"
        if differences:
            raise ModelMismatchError(
                f"{mismatch} {'; '.join(differences)}. Make it on this model, or load the model with the "
                "same processing=…; force=True does not help."
            )
        if not (self.fingerprint and other.fingerprint):
            warn(
                f"cannot compare the weights of {self.name} and {other.name} (4-bit weights have no "
                "fingerprint): make sure that both are the same model."
            )
        elif not force and not self._distance(other) <= TOLERANCE:  # true for NaN
            raise ModelMismatchError(f"{mismatch} the weights differ.{hint}")

    def same_model(self, other: "ModelIdentity") -> bool:
        """Whether `require` accepts `other`."""
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
        """Read `to_json`'s text.

        Raises:
            ValueError: a key is missing or unknown, or a value is not valid.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ValueError(f"not a model identity: {key or 'text'}: {first['msg']}.") from error

    def _distance(self, other: "ModelIdentity") -> float:
        """Largest relative distance of a weight that both have, so that one changed weight is not diluted."""
        pairs = list(zip(self._parts(), other._parts(), strict=False))
        if any(len(one) != len(two) for one, two in pairs):
            return float("inf")
        # torch's max, since Python's may miss NaN.
        return float(torch.stack([(one - two).norm() / one.norm() for one, two in pairs]).max())

    def _parts(self) -> list[Tensor]:
        """The fingerprint's entries by weight."""
        values = torch.tensor(self.fingerprint, dtype=torch.float64)
        ends = list(itertools.accumulate(FINGERPRINT_PARTS.values()))
        return [part for part in values.tensor_split(ends) if len(part)]


@checked
def identify(model: HookedModel) -> ModelIdentity:
    """The identity of any TransformerLens model; a bridge has that of the `HookedTransformer` it equals."""
    cfg, revision, folded = model.cfg, getattr(model, "revision", None), False
    if is_bridge(model):
        revision = getattr(getattr(model.original_model, "config", None), "_commit_hash", None)
        folded = is_folded(model)
    return ModelIdentity(
        name=cfg.model_name,
        revision=revision,
        n_layers=cfg.n_layers,
        d_model=cfg.d_model,
        n_heads=cfg.n_heads,
        d_head=cfg.d_head,
        normalization=f"{cfg.normalization_type}{'Pre' if folded else ''}",
        centred=_is_centred(model.W_E) or ("scalar" if _is_scalar_centred(model) else False),
        tokenizer=_vocabulary_digest(model.tokenizer),
        fingerprint=_fingerprint(model),
    )


def _is_centred(W_E: Float[Tensor, "d_vocab d_model"]) -> bool:
    rows = W_E[:512].float()
    return bool(rows.mean(-1).abs().mean() < 1e-3 * rows.abs().mean())


def _is_scalar_centred(model: Any) -> bool:
    """Whether the mean of all entries of W_O is zero within rounding, in the first, middle and last block.

    In half precision one of some fifty random matrices is by chance, hence three blocks.
    """
    if model.cfg.normalization_type not in ("LN", "LNPre"):  # the processing step needs a LayerNorm
        return False
    for layer in set(_fixed_layers(model)):
        weight = _block_weight(model, layer, "W_O")
        if weight is None or not weight.is_floating_point() or weight.is_meta:
            return False
        rounding = 1e-7 + 4 * torch.finfo(weight.dtype).eps / weight.numel() ** 0.5
        # Row means on the weight's device, which may lack float64.
        mean, size = (each.float().mean(-1).cpu().double().mean() for each in (weight, weight.abs()))
        if not mean.abs() < rounding * size:
            return False
    return True


def _fixed_layers(model: Any) -> tuple[int, int, int]:
    last = model.cfg.n_layers - 1
    return 0, last // 2, last


def _fingerprint(model: Any) -> tuple[float, ...]:
    parts = (_entries(model, name, count) for name, count in FINGERPRINT_PARTS.items())
    readable = itertools.takewhile(bool, parts)  # up to the first weight that cannot be read
    return tuple(float(f"{value:.6g}") for value in itertools.chain.from_iterable(readable))


def _entries(model: Any, name: str, count: int) -> list[float]:
    """Entries of one weight in three blocks; [] if one of the three cannot be read."""
    values: list[float] = []
    for number, layer in enumerate(_fixed_layers(model)):
        weight = _block_weight(model, layer, name)
        if weight is None or not weight.is_floating_point():
            return []
        if weight.is_meta:
            raise not_in_memory(model.cfg.model_name)
        # Logical indices: memory layout and device do not matter.
        flat = (torch.arange((count + 2 - number) // 3) * 7919 + 104729) % weight.numel()
        index = torch.unravel_index(flat, weight.shape)
        values += weight[tuple(axis.to(weight.device) for axis in index)].float().tolist()
    return values


def _block_weight(model: Any, layer: int, name: str) -> Tensor | None:
    if is_bridge(model):
        return block_weight(model, layer, name)
    block = model.blocks[layer]
    if name == "W_out":
        return getattr(getattr(block, "mlp", None), name, None)
    grouped = f"_{name}"  # the weight of grouped heads; W_V itself repeats it for each head
    return getattr(block.attn, grouped if hasattr(block.attn, grouped) else name, None)


def _vocabulary_digest(tokenizer: Any) -> str:
    """Content hash of the vocabulary, recomputed if its size has changed; "" without a tokenizer."""
    if tokenizer is None:
        return ""
    size, digest = _digests.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        digest = hashlib.sha256(vocabulary).hexdigest()[:16]
        _digests[tokenizer] = (len(tokenizer), digest)
    return digest
