"""Which model a vector belongs to, told from the model itself."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from .backend import is_bridge
from .bridge import is_folded, output_weight

FINGERPRINT_WEIGHTS = 256
TOLERANCE = 0.02  # of the fingerprint's length: bfloat16 rounds by 0.4 %, fine-tuning moves more

_digests: "WeakKeyDictionary[Any, tuple[int, str]]" = WeakKeyDictionary()


class ModelMismatchError(ValueError):
    """Something made for one model was given to another."""


@dataclass(frozen=True)
class ModelIdentity:
    """What has to agree for a vector to mean the same in two models.

    Attributes:
        name: TransformerLens's name for it, for messages; not compared.
        revision: the Hub's commit, where known; not compared.
        n_layers, d_model, n_heads, d_head: shapes.
        normalization: `HookedTransformer`'s `normalization_type`; "LNPre" and "RMSPre" are folded.
        centred: whether the weights that write to the stream were centred (measured on `W_E`).
        tokenizer: digest of the vocabulary; "" without a tokenizer. Told, not compared.
        fingerprint: 256 fixed entries of `W_O` in the first, middle and last block, or () where the weights
            cannot be read (4-bit).
    """

    name: str
    revision: str | None
    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    normalization: str
    centred: bool
    tokenizer: str
    fingerprint: tuple[float, ...]

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
            warnings.warn(
                f"cannot compare the weights of {self.name} and {other.name} (4-bit ones have no "
                "fingerprint): make sure yourself that both are the same model.",
                stacklevel=3,
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
        if len(self.fingerprint) != len(other.fingerprint):
            return float("inf")
        mine, theirs = (torch.tensor(identity.fingerprint, dtype=torch.float64) for identity in (self, other))
        return float((mine - theirs).norm() / mine.norm())


def _require_kinds(values: Mapping[str, Any]) -> None:
    """What a file may have got wrong: texts, counts, and a fingerprint of finite numbers or of none."""
    counts = all(
        type(values[name]) is int and values[name] > 0
        for name in ("n_layers", "d_model", "n_heads", "d_head")
    )
    texts = all(isinstance(values[name], str) for name in ("name", "normalization", "tokenizer"))
    kinds = isinstance(values["centred"], bool) and isinstance(values["revision"], str | None)
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


def identify(model: Any) -> ModelIdentity:
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
        centred=_is_centred(model.W_E),
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


def _fingerprint(model: Any) -> tuple[float, ...]:
    last = model.cfg.n_layers - 1
    values: list[float] = []
    for layer, count in zip((0, last // 2, last), (86, 85, 85), strict=True):
        weight = output_weight(model, layer) if is_bridge(model) else model.blocks[layer].attn.W_O
        if weight is None or not weight.is_floating_point():
            return ()
        # A fixed walk over logical indices: memory layout and device do not matter.
        flat = (torch.arange(count) * 7919 + 104729) % weight.numel()
        heads, inner, outer = (index.to(weight.device) for index in torch.unravel_index(flat, weight.shape))
        values += weight[heads, inner, outer].float().tolist()
    return tuple(float(f"{value:.6g}") for value in values)


def _vocabulary_digest(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    size, digest = _digests.get(tokenizer, (-1, ""))
    if size != len(tokenizer):
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        digest = hashlib.sha256(vocabulary).hexdigest()[:16]
        _digests[tokenizer] = (len(tokenizer), digest)
    return digest
