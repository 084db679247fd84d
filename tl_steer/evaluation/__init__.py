"""Sweeps, and what their tables say: effects with intervals, sensitivity and bias, honest choosing."""

from .checkpoints import InUseError
from .choosing import choose
from .controls import against_controls
from .damage import damage, effect_and_damage, mean_damage, text_damage, usable_range
from .effectiveness import effectiveness
from .embedding import embedding_effect, embedding_scores, exemplar_accuracy
from .judging import JudgeCost, JudgeError, exemplar_cost, judge, judge_cost, preference, write_exemplars
from .prediction import prediction
from .ray_cluster import ray_executor
from .reading import read_choice
from .recorded import against_baselines, read_recorded
from .sampled_choices import sampled_choices
from .side_by_side import side_by_side
from .signal_detection import signal_detection
from .steerability import prompt_slopes, steerability
from .sweep import sweep

__all__ = [
    "InUseError",
    "JudgeCost",
    "JudgeError",
    "against_baselines",
    "against_controls",
    "choose",
    "damage",
    "effect_and_damage",
    "effectiveness",
    "embedding_effect",
    "embedding_scores",
    "exemplar_accuracy",
    "exemplar_cost",
    "judge",
    "judge_cost",
    "mean_damage",
    "prediction",
    "preference",
    "prompt_slopes",
    "ray_executor",
    "read_choice",
    "read_recorded",
    "sampled_choices",
    "side_by_side",
    "signal_detection",
    "steerability",
    "sweep",
    "text_damage",
    "usable_range",
    "write_exemplars",
]
