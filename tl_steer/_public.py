"""The public names of `tl_steer`, which imports this module when the first of them is used."""

# ruff: noqa: F401
import transformer_lens  # first, because importing it after the others takes 0.1 s longer

from . import analysis, errors, evaluation, organisms, plots, prompts, texts
from ._capture import capture, capture_pairs
from ._generation import generate
from ._report import report
from ._scoring import choice_logits
from ._util.logs import show_logs
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
