"""Results from sweep tables: effects, sensitivity and bias, selection, controls, steerability."""

from ._choose import choose
from ._effect_and_damage import effect_and_damage, mean_damage, usable_range
from ._effectiveness import effectiveness, embedding_effect
from ._prediction import prediction
from ._signal_detection import signal_detection
from ._steerability import prompt_slopes, steerability
from .control_tests import against_controls
from .sampled_answers import against_baselines, sampled_choices

__all__ = [
    "against_baselines", "against_controls", "choose", "effect_and_damage", "effectiveness",
    "embedding_effect", "mean_damage", "prediction", "prompt_slopes", "sampled_choices", "signal_detection",
    "steerability", "usable_range",
]  # fmt: skip
