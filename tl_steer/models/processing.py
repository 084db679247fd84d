"""Processing of weights: TransformerLens's steps, one of the study's, and which leave predictions alone."""

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor
from transformer_lens.utilities import softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

logger = logging.getLogger(__name__)

SCALAR_CENTRING = "scalar_centring"  # not one of TransformerLens's
PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
    SCALAR_CENTRING,
)
USUAL_PROCESSING = dict.fromkeys(PROCESSING[:4], True)


def processing_steps(processing: bool | Mapping[str, bool]) -> dict[str, bool]:
    """Each processing step, and whether it was requested.

    Raises:
        ValueError: an unknown step, or both kinds of centring.
    """
    chosen = (USUAL_PROCESSING if processing else {}) if isinstance(processing, bool) else dict(processing)
    if unknown := set(chosen) - set(PROCESSING):
        raise ValueError(f"unknown processing {sorted(unknown)}: expected any of {', '.join(PROCESSING)}.")
    if chosen.get(SCALAR_CENTRING) and chosen.get("center_writing_weights"):
        raise ValueError(
            f"processing: {SCALAR_CENTRING} and center_writing_weights are two kinds of centring: give one."
        )
    return {step: bool(chosen.get(step, False)) for step in PROCESSING}


def possible_steps(steps: Mapping[str, bool], cfg: Any) -> dict[str, bool]:
    """Without what would change this architecture's predictions: what `from_pretrained` leaves out too."""
    impossible: set[str] = set()
    if softcap_enabled(cfg.output_logits_soft_cap):  # not invariant to a constant added to all logits
        impossible |= {"center_unembed"}
    if architecture_of(cfg) in POST_NORM_ARCHITECTURES:  # no norm before a sublayer to fold
        impossible |= {"fold_ln", "center_writing_weights"}
    if cfg.positional_embedding_type == "shortformer":
        impossible |= {"fold_ln", "center_writing_weights", "center_unembed", SCALAR_CENTRING}
    if architecture_of(cfg) in POST_NORM_ARCHITECTURES or cfg.normalization_type not in ("LN", "LNPre"):
        impossible |= {SCALAR_CENTRING}  # only a LayerNorm removes a constant added to the stream
    if _has_sinks(cfg):  # a head's weights do not sum to 1, so that a value bias is not added whole
        impossible |= {"fold_value_biases"}
    if cfg.positional_embedding_type == "rotary":  # queries and keys are turned between the two matrices
        impossible |= {"refactor_factored_attn_matrices"}
    if left_out := sorted(step for step in impossible if steps.get(step)):
        logger.warning(
            "%s cannot have %s: left out, since its predictions would change; identify(model) says what is",
            cfg.model_name,
            ", ".join(left_out),
        )
    return {step: chosen and step not in impossible for step, chosen in steps.items()}


def centre_by_scalars(weights: MutableMapping[str, Tensor]) -> None:
    """Subtract from each embedding, W_O, b_O, W_out and b_out its one mean over all entries, in place.

    The study did so with gpt2-xl's wte, wpe and c_proj. It adds one constant per position to all d_model
    numbers of the residual stream, which every LayerNorm removes. TransformerLens's `center_writing_weights`
    subtracts a mean over d_model per row instead. The unembedding is left alone, so that logits stay the
    same; with the study's tied weights, all logits of a position moved by one constant.
    """
    for name, weight in weights.items():
        if name.endswith(("embed.W_E", "pos_embed.W_pos", ".W_O", ".b_O", ".W_out", ".b_out")):
            weights[name] = (weight - weight.double().mean()).to(weight.dtype)


def _has_sinks(cfg: Any) -> bool:
    """Whether part of each head's attention goes to no token. A bridge's config does not tell."""
    return bool(getattr(cfg, "use_attention_sinks", False)) or architecture_of(cfg) == "GptOssForCausalLM"


def architecture_of(cfg: Any) -> str | None:
    """The Hugging Face class's name, as either kind of config has it."""
    return getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", None)
