"""Find directions in a language model's residual stream, look at them, and steer with them.

contrast pairs -> capture_pairs -> mean_difference (…) -> steer, generate, sweep -> tables -> plots

PyTorch and TransformerLens are imported when the first public name is used, not with the package.
"""

# ruff: noqa: F403, F405 (names of the star import)
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._util.logs import logs_from_environment

if TYPE_CHECKING:
    from ._public import *

logs_from_environment()

__all__ = [
    "Ablate", "Activations", "Add", "ChoiceQuestions", "PairedActivations", "ProjectOut",
    "SetProjection", "SteeringVector", "SteeringVectors", "activation_addition", "after",
    "against_controls", "agreement", "all_tokens", "analysis", "audit", "capture", "capture_pairs",
    "chat_format", "choice_logits", "choose", "claim_questions", "contrast_pairs", "control_vectors",
    "current_token", "damage", "effectiveness", "errors", "evaluation", "exchange", "explain", "generate",
    "generated_tokens", "get_model", "honesty_pairs", "identify", "last_token", "lda_direction",
    "load_model", "logistic_direction", "logit_lens", "mean_difference", "organisms", "pca", "plots",
    "preview", "principal_component", "projections", "prompt_tokens", "prompts", "random_direction",
    "read_choice", "read_claims", "read_pairs", "report", "separation", "show_logs", "signal_detection",
    "span", "steer", "steerability", "steering_vector", "sweep", "texts", "token", "tokenize",
    "tokens_matching", "traces", "vectors_from_pairs", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import all public names and subpackages when the first of them is used."""
    if not name.startswith("_"):
        try:
            public = import_module("._public", __name__)
        except AttributeError as error:  # `from tl_steer import …` would hide it
            raise ImportError(f"tl_steer cannot be imported: {error}") from error
        for each in __all__:
            globals().setdefault(each, getattr(public, each))
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; dir({__name__}) lists its names.")


def __dir__() -> list[str]:
    packages = ["directions", "models", "positions", "sweeps"]  # with public names of their own
    return [*__all__, *packages, *(name for name in globals() if name.startswith("__"))]
