"""Find directions in a language model's residual stream, look at them, and steer with them.

contrast pairs -> capture_pairs -> mean_difference (…) -> steer, generate, sweep -> tables -> plots
"""

import transformer_lens  # noqa: F401  # the longest import: a tenth of a second longer behind the others

from . import plots
from .activations import Activations, PairedActivations
from .analysis import pca, projections, separation
from .capture import capture, capture_pairs
from .choices import choice_logits
from .directions import (
    SteeringVector,
    SteeringVectors,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
)
from .evaluation import choose, effectiveness, read_choice, signal_detection, sweep
from .generation import generate
from .interventions import Ablate, Add, HookDidNotFireError, NonFiniteError, ProjectOut, SetProjection, steer
from .models import (
    ChatFormat,
    ModelIdentity,
    ModelMismatchError,
    ModelUnavailableError,
    chat_format,
    get_model,
    identify,
    load_model,
    restore_layout,
    tokenize,
)
from .positions import (
    EmptySelectionError,
    Positions,
    after,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
    parse_positions,
    preview,
    prompt_tokens,
    span,
    token,
    tokens_matching,
)
from .prompts import (
    ChoiceQuestions,
    ContrastPairs,
    audit,
    claim_questions,
    contrast_pairs,
    honesty_pairs,
    misconception_questions,
    read_claims,
    read_dilemmas,
    read_misconceptions,
    read_pairs,
    read_reviews,
    sentiment_questions,
)
from .recipes import activation_addition, vectors_from_pairs

__all__ = [
    "Ablate",
    "Activations",
    "Add",
    "ChatFormat",
    "ChoiceQuestions",
    "ContrastPairs",
    "EmptySelectionError",
    "HookDidNotFireError",
    "ModelIdentity",
    "ModelMismatchError",
    "ModelUnavailableError",
    "NonFiniteError",
    "PairedActivations",
    "Positions",
    "ProjectOut",
    "SetProjection",
    "SteeringVector",
    "SteeringVectors",
    "activation_addition",
    "after",
    "all_tokens",
    "audit",
    "capture",
    "capture_pairs",
    "chat_format",
    "choice_logits",
    "choose",
    "claim_questions",
    "contrast_pairs",
    "current_token",
    "effectiveness",
    "generate",
    "generated_tokens",
    "get_model",
    "honesty_pairs",
    "identify",
    "last_token",
    "lda_direction",
    "load_model",
    "logistic_direction",
    "mean_difference",
    "misconception_questions",
    "parse_positions",
    "pca",
    "plots",
    "preview",
    "principal_component",
    "projections",
    "prompt_tokens",
    "random_direction",
    "read_choice",
    "read_claims",
    "read_dilemmas",
    "read_misconceptions",
    "read_pairs",
    "read_reviews",
    "restore_layout",
    "sentiment_questions",
    "separation",
    "signal_detection",
    "span",
    "steer",
    "sweep",
    "token",
    "tokenize",
    "tokens_matching",
    "vectors_from_pairs",
]
