"""Find directions in a language model's residual stream, look at them, and steer with them.

contrast pairs -> capture_pairs -> mean_difference (…) -> steer, generate, sweep -> tables -> plots
"""

import transformer_lens  # noqa: F401  # first, because importing it after the others takes 0.1 s longer

from . import analysis, errors, evaluation, organisms, plots, prompts, texts
from ._capture import capture, capture_pairs
from ._generation import generate
from ._scoring import choice_logits
from ._util.logs import logs_from_environment, show_logs
from .activations import Activations, PairedActivations
from .analysis import agreement, logit_lens, pca, projections, separation, traces
from .directions import (
    SteeringVector,
    SteeringVectors,
    control_vectors,
    exchange,
    lda_direction,
    logistic_direction,
    mean_difference,
    principal_component,
    random_direction,
)
from .engine.paths import explain
from .evaluation import against_controls, choose, effectiveness, signal_detection, steerability
from .interventions import Ablate, Add, ProjectOut, SetProjection, steer
from .models import chat_format, get_model, identify, load_model, tokenize
from .positions import (
    after,
    all_tokens,
    current_token,
    generated_tokens,
    last_token,
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
    read_claims,
    read_pairs,
)
from .recipes import activation_addition, steering_vector, vectors_from_pairs
from .sweeps import damage, sweep
from .texts import read_choice
from .verification import verify

logs_from_environment()

__all__ = [
    "Ablate", "Activations", "Add", "ChoiceQuestions", "ContrastPairs", "PairedActivations", "ProjectOut",
    "SetProjection", "SteeringVector", "SteeringVectors", "activation_addition", "after",
    "against_controls", "agreement", "all_tokens", "analysis", "audit", "capture", "capture_pairs",
    "chat_format", "choice_logits", "choose", "claim_questions", "contrast_pairs", "control_vectors",
    "current_token", "damage", "effectiveness", "errors", "evaluation", "exchange", "explain", "generate",
    "generated_tokens", "get_model", "honesty_pairs", "identify", "last_token", "lda_direction",
    "load_model", "logistic_direction", "logit_lens", "mean_difference", "organisms", "pca", "plots",
    "preview", "principal_component", "projections", "prompt_tokens", "prompts", "random_direction",
    "read_choice", "read_claims", "read_pairs", "separation", "show_logs", "signal_detection", "span",
    "steer", "steerability", "steering_vector", "sweep", "texts", "token", "tokenize", "tokens_matching",
    "traces", "vectors_from_pairs", "verify",
]  # fmt: skip
