"""Sweep tables to results: effects, sensitivity and bias, selection, controls, steerability."""

from ._choose import choose
from ._effect_and_damage import effect_and_damage
from ._effectiveness import effectiveness, embedding_effect
from ._prediction import prediction
from ._sampled_choices import sampled_choices
from ._signal_detection import signal_detection
from ._steerability import prompt_slopes, steerability
from .baselines import against_baselines
from .control_tests import against_controls
from .damage_means import mean_damage
from .damage_ranges import usable_range

__all__ = [
    "against_baselines",
    "against_controls",
    "choose",
    "effect_and_damage",
    "effectiveness",
    "embedding_effect",
    "mean_damage",
    "prediction",
    "prompt_slopes",
    "sampled_choices",
    "signal_detection",
    "steerability",
    "usable_range",
]
