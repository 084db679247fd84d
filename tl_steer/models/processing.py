"""TransformerLens's processing of weights: which steps were asked for, and which leave predictions alone."""

import logging
from collections.abc import Mapping
from typing import Any

from transformer_lens.utilities import softcap_enabled
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

logger = logging.getLogger(__name__)

PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
USUAL_PROCESSING = dict.fromkeys(PROCESSING[:4], True)


def processing_steps(processing: bool | Mapping[str, bool]) -> dict[str, bool]:
    """Each of TransformerLens's steps, and whether it was asked for."""
    chosen = (USUAL_PROCESSING if processing else {}) if isinstance(processing, bool) else dict(processing)
    if unknown := set(chosen) - set(PROCESSING):
        raise ValueError(
            f"unknown processing {sorted(unknown)}; TransformerLens has {', '.join(PROCESSING)}."
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
        impossible |= {"fold_ln", "center_writing_weights", "center_unembed"}
    if _has_sinks(cfg):  # a head's weights do not sum to 1, so that a value bias is not added whole
        impossible |= {"fold_value_biases"}
    if cfg.positional_embedding_type == "rotary":  # queries and keys are turned between the two matrices
        impossible |= {"refactor_factored_attn_matrices"}
    if left_out := sorted(step for step in impossible if steps[step]):
        logger.warning(
            "%s cannot have %s: left out, since its predictions would change; identify(model) says what is",
            cfg.model_name,
            ", ".join(left_out),
        )
    return {step: chosen and step not in impossible for step, chosen in steps.items()}


def _has_sinks(cfg: Any) -> bool:
    """Whether part of each head's attention goes to no token. A bridge's config does not tell."""
    return bool(getattr(cfg, "use_attention_sinks", False)) or architecture_of(cfg) == "GptOssForCausalLM"


def architecture_of(cfg: Any) -> str | None:
    """The Hugging Face class's name, as either kind of config has it."""
    return getattr(cfg, "architecture", None) or getattr(cfg, "original_architecture", None)
